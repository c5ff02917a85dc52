"""Whatever files contain, reading and evaluating them gives figures or a UserError."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from yolov5_ema.errors import UserError
from yolov5_ema.evaluation import CocoProtocol, ConfusionMatrix, VisDroneProtocol, Yolov5Protocol
from yolov5_ema.evaluation.predictions import read_predictions
from yolov5_ema.evaluation.truths import coco_truth, read_image_sizes, visdrone_truth

NUMBERS = st.one_of(
    st.integers(-3, 30),
    st.floats(width=32),
    st.sampled_from([0, 1, 7, 1e300, -1e300, 2**40, math.nan, math.inf, True, None, "1", "x"]),
)
JUNK = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
BOX = st.lists(NUMBERS, min_size=4, max_size=4) | JUNK


def rows(**fields: st.SearchStrategy) -> st.SearchStrategy:
    """Entries with these fields, some of which are missing, and some values that are not entries."""
    return st.lists(st.fixed_dictionaries({}, optional=fields) | st.fixed_dictionaries(fields) | JUNK, max_size=4)


IMAGES = rows(
    id=st.sampled_from([1, 2, "a", None, 1.5]) | JUNK,
    file_name=st.sampled_from(["a.jpg", "b.jpg", 3]),
    width=NUMBERS,
    height=NUMBERS,
)
ANNOTATIONS = rows(
    image_id=st.sampled_from([1, 2, "a"]) | JUNK,
    category_id=st.sampled_from([1, 2]) | JUNK,
    bbox=BOX,
    area=NUMBERS,
    iscrowd=NUMBERS,
    visdrone_category=st.sampled_from([0, 4]),
)
CATEGORIES = rows(id=st.sampled_from([1, 2]) | JUNK, name=st.sampled_from(["car", "bus", 3]))
INSTANCES = st.fixed_dictionaries({"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES}) | JUNK
RESULTS = (
    rows(
        image_id=st.sampled_from([1, 2, "a", "b"]) | JUNK,
        category_id=st.sampled_from([1, 2]) | JUNK,
        bbox=BOX,
        score=NUMBERS,
    )
    | JUNK
)
LINE = st.lists(
    st.one_of(st.integers(-5, 60), st.floats(width=32), st.sampled_from(["", "x", "1e400", "1_0"])),
    max_size=9,
)
TEXT = st.lists(LINE.map(lambda values: ",".join(map(str, values))), max_size=5).map("\n".join) | st.text(max_size=40)
GOOD_TRUTH = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 40}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
}


def evaluated(truth, predictions) -> None:
    for protocol in (Yolov5Protocol(truth.names), CocoProtocol(truth.names), VisDroneProtocol(truth.names)):
        for image, entry in truth.truths.items():
            protocol.update(entry, predictions[image])
        with contextlib.suppress(UserError):
            protocol.compute()
    matrix = ConfusionMatrix(truth.names)
    for image, entry in truth.truths.items():
        matrix.update(entry, predictions[image])


def attempt(truth_of, results, suffix: str) -> None:
    """Read the files, and evaluate what could be read."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(UserError):
        truth = truth_of(Path(folder))
        place = Path(folder) / f"results{suffix}"
        if suffix:
            place.write_text(json.dumps(results))
        else:
            place.mkdir()
            (place / "a.txt").write_text(results)
        evaluated(truth, read_predictions(place, truth, missing_as_empty=True))


def from_json(content):
    def read(folder: Path):
        (folder / "instances.json").write_text(json.dumps(content))
        return coco_truth(folder / "instances.json")

    return read


@settings(max_examples=150, deadline=None)
@given(INSTANCES)
def test_instances(content):
    results = [{"image_id": "a", "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.5}]
    attempt(from_json(content), results, ".json")


@settings(max_examples=300, deadline=None)
@given(RESULTS)
def test_results(content):
    attempt(from_json(GOOD_TRUTH), content, ".json")


@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT)
def test_text_files(annotations, results):
    def read(folder: Path):
        (folder / "annotations").mkdir()
        (folder / "annotations" / "a.txt").write_text(annotations)
        return visdrone_truth(folder / "annotations", {"a": (50, 40)})

    attempt(read, results, "")


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b.jpg"]), JUNK | st.lists(NUMBERS, min_size=2, max_size=2)) | JUNK)
def test_image_sizes(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sizes.json"
        file.write_text(json.dumps(content))
        with contextlib.suppress(UserError):
            sizes = read_image_sizes(file)
            assert all(isinstance(side, int) and side > 0 for size in sizes.values() for side in size)
