"""The page: its sections in order, and the HTML file they form."""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from pathlib import Path
from typing import Any

import yolov5_ema
from yolov5_ema.reporting import classes, outcome, settings, training
from yolov5_ema.reporting.parts import Material, shown
from yolov5_ema.texts import counted, listed

GENERATOR = "yolov5-ema report"
"""The generator in the page's metadata, which identifies a report."""

_TEMPLATES = Path(__file__).parent / "templates"


def render(material: Material) -> str:
    """The page as one HTML file that loads no other file."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["breakable"] = lambda words: Markup("<wbr>").join(re.split(r"(?<=[/_])", str(words)))
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template("report.html").render(
        title=_title(material),
        subtitle=_subtitle(material),
        generator=f"{GENERATOR} {yolov5_ema.__version__}",
        footer="Everything on this page is inside this one file; it loads nothing.",
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        sections=sections(material),
    )
    # Names may contain lone surrogates, which cannot be written as UTF-8.
    return html.encode("utf-8", "replace").decode()


def _title(material: Material) -> str:
    if material.title:
        return material.title
    if len(material.sources) == 1:
        return f"Report of {material.sources[0].name}"
    models = list(dict.fromkeys([run.model for run in material.runs] or [s.name for s in material.sources]))
    return f"{listed(models, 4)}: {counted(len(material.runs) or len(material.sources), 'run')}"


def _subtitle(material: Material) -> str:
    """The data set and image size of the trainings, and when and with which version the page was made."""
    made = datetime.datetime.now(datetime.timezone.utc).strftime("%d %B %Y, %H:%M UTC").lstrip("0")
    sentence = f"Made on {made} by yolov5-ema {yolov5_ema.__version__}."
    data = {str(run.options.get("data") or "") for run in material.runs} - {""}
    sizes = {str(run.options.get("imgsz") or "") for run in material.runs} - {""}
    if len(data) == 1 and len(sizes) == 1:
        sentence = f"Data: {shown(Path(data.pop()).stem)}, {shown(sizes.pop())} pixels. {sentence}"
    return sentence


def sections(material: Material) -> list[dict[str, Any]]:
    """The sections that are not empty, in the order of the page."""
    makers = (
        ("verdict", "In short", outcome.verdict),
        ("comparison", "Comparison", outcome.comparison),
        ("cost", "Model and cost", training.model_and_cost),
        ("curves", "Training", training.curves),
        ("classes", "Classes", classes.classes),
        ("pr", "Precision and recall", classes.pr_curves),
        ("confusion", "Confusions", classes.confusion),
        ("samples", "Sample detections", classes.samples),
        ("evaluations", "Evaluations", settings.evaluations),
        ("configuration", "Configuration", settings.configuration),
        ("origin", "Software and machine", settings.origin),
    )
    found = [{"id": key, "title": title, "parts": maker(material)} for key, title, maker in makers]
    return [section for section in found if section["parts"]]
