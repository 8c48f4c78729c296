"""A path that is too narrow for what is sent: it shows before anything is lost, by a queue.

    receiver    QueueDelay: how much later than it could what comes comes -> once a second
    sender      Congestion: what was reported lately -> whether to send less

A queue that is never empty for a second is what tells: delay that comes and goes is jitter.  What
a sender takes back it gives again after a while; if that was too soon, the next while is twice as
long.  (After LEDBAT, RFC 6817: least delays of now against least delays of lately.)
"""

from typing import Final

MS: Final = 1_000_000  # nanoseconds
QUEUE_MS: Final = 50  # so much is a queue
LEAST_HOLD: Final = 10  # reports of none, in a row, until as much as ever is sent
MOST_HOLD: Final = 40


class QueueDelay:
    """The least that a packet was late by, since it was asked last."""

    __slots__ = ("_least_ns",)

    def __init__(self) -> None:
        self._least_ns: int | None = None

    def record(self, late_ns: int) -> None:
        """late_ns: of one packet, against the quickest of the last seconds."""
        if self._least_ns is None or late_ns < self._least_ns:
            self._least_ns = late_ns

    def take_ms(self) -> int:
        """0 if nothing was recorded."""
        least_ns, self._least_ns = self._least_ns, None
        return 0 if least_ns is None else max(0, least_ns) // MS


class Congestion:
    """What to do about the queues that a receiver reports."""

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
