"""Two thousand detections in one process: its memory does not grow."""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from cases import soak as cases
from fresh_process import run_fresh

import yolov5_ema

DETECTIONS = 2000
WARM_UP = 400
"""Until the allocator has seen all sizes of images, and pools have been filled."""

MOST_A_DETECTION = 5 * 1024
"""Bytes that the process may grow by with each detection, on average: half of a small leak."""

SIZES = [(32, 32), (48, 64), (64, 48), (96, 40), (33, 77), (128, 96), (64, 64), (17, 120)]


pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")


def growth(resident: list[int], per_sample: int = 20) -> float:
    """The growth in bytes for each detection, from the medians of the first and last quarters after the warm-up."""
    settled = resident[WARM_UP // per_sample :]
    quarter = len(settled) // 4
    first, last = statistics.median(settled[:quarter]), statistics.median(settled[-quarter:])
    return (last - first) / (per_sample * (len(settled) - quarter))


def run(case: Callable[..., object], *args: object, cwd: Path) -> dict[str, list[int]]:
    """Run it in a separate process, so that objects which other tests leave behind do not count."""
    done = run_fresh(case, *args, cwd=cwd, env={"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}, longest_s=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A small detector, not trained, that finds objects everywhere."""
    from hostile_yaml import SMALL

    from yolov5_ema.checkpoints.loading import save_checkpoint

    file = tmp_path_factory.mktemp("weights") / "small.pt"
    with yolov5_ema.installed() as engine:
        from yolov5.models.yolo import Model

        model = Model(copy.deepcopy(SMALL)).eval()
        for head in model.model[-1].m:  # objects everywhere in the image, all of the first class
            head.bias.data.view(model.model[-1].na, -1)[:, 4:6] = 3.0
        save_checkpoint({"model": model, "ema": None}, file, engine=engine)
    return file


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(DETECTIONS):
        size = SIZES[index % len(SIZES)]
        cv2.imwrite(str(folder / f"{index:04}.jpg"), rng.integers(0, 255, (*size, 3), dtype=np.uint8))
    return folder


def shown(what: str, resident: list[int], each: float) -> str:
    start, end = resident[WARM_UP // 20] / 2**20, resident[-1] / 2**20
    return f"{what}: {start:.1f} MB after the warm-up, {end:.1f} MB in the end, {each:.0f} bytes a detection"


@pytest.mark.slow
@pytest.mark.parametrize("leak", [0, 10 * 1024])
def test_a_loaded_model(weights, tmp_path, leak, capsys):
    seen = run(cases.detects_with_a_loaded_model, weights, DETECTIONS, leak, json.dumps(SIZES), cwd=tmp_path)
    each = growth(seen["resident"])
    with capsys.disabled():
        print(shown(f"load(), {leak} bytes leaked", seen["resident"], each))
    assert seen["found"] >= DETECTIONS and len(seen["resident"]) == DETECTIONS // 20
    objects = seen["objects"][WARM_UP // 20 :]
    assert (each > MOST_A_DETECTION) == bool(leak), each
    assert objects[-1] - objects[0] < 100 + (len(objects) * 20 if leak else 0)


@pytest.mark.slow
@pytest.mark.parametrize("leak", [0, 10 * 1024])
def test_detect(weights, images, tmp_path, leak, capsys):
    flags = ("--weights", weights, "--source", images, "--img", 64, "--nosave", "--conf-thres", 0.001)
    seen = run(cases.detects_by_the_command, leak, *flags, cwd=tmp_path)
    each = growth(seen["resident"])
    with capsys.disabled():
        print(shown(f"detect, {leak} bytes leaked", seen["resident"], each))
    assert seen["count"] >= DETECTIONS
    assert (each > MOST_A_DETECTION) == bool(leak), each


def test_growth_tells_a_leak_from_noise():
    rng = np.random.default_rng(0)
    flat = (2e8 + rng.normal(0, 1e5, 100)).astype(int).tolist()
    leaking = [value + 20 * 10240 * index for index, value in enumerate(flat)]
    assert abs(growth(flat)) < 100 and growth(leaking) == pytest.approx(10240, rel=0.02)
