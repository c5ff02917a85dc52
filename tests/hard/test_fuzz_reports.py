"""``report`` of damaged and malicious runs: a page, or a message and exit code 2, and no content from outside."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from synthetic_runs import Page, measured_of, write_classification, write_comparison, write_training

from yolov5_ema.cli.main import main

CANARY = "canary-that-lies-outside"
SCRIPT = "</style><script>alert(1)</script><svg onload=alert(2)>\"'"
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        10**18,
        10**40,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "1e-3",
        "\0",
        "\ud800",
        "a" * 50_000,
    ),
    *(
        SCRIPT,
        "../../outside/opt.yaml",
        "/dev/zero",
        "=1+1",
        [],
        {},
        [[]],
        [None] * 3,
        {"a": {"b": 1}},
        "1;background:red",
    ),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """One small run of each kind; next to them are files that no page may show."""
    top = tmp_path_factory.mktemp("runs")
    folder = write_training(top / "training", seed=1, evolve=None)
    picture = top / "val.png"
    cv2.imwrite(str(picture), np.full((80, 80, 3), 90, np.uint8))
    shutil.copy(picture, folder / "PR_curve.png")
    write_best(folder)
    keep_evaluation(folder, picture)
    write_classification(top / "classification")
    write_comparison(top / "comparison", {"plain": (0.5, 0.52), "ema": (0.52, 0.55)})
    (top / "evaluation").mkdir()
    figures = {"AP": 0.5, "unit": "fraction", "per_class": {"car": {"AP": 0.5, "AP50": None}}}
    (top / "evaluation/evaluation.json").write_text(json.dumps({"coco": figures, "yolov5": figures}))
    (top / "outside").mkdir()
    (top / "outside/opt.yaml").write_text(f"cfg: a.yaml\nword: {CANARY}\n")
    (top / "outside/word.json").write_text(json.dumps([CANARY]))
    return top


def write_best(folder: Path) -> None:
    import torch

    (folder / "weights").mkdir()
    torch.save({"model": {"a.weight": torch.zeros(2, 2)}, "epoch": 2}, folder / "weights/best.pt")


def keep_evaluation(folder: Path, picture: Path) -> None:
    from yolov5_ema.reporting.measuring import as_json, settings_of

    found = measured_of(["car", "bus"], [picture])
    found.settings.clear()
    data = folder / "opt.yaml"
    found.settings.update(
        settings_of(folder / "weights/best.pt", data, split="val", imgsz=64, samples=1, release="6.0")
    )
    (folder / "report-val.json").write_text(as_json(found))


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch):
    """Charts of equal figures are drawn only once: they take most of the time, and most cases change none."""
    from yolov5_ema.reporting import classes, training

    draw, known = training.line_chart, {}

    def line_chart(*args: Any, **kwargs: Any) -> str:
        key = repr((args, kwargs))
        if key not in known:
            known[key] = draw(*args, **kwargs)
        return known[key]

    for module in (training, classes):
        monkeypatch.setattr(module, "line_chart", line_chart)


FILES = {
    "training": ("opt.yaml", "hyp.yaml", "results.csv", "report-val.json", "PR_curve.png", "weights/best.pt"),
    "classification": ("args.yaml", "results.csv", "metrics.json"),
    "comparison": ("comparison.json", "ema/seed0/opt.yaml", "ema/seed1/results.csv"),
    "evaluation": ("evaluation.json",),
}


# --- mutations ------------------------------------------------------------------------------


def bytes_changed(file: Path, draw: random.Random) -> None:
    raw = bytearray(file.read_bytes())
    for _ in range(draw.choice((1, 3, 30))):
        raw[draw.randrange(len(raw))] = draw.randrange(256)
    file.write_bytes(raw)


def cut_off(file: Path, draw: random.Random) -> None:
    raw = file.read_bytes()
    file.write_bytes(raw[: draw.randrange(len(raw))])


def something_else(file: Path, draw: random.Random) -> None:
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{chr(98 + at)}: &{chr(98 + at)} [{','.join([f'*{chr(97 + at)}'] * 9)}]\n" for at in range(9)
    )
    nested = "[" * 5000 + "]" * 5000
    choices = (
        "",
        "\n\n",
        "[]",
        "{}",
        "null",
        "1",
        '"x"',
        bomb,
        nested,
        "{" * 3000,
        "a: b: c",
        "\x00" * 100,
        f"epoch\n{SCRIPT}\n",
    )
    file.write_text(draw.choice(choices))


def a_value(file: Path, draw: random.Random) -> None:
    """Replace or remove a value, a key or an entry of a list, at any depth."""
    content = json.loads(file.read_text()) if file.suffix == ".json" else yaml.safe_load(file.read_text())
    for _ in range(draw.choice((1, 1, 3))):
        change_somewhere(content, draw)
    if file.suffix == ".json":
        file.write_text(json.dumps(content))
    else:
        file.write_text(yaml.safe_dump(content), encoding="utf-8", errors="surrogatepass")


def change_somewhere(content: Any, draw: random.Random) -> None:
    while isinstance(content, (dict, list)) and content:
        keys = list(content) if isinstance(content, dict) else range(len(content))
        key = draw.choice(keys)
        if isinstance(content[key], (dict, list)) and content[key] and draw.random() < 0.75:
            content = content[key]
            continue
        how = draw.random()
        if how < 0.15:
            del content[key]
        elif how < 0.3 and isinstance(content, dict):
            content[draw.choice((SCRIPT, "x", "token", "../up"))] = content.pop(key)
        else:
            content[key] = draw.choice(ODD)
        return


def a_cell(file: Path, draw: random.Random) -> None:
    lines = [line.split(",") for line in file.read_text().splitlines()]
    line = draw.choice(lines)
    line[draw.randrange(len(line))] = str(draw.choice((*ODD, "1" * 400, "-0", "1_0", "٣", '"', "nan", "-inf", "1e500")))
    file.write_text("\n".join(map(",".join, lines)) + "\n", encoding="utf-8", errors="surrogatepass")


def a_link(file: Path, draw: random.Random) -> None:
    outside = file.parent
    while not (outside / "outside").is_dir():
        outside = outside.parent
    file.unlink()
    places = (
        outside / "outside/opt.yaml",
        outside / "outside/word.json",
        "/dev/zero",
        "/etc/hostname",
        outside,
        "loop",
        "gone",
    )
    file.symlink_to(draw.choice(places))
    if draw.random() < 0.1:
        file.unlink()
        file.symlink_to(file.name)


def no_file(file: Path, draw: random.Random) -> None:
    file.unlink()
    if draw.random() < 0.5:
        os.mkfifo(file)
    else:
        file.mkdir()


def mutations_of(name: str) -> list[Callable[[Path, random.Random], None]]:
    any_file = [bytes_changed, cut_off, something_else, a_link, no_file]
    if name.endswith((".json", ".yaml")):
        return [*any_file, *[a_value] * 9]
    return [*any_file, *[a_cell] * 5] if name.endswith(".csv") else any_file


# --- runs -----------------------------------------------------------------------------------


def fuzz(runs: Path, cases: range, capsys: pytest.CaptureFixture[str]) -> dict[int, int]:
    """Make a report of a mutated run for each case; returns how often each exit code came."""
    codes: dict[int, int] = {}
    pairs = [(kind, name) for kind, names in FILES.items() for name in names]
    for case in cases:
        draw = random.Random(case)
        kind, name = pairs[case % len(pairs)]
        mutate = draw.choice(mutations_of(name))
        folder = runs / f"case{case}"
        shutil.copytree(runs / kind, folder)
        mutate(folder / name, draw)
        label = f"case {case}: {mutate.__name__} of {kind}/{name}"
        try:
            code = main(["report", str(folder), "--device", "cpu"])
        except BaseException as error:
            raise AssertionError(f"{label}: {type(error).__name__}: {error}") from error
        printed = capsys.readouterr()
        assert code in (0, 2), label
        assert "Traceback" not in printed.err and ("error: " in printed.err or code == 0), label
        check_page(folder / "report.html", code, label)
        shutil.rmtree(folder)
        codes[code] = codes.get(code, 0) + 1
    return codes


def check_page(file: Path, code: int, label: str) -> None:
    assert file.exists() is (code == 0), label
    if code == 0:
        html = file.read_text(encoding="utf-8")
        found = Page(html)
        assert not found.unclosed and CANARY not in html, label
        assert html.count("<script") == 1 and not re.search(r"<svg[^>]*onload", html), label
        assert not re.search(r'style="[^"]*background:red', html), label


def test_twenty_damaged_runs(runs, capsys):
    codes = fuzz(runs, range(20), capsys)
    assert codes[0] >= 2 and codes[2] >= 4, codes


@pytest.mark.slow
def test_four_hundred_damaged_runs(runs, capsys):
    codes = fuzz(runs, range(40, 440), capsys)
    with capsys.disabled():
        print(f"\n400 damaged runs: {codes[0]} pages, {codes[2]} messages")
    assert codes[0] >= 50 and codes[2] >= 100, codes
