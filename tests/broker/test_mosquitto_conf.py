"""The configurations of Mosquitto: what differs, and what all hold."""

from broker.mosquitto_conf import (
    LARGEST_PACKET_BYTES,
    FleetBrokerSettings,
    ListenerTls,
    MosquittoSettings,
    render_fleet_conf,
    render_mosquitto_conf,
)

BY_CERTIFICATE = {
    "crlfile /mosquitto/config/revoked.crl",
    "require_certificate true",
    "use_identity_as_username true",
}


def test_a_fleet_s_broker_knows_its_users_and_keeps_what_is_retained() -> None:
    lines = render_fleet_conf(FleetBrokerSettings()).splitlines()
    assert lines[0] == "listener 8883"
    for line in (
        *BY_CERTIFICATE,
        "cafile /mosquitto/config/ca.crt",
        "certfile /mosquitto/config/broker.crt",
        "keyfile /mosquitto/config/broker.key",
        "tls_version tlsv1.2",
        "allow_anonymous false",
        "acl_file /mosquitto/config/acl",
        "use_username_as_clientid true",
        "persistence true",
        "persistence_location /var/lib/mosquitto/",
        "autosave_interval 300",
        "set_tcp_nodelay true",
        f"max_packet_size {LARGEST_PACKET_BYTES}",
        "max_queued_messages 1000",
        "max_inflight_messages 20",
        "max_keepalive 60",
        "persistent_client_expiration 1d",
        "sys_interval 10",
        "log_dest stderr",
    ):
        assert lines.count(line) == 1, line
    assert "allow_anonymous true" not in lines
    assert sum(line.startswith("listener") for line in lines) == 1


def test_passwords_come_in_place_of_the_users_certificates_and_nothing_else_changes() -> None:
    certificates = set(render_fleet_conf(FleetBrokerSettings()).splitlines())
    passwords = set(render_fleet_conf(FleetBrokerSettings(password_file="/p")).splitlines())
    assert certificates - passwords == BY_CERTIFICATE
    assert passwords - certificates == {"password_file /p"}


def test_a_fleet_s_broker_can_be_bound_to_one_address() -> None:
    settings = FleetBrokerSettings(port=2000, bind_address="10.0.0.1")
    assert render_fleet_conf(settings).startswith("listener 2000 10.0.0.1\n")


def test_the_two_differ_only_in_who_may_come_and_what_is_kept() -> None:
    embedded = set(render_mosquitto_conf(MosquittoSettings(port=1883)).splitlines())
    fleet = set(render_fleet_conf(FleetBrokerSettings()).splitlines())
    assert {line.split()[0] for line in embedded ^ fleet} == {
        *("listener", "allow_anonymous", "acl_file", "use_username_as_clientid"),
        *("cafile", "certfile", "keyfile", "crlfile", "tls_version"),
        *("require_certificate", "use_identity_as_username"),
        *("persistence", "persistence_location", "autosave_interval"),
    }


def test_the_embedded_broker_by_tls_lets_nobody_in_who_shows_no_certificate() -> None:
    tls = ListenerTls(ca_file="/a", cert_file="/b", key_file="/c", crl_file="/d")
    text = render_mosquitto_conf(MosquittoSettings(port=1, tls=tls, acl_file="/e"))
    assert "allow_anonymous true" not in text
    for line in ("cafile /a", "certfile /b", "keyfile /c", "crlfile /d", "acl_file /e"):
        assert f"{line}\n" in text
    assert "require_certificate true\nuse_identity_as_username true\n" in text
