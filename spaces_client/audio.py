"""Where a client's sound comes from and goes to: two small interfaces.

All audio inside the client is float32 at 48 kHz, -1..1, in blocks of 20 ms, or of 10 in a space of
low delay: (n,), or (n, 2) in a space for music. A device, a file
and a demo voice all look the same from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.profile import VOICE, Profile

SAMPLE_RATE_HZ: Final = 48_000
BLOCK_SAMPLES: Final = 960
BLOCK_MS: Final = 20

Samples = NDArray[np.float32]
# push(block, captured_ns): a block, which belongs to the receiver, and the monotonic time at which
# its last sample was taken.
Push = Callable[[Samples, int], None]
# pull(out, now_ns): fills all of `out`.
Pull = Callable[[Samples, int], None]


class AudioError(Exception):
    """Sound cannot be read, written, captured or played.

    The message is one line that says what to do about it.
    """


def with_channels(samples: Samples, channels: int) -> Samples:
    """(n,) or (n, 2) as the other, where it is not what is wanted: both ears hear the same, or the
    mean of both is heard."""
    if samples.ndim == channels:
        return samples
    if channels == 2:
        return np.repeat(samples[:, None], 2, axis=1)
    mono: Samples = samples.mean(axis=1, dtype=np.float32)
    return mono


def cut(blocks: Iterable[Samples], samples: int) -> Iterator[Samples]:
    """Blocks of 20 ms, each as blocks of `samples`."""
    for block in blocks:
        yield from block.reshape(-1, samples, *block.shape[1:])


class AudioInput(Protocol):
    """A source of blocks: a microphone or a file."""

    def start(self, push: Push, profile: Profile = VOICE) -> None:
        """Begin. `push` is called in the event loop's thread for each frame of the profile, with
        its channels, or with one if the input has no more. Raises AudioError when the input cannot
        be started.
        """
        ...

    def postpone(self, samples: int) -> int:
        """In a pause: the frames from now on come so much later; what a microphone would have
        captured meanwhile is left out. -> by how many samples in fact: none if it cannot be."""
        return 0

    async def finished(self) -> None:
        """Return when the input has ended or was stopped. A device never ends by itself."""
        ...

    def stop(self) -> None:
        """End, and let go of the device or the file. Stopping twice is fine."""
        ...


class AudioOutput(Protocol):
    """A sink of blocks: speakers or a file."""

    @property
    def delay_ms(self) -> float:
        """From a block being filled to its first sample being heard, as far as is known."""
        return 0.0

    def start(self, pull: Pull, profile: Profile = VOICE) -> None:
        """Begin. `pull` is called in the event loop's thread for 20 ms or less at a time, of the
        profile's channels, or of one if the output has no more. Raises AudioError when the output
        cannot be started.
        """
        ...

    def stop(self) -> None:
        """End, and let go of the device or the file. Stopping twice is fine."""
        ...
