"""``yolov5-ema predict``: detections in many images as a file, by one process or by many, resumable."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov5_ema import __version__
from yolov5_ema.cli.command import (
    Command,
    add_device,
    add_force,
    add_image_size,
    add_output,
    add_thresholds,
    check_at_least_one,
    check_shares,
)
from yolov5_ema.errors import UserError

if TYPE_CHECKING:
    from yolov5_ema.detecting.parts import Manifest, Parts
    from yolov5_ema.detecting.protocol import Detector, Thresholds
    from yolov5_ema.detecting.sources import Source
    from yolov5_ema.upstream.locate import Engine

_SHOWN = 10

_EPILOG = """\
Detections are those of 'yolov5-ema detect' for the same image and flags. Parquet has a row an image: index, image,
height, width, xyxy, confidence, class_id, class_name, error. JSON is COCO's list of results, as YOLOv5's --save-json
writes it. Needs: pyarrow for Parquet, ray for --engine ray; pip install 'yolov5-ema[ray]' brings both.

What is done is kept beside the output until all is: after Ctrl-C, or when a worker or this process was killed, the
same command with --resume goes on. Each image is in the output exactly once. Exit code: 0; 1 if there is something
wrong with an image (its row has an error text, and it is listed); 2 for a mistake in what was given.

examples:
  yolov5-ema predict --weights best.pt --source images -o found.parquet
  yolov5-ema predict --weights best.pt --source 'images/**/*.jpg' -o found.json --conf-thres 0.001
  yolov5-ema predict --weights best.pt --source list.txt -o found.parquet --engine ray --workers 8
  yolov5-ema predict --weights best.pt --source list.txt -o found.parquet --engine ray --ray-address auto --resume

More: docs/predict.md
"""


class _Terminated(BaseException):
    """SIGTERM; not an Exception, so that nothing on the way takes it for its own."""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Predict and write the file; 1 if something is wrong with an image.

    Raises:
        UserError: something that was given cannot be used; what was done before stays.
    """
    _check(args)
    # On a busy machine, threads that wait by spinning are many times slower; torch reads it when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _sigterm_raises():
        try:
            return _predict(args)
        except KeyboardInterrupt:
            return _stopped(args, 130)
        except _Terminated:
            return _stopped(args, 143)


def _stopped(args: argparse.Namespace, code: int) -> int:
    from yolov5_ema.detecting.parts import is_begun

    hint = "; the same command with --resume goes on" if is_begun(args.output) else ""
    print(f"yolov5-ema: interrupted{hint}", file=sys.stderr)
    return code


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def raise_it(number: int, frame: Any) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, raise_it)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what")
    what.add_argument("--weights", type=Path, required=True, metavar="FILE", help="the detector, a .pt")
    what.add_argument(
        "--source",
        required=True,
        metavar="PLACE",
        help="a folder (with all below it), a quoted glob, a .txt with a path a line, or an image",
    )
    out = parser.add_argument_group("the output")
    add_output(
        out,
        ".parquet or .json (default: predictions.parquet)",
        old=["--out"],
        default=Path("predictions.parquet"),
    )
    again = out.add_mutually_exclusive_group()
    add_force(again, "replace what is there, done or half-done")
    again.add_argument(
        "--resume", action="store_true", help="go on where it was interrupted; if nowhere, begin"
    )
    how = parser.add_argument_group("how, as in detect")
    add_image_size(how, "height and width in pixels, or one for both (default: 640)", sides=2)
    add_thresholds(how)
    how.add_argument("--classes", nargs="+", type=int, metavar="N", help="keep only these, counted from 0")
    how.add_argument(
        "--agnostic-nms", action="store_true", help="boxes of different classes suppress each other"
    )
    how.add_argument("--augment", action="store_true", help="look at scaled and flipped images too")
    how.add_argument("--half", action="store_true", help="half precision (on GPUs only, as in detect)")
    add_device(how, "cpu, or the number of a GPU (default: GPU 0 if there is one; with ray: all)")
    many = parser.add_argument_group("many processes")
    many.add_argument(
        "--engine", default="local", choices=("local", "ray"), help="default: local, one process"
    )
    many.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of each process (default: torch's own; with ray: 1, or CPUs by --workers). "
        "Other numbers differ in the last bits",
    )
    many.add_argument("--workers", type=int, metavar="N", help="with ray (default: one a CPU, or one a GPU)")
    many.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="of a cluster, or auto (default: RAY_ADDRESS; else a Ray on this machine, for this run)",
    )
    many.add_argument(
        "--gpus-per-worker", type=float, metavar="X", help="with ray (default: 1 if there are GPUs)"
    )
    many.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="images that are kept, and done again, together (default: 16, more above 65,536 images)",
    )


# --- looking at what was given ----------------------------------------------------------------


def _check(args: argparse.Namespace) -> None:
    if len(args.imgsz) > 2 or min(args.imgsz) < 1:
        raise UserError(f"--imgsz takes one or two numbers of pixels, not {' '.join(map(str, args.imgsz))}")
    check_shares(args, "conf_thres", "iou_thres")
    check_at_least_one(args, "max_det", "workers", "threads", "chunk")
    if args.gpus_per_worker is not None and not 0 <= args.gpus_per_worker < 1024:
        raise UserError(f"--gpus-per-worker must be a number of GPUs, not {args.gpus_per_worker}")
    if args.engine == "ray":
        _check_ray(args)
        return
    for flag in ("workers", "ray_address", "gpus_per_worker"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag.replace('_', '-')} goes with --engine ray")


def _check_ray(args: argparse.Namespace) -> None:
    if args.device.strip().lower() not in ("", "cpu"):
        raise UserError(
            f"--device {args.device}: with --engine ray it is 'cpu' or nothing; Ray hands out the GPUs "
            "(--gpus-per-worker, or CUDA_VISIBLE_DEVICES)"
        )
    if args.device and args.gpus_per_worker:
        raise UserError("--device cpu and --gpus-per-worker do not go together")


def _check_output(args: argparse.Namespace, images: Sequence[str]) -> None:
    from yolov5_ema.detecting import outputs as prediction_files
    from yolov5_ema.detecting.parts import is_begun
    from yolov5_ema.files import refuse_present

    prediction_files.check_format(args.output)
    if not args.output.parent.is_dir():
        raise UserError(f"-o {args.output}: there is no folder {args.output.parent}")
    if not is_begun(args.output):
        refuse_present([args.output], args.force)
    elif not (args.resume or args.force):
        raise UserError(
            f"{args.output} was begun before: --resume goes on with it, --force starts from the beginning"
        )
    if args.output.suffix.lower() == ".json":
        prediction_files.check_image_ids(images)


# --- the run ----------------------------------------------------------------------------------


@dataclass
class _Found:
    """What the output holds; counted as it is written."""

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
    from yolov5_ema.detecting import parts as prediction_parts
    from yolov5_ema.detecting import sources as prediction_sources

    source = prediction_sources.find_images(args.source)
    _check_output(args, source.images)
    if source.repeated:
        print(
            f"{args.source}: {source.repeated:,} lines name an image again and are left out", file=sys.stderr
        )
    if args.engine == "ray":
        from yolov5_ema.detecting import by_ray as ray_engine

        ray_engine.check_installed(args.ray_address or os.environ.get(ray_engine.ADDRESS_ENV))
    import torch

    from yolov5_ema.cli._yolov5 import load_plugins
    from yolov5_ema.engine import shim

    load_plugins()
    engine = shim.install()
    if args.threads:
        torch.set_num_threads(args.threads)
    detector, thresholds = _detector(args, engine)
    settings = _settings(args, engine, detector, thresholds)
    manifest = _manifest(args, source, settings)
    with prediction_parts.opened(args.output, manifest, resume=args.resume, force=args.force) as parts:
        if args.engine == "ray":
            del detector  # it was here to be checked
            _carry_out(parts, _by_ray(args, source, engine, thresholds, parts))
        else:
            _carry_out(parts, _by_this_process(detector, thresholds, source, parts))
        found = _Found()
        _join(args.output, parts, found, detector_names=settings["names"], form=args.output.suffix.lower())
        parts.remove()
    return _report(args, manifest, found)


def _model_options(args: argparse.Namespace) -> dict[str, Any]:
    return {"imgsz": (args.imgsz[0], args.imgsz[-1]), "half": args.half}


def _detector(args: argparse.Namespace, engine: Engine) -> tuple[Detector, Thresholds]:
    """The model in this process: to work with, or, with ray, to see what is wrong before workers start."""
    from yolov5_ema.class_names import class_numbers
    from yolov5_ema.detecting.loading import device_of, load_detector
    from yolov5_ema.detecting.protocol import Thresholds

    device = "cpu" if args.engine == "ray" else device_of(engine, args.device)
    detector = load_detector(args.weights, engine=engine, device=device, **_model_options(args))
    classes = class_numbers(args.classes or (), detector.names, args.weights)
    return detector, Thresholds(
        conf_thres=args.conf_thres,
        iou_thres=args.iou_thres,
        max_det=args.max_det,
        classes=tuple(classes) or None,
        agnostic_nms=args.agnostic_nms,
        augment=args.augment,
    )


def _settings(
    args: argparse.Namespace, engine: Engine, detector: Detector, thresholds: Thresholds
) -> dict[str, Any]:
    from yolov5_ema.files import sha256_of

    return {
        "weights": args.weights.name,
        "weights_sha256": sha256_of(args.weights),
        "imgsz": list(detector.imgsz),
        **asdict(thresholds),
        "half": args.half,
        "names": detector.names,
        "yolov5": engine.version,
        "yolov5_ema": __version__,
    }


def _manifest(args: argparse.Namespace, source: Source, settings: Mapping[str, Any]) -> Manifest:
    from yolov5_ema.detecting import parts as prediction_parts

    begun = prediction_parts.chunk_begun(args.output) if args.resume else None
    count = len(source.images)
    return prediction_parts.Manifest(
        settings=settings,
        images=count,
        images_sha256=prediction_parts.sha256_of_paths(source.images, source.files()),
        chunk=args.chunk or begun or prediction_parts.default_chunk(count),
    )


Results = Iterator["tuple[int, list[dict[str, Any]]]"]


def _by_this_process(detector: Detector, thresholds: Thresholds, source: Source, parts: Parts) -> Results:
    from yolov5_ema.detecting.rows import row_of

    for chunk, images in _chunks(source, parts):
        yield chunk, [row_of(detector, thresholds, *image) for image in images]


def _by_ray(
    args: argparse.Namespace, source: Source, engine: Engine, thresholds: Thresholds, parts: Parts
) -> Results:
    from yolov5_ema.cli._yolov5 import load_plugins
    from yolov5_ema.detecting import by_ray as ray_engine

    return ray_engine.predict_chunks(
        _chunks(source, parts),
        args.weights,
        ray_engine.Work(engine, args.weights.name, _model_options(args), thresholds, load_plugins),
        ray_engine.Pool(
            workers=args.workers,
            threads=args.threads,
            gpus_per_worker=args.gpus_per_worker,
            cpu_only=args.device.strip().lower() == "cpu",
            address=args.ray_address or os.environ.get(ray_engine.ADDRESS_ENV) or None,
        ),
    )


def _chunks(source: Source, parts: Parts) -> Iterator[tuple[int, list[tuple[int, str, str]]]]:
    """What is still to be done."""
    files = source.files()
    for chunk in parts.missing():
        yield chunk, [(place, source.images[place], files[place]) for place in parts.manifest.span(chunk)]


def _carry_out(parts: Parts, results: Any) -> None:
    """Keep each chunk's results as they come.

    Raises:
        UserError: as the engine, or for a part that cannot be written; what is done stays.
    """
    from tqdm import tqdm

    manifest = parts.manifest
    missing = parts.missing()
    todo = sum(len(manifest.span(chunk)) for chunk in missing)
    if todo < manifest.images:
        print(f"{manifest.images - todo:,} of {manifest.images:,} images are done already", file=sys.stderr)
    if not missing:
        return
    started_s = time.monotonic()
    bar = tqdm(
        total=manifest.images, initial=manifest.images - todo, unit=" images", disable=None, leave=False
    )
    with bar, closing(results):
        try:
            for chunk, rows in results:
                parts.write(chunk, rows)
                bar.update(len(rows))
        except UserError as error:
            if len(parts.missing()) == manifest.chunks:
                raise
            raise UserError(
                f"{error}\nWhat is done is kept: the same command with --resume goes on"
            ) from error
    seconds = time.monotonic() - started_s
    print(f"{todo:,} images in {seconds:.1f} s: {todo / seconds:.2f} images/s", file=sys.stderr)


def _join(out: Path, parts: Parts, found: _Found, detector_names: Sequence[str], form: str) -> None:
    from yolov5_ema.detecting import outputs as prediction_files
    from yolov5_ema.files import replacement

    rows, settings = found.counted(parts.rows()), parts.manifest.settings
    try:
        with replacement(out, sync=False) as draft:
            prediction_files.write(draft, rows, form=form, names=detector_names, settings=settings)
    except UserError as error:
        raise UserError(
            f"{error}. The detections are kept: the same command with --resume writes them"
        ) from error


def _report(args: argparse.Namespace, manifest: Manifest, found: _Found) -> int:
    print(f"{args.output}: {manifest.images:,} images, {found.detections:,} detections")
    if not found.problems:
        return 0
    lines = [f"something is wrong with {found.problems:,} of {manifest.images:,} images:"]
    lines += [f"  {line}" for line in found.shown]
    if found.problems > len(found.shown):
        lines.append(f"  and {found.problems - len(found.shown):,} more (the column error has all)")
    print("\n".join(lines), file=sys.stderr)
    return 1


COMMAND = Command(
    "predict",
    "detections in many images as Parquet or COCO JSON; many processes with Ray",
    _run,
    _add_flags,
    description="Detect in many images, and write all detections to one file.",
    epilog=_EPILOG,
)
