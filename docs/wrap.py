"""Wraps the Markdown pages at 120 characters.

``python docs/wrap.py`` fills the paragraphs and list items of every page. Headings, tables, fenced and indented code,
HTML, link definitions and directives of mkdocstrings stay unchanged, and so does the rest of a page after the comment
``<!-- wrap: off -->``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = (
    *(REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
)
WIDTH = 120
OFF = "<!-- wrap: off -->"

_FENCE = re.compile(r" *(```|~~~)")
_ITEM = re.compile(r" *([-*+]|\d+[.)]) +(?=\S)")
_UNCHANGED = re.compile(r" *(#|\||<|:::|>|([-*_] ?){3,}$|\[[^\]]+\]: )| {4,}")
# code spans are not broken, so that commands and names can be searched
_WORD = re.compile(r"(?:(`+).+?\1|\S)+")
# at the start of a line these would begin a heading, a table, a quotation, HTML or a list
_MARKUP = re.compile(r"[#|><]|([-*+=~]+|\d+[.)])$")


def wrapped(text: str) -> str:
    """A page with its paragraphs and list items filled."""
    return "".join(f"{line}\n" for line in _lines(text.splitlines()))


def _lines(lines: list[str]) -> Iterator[str]:
    fence = ""
    paragraph: list[str] = []
    for number, line in enumerate(lines):
        if line == OFF:
            yield from _filled(paragraph)
            yield from lines[number:]
            return
        mark = _FENCE.match(line)
        if not fence and not mark and _continues(line, paragraph):
            paragraph.append(line)
            continue
        yield from _filled(paragraph)
        paragraph = []
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
        elif not fence and line.strip() and not _UNCHANGED.match(line):
            paragraph = [line]
            continue
        yield line
    yield from _filled(paragraph)


def _continues(line: str, paragraph: list[str]) -> bool:
    if not paragraph or not line.strip() or _ITEM.match(line):
        return False
    return not _UNCHANGED.match(line.lstrip())


def _filled(paragraph: list[str]) -> Iterator[str]:
    """The lines of a paragraph or list item, each as long as fits."""
    if not paragraph:
        return
    item = _ITEM.match(paragraph[0])
    indent = len(item[0]) if item else len(paragraph[0]) - len(paragraph[0].lstrip())
    line = paragraph[0][:indent]
    for word in _words(" ".join(each.strip() for each in paragraph)[len(line.lstrip()) :]):
        if line.strip() and len(line) > indent and len(line) + 1 + len(word) > WIDTH:
            yield line
            line = " " * indent
        line += word if len(line) == indent else f" {word}"
    yield line


def _words(text: str) -> list[str]:
    """The words of a text; one that would be markup at the start of a line stays with the word before it."""
    words: list[str] = []
    for match in _WORD.finditer(text):
        if words and _MARKUP.match(match[0]):
            words[-1] += f" {match[0]}"
        else:
            words.append(match[0])
    return words


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(wrapped(page.read_text(encoding="utf-8")), encoding="utf-8")
