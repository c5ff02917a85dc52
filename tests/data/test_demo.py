"""The demo set: its content, that it is the same every time, and that it overwrites nothing."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from yolov5_ema.data import demo
from yolov5_ema.errors import UserError

SIZES = {"train": 40, "val": 14, "test": 13}


@pytest.fixture(scope="module")
def demo_yaml(tmp_path_factory):
    return demo.generate(tmp_path_factory.mktemp("demo") / "set", seed=3, **SIZES)


@pytest.fixture(scope="module")
def labels(demo_yaml):
    """Labels of every image, by file name: (n, 5) rows of class, x, y, width, height."""
    files = sorted(demo_yaml.parent.glob("labels/*/*.txt"))
    return {file.stem: np.array(file.read_text().split(), float).reshape(-1, 5) for file in files}


def test_layout_is_what_the_yaml_says(demo_yaml):
    data = yaml.safe_load(demo_yaml.read_text(encoding="utf-8"))
    assert data["nc"] == len(data["names"]) >= 3
    assert Path(data["path"]).is_absolute()  # for YOLOv5, relative paths start at the working directory
    for split, size in SIZES.items():
        images = sorted((Path(data["path"]) / data[split]).iterdir())
        assert len(images) == size
        for image in images:
            label = Path(str(image.with_suffix(".txt")).replace("images", "labels"))
            assert label.is_file()
            assert cv2.imread(str(image)).shape == (256, 256, 3)


def test_labels_are_valid(labels):
    for rows in labels.values():
        kind, centre, side = rows[:, 0], rows[:, 1:3], rows[:, 3:5]
        assert np.isin(kind, range(len(demo.NAMES))).all()
        assert (side > 0).all()
        assert (centre - side / 2 >= 0).all()
        assert (centre + side / 2 <= 1).all()
        assert len(np.unique(rows, axis=0)) == len(rows)


def test_objects_are_many_and_tiny(labels):
    filled = [rows for rows in labels.values() if len(rows)]
    assert all(8 <= len(rows) <= 25 for rows in filled)
    sides = np.concatenate(filled)[:, 3:5] * 256
    assert sides.max() <= 24
    assert sides.max(1).min() >= 6
    assert (np.sqrt(sides.prod(1)) < 16).mean() > 0.75


def test_classes_are_balanced(labels):
    counts = np.bincount(np.concatenate(list(labels.values()))[:, 0].astype(int))
    assert counts.min() > 0.7 * counts.max()


def test_each_split_has_images_without_objects(labels):
    for split in demo.SPLITS:
        empty = [name for name, rows in labels.items() if name.startswith(split) and not len(rows)]
        assert len(empty) == SIZES[split] // demo.EMPTY_EVERY


def test_no_two_images_are_equal_or_nearly_so(demo_yaml):
    files = sorted(demo_yaml.parent.glob("images/*/*.jpg"))
    small = np.stack([cv2.resize(cv2.imread(str(file)), (32, 32)).ravel().astype(float) for file in files])
    distances = np.abs(small[:, None] - small[None]).mean(2) + 255 * np.eye(len(small))
    assert distances.min() > 5  # sensor noise alone gives a spread below 1 at this size


@pytest.mark.parametrize("split, index", [("train", 0), ("val", 3), ("test", 11)])
def test_boxes_fit_what_was_drawn(monkeypatch, split, index):
    """Leave out the objects: the picture changes inside the boxes and in their shadows, and nowhere else."""
    monkeypatch.setattr(demo, "_take_photo", lambda rng, image: image.copy())
    full, rows = demo.draw_scene(5, split, index, 256)
    monkeypatch.setattr(demo, "_draw_object", lambda *args, **kwargs: None)
    bare, _ = demo.draw_scene(5, split, index, 256)
    changed = np.abs(full - bare).max(2) > 2
    near = np.zeros_like(changed)
    for _, x, y, w, h in rows * [1, 256, 256, 256, 256]:
        x1, y1, x2, y2 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
        box = changed[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
        # The object touches all four sides of its box; only a thin strip at the edge may be covered.
        assert box[:2].any() and box[-2:].any() and box[:, :2].any() and box[:, -2:].any()
        near[max(int(y1) - 6, 0) : int(y2) + 7, max(int(x1) - 6, 0) : int(x2) + 7] = True
    assert not (changed & ~near).any()


def test_same_arguments_give_the_same_bytes(tmp_path):
    files = [_contents(demo.generate(tmp_path / name, train=3, val=2, test=1).parent) for name in "ab"]
    assert files[0] == files[1]


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path):
    short = _contents(demo.generate(tmp_path / "short", train=2, val=1, test=1).parent)
    long = _contents(demo.generate(tmp_path / "long", train=4, val=3, test=2).parent)
    assert short.items() <= long.items()


def test_another_seed_draws_other_scenes(tmp_path):
    first = _contents(demo.generate(tmp_path / "0", seed=0, train=2, val=1, test=1).parent)
    second = _contents(demo.generate(tmp_path / "1", seed=1, train=2, val=1, test=1).parent)
    assert first.keys() == second.keys()
    assert not any(first[name] == second[name] for name in first if name.endswith(".jpg"))


@pytest.mark.parametrize("imgsz", [64, 100, 320])
def test_other_sizes(tmp_path, imgsz):
    folder = demo.generate(tmp_path / "set", train=1, val=1, test=1, imgsz=imgsz).parent
    assert cv2.imread(str(folder / "images/val/val_00000.jpg")).shape == (imgsz, imgsz, 3)
    rows = np.loadtxt(folder / "labels/val/val_00000.txt", ndmin=2)
    assert len(rows) and (rows[:, 3:5] * imgsz).max() <= 24


def test_finished_set_is_used_again_unchanged(tmp_path):
    arguments = {"seed": 1, "train": 2, "val": 1, "test": 1}
    folder = demo.generate(tmp_path / "set", **arguments).parent
    (folder / "labels/train.cache").write_text("YOLOv5 puts its caches here")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert demo.generate(folder, **arguments) == folder / "demo.yaml"
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_moved_set_gets_its_path_mended(tmp_path):
    arguments = {"train": 1, "val": 1, "test": 1}
    demo.generate(tmp_path / "old", **arguments).parent.rename(tmp_path / "new")
    data = yaml.safe_load(demo.generate(tmp_path / "new", **arguments).read_text(encoding="utf-8"))
    assert data["path"] == str(tmp_path / "new")


def test_relative_and_odd_folder_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = demo.generate("a b/dé 'mo", train=1, val=1, test=1)
    assert path.is_absolute()
    assert Path(yaml.safe_load(path.read_text(encoding="utf-8"))["path"]) == path.parent


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    assert demo.generate(tmp_path / "set", train=1, val=1, test=1).is_file()


def test_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty and does not hold a demo set"):
        demo.generate(tmp_path, train=1, val=1, test=1)
    assert _contents(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("manifest", ["{", "[]", '{"seed": 0}'])
def test_manifest_of_something_else_is_refused(tmp_path, manifest):
    (tmp_path / "demo.json").write_text(manifest)
    with pytest.raises(UserError, match="does not hold a demo set"):
        demo.generate(tmp_path, train=1, val=1, test=1)


def test_set_of_other_arguments_is_refused(tmp_path):
    folder = demo.generate(tmp_path / "set", seed=1, train=1, val=1, test=1).parent
    before = _contents(folder)
    with pytest.raises(UserError, match="seed 1 there, 2 requested"):
        demo.generate(folder, seed=2, train=1, val=1, test=1)
    assert _contents(folder) == before


def test_set_of_an_older_drawing_is_refused(tmp_path, monkeypatch):
    folder = demo.generate(tmp_path / "set", train=1, val=1, test=1).parent
    monkeypatch.setattr(demo, "DRAWING", demo.DRAWING + 1)
    with pytest.raises(UserError, match="drawing"):
        demo.generate(folder, train=1, val=1, test=1)


def test_set_that_lost_files_is_refused(tmp_path):
    folder = demo.generate(tmp_path / "set", train=2, val=1, test=1).parent
    (folder / "images/train/train_00001.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks 1 file, such as .*train_00001\.jpg"):
        demo.generate(folder, train=2, val=1, test=1)


def test_file_instead_of_folder_is_refused(tmp_path):
    (tmp_path / "set").write_text("")
    with pytest.raises(UserError, match="is a file"):
        demo.generate(tmp_path / "set")


def test_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        demo.generate(tmp_path / "file" / "set", train=1, val=1, test=1)


@pytest.mark.parametrize(
    "wrong",
    [{"seed": -1}, {"train": 0}, {"val": 0}, {"test": 1.5}, {"imgsz": 32}, {"imgsz": 4096}, {"train": True}],
)
def test_numbers_out_of_range_are_named(tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=rf"{name} must be .* not {value}"):
        demo.generate(tmp_path / "set", **wrong)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_half_written_stays(tmp_path, monkeypatch, error):
    draw_scene = demo.draw_scene

    def fail_late(seed, split, index, imgsz):
        if index == 2:
            raise error
        return draw_scene(seed, split, index, imgsz)

    monkeypatch.setattr(demo, "draw_scene", fail_late)
    with pytest.raises(error):
        demo.generate(tmp_path / "set", train=4, val=1, test=1)
    assert list(tmp_path.iterdir()) == []


def test_manifest_says_what_made_the_set(demo_yaml):
    manifest = json.loads((demo_yaml.parent / "demo.json").read_text())
    assert manifest["seed"] == 3 and manifest["imgsz"] == 256
    assert {split: manifest[split] for split in demo.SPLITS} == SIZES


def _contents(folder: Path) -> dict[str, bytes]:
    """The content of every file below ``folder``, except files that contain paths or counts."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in ("demo.yaml",))
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.name != "demo.json"}
