"""Describes tensors and modules given as stand-ins of `inert_pickle`: sizes, classes, blocks, the model YAML."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from yolov5_ema.weights.checkpoint_files import PickleFile
from yolov5_ema.weights.inert_pickle import Items, Made, Named, Stored, class_name, lookup, pairs_of, plain
from yolov5_ema.weights.names import OF_YOLOV5

OUR_BLOCKS = "yolov5_ema.blocks."
_TORCH_TENSOR = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
}
_TORCH_TENSOR |= {"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
_TORCH_TENSOR |= {"ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "unknown"}
_UNPACKED = {
    "float64": "d",
    "float32": "f",
    "float16": "e",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
}
_OF_ANY_ROW = frozenset({"training", "i", "f", "type", "np", "call_super_init", "dump_patches", "inplace"})


@dataclass
class Block:
    """An attention block of a model. ``row`` is -1 if it is not in a row."""

    row: int
    path: str
    cls: str
    options: dict[str, Any]


@dataclass
class ModelReport:
    """One module of a checkpoint, or its state dict."""

    key: str
    cls: str
    parameters: int = 0
    tensors: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    cfg: dict[str, Any] | None = None
    blocks: list[Block] = field(default_factory=list)
    names: Any = None
    strides: list[float] | None = None
    anchors: list[list[float]] | None = None
    hyp: Any = None

    @property
    def is_state_dict(self) -> bool:
        """Whether it holds only tensors, without a distinction between parameters and buffers."""
        return self.cls.startswith("state dict")

    @property
    def layout(self) -> str:
        """The layout of its class names: ``clone``, ``package``, or an empty string for neither."""
        if self.cls.startswith("models."):
            return "clone"
        return "package" if self.cls.startswith("yolov5.models.") else ""


# --- tensors -------------------------------------------------------------------------------------


class TensorNote(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    key: str
    offset: int
    stride: tuple[int, ...]
    stored: int

    @property
    def elements(self) -> int:
        return min(math.prod(self.shape), self.stored)


def tensor_of(value: Any) -> TensorNote | None:
    """The tensor that a stand-in represents, or None."""
    # unwrap a parameter around a tensor, or a tensor of a subclass
    for _ in range(4):
        name, args = class_name(value), args_of(value)
        if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state") and args:
            value = args[0]
        elif name == "torch._tensor._rebuild_from_type_v2" and len(args) > 2:
            value = Made(args[0], args[2] if isinstance(args[2], Items) else Items("tuple"), plain=False)
        else:
            break
    if not re.fullmatch(r"torch\._utils\._rebuild_(q?tensor|tensor_v[23])", name) or len(args) < 4:
        return None
    storage = args[0].description if isinstance(args[0], Stored) else None
    parts = storage.items if isinstance(storage, Items) else []
    if len(parts) < 5 or not isinstance(parts[1], Named):
        return None
    dtype = _TORCH_TENSOR.get(parts[1].name.rsplit(".", 1)[-1].removesuffix("Storage"), "unknown")
    if name.endswith("_v3") and len(args) > 6 and isinstance(args[6], Named):
        dtype = args[6].name.removeprefix("torch.")
    shape, stride = _sizes(args[2]), _sizes(args[3])
    if shape is None or stride is None or not _is_size(args[1]) or not _is_size(parts[4]):
        return None
    return TensorNote(dtype, shape, str(parts[2])[:64] if isinstance(parts[2], str) else "", args[1], stride, parts[4])


def args_of(value: Any) -> list[Any]:
    return value.args.items if isinstance(value, Made) else []


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def _sizes(value: Any) -> tuple[int, ...] | None:
    if class_name(value) == "torch.Size" and args_of(value):
        value = args_of(value)[0]
    if not isinstance(value, Items) or len(value.items) > 32 or not all(_is_size(size) for size in value.items):
        return None
    return tuple(value.items)


def _values(value: Any, opened: PickleFile, most: int = 128) -> list[float] | None:
    """The values of a small contiguous tensor, from its storage; None if they cannot be read."""
    tensor = tensor_of(value)
    code = _UNPACKED.get(tensor.dtype) if tensor else None
    if tensor is None or code is None or not 0 < tensor.elements <= most or math.prod(tensor.shape) != tensor.elements:
        return None
    contiguous = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    if list(tensor.stride) != contiguous or tensor.offset > 4096:
        return None
    size = struct.calcsize(f"<{code}")
    raw = opened.storage(tensor.key, (tensor.offset + tensor.elements) * size)
    if raw is None or len(raw) < (tensor.offset + tensor.elements) * size:
        return None
    order = "<" if opened.little_endian else ">"
    numbers = struct.unpack_from(f"{order}{tensor.elements}{code}", raw, tensor.offset * size)
    return [float(f"{number:.6g}") for number in numbers if math.isfinite(number)]


# --- modules -------------------------------------------------------------------------------------


def _attribute(module: Any, name: str) -> Any:
    """An attribute of an object, from its state: a dict or a tuple of dicts."""
    if not isinstance(module, Made):
        return None
    states = module.state.items if isinstance(module.state, Items) else [module.state]
    found = [lookup(state, name) for state in states[:4]]
    return next((value for value in found if value is not None), None)


def is_module(value: Any) -> bool:
    """Whether a stand-in represents an ``nn.Module``."""
    return isinstance(value, Made) and _attribute(value, "_modules") is not None


def _modules(value: Any) -> Iterator[tuple[str, Any]]:
    """All modules of a model by path; a module with several paths is listed once."""
    seen: set[int] = set()
    waiting = [("", value)]
    while waiting:
        path, module = waiting.pop()
        if not is_module(module) or id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        children = pairs_of(_attribute(module, "_modules"))
        for name, child in reversed(children):
            if isinstance(name, str) and len(path) < 500:
                waiting.append((f"{path}.{name}".lstrip("."), child))


def describe_module(key: str, value: Any, opened: PickleFile, blocks: Sequence[str]) -> ModelReport:
    report = ModelReport(key, class_name(value))
    modules = list(_modules(value))
    held: set[int] = set()
    for path, module in modules:
        _count_class(report, class_name(module))
        block = _block_at(path, module, report.blocks, blocks)
        if block is not None:
            report.blocks.append(block)
        for kind in ("_parameters", "_buffers"):
            for _, tensor in pairs_of(_attribute(module, kind)):
                if id(tensor) not in held:
                    held.add(id(tensor))
                    count_tensor(report, tensor_of(tensor), kind == "_parameters")
    cfg = plain(_attribute(value, "yaml"))
    report.cfg = cfg if isinstance(cfg, dict) else None
    report.names = plain(_attribute(value, "names"))
    report.hyp = plain(_attribute(value, "hyp"))
    report.strides = _values(_attribute(value, "stride"), opened)
    report.anchors = _anchors(modules, opened, report.strides)
    return report


def _count_class(report: ModelReport, name: str) -> None:
    if OF_YOLOV5.fullmatch(name):
        group = "YOLOv5"
    elif name.startswith("torch.nn."):
        group = "torch"
    else:
        group = "yolov5_ema" if name.startswith("yolov5_ema.") else "others"
    short = name.rsplit(".", 1)[-1] if group != "others" else name
    counts = report.classes.setdefault(group, {})
    counts[short] = counts.get(short, 0) + 1


def count_tensor(report: ModelReport, tensor: TensorNote | None, is_parameter: bool) -> None:
    if tensor is None:
        return
    report.tensors += 1
    report.parameters += tensor.elements if is_parameter else 0
    report.dtypes[tensor.dtype] = report.dtypes.get(tensor.dtype, 0) + tensor.elements


def _block_at(path: str, module: Any, before: list[Block], names: Sequence[str]) -> Block | None:
    name = class_name(module)
    if not name.startswith(OUR_BLOCKS) and name not in names:
        return None
    # a part of the previous block
    if before and path.startswith(before[-1].path + "."):
        return None
    row = re.match(r"model\.(\d{1,6})(\.|$)", path)
    options = {}
    for key, value in pairs_of(module.state):
        is_option = isinstance(key, str) and not key.startswith("_") and key not in _OF_ANY_ROW
        if is_option and isinstance(value, (bool, int, float, str)):
            options[key] = plain(value)
    return Block(int(row[1]) if row else -1, path, name, options)


def _anchors(
    modules: list[tuple[str, Any]], opened: PickleFile, strides: list[float] | None
) -> list[list[float]] | None:
    """Anchors in pixels, one list for each level. The buffer holds them in units of each level's stride."""
    for _, module in reversed(modules):
        tensor = lookup(_attribute(module, "_buffers"), "anchors")
        numbers = _values(tensor, opened)
        if numbers and strides and len(numbers) % len(strides) == 0:
            each = len(numbers) // len(strides)
            levels = [numbers[i * each : (i + 1) * each] for i in range(len(strides))]
            return [[float(f"{n * stride:.5g}") for n in level] for level, stride in zip(levels, strides)]
    return None
