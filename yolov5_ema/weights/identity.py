"""Initializes new attention blocks so that they change nothing at first: ``--init identity``.

A block gates features, ``x * sigmoid(...)``. Its gate is always below 1, so the later layers of a pretrained detector
get other values than those they were trained on. A gate near 1 would be a saturated sigmoid, which hardly learns. So
the block starts in the middle: its last parameters are zero, and its gate is the constant 1/2 (1/4 for a product of two
gates), where the slope of a sigmoid is greatest. The weights of the convolutions that read its output are multiplied by
2 (4). These are powers of two, so at step 0 the detector computes, bit for bit, what it computed without the block.
(BAM's gate is 3/2, so there it is so but for rounding.) Blocks that add to their input start with nothing to add.
Forward, state dict and YAML do not change.

SA also shuffles channels, so the input channels of the convolutions after it are reordered to match.

Inside a module (``C3_EMA``), the block's output goes through shortcuts too, which no weight can compensate. There a
factor behind the block does it (`yolov5_ema.blocks.inside.Attended.gain`), so the later layers keep their weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from yolov5_ema.blocks.inside import attended_in
from yolov5_ema.errors import ConfigError
from yolov5_ema.weights.alignment import is_block
from yolov5_ema.weights.structure import Layer, layers_of

# the convolutions that read the input of each kind of row; nothing else in the row reads it
_FIRST_CONVOLUTIONS: dict[str, tuple[str, ...]] = {
    "Conv": ("conv",),
    "Conv2d": ("",),
    **dict.fromkeys(("C3", "C3TR", "C3SPP", "C3Ghost", "C3x"), ("cv1.conv", "cv2.conv")),
    "BottleneckCSP": ("cv1.conv", "cv2"),
    **dict.fromkeys(("SPP", "SPPF", "GhostConv"), ("cv1.conv",)),
    # of ultralytics
    **dict.fromkeys(("C2f", "C3k2", "C2fCIB", "C2PSA", "C2fPSA", "PSA", "SCDown", "SPPELAN", "ELAN1"), ("cv1.conv",)),
    **dict.fromkeys(("RepNCSPELAN4",), ("cv1.conv",)),
    "Classify": ("conv.conv",),
}
# the heads of ultralytics whose branches read nothing but their own level of the features
_BRANCHES = {
    **dict.fromkeys(("Detect", "v10Detect"), ("cv2", "cv3", "one2one_cv2", "one2one_cv3")),
    **dict.fromkeys(("Segment", "Pose", "OBB"), ("cv2", "cv3", "cv4", "one2one_cv2", "one2one_cv3", "one2one_cv4")),
    "RTDETRDecoder": ("input_proj",),
}
# rows that keep channels apart, and whose output scales with their input
_PASSES_ON = ("Upsample", "MaxPool2d", "Identity", "Dropout", "Dropout2d")


@dataclass(frozen=True)
class _Change:
    """How features changed: ``x[c] = gain[c] * before[order[c]]``; ``gain`` and ``order`` have the shape (C,)."""

    gain: torch.Tensor
    order: torch.Tensor

    def then(self, other: _Change) -> _Change:
        return _Change(other.gain * self.gain[other.order], self.order[other.order])


def rows_with_blocks(model: nn.Module) -> list[int]:
    """Numbers of the rows of a model that are attention blocks or have some inside.

    Raises:
        ValueError: the model is not made of rows.
    """
    return [layer.index for layer in layers_of(model) if is_block(layer) or attended_in(layer.module)]


def start_as_identity(model: nn.Module, rows: Sequence[int]) -> None:
    """Make a detector with new blocks compute what it computes without them.

    Args:
        model: a model of YOLOv5 or ultralytics with its weights loaded; it is changed in place.
        rows: numbers of the rows with new blocks (`Transfer.fresh_blocks`).

    Raises:
        ConfigError: there are no such rows, a block has no ``zero_gate_``, or a row that reads it cannot absorb the
            factor. The message says why, or names the row. The model may then be partly changed.
    """
    if not rows:
        why = "the weights already hold all of its blocks" if rows_with_blocks(model) else "it has no block"
        raise ConfigError(f"--init identity: no row of the cfg is a fresh attention block: {why}; leave --init out")
    layers = layers_of(model)
    changes: dict[int, _Change] = {}
    for layer in layers:
        incoming = [changes.get(source) for source in layer.sources]
        if layer.index in rows and not is_block(layer):
            _start_inside(layer)
        if layer.index in rows and is_block(layer):
            own = _zeroed(layer)
            before = incoming[0]
            changes[layer.index] = own if before is None else before.then(own)
        elif any(change is not None for change in incoming):
            outgoing = _pass_on_or_absorb(layer, layers, incoming)
            if outgoing is not None:
                changes[layer.index] = outgoing


def _start_inside(layer: Layer) -> None:
    """Make the blocks inside a row's module change nothing: the gain behind each is the inverse of its gate."""
    for held in attended_in(layer.module):
        _zero(held.attention, layer)
        # a bottleneck has as many channels at its end as at its beginning
        first = next(module for module in held.modules() if isinstance(module, nn.Conv2d))
        change = _measured(held.attention, first.in_channels, layer)
        unchanged = torch.arange(len(change.order))
        if not torch.equal(change.order, unchanged) or not bool((change.gain == change.gain[0]).all()):
            raise ConfigError(
                f"--init identity: {type(held.attention).__name__} inside {layer} moves channels, which nothing behind "
                "it can undo; leave --init out"
            )
        held.gain.fill_(float(1 / change.gain[0]))


def _zeroed(layer: Layer) -> _Change:
    """Make a row's gates constant, and measure them."""
    for block in [layer.module] if not isinstance(layer.module, nn.Sequential) else list(layer.module):
        _zero(block, layer)
    return _measured(layer.module, layer.channels or 0, layer)


def _zero(block: nn.Module, layer: Layer) -> None:
    zero_gate_ = getattr(block, "zero_gate_", None)
    if zero_gate_ is None:
        raise ConfigError(
            f"--init identity: {layer} is a {type(block).__name__}, which has no method zero_gate_() to make its "
            "gate a constant; leave --init out, or add the method to the block (CONTRIBUTING.md)"
        )
    try:
        zero_gate_()
    except ValueError as error:
        raise ConfigError(f"--init identity: {layer}: {error}; leave --init out") from error


def _measured(module: nn.Module, channels: int, layer: Layer) -> _Change:
    probe = copy.deepcopy(module).cpu().double().eval()
    numbers = torch.arange(1, channels + 1, dtype=torch.float64)
    with torch.no_grad():
        gain, seen = (
            probe(values.view(1, -1, 1, 1).expand(1, -1, 2, 2))[0, :, 0, 0]
            for values in (torch.ones_like(numbers), numbers)
        )
    order = (seen / gain).nan_to_num().round().long() - 1
    change = _Change(gain, order.clamp(0, len(numbers) - 1))
    if not torch.equal(change.gain * numbers[change.order], seen):
        raise ConfigError(f"--init identity: after zero_gate_() the gate of {layer} is not constant")
    return change


def _pass_on_or_absorb(layer: Layer, layers: list[Layer], incoming: Sequence[_Change | None]) -> _Change | None:
    """The change of a row's output; None if its weights were adapted to the change of its input."""
    if layer.kind in _PASSES_ON:
        return incoming[0]
    if layer.kind == "Concat" and getattr(layer.module, "d", 1) == 1:
        return _joined([change or _unchanged(layers[source]) for change, source in zip(incoming, layer.sources)])
    convolutions = list(_readers(layer, incoming))
    if not convolutions:
        feature = "its gate depends on them" if is_block(layer) else "it is not known to read them linearly"
        raise ConfigError(
            f"--init identity: {layer} reads features that a fresh block gates, and {feature}; leave --init out"
        )
    for convolution, change in convolutions:
        _absorb(convolution, change, layer)
    return None


def _unchanged(layer: Layer) -> _Change:
    channels = layer.channels or 0
    return _Change(torch.ones(channels, dtype=torch.float64), torch.arange(channels))


def _joined(changes: Sequence[_Change]) -> _Change:
    orders, offset = [], 0
    for change in changes:
        orders.append(change.order + offset)
        offset += len(change.order)
    return _Change(torch.cat([change.gain for change in changes]), torch.cat(orders))


def _readers(layer: Layer, incoming: Sequence[_Change | None]) -> Iterator[tuple[nn.Module, _Change]]:
    if layer.is_head:
        for level, change in enumerate(incoming):
            if change is not None:
                yield layer.module.m[level], change
                if level == 0 and hasattr(layer.module, "proto"):
                    yield layer.module.proto.cv1.conv, change
        return
    if layer.kind in _BRANCHES and layer.is_head_of_ultralytics:
        yield from _first_of_branches(layer, incoming)
        return
    first = layer.module[0] if isinstance(layer.module, nn.Sequential) else layer.module
    change = incoming[0]
    # SPPF of YOLO26 adds its input
    if change is None or (layer.kind == "SPPF" and getattr(first, "add", False)):
        return
    for name in _FIRST_CONVOLUTIONS.get(layer.kind, ()):
        yield first.get_submodule(name), change


def _first_of_branches(layer: Layer, incoming: Sequence[_Change | None]) -> Iterator[tuple[nn.Module, _Change]]:
    """The first convolution of each branch of a head of ultralytics that reads a changed level."""
    for level, change in enumerate(incoming):
        if change is None:
            continue
        for name in _BRANCHES[layer.kind]:
            branch = getattr(layer.module, name, None)
            if branch is not None:
                yield next(module for module in branch[level].modules() if isinstance(module, nn.Conv2d)), change
        if level == 0 and hasattr(layer.module, "proto"):
            yield layer.module.proto.cv1.conv, change


def _absorb(convolution: nn.Module, change: _Change, layer: Layer) -> None:
    is_in_order = torch.equal(change.order, torch.arange(len(change.order)))
    if isinstance(convolution, nn.Conv2d) and convolution.groups == len(change.gain) and is_in_order:
        # each of its groups reads one channel
        with torch.no_grad():
            gain = change.gain.to(convolution.weight.device, convolution.weight.dtype)
            convolution.weight.div_(gain.repeat_interleave(convolution.out_channels // len(gain))[:, None, None, None])
        return
    if not isinstance(convolution, nn.Conv2d) or convolution.groups != 1:
        raise ConfigError(f"--init identity: the convolution of {layer} is grouped; leave --init out")
    weight = convolution.weight  # (O, C, k, k)
    order, gain = change.order.to(weight.device), change.gain.to(weight.device, weight.dtype)
    with torch.no_grad():
        weight.copy_(weight[:, order] / gain[:, None, None])
