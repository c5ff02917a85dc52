"""Whatever a data YAML contains, the result is a message or a data set; no hang or traceback, no code, no download."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from hostile_yaml import CANARY, CODE, SMALL, as_text, files, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from under_watch import command, own_place, peak_memory

import yolov5_ema
from yolov5_ema.engine.quirks import downloads
from yolov5_ema.errors import UserError

GOOD = {
    "path": ".",
    "train": "images/train",
    "val": "images/val",
    "test": "images/val",
    "nc": 3,
    "names": ["disc", "box", "cross"],
}
DOWNLOADS = [
    *(f"bash touch {CANARY}", f"open({CANARY!r}, 'w')", f"import os; os.system('touch {CANARY}')"),
    *(
        "https://example.org/x.zip",
        "http://127.0.0.1:9/x.zip",
        "http://.zip",
        "bash ",
        "",
        5,
        ["a"],
        {"a": 1},
        None,
    ),
]
BASES = [
    GOOD,
    {**GOOD, "names": {0: "disc", 1: "box", 2: "cross"}},
    {**GOOD, "path": "nowhere", "download": DOWNLOADS[0]},
    {**GOOD, "path": "nowhere", "download": DOWNLOADS[1]},
    {**GOOD, "train": ["images/train", "images/val"], "val": "list.txt"},
    {**GOOD, "visdrone_annotations": {"val": "annotations"}, "coco_annotations": {"val": "instances.json"}},
    {
        **GOOD,
        "train_json_path": "train.json",
        "train_image_dir": ".",
        "val_json_path": "v.json",
        "val_image_dir": ".",
    },
    {**GOOD, "yolo_s3_data_dir": "s3://bucket/x", "coco_s3_data_dir": "s3://bucket/y"},
]
VALUES = (
    values()
    | st.sampled_from(DOWNLOADS + CODE[:4])
    | st.sampled_from(
        ["images/train", "images", "list.txt", "images/val/a.jpg", "labels", ".", "/", "~root", "~nobody"]
    )
    | st.sampled_from(
        ["a\x00b", "images\x00", "x" * 300, "a/" * 3000, "/dev/zero", "/dev/tty", "/proc/self/mem", "pipe"]
    )
    | st.sampled_from(
        [["a", "a", "a"], ["a", "b"], {0: "a", 2: "b", 5: "c"}, {"a": 0, "b": 1}, {0: [1], 1: None, 2: 3.5}]
    )
    | st.sampled_from(
        [
            [],
            [[]],
            {},
            ["\x1b[31m", "\r", "\u202e"],
            [None, True, 1.5],
            {-1: "a", 0: "b", 1: "c"},
            {0: "a", "1": "b", 2: 3},
        ]
    )
    | st.sampled_from([{"val": "/"}, {"val": "a\x00"}, {"val": ["x"]}, {"val": {}}, ["val"], "s3://x/y", "gs://x.zip"])
)
DATA = files(BASES, VALUES, [as_text(base) for base in BASES])


@pytest.fixture(scope="module")
def engine():
    with yolov5_ema.installed() as engine:
        check_data(as_text(GOOD), engine)  # what is done once in each process is done before anything is watched
        yield engine


def lay_out(folder: Path) -> None:
    """Three images in each split, their labels, and predictions."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for name in "abc":
            cv2.imwrite(str(folder / "images" / split / f"{name}.jpg"), np.full((16, 16, 3), 90, np.uint8))
            (folder / "labels" / split / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.1 0.1\n")
    (folder / "small.yaml").write_bytes(as_text(SMALL))
    (folder / "images" / "train" / "loop").symlink_to(folder / "images")
    (folder / "list.txt").write_text("./images/val/a.jpg\n./images/val/b.jpg\n")
    (folder / "found.json").write_text('[{"image_id": "a", "category_id": 0, "bbox": [1, 1, 5, 5], "score": 0.5}]')


def preflight(script: str, engine, folder: Path, *flags: object) -> tuple[int, object]:
    """Run a script up to the point where it would start, and do there what YOLOv5 does with the data YAML next."""
    module = engine.module(script)
    general = engine.module("utils.general")
    understood = []

    def in_place_of_the_script(opt, *_):
        content = yaml.safe_load(Path(opt.data).read_text(encoding="utf-8", errors="ignore"))
        if content.get("train_json_path") is not None and script == "train":
            understood.append("COCO data, which the package converts itself")
            return
        data = general.check_dataset(opt.data)
        data.setdefault("nc", len(data["names"]))
        understood.append((int(data["nc"]), list(data["names"]), data["val"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "main", in_place_of_the_script)
        patch.setattr(downloads, "is_online", lambda *_: True)  # so that YOLOv5 does whatever it would do
        patch.setattr(torch.hub, "download_url_to_file", refuse_to_download)
        code, said = command(script, "--data", "mine.yaml", *flags, folder=folder)
    assert (code == 0) == bool(understood), said
    return code, said


def refuse_to_download(address, *_):
    raise UserError(f"not fetched here: {address}")


def check_data(content: bytes, engine) -> int:
    """Run the commands that take a data YAML on one file; returns the exit code of ``data stats``."""
    with own_place() as folder:
        (folder / "mine.yaml").write_bytes(content)
        lay_out(folder)
        before = set(folder.rglob("*"))
        code, _ = command("data", "stats", "mine.yaml", "--no-picture", folder=folder)
        flags = ("--data", "mine.yaml", "--predictions", "found.json", "--nosave", "--missing-as-empty")
        command("evaluate", *flags, folder=folder)
        preflight("train", engine, folder, "--cfg", "small.yaml", "--weights", "")
        preflight("val", engine, folder, "--weights", "")
        assert not (folder / CANARY).exists()
        left = {str(path) for path in set(folder.rglob("*")) - before}
        assert not left, f"left behind: {left}"
    return code


def fuzz(examples: int, engine) -> dict[int, int]:
    """Run ``examples`` data YAMLs; returns how many ended with each exit code."""
    codes: dict[int, int] = {}

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(DATA)
    def case(content: bytes) -> None:
        code = check_data(content, engine)
        codes[code] = codes.get(code, 0) + 1

    before = peak_memory()
    case()
    assert peak_memory() - before < 2**30
    return codes


@pytest.mark.parametrize("download", DOWNLOADS[:4])
def test_what_a_data_yaml_says_to_download_is_not_done(engine, download):
    """YOLOv5 would download if images are missing; its main function is reached in none of these cases."""
    with own_place() as folder:
        lay_out(folder)
        (folder / "mine.yaml").write_bytes(as_text({**GOOD, "path": "nowhere", "download": download}))
        for script in ("train", "val"):
            code, said = preflight(script, engine, folder, "--weights", "")
            assert code == 2 and "fetch the images yourself" in said
        assert not (folder / CANARY).exists()


def test_data_yamls(engine):
    codes = fuzz(20, engine)
    assert codes[0] >= 1 and codes[2] >= 6, codes


@pytest.mark.slow
def test_many_data_yamls(engine):
    codes = fuzz(5000, engine)
    assert codes[0] >= 150 and sum(codes.values()) >= 5000, codes
