"""What version 0.1.0 left before its modules were moved still loads and goes on.

``old_files/before_the_rooms.zip`` holds, made by that version with yolov5 6.0.7: a data set, two cfgs, a checkpoint, a
comparison of one seed, a YOLOv5 training that was killed after an epoch of three, one of a classifier after two, and a
prediction that was killed after two parts of three, with what the whole one gave.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_cli
from reference import LOOPS

from yolov5_ema.blocks import EMA
from yolov5_ema.checkpoints.loading import load_checkpoint

WEIGHTS = "runs/old/weights/best.pt"
PREDICT = ("predict", "--weights", WEIGHTS, "--source", "set/images", "-o", "found.json", "--imgsz", 64)
PREDICT += ("--conf-thres", "0.00001", "--max-det", 3, "--chunk", 3)
COMPARE = (
    "compare",
    "--data",
    "set/tiny.yaml",
    "--cfgs",
    "with.yaml",
    "without.yaml",
    "--epochs",
    1,
    "--img",
    64,
)
COMPARE += ("--batch", 4, "--workers", 0, "--latency-rounds", 0, "--project", "runs/compare", "--name", "old")


@pytest.fixture
def old(tmp_path) -> Path:
    """The folder in which that version was used, with the torch that is installed here."""
    with zipfile.ZipFile(Path(__file__).parent / "old_files/before_the_rooms.zip") as archive:
        archive.extractall(tmp_path)
    file = tmp_path / "runs/compare/old/recipe.json"
    recipe = json.loads(file.read_text())
    recipe["software"]["torch"] = torch.__version__  # a comparison continues only with the torch of its first runs
    file.write_text(json.dumps(recipe))
    return tmp_path


def _ended(done, code: int = 0) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def _same(found: list, expected: list) -> bool:
    by_place = [sorted(rows, key=lambda r: (r["image_id"], -r["score"])) for rows in (found, expected)]
    return len(found) == len(expected) and all(
        one["image_id"] == other["image_id"]
        and one["category_id"] == other["category_id"]
        and one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        and one["score"] == pytest.approx(other["score"], abs=1e-6)
        for one, other in zip(*by_place)
    )


def _with_release_of_then() -> None:
    if version("yolov5") != "6.0.7":
        pytest.skip("a run goes on only with the release that it was begun with")


def test_a_checkpoint_detects_what_it_did(old):
    _ended(run_cli(*PREDICT, "--force", cwd=old))
    assert _same(json.loads((old / "found.json").read_text()), json.loads((old / "whole.json").read_text()))
    assert "EMA" in _ended(run_cli("inspect", WEIGHTS, cwd=old))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_its_blocks_compute_the_published_function(old, engine):
    """They were made before the options norm_groups, residual and depthwise."""
    model = load_checkpoint(old / WEIGHTS, engine=engine)["model"].double()
    blocks = [module for module in model.modules() if type(module) is EMA]
    assert blocks
    for block in blocks:
        assert not vars(block).keys() & {"norm_groups", "residual", "depthwise"}
        x = torch.randn(2, block.channels, 3, 4, dtype=torch.float64)
        parameters = {name: value.numpy() for name, value in block.state_dict().items()}
        expected = LOOPS["EMA"](x.numpy(), parameters, False, groups=block.groups)
        np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.jit.script(block)(x), block(x))


def test_a_prediction_goes_on(old):
    _with_release_of_then()
    file = old / ".found.json.parts/manifest.json"
    manifest = json.loads(file.read_text())
    images = sorted(str(path.relative_to(old)) for path in (old / "set/images").rglob("*.jpg"))
    digest = hashlib.sha256()  # of the images' paths, which are others here
    for image in images:
        digest.update(json.dumps([image, str(old / image)]).encode())
    file.write_text(json.dumps({**manifest, "images_sha256": digest.hexdigest()}, indent=1) + "\n")
    said = _ended(run_cli(*PREDICT, "--resume", cwd=old))
    assert "6 of 8" in said
    assert _same(json.loads((old / "found.json").read_text()), json.loads((old / "whole.json").read_text()))
    assert not file.parent.exists()


def test_a_training_goes_on(old):
    _ended(run_cli("train", "--resume", "runs/killed/weights/last.pt", cwd=old))
    assert len((old / "runs/killed/results.csv").read_text().splitlines()) == 1 + 3


def test_a_comparison_is_reported(old):
    _with_release_of_then()
    before = json.loads((old / "runs/compare/old/comparison.json").read_text())
    _ended(run_cli(*COMPARE, "--seeds", 1, "--no-train", cwd=old))
    after = json.loads((old / "runs/compare/old/comparison.json").read_text())
    assert after["models"] == before["models"] and after["runs"] == before["runs"]


@pytest.mark.slow
def test_a_comparison_goes_on(old):
    _with_release_of_then()
    assert "2 of 4 runs are finished already" in _ended(run_cli(*COMPARE, "--seeds", 2, cwd=old))
    content = json.loads((old / "runs/compare/old/comparison.json").read_text())
    assert content["seeds"] == [0, 1] and all(run["status"] == "finished" for run in content["runs"])


def test_a_classifier_goes_on(old):
    run = old / "runs/classify/old"
    begun = (run / "results.csv").read_text()
    _ended(run_cli("classify", "train", "--resume", run / "weights/last.ckpt", cwd=old))
    ended = (run / "results.csv").read_text()
    assert ended.startswith(begun) and len(ended.splitlines()) == 1 + 3
    _ended(run_cli("classify", "val", "--weights", run / "weights/best.pt", cwd=old))
