"""Which images YOLOv5 leaves out, and what it reads of the others: compared with YOLOv5 itself, for each release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import laid_aside
from PIL import Image
from release_case import run_in_child

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

_READ = """
import importlib
from pathlib import Path
import numpy as np
from yolov5_ema.data.image_size import reason_left_out
from yolov5_ema.data.yolo_format import read_labels
from yolov5_ema.upstream.loaders import polygon_from
name = "utils.dataloaders" if ENGINE.has_script("utils.dataloaders") else "utils.datasets"
verify = ENGINE.module(name).verify_image_label
rows = lambda table: np.unique(np.asarray(table, np.float32).round(6), axis=0)
left_out = set()
for label in sorted(Path(TMP, "labels").iterdir()):
    theirs, ours = verify((str(Path(TMP, "whole.jpg")), str(label), "")), read_labels(label, 2, polygon_from(ENGINE))
    assert (theirs[0] is None) == (ours.left_out is not None), (label, theirs[-1], ours)
    assert bool(ours.reason_left_out) == (theirs[0] is None)
    if theirs[0] is None:
        left_out.add(label.stem)
    else:
        np.testing.assert_allclose(rows(ours.seen), rows(theirs[1]), atol=1e-6, err_msg=str(label))
for image in sorted(Path(TMP, "images").iterdir()):
    reason = reason_left_out(image)
    theirs = verify((str(image), "nowhere.txt", ""))
    assert (theirs[0] is None) == bool(reason), (image, theirs[-1], reason)
    left_out |= {image.stem} if reason else set()
Path(TMP, "left_out").write_text("\\n".join(sorted(left_out)))
"""


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
    assert run_in_child(_READ, {"TMP": str(tmp_path), "ROOT": str(root)}) == ""
    left_out = set((tmp_path / "left_out").read_text().splitlines())
    assert {"pixels", "beyond 1", "a negative width", "a byte order mark", "image cut"} <= left_out
    assert not left_out & {"good", "empty", "polygons", "image whole", "image without its end mark"}
    assert ("a triangle" in left_out) == (release == "6.0.7")
