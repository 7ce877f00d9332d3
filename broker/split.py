"""One connection over several brokers: each edge of a plan may have a broker of its own.

A broker's network card carries every activation twice, in and out; a fleet that outgrows one card
puts some edges on other brokers (docs/adr/0018). Inputs of stage k go by edge k, results by the
edge after the last stage; everything else stays on the main broker. Who owns the connection says
with :meth:`SplitConnection.use` which edges have brokers of their own, from its own thread, since
opening a link waits for the broker. Knows nothing of plans and tensors.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial

from broker.drop_watch import watch_drops
from broker.transport import (
    Callbacks,
    Connect,
    Connection,
    ConnectionSettings,
    PublishOutcome,
    parse_address,
)
from contract import topics
from contract.errors import BrokerUnreachableError, NotAuthorisedError, PlanError, WireFormatError

LINK_TIMEOUT_S = 5.0
"""How long an edge's broker may take to answer at first."""
DRAIN_S = 1.0
"""How long a link that is given up may take to hand over what was published on it."""

Elsewhere = Callable[[str], Connect | None]
"""How to connect to the broker at an address, as the same user; None if it is the main one."""


class SplitConnection:
    """A :class:`broker.transport.Connection` to a main broker and to those of some edges.

    Only one thread may publish inputs and results, and call :meth:`use` and :meth:`close`; the
    rest may be called from any.
    """

    def __init__(
        self,
        connect: Connect,
        settings: ConnectionSettings,
        callbacks: Callbacks,
        elsewhere: Elsewhere | None,
        edge_filters: Sequence[str],
        on_dropped: Callable[[str, int], None] | None = None,
    ) -> None:
        """Connect to the main broker.

        Args:
            connect: how to reach the main broker.
            settings: the links use them too, but for the will, which is the main broker's.
            callbacks: run on the network thread of whichever connection hears something.
            elsewhere: how to reach others; None refuses every edge that has one.
            edge_filters: what the links subscribe to. The main broker gets it by `subscribe`.
            on_dropped: told which broker has dropped how many messages; None does not watch, as
                a process must that has no right to.

        Raises:
            BrokerUnreachableError, NotAuthorisedError: see :class:`broker.transport.Connect`.
        """
        self._settings, self._callbacks, self._elsewhere = settings, callbacks, elsewhere
        self._on_dropped = on_dropped
        self._edge_filters = tuple(edge_filters)
        # Both are replaced, never changed: other threads read them.
        self._links: Mapping[str, _Link] = {}
        self._by_edge: Mapping[int, _Link] = {}
        self._last_edge = 0
        self._reconnects_before = 0
        self._main = connect(settings, self._watched(callbacks, "the broker"))
        self._watch(self._main)

    def use(self, addresses: Mapping[int, str], num_stages: int) -> bool:
        """Send these edges by brokers of their own from now on, and all others by the main one.

        Whatever fails, fails before anything has changed.

        Args:
            addresses: host or host:port by edge.
            num_stages: of the plan; the edge of this number carries the results.

        Returns:
            Whether any edge has another broker than before. What was on its way may be lost then.

        Raises:
            BrokerUnreachableError, NotAuthorisedError: no link; says which edge and address.
            PlanError: this process has no way to reach other brokers.
            SettingsError: an address that is none.
        """
        keys = {edge: str(parse_address(address)) for edge, address in addresses.items()}
        links: dict[str, _Link | None] = {}
        try:
            for key in dict.fromkeys(keys.values()):
                edges = [edge for edge, other in keys.items() if other == key]
                links[key] = self._links.get(key) or self._open(key, edges)
        except BaseException:
            for key, link in links.items():
                if link is not None and key not in self._links:
                    link.give_up()
            raise
        before, given_up = self._by_edge, self._links.keys() - links.keys()
        self._last_edge = num_stages
        self._by_edge = {edge: link for edge, key in keys.items() if (link := links[key])}
        old, self._links = self._links, {key: link for key, link in links.items() if link}
        for key in given_up:
            self._reconnects_before += old[key].connection.reconnects
            old[key].give_up()
        return before != self._by_edge

    def _open(self, address: str, edges: Sequence[int]) -> "_Link | None":
        if self._elsewhere is None:
            raise PlanError(
                f"edge {_listed(edges)} has a broker of its own, {address}: this process can reach "
                "none but its own broker; publish the plan without --edge-broker"
            )
        connect = self._elsewhere(address)
        if connect is None:
            return None
        limit_s = self._settings.connect_timeout_s
        settings = replace(
            self._settings,
            will=None,
            connect_timeout_s=LINK_TIMEOUT_S if limit_s is None else min(limit_s, LINK_TIMEOUT_S),
        )
        callbacks = replace(self._callbacks, on_connected=self._later())
        where = f"the broker of edge {_listed(edges)}"
        try:
            connection = connect(settings, self._watched(callbacks, where))
        except (BrokerUnreachableError, NotAuthorisedError) as error:
            raise type(error)(
                f"edge {_listed(edges)} has a broker of its own, {address}: {error} "
                "(`shardline publish --edge-broker` named it)"
            ) from error
        for topic_filter in self._edge_filters:
            connection.subscribe(topic_filter)
        self._watch(connection)
        return _Link(connection)

    def _watched(self, callbacks: Callbacks, where: str) -> Callbacks:
        tell = self._on_dropped
        return callbacks if tell is None else watch_drops(callbacks, partial(tell, where))

    def _watch(self, connection: Connection) -> None:
        if self._on_dropped is not None:
            connection.subscribe(topics.BROKER_DROPPED)

    def _later(self) -> Callable[[bool], None]:
        """The owner's on_connected but for the first time, which is its own doing."""
        again = threading.Event()

        def on_connected(session_present: bool) -> None:
            if again.is_set():
                self._callbacks.on_connected(session_present)
            again.set()

        return on_connected

    @property
    def main(self) -> Connection:
        """The main broker alone: plan, statuses, commands and shards do not need the others."""
        return self._main

    @property
    def is_connected(self) -> bool:
        """Whether every broker is reachable now."""
        return self._main.is_connected and not self._away()

    def away(self) -> str:
        """Which brokers are away, in words; empty when none is."""
        edges = self._away()
        if not self._main.is_connected:
            return "the broker is away"
        return f"the broker of edge {_listed(edges)} is away" if edges else ""

    def _away(self) -> list[int]:
        return [e for e, link in self._by_edge.items() if not link.connection.is_connected]

    @property
    def reconnects(self) -> int:
        """How often any connection was made again, those that were given up included."""
        links = self._links.values()
        again = sum(link.connection.reconnects for link in links)
        return self._main.reconnects + again + self._reconnects_before

    @property
    def max_packet_bytes(self) -> int | None:
        """The largest packet that the main broker takes."""
        return self._main.max_packet_bytes

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Subscribe at the main broker, now and after every reconnect."""
        self._main.subscribe(topic_filter, qos)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> Future[PublishOutcome]:
        """See :class:`broker.transport.Connection`. Goes by the broker of the topic's edge."""
        if self._by_edge:
            link = self._by_edge.get(self._edge_of(topic))
            if link is not None:
                return link.publish(topic, payload, qos, retain)
        return self._main.publish(topic, payload, qos=qos, retain=retain)

    def _edge_of(self, topic: str) -> int:
        """The edge that a topic belongs to, or -1."""
        try:
            parsed = topics.parse_topic(topic)
        except WireFormatError:
            return -1
        if parsed.kind == "result":
            return self._last_edge
        return -1 if parsed.stage_index is None else parsed.stage_index

    def close(self, forget_session: bool = False) -> None:
        """See :class:`broker.transport.Connection`."""
        for link in self._links.values():
            link.connection.close(forget_session)
        self._main.close(forget_session)


class _Link:
    """A connection to the broker of some edges, and what that broker has not acknowledged yet."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._unsettled: set[Future[PublishOutcome]] = set()

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> Future[PublishOutcome]:
        future = self.connection.publish(topic, payload, qos=qos, retain=retain)
        self._unsettled.add(future)
        future.add_done_callback(self._unsettled.discard)
        return future

    def give_up(self) -> None:
        """Disconnect for good. Nobody may be left waiting for an acknowledgement."""
        if self.connection.is_connected:
            wait(tuple(self._unsettled), timeout=DRAIN_S)
        self.connection.close(forget_session=True)
        for future in tuple(self._unsettled):
            with suppress(InvalidStateError):
                # Whoever was to read it reads elsewhere now: not the batch's fault, so sent again.
                future.set_result(PublishOutcome.NO_SUBSCRIBER)


def _listed(edges: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(edges)))
