"""What bench/peers/jamulus.py speaks is Jamulus's, and an installed server can be measured."""

import os

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.peers.jamulus import (
    FRAME_BYTES,
    Jamulus,
    code,
    code_anew,
    coded_silence,
    pack_message,
    transport,
    unpack_message,
    who_i_am,
)
from protocol.opus import Encoder

INSTALLED = pytest.mark.skipif(Jamulus().missing() is not None, reason=str(Jamulus().missing()))


def _hum(samples: int) -> NDArray[np.float32]:
    angle = 2 * np.pi * 220 / 48_000 * np.arange(samples, dtype=np.float32)
    hum: NDArray[np.float32] = np.float32(0.3) * np.sin(angle)
    return hum


def test_a_message_is_framed_with_its_crc() -> None:
    message = pack_message(20, 5, b"\x01\x02")
    assert message[:-2].hex() == "000014000502000102"
    assert unpack_message(message) == (20, 5, b"\x01\x02")
    assert unpack_message(pack_message(11, 0, b"")) == (11, 0, b"")


def test_what_is_no_message_is_audio() -> None:
    message = pack_message(20, 5, b"\x01\x02")
    for at in range(len(message)):
        changed = bytearray(message)
        changed[at] ^= 0x10
        assert unpack_message(bytes(changed)) is None
    for audio in (b"", b"\x00" * 8, bytes(FRAME_BYTES + 1), message[:-1]):
        assert unpack_message(audio) is None


def test_the_messages_that_let_a_client_in_have_the_lengths_jamulus_asks_for() -> None:
    assert transport().hex() == "2e00000001000180bb00000200010000000000"
    assert len(who_i_am()) == 11


@INSTALLED
def test_sound_is_coded_in_frames_of_128_samples() -> None:
    silence = code(np.zeros(128 * 4 + 5, np.float32))
    assert silence == [coded_silence()] * 4
    hum = code(_hum(128 * 50))
    assert {len(frame) for frame in hum} == {FRAME_BYTES}
    assert coded_silence() not in hum


@INSTALLED
def test_speech_is_coded_anew() -> None:
    encoder = Encoder(bitrate=32_000)
    packets = [encoder.encode(one) for one in _hum(960 * 4).reshape(-1, 960)]
    assert len(code_anew(packets)) == 4 * 960 // 128


@INSTALLED
def test_a_real_server_is_measured() -> None:
    encoder = Encoder(bitrate=32_000)
    speech = [[encoder.encode(one) for one in _hum(48_000).reshape(-1, 960)]]
    before = os.sched_getaffinity(0), os.sched_getscheduler(0)
    row = Jamulus().measure(3, 1, 1.0, speech)
    assert (os.sched_getaffinity(0), os.sched_getscheduler(0)) == before
    assert (row["peer"], row["encrypted"], row["mixes"]) == ("jamulus", False, True)
    assert (row["listeners"], row["talkers"], row["expected"]) == (3, 1, 4 * 375)
    assert row["delivered"] > 0
    assert row["server_cpu"] > 0
    assert row["cpu_us_per_listener_tick"] > row["cpu_us_per_packet"] > 0
    assert "nobody speaks" not in row["reason"]
    assert "heard nothing" not in row["reason"]


@INSTALLED
def test_more_people_than_it_has_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="room for 150"):
        Jamulus().measure(150, 1, 1.0, [[b""]])
