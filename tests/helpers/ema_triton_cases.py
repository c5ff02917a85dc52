"""Cases for the Triton kernels of EMA, and their errors against the definition in float64.

Run as a script with TRITON_INTERPRET=1, this prints the errors of every case as JSON. The variable has to be set before
triton is imported, and it would change what torch.compile does in the same process. So the tests run this script in a
separate process.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import torch

from yolov5_ema.kernels.ema import EMAArguments, ema_reference

EPS = 1e-5
NAMES = ("x", "w1", "b1", "gamma", "beta", "w3", "b3")


@dataclass(frozen=True)
class Case:
    """A feature map (n, c, h, w) in ``groups``; ``mean`` is added to the input, ``weights`` scales the convolutions."""

    n: int
    c: int
    h: int
    w: int
    groups: int
    dtype: torch.dtype = torch.float32
    mean: float = 0.0
    weights: float = 1.0
    layout: str = "contiguous"

    def __str__(self) -> str:
        extra = "" if self.dtype == torch.float32 else f"-{str(self.dtype).split('.')[1]}"
        extra += f"-mean{self.mean:g}" if self.mean else ""
        extra += "" if self.layout == "contiguous" else f"-{self.layout}"
        return f"{self.n}x{self.c}x{self.h}x{self.w}-G{self.groups}{extra}"


BOTH = ("fused", "split")
FLOAT32 = [
    (Case(2, 4, 3, 4, 2), ("fused",)),
    (Case(2, 2, 2, 3, 1), ("split",)),
    (Case(1, 5, 1, 9, 1), BOTH),
    (Case(1, 3, 9, 1, 1), ("fused",)),
    (Case(1, 2, 2, 3, 2), BOTH),  # one channel for each group
    (Case(1, 2, 1, 1, 1), BOTH),
    (Case(1, 6, 7, 5, 1), ("fused",)),
    (Case(1, 3, 4, 5, 1, layout="channels_last"), ("fused",)),
    (Case(1, 3, 4, 5, 1, layout="strided"), ("fused",)),
]
HALF = [
    (Case(1, 3, 6, 7, 1, torch.float16), ("fused",)),
    (Case(1, 3, 6, 7, 1, torch.bfloat16), ("fused",)),
]
# The weights are small enough not to saturate the gates and the map. Sums over a channel reach 1.0e5, more than the
# largest float16, 65504.
LARGE = [
    (Case(1, 4, 9, 8, 1, mean=1e3, weights=1e-3), BOTH),
    (Case(1, 1, 32, 32, 1, torch.float16, mean=100.0, weights=1e-2), ("split",)),
]
SLOW = [
    (Case(2, 4, 3, 4, 2), ("split",)),
    (Case(1, 3, 9, 1, 1), ("split",)),
    (Case(1, 2, 45, 50, 1), BOTH),  # several blocks of rows, the last of them short
    (Case(1, 2, 2, 1100, 1), BOTH),  # rows longer than a block
    (Case(1, 20, 7, 5, 1), ("fused",)),
    (Case(1, 10, 13, 11, 1), BOTH),
    (Case(1, 20, 7, 5, 1), ("split",)),
    (Case(1, 40, 20, 20, 1), BOTH),
    (Case(2, 4, 6, 7, 2), BOTH),
    (Case(2, 8, 6, 7, 2), BOTH),
    (Case(1, 2, 5, 5, 2), BOTH),
    (Case(2, 12, 40, 40, 4), BOTH),
    (Case(1, 3, 6, 7, 1, torch.float16), ("split",)),
    (Case(1, 3, 6, 7, 1, torch.bfloat16), ("split",)),
    (Case(1, 1, 80, 80, 1, torch.float16, mean=100.0, weights=1e-2), ("split",)),
    (Case(1, 2, 160, 160, 1, torch.float16, mean=100.0, weights=1e-2), BOTH),
]


def flatten(table: list[tuple[Case, tuple[str, ...]]]) -> list[tuple[Case, str]]:
    return [(case, path) for case, paths in table for path in paths]


def tensors(case: Case, device: str = "cpu") -> tuple[list[torch.Tensor], torch.Tensor]:
    """The input and the parameters, and the gradient of the output."""
    torch.manual_seed(0)
    k = case.c // case.groups
    shape = (case.n, case.c, case.h, case.w)
    x = torch.randn(shape) + case.mean
    parameters = [
        torch.randn(k, k, 1, 1) / k**0.5 * case.weights,
        torch.randn(k) * 0.3,
        torch.rand(k) + 0.5,
        torch.randn(k) * 0.5,
        torch.randn(k, k, 3, 3) / (3 * k**0.5) * case.weights,
        torch.randn(k) * 0.3,
    ]
    if case.layout == "channels_last":
        parameters = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in parameters]
    grad = torch.randn(shape)
    placed = [_lay(t.to(device, case.dtype), case.layout) for t in (x, grad)]
    return [placed[0], *(t.to(device) for t in parameters)], placed[1]


def _lay(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "strided":
        return x.repeat_interleave(2, dim=3)[..., ::2]
    return x


def run(case: Case, path: str, device: str = "cpu") -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The output and all gradients from the kernels, on the path ``fused`` or ``split``."""
    from yolov5_ema.kernels.ema import triton as kernels

    (x, *parameters), grad = tensors(case, device)
    arguments = EMAArguments(*parameters, case.groups, EPS)
    limit, kernels._FUSED_LIMIT = kernels._FUSED_LIMIT, 2**31 if path == "fused" else 0
    try:
        out, stats = kernels.forward(x, arguments)
        grads = kernels.backward(grad, x, stats, arguments)
    finally:
        kernels._FUSED_LIMIT = limit
    return out, grads


def defined(case: Case, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The output and all gradients from the definition, computed in ``dtype``."""
    inputs, grad = tensors(case, device)
    leaves = [t.to(dtype).requires_grad_() for t in inputs]
    out = ema_reference(leaves[0], EMAArguments(*leaves[1:], case.groups, EPS))
    return out.detach(), torch.autograd.grad(out, leaves, grad.to(dtype))


def errors(case: Case, path: str, device: str = "cpu") -> dict[str, float]:
    """The largest error of the output and of each gradient against the definition in float64.

    The error of a float32 output is absolute, all others are relative to the largest value. For a gradient that is zero
    or nearly so, the error is relative to 1e-3 of the largest gradient. The path "plain" is the definition in float32.
    """
    expected, expected_grads = defined(case, device, torch.float64)
    out, grads = defined(case, device, torch.float32) if path == "plain" else run(case, path, device)
    if path != "plain":
        assert out.shape == expected.shape and out.dtype == case.dtype and out.is_contiguous()
        assert [g.dtype for g in grads] == [case.dtype] + [torch.float32] * 6
    assert [g.shape for g in grads] == [g.shape for g in expected_grads]
    top = 1.0 if case.dtype == torch.float32 else expected.abs().max()
    least = 1e-3 * max(g.abs().max() for g in expected_grads)
    found = {"out": float((out.double() - expected).abs().max() / top)}
    for name, got, wanted in zip(NAMES, grads, expected_grads):
        found[name] = float((got.double() - wanted).abs().max() / wanted.abs().max().clamp(min=least))
    return found


def main(which: str) -> None:
    table = SLOW if which == "slow" else [*FLOAT32, *HALF, *LARGE]
    print(json.dumps({f"{case}/{path}": errors(case, path) for case, path in flatten(table)}))


if __name__ == "__main__":
    main(sys.argv[1])
