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

import os
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import click

from bench.audience import MAX_LATENESS_MS, Audience, AudienceError
from bench.clients import Client, Clients
from bench.percentiles import percentiles
from bench.polled import dropped_by_kernel
from bench.process import ProcessError, cores, pinned, without_collector
from bench.server import MeasuredServer
from bench.show import json_option, show
from bench.speech import encode_speech
from bench.window import CATCH_UP_S, SETTLE_S, Measured, measure_window
from protocol import frames
from protocol.connection import MS, CloseCode
from protocol.link import Link
from spaces_client.audio import AudioError

STAY_NS = 250 * MS
TAIL_S = 5.0  # at most, for those who have begun to come in by the end of the window
GOING_S = 5.0  # how long the server remembers a session that is over, and some more
SPARE_PEOPLE = 1_000


class Newcomer(Client):
    """One client, from its HELLO to its CLOSE.  index: another one with every HELLO, so that a
    WELCOME is never taken for one of another handshake.  answered: it is in, or will not be."""

    __slots__ = ("answered", "begun_ns", "name")

    def __init__(self, clients: Clients["Newcomer"], number: int) -> None:
        super().__init__(number, clients.socket_for(number), os.urandom(32))
        self.name = f"guest {number}"
        self.begun_ns = 0
        self.answered = False


class Storm(Clients[Newcomer]):
    """Newcomers at a steady rate, each at its absolute time.

    latencies_ns: of those who have come in, from the first HELLO to `joined`.  late_ns: of the
    first HELLOs.
    """

    def __init__(self, link: Link, space: str, rate: float, count: int) -> None:
        """Prepares `count` newcomers: their keys, and their first HELLOs."""
        super().__init__(link)
        self.latencies_ns: list[int] = []
        self.late_ns: list[int] = []
        self.refused: Counter[str] = Counter()
        self.cookies = self.repeated = 0
        self._space = space
        self._interval_ns = 1e9 / rate
        self._begun = 0
        self._start_ns = 0
        self._coming = [Newcomer(self, number) for number in range(count)]
        for newcomer in self._coming:
            self.prepare(newcomer)

    def begin(self) -> None:
        self._start_ns = time.monotonic_ns()

    @property
    def unanswered(self) -> int:
        """How many have said HELLO and are not in."""
        return sum(not newcomer.answered for newcomer in self._coming[: self._begun])

    def come(self) -> None:
        """Those whose time it is begin."""
        now_ns = time.monotonic_ns()
        while self._begun < len(self._coming):
            due_ns = self._start_ns + int(self._begun * self._interval_ns)
            if due_ns > now_ns:
                break
            newcomer = self._coming[self._begun]
            self._begun += 1
            newcomer.begun_ns = now_ns
            self.greet(newcomer, now_ns)
            self.late_ns.append(now_ns - due_ns)

    def _timer(self, newcomer: Newcomer, now_ns: int) -> None:
        if newcomer.connection is None:
            self.repeated += 1
        super()._timer(newcomer, now_ns)

    def _challenged(self, newcomer: Newcomer, cookie: bytes, now_ns: int) -> None:
        self.cookies += 1
        del self._by_index[newcomer.index]
        newcomer.index += len(self._coming)
        super()._challenged(newcomer, cookie, now_ns)

    def _welcomed(self, newcomer: Newcomer, now_ns: int) -> None:
        self.ask(newcomer, frames.Join, now_ns, space=self._space, name=newcomer.name)

    def _replied(self, newcomer: Newcomer, reply: frames.Reply, now_ns: int) -> None:
        newcomer.answered = True
        if isinstance(reply, frames.Error):
            self.refused[reply.text] += 1
            self._act(newcomer, now_ns)
        elif isinstance(reply, frames.Joined):
            self.latencies_ns.append(now_ns - newcomer.begun_ns)
            newcomer.acts_ns = now_ns + STAY_NS

    def _act(self, newcomer: Newcomer, now_ns: int) -> None:
        """It goes."""
        assert newcomer.connection is not None
        newcomer.connection.close(CloseCode.LEAVING, "", now_ns)

    def _ended(self, newcomer: Newcomer, text: str) -> None:
        if not newcomer.answered:
            newcomer.answered = True
            self.refused[text] += 1


@dataclass(frozen=True, slots=True)
class _Seen:
    """One window: what the audience saw, and what the newcomers did."""

    measured: Measured
    latencies_ms: list[float]
    late_ms: list[float]

    @property
    def loss(self) -> float:
        return self.measured.window.loss


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
        stack.enter_context(without_collector())
        audience = stack.enter_context(
            closing(Audience(server.link, listeners=listeners, speech=spoken))
        )
        audience.open()
        count = round(rate * (SETTLE_S + CATCH_UP_S + seconds))
        storm = stack.enter_context(closing(Storm(server.link, audience.space, rate, count)))
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
    before, during = quiet.measured, stormy.measured
    during_s = during.window.seconds
    own_s = during.cpu_s - before.server_cpu * during_s
    return {
        "listeners": listeners,
        "rate": rate,
        "seconds": round(during_s, 3),
        "joins": joins,
        "joins_per_second": round(joins / during_s, 1),
        "unanswered": storm.unanswered,
        "refused": dict(storm.refused),
        "cookies": storm.cookies,
        "hellos_repeated": storm.repeated,
        "latency_ms": percentiles(stormy.latencies_ms),
        "cpu_us_per_join": round(own_s * 1e6 / joins, 1) if joins else None,
        "server_cpu": round(during.server_cpu, 4),
        "server_cpu_before": round(before.server_cpu, 4),
        "loss": round(stormy.loss, 6),
        "loss_before": round(quiet.loss, 6),
        "extra_loss": round(max(0.0, stormy.loss - quiet.loss), 6),
        "tick_lateness_ms": during.tick_lateness_ms,
        "tick_lateness_before_ms": before.tick_lateness_ms,
        "generator_cpu": round(during.window.generator_busy, 4),
        "generator_lateness_ms": percentiles(stormy.late_ms),
        "valid": not reason,
        "reason": reason,
    }


def _run(audience: Audience, storm: Storm, seconds: float, *, come: bool) -> None:
    """Lets time pass.  come: whether more newcomers begin."""
    end_ns = time.monotonic_ns() + int(seconds * 1e9)
    while time.monotonic_ns() < end_ns:
        if come:
            storm.come()
        storm.turn()
        audience.round()


def _measure_window(
    server: MeasuredServer, audience: Audience, storm: Storm, seconds: float, *, come: bool
) -> _Seen:
    def run(seconds: float) -> None:
        storm.latencies_ns.clear()  # from before the window
        storm.late_ns.clear()
        _run(audience, storm, seconds, come=come)

    measured = measure_window(server, audience, run, seconds)
    return _Seen(
        measured, [ns / MS for ns in storm.latencies_ns], [ns / MS for ns in storm.late_ns]
    )


def _why_invalid(quiet: _Seen, stormy: _Seen, dropped: int) -> str:
    """In what way the generator was the bottleneck, or failed; empty if it was and did not."""
    if reason := quiet.measured.window.why_invalid or stormy.measured.window.why_invalid:
        return reason
    if dropped:
        return f"the newcomers' sockets dropped {dropped} datagrams"
    late_ms = percentiles(stormy.late_ms)["p99"]
    if late_ms > MAX_LATENESS_MS:
        return f"1 in 100 newcomers began {late_ms:.1f} ms late or more"
    return ""


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
