"""Files are complete or missing; remains of an earlier run are removed; two runs cannot write the same folder."""

from __future__ import annotations

import json
import os

import pytest

from yolov5_ema.data import writing
from yolov5_ema.data.writing import Journal, Record, draft_of, place_bytes, place_link, workspace
from yolov5_ema.errors import UserError

HEADER = {"rules": 1}


@pytest.fixture
def drafts(tmp_path):
    (tmp_path / "drafts").mkdir()
    yield str(tmp_path / "drafts")
    assert not os.listdir(tmp_path / "drafts"), "drafts left"


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "source"
    file.write_bytes(b"content")
    return file


def test_place_bytes_replaces(tmp_path, drafts):
    for content in (b"", b"one", b"two"):
        place_bytes(content, str(tmp_path / "x"), drafts)
        assert (tmp_path / "x").read_bytes() == content


def test_a_link_is_hard_where_it_can_be(tmp_path, source, drafts):
    target = tmp_path / "x"
    for _ in range(2):  # the second time over its own output
        place_link(str(source), str(target), drafts)
        assert os.path.samefile(source, target) and not target.is_symlink()
    target.unlink()
    target.write_bytes(b"another file")
    place_link(str(source), str(target), drafts)
    assert os.path.samefile(source, target)
    place_link(str(source), str(target), drafts, copy=True)
    assert not os.path.samefile(source, target) and target.read_bytes() == b"content"


def test_a_symbolic_link_is_next_and_a_copy_last(tmp_path, source, drafts, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    for name in ("x", "x"):
        place_link(str(source), str(tmp_path / name), drafts)
        assert (tmp_path / "x").is_symlink() and os.path.samefile(source, tmp_path / "x")
    monkeypatch.setattr(os, "symlink", refuse)
    place_link(str(source), str(tmp_path / "x"), drafts)
    assert not (tmp_path / "x").is_symlink() and (tmp_path / "x").read_bytes() == b"content"


def test_a_source_that_is_a_relative_link_is_followed(tmp_path, source, drafts):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("source")
    place_link(str(tmp_path / "link"), str(tmp_path / "folder" / "x"), drafts)
    assert (tmp_path / "folder" / "x").read_bytes() == b"content"
    with pytest.raises(FileNotFoundError):
        place_link(str(tmp_path / "gone"), str(tmp_path / "y"), drafts)
    assert not os.path.lexists(tmp_path / "y")


def test_a_draft_that_fails_gets_no_name(tmp_path, drafts):
    with pytest.raises(RuntimeError), draft_of(tmp_path / "x", drafts) as file:
        file.write(b"half")
        raise RuntimeError
    assert not (tmp_path / "x").exists()


def test_the_workspace_is_cleared_and_held(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_LOCK_PATIENCE_S", 0.2)
    left = tmp_path / writing.STATE_FOLDER / "drafts" / "left"
    left.parent.mkdir(parents=True)
    left.write_text("by a run that was killed")
    with workspace(tmp_path) as drafts:
        assert os.listdir(drafts) == []
        with pytest.raises(UserError, match="another run is writing to"), workspace(tmp_path):
            pass
    assert not left.parent.exists()
    with workspace(tmp_path):
        pass


def test_a_full_disk_is_the_users_to_mend(tmp_path):
    words = r"cannot write to .*: No space left on device.*continues from there"
    with pytest.raises(UserError, match=words), workspace(tmp_path):
        raise OSError(28, "No space left on device", "somewhere")


@pytest.mark.parametrize(
    "line", [{"done": [["../victim", "1", 3, 4]]}, {"made": ["/victim"]}, {"made": ["a/../../victim"]}]
)
def test_a_journal_that_names_what_lies_outside_is_refused(line, tmp_path):
    """A journal whose named files may be removed."""
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(HEADER) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(UserError, match="is outside the folder"):
        Journal(file, HEADER)


def test_values_of_other_kinds_in_a_journal_are_left_out(tmp_path):
    file = tmp_path / "x.jsonl"
    lines = [
        HEADER,
        {"done": [["a", "1", 3, 4], ["b", "1", True, 4], ["c"], 5, ["d", "1", -1, 4]]},
        [1],
        {"made": 3},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert set(Journal(file, HEADER).records) == {"a"}


def test_a_journal_is_read_back_up_to_where_it_was_cut_off(tmp_path, drafts):
    file = tmp_path / "x.jsonl"
    journal = Journal(file, HEADER)
    assert not journal.records and journal.finished is None
    journal.begin({}, drafts)
    journal.add(["a", "b"], [Record("1", 3, 4), Record("2", 0, 0)])
    journal.finish({"images": 2})
    again = Journal(file, HEADER)
    assert again.records == {"a": ("1", 3, 4), "b": ("2", 0, 0)} and again.finished == {"images": 2}
    file.write_bytes(file.read_bytes()[:-4])
    cut = Journal(file, HEADER)
    assert cut.records == again.records and cut.finished is None
    other = Journal(file, {"rules": 2})
    assert not other.records and other.made_before == {"a", "b"}
    other.begin({}, drafts)
    other.close()
    assert Journal(file, {"rules": 2}).made_before == {"a", "b"}, "they still may have to be removed"
    file.write_bytes(b"\0\xff no journal")
    assert not Journal(file, HEADER).records
