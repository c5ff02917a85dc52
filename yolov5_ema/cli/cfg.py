"""``yolov5-ema cfg``: write a model YAML with attention rows."""

from __future__ import annotations

import argparse
import inspect
import logging
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolov5_ema.cfgs.generator import (
    HEADS,
    HOSTS,
    NO_BLOCK,
    PLACES,
    SHIPPED,
    SHIPPED_FOR_ULTRALYTICS,
    SIZES,
    Recipe,
    load_base,
    parse_option,
)
from yolov5_ema.cfgs.graph import Graph
from yolov5_ema.cfgs.oddities import likely_mistakes, log_warnings
from yolov5_ema.cli.command import Command, add_force, add_output
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.files import write_whole, writing_in
from yolov5_ema.texts import counted, did_you_mean, nearest, suggested
from yolov5_ema.upstream.ultralytics import NAME, at_hand, own_cfg, size_in, with_size

DEFAULT_BLOCK = "EMA"
_LOGGER = logging.getLogger(__name__)

_EPILOG = """\
places:
  backbone     after the last two C3 of the backbone (rows 6 and 8 of v6.0), or
               what other models have instead: C2f, C3k2, A2C2f, HGBlock …
  neck         after every such stage of the neck except those at the coarsest
               stride (32)
  every-c3     after every such stage
  sppf         after SPPF, SPP or a similar pyramid of poolings
  detect       before each input of Detect: after the rows that it reads
  8 16         after every stage at these strides; `neck 8` is those of the neck

heads:
  p3           YOLOv5 v6.0's own: strides 8, 16, 32
  p2           a fourth level at stride 4 for tiny objects, Focus stem, SPP
  p2-published p2 as the paper counts its VisDrone baseline: two Concats read
               1x1 convolutions instead of C3 outputs
  p2-tph-published
               p2 as the paper's VisDrone models are wired: Detect and the Concat
               at stride 8 read the C3 outputs before the blocks

--inside C3 (or C2f, C3k2) puts the block behind each bottleneck inside these
stages instead: a row C3 becomes C3_EMA. Pretrained weights still fit.

models of the package ultralytics:
  --base takes the name of any of its YAMLs, with or without the letter of a
  size: yolov8n.yaml, yolo11-seg.yaml, yolo26s-pose.yaml, rtdetr-l.yaml. The
  file keeps all its sizes, and the letter in the file's name chooses one.
  --head p2 adds a level at stride 4 to those that have such a neck.

Rows that read the row before a block now read the block, and later row numbers
are adjusted. --after takes row numbers of the model without blocks.
--base keeps the rows and keys of your file, but not its comments.
Your own block: yolov5-ema cfg --plugin my_module --block MyBlock

examples:
  yolov5-ema cfg --size s --block EMA -o yolov5s-ema.yaml
  yolov5-ema cfg --size n --block CA --at neck --nc 3 -o yolov5n-ca-neck.yaml
  yolov5-ema cfg --size x --head p2 --block EMA --at neck --nc 10
  yolov5-ema cfg --size s --head p2 --block EMA --at neck 4 8
  yolov5-ema cfg --block EMA --option groups=16 --after 4 6 9
  yolov5-ema cfg --base my.yaml --block CBAM --after 12 -o my-cbam.yaml
  yolov5-ema cfg --block EMA --inside C3 --at backbone -o yolov5s-c3-ema.yaml
  yolov5-ema cfg --base yolo26n.yaml --head p2 --at neck -o yolo26n-p2-neck.yaml
  yolov5-ema cfg --translate tutorial.yaml -o ours.yaml
  yolov5-ema cfg --shipped models --force
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("the model")
    model.add_argument("--size", choices=tuple(SIZES), help="depth and width (default: s, or those of --base)")
    model.add_argument("--head", choices=tuple(HEADS), help="levels that Detect reads (default: p3)")
    model.add_argument(
        "--base",
        metavar="FILE",
        help="model YAML to start from: a path, or the name of a shipped one or of one of ultralytics",
    )
    model.add_argument("--nc", type=int, metavar="N", help="number of classes (default: 80, or that of --base)")
    block = parser.add_argument_group("the block")
    block.add_argument(
        "--block",
        default=DEFAULT_BLOCK,
        metavar="NAME",
        help="a block listed by `yolov5-ema blocks`, or none (default: EMA)",
    )
    block.add_argument(
        "--at",
        nargs="+",
        type=lambda word: int(word) if word.isdecimal() else word,
        metavar="PLACE",
        help=f"where blocks go: {', '.join(PLACES)}, or strides such as 8 16 (default: backbone)",
    )
    block.add_argument(
        "--after", type=int, nargs="+", metavar="ROW", help="instead of --at: put blocks after these rows"
    )
    block.add_argument("--inside", choices=HOSTS, help="put the block behind each bottleneck inside these modules")
    block.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="K=V",
        help="option of the block, such as groups=16 (repeatable)",
    )
    out = parser.add_argument_group("the output")
    add_output(out, "file to write (default: standard output)")
    out.add_argument("--shipped", metavar="DIR", help="write all the package's own YAMLs into DIR")
    out.add_argument(
        "--translate",
        metavar="FILE",
        help="rewrite a model YAML of other code: names of blocks, their arguments, row numbers that were not adjusted",
    )
    add_force(out)


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Write one model YAML, or all shipped ones with ``--shipped``."""
    if args.shipped is not None:
        return _write_shipped(args)
    if args.translate is not None:
        return _translate(args)
    options = dict(parse_option(text) for text in args.option)
    recipe = Recipe(
        size=args.size,
        block=resolve_block(args.block, options),
        at=args.at,
        head=args.head,
        after=args.after,
        base=args.base,
        options=options or None,
        nc=args.nc,
        inside=args.inside,
    )
    graph, misfits = recipe.graph(), recipe.check_fit()
    text = recipe.text()
    name = str(args.output or args.base or "the model")
    log_warnings(likely_mistakes(graph), name)
    if misfits:
        _LOGGER.warning("yolov5-ema: warning: %s: the block does not fit in size %s", name, ", ".join(misfits))
    if args.output is None:
        sys.stdout.write(text)
        return 0
    write_text(args.output, text, args.force)
    return _written(args.output, graph, recipe.letter(graph))


def _written(output: Path, graph: Graph, letter: str = "") -> int:
    if graph.of_ultralytics:
        _say_next(output, graph, letter)
    else:
        command = suggested("train", "--cfg", output, "--data", "DATA.yaml", "--weights", "")
        print(f"{output} written. Next: {command}")
    return 0


def _say_next(output: Path, graph: Graph, letter: str) -> None:
    """Say how to train a YAML of ultralytics, which takes the size from the name by which it is called."""
    sizes = list(graph.settings.get("scales", {}))
    in_name = size_in(output.name)
    built = in_name if in_name in sizes else next(iter(sizes), "")
    named = output.with_name(with_size(output.name, letter)) if letter and not in_name else output
    if graph.rows[-1].module == "RTDETRDecoder" and "rtdetr" not in output.stem.lower():
        print(f"{output} written")
        _LOGGER.warning(
            "yolov5-ema: warning: %s: ultralytics trains it as an RT-DETR only if its name contains rtdetr: name it "
            "like rtdetr-%s",
            output,
            output.name,
        )
        return
    print(f"{output} written. Next: {suggested('train', f'model={named}', 'data=DATA.yaml')}")
    if named != output:
        print(f"Its own name has no letter of a size, but ultralytics finds it as {named.name}")
    elif letter and letter == built != in_name:
        print(f"Its name has no letter of a size, so ultralytics builds the first in it, {built}")
    elif letter and letter != built:
        _LOGGER.warning(
            "yolov5-ema: warning: %s: size %s was asked for, but ultralytics takes the size from a letter in the "
            "file's name, and would build %s: name it like yolo26%s-ema.yaml",
            output,
            letter,
            built,
            letter,
        )
    elif len(sizes) > 1 and not letter:
        example = with_size("yolo26-ema.yaml", sizes[0])
        print(f"It holds the sizes {', '.join(sizes)}; a letter in its name chooses one, as in {example}")


def resolve_block(name: str, options: Mapping[str, Any]) -> str:
    """The registered name of a block, ignoring case. Checks that the block takes these options.

    Raises:
        ConfigError: there is no such block or option. The message suggests the nearest name or lists all.
    """
    if name.lower() == NO_BLOCK:
        return NO_BLOCK
    # Imported here because the registry imports torch, which would slow down `--help`.
    from yolov5_ema.blocks import block_info, list_blocks
    from yolov5_ema.cli._yolov5 import load_plugins

    load_plugins()
    same = [block for block in list_blocks(on_demand=True) if block.lower() == name.lower()]
    try:
        info = block_info(name if name in same or not same else same[0])
    except ValueError as error:
        raise ConfigError(
            f"--block: {error}. For a model without blocks, use --block {NO_BLOCK}; "
            f"for your own block, add --plugin its_module"
        ) from None
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(info.cls).parameters.values()):
        known = [option for option, _ in info.options]
        for option in options:
            if option not in known:
                hint = did_you_mean(nearest(option, known))
                takes = info.signature or "none"
                raise ConfigError(f"{info.name} has no option {option}{hint} It takes: {takes}")
    return info.name


def write_text(path: Path, text: str, force: bool = False) -> None:
    """Write a file atomically: completely or not at all.

    Raises:
        UserError: the file exists and ``force`` is false, or it cannot be written.
    """
    if path.exists() and not force:
        raise UserError(f"{path} exists and is left as it is; name another file, or replace it with --force")
    write_whole(path, text)


def _write_shipped(args: argparse.Namespace) -> int:
    """Write all shipped files, except those that are up to date."""
    if args.output is not None or args.translate is not None or _asks_for_a_model(args):
        raise ConfigError("--shipped DIR writes a fixed set of files; of the other flags, it takes only --force")
    folder = Path(args.shipped)
    if not folder.is_dir():
        raise UserError(f"--shipped {folder}: there is no such folder; create it first")
    texts = {folder / name: recipe.text() for name, recipe in SHIPPED.items()}
    texts.update({folder / NAME / name: recipe.text() for name, recipe in _for_ultralytics().items()})
    written = write_texts(folder, texts, args.force)
    print(f"{folder}: {counted(written, 'file')} written, {len(texts) - written:,} up to date")
    return 0


def write_texts(folder: Path, texts: Mapping[Path, str], force: bool = False) -> int:
    """Write files in a folder, except those that hold their text already; folders are made.

    Returns:
        The number of files that were written.

    Raises:
        UserError: a file exists with another text and ``force`` is false, or one cannot be written.
    """
    stale = [path for path, text in texts.items() if not _holds(path, text)]
    kept = [path.name for path in stale if path.exists() and not force]
    if kept:
        raise UserError(
            f"{folder} has other versions of {', '.join(kept)}; they are left as they are. Replace them with --force"
        )
    with writing_in(folder):
        for path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, texts[path], force)
    return len(stale)


def _asks_for_a_model(args: argparse.Namespace) -> bool:
    """Whether flags say which model to write."""
    flags = (args.size, args.head, args.base, args.nc, args.at, args.after, args.inside)
    return any(value is not None for value in flags) or bool(args.option) or args.block != DEFAULT_BLOCK


def _translate(args: argparse.Namespace) -> int:
    """Write a model YAML of other code with the blocks of this package, and print each change."""
    # Imported here because it needs the blocks, and so torch.
    from yolov5_ema.cfgs.translation import translated
    from yolov5_ema.cli._yolov5 import load_plugins

    if _asks_for_a_model(args):
        raise ConfigError("--translate FILE keeps the file's model; of the other flags, it takes only -o and --force")
    load_plugins()
    found = translated(load_base(args.translate), args.translate)
    to_file = args.output is not None
    for change in found.changes or ["nothing is changed"]:
        print(f"{args.translate}: {change}", file=sys.stdout if to_file else sys.stderr)
    log_warnings(likely_mistakes(found.graph), args.translate)
    text = found.graph.to_text([shlex.join(["yolov5-ema", "cfg", "--translate", str(args.translate)])])
    if not to_file:
        sys.stdout.write(text)
        return 0
    write_text(args.output, text, args.force)
    return _written(args.output, found.graph)


def _for_ultralytics() -> dict[str, Recipe]:
    """The shipped YAMLs for ultralytics whose base the installed package has; says which are left out."""
    engine = at_hand()
    missing = [
        name for name, recipe in SHIPPED_FOR_ULTRALYTICS.items() if not engine or not own_cfg(str(recipe.base), engine)
    ]
    if missing:
        found = f"{engine} does not have" if engine else "the package ultralytics, which is not installed, has"
        print(f"{', '.join(missing)} not written: {found} the YAMLs that they are made from", file=sys.stderr)
    return {name: recipe for name, recipe in SHIPPED_FOR_ULTRALYTICS.items() if name not in missing}


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode("utf-8")
    except OSError:
        return False


COMMAND = Command(
    "cfg",
    "write a model YAML with attention blocks anywhere in a YOLO",
    _run,
    _add_flags,
    description="Write a model YAML with attention blocks, for `yolov5-ema train --cfg FILE`, or for ultralytics.",
    epilog=_EPILOG,
    only_looks=True,
)
