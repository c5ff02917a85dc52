"""The models of the paper's tables, built and counted, and compared with the printed numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.classification import create_paper_model, paper_model
from yolov5_ema.engine import shim
from yolov5_ema.paper.counting import count_operations, parameters_plain, parameters_without_norms
from yolov5_ema.paper.matching import CUT_OFF, ROUNDED, explain
from yolov5_ema.paper.printed import PrintedRow, PrintedTable
from yolov5_ema.resources import find_shipped

# in multiply-adds, each of which counts as two FLOPs
_UNITS = {"M": 1e6, "G MACs": 1e9, "M MACs": 1e6, "GFLOPs": 0.5e9}
_DETECTOR_IMGSZ = 640


@dataclass(frozen=True)
class Counts:
    """The counts of a built model: parameters and multiply-adds by convention; ``full`` counts all that runs."""

    parameters: dict[str, int]
    operations: dict[str, int]
    full: int

    def ours(self, kind: str) -> int:
        return self.full if kind == "operations" else self.parameters["plain"]


@dataclass(frozen=True)
class Figure:
    """One printed number of the paper and our counts.

    Attributes:
        kind: "parameters" or "operations".
        unit: unit of all numbers here.
        printed: the paper's number; empty if it prints none.
        ours: all parameters, or all operations that run.
        conventions: the result of each way of counting.
        convention, explained, how: the way of counting that gives the printed number, its value, and how the digits
            were derived; empty and None if no way gives it.
        over: our number minus that of the row it is compared with; None for a baseline.
        as_without_block: whether no way of counting gives the number by rounding, but one gives it for the row without
            the block.
    """

    kind: str
    unit: str
    printed: str
    ours: float
    conventions: dict[str, float]
    convention: str
    explained: float | None
    how: str
    over: float | None
    as_without_block: bool

    @property
    def is_unexplained(self) -> bool:
        return bool(self.printed) and not self.convention


@dataclass(frozen=True)
class Row:
    """A row of a table: two numbers, and the accuracies as quoted from the paper's authors."""

    table: str
    title: str
    label: str
    figures: list[Figure]
    accuracy: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare_tables(tables: Iterable[PrintedTable]) -> Iterator[Row]:
    """Build and count every model of the tables, and yield each row as soon as it is ready."""
    seen: dict[str, Counts] = {}
    for table in tables:
        counts: dict[str, Counts] = {}
        for printed in table.rows:
            key = f"{printed.classifier}{printed.cfg}{printed.detector}"
            found = seen[key] = seen.get(key) or _count(printed)
            counts[printed.label] = found
            yield _row(table, printed, found, counts.get(printed.over))


def _row(table: PrintedTable, printed: PrintedRow, found: Counts, base: Counts | None) -> Row:
    parameters = _figure("parameters", "M", printed.parameters, found, base)
    operations = _figure("operations", table.operations, printed.operations, found, base)
    return Row(table.table, table.title, printed.label, [parameters, operations], printed.accuracy)


def _figure(kind: str, unit: str, printed: str, found: Counts, base: Counts | None) -> Figure:
    scale = _UNITS[unit]
    values = {name: count / scale for name, count in getattr(found, kind).items()}
    match = explain(printed, values) if printed else None
    as_without_block = False
    if base is not None and printed and (match is None or match.how == CUT_OFF):
        without = explain(printed, {name: count / scale for name, count in getattr(base, kind).items()})
        as_without_block = without is not None and without.how == ROUNDED
    return Figure(
        kind=kind,
        unit=unit,
        printed=printed,
        ours=found.ours(kind) / scale,
        conventions=values,
        convention=match.convention if match else "",
        explained=match.value if match else None,
        how=match.how if match else "",
        over=None if base is None else (found.ours(kind) - base.ours(kind)) / scale,
        as_without_block=as_without_block,
    )


def _count(printed: PrintedRow) -> Counts:
    return _count_classifier(printed.classifier) if printed.classifier else _count_detector(printed)


def _count_classifier(name: str) -> Counts:
    with torch.device("meta"):
        model = create_paper_model(name).eval()
    operations = count_operations(model, paper_model(name).imgsz)
    parameters = {"plain": parameters_plain(model), "no-norm": parameters_without_norms(model)}
    return Counts(parameters, operations.by_convention(), operations.full)


def _count_detector(printed: PrintedRow) -> Counts:
    engine = shim.install()
    yolo = engine.module("models.yolo")
    cfg = build_cfg(**printed.detector) if printed.detector else str(find_shipped(printed.cfg))
    with quiet():
        model = yolo.Model(cfg)  # on the CPU, because YOLOv5 compares the values of the anchors
    stride = max(int(model.stride.max()), 32)
    model = model.to("meta").eval()
    model.model[-1].train()  # in training mode, Detect runs the same convolutions but builds no grids
    whole, small = count_operations(model, _DETECTOR_IMGSZ), count_operations(model, stride)
    scale, counted = (_DETECTOR_IMGSZ // stride) ** 2, small.by_convention()
    ways = {"summary": "thop 0.0.31", "once summary": "once 0.0.31"}
    summaries = {name: counted[way] * scale for name, way in ways.items() if way in counted}
    plain = parameters_plain(model)
    with quiet():
        model.fuse()
    parameters = {"plain": plain, "fused": parameters_plain(model)}
    of_whole = {"layers": whole.layers, "thop 0.1.1": whole.by_convention()["thop 0.1.1"]}
    return Counts(parameters, {**summaries, **of_whole}, whole.full)
