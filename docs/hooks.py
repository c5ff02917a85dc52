"""MkDocs hooks for files outside ``docs/`` that pages link to.

The pages are also read on GitHub, where links such as ``../CONTRIBUTING.md`` and ``../benchmarks/results/x.png`` are
right. The site gets a copy of these files, and its links lead to the copies.
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
    "](docs/": "](",  # in the pages at the root of the repository
    **{f"]({source}": f"]({page}" for source, page in PAGES.items()},
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the root of the repository, and the pictures and tables of the benchmarks."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / source)))
    for path in sorted((REPOSITORY / RESULTS).iterdir()):
        files.append(File.generated(config, RESULTS + path.name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Change the links of a page so that they lead to the files outside ``docs/`` on the site."""
    for link, on_the_site in LINKS.items():
        markdown = markdown.replace(link, on_the_site)
    return markdown
