"""Recognizes files that are passed as weights by mistake, by their first bytes."""

from __future__ import annotations

import tarfile
from pathlib import Path

from yolov5_ema.errors import CheckpointError
from yolov5_ema.texts import suggested

HEAD = 4096
"""How many bytes from the start of a file are enough to recognize it."""

_ELSE = "everything else needs the .pt that it was exported from"
ONNX = (
    "an ONNX graph, exported from a checkpoint. 'predict', 'evaluate', 'submit', 'report', 'detect', and from v6.1 on "
    f"'val', run it if its name ends in .onnx; {_ELSE}"
)
TORCHSCRIPT = (
    "a TorchScript archive, exported from a checkpoint. 'predict', 'evaluate', 'submit', 'report', and from v6.1 on "
    f"'detect' and 'val', run it if its name ends in .torchscript; {_ELSE}"
)

# The first bytes, what the file is, and the suffix that makes it valid for commands that take exported models.
_BEGINNINGS = (
    ((b"<!doctype", b"<html", b"<head"), "a web page; the download has gone wrong", ""),
    (b"<?xml", "XML: a web page, or a graph of OpenVINO", ".xml"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with 'git lfs pull'", ""),
    (b"\x89hdf", "an HDF5 file (Keras)", ""),
    ((b"\x89png", b"\xff\xd8\xff", b"gif8"), "a picture", ""),
    (b"riff", "a picture or a video", ""),
    (b'{"', "JSON; if it was downloaded, its text says why the download failed", ".json"),
    (b"%pdf", "a PDF", ""),
    (b"\x93numpy", "a NumPy array", ""),
    (b"gguf", "a GGUF file (llama.cpp)", ""),
    (b"\x1f\x8b", "a gzip archive; unpack it first", ""),
    (b"rar!", "a rar archive; unpack it first", ""),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first", ""),
    (b"bzh", "a bzip2 archive; unpack it first", ""),
    (b"\xfd7zxz", "an xz archive; unpack it first", ""),
)
# the version of the format, 0.1 or 0.2
_DARKNET = tuple(bytes([0, 0, 0, 0, minor, 0, 0, 0]) for minor in (1, 2))


def refuse_mistaken(path: Path, head: bytes, *, exported: bool = False) -> None:
    """Raise a `CheckpointError` that says what a file is, if its first bytes show that it is not a checkpoint.

    Args:
        path: the file.
        head: its first `HEAD` bytes.
        exported: whether an exported model is accepted too; its suffix must then be the usual one.
    """
    what = _mistaken_for(path, head, exported)
    if what:
        raise CheckpointError(f"{path} is not a PyTorch checkpoint but {what}")


def _mistaken_for(path: Path, head: bytes, exported: bool) -> str:
    suffix = path.suffix.lower() if exported else ""
    begins = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, what, own_suffix in _BEGINNINGS:
        if begins.startswith(start) and not (own_suffix and suffix == own_suffix):
            return what
    if head[4:8] == b"TFL3" and suffix != ".tflite":
        return "an exported model (TensorFlow Lite)"
    if is_safetensors(head):
        command = suggested("convert", path, "-o", "model.pt")
        return f"safetensors: tensors and text. To turn it into a checkpoint: {command}"
    if _is_onnx(path, head) and suffix != ".onnx":
        return ONNX
    if path.suffix == ".weights" and head.startswith(_DARKNET):
        return "weights of Darknet (YOLOv2 to v4), which YOLOv5 does not read"
    if _is_tar(head):
        return "a tar archive, the format of torch before 0.1.10, which is not supported here"
    if path.suffix.lower() in (".yaml", ".yml"):
        return "a YAML file: pass a model's YAML with --cfg, and a data set's with --data"
    return ""


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins like a safetensors file: a length, then a JSON object."""
    return len(head) >= 10 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 2**32


def _is_onnx(path: Path, head: bytes) -> bool:
    names_itself = b"pytorch" in head[:64] or b"onnx" in head[:64]
    return head[:1] == b"\x08" and (path.suffix == ".onnx" or names_itself)


def _is_tar(head: bytes) -> bool:
    """Whether torch could read the file as a tar archive, which it tries before it reads a sequence of pickles."""
    if head[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True
