"""The shape of the project: imports go one way, what ships is found, docs name what exists."""

from __future__ import annotations

import ast
import configparser
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import yolov5_ema
from yolov5_ema.resources import find_shipped, models_dir

PACKAGE = Path(yolov5_ema.__file__).parent
REPOSITORY = PACKAGE.parent
BASE = {"class_names", "errors", "files", "reading", "resources", "__init__"}
CLASSIFICATION = {"classification", "engine", "weights", "blocks", "kernels", "data"}
# a room and the rooms that it may import from
MAY_IMPORT = {
    "cli": {"cli", "paper", "explain", "reporting", *CLASSIFICATION, "data", "evaluation"},
    "paper": {"paper", *CLASSIFICATION},
    "explain": {"explain", *CLASSIFICATION, "data"},
    "reporting": {"reporting", *CLASSIFICATION, "data", "evaluation"},
    "classification": CLASSIFICATION,
    "engine": {"engine", "weights", "blocks", "kernels", "data"},
    "weights": {"weights", "blocks", "kernels"},
    "blocks": {"blocks", "kernels"},
    "kernels": {"kernels"},
    "data": {"data"},
    "evaluation": {"evaluation", "data"},
}


def _imports(path: Path) -> set[str]:
    """Rooms of yolov5_ema that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("yolov5_ema.")}
    return found


def _files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE]


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room = path.relative_to(PACKAGE).parts[0]
    upward = _imports(path) - BASE - MAY_IMPORT[room] - {"__version__"}
    assert not upward, f"{room} must not import {upward}"


def test_the_checker_sees_an_upward_import(tmp_path):
    (tmp_path / "x.py").write_text("from yolov5_ema.engine import shim\nimport yolov5_ema.cli.main\n")
    assert _imports(tmp_path / "x.py") == {"engine", "cli"}


def test_every_public_name_can_be_imported():
    for name in yolov5_ema.__all__:
        assert getattr(yolov5_ema, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        yolov5_ema.no_such_name  # noqa: B018
    assert set(yolov5_ema.__all__) <= set(dir(yolov5_ema))


def test_blocks_import_torch_and_no_compiler():
    """torch._dynamo takes half as long again as torch itself."""
    code = (
        "import sys, yolov5_ema.blocks; assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_does_not_import_torch():
    code = "import sys; from yolov5_ema.cli.main import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from yolov5_ema.cli.main import COMMANDS

    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


def test_shipped_files_are_found_by_name():
    assert find_shipped("yolov5s-ema.yaml") == models_dir() / "yolov5s-ema.yaml"
    assert find_shipped("hyp.demo.yaml") is not None
    assert find_shipped("models/yolov5s-ema.yaml") is None and find_shipped("no.yaml") is None


def test_setup_cfg_lists_every_package():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    listed = set(config["options"]["packages"].split())
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
    assert "yolov5_ema/py.typed" in names and "yolov5_ema/engine/quirks/loss.py" in names
    shipped = {Path(name).name for name in names if name.startswith("yolov5_ema/_shipped/models/")}
    assert shipped == {path.name for path in (REPOSITORY / "models").rglob("*.yaml")}
    code = (
        "from yolov5_ema.resources import find_shipped as f; print(f('yolov5s-ema.yaml'), f('hyp.demo.yaml'))"
    )
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


def test_every_command_has_a_main_and_a_summary():
    from yolov5_ema.cli.main import COMMANDS

    for name, module in COMMANDS.items():
        command = importlib.import_module(module)
        assert callable(command.main) and 10 < len(command.SUMMARY) < 90, name


def test_visdrone_has_the_benchmarks_classes_and_runs_no_code():
    import yaml

    content = yaml.safe_load(find_shipped("visdrone.yaml").read_text(encoding="utf-8"))
    assert content["nc"] == len(content["names"]) == 10
    assert content["names"][:4] == ["pedestrian", "people", "bicycle", "car"]
    assert set(content) == {"path", "train", "val", "test", "nc", "names", "visdrone_annotations"}
    assert content["visdrone_annotations"]["val"] == "VisDrone2019-DET-val/annotations"
