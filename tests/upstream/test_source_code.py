"""Quirks and guards use the syntax tree, so quotes and line breaks in YOLOv5's code make no difference."""

from __future__ import annotations

import ast
import gc
import importlib.util
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import laid_aside

from yolov5_ema.engine.activation import findings
from yolov5_ema.engine.guards import GUARDS
from yolov5_ema.engine.quirks import QUIRKS, SourceModule
from yolov5_ema.scripts import seeding
from yolov5_ema.upstream.hyperparameters import names_read
from yolov5_ema.upstream.locate import Engine, engine_at
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import Code

EVERY = (*QUIRKS, *GUARDS)
RELEASES = ("6.0.7", "6.1.9", "6.2.3", "7.0.14")
_NOT_INSTALLED = {"roboflow", "ultralytics", "pkg_resources"}


def with_other_quotes(source: str) -> str:
    """The same code with double and single quotes exchanged, where that changes nothing."""
    lines, code = [bytearray(line.encode()) for line in source.split("\n")], Code(source)
    within = {id(part) for joined in code.all(ast.JoinedStr) for part in Code(joined).all(ast.Constant)}
    for node in code.all(ast.Constant):
        if not isinstance(node.value, str) or id(node) in within or node.lineno != node.end_lineno:
            continue
        line, start, end = lines[node.lineno - 1], node.col_offset, node.end_col_offset - 1
        if line[start] in b"'\"" and not set(line[start + 1 : end]) & set(b"'\"\\"):
            line[start] = line[end] = ord('"') if line[start] == ord("'") else ord("'")
    return b"\n".join(lines).decode()


def reformatted(source: str) -> str:
    """The same code from another formatter: without comments, with other line breaks, in double quotes."""
    return with_other_quotes(ast.unparse(ast.parse(source)))


@pytest.fixture
def everything_is_needed(monkeypatch):
    """What depends on the environment, or on a missing package, counts as needed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in _NOT_INSTALLED else find_spec(name, *a)
    )
    for name, value in {"YOLOV5_EMA_CPU_DDP": "1", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    gc.disable()
    yield
    gc.enable()


def test_the_reformatting_changes_the_text_and_not_the_code():
    source = "a = {'b': 'it is \"c\"'}  # d\ne = f(\n    \"g\",\n    '''h''', '', f'{i}')\n"
    assert reformatted(source) == 'a = {"b": \'it is "c"\'}\ne = f("g", "h", "", f\'{i}\')'
    assert ast.dump(ast.parse(reformatted(source))) == ast.dump(ast.parse(source))


@pytest.mark.parametrize("release", RELEASES)
def test_same_answers_for_the_same_code_reformatted(release, everything_is_needed):
    engine = engine_at(laid_aside(release))
    settled, differ = set(), []
    for path in engine.sources():
        name, text = ".".join(path.relative_to(engine.root).with_suffix("").parts), path.read_text("utf-8")
        module = SourceModule(engine, name, text)
        answers = [(quirk.needed(module), quirk.settled(module)) for quirk in EVERY]
        settled |= {quirk.name for quirk, answer in zip(EVERY, answers) if any(answer)}
        if any(reason for reason, _ in answers):
            other = SourceModule(engine, name, reformatted(text))
            differ += [
                (quirk.name, name)
                for quirk, answer in zip(EVERY, answers)
                if (quirk.needed(other), quirk.settled(other)) != answer
            ]
    assert differ == []
    assert {quirk.name for quirk in EVERY} - settled == set()  # no quirk is off because its code was not recognised


def test_a_quirk_that_looked_at_text_would_be_found_out():
    source = "parser.add_argument('--resume')\n"
    assert "'--resume'" in source and "'--resume'" not in reformatted(source)
    assert Code(source).has_flag("--resume") and Code(reformatted(source)).has_flag("--resume")


def _clone(folder: Path, **files: str) -> Engine:
    for file in ("models/yolo.py", "models/common.py", "utils/general.py", "train.py"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")
    for file, text in files.items():
        (folder / f"{file}.py").write_text(text)
    return engine_at(folder)


_TRAINS = """
def train(hyp, opt, device, callbacks):
    with open(save_dir / "opt.yaml", "w") as f:
        yaml.safe_dump(vars(opt), f)
    {save}
def parse_opt():
    parser.add_argument("--resume")
    parser.add_argument("--project", default="runs/train")
"""


def _finding(engine: Engine, name: str):
    return next(one for one in findings(engine, QUIRKS) if one.name == name)


def test_not_needed_is_said_only_where_that_was_established(tmp_path):
    known = _clone(tmp_path / "known", train=_TRAINS.format(save="torch.save(ckpt, last)"))
    assert [module for module, _ in _finding(known, "resume-after-kill").places] == ["train"]
    other = _clone(tmp_path / "other", train=_TRAINS.format(save="write_checkpoint(ckpt)"))
    unknown = _finding(other, "resume-after-kill")
    assert unknown.places == [] and not unknown.is_settled
    named_otherwise = _finding(other, "runs-here")
    assert named_otherwise.places == [] and named_otherwise.is_settled
    broken = _clone(tmp_path / "broken", train="def train(:\n", **{"models/yolo": "import (", "models/common": ")"})
    (broken.root / "utils/general.py").write_text("'")
    assert not any(finding.is_settled for finding in findings(broken, QUIRKS) if finding.name == "numpy-names")


def test_names_that_numpy_is_asked_for_first_are_no_reason():
    (quirk,) = (quirk for quirk in QUIRKS if quirk.name == "numpy-names")

    def reason(text: str) -> str | None:
        return quirk.needed(SourceModule(Engine(Path("/c"), "clone", "7.0+"), "utils.metrics", text))

    import numpy as np

    gone = next((name for name in ("int", "trapz") if not hasattr(np, name)), None)
    if gone is None:
        pytest.skip("this NumPy still has all names")
    assert f"np.{gone}" in str(reason(f"import numpy as np\nx.astype(np.{gone})\n"))
    assert reason(f"import numpy as np\nf = np.new if hasattr(np, 'new') else np.{gone}\n") is None
    assert reason(f"import numpy as np\nx = 1  # np.{gone}\ny = 'np.{gone}'\n") is None


def test_a_seed_flag_is_found_in_any_quotes(tmp_path):
    file = tmp_path / "train.py"
    for line, expected in (("('--seed', type=int)", True), ('(\n  "--seed")', True), ("('--seeds')", False)):
        file.write_text(f"# '--seed'\nparser.add_argument{line}\n")
        assert seeding._has_seed_flag(SimpleNamespace(__file__=str(file))) is expected


def test_hyperparameters_are_found_in_any_quotes(tmp_path):
    engine = _clone(tmp_path, train="hyp['a'] *= 2\nx = hyp[\n  \"b\"]\nhyp['c'] = 1\nself.hyp['d']\n# hyp['e']\n")
    assert names_read(engine, engine.root / "train.py") == {"a", "b", "d"}


def test_packages_in_a_clone_are_not_yolov5s(tmp_path):
    engine = _clone(tmp_path / "clone")
    own, others = (
        engine.root / "utils/general.py",
        engine.root / "venv/lib/python3.11/site-packages/torch/x.py",
    )
    others.parent.mkdir(parents=True)
    others.write_text("np.int\n")
    assert engine.owns(str(own)) and not engine.owns(str(others))
    assert others not in engine.sources() and own in engine.sources()


def test_no_module_is_expected_to_have_what_only_its_functions_import():
    source = "def f():\n    from utils.general import intersect_dicts\n    import numpy as np\n    np.int\n"
    code = Code(source)
    assert code.own_names == {"f"} and code.imports("utils", "intersect_dicts", within_function=True)
    assert not code.imports("utils", within_function=False)


@pytest.mark.parametrize("head", ["train(hyp, opt, device, callbacks)", "train(opt, device)"])
def test_a_rank_gets_a_folder_of_its_own_whatever_train_takes(head, tmp_path, monkeypatch):
    """The function in classify/train.py takes its options first."""
    monkeypatch.setenv("RANK", "1")
    (quirk,) = (quirk for quirk in QUIRKS if quirk.name == "one-run-folder")
    source = f"seen = []\ndef {head}:\n    seen.append((opt.save_dir, save_dir))\n    save_dir / 'opt.yaml'\n"
    script, patches = types.ModuleType("train"), Patches()
    vars(script)["save_dir"] = tmp_path
    exec(source, vars(script))
    module = SourceModule(Engine(tmp_path, "clone", "7.0+"), "train", source, script)
    assert quirk.needed(module)
    quirk.apply(module, patches)
    opt = SimpleNamespace(save_dir="runs/train/exp")
    script.train(*{"hyp": ({}, opt, "cpu", None)}.get(head[6:9], (opt, "cpu")))
    ((given, _),) = script.seen
    assert "yolov5-ema-rank-" in given and not Path(given).exists()
