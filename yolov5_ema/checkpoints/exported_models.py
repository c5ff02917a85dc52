"""Checks exported models before the library that runs them loads them.

Some formats are data: a graph of operators from a fixed list, and numbers. For these, the metadata with the class
names is checked, and that the model reads no other file. Other formats are programs: loading them runs their code,
and they cannot be checked before. They need ``--trust-checkpoint``, as a checkpoint with code does. TorchScript is a
program too, but its code can be checked, see `yolov5_ema.weights.torchscript_files`.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from yolov5_ema.checkpoints.loading import is_trusted
from yolov5_ema.class_names import fault_of_names
from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.files import open_regular
from yolov5_ema.texts import first_line
from yolov5_ema.weights.onnx_files import check_locations, read_onnx
from yolov5_ema.weights.torchscript_files import CONFIG, check_torchscript, extra_file

# limit for the metadata, in bytes
_MOST_TEXT = 4 * 2**20
_MOST_BYTES = 16 * 2**30
_LARGEST_STRIDE = 1024
# in pixels
_LARGEST_SIDE = 10_000
_NO_VALUE = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)
# keys that ultralytics evaluates as Python literals
_LITERALS = ("names", "imgsz", "kpt_shape", "kpt_names", "args", "end2end")
_jit_load = torch.jit.load


def load_torchscript(
    file: Any, map_location: Any = None, _extra_files: dict[str, Any] | None = None, **_ignored: Any
) -> Any:
    """`torch.jit.load` that first checks that the code does only what a detector needs. It loads the checked bytes.

    Raises:
        CheckpointError: the code does something else, or the class names are invalid.
        UserError: the file cannot be read.
    """
    if is_trusted():
        return _jit_load(file, map_location=map_location, _extra_files=_extra_files)
    is_open = hasattr(file, "read")
    path = Path(str(getattr(file, "name", "an open file") if is_open else file))
    content = file.read() if is_open else _read(path)
    check_torchscript(content, path)
    _check_config(extra_file(content, CONFIG), path)
    try:
        return _jit_load(io.BytesIO(content), map_location=map_location, _extra_files=_extra_files)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be loaded as TorchScript: {first_line(error)}") from error


def check_exported(path: Path, form: str) -> None:
    """Check an exported model before it is loaded. TorchScript is checked by `load_torchscript`.

    Args:
        path: the file, or the folder that an exporter made.
        form: the format by YOLOv5's names: ``onnx``, ``xml`` (OpenVINO), ``engine`` (TensorRT), ``saved_model`` …

    Raises:
        CheckpointError: it is a program, or its metadata or files are not those of an exported detector.
        UserError: the file cannot be read.
    """
    check = _CHECKS.get(form)
    if check is not None and not is_trusted() and path.exists():
        check(path)


def check_names_and_stride(model: Any, path: Path) -> None:
    """Raise a `CheckpointError` if a loaded model has invalid class names (`fault_of_names`) or an invalid stride."""
    if is_trusted():
        return
    names, stride = getattr(model, "names", None), getattr(model, "stride", None)
    fault = fault_of_names(names) if names is not None else None
    if fault:
        raise CheckpointError(f"{path}: {fault}")
    if stride is not None and not _is_stride(stride):
        raise CheckpointError(
            f"{path}: the stride must be a number from 1 to {_LARGEST_STRIDE}, not {str(stride)[:60]!r}"
        )


def form_of(path: Path) -> str | None:
    """The format of an exported model by its name: ``onnx``, ``torchscript`` or ``openvino``; None for any other."""
    name = path.name.lower()
    if "torchscript" in name:
        return "torchscript"
    if name.endswith("_openvino_model") or path.suffix.lower() == ".xml":
        return "openvino"
    return "onnx" if path.suffix.lower() == ".onnx" else None


def metadata_of(path: Path) -> dict[str, Any]:
    """What an exporter of YOLOv5 or ultralytics wrote into a model, or beside it: ``names``, ``stride``, ``task`` …

    Args:
        path: an ONNX file, a TorchScript file, or OpenVINO's folder or ``.xml``.

    Returns:
        The entries; empty if there are none, or for another format. ``names`` is a list.

    Raises:
        CheckpointError: the entries are not those of a detector, or the file is not of its format.
        UserError: the file cannot be read.
    """
    reader = _READERS.get(form_of(path) or "")
    found = reader(path) if reader is not None else {}
    return {**found, "names": _listed(found["names"])} if "names" in found else found


def _listed(names: Any) -> list[str]:
    """Names that `_check_metadata` accepts, in the order of their classes; the keys of JSON are text: ``"10"``."""
    ordered = [names[key] for key in sorted(names, key=int)] if isinstance(names, Mapping) else names
    return [str(name) for name in ordered]


def _metadata_of_onnx(path: Path) -> dict[str, Any]:
    _check_onnx(path)
    found = read_onnx(_read(path), path).metadata
    return {key: _literal(text, key, path) if key in (*_LITERALS, "stride") else text for key, text in found}


def _metadata_of_torchscript(path: Path) -> dict[str, Any]:
    content = _read(path)
    check_torchscript(content, path)
    config = extra_file(content, CONFIG)
    _check_config(config, path)
    return dict(json.loads(config)) if config else {}


def _metadata_of_openvino(path: Path) -> dict[str, Any]:
    _check_openvino(path)
    content: Any = next((read_yaml(file) for file in _yamls_of(path) if file.is_file()), {})
    return content if isinstance(content, dict) else {}


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "onnx": _metadata_of_onnx,
    "torchscript": _metadata_of_torchscript,
    "openvino": _metadata_of_openvino,
}


def read_onnx_network(read: Callable[..., Any]) -> Callable[..., Any]:
    """OpenCV's ``readNetFromONNX`` with a check first: on its own it reads tensors from any file that a model names."""

    def guarded(file: Any, *args: Any, **kwargs: Any) -> Any:
        check_exported(Path(str(file)), "onnx")
        return read(file, *args, **kwargs)

    return guarded


def _is_stride(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool((value > 0).all() and (value <= _LARGEST_STRIDE).all())
    return type(value) is int and 0 < value <= _LARGEST_STRIDE


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > _MOST_BYTES:
                raise CheckpointError(f"{path} is not a model: it has {size:,} bytes, and the limit is {_MOST_BYTES:,}")
            return stream.read(size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except UserError as error:
        raise CheckpointError(str(error)) from None


# --- metadata ------------------------------------------------------------------------------------


def _check_metadata(metadata: Mapping[Any, Any], path: Path) -> None:
    """Check the values that are used. The others are only shown, if at all."""
    names, stride = metadata.get("names"), metadata.get("stride")
    if isinstance(names, Mapping):
        names = {int(key) if re.fullmatch(r"[0-9]{1,6}", str(key)) else key: name for key, name in names.items()}
    fault = fault_of_names(names) if "names" in metadata else None
    fault = fault or ("names is empty" if names in ([], {}, ()) else None)
    if fault:
        raise CheckpointError(f"{path}: its metadata: {fault}")
    unnamed = set(range(len(names))) - set(names) if isinstance(names, Mapping) else ()
    if unnamed:
        raise CheckpointError(f"{path}: its metadata: names: class {min(unnamed)} has no name")
    if "stride" in metadata and not _is_stride(stride):
        shown = str(stride)[:60]
        raise CheckpointError(
            f"{path}: its metadata: stride must be a number from 1 to {_LARGEST_STRIDE}, not {shown!r}"
        )
    if "stride" in metadata and "names" not in metadata:
        raise CheckpointError(f"{path}: its metadata has a stride and no names")
    if "imgsz" in metadata and not _is_size(metadata["imgsz"]):
        raise CheckpointError(
            f"{path}: its metadata: imgsz must be one or two sides of 1 to {_LARGEST_SIDE:,} pixels, not "
            f"{str(metadata['imgsz'])[:60]!r}"
        )
    if not isinstance(metadata.get("args", {}), Mapping):
        raise CheckpointError(f"{path}: its metadata: args must be options by their names")


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, (list, tuple)) else [value]
    return 1 <= len(sides) <= 2 and all(type(side) is int and 0 < side <= _LARGEST_SIDE for side in sides)


def _check_config(config: bytes, path: Path) -> None:
    if not config:
        return
    try:
        content = json.loads(_limited(config).decode())
    except _NO_VALUE as error:
        raise CheckpointError(f"{path}: its metadata {CONFIG} is not JSON ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: its metadata {CONFIG} is not a JSON object")
    _check_metadata(content, path)


def _limited(content: bytes) -> bytes:
    if len(content) > _MOST_TEXT:
        raise ValueError("too long")
    return content


def _literal(text: str, key: str, path: Path) -> Any:
    try:
        return ast.literal_eval(_limited(text.encode()).decode())
    except _NO_VALUE:
        shown = text[:80] + "…" * (len(text) > 80)
        raise CheckpointError(
            f"{path}: the metadata under {key!r} must be a list of names or a number, not {shown!r}. "
            "None of it was run."
        ) from None


# --- forms ---------------------------------------------------------------------------------------


def _check_onnx(path: Path) -> None:
    found = read_onnx(_read(path), path)
    check_locations(found, path)
    for key, text in found.metadata:
        if key in (*_LITERALS, "stride"):
            alone = {"names": ["a"]} if key == "stride" else {}
            value = _literal(text, key, path)
            _check_metadata({**alone, key: value}, path)
    keys = {key for key, _ in found.metadata}
    if "stride" in keys and "names" not in keys:
        raise CheckpointError(f"{path}: its metadata has a stride and no names")


def _check_openvino(path: Path) -> None:
    """Check a graph of OpenVINO. It can only use OpenVINO's own operators: the file cannot load a library of others."""
    folder = path if path.is_dir() else path.parent
    of_model = [*folder.glob("*.xml"), *folder.glob("*.bin")] if path.is_dir() else [path, path.with_suffix(".bin")]
    for file in of_model:
        if file.exists():
            # reading a pipe would block
            open_regular(file).close()
    for file in _yamls_of(path):
        content = read_yaml(file) if file.is_file() else {}
        if isinstance(content, dict):
            _check_metadata(content, file)


def _yamls_of(path: Path) -> list[Path]:
    """Where the metadata of an OpenVINO model may be."""
    if path.is_dir():
        return sorted(path.glob("*.yaml"))
    return [path.with_suffix(".yaml"), path.parent / "metadata.yaml"]


def _check_tflite(path: Path) -> None:
    """Check a TensorFlow Lite model.

    Its own operators only compute. Through ``Flex`` it can run any operator of TensorFlow, and some of these write
    files.
    """
    content = _read(path)
    if b"Flex" in content:
        _refuse_program(path, "TensorFlow Lite model with operators of TensorFlow (Flex)")
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()[:1]
            if not entries or entries[0].file_size > _MOST_TEXT:
                raise ValueError("too long")
            text = archive.read(entries[0]).decode()
    except (*_NO_VALUE, RuntimeError, zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({type(error).__name__})") from None
    metadata = _literal(text, entries[0].filename, path)
    if isinstance(metadata, dict):
        _check_metadata(metadata, path)


def _refuse_program(path: Path, what: str) -> None:
    raise CheckpointError(
        f"{path}: a {what} is a program that runs when it is loaded, and it cannot be checked before. If you know "
        "where it comes from and trust it with your machine, pass --trust-checkpoint; the same model as a .onnx file "
        "does not need it."
    )


def _program(what: str) -> Callable[[Path], None]:
    return lambda path: _refuse_program(path, what)


_CHECKS: dict[str, Callable[[Path], None]] = {
    "onnx": _check_onnx,
    "xml": _check_openvino,
    "tflite": _check_tflite,
    "edgetpu": _check_tflite,
    "engine": _program("TensorRT engine"),
    "saved_model": _program("SavedModel of TensorFlow"),
    "pb": _program("graph of TensorFlow"),
    "paddle": _program("model of PaddlePaddle"),
    "program": _program("model compiled for a device"),
}
