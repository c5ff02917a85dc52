"""Run folders as YOLOv5 and the commands write them, made without training; and a parser for the pages of `report`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

COLUMNS = (
    *("epoch", "train/box_loss", "train/obj_loss", "train/cls_loss"),
    *("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
    *("val/box_loss", "val/obj_loss", "val/cls_loss", "x/lr0", "x/lr1", "x/lr2"),
)


def yolov5_csv(rows: Sequence[Sequence[float]], columns: Sequence[str] = COLUMNS) -> str:
    """A results.csv as v6.0 to v7.0 write it: right-justified, five digits, no quotes."""
    head = ",".join(f"{name:>20}" for name in columns) + "\n"
    return head + "".join(
        ",".join([f"{values[0]:>20}", *(f"{value:>20.5g}" for value in values[1:])]) + "\n" for values in rows
    )


def row(epoch: int, map50: float, map50_95: float, loss: float = 0.05) -> list[float]:
    """One epoch's figures."""
    return [epoch, loss, 0.1, 0.03, 0.61, 0.52, map50, map50_95, 0.06, 0.11, 0.04, 0.01, 0.01, 0.01]


def write_training(
    folder: Path, *, figures: Sequence[float] = (0.1, 0.5, 0.4), is_full: bool = False, **options: Any
) -> Path:
    """Write a training of YOLOv5 without best.pt; mAP50-95 is half of each mAP50 in ``figures``.

    Its results.csv has all columns only if ``is_full``, because a chart is drawn for each, which takes time.
    """
    folder.mkdir(parents=True)
    content = {
        "weights": "",
        "cfg": "gone/yolov5n-ema.yaml",
        "data": "gone/set.yaml",
        "imgsz": 64,
        "batch_size": 4,
    }
    content.update(epochs=len(figures), name=folder.name, **options)
    (folder / "opt.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "hyp.yaml").write_text("lr0: 0.01\nmosaic: 1.0\n")
    rows = [row(at, value, value / 2) for at, value in enumerate(figures)]
    columns = range(len(COLUMNS)) if is_full else (0, 1, 6, 7)
    names, cells = [COLUMNS[at] for at in columns], [[line[at] for at in columns] for line in rows]
    (folder / "results.csv").write_text(yolov5_csv(cells, names))
    return folder


def write_ultralytics(folder: Path, *, figures: Sequence[float] = (0.1, 0.5, 0.4), **args: Any) -> Path:
    """Write a training of ultralytics without best.pt; mAP50-95 is half of each mAP50 in ``figures``."""
    folder.mkdir(parents=True)
    content = {"task": "detect", "mode": "train", "model": "gone/yolo11n-ema.yaml", "data": "gone/set.yaml"}
    content.update(epochs=len(figures), batch=4, imgsz=64, seed=0, cfg=None, lr0=0.01, save_dir="/gone")
    content.update(args)
    (folder / "args.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    lines = ["epoch,time,train/box_loss,metrics/mAP50(B),metrics/mAP50-95(B),val/box_loss,lr/pg0"]
    lines += [f"{at},1.5,0.9,{value},{value / 2},0.8,0.01" for at, value in enumerate(figures, 1)]
    (folder / "results.csv").write_text("\n".join([*lines, ""]))
    return folder


def write_classification(
    folder: Path, *, top1: float = 0.75, names: Sequence[str] = ("cat", "dog"), **args: Any
) -> Path:
    """A run of ``yolov5-ema classify train`` with two epochs and ten images of each class, without its best.pt."""
    folder.mkdir(parents=True)
    settings = {
        "model": "resnet50",
        "block": "EMA",
        "epochs": 2,
        "seed": 0,
        "data": "synthetic",
        "imgsz": 32,
        **args,
    }
    (folder / "args.yaml").write_text(yaml.safe_dump(settings))
    (folder / "results.csv").write_text(
        f"epoch,train/loss,val/loss,val/top1,val/top5,lr\n0,0.7,0.69,0.5,1.0,0.1\n1,0.5,0.4,{top1},1.0,0.05\n"
    )
    confusion = [[0] * len(names) for _ in names]
    for index in range(len(names)):
        confusion[index][index], confusion[index][index - 1] = 7, 3
    metrics = {
        "task": "classify",
        "images": 10 * len(names),
        "top1": top1,
        "top5": 1.0,
        "classes": [{"name": name, "images": 10, "top1": 0.7} for name in names],
        "confusion": confusion,
        "model": settings["model"],
        "block": settings["block"],
        "parameters": 23_000_000,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


_VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}


class Page(HTMLParser):
    """The content of a page.

    Attributes:
        tables: the rows of each table by its caption, the headings first, as texts.
        words: all text that is shown.
        ids: the ids of elements.
        links: the values of src, href and xlink:href.
        images: the attributes of each <img>.
        script: the text of the script.
        unclosed: elements that were opened but not closed, or closed but not opened.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tables: dict[str, list[list[str]]] = {}
        self.words = self.script = ""
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.metas: list[dict[str, str | None]] = []
        self.unclosed: list[str] = []
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(html)
        self.close()
        self.unclosed += self._open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("src", "href", "xlink:href") if name in found]
        if tag == "img":
            self.images.append(found)
        if tag == "meta":
            self.metas.append(found)
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if not self._open or self._open[-1] != tag:
            self.unclosed.append(f"/{tag}")
            return
        self._open.pop()
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data):
        if "script" in self._open:
            self.script += data
        elif "style" not in self._open:
            self.words += data
        if "caption" in self._open:
            self._caption += data
        elif "td" in self._open or "th" in self._open:
            self._rows[-1][-1] += data


def write_comparison(folder: Path, figures: dict[str, Sequence[float]] | None = None) -> Path:
    """Write a folder of ``yolov5-ema compare``, given the mAP50 of the seeds by model; the first is the baseline."""
    from yolov5_ema.comparing.report import Model, as_dict, build_report, method_notes

    figures = figures or {"plain": (0.50, 0.52, 0.52), "ema": (0.52, 0.55, 0.53)}
    seeds = range(len(next(iter(figures.values()))))
    models = [
        Model(
            name,
            parameters=1_000_000 + at,
            gflops=4.5 + at,
            latency_ms=[10.0 + at, 10.0 + at, 12.0 + at],
            figures={
                "map50": dict(enumerate(values)),
                "map50_95": {seed: value / 2 for seed, value in enumerate(values)},
            },
        )
        for at, (name, values) in enumerate(figures.items())
    ]
    report = build_report(models, next(iter(figures)), list(seeds))
    runs = [{"cfg": name, "seed": seed, "status": "finished"} for seed in seeds for name in figures]
    content = {
        "created": "2026-01-02T03:04:05+00:00",
        "software": {"torch": "2.9.0", "yolov5": "6.0.7 (package)"},
        "machine": {"device": "a processor", "cores": 2},
        "recipe": {"task": "test"},
        **as_dict(report),
        "notes": [*method_notes(report), "best.pt was chosen on val; the figures are from test."],
        "runs": runs,
    }
    folder.mkdir(parents=True)
    for run in runs:
        write_training(folder / run["cfg"] / f"seed{run['seed']}", cfg=f"{run['cfg']}.yaml")
    (folder / "comparison.json").write_text(json.dumps(content))
    return folder


def measured_of(names: Sequence[str], images: Sequence[Path] = ()) -> Any:
    """An evaluation with different figures for each class: AP50 0.5, 0.55, 0.6 …"""
    from yolov5_ema.reporting.measuring import Measured, Sample
    from yolov5_ema.reporting.pictures import draw_sample

    boxes = [[0, 5, 5, 20, 20]], [[0, 6, 6, 20, 20, 0.8]]

    per_class = {
        name: {"P": 0.7, "R": 0.6, "AP50": 0.5 + 0.05 * at, "AP": 0.25, "labels": 10 * (at + 1)}
        for at, name in enumerate(names)
    }
    size = len(names) + 1
    return Measured(
        names=list(names),
        split="val",
        images=24,
        objects=sum(figures["labels"] for figures in per_class.values()),
        metrics={"P": 0.7, "R": 0.6, "mAP50": 0.512345, "mAP50-95": 0.25},
        per_class=per_class,
        curves={name: [1 - at / 100 for at in range(101)] for name in names},
        confusion=[[10 * (row == column) + column for column in range(size)] for row in range(size)],
        samples=[Sample(file.name, 1, 1, draw_sample(file, *boxes, names)) for file in images],
        settings={"imgsz": 64, "rules": "6.0"},
    )
