"""Checkpoints of ultralytics as safetensors and a YAML, and back: nothing that the model needs is lost."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from offline_ultralytics import needs_yolo26, offline
from small_ultralytics import HEADS, output_of, save, small_cfg, small_model

import yolov5_ema
from yolov5_ema.checkpoints.conversion import to_checkpoint, to_safetensors
from yolov5_ema.checkpoints.loading import load_checkpoint
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.weights.checkpoint_files import HEADER, header_in


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")):
        yield yolov5_ema.install("ultralytics")


def there_and_back(file: Path, engine) -> tuple[Any, Any]:
    tensors, cfg, back = (file.with_name(f"there{suffix}") for suffix in (".safetensors", ".yaml", ".pt"))
    to_safetensors(file, tensors, cfg, engine=engine)
    to_checkpoint(tensors, back, engine=engine)
    before, after = (load_checkpoint(path, "cpu", engine=engine) for path in (file, back))
    return before, after


@pytest.mark.parametrize(
    "task", [task if task in ("detect", "segment") else pytest.param(task, marks=pytest.mark.slow) for task in HEADS]
)
def test_every_task_keeps_tensors_output_and_settings(engine, tmp_path, task):
    before, after = there_and_back(save(small_model(task), tmp_path / "a.pt"), engine)
    old, new = before["model"], after["model"]
    assert type(old) is type(new) and old.state_dict().keys() == new.state_dict().keys()
    for name, tensor in old.state_dict().items():
        assert torch.equal(tensor, new.state_dict()[name]) and tensor.dtype == new.state_dict()[name].dtype
    assert torch.equal(output_of(old), output_of(new))
    assert (new.names, new.task, new.stride.tolist()) == (old.names, task, old.stride.tolist())
    assert new.args == old.args and after["train_args"] == before["train_args"]
    assert (after["date"], after["version"], after["train_metrics"]) == ("2026-11-28", "8.4.190", {"fitness": 0.5})
    assert after["epoch"] == -1 and after["optimizer"] is None and after["ema"] is None
    assert type(new.model[4]) is yolov5_ema.EMA


@needs_yolo26
@pytest.mark.parametrize("end2end", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_choice_between_its_two_heads_is_kept(engine, tmp_path, end2end):
    model = small_model(end2end=True)
    model.end2end = end2end
    _, after = there_and_back(save(model, tmp_path / "a.pt"), engine)
    assert after["model"].end2end is end2end and after["model"].model[-1].one2one_cv3 is not None


@needs_yolo26
def test_a_class_branch_as_wide_as_that_of_the_pretrained_model(engine, tmp_path):
    """From 8.4 on, ultralytics keeps the width for 80 classes when it trains on fewer."""
    wide, model = small_model(nc=80), small_model()
    assert wide.model[-1].cv3[0][-1].in_channels == 80 != model.model[-1].cv3[0][-1].in_channels
    model.load(wide, verbose=False)
    assert model.model[-1].cv3[0][-1].weight.shape == (3, 80, 1, 1)
    before, after = there_and_back(save(model, tmp_path / "a.pt"), engine)
    assert torch.equal(output_of(before["model"]), output_of(after["model"]))


def test_the_steps_of_a_classifier_are_kept(engine, tmp_path):
    augment = importlib.import_module("ultralytics.data.augment")
    model = small_model("classify")
    model.transforms = augment.classify_transforms(48)
    before, after = there_and_back(save(model, tmp_path / "a.pt"), engine)
    image = importlib.import_module("PIL.Image").new("RGB", (80, 60), (10, 200, 90))
    ours, theirs = (checkpoint["model"].transforms(image) for checkpoint in (after, before))
    assert ours.shape == (3, 48, 48) and torch.equal(ours, theirs)


def test_the_yaml_builds_the_model(engine, tmp_path):
    file = save(small_model(), tmp_path / "a.pt")
    to_safetensors(file, tmp_path / "a.safetensors", tmp_path / "a.yaml", engine=engine)
    text = (tmp_path / "a.yaml").read_text()
    assert "scales: {n: [0.5, 0.25, 128]}" in text and "  - [-1, 1, EMA, [{groups: 4}]]" in text
    assert "names: [disc, box, cross]" in text and "yaml_file" not in text
    model = engine.module("nn.tasks").DetectionModel(str(tmp_path / "a.yaml"), verbose=False)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in small_model().state_dict().items()}


def test_what_does_not_fit_or_was_changed_is_refused(engine, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    model = small_model()
    model.model[3].cv1.act = torch.nn.ReLU()
    save(model, tmp_path / "changed.pt")
    with pytest.raises(CheckpointError, match="changed after it was built"):
        to_safetensors(tmp_path / "changed.pt", tmp_path / "x.safetensors", tmp_path / "x.yaml", engine=engine)
    assert not (tmp_path / "x.safetensors").exists() and not (tmp_path / "x.yaml").exists()

    there = tmp_path / "a.safetensors"
    to_safetensors(save(small_model(), tmp_path / "a.pt"), there, tmp_path / "a.yaml", engine=engine)
    with safe_open(str(there), framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    header = header_in(there)
    for change, words in (
        ({"task": "fly"}, "does not have the form"),
        ({"end2end": 7}, "does not have the form"),
        ({"cfg": {"nc": 3, "backbone": [], "head": []}}, "does not have the form|end in a row"),
        ({"names": ["a"]}, "3 class names|class names"),
        ({"transforms": [["Lambda", {}]]}, "no step 'Lambda'"),
        ({"format": 9}, "later version"),
    ):
        save_file(tensors, tmp_path / "b.safetensors", {HEADER: json.dumps({**header, **change})})
        with pytest.raises(UserError, match=words):
            to_checkpoint(tmp_path / "b.safetensors", tmp_path / "b.pt", engine=engine)
    tensors["model.0.conv.weight"] = tensors["model.0.conv.weight"][:4]
    save_file(tensors, tmp_path / "b.safetensors", {HEADER: json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"of another shape: model\.0\.conv\.weight"):
        to_checkpoint(tmp_path / "b.safetensors", tmp_path / "b.pt", engine=engine)
    assert not (tmp_path / "b.pt").exists()


def test_a_state_dict_and_a_yaml_make_a_checkpoint(engine, tmp_path):
    model = small_model()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    to_checkpoint(tmp_path / "state.pt", tmp_path / "b.pt", engine=engine, cfg=small_cfg())
    found = load_checkpoint(tmp_path / "b.pt", "cpu", engine=engine)["model"]
    assert torch.equal(output_of(found), output_of(model))
