"""Replay window: every packet counter is accepted once, and late ones only within a window.

The bitmap marks what is *missing* below the highest counter, not what was seen. A stream that
arrives in order then needs no bitmap at all, which keeps thousands of windows small; bits appear
with losses and leave with the window's far end. Sizes follow RFC 6479 and WireGuard.
"""

from functools import cache

WINDOW_COUNTERS = 8_128
COUNTER_LIMIT = 2**56 - 2**13  # our counters have 56 bits; keys are renewed long before


@cache
def _mask(size: int) -> int:
    """Bits 0..size, one object for all windows of that size."""
    return (1 << (size + 1)) - 1


class ReplayWindow:
    """The counters received under one key.

    A counter is acceptable once, if it is below `limit` and at most `size` below the highest.
    Ask `check` before the packet is opened, and `commit` only after it has proved authentic.
    """

    __slots__ = ("_highest", "_limit", "_missing", "_size")

    def __init__(self, size: int = WINDOW_COUNTERS, limit: int = COUNTER_LIMIT) -> None:
        self._size = size
        self._limit = limit
        self._highest = -1
        self._missing = 0  # bit i: the counter `highest - i` has not come

    @property
    def highest(self) -> int:
        """The newest counter received; -1 before the first."""
        return self._highest

    def check(self, counter: int) -> bool:
        """Whether `counter` would be accepted now. Changes nothing."""
        behind = self._highest - counter
        if behind < 0:
            return counter < self._limit
        return behind <= self._size and self._missing >> behind & 1 == 1

    def commit(self, counter: int) -> None:
        """Mark as received a counter for which `check` has just said yes."""
        ahead = counter - self._highest
        if ahead <= 0:
            self._missing &= ~(1 << -ahead)
            return
        mask = _mask(self._size)
        if ahead > self._size:
            self._missing = mask - 1
        else:
            # Those jumped over, bits 1 to ahead - 1, are missing from now on.
            self._missing = ((self._missing << ahead) | ((1 << ahead) - 2)) & mask
        self._highest = counter

    def accept(self, counter: int) -> bool:
        """`check`, then `commit` if it passed."""
        if not self.check(counter):
            return False
        self.commit(counter)
        return True
