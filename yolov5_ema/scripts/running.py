"""Running YOLOv5's own scripts, with all of their flags, under the shim."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from yolov5_ema.cfgs.rows import checking_once
from yolov5_ema.errors import UserError
from yolov5_ema.scripts import exports, preflight
from yolov5_ema.scripts.mistakes import errors_as_user_errors
from yolov5_ema.scripts.run_folder import WatchedRunFolder
from yolov5_ema.scripts.skipping import SourceFiles, any_name_printed
from yolov5_ema.upstream.data_yaml import opening_once
from yolov5_ema.upstream.flags import help_options, said_of_unknown
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import ModuleView, Patches


def run_script(engine: Engine, name: str, argv: Sequence[str], *, more_help: str = "") -> int:
    """Run one of YOLOv5's scripts as its own command line would.

    Args:
        engine: the YOLOv5, with the shim installed.
        name: ``train``, ``val``, ``detect``, ``export`` …
        argv: its flags.
        more_help: text for ``--help`` on the flags that the caller has already handled.

    Returns:
        The exit code: 0, or 1 if some files could not be used in full; these have been reported.

    Raises:
        UserError: bad input, an unknown flag; a failed assert of YOLOv5 is raised as one.
        SystemExit: from argparse (``--help``, a value that cannot be read).
    """
    if not engine.has_script(name):
        raise UserError(f"{engine} has no {name.replace('.', '/')}.py")
    if not engine.has_flags(name):
        raise UserError(f"{name} of {engine} is not a script with flags; to look at a cfg: yolov5-ema info CFG")
    module = engine.module(name)
    _refuse_settings(argv)
    watched = _watched_parser(module, engine, name, more_help)
    with opening_once(), checking_once(), command_line(name, argv), watched as patches:
        with errors_as_user_errors(engine):  # some parsers already look for files
            opt = module.parse_opt()
        preflight.check(opt, name, engine)
        folder = WatchedRunFolder.watched(module, patches)
        files = SourceFiles.watched(module, patches, name, opt)
        checks = (folder.removed_if_refused(), errors_as_user_errors(engine), exports.all_written(opt, name))
        with contextlib.ExitStack() as stack:
            for context in (any_name_printed(), *checks):
                stack.enter_context(context)
            if inspect.signature(module.main).parameters:
                module.main(opt, **_callbacks(module))
            else:
                patches.set(module, "parse_opt", lambda *_: opt)  # the flags were parsed and checked above
                module.main()
    return files.finish()


def _callbacks(module: Any) -> dict[str, Any]:
    """Callbacks without any logger: the default ones of a script, and in v6.0 all, keep those of every run before."""
    if "callbacks" not in inspect.signature(module.main).parameters or not hasattr(module, "Callbacks"):
        return {}
    fresh = module.Callbacks()
    if hasattr(fresh, "_callbacks"):  # not in every fork
        fresh._callbacks = {hook: [] for hook in fresh._callbacks}
    return {"callbacks": fresh}


def _refuse_settings(argv: Sequence[str]) -> None:
    """Refuse settings in the style of ultralytics (``data=x.yaml``): YOLOv5's parser would only print its usage."""
    for before, word in zip(["", *argv], argv):
        name, equals, value = word.partition("=")
        if equals and name.isidentifier() and not before.startswith("-") and not Path(word).exists():
            flag = f"--{name} {value}" if value.lower() not in ("true", "") else f"--{name}"
            raise UserError(
                f"{word!r} is how ultralytics writes its arguments; did you mean {flag}? For a model of ultralytics, "
                "add model=, as in: yolov5-ema train model=yolo11n-ema.yaml data=coco8.yaml"
            )


def run_file(engine: Engine, script: str, argv: Sequence[str], *, more_help: str = "") -> int:
    """Run a user's script with the shim installed, as ``python SCRIPT …`` would; return the exit code.

    A script of the YOLOv5 in use (``run segment/train.py``) is run by `run_script`.
    """
    name = engine.script_named(script)
    if name is not None:
        return run_script(engine, name, argv, more_help=more_help)
    path = Path(script)
    if not path.is_file():
        raise UserError(f"no such script: {script}")
    sys.path.insert(0, str(path.resolve().parent))
    with command_line(script, argv):
        sys.argv[0] = script
        runpy.run_path(str(path), run_name="__main__")
    return 0


@contextmanager
def command_line(name: str, argv: Sequence[str]) -> Iterator[None]:
    """Inside the ``with`` block, ``sys.argv`` is the line of one of our commands."""
    before = sys.argv
    sys.argv = [f"yolov5-ema {name}", *argv]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _watched_parser(module: ModuleType, engine: Engine, name: str, more_help: str) -> Iterator[Patches]:
    """Let YOLOv5's own parser find the YAMLs of this package by name, and list our flags in its help."""

    class Parser(argparse.ArgumentParser):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**help_options(engine, name, more_help), **kwargs})

        def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
            opt, rest = super().parse_known_args(args, namespace)
            preflight.resolve_names(opt, engine, name)
            return opt, rest

        def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
            opt, rest = self.parse_known_args(args, namespace)
            if rest:
                raise UserError(f"{name.replace('.', '/')}: {said_of_unknown(rest, sys.argv[1:], self)}")
            return opt

    with Patches() as patches:
        patches.set(module, "argparse", ModuleView(argparse, ArgumentParser=Parser))
        yield patches
