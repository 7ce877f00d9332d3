"""The rendered tree: what is in it, who may read it, and that nothing of a person's is replaced."""

import configparser
import os
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

import deploy.compose_file
from contract.errors import EnvironmentMissingError, SettingsError
from deploy.compose_file import COMPOSE_FILE, for_a_machine, read_shipped
from deploy.folders import LIST_FILE
from deploy.inventory import HEALTH_USER, RESERVED_FOLDERS, Broker, Device, Fleet, Security
from deploy.kinds import KINDS
from deploy.rendering import Outcome, render_fleet
from tests.deploy.fleets import (
    FLEET,
    SEPARATE_BROKER,
    WITH_PASSWORDS,
    Peer,
    running_broker,
    who,
    write_fleet,
)

OWNER = (1234, 5678)


def render(folder: Path, text: str = FLEET, **options: Any) -> Outcome:
    return render_fleet(write_fleet(folder, text), None, OWNER, **options)


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def env(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def started(folder: Path) -> set[str]:
    """Services that plain `docker compose up` starts in a folder."""
    profiles = set(env(folder / ".env").get("COMPOSE_PROFILES", "").split(","))
    services = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"]
    return {n for n, s in services.items() if not s.get("profiles") or profiles & {*s["profiles"]}}


SHOWN = {"secrets/ca.crt", "secrets/user.crt", "secrets/user.key"}
DEVICE = {"docker-compose.yml", ".env", "README.txt", *SHOWN}
BROKER = {
    *(f"broker/{name}" for name in ("mosquitto.conf", "acl", "mosquitto_sub", "ca.crt")),
    *(f"broker/{name}" for name in ("broker.crt", "broker.key", "health.crt", "health.key")),
    "broker/revoked.crl",
}
USERS = ("pi-0", "pi-1", "planner", "client-a", "client-b", "observer", "health")
AUTHORITY = ("ca.crt", "ca.key", "broker.crt", "broker.key", "revoked.crl", "issued")
EXPECTED = {
    *("fleet.yaml", ".gitignore", LIST_FILE),
    *(f"pi-0/{name}" for name in DEVICE | BROKER),
    *(f"pi-1/{name}" for name in DEVICE),
    *(f"planner/{name}" for name in DEVICE),
    *(
        f"clients/client-{x}/{name}"
        for x in "ab"
        for name in {*DEVICE, "results/.keep", "pictures/.keep"}
    ),
    *(f"observers/observer/{name}" for name in (DEVICE | {"mosquitto_sub"})),
    *(f"ansible/{name}" for name in ("playbook.yml", "machine.yml", "image.yml", "inventory.ini")),
    *(f"credentials/{user}.{kind}" for user in USERS for kind in ("crt", "key")),
    *(f"authority/{name}" for name in AUTHORITY),
}


def with_passwords() -> set[str]:
    """The same tree of a fleet that has passwords."""
    return (
        {
            name.replace("secrets/user.crt", "secrets/password").replace("revoked.crl", "passwords")
            for name in EXPECTED
            if not name.endswith(("user.key", "health.key", "health.crt"))
            and not name.startswith(("credentials", "authority"))
        }
        | {f"credentials/{user}" for user in USERS}
        | {f"authority/{name}" for name in AUTHORITY}
    )


def test_the_tree_is_what_the_documentation_says(tmp_path: Path) -> None:
    render(tmp_path)
    assert tree(tmp_path) == EXPECTED


def test_with_passwords_only_the_broker_has_a_certificate(tmp_path: Path) -> None:
    render(tmp_path, WITH_PASSWORDS)
    assert tree(tmp_path) == with_passwords()
    text = (tmp_path / "pi-1/docker-compose.yml").read_text()
    assert text.count("SHARDLINE_PASSWORD_FILE: ") == text.count("SHARDLINE_CA_FILE: ") == 4
    assert "SHARDLINE_CERT_FILE" not in text
    lines = (tmp_path / "pi-0/broker/mosquitto.conf").read_text().splitlines()
    assert "password_file /mosquitto/config/passwords" in lines
    assert "require_certificate true" not in lines
    assert (tmp_path / "pi-0/broker/mosquitto_sub").read_text().startswith("-p 8883\n--cafile ")


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        render(tmp_path)
    finally:
        os.umask(mask)
    for path in tmp_path.rglob("*"):
        mode = path.stat().st_mode & 0o777
        if path.is_dir():
            if path.name in ("secrets", "credentials", "broker", "authority"):
                assert mode == 0o700, path
        elif path.parent.name in ("secrets", "credentials", "authority") or (
            path.name in (LIST_FILE, "mosquitto_sub")
            or (path.parent.name == "broker" and path.name != "mosquitto.conf")
        ):
            assert mode == 0o600, path
        elif path.name != "fleet.yaml":
            assert mode == 0o644, path


def test_a_password_is_only_where_it_is_needed(tmp_path: Path) -> None:
    render(tmp_path, WITH_PASSWORDS)
    holders = {
        "pi-0": {"pi-0/secrets/password"},
        "pi-1": {"pi-1/secrets/password"},
        "planner": {"planner/secrets/password"},
        "client-a": {"clients/client-a/secrets/password"},
        "client-b": {"clients/client-b/secrets/password"},
        "observer": {
            "observers/observer/secrets/password",
            "observers/observer/mosquitto_sub",
        },
        "health": {"pi-0/broker/mosquitto_sub"},
    }
    for user, files in holders.items():
        password = (tmp_path / "credentials" / user).read_text().strip()
        found = {name for name in tree(tmp_path) if password in (tmp_path / name).read_text()}
        assert found == files | {f"credentials/{user}"}


def test_a_key_is_only_where_it_is_needed(tmp_path: Path) -> None:
    render(tmp_path)
    holders = {
        "authority/ca.key": set[str](),
        "authority/broker.key": {"pi-0/broker/broker.key"},
        "credentials/health.key": {"pi-0/broker/health.key"},
        "credentials/pi-1.key": {"pi-1/secrets/user.key"},
        "credentials/client-b.key": {"clients/client-b/secrets/user.key"},
        "credentials/observer.key": {"observers/observer/secrets/user.key"},
    }
    for own, files in holders.items():
        key = (tmp_path / own).read_text()
        found = {name for name in tree(tmp_path) if key in (tmp_path / name).read_text()}
        assert found == files | {own}


def test_rendering_again_touches_nothing(tmp_path: Path) -> None:
    first = render(tmp_path)
    assert first.written.unchanged == ()

    def look() -> dict[str, tuple[bytes, int, int]]:
        return {
            name: (
                (tmp_path / name).read_bytes(),
                (tmp_path / name).stat().st_mtime_ns,
                (tmp_path / name).stat().st_ino,
            )
            for name in tree(tmp_path) - {"fleet.yaml"}
        }

    before = look()
    second = render(tmp_path)
    assert look() == before
    assert second.written.written == ()
    assert set(second.written.unchanged) == set(first.written.written)


def test_rendering_again_with_passwords_touches_nothing(tmp_path: Path) -> None:
    first = render(tmp_path, WITH_PASSWORDS)
    second = render(tmp_path, WITH_PASSWORDS)
    assert second.written.written == ()
    assert set(second.written.unchanged) == set(first.written.written)


def test_a_new_device_changes_only_what_concerns_it(tmp_path: Path) -> None:
    render(tmp_path)
    more = "  - {name: pi-2, address: 192.168.1.22, kind: raspberry-pi-5}\nclients:\n"
    outcome = render(tmp_path, FLEET.replace("clients:\n", more))
    assert set(outcome.written.written) == {
        *(f"pi-2/{name}" for name in DEVICE),
        *("pi-0/broker/acl", "ansible/inventory.ini", "planner/README.txt"),
    }


def test_a_new_password_reaches_its_user_and_the_broker(tmp_path: Path) -> None:
    render(tmp_path, WITH_PASSWORDS)
    (tmp_path / "credentials" / "pi-1").unlink()
    outcome = render(tmp_path, WITH_PASSWORDS)
    assert set(outcome.written.written) == {"pi-1/secrets/password", "pi-0/broker/passwords"}


def test_what_is_no_longer_of_the_fleet_is_named_and_left(tmp_path: Path) -> None:
    render(tmp_path)
    outcome = render(tmp_path, FLEET.replace("  - client-b\n", ""))
    assert set(outcome.written.left_over) == {
        n for n in EXPECTED if n.startswith("clients/client-b")
    }
    assert (tmp_path / "clients/client-b/.env").exists()
    assert render(tmp_path).written.left_over == ()


@pytest.mark.parametrize("name", ["pi-1/.env", "pi-0/broker/mosquitto.conf", ".gitignore"])
def test_a_file_that_was_changed_by_hand_is_not_replaced(tmp_path: Path, name: str) -> None:
    render(tmp_path)
    (tmp_path / name).write_text("mine\n")
    (tmp_path / "pi-1" / "README.txt").unlink()
    with pytest.raises(SettingsError, match="changed by hand") as caught:
        render(tmp_path)
    assert name in str(caught.value)
    assert "--force" in str(caught.value)
    assert (tmp_path / name).read_text() == "mine\n"
    assert not (tmp_path / "pi-1" / "README.txt").exists(), "nothing is written half"
    render(tmp_path, force=True)
    assert (tmp_path / name).read_text() != "mine\n"


def test_a_file_that_was_there_before_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "planner").mkdir()
    (tmp_path / "planner" / "README.txt").write_text("mine\n")
    with pytest.raises(SettingsError, match=r"planner/README\.txt"):
        render(tmp_path)
    assert tree(tmp_path) - {"fleet.yaml", "planner/README.txt"} <= {
        n for n in EXPECTED if n.startswith(("credentials/", "authority/"))
    }


def test_a_changed_fleet_replaces_what_was_rendered(tmp_path: Path) -> None:
    render(tmp_path)
    render(tmp_path, FLEET.replace("memory: 200m", "memory: 220m"))
    assert env(tmp_path / "pi-1" / ".env")["SHARDLINE_STAGE_MEMORY"] == "220m"


def test_wrong_modes_are_put_right_and_a_lost_file_comes_back(tmp_path: Path) -> None:
    render(tmp_path)
    (tmp_path / "pi-1/secrets/user.key").chmod(0o644)
    (tmp_path / "pi-1/secrets").chmod(0o755)
    (tmp_path / "pi-1/.env").unlink()
    assert render(tmp_path).written.written == ("pi-1/.env",)
    assert (tmp_path / "pi-1/secrets/user.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "pi-1/secrets").stat().st_mode & 0o777 == 0o700


def test_the_list_of_hashes_is_one_that_sha256sum_reads(tmp_path: Path) -> None:
    render(tmp_path)
    check = ["sha256sum", "--check", "--strict", "--quiet", LIST_FILE]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 0
    (tmp_path / "pi-0/.env").write_text("changed")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    file = write_fleet(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pi-0").write_text("a file where a folder must be")
    with pytest.raises(SettingsError, match="--out"):
        render_fleet(file, tmp_path / "out", OWNER)


def test_another_folder_can_be_named(tmp_path: Path) -> None:
    render_fleet(write_fleet(tmp_path), tmp_path / "a" / "b", OWNER)
    assert tree(tmp_path / "a" / "b") == EXPECTED - {"fleet.yaml"}


def test_each_machine_starts_what_it_shall_and_knows_where_the_broker_is(tmp_path: Path) -> None:
    render(tmp_path)
    assert started(tmp_path / "pi-0") == {"stage", "broker"}
    assert started(tmp_path / "pi-1") == {"stage"}
    assert started(tmp_path / "planner") == started(tmp_path / "clients/client-a") == set()
    assert env(tmp_path / "pi-0/.env") == {
        "SHARDLINE_DEVICE": "pi-0",
        "SHARDLINE_CLUSTER": "home",
        "SHARDLINE_BROKER": "broker:8883",
        "SHARDLINE_STAGE_MEMORY": "640m",
        "COMPOSE_PROFILES": "broker",
        "SHARDLINE_BROKER_PORT": "8883",
        "SHARDLINE_BROKER_MEMORY": "192m",
        "SHARDLINE_UID": "1000",
        "SHARDLINE_GID": "1000",
    }
    assert env(tmp_path / "pi-1/.env") == {
        "SHARDLINE_DEVICE": "pi-1",
        "SHARDLINE_CLUSTER": "home",
        "SHARDLINE_BROKER": "192.168.1.20:8883",
        "SHARDLINE_STAGE_MEMORY": "200m",
        "SHARDLINE_UID": "1001",
        "SHARDLINE_GID": "1002",
    }
    assert env(tmp_path / "clients/client-b/.env") == {
        "SHARDLINE_BROKER": "192.168.1.20:8883",
        "SHARDLINE_CLUSTER": "home",
        "SHARDLINE_USERNAME": "client-b",
        "SHARDLINE_CA_FILE": "secrets/ca.crt",
        "SHARDLINE_CERT_FILE": "secrets/user.crt",
        "SHARDLINE_KEY_FILE": "secrets/user.key",
        "SHARDLINE_UID": "1234",
        "SHARDLINE_GID": "5678",
    }


def test_a_broker_s_own_machine_starts_no_stage(tmp_path: Path) -> None:
    render(tmp_path, SEPARATE_BROKER)
    assert started(tmp_path / "hub") == {"broker"}
    assert tree(tmp_path / "hub") == {"docker-compose.yml", ".env", "README.txt", *BROKER}
    assert started(tmp_path / "pi-0") == {"stage"}
    assert not (tmp_path / "pi-0" / "broker").exists()
    assert env(tmp_path / "hub/.env")["SHARDLINE_BROKER_PORT"] == "1999"
    assert env(tmp_path / "pi-0/.env")["SHARDLINE_BROKER"] == "192.168.1.10:1999"


def test_the_compose_file_of_a_device_is_the_shipped_one_less_the_builds(tmp_path: Path) -> None:
    render(tmp_path)
    shipped = yaml.safe_load(read_shipped(COMPOSE_FILE))
    rendered = yaml.safe_load((tmp_path / "pi-1/docker-compose.yml").read_text())
    for service in shipped["services"].values():
        assert service.pop("build")
    assert rendered == shipped
    del shipped["services"]["stage"], shipped["volumes"]["cache"]
    assert yaml.safe_load((tmp_path / "planner/docker-compose.yml").read_text()) == shipped


def test_a_compose_file_without_an_expected_block_is_told() -> None:
    with pytest.raises(ValueError, match=r"services\.stage"):
        for_a_machine("services:\n  other:\n    image: x\n", Security.CERTIFICATES, stage=True)


def test_an_installation_without_the_compose_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.compose_file.deploy, "__file__", str(tmp_path / "a" / "__init__.py"))
    with pytest.raises(EnvironmentMissingError, match=COMPOSE_FILE):
        render(tmp_path)


def test_every_readme_names_its_commands(tmp_path: Path) -> None:
    render(tmp_path)
    for folder, words in {
        "pi-0": ["pi@192.168.1.20", "docker compose up -d", "uid 1000", "shardline-broker.tar"],
        "pi-1": ["maker@192.168.1.21", "tar -C pi-1 -cf -", "uid 1001", "shardline-stage.tar"],
        "planner": ["publish shards/built/mobilenet_v2", "--stages 2"],
        "clients/client-a": ["run --rm client infer /pictures"],
        "observers/observer": [
            "mosquitto_sub -v -t 'shardline/home/metrics/#'",
            "docker compose up -d dashboard",
        ],
    }.items():
        text = (tmp_path / folder / "README.txt").read_text()
        assert [word for word in words if word not in text] == []
        assert "shardline-broker.tar" in text or folder != "pi-0"
    assert "shardline-broker.tar" not in (tmp_path / "pi-1/README.txt").read_text()


def test_the_copy_command_keeps_modes(tmp_path: Path) -> None:
    """The line of README.txt, with ssh replaced by a shell here."""
    render(tmp_path)
    text = (tmp_path / "pi-0/README.txt").read_text()
    (line,) = [line.strip() for line in text.splitlines() if line.strip().startswith("tar -C")]
    home = tmp_path / "home"
    home.mkdir()
    line = line.replace("ssh pi@192.168.1.20", f"env -C {home} sh -c")
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    assert tree(home / "shardline") == tree(tmp_path / "pi-0")
    assert (home / "shardline/secrets").stat().st_mode & 0o777 == 0o700
    assert (home / "shardline/broker/broker.key").stat().st_mode & 0o777 == 0o600


def test_the_inventory_of_ansible_names_the_broker_s_machine_first(tmp_path: Path) -> None:
    render(tmp_path)
    parser = configparser.ConfigParser(allow_no_value=True, delimiters=("\0",))
    parser.read(tmp_path / "ansible/inventory.ini")
    assert [(s, list(parser[s])) for s in parser.sections()] == [
        ("broker", ["pi-0 ansible_host=192.168.1.20 ansible_user=pi"]),
        ("devices", ["pi-1 ansible_host=192.168.1.21 ansible_user=maker"]),
    ]
    for name in ("playbook.yml", "machine.yml", "image.yml"):
        assert yaml.safe_load((tmp_path / "ansible" / name).read_text())


def test_a_restart_of_the_broker_keeps_what_is_retained(tmp_path: Path) -> None:
    """What a fleet needs of it: the plan survives, as does who is there."""
    (tmp_path / "fleet").mkdir()
    render(tmp_path / "fleet")
    planner_is = who(tmp_path / "fleet", "planner")
    state = tmp_path / "state"
    with running_broker(tmp_path / "fleet/pi-0/broker", state) as port:
        planner = Peer(port, planner_is)
        planner._client.publish("shardline/home/plan", b"the plan", qos=1, retain=True)
        planner.publish(["shardline/home/event/planner"])
        planner.close()
    with running_broker(tmp_path / "fleet/pi-0/broker", state) as port:
        planner = Peer(port, planner_is)
        planner.subscribe("shardline/home/plan")
        planner.wait_for("shardline/home/plan", b"the plan")
        planner.close()


def test_paths_in_the_rendered_folders_stay_below_them(tmp_path: Path) -> None:
    outcome = render(tmp_path)
    for name in outcome.written.written:
        assert not PurePosixPath(name).is_absolute()
        assert ".." not in PurePosixPath(name).parts


def test_the_documentation_has_every_kind_field_and_folder() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "deploy.md").read_text()
    for kind, facts in KINDS.items():
        row = f"| `{kind}` | `{facts.machine}` | {facts.stage_memory} | {facts.broker_memory} |"
        assert row in text
    for name in Device.model_fields:
        assert f"devices[].{name}`" in text
    for name in Broker.model_fields:
        assert f"`broker.{name}`" in text
    for name in Fleet.model_fields.keys() - {"broker", "devices"}:
        assert f"| `{name}` |" in text
    for name in (*RESERVED_FOLDERS, HEALTH_USER):
        assert f"`{name}`" in text
