"""Commands on a disk that is full or read-only: they print a message, and leave nothing half-written."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from cases.locks import is_killed_while_writing, writes
from conftest import write_tiny_set
from fresh_process import run_fresh

import yolov5_ema
from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.checkpoints.loading import save_checkpoint
from yolov5_ema.cli.cfg import COMMAND
from yolov5_ema.cli.main import main
from yolov5_ema.errors import UserError
from yolov5_ema.files import replacement
from yolov5_ema.runs import run_folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The files that the commands below read."""
    folder = tmp_path_factory.mktemp("sources")
    write_tiny_set(folder / "set", train=2, val=2, imgsz=64)
    (folder / "found").mkdir()
    for image in (folder / "set/images/val").iterdir():
        (folder / "found" / f"{image.stem}.txt").write_text("0 0.5 0.5 0.2 0.2 0.9\n")
    (folder / "cfg.yaml").write_text(yaml.safe_dump(build_cfg(size="n", block="EMA", nc=3)))
    with yolov5_ema.installed() as engine, quiet():
        from yolov5.models.yolo import Model

        model = Model(build_cfg(size="n", block="none", nc=3)).eval().half()
        content = {"model": model, "ema": None, "epoch": -1, "optimizer": None}
        save_checkpoint(content, folder / "plain.pt", engine=engine)
    return folder


@pytest.fixture(params=["full", "read-only"])
def bad_disk(request, tmp_path):
    """A file system that holds ``old.pt``, and is full or read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    (place / "old.pt").write_text("precious")
    try:
        if request.param == "full":
            _fill(place / "filling")
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        yield place
    finally:
        subprocess.run(["umount", str(place)], capture_output=True)


def _fill(file: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, b"x" * 4096)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(descriptor)


EVALUATE = "evaluate --data SOURCES/set/data.yaml --predictions SOURCES/found --missing-as-empty"
COMMANDS = {
    "convert": "convert SOURCES/plain.pt -o DISK/old --force",
    "transfer": "transfer SOURCES/plain.pt --cfg SOURCES/cfg.yaml -o DISK/old.pt --force",
    "cfg": "cfg --size n -o DISK/old.pt --force",
    "figure": "paper figure1 --only-runs --runs RUN -o DISK/figure.png",
    "evaluate": f"{EVALUATE} --project DISK/runs",
    "evaluate to a file": f"{EVALUATE} --nosave --json DISK/old.pt",
    "slice": "data slice SOURCES/set/data.yaml --size 32 --out DISK/sliced",
    "stats": "data stats SOURCES/set/data.yaml --json DISK/old.pt",
    "picture": "data stats SOURCES/set/data.yaml --picture DISK/stats.png",
    "demo set": "demo --dir DISK/demo",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_disk_is_said_in_one_line(command, sources, bad_disk, capsys, monkeypatch, tmp_path):
    if command == "figure":
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    data = next(path for path in (sources / "set").glob("*.yaml"))
    line = COMMANDS[command].replace("SOURCES/set/data.yaml", str(data)).replace("SOURCES", str(sources))
    line = line.replace("DISK", str(bad_disk)).replace("RUN", str(_classifier_run(tmp_path / "run")))
    before = sorted(path.name for path in bad_disk.rglob("*"))
    code = main(line.split())
    said = capsys.readouterr().err
    assert code == 2, said
    assert "No space left on device" in said or "Read-only file system" in said, said
    assert str(bad_disk) in said and "Traceback" not in said
    assert (bad_disk / "old.pt").read_text() == "precious"
    assert _whole(before, bad_disk), sorted(map(str, bad_disk.rglob("*")))


def test_pictures_that_do_not_fit_are_said_as_well(sources, bad_disk, capsys, monkeypatch, tmp_path):
    """There is room for the figures, but not for the pictures after them."""
    if not (bad_disk / "filling").exists():
        pytest.skip("nothing fits here")
    os.truncate(bad_disk / "filling", (bad_disk / "filling").stat().st_size - 20480)
    monkeypatch.chdir(tmp_path)
    data = next(path for path in (sources / "set").glob("*.yaml"))
    line = EVALUATE.replace("SOURCES/set/data.yaml", str(data)).replace("SOURCES", str(sources))
    assert main([*line.split(), "--project", str(bad_disk / "runs")]) == 2
    said = capsys.readouterr().err
    assert "PR_curves.png cannot be written: No space left on device" in said, said


def _whole(before: list[str], disk: Path) -> bool:
    """Everything new is a complete file or a folder: there is no draft, and no empty file."""
    new = [path for path in disk.rglob("*") if path.name not in before]
    return not any(path.name.endswith(".tmp") or (path.is_file() and not path.stat().st_size) for path in new)


def _classifier_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "metrics.json").write_text(
        '{"model": "resnet18", "block": "none", "parameters": 1000000, "top1": 0.5, "data": "d", "settings": {}}'
    )
    return folder


def test_what_no_writer_said_is_said_in_the_end(capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")

    monkeypatch.setattr("yolov5_ema.cli.cfg.COMMAND", dataclasses.replace(COMMAND, run=full))
    assert main(["cfg"]) == 2
    assert capsys.readouterr().err.startswith(
        "yolov5-ema: error: some/file cannot be written: No space left on device."
    )


def test_a_draft_of_a_killed_process_is_removed_and_one_in_use_is_left(tmp_path):
    run_fresh(is_killed_while_writing, tmp_path / "killed")
    (left,) = tmp_path.glob(".killed.*.tmp")
    lookalike = tmp_path / ".killed.mine.tmp"
    shutil.copy(left, lookalike)
    with replacement(tmp_path / "used") as draft:
        draft.write_text("in use")
        assert run_fresh(writes, tmp_path / "other").returncode == 0
        assert draft.read_text() == "in use"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".killed.mine.tmp", "other", "used"]


def test_a_run_folder_is_written_by_one_run_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    with run_folder(tmp_path, "exp", exist_ok=True) as folder:
        (folder / "result").write_text("kept")
        with pytest.raises(UserError, match="another run is writing to"), run_folder(tmp_path, "exp", True):
            pass
        with run_folder(tmp_path, "exp") as other:
            assert other.name == "exp2"
    with run_folder(tmp_path, "exp", exist_ok=True) as folder:
        assert (folder / "result").read_text() == "kept"
