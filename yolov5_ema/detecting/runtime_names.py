"""The names of the runtimes of models; `yolov5_ema.detecting.choosing` chooses among them."""

AUTO, TORCH, ONNX, OPENVINO, TENSORRT = "auto", "torch", "onnx", "openvino", "tensorrt"
RUNTIMES = (TORCH, ONNX, OPENVINO, TENSORRT)

FLOAT32, HALF, INT8 = "float32", "half", "int8"
"""The precision of a runtime on a CPU; another than float32 is used only if the user asks for it."""

FEWEST_IMAGES = 32
"""Below this number of images, loading another runtime than torch takes longer than it gains."""

WORTH_EXPORTING = 200
"""The number of images from which on an export gains more time than it takes."""
