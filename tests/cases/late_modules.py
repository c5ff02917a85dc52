"""What stands in for modules that are imported late, in a process of its own."""

from __future__ import annotations

import sys


def compiler() -> None:
    """Use torchvision, and compute on the meta device; print each time whether the compiler of torch is in memory."""
    import torch

    from yolov5_ema.late_modules import compiler_of_torchvision, standing_in, without_compiler

    def compute() -> torch.Size:
        x = torch.zeros(2, 3, device="meta")
        return torch.add(x, torch.ones(3, device="meta"), alpha=2).shape

    def is_there() -> bool:
        return hasattr(sys.modules.get("torch._dynamo"), "__file__")

    with standing_in(compiler_of_torchvision()):
        import torchvision
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist() == [1]
    there = [is_there()]
    with without_compiler():
        assert compute() == (2, 3)
        there.append(is_there())
    there.append("torch._dynamo" in sys.modules)
    assert compute() == (2, 3)
    there.append(is_there())
    assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
    assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [boxes], 2).eq(1).all()
    with without_compiler():
        assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2.0, 2.0]
    print(*there)


def others_in_the_block() -> None:
    """What else is asked of a stand-in is that of the real module, which takes its place."""
    from yolov5_ema.late_modules import Late, standing_in

    with standing_in(Late("wave", is_package=False), Late("json", is_package=True), Late("email", is_package=True)):
        import email.message
        import wave

        print("chunk" in sys.modules, wave.open.__name__, email.message.Message.__name__, sys.modules["wave"] is wave)
    import wave as real

    print(real.__file__ is not None, real is sys.modules["wave"], "email.message" in sys.modules)
