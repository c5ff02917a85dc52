"""Every block computes what its paper's equations give as slow loops, for any parameters and shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from public_layouts import CASE_IDS, CASES, PUBLIC, randomise
from reference import LOOPS, nam, nam_shares

from yolov5_ema.blocks import CBAM, EMA, MLCA, NAM, SRM, PolarizedSA, SimAM, Triplet, create_block, list_blocks
from yolov5_ema.blocks.common import nearest_divisors, saturate, stable_mean

SPATIAL = [(1, 1, 7), (2, 5, 1), (1, 1, 1), (3, 4, 6)]  # N, H, W


# layers whose BatchNorm has several values from a single pixel: strips of H + W = 2, maps with C rows or columns
SEVERAL_VALUES = {"CA": ("bn1",), "Triplet": ("cw", "hc")}


def as_numpy(state_dict):
    return {key: value.double().numpy() for key, value in state_dict.items()}


def loaded(name, channels, options, dtype=torch.float64):
    """Our block with random parameters, and the same parameters under the public names."""
    layout = randomise(PUBLIC[name](channels, **options).to(dtype))
    block = create_block(name, channels, dtype=dtype, **options)
    block.load_state_dict(layout.state_dict())
    return block, as_numpy(layout.state_dict())


def noise(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", list_blocks())
def test_every_block_has_loops_and_cases(name):
    assert name in LOOPS, f"write the equations of {name} in reference.py"
    assert any(case[0] == name for case in CASES), f"add cases of {name} to public_layouts.py"


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
@pytest.mark.parametrize(("name", "channels", "options"), CASES, ids=CASE_IDS)
def test_values_equal_the_loops(name, channels, options, spatial, training):
    n, height, width = spatial
    block, parameters = loaded(name, channels, options)
    x = noise(n, channels, height, width)
    out = block.train(training)(x)
    expected = LOOPS[name](x.numpy(), parameters, training, **options)
    assert out.shape == x.shape
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "channels", "options"), CASES, ids=CASE_IDS)
def test_float32_is_close_to_the_loops(name, channels, options):
    block, parameters = loaded(name, channels, options, dtype=torch.float32)
    x = noise(2, channels, 5, 3, dtype=torch.float32)
    out = block.eval()(x)
    expected = LOOPS[name](x.double().numpy(), parameters, False, **options)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=2e-4, atol=2e-5)


def test_large_means_do_not_cancel_the_variance():
    """E[y^2] - E[y]^2 in float32 would lose a deviation of 0.1 from a mean of 1000."""
    block, parameters = loaded("EMA", 4, {"groups": 2}, dtype=torch.float32)
    x = (1000 + 0.1 * noise(1, 4, 6, 6)).float()
    expected = LOOPS["EMA"](x.double().numpy(), parameters, False, groups=2)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=2e-2)


def test_ema_without_cross_spatial_learning_adds_the_branches():
    block, _ = loaded("EMA", 8, {"groups": 2, "cross_spatial": False})
    crossed, _ = loaded("EMA", 8, {"groups": 2})
    x = noise(2, 8, 4, 4)
    assert block.state_dict().keys() == crossed.state_dict().keys()
    assert not torch.allclose(block(x), crossed(x))
    gates = block(x) / x  # sigmoid(x1 + x2) differs between channels, the crossed map does not
    assert not torch.allclose(gates[:, 0], gates[:, 1])
    gates = crossed(x) / x
    torch.testing.assert_close(gates[:, 0], gates[:, 3])


def test_ema_gate_is_one_map_a_group():
    block = randomise(EMA(16, groups=4, dtype=torch.float64))
    x = noise(2, 16, 3, 5)
    gates = (block(x) / x).reshape(2, 4, 4, 3, 5)
    torch.testing.assert_close(gates, gates[:, :, :1].expand_as(gates))
    assert not torch.allclose(gates[:, 0], gates[:, 1])


def test_ema_factor_is_groups():
    assert EMA(64, factor=8).groups == EMA(64, groups=8).groups == EMA(64, groups=8, factor=8).groups == 8


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_nam_with_all_scales_zero_has_equal_shares(training):
    block, parameters = loaded("NAM", 6, {})
    parameters["Channel_Att.bn2.weight"][:] = 0
    torch.nn.init.zeros_(block.bn.weight)
    x = noise(2, 6, 3, 3)
    out = block.train(training)(x)
    expected = x * torch.sigmoid(block.bn.bias / 6)[:, None, None]
    torch.testing.assert_close(out, expected)
    np.testing.assert_allclose(out.detach().numpy(), nam(x.numpy(), parameters, training), rtol=1e-9)
    out.square().sum().backward()
    assert block.bn.weight.grad.isfinite().all() and block.bn.weight.grad.abs().min() > 0


def test_nam_shares_are_constants_in_backward():
    block, parameters = loaded("NAM", 4, {})
    x = noise(2, 4, 3, 3)
    shares = nam_shares(parameters["Channel_Att.bn2.weight"])
    block.eval()(x).sum().backward()
    step = 1e-6
    for c in range(4):
        totals = []
        for sign in (1, -1):
            moved = dict(parameters)
            moved["Channel_Att.bn2.weight"] = parameters["Channel_Att.bn2.weight"].copy()
            moved["Channel_Att.bn2.weight"][c] += sign * step
            totals.append(nam(x.numpy(), moved, False, shares=shares).sum())
        assert block.bn.weight.grad[c].item() == pytest.approx((totals[0] - totals[1]) / (2 * step), rel=1e-5)


def test_nam_share_that_rounds_to_zero_meets_no_infinity():
    block = NAM(128)
    torch.nn.init.constant_(block.bn.weight, 6e4)
    with torch.no_grad():
        block.bn.weight[0] = 0.01
        block.bn.running_var.zero_()
    x = torch.full((1, 128, 2, 2), 3e4, dtype=torch.float16)
    out = block.half().eval()(x)
    torch.testing.assert_close(out[:, 0], x[:, 0] / 2)
    torch.testing.assert_close(out[:, 1:], x[:, 1:])


@pytest.mark.parametrize("name", list_blocks())
def test_a_single_pixel_leaves_running_statistics_alone(name):
    block = randomise(create_block(name, 128)).train()
    before = {key: value.clone() for key, value in block.named_buffers()}
    out = block(noise(1, 128, 1, 1, dtype=torch.float32))
    assert out.isfinite().all()
    several = SEVERAL_VALUES.get(name, ())
    for key, value in block.named_buffers():
        assert torch.equal(value, before[key]) != (key.split(".")[0] in several), key


@pytest.mark.parametrize(
    ("block", "bn", "momentum"),
    [
        (CBAM(8, reduction=2), "spatial_gate.bn", 0.01),
        (NAM(8), "bn", 0.1),
        (SRM(8), "norm.bn", 0.1),
        (Triplet(8), "hc.norm.bn", 0.01),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_running_statistics_move_with_the_published_momentum(block, bn, momentum):
    bn = block.get_submodule(bn)
    seen = []
    bn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block.train()(noise(3, 8, 4, 5, dtype=torch.float32))
    values = seen[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(bn.running_mean, momentum * values.mean(1))
    torch.testing.assert_close(bn.running_var, 1 - momentum + momentum * values.var(1))
    assert bn.num_batches_tracked == 1


@pytest.mark.parametrize("size", [(5, 5), (7, 3), (1, 1), (4, 2), (33, 21)], ids=str)
def test_mlca_is_adaptive_pooling_and_back(size):
    block = MLCA(3, local_weight=1, dtype=torch.float64)
    torch.nn.init.constant_(block.conv_local.weight, 0)
    block.conv_local.weight.data[0, 0, 0] = 1  # a kernel of one: the gates are those of the patches themselves
    x = noise(2, 3, *size)
    gates = torch.nn.functional.adaptive_avg_pool2d(x, 5).sigmoid()
    expected = x * torch.nn.functional.adaptive_avg_pool2d(gates, size)
    torch.testing.assert_close(block(x), expected)


def test_the_parallel_spatial_gate_of_polarized_sa_is_a_half_on_large_maps():
    """The scores of all pixels add up to 1, and a sigmoid rises by at most a quarter of its score."""
    block = randomise(PolarizedSA(16, mode="parallel", dtype=torch.float64))
    gate = block._spatial_gate(noise(2, 16, 40, 40))
    assert (gate >= 0.5).all() and ((gate - 0.5).sum([1, 2, 3]) <= 0.25).all()


def test_simam_lets_at_least_sigmoid_of_a_half_through():
    x = noise(2, 4, 6, 5)
    assert (SimAM(4)(x) / x).min() >= 1 / (1 + math.exp(-0.5))


@pytest.mark.parametrize("name", ["GC", "NonLocal"])
def test_a_new_block_that_starts_at_zero_changes_nothing(name):
    x = noise(2, 32, 4, 5, dtype=torch.float32)
    assert torch.equal(create_block(name, 32).eval()(x), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_stable_mean_is_wide(dtype):
    x = torch.tensor([256.0, 258.0, 256.0, 258.0], dtype=dtype).reshape(1, 1, 2, 2)
    out = stable_mean(x, [2, 3])
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert out.shape == (1, 1, 1, 1) and out.item() == 257.0  # bfloat16 cannot represent it


def test_saturate_clips_float16_only():
    inf = float("inf")
    clipped = saturate(torch.tensor([inf, -inf, 1.5], dtype=torch.float16))
    assert clipped.tolist() == [65504.0, -65504.0, 1.5]
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.tensor([inf, 1e6], dtype=dtype)
        assert saturate(x) is x


@pytest.mark.parametrize(
    ("number", "to", "expected"), [(48, 32, [24, 48]), (48, 64, [48]), (64, 32, [32]), (7, 3, [1, 7])]
)
def test_nearest_divisors(number, to, expected):
    assert nearest_divisors(number, to) == expected
