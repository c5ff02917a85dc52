"""Parts of a long prediction: content that no run wrote is refused, and files of others are kept."""

from __future__ import annotations

import json
import os

import pytest
from made_files import files_below, write

from yolov5_ema.detecting.parts import Manifest, Parts, folder_of, opened
from yolov5_ema.errors import UserError


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
