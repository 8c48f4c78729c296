"""What comes of a stream of media, and what does not: counted and reported.

    LossMeter     which numbers of a row of consecutive ones are missing
    QueueDelay    how much later than it could what comes comes
    Reporter      both -> a Reception, each second that there is anything to report

A sender answers with more of the same (redundancy.py), or with less (congestion.py).
"""

from typing import Final, NamedTuple

MS: Final = 1_000_000  # nanoseconds
REPORT_NS: Final = 1_000 * MS  # between two reports
REPORTS_AFTER_LOSS: Final = 60  # or a queue: for the sender to see that it is over
QUEUE_MS: Final = 50  # so much is a queue
# Numbers that are still waited for below the newest.  One that is overtaken by more comes too late
# for who waits as long as it should: frames sent again help against that as well.
WINDOW: Final = 2
MAX_GAP: Final = 500  # a longer one is no loss, but an interruption
_ALL: Final = (1 << WINDOW) - 1


class Reception(NamedTuple):
    """Of so many datagrams, so many were lost, in so many runs; and all that came were later than
    they could by so much."""

    expected: int
    lost: int
    bursts: int
    queue_ms: int = 0


class LossMeter:
    """Counts what a stream of consecutive numbers loses; one that comes within WINDOW of the newest
    has not been lost."""

    __slots__ = ("_bursts", "_came", "_expected", "_losing", "_lost", "_newest")

    def __init__(self, first: int) -> None:
        self._newest = first
        self._came = _ALL  # bit k: newest - k
        self._expected = self._lost = self._bursts = 0
        self._losing = False

    def count(self, number: int) -> None:
        ahead = number - self._newest
        if ahead <= 0:
            self._came |= 1 << -ahead & _ALL
            return
        if ahead > MAX_GAP:
            self._came = _ALL
            self._newest = number
            return
        self._newest = number
        if ahead == 1 and self._came == _ALL:  # nearly always
            self._expected += 1
            self._losing = False
            return
        came = self._came << ahead | 1
        for bit in range(WINDOW + ahead - 1, WINDOW - 1, -1):
            lost = not came >> bit & 1
            self._expected += 1
            self._lost += lost
            self._bursts += lost and not self._losing
            self._losing = lost
        self._came = came & _ALL

    @property
    def lost(self) -> int:
        """What has not been taken yet; 0 within a burst, whose length is not known."""
        return 0 if self._losing else self._lost

    def fade(self) -> None:
        """What came, and nothing was lost of, shall count half from now on."""
        self._expected //= 2

    def take(self) -> Reception:
        """What was counted since it was asked last."""
        reception = Reception(self._expected, self._lost, self._bursts)
        self._expected = self._lost = self._bursts = 0
        return reception


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


class Reporter:
    """Of one stream.  The first loss after a while without any is reported as soon as it is
    known."""

    __slots__ = ("_due_ns", "_left", "_losses", "_queue")

    def __init__(self, first: int, now_ns: int) -> None:
        """first: the number of the first datagram, which has come."""
        self._losses = LossMeter(first)
        self._queue = QueueDelay()
        self._due_ns = now_ns + REPORT_NS
        self._left = 0

    def was_late(self, late_ns: int) -> None:
        """How late the datagram that was counted last was, against the quickest of the last
        seconds."""
        self._queue.record(late_ns)

    def count(self, number: int, now_ns: int) -> Reception | None:
        """Of one more datagram; -> what is to be reported now, if anything is."""
        self._losses.count(number)
        if now_ns < self._due_ns and (self._left or not self._losses.lost):
            return None
        self._due_ns = now_ns + REPORT_NS
        queue_ms = self._queue.take_ms()
        if self._losses.lost or queue_ms >= QUEUE_MS:
            self._left = REPORTS_AFTER_LOSS
        if not self._left:
            self._losses.fade()
            return None
        self._left -= 1
        return self._losses.take()._replace(queue_ms=queue_ms)
