"""EMA in plain torch operations, rewritten so that no map with k channels is convolved or kept.

Paper: "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", Ouyang et al., ICASSP 2023,
arXiv 2305.13563. The identities behind this form, also for the options of the block, are proved in docs/exact-ema.md.

`ema_exact` is one differentiable expression, for TorchScript, tracing and ONNX. It uses operations that are fast in
both torch and onnxruntime. (ConvTranspose, for example, is faster in onnxruntime but many times slower in torch.)
`forward` and `backward` are the same function with an explicit derivative, for `yolov5_ema.kernels.ema.function`. They
keep the input and three numbers for each channel, and recompute the rest.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from yolov5_ema.kernels.ema.arguments import PUBLISHED, EMAArguments, EMAVariant, check_unless_traced
from yolov5_ema.kernels.numerics import as_constant, group_norm, wide_dtype


def ema_exact(x: torch.Tensor, arguments: EMAArguments, variant: EMAVariant = PUBLISHED) -> torch.Tensor:
    """The same function as `yolov5_ema.kernels.ema.reference.ema_reference`, but not without ``cross_spatial``.

    Arguments, result and errors are the same, for any size and number of images. It is computed in float32 or wider.
    """
    if not torch.jit.is_scripting():
        check_unless_traced(x, arguments, variant.depthwise)
    w1, b1, gamma, beta, w3, b3, groups, eps = arguments
    _, norm_groups, depthwise = variant
    n, _, h, w = x.shape
    # taken from x it would not be a constant in ONNX, but group_norm needs one
    k = w1.shape[0]
    wide = wide_dtype(x)
    gx = x.reshape(n * groups, k, h, w).to(wide)  # (NG, k, H, W)
    w1, b1, gamma, beta, w3, b3 = (
        w1.to(wide),
        b1.to(wide),
        gamma.to(wide),
        beta.to(wide),
        w3.to(wide),
        b3.to(wide),
    )

    columns = gx.sum(2)  # (NG, k, W)
    gates = _gates(torch.cat([gx.mean(3), columns / h], dim=2), w1, b1)  # (NG, k, H+W)
    y = gx * torch.matmul(gates[:, :, :h].unsqueeze(3), gates[:, :, h:].unsqueeze(2))  # (NG, k, H, W)
    x1 = group_norm(y, k if norm_groups is None else norm_groups, gamma, beta, eps)  # (NG, k, H, W)
    q = _weights_of_1x1(shifted_means(gx, columns), w3, b3, depthwise)  # (NG, k)
    if norm_groups is not None:
        kernel, bias = _one_output_kernels(x1.mean((2, 3)), w3, b3, depthwise)  # (NG, k, 9), (NG, 1, 1, 1)
    elif torch.jit.is_scripting():
        kernel, bias = _one_output_kernel(beta, w3, b3, depthwise)  # (k, 9), ()
    else:
        kernel, bias = as_constant(partial(_one_output_kernel, depthwise=depthwise), beta, w3, b3)
    from_1x1 = torch.matmul(q.unsqueeze(1), x1.flatten(2)).reshape(n * groups, 1, h, w)
    attention = from_1x1 + (_convolve(gx, kernel) + bias)  # (NG, 1, H, W)
    return (gx * attention.sigmoid()).reshape(x.shape).to(x.dtype)  # (N, C, H, W)


def _gates(means: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor) -> torch.Tensor:
    """sigmoid(W1 means + b1) for both sides at once: (NG, k, H+W) -> (NG, k, H+W)."""
    return (torch.matmul(w1.flatten(1), means) + b1.unsqueeze(1)).sigmoid()


def shifted_means(gx: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Means of (NG, k, H, W) shifted by each tap of a 3x3 kernel with zeros coming in: (NG, k, 9).

    Shifting down drops the last row, and shifting up the first; the same holds for columns. So the means follow from
    sums, and no map needs to be shifted. ``columns`` (NG, k, W) are the sums over H.
    """
    h, w = gx.shape[2], gx.shape[3]
    total = columns.unsqueeze(2)  # (NG, k, 1, W)
    sums = torch.cat([total - gx[:, :, -1:], total, total - gx[:, :, :1]], dim=2)  # (NG, k, 3, W)
    total = sums.sum(3, keepdim=True)  # (NG, k, 3, 1)
    taps = torch.cat([total - sums[:, :, :, -1:], total, total - sums[:, :, :, :1]], dim=3)
    return taps.flatten(2) / (h * w)


def _weights_of_1x1(means: torch.Tensor, w3: torch.Tensor, b3: torch.Tensor, depthwise: bool = False) -> torch.Tensor:
    """softmax of the mean of the 3x3 convolution, which is linear in the shifted means: (NG, k, 9) -> (NG, k)."""
    if depthwise:
        # not as a sum of products, for which OpenVINO 2026.4 computes wrong values
        k = w3.shape[0]
        return F.conv2d(means.reshape(-1, k, 3, 3), w3, b3, groups=k).flatten(1).softmax(1)
    return torch.addmm(b3, means.flatten(1), w3.flatten(1).t()).softmax(1)


def _one_output_kernel(
    beta: torch.Tensor, w3: torch.Tensor, b3: torch.Tensor, depthwise: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The 3x3 convolution's outputs weighted by softmax(beta): one kernel (k, 9) and one bias ()."""
    # the mean of a channel that is normalized by itself is its beta
    p = beta.softmax(0)
    kernel = p.unsqueeze(1) * w3.flatten(1) if depthwise else torch.matmul(p, w3.flatten(1)).reshape(-1, 9)
    return kernel, torch.dot(p, b3)


def _one_output_kernels(
    means: torch.Tensor, w3: torch.Tensor, b3: torch.Tensor, depthwise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_one_output_kernel` for each group of each image, weighted by softmax(means).

    Means (NG, k) of the normalized channels -> kernels (NG, k, 9) and biases (NG, 1, 1, 1).
    """
    p = means.softmax(1)
    w = w3.flatten(1)
    kernels = p.unsqueeze(2) * w if depthwise else torch.matmul(p, w).reshape(-1, w3.shape[0], 9)
    return kernels, torch.matmul(p, b3.unsqueeze(1)).reshape(-1, 1, 1, 1)


def _convolve(gx: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """3x3 convolution with one output, (NG, k, H, W) -> (NG, 1, H, W), as nine 1x1 maps that are shifted and added.

    The kernel is (k, 9), or (NG, k, 9) with one for each map.
    The maps are shifted vertically three at a time, added, and then shifted horizontally: four shifts instead of eight.
    They are padded first and then cut, so that torch.export sees only sizes based on H and W.
    """
    taps = torch.matmul(kernel.transpose(-2, -1), gx.flatten(2)).reshape(-1, 9, gx.shape[2], gx.shape[3])
    above, below = F.pad(taps[:, 0:3], [0, 0, 1, 0])[:, :, :-1], F.pad(taps[:, 6:9], [0, 0, 0, 1])[:, :, 1:]
    rows = above + taps[:, 3:6] + below  # (NG, 3, H, W)
    left, right = F.pad(rows[:, 0:1], [1, 0])[:, :, :, :-1], F.pad(rows[:, 2:3], [0, 1])[:, :, :, 1:]
    return left + rows[:, 1:2] + right


class _Group(NamedTuple):
    """Values that forward and backward both start from."""

    gx: torch.Tensor  # (NG, k, H, W)
    columns: torch.Tensor  # (NG, k, W), sums over H
    means: torch.Tensor  # (NG, k, H+W), of rows, then of columns
    a: torch.Tensor  # (NG, k, H, 1)
    c: torch.Tensor  # (NG, k, 1, W)


def _describe(x: torch.Tensor, arguments: EMAArguments) -> _Group:
    w1, b1, groups = arguments.w1, arguments.b1, arguments.groups
    n, c, h, w = x.shape
    gx = x.reshape(n * groups, c // groups, h, w).to(w1.dtype)
    columns = gx.sum(2)
    means = torch.cat([gx.mean(3), columns / h], dim=2)
    gates = _gates(means, w1, b1)
    return _Group(gx, columns, means, gates[:, :, :h].unsqueeze(3), gates[:, :, h:].unsqueeze(2))


def forward(x: torch.Tensor, arguments: EMAArguments) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and the statistics that `backward` needs.

    Args:
        x: (N, C, H, W), any floating dtype.
        arguments: groups, eps, and parameters of one dtype, float32 or float64, in which everything is computed.

    Returns:
        The output (N, C, H, W) in the dtype of ``x``, and the statistics (NG, 3, k): mean of y, 1 / its standard
        deviation, and q.
    """
    group = _describe(x, arguments)
    y = (group.gx * group.a).mul_(group.c)  # (NG, k, H, W)
    mu = y.mean((2, 3))  # (NG, k)
    y -= mu[:, :, None, None]
    pixels = y.shape[2] * y.shape[3]
    rstd = (torch.linalg.vector_norm(y, dim=(2, 3)).square() / pixels + arguments.eps).rsqrt()
    q = _weights_of_1x1(shifted_means(group.gx, group.columns), arguments.w3, arguments.b3)
    stats = torch.stack([mu, rstd, q], dim=1)
    gate = _gate(group, y, stats, arguments)
    return (group.gx * gate).reshape(x.shape).to(x.dtype), stats


def _gate(group: _Group, centred: torch.Tensor, stats: torch.Tensor, arguments: EMAArguments) -> torch.Tensor:
    """sigmoid(map) (NG, 1, H, W), given y minus its mean."""
    _, _, gamma, beta, w3, b3, _, _ = arguments
    _, rstd, q = stats.unbind(1)
    kernel, bias = _one_output_kernel(beta, w3, b3)
    from_1x1 = torch.matmul((q * gamma * rstd).unsqueeze(1), centred.flatten(2))  # (NG, 1, HW)
    attention = _convolve(group.gx, kernel).add_(from_1x1.reshape(-1, 1, *centred.shape[2:]))
    return attention.add_((torch.mv(q, beta) + bias)[:, None, None, None]).sigmoid_()


def backward(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, arguments: EMAArguments
) -> tuple[torch.Tensor, ...]:
    """Gradients of the inputs of `forward`, given the gradient ``grad`` (N, C, H, W) of its output.

    Returns:
        The gradients of ``x``, w1, b1, gamma, beta, w3 and b3, each in the dtype of its tensor.
    """
    w1, _, gamma, beta, w3, b3, _, _ = arguments
    group = _describe(x, arguments)
    gx, columns, _, a, c = group
    n, k, h, w = gx.shape
    pixels = h * w
    mu, rstd, q = stats.unbind(1)  # (NG, k) each
    centred = (gx * a).mul_(c).sub_(mu[:, :, None, None])  # (NG, k, H, W)
    gate = _gate(group, centred, stats, arguments)  # (NG, 1, H, W)
    kernel, _ = _one_output_kernel(beta, w3, b3)

    g = grad.reshape(gx.shape).to(gx.dtype)
    d = (g * gx).sum(1, keepdim=True) * gate * (1 - gate)  # gradient of the map (NG, 1, H, W)
    sum_d = d.sum((2, 3))  # (NG, 1)
    shifted = _shifts(d)  # (NG, 9, HW)
    taps = torch.bmm(gx.flatten(2), shifted.transpose(1, 2))  # (NG, k, 9)
    inner = rstd * torch.bmm(centred.flatten(2), d.reshape(n, pixels, 1)).squeeze(2)  # (NG, k)

    p = beta.softmax(0)
    dp = torch.addmm(b3 * sum_d, taps.flatten(1), w3.flatten(1).t())  # (NG, k)
    dp = p * (dp - torch.mv(dp, p)[:, None])
    dq = gamma * inner + beta * sum_d
    d_logits = q * (dq - (q * dq).sum(1, keepdim=True))  # (NG, k)
    d_gamma = (q * inner).sum(0)
    d_beta = (dp + q * sum_d).sum(0)
    d_b3 = (p * sum_d + d_logits).sum(0)
    d_w3 = torch.outer(p, taps.sum(0).flatten()) + torch.mm(d_logits.t(), shifted_means(gx, columns).flatten(1))

    scale = rstd * gamma * q  # (NG, k)
    slope = scale * rstd * inner / pixels
    dy = centred.mul_(-slope[:, :, None, None]).add_(scale[:, :, None, None] * (d - d.mean((2, 3), keepdim=True)))
    dyx = dy * gx
    d_a = torch.matmul(dyx, c.transpose(2, 3)) * a * (1 - a)  # (NG, k, H, 1)
    d_c = torch.matmul(a.transpose(2, 3), dyx) * c * (1 - c)  # (NG, k, 1, W)
    d_scores = torch.cat([d_a.squeeze(3), d_c.squeeze(2)], dim=2)  # (NG, k, H+W)
    d_w1 = torch.bmm(d_scores, group.means.transpose(1, 2)).sum(0)
    d_b1 = d_scores.sum((0, 2))
    d_means = torch.matmul(w1.flatten(1).t(), d_scores)  # (NG, k, H+W)

    dx = torch.matmul(kernel, shifted).reshape(gx.shape)
    dx += dy.mul_(a).mul_(c)
    dx += g * gate
    dx += (d_means[:, :, :h] / w).unsqueeze(3)
    dx += (d_means[:, :, h:] / h).unsqueeze(2)
    dx += _spread(torch.mm(d_logits, w3.flatten(1)).reshape(n, k, 3, 3) / pixels, h, w)
    return (
        dx.reshape(x.shape).to(x.dtype),
        d_w1.reshape(w1.shape),
        d_b1,
        d_gamma,
        d_beta,
        d_w3.reshape(w3.shape),
        d_b3,
    )


def _shifts(d: torch.Tensor) -> torch.Tensor:
    """``d`` (NG, 1, H, W) shifted as the backward pass of each tap of a 3x3 convolution does: (NG, 9, HW)."""
    h, w = d.shape[2], d.shape[3]
    padded = F.pad(d, [1, 1, 1, 1])
    taps = [padded[:, :, 2 - u : 2 - u + h, 2 - v : 2 - v + w] for u in range(3) for v in range(3)]
    return torch.cat(taps, dim=1).flatten(2)


def _spread(taps: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """For each pixel, the sum of the taps (NG, k, 3, 3) that read it: (NG, k, H, W). Backward of `shifted_means`."""
    rows, columns = taps.new_ones(h, 3), taps.new_ones(3, w)
    rows[h - 1, 0] = rows[0, 2] = columns[0, w - 1] = columns[2, 0] = 0
    return torch.matmul(torch.matmul(rows, taps), columns)
