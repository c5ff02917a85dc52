"""The package `ultralytics` with the blocks: rows, parameters, undoing, and a training in new processes."""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib
import importlib.metadata
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from cases import PLUGINS
from cases import ultralytics_adapter as cases
from conftest import REPOSITORY, SMALL_YOLO
from fresh_process import run_fresh
from offline_ultralytics import environment, run_python
from torch import nn

import yolov5_ema
from yolov5_ema.cfgs.ultralytics_rows import block_rows
from yolov5_ema.engine import ultralytics_adapter
from yolov5_ema.errors import CheckpointError, ConfigError, EngineNotFoundError, UserError
from yolov5_ema.resources import models_dir

SMALL = {
    "nc": 3,
    "scales": {"n": [0.5, 0.5, 128]},  # depth, width, maximum number of channels
    "backbone": [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [256, 3, 2]]],
    "head": [[-1, 1, "EMA", []], [[2], 1, "Detect", ["nc"]]],
}


@pytest.fixture
def tasks(ultralytics):
    yield importlib.import_module("ultralytics.nn.tasks")
    yolov5_ema.uninstall("ultralytics")


@pytest.fixture
def build(tasks):
    """A detector made from a model dict, with the adapter installed."""
    yolov5_ema.install("ultralytics")
    return lambda cfg: tasks.DetectionModel(cfg, verbose=False)


def with_row(row, place=0, section="head", **changes):
    changed = {**copy.deepcopy(SMALL), "scale": "n", **changes}
    changed[section][place] = row
    return changed


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("version", "is_old"), [("8.2.103", True), ("8.3.0", False), ("8.4.190", False)])
def test_a_release_whose_loading_is_not_guarded_is_named(ultralytics, tasks, version, is_old, monkeypatch, caplog):
    yolov5_ema.uninstall("ultralytics")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with caplog.at_level("WARNING", logger="yolov5_ema"):
        yolov5_ema.install("ultralytics")
        yolov5_ema.install("ultralytics")
    found = [record.getMessage() for record in caplog.records]
    assert [f"ultralytics {version} is older than 8.3.0: " in message for message in found] == [True] * is_old


# the channels of the two rows before EMA: 512 and 1024 in the YAML, limited and scaled
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("yolo11n", (128, 256)),
        ("yolo11s", (256, 512)),
        ("yolov8n", (128, 256)),
        ("yolov8m", (384, 576)),
    ],
)
def test_the_shipped_yamls_are_ultralytics_own_with_two_ema(ultralytics, build, name, channels):
    torch.manual_seed(0)
    plain = ultralytics.YOLO(f"{name}.yaml").model.eval()
    model = ultralytics.YOLO(f"{name}-ema.yaml").model.eval()
    blocks = [module for module in model.modules() if type(module) is yolov5_ema.EMA]
    assert [block.channels for block in blocks] == list(channels)
    closed_form = sum(10 * (c // 32) ** 2 + 4 * (c // 32) for c in channels)
    assert parameters(model) - parameters(plain) == sum(map(parameters, blocks)) == closed_form

    for index, row in enumerate(model.model):  # without the effect of the blocks it is the same network
        if row in blocks:
            passing = nn.Identity()
            passing.i, passing.f, passing.type = row.i, row.f, row.type
            model.model[index] = passing
    model.load_state_dict(dict(zip(model.state_dict(), plain.state_dict().values())))
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(x)[0], plain(x)[0])


@pytest.mark.parametrize(("name", "taken", "total"), [("yolo11n", 499, 511), ("yolov8n", 355, 367)])
def test_pretrained_weights_survive_the_blocks(build, tasks, name, taken, total, monkeypatch):
    source = build(f"{name}.yaml")
    for index, tensor in enumerate(source.parameters()):
        tensor.data.fill_(index)
    source.names = dict(enumerate(["bus", "car", *map(str, range(2, 80))]))
    said = []
    monkeypatch.setattr(tasks.LOGGER, "info", said.append)
    model = build(f"{name}-ema.yaml")
    model.load({"model": source})
    assert f"Transferred {taken}/{total} items" in said[-1]
    own = {id(p) for row in model.model if type(row) is yolov5_ema.EMA for p in row.parameters()}
    ours = [p for p in model.parameters() if id(p) not in own]
    assert all(torch.equal(new, old) for new, old in zip(ours, source.parameters()))
    assert len(ours) == len(list(source.parameters()))

    other = tasks.DetectionModel(f"{name}-ema.yaml", nc=2, verbose=False)
    other.names = {0: "Car", 1: "tram"}
    start = other.model[-1].cv3[0][2].bias.detach().clone()
    with torch.no_grad():
        source.model[-1].cv3[0][2].bias.copy_(torch.arange(80.0))
    other.load(source)  # ultralytics itself copies classes by name
    assert other.model[-1].cv3[0][2].bias.tolist() == [1.0, start[1].item()]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ([-1, 1, "EMA", []], "EMA(64, groups=32"),
        ([-1, 1, "EMA", [8]], "EMA(64, groups=8"),
        ([-1, 1, "EMA", [{"groups": 8, "cross_spatial": False}]], "EMA(64, groups=8, cross_spatial=False"),
        (
            [-1, 1, "EMA", [{"implementation": "exact"}]],
            "EMA(64, groups=32, cross_spatial=True, implementation=exact",
        ),
        (
            [-1, 1, "EMA", [{"norm_groups": 1, "residual": True, "depthwise": True}]],
            "EMA(64, groups=32, cross_spatial=True, implementation=auto, norm_groups=1, residual=True, depthwise=True",
        ),
        ([-1, 1, "yolov5_ema.EMA", [4]], "EMA(64, groups=4"),
        ([0, 1, "EMA", [16]], "EMA(32, groups=16"),
        ([-1, 1, "CA", [16]], "CA(64, reduction=16"),
        ([-1, 1, "SA", [{"groups": 4}]], "SA(64, groups=4"),
    ],
)
def test_a_row_builds_its_block_with_the_true_channels(build, row, text):
    model = build(with_row(row))
    block = model.model[2]
    assert f"{type(block).__name__}({block.extra_repr()}".startswith(text)
    assert (block.i, block.f) == (2, row[0])
    assert block.type == f"{type(block).__module__}.{type(block).__name__}"
    assert model.model[3].cv2[0][0].conv.in_channels == block.channels
    assert model.yaml["head"][0] == row  # a checkpoint keeps what the YAML said


def test_what_is_printed_are_channels_and_options(build, tasks, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(tasks.LOGGER, "info", lines.append)
    tasks.DetectionModel(with_row([-1, 1, "EMA", [16]]), verbose=True)
    printed = [line.split() for line in map(str, lines) if ".EMA" in line]
    assert printed == [["2", "-1", "1", "176", "yolov5_ema.blocks.ema.EMA", "[64,", "16]"]]


def test_repeats_follow_the_depth(build):
    block = build(with_row([-1, 4, "CA", []])).model[2]
    assert [type(module) for module in block] == [yolov5_ema.CA, yolov5_ema.CA]


EVERY_DAY = ("BAM", "CA", "CBAM", "ECA", "EMA", "NAM", "PolarizedSA", "SA", "SE")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in EVERY_DAY else pytest.mark.slow) for n in yolov5_ema.list_blocks()]
)
def test_every_block_runs_is_copied_pickled_and_fused(build, name):
    options = [{"groups": 8}] if name in ("EMA", "SA") else []
    model = build(with_row([-1, 1, name, options])).eval()
    assert type(model.model[2]) is yolov5_ema.get_block(name)
    x = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        y = model(x)[0]
        assert y.shape == (1, 4 + 3, 8 * 16) and y.isfinite().all()
        assert torch.equal(copy.deepcopy(model)(x)[0], y)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x)[0], y)
        torch.testing.assert_close(model.fuse(verbose=False)(x)[0], y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task", ["seg", "pose", "obb", "cls"])
def test_other_tasks(build, tasks, task):
    """A block before the head of each; their own rows do not change."""
    cfg = tasks.yaml_model_load(f"yolo11n-{task}.yaml")
    shipped = copy.deepcopy(cfg)
    *rows, head = cfg["head"]
    last = len(cfg["backbone"]) + len(rows) - 1
    reads = [last + 1 if source in (-1, last) else source for source in np.atleast_1d(head[0]).tolist()]
    cfg["head"] = [*rows, [-1, 1, "EMA", []], [reads if len(reads) > 1 else -1, *head[1:]]]
    model_class = {
        "seg": "SegmentationModel",
        "pose": "PoseModel",
        "obb": "OBBModel",
        "cls": "ClassificationModel",
    }[task]
    model = getattr(tasks, model_class)(cfg, verbose=False)
    plain = getattr(tasks, model_class)(shipped, verbose=False)
    assert type(model.model[-2]) is yolov5_ema.EMA and model.model[-2].channels == 256
    assert parameters(model) - parameters(plain) == 10 * 8**2 + 4 * 8


REFUSED = [
    # (cfg, expected message)
    (with_row([-1, 1, "EMMA", []]), ["head row 2", "'EMMA'", "did you mean EMA?"]),
    (with_row([-1, 1, "C3k3", []]), ["head row 2", "did you mean C3k2?"]),
    (with_row([-1, 1, "MyBlock", []]), ["head row 2", "in Python: import it"]),
    (with_row([-1, 1, "torch_load", ["x.pt"]]), ["head row 2", "unknown module 'torch_load'"]),
    (with_row([-1, 1, "EMA", [256]]), ["head row 2", "number of channels", "[EMA, []]", "{groups: 256}"]),
    (with_row([-1, 1, "EMA", [48]]), ["head row 2", "48", "64", "[EMA, []] is enough"]),
    (with_row([-1, 1, "EMA", [-4]]), ["head row 2", "groups", "-4"]),
    (with_row([-1, 1, "EMA", [{"group": 8}]]), ["head row 2", "'group'", "groups=32"]),
    (with_row([-1, 1, "ECA", [3, 4, 5]]), ["head row 2", "ECA", "kernel_size"]),
    (with_row([-1, 1, "PSA", []]), ["head row 2: PSA is a module of ultralytics", "called PolarizedSA here"]),
    (with_row([-1, 1, "PSA", [{"mode": "parallel"}]]), ["a number of channels", "called PolarizedSA"]),
    (with_row([-1, 1, "CoordAtt", []]), ["head row 2", "'CoordAtt'; here it is called CA."]),
    (with_row([[-1, 0], 1, "EMA", []]), ["head row 2", "Concat"]),
    (with_row([5, 1, "EMA", []]), ["row 2", "'from' 5 is not above this row"]),
    (with_row([-1, 0, "EMA", []]), ["row 2", "how often"]),
    (with_row([-1, 1, "EMA"]), ["row 2", "[from, number, module, args]"]),
    (with_row([-1, 1, "EMA", [8]], activation="print(1)"), ["activation", "print(1)"]),
]


@pytest.mark.parametrize(("cfg", "needles"), REFUSED, ids=[str(case[1][-1]) for case in REFUSED])
def test_a_row_that_cannot_be_used_is_refused_with_file_row_and_fix(build, tasks, cfg, needles):
    names = set(vars(tasks))
    with pytest.raises(ConfigError) as refused:
        build({**cfg, "yaml_file": "mine.yaml"})
    message = str(refused.value)
    assert message.startswith("mine.yaml") and all(needle in message for needle in needles), message
    assert set(vars(tasks)) == names


def test_no_yaml_of_ultralytics_own_is_refused_or_changed(ultralytics, tasks):
    yamls = sorted((Path(ultralytics.__file__).parent / "cfg/models").rglob("*.yaml"))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in yamls:
        cfg = yaml.load(path.read_text(encoding="utf-8"), loader)
        assert block_rows(cfg, tasks, where=path.name, conflicts="error") == []
    assert len(yamls) > 40


def test_a_name_of_both(tasks, monkeypatch):
    class CBAM(nn.Identity):
        pass

    monkeypatch.setattr(tasks, "CBAM", CBAM, raising=False)
    cfg = with_row([-1, 1, "CBAM", []])
    with yolov5_ema.installed("ultralytics"), pytest.raises(ConfigError, match=r"both.*yolov5_ema\.CBAM"):
        tasks.DetectionModel(cfg, verbose=False)
    for choice, cls in (("ours", yolov5_ema.CBAM), ("theirs", CBAM)):
        with yolov5_ema.installed("ultralytics", conflicts=choice):
            assert type(tasks.DetectionModel(cfg, verbose=False).model[2]) is cls
    with yolov5_ema.installed("ultralytics", conflicts="theirs"):
        named = with_row([-1, 1, "yolov5_ema.CBAM", []])
        assert type(tasks.DetectionModel(named, verbose=False).model[2]) is yolov5_ema.CBAM


def test_a_block_of_ones_own(build):
    @yolov5_ema.register_block
    class Twice(nn.Module):
        def __init__(self, channels, factor=2.0):
            super().__init__()
            self.channels, self.factor = channels, factor

        def forward(self, x):
            return x * self.factor

    try:
        block = build(with_row([-1, 1, "Twice", [{"factor": 3.0}]])).model[2]
    finally:
        importlib.import_module("yolov5_ema.blocks.registry").unregister_block("Twice")
    assert type(block) is Twice and (block.channels, block.factor) == (64, 3.0)


def test_install_is_idempotent_and_uninstall_restores_everything(ultralytics, tasks):
    yolov5_ema.uninstall()  # commands of other tests in this process leave it on
    nn_package, dist = (importlib.import_module(f"ultralytics.{name}") for name in ("nn", "utils.dist"))
    before = [dict(vars(module)) for module in (nn_package, tasks, dist)]
    found = yolov5_ema.install("ultralytics")
    assert (found.kind, found.version) == ("ultralytics", ultralytics.__version__)
    assert found.root == Path(ultralytics.__file__).parent and str(found.version) in str(found)
    assert found.relative_name(found.module_name("nn.tasks")) == "nn.tasks"
    wrapped = tasks.parse_model
    assert nn_package.parse_model is wrapped and wrapped.__wrapped__ is before[1]["parse_model"]
    assert yolov5_ema.install(ultralytics) == found and tasks.parse_model is wrapped
    assert yolov5_ema.is_installed("ultralytics") and not yolov5_ema.is_installed()
    with yolov5_ema.installed("ultralytics"):
        yolov5_ema.uninstall()  # YOLOv5's shim, which is not there
    assert yolov5_ema.is_installed("ultralytics")
    yolov5_ema.uninstall("ultralytics")
    yolov5_ema.uninstall("ultralytics")
    assert not yolov5_ema.is_installed("ultralytics")
    assert [dict(vars(module)) for module in (nn_package, tasks, dist)] == before
    with pytest.raises(KeyError, match="EMA"):
        tasks.DetectionModel(with_row([-1, 1, "EMA", [8]]), verbose=False)


def test_wrong_uses(monkeypatch):
    with pytest.raises(UserError, match="error, ours, theirs"):
        yolov5_ema.install("ultralytics", conflicts="mine")
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    monkeypatch.delitem(sys.modules, "ultralytics")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(EngineNotFoundError, match=r"pip install 'yolov5-ema\[ultralytics\]'"):
        yolov5_ema.install("ultralytics")


def test_a_file_of_the_users_goes_before_the_one_that_ships(ultralytics, build, own_folder):
    text = (models_dir() / "ultralytics/yolo11-ema.yaml").read_text(encoding="utf-8")
    Path("yolo11n-ema.yaml").write_text(text.replace("EMA, []", "EMA, [16]"), encoding="utf-8")
    assert ultralytics.YOLO("yolo11n-ema.yaml").model.model[7].groups == 16
    assert ultralytics.YOLO("yolo11s-ema.yaml").model.model[7].groups == 32
    with pytest.raises(FileNotFoundError):
        ultralytics.YOLO("nowhere/yolo11s-ema.yaml")


@pytest.mark.slow
def test_the_processes_of_a_training_on_several_gpus_know_the_blocks(build, own_folder, monkeypatch):
    """The script that ultralytics writes for these processes, run as it runs it; its trainer builds a YAML's model."""
    dist, checks = (importlib.import_module(f"ultralytics.utils.{name}") for name in ("dist", "checks"))
    monkeypatch.setitem(sys.modules, "cloudpickle", pickle)  # which it would install
    monkeypatch.setattr(checks, "check_requirements", lambda *args, **kwargs: True)
    monkeypatch.setattr(dist, "USER_CONFIG_DIR", own_folder)
    monkeypatch.syspath_prepend(own_folder)
    shutil.copy(PLUGINS / "rank_trainer.py", own_folder)
    trainer = object.__new__(importlib.import_module("rank_trainer").Trainer)
    trainer.args, trainer.model, trainer.callbacks = SimpleNamespace(model="yolov8n-ema.yaml"), None, {}
    file = dist.generate_ddp_file(trainer)
    done = subprocess.run(
        [sys.executable, file],
        cwd="/",
        env={**environment(own_folder), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == " ".join(["<class 'yolov5_ema.blocks.ema.EMA'>"] * 2)


def test_train_and_predict_in_fresh_processes(ultralytics, tiny_set, tmp_path):
    printed = run_python(cases.trains, "yolo11n-ema.yaml", tiny_set, 1, 32, 0, cwd=tmp_path)
    biases = ast.literal_eval(printed.rpartition("trained ")[2].split("\n")[0])
    assert min(biases) > 0  # they were 0 at first
    best = tmp_path / "run/weights/best.pt"
    model = torch.load(best, map_location="cpu", weights_only=False)["model"]
    assert type(model.model[7]) is yolov5_ema.EMA
    assert model.yaml["backbone"][7] == [-1, 1, "EMA", []] and model.names == {
        0: "disc",
        1: "box",
        2: "cross",
    }

    image = tiny_set.parent / "images/test/test0.jpg"
    assert run_python(cases.predicts, best, image, cwd=tmp_path).startswith("[7, 10]\n")  # without the adapter
    boxes = torch.load(tmp_path / "boxes.pt")
    assert boxes.shape[0] > 0 and boxes.shape[1] == 6 and boxes.isfinite().all()


@pytest.mark.parametrize("as_text", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_its_command_line_in_a_new_process_knows_the_blocks(ultralytics, tasks, own_folder, as_text):
    """For trials of ``tune`` and for several data sets; up to 8.3 as one text for a shell."""
    yolov5_ema.install("ultralytics")
    bad = yaml.safe_dump(with_row([-1, 1, "EMA", [{"group": 4}]]))
    (own_folder / "bad.yaml").write_text(bad)
    words = [sys.executable, "-m", "ultralytics.cfg.__init__", "train", "model=bad.yaml", "data=x.yaml"]
    options = {"capture_output": True, "text": True, "env": {**os.environ, "PYTHONPATH": str(REPOSITORY)}}
    run = importlib.import_module("ultralytics.engine.trainer").subprocess.run
    done = run(" ".join(words), shell=True, **options) if as_text else run(words, **options)
    assert done.returncode == 2 and "bad.yaml, head row 2: EMA has no option 'group'" in done.stderr
    assert run([sys.executable, "-c", "print(5)"], **options).stdout == "5\n"


def test_the_model_of_a_trial_of_ray_brings_the_adapter(ultralytics, tasks):
    """What Ray gets is pickled for another process; here it is unpickled where the adapter is not installed."""
    yolov5_ema.install("ultralytics")
    yolo = SimpleNamespace(task="detect")
    sent = []
    ultralytics_adapter._in_every_trial(lambda model, **_: sent.append(pickle.dumps(model)), "error", yolo)
    assert vars(yolo) == {"task": "detect"}
    yolov5_ema.uninstall("ultralytics")
    pickle.loads(sent[0])
    assert yolov5_ema.is_installed("ultralytics")


@pytest.mark.slow
def test_ray_tune(tiny_set, own_folder):
    pytest.importorskip("ray.tune")
    (own_folder / "small.yaml").write_text(SMALL_YOLO)
    env = environment(own_folder)
    done = run_fresh(cases.tunes_with_ray, own_folder / "small.yaml", tiny_set, cwd=own_folder, env=env)
    assert "errors 0 True" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n-ema", "yolov8n-ema"])
def test_a_whole_round(ultralytics, tiny_set, own_folder, name):
    """Train, interrupt, resume, validate, predict, export to ONNX, fine-tune; then the weights without the adapter."""
    assert "interrupted" in run_python(cases.trains, f"{name}.yaml", tiny_set, 3, 64, 2, cwd=own_folder)
    weights = own_folder / "run/weights"
    assert len((own_folder / "run/results.csv").read_text().splitlines()) == 1 + 2
    assert "interrupted" not in run_python(cases.trains, weights / "last.pt", tiny_set, 3, 64, 0, cwd=own_folder)
    assert len((own_folder / "run/results.csv").read_text().splitlines()) == 1 + 3

    yolo = ultralytics.YOLO(weights / "best.pt")
    metrics = yolo.val(data=str(tiny_set), imgsz=64, workers=0, device="cpu", plots=False, project=str(own_folder))
    assert metrics.nt_per_class.tolist() == [4, 4, 4] and 0 <= metrics.box.map <= 1
    onnx = yolo.export(format="onnx", imgsz=64, device="cpu", simplify=False)
    session = pytest.importorskip("onnxruntime").InferenceSession(onnx, providers=["CPUExecutionProvider"])
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = ultralytics.YOLO(weights / "best.pt").model.fuse(verbose=False).float().eval()(x)[0]
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert found.shape == (1, 4 + 3, 64 + 16 + 4)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3, rtol=1e-4)

    images = [str(path) for path in sorted((tiny_set.parent / "images/test").glob("*.jpg"))]
    options = {"imgsz": 64, "conf": 0.001, "device": "cpu", "verbose": False}
    of_torch = [result.boxes.data for result in ultralytics.YOLO(weights / "best.pt").predict(images, **options)]
    of_onnx = [ultralytics.YOLO(onnx, task="detect").predict(path, **options)[0].boxes.data for path in images]
    assert sum(map(len, of_torch)) > 0
    for one, other in zip(of_torch, of_onnx):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-3)


# --- files of strangers --------------------------------------------------------------------------


class Code:
    """A class whose pickle makes a folder."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


HOSTILE = {
    "a model": lambda code, model: {"model": code},
    "an argument of the training": lambda code, model: {"model": model, "train_args": {"data": code}},
    "in the model": lambda code, model: {"model": _with_attribute(model, code)},
    "beside the model": lambda code, model: {"model": model, "x": [code]},
}


def _with_attribute(model, code):
    model.args = {"a": code}
    return model


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_checkpoint_runs_nothing(ultralytics, build, tmp_path, content, monkeypatch):
    canary, file = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save(content(Code(canary), build(with_row([-1, 1, "EMA", []]))), file)
    with pytest.raises(CheckpointError, match=r"evil\.pt holds what no checkpoint of ultralytics needs: \w+\.mkdir"):
        ultralytics.YOLO(file)
    assert not canary.exists()
    yolov5_ema.uninstall("ultralytics")
    with contextlib.suppress(Exception):  # it is no model, after all
        ultralytics.YOLO(file)
    assert canary.exists()  # without the adapter
    canary.rmdir()
    yolov5_ema.install("ultralytics")
    monkeypatch.setenv("YOLOV5_EMA_TRUST_CHECKPOINT", "1")
    with contextlib.suppress(Exception):
        ultralytics.YOLO(file)
    assert canary.exists()


@pytest.mark.parametrize("script", [False, True])
def test_download_of_a_strangers_data_yaml_is_not_run(build, tmp_path, script):
    utils = importlib.import_module("ultralytics.data.utils")
    canary = tmp_path / "ran"
    (tmp_path / "x.sh").write_text(f"mkdir {canary}\n")
    download = f"bash {tmp_path}/x.sh" if script else f"import os; os.mkdir({str(canary)!r})"
    data = {"path": str(tmp_path / "set"), "train": "a", "val": "b", "names": ["a"], "download": download}
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match="Nothing was run"):
        utils.check_det_dataset(str(file))
    assert not canary.exists()
    yolov5_ema.uninstall("ultralytics")
    with contextlib.suppress(Exception):
        utils.check_det_dataset(str(file))
    assert canary.exists()


def test_the_archive_of_a_strangers_data_yaml_is_not_fetched(build, tmp_path):
    utils = importlib.import_module("ultralytics.data.utils")
    archive, places = tmp_path / "x.zip", tmp_path / "datasets"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("mine.txt", "lost")
    file = tmp_path / "data.yaml"
    data = {"path": str(tmp_path / "set"), "train": "a", "val": "b", "names": ["a"]}
    file.write_text(yaml.safe_dump({**data, "download": "http://127.0.0.1:9/x.zip"}))
    with pytest.raises(ConfigError, match="Nothing was fetched"):
        utils.check_det_dataset(str(file))
    assert utils.safe_download(archive, dir=places, unzip=True, delete=False) and (places / "mine.txt").exists()
    both = tmp_path / "both.yaml"
    both.write_bytes(yaml.safe_dump(data).encode() + b"#" + archive.read_bytes())
    with pytest.raises(ConfigError, match=r"both\.yaml is an archive as well"):
        utils.check_det_dataset(str(both))


def test_a_label_cache_is_not_run_and_an_honest_one_is_used(build, tmp_path):
    utils = importlib.import_module("ultralytics.data.utils")
    canary, file = tmp_path / "ran", tmp_path / "labels.cache"
    label = {
        "im_file": "a.jpg",
        "shape": (64, 64),
        "cls": np.zeros((1, 1), np.float32),
        "segments": [],
        "normalized": True,
    }
    honest = {"labels": [label], "hash": "x", "results": (1, 0, 0, 0, 1), "msgs": []}
    utils.save_dataset_cache_file("", file, dict(honest), "1.0")
    kept = utils.load_dataset_cache_file(file)
    assert kept["labels"][0]["cls"].tolist() == [[0.0]] and kept["version"] == "1.0"
    utils.save_dataset_cache_file("", file, {**honest, "msgs": [Code(canary)]}, "1.0")
    with pytest.raises(FileNotFoundError):  # this makes ultralytics scan the labels again
        utils.load_dataset_cache_file(file)
    assert not canary.exists()
    yolov5_ema.uninstall("ultralytics")
    utils.load_dataset_cache_file(file)
    assert canary.exists()


def test_a_torchscript_model_that_writes_a_file_is_refused(ultralytics, build, tmp_path):
    class Writing(nn.Module):
        def __init__(self, place: str):
            super().__init__()
            self.place = place

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.ops.aten.save(x, self.place)
            return x

    file = tmp_path / "evil.torchscript"
    torch.jit.script(Writing(str(tmp_path / "written"))).save(str(file))
    with pytest.raises(CheckpointError, match=r"evil\.torchscript.*'save'"):
        ultralytics.YOLO(file, task="detect").predict(np.zeros((64, 64, 3), np.uint8), imgsz=64)
    assert not (tmp_path / "written").exists()
    torch.jit.load(str(file))(torch.zeros(1))
    assert (tmp_path / "written").exists()


# --- nothing that worked without the adapter fails with it ------------------------------------------


def test_weights_go_into_a_yoloe_with_and_without_blocks(tasks):
    """Its head needs embeddings of texts in addition to the feature maps, which are missing where rows are paired."""
    cfg = tasks.yaml_model_load("yoloe-11n.yaml")
    assert cfg["head"][-1][0] == [16, 19, 22]
    cfg["head"] = [*cfg["head"][:-1], [22, 1, "EMA", []], [[16, 19, 23], *cfg["head"][-1][1:]]]
    yolov5_ema.install("ultralytics")
    source = tasks.YOLOEModel("yoloe-11n.yaml", verbose=False)
    copy.deepcopy(source).load(source, verbose=False)
    model = tasks.YOLOEModel(cfg, verbose=False)
    model.load(source, verbose=False)
    assert type(model.model[23]) is yolov5_ema.EMA
    ours, theirs = model.model[24].state_dict(), source.model[23].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_models_without_blocks_are_loaded_by_ultralytics_own_names(build, tasks, monkeypatch):
    seen = []
    yolov5_ema.uninstall("ultralytics")
    load = tasks.BaseModel.load
    monkeypatch.setattr(tasks.BaseModel, "load", lambda self, weights, **_: seen.append((self, weights)))
    yolov5_ema.install("ultralytics")
    plain = with_row([-1, 1, "Conv", [64, 3]])
    source, target, blocks = build(plain), build(plain), build(with_row([-1, 1, "EMA", []]))
    target.load(source)
    blocks.load(source)
    assert seen[0] == (target, source) and seen[1][0] is blocks and seen[1][1] is not source
    yolov5_ema.uninstall("ultralytics")
    monkeypatch.undo()
    assert tasks.BaseModel.load is load


def test_heads_losses_and_backbones_that_ultralytics_keeps_in_checkpoints(build, tasks, tmp_path):
    """v10Detect, the loss that a killed training leaves in last.pt, and torchvision's networks."""
    from ultralytics.nn.modules.block import TorchVision
    from ultralytics.utils import DEFAULT_CFG

    from yolov5_ema.checkpoints.ultralytics_files import load

    model = build(with_row([[2], 1, "v10Detect", ["nc"]], place=1))
    model.args = DEFAULT_CFG
    model.criterion = model.init_criterion()
    model.backbone = TorchVision("mobilenet_v3_small", weights=None)
    torch.save({"model": model}, tmp_path / "a.pt")
    back = load(tmp_path / "a.pt")["model"]
    assert type(back.model[-1]).__name__ == "v10Detect" and type(back.criterion) is type(model.criterion)
    ours, theirs = model.backbone.state_dict(), back.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_functions_of_torchvision_and_of_losses_are_no_layers(build, tmp_path):
    from yolov5_ema.checkpoints.ultralytics_files import load

    for name in (
        "torchvision.models.resnet18",
        "torchvision.models._api.get_model",
        "ultralytics.utils.loss.F",
    ):
        module, _, attribute = name.rpartition(".")
        pickled = f"\x80\x02c{module}\n{attribute}\n)R.".encode("latin-1")
        with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
            archive.writestr("a/data.pkl", pickled)
            archive.writestr("a/version", "3\n")
        with pytest.raises(CheckpointError, match=f"holds what no checkpoint of ultralytics needs: {name}"):
            load(tmp_path / "evil.pt")


def test_a_layer_may_be_called_as_an_operator_of_onnx():
    """YOLO11's layer Attention appears in its TorchScript code; importing torch.onnx defines another Attention."""
    pytest.importorskip("torch.onnx.ops", reason="torch 2.6 has no such operators")
    from yolov5_ema.weights import torchscript_files

    torchscript_files._forbidden.cache_clear()
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    if "onnx::Attention" not in names:
        pytest.skip("this torch has no such operator")
    assert list(torchscript_files._odd_code("attn : __torch__.ultralytics.Attention\n", "a.py")) == []
    assert list(torchscript_files._odd_code("return ops.onnx.Attention(x)\n", "a.py"))
    torchscript_files._forbidden.cache_clear()
