"""The honest generator: real clients by the thousand in one process, on one core.

Every listener has keys, a handshake, and a connection with keep-alives and acknowledgements of its
own.  Thousands fit because they share a few sockets, and because of their media only the clear
headers are read, a whole batch at a time: the index in a header is the listener's number, so a
batch of headers is a batch of (stream, sequence number).  Some listeners open and decode all that
they get (bench/sample.py).

    open()              the first talker registers, and opens a space as its host
    gather()            the other talkers come on stage, the listeners into the audience
    talk()              the talkers begin: a packet each 20 ms, at absolute deadlines
    run(until_ns)       time passes
    begin() ... end()   a measuring window -> Window

It notes how late its own packets went out, what share of its core it needed, and what its sockets
dropped: a run in which the generator was the bottleneck says nothing about the server.
"""

import contextlib
import heapq
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.polled import ROUND_NS, Poller, Tally, dropped_by_kernel, headers, rest, udp_socket
from bench.sample import TICK_NS, Sample
from bench.speech import Talk
from protocol import frames
from protocol.connection import KEEPALIVE_NS, MS, Closed, Connection, Event, Media, Message, State
from protocol.link import Link
from protocol.noise import Handshake, NoiseError
from protocol.packets import (
    HELLO_PAYLOAD_BYTES,
    INDEX_BYTES,
    MAX_DATAGRAM_BYTES,
    NO_COOKIE,
    VERSION,
    Hello,
    Kind,
    Welcome,
    key_id,
    unpack_cookie,
)
from protocol.sealing import SessionKeys

SOCKETS = 8
SAMPLES = 8
UNDER_WAY = 32  # handshakes at once: the server asks for no cookie yet
HELLO_REPEAT_NS = 500 * MS
STEP_NS = MS // 2  # of time, while newcomers are waited for
PATIENCE_NS = 15_000 * MS  # without anything that was waited for
MAX_BUSY = 0.9
MAX_LATENESS_MS = 10.0

R = TypeVar("R", bound=frames.Reply)


class AudienceError(Exception):
    """The space cannot be filled as was asked; the text says why."""


@dataclass(slots=True, eq=False)
class Member:
    """One client.  number: its index in headers, and its stream in the tally."""

    number: int
    key: bytes
    socket: socket.socket
    newest: int = -1  # media, when it was last looked at
    ping_ns: int = 0  # when to ping out of turn, once, so that everyone's turns are spread evenly
    hello: Hello | None = None
    handshake: Handshake | None = None
    connection: Connection | None = None
    replies: list[frames.Reply] = field(default_factory=list)  # that nobody has taken yet
    joined: bool = False
    last_id: int = 0
    wakes_ns: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between begin() and end().

    expected, delivered: media datagrams of all listeners, which the server should have sent, and
    which came.  skipped: those of `expected` that it did not even make, as the samples saw (the
    counters know of the others).  datagram_bytes: mean size.  sampled_frames, sampled_failures: of
    all samples together.
    generator_busy: share of the time that was not just waiting for the next look at the sockets.
    generator_lateness_ms: of the talkers' packets; p50, p99, max.
    """

    seconds: float
    expected: int
    delivered: int
    skipped: int
    duplicates: int
    reordered: int
    datagram_bytes: int
    sampled_frames: int
    sampled_failures: int
    lost_sessions: int
    generator_busy: float
    generator_lateness_ms: dict[str, float]
    generator_dropped: int

    @property
    def loss(self) -> float:
        """A share of 1; 1 if nothing was sent."""
        return max(0.0, 1 - self.delivered / self.expected) if self.expected else 1.0

    @property
    def why_invalid(self) -> str:
        """In what way the generator was the bottleneck, or failed; empty if it was and did not."""
        late_ms = self.generator_lateness_ms["p99"]
        if self.generator_dropped:
            return f"the generator's sockets dropped {self.generator_dropped} datagrams"
        if self.generator_busy > MAX_BUSY:
            return f"the generator was busy for {self.generator_busy:.0%} of the time"
        if late_ms > MAX_LATENESS_MS:
            return f"1 in 100 of the generator's own packets was late by {late_ms:.1f} ms or more"
        if self.lost_sessions:
            return f"{self.lost_sessions} sessions ended"
        if self.sampled_failures:
            return f"{self.sampled_failures} datagrams could not be opened and decoded"
        return ""


class Audience:
    """All clients of one space, their sockets and timers.

    Listeners have the numbers from 0, and talkers those after them, the host's first.
    """

    def __init__(
        self, link: Link, *, listeners: int, speech: list[list[bytes]], packet_ms: int = 20
    ) -> None:
        """speech: each talker's Opus packets (bench/speech.py).  packet_ms: the most audio that
        members take in one datagram."""
        self.listeners = listeners
        self.tally = Tally(listeners + len(speech))  # of media datagrams, by their counters
        self._link = link
        self._packet_ms = packet_ms
        self._sockets = [udp_socket() for _ in range(SOCKETS)]
        for one in self._sockets:
            one.connect((link.host, link.port))
        self._poller = Poller(self._sockets, room_bytes=MAX_DATAGRAM_BYTES)
        self._members: dict[int, Member] = {}
        self._on_stage: list[Member] = []
        self._samples = [Sample() for _ in range(min(SAMPLES, listeners))]
        self._talks = [Talk(packets) for packets in speech]
        self._space = ""
        self._inside = 0  # how many listeners have joined
        self._refusals: Counter[str] = Counter()
        self._lost = 0
        self._timers: list[tuple[int, int, Member]] = []
        self._timers_made = 0
        self._start_ns = time.monotonic_ns()
        self._talks_from_ns: int | None = None
        self._said = 0  # packets of all talkers together
        self._late_ns: list[int] = []
        self._idle_ns = 0
        self._media_bytes = 0
        self._window = (0, 0, 0)  # when it began; sockets' drops and sessions lost until then

    def close(self) -> None:
        for one in self._sockets:
            one.close()

    # -- coming in ------------------------------------------------------------------------------

    def open(self) -> None:
        """The first talker opens the space.  Raises AudienceError."""
        host = self._speaker()
        host.joined = True
        self._ask(host, frames.Open, title="a measurement")
        self._space = self._reply(host, frames.Joined).space

    def gather(self) -> None:
        """All others come in, as fast as the server takes them.  Raises AudienceError."""
        if len(self._talks) > 1:
            self._ask(self._on_stage[0], frames.MakeInvite)
            invite = self._reply(self._on_stage[0], frames.Invited).invite
        while len(self._on_stage) < len(self._talks):
            talker = self._speaker()
            self._ask(talker, frames.Join, space=self._space, invite=invite)
            self._reply(talker, frames.Joined)
        begun, seen, since_ns = 0, 0, time.monotonic_ns()
        while self._inside < self.listeners:
            while begun < min(self.listeners, self._inside + UNDER_WAY):
                self._begin(begun, time.monotonic_ns())
                begun += 1
            self.run(time.monotonic_ns() + STEP_NS)
            if self._inside > seen:
                seen, since_ns = self._inside, time.monotonic_ns()
            elif self._refusals or time.monotonic_ns() - since_ns > PATIENCE_NS:
                why = ", ".join(self._refusals) or "the others get no answer"
                raise AudienceError(f"only {seen} of {self.listeners} came in: {why}")

    def _speaker(self) -> Member:
        """One more session for the stage, with an account: guests do not speak."""
        number = self.listeners + len(self._on_stage)
        member = self._begin(number, time.monotonic_ns())
        self._on_stage.append(member)
        self._wait(lambda: member.connection is not None)
        self._ask(member, frames.Register, handle=f"talker_{number}", name="talker")
        self._reply(member, frames.AccountReply)
        return member

    def _reply(self, member: Member, wanted: type[R]) -> R:
        """The reply to what was asked last."""
        self._wait(lambda: bool(member.replies))
        reply = member.replies.pop()
        if not isinstance(reply, wanted):
            raise AudienceError(f"{getattr(reply, 'text', '') or reply}")
        return reply

    def _wait(self, done: Callable[[], bool]) -> None:
        until_ns = time.monotonic_ns() + PATIENCE_NS
        while not done():
            if time.monotonic_ns() > until_ns:
                raise AudienceError("the server does not answer")
            self.run(time.monotonic_ns() + STEP_NS)

    # -- one member -----------------------------------------------------------------------------

    def _begin(self, number: int, now_ns: int) -> Member:
        """A newcomer's HELLO.  A listener then goes all the way to `joined` by itself."""
        member = Member(number, os.urandom(32), self._sockets[number % SOCKETS])
        self._members[number] = member
        self._greet(member, NO_COOKIE, now_ns)
        return member

    def _greet(self, member: Member, cookie: bytes, now_ns: int) -> None:
        bare = Hello(VERSION, member.number, key_id(self._link.key), cookie, b"")
        member.handshake = Handshake(
            initiator=True,
            prologue=bare.prologue,
            entropy=os.urandom,
            static=member.key,
            remote_static=self._link.key,
        )
        noise = member.handshake.write(frames.encode_greeting("spaces-bench", HELLO_PAYLOAD_BYTES))
        member.hello = Hello(VERSION, member.number, bare.key_id, cookie, noise)
        self._send(member, member.hello.pack())
        self._wake_at(member, now_ns + HELLO_REPEAT_NS)

    def _welcomed(self, member: Member, data: bytes, now_ns: int) -> None:
        assert member.handshake is not None
        server_index = member.handshake.read(Welcome.unpack(data).noise)[:INDEX_BYTES]
        send, receive = member.handshake.split()
        member.connection = Connection(
            SessionKeys.derive(send=send.key, receive=receive.key),
            remote_index=int.from_bytes(server_index),
            address=b"",
            now_ns=now_ns,
            entropy=os.urandom,
            keep_alive=True,
        )
        member.handshake = member.hello = None
        member.connection.ping(now_ns)  # proves the address
        if member.number < self.listeners:
            self._ask(member, frames.Join, space=self._space, packet_ms=self._packet_ms)
        else:
            self._flush(member, now_ns)

    def _ask(self, member: Member, kind: type[frames.Request], **fields: Any) -> None:
        assert member.connection is not None
        member.last_id += 1
        member.connection.send(frames.encode(kind(id=member.last_id, **fields)))
        self._flush(member, time.monotonic_ns())

    def _flush(self, member: Member, now_ns: int) -> None:
        connection = member.connection
        assert connection is not None
        for datagram in connection.transmit(now_ns):
            self._send(member, datagram)
        deadline_ns = connection.deadline_ns
        self._wake_at(member, min(deadline_ns, member.ping_ns or deadline_ns))

    def _send(self, member: Member, datagram: bytes) -> None:
        # What the kernel does not take is lost, as anything may be: the connection repeats it.
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            member.socket.send(datagram)

    def _wake_at(self, member: Member, when_ns: int) -> None:
        if not member.wakes_ns or when_ns < member.wakes_ns:
            member.wakes_ns = when_ns
            self._timers_made += 1
            heapq.heappush(self._timers, (when_ns, self._timers_made, member))

    def _timer(self, member: Member, now_ns: int) -> None:
        if member.hello is not None:
            self._send(member, member.hello.pack())
            self._wake_at(member, now_ns + HELLO_REPEAT_NS)
        elif member.connection is not None and member.connection.state is State.OPEN:
            newest = int(self.tally.newest[member.number])
            if newest != member.newest:  # a client would have opened it
                member.newest = newest
                member.connection._heard_ns = now_ns
            if member.ping_ns and now_ns >= member.ping_ns:
                member.ping_ns = 0
                member.connection.ping(now_ns)
            self._events(member, member.connection.tick(now_ns), now_ns)

    def _events(self, member: Member, events: list[Event], now_ns: int) -> None:
        for event in events:
            match event:
                case Message(data):
                    self._frame(member, frames.decode(data), now_ns)
                case Media():
                    self._samples[member.number].hear(event, now_ns)
                    return  # the only event of its datagram, to which there is no answer
                case Closed(text=text):
                    self._lost += 1
                    self._refusals[text] += 1
                case _:
                    pass
        self._flush(member, now_ns)

    def _frame(self, member: Member, frame: frames.Frame, now_ns: int) -> None:
        if not isinstance(frame, frames.Reply):
            return
        if member.number >= self.listeners:
            member.replies.append(frame)
        elif isinstance(frame, frames.Error):
            self._refusals[frame.text] += 1
        elif isinstance(frame, frames.Joined) and not member.joined:
            member.joined = True
            self._inside += 1
            # Its turn among all: the pings of a crowd that came together would come together.
            turn_ns = self._start_ns + KEEPALIVE_NS * member.number // self.listeners
            member.ping_ns = now_ns + (turn_ns - now_ns) % KEEPALIVE_NS

    # -- all of them ----------------------------------------------------------------------------

    def talk(self) -> None:
        """The talkers begin, evenly staggered within 20 ms."""
        self._talks_from_ns = time.monotonic_ns()

    def run(self, until_ns: int) -> None:
        """Lets time pass, until `until_ns` of time.monotonic_ns."""
        timers = self._timers
        now_ns = time.monotonic_ns()
        while now_ns < until_ns:
            round_ns = now_ns + ROUND_NS
            if self._talks_from_ns is not None:
                round_ns = min(round_ns, self._say(self._talks_from_ns, now_ns))
            while timers and timers[0][0] <= now_ns:
                when_ns, _, member = heapq.heappop(timers)
                if when_ns == member.wakes_ns:
                    member.wakes_ns = 0
                    self._timer(member, now_ns)
            batch = self._poller.poll_all()
            if batch is not None:
                self._take(*batch, time.monotonic_ns())
            self._idle_ns += rest(round_ns)
            now_ns = time.monotonic_ns()

    def _say(self, start_ns: int, now_ns: int) -> int:
        """What the talkers have to send by now: packet n of talker k is due n * 20 ms + k / S *
        20 ms after the start.  -> when the next one is due."""
        talkers = len(self._talks)
        while (due_ns := start_ns + self._said * TICK_NS // talkers) <= now_ns:
            number = self._said % talkers
            member = self._on_stage[number]
            assert member.connection is not None
            datagram = member.connection.send_media(Kind.AUDIO, self._talks[number].next())
            self._send(member, datagram)
            self._said += 1
            now_ns = time.monotonic_ns()
            self._late_ns.append(now_ns - due_ns)
        return due_ns

    def _take(self, data: NDArray[np.uint8], lengths: NDArray[np.intp], now_ns: int) -> None:
        kinds, counters, indices = headers(data)
        media = (kinds > Kind.CONTROL) & (indices < self.listeners + len(self._talks))
        if media.all():
            self.tally.count(indices, counters)
            self._media_bytes += int(lengths.sum())
        else:
            self.tally.count(indices[media], counters[media])
            self._media_bytes += int(lengths[media].sum())
        whole = ~media | (indices < len(self._samples))  # to be opened
        for row in np.flatnonzero(whole).tolist():
            self._open(data[row, : lengths[row]].tobytes(), now_ns)

    def _open(self, data: bytes, now_ns: int) -> None:
        at = 8 if data[0] >= Kind.CONTROL else 4
        member = self._members.get(int.from_bytes(data[at : at + INDEX_BYTES]))
        if member is None:
            return
        if member.connection is not None:
            if data[0] >= Kind.CONTROL:
                events = member.connection.receive(data, b"", now_ns)
                if events is None and member.number < len(self._samples):
                    self._samples[member.number].failed += 1
                self._events(member, events or [], now_ns)
        elif data[0] == Kind.WELCOME:
            with contextlib.suppress(NoiseError):  # of a HELLO before this one, which had no cookie
                self._welcomed(member, data, now_ns)
        elif data[0] == Kind.COOKIE:
            self._greet(member, unpack_cookie(data)[1], now_ns)
        else:
            self._refusals["the server refuses the session"] += 1

    # -- measuring ------------------------------------------------------------------------------

    def begin(self) -> None:
        """A measuring window begins."""
        self.tally.begin()
        for sample in self._samples:
            sample.begin()
        self._late_ns.clear()
        self._idle_ns = self._media_bytes = 0
        self._window = (time.monotonic_ns(), dropped_by_kernel(self._sockets), self._lost)

    def end(self) -> Window:
        """The window is over."""
        now_ns = time.monotonic_ns()
        since_ns, dropped, lost = self._window
        for sample in self._samples:
            sample.end(now_ns, self._packet_ms)
        heard = sum(sample.frames for sample in self._samples)
        skipped = sum(sample.skipped for sample in self._samples)
        sealed = int(self.tally.expected_by_stream[: self.listeners].sum())
        unmade = round(sealed * skipped / max(1, heard))
        late_ms = np.percentile(self._late_ns or [0], [50, 99, 100]) / MS
        return Window(
            seconds=(now_ns - since_ns) / 1e9,
            expected=sealed + unmade,
            delivered=int(self.tally.delivered_by_stream[: self.listeners].sum()),
            skipped=unmade,
            duplicates=self.tally.duplicates,
            reordered=self.tally.reordered,
            datagram_bytes=round(self._media_bytes / max(1, self.tally.delivered)),
            sampled_frames=heard,
            sampled_failures=sum(sample.failed for sample in self._samples),
            lost_sessions=self._lost - lost,
            generator_busy=max(0.0, 1 - self._idle_ns / (now_ns - since_ns)),
            generator_lateness_ms=dict(
                zip(("p50", "p99", "max"), np.round(late_ms, 3).tolist(), strict=True)
            ),
            generator_dropped=dropped_by_kernel(self._sockets) - dropped,
        )
