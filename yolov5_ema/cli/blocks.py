"""``yolov5-ema blocks``: list the attention blocks."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli._engines import ULTRALYTICS, YOLOV5
from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import (
    Command,
    add_device,
    add_image_size,
    add_json,
    check_image_size,
    print_json,
    results_alone,
)
from yolov5_ema.errors import UserError
from yolov5_ema.files import check_outputs
from yolov5_ema.texts import aligned, listed

if TYPE_CHECKING:
    from yolov5_ema.blocks import BlockInfo
    from yolov5_ema.comparing.block_costs import BlockCost
    from yolov5_ema.comparing.block_support import Support
    from yolov5_ema.upstream.locate import Engine

_LOGGER = logging.getLogger(__name__)


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Print one row for each block, and the names that rows of each engine can have."""
    if args.at is not None:
        return _print_costs(args)
    for flag in ("imgsz", "device", "rounds", "picture"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag} needs --at CFG, the model that blocks are measured in")
    from yolov5_ema.blocks import block_info
    from yolov5_ema.upstream.data_yaml import engine_at_hand
    from yolov5_ema.upstream.ultralytics import at_hand

    with results_alone(args.json) as output:
        load_plugins()
        infos = [block_info(name) for name in _blocks_asked_for(args)]
        counts = [_parameters(one.name, args.channels) for one in infos]
        engines = {YOLOV5: engine_at_hand(), ULTRALYTICS: at_hand()}
        rows_in = {name: _names_in_rows(engine, [one.name for one in infos]) for name, engine in engines.items()}
    if args.json:
        found = [
            {"name": one.name, "parameters": count, "options": dict(one.options), "paper": one.paper}
            | {"limits": list(one.limits)}
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
    if any(one.limits for one in infos):
        print(f"\n{_table_of_limits(infos)}")
    return 0


def _blocks_asked_for(args: argparse.Namespace) -> list[str]:
    """The names that the pattern and ``--all`` ask for; says it if those of other packages cannot be listed.

    Raises:
        UserError: the pattern asks for them, but their package is not installed.
    """
    from yolov5_ema.blocks import block_info, list_blocks

    is_said = "." in args.pattern
    names = list_blocks(args.pattern, on_demand=args.all or is_said)
    others = [name for name in names if name not in list_blocks()]
    try:
        for name in others:
            block_info(name)
    except UserError as error:
        if is_said:
            raise
        _LOGGER.warning("yolov5-ema: warning: %s blocks are not listed: %s", len(others), error)
        return [name for name in names if name not in others]
    return names


def _table_of_limits(infos: Sequence[BlockInfo]) -> str:
    """What does not hold for some blocks, and for which ones."""
    limits = {limit: [one.name for one in infos if limit in one.limits] for info in infos for limit in info.limits}
    rows = [[limit, ", ".join(names)] for limit, names in limits.items()]
    return aligned([["what does not hold", "blocks"], *rows], left=(0, 1))


def _print_costs(args: argparse.Namespace) -> int:
    """Print what each block costs behind the last two stages of a model's backbone, as measured here."""
    imgsz = 640 if args.imgsz is None else args.imgsz
    rounds = 20 if args.rounds is None else args.rounds
    check_image_size(imgsz, least=32)
    if rounds < 2:
        raise UserError(f"--rounds must be at least 2, not {rounds}")
    if args.picture is not None:
        check_outputs([args.picture], force=True)

    from yolov5_ema.blocks import list_blocks
    from yolov5_ema.cli._yolov5 import start_yolov5
    from yolov5_ema.comparing import machine
    from yolov5_ema.comparing.block_costs import block_costs
    from yolov5_ema.comparing.block_support import how_tested, support_of
    from yolov5_ema.upstream.model_yaml import cfg_of_ultralytics
    from yolov5_ema.upstream.ultralytics import located

    with results_alone(args.json) as output:
        load_plugins()
        of_ultralytics = cfg_of_ultralytics(args.at) is not None
        engine = located() if of_ultralytics else start_yolov5()
        cfg = args.at if of_ultralytics else _found(args.at, engine)
        device = machine.torch_device(args.device or "")
        imgsz = -(-imgsz // 32) * 32
        blocks = _blocks_asked_for(args)
        if not blocks:
            raise UserError(f"no block matches {args.pattern!r}; the blocks are {', '.join(list_blocks())}")
        costs = block_costs(cfg, blocks, of_ultralytics=of_ultralytics, imgsz=imgsz, device=device, rounds=rounds)
        here = machine.machine(device)
    title = (
        f"{Path(args.at).stem} at {imgsz} pixels, blocks behind the last two stages of the backbone; {here['device']}, "
        f"{here['threads']} threads, {rounds} rounds, load {here['load']}"
    )
    if args.picture is not None:
        from yolov5_ema.comparing.block_picture import draw

        draw(costs, args.picture, title)
    supports = {block: support_of(block) for block in blocks}
    if args.json:
        how = {
            "model": args.at,
            "imgsz": imgsz,
            "rounds": rounds,
            "machine": here,
            "software": machine.software(engine),
        }
        found = [{**asdict(cost), "support": supports.get(cost.block, {})} for cost in costs]
        print_json({**how, "support_tested": how_tested(), "blocks": found}, output)
        return 0
    print(f"{title}\n\n{aligned(_cost_table(costs), left=(0, 8))}\n\n{_support_text(supports, of_ultralytics)}")
    return 0


def _support_text(supports: Mapping[str, Support], of_ultralytics: bool) -> str:
    """What each exported block runs in, with the engine of the model."""
    from yolov5_ema.comparing.block_support import how_tested, reasons, table_of

    label = "ultralytics" if of_ultralytics else "YOLOv5"
    own = {
        block: {engine: found for engine, found in support.items() if engine.startswith(label)}
        for block, support in supports.items()
    }
    engines = listed(dict.fromkeys(engine for support in own.values() for engine in support))
    if not engines:
        return f"exported models with {listed(own)} were not tested"
    table = table_of(own)
    parts = [f"exported from {engines}, as tested:", aligned(table, left=range(len(table[0])))]
    return "\n\n".join([*parts, "\n".join([*reasons(own), f"tested {how_tested()}"])])


def _found(name: str, engine: Engine) -> Path:
    from yolov5_ema.upstream.data_yaml import find_yaml

    found = find_yaml(name, engine)
    if found is None:
        raise UserError(f"--at {name}: no such file here, among the YAMLs of yolov5-ema or of {engine}")
    return found


def _cost_table(costs: Sequence[BlockCost]) -> list[list[str]]:
    heads = ["block", "parameters", "GFLOPs", "alone ms", "detector ms", "quartiles", "ratio", "kept MiB", "paper"]
    table = [heads]
    for cost in costs:
        if cost.detector_ms is None or cost.detector_quartiles_ms is None:
            table.append([cost.block, *["-"] * 7, f"not possible: {cost.reason}"])
            continue
        low, high = cost.detector_quartiles_ms
        alone = "-" if cost.alone_ms is None else f"{cost.alone_ms:.2f}"
        kept = "-" if cost.kept_mib is None else f"{cost.kept_mib:.2f}"
        table.append([cost.block, f"{cost.parameters:,}", f"{cost.gflops:.3f}", alone, f"{cost.detector_ms:.1f}"])
        table[-1] += [f"{low:.1f} to {high:.1f}", f"{cost.ratio:.3f}", kept, cost.paper]
    return table


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
    parser.add_argument("--all", action="store_true", help="also timm's attention layers, such as timm.eca")
    parser.add_argument("--channels", type=int, default=512, help="channels to count parameters for (default: 512)")
    add_json(parser)
    cost = parser.add_argument_group("what blocks cost in a model")
    cost.add_argument(
        "--at",
        metavar="CFG",
        help="a model YAML, such as yolov5s.yaml or yolo11n.yaml: measure each block in it, on this machine",
    )
    add_image_size(cost, "image side in pixels (default: 640)", default=None)
    add_device(cost, default=None)
    cost.add_argument("--rounds", type=int, metavar="N", help="how often each model runs, in turns (default: 20)")
    cost.add_argument("--picture", type=Path, metavar="FILE", help="also draw the cost against the parameters, as PNG")


COMMAND = Command(
    "blocks",
    "list the attention blocks: options, papers, and names in rows of each engine",
    _run,
    _add_flags,
    description="List the attention blocks that a model YAML can name, with their options and papers, and the names "
    "that a row can have in the YOLOv5 and the ultralytics found.",
    epilog="in a YAML: [-1, 1, EMA, []] or [-1, 1, EMA, [16]] or [-1, 1, EMA, [{groups: 16}]]; the number of "
    "channels comes from the row that the block reads. A row C3_EMA is a C3 with EMA behind each of its bottlenecks "
    "(cfg --inside C3 writes such rows). With --all the table also has timm's attention layers, such as timm.eca, and "
    "says what holds for the blocks of this package but not for them",
)
