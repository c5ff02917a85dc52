"""Runs that a stranger has changed, and trainings without the guards."""

from __future__ import annotations

import sys
from typing import Any

import yaml

from yolov5_ema.checkpoints.loading import load_checkpoint, save_checkpoint
from yolov5_ema.cli.main import main
from yolov5_ema.engine import activation, shim
from yolov5_ema.scripts import preflight


def command_without_guards(*argv: str) -> None:
    theirs: Any = preflight.resumed_training
    activation.GUARDS, theirs.refuse_unguarded = (), lambda module: None
    sys.exit(main(list(argv)))


def change_options(root: str, file: str, says: str) -> None:
    """Put options, given as YAML, into a checkpoint; exit code 3: it holds none."""
    engine = shim.install(root)
    held = load_checkpoint(file, "cpu", engine=engine)
    if "opt" not in held:
        sys.exit(3)
    held["opt"].update(yaml.safe_load(says))
    save_checkpoint(held, file, engine=engine)
