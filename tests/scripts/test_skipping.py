"""The report on the files of a run, the names of their results, and which images are too thin."""

from __future__ import annotations

import argparse
import io
import os
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

import yolov5_ema
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.skipping import SourceFiles, _entries, _too_thin_reason, any_name_printed
from yolov5_ema.upstream.patching import Patches

pytestmark = pytest.mark.usefixtures("messages")


def files_of(**flags: object) -> SourceFiles:
    return SourceFiles("segment.predict", argparse.Namespace(**{"source": "pictures", **flags}))


def test_nothing_to_report(capsys):
    files = files_of()
    files.used = files.total = 3
    files.refuse_if_none_was_used()
    assert files.finish() == 0 and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("count", [1, 20, 21, 30])
def test_report(count, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = files_of()
    files.used, files.total = 1, 40
    for number in range(count):
        files.note(str(tmp_path.resolve() / f"in\n{number}.jpg"), "is empty")
    assert files.finish() == 1
    title, *lines = capsys.readouterr().err.splitlines()
    assert title == f"segment/predict: {count} of 40 files could not be used in full:"
    assert lines[: min(count, 20)] == [rf"  in\n{number}.jpg: is empty" for number in range(min(count, 20))]
    assert lines[20:] == ([f"  … and {count - 20} more"] if count > 20 else [])


def test_none_was_used():
    files = files_of(source="pictures")
    files.total = 2
    files.note("/far/a.jpg", "is empty")
    with pytest.raises(UserError, match=r"^--source pictures: /far/a.jpg: is empty$"):
        files.refuse_if_none_was_used()
    files.note("/far/b.jpg", "is a folder")
    with pytest.raises(UserError) as caught:
        files.refuse_if_none_was_used()
    assert str(caught.value) == (
        "--source pictures: none of its 2 files can be read:\n  /far/a.jpg: is empty\n  /far/b.jpg: is a folder"
    )


@pytest.mark.parametrize(
    ("flags", "listed", "names"),
    [
        ({}, ["x/a.jpg", "x/a.png", "y/b.jpg"], ["x/a.jpg", "x/a.png", "y/b.jpg"]),
        ({}, ["x/a.jpg", "y/a.jpg", "z/a.jpg"], ["x/a.jpg", "y/a-2.jpg", "z/a-3.jpg"]),
        ({"save_txt": True}, ["x/a.jpg", "x/a.png", "x/b.png"], ["x/a.jpg", "x/a-2.png", "x/b.png"]),
        ({"save_crop": True}, ["x/a.jpg", "x/a.png", "x/a-2.tif"], ["x/a.jpg", "x/a-3.png", "x/a-2.tif"]),
        ({}, ["x/a.avi", "x/a.mp4"], ["x/a.avi", "x/a-2.mp4"]),  # v6.1 and later write both as a.mp4
        ({"save_txt": True}, ["x/a.jpg", "x/a.mp4"], ["x/a.jpg", "x/a.mp4"]),  # a.txt, and a_1.txt
    ],
)
def test_names_of_results(flags, listed, names, capsys):
    files = files_of(**flags)
    files.note_listed(listed)
    for _ in range(2):  # a video asks for each frame
        assert [files.name_of_results(file, file.endswith(("avi", "mp4"))) for file in listed] == names
    assert files.finish() == 0
    said = capsys.readouterr().err.splitlines()[1:]
    assert said == [f"  {a}: {Path(b).name}" for a, b in zip(listed, names) if a != b]


def test_too_thin_is_what_yolov5_cannot_scale():
    with yolov5_ema.installed() as engine:
        letterbox = engine.module("utils.augmentations").letterbox
        found = set()
        for size in (64, [64, 96]):
            for long in (1, 100, 6400, 20_000):
                for short in (1, 2, 7, 49, 50, 51, 100, 150, 151, 157):
                    for shape in ((short, long), (long, short)):
                        try:
                            letterbox(np.zeros((*shape, 3), np.uint8), size)
                            is_scaled = True
                        except Exception:
                            is_scaled = False
                        assert (_too_thin_reason(shape, size) is None) == is_scaled, (shape, size)
                        found.add(is_scaled)
        assert found == {True, False}
    assert _too_thin_reason((10, 20_000), [640, 640]) == (
        "is 20000 x 10 pixels: scaled to --img 640, its shorter side has no pixel left"
    )


def test_sources_are_listed_as_they_are_meant(tmp_path, monkeypatch):
    here = tmp_path.resolve() / "data [1]"
    (here / "plain").mkdir(parents=True)
    monkeypatch.chdir(here)
    (here / "we*ird.jpg").touch()
    (here / "a b.jpg").touch()
    (here / "list.txt").write_text("a b.jpg\n\nc.jpg d.jpg\n")
    escaped = str(here).replace("[", "[[]")
    assert _entries("plain") == [f"{escaped}/plain/*.*"]
    assert _entries("*.jpg") == [f"{escaped}/*.jpg"]
    assert _entries("we*ird.jpg") == [f"{escaped}/we[*]ird.jpg"]
    assert _entries("a b.jpg") == ["a b.jpg"]
    assert _entries("list.txt") == ["a b.jpg", "c.jpg", "d.jpg"]
    assert _entries(["a b.jpg", "plain"]) == ["a b.jpg", f"{escaped}/plain/*.*"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    assert _entries("plain") == [str(tmp_path.resolve() / "plain")]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_name_is_printed(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    with any_name_printed():
        print("ü", os.fsdecode(b"caf\xe9"), flush=True)
    assert sys.stdout.errors == "strict"
    assert written.getvalue().decode(encoding) == {"ascii": "\\xfc caf\\udce9\n", "utf-8": "ü caf\\udce9\n"}[encoding]


def test_a_script_that_reads_one_image_by_itself_is_told_why_it_cannot(tmp_path):
    """As classify/predict.py of v6.2 does, which has no LoadImages."""
    script, patches = types.ModuleType("predict"), Patches()
    script.cv2 = cv2
    SourceFiles.watched(script, patches, "classify.predict", argparse.Namespace(source="x"))
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    cv2.imwrite(str(good), np.full((4, 5, 3), 7, np.uint8))
    bad.write_bytes(b"no image")
    assert script.cv2.imread(str(good)).shape == (4, 5, 3)
    for file in (bad, tmp_path, tmp_path / "none.png"):
        with pytest.raises(UserError, match=rf"--source {file}: .*; this YOLOv5 takes one image here"):
            script.cv2.imread(str(file))
    patches.undo()
    assert script.cv2 is cv2
