"""Predict chunks of images in many processes, on one machine or a cluster, with Ray Data.

A pool of actors, each with the detector in memory, processes chunks. The caller gets the results of each chunk as soon
as they are ready, and is the only process that writes. If the process of an actor is killed, Ray replaces the actor and
repeats its chunk. A chunk that kills its worker repeatedly is refused, with the name of the image.

This is the only file that imports ray.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yolov5_ema
from yolov5_ema.errors import UserError
from yolov5_ema.settings import WAITING, Settings
from yolov5_ema.texts import counted
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import names_ultralytics

if TYPE_CHECKING:
    from yolov5_ema.detecting.protocol import LoadOptions, Thresholds
    from yolov5_ema.detecting.views import Slicing

_LOGGER = logging.getLogger(__name__)

ADDRESS_ENV = "RAY_ADDRESS"
_AUTH_MODE_ENV = "RAY_AUTH_MODE"
_TOKENS = "ray._private.authentication"
"""Ray's module that makes and checks tokens; older releases do not have it."""
_ANSWER_WITHIN_S = 10.0
_ATTEMPTS = 3
"""How often a chunk may kill its worker; at the last attempt, the worker reports each image that it starts."""

Image = tuple[int, str, str]
"""Index in the list, path as the user gave it, absolute path."""


@dataclass(frozen=True)
class Work:
    """What every worker needs to know.

    Attributes:
        engine: the YOLO of the caller; a worker must find the same release.
        weights_name: the file name of the checkpoint, for messages.
        options: how they load the detector; each chooses its own device.
        thresholds: which detections are kept.
        batch: see `pipeline.Pipeline`.
        slicing: likewise.
        prepare: called in a worker before YOLOv5 is imported; imports the user's plugins.
    """

    engine: Engine
    weights_name: str
    options: LoadOptions
    thresholds: Thresholds
    batch: int | None
    slicing: Slicing | None
    prepare: Callable[[], None]


@dataclass(frozen=True)
class Pool:
    """The requested workers.

    Attributes:
        workers: the number of workers; None for as many as fit on the machines.
        threads: the threads and CPUs of each worker; None for 1, or for as many as leave room for ``workers``.
        gpus_per_worker: such as 1 or 0.5; None for 1 if there are GPUs and ``cpu_only`` is off.
        cpu_only: do not use GPUs.
        address: the address of a Ray cluster; None for a Ray on this machine that ends with the run.
    """

    workers: int | None = None
    threads: int | None = None
    gpus_per_worker: float | None = None
    cpu_only: bool = False
    address: str | None = None


def check_installed(address: str | None = None) -> None:
    """Check that Ray Data can be imported, and that a Ray started on this machine requires a token.

    Args:
        address: the address of an existing cluster; None if Ray is to be started on this machine. Ray listens on all
            addresses of a machine, and without a token anybody who reaches it can run code in it.

    Raises:
        UserError: Ray Data is missing, or does not support tokens; the message says what to install.
    """
    if not address:
        os.environ.setdefault(_AUTH_MODE_ENV, "token")  # read once, when Ray is imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ code writes to the terminal and ignores loggers; its own log files keep everything
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray.data
    except ImportError as error:
        raise UserError(f"--engine ray needs Ray Data ({error}): pip install 'yolov5-ema[ray]'") from error
    if not address:
        _check_keeps_strangers_out(ray.__version__)


def _check_keeps_strangers_out(version: str) -> None:
    if os.environ.get(_AUTH_MODE_ENV, "").lower() != "token":
        _LOGGER.warning(
            "WARNING: %s=%s: while Ray runs, whoever reaches this machine over the network can run code on it",
            _AUTH_MODE_ENV,
            os.environ.get(_AUTH_MODE_ENV),
        )
    elif not _knows_tokens():
        raise UserError(
            f"--engine ray: Ray {version} listens on all addresses of this machine and lets anybody run code on it. "
            "Ray 2.52 and later ask for a token: pip install -U 'ray[data]>=2.52'. If no stranger can reach this "
            f"machine, {_AUTH_MODE_ENV}=disabled runs this version without a token"
        )


def _knows_tokens() -> bool:
    return importlib.util.find_spec(_TOKENS) is not None


def predict_chunks(
    chunks: Iterable[tuple[int, Sequence[Image]]], weights: Path, work: Work, pool: Pool
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Predict in Ray workers; close the generator (`contextlib.closing`) to be sure that Ray has ended.

    Args:
        chunks: the number and the images of each chunk.
        weights: the checkpoint; its bytes are sent to the workers, which do not need the file.
        work: what the workers do.
        pool: how many workers there are, and where.

    Yields:
        The number of a chunk and the results of its images; the chunks are in no particular order.

    Raises:
        UserError: the cluster does not exist or is too small; a worker cannot do the work; an image kills its worker
            at every attempt.
    """
    import ray
    import ray.data

    worker: Any = _Worker  # the types of ray.data accept only functions
    items = [{"chunk": number, "images": json.dumps(images)} for number, images in chunks]
    with _connected(pool.address, work.engine):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        size, cpus, gpus = _shape(pool, nodes, len(items))
        # kept alive by this reference: a restarted worker reads it again
        content = ray.put(weights.read_bytes())
        ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Ledger).remote()
        results = ray.data.from_items(items, override_num_blocks=len(items)).map(
            worker,
            fn_constructor_args=(content, work, ledger, cpus, gpus > 0),
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
            num_cpus=cpus,
            num_gpus=gpus or None,
        )  # actors are restarted, and their chunks done again, without limit: Ray Data's own default
        yield from _rows(ray, results)


def _rows(ray: Any, results: Any) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    try:
        for batch in results.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            for row in batch.to_pylist():
                if row["refusal"]:
                    raise UserError(row["refusal"])
                found = json.loads(row["results"])
                _check_reachable(found)
                yield row["chunk"], found
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"a worker cannot be kept running: {_last_line(error)}. Each needs memory for torch and the model: "
            "try fewer --workers"
        ) from error


def _check_reachable(results: Iterable[Mapping[str, Any]]) -> None:
    """Refuse results of a node that cannot see files that exist on this one."""
    lacking = f"cannot be read: {os.strerror(errno.ENOENT)}"
    for row in results:
        if row["error"] == lacking and os.path.exists(row["image"]):
            raise UserError(
                f"{row['image']} is here, but not where a worker runs; every node must have the images under the "
                f"same path ({os.path.abspath(row['image'])})"
            )


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


# --- the connection ---------------------------------------------------------------------------


@contextmanager
def _connected(address: str | None, engine: Engine) -> Iterator[None]:
    """A connection to Ray during a ``with`` block: to the cluster at ``address``, or to one started for the block."""
    import ray

    if address and address.startswith("ray://"):
        raise UserError("--ray-address ray://…: run the command on a node of the cluster, with --ray-address auto")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.FATAL}
    if not address:
        options["include_dashboard"] = False
    handler = signal.getsignal(signal.SIGTERM)
    environment = worker_environment(engine)
    if address and address != "auto":
        _check_answers(address)
    try:
        with contextlib.nullcontext() if address == "auto" else _nothing_on_stderr():
            ray.init(address=address or "local", runtime_env={"env_vars": environment}, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if not address:
            raise UserError(f"Ray does not start here: {_last_line(error)}") from error
        hint = "" if address == "auto" else ". If it requires a token, set RAY_AUTH_MODE=token (not needed with auto)"
        raise UserError(f"cannot connect to Ray at {address}: {_last_line(error)}{hint}") from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has replaced it
        _silence_ray()
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse an address without a listener; Ray would retry for minutes, and then abort the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--ray-address must be HOST:PORT or auto, not {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"there is no Ray at {address}: {error}") from error


@contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """Suppress what Ray's C++ code prints while it starts; errors are raised as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _silence_ray() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    if hasattr(context, "max_consecutive_actor_init_deaths"):
        context.max_consecutive_actor_init_deaths = _ATTEMPTS  # killed while loading the model
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def worker_environment(engine: Engine) -> dict[str, str]:
    """The environment variables of the workers: the settings of this process, how threads wait, and our own path."""
    settings = replace(Settings.from_environment(), active=None)
    if engine.kind == "clone":
        settings = replace(settings, yolov5=str(engine.root))
    found = {**settings.as_environment(), **{name: os.environ[name] for name in WAITING if name in os.environ}}
    paths = []
    home = Path(yolov5_ema.__file__).resolve().parent.parent
    if home.name not in ("site-packages", "dist-packages"):
        paths.append(str(home))
    if settings.plugins:
        paths.append(os.getcwd())
    if paths:
        found["PYTHONPATH"] = os.pathsep.join([*paths, "${PYTHONPATH}"])
    return found


# --- how many workers -------------------------------------------------------------------------


def _shape(pool: Pool, nodes: Sequence[Mapping[str, float]], chunks: int) -> tuple[int, int, float]:
    """The number of workers that fit on the nodes, and the CPUs and GPUs of each.

    Raises:
        UserError: the nodes cannot hold the requested number; Ray would wait forever.
    """
    all_gpus = sum(node.get("GPU", 0) for node in nodes)
    gpus = pool.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if all_gpus and not pool.cpu_only else 0.0
    least = pool.threads or 1
    most = sum(_places(node, least, gpus) for node in nodes)
    if (pool.workers or 1) > most:
        all_cpus = sum(node.get("CPU", 0) for node in nodes)
        raise UserError(
            f"{f'--workers {pool.workers}' if pool.workers else '--engine ray'}: there is room for "
            f"{counted(most, 'worker')} with {counted(least, 'CPU')} and {gpus:g} GPUs each on "
            f"{counted(len(nodes), 'node')} with {all_cpus:g} CPUs and {all_gpus:g} GPUs in all"
        )
    size = min(pool.workers or most, chunks)
    if pool.threads or not pool.workers:
        return size, least, gpus
    widest = int(max(node.get("CPU", 0) for node in nodes))
    fitting = (c for c in range(widest, 1, -1) if sum(_places(node, c, gpus) for node in nodes) >= pool.workers)
    return size, next(fitting, 1), gpus


def _places(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    by_cpu = int(node.get("CPU", 0) // cpus)
    return min(by_cpu, int(node.get("GPU", 0) / gpus + 1e-6)) if gpus else by_cpu


# --- in the workers ---------------------------------------------------------------------------


class _Ledger:
    """An actor that counts how often each chunk was started, and the last image reported in a final attempt."""

    def __init__(self) -> None:
        self._starts: dict[int, int] = {}
        self._at: dict[int, str] = {}

    def begin(self, chunk: int) -> tuple[int, str | None]:
        self._starts[chunk] = self._starts.get(chunk, 0) + 1
        return self._starts[chunk], self._at.get(chunk)

    def reach(self, chunk: int, image: str) -> None:
        self._at[chunk] = image

    def end(self, chunk: int) -> None:
        self._starts.pop(chunk, None)
        self._at.pop(chunk, None)


class _Worker:
    """A detector in a Ray process; takes a row with a chunk and returns a row with its results."""

    def __init__(self, content: Any, work: Work, ledger: Any, threads: int, on_gpu: bool) -> None:
        self._ledger = ledger
        self._thresholds = work.thresholds
        self._refusal: str | None = None
        from yolov5_ema.allocator import keep_freed_memory
        from yolov5_ema.detecting.pipeline import Pipeline

        keep_freed_memory()
        try:
            self._pipeline = Pipeline(_detector(content, work, threads, on_gpu), work.batch, work.slicing)
        except UserError as error:  # reported with the first chunk: Ray would restart a worker that fails here
            self._refusal = str(error)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        import ray

        chunk = int(row["chunk"])
        images: list[Image] = json.loads(row["images"])
        attempt, suspect = ray.get(self._ledger.begin.remote(chunk))
        refusal = self._refusal
        if attempt > _ATTEMPTS:
            refusal = _killed_too_often(images, suspect)
        if refusal:
            return {"chunk": chunk, "results": "", "refusal": refusal}
        if attempt < _ATTEMPTS:
            results = self._rows(images)
        else:
            results = []
            for place in images:
                ray.get(self._ledger.reach.remote(chunk, place[1]))
                results += self._rows([place])
        ray.get(self._ledger.end.remote(chunk))
        return {"chunk": chunk, "results": json.dumps(results), "refusal": ""}

    def _rows(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        from yolov5_ema.detecting.rows import rows_of

        return list(rows_of(self._pipeline, self._thresholds, images))


def _killed_too_often(images: Sequence[Image], suspect: str | None) -> str:
    span = f"{images[0][1]} to {images[-1][1]}"
    at = f"; the last time at {suspect}" if suspect else ""
    return (
        f"the worker was killed {_ATTEMPTS} times while it processed the images {span}{at}. "
        "If memory ran out, try fewer --workers; otherwise leave that image out"
    )


def _detector(content: Any, work: Work, threads: int, on_gpu: bool) -> Any:
    import ray
    import torch

    torch.set_num_threads(threads)
    work.prepare()
    from yolov5_ema.detecting.loading import load_detector
    from yolov5_ema.engine import shim

    engine = shim.install(work.engine.kind if names_ultralytics(work.engine.kind) else None)
    if engine.version != work.engine.version:
        raise UserError(f"a worker has {engine}, but the command was given with {work.engine}")
    if on_gpu and not torch.cuda.is_available():
        raise UserError("a worker was given a GPU that its torch cannot use; --device cpu leaves GPUs alone")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, work.weights_name)
        file.write_bytes(ray.get(content))
        return load_detector(file, replace(work.options, device="cuda:0" if on_gpu else "cpu"), engine=engine)
