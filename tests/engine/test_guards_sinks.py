"""Every call by which YOLOv5 could run what a file says is wrapped, or listed here with a reason.

The sources of every available release are searched. ``YOLOV5_CLONES``, a list of folders as in ``PATH``, adds clones.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from yolov5_ema.engine.guards import GUARDS
from yolov5_ema.engine.quirks import QUIRKS, SourceModule
from yolov5_ema.upstream.locate import Engine, engine_at

# The functions of these modules, by the names that YOLOv5 calls them; None: of any module.
SINKS = {
    **dict.fromkeys(("eval", "exec", "compile", "__import__", "check_output", "Popen", "torch_load"), "builtins"),
    **dict.fromkeys(("system", "popen", "execv", "execve", "spawnl", "startfile"), "os"),
    **dict.fromkeys(("run", "call", "check_call", "check_output", "Popen", "getoutput"), "subprocess"),
    "load": None,
    **dict.fromkeys(("loads", "Unpickler", "unsafe_load", "full_load", "run_path", "run_module"), None),
    **dict.fromkeys(("load_library", "load_state_dict_from_url", "unpack_archive", "extractall"), None),
}
# a call: what wraps it, by the name of the guard or quirk
WRAPPED = {
    r"(eval|exec)\(.*": "evaluating",
    r"(os\.(system|popen)|subprocess\.\w+|check_output)\(.*": "commands",
    r"np\.load\(.*": "arrays",
    r"(torch\.load|torch_load)\(.*": "safe-checkpoints",
    r"torch\.jit\.load\(.*": "torchscript",
    r"tf\.saved_model\.load\(.*": "exported-models",
}
# a file and a call: why it needs no guard
HARMLESS = {
    r".* platform\.system\(.*": "asks for the name of the system",
    r".* json\.loads?\(.*": "JSON holds values alone",
    r".* onnx\.load\(f\)": "reads the file that export has just written",
    r"models/tf\.py .* yaml\.load\(f, Loader=yaml\.FullLoader\)": "no object is made by it since PyYAML 5.4",
    r".* ZipFile\(.*\)\.extractall\(.*": "Python's zipfile keeps names within the folder; a typed archive alone",
    r"(utils/torch_utils|utils/flask_rest_api/restapi|hubconf)\.py .* torch\.hub\.load\(.*": "by a name that was typed",
    r".* (yolov5\.export|self\.predictor|self\.session)\.run\(.*": "no command",
    r"utils/aws/resume\.py .*": "no command of ours runs it: it takes no flags",
    r"utils/flask_rest_api/.*": "no command of ours runs it: it takes no flags that are checked, and opens a server",
    r"helpers\.py <module>.*": "no call while it is imported",
    r"(models/common|utils/general)\.py <module> os\.system\('pip install .*": "quirk ultralytics: not reached",
}


class Call(NamedTuple):
    """A call in a file of YOLOv5, inside a function or (``<module>``) outside of any function."""

    file: str
    function: str
    text: str

    def __str__(self) -> str:
        return f"{self.file} {self.function} {self.text}"


def calls_in(source: str, file: str) -> Iterator[Call]:
    """The calls of a module that could run something."""
    waiting: list[tuple[ast.AST, str]] = [(ast.parse(source), "<module>")]
    while waiting:
        node, function = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            function = getattr(node, "name", "<lambda>")
        if isinstance(node, ast.Call) and _is_sink(node.func):
            yield Call(file, function, " ".join(ast.unparse(node).split()))
        if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} & {"system", "popen"}:
            yield Call(file, function, ast.unparse(node))
        if isinstance(node, (ast.Import, ast.ImportFrom)) and re.search(
            r"\b(_?c?[pP]ickle|dill|joblib|marshal|shelve)\b", ast.unparse(node)
        ):
            yield Call(file, function, ast.unparse(node))
        waiting.extend((child, function) for child in ast.iter_child_nodes(node))


def _is_sink(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return SINKS.get(function.id) == "builtins" or function.id in ("system", "popen")
    if not isinstance(function, ast.Attribute) or function.attr not in SINKS:
        return False
    owner = ast.unparse(function.value)
    return SINKS[function.attr] in (None, owner) or owner in ("os", "subprocess")


def unseen_calls(engine: Engine) -> list[str]:
    """Calls in an engine's sources that are neither wrapped nor listed here."""
    found = []
    for path in sorted(engine.root.rglob("*.py")):
        relative = path.relative_to(engine.root)
        if relative.parts[0] == "tests":
            continue
        source = path.read_text(encoding="utf-8", errors="ignore")
        subject = SourceModule(engine, ".".join(relative.with_suffix("").parts), source)
        wrapping = {one.name for one in (*QUIRKS, *GUARDS) if one.needed(subject)}
        for call in calls_in(source, relative.as_posix()):
            if not _is_seen(call, wrapping):
                found.append(str(call))
    return found


def _is_seen(call: Call, wrapping: set[str]) -> bool:
    if any(re.fullmatch(pattern, str(call)) for pattern in HARMLESS):
        return True
    if call.function == "<module>":  # it runs before anything can be wrapped
        return False
    return any(re.fullmatch(pattern, call.text) and name in wrapping for pattern, name in WRAPPED.items())


def _engines() -> list[Path]:
    aside = sorted((Path(sys.prefix) / "engines").glob("[67].*/yolov5"))
    clones = filter(None, os.environ.get("YOLOV5_CLONES", "").split(os.pathsep))
    return [*aside, *map(Path, clones)]


@pytest.mark.parametrize("root", _engines(), ids=lambda root: f"{root.parent.name}-{root.name}")
def test_every_call_is_wrapped_or_has_a_reason(root):
    assert unseen_calls(engine_at(root)) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    return yaml.unsafe_load(x)",
        "import pickle\n",
        "def f(p):\n    import _pickle as p",
        "eval('1')",  # outside of a function: it runs before the guard is installed
        "def f():\n    return dill.load(x)",
        "from os import system",
        "def f(x):\n    return torch.hub.load(x, 'm')",
    ],
)
def test_a_new_call_is_seen(source, tmp_path):
    root = tmp_path / "new"
    for file in ("models/yolo.py", "models/common.py", "utils/general.py", "train.py"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("")
    (root / "utils/new.py").write_text(source)
    assert len(unseen_calls(engine_at(root))) == 1
