"""Compares every kernel with plain operations, in all dtypes, memory layouts and odd shapes, for ``doctor --check``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from yolov5_ema.kernels.dispatch import missing
from yolov5_ema.kernels.proof import KERNELS, Difference, Proved, difference, elsewhere
from yolov5_ema.texts import counted, first_line, listed

# (N, C, H, W): small, thin and wide maps; the last two are too large for kernels that process a whole group of channels
# at once
SHAPES: tuple[tuple[int, ...], ...] = (
    (2, 8, 5, 7),
    (33, 2, 3, 4),
    (1, 6, 1, 9),
    (3, 9, 8, 1),
    (2, 64, 20, 20),
    (1, 20, 37, 41),
    (1, 4, 3, 1030),
    (1, 8, 72, 80),
    (1, 20, 67, 53),
)


def _sliced(tensor: torch.Tensor) -> torch.Tensor:
    """Every other column, and all rows but one, of a larger tensor."""
    larger = F.pad(torch.stack([tensor, tensor], dim=-1).flatten(-2), (0, 0, 1, 0))
    return larger[:, :, 1:, ::2]


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "sliced": _sliced,
}


class Row(NamedTuple):
    """What was found about the kernels of a block in one direction.

    Attributes:
        block: name of the block.
        kernel: cpp or triton.
        kind: forward or backward.
        device: the device, such as cuda:0.
        dtype: dtype of the feature maps, such as float32.
        layout: one of `LAYOUTS`.
        error: the largest error in all shapes, relative to the largest value of the result it is in; None if a kernel
            raised an exception or could not run.
        allowed: the error that rounding explains.
        result: "right", "wrong", "fails" or "not run".
        reason: why, and at which shape (N, C, H, W); empty if all values are right.
    """

    block: str
    kernel: str
    kind: str
    device: str
    dtype: str
    layout: str
    error: float | None
    allowed: float | None
    result: str
    reason: str

    @property
    def is_fault(self) -> bool:
        """Whether a kernel that can run here cannot be trusted."""
        return self.result in ("wrong", "fails")


def check() -> Iterator[Row]:
    """Run all kernels whose device is here; a row is yielded as soon as it is known.

    Kernels of blocks that have not been imported are not known.
    """
    for kernel, device in _places():
        for (block, kind), kernels in KERNELS.items():
            for dtype in kernels[0].dtypes.get(kernel, ()):
                for layout in LAYOUTS:
                    name = str(dtype).removeprefix("torch.")
                    found = elsewhere(_checked, kernel, kernels, device, dtype, layout)
                    yield Row(block, kernel, kind, str(device), name, layout, *found)


def verdict(rows: Sequence[Row]) -> str:
    """One line: how many checks there were, and which of them failed.

    Args:
        rows: all rows of `check`.
    """
    faults = [" ".join(row[:6]) for row in rows if row.is_fault]
    not_run = sum(row.result == "not run" for row in rows)
    start = counted(len(rows), "check") + (f", {not_run:,} of them not run" if not_run else "")
    return f"{start}: {len(faults):,} failed: {listed(faults, most=8)}" if faults else f"{start}: none failed"


def _places() -> Iterator[tuple[str, torch.device]]:
    yield "cpp", torch.device("cpu")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        yield "triton", torch.device("cuda", index)


def _checked(
    kernel: str, kernels: list[Proved], device: torch.device, dtype: torch.dtype, layout: str
) -> tuple[float | None, float | None, str, str]:
    """The last four fields of a `Row`."""
    obstacle = missing(kernel)
    if obstacle:
        return None, None, "not run", obstacle
    worst: tuple[float, Difference, tuple[int, ...]] | None = None
    for one in kernels:
        for shape in SHAPES:
            try:
                found = difference(one, device, dtype, shape, LAYOUTS[layout])
            except Exception as error:
                return None, None, "fails", f"at {shape}: {type(error).__name__}: {first_line(error)}"
            # NaN is larger than any number
            size = found.error if found.error == found.error else float("inf")
            if worst is None or size > worst[0]:
                worst = size, found, shape
    assert worst is not None
    _, found, shape = worst
    return found.error, found.allowed, *(("right", "") if found.is_right else ("wrong", f"at {shape}"))
