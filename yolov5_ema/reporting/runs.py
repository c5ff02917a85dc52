"""Find out what kind of run a folder is, and read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolov5_ema.checkpoints.exported_models import form_of, metadata_of
from yolov5_ema.data.dataset import is_there
from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.errors import UserError
from yolov5_ema.reporting.epochs import Epochs, read_epochs
from yolov5_ema.reporting.reading import file_of, json_of, settings_of_yaml, without_secrets
from yolov5_ema.reporting.shapes import (
    by_name,
    checked,
    maybe,
    number,
    one_of,
    record,
    scalar,
    several,
    whole,
    words,
)
from yolov5_ema.texts import counted
from yolov5_ema.weights.inspection import Inspection, inspect_file

DETECT, CLASSIFY = "detect", "classify"

_LONGEST_NAME = 200

_DRAWN_BY_VAL = (
    *("PR_curve.png", "BoxPR_curve.png", "MaskPR_curve.png", "PosePR_curve.png", "confusion_matrix.png"),
    *("val_batch0_labels.jpg", "val_batch0_pred.jpg"),
)
_DRAWN_BY_EVALUATE = ("PR_curves.png", "confusion_matrix.png")
_LOOKED_FOR = (
    "opt.yaml (a training of YOLOv5), args.yaml (a training of ultralytics, or of yolov5-ema classify), "
    "evaluation.json (yolov5-ema evaluate), comparison.json (yolov5-ema compare), or the pictures or predictions of val"
)


@dataclass
class Run:
    """One training, or a model alone.

    Attributes:
        name: its name on the page, unique there.
        folder: folder of the run; for a model alone, the folder that it is in.
        task: `DETECT` (boxes, also with masks or keypoints) or `CLASSIFY`.
        model: name of the model; runs of one model with several seeds are grouped by it.
        seed: seed of the training; None if it is not known.
        options: options of the training.
        hyp: hyperparameters; empty for classification, where the options hold them.
        epochs: its ``results.csv``; None if there is none.
        weights: path of best.pt, or of a model alone; None if there is none.
        inspection: what this file holds, as far as it can be read without loading it.
        metrics: the ``metrics.json`` of a classifier; else empty.
        pictures: pictures drawn by the training itself.
        notes: what a reader should know about the run.
        is_alone: whether it is a model without the folder of its training.
    """

    name: str
    folder: Path
    task: str
    model: str
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    hyp: Mapping[str, Any] = field(default_factory=dict)
    epochs: Epochs | None = None
    weights: Path | None = None
    inspection: Inspection | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    pictures: Sequence[Path] = ()
    notes: list[str] = field(default_factory=list)
    is_alone: bool = False

    @property
    def place(self) -> Path:
        """What the user named: the folder, or the file of a model alone."""
        return self.weights if self.is_alone and self.weights is not None else self.folder

    @property
    def model_file(self) -> str:
        """The name of the file whose figures are shown."""
        return self.place.name if self.is_alone else "best.pt"

    def beside(self, name: str) -> Path:
        """The path of a file that is written for the run: in its folder, or next to a model alone, with its name."""
        return self.folder / (f"{self.model_file}-{name}" if self.is_alone else name)

    @property
    def cfg(self) -> Mapping[str, Any] | None:
        """The model YAML stored in best.pt, else the file that the training used, if it still exists."""
        if self.inspection is not None and self.inspection.models and self.inspection.models[0].cfg:
            return _as_cfg(self.inspection.models[0].cfg)
        file = Path(str(self.options.get("cfg") or self.options.get("model") or ""))
        is_file = self.task == DETECT and is_there(file) and file.is_file()
        return _as_cfg(read_yaml(file)) if is_file else None


def _as_cfg(content: Any) -> Mapping[str, Any] | None:
    """The content of a model YAML; None for any other file, whose content must not appear on the page."""
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("backbone", "head")):
        return None
    return content


@dataclass
class Evaluated:
    """A folder of ``yolov5-ema evaluate``, or of YOLOv5's ``val``, which keeps no figures.

    Attributes:
        name: its name on the page.
        folder: the folder.
        protocols: for each protocol its results, see `evaluation.report.as_json`; empty for ``val``.
        pictures: the pictures in the folder.
    """

    name: str
    folder: Path
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pictures: Sequence[Path] = ()

    @property
    def place(self) -> Path:
        return self.folder


@dataclass
class Comparison:
    """A folder of ``yolov5-ema compare``: its ``comparison.json`` and its trainings."""

    name: str
    folder: Path
    content: Mapping[str, Any]
    runs: list[Run] = field(default_factory=list)

    @property
    def place(self) -> Path:
        return self.folder


Source = Run | Evaluated | Comparison


def read_source(place: Path) -> Source:
    """Find out what a folder or file is, and read it.

    Args:
        place: a run's folder, or its best.pt or last.pt, or its ``evaluation.json`` or ``comparison.json``; or a model
            alone: a ``.pt`` elsewhere, or an exported model.

    Raises:
        UserError: no report can be made from it, or a file in it is damaged. Names the folder or file.
    """
    if _is_model_alone(place):
        return _model_alone(place)
    folder = _folder_of(place)
    for name, reader in _READERS.items():
        file = file_of(folder, name)
        if file is not None:
            return reader(folder, file)
    pictures = _pictures(folder, _DRAWN_BY_VAL)
    if pictures or list(folder.glob("*_predictions.json")):
        return Evaluated(folder.name, folder, {}, pictures)
    raise UserError(f"{place} is not a run: looked in it for {_LOOKED_FOR}{_hint(folder)}")


def make_names_unique(sources: Sequence[Source]) -> None:
    """Give each source and each training of a comparison a unique name: as short a part of its path as possible.

    Raises:
        UserError: one folder was given twice.
    """
    comparisons = [source for source in sources if isinstance(source, Comparison)]
    others: list[Source] = [source for source in sources if not isinstance(source, Comparison)]
    _name(comparisons)
    _name([*(run for comparison in comparisons for run in comparison.runs), *others])


def _name(sources: Sequence[Source]) -> None:
    folders = [source.place.resolve() for source in sources]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"{folder} was given twice")
    length, names = 0, [""] * len(folders)
    while len(set(names)) < len(names) or length == 0:
        length += 1
        names = ["/".join(folder.parts[-length:]) for folder in folders]
    for source, name in zip(sources, names):
        source.name = name


def _folder_of(place: Path) -> Path:
    if place.is_dir():
        return place
    if not place.exists():
        raise UserError(f"{place}: no such folder or file")
    if place.name in ("comparison.json", "evaluation.json", "results.csv", "opt.yaml", "args.yaml"):
        return place.parent
    if place.suffix in (".pt", ".ckpt") and place.parent.name == "weights":
        return place.parent.resolve().parent
    raise UserError(f"{place} is neither the folder of a run nor a model (.pt, ONNX, OpenVINO, TorchScript)")


def _hint(folder: Path) -> str:
    if (folder / "recipe.json").is_file():
        return ". It is a comparison that has not been reported yet: run its 'yolov5-ema compare' again"
    inside = sorted(path.name for path in folder.iterdir() if any((path / name).is_file() for name in _READERS))
    if not inside:
        return ""
    return f". It contains runs; name them instead ({', '.join(str(folder / name) for name in inside[:3])} …)"


def _pictures(folder: Path, names: Sequence[str]) -> list[Path]:
    found = (file_of(folder, name) for name in names)
    return [file for file in found if file is not None]


# --- models alone ---------------------------------------------------------------------------


def _is_model_alone(place: Path) -> bool:
    if not place.exists():
        return False
    if form_of(place) is not None:
        return True
    of_run = place.parent.name == "weights" and any((place.parent.parent / name).is_file() for name in _TRAININGS)
    return place.suffix == ".pt" and not place.is_dir() and not of_run


def _model_alone(file: Path) -> Run:
    run = Run(file.name, file.parent, DETECT, file.name, weights=file, is_alone=True)
    if form_of(file) is not None:
        said = metadata_of(file)
        run.options = without_secrets({key: value for key, value in said.items() if key != "names"})
        run.task = _task_of(said)
        return run
    run.inspection = inspect_file(file)
    if not run.inspection.models or run.inspection.models[0].is_state_dict:
        raise UserError(f"{file} is not a model of YOLOv5 or ultralytics, but a {run.inspection.kind}")
    options = run.inspection.training.get("train_args") or run.inspection.training.get("opt")
    run.options = without_secrets(options) if isinstance(options, dict) else {}
    run.task, run.seed = _task_of({"task": run.inspection.models[0].task}), _seed_of(run.options, file.parent)
    return run


def _task_of(said: Mapping[str, Any]) -> str:
    return CLASSIFY if said.get("task") == "classify" else DETECT


# --- trainings ------------------------------------------------------------------------------


def _training(folder: Path, file: Path) -> Run:
    options = settings_of_yaml(file)
    hyp = file_of(folder, "hyp.yaml")
    # v6.2 and later also store the hyperparameters in opt.yaml.
    held = options.pop("hyp") if isinstance(options.get("hyp"), dict) else {}
    run = Run(folder.name, folder, _task_of(options), _model_of(options), _seed_of(options, folder), options)
    run.hyp = settings_of_yaml(hyp) if hyp is not None else held
    run.pictures = _pictures(folder, _DRAWN_BY_VAL)
    _read_progress(run, options.get("epochs"))
    if run.weights is not None:
        run.inspection = inspect_file(run.weights)
    return run


def _model_of(options: Mapping[str, Any]) -> str:
    """The name of the model YAML, as in a comparison; if it was trained from weights without a YAML, their name.

    ultralytics names either with ``model``; its ``cfg`` is a file of options.
    """
    given = options.get("model") or options.get("cfg") or options.get("weights") or ""
    return Path(str(given)[:_LONGEST_NAME]).stem or "model without a name"


def _seed_of(options: Mapping[str, Any], folder: Path) -> int | None:
    seed = options.get("seed")
    if type(seed) is int:
        return seed
    # v6.0 and v6.1 have no option for the seed; `compare` puts it into the folder's name.
    named = re.fullmatch(r"seed(\d{1,18})", folder.name)
    return int(named[1]) if named else None


def _by_args(folder: Path, file: Path) -> Run:
    """A training with an args.yaml: of ultralytics, or of ``yolov5-ema classify``."""
    options = settings_of_yaml(file)
    if {"task", "mode", "model"} <= options.keys():
        return _training(folder, file)
    if not {"model", "block"} & options.keys():
        raise UserError(f"{file} is neither from a training of ultralytics nor from 'yolov5-ema classify train'")
    return _classification(folder, options)


def _classification(folder: Path, options: Mapping[str, Any]) -> Run:
    run = Run(folder.name, folder, CLASSIFY, "", _seed_of(options, folder), options)
    metrics = file_of(folder, "metrics.json")
    if metrics is not None:
        run.metrics = _checked_metrics(json_of(metrics), metrics)
    block = run.metrics.get("block", options.get("block"))
    model = options.get("model", run.metrics.get("model", "classifier"))
    run.model = f"{model}{f' + {block}' if block else ''}"[:_LONGEST_NAME]
    _read_progress(run, options.get("epochs"))
    if not run.metrics:
        run.notes.append("There is no metrics.json: the training is not finished.")
    return run


_METRICS = record(
    optional=("model", "block", "parameters"),
    classes=several(record(name=scalar, images=whole(), top1=maybe(number(0, 1)))),
    confusion=several(several(whole())),
    top1=number(0, 1),
    top5=number(0, 1),
    images=whole(),
    parameters=maybe(whole()),
    model=maybe(words),
    block=maybe(words),
)


def _checked_metrics(content: Any, file: Path) -> dict[str, Any]:
    """Check the values that every page needs, and their types."""
    found: dict[str, Any] = checked(_METRICS, content, file, "metrics.json of 'yolov5-ema classify'")
    size = len(found["classes"])
    if [len(row) for row in found["confusion"]] != [size] * size:
        raise UserError(f"{file}: its confusion matrix does not have the {counted(size, 'class')} that it names")
    return found


def _read_progress(run: Run, planned: Any) -> None:
    """Read the epochs and weights of a training, and add notes about them."""
    table, best = file_of(run.folder, "results.csv"), run.folder / "weights" / "best.pt"
    run.weights = best if best.is_file() else None
    if run.weights is None:
        run.notes.append("There is no weights/best.pt: the training ended before it was saved, or the file was moved.")
    if table is None:
        run.notes.append("There is no results.csv: no epoch was finished.")
        return
    run.epochs = epochs = read_epochs(table)
    done = len(epochs.rows)
    if type(planned) is int and done < planned:
        run.notes.append(
            f"results.csv has {done} of {counted(planned, 'epoch')}: the training ended early, or is still running."
        )
    if not all(epochs.is_validated):
        skipped = counted(epochs.is_validated.count(False), "epoch")
        run.notes.append(
            f"{skipped} without validation (--noval, val=False): results.csv has zeros there, and the charts leave "
            "them out."
        )
    if epochs.is_cut_off:
        run.notes.append("The last line of results.csv is cut off; it was left out.")
    if epochs.again:
        listed = ", ".join(map(str, epochs.again))
        run.notes.append(f"The training was resumed: results.csv has epoch {listed} again; the last one is shown.")
    if epochs.diverged_at is not None:
        run.notes.append(f"The training diverged: its loss is not a number from epoch {epochs.diverged_at} on.")


# --- outcomes -------------------------------------------------------------------------------


def _figure(value: Any, where: str) -> Any:
    """A figure of a class; lists, such as that of the APs by IoU, are not shown."""
    return None if _is_nested(value) else scalar(value, where)


_PROTOCOLS = by_name(record(unit=one_of("percent", "fraction"), per_class=by_name(by_name(_figure))), most=20)


def _evaluated(folder: Path, file: Path) -> Evaluated:
    content = json_of(file)
    found = checked(_PROTOCOLS, content, file, "evaluation.json of 'yolov5-ema evaluate'")
    figures = {
        name: {key: scalar(value, f"{file}, {name}, {key}") for key, value in held.items() if not _is_nested(value)}
        for name, held in content.items()
    }
    protocols = {name: {**figures[name], **found[name]} for name in found}
    return Evaluated(folder.name, folder, protocols, _pictures(folder, _DRAWN_BY_EVALUATE))


def _is_nested(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _comparison(folder: Path, file: Path) -> Comparison:
    content = _checked_comparison(json_of(file), file)
    runs = []
    for entry in content["runs"]:
        place = _place_in(folder, entry["cfg"], f"seed{entry['seed']}")
        options = next(filter(None, (file_of(place, name) for name in _TRAININGS)), None) if place else None
        if place is not None and options is not None:
            run = _training(place, options)
            run.model, run.seed = entry["cfg"], entry["seed"]
            runs.append(run)
    return Comparison(folder.name, folder, content, runs)


def _place_in(folder: Path, *names: str) -> Path | None:
    """The subfolder with this relative path; None if the path leads out of the folder."""
    place = folder.joinpath(*names)
    if not is_there(place) or not place.is_dir() or any(Path(name).name != name for name in names):
        return None
    return place if folder.resolve() in place.resolve().parents else None


_FIGURE = maybe(number())
_COMPARISON = record(
    optional=("software", "machine", "created"),
    baseline=words,
    models=by_name(
        record(
            parameters=whole(),
            gflops=number(),
            latency_ms=maybe(record(median=number(), quartile1=number(), quartile3=number(), ratio=number())),
            metrics=by_name(
                maybe(
                    record(
                        n=whole(),
                        mean=number(),
                        sd=_FIGURE,
                        smallest=number(),
                        largest=number(),
                        low=_FIGURE,
                        high=_FIGURE,
                        values=by_name(_FIGURE),
                    )
                )
            ),
            differences=by_name(
                maybe(
                    record(
                        optional=("verdict",),
                        n=whole(),
                        mean=number(),
                        sd=_FIGURE,
                        low=_FIGURE,
                        high=_FIGURE,
                        confidence=number(0, 1),
                        p=_FIGURE,
                        verdict=words,
                    )
                )
            ),
        )
    ),
    level=number(0, 1),
    notes=several(words),
    runs=several(record(cfg=words, seed=whole())),
    recipe=record(task=one_of("val", "test")),
    software=by_name(scalar),
    machine=by_name(scalar),
    created=words,
)


def _checked_comparison(content: Any, file: Path) -> dict[str, Any]:
    found: dict[str, Any] = checked(_COMPARISON, content, file, "comparison.json of this version of yolov5-ema")
    if found["baseline"] not in found["models"]:
        raise UserError(f"{file}: its baseline {found['baseline'][:100]!r} is not one of its models")
    for name, model in found["models"].items():
        for metric in ("map50", "map50_95"):
            if metric not in model["metrics"]:
                raise UserError(f"{file}, {name[:60]}: {metric} is missing")
            values = (model["metrics"][metric] or {}).get("values", {})
            if not all(seed.isdecimal() and len(seed) < 10 for seed in values):
                raise UserError(f"{file}, {name[:60]}: {metric} must have its values by their seeds")
    return found


_READERS: Mapping[str, Callable[[Path, Path], Source]] = {
    "comparison.json": _comparison,
    "evaluation.json": _evaluated,
    "opt.yaml": _training,
    "args.yaml": _by_args,
}
_TRAININGS = ("opt.yaml", "args.yaml")
