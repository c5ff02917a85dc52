"""Sizes read from headers equal those of decoded images; for files that are not images, the message says so."""

from __future__ import annotations

import io

import numpy as np
import pytest
from drone_set import jpeg
from PIL import Image

from yolov5_ema.data.image_size import image_info_of, read_image_info
from yolov5_ema.errors import UserError


def encoded(kind: str, size: tuple[int, int], **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def both(tmp_path, content: bytes):
    file = tmp_path / "x"
    file.write_bytes(content)
    from_file, from_memory = read_image_info(file), image_info_of(content, "x")
    assert from_file == from_memory
    return from_file


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_formats(tmp_path, kind):
    assert both(tmp_path, encoded(kind, (37, 21))) == (37, 21, True)


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"exif": b"Exif\0\0" + bytes(9000)},
        {"icc_profile": bytes(70_000)},
        {"comment": b"a" * 5000},
    ],
)
def test_jpegs_with_more_in_front(tmp_path, options):
    assert both(tmp_path, encoded("JPEG", (301, 299), **options)) == (301, 299, True)


def test_a_jpeg_without_its_end_mark_is_told_apart_from_one_that_is_cut_off(tmp_path):
    content = jpeg()
    assert both(tmp_path, content + b"trailing") == (96, 64, False)
    for cut in (content[: len(content) // 2], content[:100]):
        with pytest.raises(UserError, match=r"x (is cut off|is not a readable image)"):
            both(tmp_path, cut)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"no image at all", b"\xff\xd8\xff\xe0\0\0" * 900],
)
def test_no_image(tmp_path, content):
    with pytest.raises(UserError, match=r"is not a readable image|is cut off"):
        both(tmp_path, content)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg cannot be read"):
        read_image_info(tmp_path / "gone.jpg")
