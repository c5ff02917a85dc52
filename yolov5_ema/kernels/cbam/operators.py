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
from yolov5_ema.kernels.cbam.cpp import sizes_of, window_of
from yolov5_ema.kernels.memory import is_intercepted

_SCHEMAS = {
    "pool": "(Tensor x, bool count_ties) -> (Tensor, Tensor)",
    "maps": "(Tensor x, Tensor gate_c, bool count_ties) -> (Tensor, Tensor)",
    "apply": "(Tensor x, Tensor gate_c, Tensor gate_s) -> Tensor",
    "apply_backward": "(Tensor grad, Tensor x, Tensor gate_c, Tensor gate_s) -> (Tensor, Tensor)",
    "maps_backward": "(Tensor d_maps, Tensor x, Tensor gate_c, Tensor maps, Tensor map_ties) -> Tensor",
    "input_backward": "(Tensor x, Tensor gate_c, Tensor gate_s, Tensor maps, Tensor map_ties, Tensor peak, "
    "Tensor ties, Tensor grad, Tensor d_pooled, Tensor d_maps) -> Tensor",
    "convolve": "(Tensor maps, Tensor weight) -> Tensor",
    "convolve_backward": "(Tensor grad, Tensor maps, Tensor weight) -> (Tensor, Tensor)",
}


def _define(name: str, schema: str) -> None:
    torch.library.define(f"yolov5_ema::cbam_{name}", schema)

    @torch.library.impl(f"yolov5_ema::cbam_{name}", "CPU")
    def run(*arguments: Any) -> Any:
        return getattr(cpp, name)(*arguments)


def _fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(shapes: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any) -> Any:
            _check_devices(arguments)
            return shapes(*arguments)

        torch.library.register_fake(f"yolov5_ema::cbam_{name}")(checked)
        return shapes

    return register


def _check_devices(arguments: tuple[Any, ...]) -> None:
    """Raise a ``RuntimeError`` for tensors on several devices.

    With one tensor on the meta device torch calls the fake implementation, even if the input has values.
    """
    devices = {tensor.device for tensor in arguments if isinstance(tensor, torch.Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"CBAM: expected all tensors on one device, got {', '.join(map(str, devices))}")


for _name, _schema in _SCHEMAS.items():
    _define(_name, _schema)


_OPERATORS = SimpleNamespace(**{name: getattr(torch.ops.yolov5_ema, f"cbam_{name}") for name in _SCHEMAS})


def passes() -> Any:
    """The kernels under their names in `yolov5_ema.kernels.cbam.cpp`: operators if torch records, else functions."""
    return _OPERATORS if is_intercepted() else cpp


@_fake("pool")
def _pool_shapes(x: torch.Tensor, count_ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    n, c, _, _ = sizes_of(x)
    return x.new_empty(2, n, c), x.new_empty((n, c) if count_ties else 0)


@_fake("maps")
def _maps_shapes(x: torch.Tensor, gate_c: torch.Tensor, count_ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    n, _, h, w = sizes_of(x)
    return x.new_empty(n, 2, h, w), x.new_empty((n, 1, h, w) if count_ties else 0)


@_fake("apply_backward")
def _apply_backward_shapes(
    grad: torch.Tensor, x: torch.Tensor, gate_c: torch.Tensor, gate_s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    n, c, h, w = sizes_of(x)
    return x.new_empty(n, c), x.new_empty(n, 1, h, w)


@_fake("maps_backward")
def _maps_backward_shapes(d_maps: torch.Tensor, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    n, c, _, _ = sizes_of(x)
    return x.new_empty(n, c)


@_fake("apply")
@_fake("input_backward")
def _as_the_input(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    return x.new_empty(sizes_of(x))


@_fake("convolve")
def _convolve_shapes(maps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    n, _, h, w = sizes_of(maps)
    return maps.new_empty(n, 1, h, w)


@_fake("convolve_backward")
def _convolve_backward_shapes(
    grad: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    n, _, h, w = sizes_of(maps)
    k = window_of(weight)
    return maps.new_empty(n, 2, h, w), maps.new_empty(1, 2, k, k)
