"""A space's feed: what everyone in it is told.

Said once, sealed for each: updates are numbered, gathered for up to GATHER_NS, encoded once and
put into the egress like audio.  They may be lost; a member who sees a gap in the numbers (in the
next batch, or in the answer to a ping) asks for the rest.

Feeds have classes as mixes have: to somebody with a block between them and an author, the author's
update goes out as one that says nothing new.  So the numbers are the same for all, and nothing
tells that something was withheld.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import msgpack
import msgspec

from protocol.connection import MS
from protocol.frames import (
    MAX_FEED_CATCH_UP,
    MAX_FRAME_BYTES,
    ChatUpdate,
    FeedBatch,
    ListenersUpdate,
    ReactionsUpdate,
    Settings,
    Update,
    encode,
    encode_update,
)
from protocol.packets import MAX_PLAINTEXT_BYTES
from protocol.state_hash import StateHash

GATHER_NS = 250 * MS
GATHERED_BY = 2_500  # members; what more of them are told is gathered longer, in proportion,
MAX_GATHER_NS = 1_000 * MS  # so that it costs the server the same: ten thousand datagrams a second
MAX_U32 = 0xFFFF_FFFF
ANSWER_BYTES = MAX_FRAME_BYTES - 100  # of updates, in one answer to `catch_up`
NOBODY: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Entry:
    """authors: accounts; of reactions, one for each that is shown by name.  listeners, hash: the
    state as it is told after this update."""

    update: Update
    authors: tuple[int, ...]
    listeners: int
    hash: int

    def seen(self, hidden: AbstractSet[int]) -> dict[str, Any]:
        """The update, as somebody gets it from whom these authors are hidden."""
        update = self.update
        if not hidden.isdisjoint(self.authors):
            update = self._without(hidden)
        return encode_update(update)

    def _without(self, hidden: AbstractSet[int]) -> Update:
        if isinstance(self.update, ReactionsUpdate):
            stage = zip(self.update.stage, self.authors, strict=True)
            shown = [reaction for reaction, author in stage if author not in hidden]
            return msgspec.structs.replace(self.update, stage=shown)
        return ListenersUpdate(count=self.listeners)


class Feed:
    """`number` is that of the newest update (the first has number 1); `sent` that of the newest
    that has gone out in a batch.  due_ns: when the next batches are to go out, if anything is to
    be told.  listeners: how many listen, as it was told."""

    def __init__(self, space: str, title: str, settings: Settings) -> None:
        self.number = 0
        self.sent = 0
        self.due_ns: int | None = None
        self.listeners = 0
        self._space = space
        self._state = StateHash()
        self._state.set_settings(title, settings)
        self._state.set_listeners(0)
        self._recent: deque[_Entry] = deque(maxlen=MAX_FEED_CATCH_UP)
        empty = FeedBatch(space=space, first=MAX_U32, updates=[], hash=MAX_U32)
        self._room_bytes = MAX_PLAINTEXT_BYTES - len(encode(empty)) - 2  # 2: a longer array's head

    def wake(self, now_ns: int, members: int = 0) -> None:
        """There is something to tell, now or by the time that it is due; members: to how many."""
        if self.number - self.sent >= MAX_FEED_CATCH_UP // 2:
            self.due_ns = now_ns  # before those who miss something can only look anew
        elif self.due_ns is None:
            gather_ns = GATHER_NS * max(members, GATHERED_BY) // GATHERED_BY
            self.due_ns = now_ns + min(gather_ns, MAX_GATHER_NS)

    def add(self, update: Update, authors: tuple[int, ...] = ()) -> None:
        """authors: the accounts whose update it is, for those from whom they are hidden."""
        self._state.apply(update)
        if isinstance(update, ListenersUpdate):
            self.listeners = update.count
        self.number += 1
        self._recent.append(_Entry(update, authors, self.listeners, self._state.value))

    def purge(self, line: int) -> None:
        """A line of chat was taken back: its text is kept no longer, sent or not."""
        for entry in self._recent:
            if isinstance(entry.update, ChatUpdate) and entry.update.line == line:
                entry.update = ListenersUpdate(count=entry.listeners)
                entry.authors = ()

    # -- what was missed -----------------------------------------------------------------------

    def after(
        self, number: int, hidden: AbstractSet[int]
    ) -> tuple[list[dict[str, Any]], int] | None:
        """The updates after `number`, or as many of them as fit into a frame, and the state hash
        after the last; None if they are gone (or are still to come)."""
        entries = self._after(number)
        if entries is None:
            return None
        parts = _parts(entries, hidden, ANSWER_BYTES)
        return next(parts, ([], self._state.value))

    def _after(self, number: int) -> list[_Entry] | None:
        missing = self.number - number
        if not 0 <= missing <= len(self._recent):
            return None
        return list(self._recent)[len(self._recent) - missing :]

    # -- what goes out -------------------------------------------------------------------------

    def take(
        self, hidden_from: Callable[[int], Iterable[int]], members: Iterable[int]
    ) -> list[tuple[bytes, list[int] | None]]:
        """What has not gone out yet: plaintexts of FEED datagrams, and to which members each goes
        (None: all).  hidden_from: of an author (account), the members who are not to see."""
        self.due_ns = None
        unsent = min(self.number - self.sent, len(self._recent))
        first = self.number - unsent + 1
        entries = self._after(self.number - unsent) or []
        self.sent = self.number
        hidden: dict[int, set[int]] = {}
        for author in sorted({author for entry in entries for author in entry.authors}):
            for member in hidden_from(author):
                hidden.setdefault(member, set()).add(author)
        if not hidden:
            return [(data, None) for data in self._batches(first, entries, NOBODY)]
        groups: dict[frozenset[int], list[int]] = {}
        for member in members:
            groups.setdefault(frozenset(hidden.get(member, NOBODY)), []).append(member)
        return [
            (data, group)
            for authors, group in groups.items()
            for data in self._batches(first, entries, authors)
        ]

    def _batches(
        self, first: int, entries: list[_Entry], hidden: AbstractSet[int]
    ) -> Iterator[bytes]:
        for updates, state_hash in _parts(entries, hidden, self._room_bytes):
            yield encode(
                FeedBatch(space=self._space, first=first, updates=updates, hash=state_hash)
            )
            first += len(updates)


def _parts(
    entries: Iterable[_Entry], hidden: AbstractSet[int], room_bytes: int
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Runs of updates that fit into the room, and the state hash after each.  A single update
    always fits, by the limits of its fields."""
    updates: list[dict[str, Any]] = []
    used_bytes = state_hash = 0
    for entry in entries:
        update = entry.seen(hidden)
        size_bytes = len(msgpack.packb(update))
        if updates and used_bytes + size_bytes > room_bytes:
            yield updates, state_hash
            updates, used_bytes = [], 0
        updates.append(update)
        used_bytes += size_bytes
        state_hash = entry.hash
    if updates:
        yield updates, state_hash
