"""Data for classifiers: the synthetic set, CIFAR-100's binary form, folders, and each process's share of them."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from yolov5_ema.classification import cifar, synthetic
from yolov5_ema.classification.datasets import (
    LEFT_OUT,
    DrawnPictures,
    Samples,
    Shares,
    make_loader,
    open_data,
)
from yolov5_ema.classification.images import UnreadableImage, read_image
from yolov5_ema.classification.transforms import evaluation_transform, training_transform
from yolov5_ema.errors import UserError

HALF = (0.5, 0.5, 0.5)


# --- the drawn set -------------------------------------------------------------------------------


def _drawn(split: str, count: int, classes: int = 10, imgsz: int = 32, seed: int = 0):
    drawn = [synthetic.draw(seed, split, index, classes, imgsz) for index in range(count)]
    return np.stack([image for image, _ in drawn]), np.array([label for _, label in drawn])


def test_a_drawn_picture_depends_on_seed_split_and_index_only():
    image, label = synthetic.draw(3, "train", 17, 10, 32)
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and label == 7
    # recorded once: the set is the same on every machine, except for rounding by different processors
    assert image.mean((0, 1)) == pytest.approx([109.23, 116.89, 75.19], abs=0.5)
    assert (synthetic.draw(3, "train", 17, 10, 32)[0] == image).all()
    others = [synthetic.draw(*args, 10, 32)[0] for args in ((4, "train", 17), (3, "val", 17), (3, "train", 27))]
    assert all((other != image).any() for other in others)


def test_train_and_val_share_no_picture_and_classes_are_balanced():
    train, labels = _drawn("train", 600)
    val, _ = _drawn("val", 300)
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in (*train, *val)]
    assert len(set(hashes)) == 900
    assert set(Counter(labels.tolist()).values()) == {60}


def _colour_features(images: np.ndarray) -> dict[str, np.ndarray]:
    flat = images.reshape(len(images), -1, 3).astype(float) / 255
    histograms = [[np.histogram(image[:, c], 8, (0, 1))[0] / len(image) for c in range(3)] for image in flat]
    moments = np.concatenate([flat.mean(1), flat.std(1)], axis=1)
    return {
        "mean": flat.mean(1),
        "moments": moments,
        "histogram": np.array(histograms).reshape(len(images), -1),
    }


def _linear_accuracy(train: np.ndarray, labels: np.ndarray, val: np.ndarray, truth: np.ndarray) -> float:
    """The top-1 accuracy of ridge regression onto the classes."""
    centre, spread = train.mean(0), train.std(0) + 1e-9
    inputs, tests = (np.c_[(one - centre) / spread, np.ones(len(one))] for one in (train, val))
    targets = np.eye(10)[labels]
    weights = np.linalg.solve(inputs.T @ inputs + 1e-2 * np.eye(inputs.shape[1]), inputs.T @ targets)
    return float(((tests @ weights).argmax(1) == truth).mean())


def test_colour_alone_does_not_tell_the_class():
    train, labels = _drawn("train", 1500)
    val, truth = _drawn("val", 800)
    train_features, val_features = _colour_features(train), _colour_features(val)
    for name, features in train_features.items():
        assert _linear_accuracy(features, labels, val_features[name], truth) < 0.17, name  # chance is 0.1
    centres = np.stack([train_features["mean"][labels == cls].mean(0) for cls in range(10)])
    distances = np.linalg.norm(val_features["mean"][:, None] - centres, axis=2)
    assert (distances.argmin(1) == truth).mean() < 0.15
    # this check can fail: if the colour tells the class, the same regression finds it
    tinted = train_features["mean"] + labels[:, None] * [0.3, 0.0, 0.0]
    tinted_val = val_features["mean"] + truth[:, None] * [0.3, 0.0, 0.0]
    assert _linear_accuracy(tinted, labels, tinted_val, truth) > 0.18


def test_all_hundred_classes_differ_in_shape_or_filling():
    y, x = (np.mgrid[:96, :96] + 0.5) / 48 - 1
    looks = []
    for shape in synthetic._SHAPES.values():
        inside = shape(x, y)
        for name, filling in synthetic._FILLINGS.items():
            second = filling(x, y) & inside
            share = second.sum() / inside.sum()
            assert name == "plain" or 0.1 < share < 0.9, name
            looks.append(np.where(inside, 1 + second, 0))
    for first, one in enumerate(looks):
        for two in looks[:first]:
            swapped = np.where(two > 0, 3 - two, 0)  # the colours are random, so which one comes second means nothing
            for other in (two, swapped, two[:, ::-1], swapped[:, ::-1]):
                assert (one != other).mean() > 0.02
    assert len(synthetic.class_names(100)) == len(set(synthetic.class_names(100))) == synthetic.MOST_CLASSES == 100
    assert synthetic.class_names(10)[0] == "disc" and synthetic.class_names(11)[10] == "lines disc"


@pytest.mark.parametrize(
    ("spec", "imgsz", "words"),
    [
        ("synthetic:classes=1", 32, "2 to 100"),
        ("synthetic:classes=101", 32, "2 to 100"),
        ("synthetic:train=0", 32, "'train=0' is not a size"),
        ("synthetic:trian=5", 32, "'trian=5' is not a size"),
        ("synthetic", 8, "below 16 pixels"),
    ],
)
def test_synthetic_sets_that_cannot_be(spec, imgsz, words):
    with pytest.raises(UserError, match=words):
        open_data(spec, imgsz)


# --- CIFAR-100 -----------------------------------------------------------------------------------

CLASS_NAMES = [f"class_{number}" for number in range(100)]


def cifar_bytes(count: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (count, 3074), dtype=np.uint8)
    rows[:, 0], rows[:, 1] = np.arange(count) % 20, (7 * np.arange(count)) % 100
    return rows.tobytes()


def write_cifar(folder: Path, train: int = 12, val: int = 5) -> dict[str, bytes]:
    files = {
        "train.bin": cifar_bytes(train, 0),
        "test.bin": cifar_bytes(val, 1),
        "fine_label_names.txt": ("\n".join(CLASS_NAMES) + "\n\n").encode(),
    }
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def write_archive(place: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(place, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return place


def test_cifar_is_read_from_folder_and_archive(tmp_path):
    files = write_cifar(tmp_path / "cifar-100-binary")
    archive = write_archive(tmp_path / "some.tar.gz", files)
    raw = np.frombuffer(files["train.bin"], np.uint8).reshape(12, 3074)
    for place in (tmp_path / "cifar-100-binary", tmp_path, archive):
        data = open_data(str(place), 32)
        assert data.names == CLASS_NAMES and len(data.splits["train"]) == 12 and len(data.splits["val"]) == 5
        for index in (0, 3, 11):
            pixels = np.asarray(data.splits["train"].load(index))
            assert data.splits["train"].label(index) == 7 * index % 100
            for row, column, channel in ((0, 0, 0), (0, 31, 1), (17, 4, 2), (31, 31, 2)):
                assert pixels[row, column, channel] == raw[index, 2 + channel * 1024 + row * 32 + column]
    assert not (tmp_path / "train.bin").exists()  # nothing was unpacked


def test_damaged_cifar_is_named(tmp_path):
    files = write_cifar(tmp_path / "cifar-100-binary")

    def refused(place: Path) -> str:
        with pytest.raises(UserError) as caught:
            open_data(str(place), 32)
        return str(caught.value)

    archive = write_archive(tmp_path / "whole.tar.gz", files)
    content = archive.read_bytes()
    (tmp_path / "torn.tar.gz").write_bytes(content[: len(content) // 2])
    assert "cut off or damaged" in refused(tmp_path / "torn.tar.gz")
    (tmp_path / "none.tar.gz").write_bytes(b"no archive")
    assert "not a tar archive" in refused(tmp_path / "none.tar.gz")
    write_archive(tmp_path / "short.tar.gz", {**files, "train.bin": files["train.bin"][:-1]})
    assert "not a whole number of images" in refused(tmp_path / "short.tar.gz")
    wrong = bytearray(files["train.bin"])
    wrong[3074 * 2 + 1] = 100
    write_archive(tmp_path / "wrong.tar.gz", {**files, "train.bin": bytes(wrong)})
    assert "image 2 of train.bin" in refused(tmp_path / "wrong.tar.gz")
    write_archive(tmp_path / "names.tar.gz", {**files, "fine_label_names.txt": b"cat\n"})
    assert "holds 1 names" in refused(tmp_path / "names.tar.gz")
    write_archive(tmp_path / "lacks.tar.gz", {"train.bin": files["train.bin"]})
    assert "has no test.bin" in refused(tmp_path / "lacks.tar.gz")


def test_a_link_in_the_archive_is_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(cifar_bytes(3, 0))
    with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("cifar-100-binary/train.bin")
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        archive.addfile(member)
    with pytest.raises(UserError, match=r"has no train\.bin"):
        open_data(str(tmp_path / "link.tar.gz"), 32)


def test_the_python_form_is_refused_and_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Opens:
        def __reduce__(self):
            return open, ("ran", "w")

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "train").write_bytes(pickle.dumps(Opens()))
    for place in (folder, tmp_path):
        with pytest.raises(UserError, match="pickle, which could run code") as caught:
            open_data(str(place), 32)
        assert "cifar-100-binary.tar.gz" in str(caught.value) and cifar.MD5 in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def server(tmp_path):
    """Serve the files of a folder on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{running.server_port}/{cifar.ARCHIVE}"
    running.shutdown()
    running.server_close()


def test_a_download_is_checked_and_there_whole_or_not_at_all(tmp_path, server):
    served, url = server
    archive = write_archive(served / cifar.ARCHIVE, write_cifar(tmp_path / "cifar"))
    target = tmp_path / "datasets"
    with pytest.raises(UserError, match="not the published"):
        cifar.download(target, url=url)
    assert not target.exists()
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    place = cifar.download(target, url=url, md5=md5)
    assert place.read_bytes() == archive.read_bytes() and list(target.iterdir()) == [place]
    archive.unlink()
    assert cifar.download(target, url=url, md5=md5) == place  # it was there already
    with pytest.raises(UserError, match=r"cannot be reached.*--data path"):
        cifar.download(tmp_path / "other", url=url, md5=md5)
    with pytest.raises(UserError, match="cannot be reached"):
        cifar.download(tmp_path / "other", url="http://127.0.0.1:9/x", md5=md5, timeout=2)
    assert not (tmp_path / "other").exists()


def test_nothing_is_fetched_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cifar, "download", lambda *args, **kwargs: pytest.fail("fetched"))
    with pytest.raises(UserError, match="--download") as caught:
        open_data("cifar100", 32)
    assert cifar.URL in str(caught.value)
    write_cifar(tmp_path / "datasets" / "cifar-100-binary")
    assert len(open_data("cifar100", 32).splits["train"]) == 12


# --- folders -------------------------------------------------------------------------------------


def write_folders(root: Path, classes=("cat", "dog"), train: int = 3, val: int = 2) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def test_folders_are_numbered_as_torchvision_numbers_them(tmp_path):
    from torchvision.datasets import ImageFolder

    root = write_folders(tmp_path / "set", ("dog", "Cat", "bird"))
    (root / "train" / ".cache").mkdir()
    (root / "train" / "dog" / "notes.txt").write_text("no picture")
    data = open_data(str(root), 32)
    (root / "train" / ".cache").rmdir()
    reference = ImageFolder(str(root / "train"))
    assert data.names == reference.classes
    pictures = data.splits["train"]
    found = [(pictures.name(index), pictures.label(index)) for index in range(len(pictures))]
    assert found == reference.samples


def test_folders_that_cannot_be_used_are_named(tmp_path):
    root = write_folders(tmp_path / "set")
    (root / "val" / "dog").rename(root / "val" / "dgo")
    with pytest.raises(UserError, match="only in train: 'dog'; only in val: 'dgo'"):
        open_data(str(root), 32)
    (root / "val" / "dgo").rename(root / "val" / "dog")
    (root / "train" / "emu").mkdir()
    with pytest.raises(UserError, match="no images in the folders of 'emu'"):
        open_data(str(root), 32)
    with pytest.raises(UserError, match=r"no folder train.*Folders there: cat, dog"):
        open_data(str(root / "val"), 32)
    with pytest.raises(UserError, match="no such folder"):
        open_data(str(tmp_path / "nowhere"), 32)
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(UserError, match="unknown kind of file"):
        open_data(str(tmp_path / "file.txt"), 32)
    with pytest.raises(UserError, match="one class, 'cat'"):
        open_data(str(write_folders(tmp_path / "one", ("cat",))), 32)


def test_pictures_that_cannot_be_read_say_why(tmp_path):
    picture = Image.fromarray(np.full((8, 6, 3), 200, np.uint8))
    picture.save(tmp_path / "good.jpg")
    content = (tmp_path / "good.jpg").read_bytes()
    bad = {"empty.jpg": b"", "text.jpg": b"no picture", "torn.jpg": content[: len(content) // 2]}
    for name, raw in bad.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "folder.jpg").mkdir()
    Image.new("RGB", (5000, 1)).save(tmp_path / "thin.png")
    for name, words in (
        ("empty.jpg", "is empty"),
        ("text.jpg", "not an image"),
        ("torn.jpg", "cannot be read"),
        ("folder.jpg", "is a folder"),
        ("thin.png", "5000 x 1 pixels"),
        ("nowhere.jpg", "No such file"),
    ):
        with pytest.raises(UnreadableImage, match=words):
            read_image(tmp_path / name)
    assert read_image(tmp_path / "good.jpg").size == (6, 8)


def test_pictures_of_other_kinds_become_rgb(tmp_path):
    deep = np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert (np.asarray(read_image(tmp_path / "deep.png"))[..., 0] == deep >> 8).all()
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        Image.new("RGB", (6, 8), (255, 0, 0)).convert(mode).save(tmp_path / f"{mode}.tif")
        assert read_image(tmp_path / f"{mode}.tif").mode == "RGB"
    turned = Image.new("RGB", (6, 8))
    exif = turned.getexif()
    exif[0x0112] = 6  # must be rotated by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (8, 6)


# --- what the loaders give -----------------------------------------------------------------------


def test_batches_are_the_same_however_many_processes_share_them():
    whole = Shares(103, 12, 5, train=True)
    whole.set_epoch(3)
    alone = list(whole)
    assert len(alone) == len(whole) == 96 and len(set(alone)) == 96 and {epoch for epoch, _ in alone} == {3}
    for world in (2, 3, 4):
        parts = [Shares(103, 12, 5, train=True, rank=rank, world=world) for rank in range(world)]
        for part in parts:
            part.set_epoch(3)
        size = 12 // world
        dealt = [list(part) for part in parts]
        for batch in range(8):
            together = [key for keys in dealt for key in keys[batch * size : (batch + 1) * size]]
            assert together == alone[batch * 12 : (batch + 1) * 12]
    whole.set_epoch(4)
    assert [index for _, index in whole] != [index for _, index in alone]
    other = Shares(103, 12, 6, train=True)
    other.set_epoch(3)
    assert list(other) != alone


def test_evaluation_counts_every_picture_once():
    for count, world in ((10, 1), (10, 3), (2, 4)):
        dealt = [list(Shares(count, 4, 0, train=False, rank=rank, world=world)) for rank in range(world)]
        assert len({len(keys) for keys in dealt}) == 1
        indices = [index for keys in dealt for _, index in keys if index >= 0]
        assert sorted(indices) == list(range(count))


def _samples(seed: int = 0) -> Samples:
    pictures = DrawnPictures("train", 40, 10, 32)
    return Samples(pictures, training_transform("crop", 32, HALF, HALF), 32, seed)


def test_augmentation_depends_on_seed_epoch_and_index_only():
    samples = _samples()
    torch.manual_seed(1)
    first = samples[2, 7][0]
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(samples[2, 7][0], first)
    torch.set_rng_state(state)
    drawn = torch.rand(3)
    torch.set_rng_state(state)
    samples[5, 5]
    assert torch.equal(torch.rand(3), drawn)  # the model's random generator is not changed
    assert len({samples[epoch, 7][0].numpy().tobytes() for epoch in range(8)}) > 6
    assert not torch.equal(_samples(1)[2, 7][0], first)
    image, label, index = samples[2, 7]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32 and (label, index) == (7, 7)


def test_workers_give_the_same_batches():
    alone, shared = [], []
    for workers, batches in ((0, alone), (2, shared)):
        shares = Shares(40, 8, 0, train=True)
        loader = make_loader(_samples(), shares, 8, workers, pin=False)
        for epoch in (0, 1):
            shares.set_epoch(epoch)
            batches += list(loader)
    for one, two in zip(alone, shared):
        assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert len(alone) == len(shared) == 10


def test_what_cannot_be_read_counts_nowhere(tmp_path):
    root = write_folders(tmp_path / "set")
    (root / "train" / "cat" / "1.png").write_bytes(b"torn")
    data = open_data(str(root), 16)
    samples = Samples(data.splits["train"], evaluation_transform(16, 1.0, HALF, HALF), 16, 0)
    assert [samples[0, index][1] for index in range(6)] == [0, LEFT_OUT, 0, 1, 1, 1]
    assert samples[0, -1][1:] == (LEFT_OUT, -1) and samples[0, 1][2] == 1


def test_transforms_against_pixels():
    pixels = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    picture = Image.fromarray(pixels)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    found = evaluation_transform(8, 1.0, mean, std)(picture)
    expected = (torch.tensor(pixels[:, 2:10].astype(np.float32) / 255) - torch.tensor(mean)) / torch.tensor(std)
    assert torch.allclose(found, expected.permute(2, 0, 1), atol=1e-6)
    assert evaluation_transform(224, 0.875, mean, std)(picture).shape == (
        3,
        224,
        224,
    )  # smaller ones are enlarged
    plain = training_transform("none", 8, mean, std)(picture)
    assert torch.equal(plain, found)
    flipped = training_transform("crop", 8, mean, std, padding=0, flip=1.0)(picture)
    assert torch.allclose(flipped, found.flip(2))
    assert training_transform("resized-crop", 8, mean, std, color_jitter=0.4)(picture).shape == (3, 8, 8)
