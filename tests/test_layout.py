"""The structure of the project: imports go in one direction, shipped files are found, docs name what exists."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pyproject
import pytest
import rooms

import yolov5_ema
from yolov5_ema import _moved
from yolov5_ema.resources import find_shipped, models_dir

PACKAGE = Path(yolov5_ema.__file__).parent
REPOSITORY = PACKAGE.parent


def test_imports_go_downward_and_in_no_circle():
    graph = rooms.imports()
    assert {rooms.room_of(module) for module in graph} == {*rooms.ROOMS, None}
    assert not rooms.upward({name: imported for name, imported in graph.items() if name != "yolov5_ema.__main__"})
    assert not rooms.circles(graph)


def test_no_room_is_large():
    counted = rooms.lines()
    largest = max(counted, key=counted.__getitem__)
    assert counted[largest] < rooms.LARGEST_SHARE * sum(counted.values()), largest


@pytest.mark.parametrize(
    "planted, upward, circles",
    [
        ({"low/a": "from house.high import b", "high/b": ""}, ["house.low.a imports house.high.b"], []),
        (
            {"low/a": "def f():\n    import house.high.b", "high/b": ""},
            ["house.low.a imports house.high.b"],
            [],
        ),
        ({"errors": "from house.low.a import X", "low/a": ""}, ["house.errors imports house.low.a"], []),
        (
            {
                "low/a": "from house.low import b",
                "low/b": "from house.low.c import X",
                "low/c": "import house.low.a",
            },
            [],
            [["house.low.a", "house.low.b", "house.low.c"]],
        ),
        (
            {"high/a": "import house.low.b, house.errors", "low/b": "from house import errors", "errors": ""},
            [],
            [],
        ),
    ],
)
def test_the_checker_sees_what_is_planted(tmp_path, planted, upward, circles):
    for name in ("high", "low"):
        (tmp_path / "house" / name).mkdir(parents=True)
    for name, code in planted.items():
        (tmp_path / f"house/{name}.py").write_text(code)
    (tmp_path / "house/__init__.py").touch()
    graph = rooms.imports(tmp_path / "house")
    assert rooms.upward(graph, ("high", "low")) == upward and rooms.circles(graph) == circles


def test_the_page_of_the_rooms_is_up_to_date():
    page = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    for room in rooms.ROOMS:
        doc = importlib.import_module(f"yolov5_ema.{room}").__doc__
        assert f"| `{room}/` | {(doc or '').splitlines()[0]} |" in page
    picture = rooms.picture(rooms.imports())
    assert rooms.PICTURE.read_text(encoding="utf-8") == picture, "run: python docs/rooms.py"


def test_arrows_lead_to_the_nearest_rooms_only():
    graph = {"p.a.x": {"p.b.x", "p.c.x"}, "p.b.x": {"p.c.y", "p.e"}, "p.c.x": set(), "p.e": set()}
    assert rooms.arrows(graph, ("a", "b", "c")) == {"a": ["b"], "b": ["c"], "c": []}


def _bodies(package: Path) -> dict[str, list[str]]:
    """The functions of a package's modules by what they do, ignoring names and docstrings."""
    found: dict[str, list[str]] = {}
    for name, file in rooms.modules(package).items():
        for part in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(part, ast.FunctionDef):
                code = part.body[ast.get_docstring(part) is not None :]
                found.setdefault("".join(map(ast.dump, code)), []).append(f"{name}.{part.name}")
    return found


def test_no_function_stands_twice(tmp_path):
    shortest = 160  # characters of a syntax tree: more than a single function call
    twice = [names for body, names in _bodies(PACKAGE).items() if len(names) > 1 and len(body) > shortest]
    assert twice == []
    (tmp_path / "house").mkdir()
    for name, doc in (("a", "One."), ("b", "Another.")):
        text = f'def {name}(x):\n    """{doc}"""\n    for y in x:\n        print(y + 1)\n'
        (tmp_path / f"house/{name}.py").write_text(text)
    (names,) = (names for body, names in _bodies(tmp_path / "house").items() if len(body) > shortest)
    assert names == ["house.a.a", "house.b.b"]


# strings that are the input of the tested code, or cells of a notebook: how many each file has
_SNIPPETS_UNDER_TEST = {
    "cases/quirks.py": 1,
    "journeys/test_notebook.py": 1,
    "test_layout.py": 1,
    "upstream/test_source_code.py": 2,
}


def _programs(text: str) -> list[int]:
    """The lines where strings of four or more lines begin that are Python and import or define something."""
    tree = ast.parse(text)
    skipped = {id(part.value) for part in ast.walk(tree) if isinstance(part, ast.Expr)}
    skipped |= {id(part) for whole in ast.walk(tree) if isinstance(whole, ast.JoinedStr) for part in whole.values}
    strings = (part for part in ast.walk(tree) if isinstance(part, (ast.Constant, ast.JoinedStr)))
    return sorted(part.lineno for part in strings if id(part) not in skipped and _is_program(_text_of(part)))


def _text_of(string: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(string, ast.Constant):
        return string.value if isinstance(string.value, str) else ""
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "filled_in" for part in string.values)


def _is_program(text: str) -> bool:
    if text.strip().count("\n") < 3:
        return False
    filled_in = re.sub(r"\{\w+(![rs])?\}", "0", text).replace("{{", "{").replace("}}", "}")
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return any(isinstance(part, kinds) for one in (text, filled_in) for part in _parts(one))


def _parts(text: str) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return []


def test_no_program_stands_in_a_string():
    """No linter reads it there. `fresh_process` and `release_case` run functions of ``tests/cases`` instead."""
    top = Path(__file__).parent
    found = {
        file.relative_to(top).as_posix(): _programs(file.read_text(encoding="utf-8")) for file in top.rglob("*.py")
    }
    assert {name: len(lines) for name, lines in found.items() if lines} == _SNIPPETS_UNDER_TEST, found


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("import a\nRUN = 'import os\\nx = 1\\ny = 2\\nprint(x)'", [2]),
        ("run(f'def f():\\n  x = {1}\\n  y = 2\\n  return x\\n')", [1]),
        ("run('import os\\n' 'x = 1\\n' 'y = 2\\n' 'z = 3')", [1]),
        ("run('import os\\nx = {x!r}\\ny = {{}}\\nz = 3'.format(x=1))", [1]),
        ("run('import os; print(os.getcwd())')", []),
        ("write('import: nothing\\n- a\\n- b\\n- c\\n')", []),
        ("def f():\n    'import os\\nx = 1\\ny = 2\\nz = 3'", []),
    ],
)
def test_a_program_in_a_string_is_seen(text, lines):
    assert _programs(text) == lines


def _homes_of_tests() -> list[Path]:
    top = Path(__file__).parent
    broader = {"docs", "hard", "journeys"}  # of several modules, by their topic
    return [
        file.relative_to(top)
        for file in sorted(top.rglob("test_*.py"))
        if file.relative_to(top).parts[0] not in broader and file.name not in {"test_layout.py", "test_ci.py"}
    ]


@pytest.mark.parametrize("file", _homes_of_tests(), ids=str)
def test_tests_stand_where_their_module_does(file):
    """``test_NAME.py`` or ``test_NAME_ASPECT.py`` in the folder of a module, a package or a room called NAME."""
    folder, name = PACKAGE / file.parent, file.stem.removeprefix("test_")
    known = {
        path.stem.lstrip("_") for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    known.add(file.parent.name)
    assert any(name == one or name.startswith(f"{one}_") for one in known)


def test_every_public_name_can_be_imported():
    for name in yolov5_ema.__all__:
        assert getattr(yolov5_ema, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        yolov5_ema.no_such_name  # noqa: B018
    assert set(yolov5_ema.__all__) <= set(dir(yolov5_ema))


@pytest.mark.parametrize("old", _moved._NEW)
def test_names_of_modules_that_were_documented_still_lead_there(old):
    with pytest.warns(DeprecationWarning, match=f"yolov5_ema.{old} is yolov5_ema.{_moved._NEW[old]} now"):
        sys.modules.pop(f"yolov5_ema.{old}", None)
        module = importlib.import_module(f"yolov5_ema.{old}")
    assert module is importlib.import_module(f"yolov5_ema.{_moved._NEW[old]}")
    assert module.__spec__.name == module.__name__ == f"yolov5_ema.{_moved._NEW[old]}"


def test_blocks_import_torch_and_little_else():
    """Importing torch._dynamo, for one, takes half as long as importing torch itself."""
    code = (
        "import sys, torch; before = set(sys.modules); import yolov5_ema; yolov5_ema.EMA; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = done.stdout.split()
    others = [name for name in imported if not name.startswith("yolov5_ema")]
    assert "yolov5_ema.blocks.ema" in imported and len(imported) < 60 and len(others) < 10
    assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names


def test_help_does_not_import_torch():
    code = "import sys; from yolov5_ema.cli.main import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from yolov5_ema.cli.main import COMMANDS

    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


_LIBRARIES = (
    "faster_coco_eval",
    "jinja2",
    "matplotlib",
    "pandas",
    "pycocotools",
    "safetensors",
    "sahi",
    "scipy",
)


@pytest.mark.parametrize(
    "code",
    [
        "import yolov5_ema.evaluation",
        "import yolov5_ema.comparing.intervals",
        "import yolov5_ema.engine.shim, yolov5_ema.scripts.running",
        "import yolov5_ema.data.slicing; yolov5_ema.data.slicing.windows(900, 900, 640, 0.2)",
        "from yolov5_ema.cli.main import main; main(['--help'])",
        "from yolov5_ema.cli.main import main; main(['evaluate', '--help'])",
    ],
)
def test_libraries_that_some_commands_need_are_imported_where_they_are_used(code):
    """Before YOLOv5 is imported, because it imports pandas and matplotlib itself."""
    found = f"[name for name in {_LIBRARIES} if name in sys.modules]"
    check = f"import atexit, sys; atexit.register(lambda: print(*{found}, file=sys.stderr))"
    done = subprocess.run([sys.executable, "-c", f"{check}\n{code}"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr.split()) == (0, [])


def test_shipped_files_are_found_by_name():
    assert find_shipped("yolov5s-ema.yaml") == models_dir() / "yolov5s-ema.yaml"
    assert find_shipped("hyp.demo.yaml") is not None
    assert find_shipped("models/yolov5s-ema.yaml") is None and find_shipped("no.yaml") is None


def test_pyproject_lists_every_package():
    listed = set(pyproject.CONTENT["tool"]["setuptools"]["packages"])
    packages = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in PACKAGE.rglob("__init__.py")}
    assert listed == packages | {"yolov5_ema._shipped.models", "yolov5_ema._shipped.data"}


def test_the_wheel_holds_code_and_yamls(tmp_path):
    pytest.importorskip("build")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(REPOSITORY),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path / "site")
    listed = subprocess.run(["git", "ls-files", "yolov5_ema"], cwd=REPOSITORY, capture_output=True, text=True)
    assert "yolov5_ema/py.typed" in names and "yolov5_ema/comparing/earlier_texts.json" in names
    assert set(listed.stdout.splitlines()) <= names  # code and data; without git there is nothing to compare
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    text = (tmp_path / "site" / metadata).read_text(encoding="utf-8")
    for line in (
        "License-Expression: GPL-3.0-or-later",
        "Requires-Python: >=3.10",
        "Classifier: Typing :: Typed",
    ):
        assert f"\n{line}\n" in text
    assert f"\nVersion: {yolov5_ema.__version__}\n" in text and "\nProject-URL: Paper, " in text
    needed = [line for line in text.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert needed and not any("sahi" in line for line in needed)
    shipped = {Path(name).name for name in names if name.startswith("yolov5_ema/_shipped/models/")}
    assert shipped == {path.name for path in (REPOSITORY / "models").rglob("*.yaml")}
    code = "from yolov5_ema.resources import find_shipped as f; print(f('yolov5s-ema.yaml'), f('hyp.demo.yaml'))"
    found = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    ).stdout.split()
    assert [Path(path).parent.parent.name for path in found] == ["_shipped", "_shipped"]


def test_docs_name_every_quirk_and_yaml():
    from yolov5_ema.engine.guards import GUARDS
    from yolov5_ema.engine.quirks import QUIRKS

    quirks = (REPOSITORY / "docs/quirks.md").read_text(encoding="utf-8")
    assert all(f"| `{known.name}` |" in quirks for known in (*QUIRKS, *GUARDS))


def _all_commands(group=None) -> dict[str, object]:
    from yolov5_ema.cli.command import Group
    from yolov5_ema.cli.main import TOP

    found = {}
    for name, command in (group or TOP).commands():
        found[command.name] = command
        assert command.name.split()[-1] == name
        found.update(_all_commands(command) if isinstance(command, Group) else {})
    return found


def test_every_file_of_a_command_ends_in_it():
    """No other file than cli/command.py makes a parser."""
    commands = _all_commands()
    assert len(commands) == 24 + 4 + 3 + 3
    assert all(10 < len(command.summary) < 90 for command in commands.values())
    cli = PACKAGE / "cli"
    files = {file for file in cli.rglob("*.py") if not file.stem.startswith("_") or file.parent != cli}
    files -= {cli / "main.py", cli / "command.py", *cli.glob("*/_options.py")}
    for file in files:
        (last,) = ast.parse(file.read_text(encoding="utf-8")).body[-1:]
        assert isinstance(last, ast.Assign) and last.targets[0].id == "COMMAND", file
    assert len(files) == len(commands)
    # the first makes the parsers of all commands; the second is a process that only `compare` starts
    may = {cli / "command.py", PACKAGE / "comparing/scoring.py"}
    for file in set(PACKAGE.rglob("*.py")) - may:
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        assert not [node for node in nodes if _makes_a_parser(node)], file


def _makes_a_parser(node: ast.AST) -> bool:
    called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return called.rpartition(".")[2] == "ArgumentParser"


def test_a_parser_that_is_made_elsewhere_is_seen():
    assert any(map(_makes_a_parser, ast.walk(ast.parse("x = argparse.ArgumentParser(prog='x')"))))
    assert not any(map(_makes_a_parser, ast.walk(ast.parse("class Mine(argparse.ArgumentParser): pass"))))


def test_visdrone_has_the_benchmarks_classes_and_runs_no_code():
    import yaml

    content = yaml.safe_load(find_shipped("visdrone.yaml").read_text(encoding="utf-8"))
    assert content["nc"] == len(content["names"]) == 10
    assert content["names"][:4] == ["pedestrian", "people", "bicycle", "car"]
    assert set(content) == {"path", "train", "val", "test", "nc", "names", "visdrone_annotations"}
    assert content["visdrone_annotations"]["val"] == "VisDrone2019-DET-val/annotations"
