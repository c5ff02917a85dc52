"""OpenVINO has removed what YOLOv5 calls: first ``inference_engine`` and the command ``mo``, later ``runtime``."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.upstream.openvino_core import openvino_core
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import dotted, parameters

_LOGGER = logging.getLogger(__name__)

_EXPORT, _BACKEND = "export_openvino", "DetectMultiBackend"
_INFERENCE_ENGINE, _RUNTIME = "openvino.inference_engine", "openvino.runtime"


def _is_gone(name: str) -> bool:
    """Whether OpenVINO is installed but without this part. OpenVINO is not imported, because that takes long."""
    spec = importlib.util.find_spec("openvino")
    part = name.split(".")[-1]
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    return spec is not None and not any(
        Path(folder, part).is_dir() or Path(folder, f"{part}.py").is_file() for folder in folders
    )


# --- export -----------------------------------------------------------------------------------


def _export_needed(module: SourceModule) -> str | None:
    if _calls_mo(module) and _is_gone(_INFERENCE_ENGINE):
        return "this openvino has no inference_engine and no command mo"
    return None


def _calls_mo(module: SourceModule) -> bool:
    export = module.code.part(_EXPORT)
    return export is not None and "file" in parameters(export) and export.imports(_INFERENCE_ENGINE)


def _export_settled(module: SourceModule) -> bool:
    """v6.0 has no such export; upstream's newest calls today's OpenVINO."""
    return module.name == "export" and (not module.code.imports(_INFERENCE_ENGINE) or not _is_gone(_INFERENCE_ENGINE))


def _export_apply(module: SourceModule, patches: Patches) -> None:
    theirs, export = module.module, module.code.part(_EXPORT)
    assert export is not None
    names = parameters(export)
    is_tried = "try_export" in map(dotted, getattr(export.tree, "decorator_list", []))

    def export_openvino(*args: Any, prefix: str = theirs.colorstr("OpenVINO:"), **kwargs: Any) -> Any:
        given = {**dict(zip(names, args)), **kwargs}
        folder = _convert(Path(given["file"]), bool(given.get("half")), _metadata(given))
        return (folder, None) if is_tried else folder

    around = theirs.try_export if is_tried else _with_reason
    patches.set(theirs, _EXPORT, around(export_openvino))


def _metadata(given: dict[str, Any]) -> dict[str, Any]:
    """The metadata, which v7.0 passes as an argument and v6.2 reads from the model."""
    if given.get("metadata"):
        return dict(given["metadata"])
    return {"stride": int(max(given["model"].stride)), "names": given["model"].names}


def _convert(file: Path, half: bool, metadata: dict[str, Any]) -> str:
    import openvino
    import yaml

    folder = Path(str(file).replace(".pt", "_openvino_model"))
    converted = openvino.convert_model(file.with_suffix(".onnx"))
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(converted, folder / file.with_suffix(".xml").name, compress_to_fp16=half)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in metadata.items()}
    text = yaml.safe_dump(plain, sort_keys=False)
    (folder / file.with_suffix(".yaml").name).write_text(text, encoding="utf-8")
    return f"{folder}{os.sep}"


def _with_reason(export: Any) -> Any:
    """Print a failure and let the other formats be written, as v6.1 and v6.2 do."""

    @functools.wraps(export)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return export(*args, **kwargs)
        except Exception as error:
            _LOGGER.info("OpenVINO: export failure: %s", error)
            return None

    return wrapper


OPENVINO_CONVERTER = Quirk(
    name="openvino-converter",
    symptom="OpenVINO: export failure: No module named 'openvino.inference_engine'",
    versions="6.1 to 7.0.14",
    needed=_export_needed,
    settled=_export_settled,
    apply=_export_apply,
)


# --- inference --------------------------------------------------------------------------------


def _parts_used(module: SourceModule) -> list[str]:
    backend = module.code.part(_BACKEND)
    return [part for part in (_RUNTIME, _INFERENCE_ENGINE) if backend is not None and backend.imports(part)]


def _backend_needed(module: SourceModule) -> str | None:
    gone = [part for part in _parts_used(module) if _is_gone(part)]
    return f"this openvino has no {', '.join(gone)}" if gone else None


def _backend_settled(module: SourceModule) -> bool:
    """v6.0 does not know OpenVINO; upstream's newest calls today's."""
    return module.name == "models.common"


def _backend_apply(module: SourceModule, patches: Patches) -> None:
    patches.wrap(getattr(module.module, _BACKEND), "__init__", _with_stand_ins, _parts_used(module))


def _with_stand_ins(init: Callable[..., None], parts: list[str], *args: Any, **kwargs: Any) -> None:
    with _stand_ins(parts):
        init(*args, **kwargs)


@contextlib.contextmanager
def _stand_ins(parts: list[str]) -> Iterator[None]:
    """Make the removed parts importable inside the ``with`` block; they are made on demand, which imports OpenVINO."""
    finder = _Finder([part for part in parts if _is_gone(part)])
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for part in finder.parts:  # the model keeps its reference; nobody else may find the replacement
            sys.modules.pop(part, None)


class _Finder:
    """A meta path finder that is also the loader of the modules that it finds."""

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname not in self.parts:
            return None
        return importlib.util.spec_from_loader(fullname, self)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        import openvino

        if module.__name__ == _RUNTIME:
            vars(module).update(Core=openvino_core, Layout=openvino.Layout, get_batch=openvino.get_batch)
        else:
            vars(module).update(IECore=_Engine, TensorDesc=SimpleNamespace, Blob=_blob)


def _blob(description: Any, array: Any) -> Any:
    return array


class _Engine:
    """The few calls of ``inference_engine`` that v6.1 makes, implemented with today's OpenVINO."""

    def read_network(self, model: Any, weights: Any) -> Any:
        return openvino_core().read_model(model=model, weights=weights)

    def load_network(self, network: Any, device_name: str, num_requests: int) -> Any:
        compiled = openvino_core().compile_model(network, device_name)
        return SimpleNamespace(requests=[_Request(compiled)])


class _Request:
    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._inputs: dict[str, Any] = {}
        self.output_blobs: dict[str, Any] = {}

    def set_blob(self, blob_name: str, blob: Any) -> None:
        self._inputs[blob_name] = blob

    def infer(self) -> None:
        results = self._compiled(self._inputs)
        self.output_blobs = {
            output.get_any_name(): SimpleNamespace(buffer=results[output]) for output in self._compiled.outputs
        }


OPENVINO_RUNTIME = Quirk(
    name="openvino-runtime",
    symptom="detect and val on an OpenVINO folder: No module named 'openvino.runtime'",
    versions="6.1 to 7.0.14",
    needed=_backend_needed,
    settled=_backend_settled,
    apply=_backend_apply,
)
