"""Microphones and speakers, through miniaudio.

A device calls back on a thread of its own, when it pleases and for as many samples as it pleases.
That thread touches one small ring and nothing else; the event loop empties or fills the ring in
blocks of 20 ms. No device is ever made up: without one, opening fails with an AudioError.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import miniaudio
import numpy as np

from protocol.profile import VOICE, Profile
from spaces_client.audio import (
    BLOCK_SAMPLES,
    SAMPLE_RATE_HZ,
    AudioError,
    AudioInput,
    AudioOutput,
    Pull,
    Push,
    Samples,
)

log = logging.getLogger(__name__)

Kind = Literal["microphone", "speakers"]

# In order of preference. miniaudio's own list ends with a null backend that swallows sound and
# records silence, which is the one thing this module must never do: hence a list without it.
REAL_BACKENDS: Final = (
    miniaudio.Backend.WASAPI,
    miniaudio.Backend.COREAUDIO,
    miniaudio.Backend.PULSEAUDIO,
    miniaudio.Backend.ALSA,
    miniaudio.Backend.SNDIO,
    miniaudio.Backend.AUDIO4,
    miniaudio.Backend.OSS,
    miniaudio.Backend.JACK,
    miniaudio.Backend.DSOUND,
    miniaudio.Backend.WINMM,
)

_PERIODS: Final = 2
_SILENT_DEVICE_S: Final = 3.0
_MAX_RING_SAMPLES: Final = 6 * BLOCK_SAMPLES

_ADVICE: Final[dict[Kind, str]] = {
    "microphone": "no microphone found; connect one or use --input FILE.wav",
    "speakers": "no speakers found; connect some or use --output FILE.wav",
}


class Ring:
    """A bounded queue of samples between a device's thread and the event loop.

    What is too old for it is dropped (`overrun_samples`), what is missing is silence
    (`underrun_samples`).
    """

    def __init__(self, capacity_samples: int, channels: int = 1) -> None:
        shape = (capacity_samples,) if channels == 1 else (capacity_samples, channels)
        self._buffer: Samples = np.zeros(shape, np.float32)
        self._read_at = 0
        self._fill = 0
        # Held for the time of a copy only, so the device's thread never waits on work.
        self._lock = threading.Lock()
        self.overrun_samples = 0
        self.underrun_samples = 0

    def __len__(self) -> int:
        return self._fill

    def write(self, samples: Samples) -> None:
        """Append (n,) or (n, 2). If there is no room the oldest samples make it: late sound is of
        no use."""
        capacity = len(self._buffer)
        with self._lock:
            lost = max(0, self._fill + len(samples) - capacity)
            self.overrun_samples += lost
            samples = samples[-capacity:]
            kept = min(self._fill, capacity - len(samples))
            self._read_at = (self._read_at + self._fill - kept) % capacity
            self._copy(self._read_at + kept, samples, into_ring=True)
            self._fill = kept + len(samples)

    def read(self, out: Samples) -> None:
        """Fill all of `out`, (n,) or (n, 2), with silence where the ring has run out."""
        with self._lock:
            count = min(len(out), self._fill)
            self._copy(self._read_at, out[:count], into_ring=False)
            self._read_at = (self._read_at + count) % len(self._buffer)
            self._fill -= count
            self.underrun_samples += len(out) - count
        out[count:] = 0

    def _copy(self, at: int, samples: Samples, *, into_ring: bool) -> None:
        at %= len(self._buffer)
        first = min(len(samples), len(self._buffer) - at)
        pairs = (
            (self._buffer[at : at + first], samples[:first]),
            (self._buffer[: len(samples) - first], samples[first:]),
        )
        for inside, outside in pairs:
            if into_ring:
                inside[:] = outside
            else:
                outside[:] = inside


@dataclass(frozen=True)
class Device:
    """A device that can be chosen, by its name or by its index among those of its kind."""

    kind: Kind
    index: int
    name: str
    backend: miniaudio.Backend
    id: Any  # miniaudio's handle


def list_devices() -> list[Device]:
    """All microphones, then all speakers, of the first backend that has any. Empty if none has."""
    for backend in _enabled_backends():
        with _quiet():
            try:
                found = miniaudio.Devices([backend])
            except miniaudio.MiniaudioError:
                continue
            queries: dict[Kind, Callable[[], list[dict[str, Any]]]] = {
                "microphone": found.get_captures,
                "speakers": found.get_playbacks,
            }
            devices = [
                Device(kind, index, info["name"], backend, info["id"])
                for kind, query in queries.items()
                for index, info in enumerate(i for i in _ask(query) if _is_real(backend, i))
            ]
        if devices:
            return devices
    return []


def _ask(query: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    try:
        return query()
    except miniaudio.MiniaudioError:
        return []  # ALSA without a sound card lists a default that cannot be asked about


def _is_real(backend: miniaudio.Backend, info: dict[str, Any]) -> bool:
    """ALSA always has a device called `null`, which swallows all and gives silence."""
    if backend is not miniaudio.Backend.ALSA:
        return True
    return not bytes(miniaudio.ffi.buffer(info["id"])).startswith(b"null\0")


def _enabled_backends() -> list[miniaudio.Backend]:
    enabled = miniaudio.get_enabled_backends()
    return [backend for backend in REAL_BACKENDS if backend in enabled]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ALSA's and JACK's complaints, which they write to file descriptor 2, off the screen.

    They are no news: what cannot be opened is reported as an AudioError.
    """
    try:
        saved = os.dup(2)
    except OSError:  # there is no standard error to keep clean
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _choose(kind: Kind, wanted: str | int) -> Device:
    devices = [device for device in list_devices() if device.kind == kind]
    if not devices:
        raise AudioError(_ADVICE[kind])
    return choose(devices, wanted)


def choose(devices: list[Device], wanted: str | int) -> Device:
    """The device with this index or this name (a part of it will do). Raises AudioError."""
    text = str(wanted).casefold()
    by_index = [device for device in devices if str(device.index) == text]
    exact = [device for device in devices if device.name.casefold() == text]
    partial = [device for device in devices if text in device.name.casefold()]
    for matches in (by_index, exact, partial):
        if len(matches) == 1:
            return matches[0]
    have = ", ".join(f"{device.index}: {device.name}" for device in devices)
    problem = "more than one" if partial else "no"
    raise AudioError(f"{problem} {devices[0].kind} called {wanted!r}; there are {have}")


def _open(kind: Kind, wanted: str | int | None, profile: Profile) -> Any:
    """miniaudio's device, opened and not yet running. Raises AudioError."""
    if wanted is None:
        # The system's default: the backend that can open it knows which that is.
        candidates: list[tuple[miniaudio.Backend, Any]] = [(b, None) for b in _enabled_backends()]
        advice = _ADVICE[kind]
    else:
        device = _choose(kind, wanted)
        candidates = [(device.backend, device.id)]
        advice = f"cannot open {device.name}; is another program using it? See: spaces devices"
    for backend, device_id in candidates:
        common = {
            "nchannels": profile.channels,
            "sample_rate": SAMPLE_RATE_HZ,
            "buffersize_msec": profile.period_samples * 1000 // SAMPLE_RATE_HZ,
            "callback_periods": _PERIODS,
            "device_id": device_id,
            "backends": [backend],
            "app_name": "Spaces",
        }
        with _quiet(), contextlib.suppress(miniaudio.MiniaudioError):
            if kind == "microphone":
                return miniaudio.CaptureDevice(miniaudio.SampleFormat.FLOAT32, **common)
            return miniaudio.PlaybackDevice(miniaudio.SampleFormat.FLOAT32, **common)
    raise AudioError(advice)


class _Running:
    """A device and the loop it serves, from start() to stop()."""

    def __init__(self, kind: Kind, wanted: str | int | None, profile: Profile) -> None:
        self._kind = kind
        self._loop = asyncio.get_running_loop()
        self._device: Any = _open(kind, wanted, profile)
        self._watchdog: asyncio.TimerHandle | None = None
        self._called = False

    def run(self, callback: Generator[Any, Any, None]) -> None:
        next(callback)  # miniaudio wants a generator that waits at its first yield
        try:
            with _quiet():
                self._device.start(callback)
        except miniaudio.MiniaudioError as error:
            self.close()
            raise AudioError(f"cannot start the {self._kind}: {error}") from error
        self._watchdog = self._loop.call_later(_SILENT_DEVICE_S, self._watch)

    def in_loop(self, call: Callable[[], None]) -> None:
        """From the device's thread. Once the loop is closed there is nobody left to tell."""
        self._called = True
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def close(self) -> None:
        if self._watchdog:
            self._watchdog.cancel()
        if self._device is not None:
            self._device.close()
            self._device = None

    def _watch(self) -> None:
        # Not every backend tells that a device has gone (PulseAudio does not): the calls just end.
        if self._called:
            self._called = False
            self._watchdog = self._loop.call_later(_SILENT_DEVICE_S, self._watch)
        else:
            log.warning("the %s no longer answers; was it unplugged?", self._kind)


class DeviceInput(AudioInput):
    """A microphone: the system's default, or one by its name or index (see `list_devices`)."""

    def __init__(self, name_or_index: str | int | None = None) -> None:
        self._wanted = name_or_index
        self._running: _Running | None = None
        self._push: Push | None = None
        self._profile = VOICE
        self._callback_samples = 0  # how many the device gave last
        self._left_out_samples = 0  # before the next frame
        self._stopped = asyncio.Event()
        # What the event loop may be late by before sound is lost.
        self.ring = Ring(_MAX_RING_SAMPLES)

    def start(self, push: Push, profile: Profile = VOICE) -> None:
        self._push = push
        self._profile = profile
        self.ring = Ring(_MAX_RING_SAMPLES, profile.channels)
        self._callback_samples = self._left_out_samples = 0
        self._running = _Running("microphone", self._wanted, profile)
        self._running.run(self._capture(self._running))

    async def finished(self) -> None:
        await self._stopped.wait()

    def stop(self) -> None:
        self._push = None
        if self._running:
            self._running.close()
        self._stopped.set()

    def _capture(self, running: _Running) -> Generator[None, bytearray, None]:
        """In the device's thread: takes bytes of float32 samples, as many as the device likes."""
        while True:
            captured = yield
            samples = np.frombuffer(captured, np.float32).reshape(self._profile.shape(-1))
            self._callback_samples = len(samples)
            self.ring.write(samples)
            running.in_loop(self._drain)

    def _drain(self) -> None:
        now_ns = time.monotonic_ns()
        frame_samples = self._profile.frame_samples
        while self._push and len(self.ring) >= self._left_out_samples + frame_samples:
            taken = self._left_out_samples + frame_samples
            block: Samples = np.empty(self._profile.shape(taken), np.float32)
            self.ring.read(block)
            block = block[self._left_out_samples :]
            self._left_out_samples = 0
            self._push(block, now_ns - len(self.ring) * 1_000_000_000 // SAMPLE_RATE_HZ)

    def postpone(self, samples: int) -> int:
        """By whole callbacks of the device: a frame that is full between two of them waits here."""
        if not self._callback_samples:
            return 0
        self._left_out_samples = samples - samples % self._callback_samples
        return self._left_out_samples


class DeviceOutput(AudioOutput):
    """Speakers: the system's default, or some by name or index (see `list_devices`).

    The ring is topped up to one period more than the most the device has asked for at once: with
    the usual 10 ms it holds 10 to 40 ms, and with any device no more than 120 ms.
    """

    def __init__(self, name_or_index: str | int | None = None) -> None:
        self._wanted = name_or_index
        self._running: _Running | None = None
        self._pull: Pull | None = None
        self._largest_request_samples = 0
        self._profile = VOICE
        self.ring = Ring(_MAX_RING_SAMPLES)

    def start(self, pull: Pull, profile: Profile = VOICE) -> None:
        self._profile = profile
        self._largest_request_samples = profile.period_samples
        self.ring = Ring(_MAX_RING_SAMPLES, profile.channels)
        self._running = _Running("speakers", self._wanted, profile)
        self._pull = pull
        self._fill()
        self._running.run(self._play(self._running))

    @property
    def delay_ms(self) -> float:
        """What waits in the ring, and the device's own buffers."""
        waiting_samples = len(self.ring) + _PERIODS * self._profile.period_samples
        return waiting_samples * 1000 / SAMPLE_RATE_HZ

    def stop(self) -> None:
        self._pull = None
        if self._running:
            self._running.close()

    def _play(self, running: _Running) -> Generator[Samples | bytes, int, None]:
        """In the device's thread: is sent a number of frames, yields that many samples."""
        wanted_samples = yield b""
        while True:
            if wanted_samples > self._largest_request_samples:
                self._largest_request_samples = min(
                    wanted_samples, _MAX_RING_SAMPLES - 2 * BLOCK_SAMPLES
                )
            out: Samples = np.empty(self._profile.shape(wanted_samples), np.float32)
            self.ring.read(out)
            running.in_loop(self._fill)
            wanted_samples = yield out

    def _fill(self) -> None:
        samples = self._profile.period_samples
        block: Samples = np.zeros(self._profile.shape(samples), np.float32)
        while self._pull and len(self.ring) < self._largest_request_samples + samples:
            self._pull(block, time.monotonic_ns())
            self.ring.write(block)


def level_dbfs(samples: Samples) -> float:
    """RMS of (n,) in dB relative to full scale, not below -120."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    return 10 * math.log10(max(power, 1e-12))


def tone(seconds: float, hz: float = 440.0) -> Samples:
    """A sine at -20 dBFS RMS with soft ends (20 ms), float32 (n,) at 48 kHz."""
    at_s = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    ends = np.clip(np.minimum(at_s, seconds - at_s) / 0.02, 0, 1)
    sound: Samples = (0.1 * math.sqrt(2) * ends * np.sin(2 * np.pi * hz * at_s)).astype(np.float32)
    return sound


@dataclass(frozen=True)
class ToneResult:
    played_ms: int
    underrun_ms: int  # silence that had to be put in because the event loop was late


@dataclass(frozen=True)
class LevelResult:
    rms_dbfs: float
    peak_dbfs: float
    captured_ms: int  # 0: the microphone is open but sends nothing
    overrun_ms: int


async def play_tone(name_or_index: str | int | None = None, *, seconds: float = 1.0) -> ToneResult:
    """Play a short tone, and return when it has been heard. Raises AudioError."""
    sound = tone(seconds)
    sound = np.concatenate((sound, np.zeros(-len(sound) % BLOCK_SAMPLES, np.float32)))
    position = 0
    done = asyncio.Event()

    def pull(out: Samples, now_ns: int) -> None:
        nonlocal position
        block = sound[position : position + len(out)]
        out[: len(block)] = block
        out[len(block) :] = 0
        position += len(block)
        if not len(block):
            done.set()

    output = DeviceOutput(name_or_index)
    output.start(pull)
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), seconds + 2)
            # The first silent block was pulled: what is before it is still on its way out.
            await asyncio.sleep(output.delay_ms / 1000)
    finally:
        output.stop()
    return ToneResult(
        played_ms=min(position, len(sound)) * 1000 // SAMPLE_RATE_HZ,
        underrun_ms=output.ring.underrun_samples * 1000 // SAMPLE_RATE_HZ,
    )


async def measure_microphone(
    name_or_index: str | int | None = None,
    *,
    seconds: float = 3.0,
    on_level: Callable[[float], None] | None = None,
) -> LevelResult:
    """Listen for a while; `on_level` gets the level of each block in dBFS. Raises AudioError."""
    blocks: list[Samples] = []

    def push(block: Samples, captured_ns: int) -> None:
        blocks.append(block)
        if on_level:
            on_level(level_dbfs(block))

    microphone = DeviceInput(name_or_index)
    microphone.start(push)
    try:
        await asyncio.sleep(seconds)
    finally:
        microphone.stop()
    heard = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    peak = float(np.abs(heard).max()) if len(heard) else 0.0
    return LevelResult(
        rms_dbfs=level_dbfs(heard),
        peak_dbfs=20 * math.log10(max(peak, 1e-6)),
        captured_ms=len(heard) * 1000 // SAMPLE_RATE_HZ,
        overrun_ms=microphone.ring.overrun_samples * 1000 // SAMPLE_RATE_HZ,
    )
