"""Grad-CAM compared with its formula by plain autograd, and with closed forms."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from yolov5_ema.errors import UserError
from yolov5_ema.explain.gradcam import check_captum, grad_cam

pytest.importorskip("captum")


def by_autograd(first, rest, score, batch):
    """relu(sum_c alpha_c A_c), step by step: A = first(batch), alpha is the score's mean gradient over positions."""
    activations = first(batch.clone()).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(rest(activations)).sum(), activations)
    out = torch.zeros(len(batch), *activations.shape[2:])
    for image in range(len(batch)):
        for channel in range(activations.shape[1]):
            alpha = gradient[image, channel].sum() / gradient[image, channel].numel()
            out[image] += (alpha * activations[image, channel]).detach()
    return out.clamp(min=0)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh())
    rest = nn.Sequential(
        nn.Conv2d(6, 5, 3, stride=2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    )
    return first, rest


@pytest.fixture
def batch():
    return torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def score_of(first, rest):
    return lambda batch: rest(first(batch))[:, 2]


def test_equals_the_formula_by_plain_autograd(parts, batch):
    first, rest = parts
    expected = by_autograd(first, rest, lambda y: y[:, 2], batch)
    found = grad_cam(score_of(first, rest), first, batch)
    assert found.shape == (2, 9, 8) and expected.max() > 0 and (expected == 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_linear_head_in_closed_form(parts, batch):
    """If a mean over positions and a linear layer follow, alpha_c is w_c / (H W)."""
    first, _ = parts
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, -1.0])
    found = grad_cam(lambda x: first(x).mean((2, 3)) @ weights, first, batch)
    expected = torch.einsum("c,nchw->nhw", weights, first(batch)).clamp(min=0) / (9 * 8)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-7)


def test_each_place_by_its_own_gradient(parts, batch):
    """If a mean over positions and a linear layer follow, HiResCAM equals Grad-CAM; otherwise it does not."""
    first, rest = parts
    activations = first(batch).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(rest(activations)[:, 2].sum(), activations)
    expected = (gradient * activations.detach()).sum(1).clamp(min=0)
    found = grad_cam(score_of(first, rest), first, batch, local=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found, grad_cam(score_of(first, rest), first, batch), rtol=0.1)

    def linear(x):
        return first(x).mean((2, 3)).sum(1)

    torch.testing.assert_close(grad_cam(linear, first, batch, local=True), grad_cam(linear, first, batch))


def test_each_image_of_a_batch_has_the_map_that_it_has_alone(parts, batch):
    together = grad_cam(score_of(*parts), parts[0], batch)
    alone = grad_cam(score_of(*parts), parts[0], batch[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-5, atol=1e-7)


def test_what_comes_next_may_write_into_the_layers_output(parts, batch):
    """An in-place activation, and ``x += shortcut`` as in timm's residual blocks."""
    first, rest = parts

    def writing(x):
        y = first(x)
        y += 1
        return rest(nn.functional.relu(y, inplace=True))[:, 2]

    expected = by_autograd(first, lambda y: rest((y + 1).relu()), lambda y: y[:, 2], batch)
    torch.testing.assert_close(grad_cam(writing, first, batch), expected, rtol=1e-5, atol=1e-7)


def test_parameters_without_gradients_and_a_caller_without_autograd(parts, batch):
    first, rest = parts
    expected = grad_cam(score_of(first, rest), first, batch)
    for part in parts:
        part.requires_grad_(False)  # as in a fused YOLOv5
    with torch.no_grad():
        torch.testing.assert_close(grad_cam(score_of(first, rest), first, batch), expected)
    with torch.inference_mode():
        found = grad_cam(score_of(first, rest), first, batch)
    torch.testing.assert_close(found.clone(), expected)


def test_the_models_input_may_be_written_into(parts, batch):
    first, rest = parts
    before = batch.clone()
    grad_cam(lambda x: rest(first(x.mul_(2)))[:, 2], first, batch)
    assert torch.equal(batch, before)


def test_no_hook_and_no_gradient_is_left(parts, batch):
    first, rest = parts
    grad_cam(score_of(first, rest), first, batch)
    assert not first._forward_hooks and all(parameter.grad is None for parameter in first.parameters())


@torch.no_grad()
def _without_autograd(first, rest, x):
    return rest(first(x))[:, 2]


def test_a_layer_that_no_gradient_reaches_is_an_error(parts, batch):
    first, rest = parts
    beside = nn.Conv2d(3, 4, 1)

    def with_idle_branch(x):
        beside(x)
        return rest(first(x))[:, 2]

    cases = {
        "the score is computed without autograd": (lambda x: _without_autograd(first, rest, x), first),
        "the layer plays no part in the score": (with_idle_branch, beside),
        "the layer is never run": (score_of(first, rest), nn.Conv2d(3, 4, 1)),
    }
    for case, (score, layer) in cases.items():
        with pytest.raises(UserError, match=r"^row 7: no gradient of the score reaches it"):
            grad_cam(score, layer, batch, "row 7")
            pytest.fail(case)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|size"):  # a bug keeps its own exception
        grad_cam(lambda x: rest(x)[:, 2], rest, batch)


def test_without_captum_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(UserError, match=r"pip install 'yolov5-ema\[explain\]'"):
        check_captum()
