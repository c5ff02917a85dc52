"""Parameters and operations of a model, counted in each of the ways that papers use.

Everything is counted on the built model while it runs on the meta device, with EMA in the paper's form.

thop (github.com/Lyken17/pytorch-OpCounter) hooks modules, so it does not see what a block computes with functions. Its
counts for the public blocks are computed here by its rules: version 0.0.31 is from the time of YOLOv5 v6.0, and 0.1.1
is the last version. Both see a layer's whole output, and so all groups that EMA folds into the batch. 0.0.31 fails with
a TypeError at the public EMA and CA, which pool to (None, 1). thop also counts adaptive pooling, which is left out
here: it is less than 1 % of any model here (thop 0.1.1 itself gives 1.629 G for ResNet50 with the public EMA).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolov5_ema.blocks import CA, EMA
from yolov5_ema.kernels.dispatch import forced

CONVENTIONS = {
    "plain": "all parameters of the model as it is trained: the sum of p.numel()",
    "no-norm": "plain without the parameters of BatchNorm and GroupNorm",
    "fused": "plain after YOLOv5 has folded BatchNorm into the convolutions (Model.fuse)",
    "full": "multiply-adds of all convolutions and matrix products that run, EMA in the paper's form",
    "layers": "multiply-adds of convolution and linear layers for a batch of 1: EMA's groups, which it folds into the "
    "batch, are counted once",
    "thop 0.0.31": "convolution and linear layers, EMA's groups in full; biases of convolutions; 2 an element of "
    "BatchNorm. It fails with a TypeError at the public EMA and CA",
    "thop 0.1.1": "convolution and linear layers, EMA's groups in full; 4 an element of BatchNorm",
    "summary": "thop 0.0.31 on an image of stride x stride pixels, scaled to 640 x 640: the line YOLOv5 v6.0 prints; "
    "none with EMA or CA",
    "once 0.0.31": "the sum of thop 0.0.31 with EMA's groups counted once; not what thop prints",
    "once 0.1.1": "the sum of thop 0.1.1 with EMA's groups counted once; not what thop prints",
    "once summary": "the summary line with the sum of once 0.0.31; not what YOLOv5 prints",
}
_aten = torch.ops.aten
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


@dataclass
class Operations:
    """Counts for one image: multiply-adds, and what some tools count in addition."""

    full: int = 0
    hooked: int = 0
    hooked_biases: int = 0
    layers: int = 0
    biases: int = 0
    normalised: int = 0
    is_beyond_old_thop: bool = False

    def by_convention(self) -> dict[str, int]:
        """Multiply-adds by the names of `CONVENTIONS`; ``hooked`` has EMA's groups in full, ``layers`` once."""
        old = {"thop 0.0.31": self.hooked + self.hooked_biases + 2 * self.normalised}
        return {
            "layers": self.layers,
            **({} if self.is_beyond_old_thop else old),
            "thop 0.1.1": self.hooked + 4 * self.normalised,
            "once 0.0.31": self.layers + self.biases + 2 * self.normalised,
            "once 0.1.1": self.layers + 4 * self.normalised,
        }


@dataclass
class _Counter:
    """Formulas for torch's FlopCounterMode that add to ``found`` when they are called."""

    found: Operations = field(default_factory=Operations)

    def mapping(self) -> dict[Any, Callable[..., int]]:
        norms = (
            _aten.native_batch_norm,
            _aten._native_batch_norm_legit,
            _aten._native_batch_norm_legit_no_training,
        )
        return {
            _aten.convolution: self._convolution,
            _aten.mm: self._linear,
            _aten.addmm: lambda _bias, a, b, *rest, **kwargs: self._linear(a, b),
            _aten.bmm: self._product,
            **dict.fromkeys(norms, self._norm),
        }

    def _convolution(self, x: Any, w: Any, bias: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        outputs = math.prod(out_shape)
        macs = outputs * math.prod(w[1:])
        self.found.full += macs
        self.found.hooked += macs
        self.found.layers += macs // x[0]
        self.found.hooked_biases += outputs if bias is not None else 0
        self.found.biases += outputs // x[0] if bias is not None else 0
        return 2 * macs

    def _linear(self, a: Any, b: Any, *_: Any, **__: Any) -> int:
        macs = math.prod(a) * b[-1]
        self.found.full += macs
        self.found.hooked += macs
        self.found.layers += macs
        return 2 * macs

    def _product(self, a: Any, b: Any, *_: Any, **__: Any) -> int:
        macs = math.prod(a) * b[-1]
        self.found.full += macs
        return 2 * macs

    def _norm(self, x: Any, *_: Any, **__: Any) -> int:
        self.found.normalised += math.prod(x)
        return 0


def count_operations(model: nn.Module, imgsz: int) -> Operations:
    """Count the operations for one image of imgsz x imgsz pixels; the model is on the meta device."""
    counter = _Counter()
    counter.found.is_beyond_old_thop = any(isinstance(layer, (EMA, CA)) for layer in model.modules())
    counting = FlopCounterMode(display=False, custom_mapping=counter.mapping())
    with forced("reference"), torch.no_grad(), counting:
        model(torch.zeros(1, 3, imgsz, imgsz, device="meta"))
    assert counting.get_total_flops() == 2 * counter.found.full  # no operation of another kind
    return counter.found


def parameters_plain(model: nn.Module) -> int:
    """The number of all parameters."""
    return sum(p.numel() for p in model.parameters())


def parameters_without_norms(model: nn.Module) -> int:
    """The number of all parameters except those of BatchNorm and GroupNorm."""
    norms = sum(p.numel() for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False))
    return parameters_plain(model) - norms
