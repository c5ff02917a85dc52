"""``detect`` on files that are damaged or unusual: which are skipped, what is detected in the others, the messages."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import laid_aside, run_cli
from PIL import Image

import yolov5_ema
from yolov5_ema.cli.main import main
from yolov5_ema.resources import models_dir

pytestmark = [
    pytest.mark.usefixtures("own_folder"),
    pytest.mark.skipif(sys.platform == "win32", reason="names and links that Windows has not"),
]

FLAGS = ("--img", 64, "--conf-thres", 1e-3, "--max-det", 5, "--save-txt", "--save-conf")
NO_IMAGE = "is not an image that OpenCV reads, or it is damaged"
NO_VIDEO = "is not a video that OpenCV opens, or it is damaged"
CUT = "is cut off; the missing part was read as grey"
THIN = "is 20000 x 10 pixels: scaled to --img 64, its shorter side has no pixel left"


@pytest.fixture(scope="module")
def weights(tiny_set, tmp_path_factory) -> Path:
    """A detector with EMA, not trained, whose boxes depend on the image; after a little training they hardly would."""
    file = tmp_path_factory.mktemp("weights") / "best.pt"
    images = [cv2.imread(str(path))[:64, :64] for path in (tiny_set.parent / "images/train").glob("*.jpg")]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    with yolov5_ema.installed() as engine, torch.random.fork_rng():
        torch.manual_seed(0)
        yolo = engine.module("models.yolo")
        model = yolo.Model(str(models_dir() / "yolov5n-ema.yaml"), nc=3)
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None  # only what it sees in the images below
        with torch.no_grad():
            model.train()(batch)
            for layer in model.model[-1].m:
                layer.weight.normal_(std=0.1)
        model.names = ["disc", "box", "cross"]
        torch.save({"model": model.eval(), "epoch": -1, "optimizer": None}, file)
    return file


@pytest.fixture(scope="module")
def picture(tiny_set) -> np.ndarray:
    """A picture of the tiny set, shape (64, 96, 3) in BGR."""
    return cv2.imread(str(tiny_set.parent / "images/test/test0.jpg"))[:64]


def write_good(folder: Path, picture: np.ndarray) -> None:
    """The same picture in many formats, and others; each decodes without loss, or is a JPEG."""
    rgb = Image.fromarray(picture[..., ::-1])
    exif = Image.Exif()
    exif[0x0112] = 6  # must be rotated by 90 degrees, clockwise
    cv2.imwrite(str(folder / "plain.png"), picture)
    cv2.imwrite(str(folder / "deep.png"), picture.astype(np.uint16) * 256 + 128)
    Image.merge("RGBA", [*rgb.split(), Image.linear_gradient("L").resize(rgb.size)]).save(folder / "alpha.png")
    rgb.transpose(Image.ROTATE_90).save(folder / "turned.png", exif=exif)
    rgb.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    rgb.save(folder / "camera.mpo", format="MPO", save_all=True, append_images=[rgb.rotate(180)])
    cv2.imwrite(str(folder / "one.png"), picture[:1, :1])
    cv2.imwrite(str(folder / "wide.png"), np.tile(picture, (5, 209, 1))[:, :20_000])
    cv2.imwrite(str(folder / "a [1].png"), picture)
    cv2.imwrite(str(folder / "zwölf\nzeilen.png"), picture)
    cv2.imwrite(str(folder / "plain.bmp"), picture[:, ::-1])  # comes first, and has the same stem
    write_video(folder / "whole.mp4", picture, 3, "mp4v")


def write_bad(folder: Path, picture: np.ndarray) -> dict[str, str]:
    """Files that cannot be read completely, and the reasons by their names."""
    cv2.imwrite(str(folder / "cut.jpg"), picture)
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.jpg")
    cv2.imwrite(str(folder / "thin.png"), np.zeros((10, 20_000, 3), np.uint8))
    (folder / "huge.tif").write_bytes(b"P5 40000 40000 255\n")  # by its content it is a PGM
    (folder / "broken.mp4").write_text("this is no video")
    os.mkfifo(folder / "pipe.mp4")
    write_video(folder / "early.avi", picture, 20, "MJPG")
    whole = (folder / "early.avi").read_bytes()
    (folder / "early.avi").write_bytes(whole[: len(whole) * 3 // 4])
    problems = {
        "cut.jpg": CUT,
        "text.jpg": NO_IMAGE,
        "empty.jpg": "is empty",
        "folder.jpg": "is a folder",
        "dangling.jpg": "cannot be read: No such file or directory",
        "pipe.jpg": "is not a regular file",
        "thin.png": THIN,
        "huge.tif": "has more pixels than OpenCV reads (pixels <= CV_IO_MAX_IMAGE_PIXELS)",
        "broken.mp4": NO_VIDEO,
        "pipe.mp4": "is not a regular file",
        "early.avi": f"ends at frame {frames_of(folder / 'early.avi')} of 20",
    }
    if sys.platform == "linux":
        with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as stream:
            stream.write((folder / "cut.jpg").read_bytes())
        problems["caf\\udce9.jpg"] = "has a name that is not UTF-8, which OpenCV cannot open; rename it"
    return problems


def write_video(file: Path, picture: np.ndarray, frames: int, fourcc: str) -> None:
    height, width = picture.shape[:2]
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*fourcc), 5, (width, height))
    for index in range(frames):
        writer.write(np.roll(picture, 10 * index, axis=1))
    writer.release()


def frames_of(video: Path) -> int:
    capture, count = cv2.VideoCapture(str(video)), 0
    while capture.read()[0]:
        count += 1
    return count


def report_of(stderr: str, command: str = "detect") -> tuple[str, dict[str, str]]:
    """The count in the title of the final report, and the reasons by file name."""
    title, *lines = stderr.split(f"\n{command}: ")[-1].splitlines()
    return title, {Path(name.strip()).name: reason for name, reason in (line.split(": ", 1) for line in lines)}


def labels_of(run: Path) -> dict[str, np.ndarray]:
    return {file.stem: np.loadtxt(file, ndmin=2) for file in (run / "labels").glob("*.txt")}


def test_a_folder_with_everything(weights, picture, own_folder):
    for name in ("all", "good"):
        (own_folder / name).mkdir()
        write_good(own_folder / name, picture)
    problems = write_bad(own_folder / "all", picture)
    cut = frames_of(own_folder / "all/early.avi")
    assert 2 <= cut < 18
    done = run_cli("detect", "--weights", weights, "--source", "all", "--save-crop", *FLAGS, cwd=own_folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    title, reasons = report_of(done.stderr)
    assert title == f"{len(problems)} of {12 + len(problems)} files could not be used in full:"
    assert reasons == problems
    assert "their results have other names:\n  all/plain.png: plain-2.png\n" in done.stderr

    run = own_folder / "runs/detect/exp"
    labels = labels_of(run)
    detected = {"deep", "alpha", "turned", "cmyk", "camera", "one", "wide", "a [1]", "zwölf\nzeilen", "cut"}
    frames = {f"whole_{n}" for n in (1, 2, 3)} | {f"early_{n + 1}" for n in range(cut)}
    assert set(labels) == detected | {"plain", "plain-2"} | frames
    for same in ("deep", "alpha", "turned", "a [1]", "zwölf\nzeilen"):
        assert np.array_equal(labels[same], labels["plain-2"]), same
    for other in ("plain", "one", "wide", "whole_2"):
        assert not np.allclose(labels[other], labels["plain-2"], atol=0.01), other
    assert frames_of(run / "whole.mp4") == 3 and frames_of(run / "early.avi") == cut
    shapes = {"turned.png": (64, 96, 3), "one.png": (1, 1, 3), "wide.png": (320, 20_000, 3)}
    for name, shape in {**shapes, "camera.mpo.png": (64, 96, 3), "cmyk.jpg": (64, 96, 3)}.items():
        assert cv2.imread(str(run / name)).shape == shape, name
    drawn = {name: cv2.imread(str(run / name)) for name in ("plain-2.png", "deep.png", "turned.png", "alpha.png")}
    assert all(np.array_equal(drawn["plain-2.png"], other) for other in drawn.values())
    assert (drawn["plain-2.png"] != picture).any()

    with yolov5_ema.installed():
        flags = ["detect", "--weights", weights, "--source", "good", "--name", "good", *FLAGS]
        assert main([str(flag) for flag in flags]) == 0
    alone = labels_of(own_folder / "runs/detect/good")
    assert set(alone) == set(labels) - {"cut"} - {f"early_{n + 1}" for n in range(cut)}
    assert all(np.array_equal(alone[name], labels[name]) for name in alone)


@pytest.fixture
def detect(weights, capsys):
    """Run detect in this process; returns its exit code and what it printed on stderr."""

    def run(*flags: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(flag) for flag in ("detect", "--weights", weights, *FLAGS, *flags)])
        return code, capsys.readouterr().err

    with yolov5_ema.installed():
        yield run


def test_slices_are_of_what_can_be_read(detect, picture, own_folder):
    for name in ("all", "good"):
        (own_folder / name).mkdir()
        cv2.imwrite(str(own_folder / name / "large.png"), np.tile(picture, (3, 2, 1)))
        write_video(own_folder / name / "whole.mp4", picture, 2, "mp4v")
    cv2.imwrite(str(own_folder / "all/thin.png"), np.zeros((10, 20_000, 3), np.uint8))
    (own_folder / "all/aaa.jpg").write_text("this is no picture")
    assert detect("--source", "good", "--slice", 64, "--name", "good") == (0, "")
    code, said = detect("--source", "all", "--slice", 64, "--name", "all", "--nosave")
    assert code == 1 and report_of("\n" + said)[1] == {"aaa.jpg": NO_IMAGE, "thin.png": THIN}
    good, both = (labels_of(own_folder / "runs/detect" / name) for name in ("good", "all"))
    assert set(good) == set(both) == {"large", "whole_1", "whole_2"}
    assert all(np.array_equal(good[name], both[name]) for name in good)
    assert good["large"][:, 3:5].max(axis=1).min() < 0.4  # of a window, not of the whole image
    assert not (own_folder / "runs/detect/all/large.png").exists()


def test_globs_and_brackets(detect, picture, own_folder, monkeypatch):
    folder = own_folder / "data [1]" / "im[a]ges"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "good.png"), picture)
    (folder / "bad.png").write_text("this is no picture")
    monkeypatch.chdir(folder.parent)
    for source in ("im[a]ges", "*/*.png"):
        code, said = detect("--source", source)
        assert code == 1 and report_of("\n" + said) == (
            "1 of 2 files could not be used in full:",
            {"bad.png": NO_IMAGE},
        )
    assert detect("--source", "im[a]ges/good.png") == (0, "")
    assert len(list(Path("runs/detect").glob("*/labels/good.txt"))) == 3


@pytest.mark.slow
def test_nothing_that_can_be_read(refused, weights, picture, own_folder):
    problems = write_bad(own_folder, picture)
    for name in set(problems) - {"text.jpg", "thin.png", "broken.mp4"}:
        path = own_folder / name
        if path.is_dir():
            path.rmdir()
        elif os.path.lexists(path):
            path.unlink()
    (own_folder / "only").mkdir()
    for name in ("text.jpg", "thin.png", "broken.mp4"):
        shutil.move(str(own_folder / name), own_folder / "only" / name)
    given = ("detect", "--weights", weights, "--img", 64, "--save-txt")
    said = refused(*given, "--source", "only")
    assert "--source only: none of its 3 files can be read:" in said
    for name, problem in {"text.jpg": NO_IMAGE, "thin.png": THIN, "broken.mp4": NO_VIDEO}.items():
        assert f"  only/{name}: {problem}\n" in said
        alone = refused(*given, "--source", f"only/{name}")
        assert f"yolov5-ema: error: --source only/{name}: {problem}\n" in alone


@pytest.mark.parametrize(
    "version",
    ["7.0.14", *(pytest.param(version, marks=pytest.mark.slow) for version in ("6.0.7", "6.1.9", "6.2.3"))],
)
def test_other_releases(version, weights, picture, own_folder):
    (own_folder / "all").mkdir()
    write_good(own_folder / "all", picture)
    problems = write_bad(own_folder / "all", picture)
    strides = ("--vid-stride", 2) if version >= "6.2" else ()
    flags = ("--weights", weights, "--source", "all", *FLAGS, *strides)
    done = run_cli("detect", *flags, "--yolov5", laid_aside(version), cwd=own_folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert report_of(done.stderr)[1] == problems
    labels = labels_of(own_folder / "runs/detect/exp")
    for same in ("deep", "alpha", "turned", "a [1]"):
        assert np.array_equal(labels[same], labels["plain-2"]), same
    whole, early = ([name for name in labels if name.startswith(f"{stem}_")] for stem in ("whole", "early"))
    stride = 2 if strides else 1
    assert len(whole) == 3 // stride and len(early) == frames_of(own_folder / "all/early.avi") // stride
    assert cv2.imread(str(own_folder / "runs/detect/exp/camera.mpo.png")).shape == (64, 96, 3)


@pytest.mark.slow
def test_a_list_of_files(weights, picture, own_folder):
    """v6.2 and later accept one, but stop at names with spaces, and at the first missing file."""
    cv2.imwrite("with space.png", picture)
    Path("list.txt").write_text("with space.png\nmissing.png\n")
    done = run_cli(
        *("detect", "--weights", weights, "--source", "list.txt", *FLAGS, "--yolov5", laid_aside("7.0.14")),
        cwd=own_folder,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert report_of(done.stderr) == (
        "1 of 2 files could not be used in full:",
        {"missing.png": "is not there"},
    )
    assert set(labels_of(own_folder / "runs/detect/exp")) == {"with space"}
