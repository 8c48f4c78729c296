"""What is said over a trace, and the client that sends it."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.jitter.traces import Sent, Trace
from protocol.opus import Encoder
from protocol.packets import AudioFlag, UplinkAudio
from protocol.reception import Reception
from protocol.redundancy import NO_REMEDY, Remedy, Repeater
from spaces_client.audio import BLOCK_SAMPLES
from spaces_client.crowd import voice_files
from spaces_client.synth import synthesise_voice
from spaces_client.wav import read_blocks

Samples = NDArray[np.float32]

BITRATE, COMPLEXITY = 32_000, 10
ALWAYS_FEC = Remedy(expected_loss_percent=10)


@cache
def speech_blocks(folder: Path | None) -> Samples:
    """-> (n, 960): all recordings of a folder one after the other, or synthesised voices.  Raises
    AudioError."""
    if folder is None:
        blocks = [synthesise_voice(number, 8.0).reshape(-1, BLOCK_SAMPLES) for number in range(4)]
    else:
        blocks = [np.array(list(read_blocks(file))) for file in voice_files(folder)]
    return np.concatenate(blocks)


def said(trace: Trace, blocks: Samples) -> Samples:
    """The trace's whole time, (m, 960): speech where it sends, silence elsewhere."""
    first = trace.packets[0].number
    spoken = np.zeros((trace.packets[-1].number - first + 1, BLOCK_SAMPLES), np.float32)
    for packet in trace.packets:
        if packet.quiet:
            continue
        block = spoken[packet.number - first]
        block[:] = blocks[packet.number % len(blocks)]
        if packet.first:
            block *= np.linspace(0, 1, BLOCK_SAMPLES, dtype=np.float32)
        if packet.last:
            block *= np.linspace(1, 0, BLOCK_SAMPLES, dtype=np.float32)
    return spoken


class Sender:
    """A speaker's client: encodes, and does about losses what it does."""

    def __init__(self, spoken: Samples, first: int, *, by_report: bool, copies: bool) -> None:
        """by_report: in-band FEC while losses are reported, or always.  copies: whether earlier
        frames are sent again then."""
        self._spoken, self._first = spoken, first
        self._encoder = Encoder(bitrate=BITRATE, complexity=COMPLEXITY)
        self._by_report, self._copies = by_report, copies
        self._repeater = Repeater()
        self._follow(NO_REMEDY if by_report else ALWAYS_FEC)

    def _follow(self, remedy: Remedy) -> None:
        remedy.apply(self._encoder, BITRATE)

    def report(self, reception: Reception) -> None:
        """The receiver says what it has lost lately."""
        self._repeater.redundancy.report(reception)
        remedy = self._repeater.redundancy.remedy
        if self._copies:
            self._follow(remedy)
        elif self._by_report:
            self._follow(ALWAYS_FEC if remedy.copies else NO_REMEDY)

    def send(self, packet: Sent) -> UplinkAudio:
        if packet.first:
            self._encoder.reset()
        audio = UplinkAudio(
            packet.number * BLOCK_SAMPLES & 0xFFFF_FFFF,
            AudioFlag.FIRST * packet.first | AudioFlag.LAST * packet.last,
            self._encoder.encode(self._spoken[packet.number - self._first]),
        )
        return self._repeater.repeat(audio) if self._copies else audio
