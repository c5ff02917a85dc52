"""Checks that a layer from a file could have been built by torch: its hooks, tensors and hyperparameters.

A file with allowed classes only can still fill them with anything: a stride of zero, a scale of a billion, a hook, a
weight that repeats one number a trillion times, a string as forward. Running such a layer could raise an error, use
terabytes of memory, or read memory out of bounds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from yolov5_ema.blocks.inside import Attended

Rule = Callable[[Any], bool]

LARGEST = 2**20
"""Limit for channels and features."""
# limit for kernel sizes, strides and paddings
_LONGEST = 4096
_MOST_SCALE = 64
_DTYPES = {torch.float16, torch.float32, torch.float64, torch.bfloat16}
_BUFFER_DTYPES = _DTYPES | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_NO_HOOKS = {
    "training",
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_is_full_backward_hook",
}
# a model of ultralytics v8.3 keeps a number of this name, which is a property today
_WITHOUT_EFFECT = {"type", "end2end"}
# homes of torch's layers, and of layers derived from them
_OF_TORCH = ("torch.nn.modules.", "timm.layers.", "yolov5_ema.blocks.by_timm")
_ADDED_LATER = {"recompute_scale_factor", "batch_first"}
"""Constants of layers that current torch has, but that are missing in checkpoints of older torch."""


def fault_of_layer(layer: nn.Module) -> str | None:
    """What is wrong with a layer's own state, without its children; None if nothing is."""
    return next(_faults(layer), None)


def _faults(layer: nn.Module) -> Iterator[str]:
    yield from _of_the_module(layer)
    yield from _of_tensors(layer)
    if type(layer).__module__.startswith(_OF_TORCH):
        yield from _of_hyper_parameters(layer)
        yield from _of_shapes(layer)


# --- what every module has -----------------------------------------------------------------------


def _of_the_module(layer: nn.Module) -> Iterator[str]:
    state = vars(layer)
    missing = sorted(_OF_EVERY_MODULE - state.keys())
    if missing:
        yield f"{missing[0]} is missing"
        return
    if type(layer.training) is not bool or type(state["_is_full_backward_hook"]) not in (bool, type(None)):
        yield "training must be true or false"
    for name in sorted(_OF_EVERY_MODULE - _NO_HOOKS):
        if not isinstance(state[name], dict) or state[name]:
            yield f"{name} must be empty: a checkpoint must not hold code"
    kept = state["_non_persistent_buffers_set"]
    if not isinstance(kept, set) or not all(isinstance(name, str) for name in kept):
        yield "_non_persistent_buffers_set must hold names"
    yield from _of_names(layer)
    kind = state.get("kind")
    if isinstance(layer, Attended) and not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        yield "its kind is not a class of layers"


def _of_names(layer: nn.Module) -> Iterator[str]:
    state = vars(layer)
    held = [*state["_parameters"], *state["_buffers"], *state["_modules"]]
    if len(set(held)) < len(held) or not state.keys().isdisjoint(held):
        yield "two of its parts have the same name"
    if not all(name and "." not in name for name in held):
        yield "a part of it has no name"
    cls: Any = type(layer)
    for name in state:
        if name not in _OF_EVERY_MODULE and _is_method(cls, name) and name not in _WITHOUT_EFFECT:
            yield f"its {name} is replaced"
    # YOLOv5 writes the class of a row there
    if not isinstance(state.get("type", ""), str):
        yield "its type is not text"


@functools.lru_cache(maxsize=4096)
def _is_method(cls: type, name: str) -> bool:
    found = getattr(cls, name, None)
    return callable(found) or isinstance(found, property)


# --- tensors -------------------------------------------------------------------------------------


def _of_tensors(layer: nn.Module) -> Iterator[str]:
    state = vars(layer)
    for name, tensor in state["_parameters"].items():
        if tensor is not None and (type(tensor) is not nn.Parameter or not _is_plain(tensor, _DTYPES)):
            yield f"{name} is not a parameter that torch could have made"
    for name, tensor in state["_buffers"].items():
        if tensor is not None and (type(tensor) is not torch.Tensor or not _is_plain(tensor, _BUFFER_DTYPES)):
            yield f"{name} is not a buffer that torch could have made"


def _is_plain(tensor: torch.Tensor, dtypes: set[torch.dtype]) -> bool:
    """Whether a tensor is strided, has a usual dtype, and has memory for each of its elements."""
    if tensor.layout != torch.strided or tensor.dtype not in dtypes or tensor.is_meta or tensor.dim() > 8:
        return False
    has_hooks = bool(tensor._backward_hooks) or tensor.grad is not None
    return not has_hooks and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def is_finite_of_shape(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether a value is a tensor of this shape with finite numbers."""
    is_tensor = type(value) is torch.Tensor and tuple(value.shape) == shape and value.is_floating_point()
    return is_tensor and not value.is_meta and bool(torch.isfinite(value).all())


# --- torch's own layers --------------------------------------------------------------------------


def _of_hyper_parameters(layer: nn.Module) -> Iterator[str]:
    state = vars(layer)
    for name in getattr(type(layer), "__constants__", ()):
        if name not in _ADDED_LATER and not hasattr(layer, name):
            yield f"{name} is missing"
    for name, rule in _RULES.items():
        if name in state and not rule(state[name]):
            yield f"{name} cannot be {repr(state[name])[:60]}"
    padding = state.get("padding")
    if isinstance(padding, str) and not (isinstance(layer, nn.modules.conv._ConvNd) and padding in _PADDINGS):
        yield f"padding cannot be {padding[:60]!r}"


def _of_shapes(layer: Any) -> Iterator[str]:
    wanted: dict[str, tuple[int, ...]] = {}
    if isinstance(layer, nn.modules.conv._ConvNd):
        wanted = _shapes_of_conv(layer)
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        wanted = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (layer.num_features,))
    elif isinstance(layer, nn.Linear):
        wanted = {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)}
    elif isinstance(layer, nn.GroupNorm):
        wanted = dict.fromkeys(("weight", "bias"), (layer.num_channels,))
    if wanted and not all(hasattr(layer, name) for name in wanted):
        yield "one of its tensors is missing"
        return
    for name, shape in wanted.items():
        tensor = getattr(layer, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            yield f"{name} has the shape {tuple(tensor.shape)}, not {shape}"
    if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and layer.weight is None:
        yield "weight is missing"


def _shapes_of_conv(layer: Any) -> dict[str, tuple[int, ...]]:
    channels = [layer.out_channels, layer.in_channels // layer.groups]
    if layer.transposed:
        channels = [layer.in_channels, layer.out_channels // layer.groups]
    return {"weight": (*channels, *layer.kernel_size), "bias": (layer.out_channels,)}


def _is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and least <= value <= most


def _is_count(value: Any) -> bool:
    return _is_whole(value, 1, LARGEST)


def _are_sizes(value: Any, least: int = 1) -> bool:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return len(parts) <= 6 and all(_is_whole(part, least, _LONGEST) for part in parts)


def _is_padding(value: Any) -> bool:
    return isinstance(value, str) or _are_sizes(value, least=-_LONGEST)


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_bool_or_none(value: Any) -> bool:
    return value is None or type(value) is bool


def _is_scale(value: Any) -> bool:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return value is None or (len(parts) <= 3 and all(_is_number(part, 1e-3, _MOST_SCALE) for part in parts))


def _is_size_or_none(value: Any) -> bool:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return len(parts) <= 3 and all(part is None or _is_whole(part, 1, _LONGEST) for part in parts)


def is_scaling(state: Mapping[str, Any]) -> bool:
    """Whether the numbers of a layer that scales or normalizes an image are in a valid range."""
    return _is_size_or_none(state.get("size")) and all(_are_colors(state.get(name, [])) for name in ("mean", "std"))


def _are_colors(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() == 1 and is_finite_of_shape(value, tuple(value.shape))
    return isinstance(value, (list, tuple)) and all(_is_number(part, -1e3, 1e3) for part in value)


_PADDINGS = ("same", "valid")
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("in_channels", "out_channels", "groups", "in_features", "out_features"), _is_count),
    **dict.fromkeys(("num_features", "num_groups", "num_channels", "embed_dim", "num_heads"), _is_count),
    **dict.fromkeys(("kernel_size", "stride", "dilation"), _are_sizes),
    "padding": _is_padding,
    "output_padding": functools.partial(_are_sizes, least=0),
    "scale_factor": _is_scale,
    **dict.fromkeys(("size", "output_size"), _is_size_or_none),
    "eps": lambda value: _is_number(value, 0, 1),
    "p": lambda value: _is_number(value, 0, 1),
    "dropout": lambda value: isinstance(value, nn.Module) or _is_number(value, 0, 1),
    "momentum": lambda value: value is None or _is_number(value, 0, 1),
    "negative_slope": lambda value: _is_number(value, -1e6, 1e6),
    **dict.fromkeys(("inplace", "affine", "track_running_stats", "transposed", "ceil_mode"), _is_bool),
    **dict.fromkeys(("return_indices", "count_include_pad", "batch_first"), _is_bool),
    **dict.fromkeys(("align_corners", "recompute_scale_factor"), _is_bool_or_none),
    **dict.fromkeys(("padding_mode", "mode"), lambda value: isinstance(value, str)),
}
