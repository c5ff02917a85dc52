"""A training that is killed at any moment can be resumed as if it had been killed between two epochs.

`yolov5_ema.checkpoints.loading.save_checkpoint` writes each checkpoint in one step. This module cares for the other
files of the run folder.
"""

from __future__ import annotations

import ast
import builtins
import os
import reprlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from yolov5_ema.checkpoints.loading import load_checkpoint
from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.files import open_regular, replacement, write_whole
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import Code, dotted, value_of

_SETTINGS = ("opt.yaml", "hyp.yaml")
_MOST_BYTES = 64 * 2**20  # of a results.csv


def _empties_settings(block: ast.With) -> bool:
    """Whether a block is ``with open(…, 'w') as f: yaml.safe_dump(…)`` for a run's options or for any ``file``."""
    opened = [call for item in block.items for call in Code(item.context_expr).calls("open")]
    written = [call.args[0] for call in opened if [value_of(mode) for mode in call.args[1:]] == ["w"]]
    is_meant = any(dotted(file) == "file" or "opt.yaml" in Code(file).texts for file in written)
    return is_meant and any(Code(line).calls("yaml.safe_dump", "yaml.dump") for line in block.body)


def _open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> AbstractContextManager[IO[Any]]:
    if mode != "w" or Path(str(file)).name not in _SETTINGS:
        return builtins.open(file, mode, *args, **kwargs)
    return _written_whole(file, *args, **kwargs)


@contextmanager
def _written_whole(file: Any, *args: Any, **kwargs: Any) -> Iterator[IO[Any]]:
    with replacement(file) as draft, builtins.open(draft, "w", *args, **kwargs) as stream:
        yield stream


WHOLE_SETTINGS = Quirk(
    name="whole-settings",
    symptom="train --resume after a kill: TypeError: argparse.Namespace() argument after ** must be a mapping",
    versions="all",
    needed=lambda module: any(_empties_settings(block) for block in module.code.all(ast.With)),
    reason="opt.yaml is emptied before it is written; without its content, a training cannot be resumed",
    apply=lambda module, patches: patches.set(module.module, "open", _open),
)


def _resumes(module: SourceModule) -> str | None:
    train = module.code.part("train")
    if train is not None and module.code.has_flag("--resume") and train.has("torch.save(ckpt, last)"):
        return "a kill between writing two files of an epoch leaves files of different epochs"
    return None


def _resume_consistently(module: SourceModule, patches: Patches) -> None:
    def around(train: Callable[..., Any], hyp: Any, opt: Any, *args: Any, **kwargs: Any) -> Any:
        if opt.resume and int(os.environ.get("RANK", "-1")) <= 0:
            match_files_to_checkpoint(Path(opt.save_dir), Path(opt.weights), module.engine)
        return train(hyp, opt, *args, **kwargs)

    patches.wrap(module.module, "train", around)


def match_files_to_checkpoint(run: Path, last: Path, engine: Engine) -> None:
    """Make the files of a run match the checkpoint that it is resumed from.

    In each epoch, YOLOv5 writes a row of ``results.csv``, then ``last.pt``, then, if the epoch is the best so far,
    ``best.pt``. Rows of epochs that will be trained again are removed. If ``last.pt`` records a better
    fitness than ``best.pt``, ``best.pt`` becomes a copy of it.

    Args:
        run: the folder of the run.
        last: the checkpoint that is resumed from.
        engine: the YOLOv5 that wrote the checkpoint.

    Raises:
        UserError: a file of the run is not what a training writes.
    """
    checkpoint = load_checkpoint(last, "cpu", engine=engine)
    if not isinstance(checkpoint, dict) or checkpoint.get("optimizer") is None:
        return  # the training has finished: there is nothing to resume
    epoch = checkpoint.get("epoch")
    if type(epoch) is not int:
        raise CheckpointError(
            f"{last}: its epoch is {reprlib.repr(epoch)}, not a number; a training cannot be resumed from it"
        )
    results = run / "results.csv"
    if results.is_file():
        _drop_rows_after(epoch, results)
    best = run / "weights" / "best.pt"
    if last.name == "last.pt" and _fitness(checkpoint, last) > _fitness_in(best, engine):
        with replacement(best) as draft:
            shutil.copyfile(last, draft)


def _drop_rows_after(epoch: int, results: Path) -> None:
    with open_regular(results) as stream:
        raw = stream.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise UserError(
            f"{results} is larger than {_MOST_BYTES // 2**20} MiB, so it is not the results.csv of a training. "
            "Move it away"
        )
    text = raw.decode("utf-8", "replace").replace("\r\n", "\n")
    header, *rows = text.splitlines() or [""]
    columns = header.count(",")
    kept = [row for row in rows if row.count(",") == columns and _is_until(epoch, row)]
    if len(kept) < len(rows) or not text.endswith("\n"):
        write_whole(results, "\n".join([header, *kept]) + "\n")


def _is_until(epoch: int, row: str) -> bool:
    number = row.split(",")[0].strip()
    return number.isdecimal() and int(number) <= epoch


def _fitness_in(best: Path, engine: Engine) -> float:
    try:
        return _fitness(load_checkpoint(best, "cpu", engine=engine), best)
    except CheckpointError:  # missing, or incomplete because an older version wrote it in place
        return -1.0


def _fitness(checkpoint: Any, file: Path) -> float:
    fitness = checkpoint.get("best_fitness") if isinstance(checkpoint, dict) else None
    try:
        # v6.0 keeps an array of one number
        return 0.0 if fitness is None else float(np.asarray(fitness).item())
    except (TypeError, ValueError):
        raise CheckpointError(f"{file}: its best_fitness is {reprlib.repr(fitness)}, not a number") from None


RESUME_AFTER_KILL = Quirk(
    name="resume-after-kill",
    symptom="train --resume after a kill: an epoch twice in results.csv, or best.pt that is not the best",
    versions="all",
    needed=_resumes,
    apply=_resume_consistently,
)
