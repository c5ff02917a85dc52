"""Exported models of both YOLOs give the detections of their checkpoint on the same letterbox."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import laid_aside, run_cli

import yolov5_ema
from yolov5_ema.checkpoints.recognition import engine_of_weights
from yolov5_ema.detecting.loading import engine_for, load_detector
from yolov5_ema.detecting.pipeline import Pipeline
from yolov5_ema.detecting.protocol import LoadOptions, Thresholds, TooThinError
from yolov5_ema.errors import CheckpointError, UserError

# nothing is suppressed: a difference in the last digit could decide which of two boxes stays
LOW = Thresholds(conf_thres=0.001, iou_thres=1.0, max_det=1000)
NAMES = ["disc", "box", "cross"]
FORMS = {"onnx": "best.onnx", "openvino": "best_openvino_model", "torchscript": "best.torchscript"}


EACH = ["onnx", *(pytest.param(form, marks=pytest.mark.slow) for form in ("openvino", "torchscript"))]


def needs(form: str) -> None:
    package = {"onnx": "onnxruntime", "openvino": "openvino"}.get(form, "torch")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """YOLOv5's own export, by the release that writes metadata; each format once."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copy(trained, folder / "best.pt")

    def export(form: str) -> Path:
        needs(form)
        file = folder / FORMS[form]
        if not file.exists():
            flags = ("--weights", "best.pt", "--include", form, "--img", 64, "--yolov5", laid_aside("7.0.14"))
            done = run_cli("export", *flags, cwd=folder)
            assert done.returncode == 0, done.stderr[-3000:]
        return file

    return export


@pytest.fixture
def square(tiny_set):
    """An image that fills the exported size, so that both letterboxes are alike."""
    return cv2.imread(str(tiny_set.parent / "images/test/test0.jpg"))


def assert_alike(found, expected, pixels=1e-3):
    """Each detection is there on the other side, within ``pixels`` and 1e-4 of confidence."""
    assert len(found) == len(expected) > 10
    for one, other in ((found, expected), (expected, found)):
        near = np.abs(one.xyxy[:, None] - other.xyxy[None]).max(axis=2) <= pixels
        near &= np.abs(one.confidence[:, None] - other.confidence[None]) <= 1e-4
        near &= one.class_id[:, None] == other.class_id[None]
        assert near.any(axis=1).all()


@pytest.mark.parametrize("form", EACH)
def test_yolov5(exported, trained, engine, square, form):
    file = exported(form)
    assert engine_of_weights(file) == "yolov5"
    detector = load_detector(file, LoadOptions(imgsz=(640, 640)), engine=engine)
    assert (detector.names, detector.stride, detector.task, detector.imgsz) == (NAMES, 32, "detect", (64, 64))
    (expected,) = load_detector(trained, LoadOptions(imgsz=(64, 64)), engine=engine).detect([square], LOW)
    (found,) = detector.detect([square], LOW)
    # both are rounded to whole pixels
    assert_alike(found, expected, pixels=1)
    with pytest.raises(TooThinError):
        detector.detect([np.zeros((2, 2000, 3), np.uint8)], LOW)
    with pytest.raises(UserError, match="--augment works only with a checkpoint"):
        detector.detect([square], Thresholds(augment=True))


def test_without_metadata_the_names_are_asked_for(trained, engine, square, tmp_path):
    """v6.0 writes none."""
    needs("onnx")
    shutil.copy(trained, tmp_path / "best.pt")
    done = run_cli("export", "--weights", "best.pt", "--include", "onnx", "--img", 64, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    file = tmp_path / "best.onnx"
    assert engine_of_weights(file) is None
    with pytest.raises(UserError, match=r"best\.onnx does not say the names of its classes: .* with --data"):
        load_detector(file, engine=engine)
    with pytest.raises(UserError, match=r"has 3 classes, but 4 names were given"):
        load_detector(file, LoadOptions(names=[*NAMES, "more"]), engine=engine)
    (found,) = load_detector(file, LoadOptions(names=NAMES), engine=engine).detect([square], LOW)
    (expected,) = load_detector(trained, LoadOptions(imgsz=(64, 64)), engine=engine).detect([square], LOW)
    assert_alike(found, expected, pixels=1)


@pytest.fixture
def adapter(ultralytics):
    yield yolov5_ema.install("ultralytics")
    yolov5_ema.uninstall("ultralytics")


@pytest.mark.parametrize("form", EACH)
def test_ultralytics(adapter, ultralytics, small_yolo, square, tmp_path, form):
    needs(form)
    shutil.copy(small_yolo, tmp_path / "best.pt")
    ultralytics.YOLO(tmp_path / "best.pt").export(format=form, imgsz=64, device="cpu", verbose=False)
    file = tmp_path / FORMS[form]
    assert engine_of_weights(file) == "ultralytics" == engine_of_weights(small_yolo)
    assert engine_for([file, small_yolo]).kind == "ultralytics"
    detector = load_detector(file, LoadOptions(imgsz=(64, 64)), engine=adapter)
    assert (detector.names, detector.stride, detector.task, detector.imgsz) == (NAMES, 8, "detect", (64, 64))
    # it has one size
    assert load_detector(file, LoadOptions(imgsz=(640, 640)), engine=adapter).imgsz == (64, 64)
    (expected,) = load_detector(small_yolo, LoadOptions(imgsz=(64, 64)), engine=adapter).detect([square], LOW)
    (found,) = detector.detect([square], LOW)
    assert_alike(found, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("nms", [True, False])
def test_a_model_with_thresholds_of_its_own_is_named(adapter, tmp_path, caplog, nms):
    file = tmp_path / "best.torchscript"
    config = json.dumps({"stride": 8, "task": "detect", "names": {"0": "disc"}, "args": {"nms": nms}})
    model = torch.jit.trace(torch.nn.Conv2d(3, 1, 1), torch.zeros(1, 3, 8, 8))
    torch.jit.save(model, str(file), _extra_files={"config.txt": config})
    with caplog.at_level("WARNING", "yolov5_ema"):
        engine_for([file])
    assert ("best.torchscript was exported with nms=True" in caplog.text) is nms


def test_predict_is_that_of_ultralytics(adapter, ultralytics, small_yolo, tiny_set):
    image = tiny_set.parent / "images/test/test1.jpg"
    thresholds = Thresholds(conf_thres=0.02, iou_thres=0.6, max_det=20, classes=(0, 2))
    detector = load_detector(small_yolo, LoadOptions(imgsz=(64, 96)), engine=adapter)
    assert detector.imgsz == (64, 96)
    (found,) = detector.detect([cv2.imread(str(image))], thresholds)
    options = {"imgsz": [64, 96], "conf": 0.02, "iou": 0.6, "max_det": 20, "classes": [0, 2], "verbose": False}
    own = ultralytics.YOLO(small_yolo).predict(image, device="cpu", **options)[0].boxes.data.numpy()
    assert 0 < len(found) <= 20 and set(found.class_id) <= {0, 2}
    np.testing.assert_array_equal(found.xyxy, own[:, :4])
    np.testing.assert_array_equal(found.confidence, own[:, 4])


def test_steps_of_ultralytics(adapter, small_yolo):
    """Images of several sizes that have one letterbox, in one call of the model; and another model in its place."""
    detector = load_detector(small_yolo, LoadOptions(imgsz=(64, 64)), engine=adapter)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (64, 96, 32)]
    prepared = [detector.prepare(pixels) for pixels in images]
    together = detector.finish(detector.infer(prepared, LOW), prepared, LOW)
    for found, pixels in zip(together, images, strict=True):
        (alone,) = detector.detect([pixels], LOW)
        assert_alike(found, alone)
        (of_noise,) = detector.detect([255 - pixels], LOW)
        assert len(of_noise) != len(alone) or np.abs(of_noise.xyxy - alone.xyxy).max() > 1
    own = detector.forward
    detector.forward = lambda batch: own(1 - batch)
    (found,) = detector.detect(images[:1], LOW)
    detector.forward = own
    (expected,) = detector.detect([255 - images[0]], LOW)
    assert_alike(found, expected)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_ultralytics_in_threads(adapter, ultralytics, small_yolo, tiny_set, two_threads):
    """Image by image it gives the bits of ultralytics; copies that share their weights give the same within noise."""
    detector = load_detector(small_yolo, LoadOptions(imgsz=(64, 96)), engine=adapter)
    files = sorted((tiny_set.parent / "images").rglob("*.jpg"))[:6]
    alone = [found.detections for found in Pipeline(detector, 1).found_in(files, LOW)]
    options = {"imgsz": [64, 96], "conf": LOW.conf_thres, "iou": 1.0, "max_det": LOW.max_det, "verbose": False}
    for file, found in zip(files, alone, strict=True):
        own = ultralytics.YOLO(small_yolo).predict(file, device="cpu", **options)[0].boxes.data.numpy()
        np.testing.assert_array_equal(found.xyxy, own[:, :4])
        np.testing.assert_array_equal(found.confidence, own[:, 4])
    torch.set_num_threads(2)  # ultralytics has chosen another number
    for found, expected in zip(Pipeline(detector).found_in(files, LOW), alone, strict=True):
        assert_alike(found.detections, expected)
    one, other = detector.copies(2)
    assert one.forward != other.forward != detector.forward
    mine, theirs = (next(each._yolo.predictor.model.model.parameters()) for each in (one, other))
    assert mine.data_ptr() == theirs.data_ptr()


def test_files_of_both_at_once_are_refused(trained, small_yolo):
    with pytest.raises(
        UserError, match=r"best\.pt belongs to YOLOv5 and .*small\.pt to ultralytics; use one at a time"
    ):
        engine_for([trained, small_yolo])
    with pytest.raises(UserError, match=r"small\.pt belongs to ultralytics, not to yolov5: leave out --engine yolov5"):
        engine_for([small_yolo], "yolov5")
    assert engine_of_weights(Path("nowhere.pt")) is None


def test_a_file_that_is_none_of_its_format(engine, tmp_path):
    needs("onnx")
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"a\.onnx is not an ONNX file"):
        load_detector(tmp_path / "a.onnx", LoadOptions(names=NAMES), engine=engine)
    with pytest.raises(UserError, match=r"b\.onnx: there is no such file"):
        load_detector(tmp_path / "b.onnx", LoadOptions(names=NAMES), engine=engine)
