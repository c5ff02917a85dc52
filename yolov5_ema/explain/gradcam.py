"""Grad-CAM at any layer, by captum.

Paper: "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", Selvaraju et al., ICCV 2017,
arXiv 1610.02391.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from yolov5_ema.errors import UserError

_NO_WAY = (  # messages of torch and captum if no gradient reaches a layer
    "does not require grad",
    "not have been used in the graph",
    "Inference tensors",
    "did not obtain any outputs",
)


def grad_cam(
    score: Callable[[torch.Tensor], torch.Tensor],
    layer: nn.Module,
    batch: torch.Tensor,
    name: str = "the layer",
    *,
    local: bool = False,
) -> torch.Tensor:
    """Where a layer's output raises a score: ``relu(sum_c alpha_c A_c)``, with alpha_c the mean of dscore / dA_c.

    Args:
        score: runs the model on a batch and returns a number for each image, of shape (N,).
        layer: its output A has the shape (N, C, H, W). If it is called several times, the last output is used.
        batch: the model's input, of shape (N, …), floating point.
        name: the name of the layer, for messages.
        local: ``relu(sum_c dscore / dA_c * A_c)``, each place weighted by its own gradient, not its channel's
            mean (HiResCAM, Draelos and Carin 2020, arXiv 2011.08891).

    Returns:
        A float32 tensor of shape (N, H, W), not negative, without a unit.

    Raises:
        UserError: captum is not installed, or no gradient of the score reaches the layer.
    """
    method = _captum("LayerGradientXActivation" if local else "LayerGradCam")
    # the caller may have disabled autograd, and a fused model's parameters need no gradients, so the input does
    with _tapped(layer) as tap, torch.inference_mode(False), torch.enable_grad():
        inputs = batch.detach().clone().requires_grad_()
        try:
            found: torch.Tensor = method(lambda x: score(x.clone()), tap).attribute(inputs)
        except (RuntimeError, AssertionError) as error:
            if not any(words in str(error) for words in _NO_WAY):
                raise
            raise UserError(
                f"{name}: no gradient of the score reaches it, so it has no Grad-CAM; leave it out with --blocks"
            ) from error
    return found.detach().sum(dim=1).clamp(min=0).float()  # (N, 1 or C, H, W) to (N, H, W)


def check_captum() -> None:
    """Raise a UserError where captum is not installed."""
    _captum("LayerGradCam")


def _captum(name: str) -> Any:
    try:
        from captum import attr
    except ImportError as error:
        raise UserError("Grad-CAM needs captum: pip install 'yolov5-ema[explain]'") from error
    return getattr(attr, name)


@contextmanager
def _tapped(layer: nn.Module) -> Iterator[nn.Module]:
    """Yield a module that passes on the layer's output, while the model continues with a copy of it.

    The copy is needed because later operations may write into it: an in-place activation, or ``x += shortcut``.
    """
    tap = nn.Identity()
    handle = layer.register_forward_hook(lambda module, args, output: tap(output).clone())
    try:
        yield tap
    finally:
        handle.remove()
