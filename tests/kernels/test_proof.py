"""A kernel is used only where it gives the values of plain operations, and a training goes on if it fails."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases.proof import trains_with_a_fault_in_one_rank
from conftest import randomise
from fresh_process import run_in_copy
from torch._subclasses import FakeTensorMode

from yolov5_ema.blocks import CBAM, EMA, create_block, list_blocks
from yolov5_ema.errors import UserError
from yolov5_ema.kernels import dispatch, native, proof
from yolov5_ema.kernels.dispatch import choose
from yolov5_ema.kernels.memory import ArgumentsError
from yolov5_ema.settings import VARIABLES

needs_compiler = pytest.mark.skipif(native.library().handle is None, reason=native.library().reason)
pytestmark = needs_compiler
CPU = torch.device("cpu")
# what torch says if Triton finds no C compiler
NO_COMPILER = RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")
KINDS = ("forward", "backward")
HAVE_OPTION = ("CBAM", "EMA")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_kernel = pytest.mark.parametrize(("name", "kind"), proof.KERNELS, ids=map(" ".join, proof.KERNELS))


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """As in a new process of a user who has compiled the kernels, but has not used them."""
    native.library()
    monkeypatch.delenv(VARIABLES["implementation"], raising=False)
    monkeypatch.setenv(VARIABLES["cache"], str(tmp_path / "cache"))
    monkeypatch.setattr(dispatch, "_LEAST", 1)  # kernels for small maps too
    forget()
    yield
    forget()


def forget():
    for memory in (proof._faults, proof._warned, proof._required):
        memory.clear()


@pytest.fixture
def warnings(caplog):
    """A function that returns the warnings so far."""
    caplog.set_level(logging.WARNING, logger="yolov5_ema")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def plant(monkeypatch, name, kind, fault):
    """Let the first kernel of a kind raise an exception, or multiply the first of its results by a number."""
    kernel = proof.KERNELS[name, kind][0]
    right = kernel.run

    def run(*arguments):
        if isinstance(fault, Exception):
            raise fault
        found = right(*arguments)
        return found * fault if isinstance(found, torch.Tensor) else (found[0] * fault, *found[1:])

    monkeypatch.setitem(vars(kernel), "run", run)


OPTIONS = {"EMA": {"groups": 4}, "CBAM": {"reduction": 4}, "SA": {"groups": 4}}


def results(name, implementation="auto"):
    """The output of a block and the gradients of its input and parameters."""
    block = randomise(create_block(name, 16, **OPTIONS.get(name, {})))
    if implementation != "auto":
        block.implementation = implementation
    x = torch.randn(2, 16, 9, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = block(x)
    towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    return [out, *torch.autograd.grad(out, [x, *block.parameters()], towards)]


def assert_exact(found, name):
    with dispatch.forced("exact"):
        expected = results(name)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def chosen(name):
    return choose(name, "auto", "cpu", torch.float32).name


@each_kernel
def test_a_kernel_that_does_not_prove_itself(name, kind, monkeypatch, warnings):
    plant(monkeypatch, name, kind, 1.001)
    for _ in range(2):
        assert_exact(results(name), name)
    (warning,) = warnings()
    assert warning.startswith(
        f"{name}: the cpp kernel is not used in this process, plain torch operations are: "
        f"its {kind} pass gives wrong values on cpu in float32 (off by "
    )
    assert chosen(name) == "exact"
    with torch.no_grad():
        assert chosen(name) == ("exact" if kind == "forward" else "cpp"), "inference needs no backward"
    assert choose(name, "auto", "cpu", torch.float64).name == "exact", "each dtype is checked by itself"


@each_kind
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (float("nan"), "gives wrong values on cpu in float32 (off by nan"),
        (NO_COMPILER, "fails on cpu: RuntimeError: Failed to find C compiler."),
        (subprocess.CalledProcessError(1, ["gcc"]), "fails on cpu: CalledProcessError: Command '['gcc']' returned"),
    ],
    ids=["NaN", "no compiler", "compiler fails"],
)
def test_other_ways_not_to_prove_itself(kind, fault, said, monkeypatch, warnings):
    plant(monkeypatch, "EMA", kind, fault)
    for _ in range(2):
        assert_exact(results("EMA"), "EMA")
    (warning,) = warnings()
    assert f": its {kind} pass {said}" in warning and chosen("EMA") == "exact"


@each_kernel
def test_a_launch_that_raises_later(name, kind, monkeypatch, warnings):
    """The very call that failed is computed by plain operations."""
    fault = MemoryError("no memory for the kernel") if kind == "forward" else RuntimeError("an illegal launch")
    assert_exact(results(name), name)
    assert chosen(name) == "cpp" and not warnings()
    plant(monkeypatch, name, kind, fault)
    for _ in range(2):
        assert_exact(results(name), name)
    (warning,) = warnings()
    assert warning.endswith(f"its {kind} pass fails on cpu: {type(fault).__name__}: {fault}")
    for dtype in (torch.float32, torch.float64):
        assert choose(name, "auto", "cpu", dtype).name == "exact"


def test_a_launch_that_raises_between_forward_and_backward(monkeypatch, warnings):
    block = randomise(EMA(16, groups=4))
    x = torch.randn(2, 16, 9, 7).requires_grad_()
    out = block(x)
    assert chosen("EMA") == "cpp"
    plant(monkeypatch, "EMA", "backward", RuntimeError("an illegal launch"))
    found = torch.autograd.grad(out.sum(), [x, *block.parameters()])
    block.implementation = "exact"
    for one, other in zip(found, torch.autograd.grad(block(x).sum(), [x, *block.parameters()])):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert len(warnings()) == 1


def test_each_half_dtype(monkeypatch, warnings):
    plant(monkeypatch, "EMA", "forward", 1.05)
    for dtype in (torch.float16, torch.bfloat16):
        assert choose("EMA", "auto", "cpu", dtype).name == "exact"
    assert ["float16" in warnings()[0], "bfloat16" in warnings()[1]] == [True, True]


def test_mistakes_of_the_caller_are_not_faults_of_the_kernel(monkeypatch, warnings):
    values = [torch.ones(s) for s in ((3, 3, 1, 1), (3,), (3,), (3,), (3, 3, 3, 3), (3,))]
    with pytest.raises(ArgumentsError, match="expected a feature map"):
        torch.ops.yolov5_ema.ema_forward(torch.ones(1, 7, 4, 4), *values, 2, 1e-5)
    x = torch.ones(1, 6, 4, 4).transpose(2, 3)
    x.untyped_storage().resize_(8)
    with pytest.raises(ArgumentsError, match="not enough"):
        torch.ops.yolov5_ema.ema_forward(x, *values, 2, 1e-5)
    # plain operations fail as well
    plant(monkeypatch, "CBAM", "forward", MemoryError("no memory for the kernel"))
    proof._faults["CBAM", "forward", CPU, torch.float32] = ""
    with pytest.raises(MemoryError, match="no memory for the kernel"):
        torch.ops.yolov5_ema.cbam_pool(torch.ones(1, 2, 3), True)
    assert chosen("EMA") == "cpp" and not warnings()


# --------------------------------------------------------------------------------------- a kernel that is asked for


@pytest.mark.parametrize(
    ("name", "kind", "asked"),
    [(*key, "environment") for key in proof.KERNELS]
    + [(name, kind, "option") for name in HAVE_OPTION for kind in KINDS],
)
@pytest.mark.parametrize("later", [False, True], ids=["first use", "later"])
def test_a_kernel_that_was_asked_for_fails(name, kind, asked, later, monkeypatch):
    if asked == "environment":
        monkeypatch.setenv(VARIABLES["implementation"], "cpp")
    option = "cpp" if asked == "option" else "auto"
    if later:
        results(name, option)
    plant(monkeypatch, name, kind, RuntimeError("an illegal launch"))
    with pytest.raises(UserError, match=f"^{name}: .*its {kind} pass fails on cpu: RuntimeError: an illegal launch"):
        results(name, option)


def test_wrong_values_of_a_kernel_that_was_asked_for(monkeypatch):
    plant(monkeypatch, "EMA", "forward", 1.5)
    with pytest.raises(UserError, match=r"^EMA: implementation 'cpp' cannot run: its forward pass gives wrong values"):
        results("EMA", "cpp")


# --------------------------------------------------------------------------------------------------- kept verdicts


def kept(tmp_path):
    (file,) = (tmp_path / "cache").glob("proofs-*.json")
    return file


def examined(monkeypatch):
    """A list of the kinds that are compared from now on."""
    found, compare = [], proof._examined
    monkeypatch.setattr(proof, "_examined", lambda *key: found.append(key[1]) or compare(*key))
    return found


def test_a_verdict_is_kept(tmp_path, monkeypatch):
    compared = examined(monkeypatch)
    results("EMA")
    assert compared == ["forward", "backward"]
    forget()
    assert_exact(results("EMA"), "EMA")
    assert chosen("EMA") == "cpp" and len(compared) == 2
    assert kept(tmp_path).stat().st_mode & 0o777 == 0o600
    names = set(json.loads(kept(tmp_path).read_text())["found"])
    assert names == {"EMA forward torch.float32", "EMA backward torch.float32"}


def test_a_verdict_against_a_kernel_is_kept(monkeypatch, warnings):
    plant(monkeypatch, "EMA", "forward", 1.5)
    assert chosen("EMA") == "exact"
    forget()
    compared = examined(monkeypatch)
    assert chosen("EMA") == "exact" and not compared
    assert len(warnings()) == 2 and len(set(warnings())) == 1, "one in each process"


def test_an_exception_is_not_kept(monkeypatch):
    """A compiler may be installed afterwards."""
    with monkeypatch.context() as patch:
        plant(patch, "EMA", "forward", NO_COMPILER)
        assert chosen("EMA") == "exact"
    forget()
    assert chosen("EMA") == "cpp"


def test_a_verdict_on_other_sources_is_not_believed(tmp_path, monkeypatch):
    copy = tmp_path / "kernels"
    shutil.copytree(Path(proof.__file__).parent, copy)
    monkeypatch.setattr(proof, "__file__", str(copy / "proof.py"))
    compared = examined(monkeypatch)
    for change in (None, None, "ema/exact.py", "cpp/ema.cpp"):
        if change:
            (copy / change).write_bytes((copy / change).read_bytes() + b"\n")
        forget()
        chosen("EMA")
    assert len(compared) == 2 + 0 + 2 + 2


@pytest.mark.parametrize("what", ["__version__", "library"])
def test_a_verdict_on_another_torch_or_library_is_not_believed(what, tmp_path, monkeypatch):
    compared = examined(monkeypatch)
    chosen("EMA")
    if what == "library":
        (tmp_path / "other.so").write_bytes(b"another")
        other = native.Library(SimpleNamespace(_name=str(tmp_path / "other.so")), "")
        monkeypatch.setattr(native, "library", lambda: other)
    else:
        monkeypatch.setattr(torch, what, "9.9.9")
    before = len(compared)
    forget()
    proof.fault("EMA", "forward", CPU, torch.float32)
    assert len(compared) == before + 1


def _of_a_stranger(file):
    os.chown(file, 12345, -1)


def _a_link(file):
    file.rename(file.with_suffix(".real"))
    file.symlink_to(file.with_suffix(".real"))


def _says(text):
    return lambda file: file.write_text(text.replace("KEY", json.loads(file.read_text())["key"]))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.chmod(0o666),
        _of_a_stranger,
        _a_link,
        lambda file: file.parent.chmod(0o777),
        _says(""),
        _says('{"key": "KEY", "found": {"EMA for'),
        _says('{"key": "KEY", "found": {"EMA forward torch.float32": ""}}'),
        _says('{"key": "KEY", "found": {"EMA forward torch.float32": true}}'),
        _says('{"key": "KEY", "found": ["EMA forward torch.float32"]}'),
        _says('{"key": "another", "found": {"EMA forward torch.float32": "right"}}'),
        _says("[" * 100_000),
        _says('{"key": "KEY", "found": {"EMA forward torch.float32": "right", "' + "x" * 2_000_000 + '": "right"}}'),
    ],
    ids=[
        "writable for all", "another user's", "link", "folder for all", "empty", "cut off", "empty verdict",
        "no text", "no names", "another key", "deep", "long",
    ],
)  # fmt: skip
def test_a_file_that_is_damaged_or_anothers_is_not_believed(spoil, tmp_path, monkeypatch, warnings):
    assert chosen("EMA") == "cpp"
    file = kept(tmp_path)
    if spoil is _of_a_stranger and os.getuid() != 0:
        pytest.skip("only root gives files away")
    spoil(file)
    forget()
    plant(monkeypatch, "EMA", "forward", 1.5)
    assert chosen("EMA") == "exact" and len(warnings()) == 1


def test_a_full_disk_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(Path, "write_text", lambda *args, **options: (_ for _ in ()).throw(OSError(28, "full")))
    assert chosen("EMA") == "cpp"
    assert not list((tmp_path / "cache").iterdir())


# ------------------------------------------------------------------------------- what the comparison leaves alone


def test_random_numbers_and_modes_are_left_alone():
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        assert chosen("EMA") == chosen("CBAM") == "cpp"
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
    with FakeTensorMode():
        assert choose("EMA", "auto", "cpu", torch.float64).name == "cpp"
    assert torch.equal(torch.get_rng_state(), state)
    assert len(proof._faults) == 4 and not any(proof._faults.values())


@pytest.mark.parametrize("first", ["auto", "inference"])
def test_torch_compile_as_the_first_use(first, monkeypatch, warnings):
    if not hasattr(torch.compiler, "is_exporting"):
        pytest.skip("this torch does not tell compiling from exporting, so plain operations are compiled")
    torch.compiler.reset()
    block, x = randomise(EMA(16, groups=4)), torch.randn(2, 16, 9, 7, requires_grad=True)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    if first == "inference":
        with torch.no_grad():
            compiled(x)
        assert {kind for _, kind, _, _ in proof._faults} == {"forward"}
    out = compiled(x)
    assert {kind for _, kind, _, _ in proof._faults} == {"forward", "backward"} and not any(proof._faults.values())
    for kind in ("forward", "backward"):
        plant(monkeypatch, "EMA", kind, RuntimeError("an illegal launch"))
    found = torch.autograd.grad(out.square().sum(), [x, *block.parameters()])
    again = torch.autograd.grad(compiled(x).square().sum(), [x, *block.parameters()])
    block.implementation = "exact"
    expected = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    for one, two, other in zip(found, again, expected):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(two, other, atol=1e-5, rtol=1e-4)
    assert len(warnings()) == 1


def test_nothing_is_compared_while_a_cuda_graph_is_captured(monkeypatch):
    """The tests on a GPU capture a graph."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    compared = examined(monkeypatch)
    reason = proof.fault("EMA", "forward", torch.device("cuda", 0), torch.float32)
    assert "before a CUDA graph was captured" in reason and not compared and not proof._faults
    assert chosen("EMA") == "cpp" and compared, "on the CPU there is no capture"


def test_threads_wait_for_one_comparison(monkeypatch):
    compared = examined(monkeypatch)
    threads = [threading.Thread(target=results, args=("EMA",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(compared) == ["backward", "forward"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_process_that_is_forked_during_a_comparison():
    with proof._lock:
        child = os.fork()
        if not child:
            os._exit(chosen("EMA") != "cpp")
    assert os.waitpid(child, 0)[1] == 0


def test_two_ranks_go_on_with_a_fault_in_one(tmp_path):
    """Both end with the same weights, and these are the weights without a fault."""
    compiled = Path(native.library().handle._name).parent
    env = {"OMP_NUM_THREADS": "1", VARIABLES["cache"]: str(compiled)}
    done = run_in_copy(trains_with_a_fault_in_one_rank, tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["cpp", "exact"]
    assert done.stderr.count("EMA: the cpp kernel is not used in this process") == 1


# ----------------------------------------------------------------------------------------------------- every kernel


def test_every_block_that_has_kernels_proves_them():
    with_kernels = {"CA", "CBAM", "EMA", "ECA", "NAM", "SA", "SE"}
    with_choice = {name for name in list_blocks() if hasattr(create_block(name, 128), "implementation")}
    assert with_choice <= with_kernels
    assert set(proof.KERNELS) == {(name, kind) for name in with_kernels for kind in proof.KINDS}


def test_every_function_of_the_library_is_proved(monkeypatch):
    """So no kernel is called that was not compared before."""
    right = native.library()
    called = set()

    class Spy:
        def __getattr__(self, name):
            called.add(name.removesuffix("_float32"))
            return getattr(right.handle, name)

    monkeypatch.setattr(native, "library", lambda: native.Library(Spy(), right.reason))
    for kernel in itertools.chain(*proof.KERNELS.values()):
        assert proof.difference(kernel, CPU, torch.float32, (2, 8, 5, 7)).is_right
    exported = re.findall(rb"(?<=\0)\w+(?=_float32\0)", Path(right.handle._name).read_bytes())
    assert called == {name.decode() for name in exported} and len(called) >= 10


@pytest.mark.parametrize(
    "kernel", [one for kernels in proof.KERNELS.values() for one in kernels], ids=lambda k: f"{k.block} {k.kind}"
)
def test_the_comparison_sees_a_small_error_in_every_result(kernel):
    """Of a kernel that is right in all other results."""
    assert proof.difference(kernel, CPU, torch.float32, (2, 8, 5, 7)).is_right
    count = len(proof._as_tuple(kernel.run(*kernel.case(torch.ones, (2, 8, 5, 7)))))
    for place in range(count):

        def run(*arguments, place=place):
            found = [tensor.clone() for tensor in proof._as_tuple(kernel.run(*arguments))]
            peak = found[place].abs().flatten().argmax()
            found[place].view(-1)[peak] *= 1.001
            return tuple(found)

        wrong = SimpleNamespace(run=run, plain=kernel.plain, case=kernel.case)
        found = proof.difference(wrong, CPU, torch.float32, (2, 8, 5, 7))
        assert not found.is_right and found.error == pytest.approx(1e-3, rel=0.5)


def test_results_of_another_shape_are_wrong():
    kernel = proof.KERNELS["EMA", "forward"][0]
    wrong = SimpleNamespace(run=lambda *a: (kernel.run(*a)[0][:1], a[0]), plain=kernel.plain, case=kernel.case)
    found = proof.difference(wrong, CPU, torch.float32, (2, 8, 5, 7))
    assert not found.is_right


def test_plain_forms_do_not_need_a_proof(monkeypatch):
    monkeypatch.setattr(proof, "_examined", lambda *_: pytest.fail("compared"))
    for name in ("exact", "reference"):
        with dispatch.forced(name):
            EMA(8, groups=2)(torch.ones(1, 8, 3, 3))
            CBAM(16)(torch.ones(1, 16, 3, 3))
