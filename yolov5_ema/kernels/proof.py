"""Uses a kernel only where it gives the values of plain torch operations, and goes on with those where it fails.

Before its first use on a device, for a dtype, and for forward or backward, a kernel computes small cases, which are
compared with plain operations in float64. A kernel that gives other values is not used in this process, and one
warning says so. The same happens if an exception comes out of a kernel later; the call that failed is computed by plain
operations. The result of the comparison is kept beside the compiled library, so that it is made once on a machine.

The comparison runs in a thread of its own: modes of torch that are active in the caller (autocast, inference mode, fake
tensors, a compilation …) do not apply there, and random numbers come from a generator of its own. It does not use the
autograd engine, because the caller may be one of that engine's threads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from yolov5_ema.errors import UserError
from yolov5_ema.kernels import native
from yolov5_ema.kernels.memory import ArgumentsError
from yolov5_ema.kernels.ownership import cache_folder, is_private_file
from yolov5_ema.texts import first_line

_log = logging.getLogger("yolov5_ema")

KERNEL_OF_DEVICE = {"cpu": "cpp", "cuda": "triton"}
FORWARD, BACKWARD = KINDS = ("forward", "backward")
_CPP: Mapping[str, Sequence[torch.dtype]] = {"cpp": (torch.float32, torch.float64)}
# (N, C, H, W): the second is too large for the kernels that process a whole group of channels at once
_FIRST_SHAPES = ((2, 8, 5, 7), (1, 8, 72, 80))
_RIGHT = "right"
_LONGEST_FILE = 1 << 20

Draw = Callable[..., torch.Tensor]
"""A function that takes the sizes of a tensor, and returns one with random values in float64.

The values are multiples of 1/16 from -2 to 2, which every dtype holds exactly, and which are often equal.
"""


class Difference(NamedTuple):
    """The largest error of a kernel, relative to the largest value of the result that it is in, and its limit."""

    error: float
    allowed: float

    @property
    def is_right(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.error <= self.allowed


@dataclass(frozen=True, eq=False)
class Proved:
    """A kernel that is called like a function. Where it cannot be trusted, plain operations compute the result.

    Attributes:
        block: name of the block, for messages and `yolov5_ema.kernels.dispatch.choose`.
        kind: "forward" or "backward". A block may have several kernels of a kind.
        run: the kernel. Its first argument is a feature map. For arguments that do not fit it raises an
            `ArgumentsError`; any other exception is a fault of the kernel.
        plain: the same function of the same arguments in plain operations, on any device.
        case: makes arguments for ``run``, in float64 on the CPU, given a `Draw` and a shape (N, C, H, W).
        dtypes: the dtypes of feature maps for each implementation. The other arguments are in float32 or wider.
    """

    block: str
    kind: str
    run: Callable[..., Any]
    plain: Callable[..., Any]
    case: Callable[[Draw, Sequence[int]], Sequence[Any]]
    dtypes: Mapping[str, Sequence[torch.dtype]] = field(default_factory=lambda: _CPP)

    def __post_init__(self) -> None:
        KERNELS.setdefault((self.block, self.kind), []).append(self)

    def __call__(self, *arguments: Any) -> Any:
        """The kernel's result, or that of the plain operations.

        Raises:
            UserError: the kernel was asked for and failed.
            ArgumentsError: the arguments do not fit.
        """
        x = arguments[0]
        if fault(self.block, self.kind, x.device, x.dtype):
            return self._plainly(arguments)
        try:
            return self.run(*arguments)
        except ArgumentsError:
            raise
        except Exception as error:
            return self._after(error, arguments)

    def _after(self, error: Exception, arguments: Sequence[Any]) -> Any:
        device = arguments[0].device
        reason = f"its {self.kind} pass fails{_on(device)}: {type(error).__name__}: {first_line(error)}"
        if _required.get(self.block):
            name = KERNEL_OF_DEVICE[device.type]
            raise UserError(
                f"{self.block}: implementation {name!r} was asked for, but {reason}. With 'auto', plain torch "
                "operations are used instead"
            ) from error
        try:
            result = self._plainly(arguments)
        except Exception:
            # then the kernel is not at fault: there is no memory, or the device has failed
            raise error from None
        _switch_off(self.block, device, reason)
        return result

    def _plainly(self, arguments: Sequence[Any]) -> Any:
        """The result of the plain operations, with the memory layout that a kernel's result has."""
        with torch.autocast(arguments[0].device.type, enabled=False):
            found = self.plain(*arguments)
        if isinstance(found, torch.Tensor):
            return found.contiguous()
        return tuple(tensor.contiguous() for tensor in found)


KERNELS: dict[tuple[str, str], list[Proved]] = {}
"""All kernels by block and kind; each adds itself."""

_Key = tuple[str, str, torch.device, torch.dtype]
# why a kernel is not used; an empty text for one that is right
_faults: dict[_Key, str] = {}
_warned: set[str] = set()
# whether the block that was computed last was to use its kernel or fail
_required: dict[str, bool] = {}
_lock = threading.Lock()


def _forget_the_lock() -> None:
    """In a forked process: the thread that held the lock does not exist there."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_lock)


def require(block: str, is_required: bool) -> None:
    """Say whether the next passes of a block are to fail if its kernel does."""
    _required[block] = is_required


def fault(block: str, kind: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why a block's kernels of a kind cannot be used on a device for a dtype; an empty text if they can.

    The first call compares them with plain operations. While a CUDA graph is captured, which must not wait for the
    device, kernels that have not been compared are not used.
    """
    found = _faults.get((block, kind, device, dtype))
    if found is not None:
        return found
    # kernels refuse other dtypes themselves
    if not any(dtype in _dtypes(kernel, device) for kernel in KERNELS.get((block, kind), ())):
        return ""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "it was not compared with plain operations before a CUDA graph was captured; run the block once before"
    key = (block, kind, device, dtype)
    with _lock:
        if key not in _faults:
            reason = _first_look(*key)
            if reason:
                _warn(block, device, reason)
            _faults[key] = reason
    return _faults[key]


def difference(
    kernel: Proved,
    device: torch.device,
    dtype: torch.dtype,
    shape: Sequence[int],
    laid_out: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous,
) -> Difference:
    """Compare a kernel with plain operations in float64 on the CPU; call it `elsewhere`.

    Args:
        kernel: the kernel.
        device: the device to run it on.
        dtype: dtype of the feature maps.
        shape: their shape, (N, C, H, W).
        laid_out: changes the memory layout of every tensor with four dimensions.

    Raises:
        Exception: whatever the kernel raises.
    """
    generator = torch.Generator().manual_seed(0)
    made = kernel.case(lambda *sizes: _drawn(generator, sizes), shape)
    given = [_each(value, lambda tensor: _cast(tensor, shape, dtype, device, laid_out)) for value in made]
    known = [_each(value, lambda tensor: tensor.cpu().double()) for value in given]
    with torch.no_grad():
        return _compared(kernel.run(*given), kernel.plain(*known), dtype)


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new thread, where none of the caller's modes of torch is active."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def _drawn(generator: torch.Generator, sizes: Sequence[int]) -> torch.Tensor:
    return torch.randint(-32, 33, tuple(sizes), generator=generator, device="cpu").to(torch.float64) / 16


def _each(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """An argument with its tensors changed; it may be a named tuple of tensors and numbers."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple):
        return getattr(type(value), "_make", tuple)(_each(part, change) for part in value)
    return value


def _cast(
    tensor: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    laid_out: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    is_map = tuple(tensor.shape) == tuple(shape)
    tensor = tensor.to(device, dtype if is_map else torch.promote_types(dtype, torch.float32))
    return laid_out(tensor) if tensor.dim() == 4 else tensor


def _compared(found: Any, expected: Any, dtype: torch.dtype) -> Difference:
    pairs = [*zip(_as_tuple(found), _as_tuple(expected))]
    errors = [_error(one.detach().cpu().double(), other) for one, other in pairs if other.numel()]
    if dtype == torch.float64:
        return Difference(_worst(errors), 1e-9)
    return Difference(_worst(errors), max(1e-4, 4 * torch.finfo(dtype).eps))


def _as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-2))


def _worst(errors: list[float]) -> float:
    """The largest error; NaN if there is one."""
    return next((error for error in errors if error != error), max(errors))


# --- verdicts --------------------------------------------------------------------------------


def _first_look(block: str, kind: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why the kernels cannot be used: as another process found, or as is found now."""
    name = f"{block} {kind} {dtype}"
    try:
        place = _Kept.of(device)
        reason = place.read().get(name) if place else None
        if reason is None:
            reason = elsewhere(_examined, block, kind, device, dtype)
            if place:
                place.add(name, reason or _RIGHT)
    except Exception as error:
        # not kept: a compiler may be installed, or memory free, the next time
        return f"its {kind} pass fails{_on(device)}: {type(error).__name__}: {first_line(error)}"
    return "" if reason == _RIGHT else str(reason)


def _examined(block: str, kind: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why the values of a block's kernels are wrong; an empty text if they are right."""
    for kernel in KERNELS.get((block, kind), ()):
        for shape in _FIRST_SHAPES:
            found = difference(kernel, device, dtype, shape)
            if not found.is_right:
                return (
                    f"its {kind} pass gives wrong values{_on(device)} in {str(dtype).removeprefix('torch.')} (off by "
                    f"{found.error:.1e} of the largest value, at most {found.allowed:.0e} is rounding)"
                )
    return ""


def _on(device: torch.device) -> str:
    return f" on {device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else f" on {device}"


def _dtypes(kernel: Proved, device: torch.device) -> Sequence[torch.dtype]:
    return kernel.dtypes.get(KERNEL_OF_DEVICE.get(device.type, ""), ())


def _switch_off(block: str, device: torch.device, reason: str) -> None:
    """Stop using a block's kernels on a device, for all dtypes and kinds."""
    with _lock:
        _warn(block, device, reason)
        for kernels in KERNELS.values():
            for kernel in kernels:
                for dtype in _dtypes(kernel, device) if kernel.block == block else ():
                    _faults[block, kernel.kind, device, dtype] = reason


def _warn(block: str, device: torch.device, reason: str) -> None:
    message = (
        f"{block}: the {KERNEL_OF_DEVICE[device.type]} kernel is not used in this process, plain torch operations are: "
        f"{reason}"
    )
    if message not in _warned:
        _warned.add(message)
        _log.warning("%s", message)


class _Kept(NamedTuple):
    """The file that keeps what was found for a device, beside the compiled library."""

    file: Path
    key: str

    @classmethod
    def of(cls, device: torch.device) -> _Kept | None:
        """None if there is no folder that only this user can write to."""
        folder = cache_folder()
        if folder is None:
            return None
        try:
            key = _fingerprint(device)
        except OSError:
            # the library was built for this process, in a folder that is gone
            return None
        return cls(folder / f"proofs-{key[:20]}.json", key)

    def read(self) -> dict[str, str]:
        """What is known; a file that is damaged, of other kernels, or that others can have written, says nothing."""
        try:
            if not is_private_file(self.file) or self.file.stat().st_size > _LONGEST_FILE:
                return {}
            found = json.loads(self.file.read_bytes())
            if found["key"] != self.key:
                return {}
            return {str(name): reason for name, reason in found["found"].items() if reason and isinstance(reason, str)}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}

    def add(self, name: str, reason: str) -> None:
        """Keep one more result. It is lost if another process writes at the same time, and is then found again."""
        from yolov5_ema.files import replacement

        text = json.dumps({"key": self.key, "found": {**self.read(), name: reason}}, indent=1)
        try:
            with replacement(self.file, sync=False) as draft:
                draft.write_text(text, encoding="utf-8")
                # independent of the umask
                draft.chmod(0o600)
        except UserError as error:
            _log.debug("%s", error)


def _fingerprint(device: torch.device) -> str:
    """A hash of all that a kernel's values depend on: its sources and its library, torch, and the device."""
    from yolov5_ema import __version__

    parts = [repr((__version__, torch.__version__, torch.version.cuda, torch.version.hip)).encode()]
    folder = Path(__file__).parent
    parts += [file.read_bytes() for file in sorted(folder.rglob("*")) if file.suffix in (".py", ".cpp", ".h")]
    if device.type == "cuda":
        import triton

        properties = torch.cuda.get_device_properties(device)
        parts.append(repr((triton.__version__, properties.name, properties.major, properties.minor)).encode())
    else:
        library = native.library().handle
        parts += [native.processor(), Path(library._name).read_bytes() if library else b""]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
