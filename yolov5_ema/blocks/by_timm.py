"""timm's attention layers as blocks: ``timm.eca`` is what timm calls ``eca``, in the timm that is installed.

timm (extra ``timm``) is imported when one of them is used. The class of a block is derived from timm's own, so it
computes what timm computes, and state dicts of timm's layers load. Checkpoints name it: ``timm.eca`` is
``yolov5_ema.blocks.by_timm.TimmEca``.

Deviations:
- the first parameter is always called ``channels``, and only options that keep the shape of the map are taken;
- ``timm.sk`` can be trained with one image, where timm's own raises an error.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Container, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from yolov5_ema.blocks.common import (
    check_bool,
    check_number,
    check_odd_kernel,
    check_positive_int,
    is_single_value,
    zero_,
)
from yolov5_ema.blocks.registry import BlockInfo, described, get_block, register_on_demand
from yolov5_ema.errors import UserError
from yolov5_ema.texts import first_line, listed

_PREFIX = "timm."
# options that several layers have: those of the number of hidden channels, and all of some
_HIDDEN = "rd_ratio rd_channels rd_divisor"
_CBAM = f"{_HIDDEN} spatial_kernel_size mlp_bias"
_COORD = f"{_HIDDEN} se_factor bias has_skip"
_GC = f"use_attn {_HIDDEN}"
# kernels that keep the size of the map only if they are odd
_KERNELS = ("kernel_size", "spatial_kernel_size", "r")

LIMITS = {
    "gate": "its output is not its input times a factor between 0 and 1",
    "pixel": "training on a batch that has one value for each channel raises an error",
    "float16": "large values or weights can overflow in float16",
    "precision": "half precision changes its output by more than 0.6 % (float16) or 5 % (bfloat16)",
    "autocast": "under autocast its output has the lower precision",
    "tracer": "tracing it warns of a check of sizes, but the traced graph is right at other sizes",
    "channels_last": "its weights cannot be stored in the memory format channels_last",
    "norms": "YOLOv5 does not set eps and momentum of its BatchNorms, because they are not nn.BatchNorm2d itself",
    "opencv": "the default engine of OpenCV 5 cannot run its ONNX behind a convolution, but its classic engine can",
    "openvino": "OpenVINO cannot read its ONNX if torch's newer exporter (dynamo) wrote it",
}
"""What holds for every block of this package, but not for each of timm's."""


class Layer(NamedTuple):
    """One of timm's layers.

    Attributes:
        paper: where it was published.
        options: those that a row can give, as words.
        limits: keys of `LIMITS`, as words.
        last: the submodules without whose parameters its gate is constant, as words; empty if it is not a gate.
    """

    paper: str
    options: str = ""
    limits: str = ""
    last: str = ""


LAYERS = {
    "timm.cbam": Layer(
        "Woo et al., ECCV 2018, arXiv 1807.06521", _CBAM, "pixel float16 norms opencv", "channel.fc2 spatial.conv.bn"
    ),
    "timm.ceca": Layer(
        "ECA with circular padding; Wang et al., CVPR 2020, arXiv 1910.03151", limits="openvino", last="conv"
    ),
    "timm.coord": Layer("Hou et al., CVPR 2021, arXiv 2103.02907", _COORD, "float16", "conv_h conv_w"),
    "timm.eca": Layer("Wang et al., CVPR 2020, arXiv 1910.03151", last="conv"),
    "timm.ecam": Layer(
        "ECA with a hidden layer; Wang et al., CVPR 2020, arXiv 1910.03151", _HIDDEN, "float16", "conv2"
    ),
    "timm.ela": Layer(
        "Xu and Wan, 2024, arXiv 2403.01123", "kernel_size bias has_skip", "float16 tracer", "norm_h norm_w"
    ),
    "timm.ese": Layer("Lee and Park, CVPR 2020, arXiv 1911.06667", "add_maxpool", last="fc"),
    "timm.gc": Layer(
        "GC that multiplies; Cao et al., ICCV workshops 2019, arXiv 1904.11492", _GC, "float16", "mlp_scale.fc2"
    ),
    "timm.gca": Layer(
        "GC that adds; Cao et al., ICCV workshops 2019, arXiv 1904.11492", _GC, "gate float16 opencv", "mlp_add.fc2"
    ),
    "timm.lambda": Layer(
        "Bello, ICLR 2021, arXiv 2102.08602",
        "num_heads dim_head r qkv_bias",
        "gate pixel float16 precision autocast channels_last",
    ),
    "timm.lcbam": Layer(
        "lighter CBAM; Woo et al., ECCV 2018, arXiv 1807.06521",
        _CBAM,
        "pixel float16 norms opencv",
        "channel.fc2 spatial.conv.bn",
    ),
    "timm.nl": Layer("Wang et al., CVPR 2018, arXiv 1711.07971", f"use_scale {_HIDDEN}", "gate pixel float16", "norm"),
    "timm.scoord": Layer("simpler CA; Hou et al., CVPR 2021, arXiv 2103.02907", _COORD, "float16", "fc_h fc_w"),
    "timm.se": Layer("Hu et al., CVPR 2018, arXiv 1709.01507", f"{_HIDDEN} add_maxpool bias", "float16", "fc2"),
    "timm.sk": Layer(
        "Li et al., CVPR 2019, arXiv 1903.06586",
        f"{_HIDDEN} groups keep_3x3 split_input",
        "gate pixel float16 precision autocast tracer norms",
    ),
    "timm.splat": Layer(
        "Zhang et al., 2020, arXiv 2004.08955", f"{_HIDDEN} kernel_size groups bias radix", "gate float16 autocast"
    ),
    "timm.strip": Layer(
        "strip pooling; Hou et al., CVPR 2020, arXiv 2003.13328",
        "use_conv kernel_size bias has_skip",
        "float16 opencv",
        "conv_h conv_w",
    ),
}
"""The blocks, by their names in rows. The order of the options is that of numbers in a row."""

LEFT_OUT = {
    "timm.bat": "height and width must be multiples of its block size, 7, and those of a detector's maps are not",
    "timm.bottleneck": "it is built for one height and width, and a detector's maps have many",
    "timm.ge": "timm cannot build it for a number of channels alone",
    "timm.halo": "height and width must be multiples of its block size, 8, and those of a detector's maps are not",
}
"""The other attention layers of timm, and why they are not blocks."""


class PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm of a pooled map: in training it takes a batch of one image, where it uses the running statistics."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        of_batch = self.training and not is_single_value(x, self.num_features)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            of_batch,
            self.momentum,  # type: ignore[arg-type]
            self.eps,
        )


class OfTimm(nn.Module):
    """What a block adds to the layer of timm that it is derived from: checked options, and a ``repr`` that names them.

    Args:
        channels: channels C of the feature map.
        values: options by their order.
        named: options by name, and ``device`` and ``dtype``.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        ValueError: the layer cannot be built for these channels and options.
    """

    block: ClassVar[str]
    fixed: ClassVar[Mapping[str, Any]]
    options = ""

    def __init__(self, channels: int, *values: Any, **named: Any) -> None:
        signature = inspect.signature(type(self))
        given = signature.bind(check_positive_int(self.block, "channels", channels), *values, **named).arguments
        chosen = given.keys() - {"channels", "device", "dtype"}
        for name in chosen:
            given[name] = _checked(self.block, name, signature.parameters[name].default, given[name])
        options = {**self.fixed, **given}
        try:
            super().__init__(options.pop("channels"), **options)
        except (AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            said = "" if isinstance(error, AssertionError) else f": {first_line(error)}"
            wanted = listed(f"{name}={given[name]}" for name in signature.parameters if name in chosen)
            raise ValueError(
                f"{self.block}: timm cannot build it for {channels} channels{wanted and f' with {wanted}'}{said}"
            ) from error
        self.channels = channels
        said = ", ".join(f"{name}={value}" for name, value in _options(signature, given))
        if said:
            self.options = said
        if self.block == "timm.sk":
            bn: Any = self.get_submodule("attn.bn")
            where = {"device": bn.weight.device, "dtype": bn.weight.dtype}
            self.get_submodule("attn").bn = PooledBatchNorm(bn.num_features, **where)

    def zero_gate_(self) -> None:
        """Set the last parameters to zero, so that the gate is constant; raises a ``ValueError`` if there is none."""
        last = LAYERS[self.block].last.split()
        if not last:
            raise ValueError(f"{self.block} has no gate that could be constant")
        zero_(*map(self.get_submodule, last))

    def _get_name(self) -> str:
        return type(self).block

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.options}" if self.options else f"{self.channels}"


def _options(signature: inspect.Signature, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and name != "channels":
            yield name, given.get(name, parameter.default)


def _checked(block: str, option: str, default: Any, value: Any) -> Any:
    if isinstance(default, bool):
        return check_bool(block, option, value)
    if isinstance(default, float):
        return check_number(block, option, value, 0, 1)
    if value is None and default is None:
        return None
    if option in _KERNELS:
        return check_odd_kernel(block, value, option)
    return check_positive_int(block, option, value)


def _made(name: str) -> BlockInfo:
    """The block of a name in `LAYERS`; raises a `UserError` if the timm that is installed does not have it."""
    try:
        # the caller may build a model without memory (meta device), and what timm makes at its import must have some
        with torch.device("cpu"):
            found = importlib.import_module("timm.layers").get_attn(name.removeprefix(_PREFIX))
    except Exception as error:  # with a torchvision that does not fit, the import ends with a RuntimeError
        raise UserError(
            f"{name} is an attention layer of timm 1.0.30 or later, which cannot be used here ({first_line(error)}): "
            "pip install 'yolov5-ema[timm]'"
        ) from error
    theirs: Any = found.func if isinstance(found, functools.partial) else found
    fixed = found.keywords if isinstance(found, functools.partial) else {}
    layer = LAYERS[name]
    defaults = inspect.signature(theirs).parameters
    either, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("channels", either)]
    parameters += [
        inspect.Parameter(option, either, default=defaults[option].default) for option in layer.options.split()
    ]
    parameters += [inspect.Parameter(option, keyword, default=None) for option in ("device", "dtype")]
    content = {
        **{"__module__": __name__, "__doc__": f"timm's {theirs.__name__}. {layer.paper}"},
        **{"__signature__": inspect.Signature(parameters), "block": name, "fixed": fixed},
    }
    cls = type(_class_name(name), (OfTimm, theirs), content)
    return described(cls, name, layer.paper, tuple(LIMITS[key] for key in layer.limits.split()))


def _class_name(name: str) -> str:
    return f"Timm{name.removeprefix(_PREFIX).capitalize()}"


def __getattr__(name: str) -> Any:
    """The class of a block, such as ``TimmEca``. Checkpoints name it, so it is found before a row has used it."""
    for block in LAYERS:
        if _class_name(block) == name:
            return get_block(block)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def classes_for(names: Container[str]) -> set[type]:
    """The classes, other than torch's, of which the blocks in a checkpoint are made.

    Args:
        names: the dotted names of classes in the checkpoint. Blocks that are not among them are not looked at.

    Raises:
        UserError: one of the blocks is there, but timm is not installed.
    """
    blocks = [get_block(name)(64, device="meta") for name in LAYERS if f"{__name__}.{_class_name(name)}" in names]
    kinds = {type(module) for block in blocks for module in block.modules()}
    return {kind for kind in kinds if not kind.__module__.startswith("torch.")}


def is_part(name: str) -> bool:
    """Whether a checkpoint may hold the class with this dotted name because of a block; False if timm is missing."""
    return name.startswith((__name__, "timm.layers.")) and name in _parts()


@functools.cache
def _parts() -> frozenset[str]:
    try:
        found = classes_for({f"{__name__}.{_class_name(name)}" for name in LAYERS})
    except UserError:
        return frozenset()
    return frozenset(f"{cls.__module__}.{cls.__qualname__}" for cls in found)


register_on_demand(LAYERS, _made, LEFT_OUT)
