"""Scoring a checkpoint in a process of its own, so that no evaluation affects the next one.

If only models of YOLOv5 are compared, this file is a script for ``yolov5-ema run``, which runs its own ``val``. In all
other comparisons, ``yolov5-ema evaluate`` computes the figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from yolov5_ema.comparing.plan import COCO, ULTRALYTICS, YOLOV5, Plan
from yolov5_ema.engine import shim
from yolov5_ema.errors import UserError
from yolov5_ema.files import write_whole
from yolov5_ema.scripts.mistakes import errors_as_user_errors

CONFIDENCE_THRESHOLD = 0.001
IOU_THRESHOLD = 0.6
FIGURES = ("precision", "recall", "map50", "map50_95")


# the columns of results.csv with `FIGURES`
_COLUMNS = {
    YOLOV5: ("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
    ULTRALYTICS: ("metrics/precision(B)", "metrics/recall(B)", "metrics/mAP50(B)", "metrics/mAP50-95(B)"),
}

# of a comparison of both engines, whose own values of the second differ
SAME_CONFIDENCE, SAME_IOU = 0.001, 0.7


def command(plan: Plan, name: str, weights: Path, output: Path) -> list[str]:
    """The arguments of ``yolov5-ema`` that score the best.pt of a model, and write the results to a JSON file."""
    trainer, common = plan.trainers[name], plan.common
    flags = ["--weights", str(weights), "--data", str(trainer.data), "--task", plan.task]
    flags += ["--imgsz", str(common.imgsz)]
    flags += ["--single-cls"] if common.single_cls else []
    # a training can choose it, but not val
    flags += ["--batch-size", str(trainer.common.batch_size)] if trainer.common.batch_size >= 1 else []
    if plan.protocol == YOLOV5:
        return ["run", __file__, *flags, "--device", common.device, "--output", str(output)]
    flags += ["--device", common.device] if common.device else []
    flags += ["--json", str(output), "--no-plots"]
    flags += ["--project", str(weights.parent.parent), "--name", "evaluate", "--exist-ok"]
    if plan.protocol != COCO:
        return ["evaluate", *flags, "--protocol", plan.protocol]
    thresholds = ["--conf-thres", str(SAME_CONFIDENCE), "--iou-thres", str(SAME_IOU)]
    return ["evaluate", *flags, *thresholds, "--protocol", YOLOV5, COCO]


def figures_in(content: Any, plan: Plan) -> dict[str, float]:
    """The figures in the JSON file of `command`, by the names in `FIGURES`.

    Raises:
        UserError: models of two engines are compared, and this one was not evaluated on all objects.
    """
    if plan.protocol == YOLOV5:
        return dict(content)
    if plan.protocol != COCO:
        return dict(zip(FIGURES, (content[plan.protocol][name] for name in ("P", "R", "mAP50", "mAP50-95"))))
    own, coco = content[YOLOV5], content[COCO]
    objects = sum(figures["labels"] for figures in own["per_class"].values())
    if objects != plan.objects:
        raise UserError(f"val evaluated images with {objects} objects, but the {plan.task} split has {plan.objects}")
    return dict(zip(FIGURES, (own["P"], own["R"], coco["AP50"], coco["AP"])))


def mean_of_last(rows: Sequence[Sequence[str]], last: int, protocol: str) -> dict[str, float]:
    """The means over the last epochs of the figures that a training's own ``val`` gave after each epoch.

    Args:
        rows: the cells of its ``results.csv``; the first row holds the names of the columns.
        last: number of epochs.
        protocol: ``yolov5`` or ``ultralytics``.

    Returns:
        By the names in `FIGURES`, each from 0 to 1.

    Raises:
        UserError: the training has fewer epochs, or the file does not hold these figures.
    """
    head, *others = rows or [[]]
    epochs: dict[str, Sequence[str]] = {}
    for row in others:
        # of COCO, YOLOv5 repeats the last epoch with the figures of best.pt
        epochs.setdefault(row[0], row)
    if len(epochs) < last:
        raise UserError(f"results.csv has {len(epochs)} epochs, and --last is {last}")
    chosen = [*epochs.values()][-last:]
    try:
        columns = [head.index(name) for name in _COLUMNS[protocol]]
        return dict(zip(FIGURES, (fmean(float(row[at]) for row in chosen) for at in columns)))
    except (ValueError, IndexError) as error:
        raise UserError(f"results.csv does not hold the figures of its last epochs: {error}") from error


def score(
    weights: Path, data: Path, *, task: str, imgsz: int, batch_size: int, device: str, single_cls: bool
) -> dict[str, float]:
    """Evaluate a checkpoint with the default settings of YOLOv5's `val`.

    Returns:
        ``precision`` and ``recall`` at the confidence of best F1, ``map50`` and ``map50_95``; each from 0 to 1.

    Raises:
        UserError: the data or the weights cannot be used.
    """
    engine = shim.install()
    val: Any = engine.module("val")
    with errors_as_user_errors(engine):
        found, *_ = val.run(
            data=str(data),
            weights=str(weights),
            batch_size=batch_size,
            imgsz=imgsz,
            conf_thres=CONFIDENCE_THRESHOLD,
            iou_thres=IOU_THRESHOLD,
            task=task,
            device=device,
            single_cls=single_cls,
            project=str(weights.parent.parent),
            name="val",
            exist_ok=True,
            half=False,
            plots=False,
        )
    return dict(zip(FIGURES, map(float, found[:4])))


def main(argv: Sequence[str] | None = None) -> None:
    """Score one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--imgsz", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="")
    parser.add_argument("--single-cls", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    args = vars(parser.parse_args(argv))
    output = args.pop("output")
    write_whole(output, json.dumps(score(**args)))


if __name__ == "__main__":
    main()
