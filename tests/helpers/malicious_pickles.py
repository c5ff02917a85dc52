"""Pickles that run code when they are unpickled, by name, and the places of a checkpoint where they can be put.

A payload is a piece of a pickle program (of protocol 2 unless stated otherwise) that leaves one value on the stack. If
its code runs, it creates the file `CANARY` in the working directory.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CANARY = "ran"
TOUCH = f"touch {CANARY}"
OPEN = f"open('{CANARY}', 'w')"
CODE = f"import pathlib; pathlib.Path('{CANARY}').touch()"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def called(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def filled(instance: bytes, **state: bytes) -> bytes:
    return instance + b"}(" + b"".join(text(key) + value for key, value in state.items()) + b"ub"


def made(module: str, attribute: str, *args: bytes) -> bytes:
    """An instance that is made without calling its constructor."""
    return name(module, attribute) + b"(" + b"".join(args) + b"t\x81"


SYSTEM = called(name("posix", "system"), text(TOUCH))
GETATTR = name("builtins", "getattr")
NONE, EMPTY = b"N", b")"
LAYER = made("torch.nn.modules.activation", "SiLU")
_STATE = {"training": b"\x88", "_parameters": b"}", "_buffers": b"}", "_modules": b"}"}
_CFG = (
    b"}("
    + text("nc")
    + b"K\x01"
    + text("depth_multiple")
    + b"K\x01"
    + text("width_multiple")
    + b"K\x01"
    + text("anchors")
    + b"K\x03"
    + text("backbone")
    + b"](](J\xff\xff\xff\xffK\x01"
    + text("Conv")
    + b"](K\x08"
    + text(repr(OPEN))
    + b"eee"
    + text("head")
    + b"](](](K\x00eK\x01"
    + text("Detect")
    + b"]("
    + text("nc")
    + text("anchors")
    + b"eeeu"
)

# name of the payload: (its pickle, a word in the message that refuses it)
PAYLOADS: dict[str, tuple[bytes, str]] = {
    "os.system": (called(name("os", "system"), text(TOUCH)), "os.system"),
    "posix.system": (SYSTEM, "posix.system"),
    "subprocess.Popen": (
        called(name("subprocess", "Popen"), b"](" + text("touch") + text(CANARY) + b"e"),
        "Popen",
    ),
    "subprocess.check_output": (
        called(name("subprocess", "check_output"), b"](" + text("id") + b"e"),
        "check_output",
    ),
    "eval": (called(name("builtins", "eval"), text(OPEN)), "eval"),
    "exec": (called(name("builtins", "exec"), text(CODE)), "exec"),
    "Python 2's eval": (called(name("__builtin__", "eval"), text(OPEN)), "eval"),
    "open": (called(name("builtins", "open"), text(CANARY), text("w")), "open"),
    "io.open": (called(name("io", "open"), text(CANARY), text("w")), "open"),
    "compile": (called(name("builtins", "compile"), text(CODE), text("x"), text("exec")), "compile"),
    "__import__": (called(name("builtins", "__import__"), text("antigravity")), "__import__"),
    "importlib": (called(name("importlib", "import_module"), text("antigravity")), "import_module"),
    "getattr chain": (
        called(called(GETATTR, called(name("builtins", "__import__"), text("os")), text("system")), text(TOUCH)),
        "__import__",
    ),
    "getattr of a layer": (called(GETATTR, name("models.yolo", "Model"), text("__init__")), "getattr"),
    "getattr of a globals": (
        called(GETATTR, called(GETATTR, name("models.yolo", "Detect"), text("forward")), text("__globals__")),
        "getattr",
    ),
    "attrgetter": (
        called(called(name("operator", "attrgetter"), text("system")), name("posix", "system")),
        "attrgetter",
    ),
    "methodcaller": (
        called(
            called(name("operator", "methodcaller"), text("touch")),
            called(name("pathlib", "PosixPath"), text(CANARY)),
        ),
        "methodcaller",
    ),
    "partial": (
        called(called(name("functools", "partial"), name("posix", "system"), text(TOUCH))),
        "partial",
    ),
    "reduce": (
        called(name("functools", "reduce"), name("posix", "system"), b"](" + text(TOUCH) + b"e"),
        "reduce",
    ),
    "map": (
        called(name("builtins", "list"), called(name("builtins", "map"), name("posix", "system"))),
        "map",
    ),
    "torch.hub.load": (called(name("torch.hub", "load"), text("x/y"), text("z")), "torch.hub.load"),
    "torch.load": (called(name("torch.serialization", "load"), text("other.pt")), "load"),
    "torch.load of bytes": (
        called(
            name("torch.storage", "_load_from_bytes"),
            called(name("_codecs", "encode"), text("x"), text("latin1")),
        ),
        "_load_from_bytes",
    ),
    "torch.jit": (called(name("torch.jit", "load"), text("other.pt")), "torch.jit"),
    "torch.utils.cpp_extension": (
        called(name("torch.utils.cpp_extension", "load"), text("x"), text("x.cpp")),
        "cpp_ext",
    ),
    "torch.ops": (called(name("torch.ops", "load_library"), text("evil.so")), "load_library"),
    "torch._inductor": (
        called(name("torch._inductor.codecache", "compile_file"), text("x"), text("y")),
        "compile_file",
    ),
    "pickle.loads": (
        called(name("pickle", "loads"), called(name("_codecs", "encode"), text("cos\nsystem\n."), text("latin1"))),
        "pickle",
    ),
    "numpy.load": (called(name("numpy", "load"), text("x.npy"), NONE, b"\x88"), "numpy.load"),
    "numpy's runstring": (
        called(name("numpy.testing._private.utils", "runstring"), text(CODE), b"}"),
        "runstring",
    ),
    "numpy's f2py": (called(name("numpy.f2py.crackfortran", "getlincoef"), text(OPEN), b"}"), "getlincoef"),
    "runpy": (called(name("runpy", "run_path"), text("x.py")), "run_path"),
    "pty": (called(name("pty", "spawn"), text("/bin/true")), "pty"),
    "webbrowser": (called(name("webbrowser", "open"), text("http://127.0.0.1:9")), "webbrowser"),
    "ctypes": (called(name("ctypes", "CDLL"), text("libc.so.6")), "ctypes"),
    "code.interact": (called(name("code", "interact")), "interact"),
    "pip": (called(name("pip", "main"), b"](" + text("list") + b"e"), "pip"),
    "cProfile": (called(name("cProfile", "run"), text(CODE)), "cProfile"),
    "timeit": (called(name("timeit", "timeit"), text(CODE)), "timeit"),
    "shutil.rmtree": (called(name("shutil", "rmtree"), text("victim")), "rmtree"),
    "socket": (called(name("socket", "create_connection"), b"(" + text("127.0.0.1") + b"K\x09t"), "socket"),
    "sys.setattr": (called(name("builtins", "setattr"), name("torch", "nn"), text("x"), NONE), "setattr"),
    "types.FunctionType": (called(name("types", "FunctionType"), NONE, b"}"), "FunctionType"),
    "logging.config": (called(name("logging.config", "listen"), b"K\x09"), "logging"),
    "multiprocessing": (
        called(name("multiprocessing.util", "spawnv_passfds"), text("/bin/true"), b"]", b"]"),
        "spawnv",
    ),
    "dotted through YOLOv5": (
        called(name("models.common", "torch.os.system"), text(TOUCH)),
        "models.common.torch",
    ),
    "dotted through the package": (
        called(name("yolov5.models.common", "os.system"), text(TOUCH)),
        "os.system",
    ),
    "dotted through a layer": (called(name("models.yolo", "Model.info"), NONE), "Model.info"),
    "dotted through torch": (
        called(name("torch.nn.modules.conv", "Conv2d.__init__"), NONE),
        "Conv2d.__init__",
    ),
    "what YOLOv5's modules import": (
        called(name("models.common", "Path"), text(CANARY)),
        "models.common.Path",
    ),
    "YOLOv5's own loader": (
        called(name("models.experimental", "attempt_load"), text("other.pt")),
        "attempt_load",
    ),
    "YOLOv5's download": (
        called(name("models.experimental", "attempt_download"), text("yolov5s.pt")),
        "download",
    ),
    "a wrapper that opens files": (
        called(name("models.common", "DetectMultiBackend"), text("x.pt")),
        "DetectMulti",
    ),
    "a wrapper without its constructor": (filled(made("models.common", "AutoShape"), **_STATE), "AutoShape"),
    "this package": (called(name("yolov5_ema.scripts.running", "run_file"), NONE, text("x.py")), "run_file"),
    "this package's plugin": (called(name("yolov5_ema.cli._yolov5", "load_plugins")), "load_plugins"),
    "_reconstructor": (
        called(name("copy_reg", "_reconstructor"), name("posix", "system"), name("builtins", "object"), NONE),
        "",
    ),
    "copyreg.__newobj__": (called(name("copyreg", "__newobj__"), name("posix", "system")), "__newobj__"),
    # names that are allowed, used for something else
    "a model is called": (called(name("models.yolo", "Model"), text("/etc/hostname")), "Model"),
    "a model of code is called": (called(name("models.yolo", "Model"), _CFG), "Model"),
    "a layer of a terabyte": (
        called(name("torch.nn.modules.linear", "Linear"), b"J\x00\x00\x10\x00" * 2),
        "Linear",
    ),
    "a layer of ours of a terabyte": (
        called(name("yolov5_ema.blocks.ema", "EMA"), b"J\x00\x00\x00\x40"),
        "EMA",
    ),
    "a terabyte of bytes": (
        called(name("builtins", "bytearray"), b"\x8a\x06\x00\x00\x00\x00\x00\x01"),
        "bytearray",
    ),
    "an array of a terabyte": (
        called(
            name("numpy.core.multiarray", "_reconstruct"),
            name("numpy", "ndarray"),
            b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85",
            called(name("_codecs", "encode"), text("b"), text("latin1")),
        ),
        "_reconstruct",
    ),
    "an array of objects": (called(name("numpy", "dtype"), text("O8"), b"\x89\x88"), "numpy.dtype"),
    "a dtype that makes pointers": (
        called(name("numpy", "dtype"), text("f8"), b"\x89\x88")
        + b"(K\x03"
        + text("|")
        + NONE
        + b"("
        + text("a")
        + b"t}"
        + b"K\x08K\x01K\x00tb",
        "numpy.dtype",
    ),
    "a codec": (called(name("_codecs", "encode"), text("a" * 50), text("punycode")), "_codecs.encode"),
    "a codec that imports": (
        called(name("_codecs", "encode"), text("a"), text("antigravity")),
        "_codecs.encode",
    ),
    "a subclass's rebuild": (
        called(
            name("torch._tensor", "_rebuild_from_type_v2"),
            name("models.yolo", "Model"),
            name("torch", "Tensor"),
            EMPTY,
            b"}",
        ),
        "_rebuild_from_type_v2",
    ),
    "a call of what was got": (
        called(called(GETATTR, name("models.yolo", "Detect"), text("forward")), NONE),
        "that the file itself creates",
    ),
    "a key nested deep": (b"})" + b"\x85" * 30_000 + b"K\x01s", "key"),
    "a set of what is nested deep": (called(name("builtins", "set"), b"])" + b"\x85" * 30_000 + b"a"), "set"),
    "a persistent id": (b"](" + text("evil") + b"eQ", "outside"),
    "a reference to a module": (b"(" + text("module") + NONE + NONE + NONE + b"tQ", "outside"),
    "a layer whose class is changed": (filled(LAYER, **_STATE, __class__=name("posix", "system")), "posix"),
    "a layer whose forward is changed": (filled(LAYER, **_STATE, forward=name("posix", "system")), "posix"),
    "a layer with a hook": (
        filled(LAYER, **_STATE, _forward_pre_hooks=b"}K\x00" + name("posix", "system") + b"s"),
        "posix",
    ),
    "built with a state": (name("posix", "system") + b"}b", "posix.system"),
    # odd steps
    "STACK_GLOBAL": (text("posix") + text("system") + b"\x93" + text(TOUCH) + b"\x85R", ""),
    "a name computed": (
        called(name("builtins", "str"), text("posix")) + text("system") + b"\x93" + text(TOUCH) + b"\x85R",
        "",
    ),
    "INST": (b"(" + text(TOUCH) + b"iposix\nsystem\n", ""),
    "OBJ": (b"(" + name("posix", "system") + text(TOUCH) + b"o", ""),
    "EXT1": (b"\x82\x05" + text(TOUCH) + b"\x85R", ""),
    "NEWOBJ_EX": (name("posix", "system") + b"(" + text(TOUCH) + b"t}\x92", ""),
    "memoized and thrown away": (
        name("posix", "system") + b"q\xf00h\xf0" + text(TOUCH) + b"\x85R",
        "posix.system",
    ),
    "by a long memo": (
        name("posix", "system") + b"r\xff\xff\xff\x7f0j\xff\xff\xff\x7f" + text(TOUCH) + b"\x85R",
        "posix",
    ),
    "under a mark": (b"(" + SYSTEM + b"1N", ""),
}

_PLACES: dict[str, Callable[[bytes], dict[str, bytes]]] = {
    "top": lambda payload: {"extra": payload},
    "model": lambda payload: {"model": payload},
    "ema": lambda payload: {"ema": b"](" + payload + b"e"},
    "optimizer": lambda payload: {"optimizer": filled_dict(state=filled_dict(momentum=payload))},
    "opt": lambda payload: {"opt": filled_dict(data=payload)},
    "training_results": lambda payload: {"training_results": payload},
    "a layer": lambda payload: {"model": filled(LAYER, **_STATE, odd=b"](" + payload + b"e")},
    "a layer within layers": lambda payload: {
        "model": filled(
            LAYER,
            **{
                **_STATE,
                "_modules": filled_dict(a=filled(LAYER, **{**_STATE, "_modules": filled_dict(b=payload)})),
            },
        )
    },
}
PLACES = tuple(_PLACES)


def _of_ultralytics(cls: str, **state: bytes) -> bytes:
    module, _, attribute = f"ultralytics.nn.{cls}".rpartition(".")
    return filled(made(module, attribute), **{**_STATE, **state})


_MODEL = _of_ultralytics("tasks.DetectionModel")
_PLACES_OF_ULTRALYTICS: dict[str, Callable[[bytes], dict[str, bytes]]] = {
    "beside a model of ultralytics": lambda payload: {"model": _MODEL, "extra": payload},
    "train_args": lambda payload: {"model": _MODEL, "train_args": filled_dict(data=payload)},
    "settings of a model": lambda payload: {
        "model": NONE,
        "ema": _of_ultralytics(
            "tasks.DetectionModel",
            args=filled(called(name("ultralytics.utils", "IterableSimpleNamespace")), data=payload),
        ),
    },
    "a layer of ultralytics": lambda payload: {
        "model": _of_ultralytics(
            "tasks.DetectionModel",
            _modules=filled_dict(model=_of_ultralytics("modules.conv.Conv", odd=b"](" + payload + b"e")),
        )
    },
}
PLACES_OF_ULTRALYTICS = tuple(_PLACES_OF_ULTRALYTICS)
_PLACES |= _PLACES_OF_ULTRALYTICS
CONTAINERS = ("archive", "legacy", "bare", "second pickle")


def filled_dict(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def program(payload: bytes, place: str) -> bytes:
    """The pickle of a checkpoint with a payload at a place."""
    return b"\x80\x02" + filled_dict(note=text("longer than nothing" * 4), **_PLACES[place](payload)) + b"."


def write(file: Path, payload: bytes, place: str = "top", container: str = "archive", good: Path | None = None) -> Path:
    """Write a checkpoint with a payload: an archive, a file in the format of torch before 1.6, or a bare pickle.

    Args:
        file: the file to write.
        payload, place: the payload, and the place of the checkpoint to put it.
        container: one of `CONTAINERS`; ``second pickle`` adds the payload to the archive of ``good``.
        good: a checkpoint whose other entries are copied.
    """
    content = program(payload, place)
    if container == "bare":
        file.write_bytes(content)
    elif container == "legacy":
        first = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        file.write_bytes(first + content + pickle.dumps([], 2))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            with zipfile.ZipFile(io.BytesIO(good.read_bytes()) if good else io.BytesIO(_EMPTY_ZIP)) as other:
                for entry in other.namelist():
                    if not entry.endswith("/data.pkl") or container == "second pickle":
                        archive.writestr("a/" + entry.split("/", 1)[1], other.read(entry))
            archive.writestr("a/DATA.PKL" if container == "second pickle" else "a/data.pkl", content)
            if good is None:
                archive.writestr("a/version", "3\n")
                archive.writestr("a/byteorder", "little")
    return file


_EMPTY_ZIP = b"PK\x05\x06" + b"\x00" * 18


def as_object(function: Any, *args: Any) -> Any:
    """An object that `torch.save` and `pickle` store as a call of a function."""

    class Call:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return function, args

    return Call()
