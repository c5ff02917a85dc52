"""What YOLOv5's own train copies from --weights, with the shim installed."""

from __future__ import annotations

import importlib

import pytest
import torch
from conftest import run_cli

import yolov5_ema
from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.checkpoints.loading import load_checkpoint
from yolov5_ema.errors import ConfigError
from yolov5_ema.settings import VARIABLES

pytestmark = pytest.mark.usefixtures("messages")


@pytest.fixture(scope="module")
def script():
    with yolov5_ema.installed():
        yield importlib.import_module("yolov5.train")


def build(block, **options):
    from yolov5.models.yolo import Model

    torch.manual_seed(0)
    with quiet():
        return Model(build_cfg(size="n", block=block, **options))


def as_train_does(script, ckpt, model, names, exclude=("anchor",), resume=False):
    """The lines of YOLOv5's ``train`` that copy weights, with its variable names."""
    csd = ckpt["model"].float().state_dict()
    csd = script.intersect_dicts(csd, model.state_dict(), exclude=exclude)
    model.load_state_dict(csd, strict=False)
    return csd


@pytest.fixture
def checkpoint():
    return {"model": build("none", nc=2), "ema": None, "optimizer": None, "epoch": -1}


def test_rows_are_paired_by_structure(script, checkpoint, caplog):
    model = build("EMA", nc=2)
    with caplog.at_level("INFO"):
        taken = as_train_does(script, checkpoint, model, ["a", "b"])
    assert len(taken) == 349 and len(model.state_dict()) == 361
    assert torch.equal(model.model[26].m[0].weight, checkpoint["model"].model[24].m[0].weight)
    assert "349/361 tensors transferred" in caplog.text and "row 10 EMA" in caplog.text


def test_without_the_shim_half_of_it_is_lost(script, checkpoint):
    """The problem that the quirk solves."""
    model = build("EMA", nc=2)
    plain = script.intersect_dicts.__wrapped__
    assert len(plain(checkpoint["model"].state_dict(), model.state_dict())) < 200


def test_identity_at_step_0(script, checkpoint, monkeypatch):
    monkeypatch.setenv(VARIABLES["init"], "identity")
    model = build("EMA", nc=2)
    as_train_does(script, checkpoint, model, ["a", "b"])
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = checkpoint["model"].eval()(image)[0]
        assert torch.equal(model.eval()(image)[0], expected)


def test_identity_without_a_fresh_block_is_refused(script, checkpoint, monkeypatch):
    monkeypatch.setenv(VARIABLES["init"], "identity")
    with pytest.raises(ConfigError, match="no row of the cfg is a fresh attention block: it has no block; leave"):
        as_train_does(script, checkpoint, build("none", nc=2), ["a", "b"])
    checkpoint["model"] = build("EMA", nc=2)
    with pytest.raises(ConfigError, match="attention block: the weights already hold all of its blocks; leave --init"):
        as_train_does(script, checkpoint, build("EMA", nc=2), ["a", "b"])


def test_the_training_state_of_another_model_is_left_behind(script, checkpoint):
    state = {"state": {}, "param_groups": []}
    checkpoint.update(optimizer=state, ema=build("none", nc=2), epoch=7)
    as_train_does(script, checkpoint, build("none", nc=2), ["a", "b"])
    assert checkpoint["optimizer"] is state and checkpoint["epoch"] == 7  # the same model: copied
    as_train_does(script, checkpoint, build("EMA", nc=2), ["a", "b"])
    assert checkpoint["optimizer"] is None and checkpoint["ema"] is None and checkpoint["epoch"] == -1


def test_a_resumed_run_takes_everything_as_it_is(script, checkpoint):
    checkpoint["model"].model[-1].anchors *= 2
    model = build("none", nc=2)
    taken = as_train_does(script, checkpoint, model, ["b", "a"], exclude=(), resume=True)
    assert all(torch.equal(value, checkpoint["model"].state_dict()[name]) for name, value in taken.items())
    assert len(taken) == 349


def test_a_caller_that_is_no_training_gets_yolov5s_own(script):
    da = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert set(script.intersect_dicts(da, {"a": torch.ones(2), "b": torch.ones(2)})) == {"a"}


@pytest.mark.slow
def test_on_the_command_line(trained, tiny_set, tmp_path):
    """A detector with EMA continues as one with CA: classes are matched by name, the rest by structure."""
    data = tmp_path / "other.yaml"
    data.write_text(tiny_set.read_text().replace("disc, box, cross", "cross, circle, box"))
    cfg = tmp_path / "ca.yaml"
    assert run_cli("cfg", "--size", "n", "--block", "CA", "-o", cfg, cwd=tmp_path).returncode == 0
    done = run_cli(
        *("train", "--data", data, "--cfg", cfg, "--weights", trained, "--init", "identity", "--name", "on"),
        *("--img", 64, "--batch", 4, "--epochs", 1, "--workers", 1, "--noval"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert "349/371 tensors transferred, 6 of them in part" in said
    assert "classes that the checkpoint does not have start fresh: circle" in said
    assert "--init identity: the blocks in rows 7, 10 change nothing at step 0" in said
    assert "Transferred 349/371 items" in said
    with yolov5_ema.installed() as engine:
        last = load_checkpoint(tmp_path / "runs/train/on/weights/last.pt", engine=engine)
    assert type(last["model"].model[7]).__name__ == "CA"


def test_identity_from_scratch_is_refused(refused, tiny_set):
    message = refused("train", "--data", tiny_set, "--cfg", "yolov5n-ema.yaml", "--weights", "", "--init", "identity")
    assert "--init identity is for pretrained --weights" in message
