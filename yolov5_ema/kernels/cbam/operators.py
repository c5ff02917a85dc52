"""CBAM's kernels as they are called: proved, and as torch operators (``yolov5_ema::cbam_...``) if torch records.

make_fx, FakeTensorMode and torch.compile then see calls with outputs of known shapes, and torch resolves negated views
before a kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from yolov5_ema.kernels.cbam import cpp, plain
from yolov5_ema.kernels.memory import ArgumentsError, is_intercepted
from yolov5_ema.kernels.proof import BACKWARD, FORWARD, Draw, Proved


def _example(draw: Draw, shape: Sequence[int]) -> dict[str, torch.Tensor | bool]:
    """Arguments of all kernels by their names; maxima and ties are those of x."""
    n, c, h, w = shape
    x, gate_c = draw(*shape), draw(n, c)
    made: dict[str, torch.Tensor | bool] = {"x": x, "gate_c": gate_c, "count_ties": True}
    pooled, made["ties"] = plain.pool(x, True)
    made["peak"], made["d_pooled"] = pooled[1], draw(2, n, c)
    made["maps"], made["map_ties"] = plain.maps(x, gate_c, True)
    made["grad"], made["gate_s"], made["d_maps"] = draw(*shape), draw(n, 1, h, w), draw(n, 2, h, w)
    made["d_out"], made["weight"] = draw(n, 1, h, w), draw(1, 2, 7, 7) / 16
    return made


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


# the arguments of each kernel, by their names in `_example`
_ARGUMENTS = {
    "pool": "x count_ties",
    "maps": "x gate_c count_ties",
    "apply": "x gate_c gate_s",
    "apply_backward": "grad x gate_c gate_s",
    "maps_backward": "d_maps x gate_c maps map_ties",
    "input_backward": "x gate_c gate_s maps map_ties peak ties grad d_pooled d_maps",
    "convolve": "maps weight",
    "convolve_backward": "d_out maps weight",
}


def _proved(name: str) -> Proved:
    def case(draw: Draw, shape: Sequence[int]) -> list[torch.Tensor | bool]:
        made = _example(draw, shape)
        return [made[argument] for argument in _ARGUMENTS[name].split()]

    kind = BACKWARD if name.endswith("backward") else FORWARD
    return Proved("CBAM", kind, lambda *rest: getattr(cpp, name)(*rest), getattr(plain, name), case)


def _define(name: str, schema: str, shapes: Callable[..., Any]) -> None:
    torch.library.define(f"yolov5_ema::cbam_{name}", schema)
    torch.library.impl(f"yolov5_ema::cbam_{name}", "cpu", getattr(_FUNCTIONS, name))

    @torch.library.register_fake(f"yolov5_ema::cbam_{name}")
    def checked(*arguments: Any) -> Any:
        _check_devices(arguments)
        return shapes(*arguments)


def _check_devices(arguments: tuple[Any, ...]) -> None:
    """Raise an `ArgumentsError` for tensors on several devices.

    With one tensor on the meta device torch calls the fake implementation, even if the input has values.
    """
    devices = {tensor.device for tensor in arguments if isinstance(tensor, torch.Tensor)}
    if len(devices) > 1:
        raise ArgumentsError(f"CBAM: expected all tensors on one device, got {', '.join(map(str, devices))}")


_FUNCTIONS = SimpleNamespace(**{name: _proved(name) for name in _KERNELS})
for _name, (_schema, _shapes) in _KERNELS.items():
    _define(_name, _schema, _shapes)


_OPERATORS = SimpleNamespace(**{name: getattr(torch.ops.yolov5_ema, f"cbam_{name}") for name in _KERNELS})


def passes() -> Any:
    """The kernels under their names in `yolov5_ema.kernels.cbam.cpp`: operators if torch records, else functions."""
    return _OPERATORS if is_intercepted() else _FUNCTIONS
