"""The parts of a comparison: recipe, state of runs, lock, seed, and children that end with their parent."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cases.locks import ends_with_its_starter
from conftest import run_cli
from fresh_process import fresh_command, fresh_environment

import yolov5_ema
from yolov5_ema.comparing import plan as comparison
from yolov5_ema.comparing import runs as comparison_runs
from yolov5_ema.comparing import scoring
from yolov5_ema.comparing.plan import prepare, recipe_differences, save_recipe
from yolov5_ema.comparing.runs import Record, Run, Runner, locked, log_tail
from yolov5_ema.data.dataset import Dataset, load_dataset
from yolov5_ema.errors import UserError
from yolov5_ema.resources import find_shipped
from yolov5_ema.scripts import leash, seeding
from yolov5_ema.settings import VARIABLES, read
from yolov5_ema.upstream.patching import Patches


@pytest.fixture(scope="module", autouse=True)
def engine():
    with yolov5_ema.installed() as found:
        yield found


@pytest.fixture(scope="module")
def plan(engine, tiny_set, tmp_path_factory):
    """Two models, two seeds, three epochs."""
    return prepare(
        {"yolov5": engine},
        folder=tmp_path_factory.mktemp("compared") / "exp",
        data=str(tiny_set),
        cfgs=["yolov5n-ema.yaml", "yolov5s-ema.yaml"],
        seeds=2,
        flags=["--img", "64", "--batch", "4", "--epochs", "3", "--hyp", "hyp.demo.yaml"],
    )


# --- the plan and its recipe ----------------------------------------------------------------


def test_plan(plan, tiny_set):
    assert list(plan.cfgs) == ["yolov5n-ema", "yolov5s-ema"] and plan.baseline == "yolov5n-ema"
    assert plan.seeds == (0, 1) and plan.task == "test" and plan.nc == 3
    assert (plan.common.epochs, plan.common.imgsz, plan.common.batch_size) == (3, 64, 4)
    assert plan.protocol == "yolov5" and not plan.is_mixed
    trainer = plan.trainers["yolov5n-ema"]
    assert trainer.options.weights == "" and trainer.flags[:2] == ("--weights", "")
    assert trainer.flags[-4:-2] == ("--data", str(tiny_set)) and trainer.flags[-1].endswith("/hyp.demo.yaml")
    assert [str(run) for run in comparison_runs.runs_of(plan)] == [
        "yolov5n-ema, seed 0",
        "yolov5s-ema, seed 0",
        "yolov5n-ema, seed 1",
        "yolov5s-ema, seed 1",
    ]
    assert plan.recipe["data"]["train"]["images"] == 8 and plan.recipe["data"]["test"]["images"] == 4
    assert not plan.folder.exists()


def test_same_recipe_has_no_differences(plan):
    assert recipe_differences(plan.recipe, copy.deepcopy(plan.recipe)) == []


@pytest.mark.parametrize(
    "place, value, line",
    [
        (("options", "epochs"), 30, "epochs: 3 there, 30 now"),
        (("options", "imgsz"), 640, "imgsz: 64 there, 640 now"),
        (("task",), "val", "task: test there, val now"),
        (("last",), 5, "--last: none there, 5 now"),
        (("hyp",), None, "now"),
        (("hyp", "sha256"), "other", "hyp: the content of"),
        (("weights",), {"file": "a.pt", "sha256": "1"}, "weights: none there, a.pt now"),
        (("data", "sha256"), "other", "data: the content of"),
        (("data", "train", "images"), 9, "the train images or labels have changed (8 images before, 9 now)"),
        (("cfgs", "yolov5n-ema", "sha256"), "other", "cfg yolov5n-ema: the content of"),
        (("software", "torch"), "1.8", "1.8 now"),
    ],
)
def test_what_differs_is_named(plan, place, value, line):
    changed = copy.deepcopy(dict(plan.recipe))
    entry = changed
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    (found,) = recipe_differences(plan.recipe, changed)
    assert line in found


def test_earlier_comments_of_a_shipped_yaml_are_no_difference(plan):
    with zipfile.ZipFile(Path(__file__).with_name("earlier_texts.zip")) as earlier:
        texts = [(name.split("/")[1], earlier.read(name)) for name in earlier.namelist()]
    assert {"yolov5n-ema.yaml", "yolov5x-ema-tph.yaml", "visdrone.yaml"} <= {name for name, _ in texts}
    for name, text in texts:
        shipped = find_shipped(name).read_bytes()
        assert yaml.safe_load(text) == yaml.safe_load(shipped) and text != shipped
        now = {**plan.recipe, "cfgs": {"a": {"file": name, "sha256": hashlib.sha256(shipped).hexdigest()}}}
        before = {**plan.recipe, "cfgs": {"a": {"file": name, "sha256": hashlib.sha256(text).hexdigest()}}}
        assert recipe_differences(before, now) == []
        own = {**plan.recipe, "cfgs": {"a": {"file": name, "sha256": hashlib.sha256(b"own").hexdigest()}}}
        assert recipe_differences(before, own) == [f"cfg a: the content of {name} has changed"]


def test_models_may_come_and_go(plan):
    changed = copy.deepcopy(dict(plan.recipe))
    changed["cfgs"]["another"] = changed["cfgs"].pop("yolov5s-ema")
    assert recipe_differences(plan.recipe, changed) == []


def test_saved_recipe_keeps_models_of_earlier_calls(plan):
    plan.folder.mkdir()
    earlier = {**plan.recipe, "cfgs": {"old": {"file": "old.yaml", "sha256": "0"}}}
    comparison.write_json(plan.folder / comparison.RECIPE_FILE, earlier)
    save_recipe(plan)
    saved = comparison.read_json(plan.folder / comparison.RECIPE_FILE)
    assert set(saved["cfgs"]) == {"old", "yolov5n-ema", "yolov5s-ema"}
    assert {**saved, "cfgs": plan.recipe["cfgs"]} == plan.recipe


def test_write_json_leaves_the_old_file_where_it_fails(tmp_path):
    file = tmp_path / "a.json"
    comparison.write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        comparison.write_json(file, {"a": float("nan")})
    assert comparison.read_json(file) == {"a": 1} and list(tmp_path.iterdir()) == [file]


def test_cut_off_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json cannot be read"):
        comparison.read_json(tmp_path / "a.json")


def test_test_split_without_labels_is_not_reported(tiny_set, tmp_path):
    import shutil

    shutil.copytree(tiny_set.parent, tmp_path / "set", ignore=shutil.ignore_patterns("*.cache"))
    dataset = load_dataset(tiny_set)
    moved = Dataset(dataset.file, tmp_path / "set", dataset.names, dataset.content)
    assert comparison._chosen_task(moved, "auto") == "test"
    for label in (tmp_path / "set/labels/test").iterdir():
        label.write_text("")
    assert comparison._chosen_task(moved, "auto") == "val"
    assert comparison._chosen_task(moved, "test") == "test"


# --- the state of a run ---------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    found = Run("yolov5n-ema", 0, tmp_path / "model/seed0")
    found.last.parent.mkdir(parents=True)
    return found


@pytest.fixture
def runner(plan):
    return Runner(plan, None, lambda *_: None)


def test_files_of_a_run(run, tmp_path):
    assert run.record_file == tmp_path / "model/seed0.json" and run.log == tmp_path / "model/seed0.log"


@pytest.mark.parametrize("saved, resumed", [(0, 1), (1, 2), (2, 3), (-1, 3)])
def test_epoch_to_resume(run, runner, saved, resumed):
    torch.save({"epoch": saved}, run.last)
    assert runner._epoch_to_resume(run) == resumed


def test_a_checkpoint_that_was_cut_off_means_a_new_start(run, runner):
    assert runner._epoch_to_resume(run) == 0
    torch.save({"epoch": 1, "weights": torch.zeros(10000)}, run.last)
    whole = run.last.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 10):
        run.last.write_bytes(whole[:size])
        assert runner._epoch_to_resume(run) == 0, size


def test_a_folder_that_no_run_of_the_comparison_made_is_left(run, runner):
    run.best.write_text("of another training")
    with pytest.raises(UserError, match="no run of this comparison made it"):
        runner._train(run, Record())
    assert run.best.read_text() == "of another training"


def write_results(run: Run, *losses: object) -> None:
    lines = ["epoch, train/box_loss, train/obj_loss, train/cls_loss, metrics/precision"]
    lines += [f"   {epoch},  0.1, {loss},  0.3,  0" for epoch, loss in enumerate(losses)]
    (run.folder / "results.csv").write_text("\n".join(lines) + "\n")


def test_outcome(run):
    assert comparison_runs._outcome(run, 0)[0] == comparison_runs.FAILED  # no best.pt
    run.best.touch()
    write_results(run, 0.5, 0.4)
    assert comparison_runs._outcome(run, 0) == (comparison_runs.TRAINED, "")
    assert comparison_runs._outcome(run, 1) == (comparison_runs.FAILED, "train ended with exit code 1")
    for bad in ("nan", "inf"):
        write_results(run, 0.5, bad, bad)
        status, reason = comparison_runs._outcome(run, 0)
        assert status == comparison_runs.DIVERGED and "from epoch 1 on" in reason


def test_epochs_done_counts_a_repeated_epoch_once(run):
    assert comparison_runs.epochs_done(run) == 0
    write_results(run, 0.5, 0.4)
    with (run.folder / "results.csv").open("a") as stream:
        stream.write("   1, 0.1, 0.4, 0.3, 0\n")
    assert comparison_runs.epochs_done(run) == 2


def test_log_tail_shows_progress_bars_as_they_ended(run):
    assert log_tail(run) == ""
    run.log.write_bytes(b"first\n" * 20 + b"1%\r50%\r100%\n\n" + b"Error: last\r\n")
    lines = log_tail(run).split("\n")
    assert len(lines) == comparison_runs.LOG_LINES and lines[-3:] == ["first", "100%", "Error: last"]


def test_record_survives_and_strangers_are_refused(run):
    assert comparison_runs.record_of(run) == Record()
    figures = {"precision": 0.1, "recall": 0.2, "map50": 0.5, "map50_95": 0.3}
    run.record_file.write_text(json.dumps({"status": "finished", "figures": figures}))
    assert comparison_runs.record_of(run) == Record("finished", figures)
    run.record_file.write_text('{"colour": "red"}')
    with pytest.raises(UserError, match="not a record of a run"):
        comparison_runs.record_of(run)


def test_resumed_at():
    attempts = [{"from_epoch": 0}, {"from_epoch": 4, "seconds": 1.0, "exit_code": 0}]
    assert Record(attempts=attempts).resumed_at == [4]


@pytest.mark.parametrize("more", [(), ("map50s",)])  # the PyPI package 7.0.14 returns one more value
def test_score_takes_the_first_four_figures(engine, monkeypatch, more):

    val = engine.module("val")
    given: dict[str, object] = {}

    def play(**flags):
        given.update(flags)
        return (0.1, 0.2, 0.3, np.float64(0.4), 0.5, 0.6, 0.7), np.zeros(3), *more, (1.0, 2.0, 3.0)

    monkeypatch.setattr(val, "run", play)
    found = scoring.score(
        Path("exp/weights/best.pt"),
        Path("a.yaml"),
        task="test",
        imgsz=64,
        batch_size=4,
        device="cpu",
        single_cls=False,
    )
    assert found == {"precision": 0.1, "recall": 0.2, "map50": 0.3, "map50_95": 0.4}
    assert (given["conf_thres"], given["iou_thres"], given["half"]) == (0.001, 0.6, False)
    assert (given["task"], given["imgsz"], given["project"]) == ("test", 64, "exp")


# --- several at the same time ---------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="the command is a shell script")
@pytest.mark.parametrize("jobs, given, threads", [(1, "", ""), (1000, "", "1"), (1000, "3", "3")])
def test_each_training_has_its_share_of_the_cores_and_ends_when_stopped(
    plan, run, tmp_path, monkeypatch, jobs, given, threads
):
    command = tmp_path / "command.sh"
    command.write_text('#!/bin/sh\necho "threads: $OMP_NUM_THREADS."\nexec sleep 60\n')
    command.chmod(0o700)
    monkeypatch.setattr(comparison_runs.sys, "executable", str(command))
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    if not given:
        monkeypatch.delenv("OMP_NUM_THREADS")
    runner = Runner(plan, None, lambda *_: None, jobs, poll_s=0.02)
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(runner._call, run, [])
        until_s = time.monotonic() + 30
        while not (run.log.is_file() and run.log.read_text()):
            assert time.monotonic() < until_s
            time.sleep(0.02)
        assert run.log.read_text() == f"threads: {threads}.\n" and not begun.done()
        runner.stop()
        with pytest.raises(comparison_runs.Stopped):
            begun.result(30)


# --- one at a time, and nothing left behind -------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="no locks of folders here")
def test_a_locked_folder_is_refused_until_its_last_holder_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison_runs, "_WAIT_FOR_LOCK_S", 0.0)
    with locked(tmp_path / "new/exp") as held:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(held,))
        with pytest.raises(UserError, match="another compare is running"), locked(tmp_path / "new/exp"):
            pass
    with pytest.raises(UserError, match="another compare"), locked(tmp_path / "new/exp"):
        pass  # one training is left
    child.communicate(b"\n")
    with locked(tmp_path / "new/exp") as held:
        assert held is not None


def test_a_process_on_the_leash_ends_with_its_starter(tmp_path):
    command, pipe = fresh_command(ends_with_its_starter), subprocess.PIPE
    environment = fresh_environment({VARIABLES["leash"]: "1"})
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
    assert child.stdout.readline() == b"up\n" and child.poll() is None
    started_s = time.monotonic()
    child.stdin.close()
    assert child.wait(30) == 1 and time.monotonic() - started_s < 20
    assert child.stdout.read() == b""


def test_the_processes_of_a_training_on_several_gpus_end_with_its_starter(tmp_path):
    file = tmp_path / "rank.py"
    file.write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    assert leash.in_every_rank(lambda: str(file)) == str(file) and not leash.is_on()
    child = subprocess.Popen([sys.executable, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"up\n" and child.poll() is None
    child.stdin.close()
    assert child.wait(30) == 1


# --- the seed -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["-1", "1.5", "one", "2147483648"])
def test_a_seed_that_is_none(monkeypatch, text):
    monkeypatch.setenv(VARIABLES["seed"], text)
    with pytest.raises(UserError, match="YOLOV5_EMA_SEED must be a whole number"):
        read("seed")


def test_without_a_seed_train_is_left_alone(monkeypatch, engine):

    monkeypatch.delenv(VARIABLES["seed"], raising=False)
    module = engine.module("train")
    before = dict(vars(module))
    with seeding.seeded_training(engine, ["--epochs", "1"]) as flags:
        assert flags == ["--epochs", "1"] and vars(module) == before
    monkeypatch.setenv(VARIABLES["seed"], "7")
    has_flag = "--seed" in Path(module.__file__).read_text(encoding="utf-8")  # v6.0 and v6.1 have no such flag
    with seeding.seeded_training(engine, ["--epochs", "1"]) as flags:
        assert flags == ["--epochs", "1", *(["--seed", "7"] if has_flag else [])]
        assert (module.init_seeds is before["init_seeds"]) is has_flag
    assert vars(module) == before


def test_a_yolov5_with_the_flag_gets_it(tmp_path):
    file = tmp_path / "train.py"
    for text, has in (("p.add_argument('--seed', type=int)", True), ("p.add_argument('--epochs')", False)):
        file.write_text(text)
        assert seeding._has_seed_flag(types.SimpleNamespace(__file__=str(file))) is has


def drawn() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_images_are_drawn_from_the_seed_whatever_the_model_used_up():
    calls = []
    module = types.SimpleNamespace(
        init_seeds=lambda seed: calls.append(seed), create_dataloader=lambda *_, **__: drawn()
    )
    first = {}
    for seed in (3, 3, 4):
        for used in (0, 5):
            patches = Patches()
            seeding._seed(module, seed, patches)
            module.init_seeds(0)
            weights = drawn()
            for _ in range(used):
                drawn()
            images = module.create_dataloader("path", augment=True)
            patches.undo()
            assert first.setdefault(seed, (weights, images)) == (weights, images)
    assert first[3] != first[4] and calls == [0] * 6  # YOLOv5's own choice of the cuDNN mode does not change


def train_tiny(tiny_set: Path, cwd: Path, cfg: str, seed: int, name: str) -> Path:
    flags = ("--img", 64, "--batch", 4, "--epochs", 2, "--workers", 2, "--noautoanchor", "--name", name)
    done = run_cli(
        *("train", "--data", tiny_set, "--cfg", cfg, "--weights", "", *flags),
        cwd=cwd,
        env={VARIABLES["seed"]: str(seed), "OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return cwd / "runs/train" / name


@pytest.mark.slow
def test_a_seed_decides_the_whole_training(tiny_set, tmp_path):
    one = train_tiny(tiny_set, tmp_path, "yolov5n-ema.yaml", 5, "one")
    again = train_tiny(tiny_set, tmp_path, "yolov5n-ema.yaml", 5, "again")
    other = train_tiny(tiny_set, tmp_path, "yolov5n-ema.yaml", 6, "other")
    bigger = train_tiny(tiny_set, tmp_path, "yolov5s-ema.yaml", 5, "bigger")
    results = [(run / "results.csv").read_text() for run in (one, again, other, bigger)]
    assert results[0] == results[1] != results[2]
    images = [(run / "train_batch2.jpg").read_bytes() for run in (one, again, other, bigger)]
    assert images[0] == images[1] != images[2]
    assert images[0] == images[3] and results[0] != results[3]  # another model sees the same images
