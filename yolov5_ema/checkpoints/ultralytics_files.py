"""Reads the files that the package `ultralytics` unpickles, without running code from them.

Its checkpoints are read by `yolov5_ema.checkpoints.loading`, as YOLOv5's are. Its label caches, which are pickles too,
may use only what real ones need: arrays, text and numbers.
"""

from __future__ import annotations

import errno
import io
import os
import pathlib
import pickle
import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from yolov5_ema.checkpoints.loading import is_trusted, read_checkpoint
from yolov5_ema.files import open_regular
from yolov5_ema.upstream.ultralytics import located
from yolov5_ema.weights.checkpoint_files import read_once
from yolov5_ema.weights.inert_pickle import Followed, Items, Made, MalformedPickle, class_name, follow
from yolov5_ema.weights.inert_tensors import args_of
from yolov5_ema.weights.vocabulary import odd_calls

_CACHE_NAMES = re.compile(r"numpy\.(_?core\.multiarray\.(_reconstruct|scalar)|ndarray|dtype)|_codecs\.encode")
_MOST_CACHE = 2**30
# the pickled state of NumPy's dtype for objects
_OBJECTS = [3, "|", None, None, None, -1, -1, 63]


def load(file: Any, map_location: Any = None, **options: Any) -> Any:
    """`torch.load` for ultralytics: a file that is not trusted is read with an allow-list.

    Raises:
        CheckpointError: the file holds what no checkpoint needs, is cut off, or is not a checkpoint.
        FileNotFoundError: there is no such file; ultralytics has its own message for it.
    """
    if is_trusted():
        return torch.serialization.load(file, map_location=map_location, **options)
    is_open = hasattr(file, "read")
    path = pathlib.Path(str(getattr(file, "name", "an open file") if is_open else file))
    if not is_open and not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    content = io.BytesIO(file.read()) if is_open else read_once(path)
    return read_checkpoint(path, content, map_location, engine=located())


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
