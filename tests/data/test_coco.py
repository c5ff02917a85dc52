"""COCO's JSON converted to YOLO labels: values, the order of classes, and mistakes in a JSON."""

from __future__ import annotations

import contextlib
import io
import json
import os

import numpy as np
import pytest
import yaml
from drone_set import HEIGHT, WIDTH, jpeg, label_rows, random_annotations, tree, write_split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from yolov5_ema.cli.data.coco import COMMAND
from yolov5_ema.data.coco import convert_coco, split_of
from yolov5_ema.data.coco_format import COCO_NAMES, read_instances
from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.data.stats import split_stats
from yolov5_ema.data.visdrone import convert_visdrone
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.truths import coco_truth

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def annotation(image_id, category_id, bbox, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0, **more}


def image(number, **more):
    return {"id": number, "file_name": f"{number:06d}.jpg", "width": WIDTH, "height": HEIGHT, **more}


def write_coco(root, annotations, images=None, categories=CATEGORIES, name="val2017", place="{name}"):
    images = [image(1), image(2)] if images is None else images
    folder = root / place.format(name=name)
    folder.mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for index, entry in enumerate(images):
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and ".." not in entry["file_name"]:
            (folder / entry["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / entry["file_name"]).write_bytes(jpeg(seed=index))
    for number, entry in enumerate(annotations, 1):
        if isinstance(entry, dict):
            entry.setdefault("id", number)
    file = root / "annotations" / f"instances_{name}.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def convert(source, out, **options):
    return convert_coco(source, out, workers=1, **options)


def only(conversion):
    (result,) = conversion.splits
    return result


# --- values -----------------------------------------------------------------------------------


def test_by_hand(source, out):
    rows = [
        annotation(1, 3, [9.6, 6.4, 19.2, 12.8]),
        annotation(1, 7, [-4, 60, 20, 10]),
        annotation(1, 7, [0, 0, 50, 50], iscrowd=1),
        annotation(1, 3, [10, 10, 0, 5]),
        annotation(1, 3, [200, 10, 5, 5]),
        annotation(1, 3, [9.6, 6.4, 19.2, 12.8]),
        annotation(1, 3, [10, 10, 0.00001, 5]),
    ]
    done = convert(write_coco(source, rows), out)
    assert only(done).tallies == {
        "images": 2, "boxes": 2, "background": 1, "crowds": 1, "no_area": 3, "clipped": 1, "duplicates": 1,
    }  # fmt: skip
    labels = out / "labels" / "val2017"
    assert (labels / "000001.txt").read_text() == (
        "0 0.200000 0.200000 0.200000 0.200000\n1 0.083333 0.968750 0.166667 0.062500\n"
    )
    assert (labels / "000002.txt").read_bytes() == b""
    assert os.path.samefile(out / "images/val2017/000001.jpg", source / "val2017/000001.jpg")
    assert yaml.safe_load(done.yaml_file.read_text()) == {
        "path": str(out),
        "val": "images/val2017",
        "nc": 2,
        "names": ["dog", "cat"],
        "coco_annotations": {"val": "annotations/instances_val2017.json"},
    }
    linked = json.loads((out / "annotations" / "instances_val2017.json").read_text())
    assert len(linked["annotations"]) == 7


def test_cocos_own_classes_come_in_yolov5s_order(source, out):
    shuffled = np.random.default_rng(0).permutation(80)
    categories = [{"id": int(number), "name": name} for number, name in zip(shuffled, COCO_NAMES)]
    rows = [annotation(1, int(shuffled[COCO_NAMES.index("toothbrush")]), [1, 1, 9, 9])]
    done = convert(write_coco(source, rows, categories=categories), out)
    names = yaml.safe_load(done.yaml_file.read_text())["names"]
    assert names[:3] == ["person", "bicycle", "car"] and names[79] == "toothbrush" and len(set(names)) == 80
    assert label_rows(out / "labels/val2017/000001.txt")[0, 0] == 79


def test_yolov5s_own_list_is_the_same(package_root):
    assert tuple(yaml.safe_load((package_root / "data" / "coco.yaml").read_text())["names"]) == COCO_NAMES


def test_visdrone_to_coco_to_labels_round_trip(tmp_path):
    """The JSON that `data visdrone` writes gives identical labels with `data coco`."""
    split = write_split(tmp_path / "VisDrone2019-DET-val", random_annotations(20, seed=4))
    convert_visdrone([split], tmp_path / "visdrone", workers=1)
    json_file = tmp_path / "visdrone/annotations/instances_val.json"
    convert(json_file, tmp_path / "again", images=tmp_path / "visdrone/VisDrone2019-DET-val/images")
    first, again = (
        tree(tmp_path / "visdrone/VisDrone2019-DET-val/labels"),
        tree(tmp_path / "again/labels/val"),
    )
    assert first == again and sum(map(len, first.values())) > 1000


def test_labels_to_boxes_round_trip(source, out):
    rng = np.random.default_rng(0)
    boxes = np.column_stack([rng.uniform(0, 40, (50, 2)), rng.uniform(0.5, 20, (50, 2))]).round(2)
    rows = [annotation(1 + index % 2, 3, box.tolist()) for index, box in enumerate(boxes)]
    convert(write_coco(source, rows), out)
    for number in (1, 2):
        found = label_rows(out / f"labels/val2017/{number:06d}.txt")[:, 1:] * (WIDTH, HEIGHT, WIDTH, HEIGHT)
        found[:, :2] -= found[:, 2:] / 2
        assert np.abs(found - boxes[number - 1 :: 2]).max() < 1e-3


# --- finding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["{name}", "images/{name}"])
def test_layouts(source, out, place):
    for name in ("train2017", "val2017"):
        write_coco(source, [annotation(1, 3, [1, 1, 9, 9])], name=name, place=place)
    done = convert(source, out)
    assert [(result.split, result.tallies["boxes"]) for result in done.splits] == [("train", 1), ("val", 1)]
    content = yaml.safe_load(done.yaml_file.read_text())
    assert (content["train"], content["val"]) == ("images/train2017", "images/val2017")


def test_one_json_and_names_with_folders(source, out):
    images = [image(1, file_name="day/a.jpg"), image(2, file_name="night/a.jpg")]
    write_coco(source, [annotation(2, 3, [1, 1, 9, 9])], images, name="mine")
    file = source / "annotations" / "instances_mine.json"
    with pytest.raises(UserError, match="add --split train, val or test"):
        convert(file, out, images=source / "mine")
    with pytest.raises(UserError, match="needs --images FOLDER"):
        convert(file, out)
    with pytest.raises(UserError, match="there is no such folder"):
        convert(file, out, images=source / "nowhere")
    assert not out.exists()
    convert(file, out, images=source / "mine", split="test")
    assert set(tree(out / "labels")) == {"test/day/a.txt", "test/night/a.txt"}
    assert len(label_rows(out / "labels/test/night/a.txt")) == 1


def test_splits_by_name():
    names = ["train2017", "val2017", "minival2014", "valid", "test-dev2017", "trainer", "person_keypoints"]
    assert [split_of(name) for name in names] == ["train", "val", "val", "val", "test", None, None]


def test_what_cannot_be_found(tmp_path, source, out):
    with pytest.raises(UserError, match="there is no such file or folder"):
        convert(source, out)
    source.mkdir()
    with pytest.raises(UserError, match=r"has no annotations/instances_\*\.json"):
        convert(source, out)
    write_coco(source, [])
    with pytest.raises(UserError, match="go with a single JSON"):
        convert(source, out, images=source)
    with pytest.raises(UserError, match="is inside the source"):
        convert(source, source / "out")
    (source / "val2017").rename(source / "elsewhere")
    with pytest.raises(UserError, match=r"no images for annotations/instances_val2017\.json"):
        convert(source, out)
    write_coco(source, [])
    write_coco(source, [], name="val2014")
    with pytest.raises(UserError, match="are both for val"):
        convert(source, out)
    assert not out.exists()


def test_splits_of_other_categories(tmp_path, source, out):
    write_coco(source, [], name="train2017")
    write_coco(source, [], name="val2017", categories=[{"id": 1, "name": "bird"}])
    with pytest.raises(UserError, match="has different categories from"):
        convert(source, out)
    assert not out.exists()
    convert(write_coco(tmp_path / "a", [], name="train2017"), out)
    with pytest.raises(UserError, match="has a split train with different categories"):
        convert(write_coco(tmp_path / "b", [], categories=[{"id": 1, "name": "bird"}]), out)


# --- what is wrong in a JSON ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [', "is not valid JSON, or it is cut off"),
        ("", "is not valid JSON, or it is cut off"),
        ("[1]", "it holds a list, not an object"),
        ('{"images": []}', "it has no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}', "has no images"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": "1", "name": "x"}]}',
            "needs a whole number 'id' and a 'name'; this id is a text: write it without quotes",
        ),
        (
            '{"images": [{"id": 1, "file_name": "C:\\\\set\\\\a.jpg"}], "annotations": [], '
            '"categories": [{"id": 1, "name": "x"}]}',
            "leads out of the folder of images; make it relative to that",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}, {"id": 1, "name": "y"}]}',
            "twice",
        ),
    ],
)
def test_jsons_that_cannot_be_used(source, out, text, words):
    write_coco(source, [])
    (source / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(UserError, match=words):
        convert(source, out)
    assert not out.exists()


def test_entries_that_cannot_be_used_are_named_and_left_out(source, out):
    good = annotation(1, 3, [1, 1, 9, 9])
    bad = [
        annotation(99, 3, [1, 1, 9, 9]), annotation(1, 99, [1, 1, 9, 9]), annotation(1, 3, [1, 1, 9]),
        annotation(1, 3, [1, 1, float("nan"), 9]), annotation(1, 3, [1, 1, "9", 9]), annotation(1, 3, None),
        annotation([1], 3, [1, 1, 9, 9]), annotation(1, 3, [1, 1, 10**400, 9]), "text", {"id": 5},
    ]  # fmt: skip
    images = [
        image(1), image(1, file_name="b.jpg"), image(3, file_name="../evil.jpg"), image(4, file_name="000001.png"),
        image(5, file_name="/etc/x.jpg"), image(6, file_name=7), image(7, width="wide"), "text", image(8), image(9),
    ]  # fmt: skip
    write_coco(source, [good, *bad], images)
    (source / "val2017" / "000008.jpg").unlink()
    (source / "val2017" / "000009.jpg").write_bytes(b"no image")
    done = convert(source, out)
    result = only(done)
    wheres = [problem.where.rsplit("/", 1)[1] for problem in result.problems]
    assert [where for where in wheres if "annotation " in where] == [
        f"instances_val2017.json, annotation {number}" for number in range(1, 11)
    ]
    assert [where for where in wheres if ", image " in where] == [
        f"instances_val2017.json, image {number}" for number in range(1, 8)
    ]
    assert wheres[17:] == ["000008.jpg", "000009.jpg"]
    assert result.tallies["images"] == 1 and result.tallies["boxes"] == 1
    assert set(tree(out / "images")) == {"val2017/000001.jpg"}
    assert json.loads(done.report.read_text())["val"]["counts"] == {"annotation": 10, "image": 9}
    with pytest.raises(UserError, match=r"--strict: nothing was written\n(.|\n)*and 9 more"):
        convert(source, out.with_name("strict"), strict=True)
    assert not out.with_name("strict").exists()


def test_an_image_of_another_size_than_the_json_says(source, out):
    write_coco(source, [annotation(1, 3, [20, 20, 20, 20])], [image(1, width=2 * WIDTH, height=2 * HEIGHT)])
    for _ in range(2):  # the second time everything is done already, and the message is the same
        result = only(convert(source, out))
        assert [(problem.kind, problem.reason.split(",")[0]) for problem in result.problems] == [("size", "is 96 x 64")]
    assert label_rows(out / "labels/val2017/000001.txt")[0, 3] == pytest.approx(20 / 192, abs=1e-6)


def test_sizes_that_the_json_lacks_are_the_files(source, out):
    write_coco(source, [annotation(1, 3, [48, 32, 48, 32])], [{"id": 1, "file_name": "a.jpg"}])
    assert not only(convert(source, out)).problems
    assert label_rows(out / "labels/val2017/a.txt").tolist() == [[0, 0.75, 0.75, 0.5, 0.5]]


values = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=3),
    st.lists(st.one_of(st.integers(-5, 99), st.floats(), st.text(max_size=1)), max_size=5),
)  # fmt: skip
entries = st.one_of(
    st.dictionaries(st.sampled_from(["id", "image_id", "category_id", "bbox", "iscrowd"]), values),
    st.builds(
        annotation,
        st.sampled_from([1, 2]),
        st.sampled_from([3, 7]),
        st.lists(st.floats(-99, 99), min_size=4, max_size=4),
    ),
    values,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(entries, max_size=6))
def test_any_annotation_is_used_or_named(tmp_path, annotations):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"images": [image(1), image(2)], "annotations": annotations, "categories": CATEGORIES}))
    found = read_instances(file)
    named = {int(problem.where.rsplit(" ", 1)[1]) for problem in found.problems}
    assert len(named) == len(found.problems)
    assert len(found.coco.dataset["annotations"]) + len(named) == len(annotations)
    for index, entry in enumerate(annotations):
        is_good = (
            isinstance(entry, dict)
            and entry.get("image_id") in (1, 2)
            and entry.get("category_id") in (3, 7)
            and isinstance(entry.get("bbox"), list)
            and len(entry["bbox"]) == 4
            and all(isinstance(value, (int, float)) and abs(value) < 1e300 for value in entry["bbox"])
        )
        if is_good:
            assert index not in named


# --- again ------------------------------------------------------------------------------------


def test_a_second_run_does_nothing_and_a_third_what_changed(source, out):
    rows = [annotation(1, 3, [1, 1, 9, 9]), annotation(2, 3, [1, 1, 9, 9])]
    write_coco(source, rows)
    convert(source, out)
    before = {name: os.stat(out / name).st_mtime_ns for name in tree(out) if "yaml" not in name}
    assert only(convert(source, out)).done_before == 2
    assert {name: os.stat(out / name).st_mtime_ns for name in before} == before
    rows[1]["bbox"] = [2, 2, 9, 9]
    file = source / "annotations/instances_val2017.json"
    content = {**json.loads(file.read_text()), "annotations": rows}
    file.unlink()
    file.write_text(json.dumps(content))
    assert only(convert(source, out)).done_before == 1
    assert label_rows(out / "labels/val2017/000002.txt")[0, 1] == pytest.approx(6.5 / WIDTH, abs=1e-6)
    content["images"] = [image(2)]
    content["annotations"] = rows[1:]
    file.unlink()
    file.write_text(json.dumps(content))
    assert only(convert(source, out)).done_before == 1
    assert set(tree(out / "images")) == {"val2017/000002.jpg"} and set(tree(out / "labels")) == {"val2017/000002.txt"}
    with contextlib.redirect_stdout(io.StringIO()):
        assert len(COCO(str(out / "annotations/instances_val2017.json")).imgs) == 1


def test_a_run_that_was_cut_off_goes_on(source, out):
    images = [image(number) for number in range(1, 9)]
    write_coco(source, [annotation(number, 3, [1, 1, 9, number]) for number in range(1, 9)], images)
    convert(source, out)
    whole = tree(out)
    journal = out / ".yolov5-ema" / "val2017.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    done = json.loads(lines[2])["done"]
    assert len(done) == 8
    cut = json.dumps({"done": done[:3]}).encode() + b"\n"
    journal.write_bytes(lines[0] + cut + b'{"done": [["half')
    for name in ("000005", "000008"):
        (out / "labels/val2017" / f"{name}.txt").unlink()
    (out / "coco.yaml").unlink()
    journal.with_name("x.jsonl").symlink_to("nowhere")
    journal.with_name("y.jsonl").symlink_to("y.jsonl")
    assert only(convert(source, out)).done_before == 3
    for name in ("x.jsonl", "y.jsonl"):
        journal.with_name(name).unlink()
    assert tree(out) == whole


# --- ids that pandas wrote, categories of one name, nothing left ---


def test_ids_that_are_whole_floats(source, tmp_path):
    """As pandas writes a column that once had a missing value."""
    images = [{**image(1), "id": 1.0}, {**image(2), "id": 2}]
    rows = [
        annotation(1, 3.0, [10, 10, 20, 20]),
        annotation(2.0, 7, [5, 5, 8, 8]),
        annotation(1.0, 7.0, [0, 0, 9, 9]),
    ]
    categories = [{"id": 7.0, "name": "cat"}, {"id": 3, "name": "dog"}]
    done = convert_coco(write_coco(source, rows, images, categories), tmp_path / "out")
    assert done.splits[0].tallies["boxes"] == 3 and not done.splits[0].problems
    assert [int(row[0]) for row in label_rows(tmp_path / "out/labels/val2017/000001.txt")] == [0, 1]
    truth = coco_truth(tmp_path / "out/annotations/instances_val2017.json", ("dog", "cat"))
    assert [len(entry.classes) for entry in truth.truths.values()] == [2, 1]
    assert truth.image_ids == {1: "000001.jpg", 2: "000002.jpg"}


@pytest.mark.parametrize("odd", [1.5, float("nan"), float("inf"), True, None, [1], "1"])
def test_ids_that_are_no_numbers_are_named(source, tmp_path, odd):
    rows = [annotation(1, 3, [10, 10, 20, 20]), annotation(2, odd, [5, 5, 8, 8])]
    done = convert_coco(write_coco(source, rows), tmp_path / "out")
    assert [problem.kind for problem in done.splits[0].problems] == ["annotation"]


def test_a_category_without_annotations_may_have_the_name_of_another(source, tmp_path):
    """Roboflow's exports: category 0 stands for the whole set, and has its name."""
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    rows = [annotation(1, 1, [10, 10, 20, 20]), annotation(2, 2, [5, 5, 8, 8])]
    done = convert_coco(write_coco(source, rows, categories=categories), tmp_path / "out")
    dataset = load_dataset(done.yaml_file)
    assert dataset.names == ("cat", "dog")
    assert [stats.class_counts.tolist() for stats in [split_stats(dataset, "val", 640)]] == [[1, 1]]
    rows[1]["category_id"] = 0
    message = r"categories 0 and 1 are both called 'cat', and both are annotated"
    with pytest.raises(UserError, match=message):
        convert_coco(write_coco(source, rows, categories=categories), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [annotation(9, 3, [1, 1, 5, 5])],
            r"none of its 1 annotations can be used; (.|\n)*image_id 9 is not the id of an image",
        ),
        (
            [annotation(1, 3, [1, 1, 5, 5], iscrowd=1)],
            r"none of its 1 annotations can be used \(1 are crowds\)",
        ),
        ([annotation(1, 3, [900, 1, 5, 5])], r"can be used \(1 have no area within their images\)"),
    ],
)
def test_a_set_without_any_box_left_is_refused(source, tmp_path, rows, words):
    with pytest.raises(UserError, match=words):
        convert_coco(write_coco(source, rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_set_without_any_image_left_is_refused(source, tmp_path):
    write_coco(source, [annotation(1, 3, [1, 1, 5, 5])])
    for file in (source / "val2017").iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(
        UserError,
        match=r"none of its images can be used; .*; for one JSON, --images names",
    ):
        convert_coco(source, tmp_path / "out")
    (source / "val2017/000002.jpg").write_bytes(jpeg())  # the one with the box still has none
    with pytest.raises(UserError, match="none of its 1 annotations can be used"):
        convert_coco(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_nobody_annotated_are_a_set(source, tmp_path):
    write_coco(source, [], [image(1), image(2, width=WIDTH + 1)])  # one of another size, which is reported
    assert COMMAND.main([str(source), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out/labels/val2017").glob("*.txt"))) == 2
