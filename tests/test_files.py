"""Files that are there whole or not at all."""

from __future__ import annotations

import pytest

from yolov5_ema.errors import UserError
from yolov5_ema.files import write_whole


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
