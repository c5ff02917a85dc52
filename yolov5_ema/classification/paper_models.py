"""The classifiers in the paper's Tables 1, 3 and 4, by name.

Paper: "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", Ouyang et al., ICASSP 2023,
arXiv 2305.13563.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from yolov5_ema.classification.models import create_classifier
from yolov5_ema.errors import ConfigError
from yolov5_ema.texts import did_you_mean, nearest


@dataclass(frozen=True)
class PaperModel:
    """A model of the paper: the arguments of `create_classifier`, the images' side in pixels, and its tables."""

    name: str
    model: str
    block: str | None
    num_classes: int
    stem: str
    imgsz: int
    tables: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


def _cifar(name: str, block: str | None = None, tables: tuple[int, ...] = (1,), **options: Any) -> PaperModel:
    backbone = name.partition("-")[0]
    return PaperModel(name, backbone, block, 100, "cifar", 32, tables, options)


def _mobile(name: str, block: str | None = None, **options: Any) -> PaperModel:
    return PaperModel(name, "mobilenetv2_100", block, 1000, "imagenet", 224, (3,), options)


_MODELS = {
    model.name: model
    for model in (
        _cifar("resnet50", tables=(1, 4)),
        _cifar("resnet50-cbam", "CBAM", reduction=16),
        _cifar("resnet50-sa", "SA", groups=64),
        _cifar("resnet50-eca", "ECA", kernel_size=3),
        _cifar("resnet50-nam", "NAM"),
        _cifar("resnet50-ca", "CA", reduction=32),
        _cifar("resnet50-ema32", "EMA", (1, 4), groups=32),
        _cifar("resnet50-ema16", "EMA", (4,), groups=16),
        _cifar("resnet50-ema-no", "EMA", (4,), groups=32, cross_spatial=False),
        _cifar("resnet50-se", "SE", (), reduction=16),
        _cifar("resnet101"),
        _cifar("resnet101-ca", "CA", reduction=32),
        _cifar("resnet101-ema32", "EMA", groups=32),
        _mobile("mobilenetv2"),
        _mobile("mobilenetv2-se", "SE", reduction=24, bias=True),
        _mobile("mobilenetv2-cbam", "CBAM", reduction=24),
        _mobile("mobilenetv2-ca", "CA", reduction=32),
        _mobile("mobilenetv2-ema", "EMA", groups="nearest"),
    )
}


def list_paper_models(table: int | None = None) -> list[str]:
    """List the names of the paper's classifiers, of one table or of all, in the paper's order.

    SE on ResNet50 is not in a table, only in the authors' repository.

    >>> list_paper_models(3)
    ['mobilenetv2', 'mobilenetv2-se', 'mobilenetv2-cbam', 'mobilenetv2-ca', 'mobilenetv2-ema']
    """
    return [name for name, model in _MODELS.items() if table is None or table in model.tables]


def paper_model(name: str) -> PaperModel:
    """Return the description of one of the paper's classifiers.

    Raises:
        ConfigError: there is no classifier with this name.
    """
    if name in _MODELS:
        return _MODELS[name]
    hint = did_you_mean(nearest(name, _MODELS))
    raise ConfigError(f"the paper has no classifier {name!r}{hint} There are: {', '.join(_MODELS)}")


def create_paper_model(name: str) -> nn.Module:
    """Build one of the paper's classifiers with new weights; images (N, 3, imgsz, imgsz) to logits (N, num_classes).

    Raises:
        ConfigError: there is no classifier with this name.
    """
    model = paper_model(name)
    return create_classifier(
        model.model, model.block, num_classes=model.num_classes, stem=model.stem, block_options=model.options
    )
