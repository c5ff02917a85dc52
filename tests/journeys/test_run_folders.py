"""A run that fails takes away what it made, and nothing of what others have there."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import ModuleType

import pytest

from yolov5_ema.cli._runs import fresh_folder, run_folder
from yolov5_ema.cli.main import main
from yolov5_ema.detecting.parts import Manifest, Parts, folder_of, opened
from yolov5_ema.engine.shim import installed
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.run_folder import MadeFolder, RunFolder
from yolov5_ema.upstream.patching import Patches


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write(*places: Path) -> None:
    """What another process leaves."""
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("of another process")


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("bad flag"), RuntimeError("bug")])
def test_a_failing_run_removes_what_it_made_and_no_more(tmp_path, error):
    runs = tmp_path / "new/runs"
    with pytest.raises(BaseException) as raised, run_folder(runs / "evaluate", parts=["val"]) as folder:
        write(folder / "evaluation.json", folder / "val/labels/a.txt")
        write(runs / "train/exp/weights/last.pt", folder / "mine/weights/last.pt")
        raise error
    assert raised.type is (error if isinstance(error, type) else type(error))
    assert files_below(tmp_path) == [
        "new/runs/evaluate/exp/mine/weights/last.pt",
        "new/runs/train/exp/weights/last.pt",
    ]


def test_a_failing_run_alone_leaves_nothing(tmp_path):
    with pytest.raises(UserError), run_folder(tmp_path / "new/runs/evaluate") as folder:
        write(folder / "index.html")
        raise UserError("bad flag")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError), run_folder(tmp_path / "new/runs/evaluate"):
        raise UserError("bad flag")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]  # it was there


@pytest.mark.parametrize("exist_ok", [True, False])
def test_a_folder_that_was_there_stays(tmp_path, exist_ok):
    write(tmp_path / "runs/exp/kept.txt")
    with pytest.raises(UserError), run_folder(tmp_path / "runs", exist_ok=exist_ok) as folder:
        assert folder.name == ("exp" if exist_ok else "exp2")
        raise UserError("bad flag")
    assert files_below(tmp_path) == ["runs/exp/kept.txt"] and not (tmp_path / "runs/exp2").exists()


def test_a_folder_that_another_process_made_meanwhile_is_not_ours(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def slow(self, *args, **kwargs):
        if self.name == "runs" and not self.exists():
            mkdir(self)  # another process is quicker
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", slow)
    MadeFolder(tmp_path / "runs/train/exp").remove()
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]
    with pytest.raises(FileExistsError):
        MadeFolder(tmp_path / "runs")


def test_a_folder_that_cannot_be_made_leaves_no_parents(tmp_path):
    with pytest.raises(UserError, match="cannot make"):
        fresh_folder(tmp_path / "new/runs", "x" * 300)
    assert list(tmp_path.iterdir()) == []


# --- folders of YOLOv5's own scripts --------------------------------------------------------


@pytest.fixture(scope="module")
def increment_path(package_root):
    with installed(package_root):
        yield importlib.import_module("yolov5.utils.general").increment_path


@pytest.fixture
def script(increment_path):
    """A module with YOLOv5's own `increment_path`."""
    module = ModuleType("script")
    module.increment_path = increment_path
    return module


def test_a_refused_script_removes_settings_and_empty_folders_only(script, tmp_path):
    project = tmp_path / "runs/train"
    with pytest.raises(UserError), RunFolder.watched(script, Patches()).removed_if_refused():
        made = script.increment_path(project / "exp")
        (made / "weights").mkdir()
        write(made / "opt.yaml", made / "events.out.tfevents.1", project / "other/opt.yaml")
        raise UserError("no labels")
    assert files_below(tmp_path) == ["runs/train/other/opt.yaml"] and not made.exists()


@pytest.mark.parametrize("name", ["results.csv", "weights/last.pt", "nested/opt.yaml"])
def test_a_refused_script_leaves_results(script, tmp_path, name):
    with pytest.raises(UserError), RunFolder.watched(script, Patches()).removed_if_refused():
        made = script.increment_path(tmp_path / "exp")
        write(made / "opt.yaml", made / name)
        raise UserError("refused late")
    assert files_below(made) == sorted(["opt.yaml", name])


def test_two_scripts_that_find_one_name_free_get_a_folder_each(script, tmp_path):
    real = script.increment_path
    quicker = []

    def raced(path, **kwargs):
        found = real(path, **kwargs)
        if not quicker:
            write(found / "opt.yaml")  # another process makes it, and is still at its settings
            quicker.append(found)
        return found

    script.increment_path = raced
    with pytest.raises(UserError), RunFolder.watched(script, Patches()).removed_if_refused():
        assert script.increment_path(tmp_path / "exp") == tmp_path / "exp2"
        raise UserError("no labels")
    assert [path.name for path in tmp_path.iterdir()] == ["exp"] and files_below(tmp_path) == ["exp/opt.yaml"]


def test_other_ranks_make_and_remove_nothing(script, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError), RunFolder.watched(script, Patches()).removed_if_refused():
        write(script.increment_path(tmp_path / "exp") / "opt.yaml")  # by rank 0
        raise UserError("rank 1 fails")
    assert files_below(tmp_path) == ["exp/opt.yaml"]


# --- whole commands -------------------------------------------------------------------------


def test_classify_train_touches_nothing_in_a_folder_where_another_trains(own_folder, capsys):
    pytest.importorskip("fcntl")
    pytest.importorskip("lightning")
    command = ["classify", "train", "--model", "resnet10t", "--imgsz", "32", "--epochs", "1", "--exist-ok"]
    with run_folder(Path("runs/classify")) as folder:
        write(folder / "weights/last.ckpt", folder / "results.csv")
        before = {file: (folder / file).read_bytes() for file in files_below(folder)}
        assert main(command) == 2
        assert "another run is writing to" in capsys.readouterr().err
        assert {file: (folder / file).read_bytes() for file in files_below(folder)} == before


def test_parts_of_a_prediction_go_without_what_is_not_theirs(tmp_path):
    out = tmp_path / "out.json"
    write(folder_of(out) / "notes.txt")
    with pytest.raises(UserError), opened(out, Manifest({}, 1, "", 16), resume=False, force=True):
        raise UserError("no image can be read")
    assert files_below(tmp_path) == [f"{folder_of(out).name}/notes.txt"]
    Parts(tmp_path / "other.json", Manifest({}, 1, "", 16)).remove()


RESULT = {
    **{"index": 0, "image": "a.jpg", "height": 9, "width": 9, "error": None},
    **{"xyxy": [[0, 0, 1, 1]], "confidence": [0.5], "class_id": [0]},
}


@pytest.mark.parametrize(
    "change",
    [
        *({"confidence": [value]} for value in (10**400, float("nan"), 1.5, True)),
        *({"xyxy": [[0, 0, 1, value]]} for value in (10**400, float("inf"), "1")),
        *({"height": value} for value in ("x", [1], 2**40, 0)),
        *({"index": value} for value in ("q", 2**70, 1, False)),
        *({"image": value} for value in ("\ud800", "7" * 5000 + ".jpg")),
        {"error": "\ud800"},
    ],
)
def test_a_part_that_no_run_wrote_is_refused(tmp_path, change):
    parts = Parts(tmp_path / "out.json", Manifest({"names": ["a"]}, 1, "", 16))
    parts.folder.mkdir()
    file = parts.folder / "000000.jsonl"
    file.write_text(json.dumps(RESULT) + "\n")
    assert list(parts.rows()) == [RESULT]
    file.write_text(json.dumps({**RESULT, **change}) + "\n")
    with pytest.raises(UserError, match=r"000000\.jsonl, line 1: damaged"):
        list(parts.rows())


def test_a_part_as_long_as_a_disk_is_not_read(tmp_path):
    parts = Parts(tmp_path / "out.json", Manifest({"names": ["a"]}, 1, "", 16))
    parts.folder.mkdir()
    (parts.folder / "000000.jsonl").touch()
    os.truncate(parts.folder / "000000.jsonl", 20 * 2**30)
    with pytest.raises(UserError, match="larger than"):
        parts.missing()
