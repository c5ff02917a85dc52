"""What a data YAML says: the classes, and where the images of a split are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from yolov5_ema.data.dataset import Conventions, ImagesNotFoundError, label_path, load_dataset
from yolov5_ema.errors import ConfigError


@pytest.fixture
def write(own_folder):
    """A function that writes a data YAML in the working directory; ``images/1.jpg`` is its only image."""
    (own_folder / "images").mkdir()
    (own_folder / "images/1.jpg").touch()

    def as_yaml(text: str = "names: [a]", **content: object) -> Path:
        content = {"val": "images", **(yaml.safe_load(text) or {}), **content}
        Path("set.yaml").write_text(yaml.safe_dump(content))
        return Path("set.yaml")

    return as_yaml


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [a, b]", ("a", "b")),
        ("names: {0: a, 1: b}", ("a", "b")),
        ("names: {1: b, 0: a}", ("a", "b")),
        ("{names: [7, 1.5], nc: 2}", ("7", "1.5")),
        ("nc: 2", ("class0", "class1")),
    ],
)
def test_names(write, text, names):
    assert load_dataset(write(text)).names == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "names: {0: a, 2: b}",
            r"not \[0, 2\]; if the labels are numbered like that, give class 1 a name too",
        ),
        ("names: {1: a, 2: b}", "give class 0 a name too, such as 0: unused"),
        ("names: {'0': a, '1': b}", "write the numbers without quotes, such as 0: person"),
        ("names: {yes: a}", "names must number its classes from 0 without a gap"),
        ("names: []", "names is empty; it must list the classes"),
        ("names: a", "names must be a list of class names, not 'a'"),
        ("names: [yes, b]", 'write it in quotes, such as "yes"'),
        ("{}", "'nc' .* and 'names' .* are missing"),
        ("{names: [a], nc: 2}", "nc is 2, but there is 1 name"),
        ("nc: 0", "nc must be a whole number of classes, at least 1"),
    ],
)
def test_names_that_yolov5_would_read_otherwise_are_refused(write, text, words):
    for lenient in (False, True):
        with pytest.raises(ConfigError, match=words):
            load_dataset(write(text), lenient=lenient)


def test_a_name_twice(write):
    file = write("names: [a, b, a]")
    assert load_dataset(file, lenient=True).names == ("a", "b", "a")
    with pytest.raises(ConfigError, match="names has 'a' twice; their figures could not be told apart; give"):
        load_dataset(file)


def test_coco_files_need_no_names(write):
    file = write("train_json_path: train.json")
    assert load_dataset(file, lenient=True).names == ()
    with pytest.raises(ConfigError, match="names must list the classes"):
        load_dataset(file)


def test_images_are_looked_for_once(write, monkeypatch):
    dataset = load_dataset(write())
    assert dataset.images("val") == [Path("images/1.jpg")]
    Path("images/2.jpg").touch()
    assert dataset.images("val") == [Path("images/1.jpg")]
    assert len(load_dataset(Path("set.yaml")).images("val")) == 2


def test_images_that_were_missing_are_looked_for_again(write):
    dataset = load_dataset(write(val="later"))
    with pytest.raises(ImagesNotFoundError, match="val images not found at 'later'"):
        dataset.images("val")
    Path("images").rename("later")
    assert dataset.images("val") == [Path("later/1.jpg")]


def test_kinds_of_splits(write):
    Path("more/deep").mkdir(parents=True)
    for file in ("more/deep/2.PNG", "more/._2.png", "more/note.txt", "more/3.pfm"):
        Path(file).touch()
    Path("empty").mkdir()
    Path("list.lst").write_text("./more/3.pfm\nimages/1.jpg\n./more/note.txt\nimages/1.jpg \nimages/1.jpg")
    for entry, images in (
        ("more", ["more/3.pfm", "more/deep/2.PNG"]),
        (["more", "images", "empty"], ["images/1.jpg", "more/3.pfm", "more/deep/2.PNG"]),
        ("list.lst", ["more/3.pfm", "images/1.jpg"]),
        ("images/1.jpg", ["images/1.jpg"]),
    ):
        assert [image.as_posix() for image in load_dataset(write(val=entry)).images("val")] == images, entry
    oldest = Conventions(image_suffixes=frozenset({".png"}))
    assert load_dataset(write(val="more"), oldest).images("val") == [Path("more/deep/2.PNG")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"val": "empty"}, r"no images for val in empty; supported suffixes: bmp, dng"),
        ({"val": ["images", "nowhere"]}, "val images not found at 'nowhere'"),
        ({"val": "/"}, "val is the whole file system"),
        ({"val": [1]}, "val must name a folder of images, such as images/val, or a list of them, not 1"),
        ({"val": None, "train": "images"}, r"'val' is missing; .* 'val: images/val' \(the file has train\)"),
    ],
)
def test_splits_without_images(write, content, words):
    Path("empty").mkdir()
    with pytest.raises(ConfigError, match=words):
        load_dataset(write(**content)).images("val")


def test_labels_are_read_as_the_release_does(write):
    dataset = load_dataset(write("names: [a]"))
    image = dataset.images("val")[0]
    assert len(dataset.labels(image).values) == 0
    Path("labels").mkdir()
    label_path(image).write_text("0 0.1 0.1 0.3 0.1 0.2 0.4\n")
    assert dataset.labels(image).left_out is None
    oldest = load_dataset(Path("set.yaml"), Conventions(polygon_from=9))
    assert oldest.labels(image).left_out is not None
    label_path(image).write_text("1 0.5 0.5 0.2 0.2\n")
    assert [str(bad) for bad in dataset.labels(image).bad] == ["labels/1.txt, line 1: class 1 is not in 0 to 0"]
