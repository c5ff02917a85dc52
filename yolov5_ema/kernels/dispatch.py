"""Chooses the implementation of a block, and says why.

By default this is the fastest one that the device, the dtype and the situation (tracing, export …) allow.
``EMA(…, implementation=…)`` asks for another one. The settings (an environment variable) ask for one in all blocks, and
take precedence over the blocks.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from yolov5_ema.errors import UserError
from yolov5_ema.kernels import native, proof
from yolov5_ema.kernels.memory import NAMES, has_memory, is_intercepted
from yolov5_ema.kernels.numerics import is_symbolic
from yolov5_ema.settings import VARIABLES, read

_log = logging.getLogger("yolov5_ema")

CHOICES = {
    "auto": "the fastest that can run",
    "reference": "the paper's formulas, step by step",
    "exact": "the same function in fewer plain torch operations",
    "cpp": "one C++ kernel, compiled on first use (CPU)",
    "triton": "fused Triton kernels (CUDA)",
}
_KERNEL_DTYPES = {
    "cpp": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    "triton": (torch.float32, torch.float16, torch.bfloat16),
}
# values of a map from which on kernels of blocks without a choice gain time, measured in benchmarks/kernels.py
_LEAST = 1 << 16


class Choice(NamedTuple):
    """The name of an implementation, and why it was chosen."""

    name: str
    reason: str


def check_implementation(block: str, value: object) -> str:
    """``value`` if it is the name of an implementation; otherwise raises a ``ValueError`` that lists the names."""
    if value not in CHOICES:
        raise ValueError(f"{block}: no implementation is called {value!r}; choices: {', '.join(CHOICES)}")
    return str(value)


_forced: list[str] = []


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Context manager that makes all blocks use one implementation, whatever they or the environment ask for.

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
    """The requested implementation: from `forced`, else from the environment, else the one the block was built with.

    Raises:
        UserError: the environment variable does not hold the name of an implementation.
    """
    if _forced:
        return _forced[-1]
    name = read("implementation")
    if not name:
        return implementation
    if name not in CHOICES:
        raise UserError(f"{VARIABLES['implementation']}={name}: no such implementation; choices: {', '.join(CHOICES)}")
    return str(name)


def choose(
    block: str,
    implementation: str,
    device: torch.device | str,
    dtype: torch.dtype,
    offered: Sequence[str] = ("reference", "exact", "cpp", "triton"),
    lacking: str = "",
) -> Choice:
    """Choose the implementation for an input.

    Args:
        block: name of the block, for messages.
        implementation: the implementation that the block was built with.
        device: the input's device; a type alone (cpu, cuda, meta …) means the current device of that type.
        dtype: dtype of the input.
        offered: the implementations that the block has; at least "reference" and "exact".
        lacking: why the kernels do not compute the block with its options; an empty string if they do.

    Raises:
        UserError: a kernel was asked for on the device that it is made for, but cannot run there, or gives wrong
            values.
    """
    asked = asked_for(implementation)
    if asked in ("reference", "exact"):
        return Choice(asked, "asked for")
    moment = needs_plain_operations()
    if moment:
        return Choice("exact", moment)
    device = torch.device(device)
    kernel = proof.KERNEL_OF_DEVICE.get(device.type)
    if kernel not in offered or kernel is None:
        return Choice("exact", f"no kernel for {device.type}")
    obstacle = lacking or _obstacle(kernel, dtype)
    obstacle = obstacle or _fault(block, device, dtype, torch.is_grad_enabled(), asked == kernel)
    if not obstacle:
        return Choice(kernel, "asked for" if asked == kernel else f"the fastest on {device.type}")
    if asked == kernel:
        raise UserError(f"{block}: implementation {kernel!r} cannot run: {obstacle}. Choices: {', '.join(CHOICES)}")
    return Choice("exact", obstacle)


def is_captured(x: torch.Tensor) -> bool:
    """Whether torch records or transforms operations, so that a block must consist of torch's own."""
    return torch.compiler.is_compiling() or is_symbolic(x) or bool(needs_plain_operations()) or is_intercepted()


def takes_kernel(block: str, x: torch.Tensor) -> bool:
    """Whether a block without a choice of its own runs its C++ kernels, which need (N, C, H, W) in float32 or float64.

    For channels_last the answer is no, because plain operations keep that memory format. Unless the kernels are asked
    for, it is also no for small maps, where a call costs more than the passes over the map.

    Raises:
        UserError: as `choose`.
    """
    if is_captured(x) or (x.numel() < _LEAST and asked_for("auto") == "auto"):
        return False
    is_channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    suits = x.dtype in NAMES and x.dim() == 4 and x.numel() > 0 and not is_channels_last and has_memory(type(x))
    offered = ("reference", "exact", "cpp") if suits else ("reference", "exact")
    return choose(block, "auto", x.device, x.dtype, offered).name == "cpp"


def survey(block: str) -> dict[str, Choice]:
    """The implementation that would run on each kind of device in float32; "-" if there is no such device."""
    found = {"cpu": choose(block, "auto", "cpu", torch.float32)}
    if found["cpu"].name == "cpp":
        found["cpu"] = Choice("cpp", f"{found['cpu'].reason}; {native.library().reason}")
    found["cuda"] = Choice("-", "no GPU that torch can use")
    if torch.cuda.is_available():
        found["cuda"] = choose(block, "auto", "cuda", torch.float32)
    return found


def needs_plain_operations() -> str:
    """Why only plain torch operations can be used now (tracing, export …); an empty string if kernels can be used."""
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
    """Why a kernel cannot run on its own device; an empty string if it can."""
    if dtype not in _KERNEL_DTYPES[kernel]:
        return f"{kernel} has no kernel for {dtype}"
    return missing(kernel)


def missing(kernel: str) -> str:
    """Why kernels of this kind (cpp or triton) cannot run on this machine; an empty string if they can."""
    return _look_for(kernel)


def _fault(block: str, device: torch.device, dtype: torch.dtype, with_backward: bool, is_required: bool) -> str:
    """Why a block's kernels cannot be trusted, see `yolov5_ema.kernels.proof`; an empty string if they can."""
    proof.require(block, is_required)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    found = proof.fault(block, proof.FORWARD, device, dtype)
    return found or (proof.fault(block, proof.BACKWARD, device, dtype) if with_backward else "")


# This makes torch.compile call the functions once instead of tracing them. `torch.compiler.assume_constant_result` does
# the same, but imports torch._dynamo, which takes half as long as importing torch itself.
_function: Any
for _function in (missing, _fault):
    _function._dynamo_marked_constant = True


@functools.cache
def _look_for(kernel: str) -> str:
    if kernel == "cpp":
        found = native.library()
        if found.has_failed:
            _log.warning("the C++ kernels are not used in this process, plain torch operations are: %s", found.reason)
        return "" if found.handle is not None else found.reason
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    major, minor = torch.cuda.get_device_capability()
    return "" if major >= 7 else f"triton needs compute capability 7.0, this GPU has {major}.{minor}"
