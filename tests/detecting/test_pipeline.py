"""Images in a pipeline: the values of `detect`, in order, with limits, and no thread left however it ends."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from yolov5_ema.data.image_files import read_image
from yolov5_ema.detecting import pipeline
from yolov5_ema.detecting.loading import load_detector
from yolov5_ema.detecting.pipeline import Pipeline
from yolov5_ema.detecting.protocol import LoadOptions, Thresholds

LOW = Thresholds(conf_thres=0.001, max_det=20)


@pytest.fixture(scope="module")
def trained_detector(engine, trained):
    return load_detector(trained, LoadOptions(imgsz=(64, 64)), engine=engine)


@pytest.fixture
def detector(trained_detector, monkeypatch):
    """Its model may be replaced."""
    monkeypatch.setattr(trained_detector, "forward", trained_detector.forward)
    return trained_detector


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Wide and square images in turns, one too narrow, one empty, one cut off."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    names = [folder / f"{number}.png" for number in range(9)]
    for number, file in enumerate(names):
        cv2.imwrite(str(file), rng.integers(0, 256, (24 + number if number % 2 else 60, 64, 3), dtype=np.uint8))
    cv2.imwrite(str(names[4]), np.zeros((1, 900, 3), np.uint8))
    names[5].write_bytes(b"")
    cut_off = names[6].with_suffix(".jpg")
    cv2.imwrite(str(cut_off), rng.integers(0, 256, (60, 64, 3), dtype=np.uint8))
    cut_off.write_bytes(cut_off.read_bytes()[:-400])
    return [*names[:6], cut_off, *names[7:]]


@contextmanager
def threads(count: int):
    """A number of threads for torch, which must be the same at the end; as must be the threads of the process."""
    before, alive = torch.get_num_threads(), set(threading.enumerate())
    torch.set_num_threads(count)
    try:
        yield
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert set(threading.enumerate()) == alive


def _alone(detector, file):
    return detector.detect([read_image(file).pixels], LOW)[0]


def _check(results, detector, files, tolerance):
    assert len(results) == len(files)
    for number, (file, found) in enumerate(zip(files, results)):
        if number in (4, 5):
            expected = ((1, 900), "is too narrow: 900 x 1 pixels leave nothing when scaled to 64")
            assert (found.size, found.problem) == (expected if number == 4 else (None, "is empty"))
            assert found.detections is None
            continue
        assert found.size == read_image(file).pixels.shape[:2] and (found.problem is not None) == (number == 6)
        alone = _alone(detector, file)
        assert len(found.detections) == len(alone) > 0
        np.testing.assert_allclose(found.detections.confidence, alone.confidence, atol=tolerance, rtol=0)
        # whole pixels, so that noise may move a side by one
        np.testing.assert_allclose(found.detections.xyxy, alone.xyxy, atol=min(1, tolerance * 1e9))
        np.testing.assert_array_equal(found.detections.class_id, alone.class_id)


@pytest.mark.parametrize(("batch", "count", "tolerance"), [(1, 2, 0), (None, 1, 1e-6), (None, 2, 1e-6), (3, 1, 1e-6)])
def test_results_are_those_of_detect(detector, files, batch, count, tolerance):
    with threads(count):
        results = list(Pipeline(detector, batch).found_in(files, LOW))
        _check(results, detector, files, tolerance)


def test_images_of_one_shape_go_together(detector, files, monkeypatch):
    own, shapes = detector.forward, []

    def forward(batch):
        shapes.append(tuple(batch.shape))
        return own(batch)

    monkeypatch.setattr(detector, "forward", forward)
    good = [file for file in files if file.suffix == ".png"][:4] * 2
    found = list(Pipeline(detector, 3).found_in(good, LOW))
    # a group waits until it has three, or until the first result is due or no image is left
    assert sorted(shapes) == [(1, 3, 32, 64), (1, 3, 64, 64), (3, 3, 32, 64), (3, 3, 64, 64)]
    monkeypatch.undo()
    for file, result in zip(good, found, strict=True):
        np.testing.assert_array_equal(result.detections.class_id, _alone(detector, file).class_id)


def test_a_batch_that_a_gpu_cannot_hold_goes_image_by_image(detector, files, monkeypatch):
    own = detector.forward

    def forward(batch):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(batch)

    monkeypatch.setattr(detector, "forward", forward)
    results = list(Pipeline(detector, 3).found_in(files, LOW))
    monkeypatch.undo()
    _check(results, detector, files, 0)


@pytest.mark.parametrize("batch", [1, None])
def test_a_failing_model_ends_it(detector, files, monkeypatch, batch):
    calls = []

    def forward(output):
        calls.append(len(output))
        raise RuntimeError("the model is broken")

    monkeypatch.setattr(detector, "forward", forward)
    with threads(2), pytest.raises(RuntimeError, match="the model is broken"):
        list(Pipeline(detector, batch).found_in(files * 10, LOW))
    assert len(calls) < 10


def test_closed_early_it_has_read_few_images_and_leaves_no_thread(detector, files, monkeypatch):
    read = []
    monkeypatch.setattr(pipeline, "read_image", lambda file: read.append(file) or read_image(file))
    with threads(2), closing(Pipeline(detector).found_in(files * 100, LOW)) as results:
        assert next(results).size == (60, 64)
    assert len(read) < 20


def test_copies_share_weights_and_leave_the_detector_alone(detector, files):
    before = _alone(detector, files[0])
    one, other = detector.copies(2)
    for mine, theirs, own in zip(one.module.parameters(), other.module.parameters(), detector.module.parameters()):
        assert mine.data_ptr() == theirs.data_ptr() and mine is not own
        assert torch.equal(mine, own) and own.is_contiguous()
    assert one.module is not other.module
    np.testing.assert_array_equal(_alone(detector, files[0]).xyxy, before.xyxy)
    detector.forward = lambda batch: batch
    assert detector.copies(2) == [detector, detector], "another runtime takes calls from several threads"
