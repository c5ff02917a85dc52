"""The training step and the evaluation step for Lightning's loop."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional

from yolov5_ema.classification.averaging import averaged
from yolov5_ema.classification.datasets import LEFT_OUT, Pictures, mixed_seed
from yolov5_ema.classification.evaluation import Evaluation, MeanLoss, Tally, reason_of
from yolov5_ema.classification.recipes import Settings
from yolov5_ema.classification.run_files import loss_message
from yolov5_ema.classification.schedules import learning_rate
from yolov5_ema.errors import UserError

_LOGGER = logging.getLogger(__name__)

_LOOK_EVERY = 50  # batches between two checks of the loss, because a check waits for the GPU
_MOST_NAMED = 20


class Training(LightningModule):
    """Trains and evaluates a classifier, with averaged weights if the settings ask for them.

    Args:
        model: the classifier, (N, 3, H, W) to logits (N, classes).
        settings: settings of the training.
        classes: number of classes.
        splits: the images of ``train`` and ``val``, to name those that cannot be read.
    """

    def __init__(self, model: nn.Module, settings: Settings, classes: int, splits: dict[str, Pictures]) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.averaged = averaged(model, settings.average) if settings.average else None
        self.train_loss = MeanLoss()
        self.tally = Tally(classes)
        self.splits = splits
        self.found: Evaluation | None = None
        self._epoch = 0
        self._lr = settings.lr
        self._unreadable: set[tuple[str, int]] = set()

    @property
    def kept(self) -> nn.Module:
        """The model that is evaluated and saved: the averaged one, if there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def figures(self) -> tuple[float, float, float, float, float]:
        """The train loss, val loss, top-1, top-5 and learning rate of the epoch that ends."""
        found = self.found
        assert found is not None
        return float(self.train_loss.compute()), found.loss, found.top1, found.top5, self._lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer of the settings; the learning rate is set before each step."""
        return make_optimizer(self.model, self.settings)

    def on_train_epoch_start(self) -> None:
        """Seed the random choices inside the model (dropout) by seed, epoch and process, also in a resumed run."""
        self._epoch = self.trainer.current_epoch
        torch.manual_seed(mixed_seed(self.settings.seed, self._epoch, self.global_rank))
        self.train_loss.reset()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Report unreadable images while the batch is still on the CPU, where looking at labels costs nothing."""
        _, labels, indices = batch
        split = "train" if self.trainer.training else "val"
        for index in indices[(labels == LEFT_OUT) & (indices >= 0)].tolist():
            self._name(split, index)
        return batch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate."""
        done = batch_idx / self.trainer.num_training_batches
        self._lr = learning_rate(self.settings, self._epoch, done)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self._lr

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The mean cross entropy of the readable images of a batch."""
        images, labels, _ = batch
        logits = self.model(images)  # (N, classes)
        count = (labels != LEFT_OUT).sum()
        total = functional.cross_entropy(
            logits,
            labels,
            ignore_index=LEFT_OUT,
            label_smoothing=self.settings.label_smoothing,
            reduction="sum",
        )
        loss = total / count.clamp(min=1)
        self.train_loss.update(total.detach(), count)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the averaged weights, and stop if the loss is not finite."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        if batch_idx % _LOOK_EVERY == 0:
            loss = float(outputs["loss"])
            if self.trainer.strategy.reduce_boolean_decision(loss != loss or abs(loss) == float("inf"), all=False):
                raise UserError(loss_message(loss, self._epoch, self.settings.precision))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the results."""
        images, labels, _ = batch
        self.tally.update(self.kept(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Compute the results over all processes."""
        self.found = self.tally.compute()
        self.tally.reset()
        if not self.found.images:
            name = self.splits["val"].name(0)
            raise UserError(f"no image of val can be read; {name} {reason_of(self.splits['val'], 0)}")

    def _name(self, split: str, index: int) -> None:
        if (split, index) in self._unreadable:
            return
        self._unreadable.add((split, index))
        if len(self._unreadable) <= _MOST_NAMED:
            pictures = self.splits[split]
            message = f"{pictures.name(index)} {reason_of(pictures, index)}; left out"
        elif len(self._unreadable) == _MOST_NAMED + 1:
            message = "further images cannot be read and are left out without being named"
        else:
            return
        _LOGGER.warning("yolov5-ema: warning: %s", message)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Make the optimizer of the settings for all trainable parameters.

    Without ``decay_bias_norm``, parameters with at most one dimension (biases, normalisation) get no weight decay, as
    in timm.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained, "weight_decay": settings.weight_decay}]
    if not settings.decay_bias_norm:
        flat = [parameter for parameter in trained if parameter.ndim <= 1]
        deep = [parameter for parameter in trained if parameter.ndim > 1]
        groups = [
            {"params": deep, "weight_decay": settings.weight_decay},
            {"params": flat, "weight_decay": 0.0},
        ]
    if settings.optimizer == "SGD":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    kind = torch.optim.Adam if settings.optimizer == "Adam" else torch.optim.AdamW
    return kind(groups, lr=settings.lr)
