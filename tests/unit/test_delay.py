"""From mouth to ear, with clocks that are given."""

import random

import pytest

from protocol.clock import MASK, difference, samples_at
from protocol.connection import MS
from protocol.frames import VoiceClock
from protocol.packets import Audible, DownlinkAudio
from protocol.profile import VOICE
from spaces_client.delay import Ears, ServerClock, VoiceOrigin

BLOCK = 960
AHEAD_MS = 2 * 6.5 + 1.5  # two codecs and a limiter
HOUR_NS = 3_600_000 * MS


def asked(clock: ServerClock, server_ns: int, there_ms: float, back_ms: float, now_ns: int) -> None:
    """One exchange; the server's clock is `server_ns` ahead of ours."""
    at_server_ns = now_ns + int(there_ms * MS) + server_ns
    clock.answered(samples_at(at_server_ns), now_ns, now_ns + int((there_ms + back_ms) * MS))


def test_a_difference_of_clocks_goes_round() -> None:
    assert difference(5, MASK) == 6
    assert difference(MASK, 5) == -6
    assert difference(7, 7) == 0


def test_an_hour_is_as_many_samples() -> None:
    assert samples_at(HOUR_NS) == 172_800_000
    assert samples_at(2**32 * 62_500 // 3 + 1_000_000) in (47, 48)


@pytest.mark.parametrize("server_ns", [0, -17 * HOUR_NS - 12_345, 40 * HOUR_NS])
def test_the_servers_clock_is_known_to_half_the_difference_of_the_ways(server_ns: int) -> None:
    clock = ServerClock()
    assert clock.offset is None
    assert clock.error_ns is None
    asked(clock, server_ns, 30, 20, 100 * HOUR_NS)
    assert clock.offset is not None
    assert abs(difference(clock.offset, samples_at(server_ns + 100 * HOUR_NS) -
               samples_at(100 * HOUR_NS) & MASK)) <= 5 * 48 + 2  # fmt: skip
    assert clock.error_ns == 25 * MS


def test_the_quickest_of_the_last_answers_counts() -> None:
    rng = random.Random(3)
    clock = ServerClock()
    for second in range(100):
        asked(clock, HOUR_NS, 10 + rng.expovariate(0.1), 10 + rng.expovariate(0.1), second * 10**9)
    asked(clock, HOUR_NS, 10, 10, 101 * 10**9)
    asked(clock, HOUR_NS, 300, 10, 102 * 10**9)  # a request that was sent again
    assert clock.offset is not None
    assert abs(difference(clock.offset, samples_at(HOUR_NS))) <= 2


def test_late_blocks_do_not_move_the_origin() -> None:
    rng = random.Random(4)
    clock, origin = ServerClock(), VoiceOrigin()
    asked(clock, 0, 1, 1, 0)
    start = MASK - 10 * BLOCK  # wraps soon
    assert origin.offset(clock) is None
    for number in range(400):
        late_ns = rng.randrange(12 * MS)
        origin.captured(start + number * BLOCK & MASK, 10**9 + number * 20 * MS + late_ns)
    offset = origin.offset(clock)
    assert offset is not None
    assert abs(difference(offset, samples_at(10**9) - start & MASK)) < 72  # 1.5 ms


def test_a_clock_that_drifts_is_followed_and_a_jump_at_once() -> None:
    clock, origin = ServerClock(), VoiceOrigin()
    asked(clock, 0, 1, 1, 0)
    at_ns = 0
    for number in range(5_000):
        at_ns = number * 20 * MS * 20_001 // 20_000  # 50 ppm slow: 5 ms in all
        origin.captured(number * BLOCK, at_ns)
    offset = origin.offset(clock)
    assert offset is not None
    assert abs(difference(offset, samples_at(at_ns) - 4_999 * BLOCK)) < 48
    origin.captured(5_000 * BLOCK, at_ns + 3_000 * MS)
    offset = origin.offset(clock)
    assert offset is not None
    assert abs(difference(offset, samples_at(at_ns + 3_000 * MS) - 5_000 * BLOCK)) <= 2


@pytest.mark.parametrize("start", [12_345, MASK - 100_000])
@pytest.mark.parametrize(("speaker_ns", "listener_ns"), [(0, 0), (5 * HOUR_NS, -7 * HOUR_NS)])
def test_the_delay_of_what_is_played(start: int, speaker_ns: int, listener_ns: int) -> None:
    """Three clocks that have nothing in common; all ways take 15 ms."""
    clock, origin = ServerClock(), VoiceOrigin()
    asked(clock, -speaker_ns, 15, 15, speaker_ns + 10 * HOUR_NS)
    theirs = ServerClock()
    asked(theirs, -listener_ns, 15, 15, listener_ns + 10 * HOUR_NS)
    ears = Ears(VOICE)
    for number in range(50):
        captured_ns = 10 * HOUR_NS + number * 20 * MS  # the first of a block, true time
        timestamp = start + number * BLOCK & MASK
        origin.captured(timestamp, speaker_ns + captured_ns)
        offset = origin.offset(clock)
        assert offset is not None
        ears.learn([VoiceClock(seat=3, offset=offset)])
        mixed = 777 + number * BLOCK & MASK
        ears.came(DownlinkAudio(mixed, 0, (Audible(3, 20, timestamp // 120 & 0xFFFF),), b""))
        played_ns = listener_ns + captured_ns + 80 * MS
        ears.played(mixed, played_ns, theirs)
        ears.played(mixed + 480, played_ns + 10 * MS, theirs)  # by halves
    delay_ms = ears.delay_ms(3)
    assert delay_ms is not None
    assert abs(delay_ms - 80 - AHEAD_MS) < 1.5
    assert ears.delay_ms(4) is None
    ears.learn([])
    assert ears.delay_ms(3) is None


def test_what_is_not_known_is_not_guessed() -> None:
    ears, clock = Ears(VOICE), ServerClock()
    ears.came(DownlinkAudio(960, 0, (Audible(3, 20, 5),), b""))
    ears.played(960, 0, clock)  # no clock
    asked(clock, 0, 1, 1, 0)
    ears.played(960, 0, clock)  # no voices
    ears.learn([VoiceClock(seat=3, offset=samples_at(100 * MS))])
    ears.played(960, 0, clock)  # spoken after it was heard: a wrong offset
    ears.played(48_000, 0, clock)  # no such packet
    assert ears.delay_ms(3) is None
