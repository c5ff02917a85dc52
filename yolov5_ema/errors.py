"""Errors that are the user's to mend: shown as one message, never as a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave: a file, a row of a cfg, a flag.

    The message says what was wrong, where (file, row, layer), and what to do about it.
    The command line prints it and ends with exit code 2.
    """


class ConfigError(UserError, ValueError):
    """A model YAML, a data YAML or one of their rows cannot be used as it stands."""


class CheckpointError(UserError):
    """A weights file is missing, torn, no checkpoint, or holds what it should not."""


class EngineNotFoundError(UserError, ImportError):
    """No YOLOv5 was found where it was looked for."""
