"""A checkpoint is converted to safetensors and a YAML and back again, and every bit is the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cases.conversion import converts_masks_there_and_back
from conftest import laid_aside, randomise
from fresh_process import run_fresh
from safetensors import safe_open
from safetensors.torch import save_file

from yolov5_ema import files
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.cfgs.rows import with_options_by_name
from yolov5_ema.checkpoints import conversion
from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.errors import CheckpointError, UserError


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use small layers with one thread: threads that wait for each other take longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_cfg(block: str = "EMA", options: object = None) -> dict[str, object]:
    cfg = build_cfg(size="n", block=block, nc=2)
    cfg["width_multiple"] = 0.125
    for row in cfg["backbone"]:
        if row[2] == block and options is not None:
            row[3] = options
    return cfg


def build(cfg, seed: int = 0):
    from yolov5.models.yolo import Model

    model = randomise(Model(copy.deepcopy(cfg)), seed).eval()
    model.names = ["a", "it's"]
    return model


def checkpoint_of(model, **more):
    return {
        "epoch": 5,
        "best_fitness": np.array([0.5]),
        "model": model,
        "ema": None,
        "optimizer": None,
        **more,
    }


def there_and_back(checkpoint, engine, folder: Path):
    """The model that was converted, and the checkpoint that was converted back."""
    checkpoints.save_checkpoint(checkpoint, folder / "a.pt", engine=engine)
    conversion.to_safetensors(folder / "a.pt", folder / "b.safetensors", folder / "b.yaml", engine=engine)
    conversion.to_checkpoint(folder / "b.safetensors", folder / "c.pt", engine=engine)
    return checkpoints.load_checkpoint(folder / "c.pt", engine=engine)


def assert_same(before, after) -> None:
    assert type(before) is type(after) and before.names == after.names and before.yaml == after.yaml
    assert torch.equal(before.stride, after.stride)
    ours, theirs = before.state_dict(), after.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name
    image = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = [copy.deepcopy(model).float().eval()(image)[0] for model in (before, after)]
    assert torch.equal(*outputs) and torch.isfinite(outputs[0]).all()


CASES = {
    "EMA in half precision": ("EMA", None, True),
    "EMA with options": ("EMA", [{"groups": 4, "cross_spatial": False}], False),
    "EMA beyond the paper": ("EMA", [{"norm_groups": 1, "residual": True, "depthwise": True}], False),
    "CBAM with a positional option": ("CBAM", [8], False),
    "SA, whose parameters have names of their own": ("SA", [8], True),
}


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(engine, tmp_path, case):
    block, options, half = CASES[case]
    model = build(small_cfg(block, options))
    model = model.half() if half else model
    back = there_and_back(checkpoint_of(model), engine, tmp_path)
    with_options_by_name(model.yaml)  # the result says what each number means
    assert_same(model, back["model"])
    assert back["epoch"] == -1 and back["best_fitness"] == 0.5
    assert {key for key, value in back.items() if value is None} >= {"ema", "optimizer", "updates", "opt"}
    assert not any(parameter.requires_grad for parameter in back["model"].parameters())


def test_the_ema_is_taken_and_the_training_told(engine, tmp_path):
    model, ema = build(small_cfg(), 1), build(small_cfg(), 2)
    opt = {"imgsz": 640, "data": Path("x.yaml"), "hf_token": "hf_abc", "evolve": None}
    ema.hyp = {"lr0": 0.01, "anchors": 3}
    more = {"updates": 12, "opt": opt, "date": "2026-01-02", "ema": ema}
    back = there_and_back(checkpoint_of(model, **more), engine, tmp_path)
    assert_same(ema, back["model"])
    assert back["opt"] == {"imgsz": 640, "data": "x.yaml", "hf_token": "(not shown)", "evolve": None}
    assert back["date"] == "2026-01-02" and back["model"].hyp == {"lr0": 0.01, "anchors": 3}
    with safe_open(tmp_path / "b.safetensors", "pt") as opened:
        facts = json.loads(opened.metadata()["yolov5-ema"])
    assert facts["training"]["epoch"] == 5 and facts["training"]["updates"] == 12
    assert facts["source"]["name"] == "a.pt" and len(facts["source"]["sha256"]) == 64
    assert facts["versions"]["yolov5"] == engine.version and facts["stride"] == [8, 16, 32]
    assert "hf_abc" not in json.dumps(facts)


def test_the_yaml_builds_the_model_with_its_own_anchors(engine, tmp_path):
    from yolov5.models.yolo import Model

    model = build(small_cfg("EMA", [{"groups": 8}]))
    head = model.model[-1]
    pixels = torch.arange(18.0).view(3, 3, 2) * 7.25 + 5  # as if AutoAnchor had fitted them
    head.anchors.copy_(pixels / head.stride.view(-1, 1, 1))
    back = there_and_back(checkpoint_of(model), engine, tmp_path)
    assert_same(model, back["model"])
    cfg = yaml.safe_load((tmp_path / "b.yaml").read_text(encoding="utf-8"))
    assert cfg["anchors"] == pixels.flatten(1).tolist() and cfg["names"] == ["a", "it's"]
    assert [row[3] for row in cfg["backbone"] if row[2] == "EMA"] == [[{"groups": 8}]] * 2
    built = Model(str(tmp_path / "b.yaml"))
    assert torch.allclose(built.model[-1].anchors, head.anchors)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in built.state_dict().items()}


def test_a_cfg_instead_of_the_header(engine, tmp_path):
    model = build(small_cfg())
    there_and_back(checkpoint_of(model), engine, tmp_path)
    cfg = yaml.safe_load((tmp_path / "b.yaml").read_text(encoding="utf-8"))
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match=r"does not describe a model .* pass the model's YAML with --cfg"):
        conversion.to_checkpoint(tmp_path / "plain.safetensors", tmp_path / "d.pt", engine=engine)
    conversion.to_checkpoint(tmp_path / "plain.safetensors", tmp_path / "d.pt", engine=engine, cfg=cfg)
    back = checkpoints.load_checkpoint(tmp_path / "d.pt", engine=engine)["model"]
    assert back.names == ["a", "it's"] and torch.equal(back.model[0].conv.weight, model.model[0].conv.weight)


def test_tensors_that_do_not_fit_are_named(engine, tmp_path):
    model = build(small_cfg())
    state = model.state_dict()
    cfg = small_cfg()
    first = next(iter(state))
    cases = {
        f"missing: {first}": {name: tensor for name, tensor in state.items() if name != first},
        "unexpected: extra.weight": {**state, "extra.weight": torch.zeros(1)},
        rf"of another shape: {first} \(1, 2\) where the cfg has \(8, 3, 6, 6\)": {
            **state,
            first: torch.zeros(1, 2),
        },
        "A fused model has no BatchNorms": {name: t for name, t in state.items() if ".bn." not in name},
    }
    for words, tensors in cases.items():
        save_file(tensors, tmp_path / "odd.safetensors")
        with pytest.raises(CheckpointError, match=words):
            conversion.to_checkpoint(tmp_path / "odd.safetensors", tmp_path / "d.pt", engine=engine, cfg=cfg)
    assert not list(tmp_path.glob("*.pt")) and not list(tmp_path.glob(".*"))


def test_models_that_their_yaml_does_not_build(engine, tmp_path):
    places = (tmp_path / "b.safetensors", tmp_path / "b.yaml")
    fused = build(small_cfg()).fuse()
    for module in fused.modules():
        vars(module).pop("forward", None)  # a bound method cannot be saved
    changed = build(small_cfg())
    changed.model[0].act = torch.nn.ReLU()
    whole = torch.nn.Conv2d(1, 1, 1)
    cases = [
        (checkpoint_of(fused), "A fused model has no BatchNorms"),
        (
            checkpoint_of(changed),
            "with the same tensors, a model built from its YAML computes another output",
        ),
        (checkpoint_of(whole), "holds a Conv2d; only models that YOLOv5 builds"),
        (
            checkpoint_of(build(small_cfg()).state_dict()),
            "is a state dict under the key 'model'.*--cfg MODEL",
        ),
        ({"epoch": 1, "x": torch.zeros(1)}, "does not hold a model"),
    ]
    for checkpoint, words in cases:
        checkpoints.save_checkpoint(checkpoint, tmp_path / "a.pt", engine=engine)
        with pytest.raises(CheckpointError, match=words):
            conversion.to_safetensors(tmp_path / "a.pt", *places, engine=engine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]


def test_nothing_is_overwritten_and_nothing_half_written(engine, tmp_path, monkeypatch):
    checkpoints.save_checkpoint(checkpoint_of(build(small_cfg())), tmp_path / "a.pt", engine=engine)
    places = (tmp_path / "b.safetensors", tmp_path / "b.yaml")
    places[1].write_text("mine")
    with pytest.raises(UserError, match=r"b\.yaml is there already; --force"):
        conversion.to_safetensors(tmp_path / "a.pt", *places, engine=engine)
    assert places[1].read_text() == "mine" and not places[0].exists()
    with pytest.raises(UserError, match="cannot be written"):
        lacking = tmp_path / "no" / "b.safetensors"
        conversion.to_safetensors(tmp_path / "a.pt", lacking, lacking.with_suffix(".yaml"), engine=engine)
    conversion.to_safetensors(tmp_path / "a.pt", *places, engine=engine, force=True)
    before = places[0].read_bytes()
    monkeypatch.setattr(files.os, "replace", _no_space)
    with pytest.raises(UserError, match="No space left"):
        conversion.to_safetensors(tmp_path / "a.pt", *places, engine=engine, force=True)
    assert places[0].read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.safetensors", "b.yaml"]


def _no_space(*_paths):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "by a later version of yolov5-ema"),
        ({"class": "os.system"}, "not have the form that 'yolov5-ema convert' writes"),
        ({"attributes": {"forward": 1}}, "not have the form that 'yolov5-ema convert' writes"),
        ({"names": ["a"]}, "there must be 2 class names"),
        ({"names": [[0, "a"], [1, 2]]}, "there must be 2 class names"),
        ({"cfg": {"nc": 2}}, "is missing"),
        ({"cfg": {**small_cfg(), "backbone": [[-1, 1, "__import__('os')", []]]}}, "must be a name"),
        ({"cfg": {**small_cfg(), "depth_multiple": 1e9}}, "repeats C3 more than 1000 times"),
        ({"cfg": {**small_cfg(), "head": small_cfg()["head"][:-1]}}, "missing: |unexpected: "),
        ({"attributes": {"nc": 80}}, "two different values of nc"),
        ({"cfg": {**small_cfg(), "width_multiple": 1e308}}, "does not build a model that runs"),
        (
            {"class": "SegmentationModel"},
            "which YOLOv5 6.0.7 .* does not have; pass a YOLOv5 v7.0 with --yolov5",
        ),
    ],
)
def test_headers_that_somebody_wrote(engine, tmp_path, change, words):
    if "6.0.7" in words and engine.version != "6.0.7":
        pytest.skip(f"YOLOv5 {engine.version} has segmentation models")
    model = build(small_cfg())
    facts = {"format": 1, "class": "Model", "cfg": small_cfg(), "names": ["a", "b"], "training": {}, **change}
    save_file(model.state_dict(), tmp_path / "a.safetensors", {"yolov5-ema": json.dumps(facts)})
    with pytest.raises(UserError, match=words):
        conversion.to_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.pt", engine=engine)
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.slow
def test_masks_of_v7(tmp_path):
    root = laid_aside("7.0.14")
    cfg = root / "models/segment/yolov5n-seg.yaml"
    done = run_fresh(converts_masks_there_and_back, root, tmp_path, cfg, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("same")
