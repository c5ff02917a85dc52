"""What each attention block costs in a model on this machine: alone, and in the whole detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolov5_ema.blocks.registry import PREFIX, block_info, block_of
from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import NO_BLOCK, build_cfg
from yolov5_ema.checkpoints import ultralytics_models
from yolov5_ema.comparing.latency import in_turns, measure_latency
from yolov5_ema.engine import shim, ultralytics_adapter
from yolov5_ema.errors import UserError
from yolov5_ema.kernels.dispatch import forced
from yolov5_ema.texts import first_line


@dataclass(frozen=True)
class BlockCost:
    """The cost of one block at its places in a model, or of the model without a block.

    Attributes:
        block: name of the block; ``none`` for the model itself.
        parameters: of the blocks; of the whole model in the row of ``none``, as all counts.
        gflops: for one image; a multiply-add counts as two.
        alone_ms: median time of the blocks alone, one after the other, for one image; None in the row of ``none``.
        detector_ms: median time of the whole model for one image.
        detector_quartiles_ms: the quartiles of these times.
        ratio: the median over rounds of the model's time over that without a block.
        kept_mib: what the blocks keep for the backward pass of one image, in MiB, with their input.
        paper: the paper of the block.
        reason: why the block cannot be built there; then everything else is None.
    """

    block: str
    parameters: int | None = None
    gflops: float | None = None
    alone_ms: float | None = None
    detector_ms: float | None = None
    detector_quartiles_ms: tuple[float, float] | None = None
    ratio: float | None = None
    kept_mib: float | None = None
    paper: str = ""
    reason: str = ""


Placed = list[tuple[nn.Module, torch.Tensor]]
"""The blocks of a model with the map that each gets."""


def block_costs(
    cfg: str | Path, blocks: Sequence[str], *, of_ultralytics: bool, imgsz: int, device: torch.device, rounds: int
) -> list[BlockCost]:
    """Measure blocks behind the last two stages of a model's backbone.

    Args:
        cfg: the model YAML without a block: a path, or a name that `generator.load_base` finds.
        blocks: names of registered blocks.
        of_ultralytics: whether the YAML is one of ultralytics.
        imgsz: side of the square image in pixels, a multiple of the model's largest stride.
        device: where to measure.
        rounds: how often each model runs; they take turns.

    Raises:
        UserError: the model cannot be built.
    """
    build = model_builder(cfg, of_ultralytics=of_ultralytics)
    models: dict[str, nn.Module] = {NO_BLOCK: build(NO_BLOCK)}
    reasons: dict[str, str] = {}
    for block in blocks:
        try:
            models[block] = build(block)
        except UserError as error:
            reasons[block] = first_line(error)
    placed = {name: _placed(model.to(device), imgsz) for name, model in models.items()}
    plain = models[NO_BLOCK]
    counts = {name: (_parameters(plain), _gflops(plain, torch.zeros(1, 3, imgsz, imgsz))) for name in (NO_BLOCK,)}
    counts |= {name: _counts(found) for name, found in placed.items() if name != NO_BLOCK}
    kept = {name: sum(_kept_bytes(block, x) for block, x in found) / 2**20 for name, found in placed.items()}
    alone = in_turns({name: _caller(found) for name, found in placed.items() if found}, device, rounds)
    whole = measure_latency(models, imgsz=imgsz, device=device, rounds=rounds)
    return [
        BlockCost(name, paper=block_info(name).paper, reason=reasons[name])
        if name in reasons
        else _cost(name, counts[name], alone.get(name), whole, kept[name])
        for name in (NO_BLOCK, *blocks)
    ]


def _cost(
    name: str, counts: tuple[int, float], alone: list[float] | None, whole: Mapping[str, list[float]], kept: float
) -> BlockCost:
    low, middle, high = quantiles(whole[name], n=4, method="inclusive")
    return BlockCost(
        block=name,
        parameters=counts[0],
        gflops=counts[1],
        alone_ms=median(alone) if alone else None,
        detector_ms=middle,
        detector_quartiles_ms=(low, high),
        ratio=median(mine / plain for mine, plain in zip(whole[name], whole[NO_BLOCK])),
        kept_mib=None if name == NO_BLOCK else kept,
        paper="" if name == NO_BLOCK else block_info(name).paper,
    )


def model_builder(cfg: str | Path, *, of_ultralytics: bool) -> Callable[[str], nn.Module]:
    """A function that builds a model with a block behind the last two stages of its backbone, in evaluation mode.

    Args:
        cfg: as for `block_costs`.
        of_ultralytics: as for `block_costs`.

    Returns:
        The function. It takes the name of a block, or ``none``, and raises a `UserError` if the block does not fit.
    """
    engine = ultralytics_adapter.install() if of_ultralytics else shim.install()

    def build(block: str) -> nn.Module:
        # with the prefix, because the engine may have another class of this name
        content: dict[str, Any] = build_cfg(base=cfg, block=block if block == NO_BLOCK else PREFIX + block)
        where = f"{cfg} with {block}"
        with quiet():
            if of_ultralytics:
                model: nn.Module = ultralytics_models.build(content, None, engine, where)
            else:
                model = engine.module("models.yolo").Model(content, ch=3)
        return model.eval()

    return build


def _placed(model: nn.Module, imgsz: int) -> Placed:
    found: Placed = []
    blocks = [module for module in model.modules() if block_of(module)]
    hooks = [
        block.register_forward_pre_hook(lambda module, inputs: found.append((module, inputs[0].detach().clone())))
        for block in blocks
    ]
    device = next(model.parameters()).device
    with torch.no_grad():
        model(torch.rand(1, 3, imgsz, imgsz, device=device))
    for hook in hooks:
        hook.remove()
    return found


def _counts(placed: Placed) -> tuple[int, float]:
    return sum(_parameters(block) for block, _ in placed), sum(_gflops(block, x) for block, x in placed)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _gflops(module: nn.Module, x: torch.Tensor) -> float:
    x = x.to(next(iter(module.parameters()), x).device)
    with forced("reference"), FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() / 1e9


def _caller(placed: Placed) -> Callable[[], None]:
    def call() -> None:
        for block, x in placed:
            block(x)

    return call


def _kept_bytes(block: nn.Module, x: torch.Tensor) -> int:
    """The bytes of the tensors, except parameters, that autograd keeps for a training step of the block."""
    own = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    was_training = block.training
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = block.train()(x.clone().requires_grad_())
    block.train(was_training)
    del out
    return sum(kept.values())
