"""``yolov5-ema blocks``: list the attention blocks."""

from __future__ import annotations

import argparse

from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import Command, add_json, print_json, results_alone
from yolov5_ema.texts import aligned


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Print one row for each block."""
    from yolov5_ema.blocks import block_info, list_blocks

    with results_alone(args.json) as output:
        load_plugins()
        infos = [block_info(name) for name in list_blocks(args.pattern)]
        counts = [_parameters(one.name, args.channels) for one in infos]
    if args.json:
        found = [
            {"name": one.name, "parameters": count, "options": dict(one.options), "paper": one.paper}
            for one, count in zip(infos, counts)
        ]
        print_json({"channels": args.channels, "blocks": found}, output)
        return 0
    shown = ["not possible" if count is None else f"{count:,}" for count in counts]
    rows = [(one.name, count, one.signature, one.paper) for one, count in zip(infos, shown)]
    print(aligned([("block", f"at {args.channels}", "options", "paper"), *rows], left=(0, 2, 3)))
    return 0


def _parameters(name: str, channels: int) -> int | None:
    """The number of parameters of a block; None if it cannot be built."""
    import torch

    from yolov5_ema.blocks import create_block

    try:
        with torch.device("meta"):
            block = create_block(name, channels)
    except ValueError:
        return None
    return sum(p.numel() for p in block.parameters())


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="", help="shell-style pattern, such as 'E*'")
    parser.add_argument("--channels", type=int, default=512, help="channels to count parameters for (default: 512)")
    add_json(parser)


COMMAND = Command(
    "blocks",
    "list the attention blocks, their options and papers",
    _run,
    _add_flags,
    description="List the attention blocks that a model YAML can name, with their options and papers.",
    epilog="in a YAML: [-1, 1, EMA, []] or [-1, 1, EMA, [16]] or [-1, 1, EMA, [{groups: 16}]]; the number of "
    "channels comes from the row that the block reads",
)
