"""Names in a checkpoint that the YOLOv5 in use does not know: where they come from, and what the user can do."""

from __future__ import annotations

import re
from collections.abc import Iterable

from yolov5_ema.texts import listed
from yolov5_ema.weights.inert_pickle import COMPUTED
from yolov5_ema.weights.names import GETATTR, OF_YOLOV5, words

# classes of YOLOv5's layers and models: those that only some releases have, and those that all have
_IN_V7 = words(
    "common.C3x common.CrossConv common.DWConvTranspose2d common.Proto yolo.BaseModel yolo.ClassificationModel "
    "yolo.DetectionModel yolo.Segment yolo.SegmentationModel"
)
_IN_V6 = words("experimental.CrossConv yolo.Model")
_IN_V5 = words("common.NMS experimental.GhostBottleneck experimental.GhostConv")
_IN_ALL = words(
    "common.Bottleneck common.BottleneckCSP common.C3 common.C3Ghost common.C3SPP common.C3TR common.Classify "
    "common.Concat common.Contract common.Conv common.DWConv common.Expand common.Focus common.GhostBottleneck "
    "common.GhostConv common.SPP common.SPPF common.TransformerBlock common.TransformerLayer experimental.Ensemble "
    "experimental.MixConv2d experimental.Sum yolo.Detect"
)
_RELEASES = {"v7.0 or later": _IN_V7, "v6.1": _IN_V6, "v5.0": _IN_V5, "of any release": _IN_ALL}
_WRAPPERS = ("common.AutoShape", "common.autoShape", "common.DetectMultiBackend")
_OF_A_BLOCK = re.compile(r"yolov5_ema\.blocks\.\w+\.[A-Z]\w*")
_BESIDE_THEM = re.compile(r"(yolov5\.)?(models|utils)\..+")
_TRUST = "if you know where the file comes from and trust it with your machine, pass --trust-checkpoint."
ONLY_IF_TRUSTED = "I" + _TRUST[1:]
"""The advice for a file if there is no other way to load it."""


# Modules with functions that run commands or code, use the network or change files.
_DANGEROUS = words(
    "os posix nt subprocess sys shutil socket pty importlib imp runpy builtins functools operator types code codeop "
    "ctypes pickle _pickle cloudpickle dill joblib marshal webbrowser urllib http requests tempfile asyncio "
    "multiprocessing threading signal platform pip pdb bdb cProfile profile timeit trace ast inspect copyreg "
    "torch.hub torch.load torch.serialization torch.jit torch.utils numpy.f2py numpy.testing"
)


def release_with(name: str) -> str:
    """The release of YOLOv5 that has a class of this dotted name; an empty string if none has."""
    short = name.removeprefix("yolov5.").removeprefix("models.")
    return next((release for release, names in _RELEASES.items() if short in names), "")


def shown_names(names: Iterable[str], most: int = 12) -> str:
    """Names joined by commas: at most ``most`` of them, without characters that could control a terminal."""
    return listed(((name if name.isprintable() else repr(name))[:200] for name in sorted(names)), most)


def advice_for(names: Iterable[str], engine: str) -> str:
    """What the user can do about names in a checkpoint that are not on the allow-list.

    Args:
        names: those names.
        engine: the YOLOv5 in use, for the message.
    """
    by_home: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        by_home.setdefault(_home(name), []).append(name)
    if "danger" in by_home:
        return ONLY_IF_TRUSTED
    return " ".join(_ADVICE[home](found, engine) for home, found in by_home.items())


def _home(name: str) -> str:
    if OF_YOLOV5.fullmatch(name):
        if name.endswith(_WRAPPERS):
            return "wrapper"
        return "release" if release_with(name) else "fork"
    if _BESIDE_THEM.fullmatch(name):
        return "beside"
    if _OF_A_BLOCK.fullmatch(name):
        return "ours"
    if name in (COMPUTED, GETATTR) or _is_dangerous(name):
        return "danger"
    return "script" if name.startswith("__main__.") else "other"


def _of_a_release(names: list[str], engine: str) -> str:
    releases = sorted({release_with(name) for name in names}, reverse=True)
    return f"{engine} has no {shown_names(names)}: pass YOLOv5 {' or '.join(releases)} with --yolov5."


_ADVICE = {
    "release": _of_a_release,
    "fork": lambda names, engine: (
        f"No release of YOLOv5 has {shown_names(names)}: the file comes from a fork that has it. Pass the folder of "
        "that fork with --yolov5."
    ),
    "beside": lambda names, engine: (
        f"{shown_names(names)}: no release of YOLOv5 has that in a checkpoint; the file comes from a fork. Pass the "
        f"folder of that fork with --yolov5 and, {_TRUST}"
    ),
    "wrapper": lambda names, engine: (
        f"{shown_names(names)} is the wrapper that torch.hub puts around a model: save the model inside it, "
        "torch.save({'model': wrapped.model}, 'model.pt'), or use the file that it was loaded from."
    ),
    "ours": lambda names, engine: (
        f"{shown_names(names)}: a block of another version of yolov5-ema: pip install -U yolov5-ema."
    ),
    "script": lambda names, engine: (
        f"{shown_names(names)}: a class from the script or notebook that saved the file. Move it into a module of its "
        "own, save the file again from there, and pass the module with --plugin."
    ),
    "other": lambda names, engine: f"If it is a block of your own, pass its module with --plugin; {_TRUST}",
}


def meaning(name: str, of_ultralytics: bool = False) -> str:
    """What a name outside the allow-list means for the file that holds it.

    Args:
        name: the class or function.
        of_ultralytics: whether the file holds a model of the package ultralytics.
    """
    if name == COMPUTED:
        return f"{name}: it is unknown what it would import; no checkpoint needs that"
    if name == GETATTR:
        return f"{name}: used for something other than a layer's forward; no checkpoint needs that. Do not load it"
    if OF_YOLOV5.fullmatch(name) and not name.endswith(_WRAPPERS):
        release = release_with(name)
        whose = f"YOLOv5 {release} has it" if release else "no release of YOLOv5 has it, the file comes from a fork"
        return f"{name}: not in the YOLOv5 in use; {whose} (pass its folder with --yolov5)"
    if _is_dangerous(name):
        return f"{name}: no checkpoint needs it; loading with --trust-checkpoint could run commands. Do not load it"
    if name.startswith("ultralytics.") and of_ultralytics:
        return f"{name}: not a layer or setting of the ultralytics in use; no checkpoint of that release needs it"
    if name.startswith("ultralytics."):
        return f"{name}: from the package ultralytics (YOLOv8 and later); it loads there, not in YOLOv5"
    return (
        f"{name}: not on the allow-list; with --trust-checkpoint its module would be imported. "
        "If it is a block of your own, pass --plugin its_module"
    )


def _is_dangerous(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in _DANGEROUS or ".".join(parts[:2]) in _DANGEROUS
