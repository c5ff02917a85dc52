"""``yolov5-ema blocks``: list the attention blocks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from yolov5_ema.cli._engines import ULTRALYTICS, YOLOV5
from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import Command, add_json, print_json, results_alone
from yolov5_ema.texts import aligned

if TYPE_CHECKING:
    from yolov5_ema.upstream.locate import Engine


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Print one row for each block, and the names that rows of each engine can have."""
    from yolov5_ema.blocks import block_info, list_blocks
    from yolov5_ema.upstream.data_yaml import engine_at_hand
    from yolov5_ema.upstream.ultralytics import at_hand

    with results_alone(args.json) as output:
        load_plugins()
        infos = [block_info(name) for name in list_blocks(args.pattern)]
        counts = [_parameters(one.name, args.channels) for one in infos]
        engines = {YOLOV5: engine_at_hand(), ULTRALYTICS: at_hand()}
        rows_in = {name: _names_in_rows(engine, [one.name for one in infos]) for name, engine in engines.items()}
    if args.json:
        found = [
            {"name": one.name, "parameters": count, "options": dict(one.options), "paper": one.paper}
            | {"rows": {engine: names[one.name] for engine, names in rows_in.items() if names}}
            for one, count in zip(infos, counts)
        ]
        versions = {name: engine.version if engine else None for name, engine in engines.items()}
        print_json({"channels": args.channels, "engines": versions, "blocks": found}, output)
        return 0
    shown = ["not possible" if count is None else f"{count:,}" for count in counts]
    rows = [(one.name, count, one.signature, one.paper) for one, count in zip(infos, shown)]
    print(aligned([("block", f"at {args.channels}", "options", "paper"), *rows], left=(0, 2, 3)))
    if infos:
        print(f"\n{_table_of_names([one.name for one in infos], engines, rows_in)}")
    return 0


def _names_in_rows(engine: Engine | None, blocks: list[str]) -> dict[str, list[str]]:
    """The names that a row can have for each block: of the block alone, and of modules with the block inside.

    The source code of the engine says which modules it has; it is not imported. A name that the engine has itself gets
    the prefix that selects the block. Without an engine, the dictionary is empty.
    """
    from yolov5_ema.blocks.registry import PREFIX
    from yolov5_ema.cfgs.generator import HOSTS

    if engine is None:
        return {}
    theirs = engine.names_for_rows()
    names = {block: [block, *(f"{host}_{block}" for host in HOSTS if host in theirs)] for block in blocks}
    return {block: [PREFIX + name if name in theirs else name for name in found] for block, found in names.items()}


def _table_of_names(
    blocks: list[str], engines: dict[str, Engine | None], rows_in: dict[str, dict[str, list[str]]]
) -> str:
    labels = zip(("YOLOv5", "ultralytics"), engines.values())
    heads = [f"in a row of {label} {engine.version if engine else '(not found)'}" for label, engine in labels]
    rows = [[block, *(", ".join(names.get(block, "-")) for names in rows_in.values())] for block in blocks]
    return aligned([["block", *heads], *rows], left=(0, 1, 2))


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
    "list the attention blocks: options, papers, and names in rows of each engine",
    _run,
    _add_flags,
    description="List the attention blocks that a model YAML can name, with their options and papers, and the names "
    "that a row can have in the YOLOv5 and the ultralytics found.",
    epilog="in a YAML: [-1, 1, EMA, []] or [-1, 1, EMA, [16]] or [-1, 1, EMA, [{groups: 16}]]; the number of "
    "channels comes from the row that the block reads. A row C3_EMA is a C3 with EMA behind each of its bottlenecks "
    "(cfg --inside C3 writes such rows)",
)
