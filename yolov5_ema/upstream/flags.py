"""The flags that a command passes on to one of YOLOv5's scripts, as that script will understand them.

YOLOv5's parsers accept abbreviations, such as ``--single`` for ``--single-cls``. Code that looks at the flags before
YOLOv5 does must understand them in the same way.
"""

from __future__ import annotations

import argparse
import ast
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from yolov5_ema.errors import UserError
from yolov5_ema.texts import did_you_mean, nearest
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import ModuleView, Patches
from yolov5_ema.upstream.source_code import Code, code_in

_BARE_NAMES = "cfg and data YAMLs that ship with yolov5-ema are found by their bare names: --cfg yolov5s-ema.yaml\n"


class Given(NamedTuple):
    """A flag on a command line.

    Attributes:
        typed: the flag as it was typed, such as ``--single``.
        value: the word after it; None if that is another flag, or if there is none.
    """

    typed: str
    value: str | None


def given_flags(engine: Engine, script: str, argv: Sequence[str]) -> dict[str, Given]:
    """Return the flags on a command line.

    Args:
        engine: the YOLOv5, with the shim installed.
        script: the script that the flags are for, such as ``val``.
        argv: the command line.

    Returns:
        The flags by the name under which the script stores the value, such as ``single_cls``. If a flag is repeated,
        the last one counts. Unknown flags and ambiguous abbreviations are left out: the script itself refuses them.
    """
    known = _flags_of(engine, script)
    given = {}
    for word, following in zip(argv, [*argv[1:], "--"]):
        typed, is_joined, value = word.partition("=")
        meant = _meant(typed, known)
        if meant is not None:
            behind = None if following.startswith("--") else following
            given[known[meant]] = Given(typed, value if is_joined else behind)
    return given


def refuse_shortened(given: Mapping[str, Given], parser: argparse.ArgumentParser) -> None:
    """Refuse abbreviations of flags that the command itself reads: only YOLOv5's script would understand them.

    Args:
        given: see `given_flags`.
        parser: the command's parser. Flags with the same meaning have the same name in the command and in the script.

    Raises:
        UserError: a flag is abbreviated; the message names it.
    """
    own = {action.dest: action.option_strings for action in parser._actions}
    for name, (typed, _) in given.items():
        if name in own and typed not in own[name]:
            raise UserError(f"{typed}: write {own[name][-1]} in full; '{parser.prog}' reads that flag itself")


def refuse_unknown(engine: Engine, script: str, argv: Sequence[str], prog: str) -> None:
    """Refuse flags for a script that the script does not know, before it runs and under the name of the command.

    Args:
        engine: the YOLOv5, with the shim installed.
        script: the script that the flags are for, such as ``val``.
        argv: the flags.
        prog: what the user typed, such as ``yolov5-ema evaluate``.

    Raises:
        UserError: a flag is unknown; the message says which one may be meant.
        SystemExit: from argparse, if a value cannot be read.
    """
    parser = parser_in_text(engine, script) or script_parser(engine, script)
    if parser is None:
        return
    parser.prog = prog
    unknown = parser.parse_known_args(list(argv))[1]
    if unknown:
        raise UserError(f"{prog.split()[-1]}: {said_of_unknown(unknown, argv, parser)}")


def said_of_unknown(unknown: Sequence[str], argv: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """The message for arguments that a parser did not understand, with what may be meant.

    Args:
        unknown: these arguments, in their order.
        argv: the whole command line.
        parser: the parser.
    """
    known = {flag: action for action in parser._actions for flag in action.option_strings}
    typed = unknown[0].partition("=")[0]
    if typed in ("-o", "--output") and {"--project", "--name"} <= known.keys():
        hint = "; the run folder is named with --project and --name"
    elif typed.startswith("--"):
        longer = [flag for flag in known if flag.startswith(typed)]
        hint = did_you_mean(longer[:1] or nearest(typed, known), otherwise="")
    else:
        hint = _hint_for_value(unknown[0], argv, known)
    return f"unrecognized arguments: {' '.join(unknown)}{hint}"


def _hint_for_value(value: str, argv: Sequence[str], known: Mapping[str, argparse.Action]) -> str:
    """For a value too many, how many the flag before it takes."""
    before = list(argv[: list(argv).index(value)]) if value in argv else []
    flag = next((word for word in reversed(before) if word.startswith("-")), "")
    meant = _meant(flag, {name: name for name in known})
    count = known[meant].nargs if meant else "*"
    return f"; {flag} takes {'no' if count == 0 else 'one'} value" if count in (None, 0, "?") else ""


def _meant(typed: str, known: Mapping[str, str]) -> str | None:
    if typed in known:
        return typed
    longer = [flag for flag in known if typed.startswith("--") and typed != "--" and flag.startswith(typed)]
    return longer[0] if len(longer) == 1 else None


class _Parser(Exception):
    """Carries the parser that a script was about to use."""


def parser_of(script: Any) -> argparse.ArgumentParser | None:
    """Return the parser of one of YOLOv5's scripts, or None if it has none.

    Args:
        script: the script's module, imported with the shim installed.
    """

    if not hasattr(script, "parse_opt"):
        return None
    with Patches() as patches:
        patches.set(script, "argparse", ModuleView(argparse, ArgumentParser=_Caught))
        return _caught_in(script.parse_opt)


class _Caught(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        raise _Parser(self)


def _caught_in(parse_opt: Callable[[], object]) -> argparse.ArgumentParser | None:
    try:
        parse_opt()
    except _Parser as caught:
        parser: argparse.ArgumentParser = caught.args[0]
        parser.__class__ = argparse.ArgumentParser  # so that it can parse
        return parser
    return None


def parser_in_text(engine: Engine, script: str, **options: Any) -> argparse.ArgumentParser | None:
    """The parser of one of an engine's scripts, without importing the script or torch; needs no shim.

    Only ``parse_opt`` is run, with the imports from the standard library and the variables that it needs. Default
    values are those of the text; quirks may change them.

    Args:
        engine: the YOLOv5.
        script: the script, such as ``train`` or ``segment.train``.
        options: keyword arguments of the parser that the script does not set itself.

    Returns:
        The parser; None if the script has none, or needs more to make it.
    """
    file = engine.script_file(script)
    code = code_in(file)
    function = code.part("parse_opt")
    if function is None or "argparse.ArgumentParser" not in function.names:
        return None
    scope: dict[str, Any] = {"__file__": str(file), "__name__": script}
    try:
        exec(compile(_needed(code, function), str(file), "exec"), scope)
        parser_class = functools.partial(_Caught, **options)
        scope["argparse"] = ModuleView(argparse, ArgumentParser=parser_class)
        return _caught_in(scope["parse_opt"])
    except Exception:  # whatever is missing, the script itself has it
        return None


def _needed(code: Code, function: Code) -> ast.Module:
    """A function, and the simple statements before it that define what it uses."""
    assert isinstance(code.tree, ast.Module) and isinstance(function.tree, ast.stmt)
    kept, names = [function.tree], set(function.names)
    for statement in reversed(code.tree.body):
        if _is_simple(statement) and names & Code(ast.Module([statement], [])).own_names:
            kept.append(statement)
            names |= Code(statement).names
    return ast.Module(kept[::-1], [])


def _is_simple(statement: ast.stmt) -> bool:
    """Whether it sets variables or imports modules of the standard library."""
    if isinstance(statement, ast.If):
        return all(map(_is_simple, [*statement.body, *statement.orelse]))
    imported = Code(statement).imported if isinstance(statement, (ast.Import, ast.ImportFrom)) else None
    if imported is None:
        return isinstance(statement, (ast.Assign, ast.AnnAssign))
    return all(one.module.split(".")[0] in sys.stdlib_module_names for one in imported)


def help_options(engine: Engine, script: str, more_help: str) -> dict[str, Any]:
    """Keyword arguments that make a script's parser list our flags, ``more_help``, in its help."""
    return {
        "epilog": f"{more_help}\n{_BARE_NAMES}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "description": f"YOLOv5's own {script}, with the attention blocks known ({engine})",
    }


def script_parser(engine: Engine, script: str) -> argparse.ArgumentParser | None:
    """The parser of one of an engine's scripts, such as ``val``, or None; the shim must be installed."""
    return parser_of(engine.module(script))


def _flags_of(engine: Engine, script: str) -> dict[str, str]:
    """All flags of a script, each with the name under which the script stores its value."""
    parser = parser_in_text(engine, script) or script_parser(engine, script)
    actions = parser._actions if parser else []
    return {flag: action.dest for action in actions for flag in action.option_strings}
