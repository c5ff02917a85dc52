"""Calls the C++ kernels of all blocks with arguments that do not fit: a script, so that a crash does not end pytest.

Each case is a valid call in which up to three arguments are spoiled. It may give a result, which must be that of the
plain form if there is one, or raise an exception that layers of torch raise. Anything else ends the script.

    python fuzz_cases.py --cases 300
    LD_PRELOAD=libasan.so python fuzz_cases.py --cases 10000 --sanitize
    LD_PRELOAD=libasan.so python fuzz_cases.py --cases 500 --sanitize --unchecked    # without the checks, asan reports
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import warnings

import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode

from yolov5_ema.blocks import CA, CBAM, ECA, EMA, NAM, SA, SE
from yolov5_ema.kernels import dispatch, means, memory, native, norms
from yolov5_ema.kernels.cbam import cpp as cbam_cpp
from yolov5_ema.kernels.ema import EMAArguments, exact
from yolov5_ema.kernels.ema import cpp as ema_cpp

SANITIZE = (
    ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address", "-fopenmp"),
    ("-fsanitize=address",),
)
MAY_BE_RAISED = (RuntimeError, TypeError, ValueError, IndexError, MemoryError)
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.complex64, torch.uint8)


class Subclass(torch.Tensor):
    pass


# ------------------------------------------------------------------------------------------------- spoiling a tensor


def another_shape(t, rng):
    shape = list(t.shape)
    if shape:
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 3, 5, 8, 64))
    if rng.random() < 0.2:
        shape.insert(rng.randrange(len(shape) + 1), rng.choice((1, 2)))
    if rng.random() < 0.2 and shape:
        shape.pop()
    return torch.rand(shape, dtype=torch.float64).to(t.dtype)


def another_layout(t, rng):
    how = rng.randrange(5)
    if how == 0 and t.dim() == 4:
        return t.to(memory_format=torch.channels_last)
    if how == 1 and t.dim() > 1:
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if how == 2 and t.dim():
        return torch.stack([t, t], -1)[..., 1]
    if how == 3 and t.dim():
        return t[:1].expand(t.shape)
    return t.to_sparse() if t.dim() and t.dtype != torch.bool else t


def without_memory(t, rng, most=4):
    how = rng.randrange(most)
    if how == 0:
        return t.to("meta")
    if how == 1:
        with FakeTensorMode() as mode:
            return mode.from_tensor(t)
    if how == 2:
        return torch._efficientzerotensor(t.shape, dtype=t.dtype)
    t = t.clone()
    t.untyped_storage().resize_(t.untyped_storage().nbytes() // rng.choice((2, 10**9)))
    return t


def another_kind(t, rng):
    how = rng.randrange(4)
    if how == 0:
        return torch.complex(t.float(), t.float()).conj().imag.to(t.dtype)
    if how == 1:
        return t.as_subclass(Subclass)
    if how == 2 and t.is_floating_point():
        return t.clone().requires_grad_()
    return t.mul(float("nan")) if t.is_floating_point() else t


def another_dtype(t, rng):
    return t.to(rng.choice(DTYPES))


def not_here(t, rng):
    """As `without_memory`, but without storages that are too small, beyond which torch's own layers would read."""
    return without_memory(t, rng, most=3)


SPOILERS = (another_shape, another_shape, another_layout, without_memory, another_kind, another_dtype)

SAFE_SPOILERS = tuple(not_here if spoil is without_memory else spoil for spoil in SPOILERS)


def spoiled(arguments, rng, spoilers=SPOILERS):
    given, arguments = tuple(arguments), list(arguments)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        i = rng.randrange(len(arguments))
        value = arguments[i]
        if isinstance(value, torch.Tensor):
            if value.layout is torch.strided and not memory.is_inside_its_storage(value):
                continue  # torch would read beyond its storage
            arguments[i] = rng.choice(spoilers)(value, rng)
        elif isinstance(value, bool):
            arguments[i] = not value
        elif isinstance(value, int):
            arguments[i] = rng.choice((0, -1, 1, 2, 3, 7, 2**31, 2**62))
    # If a fake tensor and a tensor without storage meet, torch fails to print them, and then cannot negate views.
    kinds = {is_fake(value) for value in arguments if isinstance(value, torch.Tensor) and is_odd(value)}
    return given if len(kinds) == 2 else arguments


def is_fake(value):
    return isinstance(value, FakeTensor)


def is_odd(value):
    return is_fake(value) or (value.layout is torch.strided and not memory.is_inside_its_storage(value))


# --------------------------------------------------------------------------------------------------- calls that fit


def sizes(rng):
    n, groups, k = rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2, 4)), rng.choice((1, 2, 3, 5, 8))
    return n, groups, k, rng.choice((1, 2, 3, 7, 20)), rng.choice((1, 2, 5, 9, 33))


def ema_arguments(rng, dtype):
    n, groups, k, h, w = sizes(rng)
    x = torch.randn(n, groups * k, h, w).to(dtype)
    shapes = ((k, k, 1, 1), (k,), (k,), (k,), (k, k, 3, 3), (k,))
    return x, torch.rand(n * groups, 3, k).to(dtype), [torch.randn(s).to(dtype) for s in shapes], groups


def cbam_arguments(rng, dtype):
    n, _, c, h, w = sizes(rng)
    size = rng.choice((1, 3, 7))
    shapes = {
        "x": (n, c, h, w), "gate_c": (n, c), "gate_s": (n, 1, h, w), "maps": (n, 2, h, w), "map_ties": (n, 1, h, w),
        "peak": (n, c), "ties": (n, c), "d_pooled": (2, n, c), "weight": (1, 2, size, size),
    }  # fmt: skip
    made = {name: torch.rand(shape).to(dtype) for name, shape in shapes.items()}
    like = {"grad": "x", "d_maps": "maps", "d_gate_s": "gate_s"}
    return made | {name: torch.rand_like(made[other]) for name, other in like.items()} | {"count_ties": True}


CBAM_CALLS = {
    "pool": "x count_ties",
    "maps": "x gate_c count_ties",
    "apply": "x gate_c gate_s",
    "apply_backward": "grad x gate_c gate_s",
    "maps_backward": "d_maps x gate_c maps map_ties",
    "input_backward": "x gate_c gate_s maps map_ties peak ties grad d_pooled d_maps",
    "convolve": "maps weight",
    "convolve_backward": "d_gate_s maps weight",
}


def ema_forward_operator(rng, dtype):
    x, _, parameters, groups = ema_arguments(rng, dtype)
    arguments = (*spoiled((x, *parameters, groups), rng), 1e-5)
    out, _ = torch.ops.yolov5_ema.ema_forward(*arguments)
    if is_ordinary(arguments):
        agree(out, exact.forward(arguments[0], EMAArguments(*arguments[1:]))[0])


def ema_backward_operator(rng, dtype):
    x, stats, parameters, groups = ema_arguments(rng, dtype)
    arguments = (*spoiled((torch.rand_like(x), x, stats, *parameters, groups), rng), 1e-5)
    found = torch.ops.yolov5_ema.ema_backward(*arguments)
    if is_ordinary(arguments):
        for one, expected in zip(found, exact.backward(*arguments[:3], EMAArguments(*arguments[3:]))):
            agree(one, expected)


def ema_past_the_dispatcher(rng, dtype):
    x, stats, parameters, groups = ema_arguments(rng, dtype)
    if rng.random() < 0.5:
        x, *arguments = spoiled((x, *parameters, groups), rng)
        ema_cpp.forward(x, EMAArguments(*arguments, 1e-5))
    else:
        grad, x, stats, *arguments = spoiled((torch.rand_like(x), x, stats, *parameters, groups), rng)
        ema_cpp.backward(grad, x, stats, EMAArguments(*arguments, 1e-5))


def cbam_operator(rng, dtype):
    name = rng.choice(list(CBAM_CALLS))
    made = cbam_arguments(rng, dtype)
    arguments = spoiled([made[key] for key in CBAM_CALLS[name].split()], rng)
    past = rng.random() < 0.3
    (getattr(cbam_cpp, name) if past else getattr(torch.ops.yolov5_ema, f"cbam_{name}"))(*arguments)


MEANS_CALLS = {
    means._mean: (means.mean_of_channels, "x"),
    means._sides: (means.means_of_sides, "x"),
    means._scale: (means.scale_channels, "x row"),
    means._scale_backward: (means._channels_backward, "grad x row"),
    means._input_backward: (means._PASSES["SE"].input_backward.plain, "grad row d_mean"),
}
MEANS_CALLS_BY_SIDES = {
    means._scale: (means.scale_sides, "x high wide"),
    means._scale_backward: (means._sides_backward, "grad x high wide"),
    means._input_backward: (means._PASSES["CA"].input_backward.plain, "grad high wide d_means"),
}
NORMS_CALLS = {
    norms._nam: (norms._nam_plain, "x u v eps"),
    norms._nam_frozen: (norms._nam_frozen_plain, "x u v stats eps"),
    norms._nam_backward: (norms._nam_backward_plain, "grad x stats u v eps frozen"),
    norms._sa: (norms._sa_plain, "x u v k eps"),
    norms._sa_backward: (norms._sa_backward_plain, "grad x stats_of_sa u v k eps"),
}


def gated_arguments(rng, dtype):
    n, groups, k, h, w = sizes(rng)
    c = 2 * groups * k
    shapes = {
        "x": (n, c, h, w), "grad": (n, c, h, w), "row": (n, c), "d_mean": (n, c), "high": (n, c, h), "wide": (n, c, w),
        "d_means": (n, c, h + w), "u": (c,), "v": (c,), "stats": (2, c), "stats_of_sa": (2, n, c),
    }  # fmt: skip
    made = {name: torch.rand(shape).to(dtype) for name, shape in shapes.items()}
    return made | {"k": k, "eps": 1e-5, "frozen": rng.random() < 0.5}


def pass_of_a_gated_block(rng, dtype):
    made = gated_arguments(rng, dtype)
    calls = rng.choice((MEANS_CALLS, MEANS_CALLS_BY_SIDES, NORMS_CALLS))
    kernel, (plain, names) = rng.choice(list(calls.items()))
    arguments = spoiled([made[name] for name in names.split()], rng)
    found = kernel(*arguments)
    if is_ordinary(arguments):
        expected = plain(*arguments)
        one_or_more = (found, expected) if isinstance(found, tuple) else ((found,), (expected,))
        for one, other in zip(*one_or_more):
            agree(one, other)


# --------------------------------------------------------------------------------------------------- whole blocks


def spoil_block(block, rng):
    """Give a block a state that no constructor makes, but that a checkpoint can hold or a tool can leave."""
    layers = [m for m in block.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.BatchNorm2d))]
    layer = rng.choice(layers)
    how = rng.randrange(10)
    if how == 0 and isinstance(block, EMA):
        block.groups = rng.choice((1, 2, 3, 7, 64, -1, 0))
    elif how in (1, 2, 3):
        name = rng.choice([n for n, p in layer._parameters.items() if p is not None] or ["weight"])
        if isinstance(layer._parameters.get(name), torch.Tensor):
            spoiled_value = rng.choice(SAFE_SPOILERS)(layer._parameters[name].detach(), rng)
            layer._parameters[name] = nn.Parameter(spoiled_value, requires_grad=False)
    elif how == 4:
        layer.register_forward_hook(lambda module, args, out: out * 0.5)
    elif how == 5 and isinstance(layer, nn.Conv2d):
        layer.padding = rng.choice(((0, 0), (2, 2), (1, 3)))
    elif how == 6 and isinstance(block, EMA):
        k = block.gn.num_channels
        block.conv3x3 = nn.Conv2d(k, k, 3, padding=1, groups=k)
    elif how == 7 and isinstance(block, CBAM):
        block.channel_gate.fc2 = nn.Linear(block.channel_gate.fc1.out_features, rng.choice((1, 3, 64)))
    elif how == 8 and isinstance(block, CBAM):
        size = rng.choice((1, 2, 3, 4))
        block.spatial_gate.conv = nn.Conv2d(2, rng.choice((1, 2)), size, padding=size // 2, bias=False)
    elif how == 9:
        block.to(
            rng.choice((torch.float64, torch.float16, "meta", torch.channels_last)) if rng.random() < 0.9 else "cpu"
        )


def whole_block(rng, dtype):
    n, groups, k, h, w = sizes(rng)
    block = EMA(groups * k, groups=groups) if rng.random() < 0.5 else CBAM(groups * k, reduction=1)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    block = block.to(dtype).train(rng.random() < 0.3)
    if rng.random() < 0.7:
        try:
            spoil_block(block, rng)
        except (RuntimeError, TypeError, NotImplementedError):
            return
    (x,) = spoiled([torch.randn(n, groups * k, h, w).to(dtype)], rng, SAFE_SPOILERS)
    with torch.set_grad_enabled(rng.random() < 0.5):
        out = block(x)
        if out.requires_grad and rng.random() < 0.8:
            out.sum().backward()
    block.eval()
    if is_ordinary((x, *block.parameters())) and x.numel():
        with torch.no_grad(), dispatch.forced("reference"):
            expected = block(x)
        with torch.no_grad():
            agree(block(x), expected)


def whole_gated_block(rng, dtype):
    """By the kernels whatever the size; what they do not take is refused."""
    n, groups, k, h, w = sizes(rng)
    c = 2 * groups * k
    options = {SE: {"reduction": 1}, SA: {"groups": groups}, CA: {}, ECA: {}, NAM: {}}
    kind = rng.choice(list(options))
    block = kind(c, **options[kind])
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    block = block.to(dtype).train(rng.random() < 0.5)
    if rng.random() < 0.3:
        block.to(rng.choice((torch.float64, torch.float16, "meta", torch.channels_last)))
    (x,) = spoiled([torch.randn(n, c, h, w).to(dtype)], rng, SAFE_SPOILERS)
    with torch.set_grad_enabled(rng.random() < 0.5), dispatch.forced("cpp"):
        out = block(x)
        if out.requires_grad and rng.random() < 0.8:
            out.sum().backward()
    block.eval()
    if is_ordinary((x, *block.parameters())):
        with torch.no_grad(), dispatch.forced("reference"):
            expected = block(x)
        with torch.no_grad(), dispatch.forced("cpp"):
            agree(block(x), expected)


def is_ordinary(values):
    """Whether all tensors have values, and none has a dtype or type for which the forms may differ."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return all(
        type(t) in (torch.Tensor, nn.Parameter) and t.device.type == "cpu" and t.layout is torch.strided
        and t.dtype in (torch.float32, torch.float64) and not t._is_zerotensor()
        and memory.is_inside_its_storage(t) and t.numel()
        and bool(t.isfinite().all())
        for t in tensors
    )  # fmt: skip


def agree(found, expected):
    scale = max(1.0, expected.abs().nan_to_num(posinf=0).max().item())
    torch.testing.assert_close(
        found.detach(), expected.detach(), rtol=1e-3, atol=1e-3 * scale, equal_nan=True, check_dtype=False
    )


KINDS = (
    *(ema_forward_operator, ema_backward_operator, ema_past_the_dispatcher, cbam_operator),
    *(pass_of_a_gated_block, pass_of_a_gated_block, whole_block, whole_gated_block),
)


def run(case, seed):
    rng = random.Random(f"{seed}-{case}")
    torch.manual_seed(rng.randrange(2**31))
    torch.set_num_threads(rng.choice((1, 2, 3)))
    kind, dtype = rng.choice(KINDS), rng.choice((torch.float32, torch.float32, torch.float64))
    try:
        kind(rng, dtype)
        return f"{kind.__name__}: ran"
    except MAY_BE_RAISED:
        return f"{kind.__name__}: refused"
    except AssertionError as error:
        if "convert all Tensors to FakeTensors" not in str(error):  # torch's message if only some tensors are fake
            raise
        return f"{kind.__name__}: refused"


def no_checks():
    """Switch off the checks that this script tests."""
    memory.check_memory = lambda *_: None
    global MAY_BE_RAISED
    MAY_BE_RAISED = Exception
    ema_cpp.check_arguments = lambda x, arguments: x.shape[1] // arguments.groups
    ema_cpp.check_backward = lambda grad, x, stats, arguments: x.shape[1] // arguments.groups


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--unchecked", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.sanitize:
        native._VARIANTS = (SANITIZE,)
    if args.unchecked:
        no_checks()
    if native.library().handle is None:
        sys.exit(native.library().reason)
    print(native.library().reason, flush=True)
    counts = collections.Counter()
    for case in range(args.cases):
        try:
            counts[run(case, args.seed)] += 1
        except BaseException:
            print(f"case {case} of seed {args.seed}", file=sys.stderr)
            raise
    print(f"{args.cases} cases")
    for what, count in sorted(counts.items()):
        print(f"{count:6d} {what}")


if __name__ == "__main__":
    main()
