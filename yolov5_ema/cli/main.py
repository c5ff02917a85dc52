"""The command ``yolov5-ema``: finds the subcommand, and turns errors of the user's into messages."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolov5_ema import __version__
from yolov5_ema.errors import UserError
from yolov5_ema.files import DISK_ERRORS
from yolov5_ema.settings import CONFLICTS, Settings
from yolov5_ema.texts import did_you_mean, nearest

COMMANDS = {
    "train": "yolov5_ema.cli.train",
    "val": "yolov5_ema.cli.val",
    "detect": "yolov5_ema.cli.detect",
    "predict": "yolov5_ema.cli.predict",
    "export": "yolov5_ema.cli.export",
    "run": "yolov5_ema.cli.run",
    "cfg": "yolov5_ema.cli.cfg",
    "info": "yolov5_ema.cli.info",
    "data": "yolov5_ema.cli.data",
    "transfer": "yolov5_ema.cli.transfer",
    "evaluate": "yolov5_ema.cli.evaluate",
    "submit": "yolov5_ema.cli.submit",
    "compare": "yolov5_ema.cli.compare",
    "classify": "yolov5_ema.cli.classify",
    "visualize": "yolov5_ema.cli.visualize",
    "report": "yolov5_ema.cli.report",
    "paper": "yolov5_ema.cli.paper",
    "inspect": "yolov5_ema.cli.inspect",
    "convert": "yolov5_ema.cli.convert",
    "blocks": "yolov5_ema.cli.blocks",
    "doctor": "yolov5_ema.cli.doctor",
    "demo": "yolov5_ema.cli.demo",
}


# These look at files: standing in a folder that looks like a clone does not make its code run.
_LOOKING = frozenset({"cfg", "convert", "doctor", "info", "inspect", "transfer"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, what the command says, or 2 for a mistake in what was given.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(f"yolov5-ema: error: {_which_process()}{error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `yolov5-ema … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"yolov5-ema: error: {_which_process()}{_refused_by_the_disk(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("yolov5-ema: interrupted", file=sys.stderr)
        return 130


def _refused_by_the_disk(error: OSError) -> str:
    """What no writer said itself: a library's file, a folder for drafts."""
    named = error.filename if isinstance(error.filename, str) else "a file"
    what = "used" if error.errno in (errno.EACCES, errno.EPERM) else "written"
    return f"{named} cannot be {what}: {error.strerror}. What was there before is whole"


def _which_process() -> str:
    """Of several that torchrun started; nothing where there is one."""
    rank = os.environ.get(
        "RANK", os.environ.get("LOCAL_RANK", "?")
    )  # Lightning's launcher sets only the second
    return f"rank {rank}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


def _dispatch(arguments: list[str]) -> int:
    ours, of_a_script = _split(arguments)
    common, rest = _common_parser().parse_known_args(ours)
    rest += of_a_script
    if not rest or rest[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if rest[0] in ("-V", "--version", "version"):
        print(f"yolov5-ema {__version__}")
        return 0
    command, *argv = rest
    before_script = argv[:1] if command == "run" and argv[:1] not in (["-h"], ["--help"], ["--"]) else []
    for word in (command, *before_script):
        if word.startswith("-"):
            raise UserError(_unknown_flag(word))
    if command not in COMMANDS:
        raise UserError(_unknown(command))
    module = importlib.import_module(COMMANDS[command])
    with _settings(common).exported(), _surroundings(command):
        return int(module.main(argv) or 0)


def _surroundings(command: str) -> AbstractContextManager[None]:
    if command not in _LOOKING:
        return nullcontext()
    from yolov5_ema.upstream.locate import leaving_working_folder_alone

    return leaving_working_folder_alone()


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What our own flags are looked for in, and what a script of the user's (``run my_script.py …``) gets untouched."""
    place = 0
    words: list[str] = []
    while place < len(arguments) and len(words) < 2:
        if arguments[place] in _WITH_VALUE:
            place += 1
        elif not arguments[place].startswith("-"):
            words.append(arguments[place])
        place += 1
    if words[:1] != ["run"] or len(words) < 2 or _is_of_yolov5(words[1]):
        return arguments, []
    return arguments[:place], arguments[place:]


def _is_of_yolov5(script: str) -> bool:
    from yolov5_ema.upstream.locate import is_yolov5_root

    path = Path(script)
    return not path.is_file() or any(is_yolov5_root(folder) for folder in path.resolve().parents)


_WITH_VALUE = ("--yolov5", "--plugin", "--conflicts")


def _common_parser() -> argparse.ArgumentParser:
    """The flags that every command takes, anywhere on the line; YOLOv5's parsers never see them."""
    parser = argparse.ArgumentParser(prog="yolov5-ema", add_help=False, allow_abbrev=False)
    parser.add_argument("--yolov5")
    parser.add_argument("--plugin", action="append", default=[])
    parser.add_argument("--conflicts", choices=CONFLICTS)
    parser.add_argument("--trust-checkpoint", action="store_true")
    return parser


def _settings(common: argparse.Namespace) -> Settings:
    """Those of the environment, and over them what the command line says."""
    said: dict[str, Any] = {}
    if common.yolov5:
        said["yolov5"] = os.path.abspath(os.path.expanduser(common.yolov5))
    if common.conflicts:
        said["conflicts"] = common.conflicts
    if common.trust_checkpoint:
        said["trust"] = True
    if common.plugin:
        said["plugins"] = tuple(common.plugin)
    return replace(Settings.from_environment(), **said)


def _overview() -> str:
    lines = [
        f"yolov5-ema {__version__}: attention blocks for YOLOv5 detectors, without editing YOLOv5",
        "",
        "usage: yolov5-ema COMMAND [flags]      (or: python -m yolov5_ema COMMAND [flags])",
        "",
    ]
    for name, module in COMMANDS.items():
        lines.append(f"  {name:9} {importlib.import_module(module).SUMMARY}")
    lines += [
        "",
        "train, val, detect and export are YOLOv5's own and take all of its flags. Each command has a --help.",
        "First steps: yolov5-ema demo",
        "             yolov5-ema train --data coco128.yaml --cfg yolov5s-ema.yaml --weights '' --img 640",
    ]
    return "\n".join(lines)


def _unknown_flag(word: str) -> str:
    known = ", ".join(flag for action in _common_parser()._actions for flag in action.option_strings)
    return f"no flag {word!r} here; known before a command, or a script to run, are {known}, each in full"


def _unknown(command: str) -> str:
    hint = did_you_mean(nearest(command, COMMANDS))
    return f"no command {command!r}{hint} There are: {', '.join(COMMANDS)}. See yolov5-ema --help"


if __name__ == "__main__":
    sys.exit(main())
