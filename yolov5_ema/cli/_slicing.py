"""``--slice`` and ``--overlap``: those of detect and val are removed before YOLOv5's parser gets the command line."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

from yolov5_ema.cli._engines import add_engine_of_script, run_mode, words_for_ultralytics
from yolov5_ema.cli._yolov5 import show_help, start_yolov5
from yolov5_ema.cli.command import Command, Flags, own_parser
from yolov5_ema.errors import UserError

DEFAULT_SIZE = 640
DEFAULT_OVERLAP = 0.2


def script_command(script: str, summary: str, *, is_sliceable: bool = False) -> Command:
    """The command of one of YOLOv5's own scripts, with the shim installed; in windows with ``--slice``."""

    def run(args: argparse.Namespace, rest: list[str]) -> int:
        settings = slicing_of(args) if is_sliceable else None
        words = words_for_ultralytics(script, args, rest)
        if words is not None:
            return run_mode(script, words, settings)
        show_help(script, rest, command)
        engine = start_yolov5()
        from yolov5_ema.scripts import running as scripts

        with contextlib.ExitStack() as stack:
            if settings is not None:
                from yolov5_ema.scripts.sliced import sliced_inference

                stack.enter_context(sliced_inference(engine, script, *settings))
            return scripts.run_script(engine, script, rest, more_help=command.help_of_own_flags())

    def add_flags(parser: argparse.ArgumentParser) -> None:
        if is_sliceable:
            add_slicing(parser)
        add_engine_of_script(parser)

    command = Command(script, summary, run, add_flags, passes_to=script)
    return command


def take_flags(argv: Sequence[str]) -> tuple[tuple[int, float] | None, list[str]]:
    """Size and overlap of the windows (None without ``--slice``), and the remaining flags.

    Raises:
        UserError: the size or the overlap is not valid.
    """
    own, rest = own_parser(add_slicing).parse_known_args(list(argv))
    return slicing_of(own), rest


def add_slicing(flags: Flags) -> None:
    """Add ``--slice`` and ``--overlap``."""
    flags.add_argument(
        "--slice",
        nargs="?",
        const=str(DEFAULT_SIZE),
        metavar="SIZE",
        help=f"detect in overlapping windows of SIZE pixels (default: {DEFAULT_SIZE}) of larger images and in the "
        "whole image, and merge the boxes; each window is scaled to --imgsz",
    )
    flags.add_argument(
        "--overlap",
        metavar="SHARE",
        help=f"share of a window that the next one overlaps (default: {DEFAULT_OVERLAP}); only with --slice",
    )


def slicing_of(own: argparse.Namespace) -> tuple[int, float] | None:
    """Size and overlap of the windows; None without ``--slice``.

    Raises:
        UserError: the size or the overlap is not valid.
    """
    if own.slice is None:
        if own.overlap is not None:
            raise UserError(f"--overlap {own.overlap} needs --slice: it says how much windows overlap")
        return None
    from yolov5_ema.data.slicing import check_window

    try:
        size = int(own.slice)
    except ValueError:
        raise UserError(f"--slice {own.slice}: must be the size of a window, a whole number of pixels") from None
    try:
        overlap = DEFAULT_OVERLAP if own.overlap is None else float(own.overlap)
    except ValueError:
        raise UserError(f"--overlap {own.overlap}: must be a share of a window, such as {DEFAULT_OVERLAP}") from None
    check_window(size, overlap, "--slice")
    return size, overlap
