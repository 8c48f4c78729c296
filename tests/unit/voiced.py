"""Opus packets of something like a voice, which carry in-band FEC where it is loud."""

from __future__ import annotations

import numpy as np

from protocol.opus import Encoder

FRAME = 960


def voiced_packets(count: int) -> list[bytes]:
    """`count` frames of 20 ms: a pitch of 150 Hz and its overtones, swelling thrice a second."""
    t = np.arange(count * FRAME) / 48_000
    voice = sum(np.sin(2 * np.pi * 150 * k * t) / k for k in range(1, 12))
    pcm = (0.1 * voice * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)
    encoder = Encoder(fec=True, expected_loss_percent=25, bitrate=24_000)
    return [encoder.encode(pcm[i : i + FRAME]) for i in range(0, len(pcm), FRAME)]
