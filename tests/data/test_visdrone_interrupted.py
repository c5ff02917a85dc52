"""A conversion that is killed leaves no half-written file, and continues to an identical result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
from cases.visdrone_interrupted import converts_slowly
from drone_set import TRAIN, random_annotations, tree, write_split, zipped
from fresh_process import fresh_command, fresh_environment

from yolov5_ema.data.visdrone import convert_visdrone

IMAGES = 300


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A split as a folder and as an archive, and the result of each without an interruption."""
    root = tmp_path_factory.mktemp("interrupted")
    split = write_split(root / "folder" / TRAIN, random_annotations(IMAGES, seed=7, objects=6))
    (root / "archive").mkdir()
    zipped(split, root / "archive" / f"{TRAIN}.zip", f"{TRAIN}/")
    for kind in ("folder", "archive"):
        convert_visdrone([root / kind], root / f"{kind}-whole", workers=1)
    return root


def start(source, out, *flags):
    command = fresh_command(converts_slowly, source, "--out", out, *flags)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stderr=pipe, stdout=pipe, text=True, env=fresh_environment())


def wait_until_half_done(out, process):
    deadline = time.monotonic() + 60
    labels = out / TRAIN / "labels"
    while not labels.is_dir() or len(os.listdir(labels)) < IMAGES // 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_and_resume(sources, kind, out):
    whole, half = tree(sources / f"{kind}-whole"), tree(out)
    assert IMAGES // 4 <= sum("/labels/" in name for name in half) < IMAGES
    differing = {name for name, content in half.items() if content != whole[name]}
    assert not differing, "half-written"
    assert not {"visdrone.yaml", "annotations/instances_train.json"} & half.keys(), "there before all is done"
    (result,) = convert_visdrone([sources / kind], out, workers=1).splits
    assert 0 < result.done_before < IMAGES
    assert result.tallies["images"] == IMAGES
    ours = tree(out)
    assert ours.keys() == whole.keys()
    assert {name for name in ours if ours[name] != whole[name]} == {"visdrone.yaml"}  # the path in it
    assert not (out / ".yolov5-ema" / "drafts").exists()
    json.loads(ours["annotations/instances_train.json"])


@pytest.mark.parametrize("kind", ["folder", "archive"])
@pytest.mark.parametrize("workers", [1, 2])
def test_killed(sources, tmp_path, kind, workers):
    out = tmp_path / "out"
    process = start(sources / kind, out, "--workers", str(workers))
    wait_until_half_done(out, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    process.communicate(timeout=20)  # workers keep the pipes open, so they must end too
    check_and_resume(sources, kind, out)


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted(sources, tmp_path, workers):
    out = tmp_path / "out"
    process = start(sources / "folder", out, "--workers", str(workers))
    wait_until_half_done(out, process)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=20)
    assert process.returncode == 130 and message.strip().endswith("yolov5-ema: interrupted")
    assert "Traceback" not in message
    assert not (out / ".yolov5-ema" / "drafts").exists()
    check_and_resume(sources, "folder", out)
