"""Untrusted exported models: TorchScript that writes files, ONNX that reads other files, other programs."""

from __future__ import annotations

import faulthandler
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from yolov5_ema.checkpoints import exported_models
from yolov5_ema.checkpoints.exported_models import check_exported, load_torchscript, metadata_of
from yolov5_ema.errors import CheckpointError, UserError
from yolov5_ema.weights.onnx_files import _parts
from yolov5_ema.weights.torchscript_files import check_torchscript

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")


class Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).sigmoid()


@pytest.fixture(scope="module")
def honest() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(
        torch.jit.trace(Plain(), torch.rand(1, 3, 8, 8)),
        stream,
        _extra_files={"config.txt": '{"stride": 32, "names": ["a"]}'},
    )
    return stream.getvalue()


def rewritten(archive: bytes, change) -> bytes:
    """The archive as torch's own writer writes it, with entries changed by a function of name and content."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(archive))
    stream = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(stream)
    for name in reader.get_all_records():
        if name not in (
            ".data/serialization_id",
            "version",
            "byteorder",
            ".format_version",
            ".storage_alignment",
        ):
            content = change(name, reader.get_record(name))
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return stream.getvalue()


def with_code(archive: bytes, line: str) -> bytes:
    """The code with a line inserted at the beginning of the model's forward."""

    def change(name: str, content: bytes) -> bytes:
        if name.startswith("code/") and name.endswith(".py") and b"class Plain" in content:
            return content.replace(b"-> Tensor:\n", b"-> Tensor:\n    " + line.encode() + b"\n", 1)
        return content

    return rewritten(archive, change)


def test_an_honest_model_runs_as_it_did(honest, tmp_path):
    file = tmp_path / "m.torchscript"
    file.write_bytes(honest)
    extra = {"config.txt": ""}
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(load_torchscript(str(file), _extra_files=extra)(x), torch.jit.load(str(file))(x))
    assert b"stride" in (
        extra["config.txt"] if isinstance(extra["config.txt"], bytes) else extra["config.txt"].encode()
    )
    assert torch.equal(
        load_torchscript(io.BytesIO(rewritten(honest, lambda _, content: content)))(x),
        torch.jit.load(str(file))(x),
    )


WRITES = {
    "an operator": 'torch.save(x, "{}")',
    "a name of its own": 'f = torch.save\n    f(x, "{}")',
    "ops": 'ops.aten.save(x, "{}")',
    "white space": 'torch . save(x, "{}")',
}


@pytest.mark.parametrize("line", WRITES.values(), ids=WRITES)
def test_code_that_writes_a_file_is_not_run(honest, line, tmp_path):
    canary = tmp_path / "written"
    file = tmp_path / "evil.torchscript"
    file.write_bytes(with_code(honest, line.format(canary)))
    with pytest.raises(CheckpointError, match=r"/evil\.torchscript.*'save'.*--trust-checkpoint"):
        load_torchscript(file)
    assert not canary.exists()
    torch.jit.load(str(file))(torch.rand(1, 3, 8, 8))  # without the guard
    assert canary.exists()


class Few(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Many(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for number in range(40):
            self.register_buffer(f"w{number}", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.w39


class Pair(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.few, self.many = Few(), Many()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.many(self.few(x))


# changes of the class Pair: its "few" holds a Few, which its code then uses as a Many
CONFUSED = {
    "another class": lambda text: text.replace("  few : ", "  few : MANY#").replace("#" + FEW, ""),
    "by its name in brackets": lambda text: text.replace(f"  few : {FEW}", '  __annotations__["few"] = MANY'),
    "behind a method": lambda text: behind_a_method(text),
    "twice": lambda text: text.replace(f"  few : {FEW}\n", f"  few : {FEW}\n  few : MANY\n"),
    "further to the right": lambda text: "\n".join(
        line if line.startswith(("class", "op_")) else f"  {line}" for line in text.split("\n")
    ).replace(f"  few : {FEW}", "  few : MANY"),
    "in a tuple": lambda text: text.replace(f"  few : {FEW}", "  few : Tuple[MANY]"),
}


def behind_a_method(text: str) -> str:
    before, start, behind = text.partition("class Pair(Module):\n")
    own, *others = behind.replace(f"  few : {FEW}\n", "").split("\nclass ")
    return "\nclass ".join([f"{before}{start}{own.rstrip()}\n  few : MANY\n", *others])


FEW = f"__torch__.{__name__}.Few"


@pytest.fixture(scope="module")
def pair() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(Pair(), torch.rand(1, 3, 8, 8)), stream)
    return stream.getvalue()


def confused(archive: bytes, change) -> bytes:
    def of_pair(name: str, content: bytes) -> bytes:
        if not name.endswith(".py") or b"class Pair" not in content:
            return content
        text = change(content.decode()).replace("MANY", FEW.replace("Few", "Many"))
        return text.replace("(many).forward(", "(few).forward(").replace("    _0 = (few).forward()\n", "").encode()

    return rewritten(archive, of_pair)


@pytest.mark.parametrize("change", CONFUSED.values(), ids=CONFUSED)
def test_an_object_that_its_code_takes_for_another_is_refused(pair, change):
    check_torchscript(pair, Path("m.torchscript"))
    with pytest.raises(CheckpointError, match=r"evil\.torchscript.*(few of a|torch does not write)"):
        check_torchscript(confused(pair, change), Path("evil.torchscript"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process to lose")
def test_without_the_check_it_reads_memory_that_is_not_its_own(pair):
    """The memory there may hold anything: mostly the process ends, else it gets no tensor, or another one."""
    evil, x = confused(pair, CONFUSED["another class"]), torch.zeros(1, 3, 8, 8)
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        ending = 1
        try:
            ending = int(not torch.equal(torch.jit.load(io.BytesIO(evil))(x), x + 1))
        finally:
            os._exit(ending)
    assert os.waitpid(child, 0)[1] != 0


def test_code_that_runs_while_it_is_loaded(tmp_path):
    canary = tmp_path / "written"
    honest = io.BytesIO()
    torch.jit.save(torch.jit.script(Stateful()), honest)
    evil = rewritten(
        honest.getvalue(),
        lambda name, content: (
            content.replace(b"self.value = (s)[1]", f'torch.save((s)[1], "{canary}")\n    self.value = (s)[1]'.encode())
            if name.endswith(".py")
            else content
        ),
    )
    with pytest.raises(CheckpointError, match="'__setstate__'"):
        load_torchscript(io.BytesIO(evil))
    assert not canary.exists()
    torch.jit.load(io.BytesIO(evil))
    assert canary.exists()


class Stateful(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = torch.ones(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self):
        return (self.training, self.value)

    @torch.jit.export
    def __setstate__(self, s: tuple[bool, torch.Tensor]) -> None:
        self.training = s[0]
        self.value = s[1]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('y = torch.from_file("/etc/hostname", False, 4)', "'from_file'"),
        ('(x).save("a")', "'save'"),
        ('(1).save("a")', "'save'"),
        ("print(x)", "'print'"),
        ("while True:\n      pass", "'while'"),
        ('getattr(x, "sa" "ve")', "could hide a name"),
        ('getattr(x, "sa\\x76e")', "could hide a name"),
        ("y = torch.  # x\n    save(x)", "could hide a name"),
        ("y = ops.image.read_file(x)", "read_file"),
        ("y = ops", "'ops"),
        ("y = __torch__.torch.classes.c10d.FileStore(x)", "'classes'"),
        ("y = torch.as_strided(x, [9], [1])", "'as_strided'"),
        ("y = fork(x)", "'fork'"),
        ("y = torch._sparse_csr_tensor_unsafe(x)", "'_sparse_csr_tensor_unsafe'"),
    ],
)
def test_code_that_no_detector_needs_is_refused(honest, line, named):
    with pytest.raises(CheckpointError, match=named):
        check_torchscript(with_code(honest, line), Path("evil.torchscript"))


def test_tensors_lie_within_the_file(honest):
    def larger(name: str, content: bytes) -> bytes:
        return content.replace(b"K\x0c", b"K\xff") if name == "data.pkl" else content  # instead of 4 * 3 weights

    with pytest.raises(CheckpointError, match=r"larger than its data in the file|beyond its storage"):
        check_torchscript(rewritten(honest, larger), Path("m.torchscript"))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"PTMF" + content,
        lambda content: content[: len(content) // 2],
        lambda content: content + content,
        lambda content: b"",
    ],
)
def test_what_is_no_archive_of_one_reading_is_refused(honest, change):
    with pytest.raises(CheckpointError, match="not a TorchScript file, or is cut off"):
        check_torchscript(change(honest), Path("m.torchscript"))


def test_a_pickle_in_the_archive_names_classes_of_the_archive_only(honest):
    class Code:
        def __reduce__(self):
            return os.mkdir, ("never",)

    evil = rewritten(honest, lambda name, content: pickle.dumps(Code(), 2) if name == "constants.pkl" else content)
    with pytest.raises(CheckpointError, match=r"posix\.mkdir|nt\.mkdir"):
        check_torchscript(evil, Path("m.torchscript"))


@pytest.mark.parametrize(
    "config",
    ["[]", "{", '{"stride": 0, "names": ["a"]}', '{"stride": 32, "names": ["../../a"]}', "[" * 100_000],
)
def test_metadata_of_torchscript(honest, config, tmp_path):
    file = tmp_path / "m.torchscript"
    torch.jit.save(torch.jit.load(io.BytesIO(honest)), str(file), _extra_files={"config.txt": config})
    with pytest.raises(CheckpointError, match=r"m\.torchscript: its metadata"):
        load_torchscript(file)


def test_names_in_the_order_of_their_numbers(honest, tmp_path):
    names = {str(number): f"name{number}" for number in range(12)}
    file = tmp_path / "m.torchscript"
    config = json.dumps({"stride": 32, "names": names})
    torch.jit.save(torch.jit.load(io.BytesIO(honest)), str(file), _extra_files={"config.txt": config})
    assert metadata_of(file)["names"] == [f"name{number}" for number in range(12)]


# --- ONNX ----------------------------------------------------------------------------------------


def write_onnx(file: Path, metadata: dict[str, str], location: str | None = None) -> Path:
    onnx = pytest.importorskip("onnx")
    weights = onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")
    if location is not None:
        weights = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=1)
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            entry = weights.external_data.add()
            entry.key, entry.value = key, value
    ends = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.helper.set_model_props(model, metadata)
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"stride": "32", "names": "[__import__('os').mkdir('never')]"}, "'names'"),
        ({"stride": "32", "names": "{0: 'a', 1: ['b']}"}, "not a class name"),
        ({"stride": "32", "names": "['../../a']"}, "lead out of the folder"),
        ({"stride": "32", "names": "[]"}, "names"),
        ({"stride": "32", "names": "{1: 'a'}"}, "class 0"),
        ({"stride": "32", "names": "{0: 'a', 2: 'c'}"}, "class 1 has no name"),
        ({"stride": "32", "names": "(" * 5000}, "'names'"),
        ({"stride": "__import__('os')", "names": "['a']"}, "'stride'"),
        ({"stride": "99999", "names": "['a']"}, "stride"),
        ({"stride": "32"}, "no names"),
        ({"imgsz": "[0, 64]"}, r"imgsz must be one or two sides of 1 to 10,000 pixels, not '\[0, 64\]'"),
        ({"imgsz": "'640'"}, "imgsz must be"),
        ({"imgsz": "[64, 64, 64]"}, "imgsz must be"),
        ({"args": "[1]"}, "args must be options"),
    ],
)
def test_metadata_of_onnx_are_literals_of_the_right_types(metadata, named, tmp_path):
    file = write_onnx(tmp_path / "m.onnx", metadata)
    with pytest.raises(CheckpointError, match=named) as refused:
        check_exported(file, "onnx")
    assert "m.onnx" in str(refused.value)
    check_exported(write_onnx(tmp_path / "good.onnx", {"stride": "32", "names": "['a', 'b']"}), "onnx")


@pytest.mark.parametrize("beyond", [1 << 32, 1 << 33, 1 << 60])
def test_a_field_that_other_readers_see_under_another_number(beyond, tmp_path):
    """OpenCV ignores the bits of a field's number beyond 32, and so reads the graph that is hidden there."""
    file = write_onnx(tmp_path / "m.onnx", {}, location="../secret.bin")
    raw = file.read_bytes()
    graph = next(part for number, part in _parts(memoryview(raw)) if number == 7)
    content = varint(len(graph)) + bytes(graph)
    file.write_bytes(raw.replace(b"\x3a" + content, varint(0x3A | beyond) + content))
    assert file.read_bytes() != raw
    with pytest.raises(CheckpointError, match=r"m\.onnx is not an ONNX file, or is cut off"):
        check_exported(file, "onnx")


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def test_tensors_of_other_folders_are_not_read(tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path / "model"
    folder.mkdir()
    np.arange(4, dtype=np.float32).tofile(tmp_path / "secret.bin")
    np.arange(4, dtype=np.float32).tofile(folder / "own.bin")
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin"):
        file = write_onnx(folder / "m.onnx", {}, location)
        with pytest.raises(CheckpointError, match="not in the model's folder"):
            exported_models.read_onnx_network(cv2.dnn.readNetFromONNX)(str(file))
    check_exported(write_onnx(folder / "m.onnx", {}, "own.bin"), "onnx")


def test_tensors_beside_a_link_to_a_model_are_not_read(tmp_path):
    """OpenCV looks next to the link, other programs next to the file that the link leads to."""
    (tmp_path / "model/sub").mkdir(parents=True)
    write_onnx(tmp_path / "model/sub/m.onnx", {}, "own.bin")
    (tmp_path / "model/m.onnx").symlink_to("sub/m.onnx")
    (tmp_path / "secret.bin").touch()
    check_exported(tmp_path / "model/m.onnx", "onnx")
    (tmp_path / "model/own.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(CheckpointError, match="not in the model's folder"):
        check_exported(tmp_path / "model/m.onnx", "onnx")


def test_a_name_of_a_file_that_is_no_text(tmp_path):
    """OpenCV treats it as a name anyway, for example that of a link out of the folder."""
    file = write_onnx(tmp_path / "m.onnx", {}, "liXnko")
    file.write_bytes(file.read_bytes().replace(b"liXnko", b"li\xffnko"))
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        check_exported(file, "onnx")


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x3a\xff\xff\xff\xff\x0f", b"\x3b" * 9, b"\xff" * 99])
def test_what_is_no_onnx_is_an_error_or_empty(content, tmp_path):
    file = tmp_path / "m.onnx"
    file.write_bytes(content)
    if not content:
        check_exported(file, "onnx")
        return
    with pytest.raises(CheckpointError, match="not an ONNX file, or is cut off"):
        check_exported(file, "onnx")


@pytest.mark.parametrize("form", ["engine", "saved_model", "pb", "paddle"])
def test_programs_need_trust(form, tmp_path, monkeypatch):
    file = tmp_path / "m.x"
    file.write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=r"is a program that runs.*--trust-checkpoint"):
        check_exported(file, form)
    monkeypatch.setenv("YOLOV5_EMA_TRUST_CHECKPOINT", "1")
    check_exported(file, form)


def test_tensorflow_lite(tmp_path):
    file = tmp_path / "m.tflite"
    file.write_bytes(b"TFL3" * 20)
    check_exported(file, "tflite")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("temp_meta.txt", str({"stride": 32, "names": ["../a"]}))
    with pytest.raises(CheckpointError, match="lead out of the folder"):
        check_exported(file, "tflite")
    file.write_bytes(b"TFL3FlexWriteFile")
    with pytest.raises(CheckpointError, match="Flex"):
        check_exported(file, "tflite")


def test_openvino(tmp_path):
    folder = tmp_path / "m_openvino_model"
    folder.mkdir()
    (folder / "m.yaml").write_text("stride: 32\nnames: [a]\n")
    check_exported(folder, "xml")
    for name in ("m.bin", "m.xml"):
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=name):
            check_exported(folder, "xml")
        (folder / name).unlink()
    (folder / "m.yaml").write_text("stride: 32\nnames: [../../a]\n")
    with pytest.raises(CheckpointError, match="lead out of the folder"):
        check_exported(folder, "xml")
