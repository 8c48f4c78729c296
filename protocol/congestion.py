"""A path that is too narrow for what is sent: it shows before anything is lost, by a queue.

A queue that is never empty for a second is what tells: delay that comes and goes is jitter.  What
a sender takes back it gives again after a while; if that was too soon, the next while is twice as
long.  (After LEDBAT, RFC 6817: least delays of now against least delays of lately.)
"""

from typing import Final

from protocol.reception import QUEUE_MS

LEAST_HOLD: Final = 10  # reports of none, in a row, until as much as ever is sent
MOST_HOLD: Final = 40


class Congestion:
    """What to do about the queues that a receiver reports (reception.py)."""

    __slots__ = ("_hold", "_quiet", "congested")

    def __init__(self) -> None:
        self.congested = False
        self._quiet = 0  # reports of no queue in a row
        self._hold = LEAST_HOLD

    def report(self, queue_ms: int) -> None:
        if queue_ms >= QUEUE_MS:
            self.congested = True
            self._quiet = 0
            return
        self._quiet += 1
        if self.congested and self._quiet >= self._hold:
            self.congested = False
            self._hold = min(2 * self._hold, MOST_HOLD)
            self._quiet = 0
        elif not self.congested and self._quiet >= MOST_HOLD:
            self._hold = LEAST_HOLD
