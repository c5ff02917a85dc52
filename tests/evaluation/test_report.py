"""Tables, JSON, CSV, pictures and the confusion matrix."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import cv2
import numpy as np

from yolov5_ema.evaluation import plots, report
from yolov5_ema.evaluation.confusion import ConfusionMatrix
from yolov5_ema.evaluation.records import Predictions, Truth
from yolov5_ema.evaluation.results import Curve, Result

YOLOV5 = Result(
    "yolov5",
    "fraction",
    {"P": 0.5, "R": 0.25, "mAP50": 0.4, "mAP50-95": 0.2},
    {"car": {"AP50": 0.4, "AP": 0.2}},
)
VISDRONE = Result(
    "visdrone",
    "percent",
    {"AP": 21.0, "AP50": 41.0, "AR1": 3.0},
    {"car": {"AP": 21.0, "AP50": 41.0, "in_mean": True}, "bus": {"AP": 0.0, "AP50": 0.0, "in_mean": False}},
    mean_over_classes={"AP": 20.0, "AP50": 40.0, "AR1": 2.5},
)
COCO = Result(
    "coco",
    "fraction",
    {"AP": 0.1, "AP50": 0.3, "AP_large": float("nan")},
    {"car": {"AP": 0.1, "AP50": float("nan")}},
    by_size={size: {"AP": 0.5, "AP50": float("nan")} for size in ("tiny", "small", "medium", "large")},
)


def rows_of(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


def test_side_by_side_is_in_percent():
    assert rows_of(report.side_by_side([YOLOV5, COCO, VISDRONE])) == [
        ["%", "yolov5", "coco", "visdrone"],
        ["AP50:95", "20.00", "10.00", "21.00"],
        ["AP50", "40.00", "30.00", "41.00"],
        ["precision", "50.00", "-", "-"],
        ["recall", "25.00", "-", "-"],
        ["AR1", "-", "-", "3.00"],
    ]
    with_means = rows_of(report.side_by_side([VISDRONE], mean_over_classes=True))
    assert with_means[1] == ["AP50:95", "21.00", "20.00"]


def test_differences_are_in_percentage_points():
    less = Result("yolov5", "fraction", {"mAP50": 0.41, "mAP50-95": 0.1988}, {})
    other = dataclasses.replace(VISDRONE, metrics={"AP": 20.0, "AP50": 41.0})
    table = report.difference_table([less, VISDRONE], [YOLOV5, other])
    assert rows_of(table) == [
        ["minus", "float32", "yolov5", "visdrone"],
        ["AP50:95", "-0.12", "+1.00"],
        ["AP50", "+1.00", "+0.00"],
    ]


def test_tables_of_classes_and_sizes():
    assert rows_of(report.class_table([COCO, VISDRONE]))[1:] == [
        ["car", "10.00", "-", "21.00", "41.00"],
        ["bus", "-", "-", "-", "-"],
    ]
    assert rows_of(report.size_table(COCO))[1] == ["tiny", "(below", "16", "px)", "50.00", "-"]


def test_json_keeps_units_and_has_null_for_what_is_not():
    content = json.loads(report.as_json([COCO, VISDRONE]))
    assert content["coco"]["AP"] == 0.1 and content["coco"]["unit"] == "fraction"
    assert content["coco"]["AP_large"] is None and content["coco"]["by_size"]["tiny"] == {
        "AP": 0.5,
        "AP50": None,
    }
    assert content["visdrone"]["AP"] == 21 and content["visdrone"]["per_class"]["car"]["AP50"] == 41
    assert content["visdrone"]["mean_over_classes"]["AP"] == 20


def test_csv_has_a_row_a_figure():
    rows = list(csv.DictReader(io.StringIO(report.as_csv([COCO, VISDRONE]))))
    assert {"protocol": "coco", "class": "all", "metric": "AP", "value": "0.1", "unit": "fraction"} in rows
    assert {
        "protocol": "coco",
        "class": "all, tiny",
        "metric": "AP",
        "value": "0.5",
        "unit": "fraction",
    } in rows
    assert ("visdrone", "bus", "AP", "0.0") in {(r["protocol"], r["class"], r["metric"], r["value"]) for r in rows}
    assert not any(row["metric"] == "AP_large" for row in rows)


def test_curves_between_their_points():
    recall, precision = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.6, 0.0])
    at = np.array([0.0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(Curve(recall, precision).at(at), [1, 0.8, 0.6, 0.3])
    np.testing.assert_allclose(Curve(recall, precision, is_stepped=True).at(at), [1, 0.6, 0.6, 0])


def test_confusion_matrix():
    """A class-0 object found as class 1, a missed one, an ignored one with a hit; a false detection, and a weak one."""
    boxes = np.array([[0.0, 0, 20, 20], [40, 0, 20, 20], [80, 0, 20, 20]])
    truth = Truth(
        "a",
        200,
        200,
        boxes,
        np.array([0, 1, 0]),
        np.array([False, False, True]),
        np.array([[150.0, 150, 50, 50]]),
    )
    found = np.array([[1.0, 0, 20, 20], [80, 0, 20, 20], [120, 0, 20, 20], [40, 0, 20, 20], [160, 160, 20, 20]])
    matrix = ConfusionMatrix(["x", "y"])
    matrix.update(truth, Predictions(found, np.array([0.9, 0.8, 0.7, 0.2, 0.6]), np.array([1, 0, 0, 1, 0])))
    assert matrix.counts.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_pictures(tmp_path):
    curve = Curve(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.6, 0.0]))
    few = Result("coco", "fraction", {}, {}, {"car": curve})
    many = Result("visdrone", "percent", {}, {}, {f"class{n}": curve for n in range(30)})
    plots.save_pr_curves([few, many, YOLOV5], tmp_path / "pr.png")
    matrix = ConfusionMatrix(["x", "y"])
    matrix.counts[0, 0] = 3
    plots.save_confusion_matrix(matrix, tmp_path / "confusion.png")
    for name in ("pr.png", "confusion.png"):
        image = cv2.imread(str(tmp_path / name))
        assert image.std() > 10 and min(image.shape[:2]) > 400


def test_the_legend_does_not_cover_the_curves_of_a_good_detector(tmp_path, monkeypatch):
    figures, make = [], plots.Figure
    monkeypatch.setattr(plots, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    curve = Curve(np.linspace(0, 1, 11), np.linspace(1, 0.6, 11))
    result = Result("coco", "fraction", {}, {}, {f"class{n}": curve for n in range(10)})
    plots.save_pr_curves([result], tmp_path / "pr.png")
    figures[0].canvas.draw()
    (panel,) = figures[0].axes
    legend = panel.get_legend().get_window_extent()
    points = panel.transData.transform(panel.lines[0].get_xydata())
    assert legend.height > 50 and not any(legend.contains(*point) for point in points)
