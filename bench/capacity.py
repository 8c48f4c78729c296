"""How many listeners a server on one core carries, and at what cost.

A real server process on one core; on another one the honest generator (bench/audience.py) with all
listeners and talkers.  When all are in and the talkers talk, a window is measured.  In the same
run, before and after, the same core sends as many datagrams of the same size at the same pace
without sealing or anything else (bench/floor.py): what the server takes beside that is its own.
(Before, the size is what the talkers' own packets let expect.)
"""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click

from bench.audience import Audience, AudienceError
from bench.floor import measure_sending
from bench.process import ProcessError, cores, pinned, without_collector
from bench.search import TRY_S
from bench.search import find as search_most
from bench.server import MeasuredServer
from bench.show import json_option, show
from bench.speech import encode_speech
from bench.window import SETTLE_S, measure_window
from protocol.packets import HEADER_BYTES, TAG_BYTES, Audible, DownlinkAudio, gather
from spaces_client.audio import AudioError

FRAME_MS = 20
FLOOR_S = 4.0  # at most
STAGE = 13  # the server's default size
MOST = 100_000  # listeners


def measure(
    listeners: int,
    talkers: int,
    seconds: float,
    *,
    packet_ms: int = FRAME_MS,
    speech: Path | None = None,
    flags: tuple[str, ...] = (),
    server_cores: int = 1,
) -> dict[str, Any]:
    """-> the figures of `spaces-bench capacity`; keys are stable:

    listeners, talkers, packet_ms, seconds   what was measured
    server_cores                             1: one of its own; 2: both, one with the generator
    expected, delivered, loss                datagrams of media for all listeners; a share of 1
    skipped                                  those of `expected` that the server did not even make
    duplicates, reordered, datagram_bytes    of what came; the mean size
    cpu_us_per_packet, server_cpu            the server's CPU time, by the operating system: for
                                             each datagram delivered; as a share of one core
    floor_us_per_packet, ratio_to_floor      what sending them alone costs, and how many times that
                                             the server took
    tick_lateness_ms {p50, p99, max}         how late its ticks began, as it says itself
    encodes_per_tick                         likewise
    delay_ms                                 median, from a talker's packet to the first that
                                             carries it, of those that a few listeners got
    rss_bytes_per_listener                   by what its memory had grown when all were in
    sampled_frames                           of 20 ms, opened and decoded by a few listeners
    generator_cpu                            share of the time in which the generator did not rest:
                                             its CPU time, and what was taken from it meanwhile
    generator_lateness_ms {p50, p99, max}    how late the talkers' own packets went out
    valid, reason                            whether the generator kept up; if not, why not

    speech: a folder of WAV files.  flags: more of `spaces-server run`.  Raises AudienceError,
    AudioError, ProcessError."""
    spoken = encode_speech(talkers, speech)
    server_core, generator_core = cores()
    with pinned(generator_core):
        floor_s = min(seconds, FLOOR_S) / 2
        frames = packet_ms // FRAME_MS
        likely_bytes = _datagram_bytes(spoken, frames)
        floor = measure_sending(listeners, likely_bytes, floor_s, server_core, frames)
        with ExitStack() as stack:
            server = MeasuredServer(
                stack,
                server_core if server_cores == 1 else None,
                *_flags(listeners, talkers, packet_ms),
                *flags,
            )
            stack.enter_context(without_collector())
            audience = stack.enter_context(
                closing(
                    Audience(server.link, listeners=listeners, speech=spoken, packet_ms=packet_ms)
                )
            )
            audience.open()
            empty_bytes = server.process.rss_bytes()
            audience.gather()
            audience.talk()
            audience.run(SETTLE_S)
            measured = measure_window(server, audience, audience.run, seconds)
            full_bytes = server.process.rss_bytes()
        window = measured.window
        floor += measure_sending(listeners, window.datagram_bytes, floor_s, server_core, frames)
    cpu_us = measured.cpu_s * 1e6 / max(1, window.delivered)
    reason = window.why_invalid
    if not reason and floor.dropped:
        reason = "the generator's sockets dropped datagrams of the floor's"
    return {
        "listeners": listeners,
        "talkers": talkers,
        "packet_ms": packet_ms,
        "server_cores": server_cores,
        **measured.figures(),
        "cpu_us_per_packet": round(cpu_us, 3),
        "floor_us_per_packet": round(floor.each_us, 3),
        "ratio_to_floor": round(cpu_us / floor.each_us, 3) if floor.each_us else None,
        "delay_ms": window.delay_ms,
        "rss_bytes_per_listener": round((full_bytes - empty_bytes) / listeners),
        "valid": not reason,
        "reason": reason,
    }


def find(listeners: int, talkers: int, seconds: float, **options: Any) -> dict[str, Any]:
    """The largest audience, within 5 %, of which less than 0.5 % of the packets are lost; the
    search begins with `listeners`.  Options: as measure().  -> the figures of that audience, with
    `tries` and `limit` (bench/search.py).  Raises AudienceError if even one listener is too many,
    AudioError, ProcessError."""

    def attempt(count: int) -> dict[str, Any]:
        return measure(count, talkers, seconds, **options)

    return search_most(attempt, listeners, MOST)


def _flags(listeners: int, talkers: int, packet_ms: int) -> tuple[str, ...]:
    return (
        *("--max-people", str(listeners + talkers + 100)),
        *("--stage-size", str(max(STAGE, talkers))),
        *("--crowd-above", "0", "--crowd-packet-ms", str(packet_ms)),
        "--no-governor",  # it would change the work that is measured, or let nobody more in
    )


def _datagram_bytes(spoken: list[list[bytes]], frames: int) -> int:
    """Of a mix, if it needs as many bytes as a voice."""
    opus = bytes(sum(map(len, spoken[0])) // len(spoken[0]))
    mix = DownlinkAudio(0, 0, (Audible(0, 0, 0),) * len(spoken), opus).pack()
    (_, plaintext), *_ = gather((mix,) * frames)
    return HEADER_BYTES + len(plaintext) + TAG_BYTES


@click.command("capacity")
@click.option("--listeners", default=1_000, show_default=True, type=click.IntRange(1, MOST))
@click.option("--talkers", default=1, show_default=True, type=click.IntRange(1, 32))
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3_600),
    help="How long to measure.  [default: 10; with --find 3 for each try]",
)
@click.option(
    "--packet-ms",
    default="20",
    show_default=True,
    type=click.Choice(["20", "40", "60"]),
    help="Audio in one datagram for a listener.",
)
@click.option(
    "--cores",
    "server_cores",
    default=1,
    show_default=True,
    type=click.IntRange(1, 2),
    help="The server's: 1, which is all its own, or 2, of which the generator shares one.",
)
@click.option(
    "--find",
    "search",
    is_flag=True,
    help="Look for the largest number of listeners, from --listeners on, with a loss below 0.5 % "
    "and ticks in time.",
)
@click.option(
    "--speech",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of WAV files to talk with.  [default: synthesised voices]",
)
@json_option
def command(
    listeners: int,
    talkers: int,
    seconds: float | None,
    packet_ms: str,
    server_cores: int,
    search: bool,
    speech: Path | None,
    as_json: bool,
) -> None:
    """What listeners cost, and how many a server on one core carries.

    \b
    spaces-bench capacity --listeners 3000 --talkers 1 --seconds 10
    spaces-bench capacity --find --talkers 4 --json
    """
    options: dict[str, Any] = {
        "packet_ms": int(packet_ms),
        "speech": speech,
        "server_cores": server_cores,
    }
    try:
        if search:
            figures = find(listeners, talkers, seconds or TRY_S, **options)
        else:
            figures = measure(listeners, talkers, seconds or 10.0, **options)
    except (AudienceError, AudioError, ProcessError) as error:
        raise click.ClickException(str(error)) from error
    show("Capacity of a server on one core", figures, as_json)
