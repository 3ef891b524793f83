"""The authority of a deployment: the certificate that everyone trusts, and the key that signs all others."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedshare.errors import UserError
from fedshare.identity import certificates
from fedshare.identity.certificates import load
from fedshare.identity.pem import new_key, signing_key, write_key
from fedshare.machine.files import write_atomically

MAX_DAYS = 3650  # of a participant's certificate
AUTHORITY_LIFE = timedelta(days=2 * MAX_DAYS)


def require_days(days: int) -> None:
    if not 1 <= days <= MAX_DAYS:
        raise UserError(f"--days {days}: must be from 1 to {MAX_DAYS}")


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def load(cls, place: Path, passphrase: bytes | None) -> "Authority | None":
        """The authority at `place`; None where there is none yet. Raises UserError where a part of it is missing."""
        missing = [path for path in (place / "ca.key", place / "ca.crt") if not path.exists()]
        if not missing:
            certificate, key = load(place / "ca.crt"), signing_key(place / "ca.key", passphrase)
            if key.public_key() != certificate.public_key():
                raise UserError(f"{place / 'ca.key'}: is not the key of ca.crt")
            certificates.require_signed(certificate, place / "ca.crt", place / "ca.crt")
            certificates.require_current(certificate, place)
            return cls(certificate, key)
        for signed in (*place.glob("ca.crt"), *place.parent.glob("server/*.crt"), *place.parent.glob("client-*/*.crt")):
            raise UserError(f"{missing[0]}: missing, though {signed} is there; bring it back, or take a new folder")
        return None

    @classmethod
    def make(cls, place: Path, passphrase: bytes | None) -> tuple["Authority", list[str]]:
        if (place / "ca.key").exists():  # of a run that was interrupted
            key, made = signing_key(place / "ca.key", passphrase), []
        else:
            key, pem = new_key(passphrase=passphrase)
            made = write_key(place / "ca.key", pem)
        skid = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()
        name = certificates.common_name(f"fedshare authority {skid[:16]}")  # two authorities are told apart by name
        until = certificates.now() + AUTHORITY_LIFE
        certificate = certificates.authority((name, key), until)
        write_atomically(place / "ca.crt", certificates.pem_of(certificate))
        return cls(certificate, key), [*made, f"ca.crt until {until:%Y-%m-%d}"]

    def certify(
        self, name: str, key: ec.EllipticCurvePublicKey, names: list[x509.GeneralName], life: timedelta
    ) -> x509.Certificate:
        """Sign for the participant `name`, "server" or "client-3". It does not outlive the authority.

        A client with a host among its `names` is a peer, which may also be dialled.
        """
        roles = [name.partition("-")[0]]
        if roles == ["client"] and any(isinstance(one, x509.DNSName) for one in names):
            roles.append("server")
        until = min(certificates.now() + life, self.certificate.not_valid_after_utc)
        subject = certificates.common_name(name), key
        return certificates.participant((self.certificate.subject, self.key), roles, subject, names, until)
