"""Code that is shared by the commands that run a YOLOv5."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from yolov5_ema.cli._collector import paused
from yolov5_ema.cli.command import PROGRAM, Command
from yolov5_ema.errors import UserError
from yolov5_ema.settings import INITS, read
from yolov5_ema.upstream.flags import help_options, parser_in_text
from yolov5_ema.upstream.locate import Engine, locate


def load_plugins() -> None:
    """Import the modules named with ``--plugin``, also from the working directory; ``timm`` means timm's layers.

    Raises:
        UserError: a module cannot be imported.
    """
    for name in read("plugins"):
        if name == "timm":
            # Not at the top: the registry imports torch.
            from yolov5_ema.blocks.registry import register_all_on_demand

            register_all_on_demand()
            continue
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(name[:-3].replace("/", ".") if name.endswith(".py") else name)
        except Exception as error:
            raise UserError(f"--plugin {name}: cannot import it: {type(error).__name__}: {error}") from error


def add_init(parser: argparse.ArgumentParser) -> None:
    """Add ``--init`` to a command that trains."""
    parser.add_argument(
        "--init",
        choices=INITS,
        help="how to initialize attention blocks missing from --weights; identity: they change nothing at first",
    )


def check_init(init: str | None, weights: str | None) -> None:
    """Refuse ``--init identity`` for a training from scratch; ``weights`` is None if YOLOv5's default counts."""
    if init == "identity" and weights == "":
        raise UserError("--init identity is for pretrained --weights: from scratch there is nothing to keep")


def show_help(script: str, argv: Sequence[str], command: Command, engine: Engine | None = None) -> None:
    """If ``--help`` is among the arguments of a YOLOv5 script, print it without importing YOLOv5, and exit.

    Args:
        script: the script, such as ``train`` or ``segment.train``.
        argv: its arguments.
        command: the command that runs it.
        engine: the YOLOv5; None for the one in use.

    Raises:
        SystemExit: from argparse, after the help or for a mistake before ``--help``.
    """
    if not {"-h", "--help"}.intersection(argv):
        return
    engine = engine or locate()
    options = help_options(engine, script, command.help_of_own_flags())
    parser = parser_in_text(engine, script, prog=f"{PROGRAM} {script}", **options)
    if parser is not None:
        parser.parse_known_args(list(argv))


@paused()
def start_yolov5() -> Engine:
    """The YOLOv5 in use, with the shim installed and the plugins imported.

    Raises:
        UserError: a plugin cannot be imported, or no YOLOv5 was found.
    """
    load_plugins()
    from yolov5_ema.engine import shim

    return shim.install()
