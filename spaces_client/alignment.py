"""When a microphone's frames begin: so that each reaches the server just before a tick takes it.

The server mixes every 20 ms (10 in a space of low delay), and a frame that has come waits for the
next mix: for half a frame on average, and for nothing.  The server tells how much later a
speaker's frames could have come (`spare` in `clocks`; SPEC.md, section 12.14); between two
talkspurts the framing moves by as much, and the wait is gone.
"""

from typing import Final

KEPT_SAMPLES: Final = 96  # 2 ms: what may drift or be late by then
LEAST_SAMPLES: Final = 48  # 1 ms: what is worth a move
SEEN_SAMPLES: Final = 9_600  # 200 ms of sound, which the server must have had to know what is spare


class Alignment:
    """Whether, and by how many samples, frames are best to begin later."""

    def __init__(self, frame_samples: int) -> None:
        self._frame_samples = frame_samples
        self.forget()

    def forget(self) -> None:
        """Nothing is known of what is spare."""
        self._spare_samples = 0
        self._sent_samples = 0  # since then, or the last move
        self._asked_too_soon = True

    def sent(self, samples: int) -> None:
        """A frame of so many went out."""
        self._sent_samples += samples

    def asked(self) -> None:
        self._asked_too_soon = self._sent_samples < SEEN_SAMPLES

    def told(self, spare_samples: int) -> None:
        """The answer.  More than a frame is not ours: the server is about to take it back."""
        ours = spare_samples < self._frame_samples and not self._asked_too_soon
        self._spare_samples = spare_samples - KEPT_SAMPLES if ours else 0

    @property
    def later_samples(self) -> int:
        """By how much."""
        return self._spare_samples if self._spare_samples >= LEAST_SAMPLES else 0

    def moved(self) -> None:
        """They begin later, as far as the microphone can."""
        self.forget()
