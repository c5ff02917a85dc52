"""Reads the files that the package `ultralytics` unpickles, without running code from them.

Its checkpoints are pickles of whole modules, as YOLOv5's are, and its label caches are pickles too. Both are checked
first. They may use only what real ones need: layers of ultralytics, of torch and of this package, and numbers.
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import pathlib
import pickle
import re
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn
from torch.serialization import safe_globals

from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.checkpoints.loading import check_modules, is_trusted
from yolov5_ema.checkpoints.state import name_options
from yolov5_ema.class_names import fault_of_names
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.files import open_regular
from yolov5_ema.settings import VARIABLES
from yolov5_ema.texts import first_line
from yolov5_ema.weights.checkpoint_files import open_pickles
from yolov5_ema.weights.inert_pickle import Followed, Items, Made, MalformedPickle, class_name, follow
from yolov5_ema.weights.inert_tensors import args_of
from yolov5_ema.weights.names import OF_YOLOV5, taken_by_torch
from yolov5_ema.weights.vocabulary import odd_calls, short_storages

# the name of a layer may begin in lower case: v10Detect
_LAYERS = re.compile(r"ultralytics\.nn\.(modules(\.\w+)?|tasks)\.[A-Za-z]\w*")
_OF_TRAINING = re.compile(r"ultralytics\.utils\.(loss|tal)\.[A-Za-z]\w*")
# torchvision's backbones, in a row TorchVision
_OF_TORCHVISION = re.compile(r"torchvision\.(models|ops)(\.\w+)+\._?[A-Z]\w*")
_KINDS = (_LAYERS, _OF_TRAINING, _OF_TORCHVISION)
_NAMESPACE = "ultralytics.utils.IterableSimpleNamespace"
_CACHE_NAMES = re.compile(r"numpy\.(_?core\.multiarray\.(_reconstruct|scalar)|ndarray|dtype)|_codecs\.encode")
_MOST_CACHE = 2**30
# the pickled state of NumPy's dtype for objects
_OBJECTS = [3, "|", None, None, None, -1, -1, 63]
_torch_load = torch.load


def load(file: Any, map_location: Any = None, **options: Any) -> Any:
    """`torch.load` for ultralytics: a file that is not trusted is read with an allow-list.

    Raises:
        CheckpointError: the file holds what no checkpoint needs, is cut off, or is not a checkpoint.
    """
    if is_trusted():
        return _torch_load(file, map_location=map_location, **options)
    path = pathlib.Path(str(getattr(file, "name", "an open file") if hasattr(file, "read") else file))
    content = io.BytesIO(file.read() if hasattr(file, "read") else _bytes_of(path))
    allowed = _judged(path, content)
    content.seek(0)
    try:
        with safe_globals([(value, name) for name, value in allowed.items()]):
            checkpoint = _torch_load(content, map_location=map_location, weights_only=True)
    except Exception as error:
        # torch and the classes in the file can raise anything for a malformed file
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    check_modules(checkpoint, path)
    _check_names(checkpoint, path)
    name_options(checkpoint)
    return checkpoint


def _bytes_of(path: pathlib.Path) -> bytes:
    try:
        with open_regular(path) as stream:
            return stream.read()
    except FileNotFoundError:
        # ultralytics has its own message for a missing file
        raise
    except (OSError, UserError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _judged(path: pathlib.Path, content: BinaryIO) -> dict[str, Any]:
    """The classes and functions that the file uses, by name.

    Raises:
        CheckpointError: one of them is not allowed, or the file does something that no checkpoint needs.
    """
    opened = open_pickles(path, content)
    names = {name for one in opened.pickles for name in one.names}
    allowed = _allow_list(names)
    unsafe = sorted(name for name in names if name not in allowed and not taken_by_torch(name))
    if unsafe and all(OF_YOLOV5.fullmatch(name) for name in unsafe):
        raise CheckpointError(
            f"{path} is a YOLOv5 checkpoint, which the package ultralytics cannot run: use 'yolov5-ema detect' and the "
            "other commands, or YOLOv5 itself"
        )
    odd = unsafe or odd_calls(_without_namespaces(one) for one in opened.pickles)
    if odd:
        raise CheckpointError(
            f"{path} holds what no checkpoint of ultralytics needs: {'; '.join(odd[:8])}. None of its code was run. If "
            "it is a block of your own, import the module that registers it; if you know where the file comes from "
            f"and trust it with your machine, set {VARIABLES['trust']}=1."
        )
    if short_storages(opened.root, opened.sizes):
        raise CheckpointError(f"{path} is cut off or was changed: a storage is shorter than the file says")
    return allowed


def _without_namespaces(pickle: Followed) -> Followed:
    """The pickle without the calls that create empty namespaces of settings, which are filled later."""
    calls = [call for call in pickle.calls if not (class_name(call) == _NAMESPACE and not args_of(call))]
    return replace(pickle, calls=calls)


def _allow_list(names: set[str]) -> dict[str, Any]:
    """The allowed classes and functions among those that a file names."""
    known = {name: value for value, name in checkpoints.plain_names() if name in names}
    for name in names - known.keys():
        found = _found(name) if any(kind.fullmatch(name) for kind in _KINDS) else None
        if found is not None:
            known[name] = found
    if _NAMESPACE in names:
        known[_NAMESPACE] = importlib.import_module("ultralytics.utils").IterableSimpleNamespace
    return known


def _found(name: str) -> Any:
    """The class of a layer or loss that ultralytics or torchvision defines; None if there is none of this name."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None
    if not inspect.isclass(found) or not found.__module__.startswith(("ultralytics.", "torchvision.")):
        return None
    return found if issubclass(found, nn.Module) or _OF_TRAINING.fullmatch(name) else None


def _check_names(checkpoint: Any, path: pathlib.Path) -> None:
    for value in checkpoint.values() if isinstance(checkpoint, dict) else [checkpoint]:
        names = vars(value).get("names") if isinstance(value, nn.Module) else None
        fault = fault_of_names(names) if names is not None else None
        if fault:
            raise CheckpointError(f"{path}: {fault}")


# --- label caches --------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if not _CACHE_NAMES.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def load_array(file: Any, mmap_mode: Any = None, allow_pickle: bool = False, **options: Any) -> Any:
    """`np.load` that checks a label cache first. An invalid one counts as missing: the labels are read again."""
    if not allow_pickle:
        return np.load(file, mmap_mode, allow_pickle=False, **options)
    with open_regular(file) as stream:
        data = stream.read(_MOST_CACHE)
    try:
        start = _start_of_pickle(data)
        _check_cache(follow(data, start))
        return _Unpickler(io.BytesIO(data[start:])).load()
    except Exception as error:
        raise FileNotFoundError(f"{os.fspath(file)} is not a label cache: {error}") from None


def _start_of_pickle(data: bytes) -> int:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if shape != () or dtype != np.dtype(object):
        raise ValueError("it does not hold one dict")
    return stream.tell()


def _check_cache(pickle: Followed) -> None:
    odd = [name for name in pickle.names if not _CACHE_NAMES.fullmatch(name)]
    calls = [call for call in pickle.calls if not _is_array_of_objects(call)]
    odd = odd or odd_calls([replace(pickle, calls=calls)])
    if odd:
        raise MalformedPickle(odd[0], {})


def _is_array_of_objects(call: Made) -> bool:
    """The dtype of the one array that holds the dict."""
    state = call.state.items if isinstance(call.state, Items) else []
    return class_name(call) == "numpy.dtype" and args_of(call)[:1] == ["O8"] and state == _OBJECTS
