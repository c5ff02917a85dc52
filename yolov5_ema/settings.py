"""The settings of the whole program: one frozen object, from the environment and the command line.

Child processes (ranks of torchrun, workers, trainings of ``compare``) read the settings from their environment. No
other file reads or writes these variables. How OpenMP's threads wait is passed on in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from yolov5_ema.errors import UserError

CONFLICTS = ("error", "ours", "theirs")
INITS = ("none", "identity")
LARGEST_SEED = 2**31 - 1

VARIABLES = {
    "yolov5": "YOLOV5_EMA_YOLOV5",
    "plugins": "YOLOV5_EMA_PLUGINS",
    "conflicts": "YOLOV5_EMA_CONFLICTS",
    "trust": "YOLOV5_EMA_TRUST_CHECKPOINT",
    "implementation": "YOLOV5_EMA_IMPLEMENTATION",
    "cache": "YOLOV5_EMA_CACHE",
    "seed": "YOLOV5_EMA_SEED",
    "init": "YOLOV5_EMA_INIT",
    "cpu_ddp": "YOLOV5_EMA_CPU_DDP",
    "leash": "YOLOV5_EMA_LEASH",
    "active": "YOLOV5_EMA_ACTIVE",
}
"""The environment variable of each field of `Settings`."""

_OF_ONE_PROCESS = ("active", "leash")

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables by which users say how OpenMP's threads wait: the standard's, GCC's and those of LLVM and Intel."""

_BRIEFLY = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""Threads that wait sleep; those of GCC's OpenMP, which torch uses on Linux, spin for some microseconds before."""


@dataclass(frozen=True)
class Settings:
    """Settings that apply to everything a process does.

    Attributes:
        yolov5: folder of the YOLOv5 to use; None: see `yolov5_ema.locate`.
        plugins: modules to import before a model is built.
        conflicts: what a block's name means if YOLOv5 has a class of the same name; one of `CONFLICTS`.
        trust: unpickle checkpoints without checking what they hold.
        implementation: the implementation of all blocks, see `yolov5_ema.kernels.dispatch`; None: the one that each
            block was built with.
        cache: folder of compiled kernels and exported checkpoints; None: the user's cache folder.
        seed: random seed of a training; None: YOLOv5's own.
        init: how to initialize blocks that are missing from the pretrained weights; one of `INITS`.
        cpu_ddp: the processes of torchrun share the CPU.
        leash: this process ends when its parent process does.
        active: folder of the YOLOv5 that the shim is installed for; spawned workers read it.
    """

    yolov5: str | None = None
    plugins: tuple[str, ...] = ()
    conflicts: str = "error"
    trust: bool = False
    implementation: str | None = None
    cache: str | None = None
    seed: int | None = None
    init: str = "none"
    cpu_ddp: bool = False
    leash: bool = False
    active: str | None = None

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings of this process.

        Raises:
            UserError: a variable has an invalid value; the message names the variable.
        """
        return cls(**{name: read(name) for name in VARIABLES})

    def as_environment(self) -> dict[str, str]:
        """Environment variables that hold these settings, without those that have their default value."""
        texts = {VARIABLES[field.name]: _as_text(getattr(self, field.name)) for field in fields(self)}
        unsaid = {VARIABLES[field.name]: _as_text(field.default) for field in fields(self)}
        return {name: text for name, text in texts.items() if text != unsaid[name]}

    @contextmanager
    def exported(self) -> Iterator[None]:
        """Context manager: these settings apply to this process and its children; the former ones come back on exit.

        ``active``, which says whether a shim is installed, is left as it is: the caller does not decide it.
        """
        before = _set_variables()
        _put(before, {name: text for name, text in self.as_environment().items() if name in _names()})
        try:
            yield
        finally:
            _put(_set_variables(), before)


def read(name: str) -> Any:
    """One field of `Settings.from_environment`.

    Raises:
        UserError: the variable has an invalid value.
    """
    text = os.environ.get(VARIABLES[name], "")
    reader = _READERS.get(name)
    if not text:
        return getattr(Settings, name)
    return reader(text) if reader else text


@contextmanager
def exporting(**changes: Any) -> Iterator[None]:
    """Context manager: changes these settings for this process and its children, and leaves the others alone."""
    names = [VARIABLES[name] for name in changes]
    before = {name: os.environ[name] for name in names if name in os.environ}
    after = Settings(**changes).as_environment()
    _put(names, {name: after[name] for name in names if name in after})
    try:
        yield
    finally:
        _put(names, before)


@contextmanager
def waiting_briefly() -> Iterator[None]:
    """Context manager: threads of OpenMP that wait soon sleep, here and in child processes, unless the user set it.

    Threads that spin take the cores from the other programs of a busy machine, and from each other; threads that sleep
    at once cost time on a machine that does nothing else. The runtime reads the variables when it is loaded, so this
    process must not have imported torch yet.
    """
    said = {} if any(name in os.environ for name in WAITING) else _BRIEFLY
    os.environ.update(said)
    try:
        yield
    finally:
        for name in said:
            os.environ.pop(name, None)


def take(name: str) -> Any:
    """`read`, then remove the variable, so that child processes do not see it."""
    value = read(name)
    os.environ.pop(VARIABLES[name], None)
    return value


def chosen_conflicts(said: str | None = None) -> str:
    """``said`` if given, else the setting ``conflicts``.

    Raises:
        UserError: it is not one of `CONFLICTS`.
    """
    return read("conflicts") if said is None else _one_of("conflicts", CONFLICTS)(said)


def _names() -> set[str]:
    return {variable for name, variable in VARIABLES.items() if name not in _OF_ONE_PROCESS}


def _set_variables() -> dict[str, str]:
    return {name: os.environ[name] for name in _names() if name in os.environ}


def _put(old: Any, new: Mapping[str, str]) -> None:
    for name in set(old) - new.keys():
        os.environ.pop(name, None)
    os.environ.update(new)


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return os.pathsep.join(value)
    if isinstance(value, bool):
        return "1" if value else ""
    return "" if value is None else str(value)


def _one_of(name: str, choices: tuple[str, ...]) -> Callable[[str], str]:
    def checked(text: str) -> str:
        if text not in choices:
            raise UserError(f"{name} must be one of {', '.join(choices)}, not {text!r}")
        return text

    return checked


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise UserError(f"{VARIABLES['seed']} must be a whole number from 0 to {LARGEST_SEED}, not {text!r}")
    return int(text)


def _is_on(text: str) -> bool:
    return text != "0"


_READERS: Mapping[str, Callable[[str], Any]] = {
    "plugins": lambda text: tuple(filter(None, text.split(os.pathsep))),
    "conflicts": _one_of("conflicts", CONFLICTS),
    "trust": _is_on,
    "seed": _seed,
    "init": _one_of(VARIABLES["init"], INITS),
    "cpu_ddp": _is_on,
    "leash": _is_on,
}
