"""Every command that reads a checkpoint of ultralytics, and `YOLO` itself, refuses malicious ones."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacked import is_refused, lay_out
from double_archives import DOUBLES, whole_archives
from malicious_pickles import CANARY, CONTAINERS, PAYLOADS, PLACES_OF_ULTRALYTICS, write
from offline_ultralytics import offline
from under_watch import called, command, own_place

import yolov5_ema
from yolov5_ema.errors import CheckpointError

COMMANDS: dict[str, tuple[object, ...]] = {
    "inspect": ("evil.pt",),
    "convert": ("evil.pt",),
    "transfer": ("evil.pt", "--cfg", "yolo11n-ema.yaml", "-o", "out.pt"),
    "train": ("model=evil.pt", "data=good.yaml", "epochs=1", "imgsz=32"),
    "val": ("model=evil.pt", "data=good.yaml", "imgsz=32"),
    "detect": ("model=evil.pt", "source=images/val", "imgsz=32"),
    "export": ("model=evil.pt", "format=torchscript"),
    "yolo": ("track", "model=evil.pt", "source=images/val"),
}
# what really runs in `YOLO` without the adapter
RUNS = ("posix.system", "eval", "exec", "open", "STACK_GLOBAL", "INST", "partial", "cProfile")


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")) as package:
        yolov5_ema.install("ultralytics")
        with own_place() as folder:
            lay_out(folder)
            (folder / "evil.pt").write_bytes(b"PK\x03\x04 and nothing more")
            for name in COMMANDS:  # what is done once in each process is done before anything is watched
                called(lambda name=name: run(name), folder, watch=False)
        yield package


def run(name: str) -> int:
    from yolov5_ema.cli.main import main

    return main([name, *map(str, COMMANDS[name])])


def check(ultralytics, payload: str, place: str, container: str, names: tuple[str, ...]) -> None:
    content, word = PAYLOADS[payload]
    with own_place() as folder:
        lay_out(folder)
        write(folder / "evil.pt", content, place, container)
        for name in names:
            is_refused(name, COMMANDS[name], folder, "evil.pt" if b"models." in content else word)
        yolov5_ema.install("ultralytics")
        with pytest.raises(CheckpointError, match=r"evil\.pt"):
            ultralytics.YOLO("evil.pt")
        assert not (folder / CANARY).exists()


ONE_EACH = list(
    zip(PAYLOADS, itertools.cycle(PLACES_OF_ULTRALYTICS), itertools.cycle(CONTAINERS[:3]), itertools.cycle(COMMANDS))
)


@pytest.mark.parametrize(("payload", "place", "container", "name"), ONE_EACH)
def test_a_payload_is_refused(ultralytics, payload, place, container, name):
    check(ultralytics, payload, place, container, (name,))


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES_OF_ULTRALYTICS)
@pytest.mark.parametrize("container", CONTAINERS[:3])
def test_all_payloads_at_all_places(ultralytics, place, container):
    for payload in PAYLOADS:
        check(ultralytics, payload, place, container, tuple(COMMANDS))


def ran_in(load: Callable[[], object]) -> bool:
    """Whether a file makes the canary when ultralytics reads it."""
    Path(CANARY).unlink(missing_ok=True)
    with contextlib.suppress(Exception, SystemExit):  # what is left after the attack is no model
        load()
    ran = Path(CANARY).exists()
    Path(CANARY).unlink(missing_ok=True)
    return ran


@pytest.mark.parametrize("place", PLACES_OF_ULTRALYTICS)
def test_the_attacks_succeed_without_the_guard(ultralytics, place):
    """The tests above can fail: without the adapter, or if the file is trusted, the same files do run."""
    for payload in RUNS:
        with own_place() as folder:
            write(folder / "evil.pt", PAYLOADS[payload][0], place)
            yolov5_ema.install("ultralytics")
            assert not ran_in(lambda: ultralytics.YOLO("evil.pt")), payload
            yolov5_ema.uninstall("ultralytics")
            assert ran_in(lambda: ultralytics.YOLO("evil.pt")), payload
    with own_place() as folder:
        write(folder / "evil.pt", PAYLOADS["posix.system"][0], place)
        yolov5_ema.install("ultralytics")
        os.environ["YOLOV5_EMA_TRUST_CHECKPOINT"] = "1"
        try:
            assert ran_in(lambda: ultralytics.YOLO("evil.pt"))
        finally:
            del os.environ["YOLOV5_EMA_TRUST_CHECKPOINT"]


def test_archives_in_which_two_programs_read_different_pickles(ultralytics):
    good, evil = whole_archives()
    yolov5_ema.install("ultralytics")
    for double in DOUBLES.values():
        for one, other in ((good, evil), (evil, good)):
            with own_place() as folder:
                (folder / "evil.pt").write_bytes(double(one, other))
                with pytest.raises(CheckpointError):
                    ultralytics.YOLO("evil.pt")
                assert not Path(CANARY).exists()


def test_its_restricted_mode_has_our_message_and_takes_our_blocks(ultralytics, monkeypatch):
    tasks = __import__("ultralytics.nn.tasks", fromlist=["tasks"])
    if not hasattr(tasks, "_SafeLoad"):
        pytest.skip("this release has no restricted mode")
    yolov5_ema.uninstall("ultralytics")
    loading = vars(tasks._SafeLoad)["loading"]
    monkeypatch.setattr(tasks, "SAFE_LOAD", True)
    yolov5_ema.install("ultralytics")
    with own_place() as folder:
        model = ultralytics.YOLO("yolo11n-ema.yaml").model
        torch.save({"model": model, "train_args": {}}, folder / "good.pt")
        write(folder / "evil.pt", PAYLOADS["posix.system"][0], "train_args")
        assert type(ultralytics.YOLO("good.pt").model.model[7]) is yolov5_ema.EMA
        with pytest.raises(CheckpointError, match=r"evil\.pt holds what no checkpoint of ultralytics needs: posix"):
            ultralytics.YOLO("evil.pt")
        yolov5_ema.uninstall("ultralytics")
        assert vars(tasks._SafeLoad)["loading"] is loading
        with pytest.raises(TypeError, match="references types outside"):
            ultralytics.YOLO("good.pt")


def test_the_good_one_is_taken(ultralytics):
    """The files above are refused because of the payload."""
    yolov5_ema.install("ultralytics")
    with own_place() as folder:
        lay_out(folder)
        torch.save({"model": ultralytics.YOLO("yolo11n-ema.yaml").model.half(), "train_args": {}}, "good.pt")
        shutil.copy("good.pt", "evil.pt")
        code, said = command("inspect", "evil.pt", folder=folder, watch=False)
        assert code == 0 and "task detect, size n" in said and "warning" not in said, said
        code, said = command("convert", "evil.pt", folder=folder, watch=False)
        assert code == 0 and (folder / "evil.safetensors").exists(), said
