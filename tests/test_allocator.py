"""Memory that a process frees stays with it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from cases.freed_memory import prints_page_faults
from fresh_process import run_in_copy

from yolov5_ema.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="other C libraries are left alone"
)


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("by", ["function", "command"])
def test_freed_memory_is_kept(by):
    done = run_in_copy(prints_page_faults, by)
    assert done.returncode == 0, done.stderr
    before, in_thread_before, after, in_thread_after = map(int, done.stdout.split())
    if before < 1000:
        pytest.skip("huge pages of the system leave no page faults to save")
    assert after <= before / 4 and in_thread_after <= in_thread_before / 4


@pytest.mark.parametrize(
    "name, value, calls",
    [
        ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=7", 0),
        ("MALLOC_ARENA_MAX", "2", 0),
        ("GLIBC_TUNABLES", "glibc.rtld.nns=4", 5),
        ("PATH", "/bin", 5),
    ],
)
def test_how_a_user_sets_the_allocator_stays(name, value, calls, monkeypatch):
    made = []
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        "yolov5_ema.allocator.ctypes.CDLL", lambda _: SimpleNamespace(mallopt=lambda *option: made.append(option))
    )
    keep_freed_memory()
    assert len(made) == calls
