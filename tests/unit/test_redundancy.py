"""Losses counted and reported; earlier frames sent again."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.packets import AudioFlag, Copy, UplinkAudio
from protocol.redundancy import (
    DEEPEST,
    MAX_GAP,
    NO_COPIES,
    WINDOW,
    History,
    Losses,
    LossMeter,
    Redundancy,
    Repeater,
)

FRAME = 960


def counted(numbers: list[int]) -> Losses:
    """What is known of the numbers up to WINDOW below the last."""
    meter = LossMeter(numbers[0])
    for number in numbers[1:]:
        meter.count(number)
    for number in range(numbers[-1] + 1, numbers[-1] + WINDOW + 1):
        meter.count(number)
    return meter.take()


def test_nothing_is_lost_of_what_all_comes() -> None:
    losses = counted(list(range(100)))
    assert losses.lost == losses.bursts == 0
    assert losses.expected >= 99


def test_runs_of_losses_are_bursts() -> None:
    came = [n for n in range(200) if n not in {10, 20, 21, 22, 50, 52}]
    losses = counted(came)
    assert (losses.lost, losses.bursts) == (6, 4)


def test_what_is_overtaken_is_not_lost() -> None:
    numbers = [0, 1, 3, 2, 4, 8, 7, 6, 5, *range(9, 60)]
    assert counted(numbers).lost == 0


def test_what_comes_too_late_is_lost() -> None:
    numbers = [*range(10), *range(11, 11 + WINDOW + 5), 10]
    assert counted(numbers).lost == 1


def test_an_interruption_is_no_loss() -> None:
    assert counted([*range(50), *range(50 + MAX_GAP + 1, 700)]).lost == 0


def test_each_report_is_of_its_own_time() -> None:
    meter = LossMeter(0)
    for number in [*range(1, 20), *range(21, 100)]:
        meter.count(number)
    assert meter.take().lost == 1
    for number in range(100, 150):
        meter.count(number)
    assert meter.take() == Losses(50, 0, 0)


@given(st.sets(st.integers(1, 400)), st.integers(0, 2**32))
def test_losses_are_counted_exactly(lost: set[int], seed: int) -> None:
    """However the rest is shuffled within the window."""
    came = [n for n in range(500) if n not in lost]
    shuffle = random.Random(seed)
    came.sort(key=lambda n: n + shuffle.uniform(0, WINDOW / 2) if 0 < n < 450 else n)
    meter = LossMeter(0)
    for number in came[1:]:
        meter.count(number)
    losses = meter.take()
    assert losses.lost == len(lost)
    assert losses.bursts == len([n for n in lost if n - 1 not in lost])


# -- what a sender does


def test_copies_come_with_losses_and_go_some_time_after() -> None:
    redundancy = Redundancy()
    assert redundancy.remedy.copies == NO_COPIES
    for _ in range(5):
        redundancy.report(Losses(50, 3, 2))
    assert len(redundancy.remedy.copies) >= 2
    seconds = 0
    while redundancy.remedy.copies:
        redundancy.report(Losses(50, 0, 0))
        seconds += 1
    assert 20 <= seconds <= 60


def test_more_losses_reach_further_back() -> None:
    reach = []
    for lost in (0, 1, 4, 15):
        redundancy = Redundancy()
        for _ in range(20):
            redundancy.report(Losses(100, lost, min(lost, 3)))
        reach.append(max(redundancy.remedy.copies, default=0))
    assert reach == sorted(set(reach))
    assert reach[0] == 0
    assert reach[-1] <= DEEPEST


def reported(lost: int, bursts: int, reports: int = 30) -> Redundancy:
    redundancy = Redundancy()
    for _ in range(reports):
        redundancy.report(Losses(100, lost, bursts))
    return redundancy


def test_copies_reach_as_far_back_as_bursts_are_long() -> None:
    assert reported(1, 1).remedy.copies == (1,)
    assert max(reported(4, 3).remedy.copies) == 2
    assert max(reported(4, 2).remedy.copies) == DEEPEST - 1
    assert max(reported(15, 3).remedy.copies) == DEEPEST
    assert (
        len(reported(1, 1).remedy.copies)
        < len(reported(5, 2).remedy.copies)
        < len(reported(15, 3).remedy.copies)
    )


def test_fec_is_for_paths_that_lose_much() -> None:
    assert reported(0, 0).remedy.expected_loss_percent == 0
    assert reported(1, 1).remedy.expected_loss_percent == 0
    assert reported(5, 2).remedy.expected_loss_percent == 5
    assert reported(80, 2).remedy.expected_loss_percent == 30


def test_a_single_lost_packet_in_a_minute_costs_nobody_anything() -> None:
    redundancy = Redundancy()
    redundancy.report(Losses(50, 0, 0))
    redundancy.report(Losses(3_000, 1, 1))
    assert redundancy.remedy.copies == NO_COPIES


def frame(number: int, flags: int = 0, opus: bytes = b"") -> UplinkAudio:
    return UplinkAudio(number * FRAME % 2**32, flags, opus)


def test_copies_are_the_same_bytes_as_before_the_oldest_first() -> None:
    history = History()
    for number in range(11):
        history.add(frame(number, AudioFlag.FIRST if number == 0 else 0, bytes([number])))
    assert history.copies((1, 3, 6)) == (
        Copy(48, 0, b"\x04"),
        Copy(24, 0, b"\x07"),
        Copy(8, 0, b"\x09"),
    )


def test_copies_do_not_reach_into_the_talkspurt_before() -> None:
    history = History()
    for number in range(5):
        history.add(frame(number, 0, b"old"))
    history.add(frame(5, AudioFlag.FIRST, b"new"))
    assert history.copies((1, 3)) == ()
    history.add(frame(6))
    assert history.copies((1, 3)) == (Copy(8, AudioFlag.FIRST, b"new"),)


def test_a_fork_goes_its_own_way() -> None:
    history = History()
    history.add(frame(0, 0, b"0"))
    other = history.fork()
    other.add(frame(1, 0, b"1"))
    assert history.copies((1,)) == ()
    assert other.copies((1,)) == (Copy(8, 0, b"0"),)


def test_timestamps_may_wrap_between_a_frame_and_its_copy() -> None:
    history = History()
    history.add(frame(-1, 0, b"before"))
    history.add(frame(0))
    [copy] = history.copies((1,))
    assert copy.timestamp(0) == 2**32 - FRAME
    again = UplinkAudio.unpack(UplinkAudio(0, 0, b"now", (copy,)).pack())
    assert again.copies == (copy,)


@pytest.mark.parametrize("offset", [1, DEEPEST])
def test_what_was_not_sent_is_not_copied(offset: int) -> None:
    history = History()
    assert history.copies((offset,)) == ()
    history.add(frame(0))
    assert history.copies((offset,)) == ()


def test_a_speaker_repeats_what_is_reported_as_lost() -> None:
    repeater = Repeater()
    assert repeater.repeat(frame(0, AudioFlag.FIRST, b"0")).copies == ()
    assert repeater.repeat(frame(1, 0, b"1")).copies == ()
    repeater.redundancy.report(Losses(100, 2, 2))
    assert repeater.redundancy.remedy.copies == (1,)
    assert repeater.repeat(frame(2, 0, b"2")) == replace(
        frame(2, 0, b"2"), copies=(Copy(8, 0, b"1"),)
    )
