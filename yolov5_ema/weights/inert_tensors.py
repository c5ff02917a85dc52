"""Describes tensors and their storages given as stand-ins of `inert_pickle`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from yolov5_ema.weights.inert_pickle import Items, Made, Named, Stored, class_name

MOST_ELEMENTS = 2**40
MOST_PARTS = 64
REBUILT_TENSOR = re.compile(r"torch\._utils\._rebuild_(q?tensor|tensor_v[23])")
REBUILT_PARAMETER = re.compile(r"torch\._utils\._rebuild_parameter(_with_state)?")
# the dtype of the elements of each kind of storage, and the bytes of one element
_KINDS = {"Double": ("float64", 8), "Float": ("float32", 4), "Half": ("float16", 2), "BFloat16": ("bfloat16", 2)}
_KINDS |= {"Long": ("int64", 8), "Int": ("int32", 4), "Short": ("int16", 2), "Char": ("int8", 1), "Byte": ("uint8", 1)}
_KINDS |= {"Bool": ("bool", 1), "ComplexFloat": ("complex64", 8), "ComplexDouble": ("complex128", 16)}
_KINDS |= {"QInt32": ("unknown", 4), **dict.fromkeys(("Untyped", "QInt8", "QUInt8"), ("unknown", 1))}
_KINDS |= dict.fromkeys(("QUInt4x2", "QUInt2x4"), ("unknown", 1))


class Storage(NamedTuple):
    """The storage of one or more tensors: the dotted name of its class, its key, and its number of elements."""

    cls: str
    key: str
    elements: int

    @property
    def kind(self) -> tuple[str, int]:
        """The dtype of its elements, and the bytes of one; "unknown" and 0 for an unknown class."""
        return _KINDS.get(self.cls.rsplit(".", 1)[-1].removesuffix("Storage"), ("unknown", 0))

    @property
    def bytes(self) -> int:
        """The bytes of all elements."""
        return self.elements * self.kind[1]


def storage_of(value: Any) -> Storage | None:
    """The storage that a reference such as ``("storage", torch.FloatStorage, "0", "cpu", 16)`` names, or None."""
    parts = value.description.items if isinstance(value, Stored) and isinstance(value.description, Items) else []
    if len(parts) < 5 or parts[0] != "storage" or not isinstance(parts[1], Named) or not isinstance(parts[2], str):
        return None
    return Storage(parts[1].name, parts[2], parts[4]) if _is_size(parts[4]) else None


def storages_in(values: Iterable[Any]) -> Iterator[Storage]:
    """The storages that these references name."""
    return filter(None, map(storage_of, values))


class TensorNote(NamedTuple):
    """What a pickle says of a tensor.

    Attributes:
        dtype: name of its dtype.
        shape, stride: in elements.
        key: of its storage.
        offset: of its first element in the storage.
        stored: number of elements in the storage.
    """

    dtype: str
    shape: tuple[int, ...]
    key: str
    offset: int
    stride: tuple[int, ...]
    stored: int

    @property
    def elements(self) -> int:
        """The number of its elements that can differ."""
        return min(math.prod(self.shape), self.stored)

    @property
    def is_within_storage(self) -> bool:
        """Whether all its elements are in its storage."""
        last = self.offset + sum((count - 1) * step for count, step in zip(self.shape, self.stride))
        return 0 in self.shape or last < self.stored


def tensor_of(value: Any) -> TensorNote | None:
    """The tensor that a stand-in represents, or None."""
    # unwrap a parameter around a tensor, or a tensor of a subclass
    for _ in range(4):
        name, args = class_name(value), args_of(value)
        if REBUILT_PARAMETER.fullmatch(name) and args:
            value = args[0]
        elif name == "torch._tensor._rebuild_from_type_v2" and len(args) > 2:
            value = Made(args[0], args[2] if isinstance(args[2], Items) else Items("tuple"), plain=False)
        else:
            break
    note = rebuilt(args) if REBUILT_TENSOR.fullmatch(name) else None
    if note and name.endswith("_v3") and len(args) > 6 and isinstance(args[6], Named):
        return note._replace(dtype=args[6].name.removeprefix("torch."))
    return note


def rebuilt(args: list[Any]) -> TensorNote | None:
    """The tensor that ``_rebuild_tensor_v2(storage, offset, size, stride, …)`` makes; None if it could not make one."""
    storage = storage_of(args[0]) if len(args) >= 4 else None
    if storage is None:
        return None
    shape, stride = sizes_of(args[2]), sizes_of(args[3])
    if shape is None or stride is None or len(shape) != len(stride) or not _is_size(args[1]):
        return None
    return TensorNote(storage.kind[0], shape, storage.key, args[1], stride, storage.elements)


def args_of(value: Any) -> list[Any]:
    """The arguments of a call; empty for anything else."""
    return value.args.items if isinstance(value, Made) else []


def sizes_of(value: Any) -> tuple[int, ...] | None:
    """The items of a tuple or ``torch.Size`` of sizes or strides; None if it is anything else."""
    if class_name(value) == "torch.Size" and len(args_of(value)) == 1:
        value = args_of(value)[0]
    return tuple(value.items) if isinstance(value, Items) and are_sizes(value.items) else None


def are_sizes(parts: list[Any]) -> bool:
    """Whether these are at most `MOST_PARTS` whole numbers from 0 to below `MOST_ELEMENTS`."""
    return len(parts) <= MOST_PARTS and all(map(_is_size, parts))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST_ELEMENTS
