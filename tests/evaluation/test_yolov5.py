"""YOLOv5's protocol compared with YOLOv5's own functions, and with loops for the rules of later releases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from protocol_reference import random_case, yolov5

from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.records import Predictions, Truth
from yolov5_ema.evaluation.yolov5 import Yolov5Protocol

NAMES = ("a", "b", "c")


def case_of(seed: int, images: int = 4):
    """A random case without equal scores, so that YOLOv5's unstable sort has only one order."""
    rng = np.random.default_rng(seed)
    case = random_case(rng, images=images)
    total = sum(len(found.scores) for _, found in case)
    scores = iter((rng.permutation(total) + 1) / (total + 2))
    out = []
    for truth, found in case:
        own = np.array([next(scores) for _ in found.scores], dtype=np.float32).astype(np.float64)
        out.append((truth, Predictions(found.boxes, own, found.classes)))
    return out


def computed(case, release):
    protocol = Yolov5Protocol(NAMES, release)
    for truth, predictions in case:
        protocol.update(truth, predictions)
    return protocol.compute()


def by_yolov5(case, engine) -> dict[str, float]:
    """As `val.run` combines its functions."""
    val = engine.module("val")
    thresholds = torch.linspace(0.5, 0.95, 10)
    stats = []
    for truth, found in case:
        best = found.by_score()
        used, counted = best.classes >= 0, (truth.classes >= 0) & ~truth.ignored
        rows = np.concatenate([best.boxes, best.scores[:, None], best.classes[:, None]], axis=1)[used]
        rows[:, 2:4] += rows[:, :2]
        boxes, labels = truth.boxes[counted], truth.classes[counted]
        targets = np.concatenate([labels[:, None], boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        detections, targets = torch.tensor(rows).float(), torch.tensor(targets).float()
        correct = torch.zeros(len(detections), 10, dtype=torch.bool)
        if len(targets) and len(detections):
            correct = val.process_batch(detections, targets, thresholds)
        stats.append((correct.numpy(), detections[:, 4].numpy(), detections[:, 5].numpy(), labels))
    hits, scores, classes, labels = (np.concatenate(part) for part in zip(*stats))
    if not hits.any():
        return dict.fromkeys(("P", "R", "mAP50", "mAP50-95"), 0.0)
    found = val.ap_per_class(hits, scores, classes, labels, names=dict(enumerate(NAMES)))
    precision, recall, ap = found[:3] if len(found) == 5 else (found[2], found[3], found[5])  # v6.2: tp, fp before
    return {"P": precision.mean(), "R": recall.mean(), "mAP50": ap[:, 0].mean(), "mAP50-95": ap.mean()}


@pytest.mark.parametrize("seed", range(60))
def test_against_yolov5_itself(seed, engine):
    case = case_of(seed)
    release = "6.0" if engine.version.startswith(("6.0", "6.1")) else "6.2"
    assert dict(computed(case, release).metrics) == pytest.approx(by_yolov5(case, engine), abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_later_releases_against_loops(seed):
    case = case_of(seed)
    assert dict(computed(case, "6.2").metrics) == pytest.approx(yolov5(case, 3), abs=1e-6)


def test_the_releases_differ():
    """At IoU 0.9, v6.0 keeps the pair that it chose at IoU 0.5; later releases choose again."""
    truth = Truth("a", 200, 200, np.array([[0.0, 0, 100, 100]]), np.array([0]), np.array([False]))
    boxes = np.array([[0.0, 0, 100, 70], [0, 0, 100, 95]])
    found = Predictions(boxes, np.array([0.9, 0.8]), np.array([0, 0]))
    before, since = (computed([(truth, found)], release).metrics["mAP50-95"] for release in ("6.0", "6.2"))
    assert before == pytest.approx(0.995 * 0.5)  # thresholds 0.50 to 0.70
    # 0.75 to 0.95: found by the second detection, at half the precision
    assert since == pytest.approx((5 * 0.995 + 5 * (0.5 * 0.995)) / 10, abs=3e-3)


def test_a_perfect_detector_has_0_995():
    """The curve ends at (1, 0), so the last of 100 trapezoids is a triangle."""
    box = np.array([[10.0, 10, 20, 20]])
    truth = Truth("a", 100, 100, box, np.array([1]), np.array([False]))
    result = computed([(truth, Predictions(box, np.array([0.5]), np.array([1])))], "6.2")
    assert result.metrics["mAP50"] == pytest.approx(0.995) and result.metrics["R"] == 1
    assert list(result.per_class) == ["b"] and result.per_class["b"]["labels"] == 1


def test_300_detections_of_an_image_count():
    box = np.array([[10.0, 10, 20, 20]])
    truth = Truth("a", 100, 100, box, np.array([0]), np.array([False]))
    boxes = np.tile([[60.0, 60, 5, 5]], (400, 1))
    boxes[300] = box
    found = Predictions(boxes, np.linspace(0.9, 0.1, 400), np.zeros(400, np.int64))
    assert computed([(truth, found)], "6.0").metrics["mAP50"] == 0
    protocol = Yolov5Protocol(NAMES, "6.0", max_det=301)
    protocol.update(truth, found)
    assert protocol.compute().metrics["mAP50"] > 0


def test_nothing_found_is_0():
    truth = Truth("a", 100, 100, np.array([[10.0, 10, 20, 20]]), np.array([0]), np.array([False]))
    assert dict(computed([(truth, Predictions())], "6.0").metrics) == dict.fromkeys(("P", "R", "mAP50", "mAP50-95"), 0)


def test_no_label_and_no_such_release_are_errors():
    with pytest.raises(UserError, match="no object"):
        computed([(Truth("a", 9, 9), Predictions())], "6.0")
    with pytest.raises(UserError, match=r"6\.0, 6\.2"):
        Yolov5Protocol(NAMES, "5.0")
