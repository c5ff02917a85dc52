"""In every release, untrusted files run no code and write no file through a link; without the guard they do."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest
from cases import guards as cases
from conftest import laid_aside
from release_case import run_in_release

from yolov5_ema.engine.guards import datasets
from yolov5_ema.upstream.locate import Engine, engine_at

RELEASES = (
    "6.0.7",
    *(pytest.param(release, marks=pytest.mark.slow) for release in ("6.1.9", "6.2.3")),
    "7.0.14",
)


def yaml_that_is_a_tar(text: str) -> bytes:
    """A comment of 511 letters that is also the header of an archive, followed by a YAML."""
    head = bytearray(b"#" + b"a" * 511)
    for start, length in ((100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (329, 8), (337, 8)):
        head[start : start + length] = b"0" * (length - 1) + b" "
    head[156:157] = b"0"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o  " % sum(head)
    return bytes(head) + b"\n" + text.encode()


def test_a_data_yaml_that_is_an_archive_as_well_is_taken_for_a_yaml(tmp_path):
    file = tmp_path / "data.yaml"
    text = "path: .\ntrain: a\nval: a\nnc: 1\nnames: [a]\ndownload: http://127.0.0.1/x.zip\n"
    file.write_bytes(yaml_that_is_a_tar(text))
    assert tarfile.is_tarfile(file)
    handed_over = datasets._guarded(lambda data: data, Engine(tmp_path, "clone", "7.0"), str(file))
    assert handed_over["names"] == ["a"] and "download" not in handed_over


ATTACKS = {attack.__name__ for attack in cases.ATTACKS}
GUARDS = "arrays commands data-sets evaluating"


def _root(release: str, package_root: Path) -> Path:
    return package_root if engine_at(package_root).version == release else laid_aside(release)


def _succeeded(without: str, root: Path, tiny_set: Path, folder: Path) -> set[str]:
    """The attacks that made their canary."""
    given = {"root": root, "folder": folder, "data": tiny_set}
    failure = run_in_release(cases.try_all, given, without=without)
    assert failure == "", failure
    return {name for name in ATTACKS if (folder / name / "ran").exists()}


@pytest.mark.parametrize("release", RELEASES)
def test_no_attack_succeeds(release, package_root, tiny_set, tmp_path):
    assert _succeeded("", _root(release, package_root), tiny_set, tmp_path) == set()


def test_no_attack_succeeds_where_the_files_are_links(package_root, tiny_set, tmp_path):
    """As some installers arrange packages."""
    shutil.copytree(package_root, tmp_path / "linked/yolov5", copy_function=os.symlink)
    assert (tmp_path / "linked/yolov5/train.py").is_symlink()
    assert _succeeded("", tmp_path / "linked/yolov5", tiny_set, tmp_path) == set()


@pytest.mark.parametrize("release", RELEASES)
def test_without_the_guards_every_attack_succeeds(release, package_root, tiny_set, tmp_path):
    assert _succeeded(GUARDS, _root(release, package_root), tiny_set, tmp_path) == ATTACKS
