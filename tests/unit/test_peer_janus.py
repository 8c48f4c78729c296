"""Janus as a peer: RTP, SRTP, what is heard, its API; and Janus itself where it is installed."""

import base64
import json
import os
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.peers import rtp
from bench.peers.heard import PACKET_SAMPLES, Speech, decode
from bench.peers.janus import (
    PEERS,
    Control,
    Janus,
    JanusError,
    forwarder,
    participant,
    room,
)
from bench.speech import encode_speech
from protocol.opus import Encoder

KEY = bytes.fromhex("e1f97a0d3e018be0d64fa32c06de41390ec675ad498afeebb6960b3aabe6")


# -- RTP ------------------------------------------------------------------------------------------


def test_what_is_packed_is_read_by_columns() -> None:
    packets = [rtp.pack(96 + n, 0xFFFE + n, 0xFFFF_FFFF + n, 70_000 * n, b"ab") for n in range(3)]
    data = np.zeros((3, 64), np.uint8)
    for row, packet in zip(data, packets, strict=True):
        row[: len(packet)] = np.frombuffer(packet, np.uint8)
    read = rtp.columns(data)
    assert read.payload_types.tolist() == [96, 97, 98]
    assert read.sequences.tolist() == [0xFFFE, 0xFFFF, 0]
    assert read.ssrcs.tolist() == [0, 70_000, 140_000]
    assert packets[1][:8].hex() == "8061ffff" + "00000000"
    assert rtp.payload(packets[2]) == b"ab"


def test_a_marker_is_no_part_of_the_payload_type() -> None:
    data = np.frombuffer(rtp.pack(0x80 | 111, 1, 2, 3, b""), np.uint8)[None]
    assert rtp.columns(data).payload_types.tolist() == [111]


def test_srtp_keys_are_those_of_the_rfc() -> None:
    """RFC 3711, appendix B.3."""
    keys = rtp.Srtp(KEY)
    assert keys.cipher_key.hex() == "c61e7a93744f39ee10734afe3ff7a087"
    assert keys.salt.hex() == "30cbbc08863d8c85d49db34a9ae1"
    assert keys.authentication_key.hex() == "cebe321f6ff7716b6fd4ab49af256a156d38baa4"


SEALED = bytes.fromhex(
    "800f1234decafbadcafebabe4e55dc4ce79978d88ca4d215949d2402b78d6acc99ea179b8dbb"
)


def test_srtp_opens_what_libsrtp_has_sealed() -> None:
    """The reference packet of libsrtp's own tests."""
    assert rtp.Srtp(KEY).open(SEALED) == b"\xab" * 16


@pytest.mark.parametrize("at", [0, 3, 8, 12, 27, 28, 37])
def test_srtp_refuses_what_was_changed(at: int) -> None:
    changed = bytearray(SEALED)
    changed[at] ^= 1
    with pytest.raises(rtp.SrtpError):
        rtp.Srtp(KEY).open(bytes(changed))


def test_srtp_refuses_another_key_and_what_is_too_short() -> None:
    with pytest.raises(rtp.SrtpError):
        rtp.Srtp(KEY[::-1]).open(SEALED)
    with pytest.raises(rtp.SrtpError):
        rtp.Srtp(KEY).open(SEALED[:21])
    with pytest.raises(ValueError, match="29 bytes"):
        rtp.Srtp(KEY[:-1])


# -- what is heard --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voices() -> list[list[bytes]]:
    return encode_speech(2)


def coded(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """As a mixer encodes it and a listener decodes it."""
    encoder = Encoder(bitrate=32_000, complexity=4)
    return decode([encoder.encode(block) for block in sound.reshape(-1, PACKET_SAMPLES)])


def test_a_second_of_a_mix_is_found_in_what_was_said(voices: list[list[bytes]]) -> None:
    sound = [decode(packets) for packets in voices]
    mix = coded(sound[0] + np.roll(sound[1], 48_000))
    for first in (50, 123, 400):
        piece = mix[first * PACKET_SAMPLES :][:48_000]
        mine, others = Speech(voices[0]).find(piece), Speech(voices[1]).find(piece)
        assert mine.found
        assert others.found
        assert mine.packet == first
        assert others.packet == (first - 50) % len(voices[1])


def test_neither_silence_nor_another_voice_is_found(voices: list[list[bytes]]) -> None:
    other = coded(decode(voices[1]))
    speech = Speech(voices[0])
    assert not speech.find(np.zeros(48_000, np.float32)).found
    assert not any(speech.find(other[at:][:48_000]).found for at in range(0, 480_000, 48_000))


# -- the API --------------------------------------------------------------------------------------


def test_bodies() -> None:
    assert room() == {
        "request": "create",
        "room": 1,
        "sampling_rate": 48_000,
        "default_bitrate": 32_000,
        "default_prebuffering": 1,
        "allow_rtp_participants": True,
    }
    assert participant(5_004, 97, muted=True) == {
        "request": "join",
        "room": 1,
        "muted": True,
        "rtp": {"ip": "127.0.0.1", "port": 5_004, "payload_type": 97},
    }
    plain = forwarder(5_004, 7, None)
    assert plain == {
        "request": "rtp_forward",
        "room": 1,
        "host": "127.0.0.1",
        "port": 5_004,
        "ssrc": 7,
        "codec": "opus",
        "ptype": 96,
    }
    sealed = forwarder(5_004, 7, KEY)
    assert base64.b64decode(sealed.pop("srtp_crypto")) == KEY
    assert sealed.pop("srtp_suite") == 80
    assert sealed == plain


@pytest.fixture
def ends() -> Iterator[tuple[Control, socket.socket]]:
    """A way to speak to Janus, and the end of it where Janus would be."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Control(ours), theirs


def answer(theirs: socket.socket, **fields: object) -> None:
    theirs.send(json.dumps(fields).encode())


def test_a_reply_is_told_from_news_and_from_the_acknowledgement(
    ends: tuple[Control, socket.socket],
) -> None:
    control, theirs = ends
    answer(theirs, janus="event", plugindata={"data": {"audiobridge": "joined"}})
    answer(theirs, janus="ack", transaction="1")
    joined = {"audiobridge": "joined", "rtp": {"ip": "127.0.0.1", "port": 10_002}}
    answer(theirs, janus="event", transaction="1", plugindata={"data": joined})
    assert control.ask(5, {"request": "join"}) == joined
    assert json.loads(theirs.recv(1_000)) == {
        "janus": "message",
        "transaction": "1",
        "handle_id": 5,
        "body": {"request": "join"},
    }


def test_all_that_is_asked_belongs_to_the_session(ends: tuple[Control, socket.socket]) -> None:
    control, theirs = ends
    answer(theirs, janus="server_info", transaction="1", version_string="1.1.2")
    answer(theirs, janus="success", transaction="2", data={"id": 77})
    answer(theirs, janus="success", transaction="3", data={"id": 88})
    assert control.begin() == "1.1.2"
    assert control.handle() == 88
    asked = [json.loads(theirs.recv(1_000)) for _ in range(3)]
    assert [one.get("session_id") for one in asked] == [None, None, 77]


def test_refusals_say_why(ends: tuple[Control, socket.socket]) -> None:
    control, theirs = ends
    answer(theirs, janus="error", transaction="1", error={"code": 458, "reason": "No such session"})
    with pytest.raises(JanusError, match="refuses 'attach': No such session"):
        control.handle()
    data = {"error_code": 485, "error": "No such room (1)"}
    answer(theirs, janus="success", transaction="2", plugindata={"data": data})
    with pytest.raises(JanusError, match=r"refuses 'join': No such room \(1\)"):
        control.ask(5, {"request": "join"})


def test_news_are_skipped_without_waiting(ends: tuple[Control, socket.socket]) -> None:
    control, theirs = ends
    for _ in range(3):
        answer(theirs, janus="event")
    assert control.skip_news() == 3
    assert control.skip_news() == 0
    theirs.close()
    with pytest.raises(JanusError, match="closed"):
        control.skip_news()
    with pytest.raises(JanusError, match="does not answer 'info'"):
        control.begin()


# -- Janus ----------------------------------------------------------------------------------------


@pytest.fixture
def own_scheduling() -> Iterator[None]:
    """A measurement takes a core for itself; the other tests shall not have it."""
    scheduler, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    os.sched_setscheduler(0, scheduler, parameters)


def test_where_janus_is_missing_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert [peer.missing() for peer in PEERS] == [
        "the program janus is not installed (Debian: apt install janus)"
    ] * 3


@pytest.mark.skipif(PEERS[0].missing() is not None, reason="janus is not installed")
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.usefixtures("own_scheduling")
def test_three_listeners(peer: Janus, voices: list[list[bytes]]) -> None:
    cores = os.sched_getaffinity(0)
    row = peer.measure(3, 2, 1.0, voices)
    assert os.sched_getaffinity(0) == cores
    assert list(row) == [
        *("peer", "version", "encrypted", "mixes", "listeners", "talkers", "seconds", "expected"),
        *("delivered", "loss", "cpu_us_per_packet", "cpu_us_per_listener_tick", "server_cpu"),
        *("delay_ms", "generator_busy", "generator_lateness_ms", "valid", "reason"),
    ]
    assert row["peer"] == peer.name
    assert row["encrypted"] == (peer.name == "janus-srtp")
    assert (row["listeners"], row["talkers"], row["mixes"]) == (3, 2, True)
    assert 0 < row["delivered"] <= row["expected"]
    assert row["server_cpu"] > 0
    assert row["loss"] == pytest.approx(1 - row["delivered"] / row["expected"])
    # Late talkers may make it invalid, on a busy machine; but what came has to be openable.
    assert "cannot hear" not in row["reason"]
    assert row["valid"] == (not row["reason"])
