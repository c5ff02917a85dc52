"""``yolov5-ema classify``: image classifiers with attention blocks; one file a subcommand."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

from yolov5_ema.errors import UserError

SUMMARY = "train, evaluate and use image classifiers with attention blocks (CIFAR-100, ImageNet)"

COMMANDS = {
    "train": "yolov5_ema.cli.classify.train",
    "val": "yolov5_ema.cli.classify.val",
    "predict": "yolov5_ema.cli.classify.predict",
}


def main(argv: Sequence[str]) -> int:
    """Run one of the subcommands."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"classify: no command {command!r}{hint} There are: {', '.join(COMMANDS)}")
    return int(importlib.import_module(COMMANDS[command]).main(rest) or 0)


def _overview() -> str:
    lines = ["usage: yolov5-ema classify COMMAND [flags]", ""]
    for name, module in COMMANDS.items():
        lines.append(f"  {name:8} {importlib.import_module(module).SUMMARY}")
    return "\n".join([*lines, "", "Each has a --help. First steps: yolov5-ema classify train"])
