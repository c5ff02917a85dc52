"""The evaluation that is kept for the page: figures with a closed form, sample images, and when it is repeated."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.records import Predictions
from yolov5_ema.evaluation.sources import dataset_truths
from yolov5_ema.files import write_whole
from yolov5_ema.reporting import pictures
from yolov5_ema.reporting.measuring import as_json, data_of, kept, kept_file, measure, settings_of
from yolov5_ema.reporting.runs import DETECT, Run


@pytest.fixture
def evaluated(tiny_set, tmp_path):
    """Detections for the tiny set: all objects are found, but the last class is taken for the first."""
    dataset = load_dataset(tiny_set)
    truths = dataset_truths(dataset, "val", ["yolov5"])["yolov5"]
    found = {
        name: Predictions(
            truth.boxes,
            np.linspace(0.9, 0.5, len(truth.classes)),
            np.where(truth.classes == 2, 0, truth.classes),
        )
        for name, truth in truths.truths.items()
    }
    weights = tmp_path / "weights" / "best.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"1")
    settings = settings_of(weights, tiny_set, split="val", imgsz=96, samples=3, release="6.2")
    return measure(dataset, truths, found, release="6.2", settings=settings)


def test_figures_by_class(evaluated):
    assert (evaluated.images, evaluated.objects, evaluated.names) == (4, 12, ["disc", "box", "cross"])
    # all are right: AP50 is 0.995 by YOLOv5's rules, the line from (0, 1) over recall 1 to precision 0
    assert evaluated.per_class["box"]["AP50"] == pytest.approx(0.995, abs=1e-6)
    assert evaluated.per_class["cross"]["AP50"] == 0 and evaluated.per_class["box"]["labels"] == 4
    assert evaluated.metrics["mAP50"] == pytest.approx(sum(c["AP50"] for c in evaluated.per_class.values()) / 3)
    assert len(evaluated.curves["box"]) == 101 and evaluated.curves["box"][0] == 1.0
    assert evaluated.confusion == [[4, 0, 0, 0], [0, 4, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]]


def test_samples_are_evenly_spaced(evaluated):
    names = [Path(sample.image).stem for sample in evaluated.samples]
    assert names == ["val0", "val2", "val3"]  # the middles of three thirds of four
    assert [sample.objects for sample in evaluated.samples] == [3, 3, 3] == [s.detections for s in evaluated.samples]
    assert evaluated.samples[0].image == "images/val/val0.jpg"
    assert max(opened(pictures.uri_of(evaluated.samples[0].picture))[0].size) == 480


def run_in(folder: Path, **options: object) -> Run:
    return Run(folder.name, folder, DETECT, "m", options=options, weights=folder / "weights/best.pt")


def test_kept_until_something_changes(evaluated, tmp_path):
    run = run_in(tmp_path)
    write_whole(kept_file(run, "val"), as_json(evaluated))
    assert kept(run, "val", evaluated.settings) == evaluated
    assert kept(run, "val") == evaluated and kept(run, "test") is None
    assert kept(run, "val", {**evaluated.settings, "imgsz": 128}) is None
    os.utime(tmp_path / "weights/best.pt", (1, 1))
    assert kept(run, "val") is None
    kept_file(run, "val").write_text("{")
    with pytest.raises(UserError, match=r"report-val\.json is not JSON, or is cut off"):
        kept(run, "val", evaluated.settings)


def test_kept_for_a_folder_of_openvino(tmp_path):
    """Its size and time are those of the files in it; the evaluation is kept next to it."""
    model = tmp_path / "best_openvino_model"
    model.mkdir()
    for name, content in (("best.xml", b"12"), ("best.bin", b"345")):
        (model / name).write_bytes(content)
    os.utime(model / "best.xml", ns=(7, 7)), os.utime(model / "best.bin", ns=(9, 9))
    (tmp_path / "set.yaml").write_text("")
    settings = settings_of(model, tmp_path / "set.yaml", split="val", imgsz=96, samples=3, release="8.4")
    assert settings["weights"] == [5, 9]
    run = Run("x", tmp_path, DETECT, "m", weights=model, is_alone=True)
    assert kept_file(run, "val") == tmp_path / "best_openvino_model-report-val.json"


def test_settings_follow_the_data(tiny_set, tmp_path):
    weights, data = tmp_path / "best.pt", tmp_path / "set.yaml"
    weights.write_bytes(b"1")
    data.write_text("a: 1\n")
    flags = {"split": "val", "imgsz": 96, "samples": 3, "release": "6.0"}
    before = settings_of(weights, data, **flags)
    data.write_text("a: 2\n")
    assert settings_of(weights, data, **flags)["data"] != before["data"]


def test_a_relative_data_set_is_looked_for_above_the_run(tmp_path, monkeypatch):
    (tmp_path / "my.yaml").write_text("")
    folder = tmp_path / "runs/train/exp"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert data_of(run_in(folder, data="my.yaml")) == tmp_path / "my.yaml"
    with pytest.raises(UserError, match=r"the data set gone\.yaml does not exist; name it with --data"):
        data_of(run_in(folder, data="gone.yaml"))
    with pytest.raises(UserError, match="exp does not name the data YAML of its training; name one with --data"):
        data_of(run_in(folder))


# --- pictures -------------------------------------------------------------------------------


def drawn(file: Path, truth: list, found: list, names: list) -> str:
    return pictures.uri_of(pictures.draw_sample(file, truth, found, names))


def opened(uri: str) -> tuple[Image.Image, int]:
    head, _, content = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    raw = base64.b64decode(content)
    return Image.open(io.BytesIO(raw)), len(raw)


def test_boxes_are_where_they_belong(tmp_path):
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), np.full((100, 200, 3), 128, np.uint8))
    uri = drawn(file, [[0, 20, 40, 30, 40]], [[1, 120, 40, 40, 40, 0.9]], ["a", "b"])
    image = np.asarray(opened(uri)[0].convert("RGB")).astype(int)
    assert image.shape == (240, 480, 3)  # enlarged 2.4 times, to be visible
    colour = np.array([int(pictures.colour_of(1)[at : at + 2], 16) for at in (1, 3, 5)])
    rows, columns = np.nonzero((np.abs(image - colour) < 40).all(axis=2))
    assert (columns.min(), columns.max()) == (
        pytest.approx(120 * 2.4, abs=3),
        pytest.approx(160 * 2.4, abs=3),
    )
    assert rows.max() == pytest.approx(80 * 2.4, abs=3)
    light = np.nonzero((image > 215).all(axis=2) & (np.arange(480) < 240))
    assert light[1].min() == pytest.approx(20 * 2.4 - 2, abs=3) and light[1].max() == pytest.approx(50 * 2.4 + 2, abs=3)


def test_pictures_are_bounded(tmp_path):
    """Noise does not compress."""
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), noise)
    image, size = opened(drawn(tmp_path / "a.png", [], [], []))
    assert size <= pictures.MOST_BYTES and max(image.size) <= 640
    assert opened(pictures.uri_of(pictures.embedded_picture(tmp_path / "a.png")))[1] <= 4 * pictures.MOST_BYTES


def test_many_detections_odd_names_and_lost_images(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    found = [[0, at, at, 0, 0, 0.5] for at in range(40)]
    assert opened(drawn(tmp_path / "a.png", [], found, ["x"]))[1] > 0
    named = [[0, -5, -5, 90, 90, 0.5], [7, 1, 1, 3, 3, 0.4]]
    assert opened(drawn(tmp_path / "a.png", [], named, ["名前 $x$ <b>" * 9]))[1] > 0
    assert pictures.draw_sample(tmp_path / "gone.png", [], [], []) == ""
    assert pictures.embedded_picture(tmp_path / "gone.png") is None
