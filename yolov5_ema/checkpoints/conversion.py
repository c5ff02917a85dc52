"""Converts a checkpoint to safetensors and a model YAML, and back.

The safetensors file alone is enough to convert back: its header holds everything besides the tensors. The YAML is for
people to read, and can be passed as ``--cfg``. A checkpoint is converted only if a model built from its YAML accepts
all the tensors and then computes the same output, bit for bit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import yolov5_ema
from yolov5_ema.blocks.registry import PREFIX, block_of
from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.graph import Graph
from yolov5_ema.cfgs.rows import with_options_by_name
from yolov5_ema.checkpoints.loading import load_checkpoint, save_checkpoint
from yolov5_ema.checkpoints.models import (
    MODEL_CLASSES,
    as_yolov5_builds,
    check_head,
    class_for,
    class_of_cfg,
    model_of,
    stripped,
)
from yolov5_ema.checkpoints.state_dicts import own_memory, read_tensors
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.files import refuse_present, sha256_of, whole_files
from yolov5_ema.texts import first_line, listed
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.weights.checkpoint_files import HEADER
from yolov5_ema.weights.inspection import without_secrets

_FORMAT = 1
_TRAINING = ("epoch", "best_fitness", "date", "updates", "opt", "git", "yolov5pip_version")


def to_safetensors(source: Path, target: Path, cfg: Path, *, engine: Engine, force: bool = False) -> dict[str, Any]:
    """Write a checkpoint's model as safetensors and a model YAML.

    The model is the one that YOLOv5 runs: ``ema`` if there is one, else ``model``. Dtypes stay as they are.

    Args:
        source: the checkpoint.
        target: the ``.safetensors`` to write.
        cfg: the ``.yaml`` to write.
        engine: the YOLOv5 in use, with the shim installed.
        force: replace existing files.

    Returns:
        The content of the safetensors header besides the tensors.

    Raises:
        CheckpointError: the checkpoint cannot be read, has no model with a YAML, or its YAML does not build the model.
        UserError: a file exists already, or cannot be written.
    """
    from safetensors.torch import save

    refuse_present([target, cfg], force)
    checkpoint = load_checkpoint(source, "cpu", engine=engine, without_model=True)
    with as_yolov5_builds(source):
        model = model_of(checkpoint, source)
        facts = _facts(checkpoint, model, source, engine)
        tensors = own_memory(model.state_dict())
        _check_same(model, _built(facts, tensors, source, engine), source)
        graph = Graph.from_cfg(_cfg_of_this_model(model, engine), str(source))
        text = graph.to_text(_yaml_header(source, target, facts))
        content = save(tensors, {"format": "pt", HEADER: json.dumps(facts)})
    with whole_files([target, cfg]) as (draft, cfg_draft):
        draft.write_bytes(content)
        cfg_draft.write_bytes(text.encode())
    return facts


def to_checkpoint(
    source: Path, target: Path, *, engine: Engine, cfg: Mapping[str, Any] | None = None, force: bool = False
) -> dict[str, Any]:
    """Write safetensors as a checkpoint that YOLOv5 can load, in the form that its own ``strip_optimizer`` writes.

    Args:
        source: a file of `to_safetensors`. With ``cfg`` also a state dict, in safetensors or saved by torch, or a bare
            model.
        target: the ``.pt`` to write.
        engine: the YOLOv5 in use, with the shim installed.
        cfg: the content of a model YAML, used instead of the one in the header.
        force: replace an existing file.

    Returns:
        The header that the checkpoint was made from.

    Raises:
        CheckpointError: the file cannot be read, does not describe a model, or its tensors do not fit the cfg. The
            message names tensors that are missing, unexpected or of another shape.
        ConfigError: the cfg is invalid.
        UserError: the target exists already, or cannot be written.
    """
    refuse_present([target], force)
    tensors, header = read_tensors(source, engine)
    with as_yolov5_builds(source):
        facts = _facts_from(header, cfg, source)
        model = _built(facts, tensors, source, engine)
    checkpoint = stripped(model, facts["training"])
    with whole_files([target]) as (draft,), draft.open("wb") as stream:
        save_checkpoint(checkpoint, stream, engine=engine)
    return facts


# --- what a checkpoint says ----------------------------------------------------------------------


def _facts(checkpoint: Any, model: Any, source: Path, engine: Engine) -> dict[str, Any]:
    of_training = checkpoint if isinstance(checkpoint, Mapping) else {}
    training = {key: _json(of_training[key]) for key in _TRAINING if of_training.get(key) is not None}
    if "opt" in training:
        training["opt"] = without_secrets(training["opt"])
    names = getattr(model, "names", None)
    names = [[key, str(name)] for key, name in names.items()] if isinstance(names, Mapping) else _json(names)
    return {
        "format": _FORMAT,
        "class": type(model).__name__,
        "cfg": _plain_cfg(model.yaml, source),
        "names": _checked_names(names, model.yaml["nc"], source),
        "stride": [float(stride) for stride in model.stride],
        "attributes": {key: _json(getattr(model, key)) for key in ("nc", "hyp", "yaml_file") if hasattr(model, key)},
        "inplace": bool(getattr(model, "inplace", True)),
        "training": training,
        "versions": {
            "yolov5-ema": yolov5_ema.__version__,
            "torch": torch.__version__,
            "yolov5": engine.version,
        },
        "source": {"name": source.name, "bytes": source.stat().st_size, "sha256": sha256_of(source)},
    }


def _json(value: Any) -> Any:
    """A value that JSON can hold; anything else becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_json(item) for item in value]
    # NumPy's numbers and tensors
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        try:
            return _json(value.item())
        except (ValueError, RuntimeError, TypeError):
            return str(value)
    if isinstance(value, float) and value != value:
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _plain_cfg(cfg: Mapping[str, Any], source: Path) -> dict[str, Any]:
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


def _cfg_of_this_model(model: Any, engine: Engine) -> dict[str, Any]:
    """The YAML that builds this model: with its anchors, and with block names that YOLOv5 does not use for others."""
    cfg = copy.deepcopy(_plain_cfg(model.yaml, Path("the checkpoint")))
    head = model.model[-1]
    pixels = (head.anchors.float() * head.stride.float().view(-1, 1, 1).cpu()).flatten(1).tolist()
    if not _nearly(cfg["anchors"], pixels):
        cfg["anchors"] = [[_rounded(value) for value in level] for level in pixels]
    yolo = engine.module("models.yolo")
    rows = [row for section in ("backbone", "head") for row in cfg[section]]
    for row, layer in zip(rows, model.model):
        built = layer[0] if type(layer) is nn.Sequential and len(layer) else layer
        if block_of(built) and not row[2].startswith(PREFIX) and hasattr(yolo, row[2]):
            row[2] = f"{PREFIX}{row[2]}"
    names = getattr(model, "names", None)
    if names:
        cfg["names"] = [str(name) for name in (names.values() if isinstance(names, Mapping) else names)]
    return cfg


def _nearly(anchors: Any, pixels: list[list[float]]) -> bool:
    """Whether a YAML's anchors equal those of the model, up to the rounding of half precision."""
    if not isinstance(anchors, list) or [len(level) for level in anchors] != [len(level) for level in pixels]:
        return False
    pairs = [pair for a, b in zip(anchors, pixels) for pair in zip(a, b)]
    return all(abs(a - b) <= 1e-3 * abs(b) for a, b in pairs)


def _rounded(value: float) -> float | int:
    value = round(value, 3)
    return int(value) if value == int(value) else value


def _yaml_header(source: Path, target: Path, facts: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return [
        f"The model of {source.name} (sha256 {facts['source']['sha256'][:16]}…), whose tensors are in {target.name}.",
        f"Written by {versions}. Usable as --cfg.",
    ]


# --- building ------------------------------------------------------------------------------------


def _built(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], source: Path, engine: Engine) -> Any:
    """The model that a cfg builds, filled with these tensors."""
    yolo = engine.module("models.yolo")
    cfg = copy.deepcopy(facts["cfg"])
    _check_fits(cfg, tensors, yolo, source)
    cls = class_for(facts["class"], yolo, engine, source)
    with _building(source), quiet(), torch.random.fork_rng(devices=[]):
        model = cls(cfg)
    check_head(model, source)
    if all(tensor.dtype == torch.float16 for tensor in tensors.values() if tensor.is_floating_point()):
        # converts tensors that are not buffers too: the strides of Detect
        model.half()
    try:
        model.load_state_dict(dict(tensors), strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:600]
        raise CheckpointError(f"{source}: the tensors do not fit its model YAML: {reason}") from None
    model.requires_grad_(False)
    model.names = _names(facts, model)
    for key, value in facts["attributes"].items():
        if value is not None:
            setattr(model, key, copy.deepcopy(value))
    model.inplace = facts["inplace"]
    return model.eval()


@contextmanager
def _building(source: Path) -> Iterator[None]:
    """Context manager that turns errors of layers with invalid arguments into a `CheckpointError`."""
    try:
        yield
    except UserError:
        raise
    except (
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        MemoryError,
    ) as error:
        raise CheckpointError(
            f"{source}: its model YAML does not build a model that runs: {first_line(error)}"
        ) from error


def _check_fits(cfg: dict[str, Any], tensors: Mapping[str, torch.Tensor], yolo: Any, source: Path) -> None:
    """Raise a `CheckpointError` if names or shapes of the tensors do not fit the cfg. No memory for them is needed."""
    channels = cfg.get("ch", 3)
    with _building(source), quiet(), torch.device("meta"), torch.no_grad():
        layers, _ = yolo.parse_model({**copy.deepcopy(cfg), "ch": channels}, [channels])
    wanted = {f"model.{name}": tuple(tensor.shape) for name, tensor in layers.state_dict().items()}
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


def _names(facts: Mapping[str, Any], model: Any) -> Any:
    names = facts["names"]
    if not names:
        return model.names
    if isinstance(names[0], list):
        return dict(names)
    return list(names)


def _check_same(model: Any, built: Any, source: Path) -> None:
    """Raise a `CheckpointError` unless both models compute the same output for one image, bit for bit."""
    side = 2 * int(max(float(stride) for stride in model.stride))
    channels = int(built.yaml.get("ch", 3))
    image = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    outputs = []
    for one in (model, built):
        runnable = copy.deepcopy(one).float().eval()
        with torch.no_grad():
            outputs.append(runnable(image)[0])
    if not torch.equal(*(torch.nan_to_num(output) for output in outputs)):
        raise CheckpointError(
            f"{source}: with the same tensors, a model built from its YAML computes another output, so the model was "
            "changed after it was built. Nothing was written"
        )


def _facts_from(header: Any, cfg: Mapping[str, Any] | None, source: Path) -> dict[str, Any]:
    """The content of the header, checked. A cfg from the user replaces the one in the header."""
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
    if cfg is None:
        with_options_by_name(facts["cfg"])
    else:
        facts["cfg"] = {key: value for key, value in cfg.items() if key != "names"}
        facts["names"] = cfg.get("names") or facts["names"]
        facts["class"] = class_of_cfg(cfg)
    shape_is_fine = (
        isinstance(facts["cfg"], dict)
        and facts["class"] in MODEL_CLASSES
        and _attributes_are_fine(facts["attributes"])
        and isinstance(facts["training"], dict)
        and isinstance(facts["inplace"], bool)
    )
    if not shape_is_fine:
        raise CheckpointError(f"{source}: its metadata does not have the form that 'yolov5-ema convert' writes")
    Graph.from_cfg(facts["cfg"], str(source))
    if facts["attributes"].get("nc", facts["cfg"]["nc"]) != facts["cfg"]["nc"]:
        raise CheckpointError(f"{source}: its metadata has two different values of nc")
    facts["names"] = _checked_names(facts["names"], facts["cfg"]["nc"], source)
    return facts


def _attributes_are_fine(attributes: Any) -> bool:
    kinds = {"nc": int, "hyp": dict, "yaml_file": str}
    return isinstance(attributes, dict) and all(
        key in kinds and isinstance(value, (kinds[key], type(None))) for key, value in attributes.items()
    )


def _checked_names(names: Any, count: int, source: Path) -> Any:
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
