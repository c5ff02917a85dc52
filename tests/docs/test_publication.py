"""What a visitor finds besides the code: how to cite it, how to report a problem, a model card."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest
import yaml
from markdown_examples import PAGES, examples

import yolov5_ema

REPOSITORY = Path(__file__).resolve().parents[2]
FORMS = sorted(path for path in (REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
ELEMENTS = {"markdown", "input", "textarea", "dropdown", "checkboxes"}


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src") and value]


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative links of a page that lead to no file, as GitHub resolves them."""
    parser = _Links()
    parser.feed(markdown.markdown(text, extensions=["fenced_code", "tables"]))
    local = [link.split("#")[0] for link in parser.found if not re.match(r"[a-z]+:", link)]
    return [link for link in local if link and not (folder / link).exists()]


@pytest.mark.parametrize(
    "path", [*PAGES, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"], ids=lambda path: path.name
)
def test_links_lead_to_files(path):
    assert not broken_links(path.read_text(encoding="utf-8"), path.parent)


def test_a_link_to_nowhere_is_found(tmp_path):
    (tmp_path / "a.md").write_text("")
    text = "[a](a.md#part) [b](b.md) ![c](c.png) [d](https://d.org/d.md) `[e](e.md)`"
    assert broken_links(text, tmp_path) == ["b.md", "c.png"]


def test_the_citation_names_this_version_and_the_paper():
    content = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(content)  # required by the format
    assert content["cff-version"] == "1.2.0" and content["type"] == "software"
    assert content["version"] == yolov5_ema.__version__
    assert content["license"] == "GPL-3.0-or-later"
    paper = content["preferred-citation"]
    assert paper["title"] == "Efficient Multi-Scale Attention Module with Cross-Spatial Learning"
    assert (paper["year"], paper["doi"]) == (2023, "10.1109/ICASSP49357.2023.10096516")
    assert [author["family-names"] for author in paper["authors"]] == [
        *("Ouyang", "He", "Zhang", "Luo", "Guo", "Zhan", "Huang")
    ]
    for entry in (paper, *content["references"]):
        assert {"type", "title", "authors"} <= set(entry)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_what_github_takes(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "labels", "body"}
    identifiers = []
    for element in form["body"]:
        assert element["type"] in ELEMENTS
        if element["type"] == "markdown":
            assert set(element) == {"type", "attributes"} and element["attributes"]["value"]
            continue
        identifiers.append(element["id"])
        assert element["attributes"]["label"]
        if element["type"] in ("dropdown", "checkboxes"):
            options = element["attributes"]["options"]
            texts = [option if isinstance(option, str) else option["label"] for option in options]
            assert len(set(texts)) == len(texts) >= 2
    assert len(set(identifiers)) == len(identifiers)


def test_forms_and_template_name_files_that_exist():
    texts = [*FORMS, REPOSITORY / ".github/PULL_REQUEST_TEMPLATE.md"]
    assert len(FORMS) == 3
    for path in texts:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"\b(?:docs/)?[\w-]+\.md\b", text):
            assert (REPOSITORY / name).is_file(), (path.name, name)


def test_pull_requests_are_asked_for_targets_that_exist():
    text = (REPOSITORY / ".github/PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"`make (\S+)`", text)
    assert len(targets) == 3
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_example_of_a_model_card_fills_every_section_of_the_template():
    page = (REPOSITORY / "docs/model-card.md").read_text(encoding="utf-8")
    template, example = (block.text for block in examples(page) if block.language == "markdown")
    sections = re.findall(r"^## .+$", template, re.MULTILINE)
    assert len(sections) == 7
    assert re.findall(r"^## .+$", example, re.MULTILINE) == sections
    assert "…" not in example
