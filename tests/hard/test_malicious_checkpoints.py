"""Every command that reads a checkpoint refuses malicious ones: none of their code runs, and the message says why."""

from __future__ import annotations

import copyreg
import itertools
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from attacked import is_refused, lay_out
from conftest import run_cli
from hostile_yaml import SMALL
from malicious_pickles import CANARY, CONTAINERS, PAYLOADS, PLACES, as_object, write
from torch import nn
from under_watch import called, command, own_place

import yolov5_ema
from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.errors import CheckpointError

COMMANDS: dict[str, tuple[object, ...]] = {
    "inspect": ("evil.pt",),
    "convert": ("evil.pt",),
    "transfer": ("evil.pt", "--cfg", "small.yaml", "-o", "out.pt"),
    "train": ("--weights", "evil.pt", "--data", "good.yaml", "--cfg", "small.yaml"),
    "val": ("--weights", "evil.pt", "--data", "good.yaml"),
    "detect": ("--weights", "evil.pt", "--source", "images/val"),
    "export": ("--weights", "evil.pt", "--include", "onnx"),
    "evaluate": ("--weights", "evil.pt", "--data", "good.yaml"),
    "predict": ("--weights", "evil.pt", "--source", "images/val"),
}


@pytest.fixture(scope="module")
def engine():
    with yolov5_ema.installed() as engine:
        with own_place() as folder:
            lay_out(folder)
            (folder / "evil.pt").write_bytes(b"PK\x03\x04 and nothing more")
            for name in COMMANDS:  # what is done once in each process is done before anything is watched
                called(lambda name=name: run(name), folder, watch=False)
        yield engine


@pytest.fixture(scope="module")
def good(engine, tmp_path_factory) -> Path:
    """A checkpoint of the small detector, in today's format."""
    from yolov5.models.yolo import Model

    file = tmp_path_factory.mktemp("good") / "good.pt"
    model = Model({**SMALL}).eval()
    checkpoints.save_checkpoint({"epoch": 1, "model": model, "ema": None, "optimizer": None}, file, engine=engine)
    return file


def run(name: str) -> int:
    from yolov5_ema.cli.main import main

    return main([name, *map(str, COMMANDS[name])])


def refused_by(name: str, folder: Path, words: str) -> None:
    is_refused(name, COMMANDS[name], folder, words)


def check_payload(
    payload: str, place: str, container: str, names: tuple[str, ...], good: Path, words: str | None = None
) -> None:
    content, word = PAYLOADS[payload]
    with own_place() as folder:
        lay_out(folder)
        write(folder / "evil.pt", content, place, container, good)
        for name in names:
            refused_by(name, folder, words or word)
        with pytest.raises(CheckpointError):
            yolov5_ema.load("evil.pt", "cpu")
        assert not (folder / CANARY).exists()


# each payload at one place of one kind of file, with one command; the slow tests try all of them
ONE_EACH = list(zip(PAYLOADS, itertools.cycle(PLACES), itertools.cycle(CONTAINERS[:3]), itertools.cycle(COMMANDS)))


@pytest.mark.parametrize(("payload", "place", "container", "name"), ONE_EACH)
def test_a_payload_is_refused(engine, good, payload, place, container, name):
    check_payload(payload, place, container, (name,), good)


@pytest.mark.slow
@pytest.mark.parametrize(("payload", "place", "container"), [case[:3] for case in ONE_EACH])
def test_a_payload_is_refused_by_every_command(engine, good, payload, place, container):
    check_payload(payload, place, container, tuple(COMMANDS), good)


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("place", PLACES)
def test_all_payloads_at_all_places(engine, good, place, container):
    # a second pickle is refused before anybody looks at what it holds
    words = "twice" if container == "second pickle" else None
    for payload in PAYLOADS:
        check_payload(payload, place, container, ("inspect", "convert", "transfer", "val"), good, words)


def test_the_watch_sees_what_a_trusted_file_runs(engine, good):
    """The tests above can fail: with --trust-checkpoint, the same files do run."""
    ran = set()
    for payload in ("posix.system", "eval", "exec", "open", "subprocess.Popen", "STACK_GLOBAL", "INST"):
        with own_place() as folder:
            lay_out(folder)
            write(folder / "evil.pt", PAYLOADS[payload][0], "top", "archive", good)
            try:
                command("convert", "evil.pt", "--trust-checkpoint", folder=folder)
            except AssertionError:
                ran.add(payload)
            if payload == "subprocess.Popen":  # nobody waits for its process, so the folder must not be deleted first
                deadline_s = time.monotonic() + 5
                while not (folder / CANARY).exists() and time.monotonic() < deadline_s:
                    time.sleep(0.02)
            if (folder / CANARY).exists():
                ran.add(payload)
    assert ran == {"posix.system", "eval", "exec", "open", "subprocess.Popen", "STACK_GLOBAL", "INST"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_second_pickle_in_the_archive_is_refused_too(engine, good):
    for payload in ("posix.system", "a model is called", "a key nested deep"):
        check_payload(payload, "top", "second pickle", tuple(COMMANDS), good, words="twice")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol(engine, tmp_path, protocol):
    """Python's own pickles of a call, in an archive and bare, whether torch accepts them or not."""
    import os
    import pickle

    content = pickle.dumps({"model": None, "optimizer": [as_object(os.system, f"touch {CANARY}")]}, protocol)
    for zipped in (False, True):
        with own_place() as folder:
            lay_out(folder)
            if zipped:
                with zipfile.ZipFile("evil.pt", "w") as archive:
                    archive.writestr("a/data.pkl", content)
                    archive.writestr("a/version", "3\n")
            else:
                (folder / "evil.pt").write_bytes(content.ljust(80, b"."))
            for name in ("inspect", "convert", "val"):
                refused_by(name, folder, "")
            assert not (folder / CANARY).exists()


def test_torchscript_under_the_name_of_a_checkpoint(engine):
    with own_place() as folder:
        lay_out(folder)
        script = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1)))
        torch.jit.save(script, "evil.pt")
        for name in ("convert", "transfer", "train", "val", "detect", "export", "evaluate"):
            refused_by(name, folder, "evil.pt")


CODE_OF_LAYERS = {
    "layers in a circle": lambda a, b: a.add_module("b", b) or b.add_module("a", a),
    "layers that hold each other": lambda a, b: [doubled(b, 40) for _ in [0]] and a.add_module("b", b),
    "a layer that holds no layer": lambda a, b: a._modules.update(x=3),
    "a layer without anything": lambda a, b: a.__dict__.clear(),
    "a parameter that is a text": lambda a, b: a._parameters.update(weight="x"),
}


def doubled(layer: nn.Module, times: int) -> None:
    for _ in range(times):
        below = nn.Sequential()
        layer.add_module("x", below)
        layer.add_module("y", below)
        layer = below


@pytest.mark.parametrize("case", CODE_OF_LAYERS)
def test_layers_as_nobody_builds_them(engine, case):
    model, other = nn.Sequential(), nn.Sequential()
    CODE_OF_LAYERS[case](model, other)
    with own_place() as folder:
        lay_out(folder)
        torch.save({"model": nn.ModuleList([model]) if case != "a layer without anything" else model}, "evil.pt")
        refused_by("convert", folder, "evil.pt")
        refused_by("transfer", folder, "evil.pt")
        with pytest.raises(CheckpointError, match=r"evil\.pt.*(in it|each other)"):
            checkpoints.load_checkpoint("evil.pt", engine=engine)


class Reduced:
    """An object that a pickle makes by a call and then fills with a state."""

    def __init__(self, *reduced: object) -> None:
        self.reduced = reduced

    def __reduce_ex__(self, protocol: int):
        return self.reduced


class ManyLayers(nn.LSTM):
    """An LSTM, as a pickle describes it."""

    def __init__(self, count: object) -> None:
        super().__init__(1, 1)
        self.count = count

    @property
    def __class__(self):
        return nn.LSTM

    def __reduce_ex__(self, protocol: int):
        held = {"bidirectional": False, "bias": True, "proj_size": 0, "all_weights": [[0]]}
        return copyreg.__newobj__, (nn.LSTM,), {**vars(nn.Module()), **held, "num_layers": self.count}


def filled_anew(*state: object) -> Reduced:
    """A tensor that is placed on its storage again, with another size."""
    rebuild, arguments, *_ = torch.zeros(4).__reduce_ex__(2)
    return Reduced(rebuild, arguments, (arguments[0], *state))


# Reading these files, torch itself would need much time or memory, or does what no check of a layer notices.
GREEDY = {  # name -> (payload, expected message)
    "layers that are counted through": (ManyLayers(3_000_000), "LSTM: has more than 1000 layers"),
    "as a number of NumPy's": (ManyLayers(np.int64(3_000_000)), "LSTM: has more than 1000 layers"),
    "a larger tensor": (filled_anew(0, (10**6,), (1,)), "_rebuild_tensor_v2: given a state"),
    "one number as many": (filled_anew(0, (2**40,), (0,)), "_rebuild_tensor_v2: given a state"),
    "a storage of any size": (Reduced(torch.FloatStorage, (10**6,)), "FloatStorage: called"),
    "a number of any length": (10**400, "a whole number of more than 64 bits"),
    "a tensor of any size": (Reduced(torch.FloatTensor, (10**6,)), "FloatTensor: called"),
}


@pytest.mark.parametrize("case", GREEDY)
def test_what_asks_for_time_or_memory_while_it_is_read(engine, case):
    with own_place() as folder:
        lay_out(folder)
        value, words = GREEDY[case]
        torch.save({"model": nn.Sequential(), "x": value}, "evil.pt")
        for name in ("convert", "val"):
            refused_by(name, folder, words)


def test_layers_of_several_are_taken(engine, tmp_path):
    torch.save({"model": nn.Sequential(nn.LSTM(2, 3, num_layers=2))}, tmp_path / "lstm.pt")
    assert checkpoints.load_checkpoint(tmp_path / "lstm.pt", engine=engine)["model"][0].num_layers == 2


def test_an_archive_that_unpacks_to_gigabytes(engine):
    with own_place() as folder:
        lay_out(folder)
        with zipfile.ZipFile("evil.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", b"\x80\x02}.")
            with archive.open("a/data/0", "w", force_zip64=True) as stream:
                for _ in range(300):
                    stream.write(bytes(2**20))
        for name in ("inspect", "convert", "val"):
            refused_by(name, folder, "unpack")


def test_a_storage_that_is_shorter_than_the_file_says(engine):
    with own_place() as folder:
        lay_out(folder)
        torch.save({"model": torch.zeros(4)}, "good.pt")
        with zipfile.ZipFile("good.pt") as source, zipfile.ZipFile("evil.pt", "w") as target:
            for entry in source.namelist():
                content = source.read(entry)
                target.writestr(entry, content[:8] if entry.endswith("/data/0") else content)
        for name in ("convert", "val"):
            refused_by(name, folder, "shorter")


@pytest.mark.parametrize(
    "name", ["train", *(pytest.param(name, marks=pytest.mark.slow) for name in ("val", "detect", "export"))]
)
def test_as_a_process_of_its_own(engine, good, name):
    with own_place() as folder:
        lay_out(folder)
        write(folder / "evil.pt", PAYLOADS["posix.system"][0], "optimizer", "archive", good)
        done = run_cli(name, *COMMANDS[name], cwd=folder)
        assert done.returncode == 2 and "posix.system" in done.stderr and "Traceback" not in done.stderr
        assert not (folder / CANARY).exists() and not (folder / "runs").exists()


def test_the_good_one_is_taken(engine, good):
    """The files above are refused because of the payload."""
    with own_place() as folder:
        lay_out(folder)
        shutil.copy(good, "evil.pt")
        code, said = command("inspect", "evil.pt", folder=folder)
        assert code == 0, said
        code, said = command("convert", "evil.pt", folder=folder)
        assert code == 0 and (folder / "evil.safetensors").exists(), said
