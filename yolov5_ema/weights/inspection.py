"""Describes a weights file without unpickling, importing or calling anything from it.

Pickles are read by `inert_pickle`, and safetensors by the library safetensors. A predicate decides which names a
checkpoint may hold: the allow-list of a YOLOv5, or `known_by_module`.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolov5_ema.errors import CheckpointError
from yolov5_ema.weights import checkpoint_files
from yolov5_ema.weights.checkpoint_files import PickleFile
from yolov5_ema.weights.foreign_names import meaning
from yolov5_ema.weights.inert_modules import ModelReport, count_tensor, describe_module, is_module
from yolov5_ema.weights.inert_pickle import Items, Made, Named, class_name, lookup, pairs_of, plain, walk
from yolov5_ema.weights.inert_tensors import TensorNote, args_of, tensor_of
from yolov5_ema.weights.kinds import STATE_DICT_KEYS, is_of_ultralytics
from yolov5_ema.weights.names import (
    GETATTR,
    LAYER,
    OF_YOLOV5,
    SAFE_STEPS,
    ULTRALYTICS_SETTINGS,
    known_by_module,
    taken_by_torch,
)
from yolov5_ema.weights.vocabulary import odd_calls

Allowed = Callable[[str], bool]


@dataclass
class Inspection:
    """The content of a weights file. Read ``warnings`` before you load the file."""

    file: str
    bytes: int
    kind: str
    container: str
    protocol: int | None = None
    keys: list[str] = field(default_factory=list)
    models: list[ModelReport] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, int] | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    globals: dict[str, int] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict that can be written as JSON."""
        return asdict(self)


def inspect_file(path: Path, allowed: Allowed | None = None, blocks: Sequence[str] = ()) -> Inspection:
    """Describe a weights file. Nothing in it is imported, called or built.

    Args:
        path: a checkpoint of any kind, a state dict, a TorchScript archive, or a safetensors file.
        allowed: says whether a checkpoint may hold the class or function with this dotted name, for the program that
            the file is for. None: `known_by_module`.
        blocks: dotted class names of attention blocks in addition to those of this package.

    Raises:
        CheckpointError: the file is missing, a folder, empty, damaged, or not a weights file; the message says which.
    """
    checkpoint_files.check_readable(path)
    if checkpoint_files.is_safetensors(path):
        return _of_safetensors(path)
    opened = checkpoint_files.open_pickles(path)
    found = Inspection(
        file=str(path),
        bytes=path.stat().st_size,
        kind="",
        container=opened.container,
        protocol=opened.root.protocol,
    )
    _judge_names(found, opened, allowed or known_by_module)
    _describe(found, opened, blocks)
    if not found.models and not found.outside and not any(map(tensor_of, walk(opened.root.value))):
        odd = f". Warnings: {'; '.join(found.warnings[:5])}" if found.warnings else ""
        raise CheckpointError(f"{path} is a pickle without modules or tensors, not a checkpoint{odd}")
    return found


# --- names ---------------------------------------------------------------------------------------


def _judge_names(found: Inspection, opened: PickleFile, allowed: Allowed) -> None:
    found.globals = dict(sum((pickle.names for pickle in opened.pickles), Counter()))
    of_script, of_ultralytics = opened.script, is_of_ultralytics(opened)
    calls = [call for pickle in opened.pickles for call in pickle.calls]

    def fine(name: str) -> bool:
        if name == GETATTR and not all(_gets_a_forward(call) for call in calls):
            return False
        return (
            taken_by_torch(name)
            or allowed(name)
            or (of_script and name.startswith(("__torch__.", "torch.jit._pickle.")))
        )

    found.outside = sorted(name for name in found.globals if not fine(name))
    found.warnings += [meaning(name, of_ultralytics) for name in found.outside]
    if not of_script:
        odd = odd_calls(opened.pickles, ULTRALYTICS_SETTINGS if of_ultralytics else ())
        found.warnings += [reason for reason in odd if reason.split(":")[0] not in found.outside]
        odd = sorted({step for pickle in opened.pickles for step in pickle.steps} - SAFE_STEPS)
        if odd:
            found.warnings.append(
                f"pickle opcodes that torch refuses with weights_only=True ({', '.join(odd[:8])}): the file loads only "
                "with --trust-checkpoint"
            )
    found.notes += opened.notes


def _gets_a_forward(call: Made) -> bool:
    """Whether a call is not one of ``getattr``, or reads a layer's forward, as ``getattr(Detect, "forward")`` does."""
    if class_name(call) != GETATTR:
        return True
    cls, name = (*args_of(call), None, None)[:2]
    return isinstance(cls, Named) and LAYER.fullmatch(cls.name) is not None and name == "forward"


# --- kinds of files ------------------------------------------------------------------------------


def _describe(found: Inspection, opened: PickleFile, blocks: Sequence[str]) -> None:
    root = opened.root.value
    found.versions = {**_format_versions(opened), **_recorded_versions(root)}
    if opened.script:
        found.kind = "TorchScript archive"
        found.notes.append(
            "an exported model, not a checkpoint: torch.jit.load runs the code in it; train and convert do not take it"
        )
        found.models.append(_describe_script(opened))
        return
    if is_module(root):
        found.kind = "a bare module, saved whole"
        found.models.append(describe_module("", root, opened, blocks))
        return
    found.keys = [key[:80] for key, _ in pairs_of(root) if isinstance(key, str)][:100]
    for key in ("model", "ema"):
        value = lookup(root, key)
        if is_module(value):
            found.models.append(describe_module(key, value, opened, blocks))
    if found.models:
        _describe_training(found, root)
        found.kind = _kind_of_checkpoint(found)
        return
    _describe_state_dict(found, root)


def _kind_of_checkpoint(found: Inspection) -> str:
    cls = found.models[0].cls
    if OF_YOLOV5.fullmatch(cls):
        return "YOLOv5 checkpoint, " + ("with the training's state" if found.optimizer else "stripped for inference")
    if cls.startswith("ultralytics."):
        task = f" for the task {found.models[0].task}" if found.models[0].task else ""
        state = "with the training's state" if found.optimizer else "stripped for inference"
        found.notes.append(
            f"a model of ultralytics{task}: train, val, detect and export take it as model=FILE; predict, evaluate, "
            "visualize, convert and transfer as they take a YOLOv5 checkpoint"
        )
        return f"checkpoint of the package ultralytics (YOLOv8 and later), {state}"
    return "checkpoint of another project's model"


def _describe_training(found: Inspection, root: Any) -> None:
    for key in ("epoch", "best_fitness", "updates", "date", "opt", "train_args"):
        value = lookup(root, key)
        number = _numpy_number(value)
        shown = plain(value if number is None else number)
        if shown is not None:
            found.training[key] = without_secrets(shown)
    optimizer = lookup(root, "optimizer")
    if optimizer is not None:
        groups = lookup(optimizer, "param_groups")
        found.optimizer = {
            "groups": len(groups.items) if isinstance(groups, Items) else 0,
            "tensors": sum(1 for value in walk(lookup(optimizer, "state")) if tensor_of(value)),
        }


def without_secrets(options: Any) -> Any:
    """The options of a training with access tokens and passwords replaced by "(not shown)"."""
    if not isinstance(options, dict):
        return options
    secret = re.compile(r"token|secret|password|api_key", re.IGNORECASE)
    return {
        key: "(not shown)" if secret.search(str(key)) and value not in (None, "") else value
        for key, value in options.items()
    }


def _numpy_number(value: Any) -> float | None:
    """The value of a NumPy scalar, or of an array with one element, read from its bytes."""
    name, args = class_name(value), args_of(value)
    if name.endswith(".multiarray.scalar") and len(args) == 2:
        return _unpacked(args[0], args[1])
    state = value.state.items if isinstance(value, Made) and isinstance(value.state, Items) else []
    if name.endswith(".multiarray._reconstruct") and len(state) == 5:
        return _unpacked(state[2], state[4])
    return None


def _unpacked(dtype: Any, content: Any) -> float | None:
    code = args_of(dtype)[0] if args_of(dtype) else None
    if class_name(content) == "_codecs.encode" and args_of(content) and isinstance(args_of(content)[0], str):
        content = args_of(content)[0].encode("latin-1", "replace")
    letter = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i"}.get(code) if isinstance(code, str) else None
    if letter is None or not isinstance(content, bytes) or len(content) != struct.calcsize(letter):
        return None
    return float(struct.unpack(f"<{letter}", content)[0])


def _format_versions(opened: PickleFile) -> dict[str, Any]:
    return {name: text for name, text in opened.recorded.items() if not name.startswith("extra/")}


def _recorded_versions(root: Any) -> dict[str, Any]:
    """Versions of the programs that wrote the file; YOLOv5 up to v6.2 recorded none."""
    found = {}
    for key in ("version", "yolov5pip_version", "git", "torch_version"):
        value = plain(lookup(root, key))
        if isinstance(value, (str, dict)):
            found["written_by_version" if key == "version" else key] = value
    return found


def _describe_state_dict(found: Inspection, root: Any) -> None:
    """Describe a dict of tensors at the top of the file, or under one of the usual keys."""
    for key in STATE_DICT_KEYS:
        held = root if not key else lookup(root, key)
        tensors = [tensor for _, value in pairs_of(held) if (tensor := tensor_of(value))]
        if not tensors:
            continue
        report = ModelReport(key, "state dict")
        for tensor in tensors:
            count_tensor(report, tensor, is_parameter=True)
        found.models.append(report)
        found.kind = "state dict" if not key else f"checkpoint with a state dict under {key!r}"
        found.notes.append(
            "tensors without a model: 'convert --cfg MODEL.yaml' with a YAML that fits them makes a checkpoint"
        )
        return
    found.kind = "a pickle, not a known kind of checkpoint"


def _describe_script(opened: PickleFile) -> ModelReport:
    """The modules of a TorchScript archive, by the names of the compiled classes.

    Parameters and buffers cannot be distinguished here.
    """
    report = ModelReport("", f"state dict in {class_name(opened.root.value)}")
    for value in walk(opened.root.value):
        name = class_name(value)
        if name.startswith("__torch__."):
            counts = report.classes.setdefault("compiled", {})
            short = re.sub(r"(\.___torch_mangle_\d+)?\.(\w+)$", r".\2", name)
            counts[short] = counts.get(short, 0) + 1
        else:
            count_tensor(report, tensor_of(value), is_parameter=True)
    return report


# --- safetensors ---------------------------------------------------------------------------------


def _of_safetensors(path: Path) -> Inspection:
    from safetensors import SafetensorError, safe_open

    checkpoint_files.refuse_two_kinds(path)
    report = ModelReport("", "state dict")
    try:
        with safe_open(str(path), framework="numpy") as opened:
            metadata = opened.metadata() or {}
            names = opened.keys()
            for name in names:
                part = opened.get_slice(name)
                dtype, shape = str(part.get_dtype()), part.get_shape()
                count = math.prod(shape)
                count_tensor(report, TensorNote(dtype, tuple(shape), "", 0, (), count), is_parameter=True)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file, or is cut off: {error}") from None
    found = Inspection(
        file=str(path),
        bytes=path.stat().st_size,
        kind="safetensors",
        container="safetensors",
        models=[report],
    )
    found.notes.append("tensors and text only: the file holds no code")
    header = checkpoint_files.header_of(metadata, path)
    if header is not None:
        of_program = ", of a model of ultralytics" if header.get("engine") == "ultralytics" else ""
        found.kind = f"safetensors of 'yolov5-ema convert'{of_program}"
        _take_header(found, report, header)
    found.metadata = {key: text for key, text in metadata.items() if key != checkpoint_files.HEADER}
    return found


def _take_header(found: Inspection, report: ModelReport, header: dict[str, Any]) -> None:
    cfg, names = header.get("cfg"), header.get("names")
    report.cls = f"state dict of a {header.get('class')}"
    report.cfg = cfg if isinstance(cfg, dict) else None
    report.names = names
    report.task = task if isinstance(task := header.get("task"), str) else None
    if isinstance(names, list) and all(isinstance(name, list) and len(name) == 2 for name in names):
        report.names = [name[1] for name in names]
    for place, key in (
        (found.training, "training"),
        (found.versions, "versions"),
        (found.versions, "source"),
    ):
        if isinstance(header.get(key), dict):
            place.update({f"source_{name}" if key == "source" else name: v for name, v in header[key].items()})
