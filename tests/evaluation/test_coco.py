"""The COCO protocol compared with pycocotools itself, number for number."""

from __future__ import annotations

import contextlib
import io
import sys

import numpy as np
import pytest
from protocol_reference import random_case
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.coco import CocoProtocol
from yolov5_ema.evaluation.records import Predictions, Truth

NAMES = ["a", "b", "c"]
TWELVE = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
TWELVE += ["AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"]


LIBRARIES = ("whatever is installed", "pycocotools")


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    if request.param == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    return request.param


def computed(case, **options):
    protocol = CocoProtocol(NAMES, **options)
    for truth, predictions in case:
        protocol.update(truth, predictions)
    return protocol.compute()


def official(case, max_dets=(1, 10, 100)) -> COCOeval:
    """pycocotools on JSON-like dicts that are made directly from the case, without any code of ours."""
    images, objects, detections = [], [], []
    for number, (truth, found) in enumerate(case):
        images.append({"id": number})
        crowds = [(region, label, 1) for region in truth.regions for label in range(3)]
        own = zip(truth.boxes, truth.classes, truth.ignored)
        for box, label, crowd in [*crowds, *((b, c, int(i)) for b, c, i in own if c >= 0)]:
            row = {"id": len(objects) + 1, "image_id": number, "category_id": int(label), "iscrowd": crowd}
            objects.append({**row, "bbox": list(box), "area": box[2] * box[3]})
        for box, score, label in zip(found.boxes, found.scores, found.classes):
            if label >= 0:
                row = {"image_id": number, "category_id": int(label)}
                detections.append({**row, "bbox": list(box), "score": float(score)})
    truth = COCO()
    truth.dataset = {"images": images, "annotations": objects, "categories": [{"id": n} for n in range(3)]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def big_case(seed: int):
    """Sizes from tiny to large, crowds, ties, boxes over the border."""
    rng = np.random.default_rng(seed)
    case = []
    for truth, found in random_case(rng, images=int(rng.integers(2, 5))):
        scale = float(rng.choice([0.25, 1, 2, 5]))
        moved = Truth(truth.image, 1000, 900, truth.boxes * scale, truth.classes, truth.ignored, truth.regions * scale)
        case.append((moved, Predictions(found.boxes * scale, found.scores, found.classes)))
    return case


def has_objects(case) -> bool:
    return any(((truth.classes >= 0) & ~truth.ignored).any() for truth, _ in case)


SEEDS = [seed for seed in range(240) if has_objects(big_case(seed))]
# all cases with the library that is used if it is there, a quarter of them with the other one
BY_LIBRARY = [
    pytest.param(library, seed, marks=[pytest.mark.slow] if library == "pycocotools" and number % 4 else [])
    for number, seed in enumerate(SEEDS)
    for library in LIBRARIES
]


def test_enough_cases():
    assert len(SEEDS) >= 200


@pytest.mark.parametrize(("library", "seed"), BY_LIBRARY, indirect=["library"])
def test_the_twelve_figures(library, seed):
    case = big_case(seed)
    result = computed(case)
    evaluation = official(case)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    expected = [np.nan if value == -1 else value for value in evaluation.stats]
    assert list(result.metrics) == TWELVE
    np.testing.assert_allclose(list(result.metrics.values()), expected, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS[:20])
def test_other_cuts_are_read_from_the_arrays(seed, library):
    case = big_case(seed)
    result = computed(case, max_dets=(2, 5, 500))
    arrays = official(case, (2, 5, 500)).eval
    precision, recall = arrays["precision"], arrays["recall"]
    assert result.metrics["AP"] == pytest.approx(precision[..., 0, -1][precision[..., 0, -1] > -1].mean())
    assert result.metrics["AP50"] == pytest.approx(precision[0, ..., 0, -1][precision[0, ..., 0, -1] > -1].mean())
    for at, cut in enumerate((2, 5, 500)):
        assert result.metrics[f"AR{cut}"] == pytest.approx(recall[:, :, 0, at][recall[:, :, 0, at] > -1].mean())
    for index, name in enumerate(NAMES):
        values = precision[:, :, index, 0, -1]
        expected = np.nan if (values == -1).all() else values[values > -1].mean()
        assert result.per_class[name]["AP"] == pytest.approx(expected, nan_ok=True)


def test_by_size_bounds():
    """One object each of 15, 16.1, 33 and 97 pixels; the first and the last are found."""
    sides = [15.0, 16.1, 33.0, 97.0]
    boxes = np.array([[100.0 * at, 10, side, side] for at, side in enumerate(sides)])
    truth = Truth("a", 500, 200, boxes, np.zeros(4, np.int64), np.zeros(4, bool))
    found = Predictions(boxes[[0, 3]], np.array([0.9, 0.8]), np.zeros(2, np.int64))
    result = computed([(truth, found)], by_size=True)
    assert {size: round(figures["AP50"], 6) for size, figures in result.by_size.items()} == {
        "tiny": 1,
        "small": 0,
        "medium": 0,
        "large": 1,
    }
    assert result.metrics["AP_small"] == pytest.approx(51 / 101)  # tiny and small together: recalls 0 to 0.5
    assert result.by_size["tiny"]["AR100"] == pytest.approx(1)


def test_areas_of_segmentations_decide_the_size():
    box = np.array([[0.0, 0, 100, 100]])
    truth = Truth("a", 500, 200, box, np.array([0]), np.array([False]), areas=np.array([500.0]))
    result = computed([(truth, Predictions(box, np.array([0.9]), np.array([0])))])
    assert result.metrics["AP_small"] == pytest.approx(1) and np.isnan(result.metrics["AP_large"])


def test_nothing_found_is_0_and_what_cannot_be_is_nan(library):
    truth = Truth("a", 100, 100, np.array([[10.0, 10, 20, 20]]), np.array([0]), np.array([False]))
    result = computed([(truth, Predictions())])
    assert result.metrics["AP"] == 0 and result.metrics["AR100"] == 0
    assert np.isnan(result.metrics["AP_large"]) and np.isnan(result.per_class["b"]["AP"])


def test_the_first_object_can_be_matched(library):
    """An annotation with id 0 is never matched in pycocotools; ids start from 1 here."""
    box = np.array([[10.0, 10, 20, 20]])
    truth = Truth("a", 100, 100, box, np.array([0]), np.array([False]))
    assert computed([(truth, Predictions(box, np.array([0.5]), np.array([0])))]).metrics["AP"] == pytest.approx(1)


def test_no_object_is_an_error():
    crowd = Truth("a", 100, 100, np.array([[10.0, 10, 20, 20]]), np.array([0]), np.array([True]))
    with pytest.raises(UserError, match="no object"):
        computed([(crowd, Predictions())])


@pytest.mark.parametrize("cuts", [(), (0, 10), (10, 1), (10, 10)])
def test_cuts_must_ascend(cuts):
    with pytest.raises(UserError, match="ascending"):
        CocoProtocol(NAMES, cuts)
