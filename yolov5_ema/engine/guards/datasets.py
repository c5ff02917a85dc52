"""``check_dataset``: the function with which all of YOLOv5's scripts read a data YAML.

Under ``download``, a data YAML may say what to run or fetch if images are missing. This is done only for the YAMLs that
ship with YOLOv5 or with this package, see `may_download`. A relative ``path`` is looked for where a user expects it,
because releases of YOLOv5 differ in where they look.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yolov5_ema.data.dataset import SPLITS, class_names, is_there, place_of
from yolov5_ema.engine.quirks import downloads
from yolov5_ema.engine.quirks.base import Quirk
from yolov5_ema.errors import ConfigError
from yolov5_ema.upstream.data_yaml import approving, may_download, open_dataset
from yolov5_ema.upstream.locate import Engine


def _guarded(check_dataset: Callable[..., Any], engine: Engine, data: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(data, Mapping):
        names = class_names(data, Path("the data set"))
        return check_dataset(_with_names(_without_download(data), names), *args, **kwargs)
    file = Path(str(data))
    if not is_there(file) or _is_archive(file):
        return check_dataset(data, *args, **kwargs)
    dataset = open_dataset(str(file), engine, lenient=True)
    root = dataset.root.resolve()
    content = _with_names(dataset.content, list(dataset.names))
    content = {**content, **_found_below(root, content), "path": str(root)}
    if not may_download(file, engine):
        content = _without_download(content)
    _refuse_without_network(content, file)
    with approving(content.get("download")):
        return check_dataset(content, *args, **kwargs)


def _found_below(root: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the splits with the places where they were found; only v7.0 and later search for them themselves."""
    found: dict[str, Any] = {}
    for split in SPLITS:
        entries = data.get(split)
        if isinstance(entries, str):
            found[split] = _below(root, entries)
        elif isinstance(entries, (list, tuple)):
            found[split] = [_below(root, entry) if isinstance(entry, str) else entry for entry in entries]
    return found


def _below(root: Path, entry: str) -> str:
    place = place_of(root, entry)
    return entry if place == root / entry else str(place)


def _is_archive(file: Path) -> bool:
    """Whether a file is an archive of images and a YAML; YOLOv5 ignores ``download`` in that YAML.

    The name must end in ``.zip`` too: a file can be a valid YAML and a valid archive at once, and would be unpacked
    over the files next to it.
    """
    return file.suffix == ".zip" and file.is_file() and zipfile.is_zipfile(file)


def _without_download(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != "download"}


def _with_names(data: Mapping[str, Any], names: list[str] | None) -> dict[str, Any]:
    """Return the data set with ``names`` as a list of strings, which YOLOv5 expects, and with ``nc``, for v6.0."""
    if not names:
        return dict(data)
    nc = data.get("nc")
    return {**data, "nc": len(names) if nc is None else nc, "names": names}


def _refuse_without_network(data: dict[str, Any], file: Path) -> None:
    """Refuse at once if validation images are missing that YOLOv5 would try to download without a network."""
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


DATASETS = Quirk(
    name="data-sets",
    symptom="'download' in a data YAML runs; Dataset not found, although its path is right from here or from the YAML",
    versions="all",
    needed=lambda module: module.code.defines("check_dataset"),
    reason="it runs what a data YAML says under 'download', and looks for a relative 'path' in one place only",
    apply=lambda module, patches: patches.wrap(module.module, "check_dataset", _guarded, module.engine),
)
