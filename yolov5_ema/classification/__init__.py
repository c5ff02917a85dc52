"""Image classifiers: timm's backbones with the attention blocks of `yolov5_ema.blocks` in them.

timm (extra ``classify``) is imported only when a model is built.
"""

from yolov5_ema.classification.models import create_classifier
from yolov5_ema.classification.paper_models import (
    PaperModel,
    create_paper_model,
    list_paper_models,
    paper_model,
)
from yolov5_ema.classification.places import attention_places

__all__ = [
    "PaperModel",
    "attention_places",
    "create_classifier",
    "create_paper_model",
    "list_paper_models",
    "paper_model",
]
