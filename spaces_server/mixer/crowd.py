"""A crowd: listeners who get the packets of up to three ticks in one datagram.

Where many listen, the datagrams are the bill, and a listener who never speaks does not mind another
40 ms.  Nothing is encoded anew: what a class was given at each tick is gathered.  So that a crowd
is no burst at every third tick, its members have their *turns* at different ticks:

    tick             6      7      8      9     10     11
    every tick       6      7      8      9     10     11       (the stage, small spaces)
    turn (3, 0)     4-6                  7-9
    turn (3, 1)            5-7                  8-10
    turn (3, 2)                   6-8                  9-11
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.redundancy import NO_COPIES

Rows = NDArray[np.intp]

FRAME_MS = 20  # one packet of a mix, one tick
MAX_FRAMES = 3  # in one datagram


@dataclass(frozen=True, slots=True)
class Crowd:
    """From where on listeners are a crowd: in a space that has more than `above`, and until it has
    less than 80 % of that.  packet_ms: what they get at a time, at most; 20: no crowds."""

    above: int
    packet_ms: int

    def begins(self, listeners: int) -> bool:
        return listeners > self.above

    def ends(self, listeners: int) -> bool:
        return 10 * listeners < 8 * self.above


NO_CROWDS = Crowd(above=0, packet_ms=FRAME_MS)


class Turn(NamedTuple):
    """Every `frames` ticks, at those whose number divided by `frames` leaves `phase`.  copies: how
    many frames back those are that each packet carries once more."""

    frames: int
    phase: int
    copies: tuple[int, ...] = NO_COPIES

    def at(self, tick: int) -> bool:
        return tick % self.frames == self.phase

    def latest(self, tick: int) -> int:
        """The newest tick of this turn, up to `tick`."""
        return tick - (tick - self.phase) % self.frames


_TURNS = [[Turn(frames, phase) for phase in range(frames)] for frames in range(MAX_FRAMES + 1)]
EVERY_TICK = _TURNS[1][0]


def turn_of(row: int, packet_ms: int) -> Turn:
    """The turn of a row of the egress for those who take `packet_ms` (20 to 60) in one datagram;
    rows are given out one after the other, so the turns are filled alike."""
    frames = packet_ms // FRAME_MS
    return _TURNS[frames][row % frames]


class RowSet:
    """Rows of the egress, as an array that is the same object until they change.  A change costs
    next to nothing; the array is made when it is next wanted, and never written to again."""

    __slots__ = ("_added", "_array", "_removed")

    def __init__(self) -> None:
        self._array: Rows = np.zeros(0, np.intp)
        self._added: dict[int, None] = {}  # and not in the array yet
        self._removed: set[int] = set()  # and in the array still

    def __len__(self) -> int:
        return len(self._array) + len(self._added) - len(self._removed)

    def add(self, row: int) -> None:
        if row in self._removed:
            self._removed.remove(row)
        else:
            self._added[row] = None

    def remove(self, row: int) -> None:
        if row in self._added:
            del self._added[row]
        else:
            self._removed.add(row)

    @property
    def array(self) -> Rows:
        if self._removed:
            gone = np.fromiter(self._removed, np.intp, len(self._removed))
            self._array = self._array[~np.isin(self._array, gone, kind="table")]
            self._removed.clear()
        if self._added:
            new = np.fromiter(self._added, np.intp, len(self._added))
            self._array = np.concatenate((self._array, new))
            self._added.clear()
        return self._array
