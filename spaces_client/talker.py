"""From blocks of samples to audio packets: encoder, talkspurts, silence."""

import numpy as np
from numpy.typing import NDArray

from protocol.opus import Encoder
from protocol.packets import AudioFlag, UplinkAudio
from protocol.profile import VOICE, Profile
from protocol.redundancy import Remedy

REFRESH_SAMPLES = 19_200  # libopus: MAX_CONSECUTIVE_DTX, 20 frames of 20 ms
DTX_BYTES = 2  # an Opus packet this short says "nothing new to hear" (RFC 6716, 2.1.9)


class Talker:
    """Makes at most one packet a block; in silence (found by Opus's own DTX) it makes none.

    Every talkspurt begins with the encoder reset and FIRST, and ends with LAST, so that neither
    end carries state, or concealment, through a silence.  Opus refreshes the other end's comfort
    noise every 400 ms of silence; that one packet begins no talkspurt and is not sent.
    """

    def __init__(
        self,
        *,
        bitrate: int = 32_000,
        complexity: int = 10,
        timestamp: int = 0,
        profile: Profile = VOICE,
    ) -> None:
        """bitrate: of a voice, bit/s; timestamp: of the first sample, at best random (u32).  Of
        music only digital silence is silence."""
        settings = {"bitrate": bitrate, "dtx": not profile.music} | profile.encoding
        self._encoder = Encoder(complexity=complexity, **settings)
        self._bitrate = self._encoder.bitrate
        self._profile = profile
        self._timestamp = timestamp
        self._talking = False
        self._quiet_samples = 0  # since DTX began, or the last refresh

    @property
    def timestamp(self) -> int:
        """Of the next block's first sample."""
        return self._timestamp

    @property
    def talking(self) -> bool:
        """Whether a talkspurt goes on."""
        return self._talking

    def leave_out(self, samples: int) -> None:
        """So many were never captured, between two talkspurts: the next block begins later."""
        self._step(samples)

    def follow(self, remedy: Remedy) -> None:
        """What the encoder is to do about the way to the receiver, from now on."""
        remedy.apply(self._encoder, self._bitrate)

    def talk(self, block: NDArray[np.float32]) -> UplinkAudio | None:
        """block (n,), or (n, 2) where the profile is stereo: n samples, an Opus frame's length."""
        if not block.any():
            return self.pause(len(block))
        timestamp = self._step(len(block))
        opus = self._encoder.encode(block)
        quiet_samples = self._quiet_samples
        self._quiet_samples = 0
        if len(opus) <= DTX_BYTES:
            self._quiet_samples = quiet_samples + len(block)
            if not self._talking:
                return None
            self._talking = False
            return UplinkAudio(timestamp, AudioFlag.LAST, opus)
        if self._talking:
            return UplinkAudio(timestamp, 0, opus)
        if quiet_samples >= REFRESH_SAMPLES:
            return None
        self._talking = True
        self._encoder.reset()
        return UplinkAudio(timestamp, AudioFlag.FIRST, self._encoder.encode(block))

    def pause(self, samples: int) -> UplinkAudio | None:
        """A block's time passes and nothing of it is to be sent; -> what ends the talkspurt."""
        timestamp = self._step(samples)
        if not self._talking:
            return None
        self._talking = False
        opus = self._encoder.encode(np.zeros(self._profile.shape(samples), np.float32))
        return UplinkAudio(timestamp, AudioFlag.LAST, opus)

    def _step(self, samples: int) -> int:
        timestamp = self._timestamp
        self._timestamp = (timestamp + samples) & 0xFFFF_FFFF
        return timestamp
