"""What the exported blocks run in: the committed results, how they are summed up, and that they are still right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, laid_aside
from torch import nn

from yolov5_ema.blocks import block_info, list_blocks, register_block, unregister_block
from yolov5_ema.comparing.block_support import FILE, how_tested, reasons, support_of, table_of, verdict

ENGINES = ("6.0.7", "7.0.14", "ultralytics")
RUNTIMES = ("TorchScript of torch", "ONNX Runtime", "OpenVINO", "OpenCV")
MADE_UP = {
    "A": {"YOLOv5 6": {"Fast 1": 1e-7, "Slow 2": "too slow"}, "YOLOv5 7": {"Fast 1": 0.0, "Slow 2": "too slow"}},
    "B": {"YOLOv5 6": {"Fast 1": "no file", "Slow 2": "no file"}, "YOLOv5 7": {"Fast 1": 1e-6, "Slow 2": 1e-6}},
    "C": {},
}


@pytest.mark.parametrize("block", list_blocks(on_demand=True))
def test_every_block_was_tested_in_every_engine_and_runtime(block):
    if "." in block:
        pytest.importorskip("timm")
    support = support_of(block)
    assert [engine.split()[0] for engine in support] == ["YOLOv5", "YOLOv5", "ultralytics"]
    assert list(support)[:2] == ["YOLOv5 6.0.7", "YOLOv5 7.0.14"]
    for found in support.values():
        assert {name.rpartition(" ")[0] for name in found} == set(RUNTIMES)
        assert all(outcome if isinstance(outcome, str) else 0 <= outcome <= 3e-4 for outcome in found.values())


def test_the_file_says_how_and_holds_no_other_block():
    assert "ONNX opset 12" in how_tested()
    assert set(json.loads(FILE.read_text())["blocks"]) <= set(list_blocks(on_demand=True))


class Mine(nn.Identity):
    def __init__(self, channels):
        super().__init__()


def test_a_block_of_the_users_was_not_tested():
    register_block(Mine)
    try:
        assert support_of("Mine") == {}
    finally:
        unregister_block("Mine")


def test_a_users_block_that_replaces_ours_was_not_tested():
    ours = block_info("SE")
    register_block(Mine, name="SE", force=True)
    try:
        assert support_of("SE") == {}
    finally:
        register_block(ours.cls, name="SE", paper=ours.paper, force=True)
    assert support_of("SE")


def test_verdicts():
    assert table_of(MADE_UP) == [
        ["block", "Fast 1", "Slow 2"],
        ["A", "yes", "no"],
        ["B", "partly", "partly"],
        ["C", "not tested", "not tested"],
    ]
    assert verdict([]) == "not tested" and verdict([0.0]) == "yes"


def test_reasons_name_engines_and_runtimes():
    assert reasons(MADE_UP) == [
        "A, Slow 2 with YOLOv5 6 and YOLOv5 7: too slow",
        "B, Fast 1 with YOLOv5 6; Slow 2 with YOLOv5 6: no file",
    ]
    assert reasons({"C": {}}) == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_results_are_still_right(engine, tmp_path):
    """The same runtimes run the same blocks, as far as their versions are those of the file."""
    for package in ("onnxruntime", "openvino", "onnx", *(["ultralytics"] if engine == "ultralytics" else [])):
        pytest.importorskip(package)
    if engine != "ultralytics":
        laid_aside(engine)
    file = tmp_path / "found.json"
    command = [sys.executable, "benchmarks/block_support.py", "--engines", engine, "-o", str(file)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert compared(json.loads(Path(file).read_text())["blocks"]) == []


def compared(blocks):
    """The outcomes that differ from those of the file in being right or not; there must be common ones."""
    common = [
        (block, engine, runtime, outcome, support_of(block)[engine][runtime])
        for block, support in blocks.items()
        for engine, found in support.items()
        for runtime, outcome in found.items()
        if runtime in support_of(block).get(engine, {})
    ]
    if not common:
        pytest.skip("all versions differ from those in the file")
    return [case for case in common if isinstance(case[-1], str) != isinstance(case[-2], str)]
