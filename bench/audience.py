"""The honest generator: real clients by the thousand in one process, on one core.

Every listener has keys, a handshake, and a connection with keep-alives and acknowledgements of its
own (bench/clients.py).  Thousands fit because of their media only the clear headers are read, a
whole batch at a time: the index in a header is the listener's number, so a batch of headers is a
batch of (stream, sequence number).  Some listeners open and decode all that they get
(bench/sample.py).

    open()              the first talker registers, and opens a space as its host
    gather()            the other talkers come on stage, the listeners into the audience
    talk()              the talkers begin: a packet each 20 ms, at absolute deadlines
    run(seconds)        time passes
    begin() ... end()   a measuring window -> Window

It notes how late its own packets went out, what share of its core it needed, and what its sockets
dropped: a run in which the generator was the bottleneck says nothing about the server.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bench.clients import Batch, Client, Clients
from bench.percentiles import percentiles
from bench.polled import ROUND_NS, Tally, dropped_by_kernel, rest
from bench.sample import TICK_NS, Sample
from bench.speech import Talk
from protocol import frames
from protocol.connection import KEEPALIVE_NS, MS, Media
from protocol.link import Link
from protocol.packets import DownlinkAudio, Kind, UplinkAudio
from spaces_client.crowd import Delays
from spaces_client.events import Heard

SAMPLES = 8
UNDER_WAY = 32  # handshakes at once: the server asks for no cookie yet
STEP_S = 0.0005  # of time, while newcomers are waited for
PATIENCE_NS = 15_000 * MS  # without anything that was waited for
LOOK_NS = 100 * MS  # from one look at who hears something to the next
SILENCE_NS = 1_000 * MS  # who has heard nothing for so long hears nothing
EDGES = 2  # datagrams of a window that may come before it or after it, one at each edge
MAX_BUSY = 0.9
MAX_LATENESS_MS = 10.0

R = TypeVar("R", bound=frames.Reply)


class AudienceError(Exception):
    """The space cannot be filled as was asked; the text says why."""


class Member(Client):
    """One client.  index: its stream in the tally, too.  replies: that nobody has taken yet."""

    __slots__ = ("replies",)

    def __init__(self, clients: Clients["Member"], number: int) -> None:
        super().__init__(number, clients.socket_for(number), os.urandom(32))
        self.replies: list[frames.Reply] = []


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between begin() and end().

    expected, delivered: media datagrams of all listeners, which the server should have sent, and
    which came.  skipped: those of `expected` that it did not even make, as the samples saw, or as
    is missing from what the time asks for each listener, whichever is more (the counters know of
    the others).  datagram_bytes: mean size.  sampled_frames, sampled_failures: of all samples
    together.  delay_ms: median, from a talker's packet to the first that carries it, of those that
    came to samples; None if none did.
    generator_busy: share of the time in which it did not rest until the next look at the sockets.
    That is its CPU time and what was taken from it meanwhile, by other programs or a hypervisor:
    one that cannot rest any more is the bottleneck, whoever had its core.
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
    delay_ms: float | None
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


class Audience(Clients[Member]):
    """All clients of one space, its talkers too.

    Listeners have the numbers from 0, and talkers those after them, the host's first.

    A client that opened its media would know that it hears something.  These find out from the
    tally, all at once, and then tell the connections of those for whom that has changed: who hears
    something rests until its keep-alive is due, and who no longer does pings soon after.
    """

    def __init__(
        self, link: Link, *, listeners: int, speech: list[list[bytes]], packet_ms: int = 20
    ) -> None:
        """speech: each talker's Opus packets (bench/speech.py).  packet_ms: the most audio that
        members take in one datagram."""
        super().__init__(link)
        everyone = listeners + len(speech)
        self.listeners = listeners
        self.space = ""  # that listeners join
        self.tally = Tally(everyone)  # of media datagrams, by their counters
        self._packet_ms = packet_ms
        self._on_stage: list[Member] = []
        self._delays = Delays()
        self._seats: list[int] = []  # of the talkers whose packets' way is watched
        self._samples = [Sample(self._carried) for _ in range(min(SAMPLES, listeners))]
        self._talks = [Talk(packets) for packets in speech]
        self._inside = 0  # how many listeners have joined
        self._refusals: Counter[str] = Counter()
        self._lost = 0
        self._look_ns = 0  # when to look at who hears something
        self._known = np.zeros(everyone, np.int64)  # each one's newest media then
        self._heard_ns = np.full(everyone, -SILENCE_NS)  # when there was some
        self._hears = np.zeros(everyone, np.bool_)
        self._start_ns = time.monotonic_ns()
        self._talks_from_ns: int | None = None
        self._said = 0  # packets of all talkers together
        self._late_ns: list[int] = []
        self._idle_ns = 0
        self._media_bytes = 0
        self._window = (0, 0, 0)  # when it began; sockets' drops and sessions lost until then

    # -- coming in ------------------------------------------------------------------------------

    def open(self) -> None:
        """The first talker opens the space.  Raises AudienceError."""
        host = self._speaker()
        self.ask(host, frames.Open, time.monotonic_ns(), title="a measurement")
        self.space = self._sit(host).space

    def gather(self) -> None:
        """All others come in, as fast as the server takes them.  Raises AudienceError."""
        if len(self._talks) > 1:
            self.ask(self._on_stage[0], frames.MakeInvite, time.monotonic_ns())
            invite = self._reply(self._on_stage[0], frames.Invited).invite
        while len(self._on_stage) < len(self._talks):
            talker = self._speaker()
            self.ask(talker, frames.Join, time.monotonic_ns(), space=self.space, invite=invite)
            self._sit(talker)
        begun, seen, since_ns = 0, 0, time.monotonic_ns()
        while self._inside < self.listeners:
            while begun < min(self.listeners, self._inside + UNDER_WAY):
                self._begin(begun)
                begun += 1
            self.run(STEP_S)
            if self._inside > seen:
                seen, since_ns = self._inside, time.monotonic_ns()
            elif self._refusals or time.monotonic_ns() - since_ns > PATIENCE_NS:
                why = ", ".join(self._refusals) or "the others get no answer"
                raise AudienceError(f"only {seen} of {self.listeners} came in: {why}")

    def _speaker(self) -> Member:
        """One more session for the stage, with an account: guests do not speak."""
        number = self.listeners + len(self._on_stage)
        member = self._begin(number)
        self._on_stage.append(member)
        self._wait(lambda: member.connection is not None)
        now_ns = time.monotonic_ns()
        self.ask(member, frames.Register, now_ns, handle=f"talker_{number}", name="talker")
        self._reply(member, frames.AccountReply)
        return member

    def _sit(self, talker: Member) -> frames.Joined:
        """A talker is in."""
        joined = self._reply(talker, frames.Joined)
        assert isinstance(joined.you.seat, int)
        self._seats.append(joined.you.seat)
        return joined

    def _begin(self, number: int) -> Member:
        """A newcomer's HELLO.  A listener then goes all the way to `joined` by itself."""
        member = Member(self, number)
        self.prepare(member)
        self.greet(member, time.monotonic_ns())
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
            self.run(STEP_S)

    # -- one member -----------------------------------------------------------------------------

    def _space_of(self, member: Member) -> str:
        return self.space

    def _welcomed(self, member: Member, now_ns: int) -> None:
        if member.index < self.listeners:
            space = self._space_of(member)
            self.ask(member, frames.Join, now_ns, space=space, packet_ms=self._packet_ms)

    def _replied(self, member: Member, reply: frames.Reply, now_ns: int) -> None:
        if member.index >= self.listeners:
            member.replies.append(reply)
        elif isinstance(reply, frames.Error):
            self._refusals[reply.text] += 1
        elif isinstance(reply, frames.Joined):
            self._inside += 1
            # Its turn among all: the pings of a crowd that came together would come together.
            turn_ns = self._start_ns + KEEPALIVE_NS * member.index // self.listeners
            member.acts_ns = now_ns + (turn_ns - now_ns) % KEEPALIVE_NS

    def _act(self, member: Member, now_ns: int) -> None:
        assert member.connection is not None
        member.connection.ping(now_ns)

    def _ended(self, member: Member, text: str) -> None:
        self._lost += 1
        self._refusals[text] += 1

    def _flush(self, member: Member, now_ns: int) -> None:
        if self._hears[member.index]:
            self._heard(member, now_ns + KEEPALIVE_NS)  # it will, unless _look says otherwise
        super()._flush(member, now_ns)

    @staticmethod
    def _heard(member: Member, when_ns: int) -> None:
        """Its connection learns what it would know if it had opened its media."""
        if member.connection is not None:
            member.connection.heard_ns = when_ns

    # -- all of them ----------------------------------------------------------------------------

    def talk(self) -> None:
        """The talkers begin, evenly staggered within 20 ms."""
        self._talks_from_ns = time.monotonic_ns()

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        until_ns = time.monotonic_ns() + int(seconds * 1e9)
        while time.monotonic_ns() < until_ns:
            self.round()

    def round(self) -> None:
        """Does what is due, once, and rests until it is time to look again."""
        now_ns = time.monotonic_ns()
        again_ns = now_ns + ROUND_NS
        if self._talks_from_ns is not None:
            again_ns = min(again_ns, self._say(self._talks_from_ns, now_ns))
        self.turn()
        if now_ns >= self._look_ns:
            self._look_ns = now_ns + LOOK_NS
            self._look(now_ns)
        self._idle_ns += rest(again_ns)

    def _say(self, start_ns: int, now_ns: int) -> int:
        """What the talkers have to send by now: packet n of talker k is due n * 20 ms + k / S *
        20 ms after the start.  -> when the next one is due."""
        talkers = len(self._talks)
        while (due_ns := start_ns + self._said * TICK_NS // talkers) <= now_ns:
            number = self._said % talkers
            member = self._on_stage[number]
            assert member.connection is not None
            plaintext = self._talks[number].next()
            datagram = member.connection.send_media(Kind.AUDIO, plaintext)
            if self._seats:
                packet = UplinkAudio.unpack(plaintext)
                self._delays.sent(self._seats[number], packet, time.monotonic_ns())
            self._send(member, datagram)
            self._said += 1
            now_ns = time.monotonic_ns()
            self._late_ns.append(now_ns - due_ns)
        return due_ns

    def _count(self, batch: Batch, now_ns: int) -> None:
        indices, counters, lengths = batch.indices, batch.counters, batch.lengths
        media = (batch.kinds > Kind.CONTROL) & (indices < len(self._known))
        if not media.all():
            indices, counters, lengths = indices[media], counters[media], lengths[media]
        self.tally.count(indices, counters)
        self._media_bytes += int(lengths.sum())
        for row in np.flatnonzero(media & (batch.indices < len(self._samples))).tolist():
            number, length = int(batch.indices[row]), batch.lengths[row]
            self._hear(number, batch.data[row, :length].tobytes(), now_ns)

    def _hear(self, number: int, datagram: bytes, now_ns: int) -> None:
        """One of the samples opens what it got."""
        member = self._by_index.get(number)
        if member is None or member.connection is None:
            return
        events = member.connection.receive(datagram, b"", now_ns)
        if events is None:
            self._samples[number].failed += 1
        for event in events or ():
            if isinstance(event, Media):
                self._samples[number].hear(event, now_ns)

    def _carried(self, audio: DownlinkAudio, now_ns: int) -> None:
        self._delays.heard(Heard(audio), now_ns)

    def _look(self, now_ns: int) -> None:
        """Who hears something, and who has stopped hearing?"""
        newest = self.tally.newest
        came = newest != self._known
        self._known[came] = newest[came]
        self._heard_ns[came] = now_ns
        hears = now_ns - self._heard_ns < SILENCE_NS
        changed = np.flatnonzero(hears != self._hears).tolist()
        self._hears = hears
        for number in changed:
            if (member := self._by_index.get(number)) is None:
                continue
            if hears[number]:
                self._heard(member, now_ns + KEEPALIVE_NS)
            elif member.connection is not None:
                self._heard(member, int(self._heard_ns[number]))
                self._flush(member, now_ns)  # its ping is due sooner now

    # -- measuring ------------------------------------------------------------------------------

    def begin(self) -> None:
        """A measuring window begins."""
        self.tally.begin()
        for sample in self._samples:
            sample.begin()
        self._late_ns.clear()
        self._delays.delays_ms.clear()
        self._idle_ns = self._media_bytes = 0
        self._window = (time.monotonic_ns(), dropped_by_kernel(self.sockets), self._lost)

    def end(self) -> Window:
        """The window is over."""
        now_ns = time.monotonic_ns()
        since_ns, dropped, lost = self._window
        for sample in self._samples:
            sample.end(now_ns, self._packet_ms)
        delays_ms = self._delays.delays_ms
        heard = sum(sample.frames for sample in self._samples)
        skipped = sum(sample.skipped for sample in self._samples)
        by_listener = self.tally.expected_by_stream[: self.listeners]
        sealed = int(by_listener.sum())
        due = 0  # for each; the talkers say something all the time
        if self._talks_from_ns is not None:
            due = max(0, (now_ns - since_ns) // (self._packet_ms * MS) - EDGES)
        missing = int(np.maximum(0, due - by_listener).sum())
        unmade = max(missing, round(sealed * skipped / max(1, heard)))
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
            delay_ms=round(float(np.median(delays_ms)), 3) if delays_ms else None,
            lost_sessions=self._lost - lost,
            generator_busy=max(0.0, 1 - self._idle_ns / (now_ns - since_ns)),
            generator_lateness_ms=percentiles(np.array(self._late_ns) / MS),
            generator_dropped=dropped_by_kernel(self.sockets) - dropped,
        )
