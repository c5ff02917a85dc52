"""Run a detector on image files: reading, scaling, the model and suppression overlap in threads.

On a GPU, images that have one shape for the model go through it in batches. On CPUs several copies of the model run at
the same time, with few threads each: threads that share one small image mostly wait for each other, above all when
another process has taken one of the cores.

With slices, an image and each of its windows are such images, and their detections are merged. Windows are cut out when
they are needed, so that an image of thousands of windows takes the memory of its pixels and of a few batches.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from yolov5_ema.data.detections import Detections
from yolov5_ema.data.image_files import read_image
from yolov5_ema.data.workers import all_cores
from yolov5_ema.detecting.protocol import Detector, Prepared, Thresholds, TooThinError, TorchDetector

if TYPE_CHECKING:
    from yolov5_ema.detecting.views import Ranked, Slicing, View

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
        slicing: how images are cut into windows, which the detector sees beside the whole image; None: they are not.
    """

    def __init__(self, detector: Detector, batch: int | None = None, slicing: Slicing | None = None) -> None:
        self._detector = detector
        self._slicing = slicing
        wanted = batch or detector.usual_batch
        self._batch = min(wanted, detector.most_at_once or wanted)
        self._is_exact = batch == 1
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
        ahead = readers + self._most
        try:
            # while a copy of the model works on images, a second thread can finish those before
            with _pool(readers) as reading, _pool(max(2, len(self._copies)), self._threads) as running:
                reads: Iterator[Future[_Slot]] = (reading.submit(self._read, file) for file in files)
                if self._slicing is not None:
                    # images are in memory until they are cut, so fewer are read ahead
                    reads = self._with_windows(_begun(reads, readers), reading)
                slots = (read.result() for read in _begun(reads, ahead))
                groups = _Groups(running, self._copies, thresholds, self._most)
                yield from self._found(groups.finished(slots), thresholds)
        finally:
            torch.set_num_threads(threads)  # what is set in one thread holds for threads that start later

    @property
    def _most(self) -> int:
        """The most images that go through a copy of the model together."""
        return max(self._batch, self._windows_at_once) if self._slicing else self._batch

    @property
    def _windows_at_once(self) -> int:
        """The number of windows of an image that go through the model together if they have the bits of detect."""
        if self._slicing is None or not self._is_exact or not isinstance(self._detector, TorchDetector):
            return self._batch
        return self._slicing.at_once

    def _read(self, file: str | Path) -> _Slot:
        pixels, problem = read_image(file)
        if pixels is None:
            return _Slot(None, problem)
        height, width = pixels.shape[:2]
        try:
            image = self._detector.prepare(pixels)
        except TooThinError as error:
            return _Slot((height, width), str(error))
        slot = _Slot((height, width), problem, image, self._batch)
        windows = self._slicing.windows((height, width)) if self._slicing else ()
        if windows:
            from yolov5_ema.detecting.views import Cut, View

            tall, wide = image.boxed.shape[:2]
            slot.view, slot.pixels = View(Cut((height, width), (tall, wide), windows)), pixels
        return slot

    def _with_windows(self, reads: Iterable[Future[_Slot]], reading: ThreadPoolExecutor) -> Iterator[Future[_Slot]]:
        """Each image, followed by its windows if it is cut."""
        for read in reads:
            yield read
            slot = read.result()
            if slot.view is None or slot.pixels is None:
                continue
            pixels, slot.pixels = slot.pixels, None
            for window in slot.view.cut.windows:
                yield reading.submit(self._cut_out, pixels, replace(slot.view, window=window), slot.problem)
            del pixels

    def _cut_out(self, pixels: np.ndarray, view: View, problem: str | None) -> _Slot:
        image = self._detector.prepare(view.pixels(pixels))
        return _Slot(view.cut.shape, problem, image, self._windows_at_once, view, with_cut=self._is_exact)

    def _found(self, slots: Iterable[_Slot], thresholds: Thresholds) -> Iterator[Found]:
        """The results of images; those of the views of an image are merged."""
        views: list[Ranked] = []
        for slot in slots:
            if slot.view is None:
                yield Found(slot.size, slot.result(), slot.problem)
                continue
            views.append(slot.result())
            if slot.view.is_last:
                yield Found(slot.size, self._detector.merged(views, slot.view.cut, thresholds), slot.problem)
                views = []


@dataclass(eq=False)
class _Slot:
    """The place of an image, or of a window of it, among the results.

    Attributes:
        size: height and width in pixels of the whole image; None if it could not be read.
        problem: what is wrong with the file.
        image: waits for the model.
        most: the number of images with which it goes through the model at most.
        view: which part it is of an image that is cut.
        pixels: of an image that is yet to be cut.
        group: the batch that it is in.
        index: its place there.
        with_cut: whether only views of the same image go through the model with it.
    """

    size: tuple[int, int] | None
    problem: str | None
    image: Prepared | None = None
    most: int = 1
    view: View | None = None
    pixels: np.ndarray | None = None
    group: Future[list[Any]] | None = None
    index: int = 0
    with_cut: bool = False

    @property
    def company(self) -> Hashable:
        """Images that go through the model together have the same."""
        shape = None if self.image is None else self.image.boxed.shape
        return shape, self.view is None, self.view.cut if self.view and self.with_cut else None

    def result(self) -> Any:
        """Wait for what the detector finds; None without an image. Raises what the model raised."""
        return self.group.result()[self.index] if self.group else None


class _Groups:
    """Images that wait for others of their shape, and the copies of a detector that take them."""

    def __init__(self, pool: ThreadPoolExecutor, copies: Sequence[Detector], thresholds: Thresholds, most: int) -> None:
        self._pool = pool
        self._idle: queue.SimpleQueue[Detector] = queue.SimpleQueue()
        for copy in copies:
            self._idle.put(copy)
        self._thresholds = thresholds
        self._most_in_memory = _BATCHES_AHEAD * most * len(copies)
        self._waiting: dict[Hashable, list[_Slot]] = {}

    def finished(self, slots: Iterator[_Slot]) -> Iterator[_Slot]:
        """The same images in order, each when the model has seen it or is about to."""
        places: deque[_Slot] = deque()
        for slot in slots:
            places.append(slot)
            self._add(slot)
            while places and (len(places) >= self._most_in_memory or _is_done(places[0])):
                self._start(places[0])
                yield places.popleft()
        for slot in places:
            self._start(slot)
        while places:
            yield places.popleft()

    def _add(self, slot: _Slot) -> None:
        if slot.image is not None:
            group = self._waiting.setdefault(slot.company, [])
            group.append(slot)
            if len(group) == slot.most:
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        """Let the model run on an image and the others of its company, unless it has begun."""
        if slot.image is None or slot.group is not None:
            return
        group = self._waiting.pop(slot.company)
        images = [one.image for one in group if one.image is not None]
        views = [one.view for one in group if one.view is not None]
        future = self._pool.submit(self._detected, images, views)
        for index, one in enumerate(group):
            one.group, one.index = future, index

    def _detected(self, images: Sequence[Prepared], views: Sequence[View]) -> list[Any]:
        try:
            return self._detected_together(images, views)
        except torch.OutOfMemoryError:  # of a GPU
            if len(images) == 1:
                raise
        torch.cuda.empty_cache()
        alone = zip_longest(images, views)
        return [found for image, view in alone for found in self._detected_together([image], [view] if view else [])]

    def _detected_together(self, images: Sequence[Prepared], views: Sequence[View]) -> list[Any]:
        detector = self._idle.get()
        try:
            output = detector.infer(images, self._thresholds)
        finally:
            self._idle.put(detector)
        if views:
            return detector.finish_views(output, images, views, self._thresholds)
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
