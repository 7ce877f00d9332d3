"""The compose file: nothing runs as root, everything is bounded, every variable is documented.

That Compose itself reads it is tested in tests/containers.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
COMPOSE_FILE = ROOT / "docker-compose.arm64.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
each_service = pytest.mark.parametrize("name", SERVICES)
VARIABLE = re.compile(r"\$\{(SHARDLINE_[A-Z_]+)(?::-([^}]*))?\}")
ARGUMENTS = ("config", "--quiet")


def test_what_plain_up_starts_is_the_stage() -> None:
    assert {name: s.get("profiles") for name, s in SERVICES.items()} == {
        "stage": None,
        "broker": ["broker"],
        "planner": ["planner"],
        "client": ["client"],
        "dashboard": ["dashboard"],
    }


@each_service
def test_every_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == "${SHARDLINE_UID:-1000}:${SHARDLINE_GID:-1000}"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in service["tmpfs"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & service.keys()
    assert not any("docker.sock" in str(volume) for volume in service["volumes"])


@each_service
def test_every_service_is_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["mem_limit"] == service["memswap_limit"]
    assert re.fullmatch(rf"\$\{{SHARDLINE_{name.upper()}_MEMORY:-\d+[mg]\}}", service["mem_limit"])
    assert service["pids_limit"] > 0
    assert service["logging"]["driver"] == "json-file"
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()


@each_service
def test_only_the_broker_opens_a_port_to_the_network(name: str) -> None:
    expected = {
        "broker": ["${SHARDLINE_BROKER_PORT:-8883}:8883"],
        "dashboard": ["${SHARDLINE_DASHBOARD_ADDRESS:-127.0.0.1:8080}:8080"],
    }
    assert SERVICES[name].get("ports") == expected.get(name)


@each_service
def test_services_that_stay_come_back_by_themselves(name: str) -> None:
    stays = name in ("stage", "broker", "planner", "dashboard")
    assert SERVICES[name].get("restart") == ("unless-stopped" if stays else None)
    assert ("stop_grace_period" in SERVICES[name]) == stays


def test_no_password_is_in_an_environment() -> None:
    for service in SERVICES.values():
        assert "SHARDLINE_PASSWORD" not in service.get("environment", {})


def test_what_the_broker_mounts_is_read_only_but_for_its_data() -> None:
    mounts = SERVICES["broker"]["volumes"]
    assert mounts[-1] == "broker-data:/var/lib/mosquitto"
    assert {m["target"]: m["read_only"] for m in mounts[:-1]} == {"/mosquitto/config": True}


@pytest.mark.parametrize("name", ["stage", "client", "dashboard"])
def test_what_says_who_it_is_is_read_only(name: str) -> None:
    mounts = [m for m in SERVICES[name]["volumes"] if isinstance(m, dict)]
    [secrets] = [m for m in mounts if m["target"] == "/run/secrets/shardline"]
    assert secrets["read_only"] is True
    for file in ("CA", "CERT", "KEY"):
        path = SERVICES[name]["environment"][f"SHARDLINE_{file}_FILE"]
        assert path.startswith("/run/secrets/shardline/")


# Variables

EXAMPLE = (ROOT / ".env.example").read_text()


def in_the_example() -> dict[str, str]:
    """Variables that it documents, commented out or not, with their values."""
    return dict(re.findall(r"^#?(SHARDLINE_[A-Z_]+)=(.*)$", EXAMPLE, flags=re.M))


def in_the_compose_file() -> dict[str, set[str]]:
    """Variables that it uses, with their defaults."""
    found: dict[str, set[str]] = {}
    for name, default in VARIABLE.findall(COMPOSE_FILE.read_text()):
        found.setdefault(name, set()).add(default)
    return found


def test_every_variable_is_documented_and_every_documented_one_is_used() -> None:
    used = in_the_compose_file()
    assert len(used) > 15
    assert set(in_the_example()) == set(used)


def test_every_variable_has_a_default() -> None:
    """A required one (`:?`) would stop every service, since Compose reads the whole file."""
    text = re.sub(r"^\s*#.*$", "", COMPOSE_FILE.read_text(), flags=re.M)
    assert len(VARIABLE.findall(text)) == text.count("${")
    assert ":?" not in text


def test_what_is_commented_out_is_the_default() -> None:
    defaults = in_the_compose_file()
    commented = dict(re.findall(r"^#(SHARDLINE_[A-Z_]+)=(.*)$", EXAMPLE, flags=re.M))
    for name, value in commented.items():
        assert value in defaults[name], name
        if name != "SHARDLINE_USERNAME":
            assert len(defaults[name]) == 1, name


def test_no_variable_is_documented_twice() -> None:
    names = re.findall(r"^#?(SHARDLINE_[A-Z_]+)=", EXAMPLE, flags=re.M)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["stage", "planner", "client", "dashboard"])
def test_variables_of_containers_are_settings_of_the_command(name: str) -> None:
    """A name that no option has would be set in vain."""
    settings = (ROOT / "docs" / "settings.md").read_text()
    ours = {key for key in SERVICES[name]["environment"] if key.startswith("SHARDLINE_")}
    assert ours
    assert {key for key in ours if f"`{key}`" not in settings} == set()


def test_the_images_are_of_this_version() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    assert version is not None
    for name, service in SERVICES.items():
        image = "client" if name == "dashboard" else name
        assert f"shardline/{image}:{version[1]}}}" in service["image"]


def test_what_up_starts_of_the_planner_is_its_service() -> None:
    command = SERVICES["planner"]["command"]
    assert command == ["publish", "${SHARDLINE_PLAN:-shards/built/mobilenet_v2}", "--watch"]


def test_the_dashboard_runs_from_the_client_s_image_and_asks_itself_how_it_is() -> None:
    """Everywhere in its container, whose port is published on loopback only."""
    dashboard, client = SERVICES["dashboard"], SERVICES["client"]
    assert dashboard["image"] == client["image"]
    assert dashboard["build"] == client["build"]
    assert dashboard["command"] == ["dashboard", "--bind", "0.0.0.0:8080"]
    assert dashboard["healthcheck"]["test"][:3] == ["CMD", "python3", "-c"]
    compile(dashboard["healthcheck"]["test"][3], "healthcheck", "exec")
    assert "/healthz" in dashboard["healthcheck"]["test"][3]
