"""Each quirk: its case works with the quirk, and fails without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import laid_aside
from release_case import run_in_child

from yolov5_ema.upstream.locate import engine_at

# the quirks that 6.0.7 does not need -> the release that their cases are written for; all others are for 6.0.7
OF_OTHER_RELEASES = {
    "amp-check": "6.1.9",
    "files-before-hub": "7.0.14",
    "noval": "7.0.14",
    "root-stays": "7.0.14",
    "roboflow": "7.0.14",
    "runs-here": "7.0.14",
    "openvino-runtime": "7.0.14",
    "classifier-cutoff": "7.0.14",
}

# the options of train, as far as it uses them before it finds that the data set is missing
_TRAIN = """
import contextlib, os
from pathlib import Path
from types import SimpleNamespace
import torch
from yolov5 import train
names = "epochs batch_size weights single_cls evolve cfg resume noval nosave workers freeze"
names += " upload_dataset s3_upload_dir"
run = Path(TMP) / "exp"
run.mkdir()
(Path(TMP) / "none.yaml").write_text("train: none\\nval: none\\nnc: 1\\nnames: [a]\\n")
def start(**given):
    options = {**dict.fromkeys(names.split()), "save_dir": str(run), "data": TMP + "/none.yaml", **given}
    with contextlib.suppress(Exception):
        train.train({"lr0": 0.01}, SimpleNamespace(**options), torch.device("cpu"), train.Callbacks())
"""

# environment variables that are needed if a quirk is off
ENVIRONMENTS = {
    "cpu-ddp": {
        "YOLOV5_EMA_CPU_DDP": "1",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
    },
    "one-run-folder": {"RANK": "1"},
    "resume-in-ranks": {"RANK": "1"},
}

# name of the quirk -> code that raises unless the quirk is applied
CASES = {
    "pkg-resources": """
from yolov5.utils.general import check_version
assert check_version("1.10.0", "1.9.0") and not check_version("1.9.0", "1.10.0")
import sys
assert "pkg_resources" not in sys.modules
""",
    "font-from-disk": """
import numpy as np
from yolov5.utils.plots import Annotator
image = np.zeros((60, 200, 3), np.uint8)
annotator = Annotator(image, pil=True)
annotator.draw.text((5, 5), "EMA", fill=(255, 255, 255), font=annotator.font)
assert annotator.result().any()
""",
    "font-getsize": """
import numpy as np
from yolov5.utils.plots import Annotator
annotator = Annotator(np.zeros((60, 200, 3), np.uint8), pil=True)
annotator.box_label((20, 30, 60, 50), "EMA 0.9", color=(255, 0, 0))
wide, high = annotator.font.getsize("EMA 0.9")
assert wide > annotator.font.getsize("EMA")[0] > 0 and 0 < high < 40
""",
    "numpy-names": """
import numpy as np
from yolov5.utils.general import labels_to_class_weights
from yolov5.utils.metrics import compute_ap
weights = labels_to_class_weights([np.array([[0, .5, .5, .1, .1], [1, .5, .5, .1, .1], [1, .5, .5, .1, .1]])], nc=2)
assert np.allclose(weights, [2 / 3, 1 / 3])
ap, _, _ = compute_ap([0.5, 1.0], [1.0, 1.0])
assert abs(ap - 0.995) < 1e-6  # 101 points, the last of which has precision 0
assert hasattr(np, "int") == (np.lib.NumpyVersion(np.__version__) < "1.24.0")  # its own namespace is as it was
""",
    "loss-clamp": """
import torch
from yolov5.utils.loss import ComputeLoss
loss = ComputeLoss.__new__(ComputeLoss)
loss.na, loss.nl, loss.hyp = 1, 1, {"anchor_t": 4.0}
loss.anchors = torch.tensor([[[2.0, 2.0]]])
targets = torch.tensor([[0, 1, 0.999, 0.40, 0.25, 0.25]])
tcls, tbox, indices, anchors = loss.build_targets([torch.zeros(1, 1, 8, 8, 7)], targets)
cells = {(int(i), int(j)) for i, j in zip(indices[0][3], indices[0][2])}
# the object's own cell (7, 3); left of its middle there is no neighbour, x is past it; y = 3.2 is nearer to row 2
assert cells == {(7, 3), (7, 2)}, cells
assert indices[0][2].dtype == torch.int64 and tbox[0].dtype == torch.float32
assert torch.ones(7).dtype == torch.float32  # torch's own namespace is as it was
""",
    "cpu-ddp": """
import os, socket
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
import torch
from yolov5 import train
seen = []
def stop(hyp, opt, device, callbacks):
    seen.append((device, torch.distributed.get_backend(), torch.zeros(1, device=device).device.type))
train.train = stop
opt = train.parse_opt(known=True)
opt.data, opt.cfg, opt.project, opt.weights = SET, "yolov5n.yaml", TMP, ""
train.main(opt)
torch.distributed.destroy_process_group()
assert seen == [("cpu", "gloo", "cpu")] and seen[0][0].type != "cpu", seen
""",
    "one-run-folder": _TRAIN
    + """
start(save_dir=TMP + "/exp2")
assert not os.path.exists(TMP + "/exp2")
""",
    "resume-in-ranks": """
from types import SimpleNamespace
from yolov5 import train
assert train.check_wandb_resume(SimpleNamespace(data="", resume=True)) is None
""",
    "whole-settings": _TRAIN
    + """
def dies(settings, stream, **_):
    stream.write("lr0")
    raise KeyError
(run / "hyp.yaml").write_text("lr0: 0.02")
train.yaml.safe_dump = dies
start()
assert (run / "hyp.yaml").read_text() == "lr0: 0.02" and len(list(run.rglob("*.yaml*"))) == 1
""",
    "resume-after-kill": _TRAIN
    + """
(run / "weights").mkdir()
rows = ["epoch,loss", "0,3", "1,2"]
(run / "results.csv").write_text(chr(10).join(rows))
torch.save({"epoch": 0, "optimizer": {}, "best_fitness": 0.1}, run / "weights/last.pt")
start(resume=True, weights=str(run / "weights/last.pt"))
assert (run / "results.csv").read_text().split() == rows[:2]
assert (run / "weights/best.pt").exists()
""",
    "safe-checkpoints": """
from yolov5.models.yolo import Model
from yolov5.models import experimental
from yolov5.utils.general import strip_optimizer
from pathlib import Path
model = Model(Path(experimental.__file__).parent / "yolov5n.yaml").half()
import torch
torch.save({"model": model, "ema": None, "epoch": 3, "optimizer": None}, TMP + "/m.pt")
strip_optimizer(TMP + "/m.pt")
loaded = experimental.attempt_load(TMP + "/m.pt")
assert sum(p.numel() for p in loaded.parameters()) > 1e6
""",
    "one-copy-of-classes": """
import sys
from pathlib import Path
from yolov5.models import experimental
from yolov5.models.common import Conv
from yolov5.models.yolo import Detect, Model
model = Model(Path(experimental.__file__).parent / "yolov5n.yaml").half()
import torch
torch.save({"model": model, "ema": None, "epoch": 3, "optimizer": None}, TMP + "/m.pt")
loaded = experimental.attempt_load(TMP + "/m.pt")
assert type(loaded.model[-1]) is Detect
assert not any(hasattr(m, "bn") for m in loaded.modules() if isinstance(m, Conv))
assert "models.yolo" not in sys.modules
""",
    "autoanchor-few-boxes": """
from types import SimpleNamespace
import numpy as np
import torch
from yolov5.utils.autoanchor import check_anchors
labels = [np.array([[0, .5, .5, .50, .25], [0, .5, .5, .10, .05]])] * 4
dataset = SimpleNamespace(shapes=np.full((4, 2), 100.0), labels=labels)
anchors = torch.full((3, 3, 2), 0.5)
detect = SimpleNamespace(anchors=anchors, stride=torch.tensor([8.0, 16.0, 32.0]))
check_anchors(dataset, SimpleNamespace(model=[detect]), imgsz=200)
pixels = (detect.anchors * detect.stride.view(-1, 1, 1)).view(-1, 2)
assert {tuple(map(round, size)) for size in pixels.tolist()} == {(20, 10), (100, 50)}, pixels
""",
    "stale-label-cache": """
import shutil
from pathlib import Path
from yolov5.utils.datasets import LoadImagesAndLabels
folder = Path(TMP) / "set"
shutil.copytree(Path(SET).parent, folder)
first = LoadImagesAndLabels(str(folder / "images/val"), 64, 2)
shutil.copy(folder / "images/val/val0.jpg", folder / "images/val/val9.jpg")
second = LoadImagesAndLabels(str(folder / "images/val"), 64, 2)
assert len(second) == len(first) + 1
(folder / "labels/val.cache").write_bytes(b"torn")
assert len(LoadImagesAndLabels(str(folder / "images/val"), 64, 2)) == len(second)
""",
    "save-json": """
import json
from pathlib import Path
from yolov5 import val
from yolov5.models import experimental
from yolov5.models.yolo import Model
model = Model(Path(experimental.__file__).parent / "yolov5n.yaml", nc=3).half()
import torch
torch.save({"model": model, "ema": None, "epoch": 3, "optimizer": None}, TMP + "/m.pt")
val.run(SET, weights=[TMP + "/m.pt"], imgsz=64, batch_size=4, save_json=True, plots=False, project=TMP + "/val",
        conf_thres=1e-9, device="cpu")
rows = json.loads(Path(TMP + "/val/exp/m_predictions.json").read_text())
assert {"image_id", "category_id", "bbox", "score"} == set(rows[0])
assert {row["image_id"] for row in rows} == {"val0", "val1", "val2", "val3"}
""",
    "onnx-exporter": """
import onnx
import torch
from pathlib import Path
from yolov5 import export
layer = torch.nn.Conv2d(3, 4, 3).eval()
export.export_onnx(layer, torch.zeros(1, 3, 16, 16), Path(TMP + "/m.pt"), 13, False, False, False)
assert onnx.load(TMP + "/m.onnx").opset_import[0].version == 13
""",
    "openvino-converter": """
import sys
import types
from pathlib import Path
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.engine.quirks import QUIRKS, SourceModule
here = Path(TMP)
(here / "openvino").mkdir()
(here / "openvino/__init__.py").write_text(
    "def convert_model(file): return file.read_text()\\n"
    "def save_model(model, file, compress_to_fp16): file.write_text(f'{model} {compress_to_fp16}')\\n"
)
sys.path.insert(0, TMP)
# as in 7.0.14, of which there is only this text
source = "@try_export\\ndef export_openvino(file, metadata, half, prefix=''):\\n"
source += "    import openvino.inference_engine as ie\\n"
theirs = types.ModuleType("yolov5.export")
theirs.__dict__.update(colorstr=str, try_export=lambda function: function, export_openvino=None)
theirs.yaml_save = lambda file, data: file.write_text(str(data))
(quirk,) = [quirk for quirk in QUIRKS if quirk.name == "openvino-converter"]
module = SourceModule(None, "export", source, theirs)
assert "inference_engine" in quirk.needed(module)
assert quirk.needed(SourceModule(None, "export", source.replace(".inference_engine as ie", ""), theirs)) is None
patches = Patches()
quirk.apply(module, patches)
(here / "best.onnx").write_text("model")
for half in (True, False):
    folder, _ = theirs.export_openvino(here / "best.pt", {"stride": 32}, half)
    assert Path(folder) == here / "best_openvino_model"
    assert (Path(folder) / "best.xml").read_text() == f"model {half}"
    assert (Path(folder) / "best.yaml").read_text() == "stride: 32\\n"
patches.undo()
assert theirs.export_openvino is None
""",
    "openvino-runtime": """
import sys
from pathlib import Path
import torch
here, folder = Path(TMP), Path(TMP) / "m_openvino_model"
(here / "openvino").mkdir()
# as it is today, without its parts runtime and inference_engine; a model doubles what it is given
(here / "openvino/__init__.py").write_text(
    "from types import SimpleNamespace as Of\\n"
    "class Output:\\n"
    "    def get_any_name(self): return 'output'\\n"
    "class Compiled:\\n"
    "    outputs = [Output()]\\n"
    "    def __call__(self, given):\\n"
    "        (value,) = given.values() if isinstance(given, dict) else given\\n"
    "        return {self.outputs[0]: value * 2}\\n"
    "class Core:\\n"
    "    def read_model(self, model, weights):\\n"
    "        return Of(get_parameters=lambda: [Of(get_layout=lambda: Of(empty=False))])\\n"
    "    def compile_model(self, network, device_name): return Compiled()\\n"
    "Layout, get_batch = None, lambda network: Of(is_static=False)\\n"
)
sys.path.insert(0, TMP)
sys.modules.pop("openvino", None)
folder.mkdir()
for name, text in (("m.xml", ""), ("m.bin", ""), ("m.yaml", "stride: 32\\nnames: [a]\\n")):
    (folder / name).write_text(text)
from yolov5.models.common import DetectMultiBackend
model = DetectMultiBackend(str(folder))
assert model.names == ["a"] and "openvino.runtime" not in sys.modules
assert torch.equal(torch.as_tensor(model(torch.ones(1, 3, 8, 8))), torch.full((1, 3, 8, 8), 2.0))
# the calls of v6.1
from yolov5_ema.engine.quirks.openvino import _stand_ins
with _stand_ins(["openvino.inference_engine"]):
    import openvino.inference_engine as ie
core = ie.IECore()
(request,) = core.load_network(core.read_network("m", weights="w"), device_name="CPU", num_requests=1).requests
request.set_blob(blob_name="images", blob=ie.Blob(ie.TensorDesc(precision="FP32", dims=(1,), layout="NCHW"), 3))
request.infer()
assert request.output_blobs["output"].buffer == 6
""",
    "classifier-cutoff": """
from types import SimpleNamespace
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.cfgs.graph import Graph
from yolov5.classify import train
def convert(model, **given):
    opt = SimpleNamespace(cutoff=given.get("cutoff"))
    return train.ClassificationModel(model=model, nc=2, cutoff=opt.cutoff or 10)
def kinds(model): return [type(row).__name__ for row in model.model]
def detector(**given): return train.DetectionModel(build_cfg(size="n", nc=2, **given), nc=2)
backbone = "Conv Conv C3 Conv C3 Conv C3 {0} Conv C3 {0} Classify"
plain = backbone.replace("{0} ", "").split()
made = convert(detector(block="EMA", at="backbone"))
assert kinds(made) == backbone.format("EMA").split(), kinds(made)
assert made.model[-1].conv.conv.in_channels == 256 and made.model[-1].i == 11
assert kinds(convert(detector(block="none"))) == plain  # as YOLOv5 does it
chosen = convert(detector(block="EMA", at="backbone"), cutoff=9)
assert kinds(chosen) == "Conv Conv C3 Conv C3 Conv C3 EMA Classify".split()
graph = Graph.from_cfg(build_cfg(size="n", block="none", nc=2))
graph.insert_behind(graph.rows[9], "EMA")  # behind the SPPF, which is kept with it
made = convert(train.DetectionModel(graph.to_cfg(), nc=2))
assert kinds(made) == [*plain[:-1], "SPPF", "EMA", "Classify"], kinds(made)
import torch
assert made.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 2)
""",
    "amp-check": """
from types import SimpleNamespace
import torch
from yolov5.models import common
from yolov5.utils import downloads, general
from yolov5_ema.engine.quirks import downloads as ours
class Model:
    def parameters(self): return iter([SimpleNamespace(device=SimpleNamespace(type="cuda", index=0))])
class AutoShape:
    amp = False  # which changes the results
    def __init__(self, model, verbose=True): pass
    def __call__(self, image): return SimpleNamespace(xywhn=[torch.full((1, 6), float(self.amp))])
common.AutoShape = AutoShape
asked, said = [], []
downloads.requests.get = lambda *a, **k: asked.append(a)
general.check_online = ours.is_online = lambda *a: False
general.LOGGER.warning = said.append
assert general.check_amp(Model()) is False  # the stock yolov5n.pt cannot be had, and that is no error
assert asked == [] and len(said) == 1 and "disabling Automatic Mixed Precision" in said[0]
""",
    "torch-has-cuda": """
import torch
from yolov5 import detect
assert detect.torch.has_cuda == torch.cuda.is_available()
""",
    "torch-amp": """
import torch
from yolov5 import train
scaler = train.amp.GradScaler(enabled=False)
assert type(scaler) is torch.amp.GradScaler
with train.amp.autocast(enabled=False):
    assert not torch.is_autocast_enabled("cuda")
""",
    "randrange-float": """
from yolov5 import train
sizes = {train.random.randrange(64 * 0.5, 64 * 1.5 + 32) for _ in range(500)}
assert min(sizes) >= 32 and max(sizes) < 128
""",
    "pictures-in-order": """
import threading
from yolov5 import val
where = []
val.Thread(target=lambda *a: where.append(threading.current_thread()), args=(1,), daemon=True).start()
assert where == [threading.main_thread()]
def broken(): raise RuntimeError("no picture")
val.Thread(target=broken, args=(), daemon=True).start()
""",
    "drawn-on-copies": """
import numpy as np
import torch
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
""",
    "downloads-say-so": """
from yolov5.utils import downloads
from yolov5_ema.errors import CheckpointError
asked = []
downloads.requests.get = lambda *a, **k: asked.append(a)
try:
    downloads.attempt_download(TMP + "/nowhere/mine.pt")
except CheckpointError as error:
    assert "mine.pt" in str(error) and "--weights ''" in str(error)
else:
    raise AssertionError("said nothing")
assert asked == []
""",
    "files-before-hub": """
import os
import sys
from pathlib import Path
from yolov5.utils import downloads
from yolov5_ema.engine.quirks import downloads as ours
from yolov5_ema.errors import CheckpointError
sys.modules["huggingface_hub"] = None
os.chdir(TMP)
Path("here").mkdir()
Path("here/best.pt").touch()
for name in ("", "yolov5n.pt", "best.pt", "here/best.pt", TMP + "/here/best.pt", "here", "runs/train/exp/best.pt"):
    assert downloads.attempt_download_from_hub(name) is None, name
def refusal():
    try:
        downloads.attempt_download_from_hub("someone/yolov5-of-theirs")
    except CheckpointError as error:
        return str(error)
assert "pip install 'huggingface-hub" in refusal()
ours.importlib.util.find_spec, ours.is_online = (lambda *a: object()), (lambda *a: False)
assert "cannot be reached" in refusal()
""",
    "roboflow": """
import sys
sys.modules["roboflow"] = None  # not installed
from yolov5 import train
from yolov5_ema.errors import UserError
assert sys.modules["roboflow"] is None and "roboflow.core" not in sys.modules
try:
    train.RoboflowConnector.init("https://universe.roboflow.com/someone/things/1", "token")
except UserError as error:
    assert "pip install roboflow" in str(error)
else:
    raise AssertionError("said nothing")
""",
    "ultralytics": """
import importlib.util
from pathlib import Path
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.engine.quirks import QUIRKS, SourceModule
from yolov5_ema.errors import UserError
# as upstream's newest has it, which is not among the releases at hand
source = 'try:\\n    import ultralytics\\nexcept ImportError:\\n    os.system("pip install -U ultralytics")\\n'
module = SourceModule(Engine(Path("/clone"), "clone", "7.0+"), "utils.general", source)
(quirk,) = [quirk for quirk in QUIRKS if quirk.name == "ultralytics"]
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "ultralytics" else find_spec(name, *a)
assert "not installed" in quirk.needed(module)
try:
    with quirk.while_running(module):
        raise AssertionError("it ran")
except UserError as error:
    assert "pip install 'yolov5-ema[ultralytics]'" in str(error) and "7.0+" in str(error)
importlib.util.find_spec = lambda *a: object()
assert quirk.needed(module) is None
""",
    "root-stays": """
import os
import sys
from pathlib import Path
from yolov5 import train
os.chdir(TMP)
sys.argv = ["train.py"]
assert Path(train.parse_opt().hyp).is_file(), train.parse_opt().hyp
""",
    "noval": """
import csv
import os
import shutil
import sys
from pathlib import Path
from yolov5 import train
os.chdir(TMP)
shutil.copytree(Path(SET).parent, "set")
Path("set/tiny.yaml").write_text(Path(SET).read_text().replace(str(Path(SET).parent), TMP + "/set"))
os.environ["YOLOV5_EMA_IMPLEMENTATION"] = "exact"
sys.argv = ["train.py", "--data", "set/tiny.yaml", "--cfg", ROOT + "/models/yolov5n.yaml", "--weights", "", "--img",
            "32", "--batch", "4", "--epochs", "2", "--workers", "0", "--noval", "--noplots", "--noautoanchor"]
opt = train.parse_opt()
train.main(opt)
assert opt.noval
rows = list(csv.DictReader(open("runs/train/exp/results.csv"), skipinitialspace=True))
losses = [float(row["val/obj_loss"].strip()) for row in ({k.strip(): v for k, v in row.items()} for row in rows)]
assert losses[0] == 0 and losses[1] > 0, losses  # validated after the last epoch only
""",
    "runs-here": """
import os
import sys
os.chdir(TMP)
from yolov5.segment import train
def project(*flags):
    sys.argv = ["train.py", *flags]
    return str(train.parse_opt().project)
assert project() == "runs/train-seg"
assert project("--evolve") == "runs/evolve-seg"
assert project("--project", ROOT + "/mine") == ROOT + "/mine"
""",
    "no-pip-behind-the-back": """
from yolov5.utils import general
ran = []
general.check_online = lambda: True
general.check_output = lambda *a, **k: ran.append(a) or b""
general.check_requirements(("no-such-distribution-at-all",))
general.check_requirements(("no-such-distribution-at-all",), (), True)
assert ran == []
""",
    "weight-transfer": """
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.cfgs.graph import Graph
from yolov5.models.yolo import Model
from yolov5 import train
def take_over(ckpt, model):
    csd = ckpt["model"].float().state_dict()
    return train.intersect_dicts(csd, model.state_dict(), exclude=["anchor"])
graph = Graph.from_cfg(build_cfg(size="n", block="none", nc=2))
ckpt = {"model": Model(graph.to_cfg())}
graph.insert_behind(graph.rows[6], "nn.Identity")
assert len(take_over(ckpt, Model(graph.to_cfg()))) == 349
""",
    "display": """
import cv2, os
from yolov5.utils import general
from yolov5_ema.engine.quirks import display
display.has_display = lambda: False
opened = []
cv2.imshow, cv2.waitKey, cv2.destroyAllWindows = (lambda *args: opened.append(args)), len, list
general.is_docker = general.is_colab = lambda: False
general.check_imshow()
assert opened == []
""",
    "wandb-epochs": """
from pathlib import Path
import types
from yolov5_ema.upstream.locate import engine_at
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.engine.quirks import QUIRKS, SourceModule
class WandbLogger:
    def end_epoch(self): pass
source = "class WandbLogger:\\n    def end_epoch(self):\\n        pass\\n"
theirs = types.SimpleNamespace(WandbLogger=WandbLogger)
module = SourceModule(engine_at(Path(ROOT)), "utils.loggers.wandb.wandb_utils", source, theirs)
(quirk,) = [quirk for quirk in QUIRKS if quirk.name == "wandb-epochs"]
assert quirk.needed(module)
quirk.apply(module, Patches())
WandbLogger().end_epoch(best_result=True)
""",
    "worker-processes": """
import multiprocessing, shutil
from pathlib import Path
from yolov5.utils import datasets
multiprocessing.set_start_method("spawn", force=True)
folder = Path(TMP) / "set"
shutil.copytree(Path(SET).parent, folder)
real_pool = datasets.Pool
class Pool:  # a worker that cannot unpickle is replaced for ever; fail instead of hanging
    def __init__(self, count): self.pool = real_pool(1)
    def __enter__(self): return self
    def __exit__(self, *a): self.pool.terminate()
    def imap(self, f, items): return [self.pool.apply_async(f, (item,)).get(float(LIMIT_S)) for item in items]
datasets.Pool = Pool
dataset = datasets.LoadImagesAndLabels(str(folder / "images/val"), 64, 2)
assert len(dataset) == 4
loader = datasets.torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=dataset.collate_fn)
assert [images.shape for images, *_ in loader] == [(2, 3, 64, 64)] * 2
""",
}


@pytest.fixture
def in_process():
    def run(code: str, without: str | None, namespace: dict[str, str]) -> str:
        return run_in_child(code, namespace, without)

    return run


@pytest.fixture
def namespace(tmp_path, tiny_set, package_root, request) -> dict[str, str]:
    name = request.node.callspec.params["name"] if hasattr(request.node, "callspec") else ""
    release = OF_OTHER_RELEASES.get(name, "6.0.7")
    if engine_at(package_root).version != release:
        package_root = laid_aside(release)
    return {"TMP": str(tmp_path), "SET": str(tiny_set), "ROOT": str(package_root), "LIMIT_S": "100"}


def _case(name: str) -> str:
    return f"import os\nos.environ.update({ENVIRONMENTS.get(name, {})})\n{CASES[name]}"


def test_every_quirk_has_a_case():
    from yolov5_ema.engine.quirks import QUIRKS

    assert sorted(CASES) == sorted(quirk.name for quirk in QUIRKS)


@pytest.mark.parametrize("name", CASES)
def test_works_with_the_quirk(name, in_process, namespace):
    assert in_process(_case(name), None, namespace) == ""


# if the case works without the quirk, the installed library has changed: that is not our mistake
_SYMPTOMS = {
    "pkg-resources": "pkg_resources",
    "font-from-disk": "downloaded",
    "font-getsize": "getsize",
    "numpy-names": "has no attribute",
    "loss-clamp": "can't be cast",
    "cpu-ddp": "insufficient CUDA devices",
    "one-run-folder": "AssertionError",
    "resume-in-ranks": "No such file or directory: ''",
    "whole-settings": "AssertionError",
    "resume-after-kill": "AssertionError",
    "safe-checkpoints": "Weights only load failed",
    "one-copy-of-classes": "AssertionError",
    "autoanchor-few-boxes": "must match the size",
    "stale-label-cache": "which is not an image of the data set",
    "save-json": "'list' object has no attribute 'get'",
    "onnx-exporter": "Error",
    "openvino-converter": "openvino.inference_engine",
    "openvino-runtime": "openvino.runtime",
    "classifier-cutoff": "AssertionError",
    "amp-check": "models.common",
    "files-before-hub": "huggingface_hub",
    "roboflow": "roboflow",
    "ultralytics": "",
    "root-stays": "AssertionError",
    "noval": "map50s",
    "runs-here": "AssertionError",
    "torch-has-cuda": "has_cuda",
    "torch-amp": "deprecated",
    "randrange-float": "randrange",
    "pictures-in-order": "AssertionError",
    "drawn-on-copies": "rectangle",  # before OpenCV 4.9 it draws into the user's own array
    "downloads-say-so": "AssertionError",
    "no-pip-behind-the-back": "AssertionError",
    "weight-transfer": "AssertionError",
    "worker-processes": "TimeoutError",
    "display": "AssertionError",
    "wandb-epochs": "best_result",
}


@pytest.mark.parametrize("name", CASES)
def test_breaks_without_the_quirk(name, in_process, namespace):
    from yolov5_ema.engine.activation import survey

    with pytest.MonkeyPatch.context() as patched:  # of this process: the cases set it themselves
        for variable, value in ENVIRONMENTS.get(name, {}).items():
            patched.setenv(variable, value)
        needed = {row[0] for row in survey(engine_at(Path(namespace["ROOT"])))}
    if name not in needed:
        pytest.skip("not needed with the libraries installed here")
    limit_s = "8" if _SYMPTOMS[name] == "TimeoutError" else "30"
    failure = in_process(_case(name), name, {**namespace, "LIMIT_S": limit_s})
    assert _SYMPTOMS[name] in failure, failure or "nothing failed"


# upstream's newest has its own loader, which runs what a file says
_NEWEST_LOADER = """
import os
import types
from pathlib import Path
import torch
from yolov5_ema.upstream.locate import engine_at
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.engine.quirks import QUIRKS, SourceModule
from yolov5_ema.errors import CheckpointError
class Code:
    def __reduce__(self): return os.mkdir, (TMP + "/ran",)
torch.save({"model": Code()}, TMP + "/m.pt")
theirs = types.ModuleType("train")
theirs.torch_load = lambda file, **options: torch.load(file, weights_only=False)
source = "from ultralytics.utils.patches import torch_load\\nckpt = torch_load(weights, map_location='cpu')\\n"
module = SourceModule(engine_at(Path(ROOT)), "train", source, theirs)
(quirk,) = [quirk for quirk in QUIRKS if quirk.name == "safe-checkpoints"]
assert quirk.needed(module)
quirk.apply(module, Patches())
try:
    theirs.torch_load(TMP + "/m.pt", map_location="cpu")
except CheckpointError as error:
    assert "mkdir" in str(error), error
else:
    raise AssertionError("loaded")
assert not Path(TMP + "/ran").exists()
"""


def test_the_loader_of_upstreams_newest_is_replaced(in_process, namespace):
    assert in_process(_NEWEST_LOADER, None, namespace) == ""


def test_survey_reports_what_doctor_prints(package_root):
    from yolov5_ema.engine.activation import survey

    rows = survey(engine_at(package_root))
    assert ("numpy-names", "utils.general") in {(quirk, module) for quirk, module, _ in rows}
    assert all(reason for _, _, reason in rows)
