"""Stand-ins for modules that others import long before they use them, if they do at all.

``torch._dynamo``, the compiler of torch, takes a second to import. torchvision imports it for one function of its
RoIAlign, and torch for its functions that must not be compiled. Pandas and matplotlib take half a second. YOLOv5
imports them for tables and plots, and changes some of their settings at once: these changes are kept for them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import operator
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any

_COMPILER = "torch._dynamo"
_LOCK = threading.RLock()

Action = Callable[[types.ModuleType], Any]
# what to do with modules once they are imported, by their names
_kept: dict[str, list[Action]] = {}


class Late(types.ModuleType):
    """Stands for a module until something else in it is used than what is given.

    Args:
        name: the full name of the module.
        is_package: whether modules in it can be imported.
        given: functions, and other things, that can be used without the module.
    """

    def __init__(self, name: str, *, is_package: bool, **given: Any) -> None:
        super().__init__(name)
        vars(self).update(given, _is_package=is_package)

    def __getattr__(self, name: str) -> Any:
        is_found = sys.modules.get(self.__name__) is self
        if is_found and name.startswith("__") and not (name == "__path__" and self._is_package):
            raise AttributeError(name)  # the import system asks every module that it finds for such names
        return getattr(self.imported(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.imported(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.imported(), name)

    def __dir__(self) -> list[str]:
        return dir(self.imported())

    def imported(self) -> types.ModuleType:
        """The module itself."""
        with _LOCK:
            if isinstance(sys.modules.get(self.__name__), Late):
                del sys.modules[self.__name__]
            is_new = self.__name__ not in sys.modules
            module = importlib.import_module(self.__name__)
            if is_new:
                _carry_out(module)
            return module

    def when_imported(self, action: Action) -> None:
        """Call a function with the module itself: at once if it is imported, else as soon as it is.

        If the module is not imported through a stand-in, this needs `spec_with_kept` in the import system.
        """
        with _LOCK:
            module = sys.modules.get(self.__name__)
            if module is None or isinstance(module, Late):
                _kept.setdefault(self.__name__, []).append(action)
            else:
                action(module)


def _carry_out(module: types.ModuleType) -> None:
    for action in _kept.pop(module.__name__, ()):
        action(module)


def spec_with_kept(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
    """For a finder of the import system: where a module is, if something is kept for it in `Late.when_imported`."""
    if name not in _kept:
        return None
    spec = importlib.machinery.PathFinder.find_spec(name, path, target)
    loader = spec and spec.loader
    # others can load several modules
    if not isinstance(loader, SourceFileLoader):
        return None
    run = loader.exec_module

    def exec_module(module: types.ModuleType) -> None:
        del vars(loader)["exec_module"]
        run(module)
        _carry_out(module)

    vars(loader)["exec_module"] = exec_module
    return spec


class KeptAttributes:
    """Stands for an object in a module: its attributes are set when the module is imported.

    Args:
        module: the stand-in for the module.
        path: where the object is in the module, such as ``options.display``.
        given: attributes that can be used without the module.
    """

    def __init__(self, module: Late, path: str, **given: Any) -> None:
        vars(self).update(given, _module=module, _path=path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(operator.attrgetter(self._path)(self._module.imported()), name)

    def __setattr__(self, name: str, value: Any) -> None:
        find = operator.attrgetter(self._path)
        self._module.when_imported(lambda module: setattr(find(module), name, value))


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


def pandas() -> Late:
    """A stand-in for pandas, of which options can be set."""
    module = Late("pandas", is_package=True)
    display = KeptAttributes(module, "options.display")
    vars(module)["options"] = KeptAttributes(module, "options", display=display)
    return module


def matplotlib() -> tuple[Late, Late]:
    """Stand-ins for matplotlib, of which the parameters and the backend can be set, and for its pyplot."""

    def rc(*args: Any, **kwargs: Any) -> None:
        module.when_imported(lambda itself: itself.rc(*args, **kwargs))

    def use(*args: Any, **kwargs: Any) -> None:
        module.when_imported(lambda itself: itself.use(*args, **kwargs))

    pyplot = Late("matplotlib.pyplot", is_package=False)
    module = Late("matplotlib", is_package=True, rc=rc, use=use, pyplot=pyplot)
    return module, pyplot


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
