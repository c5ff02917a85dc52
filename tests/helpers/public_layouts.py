"""Names and shapes of the parameters in the public reference implementations; no forward passes."""

from __future__ import annotations

import math

import torch
from conftest import randomise  # noqa: F401
from torch import nn


class PublicEMA(nn.Module):
    """The options ``residual`` and ``depthwise`` are not public; their parameters are named as here."""

    def __init__(
        self, channels, factor=32, groups=None, cross_spatial=True, norm_groups=None, residual=False, depthwise=False
    ):
        super().__init__()
        k = channels // (groups or factor)
        self.gn = nn.GroupNorm(k, k)
        self.conv1x1 = nn.Conv2d(k, k, 1)
        self.conv3x3 = nn.Conv2d(k, k, 3, padding=1, groups=k if depthwise else 1)
        if residual:
            self.gate = nn.Module()
            self.gate.weight = nn.Parameter(torch.zeros(1))


class PublicCA(nn.Module):
    def __init__(self, channels, reduction=32):
        super().__init__()
        hidden = max(8, channels // reduction)
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_h = nn.Conv2d(hidden, channels, 1)
        self.conv_w = nn.Conv2d(hidden, channels, 1)


class PublicCBAM(nn.Module):
    def __init__(self, channels, reduction=16, kernel_size=7):
        super().__init__()
        hidden = channels // reduction
        self.ChannelGate = nn.Module()
        self.ChannelGate.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.SpatialGate = nn.Module()
        self.SpatialGate.spatial = nn.Module()
        self.SpatialGate.spatial.conv = nn.Conv2d(2, 1, kernel_size, bias=False)
        self.SpatialGate.spatial.bn = nn.BatchNorm2d(1)


class PublicSA(nn.Module):
    def __init__(self, channels, groups=64):
        super().__init__()
        k = channels // (2 * groups)
        for name in ("cweight", "cbias", "sweight", "sbias"):
            self.register_parameter(name, nn.Parameter(torch.zeros(1, k, 1, 1)))
        self.gn = nn.GroupNorm(k, k)


class PublicECA(nn.Module):
    def __init__(self, channels, kernel_size=None):
        super().__init__()
        if kernel_size is None:
            kernel_size = int((math.log2(channels) + 1) / 2) // 2 * 2 + 1
        self.conv = nn.Conv1d(1, 1, kernel_size, bias=False)


class PublicNAM(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.Channel_Att = nn.Module()
        self.Channel_Att.bn2 = nn.BatchNorm2d(channels)


class PublicSE(nn.Module):
    def __init__(self, channels, reduction=16, bias=False):
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=bias),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=bias),
            nn.Sigmoid(),
        )


class PublicSGE(nn.Module):
    def __init__(self, channels, groups=64):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, groups, 1, 1))


class PublicSimAM(nn.Module):
    def __init__(self, channels, e_lambda=1e-4):
        super().__init__()


class PublicTriplet(nn.Module):
    def __init__(self, channels, kernel_size=7, spatial=True):
        super().__init__()
        for gate in ("cw", "hc", "hw") if spatial else ("cw", "hc"):
            layers = {"conv": nn.Conv2d(2, 1, kernel_size, bias=False), "bn": nn.BatchNorm2d(1)}
            self.add_module(gate, nn.ModuleDict({"conv": nn.ModuleDict(layers)}))


class PublicSRM(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.cfc = nn.Parameter(torch.zeros(channels, 2))
        self.bn = nn.BatchNorm2d(channels)


class PublicPolarizedSA(nn.Module):
    def __init__(self, channels, mode="sequential"):
        super().__init__()
        half = channels // 2
        outputs = {"conv_q_right": 1, "conv_v_right": half, "conv_q_left": half, "conv_v_left": half}
        for name, out in outputs.items():
            self.add_module(name, nn.Conv2d(channels, out, 1, bias=False))
        self.conv_up = nn.Conv2d(half, channels, 1, bias=False) if mode == "parallel" else bottleneck(half, 4, channels)


def bottleneck(channels, reduction, outputs):
    hidden = channels // reduction
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(), nn.Conv2d(hidden, outputs, 1)
    )


class PublicGC(nn.Module):
    def __init__(self, channels, reduction=16, fusion="add"):
        super().__init__()
        self.conv_mask = nn.Conv2d(channels, 1, 1)
        self.add_module(f"channel_{fusion}_conv", bottleneck(channels, reduction, channels))


class PublicBAM(nn.Module):
    def __init__(self, channels, reduction=16, dilation=4, combine="sum"):
        super().__init__()
        hidden = channels // reduction
        layers = {
            "channel_att": {
                "gate_c_fc_0": nn.Linear(channels, hidden),
                "gate_c_bn_1": nn.BatchNorm1d(hidden),
                "gate_c_fc_final": nn.Linear(hidden, channels),
            },
            "spatial_att": {
                "gate_s_conv_reduce0": nn.Conv2d(channels, hidden, 1),
                "gate_s_bn_reduce0": nn.BatchNorm2d(hidden),
                "gate_s_conv_di_0": nn.Conv2d(hidden, hidden, 3),
                "gate_s_bn_di_0": nn.BatchNorm2d(hidden),
                "gate_s_conv_di_1": nn.Conv2d(hidden, hidden, 3),
                "gate_s_bn_di_1": nn.BatchNorm2d(hidden),
                "gate_s_conv_final": nn.Conv2d(hidden, 1, 1),
            },
        }
        for part, gate in (("channel_att", "gate_c"), ("spatial_att", "gate_s")):
            self.add_module(part, nn.ModuleDict({gate: nn.ModuleDict(layers[part])}))


class PublicGAM(nn.Module):
    def __init__(self, channels, reduction=4, kernel_size=7):
        super().__init__()
        hidden = channels // reduction
        self.channel_attention = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.spatial_attention = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, kernel_size),
            nn.BatchNorm2d(channels),
        )


class PublicParNet(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(channels)
        for name, kernel in (("rbr_dense", 3), ("rbr_1x1", 1)):
            layers = {"conv": nn.Conv2d(channels, channels, kernel, bias=False), "bn": nn.BatchNorm2d(channels)}
            self.add_module(name, nn.ModuleDict(layers))
        excite = nn.Conv2d(channels, channels, 1, bias=False)
        self.se = nn.ModuleDict({"cvsig": nn.ModuleDict({"conv": excite})})


class PublicELA(nn.Module):
    def __init__(self, channels, kernel_size=7, norm_groups=16, width=1):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size, groups=channels // width, bias=False)
        self.gn = nn.GroupNorm(norm_groups, channels)


class PublicMLCA(nn.Module):
    def __init__(self, channels, kernel_size=None, local_size=5, local_weight=0.5):
        super().__init__()
        kernel_size = kernel_size or int((math.log2(channels) + 1) / 2) // 2 * 2 + 1
        self.conv = nn.Conv1d(1, 1, kernel_size, bias=False)
        self.conv_local = nn.Conv1d(1, 1, kernel_size, bias=False)


class PublicLSKA(nn.Module):
    def __init__(self, channels, kernel_size=7):
        super().__init__()
        first = 3 if kernel_size < 23 else 5
        second = {7: 3, 11: 5, 23: 7, 35: 11, 41: 13, 53: 17}[kernel_size]
        kernels = {"0h": (1, first), "0v": (first, 1), "_spatial_h": (1, second), "_spatial_v": (second, 1)}
        for name, kernel in kernels.items():
            self.add_module(f"conv{name}", nn.Conv2d(channels, channels, kernel, groups=channels))
        self.conv1 = nn.Conv2d(channels, channels, 1)


class PublicCPCA(nn.Module):
    def __init__(self, channels, reduction=4):
        super().__init__()
        hidden = channels // reduction
        self.ca = nn.ModuleDict({"fc1": nn.Conv2d(channels, hidden, 1), "fc2": nn.Conv2d(hidden, channels, 1)})
        for rows, columns in ((5, 5), *((a, b) for k in (7, 11, 21) for a, b in ((1, k), (k, 1)))):
            conv = nn.Conv2d(channels, channels, (rows, columns), groups=channels)
            self.add_module(f"dconv{rows}_{columns}", conv)
        self.conv = nn.Conv2d(channels, channels, 1)


class PublicA2(nn.Module):
    def __init__(self, channels, reduction=4, residual=True):
        super().__init__()
        features = channels // reduction
        for name in ("convA", "convB", "convV"):
            self.add_module(name, nn.Conv2d(channels, features, 1))
        self.conv_reconstruct = nn.Conv2d(features, channels, 1)


class PublicNonLocal(nn.Module):
    def __init__(self, channels, reduction=2, subsample=True):
        super().__init__()
        hidden = channels // reduction
        self.theta = nn.Conv2d(channels, hidden, 1)
        for name in ("phi", "g"):
            conv = nn.Conv2d(channels, hidden, 1)
            self.add_module(name, nn.Sequential(conv, nn.MaxPool2d(2)) if subsample else conv)
        self.W = nn.Sequential(nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels))


PUBLIC = {
    "A2": PublicA2,
    "BAM": PublicBAM,
    "CA": PublicCA,
    "CBAM": PublicCBAM,
    "CPCA": PublicCPCA,
    "ECA": PublicECA,
    "ELA": PublicELA,
    "EMA": PublicEMA,
    "GAM": PublicGAM,
    "GC": PublicGC,
    "LSKA": PublicLSKA,
    "MLCA": PublicMLCA,
    "NAM": PublicNAM,
    "NonLocal": PublicNonLocal,
    "ParNet": PublicParNet,
    "PolarizedSA": PublicPolarizedSA,
    "SA": PublicSA,
    "SE": PublicSE,
    "SGE": PublicSGE,
    "SRM": PublicSRM,
    "SimAM": PublicSimAM,
    "Triplet": PublicTriplet,
}
# the smallest number of channels that each block accepts with its default options, where it is not 16 or less
DEFAULT_CHANNELS = {"EMA": 32, "GC": 32, "SA": 128, "SGE": 64}


# block, channels, options: defaults and others, one channel per group, hidden sizes that don't divide evenly
CASES = [
    ("EMA", 8, {"groups": 2}),
    ("EMA", 8, {"groups": 8}),
    ("EMA", 6, {"groups": 1}),
    ("EMA", 12, {"factor": 4}),
    ("EMA", 8, {"groups": 2, "cross_spatial": False}),
    ("EMA", 64, {}),
    ("EMA", 8, {"groups": 2, "norm_groups": 1}),
    ("EMA", 12, {"groups": 2, "norm_groups": 3}),
    ("EMA", 8, {"groups": 8, "norm_groups": 1}),
    ("EMA", 8, {"groups": 2, "residual": True}),
    ("EMA", 8, {"groups": 2, "depthwise": True}),
    ("EMA", 8, {"groups": 2, "norm_groups": 2, "residual": True, "depthwise": True}),
    ("EMA", 8, {"groups": 2, "norm_groups": 1, "residual": True, "depthwise": True, "cross_spatial": False}),
    ("CA", 8, {}),
    ("CA", 32, {"reduction": 2}),
    ("CBAM", 16, {}),
    ("CBAM", 8, {"reduction": 2, "kernel_size": 3}),
    ("CBAM", 7, {"reduction": 3, "kernel_size": 1}),
    ("SA", 8, {"groups": 2}),
    ("SA", 12, {"groups": 6}),
    ("SA", 18, {"groups": 3}),
    ("SA", 128, {}),
    ("ECA", 1, {}),
    ("ECA", 8, {}),
    ("ECA", 128, {}),
    ("ECA", 3, {"kernel_size": 7}),
    ("NAM", 1, {}),
    ("NAM", 10, {}),
    ("SE", 16, {}),
    ("SE", 9, {"reduction": 4, "bias": True}),
    ("SGE", 64, {}),
    ("SGE", 6, {"groups": 2}),
    ("SGE", 3, {"groups": 3}),
    ("SRM", 1, {}),
    ("SRM", 7, {}),
    ("SimAM", 5, {}),
    ("SimAM", 3, {"e_lambda": 0.1}),
    ("Triplet", 1, {}),
    ("Triplet", 6, {}),
    ("Triplet", 5, {"kernel_size": 3, "spatial": False}),
    ("PolarizedSA", 16, {}),
    ("PolarizedSA", 5, {"mode": "parallel"}),
    ("GC", 32, {}),
    ("GC", 9, {"reduction": 4, "fusion": "mul"}),
    ("BAM", 16, {}),
    ("BAM", 7, {"reduction": 3, "dilation": 2}),
    ("BAM", 6, {"reduction": 2, "dilation": 1, "combine": "product"}),
    ("GAM", 4, {}),
    ("GAM", 7, {"reduction": 3, "kernel_size": 3}),
    ("ParNet", 1, {}),
    ("ParNet", 5, {}),
    ("ELA", 16, {}),
    ("ELA", 6, {"kernel_size": 3, "norm_groups": 2, "width": 3}),
    ("MLCA", 1, {}),
    ("MLCA", 8, {}),
    ("MLCA", 3, {"kernel_size": 3, "local_size": 2, "local_weight": 0.2}),
    ("LSKA", 4, {}),
    ("LSKA", 3, {"kernel_size": 11}),
    ("LSKA", 2, {"kernel_size": 53}),
    ("CPCA", 4, {}),
    ("CPCA", 7, {"reduction": 2}),
    ("A2", 8, {}),
    ("A2", 7, {"reduction": 3, "residual": False}),
    ("NonLocal", 6, {}),
    ("NonLocal", 7, {"reduction": 3, "subsample": False}),
]
CASE_IDS = [
    "-".join([name, str(channels), *(f"{k}={v}" for k, v in options.items())]) for name, channels, options in CASES
]
