"""A relative ``path:`` in a data YAML, which each YOLOv5 takes from somewhere else."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import yaml

from yolov5_ema.engine.data_yaml import image_root
from yolov5_ema.engine.patching import Patches
from yolov5_ema.engine.quirks import downloads
from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.errors import ConfigError


def refuse_download_without_network(data: dict[str, Any], file: Path) -> None:
    """Say at once that images are missing which YOLOv5 would try to download.

    Raises:
        ConfigError: there are no validation images, a ``download`` key, and no network.
    """
    entries = data.get("val") or []
    missing = [
        place
        for entry in (entries if isinstance(entries, list) else [entries])
        if not (place := Path(data["path"]) / str(entry)).exists()
    ]
    if missing and data.get("download") and not downloads.is_online():
        raise ConfigError(
            f"{file}: images not found at {missing[0]}, and they cannot be downloaded: no network. "
            "Put the data set there, or name another --data."
        )


def _needed(module: SourceModule) -> str | None:
    if re.search(r"^def check_dataset\(", module.source, re.MULTILINE):
        return "a relative 'path' is looked for in one place only (v7's package: in site-packages)"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    check_dataset = module.module.check_dataset

    @functools.wraps(check_dataset)
    def wrapper(data: Any, *args: Any, **kwargs: Any) -> Any:
        file = Path(str(data))
        if isinstance(data, (str, Path)) and file.suffix in (".yaml", ".yml") and file.is_file():
            data = yaml.safe_load(file.read_text(encoding="utf-8", errors="ignore"))
            data["path"] = str(image_root(data, file, module.engine).resolve())
            refuse_download_without_network(data, file)
        return check_dataset(data, *args, **kwargs)

    patches.set(module.module, "check_dataset", wrapper)


DATA_PATHS = Quirk(
    name="data-paths",
    symptom="Dataset not found, although the data YAML's path is right from here or from beside it",
    versions="all",
    needed=_needed,
    apply=_apply,
)
