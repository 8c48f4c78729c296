"""The replay window against published cases and against a set that remembers everything."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.replay import COUNTER_LIMIT, WINDOW_COUNTERS, ReplayWindow

VECTORS = Path(__file__).resolve().parents[2] / ".." / "shared" / "vectors" / "replay_vectors.json"


@pytest.mark.shared
@pytest.mark.skipif(not VECTORS.exists(), reason="no replay cases beside the project (../shared)")
def test_published_cases() -> None:
    vectors = json.loads(VECTORS.read_text())
    assert vectors["window"] == WINDOW_COUNTERS
    assert len(vectors["cases"]) == 34
    window = ReplayWindow(limit=int(vectors["reject_at_or_above"]))
    for counter, accepted in vectors["cases"]:
        assert window.check(int(counter)) is accepted, counter
        assert window.accept(int(counter)) is accepted, counter


class Model:
    """Says the same by remembering every counter ever taken."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        self.taken: set[int] = set()

    def accept(self, counter: int) -> bool:
        highest = max(self.taken, default=-1)
        fresh = (
            0 <= counter < self.limit
            and counter >= highest - self.size
            and counter not in self.taken
        )
        if fresh:
            self.taken.add(counter)
        return fresh


@given(
    size=st.sampled_from([1, 2, 7, 64, WINDOW_COUNTERS]),
    steps=st.lists(
        st.one_of(
            st.integers(-80, 80),
            st.integers(-8_200, 8_200),
            st.integers(0, 2**40),
            st.just(1),
        ),
        max_size=120,
    ),
    start=st.sampled_from([0, 1, 5, 8_128, COUNTER_LIMIT - 50]),
)
def test_agrees_with_the_model(size: int, steps: list[int], start: int) -> None:
    window, model = ReplayWindow(size), Model(size, COUNTER_LIMIT)
    highest = start
    for step in steps:
        counter = max(0, highest + step)
        expected = model.accept(counter)
        assert window.check(counter) is expected
        assert window.accept(counter) is expected
        assert window.check(counter) is False
        if expected:
            highest = max(highest, counter)


def test_check_changes_nothing() -> None:
    window = ReplayWindow()
    assert window.check(9_000)
    assert window.check(0)
    window.commit(0)
    assert window.check(9_000)
    assert not window.check(0)


def test_a_forged_far_counter_does_no_harm_before_commit() -> None:
    window = ReplayWindow()
    window.commit(0)
    assert window.check(COUNTER_LIMIT - 1)
    assert window.accept(1)


def test_limits() -> None:
    window = ReplayWindow()
    assert not window.check(COUNTER_LIMIT)
    assert window.accept(COUNTER_LIMIT - 1)
    assert not window.check(COUNTER_LIMIT)
    assert window.accept(COUNTER_LIMIT - 1 - WINDOW_COUNTERS)
    assert not window.accept(COUNTER_LIMIT - 2 - WINDOW_COUNTERS)


def test_the_bitmap_stays_within_the_window() -> None:
    # Thousands of windows live in one server, so their size is a promise.
    window = ReplayWindow()
    for counter in range(0, 100_000, 2):
        assert window.accept(counter)
    assert window._missing.bit_length() == WINDOW_COUNTERS

    in_order = ReplayWindow()
    for counter in range(20_000):
        assert in_order.accept(counter)
    assert in_order._missing == 0
