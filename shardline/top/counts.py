"""What stands below the tables: the ledger, the broker, the events. Pure."""

import time

from rich.text import Text

from client.watch.view import ClusterView
from contract.metrics import Ledger
from contract.status import Event, EventKind
from shardline.console import size
from shardline.top import amounts
from shardline.top.drawing import (
    ACCENT,
    BAD,
    DIM,
    GOOD,
    TITLE,
    WARN,
    cut,
    pairs,
    plain,
)
from shardline.top.sections import shown_clients

_ALARMING = {
    EventKind.BATCH_DEAD: BAD,
    EventKind.DEVICE_LOST: BAD,
    EventKind.SHARD_FAILED: BAD,
    EventKind.PLAN_IMPOSSIBLE: BAD,
    EventKind.MESSAGES_DROPPED: WARN,
    EventKind.MESSAGE_REJECTED: WARN,
    EventKind.BATCH_RETRIED: WARN,
}


def ledger(view: ClusterView, width: int) -> list[Text]:
    """Where every batch of the shown clients is."""
    clients = shown_clients(view)
    if not clients:
        return []
    total = {
        name: sum(getattr(client.metrics.ledger, name) for client in clients)
        for name in Ledger.model_fields
    }
    lines = pairs(
        "ledger",
        [
            ("submitted", str(total["submitted"]), ""),
            ("delivered", str(total["delivered"]), GOOD),
            ("in flight", str(total["in_flight"]), ""),
            ("retried", str(total["retried"]), WARN if total["retried"] else DIM),
            ("dup", str(total["duplicates_dropped"]), DIM),
            ("dead", str(total["dead"]), BAD if total["dead"] else DIM),
            ("lost", str(total["lost"]), BAD if total["lost"] else GOOD),
        ],
        width,
    )
    return lines if clients[0].is_fresh else _dimmed(lines)


def _dimmed(lines: list[Text]) -> list[Text]:
    """Figures that are of some while ago."""
    for line in lines:
        line.stylize(DIM)
    return lines


def broker(view: ClusterView, width: int) -> list[Text]:
    """What the broker says of itself."""
    its = view.broker
    found = [
        (name, f"{size(per_s)}/s", ACCENT)
        for name, per_s in (("in", its.bytes_received_per_s), ("out", its.bytes_sent_per_s))
        if per_s is not None
    ]
    if its.clients_connected is not None:
        found.append(("connections", str(its.clients_connected), ""))
    if its.messages_dropped is not None:
        found.append(
            ("dropped", str(its.messages_dropped), BAD if its.messages_dropped_recently else DIM)
        )
    if its.uptime_s is not None:
        found.append(("up", amounts.age(its.uptime_s), DIM))
    if view.ignored:
        found.append(("ignored here", str(view.ignored), DIM))
    lines = pairs("broker", found or [("says nothing of itself", "", "")], width)
    return lines if view.is_connected else _dimmed(lines)


def events(view: ClusterView, rows: int, width: int) -> list[Text]:
    """The latest events, the newest first."""
    if not view.events:
        return [Text.assemble(("events", TITLE), ("  none since this was started", DIM))][:rows]
    lines = []
    for number, event in enumerate(reversed(view.events[-rows:] if rows else ())):
        label = ("events" if not number else "").ljust(6)
        lines.append(_event(label, event, width))
    return lines


def _event(label: str, event: Event, width: int) -> Text:
    times = f"×{event.count} " if event.count > 1 else ""
    line = Text.assemble(
        (label, TITLE),
        (f"  {clock(event.time_unix_s)} ", DIM),
        plain(cut(event.sender, 16)),
        " ",
        plain(event.kind, _ALARMING.get(event.kind, GOOD)),
        " ",
        plain(f"{times}{event.detail}"),
    )
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line


def clock(time_unix_s: float) -> str:
    """The time of day of a sender's clock, which may say anything."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(time_unix_s))
    except (OverflowError, OSError, ValueError):
        return "--:--:--"
