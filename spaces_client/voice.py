"""Voice processing: what a microphone hears, without the loudspeaker, the noise and the distance.

WebRTC's audio processing, where the optional package `pywebrtc-audio` is installed: echo canceller
(AEC3), noise suppressor, then gain controller (AGC2), in the order of WebRTC's own chain.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import numpy as np

from spaces_client.audio import BLOCK_SAMPLES, SAMPLE_RATE_HZ, AudioError, Samples

webrtc: Any
try:
    import pywebrtc_audio as webrtc
except ImportError:  # the extra `voice` is not installed
    webrtc = None

# What was played waits here until the microphone's block of the same time comes. It must be short:
# the canceller needs to see the loudspeaker's block before its echo, and the two buffers of a
# device make an echo no less than about 40 ms late.
_MAX_FAR_BLOCKS: Final = 2

_NOISE_LEVEL: Final = 2  # WebRTC's "high": up to 18 dB
# Speech is led to about -25 dBFS: the level Opus and the mixer are at ease with. The controller's
# own default, 8 dB more, would have the limiter work whenever two people speak.
_HEADROOM_DB: Final = 12.5
_MAX_GAIN_DB: Final = 30.0
_MAX_NOISE_DBFS: Final = -60.0  # a quiet room stays quiet: no more gain than this allows


class VoiceProcessor:
    """Cleans one microphone; one instance for each, used from one thread.

    It delays the voice by about 15 ms. Raises AudioError when the package is missing: ask
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
        self._far: deque[Samples] = deque(maxlen=_MAX_FAR_BLOCKS)
        self._silence: Samples = np.zeros(BLOCK_SAMPLES, np.float32)

    def played(self, far: Samples) -> None:
        """Tell what went to the loudspeaker, shape (960,): it is what echoes. Copied."""
        self._far.append(np.nan_to_num(far))

    def process(self, near: Samples) -> Samples:
        """One block from the microphone, shape (960,), to one cleaned block of the same shape."""
        far = self._far.popleft() if self._far else self._silence
        # The filters remember: one value that is no number would silence them for good.
        out = self._echo.process(np.nan_to_num(near), far)
        cleaned: Samples = self._gain.process(self._noise.process(out))
        return cleaned

    def reset(self) -> None:
        """Forget the room, the noise and the level, as for another microphone."""
        self._far.clear()
        self._echo.reset()
        self._noise.reset()
        self._gain.reset()
