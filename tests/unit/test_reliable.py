"""The reliable channel over a network that loses, repeats and reorders, on a virtual clock."""

import heapq
import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.reliable import (
    ACK_DELAY_NS,
    FIRST,
    INITIAL_CONGESTION_SEGMENTS,
    INITIAL_RTO_NS,
    LAST,
    MAX_ACK_BODY_BYTES,
    MAX_ATTEMPTS,
    MAX_CONGESTION_SEGMENTS,
    MAX_DATA_BODY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_QUEUED_BYTES,
    MAX_QUEUED_MESSAGES,
    MAX_RTO_NS,
    MAX_SEGMENT_BYTES,
    MIN_RTO_NS,
    RECEIVE_WINDOW_SEGMENTS,
    ChannelError,
    ChannelFull,
    MessageTooLong,
    ReliableChannel,
    RttEstimator,
)

MS = 1_000_000
SECOND = 1_000 * MS
DATAGRAM_BYTES = 1_200
HEADER_AND_TAG_BYTES = 12 + 16
CHUNK_HEADER_BYTES = 3
PING_CHUNK_BYTES = CHUNK_HEADER_BYTES + 8


@dataclass
class Datagram:
    acks: list[bytes]
    data: list[bytes]


def build(channel: ReliableChannel, now_ns: int) -> Datagram:
    """One datagram, packed as a connection packs it."""
    datagram = Datagram([], [])
    room = DATAGRAM_BYTES - HEADER_AND_TAG_BYTES - PING_CHUNK_BYTES
    ack = channel.poll_ack(now_ns)
    if ack is not None:
        datagram.acks.append(ack)
        room -= CHUNK_HEADER_BYTES + len(ack)
    while (body := channel.poll_data(now_ns, room - CHUNK_HEADER_BYTES)) is not None:
        datagram.data.append(body)
        room -= CHUNK_HEADER_BYTES + len(body)
        assert room >= 0
    return datagram


def drain(channel: ReliableChannel, now_ns: int) -> list[Datagram]:
    datagrams = []
    while channel.has_output(now_ns):
        datagrams.append(build(channel, now_ns))
        assert datagrams[-1].acks or datagrams[-1].data or channel.failed
    return datagrams


def deliver(channel: ReliableChannel, datagram: Datagram, now_ns: int) -> list[bytes]:
    messages = []
    for body in datagram.acks:
        channel.receive_ack(memoryview(body), now_ns)
    for body in datagram.data:
        messages += channel.receive_data(memoryview(body), now_ns)
    return messages


def data(seq: int, flags: int, content: bytes = b"") -> bytes:
    return struct.pack(">IB", seq, flags) + content


def ack(next_seq: int, *ranges: tuple[int, int], window: int = RECEIVE_WINDOW_SEGMENTS) -> bytes:
    return struct.pack(">IH", next_seq, window) + b"".join(struct.pack(">HH", *r) for r in ranges)


def seqs(datagrams: list[Datagram]) -> list[int]:
    return [struct.unpack_from(">I", body)[0] for d in datagrams for body in d.data]


# --- two channels and a network between them ---


@dataclass
class Path:
    """What one direction does to datagrams. Never more than two are lost in a row: every third
    transmission arrives, every third answer to these too, so MAX_ATTEMPTS is enough."""

    loss: float = 0.0
    duplication: float = 0.0
    delay_ns: int = 30 * MS
    jitter_ns: int = 0
    lost_in_a_row: int = 0

    def arrivals_ns(self, now_ns: int, chance: random.Random) -> list[int]:
        if self.lost_in_a_row < 2 and chance.random() < self.loss:
            self.lost_in_a_row += 1
            return []
        self.lost_in_a_row = 0
        copies = 1 + (chance.random() < self.duplication)
        return [now_ns + self.delay_ns + chance.randint(0, self.jitter_ns) for _ in range(copies)]


@dataclass
class End:
    channel: ReliableChannel
    path: Path
    waiting: list[bytes]
    got: list[bytes] = field(default_factory=list)


@dataclass(order=True)
class Arrival:
    at_ns: int
    number: int
    receiver: int
    datagram: Datagram = field(compare=False)


def run(ends: tuple[End, End], seed: int, limit_ns: int) -> int:
    """Let both ends talk until all is acknowledged; the virtual time it took."""
    chance = random.Random(seed)
    now_ns = 0
    arrivals: list[Arrival] = []
    number = 0
    while True:
        for i, end in enumerate(ends):
            while end.waiting and end.channel.can_send(len(end.waiting[0])):
                end.channel.send(end.waiting.pop(0))
            for datagram in drain(end.channel, now_ns):
                for at_ns in end.path.arrivals_ns(now_ns, chance):
                    number += 1
                    heapq.heappush(arrivals, Arrival(at_ns, number, 1 - i, datagram))
            assert not end.channel.failed
        times_ns = [t for end in ends if (t := end.channel.deadline_ns()) is not None]
        if arrivals:
            times_ns.append(arrivals[0].at_ns)
        if not times_ns:
            return now_ns
        assert min(times_ns) >= now_ns
        now_ns = min(times_ns)
        assert now_ns <= limit_ns
        while arrivals and arrivals[0].at_ns <= now_ns:
            arrival = heapq.heappop(arrivals)
            end = ends[arrival.receiver]
            end.got += deliver(end.channel, arrival.datagram, now_ns)


sizes = st.one_of(
    st.integers(0, 40),
    st.sampled_from([0, 999, 1_000, 1_001, 2_000, MAX_MESSAGE_BYTES]),
    st.integers(0, MAX_MESSAGE_BYTES),
)
paths = st.builds(
    Path,
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    duplication=st.sampled_from([0.0, 0.1]),
    delay_ns=st.integers(0, 200 * MS),
    jitter_ns=st.sampled_from([0, 5 * MS, 100 * MS]),
)


@settings(max_examples=60, deadline=None)
@given(
    there=st.lists(sizes, max_size=12),
    back=st.lists(sizes, max_size=4),
    path_there=paths,
    path_back=paths,
    first_seq=st.sampled_from([0, 2**31 - 3, 2**32 - 3]),
    seed=st.integers(0, 2**32),
)
def test_all_messages_arrive_once_and_in_order(
    there: list[int],
    back: list[int],
    path_there: Path,
    path_back: Path,
    first_seq: int,
    seed: int,
) -> None:
    content = random.Random(seed)
    messages = [[content.randbytes(size) for size in sizes] for sizes in (there, back)]
    left = End(ReliableChannel(first_seq), path_there, list(messages[0]))
    right = End(ReliableChannel(first_seq), path_back, list(messages[1]))
    run((left, right), seed, limit_ns=600 * SECOND)
    assert right.got == messages[0]
    assert left.got == messages[1]
    assert left.channel.idle
    assert right.channel.idle


def test_a_long_message_on_a_lossy_path_takes_seconds_not_minutes() -> None:
    times_ns = []
    for seed in range(20):
        message = random.Random(seed).randbytes(MAX_MESSAGE_BYTES)
        left = End(ReliableChannel(), Path(loss=0.05), [message])
        right = End(ReliableChannel(), Path(loss=0.05), [])
        times_ns.append(run((left, right), seed, limit_ns=60 * SECOND))
        assert right.got == [message]
    assert max(times_ns) < 3 * SECOND


def test_sequence_numbers_wrap() -> None:
    messages = [bytes([i]) * 3 for i in range(200)]
    left = End(ReliableChannel(2**32 - 50), Path(loss=0.2, jitter_ns=20 * MS), list(messages))
    right = End(ReliableChannel(2**32 - 50), Path(loss=0.2, jitter_ns=20 * MS), [])
    run((left, right), seed=1, limit_ns=60 * SECOND)
    assert right.got == messages
    assert left.channel.stats.sent == right.channel.stats.received == 200
    assert left.channel.stats.retransmitted > 0


# --- segments and datagrams ---


def test_segments_of_a_message() -> None:
    channel = ReliableChannel()
    channel.send(bytes(2 * MAX_SEGMENT_BYTES))
    channel.send(b"")
    channel.send(b"xyz")
    bodies = [body for datagram in drain(channel, 0) for body in datagram.data]
    assert bodies == [
        data(0, FIRST, bytes(MAX_SEGMENT_BYTES)),
        data(1, LAST, bytes(MAX_SEGMENT_BYTES)),
        data(2, FIRST | LAST),
        data(3, FIRST | LAST, b"xyz"),
    ]


def test_the_largest_bodies_fit_one_datagram() -> None:
    whole = (
        HEADER_AND_TAG_BYTES
        + (CHUNK_HEADER_BYTES + MAX_ACK_BODY_BYTES)
        + (CHUNK_HEADER_BYTES + MAX_DATA_BODY_BYTES)
        + PING_CHUNK_BYTES
    )
    assert whole <= DATAGRAM_BYTES
    channel = ReliableChannel()
    channel.send(bytes(5_000))
    for seq in range(2, 60, 2):  # a gap after each: more ranges than an ACK holds
        channel.receive_data(data(seq, FIRST | LAST, b"."), 0)
    first = drain(channel, 0)[0]
    assert len(first.acks[0]) == MAX_ACK_BODY_BYTES
    assert len(first.data[0]) == MAX_DATA_BODY_BYTES


def test_small_messages_share_a_datagram() -> None:
    channel = ReliableChannel()
    for _ in range(INITIAL_CONGESTION_SEGMENTS):
        channel.send(b"small")
    assert len(drain(channel, 0)) == 1


def test_a_body_without_room_waits() -> None:
    channel = ReliableChannel()
    channel.send(bytes(100))
    assert channel.poll_data(0, 104) is None
    assert channel.has_output(0)
    assert channel.poll_data(0, 105) == data(0, FIRST | LAST, bytes(100))
    # Nor does a retransmission that does not fit get lost.
    late_ns = INITIAL_RTO_NS
    assert channel.poll_data(late_ns, 104) is None
    assert channel.has_output(late_ns)
    assert channel.poll_data(late_ns, 105) == data(0, FIRST | LAST, bytes(100))


# --- limits ---


def test_back_pressure() -> None:
    channel = ReliableChannel()
    for _ in range(MAX_QUEUED_BYTES // MAX_MESSAGE_BYTES):
        assert channel.can_send(MAX_MESSAGE_BYTES)
        channel.send(bytes(MAX_MESSAGE_BYTES))
    assert not channel.can_send(1)
    with pytest.raises(ChannelFull):
        channel.send(b"x")
    # In flight is not delivered yet; acknowledged is.
    assert len(seqs(drain(channel, 0))) == INITIAL_CONGESTION_SEGMENTS
    assert not channel.can_send(1)
    channel.receive_ack(ack(2), MS)
    assert channel.can_send(2 * MAX_SEGMENT_BYTES)
    assert not channel.can_send(2 * MAX_SEGMENT_BYTES + 1)


def test_empty_messages_are_limited_too() -> None:
    channel = ReliableChannel()
    for _ in range(MAX_QUEUED_MESSAGES):
        channel.send(b"")
    with pytest.raises(ChannelFull):
        channel.send(b"")
    drain(channel, 0)
    channel.receive_ack(ack(1), MS)
    channel.send(b"")
    assert not channel.can_send(0)


def test_a_message_makes_room_when_its_last_segment_is_acknowledged() -> None:
    channel = ReliableChannel()
    channel.send(bytes(MAX_SEGMENT_BYTES + 1))
    for _ in range(MAX_QUEUED_MESSAGES - 1):
        channel.send(b"")
    drain(channel, 0)
    channel.receive_ack(ack(1), MS)
    assert not channel.can_send(0)
    channel.receive_ack(ack(2), MS)
    assert channel.can_send(0)


def test_too_long_a_message() -> None:
    channel = ReliableChannel()
    assert not channel.can_send(MAX_MESSAGE_BYTES + 1)
    with pytest.raises(MessageTooLong):
        channel.send(bytes(MAX_MESSAGE_BYTES + 1))
    assert channel.idle


def test_congestion_window_opens_and_closes() -> None:
    channel = ReliableChannel()
    for _ in range(4):
        channel.send(bytes(MAX_MESSAGE_BYTES))
    acknowledged = 0
    in_flight = len(seqs(drain(channel, 0)))
    assert in_flight == INITIAL_CONGESTION_SEGMENTS
    for round_trip in range(1, 4):  # doubles with each, up to the limit
        acknowledged += in_flight
        channel.receive_ack(ack(acknowledged), round_trip * MS)
        new_in_flight = len(seqs(drain(channel, round_trip * MS)))
        assert new_in_flight == min(2 * in_flight, MAX_CONGESTION_SEGMENTS)
        in_flight = new_in_flight
    # One loss of 64: half of it may be in transit, which it still is.
    channel.receive_ack(ack(acknowledged, (1, 3)), 5 * MS)
    assert seqs(drain(channel, 5 * MS)) == []
    channel.receive_ack(ack(acknowledged, (1, 40)), 6 * MS)
    assert seqs(drain(channel, 6 * MS))[0] == acknowledged


def test_the_peers_window_is_respected_and_probed_when_closed() -> None:
    channel = ReliableChannel()
    for _ in range(20):
        channel.send(b"x")
    assert len(seqs(drain(channel, 0))) == 10
    channel.receive_ack(ack(10, window=3), MS)
    assert seqs(drain(channel, MS)) == [10, 11, 12]
    channel.receive_ack(ack(13, window=0), 2 * MS)
    assert seqs(drain(channel, 2 * MS)) == [13]
    channel.receive_ack(ack(14), 3 * MS)
    assert seqs(drain(channel, 3 * MS)) == [14, 15, 16, 17, 18, 19]


# --- loss ---


def test_rto_as_worked_by_hand() -> None:
    rtt = RttEstimator()
    assert (rtt.srtt_ns, rtt.rto_ns) == (None, 1_000 * MS)
    rtt.sample(100 * MS)  # SRTT = R, RTTVAR = R/2, RTO = SRTT + 4 RTTVAR
    assert (rtt.srtt_ns, rtt.rto_ns) == (100 * MS, 300 * MS)
    rtt.sample(120 * MS)  # RTTVAR = 3/4 50 + 1/4 20 = 42.5, SRTT = 7/8 100 + 1/8 120 = 102.5
    assert (rtt.srtt_ns, rtt.rto_ns) == (102_500_000, 272_500_000)
    rtt.sample(60 * MS)  # RTTVAR = 3/4 42.5 + 1/4 42.5 = 42.5, SRTT = 7/8 102.5 + 1/8 60
    assert (rtt.srtt_ns, rtt.rto_ns) == (97_187_500, 267_187_500)
    rtt.back_off()
    assert rtt.rto_ns == 534_375_000
    for _ in range(10):
        rtt.back_off()
    assert rtt.rto_ns == MAX_RTO_NS
    for _ in range(60):
        rtt.sample(MS)
    assert rtt.rto_ns == MIN_RTO_NS
    rtt.sample(60 * SECOND)
    assert rtt.rto_ns == MAX_RTO_NS


def test_timer_backs_off_and_the_channel_fails_in_the_end() -> None:
    channel = ReliableChannel()
    channel.send(b"into the void")
    times_ns = []
    now_ns = 0
    while True:
        if drain(channel, now_ns)[0].data:
            times_ns.append(now_ns)
        deadline_ns = channel.deadline_ns()
        if deadline_ns is None:
            break
        now_ns = deadline_ns
    assert channel.failed
    assert len(times_ns) == MAX_ATTEMPTS
    waits = [(b - a) // SECOND for a, b in pairwise(times_ns)]
    assert waits == [1, 2] + 12 * [3]
    assert not channel.has_output(now_ns + SECOND)
    assert channel.poll_data(now_ns + SECOND, MAX_DATA_BODY_BYTES) is None
    assert not channel.can_send(1)


def test_a_path_that_still_works_does_not_fail() -> None:
    channel = ReliableChannel()
    for _ in range(3 * MAX_ATTEMPTS):
        channel.send(b"x")
    drain(channel, 0)
    for i in range(1, 2 * MAX_ATTEMPTS):  # the first segment never arrives, but others do
        timeout_ns = channel.deadline_ns()
        assert timeout_ns is not None
        assert 0 in seqs(drain(channel, timeout_ns))
        channel.receive_ack(ack(0, (1, i)), timeout_ns + MS)
        drain(channel, timeout_ns + MS)
    assert channel.stats.timeouts == 2 * MAX_ATTEMPTS - 1
    assert not channel.failed


def test_no_sample_from_a_retransmitted_segment() -> None:
    channel = ReliableChannel()
    channel.send(b"x")
    drain(channel, 0)
    drain(channel, SECOND)
    channel.receive_ack(ack(1), SECOND + 10 * MS)
    assert channel.srtt_ns is None
    assert channel.rto_ns == 2 * SECOND  # Karn: backed off until measured
    channel.send(b"y")
    drain(channel, 2 * SECOND)
    channel.receive_ack(ack(2), 2 * SECOND + 80 * MS)
    assert channel.srtt_ns == 80 * MS
    assert channel.rto_ns == 240 * MS


def test_a_sample_is_of_the_segment_that_waited_least() -> None:
    channel = ReliableChannel()
    for now_ns in (0, 30 * MS):
        channel.send(b"x")
        drain(channel, now_ns)
    channel.receive_ack(ack(2), 100 * MS)
    assert channel.srtt_ns == 70 * MS


def test_a_segment_given_up_for_lost_is_neither_sent_nor_measured_if_it_did_arrive() -> None:
    channel = ReliableChannel()
    for _ in range(10):
        channel.send(b"x")
    drain(channel, 0)
    assert seqs(drain(channel, SECOND)) == [0, 1, 2, 3, 4]  # half a window of the ten
    channel.receive_ack(ack(0, (5, 3)), SECOND + MS)
    assert seqs(drain(channel, SECOND + MS)) == [8, 9]
    assert channel.srtt_ns is None
    assert channel.rto_ns == 2 * SECOND


def test_the_timer_starts_anew_with_progress() -> None:
    channel = ReliableChannel()
    for _ in range(4):
        channel.send(b"x")
    drain(channel, 0)
    channel.receive_ack(ack(1), 100 * MS)
    assert channel.rto_ns == 300 * MS
    assert channel.deadline_ns() == 400 * MS
    channel.receive_ack(ack(1, (1, 1)), 250 * MS)  # 1 is still missing: no progress
    assert channel.deadline_ns() == 400 * MS


def test_a_path_slower_than_the_first_timeout_is_learnt() -> None:
    ends = (
        End(ReliableChannel(), Path(delay_ns=800 * MS), [b"a"]),
        End(ReliableChannel(), Path(delay_ns=800 * MS), []),
    )
    run(ends, 0, 60 * SECOND)
    assert ends[0].channel.stats.retransmitted == 1
    for message in (b"b", b"c"):
        ends[0].waiting.append(message)
        # The clock of a run begins at zero: a new pair of times, the same estimator.
        run(ends, 0, 60 * SECOND)
    assert ends[0].channel.stats.retransmitted == 1
    assert ends[0].channel.srtt_ns == pytest.approx(1_620 * MS, rel=0.02)


def test_fast_retransmit_once() -> None:
    channel = ReliableChannel()
    for _ in range(8):
        channel.send(b"x")
    assert seqs(drain(channel, 0)) == list(range(8))
    channel.receive_ack(ack(0, (1, 2)), 50 * MS)
    assert seqs(drain(channel, 50 * MS)) == []
    channel.receive_ack(ack(0, (1, 3)), 51 * MS)
    assert seqs(drain(channel, 51 * MS)) == [0]
    channel.receive_ack(ack(0, (1, 7)), 52 * MS)
    assert seqs(drain(channel, 52 * MS)) == []
    assert (channel.stats.fast, channel.stats.timeouts) == (1, 0)
    # Its second loss is the timer's affair: counted from the retransmission.
    deadline_ns = channel.deadline_ns()
    assert deadline_ns == 51 * MS + channel.rto_ns
    assert seqs(drain(channel, deadline_ns)) == [0]
    assert (channel.stats.fast, channel.stats.timeouts) == (1, 1)
    assert channel.stats.retransmitted == 2


def test_two_losses_of_one_flight_are_both_found_and_count_as_one() -> None:
    channel = ReliableChannel()
    for _ in range(30):
        channel.send(b"x")
    assert len(seqs(drain(channel, 0))) == 10
    channel.receive_ack(ack(0, (1, 3)), 50 * MS)  # window: 10 + 3, then halved: 6
    channel.receive_ack(ack(0, (1, 3), (5, 3)), 51 * MS)  # 6 + 3 = 9, not halved again
    assert channel.stats.fast == 2
    sent = seqs(drain(channel, 51 * MS))
    assert sent[:2] == [0, 4]
    # In transit: 8 and 9 of the first flight, and what was sent now.
    assert len(sent) + 2 == 9
    # A loss of the next flight is another one.
    assert sent[2:] == [10, 11, 12, 13, 14]
    channel.receive_ack(ack(10), 100 * MS)  # 9 + 4
    channel.receive_ack(ack(10, (1, 3)), 101 * MS)  # 13 + 3, halved
    assert channel.stats.fast == 3
    assert len(seqs(drain(channel, 101 * MS))) + 1 == 8  # 14 is in transit too


def test_fast_retransmit_beats_the_timer_on_a_real_path() -> None:
    left, right = ReliableChannel(), ReliableChannel()
    for i in range(10):
        left.send(bytes(900) + bytes([i]))
    datagrams = drain(left, 0)
    got = []
    answers = []
    for datagram in [datagrams[0], *datagrams[2:]]:  # the second one is lost
        got += deliver(right, datagram, 20 * MS)
        answers += drain(right, 20 * MS)
    for answer in answers:
        deliver(left, answer, 40 * MS)
    for datagram in drain(left, 40 * MS):
        got += deliver(right, datagram, 60 * MS)
    assert [message[-1] for message in got] == list(range(10))
    assert (left.stats.fast, left.stats.timeouts, left.stats.retransmitted) == (1, 0, 1)


def test_a_lost_acknowledgement_of_the_tail() -> None:
    left, right = ReliableChannel(), ReliableChannel()
    left.send(b"last words")
    assert deliver(right, drain(left, 0)[0], 10 * MS) == [b"last words"]
    deadline_ns = right.deadline_ns()
    assert deadline_ns == 10 * MS + ACK_DELAY_NS
    assert len(drain(right, deadline_ns)) == 1  # and this one gets lost
    assert right.idle
    timeout_ns = left.deadline_ns()
    assert timeout_ns == INITIAL_RTO_NS
    (again,) = drain(left, timeout_ns)
    assert deliver(right, again, timeout_ns + 10 * MS) == []  # not delivered twice
    assert right.stats.duplicates == 1
    (answer,) = drain(right, timeout_ns + 10 * MS)  # at once
    deliver(left, answer, timeout_ns + 20 * MS)
    assert left.idle
    assert left.deadline_ns() is None
    assert right.deadline_ns() is None


def test_an_overtaken_acknowledgement_changes_nothing() -> None:
    channel = ReliableChannel()
    for _ in range(4):
        channel.send(b"x")
    drain(channel, 0)
    channel.receive_ack(ack(4), MS)
    channel.receive_ack(ack(2, (1, 1), window=0), 2 * MS)
    assert channel.idle
    for _ in range(2):
        channel.send(b"y")
    assert seqs(drain(channel, 3 * MS)) == [4, 5]


# --- acknowledging ---


def test_delayed_acknowledgement() -> None:
    channel = ReliableChannel()
    channel.receive_data(data(0, FIRST | LAST, b"one"), 0)
    assert not channel.has_output(ACK_DELAY_NS - 1)
    assert channel.deadline_ns() == ACK_DELAY_NS
    assert channel.has_output(ACK_DELAY_NS)
    assert channel.poll_ack(ACK_DELAY_NS) == ack(1)
    assert channel.poll_ack(ACK_DELAY_NS) is None
    assert channel.idle


def test_an_acknowledgement_goes_with_data_that_goes() -> None:
    channel = ReliableChannel()
    channel.receive_data(data(0, FIRST | LAST, b"request"), 0)
    channel.send(b"reply")
    (datagram,) = drain(channel, MS)
    assert datagram.acks == [ack(1)]
    assert datagram.data == [data(0, FIRST | LAST, b"reply")]


def test_every_second_segment_is_acknowledged_at_once() -> None:
    channel = ReliableChannel()
    due = []
    for seq in range(6):
        channel.receive_data(data(seq, FIRST | LAST, b"x"), seq)
        due.append(bool(drain(channel, seq)))
    assert due == [False, True] * 3


def test_gaps_are_told_at_once_and_so_is_their_end() -> None:
    channel = ReliableChannel()
    x = FIRST | LAST
    assert channel.receive_data(data(1, x, b"b"), 0) == []
    assert drain(channel, 0)[0].acks == [ack(0, (1, 1))]
    assert channel.receive_data(data(3, x, b"d"), 0) == []
    assert channel.receive_data(data(4, x, b"e"), 0) == []
    assert drain(channel, 0)[0].acks == [ack(0, (1, 1), (3, 2))]
    assert channel.receive_data(data(0, x, b"a"), 0) == [b"a", b"b"]
    assert drain(channel, 0)[0].acks == [ack(2, (1, 2))]
    assert channel.receive_data(data(3, x, b"d"), 0) == []
    assert channel.stats.duplicates == 1
    assert drain(channel, 0)[0].acks == [ack(2, (1, 2))]
    assert channel.receive_data(data(2, x, b"c"), 0) == [b"c", b"d", b"e"]
    assert drain(channel, 0)[0].acks == [ack(5)]


# --- nonsense from an authenticated peer ---


@pytest.mark.parametrize(
    "bodies",
    [
        [b""],
        [data(0, FIRST)[:4]],
        [data(0, FIRST | LAST, bytes(MAX_SEGMENT_BYTES + 1))],
        [data(0, 4 | FIRST | LAST, b"x")],
        [data(0, FIRST)],
        [data(0, LAST, b"x")],
        [data(0, 0, b"x")],
        [data(0, FIRST, b"x"), data(1, FIRST, b"x")],
        [data(0, FIRST, b"x"), data(1, FIRST | LAST)],
        [data(1, LAST, b"x"), data(0, FIRST | LAST, b"x")],
        [data(RECEIVE_WINDOW_SEGMENTS, FIRST | LAST, b"x")],
        [data(2**31 - 1, FIRST | LAST, b"x")],
        [data(seq, FIRST if seq == 0 else 0, bytes(1_000)) for seq in range(66)],
    ],
)
def test_malformed_data(bodies: list[bytes]) -> None:
    channel = ReliableChannel()
    for body in bodies[:-1]:
        channel.receive_data(body, 0)
    with pytest.raises(ChannelError):
        channel.receive_data(bodies[-1], 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        ack(1)[:5],
        ack(1) + b"\0",
        ack(1, (1, 1))[:-1],
        ack(5),
        ack(2**31 - 1),
        ack(0, (0, 1)),
        ack(0, (1, 0)),
        ack(0, (1, 4)),
        ack(2, (1, 2)),
        ack(0, (65_535, 65_535)),
        ack(0, *[(1, 1)] * 17),
    ],
)
def test_malformed_ack(body: bytes) -> None:
    channel = ReliableChannel()
    for _ in range(4):
        channel.send(b"x")
    drain(channel, 0)
    with pytest.raises(ChannelError):
        channel.receive_ack(body, MS)
    channel.receive_ack(ack(4), 2 * MS)  # nothing of it was taken
    assert channel.idle


def test_an_acknowledgement_taken_back() -> None:
    channel = ReliableChannel()
    for _ in range(4):
        channel.send(b"x")
    drain(channel, 0)
    channel.receive_ack(ack(0, (1, 1)), MS)
    with pytest.raises(ChannelError):
        channel.receive_ack(ack(1), MS)


def test_nobody_gains_by_naming_a_segment_twice() -> None:
    channel = ReliableChannel()
    for _ in range(100):
        channel.send(b"x")
    drain(channel, 0)
    channel.receive_ack(ack(0, *[(1, 2)] * 16), MS)
    assert len(seqs(drain(channel, MS))) == 4  # two acknowledged, and the window two larger


@settings(deadline=None)
@given(
    bodies=st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(
                st.binary(max_size=80),
                st.builds(data, st.integers(0, 70), st.integers(0, 3), st.binary(max_size=9)),
                st.builds(
                    lambda n, ranges: ack(n, *ranges),
                    st.integers(0, 12),
                    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=3),
                ),
            ),
        ),
        max_size=40,
    )
)
def test_arbitrary_bodies_raise_nothing_else(bodies: list[tuple[bool, bytes]]) -> None:
    channel = ReliableChannel()
    for i in range(20):
        channel.send(bytes(i))
    for now_ns, (is_data, body) in enumerate(bodies):
        drain(channel, now_ns)
        try:
            if is_data:
                channel.receive_data(body, now_ns)
            else:
                channel.receive_ack(body, now_ns)
        except ChannelError:
            return  # the connection closes


# --- cost ---


def test_an_idle_channel_is_small_even_after_use() -> None:
    def used() -> ReliableChannel:
        channel, peer = ReliableChannel(), ReliableChannel()
        for now_ns in (0, 100 * MS, 200 * MS):
            channel.send(bytes(9_000))
            peer.send(bytes(9_000))
            there, back = drain(channel, now_ns), drain(peer, now_ns)
            for datagram in reversed(there):
                deliver(peer, datagram, now_ns)
            for datagram in reversed(back):
                deliver(channel, datagram, now_ns)
            later_ns = now_ns + ACK_DELAY_NS
            answers = drain(peer, later_ns), drain(channel, later_ns)
            for receiver, datagrams in zip((channel, peer), answers, strict=True):
                for datagram in datagrams:
                    deliver(receiver, datagram, later_ns)
        assert channel.idle
        return channel

    def each_bytes(make: Callable[[], ReliableChannel]) -> float:
        make()
        tracemalloc.start()
        try:
            channels = [make() for _ in range(50)]
            return tracemalloc.get_traced_memory()[0] / len(channels)
        finally:
            tracemalloc.stop()

    assert each_bytes(ReliableChannel) < 640
    assert each_bytes(used) < 720  # numbers that have grown, not queues
