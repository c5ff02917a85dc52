"""Read frames of video files one frame ahead, and check whether a video is as long as its header says."""

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
_SHARE = 0.05  # of the frames or seconds that a header gives; many containers estimate them


class VideoFile:
    """A ``cv2.VideoCapture`` that reads one frame ahead.

    ``if video.has_frame(): video.read()`` gives every frame, or every ``stride``-th frame. So do ``stride`` calls of
    ``grab`` followed by ``retrieve``, as in YOLOv5. At the end, `problem` says whether frames were missing. All other
    attributes are those of the capture.
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
        """The number of frames and the frames per second; 0 if unknown."""
        if not self._capture.isOpened():
            return 0, 0.0
        values = (self._capture.get(key) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
        count, rate = (value if math.isfinite(value) and value > 0 else 0.0 for value in values)
        return int(count), rate

    def has_frame(self) -> bool:
        """Skip frames as ``stride`` says, and say whether there is a frame after them."""
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
        """As ``grab`` of ``cv2.VideoCapture``; `has_frame` has already skipped frames."""
        return self._next is not None

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        """As ``retrieve`` of ``cv2.VideoCapture``: whether there is a frame, and the frame, (H, W, 3) in BGR."""
        frame, self._next = self._next, None
        self._given += frame is not None
        return frame is not None, frame

    read = retrieve

    def problem(self) -> str | None:
        """What is wrong with the video, as a message, once all frames are read; None if nothing is."""
        if self._problem is not None:
            return self._problem
        if not self._capture.isOpened():
            return "is not a video that OpenCV opens, or it is damaged"
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
        seconds = self._promised / self._rate  # with a variable frame rate, fewer frames last as long
        shown = shown_seconds(self._path)  # shorter than the stream if a phone has trimmed the clip
        return self._reached + 1 / self._rate < (1 - _SHARE) * (min(seconds, shown) if shown else seconds)

    def release(self) -> None:
        """Close the file; call `problem` before."""
        self._capture.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._capture, name)


def shown_seconds(path: str | os.PathLike[str]) -> float | None:
    """The playing time of an MP4 or QuickTime file in seconds, by its edit list; None for other files."""
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
    """The start and end of the content of the first box of a kind, between two positions of an ISO media file."""
    while start + 8 <= end:
        stream.seek(start)
        size, name = struct.unpack(">I4s", stream.read(8))
        head = 8
        if size == 1:  # a 64-bit size follows
            (size,), head = struct.unpack(">Q", stream.read(8)), 16
        size = size or end - start
        if size < head:
            return None
        if name == kind:
            return start + head, min(start + size, end)
        start += size
    return None
