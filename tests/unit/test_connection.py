"""Two real connections, sealed datagrams between them, and a clock that moves when told to."""

import enum
import heapq
import random
import struct
from collections import Counter, deque
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.connection import (
    CLOSE_REPEAT_NS,
    CLOSE_REPEATS,
    DRAIN_NS,
    IDLE_TIMEOUT_NS,
    KEEPALIVE_NS,
    MAX_CLOSE_TEXT_BYTES,
    MAX_QUEUED_PONGS,
    MS,
    QUIET_NS,
    TOKEN_BYTES,
    Chunk,
    CloseCode,
    Closed,
    Connection,
    Event,
    Media,
    Message,
    Pong,
    Reported,
    Roamed,
    State,
)
from protocol.packets import MAX_DATAGRAM_BYTES, Kind, pack_header, unpack_header
from protocol.reception import REPORTS_AFTER_LOSS, Reception
from protocol.reliable import (
    MAX_MESSAGE_BYTES,
    MAX_QUEUED_BYTES,
    ChannelFull,
    MessageTooLong,
)
from protocol.sealing import SessionKeys

SERVER, HOME, AWAY = b"server", b"home", b"away"
CLIENT_INDEX, SERVER_INDEX = 0x1111, 0x2222
START_NS = 5_000 * MS
SECOND_NS = 1_000 * MS


# --- what counts as the state of anything ---

NOTES = {"dropped"}  # what a dropped datagram may change: the count of dropped datagrams


def state_of(value: object) -> object:
    """All that an object holds, down to the last number, in a form that compares by value."""
    if value is None or isinstance(value, int | float | str | bytes | enum.Enum):
        return value
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    if isinstance(value, dict):
        return [(state_of(k), state_of(v)) for k, v in value.items()]
    if isinstance(value, list | tuple | deque):
        return [state_of(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, AESGCM):
        return id(value)  # a key, which never changes
    if callable(value) or type(value).__module__ == "_ctypes":
        return None  # code, randomness that was handed in, and what C holds
    names = {n for c in type(value).__mro__ for n in getattr(c, "__slots__", ())}
    names |= set(getattr(value, "__dict__", {}))
    held = {n: getattr(value, n) for n in sorted(names - NOTES) if hasattr(value, n)}
    return (type(value).__name__, [(n, state_of(v)) for n, v in held.items()])


def test_the_state_of_a_connection_shows_every_change() -> None:
    client, server = connected()
    seen = [state_of(server)]

    def note() -> None:
        seen.append(state_of(server))

    assert state_of(server) == seen[0]
    server.ping(START_NS)
    note()
    for datagram in server.transmit(START_NS):
        client.receive(datagram, SERVER, START_NS)
    note()
    for datagram in client.transmit(START_NS):
        server.receive(datagram, HOME, START_NS + 1)
    note()
    server.send(b"x")
    note()
    server.address = AWAY
    note()
    server.media_opener.fresh(7)
    note()
    assert all(a != b for a, b in pairwise(seen))


# --- two ends ---


def connected(seed: int = 0) -> tuple[Connection, Connection]:
    """-> (client, server): an established session, as a handshake leaves it."""
    rng = random.Random(seed)
    up, down = rng.randbytes(32), rng.randbytes(32)
    client = Connection(
        SessionKeys.derive(send=up, receive=down),
        remote_index=SERVER_INDEX,
        address=SERVER,
        now_ns=START_NS,
        entropy=rng.randbytes,
        keep_alive=True,
    )
    server = Connection(
        SessionKeys.derive(send=down, receive=up),
        remote_index=CLIENT_INDEX,
        address=HOME,
        now_ns=START_NS,
        entropy=rng.randbytes,
        keep_alive=False,
        status=lambda: 77,
    )
    return client, server


def chunk(kind: int, body: bytes) -> bytes:
    return struct.pack(">BH", kind, len(body)) + body


def sealed(sender: Connection, plaintext: bytes) -> bytes:
    """A control datagram that `sender` itself would never make."""
    return sender._control_sealer.seal(Kind.CONTROL, plaintext)


def only(datagrams: list[bytes]) -> bytes:
    assert len(datagrams) == 1, datagrams
    return datagrams[0]


Lose = Callable[[bool, int], bool]  # (towards the server, how manieth of that way)


class World:
    """A client that may move, a server, and a path between them.  Everything that is sent is
    checked: no datagram too long, and no unproven address sent more than came from it."""

    def __init__(self, seed: int = 0, *, loss: float = 0.0, lose: Lose | None = None) -> None:
        self.rng = random.Random(seed)
        self.client, self.server = connected(seed)
        self.now_ns = START_NS
        self.home = HOME
        self.delay_ns, self.jitter_ns = 20 * MS, 0
        self.loss, self.duplication = loss, 0.0
        self.lose: Lose = lose or (lambda up, n: False)
        self.client_events: list[Event] = []
        self.server_events: list[Event] = []
        self.sent: list[tuple[int, bool, bytes]] = []  # (when, towards the server, datagram)
        self.bytes_from: Counter[bytes] = Counter()
        self.bytes_to: Counter[bytes] = Counter()
        self._flying: list[tuple[int, int, bool, bytes, bytes]] = []
        self._numbers = [0, 0]

    def post(self, up: bool, data: bytes, address: bytes) -> None:
        """address: the client's, as the server sees it or believes it to be."""
        assert len(data) <= MAX_DATAGRAM_BYTES
        self.sent.append((self.now_ns, up, data))
        if not up:
            self.bytes_to[address] += len(data)
            if self.server.credit_bytes is not None:
                assert self.bytes_to[address] <= self.bytes_from[address], "amplification"
        number = self._numbers[up]
        self._numbers[up] += 1
        if self.lose(up, number) or self.rng.random() < self.loss:
            return
        for _ in range(1 + (self.rng.random() < self.duplication)):
            at_ns = self.now_ns + self.delay_ns + self.rng.randint(0, self.jitter_ns)
            heapq.heappush(self._flying, (at_ns, len(self.sent), up, data, address))

    def drain(self) -> None:
        for data in self.client.transmit(self.now_ns):
            self.post(True, data, self.home)
        for data in self.server.transmit(self.now_ns):
            self.post(False, data, self.server.address)

    def run(self, ms: float) -> None:
        end_ns = self.now_ns + int(ms * MS)
        self.drain()
        while self.now_ns < end_ns:
            due = [self.client.deadline_ns, self.server.deadline_ns, end_ns]
            if self._flying:
                due.append(self._flying[0][0])
            # A deadline may have passed while credit lacks: the shell comes by every 20 ms.
            self.now_ns = min(max(min(due), self.now_ns + MS), end_ns)
            while self._flying and self._flying[0][0] <= self.now_ns:
                _, _, up, data, address = heapq.heappop(self._flying)
                if up:
                    self.bytes_from[address] += len(data)
                    self.server_events += self.server.receive(data, address, self.now_ns) or []
                elif address == self.home:
                    self.client_events += self.client.receive(data, SERVER, self.now_ns) or []
            if self.client.deadline_ns <= self.now_ns:
                self.client_events += self.client.tick(self.now_ns)
            if self.server.deadline_ns <= self.now_ns:
                self.server_events += self.server.tick(self.now_ns)
            self.drain()

    def control_sent(self, up: bool) -> int:
        return sum(1 for _, way, data in self.sent if way is up and data[0] == Kind.CONTROL)


def messages(events: list[Event]) -> list[bytes]:
    return [e.data for e in events if isinstance(e, Message)]


def of(kind: type, events: list[Event]) -> list[Event]:
    return [e for e in events if isinstance(e, kind)]


# --- messages ---


@pytest.mark.parametrize("seed", range(4))
def test_messages_arrive_in_order_both_ways_whatever_the_path_does(seed: int) -> None:
    world = World(seed, loss=0.25)
    world.duplication, world.jitter_ns = 0.1, 60 * MS
    sizes = [0, 1, 999, 1_000, 1_001, 20_000, MAX_MESSAGE_BYTES] + [50] * 30
    up = [world.rng.randbytes(n) for n in sizes]
    down = [world.rng.randbytes(n) for n in reversed(sizes)]
    for there, back in zip(up, down, strict=True):
        world.client.send(there)
        world.server.send(back)
        world.run(5)
    for _ in range(400):
        if len(messages(world.server_events)) == len(messages(world.client_events)) == len(up):
            break
        world.run(500)
    assert messages(world.server_events) == up
    assert messages(world.client_events) == down
    assert world.client.state is world.server.state is State.OPEN
    assert any(len(d) > 1_100 for _, _, d in world.sent), "long messages fill datagrams"


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5_000), max_size=30),
    pings=st.integers(0, 6),
    pad_bytes=st.sampled_from([0, 64, 256, MAX_DATAGRAM_BYTES]),
)
def test_datagrams_stay_below_1200_bytes_whatever_is_queued(
    sizes: list[int], pings: int, pad_bytes: int
) -> None:
    world = World()
    for _ in range(pings):  # answers to pings, acknowledgements and data share a datagram
        world.server.ping(world.now_ns)
        world.drain()
    world.client.ping(world.now_ns, pad_bytes=pad_bytes)
    for size in sizes:
        world.client.send(bytes(size))
        world.server.send(bytes(size))
    world.run(3_000)  # `post` checks every size
    assert messages(world.server_events) == messages(world.client_events) == list(map(bytes, sizes))


def test_back_pressure_surfaces_and_goes_away() -> None:
    world = World(lose=lambda up, n: up and world.now_ns < START_NS + 400 * MS)
    size, taken = 10_000, 0
    while world.client.can_send(size):
        world.client.send(bytes(size))
        taken += 1
    assert taken == MAX_QUEUED_BYTES // size
    with pytest.raises(ChannelFull):
        world.client.send(bytes(size))
    with pytest.raises(MessageTooLong):
        world.client.send(bytes(MAX_MESSAGE_BYTES + 1))
    world.run(60_000)
    assert messages(world.server_events) == [bytes(size)] * taken
    assert world.client.can_send(size)


def test_media_goes_beside_the_messages_with_counters_of_its_own() -> None:
    client, server = connected()
    for counter in range(3):
        data = client.send_media(Kind.AUDIO, b"opus %d" % counter)
        events = server.receive(data, HOME, START_NS)
        assert events == [Media(Kind.AUDIO, counter, b"opus %d" % counter)]
    feed = server.send_media(Kind.FEED, b"news")
    assert client.receive(feed, SERVER, START_NS) == [Media(Kind.FEED, 0, b"news")]


# --- what is wrong with a datagram, and that it changes nothing ---


def drop(end: Connection, data: bytes, reason: str, address: bytes = HOME) -> None:
    before, count = state_of(end), end.dropped.copy()
    assert end.receive(data, address, START_NS + 999 * MS) is None
    assert state_of(end) == before
    assert end.dropped - count == Counter({reason: 1})


def test_each_bad_datagram_is_counted_by_its_reason_and_changes_nothing() -> None:
    client, server = connected()
    client.ping(START_NS)
    client.send(b"hello")
    control = only(client.transmit(START_NS))
    audio = client.send_media(Kind.AUDIO, b"opus")
    for address in (HOME, AWAY):
        for size in (0, 1, 11, 12, 27):
            drop(server, control[:size], "malformed", address)
        drop(server, control.ljust(MAX_DATAGRAM_BYTES + 1, b"\0"), "malformed", address)
        drop(server, bytes([max(Kind) + 1]) + control[1:], "unknown kind", address)
        drop(server, bytes([Kind.HELLO]) + control[1:], "unknown kind", address)
        drop(server, control[:-1], "forged", address)
        drop(server, control + b"\0", "forged", address)
        drop(server, bytes([Kind.FEED]) + control[1:], "forged", address)
        drop(server, bytes([Kind.CONTROL]) + audio[1:], "forged", address)
        far = pack_header(Kind.CONTROL, 1 << 50, SERVER_INDEX) + bytes(40)
        drop(server, far, "forged", address)
        for bit in range(0, 8 * len(control), 7):
            damaged = bytearray(control)
            damaged[bit // 8] ^= 1 << bit % 8
            if damaged[0] in (Kind.CONTROL, Kind.AUDIO, Kind.FEED):
                drop(server, bytes(damaged), "forged", address)
    assert server.receive(control, HOME, START_NS) == [Message(b"hello")]
    assert server.receive(audio, HOME, START_NS) == [Media(Kind.AUDIO, 0, b"opus")]
    for address in (HOME, AWAY):
        drop(server, control, "replayed", address)
        drop(server, audio, "replayed", address)
    # What one sent oneself does not come back as the other's.
    drop(client, control, "forged", SERVER)


BAD_PLAINTEXTS = {
    "cut in a chunk's head": chunk(Chunk.PING, bytes(TOKEN_BYTES)) + b"\x01\x00",
    "cut in a chunk's body": struct.pack(">BH", Chunk.DATA, 50) + bytes(10),
    "PING without a token": chunk(Chunk.PING, b""),
    "PING too long": chunk(Chunk.PING, bytes(TOKEN_BYTES + 1)),
    "PONG too short": chunk(Chunk.PONG, bytes(TOKEN_BYTES)),
    "CLOSE without a code": chunk(Chunk.CLOSE, b"\x00"),
    "DATA too short": chunk(Chunk.DATA, b"\0\0"),
    "DATA beyond the window": chunk(Chunk.DATA, struct.pack(">IB", 5_000, 3) + b"x"),
    "DATA from within a message": chunk(Chunk.DATA, struct.pack(">IB", 0, 2) + b"x"),
    "ACK too short": chunk(Chunk.ACK, b"\0"),
    "ACK of what was never sent": chunk(Chunk.ACK, struct.pack(">IH", 9, 64)),
}


@pytest.mark.parametrize("plaintext", BAD_PLAINTEXTS.values(), ids=BAD_PLAINTEXTS)
def test_a_peer_that_breaks_the_rules_is_told_and_lost(plaintext: bytes) -> None:
    client, server = connected()
    events = server.receive(sealed(client, plaintext), HOME, START_NS)
    assert events is not None
    closed = [e for e in events if isinstance(e, Closed)]
    assert [(c.code, c.by_peer) for c in closed] == [(CloseCode.PROTOCOL, False)]
    assert "\n" not in closed[0].text
    assert closed[0].text
    assert server.state is State.CLOSING
    told = client.receive(only(server.transmit(START_NS)), SERVER, START_NS)
    assert told == [Closed(CloseCode.PROTOCOL, closed[0].text, by_peer=True)]
    # Saying it again makes no second end of it.
    assert server.receive(sealed(client, plaintext), HOME, START_NS) == []


def test_unknown_chunks_and_padding_are_skipped() -> None:
    client, server = connected()
    data = chunk(Chunk.DATA, struct.pack(">IB", 0, 3) + b"hello")
    plaintext = chunk(0x7F, b"newer") + chunk(Chunk.PAD, bytes(30)) + data + chunk(0xFF, b"")
    assert server.receive(sealed(client, plaintext), HOME, START_NS) == [Message(b"hello")]
    assert server.receive(sealed(client, b""), HOME, START_NS) == []
    assert server.state is State.OPEN


def test_answers_to_pings_are_a_bounded_queue() -> None:
    client, server = connected()
    tokens = [bytes([n]) * TOKEN_BYTES for n in range(20)]
    plaintext = b"".join(chunk(Chunk.PING, token) for token in tokens)
    server.receive(sealed(client, plaintext), HOME, START_NS)
    assert len(server._pongs) == MAX_QUEUED_PONGS
    assert len(only(server.transmit(START_NS))) <= 28 + MAX_QUEUED_PONGS * 15


# --- time ---


def test_losses_are_reported_while_there_are_any_and_a_while_after() -> None:
    speaker, server = connected()
    now_ns = 0
    reports: list[Reception] = []
    for number in range(60 * 150):
        now_ns += 20 * MS
        audio = speaker.send_media(Kind.AUDIO, b"audio")
        if 100 <= number < 600 and number % 10 < 2:
            continue  # two of ten are lost, for ten seconds
        server.receive(audio, HOME, now_ns)
        for datagram in server.transmit(now_ns):
            events = speaker.receive(datagram, HOME, now_ns) or []
            reports += [event.reception for event in events if isinstance(event, Reported)]
    lossy = [losses for losses in reports if losses.lost]
    assert sum(losses.lost for losses in lossy) == 100
    assert sum(losses.bursts for losses in lossy) == 50
    assert len(lossy) <= 12
    assert len(reports) <= len(lossy) + REPORTS_AFTER_LOSS  # and then no more


def test_who_loses_nothing_reports_nothing() -> None:
    speaker, server = connected()
    for number in range(500):
        server.receive(speaker.send_media(Kind.AUDIO, b"audio"), HOME, number * 20 * MS)
        assert not server.reporting


def test_a_queue_is_reported_while_it_is_there_and_a_while_after() -> None:
    """It is what every packet of a second had to wait; a packet that did not wait shows that there
    is none."""
    speaker, server = connected()
    now_ns = 0
    reports: list[Reception] = []
    for number in range(50 * 100):
        now_ns += 20 * MS
        server.receive(speaker.send_media(Kind.AUDIO, b"audio"), HOME, now_ns)
        queued = 500 <= number < 750
        late_ms = 80 + number % 40 if queued else 90 * (number % 40 > 0)
        server.media_was_late(late_ms * MS)
        for datagram in server.transmit(now_ns):
            events = speaker.receive(datagram, HOME, now_ns) or []
            reports += [event.reception for event in events if isinstance(event, Reported)]
    told = [losses.queue_ms for losses in reports if losses.queue_ms]
    assert 4 <= len(told) <= 5
    assert set(told) <= set(range(80, 91))
    assert len(reports) == len(told) + REPORTS_AFTER_LOSS - 1


@pytest.mark.parametrize("counts", [(5, 6, 1, 0), (5, 1, 2, 0), (5, 1, 1)])
def test_a_report_that_cannot_be_is_a_violation(counts: tuple[int, ...]) -> None:
    speaker, server = connected()
    body = b"".join(count.to_bytes(2) for count in counts)
    events = speaker.receive(sealed(server, chunk(Chunk.REPORT, body)), HOME, 0)
    assert events is not None
    assert isinstance(events[-1], Closed)


def test_a_ping_measures_the_way_and_brings_the_status() -> None:
    world = World()
    world.delay_ns = 35 * MS
    world.client.ping(world.now_ns)
    world.run(100)
    assert of(Pong, world.client_events) == [Pong(START_NS, 70 * MS, 77)]


def test_a_client_that_hears_nothing_asks_every_five_seconds() -> None:
    world = World()
    world.run(61_000)
    sent_ns = [at for at, up, _ in world.sent if up]
    assert sent_ns[0] == START_NS + QUIET_NS
    round_trip_ns = 2 * world.delay_ns
    assert {b - a for a, b in pairwise(sent_ns)} == {QUIET_NS + round_trip_ns}
    assert world.control_sent(up=True) == world.control_sent(up=False) == 12
    assert world.client.state is world.server.state is State.OPEN
    assert len(of(Pong, world.client_events)) == 12


def test_a_client_that_hears_enough_keeps_the_session_alive_every_fifteen_seconds() -> None:
    world = World()
    for _ in range(610):
        world.post(False, world.server.send_media(Kind.AUDIO, b"a mix"), world.server.address)
        world.run(100)
    sent_ns = [at for at, up, _ in world.sent if up]
    assert sent_ns[0] == START_NS + KEEPALIVE_NS
    assert {b - a for a, b in pairwise(sent_ns)} == {KEEPALIVE_NS}
    assert world.client.state is world.server.state is State.OPEN


def test_a_session_of_which_nothing_is_heard_ends_after_thirty_seconds() -> None:
    cut_ns = START_NS + 12 * SECOND_NS
    world = World(lose=lambda up, n: world.now_ns >= cut_ns)
    world.run(12_000)
    last_ns = {up: max(at for at, way, _ in world.sent if way is up) for up in (True, False)}
    while not (world.client_events[-1:] and isinstance(world.client_events[-1], Closed)):
        world.run(1)
    client_lost_ns = world.now_ns
    assert client_lost_ns == last_ns[False] + world.delay_ns + IDLE_TIMEOUT_NS
    world.run(1_000)
    for end, events in ((world.client, world.client_events), (world.server, world.server_events)):
        (closed,) = of(Closed, events)
        assert isinstance(closed, Closed)
        assert (closed.code, closed.by_peer) == (CloseCode.TIMEOUT, False)
        assert end.state is State.CLOSED
    count = len(world.sent)
    world.run(10_000)
    assert len(world.sent) == count, "a lost session sends nothing more"
    assert world.client.over(world.now_ns)
    assert world.server.over(world.now_ns)


def test_a_message_that_is_never_acknowledged_ends_the_session() -> None:
    # The peer is heard, but does not acknowledge: something on its side is broken.
    client, server = connected()
    server.send(b"x")
    now_ns, events = START_NS, list[Event]()
    while not events:
        server.transmit(now_ns)
        if server._channel.failed:
            assert server.deadline_ns <= now_ns, "it is noticed at once"
        client.ping(now_ns)
        heard = sealed(client, chunk(Chunk.PING, bytes(TOKEN_BYTES)))
        server.receive(heard, HOME, now_ns)
        if server.deadline_ns <= now_ns:
            events = server.tick(now_ns)
        now_ns += 50 * MS
        assert now_ns < START_NS + 300 * SECOND_NS
    (closed,) = events
    assert isinstance(closed, Closed)
    assert (closed.code, closed.by_peer) == (CloseCode.UNREACHABLE, False)


# --- closing ---


@pytest.mark.parametrize("by_client", [True, False])
def test_closing_is_told_and_answered_once(by_client: bool) -> None:
    world = World()
    closer, other = world.client, world.server
    told, own = world.server_events, world.client_events
    if not by_client:
        closer, other, told, own = other, closer, own, told
    closer.close(CloseCode.SHUTDOWN, "good night", world.now_ns)
    assert closer.state is State.CLOSING
    world.run(4_000)
    assert told == [Closed(CloseCode.SHUTDOWN, "good night", by_peer=True)]
    assert own == []
    assert closer.state is other.state is State.CLOSED
    assert len(world.sent) == 2
    assert closer.over(world.now_ns)
    assert other.over(world.now_ns)


@pytest.mark.parametrize("lost", range(CLOSE_REPEATS + 1))
def test_closing_survives_losses_and_always_ends(lost: int) -> None:
    # The first `lost` CLOSEs are lost; for every other way of losing, see below.
    world = World(lose=lambda up, n: up and n < lost)
    world.client.close(CloseCode.LEAVING, "", world.now_ns)
    world.run(2_000)
    assert world.client.state is State.CLOSED
    if lost < CLOSE_REPEATS:
        assert of(Closed, world.server_events) == [Closed(CloseCode.LEAVING, "", by_peer=True)]
        assert len(world.sent) == lost + 2
    else:
        assert len(world.sent) == CLOSE_REPEATS
        world.run(30_000)
        (closed,) = of(Closed, world.server_events)
        assert isinstance(closed, Closed)
        assert closed.code == CloseCode.TIMEOUT
    assert world.server.state is State.CLOSED


@given(
    pattern=st.lists(st.booleans(), min_size=30, max_size=30),
    server_too_ms=st.none() | st.integers(0, 700),
)
@settings(max_examples=30, deadline=None)
def test_no_loss_makes_an_endless_exchange(pattern: list[bool], server_too_ms: int | None) -> None:
    world = World(lose=lambda up, n: pattern[(2 * n + up) % len(pattern)])
    world.client.close(CloseCode.LEAVING, "", world.now_ns)
    if server_too_ms is not None:
        world.run(server_too_ms)
        world.server.close(CloseCode.SHUTDOWN, "", world.now_ns)
    world.run(60_000)
    assert world.client.state is world.server.state is State.CLOSED
    # At most: each end's CLOSE three times, and an answer to each of the other's.
    assert world.control_sent(up=True) <= 2 * CLOSE_REPEATS
    assert world.control_sent(up=False) <= 2 * CLOSE_REPEATS
    assert world.sent[-1][0] <= START_NS + 3 * SECOND_NS


def test_an_answer_that_is_lost_is_given_again() -> None:
    world = World(lose=lambda up, n: not up and n == 0)
    world.client.close(CloseCode.LEAVING, "", world.now_ns)
    world.run(2_000)
    assert [up for _, up, _ in world.sent] == [True, False, True, False]
    at = [at for at, up, _ in world.sent if up]
    assert at[1] - at[0] == CLOSE_REPEAT_NS


def test_an_end_that_closes_takes_and_sends_nothing_more() -> None:
    client, server = connected()
    server.close(CloseCode.TOO_SLOW, "too slow", START_NS)
    client.send(b"one more thing")
    client.ping(START_NS)
    audio = client.send_media(Kind.AUDIO, b"opus")
    assert server.receive(only(client.transmit(START_NS)), HOME, START_NS) == []
    assert server.receive(audio, HOME, START_NS) == []
    server.send(b"never sent")
    assert not server.can_send(1)
    close = only(server.transmit(START_NS))
    assert client.receive(close, SERVER, START_NS) == [
        Closed(CloseCode.TOO_SLOW, "too slow", by_peer=True)
    ]
    client.send(b"never sent")
    answer = only(client.transmit(START_NS))
    assert server.receive(answer, HOME, START_NS) == []
    assert server.state is client.state is State.CLOSED
    assert server.transmit(START_NS) == client.transmit(START_NS) == []
    # A closed session is not changed by a second end.
    server.close(CloseCode.LEAVING, "", START_NS)
    assert server.state is State.CLOSED
    assert not server.over(START_NS + DRAIN_NS - 1)
    assert server.over(START_NS + DRAIN_NS)


def test_the_reason_is_cut_to_its_limit_and_shown_even_if_a_letter_breaks() -> None:
    client, server = connected()
    server.close(CloseCode.SHUTDOWN, "ö" * 500 + "x", START_NS)
    datagram = only(server.transmit(START_NS))
    assert len(datagram) == 28 + 3 + 2 + MAX_CLOSE_TEXT_BYTES
    (closed,) = client.receive(datagram, SERVER, START_NS) or []
    assert closed == Closed(CloseCode.SHUTDOWN, "ö" * 100, by_peer=True)
    client, server = connected()
    odd = sealed(server, chunk(Chunk.CLOSE, b"\x00\x63\xff\xfe"))  # a code of later versions
    (closed,) = client.receive(odd, SERVER, START_NS) or []
    assert closed == Closed(0x63, "\ufffd\ufffd", by_peer=True)


# --- addresses ---


def test_a_newer_packet_from_another_address_moves_the_session_at_once() -> None:
    world = World()
    world.run(100)
    world.home = AWAY
    world.client.send(b"I am elsewhere")
    world.run(25)
    assert world.server.address == AWAY
    assert of(Roamed, world.server_events) == [Roamed()]
    assert messages(world.server_events) == [b"I am elsewhere"]
    world.server.send(b"welcome back")
    world.run(1_000)
    assert messages(world.client_events) == [b"welcome back"]
    assert world.server.credit_bytes is None
    assert len(of(Roamed, world.server_events)) == 1


def test_only_a_newer_authentic_packet_moves_a_session() -> None:
    client, server = connected()
    audio = [client.send_media(Kind.AUDIO, bytes([n])) for n in range(4)]
    assert server.receive(audio[1], HOME, START_NS)
    # Older, but fresh: taken, and the session stays.
    assert server.receive(audio[0], AWAY, START_NS) == [Media(Kind.AUDIO, 0, b"\0")]
    assert (server.address, server.credit_bytes) == (HOME, None)
    # Repeated, forged, cut: not even taken.
    drop(server, audio[1], "replayed", AWAY)
    drop(server, audio[2][:-1] + b"\0", "forged", AWAY)
    drop(server, audio[2][:-1], "forged", AWAY)
    newer = pack_header(Kind.AUDIO, 9, SERVER_INDEX) + audio[2][12:]
    drop(server, newer, "forged", AWAY)
    assert server.address == HOME
    # Newer: moves.
    events = server.receive(audio[3], AWAY, START_NS)
    assert events == [Roamed(), Media(Kind.AUDIO, 3, b"\3")]
    assert (server.address, server.credit_bytes) == (AWAY, len(audio[3]))
    # Overtaken from the old address: taken, no way back.
    assert server.receive(audio[2], HOME, START_NS) == [Media(Kind.AUDIO, 2, b"\2")]
    assert server.address == AWAY
    assert server.credit_bytes == len(audio[3])


def test_an_unproven_address_gets_no_more_bytes_than_came_from_it() -> None:
    # The session is moved to somebody who never answers, while the server has much to send.
    world = World()
    for _ in range(20):
        world.server.send(bytes(10_000))
    world.client.ping(world.now_ns)
    stolen = only(world.client.transmit(world.now_ns))
    world.bytes_from[AWAY] += len(stolen)
    world.server.receive(stolen, AWAY, world.now_ns)
    assert world.server.credit_bytes == len(stolen)
    for _ in range(100):  # `post` checks the sums
        world.now_ns += 100 * MS
        world.server.tick(world.now_ns)
        world.drain()
    assert world.bytes_to[AWAY] <= len(stolen)
    assert world.server.address == AWAY


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(
        st.sampled_from([0, 4, 11, 12, 40, 100, 600, 1_140, 1_144, 1_150, 1_171, 1_172]),
        min_size=1,
        max_size=12,
    ),
    queued=st.integers(0, 12_000),
    closing=st.booleans(),
    step_ms=st.sampled_from([0, 30, 250, 1_100]),
)
def test_credit_is_never_overdrawn(
    sizes: list[int], queued: int, closing: bool, step_ms: int
) -> None:
    client, server = connected()
    server.send(bytes(queued))
    now_ns, came, went = START_NS, 0, 0
    for size in sizes:
        data = client.send_media(Kind.AUDIO, bytes(size))
        came += len(data)
        server.receive(data, AWAY, now_ns)
        for datagram in server.transmit(now_ns):
            went += len(datagram)
        media_bytes = 28 + 90  # and audio, as the egress sends it
        while server.spend(media_bytes):
            went += media_bytes
        assert went <= came
        assert server.credit_bytes == came - went
        now_ns += step_ms * MS
        server.tick(now_ns)
    if closing:
        server.close(CloseCode.SHUTDOWN, "x" * 200, now_ns)
    for _ in range(50):
        for datagram in server.transmit(now_ns):
            went += len(datagram)
        server.tick(now_ns)
        now_ns += 50 * MS
    assert went <= came


def test_a_padded_ping_gives_room_at_once_and_its_answer_proves_the_address() -> None:
    client, server = connected()
    client.ping(START_NS, pad_bytes=MAX_DATAGRAM_BYTES)
    datagram = only(client.transmit(START_NS))
    assert len(datagram) == MAX_DATAGRAM_BYTES
    assert server.receive(datagram, AWAY, START_NS) == [Roamed()]
    assert server.credit_bytes == MAX_DATAGRAM_BYTES
    answer = only(server.transmit(START_NS))
    assert server.spend(10 * 118 // 2), "half a dozen audio packets at once"
    pong = client.receive(answer, SERVER, START_NS + 30 * MS)
    assert pong == [Pong(START_NS, 30 * MS, 77)]
    proof = only(client.transmit(START_NS + 30 * MS))
    assert server.receive(proof, AWAY, START_NS + 60 * MS) == [Pong(START_NS, 60 * MS, 0)]
    assert server.credit_bytes is None
    assert server.spend(10**9)


@pytest.mark.parametrize("pad_bytes", [0, 64, 256, 700, MAX_DATAGRAM_BYTES])
@pytest.mark.parametrize("queued", [0, 10, 900, 5_000])
def test_a_ping_is_padded_to_the_size_asked_for(pad_bytes: int, queued: int) -> None:
    client, _ = connected()
    if queued:
        client.send(bytes(queued))
    client.ping(START_NS, pad_bytes=pad_bytes)
    first, *rest = client.transmit(START_NS)
    assert max(pad_bytes, 39) <= len(first) <= MAX_DATAGRAM_BYTES
    if not queued:
        assert len(first) == max(pad_bytes, 39)
    assert bool(rest) == (queued > 1_000)


def test_an_answer_from_another_address_than_the_one_asked_proves_nothing() -> None:
    client, server = connected()
    client.ping(START_NS)
    server.receive(only(client.transmit(START_NS)), AWAY, START_NS)
    question = only(server.transmit(START_NS))  # towards AWAY
    client.receive(question, SERVER, START_NS)
    proof = only(client.transmit(START_NS))
    # It comes from a third place: the session moves there, and is not proven there.
    events = server.receive(proof, b"third", START_NS) or []
    assert of(Roamed, events) == [Roamed()]
    assert of(Pong, events) == []
    assert server.address == b"third"
    assert server.credit_bytes == len(proof)


def test_a_made_up_answer_proves_nothing() -> None:
    client, server = connected()
    client.ping(START_NS)
    server.receive(only(client.transmit(START_NS)), AWAY, START_NS)
    server.transmit(START_NS)
    for token in (bytes(TOKEN_BYTES), b"\xff" * TOKEN_BYTES):
        pong = sealed(client, chunk(Chunk.PONG, token + bytes(4)))
        assert server.receive(pong, AWAY, START_NS) == []
    assert server.credit_bytes is not None


@pytest.mark.parametrize("rtt_ms", [10, 100, 190, 210, 450, 1_300])
@pytest.mark.parametrize("talking", [True, False])
def test_an_address_is_proven_on_slow_paths_too(rtt_ms: int, talking: bool) -> None:
    world = World()
    world.delay_ns = rtt_ms * MS // 2
    world.home = AWAY
    world.client.ping(world.now_ns, pad_bytes=256)
    for _ in range(rtt_ms * 4 // 20 + 20):
        if talking:
            world.post(True, world.client.send_media(Kind.AUDIO, bytes(80)), AWAY)
        world.run(20)
    assert world.server.address == AWAY
    assert world.server.credit_bytes is None


def test_a_lost_challenge_is_repeated() -> None:
    world = World(lose=lambda up, n: not up and n == 0)
    world.home = AWAY
    world.client.ping(world.now_ns, pad_bytes=256)
    world.run(150)
    assert world.server.credit_bytes is not None
    world.run(400)
    assert world.server.credit_bytes is None


def test_a_proof_that_comes_before_the_question_was_repeated_is_enough() -> None:
    client, server = connected()
    client.ping(START_NS, pad_bytes=256)
    server.receive(only(client.transmit(START_NS)), AWAY, START_NS)
    client.receive(only(server.transmit(START_NS)), SERVER, START_NS)
    proof = only(client.transmit(START_NS))
    later_ns = START_NS + 300 * MS
    server.tick(later_ns)  # time to ask again, but the answer is there before that goes out
    server.receive(proof, AWAY, later_ns)
    assert server.credit_bytes is None
    for datagram in server.transmit(later_ns):
        assert client.receive(datagram, SERVER, later_ns) == []
    assert client.state is State.OPEN


def test_a_spoofed_move_heals_with_the_next_packet_of_the_client() -> None:
    world = World()
    world.run(10)
    stolen = world.client.send_media(Kind.AUDIO, b"stolen")
    world.bytes_from[AWAY] += len(stolen)
    world.server_events += world.server.receive(stolen, AWAY, world.now_ns) or []
    assert world.server.address == AWAY
    world.server.send(b"for the client")
    world.post(True, world.client.send_media(Kind.AUDIO, bytes(80)), HOME)
    world.run(3_000)
    assert world.server.address == HOME
    assert messages(world.client_events) == [b"for the client"]
    world.run(10_000)
    assert world.server.credit_bytes is None


@pytest.mark.parametrize("seed", range(3))
def test_messages_go_on_while_the_client_moves_about(seed: int) -> None:
    world = World(seed, loss=0.1)
    up, down = [], []
    for i in range(40):
        if i % 5 == 0:
            world.home = b"place %d" % (i // 5)
            world.client.ping(world.now_ns, pad_bytes=MAX_DATAGRAM_BYTES)
        up.append(b"up %d" % i + bytes(i * 37))
        down.append(b"down %d" % i + bytes(i * 53))
        world.client.send(up[-1])
        world.server.send(down[-1])
        world.run(300)
    world.run(30_000)
    assert messages(world.server_events) == up
    assert messages(world.client_events) == down
    assert world.server.address == b"place 7"
    assert world.server.credit_bytes is None
    assert 8 <= len(of(Roamed, world.server_events)) <= 16


def test_a_blocked_connection_does_not_spin() -> None:
    # Data is due and credit lacks: a driver that obeys the deadline must get on in time.
    client, server = connected()
    server.send(b"x" * 500)
    server.transmit(START_NS)
    audio = client.send_media(Kind.AUDIO, b"x")
    server.receive(audio, AWAY, START_NS)
    now_ns, turns = START_NS, 0
    while now_ns < START_NS + 20 * SECOND_NS:
        now_ns = max(server.deadline_ns, now_ns + 20 * MS)
        server.tick(now_ns)
        server.transmit(now_ns)
        turns += 1
    assert turns <= 1_000
    assert server.state is State.OPEN


def test_the_header_names_the_receivers_session() -> None:
    client, server = connected()
    client.ping(START_NS)
    server.ping(START_NS)
    assert unpack_header(only(client.transmit(START_NS)))[2] == SERVER_INDEX
    assert unpack_header(only(server.transmit(START_NS)))[2] == CLIENT_INDEX
    assert unpack_header(client.send_media(Kind.AUDIO, b""))[2] == SERVER_INDEX


def test_every_close_code_is_distinct_and_fits_its_field() -> None:
    assert len({int(c) for c in CloseCode}) == len(CloseCode)
    assert all(0 <= c <= 0xFFFF for c in CloseCode)
    assert len({int(c) for c in Chunk}) == len(Chunk)
    assert all(0 <= c <= 0xFF for c in Chunk)
