"""Generates model YAMLs for YOLOv5 and ultralytics: any size, with any attention block at any place of the network.

A :class:`Recipe` says what to build. :func:`build_cfg` returns the dict that the engine's model class accepts, and
:func:`format_cfg` the text of the YAML file. The files in ``models/`` are made from the recipes in :data:`SHIPPED`, and
those in ``models/ultralytics/`` from :data:`SHIPPED_FOR_ULTRALYTICS`.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolov5_ema.cfgs.block_channels import check_fit
from yolov5_ema.cfgs.extra_level import add_stride_4
from yolov5_ema.cfgs.graph import Graph, Row
from yolov5_ema.cfgs.places import PLACES, rows_at, rows_by_number
from yolov5_ema.cfgs.values import is_number, is_plain_name
from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.errors import ConfigError
from yolov5_ema.resources import find_shipped
from yolov5_ema.texts import did_you_mean, nearest
from yolov5_ema.upstream.ultralytics import at_hand, find_cfg, is_cfg_of_ultralytics, size_in, sizes_beside

# depth_multiple, width_multiple of YOLOv5's five sizes.
SIZES = {"n": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}
# modules that a block can be put into
HOSTS = ("C3", "C2f", "C3k2")
NO_BLOCK = "none"

_P3_BACKBONE = [
    [-1, 1, "Conv", [64, 6, 2, 2]],
    [-1, 1, "Conv", [128, 3, 2]],
    [-1, 3, "C3", [128]],
    [-1, 1, "Conv", [256, 3, 2]],
    [-1, 6, "C3", [256]],
    [-1, 1, "Conv", [512, 3, 2]],
    [-1, 9, "C3", [512]],
    [-1, 1, "Conv", [1024, 3, 2]],
    [-1, 3, "C3", [1024]],
    [-1, 1, "SPPF", [1024, 5]],
]
_P2_BACKBONE = [
    [-1, 1, "Focus", [64, 3]],
    [-1, 1, "Conv", [128, 3, 2]],
    [-1, 3, "C3", [128]],
    [-1, 1, "Conv", [256, 3, 2]],
    [-1, 9, "C3", [256]],
    [-1, 1, "Conv", [512, 3, 2]],
    [-1, 9, "C3", [512]],
    [-1, 1, "Conv", [1024, 3, 2]],
    [-1, 1, "SPP", [1024, [5, 9, 13]]],
    [-1, 3, "C3", [1024, False]],
]


def _up(channels: int, lateral: int, out: int) -> list[list[Any]]:
    """Top-down step of the neck: reduce the channels, double the size, join the row of that size in the backbone."""
    return [
        [-1, 1, "Conv", [channels, 1, 1]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, lateral], 1, "Concat", [1]],
        [-1, 3, "C3", [out, False]],
    ]


def _down(channels: int, lateral: int, out: int) -> list[list[Any]]:
    """Bottom-up step of the neck: halve the size, join a row of the top-down path."""
    return [
        [-1, 1, "Conv", [channels, 3, 2]],
        [[-1, lateral], 1, "Concat", [1]],
        [-1, 3, "C3", [out, False]],
    ]


def _p3_head() -> list[list[Any]]:
    rows = _up(512, 6, 512) + _up(256, 4, 256) + _down(256, 14, 512) + _down(512, 10, 1024)
    return [*rows, [[17, 20, 23], 1, "Detect", ["nc", "anchors"]]]


def _p2_head(stride_8: int, stride_16: int) -> list[list[Any]]:
    rows = _up(512, 6, 512) + _up(256, 4, 256) + _up(256, 2, 256)
    rows += _down(256, stride_8, 256) + _down(256, stride_16, 512) + _down(512, 10, 1024)
    return [*rows, [[21, 24, 27, 30], 1, "Detect", ["nc", "anchors"]]]


_P3_ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
# Anchors of stride 4 are half of those of stride 8. A count (`anchors: 3`) is not used here: it gives anchors of
# width 0 until AutoAnchor replaces them, and with --noautoanchor the model would be trained with them.
_P2_ANCHORS = [[5, 7, 8, 15, 17, 12], *_P3_ANCHORS]

_TPH_PUBLISHED = "p2-tph-published"

# name: backbone rows, head rows, anchors
HEADS: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    "p3": (_P3_BACKBONE, _p3_head(), _P3_ANCHORS),
    "p2": (_P2_BACKBONE, _p2_head(stride_8=17, stride_16=13), _P2_ANCHORS),
    "p2-published": (_P2_BACKBONE, _p2_head(stride_8=18, stride_16=14), _P2_ANCHORS),
    _TPH_PUBLISHED: (
        _P2_BACKBONE,
        _p2_head(stride_8=17, stride_16=13),
        [[5, 6, 8, 14, 15, 11], *_P3_ANCHORS],
    ),
}

_P2_ANCHORS_NOTE = (
    "Anchors: those for COCO at strides 8, 16 and 32; at stride 4, half of those at stride 8. AutoAnchor",
    "replaces them if they fit a data set badly, unless --noautoanchor is given.",
)
_HEAD_NOTES: dict[str, tuple[str, ...]] = {
    "p3": (),
    "p2": (
        "The head has a fourth level at stride 4 for tiny objects. The bottom-up Concats at strides 8 and 16",
        "read the outputs of the top-down C3 or, if a block follows a C3, the output of the block.",
        "yolov5x-p2-published.yaml differs here; it says how this changes the paper's parameter counts.",
        *_P2_ANCHORS_NOTE,
    ),
    "p2-published": (
        "The head has a fourth level at stride 4. This is the model whose parameters the paper counted as its",
        "VisDrone baseline: the bottom-up Concats at strides 8 and 16 do not read the outputs of the top-down",
        "C3, but the 1x1 convolutions that follow them (rows 18 and 14 in the model without blocks; at",
        "stride 16 these have half the channels). At size x with nc 10 this model has 90,963,540 parameters",
        "(the paper's 90.96 M). With the C3 outputs (yolov5x-p2.yaml) it has 91,168,340. The paper's EMA",
        "model has 91,179,620 (91.18 M), and its Concats read the C3 outputs. So of the +0.22 M between the",
        "two printed figures (216,080 parameters), 204,800 come from the wider Concat and 11,280 from EMA.",
        "Compare models with blocks to yolov5x-p2.yaml.",
        *_P2_ANCHORS_NOTE,
    ),
    _TPH_PUBLISHED: (
        "The rows are connected as in the file behind the paper's VisDrone results: Detect reads the outputs",
        "of the C3, before the blocks, and so does the bottom-up Concat at stride 8. So the blocks of the last",
        "levels change the boxes only through the next coarser level. In the file without -published, Detect",
        "and the Concats read the outputs of the blocks. Both have the same parameters and GFLOPs, so these",
        "numbers do not show which of the two was trained. Anchors: those of the paper's file at stride 4,",
        "those for COCO at strides 8, 16 and 32. AutoAnchor replaces them if they fit a data set badly.",
    ),
}
_TPH_CONTROL_NOTE = (
    "The model that the paper's VisDrone models are without their blocks: that of yolov5x-p2.yaml, with the",
    "anchors of the paper's file at stride 4. AutoAnchor replaces the anchors if they fit a data set badly.",
)


@dataclass(frozen=True)
class Recipe:
    """The settings of a generated cfg.

    Args:
        size: ``n``, ``s``, ``m``, ``l`` or ``x``. The default is ``s``, or that of the ``base`` if there is one. A
            YAML of ultralytics holds several sizes, and the letter in its file's name chooses.
        block: name of the attention block, or ``none`` for the plain model.
        at: ``backbone``, after the last two stages of the backbone (the default); ``neck``, after every stage of the
            neck except those at the model's coarsest stride; ``every-c3``, after every stage; ``sppf``, after the
            pyramid of poolings; ``detect``, before each input of the detection head. Stages are C3, or what other
            models have instead. Also a stride in pixels, for all stages at this stride; or a list of several of these:
            ``["neck", 8]`` is all stages of the neck at stride 8.
        head: ``p3`` (YOLOv5 v6.0's own), ``p2`` (a fourth level at stride 4 for tiny objects),
            ``p2-published`` (the same, with the Concats of the paper's VisDrone baseline) or ``p2-tph-published``
            (the same, with Detect and a Concat before the blocks, as in the paper's VisDrone models). ``p3`` by
            default.
        after: instead of ``at``, the numbers of the rows to put a block after, counted in the model without blocks.
        base: instead of ``head``, another model YAML: its path, the name of a shipped one or of one of ultralytics, or
            its content as a dict. To one of ultralytics, ``head`` ``p2`` adds a level at stride 4.
        options: options of the block, such as ``{"groups": 16}``.
        nc: number of classes; by default 80, or that of the base.
        inside: ``C3``, ``C2f`` or ``C3k2``: put the block behind each bottleneck inside the stages that are this
            module, not after them.

    Raises:
        ConfigError: a value is unknown, or two of them cannot be used together.
    """

    size: str | None = None
    block: str = "EMA"
    at: str | int | Sequence[str | int] | None = None
    head: str | None = None
    after: Sequence[int] | None = None
    base: str | os.PathLike[str] | Mapping[str, Any] | None = None
    options: Mapping[str, Any] | None = None
    nc: int | None = None
    inside: str | None = None

    def __post_init__(self) -> None:
        _check_choice("size", self.size, SIZES)
        for place in self.places():
            if not is_number(place) or place < 1:
                _check_choice("place (at)", place, (*PLACES, "strides such as 8 (several, with spaces between them)"))
        _check_choice("head", self.head, HEADS)
        _check_choice("module (inside)", self.inside, HOSTS)
        if not is_plain_name(self.block):
            raise ConfigError(f"block {self.block!r} is not a name; write one such as EMA, or {NO_BLOCK}")
        if self.nc is not None and (type(self.nc) is not int or self.nc < 1):
            raise ConfigError(f"nc is {self.nc!r}; it must be a whole number of classes, 1 or more")
        if self.at is not None and not self.places():
            raise ConfigError("at is empty; give one or more places, such as --at backbone")
        if self.at is not None and self.after is not None:
            raise ConfigError("at and after exclude each other: both say where the block goes")
        if self.block == NO_BLOCK and (self.at is not None or self.after is not None or self.options or self.inside):
            raise ConfigError("block none has no place and no options: leave out at, after, inside and options")
        for key, value in (self.options or {}).items():
            _check_option(key, value)

    def places(self) -> tuple[Any, ...]:
        """The names of places and the strides in ``at``."""
        if self.at is None:
            return ()
        return (self.at,) if isinstance(self.at, (str, int, float)) else tuple(self.at)

    def graph(self) -> Graph:
        """The model with its blocks inserted.

        Raises:
            ConfigError: the base is invalid, or does not have the rows.
        """
        graph = self._plain_graph()
        if self.block == NO_BLOCK:
            return graph
        args = [dict(self.options)] if self.options else []
        for row in self._targets(graph):
            if self.inside:
                graph.insert_inside(row, self.block, self.options or {})
            else:
                graph.insert_behind(row, self.block, args)
        if self.head == _TPH_PUBLISHED:
            _read_before_blocks(graph)
        return graph

    def check_fit(self) -> list[str]:
        """Build the block for the channels of every place that it has, in the size asked for, or in each.

        Returns:
            The letters of the sizes in which it cannot be built, of several in a YAML of ultralytics.

        Raises:
            ConfigError: it cannot be built in the size asked for, or in any.
        """
        graph = self.graph()
        return check_fit(graph, self.block, self.options or {}, self.letter(graph))

    def letter(self, graph: Graph) -> str:
        """The letter of the size that was asked for, of those in a YAML of ultralytics; empty if none was.

        Raises:
            ConfigError: the YAML does not have this size.
        """
        named = size_in(os.fspath(self.base)) if isinstance(self.base, (str, os.PathLike)) else ""
        sizes = graph.settings.get("scales", {}) if graph.of_ultralytics else {}
        letter = self.size or (named if named in sizes else "")
        if not graph.of_ultralytics or not letter:
            return ""
        if letter not in sizes:
            has = f"only the sizes {', '.join(sizes)}, not {letter}" if sizes else "no sizes; leave --size out"
            raise ConfigError(f"{graph.name} has {has}")
        if named and named != letter:
            raise ConfigError(f"{graph.name} is of size {named}, and --size asks for {letter}; name one of them")
        return letter

    def text(self) -> str:
        """The model as YAML text in the layout of YOLOv5's YAMLs, with the command that writes it on the first line.

        Raises:
            ConfigError: the base is invalid, or does not have the rows.
        """
        graph = self.graph()
        header = [self.command() or "made from a cfg in memory by yolov5_ema.cfgs.generator"]
        header += _sizes_note(self, graph) + _describe(self, graph)
        if self.base is None:
            is_control = self.head == _TPH_PUBLISHED and self.block == NO_BLOCK
            header += _TPH_CONTROL_NOTE if is_control else _HEAD_NOTES[self.head or "p3"]
        return graph.to_text(header)

    def command(self) -> str | None:
        """The command line that writes this cfg; None if the base is a dict, which no command line can pass."""
        if isinstance(self.base, Mapping):
            return None
        words = ["yolov5-ema", "cfg"]
        if self.base is not None:
            words += ["--base", os.fspath(self.base)]
        if self.base is None or self.size is not None:
            words += ["--size", self.size or "s"]
        if self.head not in (None, "p3"):
            words += ["--head", str(self.head)]
        words += ["--block", self.block]
        if self.inside is not None:
            words += ["--inside", self.inside]
        if self.after is not None:
            words += ["--after", *map(str, self.after)]
        elif self.block != NO_BLOCK:
            words += ["--at", *map(str, self.places() or PLACES[:1])]
        for key, value in (self.options or {}).items():
            words += ["--option", f"{key}={format_option(value)}"]
        if self.nc is not None:
            words += ["--nc", str(self.nc)]
        return shlex.join(words)

    def _plain_graph(self) -> Graph:
        if self.base is None:
            backbone, head, anchors = HEADS[self.head or "p3"]
            cfg: Any = {"nc": 80, "anchors": anchors, "backbone": backbone, "head": head}
            cfg["depth_multiple"], cfg["width_multiple"] = SIZES[self.size or "s"]
            name = f"the {self.head or 'p3'} model"
        elif isinstance(self.base, Mapping):
            cfg, name = dict(self.base), "the base"
        else:
            cfg, name = load_base(self.base), os.fspath(self.base)
        of_ultralytics = is_cfg_of_ultralytics(cfg)
        if self.base is not None and self.head is not None:
            _check_extension(self.head, of_ultralytics)
        graph = Graph.from_cfg(cfg, name, of_ultralytics=of_ultralytics)
        if of_ultralytics and self.head is not None:
            add_stride_4(graph)
        if not self.letter(graph) and self.size is not None:
            graph.settings["depth_multiple"], graph.settings["width_multiple"] = SIZES[self.size]
        if self.nc is not None:
            graph.settings["nc"] = self.nc
        return graph

    def _targets(self, graph: Graph) -> list[Row]:
        if self.inside is not None:
            _check_host(graph, self.inside)
        if self.after is None:
            return rows_at(graph, self.places() or PLACES[:1], self.inside)
        rows = rows_by_number(graph, self.after)
        for number, row in zip(self.after, rows):
            if self.inside not in (None, row.module):
                raise ConfigError(f"after: row {number} of {graph.name} is {row.module}, not {self.inside}")
        return rows


def build_cfg(**recipe: Any) -> dict[str, Any]:
    """The model as a dict that the engine's model class accepts; the keywords are those of `Recipe`.

    Raises:
        ConfigError: the recipe or its base is invalid.

    Example:
        >>> build_cfg(size="s", block="EMA")["backbone"][7]
        [-1, 1, 'EMA', []]
    """
    found = Recipe(**recipe)
    graph = found.graph()
    letter = found.letter(graph)
    return {**graph.to_cfg(), **({"scale": letter} if letter else {})}


def format_cfg(**recipe: Any) -> str:
    """The model as YAML text in the layout of YOLOv5's YAMLs; the keywords are those of `Recipe`.

    Raises:
        ConfigError: the recipe or its base is invalid.
    """
    return Recipe(**recipe).text()


def load_base(path: str | os.PathLike[str]) -> Any:
    """Content of a model YAML, given by its path, or by its bare name if it ships with this package or ultralytics.

    Raises:
        ConfigError: the file is missing, cannot be read, or is not YAML.
    """
    name = os.fspath(path)
    file = Path(path)
    if not file.exists():
        file = find_shipped(name) or find_cfg(name, at_hand()) or file
    if not file.exists():
        letters = sizes_beside(name, at_hand())
        if letters:
            raise ConfigError(f"{name}: there is no such size; the letter of the size is one of {', '.join(letters)}")
        shipped = [*SHIPPED, *SHIPPED_FOR_ULTRALYTICS]
        hint = did_you_mean([f"the shipped {near}" for near in nearest(name, shipped)], otherwise="")
        needed = "" if at_hand() else " (the package ultralytics, which has more of them, is not installed)"
        raise ConfigError(f"{name}: there is no such file{hint}{needed}")
    return read_yaml(file, name=name)


def parse_option(text: str) -> tuple[str, Any]:
    """``groups=16`` as ``("groups", 16)``; a value in quotes stays text.

    Raises:
        ConfigError: ``text`` does not have the form ``NAME=VALUE``.
    """
    key, equals, value = text.partition("=")
    if not equals or not value:
        raise ConfigError(f"option {text!r}: write NAME=VALUE, such as groups=16")
    parsed = _parse_value(value)
    _check_option(key, parsed)
    return key, parsed


def format_option(value: Any) -> str:
    """A value as text that :func:`parse_option` reads."""
    text = str(value) if not isinstance(value, bool) and value is not None else str(value).lower()
    return f"'{text}'" if isinstance(value, str) and _parse_value(text) != text else text


def _parse_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _check_option(key: Any, value: Any) -> None:
    if not is_plain_name(key) or "." in key:
        raise ConfigError(f"option {key!r} is not an option name; write NAME=VALUE, such as groups=16")
    plain = value is None or isinstance(value, (bool, int, float, str))
    if not plain or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"option {key} is {value!r}; it must be a number, true, false, none or text")


def _check_choice(what: str, value: Any, choices: Iterable[str]) -> None:
    if value is not None and value not in choices:
        raise ConfigError(f"{what} {value!r} is unknown; choose from {', '.join(choices)}")


def _read_before_blocks(graph: Graph) -> None:
    """Make Detect, and the Concat of its second level, read the rows before the blocks."""
    strides = dict(zip(graph.rows, graph.strides()))
    for row in graph.rows:
        if row.module == "Detect" or (row.module == "Concat" and strides[row] == 8):
            row.sources = [
                source.row.sources[0]._replace(relative=False)
                if source.row is not None and source.row.attends and not source.relative
                else source
                for source in row.sources
            ]


def _check_extension(head: str, of_ultralytics: bool) -> None:
    if not of_ultralytics:
        raise ConfigError("base and head exclude each other: a base has its own head")
    if head != "p2":
        raise ConfigError(f"head {head} is one of YOLOv5's; a base of ultralytics can only be extended by p2")


def _check_host(graph: Graph, module: str) -> None:
    found = sorted({row.module for row in graph.rows} & set(HOSTS))
    if module not in found:
        has = f"; it has {', '.join(found)}" if found else f", and no {' or '.join(HOSTS)} at all"
        raise ConfigError(f"--inside {module}: {graph.name} has no {module}{has}")


def _sizes_note(recipe: Recipe, graph: Graph) -> list[str]:
    if not graph.of_ultralytics:
        return []
    sizes, letter = graph.settings.get("scales"), recipe.letter(graph)
    if not sizes:
        return ["For the package ultralytics, in one size."]
    asked = f" {letter} was asked for." if letter else ""
    return [
        f"For the package ultralytics, in the sizes {', '.join(sizes)}: the letter in the file's name chooses.{asked}"
    ]


def _describe(recipe: Recipe, graph: Graph) -> list[str]:
    if recipe.block == NO_BLOCK:
        return []
    if recipe.inside:
        rows = ", ".join(str(i) for i, row in enumerate(graph.rows) if row.inside)
        return [f"{recipe.block} behind each bottleneck of {recipe.inside} in rows {rows}."]
    rows = ", ".join(str(i) for i, row in enumerate(graph.rows) if row.attends)
    if recipe.head == _TPH_PUBLISHED:
        return [f"{recipe.block} in rows {rows}."]
    return [f"{recipe.block} in rows {rows}. Rows that would read the row before a block read the block instead."]


def _shipped() -> dict[str, Recipe]:
    files = {f"yolov5s-{b.lower()}.yaml": Recipe("s", b) for b in ("EMA", "CA", "CBAM", "SA", "ECA", "NAM", "SE")}
    files.update({f"yolov5{size}-ema.yaml": Recipe(size, "EMA") for size in "nmlx"})
    # VisDrone-DET has ten classes.
    files["yolov5x-p2.yaml"] = Recipe("x", NO_BLOCK, head="p2", nc=10)
    files["yolov5x-p2-published.yaml"] = Recipe("x", NO_BLOCK, head="p2-published", nc=10)
    for block in ("EMA", "CA", "CBAM"):
        files[f"yolov5x-{block.lower()}-tph.yaml"] = Recipe("x", block, "neck", "p2", nc=10)
        published = Recipe("x", block, "neck", _TPH_PUBLISHED, nc=10)
        files[f"yolov5x-{block.lower()}-tph-published.yaml"] = published
    return files


# The files in models/ and in models/ultralytics/: what `yolov5-ema cfg --shipped DIR` writes.
SHIPPED = _shipped()
SHIPPED_FOR_ULTRALYTICS = {
    **{f"{family}-ema.yaml": Recipe(base=f"{family}.yaml") for family in ("yolov8", "yolo11", "yolo12", "yolo26")},
    "yolo26-p2-ema.yaml": Recipe(base="yolo26.yaml", head="p2"),
}
