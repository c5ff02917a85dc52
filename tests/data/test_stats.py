"""Figures of a data set: counts, fractions at an image size, and the verdict on a stride-4 head."""

from __future__ import annotations

import json

import numpy as np
import pytest
from drone_set import jpeg
from PIL import Image

from yolov5_ema.cli.data.stats import COMMAND
from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.data.stats import SplitStats, split_stats, table, verdict
from yolov5_ema.data.stats_picture import save_picture
from yolov5_ema.errors import UserError


@pytest.fixture
def data(tmp_path):
    """Three images of 200 x 100 pixels with squares of 10, 10, 20 and 40 pixels; one without objects; one bad line."""
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind / "train").mkdir(parents=True)
    sides = {"a": [(0, 10), (2, 20)], "b": [(0, 10), (0, 40)], "c": []}
    for stem, boxes in sides.items():
        (tmp_path / "set/images/train" / f"{stem}.jpg").write_bytes(jpeg(200, 100))
        lines = [f"{cls} 0.5 0.5 {side / 200} {side / 100}\n" for cls, side in boxes]
        (tmp_path / "set/labels/train" / f"{stem}.txt").write_text("".join(lines))
    (tmp_path / "set/labels/train/c.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    file = tmp_path / "set.yaml"
    file.write_text(f"path: {tmp_path / 'set'}\ntrain: images/train\nval: images/train\nnc: 3\nnames: [x, y, z]\n")
    return file


def test_figures_by_hand(data):
    stats = split_stats(load_dataset(data), "train", 160)  # everything is scaled by 0.8
    assert (stats.images, stats.background, stats.boxes) == (3, 1, 4)
    assert sorted(stats.sizes.round(6)) == [8, 8, 16, 32]
    assert stats.class_counts.tolist() == [3, 0, 1]
    assert [problem.kind for problem in stats.problems] == ["line"]
    below = split_stats(load_dataset(data), "train", 159).as_dict()
    assert below["share_below"] == {"8": 0.5, "16": 0.75, "32": 1.0}
    assert below["boxes_per_image"] == {"median": 2.0, "max": 2} and below["left_out"] == {"line": 1}


def with_sizes(sizes):
    sizes = np.asarray(sizes, float)
    return SplitStats("train", 1, 0, np.array([len(sizes)]), sizes, np.array([len(sizes)]))


@pytest.mark.parametrize(
    ("tiny_of_100", "word"),
    [(0, "unlikely"), (9, "unlikely"), (10, "perhaps"), (29, "perhaps"), (30, "likely"), (100, "likely")],
)
def test_the_verdict_follows_its_rule(tiny_of_100, word):
    found = verdict(with_sizes([15.9] * tiny_of_100 + [16.0] * (100 - tiny_of_100)), 640)
    assert found.word == word
    assert f"{tiny_of_100:.1f}% of the boxes of train are below 16 pixels" in found.sentence
    assert "0.0% below 8" in found.sentence and "imgsz 640" in found.sentence


@pytest.mark.filterwarnings("error")
def test_no_boxes_no_verdict_and_no_warning(tmp_path):
    found = verdict(with_sizes([]), 640)
    assert found.word == "unlikely" and "no boxes" in found.sentence
    save_picture(tmp_path / "x.png", "x.yaml", ["x"], [with_sizes([])], 640, found.sentence)
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "row", ["0 120 90 24 18", "0 0.5 0.5 0.2 1.0025", "0 0.5 0.5 -0.1 0.1", "0 0.5 0.5 0.1", "\ufeff"]
)
def test_an_image_that_yolov5_leaves_out_does_not_count(data, tmp_path, row, monkeypatch, capsys):
    label = tmp_path / "set/labels/train/b.txt"
    label.write_text(row + label.read_text() if row == "\ufeff" else label.read_text() + row, encoding="utf-8")
    stats = split_stats(load_dataset(data), "train", 200)
    assert (stats.images, stats.background, stats.boxes) == (2, 1, 2)
    assert [problem.kind for problem in stats.problems] == ["image", "line"]
    line = 1 if row == "\ufeff" else 3
    assert f"YOLOv5 leaves it out because of its labels: {label}, line {line}: " in stats.problems[0].reason
    monkeypatch.chdir(tmp_path)
    assert COMMAND.main([str(data), "--no-picture"]) == 0
    assert f"{label}, line {line}" in capsys.readouterr().out


def test_a_box_among_polygons_is_named(data, tmp_path):
    label = tmp_path / "set/labels/train/b.txt"
    label.write_text("0 0.1 0.1 0.3 0.1 0.2 0.4\n1 0.5 0.5 0.1 0.1\n")
    stats = split_stats(load_dataset(data), "train", 200)
    assert [(problem.kind, "two points" in problem.reason) for problem in stats.problems] == [
        ("odd", True),
        ("line", False),
    ]
    # YOLOv5 takes 0.5 0.5 and 0.1 0.1 for the corners of a box of 80 x 40 pixels
    assert sorted(stats.sizes)[-1] == pytest.approx((80 * 40) ** 0.5, abs=1e-3)


def test_the_table(data):
    stats = split_stats(load_dataset(data), "train", 639)
    lines = [line.split() for line in table(("x", "y", "z"), [stats]).splitlines()]
    assert ["images", "3"] in lines and ["below", "32", "pixels", "50.0%"] in lines
    assert ["x", "3", "75.0%"] in lines and ["y", "0", "0.0%"] in lines


def test_the_command(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert COMMAND.main([str(data), "--imgsz", "159", "--json", "a/b.json"]) == 0
    text = capsys.readouterr().out
    assert "A stride-4 head (P2) is likely to pay" in text and "--head p2" in text and "yolov5x-ema-tph.yaml" in text
    assert "c.txt, line 1: class 7 is not in 0 to 2" in text
    with Image.open("runs/data/stats/set.png") as picture:
        assert picture.width > 1000 and picture.height > 500
        assert len(set(picture.convert("RGB").resize((80, 40)).getdata())) > 20
    content = json.loads((tmp_path / "a/b.json").read_text())
    assert content["imgsz"] == 159 and content["names"] == ["x", "y", "z"]
    assert content["stride4"]["verdict"] == "likely" and set(content["splits"]) == {"train", "val"}
    assert COMMAND.main([str(data), "--split", "val", "--picture", "x.svg"]) == 0
    assert "</svg>" in (tmp_path / "x.svg").read_text() and "unlikely" in capsys.readouterr().out
    assert COMMAND.main([str(data), "--no-picture", "--imgsz", "400"]) == 0
    assert "drawn" not in capsys.readouterr().out


def test_json_on_standard_output(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert COMMAND.main([str(data), "--imgsz", "159", "--json", "b.json", "--no-picture"]) == 0
    kept = json.loads((tmp_path / "b.json").read_text())
    capsys.readouterr()
    # the word after --json is a file to write only if the data set is given too
    for line in ([str(data), "--imgsz", "159", "--json"], ["--imgsz", "159", "--json", str(data)]):
        assert COMMAND.main([*line, "-o", "x.png"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out) == kept and "x.png drawn" in err
    assert data.is_file() and data.read_text().startswith(("path", "train", "nc", "names"))
    with pytest.raises(UserError, match="name a data YAML"):
        COMMAND.main(["--json"])


def test_mistakes(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [
        ([str(data), "--imgsz", "0"], "--imgsz must be at least 1"),
        ([str(data), "--split", "test"], "the key 'test' is missing"),
        ([str(data), "--picture", "x.doc"], "its suffix must be one of"),
        (["nowhere.yaml"], "nowhere.yaml: no such data YAML"),
        ([str(data), "--picture", "set.yaml/x.png"], "cannot be written"),
        ([str(data), "--no-picture", "--json", "set.yaml/x.json"], "cannot be written"),
    ]
    for argv, words in cases:
        with pytest.raises(UserError, match=words):
            COMMAND.main(argv)
    for image in (tmp_path / "set/images/train").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the images of train can be used"):
        COMMAND.main([str(data)])
    assert not (tmp_path / "runs").exists()
