"""Folders: where a run without ``--project`` is saved, and where YOLOv5 looks for its own files."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.upstream.source_code import dotted, keyword


def _needed(module: SourceModule) -> str | None:
    flag = module.code.flag("--project")
    if flag is not None and _is_below_root(keyword(flag, "default")) and module.code.defines("parse_opt"):
        return "without --project, runs are saved in the folder of YOLOv5 itself"
    return None


def _is_below_root(place: ast.AST | None) -> bool:
    while isinstance(place, ast.BinOp):
        place = place.left
    return place is not None and dotted(place) == "ROOT"


def _below_working_folder(parse_opt: Callable[..., Any], root: Path, *args: Any, **kwargs: Any) -> Any:
    opt = parse_opt(*args, **kwargs)
    project = getattr(opt, "project", None)
    if isinstance(project, Path) and root in project.resolve().parents:  # a flag would give a string
        here = str(project.resolve().relative_to(root))
        opt.project = here.replace("train", "evolve") if getattr(opt, "evolve", None) else here
    return opt


RUNS_HERE = Quirk(
    name="runs-here",
    symptom="runs are saved in the clone, or in site-packages, not in runs/ below the working directory",
    versions="clones of all; PyPI 6.2.3 and 7.0.14 in segment/ and classify/",
    needed=_needed,
    settled=lambda module: module.name in ("train", "val", "detect") and module.code.has_flag("--project"),
    apply=lambda module, patches: patches.wrap(module.module, "parse_opt", _below_working_folder, module.engine.root),
)


ROOT_STAYS = Quirk(
    name="root-stays",
    symptom="from Python, after os.chdir: File not found: ../../yolov5/data/hyps/hyp.scratch-low.yaml",
    versions="all but PyPI 6.0.7",
    needed=lambda module: module.code.has("ROOT = Path(os.path.relpath(ROOT, Path.cwd()))"),
    reason="ROOT is stored relative to the working directory at the time of the import",
    settled=by_absence,
    apply=lambda module, patches: patches.set(module.module, "ROOT", module.engine.root),
)
