"""Which layers of a model are shown, and which layers of several models are shown side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import yolov5_ema
from yolov5_ema.blocks import create_block
from yolov5_ema.blocks.registry import block_of
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.errors import UserError
from yolov5_ema.explain.detectors import candidates_of
from yolov5_ema.explain.layers import choose, find_blocks, in_order


@pytest.fixture(scope="module")
def build():
    with yolov5_ema.installed():
        from yolov5.models.yolo import Model

        made = {}

        def model(block, at=None):
            key = (block, at)
            if key not in made:
                made[key] = candidates_of(Model(build_cfg(size="n", block=block, at=at, nc=3)).eval(), 32)
            return made[key]

        yield model


def names(layers):
    return [(layer.name, layer.kind) for layer in layers]


def test_blocks_of_a_model_with_their_channels_and_strides(build):
    (layers,) = choose([build("EMA")])
    assert [(layer.name, layer.block, layer.channels, layer.stride) for layer in layers] == [
        ("7", "EMA", 128, 16),
        ("10", "EMA", 256, 32),
    ]


def test_a_model_without_blocks_alone_shows_what_detect_reads(build):
    (layers,) = choose([build("none")])
    assert [(layer.name, layer.kind, layer.stride) for layer in layers] == [
        ("17", "C3, no block", 8),
        ("20", "C3, no block", 16),
        ("23", "C3, no block", 32),
    ]


def test_a_model_without_blocks_shows_the_rows_that_others_have_a_block_behind(build):
    plain, ema, ca = choose([build("none"), build("EMA"), build("CA")])
    assert names(plain) == [("6", "C3, no block"), ("8", "C3, no block")]
    assert names(ema) == [("7", "EMA"), ("10", "EMA")] and names(ca) == [("7", "CA"), ("10", "CA")]
    places = [[layer.place for layer in layers] for layers in (plain, ema, ca)]
    assert places[0] == places[1] == places[2] == in_order([plain, ema, ca])


def test_blocks_at_other_places_get_rows_of_their_own(build):
    backbone, neck = choose([build("EMA"), build("CA", "neck")])
    assert [kind for _, kind in names(backbone)[:2]] == ["EMA", "EMA"]
    assert {kind for _, kind in names(backbone)[2:]} == {"C3, no block"}
    assert {kind for _, kind in names(neck)[:2]} == {"C3, no block"}
    assert {kind for _, kind in names(neck)[2:]} == {"CA"} and len(backbone) == len(neck) > 3
    assert in_order([backbone, neck]) == [layer.place for layer in neck]


def test_choosing_by_row_name_and_glob(build):
    assert names(choose([build("EMA")], ["10"])[0]) == [("10", "EMA")]
    assert names(choose([build("EMA")], ["1*"])[0]) == [("10", "EMA")]
    # at a chosen place, every model shows the layer that it has there
    both = choose([build("EMA"), build("CA")], ["CA"])
    assert [names(layers) for layers in both] == [[("7", "EMA"), ("10", "EMA")], [("7", "CA"), ("10", "CA")]]
    assert names(choose([build("none")], ["9"])[0]) == [("9", "SPPF, no block")]
    assert [name for name, _ in names(choose([build("none")], ["SPPF", "4"])[0])] == ["4", "9"]


def test_a_choice_that_fits_nothing_names_what_there_is(build):
    with pytest.raises(UserError, match=r"--blocks 6: there is no such layer; choose from 7 \(EMA\), 10 \(EMA\)$"):
        choose([build("EMA")], ["7", "6"])


def test_repeated_blocks_stand_one_behind_the_other():
    with yolov5_ema.installed():
        from yolov5.models.yolo import Model

        cfg = build_cfg(size="n", block="EMA", nc=3)
        cfg["backbone"][7][1] = 9  # three of them with this depth
        repeated = candidates_of(Model(cfg).eval(), 32)
        plain = candidates_of(Model(build_cfg(size="n", block="none", nc=3)).eval(), 32)
    thrice, beside = choose([repeated, plain])
    assert [name for name, _ in names(thrice)] == ["7.0", "7.1", "7.2", "10"]
    assert names(beside) == [("6", "C3, no block"), ("8", "C3, no block")]
    places = in_order([thrice, beside])
    assert [places.index(layer.place) for layer in beside] == [0, 3]


def test_derived_classes_and_blocks_within_blocks():
    class Mine(type(create_block("SE", 16))):
        """A subclass of a block, with another block in it."""

        def __init__(self):
            super().__init__(16)
            self.inner = create_block("ECA", 16)

    assert block_of(Mine()) == block_of(Mine) == "SE" and block_of(nn.Conv2d(1, 1, 1)) == ""
    model = nn.Sequential(nn.Conv2d(3, 16, 1), Mine(), nn.Sequential(create_block("ECA", 16)))
    assert list(find_blocks(model)) == ["1", "2.0"]


def test_tracing_leaves_no_hook(build):
    for layer in (*build("EMA").blocks, *build("EMA").others):
        hooks = [(*module._forward_hooks, *module._forward_pre_hooks) for module in layer.module.modules()]
        assert not any(hooks), layer.name
    assert torch.is_grad_enabled()
