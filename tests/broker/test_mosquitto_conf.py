"""The two configurations of Mosquitto: what differs, and what both hold."""

from broker.mosquitto_conf import (
    LARGEST_PACKET_BYTES,
    FleetBrokerSettings,
    MosquittoSettings,
    render_fleet_conf,
    render_mosquitto_conf,
)


def test_a_fleet_s_broker_knows_its_users_and_keeps_what_is_retained() -> None:
    lines = render_fleet_conf(FleetBrokerSettings()).splitlines()
    assert lines[0] == "listener 1883"
    for line in (
        "allow_anonymous false",
        "password_file /mosquitto/config/passwords",
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


def test_a_fleet_s_broker_can_be_bound_to_one_address() -> None:
    settings = FleetBrokerSettings(port=2000, bind_address="10.0.0.1")
    assert render_fleet_conf(settings).startswith("listener 2000 10.0.0.1\n")


def test_the_two_differ_only_in_who_may_come_and_what_is_kept() -> None:
    embedded = set(render_mosquitto_conf(MosquittoSettings(port=1883)).splitlines())
    fleet = set(render_fleet_conf(FleetBrokerSettings()).splitlines())
    assert {line.split()[0] for line in embedded ^ fleet} == {
        *("listener", "allow_anonymous", "password_file", "acl_file", "use_username_as_clientid"),
        *("persistence", "persistence_location", "autosave_interval"),
    }
