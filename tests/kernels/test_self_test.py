"""The self-test of all kernels, which ``doctor --check`` prints."""

from __future__ import annotations

import pytest
import torch

from yolov5_ema.kernels import dispatch, native, proof, self_test
from yolov5_ema.kernels.ema import cpp as ema_cpp
from yolov5_ema.kernels.ema import exact

needs_compiler = pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)
CPP_DTYPES = {"float32", "float64"}
HALF = {"float16", "bfloat16"}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """The kernels of a GPU are checked in `test_all_kernels_on_a_gpu`."""
    monkeypatch.setattr(self_test, "_places", lambda: [("cpp", torch.device("cpu"))])


@pytest.fixture
def few_shapes(monkeypatch):
    monkeypatch.setattr(self_test, "SHAPES", self_test.SHAPES[:2])


def of_ema(rows):
    return [row for row in rows if row.block == "EMA"]


@needs_compiler
def test_all_kernels_are_right():
    rows = list(self_test.check())
    assert not [row for row in rows if row.result != "right" or not row.error <= row.allowed]
    found = {(row.block, row.kind, row.dtype, row.layout) for row in rows}
    assert len(found) == len(rows)
    for block, kind in proof.KERNELS:
        dtypes = CPP_DTYPES | (HALF if block == "EMA" else set())
        expected = {(block, kind, dtype, layout) for dtype in dtypes for layout in self_test.LAYOUTS}
        assert expected <= found
    assert {row.allowed for row in of_ema(rows)} == {1e-9, 1e-4, 2**-8, 2**-5}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_all_kernels_on_a_gpu(monkeypatch):
    monkeypatch.setattr(self_test, "_places", lambda: [("triton", torch.device("cuda", 0))])
    rows = list(self_test.check())
    assert {(row.block, row.dtype) for row in rows} >= {("EMA", dtype) for dtype in ("float32", *HALF)}
    assert not [row for row in rows if row.result != "right"]


@needs_compiler
def test_an_error_in_one_layout_and_shape(monkeypatch, few_shapes):
    right = ema_cpp.forward

    def forward(x, arguments):
        out, stats = right(x, arguments)
        is_bad = x.shape[0] == 33 and x.dtype == torch.float64 and not x.is_contiguous()
        return out * float("nan") if is_bad else out, stats

    monkeypatch.setattr(ema_cpp, "forward", forward)
    rows = of_ema(self_test.check())
    wrong = [row for row in rows if row.is_fault]
    assert {(row.kind, row.dtype, row.layout) for row in wrong} == {
        ("forward", "float64", "channels_last"),
        ("forward", "float64", "sliced"),
    }
    assert {(row.result, row.reason) for row in wrong} == {("wrong", "at (33, 2, 3, 4)")}


@needs_compiler
def test_a_kernel_that_raises(monkeypatch, few_shapes):
    def backward(*arguments):
        raise RuntimeError("an illegal launch\nand more")

    monkeypatch.setattr(ema_cpp, "backward", backward)
    rows = of_ema(self_test.check())
    assert {(row.kind, row.result) for row in rows} == {("forward", "right"), ("backward", "fails")}
    (reason,) = {row.reason for row in rows if row.is_fault}
    assert reason == "at (2, 8, 5, 7): RuntimeError: an illegal launch"


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(dispatch, "_look_for", lambda kernel: "no C++ compiler found")
    rows = list(self_test.check())
    assert {(row.result, row.reason, row.error, row.is_fault) for row in rows} == {
        ("not run", "no C++ compiler found", None, False)
    }


def test_layouts_are_what_they_are_called():
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    found = {name: change(x) for name, change in self_test.LAYOUTS.items()}
    assert all(torch.equal(tensor, x) for tensor in found.values())
    assert found["contiguous"].stride() == (60, 20, 5, 1)
    assert found["channels_last"].stride() == (60, 1, 15, 3)
    assert found["sliced"].stride() == (150, 50, 10, 2) and found["sliced"].storage_offset() == 10


def test_every_path_of_the_triton_kernels_is_checked():
    """Shapes on both sides of the limit up to which one program computes a group, also with odd sides."""
    kernels = pytest.importorskip("yolov5_ema.kernels.ema.triton")
    sizes = []
    for n, c, h, w in self_test.SHAPES:
        case = proof.KERNELS["EMA", "forward"][0].case(lambda *sizes: torch.zeros(sizes), (n, c, h, w))
        sizes.append((c // case[1].groups, h, w))
        assert exact.forward(*case)[0].shape == (n, c, h, w)
    fused = [kernels._is_fused(*size) for size in sizes]
    assert fused == [True] * (len(sizes) - 2) + [False] * 2
    assert {kernels._plan(*size, True).num_warps for size in sizes[:-2]} == {8, 16}
    assert any(w > 1024 for _, _, w in sizes), "rows that are wider than usual"
    assert any(h % 2 and w % 2 for _, h, w in sizes[-2:])
    assert [kernels._is_fused(c // n, h, w) for n, c, h, w in proof._FIRST_SHAPES] == [True, False]


def test_the_verdict_counts_what_failed_and_what_was_not_run():
    rows = [
        self_test.Row("EMA", "cpp", "forward", "cpu", "float32", "contiguous", 0.0, 1e-4, "right", ""),
        self_test.Row("EMA", "cpp", "forward", "cpu", "float32", "sliced", 1.0, 1e-4, "wrong", "at (2, 8, 5, 7)"),
        self_test.Row("CA", "cpp", "forward", "cpu", "float32", "contiguous", None, None, "not run", "no compiler"),
    ]
    assert self_test.verdict(rows[:1]) == "1 check: none failed"
    assert self_test.verdict(rows) == "3 checks, 1 of them not run: 1 failed: EMA cpp forward cpu float32 sliced"
    assert self_test.verdict(rows[2:] * 2) == "2 checks, 2 of them not run: none failed"
