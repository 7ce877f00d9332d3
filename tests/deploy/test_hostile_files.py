"""A device file cannot bring more than its words: nothing of it is too large, or goes elsewhere."""

from pathlib import Path

import pytest

from contract.errors import SettingsError
from deploy.fleet_file import load_fleet, parse_fleet
from deploy.yaml_document import MAX_FILE_BYTES
from tests.deploy.fleets import FLEET


@pytest.mark.parametrize(
    "zone", ["%eth0", "%$(reboot)", "%\\nuser admin\\ntopic readwrite #", "%'; reboot; '"]
)
def test_an_address_with_a_zone_is_refused(zone: str) -> None:
    """Python takes any text for a zone, and an address goes into commands that people copy."""
    text = FLEET.replace("address: 192.168.1.21", f'address: "fe80::1{zone}"')
    assert text != FLEET
    with pytest.raises(SettingsError, match="is no address"):
        parse_fleet(text, "fleet.yaml")


def test_a_number_without_end_is_refused() -> None:
    text = FLEET.replace("uid: 1001", "uid: 0x" + "f" * 5000)
    assert text != FLEET
    with pytest.raises(SettingsError, match=r"fleet\.yaml"):
        parse_fleet(text, "fleet.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x]\nb: [*a, *a]\n",
        "devices: " + "[" * 5000,
        "!!python/object/apply:os.system [id]\n",
        "a: !!python/name:os.system\n",
        "? [a]\n: b\n",
    ],
    ids=["an alias", "deep", "a call", "a name", "a key that is a list"],
)
def test_yaml_that_does_more_than_say_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        parse_fleet(text, "fleet.yaml")


def test_a_file_that_is_too_large_to_be_meant_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET + "#" * MAX_FILE_BYTES)
    with pytest.raises(SettingsError, match="more than 1,048,576 bytes"):
        load_fleet(file)
