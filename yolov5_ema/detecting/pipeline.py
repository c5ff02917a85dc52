"""Run a detector on image files: reading, scaling, the model and suppression overlap in threads.

On a GPU, images that have one shape for the model go through it in batches. On CPUs several copies of the model run at
the same time, with few threads each: threads that share one small image mostly wait for each other, above all when
another process has taken one of the cores.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from yolov5_ema.data.detections import Detections
from yolov5_ema.data.image_files import read_image
from yolov5_ema.data.workers import all_cores
from yolov5_ema.detecting.protocol import Detector, Prepared, Thresholds, TooThinError

_MOST_COPIES = 4
_MOST_READERS = 8
_BATCHES_AHEAD = 3
"""How many batches for each copy of the model are in memory at most, from the first step to the last."""


class Found(NamedTuple):
    """The result of one image file.

    Attributes:
        size: height and width in pixels; None if it could not be read.
        detections: what was found in it; None if it could not be read, or is too narrow for the model.
        problem: what is wrong with the file, as a message; None if nothing is.
    """

    size: tuple[int, int] | None
    detections: Detections | None
    problem: str | None


class Pipeline:
    """A detector, and how many images go through it at once.

    Args:
        detector: the detector.
        batch: the largest number of images that go through the model together. 1: the results have the very bits of
            `Detector.detect`. None: as is fast on the device; results differ from these by float noise.
    """

    def __init__(self, detector: Detector, batch: int | None = None) -> None:
        self._detector = detector
        wanted = batch or detector.usual_batch
        self._batch = min(wanted, detector.most_at_once or wanted)
        threads = torch.get_num_threads()
        detector.ready()
        if batch == 1:
            self._copies: Sequence[Detector] = [detector]
            self._threads = torch.get_num_threads()  # some YOLOs choose it themselves when they load a model
        else:
            torch.set_num_threads(threads)
            self._copies = detector.copies(min(threads, _MOST_COPIES))
            self._threads = max(1, threads // len(self._copies))

    def found_in(self, files: Iterable[str | Path], thresholds: Thresholds) -> Generator[Found, None, None]:
        """Detect objects in image files.

        Close the generator (`contextlib.closing`) to be sure that its threads have ended.

        Args:
            files: the images.
            thresholds: which detections are kept.

        Yields:
            The result of each file, in order. A file that cannot be used has a problem, and raises nothing.
        """
        threads = torch.get_num_threads()
        readers = min(_MOST_READERS, -(-all_cores() // 2))
        try:
            # while a copy of the model works on images, a second thread can finish those before
            with _pool(readers) as reading, _pool(max(2, len(self._copies)), self._threads) as running:
                reads = (reading.submit(self._read, file) for file in files)
                slots = (read.result() for read in _begun(reads, readers + self._batch))
                yield from _Groups(running, self._copies, thresholds, self._batch).results(slots)
        finally:
            torch.set_num_threads(threads)  # what is set in one thread holds for threads that start later

    def _read(self, file: str | Path) -> _Slot:
        pixels, problem = read_image(file)
        if pixels is None:
            return _Slot(None, problem)
        height, width = pixels.shape[:2]
        try:
            return _Slot((height, width), problem, self._detector.prepare(pixels))
        except TooThinError as error:
            return _Slot((height, width), str(error))


@dataclass(eq=False)
class _Slot:
    """The place of an image among the results; ``image`` waits for the model, ``group`` is the batch that it is in."""

    size: tuple[int, int] | None
    problem: str | None
    image: Prepared | None = None
    group: Future[list[Detections]] | None = None
    index: int = 0

    def found(self) -> Found:
        """Wait for the result; raises what the model raised."""
        detections = self.group.result()[self.index] if self.group else None
        return Found(self.size, detections, self.problem)


class _Groups:
    """Images that wait for others of their shape, and the copies of a detector that take them."""

    def __init__(self, pool: ThreadPoolExecutor, copies: Sequence[Detector], thresholds: Thresholds, most: int) -> None:
        self._pool = pool
        self._idle: queue.SimpleQueue[Detector] = queue.SimpleQueue()
        for copy in copies:
            self._idle.put(copy)
        self._thresholds = thresholds
        self._most = most
        self._window = _BATCHES_AHEAD * most * len(copies)
        self._waiting: dict[tuple[int, ...], list[_Slot]] = {}

    def results(self, slots: Iterator[_Slot]) -> Iterator[Found]:
        """The results of images in order."""
        places: deque[_Slot] = deque()
        for slot in slots:
            places.append(slot)
            self._add(slot)
            while places and (len(places) >= self._window or _is_done(places[0])):
                self._start(places[0])
                yield places.popleft().found()
        for slot in places:
            self._start(slot)
        while places:
            yield places.popleft().found()

    def _add(self, slot: _Slot) -> None:
        if slot.image is not None:
            group = self._waiting.setdefault(slot.image.boxed.shape, [])
            group.append(slot)
            if len(group) == self._most:
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        """Let the model run on an image and the others of its shape, unless it has begun."""
        if slot.image is None or slot.group is not None:
            return
        group = self._waiting.pop(slot.image.boxed.shape)
        images = [one.image for one in group if one.image is not None]
        future = self._pool.submit(self._detected, images)
        for index, one in enumerate(group):
            one.group, one.index = future, index

    def _detected(self, images: Sequence[Prepared]) -> list[Detections]:
        try:
            return self._detected_together(images)
        except torch.OutOfMemoryError:  # of a GPU
            if len(images) == 1:
                raise
        torch.cuda.empty_cache()
        return [found for image in images for found in self._detected_together([image])]

    def _detected_together(self, images: Sequence[Prepared]) -> list[Detections]:
        detector = self._idle.get()
        try:
            output = detector.infer(images, self._thresholds)
        finally:
            self._idle.put(detector)
        return detector.finish(output, images, self._thresholds)


def _is_done(slot: _Slot) -> bool:
    return slot.image is None or (slot.group is not None and slot.group.done())


def _begun(reads: Iterator[Future[_Slot]], ahead: int) -> Iterator[Future[_Slot]]:
    """The same futures in order, each taken ``ahead`` places before it is needed."""
    begun = deque(islice(reads, ahead))
    while begun:
        read = begun.popleft()
        begun.extend(islice(reads, 1))
        yield read


@contextmanager
def _pool(count: int, threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Threads, in each of which torch uses ``threads`` threads; when the block ends, they end after what they do."""
    pool = ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, threads) if threads else None)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
