"""Renders mosquitto.conf. Pure: settings in, text out. Works with Mosquitto 2.0.11 and later."""

from contract.frozen import FrozenModel

LARGEST_PACKET_BYTES = 268_435_455  # what MQTT itself can carry (MQTT 5.0, section 1.5.5)


class MosquittoSettings(FrozenModel):
    """What a loopback broker needs; sizes in bytes."""

    port: int
    bind_address: str = "127.0.0.1"
    max_packet_bytes: int = LARGEST_PACKET_BYTES
    max_queued_messages: int = 1000


def render_mosquitto_conf(settings: MosquittoSettings) -> str:
    """The configuration file of the embedded broker: loopback only, nothing kept on disk."""
    lines = [
        f"listener {settings.port} {settings.bind_address}",
        "allow_anonymous true",  # loopback only; a fleet's broker has users and an ACL
        "persistence false",  # the client's ledger is what remembers
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
    return "\n".join(lines) + "\n"
