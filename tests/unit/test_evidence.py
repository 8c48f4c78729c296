"""Sealed evidence: who can open it, and that it is HPKE."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from protocol import evidence
from protocol.evidence import MAX_RECORDING_BYTES, EvidenceError
from protocol.noise import public_key

RECORDING = [(4_294_967_295, b"\xf8one"), (959, b"\xf8two"), (1_919, b"")]


def keypair(number: int) -> tuple[bytes, bytes]:
    private = bytes([number] * 32)
    return private, public_key(private)


def test_every_device_opens_it_with_its_own_key() -> None:
    pairs = [keypair(n) for n in (1, 2, 3)]
    sealed = evidence.seal(RECORDING, [public for _, public in pairs], os.urandom)
    assert set(sealed.keys) == {public for _, public in pairs}
    for private, public in pairs:
        key = sealed.keys[public]
        opened = evidence.open(private, key.sender_key, key.sealed_key, sealed.data)
        assert opened == RECORDING


def test_nobody_else_opens_it() -> None:
    private, public = keypair(1)
    _, second = keypair(2)
    sealed = evidence.seal(RECORDING, [public, second], os.urandom)
    other = evidence.seal(RECORDING, [public], os.urandom)
    good = sealed.keys[public]
    for stranger, key, data in [
        (keypair(3)[0], good, sealed.data),
        (private, sealed.keys[second], sealed.data),  # another device's
        (private, other.keys[public], sealed.data),  # another report's
        (private, good, other.data),
    ]:
        with pytest.raises(EvidenceError):
            evidence.open(stranger, key.sender_key, key.sealed_key, data)


def test_every_changed_bit_is_noticed() -> None:
    private, public = keypair(1)
    sealed = evidence.seal(RECORDING, [public], os.urandom)
    parts = [sealed.keys[public].sender_key, sealed.keys[public].sealed_key, sealed.data]
    # The top bit of an X25519 key is not part of the point (RFC 7748, section 5), but it is part
    # of the context that the key is made from.
    for number, part in enumerate(parts):
        for bit in range(8 * len(part)):
            flipped = bytearray(part)
            flipped[bit // 8] ^= 1 << bit % 8
            damaged = [*parts[:number], bytes(flipped), *parts[number + 1 :]]
            with pytest.raises(EvidenceError):
                evidence.open(private, *damaged)


@pytest.mark.parametrize(
    ("sender_key", "sealed_key", "data"),
    [(b"", b"", b""), (bytes(32), b"x" * 48, b"x" * 16), (b"x" * 31, b"x" * 48, b"x" * 16)],
)
def test_what_is_no_evidence_does_not_open(
    sender_key: bytes, sealed_key: bytes, data: bytes
) -> None:
    with pytest.raises(EvidenceError):
        evidence.open(keypair(1)[0], sender_key, sealed_key, data)


def test_nothing_is_sealed_for_a_worthless_key() -> None:
    with pytest.raises(EvidenceError, match="worthless"):
        evidence.seal(RECORDING, [bytes(32)], os.urandom)


def test_two_seals_of_the_same_have_nothing_in_common() -> None:
    _, public = keypair(1)
    one = evidence.seal(RECORDING, [public], os.urandom)
    two = evidence.seal(RECORDING, [public], os.urandom)
    assert one.data != two.data
    assert one.keys[public].sender_key != two.keys[public].sender_key
    assert one.keys[public].sealed_key != two.keys[public].sealed_key


def test_the_key_encapsulation_is_that_of_the_rfc() -> None:
    """RFC 9180, appendix A.1.1."""
    private = bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
    recipient = bytes.fromhex("3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d")
    enc = bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431")
    shared = bytes.fromhex("fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc")
    assert public_key(private) == recipient
    assert evidence._shared_secret(evidence._exchange(private, enc), enc, recipient) == shared


def test_another_implementation_of_hpke_opens_the_key() -> None:
    hpke = pytest.importorskip("cryptography.hazmat.primitives.hpke")
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    private, public = keypair(1)
    key = X25519PrivateKey.from_private_bytes(private)
    sealed = evidence.seal(RECORDING, [public], os.urandom)
    ours = sealed.keys[public]
    content_key = suite.decrypt(ours.sender_key + ours.sealed_key, key, info=evidence.INFO)
    packed = AESGCM(content_key).decrypt(bytes(12), sealed.data, None)
    assert evidence.unpack(packed) == RECORDING

    theirs = suite.encrypt(content_key, key.public_key(), info=evidence.INFO)
    assert evidence.open(private, theirs[:32], theirs[32:], sealed.data) == RECORDING


def test_a_recording_lies_as_drawn() -> None:
    assert evidence.pack([(1, b"ab"), (2, b"c")]) == b"\0\0\0\1\0\2ab\0\0\0\2\0\1c"
    assert evidence.unpack(b"") == []
    for cut in (b"\0\0\0\1\0", b"\0\0\0\1\0\2a"):
        with pytest.raises(EvidenceError, match="cut off"):
            evidence.unpack(cut)


def test_of_a_recording_that_is_too_long_the_end_is_kept() -> None:
    recording = [(n, bytes(1_000)) for n in range(3_000)]
    kept = evidence.unpack(evidence.pack(recording))
    assert kept == recording[-len(kept) :]
    assert len(kept) == MAX_RECORDING_BYTES // 1_006


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=40))))
def test_every_recording_comes_back(recording: list[tuple[int, bytes]]) -> None:
    assert evidence.unpack(evidence.pack(recording)) == recording


@given(st.binary(max_size=100))
def test_line_noise_is_a_recording_or_refused(data: bytes) -> None:
    try:
        recording = evidence.unpack(data)
    except EvidenceError:
        return
    assert evidence.pack(recording) == data


def test_the_duration_is_that_of_the_sound() -> None:
    ms_20 = bytes([31 << 3])
    assert evidence.duration_s([]) == 0
    assert evidence.duration_s([(0, ms_20)]) == 1
    assert evidence.duration_s([(0, ms_20)] * 50) == 1
    assert evidence.duration_s([(0, ms_20)] * 1_500 + [(0, b""), (7, b"\xff")]) == 30
