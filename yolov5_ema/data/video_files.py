"""Frames of video files, one read ahead, and whether a video goes on for as long as its header says."""

from __future__ import annotations

import math
import os
import struct
from typing import Any

import cv2
import numpy as np

from yolov5_ema.data.image_files import problem_before_reading
from yolov5_ema.errors import UserError
from yolov5_ema.files import open_regular

_FEW_FRAMES = 2
_SHARE = 0.05  # of the frames or seconds that a header promises; many containers estimate them


class VideoFile:
    """A ``cv2.VideoCapture`` that has read the next frame before it is asked for it.

    ``if video.has_frame(): video.read()`` gives every frame, or every ``stride``-th; so does ``stride`` times ``grab``
    and then ``retrieve``, as YOLOv5 has it. Then `problem` says whether all came. What is not here, the capture has.
    """

    def __init__(self, path: str, stride: int = 1) -> None:
        self._path = path
        self._stride = stride
        self._problem = problem_before_reading(path)
        self._capture = cv2.VideoCapture() if self._problem else cv2.VideoCapture(path)
        self._promised, self._rate = self._header()
        self._grabbed = 0
        self._given = 0
        self._reached = 0.0  # seconds
        self._next: np.ndarray | None = None

    def _header(self) -> tuple[int, float]:
        """Number of frames and frames a second; 0 where they are not known."""
        if not self._capture.isOpened():
            return 0, 0.0
        values = (self._capture.get(key) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
        count, rate = (value if math.isfinite(value) and value > 0 else 0.0 for value in values)
        return int(count), rate

    def has_frame(self) -> bool:
        """Whether there is a frame to give, after as many as are to be passed over."""
        if self._next is None:
            self._next = self._advanced()
        return self._next is not None

    def _advanced(self) -> np.ndarray | None:
        for _ in range(self._stride):
            if not self._capture.grab():
                return None
            self._grabbed += 1
            self._reached = max(self._reached, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        was_decoded, frame = self._capture.retrieve()
        return frame if was_decoded else None

    def grab(self) -> bool:
        """As of ``cv2.VideoCapture``; the frames to be passed over, `has_frame` has passed over."""
        return self._next is not None

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        """As of ``cv2.VideoCapture``: whether there is a frame, and it, (H, W, 3) in BGR."""
        frame, self._next = self._next, None
        self._given += frame is not None
        return frame is not None, frame

    read = retrieve

    def problem(self) -> str | None:
        """What was wrong with the video, to be shown to people, once it has no frame left; None if nothing was."""
        if self._problem is not None:
            return self._problem
        if not self._capture.isOpened():
            return "is no video that OpenCV opens, or a damaged one"
        if not self._given and (not self._grabbed or self._grabbed >= self._stride):
            return "has no frame that can be read"
        if self._ends_early():
            return f"ends at frame {self._grabbed} of {self._promised}"
        if not self._given:
            return f"has {self._grabbed} frames, fewer than --vid-stride {self._stride}"
        return None

    def _ends_early(self) -> bool:
        if self._promised - self._grabbed <= max(_FEW_FRAMES, _SHARE * self._promised):
            return False
        if not self._rate:
            return True
        seconds = self._promised / self._rate  # fewer frames fill them where the rate varies
        shown = shown_seconds(self._path)  # fewer than there are where a phone has cut a clip out
        return self._reached + 1 / self._rate < (1 - _SHARE) * (min(seconds, shown) if shown else seconds)

    def release(self) -> None:
        """Close the file; `problem` is to be asked before."""
        self._capture.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._capture, name)


def shown_seconds(path: str | os.PathLike[str]) -> float | None:
    """How long an MP4 or QuickTime file says that it plays, after its edit list; None for others."""
    try:
        with open_regular(path) as stream:
            end = os.fstat(stream.fileno()).st_size
            inside = _box(stream, b"moov", 0, end)
            header = inside and _box(stream, b"mvhd", *inside)
            if not header:
                return None
            stream.seek(header[0])
            content = stream.read(32)
            scale, length = struct.unpack(*((">20xIQ", content) if content[0] else (">12xII12x", content)))
    except (OSError, UserError, struct.error, IndexError):
        return None
    return length / scale if scale and length else None


def _box(stream: Any, kind: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Where the content of the first box of a kind starts and ends, between two places of an ISO media file."""
    while start + 8 <= end:
        stream.seek(start)
        size, name = struct.unpack(">I4s", stream.read(8))
        head = 8
        if size == 1:  # its size did not fit
            (size,), head = struct.unpack(">Q", stream.read(8)), 16
        size = size or end - start
        if size < head:
            return None
        if name == kind:
            return start + head, min(start + size, end)
        start += size
    return None
