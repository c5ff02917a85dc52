"""Checking that the extra ``classify`` is installed."""

from __future__ import annotations

import importlib

from yolov5_ema.errors import UserError


def require(*modules: str) -> None:
    """Import the modules; if one cannot be imported, raise a UserError that says what to install."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"classify needs {name} ({error}): pip install 'yolov5-ema[classify]'") from error
