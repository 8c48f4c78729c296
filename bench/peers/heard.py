"""Is what a listener hears what a talker said, and how much later?

A mixer's packets do not say what is in them, so the sound has to: what the listener decodes is
looked for in what the talker's packets decode to.

    said     | packet 0 | packet 1 | packet 2 | ... and from the beginning again
    heard              | packet 0 | packet 1 | ...
                       ^ here `heard` begins within `said`

Voices are so much like themselves a moment later, and like others, that a plain correlation has
peaks everywhere.  The phase transform leaves one: C. Knapp and G. Carter, "The generalized
correlation method for estimation of time delay", 1976.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.opus import MAX_PACKET_SAMPLES, SAMPLE_RATE, Decoder

PACKET_SAMPLES = 960
BAND_HZ = 4_000  # above it a codec keeps how loud it was, not the wave
CLEAR = 8.0  # another voice reaches 7


def decode(packets: Sequence[bytes]) -> NDArray[np.float32]:
    """-> (samples,) at 48 kHz, mono.  Raises OpusError."""
    decoder = Decoder()
    out = np.zeros(MAX_PACKET_SAMPLES, np.float32)
    parts = [out[: decoder.decode(packet, out)].copy() for packet in packets]
    return np.concatenate([np.zeros(0, np.float32), *parts])


@dataclass(frozen=True)
class Match:
    """The best place for a piece of sound.

    packet: the first of the talker's packets that begins within the piece
    clearness: the correlation there, by its RMS over all places
    """

    packet: int
    clearness: float

    @property
    def found(self) -> bool:
        """Whether the piece is from there, or from nowhere."""
        return self.clearness >= CLEAR


class Speech:
    """What one talker says, again and again."""

    def __init__(self, packets: Sequence[bytes]) -> None:
        """packets: of 20 ms.  Raises OpusError."""
        said = decode(packets)
        self._packets = len(packets)
        self._samples = len(said)
        self._band = len(said) * BAND_HZ // SAMPLE_RATE
        self._spectrum = np.fft.rfft(said)

    def find(self, heard: NDArray[np.float32]) -> Match:
        """heard: (samples,), a second of it; what goes beyond the speech is left out."""
        cross = self._spectrum * np.conj(np.fft.rfft(heard[: self._samples], self._samples))
        cross[self._band :] = 0
        magnitude = np.abs(cross)
        sounds = magnitude > 0
        cross[sounds] /= magnitude[sounds]
        correlation = np.fft.irfft(cross, self._samples)
        place = int(np.argmax(correlation))
        rms = float(np.sqrt(np.mean(np.square(correlation))))
        packet = -(-place // PACKET_SAMPLES) % self._packets
        return Match(packet, float(correlation[place]) / rms if rms else 0.0)
