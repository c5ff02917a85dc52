"""Top-1, top-5, accuracy by class and the confusion matrix of a classifier on a split (with torchmetrics)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from yolov5_ema.classification.checkpoints import Classifier
from yolov5_ema.classification.datasets import LEFT_OUT, Pictures, Samples, Shares, make_loader
from yolov5_ema.classification.images import UnreadableImage
from yolov5_ema.errors import UserError
from yolov5_ema.files import write_whole
from yolov5_ema.texts import counted


@dataclass
class Evaluation:
    """The results on a split. Accuracies are shares from 0 to 1.

    Attributes:
        images: number of evaluated images.
        top1: share of images whose class had the highest logit.
        top5: share of images whose class was among the five highest logits (among all, if there are fewer).
        loss: mean cross entropy, without label smoothing.
        confusion: int64 (classes, classes); rows are the truth, columns the prediction.
        unreadable: names of the images that could not be read, each with the reason.
    """

    images: int
    top1: float
    top5: float
    loss: float
    confusion: torch.Tensor
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def by_class(self, names: list[str]) -> list[dict[str, Any]]:
        """For each class: its name, the number of its images, and its accuracy, None if there are no images."""
        counts = self.confusion.sum(1).tolist()
        right = self.confusion.diagonal().tolist()
        return [
            {"name": name, "images": count, "top1": hits / count if count else None}
            for name, count, hits in zip(names, counts, right)
        ]

    def as_dict(self, names: list[str], record: Mapping[str, Any], parameters: int) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        return {
            "task": "classify",
            "images": self.images,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "classes": self.by_class(names),
            "confusion": self.confusion.tolist(),
            "model": record["model"],
            "block": record["block"],
            "parameters": parameters,
            "unreadable": [{"name": name, "reason": reason} for name, reason in self.unreadable],
        }


class MeanLoss(Metric):
    """The mean of losses over all processes. NaN stays NaN, whereas torchmetrics' own mean skips it."""

    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, total: torch.Tensor, count: torch.Tensor) -> None:
        """Add the sum of some losses and their number."""
        self.total += total.double()
        self.count += count

    def compute(self) -> torch.Tensor:
        """The mean; 0 if nothing was added."""
        return self.total / self.count.clamp(min=1)


class Tally(nn.Module):
    """Collects the results of batches; with several processes, `compute` gives the same results as with one.

    Args:
        classes: number of classes.
        alone: use the batches of this process only, even if there are other processes.
    """

    def __init__(self, classes: int, *, alone: bool = False) -> None:
        super().__init__()
        options: dict[str, Any] = {"sync_on_compute": not alone}
        classified = {"num_classes": classes, "ignore_index": LEFT_OUT, **options}
        self.confusion = MulticlassConfusionMatrix(**classified)
        self.top5 = MulticlassAccuracy(top_k=min(5, classes), average="micro", **classified)
        self.loss = MeanLoss(**options)

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch: logits (N, classes) and labels (N,); samples with the label `LEFT_OUT` do not count."""
        logits = logits.float()
        self.confusion.update(logits, labels)
        self.top5.update(logits, labels)
        total = functional.cross_entropy(logits, labels, ignore_index=LEFT_OUT, reduction="sum")
        self.loss.update(total, (labels != LEFT_OUT).sum())

    def compute(self) -> Evaluation:
        """The results of all batches in all processes."""
        confusion = self.confusion.compute().cpu()
        images = int(confusion.sum())
        return Evaluation(
            images=images,
            top1=int(confusion.trace()) / images if images else math.nan,
            # rounded to a whole number of images, because torchmetrics computes in float32
            top5=round(float(self.top5.compute()) * images) / images if images else math.nan,
            loss=float(self.loss.compute()),
            confusion=confusion,
        )

    def reset(self) -> None:
        """Forget all batches."""
        for metric in (self.confusion, self.top5, self.loss):
            metric.reset()


def evaluate(
    classifier: Classifier, pictures: Pictures, *, batch: int, workers: int, progress: bool = False
) -> Evaluation:
    """Evaluate a classifier on a split, in this process.

    Args:
        classifier: a classifier from `load_classifier`.
        pictures: the split; its labels are indices of the classifier's classes.
        batch: images in a batch.
        workers: number of processes that read images.
        progress: whether to show a progress bar.

    Raises:
        UserError: no image can be read.
    """
    from tqdm import tqdm

    samples = Samples(pictures, classifier.transform, classifier.imgsz, seed=0)
    shares = Shares(len(pictures), batch, 0, train=False)
    loader = make_loader(samples, shares, batch, workers, classifier.device.type == "cuda")
    tally = Tally(len(classifier.names), alone=True).to(classifier.device)
    left_out: list[int] = []
    with torch.inference_mode():
        for images, labels, indices in tqdm(loader, desc="evaluating", disable=not progress, leave=False):
            left_out += indices[labels == LEFT_OUT].tolist()
            tally.update(
                classifier.model(images.to(classifier.device)),  # (N, classes)
                labels.to(classifier.device),
            )
    unreadable = [(pictures.name(index), reason_of(pictures, index)) for index in left_out]
    if len(unreadable) == len(pictures):
        raise UserError(f"none of {counted(len(pictures), 'image')} can be read; {unreadable[0][0]} {unreadable[0][1]}")
    found = tally.compute()
    found.unreadable = unreadable
    return found


def reason_of(pictures: Pictures, index: int) -> str:
    """The reason why an image cannot be read."""
    try:
        pictures.load(index)
    except UnreadableImage as error:
        return str(error)
    return "could not be read before, but can be read now"


def write_evaluation(
    found: Evaluation, names: list[str], record: Mapping[str, Any], parameters: int, folder: Path
) -> None:
    """Write ``confusion.png`` and, last, ``metrics.json``.

    Raises:
        UserError: a file cannot be written.
    """
    from yolov5_ema.classification.confusion_picture import draw_confusion

    draw_confusion(found.confusion.numpy(), names, folder / "confusion.png")
    content = found.as_dict(names, record, parameters)
    write_whole(folder / "metrics.json", json.dumps(content, allow_nan=False) + "\n")
