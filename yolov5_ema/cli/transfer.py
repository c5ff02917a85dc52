"""``yolov5-ema transfer``: copy pretrained weights into another model YAML, row by row."""

from __future__ import annotations

import argparse
from pathlib import Path

from yolov5_ema.cli._yolov5 import start_yolov5
from yolov5_ema.cli.command import Command, add_force, add_output
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.settings import INITS

_EPILOG = """\
Rows are matched by their content, not by their number, so that weights after an inserted block are copied too.
`yolov5-ema train --weights FILE --cfg CFG` does the same automatically.

--init identity: a new attention block starts with a constant gate, and the layers after it compensate for the constant.
At first, the detector computes what it did without the block. `train` takes this flag too.

example: yolov5-ema transfer yolov5s.pt --cfg yolov5s-ema.yaml --init identity -o yolov5s-ema.pt
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
    from yolov5_ema.scripts import preflight

    engine = start_yolov5()
    preflight.resolve_names(args, engine)
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
    print(f"{args.output} written; train it on: yolov5-ema train --weights {args.output} --cfg {args.cfg} …")
    return 0


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
    parser.add_argument("weights", type=Path, help="a YOLOv5 checkpoint (.pt)")
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
)
