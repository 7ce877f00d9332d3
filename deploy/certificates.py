"""X.509 for one fleet: a CA, what it signs for the broker and the users, and what it revoked.

Pure: texts in PEM and instants in, texts in PEM out; files are deploy/authority.py's. The profile
is RFC 5280's, keys are ECDSA on P-256: a handshake costs a Pi little, and TLS since 1.2 knows them.

Nothing begins later than 1970. A Pi that boots has no clock until the network sets it, and the
beginning of a certificate protects nobody; its end does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOT_BEFORE = datetime(1970, 1, 1, tzinfo=UTC)
CA_VALIDITY = timedelta(days=3653)
VALIDITY = timedelta(days=731)
"""Of the broker's and the users' certificates: some two years."""
CA_NAME = "shardline CA"


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate and its private key, both in PEM. The key never shows in a repr."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that can sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def new_authority(cluster: str, now: datetime) -> Credential:
    """A CA of its own for a cluster, good for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, CA_NAME),
        ]
    )
    subject_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), now + CA_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(subject_id, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Credential(_pem(certificate), _pem_of_key(key))


def authority(credential: Credential) -> Authority:
    """The CA that a credential is of.

    Raises:
        ValueError: the texts are no certificate and no key of this kind, or of two CAs.
    """
    certificate = x509.load_pem_x509_certificate(credential.certificate.encode())
    key = serialization.load_pem_private_key(credential.key.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is none on an elliptic curve")
    if key.public_key() != certificate.public_key():
        raise ValueError("the key is another certificate's")
    return Authority(certificate, key)


def issue_to_user(ca: Authority, user: str, now: datetime) -> Credential:
    """A certificate that shows a broker who connects: its common name is the user name."""
    return _issue(ca, user, now, ExtendedKeyUsageOID.CLIENT_AUTH, None)


def issue_to_broker(ca: Authority, addresses: Sequence[str], now: datetime) -> Credential:
    """A certificate for a broker that is reached under these DNS names and IP addresses."""
    names = x509.SubjectAlternativeName([_general_name(text) for text in addresses])
    return _issue(ca, "broker", now, ExtendedKeyUsageOID.SERVER_AUTH, names)


def _issue(
    ca: Authority,
    common_name: str,
    now: datetime,
    purpose: x509.ObjectIdentifier,
    names: x509.SubjectAlternativeName | None,
) -> Credential:
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + VALIDITY, ca.certificate.not_valid_after_utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        _builder(subject, ca.certificate.subject, key.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_authority_id(ca), critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return Credential(_pem(builder.sign(ca.key, hashes.SHA256())), _pem_of_key(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(until)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_id(ca: Authority) -> x509.AuthorityKeyIdentifier:
    subject_id = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_id.value)


def revocation_list(ca: Authority, serials: Iterable[int], number: int, now: datetime) -> str:
    """The list of revoked certificates in PEM; each list of a CA has a larger ``number``.

    A broker refuses everybody once its list is out of date, or while its clock says that the list
    is still to come: so it ends with the CA, and is dated to second ``number`` of 1970. OpenSSL
    prefers the list of the later date where a broker has read two.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(NOT_BEFORE + timedelta(seconds=number))
        .next_update(ca.certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_authority_id(ca), critical=False)
    )
    for serial in sorted(set(serials)):
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(revoked.build())
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def read_certificate(text: str) -> x509.Certificate:
    """A certificate from PEM.

    Raises:
        ValueError: it is none.
    """
    return x509.load_pem_x509_certificate(text.encode())


def read_revocation_list(text: str) -> tuple[frozenset[int], int]:
    """The serial numbers of a list of revoked certificates, and the list's own number.

    Raises:
        ValueError: it is none.
    """
    crl = x509.load_pem_x509_crl(text.encode())
    number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    return frozenset(revoked.serial_number for revoked in crl), number


def is_list_of(text: str, ca: x509.Certificate) -> bool:
    """Whether a list of revoked certificates is this CA's."""
    try:
        key = ca.public_key()
        crl = x509.load_pem_x509_crl(text.encode())
        return isinstance(key, ec.EllipticCurvePublicKey) and crl.is_signature_valid(key)
    except ValueError:
        return False


def is_signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether this CA signed the certificate."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def fits(key: str, certificate: x509.Certificate) -> bool:
    """Whether a private key in PEM is that of the certificate."""
    try:
        private = serialization.load_pem_private_key(key.encode(), password=None)
    except (ValueError, TypeError):
        return False
    return private.public_key() == certificate.public_key()


def addresses_of(certificate: x509.Certificate) -> frozenset[str]:
    """DNS names and IP addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(
        [
            *names.get_values_for_type(x509.DNSName),
            *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
        ]
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
