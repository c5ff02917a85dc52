"""The plan of a comparison: its cfgs, its seeds, and the one recipe that all of its trainings share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolov5_ema import reading
from yolov5_ema.comparing import machine
from yolov5_ema.comparing.by_ultralytics import UltralyticsTrainer
from yolov5_ema.comparing.by_yolov5 import Yolov5Trainer
from yolov5_ema.comparing.trainer import Common, Trainer, sha256
from yolov5_ema.data.dataset import Dataset, label_path
from yolov5_ema.engine import shim
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.evaluation.judged import labelled_images
from yolov5_ema.files import write_whole
from yolov5_ema.resources import find_shipped
from yolov5_ema.scripts.yolo import assignments
from yolov5_ema.upstream.data_yaml import check_data, open_dataset
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.model_yaml import cfg_of_ultralytics
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS

YOLOV5, COCO = "yolov5", "coco"
RECIPE_FILE = "recipe.json"
TASKS = ("auto", "val", "test")

# names of shipped YAMLs by the SHA-256 of earlier versions, which differ only in comments
_EARLIER_TEXTS = Path(__file__).with_name("earlier_texts.json")


@dataclass(frozen=True)
class Plan:
    """A comparison that was checked and can start.

    Attributes:
        folder: the folder of its runs and results.
        cfgs: model YAMLs by name; the name is the stem of the path or name that was given.
        trainers: of the engine of each model, by the same names.
        baseline: name of the model that the others are compared with.
        seeds: 0, 1 …
        common: the options of all trainings.
        protocol: by which best.pt is scored: ``yolov5`` or ``ultralytics``, that of the engine's own ``val``, or
            ``coco`` if models of both are compared.
        task: the split that is reported, ``val`` or ``test``.
        objects: number of labelled objects in this split, if models of both engines are scored on it.
        nc: number of classes.
        recipe: what must not change between two calls for one folder, as read from JSON.
        last: the figures of a run are the mean of this many epochs at its end; None: those of best.pt.
    """

    folder: Path
    cfgs: Mapping[str, Path]
    trainers: Mapping[str, Trainer]
    baseline: str
    seeds: tuple[int, ...]
    common: Common
    protocol: str
    task: str
    objects: int | None
    nc: int
    recipe: Mapping[str, Any]
    last: int | None = None

    @property
    def scored(self) -> str:
        """What the figures of a run are from."""
        if self.last is None:
            return "best.pt"
        return "the last epoch" if self.last == 1 else f"the mean of the last {self.last} epochs"

    @property
    def engines(self) -> list[Engine]:
        """The engines that take part."""
        return list({trainer.engine.kind: trainer.engine for trainer in self.trainers.values()}.values())

    @property
    def is_mixed(self) -> bool:
        """Whether models of both engines are compared."""
        return len(self.engines) > 1


def engines_of(cfgs: Sequence[str]) -> dict[str, Engine]:
    """The engines that model YAMLs are for, with the blocks known to them: ``yolov5``, ``ultralytics`` or both.

    Raises:
        UserError: a YAML cannot be read, or an engine is not installed.
    """
    kinds = {ULTRALYTICS if cfg_of_ultralytics(cfg) is not None else YOLOV5 for cfg in cfgs}
    return {
        kind: shim.install(ULTRALYTICS if kind == ULTRALYTICS else None)
        for kind in (YOLOV5, ULTRALYTICS)
        if kind in kinds
    }


def prepare(
    engines: Mapping[str, Engine],
    *,
    folder: Path,
    data: str,
    cfgs: Sequence[str],
    baseline: str | None = None,
    seeds: int = 3,
    flags: Sequence[str] = (),
    task: str = "auto",
    last: int | None = None,
) -> Plan:
    """Check all arguments of a comparison without writing anything.

    Args:
        engines: see `engines_of`.
        folder: folder of the comparison; it is made later, or an earlier call of the same comparison has made it.
        data: a data YAML, or the name of a shipped one.
        cfgs: model YAMLs, or names of shipped ones.
        baseline: name or path of one of the cfgs; None for the first.
        seeds: number of trainings of each model.
        flags: flags of YOLOv5's ``train`` for all trainings, and arguments of ultralytics (``lr0=0.02``) for its own.
        task: ``val``, ``test`` or ``auto``, which is test if the data set has labelled test images, else val.
        last: see `Plan`; trainings evaluate their epochs on val only.

    Raises:
        UserError: an argument cannot be used; the message says what is wrong and what to do.
        SystemExit: raised by YOLOv5's own parser for an unknown flag.
    """
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1 (3 or more for a useful interval), not {seeds}")
    own = [flag for flag in flags if assignments([flag]) and not Path(flag).exists()]
    if own and ULTRALYTICS not in engines:
        raise UserError(f"{own[0]} is an argument of ultralytics, but none of the --cfgs is a model of it")
    shared = [flag for flag in flags if flag not in own]
    yolov5 = Yolov5Trainer(engines[YOLOV5], shared, data, folder) if YOLOV5 in engines else None
    dataset = open_dataset(str(yolov5.data) if yolov5 else data, next(iter(engines.values())))
    by_engine: dict[str, Trainer] = {} if yolov5 is None else {YOLOV5: yolov5}
    if ULTRALYTICS in engines:
        beside = yolov5.common if yolov5 else None
        by_engine[ULTRALYTICS] = UltralyticsTrainer(engines[ULTRALYTICS], shared, own, dataset, folder, beside)
    named, trainers = _named_cfgs(cfgs, by_engine)
    for name, file in named.items():
        trainers[name].check(name, file)
    if yolov5:
        yolov5.check_init({name: file for name, file in named.items() if trainers[name] is yolov5})
    common = next(iter(by_engine.values())).common
    if last is not None:
        _check_last(last, common, task, len(by_engine))
    chosen = "val" if last else _chosen_task(dataset, task)
    for engine in engines.values():
        check_data(dataset, ("train", "val", chosen), engine)
    protocol = COCO if len(by_engine) > 1 else next(iter(by_engine))
    plan = Plan(
        folder=folder.resolve(),
        cfgs=named,
        trainers=trainers,
        baseline=_baseline(baseline, cfgs, named),
        seeds=tuple(range(seeds)),
        common=common,
        protocol=protocol,
        task=chosen,
        objects=_objects(dataset, chosen) if protocol == COCO else None,
        nc=1 if common.single_cls else len(dataset.names),
        recipe=_recipe(by_engine, protocol, dataset, named, chosen, last),
        last=last,
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


def _named_cfgs(cfgs: Sequence[str], by_engine: Mapping[str, Trainer]) -> tuple[dict[str, Path], dict[str, Trainer]]:
    if len(cfgs) < 2:
        raise UserError(f"--cfgs needs at least two models to compare, not {len(cfgs)}")
    named: dict[str, Path] = {}
    trainers: dict[str, Trainer] = {}
    for given in cfgs:
        trainer = by_engine[ULTRALYTICS if cfg_of_ultralytics(given) is not None else YOLOV5]
        name, path = trainer.found(given)
        if not path.is_file():
            raise ConfigError(f"--cfgs {given or repr(given)}: not a model YAML")
        other = named.get(name)
        if other == path:
            raise UserError(f"--cfgs names {given} twice")
        if other is not None:
            raise UserError(
                f"--cfgs: {other} and {path} are both called {name}, and results are stored by that name; "
                "rename one of them"
            )
        named[name], trainers[name] = path, trainer
    return named, trainers


def _baseline(baseline: str | None, cfgs: Sequence[str], named: Mapping[str, Path]) -> str:
    if baseline is None:
        return next(iter(named))
    for given, (name, path) in zip(cfgs, named.items()):
        if baseline in (given, name, f"{name}{path.suffix}", str(path)):
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


def _check_last(last: int, common: Common, task: str, engines: int) -> None:
    if not 1 <= last <= common.epochs:
        raise UserError(f"--last must be a number of epochs from 1 to --epochs {common.epochs}, not {last}")
    if task == "test":
        raise UserError("--last: after each epoch, trainings evaluate the val split, not test; leave out --task test")
    if common.noval:
        raise UserError("--last needs the figures of every epoch: leave out --noval (or val=False)")
    if engines > 1:
        raise UserError("--last compares models of one engine: the val of two engines gives other figures")


def _objects(dataset: Dataset, split: str) -> int:
    """The number of objects in a split that both engines evaluate completely.

    Raises:
        UserError: they would leave out some of its images.
    """
    found = labelled_images(dataset, split)
    if found.left_out:
        image, reason = found.left_out[0]
        raise UserError(
            f"{len(found.left_out)} images of the {split} split cannot be used, so that models of two engines may be "
            f"scored on different ones; the first, {image}: {reason}"
        )
    return sum(map(len, found.rows.values()))


# --- the recipe -----------------------------------------------------------------------------


def _recipe(
    by_engine: Mapping[str, Trainer],
    protocol: str,
    dataset: Dataset,
    cfgs: Mapping[str, Path],
    task: str,
    last: int | None,
) -> dict[str, Any]:
    first, *others = by_engine.items()
    engines = [trainer.engine for trainer in by_engine.values()]
    recipe = first[1].recipe
    found = {
        "options": recipe["options"],
        "task": task,
        "data": {
            "file": str(dataset.file),
            "sha256": sha256(dataset.file),
            "root": str(dataset.root.resolve()),
            **{split: _fingerprint(dataset, split) for split in {"train": 0, "val": 0, task: 0}},
        },
        "hyp": recipe["hyp"],
        "weights": recipe["weights"],
        "cfgs": {name: {"file": str(path), "sha256": sha256(path)} for name, path in cfgs.items()},
        "software": {
            name: version
            for name, version in machine.software(*engines).items()
            if name in (YOLOV5, ULTRALYTICS, "torch", "yolov5_ema")
        },
        # other comparisons keep the form that they had before these existed
        **({} if protocol == YOLOV5 else {"protocol": protocol}),
        **({"last": last} if last else {}),
        **{name: trainer.recipe for name, trainer in others},
    }
    return json.loads(json.dumps(found))  # in the form in which it will be read from the file


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


def recipe_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the differences between two recipes, one line for each; models that only one of them has are ignored.

    Files are compared by content, not by path. The data are compared by the names of images and the sizes of label
    files.
    """
    protocols = [recipe.get("protocol", YOLOV5) for recipe in (before, now)]
    if protocols[0] != protocols[1]:
        return [
            f"the models of one engine or of both, and with it the scoring: {protocols[0]} there, {protocols[1]} now"
        ]
    lines = _differences_of_engine(before, now)
    lines += [f"ultralytics, {line}" for line in _differences_of_engine(*(r.get(ULTRALYTICS) for r in (before, now)))]
    for what, old, new in (
        ("task", before["task"], now["task"]),
        ("--last", before.get("last", "none"), now.get("last", "none")),
    ):
        if old != new:
            lines.append(f"{what}: {old} there, {new} now")
    lines += _data_differences(before["data"], now["data"])
    for name in before["cfgs"].keys() & now["cfgs"].keys():
        lines += _file_difference(f"cfg {name}", before["cfgs"][name], now["cfgs"][name])
    for name in sorted({*before["software"], *now["software"]}):
        old, new = before["software"].get(name), now["software"].get(name)
        if old != new:
            lines.append(f"{name}: {old} there, {new} now")
    return lines


def _differences_of_engine(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    """The differences of the options, hyperparameters and weights of one engine."""
    if before is None or now is None:
        return []
    lines = [
        f"{name}: {_shown(before['options'].get(name))} there, {_shown(now['options'].get(name))} now"
        for name in sorted({*before["options"], *now["options"]} - {"weights"})
        if before["options"].get(name) != now["options"].get(name)
    ]
    for what in ("hyp", "weights"):
        lines += _file_difference(what, before[what], now[what])
    return lines


def _shown(option: Any) -> str:
    return "none" if option is None else repr(option)


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
    return shipped is not None and sha256(shipped) == new


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
    """Write the recipe and the trainers' files into the comparison's folder; models of earlier calls stay in it."""
    before = read_json(plan.folder / RECIPE_FILE) or {}
    cfgs = {**before.get("cfgs", {}), **plan.recipe["cfgs"]}
    write_json(plan.folder / RECIPE_FILE, {**plan.recipe, "cfgs": cfgs})
    for trainer in plan.trainers.values():
        for file, text in trainer.texts.items():
            write_whole(file, text)
