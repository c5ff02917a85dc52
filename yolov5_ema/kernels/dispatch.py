"""Which implementation of a block runs: one place that decides, and says why.

By itself it takes the fastest that the device, the dtype and the moment allow. ``EMA(…, implementation=…)`` asks
for another one, and the settings (an environment variable) for all blocks, over what they say.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from yolov5_ema.errors import UserError
from yolov5_ema.kernels import native
from yolov5_ema.settings import VARIABLES, read

CHOICES = {
    "auto": "the fastest that can run",
    "reference": "the paper's formulas, step by step",
    "exact": "the same function in fewer plain torch operations",
    "cpp": "one C++ kernel, compiled on first use (CPU)",
    "triton": "fused Triton kernels (CUDA)",
}
_KERNEL_OF_DEVICE = {"cpu": "cpp", "cuda": "triton"}
_KERNEL_DTYPES = {
    "cpp": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    "triton": (torch.float32, torch.float16, torch.bfloat16),
}


class Choice(NamedTuple):
    """An implementation's name, and why it was taken."""

    name: str
    reason: str


def check_implementation(block: str, value: object) -> str:
    """``value`` if it is the name of an implementation, else a ``ValueError`` that lists them."""
    if value not in CHOICES:
        raise ValueError(f"{block}: no implementation is called {value!r}; choices: {', '.join(CHOICES)}")
    return str(value)


_forced: list[str] = []


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Have all blocks use one implementation, whatever they, or the environment, say.

    >>> with forced("reference"):
    ...     choose("EMA", "auto", "cpu", torch.float32).name
    'reference'
    """
    _forced.append(check_implementation("forced", name))
    try:
        yield
    finally:
        _forced.pop()


def asked_for(implementation: str) -> str:
    """What counts: `forced`, then the environment, then what the block was built with.

    Raises:
        UserError: the environment variable holds no implementation's name.
    """
    if _forced:
        return _forced[-1]
    name = read("implementation")
    if not name:
        return implementation
    if name not in CHOICES:
        raise UserError(
            f"{VARIABLES['implementation']}={name}: no such implementation; choices: {', '.join(CHOICES)}"
        )
    return str(name)


def choose(
    block: str,
    implementation: str,
    device: str,
    dtype: torch.dtype,
    offered: Sequence[str] = ("reference", "exact", "cpp", "triton"),
) -> Choice:
    """Decide for an input.

    Args:
        block: its name, for messages.
        implementation: what it was built with.
        device: type of the input's device: cpu, cuda, meta …
        dtype: of the input.
        offered: the implementations that the block has; "reference" and "exact" at least.

    Raises:
        UserError: a kernel was asked for on the device that it is made for, and cannot run there.
    """
    asked = asked_for(implementation)
    if asked in ("reference", "exact"):
        return Choice(asked, "asked for")
    moment = needs_plain_operations()
    if moment:
        return Choice("exact", moment)
    kernel = _KERNEL_OF_DEVICE.get(device)
    if kernel not in offered or kernel is None:
        return Choice("exact", f"no kernel for {device}")
    obstacle = _obstacle(kernel, dtype)
    if not obstacle:
        return Choice(kernel, "asked for" if asked == kernel else f"the fastest on {device}")
    if asked == kernel:
        raise UserError(
            f"{block}: implementation {kernel!r} cannot run: {obstacle}. Choices: {', '.join(CHOICES)}"
        )
    return Choice("exact", obstacle)


def survey(block: str) -> dict[str, Choice]:
    """What would run on each kind of device for float32, as far as it is here; "-" where it isn't."""
    found = {"cpu": choose(block, "auto", "cpu", torch.float32)}
    if found["cpu"].name == "cpp":
        found["cpu"] = Choice("cpp", f"{found['cpu'].reason}; {native.library().reason}")
    found["cuda"] = Choice("-", "no GPU that torch can use")
    if torch.cuda.is_available():
        found["cuda"] = choose(block, "auto", "cuda", torch.float32)
    return found


def needs_plain_operations() -> str:
    """Why the moment allows only operations that others can look into; empty if it doesn't."""
    if torch.jit.is_tracing():
        return "the model is being traced"
    if getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)():
        return "the model is being exported"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms the block"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    return ""


def _obstacle(kernel: str, dtype: torch.dtype) -> str:
    """Why a kernel cannot run on its own device; empty if it can."""
    if dtype not in _KERNEL_DTYPES[kernel]:
        return f"{kernel} has no kernel for {dtype}"
    return _missing(kernel)


def _missing(kernel: str) -> str:
    return _look_for(kernel)


# torch.compile asks once, and does not look into compilers and files. This is all that
# `torch.compiler.assume_constant_result` does, which imports torch._dynamo, half as long again as torch itself.
_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _look_for(kernel: str) -> str:
    if kernel == "cpp":
        found = native.library()
        return "" if found.handle is not None else found.reason
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    major, minor = torch.cuda.get_device_capability()
    return "" if major >= 7 else f"triton needs compute capability 7.0, this GPU has {major}.{minor}"
