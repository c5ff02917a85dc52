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

from yolov5_ema.blocks.registry import PREFIX, block_of
from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.graph import Graph
from yolov5_ema.cfgs.rows import with_options_by_name
from yolov5_ema.checkpoints import ultralytics_conversion, ultralytics_models
from yolov5_ema.checkpoints.described import (
    as_json,
    check_shapes,
    checked_names,
    common_facts,
    fill,
    header_or_defaults,
    plain_cfg,
)
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
from yolov5_ema.files import check_outputs, whole_files
from yolov5_ema.texts import first_line
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import Ultralytics
from yolov5_ema.weights.checkpoint_files import HEADER

_TRAINING = ("epoch", "best_fitness", "date", "updates", "opt", "git", "yolov5pip_version")


def to_safetensors(source: Path, target: Path, cfg: Path, *, engine: Engine, force: bool = False) -> dict[str, Any]:
    """Write a checkpoint's model as safetensors and a model YAML.

    The model is the one that YOLOv5 or ultralytics runs: ``ema`` if there is one, else ``model``. Dtypes stay.

    Args:
        source: the checkpoint.
        target: the ``.safetensors`` to write.
        cfg: the ``.yaml`` to write.
        engine: the YOLOv5 in use with the shim installed, or ultralytics with the adapter.
        force: replace existing files.

    Returns:
        The content of the safetensors header besides the tensors.

    Raises:
        CheckpointError: the checkpoint cannot be read, has no model with a YAML, or its YAML does not build the model.
        UserError: a file exists already, or cannot be written.
    """
    from safetensors.torch import save

    check_outputs([target, cfg], force=force)
    own = _programs[isinstance(engine, Ultralytics)]
    checkpoint = load_checkpoint(source, "cpu", engine=engine, without_model=True)
    with as_yolov5_builds(source, own.name):
        model = own.model_of(checkpoint, source)
        facts = own.facts(checkpoint, model, source, engine)
        tensors = own_memory(model.state_dict())
        _check_same(model, own.built(facts, tensors, source, engine), source)
        text = own.yaml_text(model, engine, _yaml_header(source, target, facts), source)
        content = save(tensors, {"format": "pt", HEADER: json.dumps(facts)})
    with whole_files([target, cfg]) as (draft, cfg_draft):
        draft.write_bytes(content)
        cfg_draft.write_bytes(text.encode())
    return facts


def to_checkpoint(
    source: Path, target: Path, *, engine: Engine, cfg: Mapping[str, Any] | None = None, force: bool = False
) -> dict[str, Any]:
    """Write safetensors as a checkpoint in the form that the program's own ``strip_optimizer`` writes.

    Args:
        source: a file of `to_safetensors`. With ``cfg`` also a state dict, in safetensors or saved by torch, or a bare
            model.
        target: the ``.pt`` to write.
        engine: the YOLOv5 in use with the shim installed, or ultralytics with the adapter.
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
    check_outputs([target], force=force)
    tensors, header = read_tensors(source, engine)
    own = _programs[isinstance(engine, Ultralytics)]
    with as_yolov5_builds(source, own.name):
        facts = own.facts_from(header, cfg, source)
        model = own.built(facts, tensors, source, engine)
    checkpoint = own.stripped(model, facts["training"])
    with whole_files([target]) as (draft,), draft.open("wb") as stream:
        save_checkpoint(checkpoint, stream, engine=engine)
    return facts


# --- what a checkpoint says ----------------------------------------------------------------------


def _facts(checkpoint: Any, model: Any, source: Path, engine: Engine) -> dict[str, Any]:
    return {
        **common_facts(checkpoint, model, source, engine, _TRAINING),
        "attributes": {key: as_json(getattr(model, key)) for key in ("nc", "hyp", "yaml_file") if hasattr(model, key)},
        "inplace": bool(getattr(model, "inplace", True)),
    }


def _cfg_of_this_model(model: Any, engine: Engine) -> dict[str, Any]:
    """The YAML that builds this model: with its anchors, and with block names that YOLOv5 does not use for others."""
    cfg = copy.deepcopy(plain_cfg(model.yaml, Path("the checkpoint")))
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
    fill(model, tensors, source)
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
    check_shapes({f"model.{name}": tensor for name, tensor in layers.state_dict().items()}, tensors, source)


def _names(facts: Mapping[str, Any], model: Any) -> Any:
    names = facts["names"]
    if not names:
        return model.names
    if isinstance(names[0], list):
        return dict(names)
    return list(names)


def _check_same(model: Any, built: Any, source: Path) -> None:
    """Raise a `CheckpointError` unless both models compute the same output for one image, bit for bit."""
    side = max(64, 2 * int(max(float(stride) for stride in model.stride)))
    channels = int(built.yaml.get("channels", built.yaml.get("ch", 3)))
    image = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    outputs = []
    for one in (model, built):
        runnable = copy.deepcopy(one).float().eval()
        with torch.no_grad():
            outputs.append(list(_tensors_in(runnable(image)))[:3])
    if not all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in zip(*outputs, strict=True)):
        raise CheckpointError(
            f"{source}: with the same tensors, a model built from its YAML computes another output, so the model was "
            "changed after it was built. Nothing was written"
        )


def _tensors_in(output: Any) -> Iterator[torch.Tensor]:
    """The tensors of an output in their order: predictions first, then masks, then what the losses need."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, (list, tuple, dict)):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors_in(part)


def _facts_from(header: Any, cfg: Mapping[str, Any] | None, source: Path) -> dict[str, Any]:
    """The content of the header, checked. A cfg from the user replaces the one in the header."""
    facts = header_or_defaults(header, cfg, source)
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
    facts["names"] = checked_names(facts["names"], facts["cfg"]["nc"], source)
    return facts


def _attributes_are_fine(attributes: Any) -> bool:
    kinds = {"nc": int, "hyp": dict, "yaml_file": str}
    return isinstance(attributes, dict) and all(
        key in kinds and isinstance(value, (kinds[key], type(None))) for key, value in attributes.items()
    )


# --- the programs --------------------------------------------------------------------------------


class _Yolov5:
    """YOLOv5's models."""

    name = "YOLOv5"
    model_of = staticmethod(model_of)
    facts = staticmethod(_facts)
    built = staticmethod(_built)
    facts_from = staticmethod(_facts_from)
    stripped = staticmethod(stripped)

    @staticmethod
    def yaml_text(model: Any, engine: Engine, header: Sequence[str], source: Path) -> str:
        return Graph.from_cfg(_cfg_of_this_model(model, engine), str(source)).to_text(header)


class _Ultralytics:
    """Models of the package ultralytics."""

    name = "ultralytics"
    model_of = staticmethod(ultralytics_models.model_of)
    facts = staticmethod(ultralytics_conversion.facts)
    built = staticmethod(ultralytics_conversion.built)
    facts_from = staticmethod(ultralytics_conversion.facts_from)
    stripped = staticmethod(ultralytics_models.stripped)
    yaml_text = staticmethod(ultralytics_conversion.yaml_text)


# by whether it is ultralytics
_programs: dict[bool, Any] = {False: _Yolov5, True: _Ultralytics}
