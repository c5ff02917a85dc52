"""The tests with every release of YOLOv5 and every Python that this machine has: ``make test-matrix``.

There are three kinds of sessions. ``engine`` runs the tests of engines and commands in the development environment with
another release of YOLOv5 as the installed package. ``python`` makes a new environment for each Python, YOLOv5 and
torch. ``lowest`` installs, on the oldest Python, the oldest versions that pyproject.toml allows.

A Python that is not installed is skipped, and named. By default nox runs each release, each Python with v6 and the
newest torch, and ``lowest``. ``nox --list`` lists the other sessions, ``nox -s "python-3.13(oldest, v7)"`` runs one.
What follows ``--`` is passed to pytest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nox

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# the oldest as in pyproject.toml
TORCH = [
    nox.param("torch==2.6.0", id="oldest"),
    nox.param("torch", id="newest"),
]
ENGINES = [nox.param("v6", id="v6"), nox.param("v7", id="v7")]  # extras
# these need newer tools or test libraries than the package does, or a newer ultralytics: 8.3.200 installs a package
# `tests` of its own, which the processes that two of these files start import instead of ours
_NOT_LOWEST = (
    *("docs", "data/test_workers.py", "engine/quirks/test_distributed.py", "hard/test_fuzz_checkpoints.py"),
    *("hard/test_hostile_images.py", "kernels/test_ema_export.py", "kernels/test_ema_triton.py"),
    *("scripts/test_sliced.py", "engine/test_ultralytics_adapter.py", "engine/test_ultralytics_guards.py"),
)
LOWEST_TESTS = ("tests", *(f"--ignore=tests/{name}" for name in _NOT_LOWEST))
RELEASES = ("6.0.7", "6.1.9", "6.2.3", "7.0.14")

HERE = Path(__file__).resolve().parent
VENV = Path(sys.prefix)  # nox runs in the development environment; `make engines` installs the releases next to it

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"
nox.options.sessions = ["engine", *(f"python-{python}(newest, v6)" for python in PYTHONS), "lowest"]

# The folders of pyenv's Pythons go first, because pyenv's shims fail for all versions but the selected ones.
_pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
os.environ["PATH"] = os.pathsep.join([*map(str, sorted(_pyenv.glob("versions/*/bin"))), os.environ["PATH"]])
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")


@nox.session(venv_backend="none")
@nox.parametrize("release", RELEASES, ids=RELEASES)
def engine(session: nox.Session, release: str) -> None:
    """The tests of engines and commands with another release of YOLOv5 as the installed one."""
    place = VENV / "engines" / release
    if not place.is_dir():
        session.skip(f"yolov5 {release} is not installed: run `make engines`")
    tests = session.posargs or [
        "tests/upstream",
        "tests/cfgs",
        "tests/checkpoints",
        "tests/engine",
        "tests/scripts",
        "tests/cli",
        "tests/journeys",
    ]
    session.run(str(VENV / "bin/python"), "-m", "pytest", *tests, env={"PYTHONPATH": str(place)})


@nox.session(python=PYTHONS)
@nox.parametrize("engine", ENGINES)
@nox.parametrize("torch", TORCH)
def python(session: nox.Session, engine: str, torch: str) -> None:
    """All tests in an environment with a Python, a YOLOv5 from PyPI, and the oldest or the newest torch for it."""
    if torch != "torch" and session.python == "3.14":
        session.skip("the first torch for Python 3.14 is 2.9")
    session.install("--editable", f".[{engine},export,dev]", torch)
    _link_engines(session)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The oldest Python with the oldest versions that pyproject.toml allows: all tests, and one training."""
    session.install("--resolution", "lowest-direct", "--editable", ".[v6,export,dev]")
    _link_engines(session)
    session.run("python", "-m", "pytest", *(session.posargs or LOWEST_TESTS))
    session.run("python", "-m", "yolov5_ema", "demo", "--dir", session.create_tmp(), "--epochs", "2", "--imgsz", "128")


def _link_engines(session: nox.Session) -> None:
    """Link the releases of YOLOv5 to the environment, because the tests look for them next to their Python."""
    link = Path(session.virtualenv.location) / "engines"
    if not link.exists():
        link.symlink_to(VENV / "engines")
