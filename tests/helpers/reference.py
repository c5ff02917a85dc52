"""The blocks' equations as slow loops over single numbers, in float64, written from the papers.

Nothing here shares code or array operations with the package: NumPy arrays only hold the numbers.
Parameters are named as in the public reference implementations.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np

GROUP_NORM_EPS = 1e-5
BATCH_NORM_EPS = 1e-5


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def sigmoid(v):
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


def softmax(values):
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [power / math.fsum(powers) for power in powers]


def normalise(values, gamma, beta, eps):
    values = list(values)
    mu = mean(values)
    variance = mean((v - mu) ** 2 for v in values)
    return [gamma * (v - mu) / math.sqrt(variance + eps) + beta for v in values]


def linear(weight, bias, vector):
    """``weight`` (out, in, ...ones), ``bias`` (out) or None, ``vector`` (in)."""
    rows = np.asarray(weight).reshape(len(weight), -1)
    return [
        math.fsum(w * v for w, v in zip(row, vector)) + (0.0 if bias is None else bias[o]) for o, row in enumerate(rows)
    ]


def convolve(image, kernel, bias):
    """A 2-D convolution with zero padding that keeps the size: image (I, H, W), kernel (O, I, K, K)."""
    outputs, inputs, size, _ = kernel.shape
    _, height, width = image.shape
    out = np.zeros((outputs, height, width))
    for o, i, j in product(range(outputs), range(height), range(width)):
        total = 0.0 if bias is None else bias[o]
        for c, u, v in product(range(inputs), range(size), range(size)):
            row, column = i + u - size // 2, j + v - size // 2
            if 0 <= row < height and 0 <= column < width:
                total += kernel[o, c, u, v] * image[c, row, column]
        out[o, i, j] = total
    return out


def batch_norm(x, p, prefix, training):
    """Batch norm of (N, C, H, W). With a single value for each channel, the running statistics are used."""
    n, channels, height, width = x.shape
    out = np.zeros_like(x)
    for c in range(channels):
        gamma, beta = p[f"{prefix}.weight"][c], p[f"{prefix}.bias"][c]
        if training and n * height * width > 1:
            flat = normalise(x[:, c].reshape(-1), gamma, beta, BATCH_NORM_EPS)
        else:
            mu, variance = p[f"{prefix}.running_mean"][c], p[f"{prefix}.running_var"][c]
            root = math.sqrt(variance + BATCH_NORM_EPS)
            flat = [gamma * (v - mu) / root + beta for v in x[:, c].reshape(-1)]
        out[:, c] = np.array(flat).reshape(n, height, width)
    return out


def ema(x, p, training, groups=32, cross_spatial=True, factor=None):
    groups = factor or groups
    n, channels, height, width = x.shape
    k = channels // groups
    out = np.zeros_like(x)
    for image, g in product(range(n), range(groups)):
        group = x[image, g * k : (g + 1) * k]
        gate_h = np.zeros((k, height))
        gate_w = np.zeros((k, width))
        for i in range(height):
            pooled = [mean(group[c, i, j] for j in range(width)) for c in range(k)]
            gate_h[:, i] = [sigmoid(v) for v in linear(p["conv1x1.weight"], p["conv1x1.bias"], pooled)]
        for j in range(width):
            pooled = [mean(group[c, i, j] for i in range(height)) for c in range(k)]
            gate_w[:, j] = [sigmoid(v) for v in linear(p["conv1x1.weight"], p["conv1x1.bias"], pooled)]

        branch1 = np.zeros_like(group)
        for c in range(k):
            gated = [group[c, i, j] * gate_h[c, i] * gate_w[c, j] for i, j in product(range(height), range(width))]
            normed = normalise(gated, p["gn.weight"][c], p["gn.bias"][c], GROUP_NORM_EPS)
            branch1[c] = np.array(normed).reshape(height, width)
        branch3 = convolve(group, p["conv3x3.weight"], p["conv3x3.bias"])

        share1 = softmax([mean(branch1[c].reshape(-1)) for c in range(k)])
        share3 = softmax([mean(branch3[c].reshape(-1)) for c in range(k)])
        for i, j in product(range(height), range(width)):
            crossed = math.fsum(share1[c] * branch3[c, i, j] + share3[c] * branch1[c, i, j] for c in range(k))
            for c in range(k):
                score = crossed if cross_spatial else branch1[c, i, j] + branch3[c, i, j]
                out[image, g * k + c, i, j] = group[c, i, j] * sigmoid(score)
    return out


def ca(x, p, training, reduction=32):
    n, channels, height, width = x.shape
    hidden = len(p["conv1.bias"])
    strips = np.zeros((n, hidden, height + width, 1))
    for image in range(n):
        for i in range(height):
            pooled = [mean(x[image, c, i, j] for j in range(width)) for c in range(channels)]
            strips[image, :, i, 0] = linear(p["conv1.weight"], p["conv1.bias"], pooled)
        for j in range(width):
            pooled = [mean(x[image, c, i, j] for i in range(height)) for c in range(channels)]
            strips[image, :, height + j, 0] = linear(p["conv1.weight"], p["conv1.bias"], pooled)
    strips = batch_norm(strips, p, "bn1", training)

    out = np.zeros_like(x)
    for image in range(n):
        active = [
            [v * min(max(v + 3, 0), 6) / 6 for v in strips[image, :, position, 0]] for position in range(height + width)
        ]
        scores_h = [linear(p["conv_h.weight"], p["conv_h.bias"], active[i]) for i in range(height)]
        scores_w = [linear(p["conv_w.weight"], p["conv_w.bias"], active[height + j]) for j in range(width)]
        for c, i, j in product(range(channels), range(height), range(width)):
            out[image, c, i, j] = x[image, c, i, j] * sigmoid(scores_h[i][c]) * sigmoid(scores_w[j][c])
    return out


def cbam(x, p, training, reduction=16, kernel_size=7):
    n, channels, height, width = x.shape

    def mlp(vector):
        hidden = linear(p["ChannelGate.mlp.1.weight"], p["ChannelGate.mlp.1.bias"], vector)
        active = [max(v, 0.0) for v in hidden]
        return linear(p["ChannelGate.mlp.3.weight"], p["ChannelGate.mlp.3.bias"], active)

    refined = np.zeros_like(x)
    scores = np.zeros((n, 1, height, width))
    for image in range(n):
        from_mean = mlp([mean(x[image, c].reshape(-1)) for c in range(channels)])
        from_peak = mlp([max(x[image, c].reshape(-1)) for c in range(channels)])
        for c, i, j in product(range(channels), range(height), range(width)):
            refined[image, c, i, j] = x[image, c, i, j] * sigmoid(from_mean[c] + from_peak[c])
        pooled = np.zeros((2, height, width))
        for i, j in product(range(height), range(width)):
            pooled[0, i, j] = max(refined[image, :, i, j])
            pooled[1, i, j] = mean(refined[image, :, i, j])
        scores[image] = convolve(pooled, p["SpatialGate.spatial.conv.weight"], None)
    scores = batch_norm(scores, p, "SpatialGate.spatial.bn", training)

    out = np.zeros_like(x)
    for image, c, i, j in product(range(n), range(channels), range(height), range(width)):
        out[image, c, i, j] = refined[image, c, i, j] * sigmoid(scores[image, 0, i, j])
    return out


def sa(x, p, training, groups=64):
    n, channels, height, width = x.shape
    k = channels // (2 * groups)
    gated = np.zeros_like(x)
    for image, g, c in product(range(n), range(groups), range(k)):
        first = g * 2 * k + c
        score = p["cweight"][0, c, 0, 0] * mean(x[image, first].reshape(-1)) + p["cbias"][0, c, 0, 0]
        for i, j in product(range(height), range(width)):
            gated[image, first, i, j] = x[image, first, i, j] * sigmoid(score)
        second = first + k
        normed = normalise(x[image, second].reshape(-1), p["gn.weight"][c], p["gn.bias"][c], GROUP_NORM_EPS)
        for position, (i, j) in enumerate(product(range(height), range(width))):
            score = p["sweight"][0, c, 0, 0] * normed[position] + p["sbias"][0, c, 0, 0]
            gated[image, second, i, j] = x[image, second, i, j] * sigmoid(score)
    out = np.zeros_like(x)
    for c in range(channels // 2):  # the shuffle: channels of the two halves alternate
        out[:, 2 * c] = gated[:, c]
        out[:, 2 * c + 1] = gated[:, channels // 2 + c]
    return out


def eca(x, p, training, kernel_size=None):
    n, channels, height, width = x.shape
    kernel = p["conv.weight"][0, 0]
    out = np.zeros_like(x)
    for image, c in product(range(n), range(channels)):
        score = 0.0
        for u, weight in enumerate(kernel):
            neighbour = c + u - len(kernel) // 2
            if 0 <= neighbour < channels:
                score += weight * mean(x[image, neighbour].reshape(-1))
        for i, j in product(range(height), range(width)):
            out[image, c, i, j] = x[image, c, i, j] * sigmoid(score)
    return out


def nam(x, p, training, shares=None):
    """``shares`` holds the channels' shares fixed while gamma moves (for derivatives)."""
    n, channels, height, width = x.shape
    normed = batch_norm(x, p, "Channel_Att.bn2", training)
    if shares is None:
        shares = nam_shares(p["Channel_Att.bn2.weight"])
    out = np.zeros_like(x)
    for image, c, i, j in product(range(n), range(channels), range(height), range(width)):
        out[image, c, i, j] = x[image, c, i, j] * sigmoid(shares[c] * normed[image, c, i, j])
    return out


def nam_shares(gamma):
    total = math.fsum(abs(v) for v in gamma)
    return [abs(v) / total if total else 1 / len(gamma) for v in gamma]


def se(x, p, training, reduction=16, bias=False):
    n, channels, height, width = x.shape
    out = np.zeros_like(x)
    for image in range(n):
        pooled = [mean(x[image, c].reshape(-1)) for c in range(channels)]
        hidden = [max(v, 0.0) for v in linear(p["fc.0.weight"], p.get("fc.0.bias"), pooled)]
        scores = linear(p["fc.2.weight"], p.get("fc.2.bias"), hidden)
        for c, i, j in product(range(channels), range(height), range(width)):
            out[image, c, i, j] = x[image, c, i, j] * sigmoid(scores[c])
    return out


def deviation(values):
    """The unbiased standard deviation; 0 for a single value."""
    values = list(values)
    mu = mean(values)
    return math.sqrt(math.fsum((v - mu) ** 2 for v in values) / max(len(values) - 1, 1))


def gated(x, gate):
    """``x`` (N, C, H, W) times ``gate(image, c, i, j)``."""
    out = np.zeros_like(x)
    for index in product(*map(range, x.shape)):
        out[index] = x[index] * gate(*index)
    return out


def sge(x, p, training, groups=64):
    n, channels, height, width = x.shape
    k = channels // groups
    scores = np.zeros((n, groups, height, width))
    for image, g in product(range(n), range(groups)):
        group = x[image, g * k : (g + 1) * k]
        means = [mean(group[c].reshape(-1)) for c in range(k)]
        likeness = [math.fsum(group[c, i, j] * means[c] for c in range(k)) for i in range(height) for j in range(width)]
        middle, spread = mean(likeness), deviation(likeness) + 1e-5
        weight, bias = p["weight"][0, g, 0, 0], p["bias"][0, g, 0, 0]
        scores[image, g] = np.array([weight * (v - middle) / spread + bias for v in likeness]).reshape(height, width)
    return gated(x, lambda image, c, i, j: sigmoid(scores[image, c // k, i, j]))


def simam(x, p, training, e_lambda=1e-4):
    n, channels, height, width = x.shape
    out = np.zeros_like(x)
    for image, c in product(range(n), range(channels)):
        values = x[image, c].reshape(-1)
        mu, variance = mean(values), deviation(values) ** 2
        for i, j in product(range(height), range(width)):
            energy = (x[image, c, i, j] - mu) ** 2 / (4 * (variance + e_lambda)) + 0.5
            out[image, c, i, j] = x[image, c, i, j] * sigmoid(energy)
    return out


def triplet(x, p, training, kernel_size=7, spatial=True):
    def gate(name, order):
        """The scores of a gate over two dimensions, from the maximum and the mean over the first of ``order``."""
        pooled, rows, columns = (x.shape[d] for d in order)
        scores = np.zeros((x.shape[0], 1, rows, columns))
        for image in range(x.shape[0]):
            maps = np.zeros((2, rows, columns))
            for a, b in product(range(rows), range(columns)):
                places = (dict(zip(order, (k, a, b))) for k in range(pooled))
                values = [x[image, at[1], at[2], at[3]] for at in places]
                maps[0, a, b], maps[1, a, b] = max(values), mean(values)
            scores[image] = convolve(maps, p[f"{name}.conv.conv.weight"], None)
        return batch_norm(scores, p, f"{name}.conv.bn", training)

    over_h, over_w = gate("cw", (2, 1, 3)), gate("hc", (3, 2, 1))
    over_c = gate("hw", (1, 2, 3)) if spatial else None

    def together(image, c, i, j):
        found = [sigmoid(over_h[image, 0, c, j]), sigmoid(over_w[image, 0, i, c])]
        return mean(found if over_c is None else [*found, sigmoid(over_c[image, 0, i, j])])

    return gated(x, together)


def srm(x, p, training):
    n, channels = x.shape[:2]
    scores = np.zeros((n, channels, 1, 1))
    for image, c in product(range(n), range(channels)):
        values = x[image, c].reshape(-1)
        style = (mean(values), math.sqrt(deviation(values) ** 2 + 1e-5))
        scores[image, c, 0, 0] = math.fsum(w * v for w, v in zip(p["cfc"][c], style))
    scores = batch_norm(scores, p, "bn", training)
    return gated(x, lambda image, c, i, j: sigmoid(scores[image, c, 0, 0]))


LOOPS = {
    "CA": ca,
    "CBAM": cbam,
    "ECA": eca,
    "EMA": ema,
    "NAM": nam,
    "SA": sa,
    "SE": se,
    "SGE": sge,
    "SRM": srm,
    "SimAM": simam,
    "Triplet": triplet,
}
