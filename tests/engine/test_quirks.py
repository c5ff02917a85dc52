"""Each quirk: its case works with the quirk, and fails without it."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cases import quirks as cases
from conftest import laid_aside, small_cfg
from release_case import run_in_release

from yolov5_ema.engine.activation import survey
from yolov5_ema.engine.quirks import QUIRKS
from yolov5_ema.upstream.locate import engine_at

# the quirks that 6.0.7 does not need -> the release that their cases are written for; all others are for 6.0.7
OF_OTHER_RELEASES = {
    "amp-check": "6.1.9",
    "files-before-hub": "7.0.14",
    "noval": "7.0.14",
    "root-stays": "7.0.14",
    "roboflow": "7.0.14",
    "runs-here": "7.0.14",
    "openvino-runtime": "7.0.14",
    "classifier-cutoff": "7.0.14",
}

# environment variables that are needed if a quirk is off
ENVIRONMENTS = {
    "cpu-ddp": {
        "YOLOV5_EMA_CPU_DDP": "1",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
    },
    "one-run-folder": {"RANK": "1"},
    "resume-in-ranks": {"RANK": "1"},
}

# they act while YOLOv5 is imported, or depend on the folder where it is
AT_IMPORT = {"font-from-disk", "pkg-resources", "roboflow", "runs-here"}


@pytest.fixture
def given(tmp_path, tiny_set, package_root, request) -> dict[str, object]:
    name = request.node.callspec.params["name"] if hasattr(request.node, "callspec") else ""
    release = OF_OTHER_RELEASES.get(name, "6.0.7")
    if engine_at(package_root).version != release:
        package_root = laid_aside(release)
    cfg = tmp_path.with_suffix(".yaml")
    cfg.write_text(small_cfg(block=None))
    return {"folder": tmp_path, "data": tiny_set, "root": package_root, "cfg": cfg}


def _case(name: str) -> Callable[..., None]:
    return getattr(cases, name.replace("-", "_"))


@functools.cache
def _needed(root: Path, env: tuple[tuple[str, str], ...]) -> set[str]:
    with pytest.MonkeyPatch.context() as patched:
        for variable, value in env:
            patched.setenv(variable, value)
        return {row[0] for row in survey(engine_at(root))}


def _run(name: str, given: dict[str, object], without: str = "") -> str:
    env = ENVIRONMENTS.get(name)
    is_fresh = env is not None or name in AT_IMPORT
    return run_in_release(_case(name), given, without=without, is_fresh=is_fresh, env=env)


def test_every_quirk_has_a_case():
    functions = inspect.getmembers(cases, inspect.isfunction)
    found = {name for name, case in functions if case.__module__ == cases.__name__ and not name.startswith("_")}
    found -= {"safe_checkpoints_of_the_newest"}
    assert found == {quirk.name.replace("-", "_") for quirk in QUIRKS}


@pytest.mark.parametrize("name", [quirk.name for quirk in QUIRKS])
def test_works_with_the_quirk(name, given):
    if name == "openvino-runtime" and importlib.util.find_spec("openvino.runtime"):
        pytest.skip("the installed OpenVINO has openvino.runtime")
    assert _run(name, given) == ""


# if the case works without the quirk, the installed library has changed: that is not our mistake
_SYMPTOMS = {
    "pkg-resources": "pkg_resources",
    "font-from-disk": "downloaded",
    "font-getsize": "getsize",
    "numpy-names": "has no attribute",
    "loss-clamp": "can't be cast",
    "cpu-ddp": "insufficient CUDA devices",
    "one-run-folder": "AssertionError",
    "resume-in-ranks": "No such file or directory: ''",
    "whole-settings": "AssertionError",
    "resume-after-kill": "AssertionError",
    "safe-checkpoints": "Weights only load failed",
    "one-copy-of-classes": "AssertionError",
    "autoanchor-few-boxes": "must match the size",
    "stale-label-cache": "which is not an image of the data set",
    "save-json": "'list' object has no attribute 'get'",
    "onnx-exporter": "Error",
    "openvino-converter": "openvino.inference_engine",
    "openvino-runtime": "openvino.runtime",
    "classifier-cutoff": "AssertionError",
    "amp-check": "models.common",
    "files-before-hub": "huggingface_hub",
    "roboflow": "roboflow",
    "ultralytics": "",
    "root-stays": "AssertionError",
    "noval": "map50s",
    "runs-here": "AssertionError",
    "torch-has-cuda": "has_cuda",
    "torch-amp": "deprecated",
    "randrange-float": "integer",
    "pictures-in-order": "AssertionError",
    "drawn-on-copies": "rectangle",  # before OpenCV 4.9 it draws into the user's own array
    "downloads-say-so": "AssertionError",
    "no-pip-behind-the-back": "AssertionError",
    "weight-transfer": "AssertionError",
    "worker-processes": "the worker was replaced",
    "display": "AssertionError",
    "wandb-epochs": "best_result",
    "imports-when-used": "AssertionError",
}


@pytest.mark.parametrize("name", [quirk.name for quirk in QUIRKS])
def test_breaks_without_the_quirk(name, given):
    if name not in _needed(given["root"], tuple(ENVIRONMENTS.get(name, {}).items())):
        pytest.skip("not needed with the libraries installed here")
    failure = _run(name, given, without=name)
    # lines of the traceback that are indented quote the case
    said = [line for line in failure.splitlines() if not line.startswith(" ")]
    assert _SYMPTOMS[name] in "\n".join(said), failure or "nothing failed"


def test_the_loader_of_upstreams_newest_is_replaced(given):
    assert run_in_release(cases.safe_checkpoints_of_the_newest, given) == ""


def test_survey_reports_what_doctor_prints(package_root):
    rows = survey(engine_at(package_root))
    if not hasattr(np, "int"):  # NumPy 1.24 and later
        assert ("numpy-names", "utils.general") in {(quirk, module) for quirk, module, _ in rows}
    assert all(reason for _, _, reason in rows)
