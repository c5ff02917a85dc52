"""The VisDrone protocol compared with the official toolkit's own figures, and with loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from protocol_reference import in_region, random_case, visdrone

from yolov5_ema.data.visdrone_format import CLASSES
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.predictions import read_predictions
from yolov5_ema.evaluation.records import Predictions, Truth
from yolov5_ema.evaluation.truths import read_image_sizes, visdrone_truth
from yolov5_ema.evaluation.visdrone import VisDroneProtocol, inside_regions

SAMPLE = Path(__file__).resolve().parents[3] / "shared/data/visdrone_sample"
toolkit = pytest.mark.skipif(not SAMPLE.is_dir(), reason="the toolkit's sample lies beside a checkout, not in it")


def computed(case, names):
    protocol = VisDroneProtocol(names)
    for truth, predictions in case:
        protocol.update(truth, predictions)
    return protocol.compute()


@pytest.fixture(
    scope="module",
    params=[("detections", "expected.json"), ("detections_unsorted", "expected_unsorted.json")],
)
def sample(request):
    """Our result, and that of the toolkit."""
    folder, expected = request.param
    truth = visdrone_truth(SAMPLE / "annotations", read_image_sizes(SAMPLE / "image_sizes.json"))
    found = read_predictions(SAMPLE / folder, truth)
    case = [(entry, found[image]) for image, entry in truth.truths.items()]
    return case, computed(case, CLASSES), json.loads((SAMPLE / expected).read_text())


@toolkit
def test_the_toolkits_totals(sample):
    _, result, expected = sample
    assert set(result.metrics) == set(expected["official"])
    for name, value in expected["official"].items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-6), name


@toolkit
def test_the_toolkits_figures_of_each_class_and_threshold(sample):
    _, result, expected = sample
    for name, figures in expected["per_class"].items():
        ours = result.per_class[name]
        assert set(figures) <= set(ours)
        for metric, value in figures.items():
            if metric == "AR_by_iou":
                for cut, values in value.items():
                    np.testing.assert_allclose(ours[metric][cut], values, atol=1e-6)
            else:
                np.testing.assert_allclose(np.array(ours[metric], float), np.array(value, float), atol=1e-6)


@toolkit
def test_the_plain_mean_over_classes(sample):
    _, result, expected = sample
    for name, value in expected["not_official_unweighted_class_mean"].items():
        assert result.mean_over_classes[name] == pytest.approx(value, abs=1e-6), name


@toolkit
def test_the_toolkits_drop_of_ignored_regions(sample):
    case, _, expected = sample
    for truth, found in case:
        left = expected["rows_left_after_ignored_region_drop"][truth.image]
        assert np.count_nonzero(~inside_regions(truth.boxes, truth)) == left["gt"]
        assert np.count_nonzero(~inside_regions(found.boxes, truth)) == left["det"]


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[] if seed < 20 else [pytest.mark.slow]) for seed in range(40)]
)
def test_against_loops(seed):
    case = random_case(np.random.default_rng(seed))
    if not any((truth.classes[~inside_regions(truth.boxes, truth)] >= 0).any() for truth, _ in case):
        pytest.fail("choose a seed that leaves objects")
    result = computed(case, ["a", "b", "c"])
    assert dict(result.metrics) == pytest.approx(visdrone(case, 3), abs=1e-9)


def test_more_detections_than_count():
    """A class with 600 detections: the only right one is in row 501, and then in row 500 of the file."""
    box = np.array([[10.0, 10, 20, 20]])
    truth = Truth("a", 100, 100, box, np.array([0]), np.array([False]))
    boxes = np.tile([[60.0, 60, 5, 5]], (600, 1))
    scores = np.linspace(0.9, 0.1, 600)
    for row, recall in ((500, 0.0), (499, 100.0)):
        moved = boxes.copy()
        moved[row] = box
        result = computed([(truth, Predictions(moved, scores, np.zeros(600, np.int64)))], ["a"])
        assert result.metrics["AR500"] == recall and result.metrics["AR100"] == 0
        assert result.metrics["AP"] == pytest.approx(recall / 500)


def test_rows_are_cut_in_file_order_before_they_are_sorted():
    box = np.array([[10.0, 10, 20, 20]])
    truth = Truth("a", 100, 100, box, np.array([0]), np.array([False]))
    boxes = np.concatenate([[[60.0, 60, 5, 5]], box])
    result = computed([(truth, Predictions(boxes, np.array([0.1, 0.9]), np.array([0, 0])))], ["a"])
    assert (result.metrics["AR1"], result.metrics["AR10"], result.metrics["AP"]) == (0, 100, 100)


def test_a_score_0_object_counts_in_the_recalls_denominator():
    boxes = np.array([[10.0, 10, 20, 20], [50, 50, 20, 20]])
    truth = Truth("a", 100, 100, boxes, np.array([0, 0]), np.array([False, True]))
    result = computed([(truth, Predictions(boxes, np.array([0.9, 0.8]), np.array([0, 0])))], ["a"])
    assert result.metrics["AP"] == 50 and result.metrics["AR500"] == 50


def test_a_detection_of_others_is_a_false_positive():
    boxes = np.array([[10.0, 10, 20, 20], [50, 50, 20, 20]])
    truth = Truth("a", 100, 100, boxes, np.array([0, -1]), np.array([False, False]))
    result = computed([(truth, Predictions(boxes[::-1], np.array([0.9, 0.8]), np.array([0, 0])))], ["a"])
    assert result.metrics["AP"] == 50


def test_classes_are_weighted_by_images():
    """Class a is found in three images; class b is not found in one."""
    box = np.array([[10.0, 10, 20, 20]])
    found = Predictions(box, np.array([0.9]), np.array([0]))
    case = [(Truth(f"{n}", 100, 100, box, np.array([0]), np.array([False])), found) for n in range(3)]
    case.append((Truth("3", 100, 100, box, np.array([1]), np.array([False])), Predictions()))
    result = computed(case, ["a", "b", "c"])
    assert result.metrics["AP"] == 75 and result.mean_over_classes["AP"] == 50
    assert [result.per_class[name]["in_mean"] for name in "abc"] == [True, True, False]


def test_exactly_half_in_a_region_is_dropped():
    """The mask contains both ends of a region, a box only pixels after its first one: drawn and counted one by one."""
    truth = Truth("a", 100, 100, regions=np.array([[20.0, 20, 9, 59]]))
    boxes = np.array([[9.0, 30, 20, 10], [8, 30, 20, 10], [29, 30, 10, 10], [18.5, 30, 20, 10], [90, 90, 40, 40]])
    found = inside_regions(boxes, truth)
    assert found.tolist() == [in_region(box, truth) for box in boxes]
    assert found.tolist() == [True, False, False, True, False]


def test_no_object_is_an_error():
    inside = Truth(
        "a",
        50,
        50,
        np.array([[5.0, 5, 9, 9]]),
        np.array([0]),
        np.array([False]),
        np.array([[1.0, 1, 40, 40]]),
    )
    with pytest.raises(UserError, match="no object outside ignored regions"):
        computed([(inside, Predictions())], ["a"])


def test_images_without_detections_count():
    box = np.array([[10.0, 10, 20, 20]])
    truths = [Truth(f"{n}", 100, 100, box, np.array([0]), np.array([False])) for n in range(2)]
    case = [(truths[0], Predictions(box, np.array([0.9]), np.array([0]))), (truths[1], Predictions())]
    assert computed(case, ["a"]).metrics["AP"] == 50
