"""WAV files as a microphone and as speakers, in real time.

A file has no clock of its own, so both run on the event loop's: one block at each absolute
deadline, 20 ms apart. A file is decoded and resampled a block at a time as it plays (well under a
millisecond of work), so its length never matters.
"""

from __future__ import annotations

import asyncio
import logging
import math
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import miniaudio
import numpy as np
from numpy.typing import NDArray

from protocol.profile import VOICE, Profile
from spaces_client.audio import (
    BLOCK_MS,
    BLOCK_SAMPLES,
    SAMPLE_RATE_HZ,
    AudioError,
    AudioInput,
    AudioOutput,
    Pull,
    Push,
    Samples,
    cut,
)
from spaces_client.paced import Scheduler, Ticker

log = logging.getLogger(__name__)

_MIN_RATE_HZ: Final = 1_000
_MAX_RATE_HZ: Final = 384_000
_MAX_SILENT_BLOCKS: Final = 50  # written at once
# The sizes in a RIFF header are 32 bits wide.
_MAX_WAV_DATA_BYTES: Final = 2**32 - 64


class Resampler:
    """Streaming, band-limited conversion of a mono signal from one rate to another.

    A polyphase windowed sinc (Kaiser): output sample n stands at input position n * from / to, and
    each of the possible fractions has its own row of taps. The stop band, beyond the lower of the
    two Nyquist frequencies, lies 80 dB or more down; the outermost 9% of the pass band slopes.
    Source: J. O. Smith, "Digital Audio Resampling", CCRMA.
    """

    _ZERO_CROSSINGS: Final = 32
    _WINDOW: Final = np.kaiser(8193, 8.0)[4096:]  # from its middle to its edge
    _MAX_TABLE_ROWS: Final = 1_000  # 44.1 kHz has 160; an odd rate's taps are worked out as needed

    def __init__(self, from_hz: int, to_hz: int) -> None:
        common = math.gcd(from_hz, to_hz)
        self._phases = to_hz // common
        self._step = from_hz // common
        # Relative to the input's rate: going down, the sinc widens to the output's Nyquist.
        self._bandwidth = min(1.0, to_hz / from_hz)
        self._half = math.ceil(self._ZERO_CROSSINGS / self._bandwidth)
        self._table: Samples | None = None
        if self._phases <= self._MAX_TABLE_ROWS:
            self._table = self._taps(np.arange(self._phases))
        # A filter's half of silence before the first sample centres it on the first output.
        self._pending = np.zeros(self._half - 1, np.float32)
        self._position = 0  # of the next output, in 1/phases of an input sample from _pending[0]

    def _taps(self, phase: NDArray[np.int64]) -> Samples:
        """One row of taps for each phase: (n,) to (n, 2 * half)."""
        offset = np.arange(1 - self._half, self._half + 1)  # taps relative to the input's floor
        distance = phase[:, None] / self._phases - offset
        # The transition band ends at Nyquist: what is below passes or slopes, nothing folds back.
        cutoff = self._bandwidth * (1 - 1.45 / self._ZERO_CROSSINGS)
        taps = np.sinc(cutoff * distance)
        taps *= np.interp(np.abs(distance) / self._half, np.linspace(0, 1, 4097), self._WINDOW)
        # Each phase passes a constant unchanged, or the constant would whistle at the phases' rate.
        taps /= taps.sum(axis=1, keepdims=True)
        result: Samples = taps.astype(np.float32)
        return result

    def process(self, samples: Samples) -> Samples:
        """Take any number of samples (n,); return the output that is complete so far (m,)."""
        self._pending = np.concatenate((self._pending, samples))
        width = 2 * self._half
        last = len(self._pending) - width  # the last position that has all its taps
        count = max(0, ((last + 1) * self._phases - 1 - self._position) // self._step + 1)
        if last < 0 or count == 0:
            return np.zeros(0, np.float32)
        positions = self._position + np.arange(count) * self._step
        base, phase = np.divmod(positions, self._phases)
        windows = np.lib.stride_tricks.sliding_window_view(self._pending, width)
        taps = self._taps(phase) if self._table is None else self._table[phase]
        out: Samples = np.einsum("nt,nt->n", windows[base], taps)
        following = self._position + count * self._step
        keep = min(following // self._phases, len(self._pending))
        self._pending = self._pending[keep:]
        self._position = following - keep * self._phases
        return out

    def flush(self) -> Samples:
        """The output that was waiting for more input, as if silence followed."""
        return self.process(np.zeros(self._half, np.float32))


def read_blocks(path: Path, *, loop: bool = False, channels: int = 1) -> Iterator[Samples]:
    """Blocks of shape (960,) of a WAV file: mixed to mono, at 48 kHz, the last filled with silence.
    With 2 `channels`, of shape (960, 2): the file's first two, or its only one in both.

    Any PCM width (8, 16, 24, 32 bits, or float), number of channels and rate from 1 to 384 kHz.
    With `loop` the file follows itself without a seam, for ever. The file is opened at once, not at
    the first block: raises AudioError when it is missing, unreadable, empty or not a WAV.
    """
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise AudioError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise AudioError(f"{path} is empty; choose a WAV file with sound in it")
    not_wav = AudioError(f"{path} is not a WAV file that can be read; convert it to 16-bit PCM WAV")
    if head[:4] not in (b"RIFF", b"RIFX", b"RF64"):
        # The decoder reads other formats as well, but by their extension or by guessing.
        raise not_wav
    try:
        info = miniaudio.wav_get_file_info(str(path))
    except (miniaudio.MiniaudioError, ValueError, ZeroDivisionError) as error:
        raise not_wav from error
    if not _MIN_RATE_HZ <= info.sample_rate <= _MAX_RATE_HZ:
        raise AudioError(f"{path} has a rate of {info.sample_rate} Hz; convert it to 48000 Hz")
    if not info.num_frames:
        raise AudioError(f"{path} has no sound in it; choose another WAV file")
    if channels == 1:
        return _convert(path, info, loop, _mono)
    right = min(1, info.nchannels - 1)
    sides = (_convert(path, info, loop, side) for side in (_channel(0), _channel(right)))
    return (np.stack(pair, axis=1) for pair in zip(*sides, strict=True))


def _mono(frames: Samples) -> Samples:
    mixed: Samples = frames.mean(axis=1, dtype=np.float32)
    return mixed


def _channel(number: int) -> Callable[[Samples], Samples]:
    return lambda frames: frames[:, number]


def _convert(
    path: Path, info: miniaudio.SoundFileInfo, loop: bool, pick: Callable[[Samples], Samples]
) -> Iterator[Samples]:
    """pick: makes one channel of all, shape (n, channels)."""
    rate_hz = info.sample_rate
    # The decoder maps 0..255 onto -1..1, which makes an 8-bit file's silence, 128, a constant.
    eight_bits = info.sample_format is miniaudio.SampleFormat.UNSIGNED8
    resampler = Resampler(rate_hz, SAMPLE_RATE_HZ) if rate_hz != SAMPLE_RATE_HZ else None
    waiting: Samples = np.zeros(0, np.float32)
    while True:
        heard = False
        for frames in _decode(path, info.nchannels, rate_hz):
            heard = True
            mono: Samples = pick(frames)
            if eight_bits:
                mono = ((mono * 255 - 1) / 256).astype(np.float32)
            waiting = np.concatenate((waiting, resampler.process(mono) if resampler else mono))
            while len(waiting) >= BLOCK_SAMPLES:
                yield waiting[:BLOCK_SAMPLES].clip(-1, 1)
                waiting = waiting[BLOCK_SAMPLES:]
        if not (loop and heard):  # a file that was emptied while it loops must not spin here
            break
    if resampler:
        waiting = np.concatenate((waiting, resampler.flush()))
    padding = -len(waiting) % BLOCK_SAMPLES
    waiting = np.concatenate((waiting, np.zeros(padding, np.float32)))
    for start in range(0, len(waiting), BLOCK_SAMPLES):
        yield waiting[start : start + BLOCK_SAMPLES].clip(-1, 1)


def _decode(path: Path, channels: int, rate_hz: int) -> Iterator[Samples]:
    """Pieces of about 20 ms, shape (n, channels), at the file's own rate."""
    try:
        yield from (
            # A float file may hold anything; what is no number is silence.
            np.nan_to_num(
                np.frombuffer(piece, np.float32).reshape(-1, channels), posinf=1, neginf=-1
            )
            for piece in miniaudio.stream_file(
                str(path),
                miniaudio.SampleFormat.FLOAT32,
                nchannels=channels,
                sample_rate=rate_hz,
                frames_to_read=max(1, rate_hz * BLOCK_MS // 1000),
            )
        )
    except miniaudio.MiniaudioError as error:
        log.warning("cannot read on in %s: %s", path, error)


class WavInput(AudioInput):
    """A WAV file spoken into the microphone in real time; see `read_blocks` for what is accepted.

    `scheduler` is the running event loop unless another clock is given. Raises AudioError.
    """

    def __init__(
        self, path: str | Path, *, loop: bool = False, scheduler: Scheduler | None = None
    ) -> None:
        self._path, self._loop = Path(path), loop
        read_blocks(self._path)  # says at once what is wrong with it
        self._pieces: Iterator[Samples] | None = None
        self._profile = VOICE
        self._scheduler = scheduler
        self._ticker: Ticker | None = None
        self._ended = asyncio.Event()
        self._played_out = asyncio.Event()

    def start(self, push: Push, profile: Profile = VOICE) -> None:
        if self._pieces is None or self._profile != profile:
            self._profile = profile
            blocks = read_blocks(self._path, loop=self._loop, channels=profile.channels)
            self._pieces = cut(blocks, profile.frame_samples)
        pieces = self._pieces

        def tick(now_ns: int) -> None:
            block = next(pieces, None)
            if block is None:
                self._played_out.set()
                self.stop()
            else:
                push(block, now_ns)

        scheduler = self._scheduler or asyncio.get_running_loop()
        self._ticker = Ticker(tick, scheduler, profile.frame_samples * 1000 / SAMPLE_RATE_HZ)

    def postpone(self, samples: int) -> int:
        """The pause becomes so much longer: nothing of the file is left out."""
        if self._ticker is None:
            return 0
        self._ticker.postpone(samples / SAMPLE_RATE_HZ)
        return samples

    async def finished(self) -> None:
        await self._ended.wait()

    async def played_out(self) -> None:
        """Return when the file has ended; being stopped, as when one leaves the stage, is no end
        of it: started again, it goes on where it was."""
        await self._played_out.wait()

    def stop(self) -> None:
        if self._ticker:
            self._ticker.cancel()
        self._ended.set()


class WavOutput(AudioOutput):
    """What would be heard, written to a 16-bit WAV file at 48 kHz in real time: mono, or stereo
    where the space is for music.

    The recording is as long as it took: what could not be heard in time is silence in it. The
    header is brought up to date with every block, so that the file can be played whichever way the
    program ends. A full disk ends the recording (logged once), not the listening. Raises
    AudioError when the file cannot be created.
    """

    def __init__(self, path: str | Path, *, scheduler: Scheduler | None = None) -> None:
        self._path = Path(path)
        self._scheduler = scheduler
        self._ticker: Ticker | None = None
        self._start_ns: int | None = None
        try:
            self._file = self._path.open("wb")
        except OSError as error:
            raise AudioError(f"cannot write {path}: {error.strerror}") from error
        self._begin_file(1)

    def _begin_file(self, channels: int) -> None:
        self._file.seek(0)
        self._frame_bytes = 2 * channels
        self._wav = wave.open(self._file, "wb")  # noqa: SIM115 - open until stop()
        self._wav.setnchannels(channels)
        self._wav.setsampwidth(2)
        self._wav.setframerate(SAMPLE_RATE_HZ)
        self._writing = True
        self._write(b"")

    def start(self, pull: Pull, profile: Profile = VOICE) -> None:
        if profile.channels != 1:
            self._begin_file(profile.channels)
        block = np.zeros(profile.shape(BLOCK_SAMPLES), np.float32)
        self._scheduler = self._scheduler or asyncio.get_running_loop()

        def tick(now_ns: int) -> None:
            if self._start_ns is None:
                self._start_ns = now_ns
            self._fill_up(now_ns)
            pull(block, now_ns)
            self._write(to_pcm16(block).tobytes())

        self._ticker = Ticker(tick, self._scheduler)

    def stop(self) -> None:
        if self._ticker and self._scheduler:
            self._ticker.cancel()
            self._fill_up(round(self._scheduler.time() * 1e9))
        self._end_file()

    def _fill_up(self, now_ns: int) -> None:
        """Silence for the ticks that were skipped."""
        while self._writing and self._start_ns is not None:
            due = round((now_ns - self._start_ns) / (BLOCK_MS * 1e6))
            blocks = due - self._wav.tell() // BLOCK_SAMPLES
            if blocks <= 0:
                return
            self._write(bytes(self._frame_bytes * BLOCK_SAMPLES * min(blocks, _MAX_SILENT_BLOCKS)))

    def _write(self, pcm: bytes) -> None:
        if not self._writing:
            return
        if self._wav.tell() * self._frame_bytes + len(pcm) > _MAX_WAV_DATA_BYTES:
            log.warning("%s is as long as a WAV file can be; the recording ends", self._path)
            self._end_file()
            return
        try:
            self._wav.writeframes(pcm)
            self._file.flush()
        except OSError as error:
            log.warning("cannot write on in %s: %s", self._path, error.strerror)
            self._end_file()

    def _end_file(self) -> None:
        self._writing = False
        for close in (self._wav.close, self._file.close):
            try:
                close()
            except OSError as error:
                log.warning("cannot complete %s: %s", self._path, error.strerror)


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """Float -1..1 to little-endian 16-bit integers, rounded and clipped."""
    scaled = np.rint(samples * 32768.0)
    pcm: NDArray[np.int16] = np.clip(scaled, -32768, 32767).astype("<i2")
    return pcm
