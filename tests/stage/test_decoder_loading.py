"""A device loads a shard of a language model, or says why not and what to change."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import stage.loader
from broker.memory import MemoryBroker
from contract import topics
from contract.decoder import CacheSpec, Decoding, Sampling
from contract.errors import EngineError
from contract.nack import NackReason
from contract.status import ShardState, parse_status
from shards.cache import ShardCache
from shards.query_heads import query_heads
from stage.crash_marker import CrashMarker
from stage.loader import ShardLoader, check_caches_fit
from tests.conftest import StartStage, eventually
from tests.hand_decoder import hand_logits, make_hand_plan, prompts
from tests.pipeline.fakes import publish_plan
from tests.stage.decoder_ring import Ring
from tests.stage.harness import Listener


def loader(folder: Path, engine: str = "onnxruntime") -> ShardLoader:
    return ShardLoader(folder, ShardCache(folder / ".cache", 10**9), engine, 1, True)


def test_a_loaded_shard_has_computed_a_token_and_holds_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    made = stage.loader.load_decoder

    def watched(*arguments: object) -> object:
        engine = made(*arguments)  # type: ignore[arg-type]
        step = engine.step
        engine.step = lambda block, inputs, position: (  # type: ignore[method-assign]
            steps.append((block.rows, position)),
            step(block, inputs, position),
        )[1]
        return engine

    monkeypatch.setattr(stage.loader, "load_decoder", watched)
    plan = make_hand_plan(tmp_path, 1)
    engine = loader(tmp_path).load(plan, plan.stages[0])
    assert steps == [(1, 0)]
    tokens = prompts(2, 5)
    logits = engine.step(engine.allocate(2), {"token_ids": tokens}, 0)["logits"]  # type: ignore[union-attr]
    np.testing.assert_allclose(logits, hand_logits(tokens)[:, -1], rtol=0, atol=2e-5)


def test_caches_that_do_not_fit_are_told_before_anybody_waits_for_them() -> None:
    cache = CacheSpec(layers=10, kv_heads=2, head_size=50)  # 8,000 bytes a token
    decoding = Decoding(context_tokens=1000, sequences=4, chunk_tokens=8)
    check_caches_fit("stage 1", cache, decoding, 0, 32_000_000)
    check_caches_fit("stage 1", cache, decoding, 1_000_000, 33_000_000)
    with pytest.raises(EngineError, match=r"stage 1: not enough memory.* 4 sequences of 1,000 tok"):
        check_caches_fit("stage 1", cache, decoding, 0, 31_999_999)
    with pytest.raises(EngineError, match=r"32 MB and attention 2 MB, 33 MB are available; plan a"):
        check_caches_fit("stage 1", cache, decoding, 2_000_000, 33_000_000)


def test_what_a_graph_s_attention_takes_is_read_from_its_bytes(tmp_path: Path) -> None:
    def graph_of(heads: int) -> Path:
        # AttributeProto: name, number, type; kv_num_heads is another attribute.
        number = bytes([heads]) if heads < 128 else bytes([heads & 0x7F | 0x80, heads >> 7])
        path = tmp_path / "graph.onnx"
        path.write_bytes(
            b"*\x12\n\x0ckv_num_heads\x18\x02\xa0\x01\x02"
            + b"*\x0f\n\tnum_heads\x18"
            + number
            + b"\xa0\x01\x02"
        )
        return path

    assert query_heads(graph_of(32), at_least=2) == 32
    assert query_heads(graph_of(300), at_least=2) == 300
    (tmp_path / "graph.onnx").write_bytes(b"none")
    assert query_heads(tmp_path / "graph.onnx", at_least=2) == 2
    plan = make_hand_plan(tmp_path / "plan", 1)
    folder = tmp_path / "plan" / plan.name / "stage-0"
    nodes = onnx.load(folder / "graph.onnx", load_external_data=False).graph.node
    attributes = [each for node in nodes for each in node.attribute if each.name == "num_heads"]
    assert query_heads(folder / "graph.onnx", at_least=0) == max(each.i for each in attributes) > 0


def test_what_may_still_be_taken_is_the_container_s_where_that_is_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage.loader, "memory_limit", lambda: (None, None))
    whole = stage.loader.available_memory_bytes()
    assert whole > 10_000_000
    monkeypatch.setattr(stage.loader, "memory_limit", lambda: (9_000_000, 2_000_000))
    assert stage.loader.available_memory_bytes() == 7_000_000
    monkeypatch.setattr(stage.loader, "memory_limit", lambda: (9_000_000, 10_000_000))
    assert stage.loader.available_memory_bytes() == 0


def test_a_device_without_the_memory_fails_to_load_and_says_so(
    tmp_path: Path, cluster: str, start_stage: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.loader, "memory_limit", lambda: (9_000, 2_000))
    assert "--sequences" in _failure(tmp_path, cluster, start_stage)


def test_a_device_with_another_engine_fails_to_load_and_names_the_right_one(
    tmp_path: Path, cluster: str, start_stage: StartStage
) -> None:
    error = _failure(tmp_path, cluster, start_stage, engine="identity")
    assert "identity: it runs no language models" in error
    assert "--engine onnxruntime" in error


def _failure(folder: Path, cluster: str, start_stage: StartStage, **settings: object) -> str:
    broker = MemoryBroker()
    plan = make_hand_plan(folder, 1, cluster=cluster)
    observer = Listener(broker.connect, "observer", topics.status_filter(cluster))
    start_stage("pi-0", folder, connect=broker.connect, **settings)
    publish_plan(broker.connect, plan, cluster)

    def failed() -> list[str]:
        statuses = observer.payloads("status", parse_status)
        return [s.error or "" for s in statuses if s.shard is ShardState.FAILED]

    eventually(failed, "it says that it failed")
    return failed()[-1]


def test_a_sequence_that_kills_the_device_twice_is_poison_at_whatever_token(
    tmp_path: Path,
) -> None:
    """What it survives of the same sequence tells nothing, nor does a copy of the killer."""
    ring, path = Ring(tmp_path, end_tokens=()), tmp_path / "computing"
    left: list[bytes] = []

    class Died(BaseException):
        pass

    def boot() -> None:
        ring.restart("pi-1")
        runner = ring.devices["pi-1"].runner
        runner._marker = CrashMarker(path)
        assert runner.loaded is not None
        engine, step = runner.loaded.engine, runner.loaded.engine.step

        def dies(block: Any, inputs: Any, position: int) -> Any:
            if position >= 4:
                left.append(path.read_bytes())
                raise Died
            return step(block, inputs, position)  # type: ignore[call-arg]

        engine.step = dies  # type: ignore[method-assign]

    boot()
    for attempt in range(2):
        ring.prompt(prompts(1, 3), (Sampling(max_position=9),), attempt=attempt)
        with pytest.raises(Died):
            ring.run()
        path.write_bytes(left[-1])  # whoever is killed wipes nothing out
        killer = ring.devices["pi-0"].connection.published[-1]
        boot()
        ring.deliver("pi-1", killer.topic, killer.payload)
        ring.run()
    reasons = [nack.reason for nack in ring.nacks]
    assert reasons == [NackReason.CACHE_LOST, NackReason.POISON]
    ring.prompt(prompts(1, 3), (Sampling(max_position=9),), attempt=2)
    ring.run()
    assert [nack.reason for nack in ring.nacks][2:] == [NackReason.POISON]
