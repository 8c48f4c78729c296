"""The datagrams byte by byte: what is packed is what SPEC.md draws, and only that is unpacked."""

import contextlib
import inspect
import struct
from collections.abc import Callable
from enum import IntEnum
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import packets
from protocol.packets import (
    COOKIE_BYTES,
    COUNTER_LIMIT,
    HEADER_BYTES,
    HELLO_BYTES,
    HELLO_PAYLOAD_BYTES,
    KEY_ID_BYTES,
    MAX_AUDIBLE,
    MAX_COPIES,
    MAX_CROWD_PACKETS,
    MAX_DATAGRAM_BYTES,
    MAX_PLAINTEXT_BYTES,
    NO_COOKIE,
    TAG_BYTES,
    VERSION,
    Audible,
    Copy,
    DownlinkAudio,
    Hello,
    Kind,
    MalformedPacketError,
    Refusal,
    UplinkAudio,
    Welcome,
    crowd_packets,
    gather,
    key_id,
    pack_cookie,
    pack_header,
    pack_refused,
    unpack_cookie,
    unpack_header,
    unpack_refused,
)

U8 = st.integers(0, 0xFF)
U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFF_FFFF)
FLAGS = st.integers(0, 3)
HELLO_NOISE_BYTES = HELLO_BYTES - 8 - KEY_ID_BYTES - COOKIE_BYTES

hellos = st.builds(
    Hello,
    version=U8,
    client_index=U32,
    key_id=st.binary(min_size=KEY_ID_BYTES, max_size=KEY_ID_BYTES),
    cookie=st.binary(min_size=COOKIE_BYTES, max_size=COOKIE_BYTES),
    noise=st.binary(min_size=HELLO_NOISE_BYTES, max_size=HELLO_NOISE_BYTES),
)
audible = st.builds(Audible, seat=U8, level=st.integers(0, 127), capture=U16)


# --- a session is made ---


@given(hello=hellos)
def test_a_hello_lies_on_the_wire_as_drawn(hello: Hello) -> None:
    data = hello.pack()
    assert len(data) == HELLO_BYTES
    assert data[0] == Kind.HELLO
    assert data[1] == hello.version
    assert data[2:4] == bytes(2)
    assert data[4:8] == hello.client_index.to_bytes(4)
    assert data[8:16] == hello.key_id
    assert data[16:32] == hello.cookie
    assert data[32:] == hello.noise
    assert Hello.unpack(data) == hello


def test_noise_leaves_the_payload_of_a_hello_just_the_room_that_is_named() -> None:
    ephemeral, static, tags = 32, 32, 2 * TAG_BYTES
    assert ephemeral + static + tags + HELLO_PAYLOAD_BYTES == HELLO_NOISE_BYTES


@given(hello=hellos, cookie=st.binary(min_size=COOKIE_BYTES, max_size=COOKIE_BYTES))
def test_the_prologue_binds_all_of_the_clear_part_of_a_hello(hello: Hello, cookie: bytes) -> None:
    assert hello.prologue == hello.pack()[:32]
    again = Hello(hello.version, hello.client_index, hello.key_id, cookie, hello.noise)
    assert (again.prologue == hello.prologue) is (cookie == hello.cookie)
    other_id = bytes([hello.key_id[0] ^ 1]) + hello.key_id[1:]
    others = {
        Hello(hello.version ^ 1, hello.client_index, hello.key_id, hello.cookie, b"").prologue,
        Hello(hello.version, hello.client_index ^ 1, hello.key_id, hello.cookie, b"").prologue,
        Hello(hello.version, hello.client_index, other_id, hello.cookie, b"").prologue,
    }
    assert len(others) == 3
    assert hello.prologue not in others


@given(size=st.integers(0, 2 * HELLO_BYTES).filter(lambda n: n != HELLO_BYTES))
def test_a_hello_of_another_size_is_malformed(size: int) -> None:
    with pytest.raises(MalformedPacketError):
        Hello.unpack(bytes([Kind.HELLO, VERSION]).ljust(size, b"\0")[:size])


@pytest.mark.parametrize("at", [2, 3])
def test_the_reserved_bytes_are_zero_in_this_version(at: int) -> None:
    noise = bytes(HELLO_NOISE_BYTES)
    ours = bytearray(Hello(VERSION, 7, bytes(KEY_ID_BYTES), NO_COOKIE, noise).pack())
    ours[at] = 1
    with pytest.raises(MalformedPacketError):
        Hello.unpack(bytes(ours))
    # Another version may use them, and is told that it is another version.
    theirs = bytearray(Hello(VERSION + 1, 7, bytes(KEY_ID_BYTES), NO_COOKIE, noise).pack())
    theirs[at] = 1
    assert Hello.unpack(bytes(theirs)).version == VERSION + 1

    welcome = bytearray(Welcome(1, b"noise").pack())
    welcome[at] = 1
    with pytest.raises(MalformedPacketError):
        Welcome.unpack(bytes(welcome))


@given(client=U32, noise=st.binary(min_size=1, max_size=HELLO_BYTES - 8))
def test_a_welcome_is_never_longer_than_the_hello_it_answers(client: int, noise: bytes) -> None:
    welcome = Welcome(client, noise)
    data = welcome.pack()
    assert data[:8] == struct.pack(">BBHI", Kind.WELCOME, VERSION, 0, client)
    assert len(data) <= HELLO_BYTES
    assert Welcome.unpack(data) == welcome


def test_a_welcome_of_another_version_or_of_an_impossible_size_is_malformed() -> None:
    data = Welcome(1, b"noise").pack()
    for wrong in (
        data[:1] + bytes([VERSION + 1]) + data[2:],
        data[:8],  # nothing of Noise in it
        data[:5],
        data.ljust(HELLO_BYTES + 1, b"\0"),
    ):
        with pytest.raises(MalformedPacketError):
            Welcome.unpack(wrong)


@given(index=U32, cookie=st.binary(min_size=COOKIE_BYTES, max_size=COOKIE_BYTES))
def test_a_cookie_takes_24_bytes(index: int, cookie: bytes) -> None:
    data = pack_cookie(index, cookie)
    assert len(data) == 24
    assert data == bytes([Kind.COOKIE, VERSION, 0, 0]) + index.to_bytes(4) + cookie
    assert unpack_cookie(data) == (index, cookie)
    for wrong in (data[:-1], data + b"\0"):
        with pytest.raises(MalformedPacketError):
            unpack_cookie(wrong)


@given(index=U32, code=st.sampled_from(Refusal))
def test_a_refusal_takes_8_bytes(index: int, code: Refusal) -> None:
    data = pack_refused(index, code)
    assert data == bytes([Kind.REFUSED, VERSION]) + int(code).to_bytes(2) + index.to_bytes(4)
    assert unpack_refused(data) == (index, code)
    for wrong in (data[:-1], data + b"\0"):
        with pytest.raises(MalformedPacketError):
            unpack_refused(wrong)


def test_a_refusal_from_a_newer_server_keeps_its_code() -> None:
    assert unpack_refused(struct.pack(">BBHI", Kind.REFUSED, VERSION, 999, 5)) == (5, 999)


def test_a_key_id_names_one_key() -> None:
    ids = {key_id(bytes([n]) * 32) for n in range(50)}
    assert len(ids) == 50
    assert {len(i) for i in ids} == {KEY_ID_BYTES}


# --- the sealed datagrams ---


@given(
    kind=st.sampled_from([Kind.CONTROL, Kind.AUDIO, Kind.FEED]),
    counter=st.integers(0, COUNTER_LIMIT - 1),
    index=U32,
)
def test_the_clear_header_gives_its_parts_back(kind: Kind, counter: int, index: int) -> None:
    header = pack_header(kind, counter, index)
    assert header == bytes([kind]) + counter.to_bytes(7) + index.to_bytes(4)
    assert len(header) == HEADER_BYTES
    assert unpack_header(header + bytes(TAG_BYTES)) == (kind, counter, index)


@pytest.mark.parametrize(
    ("size_bytes", "taken"),
    [
        (0, False),
        (HEADER_BYTES, False),
        (HEADER_BYTES + TAG_BYTES - 1, False),
        (HEADER_BYTES + TAG_BYTES, True),
        (MAX_DATAGRAM_BYTES, True),
        (MAX_DATAGRAM_BYTES + 1, False),
        (65_507, False),
    ],
)
def test_a_sealed_datagram_has_28_to_1200_bytes(size_bytes: int, taken: bool) -> None:
    data = pack_header(Kind.AUDIO, 3, 9).ljust(size_bytes, b"\0")[:size_bytes]
    if taken:
        assert unpack_header(data) == (Kind.AUDIO, 3, 9)
        return
    with pytest.raises(MalformedPacketError):
        unpack_header(data)


def test_a_full_plaintext_makes_a_full_datagram() -> None:
    assert HEADER_BYTES + MAX_PLAINTEXT_BYTES + TAG_BYTES == MAX_DATAGRAM_BYTES == 1_200


# --- audio ---


@given(packet=st.builds(UplinkAudio, timestamp=U32, flags=FLAGS, opus=st.binary(max_size=200)))
def test_uplink_audio_lies_as_drawn(packet: UplinkAudio) -> None:
    data = packet.pack()
    assert data == packet.timestamp.to_bytes(4) + bytes([packet.flags]) + packet.opus
    assert UplinkAudio.unpack(data) == packet


@given(
    packet=st.builds(
        DownlinkAudio,
        timestamp=U32,
        flags=FLAGS,
        audible=st.lists(audible, max_size=MAX_AUDIBLE).map(tuple),
        opus=st.binary(max_size=200),
    )
)
def test_downlink_audio_lies_as_drawn(packet: DownlinkAudio) -> None:
    data = packet.pack()
    assert data[:6] == packet.timestamp.to_bytes(4) + bytes([packet.flags, len(packet.audible)])
    for i, a in enumerate(packet.audible):
        assert data[6 + 4 * i : 10 + 4 * i] == bytes([a.seat, a.level]) + a.capture.to_bytes(2)
    assert data[6 + 4 * len(packet.audible) :] == packet.opus
    assert DownlinkAudio.unpack(data) == packet


@given(flags=st.integers(8, 255))
def test_unknown_audio_flags_are_refused(flags: int) -> None:
    with pytest.raises(MalformedPacketError):
        UplinkAudio.unpack(UplinkAudio(1, flags, b"opus").pack())
    with pytest.raises(MalformedPacketError):
        DownlinkAudio.unpack(DownlinkAudio(1, flags, (), b"opus").pack())


copies = st.lists(
    st.builds(Copy, st.integers(1, 255), st.sampled_from([0, 1]), st.binary(max_size=200)),
    max_size=MAX_COPIES,
).map(tuple)


@given(
    timestamp=st.integers(0, 2**32 - 1),
    flags=st.sampled_from([0, 1, 2, 3]),
    copies=copies,
    opus=st.binary(max_size=300),
)
def test_copies_lie_before_the_frame(
    timestamp: int, flags: int, copies: tuple[Copy, ...], opus: bytes
) -> None:
    up = UplinkAudio(timestamp, flags, opus, copies)
    assert UplinkAudio.unpack(up.pack()) == up
    assert up.pack().endswith(opus)
    down = DownlinkAudio(timestamp, flags, (Audible(1, 2, 3),), opus, copies)
    assert DownlinkAudio.unpack(down.pack()) == down
    without = DownlinkAudio(timestamp, flags, (Audible(1, 2, 3),), opus)
    extra = len(down.pack()) - len(without.pack())
    assert extra == sum(4 + len(copy.opus) for copy in copies) + bool(copies)


def test_copies_that_have_no_room_stay_out_the_furthest_first() -> None:
    copies = tuple(Copy(8 * n, 0, bytes([n]) * 400) for n in (3, 2, 1))
    packet = UplinkAudio(0, 0, b"opus" * 50, copies)
    assert len(packet.pack()) <= MAX_PLAINTEXT_BYTES
    assert UplinkAudio.unpack(packet.pack()).copies == copies[1:]
    full = UplinkAudio(0, 0, bytes(1_167), copies)
    assert UplinkAudio.unpack(full.pack()).copies == ()


@pytest.mark.parametrize(
    "end",
    [
        b"",  # no number
        b"\x00",
        b"\x04" + 4 * b"\x08\x00\x00\x00",  # more than there may be
        b"\x01\x08\x00",  # cut short
        b"\x01\x00\x00\x00\x00",  # of the packet itself
        b"\x01\x08\x02\x00\x00",  # LAST
        b"\x01\x08\x08\x00\x00",  # a flag that there is not
        b"\x01\x08\x81\x00\x00",
        b"\x01\x08\x00\x00\x05opus",  # longer than what there is
    ],
)
def test_copies_that_cannot_be_are_refused(end: bytes) -> None:
    with pytest.raises(MalformedPacketError):
        UplinkAudio.unpack(bytes(4) + b"\x04" + end)
    with pytest.raises(MalformedPacketError):
        DownlinkAudio.unpack(bytes(4) + b"\x04\x00" + end)


def test_more_speakers_than_there_may_be_are_refused() -> None:
    speaker = Audible(1, 2, 3)
    most = DownlinkAudio(0, 0, (speaker,) * MAX_AUDIBLE, b"")
    assert DownlinkAudio.unpack(most.pack()) == most
    with pytest.raises(MalformedPacketError):
        DownlinkAudio.unpack(DownlinkAudio(0, 0, (speaker,) * (MAX_AUDIBLE + 1), b"").pack())


def test_audio_that_is_cut_within_its_header_is_refused() -> None:
    up = UplinkAudio(1, 0, b"").pack()
    down = DownlinkAudio(1, 0, (Audible(1, 2, 3), Audible(4, 5, 6)), b"").pack()
    for size in range(len(up)):
        with pytest.raises(MalformedPacketError):
            UplinkAudio.unpack(up[:size])
    for size in range(len(down)):
        with pytest.raises(MalformedPacketError):
            DownlinkAudio.unpack(down[:size])


# --- several in one datagram ---

PACKETS = st.lists(st.binary(max_size=700), max_size=8)


@given(PACKETS)
def test_what_is_gathered_is_what_comes_out_in_as_few_datagrams_as_hold_it(
    gathered: list[bytes],
) -> None:
    out: list[bytes] = []
    held: list[list[bytes]] = []
    for kind, plaintext in gather(gathered):
        assert len(plaintext) <= MAX_PLAINTEXT_BYTES
        held.append([plaintext] if kind == Kind.AUDIO else list(crowd_packets(plaintext)))
        assert (kind == Kind.CROWD) is (len(held[-1]) > 1)
        out += held[-1]
    assert out == gathered
    for one, other in pairwise(held):
        both = sum(2 + len(packet) for packet in [*one, other[0]])
        assert both > MAX_PLAINTEXT_BYTES or len(one) == MAX_CROWD_PACKETS


def test_a_crowd_lies_as_drawn() -> None:
    assert gather([b"one", b"", b"three"]) == [(Kind.CROWD, b"\0\3one\0\0\0\5three")]
    assert gather([b"alone"]) == [(Kind.AUDIO, b"alone")]
    assert gather([]) == []
    most = bytes(MAX_PLAINTEXT_BYTES)
    assert gather([most, b"x", b"y"]) == [(Kind.AUDIO, most), (Kind.CROWD, b"\0\1x\0\1y")]


@pytest.mark.parametrize(
    ("plaintext", "good"),
    [
        (b"", []),
        (b"\0", []),
        (b"\0\3on", []),
        (b"\0\3one\0", [b"one"]),
        (b"\0\3one\0\4two", [b"one"]),
        (b"\0\1a\0\1b\0\1c\0\1d", [b"a", b"b", b"c"]),
        (b"\0\1a\0\1b\0\1c\0", [b"a", b"b", b"c"]),
    ],
)
def test_what_comes_before_a_malformed_packet_of_a_crowd_holds(
    plaintext: bytes, good: list[bytes]
) -> None:
    packets = crowd_packets(plaintext)
    assert [next(packets) for _ in good] == good
    with pytest.raises(MalformedPacketError):
        next(packets)


# --- all of it ---

UNPACKERS: tuple[Callable[[bytes], object], ...] = (
    Hello.unpack,
    Welcome.unpack,
    unpack_cookie,
    unpack_refused,
    unpack_header,
    UplinkAudio.unpack,
    DownlinkAudio.unpack,
    lambda data: list(crowd_packets(data)),
)


@pytest.mark.parametrize("unpack", UNPACKERS)
@given(data=st.binary(max_size=300) | st.binary(min_size=HELLO_BYTES, max_size=HELLO_BYTES))
def test_whatever_the_bytes_are_only_one_error_comes_of_them(
    unpack: Callable[[bytes], object], data: bytes
) -> None:
    with contextlib.suppress(MalformedPacketError):
        assert unpack(data) is not None


def test_the_codes_of_the_wire_are_distinct_and_fit_their_fields() -> None:
    assert len({int(k) for k in Kind}) == len(Kind)
    assert all(0 < k <= 0xFF for k in Kind)
    assert all(0 < r <= 0xFFFF for r in Refusal)
    enums = [
        e
        for _, e in inspect.getmembers(packets, inspect.isclass)
        if issubclass(e, IntEnum) and e.__module__ == packets.__name__
    ]
    assert len(enums) == 3
    assert all(e.__doc__ for e in enums)
