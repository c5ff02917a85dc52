"""Whatever a model YAML contains, the result is a message or a model; no hang, no traceback, and no code is run."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from hostile_yaml import CANARY, CODE, MODULES, NUMBERS, SMALL, TEXTS, as_text, files, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from under_watch import command, own_place, peak_memory

import yolov5_ema
from yolov5_ema.resources import models_dir

WITH_KEYS = {**SMALL, "ch": 3, "activation": "nn.SiLU()", "inplace": True, "names": ["a", "b", "c"]}
MANY = {
    **SMALL,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "CBAM", []],
        [-1, 1, "GhostConv", [16, 3, 2]],
        [-1, 1, "nn.MaxPool2d", [2]],
        [-1, 1, "C3TR", [32, False]],
        [-1, 1, "Contract", [2]],
    ],
    "head": [[-1, 1, "Expand", [2]], [[-1, 4], 1, "Concat", [1]], [[-1, 4], 1, "Detect", ["nc", "anchors"]]],
    "anchors": [[10, 13, 16, 30], [33, 23, 30, 61]],
}
BASES = [SMALL, WITH_KEYS, MANY]
VALUES = (
    values()
    | st.sampled_from(MODULES + CODE)
    | st.tuples(
        st.sampled_from(
            [-1, -2, 0, 1, 2, 5, -9, 10**9, True, "x", None, [-1], [-1, 0], [], [[-1]], [-1, "x"], 1.5, "-1"]
        ),
        st.sampled_from([1, 1, 1, 2, 3, 0, -1, 10**4, 10**9, 10**30, 1.5, True, "2", None, [1]]),
        st.sampled_from(MODULES + CODE[:3]),
        st.lists(values(), max_size=4)
        | st.sampled_from([[], [32], [32, 3, 2], [10**6, 99], [{"groups": 8}], [[1]], [2**40]]),
    ).map(list)
    | st.lists(st.sampled_from(NUMBERS + TEXTS[:9]), max_size=6)
)
SHIPPED = [(models_dir() / name).read_bytes() for name in ("yolov5n-ema.yaml",)]
CFGS = files(BASES, VALUES, [as_text(base) for base in BASES] * 3 + SHIPPED)


@pytest.fixture(scope="module")
def engine():
    with yolov5_ema.installed() as engine:
        command_once(engine)
        yield engine


def command_once(engine) -> None:
    """What is done once in each process, such as finding the compiled kernels, is done before anything is watched."""
    from yolov5_ema.cli.main import main

    with own_place() as folder:
        write_good_data(folder)
        (folder / "mine.yaml").write_bytes(as_text(SMALL))
        assert main(["info", "mine.yaml", "--imgsz", "64"]) == 0
        engine.module("models.yolo").Model("mine.yaml")


def preflight_then_build(file: Path, folder: Path, engine) -> None:
    """Run `train` up to the point where it would train, and do there what YOLOv5 does with the cfg next."""
    train = engine.module("train")
    yolo = engine.module("models.yolo")
    built = []

    def in_place_of_training(opt, *_):
        built.append(yolo.Model(opt.cfg, ch=3, nc=3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "main", in_place_of_training)
        code, said = command("train", "--cfg", file, "--data", "good.yaml", "--weights", "", folder=folder)
    assert (code == 0) == bool(built), said


def check_cfg(content: bytes, engine) -> int:
    """Run every command that takes a cfg on one file; returns the exit code of ``info``."""
    with own_place() as folder:
        file = folder / "mine.yaml"
        file.write_bytes(content)
        write_good_data(folder)
        code, said = command("info", file, "--imgsz", 64, folder=folder)
        assert code in (0, 2), said
        command("cfg", "--base", file, "--block", "CA", "--after", 0, "-o", "new.yaml", folder=folder)
        preflight_then_build(file, folder, engine)
        assert not (folder / CANARY).exists()
        left = {path.name for path in folder.iterdir()} - {"mine.yaml", "good.yaml", "images", "new.yaml"}
        assert not left, f"left behind: {left}"
    return code


def write_good_data(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "images" / split / "a.jpg").write_bytes(b"")
    data = {
        "path": str(folder),
        "train": "images/train",
        "val": "images/val",
        "nc": 3,
        "names": ["a", "b", "c"],
    }
    (folder / "good.yaml").write_text(yaml.safe_dump(data))


def fuzz(examples: int, engine) -> dict[int, int]:
    """Run ``examples`` cfgs; returns how many ended with each exit code."""
    codes: dict[int, int] = {}

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(CFGS)
    def case(content: bytes) -> None:
        code = check_cfg(content, engine)
        codes[code] = codes.get(code, 0) + 1

    before = peak_memory()
    case()
    assert peak_memory() - before < 2**30
    return codes


@pytest.mark.parametrize("code", CODE)
def test_code_is_not_run_wherever_it_stands(engine, code):
    """Also inside quotes, which a second `eval` removes, and after a layer's name in ``activation:``."""
    from yolov5_ema.cfgs.rows import check_activation
    from yolov5_ema.errors import ConfigError

    argument = copy.deepcopy(SMALL)
    argument["backbone"][0][3].append(code)
    module = copy.deepcopy(SMALL)
    module["backbone"][0][2] = code
    for cfg in (argument, module, {**SMALL, "activation": code}):
        assert check_cfg(as_text(cfg), engine) == 2
    with pytest.raises(ConfigError, match="activation must read like"):
        check_activation({"activation": code}, "mine.yaml")


def test_cfgs(engine):
    codes = fuzz(40, engine)
    assert codes[0] >= 1 and codes[2] >= 12, codes


@pytest.mark.slow
def test_many_cfgs(engine):
    codes = fuzz(5000, engine)
    assert codes[0] >= 150 and sum(codes.values()) >= 5000, codes
