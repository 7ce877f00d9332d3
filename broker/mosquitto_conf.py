"""Renders mosquitto.conf. Pure: settings in, text out. Works with Mosquitto 2.0.11 and later 2.x.

Two brokers: the embedded one, on loopback and, unless it is given TLS, for anyone, which keeps
nothing; and a fleet's, for all interfaces, by TLS, with users and an ACL, whose retained plan and
statuses survive a restart.
"""

from contract.frozen import FrozenModel

LARGEST_PACKET_BYTES = 268_435_455  # what MQTT itself can carry (MQTT 5.0, section 1.5.5)
AUTOSAVE_INTERVAL_S = 300  # a save stops the broker's one thread; what it loses, clients send again
MAX_QUEUED_MESSAGES = 1000
"""For one receiver: Mosquitto's own default. Beyond it, it drops what it has acknowledged, so the
client's window stays below a sixth (client/settings.py)."""
CONFIG_FOLDER = "/mosquitto/config"


class ListenerTls(FrozenModel):
    """A broker's TLS: paths of PEM files.

    With ``client_certificates`` whoever connects must show one that ``ca_file`` signed and
    ``crl_file`` does not list; its common name is the user name, whatever the client says.
    """

    ca_file: str
    cert_file: str
    key_file: str
    crl_file: str
    client_certificates: bool = True


class MosquittoSettings(FrozenModel):
    """What a loopback broker needs; sizes in bytes."""

    port: int
    bind_address: str = "127.0.0.1"
    tls: ListenerTls | None = None
    acl_file: str | None = None
    max_packet_bytes: int = LARGEST_PACKET_BYTES
    max_queued_messages: int = MAX_QUEUED_MESSAGES


class FleetBrokerSettings(FrozenModel):
    """What a fleet's broker needs. The paths are those inside its container.

    Users are known by ``password_file``, or without one by their certificates.
    """

    port: int = 8883
    bind_address: str | None = None  # None: all interfaces, IPv4 and IPv6
    tls: ListenerTls = ListenerTls(
        ca_file=f"{CONFIG_FOLDER}/ca.crt",
        cert_file=f"{CONFIG_FOLDER}/broker.crt",
        key_file=f"{CONFIG_FOLDER}/broker.key",
        crl_file=f"{CONFIG_FOLDER}/revoked.crl",
    )
    password_file: str | None = None
    acl_file: str = f"{CONFIG_FOLDER}/acl"
    data_folder: str = "/var/lib/mosquitto/"
    max_packet_bytes: int = LARGEST_PACKET_BYTES
    max_queued_messages: int = MAX_QUEUED_MESSAGES


def render_mosquitto_conf(settings: MosquittoSettings) -> str:
    """The configuration file of the embedded broker: loopback only, nothing kept on disk."""
    lines = [f"listener {settings.port} {settings.bind_address}"]
    if settings.tls is None:
        lines += ["allow_anonymous true"]  # loopback only
    else:
        lines += [*_tls(settings.tls), *_by_name(None)]
    if settings.acl_file is not None:
        lines += [f"acl_file {settings.acl_file}"]
    lines += ["persistence false"]  # the client's ledger is what remembers
    return _text([*lines, *_in_common(settings)])


def render_fleet_conf(settings: FleetBrokerSettings) -> str:
    """The configuration file of a fleet's broker: every user known, retained messages kept.

    ``acl_file`` and ``password_file`` are deprecated in Mosquitto 2.1 in favour of plugins that
    2.0 does not have; 2.1 still reads them.
    """
    where = "" if settings.bind_address is None else f" {settings.bind_address}"
    tls = settings.tls.model_copy(
        update={"client_certificates": settings.password_file is None},
    )
    return _text(
        [
            f"listener {settings.port}{where}",
            *_tls(tls),
            *_by_name(settings.password_file),
            f"acl_file {settings.acl_file}",
            "persistence true",
            f"persistence_location {settings.data_folder}",
            f"autosave_interval {AUTOSAVE_INTERVAL_S}",
            *_in_common(settings),
        ]
    )


def _tls(tls: ListenerTls) -> list[str]:
    lines = [
        f"cafile {tls.ca_file}",
        f"certfile {tls.cert_file}",
        f"keyfile {tls.key_file}",
        "tls_version tlsv1.2",  # or later
    ]
    if tls.client_certificates:
        lines += [
            f"crlfile {tls.crl_file}",
            "require_certificate true",
            "use_identity_as_username true",
        ]
    return lines


def _by_name(password_file: str | None) -> list[str]:
    passwords = [] if password_file is None else [f"password_file {password_file}"]
    return [
        "allow_anonymous false",
        *passwords,
        "use_username_as_clientid true",  # nobody can take another's name and throw it out
    ]


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
