"""Fresh attention blocks that change nothing at first: ``--init identity``.

A block gates features, ``x * sigmoid(...)``; however it starts, its gate is below 1, and what a pretrained
detector's later layers get is not what they were trained on. A gate near 1 would be a saturated
sigmoid, which hardly learns. So the block starts in the middle: its last parameters zero, its gate the constant
1/2 (a product of two gates: 1/4), where a sigmoid's slope is greatest. The convolutions that read its
output take the factor 2 (4) into their weights. These are powers of two, so at step 0 the detector computes, bit
for bit, what it computed without the block; and forward, state dict and YAML stay what they are.

SA also shuffles channels; the convolutions behind it get their input channels in that order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from yolov5_ema.errors import ConfigError
from yolov5_ema.weights.alignment import is_block
from yolov5_ema.weights.structure import Layer, layers_of

# the convolutions through which each kind of row reads its input, all of it linearly
_FIRST_CONVOLUTIONS: dict[str, tuple[str, ...]] = {
    "Conv": ("conv",),
    "Conv2d": ("",),
    **dict.fromkeys(("C3", "C3TR", "C3SPP", "C3Ghost", "C3x"), ("cv1.conv", "cv2.conv")),
    "BottleneckCSP": ("cv1.conv", "cv2"),
    **dict.fromkeys(("SPP", "SPPF", "GhostConv"), ("cv1.conv",)),
}
_PASSES_ON = (
    "Upsample",
    "MaxPool2d",
    "Identity",
    "Dropout",
    "Dropout2d",
)  # channel by channel, in proportion


@dataclass(frozen=True)
class _Change:
    """What features are, measured by what they were: ``x[c] = gain[c] * before[order[c]]``; both (C,)."""

    gain: torch.Tensor
    order: torch.Tensor

    def then(self, other: _Change) -> _Change:
        return _Change(other.gain * self.gain[other.order], self.order[other.order])


def start_as_identity(model: nn.Module, rows: Sequence[int]) -> None:
    """Let a detector with fresh blocks compute what it computes without them.

    Args:
        model: a YOLOv5 model with its weights in place; changed in place.
        rows: numbers of the rows whose blocks are fresh (`Transfer.fresh_blocks`).

    Raises:
        ConfigError: a block has no ``zero_gate_``, or something reads it that cannot take the factor; names the rows.
            The model may be half changed then.
    """
    layers = layers_of(model)
    changes: dict[int, _Change] = {}
    for layer in layers:
        incoming = [changes.get(source) for source in layer.sources]
        if layer.index in rows:
            own = _zeroed(layer)
            before = incoming[0]
            changes[layer.index] = own if before is None else before.then(own)
        elif any(change is not None for change in incoming):
            outgoing = _pass_on_or_absorb(layer, layers, incoming)
            if outgoing is not None:
                changes[layer.index] = outgoing


def _zeroed(layer: Layer) -> _Change:
    """Make a row's gates constant, and measure what they are."""
    blocks = [layer.module] if not isinstance(layer.module, nn.Sequential) else list(layer.module)
    for block in blocks:
        zero_gate_ = getattr(block, "zero_gate_", None)
        if zero_gate_ is None:
            raise ConfigError(
                f"--init identity: {layer} is a {type(block).__name__}, which has no method zero_gate_() to make its "
                "gate a constant; leave --init out, or give the block one (CONTRIBUTING.md)"
            )
        zero_gate_()
    return _measured(layer)


def _measured(layer: Layer) -> _Change:
    probe = copy.deepcopy(layer.module).cpu().double().eval()
    numbers = torch.arange(1, (layer.channels or 0) + 1, dtype=torch.float64)
    with torch.no_grad():
        gain, seen = (
            probe(values.view(1, -1, 1, 1).expand(1, -1, 2, 2))[0, :, 0, 0]
            for values in (torch.ones_like(numbers), numbers)
        )
    order = (seen / gain).nan_to_num().round().long() - 1
    change = _Change(gain, order.clamp(0, len(numbers) - 1))
    if not torch.equal(change.gain * numbers[change.order], seen):
        raise ConfigError(f"--init identity: zero_gate_() of {layer} leaves a gate that is no constant")
    return change


def _pass_on_or_absorb(
    layer: Layer, layers: list[Layer], incoming: Sequence[_Change | None]
) -> _Change | None:
    """The change of a row's own output; None where it took the incoming one into its weights."""
    if layer.kind in _PASSES_ON:
        return incoming[0]
    if layer.kind == "Concat" and getattr(layer.module, "d", 1) == 1:
        return _joined(
            [change or _unchanged(layers[source]) for change, source in zip(incoming, layer.sources)]
        )
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
    first = layer.module[0] if isinstance(layer.module, nn.Sequential) else layer.module
    change = incoming[0]
    assert change is not None
    for name in _FIRST_CONVOLUTIONS.get(layer.kind, ()):
        yield first.get_submodule(name), change


def _absorb(convolution: nn.Module, change: _Change, layer: Layer) -> None:
    if not isinstance(convolution, nn.Conv2d) or convolution.groups != 1:
        raise ConfigError(f"--init identity: the convolution of {layer} is grouped; leave --init out")
    weight = convolution.weight  # (O, C, k, k)
    order, gain = change.order.to(weight.device), change.gain.to(weight.device, weight.dtype)
    with torch.no_grad():
        weight.copy_(weight[:, order] / gain[:, None, None])
