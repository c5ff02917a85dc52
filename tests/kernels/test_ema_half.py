"""EMA and detectors with it in half precision give finite values on the CPU and, if there is one, on a GPU."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path

import pytest
import torch
import yaml
from conftest import randomise, run_cli

import yolov5_ema
from yolov5_ema.blocks import EMA
from yolov5_ema.kernels import dispatch, native
from yolov5_ema.kernels.ema import EMAArguments, ema_exact

IMPLEMENTATIONS = [
    "reference",
    "exact",
    pytest.param("cpp", marks=pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)),
]
every_implementation = pytest.mark.parametrize("name", [*IMPLEMENTATIONS, "expression"])
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none")


def run(name, block, x):
    """The block with one implementation; "expression" is the form for TorchScript and exporters."""
    if name != "expression":
        with dispatch.forced(name):
            return block(x)
    one, three, norm = block.conv1x1, block.conv3x3, block.gn
    parameters = (one.weight, one.bias, norm.weight, norm.bias, three.weight, three.bias)
    return ema_exact(x, EMAArguments(*parameters, block.groups, norm.eps))


@every_implementation
@pytest.mark.parametrize("scale", [1e2, 6e4])
def test_float16_at_160_pixels_does_not_overflow(name, scale):
    """Sums over a row of the map overflow float16 at a mean of 410, sums over the whole map at 2.6."""
    block = randomise(EMA(16, groups=2)).half()
    generator = torch.Generator().manual_seed(0)
    signed = torch.randn(1, 16, 160, 160, generator=generator).clamp(-1, 1)
    for x in (signed, signed.abs(), torch.ones_like(signed)):
        x = (x * scale).half().requires_grad_()
        out = run(name, block, x)
        assert out.dtype == torch.float16 and out.isfinite().all()
        assert (out.abs() <= x.abs()).all(), "the gate is at most 1"
        (gradient,) = torch.autograd.grad(out.float().mean(), x)
        assert not gradient.isnan().any()


@pytest.fixture(scope="module")
def small_detector():
    """yolov5n with EMA, whose blocks differ from their initial values, and the loss to train it with."""
    pytest.importorskip("yolov5", reason="needs the PyPI package yolov5")
    from yolov5_ema.cfgs.dry_run import quiet
    from yolov5_ema.cfgs.generator import build_cfg

    with yolov5_ema.installed(), quiet():
        from yolov5.models import yolo
        from yolov5.utils.loss import ComputeLoss

        torch.manual_seed(0)
        model = yolo.Model(build_cfg(size="n", block="EMA", nc=3))
        for seed, module in enumerate(m for m in model.modules() if isinstance(m, EMA)):
            randomise(module, seed)
        hyp = next((Path(yolo.__file__).parent.parent / "data/hyps").glob("hyp.scratch*.yaml"))
        model.hyp = {**yaml.safe_load(hyp.read_text()), "label_smoothing": 0.0}
        model.nc, model.gr = 3, 1.0
        yield model, ComputeLoss


@pytest.mark.parametrize("name", [*IMPLEMENTATIONS, "auto"])
def test_a_training_step_under_bfloat16_autocast(small_detector, name):
    model, loss_of = small_detector
    model.train().zero_grad()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.4], [1, 2, 0.3, 0.6, 0.2, 0.2]])
    with dispatch.forced(name), torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = loss_of(model)(model(images), targets)
        assert loss.isfinite().all()
        loss.backward()
    for where, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), where
    blocks = [module for module in model.modules() if isinstance(module, EMA)]
    assert len(blocks) == 2 and all(block.conv1x1.weight.grad.any() for block in blocks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_inference_of_a_half_precision_model(small_detector, dtype):
    model = copy.deepcopy(small_detector[0]).eval().to(dtype)
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(images.to(dtype))[0]
        wanted = copy.deepcopy(small_detector[0]).eval()(images)[0]
    assert found.isfinite().all() and found.shape == wanted.shape
    # boxes in pixels, scores below 1
    assert (found.float() - wanted)[..., :4].abs().max() < 4 and (found.float() - wanted)[..., 4:].abs().max() < 0.05


@needs_gpu
def test_val_half_on_a_gpu(trained, tiny_set, tmp_path):
    done = run_cli(
        *("val", "--data", tiny_set, "--weights", trained, "--img", 64, "--batch", 4, "--half"),
        *("--device", 0, "--save-txt", "--save-conf", "--conf-thres", 1e-6),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [row.split() for file in tmp_path.rglob("labels/*.txt") for row in file.read_text().splitlines()]
    assert rows and all(math.isfinite(float(value)) for row in rows for value in row)


@needs_gpu
def test_amp_training_on_a_gpu(tiny_set, tmp_path):
    """On a GPU, YOLOv5 trains with float16 autocast by default."""
    done = run_cli(
        *("train", "--data", tiny_set, "--cfg", "yolov5n-ema.yaml", "--weights", "", "--device", 0),
        *("--img", 96, "--batch", 4, "--epochs", 3, "--workers", 2, "--name", "amp"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "runs/train/amp/results.csv").open() as stream:
        rows = list(csv.reader(stream))[1:]
    assert len(rows) == 3 and all(math.isfinite(float(value)) for row in rows for value in row)
