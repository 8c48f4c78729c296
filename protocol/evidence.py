"""Sealed evidence: what a reported speaker said last, for the eyes of moderators only.

A recording is a row of audio packets as they came in:

    +---------------+------------+-------------+
    | timestamp u32 | length u16 | Opus packet | ...     all big-endian
    +---------------+------------+-------------+

It is encrypted once, under a content key that is made for it, and the content key once for every
device that may open it: with HPKE (RFC 9180) in base mode, whose `enc` is the sender key here.  The
server forgets the content key at once and cannot open what it stores.

    data        AES-256-GCM(content key, nonce 0, recording)
    sealed_key  HPKE.SealBase(device's X25519 key, info "spaces 1 evidence", content key)

The suite is DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; `_hpke` is sections 4.1 and 5.1
of the RFC for it.
"""

import hmac
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.noise import KEY_BYTES, public_key
from protocol.opus import OpusError, packet_samples

INFO = b"spaces 1 evidence"
MAX_RECORDING_BYTES = 2_000_000  # 30 s of full datagrams, 20 ms each, and some

_PACKET = struct.Struct(">IH")
_KEM = b"KEM" + b"\x00\x20"
_SUITE = b"HPKE" + b"\x00\x20" + b"\x00\x01" + b"\x00\x02"
_NONCE_BYTES = 12

Recording = list[tuple[int, bytes]]  # (timestamp, Opus packet)


class EvidenceError(Exception):
    """Evidence that does not open with this key, or a key for which nothing can be sealed."""


@dataclass(frozen=True, slots=True)
class SealedKey:
    """What opens the data on one device."""

    sender_key: bytes
    sealed_key: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """keys: by the device's public key."""

    keys: dict[bytes, SealedKey]
    data: bytes


def seal(
    recording: Recording, device_keys: Iterable[bytes], entropy: Callable[[int], bytes]
) -> Sealed:
    """Seals a recording for devices, by their X25519 public keys of 32 bytes.  Raises
    EvidenceError if one of these is worthless (of low order); a key that has been through a Noise
    handshake never is."""
    content_key = entropy(KEY_BYTES)
    keys = {}
    for device in device_keys:
        ephemeral = entropy(KEY_BYTES)
        sender_key = public_key(ephemeral)
        key, nonce = _hpke(_exchange(ephemeral, device), sender_key, device)
        keys[device] = SealedKey(sender_key, AESGCM(key).encrypt(nonce, content_key, None))
    data = AESGCM(content_key).encrypt(bytes(_NONCE_BYTES), pack(recording), None)
    return Sealed(keys, data)


def open(  # noqa: A001 - the word for it; always called as evidence.open
    private_key: bytes, sender_key: bytes, sealed_key: bytes, data: bytes
) -> Recording:
    """The recording, with the private key of a device for which it was sealed.
    Raises EvidenceError."""
    shared = _exchange(private_key, sender_key)
    key, nonce = _hpke(shared, sender_key, public_key(private_key))
    try:
        content_key = AESGCM(key).decrypt(nonce, sealed_key, None)
        packed = AESGCM(content_key).decrypt(bytes(_NONCE_BYTES), data, None)
    except (InvalidTag, ValueError) as error:  # ValueError: of no length that a key has
        raise EvidenceError("not sealed for this device, or damaged") from error
    return unpack(packed)


def pack(recording: Recording) -> bytes:
    """The bytes of a recording; of one beyond MAX_RECORDING_BYTES those of its end, so that nobody
    escapes evidence by sending too much."""
    packed: list[bytes] = []
    room = MAX_RECORDING_BYTES
    for timestamp, opus in reversed(recording):
        room -= _PACKET.size + len(opus)
        if room < 0:
            break
        packed.append(_PACKET.pack(timestamp & 0xFFFF_FFFF, len(opus)) + opus)
    return b"".join(reversed(packed))


def unpack(data: bytes) -> Recording:
    """Raises EvidenceError if the bytes are cut off."""
    recording = []
    at = 0
    while at < len(data):
        if at + _PACKET.size > len(data):
            raise EvidenceError("a recording that is cut off")
        timestamp, length = _PACKET.unpack_from(data, at)
        at += _PACKET.size + length
        if at > len(data):
            raise EvidenceError("a recording that is cut off")
        recording.append((timestamp, data[at - length : at]))
    return recording


def duration_s(recording: Recording) -> int:
    """How many seconds of sound are in a recording, rounded up; what is no Opus counts nothing."""
    samples = 0
    for _, opus in recording:
        try:
            samples += packet_samples(opus)
        except OpusError:
            continue
    return -(-samples // 48_000)


def _exchange(private: bytes, public: bytes) -> bytes:
    try:
        ours = X25519PrivateKey.from_private_bytes(private)
        return ours.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # of another length, or all zero: a key of low order
        raise EvidenceError("worthless public key") from error


def _shared_secret(dh: bytes, enc: bytes, recipient: bytes) -> bytes:
    """ExtractAndExpand of section 4.1, with enc and the recipient's key as its context."""
    eae_prk = _extract(_KEM, b"", b"eae_prk", dh)
    return _expand(_KEM, eae_prk, b"shared_secret", enc + recipient, 32)


def _hpke(dh: bytes, enc: bytes, recipient: bytes) -> tuple[bytes, bytes]:
    """-> (key, nonce) of the first message of a base mode context (KeySchedule, section 5.1)."""
    context = b"\x00" + _extract(_SUITE, b"", b"psk_id_hash", b"")
    context += _extract(_SUITE, b"", b"info_hash", INFO)
    secret = _extract(_SUITE, _shared_secret(dh, enc, recipient), b"secret", b"")
    return (
        _expand(_SUITE, secret, b"key", context, KEY_BYTES),
        _expand(_SUITE, secret, b"base_nonce", context, _NONCE_BYTES),
    )


def _extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt, b"HPKE-v1" + suite + label + ikm, "sha256")


def _expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """At most 32 bytes: one block of HKDF-Expand (RFC 5869)."""
    info = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(prk, info + b"\x01", "sha256")[:length]
