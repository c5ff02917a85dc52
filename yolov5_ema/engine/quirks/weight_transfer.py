"""Pretrained weights: paired by structure, whereas YOLOv5's ``intersect_dicts`` pairs them by row number.

See `yolov5_ema.weights.transfer`. The pairing needs more than the two state dicts: the models and the class names.
These are local variables of the function that calls ``intersect_dicts``: ``ckpt``, ``model`` and ``names``.
"""

from __future__ import annotations

import ast
import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.settings import read
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import Code
from yolov5_ema.weights.heads import names_of
from yolov5_ema.weights.identity import start_as_identity
from yolov5_ema.weights.transfer import transfer

_FUNCTION = "intersect_dicts"


def _is_transfer(call: ast.Call) -> bool:
    return [ast.unparse(argument) for argument in call.args] == ["csd", "model.state_dict()"]


def _apply(module: SourceModule, patches: Patches) -> None:
    if _FUNCTION in module.code.own_names:
        patches.set(module.module, _FUNCTION, _by_structure(module.module))
        return
    for function, home in _imported_within(module.code):
        patches.wrap(module.module, function, _with_transfer, home)


def _imported_within(code: Code) -> Iterator[tuple[str, str]]:
    """Functions that import `intersect_dicts` in their body (in ``hubconf.py``), and the module it comes from."""
    for name in sorted(code.own_names):
        for found in getattr(code.part(name), "imported", []):
            if found.name == _FUNCTION:
                yield name, found.module


def _with_transfer(function: Callable[..., Any], home: str, *args: Any, **kwargs: Any) -> Any:
    with Patches() as patches:
        theirs = importlib.import_module(home)
        patches.set(theirs, _FUNCTION, _by_structure(theirs))
        return function(*args, **kwargs)


def _by_structure(theirs: Any) -> Callable[..., dict[str, Any]]:
    """Wrap a module's `intersect_dicts`: if the caller's two models are known, pair their rows by structure."""
    intersect_dicts = getattr(theirs, _FUNCTION)
    logger = getattr(theirs, "LOGGER", None) or logging.getLogger(__name__)

    @functools.wraps(intersect_dicts)
    def wrapper(da: dict[str, Any], db: dict[str, Any], exclude: Any = ()) -> dict[str, Any]:
        caller = sys._getframe(1).f_locals
        models = _models(caller)
        if models is None or caller.get("resume"):
            return intersect_dicts(da, db, exclude)
        source, target = models
        found = transfer(
            source,
            target,
            names=names_of(getattr(source, "names", None)),
            target_names=names_of(caller.get("names")),
            keep_anchors=any("anchor" in word for word in exclude),
        )
        logger.info(found.table())
        _forget_training_state(caller["ckpt"], da, db, logger)
        if read("init") == "identity":
            _start_as_identity(target, found.state, found.fresh_blocks, logger)
        return found.state

    return wrapper


def _models(caller: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """The checkpoint's model and the model to fill, if the caller's local variables are those of a known script."""
    checkpoint, target = caller.get("ckpt"), caller.get("model")
    source = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    rows = [getattr(model, "model", None) for model in (source, target)]
    return (source, target) if all(hasattr(row, "children") for row in rows) else None


def _forget_training_state(
    checkpoint: dict[str, Any], da: dict[str, Any], db: dict[str, Any], logger: logging.Logger
) -> None:
    """Drop the optimizer's state, averaged weights and epoch of a checkpoint if its rows are not those of the model."""
    if not checkpoint.get("optimizer") and not checkpoint.get("ema"):
        return
    if {name: value.shape for name, value in da.items()} == {name: value.shape for name, value in db.items()}:
        return
    logger.info("the checkpoint's training state belongs to another model: optimizer and epochs start from zero")
    checkpoint.update(optimizer=None, ema=None, epoch=-1)


def _start_as_identity(target: Any, state: dict[str, Any], rows: list[int], logger: logging.Logger) -> None:
    target.load_state_dict(state, strict=False)
    start_as_identity(target, rows)
    state.update({name: value for name, value in target.state_dict().items() if name in state})
    logger.info(f"--init identity: the blocks in rows {', '.join(map(str, rows))} change nothing at step 0")


WEIGHT_TRANSFER = Quirk(
    name="weight-transfer",
    symptom="Transferred 157/361 items: an inserted row shifts the names of all rows after it",
    versions="all",
    needed=lambda module: any(_is_transfer(call) for call in module.code.calls(_FUNCTION)),
    reason="it transfers pretrained weights by row number, but an inserted row shifts the numbers",
    apply=_apply,
)
