"""From the benchmark's zip to the benchmark's numbers, and to the same numbers in every possible way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from drone_set import HEIGHT, VAL, WIDTH, random_annotations, write_split, zipped

from yolov5_ema.cli.main import main
from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.evaluation.sources import dataset_truths


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """A zip of a split with all categories, and detections near its objects in the benchmark's format."""
    folder = tmp_path_factory.mktemp("way")
    texts = random_annotations(8, seed=3)
    texts["noline"] = ""
    split = write_split(folder / "src" / VAL, texts)
    zipped(split, folder / f"{VAL}.zip", f"{VAL}/")
    rng = np.random.default_rng(0)
    (folder / "results").mkdir()
    for stem, text in texts.items():
        rows = [list(map(int, line.split(","))) for line in text.splitlines()] or [[5, 5, 9, 9, 1, 4, 0, 0]]
        found = []
        for left, top, width, height, _, category, *_ in rows * 2:
            # fractions, so that no overlap lies on a threshold, where the six decimals of the labels would decide
            x, y = np.clip([left, top] + rng.normal(0, 1, 2), 0, [WIDTH - 2, HEIGHT - 2]).round(2)
            label = category if 1 <= category <= 10 else int(rng.integers(1, 11))
            found.append((round(float(rng.random()), 5), f"{x},{y},{width},{height}", label))
        found.sort(reverse=True)
        lines = [f"{box},{score},{label},-1,-1\n" for score, box, label in found]
        (folder / f"results/{stem}.txt").write_text("".join(lines))
    assert main(["data", "visdrone", str(folder / f"{VAL}.zip"), "--out", str(folder / "set"), "--quiet"]) == 0
    return folder


def figures(folder: Path, out: str, *flags: object) -> dict:
    file = folder / out
    line = [
        "evaluate",
        *map(str, flags),
        "--predictions",
        str(folder / "results"),
        "--json",
        str(file),
        "--nosave",
    ]
    assert main(line) == 0
    return json.loads(file.read_text())


def flat(content: dict) -> dict[str, float]:
    return {
        f"{protocol}/{name}": value
        for protocol, section in content.items()
        for name, value in section.items()
        if isinstance(value, float)
    }


@pytest.fixture(scope="module")
def by_data_yaml(downloaded):
    return figures(downloaded, "yaml.json", "--data", downloaded / "set/visdrone.yaml")


def test_the_data_yaml_finds_what_is_ignored(by_data_yaml, downloaded):
    dataset = load_dataset(downloaded / "set/visdrone.yaml")
    truth = dataset_truths(dataset, "val", ["visdrone"])["visdrone"]
    assert any(len(entry.regions) for entry in truth.truths.values())
    assert any(entry.ignored.any() for entry in truth.truths.values())
    assert any((entry.classes == -1).any() for entry in truth.truths.values())
    assert 5 < by_data_yaml["visdrone"]["AP50"] < 100


def test_annotations_alone_give_the_same(by_data_yaml, downloaded):
    folder = downloaded / "set" / VAL / "annotations"
    alone = figures(downloaded, "alone.json", "--annotations", folder)
    assert flat(alone) == pytest.approx(flat(by_data_yaml), abs=1e-6)


def test_the_instances_json_gives_cocos_figures(by_data_yaml, downloaded):
    """The labels keep everything that COCO's protocol uses; VisDrone's is computed from the annotations."""
    file = downloaded / "set/annotations/instances_val.json"
    from_json = figures(downloaded, "json.json", "--annotations", file, "--protocol", "coco")
    expected = {name: value for name, value in flat(by_data_yaml).items() if name.startswith("coco/")}
    assert flat(from_json) == pytest.approx(expected, abs=1e-9)


def test_the_submitted_folder_scores_the_same(by_data_yaml, downloaded, monkeypatch):
    monkeypatch.chdir(downloaded)
    flags = ["--data", "set/visdrone.yaml", "--task", "val", "--predictions", "results", "-o", "submitted"]
    assert main(["submit", *flags]) == 0
    again = [
        "evaluate",
        "--data",
        "set/visdrone.yaml",
        "--predictions",
        "submitted",
        "--json",
        "again.json",
        "--nosave",
    ]
    assert main(again) == 0
    assert flat(json.loads(Path("again.json").read_text())) == pytest.approx(flat(by_data_yaml), abs=1e-6)
