"""best.pt: what it contains, that it loads without running anything, and what is refused."""

from __future__ import annotations

import copy
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from yolov5_ema.classification import create_classifier
from yolov5_ema.classification.checkpoints import (
    FORMAT,
    is_classifier,
    load_classifier,
    load_plainly,
    save_classifier,
)
from yolov5_ema.classification.recipes import make_settings
from yolov5_ema.classification.training import best_record
from yolov5_ema.errors import CheckpointError, UserError

MODEL = "test_resnet"
NAMES = ["cat", "dog", "emu"]


def make_record(seed: int = 0) -> dict:
    options = {"groups": 4}
    settings = make_settings("synthetic", {"model": MODEL, "block": "EMA", "block_options": options, "eval_crop": 0.8})
    torch.manual_seed(seed)
    model = create_classifier(MODEL, "EMA", num_classes=3, block_options=options)
    figures = {"epoch": 4, "top1": 0.5, "top5": 1.0}
    return {**best_record(settings, NAMES), **figures, "state_dict": model.state_dict()}


@pytest.fixture(scope="module")
def record() -> dict:
    return make_record()


@pytest.fixture
def saved(record, tmp_path) -> Path:
    save_classifier(tmp_path / "best.pt", record)
    return tmp_path / "best.pt"


def test_the_format_is_plain(saved, record):
    found = torch.load(saved, weights_only=True)
    assert set(found) == {"format", "version", *record} and (found["format"], found["version"]) == (FORMAT, 1)
    assert (found["model"], found["block"], found["block_options"]) == (MODEL, "EMA", {"groups": 4})
    assert (found["num_classes"], found["names"], found["imgsz"]) == (3, NAMES, 32)
    assert found["mean"] == [0.5] * 3 and found["std"] == [0.25] * 3 and found["epoch"] == 4
    assert found["settings"]["eval_crop"] == 0.8 and type(found["settings"]) is dict


def test_a_loaded_classifier_computes_what_the_saved_one_did(saved, record):
    torch.manual_seed(1)
    model = create_classifier(MODEL, "EMA", num_classes=3, block_options={"groups": 4})
    model.load_state_dict(record["state_dict"])
    x = torch.rand(2, 3, 32, 32)
    classifier = load_classifier(saved)
    assert torch.equal(classifier.model(x), model.eval()(x)) and not classifier.model.training
    assert classifier.names == NAMES and classifier.imgsz == 32 and classifier.std == (0.25,) * 3
    assert "state_dict" not in classifier.record and classifier.record["top1"] == 0.5


def test_pictures_are_prepared_as_in_the_training(saved):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    prepared = load_classifier(saved).prepare(Image.fromarray(pixels).convert("RGBA"))
    # eval_crop 0.8: the shorter side becomes 40 pixels, of which 32 are kept
    expected = (pixels[4:36, 14:46].astype(np.float32) / 255 - 0.5) / 0.25
    assert prepared.shape == (1, 3, 32, 32)
    assert torch.allclose(prepared[0], torch.tensor(expected).permute(2, 0, 1), atol=1e-5)


def test_what_is_a_classifier(saved, tmp_path):
    assert is_classifier(saved)
    torch.save({"format": "other"}, tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "torn.pt").write_bytes(saved.read_bytes()[:1000])
    for name in ("other.pt", "list.pt", "text.pt", "torn.pt", "nowhere.pt"):
        assert not is_classifier(tmp_path / name)
    assert not is_classifier(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "x"}, "not a classifier"),
        ({"names": NAMES[:2]}, "3 classes, but 2 names of classes"),
        ({"names": [1, 2, 3]}, "3 names of classes"),
        ({"num_classes": "3"}, "'num_classes' is missing or has the wrong type"),
        ({"mean": [0.5, 0.5]}, "'mean' must be three numbers"),
        ({"std": [0.5, 0.0, 0.5]}, "'std' must be three numbers"),
        ({"std": [float("nan")] * 3}, "'std' must be three numbers"),
        ({"imgsz": 0}, "'imgsz'"),
        ({"imgsz": True}, "'imgsz'"),
        ({"model": "no_such_model"}, "cannot be built here"),
        ({"block": "NoBlock"}, "cannot be built here"),
        ({"block_options": {"groups": 8}}, "weights are not those of test_resnet with block EMA"),
        ({"state_dict": {}}, "weights are not those"),
        ({"state_dict": {"conv1.weight": 3}}, "weights are not those"),
        ({"settings": 3}, "'settings'"),
        ({"settings": {"eval_crop": 1e-9}}, "'eval_crop'"),
        ({"imgsz": 10**9}, "'imgsz'"),
    ],
)
def test_records_that_cannot_be_are_named(record, tmp_path, changes, words):
    torch.save({"format": FORMAT, "version": 1, **record, **changes}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError) as caught:
        load_classifier(tmp_path / "odd.pt")
    assert words in str(caught.value) and "odd.pt" in str(caught.value)


def test_files_that_are_none_are_named(saved, tmp_path):
    (tmp_path / "torn.pt").write_bytes(saved.read_bytes()[:-500])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("text" * 50)
    torch.save({"model": torch.zeros(2)}, tmp_path / "state.pt")
    for name, words in (
        ("torn.pt", "cut off"),
        ("empty.pt", "empty"),
        ("text.pt", "not a PyTorch checkpoint"),
        ("nowhere.pt", "not found"),
        ("state.pt", "is not a classifier .* It is a state dict"),
        ("", "is a folder"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_classifier(tmp_path / name)


class _Runs:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def _with_pickle(source: Path, target: Path, content: object) -> Path:
    """A torch file with another pickle in it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = pickle.dumps(content, 2) if entry.filename.endswith("/data.pkl") else old.read(entry)
            new.writestr(entry.filename, data)
    return target


@pytest.mark.parametrize("place", ["value", "setting", "bare"])
def test_code_in_a_checkpoint_is_not_run(saved, record, tmp_path, place):
    canary = tmp_path / "ran"
    content = {"format": FORMAT, "version": 1, **{k: v for k, v in record.items() if k != "state_dict"}}
    content["state_dict"] = {}
    if place == "value":
        content["model"] = _Runs(canary)
    else:
        content["settings"] = {"x": [_Runs(canary)]}
    file = tmp_path / "evil.pt"
    if place == "bare":
        file.write_bytes(pickle.dumps(content, 2) + bytes(100))
    else:
        _with_pickle(saved, file, content)
    for load in (load_classifier, load_plainly):
        with pytest.raises(CheckpointError, match=r"mkdir.*None of its code was run"):
            load(file)
    assert is_classifier(file) in (True, False) and not canary.exists()
    pickle.loads(pickle.dumps(_Runs(canary)))
    assert canary.exists()  # the payload does run if it is unpickled


def test_a_checkpoint_is_written_whole_or_not_at_all(saved, record, monkeypatch):
    before = saved.read_bytes()

    def fails(content, file):
        Path(file).write_bytes(b"half")
        raise RuntimeError("enforce fail: disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(UserError, match="disk full"):
        save_classifier(saved, copy.copy(record))
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]
