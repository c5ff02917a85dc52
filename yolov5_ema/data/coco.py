"""Convert data sets in COCO's format (instances JSON) into the layout that YOLOv5 trains on."""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolov5_ema.data import problems as problems_of
from yolov5_ema.data.coco_format import Instances, read_instances
from yolov5_ema.data.conversion import (
    Conversion,
    SplitResult,
    check_folders,
    check_target,
    journal_file,
    last_entry,
)
from yolov5_ema.data.dataset import SPLITS
from yolov5_ema.data.image_size import read_image_info
from yolov5_ema.data.listing import IMAGE_SUFFIXES
from yolov5_ema.data.problems import Problem
from yolov5_ema.data.workers import all_cores, chunked, run_chunks
from yolov5_ema.data.writing import Journal, Record, place_bytes, place_link, place_yaml, workspace
from yolov5_ema.data.yolo_format import clip_corners, first_of_each, format_labels, to_millionths
from yolov5_ema.errors import UserError
from yolov5_ema.files import make_folder, remove_inside
from yolov5_ema.reading import leads_outside

# Increase it with every change of the output, so that the output of an older version is written again.
RULES = 1
YAML_NAME = "coco.yaml"
_CHUNK = 128
_SPLIT = re.compile(r"(?:^|[^a-z])(?:mini)?(train|val|valid|test)(?=$|[^a-z])", re.IGNORECASE)


class SplitSource(NamedTuple):
    """One instances JSON and its images.

    Attributes:
        split: train, val or test.
        file: the JSON.
        images: the folder that the file names in the JSON are relative to.
        name: the name of the split's folders in the output, such as val2017.
    """

    split: str
    file: Path
    images: Path
    name: str


def convert_coco(
    source: Path,
    out: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    copy: bool = False,
    strict: bool = False,
    workers: int | None = None,
    quiet: bool = True,
) -> Conversion:
    """Convert a set in COCO's format into the folder ``out``.

    The results of an earlier run are kept unless the sources or the options have changed.

    Args:
        source: a folder with ``annotations/instances_*.json`` and the images, or one such JSON.
        out: the output folder; created if missing.
        images: the folder of the images, if ``source`` is a JSON.
        split: which split the JSON is, if its name does not say.
        copy: copy images instead of linking them.
        strict: raise instead of leaving anything out.
        workers: the number of processes; one for each core if None.
        quiet: no progress bar.

    Raises:
        UserError: nothing was found, ``out`` or a JSON cannot be used, or, with ``strict``, there is any problem
            in a JSON.
    """
    out = Path(os.path.abspath(out.expanduser()))
    sources = find_instances(source.expanduser(), images.expanduser() if images else None, split)
    check_folders([source, *(found.images for found in sources)], out)
    for found in sources:
        for kind in ("images", "labels"):
            check_target(out / kind / found.name, out, found.name)
    read = [(found, read_instances(found.file)) for found in sources]
    names = _common_names(read, out)
    plans = [_plan(found, instances, out, copy) for found, instances in read]
    for plan, (_, instances) in zip(plans, read):
        _refuse_nothing_left(plan, instances)
    workers = workers or all_cores()
    if strict:
        _check_all(plans, workers, quiet)
    with workspace(out) as drafts:
        results = [_convert(plan, names, out, drafts, workers, quiet, strict) for plan in plans]
        report = problems_of.write_report(out, {result.split: result.problems for result in results}, drafts)
        yaml_file = _write_yaml(out, names, drafts)
    return Conversion(yaml_file, results, [], report)


# --- finding --------------------------------------------------------------------------------


def find_instances(source: Path, images: Path | None, split: str | None) -> list[SplitSource]:
    """The instances JSONs and the folders of their images, in the order train, val, test.

    Raises:
        UserError: there is no such JSON, there are two for one split, or the images are missing.
    """
    if source.is_file():
        return [_single(source, images, split)]
    if not source.is_dir():
        raise UserError(f"{source}: there is no such file or folder")
    if images is not None or split is not None:
        raise UserError(f"--images and --split go with a single JSON, but {source} is a folder")
    found: dict[str, SplitSource] = {}
    for file in sorted((source / "annotations").glob("instances_*.json")):
        name = file.stem[len("instances_") :]
        which = split_of(name)
        if which is None:
            continue
        if which in found:
            raise UserError(
                f"{file} and {found[which].file} are both for {which}; give one of them, with --images FOLDER"
            )
        found[which] = SplitSource(which, file, _images_of(source, name), name)
    if not found:
        raise UserError(
            f"{source} has no annotations/instances_*.json with train, val or test in its name; "
            "if the JSON has another name, give its path, with --images FOLDER"
        )
    return [found[which] for which in SPLITS if which in found]


def split_of(name: str) -> str | None:
    """The split that a name means, such as val for ``val2017``.

    Example:
        >>> split_of("val2017"), split_of("minival2014"), split_of("training")
        ('val', 'val', None)
    """
    match = _SPLIT.search(name)
    return None if match is None else {"valid": "val"}.get(match[1].lower(), match[1].lower())


def _single(file: Path, images: Path | None, split: str | None) -> SplitSource:
    if images is None:
        raise UserError(f"{file} needs --images FOLDER, the folder of its images")
    if not images.is_dir():
        raise UserError(f"--images {images}: there is no such folder")
    name = file.stem[len("instances_") :] if file.stem.startswith("instances_") else file.stem
    which = split or split_of(name)
    if which is None:
        raise UserError(f"{file}: its name does not say which split it is; add --split train, val or test")
    return SplitSource(which, file, images, name if split_of(name) == which else which)


def _images_of(root: Path, name: str) -> Path:
    for folder in (root / name, root / "images" / name):
        if folder.is_dir():
            return folder
    raise UserError(
        f"no images for annotations/instances_{name}.json: neither {root / name} nor {root / 'images' / name}"
    )


# --- what is to be done ---------------------------------------------------------------------


class Item(NamedTuple):
    """An image to be placed in the output.

    Attributes:
        image: its file name, relative to the folder of images; it may contain folders.
        label: the content of its label file.
        width, height: in pixels, from the JSON; 0 if the JSON does not give them.
    """

    image: str
    label: bytes
    width: int
    height: int


class Job(NamedTuple):
    """What workers need to know about a split.

    Attributes:
        source: the folder of the images.
        out: the output folder.
        name: the name of the split's folders.
        copy: whether images are copied.
        drafts: the folder for unfinished files; "" means that nothing is written.
    """

    source: str
    out: str
    name: str
    copy: bool
    drafts: str = ""


class Task(NamedTuple):
    """The work that a worker gets at a time."""

    job: Job
    items: list[Item]


class Plan(NamedTuple):
    """A split that has been read and is ready to be written.

    Attributes:
        source: the JSON and its images.
        job: what the workers need to know.
        items: the item of each image, by file name.
        signatures: the signature of each image's sources.
        tallies: see `SplitResult`.
        problems: what was left out of the JSON.
    """

    source: SplitSource
    job: Job
    items: dict[str, Item]
    signatures: dict[str, str]
    tallies: Counter[str]
    problems: list[Problem]


def _common_names(read: Sequence[tuple[SplitSource, Instances]], out: Path) -> list[str]:
    """The classes, which must be the same in all splits, including those of earlier runs."""
    names, first = read[0][1].names, read[0][0].file
    for source, instances in read[1:]:
        if instances.names != names:
            raise UserError(f"{source.file} has different categories from {first}; YOLOv5 needs the same in all splits")
    replaced = {source.split for source, _ in read}
    for split, finished in _finished_splits(out).items():
        if split not in replaced and finished["names"] != names:
            raise UserError(
                f"{out} has a split {split} with different categories from {first}; give another -o, "
                "or convert all splits at once"
            )
    return names


def _plan(source: SplitSource, instances: Instances, out: Path, copy: bool) -> Plan:
    problems = list(instances.problems)
    images, sizes = [], []
    for image in instances.coco.dataset["images"]:
        name = str(image["file_name"]).replace("\\", "/")
        width, height = (int(image.get(key) or 0) for key in ("width", "height"))
        if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
            problems.append(Problem("image", f"{source.images}/{name}", "YOLOv5 does not read images with this suffix"))
        elif not os.path.isfile(source.images / name):
            problems.append(Problem("image", f"{source.images}/{name}", "there is no such file"))
        elif size := _size_or_problem(source.images / name, (width, height), problems):
            images.append((image["id"], name, (width, height)))
            sizes.append(size)
    labels, tallies = _labels(instances, [identity for identity, *_ in images], sizes)
    items = {name: Item(name, label, *size) for (_, name, size), label in zip(images, labels)}
    signatures = {}
    for name, item in items.items():
        status = os.stat(source.images / name)
        signatures[name] = f"{status.st_size}.{status.st_mtime_ns}/{zlib.crc32(item.label):08x}"
    job = Job(str(source.images.resolve()), str(out), source.name, copy)
    return Plan(source, job, items, signatures, tallies, problems)


def _size_or_problem(file: Path, size: tuple[int, int], problems: list[Problem]) -> tuple[int, int] | None:
    """The size from the JSON, or from the file if the JSON does not give it."""
    if all(size):
        return size
    try:
        return read_image_info(file)[:2]
    except UserError as error:
        problems.append(problems_of.of_error("image", str(file), error))
        return None


def _labels(
    instances: Instances, identities: Sequence[Any], sizes: Sequence[tuple[int, int]]
) -> tuple[list[bytes], Counter[str]]:
    """The texts of the images' label files, and counts of what is in them."""
    rows, files, crowds = [], [], 0
    for index, identity in enumerate(identities):
        for annotation in instances.coco.imgToAnns.get(identity, ()):
            if annotation.get("iscrowd"):
                crowds += 1
                continue
            rows.append((instances.class_of[annotation["category_id"]], *annotation["bbox"]))
            files.append(index)
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    of_file = np.array(files, dtype=np.int64)
    row_sizes = np.array(sizes, dtype=np.float64).reshape(-1, 2)[of_file]
    corners = clip_corners(table[:, 1:], row_sizes)
    millionths = to_millionths(corners, row_sizes)
    has_area = (millionths[:, 2:] > 0).all(axis=1)
    x, y, width, height = table[:, 1:].T
    over = (x < 0) | (y < 0) | (x + width > row_sizes[:, 0]) | (y + height > row_sizes[:, 1])
    chosen = np.flatnonzero(has_area)
    first = first_of_each(of_file[chosen], table[chosen, 0], millionths[chosen])
    kept = chosen[first]
    counts = np.bincount(of_file[kept], minlength=len(identities))
    tallies = Counter(
        images=len(identities),
        boxes=len(kept),
        background=int((counts == 0).sum()),
        crowds=crowds,
        no_area=int((~has_area).sum()),
        clipped=int((over & has_area).sum()),
        duplicates=int((~first).sum()),
    )
    return format_labels(table[kept, 0], millionths[kept], counts), tallies


def _refuse_nothing_left(plan: Plan, instances: Instances) -> None:
    """Refuse a JSON if none of its images, or none of its annotations, would be in the data set.

    Raises:
        UserError: says why they cannot be used.
    """
    source = plan.source
    if not any(_is_readable(f"{plan.job.source}/{name}") for name in plan.items):
        reasons = problems_of.describe([entry for entry in plan.problems if entry.kind == "image"])
        raise UserError(
            "\n".join(
                [
                    f"{source.file}: none of its images can be used; nothing was written. Their names start from "
                    f"{source.images}; for one JSON, --images names another folder",
                    *reasons,
                ]
            )
        )
    with_boxes = (name for name, item in plan.items.items() if item.label)
    if instances.annotations and not any(_is_readable(f"{plan.job.source}/{name}") for name in with_boxes):
        words = {"crowds": "are crowds", "no_area": "have no area within their images"}
        counts = [f"{plan.tallies[key]:,} {word}" for key, word in words.items() if plan.tallies[key]]
        head = f"{source.file}: none of its {instances.annotations:,} annotations can be used"
        head = f"{head}{' (' + ', '.join(counts) + ')' if counts else ''}; nothing was written"
        raise UserError("\n".join([head, *problems_of.describe(plan.problems)]))


def _is_readable(file: str) -> bool:
    try:
        read_image_info(file)
    except UserError:
        return False
    return True


def _check_all(plans: Sequence[Plan], workers: int, quiet: bool) -> None:
    """Check every image without writing anything.

    Raises:
        UserError: there is any problem.
    """
    problems = []
    for plan in plans:
        problems += plan.problems
        tasks = [Task(plan.job, items) for items in chunked(list(plan.items.values()), _CHUNK)]
        sizes = [len(task.items) for task in tasks]
        title = f"checking {plan.source.split}"
        chunks = run_chunks(place_chunk, tasks, sizes, workers=workers, title=title, quiet=quiet)
        with contextlib.closing(chunks):
            for task, (found_sizes, found) in zip(tasks, chunks):
                problems += found + _size_problems(plan.job, task.items, found_sizes)
    problems_of.raise_if_any(problems, "nothing was written")


# --- doing it -------------------------------------------------------------------------------


def _convert(
    plan: Plan, names: list[str], out: Path, drafts: str, workers: int, quiet: bool, strict: bool
) -> SplitResult:
    source, job = plan.source, plan.job._replace(drafts=drafts)
    header = {"rules": RULES, "split": source.split, "source": job.source, "copy": job.copy}
    journal = Journal(journal_file(out, source.name), header)
    folders = {str(Path(name).parent) for name in plan.items}
    for folder in (
        out / "annotations",
        *(out / kind / source.name / f for kind in ("images", "labels") for f in folders),
    ):
        make_folder(folder, inside=out)
    done = {
        name: record
        for name, record in journal.records.items()
        if record.signature == plan.signatures.get(name)
        and record.width
        and all(map(os.path.exists, _targets(job, name)))
    }
    result = SplitResult(source.split, source.name, True, plan.tallies, len(done), list(plan.problems))
    known = [record[1:] for record in done.values()]
    result.problems += _size_problems(job, [plan.items[name] for name in done], known)
    for name in journal.made_before - set(plan.items):
        _remove(job, name)
    with contextlib.closing(journal):
        journal.begin(done, drafts)
        waiting = [item for name, item in plan.items.items() if name not in done]
        tasks = [Task(job, items) for items in chunked(waiting, _CHUNK)]
        sizes = [len(task.items) for task in tasks]
        chunks = run_chunks(place_chunk, tasks, sizes, workers=workers, title=source.split, quiet=quiet)
        with contextlib.closing(chunks):
            for task, (found_sizes, problems) in zip(tasks, chunks):
                images = [item.image for item in task.items]
                records = [Record(plan.signatures[name], *size) for name, size in zip(images, found_sizes)]
                journal.add(images, records)
                result.problems += problems + _size_problems(job, task.items, found_sizes)
                lost = [item for item, (width, _) in zip(task.items, found_sizes) if not width]
                result.tallies.subtract(_tallies_of(lost))
        if strict:  # only what has changed since the check
            problems_of.raise_if_any(result.problems, f"{source.name} is not complete")
        annotations = f"annotations/{source.file.name}"
        place_link(str(source.file.resolve()), str(out / annotations), drafts, job.copy)
        journal.finish({"split": source.split, "name": source.name, "names": names, "annotations": annotations})
    return result


def _size_problems(job: Job, items: Iterable[Item], sizes: Iterable[tuple[int, int]]) -> list[Problem]:
    """Images whose size differs from the annotated size, for example because they were rotated."""
    problems = []
    for item, (width, height) in zip(items, sizes):
        if width and item.width and (item.width, item.height) != (width, height):
            reason = f"is {width} x {height}, but the JSON says {item.width} x {item.height}; labels follow the JSON"
            problems.append(Problem("size", f"{job.source}/{item.image}", reason))
    return problems


def _tallies_of(items: Sequence[Item]) -> dict[str, int]:
    return {
        "images": len(items),
        "boxes": sum(item.label.count(b"\n") for item in items),
        "background": sum(not item.label for item in items),
    }


def _targets(job: Job, image: str) -> tuple[str, str]:
    stem = os.path.splitext(image)[0]
    return f"{job.out}/images/{job.name}/{image}", f"{job.out}/labels/{job.name}/{stem}.txt"


def _remove(job: Job, image: str) -> None:
    for target in _targets(job, image):
        remove_inside(Path(target), Path(job.out))


def place_chunk(task: Task) -> tuple[list[tuple[int, int]], list[Problem]]:
    """Link images and write their labels; return their sizes, (0, 0) for an image that cannot be used."""
    job, sizes, problems = task.job, [], []
    for item in task.items:
        file = f"{job.source}/{item.image}"
        try:
            info = read_image_info(file)
        except UserError as error:
            problems.append(problems_of.of_error("image", file, error))
            sizes.append((0, 0))
            if job.drafts:
                _remove(job, item.image)
            continue
        sizes.append((info.width, info.height))
        if job.drafts:
            image, label = _targets(job, item.image)
            # YOLOv5 rewrites a JPEG without an end marker in place; through a link it would change the source.
            place_link(file, image, job.drafts, copy=job.copy or not info.whole)
            place_bytes(item.label, label, job.drafts)
    return sizes, problems


def _finished_splits(out: Path) -> dict[str, Mapping[str, Any]]:
    """The latest journal entry of each complete split in ``out``."""
    found: dict[str, Mapping[str, Any]] = {}
    files = [file for file in journal_file(out, "x").parent.glob("*.jsonl") if file.exists()]  # not broken links
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        finished: Any = last_entry(file).get("finished")
        if _is_finished(finished):
            found[finished["split"]] = finished
    return found


def _is_finished(entry: Any) -> bool:
    """Whether a journal's last entry is one that `_convert` writes when it has finished."""
    if not isinstance(entry, dict) or entry.get("split") not in SPLITS:
        return False
    names = entry.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return False
    return not any(leads_outside(entry.get(key)) for key in ("name", "annotations"))


def _write_yaml(out: Path, names: list[str], drafts: str) -> Path:
    """Write the data YAML, with every split that is complete in ``out``, from this run or an earlier one."""
    finished = _finished_splits(out)
    content: dict[str, Any] = {"path": str(out)}
    content.update({split: f"images/{finished[split]['name']}" for split in SPLITS if split in finished})
    content.update(nc=len(names), names=list(names))
    content["coco_annotations"] = {split: finished[split]["annotations"] for split in SPLITS if split in finished}
    return place_yaml(content, "# Written by `yolov5-ema data coco`.\n", out / YAML_NAME, drafts)
