"""Whatever a weights file contains, the result is a message or a model; no hang or crash, and no code is run."""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_yaml import SMALL, as_text, mutated_bytes, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malicious_pickles import CANARY, PAYLOADS, PLACES, program
from torch import nn
from under_watch import called, command, own_place, peak_memory

import yolov5_ema
from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.checkpoints.conversion import to_safetensors

GOOD: dict[str, bytes] = {}
"""Good files by their kinds; `prepare` makes them."""

OPCODES = b"().0123]}NRKMJGXUqrhjtlsaeubQ\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x90\x91\x92\x93\x94\x95oidc"
NUMBERS = [0, 1, 7, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, -1, -(2**31)]


def prepare(engine: Any) -> None:
    """Make the valid files once in each process."""
    if GOOD:
        return
    from yolov5.models.yolo import Model

    torch.manual_seed(0)
    model = Model(copy.deepcopy(SMALL)).eval()
    state = {"momentum_buffer": torch.zeros(3), "step": torch.tensor(4.0)}
    whole = {
        "epoch": 4,
        "best_fitness": np.array([0.5]),
        "model": model,
        "ema": model,
        "updates": 7,
        "optimizer": {"state": {0: state}, "param_groups": [{"lr": np.float64(0.01), "params": [0, 1]}]},
        "opt": {"data": Path("x.yaml"), "imgsz": 64},
        "hyp": {"lr0": 0.01},
        "date": "today",
    }
    with own_place() as folder:
        checkpoints.save_checkpoint(whole, folder / "whole.pt", engine=engine)
        checkpoints.save_checkpoint({"model": model, "ema": None}, folder / "small.pt", engine=engine)
        torch.save({"w": torch.zeros(2, 3), "b": torch.zeros(5).half()}, folder / "state.pt")
        torch.save({"w": torch.zeros(2, 3)}, folder / "old.pt", _use_new_zipfile_serialization=False)
        torch.save(whole["optimizer"], folder / "optimizer.pt", _use_new_zipfile_serialization=False)
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1))), folder / "script.pt")
        to_safetensors(folder / "small.pt", folder / "small.safetensors", folder / "small.yaml", engine=engine)
        GOOD.update({file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".yaml"})
    check_checkpoint(("small.pt", GOOD["small.pt"]), engine, watch=False)
    check_checkpoint(("small.safetensors", GOOD["small.safetensors"]), engine, watch=False)


def pickle_of(content: bytes) -> tuple[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return name, archive.read(name)


def with_entries(content: bytes, changes: dict[str, bytes | None], compressed: bool = False) -> bytes:
    """An archive with some entries replaced or left out."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as archive,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as target,
    ):
        for name in archive.namelist():
            changed = changes.get(name, archive.read(name))
            if changed is not None:
                target.writestr(name, changed)
    return out.getvalue()


@st.composite
def changed_pickles(draw: Any, data: bytes) -> bytes:
    """A pickle with some opcodes, numbers, names and bytes changed."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(2, max(2, len(data) - 2)))
        what = draw(st.sampled_from(["opcode", "opcode", "number", "name", "text", "bytes", "payload", "inserted"]))
        if what == "opcode":
            data = data[:at] + bytes([draw(st.sampled_from(OPCODES))]) + data[at + 1 :]
        elif what == "inserted":
            data = data[:at] + bytes(draw(st.lists(st.sampled_from(OPCODES), min_size=1, max_size=4))) + data[at:]
        elif what == "number":
            ones = [i for i in range(2, len(data) - 2) if data[i : i + 1] in (b"K", b"M", b"J")]
            if ones:
                at = draw(st.sampled_from(ones))
                width = {b"K": 2, b"M": 3, b"J": 5}[data[at : at + 1]]
                number = draw(st.sampled_from(NUMBERS) | st.integers(-3, 300))
                data = data[:at] + b"\x8a\x08" + struct.pack("<q", number) + data[at + width :]
        elif what == "name":
            old, new = draw(st.sampled_from(NAMES)), draw(st.sampled_from(NAMES))
            data = data.replace(old, new, draw(st.integers(1, 3)))
        elif what == "text":
            for old, new in draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=2)):
                data = data.replace(b"X" + struct.pack("<I", len(old)) + old, b"X" + struct.pack("<I", len(new)) + new)
        elif what == "payload":
            payload = PAYLOADS[draw(st.sampled_from(sorted(PAYLOADS)))][0]
            data = data[:at] + payload + data[at:]
        else:
            data = draw(mutated_bytes(data, 2))
    return data


NAMES = [
    *(
        b"cmodels.yolo\nModel\n",
        b"cmodels.yolo\nDetect\n",
        b"cmodels.common\nConv\n",
        b"cmodels.common\nC3\n",
    ),
    *(
        b"ctorch.nn.modules.conv\nConv2d\n",
        b"ctorch.nn.modules.batchnorm\nBatchNorm2d\n",
        b"ctorch\nFloatStorage\n",
    ),
    *(
        b"ctorch\nHalfStorage\n",
        b"ctorch\nLongStorage\n",
        b"ctorch\nDoubleStorage\n",
        b"ctorch\nBoolStorage\n",
    ),
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ccollections\nOrderedDict\n",
    ),
    *(b"cyolov5_ema.blocks.ema\nEMA\n", b"ctorch.nn.modules.container\nSequential\n", b"cposix\nsystem\n"),
    *(
        b"ctorch.nn.modules.container\nModuleList\n",
        b"cnumpy\ndtype\n",
        b"c__builtin__\nset\n",
        b"ctorch\ndevice\n",
    ),
    *(b"ctorch._utils\n_rebuild_qtensor\n", b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch\nSize\n"),
    *(b"ctorch.nn.modules.upsampling\nUpsample\n", b"ctorch.nn.modules.pooling\nMaxPool2d\n"),
]
TEXTS = [
    *(
        (b"_modules", b"_buffers"),
        (b"_parameters", b"_modules"),
        (b"_buffers", b"_parameters"),
        (b"model", b"mode"),
    ),
    *(
        (b"ema", b"model"),
        (b"model", b"ema"),
        (b"yaml", b"yaml_file"),
        (b"stride", b"names"),
        (b"names", b"stride"),
    ),
    *(
        (b"nc", b"no"),
        (b"anchors", b"stride"),
        (b"weight", b"bias"),
        (b"storage", b"module"),
        (b"cpu", b"cuda:0"),
    ),
    *(
        (b"cpu", b"meta"),
        (b"0", b"1"),
        (b"1", b"../../x"),
        (b"3", b"999999"),
        (b"f", b"i"),
        (b"type", b"forward"),
    ),
    *(
        (b"training", b"__class__"),
        (b"i", b"forward"),
        (b"inplace", b"_forward_hooks"),
        (b"Conv", b"EMA"),
        (b"nl", b"grid"),
    ),
    *(
        (b"backbone", b"head"),
        (b"nearest", b"x" * 300),
        (b"np", b"\x1b[2J"),
        (b"date", b"hyp"),
        (b"opt", b"git"),
    ),
]
ODD = [
    *(
        5,
        None,
        "x",
        [],
        {},
        True,
        [1, 2],
        {"model": 5},
        {"model": []},
        {"ema": 3, "model": None},
        {"model": {"a": 1}},
    ),
    *(
        {"model": nn.Identity()},
        {"ema": nn.Sequential()},
        {"model": nn.ModuleDict()},
        [nn.Conv2d(1, 1, 1)],
        {1: 2},
    ),
    *(
        {"state_dict": {"a": torch.zeros(2)}},
        {"model": torch.zeros(3)},
        torch.zeros(3),
        {"model": nn.Parameter(torch.zeros(1))},
    ),
]


def endless() -> list[Any]:
    """Values that contain themselves, or that expand to an exponential number of values."""
    held: list[Any] = []
    held.append(held)
    table: dict[str, Any] = {}
    table["x"] = table
    many: Any = ["x"]
    for _ in range(40):
        many = [many, many]
    return [held, table, many, {"a": many}, [many] * 3]


ATTRIBUTES = [
    "names",
    "yaml",
    "nc",
    "hyp",
    "stride",
    "save",
    "model",
    "inplace",
    "forward",
    "yaml_file",
    "training",
    "float",
]


@st.composite
def odd_models(draw: Any) -> bytes:
    """A valid model with attributes of itself or of a layer changed, under valid or unusual keys."""
    from yolov5.models.yolo import Model

    model = Model(copy.deepcopy(SMALL)).eval()
    places = [model, model, model.model[-1], model.model[0], model.model[1]]
    value = (
        values()
        | st.sampled_from(endless())
        | st.sampled_from([nn.Identity(), torch.zeros(2), torch.zeros(0), torch.tensor(float("nan"))])
    )
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places))
        name = draw(st.sampled_from(ATTRIBUTES) | st.sampled_from(sorted(vars(place))))
        if draw(st.booleans()) and name in vars(place):
            del place.__dict__[name]
        else:
            place.__dict__[name] = draw(value)
    checkpoint = {
        "epoch": draw(value),
        "ema": None,
        "model": model,
        **{draw(st.sampled_from(["opt", "git", "date"])): draw(value)},
    }
    return saved(checkpoint)


def saved(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


@st.composite
def safetensors(draw: Any) -> bytes:
    """The valid file with a changed header: missing tensors, sizes, JSON, the metadata of 'convert'."""
    content = GOOD["small.safetensors"]
    size = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    if draw(st.booleans()):
        facts = json.loads(header["__metadata__"]["yolov5-ema"])
        key = draw(st.sampled_from(sorted(facts)))
        if isinstance(facts[key], dict) and facts[key] and draw(st.booleans()):
            facts[key][draw(st.sampled_from(sorted(facts[key])))] = draw(values())
        else:
            facts[key] = draw(values())
        header["__metadata__"]["yolov5-ema"] = json.dumps(facts, default=str)
    else:
        name = draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
        what = draw(st.sampled_from(["dtype", "shape", "data_offsets", "gone", "renamed"]))
        if what == "gone":
            del header[name]
        elif what == "renamed":
            header[draw(st.text(max_size=5))] = header.pop(name)
        else:
            header[name][what] = draw(
                values() | st.sampled_from(["F64", "F16", "I64", [0], [2**40, 2**40], [0, 8], [8, 0]])
            )
    text = json.dumps(header, default=str).encode("utf-8", "replace")
    length = draw(st.sampled_from([len(text)] * 6 + [len(text) + 1, 0, 2**31, 2**63]))
    return struct.pack("<Q", length) + text + rest


@st.composite
def weights(draw: Any) -> tuple[str, bytes]:
    """A file name, and the bytes of the file."""
    kind = draw(
        st.sampled_from(
            ["bytes"] * 3
            + ["pickle"] * 8
            + ["odd", "model", "model", "entries", "payload", "bare"]
            + ["safetensors"] * 3
        )
    )
    archives = ["small.pt", "small.pt", "whole.pt", "state.pt"]
    if kind == "bytes":
        name = draw(st.sampled_from(sorted(GOOD)))
        return name, draw(mutated_bytes(GOOD[name]))
    if kind == "pickle":
        name = draw(st.sampled_from(archives))
        entry, data = pickle_of(GOOD[name])
        return name, with_entries(GOOD[name], {entry: draw(changed_pickles(data))})
    if kind == "odd":
        return "odd.pt", saved(draw(st.sampled_from(ODD) | values()))
    if kind == "model":
        return "model.pt", draw(odd_models())
    if kind == "safetensors":
        return "small.safetensors", draw(safetensors())
    if kind == "payload":
        payload, place = draw(st.sampled_from(sorted(PAYLOADS))), draw(st.sampled_from(PLACES))
        entry, _ = pickle_of(GOOD["small.pt"])
        return "evil.pt", with_entries(GOOD["small.pt"], {entry: program(PAYLOADS[payload][0], place)})
    if kind == "bare":
        return "bare.pt", draw(mutated_bytes(pickle_of(GOOD[draw(st.sampled_from(archives))])[1]))
    good = GOOD[draw(st.sampled_from(archives))]
    names = zipfile.ZipFile(io.BytesIO(good)).namelist()
    replaced = draw(st.dictionaries(st.sampled_from(names), st.none() | st.binary(max_size=9), min_size=1, max_size=2))
    return "entries.pt", with_entries(good, replaced, draw(st.booleans()))


CHECKPOINTS = weights()


@pytest.fixture(scope="module")
def engine():
    with yolov5_ema.installed() as engine:
        prepare(engine)
        yield engine


def check_checkpoint(case: tuple[str, bytes], engine: Any, watch: bool = True) -> int:
    """Run the commands that read weights on one file; returns the exit code of ``convert``."""
    name, content = case
    with own_place() as folder:
        (folder / name).write_bytes(content)
        (folder / "small.yaml").write_bytes(as_text({**SMALL, "backbone": [*SMALL["backbone"][:2], [-1, 1, "CA", []]]}))
        before = set(folder.rglob("*"))
        code, said = command("inspect", name, folder=folder, watch=watch)
        command("inspect", name, "--json", folder=folder, watch=watch)
        assert code == 2 or "\x1b" not in said, "control characters of the file's on the terminal"
        out = "out.pt" if name.endswith(".safetensors") else "out.safetensors"
        code, _ = command("convert", name, "-o", out, folder=folder, watch=watch)
        transferred, _ = command(
            "transfer", name, "--cfg", "small.yaml", "-o", "new.pt", "--nc", 3, folder=folder, watch=watch
        )
        made = {path.name for path in set(folder.rglob("*")) - before}
        expected = ({out, *({"out.yaml"} if out != "out.pt" else ())} if code == 0 else set()) | (
            {"new.pt"} if transferred == 0 else set()
        )
        assert made == expected, f"made {made}, not {expected}"
        if name.endswith(".pt"):
            called(lambda: checkpoints.load_checkpoint(name, "cpu", engine=engine), folder, watch=watch)
        assert not (folder / CANARY).exists()
    return code


def fuzz(examples: int, engine: Any) -> dict[int, int]:
    """Run ``examples`` files; returns how many ended with each exit code."""
    codes: dict[int, int] = {}

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(CHECKPOINTS)
    def case(file: tuple[str, bytes]) -> None:
        code = check_checkpoint(file, engine)
        codes[code] = codes.get(code, 0) + 1

    before = peak_memory()
    case()
    assert peak_memory() - before < 2**30
    return codes


def test_checkpoints(engine):
    codes = fuzz(25, engine)
    assert codes[0] >= 1 and codes[2] >= 12, codes


@pytest.mark.slow
def test_many_checkpoints(engine):
    codes = fuzz(5000, engine)
    assert codes[0] >= 50 and sum(codes.values()) >= 5000, codes
