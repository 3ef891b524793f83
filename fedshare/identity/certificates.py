"""Certificates in PEM: read, checked and signed.

A certificate says which client its holder is, as the URI `fedshare:client:3` (RFC 5280, section 4.2.1.6): a server asks
the connection and need not believe a message. A peer's certificate also names its signing key, as the URI
`fedshare:ed25519:HEX`, and the host `peer-3.fedshare`: whoever dials peer 3, at any address, verifies that name.
"""

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedshare.errors import UserError
from fedshare.identity.pem import PublicKey, private_key, read

CLOCK_SKEW = timedelta(minutes=5)
RENEWAL = timedelta(days=30)  # a certificate with less left is to be renewed

_CLIENT = re.compile("fedshare:client:(0|[1-9][0-9]{0,8})")
_SIGNING = re.compile("fedshare:ed25519:([0-9a-f]{64})")
_PURPOSES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}
_USES = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
_USES += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
_Signer = tuple[x509.Name, ec.EllipticCurvePrivateKey]
_Subject = tuple[x509.Name, PublicKey]


def authority(signer: _Signer, until: datetime) -> x509.Certificate:
    """An authority's certificate: signed by itself, and able to sign participants only."""
    limits = x509.BasicConstraints(ca=True, path_length=0), _usage("key_cert_sign")
    return signed(signer, (signer[0], signer[1].public_key()), until, *limits)


def participant(
    signer: _Signer, roles: Iterable[str], subject: _Subject, names: Iterable[x509.GeneralName], until: datetime
) -> x509.Certificate:
    """A participant's certificate. `roles`: "server" or "client", or both."""
    limits = x509.BasicConstraints(ca=False, path_length=None), _usage("digital_signature")
    what = x509.ExtendedKeyUsage([_PURPOSES[role] for role in roles]), x509.SubjectAlternativeName(names)
    return signed(signer, subject, until, *limits, *what)


def signed(signer: _Signer, subject: _Subject, until: datetime, *what: x509.ExtensionType) -> x509.Certificate:
    """A certificate with the key identifiers that strict verifiers ask for."""
    (issuer, signing), (name, key) = signer, subject
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now() - CLOCK_SKEW).not_valid_after(until)
    own = x509.SubjectKeyIdentifier.from_public_key(key)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    for extension in (*what, own, above):
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical)
    return builder.sign(signing, hashes.SHA256())


def verified(path: Path, authority: Path) -> x509.Certificate:
    """The certificate at `path`. Raises UserError unless the key beside it is its own and `authority` signed it."""
    held = load(path)
    if private_key(path.with_suffix(".key")).public_key() != held.public_key():
        raise UserError(f"{path.with_suffix('.key')}: is not the key of {path.name}")
    require_signed(held, path, authority)
    return held


def require_signed(certificate: x509.Certificate, path: Path, authority: Path) -> None:
    try:
        certificate.verify_directly_issued_by(load(authority))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise UserError(f"{path}: was not signed by {authority}") from error


def require_current(certificate: x509.Certificate, place: Path) -> None:
    begin, end, today = certificate.not_valid_before_utc, certificate.not_valid_after_utc, now()
    if not begin <= today <= end:
        name = certificate.subject.rfc4514_string()
        hint = "set the clock" if today < begin else "renew it with `fedshare keys`, or set the clock if it is wrong"
        when = f"from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, and the clock says {today:%Y-%m-%d %H:%M}"
        raise UserError(f"{place}: the certificate of {name} is valid {when}; {hint}")


def client_of(certificate: x509.Certificate | x509.CertificateSigningRequest) -> int | None:
    """The client that a certificate names; None unless it names exactly one."""
    found = _named(certificate, _CLIENT)
    return int(found) if found else None


def signing_of(certificate: x509.Certificate | x509.CertificateSigningRequest) -> bytes | None:
    """The public signing key that a certificate names, 32 bytes; None unless it names exactly one."""
    found = _named(certificate, _SIGNING)
    return bytes.fromhex(found) if found else None


def _named(certificate: x509.Certificate | x509.CertificateSigningRequest, form: re.Pattern[str]) -> str | None:
    """What a certificate's only URI of this form says."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None
    found = [*filter(None, map(form.fullmatch, names.get_values_for_type(x509.UniformResourceIdentifier)))]
    return found[0][1] if len(found) == 1 else None


def client_name(client: int) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(f"fedshare:client:{client}")


def signing_name(public: bytes) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(f"fedshare:ed25519:{public.hex()}")


def is_signing_name(name: x509.GeneralName) -> bool:
    return isinstance(name, x509.UniformResourceIdentifier) and _SIGNING.fullmatch(name.value) is not None


def peer_host(peer: int) -> str:
    """The host that the certificate of a peer names: TLS is asked for it when the peer is dialled at any address."""
    return f"peer-{peer}.fedshare"


def client_id(pem: bytes) -> int | None:
    """The client that a certificate names; None unless it can be read and names exactly one."""
    try:
        return client_of(x509.load_pem_x509_certificate(pem))
    except ValueError:
        return None


def signing_key_of(pem: bytes) -> bytes | None:
    """The public signing key that a certificate names, 32 bytes; None unless it can be read and names exactly one."""
    try:
        return signing_of(x509.load_pem_x509_certificate(pem))
    except ValueError:
        return None


def fingerprint(key: PublicKey) -> str:
    """SHA-256 of a key, in hex: every certificate of the key has the same.

    `openssl x509 -in FILE -pubkey -noout | openssl pkey -pubin -outform der | sha256sum` prints the same.
    """
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(*form)).hexdigest()


def fingerprints(pem: bytes) -> tuple[str, str]:
    """The fingerprints of a certificate's key and of the certificate itself. Raises UserError."""
    try:
        found = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise UserError("the peer's certificate must be one in PEM") from None
    return fingerprint(public_key(found, "the peer's certificate")), found.fingerprint(hashes.SHA256()).hex()


def public_key(certificate: x509.Certificate | x509.CertificateSigningRequest, path: Path | str) -> PublicKey:
    """The key of a certificate. Raises UserError unless it is on a curve that every participant's TLS knows."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)):
        raise UserError(f"{path}: must have a key on the curve P-256 or P-384")
    return key


def load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read(path))
    except ValueError as error:
        raise UserError(f"{path}: must be a certificate in PEM") from error


def soon(certificate: x509.Certificate) -> timedelta:
    """How long before its end a certificate is to be renewed: 30 days, or a third of its life where that is short."""
    return min(RENEWAL, (certificate.not_valid_after_utc - certificate.not_valid_before_utc) / 3)


def ending(certificate: x509.Certificate) -> str | None:
    """When a certificate ends, in words, if it ends soon or has ended; else None."""
    end, today = certificate.not_valid_after_utc, now()
    if today > end:
        return f"ended on {end:%Y-%m-%d}"
    days, hours = divmod(int((end - today).total_seconds()) // 3600, 24)
    left = f"{days} days" if days > 1 else f"{24 * days + hours} hours"
    return f"ends in {left}" if end - today < soon(certificate) else None


def ending_of(pem: bytes) -> str | None:
    return ending(x509.load_pem_x509_certificate(pem))


def pem_of(certificate: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use == allowed for use in _USES})


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def described(pem: bytes) -> dict[str, str]:
    """Serial number and SHA-256 of a certificate, in hex as openssl prints them, and when it ends (UTC)."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        return {}
    until = certificate.not_valid_after_utc
    fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
    return {"serial": f"{certificate.serial_number:X}", "sha256": fingerprint, "not_after": f"{until:%Y-%m-%d %H:%M}"}


def issued(pem: bytes, authority: bytes) -> bool:
    """Whether `pem` is a certificate that `authority`, in PEM as well, has signed; it may have ended since."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def require_issued(pem: bytes, authority: bytes, whose: str) -> None:
    """Raise UserError unless `pem` is a certificate signed by `authority`, in PEM as well, and valid now."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise UserError(f"{whose} has a certificate that this authority has not signed") from error
    if not certificate.not_valid_before_utc <= now() <= certificate.not_valid_after_utc:
        raise UserError(f"{whose} has a certificate that is not valid now")
