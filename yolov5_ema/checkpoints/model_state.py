"""Checks that a model from a file could have been built by YOLOv5 or ultralytics: rows, head, names, and that it runs.

First each layer is checked (`layer_state`). Then the model is run on tensors without memory (meta device), which shows
wrong shapes, missing attributes and excessive sizes before anything is computed.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from yolov5_ema.checkpoints import ultralytics_state
from yolov5_ema.checkpoints.layer_state import fault_of_layer, is_finite_of_shape
from yolov5_ema.checkpoints.models import MODEL_CLASSES
from yolov5_ema.checkpoints.ultralytics_state import LARGEST_STRIDE, MOST_CLASSES, is_of_ultralytics
from yolov5_ema.class_names import fault_of_names
from yolov5_ema.errors import CheckpointError
from yolov5_ema.late_modules import without_compiler
from yolov5_ema.texts import counted, first_line
from yolov5_ema.weights.structure import on_meta

HEADS = ("Detect", "Segment")

# limit for a tensor between two layers, for an image of 2 x 2 grid cells at the largest stride
_MOST_ELEMENTS = 2**26
_MOST_ROWS = 10_000
_LACKS_NORM = "no attribute 'bn'"
_FUSED = ". A fused model has no BatchNorms: use the checkpoint that it was made from"
_OF_ANY_SHAPE = (nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.Hardswish, nn.Identity)
_KNOWN = ("torch.nn.", "yolov5_ema.blocks.", "timm.layers.", "models.", "yolov5.models.", "ultralytics.nn.")
_MEMORY_WANTED = re.compile(r"meta tensor|same device|device meta")
_CLASS_NAME = re.compile(r"[\w.]{1,300}")


def check_model(model: nn.Module, path: Path) -> None:
    """Raise a `CheckpointError` that names the layer if its program and torch could not have built such a model."""
    for name, layer in model.named_modules():
        fault = fault_of_layer(layer) or ultralytics_state.fault_of_own_layer(layer)
        if fault:
            raise CheckpointError(f"{path}: the layer {name or '(the model)'} ({type(layer).__name__}): {fault}")
    if not is_of_yolov5(model) and not is_of_ultralytics(model):
        return
    fault = next(_faults(model), None)
    if fault:
        raise CheckpointError(f"{path}: its model is not one that {_builder(model)} could have built: {fault}")
    _run_without_memory(model, path)


def is_of_yolov5(model: Any) -> bool:
    """Whether it is a model that YOLOv5's scripts run: a detector, a segmenter or a classifier."""
    return not is_of_ultralytics(model) and type(model).__name__ in (*MODEL_CLASSES, "ClassificationModel")


def _builder(model: Any) -> str:
    return "ultralytics" if is_of_ultralytics(model) else "YOLOv5"


def _faults(model: Any) -> Iterator[str]:
    if "module" in {**vars(model), **vars(model)["_modules"]}:
        yield "it has an attribute 'module', which only a wrapper for several GPUs has"
    rows = getattr(model, "model", None)
    if not isinstance(rows, nn.Sequential) or not 0 < len(rows) <= _MOST_ROWS:
        yield "it has no rows"
        return
    yield from _of_rows(model, rows)
    head: Any = rows[-1]
    if is_of_ultralytics(model):
        yield from ultralytics_state.faults(model, head)
        return
    count = None
    if type(head).__name__ in HEADS:
        yield from _of_head(head, model)
        count = head.nc
    yield from _of_model(model, count)


def _of_rows(model: Any, rows: nn.Sequential) -> Iterator[str]:
    for index, row in enumerate(rows):
        state = vars(row)
        read = state.get("f")
        sources = read if isinstance(read, list) else [read]
        if state.get("i") != index or not sources or not all(_reads(source, index) for source in sources):
            yield f"row {index} ({type(row).__name__}) does not say which row it is, and which rows it reads"
        if "type" in state and not _CLASS_NAME.fullmatch(state["type"]):
            yield f"row {index}: {state['type'][:60]!r} is not the name of a class"
        if not isinstance(state.get("np", 0), (int, float)):
            yield f"row {index}: np is not a number of parameters"
    is_built_from_rows = type(model).__name__ in MODEL_CLASSES or is_of_ultralytics(model)
    saved = vars(model).get("save", None if is_built_from_rows else [])
    if not isinstance(saved, list) or not all(type(index) is int for index in saved):
        yield "save is not a list of rows"


def _reads(source: Any, index: int) -> bool:
    return type(source) is int and (source == -1 or -index <= source < index)


def _of_head(head: Any, model: Any) -> Iterator[str]:
    state = {**vars(head), **vars(head)["_buffers"], **vars(head)["_modules"]}
    counts = [state.get(name) for name in ("nc", "no", "na", "nl")]
    if not all(type(count) is int and 0 < count <= MOST_CLASSES for count in counts):
        yield "nc, no, na and nl of the head must be whole numbers"
        return
    nc, no, na, nl = head.nc, head.no, head.na, head.nl
    more = state.get("nm", 0) if type(head).__name__ == "Segment" else 0
    if type(more) is not int or no != nc + 5 + more:
        yield f"the head has {counted(no, 'output')} for {counted(nc, 'class')}"
    if not is_finite_of_shape(state.get("anchors"), (nl, na, 2)):
        yield f"the anchors must be {nl} x {na} sizes"
    stride: Any = state.get("stride")
    if not is_finite_of_shape(stride, (nl,)) or not bool(((stride > 0) & (stride <= LARGEST_STRIDE)).all()):
        yield f"the strides must be {nl} numbers from 1 to {LARGEST_STRIDE}"
        return
    if not is_finite_of_shape(getattr(model, "stride", None), (nl,)) or not torch.equal(
        model.stride.float().cpu(), stride.float().cpu()
    ):
        yield "the model's strides are not those of its head"
    yield from _of_outputs(head, no * na)


def _of_outputs(head: Any, channels: int) -> Iterator[str]:
    convolutions = head._modules.get("m")
    if not isinstance(convolutions, nn.ModuleList) or len(convolutions) != head.nl or len(head.f) != head.nl:
        yield f"the head must have {head.nl} inputs and {head.nl} outputs"
    elif any(isinstance(one, nn.Conv2d) and one.out_channels != channels for one in convolutions):
        yield f"the outputs of the head must have {channels} channels"
    for name in ("grid", "anchor_grid"):
        kept = vars(head).get(name)
        if not isinstance(kept, list) or len(kept) != head.nl:
            yield f"{name} of the head must be {counted(head.nl, 'tensor')}"
    if not all(
        isinstance(vars(head).get(name, False), bool) for name in ("inplace", "export", "dynamic", "onnx_dynamic")
    ):
        yield "inplace, export, dynamic and onnx_dynamic of the head must be true or false"


def _of_model(model: Any, count: int | None) -> Iterator[str]:
    state = vars(model)
    fault = fault_of_names(state.get("names"), count)
    if fault:
        yield fault
    if "nc" in state and (type(state["nc"]) is not int or (count is not None and state["nc"] != count)):
        yield f"nc is {repr(state['nc'])[:60]}, but the head has {count} classes"
    if not isinstance(state.get("inplace", True), bool):
        yield "inplace must be true or false"
    if not isinstance(state.get("yaml_file", ""), str):
        yield "yaml_file is not text"
    if not isinstance(state.get("hyp", {}), (dict, type(None))):
        yield "hyp is not a dict"
    if type(model).__name__ in MODEL_CLASSES:
        yield from _of_cfg(state.get("yaml"))
    stride = state.get("stride")
    if stride is not None and not isinstance(stride, torch.Tensor):
        yield "stride is not a tensor"


def _of_cfg(cfg: Any) -> Iterator[str]:
    """What is wrong with the types and ranges in the model YAML. `Model` itself checks the rows when it builds them."""
    if not isinstance(cfg, Mapping) or not all(isinstance(key, str) for key in cfg):
        yield "yaml is not a dict"
        return
    nc, channels = cfg.get("nc"), cfg.get("ch", 3)
    if type(nc) is not int or not 0 < nc <= MOST_CLASSES:
        yield f"nc of its yaml cannot be {repr(nc)[:60]}"
    if type(channels) is not int or not 0 < channels <= MOST_CLASSES:
        yield f"ch of its yaml cannot be {repr(channels)[:60]}"
    for name in ("depth_multiple", "width_multiple"):
        number: Any = cfg.get(name)
        if type(number) not in (int, float) or not math.isfinite(number) or not 0 < number <= 100:
            yield f"{name} of its yaml cannot be {repr(number)[:60]}"
    for name in ("backbone", "head"):
        rows = cfg.get(name)
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
            yield f"{name} of its yaml is not a list of rows"


# --- running it ----------------------------------------------------------------------------------


class _Bounded(TorchDispatchMode):
    """Context manager that raises a ``ValueError`` for a tensor with more than `_MOST_ELEMENTS` elements."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.numel() > _MOST_ELEMENTS:
            raise ValueError(f"it makes a tensor of {found.numel():,} elements from a tiny image")
        return found


def _run_without_memory(model: Any, path: Path) -> None:
    """Run a copy on one tiny image on the meta device. A model with layers of the user's own may fail there."""
    side = 2 * max(32, int(model.stride.max())) if isinstance(getattr(model, "stride", None), torch.Tensor) else 64
    cfg = vars(model).get("yaml")
    channels = cfg.get("channels", cfg.get("ch", 3)) if isinstance(cfg, Mapping) else 3
    try:
        twin = _without_arithmetic(on_meta(model))
        with torch.no_grad(), without_compiler(), _Bounded():
            twin(torch.zeros(1, channels, side, side, device="meta"))
    except NotImplementedError:
        return
    except Exception as error:
        if _MEMORY_WANTED.search(str(error)) or not all(map(_is_known, model.modules())):
            return
        reason = first_line(error, 300)
        raise CheckpointError(
            f"{path}: its model is not one that {_builder(model)} could have built: it cannot "
            f"run{_row_in(error.__traceback__)} "
            f"({type(error).__name__}: {reason}){_FUSED if _LACKS_NORM in reason else ''}"
        ) from error


def _without_arithmetic(twin: nn.Module) -> nn.Module:
    """Make layers that do not change the shape return their input: torch is slow at running them on the meta device."""
    for layer in twin.modules():
        if isinstance(layer, _OF_ANY_SHAPE):
            vars(layer)["forward"] = lambda x: x
        elif type(layer) is nn.BatchNorm2d:
            vars(layer)["forward"] = functools.partial(_with_channels, layer.num_features)
    return twin


def _with_channels(count: int, x: torch.Tensor) -> torch.Tensor:
    if x.dim() != 4 or x.shape[1] != count:
        raise ValueError(f"a BatchNorm2d of {count} channels gets {tuple(x.shape)}")
    return x


def _is_known(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith(_KNOWN)


def _row_in(traceback: TracebackType | None) -> str:
    """The row that was running when an error was raised, from the model's loop over its rows."""
    for frame, _ in walk_tb(traceback):
        row = frame.f_locals.get("m")
        if frame.f_code.co_name.endswith(("forward_once", "_predict_once", "predict")) and isinstance(row, nn.Module):
            return f", row {vars(row).get('i')} ({type(row).__name__})"
    return ""
