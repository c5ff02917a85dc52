"""The options of a resumed training: read from its run, and reduced to those that a run may set.

YOLOv5 reads the options from the run's ``opt.yaml`` or from the checkpoint, and follows all of them: where to write,
what to upload and where, what to put into a command line. The run may come from somebody else. So here:

- the run sets how to train, and on which data set;
- the run's folder is the one that the checkpoint lies in;
- uploads and other network options are taken from the command line only.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import reprlib
import shlex
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
from yolov5_ema.texts import listed
from yolov5_ema.upstream.data_yaml import check_data, find_data_of_run, open_dataset
from yolov5_ema.upstream.hyperparameters import check_hyp, names_read, read_hyp
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.source_code import Code

_LOGGER = logging.getLogger(__name__)

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
    """YOLOv5's training script.

    Attributes:
        engine: the YOLOv5 that the script belongs to.
        file: path of the script.
        source: text of the script.
        parser: the parser of its command line.
    """

    engine: Engine
    file: Path
    source: str
    parser: argparse.ArgumentParser

    @property
    def actions(self) -> dict[str, argparse.Action]:
        """The script's options by name."""
        return {action.dest: action for action in self.parser._actions if action.dest != "help"}


def options_to_resume(last: Path, typed: argparse.Namespace, script: Script) -> dict[str, Any]:
    """Return the options for resuming a run.

    Args:
        last: the run's ``weights/last.pt``.
        typed: the other options on the command line with ``--resume``.
        script: the script that resumes the run.

    Raises:
        UserError: the run has no options, an option has the wrong type, or the data set or the run's folder cannot be
            used. The message names the file and the option.
    """
    run = last.parent.parent
    _check_place(last, run)
    _refuse_links_out(run)
    held, where = _held(last, script.engine)
    actions = script.actions
    missing = [name for name in _NEEDED if held.get(name) is None]
    if missing:
        raise ConfigError(
            f"{where}: missing options: {', '.join(missing)}; the file is damaged, or belongs to another training"
        )
    options = {name: _of_file(action, held, typed, where) for name, action in actions.items()}
    options["data"] = _data(held["data"], typed, where, run, script)
    options["hyp"] = _hyp(held.get("hyp"), where, run, script)
    options.update(save_dir=str(run), project=str(run.parent), name=run.name)
    _report_left_out(held, options, actions, where)
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


# --- the run --------------------------------------------------------------------------------


def _check_place(last: Path, run: Path) -> None:
    if not is_there(last):
        raise CheckpointError(f"--resume {last}: no such file")
    if last.is_dir():
        raise CheckpointError(f"--resume {last}: this folder holds no weights/last.pt; name the checkpoint itself")
    if not last.is_file():
        raise CheckpointError(f"--resume {last}: this is not a regular file; name the checkpoint itself")
    if last.suffix.lower() in (".yaml", ".yml"):
        flags = shlex.join(["--resume", str(last.parent / "weights/last.pt")])
        raise CheckpointError(f"--resume {last}: name the checkpoint, not its options: {flags}")
    if last.parent.name != "weights":
        raise CheckpointError(
            f"--resume {last}: the checkpoint must lie in a folder called weights, as RUN/weights/last.pt, because a "
            "training is resumed in the folder of its run. Make that folder with mkdir -p RUN/weights, move the file "
            "there, and move its opt.yaml, if you have it, to RUN/opt.yaml"
        )


def _refuse_links_out(run: Path) -> None:
    """Refuse links that lead out of the run's folder: a resumed training would write through them."""
    home = os.path.realpath(run)
    for folder in (run, run / "weights"):
        for entry in os.scandir(folder):
            kept = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
            inside = os.path.realpath(entry.path).startswith(home + os.sep)
            if not (kept or (entry.is_symlink() and inside)):
                raise UserError(
                    f"{entry.path} is a link to outside of the run's folder, or not a regular file: the resumed "
                    "training would write there. Put a copy in its place"
                )


def _held(last: Path, engine: Engine) -> tuple[dict[str, Any], str]:
    """Return the options that a run holds, and a text that says where they were found."""
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
                "Put the opt.yaml of that training there, or start a new training with --weights and the options"
            )
        held = vars(held) if isinstance(held, argparse.Namespace) else held
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise ConfigError(f"{where} must hold the options of a training by name; it is damaged, or it is another file")
    return held, where


# --- single options -------------------------------------------------------------------------


def _of_file(action: argparse.Action, held: Mapping[str, Any], typed: argparse.Namespace, where: str) -> Any:
    """Return an option's value from the run if a run may set it, else from the command line."""
    name = action.dest
    if not _may_be_of_file(action) or name not in held:
        return getattr(typed, name, action.default)
    _check_type(action, held[name], where)
    return held[name]


def _may_be_of_file(action: argparse.Action) -> bool:
    """Whether a run may set an option: numbers, switches, choices and a few texts, which cannot name a path."""
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


def _report_left_out(
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
        (left, "not taken from a file; give them together with --resume if you want them"),
        (unknown, "unknown to this YOLOv5's train; ignored"),
    ):
        if names:
            _LOGGER.warning("%s: %s: %s", where, listed(map(_shown, names), 12), reason)


def _shown(name: str) -> str:
    return name if name.isidentifier() and len(name) < 40 else reprlib.repr(name)


# --- data set and hyperparameters -----------------------------------------------------------


def _data(value: Any, typed: argparse.Namespace, where: str, run: Path, script: Script) -> Any:
    """Return the data set, after the same checks as for one on the command line."""
    if isinstance(value, dict):
        return _checked_dict(value, where, script)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: data must name a data YAML, not {reprlib.repr(value)}")
    if value.startswith(_URL) or value.lower().endswith(".zip"):
        value = _typed_data_set(value, typed, where)
        if value.startswith(_URL):
            return value
    names = [value] if len(value) <= _LONGEST and value.isprintable() else []
    found = (find_data_of_run(name, run, script.engine) for name in (*names, _typed(typed)))
    file = next(filter(None, found), None)
    if file is None:
        raise ConfigError(
            f"{where}: the data set {value[:300]!r} is not there (looked from {Path.cwd()} and the folders above "
            f"{run}); give its data YAML with --data together with --resume"
        )
    _check_data(file, script.engine)
    return str(file)


def _check_data(file: Path, engine: Engine) -> None:
    check_data(open_dataset(str(file), engine, lenient=True), ("train", "val"), engine)


def _typed(typed: argparse.Namespace) -> str:
    """The data set on the command line, or "" if there is none: YOLOv5's default is not a string."""
    given = getattr(typed, "data", None)
    return given if isinstance(given, str) and not given.lower().endswith(".zip") else ""


def _typed_data_set(value: str, typed: argparse.Namespace, where: str) -> str:
    given = _typed(typed)
    if given:
        return given
    raise ConfigError(
        f"{where}: data is {value[:300]!r}; an address in a run's options is not fetched. Fetch the data set yourself, "
        "and write the path of its YAML there"
    )


def _checked_dict(content: dict[str, Any], where: str, script: Script) -> dict[str, Any]:
    """Check a data set that loggers have written into the options, and leave out its ``download``."""
    if Code(script.source).calls("data.endswith"):
        raise ConfigError(
            f"{where}: data must be the path of a data YAML for {script.engine}, not the data set itself; write the "
            "data set into a file and name it there"
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
    """Return the hyperparameters. v6.0 and v6.1 keep only their path; if it is gone, the run has a copy."""
    needed = names_read(script.engine, script.file)
    if isinstance(value, dict):
        return check_hyp(value, f"{where}, hyp", needed)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{where}: hyp must name a file of hyperparameters, not {reprlib.repr(value)}")
    for file in (Path(value or ""), run / "hyp.yaml"):
        if is_there(file) and file.is_file():
            return read_hyp(file, needed)
    raise ConfigError(
        f"{where}: the hyperparameters {str(value)[:300]!r} were not found, and neither was {run / 'hyp.yaml'}"
    )
