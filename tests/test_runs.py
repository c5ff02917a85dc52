"""A run that fails removes what it made, and nothing that belongs to others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cases.locks import holds_a_run_folder
from fresh_process import fresh_command, fresh_environment
from made_files import files_below, write

from yolov5_ema.cli.main import main
from yolov5_ema.errors import UserError
from yolov5_ema.runs import RunFolder, run_folder


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
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]  # it was there before


@pytest.mark.parametrize("exist_ok", [True, False])
def test_a_folder_that_was_there_stays(tmp_path, exist_ok):
    write(tmp_path / "runs/exp/kept.txt")
    with pytest.raises(UserError), run_folder(tmp_path / "runs", exist_ok=exist_ok) as folder:
        assert folder.name == ("exp" if exist_ok else "exp2")
        raise UserError("bad flag")
    assert files_below(tmp_path) == ["runs/exp/kept.txt"] and not (tmp_path / "runs/exp2").exists()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux")
def test_a_folder_that_takes_no_files_is_refused_at_the_start():
    with pytest.raises(UserError, match=r"^cannot write to /proc/self: the folder /proc/self takes no files$"):
        RunFolder.fresh(Path("/proc"), "self", exist_ok=True)


def test_a_folder_that_another_process_made_meanwhile_is_not_ours(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def slow(self, *args, **kwargs):
        if self.name == "runs" and not self.exists():
            mkdir(self)  # another process is faster
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", slow)
    RunFolder.make(tmp_path / "runs/train/exp").remove()
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]
    with pytest.raises(FileExistsError):
        RunFolder.make(tmp_path / "runs")


def test_a_folder_that_cannot_be_made_leaves_no_parents(tmp_path):
    with pytest.raises(UserError, match="cannot make"):
        RunFolder.fresh(tmp_path / "new/runs", "x" * 300)
    assert list(tmp_path.iterdir()) == []


def test_a_run_never_overwrites_another(tmp_path):
    names = [RunFolder.fresh(tmp_path / "demo").path.name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"]


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make"):
        RunFolder.fresh(tmp_path / "file")


def test_names_go_on_from_the_ones_that_are_taken(tmp_path):
    made = [RunFolder.fresh(tmp_path, "exp.v1").path.name for _ in range(3)]
    assert made == ["exp.v1", "exp.v12", "exp.v13"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="there is a file of that name"):
        RunFolder.fresh(tmp_path, "file", exist_ok=True)
    assert RunFolder.fresh(tmp_path, "file").path.name == "file2"


def test_the_folder_of_another_run_is_not_removed(tmp_path):
    write(tmp_path / "exp/result")
    RunFolder(tmp_path / "exp").remove(["exp"])
    assert files_below(tmp_path) == ["exp/result"]


def test_a_failing_run_is_found_again_where_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError), run_folder(Path("runs")) as folder:
        assert folder == Path("runs/exp")
        write(folder / "index.html")
        (tmp_path / "elsewhere").mkdir()
        os.chdir("elsewhere")
        raise UserError("bad flag")
    assert [path.name for path in tmp_path.rglob("*")] == ["elsewhere"]


def test_two_processes_are_kept_apart_until_one_is_killed(tmp_path):
    command, pipe = fresh_command(holds_a_run_folder, tmp_path), subprocess.PIPE
    with subprocess.Popen(command, env=fresh_environment(), stdin=pipe, stdout=pipe) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another run is writing to"), run_folder(tmp_path, exist_ok=True):
            pass
        other.kill()
    with run_folder(tmp_path, exist_ok=True) as folder:
        assert folder == tmp_path / "exp"


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
