"""Earlier frames sent again."""

from dataclasses import replace

import pytest

from protocol.packets import AudioFlag, Copy, UplinkAudio
from protocol.reception import Reception
from protocol.redundancy import (
    DEEPEST_SAMPLES,
    NO_COPIES,
    History,
    Redundancy,
    Repeater,
)

FRAME = 960
DEEPEST = DEEPEST_SAMPLES // FRAME


def test_copies_come_with_losses_and_go_some_time_after() -> None:
    redundancy = Redundancy()
    assert redundancy.remedy.copies == NO_COPIES
    for _ in range(5):
        redundancy.report(Reception(50, 3, 2))
    assert len(redundancy.remedy.copies) >= 2
    seconds = 0
    while redundancy.remedy.copies:
        redundancy.report(Reception(50, 0, 0))
        seconds += 1
    assert 20 <= seconds <= 60


def test_more_losses_reach_further_back() -> None:
    reach = []
    for lost in (0, 1, 4, 15):
        redundancy = Redundancy()
        for _ in range(20):
            redundancy.report(Reception(100, lost, min(lost, 3)))
        reach.append(max(redundancy.remedy.copies, default=0))
    assert reach == sorted(set(reach))
    assert reach[0] == 0
    assert reach[-1] <= DEEPEST


def reported(lost: int, bursts: int, reports: int = 30, frame_samples: int = FRAME) -> Redundancy:
    redundancy = Redundancy(frame_samples)
    for _ in range(reports):
        redundancy.report(Reception(100, lost, bursts))
    return redundancy


def test_copies_reach_as_far_back_as_bursts_are_long() -> None:
    assert reported(1, 1).remedy.copies == (1,)
    assert max(reported(6, 5).remedy.copies) == 2
    assert max(reported(3, 2).remedy.copies) == 3
    assert max(reported(15, 3).remedy.copies) == DEEPEST
    assert (
        len(reported(1, 1).remedy.copies)
        < len(reported(5, 2).remedy.copies)
        < len(reported(15, 3).remedy.copies)
    )


@pytest.mark.parametrize("frame_samples", [480, 960])
def test_copies_reach_as_far_in_time_whatever_the_frames_are(frame_samples: int) -> None:
    copies = reported(15, 3, frame_samples=frame_samples).remedy.copies
    repeater = Repeater(frame_samples)
    for _ in range(30):
        repeater.redundancy.report(Reception(100, 15, 3))
    for number in range(20):
        audio = UplinkAudio((number * frame_samples - 3_000) % 2**32, 0, bytes((number,)))
        sent = UplinkAudio.unpack(repeater.repeat(audio).pack())
    assert [copy.back * 120 for copy in sent.copies] == [5_760, 3_840, 1_920]  # 120, 80, 40 ms
    assert [copy.opus for copy in sent.copies] == [bytes((19 - back,)) for back in copies[::-1]]
    assert reported(1, 1, frame_samples=frame_samples).remedy.copies == (1,)


def test_what_is_kept_for_copies_is_bounded() -> None:
    for step_samples in (0, 1, 120, 480, 960, -960):
        history = History()
        for number in range(1_000):
            history.add(UplinkAudio(number * step_samples % 2**32, 0, b""))
        assert len(history._frames) <= 49


def test_fec_is_for_paths_that_lose_much() -> None:
    assert reported(0, 0).remedy.expected_loss_percent == 0
    assert reported(1, 1).remedy.expected_loss_percent == 0
    assert reported(5, 2).remedy.expected_loss_percent == 0
    assert reported(10, 3).remedy.expected_loss_percent == 10
    assert reported(80, 2).remedy.expected_loss_percent == 30


def test_a_single_lost_packet_in_a_minute_costs_nobody_anything() -> None:
    redundancy = Redundancy()
    redundancy.report(Reception(50, 0, 0))
    redundancy.report(Reception(3_000, 1, 1))
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
    repeater.redundancy.report(Reception(100, 2, 2))
    assert repeater.redundancy.remedy.copies == (1,)
    assert repeater.repeat(frame(2, 0, b"2")) == replace(
        frame(2, 0, b"2"), copies=(Copy(8, 0, b"1"),)
    )
