"""VisDrone2019-DET converted to labels, COCO JSON and a data YAML: values, not only shapes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from drone_set import (
    HEIGHT,
    TEST,
    TRAIN,
    VAL,
    WIDTH,
    jpeg,
    label_rows,
    random_annotations,
    tree,
    write_split,
    zipped,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolov5_ema.data import visdrone
from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.data.masking import hidden_boxes
from yolov5_ema.data.visdrone import convert_visdrone
from yolov5_ema.data.visdrone_chunks import image_id
from yolov5_ema.data.visdrone_format import CLASSES, read_annotations
from yolov5_ema.data.yolo_format import read_labels
from yolov5_ema.errors import UserError


def convert(source, out, **options):
    return convert_visdrone([source], out, workers=1, **options)


def only(conversion):
    (result,) = conversion.splits
    return result


def load_coco(file):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(file))


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


# --- values -----------------------------------------------------------------------------------

BY_HAND = (
    b"10,10,20,10,1,1,0,0,\r\n"  # a pedestrian
    b"-5,60,20,10,1,10,0,0\r\n"  # a motor that reaches over two borders
    b"\r\n"
    b"0,0,30,20,0,0,0,0\r\n"  # an ignored region
    b"50,10,8,8,1,11,0,0\r\n"  # others
    b"40,40,10,10,0,4,0,0\r\n"  # a car of score 0
    b"20,20,0,10,1,4,0,0\r\n"  # no area
    b"96,20,10,10,1,4,0,0\r\n"  # outside
    b"10,10,20,10,1,1,1,2\r\n"  # the pedestrian again
)


def test_one_image_by_hand(source, out):
    write_split(source / VAL, {"a": BY_HAND, "0042": ""})
    done = convert(source, out)
    result = only(done)
    assert result.tallies == {
        "images": 2, "boxes": 2, "background": 1, "regions": 1, "others": 1, "score0": 1, "no_area": 2,
        "clipped": 1, "hidden": 0, "duplicates": 1,
    }  # fmt: skip
    assert not result.problems and done.report is None and not done.notes
    labels = out / VAL / "labels"
    assert (
        labels / "a.txt"
    ).read_text() == "0 0.208333 0.234375 0.208333 0.156250\n9 0.078125 0.968750 0.156250 0.062500\n"
    assert (labels / "0042.txt").read_bytes() == b""
    assert (out / VAL / "annotations" / "a.txt").read_bytes() == BY_HAND
    assert os.path.samefile(out / VAL / "images" / "a.jpg", source / VAL / "images" / "a.jpg")

    content = json.loads((out / "annotations" / "instances_val.json").read_text())
    assert content["images"] == [
        {"id": 42, "file_name": "0042.jpg", "width": WIDTH, "height": HEIGHT},
        {"id": "a", "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT, "others": [[50, 10, 8, 8]]},
    ]
    assert [(entry["id"], entry["name"]) for entry in content["categories"]] == list(enumerate(CLASSES))
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, 15))
    rows = [
        (e["category_id"], e["bbox"], e["area"], e["iscrowd"], e["ignore"], e["visdrone_category"])
        for e in content["annotations"]
    ]
    pedestrian = (0, [10, 10, 20, 10], 200, 0, 0, 1)
    assert rows[:4] == [
        pedestrian,
        (9, [0, 60, 15, 4], 60, 0, 0, 10),
        (3, [40, 40, 10, 10], 100, 1, 1, 4),
        pedestrian,
    ]
    assert rows[4:] == [(cls, [0, 0, 30, 20], 600, 1, 1, 0) for cls in range(10)]
    assert {entry["image_id"] for entry in content["annotations"]} == {"a"}


def test_fractions_of_pixels_stay(source, out):
    write_split(source / VAL, {"a%s": "1.5,2.25,10,4,1,1,0,0\n10,10,5,5,1,2,0,0\n0.5,0,4,4,1,11,0,0\n"})
    convert(source, out)
    content = json.loads((out / "annotations" / "instances_val.json").read_text())
    first, second = content["annotations"]
    assert first["bbox"] == [1.5, 2.25, 10, 4] and first["area"] == 40 and first["image_id"] == "a%s"
    assert all(isinstance(first[key], int) for key in ("id", "category_id", "iscrowd", "visdrone_category"))
    assert second["bbox"] == [10, 10, 5, 5]
    assert content["images"][0]["others"] == [[0.5, 0, 4, 4]]


def test_the_yaml(source, out):
    for folder in (TRAIN, VAL, TEST):
        write_split(source / folder, random_annotations(2))
    shutil.rmtree(source / TEST / "annotations")
    file = convert(source, out).yaml_file
    content = yaml.safe_load(file.read_text())
    assert content == {
        "path": str(out),
        "train": f"{TRAIN}/images",
        "val": f"{VAL}/images",
        "test": f"{TEST}/images",
        "nc": 10,
        "names": list(CLASSES),
        "visdrone_annotations": {"train": f"{TRAIN}/annotations", "val": f"{VAL}/annotations"},
        "coco_annotations": {
            "train": "annotations/instances_train.json",
            "val": "annotations/instances_val.json",
        },
    }
    data = load_dataset(file)
    assert len(data.images("test")) == 2 and data.extra_path("coco_annotations", "val").is_file()
    assert not (out / TEST / "labels").exists() and not (out / "annotations" / "instances_test.json").exists()


def test_labels_round_trip(source, out):
    """Labels give the position of every object to a thousandth of a pixel, in the file's order."""
    write_split(source / TRAIN, random_annotations(30, seed=1))
    result = only(convert(source, out))
    total = 0
    for file in sorted((source / TRAIN / "annotations").iterdir()):
        rows = read_annotations(file).values
        rows = rows[(rows[:, 4] != 0) & (rows[:, 5] >= 1) & (rows[:, 5] <= 10)]
        low = np.maximum(rows[:, :2], 0)
        high = np.minimum(rows[:, :2] + rows[:, 2:4], (WIDTH, HEIGHT))
        kept = (high > low).all(axis=1)
        expected = np.column_stack([rows[:, 5] - 1, low, high])[kept]
        expected = expected[np.sort(np.unique(expected, axis=0, return_index=True)[1])]
        found = read_labels(out / TRAIN / "labels" / file.name, 10)
        assert not found.bad
        center, size = found.values[:, 1:3] * (WIDTH, HEIGHT), found.values[:, 3:] * (WIDTH, HEIGHT)
        again = np.column_stack([found.values[:, 0], center - size / 2, center + size / 2])
        assert again.shape == expected.shape and np.abs(again - expected).max(initial=0) < 1e-3
        total += len(expected)
    assert result.tallies["boxes"] == total > 50


def test_image_ids_are_those_of_yolov5s_own_results():
    assert [image_id(name) for name in ("000042.jpg", "a/7.png", "0_1.jpg", "\u00b2.jpg")] == [
        42,
        7,
        "0_1",
        "\u00b2",
    ]


# --- COCO's tools -----------------------------------------------------------------------------


def evaluate(coco, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        found = coco.loadRes(detections)
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.params.maxDets = [1, 10, 500]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"]  # (IoU, recall, class, size, maxDets)


def detection(entry, score=0.9):
    return {key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": score}


@pytest.fixture
def coco(source, out):
    write_split(source / VAL, random_annotations(25, seed=2))
    convert(source, out)
    return load_coco(out / "annotations" / "instances_val.json")


def test_perfect_detections_score_one_in_each_class(coco):
    evaluated = [entry for entry in coco.anns.values() if not entry["ignore"]]
    precision = evaluate(coco, [detection(entry) for entry in evaluated])
    present = sorted({entry["category_id"] for entry in evaluated})
    assert len(present) == 10
    for cls in present:
        assert precision[:, :, cls, 0, 2].mean() == pytest.approx(1, abs=1e-9)


def test_detections_in_ignored_places_cost_nothing(coco):
    evaluated = [entry for entry in coco.anns.values() if not entry["ignore"]]
    ignored = [entry for entry in coco.anns.values() if entry["ignore"]]
    assert {entry["visdrone_category"] for entry in ignored} > {0, 1, 2}
    more = [detection(entry, 0.99) for entry in ignored]
    precision = evaluate(coco, [detection(entry) for entry in evaluated] + more)
    assert precision[:, :, :, 0, 2].mean() == pytest.approx(1, abs=1e-9)
    nowhere = [detection({**entry, "bbox": [0.0, 0.0, 1.0, 1.0]}, 0.99) for entry in evaluated]
    assert evaluate(coco, [detection(entry) for entry in evaluated] + nowhere)[:, :, :, 0, 2].mean() < 0.9


# --- sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [f"{VAL}/", f"{VAL}/{VAL}/", ""])
def test_an_archive_gives_what_its_folder_gives(tmp_path, out, top):
    split = write_split(tmp_path / "unpacked" / VAL, random_annotations(5))
    convert(tmp_path / "unpacked", out)
    archive = zipped(split, tmp_path / f"{VAL}.zip", top)
    before = archive.read_bytes()
    convert(archive, tmp_path / "from_zip")
    ours, theirs = tree(tmp_path / "from_zip"), tree(out)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"visdrone.yaml"}  # the path in it
    assert archive.read_bytes() == before


def test_one_split_folder_and_several_sources(tmp_path, out):
    split = write_split(tmp_path / "a" / VAL, random_annotations(2))
    other = write_split(tmp_path / "b" / TRAIN, random_annotations(3))
    archive = zipped(other, tmp_path / f"{TRAIN}.zip", f"{TRAIN}/")
    done = convert_visdrone([split, archive], out, workers=1)
    assert [(result.split, result.tallies["images"]) for result in done.splits] == [("train", 3), ("val", 2)]


def test_a_later_run_adds_a_split(tmp_path, out):
    convert(write_split(tmp_path / "a" / TRAIN, random_annotations(2)), out)
    done = convert(write_split(tmp_path / "b" / VAL, random_annotations(2)), out)
    content = yaml.safe_load(done.yaml_file.read_text())
    assert content["train"] and content["val"] and set(content["coco_annotations"]) == {"train", "val"}


def test_a_folder_goes_before_the_archive_it_came_from(source, out):
    split = write_split(source / VAL, random_annotations(2))
    zipped(split, source / f"{VAL}.zip", f"{VAL}/")
    done = convert(source, out)
    assert only(done).tallies["images"] == 2
    assert done.notes == [f"{VAL} is taken from the folder {split}; its archive is not read"]


def test_a_split_that_is_there_twice(tmp_path, out):
    for name in "ab":
        write_split(tmp_path / "source" / name / VAL, {"a": ""})
    with pytest.raises(UserError, match=f"{VAL} was found twice: .*/a/{VAL} and .*/b/{VAL}"):
        convert(tmp_path / "source", out)


def test_challenge_images_are_test_when_there_is_no_other(source, out):
    folder = "VisDrone2019-DET-test-challenge"
    split = write_split(source / folder, {"a": None})
    (split / "annotations").rmdir()
    done = convert(source, out)
    assert not only(done).annotated and only(done).tallies == {"images": 1}
    assert yaml.safe_load(done.yaml_file.read_text())["test"] == f"{folder}/images"
    write_split(source / TEST, {"b": ""})
    done = convert(source, out)
    assert f"{folder} is not used" in done.notes[0]
    assert yaml.safe_load(done.yaml_file.read_text())["test"] == f"{TEST}/images"


def test_training_without_annotations_is_not_in_the_yaml(source, out):
    shutil.rmtree(write_split(source / TRAIN, {"a": None}) / "annotations")
    done = convert(source, out)
    assert done.yaml_file is None and not only(done).annotated
    assert (out / TRAIN / "images" / "a.jpg").is_file() and not (out / TRAIN / "labels").exists()


@pytest.mark.parametrize(
    "entry",
    ["../evil.txt", "/etc/evil.txt", f"{VAL}/images/../../../evil.jpg", "C:\\evil.txt", "..\\evil.txt"],
)
def test_an_archive_that_would_write_outside(tmp_path, out, entry):
    archive = zipped(write_split(tmp_path / "s" / VAL, {"a": ""}), tmp_path / f"{VAL}.zip", f"{VAL}/")
    with zipfile.ZipFile(archive, "a") as stream:
        stream.writestr(entry, "evil")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="outside the folder") as caught:
        convert(archive, out)
    assert repr(entry) in str(caught.value) and str(archive) in str(caught.value)
    assert set(tmp_path.rglob("*")) == before


def test_an_archive_with_a_symbolic_link(tmp_path, out):
    archive = zipped(write_split(tmp_path / "s" / VAL, {"a": ""}), tmp_path / f"{VAL}.zip", f"{VAL}/")
    link = zipfile.ZipInfo(f"{VAL}/images/link.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "a") as stream:
        stream.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=f"{VAL}/images/link.jpg' is a symbolic link"):
        convert(archive, out)
    assert not out.exists()


def test_archives_that_are_cut_off_or_none(tmp_path, out):
    archive = zipped(write_split(tmp_path / "s" / VAL, {"a": ""}), tmp_path / f"{VAL}.zip", f"{VAL}/")
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(UserError, match=rf"{VAL}\.zip is not a zip file, or it is cut off"):
        convert(archive, out)
    with pytest.raises(UserError, match=rf"{VAL}\.zip is not a zip file, or it is cut off"):
        convert(tmp_path, tmp_path.parent / f"{tmp_path.name}-out")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as stream:
        stream.writestr("x.txt", "x")
    with pytest.raises(UserError, match="has no folder images/"):
        convert(tmp_path / "other.zip", out)
    assert not out.exists()


def test_an_entry_that_is_damaged(tmp_path, out):
    split = write_split(tmp_path / "s" / VAL, {"a": "", "b": "1,1,5,5,1,1,0,0"})
    archive = tmp_path / f"{VAL}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as stream:
        for file in sorted(split.rglob("*.*")):
            stream.write(file, f"{VAL}/{file.relative_to(split)}")
    content, picture = archive.read_bytes(), (split / "images" / "a.jpg").read_bytes()
    archive.write_bytes(content.replace(picture, picture[:400] + b"!!" + picture[402:]))
    result = only(convert(archive, out))
    assert [(p.kind, p.where) for p in result.problems] == [("image", f"{archive}:{VAL}/images/a.jpg")]
    assert "is damaged in the archive" in result.problems[0].reason
    assert os.listdir(out / VAL / "images") == ["b.jpg"]
    with pytest.raises(UserError, match=r"--strict: nothing was written\n(.|\n)*a\.jpg"):
        convert(archive, out.with_name("strict"), strict=True)
    assert not out.with_name("strict").exists()


def test_places_that_cannot_be(tmp_path, source, out):
    write_split(source / VAL, {"a": ""})
    with pytest.raises(UserError, match="is the same as the source"):
        convert(source, source)
    with pytest.raises(UserError, match="is inside the source"):
        convert(source, source / "out")
    with pytest.raises(UserError, match="is inside the source"):
        convert(source / VAL, source / VAL / "images" / "out")
    with pytest.raises(UserError, match="would be overwritten: it holds the source"):
        convert(source / VAL, source)
    with pytest.raises(UserError, match="there is no such file or folder"):
        convert(tmp_path / "nowhere", out)
    (tmp_path / "nothing" / "x").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"looked for {TRAIN}\.zip, {VAL}\.zip"):
        convert(tmp_path / "nothing", out)
    write_split(tmp_path / "nameless", {"a": ""})
    with pytest.raises(UserError, match="its name does not say which split"):
        convert(tmp_path / "nameless", out)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="is a file; give a folder"):
        convert(source, tmp_path / "file")
    (out / VAL).mkdir(parents=True)
    (out / VAL / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="is not empty and was not made by this command"):
        convert(source, out)
    (tmp_path / "bare" / VAL / "images").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        convert(tmp_path / "bare", tmp_path / "bare-out")
    assert (out / VAL / "mine.txt").read_text() == "kept"


def test_archives_larger_than_the_disk(tmp_path, out, monkeypatch):
    archive = zipped(write_split(tmp_path / "s" / VAL, {"a": ""}), tmp_path / f"{VAL}.zip", f"{VAL}/")
    monkeypatch.setattr(visdrone.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UserError, match="are needed to unpack the archives"):
        convert(archive, out)
    assert not out.exists()


# --- what is wrong in a source ----------------------------------------------------------------


@pytest.fixture
def faulty(source):
    """Six images with five mistakes."""
    annotations = {
        "a": "1,1,5,5,1,1,0,0\nnonsense\n2,2,5,5,1,2,0,0\n1,1,5,5,1,12,0,0\n",
        "b": "1,1,5,5,1,1,0,0\n",
        "c": None,
        "d": "3,3,5,5,1,3,0,0\n",
        "e": "",
    }
    split = write_split(source / TRAIN, annotations)
    (split / "images" / "b.jpg").write_bytes(b"no image")
    (split / "images" / "d.png").write_bytes((split / "images" / "d.jpg").read_bytes())
    (split / "annotations" / "z.txt").write_text("")
    return split


def test_what_is_wrong_is_named_counted_and_left_out(faulty, source, out):
    done = convert(source, out)
    problems = only(done).problems
    assert sorted((problem.kind, problem.where.split(f"{TRAIN}/")[1]) for problem in problems) == [
        ("image", "images/b.jpg"),
        ("image", "images/d.png"),
        ("line", "annotations/a.txt, line 2"),
        ("line", "annotations/a.txt, line 4"),
        ("no annotation", "images/c.jpg"),
        ("no image", "annotations/z.txt"),
    ]
    assert only(done).tallies["images"] == 3
    assert sorted(os.listdir(out / TRAIN / "images")) == ["a.jpg", "d.jpg", "e.jpg"]
    assert sorted(os.listdir(out / TRAIN / "labels")) == ["a.txt", "d.txt", "e.txt"]
    assert label_rows(out / TRAIN / "labels" / "a.txt")[:, 0].tolist() == [0, 1]
    report = json.loads(done.report.read_text())["train"]
    assert report["counts"] == {"image": 2, "line": 2, "no annotation": 1, "no image": 1}
    assert len(report["problems"]) == 6 and all(row["reason"] for row in report["problems"])
    content = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "d.jpg", "e.jpg"]


def test_a_second_run_says_the_same_and_a_mended_source_is_taken(faulty, source, out):
    first = convert(source, out)
    before = {
        name: os.stat(out / name).st_mtime_ns for name in tree(out) if "report" not in name and "yaml" not in name
    }
    again = convert(source, out)
    assert sorted(only(again).problems) == sorted(only(first).problems)
    assert only(again).tallies == only(first).tallies and only(again).done_before == 4
    assert {name: os.stat(out / name).st_mtime_ns for name in before} == before, "written again"
    (faulty / "images" / "b.jpg").write_bytes(jpeg())
    (faulty / "images" / "d.png").unlink()
    (faulty / "annotations" / "z.txt").unlink()
    (faulty / "annotations" / "c.txt").write_text("")
    (faulty / "annotations" / "a.txt").write_text("1,1,5,5,1,1,0,0\n")
    mended = convert(source, out)
    assert not only(mended).problems and mended.report is None and not (out / "conversion_report.json").exists()
    assert only(mended).tallies["images"] == 5 and only(mended).done_before == 2
    assert len(label_rows(out / TRAIN / "labels" / "a.txt")) == 1


def test_strict_writes_nothing(faulty, source, out):
    with pytest.raises(UserError) as caught:
        convert(source, out, strict=True)
    message = str(caught.value)
    assert "--strict: nothing was written" in message
    assert "annotations/a.txt, line 2: 'nonsense' is not a number" in message
    assert "2 malformed lines, 2 images that cannot be used, 1 image without an annotation file" in message
    assert not out.exists()


def test_strict_after_another_run_leaves_its_files(faulty, source, out):
    convert(source, out)
    before = tree(out)
    with pytest.raises(UserError):
        convert(source, out, strict=True)
    assert tree(out) == before


def test_only_ten_are_shown_of_many(source, out):
    write_split(source / VAL, {"a": "bad\n" * 25})
    with pytest.raises(UserError, match=r"25 malformed lines(.|\n)*line 10: (.|\n)*and 15 more$"):
        convert(source, out, strict=True)
    assert len(only(convert(source, out)).problems) == 25


lines = st.lists(
    st.one_of(
        st.builds(
            lambda x, y, cls: f"{x},{y},4,4,1,{cls},0,0",
            st.integers(0, 90),
            st.integers(0, 60),
            st.integers(1, 10),
        ),
        st.sampled_from(["", "1,2,3", "x", "1,1,4,4,1,12,0,0", "1,1,4,4,1,1,0,0,0", "nan,1,4,4,1,1,0,0", ","]),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lines, min_size=1, max_size=3))
def test_whatever_lines_there_are_good_ones_become_labels_and_bad_ones_are_named_once(tmp_path, files):
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        write_split(source / VAL, {f"i{index}": "\n".join(lines) for index, lines in enumerate(files)})
        bad, good = [], 0
        for index, of_file in enumerate(files):
            rows = [line for line in of_file if line.endswith(",0,0") and line.count(",") == 7 and "nan" not in line]
            rows = [line for line in rows if ",12,0,0" not in line]
            good += len(set(rows))
            bad += [
                f"i{index}.txt, line {n}" for n, line in enumerate(of_file, 1) if line.strip(",") and line not in rows
            ]
        if bad:
            with pytest.raises(UserError, match=f"{len(bad)} malformed line"):
                convert(source, out, strict=True)
            assert not out.exists()
        result = only(convert(source, out))
        assert [problem.where.rsplit("/", 1)[1] for problem in result.problems] == bad
        assert result.tallies["boxes"] == good
        assert sum(len(label_rows(file)) for file in (out / VAL / "labels").iterdir()) == good


def test_an_image_that_became_unusable_leaves_no_old_results(source, out):
    split = write_split(source / VAL, {"a": "1,1,5,5,1,1,0,0", "b": ""})
    convert(source, out)
    (split / "images" / "a.jpg").unlink()  # so that nothing is written through the link
    (split / "images" / "a.jpg").write_bytes(b"no image")
    convert(source, out)
    assert set(tree(out / VAL)) == {"images/b.jpg", "labels/b.txt", "annotations/b.txt"}


# --- again ------------------------------------------------------------------------------------


def test_what_changed_in_the_source_is_done_anew_and_what_is_gone_goes(source, out):
    split = write_split(source / TRAIN, random_annotations(6, seed=5))
    convert(source, out)
    first, second, third, *_ = sorted(path.stem for path in (split / "annotations").iterdir())
    (split / "annotations" / f"{first}.txt").write_text("1,1,5,5,1,1,0,0\n")
    (split / "images" / f"{second}.jpg").unlink()
    (split / "annotations" / f"{second}.txt").unlink()
    (out / TRAIN / "labels" / f"{third}.txt").unlink()
    (split / "images" / "new.jpg").write_bytes(jpeg())
    (split / "annotations" / "new.txt").write_text("")
    assert only(convert(source, out)).done_before == 3
    convert(source, out.with_name("fresh"))
    ours, fresh = tree(out), tree(out.with_name("fresh"))
    assert {name for name in ours.keys() | fresh.keys() if ours.get(name) != fresh.get(name)} == {"visdrone.yaml"}


def test_files_of_others_in_the_folder_stay(source, out):
    write_split(source / VAL, {"a": ""})
    convert(source, out)
    (out / VAL / "images" / "mine.jpg").write_bytes(b"mine")
    (out / VAL / "labels.cache").write_bytes(b"YOLOv5's")
    convert(source, out, copy=True)
    assert (out / VAL / "images" / "mine.jpg").read_bytes() == b"mine"
    assert (out / VAL / "labels.cache").exists()


def test_annotations_that_went_take_the_labels_with_them(source, out):
    split = write_split(source / VAL, {"a": "1,1,5,5,1,1,0,0"})
    convert(source, out)
    shutil.rmtree(split / "annotations")
    done = convert(source, out)
    assert set(tree(out / VAL)) == {"images/a.jpg"} and done.yaml_file is None


def test_copies_when_asked(source, out):
    split = write_split(source / VAL, {"a": ""})
    convert(source, out)
    convert(source, out, copy=True)
    for kind, name in (("images", "a.jpg"), ("annotations", "a.txt")):
        assert not os.path.samefile(split / kind / name, out / VAL / kind / name)


def test_a_jpeg_that_yolov5_would_mend_in_place_is_copied(source, out):
    split = write_split(source / VAL, {"a": "", "b": ""})
    odd = split / "images" / "a.jpg"
    odd.write_bytes(odd.read_bytes() + b"trailing")
    convert(source, out)
    assert not os.path.samefile(odd, out / VAL / "images" / "a.jpg")
    assert os.path.samefile(split / "images" / "b.jpg", out / VAL / "images" / "b.jpg")


def test_many_processes_write_what_one_writes(source, out):
    write_split(source / TRAIN, random_annotations(150, seed=3, objects=4))
    convert(source, out)
    one = tree(out)
    shutil.rmtree(out)
    convert_visdrone([source], out, workers=3)
    assert tree(out) == one


# --- ignored regions --------------------------------------------------------------------------


def test_regions_are_greyed_and_hide_boxes(source, out):
    regions = "10,10,40,20,0,0,0,0\n90,50,20,30,0,0,0,0\n"
    objects = "12,12,10,10,1,1,0,0\n40,10,20,10,1,4,0,0\n41,10,20,10,1,5,0,0\n70,40,8,8,1,6,0,0\n"
    for folder in (TRAIN, VAL):
        write_split(source / folder, {"a": regions + objects, "b": "1,1,5,5,1,1,0,0\n"})
    done = convert(source, out, mask_ignored=True)
    assert [result.tallies["hidden"] for result in done.splits] == [2, 0]
    # an object that is hidden by half counts as hidden
    assert label_rows(out / TRAIN / "labels" / "a.txt")[:, 0].tolist() == [4, 5]
    assert label_rows(out / VAL / "labels" / "a.txt")[:, 0].tolist() == [0, 3, 4, 5]
    images = [np.asarray(Image.open(root / TRAIN / "images" / "a.jpg")).astype(int) for root in (source, out)]
    grey = np.zeros((HEIGHT, WIDTH), bool)
    grey[10:30, 10:50] = grey[50:, 90:] = True
    inner = np.zeros_like(grey)
    inner[16:24, 16:44] = True  # away from the edges, where JPEG's blocks contain both
    assert np.abs(images[1][inner] - 114).max() <= 1
    assert np.abs(images[1][grey] - 114).mean() < 4
    outside = np.abs(images[1] - images[0]).mean(axis=2)[~grey]
    assert outside.mean() < 3
    for name in (f"{TRAIN}/images/b.jpg", f"{VAL}/images/a.jpg"):
        assert os.path.samefile(source / name, out / name)
    assert not os.path.samefile(source / TRAIN / "images" / "a.jpg", out / TRAIN / "images" / "a.jpg")


def test_what_several_regions_hide_is_counted_once():
    regions = np.array([[0, 0, 4, 10], [2, 0, 4.9, 10], [50, 50, 60, 60]])
    boxes = np.array([[0, 0, 10, 10], [0, 0, 9.8, 10], [52, 52, 53, 53], [20, 20, 30, 30], [2, 2, 2, 5]])
    assert hidden_boxes(boxes, regions).tolist() == [False, True, True, False, False]


def test_masks_go_and_come_with_the_flag(source, out):
    write_split(source / TRAIN, {"a": "10,10,40,20,0,0,0,0\n12,12,10,10,1,1,0,0\n"})
    original = (source / TRAIN / "images" / "a.jpg").read_bytes()
    for masked in (False, True, False):
        result = only(convert(source, out, mask_ignored=masked))
        assert result.done_before == 0
        assert ((out / TRAIN / "images" / "a.jpg").read_bytes() == original) is not masked
        assert len(label_rows(out / TRAIN / "labels" / "a.txt")) == (0 if masked else 1)
        assert (source / TRAIN / "images" / "a.jpg").read_bytes() == original
        assert only(convert(source, out, mask_ignored=masked)).done_before == 1


def test_an_image_that_cannot_be_decoded_cannot_be_masked(source, out):
    split = write_split(source / TRAIN, {"a": "10,10,40,20,0,0,0,0\n", "b": "1,1,5,5,1,1,0,0\n"})
    stream = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(stream, "PNG")
    (split / "images" / "a.jpg").unlink()
    (split / "images" / "a.png").write_bytes(stream.getvalue()[:60])  # only the header
    result = only(convert(source, out, mask_ignored=True))
    assert [(p.kind, p.where.rsplit("/", 1)[1]) for p in result.problems] == [("image", "a.png")]
    assert "cannot be decoded" in result.problems[0].reason
    assert set(tree(out / TRAIN)) == {"images/b.jpg", "labels/b.txt", "annotations/b.txt"}
    content = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert [image["id"] for image in content["images"]] == ["b"]
