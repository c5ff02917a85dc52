"""Checks the calls in the pickle of a checkpoint, not only the names that it uses.

``torch.load(weights_only=True)`` checks names only: an allowed class may be called with any arguments and filled with
any state. So a file with allowed names only can still build a detector of a terabyte, open a file through a YOLOv5
class, make a NumPy array that reads its own bytes as pointers, or crash the interpreter with a key nested ten thousand
deep. Here the calls of a pickle that `inert_pickle` has followed are checked too: only those that `torch.save` writes
for a detector are accepted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from yolov5_ema.weights.inert_pickle import (
    Followed,
    Items,
    Made,
    Named,
    Table,
    class_name,
    class_of_old_file,
    is_key,
)
from yolov5_ema.weights.inert_tensors import (
    MOST_PARTS,
    REBUILT_PARAMETER,
    REBUILT_TENSOR,
    are_sizes,
    args_of,
    rebuilt,
    storage_of,
    storages_in,
)
from yolov5_ema.weights.names import GETATTR, LAYER, OF_ULTRALYTICS
from yolov5_ema.weights.paths import PATHS

_NUMPY_DTYPE = re.compile(r"[?bhilqBHILQefd]|[biuf][1248]|f16")
_FILLED = re.compile(r"collections\.OrderedDict|numpy\._?core\.multiarray\._reconstruct")
"""Objects that are made by a call and then given a state. A tensor must not be: its state would move its storage."""
_HARMLESS = ("torch.device", "torch.serialization._get_layout", "builtins.complex")
"""Names that may be called with any arguments. Others that torch allows could be used to request all memory."""
_INTERPOLATION = "torchvision.transforms.functional.InterpolationMode"
_MOST_LAYERS = 1000
_MOST_REPEATED = 2**26
"""Elements that tensors may have in addition to those of the storages: views of a storage, and grids of anchors."""


def odd_calls(pickles: Iterable[Followed], empty: Container[str] = ()) -> list[str]:
    """Descriptions of what pickles do that no checkpoint needs, without repeats; empty if there is nothing.

    Args:
        pickles: those of a file.
        empty: names of classes that may be called without arguments, to be filled afterwards.
    """
    found: dict[str, None] = {}
    for pickle in pickles:
        for reason in (*_of_calls(pickle, empty), *_of_instances(pickle), *_of_values(pickle)):
            found[reason] = None
    return list(found)


def _of_calls(pickle: Followed, empty: Container[str]) -> Iterator[str]:
    for call in pickle.calls:
        name = class_name(call)
        if name in empty and not args_of(call) and isinstance(call.state, (Table, type(None))):
            continue
        if not name:
            yield "a call of an object that the file itself creates"
        elif name not in _JUDGES and name not in _HARMLESS:
            yield f"{name}: called while the file is read, not only filled with its state"
        elif name in _JUDGES and not _JUDGES[name](args_of(call)):
            yield f"{name}: called with arguments that no checkpoint needs"
        elif not _has_valid_state(call, name):
            yield f"{name}: given a state that no checkpoint needs"


def _has_valid_state(call: Made, name: str) -> bool:
    if name == "numpy.dtype":
        return _is_plain_dtype(call)
    return call.state is None or _FILLED.fullmatch(name) is not None


def _of_instances(pickle: Followed) -> Iterator[str]:
    for made in pickle.instances:
        name = class_name(made)
        # the state of a layer is a single dict of its attributes
        is_filled_as_a_layer = made.state is None or isinstance(made.state, Table)
        if not name or name in _JUDGES or args_of(made) or not is_filled_as_a_layer:
            yield f"{name or 'an object that the file itself creates'}: created in a way that no checkpoint needs"
        elif not _has_few_layers(made.state):
            yield f"{name}: has more than {_MOST_LAYERS} layers"


def _has_few_layers(state: Table | None) -> bool:
    """Whether every ``num_layers`` in a state is small: torch loops over that number while it fills an LSTM.

    A later pair with the same key does not help, so all pairs count.
    """
    counts = [value for name, value in state.pairs if name == "num_layers"] if state is not None else []
    return all(count is None or (type(count) is int and count <= _MOST_LAYERS) for count in counts)


def _of_values(pickle: Followed) -> Iterator[str]:
    if pickle.odd_keys:
        yield "a key of a dict, or a member of a set, that is not text or a number"
    # older files begin with a pickle of one large number
    if pickle.large_numbers and not isinstance(pickle.value, int):
        yield "a whole number of more than 64 bits"
    if not _tensors_have_memory(pickle):
        yield "tensors that claim more memory than the file holds"
    for value in pickle.stored:
        if storage_of(value) is None and not class_of_old_file(value):
            yield "a reference to an object outside the pickle that is not a tensor's storage"


def _tensors_have_memory(pickle: Followed) -> bool:
    """Whether the tensors together are about as large as their storages.

    A tensor may repeat its storage many times (stride 0): six bytes would become terabytes when it is copied. The grids
    of anchors that v6.0 and later keep are such tensors, but small.
    """
    tensors = [note for call in pickle.calls if (note := rebuilt(_args_of_tensor(call)))]
    stored = {note.key: note.stored for note in tensors}
    return sum(math.prod(note.shape) for note in tensors) <= 2 * sum(stored.values()) + _MOST_REPEATED


def _args_of_tensor(call: Made) -> list[Any]:
    """The arguments of a call that makes a tensor from a storage; an empty list for other calls."""
    name, args = class_name(call), args_of(call)
    if name == "torch._tensor._rebuild_from_type_v2" and len(args) > 2 and isinstance(args[0], Named):
        name, args = args[0].name, args[2].items if isinstance(args[2], Items) else []
    return args if REBUILT_TENSOR.fullmatch(name) else []


def short_storages(root: Followed, sizes: Mapping[str, int]) -> list[str]:
    """Keys of storages that are shorter than the pickle says; torch before about 2.9 would read beyond their ends.

    Args:
        root: the pickle of the saved object.
        sizes: bytes of each storage by its key.
    """
    return [one.key for one in storages_in(root.stored) if one.key in sizes and one.bytes > sizes[one.key]]


# --- calls, by their arguments -------------------------------------------------------------------


def _is_forward(args: list[Any]) -> bool:
    """Whether a call of getattr reads a layer's forward, or a constant that says how images are scaled."""
    return (
        len(args) == 2
        and isinstance(args[0], Named)
        and (
            ((LAYER.fullmatch(args[0].name) or OF_ULTRALYTICS.fullmatch(args[0].name)) and args[1] == "forward")
            or (args[0].name == _INTERPOLATION and isinstance(args[1], str) and args[1].isupper())
        )
    )


def _is_word(args: list[Any]) -> bool:
    return len(args) == 1 and isinstance(args[0], str) and len(args[0]) <= 32


def _is_latin(args: list[Any]) -> bool:
    """Whether a call encodes Latin-1, as protocol 2 writes bytes. Other codecs import modules or are very slow."""
    return len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1")


def _is_array(args: list[Any]) -> bool:
    """Whether a call is ``_reconstruct(numpy.ndarray, (0,), b"b")``: an empty array, which is filled later."""
    shape = args[1] if len(args) == 3 else None
    cls = args[0] if args else None
    return (
        isinstance(cls, Named) and cls.name == "numpy.ndarray" and isinstance(shape, Items) and shape.items in ([], [0])
    )


def _is_numpy_scalar(args: list[Any]) -> bool:
    return len(args) == 2 and class_name(args[0]) == "numpy.dtype"


def _is_dtype(args: list[Any]) -> bool:
    return bool(args) and isinstance(args[0], str) and _NUMPY_DTYPE.fullmatch(args[0]) is not None


def _is_plain_dtype(made: Made) -> bool:
    """Whether a dtype's state sets only its byte order: other fields and flags could turn bytes into pointers."""
    if made.state is None:
        return True
    state = made.state.items if isinstance(made.state, Items) else []
    return len(state) == 8 and all(part in (None, -1, 0) and not isinstance(part, Made) for part in state[2:])


def _is_short_bytes(args: list[Any]) -> bool:
    return all(isinstance(part, (bytes, str)) or class_name(part) == "_codecs.encode" for part in args)


def _is_size(args: list[Any]) -> bool:
    return are_sizes(args[0].items if len(args) == 1 and isinstance(args[0], Items) else args)


def _is_set(args: list[Any]) -> bool:
    if not args:
        return True
    return len(args) == 1 and isinstance(args[0], Items) and all(is_key(item) for item in args[0].items)


def _is_path(args: list[Any]) -> bool:
    return len(args) <= 4 * MOST_PARTS and all(isinstance(part, str) and len(part) <= 4096 for part in args)


def _is_ordered_dict(args: list[Any]) -> bool:
    if not args:
        return True
    pairs = args[0].items if len(args) == 1 and isinstance(args[0], Items) else None
    return pairs is not None and all(
        isinstance(pair, Items) and len(pair.items) == 2 and is_key(pair.items[0]) for pair in pairs
    )


def _is_tensor(args: list[Any]) -> bool:
    """Whether ``_rebuild_tensor_v2(storage, offset, size, stride, …)`` makes a tensor within its storage."""
    note = rebuilt(args)
    # the sixth argument: the hooks of its gradient
    return note is not None and note.is_within_storage and all(map(_is_empty, args[5:6]))


def _is_parameter(args: list[Any]) -> bool:
    """Whether the arguments are those of ``_rebuild_parameter(tensor, requires_grad, hooks, …)``, without hooks."""
    return len(args) >= 3 and isinstance(args[0], Made) and isinstance(args[1], bool) and _is_empty(args[2])


def _is_empty(value: Any) -> bool:
    """Whether a value is None, an empty dict or an empty OrderedDict."""
    if isinstance(value, Made):
        is_plain = class_name(value) == "collections.OrderedDict" and not args_of(value)
        return is_plain and not value.pairs and not value.items and value.state is None
    return value is None or (isinstance(value, Table) and not value.pairs)


def _is_of_a_subclass(args: list[Any]) -> bool:
    """Whether ``_rebuild_from_type_v2(rebuild, cls, args, state)`` makes a tensor: it calls its first argument."""
    if len(args) < 3 or not isinstance(args[0], Named) or not isinstance(args[2], Items):
        return False
    if REBUILT_TENSOR.fullmatch(args[0].name):
        return _is_tensor(args[2].items)
    return REBUILT_PARAMETER.fullmatch(args[0].name) is not None and _is_parameter(args[2].items)


_JUDGES: dict[str, Callable[[list[Any]], bool]] = {
    GETATTR: _is_forward,
    "_codecs.encode": _is_latin,
    "numpy.dtype": _is_dtype,
    **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), _is_array),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _is_numpy_scalar),
    "builtins.bytearray": _is_short_bytes,
    "builtins.set": _is_set,
    _INTERPOLATION: _is_word,
    "collections.OrderedDict": _is_ordered_dict,
    "collections.Counter": _is_ordered_dict,
    "torch.Size": _is_size,
    **dict.fromkeys(PATHS, _is_path),
    "torch._tensor._rebuild_from_type_v2": _is_of_a_subclass,
    **dict.fromkeys(("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"), _is_parameter),
    **dict.fromkeys(
        (f"torch._utils._rebuild_{name}" for name in ("tensor", "qtensor", "tensor_v2", "tensor_v3")),
        _is_tensor,
    ),
    # never accepted
    **dict.fromkeys(
        (
            "numpy.ndarray",
            "torch._utils._rebuild_wrapper_subclass",
            "torch._utils._rebuild_meta_tensor_no_storage",
            "torch._utils._rebuild_nested_tensor",
            "torch._utils._rebuild_sparse_tensor",
            "torch._utils._rebuild_device_tensor_from_numpy",
        ),
        lambda args: False,
    ),
}
