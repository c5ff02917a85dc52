"""Call functions of ``tests/cases`` in a new Python process. Their arguments are passed as text."""

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

from warm_python import run_warm

_HELPERS = Path(__file__).resolve().parent
REPOSITORY = _HELPERS.parents[1]
# the folders of the package, the cases and the helpers
PATHS = (REPOSITORY, _HELPERS.parent, _HELPERS)


def name_of(case: Callable[..., object]) -> str:
    """The name of a function of ``tests/cases``, for `call`."""
    return f"{case.__module__}:{case.__qualname__}"


def call(name: str, *texts: str) -> None:
    """Call a function by its `name_of`. Each text is converted to the type in the annotation of its parameter."""
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
    """The environment of the tests with ``env`` added, in which the cases can be imported and no shim is installed."""
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
        args: its arguments, in the order of its parameters.
        cwd: the working directory.
        env: environment variables to add to those of the tests.
        longest_s: the number of seconds after which the process is ended and an error is raised.
    """
    options: dict[str, Any] = {"cwd": cwd, "env": fresh_environment(env), "timeout": longest_s}
    return subprocess.run(fresh_command(case, *args), capture_output=True, text=True, **options)


def run_in_copy(
    case: Callable[..., object], *args: object, cwd: Path = REPOSITORY, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As `run_fresh`, in a copy of a process that has loaded torch and other libraries; see `warm_python`."""
    return run_warm("fresh_process", name_of(case), *args, cwd=cwd, env=fresh_environment(env))


if __name__ == "__main__":
    call(*sys.argv[1:])
