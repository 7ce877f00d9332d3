"""A CA of a test's own: certificates of every kind, also wrong ones, and brokers that use them."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from broker.embedded import EmbeddedBroker
from broker.mosquitto_conf import ListenerTls
from broker.transport import BrokerAddress, TlsFiles
from deploy import certificates
from deploy.certificates import Credential

LOOPBACK = ("127.0.0.1", "localhost")
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
"""A certificate that was made then has expired."""


class TestAuthority:
    """A CA in a folder, and what it signed."""

    __test__ = False  # no test, whatever its name begins with

    def __init__(self, folder: Path, now: datetime | None = None) -> None:
        self.folder, self.now = folder, now or datetime.now(UTC)
        folder.mkdir(parents=True, exist_ok=True)
        self.own = certificates.new_authority("test", self.now)
        self._revoked: list[int] = []
        self._number = 0
        self.ca_file = self.write("ca.crt", self.own.certificate)
        self.write_list()

    @property
    def signer(self) -> certificates.Authority:
        return certificates.authority(self.own)

    def write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.write_text(text)
        return file

    def write_list(self) -> None:
        self._number += 1
        text = certificates.revocation_list(self.signer, self._revoked, self._number, self.now)
        self.write("revoked.crl", text)

    def files(self, name: str, credential: Credential) -> TlsFiles:
        return TlsFiles(
            self.ca_file,
            self.write(f"{name}.crt", credential.certificate),
            self.write(f"{name}.key", credential.key),
        )

    def user(self, name: str, now: datetime | None = None) -> TlsFiles:
        """Files of a user's certificate, by default a good one."""
        made = certificates.issue_to_user(self.signer, name, now or self.now)
        return self.files(name, made)

    def revoke(self, files: TlsFiles) -> None:
        assert files.cert_file is not None
        found = certificates.read_certificate(files.cert_file.read_text())
        self._revoked.append(found.serial_number)
        self.write_list()

    def listener(
        self,
        names: Iterable[str] = LOOPBACK,
        now: datetime | None = None,
        client_certificates: bool = True,
    ) -> ListenerTls:
        """What a broker needs; its certificate is for these names, and made at ``now``."""
        made = certificates.issue_to_broker(self.signer, tuple(names), now or self.now)
        files = self.files("broker", made)
        return ListenerTls(
            ca_file=str(self.ca_file),
            cert_file=str(files.cert_file),
            key_file=str(files.key_file),
            crl_file=str(self.folder / "revoked.crl"),
            client_certificates=client_certificates,
        )


def at(running: EmbeddedBroker, tls: TlsFiles | None) -> BrokerAddress:
    return BrokerAddress("127.0.0.1", running.port, tls=tls)
