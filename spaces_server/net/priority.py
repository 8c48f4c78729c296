"""Real-time scheduling for the ticks, as long as it helps.

A tick that waits for other programs is late for all listeners.  But a real-time program that takes
more than 95 % of a core is put aside by the kernel for the rest of each second (sched(7),
sched_rt_runtime_us): 50 ms, in which two or three ticks are lost.  So whoever has that much to do
is better off as a program like others.
"""

import os
from collections.abc import Callable

WINDOW_NS = 500_000_000
MOST_LOAD = 0.9  # shares of a core
LOW_LOAD = 0.75


def _schedule(real_time: bool) -> bool:
    """For the calling thread.  -> whether the system has it and lets us (root, CAP_SYS_NICE,
    systemd's CPUSchedulingPolicy=rr)."""
    try:
        policy, priority = (os.SCHED_RR, 1) if real_time else (os.SCHED_OTHER, 0)
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except (AttributeError, OSError):
        return False
    return True


class Priority:
    """real_time: whether the thread has it now."""

    def __init__(self, schedule: Callable[[bool], bool] = _schedule) -> None:
        """schedule: gives real-time priority, or takes it; -> whether it could."""
        self._schedule = schedule
        self._since_ns = 0
        self._busy_ns = 0
        self._may = self.real_time = schedule(True)

    def ticked(self, busy_ns: int, now_ns: int) -> None:
        """The thread had something to do for so long, since it was asked last."""
        self._busy_ns += busy_ns
        elapsed_ns = now_ns - self._since_ns
        if elapsed_ns < WINDOW_NS:
            return
        load = self._busy_ns / elapsed_ns
        self._since_ns, self._busy_ns = now_ns, 0
        if self._may and (load > MOST_LOAD if self.real_time else load < LOW_LOAD):
            self.real_time = not self.real_time
            self._schedule(self.real_time)
