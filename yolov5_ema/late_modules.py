"""Stand-ins for modules that others import long before they use them, if they do at all.

``torch._dynamo``, the compiler of torch, takes a second to import. torchvision imports it for one function of its
RoIAlign, and torch for its functions that must not be compiled.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

_COMPILER = "torch._dynamo"
_LOCK = threading.RLock()


class Late(types.ModuleType):
    """Stands for a module until something else in it is used than what is given.

    Args:
        name: the full name of the module.
        is_package: whether modules in it can be imported.
        given: functions that can be used without the module.
    """

    def __init__(self, name: str, *, is_package: bool, **given: Callable[..., Any]) -> None:
        super().__init__(name)
        vars(self).update(given)
        self._is_package = is_package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not (name == "__path__" and self._is_package):
            raise AttributeError(name)  # the import system asks every module for such names
        return getattr(self.imported(), name)

    def imported(self) -> types.ModuleType:
        """The module itself."""
        with _LOCK:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            return importlib.import_module(self.__name__)


@contextlib.contextmanager
def standing_in(*modules: Late) -> Iterator[None]:
    """Context manager in which modules that nobody has imported yet are found as their stand-ins."""
    added = {module.__name__: module for module in modules if module.__name__ not in sys.modules}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def compiler_of_torchvision() -> Late:
    """A stand-in for the module from which torchvision takes a function."""

    def is_compile_supported(device_type: str) -> bool:
        found: bool = module.imported().is_compile_supported(device_type)
        return found

    module = Late(f"{_COMPILER}.utils", is_package=False, is_compile_supported=is_compile_supported)
    return module


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Context manager for computing on the meta device: torch does not import its compiler to keep out of it.

    Functions of torch that must not be compiled ask the compiler, at their first call, for a version of themselves that
    is not, and keep it. In here they get themselves, and keep nothing.
    """
    asked: list[Any] = []

    def disable(function: Any, *_: Any, **__: Any) -> Any:
        asked.append(function)
        return function

    try:
        with standing_in(Late(_COMPILER, is_package=True, disable=disable)):
            yield
    finally:
        for function in asked:
            vars(function).pop("__dynamo_disable", None)
