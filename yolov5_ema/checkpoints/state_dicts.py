"""Reads tensors by name from files that do not say how the model was built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolov5_ema.checkpoints.loading import load_checkpoint
from yolov5_ema.checkpoints.models import key_of_tensors
from yolov5_ema.errors import CheckpointError
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.weights.checkpoint_files import check_readable, header_of, is_safetensors
from yolov5_ema.weights.heads import names_of

_OF_A_ROW = re.compile(r"((?:[A-Za-z_]\w*\.)*)(\d+\..+)")
Tensors = dict[str, torch.Tensor]


def read_tensors(source: Path, engine: Engine) -> tuple[Tensors, dict[str, Any] | None]:
    """The tensors of a file, and its header: from 'yolov5-ema convert', the class names of a bare model, or None.

    Args:
        source: safetensors, a state dict, or a bare model.
        engine: the YOLOv5 in use, with the shim installed.

    Raises:
        CheckpointError: it is none of these, is damaged, or holds what no checkpoint needs.
    """
    check_readable(source)
    if is_safetensors(source):
        return _read_safetensors(source)
    content: Any = load_checkpoint(source, "cpu", engine=engine, without_model=True)
    if isinstance(content, nn.Module):
        names = names_of(getattr(content, "names", None))
        return own_memory(content.state_dict()), None if names is None else {"names": list(names)}
    return own_memory(_by_rows(_state_dict_in(content, source))), None


def _read_safetensors(source: Path) -> tuple[Tensors, dict[str, Any] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(source), framework="pt") as opened:
            metadata = opened.metadata() or {}
            names = opened.keys()
            tensors = {name: opened.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{source} is not a safetensors file, or is cut off: {error}") from None
    return tensors, header_of(metadata, source)


def _state_dict_in(content: Any, source: Path) -> Mapping[str, torch.Tensor]:
    """The dict of tensors at the top of a file, or under one of the usual keys."""
    content = content if isinstance(content, Mapping) else {}
    if any(isinstance(content.get(key), nn.Module) for key in ("ema", "model")):
        raise CheckpointError(
            f"--cfg is for files with tensors only; {source} holds a model, which has its own YAML: leave out --cfg"
        )
    key = key_of_tensors(content)
    if key is None:
        raise CheckpointError(f"{source} does not hold a state dict ('yolov5-ema inspect' shows what it holds)")
    return _only_tensors(content[key] if key else content, source)


def _only_tensors(held: Mapping[Any, Any], source: Path) -> Mapping[str, torch.Tensor]:
    odd = [name for name, value in held.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if odd:
        raise CheckpointError(f"{source}: {str(odd[0])[:80]!r} in its state dict is not a tensor")
    return held


def _by_rows(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The tensors under the names in YOLOv5's model, ``model.0.conv.weight``, without the prefix of a wrapper."""
    found = [_OF_A_ROW.fullmatch(name) for name in tensors]
    wrappers = {match[1] for match in found if match}
    if len(wrappers) != 1 or not all(found):
        return tensors
    return {f"model.{match[2]}": value for match, value in zip(found, tensors.values()) if match}


def own_memory(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Contiguous copies of the tensors on the CPU, without ``anchor_grid``, which was a buffer up to v5.0."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
        if not name.endswith(".anchor_grid")
    }
