"""Comparisons with simulated trainings, which write the files of a training, with figures from a table."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from yolov5_ema.comparing import by_ultralytics, by_yolov5
from yolov5_ema.comparing import picture as comparison_picture
from yolov5_ema.comparing.runs import Runner
from yolov5_ema.scripts import preflight

BOTH, OF_ULTRALYTICS = ("plain.yaml", "small.yaml"), ("small.yaml", "small26.yaml")
"""The models of a comparison of both engines, and of one of ultralytics alone."""
CHECK_MODEL, MODEL_INFO, DRAW = preflight.check_model, by_yolov5.model_info, comparison_picture.draw
YOLO_INFO, CHECK_YOLO = by_ultralytics.ultralytics_info, by_ultralytics.UltralyticsTrainer.check
MAP50 = {
    **{"plain": (0.50, 0.52, 0.54), "yolov5n-ema": (0.51, 0.55, 0.55), "other": (0.40, 0.42, 0.45)},
    **{"small": (0.60, 0.62, 0.65), "small26": (0.61, 0.64, 0.65)},
}
COLUMNS = (
    *("epoch", "train/box_loss", "train/obj_loss", "train/cls_loss"),
    *("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
)


class Played:
    """Simulated trainings: `calls` lists the command lines, `fail` decides what a run with a name and a seed does."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fail: dict[tuple[str, int], str] = {}

    def __call__(self, runner: Runner, run: object, arguments: list[str], watched: bool = False) -> int:
        if arguments[0] == "run":
            output = Path(arguments[arguments.index("--output") + 1])
            map50 = MAP50[run.cfg][run.seed % 3]
            output.write_text(json.dumps({"precision": 0.1, "recall": 0.2, "map50": map50, "map50_95": map50 / 2}))
            return 0
        if arguments[0] == "evaluate":
            write_evaluation(Path(arguments[arguments.index("--json") + 1]), MAP50[run.cfg][run.seed % 3])
            return 0
        self.calls.append(arguments)
        how = self.fail.get((run.cfg, run.seed), "")
        run.log.write_bytes(b"epoch 1\r" + f"{how or 'Transferred 3/9 items from a.pt'}\n".encode())
        run.best.parent.mkdir(parents=True, exist_ok=True)
        loss = "nan" if how == "nan" else "0.5"
        map50 = MAP50[run.cfg][run.seed % 3]
        rows = "".join(f"{e}, 0.1, {loss}, 0.3, 0.1, 0.2, {map50 + e / 50}, {map50 / 2}\n" for e in range(2))
        (run.folder / "results.csv").write_text(f"{', '.join(COLUMNS)}\n{rows}")
        (run.folder / "hyp.yaml").write_text("lr0: 0.01\nmosaic: 1.0\nanchor_t: 4.0\n")
        torch.save({"epoch": 0 if how else -1}, run.last)
        run.best.touch()
        if how == "Ctrl-C":
            raise KeyboardInterrupt
        return 1 if how == "crash" else 0

    def trained(self) -> list[str]:
        """The model and seed of each call, and whether it was resumed."""
        found = []
        for call in self.calls:
            words = dict(word.split("=", 1) for word in call if "=" in word)
            if "model" in words:
                folder = Path(words["model"]).parent.parent
                begun = f"resume {folder.parent.name}/{folder.name}" if "resume" in words else ""
                found.append(begun or f"{Path(words['project']).name}/{words['name']}")
            elif "--resume" in call:
                folder = Path(call[call.index("--resume") + 1]).parent.parent
                found.append(f"resume {folder.parent.name}/{folder.name}")
            else:
                found.append(f"{Path(call[call.index('--project') + 1]).name}/{call[call.index('--name') + 1]}")
        return found


def write_evaluation(file: Path, map50: float) -> None:
    own = {"P": 0.1, "R": 0.2, "mAP50": map50, "mAP50-95": map50 / 2, "per_class": {"disc": {"labels": 12}}}
    file.write_text(json.dumps({"yolov5": own, "ultralytics": own, "coco": {"AP50": map50, "AP": map50 / 2}}))


BUILT: dict[tuple[object, ...], object] = {}


def by_content(function):
    """A function of a cfg that is called once for each content and set of arguments."""

    def wrapper(cfg, *args):
        key = (function, Path(cfg).read_bytes(), *args)
        if key not in BUILT:
            BUILT[key] = function(cfg, *args)
        return BUILT[key]

    return wrapper


def info_of_yolo(cfg, *args):
    return YOLO_INFO(cfg.name, cfg, *args)


def checked_once(trainer, name, cfg):
    key = (CHECK_YOLO, cfg.read_bytes())
    BUILT[key] = BUILT[key] if key in BUILT else CHECK_YOLO(trainer, name, cfg)


def command(tiny_set, *flags: object, cfgs: tuple[str, ...] = ("plain.yaml", "yolov5n-ema.yaml")) -> list[str]:
    usual = ["--epochs", 2, "--img", 64, "--batch", 4, "--latency-rounds", 0]
    return [str(f) for f in ("compare", "--data", tiny_set, "--cfgs", *cfgs, *usual, *flags)]


def result(name: str = "exp") -> dict:
    return json.loads(Path(f"runs/compare/{name}/comparison.json").read_text())
