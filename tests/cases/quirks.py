"""One function for each quirk, with the quirk's name: it raises an error unless the quirk is applied."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import multiprocessing
import os
import shutil
import socket
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import torch

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.errors import CheckpointError, UserError


def _quirk(name: str) -> Quirk:
    from yolov5_ema.engine.quirks import QUIRKS

    (quirk,) = [quirk for quirk in QUIRKS if quirk.name == name]
    return quirk


def _refusal(call: Callable[..., object], *args: object, kind: type[UserError] = UserError) -> str:
    """Make a call that must raise a UserError, and return its message."""
    try:
        call(*args)
    except kind as error:
        return str(error)
    raise AssertionError("said nothing")


def _saved_yolov5n(file: Path, **options: Any) -> None:
    from yolov5.models import experimental
    from yolov5.models.yolo import Model

    model = Model(Path(experimental.__file__).parent / "yolov5n.yaml", **options).half()
    torch.save({"model": model, "ema": None, "epoch": 3, "optimizer": None}, file)


def pkg_resources() -> None:
    from yolov5.utils.general import check_version

    assert check_version("1.10.0", "1.9.0") and not check_version("1.9.0", "1.10.0")
    assert "pkg_resources" not in sys.modules


def font_from_disk() -> None:
    from yolov5.utils.plots import Annotator

    annotator = Annotator(np.zeros((60, 200, 3), np.uint8), pil=True)
    annotator.draw.text((5, 5), "EMA", fill=(255, 255, 255), font=annotator.font)
    assert annotator.result().any()


def font_getsize() -> None:
    from yolov5.utils.plots import Annotator

    annotator = Annotator(np.zeros((60, 200, 3), np.uint8), pil=True)
    annotator.box_label((20, 30, 60, 50), "EMA 0.9", color=(255, 0, 0))
    wide, high = annotator.font.getsize("EMA 0.9")
    assert wide > annotator.font.getsize("EMA")[0] > 0 and 0 < high < 40


def numpy_names() -> None:
    from yolov5.utils.general import labels_to_class_weights
    from yolov5.utils.metrics import compute_ap

    labels = np.array([[0, 0.5, 0.5, 0.1, 0.1], [1, 0.5, 0.5, 0.1, 0.1], [1, 0.5, 0.5, 0.1, 0.1]])
    assert np.allclose(labels_to_class_weights([labels], nc=2), [2 / 3, 1 / 3])
    ap, _, _ = compute_ap([0.5, 1.0], [1.0, 1.0])
    # 101 points, the last of which has precision 0
    assert abs(ap - 0.995) < 1e-6
    # its own namespace is as it was
    assert hasattr(np, "int") == (np.lib.NumpyVersion(np.__version__) < "1.24.0")


def loss_clamp() -> None:
    from yolov5.utils.loss import ComputeLoss

    loss = ComputeLoss.__new__(ComputeLoss)
    loss.na, loss.nl, loss.hyp = 1, 1, {"anchor_t": 4.0}
    loss.anchors = torch.tensor([[[2.0, 2.0]]])
    targets = torch.tensor([[0, 1, 0.999, 0.40, 0.25, 0.25]])
    _, tbox, indices, _ = loss.build_targets([torch.zeros(1, 1, 8, 8, 7)], targets)
    cells = {(int(i), int(j)) for i, j in zip(indices[0][3], indices[0][2])}
    # the object's own cell (7, 3); left of its middle there is no neighbour, x is past it; y = 3.2 is nearer to row 2
    assert cells == {(7, 3), (7, 2)}, cells
    assert indices[0][2].dtype == torch.int64 and tbox[0].dtype == torch.float32
    # torch's own namespace is as it was
    assert torch.ones(7).dtype == torch.float32


def cpu_ddp(folder: Path, data: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    from yolov5 import train

    seen = []

    def stop(hyp: object, opt: object, device: Any, callbacks: object) -> None:
        seen.append((device, torch.distributed.get_backend(), torch.zeros(1, device=device).device.type))

    train.train = stop
    opt = train.parse_opt(known=True)
    opt.data, opt.cfg, opt.project, opt.weights = str(data), "yolov5n.yaml", str(folder), ""
    train.main(opt)
    torch.distributed.destroy_process_group()
    assert seen == [("cpu", "gloo", "cpu")] and seen[0][0].type != "cpu", seen


def _train_until_there_is_no_data(folder: Path, **given: object) -> None:
    """Call train, which uses its options until it finds that the data set is missing; the run folder is ``exp``."""
    from yolov5 import train

    names = "epochs batch_size weights single_cls evolve cfg resume noval nosave workers freeze"
    names += " upload_dataset s3_upload_dir"
    (folder / "none.yaml").write_text("train: none\nval: none\nnc: 1\nnames: [a]\n")
    options = {
        **dict.fromkeys(names.split()),
        "save_dir": str(folder / "exp"),
        "data": str(folder / "none.yaml"),
        **given,
    }
    with contextlib.suppress(Exception):
        train.train({"lr0": 0.01}, SimpleNamespace(**options), torch.device("cpu"), train.Callbacks())


def one_run_folder(folder: Path) -> None:
    _train_until_there_is_no_data(folder, save_dir=str(folder / "exp2"))
    assert not (folder / "exp2").exists()


def resume_in_ranks() -> None:
    from yolov5 import train

    assert train.check_wandb_resume(SimpleNamespace(data="", resume=True)) is None


def whole_settings(folder: Path) -> None:
    from yolov5 import train

    def dies(settings: object, stream: Any, **_: object) -> NoReturn:
        stream.write("lr0")
        raise KeyError

    run = folder / "exp"
    run.mkdir()
    (run / "hyp.yaml").write_text("lr0: 0.02")
    train.yaml.safe_dump = dies
    _train_until_there_is_no_data(folder)
    assert (run / "hyp.yaml").read_text() == "lr0: 0.02" and len(list(run.rglob("*.yaml*"))) == 1


def resume_after_kill(folder: Path) -> None:
    run = folder / "exp"
    (run / "weights").mkdir(parents=True)
    rows = ["epoch,loss", "0,3", "1,2"]
    (run / "results.csv").write_text("\n".join(rows))
    torch.save({"epoch": 0, "optimizer": {}, "best_fitness": 0.1}, run / "weights/last.pt")
    _train_until_there_is_no_data(folder, resume=True, weights=str(run / "weights/last.pt"))
    assert (run / "results.csv").read_text().split() == rows[:2]
    assert (run / "weights/best.pt").exists()


def safe_checkpoints(folder: Path) -> None:
    from yolov5.models import experimental
    from yolov5.utils.general import strip_optimizer

    _saved_yolov5n(folder / "m.pt")
    strip_optimizer(str(folder / "m.pt"))
    loaded = experimental.attempt_load(str(folder / "m.pt"))
    assert sum(p.numel() for p in loaded.parameters()) > 1e6


def one_copy_of_classes(folder: Path) -> None:
    from yolov5.models import experimental
    from yolov5.models.common import Conv
    from yolov5.models.yolo import Detect

    _saved_yolov5n(folder / "m.pt")
    loaded = experimental.attempt_load(str(folder / "m.pt"))
    assert type(loaded.model[-1]) is Detect
    assert not any(hasattr(m, "bn") for m in loaded.modules() if isinstance(m, Conv))
    assert "models.yolo" not in sys.modules


def autoanchor_few_boxes() -> None:
    from yolov5.utils.autoanchor import check_anchors

    labels = [np.array([[0, 0.5, 0.5, 0.50, 0.25], [0, 0.5, 0.5, 0.10, 0.05]])] * 4
    dataset = SimpleNamespace(shapes=np.full((4, 2), 100.0), labels=labels)
    detect = SimpleNamespace(anchors=torch.full((3, 3, 2), 0.5), stride=torch.tensor([8.0, 16.0, 32.0]))
    check_anchors(dataset, SimpleNamespace(model=[detect]), imgsz=200)
    pixels = (detect.anchors * detect.stride.view(-1, 1, 1)).view(-1, 2)
    assert {tuple(map(round, size)) for size in pixels.tolist()} == {(20, 10), (100, 50)}, pixels


def stale_label_cache(folder: Path, data: Path) -> None:
    from yolov5.utils.datasets import LoadImagesAndLabels

    other = shutil.copytree(data.parent, folder / "other", ignore=shutil.ignore_patterns("*.cache"))
    LoadImagesAndLabels(str(other / "images/val"), 64, 2)
    # with the cache of the other place
    own = shutil.copytree(other, folder / "set")
    first = LoadImagesAndLabels(str(own / "images/val"), 64, 2)
    shutil.copy(own / "images/val/val0.jpg", own / "images/val/val9.jpg")
    second = LoadImagesAndLabels(str(own / "images/val"), 64, 2)
    assert len(second) == len(first) + 1
    (own / "labels/val.cache").write_bytes(b"torn")
    assert len(LoadImagesAndLabels(str(own / "images/val"), 64, 2)) == len(second)


def save_json(folder: Path, data: Path) -> None:
    from yolov5 import val

    _saved_yolov5n(folder / "m.pt", nc=3)
    val.run(
        str(data), weights=[str(folder / "m.pt")], imgsz=64, batch_size=4, save_json=True, plots=False,
        project=str(folder / "val"), conf_thres=1e-9, device="cpu",
    )  # fmt: skip
    rows = json.loads((folder / "val/exp/m_predictions.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} == set(rows[0])
    assert {row["image_id"] for row in rows} == {"val0", "val1", "val2", "val3"}


def onnx_exporter(folder: Path) -> None:
    import onnx
    from yolov5 import export

    layer = torch.nn.Conv2d(3, 4, 3).eval()
    export.export_onnx(layer, torch.zeros(1, 3, 16, 16), folder / "m.pt", 13, False, False, False)
    assert onnx.load(str(folder / "m.onnx")).opset_import[0].version == 13


def openvino_converter(folder: Path) -> None:
    from yolov5_ema.upstream.patching import Patches

    (folder / "openvino").mkdir()
    shutil.copy(Path(__file__).with_name("stand_ins") / "openvino_converter.py", folder / "openvino/__init__.py")
    sys.path.insert(0, str(folder))
    # as in 7.0.14, of which there is only this text
    source = "@try_export\ndef export_openvino(file, metadata, half, prefix=''):\n"
    source += "    import openvino.inference_engine as ie\n"
    theirs: Any = types.ModuleType("yolov5.export")
    theirs.__dict__.update(colorstr=str, try_export=lambda function: function, export_openvino=None)
    theirs.yaml_save = lambda file, content: file.write_text(str(content))
    quirk = _quirk("openvino-converter")
    engine: Any = None
    module = SourceModule(engine, "export", source, theirs)
    assert "inference_engine" in (quirk.needed(module) or "")
    without = source.replace(".inference_engine as ie", "")
    assert quirk.needed(SourceModule(engine, "export", without, theirs)) is None
    patches = Patches()
    quirk.apply(module, patches)
    (folder / "best.onnx").write_text("model")
    for half in (True, False):
        exported, _ = theirs.export_openvino(folder / "best.pt", {"stride": 32}, half)
        assert Path(exported) == folder / "best_openvino_model"
        assert (Path(exported) / "best.xml").read_text() == f"model {half}"
        assert (Path(exported) / "best.yaml").read_text() == "stride: 32\n"
    patches.undo()
    assert theirs.export_openvino is None


def openvino_runtime(folder: Path) -> None:
    (folder / "openvino").mkdir()
    shutil.copy(Path(__file__).with_name("stand_ins") / "openvino_runtime.py", folder / "openvino/__init__.py")
    sys.path.insert(0, str(folder))
    sys.modules.pop("openvino", None)
    exported = folder / "m_openvino_model"
    exported.mkdir()
    for name, text in (("m.xml", ""), ("m.bin", ""), ("m.yaml", "stride: 32\nnames: [a]\n")):
        (exported / name).write_text(text)
    from yolov5.models.common import DetectMultiBackend

    model = DetectMultiBackend(str(exported))
    assert model.names == ["a"] and "openvino.runtime" not in sys.modules
    assert torch.equal(torch.as_tensor(model(torch.ones(1, 3, 8, 8))), torch.full((1, 3, 8, 8), 2.0))
    _openvino_as_v6_1_calls_it()


def _openvino_as_v6_1_calls_it() -> None:
    from yolov5_ema.engine.quirks.openvino import _stand_ins

    with _stand_ins(["openvino.inference_engine"]):
        import openvino.inference_engine as ie
    core = ie.IECore()
    (request,) = core.load_network(core.read_network("m", weights="w"), device_name="CPU", num_requests=1).requests
    request.set_blob(blob_name="images", blob=ie.Blob(ie.TensorDesc(precision="FP32", dims=(1,), layout="NCHW"), 3))
    request.infer()
    assert request.output_blobs["output"].buffer == 6


def classifier_cutoff() -> None:
    from yolov5.classify import train

    from yolov5_ema.cfgs.generator import build_cfg
    from yolov5_ema.cfgs.graph import Graph

    def convert(model: Any, **given: int) -> Any:
        opt = SimpleNamespace(cutoff=given.get("cutoff"))
        return train.ClassificationModel(model=model, nc=2, cutoff=opt.cutoff or 10)

    def kinds(model: Any) -> list[str]:
        return [type(row).__name__ for row in model.model]

    def detector(**given: Any) -> Any:
        return train.DetectionModel(build_cfg(size="n", nc=2, **given), nc=2)

    backbone = "Conv Conv C3 Conv C3 Conv C3 {0} Conv C3 {0} Classify"
    plain = backbone.replace("{0} ", "").split()
    made = convert(detector(block="EMA", at="backbone"))
    assert kinds(made) == backbone.format("EMA").split(), kinds(made)
    assert made.model[-1].conv.conv.in_channels == 256 and made.model[-1].i == 11
    # as YOLOv5 does it
    assert kinds(convert(detector(block="none"))) == plain
    chosen = convert(detector(block="EMA", at="backbone"), cutoff=9)
    assert kinds(chosen) == ["Conv", "Conv", "C3", "Conv", "C3", "Conv", "C3", "EMA", "Classify"]
    graph = Graph.from_cfg(build_cfg(size="n", block="none", nc=2))
    # behind the SPPF, which is kept with it
    graph.insert_behind(graph.rows[9], "EMA")
    made = convert(train.DetectionModel(graph.to_cfg(), nc=2))
    assert kinds(made) == [*plain[:-1], "SPPF", "EMA", "Classify"], kinds(made)
    assert made.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 2)


class ModelOnAGpu:
    """The part of a model that `check_amp` uses."""

    def parameters(self) -> Any:
        return iter([SimpleNamespace(device=SimpleNamespace(type="cuda", index=0))])


class ChangedByMixedPrecision:
    """An ``AutoShape`` whose results mixed precision changes."""

    amp = False

    def __init__(self, model: object, verbose: bool = True) -> None: ...

    def __call__(self, image: object) -> Any:
        return SimpleNamespace(xywhn=[torch.full((1, 6), float(self.amp))])


def amp_check() -> None:
    from yolov5.models import common
    from yolov5.utils import downloads, general

    from yolov5_ema.engine.quirks import downloads as ours

    common.AutoShape = ChangedByMixedPrecision
    asked: list[object] = []
    said: list[str] = []
    downloads.requests.get = lambda *a, **k: asked.append(a)
    general.check_online = ours.is_online = lambda *a: False
    general.LOGGER.warning = said.append
    # the stock yolov5n.pt cannot be had, and that is no error
    assert general.check_amp(ModelOnAGpu()) is False
    assert asked == [] and len(said) == 1 and "disabling Automatic Mixed Precision" in said[0]


def torch_has_cuda() -> None:
    from yolov5 import detect

    assert detect.torch.has_cuda == torch.cuda.is_available()


def torch_amp() -> None:
    from yolov5 import train

    scaler = train.amp.GradScaler(enabled=False)
    assert type(scaler) is torch.amp.GradScaler
    with train.amp.autocast(enabled=False):
        assert not torch.is_autocast_enabled("cuda")


def randrange_float() -> None:
    from yolov5 import train

    sizes = {train.random.randrange(64 * 0.5, 64 * 1.5 + 32) for _ in range(500)}
    assert min(sizes) >= 32 and max(sizes) < 128


def pictures_in_order() -> None:
    from yolov5 import val

    where = []
    val.Thread(target=lambda *a: where.append(threading.current_thread()), args=(1,), daemon=True).start()
    assert where == [threading.main_thread()]

    def broken() -> NoReturn:
        raise RuntimeError("no picture")

    val.Thread(target=broken, args=(), daemon=True).start()


def drawn_on_copies() -> None:
    from yolov5.models import common

    class Time(float):
        t = 0.0

    picture = np.zeros((64, 64, 3), np.uint8)
    picture.flags.writeable = False
    found = [torch.tensor([[4.0, 4.0, 40.0, 40.0, 0.9, 0.0]])]
    results = common.Detections([picture], found, ["a.jpg"], [Time()] * 4, ["thing"], (1, 3, 64, 64))
    results.render()
    assert (results.ims if hasattr(results, "ims") else results.imgs)[0].max() > 0
    assert picture.max() == 0


def downloads_say_so(folder: Path) -> None:
    from yolov5.utils import downloads

    asked: list[object] = []
    downloads.requests.get = lambda *a, **k: asked.append(a)
    said = _refusal(downloads.attempt_download, str(folder / "nowhere/mine.pt"), kind=CheckpointError)
    assert "weights not found: " in said and said.endswith("mine.pt. Check the path")
    assert asked == []


def files_before_hub(folder: Path) -> None:
    from yolov5.utils import downloads

    from yolov5_ema.engine.quirks import downloads as ours

    sys.modules["huggingface_hub"] = None  # type: ignore[assignment]
    os.chdir(folder)
    Path("here").mkdir()
    Path("here/best.pt").touch()
    whole = str(folder / "here/best.pt")
    for name in ("", "yolov5n.pt", "best.pt", "here/best.pt", whole, "here", "runs/train/exp/best.pt"):
        assert downloads.attempt_download_from_hub(name) is None, name

    def refusal() -> str:
        return _refusal(downloads.attempt_download_from_hub, "someone/yolov5-of-theirs", kind=CheckpointError)

    assert "pip install 'huggingface-hub" in refusal()
    theirs: Any = ours
    theirs.importlib.util.find_spec, theirs.is_online = (lambda *a: object()), (lambda *a: False)
    assert "cannot be reached" in refusal()


def roboflow() -> None:
    # not installed
    sys.modules["roboflow"] = None  # type: ignore[assignment]
    from yolov5 import train

    assert sys.modules["roboflow"] is None and "roboflow.core" not in sys.modules
    link = "https://universe.roboflow.com/someone/things/1"
    assert "pip install roboflow" in _refusal(train.RoboflowConnector.init, link, "token")


def imports_when_used() -> None:
    from yolov5.utils import plots

    for name in [name for name in sys.modules if name.partition(".")[0] == "seaborn"]:
        del sys.modules[name]
    with contextlib.suppress(Exception):  # of fonts, which a second import looks for again
        importlib.reload(plots)
    assert "seaborn" not in sys.modules
    assert plots.sn.color_palette(["#ff0000"])[0] == (1.0, 0.0, 0.0) and "seaborn" in sys.modules


def ultralytics() -> None:
    from yolov5_ema.upstream.locate import Engine

    # as upstream's newest has it, which is not among the releases at hand
    source = 'try:\n    import ultralytics\nexcept ImportError:\n    os.system("pip install -U ultralytics")\n'
    module = SourceModule(Engine(Path("/clone"), "clone", "7.0+"), "utils.general", source)
    quirk = _quirk("ultralytics")
    while_running = quirk.while_running
    assert while_running is not None
    finding: Any = importlib.util
    find_spec = finding.find_spec
    finding.find_spec = lambda name, *a: None if name == "ultralytics" else find_spec(name, *a)
    assert "not installed" in (quirk.needed(module) or "")

    def enter() -> None:
        with while_running(module):
            raise AssertionError("it ran")

    said = _refusal(enter)
    assert "pip install 'yolov5-ema[ultralytics]'" in said and "7.0+" in said
    finding.find_spec = lambda *a: object()
    assert quirk.needed(module) is None


def root_stays(folder: Path) -> None:
    from yolov5 import train

    os.chdir(folder)
    sys.argv = ["train.py"]
    assert Path(train.parse_opt().hyp).is_file(), train.parse_opt().hyp


def noval(folder: Path, data: Path, cfg: Path) -> None:
    from yolov5 import train

    os.chdir(folder)
    shutil.copytree(data.parent, "set")
    Path("set/tiny.yaml").write_text(data.read_text().replace(str(data.parent), str(folder / "set")))
    os.environ["YOLOV5_EMA_IMPLEMENTATION"] = "exact"
    flags = "--img 32 --batch 4 --epochs 2 --workers 0 --noval --noplots --noautoanchor"
    sys.argv = ["train.py", "--data", "set/tiny.yaml", "--cfg", str(cfg), "--weights", "", *flags.split()]
    opt = train.parse_opt()
    train.main(opt)
    assert opt.noval
    with open("runs/train/exp/results.csv") as stream:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(stream)]
    losses = [float(row["val/obj_loss"]) for row in rows]
    # validated after the last epoch only
    assert losses[0] == 0 and losses[1] > 0, losses


def runs_here(folder: Path, root: Path) -> None:
    os.chdir(folder)
    from yolov5.segment import train

    def project(*flags: str) -> str:
        sys.argv = ["train.py", *flags]
        return str(train.parse_opt().project)

    assert project() == "runs/train-seg"
    assert project("--evolve") == "runs/evolve-seg"
    assert project("--project", f"{root}/mine") == f"{root}/mine"


def no_pip_behind_the_back() -> None:
    from yolov5.utils import general

    ran: list[object] = []

    def run(*args: object, **options: object) -> bytes:
        ran.append(args)
        return b""

    general.check_online = lambda: True
    general.check_output = run
    general.check_requirements(("no-such-distribution-at-all",))
    general.check_requirements(("no-such-distribution-at-all",), (), True)
    assert ran == []


def weight_transfer() -> None:
    from yolov5 import train
    from yolov5.models.yolo import Model

    from yolov5_ema.cfgs.generator import build_cfg
    from yolov5_ema.cfgs.graph import Graph

    def take_over(ckpt: dict[str, Any], model: Any) -> Any:
        csd = ckpt["model"].float().state_dict()
        return train.intersect_dicts(csd, model.state_dict(), exclude=["anchor"])

    graph = Graph.from_cfg(build_cfg(size="n", block="none", nc=2))
    ckpt = {"model": Model(graph.to_cfg())}
    graph.insert_behind(graph.rows[6], "nn.Identity")
    assert len(take_over(ckpt, Model(graph.to_cfg()))) == 349


def display() -> None:
    import cv2
    from yolov5.utils import general

    from yolov5_ema.engine.quirks import display as theirs

    windows: Any = cv2
    ours: Any = theirs
    ours.has_display = lambda: False
    opened: list[object] = []
    windows.imshow, windows.waitKey, windows.destroyAllWindows = (lambda *args: opened.append(args)), len, list
    general.is_docker = general.is_colab = lambda: False
    general.check_imshow()
    assert opened == []


def wandb_epochs(root: Path) -> None:
    from yolov5_ema.upstream.locate import engine_at
    from yolov5_ema.upstream.patching import Patches

    class WandbLogger:
        def end_epoch(self) -> None: ...

    source = "class WandbLogger:\n    def end_epoch(self):\n        pass\n"
    theirs = SimpleNamespace(WandbLogger=WandbLogger)
    module = SourceModule(engine_at(root), "utils.loggers.wandb.wandb_utils", source, theirs)
    quirk = _quirk("wandb-epochs")
    assert quirk.needed(module)
    quirk.apply(module, Patches())
    logger: Any = WandbLogger()
    logger.end_epoch(best_result=True)


def worker_processes(folder: Path, data: Path) -> None:
    from yolov5.utils import datasets

    # the default from Python 3.14 on; the large libraries are imported once, for both workers
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload(["torchvision", "cv2", "pandas", "seaborn", "matplotlib.pyplot"])
    own = shutil.copytree(data.parent, folder / "set")
    real_pool = datasets.Pool

    class Pool:
        """Fail, instead of hanging, if the worker cannot unpickle and is replaced again and again."""

        def __init__(self, count: int) -> None:
            self.pool = real_pool(1)

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            self.pool.terminate()

        def imap(self, call: Callable[..., object], items: Any) -> list[object]:
            (first,) = self.pool._pool
            results = []
            for result in [self.pool.apply_async(call, (item,)) for item in items]:
                while not result.ready():
                    assert first in self.pool._pool, "the worker was replaced"
                    result.wait(0.1)
                results.append(result.get())
            return results

    datasets.Pool = Pool
    dataset = datasets.LoadImagesAndLabels(str(own / "images/val"), 64, 2)
    assert len(dataset) == 4
    loaders = datasets.torch.utils.data
    loader = loaders.DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=dataset.collate_fn)
    assert [images.shape for images, *_ in loader] == [(2, 3, 64, 64)] * 2


class _Code:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.made),)


def safe_checkpoints_of_the_newest(folder: Path, root: Path) -> None:
    """Upstream's newest has its own loader, which runs what a file says."""
    from yolov5_ema.upstream.locate import engine_at
    from yolov5_ema.upstream.patching import Patches

    torch.save({"model": _Code(folder / "ran")}, folder / "m.pt")
    theirs: Any = types.ModuleType("train")
    theirs.torch_load = lambda file, **options: torch.load(file, weights_only=False)
    source = "from ultralytics.utils.patches import torch_load\nckpt = torch_load(weights, map_location='cpu')\n"
    module = SourceModule(engine_at(root), "train", source, theirs)
    quirk = _quirk("safe-checkpoints")
    assert quirk.needed(module)
    quirk.apply(module, Patches())
    said = _refusal(lambda: theirs.torch_load(str(folder / "m.pt"), map_location="cpu"), kind=CheckpointError)
    assert "mkdir" in said, said
    assert not (folder / "ran").exists()
