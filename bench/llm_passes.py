"""Lets a running pipeline decode prompts, and takes the time: one side of `bench.llm`."""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from bench.llm_models import Ids
from bench.llm_texts import Rows
from client.batch import DeadBatch, Tokens
from client.generation.pipeline import TokenPipeline
from client.generation.request import batch_of, make_request
from contract.decoder import Sampling


class Passed(NamedTuple):
    """What came through a pipeline. ``compute_ms``: of all stages together, for a message."""

    ms_per_token: float
    compute_ms: float
    tokens: Rows


def decode(pipeline: TokenPipeline, prompts: Sequence[Ids], tokens: int) -> Passed:
    """Let every one of ``prompts``, (rows, tokens) each, go on as a batch by so many tokens.

    Counted is from when all of them have their first token until the first one has its last: as
    long as all are in flight.

    Raises:
        RuntimeError: a batch was given up.
    """
    plan = pipeline.plan
    batches = [
        batch_of(
            [make_request(row.tolist(), Sampling(), tokens + 1, plan) for row in ids],
            [f"{number}-{row}" for row in range(len(ids))],
        )
        for number, ids in enumerate(prompts)
    ]
    found: dict[str, list[int]] = {name: [] for batch in batches for name in batch.names}
    computed: list[float] = []
    begun = last = 0.0
    counted, is_over = 0, False
    for event in pipeline.generate(batches):
        if isinstance(event, DeadBatch):
            raise RuntimeError(f"a batch was given up: {event.detail}")
        if not isinstance(event, Tokens):
            continue
        now = time.perf_counter()
        for name, token in zip(event.batch.names, event.token_ids, strict=True):
            assert token is not None
            found[name].append(token)
        if is_over:
            continue
        last = now
        if begun:
            counted += len(event.token_ids)
            is_over = len(found[event.batch.names[0]]) > tokens
            computed.append(sum(hop.finished_us - hop.started_us for hop in event.hops) / 1e3)
        elif all(found.values()):
            begun = last
    return Passed(
        (last - begun) / counted * 1e3, statistics.mean(computed), [*map(list, found.values())]
    )
