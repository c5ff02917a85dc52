"""The C++ library is found again, rebuilt if needed, and silently left out if it cannot be built."""

from __future__ import annotations

import functools
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases.native import runs_a_block
from conftest import REPOSITORY, randomise
from fresh_process import run_in_copy

from yolov5_ema.blocks import EMA
from yolov5_ema.kernels import dispatch, native, ownership
from yolov5_ema.settings import VARIABLES

needs_compiler = pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv(VARIABLES["cache"], str(folder))
    return folder


def compiler_script(folder, text):
    file = folder / "compiler"
    file.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{text}\n')
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


def test_no_compiler(no_compiler, cache):
    found = native._find_or_build()
    assert found.handle is None and found.reason.startswith("no C++ compiler found (c++, g++, clang++, or CXX)")
    assert not found.has_failed, "a machine without a compiler is nothing to warn of"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo broken >&2; exit 1", "compiler fails: broken"),
        ("exit 0", "fails: it wrote no library"),
        ('while [ $# -gt 1 ]; do shift; done; echo text > "$1"', "does not load"),
    ],
    ids=["fails", "writes nothing", "writes no library"],
)
def test_a_broken_compiler(text, reason, monkeypatch, cache, tmp_path, caplog):
    """A block goes on with plain operations, and one warning says why."""
    monkeypatch.setenv("CXX", compiler_script(tmp_path, text))
    found = native._find_or_build()
    assert found.handle is None and reason in found.reason
    monkeypatch.setattr(native, "library", lambda: found)
    monkeypatch.setattr(dispatch, "_look_for", functools.cache(dispatch._look_for.__wrapped__))
    for _ in range(2):
        assert EMA(8, groups=2)(torch.ones(1, 8, 3, 3)).shape == (1, 8, 3, 3)
    (record,) = caplog.records
    start = "the C++ kernels are not used in this process, plain torch operations are: "
    assert record.levelname == "WARNING" and record.getMessage() == start + found.reason
    assert not [file for file in cache.iterdir() if file.name.startswith(".")], "drafts are gone"


def test_without_a_compiler_a_block_gives_the_same(tmp_path, monkeypatch):
    """A whole process: it prints nothing else, and computes the same values as this one."""
    monkeypatch.delenv("CXX", raising=False)
    done = run_in_copy(runs_a_block, env={"PATH": str(tmp_path), VARIABLES["cache"]: str(tmp_path)})
    assert done.returncode == 0 and not done.stderr, done.stderr
    *values, name = done.stdout.split()
    assert name == "exact"
    torch.manual_seed(0)
    block = EMA(64, groups=8)
    x = torch.randn(2, 64, 9, 7, requires_grad=True)
    out = block(x)
    out.sum().backward()
    expected = [out.double().abs().sum().item(), x.grad.double().abs().sum().item()]
    assert [float(value) for value in values] == pytest.approx(expected, rel=1e-6)


@needs_compiler
@pytest.mark.slow
def test_built_once_and_kept(cache, monkeypatch):
    assert native._find_or_build().handle is not None
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    monkeypatch.setattr(native, "build", lambda *_: pytest.fail("built again"))
    assert str(file) in native._find_or_build().reason
    assert file.stat().st_mtime_ns == written
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@needs_compiler
def test_the_name_follows_sources_flags_andprocessor(monkeypatch):
    compiler = native._compiler()
    names = {native._fingerprint(compiler, (), ()), native._fingerprint(compiler, ("-march=native",), ())}
    monkeypatch.setattr(native, "processor", lambda: b"another")
    names.add(native._fingerprint(compiler, (), ()))
    assert len(names) == 3
    assert native._fingerprint(compiler, (), ()) in names


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_a_folder_that_others_can_write_to_is_not_trusted(cache):
    cache.mkdir()
    cache.chmod(0o777)
    assert native.cache_folder() is None
    cache.chmod(0o755)
    assert native.cache_folder() == cache


def test_a_folder_that_cannot_be_made(cache):
    cache.write_text("a file")
    assert native.cache_folder() is None


# ---------------------------------------------------------------------- libraries that others can have put there

posix = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes of POSIX")
needs_root = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away")


def writable_file(folder, file):
    file.chmod(0o666)


def writable_by_the_group(folder, file):
    file.chmod(0o760)
    if os.getuid() == 0:
        os.chown(file, 0, 12345)


def of_another_user(folder, file):
    os.chown(file, 12345, -1)


def a_link(folder, file):
    elsewhere = folder.parent / "elsewhere.so"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def below_a_folder_for_all(folder, file):
    folder.parent.chmod(0o777)


def folder_of_another_user(folder, file):
    os.chown(folder, 12345, -1)


def behind_anothers_link(folder, file):
    real = folder.parent / "real"
    folder.rename(real)
    folder.symlink_to(real)
    os.chown(folder, 12345, -1, follow_symlinks=False)


@pytest.fixture
def planted(tmp_path, cache, monkeypatch):
    """A library with the right name that creates a file when it is loaded, and this file."""
    compiler, canary = native._compiler(), tmp_path / "canary"
    source = tmp_path / "planted.c"
    source.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n"
        '__attribute__((constructor)) static void run(void) { fclose(fopen(getenv("CANARY"), "w")); }\n'
    )
    monkeypatch.setenv("CANARY", str(canary))
    folder = tmp_path / "parent" / "cache"
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv(VARIABLES["cache"], str(folder))
    file = folder / f"kernels-{native._fingerprint(compiler, *native._VARIANTS[0])}.so"
    flags = ["-x", "c", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(file)], check=True)
    file.chmod(0o700)
    real = Path(native.library().reason.split(", by ")[0])
    monkeypatch.setattr(native, "build", lambda *arguments: shutil.copy(real, arguments[-1]))  # a few seconds less
    return file, canary


@posix
@needs_compiler
def test_a_private_library_is_loaded(planted):
    """A control: the files below are refused because of who could have written them, not because of their content."""
    file, canary = planted
    assert str(file) in native._find_or_build().reason
    assert canary.exists()


@posix
@needs_compiler
@pytest.mark.parametrize(
    "spoil",
    [
        writable_file,
        pytest.param(writable_by_the_group, marks=needs_root),
        pytest.param(of_another_user, marks=needs_root),
        a_link,
        below_a_folder_for_all,
        pytest.param(folder_of_another_user, marks=needs_root),
        pytest.param(behind_anothers_link, marks=needs_root),
    ],
)
def test_a_library_that_others_can_have_written_is_not_loaded(planted, spoil):
    file, canary = planted
    spoil(file.parent, file)
    found = native._find_or_build()
    assert not canary.exists()
    assert found.handle is not None and str(file) not in found.reason


@posix
def test_a_folder_for_all_with_the_sticky_bit_is_as_private_as_tmp(tmp_path):
    folder = tmp_path / "for all" / "own"
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o777)
    assert not ownership.is_private_folder(folder)
    folder.parent.chmod(0o1777)
    assert ownership.is_private_folder(folder)
    own = tmp_path / "own link"
    own.symlink_to(folder)
    assert ownership.is_private_folder(own)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert not ownership.is_private_folder(loop)


@posix
def test_devices_and_pipes_are_no_libraries(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert not ownership.is_private_file(tmp_path / "pipe")
    assert not ownership.is_private_file(tmp_path)


@needs_compiler
@pytest.mark.slow
def test_without_a_folder_it_is_built_for_the_process(cache, monkeypatch):
    monkeypatch.setattr(native, "cache_folder", lambda: None)
    assert native._find_or_build().handle is not None


@needs_compiler
@pytest.mark.slow
def test_four_processes_build_at_once(tmp_path):
    code = "from yolov5_ema.kernels import native; assert native.library().handle, native.library().reason"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), VARIABLES["cache"]: str(tmp_path / "cache")}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 1


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("variant", range(len(native._VARIANTS)))
def test_every_variant_gives_the_same(variant, monkeypatch, cache):
    """With and without OpenMP, and with and without the instructions that only this processor has."""
    block = randomise(EMA(32, groups=4))
    x = torch.randn(2, 32, 9, 7, generator=torch.Generator().manual_seed(0))
    with dispatch.forced("reference"):
        expected = block(x)
    monkeypatch.setattr(native, "_VARIANTS", native._VARIANTS[variant : variant + 1])
    found = native._find_or_build()
    if found.handle is None:
        pytest.skip(found.reason)
    monkeypatch.setattr(native, "library", lambda: found)
    with dispatch.forced("cpp"):
        torch.testing.assert_close(block(x), expected, atol=2e-6, rtol=0)
