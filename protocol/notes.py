"""A voice note: Opus packets in a row, each behind its length.

    +------------+---------------+------------+---------------+
    | length u16 | Opus packet   | length u16 | Opus packet   | ...
    +------------+---------------+------------+---------------+

The lengths are big-endian.  How long a packet sounds is in its head (RFC 6716, section 3.1), so
a note is measured and checked without a decoder, by both ends in the same way.
"""

from collections.abc import Iterable, Iterator

from protocol.opus import MAX_PACKET_BYTES, OpusError, packet_samples

MAX_NOTE_MS = 140_000
MAX_NOTE_BYTES = 1_000_000
_SAMPLES_PER_MS = 48


class NoteError(ValueError):
    """What is no voice note, or too long for one."""


def pack(packets: Iterable[bytes]) -> bytes:
    """A note of Opus packets.  Raises NoteError if they make none."""
    packets = list(packets)
    if any(len(packet) > MAX_PACKET_BYTES for packet in packets):
        raise NoteError(f"a packet of more than {MAX_PACKET_BYTES} bytes")
    data = b"".join(len(packet).to_bytes(2, "big") + packet for packet in packets)
    duration_ms(data)
    return data


def unpack(data: bytes) -> list[bytes]:
    """The packets of a note, at least one.  Raises NoteError if it is cut off, longer than
    MAX_NOTE_MS or MAX_NOTE_BYTES, or holds something that is no Opus packet."""
    return [packet for packet, _ in _measured(data)]


def duration_ms(data: bytes) -> int:
    """How long a note sounds, rounded up.  Raises NoteError as `unpack` does."""
    return _ms(sum(samples for _, samples in _measured(data)))


def _measured(data: bytes) -> list[tuple[bytes, int]]:
    """-> (packet, its samples at 48 kHz)."""
    if not data:
        raise NoteError("an empty note")
    if len(data) > MAX_NOTE_BYTES:
        raise NoteError(f"a note of {len(data)} bytes")
    try:
        measured = [(packet, packet_samples(packet)) for packet in _split(data)]
    except OpusError as error:
        raise NoteError(f"not Opus: {error}") from error
    duration = _ms(sum(samples for _, samples in measured))
    if duration > MAX_NOTE_MS:
        raise NoteError(f"a note of {duration} ms")
    return measured


def _split(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or end > len(data):
            raise NoteError("a note that is cut off")
        if end - at - 2 > MAX_PACKET_BYTES:
            raise NoteError(f"a packet of {end - at - 2} bytes")
        yield data[at + 2 : end]
        at = end


def _ms(samples: int) -> int:
    return -(-samples // _SAMPLES_PER_MS)
