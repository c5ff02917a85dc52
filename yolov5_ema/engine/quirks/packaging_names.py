"""``pkg_resources``, which setuptools 82 removed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Iterable, Iterator

from packaging.requirements import Requirement
from packaging.version import parse

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.upstream.patching import Patches


class DistributionNotFound(Exception):
    """A required distribution is not installed."""


class VersionConflict(Exception):
    """A required distribution is installed in another version."""


def _require(requirement: str) -> None:
    wanted = Requirement(requirement)
    try:
        found = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        raise DistributionNotFound(f"{requirement} is not installed") from None
    if not wanted.specifier.contains(found, prereleases=True):
        raise VersionConflict(f"{requirement} is required, {found} is installed")


def _parse_requirements(lines: Iterable[str]) -> Iterator[types.SimpleNamespace]:
    for line in lines:
        text = line.split("#")[0].strip()
        if text:
            wanted = Requirement(text)
            yield types.SimpleNamespace(name=wanted.name, specifier=str(wanted.specifier))


def stand_in() -> types.ModuleType:
    """A ``pkg_resources`` with the three functions that YOLOv5 calls, implemented with `packaging`."""
    module = types.ModuleType("pkg_resources", "The few functions of pkg_resources that YOLOv5 calls.")
    module.__dict__.update(
        parse_version=parse,
        require=_require,
        parse_requirements=_parse_requirements,
        DistributionNotFound=DistributionNotFound,
        VersionConflict=VersionConflict,
    )
    return module


def _needed(module: SourceModule) -> str | None:
    if not module.code.imports("pkg_resources", within_function=False):
        return None
    if "pkg_resources" in sys.modules or importlib.util.find_spec("pkg_resources"):
        return None
    return "setuptools no longer has pkg_resources"


@contextlib.contextmanager
def _while_running(module: SourceModule) -> Iterator[None]:
    with Patches() as patches:  # YOLOv5's module keeps its own reference; nobody else may find the replacement
        patches.set_item(sys.modules, "pkg_resources", stand_in())
        yield


PKG_RESOURCES = Quirk(
    name="pkg-resources",
    symptom="ModuleNotFoundError: No module named 'pkg_resources'",
    versions="6.0 to 7.0.14",
    needed=_needed,
    settled=by_absence,
    while_running=_while_running,
)
