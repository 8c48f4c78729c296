"""Counting what thousands of streams delivered: gaps, wraps, what came twice or out of order."""

import random
import socket

import numpy as np
import pytest

from bench.polled import Poller, Tally, dropped_by_kernel, headers, udp_socket
from protocol.packets import Kind, pack_header


def count(tally: Tally, *packets: tuple[int, int], bits: int = 64) -> None:
    """packets: (stream, number), all in one batch."""
    streams, numbers = zip(*packets, strict=True)
    tally.count(np.array(streams, np.intp), np.array(numbers, np.int64), bits)


def counted(tally: Tally) -> tuple[int, int, int, int]:
    return tally.delivered, tally.expected, tally.duplicates, tally.reordered


def test_each_stream_is_counted_by_its_own_numbers() -> None:
    tally = Tally(3)
    count(tally, (0, 100), (2, 7))
    count(tally, (0, 101), (2, 8))
    assert counted(tally) == (4, 4, 0, 0)
    assert tally.delivered_by_stream.tolist() == [2, 0, 2]
    assert tally.expected_by_stream.tolist() == [2, 0, 2]


def test_what_is_missing_is_expected_but_not_delivered() -> None:
    tally = Tally(2)
    count(tally, (0, 0), (1, 0))
    count(tally, (0, 5), (1, 1))
    assert counted(tally) == (4, 8, 0, 0)
    assert tally.expected_by_stream.tolist() == [6, 2]


def test_a_stream_may_come_many_times_in_one_batch() -> None:
    tally = Tally(2)
    count(tally, (0, 0), (1, 4), (0, 1), (0, 2), (1, 6), (0, 4), (0, 3))
    assert counted(tally) == (7, 8, 0, 1)


def test_what_comes_late_is_delivered_once() -> None:
    tally = Tally(1)
    count(tally, (0, 10))
    count(tally, (0, 13))
    count(tally, (0, 11))
    assert counted(tally) == (3, 4, 0, 1)
    count(tally, (0, 11), (0, 13), (0, 10))
    assert counted(tally) == (3, 4, 3, 1)


def test_what_is_too_old_to_be_known_is_not_delivered() -> None:
    tally = Tally(1)
    count(tally, (0, 0))
    count(tally, (0, 65))
    count(tally, (0, 2))  # 63 below the newest: the oldest that is remembered
    assert counted(tally) == (3, 66, 0, 1)
    count(tally, (0, 1))
    assert counted(tally) == (3, 66, 1, 1)


def test_a_leap_beyond_what_is_remembered_starts_afresh() -> None:
    tally = Tally(1)
    count(tally, (0, 0), (0, 1), (0, 1_000))
    count(tally, (0, 999), (0, 1_000))
    assert counted(tally) == (4, 1_001, 1, 1)


@pytest.mark.parametrize(("bits", "first"), [(8, 0), (16, (1 << 16) - 300)])
def test_short_numbers_wrap(bits: int, first: int) -> None:
    tally = Tally(1)
    for number in range(first, first + 600):
        if (number - first) % 10 != 5:
            count(tally, (0, number % (1 << bits)), bits=bits)
    assert (tally.delivered, tally.expected) == (540, 600)
    assert tally.duplicates == tally.reordered == 0


def test_short_numbers_may_be_reordered_over_the_wrap() -> None:
    tally = Tally(1)
    count(tally, (0, 254), (0, 0), (0, 255), (0, 1), bits=8)
    assert counted(tally) == (4, 4, 0, 1)


def test_a_window_forgets_what_was_before_it() -> None:
    tally = Tally(2)
    count(tally, (0, 0), (0, 4), (1, 9), (1, 9))
    tally.begin()
    assert counted(tally) == (0, 0, 0, 0)
    count(tally, (0, 3))  # late, but of the time before
    assert counted(tally) == (0, 0, 0, 0)
    count(tally, (0, 6))
    assert counted(tally) == (1, 2, 0, 0)


def test_a_stream_that_begins_within_the_window_begins_with_its_first_number() -> None:
    tally = Tally(2)
    count(tally, (0, 50))
    tally.begin()
    count(tally, (1, 1_000), (1, 1_001))
    assert counted(tally) == (2, 2, 0, 0)


def test_it_counts_as_a_loop_over_packets_would() -> None:
    rng = random.Random(5)
    streams = 20
    sent = [(s, n) for n in range(200) for s in range(streams)]
    came = [packet for packet in sent if rng.random() > 0.1]
    came += rng.choices(came, k=100)
    came.sort(key=lambda packet: packet[1] + rng.uniform(0, 20))
    tally = Tally(streams)
    count(tally, *((stream, -1) for stream in range(streams)))
    tally.begin()
    at = 0
    while at < len(came):
        size = rng.randrange(1, 90)
        count(tally, *came[at : at + size])
        at += size
    seen = set(came)
    newest = {stream: max(n for s, n in seen if s == stream) for stream in range(streams)}
    assert tally.delivered == len(seen)
    assert tally.expected == sum(n + 1 for n in newest.values())
    assert tally.duplicates == len(came) - len(seen) > 0
    assert tally.reordered > 0


def test_headers_are_read_by_columns() -> None:
    packets = [(Kind.AUDIO, 5, 0), (Kind.FEED, (1 << 56) - 1, 4_000_000_000), (Kind.CONTROL, 0, 7)]
    data = np.zeros((3, 40), np.uint8)
    for row, packet in enumerate(packets):
        data[row, :12] = np.frombuffer(pack_header(*packet), np.uint8)
    kinds, counters, indices = headers(data)
    assert list(zip(kinds.tolist(), counters.tolist(), indices.tolist(), strict=True)) == packets


def test_sockets_are_asked_in_turn_and_never_waited_for() -> None:
    with udp_socket() as first, udp_socket() as second, udp_socket() as sender:
        poller = Poller([first, second], rows=4, room_bytes=8)
        assert poller.poll() is None
        for length in range(1, 7):
            sender.sendto(bytes([length]) * length, second.getsockname())
        sender.sendto(b"more than there is room for", first.getsockname())
        turn, data, lengths = poller.poll() or pytest.fail("nothing was there")
        assert (turn, lengths.tolist(), data[:, 0].tolist()) == (1, [1, 2, 3, 4], [1, 2, 3, 4])
        turn, data, lengths = poller.poll() or pytest.fail("nothing was there")
        assert (turn, lengths.tolist(), data.tobytes()) == (0, [8], b"more tha")
        turn, data, lengths = poller.poll() or pytest.fail("nothing was there")
        assert (turn, lengths.tolist()) == (1, [5, 6])
        assert poller.poll() is None
        assert (poller.calls, poller.datagrams) == (3, 7)


def test_all_sockets_fill_one_table() -> None:
    with udp_socket() as first, udp_socket() as second, udp_socket() as sender:
        poller = Poller([first, second], rows=4, room_bytes=8)
        assert poller.poll_all() is None
        for length in (1, 2, 3):
            sender.sendto(bytes(length), first.getsockname())
            sender.sendto(bytes(length + 3), second.getsockname())
        came = []
        while (batch := poller.poll_all()) is not None:
            came.append(batch[1].tolist())
        assert [len(lengths) for lengths in came] == [4, 2]
        assert sorted(came[0] + came[1]) == [1, 2, 3, 4, 5, 6]


def test_a_peer_that_has_ended_is_no_error() -> None:
    with udp_socket() as one:
        gone = udp_socket()
        one.connect(gone.getsockname())
        gone.close()
        one.send(b"anybody there?")
        assert Poller([one]).poll() is None


def test_a_full_buffer_is_noticed() -> None:
    with udp_socket(1) as small, udp_socket() as sender:
        assert dropped_by_kernel([small, sender]) == 0
        for _ in range(100):
            sender.sendto(bytes(1_000), small.getsockname())
        kept = small.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 1_000
        assert dropped_by_kernel([small, sender]) >= 100 - kept
