"""Reads a pickle without executing it: nothing is imported, called or built.

A pickle is a program for a small stack machine. `follow` runs that program on stand-ins: a class or function is
represented by its name, and a call by a record of the function and its arguments. The opcodes are read by the standard
library's `pickletools.genops`. Their meaning follows Python's own ``Lib/pickle.py``, protocols 0 to 5.

Why not a library: ``torch.utils.show_pickle`` and other subclasses of ``pickle._Unpickler`` still create real tuples
and dicts. A real dict hashes its keys, and a key of nested tuples can crash the interpreter or never finish. fickling
and picklescan judge a pickle, but do not say what it holds.

Only strings and numbers are hashed, compared or traversed here. So a hostile file costs time and memory in proportion
to its size, and no more than `MAX_STEPS` allows.
"""

from __future__ import annotations

import _compat_pickle
import io
import math
import pickletools
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from yolov5_ema.texts import first_line
from yolov5_ema.weights.paths import PATHS

MAX_STEPS = 5_000_000
"""Limit for the number of opcodes; a yolov5x with its optimizer state has a twentieth of it."""

COMPUTED = "a name that is computed while the file is read"


class MalformedPickle(Exception):
    """The bytes are not a complete pickle. ``names`` counts the classes and functions named before the error."""

    def __init__(self, reason: str, names: Mapping[str, int]) -> None:
        super().__init__(reason)
        self.names = names


class Named:
    """Stand-in for a class or function: its dotted name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Items:
    """Stand-in for a list, tuple, set or frozenset."""

    __slots__ = ("items", "kind")

    def __init__(self, kind: str, items: list[Any] | None = None) -> None:
        self.kind, self.items = kind, [] if items is None else items


class Table:
    """Stand-in for a dict: pairs in the order of the file. If a key repeats, the last pair counts."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[Any, Any]] | None = None) -> None:
        self.pairs = [] if pairs is None else pairs


class Made:
    """Stand-in for the result of a call ``function(*args)``, with the state and items that are added to it later.

    ``plain`` is True for an instance made without its constructor (``cls.__new__(cls, *args)``).
    """

    __slots__ = ("args", "function", "items", "pairs", "plain", "state")

    def __init__(self, function: Any, args: Items, plain: bool) -> None:
        self.function = function
        self.args = args
        self.plain = plain
        self.state: Any = None
        self.items: list[Any] = []
        self.pairs: list[tuple[Any, Any]] = []


class Stored:
    """Stand-in for an object outside the pickle, such as a tensor's storage: its description in the pickle."""

    __slots__ = ("description",)

    def __init__(self, description: Any) -> None:
        self.description = description


@dataclass
class Followed:
    """The result of following a pickle.

    Attributes:
        value: the object that the pickle would create, as stand-ins.
        end: position after the pickle, in bytes.
        protocol: the highest protocol that it declares.
        names: every class and function that it names, and how often.
        steps: the opcodes that it uses.
        calls: every call, even if its result is discarded.
        instances: every instance made without a constructor, even if it is discarded.
        stored: every object outside the pickle that it refers to, even if it is discarded.
        odd_keys: how many keys of dicts and members of sets are not a text, a number or a short tuple of these.
        large_numbers: how many whole numbers need more than 64 bits.
        left: objects that it creates and leaves on the stack besides its value; a pickle written by a program leaves
            none.
    """

    value: Any = None
    end: int = 0
    protocol: int = 0
    names: Counter[str] = field(default_factory=Counter)
    steps: set[str] = field(default_factory=set)
    calls: list[Made] = field(default_factory=list)
    instances: list[Made] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    odd_keys: int = 0
    large_numbers: int = 0
    left: list[Any] = field(default_factory=list)


def follow(data: bytes, start: int = 0) -> Followed:
    """Follow one pickle to its end.

    Args:
        data: bytes that hold it.
        start: position in them where it begins.

    Raises:
        MalformedPickle: it is not a pickle, is cut off, or has more than `MAX_STEPS` opcodes.
    """
    found = Followed()
    machine = _Machine(data, found)
    stream = io.BytesIO(data)
    stream.seek(start)
    try:
        for steps, (opcode, argument, place) in enumerate(pickletools.genops(stream)):
            if steps >= MAX_STEPS:
                raise ValueError(f"more than {MAX_STEPS:,} opcodes")
            machine.step(opcode.name, argument, place or 0)
        found.value = machine.stack.pop()
    except IndexError:
        raise MalformedPickle("it reads beyond its stack or its end", found.names) from None
    except (ValueError, KeyError, OverflowError, struct.error, TypeError) as error:
        raise MalformedPickle(first_line(error), found.names) from None
    found.end = stream.tell()
    found.left = [item for stack in (*machine.marked, machine.stack) for item in stack]
    return found


class _Machine:
    """The stack machine: one method for each opcode, or for several similar ones. Unknown opcodes are an error."""

    def __init__(self, data: bytes, found: Followed) -> None:
        self.data, self.found = data, found
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any, place: int) -> None:
        self.found.steps.add(name)
        if name in _CONSTANTS:
            self.stack.append(argument)
            self.found.large_numbers += isinstance(argument, int) and argument.bit_length() > 64
        elif name in _FIXED:
            self.stack.append(_FIXED[name])
        elif name in _WITH_ARGUMENT:
            _WITH_ARGUMENT[name](self, argument)
        elif name in _BARE:
            _BARE[name](self)
        elif name in ("GLOBAL", "INST"):
            self._named_in_text(name, place)
        else:
            raise ValueError(f"unknown opcode {name}")

    # --- the stack -------------------------------------------------------------------------------

    def _mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def _pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._since_mark()

    def _remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _declare(self, protocol: int) -> None:
        self.found.protocol = max(self.found.protocol, protocol)

    # --- containers ------------------------------------------------------------------------------

    def _tuple(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(Items("tuple", items[::-1]))

    def _collect(self, kind: str) -> None:
        items = self._since_mark()
        if kind == "frozenset":
            self._count_odd_keys(items)
        self.stack.append(Items(kind, items))

    def _dict(self) -> None:
        items = self._since_mark()
        self._count_odd_keys(items[::2])
        self.stack.append(Table(_in_pairs(items)))

    def _add_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (Items, Made)):
            raise ValueError("it appends to something that is not a list")
        if isinstance(target, Items) and target.kind == "set":
            self._count_odd_keys(items)
        target.items.extend(items)

    def _count_odd_keys(self, keys: list[Any]) -> None:
        self.found.odd_keys += sum(1 for key in keys if not is_key(key))

    def _add_pairs(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (Table, Made)):
            raise ValueError("it sets a key of something that is not a dict")
        self._count_odd_keys(items[::2])
        target.pairs.extend(_in_pairs(items))

    # --- names and calls -------------------------------------------------------------------------

    def _named(self, module: Any, name: Any) -> Named:
        full = COMPUTED
        if isinstance(module, str) and isinstance(name, str):
            if self.found.protocol < 3:
                module, name = _of_python_3(module, name)
            full = f"{module}.{name}"
        self.found.names[full] += 1
        return Named(full)

    def _push_named(self, module: Any, name: Any) -> None:
        self.stack.append(self._named(module, name))

    def _named_in_text(self, opcode: str, place: int) -> None:
        first = self.data.index(b"\n", place + 1)
        second = self.data.index(b"\n", first + 1)
        module, name = self.data[place + 1 : first].decode(), self.data[first + 1 : second].decode()
        if opcode == "GLOBAL":
            self._push_named(module, name)
        else:
            self._call(self._named(module, name), Items("tuple", self._since_mark()), plain=False)

    def _call(self, function: Any, args: Any, plain: bool) -> None:
        if not isinstance(args, Items):
            args = Items("tuple", [args])
        reconstructs = isinstance(function, Named) and function.name == "copyreg._reconstructor"
        # protocols 0 and 1: _reconstructor(cls, object, None)
        if reconstructs and args.items:
            function, args, plain = args.items[0], Items("tuple", args.items[2:]), True
        made = Made(function, args, plain)
        self.stack.append(made)
        (self.found.instances if plain else self.found.calls).append(made)

    def _new_with_keywords(self) -> None:
        keywords, args, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        both = [*(args.items if isinstance(args, Items) else [args]), keywords]
        self._call(cls, Items("tuple", both), plain=True)

    def _object(self) -> None:
        cls, *args = self._since_mark()
        self._call(cls, Items("tuple", args), plain=False)

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Made):
            target.state = state if target.state is None else Items("states", [target.state, state])
        else:
            self.stack[-1] = Made(target, Items("tuple", [state]), plain=False)

    def _outside(self, description: Any) -> None:
        self.found.stored.append(Stored(description))
        self.stack.append(self.found.stored[-1])


def is_key(value: Any) -> bool:
    """Whether a key of a dict or a member of a set is a text, a number, or a short tuple of these.

    Hashing a deeply nested tuple crashes the Python interpreter.
    """
    if isinstance(value, Items):
        return value.kind == "tuple" and len(value.items) <= 8 and all(map(_is_simple, value.items))
    return _is_simple(value) or class_name(value).endswith(".multiarray.scalar")


def _is_simple(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bytes, Named))


def _in_pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2:
        raise ValueError("a dict has a key without a value")
    return list(zip(items[::2], items[1::2]))


def _of_python_3(module: str, name: str) -> tuple[str, str]:
    """The Python 3 name for a name of Python 2, as `pickle` maps it: ``__builtin__.set`` is ``builtins.set``."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        return _compat_pickle.NAME_MAPPING[(module, name)]
    return _compat_pickle.IMPORT_MAPPING.get(module, module), name


_CONSTANTS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_FIXED: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_WITH_ARGUMENT: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine._remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.stack.append(machine.memo[index])),
    **dict.fromkeys(
        ("EXT1", "EXT2", "EXT4"), lambda machine, code: machine._push_named("copyreg", f"extension_{code}")
    ),
    "PROTO": _Machine._declare,
    "FRAME": lambda machine, size: None,
    "PERSID": _Machine._outside,
}
_BARE: dict[str, Callable[[_Machine], Any]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "POP_MARK": _Machine._since_mark,
    "DUP": lambda machine: machine.stack.append(machine.stack[-1]),
    "MEMOIZE": lambda machine: machine._remember(len(machine.memo)),
    "EMPTY_LIST": lambda machine: machine.stack.append(Items("list")),
    "EMPTY_TUPLE": lambda machine: machine.stack.append(Items("tuple")),
    "EMPTY_SET": lambda machine: machine.stack.append(Items("set")),
    "EMPTY_DICT": lambda machine: machine.stack.append(Table()),
    "LIST": lambda machine: machine._collect("list"),
    "TUPLE": lambda machine: machine._collect("tuple"),
    "FROZENSET": lambda machine: machine._collect("frozenset"),
    "TUPLE1": lambda machine: machine._tuple(1),
    "TUPLE2": lambda machine: machine._tuple(2),
    "TUPLE3": lambda machine: machine._tuple(3),
    "DICT": _Machine._dict,
    "APPEND": lambda machine: machine._add_items([machine.stack.pop()]),
    "APPENDS": lambda machine: machine._add_items(machine._since_mark()),
    "ADDITEMS": lambda machine: machine._add_items(machine._since_mark()),
    "SETITEM": lambda machine: machine._add_pairs([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine: machine._add_pairs(machine._since_mark()),
    "STACK_GLOBAL": lambda machine: machine._push_named(machine.stack.pop(-2), machine.stack.pop()),
    "REDUCE": lambda machine: machine._call(machine.stack.pop(-2), machine.stack.pop(), plain=False),
    "NEWOBJ": lambda machine: machine._call(machine.stack.pop(-2), machine.stack.pop(), plain=True),
    "NEWOBJ_EX": _Machine._new_with_keywords,
    "OBJ": _Machine._object,
    "BUILD": _Machine._build,
    "BINPERSID": lambda machine: machine._outside(machine.stack.pop()),
    "NEXT_BUFFER": lambda machine: machine._outside("a buffer outside the pickle"),
    "READONLY_BUFFER": lambda machine: None,
    "STOP": lambda machine: None,
}


def walk(value: Any) -> Iterator[Any]:
    """Every stand-in that can be reached from a value, without duplicates, whatever its nesting and cycles."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if not isinstance(here, (Items, Table, Made, Stored, Named)) or id(here) in seen:
            continue
        seen.add(id(here))
        yield here
        waiting.extend(reversed(_parts(here)))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Items):
        return value.items
    if isinstance(value, Table):
        return [part for pair in value.pairs for part in pair]
    if isinstance(value, Made):
        of_pairs = [part for pair in value.pairs for part in pair]
        return [value.function, value.args, value.state, *value.items, *of_pairs]
    return [value.description] if isinstance(value, Stored) else []


def lookup(value: Any, key: str) -> Any:
    """The value under a key of a dict, an OrderedDict or an object's state; None if there is no such key."""
    for name, held in reversed(pairs_of(value)):
        if type(name) is str and name == key:
            return held
    return None


def pairs_of(value: Any) -> list[tuple[Any, Any]]:
    """Keys and values of a dict or an OrderedDict; an empty list for anything else."""
    return value.pairs if isinstance(value, (Table, Made)) else []


def class_name(value: Any) -> str:
    """Dotted name of the class or function that a `Made` comes from; empty for anything else."""
    if not isinstance(value, Made):
        return ""
    return value.function.name if isinstance(value.function, Named) else class_of_old_file(value.function)


def class_of_old_file(value: Any) -> str:
    """The class that a reference names in a file of torch < 1.6; empty for anything else.

    Such files refer to a layer's class, together with its source code, as an object outside the pickle.
    """
    parts = value.description.items if isinstance(value, Stored) and isinstance(value.description, Items) else []
    is_class = len(parts) == 4 and parts[0] == "module" and isinstance(parts[1], Named)
    return parts[1].name if is_class else ""


_LEFT_OUT = "…"


def plain(value: Any, depth: int = 12, budget: int = 20_000) -> Any:
    """A value as lists, dicts, strings and numbers, to be shown. Objects become names; too deep parts become ``…``."""
    return _plain(value, depth, [budget])


def _plain(value: Any, depth: int, budget: list[int]) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        return _LEFT_OUT
    if isinstance(value, Items):
        return [_plain(item, depth - 1, budget) for item in value.items[: budget[0] + 1]]
    if isinstance(value, Table):
        return _plain_pairs(value.pairs, depth, budget)
    if isinstance(value, Made):
        return _plain_object(value, depth, budget)
    if isinstance(value, Named):
        return value.name
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value):,} bytes"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no infinity and no NaN
        return str(value)
    return value if isinstance(value, (str, int, float, type(None))) else _LEFT_OUT


def _plain_pairs(pairs: list[tuple[Any, Any]], depth: int, budget: list[int]) -> dict[Any, Any]:
    found = {}
    for key, held in pairs[: budget[0] + 1]:
        name = _plain(key, 0, budget) if isinstance(key, (str, int, float, type(None))) else _LEFT_OUT
        found[name] = _plain(held, depth - 1, budget)
    return found


def _plain_object(value: Made, depth: int, budget: list[int]) -> Any:
    name = class_name(value)
    if name in PATHS and all(isinstance(part, str) for part in value.args.items):
        return PATHS[name](*value.args.items[:256])[:1000]
    if name == "collections.OrderedDict":
        return _plain_pairs(value.pairs, depth, budget)
    if name in ("builtins.set", "builtins.list", "builtins.tuple") and value.args.items:
        return _plain(value.args.items[0], depth, budget)
    return f"<{name or COMPUTED}>"
