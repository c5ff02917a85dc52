"""Whether a layer is the plain one that a block built, so that its parameters say all that calling it would do."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# torch's own function that asks for these is not in 2.6
_GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global{name}") for name in _HOOKS)


def is_watched(module: nn.Module) -> bool:
    """Whether calling it does more than its class says: it has a hook, all modules have, or its forward is another."""
    state = module.__dict__
    for name in _HOOKS:
        if state[name]:
            return True
    return "forward" in state or any(_GLOBAL_HOOKS)


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is of this very class, and nobody watches it.

    Parametrisations make a class of their own; pruning, and the older weight_norm and spectral_norm, are hooks;
    adapters, quantised and quantisation-aware layers are of other classes.
    """
    return type(layer) is kind and not is_watched(layer)


def is_same_size_convolution(layer: nn.Module, channels: int, size: int) -> bool:
    """Whether it is ``nn.Conv2d(channels, channels, size)``, padded so that maps keep their size, with a bias."""
    if not is_untouched(layer, nn.Conv2d):
        return False
    assert isinstance(layer, nn.Conv2d)
    found = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.padding)
    if found != (channels, channels, (size, size), (size // 2, size // 2)):
        return False
    geometry = (layer.stride, layer.dilation, layer.groups, layer.padding_mode)
    return geometry == ((1, 1), (1, 1), 1, "zeros") and layer._parameters.get("bias") is not None


def is_norm_of_each_channel(layer: nn.Module, channels: int) -> bool:
    """Whether it is ``nn.GroupNorm(channels, channels)``, with weight and bias."""
    if not is_untouched(layer, nn.GroupNorm):
        return False
    assert isinstance(layer, nn.GroupNorm)
    return (
        layer.num_groups == layer.num_channels == channels
        and layer.weight is not None
        and layer.bias is not None
    )
