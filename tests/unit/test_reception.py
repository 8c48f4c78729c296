"""What comes of a stream is counted, and reported when there is anything to report."""

import random

from hypothesis import given
from hypothesis import strategies as st

from protocol.reception import (
    MAX_GAP,
    MS,
    QUEUE_MS,
    REPORTS_AFTER_LOSS,
    WINDOW,
    LossMeter,
    QueueDelay,
    Reception,
    Reporter,
)


def counted(numbers: list[int]) -> Reception:
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
    numbers = [0, 1, 3, 2, 4, 6, 5, 8, 7, *range(9, 60)]
    assert counted(numbers).lost == 0


def test_what_is_overtaken_by_many_is_too_late() -> None:
    numbers = [0, 1, 3, 4, 2, 5, 6, 7, *range(9, 30), 8, *range(30, 60)]
    assert counted(numbers).lost == 2


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
    assert meter.take() == Reception(50, 0, 0)


@given(st.sets(st.integers(1, 400)), st.integers(0, 2**32))
def test_losses_are_counted_exactly(lost: set[int], seed: int) -> None:
    """However the rest is shuffled within the window."""
    came = [n for n in range(500) if n not in lost]
    shuffle = random.Random(seed)
    came.sort(key=lambda n: n + shuffle.uniform(0, WINDOW) if 0 < n < 450 else n)
    meter = LossMeter(0)
    for number in came[1:]:
        meter.count(number)
    losses = meter.take()
    assert losses.lost == len(lost)
    assert losses.bursts == len([n for n in lost if n - 1 not in lost])


def test_a_queue_is_what_nothing_came_without() -> None:
    queue = QueueDelay()
    assert queue.take_ms() == 0
    for late_ms in (90, 70, 300):
        queue.record(late_ms * MS)
    assert queue.take_ms() == 70
    queue.record(-5 * MS)  # quicker than all before
    queue.record(90 * MS)
    assert queue.take_ms() == 0


def reports(came: list[bool], late_ms: int = 0) -> list[tuple[int, Reception]]:
    """(number of the datagram at which it was made, report): one datagram each 20 ms."""
    reporter = Reporter(0, 0)
    found = []
    for number, has_come in enumerate(came[1:], start=1):
        if has_come:
            report = reporter.count(number, number * 20 * MS)
            reporter.was_late(late_ms * MS)
            if report is not None:
                found.append((number, report))
    return found


def test_nothing_is_reported_where_all_is_well() -> None:
    assert reports([True] * 1_000, late_ms=QUEUE_MS - 1) == []


def test_the_first_loss_is_reported_as_soon_as_it_is_known() -> None:
    came = [True] * 1_000
    came[510] = came[530] = False
    found = reports(came)
    known = 510 + 1 + WINDOW  # that it was one alone, too
    assert [number for number, _ in found[:3]] == [known, known + 50, known + 100]
    first, second = found[0][1], found[1][1]
    assert (first.lost, first.bursts, second.lost) == (1, 1, 1)
    assert 50 <= first.expected <= 150, "weighed against the last seconds"
    assert second.expected == 50


def test_reports_end_a_while_after() -> None:
    came = [True] * 10_000
    came[510] = False
    assert len(reports(came)) == REPORTS_AFTER_LOSS
    assert len(reports([True] * 500, late_ms=QUEUE_MS)) == 9
