"""What images are called in results: by their stems, where these tell them apart."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable

from yolov5_ema.errors import UserError


def names_of_images(images: Iterable[Path]) -> dict[Path, str]:
    """A name for each image that no other one has.

    Returns:
        By image its name without a suffix; where several images have that one, the path from the folder that they
        all lie in.

    Example:
        >>> list(names_of_images([Path("set/a/1.jpg"), Path("set/b/1.jpg"), Path("set/b/2.jpg")]).values())
        ['a/1.jpg', 'b/1.jpg', '2']
    """
    files = list(dict.fromkeys(images))
    stems = Counter(file.stem for file in files)
    if len(stems) == len(files):
        return {file: file.stem for file in files}
    places = _places(files)
    names = {file: file.stem if stems[file.stem] == 1 else places[file] for file in files}
    return names if len(set(names.values())) == len(files) else places


def _places(files: Sequence[Path]) -> dict[Path, str]:
    absolute = {file: os.path.abspath(file) for file in files}
    top = os.path.commonpath([os.path.dirname(place) for place in absolute.values()])
    return {file: Path(os.path.relpath(place, top)).as_posix() for file, place in absolute.items()}


def refuse_shared_stems(
    images: Iterable[Path], why: str, key: Callable[[Path], Any] = lambda image: image.stem
) -> None:
    """Refuse images of which two have one name without the suffix.

    Args:
        images: their files.
        why: what goes by that name, as a sentence without its full stop.
        key: what results call an image, if not by that name.

    Raises:
        UserError: names two such images.
    """
    seen: dict[Any, Path] = {}
    for image in images:
        other = seen.setdefault(key(image), image)
        if other != image:
            raise UserError(
                f"{other} and {image} are both called {key(image)}. {why}; rename one of them, or take their "
                "folders one at a time"
            )


def image_id(image: str) -> int | str:
    """The id that YOLOv5's ``val --save-json`` gives an image: its name as a number if it is one.

    Example:
        >>> image_id("000042.jpg"), image_id("9999942_00000_d_0000214.jpg")
        (42, '9999942_00000_d_0000214')
    """
    stem = os.path.splitext(os.path.basename(image))[0]
    return int(stem) if stem.isdecimal() else stem
