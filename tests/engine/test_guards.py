"""In every release, untrusted files run no code and write no file through a link; without the guard they do."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest
from conftest import laid_aside
from release_case import run_in_child

from yolov5_ema.engine.guards import datasets
from yolov5_ema.upstream.locate import Engine, engine_at

RELEASES = (
    "6.0.7",
    *(pytest.param(release, marks=pytest.mark.slow) for release in ("6.1.9", "6.2.3")),
    "7.0.14",
)

_START = """
import contextlib, os, shutil
from pathlib import Path
import numpy as np
CANARY = Path(TMP) / "ran"
try:
    from yolov5.utils.dataloaders import LoadImagesAndLabels
except ImportError:
    from yolov5.utils.datasets import LoadImagesAndLabels
from yolov5.utils import downloads, general
folder = Path(TMP) / "set"
shutil.copytree(Path(SET).parent, folder)
cache = folder / "labels/val.cache"
cache.unlink(missing_ok=True)
def scan():
    return LoadImagesAndLabels(str(folder / "images/val"), 64, 2)
class Code:
    def __init__(self, inner=None): self.inner = inner
    def __reduce__(self): return os.mkdir, (str(CANARY),)
def plant(content):
    with cache.open("wb") as stream:
        np.save(stream, content)
def attempt(call, *args):
    with contextlib.suppress(Exception):
        call(*args)
"""

# name -> code that makes CANARY without the guards
ATTACKS = {
    "a cache that is code": "plant(Code())\nattempt(scan)",
    "code in an honest cache": (
        "scan()\nheld = np.load(cache, allow_pickle=True).item()\nheld['msgs'] = [Code()]\nplant(held)\nattempt(scan)"
    ),
    "code as the key of an array": (
        "plant({'a.jpg': [np.zeros((1, 5), np.float32), (64, 64), [np.array([Code()], object)]]})\nattempt(scan)"
    ),
    "a cache that names a picture elsewhere": (
        "scan()\nheld = np.load(cache, allow_pickle=True).item()\nother = str(Path(TMP) / 'private.jpg')\n"
        "path = next(key for key in held if key.endswith('g'))\nshutil.copy(path, other)\n"
        "held = {other if key == path else key: value for key, value in held.items()}\nplant(held)\n"
        "files = vars(scan())\nif other in (files.get('im_files') or files['img_files']): CANARY.mkdir()"
    ),
    "settings of the repository that one stands in": (
        "os.chdir(TMP)\nos.system('git init -q .')\n"
        "os.system(f'git config remote.origin.url \"ext::sh -c touch% {CANARY}\"')\n"
        "os.system('git config protocol.ext.allow always')\n"
        "for command in ('git fetch && git config --get remote.origin.url', 'git fetch origin'):\n"
        "    attempt(lambda: general.check_output(command, shell=True))"
    ),
    "a link where the cache is written": (
        "victim = Path(TMP) / 'victim'\nvictim.write_text('mine')\n"
        "(folder / 'labels/val.cache.npy').symlink_to(victim)\nscan()\n"
        "if victim.read_bytes() != b'mine': CANARY.mkdir()"
    ),
    **{
        f"download in data.{suffix or 'without a suffix'}": (
            f"file = Path(TMP) / 'data.{suffix}'\n"
            "file.write_text('path: nowhere\\ntrain: a\\nval: a\\nnc: 1\\nnames: [a]\\ndownload: |\\n  import os\\n'"
            "'  os.mkdir(' + repr(str(CANARY)) + ')\\n')\nattempt(general.check_dataset, str(file))"
        )
        for suffix in ("yaml", "YAML", "txt", "")
    },
    "download that is a command": (
        "data = {'train': 'a', 'val': 'a', 'nc': 1, 'names': ['a'], 'download': f'bash -c \"mkdir {CANARY}\"'}\n"
        "attempt(general.check_dataset, data)"
    ),
    "download in a dict": (
        "data = {'train': 'a', 'val': 'a', 'nc': 1, 'names': ['a']}\n"
        "data['download'] = f'import os; os.mkdir({str(CANARY)!r})'\nattempt(general.check_dataset, data)"
    ),
}


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
    handed_over = datasets._guarded(lambda data: data, Engine(tmp_path, "clone", "7.0"))(str(file))
    assert handed_over["names"] == ["a"] and "download" not in handed_over


GUARDS = "arrays commands data-sets evaluating"


def _root(release: str, package_root: Path) -> Path:
    return package_root if engine_at(package_root).version == release else laid_aside(release)


def _succeeded(without: str | None, root: Path, tiny_set: Path, tmp_path: Path) -> set[str]:
    """The attacks that made their canary; all are tried in one process, each in its own folder."""
    places = {name: tmp_path / f"attack{index}" for index, name in enumerate(ATTACKS)}
    for place in places.values():
        place.mkdir()
    code = "\n".join(
        f"exec({_START + ATTACKS[name]!r}, {{'TMP': {str(place)!r}, 'SET': SET}})" for name, place in places.items()
    )
    failure = run_in_child(code, {"TMP": str(tmp_path), "SET": str(tiny_set), "ROOT": str(root)}, without)
    assert failure == "", failure
    return {name for name, place in places.items() if (place / "ran").exists()}


@pytest.mark.parametrize("release", RELEASES)
def test_no_attack_succeeds(release, package_root, tiny_set, tmp_path):
    assert _succeeded(None, _root(release, package_root), tiny_set, tmp_path) == set()


def test_no_attack_succeeds_where_the_files_are_links(package_root, tiny_set, tmp_path):
    """As some installers arrange packages."""
    shutil.copytree(package_root, tmp_path / "linked/yolov5", copy_function=os.symlink)
    assert (tmp_path / "linked/yolov5/train.py").is_symlink()
    assert _succeeded(None, tmp_path / "linked/yolov5", tiny_set, tmp_path) == set()


@pytest.mark.parametrize("release", RELEASES)
def test_without_the_guards_every_attack_succeeds(release, package_root, tiny_set, tmp_path):
    assert _succeeded(GUARDS, _root(release, package_root), tiny_set, tmp_path) == set(ATTACKS)
