"""A source: one speaker, from their packets to a frame of samples at each tick."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from protocol.packets import CAPTURE_UNIT_SAMPLES, UplinkAudio
from protocol.playout import Playout, always
from protocol.profile import VOICE, Profile
from spaces_server.mixer.loudness import Leveller

FRAME_SAMPLES = 960  # 20 ms at 48 kHz
SILENT_LEVEL = 127
# What is told of speakers' packets, all of them together: these counters of JitterStats.
COUNTED = (
    "accepted",
    "late",
    "duplicate",
    "overflow",
    "malformed",
    "reset",
    "corrupt",
    "dropped",
    "decoded",
    "recovered_fec",
    "recovered_copy",
    "concealed_samples",
    "skipped_samples",
    "shortened_samples",
    "lengthened_samples",
    "talkspurts",
)
_CUT_SAMPLES = 240  # 5 ms: short enough to be gone at once, long enough not to click
_CUT = np.linspace(1, 0, _CUT_SAMPLES, dtype=np.float32)


def level_dbov(samples: NDArray[np.float32]) -> int:
    """The RMS level of (n,) or (n, 2) as RFC 6464 has it: -dBov, 0 (loudest) to 127 (silent)."""
    flat = samples.reshape(-1)
    power = float(np.dot(flat, flat)) / max(1, len(flat))
    if power <= 10 ** (-SILENT_LEVEL / 10):
        return SILENT_LEVEL
    return min(SILENT_LEVEL, max(0, round(-10 * math.log10(power))))


class Source:
    """Jitter buffer, decoder, leveller and level of one speaker.

    `sounding` is what mix classes follow.  It holds for one tick longer than the speech, so that
    the classes' encoders get out what they still hold (their look-ahead of 6.5 ms); `ending` is
    that tick.
    """

    def __init__(
        self,
        seat: int,
        leveller: Leveller | None = None,
        profile: Profile = VOICE,
        may_conceal_deeply: Callable[[], bool] = always,
    ) -> None:
        """leveller: None leaves the speaker as they are.  profile: of the mix.
        may_conceal_deeply: see Playout."""
        self.seat = seat
        self._leveller = leveller
        self.sounding = False
        self.ending = False
        self.level = SILENT_LEVEL
        self.capture = 0
        self.stopped = False
        self._playout = Playout(
            profile.channels,
            low_delay=profile.low_delay,
            may_conceal_deeply=may_conceal_deeply,
        )
        self.stats = self._playout.stats

    def receive(self, audio: UplinkAudio, now_ns: int) -> None:
        self._playout.take(audio, now_ns)

    def count(self, into: Counter[str]) -> None:
        """Adds what became of this speaker's packets, under the names of COUNTED."""
        for name in COUNTED:
            into[name] += getattr(self.stats, name)

    @property
    def late_ns(self) -> int:
        """How much later the last packet came than the quickest of the last seconds would have."""
        return self._playout.late_ns

    @property
    def spare_ns(self) -> int:
        """How much later the speaker could send, and be heard no later."""
        return self._playout.spare_ns

    def stop(self) -> None:
        """The speaker was muted or has left the stage: the next tick fades out, no more comes."""
        self.stopped = True

    def resume(self, seat: int) -> None:
        """They are back already."""
        self.stopped = False
        self.seat = seat

    def waiting(self) -> bool:
        """Whether a tick has anything to do here."""
        return self.sounding or (self._playout.waiting and not self.stopped)

    def fill(self, out: NDArray[np.float32], due_ns: int) -> None:
        """The next frame into `out`; sets sounding, ending, level and capture.  due_ns: the tick's
        time.  When it runs makes no difference: to the jitter buffer a late tick would look like
        delay to be taken back, and the ticks after it, which are in time, like too little."""
        was_sounding = self.sounding and not self.ending
        sounds = self._playout.pull(out, due_ns)
        if self._leveller is not None and sounds:
            self._leveller.level(out)
        elif self._leveller is not None and was_sounding:
            self._leveller.end(out)
        if self.stopped:
            out[:_CUT_SAMPLES].T[...] *= _CUT if was_sounding else 0
            out[_CUT_SAMPLES:] = 0
            sounds = False
        self.ending = was_sounding and not sounds
        self.sounding = sounds or self.ending
        self.level = level_dbov(out) if sounds else SILENT_LEVEL
        self.capture = self._playout.timestamp // CAPTURE_UNIT_SAMPLES & 0xFFFF
