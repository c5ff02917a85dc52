"""Choose the layers of a model to show, and match the layers of several models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from yolov5_ema.blocks.registry import block_of
from yolov5_ema.errors import UserError
from yolov5_ema.texts import listed

_SHOWN = 20  # layers in a message


@dataclass(frozen=True)
class Layer:
    """A layer whose output is shown.

    Attributes:
        place: its position, as a text that is equal for matching layers of other models.
        order: how many layers of its model ran before it.
        name: its name for ``--blocks``: the row of a detector (``7``, ``7.1``) or a module (``layer4.2.se``).
        module: the layer.
        block: the name of its block in the registry; None if it is not a block.
        channels: the number of channels of its output.
        stride: the pixels of the model's input for each cell of its output.
    """

    place: str
    order: int
    name: str
    module: nn.Module
    block: str | None
    channels: int
    stride: int

    @property
    def kind(self) -> str:
        """The block's name, or the name of the class and that it is not a block."""
        return self.block or f"{type(self.module).__name__}, no block"


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The registered blocks of a model by module name; a block within a block is not listed separately."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        is_part = any(name.startswith(f"{outer}.") for outer in found)
        if not is_part and block_of(module):
            found[name] = module
    return found


@dataclass(frozen=True)
class Traced:
    """What one forward pass shows about a model.

    Attributes:
        shapes: (channels, height) of the output of every module that returns a map, by module name.
        makers: for each block, the name of the outermost module whose output it takes; None if there is none.
    """

    shapes: Mapping[str, tuple[int, int]]
    makers: Mapping[str, str | None]


@torch.no_grad()
def trace(model: nn.Module, blocks: Iterable[str], batch: torch.Tensor) -> Traced:
    """Run a model once and record where its blocks get their inputs from.

    Args:
        model: the model, in evaluation mode.
        blocks: the module names of the blocks.
        batch: the model's input, of shape (1, 3, H, W).
    """
    shapes: dict[str, tuple[int, int]] = {}
    makers: dict[str, str | None] = {}
    made: dict[int, tuple[str, torch.Tensor]] = {}  # the tensor is kept so that no other gets its id

    def entering(name: str) -> Callable[..., None]:
        return lambda module, args: makers.update({name: made.get(id(args[0]), (None,))[0]})

    def leaving(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 4:
                shapes[name] = (output.shape[1], output.shape[2])
                made[id(output)] = (name, output)  # the outermost module that returns it is the last to leave

        return note

    wanted = set(blocks)
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(leaving(name)))
        if name in wanted:
            handles.append(module.register_forward_pre_hook(entering(name)))
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return Traced(shapes, makers)


@dataclass(frozen=True)
class Candidates:
    """The layers of one model that can be shown.

    Attributes:
        blocks: the model's blocks, in the order in which they run.
        others: the other layers, in the same order. One of them is shown where another model has a block.
        usual: the layers among ``others`` that are shown if the model has no layer at any place of a block.
    """

    blocks: Sequence[Layer]
    others: Sequence[Layer]
    usual: Sequence[Layer]


def candidates(
    model: nn.Module,
    batch: torch.Tensor,
    *,
    others: Collection[str],
    usual: Collection[str],
    place_of: Callable[[str], str],
    shown: Callable[[str], str],
) -> Candidates:
    """Find the layers of a model that can be shown.

    The place of a block is that of the module whose output it takes. If that module is itself a block, ", next" is
    added to its place.

    Args:
        model: the model, in evaluation mode.
        batch: an input of the model, of shape (1, 3, H, W).
        others: the names of the modules that can be shown although they are not blocks.
        usual: the names among ``others`` of the modules to show if the model has none at any place of a block.
        place_of: returns the place of a module, given its name.
        shown: returns the name under which users know a module, given its name in the model.
    """
    blocks = find_blocks(model)
    traced = trace(model, blocks, batch)

    def place_of_block(name: str) -> str:
        maker = traced.makers[name]
        if maker is None:
            return f"{name} itself"
        return f"{place_of_block(maker)}, next" if maker in blocks else place_of(maker)

    def layer(name: str, place: str) -> Layer:
        channels, height = traced.shapes[name]
        module = model.get_submodule(name)
        stride = round(batch.shape[2] / height)
        place = f"{place}, stride {stride}"
        return Layer(place, names.index(name), shown(name), module, block_of(module) or None, channels, stride)

    names = list(traced.shapes)
    return Candidates(
        [layer(name, place_of_block(name)) for name in names if name in blocks],
        [layer(name, place_of(name)) for name in names if name in others],
        [layer(name, place_of(name)) for name in names if name in usual],
    )


def choose(models: Sequence[Candidates], patterns: Sequence[str] = ()) -> list[list[Layer]]:
    """Choose the layers to show of each model; each list is in the order in which its layers run.

    The layers are those at the places of all models' blocks. Where a model has no block at such a place, the layer that
    the block would follow is shown. A model without a layer at any of these places shows its usual layers.

    Args:
        models: the layers of each model that can be shown.
        patterns: the values of ``--blocks``: names of blocks (``EMA``) or layers (``7``), or glob patterns of such
            names. If empty, all blocks are chosen. If no model has a block, the patterns choose among all layers.

    Raises:
        UserError: a pattern matches no layer.
    """
    choosable = [layer for model in models for layer in model.blocks]
    if patterns:
        choosable = choosable or [layer for model in models for layer in model.others]
        _refuse_idle(patterns, choosable)
    places = {layer.place for layer in choosable if not patterns or _fits(layer, patterns)}
    return [_at(places, model) or list(model.usual) for model in models]


def in_order(models: Sequence[Sequence[Layer]]) -> list[str]:
    """The places of several models' layers without duplicates, so that the places of each model keep their order."""
    places: list[str] = []
    for layers in models:
        following = 0
        for layer in layers:
            if layer.place not in places:
                places.insert(following, layer.place)
            following = places.index(layer.place) + 1
    return places


def _at(places: Collection[str], model: Candidates) -> list[Layer]:
    with_block = {layer.place for layer in model.blocks}
    others = [layer for layer in model.others if layer.place not in with_block]
    there = [layer for layer in (*model.blocks, *others) if layer.place in places]
    return sorted(there, key=lambda layer: layer.order)


def _fits(layer: Layer, patterns: Iterable[str]) -> bool:
    names = (layer.name, layer.block or type(layer.module).__name__)
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _refuse_idle(patterns: Iterable[str], layers: Sequence[Layer]) -> None:
    for pattern in patterns:
        if not any(_fits(layer, [pattern]) for layer in layers):
            known = list(dict.fromkeys(f"{layer.name} ({layer.kind})" for layer in layers))
            raise UserError(f"--blocks {pattern}: there is no such layer; choose from {listed(known, _SHOWN)}")
