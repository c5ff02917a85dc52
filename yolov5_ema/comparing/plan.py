"""The plan of a comparison: its cfgs, its seeds, and the one recipe that all of its trainings share."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolov5_ema import reading
from yolov5_ema.comparing import machine
from yolov5_ema.data.dataset import Dataset, label_path
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.files import sha256_of, write_whole
from yolov5_ema.resources import find_shipped
from yolov5_ema.scripts import preflight
from yolov5_ema.scripts.running import command_line
from yolov5_ema.upstream.data_yaml import check_data, open_dataset
from yolov5_ema.upstream.flags import given_flags
from yolov5_ema.upstream.locate import Engine

RECIPE_FILE = "recipe.json"
TASKS = ("auto", "val", "test")

# names of shipped YAMLs by the SHA-256 of earlier versions, which differ only in comments
_EARLIER_TEXTS = Path(__file__).with_name("earlier_texts.json")

_OWN_FLAGS = {
    "--cfg": "the models are named with --cfgs",
    "--seed": "--seeds N trains every model with seeds 0 to N - 1",
    "--resume": "the same compare command continues where it was interrupted",
    "--evolve": "all trainings share one recipe",
    "--exist-ok": "the same compare command continues in the same folder",
    "--local_rank": "compare itself starts each training",
}
# options that differ between the runs of a comparison or are recorded separately (data and hyp: by their content)
_NOT_SHARED = {"cfg", "data", "hyp", "project", "name", "exist_ok", "resume", "evolve", "seed", "local_rank"}


@dataclass(frozen=True)
class Plan:
    """A comparison that was checked and can start.

    Attributes:
        folder: the folder of its runs and results.
        data: the data YAML.
        cfgs: model YAMLs by name; the name is the file's stem.
        baseline: name of the model that the others are compared with.
        seeds: 0, 1 …
        flags: the flags of YOLOv5's ``train`` that every training gets.
        options: the same flags as parsed by YOLOv5.
        task: the split that is reported, ``val`` or ``test``.
        nc: number of classes.
        recipe: what must not change between two calls for one folder, as read from JSON.
    """

    folder: Path
    data: Path
    cfgs: Mapping[str, Path]
    baseline: str
    seeds: tuple[int, ...]
    flags: tuple[str, ...]
    options: argparse.Namespace
    task: str
    nc: int
    recipe: Mapping[str, Any]


def prepare(
    engine: Engine,
    *,
    folder: Path,
    data: str,
    cfgs: Sequence[str],
    baseline: str | None = None,
    seeds: int = 3,
    flags: Sequence[str] = (),
    task: str = "auto",
) -> Plan:
    """Check all arguments of a comparison without writing anything.

    Args:
        engine: the YOLOv5, with the shim installed.
        folder: folder of the comparison; it is made later, or an earlier call of the same comparison has made it.
        data: a data YAML, or the name of a shipped one.
        cfgs: model YAMLs, or names of shipped ones.
        baseline: name or path of one of the cfgs; None for the first.
        seeds: number of trainings of each model.
        flags: flags of YOLOv5's ``train``; all trainings get them.
        task: ``val``, ``test`` or ``auto``, which is test if the data set has labelled test images, else val.

    Raises:
        UserError: an argument cannot be used; the message says what is wrong and what to do.
        SystemExit: raised by YOLOv5's own parser for an unknown flag.
    """
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1 (3 or more for a useful interval), not {seeds}")
    _refuse_own_flags(engine, flags)
    options = _parsed(engine, ["--weights", "", *flags, "--data", data])
    if options.epochs < 1:
        raise UserError(f"--epochs must be at least 1, not {options.epochs}")
    named = _named_cfgs(cfgs, engine)
    options.project = str(folder)
    for cfg in named.values():
        preflight.check(argparse.Namespace(**{**vars(options), "cfg": str(cfg)}), "train", engine)
    file = Path(options.data).resolve()
    dataset = open_dataset(str(file), engine)
    chosen = _chosen_task(dataset, task)
    check_data(dataset, ("train", "val", chosen), engine)
    plan = Plan(
        folder=folder.resolve(),
        data=file,
        cfgs=named,
        baseline=_baseline(baseline, cfgs, named),
        seeds=tuple(range(seeds)),
        flags=("--weights", "", *flags, *_absolute_paths(options)),
        options=options,
        task=chosen,
        nc=1 if getattr(options, "single_cls", False) else len(dataset.names),
        recipe=_recipe(engine, options, dataset, named, chosen),
    )
    _check_folder(plan)
    return plan


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file completely or not at all."""
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that `write_json` wrote; None if it does not exist.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return reading.read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Delete it, or name another --name") from error


# --- what was given -------------------------------------------------------------------------


def _refuse_own_flags(engine: Engine, flags: Sequence[str]) -> None:
    """Refuse flags that compare sets itself, also if they are abbreviated or unknown to this YOLOv5."""
    given = {flag.split("=", 1)[0] for flag in flags}
    given.update(f"--{name}" for name in given_flags(engine, "train", flags))
    for flag, why in _OWN_FLAGS.items():
        if flag in given or flag.replace("-", "_").replace("__", "--", 1) in given:
            raise UserError(f"compare takes no {flag}: {why}")


def _parsed(engine: Engine, argv: list[str]) -> argparse.Namespace:
    """Parse the flags with YOLOv5's own parser, so that a mistake is reported now and not by the first training."""
    module: Any = engine.module("train")
    with command_line("compare", argv):
        options: argparse.Namespace = module.parse_opt()
    preflight.resolve_names(options, engine)
    return options


def _named_cfgs(cfgs: Sequence[str], engine: Engine) -> dict[str, Path]:
    if len(cfgs) < 2:
        raise UserError(f"--cfgs needs at least two models to compare, not {len(cfgs)}")
    named: dict[str, Path] = {}
    for given in cfgs:
        found = argparse.Namespace(cfg=given)
        try:
            preflight.resolve_names(found, engine)
        except ConfigError as error:
            raise ConfigError(str(error).replace("--cfg ", "--cfgs ", 1)) from None
        path = Path(found.cfg).resolve() if given else Path()
        if not path.is_file():
            raise ConfigError(f"--cfgs {given or repr(given)}: not a model YAML")
        other = named.get(path.stem)
        if other == path:
            raise UserError(f"--cfgs names {given} twice")
        if other is not None:
            raise UserError(
                f"--cfgs: {other} and {path} are both called {path.stem}, and results are stored by that name; "
                "rename one of them"
            )
        named[path.stem] = path
    return named


def _baseline(baseline: str | None, cfgs: Sequence[str], named: Mapping[str, Path]) -> str:
    if baseline is None:
        return next(iter(named))
    for given, (name, path) in zip(cfgs, named.items()):
        if baseline in (given, name, path.name, str(path)):
            return name
    raise UserError(f"--baseline {baseline} is none of the models: {', '.join(named)}")


def _chosen_task(dataset: Dataset, task: str) -> str:
    if task != "auto":
        return task
    if "test" not in dataset.splits:
        return "val"
    try:
        images = dataset.images("test")
    except ConfigError:
        return "val"
    # benchmarks often do not publish the labels of their test images
    return "test" if any(_size(label_path(image)) for image in images) else "val"


def _absolute_paths(options: argparse.Namespace) -> list[str]:
    """Return the flags with absolute paths, because a training may be resumed from another working directory."""
    found = ["--data", str(Path(options.data).resolve())]
    for flag in ("hyp", "weights"):
        value = getattr(options, flag, None)
        if isinstance(value, str) and value and Path(value).is_file():
            found += [f"--{flag}", str(Path(value).resolve())]
    return found


# --- the recipe -----------------------------------------------------------------------------


def _recipe(
    engine: Engine, options: argparse.Namespace, dataset: Dataset, cfgs: Mapping[str, Path], task: str
) -> dict[str, Any]:
    shared = {name: value for name, value in vars(options).items() if name not in _NOT_SHARED}
    hyp = getattr(options, "hyp", None)
    found = {
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in shared.items()},
        "task": task,
        "data": {
            "file": str(dataset.file),
            "sha256": _sha256(dataset.file),
            "root": str(dataset.root.resolve()),
            **{split: _fingerprint(dataset, split) for split in {"train": 0, "val": 0, task: 0}},
        },
        "hyp": {"file": str(hyp), "sha256": _sha256(Path(hyp))} if hyp else None,
        "weights": _weights(options),
        "cfgs": {name: {"file": str(path), "sha256": _sha256(path)} for name, path in cfgs.items()},
        "software": {
            name: version
            for name, version in machine.software(engine).items()
            if name in ("yolov5", "torch", "yolov5_ema")
        },
    }
    return json.loads(json.dumps(found))  # in the form in which it will be read from the file


def _weights(options: argparse.Namespace) -> dict[str, str] | None:
    weights = str(getattr(options, "weights", "") or "")
    if not weights:
        return None
    return {"file": weights, "sha256": _sha256(Path(weights)) if Path(weights).is_file() else ""}


def _fingerprint(dataset: Dataset, split: str) -> dict[str, Any]:
    """The number of images of a split, and a digest of their names and the sizes of their label files."""
    images = dataset.images(split)
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.name} {_size(label_path(image))}\n".encode())
    return {"images": len(images), "sha256": digest.hexdigest()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def recipe_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the differences between two recipes, one line for each; models that only one of them has are ignored.

    Files are compared by content, not by path. The data are compared by the names of images and the sizes of label
    files.
    """
    lines = [
        f"{name}: {before['options'].get(name)!r} there, {now['options'].get(name)!r} now"
        for name in sorted({*before["options"], *now["options"]} - {"weights"})
        if before["options"].get(name) != now["options"].get(name)
    ]
    if before["task"] != now["task"]:
        lines.append(f"task: {before['task']} there, {now['task']} now")
    for what in ("hyp", "weights"):
        lines += _file_difference(what, before[what], now[what])
    lines += _data_differences(before["data"], now["data"])
    for name in before["cfgs"].keys() & now["cfgs"].keys():
        lines += _file_difference(f"cfg {name}", before["cfgs"][name], now["cfgs"][name])
    for name in sorted({*before["software"], *now["software"]}):
        old, new = before["software"].get(name), now["software"].get(name)
        if old != new:
            lines.append(f"{name}: {old} there, {new} now")
    return lines


def _file_difference(what: str, before: Any, now: Any) -> list[str]:
    old, new = (before or {}).get("sha256"), (now or {}).get("sha256")
    if old == new or _is_earlier_text(old, new):
        return []
    names = [entry["file"] if entry else "none" for entry in (before, now)]
    if names[0] == names[1]:
        return [f"{what}: the content of {names[0]} has changed"]
    return [f"{what}: {names[0]} there, {names[1]} now"]


def _is_earlier_text(old: str | None, new: str | None) -> bool:
    """Whether ``new`` is a YAML that ships with the package, and ``old`` the same YAML with earlier comments."""
    name = json.loads(_EARLIER_TEXTS.read_text()).get(old)
    shipped = find_shipped(name) if name else None
    return shipped is not None and _sha256(shipped) == new


def _data_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = _file_difference("data", before, now)
    for split in ("train", "val", "test"):
        old, new = before.get(split), now.get(split)
        if old and new and old != new:
            lines.append(
                f"data: the {split} images or labels have changed ({old['images']} images before, {new['images']} now)"
            )
    return lines


def _check_folder(plan: Plan) -> None:
    """Refuse a folder that holds something else, or a comparison with another recipe; say what differs."""
    before = read_json(plan.folder / RECIPE_FILE)
    if before is None:
        if plan.folder.is_dir() and any(path.name != ".lock" for path in plan.folder.iterdir()):
            raise UserError(f"{plan.folder} does not hold a comparison; choose another --name")
        return
    try:
        lines = recipe_differences(before, plan.recipe)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{plan.folder / RECIPE_FILE} was written by another version of yolov5-ema; choose another --name"
        ) from error
    if lines:
        listed = "\n  ".join(lines)
        raise UserError(
            f"{plan.folder} holds a comparison with another recipe, whose runs cannot be mixed with these:\n"
            f"  {listed}\nUse the old flags to continue it, or choose another --name for a new one"
        )


def save_recipe(plan: Plan) -> None:
    """Write the recipe into the comparison's folder; models of earlier calls stay in it."""
    before = read_json(plan.folder / RECIPE_FILE) or {}
    cfgs = {**before.get("cfgs", {}), **plan.recipe["cfgs"]}
    write_json(plan.folder / RECIPE_FILE, {**plan.recipe, "cfgs": cfgs})
