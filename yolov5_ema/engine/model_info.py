"""What a model YAML builds: its rows, parameters and floating point operations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from yolov5_ema.cfgs.dry_run import check_model, quiet
from yolov5_ema.cfgs.graph import Graph
from yolov5_ema.cfgs.oddities import likely_mistakes
from yolov5_ema.checkpoints import ultralytics_models
from yolov5_ema.engine import shim, ultralytics_adapter
from yolov5_ema.kernels.dispatch import forced
from yolov5_ema.late_modules import without_compiler
from yolov5_ema.upstream.ultralytics import is_cfg_of_ultralytics


@dataclass(frozen=True)
class RowInfo:
    """One row of a built model; ``flops`` is for one image of the full input size."""

    index: int
    source: Any
    repeats: int
    module: str
    args: Any
    channels: int
    stride: int | None
    parameters: int
    flops: int


@dataclass(frozen=True)
class ModelInfo:
    """A built model. ``flops`` is for one image of imgsz x imgsz pixels; a multiply-add counts as two operations.

    ``warnings`` names what looks like a mistake in the YAML (`yolov5_ema.cfgs.oddities`).
    """

    cfg: str
    nc: int
    imgsz: int
    parameters: int
    flops: int
    rows: list[RowInfo]
    warnings: list[str] = field(default_factory=list)

    @property
    def gflops(self) -> float:
        return self.flops / 1e9

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "gflops": round(self.gflops, 4)}


def model_info(cfg: str | Path, nc: int | None = None, imgsz: int = 640) -> ModelInfo:
    """Build a model from its YAML and count its parameters and operations.

    torch's `FlopCounterMode` counts the operations of convolutions and matrix products while the model runs on the
    meta device. Normalisation and activations are not counted. EMA is counted in the paper's form; the faster
    implementation needs fewer operations (docs/exact-ema.md).

    `FlopCounterMode` sees the batch dimension, into which EMA folds its groups. Counters that take a layer's shape at
    batch 1, such as thop in YOLOv5's summary line, miss most of EMA.

    Args:
        cfg: path of a model YAML.
        nc: number of classes, used instead of the YAML's.
        imgsz: side of the square input in pixels; rounded up to a multiple of the stride, as YOLOv5 does.

    Raises:
        ConfigError: the YAML cannot be used.
    """
    engine = shim.install()
    yolo = engine.module("models.yolo")
    content = check_model(cfg, engine)
    with quiet():
        model = yolo.Model(str(cfg), ch=3, nc=nc)
    return _described(model, content, str(cfg), imgsz, content["depth_multiple"])


def ultralytics_info(name: str, file: Path, nc: int | None = None, imgsz: int = 640) -> ModelInfo:
    """What `model_info` says, for a model YAML of the package ultralytics.

    A model that is trained end to end has two heads, and both are counted.

    Args:
        name: the name of the YAML, with the letter of the size; without one, it is the first size in the file.
        file: the file.
        nc: number of classes, used instead of the YAML's.
        imgsz: side of the square input in pixels; rounded up to a multiple of the stride.

    Raises:
        ConfigError: the YAML cannot be used.
        EngineNotFoundError: ultralytics is not installed.
    """
    engine = ultralytics_adapter.install()
    content = ultralytics_models.read_cfg(name, engine, file)
    model = ultralytics_models.build(content, nc, engine, name)
    scales = content.get("scales")
    depth = scales[content["scale"]][0] if scales else content.get("depth_multiple", 1.0)
    return _described(model, content, name, imgsz, depth)


def _described(model: Any, content: dict[str, Any], cfg: str, imgsz: int, depth: float) -> ModelInfo:
    stride = max(int(model.stride.max()), 32)
    imgsz = -(-imgsz // stride) * stride
    flops, shapes = _count(model, imgsz)
    rows = [_row(module, content, flops, shapes, imgsz, depth) for module in model.model]
    of_ultralytics = is_cfg_of_ultralytics(content)
    return ModelInfo(
        cfg=cfg,
        nc=model.yaml["nc"],
        imgsz=imgsz,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops["Global"],
        rows=rows,
        warnings=likely_mistakes(Graph.from_cfg(content, cfg, of_ultralytics=of_ultralytics)),
    )


def _count(model: torch.nn.Module, imgsz: int) -> tuple[dict[str, int], dict[int, tuple[int, ...]]]:
    """Return the operations by module name, and the output shape of each row."""
    shapes: dict[int, tuple[int, ...]] = {}
    for index, module in enumerate(model.model):  # type: ignore[arg-type]
        module.register_forward_hook(lambda _m, _i, out, index=index: shapes.update({index: _shape(out)}))
    channels = model.yaml.get("ch", 3)  # type: ignore[operator, union-attr]
    # in training mode, Detect runs the same convolutions but builds no grids
    model = model.to("meta").train()
    with forced("reference"), without_compiler(), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, channels, imgsz, imgsz, device="meta"))
    by_name = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return {**by_name, "Global": counter.get_total_flops()}, shapes


def _shape(output: Any) -> tuple[int, ...]:
    return tuple(output.shape) if isinstance(output, torch.Tensor) and output.dim() == 4 else ()


def _row(module: Any, content: Any, flops: dict[str, int], shapes: Any, imgsz: int, depth: float) -> RowInfo:
    index = module.i
    shape = shapes[index]
    _, repeats, name, args = [*content["backbone"], *content["head"]][index]
    counted = next((n for key, n in flops.items() if key.endswith(f".model.{index}")), 0)
    return RowInfo(
        index=index,
        source=module.f,
        repeats=max(round(repeats * depth), 1) if repeats > 1 else repeats,
        module=name,
        args=args,
        channels=shape[1] if shape else 0,
        stride=imgsz // shape[-1] if shape else None,
        parameters=module.np,
        flops=counted,
    )
