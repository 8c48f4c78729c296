"""WAV files to Opus packets and back, as fast as it goes: voice notes and evidence."""

import wave
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from protocol import notes
from protocol.opus import (
    Decoder,
    Encoder,
    OpusError,
    Samples,
    packet_samples,
)
from spaces_client.audio import SAMPLE_RATE_HZ, AudioError
from spaces_client.note import BITRATE, MAX_PACKETS
from spaces_client.wav import read_blocks, to_pcm16

MAX_PAUSE_SAMPLES = 2 * SAMPLE_RATE_HZ  # longer pauses tell nothing more


def note_of(path: Path) -> bytes:
    """A voice note (protocol/notes.py) of a WAV file.  Raises AudioError."""
    encoder = Encoder(bitrate=BITRATE, complexity=10)
    packets: list[bytes] = []
    for block in read_blocks(path):
        if len(packets) == MAX_PACKETS:
            most_s = notes.MAX_NOTE_MS // 1_000
            raise AudioError(f"{path} is longer than a voice note, which has {most_s} s at most")
        packets.append(encoder.encode(block))
    return notes.pack(packets)


def in_a_row(packets: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The packets with the timestamps that they have if there is no pause between them.
    Raises OpusError."""
    at = 0
    for packet in packets:
        yield at, packet
        at += packet_samples(packet)


def write_recording(path: Path, recording: Iterable[tuple[int, bytes]]) -> float:
    """recording: (timestamp in samples of 1/48,000 s, modulo 2**32, Opus packet), in order.
    -> seconds of sound written to a WAV file.  Raises AudioError."""
    written = 0
    try:
        with path.open("wb") as whole, wave.open(whole, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE_HZ)
            for samples in _decoded(recording):
                file.writeframes(to_pcm16(samples).tobytes())
                written += len(samples)
    except OSError as error:
        raise AudioError(f"cannot write {path}: {error.strerror}") from error
    return written / SAMPLE_RATE_HZ


def _decoded(recording: Iterable[tuple[int, bytes]]) -> Iterator[Samples]:
    decoder = Decoder()
    due: int | None = None
    for timestamp, packet in recording:
        try:
            pcm: Samples = np.zeros(packet_samples(packet), np.float32)
            decoder.decode(packet, pcm)
        except OpusError:
            continue  # somebody else's, and damaged: the rest can still be heard
        pause = 0 if due is None else (timestamp - due) & 0xFFFF_FFFF
        if pause < 1 << 31:  # else it came late
            yield np.zeros(min(pause, MAX_PAUSE_SAMPLES), np.float32)
        yield pcm
        due = timestamp + len(pcm)
