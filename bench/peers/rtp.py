"""RTP (RFC 3550) as it is needed to talk to a peer, and SRTP (RFC 3711) to look into a sample.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +---+-+-+-------+-+-------------+-------------------------------+
    | 2 |P|X|  CC   |M| payload type|        sequence number        |
    +---+-+-+-------+-+-------------+-------------------------------+
    |                           timestamp                           |
    +---------------------------------------------------------------+
    |                             SSRC                              |
    +---------------------------------------------------------------+
    |                            payload                            |

Padding, extension and CC are 0 in all that is sent here, and in what Janus sends.  In SRTP the
payload is encrypted and a tag of 10 bytes comes after it; the header stays in clear, so that
streams are counted in the same way.
"""

import hmac
import struct
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

HEADER_BYTES = 12
SEQUENCE_BITS = 16
DYNAMIC_TYPES = range(96, 128)  # payload types without a fixed meaning (RFC 3551, section 6)
SRTP_KEY_BYTES = 16
SRTP_SALT_BYTES = 14
SRTP_TAG_BYTES = 10  # AES_CM_128_HMAC_SHA1_80

_HEADER = struct.Struct(">BBHII")
_VERSION_2 = 0x80
_ENCRYPTION, _AUTHENTICATION, _SALTING = range(3)  # labels of RFC 3711, section 4.3.2


def pack(payload_type: int, sequence: int, timestamp: int, ssrc: int, payload: bytes) -> bytes:
    """One packet; sequence and timestamp wrap by themselves."""
    return (
        _HEADER.pack(_VERSION_2, payload_type, sequence & 0xFFFF, timestamp & 0xFFFF_FFFF, ssrc)
        + payload
    )


def payload(packet: bytes) -> bytes:
    """What a plain packet holds."""
    return packet[HEADER_BYTES:]


class Columns(NamedTuple):
    """The headers of n packets, an array (n,) for each field."""

    payload_types: NDArray[np.intp]
    sequences: NDArray[np.int64]
    ssrcs: NDArray[np.intp]


def columns(data: NDArray[np.uint8]) -> Columns:
    """data: (n, at least 12), one packet a row."""
    return Columns(
        (data[:, 1] & 0x7F).astype(np.intp),
        data[:, 2:4].view(">u2")[:, 0].astype(np.int64),
        data[:, 8:12].view(">u4")[:, 0].astype(np.intp),
    )


class SrtpError(Exception):
    """A packet that this key did not protect."""


class Srtp:
    """Opens what AES_CM_128_HMAC_SHA1_80 protects, within a stream's first 2^16 packets.

    From then on the packet's index would have to be counted beyond the sequence number; a bench
    looks at a sample of the first minutes.
    """

    def __init__(self, master: bytes) -> None:
        """master: key and salt, 30 bytes, as in SDES (RFC 4568)."""
        key, salt = master[:SRTP_KEY_BYTES], master[SRTP_KEY_BYTES:]
        if len(salt) != SRTP_SALT_BYTES:
            raise ValueError(f"{len(master)} bytes of SRTP key and salt: there must be 30")
        self.cipher_key, self.authentication_key, self.salt = (
            _derived(key, salt, label, length)
            for label, length in ((_ENCRYPTION, 16), (_AUTHENTICATION, 20), (_SALTING, 14))
        )

    def open(self, packet: bytes) -> bytes:
        """-> the payload.  Raises SrtpError."""
        sealed, tag = packet[:-SRTP_TAG_BYTES], packet[-SRTP_TAG_BYTES:]
        if len(sealed) < HEADER_BYTES:
            raise SrtpError(f"{len(packet)} bytes are no SRTP packet")
        rollover = bytes(4)
        expected = hmac.digest(self.authentication_key, sealed + rollover, "sha1")
        if not hmac.compare_digest(expected[:SRTP_TAG_BYTES], tag):
            raise SrtpError("the packet's tag is not the one of this key")
        _, _, sequence, _, ssrc = _HEADER.unpack_from(sealed)
        counter = int.from_bytes(self.salt) << 16 ^ ssrc << 64 ^ sequence << 16
        return _aes_cm(self.cipher_key, counter, sealed[HEADER_BYTES:])


def _derived(key: bytes, salt: bytes, label: int, length: int) -> bytes:
    """A session key, of a key derivation rate of 0."""
    return _aes_cm(key, (int.from_bytes(salt) ^ label << 48) << 16, bytes(length))


def _aes_cm(key: bytes, counter: int, data: bytes) -> bytes:
    return Cipher(AES(key), CTR(counter.to_bytes(16))).encryptor().update(data)
