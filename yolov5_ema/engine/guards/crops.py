"""``detect --save-crop``: each crop goes into the folder of its class, inside the run's folder.

YOLOv5 joins the run's folder and the class name, which comes from a checkpoint, an exported model or a data YAML. A
class name with slashes would make nested folders; one with ``..`` or an absolute path could write anywhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolov5_ema.class_names import as_folder_name
from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.patching import Patches

_FUNCTION, _GUARDED = "save_one_box", "within_the_run"


def _apply(module: SourceModule, patches: Patches) -> None:
    save = getattr(module.module, _FUNCTION, None)
    if save is not None and not hasattr(save, _GUARDED):
        patches.wrap(module.module, _FUNCTION, _within_the_run)
        setattr(getattr(module.module, _FUNCTION), _GUARDED, True)


def _within_the_run(
    save: Callable[..., Any], xyxy: Any, im: Any, file: Any = "im.jpg", *args: Any, **kwargs: Any
) -> Any:
    run = sys._getframe(2).f_locals.get("save_dir")  # of the script
    if isinstance(run, (str, os.PathLike)) and isinstance(file, (str, os.PathLike)):
        file = place_of_crop(Path(file), Path(run) / "crops")
    return save(xyxy, im, file, *args, **kwargs)


def place_of_crop(file: Path, crops: Path) -> Path:
    """Return where a crop is written: in a folder named after its class, without slashes, directly inside ``crops``.

    Args:
        file: where YOLOv5 would write it.
        crops: the folder of all crops.

    Raises:
        UserError: the crop would be written outside of ``crops``.
    """
    try:
        *folders, name = file.relative_to(crops).parts
    except ValueError:
        folders, name = [], ""
    if not folders or ".." in (*folders, name):
        raise UserError(
            f"a crop would be written to {file}, which is not in {crops}, because of a class name in the model. "
            "Give the class another name"
        )
    place = crops / as_folder_name("/".join(folders)) / name
    if not os.path.realpath(place).startswith(os.path.join(os.path.realpath(crops.parent), "")):
        raise UserError(f"a crop would be written to {place}, where a link leads out of {crops.parent}; remove it")
    return place


CROPS_STAY = Quirk(
    name="crops-stay",
    symptom="detect --save-crop writes outside of its run folder, to wherever the name of a class leads",
    versions="all from 5.0",
    needed=lambda module: _FUNCTION in module.code.own_names,
    reason="it writes crops into folders named after classes, whose names come from a file",
    apply=_apply,
)
