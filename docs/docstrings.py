"""A Griffe extension that converts the reStructuredText in docstrings to Markdown."""

from __future__ import annotations

import textwrap
from typing import Any

from griffe import Extension, Object


class AsMarkdown(Extension):
    """Fences ``>>>`` examples, which Markdown would read as quotations, and replaces ``::`` before code by ``:``."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            text = obj.docstring.value.replace("::\n\n", ":\n\n")
            obj.docstring.value = "\n\n".join(map(_fenced, text.split("\n\n")))


def _fenced(paragraph: str) -> str:
    """``Example:`` may be on the line before the prompt, which is then indented further."""
    lines = paragraph.splitlines()
    first = next((i for i, line in enumerate(lines) if line.lstrip().startswith(">>>")), None)
    if first is None:
        return paragraph
    code = [line.replace("# doctest: +SKIP", "").rstrip() for line in lines[first:]]
    indent = " " * (len(code[0]) - len(code[0].lstrip()))
    fenced = textwrap.indent("\n".join(["```pycon", *textwrap.dedent("\n".join(code)).splitlines(), "```"]), indent)
    return "\n".join([*lines[:first], fenced])
