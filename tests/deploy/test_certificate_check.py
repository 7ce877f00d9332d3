"""`deploy check` on certificates: each thing that can be wrong is found and has a remedy."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy import certificates
from deploy.authority import open_store
from deploy.certificate_check import check_certificates
from deploy.check import Finding, Verdict
from deploy.fleet_file import load_fleet
from deploy.rendering import render_fleet
from tests.deploy.fleets import FLEET, WITH_PASSWORDS, write_fleet

NOW = datetime.now(UTC)
ALL = ("CA", "broker", "pi-0", "pi-1", "planner", "client-a", "client-b", "observer", "health")


def rendered(folder: Path, text: str = FLEET) -> Path:
    render_fleet(write_fleet(folder, text), None, (1000, 1000), now=NOW)
    return folder


def check(folder: Path, now: datetime = NOW) -> list[Finding]:
    return check_certificates(load_fleet(folder / "fleet.yaml"), folder, now)


def not_well(findings: list[Finding]) -> dict[str, Verdict]:
    for finding in findings:
        assert bool(finding.remedy) == (finding.verdict is not Verdict.OK), finding
    return {f.device: f.verdict for f in findings if f.verdict is not Verdict.OK}


def test_a_fresh_fleet_has_nothing_wrong_and_all_were_looked_at(tmp_path: Path) -> None:
    findings = check(rendered(tmp_path))
    assert [finding.device for finding in findings] == list(ALL)
    assert not_well(findings) == {}
    assert "until " in findings[0].detail


def test_with_passwords_only_the_ca_and_the_broker_are_looked_at(tmp_path: Path) -> None:
    findings = check(rendered(tmp_path, WITH_PASSWORDS))
    assert [finding.device for finding in findings] == ["CA", "broker"]
    assert not_well(findings) == {}


def other_ca(folder: Path) -> None:
    ca = certificates.authority(certificates.new_authority("other", NOW))
    made = certificates.issue_to_user(ca, "pi-1", NOW)
    (folder / "credentials/pi-1.crt").write_text(made.certificate)
    (folder / "credentials/pi-1.key").write_text(made.key)


def revoke(folder: Path) -> None:
    with open_store(folder, load_fleet(folder / "fleet.yaml"), NOW) as opened:
        kept = [(f, f.read_text()) for f in folder.glob("credentials/pi-1.*")]
        opened.revoke("pi-1")
    for file, text in kept:
        file.write_text(text)
        file.chmod(0o600)


def renew(folder: Path) -> None:
    with open_store(folder, load_fleet(folder / "fleet.yaml"), NOW) as opened:
        opened.renew(("pi-1",), timedelta())


def another_s_key(folder: Path) -> None:
    (folder / "credentials/pi-1.key").write_text((folder / "credentials/pi-0.key").read_text())


PROBLEM, WARNING = Verdict.PROBLEM, Verdict.WARNING
WRONG: list[tuple[Callable[[Path], object], Verdict, str]] = [
    (lambda folder: (folder / "credentials/pi-1.crt").unlink(), PROBLEM, "is not there"),
    (lambda folder: (folder / "credentials/pi-1.key").chmod(0o640), PROBLEM, "others can read"),
    (other_ca, PROBLEM, "of another CA"),
    (another_s_key, PROBLEM, "is not its key"),
    (revoke, PROBLEM, "is revoked"),
    (renew, WARNING, "is another one"),
]


@pytest.mark.parametrize(("damage", "verdict", "words"), WRONG, ids=[case[2] for case in WRONG])
def test_each_thing_wrong_is_found_and_nothing_else(
    tmp_path: Path, damage: Callable[[Path], object], verdict: Verdict, words: str
) -> None:
    rendered(tmp_path)
    damage(tmp_path)
    findings = check(tmp_path)
    assert not_well(findings) == {"pi-1": verdict}
    [finding] = [finding for finding in findings if finding.device == "pi-1"]
    assert words in finding.detail


def test_what_ends_soon_is_a_warning_and_what_has_ended_a_problem(tmp_path: Path) -> None:
    rendered(tmp_path)
    end = NOW + certificates.VALIDITY
    others = set(ALL) - {"CA"}
    assert not_well(check(tmp_path, end - timedelta(days=61))) == {}
    assert not_well(check(tmp_path, end - timedelta(days=59))) == dict.fromkeys(others, WARNING)
    late = check(tmp_path, end + timedelta(days=1))
    assert not_well(late) == dict.fromkeys(others, PROBLEM)
    assert all("deploy renew" in finding.remedy for finding in late[1:])


def test_a_ca_that_ends_within_a_year_is_a_warning(tmp_path: Path) -> None:
    rendered(tmp_path)
    end = NOW + certificates.CA_VALIDITY
    assert not_well(check(tmp_path, end - timedelta(days=360)))["CA"] is WARNING
    assert not_well(check(tmp_path, end + timedelta(days=1)))["CA"] is PROBLEM


def test_a_ca_s_key_that_others_can_read_is_a_problem(tmp_path: Path) -> None:
    (rendered(tmp_path) / "authority/ca.key").chmod(0o644)
    assert not_well(check(tmp_path)) == {"CA": PROBLEM}


def test_another_address_of_the_broker_is_found(tmp_path: Path) -> None:
    rendered(tmp_path)
    write_fleet(tmp_path, FLEET.replace("192.168.1.20", "192.168.1.99"))
    assert not_well(check(tmp_path)) == {"broker": PROBLEM}


def test_where_nothing_was_rendered_there_is_one_warning(tmp_path: Path) -> None:
    write_fleet(tmp_path)
    assert not_well(check(tmp_path)) == {"CA": WARNING}
