"""What bench/peers/mumble.py speaks is Mumble's, and an installed server can be measured."""

import os

import pytest

from bench.peers.mumble import (
    Mumble,
    Ocb2,
    Seal,
    heard,
    pack_fields,
    pack_number,
    unpack_fields,
    unpack_number,
    voice,
)

KEY = bytes(range(16))


@pytest.mark.parametrize(
    ("plain", "sealed", "tag"),
    [  # draft-krovetz-ocb-00, appendix A; the nonce is the same as the key
        (b"", "", "bf3108130773ad5ec70ec69e7875a7b0"),
        (
            bytes(range(40)),
            "f75d6bc8b4dc8d66b836a2b08b32a6369f1cd3c5228d79fd6c267f5f6aa7b231c7dfb9d59951ae9c",
            "9db0cdf880f73e3e10d4eb3217766688",
        ),
    ],
)
def test_ocb2_agrees_with_the_published_vectors(plain: bytes, sealed: str, tag: str) -> None:
    assert Ocb2(KEY).seal(KEY, plain) == (bytes.fromhex(sealed), bytes.fromhex(tag))
    assert Ocb2(KEY).open(KEY, bytes.fromhex(sealed)) == (plain, bytes.fromhex(tag))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 100])
def test_ocb2_opens_what_it_sealed_at_any_length(length: int) -> None:
    plain = os.urandom(length)
    sealed, tag = Ocb2(KEY).seal(KEY, plain)
    assert sealed != plain
    assert Ocb2(KEY).open(KEY, sealed) == (plain, tag)


def _ends() -> tuple[Seal, Seal]:
    one, other = bytes([0xFE]) + bytes(15), bytes([0xFF]) * 16
    return Seal(KEY, sending=one, receiving=other), Seal(KEY, sending=other, receiving=one)


def test_sealed_datagrams_are_opened_past_the_wraps_of_the_nonce_and_past_gaps() -> None:
    ours, theirs = _ends()
    datagrams = [ours.seal(b"packet %d" % n) for n in range(600)]
    assert [one[0] for one in datagrams[:3]] == [0xFF, 0, 1]  # what is counted: up by one each time
    for n in (0, 1, 2, 100, 355, 599):
        assert theirs.open(datagrams[n]) == b"packet %d" % n
    assert ours.open(theirs.seal(b"back")) == b"back"  # all 128 bits of their nonce wrap


def test_what_was_changed_or_repeated_is_not_opened() -> None:
    ours, theirs = _ends()
    datagram = ours.seal(b"a packet that is longer than a block")
    for at in range(len(datagram)):
        changed = bytearray(datagram)
        changed[at] ^= 1
        assert theirs.open(bytes(changed)) is None
    assert theirs.open(datagram[:3]) is None
    assert theirs.open(datagram) is not None
    assert theirs.open(datagram) is None


@pytest.mark.parametrize(
    ("value", "packed"),
    [
        (0, "00"),
        (0x7F, "7f"),
        (0x80, "8080"),
        (0x3FFF, "bfff"),
        (0x4000, "c04000"),
        (0x1FFFFF, "dfffff"),
        (0x200000, "e0200000"),
        (0xFFFFFFF, "efffffff"),
        (0x10000000, "f010000000"),
        (0xFFFFFFFF, "f0ffffffff"),
    ],
)
def test_numbers_are_packed_as_mumble_packs_them(value: int, packed: str) -> None:
    assert pack_number(value).hex() == packed
    assert unpack_number(b"." + pack_number(value), 1) == (value, 1 + len(packed) // 2)


@pytest.mark.parametrize("packed", ["", "80", "f0000000", "f4", "ff"])
def test_half_a_number_is_refused(packed: str) -> None:
    with pytest.raises(ValueError, match="not a number"):
        unpack_number(bytes.fromhex(packed), 0)


def test_what_a_talker_says_is_what_a_listener_hears_with_the_session_in_front() -> None:
    packet = voice(200, b"frame" * 30)
    relayed = packet[:1] + pack_number(7) + packet[1:]
    assert heard(relayed) == (7, 200, b"frame" * 30)
    for broken in (b"", b"\x20" + relayed[1:], relayed[:-1], relayed + b"."):
        with pytest.raises(ValueError, match="packet"):
            heard(broken)


def test_protobuf_fields_are_read_back_and_those_of_other_kinds_skipped() -> None:
    assert pack_fields((1, 300), (2, b"testing")).hex() == "08ac02120774657374696e67"
    others = bytes.fromhex("29 0000000000000000 35 00000000")  # 5: 64 bits, 6: 32 bits
    fields = unpack_fields(pack_fields((1, 1 << 40), (15, b"")) + others + pack_fields((3, 7)))
    assert (fields[1], fields[15], fields[3]) == (1 << 40, b"", 7)


@pytest.mark.parametrize("message", ["08", "08ff", "1205aa", "0b", "29 00"])
def test_broken_protobuf_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match="protobuf"):
        unpack_fields(bytes.fromhex(message))


@pytest.mark.skipif(Mumble().missing() is not None, reason=str(Mumble().missing()))
def test_a_real_server_is_measured() -> None:
    speech = [[os.urandom(80) for _ in range(7)] for _ in range(2)]
    before = os.sched_getaffinity(0), os.sched_getscheduler(0)
    row = Mumble().measure(3, 2, 1.0, speech)
    assert (os.sched_getaffinity(0), os.sched_getscheduler(0)) == before
    assert (row["peer"], row["encrypted"], row["mixes"]) == ("mumble", True, False)
    assert (row["listeners"], row["talkers"], row["expected"]) == (3, 2, 300)
    assert row["delivered"] > 0
    assert row["server_cpu"] > 0
    assert row["cpu_us_per_listener_tick"] > row["cpu_us_per_packet"] > 0
    assert "not what was said" not in row["reason"]
    assert "heard nothing" not in row["reason"]
