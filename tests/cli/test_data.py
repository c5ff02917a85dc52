"""`yolov5-ema data visdrone`, `coco` and `stats` as users type them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
import yaml
from cases.light_imports import runs
from fresh_process import run_fresh
from PIL import Image

from yolov5_ema.cli.main import main

VAL = "VisDrone2019-DET-val"


pytestmark = pytest.mark.usefixtures("own_folder")


def picture(width=64, height=64) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (40, 90, 60)).save(stream, "JPEG")
    return stream.getvalue()


def write_source(texts: dict[str, str], split: str = VAL) -> Path:
    for kind in ("images", "annotations"):
        Path("source", split, kind).mkdir(parents=True)
    for stem, text in texts.items():
        Path("source", split, "images", f"{stem}.jpg").write_bytes(picture())
        Path("source", split, "annotations", f"{stem}.txt").write_text(text)
    return Path("source")


def test_visdrone_says_what_it_did(capsys):
    write_source({"a": "1,1,9,9,1,1,0,0\nbad\n60,60,9,9,1,2,0,0\n1,1,0,9,1,2,0,0\n9,9,9,9,0,0,0,0\n", "b": ""})
    assert main(["data", "visdrone", "source", "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert "val: 2 images, 2 boxes, 1 image without any" in out
    assert "1 ignored region, 0 'others', 0 objects of score 0" in out
    assert "1 box cut off at the border, 1 box of no area left out" in out
    assert "left out: 1 malformed line\n" in out and "annotations/a.txt, line 2: 'bad' is not a number" in out
    assert "conversion_report.json" in out and "visdrone.yaml written. Next: yolov5-ema data stats" in out
    assert main(["data", "visdrone", "source", "--out", "my out"]) == 0
    assert f"Next: yolov5-ema data stats '{Path('my out').absolute() / 'visdrone.yaml'}'\n" in capsys.readouterr().out
    assert main(["data", "visdrone", "source", "--out", "out"]) == 0
    assert "val: 2 images (2 done before), 2 boxes" in capsys.readouterr().out
    assert main(["data", "visdrone", "source", "--out", "out", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{Path('out').absolute() / 'visdrone.yaml'}\n"


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        ({"a": "bad\n", "b": "1,1,0,9,1,2,0,0\n"}, "box"),  # a malformed line, and a box without area
        ({"a": "9,9,9,9,0,0,0,0\n"}, "box"),  # only an ignored region
        (None, "image"),
    ],
)
@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_split_of_which_nothing_is_left_is_no_success(texts, what, quiet, capsys):
    source = write_source(texts or {"a": "1,1,9,9,1,1,0,0\n"})
    if texts is None:
        (source / VAL / "images/a.jpg").write_bytes(b"no picture")
    for _ in range(2):  # also if the conversion was done before
        assert main(["data", "visdrone", "source", "--out", "out", *quiet]) == 2
        assert f"val: no {what} is left" in capsys.readouterr().err


def test_a_split_that_is_all_background_is_one():
    write_source({"a": "", "b": ""})
    assert main(["data", "visdrone", "source", "--out", "out"]) == 0


def test_visdrone_refuses(refused, own_folder):
    write_source({"a": "1,1,9,9,1,1,0,0\n1,2,3\n"})
    assert "a.txt, line 2: 3 columns, not 8" in refused("data", "visdrone", "source", "--out", "out", "--strict")
    assert "--workers must be at least 1" in refused("data", "visdrone", "source", "--out", "out", "--workers", 0)
    assert "is inside the source" in refused("data", "visdrone", "source", "--out", "source/out")
    assert "no such file or folder" in refused("data", "visdrone", "nowhere", "--out", "out")
    Path("afile").write_text("kept")
    assert "is a file" in refused("data", "visdrone", "source", "--out", "afile")
    assert "cannot write to" in refused("data", "visdrone", "source", "--out", "afile/out")
    with zipfile.ZipFile(f"{VAL}.zip", "w") as archive:
        archive.writestr(f"{VAL}/images/a.jpg", picture())
        archive.writestr(f"{VAL}/../../evil.txt", "evil")
    assert f"{VAL}/../../evil.txt" in refused("data", "visdrone", f"{VAL}.zip", "--out", "out")
    Path(f"{VAL}.zip").write_bytes(b"PK\x03\x04 cut off")
    assert "is not a zip file, or it is cut off" in refused("data", "visdrone", f"{VAL}.zip", "--out", "out")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(refused, own_folder):
    write_source({"a": ""})
    locked = own_folder / "locked"
    locked.mkdir(mode=0o500)
    assert "cannot write to" in refused("data", "visdrone", "source", "--out", locked / "out")


def write_coco(annotations: list[dict]) -> None:
    Path("coco/annotations").mkdir(parents=True)
    Path("coco/val2017").mkdir()
    Path("coco/val2017/1.jpg").write_bytes(picture())
    images = [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 64}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "car"}]}
    Path("coco/annotations/instances_val2017.json").write_text(json.dumps(content))


def test_coco_says_what_it_did(capsys):
    box = {"image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9]}
    write_coco([{**box, "id": 1}, {**box, "id": 2, "iscrowd": 1}, {**box, "id": 3, "category_id": 4}])
    assert main(["data", "coco", "coco", "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert "val: 1 image, 1 box, 0 images without any\n  1 crowd left out" in out
    assert "instances_val2017.json, annotation 2: category_id 4 is not the id of a category" in out
    assert yaml.safe_load(Path("out/coco.yaml").read_text())["names"] == ["car"]
    for line in (
        ["data", "coco", "coco", "-o", "out", "--quiet"],
        ["--quiet", "data", "coco", "coco", "--out", "out"],
    ):
        assert main(line) == 0
        assert capsys.readouterr().out == f"{Path('out').absolute() / 'coco.yaml'}\n"


def test_coco_refuses(refused):
    write_coco([{"id": 1, "image_id": 2, "category_id": 3, "bbox": [1, 1, 9, 9]}])
    assert "image_id 2 is not the id of an image" in refused("data", "coco", "coco", "--out", "out", "--strict")
    assert "is inside the source" in refused("data", "coco", "coco", "--out", "coco/out")
    file = Path("coco/annotations/instances_val2017.json")
    assert "needs --images FOLDER" in refused("data", "coco", file, "--out", "out")
    file.write_text(file.read_text()[:100])
    assert "is not valid JSON, or it is cut off" in refused("data", "coco", "coco", "--out", "out")
    assert "no such file or folder" in refused("data", "coco", "nowhere", "--out", "out")


def test_stats_of_what_was_converted(capsys):
    write_source({"a": "1,1,9,9,1,1,0,0\n", "b": ""})
    main(["data", "visdrone", "source", "--out", "out", "--quiet"])
    capsys.readouterr()
    assert main(["data", "stats", "out/visdrone.yaml", "--imgsz", "64"]) == 0
    out = capsys.readouterr().out
    assert "is likely to pay: at imgsz 64, 100.0% of the boxes of val are below 16" in out
    assert Path("runs/data/stats/visdrone.png").is_file()


def test_stats_refuses(refused):
    Path("bad.yaml").write_text("names: [")
    assert "bad.yaml is not valid YAML" in refused("data", "stats", "bad.yaml")
    Path("bad.yaml").write_text("names: [a]")
    assert "has none of the splits train, val and test" in refused("data", "stats", "bad.yaml")
    Path("bad.yaml").write_text("names: [a]\nval: nowhere\n")
    assert "images not found at" in refused("data", "stats", "bad.yaml")


@pytest.mark.parametrize("command", ["visdrone", "coco", "stats"])
def test_help_needs_neither_torch_nor_much_else(command):
    done = run_fresh(runs, f"data {command} --help", longest_s=60)
    assert done.returncode == 0, done.stderr
    assert f"yolov5-ema data {command}" in done.stdout and done.stdout.endswith("[]\n")
