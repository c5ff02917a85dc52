"""EMA's attention as Triton kernels, forward and backward; `yolov5_ema.kernels.ema.triton` launches them.

Paper: "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", Ouyang et al., ICASSP 2023,
arXiv 2305.13563. The kernels compute an exact rewriting of it: softmax(mean(x1)) is softmax(beta), mean(x2) is linear
in the means of the shifted input, and the weighted sum of the 3x3 branch is one convolution with a single output
channel. The result is the only map with k channels that is written.

There are two paths. X is the input, and g is the gradient of the output. "Again" means that the tile is read while it
is still on chip or in the second-level cache.

- Fused, for small tiles: one program for each group, one launch. Forward reads X once, and again for each later stage,
  and writes the result. Backward reads X and g once, and again, and writes the gradient of X.
- Split, for large tiles: one program for each channel for the sums, and one for each block of rows for the maps.
  Forward: 3 launches, 3 reads of X, 1 write. Backward: 6 launches, 4 reads of X, 2 of g, 1 write.

Both paths run the same stages with different block sizes. A stage processes a block of channels or a block of pixels of
one group. A kernel is several stages with barriers between them. Stages pass values to each other through a small
scratch buffer for each group, of size O(k (H + W) + H W).

Sums are float32 for every dtype. There are no atomics: parameter gradients are written for each group and summed
afterwards, so results are reproducible bit by bit. Offsets within a group have 32 bits, between groups 64.

Shapes next to the pointers are those of one group, with L = H + W. Block sizes are powers of two:

====== ====================================================================================================
K2     at least k: vectors over all channels
W2, L2 at least W and L
CS, BS channels and rows of a (CS, BS, W2) tile, for the means along each side of the map
CT, BH the same for the stages that also hold gates
CB, BP channels and pixels of a flat (CB, BP) tile, for pointwise operations; BP holds at least one row
CG, BG the same for nine sums per channel, which are kept for each pixel; BG need not hold a row
CL, JB channels of a (CL, L2) tile; columns of the (k, 9k) weights processed at once
====== ====================================================================================================
"""

# ruff: noqa: RUF059 - a kernel unpacks all of its scratch, but uses only parts of it

from __future__ import annotations

import triton
import triton.language as tl

# ---------------------------------------------------------------------------------------------------- small helpers


@triton.jit
def _sigmoid(v):
    return 1.0 / (1.0 + tl.exp(-v))


@triton.jit
def _softmax_terms(logits, known):
    """Largest logit and the sum of exponentials: softmax is exp(logit - largest) / total."""
    largest = tl.max(tl.where(known, logits, float("-inf")), 0)
    return largest, tl.sum(tl.where(known, tl.exp(logits - largest), 0.0), 0)


@triton.jit
def _load(base, at, mask):
    """Values as float32, zero where masked. Offsets are separate from the base: 64-bit sums would need registers."""
    return tl.load(base + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_rows(x, c, h, w, k, H, W):
    """Channels c, rows h, columns w of x (k, H, W), zero outside."""
    at = c[:, None, None] * (H * W) + h[None, :, None] * W + w[None, None, :]
    return _load(x, at, (c < k)[:, None, None] & (h < H)[None, :, None] & (w < W)[None, None, :])


@triton.jit
def _scratch(base, group, size, k, H, W):
    """The part of a group's scratch buffer that forward and backward both use.

    means (k, L), gates (k, L), shifted means (k, 9), folded weights (k, 9), outer columns of the map (2, H, W).
    """
    means = base + group.to(tl.int64) * size
    gates = means + k * (H + W)
    shifted = gates + k * (H + W)
    folded = shifted + 9 * k
    return means, gates, shifted, folded, folded + 9 * k


@triton.jit
def _gradient_scratch(maps, k, H, W):
    """The part of the scratch buffer for backward, which follows that of forward.

    sigmoid of the map (H, W), gradient of the map (H, W), its inner products with x1 (k,), its sum (k,), its
    correlation with X (k, 9), gradient of the shifted means (k, 9), of the gates (k, L), of the row and column
    means (k, L).
    """
    opened = maps + 2 * H * W
    slope = opened + H * W
    inner = slope + H * W
    total = inner + k
    correlation = total + k
    shifted_grad = correlation + 9 * k
    gates_grad = shifted_grad + 9 * k
    return opened, slope, inner, total, correlation, shifted_grad, gates_grad, gates_grad + k * (H + W)


# ------------------------------------------------------------------------------------------- stages by channel block


@triton.jit
def _sum_channels(x, means, c0, k, H, W, CS: tl.constexpr, BS: tl.constexpr, W2: tl.constexpr):
    """Means along W and along H: x (k, H, W) -> means (k, L)."""
    c = c0 + tl.arange(0, CS)
    w = tl.arange(0, W2)
    row = means + c[:, None] * (H + W)
    columns = tl.zeros([CS, W2], tl.float32)
    for h0 in range(0, H, BS):
        h = h0 + tl.arange(0, BS)
        tile = _load_rows(x, c, h, w, k, H, W)
        columns += tl.sum(tile, 1)
        tl.store(row + h[None, :], tl.sum(tile, 2) / W, mask=(c < k)[:, None] & (h < H)[None, :])
    tl.store(row + H + w[None, :], columns / H, mask=(c < k)[:, None] & (w < W)[None, :])


@triton.jit
def _shift_means(x, means, shifted, c0, k, H, W, CL: tl.constexpr, L2: tl.constexpr):
    """Means of x shifted by (u - 1, v - 1) with zeros coming in: means (k, L), corners of x -> shifted (k, 9).

    A shift by a row loses the first or the last row, a shift by a column the first or last column; the corner
    that was taken off twice is added back.
    """
    c = c0 + tl.arange(0, CL)[:, None]
    side = tl.arange(0, L2)[None, :]
    j = tl.arange(0, 16)[None, :]
    u = j // 3
    v = j - 3 * u
    known = (c < k) & (j < 9)
    lost_row = tl.where(u == 0, H - 1, 0)
    lost_column = tl.where(v == 0, W - 1, 0)
    mean = tl.sum(_load(means, c * (H + W) + side, (c < k) & (side < H)), 1) / H
    value = mean[:, None] - _load(means, c * (H + W) + lost_row, known & (u != 1)) / H
    value -= _load(means, c * (H + W) + H + lost_column, known & (v != 1)) / W
    value += _load(x, c * (H * W) + lost_row * W + lost_column, known & (u != 1) & (v != 1)) / (H * W)
    tl.store(shifted + c * 9 + j, value, mask=known)


@triton.jit
def _open_gates(means, w1, b1, gates, c0, k, L, CL: tl.constexpr, L2: tl.constexpr):
    """sigmoid(W1 means + b1): means (k, L), w1 (k, k), b1 (k,) -> gates (k, L)."""
    c = c0 + tl.arange(0, CL)
    side = tl.arange(0, L2)
    value = tl.zeros([CL, L2], tl.float32) + _load(b1, c, c < k)[:, None]
    for i in range(k):
        value += _load(w1, c * k + i, c < k)[:, None] * _load(means, i * L + side, side < L)[None, :]
    at = c[:, None] * L + side[None, :]
    tl.store(gates + at, _sigmoid(value), mask=(c < k)[:, None] & (side < L)[None, :])


@triton.jit
def _fold(w3, weights, folded, j0, j1, k, K2: tl.constexpr, JB: tl.constexpr):
    """sum_o weights[o] w3[o, j] for j0 <= j < j1: w3 (k, 9k), weights (K2,) in registers -> folded (9k,)."""
    o = tl.arange(0, K2)[:, None]
    for first in range(j0, j1, JB):
        j = first + tl.arange(0, JB)
        tile = _load(w3, o * (9 * k) + j[None, :], (o < k) & (j < j1)[None, :])
        tl.store(folded + j, tl.sum(weights[:, None] * tile, 0), mask=j < j1)


@triton.jit
def _fold_by_beta(w3, beta, folded, j0, j1, k, K2: tl.constexpr, JB: tl.constexpr):
    """The 3x3 branch as a convolution with one output: its weights for the inputs j0 .. j1."""
    o = tl.arange(0, K2)
    logits = _load(beta, o, o < k)
    largest, total = _softmax_terms(logits, o < k)
    _fold(w3, tl.where(o < k, tl.exp(logits - largest) / total, 0.0), folded, j0, j1, k, K2, JB)


@triton.jit
def _pooled_softmax(shifted, w3, b3, q, c0, c1, k, K2: tl.constexpr, JB: tl.constexpr):
    """q = softmax(mean of the 3x3 branch): shifted (9k,), w3 (k, 9k), b3 (k,) -> q[c0:c1] of (k,).

    All logits are needed for one value of q; programs that share a group each compute them, which is cheaper
    than a launch.
    """
    o = tl.arange(0, K2)
    products = tl.zeros([K2, JB], tl.float32)
    for first in range(0, 9 * k, JB):
        j = first + tl.arange(0, JB)
        tile = _load(w3, o[:, None] * (9 * k) + j[None, :], (o < k)[:, None] & (j < 9 * k)[None, :])
        products += tile * _load(shifted, j, j < 9 * k)[None, :]
    logits = tl.sum(products, 1) + _load(b3, o, o < k)
    largest, total = _softmax_terms(logits, o < k)
    tl.store(q + o, tl.exp(logits - largest) / total, mask=(o >= c0) & (o < c1) & (o < k))


@triton.jit
def _channel_statistics(x, gates, stats, c0, k, H, W, eps, CT: tl.constexpr, BH: tl.constexpr, W2: tl.constexpr):
    """Mean and 1 / sqrt(variance + eps) of y = X a c: x (k, H, W), gates (k, L) -> stats[:2] of (3, k).

    Two passes over the rows at hand, joined to those before by Chan's formula.
    """
    c = c0 + tl.arange(0, CT)
    w = tl.arange(0, W2)
    row = gates + c[:, None] * (H + W)
    across = _load(row, H + w[None, :], (c < k)[:, None] & (w < W)[None, :])
    mean = tl.zeros([CT], tl.float32)
    squares = tl.zeros([CT], tl.float32)
    for h0 in range(0, H, BH):
        h = h0 + tl.arange(0, BH)
        down = _load(row, h[None, :], (c < k)[:, None] & (h < H)[None, :])
        y = _load_rows(x, c, h, w, k, H, W) * down[:, :, None] * across[:, None, :]
        before = 1.0 * h0 * W
        count = 1.0 * tl.minimum(BH, H - h0) * W
        here = tl.sum(tl.sum(y, 1), 1) / count
        off = tl.where((h < H)[None, :, None] & (w < W)[None, None, :], y - here[:, None, None], 0.0)
        step = here - mean
        squares += tl.sum(tl.sum(off * off, 1), 1) + step * step * (before * count / (before + count))
        mean += step * (count / (before + count))
    tl.store(stats + c, mean, mask=c < k)
    tl.store(stats + k + c, 1.0 / tl.sqrt(squares / (H * W) + eps), mask=c < k)


@triton.jit
def _correlate(x, gates, stats, slope, inner, total, correlation, c0, k, H, W, CG: tl.constexpr, BG: tl.constexpr):
    """Sums over each channel of the products with the gradient D of the map.

    x (k, H, W), gates (k, L), stats (3, k), slope D (H, W) -> inner (k,) = sum of D (y - mu) rstd, total (k,) = sum
    of D, correlation (k, 9) = sum of D[h, w] X[h + u - 1, w + v - 1]. Products are added up pixel by pixel, and
    reduced once, at the end.
    """
    c = c0 + tl.arange(0, CG)[:, None]
    j = tl.arange(0, 16)[:, None]
    u = j // 3
    down = 1 - u
    right = 1 - (j - 3 * u)
    mean = _load(stats, c, c < k)
    sums = tl.zeros([BG], tl.float32)
    products = tl.zeros([CG, BG], tl.float32)
    shifted_products = tl.zeros([CG, 16, BG], tl.float32)
    for first in range(0, H * W, BG):
        pixel = first + tl.arange(0, BG)[None, :]
        h = pixel // W
        w = pixel - h * W
        mask = (c < k) & (pixel < H * W)
        value = _load(x, c * (H * W) + pixel, mask)
        y = value * _load(gates, c * (H + W) + h, mask) * _load(gates, c * (H + W) + H + w, mask)
        around = _load(slope, pixel + down * W + right, (j < 9) & _inside(pixel, w, H, W, down, right))
        shifted_products += value[:, None, :] * around[None, :, :]
        here = first + tl.arange(0, BG)
        centre = _load(slope, here, here < H * W)
        sums += centre
        products += centre[None, :] * (y - mean)
    own = c0 + tl.arange(0, CG)
    tl.store(total + own, tl.zeros([CG], tl.float32) + tl.sum(sums, 0), mask=own < k)
    tl.store(inner + own, tl.sum(products, 1) * _load(stats, k + own, own < k), mask=own < k)
    j = tl.arange(0, 16)[None, :]
    tl.store(correlation + c * 9 + j, tl.sum(shifted_products, 2), mask=(c < k) & (j < 9))


@triton.jit
def _gate_gradients(
    x, gates, stats, gamma, slope, inner, total, gates_grad, c0, k, H, W,
    CT: tl.constexpr, BH: tl.constexpr, W2: tl.constexpr
):  # fmt: skip
    """Gradient of the gates before their sigmoid: x (k, H, W), slope (H, W), inner, total (k,) -> gates_grad (k, L)."""
    c = c0 + tl.arange(0, CT)
    w = tl.arange(0, W2)
    area = H * W
    mean = _load(stats, c, c < k)[:, None, None]
    rstd = _load(stats, k + c, c < k)[:, None, None]
    q = _load(stats, 2 * k + c, c < k)[:, None, None]
    scale = rstd * _load(gamma, c, c < k)[:, None, None] * q
    tilt = rstd * _load(inner, c, c < k)[:, None, None] / area
    level = _load(total, c, c < k)[:, None, None] / area
    row = gates + c[:, None] * (H + W)
    graded = gates_grad + c[:, None] * (H + W)
    across_mask = (c < k)[:, None] & (w < W)[None, :]
    across = _load(row, H + w[None, :], across_mask)
    columns = tl.zeros([CT, W2], tl.float32)
    for h0 in range(0, H, BH):
        h = h0 + tl.arange(0, BH)
        down_mask = (c < k)[:, None] & (h < H)[None, :]
        down = _load(row, h[None, :], down_mask)
        # zero outside, so all values computed from it are zero there too
        tile = _load_rows(x, c, h, w, k, H, W)
        here = _load(slope, h[:, None] * W + w[None, :], (h < H)[:, None] & (w < W)[None, :])[None, :, :]
        y = tile * down[:, :, None] * across[:, None, :]
        pull = scale * (here - level - (y - mean) * tilt) * tile
        columns += tl.sum(pull * down[:, :, None], 1)
        rows = tl.sum(pull * across[:, None, :], 2)
        tl.store(graded + h[None, :], rows * down * (1.0 - down), mask=down_mask)
    tl.store(graded + H + w[None, :], columns * across * (1.0 - across), mask=across_mask)


@triton.jit
def _parameter_gradients(
    means, shifted, folded, stats, w1, gamma, beta, w3, b3, inner, total, correlation, shifted_grad, gates_grad,
    means_grad, partial, c0, c1, k, L, K2: tl.constexpr, CL: tl.constexpr, L2: tl.constexpr, JB: tl.constexpr
):  # fmt: skip
    """This group's part of the gradients of rows c0:c1 of the parameters, and the part of X's gradient through means.

    partial: dW1 (k, k), db1, dgamma, dbeta (k,), dW3 (k, 9k), db3 (k,), one after the other. shifted_grad (k, 9):
    gradient of the shifted means. means_grad (k, L): gradient of the row and column means.
    """
    # the softmax over the pooled 3x3 branch, all channels
    o = tl.arange(0, K2)
    q = _load(stats, 2 * k + o, o < k)
    area_sum = tl.load(total + c0)
    q_grad = _load(gamma, o, o < k) * _load(inner, o, o < k) + _load(beta, o, o < k) * area_sum
    q_level = tl.sum(q * q_grad, 0)
    _fold(w3, q * (q_grad - q_level), shifted_grad, 9 * c0, 9 * c1, k, K2, JB)

    # rows of the 3x3 convolution, and beta through its own softmax p
    logits = _load(beta, o, o < k)
    largest, normaliser = _softmax_terms(logits, o < k)
    bias = tl.sum(tl.where(o < k, tl.exp(logits - largest), 0.0) * _load(b3, o, o < k), 0) / normaliser
    c = c0 + tl.arange(0, CL)
    own = c < c1
    q_c = _load(stats, 2 * k + c, own)
    gamma_c = _load(gamma, c, own)
    beta_c = _load(beta, c, own)
    inner_c = _load(inner, c, own)
    p_c = tl.where(own, tl.exp(beta_c - largest) / normaliser, 0.0)
    logit_grad = q_c * (gamma_c * inner_c + beta_c * area_sum - q_level)
    p_products = tl.zeros([CL, JB], tl.float32)
    level_products = tl.zeros([JB], tl.float32)
    w3_grad = partial + k * k + 3 * k
    for first in range(0, 9 * k, JB):
        j = first + tl.arange(0, JB)
        at = c[:, None] * (9 * k) + j[None, :]
        mask = own[:, None] & (j < 9 * k)[None, :]
        met = _load(correlation, j, j < 9 * k)
        p_products += _load(w3, at, mask) * met[None, :]
        level_products += _load(folded, j, j < 9 * k) * met
        row = p_c[:, None] * met[None, :] + logit_grad[:, None] * _load(shifted, j, j < 9 * k)[None, :]
        tl.store(w3_grad + at, row, mask=mask)
    p_grad = tl.sum(p_products, 1) + _load(b3, c, own) * area_sum
    p_level = tl.sum(level_products, 0) + bias * area_sum
    tl.store(partial + k * k + k + c, q_c * inner_c, mask=own)
    tl.store(partial + k * k + 2 * k + c, q_c * area_sum + p_c * (p_grad - p_level), mask=own)
    tl.store(w3_grad + 9 * k * k + c, p_c * area_sum + logit_grad, mask=own)

    # rows of the 1x1 convolution, and through it the means
    side = tl.arange(0, L2)
    at = c[:, None] * L + side[None, :]
    mask = own[:, None] & (side < L)[None, :]
    pulled = _load(gates_grad, at, mask)
    tl.store(partial + k * k + c, tl.sum(pulled, 1), mask=own)
    back = tl.zeros([CL, L2], tl.float32)
    for i in range(k):
        mean = _load(means, i * L + side, side < L)
        tl.store(partial + c * k + i, tl.sum(pulled * mean[None, :], 1), mask=own)
        graded = _load(gates_grad, i * L + side, side < L)
        back += _load(w1, i * k + c, own)[:, None] * graded[None, :]
    tl.store(means_grad + at, back, mask=mask)


# --------------------------------------------------------------------------------------------- stages by pixel block


@triton.jit
def _inside(pixel, w, H, W, down, right):
    """Whether the pixel shifted by a number of rows and columns is on the map; the pixel may be past the end."""
    source = pixel + down * W
    return (source >= 0) & (source < H * W) & (w + right >= 0) & (w + right < W)


@triton.jit
def _attention(
    x, gates, folded, stats, gamma, beta, b3, columns, p0, p1, k, H, W,
    K2: tl.constexpr, CB: tl.constexpr, BP: tl.constexpr
):  # fmt: skip
    """The map before its sigmoid at pixels p0 .. p0 + BP, (BP,); x (k, H, W), columns (2, H, W) scratch.

    p0:p1 are whole rows. The convolution is done by columns of its kernel: rows are shifted in the reads of x, and
    the sums over channels of the outer columns are shifted once, through scratch.
    """
    area = H * W
    pixel = p0 + tl.arange(0, BP)
    live = pixel < p1
    h = pixel // W
    w = pixel - h * W

    o = tl.arange(0, K2)
    logits = _load(beta, o, o < k)
    largest, total = _softmax_terms(logits, o < k)
    bias = tl.sum(tl.where(o < k, tl.exp(logits - largest), 0.0) * _load(b3, o, o < k), 0) / total

    left = tl.zeros([BP], tl.float32)
    centre = tl.zeros([BP], tl.float32) + bias
    right = tl.zeros([BP], tl.float32)
    for c0 in range(0, k, CB):
        channel = c0 + tl.arange(0, CB)
        c = channel[:, None]
        mask = (c < k) & live[None, :]
        q = _load(stats, 2 * k + c, c < k)
        mean = _load(stats, c, c < k)
        scale = q * _load(gamma, c, c < k) * _load(stats, k + c, c < k)
        value = _load(x, c * area + pixel[None, :], mask)
        y = value * _load(gates, c * (H + W) + h[None, :], mask) * _load(gates, c * (H + W) + H + w[None, :], mask)
        centre += tl.sum(scale * (y - mean) + q * _load(beta, c, c < k), 0)
        for u in range(3):
            source = pixel + (u - 1) * W
            rows = _load(x, c * area + source[None, :], (c < k) & (live & (source >= 0) & (source < area))[None, :])
            left += tl.sum(_load(folded, c * 9 + 3 * u, c < k) * rows, 0)
            centre += tl.sum(_load(folded, c * 9 + 3 * u + 1, c < k) * rows, 0)
            right += tl.sum(_load(folded, c * 9 + 3 * u + 2, c < k) * rows, 0)
    tl.store(columns + pixel, left, mask=live)
    tl.store(columns + area + pixel, right, mask=live)
    tl.debug_barrier()
    centre += _load(columns, pixel - 1, live & (w > 0))
    return centre + _load(columns, area + pixel + 1, live & (w < W - 1))


@triton.jit
def _multiply(x, opened, out, p0, p1, k, H, W, CB: tl.constexpr, BP: tl.constexpr):
    """out = x * opened at pixels p0:p1: x, out (k, H, W), opened (BP,) in registers."""
    pixel = p0 + tl.arange(0, BP)[None, :]
    for c0 in range(0, k, CB):
        c = c0 + tl.arange(0, CB)[:, None]
        mask = (c < k) & (pixel < p1)
        at = c * (H * W) + pixel
        tl.store(out + at, (_load(x, at, mask) * opened[None, :]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _map_gradient(x, grad_out, logit, opened, slope, p0, p1, k, H, W, CB: tl.constexpr, BP: tl.constexpr):
    """Opened map and the gradient of the map at pixels p0:p1: x, grad_out (k, H, W), logit (BP,) -> opened, slope."""
    pixel = p0 + tl.arange(0, BP)
    live = pixel < p1
    pull = tl.zeros([BP], tl.float32)
    for c0 in range(0, k, CB):
        c = c0 + tl.arange(0, CB)[:, None]
        mask = (c < k) & live[None, :]
        at = c * (H * W) + pixel[None, :]
        pull += tl.sum(_load(x, at, mask) * _load(grad_out, at, mask), 0)
    value = _sigmoid(logit)
    tl.store(opened + pixel, value, mask=live)
    tl.store(slope + pixel, pull * value * (1.0 - value), mask=live)


@triton.jit
def _input_gradient(
    x, grad_out, gates, folded, stats, gamma, opened, slope, inner, total, shifted_grad, means_grad, x_grad,
    p0, p1, k, H, W, CB: tl.constexpr, BP: tl.constexpr
):  # fmt: skip
    """Gradient of X at pixels p0:p1, with all its parts: the product, the convolution, its mean, y and the means."""
    area = H * W
    pixel = p0 + tl.arange(0, BP)
    live = pixel < p1
    h = pixel // W
    w = pixel - h * W
    through = _load(opened, pixel, live)
    here = _load(slope, pixel, live)
    for c0 in range(0, k, CB):
        c = c0 + tl.arange(0, CB)[:, None]
        known = c < k
        mask = known & live[None, :]
        at = c * area + pixel[None, :]
        at_h = c * (H + W) + h[None, :]
        at_w = c * (H + W) + H + w[None, :]
        rstd = _load(stats, k + c, known)
        scale = rstd * _load(gamma, c, known) * _load(stats, 2 * k + c, known)
        gate = _load(gates, at_h, mask) * _load(gates, at_w, mask)
        normed = (_load(x, at, mask) * gate - _load(stats, c, known)) * rstd
        level = _load(total, c, known) / area
        value = scale * (here[None, :] - level - normed * (_load(inner, c, known) / area)) * gate
        value += _load(grad_out, at, mask) * through[None, :]
        value += _load(means_grad, at_h, mask) / W + _load(means_grad, at_w, mask) / H
        for u in range(3):
            for v in tl.static_range(3):
                inside = live & _inside(pixel, w, H, W, 1 - u, 1 - v)
                source = _load(slope, pixel + (1 - u) * W + 1 - v, inside)
                value += _load(folded, c * 9 + 3 * u + v, known) * source[None, :]
                value += tl.where(inside[None, :], _load(shifted_grad, c * 9 + 3 * u + v, known) / area, 0.0)
        tl.store(x_grad + at, value.to(x_grad.dtype.element_ty), mask=mask)


# ----------------------------------------------------------------------------------------------- the fused path


@triton.jit
def _prepare_group(
    x, w1, b1, beta, w3, means, gates, shifted, folded, k, H, W,
    K2: tl.constexpr, CS: tl.constexpr, BS: tl.constexpr, W2: tl.constexpr, CL: tl.constexpr, L2: tl.constexpr,
    JB: tl.constexpr
):  # fmt: skip
    """Means, gates, shifted means and folded weights of a group; ends with a barrier."""
    for c0 in range(0, k, CS):
        _sum_channels(x, means, c0, k, H, W, CS, BS, W2)
    _fold_by_beta(w3, beta, folded, 0, 9 * k, k, K2, JB)
    tl.debug_barrier()
    for c0 in range(0, k, CL):
        _shift_means(x, means, shifted, c0, k, H, W, CL, L2)
        _open_gates(means, w1, b1, gates, c0, k, H + W, CL, L2)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["size", "k", "H", "W"])
def fused_forward(
    x, w1, b1, gamma, beta, w3, b3, out, stats, scratch, size, k, H, W, eps,
    K2: tl.constexpr, CS: tl.constexpr, BS: tl.constexpr, CT: tl.constexpr, BH: tl.constexpr, W2: tl.constexpr,
    CL: tl.constexpr, L2: tl.constexpr, JB: tl.constexpr, CB: tl.constexpr, BP: tl.constexpr
):  # fmt: skip
    """The whole forward of one group: x (NG, k, H, W) -> out (NG, k, H, W), stats (NG, 3, k); grid (NG,)."""
    group = tl.program_id(0)
    start = group.to(tl.int64) * k * H * W
    x += start
    stats += group.to(tl.int64) * 3 * k
    means, gates, shifted, folded, columns = _scratch(scratch, group, size, k, H, W)
    _prepare_group(x, w1, b1, beta, w3, means, gates, shifted, folded, k, H, W, K2, CS, BS, W2, CL, L2, JB)
    _pooled_softmax(shifted, w3, b3, stats + 2 * k, 0, k, k, K2, JB)
    for c0 in range(0, k, CT):
        _channel_statistics(x, gates, stats, c0, k, H, W, eps, CT, BH, W2)
    tl.debug_barrier()
    rows = BP // W
    for h0 in range(0, H, rows):
        p0 = h0 * W
        p1 = tl.minimum(h0 + rows, H) * W
        logit = _attention(x, gates, folded, stats, gamma, beta, b3, columns, p0, p1, k, H, W, K2, CB, BP)
        _multiply(x, _sigmoid(logit), out + start, p0, p1, k, H, W, CB, BP)


@triton.jit(do_not_specialize=["size", "k", "H", "W"])
def fused_backward(
    grad_out, x, stats, w1, b1, gamma, beta, w3, b3, x_grad, partial, scratch, size, k, H, W,
    K2: tl.constexpr, CS: tl.constexpr, BS: tl.constexpr, CT: tl.constexpr, BH: tl.constexpr, W2: tl.constexpr,
    CL: tl.constexpr, L2: tl.constexpr, JB: tl.constexpr, CB: tl.constexpr, BP: tl.constexpr,
    CG: tl.constexpr, BG: tl.constexpr
):  # fmt: skip
    """The whole backward of one group: grad_out, x (NG, k, H, W) -> x_grad (NG, k, H, W), partial (NG, 10 k^2 + 4 k);
    grid (NG,)."""
    group = tl.program_id(0)
    start = group.to(tl.int64) * k * H * W
    x += start
    grad_out += start
    stats += group.to(tl.int64) * 3 * k
    partial += group.to(tl.int64) * (10 * k + 4) * k
    means, gates, shifted, folded, columns = _scratch(scratch, group, size, k, H, W)
    opened, slope, inner, total, correlation, shifted_grad, gates_grad, means_grad = _gradient_scratch(columns, k, H, W)
    _prepare_group(x, w1, b1, beta, w3, means, gates, shifted, folded, k, H, W, K2, CS, BS, W2, CL, L2, JB)
    rows = BP // W
    for h0 in range(0, H, rows):
        p0 = h0 * W
        p1 = tl.minimum(h0 + rows, H) * W
        logit = _attention(x, gates, folded, stats, gamma, beta, b3, columns, p0, p1, k, H, W, K2, CB, BP)
        _map_gradient(x, grad_out, logit, opened, slope, p0, p1, k, H, W, CB, BP)
    tl.debug_barrier()
    for c0 in range(0, k, CG):
        _correlate(x, gates, stats, slope, inner, total, correlation, c0, k, H, W, CG, BG)
    tl.debug_barrier()
    for c0 in range(0, k, CT):
        _gate_gradients(x, gates, stats, gamma, slope, inner, total, gates_grad, c0, k, H, W, CT, BH, W2)
    tl.debug_barrier()
    for c0 in range(0, k, CL):
        _parameter_gradients(
            means, shifted, folded, stats, w1, gamma, beta, w3, b3, inner, total, correlation, shifted_grad,
            gates_grad, means_grad, partial, c0, tl.minimum(c0 + CL, k), k, H + W, K2, CL, L2, JB
        )  # fmt: skip
    tl.debug_barrier()
    for p0 in range(0, H * W, BP):
        _input_gradient(
            x, grad_out, gates, folded, stats, gamma, opened, slope, inner, total, shifted_grad, means_grad,
            x_grad + start, p0, tl.minimum(p0 + BP, H * W), k, H, W, CB, BP
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------- the split path


@triton.jit(do_not_specialize=["size", "k", "H", "W"])
def split_sums(
    x, beta, w3, scratch, size, k, H, W,
    K2: tl.constexpr, BS: tl.constexpr, W2: tl.constexpr, L2: tl.constexpr, JB: tl.constexpr
):  # fmt: skip
    """Means and shifted means of a channel: reads x (NG, k, H, W) once; grid (NG * k,)."""
    group = tl.program_id(0) // k
    c = tl.program_id(0) - group * k
    means, gates, shifted, folded, columns = _scratch(scratch, group, size, k, H, W)
    x += group.to(tl.int64) * k * H * W
    _sum_channels(x, means, c, k, H, W, 1, BS, W2)
    _fold_by_beta(w3, beta, folded, 9 * c, 9 * c + 9, k, K2, JB)
    tl.debug_barrier()
    _shift_means(x, means, shifted, c, k, H, W, 1, L2)


@triton.jit(do_not_specialize=["size", "k", "H", "W"])
def split_statistics(
    x, w1, b1, w3, b3, stats, scratch, size, k, H, W, eps,
    K2: tl.constexpr, BH: tl.constexpr, W2: tl.constexpr, L2: tl.constexpr, JB: tl.constexpr, KNOWN: tl.constexpr
):  # fmt: skip
    """Gates of a channel and, unless KNOWN, its statistics: reads x (NG, k, H, W) at most once; grid (NG * k,)."""
    group = tl.program_id(0) // k
    c = tl.program_id(0) - group * k
    means, gates, shifted, folded, columns = _scratch(scratch, group, size, k, H, W)
    _open_gates(means, w1, b1, gates, c, k, H + W, 1, L2)
    if not KNOWN:
        stats += group.to(tl.int64) * 3 * k
        _pooled_softmax(shifted, w3, b3, stats + 2 * k, c, c + 1, k, K2, JB)
        tl.debug_barrier()
        _channel_statistics(x + group.to(tl.int64) * k * H * W, gates, stats, c, k, H, W, eps, 1, BH, W2)


@triton.jit
def _row_block(k, H, W, BP: tl.constexpr):
    """The group of this program, and the pixels of its rows."""
    rows = BP // W
    blocks = (H + rows - 1) // rows
    group = tl.program_id(0) // blocks
    h0 = (tl.program_id(0) - group * blocks) * rows
    return group, h0 * W, tl.minimum(h0 + rows, H) * W


@triton.jit(do_not_specialize=["size", "k", "H", "W"])
def split_product(
    x, gamma, beta, b3, out, stats, scratch, size, k, H, W, K2: tl.constexpr, CB: tl.constexpr, BP: tl.constexpr
):  # fmt: skip
    """Map and product for a block of rows: reads x (NG, k, H, W), and again -> out; grid (NG * row blocks,)."""
    group, p0, p1 = _row_block(k, H, W, BP)
    start = group.to(tl.int64) * k * H * W
    stats += group.to(tl.int64) * 3 * k
    x += start
    means, gates, shifted, folded, columns = _scratch(scratch, group, size, k, H, W)
    logit = _attention(x, gates, folded, stats, gamma, beta, b3, columns, p0, p1, k, H, W, K2, CB, BP)
    _multiply(x, _sigmoid(logit), out + start, p0, p1, k, H, W, CB, BP)


@triton.jit(do_not_specialize=["size", "k", "H", "W"])
def split_map_gradient(
    grad_out, x, stats, gamma, beta, b3, scratch, size, k, H, W, K2: tl.constexpr, CB: tl.constexpr, BP: tl.constexpr
):  # fmt: skip
    """Map and its gradient for a block of rows: reads x, and again, and grad_out once; grid (NG * row blocks,)."""
    group, p0, p1 = _row_block(k, H, W, BP)
    start = group.to(tl.int64) * k * H * W
    stats += group.to(tl.int64) * 3 * k
    x += start
    means, gates, shifted, folded, columns = _scratch(scratch, group, size, k, H, W)
    opened, slope, inner, total, correlation, shifted_grad, gates_grad, means_grad = _gradient_scratch(columns, k, H, W)
    logit = _attention(x, gates, folded, stats, gamma, beta, b3, columns, p0, p1, k, H, W, K2, CB, BP)
    _map_gradient(x, grad_out + start, logit, opened, slope, p0, p1, k, H, W, CB, BP)


@triton.jit(do_not_specialize=["size", "k", "H", "W"])
def split_channel_gradients(
    x, stats, gamma, scratch, size, k, H, W, BH: tl.constexpr, W2: tl.constexpr, BG: tl.constexpr
):  # fmt: skip
    """Sums of the map's gradient with a channel: reads x (NG, k, H, W), and again; grid (NG * k,)."""
    group = tl.program_id(0) // k
    c = tl.program_id(0) - group * k
    stats += group.to(tl.int64) * 3 * k
    x += group.to(tl.int64) * k * H * W
    means, gates, shifted, folded, columns = _scratch(scratch, group, size, k, H, W)
    opened, slope, inner, total, correlation, shifted_grad, gates_grad, means_grad = _gradient_scratch(columns, k, H, W)
    _correlate(x, gates, stats, slope, inner, total, correlation, c, k, H, W, 1, BG)
    tl.debug_barrier()
    _gate_gradients(x, gates, stats, gamma, slope, inner, total, gates_grad, c, k, H, W, 1, BH, W2)


@triton.jit(do_not_specialize=["size", "k", "H", "W"])
def split_parameter_gradients(
    stats, w1, gamma, beta, w3, b3, partial, scratch, size, k, H, W,
    K2: tl.constexpr, L2: tl.constexpr, JB: tl.constexpr
):  # fmt: skip
    """Rows of the parameter gradients for a channel of a group: does not read a map; grid (NG * k,)."""
    group = tl.program_id(0) // k
    c = tl.program_id(0) - group * k
    stats += group.to(tl.int64) * 3 * k
    partial += group.to(tl.int64) * (10 * k + 4) * k
    means, gates, shifted, folded, columns = _scratch(scratch, group, size, k, H, W)
    opened, slope, inner, total, correlation, shifted_grad, gates_grad, means_grad = _gradient_scratch(columns, k, H, W)
    _parameter_gradients(
        means, shifted, folded, stats, w1, gamma, beta, w3, b3, inner, total, correlation, shifted_grad,
        gates_grad, means_grad, partial, c, c + 1, k, H + W, K2, 1, L2, JB
    )  # fmt: skip


@triton.jit(do_not_specialize=["size", "k", "H", "W"])
def split_input_gradient(
    grad_out, x, stats, gamma, x_grad, scratch, size, k, H, W, CB: tl.constexpr, BP: tl.constexpr
):  # fmt: skip
    """Gradient of x for a block of rows: reads grad_out and x (NG, k, H, W) -> x_grad; grid (NG * row blocks,)."""
    group, p0, p1 = _row_block(k, H, W, BP)
    start = group.to(tl.int64) * k * H * W
    stats += group.to(tl.int64) * 3 * k
    means, gates, shifted, folded, columns = _scratch(scratch, group, size, k, H, W)
    opened, slope, inner, total, correlation, shifted_grad, gates_grad, means_grad = _gradient_scratch(columns, k, H, W)
    _input_gradient(
        x + start, grad_out + start, gates, folded, stats, gamma, opened, slope, inner, total, shifted_grad, means_grad,
        x_grad + start, p0, p1, k, H, W, CB, BP
    )  # fmt: skip
