"""Checks that the attributes of objects in a TorchScript file have the types that its code declares.

torch fills an object's attributes by position and does not check their types. Code that uses an object as one of
another class then reads memory beyond its end. So each value must have the type that the code of its class declares
for that attribute.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from yolov5_ema.weights.inert_pickle import Items, Made, Table, class_name

# the type of each attribute of a class, as written in its code
Attributes = dict[str, str]

_TENSOR = "torch._utils._rebuild_tensor_v2"
_LIST_OF = re.compile(r"torch\.jit\._pickle\.build_(int|double|bool|tensor)list")
_TAGGED = "torch.jit._pickle.restore_type_tag"
_CLASS = re.compile(r"class (\w+)\(Module\):")
_ATTRIBUTE = re.compile(r'  (?:(\w+) : |__annotations__\["(\w+)"\] = )(\S.*)')
_OF_NO_OBJECT = re.compile(r"  (def \w+\(.*|__(parameters|buffers|annotations)__ = \[.*\]|\w+ : Final\[.+)")
_WORD = re.compile(r"\bclass\b")
_MORE = re.compile(r" {4,}\S.*")
_OUTER = re.compile(r"(\w+)\[(.*)\]")
_PLAIN: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}


def classes_in(code: str, path: str) -> Iterator[tuple[str, Attributes]]:
    """The classes in a code file, by full name, with their attributes.

    Args:
        code: the text.
        path: its path in the archive, such as ``code/__torch__/models/yolo.py``.

    Raises:
        ValueError: a line is not written the way torch writes it, so an attribute could be missed.
    """
    module = path.removeprefix("code/").removesuffix(".py").replace("/", ".")
    found: Attributes | None = None
    in_method = False
    for line in code.splitlines():
        start = _CLASS.fullmatch(line)
        if start:
            found, in_method = {}, False
            yield f"{module}.{start[1]}", found
        elif not line.startswith((" ", "\t")):
            found = found if not line else None
            _refuse_if(_WORD.search(line) is not None, path, line)
        elif found is not None and not (in_method and _MORE.fullmatch(line)):
            in_method = line.startswith("  def ")
            _add(found, line, path)


def _add(found: Attributes, line: str, path: str) -> None:
    """Add the attribute that a line of a class body declares. A line that torch would not write is an error."""
    if _OF_NO_OBJECT.fullmatch(line):
        return
    attribute = _ATTRIBUTE.fullmatch(line)
    name = (attribute[1] or attribute[2]) if attribute else ""
    _refuse_if(attribute is None or name in found, path, line)
    found[name] = attribute[3].strip() if attribute else ""


def _refuse_if(is_odd: bool, path: str, line: str) -> None:
    if is_odd:
        raise ValueError(f"{path} has a line that torch does not write: {line.strip()[:80]!r}")


def odd_objects(instances: list[Made], classes: dict[str, Attributes], name: str) -> Iterator[str]:
    """What is wrong with the objects that a pickle creates.

    Args:
        instances: each object, as `yolov5_ema.weights.inert_pickle` follows it.
        classes: the attributes of each class in the code.
        name: the name of the pickle, for messages.
    """
    for made in instances:
        kind = class_name(made)
        if kind not in classes:
            yield f"{name} creates a {kind}, a class that is not in the code"
            continue
        pairs = made.state.pairs if isinstance(made.state, Table) else [(None, None)]
        held = dict(pairs)
        if len(held) < len(pairs) or None in held or not classes[kind].keys() <= held.keys():
            yield f"{name} fills a {kind} with attributes that the class does not have"
            continue
        for attribute, wanted in classes[kind].items():
            if not _is_of(held[attribute], wanted):
                yield f"{name} fills {attribute} of a {kind} with something that is not a {wanted[:100]}"


def _is_of(value: Any, wanted: str) -> bool:
    if wanted.startswith("__torch__."):
        return isinstance(value, Made) and class_name(value) == wanted
    if wanted in _PLAIN:
        return type(value) is _PLAIN[wanted]
    if wanted == "Tensor":
        return isinstance(value, Made) and class_name(value) == _TENSOR
    if wanted == "Device":
        return isinstance(value, Made) and class_name(value) == "torch.device"
    outer = _OUTER.fullmatch(wanted)
    check = _OF.get(outer[1]) if outer else None
    return value is None if wanted == "NoneType" else bool(outer and check and check(value, outer[2]))


def _is_list(value: Any, inner: str) -> bool:
    if isinstance(value, Made):
        of = _LIST_OF.fullmatch(class_name(value))
        wanted = {"int": "int", "double": "float", "bool": "bool", "tensor": "Tensor"}[of[1]] if of else inner
        known = of is not None or class_name(value) == _TAGGED
        return known and wanted == inner and bool(value.args.items) and _is_list(value.args.items[0], inner)
    return isinstance(value, Items) and value.kind == "list" and all(_is_of(item, inner) for item in value.items)


def _is_tuple(value: Any, inner: str) -> bool:
    kinds = list(_split(inner))
    if not isinstance(value, Items) or value.kind != "tuple" or len(value.items) != len(kinds):
        return False
    return all(_is_of(item, kind) for item, kind in zip(value.items, kinds))


def _split(types: str) -> Iterator[str]:
    """The types in a list, split at its outermost commas."""
    depth, start = 0, 0
    for at, sign in enumerate(types):
        depth += (sign == "[") - (sign == "]")
        if sign == "," and depth == 0:
            yield types[start:at].strip()
            start = at + 1
    if types[start:].strip():
        yield types[start:].strip()


_OF: dict[str, Callable[[Any, str], bool]] = {
    "Optional": lambda value, inner: value is None or _is_of(value, inner),
    "List": _is_list,
    "Tuple": _is_tuple,
}
