"""Guards for the package `ultralytics`: the calls that can run code from a file are wrapped while the adapter is on."""

from __future__ import annotations

import importlib
import os
import pickle
import reprlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import torch

from yolov5_ema.checkpoints import ultralytics_files
from yolov5_ema.checkpoints.exported_models import (
    check_exported,
    check_names_and_stride,
    load_torchscript,
    read_onnx_network,
)
from yolov5_ema.errors import CheckpointError, ConfigError
from yolov5_ema.upstream.patching import ModuleView, Patches

_NAME = "ultralytics"
_WITH_TORCHSCRIPT = ("nn.backends.pytorch", "nn.autobackend")
_WITH_OPENCV = ("nn.backends.onnx", "nn.autobackend")
# endings of file and folder names, and the export format in YOLOv5's terms; other formats are checked by other guards
_FORMS = {
    ".onnx": "onnx",
    "_openvino_model": "xml",
    ".xml": "xml",
    ".engine": "engine",
    "_saved_model": "saved_model",
    ".pb": "pb",
    ".tflite": "tflite",
    "_paddle_model": "paddle",
    "_imx_model": "onnx",
    "_xilinx_model": "onnx",
    **dict.fromkeys(
        ("_executorch_model", "_axelera_model", "_deepx_model", "_hailo_model", "_ascend_model"), "program"
    ),
    **dict.fromkeys((".rknn", ".aimodel", "_qnn.onnx"), "program"),
}


def _guard_checkpoints(patches: Patches) -> None:
    own = _module("utils.patches")
    patches.view(own, "torch", load=ultralytics_files.load)
    if hasattr(own, "_torch_load"):
        # up to 8.3.100 torch.load is replaced in the whole process by a function that calls this one
        patches.wrap(own, "_torch_load", _checked_load)
    tasks = _module("nn.tasks")
    if hasattr(tasks, "_SafeLoad"):
        patches.set(tasks._SafeLoad, "loading", _restricted(tasks._SafeLoad))


def _guard_label_caches(patches: Patches) -> None:
    patches.view(_module("data.utils"), "np", load=ultralytics_files.load_array)


def _guard_downloads(patches: Patches) -> None:
    data = _module("data.utils")
    patches.set(data, "exec", _refuse_code)
    patches.view(data, "subprocess", run=_own_script_only)
    # up to 8.3.100
    patches.view(data, "os", system=lambda command: _own_script_only(shlex.split(command)).returncode)
    patches.wrap(data, "safe_download", _asked_for)
    # releases up to 8.3 end with the error of the network where a file does not exist
    patches.wrap(_module("utils.downloads"), "get_github_assets", _none_offline)


def _guard_exported_models(patches: Patches) -> None:
    for name in _WITH_TORCHSCRIPT:
        module = _module_with(name, "torch")
        if module is not None:
            patches.view(module, "torch", jit=ModuleView(torch.jit, load=load_torchscript))
    for name in _WITH_OPENCV:
        module = _module_with(name, "cv2")
        if module is not None:
            patches.view(module, "cv2", dnn=ModuleView(cv2.dnn, readNetFromONNX=_read_onnx))
    patches.wrap(_module("nn.autobackend").AutoBackend, "__init__", _checked)


GUARDS: dict[str, Callable[[Patches], None]] = {
    "checkpoints": _guard_checkpoints,
    "label-caches": _guard_label_caches,
    "downloads": _guard_downloads,
    "exported-models": _guard_exported_models,
}
"""The guards by their names. Each wraps those of the calls that the installed release of ultralytics has."""


def apply(patches: Patches) -> None:
    """Switch all guards on."""
    for guard in GUARDS.values():
        guard(patches)


_read_onnx = read_onnx_network(cv2.dnn.readNetFromONNX)


def _checked_load(load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``torch.load``: of files that ultralytics itself reads, with our checks; other callers are not concerned."""
    caller = sys._getframe(3).f_globals.get("__name__", "")
    return (ultralytics_files.load if caller.split(".")[0] == _NAME else load)(*args, **kwargs)


def _restricted(safe_load: Any) -> Callable[[Any], AbstractContextManager[None]]:
    """ultralytics' restricted mode for reading a file: models are built without ``eval``.

    Its own list of allowed names, which has no room for our blocks and stays for the process, is not needed: the file
    is read by `ultralytics_files.load`.
    """

    @contextmanager
    def loading(weight: Any) -> Iterator[None]:
        safe_load._local.active = True
        try:
            yield
        finally:
            safe_load._local.active = False

    return staticmethod(loading)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{_NAME}.{name}")


def _module_with(name: str, attribute: str) -> ModuleType | None:
    try:
        module = _module(name)
    except ImportError:  # another release, or one of its optional libraries is not installed
        return None
    return module if hasattr(module, attribute) else None


def _is_of_the_package(file: Any) -> bool:
    root = Path(str(_module("utils").ROOT)).resolve()
    return root in Path(str(file)).resolve().parents


def _refuse_code(source: Any, scope: dict[str, Any] | None = None, *_: Any) -> None:
    """A replacement for ``exec``: runs only the ``download`` code of data YAMLs that the package ships."""
    file = ((scope or {}).get("yaml") or {}).get("yaml_file", "")
    if file and _is_of_the_package(file):
        exec(source, scope)
        return
    raise ConfigError(
        f"{file or 'the data YAML'}: 'download' is code to run, {reprlib.repr(source)}. Such code is run only for "
        "ultralytics' own YAMLs. Nothing was run: fetch the data yourself if you trust its source."
    )


def _asked_for(download: Callable[..., Any], url: Any, *args: Any, **kwargs: Any) -> Any:
    """``safe_download``, for addresses that the user or one of the package's own YAMLs names."""
    data = sys._getframe(2).f_locals.get("data")  # of the function that asks
    named = data if isinstance(data, dict) else {}
    if str(url) == str(named.get("download")) and not _is_of_the_package(named.get("yaml_file", "")):
        raise ConfigError(
            f"{named.get('yaml_file')}: 'download' names {reprlib.repr(str(url))}. Downloads are made only for "
            "ultralytics' own YAMLs. Nothing was fetched: fetch the data yourself if you trust its source."
        )
    if Path(str(url)).suffix.lower() in (".yaml", ".yml"):
        raise ConfigError(f"{url} is an archive as well as a YAML; it was not unpacked")
    return download(url, *args, **kwargs)


def _none_offline(assets: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``get_github_assets``: the tag of a release and its files; none if GitHub cannot be reached."""
    try:
        return assets(*args, **kwargs)
    # all errors of requests are of this kind
    except OSError:
        return "", []


def _own_script_only(command: Any, *args: Any, **kwargs: Any) -> Any:
    """A replacement for ``subprocess.run``: runs only the scripts that the package ships."""
    if isinstance(command, list) and len(command) == 2 and command[0] == "bash" and _is_of_the_package(command[1]):
        return subprocess.run(command, *args, **kwargs)
    raise ConfigError(
        f"a data YAML: 'download' is a command to run, {reprlib.repr(command)}. Nothing was run: fetch the data "
        "yourself if you trust its source."
    )


def _checked(init: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    # the parameter is called model; up to 8.3 it was weights
    given = args[0] if args else kwargs.get("model", kwargs.get("weights"))
    file = given[0] if isinstance(given, (list, tuple)) and given else given
    if isinstance(file, (str, os.PathLike)):
        check_form(Path(file))
    init(self, *args, **kwargs)
    if isinstance(file, (str, os.PathLike)):
        check_names_and_stride(self, Path(file))


def check_form(file: Path) -> None:
    """Check an exported model as every format that its name could stand for."""
    name = file.name.lower()
    for ending, form in _FORMS.items():
        if ending in name:
            place = next(iter(sorted(file.glob("*.onnx"))), file) if form == "onnx" and file.is_dir() else file
            check_exported(place, form)


def load_own_state(file: Any, **options: Any) -> Any:
    """Load the trainer that ultralytics has just written for its own processes of a training on several GPUs.

    Raises:
        CheckpointError: the file is not next to the script that ultralytics wrote for these processes.
    """
    place, script = Path(str(file)).resolve(), Path(str(getattr(sys.modules["__main__"], "__file__", "")))
    if script.resolve().with_suffix(".pt") != place:
        raise CheckpointError(f"{file} is not the state of a training on several GPUs")
    options["weights_only"] = False
    try:
        return torch.load(place, **options)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
