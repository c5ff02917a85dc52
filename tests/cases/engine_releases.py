"""What works in every release of YOLOv5 and in each layout."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image

import yolov5_ema
from cases.quirks import ChangedByMixedPrecision, ModelOnAGpu
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.cfgs.graph import Graph
from yolov5_ema.errors import CheckpointError


def _part(name: str) -> Any:
    """A module of the YOLOv5 that the shim is installed for."""
    return yolov5_ema.install().module(name)


def _save(model: Any, file: Path, epoch: int = 3) -> None:
    _part("utils.general").torch.save({"model": model, "ema": None, "epoch": epoch, "optimizer": None}, file)


def builds_trains_and_reads(folder: Path, cfg: Path) -> None:
    """Build a cfg with blocks, compute gradients of all parameters, and load ``other.pt`` of another release."""
    model = _part("models.yolo").Model(str(cfg))
    rows = [(m.i, m.channels) for m in model.model if type(m) is yolov5_ema.blocks.EMA]
    assert rows == [(7, 128), (10, 256)], rows
    # YOLOv5n has 1,872,157 parameters at 80 classes, a block 10 k^2 + 4 k with k channels in each of 32 groups
    count = sum(p.numel() for p in model.parameters())
    assert count == 1_872_157 + (10 * 4**2 + 4 * 4) + (10 * 8**2 + 4 * 8), count
    outputs = model.train()(torch.rand(1, 3, 64, 64))
    assert [tuple(output.shape) for output in outputs] == [(1, 3, side, side, 85) for side in (8, 4, 2)]
    sum(output.square().mean() for output in outputs).backward()
    assert all(p.grad is not None for p in model.parameters())
    if yolov5_ema.install().has_script("hubconf"):
        _part("hubconf")
    loaded = _part("models.experimental").attempt_load(str(folder / "other.pt")).eval()
    images, expected = torch.load(folder / "other.expected")
    with torch.no_grad():
        torch.testing.assert_close(loaded(images)[0], expected, rtol=1e-3, atol=1e-3)


def draws(folder: Path) -> None:
    """Draw the boxes that ``other.pt`` finds on copies of the pictures, and save them."""
    os.chdir(folder)
    model: Any = yolov5_ema.load(str(folder / "other.pt"), "cpu")
    model.conf, model.max_det = 0.0, 3
    grey = np.full((64, 96, 3), 99, np.uint8)
    for picture in (grey, Image.fromarray(grey)):
        found = model(picture, size=64)
        assert len(found.xyxy[0]) == 3
        found.save()
        found.render()
        drawn = found.ims if hasattr(found, "ims") else found.imgs
        assert drawn[0].shape == grey.shape and (drawn[0] != 99).any()
    assert (grey == 99).all()
    assert len(os.listdir("runs/detect")) == 2


def builds_trains_reads_and_draws(folder: Path, cfg: Path) -> None:
    builds_trains_and_reads(folder, cfg)
    draws(folder)


def writes_a_checkpoint(cfg: Path, file: Path) -> None:
    """Write FILE.pt, and write two images and the model's output for them to FILE.expected."""
    torch.manual_seed(0)
    model = _part("models.yolo").Model(str(cfg)).half()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.save((images, model.float().eval()(images)[0].clone()), f"{file}.expected")
    _save(model.half(), Path(f"{file}.pt"))


def hubconf_takes_weights_over(folder: Path) -> None:
    os.chdir(folder)
    general, hub = _part("utils.general"), _part("hubconf")
    graph = Graph.from_cfg(build_cfg(size="n", block="none", nc=80))
    # each row behind it has another number than in yolov5n.yaml
    graph.insert_behind(graph.rows[6], "nn.Identity")
    model = _part("models.yolo").Model(graph.to_cfg())
    model.names = [str(i) for i in range(80)]
    _save(model, Path("yolov5n.pt"), epoch=1)
    before = general.intersect_dicts
    made = hub.yolov5n(classes=3, autoshape=False, _verbose=False, device="cpu")
    assert torch.equal(made.model[23].cv3.conv.weight, model.model[24].cv3.conv.weight)
    assert general.intersect_dicts is before


def checks_mixed_precision_offline() -> None:
    """As train calls it on a GPU. Mixed precision changes the model's results, so the stock model is tested next."""
    from yolov5_ema.engine.quirks import downloads as quirk

    ours: Any = quirk
    general, common, downloads = _part("utils.general"), _part("models.common"), _part("utils.downloads")
    stock: list[str] = []
    asked: list[object] = []
    said: list[str] = []
    backend: Any = common.DetectMultiBackend

    class DetectMultiBackend(backend):
        def __init__(self, weights: str, *args: Any, **kwargs: Any) -> None:
            stock.append(weights)
            try:
                super().__init__(weights, *args, **kwargs)
            except CheckpointError as error:
                stock.append(str(error))
                raise

    common.AutoShape, common.DetectMultiBackend = ChangedByMixedPrecision, DetectMultiBackend
    downloads.requests.get = lambda *a, **k: asked.append(a)
    general.check_online = ours.is_online = lambda *a: False
    general.LOGGER.warning = said.append
    assert general.check_amp(ModelOnAGpu()) is False
    assert stock[0] == "yolov5n.pt" and "yolov5n.pt not found here" in stock[1], stock
    assert asked == [] and len(said) == 1 and "disabling Automatic Mixed Precision" in said[0], said


class _Attribute:
    """A function that is unpickled as ``Detect.__init__``."""

    def __reduce__(self) -> Any:
        return getattr, (_part("models.yolo").Detect, "__init__")


def builds_and_reads_segment_heads(folder: Path) -> None:
    yolo = _part("models.yolo")
    cfg = build_cfg(base=yolov5_ema.install().root / "models/segment/yolov5n-seg.yaml", block="EMA", nc=2)
    torch.manual_seed(0)
    model = yolo.SegmentationModel(cfg).half()
    assert type(model.model[-1]) is yolo.Segment
    assert [m.i for m in model.model if type(m) is yolov5_ema.blocks.EMA] == [7, 10]
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        boxes, masks = model.float().eval()(images)[:2]
    assert boxes.shape == (1, 252, 5 + 2 + 32) and masks.shape == (1, 32, 16, 16)
    _save(model.half(), folder / "seg.pt")
    loaded = _part("models.experimental").attempt_load(str(folder / "seg.pt")).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images)[0], boxes, rtol=1e-3, atol=1e-3)
    # the head keeps Detect.forward by a getattr; no other attribute can be had so
    _part("utils.general").torch.save({"model": _Attribute()}, folder / "other.pt")
    try:
        _part("models.experimental").torch.load(folder / "other.pt")
    except CheckpointError as error:
        assert "None of its code was run" in str(error), error
    else:
        raise AssertionError("loaded")


def works_like_the_newest(folder: Path, cfg: Path) -> None:
    """Check that it installs nothing, and writes its runs below the current folder."""
    from ultralytics.utils import checks
    from utils.general import check_requirements

    def ran(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError(f"ran {args}")

    checks.subprocess.check_output = checks.subprocess.run = ran
    assert not check_requirements(("no-such-distribution-at-all",))
    sys.argv = ["detect.py"]
    import detect

    assert str(detect.parse_opt().project) == "runs/detect"
    builds_trains_and_reads(folder, cfg)
