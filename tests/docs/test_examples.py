"""Every example in README.md and the documentation is run here, or says in a comment what it needs.

Cheap ones run with all tests, in this process. `make test-slow` runs every one, page by page, as a reader would: by
bash, in a folder with the demo's set and a detector that was trained on it. The command lines of all, also of those
that are not run, must name commands and flags that exist.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyproject
import pytest
import yaml
from conftest import run_cli
from markdown_examples import PAGES, REPOSITORY, Example, all_examples, commands, examples

import yolov5_ema
from yolov5_ema.cli.main import COMMANDS, main

DEMO_SET = Path("runs/demo/set-256-seed0")
RUN = Path("runs/demo/exp/train")
PAGE_NAMES = [str(path.relative_to(REPOSITORY)) for path in PAGES]
NESTED = ("data", "classify", "paper")
"""Commands with commands of their own."""
PASSES_ON = {"evaluate": "val", "submit": "val", "compare": "train"}
"""Commands that give flags they do not know to one of YOLOv5's."""
COMMON = {"--yolov5", "--plugin", "--conflicts", "--trust-checkpoint", "--help"}
DATA_KEYS = {"path", "train", "val", "test", "nc", "names", "visdrone_annotations", "coco_annotations"}


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Afterwards, remove the shim, blocks and modules of examples that ran in this process."""
    from yolov5_ema.blocks import list_blocks, unregister_block

    blocks, modules, path, environment = (
        set(list_blocks()),
        set(sys.modules),
        list(sys.path),
        dict(os.environ),
    )
    yield
    yolov5_ema.uninstall()
    for name in set(list_blocks()) - blocks:
        unregister_block(name)
    for name in set(sys.modules) - modules:
        if "pytest-" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)


# --- what there is ---------------------------------------------------------------------------


def test_every_example_is_run_or_says_what_it_needs():
    found = all_examples()
    assert {example.page for example in found} <= set(PAGE_NAMES)
    run = [example for example in found if example.is_run]
    assert len(run) >= 40, "the examples are not found"
    assert {"README.md", "docs/index.md", "docs/train.md"} <= {example.page for example in run}


@pytest.mark.parametrize(
    "text, message",
    [
        ("```sh\nls", "left open"),
        ("- item\n\n    ```sh\n    ls\n    ```\n", "left open"),
        ("```bash\nls\n```", "language 'bash'"),
        ("```\nls\n```", "language ''"),
        ("<!-- needs: luck -->\n\n```sh\nls\n```", "is unknown"),
        ("<!-- with: all.zip -->\n\n```sh\nls\n```", "is unknown"),
        ("<!-- quick; needs: gpu -->\n\n```sh\nls\n```", "cannot be quick"),
    ],
)
def test_a_block_outside_the_rules_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        examples(text)


def test_a_comment_belongs_to_the_block_behind_it():
    text = "<!-- needs: gpu -->\n\n```sh\na\n```\n\nText.\n\n```python\nb\n```\n\n<!-- quick -->\n```sh\nc\n```\n"
    first, second, third = examples(text)
    assert (first.needs, first.text, first.is_run) == ("gpu", "a\n", False)
    assert (second.needs, second.quick, second.is_run) == (None, False, True)
    assert third.quick
    (late,) = examples("<!-- needs: gpu -->\n\nText.\n\n```sh\na\n```\n")
    assert late.is_run


# --- command lines ---------------------------------------------------------------------------


def problems(example: Example) -> list[str]:
    """Mistakes in the command lines of a shell example, as far as they show without running them."""
    found = []
    for program, *words in commands(example.text):
        check = PROGRAMS.get(program)
        found += [f"{program} is no program that examples use"] if check is None else check(words)
    return [f"{example.place}: {problem}" for problem in found]


def _yolov5_ema(words: list[str]) -> list[str]:
    if not words or words[0].startswith("-"):
        return [] if words in (["--help"], ["--version"]) else [f"{words} is no command"]
    command, *rest = words
    if command not in COMMANDS:
        return [f"yolov5-ema has no command {command}"]
    if command == "run":
        return []
    if command in NESTED:
        return _unknown_flags(_help_flags(command, rest[0]), rest) if rest else [f"{command} wants a command"]
    known = _help_flags(command) | (_help_flags(PASSES_ON[command]) if command in PASSES_ON else set())
    return _unknown_flags(known, rest)


@functools.cache
def _help_flags(*command: str) -> frozenset[str]:
    """The flags in a command's ``--help``; for train, val and similar commands, YOLOv5's own parser prints it."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        assert main([*command, "--help"]) == 0, command
    flags = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", out.getvalue()))
    assert len(flags) > 1, f"{command}: no flags in {out.getvalue()!r}"
    return frozenset(flags | COMMON)


def _unknown_flags(known: frozenset[str] | set[str], words: list[str]) -> list[str]:
    """Flags that are neither known nor, as argparse allows, the beginning of exactly one known flag."""
    found = []
    for word in words:
        flag = word.split("=")[0]
        is_flag = re.fullmatch(r"--?[A-Za-z][\w-]*", flag)
        if is_flag and flag not in known and sum(name.startswith(flag) for name in known) != 1:
            found.append(f"no flag {flag}")
    return found


def _python(words: list[str]) -> list[str]:
    if words[:2] == ["-m", "yolov5_ema"]:
        return _yolov5_ema(words[2:])
    if words[0] == "-c":
        ast.parse(words[1])
        return []
    script = REPOSITORY / words[0]
    if not script.is_file():
        return [f"there is no {words[0]}"]
    texts = _texts_in(script)
    return _unknown_flags({text for text in texts if text.startswith("-")} | {"--help"}, words[1:])


def _texts_in(script: Path) -> set[str]:
    """The strings in a script, and in the scripts beside it that it imports from."""
    nodes = [*ast.walk(ast.parse(script.read_text(encoding="utf-8")))]
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    beside = {script.with_name(f"{node.module}.py") for node in nodes if isinstance(node, ast.ImportFrom)}
    return texts.union(*(_texts_in(file) for file in beside if file.is_file()))


def _torchrun(words: list[str]) -> list[str]:
    from torch.distributed.run import get_args_parser

    at = words.index("-m")
    known = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    return _unknown_flags(known, words[:at]) + _python(words[at:])


def _make(words: list[str]) -> list[str]:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    return [f"no target {w}" for w in words if "=" not in w and not re.search(rf"^{w}:", makefile, re.MULTILINE)]


def _pip(words: list[str]) -> list[str]:
    known = pyproject.PROJECT["optional-dependencies"].keys()
    extras = re.findall(r"\[([\w,]+)\]", " ".join(words))
    asked = {name for group in extras for name in group.split(",")}
    return [f"no extra {name}" for name in asked - known]


PROGRAMS = {
    "yolov5-ema": _yolov5_ema,
    "python": _python,
    "torchrun": _torchrun,
    "make": _make,
    "pip": _pip,
    "ray": lambda _: [],
}


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_command_lines_name_what_exists(page, own_folder):
    found = [example for example in all_examples() if example.page == page and example.language == "sh"]
    assert not [problem for example in found for problem in problems(example)]


@pytest.mark.parametrize(
    "line, problem",
    [
        ("yolov5-ema trian --data x", "no command trian"),
        ("yolov5-ema cfg --sizes n", "no flag --sizes"),
        ("yolov5-ema train --cfgs x", "no flag --cfgs"),
        ("yolov5-ema compare --no-such 1", "no flag --no-such"),
        ("yolov5-ema data stats x --img 640 --jsn y", "no flag --jsn"),
        ("X=1 torchrun --nprocs 2 -m yolov5_ema val", "no flag --nprocs"),
        ("python benchmarks/kernels.py --no-such", "no flag --no-such"),
        ("python benchmarks/none.py", "there is no benchmarks/none.py"),
        ("make all", "no target all"),
        ("pip install '.[v8]'", "no extra v8"),
        ("true | curl example.org", "curl is no program"),
    ],
)
def test_a_command_line_with_a_mistake_is_found(line, problem, own_folder):
    assert any(problem in found for found in problems(Example("page", 1, "sh", line)))


def test_command_lines_are_read_as_a_shell_does():
    text = "A=1 B='x y' cmd --a '' \\\n    b  # remark\none | two 'a;b' && three > file; DATA=here\n"
    assert commands(text) == [["cmd", "--a", "", "b"], ["one"], ["two", "a;b"], ["three"], ["file"]]


# --- YAML ------------------------------------------------------------------------------------


def _rows(text: str) -> list[list[object]]:
    lines = [line.split("#")[0].strip().rstrip(",") for line in text.splitlines()]
    return [yaml.safe_load(line) for line in lines if line]


def test_rows_of_models_build():
    from yolov5_ema.blocks import get_block

    seen = set()
    with yolov5_ema.installed() as engine:
        yolo = engine.module("models.yolo")
        for example in all_examples():
            if example.language != "yaml" or example.is_data or not example.is_run:
                continue
            for row in _rows(example.text):
                cfg = {
                    **{"nc": 3, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": [[10, 13, 16, 30]]},
                    "backbone": [[-1, 1, "Conv", [64, 3, 2]], row],
                    "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
                }
                built = yolo.Model(cfg).model[1]
                block = get_block(str(row[2]))
                assert any(isinstance(module, block) for module in built.modules()), (example.place, row)
                seen.add(row[2])
    assert seen >= {"EMA", "CA"}


def test_data_yamls_hold_what_is_read():
    found = [example for example in all_examples() if example.language == "yaml" and example.is_data]
    assert found
    for example in found:
        content = yaml.safe_load(example.text)
        assert set(content) <= DATA_KEYS, example.place
        assert content.get("nc") == (len(content["names"]) if "names" in content else None)


# --- running them ----------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted({example.page for example in all_examples() if example.quick}))
def test_quick_examples_run(page, own_folder, capsys):
    link_checkout(own_folder)
    for example in all_examples():
        if example.page == page and example.quick:
            run_here(example)


def run_here(example: Example) -> None:
    """Run an example in this process."""
    if example.language == "sh":
        for program, *words in commands(example.text):
            assert program == "yolov5-ema" and main(words) == 0, (example.place, words)
        return
    if example.saved_as is None:
        exec(compile(example.text, example.place, "exec"), {"__name__": "__main__"})
        return
    Path(example.saved_as).write_text(example.text, encoding="utf-8")
    sys.path.insert(0, os.getcwd())
    importlib.import_module(Path(example.saved_as).stem)


@pytest.mark.parametrize("language, text", [("python", "assert 1 + 1 == 3"), ("sh", "yolov5-ema info no.yaml")])
def test_a_quick_example_that_fails_is_seen(language, text, own_folder, capsys):
    with pytest.raises(AssertionError):
        run_here(Example("page", 1, language, text))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Path:
    """A folder as `yolov5-ema demo` writes it, but with fewer images and a detector trained for fewer epochs."""
    from yolov5_ema.data.demo import generate

    folder = tmp_path_factory.mktemp("workshop")
    generate(folder / DEMO_SET, seed=0, train=48, val=8, test=4, imgsz=256)
    done = run_cli(
        *("train", "--data", DEMO_SET / "demo.yaml", "--cfg", "yolov5n-ema.yaml", "--weights", ""),
        *("--hyp", "hyp.demo.yaml", "--img", 256, "--batch", 8, "--epochs", 4, "--workers", 1),
        *("--project", "runs/demo/exp", "--name", "train"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def lay_out(workshop: Path, folder: Path) -> None:
    """The files that a page starts with: the demo's set and detector."""
    from yolov5_ema.data.demo import generate

    generate(folder / DEMO_SET, seed=0, train=48, val=8, test=4, imgsz=256)
    shutil.copytree(workshop / RUN, folder / RUN)
    link_checkout(folder)


def link_checkout(folder: Path) -> None:
    """Examples are run in a checkout."""
    for name in ("models", "benchmarks"):
        (folder / name).symlink_to(REPOSITORY / name)


def put(name: str, folder: Path) -> None:
    """One of the user's files that an example needs."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".pt"):
        shutil.copy(folder / RUN / "weights/best.pt", target)
    elif name.startswith("runs/train/"):
        shutil.copytree(folder / RUN, target, dirs_exist_ok=True)
    elif name.endswith(".yaml"):
        shutil.copy(folder / DEMO_SET / "demo.yaml", target)
    elif name == "images":
        shutil.copytree(folder / DEMO_SET / "images/test", target)
    else:
        tile = cv2.imread(str(folder / DEMO_SET / "images/test/test_00000.jpg"))
        cv2.imwrite(str(target), np.tile(tile, (3, 4, 1)))  # 1024 x 768


def run_as_a_reader(example: Example, folder: Path) -> None:
    """Run an example in a separate process."""
    for name in example.files:
        put(name, folder)
    if example.saved_as:
        (folder / example.saved_as).write_text(example.text, encoding="utf-8")
    command = [sys.executable, "-c", example.text]
    if example.language == "sh":
        command = ["bash", "-e", "-u", "-o", "pipefail", "-c", example.text]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{example.place}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    print(f"{example.place}: ran")


@pytest.mark.parametrize("language, text", [("python", "raise SystemExit(3)"), ("sh", "false | true\necho on")])
def test_an_example_that_fails_is_seen(language, text, tmp_path):
    with pytest.raises(AssertionError, match="page, block 1"):
        run_as_a_reader(Example("page", 1, language, text), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    sorted({example.page for example in all_examples() if example.is_run and example.language != "yaml"}),
)
def test_every_example_of_a_page_runs_in_order(page, workshop, tmp_path):
    lay_out(workshop, tmp_path)
    for example in all_examples():
        if example.page == page and example.is_run and example.language != "yaml":
            run_as_a_reader(example, tmp_path)
