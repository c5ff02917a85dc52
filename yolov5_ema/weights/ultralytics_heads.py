"""Transfers the heads of the package `ultralytics`: boxes, masks, keypoints and angles by level, classes by name.

Their tensors are called ``cv2.1.0.conv.weight``: the branch, the level, and the rest. The last convolution of the
branch cv3 has one output for each class; RT-DETR, classifiers and others have layers with one output for each class.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from yolov5_ema.weights.conversions import Tensors
from yolov5_ema.weights.heads import HeadTransfer, Names, class_map, remark_on_classes
from yolov5_ema.weights.structure import Layer

_OF_A_LEVEL = re.compile(r"(?P<branch>(?:one2one_)?cv\d|input_proj)\.(?P<level>\d+)\.(?P<rest>.+)")
_OF_CLASSES = re.compile(
    r"(one2one_)?cv3\.\d+\.\d+\.(weight|bias)|(enc_score_head|dec_score_head\.\d+|linear|classifier)\.(weight|bias)"
    r"|denoising_class_embed\.weight"
)


def transfer_head(
    source: Layer, target: Layer, names: Names, target_names: Names
) -> tuple[HeadTransfer, Tensors, Tensors]:
    """Fill the outputs for classes of a head from another head.

    Args:
        source, target: two rows that are heads of ultralytics.
        names, target_names: class names; None if unknown.

    Returns:
        The tensors for classes; the other tensors of the source under the names in the target, with levels matched by
        stride; and those tensors of the target.
    """
    done = HeadTransfer()
    levels = _levels(source, target)
    found = {}
    for name in target.tensors:
        origin = _name_in_source(name, levels)
        if origin in source.tensors:
            found[name] = source.tensors[origin]
    missing = sorted(level for level, at in levels.items() if at is None)
    done.remarks += [f"level {level}: the checkpoint has no level of its stride" for level in missing]
    old_nc, nc = _classes(source.module), _classes(target.module)
    classes = class_map(names, target_names, old_nc, nc)
    of_classes = [name for name in found if _is_of_classes(name, found[name], target.tensors[name], old_nc, nc)]
    if any(at is not None for at in classes):
        done.tensors = {name: _by_class(found[name], target.tensors[name], classes) for name in of_classes}
    if None in classes and of_classes:
        done.partly = set(done.tensors)
        done.remarks.append(remark_on_classes(classes, names, target_names, old_nc))
    rest = {name: value for name, value in target.tensors.items() if name not in of_classes}
    return done, {name: value for name, value in found.items() if name in rest}, rest


def _classes(head: Any) -> int:
    return int(head.nc if hasattr(head, "nc") else head.linear.out_features)


def have_the_same_levels(source: Layer, target: Layer) -> bool:
    """Whether each level of a head is the same level of the other."""
    return all(level == at for level, at in _levels(source, target).items())


def _levels(source: Layer, target: Layer) -> dict[int, int | None]:
    """For each level of the target the level of the source with the same stride, or None."""
    strides = [_strides(layer) for layer in (source, target)]
    if not all(strides):
        return {}
    old, new = strides
    return {level: old.index(stride) if stride in old else None for level, stride in enumerate(new)}


def _strides(head: Layer) -> list[float]:
    stride = getattr(head.module, "stride", None)
    return stride.flatten().tolist() if isinstance(stride, torch.Tensor) else []


def _name_in_source(name: str, levels: dict[int, int | None]) -> str | None:
    match = _OF_A_LEVEL.fullmatch(name)
    if match is None:
        return name
    level = int(match["level"])
    at = levels.get(level, level)
    return None if at is None else f"{match['branch']}.{at}.{match['rest']}"


def _is_of_classes(name: str, before: torch.Tensor, after: torch.Tensor, old_nc: int, nc: int) -> bool:
    counts = {len(before) - old_nc, len(after) - nc} if before.dim() and after.dim() else set()
    # a class more in RT-DETR's embedding of noise
    fits = counts == {0} or (counts == {1} and name.startswith("denoising"))
    return _OF_CLASSES.fullmatch(name) is not None and fits and before.shape[1:] == after.shape[1:]


def _by_class(before: torch.Tensor, after: torch.Tensor, classes: list[int | None]) -> torch.Tensor:
    filled = after.clone().to(before.dtype)
    for to, at in enumerate(classes):
        if at is not None:
            filled[to] = before[at]
    if len(filled) > len(classes):
        filled[len(classes) :] = before[len(before) - (len(filled) - len(classes)) :]
    return filled
