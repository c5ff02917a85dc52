"""``yolov5-ema predict``: the values of detect, each image exactly once, whichever process is killed."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from cases import PLUGINS
from cases.light_imports import runs
from conftest import REPOSITORY, laid_aside, run_cli
from fresh_process import run_fresh

import yolov5_ema
from yolov5_ema.cli.main import main
from yolov5_ema.detecting import parts as prediction_parts
from yolov5_ema.detecting import sources as prediction_sources
from yolov5_ema.detecting.outputs import image_id
from yolov5_ema.errors import UserError

FLAGS = ("--img", 64, "--conf-thres", 1e-6, "--max-det", 5)


@pytest.fixture(scope="module")
def folder(tiny_set, tmp_path_factory) -> Path:
    """Images of several shapes, one in a subfolder, and files that are not images."""
    root = tmp_path_factory.mktemp("source") / "images"
    (root / "deep" / "er").mkdir(parents=True)
    pixels = [cv2.imread(str(file)) for file in sorted((tiny_set.parent / "images/test").glob("*.jpg"))]
    cv2.imwrite(str(root / "a.jpg"), pixels[0])
    cv2.imwrite(str(root / "wide.png"), pixels[1][20:70])
    cv2.imwrite(str(root / "deep" / "high.bmp"), pixels[2][:, :41])
    cv2.imwrite(str(root / "deep" / "er" / "7.JPG"), cv2.resize(pixels[3], (150, 110)))
    (root / "notes.md").write_text("no image")
    return root


@pytest.fixture
def predict(trained, own_folder, capsys):
    """Run the command in this process; returns the exit code and what it printed."""

    def run(*argv: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["predict", "--weights", str(trained), *map(str, (*FLAGS, *argv))])
        said = capsys.readouterr()
        return code, said.out + said.err

    yield run
    yolov5_ema.uninstall()


def rows_of(file: Path | str) -> list[dict]:
    return pytest.importorskip("pyarrow.parquet").read_table(file).to_pylist()


def hidden(place: Path = Path()) -> list[str]:
    return [path.name for path in place.iterdir() if path.name.startswith(".")]


# --- values -----------------------------------------------------------------------------------


def test_rows_are_what_detect_finds(predict, folder, trained, own_folder):
    code, said = predict("--source", folder, "--batch", 1)
    assert code == 0 and "predictions.parquet: 4 images, 20 detections" in said, said
    rows = rows_of("predictions.parquet")
    names = ["a.jpg", "deep/er/7.JPG", "deep/high.bmp", "wide.png"]
    assert [row["image"] for row in rows] == [str(folder / name) for name in names]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    shapes = [(96, 96), (110, 150), (96, 41), (50, 96)]
    assert [(row["height"], row["width"]) for row in rows] == shapes
    _check_against_detect(rows, folder, trained, own_folder)


def _check_against_detect(rows: list[dict], folder: Path, weights: Path, cwd: Path, *common: object) -> None:
    flags = ("--weights", weights, "--source", f"{folder}/**/*.*", *FLAGS, *common)
    done = run_cli("detect", *flags, "--nosave", "--save-txt", "--save-conf", "--name", "all", cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    for row in rows:
        text = (cwd / "runs/detect/all/labels" / f"{Path(row['image']).stem}.txt").read_text()
        expected = np.array([line.split() for line in reversed(text.splitlines())], dtype=float)
        boxes = np.array(row["xyxy"])
        size = [row["width"], row["height"]] * 2
        xywh = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1) / size
        np.testing.assert_array_equal(row["class_id"], expected[:, 0])
        np.testing.assert_allclose(xywh, expected[:, 1:5], atol=1e-6)
        np.testing.assert_allclose(row["confidence"], expected[:, 5], rtol=1e-5)
        assert row["class_name"] == [("disc", "box", "cross")[number] for number in row["class_id"]]
        assert row["error"] is None


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.1.9", "6.2.3", "7.0.14"])
@pytest.mark.parametrize(
    "flags", [(), ("--augment", "--agnostic-nms"), ("--slice", 48)], ids=["plain", "augment", "slices"]
)
def test_other_releases_give_what_their_detect_finds(version, flags, folder, trained, tmp_path):
    common = ("--yolov5", laid_aside(version), *flags)
    given = ("--weights", trained, "--source", folder, *FLAGS, *common)
    done = run_cli("predict", *given, "--batch", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = rows_of(tmp_path / "predictions.parquet")
    # windows whose boxes are merged leave less than --max-det 5 in some images
    assert sum(len(row["xyxy"]) for row in rows) in (range(13, 21) if "--slice" in flags else [20])
    _check_against_detect(rows, folder, trained, tmp_path, *common)


def test_windows_are_those_of_detect(predict, folder, trained, own_folder):
    windows = ("--slice", 48, "--overlap", 0.25)
    code, said = predict("--source", folder, *windows, "--batch", 1)
    assert code == 0, said
    rows = rows_of("predictions.parquet")
    assert sum(len(row["xyxy"]) for row in rows) > 12
    _check_against_detect(rows, folder, trained, own_folder, *windows)
    settings = json.loads(
        pytest.importorskip("pyarrow.parquet").read_schema("predictions.parquet").metadata[b"yolov5_ema"]
    )
    assert (settings["slice"], settings["overlap"]) == (48, 0.25)
    predict("--source", folder, "--batch", 1, "-o", "whole.parquet")
    assert sum(row["xyxy"] != other["xyxy"] for row, other in zip(rows, rows_of("whole.parquet"))) > 1
    # no image is larger than a window
    predict("--source", folder, "--batch", 1, "--slice", "-o", "large.parquet")
    assert rows_of("large.parquet") == rows_of("whole.parquet")


@pytest.mark.slow
def test_windows_that_are_not_square_by_torchscript(trained, tiny_set, tmp_path):
    """A traced model takes one shape, with detect too."""
    (tmp_path / "images").mkdir()
    pixels = cv2.imread(str(tiny_set.parent / "images/test/test0.jpg"))
    cv2.imwrite(str(tmp_path / "images/flat.png"), pixels[40:60])
    shutil.copy(trained, tmp_path / "best.pt")
    common = ("--yolov5", laid_aside("6.2.3"), "--img", 64)
    done = run_cli("export", "--weights", "best.pt", "--include", "torchscript", *common, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    flags = ("--weights", "best.torchscript", "--source", "images", "--slice", 48, "--conf-thres", 1e-4, *common)
    for command in (("predict", "-o", "found.json"), ("detect", "--nosave", "--save-txt", "--save-conf")):
        done = run_cli(*command, *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    found = [entry["score"] for entry in json.loads((tmp_path / "found.json").read_text())]
    labels = np.loadtxt(tmp_path / "runs/detect/exp/labels/flat.txt", ndmin=2)
    # detect gives the model eight windows at a time; noise decides for some of the least sure boxes
    assert len(found) == pytest.approx(len(labels), rel=0.02) and len(found) > 100
    np.testing.assert_allclose(found[:100], labels[::-1, 5][:100], atol=1e-4)


def test_an_interrupted_run_keeps_its_windows(predict, folder, monkeypatch):
    flags = ("--source", folder, "--chunk", 1, "-o", "out.parquet")
    predict(*flags[:4], "--slice", 48, "-o", "whole.parquet")
    with monkeypatch.context() as patched:
        _stop_after(patched, 2, KeyboardInterrupt())
        assert predict(*flags, "--slice", 48)[0] == 130
    for others, message in {
        (): "slice was 48, now not given; overlap was 0.2, now not given",
        ("--slice", 64): "slice was 48, now 64",
        ("--slice", 48, "--overlap", 0.5): "overlap was 0.2, now 0.5",
    }.items():
        code, said = predict(*flags, "--resume", *others)
        assert code == 2 and message in said, said
    assert predict(*flags, "--resume", "--slice", 48)[0] == 0
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes() and not hidden()


def test_windows_count_as_images_for_the_choice_of_a_runtime(predict, folder, monkeypatch):
    from yolov5_ema.detecting import choosing

    counts = []
    own = choosing.set_runtime
    monkeypatch.setattr(choosing, "set_runtime", lambda *args: counts.append(args[3]) or own(*args))
    for flags in ((), ("--slice", 48, "--overlap", 0), ("--slice",)):
        predict("--source", folder, *flags, "--force")
    # 96 x 96: 4 windows; 150 x 110: 12; 41 x 96: 2; 96 x 50: 4
    assert counts == [4, 4 + 22, 4]


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_windows_by_other_runtimes(predict, folder, monkeypatch, runtime):
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    cache = Path("cache").absolute()
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("YOLOV5_EMA_CACHE", str(cache))
    flags = ("--source", folder, "--slice", 48)
    predict(*flags, "-o", "torch.parquet")
    code, said = predict(*flags, "--runtime", runtime, "-o", "other.parquet")
    assert code == 0, said
    for row, torchs in zip(rows_of("other.parquet"), rows_of("torch.parquet"), strict=True):
        np.testing.assert_allclose(row["confidence"], torchs["confidence"], atol=1e-4)


def test_metadata_says_how_it_was_made(predict, folder, trained):
    import hashlib

    parquet = pytest.importorskip("pyarrow.parquet")
    predict("--source", folder / "a.jpg", "--classes", 2, 0, "--iou-thres", 0.3)
    settings = json.loads(parquet.read_schema("predictions.parquet").metadata[b"yolov5_ema"])
    assert settings["weights"] == "best.pt" and settings["classes"] == [0, 2] and settings["imgsz"] == [64, 64]
    assert settings["weights_sha256"] == hashlib.sha256(trained.read_bytes()).hexdigest()
    assert (settings["iou_thres"], settings["conf_thres"], settings["max_det"]) == (0.3, 1e-6, 5)
    assert settings["names"] == ["disc", "box", "cross"] and settings["yolov5_ema"] == yolov5_ema.__version__
    assert settings["runtime"] == "torch"
    assert {number for row in rows_of("predictions.parquet") for number in row["class_id"]} <= {0, 2}


def test_glob_list_and_chunks_give_the_same_rows(predict, folder, own_folder):
    predict("--source", folder, "-o", "folder.parquet")
    code, _ = predict("--source", f"{folder}/**/*.*", "-o", "glob.parquet", "--chunk", 1)
    assert code == 0 and Path("glob.parquet").read_bytes() == Path("folder.parquet").read_bytes()
    (own_folder / "x").mkdir()
    (own_folder / "x/near.jpg").write_bytes((folder / "a.jpg").read_bytes())
    lines = ["./near.jpg", "", str(folder / "wide.png"), "x/../x/near.jpg", str(folder / "a.jpg")]
    (own_folder / "x/list.txt").write_text("\n".join(lines))
    code, said = predict("--source", "x/list.txt", "-o", "list.parquet")
    assert code == 0 and "1 line left out, as repeated images" in said
    near, wide, a = rows_of("list.parquet")
    assert [near["image"], wide["image"]] == ["x/near.jpg", str(folder / "wide.png")]
    assert near["xyxy"] == a["xyxy"] and near["confidence"] == a["confidence"]
    by_name = {row["image"]: row for row in rows_of("folder.parquet")}
    for row in (wide, a):
        assert row == {**by_name[row["image"]], "index": row["index"]}
    assert not hidden()


def test_json_is_yolov5s_and_evaluate_reads_it(predict, tiny_set, capsys):
    images = tiny_set.parent / "images/val"
    predict("--source", images, "-o", "found.parquet")
    assert predict("--source", images, "-o", "found.json", "--chunk", 1)[0] == 0
    entries = json.loads(Path("found.json").read_text())
    expected = [
        {
            "image_id": Path(row["image"]).stem,
            "category_id": number,
            "bbox": [left, top, right - left, bottom - top],
            "score": round(score, 5),
        }
        for row in rows_of("found.parquet")
        for (left, top, right, bottom), score, number in zip(*(row[k] for k in ("xyxy", "confidence", "class_id")))
    ]
    assert entries == expected and len(entries) == 20
    assert main(["evaluate", "--data", str(tiny_set), "--predictions", "found.json", "--nosave"]) == 0
    assert "4 images, 12 objects, 20 detections" in capsys.readouterr().out


def test_json_needs_no_pyarrow_and_may_be_empty(predict, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert predict("--source", folder / "a.jpg", "--conf-thres", 1, "-o", "none.json")[0] == 0
    assert json.loads(Path("none.json").read_text()) == []
    code, said = predict("--source", folder / "a.jpg", "-o", "x.parquet")
    assert code == 2 and "yolov5-ema[ray]" in said and not Path("x.parquet").exists()


def test_bad_images_are_rows_with_an_error(predict, folder, own_folder):
    good = (folder / "a.jpg").read_bytes()
    (own_folder / "cut.jpg").write_bytes(good[: len(good) * 2 // 3])
    (own_folder / "empty.png").write_bytes(b"")
    (own_folder / "good.jpg").write_bytes(good)
    (own_folder / "text.jpg").write_text("no picture")
    cv2.imwrite("thin.png", np.zeros((1, 500, 3), np.uint8))
    names = ["cut.jpg", "empty.png", "gone.jpg", "good.jpg", "text.jpg", "thin.png"]
    (own_folder / "list.txt").write_text("\n".join(names))
    code, said = predict("--source", "list.txt")
    assert code == 1 and "5 of 6 images have a problem:" in said, said
    rows = {row["image"]: row for row in rows_of("predictions.parquet")}
    assert list(rows) == names
    errors = {
        "cut.jpg": "is cut off",
        "empty.png": "is empty",
        "gone.jpg": "No such file",
        "text.jpg": "is not an image",
        "thin.png": "is too narrow: 500 x 1 pixels",
    }
    for name, part in errors.items():
        assert part in rows[name]["error"] and f"  {name} {rows[name]['error']}" in said
        assert len(rows[name]["xyxy"]) == (5 if name == "cut.jpg" else 0)
    assert rows["good.jpg"]["error"] is None and len(rows["good.jpg"]["xyxy"]) == 5
    assert rows["gone.jpg"]["height"] is None and rows["thin.png"]["width"] == 500


# --- interruptions ----------------------------------------------------------------------------


def _stop_after(monkeypatch, parts: int, error: BaseException) -> None:
    """Let the run end with an error after this number of parts."""
    write = prediction_parts.Parts.write
    written = []

    def stopping(self, chunk, rows):
        if len(written) == parts:
            raise error
        written.append(chunk)
        write(self, chunk, rows)

    monkeypatch.setattr(prediction_parts.Parts, "write", stopping)


def test_an_interrupted_run_goes_on(predict, folder, monkeypatch):
    flags = ("--source", folder, "--chunk", 1, "-o", "out.parquet")
    predict("--source", folder, "-o", "whole.parquet", "--batch", 1)
    alive = set(threading.enumerate())
    with monkeypatch.context() as patched:
        _stop_after(patched, 2, KeyboardInterrupt())
        code, said = predict(*flags, "--batch", 1)
    assert set(threading.enumerate()) == alive
    assert code == 130 and "with --resume to continue" in said and not Path("out.parquet").exists()
    left = sorted(path.name for path in Path(".out.parquet.parts").iterdir())
    assert left == ["000000.jsonl", "000001.jsonl", "lock", "manifest.json"]

    for argv, message in {
        flags: "--resume continues it, --force",
        (*flags, "--resume", "--conf-thres", 0.5): "conf_thres was 1e-06, now 0.5",
        (*flags[:2], "--chunk", 3, *flags[4:], "--resume"): "chunk was 1, now 3",
        (*flags, "--resume", "--batch", 2): "batch was 1, now 2",
        ("--source", folder / "deep", *flags[2:], "--resume"): "images was 4, now 2",
    }.items():
        code, said = predict(*argv)
        assert code == 2 and message in said, said
    assert sorted(path.name for path in Path(".out.parquet.parts").iterdir()) == left

    Path(".out.parquet.parts/000001.jsonl").write_text("")  # as a power failure may leave it
    with monkeypatch.context() as patched:
        _stop_after(patched, 3, AssertionError("more than what lacked was done"))
        code, said = predict("--source", folder, "-o", "out.parquet", "--resume")  # with the old --chunk and --batch
    assert code == 0 and "1 of 4 images done already" in said, said
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes() and not hidden()

    code, said = predict(*flags, "--resume")
    assert code == 2 and "out.parquet is there already; --force replaces it" in said
    assert predict("--source", folder / "a.jpg", "-o", "out.parquet", "--force")[0] == 0
    assert len(rows_of("out.parquet")) == 1


def test_an_interrupted_run_keeps_its_runtime(predict, folder, monkeypatch):
    pytest.importorskip("onnxruntime")
    flags = ("--source", folder, "--chunk", 1, "-o", "out.parquet")
    predict("--source", folder, "-o", "torch.parquet")
    cache = Path("cache").absolute()
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("YOLOV5_EMA_CACHE", str(cache))
    with monkeypatch.context() as patched:
        _stop_after(patched, 1, KeyboardInterrupt())
        predict(*flags, "--runtime", "onnx")
    code, said = predict(*flags, "--resume", "--runtime", "torch")
    assert code == 2 and "runtime was onnx, now torch" in said
    code, said = predict(*flags, "--resume", "--batch", 2)
    assert code == 2 and "batch was not given, now 2" in said
    assert predict(*flags, "--resume")[0] == 0
    settings = pytest.importorskip("pyarrow.parquet").read_schema("out.parquet").metadata[b"yolov5_ema"]
    assert json.loads(settings)["runtime"] == "onnx"
    for row, torchs in zip(rows_of("out.parquet"), rows_of("torch.parquet")):
        np.testing.assert_allclose(row["confidence"], torchs["confidence"], atol=1e-4)
    # a run of before there was a choice is one with torch
    with monkeypatch.context() as patched:
        _stop_after(patched, 1, KeyboardInterrupt())
        predict(*flags, "--force")
    manifest = Path(".out.parquet.parts/manifest.json")
    content = json.loads(manifest.read_text())
    del content["settings"]["runtime"]
    manifest.write_text(json.dumps(content))
    code, said = predict(*flags, "--resume", "--runtime", "onnx")
    assert code == 2 and "runtime was torch, now onnx" in said
    assert predict(*flags, "--resume")[0] == 0
    assert Path("out.parquet").read_bytes() == Path("torch.parquet").read_bytes()


def test_a_full_disk_keeps_what_was_there(predict, folder, monkeypatch):
    Path("out.json").write_text("precious")
    replace = os.replace
    calls = []

    def full(source, target):
        calls.append(target)
        if len(calls) > 2:  # the manifest, and a part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    flags = ("--source", folder, "--chunk", 1, "-o", "out.json")
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", full)
        code, said = predict(*flags, "--force")
    assert code == 2 and "No space left" in said and "with --resume to continue" in said, said
    assert Path("out.json").read_text() == "precious"
    assert predict(*flags, "--resume")[0] == 0
    assert len(json.loads(Path("out.json").read_text())) == 20 and not hidden()


def test_two_at_once_are_refused(predict, folder, monkeypatch):
    pytest.importorskip("fcntl")
    _stop_after(monkeypatch, 1, KeyboardInterrupt())
    predict("--source", folder, "--chunk", 1, "-o", "out.json")
    import fcntl

    with open(".out.json.parts/lock") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        code, said = predict("--source", folder, "--chunk", 1, "-o", "out.json", "--resume")
    assert code == 2 and "another predict is writing out.json" in said


# --- mistakes ---------------------------------------------------------------------------------


MISTAKES = {
    "no source": (["--source", "nowhere"], "no such file or folder"),
    "a webcam": (["--source", "0"], "predict reads files; for a webcam or an address: yolov5-ema detect"),
    "an address": (["--source", "http://127.0.0.1:9/a.jpg"], "predict reads files; for a webcam or an address"),
    "no images": (["--source", "."], "no images there"),
    "glob of nothing": (["--source", "*.tiff"], "no images there"),
    "suffix": (["--source", "IMAGE", "-o", "out.csv"], "must be .parquet or .json"),
    "no folder": (["--source", "IMAGE", "-o", "no/out.json"], "there is no folder no"),
    "threshold": (["--source", "IMAGE", "--conf-thres", "2"], "--conf-thres must be 0 to 1"),
    "class": (
        ["--source", "IMAGE", "--classes", "3", "-o", "out.json"],
        "knows the classes disc, box, cross (0 to 2)",
    ),
    "size": (["--source", "IMAGE", "--img", "0"], "one or two numbers"),
    "workers": (["--source", "IMAGE", "--workers", "2"], "needs --engine ray"),
    "window": (["--source", "IMAGE", "--slice", "16"], "--slice 16: windows must be at least 32"),
    "overlap": (["--source", "IMAGE", "--overlap", "0.2"], "--overlap 0.2 needs --slice"),
    "device": (["--source", "IMAGE", "--engine", "ray", "--device", "1"], "Ray assigns the GPUs"),
    "runtime": (["--source", "IMAGE", "--runtime", "tensorrt", "-o", "out.json"], "TensorRT needs a GPU of NVIDIA"),
    "runtime with augment": (
        ["--source", "IMAGE", "--runtime", "onnx", "--augment", "-o", "out.json"],
        "--runtime onnx does not work with --augment: give --runtime torch",
    ),
    "half precision": (
        ["--source", "IMAGE", "--runtime", "onnx", "--half", "-o", "out.json"],
        "--half on a CPU needs --runtime openvino",
    ),
    "two precisions": (
        ["--source", "IMAGE", "--runtime", "openvino", "--int8", "--half", "-o", "out.json"],
        "--int8 and --half cannot be used together",
    ),
    "no weights": (["--source", "IMAGE", "--weights", "no.pt", "-o", "out.json"], "weights not found"),
    "no checkpoint": (
        ["--source", "IMAGE", "--weights", "IMAGE", "-o", "out.json"],
        "not a PyTorch checkpoint",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_said_and_leave_nothing(name, refused, trained, folder):
    argv, message = MISTAKES[name]
    image = str(folder / "a.jpg")
    try:
        said = refused("predict", "--weights", trained, *(image if part == "IMAGE" else part for part in argv))
    finally:
        yolov5_ema.uninstall()
    assert message in said, said


def test_hostile_weights_and_two_images_of_one_name(predict, folder, own_folder):
    import torch

    class Evil:
        def __reduce__(self):
            return os.system, ("touch ran",)

    torch.save({"model": Evil()}, "evil.pt")
    code, said = predict("--source", folder, "-o", "out.json", "--weights", "evil.pt")
    assert code == 2 and "holds what no YOLOv5 checkpoint needs" in said
    (own_folder / "7.png").write_bytes((folder / "wide.png").read_bytes())
    (own_folder / "007.png").write_bytes((folder / "wide.png").read_bytes())
    code, said = predict("--source", "*.png", "-o", "out.json")
    message = "007.png and 7.png are both called 7. COCO's JSON tells images apart by that image_id alone"
    assert code == 2 and message in said and ".parquet" in said
    assert sorted(path.name for path in own_folder.iterdir()) == ["007.png", "7.png", "evil.pt"]


def test_without_ray_it_says_what_to_install(predict, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, said = predict("--source", folder, "--engine", "ray", "-o", "out.json")
    assert code == 2 and "pip install 'yolov5-ema[ray]'" in said and not hidden()


def test_help_imports_no_torch():
    done = run_fresh(runs, "predict --help")
    assert done.returncode == 0 and "--ray-address" in done.stdout, done.stderr
    assert not {"torch", "ray", "pyarrow", "cv2"} & set(ast.literal_eval(done.stdout.splitlines()[-1]))


def test_names_and_chunks():
    assert [image_id(name) for name in ("a/0012.jpg", "b/x.y.png", "²/²")] == [12, "x.y", "²"]
    assert [prediction_parts.default_chunk(n) for n in (1, 65_536, 65_537, 1_000_000)] == [16, 16, 17, 245]
    manifest = prediction_parts.Manifest({}, images=35, images_sha256="", chunk=16)
    assert manifest.chunks == 3 and [list(manifest.span(2))[i] for i in (0, -1)] == [32, 34]


def test_a_list_names_images_only(own_folder):
    (own_folder / "list.txt").write_text("a.jpg\nmovie.mp4\n")
    with pytest.raises(UserError, match=r"list\.txt, line 2: movie\.mp4 is not an image"):
        prediction_sources.find_images("list.txt")


def test_videos_are_for_detect(own_folder):
    (own_folder / "films").mkdir()
    (own_folder / "films/a.mp4").touch()
    for source in ("films", "films/*.mp4", "films/a.mp4"):
        with pytest.raises(UserError, match=r"no images there.*; for videos: yolov5-ema detect$"):
            prediction_sources.find_images(source)
    (own_folder / "films/a.mp4").rename("films/a.txt2")
    with pytest.raises(UserError, match=r"webp$"):
        prediction_sources.find_images("films")


# --- Ray --------------------------------------------------------------------------------------


def test_shape_of_the_pool():
    from yolov5_ema.detecting.by_ray import Pool, _shape

    two = [{"CPU": 4.0}, {"CPU": 4.0}]
    assert _shape(Pool(), two, 100) == (8, 1, 0.0)
    assert _shape(Pool(), two, 5) == (5, 1, 0.0)
    assert _shape(Pool(workers=3), two, 100) == (3, 2, 0.0)  # 8 // 3 would fit too, but a node has room for 4 // 2
    assert _shape(Pool(workers=2), two, 100) == (2, 4, 0.0)
    assert _shape(Pool(threads=3), two, 100) == (2, 3, 0.0)
    gpus = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}]
    assert _shape(Pool(), gpus, 100) == (2, 1, 1.0)
    assert _shape(Pool(gpus_per_worker=0.25, workers=8), gpus, 100) == (8, 1, 0.25)
    assert _shape(Pool(cpu_only=True), gpus, 100) == (16, 1, 0.0)
    for pool, nodes in ((Pool(workers=9), two), (Pool(gpus_per_worker=1), two), (Pool(threads=5), two)):
        with pytest.raises(UserError, match=r"there is room for [08] workers"):
            _shape(pool, nodes, 100)


@pytest.mark.parametrize(
    ("address", "message"),
    {
        "127.0.0.1:1": "there is no Ray at 127.0.0.1:1",
        "somewhere": "must be HOST:PORT or auto",
        "ray://10.0.0.1:10001": "--ray-address auto",
    }.items(),
)
def test_addresses_where_there_is_no_ray(address, message, tmp_path):
    pytest.importorskip("ray.data")
    from yolov5_ema.detecting import by_ray as ray_engine
    from yolov5_ema.upstream.locate import Engine

    with (
        pytest.raises(UserError, match=re.escape(message)),
        ray_engine._connected(address, Engine(tmp_path, "clone", "7.0")),
    ):
        pass


def test_workers_get_what_the_user_told_the_command(own_folder, monkeypatch):
    from yolov5_ema.detecting.by_ray import worker_environment
    from yolov5_ema.upstream.locate import Engine

    for name, value in {"PLUGINS": "mine", "TRUST_CHECKPOINT": "1", "ACTIVE": "here"}.items():
        monkeypatch.setenv(f"YOLOV5_EMA_{name}", value)
    found = worker_environment(Engine(own_folder / "clone", "clone", "7.0"))
    assert found["YOLOV5_EMA_PLUGINS"] == "mine" and found["YOLOV5_EMA_TRUST_CHECKPOINT"] == "1"
    assert found["YOLOV5_EMA_YOLOV5"] == str(own_folder / "clone") and "YOLOV5_EMA_ACTIVE" not in found
    assert str(own_folder) in found["PYTHONPATH"].split(os.pathsep)


def test_results_of_a_node_without_the_images_are_refused(own_folder):
    from yolov5_ema.detecting.by_ray import _check_reachable

    (own_folder / "here.jpg").write_bytes(b"")
    gone = {"error": "cannot be read: No such file or directory"}
    _check_reachable([{"image": "gone.jpg", **gone}, {"image": "here.jpg", "error": "is empty"}])
    with pytest.raises(UserError, match=r"here\.jpg is here, but not where a worker runs"):
        _check_reachable([{"image": "here.jpg", **gone}])


@pytest.mark.slow
@pytest.mark.parametrize("windows", [(), ("--slice", 48)], ids=["whole", "slices"])
def test_ray_gives_the_same_file(trained, folder, own_folder, windows):
    pytest.importorskip("ray.data")
    argv = ("predict", "--weights", trained, "--source", os.path.relpath(folder), *FLAGS, "--chunk", 1, *windows)
    one = run_cli(*argv, "-o", "one.parquet", "--threads", 1, cwd=own_folder)
    many = run_cli(*argv, "-o", "many.parquet", "--engine", "ray", "--threads", 1, cwd=own_folder)
    assert one.returncode == many.returncode == 0, many.stderr[-3000:]
    assert rows_of("many.parquet") == rows_of("one.parquet") and len(rows_of("one.parquet")) == 4
    assert Path("many.parquet").read_bytes() == Path("one.parquet").read_bytes()
    assert "ray" not in many.stderr.lower(), many.stderr  # none of Ray's own messages
    assert not hidden()


@pytest.fixture(scope="module")
def crowd(trained, tmp_path_factory) -> Path:
    """A folder with 240 images, a plugin that makes reading slow, and the result of a single process."""
    root = tmp_path_factory.mktemp("crowd")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(240):
        side = int(rng.integers(40, 100))
        pixels = rng.integers(0, 256, (side, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "images" / f"{number:04}.png"), cv2.blur(pixels, (9, 9)))
    shutil.copy(PLUGINS / "read_slowly.py", root)
    done = run_cli(*_crowd(trained, "one.parquet"), "--threads", 1, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(rows_of(root / "one.parquet")) == 240
    return root


def _crowd(trained: Path, out: str, *argv: object) -> list[str]:
    flags = ("--source", "images", *FLAGS, "-o", out, "--chunk", 8)
    return [str(part) for part in ("predict", "--weights", trained, *flags, *argv)]


def _begin(trained: Path, root: Path, *argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "yolov5_ema", *_crowd(trained, "many.parquet", *argv)]
    flags = ("--plugin", "read_slowly", "--engine", "ray", "--threads", "1")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [*command, *flags],
        cwd=root,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _wait_for_parts(root: Path, count: int, process: subprocess.Popen[str]) -> int:
    for _ in range(1200):
        done = len(list(root.glob(".many.parquet.parts/*.jsonl")))
        if done >= count:
            return done
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("no parts came")


def _workers(driver: int):
    import psutil

    children = psutil.Process(driver).children(recursive=True)
    return [child for child in children if "_Worker" in " ".join(child.cmdline())]


def _is_same(root: Path) -> bool:
    same = (root / "many.parquet").read_bytes() == (root / "one.parquet").read_bytes()
    (root / "many.parquet").unlink()
    return same and not hidden(root)


def _all_gone(processes) -> bool:
    import psutil

    # after a driver was killed, two of Ray's agents look for its server for a minute before they end
    return not psutil.wait_procs(processes, timeout=120)[1]


@pytest.fixture
def descendants():
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray.data")
    return lambda pid: psutil.Process(pid).children(recursive=True)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(trained, crowd, descendants):
    run = _begin(trained, crowd)
    done = _wait_for_parts(crowd, 3, run)
    victims = _workers(run.pid)
    assert victims and done < 30
    victims[0].kill()
    _wait_for_parts(crowd, done + 6, run)
    _workers(run.pid)[-1].kill()
    processes = descendants(run.pid)
    said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert _is_same(crowd) and _all_gone(processes)


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["driver", "worker and driver"])
def test_a_killed_driver_is_resumed(trained, crowd, descendants, both):
    run = _begin(trained, crowd)
    done = _wait_for_parts(crowd, 4, run)
    processes = descendants(run.pid)
    if both:
        _workers(run.pid)[0].kill()
    run.kill()
    run.communicate()
    assert not (crowd / "many.parquet").exists() and done < 30
    kept = {path.name: path.stat().st_mtime_ns for path in crowd.glob(".many.parquet.parts/*.jsonl")}
    assert len(kept) >= 4

    again = _begin(trained, crowd, "--resume")
    _wait_for_parts(crowd, len(kept) + 1, again)
    now = {path.name: path.stat().st_mtime_ns for path in crowd.glob(".many.parquet.parts/*.jsonl")}
    assert kept.items() <= now.items(), "what was done was done again"
    said = again.communicate(timeout=300)
    assert again.returncode == 0 and f"{len(kept) * 8} of 240 images done already" in said[1], said
    assert _is_same(crowd)
    assert _all_gone(processes), "Ray goes on without its driver"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_stopped_driver_says_how_to_go_on(trained, crowd, descendants, number):
    run = _begin(trained, crowd)
    _wait_for_parts(crowd, 2, run)
    processes = descendants(run.pid)
    run.send_signal(number)
    said = run.communicate(timeout=60)
    assert run.returncode == 128 + number and said[1].strip().endswith("with --resume to continue"), said
    assert "Traceback" not in said[1] and _all_gone(processes)
    alone = run_cli(*_crowd(trained, "many.parquet", "--resume", "--threads", 1), cwd=crowd)
    assert alone.returncode == 0 and _is_same(crowd), alone.stderr[-3000:]


@pytest.mark.slow
def test_an_image_that_kills_its_workers_is_named(trained, crowd, descendants):
    poison = crowd / "images" / "0100-poison.png"
    poison.write_bytes((crowd / "images/0000.png").read_bytes())
    try:
        run = _begin(trained, crowd)
        said = run.communicate(timeout=300)
    finally:
        poison.unlink()
    assert run.returncode == 2 and "was killed 3 times" in said[1], said
    assert "the last time at images/0100-poison.png" in said[1] and "with --resume to continue" in said[1]
    import shutil

    shutil.rmtree(crowd / ".many.parquet.parts")
