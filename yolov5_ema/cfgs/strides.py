"""What a row's module does to the size of the maps, judged by its name and arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from yolov5_ema.cfgs.values import is_number

# How a module changes the stride: the position of the stride in a row's args, and its default.
_STRIDE_ARG: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(("Conv", "Conv2", "CrossConv", "DWConv", "Focus", "GhostBottleneck", "GhostConv"), (2, 1)),
    **dict.fromkeys(("MixConv2d", "RepConv", "SCDown", "nn.ConvTranspose2d"), (2, 1)),
    **dict.fromkeys(("ConvTranspose", "ResNetLayer"), (2, 2)),
    **dict.fromkeys(("Contract", "Expand"), (0, 2)),
    "nn.Upsample": (1, None),
}
_ENLARGES = frozenset({"ConvTranspose", "Expand", "nn.ConvTranspose2d", "nn.Upsample"})
_FIXED = {"AConv": 2.0, "ADown": 2.0, "HGStem": 4.0}
_SAME_SIZE = re.compile(
    r"A2C2f|C1$|C2$|C2f|C2PSA|C3|RepC3|SPP|\w*ELAN|Bottleneck|HGBlock|AIFI|PSA|CBLinear|CBFuse|Concat$"
    r"|nn\.(Identity|BatchNorm2d|ZeroPad2d|Dropout2d?|SiLU|ReLU|LeakyReLU)$"
)
_PREDICTS = re.compile(r"\w*(Detect|Segment|Pose|OBB|Classify|RTDETRDecoder|Depth)\d*")


def gives_predictions(module: Any) -> bool:
    """Whether a module, given as a name or a class, gives predictions instead of a feature map.

    Example:
        >>> [gives_predictions(name) for name in ("Detect", "v10Detect", "Segment26", "C3")]
        [True, True, True, False]
    """
    return _PREDICTS.fullmatch(name_of(module)) is not None


def name_of(module: Any) -> str:
    """The name of a row's module; a dict made in Python may have classes instead of names."""
    return module if isinstance(module, str) else module.__name__


def stride_factor(module: Any, args: Sequence[Any]) -> float | None:
    """The factor by which a module multiplies the stride, or None if it does not follow from the row.

    Example:
        >>> stride_factor("Conv", [64, 3, 2]), stride_factor("nn.Upsample", ["None", 2, "nearest"])
        (2.0, 0.5)
    """
    name = name_of(module)
    if name in _FIXED:
        return _FIXED[name]
    if name == "ResNetLayer" and args[3:4] == [True]:
        return 4.0
    if _SAME_SIZE.match(name):
        return 1.0
    # its stride is its kernel size by default
    if name == "nn.MaxPool2d":
        return _positive((args[1:2] or args[:1] or [None])[0])
    if name not in _STRIDE_ARG:
        return 1.0 if _is_registered(name) else None
    position, default = _STRIDE_ARG[name]
    factor = _positive(args[position] if len(args) > position else default)
    if factor is None:
        return None
    if name == "Focus":
        return 2.0 * factor
    return 1.0 / factor if name in _ENLARGES else factor


def _is_registered(module: str) -> bool:
    # Not at the top: the registry imports torch, and only the user's own YAMLs need it.
    from yolov5_ema.blocks.registry import block_of

    return bool(block_of(module))


def _positive(value: Any) -> float | None:
    return float(value) if is_number(value) and value > 0 else None
