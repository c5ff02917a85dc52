"""``yolov5-ema convert``: a checkpoint as safetensors and a model YAML, and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yolov5_ema.cli._engines import start_engine_of, start_ultralytics
from yolov5_ema.cli.command import Command, add_force, add_output
from yolov5_ema.errors import UserError
from yolov5_ema.texts import counted
from yolov5_ema.weights.checkpoint_files import check_readable, is_safetensors

_EPILOG = """\
there:  yolov5-ema convert best.pt                      writes best.safetensors and best.yaml
back:   yolov5-ema convert best.safetensors -o back.pt  writes a checkpoint for train, val, detect, and for YOLOv5 or
                                                        ultralytics alone
        yolov5-ema convert state_dict.pt --cfg my.yaml -o whole.pt    does the same for tensors without a model

Only best.safetensors is needed to convert back: its header holds everything except the tensors. best.yaml is there to
be read, and can be used as --cfg, or as a model YAML of ultralytics.
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Convert one file, from a checkpoint or back to one."""
    check_readable(args.file)
    back = is_safetensors(args.file) or args.cfg is not None
    print(_back(args) if back else _there(args))
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, help="a checkpoint (.pt) of YOLOv5 or of ultralytics, safetensors, or a state dict"
    )
    add_output(parser, "file to write (default: FILE's name with the new suffix)", old=["--out"], metavar="OUT")
    parser.add_argument(
        "--cfg",
        type=Path,
        help="when converting back: model YAML to use instead of the one in the header, or for a state dict",
    )
    add_force(parser)


def _there(args: argparse.Namespace) -> str:
    from yolov5_ema.checkpoints.conversion import to_safetensors

    tensors = _with_suffix(args.output, ".safetensors") if args.output else args.file.with_suffix(".safetensors")
    cfg = tensors.with_suffix(".yaml")
    facts = to_safetensors(args.file, tensors, cfg, engine=start_engine_of([args.file]), force=args.force)
    return f"{tensors} and {cfg} written: {_described(facts)}; the model of the YAML gives bit-identical output"


def _back(args: argparse.Namespace) -> str:
    from yolov5_ema.checkpoints.conversion import to_checkpoint
    from yolov5_ema.data.yaml_files import load_yaml
    from yolov5_ema.upstream.ultralytics import is_cfg_of_ultralytics

    beside = args.file.with_suffix(".pt")
    if beside == args.file:
        beside = args.file.with_name(f"{args.file.stem}-whole.pt")
    target = _with_suffix(args.output, ".pt") if args.output else beside
    cfg = load_yaml(args.cfg) if args.cfg else None
    engine = start_ultralytics() if is_cfg_of_ultralytics(cfg) else start_engine_of([args.file])
    facts = to_checkpoint(args.file, target, engine=engine, cfg=cfg, force=args.force)
    return f"{target} written: {_described(facts)}"


def _with_suffix(path: Path, suffix: str) -> Path:
    if path.suffix in {".pt", ".pth", ".safetensors", ".yaml", ".yml"} - {suffix}:
        raise UserError(f"-o {path}: this writes {suffix}; give a name with this suffix, or without a suffix")
    return path if path.suffix == suffix else path.with_name(path.name + suffix)


def _described(facts: dict[str, Any]) -> str:
    rows = len(facts["cfg"]["backbone"]) + len(facts["cfg"]["head"])
    return f"{facts['class']}, {rows} rows, {counted(facts['cfg']['nc'], 'class')}"


COMMAND = Command(
    "convert",
    "convert a checkpoint to safetensors and a model YAML, and back",
    _run,
    _add_flags,
    description="Write a checkpoint as tensors and text, which cannot run code, or convert them back to a "
    "checkpoint. The state of the optimizer is left out.",
    epilog=_EPILOG,
    only_looks=True,
    closes_all=True,
)
