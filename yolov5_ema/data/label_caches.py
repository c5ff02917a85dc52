"""YOLOv5's label caches (``labels/train.cache``), read without unpickling them.

YOLOv5 stores the content of label files as a NumPy array that holds one pickled dict, and a pickle can run any code.
This module interprets the pickle's opcodes one by one, as Python's own ``Lib/pickle.py`` does. They can make strings,
numbers, tuples, lists, dicts and arrays of numbers, and nothing else. Large data sets have large caches, so this is
written for speed. `yolov5_ema.weights.inert_pickle`, which records what a file would call, takes twice as long.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from yolov5_ema.files import open_regular

_MOST_BYTES = 2**30
_MOST_CLASSES = 100_000
_LARGEST_SIDE = 2**20  # pixels
_MOST_LABELS = 100_000  # for each image
_MAGIC = b"\x93NUMPY"
_NUMBERS = {f"{kind}{size}" for kind, sizes in (("f", "248"), ("i", "1248"), ("u", "1248")) for size in sizes} | {"b1"}
_ARRAY = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_SCALAR = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
_KNOWN = {*_ARRAY, *_SCALAR, "numpy ndarray", "numpy dtype"}
_TORN = (IndexError, KeyError, ValueError, TypeError, OverflowError, struct.error, MemoryError)


class UnusableCache(ValueError):
    """A file is not a label cache as YOLOv5 writes it; the message says why."""


def read_label_cache(file: str | Path) -> dict[str, Any]:
    """Read what YOLOv5 stored about the labels of a data set.

    Args:
        file: the ``.cache`` file.

    Returns:
        For the path of each image, ``[labels (N, 5 or more), (width, height), segments]``; and YOLOv5's own entries
        ``hash``, ``results``, ``msgs`` and ``version``.

    Raises:
        OSError: it cannot be opened.
        UserError: it is a folder, a pipe or a device.
        UnusableCache: it holds something else, or values that are impossible in a label file.
    """
    with open_regular(file) as stream:
        data = stream.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise UnusableCache(f"it is larger than {_MOST_BYTES // 2**20} MiB")
    try:
        content = _Machine(data, _start_of_pickle(data)).run()
    except UnusableCache:
        raise
    except _TORN as error:
        raise UnusableCache(f"it is cut off or changed ({type(error).__name__}: {str(error)[:200]})") from None
    _check(content)
    return content


def _start_of_pickle(data: bytes) -> int:
    """The position after NumPy's header, which says that one object follows."""
    if not data.startswith(_MAGIC):
        raise UnusableCache("it is not a NumPy file")
    width, start = (2, 10) if data[6] == 1 else (4, 12)
    end = start + int.from_bytes(data[8 : 8 + width], "little")
    header = data[start:end].replace(b" ", b"")
    if b"'descr':'|O'" not in header or b"'shape':()" not in header:
        raise UnusableCache("it holds something other than one dict")
    return end


class _Name(str):
    """A function that a pickle names."""


class _Kind(str):
    """A dtype, by its code."""


class _Empty:
    """An array before it is filled; ``place`` is its index in the memo, if it has one."""

    def __init__(self, place: int) -> None:
        self.place = place


class _Machine:
    """The stack machine of a pickle.

    Each method runs one opcode. It takes the position after the opcode and returns the position of the next one.
    """

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: list[Any] = []

    def run(self) -> Any:
        data, position, steps, memo = self.data, self.position, _STEPS, self.memo
        code = data[position]
        while code != 0x2E:  # STOP
            position += 1
            if code == 0x94:  # MEMOIZE and BINGET, the most frequent, without a call
                memo.append(self.stack[-1])
            elif code == 0x68:
                self.stack.append(memo[data[position]])
                position += 1
            else:
                step = steps[code]
                if step is None:
                    raise UnusableCache(f"it has an opcode that no label cache needs ({chr(code)!r})")
                position = step(self, position)
            code = data[position]
        return self.stack.pop()

    def int4(self, at: int) -> int:
        self.stack.append(int.from_bytes(self.data[at : at + 4], "little", signed=True))
        return at + 4

    def long1(self, at: int) -> int:
        end = at + 1 + self.data[at]
        self.stack.append(int.from_bytes(self.data[at + 1 : end], "little", signed=True))
        return end

    def float8(self, at: int) -> int:
        self.stack.append(struct.unpack_from(">d", self.data, at)[0])
        return at + 8

    def piece(self, at: int, width: int) -> bytes:
        """The bytes after a length of ``width`` bytes; `position` is set to their end."""
        start = at + width
        end = start + int.from_bytes(self.data[at:start], "little")
        if end > len(self.data):
            raise UnusableCache("it is cut off")
        self.position = end
        return self.data[start:end]

    def remember(self, place: int, at: int) -> int:
        if place != len(self.memo):
            raise UnusableCache("it stores values out of order")
        self.memo.append(self.stack[-1])
        return at

    def get4(self, at: int) -> int:
        self.stack.append(self.memo[int.from_bytes(self.data[at : at + 4], "little")])
        return at + 4

    # --- containers -----------------------------------------------------------------------------

    def mark(self, at: int) -> int:
        self.marked.append(self.stack)
        self.stack = []
        return at

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def tuple_since_mark(self, at: int) -> int:
        items = self.since_mark()
        self.stack.append(tuple(items))
        return at

    def extend(self, items: list[Any], at: int) -> int:
        target = self.stack[-1]
        if type(target) is not list:
            raise UnusableCache("it appends to something that is not a list")
        target.extend(items)
        return at

    def set_items(self, items: list[Any], at: int) -> int:
        target, keys = self.stack[-1], items[::2]
        # only string keys: hashing a deeply nested tuple crashes the interpreter
        if type(target) is not dict or any(type(key) is not str for key in keys):
            raise UnusableCache("it has a key that is not a string")
        target.update(zip(keys, items[1::2]))
        return at

    # --- NumPy ----------------------------------------------------------------------------------

    def name_in_text(self, at: int) -> int:
        first = self.data.index(b"\n", at)
        second = self.data.index(b"\n", first + 1)
        self._name(self.data[at:first].decode(), self.data[first + 1 : second].decode())
        return second + 1

    def name_on_stack(self, at: int) -> int:
        name, module = self.stack.pop(), self.stack.pop()
        self._name(module, name)
        return at

    def _name(self, module: Any, name: Any) -> None:
        full = f"{module} {name}"
        if full not in _KNOWN:
            raise UnusableCache(f"it names {full.replace(' ', '.')[:200]}, which no label cache needs; nothing was run")
        self.stack.append(_Name(full))

    def call(self, at: int) -> int:
        args, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Name or type(args) is not tuple:
            raise UnusableCache("it calls something that no label cache needs")
        if function in _ARRAY:
            self.stack.append(_Empty(len(self.memo)))
        elif function == "numpy dtype" and args[0] in _NUMBERS | {"O8"}:
            self.stack.append(_Kind(args[0]))
        elif function in _SCALAR and type(args[0]) is _Kind:
            self.stack.append(np.frombuffer(args[1], _number(args[0]), count=1)[0].item())
        else:
            raise UnusableCache("it calls something that no label cache needs")
        return at

    def build(self, at: int) -> int:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is _Kind:
            self.stack[-1] = _in_byte_order(target, state)
        elif type(target) is _Empty:
            array = self.stack[-1] = _filled(state)
            if target.place < len(self.memo) and self.memo[target.place] is target:
                self.memo[target.place] = array
        else:
            raise UnusableCache("it fills something that no label cache needs")
        return at


def _in_byte_order(kind: _Kind, state: tuple[Any, ...]) -> _Kind:
    """Apply ``(3, '<', None, None, None, -1, -1, 0)``: only a byte order, nothing that turns numbers into pointers."""
    if len(state) != 8 or state[1] not in ("<", "|") or state[2:5] != (None, None, None):
        raise UnusableCache("it holds an array of a kind that no label cache needs")
    return kind


def _number(kind: str) -> np.dtype[Any]:
    if kind not in _NUMBERS:
        raise UnusableCache("it holds an array of objects")
    return np.dtype(kind)


def _filled(state: tuple[Any, ...]) -> Any:
    """An array of numbers; for the outermost array, which holds the dict, that dict."""
    _, shape, kind, is_fortran, content = state
    if kind == "O8":
        if shape != () or type(content) is not list or len(content) != 1:
            raise UnusableCache("it holds an array of objects")
        return content[0]
    array = np.frombuffer(bytearray(content), _number(kind))  # a copy, because YOLOv5 writes into it
    return array.reshape(shape, order="F" if is_fortran else "C")


_Step = Callable[[_Machine, int], int]


def _number_of(width: int) -> _Step:
    def step(machine: _Machine, at: int) -> int:
        machine.stack.append(int.from_bytes(machine.data[at : at + width], "little"))
        return at + width

    return step


def _text(width: int) -> _Step:
    def step(machine: _Machine, at: int) -> int:
        machine.stack.append(machine.piece(at, width).decode("utf-8", "surrogatepass"))
        return machine.position

    return step


def _bytes(width: int) -> _Step:
    def step(machine: _Machine, at: int) -> int:
        machine.stack.append(machine.piece(at, width))
        return machine.position

    return step


def _new(make: Callable[[], Any]) -> _Step:
    def step(machine: _Machine, at: int) -> int:
        machine.stack.append(make())
        return at

    return step


def _tuple_of(count: int) -> _Step:
    def step(machine: _Machine, at: int) -> int:
        stack = machine.stack
        if len(stack) < count:
            raise IndexError("the stack is empty")
        stack[-count:] = [tuple(stack[-count:])]
        return at

    return step


_STEPS: list[_Step | None] = [None] * 256
for _code, _step in {
    **{"K": _number_of(1), "M": _number_of(2), "J": _Machine.int4},
    **{"\x8a": _Machine.long1, "G": _Machine.float8},
    **{"\x8c": _text(1), "X": _text(4), "C": _bytes(1), "B": _bytes(4)},
    **{"N": _new(lambda: None), "\x88": _new(lambda: True), "\x89": _new(lambda: False)},
    "q": lambda machine, at: machine.remember(machine.data[at], at + 1),
    "r": lambda machine, at: machine.remember(int.from_bytes(machine.data[at : at + 4], "little"), at + 4),
    "j": _Machine.get4,
    **{"\x80": lambda _, at: at + 1, "\x95": lambda _, at: at + 8, "(": _Machine.mark},
    **{")": _new(tuple), "\x85": _tuple_of(1), "\x86": _tuple_of(2), "\x87": _tuple_of(3)},
    **{"t": _Machine.tuple_since_mark, "]": _new(list), "}": _new(dict)},
    "a": lambda machine, at: machine.extend([machine.stack.pop()], at),
    "e": lambda machine, at: machine.extend(machine.since_mark(), at),
    "s": lambda machine, at: machine.set_items([machine.stack.pop(-2), machine.stack.pop()], at),
    "u": lambda machine, at: machine.set_items(machine.since_mark(), at),
    **{"c": _Machine.name_in_text, "\x93": _Machine.name_on_stack, "R": _Machine.call, "b": _Machine.build},
}.items():
    _STEPS[ord(_code)] = _step


# --- what YOLOv5 stores ---------------------------------------------------------------------------


def _check(content: Any) -> None:
    if type(content) is not dict:
        raise UnusableCache("it does not hold a dict")
    for key, value in content.items():
        if not _CHECKS.get(key, _is_entry)(value):
            raise UnusableCache(f"what it holds for {key[:200]!r} is not what YOLOv5 stores")


def _is_entry(value: Any) -> bool:
    """Whether a value is the labels, size and segments of an image."""
    if type(value) is not list or len(value) != 3 or type(value[0]) is not np.ndarray or type(value[2]) is not list:
        return False
    labels, size, segments = value
    if labels.dtype.kind != "f" or labels.ndim != 2 or labels.shape[1] != 5:
        return False
    if len(segments) not in (0, len(labels)):
        return False
    if type(size) not in (tuple, list) or [type(side) for side in size] != [int, int]:
        return False
    if not 1 <= min(size) <= max(size) <= _LARGEST_SIDE or len(labels) > _MOST_LABELS:
        return False
    return _is_inside(labels) and all(
        type(points) is np.ndarray
        and points.dtype.kind == "f"
        and points.ndim == 2
        and points.shape[1] == 2
        and len(points)
        # an object that is cut by the border may extend beyond it; NaN is refused
        and -1 <= points.min() <= points.max() <= 2
        for points in segments
    )


def _is_inside(labels: np.ndarray[Any, Any]) -> bool:
    """Whether classes and boxes are valid in a label file of YOLOv5; NaN is not."""
    if not len(labels):
        return True
    return bool(labels.min() >= 0 and labels[:, 1:].max() <= 1 and labels[:, 0].max() < _MOST_CLASSES)


def _are(kind: type, values: Any) -> bool:
    return type(values) in (tuple, list) and all(type(value) is kind for value in values)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "hash": lambda value: type(value) is str,
    "version": lambda value: type(value) in (int, float, str),
    "results": lambda value: _are(int, value) and len(value) == 5 and max(map(abs, value)) < 2**31,
    "msgs": lambda value: _are(str, value),
}
NOTES = frozenset(_CHECKS)
"""Keys of a cache that are not paths of images."""
