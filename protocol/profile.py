"""What the sound of a space is: how long its frames are, and whether it is for voices or music.

Everything else follows from it: how often the server mixes the space, what a packet of the mix
holds, what a microphone gives at a time and what is done to it.
"""

from dataclasses import dataclass
from typing import Any

from protocol.frames import Settings, Sound


@dataclass(frozen=True, slots=True)
class Profile:
    """frame_samples: of a packet, at 48 kHz; 960 or 480.  music: stereo, at a rate that leaves
    nothing to be heard of the codec, and nothing done to it: no echo cancelling, no noise
    suppression, no levelling, no sending of nothing where it is quiet."""

    frame_samples: int = 960
    music: bool = False

    @property
    def low_delay(self) -> bool:
        return self.frame_samples < VOICE.frame_samples

    @property
    def period_samples(self) -> int:
        """What a sound card gives or takes at a time: half a frame, as what waits for the next
        period waits half as long then."""
        return self.frame_samples // 2

    @property
    def channels(self) -> int:
        return 2 if self.music else 1

    @property
    def encoding(self) -> dict[str, Any]:
        """How an `Encoder` for it differs from the one that its owner would make for voices."""
        if not self.music:
            return {}
        # At this rate nothing is lost by low delay.
        return {"channels": 2, "signal": "music", "bitrate": 128_000, "low_delay": self.low_delay}

    @property
    def lookahead_samples(self) -> int:
        """By how much sound comes out of libopus later than its packet's timestamp says."""
        return 120 if self.encoding.get("low_delay") else 312

    def shape(self, samples: int) -> tuple[int, ...]:
        """Of so many samples as an array: (n,), or (n, 2)."""
        return (samples, 2) if self.music else (samples,)


VOICE = Profile()


def profile_of(settings: Settings) -> Profile:
    return Profile(480 if settings.low_delay else 960, music=settings.sound is Sound.MUSIC)
