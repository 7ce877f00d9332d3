"""What fewer devices, other codecs, a purchase and another window would change."""

import itertools
import random
from dataclasses import replace
from typing import get_args

import pytest

from contract.errors import PartitionError
from contract.plan import Codec
from planner.cost_model import batches_per_s
from planner.edge_codecs import CODECS, best_codecs, with_codecs
from planner.partition import Rules
from planner.problem import (
    MB,
    BrokerCosts,
    ClientCosts,
    DeviceCosts,
    Link,
    Problem,
    RelayCosts,
    Solution,
    StageChoice,
)
from planner.purchases import offers
from planner.what_if import Purchase, WhatIf, advise, what_if
from tests.planner.random_plans import random_plan, try_everything

RELAY = RelayCosts(0.1, 1e-6)
SHARE: dict[Codec, float] = {"float32": 1, "float16": 0.5, "int8-per-channel": 0.26, "int8": 0.25}


def in_codec(problem: Problem, codec: Codec) -> Problem:
    """All inner edges shrink, and each codec is work for both ends."""
    sizes = list(problem.edge_bytes)
    work = list(sizes)
    for edge in range(1, problem.num_segments):
        sizes[edge] = round(sizes[edge] * SHARE[codec])
        work[edge] = round(work[edge] * (1.0 if codec == "float32" else 1.5))
    return replace(problem, edge_bytes=tuple(sizes), edge_work_bytes=tuple(work))


def drawer(count: int, *segment_ms: float, bytes_per_s: float = float("inf")) -> Problem:
    """Equal devices that hold two thirds of a model; an edge carries 100 KB."""
    link = Link(bytes_per_s, bytes_per_s)
    devices = tuple(
        DeviceCosts(f"pi-{index}", segment_ms, RELAY, link, 500 * MB) for index in range(count)
    )
    num = len(segment_ms)
    return Problem(devices, (100 * MB,) * num, (0,) * num, (100_000,) * (num + 1))


def cramped() -> Problem:
    """Two devices that cannot prepack their weights, which takes three times as long."""
    problem = drawer(2, 10.0)
    small = [
        replace(device, memory_bytes=200 * MB, unpacked_ms=(30.0,)) for device in problem.devices
    ]
    return replace(problem, devices=tuple(small))


def asked(problem: Problem, **rules: object) -> WhatIf:
    wanted = Rules(**rules)  # type: ignore[arg-type]
    solution = try_everything(problem, wanted)
    return what_if(
        problem, try_everything, wanted, solution, lambda codec: in_codec(problem, codec)
    )


def test_each_number_of_devices_has_its_best_plan() -> None:
    answers = asked(drawer(3, 10.0, 10.0, 10.0))
    one, two, three = answers.scaling
    assert one.problem == "nothing fits mixed"  # 80 MB and twice 300 MB
    assert one.images_per_s is None
    assert (two.strategy, two.used) == ("pipeline", 2)
    assert (three.strategy, three.used) == ("mixed", 3)  # a cut less to relay
    assert two.images_per_s == pytest.approx(1e3 / 20.2, rel=0.01)
    assert three.images_per_s == pytest.approx(answers.images_per_s)


def test_a_device_that_does_not_help_is_left_out() -> None:
    problem = drawer(2, 5.0)
    slow = replace(problem.devices[0], name="slow", segment_ms=(1e6,), memory_bytes=100 * MB)
    answers = asked(replace(problem, devices=(*problem.devices, slow)))
    assert [row.used for row in answers.scaling] == [1, 2, 2]
    assert answers.scaling[1].images_per_s == answers.scaling[2].images_per_s


def test_a_solver_that_runs_out_of_time_never_makes_more_look_worse() -> None:
    problem = drawer(3, 10.0)
    slow = replace(problem.devices[0], name="slow", segment_ms=(40.0,))
    problem = replace(problem, devices=(*problem.devices, slow))
    poor = Solution((StageChoice(0, 1, ("slow",)),), 1.0, 1.0)
    best = try_everything(problem, Rules(max_devices=1))

    def hasty(changed: Problem, rules: Rules) -> Solution:
        if changed == problem and rules.max_devices == 1:
            return best
        if rules.max_devices == 3:
            raise PartitionError("no time left")
        return poor

    answers = what_if(problem, hasty, Rules(), poor, lambda codec: in_codec(problem, codec))
    assert [row.used for row in answers.scaling] == [1, 1, 1, 1]
    assert answers.images_per_s == pytest.approx(best.value)
    assert all(row.images_per_s == pytest.approx(best.value) for row in answers.scaling)
    assert all(row.gain >= 0 for row in answers.purchases)
    assert all(row.gain >= -1e-3 for row in answers.codecs)


def test_only_a_purchased_device_is_one_more_than_the_user_allows() -> None:
    problem = drawer(3, 10.0, 10.0, bytes_per_s=1e7)
    allowed: dict[int, set[int | None]] = {}

    def noting(changed: Problem, rules: Rules) -> Solution:
        allowed.setdefault(len(changed.devices), set()).add(rules.max_devices)
        return try_everything(changed, rules)

    rules = Rules(max_devices=2)
    chosen = try_everything(problem, rules)
    what_if(problem, noting, rules, chosen, lambda codec: in_codec(problem, codec))
    assert allowed == {3: {1, 2}, 4: {3}}


def test_the_users_rules_bind_every_answer() -> None:
    answers = asked(drawer(3, 10.0, 10.0, 10.0), strategy="pipeline", num_stages=2, max_devices=2)
    assert [row.devices for row in answers.scaling] == [1, 2]
    assert all(row.strategy == "pipeline" for row in answers.codecs)
    more = next(row for row in answers.purchases if row.what.startswith("one more device"))
    assert more.gain == 0.0


def test_a_codec_gains_where_links_are_slow_and_costs_where_they_are_not() -> None:
    problem = replace(drawer(2, 10.0, 10.0, bytes_per_s=5e6), edge_bytes=(1000, 100_000, 1000))
    slow = {row.codec: row for row in asked(problem, strategy="pipeline", min_stages=2).codecs}
    assert slow["float32"].gain == pytest.approx(0.0)
    assert slow["float16"].images_per_s == pytest.approx(2 * slow["float32"].images_per_s, rel=0.05)
    problem = drawer(2, 10.0, 10.0)
    fast = {row.codec: row for row in asked(problem, strategy="pipeline", min_stages=2).codecs}
    assert fast["int8"].gain < 0


def test_each_link_gets_the_least_lossy_codec_that_reaches_the_rate() -> None:
    problem = replace(drawer(3, 10.0, 10.0, 10.0, bytes_per_s=2e7))
    problem = replace(problem, edge_bytes=(1000, 760_000, 100_000, 1000))
    answers = asked(problem, num_stages=3)
    codecs = {edge.edge: edge.codec for edge in answers.edge_codecs.edges}
    # 760 KB take 38 ms on the wire, 19 in half; 100 KB take 5 and hold nobody up.
    assert codecs == {1: "int8-per-channel", 2: "float32"}
    assert answers.edge_codecs.edges[0].bytes_per_batch == 197_600
    assert answers.edge_codecs.images_per_s >= max(r.images_per_s for r in answers.codecs) * 0.99


def test_a_lossier_codec_for_less_than_one_percent_is_not_worth_it() -> None:
    problem = replace(drawer(2, 10.0, 10.0, bytes_per_s=2e7), edge_bytes=(1000, 840_000, 1000))
    stages = (StageChoice(0, 1, ("pi-0",)), StageChoice(1, 2, ("pi-1",)))
    problems = {codec: in_codec(problem, codec) for codec in CODECS}
    rate = {codec: batches_per_s(problems[codec], stages) for codec in CODECS}
    assert rate["int8"] > rate["int8-per-channel"] > 0.99 * rate["int8"] > rate["float16"]
    chosen, reached = best_codecs(problem, problems, stages)
    assert chosen == {1: "int8-per-channel"}
    assert reached == rate["int8-per-channel"]


def test_each_link_is_looked_at_until_no_change_helps() -> None:
    """Two links are too slow for float32, and on two others any codec is too much work."""
    problem = replace(
        drawer(5, *[10.0] * 5, bytes_per_s=2e7),
        edge_bytes=(1000, 900_000, 100_000, 700_000, 100_000, 1000),
    )
    stages = tuple(StageChoice(k, k + 1, (f"pi-{k}",)) for k in range(5))
    problems = {codec: in_codec(problem, codec) for codec in CODECS}
    for codec in CODECS[1:]:
        work = list(problems[codec].edge_work_bytes or ())
        work[2], work[4] = 90_000_000, 80_000_000
        problems[codec] = replace(problems[codec], edge_work_bytes=tuple(work))
    chosen, rate = best_codecs(problem, problems, stages)
    assert chosen[2] == chosen[4] == "float32"
    assert chosen[1].startswith("int8")
    assert chosen[3].startswith("int8")
    assert rate > 1.5 * max(batches_per_s(problems[codec], stages) for codec in CODECS)


def test_the_codecs_of_links_are_the_best_of_all_choices() -> None:
    """For every edge another codec is good, by random factors; against all assignments."""
    assert set(CODECS) == set(get_args(Codec))
    tried = 0
    for seed in range(200):
        problem, stages = random_plan(seed, "pipeline", max_devices=6)
        if len(stages) < 5:
            continue
        tried += 1
        draw = random.Random(seed)
        sizes, work = list(zip(*(_random_edges(problem, draw) for _ in CODECS), strict=True))
        problems = {
            codec: replace(problem, edge_bytes=sizes[index], edge_work_bytes=work[index])
            for index, codec in enumerate(CODECS)
        }
        edges = [stage.first for stage in stages[1:]]
        best = max(
            batches_per_s(
                with_codecs(problem, problems, dict(zip(edges, chosen, strict=True))), stages
            )
            for chosen in itertools.product(CODECS, repeat=len(edges))
        )
        chosen, rate = best_codecs(problem, problems, stages)
        assert rate >= best * 0.99 * (1 - 1e-9), seed
        assert rate == batches_per_s(with_codecs(problem, problems, chosen), stages)
        assert list(chosen) == edges
        if tried == 12:
            break


def _random_edges(problem: Problem, draw: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes = tuple(round(100_000 * draw.uniform(0.1, 5)) for _ in problem.edge_bytes)
    return sizes, tuple(round(size * draw.uniform(0.2, 60)) for size in sizes)


def test_only_limits_that_are_there_are_offered_to_be_lifted() -> None:
    free = replace(
        drawer(2, 10.0), devices=(replace(drawer(1, 10.0).devices[0], memory_bytes=None),)
    )
    assert [offer.what for offer in offers(free)] == ["one more device like pi-0"]
    problem = drawer(3, 10.0, bytes_per_s=1e7)
    odd = replace(problem.devices[2], name="odd", segment_ms=(30.0,))
    problem = replace(
        problem,
        devices=(*problem.devices[:2], odd),
        broker=BrokerCosts(1e7),
        client=ClientCosts(link=Link(1e7, 1e7)),
    )
    found = {offer.what: offer for offer in offers(problem)}
    assert list(found) == [
        "a broker link 10 x as fast",
        "a client link 10 x as fast",
        "2 x the memory in every device",
        "links 10 x as fast for all devices",
        "a link 10 x as fast for pi-0",
        "a link 10 x as fast for odd",
        "one more device like pi-0",
        "one more device like odd",
    ]
    assert found["a broker link 10 x as fast"].problem.broker.bytes_per_s == 1e8
    memory = found["2 x the memory in every device"].problem
    assert {device.memory_bytes for device in memory.devices} == {1000 * MB}
    link = found["a link 10 x as fast for odd"].problem
    assert [device.link.up_bytes_per_s for device in link.devices] == [1e7, 1e7, 1e8]
    more = found["one more device like odd"].problem.devices
    assert [device.name for device in more] == ["pi-0", "pi-1", "odd", "odd-2"]
    assert more[3].same_kind(odd)


@pytest.mark.parametrize(
    ("problem", "best"),
    [
        (
            replace(drawer(3, 5.0), broker=BrokerCosts(1.5e7)),
            "a broker link 10 x as fast",
        ),
        (cramped(), "2 x the memory in every device"),
        (drawer(2, 10.0, bytes_per_s=2e6), "links 10 x as fast for all devices"),
        (drawer(2, 10.0, 1.0), "one more device like pi-0"),
        (replace(drawer(2, 1.0), client=ClientCosts(link=Link(1e6, 1e6))), "a client link 10 x"),
    ],
)
def test_the_best_purchase_lifts_the_limit_that_binds(problem: Problem, best: str) -> None:
    answers = asked(problem)
    assert answers.purchases[0].what.startswith(best)
    assert answers.advice.startswith(best)
    gains = [row.gain for row in answers.purchases]
    assert gains == sorted(gains, reverse=True)
    for row in answers.purchases:
        assert row.images_per_s == pytest.approx(answers.images_per_s * (1 + row.gain))


def test_where_nothing_helps_it_says_so_and_names_the_bottleneck() -> None:
    problem = replace(drawer(2, 1.0), client=ClientCosts(RelayCosts(100.0, 0.0)))
    assert asked(problem).advice == (
        "nothing helps: no purchase gains 2%; the bottleneck is the client"
    )
    little = Purchase(what="a thing", images_per_s=10.0, gain=0.019)
    assert advise((little,), "the client").startswith("nothing helps")
    assert advise((little.model_copy(update={"gain": 0.021}),), "x").startswith("a thing helps")


def test_the_chosen_plan_is_shown_under_load() -> None:
    problem = drawer(3, 10.0, 20.0, 10.0)
    answers = asked(problem, num_stages=3)
    load = answers.under_load
    assert load.window == 6
    assert [device.stage_index for device in load.devices] == [0, 1, 2]
    assert load.devices[1].processor == pytest.approx(1.0, abs=0.02)
    assert load.latency_ms_p50 <= load.latency_ms_p95 <= load.latency_ms_p99
    assert load.images_per_s == pytest.approx(answers.images_per_s, rel=0.05)
    assert [row.window for row in answers.windows] == [1, 3, 6, 9, 12, 24]
    rates = [row.images_per_s for row in answers.windows]
    assert rates[0] < rates[1]
    assert rates[-1] == pytest.approx(answers.images_per_s, rel=0.02)
    assert answers.windows[-1].latency_ms_p50 > answers.windows[0].latency_ms_p50


def test_answers_survive_json_and_progress_ends_at_one() -> None:
    problem = drawer(2, 10.0, 10.0)
    steps: list[float] = []
    solution = Solution((StageChoice(0, 2, ("pi-0",)),), 1.0, 1.0)
    answers = what_if(
        problem,
        try_everything,
        Rules(objective="latency"),
        solution,
        lambda codec: in_codec(problem, codec),
        progress=lambda _step, share: steps.append(share),
    )
    assert WhatIf.model_validate_json(answers.model_dump_json()) == answers
    assert steps == sorted(steps)
    assert steps[-1] == 1.0
