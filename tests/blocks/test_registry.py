"""The registry: names, clashes, lookups, and blocks of the user."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from yolov5_ema.blocks import (
    EMA,
    block_info,
    create_block,
    get_block,
    list_blocks,
    register_block,
    registry,
    unregister_block,
)

ALL = [
    "A2",
    "BAM",
    "CA",
    "CBAM",
    "CPCA",
    "ECA",
    "ELA",
    "EMA",
    "GAM",
    "GC",
    "LSKA",
    "MLCA",
    "NAM",
    "NonLocal",
    "ParNet",
    "PolarizedSA",
    "SA",
    "SE",
    "SGE",
    "SRM",
    "SimAM",
    "Triplet",
]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def make_block(class_name="Halve"):
    class Block(nn.Module):
        """Halves its input."""

        def __init__(self, channels, times=1, *, floor, device=None, dtype=None):
            super().__init__()
            self.channels, self.times, self.floor = channels, times, floor

        def forward(self, x):
            return (x * 0.5**self.times).clamp(min=self.floor)

    Block.__name__ = Block.__qualname__ = class_name
    return Block


def test_the_families_are_listed_sorted():
    assert list_blocks() == ALL == sorted(ALL)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ALL),
        ("*", ALL),
        ("C*", ["CA", "CBAM", "CPCA"]),
        ("E[!M]?", ["ECA", "ELA"]),
        ("*AM", ["BAM", "CBAM", "GAM", "NAM", "SimAM"]),
        ("ema", []),
        ("EMA", ["EMA"]),
    ],
)
def test_list_pattern(pattern, expected):
    assert list_blocks(pattern) == expected


def test_get_and_create():
    assert get_block("EMA") is EMA
    block = create_block("EMA", 64, groups=16, cross_spatial=False)
    assert isinstance(block, EMA) and block.groups == 16 and block.cross_spatial is False


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [
        ("EMAA", "Did you mean EMA"),
        ("ema", "Did you mean EMA"),
        ("cbma", "Did you mean CBAM"),
        ("Xyzzy", None),
    ],
)
@pytest.mark.parametrize("lookup", [get_block, block_info, unregister_block, lambda n: create_block(n, 64)])
def test_unknown_name(lookup, wrong, suggestion):
    with pytest.raises(ValueError, match="no block is named") as raised:
        lookup(wrong)
    message = str(raised.value)
    assert repr(wrong) in message
    assert ", ".join(ALL) in message
    assert suggestion in message if suggestion else "Did you mean" not in message


# names that collections, tutorials and forks give to the blocks
ELSEWHERE = {
    "A2": ["DoubleAttention", "DoubleAttentionLayer"],
    "BAM": ["BAMBlock"],
    "CA": ["CoordAtt", "CoordAttention", "CoordAttn", "CA_Block"],
    "CBAM": ["CBAMBlock", "CBAM_Module", "CBAMLayer"],
    "ECA": ["ECAAttention", "eca_layer", "ECA_Layer", "EcaModule"],
    "ELA": ["EfficientLocalizationAttention", "EfficientLocalAttn", "ELA_B"],
    "EMA": ["EMAttention", "EMA_attention", "EMA_Attention", "EMA_Module"],
    "GAM": ["GAM_Attention", "GAMAttention"],
    "GC": ["GlobalContext", "GlobalContextBlock", "ContextBlock", "GCModule"],
    "LSKA": ["LSKA_Attention"],
    "MLCA": ["MixedLocalChannelAttention"],
    "NAM": ["NAMAttention", "NAM_Attention"],
    "NonLocal": ["NONLocalBlock2D", "_NonLocalBlockND", "NonLocalBlock"],
    "ParNet": ["ParNetAttention", "ParNet_Attention"],
    "PolarizedSA": ["PSA", "PSA_p", "PSA_s", "PolarizedSelfAttention", "SequentialPolarizedSelfAttention"],
    "SA": ["ShuffleAttention", "sa_layer"],
    "SE": ["SEAttention", "SELayer", "SEBlock", "SE_Block", "SqueezeExcite", "SEModule"],
    "SGE": ["SpatialGroupEnhance"],
    "SRM": ["SRMLayer"],
    "SimAM": ["simam_module", "SimAM_Module"],
    "Triplet": ["TripletAttention", "Triplet_Attention"],
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_of_other_projects_leads_to_the_block_but_is_not_taken_for_it(name):
    for other in ELSEWHERE[name]:
        with pytest.raises(
            ValueError, match=rf"no block is named '{other}'\. Here it is called {name}\. Registered: A2, "
        ):
            create_block(other, 64)


def test_names_of_other_projects_are_of_one_block_and_no_name_of_ours():
    names = [other for others in registry._OTHER_NAMES.values() for other in others]
    assert len(names) == len(set(names)) and not set(names) & {name.lower() for name in ALL}
    assert all(name == name.lower().replace("_", "") for name in names) and set(registry._OTHER_NAMES) <= set(ALL)


def test_unknown_option_names_the_options():
    with pytest.raises(ValueError, match=r"EMA has no option 'group'; it has: groups=32, cross_spatial=True"):
        create_block("EMA", 64, group=8)
    with pytest.raises(ValueError, match="NAM has no option 'groups'; it has: none"):
        create_block("NAM", 64, groups=8)


def test_a_block_of_the_users_own():
    cls = register_block(make_block())
    assert "Halve" in list_blocks() and get_block("Halve") is cls
    block = create_block("Halve", 3, times=2, floor=-1.0)
    assert torch.equal(block(torch.full((1, 3, 1, 1), 8.0)), torch.full((1, 3, 1, 1), 2.0))
    info = block_info("Halve")
    assert info.cls is cls and info.paper == "" and info.summary == "Halves its input."
    assert info.options == (("times", 1), ("floor", inspect.Parameter.empty))
    assert info.signature == "times=1, floor"
    unregister_block("Halve")
    assert "Halve" not in list_blocks()


def test_decorator_with_arguments():
    cls = register_block(name="Half", paper="Nobody, 2024")(make_block())
    assert get_block("Half") is cls and block_info("Half").paper == "Nobody, 2024"
    assert "Halve" not in list_blocks()


def test_clash_is_an_error_unless_forced():
    first, second = make_block(), make_block()
    register_block(first)
    with pytest.raises(ValueError, match=r"'Halve' is registered already.*force=True"):
        register_block(second)
    assert get_block("Halve") is first
    assert register_block(second, force=True) is second
    assert get_block("Halve") is second
    with pytest.raises(ValueError, match=r"yolov5_ema\.blocks\.ema\.EMA"):
        register_block(first, name="EMA")
    assert get_block("EMA") is EMA


def test_same_class_again_is_fine():
    cls = make_block()
    assert register_block(register_block(cls)) is cls
    register_block(cls, name="Other")
    assert list_blocks("Halve") + list_blocks("Other") == ["Halve", "Other"]


@pytest.mark.parametrize("name", ["", "two words", "1st", "a.b", 7])
def test_names_are_identifiers(name):
    with pytest.raises(ValueError, match="plain identifier"):
        register_block(make_block(), name=name)


class _WrongFirst(nn.Module):
    def __init__(self, groups, channels):
        super().__init__()


class _KeywordOnly(nn.Module):
    def __init__(self, *, channels):
        super().__init__()


class _Empty(nn.Module):
    def __init__(self):
        super().__init__()


@pytest.mark.parametrize("cls", [_WrongFirst, _KeywordOnly, _Empty])
def test_channels_come_first(cls):
    with pytest.raises(TypeError, match=f"{cls.__name__}: the first constructor parameter .* 'channels'"):
        register_block(cls)
    assert cls.__name__ not in list_blocks()


@pytest.mark.parametrize("thing", [int, nn.Identity(), lambda channels: None, "EMA"])
def test_only_modules(thing):
    with pytest.raises(TypeError, match=r"subclass of torch\.nn\.Module"):
        register_block(thing)


def test_block_info_is_frozen():
    info = block_info("EMA")
    assert info.options[:2] == (("groups", 32), ("cross_spatial", True))
    assert info.signature.startswith("groups=32, cross_spatial=True")
    assert "2305.13563" in info.paper
    with pytest.raises(FrozenInstanceError):
        info.paper = "other"


def test_options_of_any_name_pass_where_the_block_takes_them():
    class Any(nn.Module):
        def __init__(self, channels, **options):
            super().__init__()
            self.options = options

    register_block(Any)
    assert block_info("Any").options == ()
    assert create_block("Any", 8, depth=3).options == {"depth": 3}
