"""``train --resume`` of an untrusted run: what its files may say, and what an attack does without the guard.

As a control, each attack is tried on YOLOv5 with the quirks but without the guards.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import PLUGINS
from cases import resumed_options as cases
from conftest import laid_aside, lay_out_as_clone, run_cli
from fresh_process import run_fresh

from yolov5_ema.cli.main import main
from yolov5_ema.engine import activation, shim
from yolov5_ema.engine.guards import resumed_training
from yolov5_ema.engine.quirks import SourceModule
from yolov5_ema.engine.resumed_options import Script, options_to_resume
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.scripts import preflight

pytestmark = pytest.mark.usefixtures("messages")

OF_HONEST_RUNS: dict[str, Any] = {
    "weights": "",
    "cfg": "models/yolov5n-ema.yaml",
    "hyp": {},
    "epochs": 7,
    "batch_size": 4,
    "imgsz": 64,
    "workers": 0,
    "device": "",
    "project": "runs/train",
    "name": "exp",
    "save_dir": "runs/train/exp",
    "resume": False,
    "local_rank": -1,
    "bucket": "",
    "evolve": None,
    "freeze": 0,
    "adam": True,
    "patience": 30,
    "cache": None,
}


@pytest.fixture(scope="module")
def script() -> Script:
    """The train.py of the installed YOLOv5, as the guard sees it."""

    engine = shim.install()
    module = engine.module("train")
    source = Path(module.__file__).read_text(encoding="utf-8")
    return resumed_training._script(SourceModule(engine, "train", source, module))


@pytest.fixture(scope="module")
def hyp(script) -> dict[str, Any]:
    return yaml.safe_load((script.engine.root / "data/hyps/hyp.scratch.yaml").read_text())


@pytest.fixture
def last(own_folder, tiny_set, hyp) -> Path:
    """The last.pt of a valid run, without a model in it, and its opt.yaml."""
    return write_run(own_folder / "runs/train/exp", data=str(tiny_set), hyp=hyp)


def write_run(run: Path, **options: Any) -> Path:
    import torch

    (run / "weights").mkdir(parents=True)
    torch.save({"epoch": 0, "model": None, "optimizer": {}}, run / "weights/last.pt")
    (run / "opt.yaml").write_text(yaml.safe_dump({**OF_HONEST_RUNS, **options}))
    return run / "weights/last.pt"


def rewrite(last: Path, **options: Any) -> None:
    file = last.parent.parent / "opt.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **options}))


def typed(script: Script, *flags: str) -> argparse.Namespace:
    return argparse.ArgumentParser.parse_known_args(script.parser, list(flags))[0]


def options_of(last: Path, script: Script, *flags: str) -> dict[str, Any]:
    return options_to_resume(last, typed(script, "--resume", str(last), *flags), script)


# --- what a run may say ---------------------------------------------------------------------


def test_an_honest_run_goes_on_as_it_says(last, script, tiny_set, hyp, capsys):
    found = options_of(last.relative_to(Path.cwd()), script)
    kept = ("epochs", "batch_size", "imgsz", "workers", "adam", "patience", "freeze", "cache")
    assert {name: found[name] for name in kept} == {name: OF_HONEST_RUNS[name] for name in kept}
    assert (found["data"], found["hyp"]) == (str(tiny_set), hyp)
    assert (found["save_dir"], found["project"], found["name"]) == ("runs/train/exp", "runs/train", "exp")
    assert not capsys.readouterr().err


def test_what_leaves_the_machine_is_for_the_command_line(last, script, capsys):
    says = {
        **{
            "evolve": 3,
            "bucket": "x; touch canary #",
            "upload_dataset": True,
            "s3_upload_dir": "s3://theirs",
        },
        **{"neptune_token": "secret", "neptune_project": "theirs", "entity": "theirs", "bbox_interval": 1},
        **{"artifact_alias": "x", "wandb_id": "x", "unheard_of": "rm -rf"},
    }
    rewrite(last, **says)
    found = options_of(last, script, "--s3_upload_dir", "s3://mine")
    defaults = vars(typed(script))
    assert {name: found[name] for name in says if name in found and name != "s3_upload_dir"} == {
        name: defaults[name] for name in says if name in defaults and name != "s3_upload_dir"
    }
    assert found["s3_upload_dir"] == "s3://mine" and "unheard_of" not in found
    said = capsys.readouterr().err
    assert "bucket" in said and "neptune_token" in said and "give them together with --resume" in said
    assert "unheard_of, wandb_id: unknown to this YOLOv5's train" in said and "secret" not in said


@pytest.mark.parametrize("place", ["/somewhere/else", "../../..", "runs/train/other", "/"])
def test_a_run_is_written_where_it_lies(last, script, place):
    rewrite(last, save_dir=place, project=place, name="../x", exist_ok=True)
    moved = Path("moved/to")
    moved.parent.mkdir()
    shutil.move("runs/train/exp", moved)
    found = options_of(moved / "weights/last.pt", script)
    assert (found["save_dir"], found["project"], found["name"]) == ("moved/to", "moved", "to")


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"epochs": "7"}, "opt.yaml: epochs must be a whole number from 1 to 1000000, not '7'"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"imgsz": 10**9}, "imgsz must be"),
        ({"imgsz": None}, "missing options: imgsz"),
        ({"freeze": 10**9}, "freeze must be"),
        ({"label_smoothing": float("nan")}, "label_smoothing must be a number from 0 to 1"),
        ({"rect": "yes"}, "rect must be true or false"),
        ({"device": "cpu; rm"}, "device must be cpu, mps, or the numbers of GPUs"),
        ({"cache": ["ram"]}, "cache must be a text"),
        ({"workers": [8]}, "workers must be"),
        ({"data": 5}, "data must name a data YAML, not 5"),
        ({"data": ["a"]}, "data must name a data YAML"),
        ({"data": "https://example.org/set.zip"}, "an address in a run's options is not fetched"),
        ({"data": "clearml://x"}, "an address in a run's options is not fetched"),
        ({"data": "set.ZIP"}, "is not fetched"),
        ({"data": "gone/x.yaml"}, "the data set 'gone/x.yaml' is not there"),
        ({"data": "a" * 5000}, "is not there"),
        ({"data": "/dev/zero"}, "is not there"),
        ({"data": {"train": "x", "download": "touch canary"}}, "data must be the path of a data YAML"),
        ({"hyp": {"lr0": "1e-3"}}, "lr0 must be a number, not '1e-3' (YAML reads 1e-3 as text"),
        ({"hyp": {"lr0": 0.1}}, "opt.yaml, hyp: missing hyperparameters: anchor_t, box, "),
        ({"hyp": {"anchors": 10**6}}, "anchors must be a number up to 100"),
        ({"hyp": ["lr0"]}, "hyp must name a file of hyperparameters"),
        ({"hyp": "/dev/zero"}, "were not found, and neither was"),
    ],
)
def test_what_is_not_of_its_type_is_refused(last, script, says, message):
    rewrite(last, **says)
    with pytest.raises(UserError) as error:
        options_of(last, script)
    assert message in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "1", "a: [", "? [1]\n: 2\n", "\x00", "a: &a [*a]\n", "- " * 3000])
def test_an_opt_yaml_that_is_none_is_refused(last, script, content):
    (last.parent.parent / "opt.yaml").write_text(content)
    with pytest.raises(UserError, match=r"opt\.yaml"):
        options_of(last, script)


def test_hyperparameters_of_a_path_or_of_the_run_itself(last, script, hyp):
    Path("mine.yaml").write_text(yaml.safe_dump({**hyp, "lr0": 0.5}))
    rewrite(last, hyp="mine.yaml")
    assert options_of(last, script)["hyp"]["lr0"] == 0.5
    Path("mine.yaml").unlink()
    (last.parent.parent / "hyp.yaml").write_text(yaml.safe_dump(hyp))
    assert options_of(last, script)["hyp"] == hyp


def test_a_data_set_is_found_from_the_run_and_checked(last, script, tiny_set, monkeypatch):
    Path("mine.yaml").write_text(tiny_set.read_text())
    rewrite(last, data="mine.yaml")
    (Path.cwd() / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert options_of(last, script)["data"] == str(last.parents[4] / "mine.yaml")
    (last.parents[4] / "mine.yaml").write_text(tiny_set.read_text().replace("images/val", "images/gone"))
    with pytest.raises(UserError, match="val images not found"):
        options_of(last, script)


def test_a_typed_data_set_takes_the_place_of_an_address(last, script, tiny_set):
    rewrite(last, data="https://hub.example/set.zip")
    assert options_of(last, script, "--data", str(tiny_set))["data"] == str(tiny_set)


def test_a_typed_data_set_takes_the_place_of_one_that_is_gone(last, script, tiny_set):
    rewrite(last, data="gone/data.yaml")
    with pytest.raises(UserError, match=r"'gone/data\.yaml' is not there .* give its data YAML with --data"):
        options_of(last, script)
    assert options_of(last, script, "--data", str(tiny_set))["data"] == str(tiny_set)
    with pytest.raises(UserError, match="is not there"):
        options_of(last, script, "--data", "gone/too.yaml")


@pytest.mark.parametrize("moved", ["runs/renamed", "elsewhere/exp", "../outside/exp"])
def test_a_moved_run_goes_on_where_it_lies_now(last, script, moved):
    rewrite(last, save_dir=str(last.parent.parent), weights=str(last))
    Path(moved).parent.mkdir(exist_ok=True)
    last.parent.parent.rename(moved)
    found = options_of(Path(moved) / "weights/last.pt", script)
    assert (found["save_dir"], found["name"]) == (moved, Path(moved).name)


def test_the_folder_of_a_run_means_its_last_pt(last):
    for folder in (last.parent, last.parent.parent):
        assert resumed_training._last(argparse.Namespace(resume=str(folder)), None) == last


def test_a_folder_without_a_run_and_a_lone_checkpoint(last, script, own_folder):
    with pytest.raises(UserError, match=r"holds no weights/last\.pt"):
        options_of(own_folder, script)
    lone = own_folder / "last.pt"
    shutil.copy(last, lone)
    with pytest.raises(UserError, match="mkdir -p RUN/weights"):
        options_of(lone, script)


def test_the_options_instead_of_the_checkpoint(last, script):
    options = last.parent.parent / "opt.yaml"
    with pytest.raises(CheckpointError, match=r"name the checkpoint, not its options: --resume .*last\.pt"):
        options_of(options, script)


def test_options_out_of_the_checkpoint_are_checked_too(last, script, tiny_set, hyp):
    import torch

    (last.parent.parent / "opt.yaml").unlink()
    with pytest.raises(UserError, match=r"opt\.yaml is missing, and this checkpoint does not hold the options"):
        options_of(last, script)
    says = {**OF_HONEST_RUNS, "data": str(tiny_set), "hyp": hyp, "bucket": "x; y", "save_dir": "/"}
    torch.save({"epoch": 0, "optimizer": {}, "opt": says}, last)
    found = options_of(last, script)
    assert (found["bucket"], found["save_dir"], found["epochs"]) == ("", str(last.parent.parent), 7)
    torch.save({"epoch": 0, "optimizer": {}, "opt": {**says, "epochs": "x"}}, last)
    with pytest.raises(UserError, match=r"opt in .*last\.pt: epochs must be"):
        options_of(last, script)


def test_a_run_with_links_out_of_it_is_refused(last, script, tmp_path):
    run, outside = last.parent.parent, tmp_path / "mine.csv"
    outside.write_text("mine")
    (run / "best.pt").symlink_to("weights/last.pt")  # inside the package: harmless
    assert options_of(last, script)["epochs"] == 7
    for name in ("results.csv", "weights/best.pt", "opt.yaml"):
        place = run / name
        place.unlink(missing_ok=True)
        place.symlink_to(outside)
        with pytest.raises(UserError, match="is a link to outside of the run's folder"):
            options_of(last, script)
        place.unlink()
    os.mkfifo(run / "results.csv")
    with pytest.raises(UserError, match="or not a regular file"):
        options_of(last, script)


# --- the command ----------------------------------------------------------------------------


def test_what_the_command_says(last, refused, monkeypatch):
    lone = Path("lone.pt")
    shutil.copy(last, lone)
    assert "must lie in a folder called weights" in refused("train", "--resume", lone)
    assert "gone/weights/last.pt: no such file" in refused("train", "--resume", "gone/weights/last.pt")
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    assert "there is no last.pt below" in refused("train", "--resume")


def test_a_train_that_reads_options_otherwise_is_refused(monkeypatch):
    import types

    with pytest.raises(UserError, match="It may read the options of a run in another way"):
        resumed_training.refuse_unguarded(types.SimpleNamespace(main=print, __file__="fork/train.py"))


def attack(run: Path, canary: Path, tiny_set: Path, hyp: dict[str, Any]) -> Path:
    return write_run(
        run, data=str(tiny_set), hyp=str(write_hyp(run.parent, hyp)), evolve=-1, bucket=f"x; touch {canary} #"
    )


def write_hyp(folder: Path, hyp: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine-hyp.yaml").write_text(yaml.safe_dump(hyp))
    return folder / "mine-hyp.yaml"


def test_a_bucket_in_opt_yaml_runs_nothing(own_folder, tiny_set, hyp, monkeypatch, capsys):
    """``os.system(f'gsutil cp gs://{opt.bucket}…')``: the control runs it."""
    canary = own_folder / "canary"
    last = attack(own_folder / "runs/exp", canary, tiny_set, hyp)
    code = main(["train", "--resume", str(last)])
    said = capsys.readouterr().err
    assert not canary.exists() and "bucket" in said and "not taken from a file" in said
    assert code == 2 and "last.pt does not hold a YOLOv5 model" in said
    last = attack(own_folder / "control/exp", canary, tiny_set, hyp)
    shim.uninstall()
    try:
        with monkeypatch.context() as control:
            control.setattr(activation, "GUARDS", ())
            control.setattr(preflight.resumed_training, "refuse_unguarded", lambda module: None)
            with pytest.raises(Exception, match="evolve"):
                main(["train", "--resume", str(last)])
        assert canary.exists()
    finally:
        shim.uninstall()
        shim.install()  # as the fixtures set them


# --- every release, with trainings ----------------------------------------------------------


def without_guards(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_fresh(cases.command_without_guards, *args, cwd=cwd, env={"OMP_WAIT_POLICY": "PASSIVE"})


@pytest.fixture(scope="module", params=["6.0.7", "6.1.9", "6.2.3", "7.0.14", "7.0.14 as a clone"])
def stopped(request, tiny_set, tmp_path_factory) -> tuple[Path, Path]:
    """A YOLOv5, and the run of a training with it that was stopped after the first of three epochs."""
    folder = tmp_path_factory.mktemp("stopped")
    version, *layout = request.param.split(" ", 1)
    root = laid_aside(version)
    root = lay_out_as_clone(root, folder / "yolov5") if layout else root
    shutil.copy(PLUGINS / "stop_after_one_epoch.py", folder)
    done = run_cli(
        *(
            "train",
            "--yolov5",
            root,
            "--data",
            tiny_set,
            "--cfg",
            "yolov5n-ema.yaml",
            "--weights",
            "",
            "--img",
            64,
        ),
        *("--batch", 4, "--epochs", 3, "--workers", 0, "--plugin", "stop_after_one_epoch"),
        cwd=folder,
    )
    assert done.returncode == 9 and (folder / "runs/train/exp/weights/last.pt").is_file(), done.stderr[-3000:]
    return root, folder / "runs/train/exp"


def epochs_of(run: Path) -> list[int]:
    return [int(line.split(",")[0]) for line in (run / "results.csv").read_text().splitlines()[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["opt.yaml", "the checkpoint"])
def test_nothing_that_a_run_says_is_run_and_it_goes_on(stopped, where, tmp_path):
    """Evolution with a bucket, a data set with code, other folders to write: not done; the control does them."""
    root, honest = stopped
    canary = tmp_path / "canary"
    run = shutil.copytree(honest, tmp_path / "a" / "b" / "run")
    says = {
        "evolve": -1,
        "bucket": f"x; touch {canary} #",
        "save_dir": str(tmp_path / "other"),
        "project": "../../..",
    }
    if not put(says, run, where, root):
        pytest.skip("this YOLOv5 keeps no options in its checkpoints")
    control = shutil.copytree(tmp_path / "a", tmp_path / "control") / "b" / "run"
    without_guards("train", "--yolov5", root, "--resume", control / "weights/last.pt", cwd=tmp_path)
    was_run = canary.exists()
    canary.unlink(missing_ok=True)
    assert was_run or root.parts[-2] in ("7.0.14",), "the attack does nothing"  # which gives gsutil a list
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    done = run_cli("train", "--yolov5", root, "--resume", run / "weights/last.pt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert epochs_of(run) == [0, 1, 2] and not canary.exists() and not (tmp_path / "other").exists()
    assert "bucket" in done.stderr and "not taken from a file" in done.stderr


def put(says: dict[str, Any], run: Path, where: str, root: Path) -> bool:
    """Write options into a file of the run; returns whether the run has such a file."""
    if where == "opt.yaml":
        file = run / "opt.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **says}))
        return True
    (run / "opt.yaml").unlink()
    done = run_fresh(cases.change_options, root, run / "weights/last.pt", yaml.safe_dump(says))
    assert done.returncode in (0, 3), done.stderr[-3000:]
    return done.returncode == 0


@pytest.mark.slow
def test_code_in_a_data_set_in_the_options_is_not_run(stopped, tmp_path):
    root, honest = stopped
    canary = tmp_path / "canary"
    data = {
        "train": "gone",
        "val": "gone",
        "nc": 1,
        "names": ["a"],
        "download": f"open({str(canary)!r}, 'w')",
    }
    for folder in ("run", "control"):
        run = shutil.copytree(honest, tmp_path / folder)
        put({"data": data}, run, "opt.yaml", root)
    without_guards("train", "--yolov5", root, "--resume", tmp_path / "control/weights/last.pt", cwd=tmp_path)
    assert canary.exists(), "the attack does nothing"
    canary.unlink()
    done = run_cli("train", "--yolov5", root, "--resume", tmp_path / "run/weights/last.pt", cwd=tmp_path)
    assert done.returncode == 2 and not canary.exists(), done.stderr[-3000:]
    assert "Traceback" not in done.stderr and "opt.yaml" in done.stderr
