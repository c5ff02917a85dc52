"""Reads the metadata of an ONNX file, and the names of the files from which it reads tensors.

The file is a protobuf message. Only the fields that lead to these two are read, so no package is needed, and a model of
gigabytes takes little time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from yolov5_ema.errors import CheckpointError

# message -> the fields of it that are read, and the messages in them (onnx.proto)
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 14: "Entry", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "External"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
}
# StringStringEntryProto: field 1 is the key, field 2 the value
_TEXTS = ("Entry", "External")
_MOST_MESSAGES = 5_000_000
_DEEPEST = 100


@dataclass
class OnnxFile:
    """The metadata entries in the order of the file, repeated keys included, and the names of other files."""

    metadata: list[tuple[str, str]] = field(default_factory=list)
    locations: list[str] = field(default_factory=list)


def read_onnx(content: bytes, path: Path) -> OnnxFile:
    """Read the metadata and the locations of external tensors of an ONNX file.

    Raises:
        CheckpointError: it is not an ONNX file, or is cut off.
    """
    found = OnnxFile()
    waiting = [("Model", memoryview(content), 0)]
    count = 0
    try:
        while waiting:
            kind, message, depth = waiting.pop()
            count += 1
            if depth > _DEEPEST or count > _MOST_MESSAGES:
                raise ValueError("it is larger or nested more deeply than any model")
            if kind in _TEXTS:
                _keep(found, kind, message)
                continue
            followed = _FIELDS[kind]
            inner = [(followed[number], part, depth + 1) for number, part in _parts(message) if number in followed]
            waiting.extend(reversed(inner))
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path} is not an ONNX file, or is cut off: {error}") from None
    return found


def check_locations(found: OnnxFile, path: Path) -> None:
    """Raise an error if a model reads tensors from files outside its own folder, which may be private.

    Current versions of onnxruntime refuse such files themselves; OpenCV (``--dnn``) reads them.

    Raises:
        CheckpointError: names the file that would be read.
    """
    # readers look in the folder of the file, or in that of the target if the file is a link
    folders = (path.resolve().parent, path.parent.resolve())
    for location in dict.fromkeys(found.locations):
        kinds = (PurePosixPath(location), PureWindowsPath(location))
        leads_out = any(".." in kind.parts or kind.root or kind.drive for kind in kinds) or "\0" in location
        if leads_out or not all(_stays_in(folder, location) for folder in folders):
            raise CheckpointError(
                f"{path} reads tensors from the file {location[:200]!r}, which is not in the model's folder. "
                "That file was not read."
            )


def _stays_in(folder: Path, location: str) -> bool:
    return folder in Path(os.path.realpath(folder / location)).parents


def _keep(found: OnnxFile, kind: str, message: memoryview) -> None:
    parts = {number: bytes(part) for number, part in _parts(message)}
    key, value = (parts.get(number, b"") for number in (1, 2))
    if kind == "Entry":
        found.metadata.append((key.decode("utf-8", "replace"), value.decode("utf-8", "replace")))
    elif key == b"location":
        # bytes that are not UTF-8 raise an error: another reader could see another name
        found.locations.append(value.decode())


def _parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The numbers and contents of the fields of a message that have a length; all other fields are skipped."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        wire = tag & 7
        # other readers drop the upper bits, and see another field
        if not 8 <= tag < 2**32:
            raise ValueError(f"a field with the number {tag >> 3}")
        if wire == 0:
            _, place = _varint(message, place)
            continue
        if wire == 2:
            length, place = _varint(message, place)
            if length >= 2**31:
                raise ValueError(f"a field of {length:,} bytes")
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of the wire type {wire}")
        if place + length > len(message):
            raise ValueError("a field reaches beyond its end")
        if wire == 2:
            yield tag >> 3, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number without an end")
