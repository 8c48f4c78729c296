"""Where a client's sound comes from and goes to: two small interfaces.

All audio inside the client is mono float32 at 48 kHz, -1..1, in blocks of 20 ms, or of 10 in a
space of low delay. A device, a file
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


def cut(blocks: Iterable[Samples], samples: int) -> Iterator[Samples]:
    """Blocks of 20 ms, each as blocks of `samples`."""
    for block in blocks:
        yield from block.reshape(-1, samples)


class AudioInput(Protocol):
    """A source of blocks: a microphone or a file."""

    def start(
        self, push: Callable[[Samples, int], None], block_samples: int = BLOCK_SAMPLES
    ) -> None:
        """Begin. `push(block, captured_ns)` is called in the event loop's thread each 20 ms.

        `block` has shape (block_samples,), of which BLOCK_SAMPLES is a multiple, and belongs to the
        receiver; with half of it, the calls come each 10 ms. `captured_ns` is the monotonic time at
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

    def start(self, pull: Callable[[Samples, int], None]) -> None:
        """Begin. `pull(out, now_ns)` must fill all of `out`, shape (960,) or less.

        It is called in the event loop's thread. Raises AudioError when the output cannot be
        started.
        """
        ...

    def stop(self) -> None:
        """End, and let go of the device or the file. Stopping twice is fine."""
        ...
