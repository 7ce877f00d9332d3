"""One process of the PyTorch RPC pipeline: the master, or one of two stages.

    python -m bench.rivals.rpc_process '{"rank": 0, "store": FILE, "model": …, "batch": 8, …}'

Rank 0 feeds and answers commands; ranks 1 and 2 hold the stages, and end when their input does.
"""

import json
import sys
import time
from collections import deque
from typing import Any

import torch
import torch.distributed.rpc as rpc

from bench.rivals import rpc_stage
from bench.rivals.chain import Chain, build
from bench.rivals.lines import own_output, serve
from bench.rivals.rpc_stage import FIRST, SECOND
from bench.rivals.tuning import Link, balanced_cuts
from bench.workers import pixels

NAMES = ("master", FIRST, SECOND)
WORKER_THREADS = 32
"""More than the largest window: a «pull» holds one while it waits."""
TIMEOUT_S = 120.0


class Master:
    """Feeds the two stages, a window of batches at a time."""

    def __init__(self, chain: Chain, batch: int) -> None:
        self._images = torch.from_numpy(pixels(batch, chain.shape))
        self._setting: dict[str, Any] = {}

    def profile(self, _told: dict[str, Any]) -> dict[str, Any]:
        """The cuts that are worth a trial."""
        links = rpc.rpc_sync(FIRST, rpc_stage.profile, args=(self._images,))
        return {"cuts": balanced_cuts([Link(*link) for link in links]), "links": len(links)}

    def use(self, told: dict[str, Any]) -> dict[str, Any]:
        """Cut here, in this memory layout, with this window, this way."""
        self._setting = told
        cut, layout = told["cut"], told["channels_last"]
        rpc.rpc_sync(FIRST, rpc_stage.use, args=(0, cut, layout))
        rpc.rpc_sync(SECOND, rpc_stage.use, args=(cut, None, layout))
        for future in [self._submit() for _ in range(2)]:
            future.wait()
        return {}

    def run(self, told: dict[str, Any]) -> dict[str, Any]:
        """Images a second over so many seconds, the last results included."""
        waiting: deque[Any] = deque()
        started, batches = time.perf_counter(), 0
        end = started + told["seconds"]
        while True:
            while len(waiting) < self._setting["window"] and time.perf_counter() < end:
                waiting.append(self._submit())
            if not waiting:
                break
            waiting.popleft().wait()
            batches += 1
        rate = batches * len(self._images) / (time.perf_counter() - started)
        return {"images_per_s": rate, "batches": batches}

    def answer(self, _told: dict[str, Any]) -> dict[str, Any]:
        """The logits of the first image."""
        return {"logits": self._submit().wait()[0].tolist()}

    def _submit(self) -> Any:
        if self._setting["way"] == "push":
            return rpc.rpc_async(FIRST, rpc_stage.compute_and_push, args=(self._images,))
        made = rpc.remote(FIRST, rpc_stage.compute, args=(self._images,))
        return rpc.rpc_async(SECOND, rpc_stage.fetch_and_compute, args=(made,))


def main() -> None:
    """Join the others, serve, leave together with them."""
    told = json.loads(sys.argv[1])
    answers = own_output()
    torch.set_num_threads(1)
    chain = build(told["model"], told["fold"])
    rpc_stage.hold(chain)
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=WORKER_THREADS,
        rpc_timeout=TIMEOUT_S,
        init_method=f"file://{told['store']}",
        _transports=told["transports"],
        _channels=told["channels"],
    )
    rank = told["rank"]
    rpc.init_rpc(  # type: ignore[no-untyped-call]
        NAMES[rank], rank=rank, world_size=len(NAMES), rpc_backend_options=options
    )
    if rank == 0:
        master = Master(chain, told["batch"])
        commands = {
            "profile": master.profile,
            "use": master.use,
            "run": master.run,
            "answer": master.answer,
        }
        serve(commands, answers, {"ready": True})
    else:
        serve({}, answers, {"ready": True})
    rpc.shutdown(graceful=False)


if __name__ == "__main__":
    main()
