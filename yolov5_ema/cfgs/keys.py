"""The keys of a model YAML that are not rows: YOLOv5's, and those of the package ultralytics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yolov5_ema.cfgs.values import flow, is_int, is_number, key_text, kind_of, shown
from yolov5_ema.errors import ConfigError
from yolov5_ema.texts import nearest
from yolov5_ema.upstream.ultralytics import is_cfg_of_ultralytics

SECTIONS = ("backbone", "head")
REQUIRED_KEYS = ("nc", "depth_multiple", "width_multiple", "anchors", *SECTIONS)
_REQUIRED_BY_ULTRALYTICS = ("nc", *SECTIONS)

# A larger model could not be built: YOLOv5 would try for hours, or until the memory is used up.
_MOST_CHANNELS = 1000
_MOST_ANCHORS = 100
_REMARKS = {
    "nc": "number of classes",
    "depth_multiple": "factor for the repeats of C3 and similar modules",
    "width_multiple": "factor for the numbers of channels",
}


def check_keys(cfg: Any, name: str, of_ultralytics: bool) -> None:
    """Raise a `ConfigError` if a key is missing or has a value that the engine cannot use."""
    required = _REQUIRED_BY_ULTRALYTICS if of_ultralytics else REQUIRED_KEYS
    if not isinstance(cfg, Mapping):
        raise ConfigError(f"{name}: holds {kind_of(cfg)} instead of the keys of a model YAML: {', '.join(required)}")
    _check_present(cfg, name, required, of_ultralytics)
    if not is_int(cfg["nc"]) or cfg["nc"] < 1:
        raise ConfigError(f"{name}: nc is {shown(cfg['nc'])}; it must be a whole number of classes, 1 or more")
    for key in ("depth_multiple", "width_multiple"):
        if key in cfg and (not is_number(cfg[key]) or cfg[key] <= 0):
            raise ConfigError(f"{name}: {key} is {shown(cfg[key])}; it must be a number above 0, such as 0.5")
    if "scales" in cfg and of_ultralytics and not _scales_are_fine(cfg["scales"]):
        raise ConfigError(
            f"{name}: scales must give depth, width and the maximum number of channels for each letter of a size, such "
            f"as n: [0.50, 0.25, 1024]; found {shown(cfg['scales'])}"
        )
    if not of_ultralytics and not _anchors_are_fine(cfg["anchors"]):
        raise ConfigError(
            f"{name}: anchors must be a count such as 3, or one list of width, height pairs for each level, "
            f"such as [10,13, 16,30, 33,23]; found {shown(cfg['anchors'])}"
        )
    channels = cfg.get("ch", 3)
    if not is_int(channels) or not 1 <= channels <= _MOST_CHANNELS:
        raise ConfigError(f"{name}: ch is {shown(channels)}; it must be the number of the image's channels, such as 3")
    for section in SECTIONS:
        if not isinstance(cfg[section], (list, tuple)) or not cfg[section]:
            raise ConfigError(
                f"{name}: {section} must be a list of rows [from, number, module, args]; found {kind_of(cfg[section])}"
            )


def _check_present(cfg: Mapping[str, Any], name: str, required: Sequence[str], of_ultralytics: bool) -> None:
    for key in required:
        if key in cfg:
            continue
        if not of_ultralytics and "scales" in cfg and is_cfg_of_ultralytics(cfg):
            raise ConfigError(f"{name} is a model YAML of ultralytics, not of YOLOv5")
        near = nearest(key, [str(k) for k in cfg if k not in required])
        hint = f"; it has '{near[0]}', is that the one?" if near else ""
        raise ConfigError(f"{name}: the key '{key}' is missing{hint} (a data YAML is not a model YAML)")


def _scales_are_fine(scales: Any) -> bool:
    return (
        isinstance(scales, Mapping)
        and len(scales) > 0
        and all(isinstance(letter, str) for letter in scales)
        and all(isinstance(values, (list, tuple)) and len(values) == 3 for values in scales.values())
        and all(is_number(value) and value > 0 for values in scales.values() for value in values)
    )


def _anchors_are_fine(anchors: Any) -> bool:
    if is_int(anchors):
        return 1 <= anchors <= _MOST_ANCHORS
    return (
        isinstance(anchors, (list, tuple))
        and len(anchors) > 0
        and all(isinstance(level, (list, tuple)) and len(level) >= 2 for level in anchors)
        and all(len(level) % 2 == 0 and all(is_number(v) for v in level) for level in anchors)
    )


def depths(settings: Mapping[str, Any], of_ultralytics: bool) -> list[float]:
    """The factors for the repeats of each size that the keys give."""
    scales = settings.get("scales") if of_ultralytics else None
    return [float(v[0]) for v in scales.values()] if scales else [float(settings.get("depth_multiple", 1.0))]


def text_of_keys(settings: Mapping[str, Any], levels: Sequence[str]) -> list[str]:
    """The lines of a YAML for its keys.

    Args:
        settings: the keys and their values.
        levels: comments for the lists of anchors.
    """
    lines = []
    first = [key for key in REQUIRED_KEYS if key in settings and key != "anchors"]
    for key in first + [key for key in settings if key not in REQUIRED_KEYS]:
        if key == "scales":
            lines += _text_of_scales(settings[key])
            continue
        remark = f"  # {_REMARKS[key]}" if key in _REMARKS else ""
        lines.append(f"{key_text(key)}: {flow(settings[key])}{remark}")
    if "anchors" not in settings:
        return lines
    anchors = settings["anchors"]
    if not isinstance(anchors, list):
        return [*lines, f"anchors: {anchors}  # for each level; AutoAnchor fits them to the data set"]
    lines.append("anchors:")
    for values, level in zip(anchors, levels if len(levels) == len(anchors) else [""] * len(anchors)):
        pairs = [f"{flow(w)},{flow(h)}" for w, h in zip(values[::2], values[1::2])]
        lines.append(f"  - [{', '.join(pairs)}]{level}")
    return lines


def _text_of_scales(scales: Mapping[str, Any]) -> list[str]:
    lines = ["scales:  # [depth, width, maximum number of channels]; chosen by the letter in the file name"]
    for letter, (depth, width, channels) in scales.items():
        factors = (f"{value:.2f}" if round(value, 2) == value else flow(value) for value in (depth, width))
        lines.append(f"  {key_text(letter)}: [{', '.join(factors)}, {flow(channels)}]")
    return lines
