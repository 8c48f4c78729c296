"""Voice processing: what a microphone hears, without the loudspeaker, the noise and the distance.

WebRTC's audio processing, where the optional package `pywebrtc-audio` is installed: echo canceller
(AEC3), noise suppressor, then gain controller (AGC2), in the order of WebRTC's own chain.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from spaces_client.audio import BLOCK_SAMPLES, SAMPLE_RATE_HZ, AudioError, Samples

webrtc: Any
try:
    import pywebrtc_audio as webrtc
except ImportError:  # the extra `voice` is not installed
    webrtc = None

# What was played waits here until the microphone's block of the same time comes. It must be short:
# the canceller needs to see the loudspeaker's sound before its echo, and the two buffers of a
# device make an echo no less than about 40 ms late.
_MAX_FAR_SAMPLES: Final = 2 * BLOCK_SAMPLES
DELAY_NS: Final = 15_000_000  # what comes out is about as much older than what went in

_NOISE_LEVEL: Final = 2  # WebRTC's "high": up to 18 dB
# Speech is led to about -25 dBFS: the level Opus and the mixer are at ease with. The controller's
# own default, 8 dB more, would have the limiter work whenever two people speak.
_HEADROOM_DB: Final = 12.5
_MAX_GAIN_DB: Final = 30.0
_MAX_NOISE_DBFS: Final = -60.0  # a quiet room stays quiet: no more gain than this allows


class VoiceProcessor:
    """Cleans one microphone; one instance for each, used from one thread.

    It delays the voice (DELAY_NS). Raises AudioError when the package is missing: ask
    `available()` first.
    """

    @staticmethod
    def available() -> bool:
        return webrtc is not None

    def __init__(self) -> None:
        if webrtc is None:
            raise AudioError("voice processing is not installed; run: pip install 'spaces[voice]'")
        self._echo = webrtc.EchoCanceller(sample_rate=SAMPLE_RATE_HZ)
        self._noise = webrtc.NoiseSuppressor(sample_rate=SAMPLE_RATE_HZ, level=_NOISE_LEVEL)
        self._gain = webrtc.GainController(
            sample_rate=SAMPLE_RATE_HZ,
            headroom_db=_HEADROOM_DB,
            max_gain_db=_MAX_GAIN_DB,
            max_output_noise_level_dbfs=_MAX_NOISE_DBFS,
        )
        self._far: Samples = np.zeros(0, np.float32)

    def played(self, far: Samples) -> None:
        """Tell what went to the loudspeaker, shape (n,): it is what echoes. Copied."""
        self._far = np.concatenate((self._far, np.nan_to_num(far)))[-_MAX_FAR_SAMPLES:]

    def left_out(self, samples: int) -> None:
        """The microphone's next block begins so much later: what was played then is not for it."""
        self._far = self._far[samples:]

    def process(self, near: Samples) -> Samples:
        """One block from the microphone, shape (n,) of 10 or 20 ms, to one cleaned block of the
        same shape."""
        far: Samples = np.zeros(len(near), np.float32)
        if len(self._far) >= len(near):
            far, self._far = self._far[: len(near)], self._far[len(near) :]
        # The filters remember: one value that is no number would silence them for good.
        out = self._echo.process(np.nan_to_num(near), far)
        cleaned: Samples = self._gain.process(self._noise.process(out))
        return cleaned

    def reset(self) -> None:
        """Forget the room, the noise and the level, as for another microphone."""
        self._far = self._far[:0]
        self._echo.reset()
        self._noise.reset()
        self._gain.reset()
