"""The gate map of a block: how much of its input it passes on at every position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


def gate_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The factor of a block at every position: the ratio of the root mean squares over channels.

    This is ``sqrt(mean_c y^2) / sqrt(mean_c x^2)``. If all channels share a gate, it is exactly that gate. If the gates
    differ between channels, it is their root mean square, weighted by the energy (the square) of each channel at that
    position, and therefore between the smallest and the largest gate. It is also defined for blocks that shuffle their
    channels, such as SA, and for blocks that are not gates, such as ``x + f(x)``: nothing is assumed about the order of
    the channels.

    Args:
        x: the block's input, of shape (N, C, H, W).
        y: its output, of shape (N, C', H, W).

    Returns:
        A float32 tensor of shape (N, H, W), not negative; NaN where the input is 0 in every channel.

    Raises:
        ValueError: input and output are not maps of the same size.

    >>> x = torch.rand(1, 8, 4, 4)
    >>> bool(torch.allclose(gate_map(x, 0.5 * x), torch.full((1, 4, 4), 0.5)))
    True
    """
    if x.ndim != 4 or y.ndim != 4 or x.shape[2:] != y.shape[2:]:
        raise ValueError(f"no gate leads from {tuple(x.shape)} to {tuple(y.shape)}")
    return _ratio(_energy(x), _energy(y))


@contextmanager
def watched_gates(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Within the block, each forward pass stores the gate maps in a dict.

    Args:
        blocks: modules that take a map of shape (N, C, H, W), by the names for their maps.

    Yields:
        The maps, see `gate_map`; blocks that change the size of their input have none.
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
