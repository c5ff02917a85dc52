"""Label caches are read as NumPy's own unpickling reads them, and everything else is refused."""

from __future__ import annotations

import io
import os
import pickle
import random

import numpy as np
import pytest

from yolov5_ema.data.label_caches import UnusableCache, read_label_cache


def _labels(objects: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.integers(0, 80, objects), rng.random((objects, 4))]).astype(np.float32)


def _content(**changes: object) -> dict[str, object]:
    """A cache as YOLOv5 writes it: an image with segments, one with many objects, one without objects."""
    content: dict[str, object] = {
        "/set/images/a.jpg": [_labels(2), (640, 480), [_labels(3)[:, 1:3], _labels(20, seed=1)[:, 1:3]]],
        "/set/images/ü b.jpg": [_labels(300), (64, 70_000), []],
        "/set/images/c.jpg": [np.zeros((0, 5), np.float32), (1, 1), []],
    }
    content.update(hash="a" * 32, results=(2, 0, 1, 0, 3), msgs=["WARNING: a.jpg"], version=0.6)
    content.update(changes)
    return content


def _file(tmp_path, content: object, protocol: int = 4):
    file = tmp_path / "val.cache"
    array = np.empty((), dtype=object)
    array[()] = content
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    file.write_bytes(header.getvalue() + pickle.dumps(array, protocol=protocol))
    return file


def _equal(found: object, expected: object) -> bool:
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected) and found.flags.writeable
    if isinstance(expected, (list, tuple)):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(_equal, found, expected))
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("protocol", [3, 4])
def test_it_is_what_numpy_saved(protocol, tmp_path):
    expected = _content()
    found = read_label_cache(_file(tmp_path, expected, protocol))
    assert list(found) == list(expected)
    assert all(_equal(found[key], expected[key]) for key in expected)


def test_np_save_is_read(tmp_path):
    with (tmp_path / "a.cache").open("wb") as stream:
        np.save(stream, _content())
    assert _equal(read_label_cache(tmp_path / "a.cache")["/set/images/a.jpg"][0], _labels(2))


class _Call:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def _nested(depth: int) -> bytes:
    """A dict with a key that is a tuple nested so deep that Python's hash of it crashes the interpreter."""
    return b"\x80\x04}" + b")" + b"\x85" * depth + b"K\x01s."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_content(msgs=[_Call(os.mkdir, "canary")]), "posix.mkdir"),
        (_content(extra=_Call(np.zeros, 10**12)), "numpy.zeros"),
        (_content(**{"d.jpg": [_labels(1), (1, 1), [np.array([None, "a"], object)]]}), "array of objects"),
        (_content(**{"d.jpg": [_labels(1), (1, 1)]}), "d.jpg"),
        (_content(**{"d.jpg": [_labels(1), (0, 1), []]}), "d.jpg"),
        (_content(**{"d.jpg": [_labels(1) + 1, (1, 1), []]}), "d.jpg"),
        (_content(**{"d.jpg": [_labels(1) * np.nan, (1, 1), []]}), "d.jpg"),
        (_content(**{"d.jpg": [np.array([[1e9, 0, 0, 1, 1]], np.float32), (1, 1), []]}), "d.jpg"),
        (_content(**{"d.jpg": [_labels(1)[:, :3], (1, 1), []]}), "d.jpg"),
        (_content(**{"d.jpg": [_labels(1), (1, 1), [np.full((3, 2), 9e9, np.float32)]]}), "d.jpg"),
        (_content(**{"d.jpg": [_labels(1), (1, 1), [np.full((3, 2), np.nan, np.float32)]]}), "d.jpg"),
        (_content(**{"d.jpg": [_labels(1), (2**63, 1), []]}), "d.jpg"),
        (_content(results=(4, 0, 0, 0, 2**200)), "results"),
        (_content(msgs=[None]), "msgs"),
        (_content(results=("a",) * 5), "results"),
        (_content(hash=1), "hash"),
        ({("a",): 1}, "key that is not a string"),
        ([1], "does not hold a dict"),
    ],
    ids=range(18),
)
def test_what_no_label_cache_holds_is_refused(content, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnusableCache, match=reason.replace(".", r"\.")):
        read_label_cache(_file(tmp_path, content))
    assert not (tmp_path / "canary").exists()


def test_a_key_that_would_end_the_interpreter(tmp_path):
    file = _file(tmp_path, {})
    start = file.read_bytes().index(b"\n") + 1
    file.write_bytes(file.read_bytes()[:start] + _nested(200_000))
    with pytest.raises(UnusableCache, match="key that is not a string"):
        read_label_cache(file)


@pytest.mark.parametrize("content", [b"", b"torn", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\xff\xff{"])
def test_a_file_of_something_else(content, tmp_path):
    (tmp_path / "a.cache").write_bytes(content)
    with pytest.raises(UnusableCache):
        read_label_cache(tmp_path / "a.cache")


def test_whatever_is_changed_in_a_cache_it_is_read_or_refused(tmp_path):
    file = _file(tmp_path, _content(**{"/set/images/ü b.jpg": [_labels(2), (64, 64), []]}))
    whole, rng = file.read_bytes(), random.Random(0)
    refused = 0
    for case in range(1000):
        changed = bytearray(whole[: rng.randrange(len(whole))] if case % 3 == 0 else whole)
        for _ in range(rng.randrange(1, 4)):
            if changed:
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        file.write_bytes(changed)
        try:
            assert isinstance(read_label_cache(file), dict)
        except UnusableCache:
            refused += 1
    assert 300 < refused < 1000  # a changed byte in a box cannot be noticed
