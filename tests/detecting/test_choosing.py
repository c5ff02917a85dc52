"""Another runtime gives torch's detections, from an export that is made once and not trusted blindly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from yolov5_ema.detecting import choosing, exporting
from yolov5_ema.detecting.loading import load_detector
from yolov5_ema.detecting.protocol import LoadOptions, Thresholds
from yolov5_ema.errors import UserError
from yolov5_ema.kernels import native

# nothing is suppressed: a difference in the last digit could decide which of two boxes stays
LOW = Thresholds(conf_thres=0.001, iou_thres=1.0, max_det=1000)
MANY = 1000
# the first is too narrow to be scaled
SAMPLES = [np.zeros((2, 2000, 3), np.uint8), np.full((96, 96, 3), 99, np.uint8)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder that the tests of this file share."""
    pytest.importorskip("onnxruntime")
    native.library()  # the kernels of the usual folder, so that they are not compiled into this one
    folder = tmp_path_factory.mktemp("cache")
    folder.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLOV5_EMA_CACHE", str(folder))
        yield folder


@pytest.fixture
def detector(trained, engine, cache):
    return load_detector(trained, LoadOptions(imgsz=(64, 64)), engine=engine)


@pytest.fixture
def images(tiny_set):
    """Images of two letterbox shapes."""
    square = cv2.imread(str(tiny_set.parent / "images/test/test0.jpg"))
    return [square, square[:40], square[::-1].copy()]


def chosen(detector, engine, asked="auto", count=MANY):
    return choosing.set_runtime(detector, engine, asked, count, SAMPLES)


def verdicts(detector, engine) -> list[Path]:
    return [*exporting.beside("", "").parent.glob(f"{exporting.key_of(detector, engine)}-*.json")]


def exports(cache) -> list[Path]:
    return sorted(cache.glob("*.onnx"))


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_detections_are_those_of_torch(detector, engine, images, name):
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    expected = detector.detect(images, LOW)
    own = detector.forward
    assert chosen(detector, engine, name) == name and detector.forward is not own
    batch = detector.batch([detector.prepare(images[0]), detector.prepare(images[2])])
    with torch.no_grad():
        torch.testing.assert_close(detector.forward(batch), own(batch), rtol=1e-4, atol=1e-4)
        # an image gives the same bits in any batch
        assert torch.equal(detector.forward(batch)[1:], detector.forward(batch[1:]))
    for found, torchs in zip(detector.detect(images, LOW), expected):
        assert len(found) == len(torchs) > 10
        order, other = (np.lexsort((one.confidence.round(4), *one.xyxy.T)) for one in (found, torchs))
        np.testing.assert_allclose(found.xyxy[order], torchs.xyxy[other], atol=1)
        np.testing.assert_allclose(np.sort(found.confidence), np.sort(torchs.confidence), atol=1e-4)


def test_an_export_is_made_once_and_again_if_it_is_damaged(detector, engine, cache):
    key = exporting.key_of(detector, engine)
    file = exporting.exported(detector, key)
    content, written = file.read_bytes(), file.stat().st_mtime_ns
    assert file.parent == cache and file.stat().st_mode & 0o777 == 0o600
    assert exporting.exported(detector, key) == file and file.stat().st_mtime_ns == written
    file.write_bytes(content[:-1])
    assert exporting.find_exported(key) is None
    again = exporting.exported(detector, key)
    assert exports(cache) == [again] and exporting.find_exported(key) == again
    again.chmod(0o666)
    assert exporting.find_exported(key) is None, "others could have written it"
    assert exporting.exported(detector, key).stat().st_mode & 0o777 == 0o600


def test_the_key_is_of_the_checkpoint_and_of_the_code_of_its_layers(detector, engine, trained, tmp_path, monkeypatch):
    key = exporting.key_of(detector, engine)
    assert key == exporting.key_of(detector, engine)
    sources = exporting._sources_of(detector.module)
    assert {Path(file).name for file in sources} >= {"ema.py", "yolo.py", "common.py"}
    other = tmp_path / "other.pt"
    shutil.copy(trained, other)
    with other.open("ab") as stream:
        stream.write(b"\0")
    monkeypatch.setattr(detector, "file", other)
    assert exporting.key_of(detector, engine) != key
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "99")
    assert exporting.key_of(detector, engine) != key


def test_a_folder_that_others_can_write_to_is_not_used(detector, engine, tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.setenv("YOLOV5_EMA_CACHE", str(tmp_path))
    assert exporting.beside("key", "name").parent != tmp_path


def test_auto_is_torch_for_few_images(detector, engine, cache, tmp_path, monkeypatch):
    own = detector.forward
    assert chosen(detector, engine, "torch") == "torch"
    assert chosen(detector, engine, count=31) == "torch"
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    monkeypatch.setenv("YOLOV5_EMA_CACHE", str(empty))
    assert chosen(detector, engine, count=199) == "torch"
    assert detector.forward is own and not any(empty.iterdir()), "no export for them"


def test_auto_takes_the_fastest_and_remembers_it(detector, engine, cache, caplog):
    caplog.set_level("INFO", "yolov5_ema")
    name = chosen(detector, engine)
    (verdict,) = verdicts(detector, engine)
    seconds = json.loads(verdict.read_text())
    assert set(seconds) >= {"torch", "onnx"} and name == min(seconds, key=seconds.get)
    assert f"{name} runs the model (for an image: torch " in caplog.text
    verdict.write_text(json.dumps({**dict.fromkeys(seconds, 2.0), "onnx": 1.0}))
    assert chosen(detector, engine, count=32) == "onnx", "the export is there already"
    verdict.write_text(json.dumps({**dict.fromkeys(seconds, 2.0), "onnx": None}))
    assert chosen(detector, engine) != "onnx"
    for nonsense in ("{}", "[", json.dumps({**seconds, "torch": "x"})):
        verdict.write_text(nonsense)
        assert chosen(detector, engine) in seconds and json.loads(verdict.read_text()).keys() == seconds.keys()


class _Wrong:
    """A runtime whose values are wrong for one shape."""

    shape = (None, 3, None, None)

    def __init__(self, forward, side):
        self._forward, self._side = forward, side

    def run(self, batch):
        output = self._forward(torch.from_numpy(batch))
        return output + 1 if batch.shape[2] == self._side else output


def test_a_runtime_that_gives_something_else(detector, engine, cache, images, monkeypatch, caplog):
    own, expected = detector.forward, detector.detect(images, LOW)
    monkeypatch.setattr(choosing, "loaded", lambda *_: _Wrong(own, 32))
    assert chosen(detector, engine, "onnx") == "onnx"
    assert len(detector.detect(images[:1], LOW)[0]) == len(expected[0])
    with pytest.raises(UserError, match=r"--runtime onnx gives something else than torch for 64 x 32 pixels: values"):
        detector.detect(images, LOW)
    # the sample of auto is square, so it is found out later, and torch runs that shape
    detector.forward = own
    for file in verdicts(detector, engine):
        file.unlink()
    monkeypatch.setattr(choosing, "_seconds", lambda forward, _: 1.0 if forward is own else 0.5)
    assert chosen(detector, engine) != "torch"
    for found, torchs in zip(detector.detect([*images, images[1]], LOW), [*expected, expected[1]]):
        np.testing.assert_array_equal(found.xyxy, torchs.xyxy)
        np.testing.assert_array_equal(found.confidence, torchs.confidence)
    assert caplog.text.count("torch runs images of 64 x 32 pixels") == 1
    # or with the sample
    detector.forward = own
    for file in verdicts(detector, engine):
        file.unlink()
    monkeypatch.setattr(choosing, "loaded", lambda *_: _Wrong(own, 64))
    assert chosen(detector, engine) == "torch" and detector.forward is own
    assert "onnx gives something else than torch: values differ by up to 1" in caplog.text
    for file in verdicts(detector, engine):
        file.unlink()


@pytest.mark.parametrize(
    ("name", "precision"),
    [("openvino", "half"), ("onnx", "int8"), ("openvino", "int8")],
)
def test_lower_precision(detector, engine, images, name, precision, capfd):
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    if precision == "int8":
        pytest.importorskip("onnx")
    own = detector.forward
    together = detector.batch([detector.prepare(images[0]), detector.prepare(images[2])])
    parts = (images[0][:, :20], images[0][:20])
    of_other_shapes = [detector.batch([detector.prepare(np.ascontiguousarray(part))]) for part in parts]
    assert len({batch.shape[2:] for batch in (together, *of_other_shapes)}) == 3
    assert choosing.set_runtime(detector, engine, name, MANY, [*SAMPLES, *images], precision) == name
    assert "pre-processing" not in capfd.readouterr().err  # onnxruntime's advice
    for batch in (together, *of_other_shapes):
        with torch.no_grad():
            expected, found = own(batch), detector.forward(batch)
        assert found.shape == expected.shape and not torch.equal(found, expected)
        close = torch.isclose(found, expected, rtol=0.05, atol=0.02)
        assert close.float().mean() > 0.95


def test_what_is_far_from_torch_is_refused(detector, engine, images, monkeypatch):
    """As OpenVINO's result in eight bits with open shapes."""
    pytest.importorskip("openvino")
    own = detector.forward
    monkeypatch.setattr(choosing, "loaded", lambda *_: _Wrong(own, 64))
    choosing.set_runtime(detector, engine, "openvino", MANY, images, "half")
    with pytest.raises(UserError, match=r"--runtime openvino --half gives something else than torch for .*: values"):
        detector.forward(detector.batch([detector.prepare(images[0])]))


@pytest.mark.parametrize("classes", [3, 79])
@pytest.mark.parametrize(
    ("box", "confidence", "message"),
    [
        (1.1, 0.1, ""),
        (1.4, 0.0, "values of boxes differ by 40% on average"),
        (1.0, 0.4, "values of confidences differ by 40% on average"),
        (float("nan"), 0.0, "values of boxes differ by nan% on average"),
    ],
)
def test_boxes_and_confidences_of_a_lower_precision_count_alike(box, confidence, message, classes):
    """Boxes of large images are hundreds of pixels, confidences at most 1, and there are many classes."""
    expected = torch.cat([torch.full((1, 9, 4), 300.0), torch.full((1, 9, 1 + classes), 0.1)], dim=2)
    found = torch.cat([expected[..., :4] * box, expected[..., 4:] + confidence], dim=2)
    assert choosing._far_difference(found, expected) == message
    of_ultralytics = [output.transpose(1, 2) for output in (found, expected)]
    assert choosing._far_difference(*of_ultralytics) == message


def test_a_model_that_gives_nan_is_far_from_any():
    nothing = torch.full((1, 9, 8), float("nan"))
    assert choosing._far_difference(torch.ones(1, 9, 8), nothing) == "values of confidences differ by nan% on average"


def test_lower_precision_is_for_some_runtimes(detector, engine):
    for name, precision, words in (
        ("onnx", "half", "--half on a CPU needs --runtime openvino"),
        ("auto", "int8", "--int8 on a CPU needs --runtime onnx or openvino"),
        ("torch", "int8", "--int8 on a CPU needs --runtime onnx or openvino"),
        ("onnx", "int8", "--int8: no image can be read to measure the ranges of the values"),
    ):
        with pytest.raises(UserError, match=words):
            choosing.set_runtime(detector, engine, name, MANY, SAMPLES[:1], precision)
    exported = SimpleNamespace(file=Path("best.onnx"))
    with pytest.raises(UserError, match=r"--int8: best.onnx is exported already; give the checkpoint"):
        choosing.set_runtime(exported, engine, "auto", MANY, SAMPLES, "int8")


def test_what_cannot_run_is_refused(detector, engine, monkeypatch):
    with pytest.raises(UserError, match="--runtime tensorrt: TensorRT needs a GPU of NVIDIA"):
        chosen(detector, engine, "tensorrt")
    monkeypatch.setattr(choosing, "is_installed", lambda package: False)
    with pytest.raises(UserError, match="--runtime openvino: it needs the package openvino: pip install openvino"):
        chosen(detector, engine, "openvino")
    own = detector.forward
    assert chosen(detector, engine) == "torch" and detector.forward is own


def test_a_model_that_cannot_be_exported(detector, engine, tmp_path, monkeypatch, caplog):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("YOLOV5_EMA_CACHE", str(tmp_path))
    monkeypatch.setattr(detector.module, "forward", torch.linalg.eigvals)
    own = detector.forward = lambda batch: batch
    with pytest.raises(UserError, match="the model cannot be exported to ONNX: "):
        chosen(detector, engine, "onnx")
    assert chosen(detector, engine) == "torch" and detector.forward is own
    assert "torch runs the model: the model cannot be exported to ONNX" in caplog.text
    assert not any(tmp_path.iterdir())
