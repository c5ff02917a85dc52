"""``yolov5-ema predict``: detect in many images and write one file; resumable, with one process or many."""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov5_ema import __version__
from yolov5_ema.class_names import class_numbers
from yolov5_ema.cli._collector import paused
from yolov5_ema.cli._engines import name_of, start_engine_of
from yolov5_ema.cli._slicing import add_slicing, slicing_of
from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import (
    Command,
    add_device,
    add_force,
    add_image_size,
    add_output,
    add_runtime,
    add_thresholds,
    check_at_least_one,
    check_shares,
)
from yolov5_ema.detecting import outputs
from yolov5_ema.detecting.parts import (
    Manifest,
    Parts,
    begun_with,
    default_chunk,
    is_unfinished,
    opened,
    runtime_of_parts,
    sha256_of_paths,
)
from yolov5_ema.detecting.runtime_names import (
    AUTO,
    FLOAT32,
    HALF,
    INT8,
    ONNX,
    OPENVINO,
    RUNTIMES,
    TORCH,
    WORTH_EXPORTING,
)
from yolov5_ema.detecting.sources import Source, find_images
from yolov5_ema.errors import UserError
from yolov5_ema.files import check_outputs, replacement, sha256_of
from yolov5_ema.texts import agreeing, counted
from yolov5_ema.upstream.locate import Engine

if TYPE_CHECKING:
    import torch

    from yolov5_ema.detecting.protocol import Detector, LoadOptions, Thresholds
    from yolov5_ema.detecting.views import Slicing

_SHOWN = 10

_EPILOG = """\
Detections are those of 'yolov5-ema detect' for the same image and flags. Parquet has one row for each image: index,
image, height, width, xyxy, confidence, class_id, class_name, error. JSON is COCO's list of results, as written by
YOLOv5's --save-json. Parquet needs pyarrow, and --engine ray needs ray; pip install 'yolov5-ema[ray]' installs both.

Finished images are kept next to the output until all are done. After Ctrl-C, or if a worker or this process was
killed, run the same command with --resume to continue. Each image is in the output exactly once. Exit code: 0; 1 if
some images have a problem (their rows have an error text, and they are listed); 2 for a user's mistake.

examples:
  yolov5-ema predict --weights best.pt --source images -o found.parquet
  yolov5-ema predict --weights best.pt --source 'images/**/*.jpg' -o found.json --conf-thres 0.001
  yolov5-ema predict --weights best.pt --source big --slice 640 --overlap 0.2
  yolov5-ema predict --weights best.pt --source list.txt -o found.parquet --engine ray --workers 8
  yolov5-ema predict --weights best.pt --source list.txt -o found.parquet --engine ray --ray-address auto --resume

More: docs/predict.md
"""


class _Terminated(BaseException):
    """SIGTERM was received. Not an Exception, so that no ``except Exception`` catches it."""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Predict and write the file. Returns 1 if some images have a problem. Finished images are always kept."""
    _check(args)
    with _sigterm_raises():
        try:
            return _predict(args)
        except KeyboardInterrupt:
            return _stopped(args, 130)
        except _Terminated:
            return _stopped(args, 143)


def _stopped(args: argparse.Namespace, code: int) -> int:
    hint = "; run the same command with --resume to continue" if is_unfinished(args.output) else ""
    print(f"yolov5-ema: interrupted{hint}", file=sys.stderr)
    return code


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def raise_it(number: int, frame: Any) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, raise_it)
    # outside the main thread, no signal handler can be set
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what")
    what.add_argument(
        "--weights", type=Path, required=True, metavar="FILE", help="detector: a checkpoint (.pt) or an exported model"
    )
    what.add_argument(
        "--source",
        required=True,
        metavar="PLACE",
        help="a folder (including subfolders), a quoted glob, a .txt file with one path per line, or an image",
    )
    what.add_argument(
        "--data", metavar="YAML", help="data YAML with the names of the classes, for exported models that lack them"
    )
    out = parser.add_argument_group("the output")
    add_output(
        out,
        "file to write, .parquet or .json (default: predictions.parquet)",
        old=["--out"],
        default=Path("predictions.parquet"),
    )
    again = out.add_mutually_exclusive_group()
    add_force(again, "replace the output, even if it is unfinished")
    again.add_argument("--resume", action="store_true", help="continue an interrupted run, or start if there is none")
    how = parser.add_argument_group("how, as in detect")
    add_image_size(how, "height and width in pixels, or one number for both (default: 640)", sides=2)
    add_thresholds(how)
    how.add_argument("--classes", nargs="+", type=int, metavar="N", help="keep only these classes, counted from 0")
    how.add_argument(
        "--agnostic-nms", action="store_true", help="in NMS, boxes of different classes suppress each other"
    )
    how.add_argument("--augment", action="store_true", help="also detect in scaled and flipped copies of the image")
    how.add_argument(
        "--half", action="store_true", help="half precision (on GPUs, as in detect, and with --runtime openvino)"
    )
    add_slicing(how)
    add_runtime(how, AUTO)
    how.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="images of one shape that go through the model together. 1: each alone, with the very bits of detect; "
        "otherwise detections can differ by float noise (default: 16 on a GPU; on CPUs 1 in each of several threads)",
    )
    add_device(how, "cpu, or the number of a GPU (default: GPU 0 if there is one; with ray: all GPUs)")
    many = parser.add_argument_group("many processes")
    many.add_argument(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="local: one process; ray: many (default: local)",
    )
    many.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads of each process (default: torch's default; with ray: 1, or the CPUs divided by --workers). "
        "The number can change the last bits of results",
    )
    many.add_argument("--workers", type=int, metavar="N", help="ray processes (default: one per CPU, or one per GPU)")
    many.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="address of a Ray cluster, or auto (default: RAY_ADDRESS, else start Ray on this machine for this run)",
    )
    many.add_argument(
        "--gpus-per-worker",
        type=float,
        metavar="X",
        help="GPUs of each ray process (default: 1 if there are any)",
    )
    many.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="images that are saved together, and repeated together after an interruption "
        "(default: 16, more above 65,536 images)",
    )


# --- checking the arguments -------------------------------------------------------------------


def _check(args: argparse.Namespace) -> None:
    if len(args.imgsz) > 2 or min(args.imgsz) < 1:
        raise UserError(f"--imgsz takes one or two numbers of pixels, not {' '.join(map(str, args.imgsz))}")
    check_shares(args, "conf_thres", "iou_thres")
    check_at_least_one(args, "max_det", "batch", "workers", "threads", "chunk")
    slicing_of(args)
    if args.int8 and args.half:
        raise UserError("--int8 and --half cannot be used together; leave one out")
    if args.gpus_per_worker is not None and not 0 <= args.gpus_per_worker < 1024:
        raise UserError(f"--gpus-per-worker must be a number of GPUs, not {args.gpus_per_worker}")
    if args.engine == "ray":
        _check_ray(args)
        return
    for flag in ("workers", "ray_address", "gpus_per_worker"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag.replace('_', '-')} needs --engine ray")


def _check_ray(args: argparse.Namespace) -> None:
    if args.device.strip().lower() not in ("", "cpu"):
        raise UserError(
            f"--device {args.device}: with --engine ray, only 'cpu' is possible; Ray assigns the GPUs "
            "(choose with --gpus-per-worker or CUDA_VISIBLE_DEVICES)"
        )
    if args.device and args.gpus_per_worker:
        raise UserError("--device cpu and --gpus-per-worker cannot be used together; leave one out")


def _check_output(args: argparse.Namespace, images: Sequence[str]) -> None:
    outputs.check_format(args.output)
    begun = is_unfinished(args.output)
    check_outputs([args.output], force=args.force or begun)
    if begun and not (args.resume or args.force):
        raise UserError(f"{args.output} is unfinished: --resume continues it, --force starts from the beginning")
    if args.output.suffix.lower() == ".json":
        outputs.check_image_ids(images)


# --- the run ----------------------------------------------------------------------------------


@dataclass
class _Found:
    """Counts of what the output holds, updated while it is written."""

    detections: int = 0
    problems: int = 0
    shown: list[str] = field(default_factory=list)

    def counted(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            self.detections += len(row["confidence"])
            if row["error"] is not None:
                self.problems += 1
                if len(self.shown) < _SHOWN:
                    self.shown.append(f"{row['image']} {row['error']}")
            yield row


def _predict(args: argparse.Namespace) -> int:
    source = find_images(args.source)
    _check_output(args, source.images)
    if source.repeated:
        print(f"{args.source}: {counted(source.repeated, 'line')} left out, as repeated images", file=sys.stderr)
    if args.engine == "ray":
        from yolov5_ema.detecting import by_ray as ray_engine

        if args.weights.is_dir() or args.weights.suffix == ".xml":
            raise UserError("--engine ray sends one file to its workers; OpenVINO's model is several: use ONNX instead")
        ray_engine.check_installed(args.ray_address or os.environ.get(ray_engine.ADDRESS_ENV))
    with paused():
        import torch

        engine = start_engine_of([args.weights])
        if args.threads:
            torch.set_num_threads(args.threads)
        detector, thresholds = _detector(args, engine)
        slicing = _slicing(args)
    if args.resume and args.batch is None:
        args.batch = begun_with(args.output, "batch")
    runtime = _runtime(args, engine, detector, source, slicing)
    settings = {**_settings(args, engine, detector, thresholds, slicing), "runtime": runtime}
    manifest = _manifest(args, source, settings)
    with opened(args.output, manifest, resume=args.resume, force=args.force) as parts:
        if args.engine == "ray":
            # it was loaded only to check it
            del detector
            _carry_out(parts, _by_ray(args, source, engine, thresholds, slicing, parts))
        else:
            _carry_out(parts, _by_this_process(detector, thresholds, args.batch, slicing, source, parts))
        found = _Found()
        _join(args.output, parts, found, detector_names=settings["names"], form=args.output.suffix.lower())
        parts.remove()
    return _report(args, manifest, found)


def _load_options(args: argparse.Namespace, device: torch.device | str) -> LoadOptions:
    from yolov5_ema.detecting.protocol import LoadOptions

    names = None
    if args.data:
        from yolov5_ema.upstream.data_yaml import open_dataset

        names = open_dataset(args.data).names
    return LoadOptions(device, (args.imgsz[0], args.imgsz[-1]), args.half, names=names)


def _detector(args: argparse.Namespace, engine: Engine) -> tuple[Detector, Thresholds]:
    """Load the model in this process: to detect, or with ray to report mistakes before the workers start."""
    from yolov5_ema.detecting.loading import device_of, load_detector
    from yolov5_ema.detecting.protocol import Thresholds

    device = "cpu" if args.engine == "ray" else device_of(engine, args.device)
    detector = load_detector(args.weights, _load_options(args, device), engine=engine)
    classes = class_numbers(args.classes or (), detector.names, args.weights)
    return detector, Thresholds(
        conf_thres=args.conf_thres,
        iou_thres=args.iou_thres,
        max_det=args.max_det,
        classes=tuple(classes) or None,
        agnostic_nms=args.agnostic_nms,
        augment=args.augment,
    )


def _slicing(args: argparse.Namespace) -> Slicing | None:
    found = slicing_of(args)
    if found is None:
        return None
    from yolov5_ema.detecting.views import Slicing

    return Slicing(*found)


def _runtime(
    args: argparse.Namespace, engine: Engine, detector: Detector, source: Source, slicing: Slicing | None
) -> str:
    """Let the chosen runtime run the detector, and return its name."""
    from yolov5_ema.checkpoints.exported_models import form_of
    from yolov5_ema.data.image_files import read_image
    from yolov5_ema.detecting.choosing import set_runtime

    begun = runtime_of_parts(args.output) if args.resume else None
    asked = begun if begun in RUNTIMES and args.runtime == AUTO else args.runtime
    by_torch = "--engine ray" if args.engine == "ray" else "--augment" if args.augment else ""
    if by_torch and asked not in (AUTO, TORCH, form_of(args.weights)):
        is_begun = by_torch == "--engine ray" and asked == begun
        advice = f"go on with --engine local, as {args.output} was begun" if is_begun else "give --runtime torch"
        raise UserError(f"--runtime {asked} does not work with {by_torch}: {advice}")
    readable = (pixels for pixels, _ in map(read_image, source.files()) if pixels is not None)
    count = 0 if by_torch else _number_for_the_model(source, slicing)
    half = args.half and asked in (ONNX, OPENVINO) and detector.device.type == "cpu"
    return set_runtime(detector, engine, asked, count, readable, INT8 if args.int8 else HALF if half else FLOAT32)


def _number_for_the_model(source: Source, slicing: Slicing | None) -> int:
    """The number of images, with their windows; above `WORTH_EXPORTING`, windows make no difference."""
    files = source.files()
    if slicing is None or len(files) >= WORTH_EXPORTING:
        return len(files)
    from yolov5_ema.data.image_size import displayed_size

    count = len(files)
    for file in files:
        with suppress(Exception):  # Pillow raises many types on damaged files; they are reported later
            width, height = displayed_size(file)
            count += len(slicing.windows((height, width)))
    return count


def _settings(
    args: argparse.Namespace, engine: Engine, detector: Detector, thresholds: Thresholds, slicing: Slicing | None
) -> dict[str, Any]:
    return {
        "weights": args.weights.name,
        "weights_sha256": _sha256_of_model(args.weights),
        "imgsz": list(detector.imgsz),
        **asdict(thresholds),
        "half": args.half,
        **({"int8": True} if args.int8 else {}),
        **({"slice": slicing.size, "overlap": slicing.overlap} if slicing else {}),
        "batch": args.batch,
        "names": detector.names,
        name_of(engine): engine.version,
        "yolov5_ema": __version__,
    }


def _sha256_of_model(weights: Path) -> str:
    """The SHA-256 of a model; OpenVINO's is a folder of files."""
    if not weights.is_dir():
        return sha256_of(weights)
    digests = [f"{sha256_of(file)} {file.name}\n" for file in sorted(weights.iterdir()) if file.is_file()]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _manifest(args: argparse.Namespace, source: Source, settings: Mapping[str, Any]) -> Manifest:
    begun = begun_with(args.output, "chunk") if args.resume else None
    count = len(source.images)
    return Manifest(
        settings=settings,
        images=count,
        images_sha256=sha256_of_paths(source.images, source.files()),
        chunk=args.chunk or begun or default_chunk(count),
    )


Results = Iterator["tuple[int, list[dict[str, Any]]]"]


def _by_this_process(
    detector: Detector,
    thresholds: Thresholds,
    batch: int | None,
    slicing: Slicing | None,
    source: Source,
    parts: Parts,
) -> Results:
    from yolov5_ema.detecting.pipeline import Pipeline
    from yolov5_ema.detecting.rows import rows_of

    chunks = list(_chunks(source, parts))
    images = [image for _, some in chunks for image in some]
    with closing(rows_of(Pipeline(detector, batch, slicing), thresholds, images)) as rows:
        for chunk, some in chunks:
            yield chunk, list(islice(rows, len(some)))


def _by_ray(
    args: argparse.Namespace,
    source: Source,
    engine: Engine,
    thresholds: Thresholds,
    slicing: Slicing | None,
    parts: Parts,
) -> Results:
    from yolov5_ema.detecting import by_ray as ray_engine

    options = _load_options(args, "cpu")

    return ray_engine.predict_chunks(
        _chunks(source, parts),
        args.weights,
        ray_engine.Work(engine, args.weights.name, options, thresholds, args.batch, slicing, load_plugins),
        ray_engine.Pool(
            workers=args.workers,
            threads=args.threads,
            gpus_per_worker=args.gpus_per_worker,
            cpu_only=args.device.strip().lower() == "cpu",
            address=args.ray_address or os.environ.get(ray_engine.ADDRESS_ENV) or None,
        ),
    )


def _chunks(source: Source, parts: Parts) -> Iterator[tuple[int, list[tuple[int, str, str]]]]:
    """The chunks that are not done yet, each with its images."""
    files = source.files()
    for chunk in parts.missing():
        yield chunk, [(place, source.images[place], files[place]) for place in parts.manifest.span(chunk)]


def _carry_out(parts: Parts, results: Any) -> None:
    """Save the results of each chunk as soon as it is done; after an error, finished chunks are kept."""
    from tqdm import tqdm

    manifest = parts.manifest
    missing = parts.missing()
    todo = sum(len(manifest.span(chunk)) for chunk in missing)
    if todo < manifest.images:
        print(f"{manifest.images - todo:,} of {counted(manifest.images, 'image')} done already", file=sys.stderr)
    if not missing:
        return
    started_s = time.monotonic()
    bar = tqdm(total=manifest.images, initial=manifest.images - todo, unit=" images", disable=None, leave=False)
    with bar, closing(results):
        try:
            for chunk, rows in results:
                parts.write(chunk, rows)
                bar.update(len(rows))
        except UserError as error:
            if len(parts.missing()) == manifest.chunks:
                raise
            raise UserError(
                f"{error}\nFinished images are kept: run the same command with --resume to continue"
            ) from error
    seconds = time.monotonic() - started_s
    print(f"{counted(todo, 'image')} in {seconds:.1f} s: {todo / seconds:.2f} images/s", file=sys.stderr)


def _join(out: Path, parts: Parts, found: _Found, detector_names: Sequence[str], form: str) -> None:
    rows, settings = found.counted(parts.rows()), parts.manifest.settings
    try:
        with replacement(out, sync=False) as draft:
            outputs.write(draft, rows, form=form, names=detector_names, settings=settings)
    except UserError as error:
        raise UserError(
            f"{error}. The detections are kept: run the same command with --resume to write them"
        ) from error


def _report(args: argparse.Namespace, manifest: Manifest, found: _Found) -> int:
    print(f"{args.output}: {counted(manifest.images, 'image')}, {counted(found.detections, 'detection')}")
    if not found.problems:
        return 0
    verb = agreeing(found.problems, "has", "have")
    lines = [f"{found.problems:,} of {counted(manifest.images, 'image')} {verb} a problem:"]
    lines += [f"  {line}" for line in found.shown]
    if found.problems > len(found.shown):
        lines.append(f"  and {found.problems - len(found.shown):,} more (the column error lists all)")
    print("\n".join(lines), file=sys.stderr)
    return 1


COMMAND = Command(
    "predict",
    "detect in many images and write Parquet or COCO JSON; many processes with Ray",
    _run,
    _add_flags,
    description="Detect in many images, and write all detections to one file.",
    epilog=_EPILOG,
    closes_all=True,
)
