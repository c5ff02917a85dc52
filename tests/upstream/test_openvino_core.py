"""Models of OpenVINO come and go, and the process still survives a signal."""

from __future__ import annotations

import functools
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cases.openvino_core import signal_after_two
from fresh_process import run_fresh

import yolov5_ema
from yolov5_ema.upstream import openvino_core


@pytest.fixture(autouse=True)
def _needs_openvino():
    pytest.importorskip("openvino")


@pytest.mark.parametrize("kind", ["shared", "ultralytics"])
def test_a_signal_is_survived(kind):
    done = run_fresh(signal_after_two, kind)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there does the plugin set a stack for signals")
def test_with_a_core_for_each_it_is_not():
    done = run_fresh(signal_after_two, "own")
    if done.returncode == 0:
        pytest.skip("this release of OpenVINO has mended it")
    assert done.returncode == -signal.SIGSEGV, done.stderr


def test_threads_that_ask_at_the_same_time_get_the_same(monkeypatch):
    openvino = pytest.importorskip("openvino")
    together = threading.Barrier(4)

    class Slow:
        def __init__(self):
            time.sleep(0.1)  # the others ask meanwhile

    def asked(_):
        together.wait(60)
        return openvino_core.openvino_core()

    monkeypatch.setattr(openvino, "Core", Slow)
    monkeypatch.setattr(openvino_core, "_made", functools.cache(openvino_core._made.__wrapped__))
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(asked, range(4)))) == 1


def test_no_other_place_makes_one():
    package = Path(yolov5_ema.__file__).parent
    made = {file.name for file in package.rglob("*.py") if re.search(r"\bCore\(\)", file.read_text("utf-8"))}
    assert made == {"openvino_core.py"}
