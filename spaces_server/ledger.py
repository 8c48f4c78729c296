"""What waits for the store: answers that go out when what they tell of is durable.

commit(changes, done)   -> queued; `done()` runs when the store has confirmed it
fetch(query, done)      -> queued; `done(rows)` runs with what the store has found
take()                  -> the requests for the store, in order
receive(reply)          <- the store's
"""

from collections.abc import Callable, Sequence

from spaces_server.records import Change, Commit, Fetch, Query, Rows, StoreReply, StoreRequest

MAX_WAITING = 10_000  # then nothing more is taken
PATIENCE_NS = 5_000_000_000  # a store that has confirmed nothing for so long is stuck


class Ledger:
    """Tickets of the store, and what is to be done with its replies."""

    def __init__(self) -> None:
        self._last_ticket = 0
        self._waiting: dict[int, tuple[int, Callable[[Rows], None]]] = {}
        self._outbox: list[StoreRequest] = []

    def commit(
        self, changes: Sequence[Change], now_ns: int, done: Callable[[], None] | None
    ) -> None:
        ticket = self._ticket(now_ns, lambda _: done() if done is not None else None)
        self._outbox.append(Commit(ticket, tuple(changes)))

    def fetch(self, query: Query, now_ns: int, done: Callable[[Rows], None]) -> None:
        self._outbox.append(Fetch(self._ticket(now_ns, done), query))

    def _ticket(self, now_ns: int, done: Callable[[Rows], None]) -> int:
        self._last_ticket += 1
        self._waiting[self._last_ticket] = (now_ns, done)
        return self._last_ticket

    def take(self) -> list[StoreRequest]:
        requests, self._outbox = self._outbox, []
        return requests

    def receive(self, reply: StoreReply) -> None:
        _, done = self._waiting.pop(reply.ticket)
        done(reply.rows)

    def stuck(self, now_ns: int) -> bool:
        """Whether the store is so far behind that only what cannot wait should be put onto it."""
        if not self._waiting:
            return False
        since_ns, _ = next(iter(self._waiting.values()))
        return now_ns - since_ns >= PATIENCE_NS

    @property
    def crowded(self) -> bool:
        """Whether so much waits that the rest of the room is for what cannot wait."""
        return len(self._waiting) >= MAX_WAITING // 2

    @property
    def full(self) -> bool:
        """Whether nothing at all should be put onto it: memory has an end."""
        return len(self._waiting) >= MAX_WAITING

    @property
    def waiting(self) -> int:
        return len(self._waiting)
