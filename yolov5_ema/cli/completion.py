"""``yolov5-ema completion``: print a completion script for a shell."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any

from yolov5_ema import __version__
from yolov5_ema.cli.command import PROGRAM, Command, Group, add_common_flags, own_parser, results_alone
from yolov5_ema.errors import EngineNotFoundError, UserError
from yolov5_ema.upstream.flags import parser_in_text, script_parser
from yolov5_ema.upstream.locate import Engine, locate

_LOGGER = logging.getLogger(__name__)
_SHELLS = ("bash", "zsh", "fish")
_ScriptParsers = Callable[[str], argparse.ArgumentParser | None]

_EPILOG = """\
The script completes commands, flags, and the values of flags with a fixed set of choices. The flags of train, val,
detect and export are those of the installed YOLOv5, or of the clone named with --yolov5: print the script again when
that changes.

  bash  yolov5-ema completion bash > ~/.local/share/bash-completion/completions/yolov5-ema
  zsh   yolov5-ema completion zsh > FOLDER/_yolov5-ema        FOLDER is a folder in $fpath
  fish  yolov5-ema completion fish > ~/.config/fish/completions/yolov5-ema.fish
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Print the script, without running a command."""
    try:
        import shtab
    except ImportError as error:
        raise UserError(f"completion needs the package shtab, which is missing: pip install shtab ({error})") from error
    from yolov5_ema.cli.main import TOP

    with results_alone(True) as output:
        parser = own_parser(add_common_flags)
        parser.prog = PROGRAM
        parser.add_argument("-h", "--help", action="help", help="list the commands")
        parser.add_argument("-V", "--version", action="version", version=__version__, help="print the version")
        _add_commands(parser, TOP, _scripts_of_yolov5())
        if args.shell != "bash":
            _complete_files(parser, shtab.FILE)
        script = shtab.complete(parser, args.shell, root_prefix="yolov5_ema")
    print(script, file=output)
    if args.shell == "bash":
        # Complete files where shtab has no completion. If these arguments were marked as files, as for the other
        # shells, shtab's script would offer no flags after a list of files.
        print(f"complete -o bashdefault -o default -F _shtab_yolov5_ema {PROGRAM}", file=output)
    return 0


def _scripts_of_yolov5() -> _ScriptParsers:
    """A function that returns the parser of a YOLOv5 script; it returns None if there is no YOLOv5."""
    try:
        engine = locate()
    except EngineNotFoundError as error:
        _LOGGER.warning("the flags of YOLOv5's own scripts are left out: %s", error)
        return lambda name: None
    return lambda name: parser_in_text(engine, name) or _imported_parser(engine, name)


def _imported_parser(engine: Engine, script: str) -> argparse.ArgumentParser | None:
    """The parser of a script whose text alone does not give it."""
    from yolov5_ema.engine import shim

    with shim.installed(str(engine.root)):
        return script_parser(engine, script)


def _add_commands(parser: argparse.ArgumentParser, group: Group, scripts: _ScriptParsers) -> None:
    commands = parser.add_subparsers()
    for name, command in group.commands():
        options: dict[str, Any] = {"help": command.summary, "add_help": False}
        if isinstance(command, Group):
            _add_commands(commands.add_parser(name, **options), command, scripts)
            continue
        own = commands.add_parser(name, **options, parents=[command.parser()])
        theirs = scripts(command.passes_to) if command.passes_to else None
        for action in theirs._actions if theirs else ():
            # A flag that both have is the command's own.
            action.option_strings = [flag for flag in action.option_strings if flag not in own._option_string_actions]
            if action.option_strings:
                own._add_action(action)


def _complete_files(parser: argparse.ArgumentParser, file: Any) -> None:
    """Complete file names for every value without a fixed set of choices."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                _complete_files(one, file)
        elif action.nargs != 0 and not action.choices:
            action.complete = file  # type: ignore[attr-defined]


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=_SHELLS)


COMMAND = Command(
    "completion",
    "print a script that lets bash, zsh or fish complete commands and flags",
    _run,
    _add_flags,
    description="Print a completion script for a shell.",
    epilog=_EPILOG,
    only_looks=True,
)
