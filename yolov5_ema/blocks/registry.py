"""The registry of attention blocks: YAML files, the command line and the docs find blocks here by name."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar, overload

from torch import nn

from yolov5_ema.texts import nearest

_BlockType = TypeVar("_BlockType", bound=type)
PREFIX = "yolov5_ema."
"""Prefix of a block's name in a row: it selects this package's block even if another class has the same name."""

# parameters that say where a block is stored, not what it computes
_PLACEMENT = ("device", "dtype")


@dataclass(frozen=True)
class BlockInfo:
    """Name, class, paper and options of a registered block.

    ``options`` holds (name, default) for each constructor parameter except ``channels``, ``device`` and ``dtype``.
    The default is ``inspect.Parameter.empty`` for a parameter without one. ``limits`` says, in one sentence each, what
    does not hold for this block although it holds for those of this package.
    """

    name: str
    cls: type
    paper: str
    options: tuple[tuple[str, Any], ...]
    limits: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        """The options as Python code writes them: ``groups=32, cross_spatial=True``."""
        empty = inspect.Parameter.empty
        return ", ".join(name if default is empty else f"{name}={default!r}" for name, default in self.options)

    @property
    def summary(self) -> str:
        """First line of the class's docstring, or an empty string."""
        doc = (self.cls.__doc__ or "").strip()
        return doc.splitlines()[0].strip() if doc else ""


_REGISTRY: dict[str, BlockInfo] = {}

# blocks that another package has: what makes one of them when it is first used, and those that were made
_ON_DEMAND: dict[str, Callable[[str], BlockInfo]] = {}
_MADE: dict[str, BlockInfo] = {}
_making = threading.RLock()
# names that users may expect to be blocks, and why they are not
_NO_BLOCKS: dict[str, str] = {}

# names of the blocks in other projects, in lower case and without underscores
_OTHER_NAMES = {
    "A2": ("doubleattention", "doubleattentionlayer", "doubleattentionblock", "a2attention", "a2block", "a2net"),
    "BAM": ("bamblock", "bammodule", "bamattention", "bottleneckattention", "bottleneckattentionmodule"),
    "CA": ("coordatt", "coordattention", "coordinateattention", "cablock", "calayer", "coordatten", "coordattn"),
    "CBAM": ("cbamblock", "cbammodule", "cbamlayer", "cbamattention", "convolutionalblockattentionmodule"),
    "CPCA": ("cpcablock", "cpcaattention", "channelpriorconvolutionalattention"),
    "ECA": ("ecaattention", "ecalayer", "ecablock", "ecanet", "ecaneck", "efficientchannelattention", "ecamodule"),
    "ELA": (
        *("efficientlocalizationattention", "efficientlocalattention", "efficientlocalattn"),
        *("elaattention", "elablock", "elalayer", "elabase", "elab", "elat", "elas", "elal"),
    ),
    "EMA": (
        *("emaattention", "emattention", "efficientmultiscaleattention", "emamodule", "emalayer", "emablock", "emaatt"),
    ),
    "GAM": ("gamattention", "gamblock", "gammodule", "gamatt", "globalattention", "globalattentionmechanism"),
    "GC": (
        *("globalcontext", "globalcontextblock", "globalcontextattention", "contextblock", "contextblock2d"),
        *("gcblock", "gcmodule", "gclayer", "gcattention", "gcnet"),
    ),
    "LSKA": ("lskablock", "lskaattention", "lskattention", "largeseparablekernelattention"),
    "MLCA": ("mlcablock", "mlcaattention", "mixedlocalchannelattention"),
    "NAM": ("namattention", "namatt", "namblock", "nammodule", "normattention"),
    "NonLocal": (
        *("nonlocalblock", "nonlocalblock2d", "nonlocalblocknd", "nonlocal2d", "nonlocalattention", "nonlocalattn"),
        *("nonlocalmodule", "nlblock", "nlblocknd"),
    ),
    "ParNet": ("parnetattention", "parnetblock", "parnetatt"),
    "PolarizedSA": (
        *("psa", "psap", "psas", "psaattention", "polarizedselfattention", "polarizedattention"),
        *("parallelpolarizedselfattention", "sequentialpolarizedselfattention"),
    ),
    "SA": ("shuffleattention", "salayer", "sablock", "shuffleatt", "shuffleattn", "sanet"),
    "SE": (
        *("selayer", "seattention", "seattn", "seblock", "semodule", "senet", "squeezeexcite", "squeezeexcitation"),
        *("squeezeandexcitation", "squeezeandexcite"),
    ),
    "SGE": ("spatialgroupenhance", "spatialgroupwiseenhance", "sgeattention", "sgelayer", "sgeblock", "sgemodule"),
    "SRM": ("srmlayer", "srmblock", "srmattention", "srmmodule", "stylerecalibration"),
    "SimAM": ("simammodule", "simamattention", "simamblock", "simamlayer"),
    "Triplet": ("tripletattention", "tripletatt", "tripletattn", "tripletblock", "tripletlayer", "tam"),
}


def _read_signature(cls: Any) -> list[inspect.Parameter]:
    """Constructor parameters after ``channels``; raises a ``TypeError`` if the class cannot be a block."""
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise TypeError(f"a block is a subclass of torch.nn.Module, got {cls!r}")
    parameters = list(inspect.signature(cls).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].name != "channels" or parameters[0].kind not in positional:
        found = f"{parameters[0]}" if parameters else "none"
        raise TypeError(
            f"{cls.__name__}: the first constructor parameter of a block must be 'channels', found: {found}"
        )
    return parameters[1:]


@overload
def register_block(cls: _BlockType, *, name: str | None = ..., paper: str = ..., force: bool = ...) -> _BlockType: ...
@overload
def register_block(
    cls: None = ..., *, name: str | None = ..., paper: str = ..., force: bool = ...
) -> Callable[[_BlockType], _BlockType]: ...
def register_block(cls: Any = None, *, name: str | None = None, paper: str = "", force: bool = False) -> Any:
    """Class decorator that registers an attention block under a name; use it with or without arguments.

    Args:
        cls: an ``nn.Module`` subclass whose first constructor parameter is ``channels``.
        name: the name to register under, a plain Python identifier; the class's own name by default.
        paper: one line for tables: authors, venue, arXiv id.
        force: replace another class of that name instead of raising.

    Raises:
        TypeError: not an ``nn.Module`` subclass, or the first constructor parameter isn't ``channels``.
        ValueError: the name already belongs to another class (without ``force``), or is not an identifier.

    >>> from torch import nn
    >>> from yolov5_ema.blocks import create_block, register_block
    >>> @register_block(name="DoctestScale", force=True)
    ... class Scale(nn.Module):
    ...     def __init__(self, channels, factor=2.0):
    ...         super().__init__()
    ...         self.factor = factor
    ...     def forward(self, x):
    ...         return x * self.factor
    >>> create_block("DoctestScale", 64, factor=3.0).factor
    3.0
    >>> unregister_block("DoctestScale")
    """
    if cls is None:
        return lambda decorated: register_block(decorated, name=name, paper=paper, force=force)

    _read_signature(cls)
    key = cls.__name__ if name is None else name
    if not isinstance(key, str) or not key.isidentifier():
        raise ValueError(f"a block's name must be a plain identifier, got {key!r}")
    known = _REGISTRY.get(key)
    if known is not None and known.cls is not cls and not force:
        raise ValueError(
            f"a block named {key!r} is registered already: {known.cls.__module__}.{known.cls.__qualname__}; "
            f"give {cls.__name__} another name=, or force=True to replace it"
        )
    _REGISTRY[key] = described(cls, key, paper)
    return cls


def described(cls: type, name: str, paper: str, limits: tuple[str, ...] = ()) -> BlockInfo:
    """The `BlockInfo` of a class, with its options; raises a ``TypeError`` if the class cannot be a block."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [p for p in _read_signature(cls) if p.kind not in variadic and p.name not in _PLACEMENT]
    return BlockInfo(name, cls, paper, tuple((p.name, p.default) for p in parameters), limits)


def register_on_demand(
    names: Iterable[str], make: Callable[[str], BlockInfo], no_blocks: Mapping[str, str] | None = None
) -> None:
    """Make blocks of another package known by their names; the package is imported when one of them is used.

    Args:
        names: their names; `list_blocks` lists them only when it is asked to.
        make: makes the block of one of these names. It may raise a `UserError`: the package is not installed.
        no_blocks: names of the package that are not blocks, and the reason for each.
    """
    _ON_DEMAND.update(dict.fromkeys(names, make))
    _NO_BLOCKS.update(no_blocks or {})


def register_all_on_demand() -> None:
    """Register the blocks of other packages as if they were of this one: `list_blocks` lists them from now on."""
    _REGISTRY.update({name: block_info(name) for name in _ON_DEMAND})


def unregister_block(name: str) -> None:
    """Remove the block called ``name`` from the registry. Raises ``ValueError`` if there is none."""
    del _REGISTRY[block_info(name).name]


def list_blocks(pattern: str = "", *, on_demand: bool = False) -> list[str]:
    """Sorted names of the registered blocks that match a shell-style ``pattern`` (all of them by default).

    Args:
        pattern: such as ``E*``.
        on_demand: also list the blocks of other packages, such as ``timm.eca``, whether or not these are installed.

    >>> list_blocks("E*"), list_blocks("*ela", on_demand=True)
    (['ECA', 'ELA', 'EMA'], ['timm.ela'])
    """
    names = {*_REGISTRY, *_ON_DEMAND} if on_demand else _REGISTRY
    return sorted(name for name in names if not pattern or fnmatchcase(name, pattern))


def block_called(name: str) -> str:
    """The registered name of the block that other projects call ``name``; an empty string if there is none.

    >>> block_called("CoordAtt"), block_called("eca_layer"), block_called("Conv")
    ('CA', 'ECA', '')
    """
    folded = name.lower().replace("_", "")
    return next((key for key, names in _OTHER_NAMES.items() if folded in names and key in _REGISTRY), "")


def why_no_block(name: str) -> str:
    """Why a layer of another package cannot be a block; an empty string if nothing is known about this name."""
    return _NO_BLOCKS.get(name, "")


def block_info(name: str) -> BlockInfo:
    """Name, class, paper and options of the block called ``name``; raises what `get_block` raises.

    >>> block_info("SA").signature
    'groups=64'
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    if name in _ON_DEMAND:
        with _making:
            if name not in _MADE:
                _MADE[name] = _ON_DEMAND[name](name)
        return _MADE[name]
    if why_no_block(name):
        raise ValueError(f"{name} is not a block: {why_no_block(name)}")
    called = block_called(str(name))
    near = nearest(name, list_blocks(on_demand="." in str(name)), most=3, likeness=0.5)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    hint = f" Here it is called {called}." if called else guess
    if "." in str(name):
        hint += " 'yolov5-ema blocks --all' lists those of other packages."
    raise ValueError(f"no block is named {name!r}.{hint} Registered: {', '.join(list_blocks())}")


def block_of(what: object) -> str:
    """The registered name of a block given as a module, a class or a name; an empty string if it is not a block.

    Args:
        what: a module, a class, or a name as in a row of a model YAML. A subclass of a block's class counts as that
            block.

    >>> block_of("yolov5_ema.EMA"), block_of(get_block("CA")), block_of(nn.Identity())
    ('EMA', 'CA', '')
    """
    if isinstance(what, str):
        bare = what.removeprefix(PREFIX)
        return bare if bare in _REGISTRY or bare in _ON_DEMAND else ""
    by_class = {info.cls: name for name, info in [*_MADE.items(), *_REGISTRY.items()]}
    kind = what if isinstance(what, type) else type(what)
    return next((by_class[cls] for cls in kind.__mro__ if cls in by_class), "")


def get_block(name: str) -> type:
    """Class of the block called ``name``.

    Raises:
        ValueError: no such block; the message lists the most similar names and all registered ones.
        UserError: it is a block of another package, which is not installed.

    >>> get_block("EMA").__name__
    'EMA'
    """
    return block_info(name).cls


def create_block(name: str, channels: int, **options: Any) -> nn.Module:
    """A new block for feature maps of ``channels`` channels.

    Raises:
        ValueError: an unknown name, an option that the block does not have, or a value that it refuses.

    >>> create_block("ECA", 64, kernel_size=5).kernel_size
    5
    """
    info = block_info(name)
    parameters = inspect.signature(info.cls).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            raise ValueError(f"{name} has no option {option!r}; it has: {info.signature or 'none'}")
    return info.cls(channels, **options)
