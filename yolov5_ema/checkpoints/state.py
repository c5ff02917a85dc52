"""Checks the content of a loaded checkpoint, and adds attributes that old releases did not write."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from yolov5_ema.cfgs.rows import with_options_by_name
from yolov5_ema.checkpoints.model_state import check_model, is_of_yolov5
from yolov5_ema.class_names import fault_of_names, names_as_text
from yolov5_ema.errors import CheckpointError

# limits for a checkpoint: far more than any real one has, but few enough to check in a short time
_MOST_MODULES = 200_000
_MOST_VALUES = 1_000_000
_DEEPEST = 50
_MOST_EPOCHS = 10**9
_MODELS = ("model", "ema")


def _modules_of(checkpoint: Any) -> Iterator[nn.Module]:
    """All layers of all models in a checkpoint."""
    for value in checkpoint.values() if isinstance(checkpoint, dict) else ():
        if isinstance(value, nn.Module):
            yield from value.modules()


def check_names(checkpoint: Any, path: Path) -> None:
    """Raise a `CheckpointError` for invalid class names in any layer that has them; turn numbers into text."""
    for value in checkpoint.values() if isinstance(checkpoint, dict) else [checkpoint]:
        for layer in value.modules() if isinstance(value, nn.Module) else ():
            # a wrapper around a model, and the model in it
            for held in (layer, vars(layer).get("module")):
                if isinstance(held, nn.Module) and "names" in vars(held):
                    _check_names_of(held, path)


def _check_names_of(layer: nn.Module, path: Path) -> None:
    state = vars(layer)
    fault = fault_of_names(state["names"])
    if fault:
        raise CheckpointError(f"{path}: {fault}")
    state["names"] = names_as_text(state["names"])


def check_models(checkpoint: Any, path: Path) -> None:
    """Raise a `CheckpointError` for models with invalid layers, and for a training state that cannot be resumed."""
    values = list(checkpoint.values()) if isinstance(checkpoint, dict) else [checkpoint]
    models = list({id(value): value for value in values if isinstance(value, nn.Module)}.values())
    for model in models:
        check_model(model, path)
    if models and isinstance(checkpoint, dict):
        _check_training(checkpoint, path)


def for_yolov5(checkpoint: Any, path: Path) -> dict[str, Any]:
    """Add to a checkpoint all keys that YOLOv5's scripts read, and return it.

    Raises:
        CheckpointError: it does not hold a model.
    """
    models: list[Any] = [checkpoint.get(key) for key in _MODELS] if isinstance(checkpoint, dict) else []
    if not any(is_of_yolov5(model) for model in models):
        raise CheckpointError(f"{path} does not hold a YOLOv5 model ('yolov5-ema inspect' shows what it holds)")
    if not all(model is None or is_of_yolov5(model) for model in models):
        raise CheckpointError(f"{path}: 'model' and 'ema' must both be YOLOv5 models, or be empty")
    if checkpoint.get("model") is None:
        checkpoint["model"] = checkpoint["ema"]
    for key in ("best_fitness", "ema", "updates", "optimizer"):
        checkpoint.setdefault(key, None)
    if checkpoint.get("epoch") is None or checkpoint["optimizer"] is None:
        # there is no training to resume, as in a stripped file
        checkpoint["epoch"] = -1
    for model in models:
        head: Any = model.model[-1] if isinstance(getattr(model, "model", None), nn.Sequential) else None
        # a training sets nc, and export reads it
        if hasattr(head, "nc") and not hasattr(model, "nc"):
            vars(model)["nc"] = head.nc
    return checkpoint


def _check_training(checkpoint: dict[str, Any], path: Path) -> None:
    fault = next(_faults_of_training(checkpoint), None)
    if fault:
        raise CheckpointError(f"{path}: its training state is invalid: {fault}")


def _faults_of_training(checkpoint: dict[str, Any]) -> Iterator[str]:
    if not all(isinstance(key, str) for key in checkpoint):
        yield "a key is not text"
    for key in ("epoch", "updates"):
        number = checkpoint.get(key)
        if number is not None and (type(number) is not int or not -1 <= number <= _MOST_EPOCHS):
            yield f"{key} is {repr(number)[:60]}"
    if not _is_fitness(checkpoint.get("best_fitness")):
        yield f"best_fitness is {repr(checkpoint['best_fitness'])[:60]}"
    for key in ("opt", "hyp", "git", "train_args", "train_metrics", "train_results"):
        if not isinstance(checkpoint.get(key), (dict, type(None))):
            yield f"{key} is not a dict"
    for key in ("training_results", "date", "wandb_id", "version"):
        if not isinstance(checkpoint.get(key), (str, type(None))):
            yield f"{key} is not text"
    if checkpoint.get("optimizer") is not None:
        yield from _faults_of_optimizer(checkpoint["optimizer"], checkpoint.get("model"))


def _is_fitness(value: Any) -> bool:
    # v6.0 keeps an array of one number
    if isinstance(value, np.ndarray):
        return value.size == 1 and value.dtype.kind in "fiu"
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, complex))
    return value is None or (is_number and not math.isinf(float(value)))


def _faults_of_optimizer(optimizer: Any, model: Any) -> Iterator[str]:
    if not isinstance(optimizer, dict):
        yield "optimizer is not a dict"
        return
    state: Any = optimizer.get("state")
    groups: Any = optimizer.get("param_groups")
    fine = isinstance(groups, list) and all(isinstance(group, dict) for group in groups)
    if not isinstance(state, dict) or not fine or not all(map(_is_group, groups)):
        yield "optimizer does not have the form that torch saves"
        return
    numbers = Counter(number for group in groups for number in group["params"])
    if any(count > 1 for count in numbers.values()) or not all(number in numbers for number in state):
        yield "optimizer has parameters that are not its own"
    shapes = {tuple(one.shape) for one in model.parameters()} if isinstance(model, nn.Module) else None
    if not all(isinstance(held, dict) and all(_fits(held[key], shapes) for key in held) for held in state.values()):
        yield "optimizer holds a state that fits no parameter of the model"


def _is_group(group: dict[Any, Any]) -> bool:
    params = group.get("params")
    if not isinstance(params, list) or not all(type(number) is int for number in params):
        return False
    others = [value for key, value in group.items() if key != "params"]
    kinds = (bool, int, float, np.number, str, type(None), torch.Tensor)
    return all(
        isinstance(value, kinds) or (isinstance(value, (tuple, list)) and all(isinstance(v, kinds) for v in value))
        for value in others
    )


def _fits(value: Any, shapes: set[tuple[int, ...]] | None) -> bool:
    """Whether a value is a number, or a tensor with the shape of one of the parameters."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 or shapes is None or tuple(value.shape) in shapes
    return value is None or isinstance(value, (bool, int, float))


def check_modules(checkpoint: Any, path: Path) -> None:
    """Raise a `CheckpointError` for content that cannot be traversed.

    Such content is: a module without the attributes of every module; and modules, lists and dicts that contain each
    other in a circle, or that unfold to an exponential number of values.
    """
    _check_extent(checkpoint, path)
    for model in checkpoint.values() if isinstance(checkpoint, dict) else [checkpoint]:
        if isinstance(model, nn.Module):
            _check_module_tree(model, path)


def _check_module_tree(model: nn.Module, path: Path) -> None:
    seen: set[int] = set()
    for module in _all_below(model, _children, _MOST_MODULES, path, "layers", "model"):
        if id(module) not in seen:
            seen.add(id(module))
            _check_module(module, path)


def _children(module: nn.Module) -> list[Any]:
    return [child for child in vars(module)["_modules"].values() if child is not None]


def _check_module(module: nn.Module, path: Path) -> None:
    held: list[Any] = [vars(module).get(name) for name in ("_modules", "_parameters", "_buffers")]
    if not all(isinstance(part, dict) and all(isinstance(name, str) for name in part) for part in held):
        raise CheckpointError(f"{path}: a {type(module).__name__} in it has no parameters, buffers or submodules dict")
    modules, *tensors = held
    fine = all(value is None or isinstance(value, torch.Tensor) for part in tensors for value in part.values())
    if not fine or not all(isinstance(child, (nn.Module, type(None))) for child in modules.values()):
        raise CheckpointError(f"{path}: a {type(module).__name__} in it holds a value that is not a layer or tensor")
    _check_extent({name: value for name, value in vars(module).items() if name != "_modules"}, path)


def _check_extent(value: Any, path: Path) -> None:
    for _ in _all_below(value, _items, _MOST_VALUES, path, "values", "checkpoint"):
        pass


def _items(held: Any) -> Iterable[Any]:
    if isinstance(held, dict):
        return held.values()
    return held if isinstance(held, (list, tuple, set, frozenset)) else ()


def _all_below(
    top: Any, parts: Callable[[Any], Iterable[Any]], most: int, path: Path, what: str, home: str
) -> Iterator[Any]:
    """A value and all parts of it, at any depth; a `CheckpointError` if there are more than ``most``, or too deep."""
    waiting, count = [(top, 0)], 0
    while waiting:
        held, depth = waiting.pop()
        count += 1
        if count > most or depth > _DEEPEST:
            raise CheckpointError(
                f"{path}: its {what} contain each other in a circle, or there are more of them than in any {home}"
            )
        yield held
        waiting += [(part, depth + 1) for part in parts(held)]


def fix_checkpoint(checkpoint: Any) -> None:
    """Add the attributes that current code reads to models written by older releases and older torch."""
    _fix_layers_of_old_torch(checkpoint)
    _fix_detect(checkpoint)
    name_options(checkpoint)


def name_options(checkpoint: Any) -> None:
    """Name positional numbers in the YAMLs of models, so that the models can be rebuilt (`with_options_by_name`)."""
    for model in checkpoint.values() if isinstance(checkpoint, dict) else ():
        if isinstance(model, nn.Module):
            rows = vars(model)["_modules"].get("model")
            with_options_by_name(vars(model).get("yaml"), list(rows) if isinstance(rows, nn.Sequential) else ())


def _fix_layers_of_old_torch(checkpoint: Any) -> None:
    """Add the attributes that forward reads today to layers saved by torch < 1.11."""
    for module in _modules_of(checkpoint):
        if isinstance(module, nn.Upsample) and not hasattr(module, "recompute_scale_factor"):
            module.recompute_scale_factor = None


def _fix_detect(checkpoint: Any) -> None:
    """Make Detect recompute its grids, and add the attributes that later forwards read to Detect of v4 and v5.

    A grid that v6.0 kept from its last image is half a cell off in v6.2 and later. Up to v5.0 the grid of anchors was a
    buffer; later releases keep a list.
    """
    for module in _modules_of(checkpoint):
        grids = getattr(module, "grid", None)
        if not isinstance(grids, list) or not hasattr(module, "anchor_grid"):
            continue
        # set by an export
        for name in ("export", "dynamic", "onnx_dynamic"):
            vars(module).pop(name, None)
        vars(module)["grid"] = [torch.zeros(1) for _ in grids]
        if isinstance(module.anchor_grid, torch.Tensor):
            del module.anchor_grid
            vars(module)["anchor_grid"] = [torch.zeros(1) for _ in grids]
        # v4 does not have it
        if not hasattr(module, "inplace"):
            vars(module)["inplace"] = True
