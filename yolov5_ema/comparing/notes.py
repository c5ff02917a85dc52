"""What a report says about the engines of a comparison: how each trained, how all are scored, and what is not alike."""

from __future__ import annotations

from yolov5_ema.comparing.plan import ULTRALYTICS, YOLOV5, Plan
from yolov5_ema.comparing.scoring import SAME_CONFIDENCE, SAME_IOU
from yolov5_ema.comparing.trainer import Trainer
from yolov5_ema.texts import listed

_OWN_VAL = (
    "Figures: by ultralytics' own val with its default thresholds (protocol ultralytics; docs/evaluation.md). They are "
    "not comparable with those of YOLOv5's val."
)
_TWO_HEADS = (
    "Of a model of ultralytics that is trained end to end (YOLOv10, YOLO26), parameters and GFLOPs count both heads; "
    "its latency is that of the one head that runs, including the choice of the best boxes."
)
_NOT_ALIKE = (
    "Not alike in the two engines, besides the above: loss, which outputs learn an object, the average of weights over "
    "steps, how val scales images and chooses best.pt, and the order and augmentation of images with one seed. So a "
    "difference between models of two engines is one of whole recipes; blocks or layers are compared within one engine."
)


def notes_on_engines(plan: Plan) -> list[str]:
    """Sentences for a report; none if only models of YOLOv5 are compared."""
    if plan.protocol == YOLOV5:
        return []
    recipes = [_recipe_of(trainer, names, plan) for trainer, names in _names_by_trainer(plan).items()]
    if plan.protocol == ULTRALYTICS:
        return [_OWN_VAL, *recipes, _TWO_HEADS]
    scored = (
        f"Figures: every best.pt by COCO's protocol (mAP50-95 is its AP) on the same {plan.objects} objects, detected "
        f"by its engine's own val with confidence {SAME_CONFIDENCE} and NMS at IoU {SAME_IOU}; models that are trained "
        "end to end have no NMS."
    )
    return [scored, *recipes, _NOT_ALIKE, _TWO_HEADS]


def _names_by_trainer(plan: Plan) -> dict[Trainer, list[str]]:
    found: dict[Trainer, list[str]] = {}
    for name, trainer in plan.trainers.items():
        found.setdefault(trainer, []).append(name)
    return found


def _recipe_of(trainer: Trainer, names: list[str], plan: Plan) -> str:
    weights = trainer.recipe["weights"]
    start = f"from {weights['file']}" if weights else "from scratch"
    known = trainer.settings(plan.folder / names[0] / f"seed{plan.seeds[0]}")
    settings = listed(f"{name} {value}" for name, value in known.items())
    return f"{trainer.name} trained {listed(names)} {start}; {settings}; loss: {trainer.words}."
