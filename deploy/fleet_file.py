"""Reads `fleet.yaml`. The rules are in deploy/inventory.py, the YAML in deploy/yaml_document.py."""

from pathlib import Path

from deploy.inventory import Fleet
from deploy.yaml_document import Document, parse_document, read_text

PAGE = "docs/deploy.md"


def load_fleet(path: Path) -> Fleet:
    """The fleet that a file describes.

    Raises:
        SettingsError: the file cannot be read, is no YAML, or describes no fleet.
    """
    text = read_text(path, "write one with `shardline deploy init`, or name another with --fleet")
    return parse_fleet(text, str(path))


def parse_fleet(text: str, where: str) -> Fleet:
    """The fleet that ``text`` describes; ``where`` is what errors call it.

    Raises:
        SettingsError: not YAML, or not a fleet.
    """
    return fleet_document(text, where).read_as(Fleet)


def fleet_document(text: str, where: str) -> Document:
    """The fields of ``text``, not yet looked at.

    Raises:
        SettingsError: not YAML, or no fields.
    """
    return parse_document(
        text, where, PAGE, f"see {PAGE}, or write one with `shardline deploy init`"
    )
