"""``yolov5-ema info``: rows, parameters and GFLOPs of a model YAML."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.texts import aligned, first_line

if TYPE_CHECKING:
    from yolov5_ema.engine.model_info import ModelInfo

SUMMARY = "rows, parameters and GFLOPs of a model YAML, the blocks counted fully"


def main(argv: Sequence[str]) -> int:
    """Print what a cfg builds."""
    parser = argparse.ArgumentParser(
        prog="yolov5-ema info",
        description="Build a model from its YAML and print its rows, parameters and GFLOPs.",
        epilog="GFLOPs are those of convolutions and matrix products, a multiply-add counted as two, for one image. "
        "The figure that YOLOv5 prints itself (thop) misses the groups that EMA folds into the batch.\n"
        "example: yolov5-ema info yolov5s-ema.yaml --nc 3 --json",
    )
    parser.add_argument("cfg", help="model YAML: a path, or the name of one that ships")
    parser.add_argument("--nc", type=int, help="number of classes (default: the YAML's)")
    parser.add_argument("--imgsz", "--img", "--img-size", type=int, default=640, help="image side in pixels")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if args.nc is not None and args.nc < 1:
        raise UserError(f"--nc {args.nc}: there must be 1 class or more")
    if not 1 <= args.imgsz <= 100_000:
        raise UserError(f"--imgsz {args.imgsz}: the side of an image in pixels, such as 640")

    from yolov5_ema.cfgs.oddities import print_warnings
    from yolov5_ema.engine import shim
    from yolov5_ema.engine.model_info import model_info
    from yolov5_ema.scripts import preflight

    load_plugins()
    preflight.resolve_names(args, shim.install())
    try:
        found = model_info(args.cfg, args.nc, args.imgsz)
    except (
        RuntimeError,
        MemoryError,
        ValueError,
        TypeError,
    ) as error:  # what fits on paper, and not in this machine
        if isinstance(error, UserError):
            raise
        raise ConfigError(
            f"{args.cfg}: the model cannot be built and run here: {first_line(error)}"
        ) from error
    print(json.dumps(found.as_dict(), indent=2) if args.json else _table(found))
    print_warnings(found.warnings, args.cfg)
    return 0


def _table(found: ModelInfo) -> str:
    table = [("", "from", "n", "module", "channels", "stride", "parameters", "GFLOPs", "args")]
    for row in found.rows:
        stride = "" if row.stride is None else str(row.stride)
        sizes = (str(row.channels or ""), stride, f"{row.parameters:,}", f"{row.flops / 1e9:.3f}")
        table.append(
            (str(row.index), str(row.source), str(row.repeats), str(row.module), *sizes, str(row.args))
        )
    lines = [aligned(table, left=(3, 8))]
    lines.append(
        f"{found.cfg}: {len(found.rows)} rows, {found.parameters:,} parameters, {found.gflops:.2f} GFLOPs "
        f"at {found.imgsz} x {found.imgsz}, nc={found.nc}"
    )
    return "\n".join(lines)
