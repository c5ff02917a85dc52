"""Runs side by side: figures, pairs of seeds, intervals, and the cases without an interval."""

from __future__ import annotations

import json

import pytest
from synthetic_runs import write_classification, write_comparison, write_training

from yolov5_ema.errors import UserError
from yolov5_ema.reporting.comparing import of_comparison, of_runs, recipe_differences
from yolov5_ema.reporting.runs import make_names_unique, read_source

BASE, EMA = (0.50, 0.52, 0.52), (0.52, 0.55, 0.53)


def trained(tmp_path, figures, **options):
    """Runs by model and seed with the given best mAP50."""
    runs = []
    for model, values in figures.items():
        for seed, value in enumerate(values):
            folder = tmp_path / model / f"seed{seed}"
            runs.append(read_source(write_training(folder, figures=(0.1, value, 0.2), cfg=f"{model}.yaml", **options)))
    make_names_unique(runs)
    return runs


def test_differences_are_paired_by_seed(tmp_path):
    compared = of_runs(trained(tmp_path, {"base": BASE, "ema": EMA}), {})
    base, ema = compared.rows
    assert (base.model, base.is_baseline, base.seeds, base.differences) == ("base", True, [0, 1, 2], {})
    assert base.summaries["mAP50"].mean == pytest.approx((0.50 + 0.52 + 0.52) / 3)
    found = ema.differences["mAP50"]  # 0.02, 0.03, 0.01: mean 0.02, sd 0.01, t of 2 degrees 4.3027
    assert (found.n, found.mean, found.sd) == (3, pytest.approx(0.02), pytest.approx(0.01))
    assert (found.low, found.high) == (pytest.approx(-0.00484, abs=1e-5), pytest.approx(0.04484, abs=1e-5))
    assert compared.verdicts[0] == (
        "ema against base, mAP50: +0.0200 (95 % interval -0.0048 to +0.0448, 3 seeds): no difference shown."
    )
    assert "best epoch in each run's results.csv" in compared.notes[0]


def test_the_order_of_runs_does_not_matter_to_the_pairs(tmp_path):
    runs = trained(tmp_path, {"base": BASE, "ema": EMA})
    turned = of_runs([*runs[:3], *reversed(runs[3:])], {})
    assert turned.rows[1].differences == of_runs(runs, {}).rows[1].differences


def test_several_models_are_corrected_for(tmp_path):
    runs = trained(tmp_path, {"base": BASE, "ema": EMA, "ca": BASE})
    compared = of_runs(runs, {}, baseline="ema")
    assert [row.model for row in compared.rows] == ["ema", "base", "ca"]
    assert compared.level == pytest.approx(0.975) and compared.rows[1].differences["mAP50"].mean == pytest.approx(-0.02)
    assert "97.5 % each" in compared.notes[-1]
    with pytest.raises(UserError, match="--baseline x is not one of the models: base, ema, ca"):
        of_runs(runs, {}, baseline="x")


def test_one_run_each_shows_no_spread(tmp_path):
    runs = [
        read_source(write_training(tmp_path / "exp", figures=(0.5,), cfg="base.yaml")),
        read_source(write_training(tmp_path / "exp2", figures=(0.6,), cfg="ema.yaml")),
    ]
    compared = of_runs(runs, {})
    found = compared.rows[1].differences["mAP50"]
    assert found.mean == pytest.approx(0.1) and (found.low, found.high) == (None, None)
    assert (
        "no interval and no verdict" in compared.verdicts[0]
        and "One seed per model shows no spread" in compared.notes[1]
    )
    assert of_runs(runs[:1], {}) is None


def test_seeds_that_pair_with_nothing(tmp_path):
    twice = [
        read_source(write_training(tmp_path / name, figures=(value,), cfg=f"{cfg}.yaml", seed=0))
        for name, cfg, value in (("a", "base", 0.5), ("b", "base", 0.6), ("c", "ema", 0.7))
    ]
    make_names_unique(twice)
    compared = of_runs(twice, {})
    assert compared.rows[1].differences["mAP50"] is None and not compared.has_pairs
    assert "it is not known which runs form pairs" in compared.notes[1]
    unknown = [
        read_source(write_training(tmp_path / name, figures=(value,), cfg=f"{cfg}.yaml"))
        for name, cfg, value in (("d", "base", 0.5), ("e", "base", 0.6), ("f", "ema", 0.7))
    ]
    make_names_unique(unknown)
    compared = of_runs(unknown, {})
    assert not compared.has_pairs and "The seed of these runs is not known: d, e, f" in compared.notes[1]
    # the mean of 0.5 and 0.6 and its t interval: 12.7062 * 0.0707107 / sqrt(2)
    found = compared.rows[0].summaries["mAP50"]
    assert (found.low, found.high) == (
        pytest.approx(0.55 - 0.63531, abs=1e-4),
        pytest.approx(0.55 + 0.63531, abs=1e-4),
    )


def test_a_run_without_figures_is_missing_not_zero(tmp_path):
    runs = trained(tmp_path, {"base": BASE, "ema": EMA})
    (runs[-1].folder / "results.csv").unlink()
    runs[-1] = read_source(runs[-1].folder)
    runs[-1].name = "without"
    compared = of_runs(runs, {})
    assert compared.rows[1].summaries["mAP50"].n == 2 and compared.rows[1].differences["mAP50"].n == 2


def test_other_recipes_are_told(tmp_path):
    same = trained(tmp_path / "same", {"base": BASE, "ema": EMA}, workers=3)
    assert recipe_differences(same) == {}
    other = read_source(write_training(tmp_path / "other", imgsz=128, workers=5))
    assert recipe_differences([same[0], other]) == {"imgsz": ["64", "128"]}
    (other.folder / "hyp.yaml").write_text("lr0: 0.02\nmosaic: 1.0\n")
    assert recipe_differences([same[0], read_source(other.folder)]) == {
        "imgsz": ["64", "128"],
        "lr0": ["0.01", "0.02"],
    }


def test_classifiers_by_their_metrics(tmp_path):
    runs = [
        read_source(write_classification(tmp_path / f"{block}{seed}", block=block, seed=seed, top1=top1))
        for block, seed, top1 in ((None, 0, 0.70), (None, 1, 0.72), ("EMA", 0, 0.75), ("EMA", 1, 0.75))
    ]
    make_names_unique(runs)
    compared = of_runs(runs, {})
    assert [row.model for row in compared.rows] == ["resnet50", "resnet50 + EMA"]
    assert compared.rows[1].differences["top-1"].mean == pytest.approx(0.04)
    assert recipe_differences(runs) == {} and "metrics.json" in compared.notes[0]


def test_a_comparison_is_shown_as_it_stands(tmp_path):
    source = read_source(write_comparison(tmp_path / "first"))
    compared = of_comparison(source)
    entry = source.content["models"]["ema"]["differences"]["map50"]
    found = compared.rows[1].differences["mAP50"]
    assert (found.mean, found.low, found.high, found.n) == (entry["mean"], entry["low"], entry["high"], 3)
    assert found.verdict == entry["verdict"]
    assert (compared.rows[0].parameters, compared.rows[1].gflops) == (1_000_000, 5.5)
    assert compared.rows[1].latency["median"] == 11 and compared.notes == source.content["notes"]


def test_a_comparison_that_lacks_a_figure_is_refused(tmp_path):
    folder = write_comparison(tmp_path / "first")
    content = json.loads((folder / "comparison.json").read_text())
    del content["models"]["ema"]["differences"]["map50"]["p"]
    (folder / "comparison.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"comparison\.json is not valid as .*differences, map50: missing: p"):
        read_source(folder)
