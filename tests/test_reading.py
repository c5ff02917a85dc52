"""Untrusted files: pipes and devices are refused at once, and no more is read than can be used."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from yolov5_ema.classification.cifar import _from_archive
from yolov5_ema.classification.recipes import load_recipe
from yolov5_ema.data import archives, coco_format, image_size, video_files, visdrone_format
from yolov5_ema.data.text_rows import read_lines
from yolov5_ema.data.yaml_files import parse_yaml, read_yaml
from yolov5_ema.detecting.sources import find_images
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.evaluation import truths
from yolov5_ema.paper import figure1

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join(['*a' + str(n - 1)] * 9)}]\n" for n in range(1, 9)
)
READERS = {
    "yaml": read_yaml,
    "labels": read_lines,
    "annotations": visdrone_format.read_annotations,
    "instances": coco_format.read_instances,
    "json": truths.read_json,
    "image-size": image_size.read_image_info,
    "displayed-size": image_size.displayed_size,
    "image-list": lambda file: find_images(str(file)),
    "figure1": figure1._read_run,
    "zip": lambda file: archives.open_archive(str(file)),
    "entry-of-folder": lambda file: archives.Place(str(file.parent)).read(file.name),
}
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")


@needs_pipes
@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_or_a_device_is_refused_at_once(reader, tmp_path):
    pipe, device = tmp_path / "pipe.txt", tmp_path / "device.txt"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for file in (pipe, device):
        with pytest.raises(UserError, match=r"pipe|no such file|neither"):
            READERS[reader](file)


def _wait_for_pipe(file: str) -> None:
    Path(file).read_text()


@needs_pipes
def test_a_pipe_would_be_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    process = multiprocessing.get_context("fork").Process(target=_wait_for_pipe, args=(str(tmp_path / "pipe"),))
    process.start()
    process.join(0.3)
    assert process.is_alive()
    process.kill()
    process.join()


@needs_pipes
def test_a_pipe_has_no_seconds_to_play(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    assert video_files.shown_seconds(tmp_path / "a.mp4") is None


def test_aliases_that_stand_for_a_billion_values_are_refused(tmp_path):
    assert len(BOMB) < 700 and len(yaml.safe_load(BOMB)["a3"]) == 9
    file = tmp_path / "own.yaml"
    file.write_text(BOMB)
    for read in (lambda: load_recipe(str(file)), lambda: parse_yaml(BOMB, "--block-options")):
        with pytest.raises(ConfigError, match=r"with its aliases expanded it holds more than 100,000 values"):
            read()
    assert parse_yaml("{groups: &g 8, again: *g}", "--block-options") == {"groups": 8, "again": 8}
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        parse_yaml("x" * 2**21, "--set")


def test_numbers_that_share_a_hash_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("nc: 1\nlr0: 9223372036854775807\nratio: -0x7fffffff\n")
    assert read_yaml(tmp_path / "a.yaml")["lr0"] == 2**63 - 1
    keys = [number * (2**61 - 1) for number in range(1, 30_000)]
    assert {hash(key) for key in keys} == {0}  # so that a dict compares each of them with all before it
    (tmp_path / "b.yaml").write_text("".join(f"{key}: 1\n" for key in keys))
    with pytest.raises(ConfigError, match=r"b\.yaml.*a number of 65 bits"):
        read_yaml(tmp_path / "b.yaml")


def test_an_entry_that_claims_gigabytes_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_TEXT", 1000)
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/large.jpg", b"0" * 1001)
        archive.writestr("set/small.jpg", b"0" * 1000)
    place = archives.Place(str(file), "set/")
    assert place.read("small.jpg") == b"0" * 1000
    with pytest.raises(UserError, match=r"large\.jpg has 1,001 bytes when it is unpacked"):
        place.read("large.jpg")


def test_a_header_of_a_tar_that_is_longer_than_any_name_is_refused(tmp_path):
    for length in (200, 2**21):
        file = tmp_path / f"{length}.tar.gz"
        with tarfile.open(file, "w:gz", format=tarfile.GNU_FORMAT) as archive:
            entry = tarfile.TarInfo("n" * length + "/test.bin")
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))
    assert _from_archive(tmp_path / "200.tar.gz", "test.bin", 10) == b"abc"
    with pytest.raises(UserError, match=r"a header of 2,097,\d+ bytes"):
        _from_archive(tmp_path / f"{2**21}.tar.gz", "test.bin", 10)


def test_numbers_and_brackets_without_end_are_no_json(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([1]))
    assert truths.read_json(file) == [1]
    for text in ("9" * 5000, "[" * 100_000):
        file.write_text(text)
        with pytest.raises(UserError, match=r"a\.json is not what is needed|no JSON"):
            truths.read_json(file)
