"""A storm of newcomers: how many a second come in, and do those who listen notice?

A real server process on one core; on another one an audience that listens to a talker
(bench/audience.py), and the newcomers.  Each of these is a client of its own with a key, a
handshake (with a cookie where the server asks for one) and a connection: it comes in by the link
without an account, joins, listens for a moment and goes, so that as many leave as join.

The same audience is measured twice in one run, before the storm and in it.

    joins_per_second, latency_ms    of those who came in: from the first HELLO to `joined`
    unanswered, refused             who had begun and did not come in; and why, by count
    cookies, hellos_repeated        what that took, from the storm's beginning
    cpu_us_per_join                 CPU time of the server in the storm, less what it took for the
                                    audience before, for each who came in: with what they hear in
                                    their moment, the news of it, and another's leaving
    loss, extra_loss                of the audience, as a share of 1; beyond that before the storm
"""

import contextlib
import gc
import heapq
import os
import socket
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from bench.audience import HELLO_REPEAT_NS, MAX_LATENESS_MS, Audience, AudienceError, Window
from bench.polled import Poller, dropped_by_kernel, headers, udp_socket
from bench.process import ProcessError, cores, pinned
from bench.server import MeasuredServer
from bench.show import json_option, show
from bench.speech import encode_speech
from protocol import frames
from protocol.connection import MS, CloseCode, Connection, Message, State
from protocol.link import Link
from protocol.noise import Handshake, KeyPair
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
from spaces_client.audio import AudioError

SOCKETS = 4
STAY_NS = 250 * MS
TURN_NS = MS // 5  # for the audience, between two looks at the newcomers
SETTLE_S = 1.5
TAIL_S = 5.0  # at most, for those who have begun to come in by the end of the window
GOING_S = 5.0  # how long the server remembers a session that is over, and some more
SPARE_PEOPLE = 1_000


class Newcomer:
    """One client, from its HELLO to its CLOSE.  index: in headers, another one with every HELLO, so
    that a WELCOME is never taken for one of another handshake."""

    __slots__ = ("begun_ns", "connection", "handshake", "hello", "index", "key", "leaves_ns",
                 "name", "socket", "wakes_ns")  # fmt: skip

    def __init__(self, number: int, one: socket.socket) -> None:
        self.name = f"guest {number}"
        self.index = number
        self.socket = one
        self.key = KeyPair(os.urandom(32))
        self.hello = b""  # while it is not answered
        self.handshake: Handshake | None = None
        self.connection: Connection | None = None
        self.begun_ns = 0
        self.leaves_ns = 0
        self.wakes_ns = 0


class Storm:
    """Newcomers at a steady rate, each at its absolute time.

    latencies_ns: of those who have come in, from the first HELLO to `joined`.  late_ns: of the
    first HELLOs.
    """

    def __init__(self, link: Link, space: str, rate: float, count: int) -> None:
        """Prepares `count` newcomers: their keys, and their first HELLOs."""
        self.latencies_ns: list[int] = []
        self.late_ns: list[int] = []
        self.refused: Counter[str] = Counter()
        self.cookies = self.repeated = 0
        self._link = link
        self._key_id = key_id(link.key)
        self._space = space
        self._interval_ns = 1e9 / rate
        self.sockets = [udp_socket() for _ in range(SOCKETS)]
        for one in self.sockets:
            one.connect((link.host, link.port))
        self._poller = Poller(self.sockets, room_bytes=MAX_DATAGRAM_BYTES)
        self._newcomers: dict[int, Newcomer] = {}
        self._timers: list[tuple[int, int, Newcomer]] = []
        self._timers_made = 0
        self._begun = 0
        self._start_ns = 0
        self._coming = [Newcomer(n, self.sockets[n % SOCKETS]) for n in range(count)]
        for newcomer in self._coming:
            self._greet(newcomer, NO_COOKIE)

    def close(self) -> None:
        for one in self.sockets:
            one.close()

    def begin(self) -> None:
        self._start_ns = time.monotonic_ns()

    @property
    def unanswered(self) -> int:
        """How many have said HELLO and are not in."""
        return sum(not newcomer.leaves_ns for newcomer in self._newcomers.values())

    def turn(self, *, come: bool = True) -> None:
        """Does what is due, and takes one batch of what has come.  come: whether more begin."""
        now_ns = time.monotonic_ns()
        while come and self._begun < len(self._coming):
            due_ns = self._start_ns + int(self._begun * self._interval_ns)
            if due_ns > now_ns:
                break
            newcomer = self._coming[self._begun]
            self._begun += 1
            self._newcomers[newcomer.index] = newcomer
            newcomer.begun_ns = now_ns
            self._say_hello(newcomer, now_ns)
            self.late_ns.append(now_ns - due_ns)
        while self._timers and self._timers[0][0] <= now_ns:
            when_ns, _, newcomer = heapq.heappop(self._timers)
            if when_ns == newcomer.wakes_ns:
                newcomer.wakes_ns = 0
                self._timer(newcomer, now_ns)
        batch = self._poller.poll()
        if batch is None:
            return
        _, data, lengths = batch
        now_ns = time.monotonic_ns()
        kinds = headers(data)[0]
        for row in np.flatnonzero(kinds <= Kind.CONTROL).tolist():  # what they hear is not opened
            self._take(data[row, : lengths[row]].tobytes(), now_ns)

    # -- one newcomer ---------------------------------------------------------------------------

    def _greet(self, newcomer: Newcomer, cookie: bytes) -> None:
        """Its HELLO: everything in it is authenticated, the cookie too."""
        bare = Hello(VERSION, newcomer.index, self._key_id, cookie, b"")
        newcomer.handshake = Handshake(
            initiator=True,
            prologue=bare.prologue,
            entropy=os.urandom,
            static=newcomer.key,
            remote_static=self._link.key,
        )
        noise = newcomer.handshake.write(frames.encode_greeting("bench", HELLO_PAYLOAD_BYTES))
        newcomer.hello = Hello(VERSION, newcomer.index, self._key_id, cookie, noise).pack()

    def _say_hello(self, newcomer: Newcomer, now_ns: int) -> None:
        self._send(newcomer, newcomer.hello)
        self._wake_at(newcomer, now_ns + HELLO_REPEAT_NS)

    def _take(self, data: bytes, now_ns: int) -> None:
        at = 8 if data[0] == Kind.CONTROL else 4
        newcomer = self._newcomers.get(int.from_bytes(data[at : at + INDEX_BYTES]))
        if newcomer is None:
            return
        if newcomer.connection is not None:
            if data[0] == Kind.CONTROL:
                for event in newcomer.connection.receive(data, b"", now_ns) or ():
                    if isinstance(event, Message):
                        self._replied(newcomer, frames.decode(event.data), now_ns)
                self._flush(newcomer, now_ns)
        elif data[0] == Kind.WELCOME:
            self._welcomed(newcomer, data, now_ns)
        elif data[0] == Kind.COOKIE:
            self.cookies += 1
            del self._newcomers[newcomer.index]
            newcomer.index += len(self._coming)
            self._newcomers[newcomer.index] = newcomer
            self._greet(newcomer, unpack_cookie(data)[1])
            self._say_hello(newcomer, now_ns)
        else:
            self.refused["the server refuses the session"] += 1
            self._forget(newcomer)

    def _welcomed(self, newcomer: Newcomer, data: bytes, now_ns: int) -> None:
        assert newcomer.handshake is not None
        server_index = newcomer.handshake.read(Welcome.unpack(data).noise)[:INDEX_BYTES]
        send, receive = newcomer.handshake.split()
        newcomer.handshake = None
        newcomer.hello = b""
        newcomer.connection = Connection(
            SessionKeys.derive(send=send.key, receive=receive.key),
            remote_index=int.from_bytes(server_index),
            address=b"",
            now_ns=now_ns,
            entropy=os.urandom,
            keep_alive=True,
        )
        newcomer.connection.ping(now_ns)
        join = frames.Join(id=1, space=self._space, name=newcomer.name)
        newcomer.connection.send(frames.encode(join))
        self._flush(newcomer, now_ns)

    def _replied(self, newcomer: Newcomer, frame: frames.Frame, now_ns: int) -> None:
        if isinstance(frame, frames.Error):
            self.refused[frame.text] += 1
            self._leave(newcomer, now_ns)
        elif isinstance(frame, frames.Joined):
            self.latencies_ns.append(now_ns - newcomer.begun_ns)
            newcomer.leaves_ns = now_ns + STAY_NS
            self._wake_at(newcomer, newcomer.leaves_ns)

    def _leave(self, newcomer: Newcomer, now_ns: int) -> None:
        assert newcomer.connection is not None
        newcomer.connection.close(CloseCode.LEAVING, "", now_ns)
        self._flush(newcomer, now_ns)

    def _timer(self, newcomer: Newcomer, now_ns: int) -> None:
        connection = newcomer.connection
        if connection is None:
            self.repeated += 1
            self._say_hello(newcomer, now_ns)
        elif newcomer.leaves_ns and now_ns >= newcomer.leaves_ns and connection.state is State.OPEN:
            self._leave(newcomer, now_ns)
        else:
            connection.tick(now_ns)
            self._flush(newcomer, now_ns)

    def _flush(self, newcomer: Newcomer, now_ns: int) -> None:
        connection = newcomer.connection
        assert connection is not None
        for datagram in connection.transmit(now_ns):
            self._send(newcomer, datagram)
        if connection.state is State.CLOSED:
            self._forget(newcomer)
        else:
            deadline_ns = connection.deadline_ns
            staying = newcomer.leaves_ns and connection.state is State.OPEN
            self._wake_at(
                newcomer, min(deadline_ns, newcomer.leaves_ns if staying else deadline_ns)
            )

    def _forget(self, newcomer: Newcomer) -> None:
        self._newcomers.pop(newcomer.index, None)
        newcomer.wakes_ns = 0  # the timer finds nobody

    @staticmethod
    def _send(newcomer: Newcomer, datagram: bytes) -> None:
        # What the kernel does not take is lost, as anything may be: it is sent again.
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            newcomer.socket.send(datagram)

    def _wake_at(self, newcomer: Newcomer, when_ns: int) -> None:
        if not newcomer.wakes_ns or when_ns < newcomer.wakes_ns:
            newcomer.wakes_ns = when_ns
            self._timers_made += 1
            heapq.heappush(self._timers, (when_ns, self._timers_made, newcomer))


@dataclass(frozen=True, slots=True)
class _Figures:
    """One window."""

    window: Window
    server_cpu_s: float
    latencies_ms: list[float]
    late_ms: list[float]
    tick_lateness_ms: dict[str, float]


def measure(
    listeners: int, rate: float, seconds: float, *, flags: tuple[str, ...] = ()
) -> dict[str, Any]:
    """-> the figures of `spaces-bench joins`; keys are stable.  flags: more of `spaces-server run`.
    Raises AudienceError, AudioError, ProcessError."""
    spoken = encode_speech(1)
    server_core, generator_core = cores()
    # Whoever has gone is remembered for some seconds, until it is sure that their CLOSE was heard.
    people = listeners + round(GOING_S * rate) + SPARE_PEOPLE
    with ExitStack() as stack:
        server = MeasuredServer(
            stack, server_core, "--no-governor", "--max-people", str(people), *flags
        )
        stack.enter_context(pinned(generator_core))
        gc.disable()  # a look at thousands of clients would make the talker late
        stack.callback(gc.enable)
        audience = stack.enter_context(
            closing(Audience(server.link, listeners=listeners, speech=spoken))
        )
        audience.open()
        count = round(rate * (SETTLE_S + seconds))
        storm = stack.enter_context(closing(Storm(server.link, audience._space, rate, count)))
        audience.gather()
        audience.talk()
        _run(audience, storm, SETTLE_S, come=False)
        quiet = _measure_window(server, audience, storm, seconds, come=False)
        storm.begin()
        _run(audience, storm, SETTLE_S, come=True)
        stormy = _measure_window(server, audience, storm, seconds, come=True)
        patience = time.monotonic() + TAIL_S
        while storm.unanswered and time.monotonic() < patience:
            _run(audience, storm, TAIL_S / 50, come=False)
        reason = _why_invalid(quiet, stormy, dropped_by_kernel(storm.sockets))
    joins = len(stormy.latencies_ms)
    own_s = stormy.server_cpu_s - quiet.server_cpu_s * stormy.window.seconds / quiet.window.seconds
    extra_loss = max(0.0, stormy.window.loss - quiet.window.loss)
    return {
        "listeners": listeners,
        "rate": rate,
        "seconds": round(stormy.window.seconds, 3),
        "joins": joins,
        "joins_per_second": round(joins / stormy.window.seconds, 1),
        "unanswered": storm.unanswered,
        "refused": dict(storm.refused),
        "cookies": storm.cookies,
        "hellos_repeated": storm.repeated,
        "latency_ms": _percentiles(stormy.latencies_ms),
        "cpu_us_per_join": round(own_s * 1e6 / joins, 1) if joins else None,
        "server_cpu": round(stormy.server_cpu_s / stormy.window.seconds, 4),
        "server_cpu_before": round(quiet.server_cpu_s / quiet.window.seconds, 4),
        "loss": round(stormy.window.loss, 6),
        "loss_before": round(quiet.window.loss, 6),
        "extra_loss": round(extra_loss, 6),
        "tick_lateness_ms": stormy.tick_lateness_ms,
        "tick_lateness_before_ms": quiet.tick_lateness_ms,
        "generator_cpu": round(stormy.window.generator_busy, 4),
        "generator_lateness_ms": _percentiles(stormy.late_ms),
        "valid": not reason,
        "reason": reason,
    }


def _run(audience: Audience, storm: Storm, seconds: float, *, come: bool) -> None:
    """Lets time pass.  come: whether more newcomers begin."""
    end_ns = time.monotonic_ns() + int(seconds * 1e9)
    while (now_ns := time.monotonic_ns()) < end_ns:
        audience.run(min(now_ns + TURN_NS, end_ns))
        storm.turn(come=come)


def _measure_window(
    server: MeasuredServer, audience: Audience, storm: Storm, seconds: float, *, come: bool
) -> _Figures:
    server.stats()
    joined, began = len(storm.latencies_ns), len(storm.late_ns)
    audience.begin()
    before_s = server.process.cpu_s()
    _run(audience, storm, seconds, come=come)
    cpu_s = server.process.cpu_s() - before_s
    window = audience.end()
    return _Figures(
        window,
        cpu_s,
        [ns / MS for ns in storm.latencies_ns[joined:]],
        [ns / MS for ns in storm.late_ns[began:]],
        {name: round(ms, 3) for name, ms in server.stats()["tick_lateness_ms"].items()},
    )


def _why_invalid(quiet: _Figures, stormy: _Figures, dropped: int) -> str:
    """In what way the generator was the bottleneck, or failed; empty if it was and did not."""
    if reason := quiet.window.why_invalid or stormy.window.why_invalid:
        return reason
    if dropped:
        return f"the newcomers' sockets dropped {dropped} datagrams"
    late_ms = _percentiles(stormy.late_ms)["p99"]
    if late_ms > MAX_LATENESS_MS:
        return f"1 in 100 newcomers began {late_ms:.1f} ms late or more"
    return ""


def _percentiles(values_ms: list[float]) -> dict[str, float]:
    found = np.round(np.percentile(values_ms or [0.0], [50, 99, 100]), 3).tolist()
    return dict(zip(("p50", "p99", "max"), found, strict=True))


@click.command("joins")
@click.option("--listeners", default=1_000, show_default=True, type=click.IntRange(1, 100_000))
@click.option(
    "--rate",
    default=1_000.0,
    show_default=True,
    type=click.FloatRange(1, 10_000),
    help="Newcomers a second; as many leave.",
)
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(1, 3_600))
@json_option
def command(listeners: int, rate: float, seconds: float, as_json: bool) -> None:
    """A storm of handshakes and joins while others listen.

    \b
    spaces-bench joins --listeners 1000 --rate 1000 --seconds 5 --json
    """
    try:
        figures = measure(listeners, rate, seconds)
    except (AudienceError, AudioError, ProcessError) as error:
        raise click.ClickException(str(error)) from error
    show("A storm of newcomers", figures, as_json)
