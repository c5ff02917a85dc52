"""Checks tensors before a kernel uses their memory: the kernels themselves check nothing.

The operators and the blocks check their arguments earlier, with better messages. This is the last check, and the only
way to call the C++ kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from yolov5_ema.kernels import native

NAMES = {torch.float32: "float32", torch.float64: "float64"}
CPU = torch.device("cpu")


class ArgumentsError(RuntimeError):
    """The arguments do not fit a kernel: a mistake of the caller, with which plain operations would fail as well."""


Array = tuple[torch.Tensor, Sequence[int]]
"""An input of a kernel: a tensor, and the shape that the kernel expects."""


def has_memory(kind: type) -> bool:
    """Whether tensors of a class are plain memory. FakeTensor, DTensor and other dispatching classes are not."""
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return True
    return getattr(kind, "__torch_dispatch__", None) is torch.Tensor.__torch_dispatch__


def check_memory(tensor: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Raise an `ArgumentsError` unless ``tensor`` is a contiguous array of this shape, dtype and device, with memory.

    The dtype must be real: the conjugate bit of complex tensors is not checked.
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
    raise ArgumentsError(
        f"a kernel expected a contiguous array of shape {list(shape)} in {dtype} on {device}, got {_described(tensor)}"
    )


def is_intercepted() -> bool:
    """Whether torch records, simulates or transforms operations, so that a kernel must be called as an operator.

    Otherwise the kernel is called without torch's dispatcher, which saves 10 microseconds.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return torch._C._len_torch_dispatch_stack() > 0


def is_inside_its_storage(tensor: torch.Tensor) -> bool:
    """Whether all elements of a tensor are in its storage.

    A storage can be resized without its tensors, even to zero bytes; torch would then read beyond it.
    """
    if tensor.numel() == 0:
        return True
    last = tensor.storage_offset()
    if tensor.is_contiguous():
        last += tensor.numel() - 1
    else:
        last += sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return bool((last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes())


def as_contiguous(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor, contiguous and in a dtype. A tensor that is both already is returned unchanged and unchecked.

    Raises:
        ArgumentsError: a copy would read memory outside the tensor's storage.
    """
    is_right = tensor.dtype is dtype or dtype is None
    if is_right and tensor.is_contiguous() and not (tensor._is_zerotensor() or tensor.is_neg()):
        return tensor
    check_source(tensor)
    if tensor._is_zerotensor():
        # a zero tensor has no memory, but its clone has
        tensor = tensor.clone()
    return (tensor if dtype is None else tensor.to(dtype)).resolve_neg().contiguous()


def check_source(tensor: torch.Tensor) -> None:
    """Raise an `ArgumentsError` if torch would read memory outside the tensor's storage when it copies the tensor."""
    if not (has_memory(type(tensor)) and is_inside_its_storage(tensor)):
        raise ArgumentsError(f"a kernel got {_described(tensor)}, which has no memory, or not enough")


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
        name: name of the kernel without the dtype at its end.
        dtype: dtype of the kernel and of its arrays.
        arrays: the inputs, in the order of the kernel's arguments; each is checked first.
        made: the outputs, newly allocated with the shapes that the kernel writes; None for one that is not needed.
        sizes: the kernel's size arguments, at least 1 each.
        numbers: the kernel's further arguments, before the number of threads.

    Raises:
        ArgumentsError: an array does not have the dtype, shape or memory that the kernel expects.
        MemoryError: there is not enough memory for the kernel's intermediate results.
    """
    if dtype not in NAMES or min(sizes) < 1:
        raise ArgumentsError(f"no kernel {name} for {dtype} and sizes {list(sizes)}")
    for tensor, shape in arrays:
        check_memory(tensor, shape, dtype, CPU)
    for output in made:
        # under some modes of torch a new tensor has no memory
        if output is not None and not (output.is_cpu and has_memory(type(output))):
            raise ArgumentsError(f"a kernel got {_described(output)} to write to")
    library = native.library().handle
    # checked by the dispatch
    assert library is not None
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
