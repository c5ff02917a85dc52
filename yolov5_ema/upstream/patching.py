"""Changing attributes of other packages' modules, and context variables, so that every change can be undone."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, TypeVar

_ABSENT = object()
_Value = TypeVar("_Value")


@contextmanager
def holding(variable: ContextVar[_Value], value: _Value) -> Iterator[None]:
    """Within: the variable has this value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


class ModuleView(types.ModuleType):
    """A module as one other module sees it: a few attributes are replaced, the rest is passed through.

    YOLOv5's files refer to ``np`` and ``torch`` by a global name. If that global is set to a view, the change is
    limited to that one file: NumPy and torch stay as they are for everybody else.
    """

    def __init__(self, module: types.ModuleType, **replaced: Any) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__dict__.update(replaced)
        self.__dict__["__wrapped__"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["__wrapped__"], name)


class Patches:
    """A list of changes to attributes and dict entries that can be undone, last first.

    As a context manager, it undoes its changes at the end of the ``with`` block.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set ``owner.name`` and remember its old value."""
        before = vars(owner).get(name, _ABSENT)
        restore = partial(delattr, owner, name) if before is _ABSENT else partial(setattr, owner, name, before)
        self._undo.append(restore)
        setattr(owner, name, value)

    def wrap(self, owner: Any, name: str, around: Callable[..., Any], *before: Any) -> None:
        """Make calls of ``owner.name`` call ``around``, with that function and ``before`` ahead of the arguments."""
        function = getattr(owner, name)

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return around(function, *before, *args, **kwargs)

        self.set(owner, name, wrapper)

    def set_item(self, table: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Set ``table[key]`` and remember its old value."""
        before = table.get(key, _ABSENT)
        restore = partial(table.pop, key, None) if before is _ABSENT else partial(table.__setitem__, key, before)
        self._undo.append(restore)
        table[key] = value

    def view(self, owner: types.ModuleType, name: str, **replaced: Any) -> None:
        """Give ``owner`` a view of the module that it calls ``name``; several views of one module add up."""
        current = getattr(owner, name)
        if isinstance(current, ModuleView):
            current.__dict__.update(replaced)
            return
        self.set(owner, name, ModuleView(current, **replaced))

    def __enter__(self) -> Patches:
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()

    def undo(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()
