"""The examples in Markdown files: fenced blocks, and what an HTML comment before a block says about it.

Markdown is parsed by the library that builds the site, and its HTML by Python's parser. A comment may hold, separated
by ``;``:

- ``quick``: quick enough for every run of the tests;
- ``with: FILE …``: files that a user would have (`STAND_INS`); each page starts in its own folder;
- ``needs: …``: it is not run, because it needs one of `NEEDS`;
- ``yaml: data``: the YAML is part of a data YAML, not rows of a model.
"""

from __future__ import annotations

import functools
import shlex
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import markdown

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

RUN = ("sh", "python", "yaml")
SHOWN = ("text", "markdown", "json")
"""The languages of blocks that are only shown, such as output and templates."""
NEEDS = {
    "data": "a data set or trained weights that do not come along",
    "gpu": "a GPU, or several",
    "network": "installing or downloading something",
    "machines": "more than one machine",
    "time": "an idle machine for minutes or hours",
}
STAND_INS = (
    *("best.pt", "runs/train/exp", "runs/train/exp2"),
    *("my.yaml", "data.yaml", "DATA.yaml"),
    *("big.jpg", "images"),
)


@dataclass
class Example:
    """One fenced block."""

    page: str
    number: int
    language: str
    text: str
    quick: bool = False
    needs: str | None = None
    files: list[str] = field(default_factory=list)
    is_data: bool = False

    @property
    def place(self) -> str:
        first = self.text.strip().splitlines()[0] if self.text.strip() else ""
        return f"{self.page}, block {self.number} ({first})"

    @property
    def is_run(self) -> bool:
        return self.language in RUN and self.needs is None

    @property
    def saved_as(self) -> str | None:
        """The file name in a comment on the first line, if there is one: the block is the content of this file."""
        words = self.text.splitlines()[0].split() if self.text else []
        is_name = len(words) == 2 and words[0] == "#" and words[1].endswith((".py", ".yaml"))
        return words[1] if is_name else None


class _Blocks(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self._comment = ""
        self._language: str | None = None
        self._text: list[str] = []
        self._in_pre = False

    def handle_comment(self, data: str) -> None:
        self._comment = data.strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "code" and self._in_pre:
            names = (dict(attrs).get("class") or "").split()
            self._language = next((name[9:] for name in names if name.startswith("language-")), "")
        elif tag != "pre":
            self._comment = ""
        self._in_pre = tag == "pre"

    def handle_data(self, data: str) -> None:
        if self._language is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "code" and self._language is not None:
            self.found.append((self._language, "".join(self._text), self._comment))
            self._language, self._text, self._comment = None, [], ""


def examples(text: str, page: str = "page.md") -> list[Example]:
    """The fenced blocks of a page.

    Raises:
        ValueError: a comment is unknown, a language is neither run nor shown, or the parser does not recognise a fence
            as a block.
    """
    parser = _Blocks()
    parser.feed(markdown.markdown(text, extensions=["fenced_code", "tables"]))
    fences = sum(line.lstrip().startswith(("```", "~~~")) for line in text.splitlines())
    if fences != 2 * len(parser.found):
        raise ValueError(f"{page}: {fences} fences, but {len(parser.found)} blocks; is one indented or left open?")
    return [
        _described(Example(page, number, language, code), comment)
        for number, (language, code, comment) in enumerate(parser.found, 1)
    ]


def _described(example: Example, comment: str) -> Example:
    if example.language not in (*RUN, *SHOWN):
        raise ValueError(f"{example.place}: language {example.language!r} is none of {', '.join((*RUN, *SHOWN))}")
    for part in filter(None, map(str.strip, comment.split(";"))):
        key, _, value = (word.strip() for word in part.partition(":"))
        if key == "quick" and not value:
            example.quick = True
        elif key == "needs" and value in NEEDS:
            example.needs = value
        elif key == "with" and value and set(value.split()) <= set(STAND_INS):
            example.files = value.split()
        elif (key, value) == ("yaml", "data"):
            example.is_data = True
        else:
            raise ValueError(f"{example.place}: the comment {part!r} is unknown; see {Path(__file__).name}")
    if example.needs and (example.quick or example.files):
        raise ValueError(f"{example.place}: a block that is not run cannot be quick or have files")
    return example


@functools.cache
def all_examples() -> list[Example]:
    """The examples of README.md and of all pages under ``docs/``."""
    found: list[Example] = []
    for path in PAGES:
        found += examples(path.read_text(encoding="utf-8"), str(path.relative_to(REPOSITORY)))
    return found


def commands(shell: str) -> list[list[str]]:
    """The simple commands of a shell example, each as a list of words, without assignments before it.

    Raises:
        ValueError: a quotation does not end.
    """
    found: list[list[str]] = []
    for line in shell.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in lexer:
            if word and set(word) <= set("|&;<>"):
                found.append(command)
                command = []
            else:
                command.append(word)
        found.append(command)
    for command in found:
        while command and "=" in command[0] and command[0].split("=")[0].isidentifier():
            command.pop(0)
    return [command for command in found if command]
