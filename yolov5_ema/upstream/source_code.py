"""Questions about Python code, answered by its syntax tree, so that quotes, line breaks and comments do not matter."""

from __future__ import annotations

import ast
import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

_Node = TypeVar("_Node", bound=ast.AST)

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_BLOCKS = (ast.If, ast.Try, ast.With, ast.For, ast.While)  # names that they set belong to the module
_LEAVES = (ast.Name, ast.Constant)
_NOT_COMPARED = ("ctx", "kind", "type_comment")
_TRIES = (ast.Try, *((ast.TryStar,) if hasattr(ast, "TryStar") else ()))


class Import(NamedTuple):
    """An imported name: ``from MODULE import NAME``, or ``import MODULE`` with an empty name."""

    module: str
    name: str
    is_within_function: bool


class Code:
    """The code of a module, or of a function or class in it.

    Args:
        source: the text or the syntax tree. A text that this Python cannot parse counts as empty.
    """

    def __init__(self, source: str | ast.AST) -> None:
        tree = _parsed(source) if isinstance(source, str) else source
        self.is_readable = tree is not None
        self.tree: ast.AST = tree or ast.Module(body=[], type_ignores=[])

    @functools.cached_property
    def _by_kind(self) -> dict[type[ast.AST], list[ast.AST]]:
        found: dict[type[ast.AST], list[ast.AST]] = {}
        for node in _walk(self.tree):
            found.setdefault(type(node), []).append(node)
        return found

    def all(self, kind: type[_Node]) -> list[_Node]:
        """All nodes of a kind, such as `ast.Call`, in no particular order."""
        return self._by_kind.get(kind, [])  # type: ignore[return-value]

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Dotted names that the code uses, such as ``self.font.getsize``, and their parts before each dot."""
        found = (dotted(node) for kind in (ast.Attribute, ast.Name) for node in self.all(kind))
        return frozenset(name for name in found if name)

    @functools.cached_property
    def texts(self) -> frozenset[str]:
        """The string literals in it."""
        return frozenset(node.value for node in self.all(ast.Constant) if isinstance(node.value, str))

    def calls(self, *names: str) -> list[ast.Call]:
        """The calls of functions with these dotted names."""
        return [call for name in names for call in self._calls.get(name, [])]

    @functools.cached_property
    def _calls(self) -> dict[str, list[ast.Call]]:
        found: dict[str, list[ast.Call]] = {}
        for call in self.all(ast.Call):
            found.setdefault(dotted(call.func), []).append(call)
        return found

    def has(self, fragment: str) -> bool:
        """Whether it contains a statement or an expression, such as ``save_dir / 'opt.yaml'``."""
        sought = _fragment(fragment)
        return any(is_same(node, sought) for node in self.all(type(sought)))

    @functools.cached_property
    def imported(self) -> list[Import]:
        """All that it imports, at any level; relative imports keep their dots."""
        return list(_imports(self.tree))

    def imports(self, module: str, name: str | None = None, *, within_function: bool | None = None) -> bool:
        """Whether it imports a module, a submodule of it, or a name from there.

        ``within_function`` True looks inside functions only, False outside of them only, None everywhere.
        """
        return any(
            (one.module == module or one.module.startswith(f"{module}."))
            and (name is None or one.name == name)
            and (within_function is None or one.is_within_function == within_function)
            for one in self.imported
        )

    @functools.cached_property
    def own_names(self) -> frozenset[str]:
        """The names that the module defines when it runs: functions, classes, imports and variables."""
        return frozenset(_bound(getattr(self.tree, "body", [])))

    def part(self, name: str) -> Code | None:
        """The function or class of this name that the module defines at its top level, or None."""
        return self._parts.get(name)

    @functools.cached_property
    def _parts(self) -> dict[str, Code]:
        found: dict[str, Code] = {}
        for node in _statements(getattr(self.tree, "body", [])):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.setdefault(node.name, Code(node))
        return found

    def defines(self, *names: str) -> bool:
        """Whether it defines functions or classes with all of these names."""
        return all(self.part(name) is not None for name in names)

    def has_flag(self, flag: str) -> bool:
        """Whether its command-line parser accepts a flag."""
        return self.flag(flag) is not None

    def flag(self, flag: str) -> ast.Call | None:
        """The ``add_argument`` call of a flag, or None."""
        for call in self.all(ast.Call):
            is_option = isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
            if is_option and flag in map(value_of, call.args):
                return call
        return None


_parsing = threading.Lock()  # Python 3.11 and earlier count the depth of all threads' trees together


def _tree(source: str) -> ast.Module:
    with _parsing:
        return ast.parse(source)


@functools.cache
def _fragment(source: str) -> ast.AST:
    wanted = _tree(source).body[0]
    return wanted.value if isinstance(wanted, ast.Expr) else wanted


def _parsed(source: str) -> ast.Module | None:
    try:
        return _tree(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def code_in(file: Path) -> Code:
    """The code in a Python file."""
    return Code(file.read_text(encoding="utf-8", errors="ignore"))


def dotted(node: ast.AST) -> str:
    """The text ``a.b.c`` of an expression of that form; an empty text for other expressions."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The value that a call passes for a keyword, or None."""
    return next((one.value for one in call.keywords if one.arg == name), None)


def value_of(node: ast.AST | None) -> object:
    """The value of a literal; None for everything else."""
    return node.value if isinstance(node, ast.Constant) else None


def parameters(function: Code) -> list[str]:
    """The names of a function's parameters, including keyword-only ones."""
    arguments = getattr(function.tree, "args", None)
    if not isinstance(arguments, ast.arguments):
        return []
    return [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def is_same(one: object, other: object) -> bool:
    """Whether two syntax trees are equal."""
    if isinstance(one, ast.AST):
        return type(one) is type(other) and all(
            is_same(getattr(one, field, None), getattr(other, field, None))
            for field in one._fields
            if field not in _NOT_COMPARED
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(is_same, one, other))
    return type(one) is type(other) and one == other


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except `ast.Load` and `ast.Store`; takes less than half the time of `ast.walk`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in () if type(node) in _LEAVES else node._fields:
            value = getattr(node, field, None)
            if type(value) is list:
                waiting += [item for item in value if isinstance(item, ast.AST)]
            elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
                waiting.append(value)


def _imports(tree: ast.AST) -> Iterator[Import]:
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, is_within = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", is_within) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (Import(module, alias.name, is_within) for alias in node.names)
        elif not isinstance(node, ast.expr):
            is_within = is_within or isinstance(node, _FUNCTIONS)
            waiting.extend((child, is_within) for child in ast.iter_child_nodes(node))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a block and of nested blocks, but not those inside functions and classes."""
    for node in body:
        yield node
        if isinstance(node, (*_BLOCKS, *_TRIES)):
            for field in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    for node in _statements(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))
