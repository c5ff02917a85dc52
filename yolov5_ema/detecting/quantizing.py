"""An exported model with its convolutions in eight bits, for CPUs."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from yolov5_ema.errors import UserError
from yolov5_ema.texts import first_line

MOST_IMAGES = 32
"""The images from which the ranges of the values are measured."""


def quantize(file: Path, batches: Iterator[np.ndarray]) -> Path:
    """Quantize an ONNX file statically, by ``onnxruntime.quantization``.

    Args:
        file: the model in float32.
        batches: inputs of the model, float32 of shape (1, 3, H, W); see `MOST_IMAGES`.

    Returns:
        A new file in a folder of temporary files; the caller removes it with its folder.

    Raises:
        UserError: a package is missing, there are no images, or the model cannot be quantized.
    """
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--int8 needs the package {package}: pip install {package}")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    first = next(batches, None)
    if first is None:
        raise UserError("--int8: no image can be read to measure the ranges of the values")

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter([first, *batches])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch}

    draft = Path(tempfile.mkdtemp(prefix="yolov5-ema-int8-")) / "int8.onnx"
    # onnxruntime advises the root logger to preprocess a model; without a handler there, the advice would be printed
    silent = logging.NullHandler()
    logging.getLogger().addHandler(silent)
    try:
        quantize_static(
            str(file),
            str(draft),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    # onnxruntime and onnx raise errors of all kinds
    except Exception as error:
        raise UserError(f"--int8: the model cannot be quantized: {first_line(error)}") from error
    finally:
        logging.getLogger().removeHandler(silent)
    return draft
