"""Ticks at absolute deadlines: tick k is due at start + k * period, however late tick k - 1 was.

Event loops count in milliseconds (uvloop's timers, epoll's timeout), so a tick is up to a
millisecond late, never early: a timer that fires before its deadline is set again. Up to MAX_BURST
ticks due at once are made up for one by one; after a longer stall the missed ones are skipped,
because a burst of stale audio helps nobody and would make the next tick late as well.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

MAX_BURST = 3  # ticks that may be made up for at once
LATENESS_SAMPLES = 4096  # 82 s of ticks at 20 ms

_NS_PER_MS = 1_000_000

logger = logging.getLogger(__name__)


class Timer(Protocol):
    def cancel(self) -> None: ...


class TimerLoop(Protocol):
    """The part of an asyncio event loop that a ticker needs."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], None], /) -> Timer: ...


class Ticker:
    """Calls `tick(now_ns)` every `period_ns`, first one period after `start()`.

    `clock` counts in nanoseconds as time.monotonic_ns does. Counts for the operator: `ticks` run,
    `skipped` after stalls, `errors` raised by `tick` (logged; the next tick runs all the same).
    """

    def __init__(
        self,
        period_ns: int,
        tick: Callable[[int], None],
        loop: TimerLoop,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if period_ns <= 0:
            raise ValueError(f"a period of {period_ns} ns")
        self.ticks = 0
        self.skipped = 0
        self.errors = 0
        self._period_ns = period_ns
        self._tick = tick
        self._loop = loop
        self._clock = clock
        self._deadline_ns = 0
        self._timer: Timer | None = None
        self._lateness_ns = np.zeros(LATENESS_SAMPLES, np.int64)  # a ring, indexed by `ticks`

    def start(self) -> None:
        """Start, or start afresh from now."""
        self.stop()
        now_ns = self._clock()
        self._deadline_ns = now_ns + self._period_ns
        self._arm(now_ns)

    def stop(self) -> None:
        """Run no further tick. May be called from within a tick."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lateness(self) -> dict[str, float]:
        """How late the last ticks began, in ms: p50, p99, max (zeros before the first tick)."""
        recent_ns = self._lateness_ns[: min(max(self.ticks, 1), LATENESS_SAMPLES)]
        p50, p99, longest = np.percentile(recent_ns, [50, 99, 100]) / _NS_PER_MS
        return {"p50": float(p50), "p99": float(p99), "max": float(longest)}

    def _arm(self, now_ns: int) -> None:
        # Rounded up to the resolution of the loops: a re-armed timer waits instead of spinning.
        wait_ms = max(0, -((now_ns - self._deadline_ns) // _NS_PER_MS))
        self._timer = self._loop.call_at(self._loop.time() + wait_ms / 1000, self._fire)

    def _fire(self) -> None:
        now_ns = self._clock()
        late_ns = now_ns - self._deadline_ns
        if late_ns < 0:
            self._arm(now_ns)
            return
        missed = late_ns // self._period_ns
        if missed >= MAX_BURST:
            self.skipped += missed
            self._deadline_ns += missed * self._period_ns
        timer = self._timer
        self._run(now_ns, late_ns)
        self._deadline_ns += self._period_ns
        if self._timer is timer:  # the tick did not stop or restart us
            self._arm(self._clock())

    def _run(self, now_ns: int, late_ns: int) -> None:
        self._lateness_ns[self.ticks % LATENESS_SAMPLES] = late_ns
        self.ticks += 1
        try:
            self._tick(now_ns)
        except Exception:
            self.errors += 1
            logger.exception("a tick failed")
