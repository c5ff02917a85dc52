"""Downloads: missing weights fail at once with a message, pip is never run unasked, and local files take precedence."""

from __future__ import annotations

import importlib.util
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.errors import CheckpointError
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import parameters

_RELEASED = re.compile(r"yolov5[nsmlx]6?(-seg|-cls)?\.pt")


def is_released_weight(name: str) -> bool:
    """Whether YOLOv5 knows where to download a file of this name."""
    return bool(_RELEASED.fullmatch(Path(name).name))


def is_online(host: str = "github.com", port: int = 443, timeout_s: float = 3.0) -> bool:
    """Whether a host answers."""
    try:
        socket.create_connection((host, port), timeout_s).close()
        return True
    except OSError:
        return False


def missing_weights_message(name: str, *, trains: bool = False) -> str:
    """The message for a weights file that is missing and cannot be downloaded; ``trains``: a training asks for it."""
    scratch = "; to start from scratch: --weights ''" if trains else ""
    if is_released_weight(name):
        return (
            f"weights {name} not found here, and they cannot be downloaded: no network. "
            f"Put the file there, or name another one{scratch}"
        )
    return f"weights not found: {name}. Check the path{scratch}"


def _with_notice(download: Callable[..., str], file: Any, *args: Any, **kwargs: Any) -> str:
    name = str(file).strip().replace("'", "")
    if Path(name).exists():
        return name
    is_known = name.startswith(("http:/", "https:/")) or is_released_weight(name) or args or kwargs
    if not is_known or not is_online():
        raise CheckpointError(missing_weights_message(name))
    found = download(file, *args, **kwargs)
    if not Path(found).exists():
        raise CheckpointError(f"download of {name} failed; see the messages above.")
    return found


DOWNLOADS_SAY_SO = Quirk(
    name="downloads-say-so",
    symptom="missing weights: a minute of retries, then a FileNotFoundError from torch.load",
    versions="all",
    needed=lambda module: module.code.defines("attempt_download"),
    reason="missing weights start a download, which takes long to fail without a network",
    apply=lambda module, patches: patches.wrap(module.module, "attempt_download", _with_notice),
)


_CHECK = "check_requirements"


def _pip_needed(module: SourceModule) -> str | None:
    if module.name != "utils.general" or _CHECK not in module.code.own_names:
        return None
    check = module.code.part(_CHECK)
    if check is None or "install" in parameters(check):  # None: it is imported from the package ultralytics
        return "check_requirements runs pip install for missing packages"
    return None


def _pip_apply(module: SourceModule, patches: Patches) -> None:
    # check_requirements() without arguments reads requirements.txt, which only a clone has
    without_file = module.engine.kind == "package"

    def check_only(check: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        listed = args[0] if args else kwargs.get("requirements")
        if without_file and (listed is None or isinstance(listed, Path)):
            return True
        return check(*args[:2], **{**kwargs, "install": False})  # requirements, exclude, install

    patches.wrap(module.module, _CHECK, check_only)


NO_PIP_BEHIND_THE_BACK = Quirk(
    name="no-pip-behind-the-back",
    symptom="a missing optional package starts 'pip install' in the middle of a run",
    versions="all",
    needed=_pip_needed,
    settled=lambda module: module.name == "utils.general" and module.code.defines(_CHECK),
    apply=_pip_apply,
)


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def _files_first(download: Callable[..., str | None], repo_id: Any, *args: Any, **kwargs: Any) -> str | None:
    name = str(repo_id)
    if Path(name).exists() or name.endswith(".pt") or not _HUB_NAME.fullmatch(name):
        return None
    if importlib.util.find_spec("huggingface_hub") is None:
        raise CheckpointError(
            f"weights {name} not found here. To get them from the Hugging Face Hub: pip install 'huggingface-hub<0.25'"
        )
    if not is_online("huggingface.co"):
        raise CheckpointError(
            f"weights {name} not found here, and the Hugging Face Hub cannot be reached. Check the path."
        )
    return download(repo_id, *args, **kwargs)


FILES_BEFORE_HUB = Quirk(
    name="files-before-hub",
    symptom="--weights best.pt: a connection error, or No module named 'huggingface_hub', though the file is there",
    versions="PyPI 7.0.14",
    needed=lambda module: module.code.defines("attempt_download_from_hub"),
    reason="weights are looked for on the Hugging Face Hub before the local disk",
    settled=by_absence,
    apply=lambda module, patches: patches.wrap(module.module, "attempt_download_from_hub", _files_first),
)
