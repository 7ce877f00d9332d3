"""From a plan to a running engine: find the shard here, verify it, load it, warm it up."""

import logging
from pathlib import Path

import numpy as np

from contract.command import Fetch
from contract.errors import (
    EngineError,
    PlanMismatchError,
    ShardAbsentError,
    ShardError,
    ShardHashMismatchError,
    ShardMissingError,
)
from contract.plan import Plan, StageSpec
from contract.tensor_spec import BATCH, Tensors
from shards.cache import ShardCache
from shards.reader import find_copy, find_shard, read_shard
from stage.engine import Engine, load_engine
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

    def load(self, plan: Plan, spec: StageSpec, prepack: bool = True) -> Engine:
        """An engine that has run one batch of zeros: its first real batch is as fast as any.

        Weights are prepacked where both the plan (``prepack``) and this device's settings allow it.

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
            engine = load_engine(self._engine, shard, self._threads, self._prepack and prepack)
            # The first run allocates and packs: it must not be a batch that somebody waits for.
            engine.run(_zeros(plan, spec))
        except MemoryError as error:
            raise EngineError(
                f"stage {spec.stage_index} of plan {plan.plan_id}: not enough memory for a batch "
                f"of {plan.batch_size} images; plan a smaller batch, or more stages"
            ) from error
        release_free_memory()
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


def _zeros(plan: Plan, spec: StageSpec) -> Tensors:
    """A full batch of nothing for this stage."""
    return {
        tensor.name: np.zeros(
            [plan.batch_size if d == BATCH else int(d) for d in tensor.shape], tensor.dtype
        )
        for tensor in spec.inputs
    }
