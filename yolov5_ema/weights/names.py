"""Names of classes and functions in checkpoints: which ones belong there."""

from __future__ import annotations

import re

from yolov5_ema.weights.paths import PATHS


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TASKS = ("detect", "segment", "semantic", "depth", "classify", "pose", "obb")
"""The tasks that a model of the package ultralytics can be for."""
OF_YOLOV5 = re.compile(r"(yolov5\.)?models\.(common|yolo|experimental)\.\w+")
LAYER = re.compile(
    r"((yolov5\.)?models\.(common|yolo|experimental)|torch\.nn\.modules\.\w+)\.[A-Z]\w*"
    r"|yolov5_ema\.blocks\.\w+\._?[A-Z]\w*"
)
OF_ULTRALYTICS = re.compile(r"ultralytics\.nn\.(modules(\.\w+)?|tasks)\.(v\d+)?[A-Z]\w*")
"""Layers and models of the package ultralytics. The name of a layer may begin in lower case: v10Detect."""
ULTRALYTICS_LOSS = re.compile(r"ultralytics\.utils\.(loss|tal)\.(v\d+)?[A-Z]\w*")
OF_TORCHVISION = re.compile(r"torchvision\.(models|ops)(\.\w+)+\._?[A-Z]\w*")
"""torchvision's networks, in a row TorchVision of ultralytics."""
OF_TIMM = re.compile(r"timm\.layers\.\w+\.[A-Z]\w*")
"""timm's layers, of which blocks such as ``timm.eca`` are made."""
ULTRALYTICS_DATA = re.compile(
    r"ultralytics\.(yolo\.)?utils\.IterableSimpleNamespace"
    r"|torchvision\.transforms\.(transforms\.(Compose|Normalize|Resize|CenterCrop|ToTensor)|functional\.InterpolationMode)"
)
"""Settings of a training, and how a classifier prepares an image."""
ULTRALYTICS_SETTINGS = frozenset(f"ultralytics.{part}utils.IterableSimpleNamespace" for part in ("", "yolo."))
"""What a checkpoint creates empty, by a call, and then fills."""
# names in YOLOv5's and ultralytics' modules that are not layers
_NOT_LAYERS = ("AutoShape", "DetectMultiBackend", "Path", "Thread", "Image", "SafeClass", "SafeUnpickler")

# What torch 2.6 and later accept by default with weights_only=True (torch._weights_only_unpickler).
_TORCH_NAMES = words(
    "collections.OrderedDict collections.Counter _codecs.encode builtins.bytearray builtins.set builtins.complex "
    "torch.nn.parameter.Parameter torch.Size torch.Tensor torch.device torch.serialization._get_layout "
    "torch._tensor._rebuild_from_type_v2 torch.storage.TypedStorage torch.storage.UntypedStorage"
)
_TORCH_FUNCTIONS = re.compile(
    r"torch\._utils\._rebuild_(parameter(_with_state)?|q?tensor|tensor_v[23]|sparse_tensor|meta_tensor_no_storage"
    r"|nested_tensor|wrapper_subclass|device_tensor_from_(numpy|cpu_tensor))"
)
_TORCH_TYPES = re.compile(
    r"torch\.(b?float\d+\w*|q?u?int\d+(x\d)?|b?complex\d+|bool|bits\w+|per_(tensor|channel)_\w+)"
    r"|torch\.(cuda\.)?(sparse\.)?(Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)(Storage|Tensor)"
    r"|torch\.(cuda\.)?(ComplexFloat|ComplexDouble|QU?Int\d+(x\d)?)Storage"
)
_NUMPY_NAMES = re.compile(
    r"numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|ndarray|dtype|dtypes\.(Bool|U?Int|U?Long|U?Byte|U?Short|Float)\w*)"
)
GETATTR = "builtins.getattr"
"""A Segment head holds ``Detect.forward``, which a pickle reads with getattr. No other use of it is allowed."""

# The opcodes that torch accepts with weights_only=True.
SAFE_STEPS = words(
    "APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD EMPTY_DICT EMPTY_LIST "
    "EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM "
    "SETITEMS SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2 TUPLE3"
)


def known_by_module(name: str) -> bool:
    """Whether a dotted name looks like a layer of a YOLO, torch or this package, judged by its module alone.

    >>> known_by_module("models.common.C3"), known_by_module("posix.system")
    (True, False)
    """
    if taken_by_torch(name) or name in PATHS or name == GETATTR or _NUMPY_NAMES.fullmatch(name):
        return True
    if ULTRALYTICS_LOSS.fullmatch(name) or ULTRALYTICS_DATA.fullmatch(name) or OF_TORCHVISION.fullmatch(name):
        return True
    is_layer = LAYER.fullmatch(name) or OF_ULTRALYTICS.fullmatch(name) or OF_TIMM.fullmatch(name)
    return is_layer is not None and name.rsplit(".", 1)[-1] not in _NOT_LAYERS


def taken_by_torch(name: str) -> bool:
    """Whether ``torch.load(weights_only=True)`` accepts a name by default, without ``add_safe_globals``."""
    patterns = (_TORCH_FUNCTIONS, _TORCH_TYPES)
    return name in _TORCH_NAMES or any(pattern.fullmatch(name) for pattern in patterns)
