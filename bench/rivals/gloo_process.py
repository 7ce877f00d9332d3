"""One stage of a `torch.distributed.pipelining` pipeline (ScheduleGPipe) over gloo.

    python -m bench.rivals.gloo_process '{"rank": 0, "store": FILE, "model": …, "batch": 8, …}'

The first stage makes its own images and the last one keeps its results: nobody feeds it from
outside, which is more than ours has. A step takes several micro-batches, each of the size that is
a batch with us, and fills and empties the pipeline once.
"""

import json
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from bench.rivals.chain import Chain, build, time_links
from bench.rivals.lines import own_output, serve
from bench.rivals.tuning import balanced_cuts
from bench.workers import pixels

STAGES = 2


class GlooStage:
    """One of two ranks; both are told the same."""

    def __init__(self, chain: Chain, rank: int, batch: int) -> None:
        self._chain, self._rank = chain, rank
        self._images = torch.from_numpy(pixels(batch, chain.shape))
        self._micro_batches = 1
        self._schedule: ScheduleGPipe | None = None

    def profile(self, _told: dict[str, Any]) -> dict[str, Any]:
        """The cuts that are worth a trial."""
        links = time_links(self._chain, self._images)
        return {"cuts": balanced_cuts(links), "links": len(links)}

    def use(self, told: dict[str, Any]) -> dict[str, Any]:
        """Cut here, in this memory layout, with so many micro-batches in a step."""
        cut = told["cut"]
        first, end = (0, cut) if self._rank == 0 else (cut, len(self._chain.links))
        part = self._chain.part(first, end, told["channels_last"])
        stage = PipelineStage(part, self._rank, STAGES, torch.device("cpu"))
        self._micro_batches = told["micro_batches"]
        self._schedule = ScheduleGPipe(stage, self._micro_batches)
        self._input = self._images.repeat(self._micro_batches, 1, 1, 1)
        self._step()
        return {}

    def run(self, told: dict[str, Any]) -> dict[str, Any]:
        """So many steps; the seconds that they took."""
        dist.barrier()
        started = time.perf_counter()
        for _ in range(told["steps"]):
            self._step()
        return {
            "seconds": time.perf_counter() - started,
            "images": told["steps"] * len(self._input),
        }

    def answer(self, _told: dict[str, Any]) -> dict[str, Any]:
        """The logits of the first image, where they are."""
        result = self._step()
        return {"logits": None if result is None else result[0].tolist()}

    def _step(self) -> Any:
        assert self._schedule is not None
        with torch.no_grad():
            return self._schedule.step(*((self._input,) if self._rank == 0 else ()))


def main() -> None:
    """Join the other, serve."""
    told = json.loads(sys.argv[1])
    answers = own_output()
    torch.set_num_threads(1)
    chain = build(told["model"], told["fold"])
    dist.init_process_group(
        "gloo", init_method=f"file://{told['store']}", rank=told["rank"], world_size=STAGES
    )
    stage = GlooStage(chain, told["rank"], told["batch"])
    commands = {
        "profile": stage.profile,
        "use": stage.use,
        "run": stage.run,
        "answer": stage.answer,
    }
    serve(commands, answers, {"ready": True})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
