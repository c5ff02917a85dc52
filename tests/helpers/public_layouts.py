"""Names and shapes of the parameters in the public reference implementations; no forward passes."""

from __future__ import annotations

import math

import torch
from conftest import randomise  # noqa: F401
from torch import nn


class PublicEMA(nn.Module):
    def __init__(self, channels, factor=32, groups=None, cross_spatial=True):
        super().__init__()
        k = channels // (groups or factor)
        self.gn = nn.GroupNorm(k, k)
        self.conv1x1 = nn.Conv2d(k, k, 1)
        self.conv3x3 = nn.Conv2d(k, k, 3, padding=1)


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


PUBLIC = {
    "CA": PublicCA,
    "CBAM": PublicCBAM,
    "ECA": PublicECA,
    "EMA": PublicEMA,
    "NAM": PublicNAM,
    "SA": PublicSA,
    "SE": PublicSE,
    "SGE": PublicSGE,
    "SRM": PublicSRM,
    "SimAM": PublicSimAM,
    "Triplet": PublicTriplet,
}
# the smallest number of channels that each block accepts with its default options, where it is not 16 or less
DEFAULT_CHANNELS = {"EMA": 32, "SA": 128, "SGE": 64}


# block, channels, options: defaults and others, one channel per group, hidden sizes that don't divide evenly
CASES = [
    ("EMA", 8, {"groups": 2}),
    ("EMA", 8, {"groups": 8}),
    ("EMA", 6, {"groups": 1}),
    ("EMA", 12, {"factor": 4}),
    ("EMA", 8, {"groups": 2, "cross_spatial": False}),
    ("EMA", 64, {}),
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
]
CASE_IDS = [f"{name}-{channels}-{'-'.join(map(str, options.values()))}" for name, channels, options in CASES]
