"""Describes tensors and modules given as stand-ins of `inert_pickle`: sizes, classes, blocks, the model YAML."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolov5_ema.weights.checkpoint_files import PickleFile
from yolov5_ema.weights.inert_pickle import Items, Made, class_name, lookup, pairs_of, plain
from yolov5_ema.weights.inert_tensors import TensorNote, tensor_of
from yolov5_ema.weights.names import OF_YOLOV5, TASKS

OUR_BLOCKS = "yolov5_ema.blocks."
_HOLDS_A_BLOCK = "yolov5_ema.blocks.inside.Attended"
# the code of `struct` for each dtype whose values are read
_CODES = {"float64": "d", "float32": "f", "float16": "e", "int64": "q", "int32": "i", "int16": "h", "int8": "b"}
_MOST_VALUES = 128
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
    task: str | None = None

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


def _values(value: Any, opened: PickleFile) -> list[float] | None:
    """The values of a small contiguous tensor, from its storage; None if they cannot be read."""
    tensor = tensor_of(value)
    if tensor is None or tensor.dtype not in _CODES or not 0 < tensor.elements <= _MOST_VALUES:
        return None
    contiguous = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    if math.prod(tensor.shape) != tensor.elements or list(tensor.stride) != contiguous or tensor.offset > 4096:
        return None
    packed = struct.Struct(f"{'<' if opened.little_endian else '>'}{tensor.elements}{_CODES[tensor.dtype]}")
    start = tensor.offset * packed.size // tensor.elements
    raw = opened.storage(tensor.key, start + packed.size)
    if raw is None or len(raw) < start + packed.size:
        return None
    numbers = packed.unpack_from(raw, start)
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
    report.task = _task(value)
    report.strides = _values(_attribute(value, "stride"), opened)
    report.anchors = _anchors(modules, opened, report.strides)
    return report


def _task(value: Any) -> str | None:
    """The task that a model of ultralytics is for, as it says itself, or by the class of its last row."""
    said = _attribute(value, "task")
    if not class_name(value).startswith("ultralytics.") or said in TASKS:
        return said if isinstance(said, str) else None
    last = class_name((pairs_of(_attribute(_child(value, "model"), "_modules")) or [(None, None)])[-1][1])
    words = {"Classify": "classify", "Segment": "segment", "Pose": "pose", "OBB": "obb", "Decoder": "detect"}
    return next((task for word, task in {**words, "Detect": "detect"}.items() if word in last), None)


def _child(module: Any, name: str) -> Any:
    return lookup(_attribute(module, "_modules"), name)


def _count_class(report: ModelReport, name: str) -> None:
    if OF_YOLOV5.fullmatch(name):
        group = "YOLOv5"
    elif name.startswith("ultralytics.nn."):
        group = "ultralytics"
    elif name.startswith("torch.nn."):
        group = "torch"
    elif name.startswith("timm."):
        group = "timm"
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
    if (not name.startswith(OUR_BLOCKS) and name not in names) or name == _HOLDS_A_BLOCK:
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
