"""The one function that loads detectors: what it returns, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import yolov5_ema
from yolov5_ema.checkpoints.loading import is_trusted, load_checkpoint
from yolov5_ema.data.detections import Detections
from yolov5_ema.detecting import loading, yolov5_pt
from yolov5_ema.detecting.loading import load_detector
from yolov5_ema.detecting.protocol import (
    Detector,
    LoadOptions,
    Prepared,
    Thresholds,
    TooThinError,
    TorchDetector,
    with_module,
)
from yolov5_ema.errors import CheckpointError, UserError

LOW = Thresholds(conf_thres=0.001, max_det=20)


@pytest.fixture(scope="module")
def detector(engine, trained):
    return load_detector(trained, LoadOptions(imgsz=(65, 90)), engine=engine)


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_what_the_door_says_of_a_checkpoint(detector, trained):
    assert isinstance(detector, TorchDetector) and with_module(detector) is detector
    assert (detector.file, detector.names, detector.task) == (trained, ["disc", "box", "cross"], "detect")
    assert detector.stride == int(detector.module.stride.max()) == 32
    assert detector.imgsz == (96, 96)  # in multiples of the stride


def test_detections_are_of_each_image_by_itself_in_its_own_pixels(detector):
    images = [_noise(50, 200), _noise(300, 120, seed=1)]
    both = detector.detect(images, LOW)
    for pixels, found in zip(images, both):
        (alone,) = detector.detect([pixels], LOW)
        assert 0 < len(found) <= 20
        assert (found.xyxy.dtype, found.confidence.dtype, found.class_id.dtype) == ("f4", "f4", "i8")
        for name in ("xyxy", "confidence", "class_id"):
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
        height, width = pixels.shape[:2]
        assert (found.xyxy >= 0).all() and (found.xyxy <= [width, height, width, height]).all()
        assert (found.xyxy == found.xyxy.round()).all() and (np.diff(found.confidence) <= 0).all()


def test_images_of_one_shape_go_through_the_model_together(detector):
    images = [_noise(96, 96, seed) for seed in range(3)]
    prepared = [detector.prepare(pixels) for pixels in images]
    together = detector.finish(detector.infer(prepared, LOW), prepared, LOW)
    for found, alone in zip(together, detector.detect(images, LOW), strict=True):
        assert len(found) == len(alone) > 0
        np.testing.assert_allclose(found.xyxy, alone.xyxy, atol=1)
        np.testing.assert_allclose(found.confidence, alone.confidence, atol=1e-5)


def test_another_runtime_can_take_the_place_of_the_model(detector, monkeypatch):
    pixels = _noise(96, 96)
    own = detector.forward
    monkeypatch.setattr(detector, "forward", lambda batch: own(1 - batch))
    (found,) = detector.detect([pixels], LOW)
    monkeypatch.undo()
    (expected,) = detector.detect([255 - pixels], LOW)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=1)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-5)


def test_thresholds(detector):
    image = [_noise(96, 96)]
    (every,) = detector.detect(image, LOW)
    one = int(every.class_id[-1])
    (kept,) = detector.detect(image, Thresholds(0.001, max_det=20, classes=(one,)))
    assert len(kept) and set(kept.class_id) == {one}
    (few,) = detector.detect(image, Thresholds(0.001, max_det=2))
    np.testing.assert_array_equal(few.confidence, every.confidence[:2])
    (sure,) = detector.detect(image, Thresholds(float(every.confidence[0])))
    assert not len(sure) and sure.xyxy.shape == (0, 4)


def test_an_image_of_which_nothing_is_left(detector):
    with pytest.raises(TooThinError, match="2000 x 1 pixels leave nothing when scaled to 96"):
        detector.detect([_noise(1, 2000)], LOW)


def test_what_is_seen_is_the_image_within_borders(detector):
    prepared = detector.prepare(_noise(48, 96))
    batch = detector.batch([prepared])
    assert batch.shape == (1, 3, 64, 96) and prepared.gain == (1, 1) and prepared.pad == (0, 8)
    shown = (batch[0, :, 8:56] * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(shown[..., ::-1], _noise(48, 96))


class Odd:
    """A call that no checkpoint needs."""


def test_trust_holds_for_one_file_only(engine, trained, own_folder):
    torch.save({**load_checkpoint(trained, engine=engine), "extra": Odd()}, "odd.pt")
    with pytest.raises(CheckpointError, match="Odd"):
        load_detector("odd.pt", engine=engine)
    assert load_detector("odd.pt", engine=engine, trust=True).names == ["disc", "box", "cross"]
    assert not is_trusted()
    with pytest.raises(CheckpointError, match="Odd"):
        load_detector("odd.pt", engine=engine)


class Segment(torch.nn.Module):
    """A head from whose name YOLOv5 derives the task."""

    anchors = torch.zeros(1)


def _model(head: torch.nn.Module) -> torch.nn.Module:
    model = torch.nn.Module()
    model.model, model.names, model.stride = torch.nn.Sequential(head), {0: "cat"}, torch.tensor([8.0])
    return model


def test_other_models_are_refused(engine, monkeypatch):
    monkeypatch.setattr(yolov5_pt, "check_file", lambda *_, **__: None)

    def held(model):
        monkeypatch.setattr("yolov5.models.experimental.attempt_load", lambda *_: model)

    held(_model(Segment()))
    assert load_detector("a.pt", engine=engine, tasks=("detect", "segment")).task == "segment"
    with pytest.raises(UserError, match=r"a\.pt is a segmentation model: .*segment/predict\.py"):
        load_detector("a.pt", engine=engine)
    held(_model(torch.nn.Linear(1, 1)))
    with pytest.raises(UserError, match=r"a\.pt does not hold a detector"):
        load_detector("a.pt", engine=engine)
    held(type("ClassificationModel", (torch.nn.Module,), {})())
    with pytest.raises(UserError, match=r"a\.pt is a classifier of YOLOv5's classify/train\.py, not a detector"):
        load_detector("a.pt", engine=engine)


class _Plain(Detector):
    """A detector of another runtime that finds nothing."""

    stride, names, task, imgsz, most_at_once = 32, ["cat"], "detect", (64, 64), None
    forward = staticmethod(torch.zeros_like)

    def __init__(self, file, *_):
        self.file = file

    @staticmethod
    def reads(file: Path, engine) -> bool:
        return file.suffix == ".plain"

    def prepare(self, pixels):
        return Prepared(pixels, pixels, (1, 1), (0, 0))

    def infer(self, images, thresholds):
        return None

    def finish(self, output, images, thresholds):
        return [Detections() for _ in images]


def test_another_format_is_a_class_and_a_line_in_the_table(engine, monkeypatch):
    assert loading.is_read("a.pt", engine) and loading.is_read("a.onnx", engine)
    assert not loading.is_read("a.plain", engine) and not loading.is_read("a.engine", engine)
    monkeypatch.setattr(loading, "_FORMATS", (_Plain, *loading._FORMATS))
    found = load_detector("a.plain", engine=engine)
    assert loading.is_read("a.plain", engine) and isinstance(found, Detector) and not isinstance(found, TorchDetector)
    assert [len(one) for one in found.detect([_noise(9, 9)], LOW)] == [0]
    with pytest.raises(UserError, match=r"a\.plain does not hold a torch model"):
        with_module(found)
    with pytest.raises(UserError, match=r"a\.plain does not hold a torch model"):
        yolov5_ema.load("a.plain")


def test_what_no_format_takes_is_said(engine, own_folder):
    Path("notes.txt").write_text("no model")
    with pytest.raises(CheckpointError, match=r"notes\.txt is not a PyTorch checkpoint"):
        load_detector("notes.txt", engine=engine)
    with pytest.raises(CheckpointError, match="weights not found: nowhere"):
        load_detector("nowhere.pt", engine=engine)
