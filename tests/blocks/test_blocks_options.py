"""Options that a block cannot use are refused when it is built; the message says which, why, and what to do."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch

from yolov5_ema.blocks import CBAM, EMA, create_block, get_block, list_blocks, positions

INVALID = [
    # block, channels, options, expected message
    (
        "EMA",
        48,
        {},
        "EMA: 48 channels cannot be split into 32 groups; nearest groups that divide them: 24 or 48",
    ),
    ("EMA", 48, {"groups": 64}, "48 channels cannot be split into 64 groups; nearest .*: 48"),
    ("EMA", 64, {"groups": 0}, "EMA: groups must be at least 1, got 0"),
    ("EMA", 64, {"groups": -8}, "EMA: groups must be at least 1, got -8"),
    ("EMA", 64, {"groups": 8.0}, "EMA: groups must be an integer, got 8.0 (float)"),
    ("EMA", 64, {"groups": True}, "EMA: groups must be an integer, got True (bool)"),
    ("EMA", 64, {"groups": None}, "EMA: groups must be an integer, got None"),
    ("EMA", 64, {"factor": "8"}, "EMA: factor must be an integer, got '8' (str)"),
    ("EMA", 64, {"factor": 0}, "EMA: factor must be at least 1, got 0"),
    ("EMA", 64, {"groups": 16, "factor": 8}, "groups=16 and factor=8 are two names of one option"),
    ("EMA", 64, {"groups": 32, "factor": 8}, "groups=32 and factor=8 are two names of one option"),
    ("EMA", 64, {"cross_spatial": 0}, "EMA: cross_spatial must be True or False, got 0 (int)"),
    ("EMA", 64, {"cross_spatial": "no"}, "EMA: cross_spatial must be True or False, got 'no' (str)"),
    ("EMA", 64, {"norm_groups": 4}, "EMA: norm_groups 4 does not divide the 2 channels of a group; nearest: 2"),
    (
        "EMA",
        64,
        {"groups": 4, "norm_groups": 3},
        "3 does not divide the 16 channels of a group; nearest: 2 or 4",
    ),
    ("EMA", 64, {"norm_groups": 0}, "EMA: norm_groups must be at least 1, got 0"),
    ("EMA", 64, {"norm_groups": True}, "EMA: norm_groups must be an integer, got True (bool)"),
    ("EMA", 64, {"residual": 1}, "EMA: residual must be True or False, got 1 (int)"),
    ("EMA", 64, {"depthwise": "yes"}, "EMA: depthwise must be True or False, got 'yes' (str)"),
    ("CA", 64, {"reduction": 0}, "CA: reduction must be at least 1, got 0"),
    ("CA", 64, {"reduction": 2.5}, "CA: reduction must be an integer, got 2.5 (float)"),
    (
        "CBAM",
        8,
        {},
        "CBAM: reduction 16 leaves no hidden channel of 8 channels; use a reduction of at most 8",
    ),
    ("CBAM", 64, {"reduction": -1}, "CBAM: reduction must be at least 1, got -1"),
    ("CBAM", 64, {"reduction": False}, "CBAM: reduction must be an integer, got False (bool)"),
    ("CBAM", 64, {"kernel_size": 4}, "CBAM: kernel_size must be odd, got 4; use 3 or 5"),
    ("CBAM", 64, {"kernel_size": 0}, "CBAM: kernel_size must be at least 1, got 0"),
    ("CBAM", 64, {"kernel_size": 7.0}, "CBAM: kernel_size must be an integer, got 7.0 (float)"),
    ("SA", 64, {}, "SA: 64 channels cannot be split into 64 groups of two halves.*2 * 64 = 128.*fits is 32"),
    ("SA", 96, {"groups": 5}, "SA: 96 channels .* 5 groups.*2 * 5 = 10.*fits is 4"),
    ("SA", 7, {"groups": 1}, "SA: 7 channels .* 1 groups.*use an even number of channels"),
    ("SA", 64, {"groups": 0}, "SA: groups must be at least 1, got 0"),
    ("SA", 64, {"groups": 4.0}, "SA: groups must be an integer, got 4.0 (float)"),
    ("ECA", 64, {"kernel_size": 6}, "ECA: kernel_size must be odd, got 6; use 5 or 7"),
    ("ECA", 64, {"kernel_size": -3}, "ECA: kernel_size must be at least 1, got -3"),
    ("ECA", 64, {"kernel_size": True}, "ECA: kernel_size must be an integer, got True (bool)"),
    ("SE", 8, {}, "SE: reduction 16 leaves no hidden channel of 8 channels; use a reduction of at most 8"),
    ("SE", 64, {"reduction": 0}, "SE: reduction must be at least 1, got 0"),
    ("SE", 64, {"bias": 1}, "SE: bias must be True or False, got 1 (int)"),
    ("SGE", 96, {}, "SGE: 96 channels cannot be split into 64 groups; nearest groups that divide them: 48 or 96"),
    ("SGE", 64, {"groups": 8.0}, "SGE: groups must be an integer, got 8.0 (float)"),
    ("SimAM", 64, {"e_lambda": 0}, "SimAM: e_lambda must be from 1e-12 to 1e+06, got 0"),
    ("SimAM", 64, {"e_lambda": "1e-4"}, "SimAM: e_lambda must be a number, got '1e-4' (str)"),
    ("SimAM", 64, {"e_lambda": float("nan")}, "SimAM: e_lambda must be from 1e-12 to 1e+06, got nan"),
    ("Triplet", 64, {"kernel_size": 4}, "Triplet: kernel_size must be odd, got 4; use 3 or 5"),
    ("Triplet", 64, {"spatial": 1}, "Triplet: spatial must be True or False, got 1 (int)"),
    ("PolarizedSA", 8, {}, "PolarizedSA: mode sequential needs at least 16 channels, got 8"),
    ("PolarizedSA", 1, {"mode": "parallel"}, "PolarizedSA: mode parallel needs at least 2 channels, got 1"),
    ("PolarizedSA", 64, {"mode": "both"}, "PolarizedSA: mode must be one of sequential, parallel; got 'both'"),
    ("PolarizedSA", 64, {"mode": ["parallel"]}, "mode must be one of sequential, parallel; got ['parallel']"),
    ("GC", 16, {}, "GC: reduction 16 leaves fewer than 2 hidden channels of 16 channels; use a reduction of at most 8"),
    ("GC", 1, {"reduction": 1}, "GC: needs at least 2 channels, got 1"),
    ("GC", 64, {"fusion": "sum"}, "GC: fusion must be one of add, mul; got 'sum'"),
    ("BAM", 8, {}, "BAM: reduction 16 leaves no hidden channel of 8 channels; use a reduction of at most 8"),
    ("BAM", 64, {"dilation": 0}, "BAM: dilation must be at least 1, got 0"),
    ("BAM", 64, {"combine": True}, "BAM: combine must be one of sum, product; got True"),
    ("GAM", 2, {}, "GAM: reduction 4 leaves no hidden channel of 2 channels; use a reduction of at most 2"),
    ("GAM", 64, {"kernel_size": 6}, "GAM: kernel_size must be odd, got 6; use 5 or 7"),
    ("ELA", 24, {}, "ELA: norm_groups 16 does not divide 24 channels; nearest that does: 12 or 24"),
    ("ELA", 64, {"width": 5}, "ELA: width 5 does not divide 64 channels; nearest that does: 4 or 8"),
    ("ELA", 64, {"kernel_size": 0}, "ELA: kernel_size must be at least 1, got 0"),
    ("MLCA", 64, {"local_weight": 1.5}, "MLCA: local_weight must be from 0 to 1, got 1.5"),
    ("MLCA", 64, {"local_weight": True}, "MLCA: local_weight must be a number, got True (bool)"),
    ("MLCA", 64, {"local_size": 0}, "MLCA: local_size must be at least 1, got 0"),
    ("MLCA", 64, {"kernel_size": 2}, "MLCA: kernel_size must be odd, got 2; use 1 or 3"),
    ("LSKA", 64, {"kernel_size": 9}, "LSKA: kernel_size must be one of 7, 11, 23, 35, 41, 53; got 9"),
    ("LSKA", 64, {"kernel_size": 7.0}, "LSKA: kernel_size must be an integer, got 7.0 (float)"),
    ("CPCA", 3, {}, "CPCA: reduction 4 leaves no hidden channel of 3 channels; use a reduction of at most 3"),
    ("A2", 64, {"residual": None}, "A2: residual must be True or False, got None (NoneType)"),
    ("A2", 2, {}, "A2: reduction 4 leaves no hidden channel of 2 channels; use a reduction of at most 2"),
    ("NonLocal", 64, {"subsample": "yes"}, "NonLocal: subsample must be True or False, got 'yes' (str)"),
    ("NonLocal", 1, {}, "NonLocal: reduction 2 leaves no hidden channel of 1 channels; use a reduction of at most 1"),
]


@pytest.mark.parametrize(("name", "channels", "options", "message"), INVALID)
def test_invalid_option(name, channels, options, message):
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=pattern):
        create_block(name, channels, **options)


@pytest.mark.parametrize("name", list_blocks())
@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (0, "channels must be at least 1, got 0"),
        (-64, "channels must be at least 1, got -64"),
        (64.0, "channels must be an integer, got 64.0 (float)"),
        (True, "channels must be an integer, got True (bool)"),
        ("64", "channels must be an integer, got '64' (str)"),
        (None, "channels must be an integer, got None (NoneType)"),
    ],
)
def test_invalid_channels(name, channels, message):
    with pytest.raises(ValueError, match=f"{name}: {re.escape(message)}"):
        create_block(name, channels)


def test_ca_keeps_eight_hidden_channels_at_least():
    assert create_block("CA", 16).bn1.num_features == 8
    assert create_block("CA", 16, reduction=64).bn1.num_features == 8
    assert create_block("CA", 512, reduction=8).bn1.num_features == 64


UNCLEAR = [
    # arguments of the constructor, and how each of their meanings is written
    ("EMA", (64, 64), ["EMA(64)", "EMA(64, groups=64)"]),  # the second argument of the public code is not used
    ("EMA", (64, 64, 8), ["EMA(64, groups=8)"]),
    ("EMA", (64, None, 8), ["EMA(64, groups=8)"]),
    ("EMA", (64, 64, False), ["EMA(64, cross_spatial=False)", "EMA(64, groups=64, cross_spatial=False)"]),
    ("CBAM", (64, 7), ["CBAM(64, kernel_size=7)", "CBAM(64, reduction=7)"]),  # the kernel in ultralytics
    ("CBAM", (64, 3), ["CBAM(64, kernel_size=3)", "CBAM(64, reduction=3)"]),
    ("CBAM", (64, 64), ["CBAM(64)", "CBAM(64, reduction=64)"]),
    ("CBAM", (64, 64, 8), ["CBAM(64, reduction=8)"]),
    (
        "CBAM",
        (64, 64, 3),
        ["CBAM(64, kernel_size=3)", "CBAM(64, reduction=3)", "CBAM(64, reduction=64, kernel_size=3)"],
    ),
    ("CA", (64, 64), ["CA(64)", "CA(64, reduction=64)"]),  # CoordAtt(inp, oup, reduction)
    ("CA", (64, 64, 8), ["CA(64, reduction=8)"]),
    ("SE", (64, 64), ["SE(64)", "SE(64, reduction=64)"]),
    ("SE", (64, 64, 8), ["SE(64, reduction=8)"]),
    ("SA", (64, 64), ["SA(64)", "SA(64, groups=64)"]),
    ("SA", (64, 64, 8), ["SA(64, groups=8)"]),
    ("ECA", (65, 65), ["ECA(65)", "ECA(65, kernel_size=65)"]),
    ("ECA", (64, 64, 3), ["ECA(64, kernel_size=3)"]),
    ("NAM", (64, 64), ["NAM(64)"]),
    ("SimAM", (64, 64), ["SimAM(64)", "SimAM(64, e_lambda=64)"]),
    ("PolarizedSA", (64, 64), ["PolarizedSA(64)"]),  # ultralytics' PSA(c1, c2)
    ("ELA", (64, 64), ["ELA(64)"]),
    ("GAM", (64, 64, 8), ["GAM(64, reduction=8)"]),
]


@pytest.mark.parametrize(("name", "arguments", "spelled"), UNCLEAR)
def test_a_number_that_could_mean_two_things_is_refused_with_each_spelled_out(name, arguments, spelled):
    with pytest.raises(ValueError) as caught:
        get_block(name)(*arguments)
    assert re.findall(r"write (\w+\([^)]*\))", str(caught.value)) == spelled


def test_numbers_with_one_meaning_are_taken_by_position():
    assert EMA(64, 8).groups == 8 and EMA(64, 32, False).cross_spatial is False
    assert (CBAM(64, 16).reduction, CBAM(64, 8, 3).kernel_size) == (16, 3)
    assert get_block("CA")(64, 16).reduction == get_block("SE")(64, 16, True).reduction == 16
    assert get_block("SA")(64, 8).groups == 8 and get_block("ECA")(64, 3).kernel_size == 3


def test_a_number_with_its_name_means_one_thing():
    assert EMA(64, groups=64).groups == EMA(channels=64, groups=64).groups == EMA(64, factor=64).groups == 64
    assert EMA(32).groups == 32 and type(EMA(32).groups) is int
    assert CBAM(64, reduction=7).reduction == 7 and CBAM(64, kernel_size=7).kernel_size == 7


def test_copies_and_pickles_of_a_block_ask_nothing():
    block = CBAM(64, reduction=7)
    x = torch.rand(1, 64, 4, 4)
    for same in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), torch.jit.script(block.eval())):
        torch.testing.assert_close(same.eval()(x), block.eval()(x))


def test_a_class_derived_from_a_block_has_options_of_its_own():
    class Twice(EMA):
        def __init__(self, channels, width, groups):
            super().__init__(channels * width, groups=groups)

    assert Twice(32, 2, 64).groups == 64 and Twice(64, 1, 64).groups == 64


def test_groups_of_a_block_of_the_users_own_may_be_a_text():
    class Grouped:
        def __init__(self, channels, groups="auto"):
            pass

    found = positions.readings(positions.options_of(Grouped), [128, "each"], {128})
    assert [reading.options for reading in found] == [{"groups": "each"}]
