"""Weights of any system and Python load; for a file that is not a checkpoint, every command says what it is."""

from __future__ import annotations

import pathlib
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from torch import nn

from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.cli.main import main
from yolov5_ema.errors import CheckpointError
from yolov5_ema.weights.foreign_names import advice_for, release_with
from yolov5_ema.weights.inspection import inspect_file


@pytest.fixture(scope="module")
def model(engine):
    from yolov5.models.yolo import Model

    torch.manual_seed(0)
    return Model(build_cfg(size="n", block="CBAM", nc=2)).eval()


class Called:
    """Pickled as a call of a class by its dotted name, whichever system and Python have that class."""

    def __init__(self, name: str, *args: object) -> None:
        self.module, _, self.name = name.rpartition(".")
        self.args = args


class _Pickler(pickle._Pickler):  # the pickler in pure Python can be changed
    def save(self, obj, save_persistent_id=True):
        if not isinstance(obj, Called):
            return super().save(obj, save_persistent_id)
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        super().save(obj.args)
        self.write(pickle.REDUCE)


def save(content: object, file: Path, *, old: bool = False) -> Path:
    """`torch.save`, but `Called` objects can be saved too, in today's format or that of torch before 1.6."""
    module = ModuleType("a_pickle")
    module.__dict__.update({**vars(pickle), "Pickler": _Pickler})
    torch.save(content, file, pickle_module=module, _use_new_zipfile_serialization=not old)
    return file


# --- paths ---------------------------------------------------------------------------------------

WINDOWS, POSIX = ("C:\\", "sets", "cars.yaml"), ("/", "sets", "cars.yaml")
OF_SYSTEMS = {
    f"{module}.{kind}{name}": (parts, text)
    for module in ("pathlib", "pathlib._local")  # for Python 3.13
    for kind in ("", "Pure")
    for name, parts, text in (
        ("WindowsPath", WINDOWS, "C:\\sets\\cars.yaml"),
        ("PosixPath", POSIX, "/sets/cars.yaml"),
    )
}


def checkpoint_with(value: object, model: object) -> dict[str, object]:
    return {"epoch": -1, "model": model, "optimizer": None, "opt": {"data": value}}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", OF_SYSTEMS)
def test_a_path_of_any_system_and_python_is_text(engine, tmp_path, name, trust):
    parts, text = OF_SYSTEMS[name]
    file = save(checkpoint_with(Called(name, *parts), nn.Identity()), tmp_path / "a.pt")
    assert checkpoints.load_checkpoint(file, engine=engine, trust=trust)["opt"] == {"data": text}
    found = inspect_file(file, {name for _, name in checkpoints.allow_list(engine)}.__contains__)
    assert found.training["opt"] == {"data": text} and found.warnings == []
    assert inspect_file(file).warnings == []  # only by the names of modules


def test_plain_torch_refuses_these_paths(tmp_path):
    """The test above can fail."""
    for name in ("pathlib.WindowsPath", "pathlib._local.PosixPath"):
        if sys.platform == "win32" or sys.version_info >= (3, 13):
            pytest.skip("this Python has them")
        file = save({"a": Called(name, "x")}, tmp_path / "a.pt")
        with pytest.raises((NotImplementedError, ModuleNotFoundError)):
            torch.load(file, weights_only=False)


@pytest.mark.parametrize("state", [{"touch": 1}, {"_str": "/etc/passwd"}])
def test_a_path_is_no_object_that_can_be_filled_or_called(engine, tmp_path, state):
    """A real path could be filled with a state, and its methods open files; text cannot be filled."""

    class Filled(Called):
        pass

    class Pickler(_Pickler):
        def save(self, obj, save_persistent_id=True):
            super().save(obj, save_persistent_id)
            if isinstance(obj, Filled):
                super().save(state)
                self.write(pickle.BUILD)

    module = ModuleType("a_pickle")
    module.__dict__.update({**vars(pickle), "Pickler": Pickler})
    content = checkpoint_with(Filled("pathlib.PosixPath", str(tmp_path / "x")), nn.Identity())
    torch.save(content, tmp_path / "a.pt", pickle_module=module)
    with pytest.raises(CheckpointError, match="holds what no YOLOv5 checkpoint needs"):
        checkpoints.load_checkpoint(tmp_path / "a.pt", engine=engine)
    assert not any(isinstance(value, type) and issubclass(value, pathlib.PurePath) for value, _ in allowed(engine))


def allowed(engine):
    return checkpoints.allow_list(engine)


def test_a_path_by_another_name_of_pathlib_is_refused(engine, tmp_path):
    for name in ("pathlib.Path", "pathlib._local.Path", "pathlib._local.os.system", "pathlib.os.system"):
        file = save(checkpoint_with(Called(name, "touch ran"), nn.Identity()), tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match="holds what no YOLOv5 checkpoint needs: pathlib"):
            checkpoints.load_checkpoint(file, engine=engine)


# --- torch's old format --------------------------------------------------------------------------


def test_inspect_says_the_same_of_both_formats_of_torch(engine, model, tmp_path):
    found = [inspect_file(save(checkpoint_with(None, model), tmp_path / "a.pt", old=old)) for old in (False, True)]
    new, old = (one.models[0] for one in found)
    assert old.cls == "yolov5.models.yolo.Model" and old.cfg["nc"] == 2
    assert [(block.row, block.options) for block in old.blocks] == [(b.row, b.options) for b in new.blocks]
    assert len(old.blocks) == 2 and old.classes == new.classes and old.anchors == new.anchors
    assert found[1].kind == found[0].kind == "YOLOv5 checkpoint, stripped for inference"


def test_layers_in_the_old_format_load_where_they_are_trusted(engine, model, tmp_path):
    file = save(checkpoint_with(Called("pathlib.WindowsPath", "x"), model), tmp_path / "a.pt", old=True)
    with pytest.raises(CheckpointError, match=r"format of torch before 1\.6 and holds layers.*--trust-checkpoint"):
        checkpoints.load_checkpoint(file, engine=engine)
    loaded = checkpoints.load_checkpoint(file, engine=engine, trust=True)
    assert loaded["opt"] == {"data": "x"} and type(loaded["model"]) is type(model)


# --- what is no checkpoint -----------------------------------------------------------------------


def write_others(folder: Path, model: nn.Module) -> dict[str, str]:
    """Files that users pass as weights, and what every command must say about each."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(state, folder / "state.pt")
    torch.save({"model": state, "epoch": 3}, folder / "states.pt")
    checkpoints_of_a_model = {"bare.pt": model}
    for name, content in checkpoints_of_a_model.items():
        torch.save(content, folder / name)
    torch.jit.script(nn.Linear(2, 2)).save(str(folder / "script.pt"))
    (folder / "page.pt").write_text("\ufeff\n<!DOCTYPE html><html><body>404</body></html>" + " " * 100)
    (folder / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 14\n")
    (folder / "graph.pt").write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x05" + bytes(80))
    (folder / "error.pt").write_text('{"message": "Not Found"}')
    (folder / "tensors.pt").write_bytes((60).to_bytes(8, "little") + b'{"a": ' + b" " * 60)
    return {
        "state.pt": "is a state dict: tensors without a model. .*convert .*state.pt --cfg MODEL.yaml",
        "states.pt": "is a state dict under the key 'model': tensors without a model. .*--cfg MODEL.yaml",
        "bare.pt": r"is a bare model \(of class yolov5\.models\.yolo\.Model\).*--cfg MODEL.yaml",
        "script.pt": "is a TorchScript archive, exported from a checkpoint. 'predict', 'evaluate'",
        "page.pt": "is not a PyTorch checkpoint but a web page",
        "lfs.pt": "is not a PyTorch checkpoint but a pointer of Git LFS; .*git lfs pull",
        "graph.pt": "is not a PyTorch checkpoint but an ONNX graph, exported",
        "error.pt": "is not a PyTorch checkpoint but JSON",
        "tensors.pt": "is not a PyTorch checkpoint but safetensors.*yolov5-ema convert",
    }


@pytest.mark.parametrize("names", [("val", "visualize", "transfer"), pytest.param((), marks=pytest.mark.slow)])
def test_other_files_are_named_by_every_command(engine, model, own_folder, tiny_set, capsys, names):
    images = str(tiny_set.parent / "images/val")
    commands = [
        ["val", "--data", str(tiny_set), "--weights"],
        ["detect", "--source", images, "--weights"],
        ["train", "--data", str(tiny_set), "--cfg", "yolov5n-ema.yaml", "--weights"],
        ["export", "--include", "torchscript", "--weights"],
        ["predict", "--source", images, "-o", "out.json", "--weights"],
        ["visualize", "--source", images, "--weights"],
        ["evaluate", "--data", str(tiny_set), "--weights"],
        ["classify", "val", "--data", images, "--weights"],
        ["transfer", "--cfg", "yolov5n-ema.yaml", "--nc", "2", "-o", "t.pt"],
        ["convert", "-o", "c"],
    ]
    words = write_others(own_folder, model)
    before = set(own_folder.iterdir())
    taken = {("transfer", "bare.pt"), ("convert", "bare.pt"), ("convert", "tensors.pt")}  # these use it
    for command in [one for one in commands if not names or one[0] in names]:
        for name, expected in words.items():
            if (command[0], name) in taken:
                continue
            assert main([*command, name]) == 2, (command, name)
            said = " ".join(capsys.readouterr().err.split())
            assert_said(said, expected, (command, name))
    assert set(own_folder.iterdir()) == before


def assert_said(said: str, expected: str, what: object) -> None:
    import re

    assert re.search(expected.replace("is a", "(It )?is a", 1), said), (what, said)


def test_an_exported_model_under_its_own_name_is_left_to_what_runs_it(engine, model, own_folder, tiny_set, capsys):
    """The suffix says what it is; a web page with that suffix is still a web page."""
    (own_folder / "page.onnx").write_text("<html>")
    (own_folder / "graph.onnx").write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x05" + bytes(80))
    source = str(tiny_set.parent / "images/val")
    assert main(["detect", "--source", source, "--weights", "page.onnx"]) == 2
    assert "but a web page" in capsys.readouterr().err
    assert main(["detect", "--source", source, "--weights", "graph.onnx"]) == 2
    assert "not an ONNX file, or is cut off" in capsys.readouterr().err  # read as one


@pytest.mark.parametrize(("key", "prefix"), [("", ""), ("model", "module."), ("state_dict", "model.")])
def test_convert_makes_a_checkpoint_of_a_state_dict(engine, model, own_folder, key, prefix):
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    torch.save({key: state, "epoch": 1} if key else state, "state.pt")
    Path("cfg.yaml").write_text(yaml.safe_dump(build_cfg(size="n", block="CBAM", nc=2)))
    assert main(["convert", "state.pt", "--cfg", "cfg.yaml"]) == 0
    back = checkpoints.load_checkpoint("state-whole.pt", engine=engine)["model"]
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(back(image)[0], model(image)[0])


def test_convert_of_a_model_saved_by_itself_keeps_its_names(engine, model, own_folder):
    model.names = ["car", "plane"]
    torch.save(model, "bare.pt")
    Path("cfg.yaml").write_text(yaml.safe_dump(build_cfg(size="n", block="CBAM", nc=2)))
    assert main(["convert", "bare.pt", "--cfg", "cfg.yaml", "-o", "whole.pt"]) == 0
    back = checkpoints.load_checkpoint("whole.pt", engine=engine)["model"]
    assert list(back.names) == ["car", "plane"]


def test_a_state_dict_that_runs_something_is_refused_by_convert(engine, model, own_folder, capsys):
    save({"a": torch.zeros(2), "b": Called("posix.system", "touch ran")}, own_folder / "evil.pt")
    Path("cfg.yaml").write_text(yaml.safe_dump(build_cfg(size="n", block="CBAM", nc=2)))
    assert main(["convert", "evil.pt", "--cfg", "cfg.yaml", "-o", "whole.pt"]) == 2
    assert "posix.system" in capsys.readouterr().err and not Path("ran").exists()
    assert not Path("whole.pt").exists()
    torch.load("evil.pt", weights_only=False)  # the control: what the file does when it is loaded
    assert Path("ran").exists()


# --- classes that the YOLOv5 at hand does not have -----------------------------------------------


@pytest.mark.parametrize(
    ("name", "helps", "not_said"),
    [
        ("models.common.SPPCSPC", "from a fork .*--yolov5", "--plugin|newer|--trust"),
        ("yolov5.models.yolo.IDetect", "from a fork .*--yolov5", "--plugin|newer|--trust"),
        ("models.common.C3x", "pass YOLOv5 v7.0 or later with --yolov5", "--plugin|--trust|fork"),
        ("models.yolo.Segment", "pass YOLOv5 v7.0 or later with --yolov5", "--plugin|--trust|fork"),
        ("models.experimental.GhostConv", "pass YOLOv5 v5.0 with --yolov5", "--plugin|--trust|fork"),
        ("models.swin.SwinBlock", "from a fork.*--yolov5 and, .*--trust-checkpoint", "--plugin"),
        ("models.common.AutoShape", "the wrapper that torch.hub puts", "--plugin|--trust"),
        ("yolov5_ema.blocks.later.Later", "pip install -U yolov5-ema", "--plugin|--trust"),
        ("__main__.MyBlock", "script or notebook that saved", "--trust"),
        ("my_block.Scale", "--plugin; .*--trust-checkpoint", "fork"),
        ("posix.system", "--trust-checkpoint", "--plugin|fork"),
    ],
)
def test_advice_is_what_helps(engine, tmp_path, name, helps, not_said):
    file = save(checkpoint_with(Called(name), nn.Identity()), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"{name}\. None of its code was run\. .*{helps}") as caught:
        checkpoints.load_checkpoint(file, engine=engine)
    advice = str(caught.value).split("None of its code was run.")[1]
    import re

    assert not re.search(not_said, advice), advice


def test_every_layer_of_the_yolov5_at_hand_is_known_to_be_of_a_release(engine):
    wrappers = ("AutoShape", "DetectMultiBackend", "Detections")
    names = {name for _, name in checkpoints.allow_list(engine) if name.startswith("models.")}
    unknown = {name for name in names if not release_with(name) and not name.endswith(wrappers)}
    assert unknown == set()


def test_dangerous_names_get_no_advice_for_forks():
    assert "--yolov5" not in advice_for(["posix.system", "models.common.SPPCSPC"], "YOLOv5 6.0.7")
