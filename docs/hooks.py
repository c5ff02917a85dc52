"""MkDocs hooks: files outside ``docs/`` that pages link to.

The pages are read on GitHub too, where ``../CONTRIBUTING.md`` and ``../benchmarks/results/x.png`` are right. The site
gets a copy of these files, and its links lead there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
RESULTS = "benchmarks/results/"
LINKS = {
    **{f"](../{source}": f"]({page}" for source, page in PAGES.items()},
    f"](../{RESULTS}": f"]({RESULTS}",
    "](../README.md": "](index.md",
    "](docs/": "](",  # in the pages of the repository's root
    **{f"]({source}": f"]({page}" for source, page in PAGES.items()},
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the repository's root, and the pictures and tables of the benchmarks."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / source)))
    for path in sorted((REPOSITORY / RESULTS).iterdir()):
        files.append(File.generated(config, RESULTS + path.name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links of a page to where the files outside ``docs/`` are on the site."""
    for link, on_the_site in LINKS.items():
        markdown = markdown.replace(link, on_the_site)
    return markdown
