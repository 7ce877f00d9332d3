"""The pure parts of the client: ledger, router, retry rules and meter."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from client.batch import Batch, BatchResult, DeadBatch, DeathReason
from client.ledger import Entry, Ledger
from client.meter import PipelineMeter, stage_metrics
from client.results import image_results
from client.retry import (
    MAX_DEADLINE_S,
    MAX_REFUSALS,
    MIN_DEADLINE_S,
    PERCENTILE_EVERY,
    TIMES_KEPT,
    TOKENS_PER_DELIVERY,
    AttemptTimes,
    RetryBudget,
    attempt_deadline_s,
    percentile_99,
    refusal_delay_s,
)
from client.router import MAX_ATTEMPTS_REMEMBERED, Router
from client.summary import Tally
from contract.activation import BatchId, Hop
from contract.metrics import Ledger as Counts
from contract.plan import Plan, Replica, place
from tests.tiny import make_tiny_plan

BATCH = Batch({"image": np.zeros((2, 1), np.uint8)}, ("a", "b"))


class LedgerMachine(RuleBasedStateMachine):
    """Any order of events: the counts always add up, and the watermark never goes back."""

    @initialize()
    def start(self) -> None:
        self.ledger = Ledger(epoch=7)
        self.open: dict[int, Entry] = {}
        self.submitted = self.delivered = self.dead = self.duplicates = self.retried = 0
        self.low = 0
        self.now = 0.0

    @rule()
    def submit(self) -> None:
        entry = self.ledger.submit(BATCH, self.now)
        assert entry.batch_id == BatchId(7, self.submitted)
        self.open[self.submitted] = entry
        self.submitted += 1

    @precondition(lambda self: self.open)
    @rule(pick=st.integers(0, 99), wait=st.floats(0, 5))
    def send(self, pick: int, wait: float) -> None:
        entry = list(self.open.values())[pick % len(self.open)]
        self.retried += entry.attempt >= 0
        before = entry.attempt
        self.ledger.sent(entry, ("a", "b"), self.now + wait)
        assert entry.attempt == before + 1

    @precondition(lambda self: self.submitted)
    @rule(pick=st.integers(0, 99))
    def deliver(self, pick: int) -> None:
        seq = pick % self.submitted
        entry = self.ledger.deliver(BatchId(7, seq))
        if seq in self.open:
            assert entry is self.open.pop(seq)
            self.delivered += 1
        else:
            assert entry is None
            self.duplicates += 1

    @precondition(lambda self: self.open)
    @rule(pick=st.integers(0, 99), reason=st.sampled_from(DeathReason))
    def kill(self, pick: int, reason: DeathReason) -> None:
        seq = list(self.open)[pick % len(self.open)]
        self.ledger.kill(self.open.pop(seq), reason)
        self.dead += 1

    @rule(step=st.floats(0, 3))
    def time_passes(self, step: float) -> None:
        self.now += step
        due = self.ledger.due(self.now)
        assert due == [e for e in self.open.values() if e.retry_at <= self.now]

    @invariant()
    def counts_add_up(self) -> None:
        if not hasattr(self, "ledger"):
            return
        counts = self.ledger.counts()
        assert counts.submitted == counts.delivered + counts.in_flight + counts.dead + counts.lost
        assert counts == Counts(
            submitted=self.submitted,
            delivered=self.delivered,
            in_flight=len(self.open),
            retried=self.retried,
            duplicates_dropped=self.duplicates,
            dead=self.dead,
            lost=0,
        )
        finished = self.ledger.counts(finished=True)
        assert (finished.in_flight, finished.lost) == (0, len(self.open))

    @invariant()
    def the_watermark_is_the_oldest_open_batch_and_never_goes_back(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert self.ledger.low == min(self.open, default=self.submitted)
        assert self.ledger.low >= self.low
        self.low = self.ledger.low
        assert self.ledger.open_entries() == list(self.open.values())


TestLedger = LedgerMachine.TestCase


def test_a_batch_of_another_epoch_or_of_the_future_is_not_ours() -> None:
    ledger = Ledger(epoch=7)
    ledger.submit(BATCH, 0.0)
    assert ledger.knows(BatchId(7, 0))
    assert ledger.find(BatchId(7, 0)) is not None
    for stranger in (BatchId(8, 0), BatchId(7, 1)):
        assert not ledger.knows(stranger)
        assert ledger.find(stranger) is None


# Router


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    plan = make_tiny_plan(tmp_path, devices=())
    replicas = [
        [Replica(device="a")],
        [Replica(device="b1"), Replica(device="b2", speed=3.0)],
        [Replica(device="c")],
    ]
    return place(plan, replicas, "home")


@pytest.fixture
def router(plan: Plan) -> Router:
    router = Router(plan)
    for device in ("a", "b1", "b2", "c"):
        router.set_live(device, True)
    return router


def test_a_route_names_one_live_device_of_every_stage(router: Router) -> None:
    route = router.choose()
    assert route is not None
    assert (route[0], route[2]) == ("a", "c")
    assert route[1] in ("b1", "b2")


def test_what_is_under_way_counts_where_a_plan_is_placed_anew(plan: Plan, router: Router) -> None:
    router.begin((BatchId(7, 0), 0), ("a", "b1", "c"))
    router.begin((BatchId(7, 1), 0), ("gone", "b2", "c"))
    anew = Router(plan)
    anew.carry_over(router)
    assert anew.is_under_way((BatchId(7, 0), 0))
    assert (anew.outstanding("b1"), anew.outstanding("c")) == (1, 2)
    anew.end((BatchId(7, 0), 0))
    assert (anew.outstanding("b1"), anew.outstanding("c")) == (0, 1)


def test_there_is_no_route_while_a_stage_has_nobody(plan: Plan) -> None:
    router = Router(plan)
    assert router.missing_stages() == [0, 1, 2]
    assert router.choose() is None
    router.set_live("a", True)
    router.set_live("c", True)
    assert router.missing_stages() == [1]
    assert router.choose() is None
    router.set_live("b2", True)
    assert router.missing_stages() == []
    assert router.choose() == ("a", "b2", "c")
    router.set_live("c", False)
    assert router.missing_stages() == [2]
    assert router.choose() is None


def test_a_faster_device_gets_its_share(router: Router) -> None:
    taken = []
    for seq in range(40):
        route = router.choose()
        assert route is not None
        router.begin((BatchId(1, seq), 0), route)
        taken.append(route[1])
    assert taken.count("b2") == 30  # three times as fast
    assert (router.outstanding("b1"), router.outstanding("b2")) == (10, 30)


def test_the_device_with_the_least_in_hand_is_chosen(router: Router) -> None:
    for seq in range(6):
        router.begin((BatchId(1, seq), 0), ("a", "b2", "c"))
    route = router.choose()
    assert route is not None
    assert route[1] == "b1"
    for seq in range(6):
        router.end((BatchId(1, seq), 0))
    assert router.outstanding("b2") == 0
    again = router.choose()
    assert again is not None
    assert again[1] == "b2"


def test_a_dead_device_is_not_chosen_and_has_nothing_in_hand(router: Router) -> None:
    router.begin((BatchId(1, 0), 0), ("a", "b2", "c"))
    router.set_live("b2", False)
    assert router.choose() == ("a", "b1", "c")
    assert router.outstanding("b2") == 0
    assert router.outstanding("a") == 0  # a batch that is lost in b2 will not end anywhere
    router.set_live("b2", True)
    router.begin((BatchId(1, 1), 0), ("a", "b2", "c"))
    router.end((BatchId(1, 0), 0))  # late, of its earlier life
    assert router.outstanding("b2") == 1
    assert router.outstanding("a") == 1


def test_a_late_attempt_counts_until_its_own_end(router: Router) -> None:
    """Another attempt has won, but the slow device is still working on this one."""
    batch = BatchId(1, 0)
    router.begin((batch, 0), ("a", "b1", "c"))
    router.begin((batch, 1), ("a", "b2", "c"))
    router.end((batch, 1))
    assert (router.outstanding("b1"), router.outstanding("b2")) == (1, 0)
    router.end((batch, 0))
    router.end((batch, 0))  # twice is once
    assert router.outstanding("b1") == 0


def test_what_the_router_remembers_is_bounded(router: Router) -> None:
    for seq in range(MAX_ATTEMPTS_REMEMBERED + 50):
        router.begin((BatchId(1, seq), 0), ("a", "b1", "c"))
    assert router.outstanding("b1") == MAX_ATTEMPTS_REMEMBERED


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["begin", "end", "die", "live"]))))
def test_outstanding_work_is_never_negative(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, str]]
) -> None:
    global _PLAN
    if _PLAN is None:
        _PLAN = make_tiny_plan(tmp_path_factory.mktemp("router"), devices=("a", "b", "c"))
    router = Router(_PLAN)
    for device in "abc":
        router.set_live(device, True)
    for seq, event in events:
        route = router.choose()
        if event == "begin" and route is not None:
            router.begin((BatchId(1, seq), 0), route)
        elif event == "end":
            router.end((BatchId(1, seq), 0))
        elif event in ("die", "live"):
            router.set_live("abc"[seq % 3], event == "live")
        assert all(router.outstanding(device) >= 0 for device in "abc")


_PLAN: Plan | None = None


# When to send again


@pytest.mark.parametrize(
    ("p99_s", "attempt", "deadline_s"),
    [
        (None, 0, 30.0),
        (None, 5, 30.0),
        (0.01, 0, 2.0),
        (0.01, 1, 4.0),
        (0.01, 3, 16.0),
        (0.01, 4, 30.0),
        (0.01, 9, 30.0),
        (1.0, 0, 4.0),
        (1.0, 2, 16.0),
        (1.0, 3, 30.0),
        (10.0, 0, 40.0),
        (10.0, 4, 40.0),
    ],
)
def test_the_deadline_of_an_attempt(p99_s: float | None, attempt: int, deadline_s: float) -> None:
    assert attempt_deadline_s(p99_s, attempt) == pytest.approx(deadline_s)


@given(st.none() | st.floats(0, 1e6), st.integers(0, 10**6))
def test_a_deadline_is_bounded_for_every_attempt(p99_s: float | None, attempt: int) -> None:
    deadline = attempt_deadline_s(p99_s, attempt)
    assert MIN_DEADLINE_S <= deadline <= max(MAX_DEADLINE_S, 4 * (p99_s or 0))
    assert deadline <= attempt_deadline_s(p99_s, attempt + 1)


@pytest.mark.parametrize(
    ("attempt", "delay_s"), [(0, 0.1), (1, 0.2), (2, 0.4), (5, 3.2), (6, 5.0), (50, 5.0)]
)
def test_the_delay_after_a_refusal(attempt: int, delay_s: float) -> None:
    assert refusal_delay_s(attempt) == pytest.approx(delay_s)


@given(st.integers(0, 10**6))
def test_a_delay_is_bounded_for_every_attempt(attempt: int) -> None:
    """A batch may be refused for hours while a device is away."""
    assert 0 < refusal_delay_s(attempt) <= 5.0


def test_three_refusals_are_poison() -> None:
    assert MAX_REFUSALS == 3


def test_the_budget_holds_a_window_of_tokens_and_earns_one_a_second() -> None:
    budget = RetryBudget(burst=3, now=100.0)
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]
    budget.earn(100.5)
    assert not budget.spend()
    budget.earn(101.0)
    assert [budget.spend(), budget.spend()] == [True, False]
    budget.earn(1000.0)
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]


def test_deliveries_earn_a_fifth_of_a_token_each() -> None:
    budget = RetryBudget(burst=10, now=0.0)
    while budget.spend():
        pass
    for _ in range(5):
        budget.earn(0.0, delivered=1)
    assert TOKENS_PER_DELIVERY == 0.2
    assert [budget.spend(), budget.spend()] == [True, False]


# Meter and summary


def result(
    seq: int, latency_ms: float, hops: tuple[Hop, ...] = (), labels: tuple[int, ...] = ()
) -> BatchResult:
    batch = Batch(BATCH.tensors, BATCH.names, labels)
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]], np.float32)
    return BatchResult(BatchId(7, seq), batch, {"logits": logits}, latency_ms, 0, hops)


NO_COUNTS = Counts(**dict.fromkeys(Counts.model_fields, 0))


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101, 1000])
def test_the_quick_percentile_is_numpys(count: int) -> None:
    values = np.random.default_rng(count).exponential(30.0, count)
    assert percentile_99(values) == pytest.approx(float(np.percentile(values, 99)), rel=1e-12)


def test_the_meter_tells_rates_of_the_interval_and_percentiles(plan: Plan) -> None:
    meter = PipelineMeter("me", plan, 6, now=10.0)
    empty = meter.measure(11.0, NO_COUNTS)
    assert (empty.batches_per_s, empty.latency_ms_p50) == (0.0, None)
    for index in range(100):
        meter.add(result(index, latency_ms=float(index + 1)))
    told = meter.measure(13.0, NO_COUNTS)
    assert (told.batches_per_s, told.images_per_s) == (50.0, 100.0)
    assert told.latency_ms_p50 == pytest.approx(50.5)
    assert told.latency_ms_p95 == pytest.approx(95.05)
    assert told.latency_ms_p99 == pytest.approx(99.01)
    assert meter.measure(14.0, NO_COUNTS).batches_per_s == 0.0
    assert (told.client, told.window, told.plan_id) == ("me", 6, plan.plan_id)


def test_the_deadline_follows_the_slowest_hundredth_of_attempts() -> None:
    times = AttemptTimes()
    assert times.p99_s is None
    for index in range(100):
        times.add((index + 1) / 1000)
    assert times.p99_s == pytest.approx(0.099, abs=0.002)


def test_a_sudden_slowness_reaches_the_deadline_soon() -> None:
    times = AttemptTimes()
    for _ in range(TIMES_KEPT):
        times.add(0.01)
    assert times.p99_s == pytest.approx(0.01)
    for _ in range(40):
        times.add(3.0)
    assert times.p99_s == pytest.approx(3.0)


def test_a_slowness_that_is_over_is_forgotten() -> None:
    times = AttemptTimes()
    for time_s in [3.0] * 40 + [0.01] * (TIMES_KEPT + PERCENTILE_EVERY):
        times.add(time_s)
    assert times.p99_s == pytest.approx(0.01)


def test_a_stage_is_busy_or_in_a_bubble(plan: Plan) -> None:
    second = 1_000_000
    hops = (
        Hop(0, 0, second // 2, second // 2),
        Hop(second // 2, second // 2 + 1000, second // 2 + 1000 + second, 2 * second),
        Hop(5 * second, 4 * second, 3 * second, 0),  # a clock that was set back
    )
    stages = stage_metrics(plan, [result(0, 1.0, hops)], interval_s=2.0)
    assert [stage.utilisation for stage in stages] == [0.25, 0.25, 0.0]  # stage 1 has two replicas
    assert [stage.bubble_s for stage in stages] == [1.5, 1.5, 2.0]
    assert [stage.compute_ms_p50 for stage in stages] == [500.0, 1000.0, 0.0]
    assert [stage.wait_ms_p50 for stage in stages] == [0.0, 1.0, 0.0]
    idle = stage_metrics(plan, [], interval_s=1.0)
    assert [(s.utilisation, s.bubble_s, s.compute_ms_p50) for s in idle] == [(0.0, 1.0, None)] * 3


def test_a_summary_counts_images_and_accuracy() -> None:
    tally = Tally()
    for seq, labels in enumerate([(1, 0), (1, 1), ()]):
        answered = result(seq, float(seq + 1), labels=labels)
        tally.add(answered, image_results(answered, top_k=1))
    tally.dead.append(DeadBatch(BatchId(7, 9), BATCH, DeathReason.POISON, "why"))
    summary = tally.summary(2.0, skipped=3, ledger=NO_COUNTS)
    assert (summary.images, summary.skipped, summary.images_per_s) == (6, 3, 3.0)
    assert (summary.labelled, summary.correct, summary.accuracy) == (4, 3, 0.75)
    assert summary.latency_ms_p50 == 2.0
    nothing = Tally().summary(0.0, 0, NO_COUNTS)
    assert (nothing.accuracy, nothing.latency_ms_p99, nothing.images_per_s) == (None, None, 0.0)
