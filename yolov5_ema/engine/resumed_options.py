"""The options of a training that is resumed: read from its run, and reduced to what a run may say of itself.

YOLOv5 takes them from ``opt.yaml`` beside the weights, or out of the checkpoint, and does what they say: where to
write, what to upload and where to, what to put into a command line. But whoever made the run wrote them, which need not
be who resumes it. So a run says how it is trained, and on what; where it is written is where it lies; and what leaves
the machine is for the command line to say.
"""

from __future__ import annotations

import argparse
import os
import re
import reprlib
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yolov5_ema.checkpoints.loading import check_file, load_checkpoint
from yolov5_ema.data.dataset import is_there
from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.errors import CheckpointError, ConfigError, UserError
from yolov5_ema.resources import find_shipped
from yolov5_ema.texts import listed
from yolov5_ema.upstream.data_yaml import check_data, open_dataset
from yolov5_ema.upstream.hyperparameters import check_hyp, names_read, read_hyp
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.source_code import Code

_URL = ("http:/", "https:/", "rtsp:/", "rtmp:/", "ul://", "clearml:/", "wandb-artifact:/", "comet:/")
_NEEDED = ("data", "epochs", "batch_size", "imgsz")
_TEXTS = ("cache", "device")
_OF_THE_PLACE = ("weights", "cfg", "resume", "save_dir", "project", "name", "local_rank")
_LEAVES_THE_MACHINE = re.compile(
    r"upload|bucket|token|entity|artifact|bbox_interval|evolve|s3|^hf_|hub|roboflow|neptune|wandb|comet|clearml|mlflow"
    r"|download|url",
    re.IGNORECASE,
)
_RANGES = {
    "epochs": (1, 10**6),
    "batch_size": (-1, 10**5),
    "imgsz": (1, 10**4),
    "workers": (0, 1024),
    "seed": (0, 2**31 - 1),
    "freeze": (0, 10**4),
    "patience": (0, 10**9),
    "save_period": (-1, 10**9),
    "mask_ratio": (1, 64),
    "label_smoothing": (0, 1),
}
_DEVICE = re.compile(r"|cpu|mps|(cuda:)?\d{1,2}(,\d{1,2}){0,63}", re.IGNORECASE)
_LONGEST = 1000


@dataclass(frozen=True)
class Script:
    """A training script of a YOLOv5.

    Attributes:
        engine: the YOLOv5.
        file: the script.
        source: its text.
        parser: what reads its command line.
    """

    engine: Engine
    file: Path
    source: str
    parser: argparse.ArgumentParser

    @property
    def actions(self) -> dict[str, argparse.Action]:
        """Its options by their names."""
        return {action.dest: action for action in self.parser._actions if action.dest != "help"}


def options_to_resume(last: Path, typed: argparse.Namespace, script: Script) -> dict[str, Any]:
    """The options with which a run goes on.

    Args:
        last: its ``weights/last.pt``.
        typed: what stands on the command line beside ``--resume``.
        script: that is to go on with it.

    Raises:
        UserError: there are none, one of them is not of its type, or the data set or the run's folder cannot be
            used as they are; names the file and the option.
    """
    run = last.parent.parent
    _check_place(last, run)
    _refuse_links_out(run)
    held, where = _held(last, script.engine)
    actions = script.actions
    missing = [name for name in _NEEDED if held.get(name) is None]
    if missing:
        raise ConfigError(
            f"{where}: missing options: {', '.join(missing)}; it is damaged, or of another training"
        )
    options = {name: _of_file(action, held, typed, where) for name, action in actions.items()}
    options["data"] = _data(held["data"], typed, where, run, script)
    options["hyp"] = _hyp(held.get("hyp"), where, run, script)
    options.update(save_dir=str(run), project=str(run.parent), name=run.name)
    _say_what_was_left(held, options, actions, where)
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


# --- the run --------------------------------------------------------------------------------


def _check_place(last: Path, run: Path) -> None:
    if not is_there(last):
        raise CheckpointError(f"--resume {last}: no such file")
    if last.is_dir():
        raise CheckpointError(
            f"--resume {last}: this folder holds no weights/last.pt; name the checkpoint itself"
        )
    if not last.is_file():
        raise CheckpointError(f"--resume {last}: it is no file of weights")
    if last.suffix.lower() in (".yaml", ".yml"):
        raise CheckpointError(
            f"--resume {last}: name the checkpoint, not its options: --resume {last.parent / 'weights/last.pt'}"
        )
    if last.parent.name != "weights":
        raise CheckpointError(
            f"--resume {last}: a training goes on in the folder that its checkpoint lies in, RUN/weights/last.pt, "
            "and this one lies in no folder called weights. Make one for it: mkdir -p RUN/weights, move the file "
            "there, and its opt.yaml, if you have it, to RUN/opt.yaml"
        )


def _refuse_links_out(run: Path) -> None:
    """What goes on in a folder writes to its files, and would write through a link to wherever it leads."""
    home = os.path.realpath(run)
    for folder in (run, run / "weights"):
        for entry in os.scandir(folder):
            kept = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
            inside = os.path.realpath(entry.path).startswith(home + os.sep)
            if not (kept or (entry.is_symlink() and inside)):
                raise UserError(
                    f"{entry.path} is a link to outside of the run's folder, or no file: a training that goes on would "
                    "write there. Put a copy in its place"
                )


def _held(last: Path, engine: Engine) -> tuple[dict[str, Any], str]:
    """What a run says of itself, and where."""
    file = last.parent.parent / "opt.yaml"
    check_file(last, engine=engine)
    if is_there(file):
        held, where = read_yaml(file), str(file)
    else:
        where = f"opt in {last}"
        checkpoint = load_checkpoint(last, "cpu", engine=engine)
        held = checkpoint.get("opt") if isinstance(checkpoint, dict) else None
        if held is None:
            raise CheckpointError(
                f"--resume {last}: {file} is missing, and this checkpoint does not hold the options of its training. "
                "Put the opt.yaml of that training there; or start anew with --weights and the options"
            )
        held = vars(held) if isinstance(held, argparse.Namespace) else held
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise ConfigError(
            f"{where} must hold the options of a training by their names; it is damaged, or another file"
        )
    return held, where


# --- single options -------------------------------------------------------------------------


def _of_file(action: argparse.Action, held: Mapping[str, Any], typed: argparse.Namespace, where: str) -> Any:
    """An option as the run has it, if it is one that a run may set; else as it was typed."""
    name = action.dest
    if not _may_be_of_file(action) or name not in held:
        return getattr(typed, name, action.default)
    _check_type(action, held[name], where)
    return held[name]


def _may_be_of_file(action: argparse.Action) -> bool:
    """Numbers, switches and choices cannot name a place; of texts, a few are known to name none."""
    name = action.dest
    if name in _OF_THE_PLACE or _LEAVES_THE_MACHINE.search(name):
        return False
    return action.nargs == 0 or action.choices is not None or action.type in (int, float) or name in _TEXTS


def _check_type(action: argparse.Action, value: Any, where: str) -> None:
    if value is None and action.default is None:
        return
    is_several = action.nargs in ("+", "*") and isinstance(value, list)
    several = value if is_several else [value]
    wanted = _wanted(action)
    if (
        len(several) > 1000
        or is_several is not (action.nargs in ("+", "*"))
        or not all(_is_of_type(action, one) for one in several)
    ):
        raise ConfigError(f"{where}: {action.dest} must be {wanted}, not {reprlib.repr(value)}")


def _is_of_type(action: argparse.Action, value: Any) -> bool:
    if action.nargs == 0:
        return isinstance(value, bool)
    if action.choices is not None:
        return value in list(action.choices)
    if action.type in (int, float):
        low, high = _RANGES.get(action.dest, (-(10**9), 10**9))
        kinds = (int,) if action.type is int else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
        return fits and not (action.dest == "batch_size" and value == 0)
    if not isinstance(value, str) or len(value) > _LONGEST or not value.isprintable():
        return False
    return action.dest != "device" or bool(_DEVICE.fullmatch(value.replace(" ", "")))


def _wanted(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "true or false"
    if action.choices is not None:
        return f"one of {', '.join(map(str, action.choices))}"
    if action.type in (int, float):
        low, high = _RANGES.get(action.dest, (-(10**9), 10**9))
        kind = "a whole number" if action.type is int else "a number"
        kind = f"a list, each {kind}" if action.nargs in ("+", "*") else kind
        return f"{kind} from {low} to {high}"
    return "cpu, mps, or the numbers of GPUs" if action.dest == "device" else "a text"


def _say_what_was_left(
    held: Mapping[str, Any], options: Mapping[str, Any], actions: Mapping[str, argparse.Action], where: str
) -> None:
    if int(os.environ.get("RANK", "-1")) > 0:
        return
    left = [
        name
        for name, value in held.items()
        if name in actions and name not in _OF_THE_PLACE and name not in ("data", "hyp")
        if not _may_be_of_file(actions[name]) and value not in (options[name], str(options[name]))
    ]
    unknown = [name for name in held if name not in actions and name not in _OF_THE_PLACE]
    for names, reason in (
        (left, "not taken from a file; type them beside --resume if you want them"),
        (unknown, "no options of this train; left out"),
    ):
        if names:
            print(f"{where}: {listed(map(_shown, names), 12)}: {reason}", file=sys.stderr)


def _shown(name: str) -> str:
    return name if name.isidentifier() and len(name) < 40 else reprlib.repr(name)


# --- data set and hyperparameters -----------------------------------------------------------


def _data(value: Any, typed: argparse.Namespace, where: str, run: Path, script: Script) -> Any:
    """The data set, checked as one that was typed."""
    if isinstance(value, dict):
        return _checked_dict(value, where, script)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: data must name a data YAML, not {reprlib.repr(value)}")
    if value.startswith(_URL) or value.lower().endswith(".zip"):
        value = _typed_instead(value, typed, where)
        if value.startswith(_URL):
            return value
    file = _found(value, run, script.engine) if len(value) <= _LONGEST and value.isprintable() else None
    file = file or _found(_typed(typed), run, script.engine)
    if file is None:
        raise ConfigError(
            f"{where}: the data set {value[:300]!r} is not there (looked from {Path.cwd()} and the folders above "
            f"{run}); name its data YAML with --data beside --resume"
        )
    _check_data(file, script.engine)
    return str(file)


def _check_data(file: Path, engine: Engine) -> None:
    check_data(open_dataset(str(file), engine, as_yolov5_takes_it=True), ("train", "val"), engine)


def _typed(typed: argparse.Namespace) -> str:
    """The data set on the command line; "" if there is none, for YOLOv5's own default is no text."""
    given = getattr(typed, "data", None)
    return given if isinstance(given, str) and not given.lower().endswith(".zip") else ""


def _typed_instead(value: str, typed: argparse.Namespace, where: str) -> str:
    given = _typed(typed)
    if given:
        return given
    raise ConfigError(
        f"{where}: data is {value[:300]!r}, and nothing is fetched because a file says so. Fetch it yourself, and "
        "write the path of its YAML there"
    )


def _found(value: str, run: Path, engine: Engine) -> Path | None:
    """A data YAML by its path from here, by its bare name, or from where the training was started: above its run."""
    if not value:
        return None
    if _is_file(Path(value)):
        return Path(value)
    shipped = find_shipped(value)
    if shipped is not None:
        return shipped
    if Path(value).name == value:
        theirs = sorted((engine.root / "data").rglob(Path(value).name)) if value.endswith(".yaml") else []
        if theirs:
            return theirs[0]
    above = [folder / value for folder in list(run.resolve().parents)[:3]]
    return next((file for file in above if _is_file(file)), None)


def _is_file(place: Path) -> bool:
    return is_there(place) and place.is_file()


def _checked_dict(content: dict[str, Any], where: str, script: Script) -> dict[str, Any]:
    """A data set that stands in the options itself, as loggers put it there: without what would be fetched or run."""
    if Code(script.source).calls("data.endswith"):
        raise ConfigError(
            f"{where}: data is no path of a data YAML, which {script.engine} needs; write what stands there into a file"
        )
    kept = {name: value for name, value in content.items() if name != "download"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.yaml"
        file.write_text(yaml.safe_dump(kept), encoding="utf-8")
        try:
            _check_data(file, script.engine)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(file), f"{where}, data")) from error
    return kept


def _hyp(value: Any, where: str, run: Path, script: Script) -> dict[str, Any]:
    """The hyperparameters themselves: v6.0 and v6.1 keep a path, which may lead nowhere by now, and the run a copy."""
    needed = names_read(script.engine, script.file)
    if isinstance(value, dict):
        return check_hyp(value, f"{where}, hyp", needed)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{where}: hyp must name a file of hyperparameters, not {reprlib.repr(value)}")
    for file in (Path(value or ""), run / "hyp.yaml"):
        if _is_file(file):
            return read_hyp(file, needed)
    raise ConfigError(
        f"{where}: the hyperparameters {str(value)[:300]!r} are not there, nor is {run / 'hyp.yaml'}"
    )
