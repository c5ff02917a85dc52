"""The gate map of a block: how much of its input it lets through, at every place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


def gate_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What a block multiplies its input by, at every place: the ratio of the root mean squares over channels.

    ``sqrt(mean_c y^2) / sqrt(mean_c x^2)``. For a gate that all channels share it is that gate, exactly. For gates
    that differ from channel to channel it is their root mean square, each weighted by the energy (the square) that its
    channel has at that place; so it lies between the least and the greatest of them. Blocks that shuffle their
    channels, as SA does, or that are no gates at all, as ``x + f(x)``, have it as well: nothing is assumed about
    which channel goes where.

    Args:
        x: the block's input, of shape (N, C, H, W).
        y: its output, of shape (N, C', H, W).

    Returns:
        Of shape (N, H, W), float32, not negative; NaN where the input is 0 in every channel.

    Raises:
        ValueError: input and output are no maps of one size.

    >>> x = torch.rand(1, 8, 4, 4)
    >>> bool(torch.allclose(gate_map(x, 0.5 * x), torch.full((1, 4, 4), 0.5)))
    True
    """
    if x.ndim != 4 or y.ndim != 4 or x.shape[2:] != y.shape[2:]:
        raise ValueError(f"no gate leads from {tuple(x.shape)} to {tuple(y.shape)}")
    return _ratio(_energy(x), _energy(y))


@contextmanager
def watched_gates(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Within: each forward pass leaves the blocks' gate maps in a dict.

    Args:
        blocks: modules that take a map of shape (N, C, H, W), by the names that the maps are to have.

    Yields:
        The maps, as `gate_map`; none of a block that changes the size of its input.
    """
    maps: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for name, block in blocks.items():
            for handle in _hooked(name, block, maps):
                stack.callback(handle.remove)
        yield maps


def _hooked(name: str, block: nn.Module, maps: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    before: list[torch.Tensor] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        before[:] = [_energy(args[0])]  # now: a block may write into its input

    def leave(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        if before[0].shape == output.shape[:1] + output.shape[2:]:
            maps[name] = _ratio(before[0], _energy(output))

    return block.register_forward_pre_hook(enter), block.register_forward_hook(leave)


def _energy(x: torch.Tensor) -> torch.Tensor:
    return x.detach().double().square().mean(dim=1)  # (N, H, W)


def _ratio(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    ratio = (after / before).sqrt()
    return torch.where(before > 0, ratio, torch.full_like(ratio, float("nan"))).float()
