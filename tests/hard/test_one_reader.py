"""The bytes that are checked are the bytes that are loaded, however a file tries to mislead two programs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from double_archives import DOUBLES, whole_archives
from malicious_pickles import CANARY, SYSTEM
from torch import nn
from under_watch import command, own_place, peak_memory

from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.classification.checkpoints import load_plainly
from yolov5_ema.errors import CheckpointError
from yolov5_ema.weights.inspection import inspect_file

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)[2:]
LEGACY = b"".join(pickle.dumps(part, 2) for part in (1001, {"little_endian": True}, {"a": 1}, []))


def ran_in_plain_torch(file: Path) -> bool:
    """Whether torch alone runs what the file contains."""
    Path(CANARY).unlink(missing_ok=True)
    try:
        torch.load(file, weights_only=False)
    except Exception as error:
        assert not isinstance(error, AssertionError)
    ran = Path(CANARY).exists()
    Path(CANARY).unlink(missing_ok=True)
    return ran


def as_python_reads(file: Path) -> bytes:
    try:
        with zipfile.ZipFile(file) as opened:
            return opened.read("a/data.pkl")
    except (zipfile.BadZipFile, KeyError):
        return b""


def refused(file: Path, engine) -> None:
    with pytest.raises(CheckpointError):
        inspect_file(file)
    with pytest.raises(CheckpointError):
        checkpoints.load_checkpoint(file, "cpu", engine=engine)
    with pytest.raises(CheckpointError):
        checkpoints.check_file(file, engine=engine)
    with pytest.raises(CheckpointError):
        load_plainly(file)
    assert not Path(CANARY).exists()


def test_archives_in_which_two_programs_read_different_pickles(engine):
    good, evil = whole_archives()
    ran, differ = set(), set()
    for name, double in DOUBLES.items():
        for one, other in ((good, evil), (evil, good)):
            with own_place() as folder:
                file = folder / "a.pt"
                file.write_bytes(double(one, other))
                refused(file, engine)
                if ran_in_plain_torch(file):
                    ran.add(name)
                    if as_python_reads(file) and b"system" not in as_python_reads(file):
                        differ.add(name)
    # these are real attacks: plain torch runs them, and three of them look harmless to Python's reader
    assert ran == DOUBLES.keys() - {
        "evil_behind_good",
        "good_in_the_comment_of_evil",
        "good_in_another_folder",
        "bytes_before",
    }
    assert differ == {"zip64_end_far_from_its_place", "name_twice", "name_with_a_null"}


def test_the_two_archives_alone_are_read(engine):
    """The files above are refused because they contain two pickles."""
    good, evil = whole_archives()
    with own_place() as folder:
        (folder / "good.pt").write_bytes(good)
        (folder / "evil.pt").write_bytes(evil)
        assert inspect_file(folder / "good.pt").outside == []
        assert isinstance(checkpoints.load_checkpoint("good.pt", engine=engine)["model"], nn.Conv2d)
        assert inspect_file(folder / "evil.pt").outside == ["posix.system"]


def test_every_pickle_of_an_old_file_is_judged(engine):
    """torch unpickles five pickles, one after the other; the first is only compared with a number."""
    parts = [MAGIC, *(pickle.dumps(part, 2)[2:] for part in (1001, {}, {"a": 1}, []))]
    for index in range(5):
        with own_place() as folder:
            evil = [b"\x80\x02" + (SYSTEM + b"0" if at == index else b"") + part for at, part in enumerate(parts)]
            (folder / "a.pt").write_bytes(b"".join(evil) + b"\x00" * 64)
            assert inspect_file(folder / "a.pt").outside == ["posix.system"], index
            with pytest.raises(CheckpointError, match=r"posix\.system"):
                checkpoints.load_checkpoint("a.pt", engine=engine)
            assert not Path(CANARY).exists() and ran_in_plain_torch(folder / "a.pt"), index


def test_a_tar_archive_that_is_a_pickle_too(engine):
    """torch tries tar first; a program that reads pickles one after another finds a harmless one."""
    with own_place() as folder:
        file = folder / "a.pt"
        file.write_bytes(tar_and_pickle())
        refused(file, engine)
        content = io.BytesIO(file.read_bytes())
        assert torch.load(content, weights_only=False) == {"a": 1}  # no file on disk: only the pickles
        assert ran_in_plain_torch(file)


def tar_and_pickle() -> bytes:
    rest = b"0" + MAGIC + LEGACY
    head = bytearray(512)
    head[:7] = b"\x80\x02X" + struct.pack("<I", 512 - 7)
    head[100:108], head[124:136], head[136:148] = b"0000644\0", b"%011o\0" % len(rest), b"00000000000\0"
    head[108:116] = head[116:124] = b"0000000\0"
    head[156:157] = b"0"
    total = sum(head[:148]) + sum(head[156:]) + 8 * 32
    head[148:156] = b"%06o\0 " % total
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as target:
        for name in ("storages", "tensors", "pickle"):
            content = b"\x80\x02" + SYSTEM + b"0K\x00."
            info = tarfile.TarInfo(name)
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    return bytes(head) + rest.ljust(-(-len(rest) // 512) * 512, b"\0") + out.getvalue()


def test_safetensors_that_are_a_pickle_too(engine):
    """One reader finds only tensors and text, the other one runs it."""
    with own_place() as folder:
        file = folder / "a.pt"
        file.write_bytes(safetensors_and_pickle())
        from safetensors.torch import load_file

        assert load_file(file)["t"].dtype == torch.uint8
        with pytest.raises(CheckpointError, match=r"both safetensors and a pickle that names posix\.system"):
            inspect_file(file)
        with pytest.raises(CheckpointError):
            checkpoints.load_checkpoint(file, engine=engine)
        assert not Path(CANARY).exists() and ran_in_plain_torch(file)


def safetensors_and_pickle() -> bytes:
    """The header's length is also a step of a pickle: bytes up to a text in the header, or texts up to its end."""
    tensor = b"N" * 300 + SYSTEM + b"."
    first = '{"__metadata__":{"a":"'
    size = len(tensor)
    last = f'"}},"t":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}'
    start = len(first)  # where the first text begins, so that the last one includes what follows it in the header
    while ((0x42 | (start + 3) << 8) - len(last) - 2 - start) % 128 > 126 - len(last):
        start += 1
    length = 0x42 | (start + 3) << 8
    text = list(first + "~" * (length - len(first) - len(last)) + last)
    for place in range(start, length - len(last), 128):  # each is 'U', a length of 126, and 126 letters
        text[place] = "U"
    return struct.pack("<Q", length) + "".join(text).encode() + tensor


def test_a_file_that_is_swapped_after_it_was_judged(engine, monkeypatch):
    """The bytes that were checked are loaded, although the file is replaced or overwritten meanwhile."""
    judge = checkpoints._judge
    with own_place() as folder:
        torch.save({"epoch": 1}, folder / "good.pt")
        torch.save({"epoch": 2}, folder / "other.pt")

        def swapped(path, *args):
            judge(path, *args)
            if how == "in place":
                path.write_bytes((folder / "other.pt").read_bytes())
            else:
                os.replace(folder / "other.pt", path)

        monkeypatch.setattr(checkpoints, "_judge", swapped)
        for how in ("in place", "moved there"):  # noqa: B007
            (folder / "a.pt").write_bytes((folder / "good.pt").read_bytes())
            assert checkpoints.load_checkpoint(folder / "a.pt", engine=engine) == {"epoch": 1}
            assert torch.load(folder / "a.pt") == {"epoch": 2}  # it was replaced


# --- what is no file, and what is too large ------------------------------------------------------

READERS: dict[str, tuple[str, ...]] = {
    "inspect": ("a.pt",),
    "convert": ("a.pt",),
    "transfer": ("a.pt", "--cfg", "yolov5n-ema.yaml", "-o", "b.pt"),
    "train": ("--weights", "a.pt", "--data", "a.yaml", "--cfg", "yolov5n-ema.yaml"),
    "val": ("--weights", "a.pt", "--data", "a.yaml"),
    "detect": ("--weights", "a.pt", "--source", "pictures"),
    "export": ("--weights", "a.pt", "--include", "onnx"),
    "evaluate": ("--weights", "a.pt", "--data", "a.yaml"),
    "predict": ("--weights", "a.pt", "--source", "pictures"),
    "visualize": ("--weights", "a.pt", "--source", "pictures"),
}


@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_are_refused_at_once(engine, name):
    from PIL import Image

    for kind in ("pipe", "device", "folder"):
        with own_place() as folder:
            (folder / "pictures").mkdir()
            Image.new("RGB", (32, 32)).save(folder / "pictures/a.jpg")
            (folder / "a.yaml").write_text("train: pictures\nval: pictures\nnc: 1\nnames: [a]\n")
            if kind == "pipe":
                os.mkfifo(folder / "a.pt")
            elif kind == "device":
                os.symlink("/dev/zero", folder / "a.pt")
            else:
                (folder / "a.pt").mkdir()
            started_s = time.monotonic()
            code, said = command(name, *READERS[name], folder=folder)
            assert code == 2 and "a.pt" in said, said
            assert time.monotonic() - started_s < 10


def test_entries_of_gigabytes_are_not_read(engine):
    """Whichever entry it is: those that are read as a whole must be small."""
    good, _ = whole_archives()
    for entry in ("version", "data.pkl", "other.pkl", "data/9"):
        with own_place() as folder:
            with (
                zipfile.ZipFile(io.BytesIO(good)) as source,
                zipfile.ZipFile(folder / "a.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
            ):
                for name in source.namelist():
                    if name != f"a/{entry}":
                        target.writestr(name, source.read(name))
                with target.open(f"a/{entry}", "w") as stream:
                    for _ in range(300):
                        stream.write(bytes(2**20))
            before = peak_memory()
            refused(folder / "a.pt", engine)
            assert peak_memory() - before < 100 * 2**20, entry


def test_a_file_with_a_terabyte_of_nothing(engine):
    with own_place() as folder:
        with open(folder / "a.pt", "wb") as stream:
            stream.write(b"PK\x03\x04")
            stream.truncate(2**40)
        before = peak_memory()
        refused(folder / "a.pt", engine)
        assert peak_memory() - before < 200 * 2**20


@pytest.mark.parametrize("where", ["a parameter", "a buffer", "a value", "an old file"])
def test_six_bytes_that_claim_terabytes(engine, where):
    """Tensors of stride 0 show their storage a trillion times; copies would be as large as their shape says."""
    huge = torch.zeros(1, dtype=torch.float16).expand(2**20, 2**19)
    layer = nn.Conv2d(1, 1, 1)
    if where == "a parameter":
        layer._parameters["weight"] = nn.Parameter(huge, requires_grad=False)
    elif where == "a buffer":
        layer._buffers["mask"] = huge
    value = huge if where in ("a value", "an old file") else None
    with own_place() as folder:
        content = {"model": layer, "epoch": value} if where != "an old file" else {"a": value}
        torch.save(content, "a.pt", _use_new_zipfile_serialization=where != "an old file")
        assert torch.load("a.pt", weights_only=False)  # torch alone accepts it
        with pytest.raises(CheckpointError, match="more memory than the file holds"):
            checkpoints.load_checkpoint("a.pt", engine=engine)
        with pytest.raises(CheckpointError, match=r"is not a classifier|holds what no classifier needs"):
            load_plainly(folder / "a.pt")
        code, said = command("inspect", "a.pt", folder=folder)
        assert code in (1, 2) and "more memory than the file holds" in said


def test_small_grids_of_stride_0_are_taken(engine):
    """v6.0 and later store the grids of their last image in this way."""
    grid = torch.zeros(1, 3, 1, 1, 2).expand(1, 3, 160, 160, 2)
    with own_place():
        torch.save({"grid": [grid, grid]}, "a.pt")
        assert checkpoints.load_checkpoint("a.pt", engine=engine)["grid"][0].shape == grid.shape


def test_a_storage_of_an_old_file_that_says_more_than_the_file_has(engine):
    with own_place():
        torch.save({"w": torch.zeros(4)}, "a.pt", _use_new_zipfile_serialization=False)
        content = Path("a.pt").read_bytes()
        Path("a.pt").write_bytes(content.replace(b"K\x04Nt", b"J\xff\xff\xff\x7fNt"))
        assert Path("a.pt").read_bytes() != content
        with pytest.raises(CheckpointError, match="shorter than the file says"):
            checkpoints.load_checkpoint("a.pt", engine=engine)
