"""The libraries of a wheel: one for each level of processors, used only for the sources that they were made of."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from cases.native import runs_a_block
from conftest import REPOSITORY
from fresh_process import fresh_command, fresh_environment

from yolov5_ema.kernels import compiler, native, prebuilt
from yolov5_ema.settings import VARIABLES

needs_compiler = pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)
needs_levels = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="levels of x86-64")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no compiler on first use")


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> Path:
    """A folder of libraries as in a wheel. To save time, each is a copy of the one that this machine has compiled."""
    ready = Path(native.library().reason.split(", by ")[0].split(", from ")[0])
    monkeypatch.setattr(compiler, "build", lambda *arguments: shutil.copy(ready, arguments[-1]))
    folder = tmp_path / "compiled"
    prebuilt.build(folder, native._compiler() or "c++")
    monkeypatch.setattr(prebuilt, "FOLDER", folder)
    return folder


def capability(monkeypatch, name: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)


@needs_compiler
@needs_levels
@pytest.mark.parametrize(
    ("name", "level"),
    [("AVX512", "avx512"), ("AVX2", "avx2"), ("DEFAULT", "baseline"), ("NO AVX", "baseline"), ("SVE256", "baseline")],
)
def test_the_processor_decides(packaged, monkeypatch, name, level):
    capability(monkeypatch, name)
    found = prebuilt.find()
    assert found.handle is not None and found.reason.startswith(f"{packaged}/kernels-{level}.so, from the wheel")
    assert found.handle.ema_forward_float32 and native._find_or_build().reason == found.reason


@needs_compiler
@needs_levels
def test_a_library_that_does_not_load_is_left_out(packaged, monkeypatch):
    capability(monkeypatch, "AVX512")
    baseline = packaged / "kernels-baseline.so"
    whole = baseline.read_bytes()
    (packaged / "kernels-avx2.so").unlink()
    for file in (packaged / "kernels-avx512.so", baseline):
        file.write_text("text")
    found = prebuilt.find()
    assert found.handle is None and "do not load: " in found.reason
    assert native._find_or_build().handle is not None, "compiled instead"
    baseline.write_bytes(whole)
    assert prebuilt.find().reason.startswith(f"{baseline}, from the wheel, for baseline, by ")


@needs_compiler
@pytest.mark.parametrize("change", [{"sources": "0"}, {"machine": "m68k"}, {"sources": None}])
def test_libraries_of_other_sources_or_machines_are_not_loaded(packaged, change):
    about = packaged / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **change}))
    found = prebuilt.find()
    assert found.handle is None and "are of other sources, or for another machine" in found.reason


@needs_compiler
@pytest.mark.parametrize("text", ["", "[]", "{", "\udcff"])
def test_a_description_that_cannot_be_read_counts_as_none(packaged, text):
    (packaged / "about.json").write_bytes(text.encode(errors="surrogateescape"))
    assert prebuilt.find() == (None, "this installation carries no compiled kernels", False)


def test_the_hash_follows_the_sources(tmp_path, monkeypatch):
    names = {compiler.hash_of_sources()}
    copy = tmp_path / "cpp"
    shutil.copytree(compiler.SOURCES, copy)
    monkeypatch.setattr(compiler, "SOURCES", copy)
    assert names == {compiler.hash_of_sources()}
    header = copy / "common.h"
    header.write_bytes(header.read_bytes().replace(b"\n", b"\r\n"))
    assert names == {compiler.hash_of_sources()}, "as Git may check it out on Windows"
    header.write_bytes(header.read_bytes() + b"//")
    assert len(names | {compiler.hash_of_sources()}) == 2


def test_what_python_calls_is_exported_on_windows_too():
    for file in compiler.SOURCES.glob("*.cpp"):
        text = file.read_text(encoding="utf-8")
        assert "    EMA_EXPORT int " in text and 'extern "C"' not in text, file.name


def test_flags_of_microsofts_compiler(tmp_path, monkeypatch):
    ran = []

    def run(command, **_):
        ran.append(command)
        Path(next(word for word in command if word.startswith("/Fe:"))[4:]).touch()

    monkeypatch.setattr(subprocess, "run", run)
    compiler.build("C/cl.exe", ("/arch:AVX2",), (), tmp_path / "kernels.dll")
    (command,) = ran
    assert command[:5] == ["C/cl.exe", "/nologo", "/std:c++17", "/O2", "/EHsc"] and "/arch:AVX2" in command
    assert (tmp_path / "kernels.dll").is_file()
    assert sum(word.endswith(".cpp") for word in command) == len(list(compiler.SOURCES.glob("*.cpp")))


# ------------------------------------------------------------------------------------------ whole wheels


def built_wheel(folder: Path, **variables: str) -> Path:
    source = folder / "source"
    for name in ("yolov5_ema", "models", "data"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "compiled"))
    for name in ("pyproject.toml", "setup.py", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, cwd=source, env=environment | variables, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
@needs_compiler
@needs_levels
@pytest.mark.skipif(sys.platform != "linux", reason="the name of the platform")
def test_a_wheel_with_libraries_needs_no_compiler(tmp_path, monkeypatch):
    wheel = built_wheel(tmp_path, YOLOV5_EMA_COMPILE="1")
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    command = fresh_command(runs_a_block)
    sums = {}
    for level in ("avx512", "avx2", "default"):
        environment = fresh_environment({"PATH": "", "CXX": "", VARIABLES["cache"]: str(tmp_path / "cache")})
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), environment["PYTHONPATH"]])
        environment["ATEN_CPU_CAPABILITY"] = level
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        *values, name = done.stdout.split()
        assert name == "cpp", done.stdout + done.stderr
        sums[level] = [float(value) for value in values]
    assert sums["avx2"] == pytest.approx(sums["default"], rel=1e-6)
    assert sums["avx512"] == pytest.approx(sums["default"], rel=1e-6)


@pytest.mark.slow
def test_without_the_variable_the_wheel_is_for_every_platform(tmp_path):
    wheel = built_wheel(tmp_path, PATH="", CXX="")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "yolov5_ema/kernels/cpp/ema.cpp" in names and not [name for name in names if "/compiled/" in name]
