"""`yolov5-ema paper tables`: every figure of the paper, with ways of counting that are checked by hand here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from yolov5_ema.blocks import EMA
from yolov5_ema.classification import list_paper_models
from yolov5_ema.cli.paper import COMMAND as paper
from yolov5_ema.errors import UserError
from yolov5_ema.paper.counting import count_operations, parameters_plain, parameters_without_norms
from yolov5_ema.paper.matching import Match, explain
from yolov5_ema.paper.printed import printed_tables
from yolov5_ema.paper.rendering import as_json, as_markdown, as_text
from yolov5_ema.paper.tables import compare_tables
from yolov5_ema.resources import find_shipped

pytest.importorskip("timm")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "paper.md"

# the way of counting that gives the paper's figure, and its value in parameters
CLASSIFIER_PARAMETERS = {
    ("1", "ResNet50"): ("plain", 23_705_252, "rounded"),
    ("1", "+ CBAM"): ("plain", 26_237_844, "rounded"),
    ("1", "+ SA"): ("plain", 23_705_960, "rounded"),
    ("1", "+ ECA"): ("plain", 23_705_300, "rounded"),
    ("1", "+ NAM"): ("", 23_735_460, ""),
    ("1", "+ CA"): ("no-norm", 25_569_020, "rounded"),
    ("1", "+ EMA"): ("no-norm", 23_849_556, "rounded"),
    ("1", "ResNet101"): ("plain", 42_697_380, "rounded"),
    ("1", "ResNet101 + CA"): ("no-norm", 46_215_452, "rounded"),
    ("1", "ResNet101 + EMA"): ("no-norm", 42_964_628, "rounded"),
    ("3", "MobileNetV2"): ("plain", 3_504_872, "rounded"),
    ("3", "+ SE"): ("plain", 3_888_208, "rounded"),
    ("3", "+ CBAM"): ("plain", 3_889_808, "rounded"),
    ("3", "+ CA"): ("plain", 3_950_648, "rounded"),
    ("3", "+ EMA"): ("plain", 3_549_726, "rounded"),
    ("4", "ResNet50"): ("", 23_705_252, ""),  # only for comparison
    ("4", "+ EMA_no"): ("no-norm", 23_849_556, "cut off"),
    ("4", "+ EMA_16"): ("no-norm", 24_439_940, "rounded"),
    ("4", "+ EMA_32"): ("no-norm", 23_849_556, "cut off"),
}
# multiply-adds in the table's unit: of convolution and linear layers for a batch of 1, and all that run
CLASSIFIER_OPERATIONS = {
    ("1", "ResNet50"): (1.298014, 1.298014, "layers"),
    ("1", "+ CA"): (1.313481, 1.313481, ""),
    ("1", "+ EMA"): (1.307693, 1.611342, "once 0.1.1"),
    ("1", "ResNet101 + EMA"): (2.530152, 3.155501, "layers"),
    ("3", "MobileNetV2"): (300.774272, 300.774272, "layers"),
    ("3", "+ SE"): (301.150208, 301.150208, "layers"),
    ("3", "+ CBAM"): (302.52496, 302.52496, "layers"),
    ("3", "+ CA"): (306.666368, 306.666368, "layers"),
    ("3", "+ EMA"): (305.742, 465.823, "layers"),
    ("4", "+ EMA_16"): (1.336730, 1.921065, "layers"),
}


@pytest.fixture(scope="module")
def classifiers():
    """Rows of Tables 1, 3 and 4."""
    return list(compare_tables([table for table in printed_tables() if table.table != "2"]))


class TestMatching:
    @pytest.mark.parametrize(
        ("printed", "value", "how"),
        [
            ("23.71", 23.705252, "rounded"),
            ("23.71", 23.735460, None),
            ("1.30", 1.298014, "rounded"),
            ("1.30", 1.3051, "cut off"),
            ("1.30", 1.31, None),
            ("23.84", 23.849556, "cut off"),
            ("300", 300.774, "to two digits"),
            ("310", 306.67, "to two digits"),
            ("310", 304.9, None),
            ("306", 305.74, "rounded"),
            ("16.50", 16.5325, None),  # two decimals are printed, so two must match
            ("16.5", 16.5325, "rounded"),
        ],
    )
    def test_a_figure_is_matched_by_its_digits(self, printed, value, how):
        found = explain(printed, {"plain": value})
        assert found == (None if how is None else Match("plain", value, how))

    def test_rounding_by_any_way_goes_before_cutting_off_by_another(self):
        assert explain("2.53", {"a": 2.5399, "b": 2.5251}) == Match("b", 2.5251, "rounded")


class TestCounting:
    def test_a_model_counted_by_hand(self):
        with torch.device("meta"):
            model = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1),  # bias
                nn.BatchNorm2d(8),
                EMA(8, groups=2),
                nn.Conv2d(8, 4, 1, bias=False),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(4, 5),
            ).eval()
        found = count_operations(model, 6)
        pixels, k, groups = 36, 4, 2
        stem, head, linear = 3 * 9 * 8 * pixels, 8 * 4 * pixels, 4 * 5
        ema = k * k * (6 + 6) + k * k * 9 * pixels
        weighting = 2 * k * pixels  # two products of (1, k) with (k, HW)
        assert found.layers == stem + head + linear + ema
        assert found.full == stem + head + linear + groups * (ema + weighting)
        assert found.biases == 8 * pixels + k * (6 + 6) + k * pixels
        assert found.normalised == 8 * pixels
        assert found.hooked == stem + head + linear + groups * ema  # thop counts every group
        assert found.by_convention() == {  # and thop 0.0.31 fails on EMA
            "layers": found.layers,
            "thop 0.1.1": found.hooked + 4 * 8 * pixels,
            "once 0.0.31": found.layers + found.biases + 2 * 8 * pixels,
            "once 0.1.1": found.layers + 4 * 8 * pixels,
        }

    def test_parameters_without_norms(self):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.BatchNorm2d(8, affine=False)
        )
        assert parameters_plain(model) == 32 + 16 + 16
        assert parameters_without_norms(model) == 32

    def test_thop_counts_the_plain_resnet_the_same(self):
        thop = pytest.importorskip("thop")
        with torch.device("meta"):
            model = nn.Sequential(
                nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)
            ).eval()
        found = count_operations(model, 16).by_convention()
        theirs = thop.profile(model, (torch.zeros(1, 3, 16, 16, device="meta"),), verbose=False)[0]
        assert found["thop 0.1.1"] == theirs


def test_what_is_printed_can_be_built():
    tables = printed_tables()
    assert [table.table for table in tables] == ["1", "2", "2", "3", "4"]
    for table in tables:
        labels = [row.label for row in table.rows]
        for row in table.rows:
            assert row.over in ("", *labels) and set(row.accuracy) <= set(table.accuracy)
            assert row.classifier in list_paper_models() if row.classifier else row.detector or find_shipped(row.cfg)
    in_tables = {row.classifier for table in tables for row in table.rows} - {""}
    assert in_tables == set(list_paper_models()) - {"resnet50-se"}


def test_the_parameters_of_every_classifier(classifiers):
    found = {}
    for row in classifiers:
        figure = row.figures[0]
        value = figure.ours if figure.explained is None else figure.explained
        found[row.table, row.label] = (figure.convention, round(value * 1e6), figure.how)
    assert found == CLASSIFIER_PARAMETERS


def test_the_operations_of_classifiers(classifiers):
    found = {(row.table, row.label): row.figures[1] for row in classifiers}
    for key, (layers, full, convention) in CLASSIFIER_OPERATIONS.items():
        assert found[key].conventions["layers"] == pytest.approx(layers, rel=2e-6), key
        assert found[key].ours == pytest.approx(full, rel=2e-6), key
        assert found[key].convention == convention, key


def test_what_nothing_explains_is_said(classifiers):
    content = json.loads(json.dumps(as_json(classifiers)))
    assert [(entry["row"], entry["kind"], entry["printed"]) for entry in content["unexplained"]] == [
        ("+ NAM", "parameters", "23.71"),
        ("+ CA", "operations", "1.36"),
    ]
    assert content["matches"] == {"rounded": 28, "to two digits": 4, "cut off": 2, "none": 2}
    text = as_text(classifiers)
    assert (
        "Not explained: Table 1, + NAM, 23.71 M parameters (plain 23,735,460, no-norm 23,652,132); "
        "it is what the row without the block gives." in text
    )
    assert (
        "Not explained: Table 1, + CA, 1.36 G MACs (layers 1.3135, thop 0.1.1 1.3272, once 0.0.31 1.3206, "
        "once 0.1.1 1.3272)." in text
    )
    assert "36 figures: 28 match when rounded, 4 to two digits, 2 only cut off, 2 by no way" in text


def test_thop_counts_the_folded_groups_in_full(classifiers):
    """thop 0.1.1 itself prints 1.629 G for ResNet50 with the public EMA, up to its adaptive pooling."""
    found = {(row.table, row.label): row.figures[1].conventions for row in classifiers}
    assert 1.615 < found["1", "+ EMA"]["thop 0.1.1"] < 1.629
    for row in ("+ EMA", "+ CA"):
        assert "thop 0.0.31" not in found["1", row]


def test_the_text_has_a_line_a_figure_and_quotes_accuracies(classifiers):
    lines = as_text(classifiers).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("+ EMA "))
    # + EMA  parameters, M  23.85  23,903,620  +198,368  23,849,556  no-norm  yes
    assert lines[start].split() == ["+", "EMA", "parameters,", "M", "23.85", "23,903,620"] + [
        *("+198,368", "23,849,556", "no-norm", "yes")
    ]
    assert lines[start + 1].split() == [*("G", "MACs", "1.32", "1.6113", "+0.3133", "1.3214", "once", "0.1.1", "yes")]
    assert lines[start + 2].split() == [*("top1,", "top5", "80.69", "95.59", "quoted,", "not", "measured")]
    ablation = next(i for i, line in enumerate(lines) if line.startswith("+ EMA_no "))
    assert lines[ablation + 2].split()[:4] == ["top1,", "top5", "78.24", "94.89"]  # the paper's Table 4


def test_markdown_is_tables(classifiers):
    markdown = as_markdown(classifiers)
    assert markdown.count("\n### Table ") + markdown.startswith("### Table ") == 3
    line = "| + EMA | parameters, M | 3.55 | 3,549,726 | +44,854 | 3,549,726 | plain | yes |"
    assert line in markdown.splitlines()
    widths = {line.count("|") for line in markdown.split("| way of counting")[0].splitlines() if line.startswith("|")}
    assert widths == {9}


def test_detectors_are_counted_as_yolov5_does():
    table = next(table for table in printed_tables() if table.table == "2")
    rows = [row for row in table.rows if row.label in ("YOLOv5s", "+ EMA")]
    plain, ema = compare_tables([dataclasses.replace(table, rows=rows)])
    parameters, operations = plain.figures
    assert (parameters.convention, round(parameters.explained * 1e6)) == ("fused", 7_225_885)
    assert (operations.convention, round(operations.explained, 4)) == ("summary", 16.5325)
    parameters, operations = ema.figures
    assert {name: round(value * 1e6) for name, value in parameters.conventions.items()} == {
        "plain": 7_238_685,
        "fused": 7_229_181,
    }
    assert (parameters.convention, round(parameters.over * 1e6)) == ("plain", 3_296)
    assert round(operations.ours, 3) == 16.555 and operations.how == "cut off" and operations.as_without_block


def test_the_command_writes_a_file_and_does_not_replace_it(own_folder, capsys):
    assert paper.main(["tables", "--table", "4", "--json", "-o", "four.json"]) == 0
    assert capsys.readouterr().out == "four.json\n"
    rows = json.loads((own_folder / "four.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["ResNet50", "+ EMA_no", "+ EMA_16", "+ EMA_32"]
    with pytest.raises(UserError, match=r"four\.json is there already; --force"):
        paper.main(["tables", "--table", "4", "-o", "four.json"])


def test_the_page_has_these_tables(classifiers):
    page = PAGE.read_text(encoding="utf-8").splitlines()
    tables = [line for line in as_markdown(classifiers).splitlines() if line.startswith(("| ", "### "))]
    assert len(tables) > 60 and [line for line in tables if line not in page] == []


@pytest.mark.slow
def test_all_tables(capsys):
    assert paper.main(["tables", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(e["table"], e["row"], e["printed"]) for e in content["unexplained"]] == [
        ("1", "+ NAM", "23.71"),
        ("1", "+ CA", "1.36"),
        ("2", "+ CA", "16.50"),
    ]
    assert content["matches"] == {"rounded": 46, "to two digits": 4, "cut off": 3, "none": 3}
    found = {row["label"]: row["figures"] for row in content["rows"] if row["title"].startswith("VisDrone")}
    assert {label: round(figures[0]["ours"] * 1e6) for label, figures in found.items()} == {
        "YOLOv5x as published": 90_963_540,
        "YOLOv5x like for like": 91_168_340,
        "+ CBAM": 91_312_020,
        "+ CA": 91_278_630,
        "+ EMA": 91_179_620,
    }
    assert round(found["+ EMA"][0]["over"] * 1e6) == 11_280


@pytest.mark.slow
def test_the_page_is_the_command_s_output(capsys):
    assert paper.main(["tables", "--markdown"]) == 0
    assert capsys.readouterr().out in PAGE.read_text(encoding="utf-8")
