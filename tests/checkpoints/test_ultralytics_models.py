"""Models of ultralytics: read and built from their YAMLs; weights in models with other rows, as checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from conftest import run_cli
from offline_ultralytics import by_release, environment, needs_yolo26
from small_ultralytics import HEADS, output_of, save, small_cfg, small_model

import yolov5_ema
from yolov5_ema.cfgs.generator import build_cfg, format_cfg
from yolov5_ema.checkpoints.loading import load_checkpoint
from yolov5_ema.checkpoints.transferring import transfer_checkpoint
from yolov5_ema.checkpoints.ultralytics_models import build, built, class_of, read_cfg
from yolov5_ema.errors import CheckpointError, ConfigError, UserError


@pytest.fixture
def engine(ultralytics):
    return yolov5_ema.install("ultralytics")


CLASSES = {
    "yolov3-tiny.yaml": "DetectionModel",
    "yolov10n.yaml": "DetectionModel",
    "yolov8n-seg.yaml": "SegmentationModel",
    "yolo26n-seg.yaml": "SegmentationModel",
    "yolo26n-pose.yaml": "PoseModel",
    "yolo11n-obb.yaml": "OBBModel",
    "yolo12n-cls.yaml": "ClassificationModel",
    "rtdetr-l.yaml": "RTDETRDetectionModel",
    "yolov8n-world.yaml": "WorldModel",
    "yoloe-26n.yaml": "YOLOEModel",
}


@pytest.mark.parametrize("name", by_release(CLASSES))
def test_the_last_row_says_which_class_builds_the_model(engine, name):
    assert class_of(read_cfg(name, engine), engine.module("nn.tasks")).__name__ == CLASSES[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": {"n": [0.5, 0.25, 1024], "s": [0.5, 0.5, 1024]}}, None),
        ({"nc": 0}, "my11.yaml: nc is 0"),
        ({"scales": {}}, "my11.yaml: scales must give"),
        ({"head": [[-1, 1, "Nothing", [64]], [[9, 11], 1, "Detect", ["nc"]]]}, "head row 11: unknown module 'Nothing'"),
        ({"head": [[[9, 99], 1, "Detect", ["nc"]]]}, "'from' 99 is not above this row"),
        ({"head": [[[4, 6], 1, "Concat", [1]], [[11], 1, "Detect", ["nc"]]]}, r"row 11: .*Concat.* cannot run"),
        ({"scales": {"n": [0.5, 900.0, 1e9]}}, "the model is too large: it needs more than .* bytes of memory"),
    ],
)
def test_yamls_that_cannot_be_built(engine, tmp_path, change, message):
    content = {key: value for key, value in build_cfg(base="yolo11n.yaml", block="none").items() if key != "scale"}
    file = tmp_path / "my11.yaml"
    file.write_text(yaml.safe_dump({**content, **change}), encoding="utf-8")
    if message is None:
        model = build(read_cfg("my11.yaml", engine, file), None, engine, "my11.yaml")
        assert sum(p.numel() for p in model.parameters()) == 2_624_080
        return
    with pytest.raises(ConfigError, match=message):
        build(read_cfg("my11.yaml", engine, file), None, engine, "my11.yaml")


def test_a_size_that_is_not_in_the_file_and_a_yaml_of_yolov5(engine, own_folder):
    file = Path("yolo11.yaml")
    content = build_cfg(base="yolo11.yaml", block="none")
    content["scales"] = {"n": [0.5, 0.25, 1024], "s": [0.5, 0.5, 1024]}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"yolo11x.yaml: there is no size x; yolo11.yaml has n, s"):
        read_cfg("yolo11x.yaml", engine)
    file.write_text(format_cfg(size="n"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"yolo11.yaml is a model YAML of YOLOv5, not of ultralytics"):
        read_cfg("yolo11.yaml", engine)


def test_a_model_has_the_same_weights_on_every_call_and_the_channels_of_its_yaml(engine):
    content = {**small_cfg(), "scale": "n", "channels": 1, "ch": 3}
    before = torch.random.get_rng_state()
    one, two = (build(content, 2, engine, "small.yaml") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert one.model[0].conv.weight.shape == (16, 1, 3, 3) and one.model[-1].nc == 2


def test_models_that_are_more_than_their_tensors_are_built_only_to_be_looked_at(engine):
    content = read_cfg("yoloe-11n.yaml", engine)
    assert type(build(content, None, engine, "yoloe-11n.yaml")).__name__ == "YOLOEModel"
    with pytest.raises(ConfigError, match="a YOLOEModel is not built from a YAML alone"):
        built(content, None, engine, "yoloe-11n.yaml")


def write(file: Path, cfg: dict) -> Path:
    file.write_text(yaml.safe_dump(cfg))
    return file


def without_block(task: str) -> dict:
    """`small_cfg` without the row of the block: the row after it reads the one before it."""
    cfg = small_cfg(task, None)
    del cfg["backbone"][4]
    head = cfg["head"][0]
    head[0] = [3, 4] if isinstance(head[0], list) else -1
    return cfg


@pytest.mark.parametrize(
    "task", [task if task == "detect" else pytest.param(task, marks=pytest.mark.slow) for task in HEADS]
)
def test_a_new_block_changes_nothing_at_first_and_twice_is_the_same_file(engine, tmp_path, task):
    source = save(small_model(task, cfg=without_block(task)), tmp_path / "a.pt")
    cfg = write(tmp_path / "b.yaml", small_cfg(task))
    files = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for file in files:
        found = transfer_checkpoint(source, cfg, file, engine=engine, identity=True)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (found.fresh_blocks, found.unused) == ([4], []) and found.total - found.taken == 6
    before, after = (load_checkpoint(file, "cpu", engine=engine)["model"] for file in (source, files[0]))
    assert torch.equal(output_of(before), output_of(after))
    assert (after.names, after.task) == (before.names, task)
    assert next(after.parameters()).dtype is torch.float16 and not next(after.parameters()).requires_grad


@pytest.mark.slow
def test_ultralytics_takes_it(ultralytics, engine, tiny_set, own_folder):
    source = save(small_model(cfg=without_block("detect")), own_folder / "a.pt")
    transfer_checkpoint(source, write(own_folder / "b.yaml", small_cfg()), own_folder / "b.pt", engine=engine)
    yolo = ultralytics.YOLO("b.pt")
    assert type(yolo.model.model[4]) is yolov5_ema.EMA and yolo.names == {0: "disc", 1: "box", 2: "cross"}
    options = {"data": str(tiny_set), "imgsz": 32, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
    weight = yolo.model.model[3].cv1.conv.weight.detach().clone()
    metrics = yolo.val(project=str(own_folder), **options)
    assert metrics.nt_per_class.tolist() == [4, 4, 4]
    yolo = ultralytics.YOLO("b.pt")
    yolo.train(epochs=1, batch=4, lr0=1e-9, warmup_epochs=0, optimizer="SGD", project=str(own_folder), **options)
    assert type(yolo.model.model[4]) is yolov5_ema.EMA
    trained = yolo.trainer.model.model[3].cv1.conv.weight
    torch.testing.assert_close(trained, weight.float(), atol=1e-3, rtol=1e-3)  # the weights went into the training


def test_classes_are_matched_by_name(engine, tmp_path):
    source = small_model(cfg=without_block("detect"))
    with torch.no_grad():
        source.model[-1].cv3[0][-1].bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    save(source, tmp_path / "a.pt")
    found = transfer_checkpoint(
        tmp_path / "a.pt",
        write(tmp_path / "b.yaml", small_cfg()),
        tmp_path / "b.pt",
        engine=engine,
        names=["Cross", "x"],
    )
    model = load_checkpoint(tmp_path / "b.pt", "cpu", engine=engine)["model"]
    assert model.names == {0: "Cross", 1: "x"} and model.nc == 2 and model.model[-1].cv3[0][-1].bias[0] == 3.0
    assert "classes that the checkpoint does not have start fresh: x" in found.table()
    assert sum(row.partly for row in found.rows) == 4  # the weights and biases of two levels


def test_what_is_not_clear_or_not_possible_is_refused(engine, tmp_path):
    source = save(small_model(cfg=without_block("detect")), tmp_path / "a.pt")
    target = tmp_path / "b.pt"
    other = write(tmp_path / "80.yaml", {**small_cfg(), "nc": 80})
    with pytest.raises(UserError, match=r"80 classes, the checkpoint has 3.*--nc 80"):
        transfer_checkpoint(source, other, target, engine=engine)
    with pytest.raises(ConfigError, match="no such file here"):
        transfer_checkpoint(source, Path("nowhere.yaml"), target, engine=engine)
    with pytest.raises(ConfigError, match="cannot be built"):
        broken = small_cfg()
        broken["backbone"][0] = [-1, 1, "Conv", ["x"]]
        transfer_checkpoint(source, write(tmp_path / "d.yaml", broken), target, engine=engine)
    torch.save({"model": small_model().fuse(verbose=False).state_dict()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="does not hold a model"):
        transfer_checkpoint(tmp_path / "state.pt", other, target, engine=engine, nc=80)
    assert not target.exists()


@needs_yolo26
def test_no_identity_before_a_pyramid_of_poolings_that_adds_its_input(engine, tmp_path):
    source = save(small_model(cfg=without_block("detect")), tmp_path / "a.pt")
    cfg = small_cfg()
    cfg["backbone"][5] = [-1, 1, "SPPF", [128, 5, 3, True]]  # as in YOLO26
    with pytest.raises(ConfigError, match=r"row 5 \(SPPF\) .*not known to read them linearly"):
        transfer_checkpoint(source, write(tmp_path / "c.yaml", cfg), tmp_path / "b.pt", engine=engine, identity=True)
    assert not (tmp_path / "b.pt").exists()


def test_a_mix_of_the_two_programs_is_refused_in_one_sentence(engine, trained, own_folder):
    env = environment(own_folder)
    save(small_model(), own_folder / "a.pt")
    for weights, cfg, words in (
        ("a.pt", "yolov5n-ema.yaml", "yolov5n-ema.yaml is a model YAML of YOLOv5"),
        (trained, "yolo11n-ema.yaml", "yolo11n-ema.yaml is a model YAML of ultralytics"),
    ):
        done = run_cli("transfer", weights, "--cfg", cfg, "-o", "out.pt", cwd=own_folder, env=env)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (own_folder / "out.pt").exists()
