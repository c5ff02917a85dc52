"""A checkpoint's model as an ONNX file, written once and kept in the user's cache folder.

The name of the file holds two hashes. The first is of all that decides what is exported: the checkpoint, the source
files of its layers, and the versions of this package, the YOLO and torch. The second is of the file's own content, so a
damaged file is noticed, and written again. A file that another user can have written is not used
(`yolov5_ema.kernels.ownership`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from yolov5_ema import __version__
from yolov5_ema.detecting.protocol import TorchDetector, first_tensor
from yolov5_ema.errors import UserError
from yolov5_ema.files import locked, replacement, sha256_of
from yolov5_ema.kernels.ownership import cache_folder, is_private_file
from yolov5_ema.texts import first_line
from yolov5_ema.upstream.locate import Engine

_OPSET = 17
_MOST_KEPT = 16
_PATIENCE_S = 600.0
# the size of a sample has no effect on the file: all of its sides but the channels are open
_SAMPLE = (1, 3, 256, 192)
# what YOLOv5's releases call the option of the last layer that leaves height and width open
_OPEN_SIDES = {"onnx_dynamic": True, "dynamic": True, "inplace": False}


def key_of(detector: TorchDetector, engine: Engine) -> str:
    """The hash of all that decides what is exported, 20 hexadecimal digits."""
    parts = [sha256_of(detector.file), __version__, engine.kind, engine.version, torch.__version__, str(_OPSET)]
    parts += [sha256_of(file) for file in sorted(_sources_of(detector.module))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def find_exported(key: str) -> Path | None:
    """The file that was exported before under a key, if it is whole."""
    folder = _folder()
    for file in sorted(folder.glob(f"{key}-*.onnx")):
        with contextlib.suppress(OSError, UserError):
            if _is_own(file) and file.name == _name_of(key, sha256_of(file)):
                return file
    return None


def exported(detector: TorchDetector, key: str) -> Path:
    """The model of a checkpoint as an ONNX file: the one in the cache, or a new one.

    Its input is float32 of shape (N, 3, H, W), RGB, 0 to 1, with any N, H and W that the model takes; its output is
    the model's first.

    Args:
        detector: the checkpoint, loaded in float32 on any device.
        key: see `key_of`.

    Raises:
        UserError: the model cannot be exported, or the file cannot be written.
    """
    folder = _folder()
    with locked(folder, f"another process has been exporting to {folder} for {_PATIENCE_S:.0f} s", _PATIENCE_S):
        return find_exported(key) or _written(detector, key, folder)


def beside(key: str, name: str) -> Path:
    """Where something about an export is kept for later processes."""
    return _folder() / f"{key}-{name}"


def write_beside(file: Path, content: bytes) -> None:
    """Write a file of the cache; only this user may write to it, whatever the umask.

    Raises:
        UserError: it cannot be written.
    """
    with replacement(file, sync=False) as draft:
        draft.chmod(0o600)
        draft.write_bytes(content)


def read_beside(file: Path) -> str:
    """The content of a file of `beside`, or an empty text if there is none that only this user can have written."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read_text(encoding="utf-8") if _is_own(file) else ""
    return ""


def _is_own(file: Path) -> bool:
    # where the system does not say who may write, the folder is one of this process alone
    return is_private_file(file) if hasattr(os, "getuid") else file.is_file()


def _folder() -> Path:
    return cache_folder() or Path(_temporary_folder().name)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Used where there is no cache folder; it is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="yolov5-ema-")


def _sources_of(module: torch.nn.Module) -> set[str]:
    """The source files of a model's layers; those of torch go by its version."""
    names = {type(layer).__module__ for layer in module.modules()}
    found = (getattr(sys.modules.get(name), "__file__", None) for name in names if not name.startswith("torch."))
    return {file for file in found if file and os.path.isfile(file)}


def _written(detector: TorchDetector, key: str, folder: Path) -> Path:
    content = _onnx_of(detector.module)
    for damaged in folder.glob(f"{key}-*.onnx"):
        damaged.unlink()
    file = folder / _name_of(key, hashlib.sha256(content).hexdigest())
    write_beside(file, content)
    for old in sorted(folder.glob("*.onnx"), key=os.path.getmtime)[:-_MOST_KEPT]:
        old.unlink()
    return file


def _name_of(key: str, digest: str) -> str:
    return f"{key}-{digest[:20]}.onnx"


def _onnx_of(module: torch.nn.Module) -> bytes:
    # a copy, because tracing leaves its traces in the layers
    model = _FirstOutput(copy.deepcopy(module).cpu()).eval()
    last = model.module.model[-1]  # type: ignore[index]
    for name, value in _OPEN_SIDES.items():
        if hasattr(last, name):
            setattr(last, name, value)
    content: Any = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # about what depends on the shape of the sample; the results are compared before the file is used
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (torch.zeros(_SAMPLE),),
                content,
                opset_version=_OPSET,
                dynamo=False,
                input_names=["images"],
                output_names=["output"],
                dynamic_axes={"images": {0: "batch", 2: "height", 3: "width"}, "output": {0: "batch"}},
            )
    # layers and the exporter raise errors of all kinds
    except Exception as error:
        raise UserError(f"the model cannot be exported to ONNX: {first_line(error)}") from error
    written: bytes = content.getvalue()
    return written


class _FirstOutput(torch.nn.Module):
    """A model of which only the first output is wanted."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return first_tensor(self.module(images))
