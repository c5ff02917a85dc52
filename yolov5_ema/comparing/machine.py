"""The machine and the software versions on which a value was measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import yolov5_ema
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS


def software(*engines: Engine) -> dict[str, str]:
    """The versions of the software that the trainings of engines use."""
    return {
        **dict(map(_version_of, engines)),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "yolov5_ema": yolov5_ema.__version__,
    }


def _version_of(engine: Engine) -> tuple[str, str]:
    if engine.kind == ULTRALYTICS:
        return ULTRALYTICS, engine.version
    return "yolov5", f"{engine.version} ({engine.kind})"


def machine(device: torch.device) -> dict[str, Any]:
    """The machine and its current state: processor or GPU, cores, threads, and load."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def cpu_name() -> str:
    """The model name of the processor, as far as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def torch_device(flag: str) -> torch.device:
    """The first device of YOLOv5's ``--device``, which is '' (a GPU if there is one), cpu, 0, or 0,1."""
    if flag.strip().lower() == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    first = flag.replace("cuda:", "").split(",")[0].strip()
    return torch.device("cuda", int(first) if first.isdecimal() else 0)
