"""The rows of a model that blocks follow: the stages of its backbone and neck, or rows given by number.

A stage is what a network computes at one size of the maps: C3 in YOLOv5, C2f in YOLOv8, HGBlock in RT-DETR. No list of
these modules is needed. A stage starts where the size changes, or where maps are joined, and it is the first module
there that is neither a plain layer nor a pyramid of poolings; if a stage consists of convolutions only (YOLOv6), it is
the last of them that is larger than 1 x 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from yolov5_ema.cfgs.graph import Graph, Row
from yolov5_ema.cfgs.strides import gives_predictions, name_of, stride_factor
from yolov5_ema.errors import ConfigError
from yolov5_ema.texts import listed

_CONVOLUTIONS = ("Conv", "Conv2", "ConvTranspose", "CrossConv", "DWConv", "GhostConv", "MixConv2d", "RepConv")
PLACES = ("backbone", "neck", "every-c3", "sppf", "detect")
# they pass features on or join them
_NO_STAGES = ("CBFuse", "CBLinear", "Concat", "Contract", "Expand", "Focus", "ImagePoolingAttn", "Index")


def rows_at(graph: Graph, places: Sequence[str | int], module: str | None = None) -> list[Row]:
    """The rows at places of the model, in the model's order.

    Args:
        graph: the model.
        places: names of `PLACES`, and strides. The rows at all these places are taken; with strides, only those at
            these strides. With strides, ``backbone`` and ``neck`` mean all stages there, and strides alone mean all
            stages of the model.
        module: take only the rows that are this module.

    Raises:
        ConfigError: there are no rows at a place or a stride, or the stride of a row is unknown.
    """
    names = [place for place in places if isinstance(place, str)]
    strides = [place for place in places if not isinstance(place, str)]
    if not strides:
        chosen = [row for name in names for row in _ROWS_OF[name](graph, module)]
        return [row for row in graph.rows if row in chosen]
    stride_of = dict(zip(graph.rows, graph.strides()))
    found: list[Row] = []
    for name in names or ["every-c3"]:
        section = {"backbone": "backbone", "neck": "head"}.get(name)
        rows = _stage_rows(graph, module, section) if section else _ROWS_OF[name](graph, module)
        _check_known(graph, rows, f"at {name} with strides", stride_of)
        kept = [row for row in rows if stride_of[row] in strides]
        if not kept:
            has = listed(f"{stride:g}" for stride in sorted({stride_of[row] or 0 for row in rows}))
            place = f"at {name}, " if names else ""
            raise ConfigError(f"{graph.name}: {place}no stage has stride {listed(strides)}; they have {has}")
        found += kept
    missing = [stride for stride in strides if stride not in {stride_of[row] for row in found}]
    if missing:
        raise ConfigError(f"{graph.name}: at {' '.join(map(str, places))}, no stage has stride {missing[0]}")
    return [row for row in graph.rows if row in found]


def backbone_rows(graph: Graph, module: str | None = None) -> list[Row]:
    """The last two stages of the backbone; of those that are ``module``, if it is given.

    Raises:
        ConfigError: it has fewer than two.
    """
    found = _stage_rows(graph, module, "backbone")
    if len(found) < 2:
        raise ConfigError(
            f"{graph.name}: at backbone puts the block after the last two {module or 'C3'} of the backbone, which has "
            f"{len(found)}{'' if module else ' of these or of similar stages'}; choose the rows with --after"
        )
    return found[-2:]


def neck_rows(graph: Graph, module: str | None = None) -> list[Row]:
    """The stages of the neck that are finer than the model's coarsest stride; of those that are ``module``, if given.

    Raises:
        ConfigError: there are none, or the stride of a row is unknown.
    """
    strides = dict(zip(graph.rows, graph.strides()))
    read = {source.row for row in graph.rows for source in row.sources}
    _check_known(graph, [row for row in graph.rows if row in read], "at neck leaves out the coarsest stride", strides)
    coarsest = max((stride for stride in strides.values() if stride is not None), default=0)
    chosen = [row for row in _stage_rows(graph, module, "head") if (strides[row] or coarsest) < coarsest]
    if not chosen:
        raise ConfigError(
            f"{graph.name}: at neck puts the block after the {module or 'stages (C3 and similar modules)'} of the head "
            f"section that are finer than stride {coarsest:g}, and there are none; choose the rows with --after"
        )
    return chosen


def _every_stage(graph: Graph, module: str | None = None) -> list[Row]:
    found = _stage_rows(graph, module)
    return found or _none_at(graph, "every-c3", module or "C3 or similar stage")


def _pooling_rows(graph: Graph, module: str | None = None) -> list[Row]:
    if module:
        raise ConfigError(f"--inside {module} and --at sppf exclude each other: a pyramid of poolings is no {module}")
    found = [row for row in graph.rows if "SPP" in name_of(row.module)]
    return found or _none_at(graph, "sppf", "pyramid of poolings (SPPF, SPP …)")


def _rows_that_detect_reads(graph: Graph, module: str | None = None) -> list[Row]:
    read = [source.row for row in graph.rows if gives_predictions(row.module) for source in row.sources]
    found = [row for row in graph.rows if row in read and module in (None, row.module)]
    return found or _none_at(graph, "detect", f"{module or 'row'} that the detection head reads")


def _none_at(graph: Graph, place: str, what: str) -> list[Row]:
    raise ConfigError(f"{graph.name}: at {place}: it has no {what}; choose the rows with --after")


_ROWS_OF: dict[str, Callable[[Graph, str | None], list[Row]]] = {
    "backbone": backbone_rows,
    "neck": neck_rows,
    "every-c3": _every_stage,
    "sppf": _pooling_rows,
    "detect": _rows_that_detect_reads,
}


def rows_by_number(graph: Graph, numbers: Sequence[int]) -> list[Row]:
    """The rows with these numbers.

    Raises:
        ConfigError: a number is not that of a row, is given twice, or the row gives predictions.
    """
    count = len(graph.rows)
    if not numbers:
        raise ConfigError("after is empty; give one or more row numbers, such as --after 6 8")
    for number in numbers:
        if type(number) is not int:
            raise ConfigError(f"after: {number!r} is not a row number; write row numbers such as --after 6 8")
        if not 0 <= number < count:
            raise ConfigError(f"after: {graph.name} has rows 0 to {count - 1}, but no row {number}")
        if gives_predictions(graph.rows[number].module):
            raise ConfigError(
                f"after: row {number} of {graph.name} is {graph.rows[number].module}, which gives "
                f"predictions, not features; choose a row above it"
            )
    twice = sorted({number for number in numbers if list(numbers).count(number) > 1})
    if twice:
        raise ConfigError(f"after: row {twice[0]} is given twice; only one block can follow a row")
    return [graph.rows[number] for number in numbers]


def stage_at(graph: Graph, section: str, stride: float) -> Row | None:
    """The last stage of a section at a stride; None if there is none."""
    strides = dict(zip(graph.rows, graph.strides()))
    return next((end for _, end in reversed(_stages(graph, section)) if strides[end] == stride), None)


def _stage_rows(graph: Graph, module: str | None, section: str | None = None) -> list[Row]:
    """The row at the end of each stage; of those that are ``module``, and in this section, if these are given."""
    sections = (section,) if section else ("backbone", "head")
    ends = [end for name in sections for _, end in _stages(graph, name)]
    return [end for end in ends if module in (None, end.module)]


def _check_known(graph: Graph, rows: Sequence[Row], what: str, strides: Mapping[Row, float | None]) -> None:
    unknown = [row for row in rows if strides[row] is None]
    if unknown:
        raise ConfigError(
            f"{graph.name}: {what}, and the stride after row {graph.rows.index(unknown[0])} "
            f"({name_of(unknown[0].module)}) is unknown; choose the rows with --after"
        )


def _stages(graph: Graph, section: str) -> list[tuple[Row, Row]]:
    """The first row and the row at the end of each stage of a section."""
    groups: list[list[Row]] = [[]]
    for row in (row for row in graph.rows if row.section == section):
        if _resizes(row) or (_joins(row) and section == "head"):
            groups.append([])
        groups[-1].append(row)
    ends = ((group[0], _end_of(group, section)) for group in groups if group)
    return [(first, end) for first, end in ends if end is not None]


def _end_of(group: Sequence[Row], section: str) -> Row | None:
    first = group[0]
    inner = [row for row in group if not (_resizes(row) or _joins(row) or gives_predictions(row.module))]
    stages = [row for row in inner if _is_stage(row)]
    if stages:
        return _last(row for row in stages if row.module == stages[0].module)
    if section == "head" and not _joins(first):
        return None
    larger = _last(row for row in inner if row.module in _CONVOLUTIONS and row.args[1:2] not in ([], [1]))
    # in a ResNet, the row that halves the size is the stage
    return larger or (first if _resizes(first) and _is_stage(first) else None)


def _is_stage(row: Row) -> bool:
    name = name_of(row.module)
    if row.attends or name in (*_CONVOLUTIONS, *_NO_STAGES) or "SPP" in name or name.startswith("nn."):
        return False
    return not _is_block(name) and not name.endswith(("Down", "AConv"))


def _is_block(name: str) -> bool:
    # Not at the top: the registry imports torch.
    from yolov5_ema.blocks.registry import block_of

    return bool(block_of(name))


def _resizes(row: Row) -> bool:
    return not row.attends and stride_factor(row.module, row.args) not in (None, 1.0)


def _joins(row: Row) -> bool:
    return row.several and not gives_predictions(row.module)


def _last(rows: Iterable[Row]) -> Row | None:
    return next(reversed(list(rows)), None)
