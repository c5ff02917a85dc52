"""Ground truth of a split: images are identified by their paths, and in files by the names that these use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.data.visdrone_format import CLASSES
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.judged import Rules, labelled_images
from yolov5_ema.evaluation.predictions import read_predictions, write_visdrone_results
from yolov5_ema.evaluation.records import Predictions
from yolov5_ema.evaluation.sources import dataset_truths, image_set
from yolov5_ema.evaluation.truths import coco_truth

IMAGES = ("day/1.jpg", "night/1.jpg", "night/2.jpg")


@pytest.fixture
def twins(own_folder):
    """A data set with two images called 1. The (x, y) of each image's only object is (10, 10), (20, 20), (30, 30)."""
    for number, image in enumerate(IMAGES, 1):
        for place in (Path("images", image), Path("labels", image).with_suffix(".txt")):
            place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 100)).save(Path("images", image))
        Path("labels", image).with_suffix(".txt").write_text(f"0 {number / 10 + 0.05} 0.5 0.1 0.1\n")
    content = {"path": str(own_folder), "val": "images", "names": list(CLASSES)}
    Path("twins.yaml").write_text(yaml.safe_dump(content))
    return content


def _opened(content, **annotations):
    Path("twins.yaml").write_text(yaml.safe_dump({**content, **annotations}))
    return load_dataset(Path("twins.yaml"))


def _instances(names):
    size = {"width": 100, "height": 100}
    boxes = [{"bbox": [10 * at, 45, 10, 10], "area": 100, "iscrowd": 0} for at in range(1, len(names) + 1)]
    content = {
        "images": [{"id": at, "file_name": name, **size} for at, name in enumerate(names)],
        "annotations": [{**box, "id": at, "image_id": at, "category_id": 1} for at, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": CLASSES[0]}],
    }
    Path("instances.json").write_text(json.dumps(content))
    return {"coco_annotations": {"val": "instances.json"}}


def _lefts(truth):
    return {key: entry.boxes[0, 0] for key, entry in truth.truths.items()}


EXPECTED = dict(zip(IMAGES, (10, 20, 30)))


def test_labels_of_two_images_of_one_name_are_kept_apart(twins):
    truth = dataset_truths(_opened(twins), "val", ["yolov5"])["yolov5"]
    assert _lefts(truth) == pytest.approx(EXPECTED)
    assert {key: entry.image for key, entry in truth.truths.items()} == {key: key for key in IMAGES}


def test_a_linked_folder_beside_its_target_counts_again_as_in_val(twins):
    for kind in ("images", "labels"):
        Path(kind, "dusk").symlink_to("night")
    dataset = _opened(twins)
    val = [Path(path).absolute() for path in dataset.images("val")]
    expected = {**EXPECTED, "dusk/1.jpg": 20, "dusk/2.jpg": 30}
    for judged in (labelled_images(dataset, "val"), labelled_images(dataset, "val", Rules(judged=val))):
        assert len(val) == 5 and {key: path.parent.name for key, path in judged.files.items()} == {
            key: key.partition("/")[0] for key in expected
        }
        truth = dataset_truths(dataset, "val", ["yolov5"], judged)["yolov5"]
        assert _lefts(truth) == pytest.approx(expected)


@pytest.mark.parametrize("above", ["", "val/", "set/images/"])
def test_instances_name_images_by_their_paths(twins, above):
    dataset = _opened(twins, **_instances([above + name.replace(".jpg", ".png") for name in IMAGES]))
    truth = dataset_truths(dataset, "val", ["coco"])["coco"]
    assert _lefts(truth) == EXPECTED and truth.image_ids == dict(enumerate(IMAGES))
    results = [{"image_id": at, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.5 + at / 10} for at in range(3)]
    Path("r.json").write_text(json.dumps(results))
    found = read_predictions(Path("r.json"), truth)
    assert {key: one.scores.tolist() for key, one in found.items()} == dict(zip(IMAGES, ([0.5], [0.6], [0.7])))
    Path("r.json").write_text(json.dumps([{**results[0], "image_id": "2"}, {**results[0], "image_id": "1"}]))
    with pytest.raises(UserError, match=r"image_id '1' is the name of day/1\.jpg and of night/1\.jpg"):
        read_predictions(Path("r.json"), truth)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["1.jpg", "2.jpg"],
            r"day/1\.jpg and night/1\.jpg are both called 1\.jpg\. .*has one image of that name",
        ),
        (["dusk/1.jpg", "night/1.jpg", "2.jpg"], r"no annotations for 1 image, such as day/1\.jpg"),
        (
            ["a/day/1.jpg", "b/day/1.jpg", "night/1.jpg", "2.jpg"],
            r"no annotations for 1 image, such as day/1\.jpg",
        ),
    ],
)
def test_instances_that_do_not_say_which_is_which_are_refused(twins, names, words):
    with pytest.raises(UserError, match=words):
        dataset_truths(_opened(twins, **_instances(names)), "val", ["coco"])


def test_detections_in_an_image_that_is_not_judged_are_passed_over_by_its_id(twins):
    Path("labels/night/2.txt").write_text("0 2 2 1 1\n")  # YOLOv5 leaves the image out
    dataset = _opened(twins, **_instances(["2.jpg", "val/day/1.jpg", "val/night/1.jpg"]))
    judged = labelled_images(dataset, "val")
    truth = dataset_truths(dataset, "val", ["coco"], judged)["coco"]
    assert judged.left_out_keys == truth.left_out == {"night/2.jpg"} and list(truth.truths) == [*IMAGES[:2]]
    row = {"category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.5}
    Path("r.json").write_text(json.dumps([{**row, "image_id": at} for at in range(3)]))
    assert [len(one.scores) for one in read_predictions(Path("r.json"), truth).values()] == [1, 1]


def test_text_files_know_names_only(twins):
    Path("annotations").mkdir()
    for name in "12":
        Path(f"annotations/{name}.txt").write_text("10,20,30,40,1,4,0,0\n")
    dataset = _opened(twins, visdrone_annotations={"val": "annotations"})
    words = r"day/1\.jpg and night/1\.jpg are both called 1\. .*annotations tells images apart by that name alone"
    with pytest.raises(UserError, match=words):
        dataset_truths(dataset, "val", ["visdrone"])
    every = image_set(dataset.images("val"), CLASSES, "set")
    with pytest.raises(UserError, match=r"are both called 1\. annotations tells detections apart by that alone"):
        read_predictions(Path("annotations"), every)
    found = dict.fromkeys(IMAGES, Predictions())
    with pytest.raises(UserError, match=r"are both called 1\. results takes one file of that name"):
        write_visdrone_results(Path("results"), found)
    assert not Path("results").exists()
    write_visdrone_results(Path("results"), dict.fromkeys(IMAGES[1:], Predictions()))
    assert sorted(file.name for file in Path("results").iterdir()) == ["1.txt", "2.txt"]


def test_an_instances_json_alone_may_hold_two_images_of_one_name(own_folder):
    _instances(IMAGES)
    truth = coco_truth(Path("instances.json"))
    assert _lefts(truth) == EXPECTED and np.array(list(truth.image_ids)).tolist() == [0, 1, 2]
