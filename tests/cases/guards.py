"""Attacks by files of a stranger's data set: each makes ``Place.canary`` where the guards are missing.

All are tried in one process, each in a folder of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import yolov5_ema


class Place:
    """A folder of an attack, with a copy of a data set.

    Attributes:
        folder: the folder.
        canary: what the attack makes in it.
        data: folder of the copied data set.
        cache: its cache of labels, which is not there yet.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        folder.mkdir()
        self.folder, self.canary = folder, folder / "ran"
        self.data = shutil.copytree(data.parent, folder / "set")
        self.cache = self.data / "labels/val.cache"
        self.cache.unlink(missing_ok=True)

    def scan(self) -> Any:
        """Load the data set as YOLOv5 does."""
        engine = yolov5_ema.install()
        name = "utils.dataloaders" if engine.has_script("utils.dataloaders") else "utils.datasets"
        return engine.module(name).LoadImagesAndLabels(str(self.data / "images/val"), 64, 2)

    def scanned(self) -> dict[str, Any]:
        """The content of a valid cache."""
        self.scan()
        held: dict[str, Any] = np.load(self.cache, allow_pickle=True).item()
        return held

    def plant(self, content: Any) -> None:
        """Write a cache where YOLOv5 looks for it."""
        with self.cache.open("wb") as stream:
            np.save(stream, content)


class _Code:
    """An object that makes the canary when it is unpickled."""

    def __init__(self, place: Place) -> None:
        self.canary = place.canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def _attempt(call: Callable[..., object], *args: object) -> None:
    with contextlib.suppress(Exception):
        call(*args)


def _general() -> Any:
    return yolov5_ema.install().module("utils.general")


def a_cache_that_is_code(place: Place) -> None:
    place.plant(_Code(place))
    _attempt(place.scan)


def code_in_an_honest_cache(place: Place) -> None:
    place.plant({**place.scanned(), "msgs": [_Code(place)]})
    _attempt(place.scan)


def code_as_the_key_of_an_array(place: Place) -> None:
    code = np.array([_Code(place)], object)
    place.plant({"a.jpg": [np.zeros((1, 5), np.float32), (64, 64), [code]]})
    _attempt(place.scan)


def a_cache_that_names_a_picture_elsewhere(place: Place) -> None:
    held = place.scanned()
    other = str(place.folder / "private.jpg")
    path = next(key for key in held if key.endswith("g"))
    shutil.copy(path, other)
    place.plant({other if key == path else key: value for key, value in held.items()})
    files = vars(place.scan())
    if other in (files.get("im_files") or files["img_files"]):
        place.canary.mkdir()


def settings_of_the_repository_that_one_stands_in(place: Place) -> None:
    os.chdir(place.folder)
    os.system("git init -q .")
    os.system(f'git config remote.origin.url "ext::sh -c touch% {place.canary}"')
    os.system("git config protocol.ext.allow always")
    for command in ("git fetch && git config --get remote.origin.url", "git fetch origin"):
        _attempt(lambda: _general().check_output(command, shell=True))  # noqa: B023


def a_link_where_the_cache_is_written(place: Place) -> None:
    victim = place.folder / "victim"
    victim.write_text("mine")
    (place.data / "labels/val.cache.npy").symlink_to(victim)
    place.scan()
    if victim.read_bytes() != b"mine":
        place.canary.mkdir()


def _download_in(name: str, place: Place) -> None:
    text = (
        f"path: nowhere\ntrain: a\nval: a\nnc: 1\nnames: [a]\ndownload: |\n  import os\n  os.mkdir('{place.canary}')\n"
    )
    (place.folder / name).write_text(text)
    _attempt(_general().check_dataset, str(place.folder / name))


def download_in_data_yaml(place: Place) -> None:
    _download_in("data.yaml", place)


def download_in_data_of_capital_yaml(place: Place) -> None:
    _download_in("data.YAML", place)


def download_in_data_txt(place: Place) -> None:
    _download_in("data.txt", place)


def download_in_data_without_a_suffix(place: Place) -> None:
    _download_in("data.", place)


def _download(command: str) -> None:
    content = {"train": "a", "val": "a", "nc": 1, "names": ["a"], "download": command}
    _attempt(_general().check_dataset, content)


def download_that_is_a_command(place: Place) -> None:
    _download(f'bash -c "mkdir {place.canary}"')


def download_in_a_dict(place: Place) -> None:
    _download(f"import os; os.mkdir({str(place.canary)!r})")


ATTACKS: tuple[Callable[[Place], None], ...] = (
    a_cache_that_is_code,
    code_in_an_honest_cache,
    code_as_the_key_of_an_array,
    a_cache_that_names_a_picture_elsewhere,
    settings_of_the_repository_that_one_stands_in,
    a_link_where_the_cache_is_written,
    download_in_data_yaml,
    download_in_data_of_capital_yaml,
    download_in_data_txt,
    download_in_data_without_a_suffix,
    download_that_is_a_command,
    download_in_a_dict,
)


def try_all(folder: Path, data: Path) -> None:
    """Run each attack in a folder with its name."""
    for attack in ATTACKS:
        attack(Place(folder / attack.__name__, data))
