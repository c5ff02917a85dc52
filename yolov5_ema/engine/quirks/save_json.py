"""``val --save-json`` in PyPI packages before 7, whose `run` overwrites ``data`` before it needs it."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.files import write_whole
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import value_of

_LOGGER = logging.getLogger(__name__)


@dataclass
class _Run:
    """What was collected while one `val.run` ran."""

    predictions: list[dict[str, Any]] = field(default_factory=list)
    save_dir: Path | None = None
    dataset: Any = None


def _needed(module: SourceModule) -> str | None:
    run = module.code.part("run")
    if run is None or not module.code.defines("save_one_json"):
        return None
    asked = [value_of(call.args[0]) for call in run.calls("data.get") if call.args]
    if run.has("data = []") and "path" in asked:
        return "val.run calls data.get after it made data a list"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    val: Any = module.module
    state = _Run()

    def keep_one_json(save: Callable[..., None], predn: Any, jdict: list[Any], path: Path, class_map: Any) -> None:
        # run() does not save, and so does not fail, while its own list stays empty
        save(predn, state.predictions, path, class_map)

    def keep_save_dir(increment_path: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state.save_dir = increment_path(*args, **kwargs)
        return state.save_dir

    def keep_dataset(create_dataloader: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        dataloader, state.dataset = create_dataloader(*args, **kwargs)
        return dataloader, state.dataset

    patches.wrap(val, "save_one_json", keep_one_json)
    patches.wrap(val, "increment_path", keep_save_dir)
    patches.wrap(val, "create_dataloader", keep_dataset)
    patches.wrap(val, "run", _saving_afterwards, state, val)


def _saving_afterwards(run: Callable[..., Any], state: _Run, val: Any, *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(run).bind(*args, **kwargs)
    given.apply_defaults()
    call = given.arguments
    state.predictions, state.save_dir, state.dataset = [], Path(call["save_dir"]), None
    if call["dataloader"] is not None:
        state.dataset = call["dataloader"].dataset
    result = run(*args, **kwargs)
    if not state.predictions:
        return result
    data = val.check_dataset(call["data"]) if not isinstance(call["data"], dict) else call["data"]
    return _save_and_evaluate(result, state, data, call["weights"])


def _save_and_evaluate(result: Any, state: _Run, data: dict[str, Any], weights: Any) -> Any:
    """Do what `val.run` of YOLOv5 v6.0 does next: write the JSON file, and compute pycocotools' mAP if possible."""
    first = weights[0] if isinstance(weights, list) else weights
    stem = Path(first).stem if first is not None else ""
    annotations = Path(data.get("path") or "../coco") / "annotations" / "instances_val2017.json"
    file = Path(state.save_dir or "") / f"{stem}_predictions.json"
    _LOGGER.info("\nEvaluating pycocotools mAP... saving %s...", file)
    write_whole(file, json.dumps(state.predictions))
    if not annotations.is_file():
        _LOGGER.info("pycocotools unable to run: %s not found", annotations)
        return result
    is_coco = isinstance(data.get("val"), str) and data["val"].endswith("coco/val2017.txt")
    name = "im_files" if hasattr(state.dataset, "im_files") else "img_files"  # before v6.1
    images = [int(Path(x).stem) for x in getattr(state.dataset, name)] if is_coco else None
    try:
        map_all, map50 = _coco_map(annotations, file, images)
    except Exception as error:  # as YOLOv5 does: keep its own results
        _LOGGER.info("pycocotools unable to run: %s", error)
        return result
    (precision, recall, _, _, *losses), maps, times = result
    return (precision, recall, map50, map_all, *losses), maps, times


def _coco_map(annotations: Path, predictions: Path, images: list[int] | None) -> tuple[float, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(predictions)), "bbox")
    if images is not None:
        evaluation.params.imgIds = images
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


SAVE_JSON = Quirk(
    name="save-json",
    symptom="val --save-json: AttributeError: 'list' object has no attribute 'get'",
    versions="PyPI 6.0.7, 6.1.9, 6.2.3",
    needed=_needed,
    settled=lambda module: module.name == "val" and module.code.defines("run", "save_one_json"),
    apply=_apply,
)
