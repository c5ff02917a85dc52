"""What a converted file says about a model besides its tensors, and how its tensors get into a model built anew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import yolov5_ema
from yolov5_ema.blocks.registry import PREFIX, block_of
from yolov5_ema.errors import CheckpointError
from yolov5_ema.files import sha256_of
from yolov5_ema.texts import listed
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import Ultralytics
from yolov5_ema.weights.inspection import without_secrets

_FORMAT = 1


def common_facts(checkpoint: Any, model: Any, source: Path, engine: Engine, keys: Sequence[str]) -> dict[str, Any]:
    """What is written of a model of any program. ``keys``: those of the checkpoint that say how it was trained."""
    of_training = checkpoint if isinstance(checkpoint, Mapping) else {}
    training = {key: as_json(of_training[key]) for key in keys if of_training.get(key) is not None}
    training.update({key: without_secrets(training[key]) for key in ("opt", "train_args") if key in training})
    names = getattr(model, "names", None)
    names = [[key, str(name)] for key, name in names.items()] if isinstance(names, Mapping) else as_json(names)
    program = "ultralytics" if isinstance(engine, Ultralytics) else "yolov5"
    return {
        "format": _FORMAT,
        "class": type(model).__name__,
        "cfg": plain_cfg(model.yaml, source),
        "names": checked_names(names, model.yaml["nc"], source),
        "stride": [float(stride) for stride in model.stride],
        "training": training,
        "versions": {
            "yolov5-ema": yolov5_ema.__version__,
            "torch": torch.__version__,
            program: engine.version,
        },
        "source": {"name": source.name, "bytes": source.stat().st_size, "sha256": sha256_of(source)},
    }


def as_json(value: Any) -> Any:
    """A value that JSON can hold; anything else becomes text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [as_json(item) for item in value]
    # NumPy's numbers and tensors
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        try:
            return as_json(value.item())
        except (ValueError, RuntimeError, TypeError):
            return str(value)
    if isinstance(value, float) and value != value:
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def plain_cfg(cfg: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """A model's YAML with classes replaced by their names.

    Raises:
        CheckpointError: it cannot be written as JSON and read back unchanged.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, type):
            return f"{PREFIX}{block_of(value)}" if block_of(value) else value.__name__
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    found = plain(cfg)
    try:
        back = json.loads(json.dumps(found))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: its model YAML holds a value that a YAML cannot hold: {error}") from None
    if back != found:
        raise CheckpointError(f"{source}: its model YAML has keys that are not text")
    return back


def fill(model: Any, tensors: Mapping[str, torch.Tensor], source: Path) -> None:
    try:
        model.load_state_dict(dict(tensors), strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:600]
        raise CheckpointError(f"{source}: the tensors do not fit its model YAML: {reason}") from None
    model.requires_grad_(False)


def check_shapes(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], source: Path) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shapes = [
        f"{name} {found[name]} where the cfg has {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    parts = [
        _listed("missing", [name for name in wanted if name not in found]),
        _listed("unexpected", [name for name in found if name not in wanted]),
        _listed("of another shape", shapes),
    ]
    if any(parts):
        fused = " (A fused model has no BatchNorms: convert the checkpoint that it came from.)"
        is_fused = not any(".bn." in name for name in found) and any(".bn." in name for name in wanted)
        raise CheckpointError(
            f"{source}: the tensors do not fit its model YAML: {'; '.join(filter(None, parts))}"
            + (fused if is_fused else "")
        )


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{what}: {listed(names, 5)}" if names else ""


def header_or_defaults(header: Any, cfg: Mapping[str, Any] | None, source: Path) -> dict[str, Any]:
    if header is None and cfg is None:
        raise CheckpointError(
            f"{source} holds tensors but does not describe a model ('yolov5-ema convert' did not write it): pass the "
            "model's YAML with --cfg"
        )
    facts = {
        **{"class": "Model", "names": None, "attributes": {}, "inplace": True, "training": {}, "cfg": None},
        **(header if isinstance(header, dict) else {}),
    }
    if facts.get("format", _FORMAT) != _FORMAT:
        raise CheckpointError(
            f"{source} was written by a later version of yolov5-ema (format {facts['format']!r}): "
            "pip install -U yolov5-ema"
        )
    return facts


def checked_names(names: Any, count: int, source: Path) -> Any:
    if isinstance(names, Mapping):
        names = [[key, name] for key, name in names.items()]
    if names is None:
        return None
    pairs = isinstance(names, list) and all(isinstance(name, list) for name in names)
    fine = isinstance(names, list) and all(
        len(name) == 2 and isinstance(name[0], int) and isinstance(name[1], str) if pairs else isinstance(name, str)
        for name in names
    )
    if not fine or len(names) != count:
        raise CheckpointError(f"{source}: there must be {count} class names (nc), each of them text")
    return names
