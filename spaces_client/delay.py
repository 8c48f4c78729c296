"""From mouth to ear: how long ago that was said which is to be heard now.

Two ends of a way have no clock in common, but each can ask for the server's (`ServerClock`).
A speaker finds out how the timestamps of their audio lie on it (`VoiceOrigin`), and tells.  Every
mixed packet says which moment of whose audio it carries: whoever plays it knows its age (`Ears`).

Not in the timestamps, and added: what the two Opus encoders on the way, and the limiter of the mix,
look ahead.
"""

from collections import deque
from collections.abc import Sequence
from statistics import median  # numpy's takes 20 ms when it is first called: frames would be late
from typing import Final

from protocol.clock import MASK, difference, samples_at
from protocol.frames import VoiceClock
from protocol.packets import CAPTURE_UNIT_SAMPLES, Audible, DownlinkAudio
from protocol.profile import Profile

EXCHANGES: Final = 8
LIMITER_SAMPLES: Final = 72  # 1.5 ms
# The earliest captures say how audio lies on the clock: a block is often late, and never early.
CREEP: Final = 512  # blocks, in which a clock that drifts is followed
JUMP_SAMPLES: Final = 2_400  # 50 ms: blocks were left out
PACKETS: Final = 256  # of the mix that may still be played
HEARD: Final = 200  # delays of one speaker that are kept
MAX_DELAY_SAMPLES: Final = 10 * 48_000  # longer ones are of a capture that has been counted round


class ServerClock:
    """The server's clock, from its answers: each was given somewhere between question and answer,
    and of the last few the one says it best that came back soonest.  (NTP's clock filter.)"""

    def __init__(self) -> None:
        self._exchanges: deque[tuple[int, int]] = deque(maxlen=EXCHANGES)  # (round trip, offset)

    def answered(self, clock: int, asked_ns: int, now_ns: int) -> None:
        """clock: in samples, u32."""
        offset = difference(clock, samples_at((asked_ns + now_ns) // 2)) & MASK
        self._exchanges.append((now_ns - asked_ns, offset))

    @property
    def known(self) -> int:
        """How many of the last answers there are."""
        return len(self._exchanges)

    @property
    def error_ns(self) -> int | None:
        """By how much it may be wrong at most: half the round trip."""
        return min(self._exchanges)[0] // 2 if self._exchanges else None

    @property
    def offset(self) -> int | None:
        """The server's clock minus ours, in samples, u32."""
        return min(self._exchanges)[1] if self._exchanges else None


class VoiceOrigin:
    """When, by our own clock in samples, the sample with timestamp 0 would have been captured."""

    def __init__(self) -> None:
        self._origin: float | None = None

    def captured(self, timestamp: int, at_ns: int) -> None:
        """at_ns: when the sample with this timestamp was captured, or a little later."""
        origin = samples_at(at_ns) - timestamp & MASK
        if self._origin is None:
            self._origin = origin
            return
        later = difference(origin, int(self._origin) & MASK)
        self._origin += later / CREEP if 0 < later < JUMP_SAMPLES else later

    def offset(self, clock: ServerClock) -> int | None:
        """The server's clock at a sample minus the sample's timestamp; None while it is not
        known."""
        if self._origin is None or clock.offset is None:
            return None
        return round(self._origin) + clock.offset & MASK


class Ears:
    """Takes note of what comes and what is played.  voices: how the speakers' audio lies on the
    server's clock, by seats."""

    def __init__(self, profile: Profile) -> None:
        """profile: of the mix, and of the speakers as well."""
        self.voices: dict[int, int] = {}
        self._frame_samples = profile.frame_samples
        self._ahead_samples = 2 * profile.lookahead_samples + LIMITER_SAMPLES
        self._packets: dict[int, tuple[Audible, ...]] = {}  # by timestamps
        self._newest = 0
        self._delays_ms: dict[int, deque[float]] = {}

    def learn(self, voices: Sequence[VoiceClock]) -> None:
        self.voices = {voice.seat: voice.offset for voice in voices}
        self._delays_ms = {s: d for s, d in self._delays_ms.items() if s in self.voices}

    def came(self, audio: DownlinkAudio) -> None:
        self._newest = audio.timestamp
        self._packets[audio.timestamp] = audio.audible
        if len(self._packets) > PACKETS:
            del self._packets[next(iter(self._packets))]

    def played(self, timestamp: int, now_ns: int, clock: ServerClock) -> None:
        """The sample of the mix with this timestamp goes out now."""
        within = difference(timestamp, self._newest) % self._frame_samples
        if clock.offset is None:
            return
        now = samples_at(now_ns) + clock.offset
        for audible in self._packets.get(timestamp - within & MASK, ()):
            offset = self.voices.get(audible.seat)
            if offset is None:
                continue
            # What is captured just now has this timestamp; `capture` was rounded down.
            fresh = now - offset & MASK
            units = fresh // CAPTURE_UNIT_SAMPLES - audible.capture & 0xFFFF
            delay = (units - 0.5) * CAPTURE_UNIT_SAMPLES + fresh % CAPTURE_UNIT_SAMPLES - within
            if delay < MAX_DELAY_SAMPLES:
                delays_ms = self._delays_ms.setdefault(audible.seat, deque(maxlen=HEARD))
                delays_ms.append((delay + self._ahead_samples) / 48)

    def delay_ms(self, seat: int) -> float | None:
        """From this speaker's mouth to here, the median of what was played last."""
        delays_ms = self._delays_ms.get(seat)
        return median(delays_ms) if delays_ms else None
