"""``models/tf.py`` evaluates no rows of an untrusted file; a stand-in replaces TensorFlow, which is not installed."""

from __future__ import annotations

import pytest
from cases.tensorflow_rows import parses_rows
from conftest import laid_aside
from fresh_process import run_fresh


def run(root, guarded, folder):
    done = run_fresh(parses_rows, root, folder / "ran", guarded)
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
