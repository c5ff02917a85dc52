"""The documentation builds without warnings, covers everything that is public, and loads nothing from other servers."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

pytest.importorskip("material", reason="pip install 'yolov5-ema[docs]'")

REPOSITORY = Path(__file__).resolve().parents[2]
CHROMIUM = next((p for p in map(Path, ("/usr/bin/chromium", "/usr/bin/google-chrome")) if p.is_file()), None)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(REPOSITORY / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)


class _Resources(HTMLParser):
    """Addresses that a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        is_loaded = tag in ("script", "img", "iframe", "source", "video") or (
            tag == "link" and values.get("rel") not in ("canonical", "prev", "next")
        )
        if is_loaded:
            self.found += filter(None, (values.get("src"), values.get("href")))


def resources(html: str) -> list[str]:
    parser = _Resources()
    parser.feed(html)
    return parser.found


def objects(inventory: Path) -> set[str]:
    """The names that an ``objects.inv`` in Sphinx's format lists."""
    content = inventory.read_bytes()
    *_, packed = content.split(b"\n", 4)
    return {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = resources(page.read_text(encoding="utf-8"))
        assert loaded and not [url for url in loaded if re.match(r"(https?:)?//", url)], page
    assert not re.search(r"url\((https?:)?//", (site / "assets/extra.css").read_text(encoding="utf-8"))


def test_the_check_sees_what_is_loaded_from_elsewhere():
    html = '<link rel="stylesheet" href="https://fonts.example/x.css"><script src="//cdn/x.js"></script><a href="https://a">'
    assert resources(html) == ["https://fonts.example/x.css", "//cdn/x.js"]


def test_everything_public_is_in_the_reference(site):
    import yolov5_ema
    from yolov5_ema import blocks, classification, evaluation, explain

    listed = objects(site / "objects.inv")
    names = {f"yolov5_ema.{name}" for name in yolov5_ema.__all__ if name != "__version__"}
    for room in (blocks, classification, evaluation, explain):
        names |= {f"{room.__name__}.{name}" for name in room.__all__}
    assert not names - listed


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    config = yaml.load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), Loader)

    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        return [leaf for value in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(value)]

    docs = REPOSITORY / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md")}
    assert set(leaves(config["nav"])) == pages | {"contributing.md", "changelog.md", "security.md"}


def test_files_outside_docs_are_on_the_site(site):
    text = (site / "exact-ema.html").read_text(encoding="utf-8")
    assert 'src="benchmarks/results/2026-11-24-kernels-cpu.png"' in text
    assert (site / "benchmarks/results/2026-11-24-kernels-cpu.png").is_file()
    assert 'href="contributing.html"' in (site / "weights.html").read_text(encoding="utf-8")
    assert "hooks.py" not in {path.name for path in site.rglob("*.py")}


def test_examples_in_docstrings_are_code(site):
    text = (site / "api/blocks.html").read_text(encoding="utf-8")
    assert "&gt;&gt;&gt;" in text and "<blockquote>" not in text and "doctest: +SKIP" not in text


def test_a_broken_link_fails_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Page\n\n[gone](gone.md)\n")
    full = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    validation = full[full.index("validation:") : full.index("\nnav:")]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\nstrict: true\n{validation}\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1 and "gone.md" in done.stderr


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(_Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_and_search_in_a_browser(address, width):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        errors, asked = [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index.html", "exact-ema.html", "quirks.html", "api/blocks.html"):
            page.goto(f"{address}/{name}")
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)"), name
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 1, f"{name} is wider than the screen by {wide} pixels"
        page.goto(f"{address}/index.html")
        if width < 1000:
            page.click("label.md-header__button[for=__search]")
        page.locator("input.md-search__input").press_sequentially("parse_model", delay=50)
        page.wait_for_selector(".md-search-result__link", timeout=20_000)
        assert "shim" in page.inner_text(".md-search-result__list").lower()
        browser.close()
    assert not errors
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:", "about:"))]
