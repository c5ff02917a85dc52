"""How images are identified: by key in the package, and by name in files of results and annotations.

In the package, an image's key is its path relative to the folder of its split's images, which is unique. VisDrone's and
YOLO's text files and YOLOv5's results JSON give only a name. `named_once` finds images by name, and refuses two images
of the same name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from yolov5_ema.data.listing import IMAGE_SUFFIXES
from yolov5_ema.errors import UserError

_Image = TypeVar("_Image", str, Path)


def keys_of_images(images: Iterable[Path], spelled: Iterable[Path] = ()) -> dict[Path, str]:
    """The key of each image: its path, in POSIX form, relative to the folder that contains all of them.

    Links to folders are resolved, except where a split reaches an image by two paths: these are two images, as they are
    for YOLOv5. A link to an image file is never resolved.

    Args:
        images: the images of a split.
        spelled: more paths of these images, as another program spells them; they get the keys of the images.

    Example:
        >>> list(keys_of_images([Path("set/a/1.jpg"), Path("set/b/1.jpg")]).values())
        ['a/1.jpg', 'b/1.jpg']
    """
    files = list(dict.fromkeys(images))
    others = list(dict.fromkeys(spelled))
    keys = _relative([*files, *others], os.path.realpath)
    if len({keys[file] for file in files}) == len(set(map(os.path.abspath, files))):
        return keys
    own = _relative(files, os.path.abspath)
    by_path = {os.path.abspath(file): own[file] for file in files}
    by_place = {keys[file]: own[file] for file in files}
    return own | {file: by_path.get(os.path.abspath(file)) or by_place.get(keys[file], keys[file]) for file in others}


def _relative(files: Sequence[Path], place_of: Callable[[Path], str]) -> dict[Path, str]:
    folders = {folder: place_of(folder) for folder in {file.parent for file in files}}
    top = os.path.commonpath(folders.values()) if folders else ""
    below = {folder: PurePath(os.path.relpath(place, top)) for folder, place in folders.items()}
    return {file: (below[file.parent] / file.name).as_posix() for file in files}


def name_of(image: str | PurePath) -> str:
    """The name of an image, given by path or key, without folders and without an image suffix.

    Example:
        >>> name_of("a/x.y.jpg"), name_of("x.y")
        ('x.y', 'x.y')
    """
    name = PurePath(image).name
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def image_id(image: str | PurePath) -> int | str:
    """The id that YOLOv5's ``val --save-json`` gives an image: its name, as a number if it is numeric.

    Example:
        >>> image_id("000042.jpg"), image_id("9999942_00000_d_0000214.jpg")
        (42, '9999942_00000_d_0000214')
    """
    name = name_of(image)
    return int(name) if name.isdecimal() else name


def named_once(images: Iterable[_Image], why: str, name: Callable[[_Image], Any] = name_of) -> dict[Any, _Image]:
    """Map the names that a file uses to its images.

    Args:
        images: the paths or keys of the images.
        why: what the name is needed for, as a sentence without its full stop.
        name: gives the name of an image, by the rule of the file.

    Raises:
        UserError: two images have the same name; the message gives both.
    """
    found: dict[Any, _Image] = {}
    for image in images:
        other = found.setdefault(name(image), image)
        if other != image:
            raise UserError(
                f"{other} and {image} are both called {name(image)}. {why}; rename one of them, or take their "
                "folders one at a time"
            )
    return found
