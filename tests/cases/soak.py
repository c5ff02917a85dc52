"""Many detections in one process; prints what was seen of its memory, as JSON."""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import numpy as np
import torch

import yolov5_ema
from yolov5_ema.cli.main import main


class _Memory:
    """The resident bytes and the objects of the process, after every 20th detection."""

    def __init__(self, leak: int) -> None:
        self.resident: list[int] = []
        self.objects: list[int] = []
        self.count = 0
        self._leak, self._kept = leak, list[bytes]()

    def look(self) -> None:
        """After a detection; keeps as many bytes as are to leak."""
        self.count += 1
        self._kept.append(bytes(self._leak))
        if self.count % 20 == 0:
            gc.collect()
            with open("/proc/self/statm") as stream:
                self.resident.append(int(stream.read().split()[1]) * 4096)
            self.objects.append(len(gc.get_objects()))


def detects_with_a_loaded_model(weights: str, count: int, leak: int, sizes: str) -> None:
    """``sizes``: JSON, (height, width) of the images, which are used by turns."""
    model: Any = yolov5_ema.load(weights, "cpu")
    model.conf = 0.001
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in json.loads(sizes)]
    memory, found = _Memory(leak), 0
    for index in range(count):
        results = model(images[index % len(images)], size=(64, 96, 128)[index % 3])
        found += len(results.xyxy[0])
        memory.look()
    print(json.dumps({"resident": memory.resident, "objects": memory.objects, "found": found}))


def detects_by_the_command(leak: int, *flags: str) -> None:
    """YOLOv5's own detect, with the memory measured each time that it has run the model."""
    memory = _Memory(leak)

    def look(module: Any, *_: object) -> None:
        if type(module).__name__ == "Detect":
            memory.look()

    torch.nn.modules.module.register_module_forward_hook(look)
    code = main(["detect", *flags])
    print(json.dumps({"resident": memory.resident, "objects": memory.objects, "count": memory.count}))
    sys.exit(code)
