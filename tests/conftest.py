"""Shared by the tests: a tiny real data set, the command line as a subprocess, clones, weights."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from filelock import FileLock  # comes with torch
from hypothesis import settings
from offline_ultralytics import offline, run_python
from warm_python import GARBAGE_THRESHOLD, THREADS, leave_figures_empty, run_warm

REPOSITORY = Path(__file__).resolve().parent.parent
# Hypothesis tries the same cases on every machine, so that a failure is caused by a change and not by chance.
settings.register_profile("same cases", derandomize=True)
settings.load_profile("same cases")
# a shell starts jobs in the background with SIGINT ignored, and the processes that tests interrupt would inherit this
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

NAMES = ("disc", "box", "cross")


def randomise(module: Any, seed: int = 0) -> Any:
    """Give every parameter and buffer a random value; running variances stay positive."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(0.5 + noise.abs() if name.endswith("running_var") else 0.6 * noise)
    return module


def write_tiny_set(folder: Path, train: int = 8, val: int = 4, imgsz: int = 96) -> Path:
    """Write a YOLO data set of plain shapes on noise: enough for an epoch of training, too small to learn from."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val), ("test", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            image = rng.integers(0, 90, (imgsz, imgsz, 3), dtype=np.uint8)
            rows = []
            for cls in range(len(NAMES)):
                x, y = rng.uniform(0.25, 0.75, 2)
                half = imgsz // 12 + (index + cls) % 5 * 2
                center = (int(x * imgsz), int(y * imgsz))
                cv2.circle(image, center, half, (60 + 90 * cls, 200, 255 - 90 * cls), -1 if cls else 3)
                rows.append(f"{cls} {x:.6f} {y:.6f} {2 * half / imgsz:.4f} {2 * half / imgsz:.4f}")
            cv2.imwrite(str(folder / "images" / split / f"{split}{index}.jpg"), image)
            (folder / "labels" / split / f"{split}{index}.txt").write_text("\n".join(rows) + "\n")
    yaml_file = folder / "tiny.yaml"
    yaml_file.write_text(
        f"path: {folder}\ntrain: images/train\nval: images/val\ntest: images/test\n"
        f"nc: {len(NAMES)}\nnames: [{', '.join(NAMES)}]\n"
    )
    return yaml_file


SMALL_YOLO = """\
nc: 3
scales: {n: [0.5, 0.25, 128]}
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 1, C3k2, [128, False, 0.25]]
  - [-1, 1, EMA, [{groups: 8}]]
  - [-1, 1, Conv, [256, 3, 2]]
  - [-1, 1, C3k2, [256, False, 0.25]]
head:
  - [[3, 5], 1, Detect, [nc]]
"""


def small_cfg(block: str | None = "EMA, [8]") -> str:
    """The YAML of a detector with 50,000 parameters for the tiny set. It trains in a third of yolov5n's time.

    Args:
        block: the module and the arguments of a row after the C3 of stride 4; None: no such row.
    """
    row = f"[-1, 1, {block}]," if block else ""
    inputs = "[3, 5]" if block else "[2, 4]"
    return f"""\
nc: 3
depth_multiple: 1.0
width_multiple: 1.0
anchors: [[10, 10, 16, 16, 24, 24], [20, 20, 28, 28, 36, 36]]
backbone:
  [[-1, 1, Conv, [16, 6, 2, 2]], [-1, 1, Conv, [32, 3, 2]], [-1, 1, C3, [32]],
   {row}
   [-1, 1, Conv, [64, 3, 2]], [-1, 1, C3, [64]]]
head: [[{inputs}, 1, Detect, [nc, anchors]]]
"""


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory) -> Path:
    """The data YAML of the tiny set; do not change its images."""
    return write_tiny_set(tmp_path_factory.mktemp("tiny") / "set")


def run_cli(
    *args: object, cwd: Path, env: dict[str, str] | None = None, warm: bool = True, are_drawn: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m yolov5_ema …`` as a user does; stdout and stderr are text.

    Args:
        args: the command line.
        cwd: the working directory.
        env: variables that are added to the environment of the tests.
        warm: whether to use a process that has loaded torch already, see `warm_python`; False: a fresh Python.
        are_drawn: whether ``train`` and ``val`` draw their plots; if not, they are empty, which is faster.
    """
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **THREADS, "PYTHONPATH": os.pathsep.join(paths), **(env or {})}
    if warm:
        drawn = are_drawn or args[0] not in ("train", "val")
        return run_warm("yolov5_ema", *args, cwd=cwd, env=environment, are_drawn=drawn)
    command = [sys.executable, "-m", "yolov5_ema", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """While tests are collected, all objects stay; so garbage collection waits, and skips these objects afterwards."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(GARBAGE_THRESHOLD)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the files that use `trained`, one comes first and the others last: so no worker waits for its training."""
    users = list(dict.fromkeys(item.path for item in items if "trained" in getattr(item, "fixturenames", ())))
    items.sort(key=lambda item: 0 if item.path in users[:1] else 1 + (item.path in users))


@pytest.fixture(scope="session")
def trained(tiny_set, tmp_path_factory) -> Path:
    """The best.pt of two epochs of yolov5n with EMA, trained by the command; all workers of xdist share it."""
    folder = _made_once(tmp_path_factory, "trained", lambda folder: _train_tiny(tiny_set, folder))
    return folder / "runs/train/tiny/weights/best.pt"


@pytest.fixture(scope="session")
def small_yolo(tmp_path_factory) -> Path:
    """A checkpoint of a small detector of ultralytics with EMA, see `write_detector`; all workers of xdist share it."""
    pytest.importorskip("ultralytics")
    return _made_once(tmp_path_factory, "small-yolo", _write_small_yolo) / "small.pt"


def _made_once(tmp_path_factory: Any, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is filled by the first worker that asks for it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").is_file():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "done").touch()
    return folder


def _train_tiny(tiny_set: Path, cwd: Path) -> None:
    done = run_cli(
        *("train", "--data", tiny_set, "--cfg", "yolov5n-ema.yaml", "--weights", ""),
        *("--img", 64, "--batch", 4, "--epochs", 2, "--workers", 2, "--name", "tiny"),
        cwd=cwd,
        are_drawn=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _write_small_yolo(cwd: Path) -> None:
    from cases.ultralytics_models import write_detector

    (cwd / "small.yaml").write_text(SMALL_YOLO)
    run_python(write_detector, cwd / "small.yaml", cwd / "small.pt", cwd=cwd)


@pytest.fixture(scope="session")
def package_root() -> Path:
    """The folder of the installed PyPI package ``yolov5``."""
    import importlib.util

    spec = importlib.util.find_spec("yolov5")
    assert spec is not None and spec.origin is not None, "tests need: pip install 'yolov5-ema[v6]'"
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """The installed YOLOv5, with the shim installed in this process."""
    import yolov5_ema

    with yolov5_ema.installed() as found:
        yield found


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory) -> Iterator[Any]:
    """The package `ultralytics` in this process, offline and with settings of its own; see `offline`."""
    with offline(tmp_path_factory.mktemp("config")) as package:
        yield package


@pytest.fixture(scope="session")
def clone(package_root, tmp_path_factory) -> Path:
    """The installed package's own files, laid out as a clone of the repository."""
    return lay_out_as_clone(package_root, tmp_path_factory.mktemp("clone") / "yolov5")


def lay_out_as_clone(package_root: Path, root: Path) -> Path:
    """Copy the files of a PyPI package ``yolov5`` to ``root``, with the imports that the repository has."""
    shutil.copytree(package_root, root, ignore=shutil.ignore_patterns("__pycache__", "__init__.py"))
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"\bfrom yolov5\.", "from ", text)
        text = re.sub(r"\bimport yolov5\.([\w.]+) as", r"import \1 as", text)
        path.write_text(re.sub(r"^from yolov5 import __version__$", '__version__ = "?"', text, flags=re.M))
    for source in package_root.rglob("__init__.py"):
        name = source.parent.relative_to(package_root)
        if source.parent != package_root and (root / name).is_dir():
            text = source.read_text(encoding="utf-8")
            (root / name / "__init__.py").write_text(re.sub(r"\bfrom yolov5\.", "from ", text))
    return root


def laid_aside(version: str) -> Path:
    """The folder of the package ``yolov5`` in a release that ``make engines`` installed next to the usual one."""
    root = Path(sys.prefix) / "engines" / version / "yolov5"
    if not root.is_dir():
        pytest.skip(f"yolov5 {version} is not installed: run `make engines`")
    return root


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Run the test in an empty folder, and restore the environment afterwards."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """What matplotlib saves in this process is empty, as `run_cli` has it."""
    leave_figures_empty(monkeypatch.setattr)


@pytest.fixture
def messages():
    """Print the library's log messages, as the command line does."""
    from yolov5_ema.cli._messages import messages_shown

    with messages_shown():
        yield


@pytest.fixture
def refused(capsys, own_folder):
    """A function that runs a command in this process. The command must fail and write nothing; returns its message."""
    from yolov5_ema.cli.main import main

    def run(*argv: object) -> str:
        before = set(own_folder.rglob("*"))
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        message = capsys.readouterr().err
        assert code == 2, f"exit code {code}"
        assert "yolov5-ema: error: " in message and "Traceback" not in message
        made = {str(path) for path in set(own_folder.rglob("*")) - before}
        assert not made, f"left behind: {made}"
        return message

    return run
