"""The package `ultralytics` for tests: without network and without the user's settings; it installs nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fresh_process import fresh_environment, name_of
from warm_python import run_warm

import yolov5_ema
from yolov5_ema.upstream.ultralytics import at_hand, find_cfg

_INSTALLED = at_hand()
needs_yolo26 = pytest.mark.skipif(
    _INSTALLED is None or find_cfg("yolo26n.yaml", _INSTALLED) is None,
    reason="needs a release of ultralytics with YOLO26",
)

# YOLO26 came with it
needs_8_4 = pytest.mark.skipif(
    _INSTALLED is None or _INSTALLED.version.startswith("8.3"), reason="needs ultralytics 8.4 or newer"
)


def by_release(cases: Iterable[Any]) -> list[Any]:
    """Parameters of a test, a value or a tuple each: those that name a model of YOLO26 are marked ``needs_yolo26``."""
    marked = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        newest = any("26" in value for value in values if isinstance(value, str) and value.startswith("yolo"))
        marked.append(pytest.param(*values, marks=needs_yolo26 if newest else ()))
    return marked


def environment(folder: Path) -> dict[str, str]:
    """Environment variables that keep ultralytics offline and its files in ``folder``; it reads them when imported."""
    return {
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


@contextmanager
def offline(folder: Path) -> Iterator[ModuleType]:
    """Import the package in this process; afterwards restore the environment and uninstall the adapter."""
    before = dict(os.environ)
    os.environ.update(environment(folder))
    try:
        yield pytest.importorskip("ultralytics")
    finally:
        yolov5_ema.uninstall("ultralytics")
        os.environ.clear()
        os.environ.update(before)


def run_python(case: Callable[..., object], *args: object, cwd: Path) -> str:
    """Run a function of ``tests/cases`` in a new process with this environment, and return what it prints."""
    done = run_warm("fresh_process", name_of(case), *args, cwd=cwd, env=fresh_environment(environment(cwd)))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout
