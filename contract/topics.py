"""The whole message map on one screen: build a topic, build a filter, parse a topic.

A topic string is written here and nowhere else. The grammar:

    shardline/<cluster>/plan                                      retained: the current plan
    shardline/<cluster>/device/<device>/status                    retained, with a will
    shardline/<cluster>/device/<to>/in/<plan_id>/<stage>/<from>   activations
    shardline/<cluster>/device/<to>/command/<from>                requests to a device
    shardline/<cluster>/answer/<to>/<from>                        its answers to who asked
    shardline/<cluster>/client/<client>/result/<from>             results
    shardline/<cluster>/client/<client>/nack/<from>               refusals
    shardline/<cluster>/blob/<to>/<from>                          shard transfer
    shardline/<cluster>/metrics/<device>                          one JSON object a second
    shardline/<cluster>/metrics/pipeline/<client>                 one JSON object a second
    shardline/<cluster>/metrics/trace/<client>                    one JSON object a second
    shardline/<cluster>/clock/<to>/<from>                         what is your time, and the answer
    shardline/<cluster>/event/<from>                              things worth a person's eye
    homeassistant/device/shardline_<cluster>/<device>/config      retained: for Home Assistant

The sender's name is the last level of every data topic, so that the broker's access control is a
static pattern per user. A topic names one place and a filter may name many: they are built by
different functions, and a missing name can never turn into a wildcard.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from contract.errors import SettingsError, WireFormatError

ROOT = "shardline"
DEFAULT_CLUSTER = "default"
MAX_NAME = 63
MAX_TOPIC = 512
CACHED = 4096
"""Answers remembered, of texts whose length was looked at first: the same few names and topics come
with every message, and a stranger's long ones must not fill the memory."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_RESERVED = frozenset({"pipeline", "trace"})
_PLAN_ID = re.compile(r"[0-9a-f]{16}")
_STAGE = re.compile(r"0|[1-9][0-9]{0,3}")


def is_name(text: str) -> bool:
    """Whether ``text`` can be the name of a device, a client or a cluster."""
    return len(text) <= MAX_NAME and _is_name(text)


@lru_cache(maxsize=CACHED)
def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text)) and text not in _RESERVED


def is_plan_id(text: str) -> bool:
    """Whether ``text`` can be the id of a plan: 16 lower-case hex digits."""
    return bool(_PLAN_ID.fullmatch(text))


def check_name(kind: str, name: str) -> str:
    """Return ``name`` if it can be a level of a topic, a file name and a user name.

    Raises:
        SettingsError: the name is empty, too long, reserved, or holds other characters.
    """
    if not is_name(name):
        raise SettingsError(
            f"{kind} name {name!r}: expected 1 to 63 letters, digits, - or _, beginning with a "
            f"letter or digit, and none of {sorted(_RESERVED)}"
        )
    return name


def _base(cluster: str) -> str:
    return f"{ROOT}/{check_name('cluster', cluster)}"


def _device(cluster: str, device: str) -> str:
    return f"{_base(cluster)}/device/{check_name('device', device)}"


def _client(cluster: str, client: str) -> str:
    return f"{_base(cluster)}/client/{check_name('client', client)}"


def plan_topic(cluster: str) -> str:
    """The retained plan of a cluster."""
    return f"{_base(cluster)}/plan"


def status_topic(cluster: str, device: str) -> str:
    """The retained status of one device."""
    return f"{_device(cluster, device)}/status"


def status_filter(cluster: str) -> str:
    """The status of every device."""
    return f"{_base(cluster)}/device/+/status"


@lru_cache(maxsize=CACHED)
def input_topic(cluster: str, to: str, plan_id: str, stage_index: int, sender: str) -> str:
    """Where ``sender`` puts an activation for stage ``stage_index`` on device ``to``."""
    if not is_plan_id(plan_id):
        raise SettingsError(f"plan id {plan_id!r:.80}: expected 16 lower-case hex digits")
    return f"{_device(cluster, to)}/in/{plan_id}/{stage_index}/{check_name('sender', sender)}"


def input_filter(cluster: str, device: str) -> str:
    """Every activation for one device, of any plan, stage and sender."""
    return f"{_device(cluster, device)}/in/+/+/+"


def sent_input_filter(cluster: str, sender: str, stage_index: int | None = None) -> str:
    """Every activation of one sender, for any device and plan, for any stage or for one."""
    stage = "+" if stage_index is None else str(stage_index)
    return f"{_base(cluster)}/device/+/in/+/{stage}/{check_name('sender', sender)}"


def command_topic(cluster: str, to: str, sender: str) -> str:
    """Where ``sender`` asks device ``to`` for something."""
    return f"{_device(cluster, to)}/command/{check_name('sender', sender)}"


def command_filter(cluster: str, device: str) -> str:
    """Every command for one device."""
    return f"{_device(cluster, device)}/command/+"


def sent_command_filter(cluster: str, sender: str) -> str:
    """Every command of one sender."""
    return f"{_base(cluster)}/device/+/command/{check_name('sender', sender)}"


def answer_topic(cluster: str, to: str, sender: str) -> str:
    """Where device ``sender`` answers ``to``, who sent it a command."""
    return f"{_base(cluster)}/answer/{check_name('receiver', to)}/{check_name('sender', sender)}"


def answer_filter(cluster: str, name: str) -> str:
    """Every answer for ``name``."""
    return f"{_base(cluster)}/answer/{check_name('receiver', name)}/+"


def sent_answer_filter(cluster: str, sender: str) -> str:
    """Every answer of one device."""
    return f"{_base(cluster)}/answer/+/{check_name('sender', sender)}"


@lru_cache(maxsize=CACHED)
def result_topic(cluster: str, client: str, sender: str) -> str:
    """Where ``sender``, the last stage, puts a result for ``client``."""
    return f"{_client(cluster, client)}/result/{check_name('sender', sender)}"


def result_filter(cluster: str, client: str) -> str:
    """Every result for one client."""
    return f"{_client(cluster, client)}/result/+"


def sent_result_filter(cluster: str, sender: str) -> str:
    """Every result of one sender."""
    return f"{_base(cluster)}/client/+/result/{check_name('sender', sender)}"


def nack_topic(cluster: str, client: str, sender: str) -> str:
    """Where ``sender`` tells ``client`` that it refused a batch."""
    return f"{_client(cluster, client)}/nack/{check_name('sender', sender)}"


def nack_filter(cluster: str, client: str) -> str:
    """Every refusal for one client."""
    return f"{_client(cluster, client)}/nack/+"


def sent_nack_filter(cluster: str, sender: str) -> str:
    """Every refusal of one sender."""
    return f"{_base(cluster)}/client/+/nack/{check_name('sender', sender)}"


def blob_topic(cluster: str, to: str, sender: str) -> str:
    """Where ``sender`` sends ``to`` a request or a piece of a shard."""
    return f"{_base(cluster)}/blob/{check_name('receiver', to)}/{check_name('sender', sender)}"


def blob_filter(cluster: str, name: str) -> str:
    """Every request and piece of a shard for ``name``."""
    return f"{_base(cluster)}/blob/{check_name('receiver', name)}/+"


def sent_blob_filter(cluster: str, sender: str) -> str:
    """Every request and piece of a shard of one sender."""
    return f"{_base(cluster)}/blob/+/{check_name('sender', sender)}"


def metrics_topic(cluster: str, device: str) -> str:
    """A device's metrics."""
    return f"{_base(cluster)}/metrics/{check_name('device', device)}"


def pipeline_metrics_topic(cluster: str, client: str) -> str:
    """The pipeline's metrics as one client sees it."""
    return f"{_base(cluster)}/metrics/pipeline/{check_name('client', client)}"


def pipeline_metrics_filter(cluster: str) -> str:
    """The pipeline's metrics as every client sees it."""
    return f"{_base(cluster)}/metrics/pipeline/+"


def trace_topic(cluster: str, client: str) -> str:
    """Where the time of one client's batches went."""
    return f"{_base(cluster)}/metrics/trace/{check_name('client', client)}"


def clock_topic(cluster: str, to: str, sender: str) -> str:
    """Where ``sender`` asks ``to`` for the time, or answers."""
    return f"{_base(cluster)}/clock/{check_name('receiver', to)}/{check_name('sender', sender)}"


def clock_filter(cluster: str, name: str) -> str:
    """Every question for the time, and every answer, for ``name``."""
    return f"{_base(cluster)}/clock/{check_name('receiver', name)}/+"


def sent_clock_filter(cluster: str, sender: str) -> str:
    """Every question for the time, and every answer, of one sender."""
    return f"{_base(cluster)}/clock/+/{check_name('sender', sender)}"


def metrics_filter(cluster: str | None = None) -> str:
    """All metrics of one cluster, or of every cluster."""
    return f"{ROOT}/+/metrics/#" if cluster is None else f"{_base(cluster)}/metrics/#"


def event_topic(cluster: str, sender: str) -> str:
    """Where ``sender`` reports what a person should know."""
    return f"{_base(cluster)}/event/{check_name('sender', sender)}"


def event_filter(cluster: str) -> str:
    """Every event of a cluster."""
    return f"{_base(cluster)}/event/+"


DISCOVERY_ROOT = "homeassistant"
"""Where Home Assistant looks for what there is to show, unless it was told otherwise."""
_PIPELINE = "pipeline"  # reserved: no device can be called so


def _discovery(cluster: str) -> str:
    return f"{DISCOVERY_ROOT}/device/shardline_{check_name('cluster', cluster)}"


def discovery_topic(cluster: str, device: str) -> str:
    """Where Home Assistant finds what to show of a device."""
    return f"{_discovery(cluster)}/{check_name('device', device)}/config"


def pipeline_discovery_topic(cluster: str) -> str:
    """Where Home Assistant finds what to show of the pipeline."""
    return f"{_discovery(cluster)}/{_PIPELINE}/config"


def discovery_filter(cluster: str) -> str:
    """All that Home Assistant finds of one cluster."""
    return f"{_discovery(cluster)}/+/config"


def is_discovery_topic(cluster: str, topic: str) -> bool:
    """Whether ``topic`` is one of :func:`discovery_filter`."""
    match topic.split("/"):
        case [*node, name, "config"] if "/".join(node) == _discovery(cluster):
            return name == _PIPELINE or is_name(name)
    return False


BROKER_UPTIME = "$SYS/broker/uptime"
"""Mosquitto's own: seconds since it started; what a health check of the broker reads."""
BROKER_DROPPED = "$SYS/broker/publish/messages/dropped"
"""Mosquitto's own: messages since its start that it took and did not keep, queues being full."""
BROKER_BYTES_RECEIVED = "$SYS/broker/bytes/received"
BROKER_BYTES_SENT = "$SYS/broker/bytes/sent"
"""Mosquitto's own: all bytes since its start, in and out."""
BROKER_CLIENTS = "$SYS/broker/clients/connected"
"""Mosquitto's own: connections that stand."""
BROKER_FILTER = "$SYS/#"
"""Everything that Mosquitto says of itself."""


def is_broker_topic(topic: str) -> bool:
    """Whether a topic or filter is of what Mosquitto says of itself."""
    return topic.startswith(BROKER_FILTER.removesuffix("#"))


def is_optional(topic_filter: str) -> bool:
    """Whether a process goes on without the right to read this, only less wary or less exact."""
    return is_broker_topic(topic_filter) or topic_filter.split("/")[2:3] == ["clock"]


_NO_PLAN_ID = "0" * 16


def device_self_topics(cluster: str, device: str) -> tuple[str, ...]:
    """Topics on which a device hears itself: under each filter that it lives on, one."""
    return (
        blob_topic(cluster, device, device),
        command_topic(cluster, device, device),
        input_topic(cluster, device, _NO_PLAN_ID, 1, device),
    )


def client_self_topics(cluster: str, client: str) -> tuple[str, ...]:
    """Topics on which a client hears itself."""
    return nack_topic(cluster, client, client), result_topic(cluster, client, client)


def planner_self_topics(cluster: str, planner: str) -> tuple[str, ...]:
    """Topics on which a planner hears itself."""
    return blob_topic(cluster, planner, planner), answer_topic(cluster, planner, planner)


@dataclass(frozen=True, slots=True)
class Topic:
    """A parsed topic. Fields that the kind does not have are ``None``."""

    kind: str
    cluster: str
    to: str | None = None
    sender: str | None = None
    plan_id: str | None = None
    stage_index: int | None = None


def parse_topic(topic: str) -> Topic:
    """Inverse of the ``*_topic`` functions.

    ``kind`` is one of plan, status, input, command, answer, result, nack, blob, clock, metrics,
    pipeline_metrics, trace, event.

    Raises:
        WireFormatError: the topic is not one of ours.
    """
    if len(topic) > MAX_TOPIC:
        raise WireFormatError(f"topic of {len(topic):,} characters, ours have at most {MAX_TOPIC}")
    return _parse_topic(topic)


@lru_cache(maxsize=CACHED)
def _parse_topic(topic: str) -> Topic:
    match topic.split("/"):
        case [root, cluster, *rest] if root == ROOT:
            pass
        case _:
            raise WireFormatError(f"topic {topic!r}: expected it to begin with {ROOT}/<cluster>/")
    match rest:
        case ["plan"]:
            parsed = Topic("plan", cluster)
        case ["device", device, "status"]:
            parsed = Topic("status", cluster, sender=device)
        case ["device", to, "in", plan_id, stage, sender] if is_plan_id(
            plan_id
        ) and _STAGE.fullmatch(stage):
            parsed = Topic("input", cluster, to, sender, plan_id, int(stage))
        case ["device", to, "command", sender]:
            parsed = Topic("command", cluster, to, sender)
        case ["client", to, ("result" | "nack") as kind, sender]:
            parsed = Topic(kind, cluster, to, sender)
        case [("answer" | "blob" | "clock") as kind, to, sender]:
            parsed = Topic(kind, cluster, to, sender)
        case ["metrics", device]:
            parsed = Topic("metrics", cluster, sender=device)
        case ["metrics", "pipeline", client]:
            parsed = Topic("pipeline_metrics", cluster, sender=client)
        case ["metrics", "trace", client]:
            parsed = Topic("trace", cluster, sender=client)
        case ["event", sender]:
            parsed = Topic("event", cluster, sender=sender)
        case _:
            raise WireFormatError(f"topic {topic!r}: not in the message map, see docs/topics.md")
    for name in (parsed.cluster, parsed.to, parsed.sender):
        if name is not None and not is_name(name):
            raise WireFormatError(f"topic {topic!r}: {name!r} cannot be a name")
    return parsed
