"""Commands that have commands of their own, one file each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from yolov5_ema.errors import UserError
from yolov5_ema.texts import did_you_mean, nearest


def run_subcommand(program: str, commands: Mapping[str, str], argv: Sequence[str]) -> int:
    """Run the subcommand that ``argv`` begins with; without one, say which there are.

    Args:
        program: the command's name.
        commands: modules with `SUMMARY` and `main` by the names of the subcommands.
        argv: what was given behind the command.

    Returns:
        The subcommand's exit code.

    Raises:
        UserError: there is no such subcommand.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(program, commands))
        return 0
    command, *rest = argv
    if command not in commands:
        hint = did_you_mean(nearest(command, commands))
        raise UserError(f"{program}: no command {command!r}{hint} There are: {', '.join(commands)}")
    return int(importlib.import_module(commands[command]).main(rest) or 0)


def _overview(program: str, commands: Mapping[str, str]) -> str:
    lines = [f"usage: yolov5-ema {program} COMMAND [flags]", ""]
    for name, module in commands.items():
        lines.append(f"  {name:9} {importlib.import_module(module).SUMMARY}")
    return "\n".join([*lines, "", "Each has a --help."])
