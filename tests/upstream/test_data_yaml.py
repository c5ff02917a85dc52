"""Where the images of a data YAML are: every command finds the same ones as YOLOv5."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from cases.data_yaml import loads_the_images_of_splits
from conftest import laid_aside
from release_case import run_in_release

from yolov5_ema.cli.main import main
from yolov5_ema.data.dataset import load_dataset, place_of
from yolov5_ema.data.slicing import write_yaml
from yolov5_ema.errors import ConfigError
from yolov5_ema.upstream.data_yaml import check_data, find_yaml, open_dataset


@pytest.fixture
def roboflow(tiny_set, own_folder):
    """As Roboflow exports it: ../train/images, although they are next to the YAML, and a test split that is missing."""
    for split, name in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            shutil.copytree(tiny_set.parent / kind / split, own_folder / "export" / name / kind)
    content = {"train": "../train/images", "val": ["../valid/images"], "test": "../test/images"}
    file = own_folder / "export/data.yaml"
    file.write_text(yaml.safe_dump({**content, "nc": 3, "names": ["disc", "box", "cross"]}))
    return file


def test_roboflows_splits_beside_the_yaml(roboflow, engine, monkeypatch, capsys):
    dataset = load_dataset(roboflow)
    assert [len(dataset.images(split)) for split in ("train", "val")] == [8, 4]
    check_data(load_dataset(roboflow), ("train", "val"), engine)
    general = engine.module("utils.general")
    found = general.check_dataset(str(roboflow))
    assert Path(found["train"]) == roboflow.parent / "train/images"
    assert [Path(entry) for entry in found["val"]] == [roboflow.parent / "valid/images"]
    monkeypatch.chdir(roboflow.parent)
    assert main(["data", "stats", "data.yaml", "--no-picture"]) == 0
    assert "test is left out: data.yaml: test images not found" in capsys.readouterr().out
    assert main(["data", "stats", "data.yaml", "--no-picture", "--split", "test"]) == 2
    cut = yaml.safe_load(write_yaml(load_dataset(Path("data.yaml")), ["train"], roboflow.parent).read_text())
    assert cut["val"] == [str(roboflow.parent / "valid/images")]


def test_where_such_a_path_leads_somewhere_it_is_followed(roboflow, own_folder):
    shutil.copytree(roboflow.parent / "valid", own_folder / "train")
    assert place_of(roboflow.parent, "../train/images") == roboflow.parent / "../train/images"
    assert len(load_dataset(roboflow).images("train")) == 4
    assert place_of(roboflow.parent, "../nowhere") == roboflow.parent / "../nowhere"


def test_a_bare_name_means_what_it_means_to_val(engine, own_folder):
    assert find_yaml("coco128.yaml", engine) == engine.root / "data/coco128.yaml"
    assert open_dataset("coco128.yaml").names[:2] == ("person", "bicycle")
    assert open_dataset("visdrone.yaml", engine).names[0] == "pedestrian"
    Path("coco128.yaml").write_text("val: x\nnames: [mine]\n")
    assert open_dataset("coco128.yaml", engine).names == ("mine",)
    with pytest.raises(ConfigError, match=r"no\.yaml: no such data YAML here or among those of yolov5-ema or of Y"):
        open_dataset("no.yaml", engine)
    for name in ("", "data/coco128.yaml", "x" * 5000):
        assert find_yaml(name, engine) is None


@pytest.mark.parametrize(
    ("flag", "names", "word"),
    [
        ("--save-txt", ("a/1.jpg", "b/1.jpg"), "are both called 1. --save-txt tells"),
        ("--save-json", ("a/1.jpg", "b/0001.jpg"), "are both called 1. --save-json tells"),
    ],
)
def test_val_writes_no_detections_of_two_images_under_one_name(refused, tiny_set, own_folder, flag, names, word):
    for number, name in enumerate(names):
        place = own_folder / "images" / name
        place.parent.mkdir(parents=True)
        shutil.copy(tiny_set.parent / f"images/val/val{number}.jpg", place)
    Path("two.yaml").write_text("train: images\nval: images\nnc: 1\nnames: [a]\n")
    assert word in refused("val", "--data", "two.yaml", "--weights", "nowhere.pt", flag)
    assert "weights not found" in refused("val", "--data", "two.yaml", "--weights", "nowhere.pt")


_KINDS = {
    "images/val": 5,
    "./images/val": 5,
    "[images/val, more-images]": 6,
    "[more-images, images/val, more-images]": 6,
    "list.txt": 3,
    "[list.txt, images/val]": 6,
    "list": 3,
    "images/val/val1.jpg": 1,
    "../images/val": 5,
}


@pytest.mark.parametrize(
    ("release", "path"),
    [
        ("6.0.7", ""),
        *(pytest.param(name, ".", marks=pytest.mark.slow) for name in ("6.0.7", "6.1.9", "6.2.3")),
        ("7.0.14", "."),
    ],
)
def test_the_images_of_a_split_are_those_that_yolov5_loads(release, path, tiny_set, own_folder):
    shutil.copytree(tiny_set.parent, own_folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.cache"))
    images = own_folder / "images/val"
    (images / "sub").mkdir()
    shutil.copy(images / "val0.jpg", images / "sub/Another.JPG")
    shutil.copy(images / "val0.jpg", images / "._val0.jpg")
    (images / ".thumbs").mkdir()
    shutil.copy(images / "val0.jpg", images / ".thumbs/val9.jpg")
    (own_folder / "more-images").mkdir()
    shutil.copy(images / "val0.jpg", own_folder / "more-images/z.jpg")
    lines = ("./images/val/val2.jpg", str(images / "val1.jpg"), "./more-images/z.jpg", "./of_kinds.yaml")
    for name in ("list.txt", "list"):
        (own_folder / name).write_text("\n".join(lines))
    given = {"root": laid_aside(release), "folder": own_folder, "path": path, "kinds": json.dumps(_KINDS)}
    assert run_in_release(loads_the_images_of_splits, given) == ""
