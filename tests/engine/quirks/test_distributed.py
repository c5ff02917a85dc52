"""Training in several processes: gloo on the CPU, one node and two nodes; the slow tests run the real torchrun."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cases import PLUGINS, ranks
from conftest import REPOSITORY, laid_aside, run_cli, small_cfg, write_tiny_set
from fresh_process import run_in_copy

from yolov5_ema.checkpoints.loading import load_checkpoint
from yolov5_ema.upstream.locate import engine_at

IMAGES = 16  # one batch: each epoch is a single step over all of them, however many processes share it
EPOCHS = 5


@pytest.fixture(scope="module")
def flags(tmp_path_factory, package_root) -> list[object]:
    """Without randomness in the images: both trainings see the same ones, without augmentation."""
    folder = tmp_path_factory.mktemp("processes")
    data = write_tiny_set(folder / "set", train=IMAGES, val=8)
    hyp = yaml.safe_load((package_root / "data/hyps/hyp.scratch.yaml").read_text())
    geometry = ["degrees", "translate", "scale", "shear", "perspective", "mosaic", "mixup", "copy_paste"]
    chance = dict.fromkeys(["hsv_h", "hsv_s", "hsv_v", "flipud", "fliplr", *geometry], 0.0)
    (folder / "hyp.yaml").write_text(yaml.safe_dump({**hyp, **chance, "warmup_epochs": 0}))
    (folder / "small.yaml").write_text(small_cfg())
    model = ["--cfg", folder / "small.yaml", "--weights", "", "--hyp", folder / "hyp.yaml", "--noautoanchor"]
    return ["train", "--data", data, *model, "--img", 64, "--batch", IMAGES, "--workers", 0]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(*args: object, cwd: Path, launcher: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
    """``torchrun -m yolov5_ema …``, with two processes unless the launcher's own flags say otherwise."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **env}
    how = launcher or ("--nproc_per_node", "2", "--master_port", str(free_port()))
    command = [sys.executable, "-m", "torch.distributed.run", *how, "-m", "yolov5_ema", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        out, err = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out + err


def column(run: Path, name: str) -> list[float]:
    with (run / "results.csv").open(encoding="utf-8") as stream:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(stream)]
    return [float(row[name]) for row in rows]


def spied(folder: Path, flags: list[object]) -> list[object]:
    shutil.copy(PLUGINS / "watch_ranks.py", folder)
    return [*flags, "--plugin", "watch_ranks"]


@pytest.fixture(scope="module")
def two(flags, tmp_path_factory) -> Path:
    """The folder of a training of two ranks, with batches of 8 each and synchronised batch normalisation."""
    cwd = tmp_path_factory.mktemp("two")
    line = [*spied(cwd, flags), "--epochs", EPOCHS, "--sync-bn", "--save-period", 1]
    env = {"YOLOV5_EMA_CPU_DDP": "1", "YOLOV5_EMA_SEED": "0"}
    done = run_in_copy(ranks.command_in_two_ranks, *line, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return cwd


@pytest.mark.slow
def test_two_ranks_of_8_follow_one_of_16(two, flags, tmp_path):
    # v6.0 seeds with 1 + RANK, and RANK is -1 if there is one process
    done = run_cli(*flags, "--epochs", EPOCHS, cwd=tmp_path, env={"YOLOV5_EMA_SEED": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    shared, alone = two / "runs/train/exp", tmp_path / "runs/train/exp"
    for name, noise in (("val/box_loss", 0.002), ("val/obj_loss", 0.01), ("val/cls_loss", 0.002)):
        ours, theirs = column(shared, name), column(alone, name)
        assert len(ours) == EPOCHS and ours[0] == theirs[0]  # the average is made after one step, with the same weights
        assert ours == pytest.approx(theirs, rel=noise)
    fall = [column(run, "val/box_loss") for run in (shared, alone)]
    assert [first - last for first, *_, last in fall] == pytest.approx([fall[1][0] - fall[1][-1]] * 2, rel=0.15)


def test_ranks_end_with_the_same_weights_and_rank_0_saves_them(two, package_root):
    ends = [torch.load(two / f"rank{rank}.pt") for rank in (0, 1)]
    assert ends[0]["kinds"] == ["BatchNorm2d", "DistributedDataParallel", "GroupNorm"]
    assert ends[0]["end"].keys() == ends[1]["end"].keys()
    for name, value in ends[0]["end"].items():
        torch.testing.assert_close(ends[1]["end"][name], value, rtol=0, atol=0)
    assert [path.name for path in (two / "runs/train").iterdir()] == ["exp"]
    from yolov5_ema.engine import shim

    with shim.installed(package_root):
        last = load_checkpoint(
            two / f"runs/train/exp/weights/epoch{EPOCHS - 1}.pt", "cpu", engine=engine_at(package_root)
        )
    saved, average = last["model"].float().state_dict(), last["ema"].float().state_dict()
    for name, value in ends[0]["end"].items():
        torch.testing.assert_close(saved[name], value.half().float(), rtol=0, atol=0)
    steps = ends[0]["steps"]
    assert len(steps) == EPOCHS + 1 and last["updates"] == EPOCHS and not ends[1]["steps"]
    for name, start in steps[0].items():
        expected = start.double()
        for number, state in enumerate(steps[1:], start=1):
            decay = 0.9999 * (1 - torch.exp(torch.tensor(-number / 2000, dtype=torch.float64)))
            expected = decay * expected + (1 - decay) * state[name].double()
        torch.testing.assert_close(average[name].double(), expected, rtol=2e-3, atol=1e-6)  # half precision
    running = [name for name in steps[0] if name.endswith("running_mean")]
    assert any((steps[0][name] != steps[-1][name]).any() for name in running)


def test_a_norm_over_two_ranks_is_one_over_the_whole_batch(tmp_path):
    done = run_in_copy(ranks.norms_of_half_batches, tmp_path / "store")
    assert done.returncode == 0, done.stderr


def test_without_gpus_and_unasked(flags, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there are GPUs")
    environment = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    refused = run_cli(*flags, cwd=tmp_path, env=environment)
    assert refused.returncode == 2
    assert "error: rank 1: torchrun started process 1" in refused.stderr
    assert "YOLOV5_EMA_CPU_DDP=1" in refused.stderr and "Traceback" not in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_nodes_and_resume(flags, tmp_path):
    """Two nodes of one process each, started like two machines; then a killed training is resumed."""
    shutil.copy(PLUGINS / "die_at_the_third_save.py", tmp_path)
    port = free_port()

    def both(*args: object) -> list[tuple[int, str]]:
        nodes = []
        for rank in range(2):
            where = ("--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1", "--master_addr")
            launcher = (*where, "127.0.0.1", "--master_port", str(port))
            nodes.append(torchrun(*args, cwd=tmp_path, launcher=launcher, YOLOV5_EMA_CPU_DDP="1"))
        return [finished(node) for node in nodes]

    killed = both(*flags, "--epochs", 4, "--plugin", "die_at_the_third_save")
    assert all(code != 0 for code, _ in killed), killed[0][1][-2000:]
    run = tmp_path / "runs/train/exp"
    assert column(run, "epoch") == [0, 1, 2]  # killed before last.pt of epoch 2
    resumed = both("train", "--resume")
    assert [code for code, _ in resumed] == [0, 0], resumed[0][1][-3000:]
    assert column(run, "epoch") == [0, 1, 2, 3]
    assert [path.name for path in (tmp_path / "runs/train").iterdir()] == ["exp"]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.1.9", "6.2.3", "7.0.14"])
def test_two_ranks_of_other_releases(version, flags, tmp_path):
    hyp = flags.index("--hyp")
    line = [*flags[:hyp], *flags[hyp + 2 :], "--epochs", 2, "--sync-bn", "--yolov5", laid_aside(version)]
    code, output = finished(torchrun(*line, cwd=tmp_path, YOLOV5_EMA_CPU_DDP="1"))
    assert code == 0, output[-3000:]
    assert output.count("Using SyncBatchNorm()") >= 1
    assert [path.name for path in (tmp_path / "runs/train").iterdir()] == ["exp"]
    assert (tmp_path / "runs/train/exp/weights/best.pt").is_file()
