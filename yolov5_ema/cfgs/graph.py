"""A YOLOv5 model YAML as a graph of rows.

A row of a YOLOv5 cfg names its inputs by number (``6``) or by distance (``-1``, ``-2``), so a row inserted in the
middle shifts every number after it. Here a row refers to other row objects instead. Numbers exist only while a cfg is
read or written, so nothing has to be renumbered by hand.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from yolov5_ema.errors import ConfigError
from yolov5_ema.texts import nearest

REQUIRED_KEYS = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head")
SECTIONS = ("backbone", "head")

# Modules whose output is a list of predictions, not a feature map.
OUTPUT_MODULES = frozenset({"Detect", "Segment", "Classify"})

_READS_A_LIST = frozenset({"Concat", "Detect", "Segment"})

# How a module changes the stride: the position of the stride in a row's args, and its default.
_STRIDE_ARG: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(("Conv", "CrossConv", "DWConv", "Focus", "GhostBottleneck", "GhostConv", "MixConv2d"), (2, 1)),
    **dict.fromkeys(("Contract", "Expand"), (0, 2)),
    "nn.Upsample": (1, None),
}
_ENLARGES = frozenset({"Expand", "nn.Upsample"})
_SAME_SIZE = re.compile(
    r"C3|C2f|SPP|Bottleneck|Concat$"
    r"|nn\.(Identity|BatchNorm2d|ZeroPad2d|Dropout2d?|SiLU|ReLU|LeakyReLU)$"
)

# A larger model could not be built: YOLOv5 would try for hours, or until the memory is used up.
_MOST_REPEATS = 1000
_MOST_LAYERS = 500
_MOST_CHANNELS = 1000
_MOST_ANCHORS = 100
_LONGEST_NAME = 200

_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
# Strings in args that YOLOv5 evaluates to a value: written without quotes, as in its own YAMLs.
_EVALUATED = frozenset({"None", "nc", "anchors"})


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
    """

    section: str
    sources: list[Source]
    several: bool
    number: int
    module: str
    args: list[Any]
    attends: bool = False


class Graph:
    """The rows of a model in order, and the keys of its YAML that are not rows."""

    def __init__(self, settings: dict[str, Any], rows: list[Row], name: str) -> None:
        self.settings = settings
        self.rows = rows
        self.name = name

    @classmethod
    def from_cfg(cls, cfg: Any, name: str = "the model cfg") -> Graph:
        """Read the content of a model YAML.

        Args:
            cfg: the content of the file, as ``yaml.safe_load`` returns it.
            name: the file's name, for messages.

        Raises:
            ConfigError: a key is missing or has a value that YOLOv5 cannot use, a row does not have the form
                ``[from, number, module, args]``, or a row reads one that does not come before it. The message names the
                file and the row, and says what to write instead.
        """
        _check_settings(cfg, name)
        rows: list[Row] = []
        for section in SECTIONS:
            for raw in cfg[section]:
                rows.append(_read_row(raw, section, rows, name))
        _check_repeats(rows, cfg["depth_multiple"], name)
        settings = {key: _copy(value) for key, value in cfg.items() if key not in SECTIONS}
        return cls(settings, rows, name)

    def insert_behind(self, row: Row, module: str, args: Sequence[Any] = ()) -> Row:
        """Insert a new row directly after ``row``. All rows that read ``row`` now read the new one."""
        new = Row(row.section, [Source(row, True)], False, 1, module, _copy(args), attends=True)
        for other in self.rows:
            other.sources = [s._replace(row=new) if s.row is row else s for s in other.sources]
        self.rows.insert(self.rows.index(row) + 1, new)
        return new

    def to_cfg(self) -> dict[str, Any]:
        """The model as a dict that YOLOv5's ``Model`` accepts; it shares no objects with this graph."""
        froms = self._froms()
        cfg = _copy(self.settings)
        for section in SECTIONS:
            cfg[section] = [
                [froms[i], row.number, row.module, _copy(row.args)]
                for i, row in enumerate(self.rows)
                if row.section == section
            ]
        return cfg

    def to_text(self, header: Sequence[str] = ()) -> str:
        """The model as YAML text, one line for each row, with the row's number and level in a comment."""
        lines = [f"# {line}".rstrip() for line in header]
        lines += ["", *self._settings_text()]
        froms, labels = self._froms(), self._labels()
        for section in SECTIONS:
            lines += ["", f"{section}:", "  # [from, number, module, args]"]
            indices = [i for i, row in enumerate(self.rows) if row.section == section]
            for i in indices:
                row = self.rows[i]
                lead = "  [" if i == indices[0] else "   "
                module = row.module if yaml.safe_load(row.module) == row.module else f"'{row.module}'"
                content = f"{_flow(froms[i])}, {row.number}, {module}, {_flow(row.args)}"
                lines.append(f"{lead}[{content}],  # {labels[i]}")
            lines.append("  ]")
        return "\n".join(lines) + "\n"

    def strides(self) -> list[float | None]:
        """Stride of each row's output; None if the effect of a module on the size is unknown."""
        known: dict[Row, float | None] = {}
        for row in self.rows:
            inputs = [1.0 if s.row is None else known[s.row] for s in row.sources]
            agreed = inputs[0] if all(stride == inputs[0] for stride in inputs) else None
            factor = _stride_factor(row)
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
            elif row.module in OUTPUT_MODULES:
                reads = [f"{j}{_level(strides[j], '-')} ({source.module})" for j, source in inputs]
                label += f", reads {', '.join(reads)}"
            elif row.several:
                label += f", joins {' + '.join(f'{j} ({source.module})' for j, source in inputs)}"
            labels.append(label)
        return labels

    def _settings_text(self) -> list[str]:
        remarks = {
            "nc": "number of classes",
            "depth_multiple": "factor for the repeats of C3 and similar modules",
            "width_multiple": "factor for the numbers of channels",
        }
        lines = []
        first = [key for key in REQUIRED_KEYS if key in self.settings and key != "anchors"]
        for key in first + [key for key in self.settings if key not in REQUIRED_KEYS]:
            remark = f"  # {remarks[key]}" if key in remarks else ""
            lines.append(f"{_key(key)}: {_flow(self.settings[key])}{remark}")
        anchors = self.settings["anchors"]
        if not isinstance(anchors, list):
            return [*lines, f"anchors: {anchors}  # for each level; AutoAnchor fits them to the data set"]
        levels = self._anchor_levels(len(anchors))
        lines.append("anchors:")
        for values, level in zip(anchors, levels):
            pairs = [f"{_flow(w)},{_flow(h)}" for w, h in zip(values[::2], values[1::2])]
            lines.append(f"  - [{', '.join(pairs)}]{level}")
        return lines

    def _anchor_levels(self, count: int) -> list[str]:
        strides = dict(zip(self.rows, self.strides()))
        last = self.rows[-1]
        levels = [_level(strides[s.row], "  # ") for s in last.sources if s.row is not None]
        return levels if last.module in OUTPUT_MODULES and len(levels) == count else [""] * count


def is_plain_name(text: Any) -> bool:
    """Whether ``text`` is a module name such as ``C3`` or ``nn.Upsample``, not other code."""
    return isinstance(text, str) and len(text) <= _LONGEST_NAME and _PLAIN_NAME.fullmatch(text) is not None


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(item) for item in value]
    return value


def is_int(value: Any) -> bool:
    """Whether a value of a YAML is a whole number; ``true`` is not one."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_settings(cfg: Any, name: str) -> None:
    if not isinstance(cfg, Mapping):
        raise ConfigError(f"{name}: holds {_kind(cfg)} instead of the keys of a model YAML: {', '.join(REQUIRED_KEYS)}")
    for key in REQUIRED_KEYS:
        if key in cfg:
            continue
        unknown = [str(k) for k in cfg if k not in REQUIRED_KEYS]
        near = nearest(key, unknown)
        hint = f"; it has '{near[0]}', is that the one?" if near else ""
        raise ConfigError(f"{name}: the key '{key}' is missing{hint} (a data YAML is not a model YAML)")
    if not is_int(cfg["nc"]) or cfg["nc"] < 1:
        raise ConfigError(f"{name}: nc is {_shown(cfg['nc'])}; it must be a whole number of classes, 1 or more")
    for key in ("depth_multiple", "width_multiple"):
        if not _is_number(cfg[key]) or cfg[key] <= 0:
            raise ConfigError(f"{name}: {key} is {_shown(cfg[key])}; it must be a number above 0, such as 0.5")
    if not _anchors_are_fine(cfg["anchors"]):
        raise ConfigError(
            f"{name}: anchors must be a count such as 3, or one list of width, height pairs for each level, "
            f"such as [10,13, 16,30, 33,23]; found {_shown(cfg['anchors'])}"
        )
    channels = cfg.get("ch", 3)
    if not is_int(channels) or not 1 <= channels <= _MOST_CHANNELS:
        raise ConfigError(f"{name}: ch is {_shown(channels)}; it must be the number of the image's channels, such as 3")
    for section in SECTIONS:
        if not isinstance(cfg[section], (list, tuple)) or not cfg[section]:
            raise ConfigError(
                f"{name}: {section} must be a list of rows [from, number, module, args]; found {_kind(cfg[section])}"
            )


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


def _anchors_are_fine(anchors: Any) -> bool:
    if is_int(anchors):
        return 1 <= anchors <= _MOST_ANCHORS
    return (
        isinstance(anchors, (list, tuple))
        and len(anchors) > 0
        and all(isinstance(level, (list, tuple)) and len(level) >= 2 for level in anchors)
        and all(len(level) % 2 == 0 and all(_is_number(v) for v in level) for level in anchors)
    )


def _read_row(raw: Any, section: str, before: list[Row], name: str) -> Row:
    where = f"{name}, row {len(before)} of the model (in {section}: {_shown(raw)})"
    if not isinstance(raw, (list, tuple)) or len(raw) != 4:
        raise ConfigError(f"{where}: a row has four parts, [from, number, module, args]; this is {_kind(raw)}")
    read, number, module, args = raw
    several = isinstance(read, (list, tuple))
    references = list(read) if several else [read]
    if not references or not all(is_int(r) for r in references):
        raise ConfigError(f"{where}: 'from' must be a row number such as -1 or a list of them such as [-1, 6]")
    sources = [_read_source(reference, before, where) for reference in references]
    if not is_int(number) or not 1 <= number < 2**53:
        raise ConfigError(f"{where}: 'number' is {_shown(number)}; it says how often the module repeats: 1 or more")
    if not is_plain_name(module) and not isinstance(module, type):
        raise ConfigError(f"{where}: the module must be a name such as C3 or nn.Upsample; found {_shown(module)}")
    if not several and module in _READS_A_LIST:
        raise ConfigError(f"{where}: {module} reads a list of rows; write [{read}], or [{read}, 6] for two")
    if not isinstance(args, (list, tuple)):
        raise ConfigError(f"{where}: args must be a list, [] if there are none; found {_kind(args)}")
    return Row(section, sources, several, number, module, _copy(args))


def _read_source(reference: int, before: list[Row], where: str) -> Source:
    here = len(before)
    target = here + reference if reference < 0 else reference
    if target >= here:
        last = f"the last row it can read is {here - 1}" if here else "the first row reads -1, the image"
        raise ConfigError(f"{where}: 'from' {reference} is not above this row; {last}")
    if target < 0 and (here, reference) != (0, -1):
        raise ConfigError(f"{where}: 'from' {reference} is before the first row; only row 0 reads the image, with -1")
    row = None if target < 0 else before[target]
    if row is not None and row.module in OUTPUT_MODULES:
        raise ConfigError(f"{where}: 'from' {reference} is {row.module}, which gives predictions, not features")
    return Source(row, reference < 0)


def _shown(value: Any, most: int = 300) -> str:
    """A value from the file, shortened for a message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return f"{type(value).__name__} {reprlib.repr(value)}"


def _stride_factor(row: Row) -> float | None:
    """The factor by which ``row`` multiplies the stride, or None if it does not follow from the row."""
    # a dict made in Python may have classes instead of names
    module = row.module if isinstance(row.module, str) else row.module.__name__
    if row.attends or _SAME_SIZE.match(module):
        return 1.0
    # its stride is its kernel size by default
    if module == "nn.MaxPool2d":
        return _positive((row.args[1:2] or row.args[:1] or [None])[0])
    if module not in _STRIDE_ARG:
        return 1.0 if _is_registered(module) else None
    position, default = _STRIDE_ARG[module]
    factor = _positive(row.args[position] if len(row.args) > position else default)
    if factor is None:
        return None
    if module == "Focus":
        return 2.0 * factor
    return 1.0 / factor if module in _ENLARGES else factor


def _is_registered(module: str) -> bool:
    # Not at the top: the registry imports torch, and only the user's own YAMLs need it.
    from yolov5_ema.blocks.registry import block_of

    return bool(block_of(module))


def _positive(value: Any) -> float | None:
    return float(value) if _is_number(value) and value > 0 else None


def _level(stride: float | None, lead: str) -> str:
    if stride is None or stride < 1 or not math.log2(stride).is_integer():
        return ""
    return f"{lead}P{int(math.log2(stride))}/{int(stride)}"


def _flow(value: Any) -> str:
    """YAML for a value on one line, in the manner of YOLOv5's own files."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "True", False: "False"}[value]
    if isinstance(value, str):
        return _flow_text(value)
    return yaml.safe_dump(value).split("\n")[0]


def _key(key: Any) -> str:
    bare = is_plain_name(key) and yaml.safe_load(key) == key
    return key if bare else _flow(key)


def _flow_text(text: str) -> str:
    if text in _EVALUATED or (is_plain_name(text) and text.startswith("nn.")):
        return text
    return "'" + text.replace("'", "''") + "'" if text.isprintable() else json.dumps(text)
