"""Voice notes: packed, unpacked, measured, and what is none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.notes import (
    MAX_NOTE_BYTES,
    MAX_NOTE_MS,
    NoteError,
    duration_ms,
    pack,
    unpack,
)
from protocol.opus import Encoder

# The head of a packet says how long it sounds (RFC 6716, section 3.1): the first five bits are the
# configuration, the last two how many frames there are.
MS_2_5 = bytes([16 << 3])  # CELT, 2.5 ms
MS_20 = bytes([31 << 3])  # CELT, 20 ms
MS_60 = bytes([3 << 3])  # SILK, 60 ms


def test_a_note_holds_its_packets_each_behind_its_length() -> None:
    assert pack([MS_20 + b"abc", MS_60]) == b"\0\4\xf8abc" + b"\0\1\x18"
    assert unpack(b"\0\4\xf8abc\0\1\x18") == [MS_20 + b"abc", MS_60]


def test_a_note_is_as_long_as_its_packets_together_rounded_up() -> None:
    assert duration_ms(pack([MS_20])) == 20
    assert duration_ms(pack([MS_60, MS_20, MS_20])) == 100
    assert duration_ms(pack([MS_2_5])) == 3
    assert duration_ms(pack([MS_2_5] * 4)) == 10


def test_what_an_encoder_makes_is_a_note() -> None:
    encoder = Encoder(bitrate=24_000)
    packets = [encoder.encode(np.zeros(960, np.float32)) for _ in range(50)]
    assert unpack(pack(packets)) == packets
    assert duration_ms(pack(packets)) == 1_000


def test_a_note_may_be_140_seconds_long_and_not_more() -> None:
    whole = [MS_20] * (MAX_NOTE_MS // 20)
    assert duration_ms(pack(whole)) == MAX_NOTE_MS
    with pytest.raises(NoteError, match="140003 ms"):
        pack([*whole, MS_2_5])
    longer = pack(whole) + b"\0\1" + MS_20
    with pytest.raises(NoteError, match="140020 ms"):
        unpack(longer)


def test_a_note_may_be_a_million_bytes_long_and_not_more() -> None:
    packets = [MS_20.ljust(3_998)] * 250
    assert len(pack(packets)) == MAX_NOTE_BYTES
    with pytest.raises(NoteError, match="1000003 bytes"):
        pack([*packets, MS_20])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",  # half a length
        b"\0\2" + MS_20,  # cut off
        b"\0\1" + MS_20 + b"\0",
        b"\0\0",  # an empty packet
        b"\0\1" + bytes([31 << 3 | 3]),  # ends before its frame count
        b"\0\2" + bytes([31 << 3 | 3, 0]),  # no frames
        b"\x0f\xa1" + MS_20.ljust(4_001),  # longer than any packet
    ],
)
def test_what_is_no_note_is_refused(data: bytes) -> None:
    with pytest.raises(NoteError):
        unpack(data)
    with pytest.raises(NoteError):
        duration_ms(data)


@pytest.mark.parametrize("packets", [[], [b""], [MS_20.ljust(4_001)], [MS_20.ljust(70_000)]])
def test_what_makes_no_note_is_refused(packets: list[bytes]) -> None:
    with pytest.raises(NoteError):
        pack(packets)


@given(st.binary(max_size=200))
def test_line_noise_is_a_note_or_refused(data: bytes) -> None:
    try:
        packets = unpack(data)
    except NoteError:
        return
    assert pack(packets) == data
    assert 0 < duration_ms(data) <= MAX_NOTE_MS
