"""The model YAMLs: which row reads which, in every size and place, and what YOLOv5 builds from them."""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import logging
from pathlib import Path

import pytest
import torch
import yaml
from offline_ultralytics import by_release

import yolov5_ema
from yolov5_ema.blocks import list_blocks
from yolov5_ema.cfgs.generator import (
    HEADS,
    SHIPPED,
    SHIPPED_FOR_ULTRALYTICS,
    SIZES,
    Recipe,
    build_cfg,
    format_cfg,
    format_option,
    load_base,
    parse_option,
)
from yolov5_ema.cfgs.graph import Graph
from yolov5_ema.errors import ConfigError
from yolov5_ema.resources import models_dir

PLAIN_80 = {"n": 1_872_157, "s": 7_235_389, "m": 21_190_557, "l": 46_563_709, "x": 86_749_405}
PARAMETERS = {
    "yolov5s-ema.yaml": 7_238_685,
    "yolov5s-ca.yaml": 7_267_717,
    "yolov5s-cbam.yaml": 7_277_365,
    "yolov5s-sa.yaml": 7_235_425,
    "yolov5s-eca.yaml": 7_235_399,
    "yolov5s-nam.yaml": PLAIN_80["s"] + 2 * (256 + 512),
    "yolov5s-se.yaml": PLAIN_80["s"] + 2 * (256 * 16 + 512 * 32),
    # EMA: 10 k^2 + 4 k with k channels in each of 32 groups
    "yolov5n-ema.yaml": PLAIN_80["n"] + sum(10 * k * k + 4 * k for k in (4, 8)),
    "yolov5m-ema.yaml": PLAIN_80["m"] + sum(10 * k * k + 4 * k for k in (12, 24)),
    "yolov5l-ema.yaml": PLAIN_80["l"] + sum(10 * k * k + 4 * k for k in (16, 32)),
    "yolov5x-ema.yaml": PLAIN_80["x"] + sum(10 * k * k + 4 * k for k in (20, 40)),
    "yolov5x-p2-published.yaml": 90_963_540,
    "yolov5x-p2.yaml": 91_168_340,
    "yolov5x-ema-tph.yaml": 91_179_620,
    "yolov5x-ema-tph-published.yaml": 91_179_620,
    "yolov5x-ca-tph.yaml": 91_278_630,
    "yolov5x-ca-tph-published.yaml": 91_278_630,
    "yolov5x-cbam-tph.yaml": 91_312_020,
    "yolov5x-cbam-tph-published.yaml": 91_312_020,
}

# (head, place): what Detect reads, and what each Concat reads in addition to -1; * is a block after a row.
WIRING = {
    ("p3", None): ("C3.17 C3.20 C3.23", "C3.6 C3.4 Conv.14 Conv.10"),
    ("p3", "backbone"): ("C3.17 C3.20 C3.23", "*C3.6 C3.4 Conv.14 Conv.10"),
    ("p3", "neck"): ("*C3.17 *C3.20 C3.23", "C3.6 C3.4 Conv.14 Conv.10"),
    ("p2", None): ("C3.21 C3.24 C3.27 C3.30", "C3.6 C3.4 C3.2 C3.17 C3.13 Conv.10"),
    ("p2", "backbone"): ("C3.21 C3.24 C3.27 C3.30", "*C3.6 C3.4 C3.2 C3.17 C3.13 Conv.10"),
    ("p2", "neck"): ("*C3.21 *C3.24 *C3.27 C3.30", "C3.6 C3.4 C3.2 *C3.17 *C3.13 Conv.10"),
    ("p2-published", None): ("C3.21 C3.24 C3.27 C3.30", "C3.6 C3.4 C3.2 Conv.18 Conv.14 Conv.10"),
    ("p2-published", "backbone"): ("C3.21 C3.24 C3.27 C3.30", "*C3.6 C3.4 C3.2 Conv.18 Conv.14 Conv.10"),
    ("p2-published", "neck"): ("*C3.21 *C3.24 *C3.27 C3.30", "C3.6 C3.4 C3.2 Conv.18 Conv.14 Conv.10"),
}
BLOCK_ROWS = {
    ("p3", "backbone"): [6, 8],
    ("p3", "neck"): [13, 17, 20],
    ("p2", "backbone"): [6, 9],
    ("p2", "neck"): [13, 17, 21, 24, 27],
    ("p2-published", "backbone"): [6, 9],
    ("p2-published", "neck"): [13, 17, 21, 24, 27],
}

# Distances other than -1, in lists and alone: renumbering only absolute row numbers would get these wrong.
RELATIVE_BASE = """
nc: 4
depth_multiple: 1.0
width_multiple: 0.25
anchors: 3
backbone:
  [[-1, 1, Conv, [64, 3, 2]],
   [-1, 1, Conv, [64, 3, 2]],
   [-1, 1, C3, [64]],
   [-2, 1, Conv, [64, 1, 1]],
   [[-1, -2], 1, Concat, [1]],
   [-1, 2, C3, [64]]]
head:
  [[[-1, -3, 2], 1, Concat, [1]],
   [-1, 1, Conv, [64, 3, 2]],
   [[5, -1], 1, Detect, [nc, anchors]]]
"""


def rows_of(cfg):
    return cfg["backbone"] + cfg["head"]


def wiring(cfg, block):
    """Labels of what every row but the blocks reads, written without any code of the package.

    A row is labelled with its module and its number among the rows that are no blocks, so labels of
    the plain model and of one with blocks can be compared; `*` stands for a block after a row.
    """
    labels, reads = [], []
    for i, (source, _, module, _) in enumerate(rows_of(cfg)):
        sources = source if isinstance(source, list) else [source]
        absolute = [i + f if f < 0 else f for f in sources]
        assert all(-1 <= f < i for f in absolute)
        named = ["image" if f == -1 else labels[f] for f in absolute]
        if module == block:
            assert source == -1
            labels.append(f"*{named[0]}")
        else:
            labels.append(f"{module}.{len(reads)}")
            reads.append(named)
    return reads


def expected_wiring(plain, behind):
    """The connections of the plain model with a block after each of the rows ``behind``."""
    return [
        [f"*{label}" if label.split(".")[-1] in {str(row) for row in behind} else label for label in named]
        for named in wiring(plain, block=None)
    ]


def strides_and_channels(cfg):
    """(stride, channels before the width multiple) of each row, for the modules of the shipped heads."""
    known = []
    for i, (source, _, module, args) in enumerate(rows_of(cfg)):
        sources = [i + f if f < 0 else f for f in (source if isinstance(source, list) else [source])]
        before = [(1, 3) if f == -1 else known[f] for f in sources]
        stride, channels = before[0]
        if module == "Concat":
            assert {s for s, _ in before} == {stride}, f"row {i} joins maps of different size"
            channels = sum(c for _, c in before)
        elif module in ("Conv", "Focus", "C3", "SPP", "SPPF"):
            channels = args[0]
            stride *= {"Conv": args[2] if len(args) > 2 else 1, "Focus": 2}.get(module, 1)
        elif module == "nn.Upsample":
            stride //= args[1]
        known.append((stride, channels))
    return known


@pytest.mark.parametrize(("head", "at"), list(WIRING))
def test_every_concat_and_detect_input_comes_from_the_intended_row(head, at):
    detect, concats = WIRING[head, at]
    for size, block in itertools.product(SIZES, list_blocks() if at else ["none"]):
        cfg = build_cfg(size=size, block=block, at=at, head=head)
        reads = wiring(cfg, block)
        modules = [module for _, _, module, _ in rows_of(cfg) if module != block]
        joined = [named for named, module in zip(reads, modules) if module == "Concat"]
        assert reads[-1] == detect.split()
        assert [named[1] for named in joined] == concats.split()
        assert all(named[0].startswith(("nn.Upsample", "Conv")) for named in joined)
        assert (cfg["depth_multiple"], cfg["width_multiple"]) == SIZES[size]


@pytest.mark.parametrize(("head", "at"), list(BLOCK_ROWS))
def test_blocks_change_nothing_but_what_reads_their_row(head, at):
    plain = build_cfg(head=head, block="none")
    cfg = build_cfg(head=head, block="EMA", at=at)
    assert wiring(cfg, "EMA") == expected_wiring(plain, BLOCK_ROWS[head, at])
    assert [row[1:] for row in rows_of(cfg) if row[2] != "EMA"] == [row[1:] for row in rows_of(plain)]


@pytest.mark.parametrize("head", HEADS)
def test_levels_and_widths(head):
    cfg = build_cfg(head=head, block="EMA", at="neck")
    known = strides_and_channels(cfg)
    behind = [known[i] for i, row in enumerate(rows_of(cfg)) if row[2] == "EMA"]
    detect = [known[f] for f in rows_of(cfg)[-1][0]]
    if head == "p3":
        assert behind == [(16, 512), (8, 256), (16, 512)]
        assert detect == [(8, 256), (16, 512), (32, 1024)]
    else:
        assert behind == [(16, 512), (8, 256), (4, 256), (8, 256), (16, 512)]
        assert detect == [(4, 256), (8, 256), (16, 512), (32, 1024)]
    assert len(cfg["anchors"]) == len(detect)


def test_published_baseline_joins_half_the_channels_at_stride_16():
    joined = {}
    for head in ("p2", "p2-published"):
        cfg = build_cfg(head=head, block="none")
        known = strides_and_channels(cfg)
        joined[head] = [known[i] for i, row in enumerate(rows_of(cfg)) if row[2] == "Concat"]
    assert joined["p2"][4] == (16, 256 + 512)
    assert joined["p2-published"][4] == (16, 256 + 256)
    assert [a == b for a, b in zip(joined["p2"], joined["p2-published"])] == [True] * 4 + [False, True]


def test_default_is_ema_in_the_backbone_of_s():
    assert build_cfg() == build_cfg(size="s", block="EMA", at="backbone", head="p3", nc=80)
    assert build_cfg()["backbone"][7] == [-1, 1, "EMA", []]
    assert build_cfg()["backbone"][10] == [-1, 1, "EMA", []]


def test_options_are_a_mapping_in_the_row_and_not_shared():
    cfg = build_cfg(options={"groups": 16, "cross_spatial": False})
    assert cfg["backbone"][7] == [-1, 1, "EMA", [{"groups": 16, "cross_spatial": False}]]
    cfg["backbone"][7][3][0]["groups"] = 8
    cfg["backbone"][0][3][0] = 1
    assert cfg["backbone"][10][3] == [{"groups": 16, "cross_spatial": False}]
    assert build_cfg(block="none")["backbone"][0][3][0] == 64


def test_relative_references_follow_their_rows():
    cfg = build_cfg(base=yaml.safe_load(RELATIVE_BASE), block="EMA", after=[3, 2])
    assert [row[0] for row in rows_of(cfg)] == [
        -1,
        -1,
        -1,
        -1,
        -3,
        -1,
        [-1, -3],
        -1,
        [-1, -3, 3],
        -1,
        [7, -1],
    ]
    assert [i for i, row in enumerate(rows_of(cfg)) if row[2] == "EMA"] == [3, 5]
    assert cfg["nc"] == 4
    assert len(cfg["backbone"]) == 8


def test_row_behind_the_backbone_stays_in_the_backbone():
    cfg = build_cfg(after=[9])
    assert cfg["backbone"][10] == [-1, 1, "EMA", []]
    assert cfg["head"][0][0] == -1


@functools.cache
def own_yamls():
    """All YAMLs of the installed YOLOv5, and ours."""
    found = sorted(models_dir().glob("*.yaml"))
    spec = importlib.util.find_spec("yolov5")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found += sorted((Path(folder) / "models").rglob("*.yaml"))
    return [path for path in found if is_model(path)]


# PyYAML with libyaml takes a tenth of the time
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def is_model(path):
    # YOLOv5 ships one file that contains only anchors, and one (v6.0's yolov5-bifpn.yaml) in which a comma is missing.
    try:
        return "backbone" in (yaml.load(path.read_text(encoding="utf-8", errors="ignore"), FAST_LOADER) or {})
    except yaml.YAMLError:
        return False


@pytest.mark.parametrize("path", own_yamls(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_any_base_keeps_its_wiring_with_a_block_behind_any_row(path):
    base = yaml.safe_load(path.read_text(encoding="utf-8", errors="ignore"))
    rows = range(len(rows_of(base)) - 1)
    # If no block is inserted, the content of the base does not change, however it is written.
    plain = build_cfg(base=base, block="none")
    assert plain == base
    for behind in [*([row] for row in rows), *itertools.combinations(rows, 2), list(rows)][::3]:
        cfg = build_cfg(base=base, block="Probe", after=list(behind))
        assert wiring(cfg, "Probe") == expected_wiring(base, behind)
    text = format_cfg(base=base, block="Probe", after=list(rows), options={"groups": 16})
    assert yaml.safe_load(text) == build_cfg(base=base, block="Probe", after=list(rows), options={"groups": 16})


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        ("yolov5s.yaml", [13, 17, 20]),
        ("hub/yolov5-p2.yaml", [13, 17, 21, 24, 27]),
        ("hub/yolov5-p6.yaml", [15, 19, 23, 26, 29]),
        ("hub/yolov5-fpn.yaml", [14, 18]),
    ],
)
def test_neck_of_other_layouts(name, behind):
    path = next((p for p in own_yamls() if p.as_posix().endswith(f"models/{name}")), None)
    if path is None:
        pytest.skip(f"this YOLOv5 has no {name}")
    base = yaml.safe_load(path.read_text(encoding="utf-8", errors="ignore"))
    assert wiring(build_cfg(base=base, at="neck"), "EMA") == expected_wiring(base, behind)


def test_size_and_nc_replace_those_of_a_base():
    base = yaml.safe_load(RELATIVE_BASE)
    untouched = copy.deepcopy(base)
    kept = build_cfg(base=base, after=[2])
    assert (kept["depth_multiple"], kept["width_multiple"], kept["nc"]) == (1.0, 0.25, 4)
    changed = build_cfg(base=base, after=[2], size="x", nc=7)
    assert (changed["depth_multiple"], changed["width_multiple"], changed["nc"]) == (1.33, 1.25, 7)
    assert base == untouched


def test_other_keys_of_a_base_are_kept():
    base = {**yaml.safe_load(RELATIVE_BASE), "ch": 4, "activation": "nn.LeakyReLU(0.1)", "inplace": False}
    assert yaml.safe_load(format_cfg(base=base, after=[2])) == build_cfg(base=base, after=[2])
    assert build_cfg(base=base, after=[2])["activation"] == "nn.LeakyReLU(0.1)"


def test_shipped_files_are_what_the_generator_writes():
    assert {path.name for path in models_dir().glob("*.yaml")} == set(SHIPPED) == set(PARAMETERS)
    for name, recipe in SHIPPED.items():
        text = (models_dir() / name).read_bytes().decode("utf-8")
        assert text == recipe.text(), f"{name}: regenerate with `yolov5-ema cfg --shipped models --force`"
        assert yaml.safe_load(text) == recipe.graph().to_cfg()


# --- models of ultralytics -----------------------------------------------------------------------


@pytest.fixture
def of_ultralytics():
    """The contents of all YAMLs of the installed ultralytics by their names."""
    pytest.importorskip("ultralytics")
    from yolov5_ema.upstream.ultralytics import located

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    files = (located().root / "cfg/models").rglob("*.yaml")
    return {file.name: yaml.load(file.read_text(encoding="utf-8"), loader) for file in files}


def test_shipped_files_for_ultralytics_are_those_of_the_generator():
    found = {path.name for path in (models_dir() / "ultralytics").glob("*.yaml")}
    assert found == set(SHIPPED_FOR_ULTRALYTICS)


@pytest.mark.parametrize("name", by_release(SHIPPED_FOR_ULTRALYTICS))
def test_shipped_files_for_ultralytics_are_what_the_generator_writes(name):
    pytest.importorskip("ultralytics")
    text, recipe = (models_dir() / "ultralytics" / name).read_bytes().decode("utf-8"), SHIPPED_FOR_ULTRALYTICS[name]
    assert text == recipe.text(), f"{name}: regenerate with `yolov5-ema cfg --shipped models --force`"
    assert yaml.safe_load(text) == recipe.graph().to_cfg()


def test_every_base_of_ultralytics_keeps_its_keys_and_its_wiring(of_ultralytics):
    assert len(of_ultralytics) > 40
    for name, base in of_ultralytics.items():
        plain = build_cfg(base=name, block="none")
        assert {key: value for key, value in plain.items() if key != "scale"} == base
    for name in sorted(of_ultralytics)[::5]:
        base = of_ultralytics[name]
        rows = range(len(rows_of(base)) - 1)
        for behind in ([len(rows) // 2], list(rows)[::2]):
            cfg = build_cfg(base=name, block="Probe", after=behind)
            assert wiring(cfg, "Probe") == expected_wiring(base, behind)
            assert {k: v for k, v in cfg.items() if k not in ("scale", "backbone", "head")} == {
                k: v for k, v in base.items() if k not in ("backbone", "head")
            }
        text = format_cfg(base=name, block="Probe", after=list(rows), options={"groups": 16})
        assert (
            yaml.safe_load(text)["head"]
            == build_cfg(base=name, block="Probe", after=list(rows), options={"groups": 16})["head"]
        )


@pytest.mark.parametrize(
    ("recipe", "scale"),
    [
        ({"base": "yolo11n.yaml"}, "n"),
        ({"base": "yolov8x-p6.yaml", "block": "none"}, "x"),
        ({"base": "yolo11.yaml", "size": "m"}, "m"),
        ({"base": "yolo11.yaml"}, None),
        ({"base": "yolov9c.yaml"}, None),
        ({"base": "yolov10b.yaml"}, None),
    ],
)
def test_the_letter_of_the_size_is_kept(of_ultralytics, recipe, scale):
    assert build_cfg(**recipe).get("scale") == scale
    text = format_cfg(**recipe)
    assert "scale" not in yaml.safe_load(text)
    assert (f" {scale} was asked for." in text.splitlines()[1]) is (scale is not None)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"base": "yolo11q.yaml"}, "yolo11q.yaml: there is no such size; the letter of the size is one of n, s, m"),
        ({"base": "yolo11n.yaml", "size": "x"}, "yolo11n.yaml is of size n, and --size asks for x"),
        ({"base": "yolov9c.yaml", "size": "n"}, "yolov9c.yaml has no sizes; leave --size out"),
        ({"base": "yolov10n.yaml", "size": "m"}, "yolov10n.yaml has only the sizes n, not m"),
        ({"base": {"scales": {"n": [1, 2]}, "backbone": [], "head": [], "nc": 1}}, "scales must give depth, width and"),
        ({"base": {"scales": {"n": [1, 2, 3]}, "backbone": []}}, "the key 'nc' is missing"),
    ],
)
def test_bases_of_ultralytics_that_cannot_be_used(of_ultralytics, recipe, message):
    with pytest.raises(ConfigError, match=message):
        build_cfg(**recipe)


def test_a_block_must_fit_in_the_size_asked_for_or_in_one_of_all(of_ultralytics):
    wide = {"block": "SA", "at": "neck"}
    # 64 groups in 64 channels
    with pytest.raises(ConfigError, match=r"SA does not fit after row 16 of yolo11n.yaml, at size n: .*fits is 32"):
        Recipe(base="yolo11n.yaml", **wide).check_fit()
    assert Recipe(base="yolo11x.yaml", **wide).check_fit() == []
    assert Recipe(base="yolo11.yaml", **wide).check_fit() == ["n"]
    with pytest.raises(ConfigError, match=r"EMA does not fit inside row 2 of yolo11n.yaml, at size n: .*16 channels"):
        Recipe(base="yolo11n.yaml", inside="C3k2", after=[2]).check_fit()
    assert Recipe(base="yolo11n.yaml", inside="C3k2", after=[2], options={"groups": 16}).check_fit() == []


def test_text_says_command_row_numbers_and_levels():
    lines = format_cfg(size="s", block="EMA", at="backbone").splitlines()
    assert lines[0] == "# yolov5-ema cfg --size s --block EMA --at backbone"
    assert "   [-1, 1, EMA, []],  # 7-P4/16, attention on row 6 (C3)" in lines
    assert "   [-1, 1, nn.Upsample, [None, 2, 'nearest']],  # 13-P4/16" in lines
    assert "   [[-1, 7], 1, Concat, [1]],  # 14-P4/16, joins 13 (nn.Upsample) + 7 (EMA)" in lines
    assert "  - [10,13, 16,30, 33,23]  # P3/8" in lines
    assert lines[-2].endswith("# 26, reads 19-P3/8 (C3), 22-P4/16 (C3), 25-P5/32 (C3)")


def test_blocks_in_a_base_do_not_hide_the_levels():
    for module in ("EMA", "yolov5_ema.EMA"):
        base = build_cfg(block=module, after=[6, 13])
        assert wiring(build_cfg(base=base, block="CA", at="neck"), "CA") == expected_wiring(base, [14, 19, 22])


def test_stride_of_an_unknown_module_is_not_guessed():
    base = yaml.safe_load(RELATIVE_BASE)
    base["backbone"][1] = [-1, 1, "MyDownsample", [64]]
    assert Graph.from_cfg(base).strides()[:3] == [2.0, None, None]
    assert "[-1, 1, MyDownsample, [64]],  # 1\n" in format_cfg(base=base, after=[2])
    with pytest.raises(ConfigError, match=r"row 1 \(MyDownsample\) is unknown.*--after"):
        build_cfg(base=base, at="neck")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("groups=16", 16),
        ("p=0.5", 0.5),
        ("eps=1e-05", 1e-05),
        ("cross_spatial=False", False),
        ("cross_spatial=true", True),
        ("kernel_size=none", None),
        ("kernel_size=null", None),
        ("mode=max", "max"),
        ("mode='3'", "3"),
        ("mode=a=b", "a=b"),
    ],
)
def test_options_of_the_command_line(text, value):
    key, parsed = parse_option(text)
    assert (key, parsed) == (text.split("=")[0], value)
    assert type(parsed) is type(value)
    assert parse_option(f"{key}={format_option(value)}") == (key, value)
    written = yaml.safe_load(format_cfg(options={key: value}))
    assert written["backbone"][7][3] == [{key: value}]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"size": "q"}, "size 'q' is unknown; choose from n, s, m, l, x"),
        ({"head": "p7"}, "head 'p7' is unknown; choose from p3, p2, p2-published"),
        ({"at": "tail"}, "'tail' is unknown; choose from backbone, neck"),
        ({"block": "EMA()"}, r"block 'EMA\(\)' is not a name"),
        ({"nc": 0}, "nc is 0; it must be a whole number"),
        ({"nc": True}, "nc is True"),
        ({"at": "neck", "after": [6]}, "at and after exclude each other"),
        ({"block": "none", "at": "neck"}, "block none has no place"),
        ({"block": "none", "options": {"groups": 8}}, "block none has no place and no options"),
        ({"base": {}, "head": "p2"}, "base and head exclude each other"),
        ({"after": []}, "after is empty"),
        ({"after": [25]}, "has rows 0 to 24, but no row 25"),
        ({"after": [-1]}, "no row -1"),
        ({"after": [24]}, "row 24 of the p3 model is Detect, which gives predictions"),
        ({"after": [6, 8, 6]}, "row 6 is given twice"),
        ({"after": ["6"]}, "'6' is not a row number"),
        ({"options": {"groups": [1]}}, r"option groups is \[1\]"),
        ({"options": {"p": float("nan")}}, "option p is nan"),
        ({"options": {"a b": 1}}, "'a b' is not an option name"),
    ],
)
def test_recipes_that_make_no_sense(recipe, message):
    with pytest.raises(ConfigError, match=message):
        build_cfg(**recipe)


@pytest.mark.parametrize("text", ["groups", "groups=", "=16", "a-b=1", "p=inf"])
def test_options_that_are_none(text):
    with pytest.raises(ConfigError, match="option"):
        parse_option(text)


def change(path, value):
    def apply(cfg):
        target = cfg
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cfg: cfg.pop("nc"), "the key 'nc' is missing"),
        (lambda cfg: cfg.update(anchor=cfg.pop("anchors")), "'anchors' is missing; it has 'anchor'"),
        (change(["nc"], "ten"), "nc is 'ten'"),
        (change(["width_multiple"], 0), "width_multiple is 0; it must be a number above 0"),
        (change(["depth_multiple"], True), "depth_multiple is True"),
        (change(["anchors"], [[1, 2, 3]]), "anchors must be a count"),
        (change(["anchors"], 0), "anchors must be a count"),
        (change(["head"], None), "head must be a list of rows.*found nothing"),
        (change(["backbone"], []), "backbone must be a list of rows"),
        (change(["backbone", 2], [-1, 1, "C3"]), r"row 2 of the model \(in backbone:.*this is a list of 3"),
        (change(["head", 1, 0], 7), r"row 7 of the model \(in head:.*'from' 7 is not above this row"),
        (change(["head", 1, 0], -9), "'from' -9 is before the first row"),
        (change(["head", 1, 0], "-1"), "'from' must be a row number"),
        (change(["head", 1, 0], []), "'from' must be a row number"),
        (change(["head", 0, 0], -1), r"Concat reads a list of rows; write \[-1\]"),
        (change(["backbone", 0, 0], 0), "'from' 0 is not above this row; the first row reads -1, the image"),
        (change(["backbone", 2, 1], 0), "'number' is 0"),
        (change(["backbone", 2, 1], 1.5), "'number' is 1.5"),
        (change(["backbone", 2, 2], "C3; print(1)"), "the module must be a name"),
        (change(["backbone", 2, 2], ["C3"]), "the module must be a name"),
        (change(["backbone", 2, 3], 64), r"args must be a list, \[\] if there are none; found int 64"),
        (
            lambda cfg: cfg["head"].append([-1, 1, "Conv", [64]]),
            "'from' -1 is Detect, which gives predictions",
        ),
    ],
)
def test_bases_that_cannot_be_used_are_named_with_row_and_fix(tmp_path, monkeypatch, spoil, message):
    cfg = yaml.safe_load(RELATIVE_BASE)
    spoil(cfg)
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(yaml.safe_dump(cfg), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"(?s)^my\.yaml.*{message}"):
        build_cfg(base="my.yaml", after=[2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nc: [1", "is not valid YAML"),
        (b"", "holds nothing instead of the keys of a model YAML"),
        (b"- 1\n- 2", "holds a list of 2"),
        (b"\xff\xfe\x00x", "is not valid YAML"),
        (b"nc: 2024-99-99", "is not valid YAML"),
        (b"path: ../data\ntrain: images\nnc: 3\nnames: [a, b, c]", "a data YAML is not a model YAML"),
    ],
)
def test_bases_that_are_no_model_yaml(tmp_path, content, message):
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        build_cfg(base=path)


def test_base_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file; did you mean the shipped yolov5s-ema\.yaml"):
        load_base("yolov5s_ema.yaml")
    with pytest.raises(ConfigError, match=r"cannot read .*not a file that can be read, but a folder"):
        load_base(tmp_path)


def test_shipped_yaml_as_base_by_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = build_cfg(base="yolov5s-ema.yaml", block="CA", after=[4])
    assert [row[2] for row in rows_of(cfg)].count("EMA") == 2
    assert cfg["backbone"][5] == [-1, 1, "CA", []]
    assert wiring(cfg, "CA") == expected_wiring(load_base("yolov5s-ema.yaml"), [4])


@pytest.mark.parametrize(
    ("modules", "at", "message"),
    [
        ("backbone", "backbone", "the last two C3 of the backbone, which has 0"),
        ("head", "neck", "finer than stride 8, and there are none"),
    ],
)
def test_bases_without_the_place(modules, at, message):
    base = yaml.safe_load(RELATIVE_BASE)
    for row in base[modules]:
        row[2] = "Conv" if row[2] == "C3" else row[2]
    with pytest.raises(ConfigError, match=message):
        build_cfg(base=base, at=at)


@pytest.fixture(scope="module")
def build_model():
    """Build real YOLOv5 models without printing anything."""
    pytest.importorskip("cv2")
    if importlib.util.find_spec("yolov5") is None:
        pytest.skip("needs the PyPI package yolov5")
    with yolov5_ema.installed():
        from yolov5.models.yolo import Model

        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        # One thread: the passes are small and many, and on a busy machine several threads wait for each other.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with torch.no_grad():
            yield lambda cfg, nc=None: Model(cfg, ch=3, nc=nc)
        torch.set_num_threads(threads)
        logging.disable(before)


@pytest.fixture
def only_counting(build_model, monkeypatch):
    """Skip what takes long in a YOLOv5x and is not tested: ninety million random numbers, and the FLOPs."""
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, *args, **kwargs: tensor)
    monkeypatch.setattr("yolov5.models.yolo.model_info", lambda *args, **kwargs: None)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_shipped_models_have_the_papers_parameters(build_model, only_counting, name):
    model = build_model(str(models_dir() / name))
    assert count(model) == PARAMETERS[name]
    levels = [8, 16, 32] if SHIPPED[name].head is None else [4, 8, 16, 32]
    assert model.stride.tolist() == levels
    assert model.yaml["nc"] == (80 if SHIPPED[name].head is None else 10)


def test_plain_model_is_yolov5s(build_model, only_counting):
    assert count(build_model(build_cfg(block="none"))) == PLAIN_80["s"]
    detect_outputs = 3 * (80 - 3)
    fewer = detect_outputs * (128 + 256 + 512) + detect_outputs * 3
    assert count(build_model(build_cfg(block="none"), nc=3)) == PLAIN_80["s"] - fewer


@pytest.mark.parametrize(
    "recipe",
    [
        {"head": "p3", "at": "backbone"},
        {"head": "p3", "at": "neck"},
        {"head": "p2", "at": "neck"},
        {"base": yaml.safe_load(RELATIVE_BASE), "after": [0, 2, 3, 4, 5, 6, 7]},
    ],
    ids=["p3-backbone", "p3-neck", "p2-neck", "relative"],
)
def test_rows_that_do_nothing_leave_the_real_model_as_it_was(build_model, recipe):
    """With nn.Identity as the block, the same seed must give the same predictions: all references are right."""
    image = torch.rand(1, 3, 64, 64)
    predictions = []
    for block in ("none", "nn.Identity"):
        places = recipe if block != "none" else {k: v for k, v in recipe.items() if k in ("head", "base")}
        torch.manual_seed(0)
        model = build_model(build_cfg(size="n", block=block, **places)).eval()
        predictions.append(model(image)[0])
    assert torch.equal(*predictions)


def test_blocks_at_every_place_build_with_the_scaled_channels(build_model, only_counting):
    for head, at in BLOCK_ROWS:
        model = build_model(build_cfg(size="n", block="EMA", at=at, head=head, options={"groups": 8}))
        found = [m for m in model.model if type(m).__name__ == "EMA"]
        assert [m.groups for m in found] == [8] * len(BLOCK_ROWS[head, at])


@pytest.mark.parametrize("block", ["EMA", "CA", "CBAM"])
def test_the_published_wiring_reads_before_the_blocks(block):
    name = f"yolov5x-{block.lower()}-tph"
    ours, theirs = SHIPPED[f"{name}.yaml"].graph(), SHIPPED[f"{name}-published.yaml"].graph()
    assert ours.to_cfg()["head"][-1][0] == [24, 28, 32, 35]
    assert theirs.to_cfg()["head"][-1][0] == [23, 27, 31, 35]
    concats = {i: row for i, row in enumerate(theirs.to_cfg()["head"], 10) if row[2] == "Concat"}
    assert concats[26][0] == [-1, 18] and concats[30][0] == [-1, 14] and concats[34][0] == [-1, 10]
    assert theirs.settings["anchors"][0] == [5, 6, 8, 14, 15, 11]
    same = [(a.number, a.module, a.args) for a in ours.rows] == [(b.number, b.module, b.args) for b in theirs.rows]
    assert same and [i for i, row in enumerate(theirs.rows) if row.attends] == [14, 19, 24, 28, 32]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"size": "n", "block": "SA", "at": "neck"}, ["row 17 ", "64 channels", "fits is 32", "--option"]),
        ({"size": "n", "block": "EMA", "after": [6, 0]}, ["row 0 ", "16 channels", "16"]),
        ({"size": "n", "block": "EMA", "options": {"groups": 48}}, ["row 6", "128 channels", "48 groups"]),
        ({"size": "n", "block": "CBAM", "after": [0], "options": {"reduction": 32}}, ["row 0", "32", "16"]),
    ],
)
def test_a_block_that_does_not_fit_is_refused_before_the_cfg_is_written(recipe, words):
    with pytest.raises(ConfigError) as caught:
        Recipe(**recipe).check_fit()
    for word in words:
        assert word in str(caught.value)
    Recipe(size="n", block="SA", at="neck", options={"groups": 32}).check_fit()
