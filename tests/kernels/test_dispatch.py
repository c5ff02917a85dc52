"""Which implementation runs, and what the messages say about it."""

from __future__ import annotations

import doctest

import pytest
import torch

from yolov5_ema.blocks import EMA
from yolov5_ema.cli.main import main
from yolov5_ema.errors import UserError
from yolov5_ema.kernels import dispatch, native
from yolov5_ema.kernels.dispatch import CHOICES, Choice, check_implementation, choose
from yolov5_ema.settings import VARIABLES

LISTED = "auto, reference, exact, cpp, triton"


@pytest.fixture(autouse=True)
def kernels_are_there(monkeypatch):
    """As if this machine had a compiler and a GPU; nothing is run."""
    monkeypatch.delenv(VARIABLES["implementation"], raising=False)
    monkeypatch.setattr(dispatch, "missing", lambda kernel: "")
    monkeypatch.setattr(dispatch, "_fault", lambda *arguments: "")


@pytest.mark.parametrize(
    ("device", "dtype", "name"),
    [
        ("cpu", torch.float32, "cpp"),
        ("cpu", torch.float64, "cpp"),
        ("cpu", torch.bfloat16, "cpp"),
        ("cuda", torch.float32, "triton"),
        ("cuda", torch.float16, "triton"),
        ("cuda", torch.float64, "exact"),
        ("meta", torch.float32, "exact"),
        ("mps", torch.float32, "exact"),
    ],
)
def test_by_device_and_dtype(device, dtype, name):
    assert choose("EMA", "auto", device, dtype).name == name


@pytest.mark.parametrize("asked", ["reference", "exact"])
def test_plain_forms_run_anywhere(asked):
    for device in ("cpu", "cuda", "meta"):
        assert choose("EMA", asked, device, torch.float64) == Choice(asked, "asked for")


def test_a_kernel_for_another_device_is_a_wish():
    """A detector is built and its strides are found on the CPU, even if it is to run on a GPU."""
    assert choose("EMA", "triton", "cpu", torch.float32).name == "cpp"
    assert choose("EMA", "cpp", "cuda", torch.float32).name == "triton"


def test_a_kernel_that_cannot_run(monkeypatch):
    with pytest.raises(UserError, match=f"EMA: implementation 'triton' cannot run: .*float64. Choices: {LISTED}"):
        choose("EMA", "triton", "cuda", torch.float64)
    monkeypatch.setattr(dispatch, "missing", lambda kernel: "no C++ compiler found")
    with pytest.raises(UserError, match=r"'cpp' cannot run: no C\+\+ compiler found"):
        choose("EMA", "cpp", "cpu", torch.float32)
    assert choose("EMA", "auto", "cpu", torch.float32) == Choice("exact", "no C++ compiler found")


def test_a_block_without_such_a_kernel():
    offered = ("reference", "exact", "cpp")
    assert choose("CBAM", "auto", "cuda", torch.float32, offered).name == "exact"
    assert choose("CBAM", "triton", "cuda", torch.float32, offered).name == "exact"
    assert choose("CBAM", "auto", "cpu", torch.float32, offered).name == "cpp"


def test_the_environment_is_over_the_option(monkeypatch):
    monkeypatch.setenv(VARIABLES["implementation"], "reference")
    assert choose("EMA", "cpp", "cpu", torch.float32).name == "reference"
    with dispatch.forced("exact"):
        assert choose("EMA", "cpp", "cpu", torch.float32).name == "exact"
    monkeypatch.setenv(VARIABLES["implementation"], "")
    assert choose("EMA", "exact", "cpu", torch.float32).name == "exact"
    monkeypatch.setenv(VARIABLES["implementation"], "fast")
    with pytest.raises(
        UserError, match=f"{VARIABLES['implementation']}=fast: no such implementation; choices: {LISTED}"
    ):
        EMA(8, groups=2)(torch.zeros(1, 8, 2, 2))


def test_an_unknown_option():
    with pytest.raises(ValueError, match=f"EMA: no implementation is called 'fast'; choices: {LISTED}"):
        EMA(8, groups=2, implementation="fast")
    assert check_implementation("EMA", "triton") == "triton"


def test_plain_operations_while_traced_or_exported():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen.append(choose("EMA", "auto", "cpu", x.dtype))
            return x + 1

    torch.jit.trace(Spy(), torch.zeros(2), check_trace=False)
    torch.export.export(Spy(), (torch.zeros(2),), strict=False)
    torch.func.vmap(Spy())(torch.zeros(2))
    assert [choice.name for choice in seen] == ["exact"] * 3
    assert [choice.reason for choice in seen] == [
        "the model is being traced",
        "the model is being exported",
        "torch.func transforms the block",
    ]


def test_survey_says_what_and_why(monkeypatch):
    found = dispatch.survey("EMA")
    assert found["cpu"].name == "cpp" and native.library().reason in found["cpu"].reason
    assert found["cuda"].name == ("triton" if torch.cuda.is_available() else "-")


def test_doctests():
    result = doctest.testmod(dispatch)
    assert result.attempted > 0 and result.failed == 0


def test_every_choice_is_documented():
    assert all(len(text) > 20 for text in CHOICES.values())


def test_doctor_refuses_a_wrong_name(monkeypatch, capsys):
    """What it prints in other cases is tested in tests/cli/test_doctor.py."""
    monkeypatch.setenv(VARIABLES["implementation"], "fast")
    assert main(["doctor"]) == 2
    assert f"{VARIABLES['implementation']}=fast: no such implementation; choices: {LISTED}" in capsys.readouterr().err


def test_a_detector_predicts_the_same_by_any_implementation():
    """With the same weights, boxes and scores before NMS are equal, whichever implementation computes EMA."""
    import yolov5_ema
    from yolov5_ema.resources import models_dir

    with yolov5_ema.installed():
        from yolov5.models.yolo import Model

        torch.manual_seed(0)
        model = Model(str(models_dir() / "yolov5n-ema.yaml")).eval()
        for module in model.modules():  # a new model predicts the same everywhere
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.data.uniform_(1, 2)
    image = torch.rand(1, 3, 64, 96)
    found = {}
    for name in ("reference", "exact", "cpp"):
        if name == "cpp" and native.library().handle is None:
            continue
        with dispatch.forced(name), torch.no_grad():
            found[name] = model(image)[0]
    assert found["reference"].std(1).min() > 1e-6, "predictions differ from place to place"
    for name in found:
        torch.testing.assert_close(found[name], found["reference"], rtol=1e-4, atol=1e-3)
