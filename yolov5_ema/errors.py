"""Errors that the user can fix: the command line shows them as one message, never as a traceback."""

from __future__ import annotations

from collections.abc import Iterator


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class UserError(Exception):
    """The user passed something that cannot be used: a file, a row of a cfg or a flag.

    The message says what is wrong, where (file, row, layer), and what to do about it.
    The command line prints the message and exits with code 2.
    """


class ConfigError(UserError, ValueError):
    """A model YAML, a data YAML or a row of one is invalid."""


class CheckpointError(UserError):
    """A weights file is missing or damaged, is not a checkpoint, or holds something that it must not hold."""


class EngineNotFoundError(UserError, ImportError):
    """No YOLOv5 was found in the places that were searched."""
