"""Tests in which engines and runtimes each attention block works; `yolov5-ema blocks --at` prints the results.

A block is put behind the last two stages of the backbone: of YOLOv5n in YOLOv5 6.0.7 and 7.0.14 (`make engines`
installs them), and of YOLO11n in the installed ultralytics. The model is built, trained for one step with its engine's
loss, and exported by `yolov5-ema export`. Each runtime runs the file, and its output is compared with torch's.

    python benchmarks/block_support.py                                     # half an hour; writes the package's file
    python benchmarks/block_support.py --blocks GC timm.se                 # replaces the entries of these blocks
    pip install --no-deps --target opencv-4.10 opencv-python-headless==4.10.0.84
    python benchmarks/block_support.py --opencv opencv-4.10                # tests this OpenCV too
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from yolov5_ema.blocks import list_blocks
from yolov5_ema.blocks.registry import block_of
from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.checkpoints import ultralytics_models
from yolov5_ema.cli.main import main as yolov5_ema
from yolov5_ema.comparing.block_costs import model_builder
from yolov5_ema.comparing.block_support import FILE, Outcome
from yolov5_ema.detecting.protocol import first_tensor
from yolov5_ema.detecting.runtimes import How, loaded
from yolov5_ema.engine import shim, ultralytics_adapter
from yolov5_ema.files import replacement
from yolov5_ema.settings import VARIABLES
from yolov5_ema.texts import first_line
from yolov5_ema.upstream.hyperparameters import read_hyp
from yolov5_ema.upstream.locate import Engine

ULTRALYTICS = "ultralytics"
ENGINES = ("6.0.7", "7.0.14", ULTRALYTICS)
SIDES = (96, 160)  # height and width in pixels; they differ, so that a block that confuses its axes is noticed
OPSET = 12  # what YOLOv5 and ultralytics recommend for OpenCV
TOLERANCE = 3e-4  # rounding gives up to 8e-5
EFFECT = 1e-2  # by how much the output must change, at least, if the blocks are left out
HOW = (
    "behind the last two stages of the backbone of yolov5n and yolo11n, one training step, random weights, "
    f"{SIDES[0]} x {SIDES[1]} pixels, ONNX opset {OPSET}; an output is right if it differs from torch's by at most "
    f"{TOLERANCE:g} of the largest value"
)
# image, class, and the box as shares of the image: center x, center y, width, height
TARGETS = torch.tensor([[i, i, 0.5, 0.4, size, size] for i in range(8) for size in (0.1, 0.3, 0.8)])
Refused = dict[str, str]


def main() -> None:
    args = parse_args()
    found: dict[str, dict[str, Any]] = {block: {} for block in args.blocks}
    with tempfile.TemporaryDirectory() as folder:
        for engine in args.engines:
            place = Path(folder) / engine
            name, refused = in_new_process(make_models, engine, args.blocks, place)
            outcomes = in_new_process(run_models, tuple(RUNTIMES), place, refused)
            for path in args.opencv:
                with first_on_path(path):
                    more = in_new_process(run_models, ("OpenCV",), place, refused)
                outcomes = {block: {**outcomes[block], **more[block]} for block in outcomes}
            for block, by_runtime in outcomes.items():
                found[block][name] = by_runtime
                print(f"{block} in {name}: {by_runtime}", flush=True)
    earlier = json.loads(args.output.read_text(encoding="utf-8"))["blocks"] if args.output.exists() else {}
    content = {"how": HOW, "blocks": dict(sorted({**earlier, **found}.items()))}
    with replacement(args.output, sync=False) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to {args.output}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--blocks", nargs="+", default=list_blocks())
    parser.add_argument("--opencv", nargs="+", default=[], metavar="FOLDER", help="folders with other OpenCVs")
    kept = f"entries of other blocks stay (default: {FILE.name} of the package)"
    parser.add_argument("-o", "--output", type=Path, default=FILE, help=kept)
    return parser.parse_args()


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process: one can import only one YOLOv5, and only one OpenCV."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


@contextlib.contextmanager
def first_on_path(folder: str) -> Iterator[None]:
    """Processes that start meanwhile import the packages in a folder before others of the same name."""
    sys.path.insert(0, os.path.abspath(folder))
    yield
    sys.path.pop(0)


# --- models and files ------------------------------------------------------------------------


def make_models(engine_name: str, blocks: Sequence[str], folder: Path) -> tuple[str, dict[str, Refused]]:
    """Build, train and export a model with each block.

    Returns:
        The engine with its version; and for each block why a format of `FORMATS` could not be made.
    """
    engine, cfg = started(engine_name, folder)
    build = model_builder(cfg, of_ultralytics=engine_name == ULTRALYTICS)
    refused = {}
    for block in blocks:
        (folder / block).mkdir(parents=True)
        reason = made(engine, build, block, folder / block)
        if reason:
            refused[block] = dict.fromkeys(FORMATS, reason)
        else:
            written = {form: exported(engine, folder / block / "model.pt", form) for form in FORMATS}
            refused[block] = {form: reason for form, reason in written.items() if reason}
    label = engine.kind if engine_name == ULTRALYTICS else "YOLOv5"
    return f"{label} {engine.version}", refused


def started(engine_name: str, folder: Path) -> tuple[Engine, Path | str]:
    """The engine, with the blocks available in it, and its smallest model YAML without a block."""
    if engine_name == ULTRALYTICS:
        os.environ.update(YOLO_CONFIG_DIR=str(folder), YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")
        return ultralytics_adapter.install(), "yolo11n.yaml"
    root = Path(sys.prefix) / "engines" / engine_name / "yolov5"
    if not root.is_dir():
        raise SystemExit(f"YOLOv5 {engine_name} is not in {root}: run `make engines`")
    os.environ[VARIABLES["yolov5"]] = str(root)
    engine = shim.install()
    return engine, engine.root / "models/yolov5n.yaml"


def made(engine: Engine, build: Callable[[str], nn.Module], block: str, folder: Path) -> str:
    """Write the trained model, an image, and its output with and without the blocks.

    Returns:
        Why this was not possible; empty if it was.
    """
    torch.manual_seed(0)
    images = torch.rand(8, 3, *SIDES)
    doing = "built"
    try:
        model = build(block)
        doing = "trained"
        train_one_step(engine, model, images)
    except Exception as error:  # blocks, engines and torch have their own kinds of errors
        return f"cannot be {doing}: {first_line(error)}"
    settle(model, images)
    model = model.half().float().eval()  # as the file will hold it
    image = torch.rand(1, 3, *SIDES)
    with torch.no_grad():
        expected = first_tensor(model(image))
        with skipped(blocks_in(model)):
            without = first_tensor(model(image))
    if not difference(without.numpy(), expected.numpy()) > EFFECT:
        raise SystemExit(f"{block} in {engine}: a mistake in the block would not show in the output")
    np.savez(folder / "case.npz", image=image.numpy(), expected=expected.numpy())
    save(engine, model, folder / "model.pt")
    return ""


def blocks_in(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if block_of(module)]


def train_one_step(engine: Engine, model: nn.Module, images: torch.Tensor) -> None:
    """A step of SGD with the loss of the engine.

    Raises:
        ValueError: a parameter has no finite gradient, or none of the blocks' parameters changed.
    """
    own = [parameter for block in blocks_in(model) for parameter in block.parameters()]
    before = [parameter.detach().clone() for parameter in own]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    loss = loss_of_ultralytics if engine.kind == ULTRALYTICS else loss_of_yolov5
    loss(engine, model, images).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all()):
            raise ValueError(f"{name} has no finite gradient")
    optimizer.step()
    if own and all(torch.equal(old, new) for old, new in zip(before, own)):
        raise ValueError("a step does not change its parameters")


def loss_of_yolov5(engine: Engine, model: Any, images: torch.Tensor) -> torch.Tensor:
    model.hyp = read_hyp(engine.root / "data/hyps/hyp.scratch-low.yaml")
    loss: torch.Tensor = engine.module("utils.loss").ComputeLoss(model)(model(images), TARGETS)[0]
    return loss


def loss_of_ultralytics(engine: Engine, model: Any, images: torch.Tensor) -> torch.Tensor:
    model.args = engine.module("cfg").get_cfg()
    batch = {"img": images, "batch_idx": TARGETS[:, 0], "cls": TARGETS[:, 1:2], "bboxes": TARGETS[:, 2:]}
    loss: torch.Tensor = model.loss(batch)[0].sum()
    model.criterion = None
    return loss


def settle(model: nn.Module, images: torch.Tensor) -> None:
    """Give the blocks random weights, and BatchNorm the statistics of the images.

    Otherwise some blocks do nothing (their last layer is zero), and the signal fades from layer to layer.
    """
    for block in blocks_in(model):
        for parameter in block.parameters():
            inputs = parameter[0].numel() if parameter.ndim > 1 else 1
            nn.init.normal_(parameter, std=inputs**-0.5)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)


@contextlib.contextmanager
def skipped(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """In the ``with`` block, these modules return their input."""
    hooks = [block.register_forward_hook(lambda module, inputs, output: inputs[0]) for block in blocks]
    yield
    for hook in hooks:
        hook.remove()


def save(engine: Engine, model: Any, file: Path) -> None:
    """Write a checkpoint as the engine's training leaves it."""
    if engine.kind == ULTRALYTICS:
        model.task, model.args = "detect", {"task": "detect", "imgsz": max(SIDES)}
        checkpoint = ultralytics_models.stripped(model.half(), engine=engine)
    else:
        model.names = [f"class{i}" for i in range(model.yaml["nc"])]
        checkpoint = {"epoch": -1, "model": model.half(), "ema": None, "updates": None, "optimizer": None}
    torch.save(checkpoint, file)


FORMATS = {"torchscript": "model.torchscript*", "onnx": "model.onnx"}
"""The name of the file that an export to each format writes."""


def exported(engine: Engine, file: Path, form: str) -> str:
    """Export a checkpoint as a user does. Returns why this was not possible; empty if it was."""
    of_ultralytics = [f"model={file}", f"format={form}", f"imgsz=[{SIDES[0]},{SIDES[1]}]", "device=cpu"]
    of_yolov5 = ["--weights", file, "--include", form, "--img", *SIDES, "--device", "cpu", "--opset", OPSET]
    if form == "onnx":
        of_ultralytics.append(f"opset={OPSET}")
    options = of_ultralytics if engine.kind == ULTRALYTICS else of_yolov5
    said = io.StringIO()
    with quiet(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = yolov5_ema(["export", *map(str, options)])
    return f"cannot be exported: {said.getvalue().strip().splitlines()[-1]}" if code else ""


# --- runtimes --------------------------------------------------------------------------------


def run_models(runtimes: Sequence[str], folder: Path, refused: dict[str, Refused]) -> dict[str, dict[str, Outcome]]:
    """What runtimes make of the files of each block, by block and by runtime with its version."""
    return {
        block: {_label(runtime): outcome(runtime, folder / block, reasons) for runtime in runtimes}
        for block, reasons in refused.items()
    }


def outcome(runtime: str, folder: Path, refused: Refused) -> Outcome:
    """How far the output of a runtime is from torch's, relative to the largest value; or why it does not work."""
    form, run = RUNTIMES[runtime]
    if form in refused:
        return refused[form]
    case = np.load(folder / "case.npz")
    (file,) = folder.glob(FORMATS[form])
    try:
        found = run(file, case["image"], case["expected"])
    except Exception as error:  # the libraries have their own kinds of errors
        return f"it cannot run the file: {first_sentence(error)}"
    apart = difference(found, case["expected"])
    if apart <= TOLERANCE:
        return float(f"{apart:.1e}")
    return f"its output is wrong: it differs from torch's by {apart:.2g} times the largest value"


def first_sentence(error: Exception) -> str:
    """What an error says, without the places in OpenCV's source."""
    text = re.sub(r"^OpenCV\(\S+\) \S+ error: ", "", " ".join(str(error).split()))
    return text.partition(" in function ")[0].split(". ")[0][:300]


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected value; infinite for values that are not finite."""
    apart = float(np.abs(found - expected).max() / np.abs(expected).max())
    return apart if np.isfinite(apart) else float("inf")


def by_runtime_of_package(form: str) -> Callable[..., np.ndarray]:
    """A runtime that `yolov5-ema predict` uses."""

    def run(file: Path, image: np.ndarray, _expected: np.ndarray) -> np.ndarray:
        return loaded(file, How(torch.device("cpu")), {}, form).run(image).numpy()

    return run


def by_opencv(file: Path, image: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The output from OpenCV's default engine; an error says whether its older engine gives the right one."""
    import cv2

    try:
        return opencv_output(file, image, expected.shape)
    except cv2.error as error:
        older = getattr(cv2.dnn, "ENGINE_CLASSIC", None)
        if older is None or difference(opencv_output(file, image, expected.shape, older), expected) > TOLERANCE:
            raise
        raise RuntimeError(f"{first_sentence(error)}; with ENGINE_CLASSIC it can") from error


def opencv_output(file: Path, image: np.ndarray, shape: tuple[int, ...], *engine: int) -> np.ndarray:
    import cv2

    network = cv2.dnn.readNetFromONNX(str(file), *engine)
    network.setInput(image)
    outputs = network.forward(network.getUnconnectedOutLayersNames())
    # YOLOv5 6.0 exports the maps of each stride too
    return next(np.asarray(output) for output in outputs if output.shape == shape)


RUNTIMES: dict[str, tuple[str, Callable[..., np.ndarray]]] = {
    "TorchScript of torch": ("torchscript", by_runtime_of_package("torchscript")),
    "ONNX Runtime": ("onnx", by_runtime_of_package("onnx")),
    "OpenVINO": ("onnx", by_runtime_of_package("openvino")),
    "OpenCV": ("onnx", by_opencv),
}
"""The runtimes, with the format that each reads."""


def _label(runtime: str) -> str:
    import cv2
    import onnxruntime
    import openvino

    versions = {
        "TorchScript of torch": torch.__version__,
        "ONNX Runtime": onnxruntime.__version__,
        "OpenVINO": openvino.__version__,
        "OpenCV": cv2.__version__,
    }
    return f"{runtime} {versions[runtime].partition('+')[0].partition('-')[0]}"


if __name__ == "__main__":
    main()
