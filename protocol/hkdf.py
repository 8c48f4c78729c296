"""HKDF with SHA-256 (RFC 5869): a secret in, independent secrets out.

HMAC (RFC 2104) is written out as the two hashes that it is.  A handshake and the keys of its
session take some twenty-five of them, and OpenSSL's one-shot HMAC takes more than half as long
again for texts as short as these.
"""

from hashlib import sha256

BLOCK_BYTES = 64
HASH_BYTES = 32

_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))


def hmac_sha256(key: bytes, text: bytes) -> bytes:
    """32 bytes.  key: at most 64 bytes; ValueError for a longer one."""
    if len(key) > BLOCK_BYTES:
        raise ValueError(f"a key of {len(key)} bytes")
    block = key.ljust(BLOCK_BYTES, b"\0")
    inner = sha256(block.translate(_INNER) + text).digest()
    return sha256(block.translate(_OUTER) + inner).digest()


def expand(secret: bytes, info: bytes, size: int = HASH_BYTES) -> bytes:
    """HKDF-Expand for up to 32 bytes, which are one HMAC.  ValueError for more."""
    if size > HASH_BYTES:
        raise ValueError(f"{size} bytes of one HMAC")
    return hmac_sha256(secret, info + b"\x01")[:size]


def extract_and_expand(salt: bytes, secret: bytes, count: int) -> tuple[bytes, ...]:
    """`count` outputs of 32 bytes, without an info: HKDF as Noise uses it (section 4.3)."""
    mixed = hmac_sha256(salt, secret)
    outputs: list[bytes] = []
    previous = b""
    for number in range(1, count + 1):
        previous = hmac_sha256(mixed, previous + bytes((number,)))
        outputs.append(previous)
    return tuple(outputs)
