"""``train --resume``: YOLOv5 gets only checked options, whether they come from ``opt.yaml`` or from a checkpoint."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from torch import nn

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.engine.resumed_options import Script, options_to_resume
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.upstream.flags import parser_of
from yolov5_ema.upstream.patching import ModuleView, Patches
from yolov5_ema.upstream.source_code import parameters

_REMOTE = ("wandb-artifact://", "comet://")
_SET_BY_MAIN = {"cfg", "weights", "resume", "data", "neptune_resume_id"}
_GUARDED = "options_are_checked"


def resumes(opt: Any) -> bool:
    """Whether a training resumes with the options of its run, which are read from a file."""
    resume = getattr(opt, "resume", False)
    # a logging service provides these options; no file is read
    is_remote = isinstance(resume, str) and resume.startswith(_REMOTE)
    return bool(resume) and not getattr(opt, "evolve", None) and not is_remote


def refuse_unguarded(module: ModuleType) -> None:
    """Refuse a training script that reads the options of its runs in an unknown way.

    Raises:
        UserError: the script would use the options unchecked.
    """
    if not hasattr(module.main, _GUARDED):
        raise UserError(
            f"--resume: {module.__file__} is not the train.py of YOLOv5 v6.0 or later. It may read the options of a "
            "run in another way, and they would not be checked. Use the train.py of a YOLOv5 from v6.0 on"
        )


def _needed(module: SourceModule) -> str | None:
    main = module.code.part("main")
    if main is None or not module.code.has_flag("--resume") or parameters(main)[:1] != ["opt"]:
        return None
    if any(given.arg is None for call in main.calls("argparse.Namespace") for given in call.keywords):
        return "--resume does what the options in a file say: write, upload, download, run"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    patches.wrap(module.module, "main", _with_checked_options, module)
    setattr(module.module.main, _GUARDED, True)


def _with_checked_options(main: Callable[..., Any], module: SourceModule, opt: Any, *args: Any, **kwargs: Any) -> Any:
    if not resumes(opt):
        return main(opt, *args, **kwargs)
    last = _last(opt, module.module)
    checked = options_to_resume(last, opt, _script(module))
    opt.resume = str(last)
    with _checked_options_used(checked, last, module.module):
        return main(opt, *args, **kwargs)


def _last(opt: Any, module: Any) -> Path:
    """The checkpoint to resume from, with enough of its path to show the folder of its run."""
    if isinstance(opt.resume, str):
        last = Path(module.check_file(opt.resume) if opt.resume.startswith(("http:/", "https:/")) else opt.resume)
    else:
        newest = module.get_latest_run()
        if not newest:
            raise UserError(f"--resume: there is no last.pt below {Path.cwd()}; name it: --resume RUN/weights/last.pt")
        last = Path(newest)
    for inside in ("weights/last.pt", "last.pt"):  # if the run's folder or its weights folder is named
        if last.is_dir() and (last / inside).is_file():
            last = last / inside
    return last if len(last.parts) > 2 and ".." not in last.parts[-3:] else last.absolute()


def _script(module: SourceModule) -> Script:
    parser = parser_of(module.module)
    if parser is None:
        raise UserError(f"--resume: {module.module.__file__} has no parser of its command line; name another YOLOv5")
    return Script(module.engine, Path(str(module.module.__file__)), module.source, parser)


@contextmanager
def _checked_options_used(checked: dict[str, Any], last: Path, module: Any) -> Iterator[None]:
    """Inside the ``with`` block, the script gets the checked options wherever it reads options of the run."""
    text, place = yaml.safe_dump(checked, sort_keys=False), last.parent.parent / "opt.yaml"
    with Patches() as patches:
        patches.set(module, "open", _opening(vars(module).get("open", builtins.open), place, text))
        patches.set(module, "torch", ModuleView(module.torch, load=_loading(module.torch.load, last, checked)))
        if hasattr(module, "torch_load"):
            patches.set(module, "torch_load", _loading(module.torch_load, last, checked))
        patches.wrap(module, "train", _only_with, checked)
        yield


def _opening(inner: Callable[..., Any], place: Path, text: str) -> Callable[..., Any]:
    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "r" in mode and Path(str(file)) == place:
            return io.StringIO(text)
        return inner(file, mode, *args, **kwargs)

    return opened


def _loading(inner: Callable[..., Any], last: Path, checked: dict[str, Any]) -> Callable[..., Any]:
    def loaded(file: Any, *args: Any, **kwargs: Any) -> Any:
        checkpoint = inner(file, *args, **kwargs)
        if Path(str(file)) != last:
            return checkpoint
        _check_state(checkpoint, last)
        return {**checkpoint, "opt": dict(checked)}

    return loaded


def _check_state(checkpoint: Any, last: Path) -> None:
    """Check the types of what YOLOv5 reads from a checkpoint when it resumes."""
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{last} is not a checkpoint of a training")
    is_model = isinstance(checkpoint.get("model"), nn.Module)
    optimizer = checkpoint.get("optimizer")
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    fits = {
        "model": is_model and isinstance(getattr(checkpoint["model"], "yaml", None), dict),
        "epoch": type(checkpoint.get("epoch")) is int,
        "ema": checkpoint.get("ema") is None or isinstance(checkpoint["ema"], nn.Module),
        "updates": checkpoint.get("ema") is None or type(checkpoint.get("updates")) is int,
        "optimizer": optimizer is None
        or (
            isinstance(groups, list)
            and isinstance(optimizer.get("state"), dict)
            and all(isinstance(g, dict) for g in groups)
        ),
    }
    wrong = [name for name, is_fine in fits.items() if not is_fine]
    if wrong:
        raise CheckpointError(
            f"{last}: unexpected content under {', '.join(wrong)}; a training cannot be resumed from this checkpoint"
        )


def _only_with(
    train: Callable[..., Any], checked: dict[str, Any], hyp: Any, opt: Any, *args: Any, **kwargs: Any
) -> Any:
    other = sorted(
        name
        for name, value in vars(opt).items()
        if name not in _SET_BY_MAIN and (name not in checked or value != checked[name])
    )
    if other or hyp != checked["hyp"]:
        raise UserError(
            f"--resume: {', '.join(other) or 'hyp'}: the script changed what was checked; nothing was trained"
        )
    # a copy, because train scales the hyperparameters but keeps those of opt
    return train(dict(hyp), opt, *args, **kwargs)


RESUMED_OPTIONS = Quirk(
    name="resumed-options",
    symptom="train --resume of somebody's run: writes, uploads, downloads and runs what its opt.yaml says",
    versions="all",
    needed=_needed,
    apply=_apply,
)
