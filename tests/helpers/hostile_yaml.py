"""Hypothesis strategies for invalid and malicious YAMLs: values, whole files, and valid files with random changes."""

from __future__ import annotations

import copy
import math
from typing import Any

import yaml
from hypothesis import strategies as st

SMALL = {
    "nc": 3,
    "depth_multiple": 1.0,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [32, 6, 2, 2]], [-1, 2, "C3", [64]], [-1, 1, "EMA", [{"groups": 8}]]],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1], 1, "Concat", [1]],
        [-1, 1, "SPPF", [64, 5]],
        [[-1], 1, "Detect", ["nc", "anchors"]],
    ],
}
"""A detector that is built quickly."""

CANARY = "ran"
CODE = [
    f"__import__('os').system('touch {CANARY}')",
    f"__import__('pathlib').Path('{CANARY}').touch()",
    f"open('{CANARY}', 'w')",
    f"(lambda: open('{CANARY}', 'w'))()",
    f"exec(\"open('{CANARY}', 'w')\")",
    f"[c for c in ().__class__.__base__.__subclasses__()][0] or open('{CANARY}', 'w')",
    f"nn.SiLU().__init__.__globals__['__builtins__']['open']('{CANARY}', 'w')",
    f"nn.Conv2d.__init__.__globals__['__builtins__']['open']('{CANARY}', 'w')",
    f"torch.hub.os.system('touch {CANARY}')",
    f"nn.ReLU(open('{CANARY}', 'w'))",
    f"nn.ReLU(inplace=open('{CANARY}', 'w'))",
    f"nn.ReLU() or open('{CANARY}', 'w')",
    f"nn.Module().apply(lambda m: open('{CANARY}', 'w'))",
]
CODE += [repr(code) for code in CODE] + [repr(repr(CODE[2]))] + [f"({code!r})" for code in CODE[:3]]
CODE += [f"[{code}]" for code in CODE[:3]] + [f"f{code!r}" for code in CODE[:1]] + [f"u{code!r}" for code in CODE[2:3]]
MODULES = [
    *(
        "Conv",
        "C3",
        "SPPF",
        "Focus",
        "Concat",
        "Detect",
        "Segment",
        "Classify",
        "Contract",
        "Expand",
        "Bottleneck",
    ),
    *(
        "BottleneckCSP",
        "C3TR",
        "C3SPP",
        "C3Ghost",
        "GhostConv",
        "GhostBottleneck",
        "DWConv",
        "CrossConv",
        "MixConv2d",
    ),
    *("EMA", "CA", "CBAM", "SA", "ECA", "NAM", "SE", "yolov5_ema.EMA", "yolov5_ema.Conv", "yolov5_ema."),
    *(
        "nn.Conv2d",
        "nn.Upsample",
        "nn.MaxPool2d",
        "nn.BatchNorm2d",
        "nn.Identity",
        "nn.Linear",
        "nn.Sequential",
    ),
    *(
        "nn.Module",
        "nn.LSTM",
        "nn.Transformer",
        "nn.Embedding",
        "nn.ConvTranspose2d",
        "nn.Flatten",
        "nn.Dropout",
    ),
    *(
        "nn.DataParallel",
        "nn.ModuleDict",
        "nn.parallel.DistributedDataParallel",
        "nn.Bilinear",
        "nn.PixelShuffle",
    ),
    *(
        "torch.nn.Conv2d",
        "torch.jit.ScriptModule",
        "torch.fx.GraphModule",
        "torch.load",
        "torch.hub.load",
        "os.system",
    ),
    *(
        "torch.distributed.nn.RemoteModule",
        "nn.Conv2d.__init__",
        "nn.modules.conv.Conv2d",
        "__builtins__",
        "Conv.x",
    ),
    *(
        "Model",
        "Ensemble",
        "AutoShape",
        "DetectMultiBackend",
        "Detections",
        "Sum",
        "print",
        "eval",
        "Path",
        "yaml",
    ),
    *("conv", "", " ", ".", "Conv;", "Conv\n", "Cönv", "C" * 500, "None", "nan", "-1", "exec", "lambda: 0"),
]
NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 64, 127, 10**4, 10**6, 2**31, 2**63, 10**12, 10**30, -(10**9), 10**400),
    *(0.0, 0.5, -0.5, 1e-9, 1e-320, 1e9, 1e300, math.inf, -math.inf, math.nan, True, False),
]
TEXTS = [
    *(
        "",
        "x",
        "nc",
        "anchors",
        "nearest",
        "None",
        "True",
        "1",
        "1e3",
        "80",
        "-1",
        "[1, 2]",
        "{}",
        "{1: 2}",
        "()",
    ),
    *(
        "\x1b[2J",
        "a\x00b",
        "a\nb",
        "../../..",
        "~",
        "/",
        "é",
        "\U0001f600",
        "x" * 3000,
        "None" * 50,
        "1" * 5000,
    ),
    *(
        "(" * 150,
        "[" * 3000,
        "-" * 20000 + "1",
        "1" + "+1" * 20000,
        "not " * 5000 + "1",
        "'" * 7,
        "f'{nc}'",
        "nc + 1",
    ),
    *("9" * 30, "1j", "b'x'", "...", "'abc'", "ch[f]", "ch", "f", "d", "gd", "n_", "layers", "args", "eval"),
]


def values(code: bool = True) -> st.SearchStrategy[Any]:
    """Any value that a YAML can hold; more than half of them are unusual."""
    texts = st.sampled_from(TEXTS + (CODE if code else []))
    plain = st.sampled_from(NUMBERS) | texts | st.none() | st.integers(-9, 130) | st.floats() | st.text(max_size=8)
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(0, 5), inner, max_size=3),
        max_leaves=6,
    )


def _places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of lists and dicts, as the keys that lead to it."""
    found = [at] if at else []
    held = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in held:
        found += _places(value, (*at, key))
    return found


@st.composite
def changed(draw: Any, bases: list[Any], value: st.SearchStrategy[Any], most: int = 3) -> Any:
    """One of several valid contents, with up to ``most`` places replaced, removed or doubled."""
    content = copy.deepcopy(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, most))):
        places = _places(content)
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        held = content
        for key in way:
            held = held[key]
        what = draw(st.sampled_from(["replace"] * 5 + ["remove", "double", "swap"]))
        if what == "remove":
            del held[last]
        elif what == "double" and isinstance(held, list):
            held.insert(last, copy.deepcopy(held[last]))
        elif what == "swap" and isinstance(held, list):
            held.reverse()
        else:
            held[last] = copy.deepcopy(draw(value))
    return content


def as_text(content: Any) -> bytes:
    """A value as YAML text; what YAML cannot express, such as a lone surrogate, is replaced."""
    try:
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogateescape")
    except (yaml.YAMLError, UnicodeError, ValueError):
        return repr(content).encode("utf-8", "replace")


def _laughs(levels: int, width: int, row: str = "x") -> bytes:
    lines = [f"a0: &a0 [{row}]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines).encode()


ODD_FILES = [
    *(
        b"",
        b"\n",
        b"~",
        b"[]",
        b"[1, 2]",
        b"x",
        b"nc",
        b"\xef\xbb\xbfnc: 1",
        b"\x00" * 20,
        b"\xff\xfe" * 9,
        b"%YAML 9.9\n",
    ),
    *(
        b"a: b: c",
        b"\tnc: 1",
        b"nc: [",
        b"nc: {",
        b"*a",
        b"&a *a",
        b"? [a]\n: 1",
        b"{[1]: 2}",
        b"{{}: 1}",
        b"---\n---\n",
    ),
    *(
        b"a: &a [*a]",
        b"a: &a {b: *a}",
        b"&a {a: *a}",
        b"&a [*a]",
        b"<<: *x",
        b"a: &a {<<: *a}",
        b"<<: 1",
        b"nc: 1\nnc: 2",
    ),
    *(b"[" * 5000, b"{a: " * 3000, b"- " * 5000, b"a: " * 5000, b"? " * 3000, b"[" * 400 + b"]" * 400),
    b"a: !!python/object/apply:os.system ['touch ran']",
    b"!!python/object/new:os.system ['touch ran']",
    b"!!python/name:os.system",
    b"!!python/module:os",
    b"a: !!binary aGVsbG8=\nnc: !!int '0b' ",
    b"nc: 0b\n",
    b"nc: 2001-02-30\n",
    b"nc: 2001-01-01 99:99:99\n",
    b"nc: !!float x\n",
    b"nc: !!int ''\n",
    b"nc: !!timestamp x\n",
    b"nc: !!set {a, b}\n",
    b"nc: !!omap [1]\n",
    b"nc: !!bool maybe\n",
    b"nc: 1:99:99\n",
    b"nc: " + b"9" * 5000,
    b"a: " + b"x" * 10**6,
    b"nc: 0x" + b"f" * 10**5,
    "nc: 3\nnames: [a]".encode("utf-16"),
    "nc: 3\nnames: [a]".encode("utf-32"),
    _laughs(30, 9),
    _laughs(200, 2),
]


@st.composite
def files(draw: Any, bases: list[Any], value: st.SearchStrategy[Any], texts: list[bytes]) -> bytes:
    """Whole files: mostly valid contents with changes, else changed bytes, unusual files, or a file with a bomb."""
    kind = draw(st.sampled_from(["changed"] * 12 + ["bytes"] * 3 + ["odd", "spliced", "bomb", "any"]))
    if kind == "changed":
        return as_text(draw(changed(bases, value)))
    if kind == "odd":
        return draw(st.sampled_from(ODD_FILES))
    if kind == "any":
        return draw(st.binary(max_size=80))
    text = draw(st.sampled_from(texts))
    if kind == "bytes":
        return draw(mutated_bytes(text))
    if kind == "spliced":
        odd = draw(st.sampled_from([file for file in ODD_FILES if len(file) < 5000]))
        return text + b"\n" + odd if draw(st.booleans()) else odd + b"\n" + text
    return bombed(draw, text)


def bombed(draw: Any, text: bytes) -> bytes:
    """A valid file in which one value is an alias that expands to an exponential number of values, or to itself."""
    lines = text.split(b"\n")
    keys = [i for i, line in enumerate(lines) if b": " in line and not line.startswith((b" ", b"#"))]
    at = draw(st.sampled_from(keys)) if keys else 0
    key = lines[at].split(b":")[0]
    row = draw(st.sampled_from(["x", "[-1, 1, Conv, [8]]", "{a: b}", "1"]))
    lines[at] = key + draw(st.sampled_from([b": *a24", b": &r [*r]", b": [*a24]", b": [[-1, 1, Conv, [8, *a24]]]"]))
    return _laughs(25, draw(st.integers(2, 9)), row) + b"\n" + b"\n".join(lines)


@st.composite
def mutated_bytes(draw: Any, content: bytes, most: int = 4) -> bytes:
    """Bytes with random ones flipped, removed, doubled or replaced, or with the end cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        if not data:
            break
        at, length = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 24))
        what = draw(st.sampled_from(["flip"] * 4 + ["set", "set", "delete", "double", "random", "cut"]))
        if what == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "set":
            data[at] = draw(st.integers(0, 255))
        elif what == "delete":
            del data[at : at + length]
        elif what == "double":
            data[at:at] = data[at : at + length]
        elif what == "random":
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        else:
            del data[at:]
    return bytes(data)
