"""Ticks at absolute deadlines: tick k is due at start + k * period, however late tick k - 1 was.

A tick is as late as its timer (timer.py), never early. Up to MAX_BURST ticks due at once are made
up for one by one: a listener's buffer plays the last of them in time, and the others as far as it
is deep, where ticks that are skipped are a gap for everybody and leave the speakers behind by as
much. After a longer stall the missed ones are skipped: most of the burst would come too late.

Between ticks that have nothing to do the ticker rests, for at most MAX_REST_NS: `due` says for how
long, and `wake` that something has come in. The deadlines stay where they were. While `stride` is
2, only every second one has a tick: those with even numbers.
"""

import logging
import time
from collections.abc import Callable

import numpy as np

from spaces_server.net.timer import Alarm, Timer

MAX_BURST = 10  # ticks that may be made up for at once
MAX_REST_NS = 4_000_000_000
LATENESS_SAMPLES = 4096  # 82 s of ticks at 20 ms

_NS_PER_MS = 1_000_000

logger = logging.getLogger(__name__)


class Ticker:
    """Calls `tick(now_ns)` every `period_ns`, first one period after `start()`.

    `due(now_ns)`: when the next tick has something to do. `stride()`: of how many deadlines one has
    a tick now. `clock` counts in nanoseconds as
    time.monotonic_ns does. Counts for the operator: `ticks` run, `skipped` after stalls, `rested`
    because nothing was due, `errors` raised by `tick` (logged; the next tick runs all the same).
    """

    def __init__(
        self,
        period_ns: int,
        tick: Callable[[int], None],
        timer: Timer,
        clock: Callable[[], int] = time.monotonic_ns,
        due: Callable[[int], int] = lambda now_ns: now_ns,
        stride: Callable[[], int] = lambda: 1,
    ) -> None:
        if period_ns <= 0:
            raise ValueError(f"a period of {period_ns} ns")
        self.ticks = 0
        self.skipped = 0
        self.rested = 0
        self.errors = 0
        self._period_ns = period_ns
        self._tick = tick
        self._timer = timer
        self._clock = clock
        self._due = due
        self._stride = stride
        self._max_rest = MAX_REST_NS // period_ns
        self._deadline_ns = 0
        self._alarm: Alarm | None = None
        self._lateness_ns = np.zeros(LATENESS_SAMPLES, np.int64)  # a ring, indexed by `ticks`
        self._lateness_from = 0

    def start(self) -> None:
        """Start, or start afresh from now."""
        self.stop()
        now_ns = self._clock()
        self._deadline_ns = now_ns + self._period_ns
        self._arm()

    def stop(self) -> None:
        """Run no further tick. May be called from within a tick."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    @property
    def number(self) -> int:
        """Of the tick that runs: how many periods its deadline is after the first tick's."""
        return self.ticks + self.skipped + self.rested - 1

    @property
    def deadline_ns(self) -> int:
        """Of the tick that runs, or else of the next one."""
        return self._deadline_ns

    def wake(self) -> None:
        """Something has come in, so the next tick may be due sooner."""
        if self._alarm is None:
            return
        now_ns = self._clock()
        waiting_ns = self._deadline_ns - max(now_ns, self._due(now_ns))
        early = (waiting_ns - 1) // self._period_ns  # not to a deadline that has had its tick
        early -= -(self.number + 1 - early) % self._stride()
        if early > 0:
            self._alarm.cancel()
            self._deadline_ns -= early * self._period_ns
            self.rested -= early
            self._arm()

    def lateness(self) -> dict[str, float]:
        """How late the last ticks began, in ms: p50, p99, max (zeros before the first tick)."""
        first = max(self._lateness_from, self.ticks - LATENESS_SAMPLES)
        recent_ns = self._lateness_ns[np.arange(first, self.ticks) % LATENESS_SAMPLES]
        if not len(recent_ns):
            return {"p50": 0.0, "p99": 0.0, "max": 0.0}
        recent_ns.sort()  # np.percentile takes as long as a tick, the first time
        shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        last = len(recent_ns) - 1
        return {key: recent_ns[round(share * last)] / _NS_PER_MS for key, share in shares.items()}

    def forget_lateness(self) -> None:
        """`lateness` is of the ticks from now on."""
        self._lateness_from = self.ticks

    def _arm(self) -> None:
        self._alarm = self._timer.call_at(self._deadline_ns / 1e9, self._fire)

    def _fire(self) -> None:
        now_ns = self._clock()
        late_ns = now_ns - self._deadline_ns
        stride = self._stride()
        missed = late_ns // self._period_ns // stride * stride
        if missed >= MAX_BURST * stride:
            self.skipped += missed
            self._deadline_ns += missed * self._period_ns
        alarm = self._alarm
        self._run(now_ns, late_ns)
        self._deadline_ns += self._period_ns
        if self._alarm is alarm:  # the tick did not stop or restart us
            self._rest(self._clock())
            self._arm()

    def _rest(self, now_ns: int) -> None:
        """Moves the deadline to the first one at which something is due."""
        due_ns = self._due(now_ns)
        periods = 0
        if due_ns > max(now_ns, self._deadline_ns):
            periods = min(-((self._deadline_ns - due_ns) // self._period_ns), self._max_rest)
        periods += -(self.number + 1 + periods) % self._stride()
        self._deadline_ns += periods * self._period_ns
        self.rested += periods

    def _run(self, now_ns: int, late_ns: int) -> None:
        self._lateness_ns[self.ticks % LATENESS_SAMPLES] = late_ns
        self.ticks += 1
        try:
            self._tick(now_ns)
        except Exception:
            self.errors += 1
            logger.exception("a tick failed")
