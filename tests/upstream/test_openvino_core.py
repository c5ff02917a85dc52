"""Models of OpenVINO come and go, and the process still survives a signal."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest
from cases.openvino_core import signal_after_two
from fresh_process import run_fresh

import yolov5_ema


@pytest.fixture(autouse=True)
def _needs_openvino():
    pytest.importorskip("openvino")


def test_a_signal_is_survived():
    done = run_fresh(signal_after_two, "shared")
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there does the plugin set a stack for signals")
def test_with_a_core_for_each_it_is_not():
    done = run_fresh(signal_after_two, "own")
    if done.returncode == 0:
        pytest.skip("this release of OpenVINO has mended it")
    assert done.returncode == -signal.SIGSEGV, done.stderr


def test_no_other_place_makes_one():
    package = Path(yolov5_ema.__file__).parent
    made = {file.name for file in package.rglob("*.py") if re.search(r"\bCore\(\)", file.read_text("utf-8"))}
    assert made == {"openvino_core.py"}
