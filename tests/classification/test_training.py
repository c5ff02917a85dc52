"""Training: compared with a loop, interrupted and resumed, in two processes, killed; and what stops it."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY, run_cli
from PIL import Image
from torch import nn

from yolov5_ema.classification import training
from yolov5_ema.classification.checkpoints import load_classifier, load_plainly
from yolov5_ema.classification.datasets import DataSet, DrawnPictures, Samples, Shares, open_data
from yolov5_ema.classification.recipes import Settings, make_settings
from yolov5_ema.classification.schedules import learning_rate
from yolov5_ema.classification.training import Machine, build_model, check, train
from yolov5_ema.classification.transforms import training_transform
from yolov5_ema.errors import CheckpointError, UserError

pytestmark = pytest.mark.usefixtures("messages")

CPU = Machine("cpu", 1)
HEADER = ["epoch", "train/loss", "val/loss", "val/top1", "val/top5", "lr"]


def tiny(**values: object) -> Settings:
    start = {"model": "test_resnet", "epochs": 3, "batch": 16, "data": "synthetic:classes=4,train=56,val=21"}
    return make_settings("synthetic", {**start, **values})


def run(settings: Settings, folder: Path, data: DataSet | None = None, last: Path | None = None) -> list[dict]:
    folder.mkdir(exist_ok=True)
    data = data or open_data(settings.data, settings.imgsz)
    return train(settings, data, build_model(settings, len(data.names)), CPU, folder, last)


def state_of(folder: Path) -> dict:
    return torch.load(folder / "weights" / "last.ckpt", weights_only=True)


def assert_same_end(one: Path, two: Path) -> None:
    """Bit by bit: the weights, the optimizer's momentum, the figures, and what is stored."""
    first, second = state_of(one), state_of(two)
    assert first["state_dict"].keys() == second["state_dict"].keys() and first["epoch"] == second["epoch"]
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    moments = [state["optimizer_states"][0]["state"] for state in (first, second)]
    for key, held in moments[0].items():
        assert torch.equal(held["momentum_buffer"], moments[1][key]["momentum_buffer"])
    assert (one / "results.csv").read_text() == (two / "results.csv").read_text()
    bests = [torch.load(folder / "weights" / "best.pt", weights_only=True) for folder in (one, two)]
    assert bests[0]["epoch"] == bests[1]["epoch"]
    for name, tensor in bests[0]["state_dict"].items():
        assert torch.equal(tensor, bests[1]["state_dict"][name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Settings, Path]:
    """A training without interruption, with averaged weights."""
    settings = tiny(average=0.5, label_smoothing=0.1, nesterov=True)
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(settings, folder)
    return settings, folder


def test_it_computes_what_a_loop_written_out_does(whole):
    settings, folder = whole
    data = open_data(settings.data, settings.imgsz)
    model = build_model(settings, 4).train()
    transform = training_transform("crop", 32, settings.mean, settings.std, padding=2, flip=0.5)
    samples = Samples(data.splits["train"], transform, 32, settings.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
    )
    average: dict[str, torch.Tensor] = {}
    losses, count = [], 0
    for epoch in range(3):
        shares = Shares(56, 16, settings.seed, train=True)
        shares.set_epoch(epoch)
        keys = list(shares)
        total = 0.0
        for batch in range(3):
            items = [samples[key] for key in keys[16 * batch : 16 * batch + 16]]
            images = torch.stack([item[0] for item in items])
            labels = torch.tensor([item[1] for item in items])
            optimizer.param_groups[0]["lr"] = learning_rate(settings, epoch, batch / 3)
            loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() / 3
            share = min(0.5, (1 + count) / (10 + count)) if count else 0.0
            for name, tensor in model.state_dict().items():
                average[name] = share * average[name] + (1 - share) * tensor if share else tensor.clone()
            count += 1
        losses.append(total)
    kept = state_of(folder)["state_dict"]
    for name, tensor in model.state_dict().items():
        assert torch.allclose(kept[f"model.{name}"].double(), tensor.double(), rtol=1e-4, atol=1e-6), name
        if tensor.is_floating_point():
            assert torch.allclose(kept[f"averaged.module.{name}"], average[name], rtol=1e-3, atol=1e-5), name
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [float(row["train/loss"]) for row in rows] == pytest.approx(losses, rel=1e-4)


def test_the_files_of_a_run(whole):
    settings, folder = whole
    with (folder / "results.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == HEADER and [row[0] for row in rows[1:]] == ["0", "1", "2"]
    assert float(rows[2][-1]) == pytest.approx(learning_rate(settings, 1, 2 / 3))
    tops = [float(row[3]) for row in rows[1:]]
    best = load_classifier(folder / "weights" / "best.pt")
    assert best.record["epoch"] == int(np.argmax(tops)) and best.record["top1"] == max(tops)
    assert best.names == ["disc", "square", "triangle", "plus"] and best.record["settings"] == settings.as_dict()
    assert list(folder.glob("events.out.tfevents.*")) and not list(folder.rglob("*.tmp"))
    # top-1 of the last epoch, computed here with the averaged weights
    model = build_model(settings, 4).eval()
    prefix = "averaged.module."
    held = state_of(folder)["state_dict"]
    model.load_state_dict({k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)})
    pictures = open_data(settings.data, 32).splits["val"]
    with torch.no_grad():
        batch = torch.cat([best.prepare(pictures.load(index)) for index in range(21)])
        hits = (model(batch).argmax(1) == torch.arange(21) % 4).sum().item()
    assert tops[-1] == hits / 21 and float(rows[-1][4]) == 1.0  # four classes: all are among the best five


class Interrupting(DrawnPictures):
    """Ctrl-C at an image in the middle of an epoch."""

    left = 56 + 25

    def load(self, index: int) -> Image.Image:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().load(index)


def test_interrupted_and_resumed_it_ends_the_same(whole, tmp_path):
    settings, folder = whole
    data = open_data(settings.data, 32)
    data.splits["train"] = Interrupting("train", 56, 4, 32)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "run", data)
    assert signal.getsignal(signal.SIGINT) is before
    last = tmp_path / "run" / "weights" / "last.ckpt"
    assert len((tmp_path / "run" / "results.csv").read_text().splitlines()) == 2
    torch.rand(100)
    run(settings, tmp_path / "run", last=last)
    assert_same_end(folder, tmp_path / "run")


def test_a_last_ckpt_of_another_training_is_refused(whole, tmp_path):
    settings, folder = whole
    last = folder / "weights" / "last.ckpt"
    for changed, words in (
        (tiny(average=0.5, label_smoothing=0.1, nesterov=True, lr=0.3), "other settings than args.yaml: lr"),
        (tiny(average=0.5, label_smoothing=0.1, nesterov=True, model="test_byobnet"), "model"),
    ):
        with pytest.raises(CheckpointError, match=words):
            run(changed, tmp_path / "run", last=last)
    wrong = load_plainly(last)
    name = next(iter(wrong["state_dict"]))
    wrong["state_dict"][name] = torch.zeros(3)
    torch.save(wrong, tmp_path / "wrong.ckpt")
    with pytest.raises(CheckpointError, match="other weights"):
        run(settings, tmp_path / "run", last=tmp_path / "wrong.ckpt")
    wrong = load_plainly(last)
    wrong["optimizer_states"][0]["param_groups"] = []
    torch.save(wrong, tmp_path / "wrong.ckpt")
    with pytest.raises(CheckpointError, match="optimizer cannot be restored"):
        run(settings, tmp_path / "run", last=tmp_path / "wrong.ckpt")
    del wrong["loops"]
    torch.save(wrong, tmp_path / "wrong.ckpt")
    with pytest.raises(CheckpointError, match="missing: loops"):
        run(settings, tmp_path / "run", last=tmp_path / "wrong.ckpt")
    torch.save({"callbacks": {}}, tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match=r"is not a last\.ckpt"):
        run(settings, tmp_path / "run", last=tmp_path / "none.ckpt")
    (tmp_path / "torn.ckpt").write_bytes(last.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut off"):
        run(settings, tmp_path / "run", last=tmp_path / "torn.ckpt")


class _Runs:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_code_in_a_last_ckpt_is_not_run(whole, tmp_path):
    settings, folder = whole
    content = load_plainly(folder / "weights" / "last.ckpt")
    content["hyper_parameters"] = _Runs(tmp_path / "ran")
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="mkdir"):
        run(settings, tmp_path / "run", last=tmp_path / "evil.ckpt")
    from yolov5_ema.classification.run_files import WholeFiles

    with pytest.raises(CheckpointError, match="mkdir"):
        WholeFiles().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


def test_pictures_that_cannot_be_read_are_named_and_left_out(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{number}.png")
    (tmp_path / "set" / "train" / "a" / "3.png").write_bytes(b"torn")
    (tmp_path / "set" / "val" / "b" / "1.png").write_bytes(b"")
    settings = tiny(data=str(tmp_path / "set"), epochs=2, batch=6)
    run(settings, tmp_path / "run")
    told = capsys.readouterr().err
    assert told.count("3.png is not an image") == 1 and told.count("1.png is empty") == 1
    rows = list(csv.DictReader((tmp_path / "run" / "results.csv").open()))
    assert float(rows[1]["val/top1"]) * 11 == pytest.approx(round(float(rows[1]["val/top1"]) * 11))


def test_a_loss_that_is_no_number_stops_it(tmp_path):
    with pytest.raises(UserError, match=r"loss became (nan|inf) in epoch 1.*lower --lr"):
        run(tiny(lr=1e38, warmup_epochs=0), tmp_path / "run")
    assert not (tmp_path / "run" / "weights" / "last.ckpt").exists()


def test_what_a_training_cannot_be_run_with():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    plain = nn.Conv2d(3, 4, 1)
    two = Machine("cpu", 2)
    assert check(tiny(batch=16), model, 100, CPU) == 16
    assert check(tiny(batch=128), model, 57, two) == 56
    assert check(tiny(batch=1), plain, 100, CPU) == 1
    for settings, net, images, machine, words in (
        (tiny(batch=1), model, 100, CPU, "too few for BatchNorm"),
        (tiny(batch=2), model, 100, two, "in each process"),
        (tiny(batch=15), model, 100, two, "cannot be shared among 2"),
        (tiny(batch=2), plain, 1, two, "1 training image is too few for 2 processes"),
        (tiny(precision="16-mixed"), plain, 9, CPU, "for GPUs"),
        (tiny(sync_bn=True), plain, 9, CPU, "for GPUs"),
    ):
        with pytest.raises(UserError, match=words):
            check(settings, net, images, machine)


def test_machines_are_found(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training.find_machine("", None, 1, 0).world == 1
    assert training.find_machine("cpu", 3, 2, 0) == Machine("cpu", 3, 2, 0)
    for device, devices, words in (
        ("0", None, "has 0 GPUs"),
        ("tpu", None, "cpu, or numbers"),
        ("cpu", 0, "1 or more"),
    ):
        with pytest.raises(UserError, match=words):
            training.find_machine(device, devices, 1, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert training.find_machine("", None, 1, 0) == Machine("gpu", [0], 1, 0)
    found = training.find_machine("1,0", None, 2, 0)
    assert (found.here, found.world, found.device, CPU.device) == (2, 4, "cuda:1", "cpu")
    with pytest.raises(UserError, match="2 GPUs"):
        training.find_machine("0,2", None, 1, 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert training.find_machine("cpu", None, 1, 0) == Machine("cpu", 2, 3, 0)


def test_who_writes_the_files(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert training.is_first_process()
    monkeypatch.setenv("LOCAL_RANK", "1")  # as Lightning starts its processes
    assert not training.is_first_process()
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("NODE_RANK", "1")
    assert not training.is_first_process()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert not training.is_first_process()
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert training.is_first_process()
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "0")
    assert training.is_first_process()
    monkeypatch.setenv("RANK", "2")
    assert not training.is_first_process()


def test_weight_decay_spares_biases_and_norms_where_the_recipe_says_so():
    from yolov5_ema.classification.lightning_module import make_optimizer

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    for spared, sizes in ((False, [(24, 0.25)]), (True, [(12, 0.25), (12, 0.0)])):
        optimizer = make_optimizer(model, tiny(weight_decay=0.25, decay_bias_norm=not spared))
        found = [(sum(p.numel() for p in g["params"]), g["weight_decay"]) for g in optimizer.param_groups]
        assert found == sizes and optimizer.defaults["momentum"] == 0.9
    assert type(make_optimizer(model, tiny(optimizer="adamw"))) is torch.optim.AdamW
    assert type(make_optimizer(model, tiny(optimizer="Adam"))) is torch.optim.Adam


def test_synchronised_batchnorm_keeps_the_activations():
    from timm import create_model

    torch.manual_seed(0)
    model = create_model("mobilenetv2_035", num_classes=3).eval()  # its BatchNorm applies them
    x = torch.rand(2, 3, 32, 32)
    before = model(x)
    names = set(model.state_dict())
    converted = training.synchronised(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    assert torch.allclose(converted(x), before) and set(converted.state_dict()) == names


@pytest.mark.slow
def test_it_begins_to_learn(tmp_path):
    settings = tiny(data="synthetic:train=3000,val=200", batch=64, augment="none", warmup_epochs=0)
    rows = run(settings, tmp_path / "run")
    losses = [row["train/loss"] for row in rows]
    assert losses[-1] < 0.6 * losses[0], losses
    # chance is 0.1, with a standard deviation of 0.02 on 200 images
    assert max(row["val/top1"] for row in rows) > 0.45, rows


# --- minutes -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_resnet_learns_the_drawn_set(tmp_path):
    start = time.process_time()
    rows = run(make_settings("synthetic", {}), tmp_path / "run")  # the recipe as shipped
    assert max(row["val/top1"] for row in rows) > 0.9, rows  # chance is 0.1
    assert rows[-1]["val/top5"] > 0.98
    print("CPU seconds:", time.process_time() - start)


TRAIN = ("classify", "train", "--device", "cpu", "--workers", 0)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_processes_compute_what_one_does(tmp_path, launcher):
    # without BatchNorm, whose statistics depend on each process's own images
    flags = ("--model", "test_efficientnet_ln", "--epochs", 2, "--batch", 32, "--lr", 0.02)
    flags += ("--data", "synthetic:train=100,val=51", "--average", 0.5, "--project", tmp_path)
    done = run_cli(*TRAIN, *flags, "--name", "one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if launcher == "lightning":
        done = run_cli(*TRAIN, *flags, "--name", "two", "--devices", 2, cwd=tmp_path)
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
        command += [str(random.randint(20000, 40000)), "-m", "yolov5_ema", *map(str, TRAIN), *map(str, flags)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--name", "two"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    one, two = (state_of(tmp_path / name)["state_dict"] for name in ("one", "two"))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=1e-4, atol=2e-6), name
    rows = [list(csv.DictReader((tmp_path / name / "results.csv").open())) for name in ("one", "two")]
    for first, second in zip(*rows):
        assert [float(first[key]) for key in HEADER] == pytest.approx([float(second[key]) for key in HEADER], rel=1e-4)
    start = build_model(make_settings("synthetic", {"model": "test_efficientnet_ln"}), 10).state_dict()
    moved = [float((one[f"model.{name}"] - tensor).abs().max()) for name, tensor in start.items()]
    assert max(moved) > 1e-2  # they did learn something


def _started(how: tuple, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "yolov5_ema", *map(str, TRAIN), *map(str, how)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _epochs_in(folder: Path) -> int:
    results = folder / "results.csv"
    return len(results.read_text().splitlines()) - 1 if results.exists() else 0


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_ends_the_same(tmp_path):
    flags = ("--model", "test_resnet", "--epochs", 14, "--batch", 16, "--average", 0.9)
    flags += ("--data", "synthetic:train=320,val=40", "--project", tmp_path)
    done = run_cli(*TRAIN, *flags, "--name", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed of the moments:", seed)
    rng = random.Random(seed)
    folder = tmp_path / "killed"
    kills = []
    for attempt in range(12):
        begun = folder.exists()
        how = ("--resume", folder / "weights" / "last.ckpt") if begun else (*flags, "--name", "killed")
        running = _started(how, tmp_path)
        # the first kill comes before an epoch is finished, the others at any point of a later epoch
        before = _epochs_in(folder)
        while running.poll() is None and (
            _epochs_in(folder) == before if attempt else not (folder / "args.yaml").exists()
        ):
            time.sleep(0.01)
        try:
            running.wait(rng.uniform(0.0, 1.5) if attempt < 10 else 300)
        except subprocess.TimeoutExpired:
            running.kill()
        _, told = running.communicate()
        if running.returncode == 0:
            break
        assert running.returncode == -signal.SIGKILL, told.decode()
        kills.append(_epochs_in(folder))
    assert running.returncode == 0 and len(kills) > 1, kills
    print("killed when so many epochs were finished:", kills)
    assert_same_end(tmp_path / "whole", folder)
    assert (tmp_path / "whole" / "metrics.json").read_text() == (folder / "metrics.json").read_text()
    assert yaml.safe_load((folder / "args.yaml").read_text())["model"] == "test_resnet"
    assert not list(folder.rglob("*.tmp"))
