"""The HTML page of a run: its pictures and figures. It is readable on a phone and loads nothing from the network."""

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
<p>Gate: the factor by which a block multiplies its input, measured as the ratio of the root mean squares over the
channels. All gate maps of a picture share one colour scale. Grad-CAM: where the layer's output raises the score. Each
map has its own colour scale. The boxes are the detections.</p>
"""


@dataclass(frozen=True)
class Entry:
    """A picture on the page.

    Attributes:
        image: the path of the image, as the user gave it.
        file: the file name of the PNG in the page's folder.
        size: the PNG's width and height in pixels.
        words: for each model its title and what it found.
        gates: rows of a table: title of the model, block, minimum, mean and maximum of the gate.
    """

    image: str
    file: str
    size: tuple[int, int]
    words: Sequence[tuple[str, str]]
    gates: Sequence[Sequence[str]]

    @classmethod
    def of(cls, image: str, file: str, size: tuple[int, int], columns: Sequence[Column]) -> Entry:
        """An entry made from what `draw` draws. It does not keep the maps, so that their memory is freed."""
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
    """The HTML of a run.

    Args:
        settings: names and values of the run's settings.
        entries: the pictures.
        problems: images that could not be used or only in part, each with the reason.
        summary: rows of a table over all pictures, the first with the headings; empty if there are no labels.
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
    return [f"<p>Images that could not be used, or only in part:</p>\n<ul>{rows}</ul>"]


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
    return _rows([("model", "block", "gate: minimum", "mean", "maximum"), *rows]) if rows else ""


def _rows(rows: Sequence[Sequence[str]]) -> str:
    """An HTML table. Its first row holds the headings, its first two columns hold text, the others numbers."""

    def row(cells: Sequence[str], tag: str) -> str:
        of_number = [' class="n"' * (place > 1) for place in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{of}>{escape(cell)}</{tag}>" for of, cell in zip(of_number, cells)) + "</tr>"

    lines = [row(rows[0], "th"), *(row(cells, "td") for cells in rows[1:])]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"
