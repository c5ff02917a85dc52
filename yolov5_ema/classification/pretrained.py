"""Weights for a classifier: timm's published ones, or those in a file."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolov5_ema.classification.notices import say
from yolov5_ema.classification.places import attention_places
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.texts import counted, first_line

_REACH_SECONDS = 5
_FILE = "model.safetensors"


def published(name: str, **settings: Any) -> nn.Module:
    """Build a timm model with its published weights, from the hub's cache or the network.

    Raises:
        UserError: the weights are neither in the cache nor available from the network.
    """
    import timm
    from huggingface_hub import try_to_load_from_cache

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not (cfg.hf_hub_id or cfg.url or cfg.file):
        raise UserError(f"timm has no pretrained weights for {name}; remove the setting pretrained")
    cached = try_to_load_from_cache(cfg.hf_hub_id, _FILE) if cfg.hf_hub_id else None
    overlay = {"file": cached} if isinstance(cached, str) else {}
    if not overlay:
        _check_network(name)
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name}: timm's pretrained weights cannot be loaded: {error}") from error


def _check_network(name: str) -> None:
    """Check the network once, because the hub's client tries for most of a minute."""
    server = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=_REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return  # the server answers
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: the pretrained weights are not in the cache, and {server} cannot be reached ({error}); "
            "download them on another machine and name the file (pretrained='model.safetensors')"
        ) from error


def load_file(model: nn.Module, name: str, path: str | os.PathLike[str], fresh: Sequence[str] = ()) -> None:
    """Load a state dict, or a checkpoint of a training, into a model that may have new blocks; changes it in place.

    Args:
        model: a model that `create_classifier` has built.
        name: the backbone's name, for messages.
        path: a ``.safetensors`` file, or a file of torch.save that loads without running code.
        fresh: modules with new weights, which the file does not have in this shape.

    Raises:
        CheckpointError: the file cannot be read, or a tensor of the backbone is missing or has another shape.
    """
    state = _read(Path(path))
    own = model.state_dict()
    blocks = tuple(place.name for place in attention_places(model))
    head = tuple(_names(model))
    optional = (*blocks, *head, *fresh)
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    foreign = [key for key in state if key not in fitting and not _under(key, optional)]
    missing = [key for key in own if key not in fitting and not _under(key, optional)]
    if foreign or missing:
        wrong = ", ".join((foreign or missing)[:3])
        what = "do not fit" if foreign else "are missing"
        raise CheckpointError(
            f"{path}: not the weights of {name}: {len(foreign or missing)} of its tensors {what}, such as {wrong}"
        )
    model.load_state_dict(fitting, strict=False)
    new = [
        part
        for part, names in (("blocks", blocks), ("classifier", head), ("stem", tuple(fresh)))
        if _new(own, fitting, names)
    ]
    say(f"{path}: {counted(len(fitting), 'tensor')} loaded" + (f"; new weights: {', '.join(new)}" if new else ""))


def _new(own: dict[str, Any], fitting: dict[str, Any], names: tuple[str, ...]) -> bool:
    return any(_under(key, names) and key not in fitting for key in own)


def _under(key: str, names: Sequence[str]) -> bool:
    return any(key.startswith(f"{name}.") for name in names)


def _names(model: nn.Module) -> list[str]:
    """The names of the classifier's modules in timm."""
    found = getattr(model, "pretrained_cfg", {}).get("classifier")
    return [found] if isinstance(found, str) else list(found or ())


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as read

            content: Any = read(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # incomplete files raise errors of many types
        raise CheckpointError(f"{path}: cannot be read as weights: {first_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(torch.is_tensor(v) for v in content.values()):
        raise CheckpointError(f"{path}: holds no state dict")
    return content
