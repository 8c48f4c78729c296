"""Clients of the generator behave towards a server as those do that open their media: by a clock
that moves when told to, against a server that notes when they ping."""

import os
import socket
from collections import Counter, defaultdict
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest

from bench.audience import LOOK_NS, Audience, Member
from bench.joins import Storm
from bench.sample import Sample
from protocol.connection import (
    IDLE_TIMEOUT_NS,
    KEEPALIVE_NS,
    KEEPALIVE_REPEAT_NS,
    MS,
    QUIET_NS,
    Connection,
    Media,
)
from protocol.link import Link
from protocol.noise import Handshake, KeyPair
from protocol.packets import NO_COOKIE, Hello, Kind, Welcome, pack_cookie, unpack_header
from protocol.sealing import SessionKeys

STEP_NS = 20 * MS
SECOND_NS = 1_000 * MS
LATE_NS = LOOK_NS + 2 * STEP_NS
OPENS, COUNTS = 0, 9  # the first is one of those that open what they get


class Clock:
    """Stands in for the module `time`; goes on when somebody rests."""

    def __init__(self) -> None:
        self.now_ns = 100 * SECOND_NS

    def monotonic_ns(self) -> int:
        return self.now_ns

    def rest(self, until_ns: int) -> int:
        self.now_ns += STEP_NS
        return STEP_NS


class Server:
    """pinged_ns: when whom (by index) it heard, once there was a session."""

    def __init__(self, clock: Clock) -> None:
        self.pinged_ns: dict[int, list[int]] = defaultdict(list)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.key = KeyPair(os.urandom(32))
        host, port = self.socket.getsockname()
        self.link = Link(host, port, self.key.public)
        self.answers = True
        self.cookie = b""  # that it asks for; none while it is empty
        self._clock = clock
        self._sessions: dict[int, tuple[Connection, tuple[str, int]]] = {}

    def close(self) -> None:
        self.socket.close()

    def take(self) -> None:
        while True:
            try:
                data, source = self.socket.recvfrom(2_048)
            except BlockingIOError:
                return
            if data[0] == Kind.HELLO:
                self._hello(Hello.unpack(data), source)
                continue
            index = unpack_header(data)[2]
            connection, _ = self._sessions[index]
            self.pinged_ns[index].append(self._clock.now_ns)
            connection.receive(data, b"", self._clock.now_ns)
            for datagram in connection.transmit(self._clock.now_ns):
                if self.answers:
                    self.socket.sendto(datagram, source)

    def _hello(self, hello: Hello, source: tuple[str, int]) -> None:
        if self.cookie and hello.cookie != self.cookie:
            assert hello.cookie == NO_COOKIE
            self.socket.sendto(pack_cookie(hello.client_index, self.cookie), source)
            return
        noise = Handshake(
            initiator=False, prologue=hello.prologue, entropy=os.urandom, static=self.key
        )
        noise.read(hello.noise)
        index = hello.client_index  # also the server's
        answer = noise.write(index.to_bytes(4))
        receive, send = noise.split()
        connection = Connection(
            SessionKeys.derive(send=send.key, receive=receive.key),
            remote_index=index,
            address=b"",
            now_ns=self._clock.now_ns,
            entropy=os.urandom,
            keep_alive=False,
        )
        self._sessions[index] = connection, source
        self.socket.sendto(Welcome(index, answer).pack(), source)

    def play(self) -> None:
        """A datagram of media for everybody."""
        for connection, source in self._sessions.values():
            self.socket.sendto(connection.send_media(Kind.AUDIO, b"something"), source)


class Quiet(Audience):
    """Its members ask for nothing: whatever they send is a ping.  woken: how often each was."""

    def __init__(self, link: Link) -> None:
        super().__init__(link, listeners=10, speech=[])
        self.woken: Counter[int] = Counter()

    def _timer(self, member: Member, now_ns: int) -> None:
        self.woken[member.index] += 1
        super()._timer(member, now_ns)

    def _welcomed(self, member: Member, now_ns: int) -> None:
        pass

    @property
    def lost(self) -> int:
        return self._lost


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("bench.clients.time", clock)
    monkeypatch.setattr("bench.audience.time", clock)
    monkeypatch.setattr("bench.joins.time", clock)
    monkeypatch.setattr("bench.audience.rest", clock.rest)
    return clock


def pass_time(clock: Clock, server: Server, audience: Audience, ns: int, *, play: bool) -> int:
    """-> when it ended."""
    until_ns = clock.now_ns + ns
    while clock.now_ns < until_ns:
        if play:
            server.play()
        audience.round()
        server.take()
    return clock.now_ns


def test_they_ping_as_those_do_who_open_what_they_get(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Media] = []
    monkeypatch.setattr(Sample, "hear", lambda _, media, now_ns: heard.append(media))
    with (
        closing(Server(clock)) as server,
        closing(Quiet(server.link)) as audience,
    ):
        for number in (OPENS, COUNTS):
            audience._begin(number)
        pass_time(clock, server, audience, SECOND_NS, play=False)
        assert server.pinged_ns.keys() == {OPENS, COUNTS}
        silent_ns = pass_time(clock, server, audience, 64 * SECOND_NS, play=True)
        assert audience.woken[COUNTS] <= 5, "more often than there was something to send"
        alone_ns = pass_time(clock, server, audience, 17 * SECOND_NS, play=False)
        server.answers = False
        pass_time(clock, server, audience, 40 * SECOND_NS, play=False)
        assert len(heard) > 3_000
        for pinged_ns in server.pinged_ns.values():
            steps_ns = [b - a for a, b in pairwise(pinged_ns)]
            # While there is something to hear, it is the keep-alives.
            assert all(0 <= step_ns - KEEPALIVE_NS <= LATE_NS for step_ns in steps_ns[:4])
            # In silence it looks sooner whether anybody is there.
            quiet_ns = [ns for ns in pinged_ns if silent_ns < ns <= alone_ns]
            assert 0 <= quiet_ns[0] - silent_ns + STEP_NS - QUIET_NS <= LATE_NS + STEP_NS
            steps_ns = [b - a for a, b in pairwise(quiet_ns)]
            assert all(0 <= step_ns - QUIET_NS <= LATE_NS for step_ns in steps_ns)
            assert len(quiet_ns) == 3
            # Nobody answers: it asks again, and gives up.
            last_ns = [ns for ns in pinged_ns if ns > alone_ns]
            steps_ns = [b - a for a, b in pairwise(last_ns)]
            assert all(0 <= step_ns - KEEPALIVE_REPEAT_NS <= LATE_NS for step_ns in steps_ns)
            assert 0 <= quiet_ns[-1] + IDLE_TIMEOUT_NS - last_ns[-1] <= SECOND_NS + LATE_NS
        assert audience.lost == 2
    times = [server.pinged_ns[number] for number in (OPENS, COUNTS)]
    assert all(abs(a - b) <= LATE_NS for a, b in zip(*times, strict=True))


def test_it_shows_the_cookie_that_it_is_asked_for(clock: Clock) -> None:
    with (
        closing(Server(clock)) as server,
        closing(Quiet(server.link)) as audience,
    ):
        server.cookie = os.urandom(len(NO_COOKIE))
        member = audience._begin(COUNTS)
        pass_time(clock, server, audience, SECOND_NS, play=False)
        assert member.connection is not None
        assert server.pinged_ns.keys() == {COUNTS}


def test_a_hello_is_said_again_until_it_is_answered(clock: Clock) -> None:
    with (
        closing(Server(clock)) as server,
        closing(Quiet(server.link)) as audience,
    ):
        member = audience._begin(COUNTS)
        server.socket.recv(2_048)  # lost
        pass_time(clock, server, audience, SECOND_NS, play=False)
        assert member.connection is not None


def test_a_newcomer_has_another_index_with_every_hello(clock: Clock) -> None:
    with (
        closing(Server(clock)) as server,
        closing(Storm(server.link, "space", rate=50, count=4)) as storm,
    ):
        server.cookie = os.urandom(len(NO_COOKIE))
        storm.begin()
        for _ in range(3):  # the next is due 20 ms later
            storm.come()
            for _ in range(2):
                server.take()
                storm.turn()
            clock.now_ns += STEP_NS
        assert storm.late_ns == [0, 0, 0]
        assert (storm.cookies, storm.unanswered, storm.repeated) == (3, 3, 0)
        server.take()
        assert server.pinged_ns.keys() == {4, 5, 6}


@pytest.mark.parametrize(
    ("counts", "skipped"),
    [
        ([150] * 10, 0),
        ([151, 150, 149, 148] + [150] * 6, 0),  # the edges of a window are not sharp
        ([150] * 9 + [0], 148),
        ([150] * 9 + [100], 48),
        ([0] * 10, 1_480),
    ],
)
def test_who_is_sent_too_little_for_the_time_has_lost_it(
    clock: Clock, counts: list[int], skipped: int
) -> None:
    with (
        closing(Server(clock)) as server,
        closing(Quiet(server.link)) as audience,
    ):
        audience._samples.clear()  # which see only what they get
        audience.tally.count(np.arange(10), np.full(10, 7))
        audience.talk()
        audience.begin()
        for number, count in enumerate(counts):
            audience.tally.count(np.full(count, number), 8 + np.arange(count))
        clock.now_ns += 3 * SECOND_NS
        window = audience.end()
    assert (window.delivered, window.skipped) == (sum(counts), skipped)
    assert window.expected == sum(counts) + skipped
    assert window.loss == pytest.approx(skipped / window.expected)


def test_whatever_keeps_it_from_resting_makes_it_busy(clock: Clock) -> None:
    with (
        closing(Server(clock)) as server,
        closing(Quiet(server.link)) as audience,
    ):
        audience.begin()
        audience.run(1.5)
        clock.now_ns += SECOND_NS // 2  # it has work, or something else has its core
        window = audience.end()
    assert window.seconds == pytest.approx(2)
    assert window.generator_busy == pytest.approx(0.25)


def test_where_nobody_talks_nothing_is_expected(clock: Clock) -> None:
    with (
        closing(Server(clock)) as server,
        closing(Quiet(server.link)) as audience,
    ):
        audience.begin()
        clock.now_ns += 3 * SECOND_NS
        assert audience.end().skipped == 0


@pytest.mark.parametrize(("packet_ms", "due"), [(20, 148), (40, 73), (60, 48)])
def test_a_crowd_gets_fewer_datagrams(clock: Clock, packet_ms: int, due: int) -> None:
    with (
        closing(Server(clock)) as server,
        closing(Audience(server.link, listeners=2, speech=[], packet_ms=packet_ms)) as audience,
    ):
        audience.talk()
        audience.begin()
        clock.now_ns += 3 * SECOND_NS
        assert audience.end().expected == 2 * due
