"""Names of classes and functions in checkpoints: which ones belong there, and what the others mean."""

from __future__ import annotations

import re

from yolov5_ema.weights.inert_pickle import COMPUTED


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OF_YOLOV5 = re.compile(r"(yolov5\.)?models\.(common|yolo|experimental)\.\w+")
LAYER = re.compile(
    r"((yolov5\.)?models\.(common|yolo|experimental)|torch\.nn\.modules\.\w+|yolov5_ema\.blocks\.\w+)\.[A-Z]\w*"
)
_NOT_LAYERS = ("AutoShape", "DetectMultiBackend", "Path", "Thread", "Image")  # YOLOv5's modules name them too

# What torch's own loading takes by default with weights_only=True (torch._weights_only_unpickler), of 2.6 and later.
_TORCH_NAMES = _words(
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
"""A Segment head keeps ``Detect.forward``, which a pickle gets with it; fine for that alone."""

_PATHS = frozenset({"pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath"})

# The opcodes that torch's loading with weights_only=True takes.
SAFE_STEPS = _words(
    "APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD EMPTY_DICT EMPTY_LIST "
    "EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM "
    "SETITEMS SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2 TUPLE3"
)

# Modules whose functions run commands or code, reach the network or change files.
_DANGEROUS = _words(
    "os posix nt subprocess sys shutil socket pty importlib imp runpy builtins functools operator types code codeop "
    "ctypes pickle _pickle cloudpickle dill joblib marshal webbrowser urllib http requests tempfile asyncio "
    "multiprocessing threading signal platform pip pdb bdb cProfile profile timeit trace ast inspect copyreg "
    "torch.hub torch.load torch.serialization torch.jit torch.utils numpy.f2py numpy.testing"
)


def known_by_module(name: str) -> bool:
    """Whether a name looks like one of YOLOv5's layers, torch's or this package's, by its module alone.

    >>> known_by_module("models.common.C3"), known_by_module("posix.system")
    (True, False)
    """
    if taken_by_torch(name) or name in _PATHS or name == GETATTR or _NUMPY_NAMES.fullmatch(name):
        return True
    return LAYER.fullmatch(name) is not None and name.rsplit(".", 1)[-1] not in _NOT_LAYERS


def taken_by_torch(name: str) -> bool:
    """Whether ``torch.load(weights_only=True)`` takes a name without being told of it."""
    patterns = (_TORCH_FUNCTIONS, _TORCH_TYPES)
    return name in _TORCH_NAMES or any(pattern.fullmatch(name) for pattern in patterns)


def meaning(name: str) -> str:
    """What it says of a file that it holds a name outside the allow-list."""
    if name == COMPUTED:
        return f"{name}: what it would import cannot be told; no checkpoint needs that"
    if name == GETATTR:
        return f"{name}: of something else than a layer's forward; no checkpoint needs that. Do not load it"
    parts = name.split(".")
    if parts[0] in _DANGEROUS or ".".join(parts[:2]) in _DANGEROUS:
        return f"{name}: no checkpoint needs it; loading with --trust-checkpoint could run commands. Do not load it"
    if OF_YOLOV5.fullmatch(name):
        return (
            f"{name}: not in the YOLOv5 at hand; the file is of another release (name one with --yolov5 PATH)"
        )
    if name.startswith("ultralytics."):
        return f"{name}: of the package ultralytics (YOLOv8 and later); it loads there, not in YOLOv5"
    return (
        f"{name}: not on the allow-list; with --trust-checkpoint its module would be imported. "
        "A block of your own: --plugin its_module"
    )
