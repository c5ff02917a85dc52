"""What is asked of a tensor before a kernel takes its address: the kernels themselves believe what they are told.

The operators and the blocks ask friendlier questions before; this is the last door, and the only one to the C++ kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch

from yolov5_ema.kernels import native

NAMES = {torch.float32: "float32", torch.float64: "float64"}
CPU = torch.device("cpu")


class Array(NamedTuple):
    """A kernel's argument: a tensor, the shape that the kernel goes through, and the dtype if not the kernel's."""

    tensor: torch.Tensor
    shape: Sequence[int]
    dtype: torch.dtype | None = None


def has_memory(kind: type) -> bool:
    """Whether tensors of a class are memory and no more; FakeTensor, DTensor and other dispatching ones are not."""
    return getattr(kind, "__torch_dispatch__", None) is torch.Tensor.__torch_dispatch__


def check_memory(
    tensor: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    """Raise a ``RuntimeError`` unless ``tensor`` is a contiguous array of that shape, with memory of its own."""
    if (
        tensor.shape == shape
        and tensor.dtype is dtype
        and tensor.device == device
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and has_memory(type(tensor))
        and not (tensor.is_neg() or tensor.is_conj() or tensor._is_zerotensor())
        and is_inside_its_storage(tensor)
    ):
        return
    raise RuntimeError(
        f"a kernel expected a contiguous array of shape {list(shape)} in {dtype} on {device}, "
        f"got {_described(tensor)}"
    )


def is_inside_its_storage(tensor: torch.Tensor) -> bool:
    """Storages can be made smaller, to nothing even, without their tensors knowing of it; torch reads on beyond."""
    if tensor.numel() == 0:
        return True
    last = tensor.storage_offset()
    if tensor.is_contiguous():
        last += tensor.numel() - 1
    else:
        last += sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return (last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes()


def laid_out(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor, contiguous and in a dtype; a ``RuntimeError`` rather than a copy of what is not its own."""
    if not is_inside_its_storage(tensor):
        raise RuntimeError(f"the storage of {_described(tensor)} is too small for it")
    return (tensor if dtype is None else tensor.to(dtype)).contiguous()


def _described(tensor: torch.Tensor) -> str:
    text = f"a {type(tensor).__name__} of shape {list(tensor.shape)} in {tensor.dtype} on {tensor.device}"
    if tensor.layout is not torch.strided:
        return f"{text}, with layout {tensor.layout}"
    return f"{text}, with strides {list(tensor.stride())}"


def call(
    name: str,
    dtype: torch.dtype,
    arrays: Sequence[Array | None],
    sizes: Sequence[int],
    *numbers: float,
) -> None:
    """Run a C++ kernel.

    Args:
        name: without the dtype at its end.
        dtype: of the kernel, and of the arrays that do not say another.
        arrays: in the order of the kernel's arguments, None for one that is not wanted; each is checked first.
        sizes: as the kernel wants them, at least 1 each.
        numbers: what else it takes, before the number of threads.

    Raises:
        RuntimeError: an array is not what the kernel takes it for.
        MemoryError: the kernel found no memory for what it computes on the way.
    """
    if dtype not in NAMES or min(sizes) < 1:
        raise RuntimeError(f"no kernel {name} for {dtype} and sizes {list(sizes)}")
    for array in arrays:
        if array is not None:
            check_memory(array.tensor, array.shape, array.dtype or dtype, CPU)
    library = native.library().handle
    assert library is not None  # the dispatch has looked
    function = getattr(library, f"{name}_{NAMES[dtype]}")
    threads = torch.get_num_threads()
    if function(
        *(ctypes.c_void_p(None if array is None else array.tensor.data_ptr()) for array in arrays),
        *(ctypes.c_int64(size) for size in sizes),
        *(ctypes.c_double(number) for number in numbers),
        ctypes.c_int(threads),
    ):
        raise MemoryError(f"no memory for the kernel {name} at sizes {list(sizes)} in {threads} threads")
