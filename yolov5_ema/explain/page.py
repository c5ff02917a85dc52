"""The page of a run: its pictures and figures, readable on a phone, with nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from yolov5_ema.explain.picture import Column

_STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
img { max-width: 100%; height: auto; background: white; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; border-bottom: 1px solid #8886; }
td.n, th.n { text-align: right; }
dt { font-weight: bold; } dd { margin: 0 0 .4rem 0; }
"""

_HOW = """\
<p>Gate: what a block multiplies its input by, the ratio of the root mean squares over channels; all gate maps of a
picture share one scale of colours. Grad-CAM: where the layer's output speaks for the score; each map has its own scale.
Boxes are the detections.</p>
"""


@dataclass(frozen=True)
class Entry:
    """A picture on the page.

    Attributes:
        image: its path as the user named it.
        file: the PNG's name in the page's folder.
        size: the PNG's width and height in pixels.
        words: title of each model, and what it found.
        gates: rows of a table: title, block, least, mean and greatest gate.
    """

    image: str
    file: str
    size: tuple[int, int]
    words: Sequence[tuple[str, str]]
    gates: Sequence[Sequence[str]]

    @classmethod
    def of(cls, image: str, file: str, size: tuple[int, int], columns: Sequence[Column]) -> Entry:
        """What the page says of a picture; the maps themselves are let go."""
        gates = [
            (
                column.title,
                f"{maps.layer.name}: {maps.layer.kind}",
                *(f"{value:.4f}" for value in maps.gate_range),
            )
            for column in columns
            for maps in column.maps.values()
            if maps.gate_range is not None
        ]
        return cls(image, file, size, [(column.title, column.look.words) for column in columns], gates)


def page(
    settings: Mapping[str, str],
    entries: Sequence[Entry],
    problems: Sequence[tuple[str, str]],
    summary: Sequence[Sequence[str]] = (),
) -> str:
    """HTML of a run.

    Args:
        settings: what the run was asked for, by name.
        entries: its pictures.
        problems: images that could not be used in full, and why.
        summary: rows of a table over all pictures, the first its heads; none without labels.
    """
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>yolov5-ema visualize</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>",
        "<h1>What the attention blocks do</h1>",
        "<dl>",
        *(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in settings.items()),
        "</dl>",
        _HOW,
        *_problems(problems),
        *_summary(summary),
        *(_section(entry) for entry in entries),
        "</body>\n</html>",
    ]
    return "\n".join(parts) + "\n"


def _problems(problems: Sequence[tuple[str, str]]) -> list[str]:
    if not problems:
        return []
    rows = "".join(f"<li>{escape(image)}: {escape(problem)}</li>" for image, problem in problems)
    return [f"<p>Not used in full:</p>\n<ul>{rows}</ul>"]


def _summary(rows: Sequence[Sequence[str]]) -> list[str]:
    return ["<h2>Inside and outside the labelled boxes</h2>", _rows(rows)] if rows else []


def _section(entry: Entry) -> str:
    link = quote(entry.file)
    width, height = entry.size
    words = "".join(f"<dt>{escape(title)}</dt><dd>{escape(found)}</dd>" for title, found in entry.words)
    size = f'width="{width}" height="{height}"'
    picture = f'<img src="{link}" {size} alt="{escape(f"Maps of {entry.image}")}" loading="lazy">'
    head = f"<h2>{escape(entry.image)}</h2>\n<dl>{words}</dl>"
    return f'{head}\n<p><a href="{link}">{picture}</a></p>\n{_gates(entry.gates)}'


def _gates(rows: Sequence[Sequence[str]]) -> str:
    return _rows([("model", "block", "gate: least", "mean", "greatest"), *rows]) if rows else ""


def _rows(rows: Sequence[Sequence[str]]) -> str:
    """A table; its first row are the heads, its first two columns words, the others numbers."""

    def row(cells: Sequence[str], tag: str) -> str:
        of_number = [' class="n"' * (place > 1) for place in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{of}>{escape(cell)}</{tag}>" for of, cell in zip(of_number, cells)) + "</tr>"

    lines = [row(rows[0], "th"), *(row(cells, "td") for cells in rows[1:])]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"
