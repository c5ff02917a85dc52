"""Show what attention blocks do to an image: gate maps and Grad-CAM, as in the paper's Figure 4."""

from __future__ import annotations

from yolov5_ema.explain.gates import gate_map, watched_gates
from yolov5_ema.explain.gradcam import grad_cam
from yolov5_ema.explain.inside import share_inside

__all__ = ["gate_map", "grad_cam", "share_inside", "watched_gates"]
