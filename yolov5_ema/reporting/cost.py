"""The rows, parameters and GFLOPs of a trained model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from yolov5_ema.blocks.registry import block_of
from yolov5_ema.errors import UserError
from yolov5_ema.reporting.runs import CLASSIFY, Run
from yolov5_ema.texts import first_line
from yolov5_ema.upstream.ultralytics import is_cfg_of_ultralytics

_LARGEST_SIDE = 10_000
"""In pixels. A larger image size in a file is ignored."""


@dataclass(frozen=True)
class Row:
    """One row of a model YAML, as in `engine.model_info`. Counts are None if the model could not be built here."""

    index: int
    source: str
    repeats: int
    module: str
    args: str
    channels: int | None = None
    stride: int | None = None
    parameters: int | None = None
    flops: int | None = None

    @property
    def is_block(self) -> bool:
        return bool(block_of(self.module))


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Attributes:
        parameters: number of parameters in training, not fused; None if not known.
        gflops: for one image of ``imgsz`` pixels, a multiply-add counted as two; None if not counted.
        imgsz: side of the image in pixels.
        rows: rows of the model YAML; empty for a classifier.
        reason: why something was not counted; "" if everything was.
    """

    parameters: int | None = None
    gflops: float | None = None
    imgsz: int | None = None
    rows: Sequence[Row] = field(default_factory=list)
    reason: str = ""

    @property
    def blocks(self) -> list[str]:
        """The names of the attention blocks in the model, without duplicates."""
        return list(dict.fromkeys(row.module for row in self.rows if row.is_block))


def costs_of(runs: Sequence[Run]) -> dict[str, Cost]:
    """The cost of each run's model, by the name of the run. Equal models are counted only once."""
    known: dict[str, Cost] = {}
    found = {}
    for run in runs:
        cfg, size = run.cfg, image_size(run.options)
        is_classifier = run.task == CLASSIFY and cfg is None and not run.is_alone
        key = repr([run.task, cfg, size, _classifier_key(run), run.place if run.is_alone else None])
        if key not in known:
            known[key] = _classifier_cost(run) if is_classifier else _cost(run, cfg)
        found[run.name] = known[key]
    return found


def image_size(options: Mapping[str, Any]) -> int:
    """The side of the images of a training in pixels, the longer one of two; 640 if its options do not name one."""
    for name in ("imgsz", "img_size", "img"):
        value = options.get(name)
        sides = value if isinstance(value, list) and value else [value]
        if all(type(side) is int and 0 < side <= _LARGEST_SIDE for side in sides):
            return int(max(sides))
    return 640


# --- models of YOLOv5 and ultralytics -------------------------------------------------------


def _cost(run: Run, cfg: Mapping[str, Any] | None) -> Cost:
    known = run.inspection.models[0].parameters if run.inspection and run.inspection.models else None
    if cfg is None:
        where = "in the file" if run.is_alone else "in best.pt nor where the run's options say"
        return Cost(known, reason=f"the model YAML is {'not' if run.is_alone else 'neither'} {where}")
    try:
        found = _counted(cfg, image_size(run.options))
    except UserError as error:
        return Cost(known, rows=_plain_rows(cfg), reason=first_line(error))
    rows = []
    for row in found.rows:
        words = {"source": str(row.source), "module": str(row.module), "args": str(row.args)}
        rows.append(Row(**{**vars(row), **words, "channels": row.channels or None}))
    # best.pt is stripped but not fused, so it has the parameters of the trained model.
    return Cost(known or found.parameters, found.gflops, found.imgsz, rows)


def _counted(found: Mapping[str, Any], imgsz: int) -> Any:
    """The `engine.model_info` of a model dict.

    Raises:
        UserError: its YOLO was not found, or the model cannot be built, perhaps because a plugin's block is missing.
    """
    from yolov5_ema.cfgs.rows import with_options_by_name
    from yolov5_ema.engine.model_info import model_info, ultralytics_info

    cfg: dict[str, Any] = copy.deepcopy(dict(found))
    of_ultralytics = is_cfg_of_ultralytics(cfg)
    if not of_ultralytics:
        # When the run was trained, options without a name were given by position.
        with_options_by_name(cfg)
    scale, scales = cfg.get("scale"), cfg.get("scales")
    if isinstance(scale, str) and isinstance(scales, dict) and scale in scales:
        cfg = {**cfg, "scales": {scale: scales[scale]}}  # else the first size would be built
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.yaml"
        try:
            file.write_text(yaml.safe_dump(cfg, sort_keys=False), encoding="utf-8")
            return ultralytics_info(str(file), file, imgsz=imgsz) if of_ultralytics else model_info(file, imgsz=imgsz)
        except UserError as error:
            raise UserError(str(error).replace(str(file), "its model YAML")) from error
        # building a user's model can raise anything
        except Exception as error:
            raise UserError(f"its model cannot be built here: {first_line(error)}") from error


def _plain_rows(cfg: Mapping[str, Any]) -> list[Row]:
    """The rows as they are in the YAML, without counts."""
    rows: list[Row] = []
    for row in [*(cfg.get("backbone") or []), *(cfg.get("head") or [])]:
        source, repeats, module, args = (*row, *[""] * 4)[:4] if isinstance(row, list) else (row, 1, "", "")
        shown = repeats if type(repeats) is int else 1
        rows.append(Row(len(rows), str(source), shown, str(module), str(args)))
    return rows


# --- classifiers ----------------------------------------------------------------------------


def _classifier_key(run: Run) -> Any:
    names = ("model", "block", "block_options", "stem", "num_classes")
    return [run.options.get(name) for name in names] if run.task == CLASSIFY else None


def _classifier_cost(run: Run) -> Cost:
    found = run.metrics.get("parameters")
    known = found if type(found) is int else None
    if run.weights is None:
        return Cost(known, reason="there is no best.pt to build the model from")
    try:
        parameters, gflops, imgsz = _counted_classifier(run.weights)
    # building a user's model can raise anything
    except Exception as error:
        return Cost(known, reason=first_line(error))
    return Cost(known or parameters, gflops, imgsz)


def _counted_classifier(weights: Path) -> tuple[int, float, int]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from yolov5_ema.classification.checkpoints import load_classifier
    from yolov5_ema.kernels.dispatch import forced

    classifier = load_classifier(weights)
    model, side = classifier.model.to("meta"), classifier.imgsz
    with forced("reference"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, side, side, device="meta"))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 1e9, side
