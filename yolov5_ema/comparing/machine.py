"""What machine and software a figure comes from."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import yolov5_ema
from yolov5_ema.upstream.locate import Engine


def software(engine: Engine) -> dict[str, str]:
    """Versions of what takes part in a training."""
    return {
        "yolov5": f"{engine.version} ({engine.kind})",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "yolov5_ema": yolov5_ema.__version__,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """The machine as it is now: processor or GPU, cores, threads, and how busy it is."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def cpu_name() -> str:
    """Model name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def torch_device(flag: str) -> torch.device:
    """The first device that YOLOv5's ``--device`` names: '' (a GPU if there is one), cpu, 0, or 0,1."""
    if flag.strip().lower() == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    first = flag.replace("cuda:", "").split(",")[0].strip()
    return torch.device("cuda", int(first) if first.isdecimal() else 0)
