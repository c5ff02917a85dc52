"""The page "Choosing a block" is what ``docs/choosing.py`` makes of the committed runs."""

from __future__ import annotations

import json

import choosing
import pytest


@pytest.fixture(params=choosing.MODELS)
def run(request):
    file = choosing.newest(request.param)
    assert file.with_suffix(".png").is_file()
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_page_is_up_to_date():
    assert choosing.PAGE.read_text(encoding="utf-8") == choosing.built(), "run: python docs/choosing.py"


def test_runs_are_of_the_models_at_640_pixels_and_name_the_machine(run):
    page = choosing.PAGE.read_text(encoding="utf-8")
    assert run["imgsz"] == 640 and run["rounds"] >= 10
    assert run["machine"]["device"] and " ".join(run["machine"]["device"].split()) in " ".join(page.split())
    parameters = {"yolov5s.yaml": 7_235_389, "yolo11n.yaml": 2_624_080}
    none, *blocks = run["blocks"]
    assert (none["block"], none["parameters"]) == ("none", parameters[run["model"]]) and len(blocks) > 20


def test_the_page_shows_each_block_of_each_run(run):
    page = choosing.PAGE.read_text(encoding="utf-8")
    section = page.split(f"\n## In {run['model'].removesuffix('.yaml')}\n")[1].split("\n## ")[0]
    for cost in run["blocks"]:
        row = next(line for line in section.splitlines() if f"`{cost['block']}`" in line)
        assert (cost["reason"] or f"| {cost['ratio']:.3f} |") in row


def test_refusals_are_written_out():
    outcomes = {"YOLOv5 6.0.7": {"OpenCV 1": "its output is wrong"}, "ultralytics 8": {"OpenCV 1": 2e-7}}
    text = choosing._support({"support_tested": "how", "blocks": [{"block": "X", "support": outcomes}]})
    assert "| `X` | partly |" in text and "- X, OpenCV 1 with YOLOv5 6.0.7: its output is wrong" in text
    assert "2.0e-07" in text and "YOLOv5 6.0.7 and ultralytics 8" in text
