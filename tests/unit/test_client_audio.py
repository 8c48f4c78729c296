"""The client's sound: files in real time, the ring between threads, voices real and made up."""

from __future__ import annotations

import asyncio
import heapq
import os
import struct
import subprocess
import sys
import wave
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import miniaudio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.profile import VOICE, Profile
from spaces_client import devices, voice
from spaces_client.audio import BLOCK_SAMPLES, SAMPLE_RATE_HZ, AudioError, Samples
from spaces_client.paced import Ticker
from spaces_client.synth import synthesise_voice
from spaces_client.voice import VoiceProcessor
from spaces_client.wav import Resampler, WavInput, WavOutput, read_blocks, to_pcm16

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
BLOCK_NS = 20_000_000
START_S = 1000.0


class Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualTime:
    """The clock and the timers of an event loop, without the waiting."""

    def __init__(self) -> None:
        self.now_s = START_S
        self._timers: list[tuple[float, int, Timer]] = []
        self._made = 0

    def time(self) -> float:
        return self.now_s

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        timer = Timer(callback)
        self._made += 1
        heapq.heappush(self._timers, (when, self._made, timer))
        return timer

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self._timers and self._timers[0][0] <= end_s:
            when, _, timer = heapq.heappop(self._timers)
            self.now_s = max(self.now_s, when)
            if timer.callback:
                timer.callback()
        self.now_s = end_s

    @property
    def waiting(self) -> int:
        return sum(timer.callback is not None for _, _, timer in self._timers)


def sine(hz: float, rate_hz: int, samples: int, amplitude: float = 0.5) -> NDArray[np.float64]:
    wave_: NDArray[np.float64] = amplitude * np.sin(2 * np.pi * hz * np.arange(samples) / rate_hz)
    return wave_


def write_wav(
    path: Path, mono: NDArray[np.float64], rate_hz: int, kind: str = "int16", channels: int = 1
) -> Path:
    """A WAV in which every channel holds the same sound but for an offset that sums to zero."""
    offsets = np.linspace(-0.2, 0.2, channels) if channels > 1 else np.zeros(1)
    frames = mono[:, None] + offsets
    if kind == "float32":
        data, bits, tag = frames.astype("<f4").tobytes(), 32, 3
    else:
        bits, tag = int(kind.removeprefix("int")), 1
        scaled = np.clip(np.rint(frames * 2 ** (bits - 1)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if bits == 8:
            data = (scaled + 128).astype("u1").tobytes()
        else:
            wide = scaled.astype("<i4").reshape(-1, 1).view("u1")
            data = wide[:, : bits // 8].tobytes()
    frame_bytes = channels * bits // 8
    fmt = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * frame_bytes, frame_bytes, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(data))
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body) + len(data)) + body + data)
    return path


def db(samples: NDArray[np.floating]) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-20))


# --- reading


@pytest.mark.parametrize(
    ("kind", "channels", "rate_hz", "error_db"),
    [
        ("int8", 1, 8_000, -45),
        ("int16", 1, 48_000, -85),
        ("int16", 2, 44_100, -80),
        ("int24", 1, 11_025, -80),
        ("int24", 6, 96_000, -80),
        ("int32", 2, 16_000, -80),
        ("float32", 1, 22_050, -80),
        ("float32", 3, 44_101, -80),
    ],
)
def test_any_pcm_becomes_48_khz_mono(
    tmp_path: Path, kind: str, channels: int, rate_hz: int, error_db: float
) -> None:
    path = write_wav(tmp_path / "a.wav", sine(440, rate_hz, rate_hz), rate_hz, kind, channels)
    blocks = list(read_blocks(path))
    assert {block.shape for block in blocks} == {(BLOCK_SAMPLES,)}
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    assert len(blocks) == 50
    heard = np.concatenate(blocks)
    # The very ends lean on the silence around the file.
    inner = slice(2_000, -2_000)
    expected = sine(440, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ)
    assert db(heard[inner] - expected[inner]) - db(expected[inner]) < error_db


@pytest.mark.parametrize(
    ("rate_hz", "tone_hz", "survives"),
    [
        (16_000, 6_500, True),
        (44_100, 17_000, True),
        (24_000, 10_000, True),
        (96_000, 20_000, True),
        (96_000, 25_000, False),
        (96_000, 40_000, False),
        (192_000, 60_000, False),
    ],
)
def test_resampling_leaves_no_images_and_no_aliases(
    rate_hz: int, tone_hz: float, survives: bool
) -> None:
    resampler = Resampler(rate_hz, SAMPLE_RATE_HZ)
    tone = sine(tone_hz, rate_hz, 2 * rate_hz).astype(np.float32)
    heard = np.concatenate((resampler.process(tone), resampler.flush())).astype(np.float64)
    assert len(heard) == 2 * SAMPLE_RATE_HZ
    window = np.kaiser(65_536, 20)
    power = np.abs(np.fft.rfft(heard[4_800:][: len(window)] * window)) ** 2
    full = 0.125 * len(window) * np.sum(window**2) / 2  # what a tone of amplitude 0.5 would have
    at = round(tone_hz / SAMPLE_RATE_HZ * len(window))
    kept = power[at - 12 : at + 13].sum() if survives else 0.0
    assert 10 * np.log10((power.sum() - kept) / full) < -80
    if survives:
        assert 10 * np.log10(kept / full) == pytest.approx(0, abs=0.1)


@settings(deadline=None, max_examples=40)
@given(
    rate_hz=st.sampled_from([8_000, 11_025, 44_100, 44_101, 96_000]),
    cuts=st.lists(st.integers(0, 700), max_size=12),
)
def test_resampling_piecewise_is_resampling_at_once(rate_hz: int, cuts: list[int]) -> None:
    sound = np.random.default_rng(1).uniform(-1, 1, 2_000).astype(np.float32)
    at_once = Resampler(rate_hz, SAMPLE_RATE_HZ)
    expected = np.concatenate((at_once.process(sound), at_once.flush()))
    piecewise = Resampler(rate_hz, SAMPLE_RATE_HZ)
    parts = np.split(sound, np.minimum(np.cumsum(cuts), len(sound)).astype(int))
    heard = np.concatenate([*map(piecewise.process, parts), piecewise.flush()])
    assert len(heard) == len(expected) == -(-len(sound) * SAMPLE_RATE_HZ // rate_hz)
    np.testing.assert_allclose(heard, expected, atol=1e-6)


def test_silence_is_silence_at_any_width(tmp_path: Path) -> None:
    for kind in ("int8", "int16", "int24", "int32", "float32"):
        path = write_wav(tmp_path / f"{kind}.wav", np.zeros(9_600), 48_000, kind)
        # The decoder's 8-bit silence is off by its own rounding, far below one 16-bit step.
        assert np.abs(np.concatenate(list(read_blocks(path)))).max() < 1e-6


def test_a_float_file_may_hold_anything(tmp_path: Path) -> None:
    wild = np.array([np.nan, np.inf, -np.inf, 7.0, -7.0] * 200)
    path = write_wav(tmp_path / "wild.wav", wild, 48_000, "float32")
    heard = np.concatenate(list(read_blocks(path)))
    np.testing.assert_array_equal(heard[:5], [0, 1, -1, 1, -1])
    assert np.abs(heard).max() <= 1


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no sound, it is a sentence")
    (tmp_path / "cut.wav").write_bytes(
        write_wav(tmp_path / "whole.wav", sine(440, 48_000, 480), 48_000).read_bytes()[:20]
    )
    write_wav(tmp_path / "silent.wav", np.zeros(0), 48_000)
    write_wav(tmp_path / "slow.wav", np.zeros(10), 5)
    for name, reason in {
        "missing.wav": "No such file",
        ".": "directory",
        "empty.wav": "is empty",
        "text.wav": "is not a WAV file",
        "cut.wav": "is not a WAV file",
        "silent.wav": "has no sound",
        "slow.wav": "5 Hz",
    }.items():
        with pytest.raises(AudioError, match=reason) as caught:
            WavInput(tmp_path / name)
        assert "\n" not in str(caught.value)


# --- a file as a microphone


async def test_wav_input_keeps_real_time(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", sine(440, 48_000, 48_000 + 100), 48_000)
    clock = VirtualTime()
    pushed: list[tuple[Samples, int, float]] = []
    source = WavInput(path, scheduler=clock)
    source.start(lambda block, at_ns: pushed.append((block, at_ns, clock.now_s)))
    ended = asyncio.create_task(source.finished())

    clock.run(0.99)
    await asyncio.sleep(0)
    assert len(pushed) == 50
    assert not ended.done()
    clock.run(1.0)
    await ended

    assert len(pushed) == 51
    start_ns = round(START_S * 1e9)
    for number, (_, at_ns, now_s) in enumerate(pushed):
        assert at_ns == pytest.approx(start_ns + number * BLOCK_NS, abs=1_000)
        assert now_s == pytest.approx(START_S + number * 0.02)
    # The file does not end on a block: the rest of the last one is silence.
    assert np.any(pushed[-1][0][:100])
    assert not np.any(pushed[-1][0][100:])
    assert clock.waiting == 0


async def test_wav_input_catches_up_with_a_hiccup_but_not_with_a_long_halt(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", sine(440, 48_000, 480_000), 48_000)
    clock = VirtualTime()
    times: list[int] = []
    source = WavInput(path, scheduler=clock)
    source.start(lambda block, at_ns: times.append(at_ns))
    clock.run(0.1)
    assert len(times) == 6  # at 0, 20, ... 100 ms

    clock.now_s += 0.1  # nobody ran the loop for 100 ms
    clock.run(0)
    assert len(times) == 11
    assert np.ptp(np.diff(times)) <= 1_000

    clock.now_s += 5.0
    clock.run(0.1)
    assert 11 + 5 <= len(times) <= 11 + 7
    source.stop()


def test_a_ticker_can_be_postponed() -> None:
    """Even by what it calls just now."""
    clock = VirtualTime()
    times: list[int] = []

    def tick(deadline_ns: int) -> None:
        times.append(deadline_ns)
        if len(times) == 3:
            ticker.postpone(0.005)

    ticker = Ticker(tick, clock)
    clock.run(0.1)
    ticker.cancel()
    assert clock.waiting == 0
    assert np.diff(times) / 1e6 == pytest.approx([20, 20, 25, 20], abs=0.01)


async def test_a_file_can_be_postponed(tmp_path: Path) -> None:
    """What it holds comes later, whole."""
    path = write_wav(tmp_path / "a.wav", sine(440, 48_000, 48_000), 48_000, "float32")
    clock = VirtualTime()
    source = WavInput(path, scheduler=clock)
    assert source.postpone(240) == 0, "it has not begun"
    blocks: list[Samples] = []
    times: list[int] = []

    def push(block: Samples, at_ns: int) -> None:
        blocks.append(block)
        times.append(at_ns)
        if len(times) == 3:
            assert source.postpone(240) == 240

    source.start(push)
    clock.run(2.0)
    assert len(blocks) == 50
    assert np.diff(times)[:4] / 1e6 == pytest.approx([20, 20, 25, 20], abs=0.01)
    np.testing.assert_array_equal(
        np.concatenate(blocks), sine(440, 48_000, 48_000).astype(np.float32)
    )


async def test_wav_input_loops_without_a_seam(tmp_path: Path) -> None:
    # 440 periods in 44,100 samples: the sine goes on through the end of the file.
    path = write_wav(tmp_path / "a.wav", sine(440, 44_100, 44_100), 44_100, "float32")
    clock = VirtualTime()
    blocks: list[Samples] = []
    source = WavInput(path, loop=True, scheduler=clock)
    source.start(lambda block, at_ns: blocks.append(block))
    ended = asyncio.create_task(source.finished())
    clock.run(3.51)
    await asyncio.sleep(0)
    assert len(blocks) == 176
    assert not ended.done()
    heard = np.concatenate(blocks)
    expected = sine(440, SAMPLE_RATE_HZ, len(heard))
    assert np.abs(heard[2_000:] - expected[2_000:]).max() < 1e-3

    source.stop()
    source.stop()
    await ended
    clock.run(1)
    assert len(blocks) == 176


# --- a file as speakers


def test_wav_output_writes_what_it_pulls(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    clock = VirtualTime()
    sound = sine(440, 48_000, 50 * BLOCK_SAMPLES).astype(np.float32)
    asked: list[int] = []

    def pull(out: Samples, now_ns: int) -> None:
        out[:] = sound[len(asked) * BLOCK_SAMPLES :][:BLOCK_SAMPLES]
        asked.append(now_ns)

    output = WavOutput(path, scheduler=clock)
    output.start(pull)
    clock.run(0.5)
    # A program that is killed leaves a file that can be played.
    np.testing.assert_array_equal(read_pcm16(path), to_pcm16(sound[: 26 * BLOCK_SAMPLES]))
    clock.run(0.48)
    output.stop()
    output.stop()
    clock.run(1)
    assert len(asked) == 50
    np.testing.assert_allclose(np.diff(asked), BLOCK_NS, atol=1_000)
    np.testing.assert_array_equal(read_pcm16(path), to_pcm16(sound))
    np.testing.assert_allclose(np.concatenate(list(read_blocks(path))), sound, atol=1 / 32768)


def read_pcm16(path: Path) -> NDArray[np.int16]:
    with wave.open(str(path), "rb") as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (48_000, 1, 2)
        frames = file.readframes(file.getnframes())
    assert path.stat().st_size == 44 + len(frames)
    return np.frombuffer(frames, "<i2")


def test_wav_output_that_never_ran_is_an_empty_wav(tmp_path: Path) -> None:
    WavOutput(tmp_path / "out.wav").stop()
    assert len(read_pcm16(tmp_path / "out.wav")) == 0


async def test_wav_output_is_whole_when_its_task_is_cancelled(tmp_path: Path) -> None:
    pulled = asyncio.Event()

    def pull(out: Samples, now_ns: int) -> None:
        out[:] = 0.25
        pulled.set()

    async def session() -> None:
        output = WavOutput(tmp_path / "out.wav")
        output.start(pull)  # on the running loop: its first deadline is now
        try:
            await asyncio.Event().wait()
        finally:
            output.stop()

    task = asyncio.create_task(session())
    await pulled.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(read_pcm16(tmp_path / "out.wav")) == {8192}


def test_wav_output_clips_and_rounds() -> None:
    samples = np.array([-2, -1, -0.4 / 32768, 0.6 / 32768, 0.5, 1, 2], np.float32)
    np.testing.assert_array_equal(to_pcm16(samples), [-32768, -32768, 0, 1, 16384, 32767, 32767])


def test_wav_output_that_cannot_be_created(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="No such file"):
        WavOutput(tmp_path / "nowhere" / "out.wav")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_recording_but_not_the_listening(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = VirtualTime()
    asked: list[int] = []
    output = WavOutput("/dev/full", scheduler=clock)
    output.start(lambda out, now_ns: asked.append(now_ns))
    clock.run(0.99)
    output.stop()
    assert len(asked) == 50
    assert "No space left" in caplog.text
    assert len(caplog.records) <= 3


# --- the ring between the device's thread and the event loop


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["write", "read"]), st.integers(0, 40)), max_size=60),
    st.integers(1, 25),
)
def test_ring_is_a_bounded_queue(steps: list[tuple[str, int]], capacity: int) -> None:
    ring = devices.Ring(capacity)
    model: deque[float] = deque(maxlen=capacity)
    written = overrun = underrun = 0
    for action, count in steps:
        if action == "write":
            overrun += max(0, len(model) + count - capacity)
            samples = np.arange(written + 1, written + count + 1, dtype=np.float32)
            written += count
            model.extend(samples.tolist())
            ring.write(samples)
        else:
            expected = [model.popleft() if model else None for _ in range(count)]
            underrun += expected.count(None)
            out = np.full(count, -1, np.float32)
            ring.read(out)
            assert out.tolist() == [value or 0.0 for value in expected]
        assert len(ring) == len(model)
    assert (ring.overrun_samples, ring.underrun_samples) == (overrun, underrun)


# --- devices


def test_no_backend_is_the_null_backend() -> None:
    assert miniaudio.Backend.NULL not in devices.REAL_BACKENDS
    assert len(devices.REAL_BACKENDS) > 0


NO_DEVICES = """
import asyncio, sys
from spaces_client.devices import AudioError, DeviceInput, DeviceOutput, list_devices
from spaces_client.devices import measure_microphone, play_tone

async def main():
    print(list_devices())
    def unused(block, now_ns):
        raise AssertionError
    for start in (
        lambda: DeviceInput().start(unused), lambda: DeviceInput(0).start(unused),
        lambda: DeviceOutput().start(unused), lambda: DeviceOutput("any").start(unused),
    ):
        try:
            start()
        except AudioError as error:
            print(error)
    for check in (measure_microphone(), play_tone()):
        try:
            await check
        except AudioError as error:
            print(error)
    print("and this is our own", file=sys.stderr)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="hides the devices in Linux's ways")
def test_without_devices_it_says_what_to_do(tmp_path: Path) -> None:
    # Real backends that find nothing, whatever this machine has.
    nowhere = str(tmp_path / "nowhere")
    environment = os.environ | {
        "PULSE_SERVER": f"unix:{nowhere}",
        "XDG_RUNTIME_DIR": nowhere,
        "ALSA_CONFIG_PATH": nowhere,
        "JACK_DEFAULT_SERVER": "no-such-server",
        "JACK_NO_START_SERVER": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", NO_DEVICES],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    no_microphone = "no microphone found; connect one or use --input FILE.wav"
    no_speakers = "no speakers found; connect some or use --output FILE.wav"
    assert done.stdout.splitlines() == [
        "[]",
        *[no_microphone] * 2,
        *[no_speakers] * 2,
        no_microphone,
        no_speakers,
    ]
    # ALSA and JACK had a lot to say; only our own words reach the terminal.
    assert done.stderr == "and this is our own\n"


@pytest.fixture
def pretend_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """miniaudio's null backend, let in for once: real threads at real time, without hardware."""
    monkeypatch.setattr(devices, "REAL_BACKENDS", (miniaudio.Backend.NULL,))


@pytest.mark.usefixtures("pretend_devices")
async def test_microphone_thread_feeds_the_loop() -> None:
    five = asyncio.Event()
    pushed: list[tuple[Samples, int]] = []

    def push(block: Samples, captured_ns: int) -> None:
        pushed.append((block, captured_ns))
        if len(pushed) == 5:
            five.set()

    microphone = devices.DeviceInput()
    microphone.start(push)
    ended = asyncio.create_task(microphone.finished())
    await asyncio.wait_for(five.wait(), 10)
    assert not ended.done()
    microphone.stop()
    microphone.stop()
    await asyncio.wait_for(ended, 1)
    assert all(block.shape == (BLOCK_SAMPLES,) for block, _ in pushed)
    stamps = [captured_ns for _, captured_ns in pushed]
    assert stamps == sorted(stamps)
    count = len(pushed)
    await asyncio.sleep(0)  # what was under way when it stopped
    assert len(pushed) == count


@pytest.mark.usefixtures("pretend_devices")
async def test_a_microphone_is_postponed_by_whole_callbacks() -> None:
    """What its thread gives, given here: 10 ms at a time."""
    microphone = devices.DeviceInput()
    pushed: list[Samples] = []
    microphone.start(lambda block, captured_ns: pushed.append(block))
    microphone.stop()
    microphone._push = lambda block, captured_ns: pushed.append(block)
    pushed.clear()
    microphone.ring = devices.Ring(8 * BLOCK_SAMPLES)
    microphone._callback_samples = 0
    assert microphone.postpone(700) == 0, "nothing is known of the device"
    here: Any = SimpleNamespace(in_loop=lambda call: call())  # instead of its thread
    device = microphone._capture(here)
    next(device)
    samples = np.arange(10 * 480, dtype=np.float32)
    for callback in samples.reshape(-1, 480)[:4]:
        device.send(bytearray(callback.tobytes()))
    assert [block[0] for block in pushed] == [0, 960]
    assert microphone.postpone(479) == 0
    assert microphone.postpone(700) == 480
    for callback in samples.reshape(-1, 480)[4:]:
        device.send(bytearray(callback.tobytes()))
    assert [block[0] for block in pushed] == [0, 960, 2_400, 3_360]
    assert all(len(block) == BLOCK_SAMPLES for block in pushed)


@pytest.mark.usefixtures("pretend_devices")
@pytest.mark.parametrize(("profile", "period_samples"), [(VOICE, 480), (Profile(480), 240)])
async def test_speakers_thread_drains_the_loop(profile: Profile, period_samples: int) -> None:
    ten = asyncio.Event()
    fills: list[int] = []

    def pull(out: Samples, now_ns: int) -> None:
        assert len(out) == period_samples
        out[:] = 0.1
        fills.append(len(speakers.ring))
        if len(fills) == 10:
            ten.set()

    speakers = devices.DeviceOutput(0)
    speakers.start(pull, profile)
    await asyncio.wait_for(ten.wait(), 10)
    speakers.stop()
    speakers.stop()
    assert max(fills) <= 4 * BLOCK_SAMPLES
    assert speakers.ring.overrun_samples == 0


@pytest.mark.usefixtures("pretend_devices")
async def test_the_tone_that_tells_whether_speakers_work() -> None:
    result = await asyncio.wait_for(devices.play_tone(seconds=0.1), 10)
    assert result.played_ms == 100


def test_a_device_is_chosen_by_index_or_name() -> None:
    names = ["Built-in Audio", "USB Headset", "USB Headset Pro"]
    all_devices = [
        devices.Device("speakers", index, name, miniaudio.Backend.ALSA, None)
        for index, name in enumerate(names)
    ]
    assert devices.choose(all_devices, 1).name == "USB Headset"
    assert devices.choose(all_devices, "2").name == "USB Headset Pro"
    assert devices.choose(all_devices, "built").name == "Built-in Audio"
    assert devices.choose(all_devices, "usb headset").name == "USB Headset"
    with pytest.raises(AudioError, match="more than one speakers called 'usb'"):
        devices.choose(all_devices, "usb")
    with pytest.raises(AudioError, match="no speakers called 'bluetooth'; there are 0: Built-in"):
        devices.choose(all_devices, "bluetooth")


def test_tone_and_level_agree() -> None:
    tone = devices.tone(1.0)
    assert tone.shape == (SAMPLE_RATE_HZ,)
    assert devices.level_dbfs(tone) == pytest.approx(-20, abs=0.2)
    assert np.abs(tone[:10]).max() < 0.001
    assert devices.level_dbfs(np.zeros(0, np.float32)) == -120
    assert devices.level_dbfs(np.ones(960, np.float32)) == 0


# --- voice processing

needs_voice = pytest.mark.skipif(
    not VoiceProcessor.available(), reason="pywebrtc-audio (the extra 'voice') is not installed"
)


def through(voice: VoiceProcessor, near: Samples, far: Samples | None = None) -> Samples:
    blocks = []
    for start in range(0, len(near) - BLOCK_SAMPLES + 1, BLOCK_SAMPLES):
        if far is not None:
            voice.played(far[start : start + BLOCK_SAMPLES])
        blocks.append(voice.process(near[start : start + BLOCK_SAMPLES]))
    assert {block.shape for block in blocks} == {(BLOCK_SAMPLES,)}
    out = np.concatenate(blocks)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= 1
    return out


def echo_of(far: Samples, delay_ms: int) -> Samples:
    """A loudspeaker in a room: a direct path and 100 ms of decaying reverberation."""
    rng = np.random.default_rng(5)
    room = np.zeros(delay_ms * 48 + 4_800)
    tail = np.arange(4_800)
    room[delay_ms * 48 :] = 0.05 * rng.standard_normal(4_800) * np.exp(-tail / 600)
    room[delay_ms * 48] = 0.3
    size = len(far) + len(room)
    spectrum = np.fft.rfft(far, size) * np.fft.rfft(room, size)
    echo: Samples = np.fft.irfft(spectrum, size)[: len(far)].astype(np.float32)
    return echo


@needs_voice
@pytest.mark.parametrize("delay_ms", [40, 120])
def test_echo_is_removed(delay_ms: int) -> None:
    far = synthesise_voice(3, 10.0)
    echo = echo_of(far, delay_ms)
    rest = through(VoiceProcessor(), echo, far)
    converged = slice(5 * SAMPLE_RATE_HZ, None)
    assert db(rest[converged]) < db(echo[converged]) - 15


@needs_voice
def test_the_near_voice_survives_while_the_far_one_echoes() -> None:
    far, near = synthesise_voice(3, 12.0), synthesise_voice(1, 12.0)
    quiet_start = 6 * SAMPLE_RATE_HZ
    near[:quiet_start] = 0
    out = through(VoiceProcessor(), near + echo_of(far, 60), far)
    assert db(out[quiet_start:]) > db(near[quiet_start:]) - 8


@needs_voice
def test_what_is_played_by_halves_of_a_block_is_taken_in_whole_ones() -> None:
    """As a device pulls it; and a device may have been quicker or slower than the microphone."""
    voice, halves = VoiceProcessor(), VoiceProcessor()
    rng = np.random.default_rng(5)
    for _ in range(10):
        near, far = (0.1 * rng.standard_normal((2, BLOCK_SAMPLES))).astype(np.float32)
        voice.played(far)
        halves.played(far[: BLOCK_SAMPLES // 2])
        halves.played(far[BLOCK_SAMPLES // 2 :])
        assert (voice.process(near) == halves.process(near)).all()
    halves.played(far[:480])
    assert halves.process(near).shape == near.shape


@needs_voice
def test_what_the_microphone_leaves_out_is_left_out_of_what_was_played() -> None:
    """The echo goes on being as late as it was."""
    voice, other = VoiceProcessor(), VoiceProcessor()
    rng = np.random.default_rng(6)
    far = (0.1 * rng.standard_normal(3 * BLOCK_SAMPLES)).astype(np.float32)
    near = np.zeros(BLOCK_SAMPLES, np.float32)
    voice.played(far[: BLOCK_SAMPLES + 240])
    voice.left_out(240)
    other.played(far[240 : BLOCK_SAMPLES + 240])
    assert (voice._far == other._far).all()
    assert (voice.process(near) == other.process(near)).all()


@needs_voice
def test_far_blocks_that_nobody_takes_are_dropped() -> None:
    far = synthesise_voice(3, 8.0)
    echo = echo_of(far, 60)
    voice = VoiceProcessor()
    for _ in range(100):
        voice.played(np.full(BLOCK_SAMPLES, 0.1, np.float32))
    # Had they queued up, each block would come two seconds after its echo and nothing would cancel.
    rest = through(voice, echo, far)
    assert db(rest[5 * SAMPLE_RATE_HZ :]) < db(echo[5 * SAMPLE_RATE_HZ :]) - 15


@needs_voice
def test_noise_in_the_pauses_is_reduced() -> None:
    voice = synthesise_voice(0, 12.0)
    noise = (0.003 * np.random.default_rng(2).standard_normal(len(voice))).astype(np.float32)
    out = through(VoiceProcessor(), voice + noise)
    # A pause by now (the filters lag by 16 ms) and one 20 ms before.
    silent = np.abs(voice.reshape(-1, BLOCK_SAMPLES)).max(axis=1) < 1e-6
    pause = silent & np.roll(silent, 1)
    pause[: 5 * 50] = False
    assert pause.sum() > 20
    rest = out.reshape(-1, BLOCK_SAMPLES)[pause]
    assert db(rest) < db(noise) - 6
    # And the voice is still there.
    assert db(out[5 * SAMPLE_RATE_HZ :]) > db(voice[5 * SAMPLE_RATE_HZ :]) - 3


@needs_voice
def test_a_quiet_voice_is_raised_and_a_normal_one_left() -> None:
    normal = synthesise_voice(2, 10.0)
    late = slice(5 * SAMPLE_RATE_HZ, None)
    quiet = normal * 0.1
    assert db(through(VoiceProcessor(), quiet)[late]) > db(quiet[late]) + 12
    assert db(through(VoiceProcessor(), normal)[late]) == pytest.approx(db(normal[late]), abs=6)


@needs_voice
def test_what_is_no_number_does_no_lasting_harm() -> None:
    voice = VoiceProcessor()
    bad = np.full(BLOCK_SAMPLES, np.nan, np.float32)
    voice.played(bad)
    assert np.isfinite(voice.process(bad)).all()
    assert db(through(voice, synthesise_voice(0, 4.0))) > -40


@needs_voice
def test_reset_is_like_new() -> None:
    far = synthesise_voice(3, 4.0)
    near = echo_of(far, 60)
    voice = VoiceProcessor()
    through(voice, synthesise_voice(1, 4.0), synthesise_voice(2, 4.0))
    voice.played(far[:BLOCK_SAMPLES])
    voice.reset()
    np.testing.assert_allclose(
        through(voice, near, far), through(VoiceProcessor(), near, far), atol=0.02
    )


@needs_voice
@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "speech").is_dir(), reason="no recorded speech in ../shared")
def test_echo_of_recorded_speech_is_removed() -> None:
    far = np.concatenate(list(read_blocks(SHARED / "speech" / "en_f.wav")))[: 10 * SAMPLE_RATE_HZ]
    echo = echo_of(far, 80)
    rest = through(VoiceProcessor(), echo, far)
    assert db(rest[5 * SAMPLE_RATE_HZ :]) < db(echo[5 * SAMPLE_RATE_HZ :]) - 15


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice, "webrtc", None)
    assert not VoiceProcessor.available()
    with pytest.raises(AudioError, match="pip install"):
        VoiceProcessor()


# --- voices from nothing


def pitch_hz(voice: Samples) -> float:
    """The median over voiced 43 ms windows of the autocorrelation's first peak, 60 to 300 Hz."""
    found = []
    for start in range(0, len(voice) - 2_048, 2_048):
        window = voice[start : start + 2_048].astype(np.float64)
        if db(window) < -30:
            continue
        spectrum = np.abs(np.fft.rfft(window, 4_096)) ** 2
        correlation = np.fft.irfft(spectrum)[:800]
        lag = 160 + int(np.argmax(correlation[160:]))
        if correlation[lag] > 0.5 * correlation[0]:
            found.append(SAMPLE_RATE_HZ / lag)
    assert len(found) > 20
    return float(np.median(found))


@pytest.mark.parametrize("seed", range(4))
def test_synthesised_voice_is_like_speech(seed: int) -> None:
    voice = synthesise_voice(seed, 15.0)
    assert voice.shape == (15 * SAMPLE_RATE_HZ,)
    assert voice.dtype == np.float32
    assert np.abs(voice).max() < 0.5
    power = np.mean(np.square(voice.reshape(-1, BLOCK_SAMPLES), dtype=np.float64), axis=1)
    active = power > power.max() * 1e-4
    assert 10 * np.log10(power[active].mean()) == pytest.approx(-26, abs=0.5)
    # Phrases and pauses: it is silent for a tenth to a half of the time, in long stretches.
    assert 0.1 < 1 - active.mean() < 0.5
    pauses = np.diff(np.flatnonzero(np.diff(active.astype(int))))
    assert pauses.max() >= 15
    # The syllables' rhythm: the loudness has most of its movement at 2 to 8 Hz.
    rhythm = np.abs(np.fft.rfft(np.sqrt(power) - np.sqrt(power).mean())) ** 2
    hz = np.fft.rfftfreq(len(power), 0.02)
    assert rhythm[(hz > 1) & (hz < 8)].sum() > 3 * rhythm[hz > 8].sum()
    # Formants: nearly all below 5 kHz, but consonants reach above.
    spectrum = np.abs(np.fft.rfft(voice)) ** 2
    hz = np.fft.rfftfreq(len(voice), 1 / SAMPLE_RATE_HZ)
    high = spectrum[hz > 5_000].sum() / spectrum.sum()
    assert 1e-5 < high < 0.2


def test_each_seed_has_a_voice_of_its_own_and_keeps_it() -> None:
    np.testing.assert_array_equal(synthesise_voice(7, 2.0), synthesise_voice(7, 2.0))
    pitches = sorted(pitch_hz(synthesise_voice(seed, 8.0)) for seed in range(5))
    assert pitches[0] > 70
    assert pitches[-1] < 260
    assert min(np.diff(pitches)) > 5


@pytest.mark.parametrize("seconds", [1 / SAMPLE_RATE_HZ, 0.013, 0.5])
def test_any_length_can_be_had(seconds: float) -> None:
    voice = synthesise_voice(1, seconds)
    assert len(voice) == round(seconds * SAMPLE_RATE_HZ)
    assert np.isfinite(voice).all()


def test_a_voice_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        synthesise_voice(1, 0.0)
