"""What the talkers of a measurement say: the same for every server, encoded before it begins."""

from itertools import islice
from pathlib import Path

from protocol.opus import Encoder
from protocol.packets import AudioFlag, UplinkAudio
from spaces_client.audio import BLOCK_SAMPLES, AudioError
from spaces_client.crowd import voice_files
from spaces_client.synth import synthesise_voice
from spaces_client.wav import read_blocks

SPEECH_S = 10.0
BITRATE = 32_000
COMPLEXITY = 10  # of a talker's own encoder, as in the client


def encode_speech(talkers: int, folder: Path | None = None) -> list[list[bytes]]:
    """-> for each talker up to 10 s as Opus packets of 20 ms, mono, 32 kbit/s, with no silence
    left out (no DTX).  folder: of WAV files, used in turn; without one the voices are
    synthesised.  Raises AudioError."""
    files = voice_files(folder) if folder is not None else []
    packets = round(SPEECH_S * 48_000) // BLOCK_SAMPLES
    spoken = []
    for number in range(talkers):
        encoder = Encoder(bitrate=BITRATE, complexity=COMPLEXITY)
        if files:
            blocks = list(islice(read_blocks(files[number % len(files)]), packets))
        else:
            blocks = list(synthesise_voice(number, SPEECH_S).reshape(-1, BLOCK_SAMPLES))
        spoken.append([encoder.encode(block) for block in blocks])
    return spoken


class Talk:
    """One talker's endless uplink: its packets over and over, the timestamps going on."""

    def __init__(self, packets: list[bytes]) -> None:
        if not packets:
            raise AudioError("a talker needs something to say")
        self._packets = packets
        self._number = 0

    def next(self) -> bytes:
        """-> the plaintext of the next AUDIO datagram."""
        number = self._number
        self._number += 1
        flags = 0 if number else AudioFlag.FIRST
        opus = self._packets[number % len(self._packets)]
        return UplinkAudio(number * BLOCK_SAMPLES & 0xFFFF_FFFF, flags, opus).pack()
