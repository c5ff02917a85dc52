"""``yolov5-ema blocks``: which attention blocks there are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.texts import aligned

SUMMARY = "list the attention blocks, their options and papers"


def main(argv: Sequence[str]) -> int:
    """Print a row a block."""
    parser = argparse.ArgumentParser(
        prog="yolov5-ema blocks",
        description="List the attention blocks that a model YAML can name, with their options and papers.",
        epilog="in a YAML: [-1, 1, EMA, []] or [-1, 1, EMA, [16]] or [-1, 1, EMA, [{groups: 16}]]; the channels "
        "are taken from the row that the block reads",
    )
    parser.add_argument("pattern", nargs="?", default="", help="shell-style, such as 'E*'")
    parser.add_argument("--channels", type=int, default=512, help="count parameters at this many channels")
    args = parser.parse_args(argv)

    from yolov5_ema.blocks import block_info, list_blocks

    load_plugins()
    infos = [block_info(name) for name in list_blocks(args.pattern)]
    rows = [(one.name, _parameters(one.name, args.channels), one.signature, one.paper) for one in infos]
    print(aligned([("block", f"at {args.channels}", "options", "paper"), *rows], left=(0, 2, 3)))
    return 0


def _parameters(name: str, channels: int) -> str:
    import torch

    from yolov5_ema.blocks import create_block

    try:
        with torch.device("meta"):
            block = create_block(name, channels)
    except ValueError:
        return "not possible"
    return f"{sum(p.numel() for p in block.parameters()):,}"
