"""The report of a comparison: its numbers, tables, notes and picture."""

from __future__ import annotations

import csv
import io
import json

import cv2
import pytest

from yolov5_ema.comparing import report as reports
from yolov5_ema.comparing.picture import draw
from yolov5_ema.comparing.report import Model, build_report


def model(name: str, *map50: float, latency: tuple[float, ...] = (), parameters: int = 1000) -> Model:
    figures = {"map50": dict(enumerate(map50)), "map50_95": {seed: v / 2 for seed, v in enumerate(map50)}}
    return Model(name, parameters, 4.5, latency, figures)


@pytest.fixture
def report():
    """A baseline, a better model, a worse one, and one without figures."""
    models = [
        model("worse", 0.40, 0.411, 0.42, latency=(9.0, 9.0, 30.0, 8.0)),
        model("base", 0.50, 0.51, 0.52, latency=(10.0, 10.0, 10.0, 16.0)),
        model("better", 0.60, 0.61, 0.621),
        model("missing"),
    ]
    return build_report(models, "base", (0, 1, 2))


def test_the_baseline_comes_first_and_is_not_compared_with_itself(report):
    assert [row.model.name for row in report.rows] == ["base", "worse", "better", "missing"]
    assert report.baseline.differences == {} and report.comparisons == 3
    assert report.level == pytest.approx(1 - 0.05 / 3)


def test_verdicts_and_what_is_missing(report):
    verdicts = {row.model.name: row.differences["map50"] for row in report.candidates}
    assert (verdicts["worse"].verdict, verdicts["better"].verdict) == ("worse", "better")
    assert verdicts["missing"] is None
    table = reports.difference_table(report)
    assert table[0][3] == "98.3 % interval"
    assert table[-1] == ["missing", "mAP50-95", "missing", "-", "0", "no pair of figures"]


def test_latency_ratio_is_of_rounds_not_of_medians(report):
    latency = report.rows[1].latency
    assert (latency.median, latency.ratio) == (9.0, pytest.approx(0.9))  # the median of 0.9, 0.9, 3.0, 0.5
    assert report.baseline.latency.ratio == 1
    assert (latency.quartile1, latency.quartile3) == (8.75, 14.25)  # between the fastest and the slowest round
    assert report.rows[2].latency is None and reports.model_table(report)[3][-2] == "not measured"


def test_model_table(report):
    head, base, *_, missing = reports.model_table(report)
    assert head[:4] == ["model", "seeds", "mAP50 ± sd", "min to max"]
    assert base[:4] == ["base (baseline)", "3 of 3", "0.5100 ± 0.0100", "0.5000 to 0.5200"]
    assert base[6:] == ["1,000", "4.50", "10.00 (10.00 to 11.50)", "1.00"]
    assert missing[1:4] == ["0 of 3", "missing", "-"]
    assert {len(line) for line in reports.model_table(report)} == {10}


def test_tables_are_aligned_and_escaped():
    table = [["a", "bb"], ["ccc", "d|e"]]
    assert reports.aligned(table) == "a     bb\nccc  d|e"
    assert reports.markdown(table) == "| a | bb |\n| --- | --- |\n| ccc | d\\|e |"


def test_json_and_csv_hold_every_figure(report):
    content = json.loads(json.dumps(reports.as_dict(report), allow_nan=False))
    assert content["models"]["better"]["metrics"]["map50"]["values"] == {"0": 0.60, "1": 0.61, "2": 0.621}
    assert content["models"]["missing"]["metrics"]["map50"] is None
    rows = list(csv.DictReader(io.StringIO(reports.as_csv(report))))
    assert len(rows) == 8 and None not in rows[0] and None not in rows[-1].values()
    assert (rows[2]["model"], rows[2]["metric"], rows[2]["verdict"]) == ("worse", "mAP50", "worse")
    assert (rows[6]["n"], rows[6]["pairs"], rows[6]["verdict"]) == ("0", "0", "no pair of figures")
    assert rows[2]["latency_ms"] == "9" and rows[4]["latency_ms"] == ""


def test_notes():
    notes = "\n".join(reports.method_notes(build_report([model("a", 0.5, 0.5), model("b", 0.4, 0.5)], "a", (0, 1))))
    assert "a, mAP50: every seed gave the same figure" in notes and "b, mAP50" not in notes
    assert "Bonferroni" not in notes
    alone = reports.method_notes(build_report([model("a", 0.5), model("b", 0.4)], "a", (0,)))
    assert alone == ["One seed: a difference cannot be judged without a spread, so there is no verdict."]


@pytest.mark.parametrize("best, told", [(0.049, True), (0.05, False)])
def test_models_that_learned_nothing_are_no_comparison(best, told):
    models = [model("a", 0.01, best), model("b", 0.0, 0.02), model("missing")]
    notes = "\n".join(reports.method_notes(build_report(models, "a", (0, 1))))
    assert ("hardly learned anything" in notes) is told


@pytest.mark.parametrize("models", [1, 3])
def test_picture_grows_with_the_models_and_bears_missing_figures(tmp_path, report, models):
    rows = [model(f"m{index}", *([0.5, 0.6] if index else [])) for index in range(models)]
    draw(build_report([*rows, model("base", 0.4, 0.5)], "base", (0, 1)), tmp_path / "a.png", "title")
    draw(report, tmp_path / "b.png", "title")
    heights = [cv2.imread(str(tmp_path / name)).shape[0] for name in ("a.png", "b.png")]
    assert (heights[1] - heights[0]) / 150 == pytest.approx((4 - models - 1) * 2 * 0.55, abs=0.02)
