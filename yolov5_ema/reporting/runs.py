"""What a folder that a report is asked of is, and what stands in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.truths import read_json
from yolov5_ema.reporting.epochs import Epochs, read_epochs
from yolov5_ema.weights.inspection import Inspection, inspect_file, without_secrets

DETECT, CLASSIFY = "detect", "classify"

_DRAWN_BY_VAL = ("PR_curve.png", "confusion_matrix.png", "val_batch0_labels.jpg", "val_batch0_pred.jpg")
_DRAWN_BY_EVALUATE = ("PR_curves.png", "confusion_matrix.png")
_LOOKED_FOR = (
    "opt.yaml (a training of YOLOv5), args.yaml beside results.csv (yolov5-ema classify train), evaluation.json "
    "(yolov5-ema evaluate), comparison.json (yolov5-ema compare), or the pictures or predictions of YOLOv5's val"
)


@dataclass
class Run:
    """One training.

    Attributes:
        name: how it is called on the page; no other run there is called so.
        folder: its own.
        task: `DETECT` or `CLASSIFY`.
        model: name of what was trained; runs of one model with several seeds are grouped by it.
        seed: that it was trained with; None where nothing says it.
        options: of the training.
        hyp: its hyperparameters; empty for classification, whose options hold them.
        epochs: its ``results.csv``; None if there is none.
        weights: best.pt; None if there is none.
        inspection: what best.pt holds, as far as it tells without being loaded.
        metrics: of a classifier, its ``metrics.json``; else empty.
        pictures: that were drawn by the training itself.
        notes: what a reader has to know of it.
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

    @property
    def cfg(self) -> Mapping[str, Any] | None:
        """The model YAML as best.pt keeps it; else as the file says that the training was given, if it is there."""
        if self.inspection is not None and self.inspection.models and self.inspection.models[0].cfg:
            return self.inspection.models[0].cfg
        file = Path(str(self.options.get("cfg") or ""))
        content = read_yaml(file) if self.task == DETECT and file.is_file() else None
        return content if isinstance(content, dict) else None


@dataclass
class Evaluated:
    """A folder of ``yolov5-ema evaluate``, or of YOLOv5's ``val``, which keeps no figures.

    Attributes:
        name: how it is called on the page.
        folder: its own.
        protocols: by its name what each found, see `evaluation.report.as_json`; empty for ``val``.
        pictures: in it.
    """

    name: str
    folder: Path
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pictures: Sequence[Path] = ()


@dataclass
class Comparison:
    """A folder of ``yolov5-ema compare``: its ``comparison.json`` and its trainings."""

    name: str
    folder: Path
    content: Mapping[str, Any]
    runs: list[Run] = field(default_factory=list)


Source = Union[Run, Evaluated, Comparison]


def read_source(place: Path) -> Source:
    """Find out what a folder is, and read it.

    Args:
        place: a run's folder, or weights in it, or its ``evaluation.json`` or ``comparison.json``.

    Raises:
        UserError: it is nothing that a report can be made of, or a file in it is damaged; names it.
    """
    folder = _folder_of(place)
    if (folder / "comparison.json").is_file():
        return _comparison(folder)
    if (folder / "evaluation.json").is_file():
        return _evaluated(folder)
    if _is_training(folder):
        return _training(folder)
    if _is_classification(folder):
        return _classification(folder)
    pictures = _pictures(folder, _DRAWN_BY_VAL)
    if pictures or list(folder.glob("*_predictions.json")):
        return Evaluated(folder.name, folder, {}, pictures)
    raise UserError(f"{place} is no run: looked in it for {_LOOKED_FOR}{_hint(folder)}")


def name_apart(sources: Sequence[Source]) -> None:
    """Give each source, and each training of a comparison, a name of its own: as little of its path as that takes.

    Raises:
        UserError: one folder was given twice.
    """
    comparisons = [source for source in sources if isinstance(source, Comparison)]
    others: list[Source] = [source for source in sources if not isinstance(source, Comparison)]
    _name(comparisons)
    _name([*(run for comparison in comparisons for run in comparison.runs), *others])


def _name(sources: Sequence[Source]) -> None:
    folders = [source.folder.resolve() for source in sources]
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
        raise UserError(f"{place}: no such folder")
    if place.name in ("comparison.json", "evaluation.json", "results.csv", "opt.yaml", "args.yaml"):
        return place.parent
    if place.suffix in (".pt", ".ckpt") and place.parent.name == "weights":
        return place.parent.resolve().parent
    raise UserError(f"{place} is no folder of a run, and no weights in one (RUN/weights/best.pt)")


def _is_training(folder: Path) -> bool:
    return (folder / "opt.yaml").is_file()


def _is_classification(folder: Path) -> bool:
    return (folder / "args.yaml").is_file()


def _hint(folder: Path) -> str:
    if (folder / "recipe.json").is_file():
        return ". It is a comparison that has not been reported yet: run its 'yolov5-ema compare' again"
    inside = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and (_is_training(path) or _is_classification(path) or _is_outcome(path))
    )
    if not inside:
        return ""
    return f". It holds runs: name them ({', '.join(str(folder / name) for name in inside[:3])} …)"


def _is_outcome(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("evaluation.json", "comparison.json"))


def _pictures(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _mapping(file: Path) -> dict[str, Any]:
    content = read_yaml(file, errors="strict")
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold settings by their names; it is damaged, or another file")
    return {str(key): value for key, value in content.items()}


# --- trainings ------------------------------------------------------------------------------


def _training(folder: Path) -> Run:
    options = without_secrets(_mapping(folder / "opt.yaml"))
    hyp = folder / "hyp.yaml"
    held = (
        options.pop("hyp") if isinstance(options.get("hyp"), dict) else {}
    )  # v7.0 writes them there as well
    run = Run(folder.name, folder, DETECT, _model_of(options), _seed_of(options, folder), options)
    run.hyp = _mapping(hyp) if hyp.is_file() else held
    run.pictures = _pictures(folder, _DRAWN_BY_VAL)
    _read_progress(run, options.get("epochs"))
    if run.weights is not None:
        run.inspection = inspect_file(run.weights)
    return run


def _model_of(options: Mapping[str, Any]) -> str:
    """A model goes by its YAML's name, as in a comparison; trained from weights alone, by theirs."""
    given = options.get("cfg") or options.get("weights") or ""
    return Path(str(given)).stem or "model without a name"


def _seed_of(options: Mapping[str, Any], folder: Path) -> int | None:
    seed = options.get("seed")
    if type(seed) is int:
        return seed
    named = re.fullmatch(
        r"seed(\d+)", folder.name
    )  # v6.0 and v6.1 have no such option; compare names folders so
    return int(named[1]) if named else None


def _classification(folder: Path) -> Run:
    options = _mapping(folder / "args.yaml")
    if not {"model", "block"} & options.keys() or str(options.get("model", "")).endswith((".pt", ".yaml")):
        raise UserError(
            f"{folder / 'args.yaml'} is not of 'yolov5-ema classify train'; reports of the package ultralytics's "
            "runs are not made here"
        )
    run = Run(folder.name, folder, CLASSIFY, "", _seed_of(options, folder), options)
    metrics = folder / "metrics.json"
    if metrics.is_file():
        run.metrics = _checked_metrics(read_json(metrics), metrics)
    block = run.metrics.get("block", options.get("block"))
    run.model = (
        f"{options.get('model', run.metrics.get('model', 'classifier'))}{f' + {block}' if block else ''}"
    )
    _read_progress(run, options.get("epochs"))
    if not run.metrics:
        run.notes.append("There is no metrics.json: the training has not come to its end.")
    return run


def _checked_metrics(content: Any, file: Path) -> dict[str, Any]:
    """What every page takes from it, with the types that it needs."""
    try:
        names = [str(entry["name"]) for entry in content["classes"]]
        for entry in content["classes"]:
            int(entry["images"])
            float(entry["top1"] if entry["top1"] is not None else 0)
        square = [len(row) for row in content["confusion"]] == [len(names)] * len(names)
        float(content["top1"]), float(content["top5"]), int(content["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is no metrics.json of 'yolov5-ema classify': {error!r}") from None
    if not square:
        raise UserError(f"{file}: its confusion matrix does not have the {len(names)} classes that it names")
    return dict(content)


def _read_progress(run: Run, planned: Any) -> None:
    """Epochs and weights of a training, and what is to be said of them."""
    table, best = run.folder / "results.csv", run.folder / "weights" / "best.pt"
    run.weights = best if best.is_file() else None
    if run.weights is None:
        run.notes.append(
            "There is no weights/best.pt: the training was ended before it, or the file was moved."
        )
    if not table.is_file():
        run.notes.append("There is no results.csv: no epoch was finished.")
        return
    run.epochs = epochs = read_epochs(table)
    done = len(epochs.rows)
    if type(planned) is int and done < planned:
        run.notes.append(
            f"results.csv has {done} of {planned} epochs: the training was ended early, or is still going on."
        )
    if not all(epochs.is_validated):
        run.notes.append(
            f"{epochs.is_validated.count(False)} epochs were not validated (--noval): results.csv has zeros for them, "
            "the charts have nothing."
        )
    if epochs.is_cut_off:
        run.notes.append("The last line of results.csv is cut off; it was left out.")
    if epochs.again:
        listed = ", ".join(map(str, epochs.again))
        run.notes.append(
            f"The training was resumed: results.csv has epoch {listed} again; the last one is shown."
        )
    if epochs.diverged_at is not None:
        run.notes.append(f"The training diverged: its loss is no number from epoch {epochs.diverged_at} on.")


# --- outcomes -------------------------------------------------------------------------------


def _evaluated(folder: Path) -> Evaluated:
    file = folder / "evaluation.json"
    content = read_json(file)
    if not isinstance(content, dict) or not all(
        isinstance(found, dict) and isinstance(found.get("per_class"), dict) and "unit" in found
        for found in content.values()
    ):
        raise UserError(f"{file} is no evaluation.json of 'yolov5-ema evaluate'")
    return Evaluated(folder.name, folder, content, _pictures(folder, _DRAWN_BY_EVALUATE))


def _comparison(folder: Path) -> Comparison:
    file = folder / "comparison.json"
    content = read_json(file)
    try:
        _check_comparison(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file} is no comparison.json of this version of yolov5-ema: {error!r}") from None
    runs = []
    for entry in content["runs"]:
        place = folder / str(entry["cfg"]) / f"seed{entry['seed']}"
        if _is_training(place):
            run = _training(place)
            run.model, run.seed = str(entry["cfg"]), int(entry["seed"])
            runs.append(run)
    return Comparison(folder.name, folder, content, runs)


def _check_comparison(content: Any) -> None:
    content["models"][content["baseline"]], content["recipe"]["task"]
    float(content["level"]), list(content["seeds"]), list(content["notes"]), list(content["runs"])
    for model in content["models"].values():
        int(model["parameters"]), float(model["gflops"])
        if model["latency_ms"] is not None:
            [float(model["latency_ms"][key]) for key in ("median", "quartile1", "quartile3", "ratio")]
        for metric in ("map50", "map50_95"):
            found, difference = model["metrics"][metric], model["differences"].get(metric)
            for entry, keys in (
                (found, ("n", "mean", "sd")),
                (difference, ("mean", "low", "high", "verdict")),
            ):
                if entry is not None:
                    [entry[key] for key in keys]
