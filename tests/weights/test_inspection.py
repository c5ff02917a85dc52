"""The content of a file is described without running any of it, whatever the file is."""

from __future__ import annotations

import functools
import importlib
import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cases.light_imports import inspects
from fresh_process import run_fresh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from offline_ultralytics import offline
from small_ultralytics import save, small_model
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint

import yolov5_ema
from yolov5_ema.cli.main import main
from yolov5_ema.errors import CheckpointError
from yolov5_ema.weights import inert_pickle
from yolov5_ema.weights.inspection import inspect_file, known_by_module
from yolov5_ema.weights.names import taken_by_torch


class Call:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """A file that runs one of the commands below would create a file."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "ran").exists()


PAYLOADS = {
    "system": Call(os.system, "touch ran"),
    "eval": Call(eval, "open('ran', 'w')"),
    "import": Call(importlib.import_module, "antigravity"),
    "getattr": Call(getattr, Path("ran"), "touch"),
    "partial": Call(functools.partial, os.system, "touch ran"),
    "nested": Call(pickle.loads, pickle.dumps(Call(os.system, "touch ran"))),
}
NAMES = {
    "system": {f"{os.name}.system"},
    "eval": {"builtins.eval"},
    "import": {"importlib.import_module"},
    "getattr": {"builtins.getattr"},
    "partial": {"functools.partial", f"{os.name}.system"},
    "nested": {"pickle.loads"},
}


def save_raw(file: Path, content: bytes) -> Path:
    """A checkpoint in today's format with the given pickle."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/version", "3\n")
    return file


# --- what a checkpoint holds ---------------------------------------------------------------------


def test_a_trained_checkpoint(trained):
    found = inspect_file(trained)
    assert found.kind == "YOLOv5 checkpoint, stripped for inference" and found.optimizer is None
    assert found.warnings == [] and found.outside == [] and found.bytes == trained.stat().st_size
    assert found.training["epoch"] == -1
    (model,) = found.models
    assert model.cls == "models.yolo.Model" and model.layout == "clone"
    assert model.parameters == 1_768_824 and set(model.dtypes) == {"float16", "int64"}
    assert model.classes["YOLOv5"]["C3"] == 8 and model.classes["yolov5_ema"] == {"EMA": 2}
    assert model.names == ["disc", "box", "cross"] and model.strides == [8, 16, 32]
    assert model.anchors == model.cfg["anchors"] and model.cfg["nc"] == 3
    assert [(block.row, block.options["groups"]) for block in model.blocks] == [(7, 32), (10, 32)]
    assert model.cfg["backbone"][7] == [-1, 1, "EMA", []]
    json.dumps(found.as_dict(), allow_nan=False)


def test_nothing_heavy_is_imported(trained):
    done = run_fresh(inspects, trained)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("YOLOv5 checkpoint") and done.stdout.endswith("[]\n")


def small_checkpoint() -> dict[str, object]:
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).half()
    layer.names, layer.stride = {0: "a", 1: "b"}, torch.tensor([8.0, 16.0])
    return {
        "epoch": 7,
        "best_fitness": np.array([0.25]),
        "model": layer,
        "ema": None,
        "updates": np.float64(12),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}, {}]},
        "opt": {"data": Path("x/y.yaml"), "imgsz": 640, "hf_token": "hf_abc", "roboflow_token": None},
        "date": "2026-01-02",
        "git": {"branch": "master"},
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_training_state_and_both_formats_of_torch(tmp_path, legacy):
    torch.save(small_checkpoint(), tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    found = inspect_file(tmp_path / "a.pt")
    assert found.training["epoch"] == 7 and found.training["best_fitness"] == 0.25
    assert found.training["updates"] == 12 and found.training["date"] == "2026-01-02"
    assert found.training["opt"]["data"] == "x/y.yaml" and found.training["opt"]["imgsz"] == 640
    assert found.training["opt"]["hf_token"] == "(not shown)" and found.training["opt"]["roboflow_token"] is None
    assert found.versions["git"] == {"branch": "master"} and found.versions["version"] in ("3", "1001")
    assert found.optimizer == {"groups": 2, "tensors": 1}
    (model,) = found.models
    assert model.parameters == 8 * 3 * 9 + 8 + 16 and model.tensors == 7
    assert model.dtypes == {"float16": 8 * 3 * 9 + 8 + 32, "int64": 1}
    assert model.names == {0: "a", 1: "b"} and model.strides == [8, 16]
    assert found.outside == [] and found.warnings == []


def test_state_dicts_scripts_and_safetensors(tmp_path):
    from safetensors.torch import save_file

    state = {"w": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.float16)}
    torch.save(state, tmp_path / "state.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pt")
    save_file(state, tmp_path / "s.safetensors", {"by": "me"})
    torch.jit.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 2, 2)).save(tmp_path / "script.pt")
    kinds = {}
    for file in sorted(tmp_path.iterdir()):
        found = inspect_file(file)
        assert found.warnings == [], file
        kinds[file.name] = (found.kind, found.models[0].parameters)
    assert kinds["state.pt"] == ("state dict", 11) and kinds["s.safetensors"] == ("safetensors", 11)
    assert kinds["nested.pt"] == ("checkpoint with a state dict under 'state_dict'", 11)
    assert kinds["script.pt"] == ("TorchScript archive", 16)
    assert inspect_file(tmp_path / "s.safetensors").metadata == {"by": "me"}


def test_a_checkpoint_of_ultralytics(tmp_path, own_folder):
    """What belongs there gives no warning; what does not is named. Its kind and task say who takes it."""
    with offline(tmp_path / "config"):
        yolov5_ema.install("ultralytics")
        model = small_model("segment")
        file = save(model, tmp_path / "a.pt")
        found = inspect_file(file)
        assert found.kind == "checkpoint of the package ultralytics (YOLOv8 and later), stripped for inference"
        assert (found.warnings, found.outside) == ([], []) and "for the task segment" in found.notes[-1]
        report = found.models[0]
        assert (report.cls, report.task) == ("ultralytics.nn.tasks.SegmentationModel", "segment")
        assert report.parameters == sum(p.numel() for p in model.parameters())
        assert report.names == {0: "disc", 1: "box", 2: "cross"} and report.strides == [4.0, 8.0]
        assert report.cfg["scale"] == "n" and report.cfg["backbone"][4] == [-1, 1, "EMA", [4]]
        assert [(block.row, block.options["groups"]) for block in report.blocks] == [(4, 4)]
        assert report.classes["ultralytics"]["Segment"] == 1 and "others" not in report.classes
        assert found.training["train_args"]["task"] == "segment"
        assert found.versions["written_by_version"] == "8.4.190"

        torch.save({"model": model, "extra": [Path("x").exists], "n": pickle.PickleBuffer}, tmp_path / "b.pt")
        named = inspect_file(tmp_path / "b.pt")
        assert {"_pickle.PickleBuffer", "pickle.PickleBuffer"} & set(named.outside) and named.warnings
        done = main(["inspect", str(file)])
        assert done == 0


def test_functions_of_ultralytics_are_no_layers():
    for name in ("nn.tasks.torch_safe_load", "nn.tasks.SafeUnpickler", "nn.tasks.Path", "utils.loss.F.x", "utils.YAML"):
        assert not known_by_module(f"ultralytics.{name}")
    for name in ("nn.tasks.DetectionModel", "nn.modules.head.v10Detect", "utils.loss.v8DetectionLoss"):
        assert known_by_module(f"ultralytics.{name}")


def test_shared_and_expanded_tensors_count_what_is_stored(tmp_path):
    layer = nn.Linear(4, 4)
    layer.register_buffer("wide", torch.zeros(1).expand(10**9))
    layer.tied = nn.Linear(4, 4)
    layer.tied.weight = layer.weight
    torch.save({"model": layer}, tmp_path / "a.pt")
    (model,) = inspect_file(tmp_path / "a.pt").models
    assert model.parameters == 16 + 4 + 4 and model.dtypes == {"float32": 16 + 4 + 4 + 1}


# --- what should not be there --------------------------------------------------------------------


@pytest.mark.parametrize("how", PAYLOADS)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, "zip", "legacy"])
def test_malicious_files_are_named_and_not_run(tmp_path, how, protocol):
    content = {"model": None, "ema": [PAYLOADS[how]], "optimizer": {"state": {0: PAYLOADS[how]}}}
    file = tmp_path / "evil.pt"
    if isinstance(protocol, int):
        file.write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=protocol == "zip")
    found = inspect_file(file)
    assert {name.replace("_pickle", "pickle") for name in found.outside} == NAMES[how]
    assert all(any(name in warning for warning in found.warnings) for name in found.outside)


SYSTEM = b"cposix\nsystem\n"
ODD_STEPS = {
    "on the stack": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x09touch ran\x85R.", "posix.system"),
    "computed": (
        b"\x80\x04cbuiltins\nstr\n\x8c\x05posix\x85R\x8c\x06system\x93\x8c\x09touch ran\x85R.",
        "computed",
    ),
    "INST": (b"(S'touch ran'\niposix\nsystem\n.", "posix.system"),
    "OBJ": (b"(" + SYSTEM + b"S'touch ran'\no.", "posix.system"),
    "thrown away": (SYSTEM + b"S'touch ran'\n\x85R0}.", "posix.system"),
    "EXT1": (b"\x80\x02\x82\x05)R.", "copyreg.extension_5"),
    "Python 2's name": (b"\x80\x02c__builtin__\neval\nU\x04None\x85R.", "builtins.eval"),
    "built with a state": (b"\x80\x02" + SYSTEM + b"}b.", "posix.system"),
}


@pytest.mark.parametrize("case", ODD_STEPS)
@pytest.mark.parametrize("zipped", [False, True])
def test_odd_ways_to_a_name(tmp_path, case, zipped):
    content, words = ODD_STEPS[case]
    file = save_raw(tmp_path / "a.pt", content) if zipped else tmp_path / "a.pt"
    if not zipped:
        file.write_bytes(content)
    found = inspect_file(file)
    assert any(words in warning for warning in found.warnings) and found.outside


def test_a_model_that_is_called_is_told(tmp_path):
    """The name is on every allow-list, but a checkpoint fills models with their state and does not call them."""
    torch.save({"model": nn.Conv2d(1, 1, 1)}, tmp_path / "a.pt")
    content = b"\x80\x02cmodels.yolo\nModel\nX\x01\x00\x00\x00x\x85R."
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as archive:
        archive.writestr("a/more.pkl", content)
    found = inspect_file(tmp_path / "a.pt")
    assert found.outside == [] and "models.yolo.Model: called while" in found.warnings[0]


def test_getattr_is_for_a_layers_forward_alone(tmp_path):
    fine = b"\x80\x02cbuiltins\ngetattr\ncmodels.yolo\nDetect\nX\x07\x00\x00\x00forward\x86R"
    wrong = fine.replace(b"cmodels.yolo\nDetect\n", b"cmodels.yolo\nModel\n").replace(b"forward", b"__del__")
    wrong_then_fine = wrong + b"0" + fine[2:]
    tensors = (tmp_path / "t.pt", {"model": nn.Conv2d(1, 1, 1)})
    torch.save(tensors[1], tensors[0])
    for content, expected in (
        (fine, []),
        (wrong, ["builtins.getattr"]),
        (wrong_then_fine, ["builtins.getattr"]),
    ):
        followed = inert_pickle.follow(content + b".")
        assert len(followed.calls) == (2 if content is wrong_then_fine else 1)
        with zipfile.ZipFile(tmp_path / "g.pt", "w") as archive, zipfile.ZipFile(tensors[0]) as good:
            for name in good.namelist():
                archive.writestr(name, good.read(name))
            archive.writestr("t/more.pkl", content + b".")
        assert inspect_file(tmp_path / "g.pt").outside == expected


HEAVY = {
    "deep tuples": b"\x80\x02)" + b"\x85" * 50_000 + b".",
    "deep lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "a key of deep tuples": b"\x80\x02})" + b"\x85" * 50_000 + b"K\x01s.",
    "billion laughs": b"\x80\x02)" + b"2\x86" * 5000 + b".",
    "billion laughs as a key": b"\x80\x02})" + b"2\x86" * 500 + b"K\x01s.",
    "a cycle": b"\x80\x02]q\x00h\x00a.",
    "a huge memo index": b"\x80\x02]r\xff\xff\xff\xff.",
    "a long that is cut": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "a long of megabytes": b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".",
    "a long as text": b"L" + b"9" * 100_000 + b"L\n.",
    "a text of 2^64 bytes": b"\x80\x04\x8d" + b"\xff" * 8 + b"x.",
    "bytes of 2^60": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0fx.",
    "a frame of 2^63": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
    "a stack that is empty": b"\x80\x02RRR.",
    "a key without a value": b"\x80\x02}(K\x01u.",
    "no STOP": b"\x80\x02}",
}


@pytest.mark.parametrize("case", HEAVY)
def test_heavy_pickles_end_in_a_message(tmp_path, case):
    save_raw(tmp_path / "a.pt", HEAVY[case])
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"a\.pt is (not a PyTorch checkpoint|a pickle without)"):
        inspect_file(tmp_path / "a.pt")
    assert time.process_time() - start < 10


def test_too_many_steps_and_too_large_pickles(tmp_path, monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_STEPS", 1000)
    save_raw(tmp_path / "a.pt", b"\x80\x02]" + b"N0" * 1000 + b".")
    with pytest.raises(CheckpointError, match="more than 1,000 opcodes"):
        inspect_file(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"N" * (65 * 2**20))  # 64 kB on the disk
    with pytest.raises(CheckpointError, match="larger than 64 MiB"):
        inspect_file(tmp_path / "b.pt")


def test_names_of_a_pickle_that_breaks_off_are_told(tmp_path):
    (tmp_path / "a.pt").write_bytes(SYSTEM + b"S'touch ran'\n\x85R\xff")
    with pytest.raises(CheckpointError, match=r"is incomplete .* names posix\.system; no code was run"):
        inspect_file(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_pickles_of_the_name(tmp_path):
    torch.save({"model": nn.Conv2d(1, 1, 1)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as archive:
        archive.writestr("a/DATA.pkl", SYSTEM + b".")
    with pytest.raises(CheckpointError, match=r"a/DATA\.pkl' twice, so two readers could read different entries"):
        inspect_file(tmp_path / "a.pt")


def test_files_that_are_no_checkpoints(tmp_path):
    cases = {
        "empty.pt": (b"", "is empty"),
        "text.pt": (b"not a checkpoint", "not a PyTorch checkpoint, or is cut off"),
        "page.pt": (b"<!DOCTYPE html><html>", "a web page"),
        "lfs.pt": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        "graph.onnx": (b"\x08\x08\x12\x07pytorch\x1a\x05", "an ONNX graph"),
        "zip.pt": (b"PK\x03\x04 and nothing more", "not a PyTorch checkpoint, or is cut off"),
        "plain.pt": (pickle.dumps({"a": [1, 2]}, 2), "a pickle without modules or tensors"),
        "cut.safetensors": (struct.pack("<Q", 100) + b'{"a": ', "not a safetensors file, or is cut off"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            inspect_file(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"weights not found: nowhere\.pt"):
        inspect_file(Path("nowhere.pt"))
    with pytest.raises(CheckpointError, match="is a folder"):
        inspect_file(tmp_path)
    with zipfile.ZipFile(tmp_path / "readme.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"without a data\.pkl"):
        inspect_file(tmp_path / "readme.pt")


@pytest.mark.parametrize("header", ["[" * 50_000, "7", "{", json.dumps({"cfg": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]})])
def test_safetensors_with_an_odd_header(tmp_path, header):
    text = json.dumps({"__metadata__": {"yolov5-ema": header}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="metadata under 'yolov5-ema' is no"):
        inspect_file(tmp_path / "a.safetensors")


# --- against other readers -----------------------------------------------------------------------


def test_what_torch_takes_is_taken_to_be_fine_and_nothing_else():
    from torch import _weights_only_unpickler as unpickler

    missed = {name for name in unpickler._get_allowed_globals() if not taken_by_torch(name)}
    assert not missed
    for name in (
        "torch.load",
        "torch.hub.load",
        "torch._utils._rebuild_anything",
        "builtins.eval",
        "torch.float",
    ):
        assert not taken_by_torch(name) and not known_by_module(name)


@pytest.mark.parametrize("how", ["system", "eval", "import", "partial", "nested"])
def test_agrees_with_torch_on_unsafe_names(tmp_path, how):
    torch.save({**small_checkpoint(), "extra": PAYLOADS[how]}, tmp_path / "a.pt")
    of_torch = set(get_unsafe_globals_in_checkpoint(tmp_path / "a.pt"))
    found = inspect_file(tmp_path / "a.pt", allowed=lambda name: False)
    assert set(found.outside) == of_torch
    assert set(inspect_file(tmp_path / "a.pt").outside) == {name for name in of_torch if not known_by_module(name)}


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary(max_size=20),
    lambda held: st.lists(held, max_size=4) | st.dictionaries(st.text(max_size=5), held, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(values, st.integers(0, 5))
def test_plain_values_are_those_of_pickle(value, protocol):
    followed = inert_pickle.follow(pickle.dumps(value, protocol))
    assert inert_pickle.plain(followed.value) == as_plain(value, protocol)
    assert set(followed.names) <= {"_codecs.encode", "builtins.bytes"}


def as_plain(value, protocol):
    if isinstance(value, bytes):
        empty = "<builtins.bytes>" if not value else "<_codecs.encode>"
        return empty if protocol < 3 else f"{len(value):,} bytes"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, list):
        return [as_plain(item, protocol) for item in value]
    if isinstance(value, dict):
        return {key: as_plain(item, protocol) for key, item in value.items()}
    return value


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with random ones changed, removed or doubled, or with the end cut off."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 24))
        kind = max(0, int(rng.integers(-6, 4)))  # mostly one byte: more changes seldom leave a valid pickle
        if kind == 0:
            data[at] = int(rng.integers(256))
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
    return bytes(data)


def check_mutants(folder: Path, content: bytes, count: int, seed: int) -> int:
    """Inspect randomly damaged files; returns how many of them could still be read."""
    rng = np.random.default_rng(seed)
    read = 0
    for _ in range(count):
        file = folder / "mutant.pt"
        if rng.integers(2) or not content.startswith(b"PK"):
            file.write_bytes(mutated(content, rng))
        else:
            save_raw(file, mutated(pickle_of(content), rng))
        try:
            json.dumps(inspect_file(file).as_dict(), allow_nan=False)
            read += 1
        except CheckpointError as error:
            assert str(error).startswith(str(file))
    return read


def pickle_of(content: bytes) -> bytes:
    import io

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def test_broken_checkpoints_end_in_a_message(tmp_path):
    torch.save(small_checkpoint(), tmp_path / "a.pt")
    read = check_mutants(tmp_path, (tmp_path / "a.pt").read_bytes(), 150, seed=0)
    assert 0 < read < 150


@pytest.mark.slow
def test_many_broken_checkpoints_end_in_a_message(tmp_path, trained):
    torch.save(small_checkpoint(), tmp_path / "a.pt")
    torch.save(small_checkpoint(), tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    for file, count in ((tmp_path / "a.pt", 3000), (tmp_path / "b.pt", 3000), (trained, 200)):
        assert 0 < check_mutants(tmp_path, file.read_bytes(), count, seed=1) < count


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=60))
def test_any_bytes_end_in_a_message(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    try:
        inspect_file(tmp_path / "a.pt")
    except CheckpointError as error:
        assert "a.pt" in str(error)
