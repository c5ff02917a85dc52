"""``yolov5-ema data``: from a data set as it was downloaded to one that YOLOv5 trains on; one file a subcommand."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

from yolov5_ema.errors import UserError

SUMMARY = "convert VisDrone and COCO, slice images, look at a data set's sizes and classes"

COMMANDS = {
    "visdrone": "yolov5_ema.cli.data.visdrone",
    "coco": "yolov5_ema.cli.data.coco",
    "stats": "yolov5_ema.cli.data.stats",
    "slice": "yolov5_ema.cli.data.slice",
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
        raise UserError(f"data: no command {command!r}{hint} There are: {', '.join(COMMANDS)}")
    return int(importlib.import_module(COMMANDS[command]).main(rest) or 0)


def _overview() -> str:
    lines = ["usage: yolov5-ema data COMMAND [flags]", ""]
    for name, module in COMMANDS.items():
        lines.append(f"  {name:9} {importlib.import_module(module).SUMMARY}")
    return "\n".join([*lines, "", "Each has a --help."])
