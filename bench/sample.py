"""A listener who is looked at closely: everything it gets is opened, read and decoded.

Clear headers tell how many datagrams there were for a listener, and how many of them came.  What
was in them, and whether the server left out a tick altogether, is seen only inside.
"""

from collections.abc import Callable, Iterator

import numpy as np

from protocol.connection import Media
from protocol.opus import Decoder, OpusError
from protocol.packets import DownlinkAudio, Kind, MalformedPacketError, crowd_packets
from spaces_client.audio import BLOCK_SAMPLES

TICK_NS = 20_000_000


class Sample:
    """frames: of 20 ms, decoded; skipped: those that the server never made, as the space's clock in
    the packets tells; failed: datagrams that did not hold what they should."""

    def __init__(self, heard: Callable[[DownlinkAudio, int], None]) -> None:
        """heard: told of each frame, and when it came (monotonic, ns)."""
        self.frames = self.skipped = self.failed = 0
        self._told = heard
        self._decoder = Decoder()
        self._pcm = np.zeros(BLOCK_SAMPLES, np.float32)
        self._timestamp: int | None = None  # of the newest frame
        self._counter = -1  # of the newest datagram
        self._heard_ns = 0

    def begin(self) -> None:
        """A measuring window begins."""
        self.frames = self.skipped = self.failed = 0

    def hear(self, media: Media, now_ns: int) -> None:
        """Takes what a datagram held."""
        # Where a datagram was lost its counter is missing; that loss is not counted here again.
        follows = media.counter == self._counter + 1
        self._counter = max(self._counter, media.counter)
        if media.kind == Kind.FEED:
            return
        self._heard_ns = now_ns
        try:
            for plaintext in audio_of(media):
                audio = DownlinkAudio.unpack(plaintext)
                self._told(audio, now_ns)
                if follows and self._timestamp is not None:
                    step = (audio.timestamp - self._timestamp) % (1 << 32) // BLOCK_SAMPLES
                    self.skipped += max(0, step - 1)
                self._timestamp = audio.timestamp
                self._decoder.decode(audio.opus, self._pcm)
                self.frames += 1
                follows = True
        except (MalformedPacketError, OpusError, ValueError):
            self.failed += 1

    def end(self, now_ns: int, packet_ms: int) -> None:
        """The window is over: if nothing has come for long, more was skipped."""
        silent_ns = now_ns - self._heard_ns - packet_ms * 1_000_000
        self.skipped += max(0, silent_ns // TICK_NS - 1)


def audio_of(media: Media) -> Iterator[bytes]:
    """The plaintexts of AUDIO that a datagram holds, in order."""
    if media.kind == Kind.CROWD:
        yield from crowd_packets(media.plaintext)
    else:
        yield media.plaintext
