"""The planner as a service: publishes a plan, stays, and keeps it fitting the devices.

One thread owns everything, inside :meth:`PlannerService.run`; planning alone has a thread of its
own (`background.py`). What is decided is decided in `presence.py` and `reaction.py`.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial

from broker.reporter import EventReporter
from broker.transport import Connect
from contract.errors import DeliveryError, PartitionError, PlanError, ShardlineError
from contract.fleet import is_live
from contract.plan import EdgeBroker, Plan, parse_plan
from contract.status import DeviceStatus, ShardState
from planner.publish import Publisher, Watcher
from planner.watch.background import Background
from planner.watch.backoff import Backoff
from planner.watch.family import Built, Family
from planner.watch.notice import NoticeKind
from planner.watch.presence import Presence
from planner.watch.reaction import Finding, Need, devices_of, look, question_id
from planner.watch.replanner import Proposal, Question, Replanner
from planner.watch.telling import Tell, Teller

EXAMINE_PATIENCE_S = 3.0
LONGEST_BACKOFF_S = 600.0
LEAVE_OFF_S = 10.0
"""At the end, for planning that is under way to notice."""
REPUBLISH_AFTER_S = 1.0
"""After a connect: time for the broker to say which plan it has, which may be somebody else's."""
_PLANNING = "planning"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchSettings:
    """How the service runs.

    ``wanted`` is the plan of the family's folder on its devices; None places it on those that are
    online, with ``edge_brokers``. ``grace_s`` is how long a device may be away before that means
    anything, ``patience_s`` how long one may get nowhere when it is handed its shard.
    """

    name: str
    cluster: str
    wanted: Plan | None = None
    edge_brokers: tuple[EdgeBroker, ...] = ()
    grace_s: float = 20.0
    patience_s: float = 60.0


class _OvertakenError(ShardlineError):
    """The devices have changed while a plan was handed out: look again."""


class PlannerService:
    """Keeps one family's plan published. :meth:`run` blocks until :meth:`stop`; use it once."""

    def __init__(
        self,
        settings: WatchSettings,
        family: Family,
        replanner: Replanner,
        connect: Connect,
        tell: Tell,
    ) -> None:
        """``tell`` is called with everything that a person should see, from :meth:`run`."""
        self._settings, self._family, self._replanner = settings, family, replanner
        self._connect, self._tell = connect, tell
        self._stopping = threading.Event()
        self._presence = Presence(settings.grace_s, time.monotonic())
        self._backoff = Backoff(settings.grace_s, LONGEST_BACKOFF_S)
        self._wanted = settings.wanted
        self._current: Built | None = None
        self._heard_plan: bytes = b""
        self._own: set[bytes] = set()  # what we have published: it comes back to us
        self._republish_at_s: float | None = None
        self._is_aside = False
        self._work: tuple[Finding, Background[Proposal | None]] | None = None
        self._answered: set[str] = set()  # questions that need not be asked again
        self._published_s: float | None = None  # while not all devices are ready

    def stop(self) -> None:
        """Let :meth:`run` end in order; the plan stays published. Safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until :meth:`stop`.

        Raises:
            BrokerUnreachableError, NotAuthorisedError: no connection at first.
            ShardError: the folder of the plan lacks a shard.
        """
        watcher = Watcher(self._on_status, self._presence.sign, self._on_plan, self._on_connected)
        settings = self._settings
        with Publisher(self._connect, settings.cluster, settings.name, watcher) as publisher:
            self._publisher = publisher
            reporter = EventReporter(settings.cluster, settings.name, publisher.connection)
            self._teller = Teller(self._tell, reporter)
            try:
                self._begin()
                while not self._stopping.is_set():
                    publisher.listen()
                    self._tick(time.monotonic())
            finally:
                if self._work is not None:
                    self._work[1].leave_off(LEAVE_OFF_S)
        self._teller.say(NoticeKind.STOPPED, "the plan stays published", self._plan)

    @property
    def _plan(self) -> Plan | None:
        return None if self._current is None else self._current.plan

    # What is heard

    def _on_status(self, status: DeviceStatus, retained: bool) -> None:
        self._presence.take(status, retained, time.monotonic())

    def _on_connected(self) -> None:
        now_s = time.monotonic()
        self._presence.connected(now_s)
        self._republish_at_s = now_s + REPUBLISH_AFTER_S

    def _on_plan(self, payload: bytes, retained: bool) -> None:
        self._heard_plan = payload
        if self._current is None or self._is_aside or payload in self._own:
            return
        if retained and self._republish_at_s is None:
            return  # what was there before ours: ours has replaced it
        self._is_aside = True
        if self._work is not None:
            self._work[1].leave_off()
        self._teller.aside(is_down=not payload)

    # The beginning

    def _begin(self) -> None:
        """Go on with the plan that is published, if it is of our family; else publish ours."""
        began_s = time.monotonic()
        while not self._heard_plan and time.monotonic() < began_s + REPUBLISH_AFTER_S:
            self._publisher.listen()
        self._publisher.settle()
        running = self._running()
        if running is not None and self._wanted is None:
            itself = running.plan if self._is_base(running.plan) else None
            self._wanted = self._family.remembered() or itself
        if running is None and self._wanted is None:
            self._wanted = self._place()
        if self._wanted is not None:
            self._family.remember(self._wanted)
            self._presence.expect(devices_of(self._wanted), time.monotonic())
        if running is not None:
            self._use(running)
            self._publish("going on", is_new=False)
        elif self._wanted is not None:
            self._take_up(Built(self._wanted, self._family.base.folder))

    def _is_base(self, plan: Plan) -> bool:
        return plan.plan_id == self._family.base.plan.plan_id

    def _running(self) -> Built | None:
        if not self._heard_plan:
            return None
        try:
            plan = parse_plan(self._heard_plan, "the published plan")
        except PlanError as error:
            log.warning("%s; publishing ours instead", error)
            return None
        found = self._family.find(plan) if plan.placement else None
        if found is not None:
            self._own.add(self._heard_plan)
        return found

    def _place(self) -> Plan | None:
        """Our plan on the devices that are online, as soon as they are enough."""
        base, waiting = self._family.base.plan, ""
        while not self._stopping.is_set():
            try:
                return self._publisher.place_on_online(base, 1.0, self._settings.edge_brokers)
            except DeliveryError as error:
                if str(error) != waiting:
                    waiting = str(error)
                    self._teller.say(NoticeKind.WAITING, waiting)
        return None

    def _take_up(self, built: Built) -> None:
        """The first publication: devices that are not there yet get their shards when they come."""
        while not self._stopping.is_set():
            there = self._presence.view(time.monotonic()).reachable
            try:
                self._hand_out(built, there, lambda: False)
            except _OvertakenError:
                continue
            except DeliveryError as error:
                log.warning("%s", error)
            self._use(built)
            self._publish("as asked for", is_new=True)
            return

    # The loop

    def _tick(self, now_s: float) -> None:
        for device, lost in self._presence.news(now_s):
            if lost is None:
                self._teller.back(device, self._presence.settling_s(device, now_s))
            else:
                self._teller.lost(device, lost)
        self._teller.flush()
        current = self._current
        if self._is_aside or current is None or not self._publisher.connection.is_connected:
            return
        if self._republish_at_s is not None and now_s >= self._republish_at_s:
            self._publish("the connection was made again", is_new=False)
        self._tell_readiness(current.plan, now_s)
        finding = look(current.plan, self._wanted, self._presence.view(now_s))
        if self._work is not None:
            self._follow(current, finding, now_s)
            return
        self._repair(current, now_s)
        if finding.need is Need.NOTHING or not self._backoff.is_due(_PLANNING, now_s):
            return
        if finding.need is Need.RETURN and self._wanted is not None:
            home = Built(self._wanted, self._family.base.folder)
            self._switch(home, finding, f"{finding.why}: back to it")
        elif question_id(current.plan, finding) not in self._answered:
            self._ask(current, finding)

    def _ask(self, current: Built, finding: Finding) -> None:
        self._teller.say(NoticeKind.PLANNING, f"{finding.why}: looking for another plan")
        examinations = self._publisher.examine(finding.pool, EXAMINE_PATIENCE_S)
        question = Question(current.plan, finding, examinations)
        self._work = (finding, Background(partial(self._replanner.propose, question)))

    def _follow(self, current: Built, finding: Finding, now_s: float) -> None:
        """See to the planning that is under way."""
        assert self._work is not None
        asked, work = self._work
        if finding.need is not asked.need or not asked.pool <= finding.pool:
            work.leave_off()
        if not work.is_done:
            return
        self._work = None
        if work.is_left_off:
            log.info("the devices have changed meanwhile: that plan is not needed any more")
            return
        try:
            proposal = work.result()
        except PartitionError as error:
            self._answered.add(question_id(current.plan, asked))
            self._teller.impossible(
                f"{asked.why}, and the devices that are left cannot run the model: {error}"
            )
        except ShardlineError as error:
            self._fail(str(error), now_s)
        else:
            if proposal is None:
                self._answered.add(question_id(current.plan, asked))
                detail = f"{asked.why}: no other plan is worth the change"
                self._teller.say(NoticeKind.KEPT, detail, current.plan)
            else:
                rate = f"{proposal.images_per_s:.3g} images/s predicted"
                self._switch(proposal.built, finding, f"{asked.why}: {proposal.why}, {rate}")

    def _switch(self, built: Built, finding: Finding, why: str) -> None:
        """Hand out what a plan needs, while the one before goes on; then publish it."""
        try:
            self._hand_out(built, devices_of(built.plan), lambda: self._need() is not finding.need)
        except _OvertakenError:
            log.info(
                "the devices have changed meanwhile: plan %s is not published", built.plan.name
            )
            return
        except ShardlineError as error:
            self._fail(str(error), time.monotonic())
            return
        self._backoff.succeeded(_PLANNING)
        # What was weighed just now was weighed for the new plan as well.
        weighed = replace(finding, need=Need.IMPROVE)
        self._answered = {question_id(built.plan, weighed)}
        self._use(built)
        self._publish(why, is_new=True)

    def _repair(self, current: Built, now_s: float) -> None:
        """Devices that cannot load their shard get it again: their disk may be new, or damaged."""
        reachable = self._presence.view(now_s).reachable
        failed = [
            device
            for device in devices_of(current.plan)
            if (status := self._publisher.fleet.get(device)) is not None
            and (status.shard, status.plan_id) == (ShardState.FAILED, current.plan.plan_id)
            and device in reachable
            and self._backoff.is_due(device, now_s)
        ]
        if not failed:
            return
        for device in failed:
            self._backoff.failed(device, now_s)
        try:
            self._hand_out(current, failed, lambda: self._need() in (Need.RETURN, Need.RECOVER))
        except _OvertakenError:
            return
        except ShardlineError as error:
            log.warning("%s", error)
            return
        why = f"{', '.join(failed)} cannot load its shard, which was handed out again"
        self._publish(why, is_new=False)

    def _need(self) -> Need:
        plan = self._plan
        if plan is None or self._is_aside:
            return Need.NOTHING
        return look(plan, self._wanted, self._presence.view(time.monotonic())).need

    # What is done

    def _hand_out(
        self, built: Built, devices: Collection[str], overtaken: Callable[[], bool]
    ) -> None:
        """See :meth:`planner.publish.Publisher.hand_out`.

        Raises:
            _OvertakenError: a device of these is gone, ``overtaken`` says so, or we are to stop.
        """
        wanted = set(devices) & set(devices_of(built.plan))

        def watch(_step: str, _share: float) -> None:
            there = self._presence.view(time.monotonic()).reachable
            if self._stopping.is_set() or not wanted <= there or overtaken():
                raise _OvertakenError("the devices have changed")

        patience_s = self._settings.patience_s
        self._publisher.hand_out(built.plan, built.folder, patience_s, watch, wanted)

    def _use(self, built: Built) -> None:
        self._current = built
        self._presence.expect(devices_of(built.plan), time.monotonic())

    def _publish(self, why: str, *, is_new: bool) -> None:
        plan = self._plan
        assert plan is not None
        self._own.add(plan.to_message().encode())
        self._republish_at_s = None
        try:
            self._publisher.publish(plan)
        except DeliveryError as error:  # it is published when the broker is there again
            log.warning("%s", error)
        self._published_s = time.monotonic()
        self._teller.published(plan, why, is_new=is_new)

    def _fail(self, why: str, now_s: float) -> None:
        self._teller.failed(why, self._plan, self._backoff.failed(_PLANNING, now_s))

    def _tell_readiness(self, plan: Plan, now_s: float) -> None:
        if self._published_s is None:
            return
        fleet = self._publisher.fleet
        if all(is_live(fleet.get(device), plan) for device in devices_of(plan)):
            for device in devices_of(plan):
                self._backoff.succeeded(device)
            took_s, self._published_s = now_s - self._published_s, None
            self._teller.ready(plan, took_s)
