"""Checkpoints load without running code, whichever YOLOv5 layout their class names belong to."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import plain_yolov5
from fresh_process import run_in_copy
from public_layouts import CASE_IDS, CASES

import yolov5_ema
from yolov5_ema.blocks import create_block
from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.checkpoints.allowed import plain_names
from yolov5_ema.errors import CheckpointError
from yolov5_ema.settings import VARIABLES


@pytest.fixture(scope="module")
def model(engine):
    from yolov5.models.yolo import Model

    from yolov5_ema.cfgs.generator import build_cfg

    torch.manual_seed(0)
    return Model(build_cfg(size="n", block="CBAM", nc=3)).eval()


def as_checkpoint(model):
    return {
        "epoch": 4,
        "best_fitness": np.array([0.5]),
        "model": model,
        "ema": None,
        "updates": 7,
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.01), "params": [0, 1]}]},
        "opt": {"data": Path("data/x.yaml")},
        "date": None,
    }


def dotted_names(path: Path) -> set[str]:
    """The global names in a checkpoint's pickle, read without unpickling."""
    import pickletools

    with zipfile.ZipFile(path) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    return {arg.replace(" ", ".") for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"}


def test_grids_of_another_yolov5_are_computed_anew(engine, model, tmp_path):
    """v6.0 stores the grid of its last image in the checkpoint; the grid of v6.2 and later is half a cell off."""
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)[0]
    kept = list(model.model[-1].grid)
    model.model[-1].grid = [grid - 0.5 for grid in kept]
    checkpoints.save_checkpoint(as_checkpoint(model), tmp_path / "a.pt", engine=engine)
    model.model[-1].grid = kept
    loaded = checkpoints.load_checkpoint(tmp_path / "a.pt", engine=engine)["model"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(image)[0], expected)


def test_round_trip_keeps_every_tensor_and_number(engine, model, tmp_path):
    checkpoints.save_checkpoint(as_checkpoint(model), tmp_path / "a.pt", engine=engine)
    back = checkpoints.load_checkpoint(tmp_path / "a.pt", engine=engine)
    assert type(back["model"]) is type(model)
    assert back["best_fitness"].item() == 0.5 and back["optimizer"]["param_groups"][0]["lr"] == 0.01
    assert back["opt"]["data"] == "data/x.yaml"  # a path becomes text
    ours, theirs = model.state_dict(), back["model"].state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(image)[0], back["model"](image)[0])


def test_the_package_writes_the_names_that_clones_read(engine, model, tmp_path):
    checkpoints.save_checkpoint(as_checkpoint(model), tmp_path / "a.pt", engine=engine)
    names = dotted_names(tmp_path / "a.pt")
    assert f"models.yolo.{type(model).__name__}" in names and "models.common.C3" in names
    assert not any(name.startswith("yolov5.") for name in names)
    assert "yolov5_ema.blocks.cbam.CBAM" in names


def test_the_packages_own_names_are_read_too(engine, model, tmp_path):
    torch.save(as_checkpoint(model), tmp_path / "b.pt")  # as the package alone writes it
    assert f"yolov5.models.yolo.{type(model).__name__}" in dotted_names(tmp_path / "b.pt")
    back = checkpoints.load_checkpoint(tmp_path / "b.pt", engine=engine)
    assert type(back["model"]) is type(model)


@pytest.mark.parametrize("trust", [False, True])
def test_trusted_and_untrusted_loads_agree(engine, model, tmp_path, trust):
    checkpoints.save_checkpoint(as_checkpoint(model), tmp_path / "a.pt", engine=engine)
    back = checkpoints.load_checkpoint(tmp_path / "a.pt", engine=engine, trust=trust)
    assert type(back["model"]) is type(model)
    assert "models.yolo" not in sys.modules  # there is no second copy of the classes, and no alias is left


def test_layers_saved_by_old_torch_are_mended(engine, model, tmp_path):
    import copy

    old = copy.deepcopy(model)
    upsamples = [m for m in old.modules() if isinstance(m, torch.nn.Upsample)]
    for module in upsamples:
        del module.recompute_scale_factor
    assert upsamples
    checkpoints.save_checkpoint(as_checkpoint(old), tmp_path / "old.pt", engine=engine)
    back = checkpoints.load_checkpoint(tmp_path / "old.pt", engine=engine)["model"]
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(back(image)[0], model(image)[0])


class _Touch:
    """An object that runs a command when it is unpickled."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["top", "optimizer", "ema", "names"])
@pytest.mark.parametrize("how", ["system", "eval", "import", "getattr", "partial"])
def test_malicious_checkpoints_are_refused_and_nothing_runs(engine, model, tmp_path, how, place):
    import functools
    import importlib

    marker = tmp_path / "ran"
    payload = {
        "system": _Touch(os.system, f"touch {marker}"),
        "eval": _Touch(eval, f"open({str(marker)!r}, 'w')"),
        "import": _Touch(importlib.import_module, "antigravity"),
        "getattr": _Touch(getattr, Path(marker), "touch"),
        "partial": _Touch(functools.partial, os.system, f"touch {marker}"),
    }[how]
    checkpoint = as_checkpoint(model)
    target = {"top": ("extra", payload), "optimizer": ("optimizer", {"state": {0: payload}})}
    key, value = target.get(place, (place, [payload]))
    checkpoint[key] = value
    torch.save(checkpoint, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"holds what no YOLOv5 checkpoint needs.*--trust-checkpoint"):
        checkpoints.load_checkpoint(tmp_path / "evil.pt", engine=engine)
    assert not marker.exists()


def test_the_refusal_names_what_was_found(engine, tmp_path):
    torch.save({"model": _Touch(os.system, "true")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"(posix|nt)\.system"):
        checkpoints.load_checkpoint(tmp_path / "evil.pt", engine=engine)
    os.environ[VARIABLES["trust"]] = "1"
    try:
        assert checkpoints.load_checkpoint(tmp_path / "evil.pt", engine=engine) == {"model": 0}
    finally:
        del os.environ[VARIABLES["trust"]]


def test_a_model_built_while_unpickling_is_checked_too(engine, tmp_path):
    """Model is on the allow-list, so a pickle may call it; its cfg is then checked by the shim like any other."""
    from yolov5.models.yolo import Model

    marker = tmp_path / "ran"
    cfg = yaml_with(f"open({str(marker)!r}, 'w')")
    torch.save({"model": _Touch(Model, cfg)}, tmp_path / "evil.pt")
    with pytest.raises((CheckpointError, yolov5_ema.ConfigError)):
        checkpoints.load_checkpoint(tmp_path / "evil.pt", engine=engine)
    assert not marker.exists()


def yaml_with(code: str) -> dict[str, object]:
    row = [-1, 1, "Conv", [8, code]]
    return {
        **{"nc": 1, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": 3},
        **{"backbone": [row], "head": [[[0], 1, "Detect", ["nc", "anchors"]]]},
    }


def test_files_that_are_no_checkpoints(engine, model, tmp_path):
    good = tmp_path / "good.pt"
    checkpoints.save_checkpoint(as_checkpoint(model), good, engine=engine)
    cases = {
        "missing.pt": (None, "not found"),
        "empty.pt": (b"", "not a PyTorch checkpoint, or is cut off"),
        "text.pt": (b"not a checkpoint" * 50, "not a PyTorch checkpoint, or is cut off"),
        "cut.pt": (good.read_bytes()[:5000], "not a PyTorch checkpoint, or is cut off"),
        "pickle.pt": (
            pickle.dumps({"a": list(range(200))}),
            "cannot be read|not a PyTorch checkpoint|holds what",
        ),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            checkpoints.load_checkpoint(tmp_path / name, engine=engine)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "no data.pkl in here")
    with pytest.raises(CheckpointError, match=r"zip\.pt"):
        checkpoints.load_checkpoint(tmp_path / "zip.pt", engine=engine)
    with pytest.raises(CheckpointError, match="is a folder"):
        checkpoints.load_checkpoint(tmp_path, engine=engine)


def test_plain_yolov5_of_a_clone_reads_it_without_the_shim(engine, model, tmp_path, clone):
    checkpoints.save_checkpoint(as_checkpoint(model), tmp_path / "a.pt", engine=engine)
    config = tmp_path / "config"
    config.mkdir()
    from yolov5_ema.engine.quirks.fonts import _font_on_disk

    (config / "Arial.ttf").write_bytes(_font_on_disk("Arial.ttf").read_bytes())
    env = {"YOLOV5_CONFIG_DIR": str(config)}
    done = run_in_copy(plain_yolov5.sums_of_ones, clone, tmp_path / "a.pt", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    expected = float(model(torch.ones(1, 3, 64, 64))[0].sum())
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name, is_refused", [("../../x", True), ("/etc/x", True), ("car/..truck", False)])
def test_class_names_do_not_lead_out_of_the_folder_of_crops(engine, tmp_path, name, is_refused):
    layer = torch.nn.Identity()
    layer.names = ["car", name]
    torch.save({"model": layer}, tmp_path / "m.pt")
    if not is_refused:
        loaded = checkpoints.load_checkpoint(tmp_path / "m.pt", engine=engine)
        assert loaded["model"].names == ["car", name]
        return
    with pytest.raises(CheckpointError, match="would lead out of the folder of crops"):
        checkpoints.load_checkpoint(tmp_path / "m.pt", engine=engine)


def test_a_classifier_is_no_detector(engine, tmp_path):
    file = tmp_path / "best.pt"
    torch.save({"format": "yolov5-ema classifier", "model": "resnet50", "state_dict": {}}, file)
    with pytest.raises(CheckpointError, match=r"weights file of the classifier 'resnet50'.*classify predict"):
        checkpoints.load_checkpoint(file, engine=engine)


@pytest.mark.parametrize(("name", "channels", "options"), CASES, ids=CASE_IDS)
def test_all_that_a_block_is_made_of_may_stand_in_a_checkpoint(name, channels, options):
    named = set()

    class Recording(pickle.Unpickler):
        def find_class(self, module, attribute):
            named.add(f"{module}.{attribute}")
            return super().find_class(module, attribute)

    block = create_block(name, channels, **options)
    assert repr(Recording(io.BytesIO(pickle.dumps(block))).load()) == repr(block)
    classes = {one for one in named if not one.startswith(("torch._", "torch.storage", "collections.", "_codecs."))}
    assert classes and classes <= set(plain_names())
