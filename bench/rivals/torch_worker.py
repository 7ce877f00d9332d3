"""A whole model in PyTorch on one processor: eager, channels-last, or compiled.

It obeys as bench/workers.py says.

    python -m bench.rivals.torch_worker '{"model": …, "batch": 8, "way": "compiled", "cpu": 0}'

``compiled`` is torch.compile with frozen weights, which folds BatchNorm and packs weights ahead. It
may use all processors while it compiles; then it is held to ``cpu``.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from bench.rivals.chain import build
from bench.rivals.lines import own_output
from bench.workers import obey, pixels

WAYS = ("eager", "channels_last", "compiled")


def make(model: str, batch: int, way: str) -> Callable[[], Any]:
    """What computes one batch, as :data:`WAYS` says.

    Raises:
        ValueError: no such way.
    """
    if way not in WAYS:
        raise ValueError(f"way {way!r}: expected one of {', '.join(WAYS)}")
    chain = build(model)
    module: Callable[[Any], Any] = chain.part(0, len(chain.links), way == "channels_last")
    images = torch.from_numpy(pixels(batch, chain.shape))
    if way == "compiled":
        import torch._inductor.config as inductor

        inductor.freezing = True
        module = torch.compile(module)

    @torch.inference_mode(way != "compiled")
    @torch.no_grad()
    def compute() -> Any:
        return module(images)

    return compute


def main() -> None:
    """Warm up, move to the one processor, obey."""
    told = json.loads(sys.argv[1])
    answers = own_output()
    torch.set_num_threads(1)
    compute = make(told["model"], told["batch"], told["way"])
    compute()
    os.sched_setaffinity(0, {told["cpu"]})
    obey(compute, told["batch"], sys.stdin, answers)


if __name__ == "__main__":
    main()
