"""Converts the tensors of a row to the names and shapes of another row that computes the same function.

Rows of the same kind have the same names. Two pairs of kinds are the same function written differently:

- ``Focus`` with a k x k convolution (YOLOv5 up to v5.0) splits the image into four of half the size and convolves
  these. A 2k x 2k convolution of stride 2 and padding k - 1 applies the same weights to the same pixels.
- ``SPP`` pools with windows (k, 2k - 1, 3k - 2) in parallel, ``SPPF`` with k once, twice and three times in sequence.
  The maxima are the same, and they are concatenated in the same order.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from yolov5_ema.weights.structure import Layer

# the order in which Focus stacks the pixels (row, column) of each 2 x 2 cell
_FOCUS_ORDER = ((0, 0), (1, 0), (0, 1), (1, 1))

Tensors = dict[str, torch.Tensor]


def tensors_for(source: Layer, target: Layer) -> Tensors | None:
    """The source's tensors under the names and in the layout of the target.

    Returns:
        Tensors by their names within the row. Their shapes are not compared yet. None if the rows are of different
        kinds that do not compute the same function.
    """
    are_heads = source.is_head_of_ultralytics and target.is_head_of_ultralytics
    if source.kind == target.kind or (source.is_head and target.is_head) or are_heads:
        return source.tensors
    if source.kind == "Focus" and target.kind == "Conv" and _same_stem(target.module.conv, source.module.conv.conv):
        out = {name.removeprefix("conv."): value for name, value in source.tensors.items()}
        return {**out, "conv.weight": stem_from_focus(source.tensors["conv.conv.weight"])}
    if source.kind == "Conv" and target.kind == "Focus" and _same_stem(source.module.conv, target.module.conv.conv):
        out = {f"conv.{name}": value for name, value in source.tensors.items()}
        return {**out, "conv.conv.weight": focus_from_stem(source.tensors["conv.weight"])}
    if {source.kind, target.kind} == {"SPP", "SPPF"}:
        same = _windows(source.module) == _windows(target.module)
        return source.tensors if same else None
    return None


def _same_stem(large: nn.Module, small: nn.Module) -> bool:
    """Whether a convolution of the image reads the same pixels as Focus's convolution of the four parts."""
    if not isinstance(large, nn.Conv2d) or not isinstance(small, nn.Conv2d):
        return False
    k, padding = small.kernel_size[0], small.padding[0]
    return (
        large.kernel_size == (2 * k, 2 * k)
        and large.stride == (2, 2)
        and large.padding == (2 * padding, 2 * padding)
        and small.kernel_size == (k, k)
        and small.stride == (1, 1)
        and small.padding == (padding, padding)
        and small.in_channels == 4 * large.in_channels
        and large.groups == small.groups == 1
    )


def stem_from_focus(weight: torch.Tensor) -> torch.Tensor:
    """Convert the weight (O, 4 C, k, k) of Focus's convolution to that of the stride-2 stem, (O, C, 2 k, 2 k)."""
    out, channels, k = weight.shape[0], weight.shape[1] // 4, weight.shape[2]
    stem = weight.new_empty(out, channels, 2 * k, 2 * k)
    for part, (row, column) in enumerate(_FOCUS_ORDER):
        stem[:, :, row::2, column::2] = weight[:, part * channels : (part + 1) * channels]
    return stem


def focus_from_stem(weight: torch.Tensor) -> torch.Tensor:
    """The inverse of `stem_from_focus`: (O, C, 2 k, 2 k) to (O, 4 C, k, k)."""
    return torch.cat([weight[:, :, row::2, column::2] for row, column in _FOCUS_ORDER], dim=1)


def _windows(module: Any) -> tuple[int, ...] | None:
    """Window sizes, in pixels of the row's input, of the parts that SPP or SPPF concatenates."""
    pools = module.m
    if isinstance(pools, nn.ModuleList):
        return tuple(cast(int, pool.kernel_size) for pool in pools)
    if isinstance(pools, nn.MaxPool2d):
        k = cast(int, pools.kernel_size)
        return (k, 2 * k - 1, 3 * k - 2)
    return None
