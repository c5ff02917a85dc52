"""Checks that a layer is the plain one that a block built: kernels then use its parameters instead of calling it."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# torch 2.6 does not have a function to check for these
_GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global{name}") for name in _HOOKS)


def is_watched(module: nn.Module) -> bool:
    """Whether calling a module does more than its class does: it has a hook, or a global hook or another forward."""
    state = module.__dict__
    for name in _HOOKS:
        if state[name]:
            return True
    return "forward" in state or any(_GLOBAL_HOOKS)


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer has exactly this class, and no hooks or forward of its own.

    Parametrizations create a new class. Pruning, and the older weight_norm and spectral_norm, use hooks. Adapters,
    quantized and quantization-aware layers have other classes.
    """
    return type(layer) is kind and not is_watched(layer)


def is_same_size_convolution(
    layer: nn.Module, channels: tuple[int, int], size: int, bias: bool, groups: int = 1
) -> bool:
    """Whether a layer is a plain ``nn.Conv2d(*channels, size, groups=groups)`` that keeps the size of maps."""
    if not is_untouched(layer, nn.Conv2d):
        return False
    assert isinstance(layer, nn.Conv2d)
    found = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.padding)
    if found != (*channels, (size, size), (size // 2, size // 2)) or size % 2 == 0:
        return False
    geometry = (layer.stride, layer.dilation, layer.groups, layer.padding_mode)
    return geometry == ((1, 1), (1, 1), groups, "zeros") and (layer._parameters.get("bias") is not None) == bias


def is_group_norm(layer: nn.Module, groups: int, channels: int) -> bool:
    """Whether a layer is a plain ``nn.GroupNorm(groups, channels)`` with weight and bias."""
    if not is_untouched(layer, nn.GroupNorm):
        return False
    assert isinstance(layer, nn.GroupNorm)
    sizes = (layer.num_groups, layer.num_channels)
    return sizes == (groups, channels) and layer.weight is not None and layer.bias is not None
