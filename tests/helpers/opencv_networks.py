"""ONNX files in OpenCV's DNN."""

from __future__ import annotations

from typing import Any

import cv2


def opencv_networks(file: object) -> list[Any]:
    """The network of a file in each of OpenCV's engines; up to 4.x there is one."""
    engines = [getattr(cv2.dnn, name, None) for name in ("ENGINE_CLASSIC", "ENGINE_NEW")]
    if None in engines:
        return [cv2.dnn.readNetFromONNX(str(file))]
    return [cv2.dnn.readNetFromONNX(str(file), engine) for engine in engines]
