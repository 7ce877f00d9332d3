"""Each benchmark runs with a tiny model: whether it works, never how fast."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bench.codecs
import bench.engines
import bench.hop
import bench.imports
import bench.journal
import bench.llm
import bench.memory
import bench.overhead
import bench.payload
import bench.pipeline
import bench.planning
import bench.rpc
import bench.start_up
import bench.versions
from bench.llm_texts import Texts, others
from bench.pinned_pipeline import Pair, prepare
from bench.processes import confine_to_two_cpus, on_cpu
from bench.results import Document, load
from bench.rivals.groups import Job, RpcGroup
from bench.workers import Worker, WorkerError

TINY = "tests.bench.tiny_torch:tiny"
USABLE = sorted(os.sched_getaffinity(0))
CPUS = (USABLE[0], USABLE[-1])
HERE = Path(__file__).parent.parent.parent
MODULES = sorted(path.stem for path in (HERE / "bench").glob("[a-z]*.py"))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def pair(plans: Path) -> Pair:
    return prepare(TINY, 2, plans)


Command = Callable[..., Document]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """A benchmark's own command, in this process; its results."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("bench.") and hasattr(
            module, "confine_to_two_cpus"
        ):
            monkeypatch.setattr(module, "confine_to_two_cpus", lambda: CPUS)

    def call(module: Any, *arguments: object) -> Document:
        file = tmp_path / "results.json"
        monkeypatch.setattr(
            sys, "argv", [module.__name__, "--json", str(file), *map(str, arguments)]
        )
        module.main()
        return load(file)

    return call


def test_the_pipeline_against_two_processes_and_window_1(
    command: Command, plans: Path, pair: Pair
) -> None:
    arguments = ("--models", TINY, "--batches", 2, "--rounds", 2, "--seconds", 0.1)
    (row,) = command(bench.pipeline, *arguments, "--plans", plans).rows
    assert (row["model"], row["batch"], row["lost"]) == ("tiny", 2, 0)
    assert row["of_limit"]["min"] > 0
    assert row["over_window_1"]["median"] > 0
    assert set(row["cpu_ms"]) == {"stage 0", "stage 1", "broker", "client"}
    assert len(row["compute_ms"]) == 2


def test_ours_against_rpc_and_gloo_with_the_same_answer(pair: Pair) -> None:
    row = bench.rpc.measure(pair, Job(TINY, 2, CPUS), 1, 0.1, ["tcp"])
    assert row["difference"] < 1e-4
    assert set(row["images_per_s"]) == {"shardline", "PyTorch RPC", "pipelining", "two processes"}
    assert all(rates["min"] > 0 for rates in row["images_per_s"].values())
    assert row["settings"]["PyTorch RPC"]["transport"] == "tcp"
    assert row["settings"]["pipelining"]["cut"] in (1, 2, 3)


def test_engines_on_one_processor(command: Command, plans: Path, pair: Pair) -> None:
    arguments = ("--models", TINY, "--batches", 2, "--rounds", 1, "--seconds", 0.05)
    engines = ("--engines", "onnxruntime,torch eager")
    found = command(bench.engines, *arguments, *engines, "--plans", plans).rows
    assert [row["engine"] for row in found] == ["onnxruntime", "torch eager"]
    assert found[1]["over_eager"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert all(row["resident_mb"] > 20 and row["ready_s"] > 0 for row in found)


def test_payloads_with_and_without_tls(command: Command) -> None:
    arguments = ("--sizes", "1,300", "--qos", "0,1", "--rounds", 1, "--seconds", 0.05)
    found = command(bench.payload, *arguments, "--messages", 3).rows
    assert [(r["security"], r["size_bytes"], r["qos"]) for r in found] == [
        (security, size, qos)
        for security in ("plain", "TLS")
        for size in (1000, 300_000)
        for qos in (0, 1)
    ]
    assert all(r["ours"]["p50_ms"] > 0 and r["bare"]["mb_per_s"] > 0 for r in found)


def test_a_start_to_its_first_result(
    command: Command, plans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.start_up, "import_torch", lambda _cpu: {"import torch": (2.0, 3e8)})
    arguments = ("--models", TINY, "--rounds", 1, "--plans", plans)
    found = command(bench.start_up, *arguments).rows
    assert [row["until"] for row in found] == ["online", "ready", "first result", "import torch"]
    online, ready, result, torch = (row["seconds"]["median"] for row in found)
    assert 0 < online <= ready < result
    assert torch == 2.0
    assert found[0]["of_torch"]["median"] == pytest.approx(online / 2, abs=1e-3)
    assert all(row["resident_mb"] > 20 for row in found)


def test_imports_by_package(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.imports, "TORCH", "import json")  # it takes seconds
    found = command(bench.imports, "--rounds", 1).rows
    packages = {row["package"] for row in found if row["process"] == "shardline stage"}
    assert {"all", "shardline", "standard library", "numpy", "others"} <= packages
    assert "torch" not in packages


def test_the_overhead_of_being_watched(command: Command) -> None:
    arguments = ("--model", "", "--identity", 4, "--rounds", 1, "--seconds", 1.3)
    (row,) = command(bench.overhead, *arguments).rows
    assert row["heard"] >= 2, "the watched pipeline must publish metrics"
    assert row["processor_time"]["median"] > 0
    assert row["silent_heard"] == 0, "the other one must not"


def test_a_hop_beside_bare_paho(command: Command) -> None:
    (row,) = command(bench.hop, "--sizes", 1, "--count", 3, "--rounds", 1).rows
    assert row["ratio"]["median"] > 0
    assert 0 < row["ours_p50_ms"] <= row["ours_p95_ms"]


def test_memory_of_two_halves(plans: Path) -> None:
    halves, whole = bench.memory.prepare(TINY, 1, plans)
    assert (halves.num_stages, whole.num_stages) == (2, 1)
    found = bench.memory.measure(halves, plans, prepack=True)
    assert [row["process"] for row in found] == ["tiny-1-halves stage 0", "tiny-1-halves stage 1"]
    assert all(row["peak_mb"] >= row["steady_mb"] > 20 for row in found)  # type: ignore[operator]


def test_codecs_against_encode_and_decode(command: Command) -> None:
    found = command(bench.codecs, "--shapes", "1x4x8x8", "--rounds", 1).rows
    assert {"float16", "int8"} <= {row["codec"] for row in found}


def test_a_journal_against_none(command: Command) -> None:
    arguments = ("--sizes", 4, "--model", "", "--rounds", 1, "--seconds", 0.1)
    found = command(bench.journal, *arguments).rows
    assert [row["synchronous"] for row in found] == ["normal", "normal", "full"]
    assert all(row["ratio"]["median"] > 0 for row in found)


def test_planning_a_fleet(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.planning, "cases", lambda _m, of=bench.planning.cases: of(None)[:1])
    (row,) = command(bench.planning, "--seconds", 2).rows
    assert row["value"] > 0
    assert row["stages"] >= 1


def test_the_rows_of_tokens_compare_what_they_name() -> None:
    names = [name for this, other, _aim in bench.llm.COMPARISONS for name in (this, other)]
    short = {name: [10.0 + place] * 2 for place, name in enumerate(dict.fromkeys(names))}
    both = {
        f"{bench.llm.PIPELINE}, 8": [2.0, 2.0],
        f"{bench.llm.PIPELINE}, 40": [4.0, 4.0],
        f"{bench.llm.ONE}, 8": [1.0, 1.0],
        f"{bench.llm.ONE}, 40": [5.0, 5.0],
    }
    rows = bench.llm.rows_of(bench.llm.Found(short, both, [1.0, 3.0], {}), [8, 40])
    *compared, pipeline, one, hop = rows
    for row in compared:
        this, other = short[row["what"]][0], short[row["against"]][0]
        assert row["ms"] == [this, other]
        assert row["speed"]["median"] == pytest.approx(other / this, abs=0.001), "faster is more"
    assert [row["speed"]["median"] for row in (pipeline, one)] == [0.5, 0.2]
    assert hop["hop_ms"]["median"] == 2.0


LIMITED = ("both stages at once, nothing between", "2 stages, 2 batches of 2")


def test_tokens_of_a_pipeline_of_one_process_and_of_transformers(
    command: Command, plans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: dict[str, Any] = {}

    def look(texts: Texts, *arguments: Any, **options: Any) -> list[str]:
        looked_at.update({f"{name}, {context}": turns for (name, context), turns in texts.items()})
        return others(texts, *arguments, **options)

    monkeypatch.setattr(bench.llm, "others", look)
    arguments = ("--shape", "tiny", "--contexts", "8,40", "--tokens", 24, "--rounds", 2)
    document = command(bench.llm, *arguments, "--plans", plans)
    *compared, hop = document.rows
    assert [(row["what"], row["against"]) for row in compared] == [
        ("2 stages", "one process"),
        ("2 stages, their computing alone", "one process"),
        ("2 stages, 1 batch of 4", "one process, 4 as a batch"),
        ("2 stages, 2 batches of 2", "one process, 4 as a batch"),
        ("2 stages, 4 batches of 1", "one process, 4 as a batch"),
        ("both stages at once, nothing between", "one process, 4 as a batch"),
        ("2 stages, int4, 2 batches of 2", "one process, int4, 4 as a batch"),
        ("one process, int4", "one process"),
        ("one process", "transformers"),
        ("2 stages, behind 40 tokens", "behind 8"),
        ("one process, behind 40 tokens", "behind 8"),
    ]
    assert all(row["speed"]["min"] > 0 and min(row["ms"]) > 0 for row in compared)
    assert hop["hop_ms"]["min"] > 0
    whole_token, computing = (row["ms"][0] for row in compared[:2])
    assert computing < whole_token, "a token takes its hops besides"
    limit, pairs = (next(r["ms"][0] for r in compared if r["what"] == what) for what in LIMITED)
    assert limit < pairs, "what passes a broker takes longer"
    assert document.notes == [], "all sides of one kind of weights write the same"
    for name in (bench.llm.FOUR, bench.llm.TOGETHER, bench.llm.PAIRS, bench.llm.SINGLES):
        turns = looked_at[f"{name}, 8"]
        assert len(turns) == 3, "to warm up, and in each round"
        assert [[len(row) for row in rows] for rows in turns] == [[25] * 4] * 3
        assert len({tuple(row) for row in turns[0]}) > 1, "rows that are alike show nothing"


def written(**sides: list[list[list[int]]]) -> Texts:
    """Behind 8 tokens: what one process wrote in two turns, alone and as a batch, and others."""
    alone, together = [[[1, 2]]] * 2, [[[1, 2], [3, 4]]] * 2
    return {(name, 8): turns for name, turns in {"one": alone, "all": together, **sides}.items()}


def test_a_side_that_writes_something_else_is_named_with_row_and_turns() -> None:
    same, other = [[1, 2], [3, 4]], [[1, 2], [3, 5]]
    for sides, named in (
        ({"pairs": [same, same]}, []),
        ({"pairs": [[[1, 3]], [[1, 2]]]}, ["pairs behind 8 tokens, row 0 in 1 of 2 turns"]),
        ({"pairs": [other, same]}, ["pairs behind 8 tokens, row 1 in 1 of 2 turns"]),
        ({"singles": [other, other]}, ["singles behind 8 tokens, row 1 in 2 of 2 turns"]),
        ({"all": [same, other]}, ["all behind 8 tokens, row 1 in 1 of 2 turns"]),
        ({"one": [[[1, 2]], [[2, 2]]]}, ["one behind 8 tokens, row 0 in 1 of 2 turns"]),
        ({"pairs": [same, [[1, 2]]]}, ["pairs behind 8 tokens, row 1 in 1 of 2 turns"]),
        ({"int4": [other, other]}, []),
    ):
        assert others(written(**sides), "one", "all", left_out=("int4",)) == named


def test_a_checkout_beside_itself(command: Command) -> None:
    arguments = ("--models", "", "--identity", 4, "--rounds", 1, "--seconds", 1.0)
    document = command(bench.versions, "--before", HERE, *arguments)
    (row,) = document.rows
    assert row["throughput"]["median"] > 0
    assert row["processor_time"]["median"] > 0
    assert str(HERE) not in document.command


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_can_be_imported(name: str) -> None:
    assert importlib.import_module(f"bench.{name}").__doc__


def test_what_goes_wrong_in_a_worker_is_said() -> None:
    with pytest.raises(WorkerError, match=r"bench.workers ended with 1:\n(.|\n)*Error"):
        Worker(["bench.workers", "/nowhere/graph.onnx", "1", "[3]"], cpu=None)


def test_an_unknown_transport_is_an_error() -> None:
    with pytest.raises(KeyError):
        RpcGroup(Job(TINY, 1, CPUS), "pigeon")


def test_a_command_is_held_to_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_cpu(1, ["x"]) == ["taskset", "-c", "1", "x"]
    assert on_cpu(None, ["x"]) == ["x"]
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {3})
    with pytest.raises(RuntimeError, match="two processors"):
        confine_to_two_cpus()
