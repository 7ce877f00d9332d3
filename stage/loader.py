"""From a plan to a running engine: find the shard here, verify it, load it, warm it up."""

import logging
from pathlib import Path

import numpy as np
import psutil

from contract.command import Fetch
from contract.decoder import CacheSpec, Decoding
from contract.errors import (
    EngineError,
    PlanMismatchError,
    ShardAbsentError,
    ShardError,
    ShardHashMismatchError,
    ShardMissingError,
)
from contract.plan import Plan, StageSpec
from contract.tensor_spec import BATCH, TOKENS, Tensors
from shards.cache import ShardCache
from shards.query_heads import query_heads
from shards.reader import Shard, find_copy, find_shard, read_shard
from stage.engine import DecoderEngine, Engine, load_decoder, load_engine
from stage.machine import memory_limit
from stage.memory import release_free_memory

log = logging.getLogger(__name__)


class ShardLoader:
    """Knows where shards can be: a folder that somebody copied, and the cache of fetched files."""

    def __init__(
        self, shards_dir: Path, cache: ShardCache, engine: str, threads: int, prepack: bool
    ) -> None:
        self._shards_dir, self._cache = shards_dir, cache
        self._engine, self._threads, self._prepack = engine, threads, prepack
        self._damaged: set[Path] = set()  # copies whose hashes were wrong

    def holds(self, fetch: Fetch) -> bool:
        """Whether the copied folder has this shard already, so that nothing need be fetched."""
        copy = find_copy(self._shards_dir, fetch.plan_id, fetch.stage_index, fetch.files)
        return copy is not None and copy not in self._damaged

    def load(self, plan: Plan, spec: StageSpec, prepack: bool = True) -> Engine | DecoderEngine:
        """An engine that has run one batch of zeros: its first real batch is as fast as any.

        A language model's has computed one token. Weights are prepacked where both the plan
        (``prepack``) and this device's settings allow it.

        Raises:
            ShardError: no shard of this stage here, or a damaged one. What is damaged in the
                cache is thrown out of it.
            EngineError: the engine cannot load or run it.
        """
        folder = self._find(plan, spec)
        log.info("stage %d of plan %s: loading %s", spec.stage_index, plan.plan_id, folder)
        try:
            shard = read_shard(folder, plan, spec.stage_index)
        except ShardHashMismatchError as error:
            if not folder.is_relative_to(self._cache.root):
                self._damaged.add(folder)  # so that the next `publish` hands it out
                raise
            for file in (spec.graph, spec.weights):
                self._cache.forget(file)
            raise ShardError(
                f"{error} It was thrown out of the cache: `shardline publish` hands it out anew"
            ) from error
        try:
            # The first run allocates and packs: it must not be a batch that somebody waits for.
            if spec.cache is not None and plan.decoding is not None:
                return self._load_decoder(shard, plan, spec.cache, plan.decoding, prepack)
            engine = load_engine(self._engine, shard, self._threads, self._prepack and prepack)
            engine.run(_zeros(plan, spec))
        except MemoryError as error:
            raise EngineError(
                f"stage {spec.stage_index} of plan {plan.plan_id}: not enough memory for a batch "
                f"of {plan.batch_size} {'images' if spec.cache is None else 'sequences'}; plan a "
                "smaller batch, or more stages"
            ) from error
        release_free_memory()
        return engine

    def _load_decoder(
        self, shard: Shard, plan: Plan, cache: CacheSpec, decoding: Decoding, prepack: bool
    ) -> DecoderEngine:
        spec = plan.stages[shard.manifest.stage_index]
        engine = load_decoder(
            self._engine, shard, cache, decoding, self._threads, self._prepack and prepack
        )
        release_free_memory()
        where = f"stage {spec.stage_index} of plan {plan.plan_id}"
        heads = query_heads(shard.graph_path, at_least=cache.kv_heads)
        score_bytes = decoding.score_bytes(heads, plan.batch_size)
        check_caches_fit(where, cache, decoding, score_bytes, available_memory_bytes())
        engine.step(engine.allocate(1), _zeros(plan, spec, rows=1), 0)
        return engine

    def _find(self, plan: Plan, spec: StageSpec) -> Path:
        files = (spec.graph, spec.weights)
        copy = find_copy(self._shards_dir, plan.plan_id, spec.stage_index, files)
        if copy is not None and copy not in self._damaged:
            return copy
        try:
            return self._cache.find_shard(plan, spec.stage_index)
        except ShardMissingError:
            try:
                return find_shard(self._shards_dir, plan, spec.stage_index)  # says what is wrong
            except (ShardMissingError, PlanMismatchError) as nearby:
                raise ShardAbsentError(
                    f"stage {spec.stage_index} of plan {plan.plan_id} is not in the cache "
                    f"{self._cache.root}: run `shardline publish`, which hands it out; nor is it "
                    f"in the folder of copied shards: {nearby}"
                ) from nearby


def available_memory_bytes() -> int:
    """What this process may still take: of the machine, and of its container."""
    available = psutil.virtual_memory().available
    limit, used = memory_limit()
    return available if limit is None or used is None else min(available, max(0, limit - used))


def check_caches_fit(
    where: str, cache: CacheSpec, decoding: Decoding, score_bytes: int, available_bytes: int
) -> None:
    """Caches are made as they are needed: what will not fit is told before anybody waits for it.

    ``score_bytes``: what attention takes beside them while it computes.

    Raises:
        EngineError: the full caches and one computation need more memory than there is.
    """
    needed = cache.bytes_of(decoding)
    if needed + score_bytes > available_bytes:
        raise EngineError(
            f"{where}: not enough memory: the caches of {decoding.sequences} sequences of "
            f"{decoding.context_tokens:,} tokens need {needed / 1e6:,.0f} MB and attention "
            f"{score_bytes / 1e6:,.0f} MB, {available_bytes / 1e6:,.0f} MB are available; plan a "
            "shorter --context, fewer --sequences, a smaller --chunk, or more stages"
        )


def _zeros(plan: Plan, spec: StageSpec, rows: int | None = None) -> Tensors:
    """A full batch of nothing for this stage, or ``rows``; of a language model one token."""
    sizes = {BATCH: rows or plan.batch_size, TOKENS: 1}
    return {
        tensor.name: np.zeros(
            [d if isinstance(d, int) else sizes[d] for d in tensor.shape], tensor.dtype
        )
        for tensor in spec.inputs
    }
