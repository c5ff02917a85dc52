"""Weights are copied to the rows that correspond to theirs."""

from __future__ import annotations

import itertools

import pytest
import torch
import yaml
from conftest import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import yolov5_ema
from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.resources import models_dir
from yolov5_ema.weights.alignment import _best_pairs
from yolov5_ema.weights.conversions import focus_from_stem, stem_from_focus
from yolov5_ema.weights.heads import class_map
from yolov5_ema.weights.structure import layers_of
from yolov5_ema.weights.transfer import transfer

COCO = ["person", "bicycle", "car", "bus"]


@pytest.fixture(scope="module")
def yolo():
    with yolov5_ema.installed():
        from yolov5.models import yolo

        yield yolo


@pytest.fixture(scope="module")
def build(yolo):
    def build(cfg, seed=0):
        torch.manual_seed(seed)
        with quiet():
            return yolo.Model(cfg).eval()

    return build


def plain(**changes):
    return {**build_cfg(size="n", block="none", nc=4), **changes}


def filled(source, target, **options):
    """The target after a transfer, and the result."""
    found = transfer(source, target, **options)
    names = set(target.state_dict())
    assert set(found.state) <= names and (found.taken, found.total) == (len(found.state), len(names))
    target.load_state_dict(found.state, strict=False)
    return target, found


def row_tensors(model, index):
    return dict(model.model[index].state_dict())


def assert_same_row(source, s, target, t):
    ours, theirs = row_tensors(target, t), row_tensors(source, s)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), (s, t)


def outputs(model, side=128):
    with torch.no_grad():
        return model(torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(3)))[0]


def test_yolov5s_to_yolov5s_ema_gives_up_nothing_but_the_block(build, package_root):
    source = randomise(build(str(package_root / "models/yolov5s.yaml")))
    target, found = filled(source, build(str(models_dir() / "yolov5s-ema.yaml")))
    assert (found.taken, found.total) == (349, 361)  # 12 are those of two EMAs
    assert found.fresh_blocks == [7, 10] and not found.unused
    for s in range(25):  # the blocks are after rows 6 and 8
        assert_same_row(source, s, target, s + (s > 6) + (s > 8))
    lines = found.table().splitlines()
    assert lines[0] == "349/361 tensors transferred"
    assert [line.split() for line in lines[1:]] == [
        f"row {i} EMA 0/6: a new block, starts fresh".split() for i in (7, 10)
    ]


def test_and_back_again(build, package_root):
    source = randomise(build(str(models_dir() / "yolov5s-ema.yaml")))
    target, found = filled(source, build(str(package_root / "models/yolov5s.yaml")))
    assert (found.taken, found.total) == (349, 349)
    assert [layer.index for layer in found.unused] == [7, 10]
    assert "not used from the checkpoint: row 7 (EMA), row 10 (EMA)" in found.table()
    assert_same_row(source, 26, target, 24)


@pytest.mark.parametrize("block", ["CA", "CBAM", "SA", "ECA", "NAM", "SE"])
def test_another_block_in_the_same_place_starts_fresh(build, block):
    source = build(build_cfg(size="n", block="EMA", nc=4))
    target = build(build_cfg(size="n", block=block, nc=4))
    before = {index: row_tensors(target, index) for index in (7, 10)}
    before = {i: {name: value.clone() for name, value in rows.items()} for i, rows in before.items()}
    target, found = filled(source, target)
    assert found.fresh_blocks == [7, 10]
    for index, values in before.items():
        assert all(torch.equal(value, row_tensors(target, index)[name]) for name, value in values.items())
    assert_same_row(source, 6, target, 6)


def test_the_same_block_goes_along_wherever_it_stands(build):
    source = randomise(build(build_cfg(size="n", block="EMA", nc=4)))
    cfg = build_cfg(size="n", block="EMA", after=[4, 6, 8], nc=4)
    target, found = filled(source, build(cfg))
    assert found.fresh_blocks == [5]
    assert_same_row(source, 7, target, 8)
    assert_same_row(source, 10, target, 11)


P2_HEAD = [
    *(
        [-1, 1, "Conv", [512, 1, 1]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 6], 1, "Concat", [1]],
    ),
    [-1, 3, "C3", [512, False]],  # 13
    *(
        [-1, 1, "Conv", [256, 1, 1]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
    ),
    [-1, 3, "C3", [256, False]],  # 17
    *(
        [-1, 1, "Conv", [128, 1, 1]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
    ),
    [-1, 3, "C3", [128, False]],  # 21, stride 4
    *([-1, 1, "Conv", [128, 3, 2]], [[-1, 18], 1, "Concat", [1]], [-1, 3, "C3", [256, False]]),  # 24
    *([-1, 1, "Conv", [256, 3, 2]], [[-1, 14], 1, "Concat", [1]], [-1, 3, "C3", [512, False]]),  # 27
    *([-1, 1, "Conv", [512, 3, 2]], [[-1, 10], 1, "Concat", [1]], [-1, 3, "C3", [1024, False]]),  # 30
    [[21, 24, 27, 30], 1, "Detect", ["nc", "anchors"]],
]


def test_a_p3_detector_to_a_p2_head(build):
    source = randomise(build(plain()))
    anchors = [[5, 6, 8, 14, 15, 11], *plain()["anchors"]]
    target = build(plain(head=P2_HEAD, anchors=anchors), seed=1)
    fresh = {name: value.clone() for name, value in row_tensors(target, 31).items()}
    target, found = filled(source, target)
    # the backbone, the top-down path as far as stride 8, the bottom-up path from stride 8 on
    for s, t in [*((i, i) for i in range(18)), *((i, i + 7) for i in range(18, 24))]:
        assert_same_row(source, s, target, t)
    assert [row.index for row in found.rows if row.tensors and row.source is None] == [18, 21, 22, 24]
    head, detect = row_tensors(target, 31), row_tensors(source, 24)
    for part in ("weight", "bias"):
        assert torch.equal(head[f"m.0.{part}"], fresh[f"m.0.{part}"])
        assert all(torch.equal(head[f"m.{i + 1}.{part}"], detect[f"m.{i}.{part}"]) for i in range(3))
    assert torch.equal(head["anchors"][0], fresh["anchors"][0])
    assert torch.equal(head["anchors"][1:], detect["anchors"])
    assert "m.0 (stride 4): the checkpoint has no level of this stride" in found.table()


def test_classes_are_copied_by_name_and_the_rest_of_the_outputs_as_it_is(build):
    source = randomise(build(plain()))
    target = build(plain(nc=5), seed=1)
    fresh = {name: value.clone() for name, value in row_tensors(target, 24).items()}
    names = ["Car", "truck", "person", "tram", "bus"]
    target, found = filled(source, target, names=COCO, target_names=names)
    new, old = row_tensors(target, 24), row_tensors(source, 24)
    for level, part in itertools.product(range(3), ("weight", "bias")):
        name = f"m.{level}.{part}"
        now, before, start = new[name].view(3, 10, -1), old[name].view(3, 9, -1), fresh[name].view(3, 10, -1)
        assert torch.equal(now[:, :5], before[:, :5])
        for to, at in ((0, 2), (2, 0), (4, 3)):
            assert torch.equal(now[:, 5 + to], before[:, 5 + at])
        for to in (1, 3):
            assert torch.equal(now[:, 5 + to], start[:, 5 + to])
    assert found.table().splitlines()[0] == "349/349 tensors transferred, 6 of them in part"
    assert "classes that the checkpoint does not have start fresh: truck, tram" in found.table()


@pytest.mark.parametrize(
    ("source", "target", "nc", "expected"),
    [
        (COCO, ["bus", "person"], (4, 2), [3, 0]),
        (COCO, ["a", "b", "c", "d"], (4, 4), [None] * 4),
        (None, ["a", "b"], (2, 2), [0, 1]),
        (["0", "1"], ["a", "b"], (2, 2), [0, 1]),  # names that YOLOv5 makes up
        (["class0", "class1"], None, (2, 3), [None] * 3),
        (["traffic  Light"], ["Traffic light"], (1, 1), [0]),
        (["a", "a"], ["a", "a"], (2, 2), [0, 0]),
    ],
)
def test_class_map(source, target, nc, expected):
    assert class_map(source, target, *nc) == expected


def test_without_names_and_with_another_nc_classes_start_fresh(build):
    source, target = randomise(build(plain())), build(plain(nc=2), seed=1)
    fresh = row_tensors(target, 24)["m.0.bias"].clone().view(3, 7)
    target, found = filled(source, target)
    now = row_tensors(target, 24)["m.0.bias"].view(3, 7)
    assert torch.equal(now[:, 5:], fresh[:, 5:]) and not torch.equal(now[:, :5], fresh[:, :5])
    assert "4 classes in the checkpoint, 2 here, and no names to match" in found.table()


def test_the_cfgs_anchors_stay_where_they_are_asked_to(build):
    source = build(plain())
    source.model[-1].anchors *= 1.5
    target, found = filled(source, build(plain()), keep_anchors=True)
    assert found.taken == found.total - 1 and "anchors: those of the cfg are kept" in found.table()
    assert torch.equal(target.model[-1].anchors * 1.5, source.model[-1].anchors)
    target, found = filled(source, build(plain()))
    assert found.taken == found.total and torch.equal(target.model[-1].anchors, source.model[-1].anchors)
    target, found = filled(build(plain()), build(plain()), keep_anchors=True)  # the same: nothing is lost
    assert found.taken == found.total


def stems(focus, pooling):
    cfg = plain()
    cfg["backbone"] = [list(row) for row in cfg["backbone"]]
    cfg["backbone"][0] = [-1, 1, "Focus", [64, 3]] if focus else [-1, 1, "Conv", [64, 6, 2, 2]]
    cfg["backbone"][9] = [-1, 1, "SPP", [1024, [5, 9, 13]]] if pooling == "SPP" else [-1, 1, "SPPF", [1024, 5]]
    return cfg


@pytest.mark.parametrize("pooling", [("SPP", "SPPF"), ("SPPF", "SPP")], ids="-".join)
@pytest.mark.parametrize("focus", [(True, False), (False, True)], ids=["to-stem", "to-focus"])
def test_focus_and_stem_spp_and_sppf_compute_the_same(build, focus, pooling):
    source = positive(build(stems(focus[0], pooling[0])))
    target, found = filled(source, build(stems(focus[1], pooling[1]), seed=1))
    assert found.taken == found.total == 349
    expected = outputs(source)
    assert expected.std() > 1  # not only the bias
    torch.testing.assert_close(outputs(target), expected, rtol=1e-4, atol=1e-3)


def positive(model):
    """Give BatchNorms statistics that differ from those of a new model; outputs stay finite."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return model


def test_the_stem_reads_pixel_by_pixel_what_focus_reads(yolo):
    from yolov5.models.common import Focus

    focus = Focus(3, 8, 3).eval()
    weight = stem_from_focus(focus.conv.conv.weight)
    image = torch.rand(2, 3, 32, 48)
    parts = [image[..., ::2, ::2], image[..., 1::2, ::2], image[..., ::2, 1::2], image[..., 1::2, 1::2]]
    expected = nn.functional.conv2d(torch.cat(parts, 1), focus.conv.conv.weight, padding=1)
    torch.testing.assert_close(nn.functional.conv2d(image, weight, stride=2, padding=2), expected)
    assert torch.equal(focus_from_stem(weight), focus.conv.conv.weight)


@pytest.mark.parametrize("row", [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Focus", [64, 5]]], ids=str)
def test_a_stem_that_is_another_function_starts_fresh(build, row):
    cfg = plain()
    cfg["backbone"] = [row, *cfg["backbone"][1:]]
    found = transfer(build(stems(True, "SPPF")), build(cfg))
    assert not any(name.startswith("model.0.conv.weight") for name in found.state)


def test_spp_of_other_windows_is_no_sppf(build):
    cfg = stems(False, "SPP")
    cfg["backbone"][9] = [-1, 1, "SPP", [1024, [3, 7, 11]]]
    found = transfer(build(cfg), build(stems(False, "SPPF")))
    assert [row.index for row in found.rows if row.tensors and row.source is None] == [9]


def test_neighbours_that_changed_places_are_found(build):
    """The backbone of v5.0 ends with SPP, C3; that of v6.0 with C3, SPPF."""
    cfg = plain()
    cfg["backbone"] = [*cfg["backbone"][:8], [-1, 1, "SPP", [1024, [5, 9, 13]]], [-1, 3, "C3", [1024, False]]]
    source = randomise(build(cfg))
    target, found = filled(source, build(plain()))
    assert found.taken == found.total
    assert_same_row(source, 8, target, 9)
    assert_same_row(source, 9, target, 8)
    assert "has another place among its neighbours" in found.table()


def test_a_convolution_that_does_not_fit_leaves_its_batchnorm_alone(build):
    source = randomise(build(plain()))
    cfg = plain()
    cfg["backbone"] = [*cfg["backbone"][:7], [-1, 1, "Conv", [1024, 1, 2]], *cfg["backbone"][8:]]
    found = transfer(source, build(cfg))
    row = found.rows[7]
    assert row.whole == 0 and row.source is None
    assert "conv.weight is 256x128x3x3 in the checkpoint, 256x128x1x1 here" in row.remarks[0]


def test_a_deeper_c3_keeps_what_it_had(build):
    source = randomise(build(plain()))
    target, found = filled(source, build(plain(depth_multiple=0.67)))
    assert torch.equal(target.model[4].m[1].cv1.conv.weight, source.model[4].m[1].cv1.conv.weight)
    assert "not in the checkpoint: m.2.cv1.conv.weight" in found.table()


def test_half_precision_checkpoints(build):
    source = randomise(build(plain())).half()
    target, found = filled(source, build(build_cfg(size="n", block="EMA", nc=4)))
    assert found.taken == 349 and target.model[0].conv.weight.dtype == torch.float32
    assert torch.equal(target.model[0].conv.weight, source.model[0].conv.weight.float())
    assert next(source.parameters()).dtype == torch.float16  # and is unchanged


def test_layers_know_their_place(build):
    layers = layers_of(build(build_cfg(size="s", block="EMA", nc=4)))
    assert [(x.kind, x.channels, x.stride) for x in layers[6:12]] == [
        ("C3", 256, 16),
        ("EMA", 256, 16),
        ("Conv", 512, 32),
        ("C3", 512, 32),
        ("EMA", 512, 32),
        ("SPPF", 512, 32),
    ]
    assert layers[14].sources == (13, 7) and layers[-1].is_head and layers[-1].channels is None


def test_what_is_no_yolov5_model_is_said_so():
    with pytest.raises(ValueError, match="Sequential is not a YOLOv5 model"):
        layers_of(nn.Sequential(nn.ReLU()))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([0.0, 0.25, 0.5, 2.0]), min_size=width, max_size=width),
            min_size=1,
            max_size=4,
        )
    )
)
def test_the_best_pairing_is_the_best_of_all(worth):
    rows, columns = range(len(worth)), range(len(worth[0]))
    best = 0.0
    for size in range(min(len(rows), len(columns)) + 1):
        for ts, ss in itertools.product(itertools.combinations(rows, size), itertools.combinations(columns, size)):
            if all(worth[t][s] for t, s in zip(ts, ss)):
                best = max(best, sum(worth[t][s] for t, s in zip(ts, ss)))
    pairs = _best_pairs(worth)
    assert sum(worth[t][s] for t, s in pairs.items()) == best
    assert list(pairs) == sorted(pairs) and list(pairs.values()) == sorted(set(pairs.values()))


def test_the_shipped_tiny_object_cfg_takes_a_plain_checkpoint(build):
    """yolov5x-ema-tph.yaml with the width and depth of yolov5n, from v6.0's own backbone and head."""
    tph = yaml.safe_load((models_dir() / "yolov5x-ema-tph.yaml").read_text())
    target = build({**tph, "depth_multiple": 0.33, "width_multiple": 0.25})
    found = transfer(randomise(build(plain())), target)
    fresh = [row.index for row in found.rows if row.tensors and not row.is_block and row.source is None]
    assert fresh == [20, 23, 25, 27]  # the path to stride 4 and back
    assert all(row.source is not None for row in found.rows[:10])
