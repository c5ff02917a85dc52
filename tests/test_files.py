"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from yolov5_ema.errors import UserError
from yolov5_ema.files import locked, open_regular, replacement, write_whole
from yolov5_ema.reading import leads_outside


def test_a_file_is_replaced_whole(tmp_path):
    write_whole(tmp_path / "x.json", "{}\n")
    write_whole(tmp_path / "x.json", "é\n")
    assert (tmp_path / "x.json").read_bytes() == "é\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_what_cannot_be_written_is_named(tmp_path):
    write_whole(tmp_path / "x", "kept")
    with pytest.raises(UserError, match="y cannot be written"):
        write_whole(tmp_path / "x" / "y", "new")
    with pytest.raises(UserError, match="cannot be written"):
        (tmp_path / "folder").mkdir()
        write_whole(tmp_path / "folder", "new")
    assert (tmp_path / "x").read_text() == "kept" and not list(tmp_path.glob(".*"))


# --- links, and others who write or read at the same time ----------------------------------------


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x.json").symlink_to(victim)
    with open(tmp_path / "out/x.json", "r+") as stream:  # what plain opening would do
        assert stream.read() == "mine"
    write_whole(tmp_path / "out/x.json", "new")
    assert victim.read_text() == "mine" and (tmp_path / "out/x.json").read_text() == "new"
    assert not (tmp_path / "out/x.json").is_symlink()


def test_a_folder_that_is_a_link_is_the_users_own(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    write_whole(tmp_path / "runs/x", "new")
    assert (tmp_path / "disk/x").read_text() == "new"


def test_names_of_drafts_cannot_be_foreseen(tmp_path):
    names = set()
    for _ in range(3):
        with replacement(tmp_path / "last.pt") as draft:
            names.add(draft.name)
            draft.write_bytes(b"x")
    assert len(names) == 3 and all(name.startswith(".last.pt.") for name in names)


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path):
    write_whole(tmp_path / "x", "old")
    with pytest.raises(RuntimeError), replacement(tmp_path / "x") as draft:
        draft.write_text("half")
        raise RuntimeError("stopped")
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "x", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_who_reads_while_two_write_sees_one_of_the_files_whole(tmp_path):
    file, size = tmp_path / "x", 200_000
    write_whole(file, "a" * size)

    def write(letter: str) -> None:
        for _ in range(60):
            write_whole(file, letter * size)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(file.read_text())
    assert seen <= {"a" * size, "b" * size}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_or_a_device_is_neither_read_nor_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match="no file that can be read"):
            open_regular(place)
    with pytest.raises(UserError, match="cannot be written"):
        write_whole(tmp_path / "pipe", "new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="Windows locks no file that is open")
def test_a_lock_is_held_by_one_and_follows_no_link(tmp_path):
    with (
        locked(tmp_path / "lock", "somebody is at work"),
        pytest.raises(UserError, match="somebody is at work"),
        locked(tmp_path / "lock", "somebody is at work"),
    ):
        pass
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(UserError, match="is a link"), locked(tmp_path / "link", "busy"):
        pass
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "a\0b", "", 3, None])
def test_names_that_lead_outside(name):
    assert leads_outside(name)


def test_names_that_stay_inside():
    assert not any(map(leads_outside, ("a.jpg", "train/a.jpg", "a..b", ".hidden")))
