"""Every available release, as the PyPI package and laid out as a clone: the same shim, the same commands."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import engine_releases as cases
from conftest import REPOSITORY, laid_aside, lay_out_as_clone, run_cli
from release_case import run_in_release

from yolov5_ema.engine.activation import survey
from yolov5_ema.upstream.locate import engine_at

RELEASES = ("6.0.7", "6.1.9", "6.2.3", "7.0.14")
LAYOUTS = ("package", "clone")
EVERY = [pytest.param(release, layout, id=f"{release}-{layout}") for release in RELEASES for layout in LAYOUTS]
# for slow tests: the first and the last release as packages, and one in between as a clone
SOME = [
    param
    if param.id in ("6.0.7-package", "6.2.3-clone", "7.0.14-package")
    else pytest.param(*param.values, id=param.id, marks=pytest.mark.slow)
    for param in EVERY
]
# how the files of each look: PyPI's releases are newer than the upstream tag that they are named after
LOOKS_LIKE = {"6.0.7": "6.0", "6.1.9": "6.2", "6.2.3": "7.0", "7.0.14": "7.0+"}


@pytest.fixture(scope="session")
def root_of(package_root, tmp_path_factory):
    """The folder of a release in a layout; it is made only once."""
    made: dict[tuple[str, str], Path] = {}

    def find(release: str, layout: str) -> Path:
        if (release, layout) not in made:
            is_installed = engine_at(package_root).version == release
            package = package_root if is_installed else laid_aside(release)
            if layout == "clone":
                package = lay_out_as_clone(package, tmp_path_factory.mktemp("clones") / release)
            made[release, layout] = package
        return made[release, layout]

    return find


@pytest.mark.parametrize(("release", "layout"), EVERY)
def test_located_as_what_it_is(release, layout, root_of):
    engine = engine_at(root_of(release, layout))
    assert (engine.kind, engine.version) == (layout, release if layout == "package" else LOOKS_LIKE[release])


# the quirks that are needed because of the release's own code, not because of today's libraries
OWN_QUIRKS = {
    "6.0.7": {"loss-clamp", "autoanchor-few-boxes", "stale-label-cache", "save-json", "torch-has-cuda"},
    "6.1.9": {"amp-check", "root-stays", "save-json"},
    "6.2.3": {"root-stays", "runs-here", "save-json"},
    "7.0.14": {"root-stays", "runs-here", "files-before-hub", "noval", "wandb-epochs"},
}


@pytest.mark.parametrize(("release", "layout"), EVERY)
def test_quirks_are_on_where_the_release_needs_them(release, layout, root_of):
    every = set().union(*OWN_QUIRKS.values())
    expected = OWN_QUIRKS[release] - ({"amp-check"} if layout == "clone" else set())
    assert {name for name, _, _ in survey(engine_at(root_of(release, layout)))} & every == expected


def test_hubconf_takes_weights_over_by_structure(root_of, tmp_path):
    assert _run(cases.hubconf_takes_weights_over, _given(root_of("7.0.14", "clone"), tmp_path)) == ""


def _given(root: Path, folder: Path, **more: object) -> dict[str, object]:
    return {"root": root, "folder": folder, "cfg": REPOSITORY / "models/yolov5n-ema.yaml", **more}


def _run(case: Callable[..., None], given: dict[str, object], **options: Any) -> str:
    # nothing is compiled in a folder that will be deleted
    return run_in_release(case, given, env={"YOLOV5_EMA_IMPLEMENTATION": "exact"}, **options)


@pytest.fixture(scope="session")
def checkpoint_of(root_of, tmp_path_factory):
    """A checkpoint that a release wrote, and next to it the model's output for an image."""
    made: dict[tuple[str, str], Path] = {}

    def find(release: str, layout: str) -> Path:
        if (release, layout) not in made:
            file = tmp_path_factory.mktemp("checkpoints") / f"{release}-{layout}"
            given = _given(root_of(release, layout), file.parent, file=file)
            assert _run(cases.writes_a_checkpoint, given) == ""
            made[release, layout] = file
        return made[release, layout]

    return find


def _copied(file: Path, folder: Path) -> Path:
    for ending in (".pt", ".expected"):
        (folder / f"other{ending}").write_bytes(file.with_name(file.name + ending).read_bytes())
    return folder


@pytest.mark.parametrize(("release", "layout"), SOME)
def test_builds_trains_and_reads_what_another_release_wrote(release, layout, root_of, checkpoint_of, tmp_path):
    writer = ("7.0.14", "package") if release.startswith("6.0") else ("6.0.7", "package")
    folder = _copied(checkpoint_of(*writer), tmp_path)
    assert _run(cases.builds_trains_reads_and_draws, _given(root_of(release, layout), folder)) == ""


def test_without_the_copies_boxes_cannot_be_drawn(root_of, checkpoint_of, tmp_path):
    folder = _copied(checkpoint_of("6.0.7", "package"), tmp_path)
    given = _given(root_of("6.0.7", "package"), folder)
    said = _run(cases.draws, given, without="drawn-on-copies")
    assert "readonly" in said or "AssertionError" in said  # before OpenCV 4.9 it draws into the user's own array


@pytest.mark.slow
@pytest.mark.parametrize(("release", "layout"), EVERY)
def test_reads_what_every_other_wrote(release, layout, root_of, checkpoint_of, tmp_path):
    for writer in [param.values for param in EVERY]:
        folder = _copied(checkpoint_of(*writer), tmp_path)
        assert _run(cases.builds_trains_and_reads, _given(root_of(release, layout), folder)) == "", writer


@pytest.mark.parametrize("release", ["6.2.3", "7.0.14"])
def test_check_of_mixed_precision_ends_at_once_without_network(release, root_of, tmp_path):
    assert _run(cases.checks_mixed_precision_offline, _given(root_of(release, "package"), tmp_path)) == ""


@pytest.mark.parametrize("layout", ["package", pytest.param("clone", marks=pytest.mark.slow)])
def test_segment_heads_take_the_blocks(layout, root_of, tmp_path):
    assert _run(cases.builds_and_reads_segment_heads, _given(root_of("7.0.14", layout), tmp_path)) == ""


@pytest.fixture(scope="session")
def newest(root_of, tmp_path_factory) -> Path:
    """A clone of 7.0.14 with the three differences of upstream's newest that quirks look at."""
    pytest.importorskip("ultralytics")
    root = lay_out_as_clone(root_of("7.0.14", "package"), tmp_path_factory.mktemp("newest") / "yolov5")
    loader = "import torch\nfrom ultralytics.utils.patches import torch_load\n"
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "torch.load(" in text:
            text = text.replace("torch.load(", "torch_load(")
            text = re.sub(r"^import torch\n", loader, text, count=1, flags=re.MULTILINE)
        if path.name in ("train.py", "val.py", "detect.py"):
            text = re.sub(r"default='runs/(\w+)'", r"default=ROOT / 'runs/\1'", text)
        path.write_text(text, encoding="utf-8")
    general = root / "utils/general.py"
    text = general.read_text(encoding="utf-8").replace("def check_requirements(", "def _no_longer_used(")
    checks = "import yaml\nfrom ultralytics.utils.checks import check_requirements\n"
    general.write_text(re.sub(r"^import yaml\n", checks, text, count=1, flags=re.MULTILINE), encoding="utf-8")
    return root


def test_a_clone_with_what_upstreams_newest_changed(newest, checkpoint_of, tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    assert engine_at(newest).version == "7.0+"
    assert {"safe-checkpoints", "no-pip-behind-the-back", "runs-here"} <= {
        name for name, _, _ in survey(engine_at(newest))
    }
    folder = _copied(checkpoint_of("6.0.7", "package"), tmp_path)
    assert _run(cases.works_like_the_newest, _given(newest, folder)) == ""


def _rows_of(results: Path) -> list[dict[str, str]]:
    with results.open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)  # with masks, lines end with a comma
    return [{key.strip(): value.strip() for key, value in zip(header, row)} for row in rows]


def _recipe(tiny_set: Path, name: str, epochs: int) -> list[object]:
    return [
        *("train", "--data", tiny_set, "--cfg", "yolov5n-ema.yaml", "--weights", "", "--img", 64),
        *("--batch", 4, "--epochs", epochs, "--workers", 0, "--name", name),
    ]


@pytest.mark.slow
def test_the_newest_package_trains_as_a_clone(root_of, tiny_set, tmp_path):
    root = root_of("7.0.14", "clone")
    done = run_cli("--yolov5", root, *_recipe(tiny_set, "tiny", 1), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "runs/train/tiny"
    (row,) = _rows_of(folder / "results.csv")
    assert float(row["train/box_loss"]) > 0 and float(row["train/obj_loss"]) > 0
    assert zipfile.is_zipfile(folder / "weights/best.pt") and not (root / "runs").exists()


class Workshop:
    """A release in a layout, a working folder, and the weights of a training."""

    def __init__(self, root: Path, folder: Path, tiny_set: Path) -> None:
        self.root, self.folder, self.tiny_set = root, folder, tiny_set
        self.best = folder / "runs/train/tiny/weights/best.pt"

    def run(self, *args: object) -> subprocess.CompletedProcess[str]:
        done = run_cli("--yolov5", self.root, *args, cwd=self.folder)
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    @property
    def images(self) -> Path:
        return self.tiny_set.parent / "images/test"


@pytest.fixture(scope="module", params=[param.values for param in EVERY], ids=[param.id for param in EVERY])
def workshop(request, root_of, tiny_set, tmp_path_factory) -> Workshop:
    release, layout = request.param
    place = Workshop(root_of(release, layout), tmp_path_factory.mktemp("workshop"), tiny_set)
    place.run(*_recipe(tiny_set, "tiny", 2))
    return place


@pytest.mark.slow
def test_trains(workshop):
    rows = _rows_of(workshop.folder / "runs/train/tiny/results.csv")
    assert [int(row["epoch"]) for row in rows] == [0, 1]
    assert all(float(row["train/obj_loss"]) > 0 for row in rows)


@pytest.mark.slow
def test_validates_and_evaluates(workshop):
    args = ("--data", workshop.tiny_set, "--weights", workshop.best, "--img", 64)
    done = workshop.run("val", *args)
    assert re.search(r"^ +all +4 ", done.stdout + done.stderr, re.MULTILINE)
    workshop.run("evaluate", *args)
    assert (workshop.folder / "runs/evaluate/exp").is_dir()
    workshop.run("val", *args, "--slice", 64)


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--slice", 64)], ids=["whole", "sliced"])
def test_detects(workshop, how):
    name = "sliced" if how else "whole"
    args = ("--weights", workshop.best, "--source", workshop.images, "--img", 64, "--name", name)
    workshop.run("detect", *args, "--conf-thres", 0.001, *how)
    assert len(list((workshop.folder / "runs/detect" / name).glob("*.jpg"))) == 4


@pytest.mark.slow
def test_exports_to_files_that_agree(workshop):
    import onnxruntime
    import torch

    workshop.run("export", "--weights", workshop.best, "--include", "torchscript", "onnx", "--img", 64)
    (script,) = workshop.best.parent.glob("best.torchscript*")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.jit.load(script).eval()(images)
    session = onnxruntime.InferenceSession(workshop.best.with_suffix(".onnx"))
    (found, *_) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    expected = expected[0] if isinstance(expected, (tuple, list)) else expected
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)
    args = ("--weights", workshop.best.with_suffix(".onnx"), "--source", workshop.images, "--img", 64)
    workshop.run("detect", *args, "--name", "onnx")
    assert len(list((workshop.folder / "runs/detect/onnx").glob("*.jpg"))) == 4


@pytest.mark.slow
def test_openvino_there_and_back(workshop):
    pytest.importorskip("openvino")
    if engine_at(workshop.root).version.startswith("6.0"):
        pytest.skip("v6.0 has no OpenVINO")
    args = ("--img", 64, "--include", "openvino")
    workshop.run("export", "--weights", workshop.best, *args)
    folder = workshop.best.with_name("best_openvino_model")
    assert {file.name for file in folder.iterdir()} == {"best.xml", "best.bin", "best.yaml"}
    shown = {
        "--conf-thres": 1e-4,
        "--img": 64,
        "--source": workshop.images,
        "--save-txt": "",
        "--save-conf": "",
    }
    flags = [part for flag in shown.items() for part in flag if part != ""]
    for weights, name in ((workshop.best, "torch"), (folder, "openvino")):
        workshop.run("detect", "--weights", weights, *flags, "--name", f"of-{name}")
    rows = [
        np.sort(np.loadtxt(workshop.folder / f"runs/detect/of-{name}/labels/test0.txt", ndmin=2)[:, 5])
        for name in ("torch", "openvino")
    ]
    assert len(rows[0]) == len(rows[1]) > 0
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-2)


@pytest.mark.slow
def test_resumes_what_was_cut_off(workshop):
    command = [sys.executable, "-m", "yolov5_ema", "--yolov5", workshop.root]
    recipe = _recipe(workshop.tiny_set, "cut", 60)
    process = subprocess.Popen([*map(str, command), *map(str, recipe)], cwd=workshop.folder, stderr=subprocess.PIPE)
    run = workshop.folder / "runs/train/cut"
    last = run / "weights/last.pt"
    deadline_s = time.monotonic() + 300
    while not zipfile.is_zipfile(last) if last.exists() else True:
        assert process.poll() is None and time.monotonic() < deadline_s, process.communicate()[1][-3000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(_rows_of(run / "results.csv"))
    options = run / "opt.yaml"
    options.write_text(options.read_text().replace("epochs: 60", f"epochs: {done + 2}"))
    workshop.run("train", "--resume", last)
    assert [int(row["epoch"]) for row in _rows_of(run / "results.csv")] == list(range(done + 2))


def write_masks(folder: Path) -> Path:
    """A data set of squares and discs with polygons around them."""
    import cv2

    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            image, rows = rng.integers(0, 90, (96, 96, 3), dtype=np.uint8), []
            for cls, corners in enumerate((4, 24)):
                angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, 3)
                center, radius = rng.uniform(30, 66, 2), rng.uniform(12, 24)
                points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (corners, 2)
                cv2.fillPoly(image, [points.round().astype(np.int32)], ((60, 200, 255), (255, 80, 60))[cls])
                rows.append(f"{cls} {' '.join(f'{value:.5f}' for value in (points / 96).ravel())}")
            cv2.imwrite(str(folder / "images" / split / f"{index}.jpg"), image)
            (folder / "labels" / split / f"{index}.txt").write_text("\n".join(rows) + "\n")
    file = folder / "masks.yaml"
    file.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnc: 2\nnames: [square, disc]\n")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("release", ["6.2.3", "7.0.14"])
def test_segmentation_from_cfg_to_pictures(release, layout, root_of, tmp_path):
    place = Workshop(root_of(release, layout), tmp_path, write_masks(tmp_path / "set"))
    base = place.root / "models/segment/yolov5s-seg.yaml"
    place.run("cfg", "--base", base, "--block", "EMA", "--at", "backbone", "-o", "yolov5s-seg-ema.yaml")
    data = ("--data", place.tiny_set, "--img", 96)
    place.run(
        *("run", "segment/train.py", *data, "--cfg", "yolov5s-seg-ema.yaml", "--weights", "", "--name", "t"),
        *("--batch", 4, "--epochs", 1, "--workers", 0),
    )
    best = tmp_path / "runs/train-seg/t/weights/best.pt"
    row, _ = _rows_of(best.parent.parent / "results.csv")  # the figures of the epoch, and those of best.pt
    assert float(row["train/seg_loss"]) > 0
    done = place.run("run", "segment/val.py", *data, "--weights", best)
    assert re.search(r"^ +all +4 +8 ", done.stdout + done.stderr, re.MULTILINE)
    source = ("--source", tmp_path / "set/images/val", "--img", 96, "--conf-thres", 0.001, "--max-det", 5)
    place.run("run", "segment/predict.py", "--weights", best, *source)
    assert len(list((tmp_path / "runs/predict-seg/exp").glob("*.jpg"))) == 4
    place.run("export", "--weights", best, "--include", "onnx", "--img", 96)
    assert best.with_suffix(".onnx").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("release", ["6.2.3", "7.0.14"])
def test_classification_takes_folders(release, root_of, tiny_set, tmp_path):
    for split in ("train", "val"):
        for cls, image in enumerate(sorted((tiny_set.parent / "images" / split).glob("*.jpg"))):
            folder = tmp_path / "set" / split / "ab"[cls % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / image.name).write_bytes(image.read_bytes())
    place = Workshop(root_of(release, "package"), tmp_path, tiny_set)
    place.run(
        *("run", "classify/train.py", "--model", "resnet18", "--pretrained", "False", "--img", 64),
        *("--data", tmp_path / "set", "--epochs", 1, "--batch-size", 4, "--workers", 0, "--name", "t"),
    )
    assert zipfile.is_zipfile(tmp_path / "runs/train-cls/t/weights/best.pt")
    args = ("run", "classify/train.py", "--model", "nowhere.pt", "--data", tmp_path / "set")
    done = run_cli("--yolov5", place.root, *args, cwd=tmp_path)
    assert done.returncode == 2 and "weights not found: nowhere.pt" in done.stderr
