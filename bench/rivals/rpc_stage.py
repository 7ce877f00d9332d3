"""What a stage of the PyTorch RPC pipeline runs: functions that are called by name from afar.

As in PyTorch's own tutorial on pipelines over RPC: a lock keeps batches from computing against each
other, while other threads receive. There the second stage fetches what the first made («pull»);
here the first may also call the second as soon as it is done («push»), which saves a message.
"""

import threading
from typing import Any

import torch
import torch.distributed.rpc as rpc
from torch import Tensor

from bench.rivals.chain import Chain, Part, time_links

FIRST, SECOND = "stage-0", "stage-1"
_lock = threading.Lock()
_chain: Chain | None = None
_part: Part | None = None


def hold(chain: Chain) -> None:
    """This process' model; before anything else."""
    global _chain
    _chain = chain


def profile(images: Tensor) -> list[tuple[float, int]]:
    """Time in ms and bytes given on of every link."""
    assert _chain is not None
    return [(link.ms, link.output_bytes) for link in time_links(_chain, images)]


def use(first: int, end: int | None, channels_last: bool) -> None:
    """Serve these links from now on."""
    global _part
    assert _chain is not None
    with _lock:
        last = len(_chain.links) if end is None else end
        _part = _chain.part(first, last, channels_last)


def compute(x: Tensor) -> Tensor:
    """One batch through the links of this process."""
    assert _part is not None
    with _lock, torch.inference_mode():
        result: Tensor = _part(x)
    return result


def fetch_and_compute(there: Any) -> Tensor:
    """«Pull»: what the first stage made lies with it until it is fetched."""
    return compute(there.to_here())


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def compute_and_push(x: Tensor) -> Any:
    """«Push»: the answer is the second stage's, and no thread waits for it."""
    return rpc.rpc_async(SECOND, compute, args=(compute(x),))
