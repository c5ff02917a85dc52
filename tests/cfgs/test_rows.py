"""Every row of a cfg is checked before YOLOv5 evaluates it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml

import yolov5_ema
from yolov5_ema.blocks import list_blocks
from yolov5_ema.cfgs.rows import checked_model, checking_once
from yolov5_ema.errors import ConfigError
from yolov5_ema.resources import models_dir

SMALL = {
    "nc": 3,
    "depth_multiple": 1.0,
    "width_multiple": 0.5,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [64, 6, 2, 2]], [-1, 1, "Conv", [128, 3, 2]]],
    "head": [[-1, 1, "EMA", []], [[2], 1, "Detect", ["nc", "anchors"]]],
}


@pytest.fixture(scope="module")
def yolo():
    with yolov5_ema.installed():
        from yolov5.models import yolo

        yield yolo


def cfg(**changes):
    return {**copy.deepcopy(SMALL), **changes}


def with_row(row, place=0, section="head"):
    changed = cfg()
    changed[section][place] = row
    return changed


@pytest.mark.parametrize(
    ("row", "repr_of_block", "channels"),
    [
        ([-1, 1, "EMA", []], "EMA(64, groups=32", 64),
        ([-1, 1, "EMA", [16]], "EMA(64, groups=16", 64),
        (
            [-1, 1, "EMA", [{"groups": 8, "cross_spatial": False}]],
            "EMA(64, groups=8, cross_spatial=False",
            64,
        ),
        ([-1, 1, "EMA", [{"factor": 8}]], "EMA(64, groups=8", 64),
        (
            [-1, 1, "EMA", [{"norm_groups": 1, "residual": True, "depthwise": True}]],
            "EMA(64, groups=32, cross_spatial=True, implementation=auto, norm_groups=1, residual=True, depthwise=True",
            64,
        ),
        ([-1, 1, "yolov5_ema.EMA", [4]], "EMA(64, groups=4", 64),
        ([0, 1, "EMA", [16]], "EMA(32, groups=16", 32),
        ([-1, 1, "CA", [16]], "CA(64, reduction=16", 64),
        ([-1, 1, "SA", [{"groups": 4}]], "SA(64, groups=4", 64),
        ([-1, 1, "timm.eca", []], "TimmEca(64", 64),
        ([0, 1, "yolov5_ema.timm.strip", [{"kernel_size": 5}]], "TimmStrip(32, use_conv=True, kernel_size=5", 32),
    ],
)
def test_a_row_builds_its_block_with_the_true_channels(yolo, row, repr_of_block, channels):
    model = yolo.Model(with_row(row))
    block = model.model[2]
    assert f"{type(block).__name__}({block.extra_repr()}".startswith(repr_of_block)
    assert model.model[2].np == sum(p.numel() for p in model.model[2].parameters())
    assert model.model[-1].m[0].in_channels == channels


def test_repeats_follow_the_depth_multiple(yolo):
    changed = with_row([-1, 4, "CA", []])
    changed["depth_multiple"] = 0.5
    model = yolo.Model(changed)
    assert len(model.model[2]) == 2 and all(type(m) is yolov5_ema.CA for m in model.model[2])


def test_the_users_dict_is_not_changed(yolo):
    given = cfg()
    model = yolo.Model(given)
    assert given["head"] == SMALL["head"] and given["backbone"] == SMALL["backbone"]
    assert model.yaml["head"][0] == [-1, 1, "EMA", []]  # a checkpoint keeps what the YAML said


def test_a_copied_row_keeps_its_defaults(yolo):
    """Preflight and parse_model check the same rows once; EMA tells its default groups from groups that are given."""
    with checking_once():
        for _ in range(2):
            row = checked_model(with_row([-1, 1, "EMA", [{"factor": 8}]]), yolo)["head"][0]
            assert row[2](64, *row[3][1:]).groups == 8


EVERY_DAY = ("BAM", "CA", "CBAM", "ECA", "EMA", "NAM", "PolarizedSA", "SA", "SE")


@pytest.mark.parametrize("size", ["n", "s"])
@pytest.mark.parametrize(
    "block", [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.slow) for name in list_blocks()]
)
def test_every_block_runs_in_a_whole_model(yolo, size, block):
    from yolov5_ema.cfgs.generator import build_cfg

    options = {"groups": 16} if block == "SA" else {}
    model = yolo.Model(build_cfg(size=size, block=block, options=options)).eval()
    predictions = model(torch.rand(1, 3, 64, 96))[0]
    assert predictions.shape == (1, 3 * (8 * 12 + 4 * 6 + 2 * 3), 85) and predictions.isfinite().all()


REFUSED = [
    # (cfg, expected message)
    (with_row([-1, 1, "EMMA", []]), ["row 2", "'EMMA'", "did you mean EMA?"]),
    (with_row([-1, 1, "Cov", [64, 3]]), ["row 2", "did you mean Conv?"]),
    (with_row([-1, 1, "MyBlock", []]), ["row 2", "--plugin"]),
    (with_row([-1, 1, "CoordAtt", []]), ["row 2", "here it is called CA. Attention blocks"]),
    (with_row([-1, 1, "EMAttention", []]), ["row 2", "here it is called EMA. Attention blocks"]),
    (with_row([-1, 1, "eca_layer", []]), ["row 2", "unknown module 'eca_layer'; here it is called ECA."]),
    (with_row([-1, 1, "PSA", []]), ["row 2", "unknown module 'PSA'; here it is called PolarizedSA."]),
    (with_row([-1, 1, "yolov5_ema.SELayer", []]), ["row 2", "no block 'SELayer'; here it is called SE."]),
    (with_row([-1, 1, "Qwxyz", []]), ["row 2", "unknown module 'Qwxyz'. Attention blocks"]),
    (with_row([-1, 1, "timm.ecca", []]), ["row 2", "unknown module 'timm.ecca'; did you mean timm.eca?"]),
    (with_row([-1, 1, "timm.bat", []]), ["row 2", "unknown module 'timm.bat'. It is not a block: height and width"]),
    (with_row([-1, 1, "timm.eca", [128]]), ["row 2", "timm.eca [128]", "number of channels", "write [timm.eca, []]"]),
    (with_row([-1, 1, "timm.ela", [{"k": 3}]]), ["row 2", "timm.ela has no option 'k'; it takes kernel_size=7"]),
    (with_row([-1, 1, "timm.se", [16]]), ["row 2", "timm.se: rd_ratio must be from 0 to 1", "[timm.se, []] is enough"]),
    (with_row([-1, 1, "yolov5_ema.timm.x", []]), ["row 2", "no block 'timm.x'"]),
    (with_row([-1, 1, "EMA", [0]]), ["row 2", "EMA", "groups", "0"]),
    (with_row([-1, 1, "EMA", [-4]]), ["row 2", "groups", "-4"]),
    (with_row([-1, 1, "EMA", [48]]), ["row 2", "48", "64"]),
    (with_row([-1, 1, "EMA", [128]]), ["row 2", "number of channels", "[EMA, []]", "{groups: 128}"]),
    (with_row([-1, 1, "CA", [128]]), ["row 2", "number of channels", "[CA, []]"]),
    (with_row([-1, 1, "EMA", [{"group": 8}]]), ["row 2", "'group'", "groups=32"]),
    (with_row([-1, 1, "ECA", [3, 4, 5]]), ["row 2", "ECA", "kernel_size"]),
    (with_row([[-1, 0], 1, "EMA", []]), ["row 2", "Concat"]),
    (with_row([5, 1, "EMA", []]), ["row 2", "'from' 5 is not above this row"]),
    (with_row(["-1", 1, "EMA", []]), ["row 2", "'from'"]),
    (with_row([-1, 0, "EMA", []]), ["row 2", "how often"]),
    (with_row([-1, 1, "EMA"]), ["row 2", "[from, number, module, args]"]),
    (with_row([-1, 1, "EMA", None]), ["row 2", "args"]),
    (with_row([-1, 1, "Conv", [64, 3, 2, 1, 1, 1, 1, 1, 1, 1]]), ["row 2", "Conv", "arguments"]),
    (cfg(nc=0), ["nc", "0"]),
    (cfg(nc="80"), ["nc", "'80'"]),
    (cfg(width_multiple="wide"), ["width_multiple", "'wide'"]),
    (cfg(anchors="many"), ["anchors"]),
    (cfg(backbone=[]), ["backbone"]),
    (
        {key: value for key, value in cfg(heads=[]).items() if key != "head"},
        ["'head' is missing", "'heads'"],
    ),
]


@pytest.mark.parametrize(("model", "words"), REFUSED)
def test_mistakes_are_named(yolo, model, words):
    with pytest.raises(ConfigError) as caught:
        yolo.Model(model)
    for word in words:
        assert word in str(caught.value)


def test_the_file_is_named_too(yolo, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(with_row([-1, 1, "EMA", [48]])))
    with pytest.raises(ConfigError, match=r"mine\.yaml, row 2: \[-1, 1, EMA, \[48\]\]"):
        yolo.Model(str(file))


UNCLEAR = [
    # arguments of a row that reads 128 channels, 64 after the width multiple; the expected advice
    ("EMA", [128], ["[EMA, []]", "[EMA, [{groups: 128}]]"]),
    ("EMA", [64], ["[EMA, []]", "[EMA, [{groups: 64}]]"]),
    ("EMA", [128, 8], ["[EMA, [{groups: 8}]]"]),
    ("EMA", [256, 8], ["[EMA, [{groups: 8}]]"]),
    ("EMA", [128, 128, 8], ["[EMA, [{groups: 8}]]"]),
    ("EMA", [96, 96], ["[EMA, []]"]),
    ("EMA", [128, 128, 0], ["[EMA, []]"]),
    ("EMA", [128, 128, 3], ["[EMA, []]"]),  # it is not divisible by 3
    ("EMA", [128, {"implementation": "exact"}], ["[EMA, []]", "[EMA, [{groups: 128}]]"]),
    ("CBAM", [7], ["[CBAM, [{kernel_size: 7}]]", "[CBAM, [{reduction: 7}]]"]),
    ("CBAM", [64], ["[CBAM, []]", "[CBAM, [{reduction: 64}]]"]),
    ("CBAM", [128, 128, 3], ["[CBAM, [{kernel_size: 3}]]", "[CBAM, [{reduction: 3}]]"]),
    ("CBAM", [128, 8], ["[CBAM, [{reduction: 8}]]"]),
    ("CA", [128, 128, 8], ["[CA, [{reduction: 8}]]"]),
    ("CA", [64], ["[CA, []]", "[CA, [{reduction: 64}]]"]),
    ("SE", [256, 8], ["[SE, [{reduction: 8}]]"]),
    ("SA", [128, 8], ["[SA, [{groups: 8}]]"]),
    ("ECA", [128, 3], ["[ECA, [{kernel_size: 3}]]"]),
    ("NAM", [128], ["[NAM, []]"]),
]


@pytest.mark.parametrize(("block", "args", "spelled"), UNCLEAR)
def test_a_number_that_could_mean_two_things_is_refused_with_each_spelled_out(yolo, block, args, spelled):
    with pytest.raises(ConfigError, match="row 2") as caught:
        yolo.Model(with_row([-1, 1, block, args]))
    for advice in spelled:
        assert f"write {advice}" in str(caught.value)
    assert str(caught.value).count("write ") == len(spelled)


@pytest.mark.parametrize(
    ("block", "options"),
    [
        ("EMA", {"groups": 64}),
        ("EMA", {"groups": 32}),
        ("CBAM", {"reduction": 7}),
        ("CBAM", {"kernel_size": 3}),
        ("CA", {"reduction": 64}),
        ("SE", {"reduction": 64}),
    ],
)
def test_what_is_advised_builds_what_it_says(yolo, block, options):
    model = yolo.Model(with_row([-1, 1, block, [options]]))
    assert {name: getattr(model.model[2], name) for name in options} == options
    assert all(type(getattr(model.model[2], name)) is int for name in options)
    assert model.yaml["head"][0] == [-1, 1, block, [options]]


def test_a_default_that_is_the_number_of_channels_is_no_riddle(yolo):
    narrow = with_row([-1, 1, "CBAM", [{"kernel_size": 3}]])
    narrow["width_multiple"] = 0.125  # 16 channels, as many as the reduction of CBAM
    assert yolo.Model(narrow).model[2].reduction == yolo.Model(narrow).model[2].channels == 16


def test_a_checkpoint_from_before_keeps_the_meaning_of_its_rows(yolo, tmp_path):
    """Its YAML says CBAM [7], which meant the reduction; train and convert build it from the YAML again."""
    from yolov5_ema.checkpoints.loading import load_checkpoint
    from yolov5_ema.upstream.locate import locate

    model = yolo.Model(with_row([-1, 1, "CBAM", [{"reduction": 7}]]))
    model.yaml["head"][0][3] = [7]
    torch.save({"model": model, "ema": None}, tmp_path / "old.pt")
    with pytest.raises(ConfigError, match="kernel_size"):
        yolo.Model(copy.deepcopy(model.yaml))
    again = load_checkpoint(tmp_path / "old.pt", engine=locate())["model"]
    assert again.yaml["head"][0] == [-1, 1, "CBAM", [{"reduction": 7}]]
    rebuilt = yolo.Model(again.yaml)
    assert rebuilt.model[2].reduction == 7 and rebuilt.model[2].kernel_size == 7


SMUGGLED = "__import__('pathlib').Path({path!r}).touch()"


@pytest.mark.parametrize(
    "make",
    [
        lambda code: with_row([-1, 1, code, []]),
        lambda code: with_row([-1, 1, "EMA", [code]]),
        lambda code: with_row([-1, 1, "Conv", [64, code]]),
        lambda code: with_row([-1, 1, "Conv", [64, [code]]]),
        lambda code: with_row([-1, 1, "EMA", [{"groups": code}]]),
        lambda code: with_row([-1, 1, f"Conv if {code} else Conv", []]),
        lambda code: with_row([-1, 1, f"nn.Upsample.__init__.{code}", []]),
        lambda code: with_row([[2], 1, "Detect", [code, "anchors"]], place=1),
        lambda code: cfg(activation=code),
        lambda code: cfg(activation=f"nn.SiLU({code})"),
        lambda code: cfg(activation=f"nn.SiLU() if {code} else 0"),
        lambda code: cfg(anchors=code),
        lambda code: cfg(nc=code),
        lambda code: cfg(depth_multiple=code),
    ],
)
def test_a_cfg_that_smuggles_code_is_refused_and_nothing_runs(yolo, make, tmp_path):
    marker = tmp_path / "ran"
    code = SMUGGLED.format(path=str(marker))
    with pytest.raises(ConfigError):
        yolo.Model(make(code))
    assert not marker.exists()


def test_option_strings_never_reach_eval(yolo, tmp_path):
    """A string option is quoted, because parse_model evaluates it."""

    class Named(torch.nn.Module):
        def __init__(self, channels, mode="plain"):
            super().__init__()
            self.mode = mode

        def forward(self, x):
            return x

    marker = tmp_path / "ran"
    code = SMUGGLED.format(path=str(marker))
    yolov5_ema.register_block(Named, name="TestNamed")
    try:
        model = yolo.Model(with_row([-1, 1, "TestNamed", [{"mode": code}]]))
        assert model.model[2].mode == code and not marker.exists()
    finally:
        from yolov5_ema.blocks.registry import unregister_block

        unregister_block("TestNamed")


@pytest.mark.parametrize("name", ["activation", "dunder"])
def test_what_yolov5_itself_allows_passes(yolo, name):
    changed = cfg(activation="nn.LeakyReLU(0.1, inplace=True)") if name == "activation" else cfg()
    assert checked_model(changed, yolo)["backbone"][0][2] is yolo.Conv


def test_a_row_may_hold_a_class(yolo):
    model = yolo.Model(with_row([-1, 1, yolov5_ema.SA, [{"groups": 4}]]))
    assert type(model.model[2]) is yolov5_ema.SA


def test_all_of_yolov5s_own_yamls_pass(yolo, package_root):
    seen = 0
    for file in [*sorted((package_root / "models").rglob("*.yaml")), *sorted(models_dir().glob("*.yaml"))]:
        try:
            content = yaml.safe_load(file.read_text(errors="ignore"))
        except yaml.YAMLError:
            continue  # yolov5-bifpn.yaml of 6.0.7 is not valid YAML
        if "backbone" in content:
            assert checked_model(content, yolo, where=str(file))
            seen += 1
    assert seen >= 30


def test_a_forks_own_block_is_not_overwritten_silently(yolo, monkeypatch):
    class CBAM(torch.nn.Module):
        def __init__(self, *args):
            super().__init__()

        def forward(self, x):
            return x

    monkeypatch.setattr(yolo, "CBAM", CBAM, raising=False)
    row = with_row([-1, 1, "CBAM", []])
    with pytest.raises(ConfigError, match=r"both .* yolov5_ema\.CBAM .*--conflicts ours\|theirs"):
        yolo.Model(row)
    assert checked_model(row, yolo, conflicts="ours")["head"][0][2] is yolov5_ema.CBAM
    assert checked_model(row, yolo, conflicts="theirs")["head"][0][2:] == [CBAM, []]
    ours = checked_model(with_row([-1, 1, "yolov5_ema.CBAM", []]), yolo)
    assert ours["head"][0][2] is yolov5_ema.CBAM
    assert type(yolo.Model(cfg()).model[2]) is yolov5_ema.EMA  # other names do not matter


def test_a_path_that_is_no_file(tmp_path):
    from yolov5_ema.data.yaml_files import load_yaml

    for text, words in (("a: [", "not valid YAML"), ("", "empty"), ("- 1\n- 2\n", "a list")):
        file = tmp_path / "x.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_yaml(file)
    with pytest.raises(ConfigError, match="cannot read"):
        load_yaml(Path(tmp_path / "none.yaml"))
