"""Queues that are reported: answered with less."""

from protocol.congestion import (
    LEAST_HOLD,
    MOST_HOLD,
    Congestion,
)
from protocol.opus import Encoder
from protocol.reception import QUEUE_MS, Reception
from protocol.redundancy import NO_COPIES, Redundancy, Remedy


def after(congestion: Congestion, *queues_ms: int) -> bool:
    for queue_ms in queues_ms:
        congestion.report(queue_ms)
    return congestion.congested


def test_less_is_sent_at_the_first_report_of_a_queue() -> None:
    congestion = Congestion()
    assert not after(congestion, *[QUEUE_MS - 1] * 20)
    assert after(congestion, QUEUE_MS)


def test_what_comes_back_is_given_less_hope_each_time() -> None:
    congestion = Congestion()
    holds = []
    for _ in range(5):
        assert after(congestion, 200)
        count = 0
        while after(congestion, 0):
            count += 1
        holds.append(count + 1)
    assert holds == [LEAST_HOLD, 2 * LEAST_HOLD, MOST_HOLD, MOST_HOLD, MOST_HOLD]
    assert not after(congestion, *[0] * MOST_HOLD)
    assert after(congestion, 200)
    assert not after(congestion, *[0] * LEAST_HOLD)  # it was long ago


def test_a_queue_that_goes_on_begins_the_wait_anew() -> None:
    congestion = Congestion()
    after(congestion, 200)
    assert after(congestion, *[*[0] * (LEAST_HOLD - 1), 200] * 5)


def test_where_a_queue_loses_packets_nothing_is_sent_twice() -> None:
    redundancy = Redundancy()
    for _ in range(10):
        redundancy.report(Reception(50, 5, 2))
    assert redundancy.remedy.copies != NO_COPIES
    redundancy.report(Reception(50, 5, 2, queue_ms=200))
    assert redundancy.remedy.copies == NO_COPIES
    assert redundancy.remedy.half_rate
    for _ in range(LEAST_HOLD):
        redundancy.report(Reception(50, 5, 2))
    assert redundancy.remedy.copies != NO_COPIES
    assert not redundancy.remedy.half_rate


def test_a_remedy_is_what_an_encoder_does() -> None:
    encoder = Encoder(bitrate=32_000)
    Remedy(expected_loss_percent=10, half_rate=True).apply(encoder, 32_000)
    assert (encoder.bitrate, encoder.fec, encoder.expected_loss_percent) == (16_000, True, 10)
    Remedy().apply(encoder, 32_000)
    assert (encoder.bitrate, encoder.fec, encoder.expected_loss_percent) == (32_000, False, 0)
