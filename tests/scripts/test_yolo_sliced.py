"""predict and val of ultralytics on windows: the boxes are those of its own predict on each window, merged by rule."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import yolov5_ema
from yolov5_ema.cli._detections import Request, compared_with, detect_split
from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.data.slicing import windows
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.judged import Rules, labelled_images
from yolov5_ema.evaluation.ultralytics import UltralyticsProtocol
from yolov5_ema.scripts.sliced import sliced_inference
from yolov5_ema.scripts.yolo_val import collected, rules_of

SIZE, OVERLAP, IMGSZ = 96, 0.25, 64
CONF, IOU = 0.11, 0.5


@pytest.fixture
def engine(ultralytics):
    yield yolov5_ema.install("ultralytics")
    yolov5_ema.uninstall("ultralytics")


@pytest.fixture(scope="module")
def big_set(tiny_set, tmp_path_factory):
    """The tiny set's images in blocks of two by two, and one that is no larger than a window."""
    folder = tmp_path_factory.mktemp("big")
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for index, tile in enumerate(sorted((tiny_set.parent / "images").rglob("*.jpg"))[:3]):
        width, height = (96, 96) if index == 0 else (160, 120)
        cv2.imwrite(str(folder / f"images/val/{index}.png"), np.tile(cv2.imread(str(tile)), (2, 2, 1))[:height, :width])
        places = [(x, y) for x in range(10, width, 20) for y in range(10, height, 20)]
        rows = [f"{n % 3} {x / width} {y / height} {18 / width} {18 / height}" for n, (x, y) in enumerate(places)]
        (folder / f"labels/val/{index}.txt").write_text("\n".join(rows))
    file = folder / "big.yaml"
    file.write_text(f"path: {folder}\ntrain: images/val\nval: images/val\nnames: [disc, box, cross]\n")
    return file


@pytest.fixture(scope="module")
def as_onnx(ultralytics, small_yolo, tmp_path_factory):
    """The small detector as ONNX, for images of 64 x 64 pixels only."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    file = shutil.copy(small_yolo, tmp_path_factory.mktemp("onnx") / "small.pt")
    with yolov5_ema.installed("ultralytics"):
        return ultralytics.YOLO(file).export(format="onnx", imgsz=IMGSZ, device="cpu", verbose=False)


@pytest.fixture(params=["pt", "onnx"])
def weights(request):
    return Path(request.getfixturevalue({"pt": "small_yolo", "onnx": "as_onnx"}[request.param]))


def merged_by_rule(views, shape):
    """docs/slicing.md as loops: ``views`` has the window (None: the whole image) and the boxes (n, 6) of each view."""
    height, width = shape
    cut = [window for window, _ in views if window is not None]

    def ends_inside(box, window):
        margin = max(2, 0.01 * max(window[2] - window[0], window[3] - window[1]))
        sides = [(window[0] > 0, box[0] - window[0]), (window[1] > 0, box[1] - window[1])]
        sides += [(window[2] < width, window[2] - box[2]), (window[3] < height, window[3] - box[3])]
        return any(is_cut and distance <= margin for is_cut, distance in sides)

    def rank(box, window):
        if window is not None:
            return 3 if ends_inside(box, window) else 1
        for x1, y1, x2, y2 in cut:
            is_small = 2 * (box[2] - box[0]) <= x2 - x1 and 2 * (box[3] - box[1]) <= y2 - y1
            if is_small and not ends_inside(box, (x1, y1, x2, y2)):
                return 2
        return 1

    def area(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    found = [(rank(box, window), -box[4], view, box) for view, (window, rows) in enumerate(views) for box in rows]
    kept = []
    for grade, _, view, box in sorted(found, key=lambda item: item[:2]):
        for other_grade, other_view, other in kept:
            shared = area((*np.maximum(box[:2], other[:2]), *np.minimum(box[2:4], other[2:4])))
            overlaps = shared >= 0.45 * (area(box) + area(other) - shared)
            is_same = overlaps or (grade > 1 and shared >= 0.5 * area(box))
            if box[5] == other[5] and (view, grade) != (other_view, other_grade) and is_same:
                break
        else:
            kept.append((grade, view, box))
    return np.stack(sorted((box for _, _, box in kept), key=lambda box: -box[4]))


def by_hand(yolo, file, **options):
    """Its own predict on the whole image and on each window."""
    pixels = cv2.imread(str(file))
    height, width = pixels.shape[:2]
    settings = {"imgsz": IMGSZ, "device": "cpu", "conf": CONF, "iou": IOU, "verbose": False, **options}
    views = [(None, yolo.predict(pixels, **settings)[0].boxes.data.numpy())]
    for window in windows(width, height, SIZE, OVERLAP):
        left, top, right, bottom = window
        (result,) = yolo.predict(np.ascontiguousarray(pixels[top:bottom, left:right]), **settings)
        views.append((window, result.boxes.data.numpy() + np.float32([left, top, left, top, 0, 0])))
    return merged_by_rule(views, (height, width)), len(np.concatenate([rows for _, rows in views]))


def rows_of(detections):
    return np.concatenate([detections.xyxy, detections.confidence[:, None], detections.class_id[:, None]], axis=1)


def predicted(yolo, file, **options):
    settings = {"imgsz": IMGSZ, "device": "cpu", "conf": CONF, "iou": IOU, "verbose": False, **options}
    return yolo.predict(str(file), **settings)[0].boxes.data.numpy()


def figures_of(found, dataset, engine):
    """The figures of the protocol, from the collected boxes."""
    judged = labelled_images(dataset, "val", Rules(judged=found.images))
    truths, predictions = compared_with(found, judged, dataset, "val", ["ultralytics"], False)
    protocol = UltralyticsProtocol(dataset.names, rules_of(engine))
    for image, truth in truths["ultralytics"].truths.items():
        protocol.update(truth, predictions["ultralytics"][image])
    metrics = protocol.compute().metrics
    return tuple(metrics[name] for name in ("P", "R", "mAP50", "mAP50-95"))


def test_predict_is_that_of_each_window_merged(engine, ultralytics, weights, big_set, own_folder):
    yolo = ultralytics.YOLO(weights, task="detect")
    file = big_set.parent / "images/val/1.png"
    expected, seen = by_hand(yolo, file)
    assert 20 < len(expected) < 0.8 * seen
    plain = predicted(yolo, file)
    with sliced_inference(engine, "detect", SIZE, OVERLAP):
        yolo = ultralytics.YOLO(weights, task="detect")
        found = predicted(yolo, file)
        few = predicted(yolo, file, max_det=5)
        agnostic = predicted(yolo, file, agnostic_nms=True)
        small = predicted(yolo, big_set.parent / "images/val/0.png")
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert len(few) == 5 and 0 < len(agnostic) < len(found) != len(plain)
    yolo = ultralytics.YOLO(weights, task="detect")
    np.testing.assert_array_equal(small, predicted(yolo, big_set.parent / "images/val/0.png"))
    np.testing.assert_array_equal(predicted(yolo, file), plain)


def test_val_is_that_of_each_window_merged(engine, ultralytics, weights, big_set, own_folder):
    dataset = load_dataset(big_set)
    options = {"imgsz": IMGSZ, "device": "cpu", "batch": 2, "workers": 0, "conf": CONF, "iou": IOU}
    plain = collected(engine, weights, dataset, "val", options, 500, own_folder)
    flags = ["--img", IMGSZ, "--device", "cpu", "--batch", 2, "--workers", 0, "--conf", CONF, "--iou", IOU]
    flags += ["--slice", SIZE, "--overlap", OVERLAP]
    request = Request([str(weights)], str(big_set), "val", 500, [*map(str, flags)])
    found = detect_split(request, engine, dataset, own_folder)
    model = forward_of(weights, ultralytics)
    nms, ops = engine.module("utils.nms"), engine.module("utils.ops")
    letterbox = engine.module("data.augment").LetterBox(IMGSZ, auto=weights.suffix == ".pt", stride=8)
    for image in dataset.images("val")[1:]:
        pixels = cv2.imread(str(image))
        height, width = pixels.shape[:2]
        views = [(None, rows_of(plain.raw[image]))]
        for window in windows(width, height, SIZE, OVERLAP):
            left, top, right, bottom = window
            crop = pixels[top:bottom, left:right]
            boxed = letterbox(image=crop)[..., ::-1].transpose(2, 0, 1) / np.float32(255)
            (rows,) = nms.non_max_suppression(model(boxed[None]), CONF, IOU, multi_label=True, max_det=500)
            rows[:, :4] = ops.scale_boxes(boxed.shape[1:], rows[:, :4], crop.shape)
            views.append((window, rows.numpy() + np.float32([left, top, left, top, 0, 0])))
        np.testing.assert_allclose(rows_of(found.raw[image]), merged_by_rule(views, (height, width)), atol=1e-3)
    small = dataset.images("val")[0]
    np.testing.assert_array_equal(rows_of(found.raw[small]), rows_of(plain.raw[small]))
    assert figures_of(found, dataset, engine) == pytest.approx(found.figures, abs=1e-6)
    assert max(found.figures) > 0 and found.figures != plain.figures


def forward_of(weights, ultralytics):
    """The raw output of the model by torch, or by onnxruntime."""
    if weights.suffix == ".onnx":
        session = importlib.import_module("onnxruntime").InferenceSession(weights)
        return lambda batch: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: batch})[0])
    model = ultralytics.YOLO(weights).model.fuse().eval()
    return torch.no_grad()(lambda batch: model(torch.from_numpy(batch)))


def test_only_models_that_detect_can_be_sliced(engine, ultralytics, own_folder):
    from small_ultralytics import save, small_model

    save(small_model("segment"), Path("segment.pt"))
    with (
        sliced_inference(engine, "detect"),
        pytest.raises(UserError, match=r"--slice: segment\.pt is a model for the task segment"),
    ):
        ultralytics.YOLO("segment.pt").predict(np.zeros((8, 8, 3), np.uint8))
