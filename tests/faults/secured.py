"""A broker as `shardline deploy` makes it: mutual TLS, one certificate a name, an access list."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker.mosquitto_conf import ListenerTls
from broker.transport import TlsFiles
from deploy.acl import Rights, client_rights, device_rights, observer_rights, planner_rights
from deploy.certificates import (
    Authority,
    Credential,
    authority,
    issue_to_broker,
    issue_to_user,
    new_authority,
    revocation_list,
)

LONG_AGO = timedelta(days=3 * 365)
ROGUE = "pi-9"
"""A device of the fleet, with a certificate and rights, that does what it should not."""


class Credentials:
    """A CA, and what it gives to the broker and to every name."""

    def __init__(self, folder: Path, cluster: str) -> None:
        self._folder = folder
        folder.mkdir()
        self._now = datetime.now(UTC)
        self._cluster = cluster
        self._ca = self._authority("ca")
        self._write("revoked.crl", revocation_list(self._ca, (), 1, self._now))
        self._keep("broker", issue_to_broker(self._ca, ("127.0.0.1", "localhost"), self._now))

    def listener(self) -> ListenerTls:
        """The broker's files."""
        return ListenerTls(
            ca_file=str(self._folder / "ca.crt"),
            cert_file=str(self._folder / "broker.crt"),
            key_file=str(self._folder / "broker.key"),
            crl_file=str(self._folder / "revoked.crl"),
        )

    def of(self, user: str) -> TlsFiles:
        """A user's own."""
        if not (self._folder / f"{user}.crt").exists():
            self._keep(user, issue_to_user(self._ca, user, self._now))
        return self._files(user)

    def without(self) -> TlsFiles:
        """The CA alone: whoever knows the fleet's broker, and is nobody in it."""
        return TlsFiles(self._folder / "ca.crt")

    def expired(self, user: str) -> TlsFiles:
        """Good until a year ago."""
        self._keep("expired", issue_to_user(self._ca, user, self._now - LONG_AGO))
        return self._files("expired")

    def self_signed(self) -> TlsFiles:
        """Vouched for by nobody but itself."""
        self._keep("self-signed", new_authority(self._cluster, self._now))
        return self._files("self-signed")

    def of_another_authority(self, user: str) -> TlsFiles:
        """The right name, by somebody else's CA of the same name."""
        self._keep("foreign", issue_to_user(self._authority("other"), user, self._now))
        return self._files("foreign")

    def _authority(self, name: str) -> Authority:
        credential = new_authority(self._cluster, self._now)
        self._keep(name, credential)
        return authority(credential)

    def _files(self, name: str) -> TlsFiles:
        return TlsFiles(
            self._folder / "ca.crt", self._folder / f"{name}.crt", self._folder / f"{name}.key"
        )

    def _keep(self, name: str, credential: Credential) -> None:
        self._write(f"{name}.crt", credential.certificate)
        self._write(f"{name}.key", credential.key)

    def _write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)


def access_list(cluster: str, devices: list[str], client: str) -> str:
    """The access list of `shardline deploy` for these devices, a planner, a client, an observer."""
    users: dict[str, Rights] = {
        **{device: device_rights(cluster, device) for device in (*devices, ROGUE)},
        "planner": planner_rights(cluster, "planner"),
        client: client_rights(cluster, client),
        "observer": observer_rights(cluster),
    }
    return "\n\n".join(
        "\n".join(
            (
                f"user {user}",
                *(f"topic write {topic}" for topic in rights.write),
                *(f"topic read {topic}" for topic in rights.read),
            )
        )
        for user, rights in users.items()
    )
