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

SAMPLE_RATE_HZ: Final = 48_000
BLOCK_SAMPLES: Final = 960
BLOCK_MS: Final = 20
PULL_SAMPLES: Final = 480  # a device is filled in halves of a block: what waits for it waits less

Samples = NDArray[np.float32]


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

    def start(
        self,
        push: Callable[[Samples, int], None],
        block_samples: int = BLOCK_SAMPLES,
        channels: int = 1,
    ) -> None:
        """Begin. `push(block, captured_ns)` is called in the event loop's thread each 20 ms.

        `block` has shape (block_samples,), or (block_samples, 2) where two `channels` are wanted
        and to be had, and belongs to the receiver; BLOCK_SAMPLES is a multiple of block_samples,
        and with half of it the calls come each 10 ms. `captured_ns` is the monotonic time at
        which its last sample was taken. Raises AudioError when the input cannot be started.
        """
        ...

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

    def start(self, pull: Callable[[Samples, int], None], channels: int = 1) -> None:
        """Begin. `pull(out, now_ns)` must fill all of `out`: 960 samples or less, of as many
        `channels`, or of one if the output has no more.

        It is called in the event loop's thread. Raises AudioError when the output cannot be
        started.
        """
        ...

    def stop(self) -> None:
        """End, and let go of the device or the file. Stopping twice is fine."""
        ...
