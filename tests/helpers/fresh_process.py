"""Functions of ``tests/cases`` in a process of their own: what they are given travels as text."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_HELPERS = Path(__file__).resolve().parent
REPOSITORY = _HELPERS.parents[1]
# what a process must find: the package, the cases, what helps them
PATHS = (REPOSITORY, _HELPERS.parent, _HELPERS)


def name_of(case: Callable[..., object]) -> str:
    """The name by which `call` finds a function of ``tests/cases``."""
    return f"{case.__module__}:{case.__qualname__}"


def call(name: str, *texts: str) -> None:
    """Call a function by its `name_of`; each text becomes what the annotation of its parameter says."""
    module, _, function = name.partition(":")
    case = getattr(importlib.import_module(module), function)
    kinds = typing.get_type_hints(case)
    parameters = list(inspect.signature(case).parameters.values())
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL:
        parameters += parameters[-1:] * len(texts)
    case(*(kinds[parameter.name](text) for parameter, text in zip(parameters, texts)))


def fresh_command(case: Callable[..., object], *args: object) -> list[str]:
    """The command line that calls a function of ``tests/cases``; run it in a `fresh_environment`."""
    return [sys.executable, "-m", "fresh_process", name_of(case), *map(str, args)]


def fresh_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that finds the cases, for which no shim is installed yet."""
    paths = [*map(str, PATHS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(env or {})}
    environment.pop("YOLOV5_EMA_ACTIVE", None)
    return environment


def run_fresh(
    case: Callable[..., object],
    *args: object,
    cwd: Path = REPOSITORY,
    env: Mapping[str, str] | None = None,
    longest_s: int = 600,
) -> subprocess.CompletedProcess[str]:
    """Call a function of ``tests/cases`` in a fresh Python; stdout and stderr as text.

    Args:
        case: the function.
        args: what it is given, in the order of its parameters.
        cwd: where it runs.
        env: what its environment has beside that of the tests.
        longest_s: after so many seconds it is ended and an error raised.
    """
    options: dict[str, Any] = {"cwd": cwd, "env": fresh_environment(env), "timeout": longest_s}
    return subprocess.run(fresh_command(case, *args), capture_output=True, text=True, **options)


if __name__ == "__main__":
    call(*sys.argv[1:])
