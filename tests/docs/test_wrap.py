"""Every page is wrapped as ``docs/wrap.py`` does it, and wrapping changes nothing that a reader sees."""

from __future__ import annotations

import markdown
import pytest
import wrap

LONG = " ".join(["word"] * 60)


@pytest.mark.parametrize("page", wrap.PAGES, ids=lambda page: page.name)
def test_pages_are_wrapped(page):
    text = page.read_text(encoding="utf-8")
    assert text == wrap.wrapped(text), "run: python docs/wrap.py"


def test_lines_are_filled_and_not_longer_than_the_width():
    lines = wrap.wrapped(f"{LONG}\n{LONG}\n\n- {LONG}\n10. {LONG}\n").splitlines()
    assert max(map(len, lines)) == wrap.WIDTH - 1  # 24 words of four letters
    assert lines[:5] == [" ".join(["word"] * 24)] * 5
    assert [line[:6] for line in lines[6:]] == ["- word", "  word", "  word", "10. wo", "    wo", "    wo"]


@pytest.mark.parametrize(
    "text",
    [
        f"# {LONG}\n",
        f"| a | b |\n| --- | --- |\n| {LONG} | {LONG} |\n",
        f"```text\n{LONG}\n\n- {LONG}\n```\n",
        f"~~~text\n```\n{LONG}\n~~~\n",
        f"<!-- with: {LONG} -->\n",
        f"[1]: https://example.org/{LONG.replace(' ', '/')} 'title'\n",
        f"    {LONG}\n",
        f"{wrap.OFF}\n\n{LONG}\n",
        "::: yolov5_ema.UserError\n    options:\n      heading_level: 3\n",
        f"- item\n\n  ```sh\n  {LONG}\n  ```\n",
    ],
)
def test_what_cannot_be_wrapped_stays(text):
    assert wrap.wrapped(text) == text


def test_short_lines_are_joined_within_a_paragraph_only():
    text = "one\ntwo\n\n- three\n  four\n- five\nsix\n\n# Seven\neight\n"
    assert wrap.wrapped(text) == "one two\n\n- three four\n- five six\n\n# Seven\neight\n"


def test_code_spans_are_not_broken():
    span = "`yolov5-ema train --cfg yolov5s-ema.yaml`"
    lines = wrap.wrapped(f"{LONG[:100]} {span} {LONG}").splitlines()
    assert lines[1].startswith(span)


@pytest.mark.parametrize("mark", ["-", "+", "2.", "#", "|", ">", "# word", "=", "<div>"])
def test_no_line_begins_with_a_mark_by_chance(mark):
    text = f"{'x' * 118} {mark} {LONG}"
    lines = wrap.wrapped(text).splitlines()
    assert not any(line.startswith(mark) for line in lines)
    assert " ".join(lines) == text


@pytest.mark.parametrize("page", wrap.PAGES, ids=lambda page: page.name)
def test_a_page_reads_the_same_at_another_width(page, monkeypatch):
    text = page.read_text(encoding="utf-8")
    monkeypatch.setattr(wrap, "WIDTH", 60)
    narrow = wrap.wrapped(text)
    assert narrow != text or max(map(len, text.splitlines())) < 60
    assert _shown(narrow) == _shown(text)


def _shown(text: str) -> list[str]:
    return markdown.markdown(text, extensions=["fenced_code", "tables"]).split()
