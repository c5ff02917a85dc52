"""Maps of detectors at a known place, the score, and detections as YOLOv5 makes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import randomise
from red_detector import red_picture, written_red_detector

from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.detecting.protocol import TooThinError
from yolov5_ema.errors import UserError
from yolov5_ema.explain.detectors import Detector, Options, best_candidate, kept_by_suppression
from yolov5_ema.explain.inside import share_inside
from yolov5_ema.explain.layers import choose
from yolov5_ema.explain.looks import Area, Look, maps_of

pytest.importorskip("captum")

SEED = 0  # a seed whose Grad-CAM is not 0 everywhere


@pytest.fixture(scope="module")
def red_detector(tmp_path_factory):
    with written_red_detector(tmp_path_factory.mktemp("red")) as file:
        yield file


def maps(detector, look):
    (layers,) = choose([detector.candidates])
    return maps_of(detector, look, layers)


def test_both_maps_point_at_the_object_that_the_weights_look_for(engine, red_detector):
    """Grad-CAM of a head that is linear in one channel with a positive weight is that channel, where it is not 0."""
    detector = Detector(engine, red_detector, Options(imgsz=128))
    look = detector.look(red_picture())
    assert {detector.names[number] for number in look.found.class_id} == {"red"} and look.details == [
        f"red: {len(look.found)}, the best 1.00"
    ]
    for left, top, right, bottom in look.found.xyxy:
        x, y = (left + right) / 2, (top + bottom) / 2
        assert 72 <= x <= 104 and 24 <= y <= 56
    (found,) = maps(detector, look)
    assert (found.layer.name, found.layer.block, found.layer.stride) == ("1", "Spotlight", 8)
    square = np.zeros((128, 128), bool)
    square[24:56, 72:104] = True
    around = np.zeros((128, 128), bool)
    around[20:60, 68:108] = True  # half a cell more, because the map is interpolated
    assert share_inside(found.cam, around) == pytest.approx(1, abs=1e-5) and share_inside(found.cam, square) > 0.75
    one, low = 1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))  # of a red cell, and of one that is not red
    np.testing.assert_allclose(found.gate[square], one, rtol=1e-5)
    assert np.isnan(found.gate[0, 0])  # black: there is no input
    # blue goes in, but the gate lets no more of it through
    np.testing.assert_allclose(found.gate[88:120, 16:48], low, rtol=1e-4)
    assert found.gate_range == pytest.approx((low, (one + low) / 2, one), rel=1e-4)


def test_maps_lie_on_the_picture_and_not_on_its_padding(engine, red_detector):
    """A picture of 200 x 104 becomes 128 x 67 in 128 x 96: 14 rows of padding above."""
    detector = Detector(engine, red_detector, Options(imgsz=128))
    look = detector.look(red_picture(200, 104))
    assert look.batch.shape == (1, 3, 96, 128) and look.area == Area(0, 14, 128, 67)
    assert look.picture.shape == (67, 128, 3)
    red = (look.picture[..., 0] > 200) & (look.picture[..., 2] < 50)
    assert red[17:35, 47:66].all() and red.sum() < 500
    (found,) = maps(detector, look)
    assert found.cam.shape == found.gate.shape == (67, 128)
    middle = np.argwhere(found.cam > 0.5 * found.cam.max()).mean(axis=0)
    assert middle == pytest.approx([25.8, 56.3], abs=4)
    for left, top, right, bottom in look.found.xyxy:
        assert 0 <= left < right <= 128 and 0 <= top < bottom <= 67


def test_a_chosen_class_is_what_is_explained(engine, red_detector):
    blue = Detector(engine, red_detector, Options(imgsz=128, classes=("blue",)))
    look = blue.look(red_picture())
    assert not len(look.found) and "best candidate: blue 0.00" in look.words
    assert (
        Detector(engine, red_detector, Options(imgsz=128, classes=("0",))).look(red_picture()).words.endswith(" of red")
    )
    with pytest.raises(UserError, match=r"--classes green: .*red\.pt knows the classes red, blue \(0 to 1\)"):
        Detector(engine, red_detector, Options(classes=("green",)))


def test_the_score_is_the_sum_over_detections(engine, red_detector):
    look = Detector(engine, red_detector, Options(imgsz=128)).look(red_picture())
    total = look.score(look.batch).item()
    assert total == pytest.approx(look.found.confidence.sum(), rel=1e-5) and total > 0.9
    assert look.score(look.batch.repeat(2, 1, 1, 1)).tolist() == pytest.approx([total, total])


def test_without_a_detection_the_best_candidate_is_explained(engine, red_detector):
    look = Detector(engine, red_detector, Options(imgsz=128)).look(np.zeros((128, 128, 3), np.uint8))
    assert not len(look.found) and look.words.startswith("no detection; Grad-CAM is of the best candidate: red 0.00")
    assert look.score(look.batch).shape == (1,)


def test_a_picture_of_which_nothing_is_left(engine, red_detector):
    with pytest.raises(TooThinError, match="2000 x 1 pixels leave nothing when scaled to 128"):
        Detector(engine, red_detector, Options(imgsz=128)).look(np.zeros((1, 2000, 3), np.uint8))


@pytest.mark.parametrize("classes", [(), (1,)])
def test_surviving_candidates_are_those_of_yolov5(engine, classes):
    """Boxes, scores and classes equal those of `non_max_suppression`, in its order."""
    general = engine.module("utils.general")
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        boxes = torch.rand(400, 8, generator=generator)
        boxes[:, :4] *= torch.tensor([300.0, 300, 90, 90])
        theirs = general.non_max_suppression(boxes[None].clone(), 0.25, 0.45, list(classes) or None, max_det=40)[0]
        kept = kept_by_suppression(boxes, 0.25, 0.45, 40, classes)
        assert len(kept) == len(theirs) > 10
        rows, numbers = kept.unbind(1)
        assert torch.equal(numbers, theirs[:, 5].long())
        torch.testing.assert_close(boxes[rows, 4] * boxes[rows, 5 + numbers], theirs[:, 4])
        torch.testing.assert_close(boxes[rows, 0], (theirs[:, 0] + theirs[:, 2]) / 2, rtol=1e-5, atol=1e-3)


def test_best_candidate():
    boxes = torch.tensor([[0, 0, 1, 1, 0.5, 0.9, 0.1], [0, 0, 1, 1, 0.4, 0.2, 0.8]])
    assert best_candidate(boxes).tolist() == [[0, 0]] and best_candidate(boxes, [1]).tolist() == [[1, 1]]


@pytest.fixture(scope="module")
def random_detector(engine, tmp_path_factory):
    """A checkpoint of yolov5n with EMA and random weights."""
    from yolov5.models.yolo import Model

    torch.manual_seed(SEED)
    model = Model(build_cfg(size="n", block="EMA", nc=3)).eval()
    for part in model.model[-1].m:
        randomise(part, SEED)
    file = tmp_path_factory.mktemp("random") / "ema.pt"
    checkpoints.save_checkpoint({"model": model, "ema": None, "epoch": -1}, file, engine=engine)
    return file


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)


def test_grad_cam_of_yolov5s_own_model_by_plain_autograd(engine, random_detector):
    """Row by row as in YOLOv5's forward, with the score from its raw output and the gradient by autograd."""
    detector = Detector(engine, random_detector, Options(imgsz=96))
    look = detector.look(noise())
    assert len(look.found) > 3
    (layers,) = choose([detector.candidates])
    for layer, found in zip(layers, maps_of(detector, look, layers)):
        expected = torch.from_numpy(by_autograd(detector, look, int(layer.name)))
        wide = torch.nn.functional.interpolate(expected[None, None], look.batch.shape[2:], mode="bilinear")[0, 0]
        assert found.cam.max() > 0
        np.testing.assert_allclose(found.cam, wide.numpy(), rtol=1e-4, atol=1e-5 * found.cam.max())


def by_autograd(detector: Detector, look: Look, row: int) -> np.ndarray:
    outputs: list[torch.Tensor] = []
    x = look.batch.clone().requires_grad_()
    for module in detector.model.model:
        sources = [module.f] if isinstance(module.f, int) else list(module.f)
        taken = [x if source == -1 else outputs[source] for source in sources]
        x = module(taken[0] if isinstance(module.f, int) else taken)
        outputs.append(x)
    raw = torch.cat([one.reshape(1, -1, 8) for one in x[1]], dim=1)[0]  # (n, 5 + 3)
    scores = raw[:, 4:5].sigmoid() * raw[:, 5:].sigmoid()
    with torch.no_grad():
        decoded = detector.model(look.batch)[0][0]
    kept = kept_by_suppression(decoded, 0.25, 0.45, 1000)
    score = sum(scores[number, cls] for number, cls in kept.tolist())
    (gradient,) = torch.autograd.grad(score, outputs[row])
    alpha = gradient[0].flatten(1).mean(1)  # (C,)
    return (alpha[:, None, None] * outputs[row][0]).sum(0).clamp(min=0).detach().numpy()


def test_values_that_are_not_finite_are_an_error(engine, random_detector, tmp_path):
    checkpoint = checkpoints.load_checkpoint(random_detector, engine=engine)
    with torch.no_grad():
        checkpoint["model"].model[-1].m[0].bias[4] = float("nan")
    checkpoints.save_checkpoint(checkpoint, tmp_path / "nan.pt", engine=engine)
    with pytest.raises(UserError, match=r"nan\.pt gives values that are not finite"):
        Detector(engine, tmp_path / "nan.pt", Options(imgsz=96)).look(noise())


def test_files_of_other_kinds_are_named_as_what_they_are(engine, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.pt")
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "states.pt")
    (tmp_path / "junk.pt").write_bytes(b"hello")
    messages = {
        "state.pt": "is a state dict: tensors without a model",
        "states.pt": "is a state dict under the key 'model'",
        "junk.pt": "is not a PyTorch checkpoint",
        "none.pt": "weights not found",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            Detector(engine, tmp_path / name, Options())


def test_a_checkpoint_of_ultralytics_is_named_as_one(engine, tmp_path):
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    torch.save({"model": tasks.DetectionModel("yolov8n.yaml", nc=2, verbose=False)}, tmp_path / "v8.pt")
    with pytest.raises(UserError, match="is a checkpoint of the package ultralytics"):
        Detector(engine, tmp_path / "v8.pt", Options())
