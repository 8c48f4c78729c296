"""A space's feed: what everyone in it is told.

Said once, sealed for each: updates are numbered, gathered for up to GATHER_NS, encoded once and
put into the egress like audio.  They may be lost; a member who sees a gap in the numbers (in the
next batch, or in the answer to a ping) asks for the rest.
"""

from collections import deque
from typing import Any

from protocol.connection import MS
from protocol.frames import MAX_FEED_CATCH_UP, FeedBatch, Update, encode, encode_update
from protocol.packets import MAX_PLAINTEXT_BYTES

GATHER_NS = 100 * MS


class Feed:
    """`number` is that of the newest update; the first has number 1."""

    def __init__(self, space: str) -> None:
        self._space = space
        self.number = 0
        self._recent: deque[dict[str, Any]] = deque(maxlen=MAX_FEED_CATCH_UP)
        self._unsent = 0
        self._since_ns = 0

    def add(self, update: Update, now_ns: int) -> None:
        if not self._unsent:
            self._since_ns = now_ns
        self.number += 1
        self._unsent = min(self._unsent + 1, MAX_FEED_CATCH_UP)
        self._recent.append(encode_update(update))

    def after(self, number: int) -> list[dict[str, Any]] | None:
        """The updates after `number`; None if they are gone (or are still to come)."""
        missing = self.number - number
        if not 0 <= missing <= len(self._recent):
            return None
        return list(self._recent)[len(self._recent) - missing :]

    @property
    def pending(self) -> bool:
        return self._unsent > 0

    def due(self, now_ns: int) -> bool:
        return self._unsent > 0 and now_ns - self._since_ns >= GATHER_NS

    def take(self) -> list[bytes]:
        """The batches to send now, each the plaintext of one FEED datagram."""
        updates = self.after(self.number - self._unsent) or []
        first = self.number - len(updates) + 1
        self._unsent = 0
        return self._batches(first, updates)

    def _batches(self, first: int, updates: list[dict[str, Any]]) -> list[bytes]:
        """As few batches as fit; a single update always does, by the limits of its fields."""
        if not updates:
            return []
        whole = encode(FeedBatch(space=self._space, first=first, updates=updates))
        if len(whole) <= MAX_PLAINTEXT_BYTES or len(updates) == 1:
            return [whole]
        half = len(updates) // 2
        return self._batches(first, updates[:half]) + self._batches(first + half, updates[half:])
