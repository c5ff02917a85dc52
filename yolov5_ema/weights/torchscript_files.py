"""Checks a TorchScript file before torch runs any of its code.

A TorchScript file is a program. torch has operators that write a tensor to a file, map one from a file, or start
threads, and it runs some of the code while it loads (``__setstate__``). Its pickle reader in C++ believes the sizes of
tensors in the file without checking the memory behind them. This module reads the archive as torch's own reader does.
The code may use only the operators of `torchscript_operators`. The pickles may create only modules, numbers, and
tensors that lie within the data of the file.

The code is searched, not parsed, so that the check does not depend on parsing it exactly as torch does. The name of an
operator follows a dot (``torch.save``, ``x.save``, ``ops.aten.save``) or is in quotes (``getattr``).
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yolov5_ema.errors import CheckpointError
from yolov5_ema.texts import first_line
from yolov5_ema.weights import archives
from yolov5_ema.weights.archives import Entry
from yolov5_ema.weights.inert_pickle import (
    Followed,
    Items,
    Made,
    MalformedPickle,
    Named,
    Stored,
    class_name,
    follow,
    walk,
)
from yolov5_ema.weights.inert_tensors import args_of, rebuilt, storage_of
from yolov5_ema.weights.names import SAFE_STEPS
from yolov5_ema.weights.torchscript_classes import Attributes, classes_in, odd_objects
from yolov5_ema.weights.torchscript_operators import ALLOWED, FORBIDDEN_WORDS, OF_LIBRARIES, OF_MOBILE

CONFIG = "config.txt"
"""File in the folder ``extra`` of the archive where YOLOv5 and ultralytics put a model's stride and names, as JSON."""

# bytes of all code and pickles together; yolov5x with masks has 2 MiB
_MOST_TEXT = 64 * 2**20
_MOST_ENTRIES = 200_000
# entries that torch.jit.load does not read
_READ_BY_NOTHING = ("traced_inputs", "bytecode", "mobile_debug")
_MEMBER = re.compile(r"(?:\.\s*|[\"'])([A-Za-z_]\w*)")
_CASTS = re.compile(r"unchecked_cast\s*\(\s*([^,()]*)")
_PLAIN_KINDS = frozenset(("Tensor", "int", "float", "bool", "number"))
_DEEPEST = 100
_BRACKETS = re.compile(r"[][(){}]")
_SIGNS = re.compile(r"(?:(?:[-~+]|\bnot\b)\s*){50}")
_WORD = re.compile(r"[A-Za-z_]\w*")
_OPS = re.compile(r"\bops\b(?:\s*\.\s*(\w+)\s*\.\s*(\w+))?")
_ODD_TEXT = re.compile(r"[\\#]|[^\t\n\r\x20-\x7e]|[\"']\s*[\"']")
_CLASS = re.compile(r"__torch__(\.[A-Za-z_]\w*)+")
_STORAGE = re.compile(r"torch\.(Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage")
_LISTS = re.compile(r"torch\.jit\._pickle\.(build_(int|double|bool|tensor)list|restore_type_tag)")
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PLAIN = ("collections.OrderedDict", "torch.device")


def check_torchscript(content: bytes, path: Path) -> None:
    """Raise an error if the code of a TorchScript file does more than the code of an exported detector.

    Args:
        content: the content of the file. Load the model from these bytes, not from the file, which may change.
        path: the file, for messages.

    Raises:
        CheckpointError: names what the code would do, or says why the file is not a TorchScript file.
    """
    try:
        odd = next(_odd(content), None)
    except MalformedPickle as error:
        raise CheckpointError(
            f"{path} is not a TorchScript file, or is cut off: its pickle is incomplete ({error})"
        ) from None
    # torch's reader raises RuntimeError
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a TorchScript file, or is cut off: {first_line(error, 200)}") from None
    if odd is not None:
        raise CheckpointError(
            f"{path}: TorchScript is a program, and this one does what no exported detector needs: {odd}. None of its "
            "code was run. If you know where the file comes from and trust it with your machine, pass "
            "--trust-checkpoint."
        )


def extra_file(content: bytes, name: str) -> bytes:
    """The content of a file in the folder ``extra`` of an archive that has been checked; empty if there is none."""
    reader = _reader(content)
    return reader.get_record(f"extra/{name}") if reader.has_record(f"extra/{name}") else b""


def _reader(content: bytes) -> Any:
    import torch

    return torch._C.PyTorchFileReader(io.BytesIO(content))


def _odd(content: bytes) -> Iterator[str]:
    if not content.startswith(archives.START):
        raise ValueError("it is not a zip archive")
    names = _names(archives.entries_of(io.BytesIO(content)))
    reader = _reader(content)
    if sorted(reader.get_all_records()) != sorted(names):
        raise ValueError("two programs would find different entries in it")
    if "model.json" in names or "data.pkl" not in names or "constants.pkl" not in names:
        raise ValueError("it does not have the entries that torch 1.5 and later write")
    sources = {name: reader.get_record(name).decode("utf-8", "replace") for name in names if name.endswith(".py")}
    for name, code in sources.items():
        yield from _odd_code(code, name)
    classes = _classes(sources)
    for name in names:
        if name.endswith("pkl") and not name.startswith(_READ_BY_NOTHING):
            sizes = {key: size for key, size in names.items() if key.startswith(f"{name[: -len('.pkl')]}/")}
            pickle = follow(reader.get_record(name))
            yield from _odd_pickle(pickle, name, sizes)
            yield from odd_objects(_of_code(pickle), classes, name)


def _classes(sources: dict[str, str]) -> dict[str, Attributes]:
    found: dict[str, Attributes] = {}
    for name, code in sources.items():
        for kind, attributes in classes_in(code, name):
            if kind in found:
                raise ValueError(f"it has two classes named {kind[:100]}")
            found[kind] = attributes
    return found


def _names(entries: Sequence[Entry]) -> dict[str, int]:
    """The entries in the archive's single folder, with their unpacked sizes in bytes."""
    folder = entries[0].name.split("/")[0] + "/" if entries else "/"
    if len(entries) > _MOST_ENTRIES or not all(entry.name.startswith(folder) for entry in entries):
        raise ValueError("its entries are not in one folder")
    read = [entry.size for entry in entries if entry.name.endswith((".py", "pkl"))]
    packed = [entry for entry in entries if entry.packed != entry.size and not entry.name.endswith((".py", "pkl"))]
    if sum(read) > _MOST_TEXT or any(entry.size > _MOST_TEXT for entry in packed):
        raise ValueError(f"its code has more than {_MOST_TEXT // 2**20} MiB")
    return {entry.name[len(folder) :]: entry.size for entry in entries}


# --- code ----------------------------------------------------------------------------------------


def _odd_code(text: str, name: str) -> Iterator[str]:
    odd = _ODD_TEXT.search(text)
    if odd:
        yield f"{name} holds {odd[0]!r}, which could hide a name"
    text = re.sub(OF_MOBILE, "0", text)
    for word in FORBIDDEN_WORDS & set(_WORD.findall(text)):
        yield f"{name} uses the word {word!r}"
    for kind in set(_CASTS.findall(text)) - _PLAIN_KINDS:
        yield f"{name} casts a value to {kind[:100]!r} without a check"
    if _is_deep(text):
        yield f"{name} is nested more than {_DEEPEST} deep"
    for member in set(_MEMBER.findall(text)) & _forbidden():
        yield f"{name} names the operator {member!r}"
    for namespace, operator in _OPS.findall(text):
        if namespace not in ("aten", "prim") and f"{namespace}.{operator}" not in OF_LIBRARIES:
            yield f"{name} names the operator 'ops.{namespace}.{operator}'"


def _is_deep(text: str) -> bool:
    """Whether the code is nested so deeply that torch's recursive parser could overflow its stack.

    The parser calls itself for each bracket and for each sign before a value.
    """
    if _SIGNS.search(text):
        return True
    depth = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "([{" else -1
        if depth > _DEEPEST:
            return True
    return any(len(line) - len(line.lstrip()) > 2 * _DEEPEST for line in text.splitlines())


@functools.cache
def _forbidden() -> frozenset[str]:
    """Names of all operators of the installed torch except the allowed ones."""
    import torch

    schemas = [schema.name for schema in torch._C._jit_get_all_schemas()]
    # ONNX operators can be reached only through 'ops.onnx', which is refused. One of them has the name of a layer of
    # YOLO11: Attention.
    names = (name.split("::")[-1].split(".")[0] for name in schemas if not name.startswith("onnx::"))
    return frozenset(names) - ALLOWED


# --- pickles -------------------------------------------------------------------------------------


def _odd_pickle(pickle: Followed, name: str, sizes: dict[str, int]) -> Iterator[str]:
    """What is wrong with a pickle of the archive.

    torch's reader in C++ would use any value as a function or class, so each of these must be given by its name.
    """
    for step in pickle.steps - SAFE_STEPS:
        yield f"{name} has the opcode {step}"
    for named in pickle.names:
        if not _is_known(named):
            yield f"{name} names {named}"
    if pickle.left:
        yield f"{name} creates objects that it does not keep"
    yield from _odd_calls(pickle, name)
    for value in walk(Items("list", [pickle.value, *pickle.calls, *pickle.instances])):
        if isinstance(value, Made) and not isinstance(value.function, Named):
            yield f"{name} calls something that is not a function"
        if isinstance(value, Stored) and not _is_there(value, name, sizes):
            yield f"{name} has a tensor that is larger than its data in the file"


def _is_known(name: str) -> bool:
    if _CLASS.fullmatch(name):
        return "classes" not in name.split(".") or re.fullmatch(OF_MOBILE, name) is not None
    return name in (_TENSOR, *_PLAIN) or bool(_STORAGE.fullmatch(name) or _LISTS.fullmatch(name))


def _of_code(pickle: Followed) -> list[Made]:
    """The objects that a pickle creates, without those of torch's own classes."""
    return [made for made in pickle.instances if not re.fullmatch(OF_MOBILE, class_name(made))]


def _odd_calls(pickle: Followed, name: str) -> Iterator[str]:
    for made in pickle.instances:
        if not _CLASS.fullmatch(class_name(made)):
            yield f"{name} creates an object of something that is not a class"
    for call in pickle.calls:
        called = class_name(call)
        if not called or _CLASS.fullmatch(called) or _STORAGE.fullmatch(called):
            yield f"{name} calls something that is not a function"
        elif called == _TENSOR and not ((note := rebuilt(args_of(call))) and note.is_within_storage):
            yield f"{name} has a tensor that reaches beyond its storage"


def _is_there(stored: Stored, name: str, sizes: dict[str, int]) -> bool:
    """Whether a reference as ``("storage", torch.FloatStorage, "0", "cpu", 16)`` has all its bytes in the file."""
    storage = storage_of(stored)
    if storage is None or not _STORAGE.fullmatch(storage.cls):
        return False
    return storage.elements == 0 or storage.bytes <= sizes.get(f"{name[: -len('.pkl')]}/{storage.key}", -1)
