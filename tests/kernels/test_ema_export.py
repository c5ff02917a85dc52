"""EMA for other programs: both ONNX exporters, TorchScript, OpenVINO; at any size, not only the traced one."""

from __future__ import annotations

import collections

import pytest
import torch
from conftest import randomise, run_cli
from opencv_networks import opencv_networks

import yolov5_ema
from yolov5_ema.blocks import EMA
from yolov5_ema.kernels import dispatch
from yolov5_ema.upstream.openvino_core import openvino_core

TRACED = (2, 32, 6, 10)
# N, C, H, W
OTHERS = [
    (1, 32, 6, 10),
    (3, 32, 7, 5),
    (1, 32, 1, 9),
    (2, 32, 8, 1),
    (1, 32, 1, 1),
    (5, 32, 2, 2),
    (1, 32, 33, 21),
]
TOLERANCE = 2e-5
both_exporters = pytest.mark.parametrize("exporter", ["older", "dynamo"])
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding:UserWarning"),  # the padding that F.pad was given
]


@pytest.fixture(scope="module")
def block():
    return randomise(EMA(32, groups=4)).eval()


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expected(block, x):
    with torch.no_grad(), dispatch.forced("reference"):
        return block(x)


def to_onnx(block, file, exporter, opset=None, dynamic=True):
    if exporter == "dynamo":
        pytest.importorskip("onnxscript", reason="the dynamo-based exporter needs onnxscript")
        free = torch.export.Dim.DYNAMIC
        sizes = {"dynamic_shapes": ({0: free, 2: free, 3: free},)} if dynamic else {}
        torch.onnx.export(block, (noise(TRACED),), file, dynamo=True, verbose=False, **sizes)
        return file
    sizes = {"dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}, "y": {0: "n", 2: "h", 3: "w"}}}
    names = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(
        block,
        noise(TRACED),
        file,
        dynamo=False,
        opset_version=opset,
        **names,
        **(sizes if dynamic else {}),
    )
    return file


def onnx_session(file):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime runs what was exported")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def assert_right(run, block, shapes, tolerance=TOLERANCE):
    for seed, shape in enumerate(shapes):
        x = noise(shape, seed)
        torch.testing.assert_close(
            run(x), expected(block, x), rtol=0, atol=tolerance, msg=lambda m, s=shape: f"{s}: {m}"
        )


@pytest.mark.parametrize("opset", [12, 13, 17, 18])
def test_older_exporter_at_any_size(block, tmp_path, opset):
    onnx = pytest.importorskip("onnx", reason="torch.onnx needs onnx")
    file = to_onnx(block, tmp_path / "block.onnx", "older", opset)
    assert onnx.load(file).opset_import[0].version == opset
    assert_right(onnx_session(file), block, [TRACED, *OTHERS])


@pytest.mark.slow
def test_dynamo_exporter_at_any_size(block, tmp_path):
    file = to_onnx(block, tmp_path / "block.onnx", "dynamo")
    assert_right(onnx_session(file), block, [TRACED, *OTHERS])


@pytest.mark.slow
@both_exporters
def test_static_export(block, tmp_path, exporter):
    file = to_onnx(block, tmp_path / "block.onnx", exporter, dynamic=False)
    assert_right(onnx_session(file), block, [TRACED])


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2, 32])
@both_exporters
def test_any_number_of_groups(tmp_path, exporter, groups):
    block = randomise(EMA(32, groups=groups)).eval()
    file = to_onnx(block, tmp_path / "block.onnx", exporter)
    assert_right(onnx_session(file), block, [TRACED, *OTHERS])


@pytest.mark.parametrize(
    "options",
    [{"norm_groups": 1}, {"depthwise": True}, {"norm_groups": 2, "residual": True, "depthwise": True}],
    ids=str,
)
def test_options_beyond_the_paper_at_any_size(tmp_path, options):
    block = randomise(EMA(32, groups=4, **options)).eval()
    file = to_onnx(block, tmp_path / "block.onnx", "older", 12)
    # that of nine means of each channel, not of a map
    assert operations(file)["Conv"] == block.depthwise
    assert_right(onnx_session(file), block, [TRACED, *OTHERS])


def test_nothing_with_k_outputs_is_convolved(block, tmp_path):
    exact = operations(to_onnx(block, tmp_path / "exact.onnx", "older", 13))
    assert not [name for name in exact if "Conv" in name or "Pool" in name or name in ("If", "Loop", "NonZero")]
    with dispatch.forced("reference"):
        file = to_onnx(block, tmp_path / "reference.onnx", "older", 13, dynamic=False)
    assert operations(file)["Conv"] == 2


def operations(file):
    onnx = pytest.importorskip("onnx", reason="torch.onnx needs onnx")
    return collections.Counter(node.op_type for node in onnx.load(file).graph.node)


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_saved_and_loaded(block, tmp_path, how):
    made = torch.jit.script(block) if how == "script" else torch.jit.trace(block, noise(TRACED))
    torch.jit.save(made, str(tmp_path / "block.pt"))
    assert_right(torch.jit.load(str(tmp_path / "block.pt")), block, [TRACED, *OTHERS])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_traced_in_half_precision(block, dtype):
    """Computed in float32 and rounded once, also at other sizes, where float16 sums would overflow."""
    half = randomise(EMA(32, groups=4, dtype=dtype)).eval()
    traced = torch.jit.trace(half, noise(TRACED).to(dtype))
    for x in [noise((1, 32, 7, 3), 1), noise((1, 32, 160, 160), 2).abs() * 1e3]:
        x = x.to(dtype)
        truth = expected(randomise(EMA(32, groups=4, dtype=dtype)).eval().double(), x.double())
        found = traced(x)
        assert found.dtype == dtype and found.isfinite().all()
        torch.testing.assert_close(found, truth.to(dtype), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("source", ["onnx", pytest.param("torch", marks=pytest.mark.slow)])
def test_openvino(block, tmp_path, source):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    if source == "onnx":
        converted = openvino.convert_model(to_onnx(block, tmp_path / "block.onnx", "older", 13))
    else:
        converted = openvino.convert_model(block, example_input=noise(TRACED))
    compiled = openvino_core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_right(lambda x: torch.from_numpy(compiled(x.numpy())[0]), block, [TRACED, *OTHERS])


def save_detector(folder, size="n"):
    """A checkpoint of an untrained YOLOv5 with EMA, whose blocks have an effect; returns the file and the model."""
    from yolov5_ema.cfgs.generator import build_cfg

    with yolov5_ema.installed():
        from yolov5.models.yolo import Model

        model = Model(build_cfg(size=size, block="EMA", nc=3))
        model.nc, model.names = 3, ["disc", "box", "cross"]
        blocks = [module for module in model.modules() if isinstance(module, EMA)]
        assert len(blocks) == 2
        for seed, module in enumerate(blocks):
            randomise(module, seed)
        content = {"epoch": -1, "model": model.half(), "ema": None, "updates": None, "optimizer": None}
        torch.save(content, folder / "ema.pt")
        return folder / "ema.pt", model.float().eval()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["n", "s"], ids=["yolov5n", "yolov5s"])
def test_a_detector_at_another_size_than_it_was_exported_at(tmp_path, size):
    """By the command, with --dynamic: ONNX and TorchScript give the model's values where the published block fails."""
    weights, model = save_detector(tmp_path, size)
    done = run_cli(
        *("export", "--weights", weights, "--img", 64, "--include", "torchscript", "onnx", "--dynamic"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scripts = list(tmp_path.glob("ema.torchscript*"))
    assert len(scripts) == 1
    run = onnx_session(tmp_path / "ema.onnx")
    script = torch.jit.load(str(scripts[0]))
    for shape in [(1, 3, 64, 64), (2, 3, 96, 160), (1, 3, 32, 32)]:
        images = noise(shape).sigmoid()
        with torch.no_grad(), dispatch.forced("reference"):
            wanted = model(images)[0]
            from_script = script(images)[0]
        torch.testing.assert_close(run(images), wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(from_script, wanted, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"))[0]


@pytest.mark.parametrize("name", ["saved_model", "pb", "tflite", "TFLite", "edgetpu", "tfjs"])
def test_tensorflow_formats_are_refused(refused, detector, name):
    message = refused("export", "--weights", detector, "--include", "onnx", name)
    if "exports torchscript" in message:  # v6.0 does not know this format, and would ignore it silently
        assert name == "edgetpu" and "--include edgetpu: YOLOv5 6.0" in message
    else:
        assert f"--include {name.lower()}: YOLOv5 rebuilds" in message and "EMA" in message


def test_formats_that_are_none(refused, detector):
    message = refused("export", "--weights", detector, "--include", "onnx,torchscript", "onxx")
    assert "--include onxx: YOLOv5" in message and "torchscript, onnx" in message


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("coreml", "coremltools"),
        ("openvino", "openvino"),
        ("paddle", "paddlepaddle and x2paddle"),
        ("engine", "only on the GPU that will run it"),
    ],
)
def test_formats_that_need_what_is_not_here(refused, detector, monkeypatch, name, package):
    from yolov5_ema.scripts import exports

    monkeypatch.setattr(exports, "formats", lambda engine: ["onnx", "coreml", "openvino", "paddle", "engine"])
    there = exports.importlib.util.find_spec
    monkeypatch.setattr(
        exports.importlib.util, "find_spec", lambda name: there(name) if name in ("onnx", "yolov5") else None
    )
    message = refused("export", "--weights", detector, "--device", "cpu", "--include", "onnx", name)
    assert f"--include {name}" in message and package in message


@pytest.mark.parametrize("name", ["torchscript", "onnx", "openvino", "tflite", "edgetpu", "paddle"])
def test_a_format_that_left_no_file_is_a_failure(tmp_path, name):
    """The files of YOLOv5's own exporters, which only print that they failed; files from before do not count."""
    import argparse
    import os

    from yolov5_ema.errors import UserError
    from yolov5_ema.scripts import exports

    opt = argparse.Namespace(weights=[str(tmp_path / "a[b].pt")], include=[name])
    ending = exports._FILES[name][0].replace("*", "model")
    file = tmp_path / f"a[b]{ending}"
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    with exports.all_written(opt, "export"):
        os.utime(file)
    os.utime(file, (1, 1))
    with pytest.raises(UserError, match=f"export failed for {name}"), exports.all_written(opt, "export"):
        pass


@pytest.mark.parametrize("exporter", ["older", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_opencv_runs_it(block, tmp_path, exporter):
    """OpenCV's DNN, the usual way to deploy from C++: it cannot multiply vectors, or compute with constants only."""
    file = to_onnx(block, tmp_path / "block.onnx", exporter, dynamic=False)
    for network in opencv_networks(file):
        network.setInput(noise(TRACED).numpy())
        found = torch.from_numpy(network.forward())
        torch.testing.assert_close(found, expected(block, noise(TRACED)), rtol=0, atol=TOLERANCE)


def test_exported_with_sizes_of_any_kind(block):
    """`torch.export` with a plain Dim, which allows every size from 1, or from 2."""
    sizes = {axis: torch.export.Dim(name) for axis, name in ((0, "n"), (2, "h"), (3, "w"))}
    program = torch.export.export(block, (noise(TRACED),), dynamic_shapes=(sizes,), strict=False)
    assert_right(program.module(), block, [TRACED, (3, 32, 7, 5), (5, 32, 2, 2), (1, 32, 33, 21)])
