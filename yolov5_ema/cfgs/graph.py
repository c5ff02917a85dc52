"""A model YAML of YOLOv5, or of the package ultralytics, as a graph of rows.

A row of a cfg names its inputs by number (``6``) or by distance (``-1``, ``-2``), so a row inserted in the
middle shifts every number after it. Here a row refers to other row objects instead. Numbers exist only while a cfg is
read or written, so nothing has to be renumbered by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from yolov5_ema.cfgs.keys import SECTIONS, check_keys, depths, text_of_keys
from yolov5_ema.cfgs.strides import gives_predictions, name_of, stride_factor
from yolov5_ema.cfgs.values import copied, flow, is_int, is_plain_name, kind_of, shown
from yolov5_ema.errors import ConfigError

_READS_A_LIST = frozenset({"Concat", "Detect", "Segment"})
_RESIZES_TO_THE_LAST = "CBFuse"

# A larger model could not be built: YOLOv5 would try for hours, or until the memory is used up.
_MOST_REPEATS = 1000
_MOST_LAYERS = 500


class Source(NamedTuple):
    """One input of a row: another row (None: the image), and whether the cfg gives it as a distance."""

    row: Row | None
    relative: bool


@dataclass(eq=False)
class Row:
    """One row ``[from, number, module, args]``. Rows are compared by identity, as nodes of a graph.

    Attributes:
        section: ``backbone`` or ``head``.
        sources: the inputs.
        several: whether 'from' is a list.
        number: how often the module repeats, before the depth multiple.
        module: the name of the module, or its class.
        args: the arguments.
        attends: whether the row is an attention block that `Graph.insert_behind` inserted.
        inside: the attention block that `Graph.insert_inside` put into the module; empty if none.
    """

    section: str
    sources: list[Source]
    several: bool
    number: int
    module: str
    args: list[Any]
    attends: bool = False
    inside: str = ""


class Graph:
    """The rows of a model in order, and the keys of its YAML that are not rows."""

    def __init__(self, settings: dict[str, Any], rows: list[Row], name: str, of_ultralytics: bool = False) -> None:
        self.settings = settings
        self.rows = rows
        self.name = name
        self.of_ultralytics = of_ultralytics

    @classmethod
    def from_cfg(cls, cfg: Any, name: str = "the model cfg", *, of_ultralytics: bool = False) -> Graph:
        """Read the content of a model YAML.

        Args:
            cfg: the content of the file, as ``yaml.safe_load`` returns it.
            name: the file's name, for messages.
            of_ultralytics: whether it must have the keys of a YAML of the package ultralytics, not those of YOLOv5.

        Raises:
            ConfigError: a key is missing or has a value that the engine cannot use, a row does not have the form
                ``[from, number, module, args]``, or a row reads one that does not come before it. The message names the
                file and the row, and says what to write instead.
        """
        check_keys(cfg, name, of_ultralytics)
        rows: list[Row] = []
        for section in SECTIONS:
            for raw in cfg[section]:
                rows.append(_read_row(raw, section, rows, name))
        _check_repeats(rows, max(depths(cfg, of_ultralytics)), name)
        settings = {key: copied(value) for key, value in cfg.items() if key not in SECTIONS}
        return cls(settings, rows, name, of_ultralytics)

    def insert_behind(self, row: Row, module: str, args: Sequence[Any] = ()) -> Row:
        """Insert a new row directly after ``row``. All rows that read ``row`` now read the new one."""
        new = Row(row.section, [Source(row, True)], False, 1, module, copied(args), attends=True)
        for other in self.rows:
            other.sources = [s._replace(row=new) if s.row is row else s for s in other.sources]
        self.rows.insert(self.rows.index(row) + 1, new)
        return new

    def insert_inside(self, row: Row, block: str, options: Mapping[str, Any]) -> None:
        """Put a block behind each bottleneck inside a row's module: ``C3`` becomes ``C3_EMA``."""
        row.module = f"{row.module}_{block}"
        row.args = [*row.args, *([dict(options)] if options else [])]
        row.inside = block

    def to_cfg(self) -> dict[str, Any]:
        """The model as a dict that the engine's model class accepts; it shares no objects with this graph."""
        froms = self._froms()
        cfg = copied(self.settings)
        for section in SECTIONS:
            cfg[section] = [
                [froms[i], row.number, row.module, copied(row.args)]
                for i, row in enumerate(self.rows)
                if row.section == section
            ]
        return cfg

    def to_text(self, header: Sequence[str] = ()) -> str:
        """The model as YAML text, one line for each row, with the row's number and level in a comment."""
        lines = [f"# {line}".rstrip() for line in header]
        lines += ["", *text_of_keys(self.settings, self._levels_of_head())]
        froms, labels = self._froms(), self._labels()
        for section in SECTIONS:
            lines += ["", f"{section}:", "  # [from, number, module, args]"]
            indices = [i for i, row in enumerate(self.rows) if row.section == section]
            for i in indices:
                row = self.rows[i]
                lead = "  [" if i == indices[0] else "   "
                module = row.module if yaml.safe_load(row.module) == row.module else f"'{row.module}'"
                content = f"{flow(froms[i])}, {row.number}, {module}, {flow(row.args)}"
                lines.append(f"{lead}[{content}],  # {labels[i]}")
            lines.append("  ]")
        return "\n".join(lines) + "\n"

    def strides(self) -> list[float | None]:
        """Stride of each row's output; None if the effect of a module on the size is unknown."""
        known: dict[Row, float | None] = {}
        for row in self.rows:
            inputs = [1.0 if s.row is None else known[s.row] for s in row.sources]
            if name_of(row.module) == _RESIZES_TO_THE_LAST:
                inputs = inputs[-1:]
            agreed = inputs[0] if all(stride == inputs[0] for stride in inputs) else None
            factor = 1.0 if row.attends else stride_factor(row.module, row.args)
            known[row] = None if agreed is None or factor is None else agreed * factor
        return [known[row] for row in self.rows]

    def _froms(self) -> list[int | list[int]]:
        place = {row: i for i, row in enumerate(self.rows)}
        froms: list[int | list[int]] = []
        for i, row in enumerate(self.rows):
            numbers = []
            for source in row.sources:
                at = -1 if source.row is None else place[source.row]
                numbers.append(at - i if source.relative else at)
            froms.append(numbers if row.several else numbers[0])
        return froms

    def _labels(self) -> list[str]:
        place = {row: i for i, row in enumerate(self.rows)}
        strides = self.strides()
        labels = []
        for i, row in enumerate(self.rows):
            label = f"{i}{_level(strides[i], '-')}"
            inputs = [(place[s.row], s.row) for s in row.sources if s.row is not None]
            if row.attends:
                label += f", attention on row {inputs[0][0]} ({inputs[0][1].module})"
            elif gives_predictions(row.module):
                reads = [f"{j}{_level(strides[j], '-')} ({source.module})" for j, source in inputs]
                label += f", reads {', '.join(reads)}"
            elif row.inside:
                label += f", {row.inside} behind each bottleneck"
            elif row.several:
                label += f", joins {' + '.join(f'{j} ({source.module})' for j, source in inputs)}"
            labels.append(label)
        return labels

    def _levels_of_head(self) -> list[str]:
        """The levels that the last row reads, as comments; an empty list if it gives no predictions."""
        strides, last = dict(zip(self.rows, self.strides())), self.rows[-1]
        levels = [_level(strides[s.row], "  # ") for s in last.sources if s.row is not None]
        return levels if gives_predictions(last.module) else []


def _check_repeats(rows: Sequence[Row], depth: float, name: str) -> None:
    """Raise a `ConfigError` for too many layers: a YAML of a few bytes can ask for millions of them."""
    layers = 0.0
    for index, row in enumerate(rows):
        repeats = row.number * float(depth) if row.number > 1 else 1.0
        if repeats > _MOST_REPEATS:
            raise ConfigError(f"{name}: row {index} repeats {row.module} more than {_MOST_REPEATS} times")
        layers += max(repeats, 1.0)
    if layers > _MOST_LAYERS:
        raise ConfigError(f"{name}: it asks for more than {_MOST_LAYERS} layers")


def _read_row(raw: Any, section: str, before: list[Row], name: str) -> Row:
    where = f"{name}, row {len(before)} of the model (in {section}: {shown(raw)})"
    if not isinstance(raw, (list, tuple)) or len(raw) != 4:
        raise ConfigError(f"{where}: a row has four parts, [from, number, module, args]; this is {kind_of(raw)}")
    read, number, module, args = raw
    several = isinstance(read, (list, tuple))
    references = list(read) if several else [read]
    if not references or not all(is_int(r) for r in references):
        raise ConfigError(f"{where}: 'from' must be a row number such as -1 or a list of them such as [-1, 6]")
    sources = [_read_source(reference, before, where) for reference in references]
    if not is_int(number) or not 1 <= number < 2**53:
        raise ConfigError(f"{where}: 'number' is {shown(number)}; it says how often the module repeats: 1 or more")
    if not is_plain_name(module) and not isinstance(module, type):
        raise ConfigError(f"{where}: the module must be a name such as C3 or nn.Upsample; found {shown(module)}")
    if not several and module in _READS_A_LIST:
        raise ConfigError(f"{where}: {module} reads a list of rows; write [{read}], or [{read}, 6] for two")
    if not isinstance(args, (list, tuple)):
        raise ConfigError(f"{where}: args must be a list, [] if there are none; found {kind_of(args)}")
    return Row(section, sources, several, number, module, copied(args))


def _read_source(reference: int, before: list[Row], where: str) -> Source:
    here = len(before)
    target = here + reference if reference < 0 else reference
    if target >= here:
        last = f"the last row it can read is {here - 1}" if here else "the first row reads -1, the image"
        raise ConfigError(f"{where}: 'from' {reference} is not above this row; {last}")
    if target < 0 and (here, reference) != (0, -1):
        raise ConfigError(f"{where}: 'from' {reference} is before the first row; only row 0 reads the image, with -1")
    row = None if target < 0 else before[target]
    if row is not None and gives_predictions(row.module):
        raise ConfigError(f"{where}: 'from' {reference} is {row.module}, which gives predictions, not features")
    return Source(row, reference < 0)


def _level(stride: float | None, lead: str) -> str:
    if stride is None or stride < 1 or not math.log2(stride).is_integer():
        return ""
    return f"{lead}P{int(math.log2(stride))}/{int(stride)}"
