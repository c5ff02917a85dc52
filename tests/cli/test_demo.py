"""``yolov5-ema demo``: what it parses, compares and prints. `make demo` runs all of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from yolov5_ema.cli import demo
from yolov5_ema.errors import UserError
from yolov5_ema.resources import find_shipped

V6_TABLE = """\
               Class     Images     Labels          P          R     mAP@.5 mAP@.5:.95:   0%|   | 0/4\r\
               Class     Images     Labels          P          R     mAP@.5 mAP@.5:.95: 100%|###| 4/4
                 all         60        949      0.777      0.755      0.802      0.281
                 car         60        319        0.8      0.702      0.751      0.233
Speed: 0.4ms pre-process, 20.1ms inference, 3.2ms NMS per image at shape (32, 3, 256, 256)
"""
V7_TABLE = """\
                 Class     Images  Instances          P          R      mAP50   mAP50-95: 100%|###| 2/2 00:01
                   all         60        949      0.815      0.795      0.846      0.324
                   car         60        319      0.801      0.731      0.789      0.276
"""


@pytest.mark.parametrize(
    "printed, scores",
    [
        (V6_TABLE, (0.802, 0.281)),
        (V7_TABLE, (0.846, 0.324)),
        ("   all   60   949   0.0012   0.072   7.6e-05   1\r\n", (7.6e-05, 1.0)),
        (V6_TABLE + V7_TABLE, (0.846, 0.324)),  # the last table counts
    ],
)
def test_scores_are_read_from_the_table(printed, scores):
    assert demo.read_scores(printed) == scores


def test_output_without_a_table_is_an_error():
    with pytest.raises(UserError, match="no row"):
        demo.read_scores("all is well")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--imgsz", "250"], "multiple of 32"),
        (["--imgsz", "32"], "at least 64"),
        (["--epochs", "0"], "at least 1"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, argv, message):
    with pytest.raises(UserError, match=message):
        demo.COMMAND.main(["--dir", str(tmp_path / "demo"), *argv])
    assert not (tmp_path / "demo").exists()


def test_missing_onnxruntime_is_said_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'yolov5-ema\[export\]'"):
        demo.COMMAND.main(["--dir", str(tmp_path / "demo")])


def test_what_a_step_prints_is_shown_and_kept(capfdbinary):
    printed = demo._step("--version", [])
    assert printed.startswith("yolov5-ema ")
    shown = capfdbinary.readouterr().out.decode()
    command, output = shown.lstrip().split("\n", 1)
    assert command.startswith("$ ") and command.endswith("--version")
    assert output == printed


def test_commands_are_shown_as_this_installation_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo.sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setattr(demo.shutil, "which", lambda name: None)
    assert demo._program() == f"{Path('.venv/bin/python')} -m yolov5_ema"
    monkeypatch.setattr(demo.shutil, "which", lambda name: "/elsewhere/bin/yolov5-ema")
    assert demo._program() == f"{Path('.venv/bin/python')} -m yolov5_ema"
    monkeypatch.setattr(demo.shutil, "which", lambda name: str(tmp_path / ".venv/bin/yolov5-ema"))
    assert demo._program() == "yolov5-ema"


def test_a_step_that_fails_is_named():
    with pytest.raises(UserError, match="nonsense ended with exit code 2"):
        demo._step("nonsense", [])


def test_cfg_and_hyperparameters_ship():
    assert find_shipped(demo.CFG) is not None
    hyp = yaml.safe_load(find_shipped(demo.HYP).read_text(encoding="utf-8"))
    batches = demo.EPOCHS * demo.TRAIN_IMAGES / demo.BATCH_SIZE
    warmup = hyp["warmup_epochs"] * demo.TRAIN_IMAGES / demo.BATCH_SIZE
    # YOLOv5 accumulates round(1 + share * (64 / batch - 1)) batches for each step; here that must stay 1.
    assert round(1 + batches / warmup * (64 / demo.BATCH_SIZE - 1)) == 1


# --- comparing with onnxruntime -------------------------------------------------------------


@pytest.fixture
def rows():
    """A possible output of a network for a 64 x 96 image: x, y, w, h, objectness, two class scores."""
    return np.array(
        [
            (20.2, 30.1, 10.0, 8.0, 0.9, 0.1, 0.8),
            (20.9, 30.1, 10.0, 8.0, 0.5, 0.1, 0.8),
            (70.0, 10.0, 6.0, 6.0, 0.8, 0.9, 0.2),
            (95.0, 60.0, 8.0, 10.0, 0.7, 0.6, 0.1),
        ],
        dtype=np.float32,
    )


def _detection(kind, x1, y1, x2, y2, confidence):
    return (kind, (x1 + x2) / 2 / 96, (y1 + y2) / 2 / 64, (x2 - x1) / 96, (y2 - y1) / 64, confidence)


@pytest.mark.parametrize(
    "detection, difference",
    [
        (_detection(1, 15, 26, 25, 34, 0.72), 0.0),
        (_detection(1, 15, 26, 25, 34, 0.70), 0.02),
        (_detection(0, 67, 7, 73, 13, 0.72), 0.0),
        (_detection(0, 91, 55, 96, 64, 0.42), 0.0),  # cut at the border
        (_detection(0, 15, 26, 25, 34, 0.72), np.inf),  # another class
        (_detection(1, 15, 26, 27, 34, 0.72), np.inf),  # another size
        (_detection(1, 45, 26, 55, 34, 0.72), np.inf),  # another place
    ],
)
def test_detections_are_looked_up_in_the_network_output(rows, detection, difference):
    found = demo._confidence_differences(rows, np.array([detection]), (64, 96))
    np.testing.assert_allclose(found, [difference], atol=1e-6)


def _onnx_giving(rows: np.ndarray, path: Path, shape: tuple[int, ...]) -> Path:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Constant", [], ["output"], value=onnx.numpy_helper.from_array(rows))
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)
    output = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, rows.shape)
    graph = onnx.helper.make_graph([node], "constant", [images], [output])
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[opset]), str(path))
    return path


@pytest.fixture
def pictures(tmp_path):
    """Two pictures of 64 x 96 pixels, one with a detection, and the folder of labels."""
    pytest.importorskip("onnxruntime")
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for name in "ab":
        cv2.imwrite(str(images / f"{name}.jpg"), np.zeros((64, 96, 3), np.uint8))
    text = " ".join(map(str, _detection(1, 15, 26, 25, 34, 0.721)))
    (labels / "a.txt").write_text(text + "\n")
    return images, labels


def test_onnx_that_agrees(tmp_path, rows, pictures):
    onnx = _onnx_giving(rows[None], tmp_path / "best.onnx", (1, 3, 64, 96))
    agreement = demo.compare_onnx(onnx, *pictures)
    assert agreement.detections == 1
    assert agreement.worst == pytest.approx(0.001, rel=0.01)


def test_onnx_that_lacks_a_detection(tmp_path, rows, pictures):
    onnx = _onnx_giving(rows[None, 2:], tmp_path / "best.onnx", (1, 3, 64, 96))
    with pytest.raises(UserError, match=r"does not find what the checkpoint finds in a\.jpg"):
        demo.compare_onnx(onnx, *pictures)


@pytest.mark.parametrize("broken", ["nan", "flat", "narrow"])
def test_onnx_with_broken_output(tmp_path, rows, pictures, broken):
    output = {"nan": rows[None] * np.float32("nan"), "flat": rows, "narrow": rows[None, :, :5]}[broken]
    onnx = _onnx_giving(output, tmp_path / "best.onnx", (1, 3, 64, 96))
    with pytest.raises(UserError, match="output of shape"):
        demo.compare_onnx(onnx, *pictures)


def test_export_that_wrote_nothing(tmp_path, pictures):
    with pytest.raises(UserError, match="export wrote no"):
        demo.compare_onnx(tmp_path / "best.onnx", *pictures)


# --- the end --------------------------------------------------------------------------------


@pytest.mark.parametrize("map50, code", [(0.8, 0), (0.5, 0), (0.49, 1)])
def test_exit_code_says_whether_it_learned(tmp_path, monkeypatch, capsys, map50, code):
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 1)
    monkeypatch.setattr(demo, "VAL_IMAGES", 1)
    monkeypatch.setattr(demo, "TEST_IMAGES", 1)
    monkeypatch.setattr(demo, "_train_and_use", lambda *_: demo.Scores(map50, 0.3))
    monkeypatch.setattr(demo, "compare_onnx", lambda *_, **__: demo.Agreement(12, 1e-5))
    assert demo.COMMAND.main(["--dir", str(tmp_path)]) == code
    out, err = capsys.readouterr()
    assert f"{map50:.3f}" in out and "train --data my.yaml" in out
    assert ("FAILED" in err) == bool(code)
