"""CBAM's kernels as torch operators (``yolov5_ema::cbam_...``), for everything that records or simulates operations.

make_fx, FakeTensorMode and torch.compile then see calls with outputs of known shapes, and torch resolves negated views
before a kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from yolov5_ema.kernels.cbam import cpp
from yolov5_ema.kernels.memory import is_intercepted

# the schema of each kernel, and the function that gives its results' shapes
_KERNELS: dict[str, tuple[str, Callable[..., Any]]] = {
    "pool": ("(Tensor x, bool count_ties) -> (Tensor, Tensor)", cpp.new_pool),
    "maps": ("(Tensor x, Tensor gate_c, bool count_ties) -> (Tensor, Tensor)", cpp.new_maps),
    "apply": ("(Tensor x, Tensor gate_c, Tensor gate_s) -> Tensor", cpp.new_input),
    "apply_backward": ("(Tensor grad, Tensor x, Tensor gate_c, Tensor gate_s) -> (Tensor, Tensor)", cpp.new_gates),
    "maps_backward": (
        "(Tensor d_maps, Tensor x, Tensor gate_c, Tensor maps, Tensor map_ties) -> Tensor",
        cpp.new_gate_of_channels,
    ),
    "input_backward": (
        "(Tensor x, Tensor gate_c, Tensor gate_s, Tensor maps, Tensor map_ties, Tensor peak, Tensor ties, "
        "Tensor grad, Tensor d_pooled, Tensor d_maps) -> Tensor",
        cpp.new_input,
    ),
    "convolve": ("(Tensor maps, Tensor weight) -> Tensor", cpp.new_convolved),
    "convolve_backward": (
        "(Tensor grad, Tensor maps, Tensor weight) -> (Tensor, Tensor)",
        cpp.new_convolution_gradients,
    ),
}


def _define(name: str, schema: str, shapes: Callable[..., Any]) -> None:
    torch.library.define(f"yolov5_ema::cbam_{name}", schema)

    @torch.library.impl(f"yolov5_ema::cbam_{name}", "CPU")
    def run(*arguments: Any) -> Any:
        return getattr(cpp, name)(*arguments)

    @torch.library.register_fake(f"yolov5_ema::cbam_{name}")
    def checked(*arguments: Any) -> Any:
        _check_devices(arguments)
        return shapes(*arguments)


def _check_devices(arguments: tuple[Any, ...]) -> None:
    """Raise a ``RuntimeError`` for tensors on several devices.

    With one tensor on the meta device torch calls the fake implementation, even if the input has values.
    """
    devices = {tensor.device for tensor in arguments if isinstance(tensor, torch.Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"CBAM: expected all tensors on one device, got {', '.join(map(str, devices))}")


for _name, (_schema, _shapes) in _KERNELS.items():
    _define(_name, _schema, _shapes)


_OPERATORS = SimpleNamespace(**{name: getattr(torch.ops.yolov5_ema, f"cbam_{name}") for name in _KERNELS})


def passes() -> Any:
    """The kernels under their names in `yolov5_ema.kernels.cbam.cpp`: operators if torch records, else functions."""
    return _OPERATORS if is_intercepted() else cpp
