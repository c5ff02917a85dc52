"""``models/tf.py`` evaluates no rows of an untrusted file; a stand-in replaces TensorFlow, which is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import laid_aside
from offline_ultralytics import REPOSITORY

SCRIPT = """
import importlib, importlib.machinery, os, sys, types
import torch, yolov5_ema

class Layer:
    def __init__(self, *args, **kwargs): pass

class StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("Layer", "Model"):
            return type(name, (Layer,), {})
        return (lambda *args, **kwargs: Layer()) if name[0].isupper() else StandIn(name)

names = ["tensorflow", "tensorflow.keras", "tensorflow.python", "tensorflow.python.framework"]
for name in [*names, "tensorflow.python.framework.convert_to_constants"]:
    sys.modules[name] = StandIn(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
sys.modules["tensorflow"].keras = sys.modules["tensorflow.keras"]
root, canary, guarded = sys.argv[1:]
if guarded == "no":
    from yolov5_ema.engine import activation
    activation.GUARDS = ()
tf = importlib.import_module(yolov5_ema.install(root).module_name("models.tf"))
code = f"__import__('os').mkdir({canary!r})"
for name, args in ((code, [8]), ("Conv", [code]), ("EMA", [code]), ("Conv", [8]), ("EMA", [])):
    row = [-1, 1, name, args]
    model = {"nc": 1, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": [[1, 2]] * 3}
    model.update(backbone=[row], head=[row])
    try:
        tf.parse_model(model, [3], types.SimpleNamespace(model=[None, None]), (64, 64))
        raised = "nothing"
    except Exception as error:
        raised = type(error).__name__ + " " + str(error).splitlines()[0]
    print("RESULT", os.path.isdir(canary), raised)
    if os.path.isdir(canary):
        os.rmdir(canary)
"""


def run(root, guarded, folder):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root), str(folder / "ran"), guarded],
        capture_output=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return [line.split(" ", 2)[1:] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.0.7", "6.1.9", "6.2.3", "7.0.14"])
def test_rows_of_a_checkpoint_are_not_evaluated(version, tmp_path):
    root = laid_aside(version)
    assert [ran for ran, _ in run(root, "no", tmp_path)][:2] == ["True", "True"]
    found = run(root, "yes", tmp_path)
    assert [ran for ran, _ in found] == ["False"] * 5
    assert all(raised.startswith("ConfigError the model's own YAML, ") for _, raised in found[:3])
    assert not found[3][1].startswith("ConfigError")  # a valid row is passed on
    assert "has no EMA for TensorFlow" in found[4][1]
