"""Model YAMLs of other code, rewritten for the blocks of this package."""

from __future__ import annotations

import pytest

from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.cfgs.translation import translated
from yolov5_ema.errors import ConfigError


def tutorial(module, args, *, after=9, renumbered=False):
    """YOLOv5n with a row inserted behind another one; the references after it are those of the plain model."""
    cfg = build_cfg(size="n", block="CA", after=[after]) if renumbered else build_cfg(size="n", block="none")
    section, place = ("backbone", after + 1) if after < 10 else ("head", after - 9)
    if renumbered:
        del cfg[section][place]
    cfg[section].insert(place, [-1, 1, module, args])
    return cfg


OURS = [
    # module and args there; module and args here
    ("CoordAtt", [1024, 32], "CA", [{"reduction": 32}]),
    ("CoordAtt", [1024, 1024, 32], "CA", [{"reduction": 32}]),
    # the channels of size n
    ("SEAttention", [256, 16], "SE", [{"reduction": 16}]),
    ("EMA_attention", [1024, 8], "EMA", [{"groups": 8}]),
    ("EMA", [1024], "EMA", []),
    ("eca_layer", [1024, 3], "ECA", [{"kernel_size": 3}]),
    ("NAMAttention", [], "NAM", []),
    ("CBAM", [1024, {"kernel_size": 3}], "CBAM", [{"kernel_size": 3}]),
    ("EMA", [8], "EMA", [8]),
]


@pytest.mark.parametrize(("module", "args", "ours", "options"), OURS)
def test_names_and_arguments(module, args, ours, options):
    found = translated(tutorial(module, args, renumbered=True))
    assert found.graph.to_cfg() == {**tutorial(ours, options, renumbered=True)}
    named = [f"row 10: {module} is called {ours} here"] if module != ours else []
    assert found.changes[: len(named)] == named
    assert len(found.changes) == len(named) + (args != options)


@pytest.mark.parametrize("after", [8, 9, 17, 23])
def test_row_numbers_of_the_model_without_the_block(after):
    found = translated(tutorial("CA", [], after=after))
    assert found.graph.to_cfg() == build_cfg(size="n", block="CA", after=[after])
    assert found.changes[-1].startswith("row 25: Detect reads")
    assert all("row numbers of the model without its blocks" in change for change in found.changes)


def test_what_is_right_is_left_alone():
    cfg = build_cfg(size="n", block="EMA", at="neck", options={"groups": 8})
    found = translated(cfg)
    assert found.graph.to_cfg() == cfg and found.changes == []


def test_several_blocks_and_a_model_of_ultralytics():
    pytest.importorskip("ultralytics")
    cfg = build_cfg(base="yolo11n.yaml", block="none")
    right = build_cfg(base="yolo11n.yaml", block="CA", after=[16, 19, 22])
    for place in (22, 19, 16):
        cfg["head"].insert(
            place - 10, [-1, 1, "CoordinateAttention", [256 if place == 16 else 512 if place == 19 else 1024]]
        )
    del cfg["scale"], right["scale"]
    found = translated(cfg)
    assert found.graph.to_cfg() == right
    assert [change.split(":")[0] for change in found.changes] == [*["row 17", "row 21", "row 25"] * 2, "row 26"]


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        (
            "CBAMBlock",
            [1024, 7],
            r"backbone row 10: CBAM \[1024, 7\] can be read in more than one way: .*kernel_size is 7",
        ),
        ("ShuffleAttention", [1024, 16, 8], r"backbone row 10: SA .*no option takes \[16, 8\].*translate again"),
    ],
)
def test_what_is_unclear_is_refused(module, args, message):
    with pytest.raises(ConfigError, match=message):
        translated(tutorial(module, args))


def test_numbers_that_are_wrong_either_way_are_left_as_they_are():
    cfg = tutorial("CA", [])
    cfg["head"][-1][0] = [17, 19, 23]
    found = translated(cfg)
    assert found.changes == [] and found.graph.to_cfg() == cfg
