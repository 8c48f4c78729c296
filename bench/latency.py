"""Delay, packet by packet: what the server adds, and from the mouth to the ear.

A real server on a core of its own; real clients (spaces_client) on the other, with the sound card
left out: frames go in, and 10 ms at a time come out, by the clock.  Every mixed packet says which
moment of whose voice it carries, and all clients here have one clock: each packet's way is known.

    mouth                the first sample of a frame sounds
      | 20 ms, or 10     the frame is full, encoded and sent
    sent -------------   server_added begins
      |                  the server's jitter buffer, its tick, mix, encode, seal, send
    heard ------------   server_added ends: the first packet that carries it is at some client
      |                  the client's jitter buffer
    ear                  it is handed to the sound card

A client whose machine does not keep up hears everything later.  All clients here share a core, so
few listen unless more are asked for; and where that core was the bottleneck the figures are theirs,
not the product's, and marked invalid.

Two Opus encoders look ahead (6.5 ms each), and the limiter of the mix (1.5 ms), which no timestamp
shows: it is added to mouth_to_ear.
"""

import asyncio
import contextlib
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import uvloop
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.audience import MAX_BUSY, MAX_LATENESS_MS
from bench.percentiles import percentiles
from bench.process import cores, pinned, without_collector
from bench.server import MeasuredServer
from protocol.frames import Settings
from protocol.packets import CAPTURE_UNIT_SAMPLES, UplinkAudio
from protocol.profile import profile_of
from spaces_client.audio import BLOCK_MS, AudioInput
from spaces_client.crowd import Delays, join_listeners, join_speakers, synthesised, voice_files
from spaces_client.events import Heard
from spaces_client.live import LiveSpace
from spaces_client.paced import Listen, Looped, Ticker
from spaces_client.wav import read_blocks
from spaces_server.mixer.limiter import LOOK_AHEAD_SAMPLES

MS = 1_000_000
SPEAKERS, LISTENERS = 3, 4
SECONDS = 10.0
SETTLE_S = 2.0  # jitter buffers find their delay
KEPT_BLOCKS = 1_000  # whose way is watched at once
UNIT_NS = CAPTURE_UNIT_SAMPLES * 1_000_000_000 // 48_000
HISTOGRAM_MS = 250


@dataclass(slots=True)
class _Mouths:
    """When which moment of whose voice sounded; frames of so many samples."""

    frame_samples: int
    at_ns: dict[tuple[int, int], int] = field(default_factory=dict)

    def spoke(self, seat: int, packet: UplinkAudio, sent_ns: int) -> None:
        if len(self.at_ns) >= KEPT_BLOCKS:
            del self.at_ns[next(iter(self.at_ns))]
        capture = packet.timestamp // CAPTURE_UNIT_SAMPLES & 0xFFFF
        self.at_ns[seat, capture] = sent_ns - self.frame_samples * 62_500 // 3

    def when(self, seat: int, capture: int) -> int | None:
        """capture: any moment within a frame."""
        for back in range(self.frame_samples // CAPTURE_UNIT_SAMPLES):
            began_ns = self.at_ns.get((seat, capture - back & 0xFFFF))
            if began_ns is not None:
                return began_ns + back * UNIT_NS
        return None


class _Ear(Listen):
    """A listener's sound card: takes samples as one does, and finds out when they were spoken."""

    def __init__(self, listener: LiveSpace, mouths: _Mouths) -> None:
        super().__init__(as_device=True)
        self.delays_ns: list[int] = []
        self._listener = listener
        self._mouths = mouths
        self._heard: dict[int, Heard] = {}

    def heard(self, heard: Heard) -> None:
        if len(self._heard) >= KEPT_BLOCKS:
            del self._heard[next(iter(self._heard))]
        self._heard[heard.audio.timestamp] = heard

    def taken(self) -> None:
        playout = self._listener.client.playout
        if playout.sounding:
            self._played(playout.timestamp, time.monotonic_ns())

    def _played(self, timestamp: int, now_ns: int) -> None:
        offset = timestamp % self._mouths.frame_samples
        heard = self._heard.get(timestamp - offset)
        for audible in heard.audio.audible if heard is not None else ():
            mouth_ns = self._mouths.when(audible.seat, audible.capture)
            if mouth_ns is not None:
                self.delays_ns.append(now_ns - mouth_ns - offset * 62_500 // 3)


def _distribution(delays_ms: NDArray[np.float64]) -> dict[str, Any]:
    """counts: of packets by whole milliseconds, the last entry with all that are later."""
    if not len(delays_ms):
        return {"packets": 0}
    p50, p90, p99 = np.percentile(delays_ms, [50, 90, 99])
    bins = np.clip(delays_ms, 0, HISTOGRAM_MS - 1).astype(int)
    return {
        "packets": len(delays_ms),
        "mean": round(float(delays_ms.mean()), 2),
        "p50": round(float(p50), 2),
        "p90": round(float(p90), 2),
        "p99": round(float(p99), 2),
        "max": round(float(delays_ms.max()), 2),
        "counts": np.trim_zeros(np.bincount(bins, minlength=HISTOGRAM_MS), "b").tolist(),
    }


async def _run(
    server: MeasuredServer,
    speakers: int,
    listeners: int,
    seconds: float,
    speech: Path | None,
    low_delay: bool,
) -> dict[str, Any]:
    settings = Settings(low_delay=low_delay)
    profile = profile_of(settings)
    frame_samples = profile.frame_samples
    files = voice_files(speech) if speech is not None else []
    # All of them before anybody speaks: to make one takes so long that those who do would falter.
    voices: list[AudioInput] = [
        Looped(np.concatenate(list(read_blocks(files[number % len(files)]))))
        if files
        else synthesised(number)
        for number in range(speakers)
    ]
    delays, mouths = Delays(), _Mouths(frame_samples)
    async with contextlib.AsyncExitStack() as stack:
        on_stage, link = await join_speakers(stack, server.link, speakers, settings)
        audience = await join_listeners(stack, link, listeners)
        ears = [_Ear(listener, mouths) for listener in audience]
        for listener, ear in zip(audience, ears, strict=True):

            def on_heard(heard: Heard, now_ns: int, ear: _Ear = ear) -> None:
                delays.heard(heard, now_ns)
                ear.heard(heard)

            listener.on_heard = on_heard
            listener.start_audio(None, ear)
            await asyncio.sleep(BLOCK_MS / 1000 / listeners)  # so that all phases occur
        for speaker, voice in zip(on_stage, voices, strict=True):
            seat = speaker.me.seat
            assert isinstance(seat, int)

            def on_sent(packet: UplinkAudio, now_ns: int, seat: int = seat) -> None:
                delays.sent(seat, packet, now_ns)
                mouths.spoke(seat, packet, now_ns)

            speaker.on_sent = on_sent
            speaker.start_audio(voice, None)
            await asyncio.sleep(BLOCK_MS / 1000 / speakers)
        await asyncio.sleep(SETTLE_S)
        delays.delays_ms.clear()
        for ear in ears:
            ear.delays_ns.clear()
        late_ns: list[int] = []
        clock = Ticker(
            lambda due_ns: late_ns.append(time.monotonic_ns() - due_ns),
            asyncio.get_running_loop(),
            profile.period_samples / 48,
        )
        server.stats()  # its lateness is of the ticks from here on
        began_s, busy_s = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        busy = (time.process_time() - busy_s) / (time.monotonic() - began_s)
        clock.cancel()
        stats = server.stats()
        for member in (*on_stage, *audience):
            member.stop_audio()
    # Both ends of the way have a codec that looks ahead: the speaker's client and the server.
    codec_ms = 2 * profile.lookahead_samples / 48
    limiter_ms = LOOK_AHEAD_SAMPLES / 48
    late_ms = percentiles(np.array(late_ns, np.float64) / MS)
    reason = _why_invalid(busy, late_ms["p99"])
    heard_ms = np.array([ns for ear in ears for ns in ear.delays_ns], np.float64) / MS
    return {
        "seconds": seconds,
        "speakers": speakers,
        "listeners": listeners,
        "frame_ms": frame_samples // 48,
        "server_added_ms": _distribution(np.array(delays.delays_ms)),
        "mouth_to_ear_ms": _distribution(heard_ms + codec_ms + limiter_ms),
        "codec_lookahead_ms": codec_ms,
        "tick_lateness_ms": stats["tick_lateness_ms"],
        "generator_cpu": round(busy, 4),
        "generator_lateness_ms": late_ms,
        "valid": not reason,
        "reason": reason,
    }


def _why_invalid(busy: float, late_ms: float) -> str:
    """In what way the clients were the bottleneck; empty if they were not."""
    if busy > MAX_BUSY:
        return f"the clients were busy for {busy:.0%} of the time"
    if late_ms > MAX_LATENESS_MS:
        return f"1 in 100 of the clients' timers was late by {late_ms:.1f} ms or more"
    return ""


def measure(
    speakers: int = SPEAKERS,
    listeners: int = LISTENERS,
    seconds: float = SECONDS,
    speech: Path | None = None,
    low_delay: bool = False,
) -> dict[str, Any]:
    """-> the figures; keys are stable, see bench/README.md."""
    ours, generators = cores()
    with ExitStack() as stack:
        server = MeasuredServer(stack, ours)
        stack.enter_context(pinned(generators))
        stack.enter_context(without_collector())
        return uvloop.run(_run(server, speakers, listeners, seconds, speech, low_delay))


def show(figures: dict[str, Any]) -> None:
    """Prints the figures for a person."""
    table = Table(title="delay, ms", box=None, padding=(0, 2))
    for name in ("", "packets", "mean", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="right" if name else "left")
    for key, name in (
        ("server_added_ms", "added by the server"),
        ("mouth_to_ear_ms", "to the ear"),
        ("tick_lateness_ms", "server's ticks late"),
        ("generator_lateness_ms", "clients' timers late"),
    ):
        seen = figures[key]
        columns = ("packets", "mean", "p50", "p90", "p99", "max")
        found = (seen.get(column) for column in columns)
        table.add_row(name, *("-" if value is None else f"{round(value, 2):g}" for value in found))
    Console().print(table)
    if not figures["valid"]:
        print(f"invalid: {figures['reason']}")


@click.command()
@click.option("--speakers", default=SPEAKERS, show_default=True, type=click.IntRange(1, 10))
@click.option("--listeners", default=LISTENERS, show_default=True, type=click.IntRange(1, 50))
@click.option("--seconds", default=SECONDS, show_default=True, type=click.FloatRange(1))
@click.option(
    "--speech",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of WAV files that the speakers say; without it voices are synthesised.",
)
@click.option("--low-delay", is_flag=True, help="Frames of 10 ms instead of 20.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    speakers: int,
    listeners: int,
    seconds: float,
    speech: Path | None,
    low_delay: bool,
    as_json: bool,
) -> None:
    """Measure the delay that the server adds, and from mouth to ear, packet by packet.

    \b
    spaces-bench latency --speakers 3 --listeners 4 --seconds 10
    """
    figures = measure(speakers, listeners, seconds, speech, low_delay)
    if as_json:
        print(json.dumps(figures))
    else:
        show(figures)
