"""Settings of a training: a recipe, shipped or the user's own, of which every value can be overridden."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from yolov5_ema.classification.stems import STEMS
from yolov5_ema.classification.transforms import AUGMENTATIONS
from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.errors import ConfigError
from yolov5_ema.resources import data_dir, find_shipped
from yolov5_ema.texts import counted, did_you_mean, nearest

OPTIMIZERS = ("SGD", "Adam", "AdamW")
SCHEDULES = ("step", "cosine", "constant")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
_SCALED = ("milestones", "warmup_epochs")


# --- checks of single values: each returns the value in its type, or raises an error ---------------


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError("is not a number")
        try:
            number = float(value)  # YAML reads 4e-5 as text
        except ValueError:
            raise ValueError("is not a number") from None
        inside = low < number <= high if above else low <= number <= high
        if not math.isfinite(number) or not inside:
            least = f"above {low:g}" if above else f"{low:g} or more"
            raise ValueError(f"must be {least}" + (f" and at most {high:g}" if high < math.inf else ""))
        return number

    return check


def _whole(low: int, high: int = 2**31) -> Callable[[Any], int]:
    number = _number(low, high)

    def check(value: Any) -> int:
        found = number(value)
        if found != int(found):
            raise ValueError("must be a whole number")
        return int(found)

    return check


def _one_of(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        match = next((choice for choice in choices if str(value).lower() == choice.lower()), None)
        if match is None:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return match

    return check


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _switch_or_file(value: Any) -> bool | str:
    return value if isinstance(value, str) and value else _switch(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    return value


def _block(value: Any) -> str | None:
    return None if value is None or str(value).lower() == "none" else _text(value)


def _options(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("must be options with values, such as {groups: 16}")
    return value


def _list_of(check: Callable[[Any], Any], count: int | None = None) -> Callable[[Any], list[Any]]:
    def check_all(value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)) or (count is not None and len(value) != count):
            raise ValueError(f"must be a list of {count} numbers" if count else "must be a list of numbers")
        return [check(item) for item in value]

    return check_all


# --- all settings ---------------------------------------------------------------------------


@dataclass
class Settings:
    """All settings that decide the result of a training.

    Attributes:
        model: a timm model.
        block: an attention block, or None.
        block_options: options of the block.
        stem: ``imagenet`` or ``cifar``.
        pretrained: start from timm's published weights, or from those in a file.
        epochs: passes over the training images.
        batch: images in a step, of all processes together.
        imgsz: side of the input in pixels.
        optimizer: one of `OPTIMIZERS`.
        lr: learning rate after the warm-up.
        momentum: momentum of SGD.
        nesterov: whether SGD uses Nesterov momentum.
        weight_decay: weight decay of weights.
        decay_bias_norm: whether biases and normalisation get weight decay too.
        schedule: one of `SCHEDULES`.
        milestones: epochs, counted from 0, at which the learning rate is multiplied by ``gamma`` (schedule ``step``).
        gamma: see ``milestones``.
        final_lr: learning rate at the end of the cosine.
        warmup_epochs: epochs during which the learning rate rises linearly.
        warmup_lr: learning rate at the start of the warm-up.
        label_smoothing: share of the target, in training, that is spread evenly over all classes.
        average: decay of the averaged weights, which are then evaluated and saved; 0 for no averaging.
        augment: ``crop``, ``resized-crop`` or ``none``.
        padding: padding of ``crop`` in pixels.
        scale: smallest and largest share of the area that ``resized-crop`` keeps.
        flip: probability that left and right are swapped.
        color_jitter: strength of the colour jitter; 0 for none.
        eval_crop: share of the shorter side that is evaluated.
        mean: values that are subtracted from the input (RGB, 0 to 1).
        std: values by which the input is divided.
        precision: one of `PRECISIONS`.
        sync_bn: BatchNorm over all processes (GPUs only).
        seed: seed of the initial weights, the order and the augmentation.
        data: see `yolov5_ema.classification.datasets.open_data`.
        recipe: name or file of the recipe that these settings started from.
    """

    model: Annotated[str, _text] = "resnet18"
    block: Annotated[str | None, _block] = None
    block_options: Annotated[dict[str, Any], _options] = field(default_factory=dict)
    stem: Annotated[str, _one_of(*STEMS)] = "imagenet"
    pretrained: Annotated[bool | str, _switch_or_file] = False
    epochs: Annotated[int, _whole(1)] = 100
    batch: Annotated[int, _whole(1)] = 128
    imgsz: Annotated[int, _whole(8, 4096)] = 224
    optimizer: Annotated[str, _one_of(*OPTIMIZERS)] = "SGD"
    lr: Annotated[float, _number(0, above=True)] = 0.1
    momentum: Annotated[float, _number(0, 1)] = 0.9
    nesterov: Annotated[bool, _switch] = False
    weight_decay: Annotated[float, _number(0)] = 1e-4
    decay_bias_norm: Annotated[bool, _switch] = True
    schedule: Annotated[str, _one_of(*SCHEDULES)] = "cosine"
    milestones: Annotated[list[int], _list_of(_whole(1))] = field(default_factory=list)
    gamma: Annotated[float, _number(0, above=True)] = 0.1
    final_lr: Annotated[float, _number(0)] = 0.0
    warmup_epochs: Annotated[float, _number(0)] = 0.0
    warmup_lr: Annotated[float, _number(0)] = 0.0
    label_smoothing: Annotated[float, _number(0, 1)] = 0.0
    average: Annotated[float, _number(0, 1)] = 0.0
    augment: Annotated[str, _one_of(*AUGMENTATIONS)] = "resized-crop"
    padding: Annotated[int, _whole(0, 512)] = 4
    scale: Annotated[list[float], _list_of(_number(0, 1, above=True), 2)] = field(default_factory=lambda: [0.08, 1.0])
    flip: Annotated[float, _number(0, 1)] = 0.5
    color_jitter: Annotated[float, _number(0, 1)] = 0.0
    eval_crop: Annotated[float, _number(0.1, 1)] = 0.875
    mean: Annotated[list[float], _list_of(_number(0, 1), 3)] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: Annotated[list[float], _list_of(_number(0, above=True), 3)] = field(
        default_factory=lambda: [0.229, 0.224, 0.225]
    )
    precision: Annotated[str, _one_of(*PRECISIONS)] = "32-true"
    sync_bn: Annotated[bool, _switch] = False
    seed: Annotated[int, _whole(0)] = 0
    data: Annotated[str, _text] = "synthetic"
    recipe: Annotated[str, _text] = "synthetic"

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, as in ``args.yaml`` and checkpoints."""
        return asdict(self)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Settings, include_extras=True).items()
}


def find_recipe(name: str) -> Path:
    """Find a shipped recipe by its name (``cifar100``), or the user's own file.

    Raises:
        ConfigError: there is no such recipe and no such file.
    """
    shipped = find_shipped(f"classify-{name}.yaml")
    if shipped is not None:
        return shipped
    if Path(name).is_file():
        return Path(name)
    there = sorted(path.stem.partition("-")[2] for path in data_dir().glob("classify-*.yaml"))
    raise ConfigError(f"no recipe {name!r}: neither a file nor one that ships ({', '.join(there)})")


def load_recipe(name: str) -> dict[str, Any]:
    """Read a recipe and check its values one by one.

    Raises:
        ConfigError: there is no such recipe, or a key or a value is not allowed; the message names file and key.
    """
    file = find_recipe(name)
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is not a recipe: it must hold keys with values")
    return {key: checked(key, value, str(file)) for key, value in content.items()}


def make_settings(recipe: str, overrides: Mapping[str, Any]) -> Settings:
    """Make settings from a recipe and values that override it.

    If only ``epochs`` is overridden, milestones and warm-up keep their share of the training.

    Raises:
        ConfigError: a key or a value is not allowed.
    """
    values = load_recipe(recipe)
    given = {key: checked(key, value, "") for key, value in overrides.items()}
    if "epochs" in given and "epochs" in values:
        ratio = given["epochs"] / values["epochs"]
        values.update({key: _times(values[key], ratio) for key in _SCALED if key in values})
    settings = Settings(**{**values, **given, "recipe": recipe})
    check_together(settings)
    return settings


def check_together(settings: Settings) -> None:
    """Raise a ConfigError for values that contradict each other."""
    if settings.schedule == "step" and settings.milestones != sorted(set(settings.milestones)):
        raise ConfigError(f"milestones {settings.milestones}: must be in increasing order")
    if settings.scale[0] > settings.scale[1]:
        raise ConfigError(f"scale {settings.scale}: the first must not be greater than the second")
    if settings.nesterov and not settings.momentum:
        raise ConfigError("nesterov needs a momentum above 0")
    if settings.warmup_epochs > settings.epochs:
        raise ConfigError(
            f"warmup_epochs {settings.warmup_epochs:g}: longer than the training, {counted(settings.epochs, 'epoch')}"
        )


def checked(key: str, value: Any, where: str) -> Any:
    """Check the value of a setting and convert it to the setting's type.

    Args:
        key: the setting.
        value: the value from YAML or the command line.
        where: the file, for the message.

    Raises:
        ConfigError: there is no such setting, or the value is not allowed.
    """
    place = f"{where}: " if where else ""
    if key not in _CHECKS:
        hint = did_you_mean(nearest(key, _CHECKS))
        raise ConfigError(f"{place}no setting {key!r}{hint} There are: {', '.join(_CHECKS)}")
    try:
        return _CHECKS[key](value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{place}{key}: {value!r} {error}") from None


def _times(value: Any, ratio: float) -> Any:
    if isinstance(value, list):
        return sorted({max(1, round(number * ratio)) for number in value})
    return value * ratio
