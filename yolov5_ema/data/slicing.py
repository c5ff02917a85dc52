"""Cut large images into overlapping windows: the positions of the windows, and sliced data sets for training.

The windows are at the same positions as sahi's (``sahi.slicing.get_slice_bboxes``), in training and in inference; a
test compares them. sahi itself is not used. Its ``slice_coco`` converts COCO JSON to COCO JSON in one process, writes
every JPEG window as PNG, cannot resume after an interruption, and reads images with Pillow, while YOLOv5 uses OpenCV.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from tqdm import tqdm

from yolov5_ema.data.dataset import SPLITS, Dataset, label_path, place_of
from yolov5_ema.data.image_files import read_image
from yolov5_ema.data.image_size import displayed_size
from yolov5_ema.data.text_rows import BadLine
from yolov5_ema.data.yolo_format import label_text, to_xywh_pixels
from yolov5_ema.errors import UserError
from yolov5_ema.files import link_or_copy, make_folder, why_not_written, write_whole
from yolov5_ema.reading import read_json

MIN_SIZE = 32  # pixels; the largest stride of YOLOv5's P5 models
MAX_OVERLAP = 0.9  # the number of windows grows with 1 / (1 - overlap)^2
JPEG_QUALITY = 95
MANIFEST = "slicing.json"

_JPEG = {".jpg", ".jpeg", ".mpo"}

Window = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""


def check_window(size: int, overlap: float, size_flag: str = "--size") -> None:
    """Check the size and the overlap of windows.

    Raises:
        UserError: no windows can be made with this size or overlap.
    """
    if size < MIN_SIZE:
        raise UserError(f"{size_flag} {size}: windows must be at least {MIN_SIZE} pixels wide, such as 640")
    if not 0 <= overlap <= MAX_OVERLAP:
        raise UserError(
            f"--overlap {overlap:g}: must be a fraction of the window from 0 to {MAX_OVERLAP:g}, such as 0.2"
        )


def windows(width: int, height: int, size: int, overlap: float) -> list[Window]:
    """The windows of an image, row by row; the last of a row or a column is shifted to end at the border.

    Args:
        width: the width of the image in pixels.
        height: the height of the image in pixels.
        size: the width and height of a window in pixels; an image is not cut along a side that is smaller.
        overlap: the fraction of a window that the next one repeats.

    Example:
        >>> windows(1000, 640, 640, 0.2)
        [(0, 0, 640, 640), (360, 0, 1000, 640)]
    """
    if width <= size and height <= size:
        return [(0, 0, width, height)]
    step = size - int(overlap * size)
    return [
        (left, top, min(left + size, width), min(top + size, height))
        for top in _starts(height, size, step)
        for left in _starts(width, size, step)
    ]


def _starts(length: int, size: int, step: int) -> list[int]:
    """Where windows begin along a side of an image; the last window ends at the border."""
    last = max(length - size, 0)
    return [*range(0, last, step), last]


@dataclass(frozen=True)
class SlicePlan:
    """How a data set is cut.

    Attributes:
        size: the width and height of a window in pixels.
        overlap: the fraction of a window that the next one repeats.
        min_area_ratio: an object cut by a window is labelled in it if at least this fraction of its box is inside.
        keep_empty: the fraction of training windows without an object that are kept as background.
    """

    size: int = 640
    overlap: float = 0.2
    min_area_ratio: float = 0.1
    keep_empty: float = 0.1

    def check(self) -> None:
        """Check the values.

        Raises:
            UserError: a value is out of range; the message names the flag.
        """
        check_window(self.size, self.overlap)
        for flag, value in (("--min-area-ratio", self.min_area_ratio), ("--keep-empty", self.keep_empty)):
            if not 0 <= value <= 1:
                raise UserError(f"{flag} {value:g}: must be a fraction from 0 to 1")


@dataclass
class SliceReport:
    """Counts and problems of one split.

    Attributes:
        images: source images that are in the sliced set.
        skipped: those of them that an earlier run had sliced.
        whole: those of them that are no larger than a window, and are linked without cutting.
        written: windows with objects, or whole images.
        background: windows without an object that were kept.
        left_out: windows without an object that were left out.
        slivers: windows left out because they show only parts of objects that are too small to be labelled.
        objects: labels in all windows.
        bad_lines: malformed lines of label files; the other lines are used.
        bad_images: source images that cannot be read completely.
    """

    images: int = 0
    skipped: int = 0
    whole: int = 0
    written: int = 0
    background: int = 0
    left_out: int = 0
    slivers: int = 0
    objects: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)
    bad_images: list[Path] = field(default_factory=list)

    def add(self, other: SliceReport) -> None:
        """Add the counts and problems of another report."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def clip_labels(labels: np.ndarray, window: Window, min_area_ratio: float) -> tuple[np.ndarray, int]:
    """Compute the labels of a window.

    Args:
        labels: (N, 5): class, left, top, right, bottom in pixels of the image; inside the image.
        window: the window.
        min_area_ratio: see `SlicePlan`.

    Returns:
        Labels in YOLO's form, (M, 5): class, x centre, y centre, width, height as fractions of the window; and the
        number of objects of which too small a part is in the window to be labelled.
    """
    left, top, right, bottom = window
    low = np.maximum(labels[:, 1:3], (left, top))  # (N, 2)
    high = np.minimum(labels[:, 3:5], (right, bottom))
    shown = (high > low).all(axis=1)
    area = (labels[:, 3:5] - labels[:, 1:3]).prod(axis=1)
    inside = (high - low).clip(0).prod(axis=1)
    kept = shown & (inside >= min_area_ratio * area)
    size = np.array((right - left, bottom - top), dtype=np.float64)
    center = ((low + high) / 2 - (left, top)) / size
    rows = np.concatenate([labels[:, :1], center, (high - low) / size], axis=1)
    return rows[kept], int((shown & ~kept).sum())


def slice_split(
    dataset: Dataset,
    split: str,
    out: Path,
    plan: SlicePlan,
    *,
    strict: bool = False,
    workers: int | None = None,
) -> SliceReport:
    """Cut one split into ``out/images/SPLIT`` and ``out/labels/SPLIT``; finished windows are kept.

    Every file is written completely or not at all, labels before their image.

    Args:
        dataset: the data set.
        split: ``train``, ``val`` or ``test``.
        out: the folder of the sliced set.
        plan: how to cut.
        strict: raise at a bad label line or an unreadable image instead of counting it.
        workers: the number of threads; None for one per core. Decoding and encoding release Python's GIL.

    Raises:
        UserError: with ``strict``, there is a problem in a file; or the disk is full or not writable.
    """
    images = dataset.images(split)
    jobs = [_Job(image, name, split, out, plan, dataset) for image, name in _named(images, dataset.root)]
    report = SliceReport()
    try:
        for folder in ("images", "labels"):
            make_folder(out / folder / split, inside=out)
        for done in _in_parallel(jobs, workers or os.cpu_count() or 1, f"slicing {split}"):
            report.add(done)
            _stop_if(strict, done)
    except OSError as error:
        raise UserError(f"cannot write the slices to {out}: {error.strerror or error}") from error
    return report


def prepare_folder(out: Path, dataset: Dataset, plan: SlicePlan) -> None:
    """Make the folder of a sliced set, or check that an earlier run began it with the same plan.

    Raises:
        UserError: the folder holds something else, or windows that were cut with a different plan.
    """
    manifest = {"source": str(dataset.file.resolve()), **asdict(plan)}
    file = out / MANIFEST
    try:
        if file.is_file():
            _refuse_another(read_json(file), manifest, out)
            return
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"-o {out} holds something else; give a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(manifest, indent=1))
    except (OSError, ValueError) as error:
        said = why_not_written(out, error) if isinstance(error, OSError) else error
        raise UserError(f"cannot use the folder -o {out}: {said}") from error


def write_yaml(dataset: Dataset, sliced: Sequence[str], out: Path) -> Path:
    """Write the data YAML of a sliced set; it gives absolute paths for splits that were not cut.

    Returns:
        The path of the YAML, in ``out``.
    """
    content: dict[str, Any] = {"path": str(out.resolve())}
    for split in SPLITS:
        if split in sliced:
            content[split] = f"images/{split}"
        elif split in dataset.splits:
            content[split] = _absolute(dataset.content[split], dataset.root)
    content.update(nc=len(dataset.names), names=list(dataset.names))
    _keep_annotations(content, dataset, sliced)
    file = out / f"{out.name}.yaml"
    write_whole(file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return file


# --- one image ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """One image to cut."""

    image: Path
    name: str  # the start of the names of its windows
    split: str
    out: Path
    plan: SlicePlan
    dataset: Dataset

    def run(self) -> SliceReport:
        rows = self.dataset.labels(self.image)
        size: tuple[int, int] | None = None
        with contextlib.suppress(Exception):  # Pillow raises many types on damaged files; OpenCV decides
            size = displayed_size(self.image)
        if size is not None:
            cuts, report = self._cuts(rows.values, size)
            report.bad_lines = rows.named
            if not cuts:  # no window is kept, so there is no need to decode the image
                self._remove_others(size, cuts)
                return report
            if self._is_done(cuts, bool(report.whole)):
                report.skipped = 1
                return report
        picture, problem = read_image(self.image)
        if picture is None or problem:  # a part of an image that is cut off would be grey
            return SliceReport(bad_lines=rows.named, bad_images=[self.image])
        size = picture.shape[1], picture.shape[0]
        cuts, report = self._cuts(rows.values, size)
        report.bad_lines = rows.named
        self._remove_others(size, cuts)
        for window, labels in cuts.items():
            self._make(picture, window, labels, bool(report.whole))
        return report

    def _cuts(self, labels: np.ndarray, size: tuple[int, int]) -> tuple[dict[Window, np.ndarray], SliceReport]:
        """The windows that are kept, with their labels."""
        report = SliceReport(images=1)
        wanted = windows(*size, self.plan.size, self.plan.overlap)
        boxes = _boxes_inside(labels, *size)
        if len(wanted) == 1:
            kept, _ = clip_labels(boxes, wanted[0], 0)
            report.whole, report.objects = 1, len(kept)
            report.background, report.written = int(not len(kept)), int(len(kept) > 0)
            return {wanted[0]: kept}, report
        cuts = {}
        for window in wanted:
            kept, slivers = clip_labels(boxes, window, self.plan.min_area_ratio)
            if self._is_kept(window, len(kept), slivers, report):
                report.objects += len(kept)
                cuts[window] = kept
        return cuts, report

    def _is_kept(self, window: Window, objects: int, slivers: int, report: SliceReport) -> bool:
        if objects:
            report.written += 1
            return True
        if slivers:
            report.slivers += 1
            return False
        # a pseudorandom number from 0 to 1 that depends only on the name
        chance = zlib.crc32(self._stem(window).encode()) / 2**32
        if self.split != "train" or chance < self.plan.keep_empty:
            report.background += 1
            return True
        report.left_out += 1
        return False

    def _stem(self, window: Window) -> str:
        return "_".join([self.name, *map(str, window)])

    def _files(self, window: Window, is_whole: bool) -> tuple[Path, Path]:
        """The paths of the image and of the labels."""
        stem, suffix = (self.name, self.image.suffix) if is_whole else (self._stem(window), self._suffix)
        labels = self.out / "labels" / self.split / f"{stem}.txt"
        return self.out / "images" / self.split / f"{stem}{suffix}", labels

    @property
    def _suffix(self) -> str:
        return ".jpg" if self.image.suffix.lower() in _JPEG else ".png"

    def _is_done(self, cuts: Mapping[Window, np.ndarray], is_whole: bool) -> bool:
        """Whether every file exists and is newer than its sources."""
        sources = [path for path in (self.image, label_path(self.image)) if path.exists()]
        changed_ns = max(path.stat().st_mtime_ns for path in sources)
        return all(
            image.exists() and labels.exists() and labels.stat().st_mtime_ns >= changed_ns
            for image, labels in (self._files(window, is_whole) for window in cuts)
        )

    def _make(self, picture: np.ndarray, window: Window, labels: np.ndarray, is_whole: bool) -> None:
        left, top, right, bottom = window
        image_file, label_file = self._files(window, is_whole)
        write_whole(label_file, label_text(labels))
        if is_whole:
            link_or_copy(self.image, image_file)
            return
        flags = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if self._suffix == ".jpg" else []
        _, encoded = cv2.imencode(self._suffix, picture[top:bottom, left:right], flags)
        write_whole(image_file, encoded.tobytes())

    def _remove_others(self, size: tuple[int, int], cuts: Mapping[Window, np.ndarray]) -> None:
        """Remove windows that were made from older labels and are no longer needed."""
        for window in windows(*size, self.plan.size, self.plan.overlap):
            if window not in cuts:
                for path in self._files(window, False):
                    path.unlink(missing_ok=True)


def _boxes_inside(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """YOLO labels as (N, 5): class, left, top, right, bottom in pixels, clipped to the image."""
    xywh = to_xywh_pixels(labels[:, 1:], width, height)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    corners = corners.clip(0, (width, height, width, height))
    return np.concatenate([labels[:, :1], corners], axis=1)


# --- many images ----------------------------------------------------------------------------


def _named(images: Sequence[Path], root: Path) -> Iterator[tuple[Path, str]]:
    """Each image and a unique name: its stem, with a hash of its path if two stems are equal."""
    stems = Counter(image.stem for image in images)
    for image in images:
        if stems[image.stem] == 1:
            yield image, image.stem
            continue
        place = os.path.relpath(image, root)
        yield image, f"{image.stem}-{sha1(Path(place).as_posix().encode()).hexdigest()[:8]}"


def _in_parallel(jobs: Sequence[_Job], workers: int, title: str) -> Iterator[SliceReport]:
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from tqdm(pool.map(_Job.run, jobs), total=len(jobs), desc=title, unit="image")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _stop_if(strict: bool, report: SliceReport) -> None:
    if strict and report.bad_images:
        raise UserError(f"{report.bad_images[0]}: cannot be read as an image")
    if strict and report.bad_lines:
        raise UserError(str(report.bad_lines[0]))


def _refuse_another(found: Any, wanted: Mapping[str, Any], out: Path) -> None:
    if not isinstance(found, dict):
        raise UserError(f"{out / MANIFEST} is damaged; give another folder, or delete this one")
    other = [
        f"{key} {found.get(key)!r:.200} instead of {value!r}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if other:
        raise UserError(f"-o {out} was started with {', '.join(other)}; give another folder, or delete this one")


def _absolute(entry: Any, root: Path) -> Any:
    if isinstance(entry, list):
        return [_absolute(part, root) for part in entry]
    return str(place_of(root, str(entry)).resolve())


def _keep_annotations(content: dict[str, Any], dataset: Dataset, sliced: Iterable[str]) -> None:
    """Keep the COCO annotations and similar entries of splits that are not cut."""
    for key, places in dataset.content.items():
        if key in content or not isinstance(places, Mapping):
            continue
        kept = {
            split: _absolute(place, dataset.root)
            for split, place in places.items()
            if split in SPLITS and split not in sliced and isinstance(place, str)
        }
        if kept:
            content[key] = kept
