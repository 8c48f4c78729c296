"""Execute: turn one speaker's packets into PCM, exactly as many samples as are asked for.

The jitter buffer decides, the decoder produces, and what one pull does not use is kept for the next
one. The server pulls 20 ms of each source a tick, a client pulls its one mixed stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from protocol.jitter import Action, JitterBuffer, JitterStats, Operation, Verdict
from protocol.opus import DEEP_PLC_COMPLEXITY, MAX_PACKET_SAMPLES, Decoder, OpusError, Samples
from protocol.packets import AudioFlag, DownlinkAudio, UplinkAudio
from protocol.stretch import MAX_LAG_SAMPLES, MIN_LAG_SAMPLES, lengthen, shorten

FADE_SAMPLES: Final = 120  # 2.5 ms
STEP_LEVEL: Final = 1e-3  # -60 dBFS: a step from or to silence below this cannot be heard


# A stretch that can wait is made where the sound is soft: in a pause. Within a sentence each one is
# heard as much as two frames that are made up (PESQ).
SOFT: Final = 0.01  # of what was loudest lately: -40 dB
LOUD_DECAY: Final = 0.995  # a frame; half of it after 3 s of frames of 20 ms


def always() -> bool:
    """Of who plays one stream: there is time for it."""
    return True


class Playout:
    """Packets in by `insert`, PCM out by `pull`. `low_delay`: see JitterBuffer.
    `may_conceal_deeply` is asked whenever a frame is concealed: whether there is time for deep
    PLC."""

    def __init__(
        self,
        channels: int = 1,
        *,
        low_delay: bool = False,
        may_conceal_deeply: Callable[[], bool] = always,
    ) -> None:
        self._jitter = JitterBuffer(low_delay=low_delay)
        self._decoder = Decoder(channels, complexity=DEEP_PLC_COMPLEXITY)
        self._may_conceal_deeply = may_conceal_deeply
        per_sample = () if channels == 1 else (channels,)
        self._pcm: Samples = np.zeros(
            (MAX_PACKET_SAMPLES + MAX_LAG_SAMPLES, *per_sample), np.float32
        )
        self._start = self._end = 0  # what is left of _pcm to play
        self._left_timestamp = 0  # of _pcm[_start]
        self._saved_timestamp = 0  # where the decoder was when it concealed last
        self._timestamp = 0
        self._final: Samples = np.zeros(per_sample, np.float32)  # the last sample that went out
        self._before: Samples = np.zeros((FADE_SAMPLES, *per_sample), np.float32)
        self._silent = True
        self._loud = 0.0  # RMS
        ramp = np.linspace(0, 1, FADE_SAMPLES, endpoint=False, dtype=np.float32)
        self._fade_in: Samples = ramp.reshape(-1, *(1 for _ in per_sample))
        self._fade_out: Samples = np.ascontiguousarray(self._fade_in[::-1])

    def insert(
        self,
        timestamp: int,
        payload: bytes,
        now_ns: int,
        *,
        first: bool = False,
        last: bool = False,
        copy: bool = False,
    ) -> Verdict:
        """Take one packet, as JitterBuffer.insert."""
        verdict = self._jitter.insert(timestamp, payload, now_ns, first=first, last=last, copy=copy)
        if verdict is Verdict.RESET:
            # The sender has started anew, and so has its encoder. What was playing ends here.
            self._decoder.reset()
            self._start = self._end = 0
            self._ring_out()
        return verdict

    def take(self, audio: UplinkAudio | DownlinkAudio, now_ns: int) -> None:
        """Take what a packet holds: the copies of earlier frames, then its own."""
        for copy in audio.copies:
            self.insert(
                copy.timestamp(audio.timestamp),
                copy.opus,
                now_ns,
                first=bool(copy.flags & AudioFlag.FIRST),
                copy=True,
            )
        self.insert(
            audio.timestamp,
            audio.opus,
            now_ns,
            first=bool(audio.flags & AudioFlag.FIRST),
            last=bool(audio.flags & AudioFlag.LAST),
        )

    def pull(self, out: Samples, now_ns: int) -> bool:
        """Fill all of `out`, shape (n,) or (n, 2); False if nothing sounds (then it is zeros)."""
        wanted = len(out)
        filled = 0
        while filled < wanted:
            if self._start == self._end:
                operation = self._jitter.next(now_ns, wanted - filled, filled)
                if operation.action is Action.SILENCE and not self._ring_out():
                    if filled == 0:
                        self._timestamp = operation.timestamp
                    out[filled:] = 0
                    break
                if operation.action is not Action.SILENCE:
                    self._execute(operation, now_ns)
            if filled == 0:
                self._timestamp = self._left_timestamp
            count = min(wanted - filled, self._end - self._start)
            out[filled : filled + count] = self._pcm[self._start : self._start + count]
            self._start += count
            self._left_timestamp += count
            filled += count
            self._final[...] = out[filled - 1]
        return filled > 0

    @property
    def timestamp(self) -> int:
        """The u32 timestamp of the first sample of the last pull; means nothing in silence."""
        return self._timestamp & 0xFFFF_FFFF

    @property
    def sounding(self) -> bool:
        """Whether the next pull has something to play, as far as is known without its time."""
        return self._jitter.sounding or self._start < self._end

    @property
    def waiting(self) -> bool:
        """Whether a pull has anything to do: something sounds, or is held to sound later."""
        return self.sounding or self._jitter.waiting

    @property
    def late_ns(self) -> int:
        """How much later the last packet came than the quickest of the last seconds would have."""
        return self._jitter.late_ns

    @property
    def spare_ns(self) -> int:
        """How much later the last packet was played than its path needs."""
        return self._jitter.spare_ns

    @property
    def stats(self) -> JitterStats:
        return self._jitter.stats

    def _execute(self, operation: Operation, now_ns: int) -> None:
        """Run the decoder into an empty _pcm."""
        samples = operation.samples
        pcm = self._pcm[:samples]
        decoder = self._decoder
        before: Samples = self._final  # what the beginning is to fade in from
        if operation.first:
            decoder.reset()
        elif operation.skip:
            before = self._before
            decoder.conceal(before)
            if operation.timestamp == self._saved_timestamp:
                decoder.restore()  # or the frame would begin where its concealed part ended
        try:
            if operation.action is Action.DECODE and operation.payload is not None:
                decoder.decode(operation.payload, pcm)
            elif operation.action is Action.FEC and operation.payload is not None:
                decoder.decode_fec(operation.payload, pcm)
            else:
                decoder.save()
                self._saved_timestamp = operation.timestamp
                decoder.conceal(pcm, plainly=not self._may_conceal_deeply())
        except OpusError:
            self._jitter.stats.corrupt += 1
            decoder.conceal(pcm, plainly=not self._may_conceal_deeply())
        self._start, self._end = operation.skip, samples
        self._left_timestamp = operation.timestamp + operation.skip
        if operation.first or self._silent or operation.skip:
            self._join(pcm[operation.skip :], before)
        self._silent = False
        flat = pcm.reshape(-1)
        level = math.sqrt(np.dot(flat, flat) / len(flat))
        self._loud = max(level, self._loud * LOUD_DECAY)
        if operation.urgent or level <= SOFT * self._loud:
            if operation.stretch >= MIN_LAG_SAMPLES:
                self._end = lengthen(self._pcm, samples)
            elif operation.stretch <= -MIN_LAG_SAMPLES:
                self._end = shorten(pcm, -operation.stretch)
        if self._end != samples:
            self._jitter.stretched(self._end - samples, now_ns)

    def _join(self, pcm: Samples, before: Samples) -> None:
        """Fade from what was before, as it would have gone on (or its last sample), to a beginning
        that does not continue it, if that steps."""
        if np.abs(pcm[0] - self._final).max() > STEP_LEVEL:
            head = pcm[:FADE_SAMPLES]  # shorter than that where little of a frame is left
            head *= self._fade_in[: len(head)]
            head += (self._fade_out * before)[: len(head)]

    def _ring_out(self) -> bool:
        """Where the signal stops at a height, put a short slope down from it into an empty _pcm."""
        if self._silent:
            return False
        self._silent = True
        if np.abs(self._final).max() <= STEP_LEVEL:
            return False
        np.multiply(self._fade_out, self._final, out=self._pcm[:FADE_SAMPLES])
        self._start, self._end = 0, FADE_SAMPLES
        return True
