"""Convert the downloaded VisDrone2019-DET into the files that YOLOv5 trains on and that evaluations read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from yolov5_ema.data import problems as problems_of
from yolov5_ema.data.archives import Place, open_archive
from yolov5_ema.data.conversion import (
    Conversion,
    SplitResult,
    check_folders,
    check_target,
    journal_file,
    last_entry,
)
from yolov5_ema.data.dataset import SPLITS
from yolov5_ema.data.listing import IMAGE_SUFFIXES
from yolov5_ema.data.problems import Problem
from yolov5_ema.data.visdrone_chunks import (
    Chunk,
    Item,
    Job,
    Task,
    convert_chunk,
    remove_results,
    stem_of,
)
from yolov5_ema.data.visdrone_format import CLASSES, SPLIT_FOLDERS
from yolov5_ema.data.visdrone_source import CHALLENGE, SplitSource, find_splits
from yolov5_ema.data.workers import all_cores, chunked, run_chunks
from yolov5_ema.data.writing import (
    Journal,
    Record,
    draft_of,
    place_yaml,
    workspace,
)
from yolov5_ema.errors import UserError
from yolov5_ema.files import make_folder, remove_inside

YAML_NAME = "visdrone.yaml"
_CHUNK, _CHUNK_OF_MASKED = 64, 8


def convert_visdrone(
    sources: Sequence[Path],
    out: Path,
    *,
    mask_ignored: bool = False,
    copy: bool = False,
    strict: bool = False,
    workers: int | None = None,
    quiet: bool = True,
) -> Conversion:
    """Convert the splits found in ``sources`` into the folder ``out``.

    The results of an earlier run are kept unless the sources or the options have changed.

    Args:
        sources: the benchmark's archives, their unpacked folders, or folders that contain these.
        out: the output folder; created if missing.
        mask_ignored: paint the ignored regions of training images grey.
        copy: copy images instead of linking them.
        strict: raise instead of leaving anything out.
        workers: the number of processes; one for each core if None.
        quiet: no progress bar.

    Raises:
        UserError: no split was found, ``out`` cannot be used, or, with ``strict``, there is a problem in a source.
    """
    out = Path(os.path.abspath(out.expanduser()))
    found, notes = find_splits(sources)
    _check_places([Path(source) for source in sources], found, out)
    options = {"mask_ignored": mask_ignored, "copy": copy}
    workers = workers or all_cores()
    jobs = [_plan(source, out, options) for source in found]
    if strict:
        _check_all(jobs, workers, quiet)
    with workspace(out) as drafts:
        results = [_convert(job._replace(drafts=drafts), out, workers, quiet, strict) for job in jobs]
        report = problems_of.write_report(out, {result.split: result.problems for result in results}, drafts)
        yaml_file = _write_yaml(out, drafts)
    return Conversion(yaml_file, results, notes, report)


# --- what is to be done ---------------------------------------------------------------------


def _plan(source: SplitSource, out: Path, options: Mapping[str, bool]) -> Job:
    annotated = bool(_listed(source.place.sub("annotations"), {".txt"}, optional=True))
    mask = options["mask_ignored"] and source.split == "train"
    return Job(source.split, source.place, str(out / source.folder), annotated, mask, options["copy"])


def _check_places(sources: Sequence[Path], found: Sequence[SplitSource], out: Path) -> None:
    """Refuse an output that would overwrite the sources."""
    check_folders(sources, out)
    for split in found:
        target = out / split.folder
        if target.resolve() in (Path(split.place.path).resolve(), *Path(split.place.path).resolve().parents):
            raise UserError(f"{target} would be overwritten: it holds the source; give another -o")
        check_target(target, out, split.folder)
    archives = {split.place.path for split in found if split.place.inside is not None}
    needed = sum(info.file_size for path in archives for info in open_archive(path).infolist())
    _check_room(out, needed, found)


def _check_room(out: Path, needed: int, found: Sequence[SplitSource]) -> None:
    """Refuse a disk that is too small to unpack the archives, before any work is done."""
    there = next(folder for folder in (out, *out.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    is_new = not any(journal_file(out, split.folder).is_file() for split in found)
    if is_new and needed > free:
        raise UserError(
            f"-o {out}: {needed / 1e9:.1f} GB are needed to unpack the archives, {free / 1e9:.1f} GB are free"
        )


def _listed(place: Place, suffixes: Collection[str], optional: bool = False) -> dict[str, str]:
    if optional and place.inside is None and not os.path.isdir(place.path):
        return {}
    return {
        name: signature
        for name, signature in place.signatures().items()
        if name[len(stem_of(name)) :].lower() in suffixes
    }


def _list_items(job: Job) -> tuple[dict[str, tuple[Item, str]], list[Problem]]:
    """The item of each image and the signature of its sources, by file name; and files without a counterpart."""
    place, problems = job.source.sub("images"), []
    images = _listed(place, IMAGE_SUFFIXES)
    annotations = _listed(job.source.sub("annotations"), {".txt"}, optional=True)
    items: dict[str, tuple[Item, str]] = {}
    stems: dict[str, str] = {}
    for image, signature in images.items():
        stem = stem_of(image)
        if stem in stems:
            reason = f"has the same name as {stems[stem]}, so that both would have one label file"
            problems.append(Problem("image", place.name_of(image), reason))
            continue
        stems[stem] = image
        annotation = f"{stem}.txt" if f"{stem}.txt" in annotations else ""
        if job.annotated and not annotation:
            reason = "no annotation file; the image is left out because YOLOv5 would treat it as background"
            problems.append(Problem("no annotation", place.name_of(image), reason))
            continue
        items[image] = Item(image, annotation, None), f"{signature}/{annotations.get(annotation, '')}"
    for annotation in annotations:
        if stem_of(annotation) not in stems:
            where = job.source.sub("annotations").name_of(annotation)
            problems.append(Problem("no image", where, f"there is no such image in {place}"))
    if not images:
        raise UserError(f"{place} holds no images")
    return items, problems


def _check_all(jobs: Sequence[Job], workers: int, quiet: bool) -> None:
    """Check every source without writing anything.

    Raises:
        UserError: there is any problem.
    """
    problems = []
    for job in jobs:
        items, found = _list_items(job)
        problems += found
        tasks = [Task(job, chunk) for chunk in chunked([item for item, _ in items.values()], _CHUNK)]
        sizes = [len(task.items) for task in tasks]
        title = f"checking {job.split}"
        chunks = run_chunks(convert_chunk, tasks, sizes, workers=workers, title=title, quiet=quiet)
        with contextlib.closing(chunks):
            problems += [problem for chunk in chunks for problem in chunk.problems]
    problems_of.raise_if_any(problems, "nothing was written")


# --- doing it -------------------------------------------------------------------------------


def _convert(job: Job, out: Path, workers: int, quiet: bool, strict: bool) -> SplitResult:
    target = Path(job.target)
    items, problems = _list_items(job)
    journal = Journal(journal_file(out, target.name), job.header())
    for folder in (*(target / kind for kind in _kinds(job)), out / "annotations"):
        make_folder(folder, inside=out)
    done = _reusable_records(job, journal, items)
    result = SplitResult(job.split, target.name, job.annotated, done_before=len(done), problems=list(problems))
    json_file = out / "annotations" / f"instances_{job.split}.json" if job.annotated else None
    stale = journal.made_before - set(items)
    if (
        _is_summary(journal.finished)
        and len(done) == len(items)
        and not stale
        and (json_file is None or json_file.exists())
    ):
        finished = journal.finished or {}
        result.tallies = Counter(finished["tallies"])
        result.problems += [Problem(*row) for row in finished["problems"]]
        return result
    remove_results(job.target, stale)
    if not job.annotated:
        _remove_labels(target, journal.made_before)
    with contextlib.closing(journal):
        journal.begin(done, job.drafts)
        with draft_of(json_file, job.drafts) if json_file else io.BytesIO() as file:
            _run(job, items, journal, result, file, workers, quiet)
            if strict:  # only what the check could not see, such as an image that is damaged in the middle
                problems_of.raise_if_any(result.problems, f"{target.name} is not complete")
        journal.finish({"tallies": result.tallies, "problems": result.problems[len(problems) :]})
    return result


def _is_summary(entry: dict[str, Any] | None) -> bool:
    """Whether a journal's last entry is one that `_convert` writes when it has finished."""
    tallies, problems = (entry or {}).get("tallies"), (entry or {}).get("problems")
    if not isinstance(tallies, dict) or not isinstance(problems, list):
        return False
    return all(type(count) is int and abs(count) < 2**53 for count in tallies.values()) and all(
        isinstance(row, list) and len(row) == 3 and all(isinstance(text, str) for text in row) for row in problems
    )


def _reusable_records(job: Job, journal: Journal, items: Mapping[str, tuple[Item, str]]) -> dict[str, Record]:
    """The records of images with unchanged sources and complete results."""
    there = {name: set(os.listdir(f"{job.target}/{name}")) for name in _kinds(job)}
    done = {}
    for image, (_, signature) in items.items():
        record = journal.records.get(image)
        if record is None or record.signature != signature:
            continue
        text = f"{stem_of(image)}.txt"
        wanted = [image in there["images"], *(text in there[kind] for kind in _kinds(job)[1:])]
        if all(wanted) or not record.width:
            done[image] = record
    return done


def _kinds(job: Job) -> tuple[str, ...]:
    return ("images", "annotations", "labels") if job.annotated else ("images",)


def _remove_labels(target: Path, images: Iterable[str]) -> None:
    """Remove the labels of an earlier run that had annotations."""
    for folder in (target / "labels", target / "annotations"):
        for image in images:
            remove_inside((folder / image).with_suffix(".txt"), target.parent)
        with contextlib.suppress(OSError):  # it never existed, or someone else put something in its place
            folder.rmdir()


def _run(
    job: Job,
    items: Mapping[str, tuple[Item, str]],
    journal: Journal,
    result: SplitResult,
    file: BinaryIO,
    workers: int,
    quiet: bool,
) -> None:
    sizes_known = {name: record[1:] for name, record in journal.records.items() if record.width}
    tasks = [
        Task(job, [items[image][0]._replace(size=sizes_known.get(image)) for image in images])
        for images in chunked(list(items), _CHUNK_OF_MASKED if job.mask else _CHUNK)
    ]
    sizes = [len(task.items) for task in tasks]
    coco = _CocoFile(file, Path(job.target).name)
    chunks = run_chunks(convert_chunk, tasks, sizes, workers=workers, title=job.split, quiet=quiet)
    with contextlib.closing(chunks):
        for task, chunk in zip(tasks, chunks):
            fresh = [(item, size) for item, size in zip(task.items, chunk.sizes) if item.size is None]
            if fresh:
                names = [item.image for item, _ in fresh]
                journal.add(names, [Record(items[item.image][1], *size) for item, size in fresh])
            coco.add(chunk)
            result.tallies.update(chunk.tallies)
            result.problems += chunk.problems
    coco.end()


class _CocoFile:
    """A COCO JSON that is written chunk by chunk; annotation ids count from 1."""

    def __init__(self, file: BinaryIO, folder: str) -> None:
        self._file, self._next_id = file, 1
        self._images: list[str] = []
        info = json.dumps({"description": f"{folder}, converted by yolov5-ema"})
        categories = [{"id": index, "name": name, "supercategory": "object"} for index, name in enumerate(CLASSES)]
        head = f'{{"info":{info},\n"categories":{json.dumps(categories)},\n"annotations":[\n'
        file.write(head.encode())

    def add(self, chunk: Chunk) -> None:
        if chunk.images:
            self._images.append(chunk.images)
        if not chunk.annotation_count:
            return
        end = self._next_id + chunk.annotation_count
        text = chunk.annotations % tuple(range(self._next_id, end))
        self._file.write(((",\n" if self._next_id > 1 else "") + text).encode())
        self._next_id = end

    def end(self) -> None:
        self._file.write(('\n],\n"images":[\n' + ",\n".join(self._images) + "\n]}\n").encode())


def _write_yaml(out: Path, drafts: str) -> Path | None:
    """Write the data YAML, with every split that is complete in ``out``, from this run or an earlier one."""
    content: dict[str, Any] = {"path": str(out)}
    official, coco = {}, {}
    for split in SPLITS:
        folder = _complete_folder(out, split)
        if folder is None:
            continue
        content[split] = f"{folder}/images"
        if (out / folder / "annotations").is_dir():
            official[split] = f"{folder}/annotations"
            coco[split] = f"annotations/instances_{split}.json"
    if len(content) == 1:
        return None
    content.update(nc=len(CLASSES), names=list(CLASSES))
    if official:
        content.update(visdrone_annotations=official, coco_annotations=coco)
    return place_yaml(content, "# VisDrone2019-DET, written by `yolov5-ema data visdrone`.\n", out / YAML_NAME, drafts)


def _complete_folder(out: Path, split: str) -> str | None:
    """The folder of a split, if YOLOv5 can use it: training and validation need labels."""
    for folder in (SPLIT_FOLDERS[split], *([CHALLENGE] if split == "test" else [])):
        is_complete = "finished" in last_entry(journal_file(out, folder))
        if is_complete and (split == "test" or (out / folder / "labels").is_dir()):
            return folder
    return None
