"""What the sound of a space is: how long its frames are.

Everything else follows from it: how often the server mixes the space, what a packet of the mix
holds, what a microphone gives at a time.
"""

from dataclasses import dataclass

from protocol.frames import Settings


@dataclass(frozen=True, slots=True)
class Profile:
    """frame_samples: of a packet, at 48 kHz; 960 or 480."""

    frame_samples: int = 960


VOICE = Profile()
LOW_DELAY = Profile(frame_samples=480)


def profile_of(settings: Settings) -> Profile:
    return LOW_DELAY if settings.low_delay else VOICE
