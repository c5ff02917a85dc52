"""The main tasks on real images, through the command line as a user types it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from cases import PLUGINS
from conftest import run_cli, small_cfg

import yolov5_ema
from yolov5_ema.cli.main import main
from yolov5_ema.upstream.locate import engine_at


def test_training_leaves_a_checkpoint_pictures_and_no_warnings_of_ours(trained):
    run = trained.parent.parent
    assert {"results.csv", "results.png", "opt.yaml", "labels.jpg", "train_batch0.jpg"} <= {
        p.name for p in run.iterdir()
    }
    rows = (run / "results.csv").read_text().splitlines()
    assert len(rows) == 3 and "metrics/mAP_0.5" in rows[0]
    mosaic = cv2.imread(str(run / "train_batch0.jpg"))
    assert mosaic.std() > 20  # a picture, not a blank


def test_val(trained, tiny_set, tmp_path):
    done = run_cli(
        *("val", "--data", tiny_set, "--weights", trained, "--img", 64, "--batch", 4),
        *("--save-txt", "--save-conf", "--save-json", "--conf-thres", 1e-9),
        cwd=tmp_path,
        are_drawn=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^ +all +4 +\d+ ", done.stdout + done.stderr, re.MULTILINE), done.stdout
    run = tmp_path / "runs/val/exp"
    predictions = json.loads((run / "best_predictions.json").read_text())
    assert {row["image_id"] for row in predictions} == {f"val{i}" for i in range(4)}
    assert all(0 <= row["category_id"] < 3 for row in predictions)
    labels = cv2.imread(str(run / "val_batch0_labels.jpg"))
    assert labels is not None and 20 < labels.mean() < 235  # neither empty nor overexposed


def test_detect_images_glob_and_video(trained, tiny_set, tmp_path):
    images = sorted((tiny_set.parent / "images/test").glob("*.jpg"))
    video = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (96, 96))
    for image in images:
        video.write(cv2.imread(str(image)))
    video.release()
    flags = (
        "--weights",
        trained,
        "--img",
        64,
        "--conf-thres",
        1e-6,
        "--save-txt",
        "--save-crop",
        "--max-det",
        5,
    )
    (tmp_path / "mixed").mkdir()
    (tmp_path / "clip.mp4").rename(tmp_path / "mixed/clip.mp4")
    cv2.imwrite(str(tmp_path / "mixed/one.png"), cv2.imread(str(images[0])))
    done = run_cli("detect", "--source", "mixed", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs/detect/exp"
    assert (run / "one.png").is_file() and (run / "clip.mp4").stat().st_size > 1000
    frames = cv2.VideoCapture(str(run / "clip.mp4"))
    assert int(frames.get(cv2.CAP_PROP_FRAME_COUNT)) == len(images)
    assert len((run / "labels/one.txt").read_text().splitlines()) == 5
    assert list((run / "crops").rglob("*.jpg"))
    drawn, plain = cv2.imread(str(run / "one.png")), cv2.imread(str(images[0]))
    assert drawn.shape == plain.shape and (drawn != plain).any()


def test_export_and_onnxruntime_agree_with_the_checkpoint(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    import torch

    weights = tmp_path / "best.pt"
    weights.write_bytes(trained.read_bytes())
    done = run_cli(
        *("export", "--weights", weights, "--img", 64, "--include", "torchscript", "onnx", "--opset", 12),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    image = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "best.onnx"), providers=["CPUExecutionProvider"])
    from_onnx = session.run(None, {"images": image})[0]
    script = next(tmp_path.glob("best.torchscript*"))
    from_script = torch.jit.load(str(script))(torch.from_numpy(image))[0].numpy()
    with yolov5_ema.installed() as engine:
        from yolov5.models.experimental import attempt_load

        assert engine
        model = attempt_load(str(weights))
        expected = model(torch.from_numpy(image))[0].detach().numpy()
    assert expected.shape == (1, 3 * (8 * 8 + 4 * 4 + 2 * 2), 8)
    np.testing.assert_allclose(from_onnx, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(from_script, expected, rtol=1e-3, atol=1e-3)


def test_load_gives_a_model_to_call_on_images(trained, tiny_set):
    image = tiny_set.parent / "images/test/test0.jpg"
    try:
        model = yolov5_ema.load(trained, device="cpu")
        model.conf = 1e-6
        results = model([str(image), np.zeros((50, 70, 3), np.uint8)], size=64)
    finally:
        yolov5_ema.uninstall()
    assert len(results) == 2 and results.xyxy[0].shape[1] == 6
    names = model.names.values() if isinstance(model.names, dict) else model.names
    assert list(names) == ["disc", "box", "cross"]
    assert set(results.pandas().xyxy[0].columns) >= {"xmin", "confidence", "name"}


def test_a_clone_is_used_when_standing_in_it_or_when_named(clone, trained, tiny_set, tmp_path):
    flags = ("--weights", trained, "--source", tiny_set.parent / "images/test", "--img", 64)
    inside = run_cli("detect", *flags, "--project", tmp_path / "a", cwd=clone)
    named = run_cli("detect", *flags, "--project", tmp_path / "b", "--yolov5", clone, cwd=tmp_path)
    for done, folder in ((inside, "a"), (named, "b")):
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(list((tmp_path / folder / "exp").glob("*.jpg"))) == 4


def test_a_block_of_the_users_own(tiny_set, tmp_path):
    shutil.copy(PLUGINS / "my_block.py", tmp_path)
    made = run_cli(
        *(
            "cfg",
            "--plugin",
            "my_block",
            "--size",
            "n",
            "--block",
            "Scale",
            "--option",
            "factor=0.25",
            "-o",
            "mine.yaml",
        ),
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    info = run_cli("info", "mine.yaml", "--plugin", "my_block", "--nc", 3, "--json", cwd=tmp_path)
    found = json.loads(info.stdout)
    rows = [row for row in found["rows"] if row["module"] == "Scale"]
    assert [row["parameters"] for row in rows] == [2 * 128, 2 * 256]
    assert found["parameters"] == 1_767_976 + 2 * 128 + 2 * 256
    (tmp_path / "small.yaml").write_text(small_cfg("Scale, [0.25]"))
    flags = ("--data", tiny_set, "--cfg", "small.yaml", "--weights", "", "--img", 64, "--batch", 4, "--epochs", 1)
    trained = run_cli("train", "--plugin", "my_block", *flags, "--workers", 0, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr[-3000:]
    weights = "runs/train/exp/weights/best.pt"
    source = tiny_set.parent / "images/test/test0.jpg"
    without = run_cli("detect", "--weights", weights, "--source", source, "--img", 64, cwd=tmp_path)
    assert without.returncode == 2 and "my_block.Scale" in without.stderr and "--plugin" in without.stderr
    with_it = run_cli(
        *("detect", "--weights", weights, "--source", source, "--img", 64, "--plugin", "my_block"),
        cwd=tmp_path,
    )
    assert with_it.returncode == 0, with_it.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_spawned_workers(tiny_set, tmp_path, method):
    """Label scan and dataloader in worker processes that are started from scratch."""
    shutil.copy(PLUGINS / "train_with_workers.py", tmp_path)
    from yolov5_ema.resources import models_dir

    flags = ("--data", tiny_set, "--cfg", models_dir() / "yolov5n-ema.yaml", "--weights", "", "--img", 64)
    more = ("--batch", 4, "--epochs", 1, "--workers", 1)
    done = run_cli(
        *("run", "train_with_workers.py", *flags, *more), cwd=tmp_path, env={"START_METHOD": method}, warm=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs/train/exp/weights/best.pt").is_file()


def test_info_counts_what_the_blocks_do(own_folder, capsys):
    def info(cfg):
        assert main(["info", cfg, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    plain, ema = info("yolov5s.yaml"), info("yolov5s-ema.yaml")
    assert plain["parameters"] == 7_235_389 and ema["parameters"] == 7_238_685
    # for each block: conv3x3 on the k channels of every group, conv1x1 on H + W positions, the two weighted sums
    expected = 0
    for channels, side in ((256, 40), (512, 20)):
        groups, k, area = 32, channels // 32, side * side
        expected += 2 * groups * (9 * k * k * area + k * k * 2 * side + 2 * k * area)
    assert ema["flops"] - plain["flops"] == expected


def test_help_is_yolov5s_with_our_flags(tmp_path):
    help_text = run_cli("train", "--help", cwd=tmp_path).stdout
    assert "--multi-scale" in help_text and "--trust-checkpoint" in help_text


SLOW = {
    "weights-cache": ["--cache", "--weights", "WEIGHTS"],
    "rect-cache-disk": ["--rect", "--cache", "disk"],
    "multi-scale-adam-linear": [
        "--multi-scale",
        "--adam",
        "--linear-lr",
        "--label-smoothing",
        0.1,
        "--save-period",
        1,
    ],
    "image-weights-noval": ["--image-weights", "--noval", "--nosave"],
    "evolve": ["--evolve", 2],
    "freeze-quad-single": ["--freeze", 10, "--quad", "--single-cls", "--weights", "WEIGHTS"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_training_flags(name, trained, tiny_set, tmp_path, package_root):
    renamed = {"--adam": ("--optimizer", "Adam"), "--linear-lr": ("--cos-lr",)}  # in v6.1
    if engine_at(package_root).version.startswith("6.0"):
        renamed = {}
    given = [new for flag in SLOW[name] for new in renamed.get(flag, (flag,))]
    flags = [trained if flag == "WEIGHTS" else flag for flag in given]
    weights = [] if "--weights" in flags else ["--weights", ""]
    done = run_cli(
        *("train", "--data", tiny_set, "--cfg", "yolov5n-ema.yaml", "--img", 64, "--batch", 4, "--epochs", 2),
        *weights,
        *flags,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if name == "evolve":
        hyp = yaml.safe_load((tmp_path / "runs/evolve/exp/hyp_evolve.yaml").read_text())
        assert hyp["lr0"] > 0
        assert len((tmp_path / "runs/evolve/exp/evolve.csv").read_text().splitlines()) == 3
    else:
        assert (tmp_path / "runs/train/exp/weights/last.pt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["test", "speed", "study"])
def test_val_tasks(task, trained, tiny_set, tmp_path):
    done = run_cli(
        *("val", "--task", task, "--data", tiny_set, "--weights", trained, "--img", 64, "--batch", 4),
        *(["--augment", "--verbose"] if task == "test" else []),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if task == "study":
        study = np.loadtxt(tmp_path / f"study_tiny_{Path(trained).stem}.txt")
        assert study.shape == (11, 10)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--visualize", "--augment"])
def test_detect_flags(flag, trained, tiny_set, tmp_path):
    done = run_cli(
        *(
            "detect",
            "--weights",
            trained,
            "--source",
            f"{tiny_set.parent}/images/test/*.jpg",
            "--img",
            64,
            flag,
        ),
        *("--half", "--conf-thres", 1e-6, "--max-det", 3, "--classes", 0, 2, "--agnostic-nms", "--save-txt"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs/detect/exp"
    classes = {row.split()[0] for path in run.glob("labels/*.txt") for row in path.read_text().splitlines()}
    assert classes <= {"0", "2"} and len(list(run.glob("*.jpg"))) == 4
    assert bool(list(run.rglob("*EMA_features.png"))) == (flag == "--visualize")


@pytest.mark.slow
def test_onnx_through_yolov5s_own_detect(trained, tiny_set, tmp_path):
    pytest.importorskip("onnxruntime")
    weights = tmp_path / "best.pt"
    weights.write_bytes(trained.read_bytes())
    assert run_cli("export", "--weights", weights, "--img", 64, "--include", "onnx", cwd=tmp_path).returncode == 0
    flags = (
        "--source",
        tiny_set.parent / "images/test",
        "--img",
        64,
        "--save-txt",
        "--conf-thres",
        1e-6,
        "--max-det",
        3,
    )
    done = run_cli("detect", "--weights", tmp_path / "best.onnx", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "runs/detect/exp/labels").glob("*.txt"))) == 4


@pytest.mark.slow  # tests/engine/quirks/test_distributed.py trains with two processes
def test_every_ddp_rank_has_the_shim(tmp_path):
    shutil.copy(PLUGINS / "print_rank.py", tmp_path)
    from conftest import REPOSITORY

    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "CFG": str(REPOSITORY / "models/yolov5n-ema.yaml"),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "yolov5_ema", "run", "print_rank.py"],
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"rank 0 EMA", "rank 1 EMA"} <= set(done.stdout.splitlines())
