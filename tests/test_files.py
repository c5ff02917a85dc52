"""Files are complete or missing."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest
from cases.locks import holds_a_lock
from fresh_process import fresh_command, fresh_environment

from yolov5_ema import files
from yolov5_ema.errors import UserError
from yolov5_ema.files import (
    check_new_folder,
    check_outputs,
    free_names,
    locked,
    open_regular,
    reading_from,
    replacement,
    sha256_of,
    whole_folder,
    write_whole,
)
from yolov5_ema.reading import leads_outside
from yolov5_ema.runs import RunFolder


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


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux")
def test_a_folder_that_takes_no_files_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^/proc/x\.json cannot be written: the folder /proc takes no files$"):
        write_whole(Path("/proc/x.json"), "new")
    with pytest.raises(UserError, match=r"^cannot make /proc/exp: the folder /proc takes no files$"):
        RunFolder.fresh(Path("/proc"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^no/x\.json cannot be written: No such file or directory$"):
        write_whole(Path("no/x.json"), "new")
    with pytest.raises(UserError, match=r"^y cannot be read: No such file or directory$"), reading_from("y"):
        open("y")


@pytest.mark.parametrize(
    ("name", "parents", "said"),
    [
        ("mine/x.csv", True, "mine/x.csv cannot be written: mine is not a folder"),
        ("mine/deep/x.csv", True, "mine/deep/x.csv cannot be written: mine is not a folder"),
        ("no/x.csv", False, "no/x.csv cannot be written: there is no folder no"),
        ("folder", True, "folder is a folder; name a file"),
        ("pipe", True, "pipe cannot be written: it is not a file, but a pipe, a socket or a device"),
        ("x" * 300, True, f"{'x' * 300} cannot be written: File name too long"),
        ("mine", True, "mine is there already; --force replaces it, -o names another"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_what_could_not_be_written_is_found_before(name, parents, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_whole(Path("mine"), "mine")
    os.mkfifo("pipe")
    Path("folder").mkdir()
    with pytest.raises(UserError) as raised:
        check_outputs([Path("good"), Path(name)], force=False, parents=parents)
    assert str(raised.value) == said
    assert sorted(os.listdir()) == ["folder", "mine", "pipe"] and Path("mine").read_text() == "mine"


def test_the_check_of_a_place_to_write_leaves_nothing_there(tmp_path):
    write_whole(tmp_path / "old", "old")
    check_outputs([tmp_path / "old", tmp_path / "new"], force=True)
    check_outputs([tmp_path / "a/b/new"], force=False, parents=True)
    check_new_folder(tmp_path / "a/b")
    assert os.listdir(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "old"
    with pytest.raises(UserError, match=r"old exists and is left as it is; name another folder$"):
        check_new_folder(tmp_path / "old")
    with pytest.raises(UserError, match=r"old/new cannot be written: .*old is not a folder$"):
        check_new_folder(tmp_path / "old/new")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux")
def test_a_folder_that_takes_no_files_is_found_before(tmp_path):
    for check in (lambda place: check_outputs([place], force=True, parents=True), check_new_folder):
        with pytest.raises(UserError, match=r"^/proc/x\.csv cannot be written: the folder /proc takes no files$"):
            check(Path("/proc/x.csv"))
        with pytest.raises(UserError, match=r"^/proc/a/x\.csv cannot be written: the folder /proc takes no files$"):
            check(Path("/proc/a/x.csv"))


# --- links, and others who write or read at the same time ----------------------------------------


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x.json").symlink_to(victim)
    with open(tmp_path / "out/x.json", "r+") as stream:  # what a plain open() would do
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
        with pytest.raises(UserError, match="not a file that can be read"):
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


# --- locks between processes ---------------------------------------------------------------------


def start_holder(place: Path) -> subprocess.Popen[str]:
    """Another process that holds a lock until its standard input is closed."""
    command, pipe = fresh_command(holds_a_lock, place), subprocess.PIPE
    holder = subprocess.Popen(command, env=fresh_environment(), stdin=pipe, stdout=pipe, text=True)
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.parametrize("is_folder", [False, True])
def test_two_processes_exclude_each_other_and_a_killed_one_frees_the_lock(tmp_path, is_folder):
    place = tmp_path / "place"
    if is_folder:
        place.mkdir()
    for end in (subprocess.Popen.kill, lambda process: process.stdin.close()):
        with start_holder(place) as holder:
            with pytest.raises(UserError, match="at work"), locked(place, "at work"):
                pass
            end(holder)
            with locked(place, "at work", patience_s=20.0):
                pass
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_lock_is_waited_for_as_long_as_was_said(tmp_path):
    place = tmp_path / "lock"
    place.write_text("of an earlier version")  # it does not matter, and stays
    with locked(place, "busy"):
        started_s = time.monotonic()
        with pytest.raises(UserError, match="busy"), locked(place, "busy", patience_s=0.3):
            pass
        assert time.monotonic() - started_s >= 0.3
    assert place.read_text() == "of an earlier version"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_lock(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe or a device; remove it"), locked(tmp_path / "pipe", "busy"):
        pass


@pytest.mark.parametrize("system", ["Windows", "a network drive"])
def test_where_folders_cannot_be_locked_a_file_beside_them_is(tmp_path, monkeypatch, system):
    real = files._try_to_lock
    monkeypatch.setattr(files, "_WINDOWS", system == "Windows")
    monkeypatch.setattr(files, "_try_to_lock", lambda one: None if stat.S_ISDIR(os.fstat(one).st_mode) else real(one))
    place = tmp_path / "exp"
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    with locked(place, "busy") as to_hand_on:
        assert (to_hand_on is None) == (system == "Windows")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".exp.lock", "exp", "link"]
        for name in (place, tmp_path / "link"):
            with pytest.raises(UserError, match="busy"), locked(name, "busy"):
                pass
        assert (tmp_path / ".exp.lock").is_file() and not list(place.iterdir())
    assert not (tmp_path / ".exp.lock").exists()
    (tmp_path / ".exp.lock").symlink_to(place / "victim")
    with pytest.raises(UserError, match="is a link"), locked(place, "busy"):
        pass
    assert not (place / "victim").exists()


def test_a_lock_file_that_its_last_holder_removes_is_made_anew(tmp_path, monkeypatch):
    place, real, removed = tmp_path / "lock", files._try_to_lock, []

    def slow(descriptor):
        taken = real(descriptor)
        if not removed:
            removed.append(place.unlink())
        return taken

    monkeypatch.setattr(files, "_try_to_lock", slow)
    with locked(place, "busy") as held:
        assert os.path.samestat(os.fstat(held), place.stat())


def test_a_drive_without_locks_holds_nobody_up(tmp_path, monkeypatch):
    import filelock

    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    with locked(tmp_path / "lock", "busy") as held, locked(tmp_path, "busy") as folder:
        assert held is None and folder is None


# --- folders, names, digests ---------------------------------------------------------------------


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    place = tmp_path / "new/set"
    with pytest.raises(RuntimeError, match="stopped"), whole_folder(place) as draft:
        (draft / "x").write_text("half")
        raise RuntimeError("stopped")
    assert not list((tmp_path / "new").iterdir())
    place.mkdir()
    with whole_folder(place) as draft:
        (draft / "x").write_text("whole")
        assert not list(place.iterdir())
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "new",
        "new/set",
        "new/set/x",
    ]


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    (tmp_path / "mine").write_text("kept")
    message = f"{tmp_path} cannot be written: Directory not empty"
    with pytest.raises(UserError, match=message), whole_folder(tmp_path) as draft:
        (draft / "x").touch()
    assert (tmp_path / "mine").read_text() == "kept" and not (tmp_path / "x").exists()


def test_names_that_may_be_free():
    assert list(itertools.islice(free_names("exp", joint=""), 3)) == ["exp", "exp2", "exp3"]
    assert list(itertools.islice(free_names("a.b", ".png"), 2)) == ["a.b.png", "a.b-2.png"]


@pytest.mark.parametrize("size", [0, 3, (1 << 20) + 1])
def test_the_sha256_of_a_file(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    with pytest.raises(UserError, match="not a file that can be read"):
        sha256_of(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "a\0b", "", 3, None])
def test_names_that_lead_outside(name):
    assert leads_outside(name)


def test_names_that_stay_inside():
    assert not any(map(leads_outside, ("a.jpg", "train/a.jpg", "a..b", ".hidden")))
