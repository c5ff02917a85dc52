"""Checks that a model from a file could have been built by the package `ultralytics`: its layers, head and settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from yolov5_ema.checkpoints.layer_state import LARGEST, fault_of_layer, is_finite_of_shape, is_scaling
from yolov5_ema.class_names import fault_of_names
from yolov5_ema.weights.names import TASKS

MOST_CLASSES = 100_000
LARGEST_STRIDE = 1024
# how often a layer applies another, such as the pooling in SPPF
_MOST_TIMES = 100
_MOST_BINS = 1024
# models whose classes are texts, which can be changed without changing the head
_OF_TEXTS = ("WorldModel", "YOLOEModel", "YOLOESegModel")
_FLAGS = ("end2end", "_end2end", "dynamic", "export", "inplace", "legacy", "xyxy", "agnostic_nms")
_COUNTS = ("nc", "nl", "no", "nm", "npr", "ne", "nk", "max_det", "num_queries")
_TRANSFORMS = "torchvision.transforms.transforms"


def is_of_ultralytics(model: Any) -> bool:
    """Whether it is a model of the package `ultralytics`."""
    return isinstance(model, nn.Module) and type(model).__module__ == "ultralytics.nn.tasks"


def fault_of_own_layer(layer: nn.Module) -> str | None:
    """What is wrong with the numbers of a layer that `ultralytics` defines; None if nothing is."""
    if not type(layer).__module__.startswith("ultralytics."):
        return None
    for name, value in vars(layer).items():
        # np: the number of parameters, which nothing computes with
        most = math.inf if name == "np" else _MOST_TIMES if name == "n" else LARGEST
        if (type(value) is int and abs(value) > most) or (isinstance(value, float) and not math.isfinite(value)):
            return f"{name} cannot be {repr(value)[:60]}"
    return None


def faults(model: Any, head: Any) -> Iterator[str]:
    """What is wrong with a model besides its rows and layers.

    Args:
        model: a model of ultralytics.
        head: its last row.
    """
    count = None
    if all(name in vars(head) for name in ("nc", "nl", "stride", "reg_max")):
        yield from _of_head(head, model)
        count = head.nc
    yield from _of_flags(head)
    yield from _of_flags(model)
    yield from _of_model(model, None if type(model).__name__ in _OF_TEXTS else count)
    yield from _of_transforms(vars(model).get("transforms"))


def _of_head(head: Any, model: Any) -> Iterator[str]:
    counts = [vars(head)[name] for name in _COUNTS if name in vars(head)]
    if not all(type(count) is int and 0 <= count <= LARGEST for count in counts) or not 0 < head.nc <= MOST_CLASSES:
        yield "the numbers of classes, levels and outputs of the head must be whole numbers"
        return
    if head.nl != len(head.f if isinstance(head.f, list) else [head.f]) and type(head).__name__ != "WorldDetect":
        yield f"the head has {head.nl} levels, but reads {head.f}"
    bins = vars(head)["reg_max"]
    if type(bins) is not int or not 0 < bins <= _MOST_BINS:
        yield f"reg_max of the head cannot be {repr(bins)[:60]}"
    elif "no" in vars(head) and head.no != head.nc + 4 * bins:
        yield f"the head has {head.no} outputs for {head.nc} classes"
    for where, stride in (("head", vars(head)["stride"]), ("model", vars(model).get("stride"))):
        if not is_finite_of_shape(stride, (head.nl,)) or not bool(((stride > 0) & (stride <= LARGEST_STRIDE)).all()):
            yield f"the strides of the {where} must be {head.nl} numbers up to {LARGEST_STRIDE}"


def _of_flags(module: nn.Module) -> Iterator[str]:
    for name in _FLAGS:
        if not isinstance(vars(module).get(name, False), (bool, type(None))):
            yield f"{name} of the {type(module).__name__} must be true or false"


def _of_model(model: Any, count: int | None) -> Iterator[str]:
    state = vars(model)
    fault = fault_of_names(state.get("names"), count)
    if fault:
        yield fault
    for name, kinds in (("nc", int), ("task", str), ("pt_path", str), ("yaml_file", str)):
        if not isinstance(state.get(name), (kinds, type(None))) or isinstance(state.get(name), bool):
            yield f"{name} cannot be {repr(state[name])[:60]}"
    if state.get("task") not in (None, *TASKS):
        yield f"{repr(state['task'])[:60]} is no task"
    # a training that was interrupted keeps its own class for them
    args = state.get("args") or {}
    args = vars(args) if type(args).__name__ == "IterableSimpleNamespace" else args
    if not isinstance(args, Mapping) or not all(isinstance(key, str) for key in args):
        yield "args are not the settings of a training"
    stride = state.get("stride")
    if stride is None or not is_finite_of_shape(stride, tuple(getattr(stride, "shape", ()))) or not stride.numel():
        yield "its strides are not numbers"
    elif not bool(((stride > 0) & (stride <= LARGEST_STRIDE)).all()):
        yield f"its strides must be numbers up to {LARGEST_STRIDE}"
    yield from _of_cfg(state.get("yaml"))


def _of_cfg(cfg: Any) -> Iterator[str]:
    """What is wrong with the types and ranges in the model YAML. ultralytics checks the rows when it builds them."""
    if not isinstance(cfg, Mapping) or not all(isinstance(key, str) for key in cfg):
        yield "yaml is not a dict"
        return
    for name in ("nc", "ch", "channels"):
        number = cfg.get(name, 1)
        if type(number) is not int or not 0 < number <= MOST_CLASSES:
            yield f"{name} of its yaml cannot be {repr(number)[:60]}"
    for name in ("backbone", "head"):
        rows = cfg.get(name)
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
            yield f"{name} of its yaml is not a list of rows"
    scales = cfg.get("scales")
    if scales is not None and not (isinstance(scales, Mapping) and all(_is_scale(scale) for scale in scales.values())):
        yield "scales of its yaml are not three numbers for each size"


def _is_scale(scale: Any) -> bool:
    parts: list[Any] = scale if isinstance(scale, list) and len(scale) == 3 else [None]
    return all(type(part) in (int, float) and math.isfinite(part) and 0 < part <= LARGEST for part in parts)


def _of_transforms(transforms: Any) -> Iterator[str]:
    """What is wrong with the steps by which a classifier prepares an image."""
    if transforms is None:
        return
    steps = vars(transforms).get("transforms") if type(transforms).__module__ == _TRANSFORMS else None
    if not isinstance(steps, list) or len(steps) > _MOST_TIMES:
        yield "transforms are not a list of steps"
        return
    for step in steps:
        fault = fault_of_layer(step) if isinstance(step, nn.Module) else None
        if type(step).__module__ != _TRANSFORMS or fault or not is_scaling(vars(step)):
            yield f"its transform {type(step).__name__} is invalid{f': {fault}' if fault else ''}"
