"""What no proper client sends: sources stay bounded in memory and delay, and count what it was."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from protocol.jitter import MAX_CONCEALED_SAMPLES, MAX_SURPLUS_NS, JitterStats
from protocol.opus import Encoder, Samples
from protocol.packets import UplinkAudio
from protocol.path_delay import MAX_MARGIN_MS, MS
from spaces_server.mixer.source import FRAME_SAMPLES, Source

TICK_NS = 20 * MS
SECONDS = 30
MOST_DELAY_NS = MAX_MARGIN_MS * MS + MAX_SURPLUS_NS + TICK_NS
MOST_HELD = MOST_DELAY_NS // TICK_NS  # packets of 20 ms

Arrival = tuple[int, UplinkAudio]  # ns


def tone(samples: int, channels: int = 1) -> Samples:
    sound = (0.2 * np.sin(2 * np.pi * 200 * np.arange(samples) / 48_000)).astype(np.float32)
    return sound if channels == 1 else np.stack([sound, sound], axis=1)


def opus(samples: int, channels: int = 1) -> bytes:
    """A packet of so many samples, one of many that are alike."""
    encoder = Encoder(channels=channels)
    return encoder.encode(tone(samples, channels))


def played(arrivals: Iterator[Arrival]) -> tuple[JitterStats, int]:
    """Half a minute of it, of which every packet is counted; -> (counts, the most packets that
    were held after a tick)."""
    source = Source(0)
    stats = source.stats
    out = np.zeros(FRAME_SAMPLES, np.float32)
    upcoming = next(arrivals)
    most_held = given = 0
    for tick in range(SECONDS * 50):
        now_ns = tick * TICK_NS + 10 * MS
        while upcoming[0] <= now_ns:
            source.receive(upcoming[1], upcoming[0])
            upcoming = next(arrivals)
            given += 1
        source.fill(out, now_ns)
        assert np.isfinite(out).all()
        held = stats.accepted - stats.decoded - stats.dropped - stats.overflow
        most_held = max(most_held, held)
    assert stats.accepted + stats.late + stats.duplicate + stats.malformed == given
    return stats, most_held


def steady(
    payload: bytes, step_samples: int, every_ns: int, jump: int = 0, at: int = 10**9
) -> Iterator[Arrival]:
    """Packets whose timestamps grow by step_samples, one each every_ns; from number `at` on they
    are `jump` samples further."""
    for number in range(10**9):
        timestamp = number * step_samples + (jump if number >= at else 0)
        yield number * every_ns, UplinkAudio(timestamp % 2**32, 0, payload)


@pytest.mark.parametrize("speed", [2.0, 1.1])
def test_a_clock_that_runs_too_fast(speed: float) -> None:
    stats, most_held = played(steady(opus(960), 960, round(TICK_NS / speed)))
    assert most_held <= MOST_HELD
    assert stats.delay_ns <= MOST_DELAY_NS
    assert stats.decoded >= 0.99 * SECONDS * 50  # it sounds all the time
    assert stats.dropped + stats.shortened_samples / 960 >= (speed - 1) * SECONDS * 50 - MOST_HELD


@pytest.mark.parametrize("speed", [0.9, 0.5])
def test_a_clock_that_runs_too_slowly(speed: float) -> None:
    stats, most_held = played(steady(opus(960), 960, round(TICK_NS / speed)))
    assert most_held <= MOST_HELD
    made_up = stats.concealed_samples + stats.lengthened_samples
    assert made_up > 0 or stats.talkspurts > 10  # the rest is silence
    assert stats.decoded >= 0.8 * SECONDS * 50 * speed


@pytest.mark.parametrize("samples", [120, 240, 480, 1_920, 2_880])
def test_packets_of_any_length(samples: int) -> None:
    stats, _ = played(steady(opus(samples), samples, samples * 62_500 // 3))
    assert stats.delay_ns <= 100 * MS
    assert stats.concealed_samples <= 2 * max(samples, 960)
    assert stats.decoded * samples >= 0.99 * SECONDS * 48_000 - 3 * samples


def test_packets_of_120_ms() -> None:
    """Code 3 of RFC 6716, 3.2.5: six frames of 20 ms in one packet."""
    one = opus(960)
    payload = bytes((one[0] | 3, 6)) + one[1:] * 6  # six of the same length
    stats, _ = played(steady(payload, 5_760, 120 * MS))
    assert stats.malformed == 0
    assert stats.decoded >= SECONDS * 1_000 / 120 - 3
    assert stats.delay_ns <= 300 * MS


def test_stereo_in_a_space_of_one_channel() -> None:
    stats, _ = played(steady(opus(960, channels=2), 960, TICK_NS))
    assert stats.corrupt == stats.malformed == 0
    assert stats.decoded >= SECONDS * 50 - 5


@pytest.mark.parametrize("jump", [2**31, -(2**31) + 1, 48_000 * 10, -48_000 * 10, 2**32 - 960])
def test_timestamps_that_jump(jump: int) -> None:
    """By more than the 2 s of a buffer it begins anew, once; one frame back is nothing new."""
    stats, most_held = played(steady(opus(960), 960, TICK_NS, jump=jump, at=1_000))
    assert stats.reset == (jump != 2**32 - 960)
    assert stats.duplicate == (jump == 2**32 - 960)
    assert most_held <= 2
    assert stats.delay_ns <= 2 * TICK_NS
    assert stats.decoded >= SECONDS * 50 - 5


def test_timestamps_that_wrap_are_nothing_special() -> None:
    start = 2**32 - 480 * 960
    stats, _ = played(steady(opus(960), 960, TICK_NS, jump=start, at=0))
    assert stats.reset == stats.late == stats.dropped == 0
    assert stats.decoded >= SECONDS * 50 - 3


def test_timestamps_that_run_backwards() -> None:
    """They are late until they are 2 s behind, which is a jump: one frame of each 2 s is played."""
    stats, most_held = played(steady(opus(960), -960, TICK_NS))
    assert stats.late >= 0.95 * SECONDS * 50
    assert SECONDS / 3 <= stats.reset <= SECONDS / 2 + 1
    assert stats.decoded <= stats.reset + 3
    assert stats.concealed_samples <= (stats.reset + 1) * MAX_CONCEALED_SAMPLES
    assert most_held <= 2
    assert stats.delay_ns <= 2 * TICK_NS


def test_corrupted_opus_is_counted() -> None:
    draw = random.Random(3)
    good = opus(960)

    def spoilt() -> Iterator[Arrival]:
        for when, audio in steady(good, 960, TICK_NS):
            some = bytearray(good)
            for _ in range(3):
                some[draw.randrange(len(some))] ^= 1 << draw.randrange(8)
            cut = some[: draw.randrange(len(some))]
            yield when, UplinkAudio(audio.timestamp, 0, bytes(draw.choice([some, cut])))

    stats, most_held = played(spoilt())
    assert min(stats.corrupt, stats.malformed) > 0
    assert stats.corrupt + stats.malformed > 10
    assert stats.reset == 0
    assert most_held <= 5
    assert stats.delay_ns <= 100 * MS


def test_a_flood_of_frames() -> None:
    """Ten times as many as there is time for."""
    stats, most_held = played(steady(opus(960), 960, TICK_NS // 10))
    assert most_held <= MOST_HELD
    assert stats.delay_ns <= MOST_DELAY_NS
    assert stats.overflow + stats.dropped + stats.late + stats.reset > SECONDS * 50
