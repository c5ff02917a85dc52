"""Collect the detections that YOLOv5's val makes."""

from __future__ import annotations

import inspect
import itertools
import types
from pathlib import Path

import torch

from yolov5_ema.scripts.collecting import collected_detections, image_by_image


def test_no_image_is_lost_to_the_time_limit(engine, monkeypatch):
    """A clock that jumps by minutes: YOLOv5 then stops after the first image of the batch."""
    general = engine.module("utils.general")
    clock = itertools.count(step=600)
    monkeypatch.setattr(general, "time", types.SimpleNamespace(time=lambda: next(clock)))
    rows = torch.tensor([[[20.0, 20, 10, 10, 0.9, 0.8], [60, 60, 10, 10, 0.7, 0.9]]]).repeat(3, 1, 1)
    rows[:, :, 0] += torch.arange(3)[:, None]
    options = {"conf_thres": 0.1, "iou_thres": 0.6}
    assert [len(found) for found in general.non_max_suppression(rows.clone(), **options)] == [2, 0, 0]
    apart = image_by_image(general.non_max_suppression)
    found = apart(rows.clone(), **options)
    assert [len(boxes) for boxes in found] == [2, 2, 2]
    assert [float(boxes[0, 0]) for boxes in found] == [15, 16, 17]


def test_val_is_as_before_afterwards(engine):
    val = engine.module("val")
    before = val.run, val.non_max_suppression
    with collected_detections(engine, 500) as found:
        assert val.run is not before[0] and val.non_max_suppression is not before[1]
        assert "max_det" in inspect.signature(val.non_max_suppression).parameters
    assert (val.run, val.non_max_suppression) == before and not found.detections


def test_a_second_evaluation_in_one_process_leaves_the_first_alone(engine, monkeypatch):
    val = engine.module("val")
    sent = []

    def run(data, max_det=300, callbacks=None, plots=True):
        callbacks.run("on_val_image_end", None, torch.full((1, 6), float(data)), "image.jpg")
        sent.append(data)
        return ((0.1, 0.2, 0.3, 0.4),)

    monkeypatch.setattr(val, "run", run)
    both = []
    for data in (1, 2):
        with collected_detections(engine, 500) as found:
            val.run(data)
        both.append(found)
    assert sent == [1, 2]
    assert [found.detections[Path("image.jpg")].xyxy[0, 0] for found in both] == [1, 2]
