"""What the loaders of each YOLOv5 read, according to its source."""

from __future__ import annotations

import pytest
from conftest import laid_aside

from yolov5_ema.data.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from yolov5_ema.upstream.loaders import image_suffixes, loader_module, polygon_from, video_suffixes
from yolov5_ema.upstream.locate import Engine, engine_at

OLDEST_VIDEOS = {".mov", ".avi", ".mp4", ".mpg", ".mpeg", ".m4v", ".wmv", ".mkv"}


@pytest.mark.parametrize(
    ("release", "module", "without_images", "videos", "columns"),
    [
        ("6.0.7", "utils.datasets", {".pfm"}, OLDEST_VIDEOS, 9),
        ("6.1.9", "utils.dataloaders", {".pfm"}, VIDEO_SUFFIXES, 7),
        ("6.2.3", "utils.dataloaders", set(), VIDEO_SUFFIXES, 7),
        ("7.0.14", "utils.dataloaders", set(), VIDEO_SUFFIXES, 7),
    ],
)
def test_releases(release, module, without_images, videos, columns):
    engine = engine_at(laid_aside(release))
    assert loader_module(engine) == module
    assert image_suffixes(engine) == IMAGE_SUFFIXES - without_images
    assert video_suffixes(engine) == videos
    assert polygon_from(engine) == columns


@pytest.mark.parametrize(
    ("source", "images"),
    [
        ("IMG_FORMATS = ['HEIC', 'jpg']", {".heic", ".jpg"}),
        ("img_formats = {'jpg'}", {".jpg"}),
        ("IMG_FORMATS = made()", IMAGE_SUFFIXES),
        ("", IMAGE_SUFFIXES),
        ("not Python", IMAGE_SUFFIXES),
    ],
)
def test_other_sources(tmp_path, source, images):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils/dataloaders.py").write_text(source)
    assert image_suffixes(Engine(tmp_path, "clone", "7.0")) == images


def test_none_at_hand(tmp_path):
    assert polygon_from(None) == 7
    assert video_suffixes(Engine(tmp_path, "clone", "7.0")) == VIDEO_SUFFIXES
