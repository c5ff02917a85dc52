"""``openvino`` as far as exporting asks for it: it writes the text of the file that it is given, and the precision."""

from __future__ import annotations

from pathlib import Path


def convert_model(file: Path) -> str:
    return file.read_text()


def save_model(model: str, file: Path, compress_to_fp16: bool) -> None:
    file.write_text(f"{model} {compress_to_fp16}")
