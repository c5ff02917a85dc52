"""What is asked of a tensor before a kernel takes its address: the kernels themselves believe what they are told.

The operators and the blocks ask friendlier questions before; this is the last door, and the only one to the C++
kernels.
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
    """What a kernel reads: a tensor, and the shape that the kernel goes through."""

    tensor: torch.Tensor
    shape: Sequence[int]


def has_memory(kind: type) -> bool:
    """Whether tensors of a class are memory and no more; FakeTensor, DTensor and other dispatching ones are not."""
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return True
    return getattr(kind, "__torch_dispatch__", None) is torch.Tensor.__torch_dispatch__


def check_memory(
    tensor: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    """Raise a ``RuntimeError`` unless ``tensor`` is a contiguous array of that shape, with memory of its own.

    Of a dtype that is real: the conjugate bit is for complex ones.
    """
    if (
        tensor.dtype is dtype
        and tensor.shape == shape
        and tensor.device == device
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and has_memory(type(tensor))
        and not (tensor.is_neg() or tensor._is_zerotensor())
        and is_inside_its_storage(tensor)
    ):
        return
    raise RuntimeError(
        f"a kernel expected a contiguous array of shape {list(shape)} in {dtype} on {device}, "
        f"got {_described(tensor)}"
    )


def somebody_looks() -> bool:
    """Whether operations are recorded, imitated or transformed, so that a kernel has to be called as an operator.

    Where nobody does, a call without torch's dispatcher saves 10 microseconds.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return torch._C._len_torch_dispatch_stack() > 0


def is_inside_its_storage(tensor: torch.Tensor) -> bool:
    """Storages can be made smaller, to nothing even, without their tensors knowing of it; torch reads on beyond."""
    if tensor.numel() == 0:
        return True
    last = tensor.storage_offset()
    if tensor.is_contiguous():
        last += tensor.numel() - 1
    else:
        last += sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return bool((last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes())


def laid_out(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor, contiguous and in a dtype; a ``RuntimeError`` rather than a copy of what is not its own.

    One that is both already is given back as it is, and `check_memory` looks at it.
    """
    is_right = tensor.dtype is dtype or dtype is None
    if is_right and tensor.is_contiguous() and not (tensor._is_zerotensor() or tensor.is_neg()):
        return tensor
    check_source(tensor)
    if tensor._is_zerotensor():
        tensor = tensor.clone()  # gets it the memory that it does without
    return (tensor if dtype is None else tensor.to(dtype)).resolve_neg().contiguous()


def check_source(tensor: torch.Tensor) -> None:
    """Raise a ``RuntimeError`` if torch itself would read what is not the tensor's own when it copies it."""
    if not (has_memory(type(tensor)) and is_inside_its_storage(tensor)):
        raise RuntimeError(f"a kernel got {_described(tensor)}, which has no memory, or too little of it")


def _described(tensor: torch.Tensor) -> str:
    text = f"a {type(tensor).__name__} of shape {list(tensor.shape)} in {tensor.dtype} on {tensor.device}"
    if tensor.layout is not torch.strided:
        return f"{text}, with layout {tensor.layout}"
    return f"{text}, with strides {list(tensor.stride())}"


def call(
    name: str,
    dtype: torch.dtype,
    arrays: Sequence[Array],
    made: Sequence[torch.Tensor | None],
    sizes: Sequence[int],
    *numbers: float,
) -> None:
    """Run a C++ kernel.

    Args:
        name: without the dtype at its end.
        dtype: of the kernel and of its arrays.
        arrays: what it reads, in the order of its arguments; each is checked first.
        made: what it writes, of the shapes that it writes, just made; None for what is not wanted.
        sizes: as the kernel wants them, at least 1 each.
        numbers: what else it takes, before the number of threads.

    Raises:
        RuntimeError: an array is not what the kernel takes it for.
        MemoryError: the kernel found no memory for what it computes on the way.
    """
    if dtype not in NAMES or min(sizes) < 1:
        raise RuntimeError(f"no kernel {name} for {dtype} and sizes {list(sizes)}")
    for tensor, shape in arrays:
        check_memory(tensor, shape, dtype, CPU)
    for output in made:
        if output is not None and not (output.is_cpu and has_memory(type(output))):  # as some modes make them
            raise RuntimeError(f"a kernel got {_described(output)} to write to")
    library = native.library().handle
    assert library is not None  # the dispatch has looked
    function = getattr(library, f"{name}_{NAMES[dtype]}")
    if function.argtypes is None:
        kinds = (
            (ctypes.c_void_p,) * (len(arrays) + len(made)),
            (ctypes.c_int64,) * len(sizes),
            (ctypes.c_double,) * len(numbers),
        )
        function.argtypes = [kind for part in kinds for kind in part] + [ctypes.c_int]
    threads = torch.get_num_threads()
    pointers = [tensor.data_ptr() for tensor, _ in arrays]
    outputs = [None if output is None else output.data_ptr() for output in made]
    if function(*pointers, *outputs, *sizes, *numbers, threads):
        raise MemoryError(f"no memory for the kernel {name} at sizes {list(sizes)} in {threads} threads")
