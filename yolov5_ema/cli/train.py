"""``yolov5-ema train``: YOLOv5's own script under the shim."""

from __future__ import annotations

from collections.abc import Sequence

from yolov5_ema.cli._yolov5 import load_plugins

SUMMARY = "train a detector: YOLOv5's own train, with every flag of it"


def main(argv: Sequence[str]) -> int:
    """Run YOLOv5's ``train``; ``YOLOV5_EMA_SEED`` seeds it, also where YOLOv5 has no ``--seed``."""
    from yolov5_ema.engine import leash, scripts, seeding, shim

    leash.end_with_parent()
    load_plugins()
    engine = shim.install()
    with seeding.seeded_training(engine, argv) as flags:
        scripts.run_script(engine, "train", flags)
    return 0
