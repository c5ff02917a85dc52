"""``yolov5-ema info``: rows, parameters and GFLOPs of a model YAML."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from yolov5_ema.cli._engines import add_engine
from yolov5_ema.cli._yolov5 import load_plugins, start_yolov5
from yolov5_ema.cli.command import (
    Command,
    add_image_size,
    add_json,
    check_image_size,
    print_json,
    results_alone,
)
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.texts import aligned, counted, first_line

if TYPE_CHECKING:
    from yolov5_ema.engine.model_info import ModelInfo


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Print the rows of the model, its parameters and GFLOPs."""
    if args.nc is not None and args.nc < 1:
        raise UserError(f"--nc {args.nc}: must be 1 or more")
    check_image_size(args.imgsz)

    from yolov5_ema.cfgs.oddities import log_warnings
    from yolov5_ema.engine.model_info import model_info, ultralytics_info
    from yolov5_ema.scripts import preflight
    from yolov5_ema.upstream.model_yaml import cfg_of_ultralytics

    with results_alone(args.json) as output:
        file = cfg_of_ultralytics(args.cfg, args.engine)
        try:
            if file is not None:
                load_plugins()
                found = ultralytics_info(args.cfg, file, args.nc, args.imgsz)
            else:
                preflight.resolve_names(args, start_yolov5())
                found = model_info(args.cfg, args.nc, args.imgsz)
        # A valid model that is too large for this machine, for example.
        except (RuntimeError, MemoryError, ValueError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            reason = first_line(error)
            raise ConfigError(f"{args.cfg}: the model cannot be built and run here: {reason}") from error
    if args.json:
        print_json(found.as_dict(), output)
    else:
        print(_table(found))
    log_warnings(found.warnings, args.cfg)
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cfg", help="model YAML of YOLOv5 or ultralytics: a path, or the name of a shipped one")
    parser.add_argument("--nc", type=int, help="number of classes (default: the YAML's)")
    add_image_size(parser, "image side in pixels (default: 640)")
    add_engine(parser)
    add_json(parser)


def _table(found: ModelInfo) -> str:
    table = [("", "from", "n", "module", "channels", "stride", "parameters", "GFLOPs", "args")]
    for row in found.rows:
        stride = "" if row.stride is None else str(row.stride)
        sizes = (str(row.channels or ""), stride, f"{row.parameters:,}", f"{row.flops / 1e9:.3f}")
        table.append((str(row.index), str(row.source), str(row.repeats), str(row.module), *sizes, str(row.args)))
    lines = [aligned(table, left=(3, 8))]
    lines.append(
        f"{found.cfg}: {counted(len(found.rows), 'row')}, {found.parameters:,} parameters, {found.gflops:.2f} GFLOPs "
        f"at {found.imgsz} x {found.imgsz}, nc={found.nc}"
    )
    return "\n".join(lines)


COMMAND = Command(
    "info",
    "print rows, parameters and GFLOPs of a model YAML, blocks included",
    _run,
    _add_flags,
    description="Build a model from its YAML and print its rows, parameters and GFLOPs.",
    epilog="""\
GFLOPs count convolutions and matrix products for one image; a multiply-add counts as two. The figure that YOLOv5 itself
prints (from thop) misses the groups that EMA folds into the batch dimension.

The letter of the size is in the name of a YAML of ultralytics: yolo26n.yaml. Of a model that it trains end to end, both
heads are counted.

examples: yolov5-ema info yolov5s-ema.yaml --nc 3 --json
          yolov5-ema info yolo26n-ema.yaml""",
    only_looks=True,
    closes_all=True,
)
