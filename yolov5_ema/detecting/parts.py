"""The finished results of a long prediction, on disk: a file ("part") for each chunk of images.

Only one process writes. A part is written completely or not at all, and never written again. A chunk is done when its
part exists. Each image's result is therefore stored exactly once, however often workers or this process were killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolov5_ema.detecting.runtime_names import TORCH
from yolov5_ema.errors import UserError
from yolov5_ema.files import locked, refuse_link, write_whole, writing_in
from yolov5_ema.reading import parse_json, read_bytes, read_json

_MOST_CHUNKS = 4096
_FEWEST_IMAGES = 16
_LOCK = "lock"
_OWN = re.compile(r"manifest\.json|[0-9]{6,}\.jsonl|joined\.tmp")
_LONGEST_TEXT = 4096
_LARGEST = 3e38
_FIELDS = {"index", "image", "height", "width", "xyxy", "confidence", "class_id", "error"}


@dataclass(frozen=True)
class Manifest:
    """The run that parts belong to; parts can be continued only if all of its attributes are equal.

    Attributes:
        settings: weights, thresholds and everything else that affects the detections; also written to the output.
        images: the number of images.
        images_sha256: the SHA-256 of their paths, in order.
        chunk: the number of images in each part.
    """

    settings: Mapping[str, Any]
    images: int
    images_sha256: str
    chunk: int

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return -(-self.images // self.chunk)

    def span(self, chunk: int) -> range:
        """The indices of a chunk's images in the list."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.images))

    def as_text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def sha256_of_paths(images: Sequence[str], files: Sequence[str]) -> str:
    """The SHA-256 of the paths as the user gave them and of the absolute paths."""
    digest = hashlib.sha256()
    for image, file in zip(images, files):
        digest.update(json.dumps([image, file]).encode())
    return digest.hexdigest()


def default_chunk(images: int) -> int:
    """The default size of a part: small, so that a killed worker loses little, but at most 4,096 parts in all."""
    return max(_FEWEST_IMAGES, -(-images // _MOST_CHUNKS))


class Parts:
    """The folder of parts next to an output file. Use `opened`.

    Attributes:
        folder: the hidden folder next to the output.
        manifest: the run that the parts belong to.
    """

    def __init__(self, out: Path, manifest: Manifest) -> None:
        self.folder = folder_of(out)
        self.manifest = manifest

    def missing(self) -> list[int]:
        """The chunks that are not done yet, in order."""
        return [chunk for chunk in range(self.manifest.chunks) if not self._is_whole(chunk)]

    def write(self, chunk: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Store the results of a chunk.

        Raises:
            UserError: it cannot be written, for example on a full disk; all earlier parts are kept.
        """
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(self._file(chunk), text)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All results in the order of the images; only one part is in memory at a time.

        Raises:
            UserError: the content of a part is not what `write` stores.
        """
        classes = len(self.manifest.settings.get("names", ()))
        for chunk in range(self.manifest.chunks):
            file = self._file(chunk)
            for place, line in zip(self.manifest.span(chunk), read_bytes(file).splitlines()):
                row = _parsed(line)
                if not _is_result(row, classes) or row["index"] != place:
                    number = place - self.manifest.span(chunk).start + 1
                    raise UserError(f"{file}, line {number}: damaged; delete the file and give --resume again")
                yield row

    def remove(self) -> None:
        """Remove the folder, the manifest first: without it, files left by a killed process are ignored."""
        with contextlib.suppress(OSError):
            (self.folder / "manifest.json").unlink(missing_ok=True)
            for path in self.folder.iterdir():
                if _OWN.fullmatch(path.name) or path.name == _LOCK:
                    path.unlink()
            self.folder.rmdir()

    def _file(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06}.jsonl"

    def _is_whole(self, chunk: int) -> bool:
        """Whether a part has as many lines as images; a power failure can leave fewer."""
        try:
            content = read_bytes(self._file(chunk))
        except OSError:
            return False
        return content.count(b"\n") == len(self.manifest.span(chunk)) and content.endswith(b"\n")


def folder_of(out: Path) -> Path:
    """The folder with the parts of an output."""
    return out.with_name(f".{out.name}.parts")


def is_unfinished(out: Path) -> bool:
    """Whether there are parts that `opened` can continue from."""
    return (folder_of(out) / "manifest.json").is_file()


@contextlib.contextmanager
def opened(out: Path, manifest: Manifest, *, resume: bool, force: bool) -> Iterator[Parts]:
    """The parts of an output, locked during a ``with`` block; they are kept when it ends.

    Args:
        out: the output file that the parts will be joined to.
        manifest: the current run.
        resume: continue from existing parts, if there are any.
        force: delete existing parts.

    Raises:
        UserError: there are parts, and neither ``resume`` nor ``force`` is set; they belong to a different run; another
            process is writing them; they cannot be written.
    """
    parts = Parts(out, manifest)
    refuse_link(parts.folder, f"the folder with the finished parts of {out}")
    made = not parts.folder.exists()
    busy = f"another predict is writing {out}; wait until it ends, or stop it"
    with contextlib.ExitStack() as stack:
        with writing_in(out):
            parts.folder.mkdir(exist_ok=True)
            stack.enter_context(locked(parts.folder / _LOCK, busy))
        if is_unfinished(out) and not force:
            if not resume:
                raise UserError(f"{out} is unfinished: --resume continues it, --force starts from the beginning")
            _check_same(parts, out)
        else:
            _begin(parts, made)
        try:
            yield parts
        except UserError:
            if not any(parts.folder.glob("*.jsonl")):  # nothing was done yet, so remove the folder
                parts.remove()
            raise


def runtime_of_parts(out: Path) -> str | None:
    """The runtime that existing parts were made with; None if there are no parts, or they cannot be read."""
    try:
        return _runtime_of(read_json(folder_of(out) / "manifest.json")["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _runtime_of(settings: Mapping[str, Any]) -> str:
    """The runtime in settings; parts of before it was stored are by torch, or by what an exported model needs."""
    from yolov5_ema.checkpoints.exported_models import form_of

    return str(settings["runtime"]) if "runtime" in settings else form_of(Path(settings["weights"])) or TORCH


def begun_with(out: Path, name: str) -> int | None:
    """A number with which the existing parts were begun: ``chunk``, or one of the settings; None if it is not known."""
    try:
        manifest = read_json(folder_of(out) / "manifest.json")
        value = {**manifest["settings"], **manifest}.get(name)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if type(value) is int and 0 < value < 2**31 else None


def _begin(parts: Parts, made: bool) -> None:
    with writing_in(parts.folder):
        for path in parts.folder.iterdir():
            if _OWN.fullmatch(path.name):
                path.unlink()
    try:
        write_whole(parts.folder / "manifest.json", parts.manifest.as_text())
    except UserError:
        if made:
            parts.remove()
        raise


def _check_same(parts: Parts, out: Path) -> None:
    file = parts.folder / "manifest.json"
    try:
        before = read_json(file)
        old = {
            **before["settings"],
            "runtime": _runtime_of(before["settings"]),
            **{name: before[name] for name in ("images", "images_sha256", "chunk")},
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged; --force starts from the beginning") from error
    now = json.loads(parts.manifest.as_text())
    new = {**now.pop("settings"), **now}
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if differing:
        raise UserError(
            f"--resume: {out} was started with other settings: "
            f"{'; '.join(_difference(name, old, new) for name in differing)}. "
            "Give the old settings again, or --force to start from the beginning"
        )


def _difference(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if name == "images_sha256":
        return "the images or their order are different"
    before, now = ("not given" if of.get(name) is None else str(of[name]) for of in (old, new))
    return f"{name:.100} was {before:.200}, now {now:.200}"


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None


def _is_result(row: Any, classes: int) -> bool:
    """Whether a line of a part is a row as `rows.row_of` makes them."""
    if not isinstance(row, dict) or set(row) != _FIELDS or type(row["index"]) is not int:
        return False
    if not _is_text(row["image"]) or not (row["error"] is None or _is_text(row["error"])):
        return False
    if not all(side is None or (type(side) is int and 0 < side < 2**31) for side in (row["height"], row["width"])):
        return False
    boxes, scores, numbers = row["xyxy"], row["confidence"], row["class_id"]
    if not all(isinstance(value, list) for value in (boxes, scores, numbers)):
        return False
    if not len(boxes) == len(scores) == len(numbers):
        return False
    return (
        all(_is_number(score) and 0 <= score <= 1 for score in scores)
        and all(type(number) is int and 0 <= number < classes for number in numbers)
        and all(isinstance(box, list) and len(box) == 4 for box in boxes)
        and all(_is_number(value) for box in boxes for value in box)
    )


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be written and is no longer than a path."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        return False
    with contextlib.suppress(UnicodeEncodeError):
        value.encode("utf-8", "surrogateescape")  # names of files need not be UTF-8
        return True
    return False


def _is_number(value: Any) -> bool:
    """Whether a value is a number that float32 can hold; NaN is not."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST
