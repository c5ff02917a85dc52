"""``yolov5-ema paper recipe``: the authors' recipe for a block, and for the same model without it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from yolov5_ema.cfgs.generator import SIZES
from yolov5_ema.cli import compare
from yolov5_ema.cli.cfg import resolve_block, write_texts
from yolov5_ema.cli.command import (
    PROGRAM,
    Command,
    add_device,
    add_force,
    add_image_size,
    add_output,
    check_at_least_one,
    check_image_size,
)
from yolov5_ema.errors import UserError
from yolov5_ema.paper.recipes import EPOCHS, IMGSZ, PUBLISHED, RECIPES, SOURCE, WIRINGS, PaperRecipe
from yolov5_ema.texts import listed
from yolov5_ema.upstream.data_yaml import engine_at_hand
from yolov5_ema.upstream.flags import parser_in_text

_EPILOG = """\
The paper's models with a block were trained from released weights for 300 epochs; its baseline for COCO has the
figures of the release itself (docs/paper.md). This command gives the model without a block the same training: the same
weights, epochs, hyperparameters and seeds. It writes the model YAMLs and prints the commands, as a shell script; --run
also trains and compares.

All other flags go to `yolov5-ema compare`, and by it to YOLOv5's train: --hyp, --cache, --workers, --task test …

examples:
  yolov5-ema paper recipe coco
  yolov5-ema paper recipe visdrone --block EMA CA CBAM --wiring blocks > recipe.sh
  yolov5-ema paper recipe coco --data my.yaml --size n --epochs 100 --batch 16 --run
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Write the cfgs, print the commands, and run the comparison if asked."""
    recipe = RECIPES[args.dataset]
    _check(args, recipe)
    blocks = list(dict.fromkeys(resolve_block(name, {}) for name in args.block))
    size = args.size or recipe.size
    cfgs = recipe.cfgs(blocks, size, args.wiring or PUBLISHED)
    for cfg in cfgs.values():
        cfg.check_fit()
    folder = args.output or Path("runs/paper", args.dataset)
    files = [folder / name for name in cfgs]
    words = [*_comparison(args, recipe, files, size), *rest]
    compared = _checked(words, files)
    write_texts(folder, {folder / name: cfg.text() for name, cfg in cfgs.items()}, args.force)
    print("\n".join(_script(args, recipe, blocks, words, compared)), flush=True)
    return compare.COMMAND.main(words) if args.run else 0


def _check(args: argparse.Namespace, recipe: PaperRecipe) -> None:
    check_at_least_one(args, "epochs", "seeds")
    check_image_size(args.imgsz)
    if args.wiring and not recipe.has_stride_4:
        raise UserError(f"--wiring is for visdrone: the model for {recipe.title} has one wiring")


def _comparison(args: argparse.Namespace, recipe: PaperRecipe, files: Sequence[Path], size: str) -> list[str]:
    """The arguments of ``yolov5-ema compare``."""
    weights = f"yolov5{size}.pt" if args.weights is None else args.weights
    words = ["--data", args.data or recipe.data, "--cfgs", *map(str, files), "--baseline", str(files[0])]
    words += ["--weights", weights, "--epochs", str(args.epochs), "--img", str(args.imgsz)]
    words += ["--batch-size", str(args.batch_size or recipe.batch_size), "--seeds", str(args.seeds)]
    words += ["--task", "val", "--project", str(files[0].parent), "--name", "compare"]
    words += ["--device", args.device] if args.device else []
    return [*words, *_surroundings(args)]


def _surroundings(args: argparse.Namespace) -> list[str]:
    """The flags of every command that say which YOLOv5 and which blocks of the user there are."""
    words = ["--yolov5", args.yolov5] if args.yolov5 else []
    return [*words, *(word for plugin in args.plugin for word in ("--plugin", plugin))]


def _checked(words: Sequence[str], files: Sequence[Path]) -> argparse.Namespace:
    """The flags of a comparison, checked by the parsers of compare and of YOLOv5's train."""
    compared, flags = compare.COMMAND.parse(words)
    if compared.cfgs != [str(file) for file in files]:
        raise UserError("paper recipe writes the models itself and takes no --cfgs; choose blocks with --block")
    engine = engine_at_hand()
    parser = parser_in_text(engine, "train", prog=f"{PROGRAM} paper recipe") if engine else None
    if parser is not None:
        parser.parse_args(flags)
    return compared


def _script(
    args: argparse.Namespace,
    recipe: PaperRecipe,
    blocks: Sequence[str],
    words: Sequence[str],
    compared: argparse.Namespace,
) -> Iterator[str]:
    """The lines of a shell script."""
    yield f"# {recipe.title}, Table 2 of the paper: {listed(blocks)} against the same model without a block, both by"
    yield f"# the authors' recipe ({SOURCE}), which is, for {EPOCHS} epochs:"
    yield f"#   {recipe.training}"
    yield "# They give no command for the row without a block. Released weights of the time: tag v6.0 of YOLOv5."
    yield f"# Model YAMLs: {' '.join(compared.cfgs)}"
    yield shlex.join([PROGRAM, "compare", *words])
    yield "# Their val, for the first seed:"
    for cfg in compared.cfgs:
        best = compared.project / compared.name / Path(cfg).stem / "seed0/weights/best.pt"
        val = ["val", "--data", compared.data, "--img", str(args.imgsz), *recipe.thresholds, "--weights", str(best)]
        yield shlex.join([PROGRAM, *val, *_surroundings(args)])


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", choices=tuple(RECIPES), help="half of the paper's Table 2")
    parser.add_argument(
        "--block", nargs="+", default=["EMA"], metavar="NAME", help="blocks that are compared (default: EMA)"
    )
    parser.add_argument("--size", choices=tuple(SIZES), help="size of YOLOv5 (default: s for coco, x for visdrone)")
    parser.add_argument(
        "--wiring",
        choices=WIRINGS,
        help="of visdrone: Detect and the Concat at stride 8 read the C3 before the blocks, as in the authors' file "
        f"(published), or the blocks (blocks); both have the same parameters (default: {PUBLISHED})",
    )
    parser.add_argument("--data", metavar="FILE", help="data YAML (default: coco.yaml or visdrone.yaml)")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="start of all trainings (default: the weights released for the size, yolov5s.pt …)",
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N", help=f"default: {EPOCHS}")
    add_image_size(parser, f"pixels (default: {IMGSZ})", default=IMGSZ)
    parser.add_argument(
        "--batch-size",
        "--batch",
        type=int,
        metavar="N",
        help="images (default: 64 for coco, 6 for visdrone)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings per model (default: 3)")
    add_device(parser)
    parser.add_argument(
        "--run", action="store_true", help="also train and compare; run it again to continue after an interruption"
    )
    add_output(
        parser,
        "folder for the YAMLs and the comparison (default: runs/paper/coco or runs/paper/visdrone)",
        metavar="DIR",
    )
    add_force(parser, "replace YAMLs of the same name with another content")


COMMAND = Command(
    "paper recipe",
    "the authors' recipe for a block, and for the same model without it: a fair control",
    _run,
    _add_flags,
    usage="%(prog)s {coco,visdrone} [--run] [flags of paper recipe] [flags of compare] [flags of YOLOv5's train]",
    description="Write the models of the paper's Table 2 with and without a block, and the commands that train both "
    "alike.",
    epilog=_EPILOG,
    passes_to="train",
)
