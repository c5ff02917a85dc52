"""Windows of large images, and data sets that are cut into windows."""

from __future__ import annotations

import itertools
import os
import shutil

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from yolov5_ema.data import slicing
from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.data.slicing import SlicePlan, clip_labels, slice_split, windows
from yolov5_ema.errors import UserError


def write_set(folder, images, **extra):
    """A data set with one split, made from {name: (pixels, label text)}; images are BGR arrays."""
    for name, (pixels, text) in images.items():
        image = folder / "images" / "train" / name
        labels = (folder / "labels" / "train" / name).with_suffix(".txt")
        for path in (image, labels):
            path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), pixels)
        if text is not None:
            labels.write_text(text)
    file = folder / "set.yaml"
    content = {"path": str(folder), "train": "images/train", "nc": 2, "names": ["a", "b"], **extra}
    file.write_text(yaml.safe_dump(content))
    return load_dataset(file)


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.*")}


def test_windows_of_a_plain_case():
    assert windows(1000, 640, 640, 0.2) == [(0, 0, 640, 640), (360, 0, 1000, 640)]
    assert windows(640, 640, 640, 0.2) == [(0, 0, 640, 640)]
    assert windows(300, 100, 640, 0.2) == [(0, 0, 300, 100)]
    assert windows(100, 90, 50, 0) == [(0, 0, 50, 50), (50, 0, 100, 50), (0, 40, 50, 90), (50, 40, 100, 90)]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(32, 400), st.floats(0, 0.9))
def test_windows_are_those_of_sahi(width, height, size, overlap):
    theirs = pytest.importorskip("sahi.slicing").get_slice_bboxes
    if width <= size and height <= size:
        assert windows(width, height, size, overlap) == [(0, 0, width, height)]
    else:
        expected = theirs(height, width, size, size, False, overlap, overlap)
        assert windows(width, height, size, overlap) == [tuple(window) for window in expected]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(32, 400), st.floats(0, 0.9))
def test_windows_cover_the_image_and_overlap_as_asked(width, height, size, overlap):
    found = windows(width, height, size, overlap)
    seen = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in found:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (right - left, bottom - top) == (min(size, width), min(size, height))
        seen[top:bottom, left:right] = True
    assert seen.all() and len(set(found)) == len(found)
    starts = sorted({left for left, *_ in found})
    assert all(b - a <= size - int(overlap * size) for a, b in itertools.pairwise(starts))


def test_labels_are_clipped_to_their_window():
    labels = np.array(
        [
            [0, 10, 10, 30, 30],  # inside
            [1, 90, 40, 110, 60],  # half of it
            [1, 96, 10, 136, 20],  # a tenth: 4 of 40
            [0, 97, 10, 137, 20],  # less
            [0, 100, 0, 120, 20],  # it only touches the window
        ],
        dtype=float,
    )
    kept, slivers = clip_labels(labels, (0, 0, 100, 80), 0.1)
    expected = [[0, 0.2, 0.25, 0.2, 0.25], [1, 0.95, 0.625, 0.1, 0.25], [1, 0.98, 0.1875, 0.04, 0.125]]
    np.testing.assert_allclose(kept, expected, atol=1e-12)
    assert slivers == 1
    moved, _ = clip_labels(labels[1:2], (80, 30, 180, 110), 0.1)
    np.testing.assert_allclose(moved, [[1, 0.2, 0.25, 0.2, 0.25]], atol=1e-12)


def test_a_set_is_cut_and_pixels_stay(tmp_path):
    pixels = noise(160, 96)
    dataset = write_set(tmp_path / "set", {"x.png": (pixels, "1 0.5 0.5 0.1 0.25\n")})
    plan = SlicePlan(size=96, overlap=0.25)
    report = slice_split(dataset, "train", tmp_path / "out", plan)
    assert (report.images, report.written, report.background, report.objects) == (1, 2, 0, 2)
    for left, right, center in ((0, 96, 80 / 96), (64, 160, 16 / 96)):
        stem = f"x_{left}_0_{right}_96"
        found = cv2.imread(str(tmp_path / "out" / "images/train" / f"{stem}.png"))
        np.testing.assert_array_equal(found, pixels[:, left:right])
        row = np.loadtxt(tmp_path / "out" / "labels/train" / f"{stem}.txt")
        np.testing.assert_allclose(row, [1, center, 0.5, 16 / 96, 0.25], atol=1e-6)
    yaml_file = slicing.write_yaml(dataset, ["train"], tmp_path / "out")
    again = load_dataset(yaml_file)
    assert len(again.images("train")) == 2 and again.names == ("a", "b")
    assert again.content["path"] == str(tmp_path / "out")


def test_jpegs_stay_jpegs_of_high_quality(tmp_path):
    smooth = cv2.GaussianBlur(noise(160, 96), (0, 0), 4)
    dataset = write_set(tmp_path / "set", {"x.jpg": (smooth, "0 0.3 0.5 0.1 0.2\n")})
    slice_split(dataset, "train", tmp_path / "out", SlicePlan(size=96, keep_empty=1))
    source = cv2.imread(str(tmp_path / "set/images/train/x.jpg"))
    cut = cv2.imread(str(tmp_path / "out/images/train/x_64_0_160_96.jpg"))
    difference = np.abs(cut.astype(int) - source[:, 64:])
    assert 0 < difference.mean() < 1.5


def test_small_images_are_linked_whole(tmp_path):
    dataset = write_set(tmp_path / "set", {"s.png": (noise(64, 40), "0 0.5 0.5 0.5 0.5\n"), "e.png": (noise(9, 9), "")})
    report = slice_split(dataset, "train", tmp_path / "out", SlicePlan(size=64))
    assert (report.whole, report.written, report.background) == (2, 1, 1)
    linked = tmp_path / "out/images/train/s.png"
    assert os.path.samefile(linked, tmp_path / "set/images/train/s.png")
    assert (tmp_path / "out/labels/train/s.txt").read_text() == "0 0.500000 0.500000 0.500000 0.500000\n"


def test_a_single_window_of_a_bigger_image_is_not_the_whole_image(tmp_path):
    dataset = write_set(tmp_path / "set", {"x.png": (noise(160, 96), "0 0.1 0.5 0.1 0.2\n")})
    report = slice_split(dataset, "train", tmp_path / "out", SlicePlan(size=96, keep_empty=0))
    assert (report.whole, report.written, report.left_out) == (0, 1, 1)
    assert [path.name for path in (tmp_path / "out/images/train").iterdir()] == ["x_0_0_96_96.png"]
    assert slice_split(dataset, "train", tmp_path / "out", SlicePlan(size=96, keep_empty=0)).skipped == 1


def test_background_windows(tmp_path):
    images = {f"{i}.png": (noise(192, 96, i), "0 0.1 0.5 0.1 0.2\n") for i in range(40)}
    dataset = write_set(tmp_path / "set", images, val="images/train")
    counts = {}
    for share in (0, 0.5, 1):
        plan = SlicePlan(size=96, overlap=0, keep_empty=share)
        report = slice_split(dataset, "train", tmp_path / f"out{share}", plan)
        assert report.background + report.left_out == 40 and report.written == 40
        counts[share] = report.background
    assert counts[0] == 0 and 10 < counts[0.5] < 30 and counts[1] == 40
    val = slice_split(dataset, "val", tmp_path / "out0", SlicePlan(size=96, overlap=0, keep_empty=0))
    assert val.background == 40  # validation keeps all of them


def test_a_window_with_a_sliver_only_is_left_out(tmp_path):
    dataset = write_set(tmp_path / "set", {"x.png": (noise(192, 96), "0 0.4 0.5 0.22 0.2\n")})
    report = slice_split(dataset, "train", tmp_path / "out", SlicePlan(size=96, overlap=0, keep_empty=1))
    assert (report.written, report.slivers, report.background) == (1, 1, 0)


def test_equal_stems_get_names_of_their_own(tmp_path):
    images = {
        name: (noise(160, 96, i), "0 0.2 0.5 0.1 0.2\n") for i, name in enumerate(("a/1.png", "b/1.png", "2.png"))
    }
    dataset = write_set(tmp_path / "set", images)
    slice_split(dataset, "train", tmp_path / "out", SlicePlan(size=96, keep_empty=0))
    names = sorted(path.name for path in (tmp_path / "out/images/train").iterdir())
    assert len(names) == 3
    assert "2_0_0_96_96.png" in names and sum(name.startswith("1-") for name in names) == 2


def test_exif_orientation_as_opencv_reads_it(tmp_path):
    dataset = write_set(tmp_path / "set", {"x.jpg": (noise(160, 96), "0 0.5 0.25 0.2 0.1\n")})
    file = tmp_path / "set/images/train/x.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(file).copy().save(file, exif=exif, quality=95)
    turned = cv2.imread(str(file))
    assert turned.shape[:2] == (160, 96)
    slice_split(dataset, "train", tmp_path / "out", SlicePlan(size=96, keep_empty=1))
    names = sorted(path.name for path in (tmp_path / "out/images/train").iterdir())
    assert names == ["x_0_0_96_96.jpg", "x_0_64_96_160.jpg"]
    cut = cv2.imread(str(tmp_path / "out/images/train/x_0_0_96_96.jpg"))
    assert np.abs(cut.astype(int) - turned[:96]).mean() < 8


def test_a_second_run_writes_nothing_and_changes_are_followed(tmp_path):
    images = {f"{i}.png": (noise(160, 96, i), "0 0.1 0.5 0.1 0.2\n") for i in range(3)}
    dataset = write_set(tmp_path / "set", images)
    plan, out = SlicePlan(size=96, keep_empty=0), tmp_path / "out"
    slice_split(dataset, "train", out, plan)
    before = files_of(out)
    assert slice_split(dataset, "train", out, plan).skipped == 3 and files_of(out) == before
    (out / "images/train/1_0_0_96_96.png").unlink()
    assert slice_split(dataset, "train", out, plan).skipped == 2 and files_of(out).keys() == before.keys()
    label = tmp_path / "set/labels/train/2.txt"
    label.write_text("0 0.9 0.5 0.1 0.2\n")  # the object has moved to the other window
    later_ns = label.stat().st_mtime_ns + 10**10
    os.utime(label, ns=(later_ns, later_ns))
    slice_split(dataset, "train", out, plan)
    assert {name for name in files_of(out) if "/2_" in name} == {
        "images/train/2_64_0_160_96.png",
        "labels/train/2_64_0_160_96.txt",
    }
    label.write_text("")  # and then it is removed, and with it everything that is stored about the image
    report = slice_split(dataset, "train", out, plan)
    assert report.skipped == 2 and not [name for name in files_of(out) if "/2_" in name]


def test_images_of_which_nothing_is_kept_were_not_done_already(tmp_path):
    dataset = write_set(tmp_path / "set", {"a.png": (noise(160, 96), "")})
    report = slice_split(dataset, "train", tmp_path / "out", SlicePlan(size=96, keep_empty=0))
    assert (report.images, report.skipped, report.left_out) == (1, 0, 2)


def test_an_interrupted_run_leaves_whole_files_and_goes_on(tmp_path, monkeypatch):
    images = {f"{i}.png": (noise(160, 96, i), "0 0.5 0.5 0.1 0.2\n") for i in range(6)}
    dataset = write_set(tmp_path / "set", images)
    plan, out = SlicePlan(size=96, keep_empty=1), tmp_path / "out"
    calls = []
    replace = os.replace

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 10:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(slicing.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        slice_split(dataset, "train", out, plan, workers=1)
    monkeypatch.setattr(slicing.os, "replace", replace)
    left = files_of(out)
    assert 9 <= len(left) < 24 and not any(name.endswith(".part") for name in left)
    for name in left:
        if name.endswith(".png"):
            assert cv2.imread(str(out / name)) is not None
            assert name.replace("images", "labels", 1).replace(".png", ".txt") in left
    slice_split(dataset, "train", out, plan)
    whole = tmp_path / "whole"
    slice_split(dataset, "train", whole, plan)
    assert files_of(out).keys() == files_of(whole).keys() and len(files_of(out)) == 24


def test_bad_lines_and_images_are_named(tmp_path):
    good = noise(160, 96)
    images = {
        "a.png": (good, "0 0.5 0.5 0.1 0.2\n7 0.5 0.5 0.1 0.1\n0 0.5 x 0.1 0.1\n"),
        "b.png": (good, "0 0.5 0.5 0.1 0.2\n"),
    }
    dataset = write_set(tmp_path / "set", images)
    (tmp_path / "set/images/train/b.png").write_bytes(b"no picture")
    report = slice_split(dataset, "train", tmp_path / "out", SlicePlan(size=96))
    assert [(bad.file.name, bad.line) for bad in report.bad_lines] == [("a.txt", 2), ("a.txt", 3)]
    assert [path.name for path in report.bad_images] == ["b.png"]
    assert report.images == 1 and report.objects == 2
    with pytest.raises(UserError, match=r"a\.txt, line 2: class 7"):
        slice_split(dataset, "train", tmp_path / "strict", SlicePlan(size=96), strict=True)


def test_odd_rows_and_images_that_are_cut_off_are_named(tmp_path):
    rows = ["0 0.5 0.5 0.2 1.0025", "0 120 90 24 18", "0 0.5 0.5 -0.2 0.2", "1 0.1 0.1 0.1 0.1"]
    dataset = write_set(tmp_path / "set", {"a.png": (noise(96, 96), "\n".join(rows)), "b.png": (noise(96, 96), "")})
    picture = tmp_path / "set/images/train/b.png"
    Image.fromarray(noise(96, 96)).save(picture.with_suffix(".jpg"))
    picture.unlink()
    picture = picture.with_suffix(".jpg")
    picture.write_bytes(picture.read_bytes()[:2000])  # OpenCV reads it, and the part after the cut is grey
    report = slice_split(dataset, "train", tmp_path / "out", SlicePlan(size=96))
    assert [(bad.line, bad.reason.split(";")[0]) for bad in report.bad_lines] == [
        (1, "1.0025 is not in 0 to 1"),
        (2, "120 is not in 0 to 1"),
        (3, "-0.2 is negative"),
    ]
    assert report.bad_images == [picture] and report.objects == 2
    written = np.loadtxt(tmp_path / "out/labels/train/a.txt")
    np.testing.assert_allclose(written, [[0, 0.5, 0.5, 0.2, 1], [1, 0.1, 0.1, 0.1, 0.1]], atol=1e-6)


def test_polygons_and_boxes_over_the_border(tmp_path):
    text = "0 0.05 0.5 0.2 0.2\n1 0.8 0.4 0.9 0.4 0.9 0.6 0.8 0.6\n"
    dataset = write_set(tmp_path / "set", {"x.png": (noise(200, 100), text)})
    slice_split(dataset, "train", tmp_path / "out", SlicePlan(size=100, overlap=0))
    left, right = (np.loadtxt(tmp_path / f"out/labels/train/x_{x}_0_{x + 100}_100.txt") for x in (0, 100))
    np.testing.assert_allclose(left, [0, 0.15, 0.5, 0.3, 0.2], atol=1e-6)
    np.testing.assert_allclose(right, [1, 0.7, 0.5, 0.2, 0.2], atol=1e-6)


def test_folders_of_something_else_are_refused(tmp_path):
    dataset = write_set(tmp_path / "set", {"x.png": (noise(160, 96), "")})
    with pytest.raises(UserError, match="holds something else"):
        slicing.prepare_folder(tmp_path / "set", dataset, SlicePlan())
    slicing.prepare_folder(tmp_path / "out", dataset, SlicePlan(size=96))
    slicing.prepare_folder(tmp_path / "out", dataset, SlicePlan(size=96))
    with pytest.raises(UserError, match=r"started with size 96 instead of 128, overlap 0\.2 instead of 0\.3"):
        slicing.prepare_folder(tmp_path / "out", dataset, SlicePlan(size=128, overlap=0.3))
    shutil.copy(tmp_path / "set/set.yaml", tmp_path / "file")
    with pytest.raises(UserError, match="holds something else"):
        slicing.prepare_folder(tmp_path / "file", dataset, SlicePlan())
