"""detect and val on windows: boxes have the right positions, and each object has one box."""

from __future__ import annotations

import contextlib
import io

import cv2
import numpy as np
import pytest
import torch

from yolov5_ema.data.slicing import windows
from yolov5_ema.errors import UserError
from yolov5_ema.scripts import sliced
from yolov5_ema.scripts.sliced import sliced_inference
from yolov5_ema.scripts.window_views import CUT, SMALLER, WHOLE, Origin, fits_a_window, is_inside, merge

SIZE, OVERLAP, IMGSZ = 96, 0.25, 64


@pytest.fixture(scope="module")
def big_set(tiny_set, tmp_path_factory):
    """The tiny set's images in blocks of two by two, and one that is no larger than a window."""
    folder = tmp_path_factory.mktemp("big")
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    tiles = sorted((tiny_set.parent / "images").rglob("*.jpg"))[:6]
    for index in range(3):
        width, height = (160, 120) if index else (96, 96)
        picture = np.tile(cv2.imread(str(tiles[index])), (2, 2, 1))[:height, :width]
        cv2.imwrite(str(folder / f"images/val/{index}.png"), picture)
        (folder / f"labels/val/{index}.txt").write_text("0 0.3 0.4 0.2 0.25\n1 0.6 0.6 0.1 0.2\n")
    file = folder / "big.yaml"
    file.write_text(f"path: {folder}\ntrain: images/val\nval: images/val\nnc: 3\nnames: [disc, box, cross]\n")
    return file


def quietly(run, **options):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return run(**options)


def detected(engine, weights, source, project, size=None, **options):
    """The rows (n, 6) of class, x, y, w, h, confidence that detect writes for one image."""
    module = engine.module("detect")
    context = sliced_inference(engine, "detect", size, OVERLAP) if size else contextlib.nullcontext()
    settings = {
        "conf_thres": 0.0001,
        "iou_thres": 0.45,
        "imgsz": [IMGSZ, IMGSZ],
        "device": "cpu",
        "nosave": True,
    }
    with context:
        quietly(
            module.run,
            **{**settings, "weights": str(weights), "source": str(source), "project": project, **options},
            save_txt=True,
            save_conf=True,
        )
    files = sorted(project.rglob("*.txt"))
    return np.loadtxt(files[-1], ndmin=2) if files else np.zeros((0, 6))


def recorded(engine, script, run, monkeypatch):
    """The inputs of YOLOv5's suppression in each call, (rows, 5 + classes), while `run` runs."""
    module = engine.module(script)
    seen = []

    def note(prediction, conf_thres=0.25, iou_thres=0.45, classes=None, agnostic=False, labels=(), max_det=300, **_):
        seen.append(prediction.clone().reshape(-1, prediction.shape[-1]))
        return [torch.zeros((0, 6))]

    monkeypatch.setattr(module, "non_max_suppression", note)
    with sliced_inference(engine, script, SIZE, OVERLAP):
        run(module)
    return seen


def scaling(general):
    """Scale to native pixels; in v7.0 the function has another name."""
    return general.scale_boxes if hasattr(general, "scale_boxes") else general.scale_coords


def by_hand(engine, weights, file, conf):
    """The rows of the whole image and of every window in native pixels, by YOLOv5's own functions, window by window."""
    general = engine.module("utils.general")
    letterbox = engine.module("utils.augmentations").letterbox
    experimental = engine.module("models.experimental")
    model = quietly(experimental.attempt_load, weights=str(weights)).eval()
    picture = cv2.imread(str(file))
    height, width = picture.shape[:2]
    rows = []
    for left, top, right, bottom in windows(width, height, SIZE, OVERLAP):
        image = letterbox(picture[top:bottom, left:right], IMGSZ, stride=32, auto=True)[0]
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[::-1])).float()[None] / 255
        with torch.no_grad():
            found = model(tensor)[0][0]
        found = found[found[:, 4] > conf]
        boxes = general.xywh2xyxy(found[:, :4])
        native = scaling(general)(image.shape[:2], boxes, (bottom - top, right - left))
        native += torch.tensor([left, top, left, top])
        rows.append(torch.cat([native, found[:, 4:]], 1))
    return torch.cat(rows)


def test_rows_of_windows_are_those_of_the_model_moved(engine, trained, big_set, tmp_path, monkeypatch):
    file = big_set.parent / "images/val/1.png"

    def run(module):
        quietly(
            module.run,
            weights=str(trained),
            source=str(file),
            imgsz=[IMGSZ, IMGSZ],
            conf_thres=0.002,
            device="cpu",
            project=tmp_path,
        )

    seen = recorded(engine, "detect", run, monkeypatch)
    general = engine.module("utils.general")
    rows = torch.cat(seen)
    native = scaling(general)((64, 64), general.xywh2xyxy(rows[:, :4]), (120, 160))  # 160 x 120 in 64 x 64
    found = torch.cat([native, rows[:, 4:]], 1).numpy()
    expected = by_hand(engine, trained, file, 0.002).numpy()
    assert len(expected) > 20 and len(found) > len(expected)  # plus the rows of the whole image
    expected[:, :4] = expected[:, :4].clip(0, (160, 120, 160, 120))
    for row in expected:
        distance = np.abs(found - row).max(axis=1)
        assert distance.min() < 0.01


def test_val_moves_boxes_as_its_own_scaling_undoes(engine, trained, big_set, tmp_path, monkeypatch):
    def run(module):
        check = {
            "data": str(big_set),
            "weights": str(trained),
            "imgsz": IMGSZ,
            "batch_size": 3,
            "plots": False,
        }
        quietly(module.run, **check, conf_thres=0.002, device="cpu", project=tmp_path)

    shapes = []
    original = sliced.Frame.gain_and_pad

    def noted(self, height, width):
        shapes.append((self.shape, self.ratio_pad, (height, width)))
        return original(self, height, width)

    monkeypatch.setattr(sliced.Frame, "gain_and_pad", noted)
    seen = torch.cat(recorded(engine, "val", run, monkeypatch))
    (_, ratio_pad, letterboxed), *_ = [shape for shape in shapes if shape[0] == (120, 160)]
    general = engine.module("utils.general")
    native = scaling(general)(letterboxed, general.xywh2xyxy(seen[:, :4]), (120, 160), ratio_pad)
    found = torch.cat([native, seen[:, 4:]], 1).numpy()
    for name in ("1", "2"):
        expected = by_hand(engine, trained, big_set.parent / f"images/val/{name}.png", 0.002).numpy()
        assert len(expected) > 20
        for row in expected:
            assert np.abs(found - row).max(axis=1).min() < 0.01


@pytest.mark.parametrize("size", [96, 200])
def test_an_image_no_larger_than_a_window_is_as_without(engine, trained, big_set, tmp_path, size):
    file = big_set.parent / "images/val/0.png"
    plain = detected(engine, trained, file, tmp_path / "plain")
    assert len(plain) > 3
    np.testing.assert_array_equal(detected(engine, trained, file, tmp_path / "sliced", size), plain)


def test_val_of_such_images_is_as_without(engine, trained, tiny_set, tmp_path):
    module = engine.module("val")
    options = {
        "data": str(tiny_set),
        "weights": str(trained),
        "imgsz": IMGSZ,
        "batch_size": 2,
        "device": "cpu",
    }
    plain = quietly(module.run, **options, plots=False, project=tmp_path)
    with sliced_inference(engine, "val", 96, OVERLAP):
        again = quietly(module.run, **options, plots=False, project=tmp_path)
    assert plain[0] == again[0] and (plain[1] == again[1]).all()


def test_a_model_and_a_loader_of_the_callers_own(engine, trained, big_set, tmp_path):
    """As train calls val: the figures equal those with the file's name, and no hook remains on the model."""
    module = engine.module("val")
    options = {"imgsz": IMGSZ, "batch_size": 3, "plots": False, "conf_thres": 0.0001, "half": False}
    model = quietly(module.attempt_load if hasattr(module, "attempt_load") else _loader(engine), weights=str(trained))
    loader = quietly(
        module.create_dataloader,
        path=str(big_set.parent / "images/val"),
        imgsz=IMGSZ,
        batch_size=3,
        stride=32,
        pad=0.5,
        rect=True,
    )[0]
    with sliced_inference(engine, "val", SIZE, OVERLAP):
        by_name = quietly(
            module.run, data=str(big_set), weights=str(trained), device="cpu", project=tmp_path, **options
        )
        data = {"nc": 3, "val": "", "names": ["disc", "box", "cross"]}
        own = quietly(module.run, data=data, model=model, dataloader=loader, save_dir=tmp_path, **options)
    np.testing.assert_allclose(own[0][:4], by_name[0][:4], atol=1e-6)
    assert not model._forward_hooks


def _loader(engine):
    return engine.module("models.experimental").attempt_load


def test_everything_is_put_back(engine, trained, big_set, tmp_path):
    for script in ("detect", "val"):
        module = engine.module(script)
        before = dict(vars(module))
        with sliced_inference(engine, script, SIZE, OVERLAP):
            assert module.run is not before["run"]
        assert {name: value for name, value in vars(module).items() if before.get(name) is not value} == {}


def test_max_det_classes_and_confidence_hold(engine, trained, big_set, tmp_path):
    file = big_set.parent / "images/val/1.png"
    every = detected(engine, trained, file, tmp_path / "a", SIZE)
    assert len(every) > 8
    few = detected(engine, trained, file, tmp_path / "b", SIZE, max_det=5)
    assert len(few) == 5 and few[:, 5].min() >= np.sort(every[:, 5])[-5] - 1e-6
    kind = int(every[0, 0])
    one_class = detected(engine, trained, file, tmp_path / "c", SIZE, classes=[kind])
    assert len(one_class) > 0 and set(one_class[:, 0]) == {kind}
    sure = detected(engine, trained, file, tmp_path / "d", SIZE, conf_thres=float(np.median(every[:, 5])))
    assert 0 < len(sure) < len(every)
    augmented = detected(engine, trained, file, tmp_path / "e", SIZE, augment=True)
    assert len(augmented) > 0 and not np.array_equal(augmented, every)
    agnostic = detected(engine, trained, file, tmp_path / "f", SIZE, agnostic_nms=True)
    assert 0 < len(agnostic) <= len(every)


def test_videos_are_sliced_frame_by_frame(engine, trained, big_set, tmp_path):
    picture = cv2.imread(str(big_set.parent / "images/val/1.png"))
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (160, 120))
    for _ in range(3):
        writer.write(picture)
    writer.release()
    detected(engine, trained, tmp_path / "v.avi", tmp_path / "runs", SIZE)
    frames = sorted((tmp_path / "runs").rglob("*.txt"))
    assert [frame.stem for frame in frames] == ["v_1", "v_2", "v_3"]
    sure = [np.sort(np.loadtxt(frame)[:, 5])[-8:] for frame in frames]
    np.testing.assert_allclose(sure[1:], [sure[0]] * 2, atol=1e-5)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def origin(sources, ranks):
    return Origin(torch.tensor(sources), torch.tensor(ranks))


def test_an_object_in_the_overlap_is_one_box():
    found = boxes([10, 10, 30, 30, 0.8, 0], [11, 10, 31, 31, 0.9, 0], [9, 9, 32, 33, 0.95, 0])
    kept = merge(found, origin([1, 2, 0], [WHOLE, WHOLE, SMALLER]))
    np.testing.assert_allclose(kept, found[1:2])  # from a window, not the whole image


def test_a_cut_box_gives_way_however_sure_it_is():
    found = boxes([0, 0, 50, 20, 0.9, 0], [0, 0, 100, 20, 0.3, 0])
    for rank in (WHOLE, SMALLER):
        kept = merge(found, origin([1, 2], [CUT, rank]))
        np.testing.assert_allclose(kept, found[1:])
    np.testing.assert_allclose(merge(found, origin([1, 2], [CUT, CUT])), found[:1])


def test_a_child_before_a_grown_up_stays():
    """sahi's merging takes them for one object: the small box lies in the large one of its class."""
    batched_nms = pytest.importorskip("sahi.postprocess.combine").batched_nms
    found = boxes([0, 0, 40, 100, 0.9, 0], [10, 60, 25, 100, 0.6, 0])
    np.testing.assert_allclose(merge(found, origin([1, 1], [WHOLE, WHOLE])), found)
    assert list(batched_nms(found.double().numpy(), "IOS", 0.5)) == [0]


def test_a_large_object_with_small_ones_before_it_stays():
    """Another window saw the small ones, with more confidence: they and the large one are different objects."""
    found = boxes([0, 0, 200, 200, 0.5, 0], [20, 20, 50, 60, 0.9, 0], [100, 90, 140, 150, 0.8, 0])
    kept = merge(found, origin([0, 1, 2], [WHOLE, WHOLE, WHOLE]))
    np.testing.assert_allclose(kept, found[[1, 2, 0]])


def test_the_whole_images_coarse_box_of_what_a_window_shows_goes():
    """The IoU is only 0.2, but three quarters of it lie in the better view."""
    found = boxes([10, 10, 50, 50, 0.5, 0], [10, 10, 26, 30, 0.9, 0], [14, 14, 30, 30, 0.95, 0])
    kept = merge(found, origin([1, 0, 0], [WHOLE, SMALLER, CUT]))
    np.testing.assert_allclose(kept, found[:1])


def test_classes_are_apart_unless_agnostic():
    found = boxes([0, 0, 20, 20, 0.9, 0], [0, 0, 20, 20, 0.8, 1])
    sources = origin([1, 2], [WHOLE, WHOLE])
    assert len(merge(found, sources)) == 2
    np.testing.assert_allclose(merge(found, sources, agnostic=True), found[:1])


def test_merging_nothing_and_boxes_of_no_area():
    assert merge(torch.zeros((0, 6)), origin([], [])).shape == (0, 6)
    found = boxes([5, 5, 5, 5, 0.5, 0], [50, 50, 60, 60, 0.4, 0])
    assert merge(found, origin([1, 2], [WHOLE, WHOLE])).shape[1] == 6


def test_windows_that_cut_and_windows_that_show_it_larger():
    window, shape = (100, 0, 200, 100), (100, 400)
    rows = boxes([100, 20, 130, 40], [110, 0, 130, 40], [150, 20, 199, 100], [120, 10, 190, 100])
    assert is_inside(rows, window, shape).tolist() == [False, True, False, True]
    cut = windows(400, 100, 100, 0.2)
    small = boxes([10, 10, 50, 50], [10, 10, 90, 50], [60, 10, 99.5, 40], [310, 2, 345, 30])
    assert fits_a_window(small, cut, shape).tolist() == [True, False, False, True]
    assert not fits_a_window(small, [(0, 0, 400, 100)], shape).any()


def test_what_cannot_be_sliced(engine, trained, big_set, tmp_path):
    for size, overlap in ((16, 0.2), (0, 0.2), (640, 1.0), (640, -0.1)):
        with (
            pytest.raises(UserError, match=r"--slice|--overlap"),
            sliced_inference(engine, "val", size, overlap),
        ):
            pass
    with pytest.raises(UserError, match=r"train of .* cannot be sliced"), sliced_inference(engine, "train"):
        pass
    if engine.version.startswith("6.0"):
        module = engine.module("detect")
        for weights in ("best.tflite", "best.torchscript.pt", "saved_model"):
            with pytest.raises(UserError, match=weights), sliced_inference(engine, "detect"):
                module.run(weights=weights, source=str(big_set), project=tmp_path / "runs")
        assert not (tmp_path / "runs").exists()
