"""Many small spaces on one server: in each of them one talks and four listen, or nobody talks.

A real server process on one core; on another one the honest generator (bench/audience.py) with the
clients of all spaces.  Listeners who are few share little: nearly every packet is an encode of its
own, so this is the codec's bill, as one large space is the kernel's.

`--silent` measures what spaces cost in which nobody talks, twice: while the clients say nothing at
all, for a time that their sessions outlive easily, and while they keep their sessions alive.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import click
import numpy as np

from bench.audience import PATIENCE_NS, STEP_S, UNDER_WAY, Audience, AudienceError, Member
from bench.clients import Batch
from bench.process import ProcessError, cores, pinned, without_collector
from bench.search import TRY_S
from bench.search import find as search_most
from bench.server import MeasuredServer
from bench.show import json_option, show
from bench.speech import encode_speech
from bench.window import CATCH_UP_S, SETTLE_S, measure_window
from protocol import frames
from protocol.connection import IDLE_TIMEOUT_NS
from protocol.link import Link
from protocol.packets import Kind
from spaces_client.audio import AudioError

LISTENERS = 4  # in each space, beside its host
PEOPLE = 1 + LISTENERS
VOICES = 8  # different ones; spaces with the same voice share nothing
MOST = 10_000
SILENT_SPACES, TALKING_SPACES = 1_000, 20
QUIET_S = 3.0  # until nothing is left to be told or acknowledged
BURST_S = 1.0  # of all the keep-alives that were held back
HELD_BACK_S = 10.0  # at most, of keep-alives: sessions live three times as long


class Spaces(Audience):
    """The clients of many spaces.  Host k opens space k; listeners 4 k to 4 k + 3 join it.

    heard: datagrams of audio that came, for anybody.
    """

    def __init__(self, link: Link, spaces: int, voices: list[list[bytes]]) -> None:
        speech = [voices[number % len(voices)] for number in range(spaces)]
        super().__init__(link, listeners=spaces * LISTENERS, speech=speech)
        self.heard = 0
        self._opened = [""] * spaces

    def open(self) -> None:
        """Every host opens a space, as fast as the server takes them.  Raises AudienceError."""
        coming = iter(range(len(self._opened)))
        under_way: list[Iterator[None]] = []
        since_ns = time.monotonic_ns()
        while True:
            while len(under_way) < UNDER_WAY and (number := next(coming, None)) is not None:
                under_way.append(self._host(number))
            still = [host for host in under_way if next(host, self) is not self]
            now_ns = time.monotonic_ns()
            if len(still) < len(under_way):
                since_ns = now_ns
            elif not still:
                return
            elif now_ns - since_ns > PATIENCE_NS:
                raise AudienceError(f"only {sum(map(bool, self._opened))} spaces could be opened")
            under_way = still
            self.run(STEP_S)

    def _host(self, number: int) -> Iterator[None]:
        """One host's way; waits where it yields."""
        host = self._begin(self.listeners + number)
        self._on_stage.append(host)
        while host.connection is None:
            yield
        for kind, fields in (
            (frames.Register, {"handle": f"host_{number}", "name": "host"}),
            (frames.Open, {"title": f"space {number}"}),
        ):
            self.ask(host, kind, time.monotonic_ns(), **fields)
            while not host.replies:
                yield
            reply = host.replies.pop()
            if isinstance(reply, frames.Error):
                raise AudienceError(reply.text)
        assert isinstance(reply, frames.Joined)
        self._opened[number] = reply.space

    def _space_of(self, member: Member) -> str:
        return self._opened[member.index // LISTENERS]

    def _count(self, batch: Batch, now_ns: int) -> None:
        kinds = batch.kinds
        self.heard += int(np.count_nonzero((kinds == Kind.AUDIO) | (kinds == Kind.CROWD)))
        super()._count(batch, now_ns)


@contextmanager
def _filled(spaces: int) -> Iterator[tuple[MeasuredServer, Spaces, int]]:
    """-> a server, its spaces with everyone in them, and the bytes by which they made it grow."""
    if not 0 < spaces <= MOST:
        raise AudienceError(f"there can be 1 to {MOST} spaces, not {spaces}")
    voices = encode_speech(min(spaces, VOICES))
    server_core, generator_core = cores()
    with ExitStack() as stack:
        stack.enter_context(pinned(generator_core))
        server = MeasuredServer(
            stack,
            server_core,
            *("--max-spaces", str(spaces), "--max-people", str(PEOPLE * spaces + 100)),
            "--no-governor",  # it would change the work that is measured, or let nobody more in
        )
        stack.enter_context(without_collector())
        people = stack.enter_context(closing(Spaces(server.link, spaces, voices)))
        empty_bytes = server.process.rss_bytes()
        people.open()
        people.gather()
        yield server, people, server.process.rss_bytes() - empty_bytes


def measure(spaces: int, seconds: float) -> dict[str, Any]:
    """-> the figures of `spaces-bench spaces`; keys are stable:

    spaces, people, seconds                  what was measured
    expected, delivered, loss, skipped       datagrams for all listeners, as in `capacity`
    duplicates, reordered, datagram_bytes    likewise
    server_cpu                               CPU by the operating system, as a share of one core
    cpu_ms_per_space_second                  the same for one space
    encodes_per_tick                         of all spaces together
    tick_lateness_ms {p50, p99, max}
    rss_bytes                                by which the spaces and their people made it grow
    sampled_frames, generator_cpu, generator_lateness_ms, valid, reason     as in `capacity`

    Raises AudienceError, AudioError, ProcessError."""
    with _filled(spaces) as (server, people, rss_bytes):
        people.talk()
        people.run(SETTLE_S)
        measured = measure_window(server, people, people.run, seconds)
    reason = measured.window.why_invalid
    return {
        "spaces": spaces,
        "people": PEOPLE * spaces,
        **measured.figures(),
        "cpu_ms_per_space_second": round(measured.server_cpu * 1e3 / spaces, 3),
        "rss_bytes": rss_bytes,
        "valid": not reason,
        "reason": reason,
    }


def measure_silent(spaces: int, seconds: float) -> dict[str, Any]:
    """-> the figures of `spaces-bench spaces --silent`; keys are stable:

    spaces, people, seconds                  what was measured; seconds: of each of two windows,
                                             at most 10 without keep-alives
    cpu_share                                CPU of the server, as a share of one core, while its
                                             clients are silent
    cpu_share_with_keepalives                while each of them sends a ping every 5 s, as a client
                                             does that hears nothing (else it is every 15 s)
    encodes, audio_packets                   in both windows; audio_packets: that came to anybody
    rss_bytes                                by which the spaces and their people made it grow
    valid, reason                            whether all sessions lived; if not, what happened

    Raises AudienceError, AudioError, ProcessError."""
    with _filled(spaces) as (server, people, rss_bytes):
        people.run(QUIET_S)
        before = server.stats()
        people.run(CATCH_UP_S)
        people.begin()
        people.heard = 0
        held_back_s = min(seconds, HELD_BACK_S)
        assert held_back_s * 1e9 < IDLE_TIMEOUT_NS
        # What comes meanwhile waits in the sockets.
        silent_share = _server_cpu(server, time.sleep, held_back_s)
        people.run(BURST_S)
        alive_share = _server_cpu(server, people.run, seconds)
        window = people.end()
        after = server.stats()
        audio_packets = people.heard
    reason = ""
    if window.lost_sessions:
        reason = f"{window.lost_sessions} sessions ended"
    elif window.generator_dropped:
        reason = f"the generator's sockets dropped {window.generator_dropped} datagrams"
    return {
        "spaces": spaces,
        "people": PEOPLE * spaces,
        "seconds": seconds,
        "cpu_share": round(silent_share, 7),
        "cpu_share_with_keepalives": round(alive_share, 5),
        "encodes": after["encodes"] - before["encodes"],
        "audio_packets": audio_packets,
        "rss_bytes": rss_bytes,
        "valid": not reason,
        "reason": reason,
    }


def _server_cpu(server: MeasuredServer, run: Callable[[float], None], seconds: float) -> float:
    """As a share of one core, while run(seconds) lets time pass."""
    before_s, start = server.process.cpu_s(), time.monotonic()
    run(seconds)
    return (server.process.cpu_s() - before_s) / (time.monotonic() - start)


def find(spaces: int, seconds: float) -> dict[str, Any]:
    """The largest number of spaces, within 5 %, of whose packets less than 0.5 % are lost; the
    search begins with `spaces`.  -> the figures of that number, with `tries` and `limit`
    (bench/search.py).  Raises AudienceError if even one space is too many, AudioError,
    ProcessError."""
    return search_most(lambda count: measure(count, seconds), spaces, MOST)


@click.command("spaces")
@click.option(
    "--spaces",
    type=click.IntRange(1, MOST),
    help=f"How many.  [default: {TALKING_SPACES}; with --silent {SILENT_SPACES:,}]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3_600),
    help="How long to measure.  [default: 10; with --find 3 for each try]",
)
@click.option("--silent", is_flag=True, help="Nobody talks.")
@click.option(
    "--find",
    "find_most",
    is_flag=True,
    help="Look for the largest number, from --spaces on, with a loss below 0.5 % "
    "and ticks in time.",
)
@json_option
def command(
    spaces: int | None, seconds: float | None, silent: bool, find_most: bool, as_json: bool
) -> None:
    """Many small spaces, with one talker and four listeners each.

    \b
    spaces-bench spaces --spaces 20 --seconds 10
    spaces-bench spaces --find --json
    spaces-bench spaces --silent
    """
    if silent and find_most:
        raise click.UsageError(
            "--find looks for losses, and with --silent there is nothing to lose"
        )
    try:
        if silent:
            figures = measure_silent(spaces or SILENT_SPACES, seconds or HELD_BACK_S)
        elif find_most:
            figures = find(spaces or TALKING_SPACES, seconds or TRY_S)
        else:
            figures = measure(spaces or TALKING_SPACES, seconds or 10.0)
    except (AudienceError, AudioError, ProcessError) as error:
        raise click.ClickException(str(error)) from error
    show("Many silent spaces" if silent else "Many small spaces", figures, as_json)
