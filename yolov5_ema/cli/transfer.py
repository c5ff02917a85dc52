"""``yolov5-ema transfer``: copy pretrained weights into another model YAML, row by row."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli._engines import is_ultralytics, start_engine_of
from yolov5_ema.cli.command import Command, add_force, add_output
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.settings import INITS
from yolov5_ema.texts import suggested

if TYPE_CHECKING:
    from yolov5_ema.upstream.locate import Engine

_EPILOG = """\
Rows are matched by their content, not by their number, so that weights after an inserted block are copied too.
`yolov5-ema train --weights FILE --cfg CFG` does the same automatically. Weights and cfg may also both be those of the
package ultralytics (YOLOv8, YOLO11 and later).

--init identity: a new attention block starts with a constant gate, and the layers after it compensate for the constant.
At first, the detector computes what it did without the block. `train` takes this flag too.

examples:
  yolov5-ema transfer yolov5s.pt --cfg yolov5s-ema.yaml --init identity -o yolov5s-ema.pt
  yolov5-ema transfer yolo11n.pt --cfg yolo11n-ema.yaml --init identity -o yolo11n-ema.pt
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Write the checkpoint and print what was not copied."""
    if args.output.suffix != ".pt":
        raise UserError(f"-o {args.output}: the checkpoint's name must end in .pt")
    if args.data and args.nc is not None:
        raise UserError("--data says how many classes there are; leave --nc out")
    if args.nc is not None and args.nc < 1:
        raise UserError(f"--nc {args.nc}: must be 1 or more")

    from yolov5_ema.checkpoints.transferring import transfer_checkpoint

    engine = start_engine_of([args.weights])
    _resolve_names(args, engine)
    found = transfer_checkpoint(
        args.weights,
        Path(args.cfg),
        args.output,
        engine=engine,
        nc=args.nc,
        names=_names(args.data),
        identity=args.init == "identity",
        force=args.force,
    )
    print(found.table())
    flags = [f"model={args.output}"] if is_ultralytics(engine) else ["--weights", args.output, "--cfg", args.cfg]
    print(f"{args.output} written; train it on: {suggested('train', *flags, rest='…')}")
    return 0


def _resolve_names(args: argparse.Namespace, engine: Engine) -> None:
    """Replace bare names of YAMLs by paths. ultralytics finds its model YAML itself: the name holds the size.

    Raises:
        UserError: there is no such file, or the cfg is for another program than the weights.
    """
    from yolov5_ema.data.yaml_files import load_yaml
    from yolov5_ema.scripts import preflight
    from yolov5_ema.upstream.data_yaml import find_yaml
    from yolov5_ema.upstream.ultralytics import find_cfg, is_cfg_of_ultralytics, located

    if is_ultralytics(engine):
        only_data = argparse.Namespace(data=args.data)
        preflight.resolve_names(only_data, engine)
        args.data = only_data.data
        return
    file = find_yaml(args.cfg, engine)
    if file is None and importlib.util.find_spec("ultralytics") is not None:
        file = find_cfg(args.cfg, located())
    if file is not None and file.is_file() and is_cfg_of_ultralytics(load_yaml(file)):
        raise UserError(f"{args.cfg} is a model YAML of ultralytics; the weights {args.weights} are those of YOLOv5")
    preflight.resolve_names(args, engine)


def _names(data: str | None) -> list[str] | None:
    if data is None:
        return None
    from yolov5_ema.data.dataset import class_names
    from yolov5_ema.data.yaml_files import load_yaml

    names = class_names(load_yaml(Path(data)), Path(data))
    if not names:
        raise ConfigError(f"{data}: 'names', the list of the classes, is missing")
    return names


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", type=Path, help="a checkpoint (.pt) of YOLOv5 or of ultralytics")
    parser.add_argument("--cfg", required=True, help="model YAML: a path, or the name of a shipped one")
    add_output(parser, "the checkpoint to write", old=["--out"], metavar="OUT.pt", required=True)
    parser.add_argument("--data", help="data YAML with the class names; the weights of classes are copied by name")
    parser.add_argument("--nc", type=int, help="number of classes, instead of --data")
    parser.add_argument("--init", choices=INITS, default="none", help="how to initialize new attention blocks")
    add_force(parser, "replace OUT.pt if it exists")


COMMAND = Command(
    "transfer",
    "copy pretrained weights into a model YAML with other rows, as a checkpoint",
    _run,
    _add_flags,
    description="Copy the weights of a checkpoint into the model of a cfg, row by row.",
    epilog=_EPILOG,
    only_looks=True,
    closes_all=True,
)
