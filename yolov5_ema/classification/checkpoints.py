"""Checkpoints of classifiers: ``weights/best.pt`` of a run, which loads with ``weights_only=True``."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import nn

from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.files import replacement
from yolov5_ema.texts import counted, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from yolov5_ema.classification.transforms import Transform
    from yolov5_ema.weights.checkpoint_files import PickleFile

FORMAT = "yolov5-ema classifier"
VERSION = 1
_MOST_PIXELS = 8192

_KINDS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "block": (str, type(None)),
    "block_options": (dict,),
    "stem": (str,),
    "num_classes": (int,),
    "names": (list,),
    "imgsz": (int,),
    "mean": (list, tuple),
    "std": (list, tuple),
    "state_dict": (dict,),
}


@dataclass
class Classifier:
    """A trained classifier, and what is needed to prepare images for it.

    Attributes:
        model: the model in evaluation mode on ``device``; (N, 3, imgsz, imgsz) float32 to (N, classes) logits.
        names: names of the classes, in the order of the logits.
        imgsz: side of the model's input in pixels.
        mean: values for the three channels (RGB, 0 to 1) that are subtracted from the input.
        std: values for the three channels by which the input is divided.
        record: what the file holds besides the weights.
        device: the device of the model.
    """

    model: nn.Module
    names: list[str]
    imgsz: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    record: dict[str, Any]
    device: torch.device

    @property
    def transform(self) -> Transform:
        """From an image in RGB to (3, imgsz, imgsz) float32, as in the evaluation of the training."""
        from yolov5_ema.classification.transforms import evaluation_transform

        crop = self.record.get("settings", {}).get("eval_crop", 1.0)
        return evaluation_transform(self.imgsz, crop, self.mean, self.std)

    def prepare(self, image: Image) -> torch.Tensor:
        """Return an image as input of the model: (1, 3, imgsz, imgsz) float32, on the model's device."""
        return self.transform(image.convert("RGB")).unsqueeze(0).to(self.device)


def save_classifier(path: Path, record: Mapping[str, Any]) -> None:
    """Write a checkpoint completely or not at all.

    Args:
        path: the file to write; an existing one is replaced.
        record: all keys of the format except ``format`` and ``version``; plain values and tensors only.

    Raises:
        UserError: the file cannot be written.
    """
    with replacement(path) as draft:
        save_plainly({"format": FORMAT, "version": VERSION, **record}, draft)


def save_plainly(content: Any, file: Path) -> None:
    """`torch.save`, but with an OSError if the folder is missing or the disk is full; torch has errors of its own."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        raise OSError(first_line(error)) from error


def is_classifier(path: str | Path) -> bool:
    """Whether a file is a checkpoint of ``yolov5-ema classify``; nothing is unpickled to find out."""
    from yolov5_ema.weights.inert_pickle import lookup

    try:
        return bool(lookup(_followed(Path(path)).root.value, "format") == FORMAT)
    except CheckpointError:
        return False


def load_classifier(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """Load a checkpoint of ``yolov5-ema classify``. No code from the file is run.

    Args:
        path: ``weights/best.pt`` of a run.
        device: the device for the model.

    Raises:
        CheckpointError: the file is missing, incomplete, not such a checkpoint, or holds more than tensors and plain
            values.
        UserError: timm is not installed, or the block is unknown here.
    """
    from yolov5_ema.classification.models import create_classifier

    file = Path(path)
    record = load_plainly(file)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise _no_classifier(file, _followed(file))
    _check(record, file)
    state = record.pop("state_dict")
    try:
        model = create_classifier(
            record["model"],
            record["block"],
            num_classes=record["num_classes"],
            stem=record["stem"],
            block_options=record["block_options"],
        )
    except (UserError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{file}: its model cannot be built here: {error}") from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{file}: its weights are not those of {record['model']} with block {record['block']}: "
            f"{(reason[1] if len(reason) > 1 else reason[0]).strip()[:300]}"
        ) from error
    where = torch.device(device)
    mean, std = (tuple(float(value) for value in record[key]) for key in ("mean", "std"))
    return Classifier(
        model=model.eval().to(where),
        names=list(record["names"]),
        imgsz=record["imgsz"],
        mean=mean,  # type: ignore[arg-type]
        std=std,  # type: ignore[arg-type]
        record=record,
        device=where,
    )


def load_plainly(file: Path) -> Any:
    """`torch.load` of tensors and plain values, with a CheckpointError for anything else.

    The pickle is first inspected without running it. A file that names more than tensors need is refused before torch
    reads it.
    """
    from yolov5_ema.weights.checkpoint_files import read_once, refuse_another_reading
    from yolov5_ema.weights.foreign_names import shown_names
    from yolov5_ema.weights.names import taken_by_torch
    from yolov5_ema.weights.vocabulary import odd_calls, short_storages

    content = read_once(file)
    opened = _followed(file, content)
    pickles = opened.pickles
    foreign = sorted({name for one in pickles for name in one.names if not taken_by_torch(name)})
    if foreign and _are_of_another_kind(foreign, opened, file):
        raise _no_classifier(file, opened)
    odd = foreign or odd_calls(pickles)[:5]
    if odd:
        raise CheckpointError(
            f"{file} holds what no classifier needs: {shown_names(odd)}. None of its code was run; get the file from a "
            "source that you trust, or train again."
        )
    if short_storages(opened.root, opened.sizes):
        raise CheckpointError(f"{file} is cut off or was changed: a tensor is shorter than the file says")
    refuse_another_reading(file, opened, content)
    content.seek(0)
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {first_line(error)}") from error


def _followed(file: Path, content: BinaryIO | None = None) -> PickleFile:
    """The pickles of a file, inspected without running them."""
    from yolov5_ema.weights.checkpoint_files import check_readable, open_pickles

    check_readable(file)
    return open_pickles(file, content)


def _are_of_another_kind(names: list[str], opened: PickleFile, file: Path) -> bool:
    """Whether class names in a pickle are those of layers: of a detector, or of another known kind of file."""
    from yolov5_ema.weights.kinds import other_kind
    from yolov5_ema.weights.names import known_by_module

    kind = other_kind(opened, file)
    return all(known_by_module(name) or (kind and kind.names.fullmatch(name)) for name in names)


def _no_classifier(file: Path, opened: PickleFile) -> CheckpointError:
    from yolov5_ema.weights.kinds import other_kind

    kind = other_kind(opened, file)
    if file.name == "last.ckpt":
        what = "last.ckpt is for --resume; name best.pt in the same folder."
    elif kind is not None:
        what = f"It is {kind.what}"
    else:
        what = "Detectors are for 'yolov5-ema detect'; 'yolov5-ema inspect' says what a file holds."
    return CheckpointError(f"{file} is not a classifier of 'yolov5-ema classify'. {what}")


def _check(record: Mapping[str, Any], file: Path) -> None:
    if record.get("version") != VERSION:
        raise CheckpointError(
            f"{file} has version {record.get('version')} of the format; this yolov5-ema reads version {VERSION}"
        )
    for key, kinds in _KINDS.items():
        if not isinstance(record.get(key), kinds) or isinstance(record.get(key), bool):
            raise CheckpointError(f"{file}: its {key!r} is missing or has the wrong type")
    names, count = record["names"], record["num_classes"]
    if len(names) != count or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{file}: {counted(count, 'class')}, but {counted(len(names), 'name')} of classes")
    settings = record.get("settings", {})
    if not 1 <= record["imgsz"] <= _MOST_PIXELS or not isinstance(settings, dict):
        raise CheckpointError(f"{file}: its 'imgsz' or 'settings' are invalid")
    crop = settings.get("eval_crop", 1.0)
    if not isinstance(crop, (int, float)) or not 0.1 <= crop <= 1:
        raise CheckpointError(f"{file}: its 'eval_crop' must be from 0.1 to 1, not {crop!r}")
    for key in ("mean", "std"):
        values = record[key]
        numbers = all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
        if len(values) != 3 or not numbers or (key == "std" and min(values) <= 0):
            raise CheckpointError(f"{file}: its {key!r} must be three numbers")
