"""Who plays what comes: our own receive path, and buffers to compare it with."""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.jitter.traces import Sent, Trace
from protocol.opus import DEEP_PLC_COMPLEXITY, Decoder, packet_has_fec
from protocol.packets import UplinkAudio
from protocol.path_delay import MS
from protocol.playout import Playout
from protocol.profile import VOICE
from spaces_client.audio import BLOCK_MS, BLOCK_SAMPLES

Samples = NDArray[np.float32]

FIXED_MS = 60.0


@dataclass(slots=True)
class Heard:
    """What a receiver made of a stream.

    delays: (when, ms after the path's minimum) of each pull or frame that plays.  concealed,
    recovered, late: in frames of 20 ms; concealed: or left out, where a talkspurt is broken off
    because too much is missing; recovered: by FEC or a copy.
    """

    delays: list[tuple[float, float]] = field(default_factory=list)
    concealed: float = 0.0
    recovered: int = 0
    late: int = 0


class Receiver(Protocol):
    """wait_ms: from when the path's quickest packet comes to the next pull.  Sound cards and
    networks have nothing to do with each other: on average it is half a pull.  late_ns: of the
    last packet, for a report of a queue."""

    pull_samples: int
    wait_ms: float
    heard: Heard

    @property
    def late_ns(self) -> int: ...

    def receive(self, packet: Sent, audio: UplinkAudio, now_ms: float) -> None: ...

    def pull(self, out: Samples, now_ms: float) -> None: ...


class Ours:
    """protocol/playout.py, pulled as a client's device does."""

    pull_samples = VOICE.period_samples
    wait_ms = pull_samples / 48 / 2

    def __init__(self, trace: Trace) -> None:
        self.heard = Heard()
        self._playout = Playout()
        self._due_ms = {p.number: p.send_ms + trace.least_ms for p in trace.packets}
        self._concealed = 0

    @property
    def late_ns(self) -> int:
        return self._playout.late_ns

    def receive(self, packet: Sent, audio: UplinkAudio, now_ms: float) -> None:
        self._playout.take(audio, round(now_ms * MS))

    def pull(self, out: Samples, now_ms: float) -> None:
        sounds = self._playout.pull(out, round(now_ms * MS))
        stats, heard = self._playout.stats, self.heard
        concealed = stats.concealed_samples
        if sounds and concealed == self._concealed:
            number, within = divmod(self._playout.timestamp, BLOCK_SAMPLES)
            if number in self._due_ms:
                heard.delays.append((now_ms, now_ms - within / 48 - self._due_ms[number]))
        self._concealed = concealed
        heard.concealed = (concealed + stats.skipped_samples) / BLOCK_SAMPLES
        heard.recovered = stats.recovered_copy + stats.recovered_fec
        heard.late = stats.late + stats.dropped


class OnServer(Ours):
    """The same, pulled as the server's ticks do it."""

    pull_samples = VOICE.frame_samples
    wait_ms = pull_samples / 48 / 2


class Framewise:
    """A buffer that gives a frame, or none, for each pull of 20 ms."""

    pull_samples = BLOCK_SAMPLES
    wait_ms = BLOCK_MS / 2
    late_ns = 0  # it reports none

    def __init__(self, trace: Trace) -> None:
        self.heard = Heard()
        self._decoder = Decoder(complexity=DEEP_PLC_COMPLEXITY)
        self._payloads: dict[int, tuple[Sent, bytes]] = {}
        self._least_ms = trace.least_ms
        self._spurt = False

    def _play(self, number: int | None, missing: int | None, out: Samples, now_ms: float) -> None:
        """number: of the frame that plays.  missing: of one that should, and is not there."""
        heard = self.heard
        if number is not None:
            packet, opus = self._payloads[number]
            if packet.first or not self._spurt:
                self._decoder.reset()
            self._spurt = not packet.last
            self._decoder.decode(opus, out)
            heard.delays.append((now_ms, now_ms - packet.send_ms - self._least_ms))
        elif self._spurt and missing is not None:
            following = self._payloads.get(missing + 1)
            if following is not None and packet_has_fec(following[1]):
                self._decoder.decode_fec(following[1], out)
                heard.recovered += 1
            else:
                self._decoder.conceal(out)
                heard.concealed += 1
        else:
            out[:] = 0


class Fixed(Framewise):
    """Each frame 60 ms after the path's minimum, or never."""

    wait_ms = 0.0  # it began to play when the first one was due

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self._sent = {p.number: p for p in trace.packets}
        self._start_ms = trace.packets[0].send_ms + trace.least_ms + FIXED_MS
        self._first = trace.packets[0].number
        self._played = self._first - 1

    def receive(self, packet: Sent, audio: UplinkAudio, now_ms: float) -> None:
        self._payloads[packet.number] = packet, audio.opus
        self.heard.late += packet.number <= self._played

    def pull(self, out: Samples, now_ms: float) -> None:
        number = self._first + math.floor((now_ms - self._start_ms) / BLOCK_MS)
        if number in self._payloads and number > self._played:
            self._play(number, None, out, now_ms)
        else:
            self._play(None, number if number in self._sent else None, out, now_ms)
        self._played = max(self._played, number)
