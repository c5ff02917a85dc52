"""``yolov5-ema convert``: a checkpoint as safetensors and a model YAML, and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import Command, add_force, add_output
from yolov5_ema.errors import UserError

_EPILOG = """\
there:  yolov5-ema convert best.pt                      writes best.safetensors and best.yaml
back:   yolov5-ema convert best.safetensors -o back.pt  a checkpoint for train, val, detect and plain YOLOv5
        yolov5-ema convert state_dict.pt --cfg my.yaml -o whole.pt    likewise, of tensors without a model

best.safetensors alone goes back: everything but the tensors stands in its header. best.yaml is to be read, and
usable as --cfg.
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Convert one file, there or back."""
    from yolov5_ema.weights.checkpoint_files import check_readable, is_safetensors

    check_readable(args.file)
    back = is_safetensors(args.file) or args.cfg is not None
    load_plugins()
    print(_back(args) if back else _there(args))
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a checkpoint (.pt), safetensors, or a state dict")
    add_output(parser, "default: beside FILE, with its name", old=["--out"], metavar="OUT")
    parser.add_argument(
        "--cfg",
        type=Path,
        help="back: the model YAML, instead of the one in the header, or of tensors that come without one",
    )
    add_force(parser)


def _there(args: argparse.Namespace) -> str:
    from yolov5_ema.checkpoints.conversion import to_safetensors
    from yolov5_ema.engine import shim

    tensors = (
        _with_suffix(args.output, ".safetensors") if args.output else args.file.with_suffix(".safetensors")
    )
    cfg = tensors.with_suffix(".yaml")
    facts = to_safetensors(args.file, tensors, cfg, engine=shim.install(), force=args.force)
    return (
        f"{tensors} and {cfg} written: {_described(facts)}; the YAML's model computes the same, bit for bit"
    )


def _back(args: argparse.Namespace) -> str:
    from yolov5_ema.checkpoints.conversion import to_checkpoint
    from yolov5_ema.data.yaml_files import load_yaml
    from yolov5_ema.engine import shim

    beside = args.file.with_suffix(".pt")
    if beside == args.file:
        beside = args.file.with_name(f"{args.file.stem}-whole.pt")
    target = _with_suffix(args.output, ".pt") if args.output else beside
    cfg = load_yaml(args.cfg) if args.cfg else None
    facts = to_checkpoint(args.file, target, engine=shim.install(), cfg=cfg, force=args.force)
    return f"{target} written: {_described(facts)}"


def _with_suffix(path: Path, suffix: str) -> Path:
    if path.suffix in {".pt", ".pth", ".safetensors", ".yaml", ".yml"} - {suffix}:
        raise UserError(f"-o {path}: this writes {suffix}; give a name that ends so, or without an ending")
    return path if path.suffix == suffix else path.with_name(path.name + suffix)


def _described(facts: dict[str, Any]) -> str:
    rows = len(facts["cfg"]["backbone"]) + len(facts["cfg"]["head"])
    return f"{facts['class']}, {rows} rows, {facts['cfg']['nc']} classes"


COMMAND = Command(
    "convert",
    "a checkpoint as safetensors and a model YAML, and back",
    _run,
    _add_flags,
    description="Write a checkpoint as tensors and text, which cannot run code, or make one of them again. "
    "The optimizer's state is left out.",
    epilog=_EPILOG,
    only_looks=True,
)
