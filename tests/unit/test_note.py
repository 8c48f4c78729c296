"""Voice notes: recorded from an input, played to an output, in time that does not pass."""

import asyncio
import contextlib
import heapq
import wave
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from protocol import notes
from protocol.opus import Decoder, Encoder, Samples
from protocol.profile import VOICE, Profile
from spaces_client.audio import BLOCK_SAMPLES, SAMPLE_RATE_HZ, AudioError, Push
from spaces_client.note import BITRATE, play, record
from spaces_client.synth import synthesise_voice
from spaces_client.wav import WavInput, WavOutput

SILENCE = np.zeros(BLOCK_SAMPLES, np.float32)


class Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class QuickTime:
    """The timers of a file that is spoken or written, each as soon as the event loop gets to it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._made = 0

    def time(self) -> float:
        return self.now_s

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        timer = Timer(callback)
        self._made += 1
        heapq.heappush(self._timers, (when, self._made, timer))
        return timer

    async def run(self) -> None:
        while True:
            if self._timers:
                self.now_s, _, timer = heapq.heappop(self._timers)
                if timer.callback is not None:
                    timer.callback()
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def quick_time() -> AsyncIterator[QuickTime]:
    quick = QuickTime()
    running = asyncio.ensure_future(quick.run())
    try:
        yield quick
    finally:
        running.cancel()


class Microphone:
    """An input that says what it is told to, when it is told to."""

    def __init__(self) -> None:
        self.say: Push | None = None
        self.stopped = False

    def start(self, push: Push, profile: Profile = VOICE) -> None:
        self.say = push

    async def finished(self) -> None:
        await asyncio.Event().wait()  # a device never ends by itself

    def stop(self) -> None:
        self.stopped = True


async def recording(microphone: Microphone, stop: asyncio.Event) -> asyncio.Task[bytes]:
    task = asyncio.ensure_future(record(microphone, stop))
    await asyncio.sleep(0)
    assert microphone.say is not None
    return task


def written(path: Path) -> Samples:
    with wave.open(str(path), "rb") as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return (pcm / 32_768).astype(np.float32)


def level(samples: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


def speech(path: Path, seconds: float) -> Samples:
    voice = synthesise_voice(1, seconds)[: int(seconds * SAMPLE_RATE_HZ)]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((voice * 32_767).astype("<i2").tobytes())
    return voice


async def test_what_was_said_is_heard_again(tmp_path: Path) -> None:
    said = speech(tmp_path / "said.wav", 4.0)
    async with quick_time() as quick:
        note = await record(WavInput(tmp_path / "said.wav", scheduler=quick))
        assert notes.duration_ms(note) == 4_000
        assert len(note) * 8 / 4 < 1.4 * BITRATE, "small enough to be carried along"
        output = WavOutput(tmp_path / "heard.wav", scheduler=quick)
        await play(notes.unpack(note), output)
    heard = written(tmp_path / "heard.wav")
    assert 4.0 <= len(heard) / SAMPLE_RATE_HZ <= 4.1
    assert 0.7 < level(heard) / level(said) < 1.3
    window = SAMPLE_RATE_HZ // 10
    loudness = [[level(x[i * window : (i + 1) * window]) for i in range(40)] for x in (said, heard)]
    assert np.corrcoef(np.array(loudness))[0, 1] > 0.9, "loud and quiet where it was said so"


async def test_a_recording_ends_when_told_to() -> None:
    microphone, stop = Microphone(), asyncio.Event()
    task = await recording(microphone, stop)
    assert microphone.say is not None
    for _ in range(10):
        microphone.say(SILENCE, 0)
    stop.set()
    assert notes.duration_ms(await task) == 200
    assert microphone.stopped


async def test_a_note_that_is_full_ends_by_itself() -> None:
    microphone, stop = Microphone(), asyncio.Event()
    task = await recording(microphone, stop)
    assert microphone.say is not None
    for _ in range(notes.MAX_NOTE_MS // 20 + 100):
        microphone.say(SILENCE, 0)
    assert notes.duration_ms(await task) == notes.MAX_NOTE_MS
    assert microphone.stopped


async def test_nothing_is_no_note() -> None:
    microphone, stop = Microphone(), asyncio.Event()
    task = await recording(microphone, stop)
    stop.set()
    with pytest.raises(AudioError, match="nothing was recorded"):
        await task
    assert microphone.stopped


async def test_a_recording_that_is_called_off_lets_go_of_the_microphone() -> None:
    microphone, stop = Microphone(), asyncio.Event()
    task = await recording(microphone, stop)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert microphone.stopped


async def played(packets: list[bytes], path: Path) -> Samples:
    async with quick_time() as quick:
        await play(packets, WavOutput(path, scheduler=quick))
    return written(path)


@pytest.mark.parametrize("samples", [120, 480, 960, 2_880])
async def test_packets_of_any_length_are_played(samples: int, tmp_path: Path) -> None:
    at = np.arange(SAMPLE_RATE_HZ // 2) / SAMPLE_RATE_HZ
    tone = (0.3 * np.sin(2 * np.pi * 440 * at)).astype(np.float32)
    encoder, decoder = Encoder(bitrate=64_000), Decoder()
    packets = [
        encoder.encode(tone[i : i + samples]) for i in range(0, len(tone) - samples + 1, samples)
    ]
    expected = np.zeros(samples * len(packets), np.float32)
    for i, packet in enumerate(packets):
        decoder.decode(packet, expected[i * samples : (i + 1) * samples])
    heard = await played(packets, tmp_path / "heard.wav")
    assert np.allclose(heard[: len(expected)], expected, atol=1e-3)
    assert not heard[len(expected) :].any()


async def test_what_is_damaged_is_passed_over(tmp_path: Path) -> None:
    encoder = Encoder()
    tone = (0.3 * np.sin(np.linspace(0, 20 * np.pi, BLOCK_SAMPLES))).astype(np.float32)
    good = [encoder.encode(tone) for _ in range(5)]
    junk = [b"", b"\xff", b"\xff\xff\xff", bytes([good[0][0] | 3, 63])]
    heard = await played([good[0], *junk, *good[1:], junk[0]], tmp_path / "heard.wav")
    assert 5 <= len(heard) / BLOCK_SAMPLES <= 10
    assert level(heard[2 * BLOCK_SAMPLES : 5 * BLOCK_SAMPLES]) > 0.1


async def test_nothing_to_play_is_over_at_once(tmp_path: Path) -> None:
    assert not (await played([], tmp_path / "heard.wav")).any()
