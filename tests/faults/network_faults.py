"""Rows 8 to 11: cables cut, connections that carry one way only, resets, a slow and lossy link."""

import os
import shutil
import time
from typing import Any

from bench.cluster.network import BROKER, CLIENT, HUB, PREFIX, tool
from tests.faults import scaled
from tests.faults.feed import Feed
from tests.faults.pipeline_under_test import ALL, Setup, Site
from tests.faults.row import Figures, Row, Trial

EVERYBODY = ("client", "pi-0", "pi-1", "pi-2")
SLOW_BYTES_PER_S = 10e6 / 8
SLOW_DELAY_S = 0.05
LOSS = 0.01


def forgetting(is_control: bool, **settings: Any) -> Setup:
    """The control's sessions end with their connections, and it sends nothing twice."""
    if is_control:
        settings["stage_patches"] = {ALL: ("no_session",)}
        settings["client_patches"] = ("no_retry", "no_session")
        settings["patience_s"] = 4.0
    return Setup(**settings)


def within_the_budget(site: Site, figures: Figures) -> None:
    """Retries cost tokens: a window's worth, 0.2 for each result, one a second."""
    allowed = site.setup.window + 0.2 * figures.results + figures.seconds + 1
    figures.require(
        figures.retried <= allowed, f"{figures.retried} retries, at most {allowed:.0f} allowed"
    )


def quick_again(figures: Figures) -> None:
    """Rows 8 and 9 ask for less than 10 s."""
    recovery_s = figures.recovery_s
    figures.require(
        recovery_s is not None and recovery_s < scaled.RECOVERY_LIMIT_S,
        f"recovered after {recovery_s if recovery_s is not None else -1:.1f} s",
    )


def cable_cut(site: Site, trial: Trial) -> Figures:
    """Each cable in turn: `ip link set … down` at the switch."""
    victims = (BROKER, CLIENT, *site.devices)
    host = site.hosts[victims[trial.seed % len(victims)]]
    hub, port = f"{PREFIX}{os.getpid()}-{HUB}", f"to{host.address.rpartition('.')[2]}"

    def inject() -> None:
        tool("ip", "-n", hub, "link", "set", port, "down")
        feed.struck()
        time.sleep(scaled.CUT_S)
        tool("ip", "-n", hub, "link", "set", port, "up")

    feed = Feed(site, trial, inject, from_heal=True)
    try:
        figures = feed.run()
    finally:
        tool("ip", "-n", hub, "link", "set", port, "up")
    quick_again(figures)
    return figures


def one_way(site: Site, trial: Trial) -> Figures:
    """One direction of one connection carries nothing any more, and nobody is told."""
    victim = EVERYBODY[trial.seed % len(EVERYBODY)]
    upward = trial.seed // len(EVERYBODY) % 2 == 0

    def inject() -> None:
        feed.struck(site.proxies[victim].swallow(upward))

    feed = Feed(site, trial, inject, stage_index=None)
    figures = feed.run()
    quick_again(figures)
    return figures


def flapping(site: Site, trial: Trial) -> Figures:
    """Every connection of one process is reset every 2 s for 60 s (scaled)."""
    victim = EVERYBODY[trial.seed % len(EVERYBODY)]
    proxy = site.proxies[victim]
    before = proxy.accepted

    def inject() -> None:
        end = time.monotonic() + scaled.FLAP_S
        while time.monotonic() < end:
            feed.struck(proxy.reset())
            time.sleep(scaled.FLAP_EVERY_S)

    feed = Feed(site, trial, inject, from_heal=True)
    figures = feed.run()
    attempts = proxy.accepted - before
    figures.require(
        attempts <= 2 * figures.injected + 3, f"{attempts} connections, {figures.injected} resets"
    )
    within_the_budget(site, figures)
    return figures


def slow_link(site: Site, trial: Trial) -> Figures:
    """Everybody's link at once: 10 Mbit/s, 50 ms each way, 1 % of segments lost."""

    def inject() -> None:
        for proxy in site.proxies.values():
            proxy.delay_s, proxy.bytes_per_s, proxy.loss = SLOW_DELAY_S, SLOW_BYTES_PER_S, LOSS
            feed.struck()
        time.sleep(2.0)

    feed = Feed(site, trial, inject)
    try:
        figures = feed.run()
    finally:
        for proxy in site.proxies.values():
            proxy.delay_s, proxy.bytes_per_s, proxy.loss = 0.0, 0.0, 0.0
    figures.note = f"{figures.results / figures.seconds:.0f} batches/s"
    within_the_budget(site, figures)
    return figures


def lacks_namespaces() -> str:
    """Whether cables can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        return "needs root and iproute2, to make namespaces and cables"
    return ""


ROWS = (
    Row(
        8,
        "a cable is cut for 60 s (8 s against a keepalive of 2 s), each in turn",
        "network namespaces, `ip link set … down` at the switch",
        "sessions outlive connections; keepalive, reconnects with jitter; the client's retry",
        "sessions end with connections, no retry: batches are missing",
        lambda is_control: forgetting(is_control, in_namespaces=True),
        cable_cut,
        seconds=11.0,
        recovers_from="heal",
        lacks=lacks_namespaces,
    ),
    Row(
        9,
        "a connection carries one way only",
        "a TCP proxy swallows one direction of one connection until it ends",
        "keepalive at both ends; reconnects; the client's retry",
        "a keepalive of 60 s: nothing comes within 8 s",
        lambda is_control: Setup(
            through_proxy=EVERYBODY,
            client_patches=("no_keepalive",) if is_control else (),
            stage_patches={ALL: ("no_keepalive",)} if is_control else {},
            patience_s=8.0 if is_control else 30.0,
        ),
        one_way,
        seconds=6.0,
        stand_in="a TCP proxy instead of a firewall rule",
    ),
    Row(
        10,
        "a connection is reset every 2 s for 60 s (every 0.27 s for 8 s)",
        "a TCP proxy resets both ends",
        "sessions outlive connections; back-off with jitter; the retry budget",
        "sessions end with connections, no retry: batches are missing",
        lambda is_control: forgetting(is_control, through_proxy=EVERYBODY),
        flapping,
        seconds=10.0,
        recovers_from="heal",
        stand_in="a TCP proxy",
    ),
    Row(
        11,
        "all links are slow: 10 Mbit/s, 100 ms there and back, 1 % loss",
        "a TCP proxy delays; a lost segment is 200 ms of silence",
        "deadlines follow the latency; the retry budget",
        "a deadline of 50 ms, no budget: more retries than allowed",
        lambda is_control: Setup(
            through_proxy=EVERYBODY, client_patches=("eager:50",) if is_control else ()
        ),
        slow_link,
        harm="rule",
        is_timed=False,
        stand_in="a TCP proxy: this kernel has no netem",
    ),
)
