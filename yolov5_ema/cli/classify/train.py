"""``yolov5-ema classify train``: train a classifier with a recipe, a model, a block and a data set."""

from __future__ import annotations

import argparse
import reprlib
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov5_ema.cli.classify._options import DATA_HELP, add_workers, prepare, worker_count
from yolov5_ema.cli.command import Command, add_device, add_run_folder, also_called, own_parser
from yolov5_ema.errors import UserError
from yolov5_ema.files import write_whole
from yolov5_ema.texts import counted, suggested

if TYPE_CHECKING:
    from yolov5_ema.classification.datasets import DataSet
    from yolov5_ema.classification.recipes import Settings
    from yolov5_ema.classification.training import Machine

_EPILOG = """\
examples:
  yolov5-ema classify train
  yolov5-ema classify train --data cifar100 --block EMA
  yolov5-ema classify train --data cifar100 --block EMA --block-options '{groups: 16}' --epochs 20
  yolov5-ema classify train --data ../datasets/imagenet --block EMA --block-options '{groups: nearest}' --device 0,1
  yolov5-ema classify train --resume runs/classify/exp/weights/last.ckpt

Every value of a recipe can be set: --set milestones='[10, 15]' --set flip=0. Exit codes: 0; 2 for a user's mistake;
130 if interrupted (continue with --resume).
"""

# The flags that set values of a recipe: for each value's name, the flags and the options for argparse.
_FLAGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "model": (("--model",), {"help": "a timm model (default: that of the recipe)"}),
    "block": (("--block",), {"help": "attention block listed by `yolov5-ema blocks` (default: none)"}),
    "block_options": (
        ("--block-options",),
        {"metavar": "YAML", "help": "block options, such as '{groups: 16}'"},
    ),
    "epochs": (("--epochs",), {"metavar": "N"}),
    "batch": (
        ("--batch", "--batch-size"),
        {"metavar": "N", "help": "images per step, all processes together"},
    ),
    "imgsz": (("--imgsz", "--img", "--img-size"), {"metavar": "N", "help": "side of the input in pixels"}),
    "lr": (("--lr", "--lr0"), {"metavar": "X", "help": "learning rate"}),
    "momentum": (("--momentum",), {"metavar": "X"}),
    "weight_decay": (("--weight-decay", "--decay"), {"metavar": "X"}),
    "optimizer": (("--optimizer",), {"help": "SGD, Adam or AdamW"}),
    "label_smoothing": (("--label-smoothing",), {"metavar": "X"}),
    "average": (
        ("--weight-averaging",),
        {"metavar": "DECAY", "help": "average the weights with this decay, such as 0.9998; 0: do not"},
    ),
    "precision": (("--precision",), {"help": "32-true, 16-mixed or bf16-mixed"}),
    "seed": (
        ("--seed",),
        {"metavar": "N", "help": "random seed of weights, order and augmentation (default: 0)"},
    ),
}
_OLD_NAMES = {"average": ("--average", "--ema")}
_WITH_RESUME = {"resume", "device", "devices", "nodes", "workers", "data", "download", "project"}


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Train, or resume a training."""
    prepare("timm", "lightning", "torchmetrics", "tensorboard")
    if args.resume is not None:
        _refuse_with_resume(args)
    folder, settings = (None, _settings(args)) if args.resume is None else _resumed(args)
    return _carry_out(args, settings, folder)


def _carry_out(args: argparse.Namespace, settings: Settings, folder: Path | None) -> int:
    from yolov5_ema.classification import training
    from yolov5_ema.classification.datasets import open_data
    from yolov5_ema.runs import RunFolder

    machine = training.find_machine(args.device, args.devices, args.nodes, 0)
    machine.workers = worker_count(args.workers, machine.here)
    first = training.is_first_process()
    data = open_data(settings.data, settings.imgsz, download=args.download and first)
    last = None if folder is None else _last_of(folder)
    model = training.build_model(settings, len(data.names), resumed=last is not None)
    training.check(settings, model, len(data.splits["train"]), machine)
    if folder is not None:
        if last is None and first:
            print(f"{folder}: no epoch was finished; the training starts again", flush=True)
        elif last is not None and _is_finished(last, settings):
            return _finish(settings, data, folder, machine) if first else 0
    is_new = folder is None
    if is_new and first:
        folder = RunFolder.fresh(args.project, args.name, args.exist_ok).path
    try:
        with RunFolder(folder).held() if first and folder is not None else nullcontext():
            if is_new and folder is not None:
                _begin(folder, settings, args, machine.workers)
            if first:
                print(f"run folder: {folder}", flush=True)
            training.train(settings, data, model, machine, folder if first else None, last)
    except KeyboardInterrupt:
        if first:
            print(f"continue with: {suggested('classify train', '--resume', folder)}", file=sys.stderr)
        raise
    if not first or folder is None:
        return 0
    return _finish(settings, data, folder, machine)


def _finish(settings: Settings, data: DataSet, folder: Path, machine: Machine) -> int:
    """Evaluate best.pt, and print the results and the next command."""
    from yolov5_ema.classification.checkpoints import load_classifier
    from yolov5_ema.classification.evaluation import evaluate, write_evaluation

    best = folder / "weights" / "best.pt"
    classifier = load_classifier(best, machine.device)
    # The evaluation runs on one device, so the batch must fit there.
    batch = min(settings.batch, 256)
    found = evaluate(classifier, data.splits["val"], batch=batch, workers=machine.workers)
    parameters = sum(parameter.numel() for parameter in classifier.model.parameters())
    write_evaluation(found, data.names, classifier.record, parameters, folder)
    print(
        f"best epoch {classifier.record['epoch'] + 1}: top-1 {found.top1:.2%}, top-5 {found.top5:.2%} of "
        f"{counted(found.images, 'image')}\n{best}\n"
        f"Next: {suggested('classify predict', '--weights', best, '--source', 'IMAGE')}"
    )
    if found.unreadable:
        print(f"{counted(len(found.unreadable), 'image')} of val could not be read, left out", file=sys.stderr)
    return 0


# --- settings ------------------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> Settings:
    from yolov5_ema.classification.datasets import default_recipe
    from yolov5_ema.classification.recipes import make_settings

    data = args.data or "synthetic"
    given = {key: getattr(args, key) for key in _FLAGS if getattr(args, key) is not None}
    if "block_options" in given:
        given["block_options"] = _parsed("--block-options", given["block_options"])
    if args.pretrained is not None:
        given["pretrained"] = args.pretrained
    if args.amp:
        given.setdefault("precision", _amp_precision(args.device))
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set {item}: must be KEY=VALUE")
        given[key.strip()] = _parsed(f"--set {key}", value)
    return make_settings(args.recipe or default_recipe(data), {"data": data, **given})


def _amp_precision(device: str) -> str:
    import torch

    on_gpu = device != "cpu" and torch.cuda.is_available()
    return "16-mixed" if on_gpu and not torch.cuda.is_bf16_supported() else "bf16-mixed"


def _parsed(flag: str, text: str) -> Any:
    from yolov5_ema.data.yaml_files import parse_yaml

    return parse_yaml(text, f"{flag} {reprlib.repr(text)}")


def _begin(folder: Path, settings: Settings, args: argparse.Namespace, workers: int) -> None:
    """Write the settings into a locked run folder, and remove the results of an earlier run (--exist-ok)."""
    import yaml

    for stale in ("metrics.json", "results.csv", "weights/last.ckpt"):
        (folder / stale).unlink(missing_ok=True)
    machine = {"device": args.device, "devices": args.devices, "nodes": args.nodes, "workers": workers}
    content = {**settings.as_dict(), **machine}
    write_whole(folder / "args.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


# --- resuming ------------------------------------------------------------------------------------


def _refuse_with_resume(args: argparse.Namespace) -> None:
    """Raise a UserError for flags that would change the settings of a resumed run."""
    for action in own_parser(_add_flags)._actions:
        given = getattr(args, action.dest, None)
        if action.dest != "help" and action.dest not in _WITH_RESUME and given != action.default:
            raise UserError(
                f"{action.option_strings[0]} with --resume: a run continues with its own settings; leave the flag "
                "out, or start a new run"
            )


def _resumed(args: argparse.Namespace) -> tuple[Path, Settings]:
    """The run folder that ``--resume`` means, and its settings."""
    from yolov5_ema.classification.recipes import Settings, check_together, checked
    from yolov5_ema.data.yaml_files import read_yaml

    folder = _run_folder(args)
    file = folder / "args.yaml"
    if not file.exists():
        raise UserError(
            f"--resume {args.resume}: {file} is missing, so {folder} is not a run folder of 'classify train'; name "
            "the weights/last.ckpt of a run"
        )
    content = read_yaml(file)
    known = Settings().as_dict()
    if not isinstance(content, dict) or not known.keys() <= content.keys():
        raise UserError(f"{file} does not hold the settings of a training")
    values = {key: checked(key, content[key], str(file)) for key in known}
    if args.data:
        values["data"] = args.data
    settings = Settings(**values)
    check_together(settings)
    return folder, settings


def _run_folder(args: argparse.Namespace) -> Path:
    if args.resume:
        place = Path(args.resume)
        if place.is_dir() and place.name != "weights":
            return place
        if not place.exists() and not (place.parent.parent / "args.yaml").is_file():
            raise UserError(f"--resume {place}: no such file or run folder")
        return place.parent if place.is_dir() else place.parent.parent
    found = sorted(args.project.glob("*/args.yaml"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"--resume: no run in {args.project}; name the weights/last.ckpt of a run")
    return Path(found[-1]).parent


def _last_of(folder: Path) -> Path | None:
    last = folder / "weights" / "last.ckpt"
    return last if last.exists() else None


def _is_finished(last: Path, settings: Settings) -> bool:
    """Whether all epochs are done.

    Raises:
        UserError: the training and its evaluation are both finished, so there is nothing to resume.
    """
    from yolov5_ema.classification.checkpoints import load_plainly
    from yolov5_ema.classification.run_files import own_state

    if len(own_state(load_plainly(last), last)["history"]) < settings.epochs:
        return False
    if (last.parent.parent / "metrics.json").is_file():
        raise UserError(f"--resume {last}: the training is finished, after {counted(settings.epochs, 'epoch')}")
    return True


def _add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what")
    what.add_argument("--data", metavar="DATA", help=f"{DATA_HELP} (default: synthetic)")
    what.add_argument(
        "--recipe",
        metavar="NAME",
        help="cifar100, imagenet, synthetic or a YAML file (default: the one for the data)",
    )
    what.add_argument("--download", action="store_true", help="download CIFAR-100 if it is missing")
    what.add_argument(
        "--pretrained",
        nargs="?",
        const=True,
        metavar="FILE",
        help="start from timm's published weights, or from the weights in FILE",
    )
    values = parser.add_argument_group("values that replace those of the recipe")
    for key, (flags, options) in _FLAGS.items():
        action = values.add_argument(*flags, dest=key, **options)
        also_called(values, action, *_OLD_NAMES.get(key, ()))
    values.add_argument("--amp", action="store_true", help="mixed precision: bf16, or fp16 on older GPUs")
    values.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any value of the recipe, as YAML"
    )
    machine = parser.add_argument_group("machine")
    add_device(machine, "cpu, 0 or 0,1 (default: a GPU if there is one)")
    add_workers(machine)
    machine.add_argument("--devices", type=int, metavar="N", help="processes on each machine (default: 1)")
    machine.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default: 1)")
    place = parser.add_argument_group("run folder")
    add_run_folder(place, "runs/classify")
    place.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="last.ckpt",
        help="continue an interrupted run (default: the newest)",
    )


COMMAND = Command(
    "classify train",
    "train a classifier with a recipe; resumable, on several processes and machines",
    _run,
    _add_flags,
    description="Train an image classifier of timm, with an attention block in it.",
    epilog=_EPILOG,
)
