"""Signatures under what participants say."""

import pytest

from fedshare.identity.signing import Signer, Verifier, signed_part

RUN = bytes(range(32))


def test_a_signature_is_of_every_field_and_of_the_run() -> None:
    signer = Signer.unprotected("peer 3")
    said = (RUN, 3, 7, 5, 1, b"codes")
    signature = signer.sign(signed_part(*said))
    verifier = Verifier(signer.public)
    assert verifier.accepts(signed_part(*said), signature)
    others = [
        (bytes(32), 3, 7, 5, 1, b"codes"),
        (RUN, 4, 7, 5, 1, b"codes"),
        (RUN, 3, 8, 5, 1, b"codes"),
        (RUN, 3, 7, 6, 1, b"codes"),
        (RUN, 3, 7, 5, 2, b"codes"),
        (RUN, 3, 7, 5, 1, b"code"),
    ]
    assert not any(verifier.accepts(signed_part(*other), signature) for other in others)
    assert not Verifier(Signer.unprotected("peer 4").public).accepts(signed_part(*said), signature)
    assert not verifier.accepts(signed_part(*said), signature[:-1])


def test_the_layout_is_fixed() -> None:
    expected = "6665647368617265207361696420310000"[:32] + RUN.hex()
    expected += "03000000" + "0700000000000000" + "0500000000000000" + "01" + "0500000000000000" + b"codes".hex()
    assert signed_part(RUN, 3, 7, 5, 1, b"codes").hex() == expected


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        Verifier(bytes(31))
