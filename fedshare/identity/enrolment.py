"""Clients whose keys are made on their own hosts, and the end of any client's: request, sign, accept, revoke.

fedshare keys request DIR --client 3      on the client's host: DIR/client-3/client.key, which stays there, and
                                          DIR/client-3/client-3.csr, which goes to the operator
fedshare keys sign KEYS client-3.csr      where the authority is: KEYS/client-3/client-3.pem, which goes back
fedshare keys accept DIR client-3.pem     on the client's host: DIR is what `fedshare client --keys` takes
fedshare keys revoke KEYS client-3        KEYS/server/denied, which the server reads while it runs

A peer's request also names its signing key. The TLS key signs the request: this proves that its holder asks for that
signing key, and not that it holds the private half. To name another peer's key gains nothing: what is signed includes
the number of the peer that says it.
"""

from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from fedshare.errors import UserError
from fedshare.identity import admission, certificates, identity, keys, pem
from fedshare.identity.admission import DENIED, Caller, Roll
from fedshare.identity.authority import Authority, require_days
from fedshare.identity.certificates import fingerprint, load
from fedshare.identity.keys import MAX_CLIENTS
from fedshare.identity.signing import FILE, Signer
from fedshare.machine.files import private_folder, write_atomically

_LARGEST = 65_536  # bytes of a request, or of what comes back
_WHO = "must be a client's number, client-N, or its certificate or request in PEM"
_SHOWN = 16  # digits of a fingerprint that people compare


def request(folder: Path, client: int, peer: bool = False) -> list[str]:
    """Make a key for `client`, unless it is there, and a request for a certificate.

    `peer`: make a signing key, too; one that is there is always named. Returns what was made and what is to be done
    with it.
    """
    _require_number(client, "--client")
    name = f"client-{client}"
    place = folder / name
    private_folder(place)
    key, made = pem.key_at(place / "client.key")
    pem.require_private(place / "client.key")
    names = [certificates.client_name(client)]
    if peer or (place / FILE).exists():
        signer, new = Signer.at(place)
        made += new
        names.append(certificates.signing_name(signer.public))
    made += keys.supernode(place)
    builder = x509.CertificateSigningRequestBuilder().subject_name(certificates.common_name(name))
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    path = place / f"{name}.csr"
    write_atomically(path, certificates.pem_of(builder.sign(key, hashes.SHA256())))
    return [
        f"{place}: made {', '.join([*made, path.name])}; the key is {fingerprint(key.public_key())[:_SHOWN]}",
        f"send {path} to who has the authority (`fedshare keys sign`), and for Flower's own fleet supernode.pub;"
        " all else stays here",
    ]


def sign(
    folder: Path, path: Path, days: int, passphrase: bytes | None, replace: bool = False, client: int | None = None
) -> list[str]:
    """Certify the key of a request. `replace`: also where its client has another key, which is revoked.

    `client`: refuse a request for any other. Raises UserError, with nothing written, where it is refused.
    """
    require_days(days)
    found, asked = _request(path)
    if client not in (None, asked):
        raise UserError(f"{path}: asks to be client {asked}, not client {client}")
    _require_number(asked, str(path))
    authority = Authority.load(folder / "ca", passphrase)
    if authority is None:
        raise UserError(f"{folder}: holds no authority; `fedshare keys {folder} --server HOST --clients N` makes one")
    key, name = certificates.public_key(found, path), f"client-{asked}"
    signing = certificates.signing_of(found)
    place = folder / name
    denied = _denied(folder)
    if denied.exists() and (kind := Roll.read(denied).match(Caller(asked, fingerprint(key)))):
        whose = f"client {asked} is" if kind == "client" else "this key was"
        undo = f"`fedshare keys revoke {folder} {asked if kind == 'client' else path} --undo` first"
        raise UserError(f"{path}: {whose} revoked, by {denied}: {undo}, if it is to be let in again")
    old = load(place / "client.crt") if (place / "client.crt").exists() else None
    before = certificates.public_key(old, place / "client.crt") if old else None
    another = old is not None and before != key
    live = old is not None and old.not_valid_after_utc > certificates.now()
    if old is not None and another and live and not replace:
        until = f"{old.not_valid_after_utc:%Y-%m-%d}"
        raise UserError(
            f"{path}: client {asked} has a certificate for another key until {until} ({place / 'client.crt'}):"
            " two could then be the same client; --replace signs this one and revokes the other key"
        )
    said = certificates.signing_of(old) if old and live and not another else None
    if said not in (None, signing) and not replace:
        which = f"names another signing key than {place / 'client.crt'}, or none"
        raise UserError(f"{path}: {which}: in a run that knows the other, peers refuse what it signs; --replace signs")
    lines = revoke(folder, [str(place / "client.crt")], "replaced") if another and live else []
    private_folder(place)
    if another or not (place / "client.key").exists():  # else the key was made here, and stays
        write_atomically(place / f"{name}.csr", certificates.pem_of(found))
        for gone in ("client.key", "supernode", "supernode.pub", FILE):
            (place / gone).unlink(missing_ok=True)
    names = keys.names_of(asked, peer=signing is not None)
    names += [certificates.signing_name(signing)] if signing else []
    certificate = authority.certify(name, key, names, timedelta(days=days))
    write_atomically(place / "ca.crt", certificates.pem_of(authority.certificate))
    write_atomically(place / "client.crt", certificates.pem_of(certificate))
    handed = keys.bundle(place, authority)
    until, who = f"{certificate.not_valid_after_utc:%Y-%m-%d}", "peer" if signing else "client"
    return [
        *lines,
        f"{handed}: {who} {asked}'s certificate until {until}, for the key {fingerprint(key)[:_SHOWN]}, by the"
        f" authority {_name(authority.certificate)}; on its host: fedshare keys accept DIR {handed.name}",
    ]


def accept(folder: Path, path: Path) -> list[str]:
    """Put what the operator has sent back beside the key on which it is. Raises UserError, with nothing written."""
    try:
        pems = x509.load_pem_x509_certificates(_small(path))
    except ValueError as error:
        raise UserError(f"{path}: must be what `fedshare keys sign` has made: two certificates in PEM") from error
    if len(pems) != 2 or (client := certificates.client_of(pems[0])) is None:
        raise UserError(f"{path}: must be what `fedshare keys sign` has made: a client's certificate, and its issuer's")
    own, ca = pems
    place = folder if (folder / "client.key").exists() else folder / f"client-{client}"
    if not (place / "client.key").exists():
        made = f"`fedshare keys request {folder} --client {client}` makes it"
        raise UserError(f"{path}: is client {client}'s, and {place / 'client.key'} is not there; {made}")
    if pem.private_key(place / "client.key").public_key() != own.public_key():
        raise UserError(f"{path}: is for another key than {place / 'client.key'}")
    signing = certificates.signing_of(own)
    if signing and (not (place / FILE).exists() or Signer.load(place).public != signing):
        raise UserError(f"{path}: names another signing key than {place / FILE}")
    try:
        own.verify_directly_issued_by(ca)
        ca.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise UserError(f"{path}: its first certificate was not signed by its second") from error
    for one in pems:
        certificates.require_current(one, path)
    if (place / "ca.crt").exists() and load(place / "ca.crt") != ca:
        held = _name(load(place / "ca.crt"))
        raise UserError(
            f"{path}: comes from the authority {_name(ca)}, and {place / 'ca.crt'} is {held}: if the operator has made"
            " a new one, remove that file first"
        )
    write_atomically(place / "ca.crt", certificates.pem_of(ca))
    write_atomically(place / "client.crt", certificates.pem_of(own))
    until = f"{own.not_valid_after_utc:%Y-%m-%d}"
    who = f"client {client}" if signing is None else f"peer {client}"
    return [f"{place}: has {who}'s certificate until {until}, by the authority {_name(ca)}"]


def revoke(folder: Path, whom: list[str], why: str = "", undo: bool = False) -> list[str]:
    """Put clients, by number, or the keys of certificates or requests, by file, on the list of the server in `folder`.

    A number bars the client with whatever key; a file its key alone, so that the client may have another. `client-3`
    stands for the certificate of that folder. `undo`: take them off.
    """
    entries = {}
    for each in whom:
        if each.isascii() and each.isdigit() and len(each) < 10:
            entries[f"client {int(each)}"] = why
        else:
            path = folder / each / "client.crt" if (folder / each / "client.crt").is_file() else Path(each)
            if not path.exists():
                raise UserError(f"{each}: {_WHO}; there is no such file, and no certificate in {folder / each}")
            key, client = _shown(path)
            entries[f"key {fingerprint(key)}"] = f"client {client}{f', {why}' if why else ''}"
    denied = _denied(folder)
    if undo:
        found = admission.unbar(denied, {*entries}) if denied.exists() else []
    else:
        found = admission.bar(denied, entries, f"{certificates.now():%Y-%m-%d %H:%M} UTC")
    lines = [f"{denied}: {'removed' if undo else 'added'} {entry}" for entry in found]
    lines += [f"{denied}: {'has not' if undo else 'has already'} {entry}" for entry in entries if entry not in found]
    return lines


def _denied(folder: Path) -> Path:
    """The list of the server whose folder is below `folder`, or is it; without one, that of peers.

    Peers without a relay read it in their own folders: the authority's is copied there.
    """
    place = identity.place(folder, "server")
    if (place / "server.crt").exists():
        return place / DENIED
    held = folder / "client.crt"
    if (folder / "ca" / "ca.crt").exists() or (held.exists() and certificates.signing_of(load(held))):
        return folder / DENIED
    raise UserError(f"{folder}: holds no server's folder: name what `fedshare keys` made, or the server's --keys")


def _shown(path: Path) -> tuple[pem.PublicKey, int]:
    """The key of a client's certificate or request, and the client that it names."""
    data = _small(path)
    for parse in (x509.load_pem_x509_certificate, x509.load_pem_x509_csr):
        try:
            found = parse(data)
        except ValueError:
            continue
        if (client := certificates.client_of(found)) is None:
            raise UserError(f"{path}: must name one client, as fedshare:client:3")
        return certificates.public_key(found, path), client
    raise UserError(f"{path}: {_WHO}")


def _request(path: Path) -> tuple[x509.CertificateSigningRequest, int]:
    """Raises UserError unless its own key signed it and it names one client, at most one signing key, and no more."""
    try:
        found = x509.load_pem_x509_csr(_small(path))
        sound = found.is_signature_valid
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path}: must be a certificate request in PEM; `fedshare keys request` makes one") from error
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        names, sound = None, True
    if not sound:
        raise UserError(f"{path}: its signature is not by its key: it was changed, or damaged")
    client = certificates.client_of(found)
    if names is None or client is None or len(names) != 1 + (certificates.signing_of(found) is not None):
        raise UserError(
            f"{path}: must name one client, as fedshare:client:3, and nothing else but a peer's signing key"
        )
    return found, client


def _require_number(client: int, what: str) -> None:
    if not 0 <= client < MAX_CLIENTS:
        raise UserError(f"{what}: client {client}: must be from 0 to {MAX_CLIENTS - 1}")


def _small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise UserError(f"{path}: has more than {_LARGEST} bytes, which no certificate has")
    return data


def _name(authority: x509.Certificate) -> str:
    return authority.fingerprint(hashes.SHA256()).hex()[:_SHOWN]
