"""What is thought of a path: its quickest transit, what each margin above it costs, whether a queue
grows on it."""

import random
from collections.abc import Iterable, Sequence

import pytest

from protocol import path_delay
from protocol.path_delay import FIRST_FRAMES, FIRST_MARGIN_MS, GUARD_MS, MS, PathDelay

FRAME_NS = 20 * MS
PULL_NS = 10 * MS
FLOOR_MS = 1 + GUARD_MS  # delays are counted in whole milliseconds


def seen(delays_ms: Sequence[float], *, low_delay: bool = False) -> PathDelay:
    """A path over which frames have come with these delays, each in a packet of its own."""
    path = PathDelay(low_delay=low_delay)
    record(path, 0, delays_ms)
    return path


def record(path: PathDelay, first: int, delays_ms: Sequence[float]) -> None:
    for index, ms in enumerate(delays_ms, first):
        transit_ns = round(ms * MS)
        path.record_packet(index * FRAME_NS + transit_ns, transit_ns)
        path.record_frame(transit_ns)


def every(number: int, late_ms: float, count: int = 3_000) -> list[float]:
    """One frame in so many is late."""
    return [late_ms * (index % number == number - 1) for index in range(count)]


def test_little_is_said_before_a_few_frames_have_come() -> None:
    path = seen([0.0] * (FIRST_FRAMES - 1))
    assert path.target_ms == FIRST_MARGIN_MS
    assert path.pulls_to_move(0, PULL_NS, FRAME_NS) == 1
    assert path.pulls_to_move(300 * MS, PULL_NS, FRAME_NS) == 0


def test_a_calm_path_costs_a_guard() -> None:
    assert seen([0.0] * 3_000).target_ms == FLOOR_MS
    assert seen([300.0] * 3_000).target_ms == FLOOR_MS  # the quickest is what counts


@pytest.mark.parametrize(("one_in", "waits"), [(10, True), (100, True), (5_000, False)])
def test_what_comes_late_is_waited_for_while_it_is_worth_it(one_in: int, waits: bool) -> None:
    path = seen(every(one_in, 15.0, 10_000))
    assert path.target_ms == (15 + FLOOR_MS if waits else FLOOR_MS)


def test_with_low_delay_what_is_rare_costs_nothing() -> None:
    delays_ms = every(500, 15.0)
    assert seen(delays_ms).target_ms > seen(delays_ms, low_delay=True).target_ms


def test_what_was_missing_and_comes_is_not_missing_any_more() -> None:
    def target_ms(missing: int, overtaken: int) -> int:
        """Of a path on which one frame in 200 is late, and of 50 so many are missing first."""
        path = PathDelay()
        for index in range(1, 3_001):
            record(path, index, [25.0 * (index % 200 == 0)])
            for number in range(missing if index % 50 == 0 else 0):
                path.record_missing()
                if number < overtaken:
                    path.record_frame(0, missed=True)
        return path.target_ms

    assert target_ms(0, 0) == target_ms(1, 1) > target_ms(1, 0)


def test_a_clock_that_drifts_takes_all_of_it_along() -> None:
    jitter_ms = random.Random(1)
    steady = [jitter_ms.uniform(0, 8) for _ in range(6_000)]
    for ms_a_frame in (0.002, -0.002):  # 100 ppm
        drifting = [ms + index * ms_a_frame for index, ms in enumerate(steady)]
        assert abs(seen(drifting).target_ms - seen(steady).target_ms) <= 2


def test_a_change_of_route_moves_what_was_seen() -> None:
    """By 100 ms: at once where it has become quicker, and when the old one is forgotten where it
    has become slower."""
    path = seen(every(20, 12.0, 1_000))
    before = path.target_ms
    record(path, 1_000, [100.0])
    assert path.latest_ns == 100 * MS
    record(path, 1_001, [100.0] * 600)
    assert path.base_ns == 100 * MS
    assert path.target_ms <= before
    record(path, 1_601, [0.0])
    assert path.base_ns == 0
    assert path.target_ms >= 100, "what came lately would be late by that, if it came again"


def test_moves_are_by_as_many_pulls_as_are_cheapest() -> None:
    path = seen(every(5, 18.0))
    in_time_ns = (18 + FLOOR_MS) * MS
    for pulls in (0, 1, 2, -3):
        assert path.pulls_to_move(in_time_ns - pulls * PULL_NS, PULL_NS, FRAME_NS) == pulls


def test_a_frame_late_by_one_of_its_pulls_is_missing_in_that_one_only() -> None:
    path = seen(every(100, 18.0), low_delay=True)
    margin_ns = (18 + FLOOR_MS) * MS - PULL_NS
    assert path.pulls_to_move(margin_ns, PULL_NS, FRAME_NS) == 0, "half of it plays"
    assert path.pulls_to_move(margin_ns, PULL_NS, PULL_NS) == 1, "none of it would"


def test_a_move_back_must_save_more() -> None:
    path = seen([0.0] * 3_000)
    least = next(ms for ms in range(100) if path.pulls_to_move(ms * MS, PULL_NS, FRAME_NS) < 0)
    assert path.pulls_to_move(least * MS, PULL_NS, FRAME_NS, turn=-1.0) == 0
    assert path.pulls_to_move(least * MS, PULL_NS, FRAME_NS, turn=1.0) < 0


def test_copies_are_waited_for_while_they_come() -> None:
    path = seen([0.0] * 300)
    for index in range(300, 900):
        path.record_packet(index * FRAME_NS, 0)
        late = index % 20 == 19
        if late:
            path.copied = path.frames
        path.record_frame(60 * MS * late)
    assert path.target_ms >= 60
    record(path, 900, [0.0] * 3_000)
    assert path.target_ms <= FLOOR_MS


def test_copies_that_were_not_needed_say_how_long_one_would_take() -> None:
    def target_ms(spare: bool) -> int:
        path = PathDelay()
        for index in range(1_000):
            path.record_packet(index * FRAME_NS, 0)
            path.copied = path.frames
            path.record_frame(0)
            if spare:
                path.record_spare_copy(20 * MS)
        return path.target_ms

    assert target_ms(True) == 20 + 1 > target_ms(False)


def test_only_what_rises_steadily_is_a_queue() -> None:
    def expected_ns(delays_ms: Iterable[float]) -> list[int]:
        path = PathDelay()
        found = []
        for index, ms in enumerate(delays_ms):
            path.record_packet(index * FRAME_NS + round(ms * MS), round(ms * MS))
            found.append(path.rise_ns)
        return found

    any_ms = random.Random(2)
    assert not any(expected_ns(any_ms.expovariate(1 / 20) for _ in range(3_000)))
    assert not any(expected_ns(100.0 * (index >= 300) for index in range(600)))
    assert not any(expected_ns(index * 0.002 for index in range(3_000)))  # 100 ppm
    grows_ns = expected_ns(index * 0.5 for index in range(300))
    assert grows_ns[-1] == round(0.5 * MS * path_delay.BLOCK_PACKETS * path_delay.BLOCKS_AHEAD)
    assert max(expected_ns(index * 20.0 for index in range(300))) == path_delay.MAX_RISE_NS
