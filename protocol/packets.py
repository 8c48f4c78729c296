"""The datagrams: how each one lies on the wire (SPEC.md, section "Datagrams").

All integers are big-endian.  Four kinds are sent in the clear and make a session; every
other datagram is sealed:

    HELLO    client -> server, always 256 bytes
    +------+---------+----------+--------------+--------+--------+-----------------------+
    | 0x01 | version | reserved | client index | key id | cookie | Noise IK message 1    |
    |  u8  |   u8    |   u16    |     u32      | 8 bytes|16 bytes| 224 bytes             |
    +------+---------+----------+--------------+--------+--------+-----------------------+
    WELCOME  server -> client, at most 256 bytes
    +------+---------+----------+--------------+-----------------------------------------+
    | 0x02 | version | reserved | client index | Noise IK message 2, the server index in |
    +------+---------+----------+--------------+-----------------------------------------+
    COOKIE   server -> client, 24 bytes
    +------+---------+----------+--------------+----------------------+
    | 0x03 | version | reserved | client index | cookie, 16 bytes     |
    +------+---------+----------+--------------+----------------------+
    REFUSED  server -> client, 8 bytes
    +------+---------+----------+--------------+
    | 0x04 | version | code u16 | client index |
    +------+---------+----------+--------------+
    sealed   both ways (CONTROL 0x10, AUDIO 0x11, FEED 0x12, CROWD 0x13)
    +------+---------------+------------------------+---------------------------+-----------+
    | kind | counter, u56  | receiver's index, u32  | ciphertext                | tag, 16 B |
    +------+---------------+------------------------+---------------------------+-----------+
      \\________ 12 bytes: the clear header is the AES-GCM nonce ________/

No reply before the client's address is proven is longer than the HELLO that asked for it.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

VERSION = 1
MAX_DATAGRAM_BYTES = 1_200  # below every usual path MTU, IPv6 and tunnels included

HEADER_BYTES = 12
TAG_BYTES = 16
MAX_PLAINTEXT_BYTES = MAX_DATAGRAM_BYTES - HEADER_BYTES - TAG_BYTES

HELLO_BYTES = 256
HELLO_PAYLOAD_BYTES = HELLO_BYTES - 32 - 32 - 48 - 16  # what Noise leaves for the payload
COOKIE_BYTES = 16
KEY_ID_BYTES = 8
INDEX_BYTES = 4
NO_COOKIE = bytes(COOKIE_BYTES)

COUNTER_LIMIT = 1 << 56


class Kind(IntEnum):
    """The first byte of a datagram."""

    HELLO = 0x01
    WELCOME = 0x02
    COOKIE = 0x03
    REFUSED = 0x04
    CONTROL = 0x10
    AUDIO = 0x11
    FEED = 0x12
    CROWD = 0x13


class Refusal(IntEnum):
    """Why a HELLO was turned away (the code of REFUSED)."""

    VERSION = 1
    WRONG_KEY = 2
    FULL = 3


class MalformedPacketError(ValueError):
    """A datagram, or the plaintext within it, is not of the form that SPEC.md draws."""


_HELLO = struct.Struct(f">BBHI{KEY_ID_BYTES}s{COOKIE_BYTES}s")
_WELCOME = struct.Struct(">BBHI")
_COOKIE = struct.Struct(f">BBHI{COOKIE_BYTES}s")
_REFUSED = struct.Struct(">BBHI")
_SEALED = struct.Struct(">QI")

HELLO_EPHEMERAL = slice(_HELLO.size, _HELLO.size + 32)  # where a HELLO has its ephemeral key


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client sends first.  All of it is authenticated: its clear part is the prologue."""

    version: int
    client_index: int
    key_id: bytes
    cookie: bytes
    noise: bytes

    def pack(self) -> bytes:
        return (
            _HELLO.pack(Kind.HELLO, self.version, 0, self.client_index, self.key_id, self.cookie)
            + self.noise
        )

    @property
    def prologue(self) -> bytes:
        return self.pack()[: _HELLO.size]

    @classmethod
    def unpack(cls, data: bytes) -> "Hello":
        """Raises MalformedPacketError unless `data` has exactly HELLO_BYTES."""
        if len(data) != HELLO_BYTES:
            raise MalformedPacketError(f"HELLO of {len(data)} bytes")
        _, version, reserved, index, key_id, cookie = _HELLO.unpack_from(data)
        if version == VERSION and reserved:  # another version may use them; it is refused as such
            raise MalformedPacketError("HELLO with reserved bits set")
        return cls(version, index, key_id, cookie, data[_HELLO.size :])


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer.  Its Noise payload begins with the server index, so that it is authentic."""

    client_index: int
    noise: bytes

    def pack(self) -> bytes:
        return _WELCOME.pack(Kind.WELCOME, VERSION, 0, self.client_index) + self.noise

    @classmethod
    def unpack(cls, data: bytes) -> "Welcome":
        if not _WELCOME.size < len(data) <= HELLO_BYTES:
            raise MalformedPacketError(f"WELCOME of {len(data)} bytes")
        _, version, reserved, client_index = _WELCOME.unpack_from(data)
        if version != VERSION or reserved:
            raise MalformedPacketError("WELCOME of another version")
        return cls(client_index, data[_WELCOME.size :])


def key_id(public_key: bytes) -> bytes:
    """Which server key a HELLO is for: a wrong link fails with words, and junk fails cheaply."""
    return sha256(b"spaces key id" + public_key).digest()[:KEY_ID_BYTES]


def pack_cookie(client_index: int, cookie: bytes) -> bytes:
    return _COOKIE.pack(Kind.COOKIE, VERSION, 0, client_index, cookie)


def unpack_cookie(data: bytes) -> tuple[int, bytes]:
    """-> (client index, cookie)"""
    if len(data) != _COOKIE.size:
        raise MalformedPacketError(f"COOKIE of {len(data)} bytes")
    _, _, _, index, cookie = _COOKIE.unpack(data)
    return index, cookie


def pack_refused(client_index: int, code: Refusal) -> bytes:
    return _REFUSED.pack(Kind.REFUSED, VERSION, code, client_index)


def unpack_refused(data: bytes) -> tuple[int, int]:
    """-> (client index, code)"""
    if len(data) != _REFUSED.size:
        raise MalformedPacketError(f"REFUSED of {len(data)} bytes")
    _, _, code, index = _REFUSED.unpack(data)
    return index, code


def pack_header(kind: int, counter: int, index: int) -> bytes:
    """The 12 clear bytes of a sealed datagram, which are its nonce as well."""
    return _SEALED.pack(kind << 56 | counter, index)


def unpack_header(data: bytes) -> tuple[int, int, int]:
    """-> (kind, counter, receiver's index) of a whole sealed datagram."""
    if not HEADER_BYTES + TAG_BYTES <= len(data) <= MAX_DATAGRAM_BYTES:
        raise MalformedPacketError(f"sealed datagram of {len(data)} bytes")
    word, index = _SEALED.unpack_from(data)
    return word >> 56, word & (COUNTER_LIMIT - 1), index


class AudioFlag(IntEnum):
    """Flags of an audio packet; a packet with a bit not listed here is ignored."""

    FIRST = 0x01  # first packet of a talkspurt: the encoder was reset, so reset the decoder
    LAST = 0x02  # last packet of a talkspurt: silence follows, conceal nothing
    COPIES = 0x04  # frames of earlier packets come once more, before its own


_FRAME_FLAGS = AudioFlag.FIRST | AudioFlag.LAST
_KNOWN_FLAGS = _FRAME_FLAGS | AudioFlag.COPIES
_UPLINK = struct.Struct(">IB")
_DOWNLINK = struct.Struct(">IBB")
_AUDIBLE = struct.Struct(">BBH")
_COPY = struct.Struct(">BBH")

CAPTURE_UNIT_SAMPLES = 120  # 2.5 ms, the shortest Opus frame
MAX_AUDIBLE = 32
MAX_COPIES = 3


@dataclass(frozen=True, slots=True)
class Copy:
    """A frame of an earlier packet, once more.  back: how much earlier, in units of 2.5 ms, 1 to
    255; flags: FIRST if that packet had it."""

    back: int
    flags: int
    opus: bytes

    def timestamp(self, of_packet: int) -> int:
        return (of_packet - self.back * CAPTURE_UNIT_SAMPLES) & 0xFFFF_FFFF


Copies = tuple[Copy, ...]


def _pack_opus(copies: Copies, opus: bytes) -> bytes:
    """The end of an audio packet

    +------+-------------------------------------------------------+-------------+
    | n u8 | n times: back u8 | flags u8 | length u16 | Opus packet | Opus packet |
    +------+-------------------------------------------------------+-------------+
     \\_____________ with the flag COPIES, n is 1 to 3 ____________/
    """
    if not copies:
        return opus
    parts = [bytes((len(copies),))]
    for copy in copies:
        parts += (_COPY.pack(copy.back, copy.flags, len(copy.opus)), copy.opus)
    return b"".join((*parts, opus))


def _unpack_opus(plaintext: bytes, at: int, flags: int) -> tuple[Copies, bytes]:
    if not flags & AudioFlag.COPIES:
        return (), plaintext[at:]
    if at >= len(plaintext) or not 0 < plaintext[at] <= MAX_COPIES:
        raise MalformedPacketError("copies without a number that there may be")
    copies = []
    count, at = plaintext[at], at + 1
    for _ in range(count):
        if at + _COPY.size > len(plaintext):
            raise MalformedPacketError("copies cut short")
        back, copy_flags, length = _COPY.unpack_from(plaintext, at)
        at += _COPY.size
        if not back or copy_flags & ~AudioFlag.FIRST or at + length > len(plaintext):
            raise MalformedPacketError("a copy that cannot be")
        copies.append(Copy(back, copy_flags, plaintext[at : at + length]))
        at += length
    return tuple(copies), plaintext[at:]


def _fitting(copies: Copies, room_bytes: int) -> Copies:
    """As many of them, the nearest first, as a datagram has room for."""
    fitting: list[Copy] = []
    room_bytes -= 1
    for copy in reversed(copies):
        room_bytes -= _COPY.size + len(copy.opus)
        if room_bytes < 0:
            break
        fitting.append(copy)
    return tuple(reversed(fitting))


@dataclass(frozen=True, slots=True)
class UplinkAudio:
    """What a speaker sends, inside an AUDIO datagram.

    +---------------+-------+-----------------------------------+-------------+
    | timestamp u32 | flags | copies of earlier frames, if any  | Opus packet |
    +---------------+-------+-----------------------------------+-------------+

    timestamp: of the first sample, in samples of 48 kHz.  copies: the oldest first; those for which
    a datagram has no room stay out of it.
    """

    timestamp: int
    flags: int
    opus: bytes
    copies: Copies = ()

    def pack(self) -> bytes:
        copies = self.copies
        if copies:
            copies = _fitting(copies, MAX_PLAINTEXT_BYTES - _UPLINK.size - len(self.opus))
        flags = self.flags | AudioFlag.COPIES if copies else self.flags
        return _UPLINK.pack(self.timestamp, flags) + _pack_opus(copies, self.opus)

    @classmethod
    def unpack(cls, plaintext: bytes) -> "UplinkAudio":
        if len(plaintext) < _UPLINK.size:
            raise MalformedPacketError("audio too short")
        timestamp, flags = _UPLINK.unpack_from(plaintext)
        if flags & ~_KNOWN_FLAGS:
            raise MalformedPacketError("unknown audio flags")
        copies, opus = _unpack_opus(plaintext, _UPLINK.size, flags)
        return cls(timestamp, flags & _FRAME_FLAGS, opus, copies)


@dataclass(frozen=True, slots=True)
class Audible:
    """One speaker in a mix.  seat: see the roster; level: -dBov, 0 (loudest) to 127 (RFC 6464);
    capture: the speaker's own timestamp of what is heard here, in units of 2.5 ms, modulo 2**16.
    """

    seat: int
    level: int
    capture: int


@dataclass(frozen=True, slots=True)
class DownlinkAudio:
    """What the server sends to each listener: one mix.  Identical for a whole mix class.

    +---------------+-------+---+---------------------------------+----------------+-------------+
    | timestamp u32 | flags | n | n x (seat u8, level u8, capture | copies, if any | Opus packet |
    |               |  u8   |u8 |      u16)                       |                |             |
    +---------------+-------+---+---------------------------------+----------------+-------------+

    timestamp: the space's clock, in samples of 48 kHz.  copies: as in UplinkAudio.
    """

    timestamp: int
    flags: int
    audible: tuple[Audible, ...]
    opus: bytes
    copies: Copies = ()

    def pack(self) -> bytes:
        heard = b"".join(_AUDIBLE.pack(a.seat, a.level, a.capture) for a in self.audible)
        copies = self.copies
        if copies:
            taken = _DOWNLINK.size + len(heard) + len(self.opus)
            copies = _fitting(copies, MAX_PLAINTEXT_BYTES - taken)
        flags = self.flags | AudioFlag.COPIES if copies else self.flags
        head = _DOWNLINK.pack(self.timestamp, flags, len(self.audible))
        return head + heard + _pack_opus(copies, self.opus)

    @classmethod
    def unpack(cls, plaintext: bytes) -> "DownlinkAudio":
        if len(plaintext) < _DOWNLINK.size:
            raise MalformedPacketError("audio too short")
        timestamp, flags, count = _DOWNLINK.unpack_from(plaintext)
        if flags & ~_KNOWN_FLAGS:
            raise MalformedPacketError("unknown audio flags")
        end = _DOWNLINK.size + count * _AUDIBLE.size
        if count > MAX_AUDIBLE or len(plaintext) < end:
            raise MalformedPacketError("audible speakers cut short")
        audible = tuple(
            Audible(*_AUDIBLE.unpack_from(plaintext, at))
            for at in range(_DOWNLINK.size, end, _AUDIBLE.size)
        )
        copies, opus = _unpack_opus(plaintext, end, flags)
        return cls(timestamp, flags & _FRAME_FLAGS, audible, opus, copies)


# -- crowd: several packets of a mix in one datagram --------------------------------------------

MAX_CROWD_PACKETS = 3
_LENGTH = struct.Struct(">H")


def gather(packets: Sequence[bytes]) -> list[tuple[Kind, bytes]]:
    """Plaintexts of AUDIO, oldest first -> (kind, plaintext) of the datagrams that hold them: one
    in all if they fit.

    CROWD, server to client: one to three times

    +------------+--------------------+
    | length u16 | plaintext of AUDIO |
    +------------+--------------------+
    """
    datagrams: list[list[bytes]] = []
    room = 0
    for packet in packets:
        size = _LENGTH.size + len(packet)
        if size > room or len(datagrams[-1]) == MAX_CROWD_PACKETS:
            datagrams.append([])
            room = MAX_PLAINTEXT_BYTES
        datagrams[-1].append(packet)
        room -= size
    return [
        (Kind.AUDIO, held[0])
        if len(held) == 1
        else (Kind.CROWD, b"".join(_LENGTH.pack(len(packet)) + packet for packet in held))
        for held in datagrams
    ]


def crowd_packets(plaintext: bytes) -> Iterator[bytes]:
    """The plaintexts of AUDIO in one of CROWD, oldest first.  Raises MalformedPacketError at the
    first that is not as it should be; those before it hold."""
    at = count = 0
    while at < len(plaintext) or not count:
        if count == MAX_CROWD_PACKETS:
            raise MalformedPacketError("more packets than a datagram may hold")
        if at + _LENGTH.size > len(plaintext):
            raise MalformedPacketError("length of a packet cut short")
        (length,) = _LENGTH.unpack_from(plaintext, at)
        at += _LENGTH.size
        if at + length > len(plaintext):
            raise MalformedPacketError("packet cut short")
        yield plaintext[at : at + length]
        at += length
        count += 1
