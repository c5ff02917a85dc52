"""Files found by their suffixes, and files below a folder."""

from __future__ import annotations

import glob

from yolov5_ema.data.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES, files_below, has_suffix


def test_suffixes():
    assert not IMAGE_SUFFIXES & VIDEO_SUFFIXES
    for file, is_image in (("a.PNG", True), ("a.b/c.jpeg", True), ("a.jpg/b", False), ("a.jpg ", False)):
        assert has_suffix(file, IMAGE_SUFFIXES) == is_image, file


def test_what_glob_finds(tmp_path):
    for file in ("a.jpg", "b", "._a.jpg", "sub/c.txt", ".thumbs/d.jpg", "two/e.jpg"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "twin").symlink_to(tmp_path / "two")
    wanted = glob.glob(f"{tmp_path}/**/*.*", recursive=True)
    assert sorted(files_below(str(tmp_path))) == sorted(wanted) and len(wanted) == 4
    (tmp_path / "two/round").symlink_to(tmp_path)
    assert sorted(files_below(str(tmp_path))) == sorted(wanted)
