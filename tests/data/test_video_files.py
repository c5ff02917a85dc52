"""The frames of videos, and the messages for videos that end early."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolov5_ema.data.video_files import VideoFile, shown_seconds


def write_video(file: Path, frames: int, fourcc: str = "MJPG", rate: float = 5) -> Path:
    """A video of 64 x 48 pixels; frame n (from 0) has the brightness 10 * n."""
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*fourcc), rate, (64, 48))
    for index in range(frames):
        writer.write(np.full((48, 64, 3), 10 * index, np.uint8))
    writer.release()
    return file


def numbers_of(video: VideoFile) -> list[int]:
    """The numbers of the frames that it returns, recognised by their brightness."""
    numbers = []
    while video.has_frame():
        assert video.has_frame()  # asking twice loses no frame
        is_there, frame = video.read()
        assert is_there and frame.shape == (48, 64, 3)
        numbers.append(round(frame.mean() / 10))
    return numbers


@pytest.mark.parametrize(("suffix", "fourcc"), [("avi", "MJPG"), ("mp4", "mp4v"), ("mkv", "mp4v")])
def test_whole(tmp_path, suffix, fourcc):
    video = VideoFile(str(write_video(tmp_path / f"a.{suffix}", 12, fourcc)))
    assert numbers_of(video) == list(range(12)) and video.problem() is None
    assert video.read() == (False, None) and video.get(cv2.CAP_PROP_FRAME_WIDTH) == 64


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_stride_as_yolov5_asks(tmp_path, stride):
    video = VideoFile(str(write_video(tmp_path / "a.avi", 12)), stride)
    numbers = []
    while video.has_frame():
        assert all(video.grab() for _ in range(stride))
        numbers.append(round(video.retrieve()[1].mean() / 10))
    assert numbers == list(range(stride - 1, 12, stride)) and video.problem() is None


def test_fewer_frames_than_the_stride(tmp_path):
    video = VideoFile(str(write_video(tmp_path / "a.avi", 3)), 4)
    assert not video.has_frame() and video.problem() == "has 3 frames, fewer than --vid-stride 4"


@pytest.mark.parametrize(("suffix", "fourcc"), [("avi", "MJPG"), ("mkv", "mp4v")])
def test_ends_early(tmp_path, suffix, fourcc):
    file = write_video(tmp_path / f"a.{suffix}", 20, fourcc)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 3 // 4])
    video = VideoFile(str(file))
    numbers = numbers_of(video)
    assert 2 <= len(numbers) < 18
    assert numbers[:-1] == list(range(len(numbers) - 1))  # the last frame is incomplete
    assert video.problem() == f"ends at frame {len(numbers)} of 20"


def test_an_mp4_that_ends_early(tmp_path):
    """As left by a download that reserved its full size first: the rest is zeros."""
    file = write_video(tmp_path / "a.mp4", 20, "mp4v")
    content = bytearray(file.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    middle = (start + end) // 2
    content[middle:end] = bytes(end - middle)
    file.write_bytes(content)
    video = VideoFile(str(file))
    read = len(numbers_of(video))
    assert 1 <= read < 18 and video.problem() == f"ends at frame {read} of 20"


@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_a_few_frames_are_the_headers_mistake(tmp_path, missing):
    file = write_video(tmp_path / "a.avi", 20)
    content = bytearray(file.read_bytes())
    for place in (content.index(b"avih") + 8 + 16, content.index(b"strh") + 8 + 32):  # both state the number of frames
        assert struct.unpack_from("<I", content, place)[0] == 20
        struct.pack_into("<I", content, place, 20 + missing)
    file.write_bytes(content)
    video = VideoFile(str(file))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 20 + missing
    assert len(numbers_of(video)) == 20
    assert video.problem() == (f"ends at frame 20 of {20 + missing}" if missing > 2 else None)


def test_a_clip_cut_out_without_encoding_is_whole(tmp_path):
    """Its index lists frames that its edit list leaves out: the clip says that it plays one second of four."""
    file = write_video(tmp_path / "a.mp4", 20, "mp4v")
    assert shown_seconds(file) == pytest.approx(4)
    video = VideoFile(str(file))
    assert all(video.has_frame() and video.read()[0] for _ in range(5))
    video._advanced = lambda: None  # no further frame comes
    assert not video.has_frame() and video.problem() == "ends at frame 5 of 20"
    content = bytearray(file.read_bytes())
    place = content.index(b"mvhd") + 4
    scale, length = struct.unpack_from(">II", content, place + 12)
    assert length / scale == 4
    struct.pack_into(">I", content, place + 16, scale)
    file.write_bytes(content)
    assert shown_seconds(file) == 1 and video.problem() is None


def test_no_video(tmp_path):
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    problems = {
        "text.mp4": "is not a video that OpenCV opens, or it is damaged",
        "empty.mp4": "is empty",
        "folder.mp4": "is a folder",
        "missing.mp4": "cannot be read: No such file or directory",
    }
    for name, problem in problems.items():
        video = VideoFile(str(tmp_path / name))
        assert not video.has_frame() and video.problem() == problem
        assert video.read() == (False, None) and shown_seconds(tmp_path / name) is None
