"""What a run's files may bring to a page: content of the run, with the right types and sizes; nothing from outside."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from synthetic_runs import Page, measured_of, write_comparison, write_training

from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.errors import UserError
from yolov5_ema.reporting import measuring, page, pictures, reading, runs
from yolov5_ema.reporting.measuring import as_json, folders_of, kept, settings_of
from yolov5_ema.reporting.parts import Material
from yolov5_ema.reporting.runs import DETECT, Run, read_source

SECRET = "canary-of-somebody-else"


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder next to the run, with a picture and a YAML that must not appear on its page."""
    folder = tmp_path / "private"
    folder.mkdir()
    cv2.imwrite(str(folder / "photo.png"), np.full((50, 50, 3), 77, np.uint8))
    (folder / "keys.yaml").write_text(f"cfg: x\nword: {SECRET}\n")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_training(tmp_path / "exp")


def html_of(folder: Path, **more: Any) -> str:
    source = read_source(folder)
    return page.render(Material([source], not_measured={source.name: "x"}, **more))


# --- links, special files, sizes ------------------------------------------------------------


@pytest.mark.parametrize(("name", "target"), [("opt.yaml", "keys.yaml"), ("PR_curve.png", "photo.png")])
def test_a_link_out_of_the_run_is_not_followed(folder, outside, name, target, monkeypatch):
    """Without the guard, the content that the link leads to is on the page."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside / target)
    with pytest.raises(UserError, match="is a link to outside of the run's folder"):
        read_source(folder)
    follow = lambda folder, name: folder / name if (folder / name).exists() else None  # noqa: E731
    monkeypatch.setattr(runs, "file_of", follow)
    found = Page(html_of(folder))
    assert SECRET in found.words or len(found.images) == 1


def test_a_link_inside_the_run_is_a_file_of_it(folder):
    (folder / "opt.yaml").rename(folder / "mine.yaml")
    (folder / "opt.yaml").symlink_to("mine.yaml")
    assert read_source(folder).options["imgsz"] == 64


@pytest.mark.parametrize("name", ["opt.yaml", "hyp.yaml", "results.csv"])
def test_what_is_no_file_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=f"{name} is not a file"):
        read_source(folder)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    monkeypatch.setattr(reading, "_MOST_JSON", 2**20)
    file.write_text('"' + "a" * 2**20 + '"')
    with pytest.raises(UserError, match="larger than 1 MiB: not a file of a run"):
        reading.json_of(file)
    for text, message in (
        ("1" * 400, "of 400 digits"),
        ("NaN", "not a JSON number"),
        ("[" * 10**5, "too deeply"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            reading.json_of(file)


def test_a_picture_of_more_pixels_than_any_drawn_is_not_opened(folder):
    """A few hundred bytes that would expand to 240 MB."""
    side = 9_000
    rows = zlib.compress(b"\0" * (side + 1) * 20)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    raw = b"".join(
        struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held)) for kind, held in chunks
    )
    (folder / "PR_curve.png").write_bytes(b"\x89PNG\r\n\x1a\n" + raw)
    with Image.open(folder / "PR_curve.png") as image:
        assert image.size == (side, side)
    assert pictures.embedded_picture(folder / "PR_curve.png") is None


# --- an evaluation that was kept ------------------------------------------------------------


@pytest.fixture
def with_kept(folder, outside):
    """A run with a report-val.json as a report writes it, and a function that changes the file."""
    (folder / "weights").mkdir()
    best = folder / "weights/best.pt"
    best.write_bytes(b"1")
    found = measured_of(["car", "bus"], [outside / "photo.png"])
    settings = settings_of(best, folder / "opt.yaml", split="val", imgsz=64, samples=1, release="6.0")
    found.settings.clear()
    found.settings.update(settings)
    found = measuring.Measured(**{**vars(found), "objects": 3})

    def change(**parts: Any) -> Path:
        (folder / "report-val.json").write_text(json.dumps({**json.loads(as_json(found)), **parts}))
        return folder

    return change


def of_run(folder: Path) -> Run:
    return Run("exp", folder, DETECT, "m", weights=folder / "weights/best.pt")


def test_it_holds_its_pictures_themselves(with_kept):
    found = kept(of_run(with_kept()), "val")
    assert found is not None and found.samples[0].image == "photo.png"
    raw = base64.b64decode(found.samples[0].picture)
    assert Image.open(io.BytesIO(raw)).format == "JPEG"


def test_it_cannot_name_a_picture_of_the_machine(with_kept, outside):
    """Those of an earlier version did; they are made again."""
    place = str(outside / "photo.png")
    sample = {"image": place, "truth": [[0, 1, 1, 5, 5]], "found": []}
    settings = {"version": 1}
    assert kept(of_run(with_kept(samples=[sample], settings=settings)), "val") is None
    for picture in (
        place,
        "file://" + place,
        "data:image/png;base64,AAAA",
        "<svg>",
        5,
        None,
        "A" * 200_000,
        png_text(),
    ):
        sample = {"image": "a.jpg", "objects": 1, "detections": 1, "picture": picture}
        with pytest.raises(
            UserError,
            match=r"report-val.json is not valid as evaluation .*samples\[0\], picture is not a picture",
        ):
            kept(of_run(with_kept(samples=[sample])), "val")


def png_text() -> str:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


@pytest.mark.parametrize(
    "parts",
    [
        {"names": ["car", "car"]},
        {"names": []},
        {"images": "4"},
        {"metrics": {"P": 1, "R": 1, "mAP50": "1;background:red", "mAP50-95": 0}},
        {"metrics": {"P": 1}},
        {"per_class": {"plane": {"P": 0.5}}},
        {"per_class": {"car": {"P": "<b>"}}},
        {"curves": {}},
        {"curves": {"car": [1, 2]}},
        {"confusion": [[1, 2], [3, 4]]},
        {"confusion": [[-1] * 3] * 3},
        {"split": "../../x"},
        {"settings": {"rules": "6.0"}},
        {"samples": [{}] * 99},
    ],
)
def test_one_that_a_page_cannot_be_made_of_is_named(with_kept, parts):
    with pytest.raises(UserError, match=r"report-val\.json"):
        kept(of_run(with_kept(**parts)), "val")


# --- comparisons, data sets, secrets --------------------------------------------------------


def test_a_comparison_names_no_run_outside_of_it(tmp_path):
    folder = write_comparison(tmp_path / "first")
    write_training(tmp_path / "seed0", word=SECRET)
    file = folder / "comparison.json"
    content = json.loads(file.read_text())
    content["runs"] = [{"cfg": name, "seed": 0} for name in ("..", "../../first/plain", str(tmp_path), "plain")]
    file.write_text(json.dumps(content))
    assert [run.folder.parent.name for run in read_source(folder).runs] == ["plain"]
    file.write_text(json.dumps({**content, "recipe": {"task": "../../x"}}))
    with pytest.raises(UserError, match=r"recipe, task must be val or test, not '../../x'"):
        read_source(folder)


def test_sample_images_lie_in_the_data_set(tiny_set, tmp_path):
    dataset = load_dataset(tiny_set)
    folders = folders_of(dataset, "val")
    image = dataset.images("val")[0]
    link = tmp_path / "a.jpg"
    link.symlink_to(image)
    assert measuring._is_within_any(image, folders) and measuring._is_within_any(link, folders)
    (tmp_path / "set/images/val").mkdir(parents=True)
    photo = tmp_path / "set/images/val/photo.jpg"
    photo.symlink_to(image)  # of another data set, whatever a link leads to
    file = tmp_path / "set/set.yaml"
    file.write_text(f"path: {tmp_path}/set\nval: images/val\nnc: 1\nnames: [a]\n")
    assert not measuring._is_within_any(photo, folders_of(load_dataset(file), "val"))
    (tmp_path / "set/list.txt").write_text(f"{image}\n")
    file.write_text(f"path: {tmp_path}/set\nval: list.txt\nnc: 1\nnames: [a]\n")
    assert not measuring._is_within_any(image, folders_of(load_dataset(file), "val"))


def test_secrets_are_not_shown(tmp_path):
    says = {
        "hf_token": "a-1",
        "neptune_token": "",
        "aws_access_key": "a-2",
        "entity": {"password": "a-3"},
        "data": "https://me:a-4@example.org/set.yaml",
        "note": "hf_abcdefghijklmnopqrstuvwxyz",
        "more": ["ghp_abcdefghijklmnopqrstuvwxyz0123"],
    }
    folder = write_training(tmp_path / "exp")
    (folder / "opt.yaml").write_text(json.dumps({"cfg": "a.yaml", **says, "hyp": {"api_key": "a-5"}}))
    (folder / "hyp.yaml").unlink()
    words = Page(html_of(folder)).words
    assert not [secret for secret in ("a-1", "a-2", "a-3", "a-4", "a-5", "hf_abc", "ghp_abc") if secret in words]
    assert "https://…@example.org/set.yaml" in words and words.count("(not shown)") >= 5


def test_halves_of_characters_do_not_stop_a_page(tmp_path):
    folder = write_training(tmp_path / "exp")
    (folder / "opt.yaml").write_text('cfg: a.yaml\nnote: "\\ud800"\n')
    assert "note?" in Page(html_of(folder)).words.replace("\n", "")
