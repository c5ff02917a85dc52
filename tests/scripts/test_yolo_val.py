"""Detections of ultralytics' val, and the protocol that computes the same figures from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import yolov5_ema
from yolov5_ema.cli._detections import compared_with
from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.detecting.choosing import set_runtime
from yolov5_ema.detecting.loading import load_detector
from yolov5_ema.detecting.protocol import LoadOptions
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.judged import Rules, labelled_images
from yolov5_ema.evaluation.ultralytics import UltralyticsProtocol
from yolov5_ema.kernels import native
from yolov5_ema.scripts.yolo_val import collected, rules_of


@pytest.fixture
def engine(ultralytics):
    yield yolov5_ema.install("ultralytics")
    yolov5_ema.uninstall("ultralytics")


def figures_of(found, dataset, engine, split="val"):
    judged = labelled_images(dataset, split, Rules(judged=found.images))
    truths, predictions = compared_with(found, judged, dataset, split, ["ultralytics", "coco"], False)
    protocol = UltralyticsProtocol(dataset.names, rules_of(engine))
    for image, truth in truths["ultralytics"].truths.items():
        protocol.update(truth, predictions["ultralytics"][image])
    return protocol.compute().metrics, predictions


def test_the_protocol_gives_the_figures_of_its_own_val(engine, ultralytics, small_yolo, tiny_set, own_folder):
    dataset = load_dataset(tiny_set)
    options = {"imgsz": 64, "device": "cpu", "batch": 3, "workers": 0}
    found = collected(engine, small_yolo, dataset, "val", options, 500, own_folder)
    metrics, predictions = figures_of(found, dataset, engine)
    own = ultralytics.YOLO(small_yolo).val(data=str(tiny_set), plots=False, project=str(own_folder / "own"), **options)
    expected = dict(zip(("P", "R", "mAP50", "mAP50-95"), (own.box.mp, own.box.mr, own.box.map50, own.box.map)))
    assert metrics == pytest.approx(expected, abs=1e-6) and 0 < metrics["mAP50-95"] < metrics["mAP50"] < 1
    assert [path.name for path in found.images] == [f"val{index}.jpg" for index in range(4)]
    assert (own_folder / "val").is_dir()
    # the other protocols get boxes that are cut off at the border
    size = 96
    for image, cut in predictions["coco"].items():
        whole = predictions["ultralytics"][image]
        assert len(whole.scores) == len(cut.scores) > 100
        corners = np.concatenate([whole.boxes[:, :2], whole.boxes[:, :2] + whole.boxes[:, 2:]], axis=1).clip(0, size)
        np.testing.assert_allclose(cut.boxes[:, :2] + cut.boxes[:, 2:], corners[:, 2:], atol=1e-4)
    assert min(boxes.boxes[:, :2].min() for boxes in predictions["ultralytics"].values()) < 0


def test_a_model_that_another_runtime_runs(engine, small_yolo, tiny_set, own_folder, monkeypatch):
    """An export of ultralytics' model, which takes all shapes, gives the figures of the model itself."""
    pytest.importorskip("onnxruntime")
    (own_folder / "cache").mkdir(mode=0o700)
    native.library()  # the kernels of the usual folder
    monkeypatch.setenv("YOLOV5_EMA_CACHE", str(own_folder / "cache"))
    detector = load_detector(small_yolo, LoadOptions(imgsz=(64, 64)), engine=engine)
    assert set_runtime(detector, engine, "onnx", 4, []) == "onnx"
    calls = []

    def counted(images):
        calls.append(tuple(images.shape))
        return detector.forward(images)

    dataset = load_dataset(tiny_set)
    options = {"imgsz": 64, "device": "cpu", "batch": 3, "workers": 0}
    found = collected(engine, small_yolo, dataset, "val", options, 500, own_folder, counted)
    expected = collected(engine, small_yolo, dataset, "val", options, 500, own_folder)
    assert len(calls) == 2 and sum(shape[0] for shape in calls) == 4
    assert found.figures == pytest.approx(expected.figures, abs=1e-4) and found.figures[2] > 0


def test_it_reads_the_images_that_the_data_set_lists(engine, small_yolo, tiny_set, own_folder):
    """Also those that ultralytics would look for elsewhere: relative to the working directory."""
    (own_folder / "here.yaml").write_text(
        f"path: .\ntrain: nowhere\nval: [{tiny_set.parent}/images/val, {tiny_set.parent}/images/test]\n"
        "names: {0: disc, 1: box, 2: cross}\n"
    )
    dataset = load_dataset(Path("here.yaml"))
    options = {"imgsz": 64, "device": "cpu", "workers": 0}
    found = collected(engine, small_yolo, dataset, "val", options, 300, Path("found"))
    assert Path("found/val").is_dir()
    assert sorted(found.images) == sorted(dataset.images("val")) and len(found.images) == 8


def test_a_missing_split_is_refused_by_the_name_of_the_file(engine, small_yolo, tiny_set, own_folder):
    dataset = load_dataset(tiny_set)
    dataset = dataclasses.replace(dataset, content={**dataset.content, "test": None})
    with pytest.raises(UserError, match=f"^{dataset.file}: the key 'test' is missing"):
        collected(engine, small_yolo, dataset, "test", {}, 300, own_folder)
