"""Which images YOLOv5 leaves out, and what it reads of the others: compared with YOLOv5 itself, for each release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cases.odd_labels import leaves_out_the_same
from conftest import laid_aside
from PIL import Image
from release_case import run_in_release

GOOD = "0 0.5 0.5 0.2 0.2\n1 0.25 0.25 0.125 0.125\n"
LABELS = {
    "good": GOOD,
    "empty": "",
    "blank lines at the ends": f"\n  \n{GOOD}\n \n",
    "an empty line": "0 0.5 0.5 0.2 0.2\n\n1 0.25 0.25 0.125 0.125\n",
    "a line of blanks": "0 0.5 0.5 0.2 0.2\n  \n1 0.25 0.25 0.125 0.125\n",
    "twice the same": GOOD + GOOD,
    "the same but for rounding": f"{GOOD}0 0.5000000001 0.5 0.2 0.2\n",
    "over the border, yet in 0 to 1": "0 0.99 0.5 0.2 0.2\n",
    "beyond 1": f"{GOOD}0 0.5 0.5 0.2 1.0025\n",
    "beyond 1 by less than single precision": f"{GOOD}0 0.5 0.5 0.2 1.00000001\n",
    "pixels": f"{GOOD}0 120 90 24 18\n",
    "a negative width": f"{GOOD}0 0.5 0.5 -0.2 0.1\n",
    "a negative number too small to see": f"{GOOD}0 0.5 0.5 -1e-60 0.1\n",
    "a negative class": f"{GOOD}-1 0.5 0.5 0.2 0.1\n",
    "a byte order mark": "\ufeff" + GOOD,
    "nothing but a byte order mark": "\ufeff",
    "a word": f"{GOOD}0 0.5 x 0.2 0.1\n",
    "not a number": f"{GOOD}0 0.5 nan 0.2 0.1\n",
    "four columns": f"{GOOD}0 0.5 0.5 0.2\n",
    "six columns": "0 0.5 0.5 0.2 0.2 0.9\n1 0.5 0.5 0.2 0.2 0.8\n",
    "a triangle": "0 0.1 0.1 0.3 0.1 0.2 0.4\n",
    "triangles and boxes": f"0 0.1 0.1 0.3 0.1 0.2 0.4\n{GOOD}",
    "polygons": "0 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4\n1 0.5 0.5 0.6 0.5 0.6 0.6 0.5 0.9\n",
    "polygons and boxes": f"0 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4\n{GOOD}",
    "a polygon beyond 1": "0 0.1 0.1 2.3 0.1 2.3 0.4 0.1 0.4\n",
    "a polygon beyond 1 whose box is not": "0 0.8 0.1 1.1 0.1 1.1 0.4 0.8 0.4\n",
}


def _write_images(folder: Path) -> None:
    (folder / "images").mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    picture.save(folder / "whole.jpg")
    for suffix in ("jpg", "png", "webp"):
        picture.save(folder / f"images/image whole.{suffix}")
    jpeg, png = ((folder / f"images/image whole.{suffix}").read_bytes() for suffix in ("jpg", "png"))
    (folder / "images/image cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "images/image without its end mark.jpg").write_bytes(jpeg[:-2] + b"\0" * 9)
    (folder / "images/image cut in png.png").write_bytes(png[: len(png) // 2])
    picture.save(folder / "images/image of gif.jpg", "GIF")
    picture.crop((0, 0, 9, 40)).save(folder / "images/image too narrow.jpg")
    (folder / "images/image of words.jpg").write_text("words")
    (folder / "images/image of nothing.jpg").touch()


@pytest.mark.parametrize(
    "release",
    ["6.0.7", *(pytest.param(name, marks=pytest.mark.slow) for name in ("6.1.9", "6.2.3")), "7.0.14"],
)
def test_what_is_left_out_is_what_yolov5_leaves_out(release, package_root, tmp_path):
    from yolov5_ema.upstream.locate import engine_at

    root = package_root if engine_at(package_root).version == release else laid_aside(release)
    (tmp_path / "labels").mkdir()
    for name, text in LABELS.items():
        (tmp_path / f"labels/{name}.txt").write_text(text, encoding="utf-8")
    _write_images(tmp_path)
    assert run_in_release(leaves_out_the_same, {"folder": tmp_path, "root": root}) == ""
    left_out = set((tmp_path / "left_out").read_text().splitlines())
    assert {"pixels", "beyond 1", "a negative width", "a byte order mark", "image cut"} <= left_out
    assert not left_out & {"good", "empty", "polygons", "image whole", "image without its end mark"}
    assert ("a triangle" in left_out) == (release == "6.0.7")
