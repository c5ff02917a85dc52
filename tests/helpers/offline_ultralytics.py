"""The package `ultralytics` for tests: no network, no settings of the user's, no installing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

import yolov5_ema

REPOSITORY = Path(__file__).resolve().parents[2]


def environment(folder: Path) -> dict[str, str]:
    """What keeps it in ``folder`` and offline; it reads these when it is first imported."""
    return {
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


@contextmanager
def offline(folder: Path) -> Iterator[ModuleType]:
    """The package, imported in this process; the environment and the adapter are as before afterwards."""
    before = dict(os.environ)
    os.environ.update(environment(folder))
    try:
        yield pytest.importorskip("ultralytics")
    finally:
        yolov5_ema.uninstall("ultralytics")
        os.environ.clear()
        os.environ.update(before)


def run_python(code: str, *args: object, cwd: Path) -> str:
    """What a script prints in a fresh process of that environment."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **environment(cwd), "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout
