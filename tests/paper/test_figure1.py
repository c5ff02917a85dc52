"""`yolov5-ema paper figure1`: the points, and a picture in which every name is readable."""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ElementTree
from itertools import combinations

import pytest
from matplotlib.text import Annotation
from PIL import Image

from yolov5_ema.cli.paper import COMMAND as paper
from yolov5_ema.errors import UserError
from yolov5_ema.paper.figure1 import Point, compose, paper_points, run_points


def write_run(folder, **metrics):
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two seeds of EMA, and a run without a block."""
    ema = {"task": "classify", "model": "resnet50", "block": "EMA", "parameters": 23_903_620}
    return [
        write_run(tmp_path / "exp", **ema, top1=0.785),
        write_run(tmp_path / "exp2", **ema, top1=0.795),
        write_run(tmp_path / "exp3", model="resnet50", block=None, parameters=23_705_252, top1=0.77),
    ]


def test_the_paper_s_points():
    points = paper_points()
    assert [(p.label, p.parameters, p.mean) for p in points] == [
        ("ResNet50", 23.71, 77.26),
        ("CBAM", 26.24, 80.56),
        ("SA", 23.71, 79.92),
        ("ECA", 23.71, 79.68),
        ("NAM", 23.71, 80.62),
        ("CA", 25.57, 80.17),
        ("EMA", 23.85, 80.69),
    ]


def test_runs_of_one_model_are_one_point(runs):
    ema, plain = run_points(runs)
    assert ema == Point("resnet50 + EMA", 23.90362, (78.5, 79.5), False) and ema.mean == 79
    assert plain == Point("resnet50", 23.705252, (77.0,), False)


def test_names_are_over_nothing():
    numbers = random.Random(0)
    points = [
        Point(f"model {i}", 23.7 + numbers.random() * 0.4, (77 + numbers.random(),), i % 2 == 0) for i in range(12)
    ]
    figure = compose(points)
    (axes,) = figure.axes
    names = [text for text in axes.texts if isinstance(text, Annotation) and text.get_text()]
    assert sorted(text.get_text() for text in names) == sorted(point.label for point in points)
    boxes = [text.get_window_extent() for text in names]
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    for point in points:
        x, y = axes.transData.transform((point.parameters, point.mean))
        assert not any(box.contains(x, y) for box in boxes)


def test_a_png_and_an_svg_are_written(own_folder, runs, capsys):
    assert paper.main(["figure1", "--runs", *map(str, runs), "-o", "mine.svg"]) == 0
    out = capsys.readouterr().out
    assert "own runs resnet50 + EMA" in out and "23.904 M  top-1 79.00 %" in out and "80.69 %" in out
    assert out.splitlines()[-1] == "mine.png mine.svg"
    with Image.open("mine.png") as picture:
        assert picture.size == (1200, 825)
        assert len(set(picture.convert("RGB").getdata())) > 50
    assert ElementTree.parse("mine.svg").getroot().tag.endswith("svg")


def test_points_as_json(own_folder, runs, capsys):
    assert paper.main(["figure1", "--only-runs", "--runs", *map(str, runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == ["figure1.png", "figure1.svg"]
    assert any(point["label"] == "resnet50 + EMA" and point["mean"] == 79.0 for point in found["points"])


def test_mistakes_are_named_and_leave_nothing(own_folder, runs, tmp_path):
    wrong = write_run(tmp_path / "detector", task="detect", map=0.4)
    percent = write_run(tmp_path / "percent", model="resnet50", parameters=1, top1=78.5)
    (own_folder / "there.png").write_text("mine")
    mistakes = {
        "no metrics.json; name a run": ["--runs", str(tmp_path)],
        "not the metrics of a classifier: KeyError 'model'": ["--runs", str(wrong)],
        r"top1 78\.5 must be from 0 to 1": ["--runs", str(percent)],
        "a PNG and an SVG are written": ["-o", "figure.pdf"],
        r"there\.png is there already; --force": ["-o", "there"],
        "name runs with --runs": ["--only-runs"],
    }
    before = sorted(own_folder.iterdir())
    for message, arguments in mistakes.items():
        with pytest.raises(UserError, match=message):
            paper.main(["figure1", *arguments])
    assert sorted(own_folder.iterdir()) == before and (own_folder / "there.png").read_text() == "mine"


def test_plain_parameters_are_of_the_built_models():
    pytest.importorskip("timm")
    assert {p.label: round(p.parameters * 1e6) for p in paper_points(plain=True)}["NAM"] == 23_735_460
