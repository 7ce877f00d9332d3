"""Renders mosquitto.conf. Pure: settings in, text out. Works with Mosquitto 2.0.11 and later 2.x.

Two brokers: the embedded one, on loopback and for anyone, which keeps nothing; and a fleet's, for
all interfaces, with users and an ACL, whose retained plan and statuses survive a restart.
"""

from contract.frozen import FrozenModel

LARGEST_PACKET_BYTES = 268_435_455  # what MQTT itself can carry (MQTT 5.0, section 1.5.5)
AUTOSAVE_INTERVAL_S = 300  # a save stops the broker's one thread; what it loses, clients send again
MAX_QUEUED_MESSAGES = 1000
"""For one receiver: Mosquitto's own default. Beyond it, it drops what it has acknowledged, so the
client's window stays below a sixth (client/settings.py)."""


class MosquittoSettings(FrozenModel):
    """What a loopback broker needs; sizes in bytes."""

    port: int
    bind_address: str = "127.0.0.1"
    max_packet_bytes: int = LARGEST_PACKET_BYTES
    max_queued_messages: int = MAX_QUEUED_MESSAGES


class FleetBrokerSettings(FrozenModel):
    """What a fleet's broker needs. The paths are those inside its container."""

    port: int = 1883
    bind_address: str | None = None  # None: all interfaces, IPv4 and IPv6
    password_file: str = "/mosquitto/config/passwords"  # noqa: S105 a path, not a password
    acl_file: str = "/mosquitto/config/acl"
    data_folder: str = "/var/lib/mosquitto/"
    max_packet_bytes: int = LARGEST_PACKET_BYTES
    max_queued_messages: int = MAX_QUEUED_MESSAGES


def render_mosquitto_conf(settings: MosquittoSettings) -> str:
    """The configuration file of the embedded broker: loopback only, nothing kept on disk."""
    return _text(
        [
            f"listener {settings.port} {settings.bind_address}",
            "allow_anonymous true",  # loopback only
            "persistence false",  # the client's ledger is what remembers
            *_in_common(settings),
        ]
    )


def render_fleet_conf(settings: FleetBrokerSettings) -> str:
    """The configuration file of a fleet's broker: every user known, retained messages kept.

    ``acl_file`` and ``password_file`` are deprecated in Mosquitto 2.1 in favour of plugins that
    2.0 does not have; 2.1 still reads them.
    """
    where = "" if settings.bind_address is None else f" {settings.bind_address}"
    return _text(
        [
            f"listener {settings.port}{where}",
            "allow_anonymous false",
            f"password_file {settings.password_file}",
            f"acl_file {settings.acl_file}",
            "use_username_as_clientid true",  # nobody can take another's name and throw it out
            "persistence true",
            f"persistence_location {settings.data_folder}",
            f"autosave_interval {AUTOSAVE_INTERVAL_S}",
            *_in_common(settings),
        ]
    )


def _in_common(settings: MosquittoSettings | FleetBrokerSettings) -> list[str]:
    return [
        "set_tcp_nodelay true",  # without it every hop waits 40 ms for a delayed TCP ACK
        f"max_packet_size {settings.max_packet_bytes}",
        "max_inflight_messages 20",
        f"max_queued_messages {settings.max_queued_messages}",
        "queue_qos0_messages false",
        "max_keepalive 60",
        "persistent_client_expiration 1d",
        "sys_interval 10",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages true",
    ]


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
