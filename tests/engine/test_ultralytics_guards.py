"""Every call by which `ultralytics` could run what a file says is guarded, or listed here with a reason."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

NAMES = {"eval", "exec", "compile", "__import__"}
MEMBERS = {
    *("load", "loads", "unsafe_load", "full_load", "Unpickler", "run_path", "run_module", "load_library"),
    *("system", "popen", "run", "check_output", "check_call", "Popen", "import_module"),
}
GUARDED = {
    r"utils/patches\.py torch\.load\(.*": "ultralytics_files.load",
    r"nn/backends/pytorch\.py torch\.jit\.load\(.*": "load_torchscript",
    r"data/utils\.py exec\(s, .*": "_refuse_code",
    r"data/utils\.py subprocess\.run\(.*": "_own_script_only",
    r"data/utils\.py np\.load\(.*": "load_array",
    r"nn/tasks\.py eval\(act\)": "checked before: the rows and the activation (ultralytics_rows)",
}
HARMLESS = {
    r".* json\.loads?\(.*": "JSON holds values alone",
    r".* YAML\.load\(.*|.* yaml\.load\(s, Loader=.*|utils/__init__\.py .*\.load\(.*": "PyYAML's safe loader",
    r"models/yolo/model\.py np\.load\(file, allow_pickle=False\)": "no pickles",
    r"(data/(base|dataset)|solutions/similarity_search)\.py np\.load\([^=]*\)": "np.load takes no pickles by default",
    r"data/utils\.py np\.load\(.*allow_pickle=False\)": "no pickles",
    r".* __import__\('[a-z_]+'\)": "a name of its own text",
    r"nn/tasks\.py eval\(x\)": "x is one of six texts in the line above",
    r"utils/(export/.*|checks|logger|downloads|benchmarks)\.py subprocess\.(run|check_output)\(.*": "fixed programs",
    r"engine/(trainer|tuner|model)\.py subprocess\.run\(.*": "its own command line, with a list of words",
    r"(cfg/__init__|utils/cpu|utils/tuner|hub/.*)\.py subprocess\.(run|check_output)\(.*": "programs of its own text",
    r".* (torch\.)?compile\(.*|.* re\.compile\(.*": "no Python code",
    r"nn/text_model\.py torch\.jit\.load\(.*": "NOT guarded, see the docs: what YOLOE downloads",
    r".* platform\.system\(\)|data/utils\.py asyncio\.run\(.*|.* plistlib\.loads\(.*": "no command, no pickle",
    r".* (self\.)?(teacher_)?model\.load\(weights\)": "a model that is loaded already",
    r"(engine/exporter|utils/export/\w+)\.py onnx\.load\(.*": "reads the file that the export has just written",
    r"nn/backends/\w+\.py self\.(session|predictor|model)\.run\(.*": "of a model that check_form has looked at",
    r"nn/backends/(axelera|coreai|tensorflow)\.py \w+(\.saved_model)?\.load\(.*": "refused before, by check_form",
    r"nn/text_model\.py clip\.load\(.*|solutions/\w+\.py self\.app\.run\(.*|.*ProfileModels\(.*": "no stranger's",
    r".* (importlib\.)?import_module\(.*": "fixed names, or of its own modules",
}  # fmt: skip


def calls(source: str, file: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func
        is_sink = (isinstance(name, ast.Name) and name.id in NAMES) or (
            isinstance(name, ast.Attribute) and name.attr in MEMBERS
        )
        if is_sink:
            found.append(f"{file} {' '.join(ast.unparse(node).split())}")
    return found


def test_every_call_is_guarded_or_has_a_reason():
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None:
        pytest.skip("ultralytics is not installed")
    root = Path(spec.origin).parent
    known = [re.compile(pattern) for pattern in (*GUARDED, *HARMLESS)]
    unseen = [
        call
        for path in sorted(root.rglob("*.py"))
        if path.relative_to(root).parts[0] != "tests"
        for call in calls(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix())
        if not any(pattern.fullmatch(call) for pattern in known)
    ]
    assert unseen == []


def test_a_new_call_is_seen():
    found = calls("def f(x):\n    return pickle.load(x), eval(x)", "new.py")
    assert sorted(found) == ["new.py eval(x)", "new.py pickle.load(x)"]
    assert not any(re.fullmatch(pattern, call) for call in found for pattern in (*GUARDED, *HARMLESS))
