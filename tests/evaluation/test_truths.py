"""Ground truth and predictions from files: values, and messages for what cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.data.visdrone_format import CLASSES
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.coco import CocoProtocol
from yolov5_ema.evaluation.judged import labelled_images
from yolov5_ema.evaluation.predictions import read_predictions, write_visdrone_results
from yolov5_ema.evaluation.records import Predictions, Truth, clipped
from yolov5_ema.evaluation.truths import (
    TruthSet,
    coco_truth,
    image_sizes,
    label_truth,
    read_image_sizes,
    visdrone_truth,
)

pytestmark = pytest.mark.usefixtures("messages")

GOOD = {"image_id": 7, "category_id": 30, "bbox": [1, 2, 3, 4], "score": 0.5}
SIZES = {"a": (200, 100), "b": (100, 100)}


@pytest.fixture
def folder(tmp_path):
    """VisDrone annotations of two images; b has no objects that count."""
    made = tmp_path / "annotations"
    made.mkdir()
    (made / "a.txt").write_text("10,20,30,40,1,4,0,0,\r\n0,0,50,50,0,0,0,0\n\n5,5,9,9,0,1,0,0\n190,90,20,20,1,11,0,0\n")
    (made / "b.txt").write_text("1,1,0,5,1,10,0,0\n")
    return made


@pytest.fixture
def truth(folder):
    return visdrone_truth(folder, SIZES)


def instances(**changes):
    content = {
        "images": [
            {"id": 7, "file_name": "x/b.jpg", "width": 100, "height": 90},
            {"id": 2, "file_name": "a.jpg", "width": 9, "height": 9},
        ],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 30, "bbox": [1, 2, 3, 4], "area": 6, "iscrowd": 0},
            {"id": 1, "image_id": 7, "category_id": 10, "bbox": [5, 5, 2, 2], "iscrowd": 1},
        ],
        "categories": [{"id": 30, "name": "car"}, {"id": 10, "name": "bus"}],
    }
    return {**content, **changes}


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def test_visdrone_annotations(truth):
    a = truth.truths["a"]
    assert truth.names == CLASSES and list(truth.truths) == ["a", "b"]
    assert a.boxes.tolist() == [[10, 20, 30, 40], [5, 5, 9, 9], [190, 90, 20, 20]]
    assert a.classes.tolist() == [3, 0, -1] and a.ignored.tolist() == [False, True, False]
    assert a.regions.tolist() == [[0, 0, 50, 50]] and (a.width, a.height) == (200, 100)
    assert truth.truths["b"].boxes.tolist() == [[1, 1, 0, 5]]


def test_clipped(truth):
    a = clipped(truth.truths["a"])
    assert a.boxes.tolist()[-1] == [190, 90, 10, 10]
    assert len(clipped(truth.truths["b"]).classes) == 0


def test_visdrone_annotations_that_cannot_be_used(folder, tmp_path):
    with pytest.raises(UserError, match="no annotations there"):
        visdrone_truth(tmp_path / "nowhere", SIZES)
    with pytest.raises(UserError, match="size of b is not known"):
        visdrone_truth(folder, {"a": (9, 9)})
    with pytest.raises(UserError, match=r"of 10 classes, not of 1 class$"):
        visdrone_truth(folder, SIZES, ["car"])
    (folder / "b.txt").write_text("1,1,5,5,1,4,0,0\n1,1,5,x,1,4,0,0\n1,1,5,5,1,12,0,0\n")
    with pytest.raises(UserError, match=r"b\.txt, line 2: 'x' is not a number \(and 1 more line\)"):
        visdrone_truth(folder, SIZES)


def test_coco_instances(tmp_path):
    found = coco_truth(write_json(tmp_path / "i.json", instances()))
    assert found.names == ("bus", "car") and found.category_ids == {30: 1, 10: 0}
    assert list(found.truths) == ["a.jpg", "x/b.jpg"] and found.image_ids == {7: "x/b.jpg", 2: "a.jpg"}
    b = found.truths["x/b.jpg"]
    assert b.classes.tolist() == [1, 0] and b.ignored.tolist() == [False, True] and b.areas.tolist() == [6, 4]
    renamed = coco_truth(tmp_path / "i.json", ["car"])
    assert renamed.truths["x/b.jpg"].classes.tolist() == [0, -1]


def test_coco_instances_give_back_ignored_regions(tmp_path):
    region = {"image_id": 7, "bbox": [0, 0, 9, 9], "iscrowd": 1, "visdrone_category": 0}
    rows = [{**region, "id": n, "category_id": n} for n in (10, 30)]
    rows += [{**region, "id": 20 + n, "category_id": n, "bbox": [9, 9, 5, 5]} for n in (10, 30)]
    found = coco_truth(write_json(tmp_path / "i.json", instances(annotations=rows)))
    b = found.truths["x/b.jpg"]
    assert b.regions.tolist() == [[0, 0, 9, 9], [9, 9, 5, 5]] and not len(b.boxes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": None}, "must hold the lists"),
        (
            {"images": [{"id": 7, "file_name": "b.jpg", "width": 9, "height": 9}] * 2},
            "image id 7 appears twice",
        ),
        ({"images": [{"id": 7, "file_name": "b.jpg"}]}, "'width'"),
        ({"categories": []}, "none of its categories"),
        (
            {"annotations": [{"image_id": 8, "category_id": 30, "bbox": [1, 1, 1, 1]}]},
            "annotation 1 names image 8",
        ),
        ({"annotations": [{"image_id": 7, "category_id": 31, "bbox": [1, 1, 1, 1]}]}, "category 31"),
        ({"annotations": [{"image_id": 7, "category_id": 30}]}, "'bbox'"),
        ({"annotations": [{**GOOD, "area": float("inf")}]}, "its area must be a number"),
        (
            {"images": [{"id": None, "file_name": "b.jpg", "width": 9, "height": 9}]},
            "id must be a number or a name",
        ),
        ({"annotations": [{"image_id": 7, "category_id": 30, "bbox": [1, 1, 1]}]}, "four numbers"),
        (
            {"annotations": [{"image_id": 7, "category_id": 30, "bbox": [1, 1, 1, float("nan")]}]},
            "four numbers",
        ),
    ],
)
def test_coco_instances_that_cannot_be_used(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        coco_truth(write_json(tmp_path / "i.json", instances(**changes)))


def test_json_that_is_cut_off(tmp_path):
    text = json.dumps(instances())
    for content, words in ((text[:40], "cut off: line 1"), ("", "is empty"), ("\x00", "not JSON")):
        (tmp_path / "i.json").write_text(content)
        with pytest.raises(UserError, match=words):
            coco_truth(tmp_path / "i.json")
    with pytest.raises(UserError, match="cannot be read"):
        coco_truth(tmp_path / "no.json")


def test_labels(tmp_path):
    for name, size in (("a.png", (200, 100)), ("b.png", (50, 50))):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "images" / name)
    (tmp_path / "labels").mkdir()
    # in single precision, which YOLOv5 uses, the last row equals the first
    (tmp_path / "labels/a.txt").write_text("1 0.5 0.5 0.1 0.2\n0 0.25 0.5 0.5 1\n1 0.5000000001 0.5 0.1 0.2\n")
    (tmp_path / "set.yaml").write_text(f"path: {tmp_path}\nval: images\nnames: [x, y]\n")
    dataset = load_dataset(tmp_path / "set.yaml")

    def truth():
        judged = labelled_images(dataset, "val")
        return label_truth(judged, ["x", "y"], "set.yaml", image_sizes(judged.files))

    found = truth()
    assert found.truths["a.png"].classes.tolist() == [0, 1]  # the repeated one is dropped, as YOLOv5 does
    np.testing.assert_allclose(found.truths["a.png"].boxes, [[0, 0, 100, 100], [90, 40, 20, 20]])
    assert len(found.truths["b.png"].classes) == 0
    (tmp_path / "labels/a.txt").write_text("2 0.5 0.5 0.1 0.2\n")
    with pytest.raises(UserError, match=r"a\.txt, line 1: class 2 is not in 0 to 1"):
        truth()


def test_image_sizes_follow_the_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (40, 20)).save(tmp_path / "plain.jpg")
    files = {file.stem: file for file in tmp_path.glob("*.jpg")}
    assert image_sizes(files) == {"plain": (40, 20), "turned": (20, 40)}


def test_image_sizes_json(tmp_path):
    file = write_json(tmp_path / "s.json", {"a": {"width": 3, "height": 4}, "b.jpg": [5, 6], "c.d": [7, 8]})
    assert read_image_sizes(file) == {"a": (3, 4), "b": (5, 6), "c.d": (7, 8)}
    for content, words in (
        ([], "an object"),
        ({"a": [1]}, "a: no width and height"),
        ({"a": [0, 9]}, r"a: no width and height of an image in \[0, 9\]"),
    ):
        with pytest.raises(UserError, match=words):
            read_image_sizes(write_json(file, content))


# --- predictions ---


def results(tmp_path, a: str, b: str = "1,1,5,5,0.5,1,-1,-1\n"):
    folder = tmp_path / "results"
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text(a)
    (folder / "b.txt").write_text(b)
    return folder


def test_visdrone_results_keep_their_order(tmp_path, truth):
    place = results(tmp_path, "1,2,3,4,0.1,1,-1,-1\n5,6,7,8,0.9,11,-1,-1\n5.5,6,7,8,0.4,10,-1,-1,\n")
    found = read_predictions(place, truth)["a"]
    assert found.scores.tolist() == [0.1, 0.9, 0.4] and found.classes.tolist() == [0, -1, 9]
    assert found.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [5.5, 6, 7, 8]]


def test_yolo_results_are_sorted(tmp_path, truth):
    place = results(tmp_path, "3 0.5 0.5 0.1 0.2 0.25\n0 0.25 0.5 0.5 1 0.75\n", "9 0.5 0.5 1 1 0.5\n")
    found = read_predictions(place, truth)
    assert found["a"].scores.tolist() == [0.75, 0.25] and found["a"].classes.tolist() == [0, 3]
    np.testing.assert_allclose(found["a"].boxes, [[0, 0, 100, 100], [90, 40, 20, 20]])
    (tmp_path / "run").mkdir()
    place.rename(tmp_path / "run/labels")  # the run folder that YOLOv5 made
    assert read_predictions(tmp_path / "run", truth)["b"].classes.tolist() == [9]


def test_coco_results(tmp_path):
    truth = coco_truth(write_json(tmp_path / "i.json", instances()))
    row = {"image_id": 7, "bbox": [1, 2, 3, 4]}
    rows = [{**row, "category_id": 30, "score": 0.2}, {**row, "category_id": 10, "score": 0.8}]
    rows.append({"image_id": "a", "category_id": 10, "bbox": [0, 0, 1, 1], "score": 0.5})
    found = read_predictions(write_json(tmp_path / "r.json", rows), truth)
    assert found["x/b.jpg"].scores.tolist() == [0.8, 0.2] and found["x/b.jpg"].classes.tolist() == [0, 1]
    assert found["a.jpg"].classes.tolist() == [0]


def test_what_category_ids_of_a_results_json_mean(tmp_path, capsys):
    truth = coco_truth(write_json(tmp_path / "i.json", instances()))
    rows = [{"image_id": name, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5} for name in "ab"]
    file = write_json(tmp_path / "r.json", rows)
    assert read_predictions(file, truth)["a.jpg"].classes.tolist() == [1]
    assert "taken as classes counted from 0" in capsys.readouterr().out
    with pytest.raises(UserError, match="category_id 1 is not in 10 to 30"):
        read_predictions(file, truth, category_ids="coco")
    rows[0]["category_id"] = 30  # neither ids nor classes
    with pytest.raises(UserError, match="category_id 1 is not in"):
        read_predictions(write_json(file, rows), truth)


def rows_of(numbers, names="ab"):
    return [
        {"image_id": names[at % len(names)], "category_id": number, "bbox": [0, 0, 1, 1], "score": 0.5}
        for at, number in enumerate(numbers)
    ]


@pytest.mark.parametrize(
    ("numbers", "wanted", "classes", "words"),
    [
        ([0, 1, 2], "auto", {0, 1, 2}, ""),
        ([0.0, 2.0], "auto", {0, 2}, ""),
        # the last class is never predicted, so the meaning of the numbers is unknown, and the message says so
        ([1, 2], "auto", {1, 2}, "classes counted from 0. They could also be classes counted from 1"),
        ([1, 2], "index", {1, 2}, ""),
        ([1, 2], "one-based", {0, 1}, ""),
        ([1, 2, 3], "one-based", {0, 1, 2}, ""),
    ],
)
@pytest.mark.parametrize("form", ["json", "txt"])
def test_classes_that_may_be_counted_from_1(tmp_path, capsys, numbers, wanted, classes, words, form):
    truth = TruthSet("set", ("x", "y", "z"), {name: Truth(name, 100, 100) for name in "ab"})
    if form == "json":
        place = write_json(tmp_path / "r.json", rows_of(numbers))
    else:
        place = tmp_path
        for name in "ab":
            (tmp_path / f"{name}.txt").write_text("".join(f"{n} 0.5 0.5 0.1 0.1 0.5\n" for n in numbers))
    found = read_predictions(place, truth, category_ids=wanted)
    assert {int(number) for name in "ab" for number in found[name].classes} == classes
    said = capsys.readouterr().out
    assert words in said and bool(words) == ("--category-ids one-based" in said)


def test_a_class_that_only_counting_from_1_has_is_refused_with_the_cure(tmp_path):
    truth = TruthSet("set", ("x", "y", "z"), {name: Truth(name, 100, 100) for name in "ab"})
    file = write_json(tmp_path / "r.json", rows_of([1, 3]))
    with pytest.raises(UserError, match=r"category_id 3 is not in 0 to 2. .* pass --category-ids one-based"):
        read_predictions(file, truth)
    with pytest.raises(UserError, match=r"category_id 0 is not in 1 to 3"):
        read_predictions(write_json(file, rows_of([0, 3])), truth, category_ids="one-based")


def test_ids_of_categories_that_could_be_classes_are_said(tmp_path, capsys):
    truth = TruthSet("set", ("x", "y", "z"), {"a": Truth("a", 9, 9)}, category_ids={1: 0, 2: 1, 3: 2})
    found = read_predictions(write_json(tmp_path / "r.json", rows_of([1, 2], "a")), truth)
    assert found["a"].classes.tolist() == [0, 1]
    assert "They could also be classes counted from 0 (--category-ids index)" in capsys.readouterr().out


def test_one_number_that_two_images_have_is_refused(tmp_path):
    truth = TruthSet("set", ("x",), {name: Truth(name, 9, 9) for name in ("1", "0001", "2")})
    for image, ok in ((2, True), ("0001", True), ("1", True), (1, False)):
        row = {"image_id": image, "category_id": 0, "bbox": [0, 0, 1, 1], "score": 0.5}
        file = write_json(tmp_path / "r.json", [row])
        if ok:
            found = read_predictions(file, truth, missing_as_empty=True)
            assert [name for name in found if len(found[name].scores)] == [str(image)]
        else:
            with pytest.raises(UserError, match="image_id 1 is the number of 1 and of 0001"):
                read_predictions(file, truth, missing_as_empty=True)


def test_detections_in_images_that_are_not_judged_are_passed_over(tmp_path):
    truth = TruthSet("set", ("x",), {"a": Truth("a", 9, 9)}, {7: "b"}, left_out=frozenset({"b", "0012"}))
    rows = rows_of([0, 0, 0, 0], ["a", "b", 7, 12])
    assert list(read_predictions(write_json(tmp_path / "r.json", rows), truth)) == ["a"]
    with pytest.raises(UserError, match="image_id 'c' is not an image in"):
        read_predictions(write_json(tmp_path / "r.json", [*rows, *rows_of([0], "c")]), truth)
    truth = replace(truth, image_ids={7: "b", 8: "elsewhere"})  # an image that is in the JSON, but not in the split
    with pytest.raises(UserError, match="image_id 8 is not an image in"):
        read_predictions(write_json(tmp_path / "r.json", [*rows, *rows_of([0], [8])]), truth)


def test_categories_of_one_name_are_one_class(tmp_path):
    content = instances()
    content["categories"].append({"id": 99, "name": content["categories"][0]["name"]})
    found = coco_truth(write_json(tmp_path / "i.json", content))
    assert len(found.names) == len(set(found.names)) == 2
    first = content["categories"][0]["id"]
    assert found.category_ids[99] == found.category_ids[first]


def test_numeric_names_as_numbers(tmp_path):
    (tmp_path / "000012.txt").write_text("10,20,30,40,1,4,0,0\n")
    truth = visdrone_truth(tmp_path, {"000012": (100, 100)})
    rows = [{"image_id": 12, "category_id": 3, "bbox": [10, 20, 30, 40], "score": 0.5}]
    found = read_predictions(write_json(tmp_path / "r.json", rows), truth)
    assert found["000012"].classes.tolist() == [3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "holds no detections"),
        ({"a": 1}, "must hold a list"),
        ([GOOD, {**GOOD, "image_id": 99}], r"detection 2: image_id 99 is not an image in"),
        ([{**GOOD, "score": float("nan")}], "detection 1 .* its score is not a number"),
        ([{**GOOD, "score": None}], "detection 1 has a missing or invalid entry"),
        ([{**GOOD, "bbox": [1, 2, 3]}], "four numbers"),
        ([{**GOOD, "bbox": [1, 2, 3, float("inf")]}], "not made of numbers"),
        ([{**GOOD, "bbox": [1, 2, -3, 4]}], "negative width"),
        ([{**GOOD, "bbox": [500, 2, 3, 4]}], "outside the image of 100 x 90 pixels"),
        ([{**GOOD, "category_id": 77}], "category_id 77 is not in 10 to 30"),
        (["x"], "detection 1 has a missing or invalid entry"),
        ([GOOD], "no detections for 1 of 2 images, such as a.jpg. .*--missing-as-empty"),
    ],
)
def test_results_json_that_cannot_be_used(tmp_path, content, words):
    truth = coco_truth(write_json(tmp_path / "i.json", instances()))
    with pytest.raises(UserError, match=words):
        read_predictions(write_json(tmp_path / "r.json", content), truth)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3,4,nan,1,-1,-1\n", r"a\.txt, line 1: nan is not finite"),
        ("1,2,3,4,0.5,12,-1,-1\n", r"a\.txt, line 1: category 12 is not in 0 to 11"),
        ("1,2,3\n", "3 columns"),
        ("300,2,3,4,0.5,1,-1,-1\n", "outside the image of 200 x 100"),
        ("", "no detections for 1 of 2 images, such as a"),
        ("1 0.5 0.5 0.1 0.1\n", "rows without a confidence; .*--save-conf"),
        ("10 0.5 0.5 0.1 0.1 0.5\n", "10 is not in 0 to 9. If these are classes counted from 1"),
        ("11 0.5 0.5 0.1 0.1 0.5\n", "its class is not in 0 to 9"),
        ("1.5 0.5 0.5 0.1 0.1 0.5\n", "a class must be a whole number, not 1.5"),
        ("1 0.5 0.5 0.1 0.1 x\n", "'x' is not a number"),
    ],
)
def test_result_files_that_cannot_be_used(tmp_path, truth, text, words):
    with pytest.raises(UserError, match=words):
        read_predictions(results(tmp_path, text), truth)


def test_missing_files_and_files_too_many(tmp_path, truth):
    place = results(tmp_path, "1,2,3,4,0.5,1,-1,-1\n")
    (place / "b.txt").unlink()
    with pytest.raises(UserError, match="such as b"):
        read_predictions(place, truth)
    assert len(read_predictions(place, truth, missing_as_empty=True)["b"].scores) == 0
    (place / "c.txt").write_text("1,2,3,4,0.5,1,-1,-1\n")
    with pytest.raises(UserError, match=r"c\.txt: there is no image c"):
        read_predictions(place, truth)
    with pytest.raises(UserError, match="no such file"):
        read_predictions(tmp_path / "nowhere", truth)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \*\.txt there"):
        read_predictions(tmp_path / "empty", truth)


def test_the_results_folder_of_the_benchmark(tmp_path, truth):
    boxes = np.tile([[1.25, 2, 3, 4]], (600, 1))
    found = Predictions(boxes, np.linspace(0.1, 0.9, 600), np.full(600, 3))
    rows = write_visdrone_results(tmp_path / "out", {"a": found, "b": Predictions()})
    lines = (tmp_path / "out/a.txt").read_text().splitlines()
    assert rows == len(lines) == 500 and (tmp_path / "out/b.txt").read_text() == ""
    assert lines[0] == "1.25,2.00,3.00,4.00,0.900000,4,-1,-1"
    scores = [float(line.split(",")[4]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    again = read_predictions(tmp_path / "out", truth, missing_as_empty=True)["a"]
    np.testing.assert_allclose(again.boxes, boxes[:500])
    with pytest.raises(UserError, match="exists and is left as it is"):
        write_visdrone_results(tmp_path / "out", {})
    assert len(list(tmp_path.glob(".out*"))) == 0


def test_areas_of_the_json_reach_the_protocol(tmp_path):
    truth = coco_truth(write_json(tmp_path / "i.json", instances()))
    protocol = CocoProtocol(truth.names)
    for entry in truth.truths.values():
        protocol.update(entry, Predictions(entry.boxes, np.ones(len(entry.boxes)), entry.classes))
    assert protocol.compute().metrics["AP_small"] == pytest.approx(1)
