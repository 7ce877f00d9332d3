"""Rows 25 to 30: outsiders, bad certificates, hostile devices, wrong rights, a name used twice."""

import socket
import time
from dataclasses import replace

import numpy as np

from broker.connection import Connector
from broker.name_guard import SAME_AGE_MS
from broker.transport import BrokerAddress, Callbacks, ConnectionSettings, Delivery
from contract import topics
from contract.activation import decode, encode
from contract.errors import NotAuthorisedError, ShardlineError
from tests.faults.broker_faults import persistent
from tests.faults.feed import Feed
from tests.faults.pipeline_under_test import ALL, CLUSTER, FEEDER, Setup, Site
from tests.faults.processes import START_LIMIT_S, Child
from tests.faults.row import Figures, Row, Trial
from tests.faults.secured import ROGUE

LET_IN_LIMIT_S = 3.0
CLEARLY_OLDER_S = SAME_AGE_MS / 1000 + 1.0
"""Of two that started at about the same time either may end: the supervised one would come back."""
NAME_LIMIT_S, FIGHT_S = 60.0, 8.0
NOISE_BYTES = 1000
FORGED = 20
RUBBISH = b"rubbish"


def _nothing(delivery: Delivery) -> None:
    delivery.ack()


def is_let_in(address: BrokerAddress, name: str = "outsider") -> bool:
    """Whether somebody gets a connection."""
    settings = ConnectionSettings(name=name, connect_timeout_s=LET_IN_LIMIT_S)
    try:
        Connector(address)(settings, Callbacks(on_delivery=_nothing)).close()
    except ShardlineError:
        return False
    return True


def outsider(site: Site, trial: Trial) -> Figures:
    """No TLS, no certificate, a name and a password, noise; all of it is in the broker's log."""
    where = site.address()
    said = len(site.broker.words())
    plain = BrokerAddress(where.host, where.port)
    attempts = {"without TLS": plain}
    if site.credentials is not None:
        bare = replace(plain, tls=site.credentials.without())
        attempts |= {
            "without a certificate": bare,
            "with a password": replace(bare, username="pi-1", password="password"),
        }

    def inject() -> None:
        for what, address in attempts.items():
            feed.struck()
            feed.figures.require(not is_let_in(address), f"somebody {what} was let in")
        with socket.create_connection((where.host, where.port), timeout=2) as noise:
            feed.struck()
            try:
                noise.sendall(trial.random.randbytes(NOISE_BYTES))
                noise.settimeout(2)
                noise.recv(1)
            except OSError:
                pass  # it was shown the door

    feed = Feed(site, trial, inject)
    figures = feed.run()
    figures.require(len(site.broker.words()) > said, "the broker logged nothing")
    return figures


def bad_certificate(site: Site, trial: Trial) -> Figures:
    """Expired, self-signed, of another CA: each in a name that has rights."""
    credentials = site.credentials
    assert credentials is not None
    bad = {
        "expired": credentials.expired(ROGUE),
        "self-signed": credentials.self_signed(),
        "of another CA": credentials.of_another_authority(ROGUE),
    }

    def inject() -> None:
        for what, files in bad.items():
            feed.struck()
            address = replace(site.address(), username=ROGUE, tls=files)
            feed.figures.require(
                not is_let_in(address, ROGUE), f"a certificate that is {what} was let in"
            )

    feed = Feed(site, trial, inject)
    return feed.run()


def hostile_device(site: Site, trial: Trial) -> Figures:
    """It listens to a stage's inputs, forges that stage's results, statuses, batches, and plans."""
    plan_id, victim = site.plan.plan_id, "pi-2"
    forged: list[tuple[str, bytes]] = []

    def overhear(delivery: Delivery) -> None:
        delivery.ack()
        if len(forged) < FORGED and delivery.payload != RUBBISH:
            header = replace(decode(delivery.payload).header, stage_index=3, codec="float32")
            lie = {"logits": np.full((2, 4), 7, np.float32)}
            forged.append((topics.result_topic(CLUSTER, FEEDER, victim), encode(header, lie)))

    rogue = site.connect(ROGUE)(ConnectionSettings(name=ROGUE), Callbacks(on_delivery=overhear))
    rogue.subscribe(topics.input_filter(CLUSTER, victim))
    others = [
        topics.input_topic(CLUSTER, victim, plan_id, 2, "pi-1"),
        topics.result_topic(CLUSTER, FEEDER, victim),
        topics.nack_topic(CLUSTER, FEEDER, victim),
        topics.status_topic(CLUSTER, victim),
        topics.plan_topic(CLUSTER),
        topics.metrics_topic(CLUSTER, victim),
    ]

    def publish(topic: str, payload: bytes) -> bool:
        try:
            rogue.publish(topic, payload).result(timeout=5)
        except NotAuthorisedError:
            return False
        return True

    def inject() -> None:
        for topic in others:
            feed.struck()
            taken = publish(topic, RUBBISH)
            feed.figures.require(not taken, f"it published on {topic}")
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            time.sleep(0.001)
            while forged:
                publish(*forged.pop(0))
                feed.struck()
        own = topics.result_topic(CLUSTER, FEEDER, ROGUE)
        feed.figures.require(publish(own, RUBBISH), "it may not answer a client at all")

    feed = Feed(site, trial, inject)
    try:
        return feed.run()
    finally:
        rogue.close(forget_session=True)


def name_theft(site: Site, trial: Trial) -> Figures:
    """It asks for a stage's client id, and joins a shared subscription to that stage's inputs."""
    victim, heard = "pi-1", []

    def hear(delivery: Delivery) -> None:
        heard.append(delivery.topic)
        delivery.ack()

    def inject() -> None:
        said = len(site.broker.words())
        for _ in range(3):
            thief = site.connect(ROGUE)(
                ConnectionSettings(name=victim), Callbacks(on_delivery=hear)
            )
            thief.subscribe(f"$share/thieves/{topics.input_filter(CLUSTER, victim)}")
            feed.struck()
            time.sleep(0.3)
            thief.close(forget_session=True)
        log = site.broker.words()[said:]
        thrown = f"Client {victim} already connected" in log
        feed.figures.require(not thrown, "the victim was thrown out")
        feed.figures.require(not heard, f"it heard {len(heard)} inputs")

    feed = Feed(site, trial, inject)
    return feed.run()


def wrong_rights(site: Site, trial: Trial) -> Figures:
    """The right to read is taken from a stage, which starts anew; then it is given back."""
    victim, file = "pi-1", site.folder / "acl"
    rights = file.read_text()
    inputs = f"topic read {topics.input_filter(CLUSTER, victim)}"
    assert inputs in rights
    child = site.stages[victim]

    def grant(text: str) -> None:
        # Started anew, as docs/security.md says: at SIGHUP, Mosquitto 2.0.11 has crashed (SIGSEGV)
        # when a client came back at that moment.
        file.write_text(text)
        site.broker.end()
        site.start_broker()

    def inject() -> None:
        grant(
            "".join(
                line
                for line in rights.splitlines(keepends=True)
                if not (line.startswith("topic read") and f"/{victim}/" in line)
            )
        )
        said = len(child.words())
        child.kill()  # the supervisor starts it again
        feed.struck()
        end = time.monotonic() + (2.0 if trial.is_control else NAME_LIMIT_S)
        while "does not hear its own messages" not in child.words()[said:]:
            if time.monotonic() > end:
                feed.figures.require(trial.is_control, "it does not say what is wrong")
                break
            time.sleep(0.05)
        if not trial.is_control:  # there, nobody knows
            grant(rights)

    feed = Feed(site, trial, inject, stage_index=1, from_heal=True)
    try:
        return feed.run()
    finally:
        if file.read_text() != rights:
            grant(rights)


def two_of_one_name(site: Site, trial: Trial) -> Figures:
    """A second process is started under the name of a stage that lives."""
    victim = site.stages["pi-1"]
    second = Child(victim.command, site.folder / "second.log")

    def fights() -> int:
        return site.broker.words().count("Client pi-1 already connected")

    def inject() -> None:
        said, before = len(second.words()), fights()
        time.sleep(CLEARLY_OLDER_S)  # its age counts from after its imports
        second.start()
        start = time.monotonic()
        while fights() == before and time.monotonic() - start < START_LIMIT_S:
            time.sleep(0.02)
        feed.struck(min(1, fights() - before))
        end = time.monotonic() + (FIGHT_S if trial.is_control else NAME_LIMIT_S)
        while second.is_running and time.monotonic() < end:
            time.sleep(0.05)
        feed.figures.note = f"{fights() - before} connections taken over"
        ended = not second.is_running
        second.kill()
        words = second.words()[said:]
        feed.figures.require(ended, "both go on throwing each other out")
        feed.figures.require(
            not ended or "another process uses the name" in words.replace("\n", " "),
            f"it ended without saying why: {words[-80:]!r}",
        )

    feed = Feed(site, trial, inject, stage_index=1, from_heal=True)
    try:
        return feed.run()
    finally:
        second.kill()


def _without(*lines: str) -> "Setup":
    """A secured broker whose configuration lacks some lines."""

    def conf(text: str, _folder: object) -> str:
        return "".join(
            line for line in text.splitlines(keepends=True) if not line.startswith(lines)
        )

    return Setup(secured=True, conf=conf)


def _open_to_all() -> "Setup":
    """Any certificate, and none, will do."""

    def conf(text: str, _folder: object) -> str:
        for line in ("require_certificate true", "use_identity_as_username true"):
            text = text.replace(f"{line}\n", "")
        for line in ("use_username_as_clientid true", "crlfile", "acl_file"):
            text = "".join(x for x in text.splitlines(keepends=True) if not x.startswith(line))
        return text.replace("allow_anonymous false", "allow_anonymous true")

    return Setup(secured=True, conf=conf)


SECURED = Setup(secured=True)

ROWS = (
    Row(
        25,
        "an outsider: no TLS, no certificate, a name and a password, noise",
        "connections to the broker's port while batches fly",
        "mutual TLS, no anonymous access",
        "the demo's loopback broker, which anyone may use: let in",
        lambda is_control: Setup() if is_control else SECURED,
        outsider,
        harm="rule",
        is_timed=False,
    ),
    Row(
        26,
        "a certificate that has expired, is self-signed, or of another CA",
        "connections with it, in the name of a device of the fleet",
        "the broker checks chain and dates",
        "no certificate required: let in",
        lambda is_control: _open_to_all() if is_control else SECURED,
        bad_certificate,
        harm="rule",
        is_timed=False,
    ),
    Row(
        27,
        "a device of the fleet forges another's results, batches, statuses, and a plan",
        "a certificate of its own, 6 foreign topics, results forged from overheard inputs",
        "the sender's name is in every topic, and the access list holds each to its own",
        "no access list: forged results count",
        lambda is_control: _without("acl_file") if is_control else SECURED,
        hostile_device,
        harm="wrong",
        is_timed=False,
    ),
    Row(
        28,
        "a device of the fleet takes another's client id, and joins a shared subscription",
        "three connections with its own certificate and the other's id",
        "the user name is the client id; no shared subscriptions; the access list",
        "client ids as asked for: the victim is thrown out",
        lambda is_control: (
            _without("use_username_as_clientid", "acl_file") if is_control else SECURED
        ),
        name_theft,
        harm="rule",
        is_timed=False,
    ),
    Row(
        29,
        "a stage has lost its right to read",
        "the access list changed, broker and stage started anew",
        "the start-up self-test ends it with words; given the right again, it serves",
        "no self-test: it says that it is ready, and hears nothing",
        lambda is_control: Setup(
            secured=True,
            conf=persistent,
            stage_patches={ALL: ("no_self_test",)} if is_control else {},
            patience_s=6.0 if is_control else 30.0,
        ),
        wrong_rights,
        is_timed=False,
        recovers_from="heal",
    ),
    Row(
        30,
        "two stages of one name",
        "a second process under the name of one that lives",
        "each greets its own session: the younger hears of the other, and ends with words",
        "greetings are not judged: they throw each other out for ever",
        lambda is_control: Setup(
            stage_patches={ALL: ("no_name_guard",)} if is_control else {},
        ),
        two_of_one_name,
        harm="rule",
        is_timed=False,
        recovers_from="heal",
    ),
)
