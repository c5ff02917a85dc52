"""The user's settings: read from the environment and the command line, passed to child processes, and then undone."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

import yolov5_ema
from yolov5_ema.cli.blocks import COMMAND
from yolov5_ema.cli.main import main
from yolov5_ema.errors import UserError
from yolov5_ema.settings import VARIABLES, WAITING, Settings, chosen_conflicts, exporting, read, take, waiting_briefly

ALL = Settings(
    yolov5="/yolov5",
    plugins=("one", "two"),
    conflicts="ours",
    trust=True,
    implementation="exact",
    cache="/cache",
    seed=0,
    init="identity",
    cpu_ddp=True,
    leash=True,
    active="/active",
)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    before = dict(os.environ)
    for name in (*VARIABLES.values(), *WAITING):
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_a_process_that_is_started_has_the_same_settings(monkeypatch):
    assert Settings.from_environment() == Settings() and Settings().as_environment() == {}
    environment = ALL.as_environment()
    assert set(environment) == set(VARIABLES.values()) and environment["YOLOV5_EMA_SEED"] == "0"
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    assert Settings.from_environment() == ALL
    with pytest.raises(FrozenInstanceError):
        ALL.trust = False  # type: ignore[misc]


def test_the_environment_is_as_it_was_afterwards(monkeypatch):
    monkeypatch.setenv("YOLOV5_EMA_CONFLICTS", "theirs")
    monkeypatch.setenv("YOLOV5_EMA_ACTIVE", "/shim")
    before = dict(os.environ)
    with pytest.raises(KeyError), Settings(trust=True, plugins=("x",), active="/other").exported():
        assert Settings.from_environment() == Settings(trust=True, plugins=("x",), active="/shim")
        with exporting(seed=3, conflicts="ours"):
            assert (read("seed"), read("conflicts"), read("trust")) == (3, "ours", True)
        assert (read("seed"), read("conflicts")) == (None, "error")
        os.environ["YOLOV5_EMA_IMPLEMENTATION"] = "exact"  # left by a command
        raise KeyError
    assert dict(os.environ) == before


def test_a_shim_that_is_installed_within_outlives_the_settings():
    with Settings(trust=True).exported():
        os.environ["YOLOV5_EMA_ACTIVE"] = "/shim"
    assert (read("active"), read("trust")) == ("/shim", False)


def test_what_is_taken_is_told_to_nobody_else(monkeypatch):
    monkeypatch.setenv("YOLOV5_EMA_LEASH", "1")
    assert take("leash") is True and take("leash") is False and "YOLOV5_EMA_LEASH" not in os.environ


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("SEED", "-1", "YOLOV5_EMA_SEED must be a whole number from 0 to 2147483647, not '-1'"),
        ("SEED", "2147483648", "not '2147483648'"),
        ("CONFLICTS", "mine", "conflicts must be one of error, ours, theirs, not 'mine'"),
        ("INIT", "zero", "YOLOV5_EMA_INIT must be one of none, identity, not 'zero'"),
    ],
)
def test_a_value_that_is_none_is_refused_by_every_command(name, text, message, monkeypatch, capsys):
    monkeypatch.setenv(f"YOLOV5_EMA_{name}", text)
    with pytest.raises(UserError, match=message):
        Settings.from_environment()
    assert main(["blocks"]) == 2 and message in capsys.readouterr().err


def test_threads_soon_sleep_for_the_time_of_a_command(own_folder, monkeypatch):
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    Path("mine.py").write_text(f"import os; open('said', 'w').write(' '.join(os.environ[name] for name in {names}))")
    assert main(["run", "mine.py"]) == 0
    assert Path("said").read_text() == "PASSIVE 1000" and not any(name in os.environ for name in names)


@pytest.mark.parametrize("name", WAITING)
def test_how_a_user_lets_threads_wait_stays(name, monkeypatch):
    monkeypatch.setenv(name, "ACTIVE")
    before = dict(os.environ)
    with waiting_briefly():
        assert dict(os.environ) == before
    assert dict(os.environ) == before


@pytest.mark.parametrize("text, is_on", [("", False), ("0", False), ("1", True), ("yes", True)])
def test_switches(text, is_on, monkeypatch):
    for name in ("TRUST_CHECKPOINT", "CPU_DDP"):
        monkeypatch.setenv(f"YOLOV5_EMA_{name}", text)
    assert Settings.from_environment() == Settings(trust=is_on, cpu_ddp=is_on)


def test_the_command_line_stands_over_the_environment(monkeypatch, own_folder, capsys):
    monkeypatch.setenv("YOLOV5_EMA_CONFLICTS", "theirs")
    monkeypatch.setenv("YOLOV5_EMA_SEED", "4")
    seen = []

    def run(args, rest):
        seen.append(Settings.from_environment())
        return 0

    monkeypatch.setattr("yolov5_ema.cli.blocks.COMMAND", replace(COMMAND, run=run))
    flags = [
        "--conflicts",
        "ours",
        "--trust-checkpoint",
        "--plugin",
        "a",
        "--plugin",
        "b",
        "--yolov5",
        "here",
    ]
    assert main(["blocks", *flags]) == 0
    said = Settings(str(own_folder / "here"), ("a", "b"), "ours", trust=True, seed=4)
    assert seen == [said] and Settings.from_environment() == Settings(conflicts="theirs", seed=4)
    assert replace(said, trust=False) != said


def test_conflicts():
    assert chosen_conflicts() == "error" and chosen_conflicts("ours") == "ours"
    with exporting(conflicts="theirs"):
        assert chosen_conflicts() == "theirs"
    with pytest.raises(UserError, match="not ''"):
        chosen_conflicts("")


def test_no_other_file_names_a_variable():
    package = Path(yolov5_ema.__file__).parent
    named = [file.name for file in package.rglob("*.py") if "YOLOV5_EMA_" in file.read_text(encoding="utf-8")]
    assert named == ["settings.py"]
