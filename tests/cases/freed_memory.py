"""How often a thread that computes gets its memory from the system anew."""

from __future__ import annotations


def counts_page_faults() -> None:
    """Print the page faults of 20 rounds in a thread, each with 8 MB that are freed: before they are kept, and after,
    in the best of five."""
    import resource
    import threading

    import torch

    from yolov5_ema.detecting.pipeline import keep_freed_memory

    def faults() -> int:
        def work() -> None:
            for _ in range(20):
                torch.ones(2_000_000)

        work_in_thread = threading.Thread(target=work)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        work_in_thread.start()
        work_in_thread.join()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    torch.set_num_threads(1)
    before = faults()
    keep_freed_memory()
    # a thread has one of two memories, each of which is filled once
    print(before, min(faults() for _ in range(5)))
