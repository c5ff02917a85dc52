"""EMA in Triton: values in the interpreter, compilation ahead of time, and both on a GPU if there is one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import ema_triton_cases as cases
import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from yolov5_ema.kernels.ema import EMAArguments  # noqa: E402
from yolov5_ema.kernels.ema import triton as kernels  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
# what rounding to the output's dtype costs, relative to the largest value; the interpreter cuts bfloat16 off instead
ROUNDING = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-7}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _parameters(table):
    return [pytest.param(case, path, id=f"{case}-{path}") for case, path in cases.flatten(table)]


def _assert_close(case: cases.Case, found: dict[str, float]) -> None:
    """Output to 2e-6, gradients to 1e-4 of the largest value, plus the rounding of a half-precision dtype."""
    rounding = ROUNDING[case.dtype]
    allowed = dict.fromkeys(cases.NAMES, 1e-4) | {"out": 2e-6 + rounding, "x": 1e-4 + rounding}
    assert found.keys() == allowed.keys()
    wrong = {name: error for name, error in found.items() if not error <= allowed[name]}
    assert not wrong, f"{wrong}, allowed {allowed}"


def _assert_no_worse_than_plain(case: cases.Case, found: dict[str, float]) -> None:
    """Ten times what the definition itself loses in float32: y = X a c is rounded before its mean is taken off, and
    its gradient then sums to nearly nothing. A variance as E[y^2] - E[y]^2 would lose a hundred times as much."""
    plain, rounding = cases.errors(case, "plain"), ROUNDING[case.dtype]
    allowed = {name: 10 * error + 2e-6 + (rounding if name in ("out", "x") else 0.0) for name, error in plain.items()}
    wrong = {name: error for name, error in found.items() if not error <= allowed[name]}
    assert not wrong, f"{wrong}, allowed {allowed}"


# ------------------------------------------------------------------------------------------------- the interpreter


def _interpret(which: str) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-W", "ignore", cases.__file__, which]
    paths = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def interpreted():
    return _interpret("default")


@pytest.fixture(scope="module")
def interpreted_slow():
    return _interpret("slow")


@pytest.mark.parametrize(("case", "path"), _parameters([*cases.FLOAT32, *cases.HALF]))
def test_values_and_gradients(case, path, interpreted):
    _assert_close(case, interpreted[f"{case}/{path}"])


@pytest.mark.parametrize(("case", "path"), _parameters(cases.LARGE))
def test_large_means_cost_no_more_than_in_the_definition(case, path, interpreted):
    _assert_no_worse_than_plain(case, interpreted[f"{case}/{path}"])


@pytest.mark.slow
@pytest.mark.parametrize(("case", "path"), _parameters(cases.SLOW))
def test_values_and_gradients_of_larger_maps(case, path, interpreted_slow):
    check = _assert_no_worse_than_plain if case.mean else _assert_close
    check(case, interpreted_slow[f"{case}/{path}"])


# ---------------------------------------------------------------------------------------- without running a kernel


@pytest.mark.parametrize(
    ("k", "h", "w", "fused"),
    [
        (16, 20, 20, True),
        (8, 40, 40, True),
        (20, 40, 40, True),
        (8, 56, 56, True),
        (10, 80, 80, False),
        (10, 160, 160, False),
        (20, 160, 160, False),
        (10, 320, 320, False),
    ],
)
def test_small_tiles_are_fused(k, h, w, fused):
    assert kernels._is_fused(k, h, w) is fused


@pytest.mark.parametrize("k", [1, 5, 16, 600])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 5000), (5000, 1), (20, 20), (81, 79), (160, 160), (320, 320)])
@pytest.mark.parametrize("fused", [True, False])
def test_blocks_hold_what_they_must(k, h, w, fused):
    plan = kernels._plan(k, h, w, fused)
    assert k <= plan.K2 and w <= plan.W2 and w <= plan.BP and h + w <= plan.L2
    sizes = plan[plan._fields.index("K2") :]
    assert all(size >= 1 and size & (size - 1) == 0 for size in sizes), plan


def test_an_empty_batch_gives_an_empty_output_and_zero_gradients():
    inputs, _ = cases.tensors(cases.Case(1, 4, 6, 7, 2))
    x, arguments = inputs[0][:0], EMAArguments(*inputs[1:], 2, cases.EPS)
    out, stats = kernels.forward(x, arguments)
    assert out.shape == (0, 4, 6, 7) and stats.shape == (0, 3, 2)
    grads = kernels.backward(out, x, stats, arguments)
    assert [g.shape for g in grads] == [x.shape, *(t.shape for t in inputs[1:])]
    assert all(bool((g == 0).all()) for g in grads)


# ---------------------------------------------------------------------------------------- compilation ahead of time


class _Recorder:
    """Takes the place of a kernel and records its launch arguments."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *args, **options: self.launches.append((self.kernel, grid, args, options))


def _launches(monkeypatch, shape, groups, dtype=torch.float32):
    """The launches of forward and backward for a shape, with tensors without storage."""
    launches: list = []
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_check", lambda *_: None)  # it refuses tensors without storage
        for name, kernel in vars(kernels).items():
            if isinstance(kernel, triton.JITFunction) and name.startswith(("fused", "split")):
                patch.setattr(kernels, name, _Recorder(kernel, launches))
        k = shape[1] // groups
        sizes = [shape, (k, k, 1, 1), (k,), (k,), (k,), (k, k, 3, 3), (k,)]
        x, *parameters = (torch.empty(size, device="meta") for size in sizes)
        x = x.to(dtype)
        arguments = EMAArguments(*parameters, groups, cases.EPS)
        _, stats = kernels.forward(x, arguments)
        forward = len(launches)
        kernels.backward(x, x, stats, arguments)
    return launches[:forward], launches[forward:]


def _compile(launch, capability):
    """The registers, spilled bytes and shared memory of a launch, from the assembler that comes with Triton."""
    kernel, _, args, options = launch
    plain = iter(args)
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = options[parameter.name]
            continue
        value = next(plain)
        if isinstance(value, torch.Tensor):
            name = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[value.dtype]
            signature[parameter.name] = f"*{name}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    launch_options = {name: options[name] for name in ("num_warps", "maxnreg")}
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch_options)
    said = _assemble(compiled.asm["ptx"], capability)
    registers = re.search(r"Used (\d+) registers", said)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert registers and spilled, said
    return int(registers[1]), max(map(int, spilled.groups())), compiled.metadata.shared


def _assemble(ptx: str, capability: int) -> str:
    architecture = f"sm_{capability}" + ("a" if capability >= 90 else "")
    failures = []
    # triton brings an older and a newer one, which does not know the oldest architectures
    for assembler in sorted((Path(triton.__file__).parent / "backends/nvidia/bin").glob("ptxas*")):
        command = [str(assembler), "-v", f"--gpu-name={architecture}", "-", "-o", os.devnull]
        done = subprocess.run(command, input=ptx, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stderr
        failures.append(done.stderr)
    raise AssertionError("\n".join(failures))


def _check_compiled(monkeypatch, shape, groups, capability, dtype=torch.float32, *, only_forward=False):
    forward, backward = _launches(monkeypatch, shape, groups, dtype)
    assert len(forward) in (1, 3) and len(backward) == {1: 1, 3: 6}[len(forward)]
    for index, launch in enumerate(forward if only_forward else [*forward, *backward]):
        registers, spilled, shared = _compile(launch, capability)
        name, warps = launch[0].fn.__name__, launch[3]["num_warps"]
        print(f"{'x'.join(map(str, shape))} sm_{capability} {name} {warps} warps {registers} {spilled} {shared}")
        assert shared <= 48 * 1024, f"{name}: {shared} bytes of shared memory"
        assert registers * 32 * warps <= 64 * 1024, f"{name}: {registers} registers with {warps} warps"
        # spilling a few words in a backward with 128 registers for each thread does not justify a second launch
        most = 0 if index < len(forward) else 128
        assert spilled <= most, f"{name}: {spilled} bytes spilled"


SHAPES = [
    ((8, 512, 20, 20), 32),
    ((16, 256, 40, 40), 32),
    ((4, 640, 40, 40), 32),
    ((4, 320, 80, 80), 32),
    ((1, 320, 160, 160), 32),
    ((8, 256, 56, 56), 32),
]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Compile again: an entry of the cache would prove nothing."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def test_forward_compiles_for_hopper(monkeypatch, own_cache):
    _check_compiled(monkeypatch, *SHAPES[0], 90, only_forward=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_kernels_compile_for_all_shapes(shape, groups, capability, dtype, monkeypatch, own_cache):
    _check_compiled(monkeypatch, shape, groups, capability, dtype)


# ------------------------------------------------------------------------------------------------------- on a GPU


@needs_gpu
@pytest.mark.parametrize("path", cases.BOTH)
@pytest.mark.parametrize("case", [case for case, _ in [*cases.FLOAT32, *cases.HALF, *cases.SLOW]], ids=str)
def test_values_and_gradients_on_the_gpu(case, path):
    check = _assert_no_worse_than_plain if case.mean else _assert_close
    check(case, cases.errors(case, path, "cuda"))


@needs_gpu
@pytest.mark.parametrize("path", cases.BOTH)
@pytest.mark.parametrize("case", [case for case, _ in cases.LARGE], ids=str)
def test_large_means_on_the_gpu(case, path):
    _assert_no_worse_than_plain(case, cases.errors(case, path, "cuda"))


@needs_gpu
@pytest.mark.parametrize("path", cases.BOTH)
@pytest.mark.parametrize("case", [cases.Case(8, 512, 20, 20, 32), cases.Case(2, 60, 80, 80, 6)], ids=str)
def test_repeats_are_the_same_bit_by_bit(case, path):
    first, *others = (cases.run(case, path, "cuda") for _ in range(5))
    for out, grads in others:
        assert torch.equal(out, first[0])
        assert all(torch.equal(got, wanted) for got, wanted in zip(grads, first[1]))
