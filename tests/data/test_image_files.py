"""The pixels of every kind of image file, and the messages for files without pixels."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from yolov5_ema.data.image_files import read_image

EXIF_ORIENTATION = 0x0112


@pytest.fixture
def rgb() -> np.ndarray:
    """A smooth picture, (40, 60, 3), which JPEG preserves; its corners differ, so that rotations are noticed."""
    down, across = np.mgrid[0:40, 0:60]
    return np.stack([across * 4, down * 6, 250 - across * 2 - down * 3], axis=2).astype(np.uint8)


def distance(pixels: np.ndarray | None, rgb: np.ndarray) -> int:
    """The largest difference between a BGR picture and an RGB one."""
    assert pixels is not None and pixels.dtype == np.uint8 and pixels.shape == rgb.shape
    assert pixels.flags.c_contiguous  # YOLOv5 draws into it
    return int(np.abs(pixels.astype(int) - rgb[..., ::-1]).max())


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[EXIF_ORIENTATION] = orientation
    return made


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_plain(rgb, tmp_path, suffix):
    Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(tmp_path / f"a.{suffix}")
    assert distance(image.pixels, rgb) == 0 and image.problem is None


def test_jpeg_also_with_something_behind_it(rgb, tmp_path):
    Image.fromarray(rgb).save(tmp_path / "a.jpg", quality=95)
    with (tmp_path / "a.jpg").open("ab") as stream:
        stream.write(b"what a camera leaves behind the picture")
    image = read_image(tmp_path / "a.jpg")
    assert distance(image.pixels, rgb) <= 8 and image.problem is None


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_become_the_upper_8(rgb, tmp_path, suffix):
    deep = rgb[..., ::-1].astype(np.uint16) * 256 + 200
    cv2.imwrite(str(tmp_path / f"deep.{suffix}"), deep)
    assert cv2.imread(str(tmp_path / f"deep.{suffix}"), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    image = read_image(tmp_path / f"deep.{suffix}")
    assert distance(image.pixels, rgb) <= 1 and image.problem is None


def test_cmyk(rgb, tmp_path):
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert distance(image.pixels, rgb) <= 16 and image.problem is None  # an inverted picture would be off by hundreds


def test_transparency_is_left_out(rgb, tmp_path):
    alpha = np.linspace(0, 255, 40 * 60).reshape(40, 60, 1).astype(np.uint8)
    Image.fromarray(np.concatenate([rgb, alpha], axis=2)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert distance(image.pixels, rgb) == 0 and image.problem is None


def test_grey_palette_and_bilevel_have_three_channels(rgb, tmp_path):
    grey = Image.fromarray(rgb).convert("L")
    palette = grey.quantize(16)
    for name, made in (("grey", grey), ("palette", palette), ("bilevel", grey.convert("1"))):
        made.save(tmp_path / f"{name}.png")
        image = read_image(tmp_path / f"{name}.png")
        assert distance(image.pixels, np.asarray(made.convert("RGB"))) == 0 and image.problem is None


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("orientation", "stored_by"), [(3, Image.ROTATE_180), (6, Image.ROTATE_90), (8, Image.ROTATE_270)]
)
def test_turned_as_exif_says(rgb, tmp_path, suffix, orientation, stored_by):
    stored = Image.fromarray(rgb).transpose(stored_by)
    stored.save(tmp_path / f"a.{suffix}", exif=exif(orientation), quality=95)
    image = read_image(tmp_path / f"a.{suffix}")
    assert distance(image.pixels, rgb) <= (8 if suffix == "jpg" else 0) and image.problem is None


def test_from_one_pixel_to_20_000(tmp_path):
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "one.png")
    Image.new("RGB", (20_000, 3), (10, 20, 30)).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "one.png").pixels.tolist() == [[[30, 20, 10]]]
    assert read_image(tmp_path / "wide.png").pixels.shape == (3, 20_000, 3)


def test_more_pixels_than_opencv_reads(tmp_path):
    (tmp_path / "huge.pgm").write_bytes(b"P5 40000 40000 255\n")
    pixels, problem = read_image(tmp_path / "huge.pgm")
    assert pixels is None and problem.startswith("has more pixels than OpenCV reads (")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_jpeg_cut_off_has_pixels_and_a_problem(tmp_path, share):
    noise = np.random.default_rng(0).integers(0, 255, (200, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    whole = (tmp_path / "a.jpg").read_bytes()
    before = read_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(whole[: int(len(whole) * share)])
    after = read_image(tmp_path / "a.jpg")
    assert before.problem is None and after.problem == "is cut off; the missing part was read as grey"
    assert after.pixels.shape == (200, 100, 3)
    same_rows = (after.pixels == before.pixels).all(axis=(1, 2)).mean()
    assert share - 0.15 < same_rows < share + 0.01


def test_a_jpeg_cut_off_has_pixels_whatever_stands_in_the_place_of_imread(tmp_path, monkeypatch):
    """YOLOv5 6.1 and 6.2 replace a function by one that finds no EXIF in such a file."""
    noise = np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-500])
    monkeypatch.setattr(cv2, "imread", lambda *_: None)
    assert read_image(tmp_path / "a.jpg").pixels.shape == (50, 50, 3)


NO_IMAGE = "is not an image that OpenCV reads, or it is damaged"


def test_no_pixels(rgb, tmp_path):
    Image.fromarray(rgb).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    contents = {
        "empty.jpg": (b"", "is empty"),
        "byte.jpg": (b"\xff", NO_IMAGE),
        "text.jpg": (b"this is no picture", NO_IMAGE),
        "head.jpg": (b"\xff\xd8\xff\xe0", NO_IMAGE),
        "cut.png": (whole[: len(whole) // 2], NO_IMAGE),
    }
    for name, (content, problem) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert read_image(tmp_path / name) == (None, problem), name


def test_no_files(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    assert read_image(tmp_path / "folder.jpg") == (None, "is a folder")
    for name in ("dangling.jpg", "missing.jpg"):
        assert read_image(tmp_path / name) == (None, "cannot be read: No such file or directory")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert read_image(tmp_path / "pipe.jpg") == (None, "is not a regular file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(rgb, tmp_path):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    assert read_image(tmp_path / "a.png") == (None, "cannot be read: Permission denied")


def test_names(rgb, tmp_path):
    Image.fromarray(rgb).save(tmp_path / "plain.png")
    content = (tmp_path / "plain.png").read_bytes()
    for name in ("with space.png", "[1].png", "ünï.png", "new\nline.png", "100%.png"):
        (tmp_path / name).write_bytes(content)
        assert distance(read_image(tmp_path / name).pixels, rgb) == 0, name


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are text")
def test_a_name_that_opencv_dies_of(rgb, tmp_path):
    Image.fromarray(rgb).save(tmp_path / "plain.png")
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(name, "wb") as stream:
        stream.write((tmp_path / "plain.png").read_bytes())
    pixels, problem = read_image(Path(os.fsdecode(name)))
    assert pixels is None and problem.startswith("has a name that is not UTF-8")
