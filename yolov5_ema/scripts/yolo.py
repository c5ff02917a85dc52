"""The command line ``yolo`` of the package `ultralytics`, with the attention blocks known to it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from yolov5_ema.data.yaml_files import load_yaml
from yolov5_ema.engine import ultralytics_adapter
from yolov5_ema.errors import UserError
from yolov5_ema.scripts import leash
from yolov5_ema.scripts.mistakes import errors_as_user_errors
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.ultralytics import find_cfg, is_cfg_of_ultralytics

_ASSIGNMENT = re.compile(r"(?P<key>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)


def assignments(words: Sequence[str]) -> dict[str, str]:
    """The words of the form ``model=yolo11n.pt``, as ultralytics writes its arguments, by name."""
    found = (_ASSIGNMENT.fullmatch(word) for word in words)
    return {match["key"]: match["value"] for match in found if match}


def run_yolo(words: Sequence[str]) -> int:
    """Run ``yolo WORDS`` with the adapter installed, and return the exit code.

    Args:
        words: the arguments, such as ``["train", "model=yolo11n-ema.yaml", "data=coco8.yaml"]``.

    Raises:
        UserError: what ultralytics reports as a mistake, or a model of YOLOv5.
    """
    engine = ultralytics_adapter.install()
    _refuse_yolov5(assignments(words).get("model", ""), engine)
    cfg = engine.module("cfg")
    with Patches() as patches, errors_as_user_errors(engine):
        for name in ("cfg", "engine.model"):
            patches.set(engine.module(name), "ARGV", ["yolo", *words])
        if leash.is_on():
            patches.wrap(engine.module("utils.dist"), "generate_ddp_file", leash.in_every_rank)
        cfg.entrypoint()
    return 0


def _refuse_yolov5(model: str, engine: Engine) -> None:
    """Refuse a model YAML of YOLOv5. A checkpoint of YOLOv5 is refused when it is read."""
    if not model.endswith((".yaml", ".yml")):
        return
    from yolov5_ema.resources import find_shipped

    file = find_cfg(model, engine) or find_shipped(model)
    if file is None:
        return
    content = load_yaml(file)
    if isinstance(content, dict) and "anchors" in content and not is_cfg_of_ultralytics(content):
        flags = shlex.join(["--cfg", model])
        raise UserError(f"model={model} is a model YAML of YOLOv5: use the flags of YOLOv5 instead, {flags} …")
