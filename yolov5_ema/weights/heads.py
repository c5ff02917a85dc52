"""Transfers the heads Detect and Segment: for each level, outputs for boxes, objectness, classes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from yolov5_ema.texts import counted, listed
from yolov5_ema.weights.structure import Layer

# the outputs of an anchor before its classes: x, y, width, height, objectness
_BOX = 5

Names = Sequence[str] | None


@dataclass
class HeadTransfer:
    """The tensors for a head by name within the row, the names of those that are copied in part, and remarks."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    partly: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)


def class_map(source: Names, target: Names, source_nc: int, target_nc: int) -> list[int | None]:
    """The number in the source of each class of the target, matched by name; None if the source does not have it.

    If one of the models has no names, the classes count as the same if their number is the same.
    """
    if _are_unknown(source) or _are_unknown(target):
        return [*range(target_nc)] if source_nc == target_nc else [None] * target_nc
    assert source is not None and target is not None
    places: dict[str, int] = {}
    for index, name in enumerate(source):
        places.setdefault(_folded(name), index)
    return [places.get(_folded(name)) for name in target]


def _folded(name: str) -> str:
    return " ".join(str(name).casefold().split())


def _are_unknown(names: Names) -> bool:
    """Whether there are no names, or only YOLOv5's default names: 0, 1, 2 … or class0, class1 …"""
    return not names or all(_folded(name).removeprefix("class") == str(i) for i, name in enumerate(names))


def transfer_head(
    source: Layer, target: Layer, names: Names, target_names: Names, *, keep_anchors: bool
) -> HeadTransfer:
    """Fill a head from another, level by level and output by output.

    Levels are matched by stride. Boxes and objectness are copied unchanged, classes by name, and masks if both heads
    have the same number of them.

    Args:
        source, target: two rows that are heads.
        names, target_names: class names; None if unknown.
        keep_anchors: keep the target's anchors, as YOLOv5's train does if a cfg is given.
    """
    old, new = source.module, target.module
    done = HeadTransfer()
    classes = class_map(names, target_names, int(old.nc), int(new.nc))
    anchors = new.anchors.clone()
    strides = [float(s) for s in old.stride]
    for level, stride in enumerate(float(s) for s in new.stride):
        if stride not in strides:
            done.remarks.append(f"m.{level} (stride {stride:g}): the checkpoint has no level of this stride")
            continue
        _fill_level(done, source, target, strides.index(stride), level, classes)
        if old.na == new.na:
            anchors[level] = old.anchors[strides.index(stride)].to(anchors.dtype)
    _take_anchors(done, anchors, new.anchors, keep_anchors)
    masks = _masks(new)
    if masks and masks != _masks(old) and done.partly:
        done.remarks.append(f"outputs for {masks} masks start fresh: {_masks(old)} in the checkpoint")
    if None in classes and any(name.startswith("m.") for name in done.tensors):
        done.remarks.append(remark_on_classes(classes, names, target_names, int(old.nc)))
    return done


def _fill_level(
    done: HeadTransfer, source: Layer, target: Layer, old_level: int, level: int, classes: list[int | None]
) -> None:
    old, new = source.module, target.module
    weight, expected = source.tensors[f"m.{old_level}.weight"], target.tensors[f"m.{level}.weight"]
    if weight.shape[1] != expected.shape[1] or old.na != new.na:
        what = f"{counted(weight.shape[1], 'channel')} and {counted(old.na, 'anchor')} in the checkpoint"
        done.remarks.append(f"m.{level}: {what}, {expected.shape[1]} and {new.na} here")
        return
    old_masks, masks = _masks(old), _masks(new)
    for part in ("weight", "bias"):
        name = f"m.{level}.{part}"
        before = source.tensors[f"m.{old_level}.{part}"]
        after = target.tensors[name].clone().to(before.dtype)
        read, write = before.view(old.na, old.no, -1), after.view(new.na, new.no, -1)
        write[:, :_BOX] = read[:, :_BOX]
        for to, at in enumerate(classes):
            if at is not None:
                write[:, _BOX + to] = read[:, _BOX + at]
        if masks and masks == old_masks:
            write[:, -masks:] = read[:, -masks:]
        done.tensors[name] = after
        if None in classes or (masks and masks != old_masks):
            done.partly.add(name)


def _masks(head: Any) -> int:
    """Number of mask coefficients among an anchor's outputs; 0 for Detect."""
    return int(head.no) - _BOX - int(head.nc)


def _take_anchors(done: HeadTransfer, found: torch.Tensor, present: torch.Tensor, keep: bool) -> None:
    """Choose the anchors of the head. All have the shape (levels, anchors, 2) and units of the level's stride."""
    if torch.allclose(found.float(), present.float(), rtol=1e-3):
        done.tensors["anchors"] = present
    elif keep:
        done.remarks.append("anchors: those of the cfg are kept; those of the checkpoint differ")
    else:
        done.tensors["anchors"] = found


def remark_on_classes(classes: list[int | None], names: Names, target_names: Names, source_nc: int) -> str:
    """Which classes start fresh, and why.

    Args:
        classes: of `class_map`.
        names, target_names: class names; None if unknown.
        source_nc: number of classes of the source.
    """
    if _are_unknown(names) or _are_unknown(target_names):
        counts = f"{counted(source_nc, 'class')} in the checkpoint, {len(classes)} here"
        return f"class outputs start fresh: {counts}, and no names to match"
    fresh = [target_names[i] if target_names else str(i) for i, at in enumerate(classes) if at is None]
    return f"classes that the checkpoint does not have start fresh: {listed(fresh, 8)}"


def names_of(value: object) -> list[str] | None:
    """Class names as a list, from a list or (v6.2 and later) a dict by number; None for anything else."""
    if isinstance(value, dict) and all(isinstance(key, int) for key in value):
        return [str(value[key]) for key in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [str(name) for name in value]
    return None
