"""`shardline deploy init` and `render`: files, tables, JSON, errors; never a password."""

import json
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from contract.errors import ExitCode
from deploy.fleet_file import load_fleet
from deploy.rendering import render_fleet
from tests.conftest import Done, Run
from tests.deploy.fleets import FLEET, WITH_PASSWORDS, write_fleet

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def run(run: Run) -> Run:
    return partial(run, "deploy")


def refused(done: Done, *words: str) -> None:
    assert done.code == ExitCode.SETTINGS, done
    assert "Traceback" not in done.err
    assert [word for word in words if word not in done.err] == [], done.err


DEVICES = ("--device", "pi-0=10.0.0.1", "--device", "pi-1=10.0.0.2")


def test_init_then_render_makes_a_fleet(run: Run, tmp_path: Path) -> None:
    done = run("init", *DEVICES, "--kind", "raspberry-pi-5", "--cluster", "barn")
    assert done.code == 0, done
    assert "shardline deploy render" in done.out
    fleet = load_fleet(tmp_path / "fleet/fleet.yaml")
    assert [(d.name, d.address, str(d.kind)) for d in fleet.devices] == [
        ("pi-0", "10.0.0.1", "raspberry-pi-5"),
        ("pi-1", "10.0.0.2", "raspberry-pi-5"),
    ]
    assert (fleet.cluster, fleet.broker.host) == ("barn", "pi-0")
    done = run("render")
    assert done.code == 0, done
    for word in ("pi@10.0.0.2", "stage, broker", "clients/client", "ansible-playbook", "written"):
        assert word in done.out
    assert (tmp_path / "fleet/pi-1/docker-compose.yml").exists()
    assert "0 files written" in run("render").out


def test_init_by_number_asks_for_addresses(run: Run, tmp_path: Path) -> None:
    done = run("init", "--devices", 3, "--fleet", "f.yaml")
    assert done.code == 0, done
    assert "change-me" in done.out
    assert "--fleet f.yaml" in done.out
    refused(run("render", "--fleet", "f.yaml"), "devices.0.address", "change-me", "line")
    text = (tmp_path / "f.yaml").read_text()
    (tmp_path / "f.yaml").write_text(text.replace("change-me", "10.0.0.7"))
    assert run("render", "--fleet", "f.yaml", "--out", "o").code == 0
    assert (tmp_path / "o/pi-2/.env").exists()


@pytest.mark.parametrize(
    ("value", "host", "address"), [("pi-1", "pi-1", None), ("hub=10.0.0.9", "hub", "10.0.0.9")]
)
def test_the_broker_s_host_can_be_named(
    run: Run, tmp_path: Path, value: str, host: str, address: str | None
) -> None:
    assert run("init", *DEVICES, "--broker-host", value).code == 0
    broker = load_fleet(tmp_path / "fleet/fleet.yaml").broker
    assert (broker.host, broker.address) == (host, address)


def test_init_does_not_overwrite(run: Run, tmp_path: Path) -> None:
    run("init", *DEVICES)
    (tmp_path / "fleet/fleet.yaml").write_text("mine")
    refused(run("init", *DEVICES), "fleet/fleet.yaml", "left as it is", "--fleet")
    assert (tmp_path / "fleet/fleet.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["init"], ["--devices N", "--device NAME=ADDRESS"]),
        (["init", "--devices", "2", *DEVICES], ["either"]),
        (["init", "--devices", "0"], ["--devices"]),
        (["init", "--device", "pi-0"], ["pi-0=192.168.1.20"]),
        (["init", *DEVICES, "--broker-host", "hub"], ["--broker-host", "NAME=ADDRESS"]),
        (["init", *DEVICES, "--kind", "pi"], ["raspberry-pi-zero-2-w"]),
        (["init", *DEVICES, "--security", "none"], ["--security", "certificates, passwords"]),
        (["init", *DEVICES, "--device", "pi-0=10.0.0.3"], ["'pi-0' is taken"]),
        (["init", "--device", "planner=10.0.0.3"], ["planner"]),
        (["init", "--device", "pi 0=10.0.0.3"], ["letters, digits"]),
        (["init", "--device", 'a"\nb=10.0.0.3'], ["letters, digits"]),
        (["render"], ["fleet/fleet.yaml", "deploy init"]),
        (["renew"], ["fleet/fleet.yaml", "deploy init"]),
        (["revoke", "pi-0"], ["fleet/fleet.yaml", "deploy init"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_what_cannot_be_done_is_told_and_nothing_is_written(
    run: Run, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    refused(run(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_json_is_json_with_every_folder(run: Run, tmp_path: Path) -> None:
    write_fleet(tmp_path)
    document = json.loads(run("render", "--fleet", "fleet.yaml", "--json").out)
    assert document["cluster"] == "home"
    assert {row["folder"]: row["runs"] for row in document["folders"]} == {
        "pi-0": ["stage", "broker"],
        "pi-1": ["stage"],
        "planner": ["planner"],
        "clients/client-a": ["client"],
        "clients/client-b": ["client"],
        "observers/observer": ["mosquitto_sub"],
    }
    assert "pi-0/.env" in document["written"]
    for row in document["folders"]:
        assert (tmp_path / row["folder"]).is_dir()


@pytest.mark.parametrize("text", [FLEET, WITH_PASSWORDS], ids=["certificates", "passwords"])
def test_a_secret_is_never_shown(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    caplog.set_level(logging.DEBUG)
    write_fleet(tmp_path, text)
    shown = ""
    for arguments in (["--json"], [], ["--force"], ["--json", "--force"]):
        done = run("render", "--fleet", "fleet.yaml", *arguments)
        shown += done.out + done.err
    for name in ("mosquitto_sub", "passwords", "broker.key"):
        if (tmp_path / "pi-0/broker" / name).exists():
            (tmp_path / "pi-0/broker" / name).write_text("changed")
    refusal = run("render", "--fleet", "fleet.yaml")
    assert refusal.code == ExitCode.SETTINGS
    shown += refusal.out + refusal.err + caplog.text
    if text == FLEET:
        (tmp_path / "authority/ca.key").write_text("no key: Zm9v")
        (tmp_path / "credentials/pi-0.crt").unlink()
        refusal = run("render", "--fleet", "fleet.yaml")
        assert refusal.code == ExitCode.SETTINGS
        shown += refusal.out + refusal.err + caplog.text
        shown += run("revoke", "pi-1", "--fleet", "fleet.yaml").err
    secrets = [
        line
        for file in (*tmp_path.glob("credentials/*"), *tmp_path.glob("authority/*.key"))
        for line in file.read_text().splitlines()
        if not line.startswith("-----")
    ]
    assert len(secrets) >= 7
    assert [secret for secret in secrets if secret in shown] == []
    assert "$7$" not in shown
    assert "PRIVATE KEY" not in shown


@pytest.mark.parametrize("text", [FLEET, WITH_PASSWORDS], ids=["certificates", "passwords"])
def test_a_secret_is_in_no_repr_of_what_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("deploy.rendering.render", lambda inputs: seen.append(inputs) or {})
    outcome = render_fleet(write_fleet(tmp_path, text), None, (1, 1))
    (inputs,) = seen
    certificates = inputs.certificates
    keys = [made.key for made in (certificates.broker, *certificates.users.values())]
    assert len(keys) + len(inputs.passwords) == 8
    said = repr(inputs) + repr(outcome) + repr(certificates)
    assert "PRIVATE KEY" not in said
    assert not any(password in said for password in inputs.passwords.values())


@pytest.mark.parametrize(("uid", "runs_as"), [(0, 1000), (1234, 1234)])
def test_containers_of_this_machine_run_as_who_renders_but_never_as_root(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, runs_as: int
) -> None:
    monkeypatch.setattr("os.getuid", lambda: uid)
    monkeypatch.setattr("os.getgid", lambda: uid)
    run("init", *DEVICES)
    done = run("render")
    for folder in ("planner", "clients/client"):
        text = (tmp_path / "fleet" / folder / ".env").read_text()
        assert f"SHARDLINE_UID={runs_as}\nSHARDLINE_GID={runs_as}\n" in text
    assert ("chown -R 1000:1000 fleet" in done.err) == (uid == 0)


def commands() -> dict[str, Any]:
    from shardline.app import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands["deploy"].commands)


TWO_MEANINGS = {
    ("init", "--device"): "FLEET_DEVICES",
    ("init", "--devices"): "FLEET_SIZE",
    ("render", "--out"): "FLEET_OUT",
    ("check", "--broker"): "FLEET_BROKER",
    ("check", "--username"): "FLEET_USERNAME",
    ("check", "--password-file"): "FLEET_PASSWORD_FILE",
    ("check", "--ca-file"): "FLEET_CA_FILE",
    ("check", "--cert-file"): "FLEET_CERT_FILE",
    ("check", "--key-file"): "FLEET_KEY_FILE",
    ("renew", "--out"): "FLEET_OUT",
    ("revoke", "--out"): "FLEET_OUT",
}
"""Where a flag or its variable means another thing in other commands."""


COMMANDS = ("init", "render", "check", "renew", "revoke")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_a_variable_and_a_row_in_the_settings(name: str) -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    for option in commands()[name].params:
        flag = next((text for text in option.opts if text.startswith("--")), "--help")
        if flag == "--help":  # or an argument
            continue
        expected = TWO_MEANINGS.get((name, flag), flag.removeprefix("--").replace("-", "_").upper())
        assert option.help
        assert option.envvar == f"SHARDLINE_{expected}"
        row = rf"\| `{flag}`[^|]*\| `{option.envvar}` \|[^|]*\|[^|]*\bdeploy {name}\b"
        assert re.search(row, text), f"{flag} of deploy {name} has no row"


def test_help_is_given(run: Run) -> None:
    assert set(COMMANDS) == set(commands())
    for name in COMMANDS:
        assert "--fleet" in run(name, "--help").out


def test_a_fleet_of_the_tests_is_one(tmp_path: Path) -> None:
    assert load_fleet(write_fleet(tmp_path, FLEET)).cluster == "home"


def test_renew_and_revoke_say_what_to_do_next(run: Run, tmp_path: Path) -> None:
    run("init", *DEVICES)
    run("render")
    done = run("renew")
    assert (done.code, done.out.strip()) == (0, "no certificate ends within 60 days")
    done = run("renew", "pi-1", "broker")
    assert done.code == 0, done
    assert "pi-1: a new certificate, until 20" in done.out
    assert "broker: a new certificate, until 20" in done.out
    assert "shardline deploy render" in done.out
    everybody = json.loads(run("renew", "--within", 9999, "--json").out)["renewed"]
    assert set(everybody) == {
        *("broker", "pi-0", "pi-1", "planner", "client", "observer", "health"),
    }
    done = run("revoke", "pi-1")
    assert done.code == 0, done
    assert "pi-1: 3 certificates are revoked" in done.out
    assert "remove it from fleet/fleet.yaml" in done.out
    assert "copy pi-0's folder" in done.out
    assert not (tmp_path / "fleet/credentials/pi-1.key").exists()
    again = run("render")
    assert again.code == 0
    assert "0 files written" not in again.out
    refused(run("revoke", "pi-9"), "'pi-9'", "pi-0")
    refused(run("renew", "pi-9"), "'pi-9'", "broker")
    assert json.loads(run("revoke", "client", "--json").out) == {"user": "client", "revoked": 2}


def test_without_the_library_it_is_told_in_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init", *DEVICES)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for arguments in (["render"], ["renew"], ["revoke", "pi-0"], ["check"]):
        done = run(*arguments)
        assert done.code == ExitCode.ENVIRONMENT
        assert "cryptography is not installed" in done.err
