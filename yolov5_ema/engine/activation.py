"""Switching quirks and guards on and off: an import hook for YOLOv5's own files, which can be undone completely."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from yolov5_ema.engine.guards import GUARDS
from yolov5_ema.engine.quirks import QUIRKS, Quirk, SourceModule
from yolov5_ema.engine.quirks.fonts import CONFIG_ENV
from yolov5_ema.errors import UserError
from yolov5_ema.late_modules import spec_with_kept
from yolov5_ema.settings import exporting
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches

_LOGGER = logging.getLogger(__name__)

_lock = threading.RLock()
_active: Activation | None = None


class Activation:
    """The active quirks of one YOLOv5."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.patches = Patches()
        self._finder = _Finder(self)
        self._config = os.environ.get(CONFIG_ENV)
        self._told_to_workers = ExitStack()
        self._path_entry = str(engine.import_root)
        self._added_path = False
        self._patched: set[str] = set()

    def start(self) -> None:
        self._refuse_foreign_modules()
        try:
            self._switch_on()
        except BaseException:
            self.stop()
            raise

    def _switch_on(self) -> None:
        # an environment can be on the path under another name, through a link
        if os.path.realpath(self._path_entry) not in map(os.path.realpath, filter(None, sys.path)):
            sys.path.insert(0, self._path_entry)
            self._added_path = True
        sys.meta_path.insert(0, self._finder)
        self._told_to_workers.enter_context(exporting(active=str(self.engine.root)))
        for name, module in list(sys.modules.items()):
            if self.engine.owns(getattr(module, "__file__", None)):
                self.after_import(name, module)

    def stop(self) -> None:
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self._finder)
        self.patches.undo()
        self._patched.clear()
        self._told_to_workers.close()
        if self._config is None:
            os.environ.pop(CONFIG_ENV, None)
        else:
            os.environ[CONFIG_ENV] = self._config
        if self._added_path:
            with contextlib.suppress(ValueError):
                sys.path.remove(self._path_entry)

    def _refuse_foreign_modules(self) -> None:
        """Refuse if other packages are already imported as `models` or `utils`: a clone needs these names."""
        if self.engine.kind == "package":
            return
        for name in ("models", "utils"):
            loaded = sys.modules.get(name)
            place = getattr(loaded, "__file__", None)
            if place and not self.engine.owns(place):
                raise UserError(
                    f"another package called {name!r} is already imported, from {place}; "
                    f"{self.engine} needs this name. Start a new Python process."
                )

    def source_module(self, name: str, path: str) -> SourceModule:
        return _source_module(self.engine, self.engine.relative_name(name) or name, Path(path))

    def after_import(self, name: str, module: ModuleType, looked_at: SourceModule | None = None) -> None:
        """Apply the quirks that a module needs, once.

        Args:
            name: the module's import name.
            module: the module, which has run.
            looked_at: what was read of it before it ran, if the import hook did so.
        """
        path = getattr(module, "__file__", None)
        if name in self._patched or not path or not path.endswith(".py"):
            return
        self._patched.add(name)
        subject = (looked_at or self.source_module(name, path)).after(module)
        for quirk in (*QUIRKS, *GUARDS):  # guards last, so that they wrap what quirks have set
            reason = quirk.why(subject)
            if reason is not None:
                _LOGGER.debug("%s: %s is on: %s", subject.name, quirk.name, reason)
                quirk.apply(subject, self.patches)


class _Loader(SourceFileLoader):
    """Runs a module inside the contexts of its quirks, then applies their changes."""

    def __init__(self, fullname: str, path: str, activation: Activation) -> None:
        super().__init__(fullname, path)
        self._activation = activation

    def exec_module(self, module: ModuleType) -> None:
        subject = self._activation.source_module(module.__name__, self.path)
        with ExitStack() as stack:
            for quirk in QUIRKS:
                if quirk.while_running is not None and quirk.needed(subject):
                    stack.enter_context(quirk.while_running(subject))
            super().exec_module(module)
        self._activation.after_import(module.__name__, module, subject)


class _Finder:
    """A meta path finder that finds YOLOv5's own files, and modules for which YOLOv5 has left settings."""

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        engine = self._activation.engine
        if engine.relative_name(fullname) is None and fullname != "yolov5":
            return spec_with_kept(fullname, path, target)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or not engine.owns(spec.origin) or not isinstance(spec.loader, SourceFileLoader):
            return None
        spec.loader = _Loader(fullname, str(spec.origin), self._activation)
        return spec


def activate(engine: Engine) -> Activation:
    """Switch the quirks of a YOLOv5 on; a second call for the same YOLOv5 changes nothing.

    Raises:
        UserError: the quirks of another YOLOv5 are on in this process.
    """
    global _active
    with _lock:
        if _active is not None:
            if _active.engine.root == engine.root:
                return _active
            raise UserError(f"{_active.engine} is active in this process; uninstall it before using {engine}.")
        activation = Activation(engine)
        activation.start()
        _active = activation
        return activation


def deactivate() -> None:
    """Undo `activate`: every attribute, the import hook and the environment are as they were before."""
    global _active
    with _lock:
        if _active is not None:
            _active.stop()
            _active = None


def active_engine() -> Engine | None:
    """The YOLOv5 whose quirks are on, or None."""
    return _active.engine if _active else None


def survey(engine: Engine) -> list[tuple[str, str, str]]:
    """List which quirks a YOLOv5 needs here, from its source text alone, as ``(quirk, module, reason)`` rows."""
    return [(one.name, module, reason) for one in findings(engine, QUIRKS) for module, reason in one.places]


@dataclass
class Finding:
    """What the source text of a YOLOv5 shows about one quirk or guard.

    Attributes:
        name: name of the quirk.
        places: ``(module, reason)`` for each module that needs it.
        is_settled: whether some module needs the quirk, or shows that this YOLOv5 does not need it.
    """

    name: str
    places: list[tuple[str, str]] = field(default_factory=list)
    is_settled: bool = False


def findings(engine: Engine, quirks: Sequence[Quirk]) -> list[Finding]:
    """Look for the given quirks in the source text of a YOLOv5, without importing it."""
    found = [Finding(quirk.name) for quirk in quirks]
    for path in engine.sources():
        subject = _source_module(engine, ".".join(path.relative_to(engine.root).with_suffix("").parts), path)
        for quirk, finding in zip(quirks, found):
            reason = quirk.why(subject)
            if reason is not None:
                finding.places.append((subject.name, reason))
            finding.is_settled |= reason is not None or (subject.code.is_readable and quirk.settled(subject))
    return found


def _source_module(engine: Engine, name: str, path: Path) -> SourceModule:
    return SourceModule(engine, name, path.read_text(encoding="utf-8", errors="ignore"))
