"""The page in a real Chromium without a window: no error or request; pictures, sorting, a phone's width, printing."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
from synthetic_runs import measured_of, write_classification, write_comparison, write_training

from yolov5_ema.reporting import page
from yolov5_ema.reporting.comparing import of_comparison
from yolov5_ema.reporting.cost import Cost, Row
from yolov5_ema.reporting.parts import Material
from yolov5_ema.reporting.runs import make_names_unique, read_source

FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
MORE_FLAGS = ("--disable-component-update", "--disable-sync")
A4_WIDTH_PX = 794 - 2 * 45  # at 96 pixels for each inch, minus margins of 12 mm


@pytest.fixture(scope="module")
def chromium():
    """The installed browser, started once for all tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=[*FLAGS, *MORE_FLAGS])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page with everything that can occur: a comparison, an evaluation, a classification, long or malicious names."""
    tmp_path = tmp_path_factory.mktemp("page")
    image = tmp_path / "a.jpg"
    cv2.imwrite(str(image), np.full((80, 120, 3), 90, np.uint8))
    comparison = read_source(write_comparison(tmp_path / "first"))
    alone = read_source(
        write_training(tmp_path / ("a-rather-long-name-of-a-run_" * 3), project="/" + "x" * 200, is_full=True)
    )
    classified = read_source(write_classification(tmp_path / "c", names=[f"class number {at}" for at in range(18)]))
    sources = [comparison, alone, classified]
    make_names_unique(sources)
    names = ["car", "<script>alert(1)</script>", "bus", *(f"a long class name {at}" for at in range(9))]
    measured = {comparison.runs[0].name: measured_of(names, [image]), alone.name: measured_of(names, [image])}
    rows = [
        Row(0, "-1", 1, "Conv", "[64, 6, 2, 2]", 64, 2, 100, 10**9),
        Row(1, "-1", 1, "EMA", "[]"),
    ]
    costs = {run.name: Cost(1_768_824, 4.5, 640, rows) for run in [*comparison.runs, alone]}
    material = Material(
        sources, [of_comparison(comparison)], costs, measured, {"x": "why"}, {"torch": "2"}, {"cores": 2}
    )
    file = tmp_path / "report.html"
    file.write_text(page.render(material), encoding="utf-8")
    return file


@pytest.fixture
def opened(chromium, file):
    """Opens the page at a size; afterwards, nothing may have been fetched and no error logged."""
    troubles, contexts = [], []

    def open_page(width=1280, height=900, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("request", lambda request: troubles.append(request.url) if not_ours(request.url) else None)
        tab.on("dialog", lambda dialog: troubles.append(dialog.message))
        tab.goto(file.as_uri())
        return tab

    def not_ours(url: str) -> bool:
        return url != file.as_uri() and not url.startswith("data:")

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def test_pictures_load(opened):
    tab = opened()
    widths = tab.evaluate("Array.from(document.images, (image) => image.naturalWidth)")
    assert len(widths) == 2 and min(widths) > 0
    charts = tab.evaluate(
        "Array.from(document.querySelectorAll('.charts svg'), (svg) => svg.getBoundingClientRect().height)"
    )
    assert len(charts) == 17 and min(charts) > 100  # 10 and 4 of epochs, 2 of precision and their means


def column(tab, table: str, at: int) -> list[str]:
    return tab.evaluate(
        "([name, at]) => Array.from(Array.from(document.querySelectorAll('table')).find("
        "(table) => table.caption.textContent.startsWith(name)).tBodies[0].rows, (row) => row.cells[at].textContent)",
        [table, at],
    )


def test_tables_sort(opened):
    tab = opened()
    table = tab.locator("table", has_text="Top-1 accuracy by class")
    first = column(tab, "Top-1 accuracy", 0)
    heading = table.locator("thead th").nth(0)
    assert heading.get_attribute("aria-sort") is None
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    # numbers within words are sorted as numbers: 2 before 10
    assert column(tab, "Top-1 accuracy", 0) == sorted(first, key=lambda name: int(name.split()[-1]))
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(tab, "Top-1 accuracy", 0)[0] == "class number 17"


def test_numbers_sort_as_numbers_and_by_the_keyboard(opened):
    tab = opened()
    name = "Average precision by class"
    heading = tab.locator("table", has_text=name).locator("thead th").nth(1)
    before = column(tab, name, 1)
    assert before == [str(10 * at) for at in range(1, 13)]
    button = heading.get_by_role("button")
    button.focus()
    tab.keyboard.press("Enter")
    assert column(tab, name, 1) == before
    tab.keyboard.press("Enter")
    assert column(tab, name, 1) == before[::-1] and heading.get_attribute("aria-sort") == "descending"
    other = tab.locator("table", has_text=name).locator("thead th").nth(2)
    other.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") is None and other.get_attribute("aria-sort") == "ascending"


def test_what_is_not_known_stays_last(opened):
    tab = opened()
    name = "The trainings (detection)"
    heading = tab.locator("table", has_text=name).locator("thead th").nth(2).get_by_role("button")
    for _ in range(2):
        heading.click()
        assert column(tab, name, 2)[-1] == "-"
    assert column(tab, name, 2)[:2] == ["2", "2"]


@pytest.mark.parametrize(("width", "height"), [(360, 740), (320, 640), (768, 1024), (1280, 900)])
def test_the_page_is_as_wide_as_the_screen(opened, width, height):
    tab = opened(width, height)
    tab.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    # wide content scrolls in its own box, which can be reached with the keyboard
    boxes = tab.evaluate(
        "Array.from(document.querySelectorAll('.scroll'), (box) => [box.scrollWidth - box.clientWidth, box.tabIndex])"
    )
    assert boxes and all(index == 0 for _, index in boxes)
    assert any(more > 0 for more, _ in boxes) or width > 1000


def test_readable_without_scripts(opened):
    tab = opened(java_script_enabled=False)
    assert tab.locator("th button").count() == 0
    assert tab.locator("table", has_text="Top-1 accuracy by class").locator("tbody tr").count() == 18
    assert tab.locator("h1").inner_text().endswith("runs")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened, scheme):
    """WCAG's contrast of 4.5 for text on its background, and 3 for the lines of charts."""
    tab = opened(color_scheme=scheme)

    def colour(selector: str, name: str = "color") -> tuple[float, ...]:
        found = tab.evaluate(
            "([selector, name]) => getComputedStyle(document.querySelector(selector))[name]", [selector, name]
        )
        return tuple(float(part) for part in found[found.index("(") + 1 : -1].split(",")[:3])

    def luminance(rgb: tuple[float, ...]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    def contrast(one, other) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    paper = colour("body", "backgroundColor")
    assert (luminance(paper) < 0.05) is (scheme == "dark")
    for selector in ("body", "p.soft", "nav a", "caption", "summary"):
        assert contrast(colour(selector), paper) >= 4.5, selector
    assert contrast(colour(".warnings strong"), colour(".warnings", "backgroundColor")) >= 4.5
    from yolov5_ema.reporting.charts import COLOURS

    for line in COLOURS:
        assert contrast(tuple(int(line[at : at + 2], 16) for at in (1, 3, 5)), paper) >= 3, line


def test_print(opened, file):
    tab = opened(A4_WIDTH_PX, 1000)
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    clipped = tab.evaluate(
        """Array.from(document.querySelectorAll('table'), (table) => [
            table.caption.textContent,
            table.getBoundingClientRect().right,
            getComputedStyle(table.parentElement).overflowX,
        ]).filter(([, right, overflow]) => right > innerWidth + 1 || overflow !== 'visible')"""
    )
    assert clipped == []
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    raw = tab.pdf(path=str(file.with_suffix(".pdf")), format="A4")
    assert raw.startswith(b"%PDF") and len(raw) > 20_000
