"""What a comparison compares: its cfgs, seeds and the one recipe that all of its trainings share."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolov5_ema import reading
from yolov5_ema.comparing import machine
from yolov5_ema.data.dataset import Dataset, label_path
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.files import sha256_of, write_whole
from yolov5_ema.scripts import preflight
from yolov5_ema.upstream.data_yaml import check_data, open_dataset
from yolov5_ema.upstream.flags import given_flags
from yolov5_ema.upstream.locate import Engine

RECIPE_FILE = "recipe.json"
TASKS = ("auto", "val", "test")

_OWN_FLAGS = {
    "--cfg": "the models are named with --cfgs",
    "--seed": "--seeds N trains every model with seeds 0 to N - 1",
    "--resume": "the same compare command goes on where it was interrupted",
    "--evolve": "all trainings share one recipe",
    "--exist-ok": "the same compare command goes on in the same folder",
    "--local_rank": "each training is started by compare itself",
}
# what differs between the runs of one comparison, or is kept apart (data and hyp: by their content)
_NOT_SHARED = {"cfg", "data", "hyp", "project", "name", "exist_ok", "resume", "evolve", "seed", "local_rank"}


@dataclass(frozen=True)
class Plan:
    """A comparison that was checked and can start.

    Attributes:
        folder: where it keeps its runs and results.
        data: the data YAML.
        cfgs: model YAMLs by name, which is the file's without its suffix.
        baseline: the name of the one that the others are compared with.
        seeds: 0, 1 …
        flags: what every training gets, for YOLOv5's ``train``.
        options: the same as YOLOv5 parsed them.
        task: the split that is reported, ``val`` or ``test``.
        nc: number of classes.
        recipe: what must not change between two calls for one folder, as JSON holds it.
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
    """Check everything that a comparison is given; nothing is written.

    Args:
        engine: the YOLOv5, with the shim installed.
        folder: of the comparison; made later, or that of the same comparison begun earlier.
        data: data YAML, or the name of one that ships.
        cfgs: model YAMLs, or names of ones that ship.
        baseline: name or path of one of the cfgs; None: the first.
        seeds: how many trainings each.
        flags: for YOLOv5's ``train``; all trainings get them.
        task: ``val``, ``test`` or ``auto``: test if the data has labelled images for it.

    Raises:
        UserError: what is wrong, and what to do.
        SystemExit: from YOLOv5's own parser, for a flag that it does not know.
    """
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1 (3 or more for an interval worth having), not {seeds}")
    _refuse_own_flags(engine, flags)
    options = _parsed(engine, ["--weights", "", *flags, "--data", data])
    if options.epochs < 1:
        raise UserError(f"--epochs must be at least 1, not {options.epochs}")
    named = _named_cfgs(cfgs, engine)
    options.project = str(folder)
    for cfg in named.values():
        preflight.check(_with(options, cfg=str(cfg)), "train", engine)
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
    """Write a JSON file so that it is there whole or not at all."""
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file of ours holds; None if there is none.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return reading.read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Delete it, or name another --name") from error


# --- what was given -------------------------------------------------------------------------


def _refuse_own_flags(engine: Engine, flags: Sequence[str]) -> None:
    """Also where they are shortened, and where this YOLOv5 has no such flag."""
    given = {flag.split("=", 1)[0] for flag in flags}
    given.update(f"--{name}" for name in given_flags(engine, "train", flags))
    for flag, why in _OWN_FLAGS.items():
        if flag in given or flag.replace("-", "_").replace("__", "--", 1) in given:
            raise UserError(f"compare takes no {flag}: {why}")


def _parsed(engine: Engine, argv: list[str]) -> argparse.Namespace:
    """The flags as YOLOv5's own parser sees them, so that a mistake is told now and not by the first training."""
    module: Any = engine.module("train")
    before, sys.argv = sys.argv, ["yolov5-ema compare", *argv]
    try:
        options: argparse.Namespace = module.parse_opt()
    finally:
        sys.argv = before
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
            raise ConfigError(f"--cfgs {given or repr(given)}: no model YAML")
        other = named.get(path.stem)
        if other == path:
            raise UserError(f"--cfgs names {given} twice")
        if other is not None:
            raise UserError(
                f"--cfgs: {other} and {path} are both called {path.stem}, and results go by that name; "
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
    # benchmarks keep the labels of their test images to themselves
    return "test" if any(_size(label_path(image)) for image in images) else "val"


def _absolute_paths(options: argparse.Namespace) -> list[str]:
    """Flags again, their files by absolute path: a resumed training reads them from wherever it is resumed."""
    found = ["--data", str(Path(options.data).resolve())]
    for flag in ("hyp", "weights"):
        value = getattr(options, flag, None)
        if isinstance(value, str) and value and Path(value).is_file():
            found += [f"--{flag}", str(Path(value).resolve())]
    return found


def _with(options: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    changed = copy.copy(options)
    vars(changed).update(changes)
    return changed


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
    return json.loads(json.dumps(found))  # as it will be read again


def _weights(options: argparse.Namespace) -> dict[str, str] | None:
    weights = str(getattr(options, "weights", "") or "")
    if not weights:
        return None
    return {"file": weights, "sha256": _sha256(Path(weights)) if Path(weights).is_file() else ""}


def _fingerprint(dataset: Dataset, split: str) -> dict[str, Any]:
    """Images of a split and a digest of their names and the sizes of their labels."""
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
    """What differs between two recipes, a line each; models that only one of them has do not count.

    Files count by their content, not by their place; the data by its images' names and its labels' sizes.
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
    if old == new:
        return []
    names = [entry["file"] if entry else "none" for entry in (before, now)]
    if names[0] == names[1]:
        return [f"{what}: the content of {names[0]} has changed"]
    return [f"{what}: {names[0]} there, {names[1]} now"]


def _data_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = _file_difference("data", before, now)
    for split in ("train", "val", "test"):
        old, new = before.get(split), now.get(split)
        if old and new and old != new:
            lines.append(
                f"data: the {split} images or labels have changed ({old['images']} images there, {new['images']} now)"
            )
    return lines


def _check_folder(plan: Plan) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UserError: names what differs.
    """
    before = read_json(plan.folder / RECIPE_FILE)
    if before is None:
        if plan.folder.is_dir() and any(path.name != ".lock" for path in plan.folder.iterdir()):
            raise UserError(f"{plan.folder} holds something else than a comparison; choose another --name")
        return
    try:
        lines = recipe_differences(before, plan.recipe)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{plan.folder / RECIPE_FILE} is not of this version of yolov5-ema; choose another --name"
        ) from error
    if lines:
        listed = "\n  ".join(lines)
        raise UserError(
            f"{plan.folder} holds a comparison with another recipe, whose runs cannot be mixed with these:\n"
            f"  {listed}\nGive the old flags to go on with it, or choose another --name for a new one"
        )


def save_recipe(plan: Plan) -> None:
    """Note the recipe in the comparison's folder; models that an earlier call had stay in it."""
    before = read_json(plan.folder / RECIPE_FILE) or {}
    cfgs = {**before.get("cfgs", {}), **plan.recipe["cfgs"]}
    write_json(plan.folder / RECIPE_FILE, {**plan.recipe, "cfgs": cfgs})
