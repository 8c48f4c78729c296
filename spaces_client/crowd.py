"""A crowd: many real clients in one process, to fill a space and to measure what they see.

Every one of them is a whole client with a socket, a session and a decoder of its own; speakers
register accounts, listeners are guests.  Delay is measured without any clock but one: every mixed
packet says which moment of whose voice it carries, so a speaker's packet can be found again in what
the other clients of this process get.
"""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from protocol.frames import Settings
from protocol.link import Link
from protocol.packets import CAPTURE_UNIT_SAMPLES, UplinkAudio
from protocol.roles import Role
from spaces_client.audio import BLOCK_MS, AudioError, AudioInput, AudioOutput
from spaces_client.events import Heard
from spaces_client.live import LiveSpace, SpacesError, connect, session
from spaces_client.paced import Listen, Looped
from spaces_client.synth import synthesise_voice
from spaces_client.wav import WavInput, WavOutput

JOINS_AT_ONCE = 20
REPORT_S = 0.5
SYNTHESISED_S = 20.0
MAX_SENT = 1_000  # packets whose way is watched at once


def synthesised(seed: int) -> AudioInput:
    """A voice that nobody has."""
    return Looped(synthesise_voice(seed, SYNTHESISED_S))


@dataclass(slots=True)
class Delays:
    """From a speaker's packet being sent to the first packet of the mix that carries it."""

    sent_ns: dict[tuple[int, int], int] = field(default_factory=dict)
    delays_ms: list[float] = field(default_factory=list)

    def sent(self, seat: int, packet: UplinkAudio, now_ns: int) -> None:
        if len(self.sent_ns) >= MAX_SENT:
            del self.sent_ns[next(iter(self.sent_ns))]
        capture = packet.timestamp // CAPTURE_UNIT_SAMPLES & 0xFFFF
        self.sent_ns[seat, capture] = now_ns

    def heard(self, heard: Heard, now_ns: int) -> None:
        for audible in heard.audio.audible:
            sent_ns = self.sent_ns.pop((audible.seat, audible.capture), None)
            if sent_ns is not None:
                self.delays_ms.append((now_ns - sent_ns) / 1e6)

    def summary(self) -> dict[str, float] | None:
        if not self.delays_ms:
            return None
        p50, p99 = np.percentile(self.delays_ms, [50, 99])
        return {
            "mean": float(np.mean(self.delays_ms)),
            "p50": float(p50),
            "p99": float(p99),
            "packets": len(self.delays_ms),
        }


def voice_files(folder: Path) -> list[Path]:
    """The WAV files of a folder, by name.  Raises AudioError if there is none."""
    found = sorted(folder.glob("*.wav"))
    if not found:
        raise AudioError(f"there is no .wav file in {folder}")
    return found


def _voice(number: int, files: list[Path]) -> AudioInput:
    if files:
        return WavInput(files[number % len(files)], loop=True)
    return synthesised(number)


async def run_crowd(
    link: Link,
    *,
    speakers: int,
    listeners: int,
    seconds: float,
    voices: Path | None = None,
    record: Path | None = None,
    wait_for: int = 0,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Fills a space and gives back what the clients saw.

    link: of a space, or of a server: then the first speaker opens a space there.  speakers join
    with the link's invite (or one of their own making, where they opened the space), and begin to
    speak when `wait_for` people listen.
    report: gets {"event": "joined", "link": …, "speaker_link": …} and then {"event": "progress",
    …} twice a second.  Cancelled once all are there, it ends early and gives back what was seen
    until then.  Raises SpacesError, AudioError.
    """
    files = voice_files(voices) if voices is not None else []
    inputs = [_voice(number, files) for number in range(speakers)]
    delays = Delays()
    async with contextlib.AsyncExitStack() as stack:
        on_stage, space_link = await join_speakers(stack, link, speakers)
        audience = await join_listeners(stack, space_link, listeners)
        for speaker in on_stage:
            seat = speaker.me.seat
            if not isinstance(seat, int):
                raise SpacesError("speakers need a link with an invite (&invite=…)")
            speaker.on_sent = lambda packet, now_ns, seat=seat: delays.sent(seat, packet, now_ns)
            speaker.on_heard = delays.heard
        for number, listener in enumerate(audience):
            output: AudioOutput = WavOutput(record) if record and not number else Listen()
            listener.on_heard = delays.heard
            listener.start_audio(None, output)
            await asyncio.sleep(BLOCK_MS / 1000 / len(audience))
        everyone = [*on_stage, *audience]
        report(await _joined(on_stage, space_link))
        with contextlib.suppress(asyncio.CancelledError):
            while on_stage and on_stage[0].listeners < wait_for:
                _raise_if_lost(everyone)
                await asyncio.sleep(BLOCK_MS / 1000)
            for speaker, voice in zip(on_stage, inputs, strict=True):
                speaker.start_audio(voice, Listen())
                await asyncio.sleep(BLOCK_MS / 1000 / len(on_stage))  # so that all phases occur
            await _stay(everyone, seconds, report)
        for member in everyone:
            member.stop_audio()
        return {
            "event": "summary",
            "speakers": [_seen(m) for m in on_stage],
            "listeners": [_seen(m) for m in audience],
            "server_added_delay_ms": delays.summary(),
        }


async def _stay(
    everyone: list[LiveSpace], seconds: float, report: Callable[[dict[str, Any]], None]
) -> None:
    start = time.monotonic()
    for number in range(1, math.ceil(seconds / REPORT_S) + 1):
        until = start + min(number * REPORT_S, seconds)
        await asyncio.sleep(max(0, until - time.monotonic()))
        packets = sum(m.client.received.packets for m in everyone)
        elapsed = time.monotonic() - start
        report({"event": "progress", "seconds": round(elapsed, 2), "packets": packets})
        _raise_if_lost(everyone)


def _raise_if_lost(everyone: list[LiveSpace]) -> None:
    """Also where a session may come again: what is measured would not be the same any more."""
    lost = [str(m.over) if m.over else m.trouble for m in everyone if m.over or m.trouble]
    if lost:
        raise SpacesError(f"{len(lost)} of {len(everyone)} lost their session: {lost[0]}")


async def join_speakers(
    stack: contextlib.AsyncExitStack, link: Link, count: int, settings: Settings | None = None
) -> tuple[list[LiveSpace], Link]:
    """settings: of a space that is opened.  -> as many speakers, and a link for listeners.  Each
    speaker gets an account first: guests do not speak.  Raises SpacesError."""
    speakers: list[LiveSpace] = []
    for n in range(count):
        speaker = await stack.enter_async_context(session(link))
        await speaker.register(f"crowd_{secrets.token_hex(6)}", f"speaker {n + 1}")
        if link.space is not None:
            await speaker.join(link.space, invite=link.invite)
        else:
            await speaker.open("A crowd", settings)
            link = await speaker.make_invite()
        speakers.append(speaker)
    return speakers, Link(link.host, link.port, link.key, link.space)


async def join_listeners(
    stack: contextlib.AsyncExitStack, link: Link, count: int
) -> list[LiveSpace]:
    """As many guests.  Raises SpacesError."""
    joined: list[LiveSpace] = []
    for first in range(0, count, JOINS_AT_ONCE):
        joining = [
            stack.enter_async_context(connect(link, name=f"listener {n + 1}"))
            for n in range(first, min(count, first + JOINS_AT_ONCE))
        ]
        # All are waited for, so that none comes in after the stack was left.
        for result in await asyncio.gather(*joining, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
            joined.append(result)
    return joined


async def _joined(on_stage: list[LiveSpace], link: Link) -> dict[str, Any]:
    event = {"event": "joined", "link": str(link)}
    if on_stage and on_stage[0].me.role is Role.HOST:
        event["speaker_link"] = str(await on_stage[0].make_invite())
    return event


def _seen(member: LiveSpace) -> dict[str, Any]:
    """What one client saw: packets of the mix, what the network lost of them, what its playout
    had to conceal or to leave out (ms), and the round trip (ms)."""
    client = member.client
    stats = client.playout.stats
    return {
        "received": client.received.packets,
        "lost": client.received.lost,
        "late": stats.late,
        "concealed_ms": stats.concealed_samples / 48,
        "skipped_ms": stats.skipped_samples / 48,
        "rtt_ms": None if client.rtt_ns is None else client.rtt_ns / 1e6,
    }
