"""The command ``yolov5-ema``: it runs the subcommand and prints a user's mistakes as error messages."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolov5_ema import __version__
from yolov5_ema.allocator import keep_freed_memory
from yolov5_ema.cli._collector import leave_the_rest
from yolov5_ema.cli.command import AnyCommand, Command, Group, add_common_flags, own_parser
from yolov5_ema.errors import UserError
from yolov5_ema.files import DISK_ERRORS
from yolov5_ema.scripts import leash
from yolov5_ema.settings import Settings, waiting_briefly
from yolov5_ema.upstream.locate import is_yolov5_root

COMMANDS = (
    *(
        "train",
        "val",
        "detect",
        "predict",
        "export",
        "run",
        "yolo",
        "cfg",
        "info",
        "data",
        "transfer",
        "evaluate",
        "submit",
    ),
    *("compare", "classify", "visualize", "report", "paper", "inspect", "convert", "blocks", "doctor", "demo"),
    "completion",
)

TOP = Group(
    name="",
    summary="attention blocks for YOLOv5 detectors, without editing YOLOv5",
    package="yolov5_ema.cli",
    names=COMMANDS,
    heading=f"""\
yolov5-ema {__version__}: attention blocks for YOLOv5 detectors, without editing YOLOv5

usage: yolov5-ema COMMAND [flags]      (or: python -m yolov5_ema COMMAND [flags])""",
    closing="""\
train, val, detect and export run YOLOv5's own scripts and take all their flags. Each command has a --help.
First steps: yolov5-ema demo
             yolov5-ema train --data coco128.yaml --cfg yolov5s-ema.yaml --weights '' --img 640""",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: that of the command, or 2 for a user's mistake.
    """
    leash.end_with_parent()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments, is_program=argv is None)
    except UserError as error:
        print(f"yolov5-ema: error: {_rank_text()}{error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `yolov5-ema … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"yolov5-ema: error: {_rank_text()}{_refused_by_the_disk(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("yolov5-ema: interrupted", file=sys.stderr)
        return 130


def _refused_by_the_disk(error: OSError) -> str:
    """The message for a disk error that our own code did not turn into a UserError, such as one in a library."""
    named = error.filename if isinstance(error.filename, str) else "a file"
    what = "used" if error.errno in (errno.EACCES, errno.EPERM) else "written"
    return f"{named} cannot be {what}: {error.strerror}. Files that were there before are unchanged"


def _rank_text() -> str:
    """The rank of this process, if torchrun started several; else an empty string."""
    # Lightning's launcher sets only LOCAL_RANK.
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "?"))
    return f"rank {rank}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


def _dispatch(arguments: list[str], *, is_program: bool) -> int:
    place, *_ = [*_places_of_words(arguments), len(arguments)]
    common, strange = own_parser(add_common_flags).parse_known_args(arguments[:place])
    name, *_ = [*strange, *arguments[place : place + 1], "help"]
    if name in ("-h", "--help", "help"):
        print(TOP.overview())
        return 0
    if name in ("-V", "--version", "version"):
        print(f"yolov5-ema {__version__}")
        return 0
    if strange:
        raise UserError(_unknown_flag(name))
    command = TOP.command(name)
    common, argv = _common_flags_parsed(command, arguments[place + 1 :], common)
    if _passes_all(command) and argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--"):
        raise UserError(_unknown_flag(argv[0]))
    keep_freed_memory()
    if is_program and isinstance(command, Command) and command.closes_all:
        leave_the_rest()
    with _settings(common).exported(), waiting_briefly():
        return command.main(argv, common)


def _places_of_words(arguments: list[str]) -> list[int]:
    """Indices of the arguments that are neither flags nor values of our flags. The first is the command."""
    is_value = [False, *(word in _WITH_VALUE for word in arguments)]
    return [n for n, word in enumerate(arguments) if not word.startswith("-") and not is_value[n]]


def _passes_all(command: AnyCommand) -> bool:
    return isinstance(command, Command) and command.passes_all


def _common_flags_parsed(
    command: AnyCommand, behind: list[str], common: argparse.Namespace
) -> tuple[argparse.Namespace, list[str]]:
    """Our flags after the command's name, and the other arguments.

    Arguments after a user's own script are for that script and stay as they are.
    """
    if not _passes_all(command):
        return _parser_behind(command).parse_known_args(behind, common)
    place, *_ = [*_places_of_words(behind), len(behind)]
    common, own = own_parser(add_common_flags).parse_known_args(behind[:place], common)
    script = behind[place:]
    if script and _is_of_yolov5(script[0]):
        common, script = _parser_behind(command).parse_known_args(script, common)
    return common, own + script


def _is_of_yolov5(script: str) -> bool:
    path = Path(script)
    return not path.is_file() or any(is_yolov5_root(folder) for folder in path.resolve().parents)


_WITH_VALUE = ("--yolov5", "--plugin", "--conflicts")


def _parser_behind(command: AnyCommand) -> argparse.ArgumentParser:
    """A parser for our flags after the command's name, without those that YOLOv5's script has too."""
    passes_verbose = isinstance(command, Command) and command.passes_verbose
    return own_parser(functools.partial(add_common_flags, verbose=not passes_verbose))


def _settings(common: argparse.Namespace) -> Settings:
    """The settings: those of the command line take precedence over those of the environment."""
    said: dict[str, Any] = {
        "yolov5": common.yolov5 and os.path.abspath(os.path.expanduser(common.yolov5)),
        "conflicts": common.conflicts,
        "trust": common.trust_checkpoint,
        "plugins": tuple(common.plugin),
    }
    return replace(Settings.from_environment(), **{name: value for name, value in said.items() if value})


def _unknown_flag(word: str) -> str:
    known = ", ".join(flag for action in own_parser(add_common_flags)._actions for flag in action.option_strings)
    return f"no flag {word!r} here; before a command, or a script to run, you can use {known}, each in full"


if __name__ == "__main__":
    sys.exit(main())
