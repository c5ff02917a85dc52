"""``yolov5-ema inspect``: print what a checkpoint holds, without unpickling anything."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yolov5_ema.cli._engines import ULTRALYTICS
from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import Command, add_json, print_json, results_alone
from yolov5_ema.errors import EngineNotFoundError, UserError
from yolov5_ema.settings import read
from yolov5_ema.texts import counted
from yolov5_ema.upstream.locate import locate
from yolov5_ema.upstream.ultralytics import located
from yolov5_ema.weights.checkpoint_files import check_readable, is_safetensors
from yolov5_ema.weights.inspection import Inspection, ModelReport, inspect_file

_EPILOG = """\
Nothing in the file is imported, called or built. A name that is not in the allow-list for loading gives a warning.

exit code: 0: no warnings; 1: warnings; 2: not a checkpoint, or a file that cannot be read
example: yolov5-ema inspect runs/train/exp/weights/best.pt
"""
_WIDTH = 110


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Print what each file holds. Returns 0, 1 for warnings, 2 for a file that is not a checkpoint."""
    judge = _Judge()
    found = []
    code = 0
    for file in args.files:
        try:
            with results_alone(args.json):
                inspection = judge.inspect(Path(file))
        except UserError as error:
            if len(args.files) == 1:
                raise
            print(f"yolov5-ema: error: {error}", file=sys.stderr)
            code = 2
            continue
        found.append(inspection)
        code = max(code, 1 if inspection.warnings else 0)
        if not args.json:
            print(_text(inspection, judge.by))
    if args.json:
        print_json([{**inspection.as_dict(), "judged_by": judge.by} for inspection in found], sys.stdout)
    return code


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a weights file")
    add_json(parser, "print JSON: a list with an object for each file")


class _Judge:
    """Decides which names a checkpoint may hold.

    It uses the allow-list of the installed YOLOv5, or of ultralytics for its files. If the program is not installed, it
    uses the names of modules.
    """

    def __init__(self) -> None:
        self.by = ""
        self._judges: dict[bool, tuple[str, Callable[[str], bool] | None]] = {}
        self._blocks: list[str] = []

    def inspect(self, path: Path) -> Inspection:
        from yolov5_ema.checkpoints.recognition import engine_of_weights

        check_readable(path)
        if is_safetensors(path):
            return inspect_file(path)
        if not self._judges:
            self._learn_blocks()
        of_ultralytics = engine_of_weights(path) == ULTRALYTICS
        if of_ultralytics not in self._judges:
            self._judges[of_ultralytics] = _judge_of_ultralytics() if of_ultralytics else _judge_of_yolov5()
        self.by, allowed = self._judges[of_ultralytics]
        return inspect_file(path, allowed, self._blocks)

    def _learn_blocks(self) -> None:
        if read("plugins"):
            load_plugins()
            from yolov5_ema.blocks import get_block, list_blocks

            classes = [get_block(name) for name in list_blocks()]
            self._blocks = [f"{cls.__module__}.{cls.__qualname__}" for cls in classes]


def _judge_of_yolov5() -> tuple[str, Callable[[str], bool] | None]:
    """What judges the names in other files than those of ultralytics, in words, and whether it allows a name."""
    try:
        engine = locate()
    except EngineNotFoundError:
        if read("yolov5"):
            raise
        return "the names of modules only, because no YOLOv5 was found", None
    from yolov5_ema.blocks import by_timm
    from yolov5_ema.checkpoints.loading import allow_list
    from yolov5_ema.engine import shim

    names = {name for _, name in allow_list(shim.install())}
    return f"the allow-list for {engine}", lambda name: name in names or by_timm.is_part(name)


def _judge_of_ultralytics() -> tuple[str, Callable[[str], bool] | None]:
    """The same for files of ultralytics."""
    try:
        engine = located()
    except EngineNotFoundError:
        return "the names of modules only, because the package ultralytics is not installed", None
    from yolov5_ema.blocks import by_timm
    from yolov5_ema.checkpoints.ultralytics_rules import allow_list

    return f"the allow-list for {engine}", lambda name: by_timm.is_part(name) or name in allow_list([name])


# --- text ----------------------------------------------------------------------------------------


def _text(found: Inspection, judged_by: str) -> str:
    protocol = "" if found.protocol is None else f", pickle protocol {found.protocol}"
    lines = [f"{_shown(found.file)}: {found.kind}", f"  {_size(found.bytes)}, {found.container}{protocol}"]
    lines += _versions(found)
    lines += _training(found)
    first = _for_inference(found.models)
    for model in found.models:
        lines += _model(model) if model is first else _other_model(model)
    lines += _metadata(found.metadata)
    lines += [f"note: {_shown(note, 400)}" for note in found.notes]
    lines += [f"warning: {_shown(warning, 400)}" for warning in found.warnings[:40]]
    if len(found.warnings) > 40:
        lines.append(f"warning: {len(found.warnings) - 40} more (--json lists all)")
    if judged_by and found.container != "safetensors":
        is_good = not found.outside and not found.warnings
        lines.append(f"{'nothing outside the allow-list, ' if is_good else ''}judged by {judged_by}")
    return "\n".join(lines) + "\n"


def _for_inference(models: Sequence[ModelReport]) -> ModelReport | None:
    """The model that YOLOv5 runs: ``ema`` if there is one, else the first."""
    return next((model for model in models if model.key == "ema"), models[0] if models else None)


def _versions(found: Inspection) -> list[str]:
    shown = {
        "version": "torch file format",
        "format_version": "archive format",
        "byteorder": "byte order",
        "yolov5pip_version": "written by the package yolov5",
        "written_by_version": "written by version",
        "torch_version": "torch",
        "git": "YOLOv5's git",
        "yolov5-ema": "written by yolov5-ema",
        "torch": "torch",
        "yolov5": "YOLOv5",
        "ultralytics": "ultralytics",
        "source_name": "from",
        "source_sha256": "sha256",
    }
    parts = [f"{label} {_shown(found.versions[key])}" for key, label in shown.items() if key in found.versions]
    return [f"  {', '.join(parts)}"] if parts else []


def _training(found: Inspection) -> list[str]:
    facts = found.training
    lines = []
    if found.keys:
        lines.append(f"  keys: {_shown(', '.join(found.keys), 300)}")
    labels = {"epoch": "epoch", "best_fitness": "best fitness", "updates": "EMA updates", "date": "date"}
    parts = [f"{label} {_shown(facts[key])}" for key, label in labels.items() if key in facts]
    if parts:
        lines.append(f"  {', '.join(parts)}")
    if found.optimizer:
        held = (counted(found.optimizer[f"{what}s"], what) for what in ("group", "tensor"))
        lines.append(f"  optimizer state: {', '.join(held)}")
    elif any(model.key for model in found.models):
        lines.append("  optimizer state: none")
    for key in ("opt", "train_args"):
        if isinstance(facts.get(key), dict):
            lines += _wrapped(f"  {key}: ", [f"{k}={_shown(v, 80)}" for k, v in facts[key].items()])
    return lines


def _model(model: ModelReport) -> list[str]:
    layout = f" (names of a {model.layout})" if model.layout else ""
    lines = [f"{model.key or 'holds'}: {_shown(model.cls)}{layout}", f"  {_counts(model)}"]
    size = (model.cfg or {}).get("scale")
    about = [f"task {model.task}" if model.task else "", f"size {size}" if isinstance(size, str) and size else ""]
    if any(about):
        lines.append(f"  {_shown(', '.join(filter(None, about)))}")
    if model.names is not None or model.cfg:
        lines += _wrapped(f"  {_classes_line(model)}", [_shown(name, 60) for name in _list(model.names)])
    if model.strides:
        lines.append(f"  strides {', '.join(f'{stride:g}' for stride in model.strides)}")
    if model.anchors:
        levels = "; ".join(", ".join(f"{n:g}" for n in level) for level in model.anchors)
        lines.append(f"  anchors in pixels: {levels}")
    lines += _rows(model)
    lines += _blocks(model)
    for group, counts in model.classes.items():
        lines += _wrapped(f"  {group}: ", [f"{_shown(name)} {count}" for name, count in counts.items()])
    if isinstance(model.hyp, dict):
        lines += _wrapped("  hyp: ", [f"{_shown(k)} {_shown(v)}" for k, v in model.hyp.items()])
    return lines


def _other_model(model: ModelReport) -> list[str]:
    return [f"{model.key or 'holds'}: {_shown(model.cls)}", f"  {_counts(model)}"]


def _counts(model: ModelReport) -> str:
    dtypes = sorted(model.dtypes, key=lambda name: -model.dtypes[name])
    what = "numbers" if model.is_state_dict else "parameters"
    return f"{model.parameters:,} {what}, {counted(model.tensors, 'tensor')} of {', '.join(dtypes) or 'no dtype'}"


def _classes_line(model: ModelReport) -> str:
    count = (model.cfg or {}).get("nc")
    if type(count) is int:
        return f"{counted(count, 'class')}: "
    return f"{_shown(count)} classes: " if count is not None else "classes: "


def _list(names: Any) -> list[Any]:
    if isinstance(names, dict):
        return list(names.values())
    return names if isinstance(names, list) else []


def _rows(model: ModelReport) -> list[str]:
    cfg = model.cfg or {}
    rows = [row for section in ("backbone", "head") for row in _list(cfg.get(section))]
    if not rows:
        return []
    scale = [f"{key} {_shown(cfg[key])}" for key in ("depth_multiple", "width_multiple", "ch") if key in cfg]
    lines = [f"  {', '.join(scale)}"] if scale else []
    lines.append("  model.yaml:")
    for index, row in enumerate(rows[:300]):
        if isinstance(row, list) and len(row) == 4:
            source, number, module, args = (_shown(part, 60) for part in row)
            lines.append(f"   {index:>3}  {source:>14}  {number:>2}  {module:<12} {args}")
        else:
            lines.append(f"   {index:>3}  {_shown(row)}")
    return lines


def _blocks(model: ModelReport) -> list[str]:
    lines = []
    for block in model.blocks[:100]:
        options = ", ".join(f"{_shown(key)}={_shown(value)}" for key, value in block.options.items())
        where = f"row {block.row}" if block.row >= 0 else _shown(block.path)
        lines.append(f"  attention in {where}: {_shown(_block_name(block.cls))} ({options})")
    return lines


def _block_name(cls: str) -> str:
    """The name of a block in rows; ``timm.eca`` is the class ``TimmEca``."""
    module, _, name = cls.rpartition(".")
    return f"timm.{name.removeprefix('Timm').lower()}" if module.endswith(".by_timm") else name


def _metadata(metadata: dict[str, Any]) -> list[str]:
    return [f"  {_shown(key, 40)}: {_shown(value, 300)}" for key, value in list(metadata.items())[:20]]


def _wrapped(lead: str, parts: Sequence[str], most: int = 200) -> list[str]:
    """The parts, joined by commas and wrapped into lines."""
    shown = [*parts[:most], *([f"… {len(parts) - most} more"] if len(parts) > most else [])]
    lines, line = [], lead
    for index, part in enumerate(shown):
        piece = part + (", " if index + 1 < len(shown) else "")
        if len(line) + len(piece) > _WIDTH and line.strip() and line != lead:
            lines.append(line.rstrip())
            line = "      "
        line += piece
    return [*lines, line.rstrip()]


def _shown(value: Any, most: int = 120) -> str:
    """A value of the file as text that is safe to print: control characters escaped, and of limited length."""
    text = value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else str(value)
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: most * 2])
    return text if len(text) <= most else text[: most - 1] + "…"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count:,} bytes"


COMMAND = Command(
    "inspect",
    "print what a checkpoint holds without unpickling it; warns about suspicious content",
    _run,
    _add_flags,
    description="Print what a checkpoint, a state dict, a TorchScript archive or a safetensors file holds.",
    epilog=_EPILOG,
    only_looks=True,
)
