"""RT-DETR with a block: results are those of ultralytics' own predict and val, from the checkpoint and from ONNX."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from offline_ultralytics import needs_8_4
from small_ultralytics import save, small_model

import yolov5_ema
from yolov5_ema.cli.main import main
from yolov5_ema.data.slicing import windows
from yolov5_ema.data.visdrone_format import CLASSES
from yolov5_ema.detecting.loading import load_detector
from yolov5_ema.detecting.protocol import LoadOptions, Thresholds
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.sliced import sliced_inference
from yolov5_ema.scripts.window_views import merged_views

BASE = """\
nc: 3
scales: {l: [1.0, 1.0, 1024]}
backbone:
  - [-1, 1, HGStem, [8, 16]]
  - [-1, 1, HGBlock, [8, 32, 3]]
  - [-1, 1, DWConv, [32, 3, 2, 1, False]]
  - [-1, 1, HGBlock, [16, 64, 3]]
head:
  - [-1, 1, Conv, [32, 1, 1, None, 1, 1, False]]
  - [-1, 1, AIFI, [32, 2]]
  - [[5], 1, RTDETRDecoder, [nc, 32, 40, 4, 2, 1, 32]]
"""
CONF, IMGSZ = 0.01, 64
# releases up to 8.3 do not write into an exported model that it is an RT-DETR: only its name can say so
EXPORTED = "rtdetr-copy.onnx" if needs_8_4.args[0] else "copy.onnx"
HOW = {"imgsz": IMGSZ, "device": "cpu", "conf": CONF, "verbose": False}


@pytest.fixture(scope="module")
def files(ultralytics, tmp_path_factory):
    """A YAML as ``cfg`` writes it, a checkpoint of that model with random weights, and its export as ONNX."""
    folder = tmp_path_factory.mktemp("rtdetr")
    (folder / "rtdetr-l-base.yaml").write_text(BASE)
    cfg = folder / "rtdetr-l-small.yaml"
    assert (
        main(
            ["cfg", "--base", str(folder / "rtdetr-l-base.yaml"), "--block", "EMA", "--at", "backbone", "-o", str(cfg)]
        )
        == 0
    )
    with yolov5_ema.installed("ultralytics"):
        save(small_model(cfg=yaml.safe_load(cfg.read_text()), scale="l"), folder / "small.pt")
        copy = (folder / EXPORTED).with_suffix(".pt")
        shutil.copy(folder / "small.pt", copy)
        ultralytics.YOLO(copy).export(format="onnx", imgsz=IMGSZ, device="cpu", verbose=False)
    return folder


@pytest.fixture
def engine(ultralytics):
    yield yolov5_ema.install("ultralytics")
    yolov5_ema.uninstall("ultralytics")


@pytest.fixture(params=["small.pt", EXPORTED])
def weights(request, files):
    return files / request.param


@pytest.fixture
def opened(ultralytics, weights):
    """Opens the model with ultralytics' own class."""
    if "rtdetr" in weights.name:
        return lambda: ultralytics.RTDETR(weights)
    return lambda: ultralytics.YOLO(weights, task="detect")


def test_predict_is_that_of_ultralytics(engine, opened, weights, tiny_set, own_folder):
    images = tiny_set.parent / "images/test"
    flags = ["--img", str(IMGSZ), "--conf-thres", str(CONF), "--device", "cpu", "-o", "found.json"]
    assert main(["predict", "--weights", str(weights), "--source", str(images), *flags]) == 0
    found = json.loads(Path("found.json").read_text())
    expected = []
    for image in sorted(images.iterdir()):
        expected += opened().predict(image, **HOW)[0].boxes.data.tolist()
    assert len(found) == len(expected) > 100
    boxes = np.float32([(*row["bbox"], row["score"], row["category_id"]) for row in found])
    boxes[:, 2:4] += boxes[:, :2]
    np.testing.assert_allclose(boxes, np.float32(expected), atol=2e-3)


def test_evaluate_is_that_of_val(engine, opened, weights, tiny_set, own_folder):
    shutil.copytree(tiny_set.parent / "images/val", "set/images")
    Path("set/labels").mkdir()
    yolo = opened()
    for image in Path("set/images").iterdir():  # a few of its own boxes, for figures other than 0
        boxes = yolo.predict(image, **HOW)[0].boxes[:12:3]
        rows = np.concatenate([boxes.cls[:, None], boxes.xywhn.clamp(0, 1)], axis=1)
        np.savetxt(Path("set/labels", f"{image.stem}.txt"), rows, "%g")
    Path("set.yaml").write_text(f"path: {own_folder}/set\ntrain: images\nval: images\nnames: [disc, box, cross]\n")
    flags = ["--img", str(IMGSZ), "--device", "cpu", "--workers", "0", "--protocol", "ultralytics", "--no-plots"]
    assert main(["evaluate", "--weights", str(weights), "--data", "set.yaml", *flags, "--max-det", "300"]) == 0
    found = json.loads(Path("runs/evaluate/exp/evaluation.json").read_text())["ultralytics"]
    options = {"imgsz": IMGSZ, "device": "cpu", "plots": False, "workers": 0, "project": str(own_folder / "own")}
    box = opened().val(data="set.yaml", **options).box
    expected = {"P": box.mp, "R": box.mr, "mAP50": box.map50, "mAP50-95": box.map}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6) and 0.1 < box.map50 < 1


# val of 8.3 ends with a TypeError where it writes the boxes of an RT-DETR
@needs_8_4
@pytest.mark.parametrize("weights", ["small.pt", pytest.param(EXPORTED, marks=pytest.mark.slow)], indirect=True)
def test_windows_are_stretched_as_images_are(engine, opened, weights, tiny_set, own_folder):
    """predict and val in windows: its own predict on each, merged."""
    pixels = np.tile(cv2.imread(str(tiny_set.parent / "images/val/val0.jpg")), (2, 2, 1))[:120, :160]
    for folder in ("images", "labels"):
        Path("big", folder).mkdir(parents=True)
    cv2.imwrite("big/images/a.png", pixels)
    Path("big/labels/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    Path("big.yaml").write_text(f"path: {own_folder}/big\ntrain: images\nval: images\nnames: [disc, box, cross]\n")
    yolo = opened()
    cut = windows(160, 120, 96, 0.25)
    views = []
    for left, top, right, bottom in [(0, 0, 160, 120), *cut]:
        rows = yolo.predict(np.ascontiguousarray(pixels[top:bottom, left:right]), **HOW)[0].boxes.data
        views.append(rows + torch.tensor([left, top, left, top, 0, 0]))
    expected = merged_views(views[0], views[1:], cut, (120, 160), agnostic=False, max_det=300).numpy()
    assert len(cut) == 4 and 20 < len(expected) < sum(map(len, views))
    with sliced_inference(engine, "detect", 96, 0.25):
        found = opened().predict("big/images/a.png", **HOW)[0].boxes.data.numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    with sliced_inference(engine, "val", 96, 0.25):
        files = {"save_txt": True, "save_conf": True, "plots": False, "project": str(own_folder / "runs")}
        opened().val(data="big.yaml", **HOW, **files)
    (file,) = Path("runs").rglob("a.txt")
    rows = np.loadtxt(file)
    centers = (expected[:, :2] + expected[:, 2:4]) / 2 / (160, 120)
    np.testing.assert_allclose(rows[:, 1:3], centers, atol=1e-4)
    np.testing.assert_allclose(rows[:, 5], expected[:, 4], atol=1e-4)


def test_a_class_that_has_no_name_is_refused(engine, files, tiny_set):
    """As an RT-DETR finds that was exported with 8.3, and that is taken for another model."""
    detector = load_detector(files / "small.pt", LoadOptions(imgsz=(IMGSZ, IMGSZ)), engine=engine)
    detector.names = []
    pixels = cv2.imread(str(tiny_set.parent / "images/val/val0.jpg"))
    with pytest.raises(
        UserError, match=r"small.pt finds class [0-2], and has names for 0 classes.* put rtdetr into the"
    ):
        detector.detect([pixels], Thresholds(conf_thres=CONF))


def test_inspect_info_and_transfer(engine, ultralytics, files, own_folder, capsys):
    model = ultralytics.YOLO(files / "small.pt").model
    assert main(["info", str(files / "rtdetr-l-small.yaml"), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert sum(parameter.numel() for parameter in model.parameters()) in _numbers(described)
    assert main(["inspect", str(files / "small.pt")]) == 0
    rows = re.findall(r"attention in row (\d+): EMA \(channels=(\d+),", capsys.readouterr().out)
    assert [(type(model.model[int(row)]).__name__, channels) for row, channels in rows] == [
        ("EMA", "32"),
        ("EMA", "64"),
    ]
    base = str(files / "rtdetr-l-base.yaml")
    assert main(["cfg", "--base", base, "--block", "CBAM", "--at", "backbone", "-o", "rtdetr-l-cbam.yaml"]) == 0
    assert main(["transfer", str(files / "small.pt"), "--cfg", "rtdetr-l-cbam.yaml", "--nc", "3", "-o", "new.pt"]) == 0
    new, old = ultralytics.YOLO("new.pt").model.state_dict(), model.state_dict()
    blocks = tuple(f"model.{row}." for row, _ in rows)
    kept = {name for name in old if not name.startswith(blocks)}
    assert {name for name in new if not name.startswith(blocks)} == kept != set(new)
    assert all(torch.equal(new[name], old[name]) for name in kept)


# val of 8.3 ends with a TypeError where it writes the boxes of an RT-DETR
@needs_8_4
@pytest.mark.parametrize("weights", ["small.pt", pytest.param(EXPORTED, marks=pytest.mark.slow)], indirect=True)
def test_submit_has_the_boxes_of_val(engine, opened, weights, tiny_set, own_folder):
    content = {**yaml.safe_load(tiny_set.read_text()), "nc": 10, "names": list(CLASSES)}
    Path("drone.yaml").write_text(yaml.safe_dump(content))
    flags = ["--img", str(IMGSZ), "--conf-thres", str(CONF), "--device", "cpu", "-o", "results"]
    assert main(["submit", "--weights", str(weights), "--data", "drone.yaml", *flags]) == 0
    options = {**HOW, "save_txt": True, "save_conf": True, "plots": False, "max_det": 500}
    options["project"] = str(own_folder / "own")
    opened().val(data="drone.yaml", split="test", **options)
    rows = np.loadtxt("results/test0.txt", delimiter=",")
    (file,) = Path("own").rglob("test0.txt")
    own, side = np.loadtxt(file), cv2.imread(str(tiny_set.parent / "images/test/test0.jpg")).shape[0]
    assert len(rows) == len(own) > 20
    np.testing.assert_allclose(rows[:, 4], own[:, 5], atol=1e-4)
    np.testing.assert_allclose(rows[:, :2] + rows[:, 2:4] / 2, own[:, 1:3] * side, atol=0.02)


def _numbers(content):
    if isinstance(content, dict):
        return [number for value in content.values() for number in _numbers(value)]
    return [content] if isinstance(content, (int, float)) else []
