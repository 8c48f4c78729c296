"""Voice notes: recorded from a microphone, and played, without a server.  The format of a note is
that of protocol/notes.py."""

import asyncio
from collections.abc import Iterable

import numpy as np

from protocol import notes
from protocol.opus import (
    MAX_PACKET_SAMPLES,
    Decoder,
    Encoder,
    OpusError,
    Samples,
    packet_samples,
)
from spaces_client.audio import BLOCK_MS, AudioError, AudioInput, AudioOutput

BITRATE = 24_000
MAX_PACKETS = notes.MAX_NOTE_MS // BLOCK_MS


async def record(microphone: AudioInput, stop: asyncio.Event | None = None) -> bytes:
    """A note of what is said until `stop` is set, the input has ended, or the note is full, after
    140 s.  Raises AudioError if the input cannot be started, or nothing came of it."""
    stop = stop or asyncio.Event()
    encoder = Encoder(bitrate=BITRATE, complexity=10)
    packets: list[bytes] = []

    def push(block: Samples, _captured_ns: int) -> None:
        if len(packets) < MAX_PACKETS:
            packets.append(encoder.encode(block))
        else:
            stop.set()

    microphone.start(push)
    ends = [asyncio.ensure_future(end) for end in (microphone.finished(), stop.wait())]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        microphone.stop()
        for end in ends:
            end.cancel()
    if not packets:
        raise AudioError("nothing was recorded; is the microphone switched on?")
    return notes.pack(packets)


async def play(packets: Iterable[bytes], speakers: AudioOutput) -> None:
    """Plays Opus packets, one after another, to their end.  Raises AudioError if the output cannot
    be started."""
    sound = _Sound(packets)
    over = asyncio.Event()

    def pull(out: Samples, _now_ns: int) -> None:
        if not sound.fill(out):
            over.set()  # and not before: what was filled last has been played by now

    speakers.start(pull)
    try:
        await over.wait()
    finally:
        speakers.stop()


class _Sound:
    """Packets of any length as samples of any number."""

    def __init__(self, packets: Iterable[bytes]) -> None:
        self._packets = iter(packets)
        self._decoder = Decoder()
        self._pcm: Samples = np.zeros(MAX_PACKET_SAMPLES, np.float32)
        self._left: Samples = self._pcm[:0]

    def fill(self, out: Samples) -> bool:
        """Fills all of `out`, with silence after the end; -> whether there was anything."""
        filled = 0
        while filled < len(out) and (len(self._left) or self._decode()):
            count = min(len(out) - filled, len(self._left))
            out[filled : filled + count] = self._left[:count]
            self._left = self._left[count:]
            filled += count
        out[filled:] = 0
        return filled > 0

    def _decode(self) -> bool:
        """The next packet that can be decoded; False if there is none."""
        for packet in self._packets:
            try:
                self._left = self._pcm[: packet_samples(packet)]
                self._decoder.decode(packet, self._left)
                return True
            except OpusError:
                continue  # somebody else's, and damaged: the rest can still be heard
        self._left = self._pcm[:0]
        return False
