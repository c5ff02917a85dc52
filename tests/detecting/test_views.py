"""predict in windows: the bits of ``detect --slice``, windows of all images in batches, in bounded memory."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import run_cli

import yolov5_ema
from yolov5_ema.data.image_files import read_image
from yolov5_ema.detecting import pipeline
from yolov5_ema.detecting.loading import load_detector
from yolov5_ema.detecting.pipeline import Pipeline
from yolov5_ema.detecting.protocol import LoadOptions, Thresholds
from yolov5_ema.detecting.views import Cut, Slicing, View
from yolov5_ema.scripts.sliced import sliced_inference

SIZE, OVERLAP, IMGSZ = 48, 0.25, 64
SLICING = Slicing(SIZE, OVERLAP)
LOW = Thresholds(conf_thres=0.0001, max_det=300)


@pytest.fixture(scope="module")
def files(tiny_set, tmp_path_factory) -> list[Path]:
    """Images of 35 windows, of one row of windows, and one that is no larger than a window."""
    folder = tmp_path_factory.mktemp("images")
    tiles = sorted((tiny_set.parent / "images").rglob("*.jpg"))
    for number, (width, height) in enumerate([(250, 181), (230, 40), (48, 48), (160, 121)]):
        picture = np.tile(cv2.imread(str(tiles[number])), (2, 3, 1))[:height, :width]
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def trained_detector(engine, trained):
    return load_detector(trained, LoadOptions(imgsz=(IMGSZ, IMGSZ)), engine=engine)


@pytest.fixture
def detector(trained_detector, monkeypatch):
    """Its model may be replaced."""
    monkeypatch.setattr(trained_detector, "forward", trained_detector.forward)
    return trained_detector


def detected(engine, weights, file, project, thresholds) -> np.ndarray:
    """The rows of YOLOv5's own sliced detect, (n, 6) of corners in whole pixels, confidence, class."""
    module = engine.module("detect")
    name = "scale_boxes" if hasattr(module, "scale_boxes") else "scale_coords"
    scale, found = getattr(module, name), []
    with sliced_inference(engine, "detect", SIZE, OVERLAP), pytest.MonkeyPatch.context() as patched:
        suppress = module.non_max_suppression

        def suppressed(*args, **kwargs):
            found.append(suppress(*args, **kwargs)[0])
            return [found[0]]

        def scaled(*args, **kwargs):
            found[0][:, :4] = scale(*args, **kwargs).round()
            return found[0][:, :4]

        patched.setattr(module, "non_max_suppression", suppressed)
        patched.setattr(module, name, scaled)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            module.run(
                weights=str(weights),
                source=str(file),
                imgsz=[IMGSZ, IMGSZ],
                conf_thres=thresholds.conf_thres,
                iou_thres=thresholds.iou_thres,
                max_det=thresholds.max_det,
                classes=list(thresholds.classes) if thresholds.classes else None,
                agnostic_nms=thresholds.agnostic_nms,
                augment=thresholds.augment,
                device="cpu",
                nosave=True,
                project=project,
            )
    (rows,) = found
    return rows.numpy()


def rows_of(found) -> np.ndarray:
    return found.detections.as_rows()


def assert_near(found: np.ndarray, expected: np.ndarray, pixels: float = 1) -> None:
    """Nearly every row is there on the other side; after so short a training, noise decides for some of them."""
    assert len(found) == pytest.approx(len(expected), rel=0.02) and len(expected) > 10
    for one, other in ((found, expected), (expected, found)):
        near = np.abs(one[:, None, :4] - other[None, :, :4]).max(axis=2) <= pixels
        near &= np.abs(one[:, None, 4] - other[None, :, 4]) <= 1e-4
        near &= one[:, None, 5] == other[None, :, 5]
        assert near.any(axis=1).mean() > 0.97


@pytest.mark.parametrize(
    "thresholds",
    [
        LOW,
        Thresholds(conf_thres=0.0001, max_det=40, agnostic_nms=True),
        Thresholds(conf_thres=0.0005, iou_thres=0.7, classes=(0, 2)),
        Thresholds(conf_thres=0.0001, max_det=100, augment=True),
    ],
    ids=["plain", "agnostic", "classes", "augment"],
)
def test_the_bits_are_those_of_detect(engine, trained, detector, files, thresholds, tmp_path):
    results = list(Pipeline(detector, 1, SLICING).found_in(files, thresholds))
    for number, (file, found) in enumerate(zip(files, results, strict=True)):
        assert found.size == read_image(file).pixels.shape[:2] and found.problem is None
        expected = detected(engine, trained, file, tmp_path, thresholds)
        assert len(expected) > (3 if number == 2 else 10)
        np.testing.assert_array_equal(rows_of(found), expected)
    alone = list(Pipeline(detector, 1).found_in(files, thresholds))
    np.testing.assert_array_equal(rows_of(results[2]), rows_of(alone[2]))
    assert not np.array_equal(rows_of(results[0]), rows_of(alone[0]))


@pytest.mark.parametrize(("batch", "threads"), [(None, 1), (None, 2), (3, 1)])
def test_batches_and_copies_differ_by_noise_only(detector, files, batch, threads):
    exact = [rows_of(found) for found in Pipeline(detector, 1, SLICING).found_in(files, LOW)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = list(Pipeline(detector, batch, SLICING).found_in(files, LOW))
    finally:
        torch.set_num_threads(before)
    for found, expected in zip(results, exact, strict=True):
        assert_near(rows_of(found), expected)


def _shapes(detector, monkeypatch, batch, files):
    own, shapes = detector.forward, []

    def forward(images):
        shapes.append(tuple(images.shape))
        return own(images)

    monkeypatch.setattr(detector, "forward", forward)
    list(Pipeline(detector, batch, SLICING).found_in(files, LOW))
    return shapes


def test_windows_of_several_images_go_together(detector, files, monkeypatch):
    counts = [len(SLICING.windows(read_image(file).pixels.shape[:2])) for file in files]
    assert counts == [35, 7, 0, 20]
    shapes = _shapes(detector, monkeypatch, 10, files)
    # all windows, and the first and the last whole image, are squares of 64 for the model; the third is not cut
    assert sorted(shape[0] for shape in shapes) == [1, 1, 4, *[10] * 6]
    assert [shape for shape in shapes if shape[2:] != (64, 64)] == [(1, 3, 32, 64)]


def test_image_by_image_windows_go_as_in_detect(detector, files, monkeypatch):
    shapes = _shapes(detector, monkeypatch, 1, files)
    assert sorted(shape[0] for shape in shapes) == sorted([1, 8, 8, 8, 8, 3, 1, 7, 1, 1, 8, 8, 4])


def test_a_batch_that_a_gpu_cannot_hold_goes_view_by_view(detector, files, monkeypatch):
    expected = [rows_of(found) for found in Pipeline(detector, 1, SLICING).found_in(files, LOW)]
    own = detector.forward

    def forward(batch):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(batch)

    monkeypatch.setattr(detector, "forward", forward)
    for found, one in zip(Pipeline(detector, 4, SLICING).found_in(files, LOW), expected, strict=True):
        assert_near(rows_of(found), one)


@pytest.mark.parametrize(("batch", "most"), [(1, 8), (4, 4)])
def test_few_windows_are_in_memory(detector, tmp_path, monkeypatch, batch, most):
    """Those of three batches, and what is read ahead; the image has 1,600 windows."""
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((1280, 1280, 3), np.uint8))
    slicing = Slicing(32, 0)
    assert len(slicing.windows((1280, 1280))) == 1600
    waiting, largest = 0, 0
    prepare = type(detector).prepare

    def prepared(self, pixels):
        nonlocal waiting, largest
        waiting += 1
        largest = max(largest, waiting)
        return prepare(self, pixels)

    def inferred(self, images, thresholds):
        nonlocal waiting
        waiting -= len(images)
        return torch.zeros(len(images), 1, 8)

    monkeypatch.setattr(type(detector), "prepare", prepared)
    monkeypatch.setattr(type(detector), "infer", inferred)
    monkeypatch.setattr(pipeline, "all_cores", lambda: 2)
    (found,) = Pipeline(detector, batch, slicing).found_in([tmp_path / "large.png"], LOW)
    assert len(found.detections) == 0 and waiting == 0
    ahead = most + 1
    assert most < largest <= 3 * most + ahead + 1


def test_bad_files_are_as_without_windows(detector, files, tmp_path):
    good = tmp_path / "good.jpg"
    cv2.imwrite(str(good), cv2.imread(str(files[0])))
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:-2000])
    (tmp_path / "empty.png").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "thin.png"), np.zeros((1, 900, 3), np.uint8))
    names = [tmp_path / name for name in ("cut.jpg", "empty.png", "thin.png", "good.jpg")]
    cut, empty, thin, whole = Pipeline(detector, 1, SLICING).found_in(names, LOW)
    assert cut.problem.startswith("is cut off") and cut.size == (181, 250) and len(cut.detections) > 10
    assert (empty.size, empty.detections, empty.problem) == (None, None, "is empty")
    assert (thin.size, thin.detections) == ((1, 900), None) and thin.problem.startswith("is too narrow: 900 x 1")
    assert whole.problem is None and len(whole.detections) > 10


def test_onnx_gives_the_bits_of_detect(engine, trained, files, tmp_path):
    pytest.importorskip("onnxruntime")
    shutil.copy(trained, tmp_path / "best.pt")
    done = run_cli("export", "--weights", "best.pt", "--include", "onnx", "--img", IMGSZ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = tmp_path / "best.onnx"
    names = None if engine.release >= (6, 1) else ["disc", "box", "cross"]
    detector = load_detector(weights, LoadOptions(imgsz=(IMGSZ, IMGSZ), names=names), engine=engine)
    assert detector.most_at_once == 1
    for file, found in zip(files, Pipeline(detector, 1, SLICING).found_in(files, LOW), strict=True):
        np.testing.assert_array_equal(rows_of(found), detected(engine, weights, file, tmp_path, LOW))


@pytest.fixture
def adapter(ultralytics):
    yield yolov5_ema.install("ultralytics")
    yolov5_ema.uninstall("ultralytics")


@pytest.mark.parametrize("form", ["pt", "onnx"])
def test_ultralytics_gives_the_bits_of_its_detect(adapter, ultralytics, small_yolo, files, tmp_path, form):
    weights = Path(shutil.copy(small_yolo, tmp_path / "best.pt"))
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        weights = Path(ultralytics.YOLO(weights).export(format="onnx", imgsz=IMGSZ, device="cpu", verbose=False))
    thresholds = Thresholds(conf_thres=0.11, iou_thres=0.5, max_det=200, agnostic_nms=True)
    detector = load_detector(weights, LoadOptions(imgsz=(IMGSZ, IMGSZ)), engine=adapter)
    options = {"imgsz": [IMGSZ, IMGSZ], "conf": 0.11, "iou": 0.5, "max_det": 200, "agnostic_nms": True}
    results = list(Pipeline(detector, 1, SLICING).found_in(files, thresholds))
    together = list(Pipeline(detector, 5, SLICING).found_in(files, thresholds))
    with sliced_inference(adapter, "detect", SIZE, OVERLAP):
        yolo = ultralytics.YOLO(weights, task="detect")
        for number, (file, found, other) in enumerate(zip(files, results, together, strict=True)):
            (own,) = yolo.predict(file, device="cpu", verbose=False, **options)
            assert len(found.detections) > (0 if number == 2 else 10)
            np.testing.assert_array_equal(rows_of(found), own.boxes.data.numpy())
            if number != 2:
                assert_near(rows_of(other), rows_of(found), pixels=0.01)


def test_views_of_an_image():
    cut = Cut((100, 150), (64, 96), [(0, 0, 100, 100), (50, 0, 150, 100)])
    gain, left, top = cut.gain_and_pad
    assert (gain, left, top) == pytest.approx((0.64, 0, 0))
    whole, first, last = View(cut), View(cut, cut.windows[0]), View(cut, (50, 0, 150, 100))
    assert [view.is_last for view in (whole, first, last)] == [False, False, True]
    image = np.arange(100 * 150).reshape(100, 150)
    assert whole.pixels(image).shape == (100, 150) and last.pixels(image)[0, 0] == 50
    boxes = torch.tensor([[2.0, 10, 30, 40, 0.5, 1]])
    found = [view.native(boxes) for view in (whole, first, last)]
    # the first window shows it larger than the image does; in the second it begins two pixels from the border
    assert [one.rank.tolist() for one in found] == [[1], [0], [2]]
    np.testing.assert_allclose(found[2].boxes, [[52, 10, 80, 40, 0.5, 1]])
    assert last.native(torch.tensor([[3.0, 10, 30, 40, 0.5, 1]])).rank.tolist() == [0]
