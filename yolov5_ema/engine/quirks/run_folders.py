"""Where a run without ``--project`` goes: below the working directory, not into YOLOv5's own folder."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from yolov5_ema.engine.patching import Patches
from yolov5_ema.engine.quirks.base import Quirk, SourceModule


def _needed(module: SourceModule) -> str | None:
    if re.search(r"[\"']--project[\"'],\s*(?:type=Path,\s*)?default=ROOT\s*/", module.source):
        return "without --project its runs go into the folder that YOLOv5 lies in"
    return None


def _apply(module: SourceModule, patches: Patches) -> None:
    parse_opt, root = module.module.parse_opt, module.engine.root

    @functools.wraps(parse_opt)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        opt = parse_opt(*args, **kwargs)
        project = getattr(opt, "project", None)
        if isinstance(project, Path) and root in project.resolve().parents:  # a Path: the default, not a flag
            here = str(project.resolve().relative_to(root))
            opt.project = here.replace("train", "evolve") if getattr(opt, "evolve", None) else here
        return opt

    patches.set(module.module, "parse_opt", wrapper)


RUNS_HERE = Quirk(
    name="runs-here",
    symptom="runs are found in the clone, or in site-packages, not in runs/ below where the command was given",
    versions="clones of all; PyPI 6.2.3 and 7.0.14 in segment/ and classify/",
    needed=_needed,
    apply=_apply,
)
