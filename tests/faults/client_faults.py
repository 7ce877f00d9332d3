"""Rows 14 and 16 to 18: what a client must not be confused by, nor drown others in."""

import time
from itertools import islice

from broker.transport import Callbacks, ConnectionSettings
from client.results import in_order
from contract import topics
from tests.faults.feed import Feed
from tests.faults.known_answers import numbered_batches
from tests.faults.pipeline_under_test import ALL, CLUSTER, FEEDER, Setup, Site
from tests.faults.row import Figures, Row, Trial
from tests.stage.harness import Listener

SLOW_FACTOR = 20
SLOW_S = 3.0
WINDOW, UNBOUNDED = 12, 2500
GROWTH_BYTES = 4e6
"""What the broker's memory may grow by: its buffers of twelve small messages are far below."""
DROPPED = "$SYS/broker/publish/messages/dropped"
EARLIER = 40


def slow_consumer(site: Site, trial: Trial) -> Figures:
    """The first stage is 20 times as slow, and then stops for a while; the client never does."""
    observer = Listener(site.connect(), "observer", DROPPED)

    def dropped() -> int:
        return max((int(delivery.payload) for delivery in list(observer.heard)), default=0)

    already = dropped()

    def inject() -> None:
        feed.struck()
        time.sleep(SLOW_S)

    feed = Feed(
        site,
        trial,
        inject,
        begin_at_once=True,
        give_up=lambda: "messages were dropped" if dropped() > already else "",
    )
    site.broker.look_at_memory()
    before = site.broker.peak_bytes
    figures = feed.run()
    observer.close()
    lost, most, growth = dropped() - already, feed.most_in_flight, site.broker.peak_bytes - before
    figures.require(not lost, f"the broker dropped {lost} messages")
    figures.require(most <= WINDOW, f"{most} batches in flight")
    figures.require(growth < GROWTH_BYTES, f"the broker grew by {growth / 1e6:.0f} MB")
    figures.note = f"at most {most} in flight"
    return figures


def duplicate_delivery(site: Site, trial: Trial) -> Figures:
    """Everybody publishes everything three times, all the time."""
    feed = Feed(site, trial, lambda: feed.struck(), begin_at_once=True)
    figures = feed.run()
    figures.require(figures.dropped or trial.is_control, "no second result ever came")
    return figures


def out_of_order(site: Site, trial: Trial) -> Figures:
    """Batches are sent, and results, in parcels of up to 16 that are shuffled."""

    def inject() -> None:
        site.triggers.set("shuffle")
        feed.struck()
        time.sleep(0.5)

    feed = Feed(site, trial, inject, begin_at_once=True)
    figures = feed.run()
    came = [end.batch_id.seq for end in feed.order]
    figures.require(came != sorted(came), "nothing overtook anything")
    ordered = [end.batch_id.seq for end in in_order(feed.order)]
    figures.require(ordered == sorted(ordered), "in_order() gives another order")
    return figures


def earlier_run(site: Site, trial: Trial) -> Figures:
    """Inputs and results of an earlier run of this client's name are sent again, all through."""
    observer = Listener(
        site.connect(),
        "observer",
        topics.input_filter(CLUSTER, "pi-1"),
        topics.result_filter(CLUSTER, FEEDER),
    )
    earlier = islice(numbered_batches(10_000 + trial.seed), EARLIER)
    for _ in site.pipeline.run(earlier):
        pass
    recorded = [(delivery.topic, delivery.payload) for delivery in observer.heard]
    observer.close()
    pipeline = site.open_client()
    replayer = site.connect()(
        ConnectionSettings(name="replayer"), Callbacks(on_delivery=lambda delivery: delivery.ack())
    )

    def inject() -> None:
        for _ in range(5):
            for topic, payload in recorded:
                replayer.publish(topic, payload).result(timeout=10)
                feed.struck()

    feed = Feed(site, trial, inject, begin_at_once=True)
    figures = feed.run()
    replayer.close(forget_session=True)
    figures.require(trial.is_control or pipeline.rejected, "nothing was rejected")
    figures.note = f"{pipeline.rejected} rejected by the client"
    return figures


ROWS = (
    Row(
        14,
        "a stage is 20 times as slow as the client feeds",
        "a sleep in the engine's run, the client at full speed",
        "the window; receive maximum; the broker's queue holds more than a window",
        "2500 batches in flight: the broker drops messages, and acknowledges them",
        lambda is_control: Setup(
            slow_ms=1.0,
            stage_patches={"pi-0": (f"slow:{SLOW_FACTOR}",)},
            window=UNBOUNDED if is_control else WINDOW,
            client_patches=("any_window",) if is_control else (),
            least_batches=UNBOUNDED if is_control else 100,
        ),
        slow_consumer,
        harm="rule",
        is_timed=False,
    ),
    Row(
        16,
        "every message is delivered three times",
        "the launcher publishes each batch and each result three times",
        "stages know attempts in work; a second result is dropped by its number",
        "every result that arrives counts: second results",
        lambda is_control: Setup(
            stage_patches={ALL: ("thrice",)},
            client_patches=("thrice", *(("no_dedup",) if is_control else ())),
        ),
        duplicate_delivery,
        harm="duplicates",
        is_timed=False,
    ),
    Row(
        17,
        "batches and results overtake each other",
        "the launcher shuffles what is published in parcels of up to 16",
        "a result is matched by its batch id; order is made by the client, if asked for",
        "a result is taken for the oldest open batch's: wrong answers",
        lambda is_control: Setup(
            window=32,
            one_client=False,
            stage_patches={"pi-2": ("shuffle:16",)},
            client_patches=("shuffle:16", *(("by_arrival",) if is_control else ())),
        ),
        out_of_order,
        harm="wrong",
        is_timed=False,
    ),
    Row(
        18,
        "messages of an earlier run come again",
        "recorded inputs and results are published again, five times over",
        "the epoch in every batch id; stale batches are refused by the low-watermark",
        "a batch is known by its number alone: wrong answers",
        lambda is_control: Setup(
            one_client=False, client_patches=("any_epoch",) if is_control else ()
        ),
        earlier_run,
        harm="wrong",
        is_timed=False,
    ),
)
