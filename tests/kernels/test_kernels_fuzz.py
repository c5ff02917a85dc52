"""Kernels called with invalid arguments, in a separate process: they give a result or an error, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from yolov5_ema.kernels import native
from yolov5_ema.settings import VARIABLES

pytestmark = pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)


def fuzz(*arguments, **variables):
    script = Path(__file__).parents[1] / "helpers/fuzz_cases.py"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)


@pytest.fixture
def sanitized(tmp_path):
    """The environment for a process in which AddressSanitizer watches the kernels."""
    compiler = native._compiler() or "c++"
    # the C++ runtime is loaded with it, because exceptions of libraries that are loaded later need it
    libraries = [_file_of(compiler, name) for name in ("libasan.so", "libstdc++.so.6")]
    if not all(library.is_absolute() for library in libraries):
        pytest.skip(f"{compiler} has no AddressSanitizer")
    options = "detect_leaks=0:allocator_may_return_null=1:exitcode=77:abort_on_error=0"
    return {
        "LD_PRELOAD": " ".join(map(str, libraries)),
        "ASAN_OPTIONS": options,
        VARIABLES["cache"]: str(tmp_path / "kernels"),
    }


def _file_of(compiler, name):
    asked = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
    return Path(asked.stdout.strip())


def test_calls_that_do_not_fit():
    done = fuzz("--cases", 300)
    assert done.returncode == 0, f"{done.returncode} {done.stderr[-2000:]}"
    assert "300 cases" in done.stdout and "ema_forward_operator: refused" in done.stdout


@pytest.mark.slow
def test_ten_thousand_calls_under_address_sanitizer(sanitized):
    done = fuzz("--cases", 10_000, "--sanitize", **sanitized)
    assert done.returncode == 0 and "AddressSanitizer" not in done.stderr, done.stderr[-4000:]
    assert "-fsanitize=address" in done.stdout and "10000 cases" in done.stdout


@pytest.mark.slow
def test_without_the_checks_the_sanitizer_reports(sanitized):
    """The fuzz does find what the checks prevent."""
    done = fuzz("--cases", 500, "--sanitize", "--unchecked", **sanitized)
    assert done.returncode == 77 and "ERROR: AddressSanitizer" in done.stderr, done.stderr[-2000:]
    assert any(f"cpp/{name}.cpp" in done.stderr for name in ("ema", "cbam", "means", "norms"))
