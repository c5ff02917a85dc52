"""Run a comparison: trainings, each in its own process.

Finished trainings are skipped, and interrupted ones are resumed.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from yolov5_ema import files, reading
from yolov5_ema.checkpoints.loading import load_checkpoint
from yolov5_ema.comparing import machine, scoring
from yolov5_ema.comparing.plan import Plan, read_json, write_json
from yolov5_ema.data.workers import all_cores
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.settings import Settings

TRAINING, TRAINED, FINISHED, FAILED, DIVERGED = "training", "trained", "finished", "failed", "diverged"
LOG_LINES = 15
"""The number of last lines of a failed run's log that are shown."""

_WAIT_FOR_LOCK_S = 15.0  # a training whose compare was killed ends within seconds
_MOST_LOG = 2**20
"""The number of bytes that are read at the beginning or the end of a log."""
_TRANSFERRED = re.compile(r"Transferred (\d+)/(\d+) items")


@dataclass(frozen=True)
class Run:
    """One training of the comparison: a model and a seed."""

    cfg: str
    seed: int
    folder: Path

    @property
    def record_file(self) -> Path:
        return self.folder.with_suffix(".json")

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    @property
    def last(self) -> Path:
        return self.folder / "weights/last.pt"

    @property
    def best(self) -> Path:
        return self.folder / "weights/best.pt"

    def __str__(self) -> str:
        return f"{self.cfg}, seed {self.seed}"


@dataclass
class Record:
    """The record of a run, stored next to its folder.

    Attributes:
        status: "" before the start, then ``training``, ``trained`` (not scored yet), ``finished``, ``failed`` or
            ``diverged``.
        figures: results, see `scoring.FIGURES`.
        reason: the reason of a failure.
        attempts: a dict for each start: ``from_epoch``, and after its end ``seconds`` and ``exit_code``.
        transferred: the number of weights transferred from ``--weights``, and of all weights of the model.
    """

    status: str = ""
    figures: dict[str, float] | None = None
    reason: str = ""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    transferred: list[int] | None = None

    @property
    def resumed_at(self) -> list[int]:
        """Epochs at which the training was resumed."""
        return [attempt["from_epoch"] for attempt in self.attempts if attempt["from_epoch"]]


class Stopped(Exception):
    """A run was left unfinished because of `Runner.stop`."""


Watch = Callable[[Run, int], None]
"""Called about once a second with the run that is training and the number of its finished epochs."""


def runs_of(plan: Plan) -> list[Run]:
    """All runs, seed by seed, so that after an interruption the finished ones can be compared in pairs."""
    return [Run(name, seed, plan.folder / name / f"seed{seed}") for seed in plan.seeds for name in plan.cfgs]


def record_of(run: Run) -> Record:
    """Read the record that an earlier call wrote for a run.

    Raises:
        UserError: the record cannot be read.
    """
    content = read_json(run.record_file)
    if content is None:
        return Record()
    if not _is_record(content):
        raise UserError(f"{run.record_file} is not a record of a run; delete it and {run.folder}")
    return Record(**content)


def _is_record(content: Any) -> bool:
    """Whether the content of a file is a record that `Runner` writes."""
    if not isinstance(content, dict) or not set(content) <= {one.name for one in fields(Record)}:
        return False
    record = Record(**content)
    figures, attempts, share = record.figures or {}, record.attempts, record.transferred or [0, 0]
    return (
        record.status in ("", TRAINING, TRAINED, FINISHED, FAILED, DIVERGED)
        and isinstance(record.reason, str)
        and isinstance(figures, dict)
        and set(figures) in (set(), set(scoring.FIGURES))
        and all(map(_is_number, figures.values()))
        and isinstance(attempts, list)
        and all(isinstance(one, dict) and type(one.get("from_epoch")) is int for one in attempts)
        and isinstance(share, list)
        and [type(number) for number in share] == [int, int]
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Lock the comparison's folder so that two calls do not train into it at once; the folder is made if needed.

    Yields:
        A file descriptor for the trainings to inherit, so that the folder stays locked as long as one of them
        runs. None if the system has no such locks.

    Raises:
        UserError: another call uses the folder, or the folder cannot be made.
    """
    busy = f"another compare is running in {folder}; wait for it or end it"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(files.locked(folder / ".lock", busy, _WAIT_FOR_LOCK_S))
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}. Name another --project") from error
        yield held


class Runner:
    """Trains and scores the runs of a plan; several threads may use it at once.

    Args:
        plan: the comparison.
        lock: as of `locked`.
        watch: see `Watch`.
        jobs: the number of runs at the same time: each has its share of the cores, unless the user set
            ``OMP_NUM_THREADS``.
        poll_s: seconds between two looks at a training.
    """

    def __init__(self, plan: Plan, lock: int | None, watch: Watch, jobs: int = 1, poll_s: float = 1.0) -> None:
        self._plan, self._lock, self._watch, self._poll_s = plan, lock, watch, poll_s
        self._stopped, self._loading = threading.Event(), threading.Lock()
        self._threads = {"OMP_NUM_THREADS": str(max(1, all_cores() // jobs))} if jobs > 1 else {}

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """End the trainings that are at work in any thread."""
        self._stopped.set()

    def carry_out(self, run: Run) -> Record:
        """Finish a run from its current state; return its record, which holds the outcome.

        Raises:
            UserError: its folder or its record is not of this comparison, or cannot be written.
            Stopped: `stop` was called.
        """
        record = record_of(run)
        if record.status in (FINISHED, DIVERGED):
            return record
        files.check_inside(run.folder, self._plan.folder)
        with files.writing_in(run.folder.parent):
            files.make_folder(run.folder.parent, inside=self._plan.folder)
        if record.status != TRAINED:
            self._train(run, record)
        if record.status == TRAINED:
            self._score(run, record)
        return record

    def _train(self, run: Run, record: Record) -> None:
        if run.folder.exists() and not record.attempts:
            raise UserError(
                f"{run.folder} exists, but no run of this comparison made it; it was not changed. Move it away, or "
                "choose another --name"
            )
        epoch = self._epoch_to_resume(run)
        if epoch >= self._plan.common.epochs:
            self._note(run, record, TRAINED)
            return
        if epoch == 0:
            shutil.rmtree(run.folder, ignore_errors=True)
            run.log.unlink(missing_ok=True)
        record.attempts.append({"from_epoch": epoch})
        self._note(run, record, TRAINING)
        started_s = time.monotonic()
        code = self._call(run, self._training(run, is_begun=epoch > 0), watched=True)
        record.attempts[-1].update(seconds=round(time.monotonic() - started_s, 1), exit_code=code)
        record.transferred = record.transferred or _transferred(run.log)
        status, reason = _outcome(run, code)
        self._note(run, record, status, reason)

    def _epoch_to_resume(self, run: Run) -> int:
        """How many epochs an interrupted run has finished: 0 to start it again, all if only scoring is left."""
        if not run.last.is_file():
            return 0
        try:
            with self._loading:
                epoch = load_checkpoint(run.last, "cpu", engine=self._plan.trainers[run.cfg].engine)["epoch"]
        except (CheckpointError, KeyError, TypeError):  # the process ended while writing it
            return 0
        # both engines set -1 when they strip the optimizer at the end of a training
        return epoch + 1 if epoch >= 0 else self._plan.common.epochs

    def _training(self, run: Run, *, is_begun: bool) -> list[str]:
        trainer = self._plan.trainers[run.cfg]
        return (
            trainer.resume(run.last)
            if is_begun
            else trainer.start(run.cfg, self._plan.cfgs[run.cfg], run.folder, run.seed)
        )

    def _score(self, run: Run, record: Record) -> None:
        try:
            figures = self._figures(run)
        except UserError as error:
            self._note(run, record, FAILED, f"evaluating {run.folder}: {error}")
            return
        if not all(map(_is_number, figures.values())):
            self._note(run, record, FAILED, f"evaluating {run.folder} gave {figures}")
            return
        record.figures = figures
        self._note(run, record, FINISHED)

    def _figures(self, run: Run) -> dict[str, float]:
        if self._plan.last:
            return scoring.mean_of_last(_rows(run), self._plan.last, self._plan.protocol)
        output = run.folder / "figures.json"
        code = self._call(run, scoring.command(self._plan, run.cfg, run.best, output))
        if code:
            raise UserError(f"val of {run.best.name} ended with exit code {code}")
        return scoring.figures_in(read_json(output), self._plan)

    def _note(self, run: Run, record: Record, status: str, reason: str = "") -> None:
        record.status, record.reason = status, reason
        write_json(run.record_file, asdict(record))

    def _call(self, run: Run, arguments: list[str], watched: bool = False) -> int:
        """Run one of our commands with its output in the run's log; it ends when this process ends."""
        environment = {**self._threads, **os.environ, **Settings(leash=True, seed=run.seed).as_environment()}
        environment.update(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
        kept = () if self._lock is None else (self._lock,)
        with (
            files.append_to(run.log) as log,
            subprocess.Popen(
                [sys.executable, "-m", "yolov5_ema", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=kept,
            ) as process,
        ):
            try:
                while not self.is_stopped:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return process.wait(self._poll_s)
                    if watched:
                        self._watch(run, epochs_done(run))
                raise Stopped
            except BaseException:
                process.terminate()
                raise


def epochs_done(run: Run) -> int:
    """The number of epochs that a run has finished, from its ``results.csv``."""
    return len({row[0] for row in _rows(run)[1:]})


def _rows(run: Run) -> list[list[str]]:
    """The rows of a run's ``results.csv``; the first holds the names of the columns."""
    try:
        text = reading.read_text(run.folder / "results.csv", errors="ignore")
        return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    except (OSError, csv.Error):
        return []


def _outcome(run: Run, code: int) -> tuple[str, str]:
    """The status of a training that has ended, and the reason of a failure."""
    epoch = _diverged_at(run)
    if epoch is not None:
        return (
            DIVERGED,
            f"its loss is not finite from epoch {epoch} on; delete {run.folder} to train it again",
        )
    if code:
        return FAILED, f"train ended with exit code {code}"
    if not run.best.is_file():
        return FAILED, f"train did not write {run.best}"
    return TRAINED, ""


def _diverged_at(run: Run) -> int | None:
    """The first epoch of which a training loss is not finite."""
    head, *rows = _rows(run) or [[]]
    losses = [column for column, name in enumerate(head) if name.startswith("train/")]
    for row in rows:
        with contextlib.suppress(ValueError, IndexError):
            if not all(math.isfinite(float(row[column])) for column in losses):
                return int(row[0])
    return None


def _transferred(log: Path) -> list[int] | None:
    with files.open_regular(log) as stream:
        found = _TRANSFERRED.search(stream.read(_MOST_LOG).decode(errors="ignore"))
    return [int(number) for number in found.groups()] if found else None


def log_tail(run: Run) -> str:
    """The last lines of a run's log, with only the final state of progress bars."""
    try:
        with files.open_regular(run.log) as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _MOST_LOG))
            # in text mode, "\r" would count as the end of a line
            text = stream.read(_MOST_LOG).decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join([line for line in lines if line][-LOG_LINES:])


def provenance(plan: Plan) -> dict[str, Any]:
    """The software versions and the machine, for the report."""
    device = machine.torch_device(plan.common.device)
    return {"software": machine.software(*plan.engines), "machine": machine.machine(device)}
