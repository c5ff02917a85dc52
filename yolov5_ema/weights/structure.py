"""The rows of a built YOLO: what each row reads, its channels and its stride.

Works on the module itself (``model.model``, with the attributes ``f`` and ``type`` that `parse_model` of YOLOv5 and of
ultralytics sets on each row). So it needs neither a YAML nor the program that built the model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from yolov5_ema.late_modules import without_compiler

# pixels; YOLOv5 itself uses this size to find the strides
_SIDE = 256
_HEADS = ("Detect", "Segment")


@dataclass(eq=False)
class Layer:
    """One row of a built model.

    Attributes:
        index: its number.
        kind: class name of the module, or of the repeated module if the row repeats one.
        module: the module itself.
        sources: numbers of the rows that it reads; -1 is the image.
        channels: channels of its output; None if it does not have a single output or could not be run.
        stride: input pixels per output pixel; None as for ``channels``.
        tensors: the row's state dict.
    """

    index: int
    kind: str
    module: Any
    sources: tuple[int, ...]
    channels: int | None = None
    stride: float | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def is_head(self) -> bool:
        """Whether the row is a detection head of YOLOv5: Detect or Segment."""
        return self.kind in _HEADS and not self.is_head_of_ultralytics

    @property
    def is_head_of_ultralytics(self) -> bool:
        """Whether the row is the last one of a model of ultralytics, with one output for each class."""
        is_a_head = hasattr(self.module, "nc") or hasattr(self.module, "linear")
        return type(self.module).__module__ == "ultralytics.nn.modules.head" and is_a_head

    def __str__(self) -> str:
        return f"row {self.index} ({self.kind})"


def layers_of(model: nn.Module) -> list[Layer]:
    """The rows of a model of YOLOv5 or ultralytics.

    Args:
        model: a ``Model`` (``DetectionModel``, ``SegmentationModel`` …) of any release, on any device and of any dtype.
            It is not changed: a copy without memory (on the meta device) is run to find the channels and strides.

    Raises:
        ValueError: the model is not made of rows.
    """
    rows = getattr(model, "model", None)
    if not isinstance(rows, nn.Sequential) or not all(hasattr(row, "f") for row in rows):
        raise ValueError(f"{type(model).__name__} is not a YOLOv5 model: it has no rows under .model")
    layers = [
        Layer(index, _kind(row), row, _sources(row.f, index), tensors=dict(row.state_dict()))
        for index, row in enumerate(rows)
    ]
    cfg = getattr(model, "yaml", None) or {}
    _find_places(layers, int(cfg.get("channels", cfg.get("ch", 3))))
    return layers


def _kind(row: nn.Module) -> str:
    return str(getattr(row, "type", type(row).__name__)).rsplit(".", 1)[-1]


def _sources(read: Any, index: int) -> tuple[int, ...]:
    numbers = read if isinstance(read, (list, tuple)) else [read]
    return tuple(number if number >= 0 else index + number for number in numbers)


def _find_places(layers: list[Layer], channels: int) -> None:
    outputs: dict[int, Any] = {-1: torch.zeros(1, channels, _SIDE, _SIDE, device="meta")}
    with torch.no_grad(), without_compiler():
        for layer in layers:
            inputs = [outputs.get(source) for source in layer.sources]
            if layer.is_head or layer.is_head_of_ultralytics or any(x is None for x in inputs):
                continue
            several = isinstance(layer.module.f, (list, tuple))
            out = _run(layer.module, inputs if several else inputs[0])
            if isinstance(out, torch.Tensor) and out.dim() == 4:
                outputs[layer.index] = out
                layer.channels, layer.stride = out.shape[1], _SIDE / out.shape[2]


def _run(module: nn.Module, inputs: Any) -> Any:
    try:
        return on_meta(module)(inputs)
    except Exception:
        # a module of another YOLOv5, a head, or a module that needs real values: channels and stride stay unknown
        return None


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of a module in evaluation mode, in float32, whose tensors have no memory (meta device)."""
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        twin = torch.empty(tensor.shape, dtype=dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(twin, False) if isinstance(tensor, nn.Parameter) else twin
    return copy.deepcopy(module, memo).eval()
