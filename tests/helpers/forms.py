"""Runs a block by one of its implementations, and compares the results of two."""

from __future__ import annotations

import copy

import torch

from yolov5_ema.kernels import dispatch


def noise(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randomised(block, training=True):
    """The block with parameters and running statistics away from their initial values."""
    with torch.no_grad():
        for i, tensor in enumerate(block.state_dict().values()):
            if tensor.is_floating_point():
                tensor.add_(0.5 * noise(*tensor.shape, seed=i))
        for name, buffer in block.named_buffers():
            if name.endswith("running_var"):
                buffer.abs_().add_(0.5)
    return block.train(training)


def computed(block, form, x, grad, wanted=None):
    """The results of one step: output, gradients, running statistics."""
    block = copy.deepcopy(block)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(wanted is None or "x" in wanted)
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(wanted is None or name in wanted)
    with dispatch.forced(form):
        out = block(x)
        out.backward(grad)
    found = {"out": out.detach(), "x": x.grad, **dict(block.named_buffers())}
    return {**found, **{name: parameter.grad for name, parameter in block.named_parameters()}}


def assert_same(found, expected, tolerance):
    """Equal up to ``tolerance`` times the largest value, or times 1 where that is smaller."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
            continue
        scale = max(1.0, value.double().nan_to_num(posinf=0, neginf=0).abs().max().item())
        torch.testing.assert_close(
            found[name],
            value,
            rtol=0,
            atol=tolerance * scale,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def saved_bytes(block, x, form):
    """The bytes that autograd keeps for backward, without the parameters."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in block.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), dispatch.forced(form):
        out = block(x)
    del out
    return sum(size for pointer, size in kept.items() if pointer not in parameters)
