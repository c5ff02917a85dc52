"""The files in a training's run folder: results.csv, best.pt, last.ckpt and those of TensorBoard.

Each is written completely or not at all.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from yolov5_ema.classification.checkpoints import load_plainly, save_classifier, save_plainly
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.files import replacement, write_whole

_LOGGER = logging.getLogger(__name__)

COLUMNS = ("epoch", "train/loss", "val/loss", "val/top1", "val/top5", "lr")


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoints, written completely or not at all, and read without running code from them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a temporary file next to the checkpoint, then move it there."""
        with replacement(path) as draft:
            save_plainly(checkpoint, draft)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load tensors and plain values only; arguments that ask for more are ignored.

        Raises:
            CheckpointError: the file is missing, incomplete, or holds more than that.
        """
        return load_plainly(Path(path))


class RunFiles(Checkpoint):
    """Writes after each epoch: best.pt if the epoch is the best, results.csv, TensorBoard's scalars, last last.ckpt.

    ``--resume`` uses only last.ckpt. If a run is killed before last.ckpt is written, it resumes from the epoch before,
    and writes the other files of this epoch again, with the same content.

    Args:
        folder: folder of the run; None in all processes except the first.
        record: what best.pt holds besides weights and results.
    """

    def __init__(self, folder: Path | None, record: Mapping[str, Any]) -> None:
        self.folder = folder
        self.record = dict(record)
        self.history: list[dict[str, float]] = []
        self._writer: Any = None

    @property
    def best(self) -> dict[str, float]:
        """The row of the epoch with the highest top-1; of several such epochs, the earliest."""
        return max(self.history, key=lambda row: row["val/top1"])

    def state_dict(self) -> dict[str, Any]:
        """The content of this callback in last.ckpt."""
        return {"history": self.history, "settings": self.record["settings"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the content from last.ckpt."""
        self.history = [dict(row) for row in state_dict["history"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open TensorBoard's file; later epochs that an interrupted run has logged are hidden."""
        if self.folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=len(self.history))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the files of an epoch."""
        row = dict(zip(COLUMNS, (len(self.history), *pl_module.figures())))
        for loss in (row["train/loss"], row["val/loss"]):
            if not math.isfinite(loss):
                raise UserError(loss_message(loss, len(self.history), pl_module.settings.precision))
        self.history.append(row)
        if self.folder is not None:
            if self.best is row:
                self._save_best(pl_module, row)
            write_whole(self.folder / "results.csv", as_csv(self.history))
            for column in COLUMNS[1:]:
                self._writer.add_scalar(column, row[column], int(row["epoch"]))
            self._writer.flush()
            self._say(trainer, as_line(row, self.record["settings"]["epochs"]))
        trainer.save_checkpoint((self.folder or Path()) / "weights" / "last.ckpt")

    def _say(self, trainer: Trainer, line: str) -> None:
        """Above the progress bar, where there is one."""
        bar = trainer.progress_bar_callback
        if bar is None:
            _LOGGER.info(line)
        else:
            bar.print(line)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _save_best(self, module: Any, row: Mapping[str, float]) -> None:
        assert self.folder is not None
        weights = {name: tensor.detach().cpu().clone() for name, tensor in module.kept.state_dict().items()}
        figures = {"epoch": int(row["epoch"]), "top1": row["val/top1"], "top5": row["val/top5"]}
        save_classifier(self.folder / "weights" / "best.pt", {**self.record, **figures, "state_dict": weights})


def own_state(checkpoint: Any, file: Path) -> dict[str, Any]:
    """Return what `RunFiles` wrote into a last.ckpt: ``history``, a row for each finished epoch, and ``settings``.

    Raises:
        CheckpointError: the file is not a last.ckpt of 'yolov5-ema classify train'.
    """
    callbacks = checkpoint.get("callbacks") if isinstance(checkpoint, dict) else None
    own = callbacks.get(RunFiles.__qualname__) if isinstance(callbacks, dict) else None
    fields = own if isinstance(own, dict) else {}
    history = fields.get("history")
    whole = isinstance(history, list) and isinstance(fields.get("settings"), dict)
    if whole and all(isinstance(row, dict) and set(row) == set(COLUMNS) for row in history or ()):
        return fields
    raise CheckpointError(f"{file} is not a last.ckpt of 'yolov5-ema classify train'")


def as_csv(history: list[dict[str, float]]) -> str:
    """The content of results.csv: a row for each epoch, with unrounded values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def as_line(row: Mapping[str, float], epochs: int) -> str:
    """The line of one epoch for the console."""
    return (
        f"epoch {int(row['epoch']) + 1}/{epochs}: train loss {row['train/loss']:.4f}, val loss {row['val/loss']:.4f}, "
        f"top-1 {row['val/top1']:.2%}, top-5 {row['val/top5']:.2%}, lr {row['lr']:.4g}"
    )


def loss_message(loss: float, epoch: int, precision: str) -> str:
    """The message for a loss that is not finite."""
    cause = "a lower --lr or a longer warm-up"
    if precision == "16-mixed":
        cause = f"--precision bf16-mixed or 32-true, or {cause}"
    kept = ". best.pt and last.ckpt are those of the epochs before" if epoch else ""
    return f"the loss became {loss} in epoch {epoch + 1} and cannot recover; try {cause}{kept}"
