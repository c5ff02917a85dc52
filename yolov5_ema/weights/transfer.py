"""Transfers pretrained weights to a model with other rows, by structure instead of by row number.

YOLOv5 and ultralytics themselves copy tensors with the same name, such as ``model.9.cv1.conv.weight``, and the same
shape. One inserted row shifts every name after it, and half of a pretrained detector is lost without a message.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from yolov5_ema.blocks.inside import attended_in
from yolov5_ema.texts import listed
from yolov5_ema.weights import ultralytics_heads
from yolov5_ema.weights.alignment import align, is_block, moved_rows
from yolov5_ema.weights.conversions import Tensors, tensors_for
from yolov5_ema.weights.heads import Names, names_of, transfer_head
from yolov5_ema.weights.structure import Layer, layers_of


@dataclass(frozen=True)
class RowTransfer:
    """What was copied to one row of the target.

    Attributes:
        index: the row's number.
        kind: the class name of its module.
        source: the number of the row in the checkpoint that it was filled from; None if nothing was copied.
        is_block: whether it is an attention block.
        fresh_inside: whether it has blocks inside to which nothing was copied.
        tensors: how many tensors it has.
        whole: how many of them were copied completely.
        partly: how many were copied in part: a head's outputs for the classes that both models have.
        remarks: why the rest was not copied.
    """

    index: int
    kind: str
    source: int | None
    is_block: bool
    tensors: int
    whole: int
    partly: int
    remarks: tuple[str, ...]
    fresh_inside: bool = False


@dataclass(frozen=True)
class Transfer:
    """The outcome of `transfer`.

    Attributes:
        state: tensors under the target's names, for ``target.load_state_dict(state, strict=False)``.
        rows: what was copied to each row.
        unused: the checkpoint's rows that match no row of the target.
    """

    state: Tensors
    rows: list[RowTransfer]
    unused: list[Layer]

    @property
    def taken(self) -> int:
        """Number of tensors that were copied, completely or in part."""
        return len(self.state)

    @property
    def total(self) -> int:
        """Number of tensors in the target."""
        return sum(row.tensors for row in self.rows)

    @property
    def fresh_blocks(self) -> list[int]:
        """Numbers of the rows with attention blocks, also inside their modules, to which nothing was copied."""
        return [row.index for row in self.rows if (row.is_block and row.source is None) or row.fresh_inside]

    def table(self) -> str:
        """The counts, and one line for each row that was not copied completely."""
        partly = sum(row.partly for row in self.rows)
        lines = [f"{self.taken}/{self.total} tensors transferred" + (f", {partly} of them in part" if partly else "")]
        for row in self.rows:
            if row.remarks:
                origin = "" if row.source is None else f" from row {row.source}"
                got = f"{row.whole + row.partly}/{row.tensors}"
                lines.append(f"  row {row.index:>2} {row.kind:<10}{got:>7}{origin}: {'; '.join(row.remarks)}")
        if self.unused:
            lines.append(f"  not used from the checkpoint: {', '.join(map(str, self.unused))}")
        return "\n".join(lines)


def transfer(
    source: nn.Module,
    target: nn.Module,
    *,
    names: Names = None,
    target_names: Names = None,
    keep_anchors: bool = False,
) -> Transfer:
    """Find the matching row in another model for each row of a model, and copy its tensors.

    Rows are paired by module, stride, channels and order (`yolov5_ema.weights.alignment`). A remaining row whose
    tensors all fit is paired out of order. Focus and the 6 x 6 stem, and SPP and SPPF, are converted exactly. Heads
    are filled level by level (by stride) and output by output: boxes and objectness, then classes by name. If a
    convolution does not fit, its BatchNorm is not copied either.

    Args:
        source: the pretrained model, of any YOLOv5 or ultralytics; it is not changed.
        target: the model to fill; it is not changed either, see `Transfer.state`.
        names, target_names: class names of both; None if unknown.
        keep_anchors: keep the target's anchors if they differ from the source's.

    Raises:
        ValueError: one of them is not a YOLO.
    """
    old, new = layers_of(source), layers_of(target)
    pairs = align(old, new)
    moved = moved_rows(old, new, pairs)
    pairs.update(moved)
    state: Tensors = {}
    rows = []
    for layer in new:
        match = old[pairs[layer.index]] if layer.index in pairs else None
        taken, partly, remarks = _fill(match, layer, names, target_names, keep_anchors)
        if layer.index in moved:
            remarks.append("has another place among its neighbours than in the checkpoint")
        got_any = bool(taken) or not layer.tensors
        state.update({f"model.{layer.index}.{name}": value for name, value in taken.items()})
        rows.append(
            RowTransfer(
                index=layer.index,
                kind=layer.kind,
                source=match.index if match is not None and got_any else None,
                is_block=is_block(layer),
                tensors=len(layer.tensors),
                whole=len(taken) - partly,
                partly=partly,
                remarks=tuple(remarks),
                fresh_inside=bool(attended_in(layer.module)) and not any(".attention." in name for name in taken),
            )
        )
    used = {row.source for row in rows}
    return Transfer(state, rows, [layer for layer in old if layer.tensors and layer.index not in used])


def fill_model_of_ultralytics(
    target: Any, source: Any, load: Callable[[Any], None], *, names: Names = None, target_names: Names = None
) -> Transfer:
    """Fill a model of ultralytics by `transfer`, after ultralytics' own transfer of the rows in their new places.

    That one makes the class branch of the head as wide as the checkpoint's, and converts a first convolution of other
    input channels.

    Args:
        target: the model to fill; it is changed.
        source: the pretrained model. ultralytics converts it to float32.
        load: ultralytics' own ``target.load``.
        names, target_names: class names of both; None: those of the models.

    Raises:
        ValueError: one of them is not made of rows.
    """
    old, new = layers_of(source), layers_of(target)
    pairs = align(old, new)
    order = [pairs.get(index) for index in range(len(new))]
    last = order[-1]
    if last is not None and not ultralytics_heads.have_the_same_levels(old[last], new[-1]):
        order[-1] = None
    load(_with_rows(source, order))
    names = names_of(getattr(source, "names", None)) if names is None else names
    target_names = names_of(getattr(target, "names", None)) if target_names is None else target_names
    found = transfer(source, target, names=names, target_names=target_names)
    target.load_state_dict(found.state, strict=False)
    return found


def _with_rows(model: Any, order: list[int | None]) -> Any:
    """A copy of a model with its rows in another order. It shares the rows; only its state dict is usable."""
    rows = nn.Sequential(*(nn.Identity() if index is None else model.model[index] for index in order))
    moved = copy.copy(model)
    moved.__dict__["_modules"] = {**model._modules, "model": rows}
    return moved


def _fill(
    source: Layer | None, target: Layer, names: Names, target_names: Names, keep_anchors: bool
) -> tuple[Tensors, int, list[str]]:
    if not target.tensors:
        return {}, 0, []
    if source is None:
        what = "a new block" if is_block(target) else "the checkpoint has no such row at this place"
        return {}, 0, [f"{what}, starts fresh"]
    if target.is_head:
        head = transfer_head(source, target, names, target_names, keep_anchors=keep_anchors)
        rest = {name: value for name, value in target.tensors.items() if not name.startswith(("m.", "anchors"))}
        taken, remarks = _same_shapes(source.tensors, rest)
        return {**head.tensors, **taken}, len(head.partly), [*head.remarks, *remarks]
    if target.is_head_of_ultralytics:
        head, others, rest = ultralytics_heads.transfer_head(source, target, names, target_names)
        taken, remarks = _same_shapes(others, rest)
        return {**taken, **head.tensors}, len(head.partly), [*head.remarks, *remarks]
    found = tensors_for(source, target)
    assert found is not None, "aligned rows are of one kind"
    taken, remarks = _same_shapes(found, target.tensors)
    return taken, 0, remarks


def _same_shapes(found: Tensors, wanted: Tensors) -> tuple[Tensors, list[str]]:
    misfits = {name for name, value in wanted.items() if name not in found or found[name].shape != value.shape}
    misfits |= set(_norms_of(misfits, wanted))
    taken = {name: found[name] for name in wanted if name not in misfits}
    return taken, list(_reasons(misfits, found, wanted))


def _norms_of(misfits: set[str], wanted: Tensors) -> Iterator[str]:
    """BatchNorms after convolutions that do not fit: their statistics belong to other features."""
    units = [name[: -len("conv.weight")] for name in misfits if name.endswith("conv.weight")]
    for name in wanted:
        if any(name.startswith(f"{unit}bn.") for unit in units):
            yield name


def _reasons(misfits: set[str], found: Tensors, wanted: Tensors) -> Iterator[str]:
    missing = [name for name in wanted if name in misfits and name not in found]
    if missing:
        yield f"not in the checkpoint: {listed(missing, 3)}"
    other = [n for n in wanted if n in misfits and n in found and found[n].shape != wanted[n].shape]
    if other:
        more = f" … ({len(other)} tensors)" if len(other) > 1 else ""
        sizes = f"{_size(found[other[0]])} in the checkpoint, {_size(wanted[other[0]])} here"
        yield f"{other[0]} is {sizes}{more}"


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
