"""What is fair in the comparisons: tuning, cuts, the same model, sums of rounds."""

import numpy as np
import pytest
import torch

from bench.imports import ALL, REST, SHARDLINE, STANDARD, TORCH, by_package, rows
from bench.payload import Turn, row, sum_up
from bench.pinned_pipeline import models, spec_of
from bench.rivals.chain import CHAINS, build, time_links
from bench.rivals.tuning import Link, balanced_cuts, tune
from bench.rpc import difference_of
from planner.importers.torchvision_models import import_models


def test_the_candidates_for_a_cut_are_balanced_and_dear_ones_come_later() -> None:
    even = [Link(10.0, 0)] * 4
    assert balanced_cuts(even)[0] == 2
    assert balanced_cuts(even, count=9) == [2, 1, 3]
    large_in_the_middle = [Link(10.0, 0), Link(10.0, 50_000_000), Link(10.0, 0), Link(10.0, 0)]
    assert balanced_cuts(large_in_the_middle)[-1] == 2
    with pytest.raises(ValueError, match="no place to cut"):
        balanced_cuts([Link(1.0, 0)])


def test_tuning_keeps_the_best_of_each_setting_and_tries_no_setting_twice() -> None:
    tried: list[tuple[int, str]] = []

    def rate(setting: dict[str, object]) -> float:
        tried.append((setting["cut"], setting["way"]))  # type: ignore[arg-type]
        return {1: 1.0, 2: 5.0, 3: 2.0}[setting["cut"]] + (setting["way"] == "pull") * 0.5  # type: ignore[index]

    found, reached = tune({"cut": 1, "way": "push"}, {"cut": (1, 2, 3), "way": ("pull",)}, rate)
    assert found == {"cut": 2, "way": "pull"}
    assert reached == 5.5
    assert tried == [(1, "push"), (2, "push"), (3, "push"), (2, "pull")]


def test_another_models_answer_is_not_compared() -> None:
    ours = np.array([1.0, -4.0, 2.0])
    assert difference_of(ours, [1.0, -4.004, 2.0], "rival") == pytest.approx(0.001)
    with pytest.raises(RuntimeError, match="rival gives another answer"):
        difference_of(ours, [1.0, 4.0, 2.0], "rival")
    with pytest.raises(RuntimeError, match="another answer"):
        difference_of(ours, [1.0, float("nan"), 2.0], "rival")


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_a_chain_is_the_whole_model(name: str) -> None:
    torch.manual_seed(0)
    module = import_models().get_model(name, weights=None).eval()
    x = torch.rand(1, 3, 64, 64)
    expected = module(x)
    links = CHAINS[name](module)
    with torch.inference_mode():
        y = x
        for link in links:
            y = link(y)
    assert torch.allclose(y, expected, atol=1e-6)
    assert sum(1 for link in links for _ in link.parameters()) == len(list(module.parameters()))


def test_a_chain_gives_the_same_in_halves_channels_last_and_folded() -> None:
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    chain = build("tests.bench.tiny_torch:tiny")
    folded = build("tests.bench.tiny_torch:tiny", fold=True)
    with torch.inference_mode():
        whole = chain.part(0, 4, channels_last=False)(images)
        halves = chain.part(2, 4, False)(chain.part(0, 2, False)(images))
        turned = chain.part(0, 4, channels_last=True)(images)
        other = folded.part(0, 4, False)(images)
    assert float((whole[0] - whole[1]).abs().max()) > 1e-3
    assert torch.equal(whole, halves)
    assert torch.allclose(whole, turned, atol=1e-5)
    assert torch.allclose(whole, other, atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.part(0, 4, False).modules())
    timed = time_links(chain, images)
    assert len(timed) == 4
    assert timed[0].output_bytes == 2 * 8 * 28 * 28 * 4
    with pytest.raises(ValueError, match="no chain is written"):
        build("densenet121")


def test_models_are_named_as_the_planner_names_them() -> None:
    assert models("all") == list(CHAINS)
    assert [spec_of(m) for m in ("resnet18", "a:b", "x.onnx")] == [
        "torchvision:resnet18",
        "a:b",
        "x.onnx",
    ]


def turn(latency_ms: float, mb_per_s: float, cpu_s: float) -> Turn:
    return Turn((latency_ms, latency_ms), mb_per_s, 500_000_000, cpu_s, 2 * cpu_s)


def test_payload_figures_are_for_a_gigabyte_and_ratios_within_a_round() -> None:
    ours, bare = [turn(1.0, 100.0, 0.25), turn(3.0, 50.0, 0.75)], [turn(2.0, 50.0, 1.0)] * 2
    assert sum_up(ours) == {
        "p50_ms": 2.0,
        "p95_ms": 3.0,
        "mb_per_s": 75.0,
        "broker_cpu_s_per_gb": 1.0,
        "client_cpu_s_per_gb": 2.0,
    }
    made = row(1000, 1, True, {"ours": ours, "bare": bare})
    assert made["latency"] == {"median": 1.0, "min": 0.5, "max": 1.5}
    assert made["throughput"] == {"median": 1.5, "min": 1.0, "max": 2.0}
    assert made["security"] == "TLS"


REPORT = """import time: self [us] | cumulative | imported package
import time:      1000 |       1000 |   _codecs
import time:      2000 |       3000 | json
import time:     20000 |      23000 |   numpy._core
import time:      1500 |      24500 | contract.plan
import time:       500 |        500 |     tiny_package.inner
"""


def test_import_times_are_each_modules_own_by_package() -> None:
    found = by_package(REPORT)
    assert found == {STANDARD: 3.0, "numpy": 20.0, SHARDLINE: 1.5, "tiny_package": 0.5}
    made = rows({"stage": [found, found], TORCH: [{"torch": 100.0}, {"torch": 50.0}]})
    assert [(one["process"], one["package"], one["ms"]) for one in made] == [
        ("stage", ALL, 25.0),
        ("stage", "numpy", 20.0),
        ("stage", REST, 5.0),
        (TORCH, ALL, 75.0),
    ]
    assert made[0]["of_torch"] == {"median": 0.375, "min": 0.25, "max": 0.5}
