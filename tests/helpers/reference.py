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


def ema(
    x,
    p,
    training,
    groups=32,
    cross_spatial=True,
    factor=None,
    norm_groups=None,
    residual=False,
    depthwise=False,
):
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
        together = k // (norm_groups or k)  # channels that are normalised together
        for first in range(0, k, together):
            places = list(product(range(first, first + together), range(height), range(width)))
            normed = normalise(
                (group[c, i, j] * gate_h[c, i] * gate_w[c, j] for c, i, j in places), 1, 0, GROUP_NORM_EPS
            )
            for (c, i, j), value in zip(places, normed):
                branch1[c, i, j] = p["gn.weight"][c] * value + p["gn.bias"][c]
        branch3 = np.zeros_like(group)
        for c in range(k):  # a depthwise kernel reads one channel, a full one all of the group
            read = group[c : c + 1] if depthwise else group
            branch3[c] = convolve(read, p["conv3x3.weight"][c : c + 1], p["conv3x3.bias"][c : c + 1])[0]

        share1 = softmax([mean(branch1[c].reshape(-1)) for c in range(k)])
        share3 = softmax([mean(branch3[c].reshape(-1)) for c in range(k)])
        for i, j in product(range(height), range(width)):
            crossed = math.fsum(share1[c] * branch3[c, i, j] + share3[c] * branch1[c, i, j] for c in range(k))
            for c in range(k):
                score = crossed if cross_spatial else branch1[c, i, j] + branch3[c, i, j]
                out[image, g * k + c, i, j] = group[c, i, j] * sigmoid(score)
                if residual:
                    out[image, g * k + c, i, j] = group[c, i, j] + p["gate.weight"][0] * out[image, g * k + c, i, j]
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


def relu(values):
    return [max(v, 0.0) for v in values]


def layer_norm(values, weight, bias):
    mu = mean(values)
    root = math.sqrt(mean((v - mu) ** 2 for v in values) + GROUP_NORM_EPS)
    return [w * (v - mu) / root + b for v, w, b in zip(values, np.ravel(weight), np.ravel(bias))]


def pointwise(image, p, name):
    """A 1x1 convolution (or linear layer) of (C, H, W)."""
    _, height, width = image.shape
    weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
    out = np.zeros((len(weight), height, width))
    for i, j in product(range(height), range(width)):
        out[:, i, j] = linear(weight, bias, image[:, i, j])
    return out


def convolved(x, p, name):
    return np.stack([convolve(image, p[f"{name}.weight"], p.get(f"{name}.bias")) for image in x])


def pixels(image):
    """The vectors of all pixels of (C, H, W), row by row."""
    _, height, width = image.shape
    return [image[:, i, j] for i, j in product(range(height), range(width))]


def dot(a, b):
    return math.fsum(v * w for v, w in zip(a, b))


def weighted(shares, vectors):
    """The sum of vectors with one share each."""
    return [math.fsum(s * v[c] for s, v in zip(shares, vectors)) for c in range(len(vectors[0]))]


def as_map(values, like):
    """Values or vectors of all pixels, row by row, as (height, width) or (C, height, width)."""
    found = np.array(values)
    return found.T.reshape(*found.shape[1:], *like.shape[1:])


def polarized_channel(image, p, mode):
    shares = softmax([v[0] for v in pixels(pointwise(image, p, "conv_q_right"))])
    context = weighted(shares, pixels(pointwise(image, p, "conv_v_right")))
    if mode == "parallel":
        scores = linear(p["conv_up.weight"], None, context)
    else:
        hidden = linear(p["conv_up.0.weight"], p["conv_up.0.bias"], context)
        hidden = relu(layer_norm(hidden, p["conv_up.1.weight"], p["conv_up.1.bias"]))
        scores = linear(p["conv_up.3.weight"], p["conv_up.3.bias"], hidden)
    return [sigmoid(v) for v in scores]


def polarized_spatial(image, p, mode):
    query = [mean(channel.reshape(-1)) for channel in pointwise(image, p, "conv_q_left")]
    values = pointwise(image, p, "conv_v_left")
    if mode == "parallel":
        scores = softmax([dot(query, v) for v in pixels(values)])
    else:
        shares = [softmax(channel.reshape(-1)) for channel in values]
        scores = [dot(query, v) for v in zip(*shares)]
    return as_map([sigmoid(v) for v in scores], image)


def polarized(x, p, training, mode="sequential"):
    out = np.zeros_like(x)
    for image, c, i, j in product(*map(range, x.shape)):
        if (c, i, j) == (0, 0, 0):
            channel = polarized_channel(x[image], p, mode)
            first = x[image] * np.array(channel)[:, None, None]
            spatial = polarized_spatial(x[image] if mode == "parallel" else first, p, mode)
        both = channel[c] + spatial[i, j] if mode == "parallel" else channel[c] * spatial[i, j]
        out[image, c, i, j] = x[image, c, i, j] * both
    return out


def gc(x, p, training, reduction=16, fusion="add"):
    name = f"channel_{fusion}_conv"
    out = np.zeros_like(x)
    for index, image in enumerate(x):
        shares = softmax([v[0] for v in pixels(pointwise(image, p, "conv_mask"))])
        context = weighted(shares, pixels(image))
        hidden = linear(p[f"{name}.0.weight"], p[f"{name}.0.bias"], context)
        hidden = relu(layer_norm(hidden, p[f"{name}.1.weight"], p[f"{name}.1.bias"]))
        terms = linear(p[f"{name}.3.weight"], p[f"{name}.3.bias"], hidden)
        for c, i, j in product(*map(range, image.shape)):
            value = image[c, i, j]
            out[index, c, i, j] = value + terms[c] if fusion == "add" else value * sigmoid(terms[c])
    return out


def bam(x, p, training, reduction=16, dilation=4, combine="sum"):
    at, there = "channel_att.gate_c.gate_c", "spatial_att.gate_s.gate_s"
    hidden = np.array(
        [linear(p[f"{at}_fc_0.weight"], p[f"{at}_fc_0.bias"], [mean(c.reshape(-1)) for c in image]) for image in x]
    )
    hidden = batch_norm(hidden[:, :, None, None], p, f"{at}_bn_1", training)
    channel = [linear(p[f"{at}_fc_final.weight"], p[f"{at}_fc_final.bias"], relu(np.ravel(v))) for v in hidden]

    y = np.stack([pointwise(image, p, f"{there}_conv_reduce0") for image in x])
    y = np.maximum(batch_norm(y, p, f"{there}_bn_reduce0", training), 0)
    for step in range(2):
        kernel = p[f"{there}_conv_di_{step}.weight"]
        spread = np.zeros((*kernel.shape[:2], 2 * dilation + 1, 2 * dilation + 1))  # zeros between the nine weights
        for u, v in product(range(3), range(3)):
            spread[:, :, u * dilation, v * dilation] = kernel[:, :, u, v]
        y = np.stack([convolve(image, spread, p[f"{there}_conv_di_{step}.bias"]) for image in y])
        y = np.maximum(batch_norm(y, p, f"{there}_bn_di_{step}", training), 0)
    spatial = [pointwise(image, p, f"{there}_conv_final")[0] for image in y]

    def gate(image, c, i, j):
        a, b = channel[image][c], spatial[image][i, j]
        return 1 + sigmoid(a + b if combine == "sum" else a * b)

    return gated(x, gate)


def gam(x, p, training, reduction=4, kernel_size=7):
    def mlp(vector):
        hidden = relu(linear(p["channel_attention.0.weight"], p["channel_attention.0.bias"], vector))
        return linear(p["channel_attention.2.weight"], p["channel_attention.2.bias"], hidden)

    channel = [as_map([mlp(v) for v in pixels(image)], image) for image in x]
    refined = gated(x, lambda image, c, i, j: sigmoid(channel[image][c, i, j]))
    y = np.maximum(batch_norm(convolved(refined, p, "spatial_attention.0"), p, "spatial_attention.1", training), 0)
    y = batch_norm(convolved(y, p, "spatial_attention.3"), p, "spatial_attention.4", training)
    return gated(refined, lambda image, c, i, j: sigmoid(y[image, c, i, j]))


def parnet(x, p, training):
    normed = batch_norm(x, p, "rbr_identity", training)
    scores = [linear(p["se.cvsig.conv.weight"], None, [mean(c.reshape(-1)) for c in image]) for image in normed]
    skip = gated(normed, lambda image, c, i, j: sigmoid(scores[image][c]))
    dense = batch_norm(convolved(x, p, "rbr_dense.conv"), p, "rbr_dense.bn", training)
    point = batch_norm(convolved(x, p, "rbr_1x1.conv"), p, "rbr_1x1.bn", training)
    total = dense + point + skip
    return gated(total, lambda *index: sigmoid(total[index]))


def ela(x, p, training, kernel_size=7, norm_groups=16, width=1):
    kernel = p["conv.weight"]

    def gates(strip):
        """(C, length) -> (C, length)"""
        channels, length = strip.shape
        scores = np.zeros_like(strip)
        for c, i, k, u in product(range(channels), range(length), range(width), range(kernel_size)):
            place = i + u - kernel_size // 2
            if 0 <= place < length:
                scores[c, i] += kernel[c, k, u] * strip[c // width * width + k, place]
        size = channels // norm_groups
        for g in range(norm_groups):
            group = slice(g * size, (g + 1) * size)
            flat = normalise(scores[group].reshape(-1), 1.0, 0.0, GROUP_NORM_EPS)
            scores[group] = np.array(flat).reshape(size, length)
        for c, i in product(range(channels), range(length)):
            scores[c, i] = sigmoid(p["gn.weight"][c] * scores[c, i] + p["gn.bias"][c])
        return scores

    channels, height, across = x.shape[1:]
    along_h, along_w = [], []
    for image in x:
        rows = [[mean(image[c, i]) for i in range(height)] for c in range(channels)]
        columns = [[mean(image[c, :, j]) for j in range(across)] for c in range(channels)]
        along_h.append(gates(np.array(rows)))
        along_w.append(gates(np.array(columns)))
    return gated(x, lambda image, c, i, j: along_h[image][c, i] * along_w[image][c, j])


def adaptive_pool(image, rows, columns):
    """(H, W) -> (rows, columns): means of patches from floor(i H / rows) to ceil((i + 1) H / rows)."""
    height, width = image.shape
    out = np.zeros((rows, columns))
    for i, j in product(range(rows), range(columns)):
        down = range(i * height // rows, -(-(i + 1) * height // rows))
        along = range(j * width // columns, -(-(j + 1) * width // columns))
        out[i, j] = mean(image[u, v] for u in down for v in along)
    return out


def mlca(x, p, training, kernel_size=None, local_size=5, local_weight=0.5):
    channels, height, width = x.shape[1:]

    def along(values, kernel):
        """The values after a 1-D convolution and a sigmoid."""
        found = []
        for place in range(len(values)):
            near = ((place + u - len(kernel) // 2, weight) for u, weight in enumerate(kernel))
            found.append(sigmoid(math.fsum(w * values[at] for at, w in near if 0 <= at < len(values))))
        return found

    out = np.zeros_like(x)
    for index, image in enumerate(x):
        patches = np.stack([adaptive_pool(channel, local_size, local_size) for channel in image])
        local = along([v for vector in pixels(patches) for v in vector], p["conv_local.weight"][0, 0])
        whole = along([mean(patch.reshape(-1)) for patch in patches], p["conv.weight"][0, 0])
        for c in range(channels):
            mixed = [
                (1 - local_weight) * whole[c] + local_weight * local[patch * channels + c]
                for patch in range(local_size**2)
            ]
            gate = adaptive_pool(np.array(mixed).reshape(local_size, local_size), height, width)
            out[index, c] = image[c] * gate
    return out


def depthwise(x, p, name, dilation=1):
    """A depthwise convolution with zero padding that keeps the size; its kernel may be a strip."""
    kernel, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    rows, columns = kernel.shape[2:]
    _, _, height, width = x.shape
    out = np.zeros_like(x)
    for image, c, i, j in product(*map(range, x.shape)):
        total = bias[c]
        for u, v in product(range(rows), range(columns)):
            row, column = i + (u - rows // 2) * dilation, j + (v - columns // 2) * dilation
            if 0 <= row < height and 0 <= column < width:
                total += kernel[c, 0, u, v] * x[image, c, row, column]
        out[image, c, i, j] = total
    return out


def lska(x, p, training, kernel_size=7):
    dilation = 2 if kernel_size < 23 else 3
    y = depthwise(depthwise(x, p, "conv0h"), p, "conv0v")
    y = depthwise(depthwise(y, p, "conv_spatial_h", dilation), p, "conv_spatial_v", dilation)
    factors = np.stack([pointwise(image, p, "conv1") for image in y])
    return gated(x, lambda *index: factors[index])


def cpca(x, p, training, reduction=4):
    def mixed(y):
        return np.stack([pointwise(image, p, "conv") for image in y])

    def mlp(vector):
        hidden = relu(linear(p["ca.fc1.weight"], p["ca.fc1.bias"], vector))
        return [sigmoid(v) for v in linear(p["ca.fc2.weight"], p["ca.fc2.bias"], hidden)]

    y = mixed(x)
    y = gated(y, lambda *index: (1 + math.erf(y[index] / math.sqrt(2))) / 2)  # GELU
    means = [mlp([mean(c.reshape(-1)) for c in image]) for image in y]
    peaks = [mlp([max(c.reshape(-1)) for c in image]) for image in y]
    y = gated(y, lambda image, c, i, j: means[image][c] + peaks[image][c])
    near = depthwise(y, p, "dconv5_5")
    total = near.copy()
    for length in (7, 11, 21):
        total += depthwise(depthwise(near, p, f"dconv1_{length}"), p, f"dconv{length}_1")
    scores = mixed(total)
    return mixed(gated(y, lambda *index: scores[index]))


def a2(x, p, training, reduction=4, residual=True):
    out = np.zeros_like(x)
    for index, image in enumerate(x):
        features = pixels(pointwise(image, p, "convA"))
        maps = [softmax(channel.reshape(-1)) for channel in pointwise(image, p, "convB")]
        gathered = [weighted(shares, features) for shares in maps]
        mixtures = [weighted(softmax(v), gathered) for v in pixels(pointwise(image, p, "convV"))]
        added = pointwise(as_map(mixtures, image), p, "conv_reconstruct")
        out[index] = image + added if residual else added
    return out


def non_local(x, p, training, reduction=2, subsample=True):
    inner = ".0" if subsample else ""

    def fewer(image):
        if not subsample:
            return image
        channels, height, width = image.shape
        out = np.zeros((channels, max(height // 2, 1), max(width // 2, 1)))
        for c, i, j in product(*map(range, out.shape)):
            window = image[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            out[c, i, j] = max(window.reshape(-1))
        return out

    added = np.zeros_like(x)
    for index, image in enumerate(x):
        theta = pixels(pointwise(image, p, "theta"))
        phi = pixels(fewer(pointwise(image, p, f"phi{inner}")))
        g = pixels(fewer(pointwise(image, p, f"g{inner}")))
        found = [weighted(softmax([dot(one, other) for other in phi]), g) for one in theta]
        added[index] = pointwise(as_map(found, image), p, "W.0")
    return x + batch_norm(added, p, "W.1", training)


LOOPS = {
    "A2": a2,
    "BAM": bam,
    "CA": ca,
    "CBAM": cbam,
    "CPCA": cpca,
    "ECA": eca,
    "ELA": ela,
    "EMA": ema,
    "GAM": gam,
    "GC": gc,
    "LSKA": lska,
    "MLCA": mlca,
    "NAM": nam,
    "NonLocal": non_local,
    "ParNet": parnet,
    "PolarizedSA": polarized,
    "SA": sa,
    "SE": se,
    "SGE": sge,
    "SRM": srm,
    "SimAM": simam,
    "Triplet": triplet,
}
