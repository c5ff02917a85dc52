"""``yolov5-ema doctor``: report what is installed, which YOLOs can be used, and which quirks are on and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov5_ema import __version__
from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import Command, Flags, add_json, print_json, results_alone
from yolov5_ema.errors import EngineNotFoundError, UserError
from yolov5_ema.settings import VARIABLES, read
from yolov5_ema.texts import first_line

if TYPE_CHECKING:
    from yolov5_ema.engine.activation import Finding
    from yolov5_ema.engine.quirks import Quirk
    from yolov5_ema.upstream.locate import Engine

_PACKAGES = (
    "torch", "torchvision", "numpy", "opencv-python", "Pillow", "pandas", "matplotlib", "setuptools", "PyYAML",
    "pycocotools", "onnx", "onnxruntime", "yolov5", "ultralytics",
)  # fmt: skip
_OPENCVS = (
    *("opencv-python", "opencv-python-headless"),
    *("opencv-contrib-python", "opencv-contrib-python-headless"),
)


Facts = dict[str, Any]
Show = Callable[[str], object]


def _add_flags(flags: Flags) -> None:
    flags.add_argument(
        "--check",
        action="store_true",
        help="also compare every kernel with plain torch operations, in all dtypes, memory layouts and odd shapes, "
        "and print a table and how many failed; exit code 1 if one is wrong (a GPU compiles its kernels first, which "
        "takes minutes)",
    )
    add_json(flags)


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Print the report, line by line: those before an error are printed too."""
    facts: Facts = {}
    with results_alone(args.json) as output:
        show: Show = _show_nothing if args.json else print
        check = (_check_kernels,) if args.check else ()
        for section in (_versions, _torch, _implementations, _blocks, _yolov5, _ultralytics, *check):
            facts.update(section(show))
    if args.json:
        print_json(facts, output)
    _check_usable(facts["yolov5"]["problem"], facts["ultralytics"]["problem"])
    return int(any(row["is_fault"] for row in facts.get("kernels", ())))


def _show_nothing(text: str) -> None:
    """Print nothing: with ``--json``, the JSON is printed at the end."""


def _versions(show: Show) -> Facts:
    found = {
        "yolov5-ema": __version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) for name in _PACKAGES},
    }
    for name, version in found.items():
        show(f"{name:<15}{version or '-'}")
    over = [name for name in _OPENCVS if _version(name)]
    # All OpenCV packages install into the same folder: the last one installed is used, and removing one breaks both.
    if len(over) > 1:
        show(f"               {' and '.join(over)} overwrite each other. To keep only one:")
        show(f"               pip uninstall -y {' '.join(over)}; pip install opencv-python")
    return {"versions": found, "opencvs": over}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch(show: Show) -> Facts:
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    show(f"GPU            {gpu or 'none'}")
    show(f"CPU threads    {torch.get_num_threads()}")
    return {"gpu": gpu, "cpu_threads": torch.get_num_threads()}


def _implementations(show: Show) -> Facts:
    from yolov5_ema.kernels import dispatch

    asked = read("implementation")
    if asked:
        show(f"{VARIABLES['implementation']}={asked}")
    chosen = dispatch.survey("EMA")
    for device, (name, reason) in chosen.items():
        show(f"EMA on {device:<8}{name}: {reason}")
    listed = {device: {"name": name, "because": reason} for device, (name, reason) in chosen.items()}
    return {"implementation_asked_for": asked, "implementations": listed}


def _blocks(show: Show) -> Facts:
    from yolov5_ema.blocks import list_blocks

    load_plugins()
    show(f"blocks         {', '.join(list_blocks())}")
    return {"blocks": list_blocks()}


def _yolov5(show: Show) -> Facts:
    from yolov5_ema.engine import activation
    from yolov5_ema.engine.guards import GUARDS
    from yolov5_ema.engine.quirks import QUIRKS
    from yolov5_ema.upstream.locate import clone_here, locate

    try:
        engine = locate()
    except EngineNotFoundError as error:
        if read("yolov5"):
            raise
        show(f"\nYOLOv5         {error}")
        return {"yolov5": _engine(None, str(error)), "quirks": [], "guards": []}
    here = clone_here()
    show(f"\nYOLOv5         {engine}")
    if here is not None and here.root == Path.cwd().resolve() != engine.root:
        show(f"               {here}: train, val, detect and other commands that run YOLOv5 use this one,")
        show("               because it is the working directory; doctor runs its code only with --yolov5 PATH")
    show("quirks")
    findings = activation.findings(engine, (*QUIRKS, *GUARDS))
    quirks, guards = findings[: len(QUIRKS)], findings[len(QUIRKS) :]
    for quirk, found in zip(QUIRKS, quirks):
        _show_quirk(quirk, found, show)
    show(f"guards         {', '.join(guard.name for guard in guards if guard.places)}")
    unknown = [guard.name for guard in guards if not guard.is_settled]
    if unknown:
        show(
            f"not known      {', '.join(unknown)}: "
            "the code that they guard was not found in this YOLOv5, or was rewritten"
        )
    return {
        "yolov5": _engine(engine, _show_use(engine, _build_with_yolov5, show)),
        "quirks": [_as_dict(finding) for finding in quirks],
        "guards": [_as_dict(finding) for finding in guards],
    }


def _ultralytics(show: Show) -> Facts:
    from yolov5_ema.engine import ultralytics_guards
    from yolov5_ema.upstream.ultralytics import located

    try:
        engine = located()
    except EngineNotFoundError as error:
        show(f"\nultralytics    {error}")
        return {"ultralytics": {**_engine(None, str(error)), "guards": []}}
    show(f"\nultralytics    {engine}")
    guards = list(ultralytics_guards.GUARDS)
    show(f"guards         {', '.join(guards)}")
    return {"ultralytics": {**_engine(engine, _show_use(engine, _build_with_ultralytics, show)), "guards": guards}}


def _engine(engine: Engine | None, problem: str) -> Facts:
    """What was found of YOLOv5 or ultralytics, and why it cannot be used; an empty text if it can."""
    version, folder = (engine.version, str(engine.root)) if engine else (None, None)
    return {"version": version, "folder": folder, "problem": problem}


def _show_use(engine: Engine, build: Callable[[], object], show: Show) -> str:
    """Show whether a model with EMA can be built. Returns why not, or an empty text."""
    try:
        build()
    except UserError as error:
        problem = str(error)
    except Exception as error:
        problem = f"{engine} cannot be imported: {type(error).__name__}: {first_line(error)}"
    else:
        show(f"{engine} can be imported, and its parse_model knows the blocks.")
        return ""
    show(f"not usable     {problem}")
    return problem


def _build_with_yolov5() -> None:
    from yolov5_ema.cfgs.dry_run import check_model
    from yolov5_ema.engine import shim
    from yolov5_ema.resources import models_dir

    with shim.installed(conflicts="ours") as engine:
        check_model(models_dir() / "yolov5n-ema.yaml", engine)


def _build_with_ultralytics() -> None:
    from yolov5_ema.checkpoints.ultralytics_models import build, read_cfg
    from yolov5_ema.engine import shim
    from yolov5_ema.upstream.ultralytics import shipped_cfg

    name = "yolov8-ema.yaml"
    with shim.installed("ultralytics", conflicts="ours") as engine:
        build(read_cfg(name, engine, shipped_cfg(name)), None, engine, name)


def _check_kernels(show: Show) -> Facts:
    """Compare all kernels with plain operations. Rows are shown as they come: on a GPU they take minutes."""
    from yolov5_ema.kernels import self_test

    columns = "{:<7}{:<8}{:<10}{:<8}{:<10}{:<15}{:<9}{:<9}{:<9}{}"
    show("\nkernels, compared with plain torch operations; errors are relative to the largest value of a result")
    heads = ("block", "kernel", "pass", "device", "dtype", "layout", "result", "error", "allowed", "")
    show(columns.format(*heads).rstrip())
    rows = []
    for row in self_test.check():
        errors = ("" if error is None else f"{error:.1e}" for error in (row.error, row.allowed))
        show(columns.format(*row[:6], row.result, *errors, row.reason).rstrip())
        rows.append(row)
    show(f"\n{self_test.verdict(rows)}")
    return {"kernels": [{**row._asdict(), "is_fault": row.is_fault} for row in rows]}


def _check_usable(of_yolov5: str, of_ultralytics: str) -> None:
    """Raise a UserError if neither YOLO can be used, or if a YOLOv5 was named and cannot be used."""
    if of_yolov5 and read("yolov5"):
        raise UserError(of_yolov5)
    if of_yolov5 and of_ultralytics:
        raise UserError(f"neither YOLOv5 nor ultralytics can be used here. {of_yolov5} {of_ultralytics}")


def _show_quirk(quirk: Quirk, found: Finding, show: Show) -> None:
    if found.places:
        modules = ", ".join(module for module, _ in found.places)
        lines = [f"on: {found.places[0][1]}", f"in {modules}; without it: {quirk.symptom}"]
    elif found.is_settled:
        lines = ["off: not needed"]
    else:
        lines = ["off, and not known whether it is needed: the code it fixes was not found in this YOLOv5,"]
        lines += [f"or was rewritten. If it is needed: {quirk.symptom}"]
    for start, line in zip((quirk.name, ""), lines):
        show(f"  {start:<26}{line}")


def _as_dict(found: Finding) -> Facts:
    """A quirk or guard: whether it is on and where, and whether this could be decided (``is_settled``)."""
    places = [{"module": module, "because": reason} for module, reason in found.places]
    return {"name": found.name, "on": bool(places), "is_settled": found.is_settled, "places": places}


COMMAND = Command(
    "doctor",
    "print versions, the YOLOv5 and ultralytics in use, how blocks run, and the quirks",
    _run,
    _add_flags,
    description="Report versions, the YOLOv5 and the ultralytics that commands will use, whether each of them knows "
    "the blocks, and what this package fixes and guards in them. The exit code is 0 if at least one can be used.",
    only_looks=True,
)
