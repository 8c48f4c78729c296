"""The thread in which the server waits for its database, so that nothing else has to.

1. `submit` queues requests, from any thread.
2. The worker takes everything that is queued: all its commits become one transaction, so that one
   wait for the disk is shared by everyone who acts at the same time.
3. Then it fetches.  A fetch sees every commit before it, and may see some after it.
4. The replies go to `deliver`, commits' and fetches' each in the order of their requests.
5. When nothing is queued, what was deleted is cleared out of the files.

While the database is away, the same step is tried again until it succeeds; the rest waits in its
order.  Nothing is confirmed before it is durable, and nothing is given up but by `close`.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from spaces_server.records import Commit, Drop, Fetch, StoreReply, StoreRequest
from spaces_server.store.database import Database, StoreAwayError

log = logging.getLogger("spaces")

FIRST_WAIT_S = 0.1  # before trying again; then twice as long each time
LONGEST_WAIT_S = 2.0
PATIENCE_S = 5.0  # of close()

T = TypeVar("T")


class _GivenUpError(Exception):
    """close() does not wait any longer."""


class StoreWorker:
    """deliver: gets the replies.  deliver_failure: gets what made the worker stop for good, once,
    if anything does: a mistake in a request or in here, or a StoreError.  Both are called in the
    worker's thread.  The database is the worker's alone until `close` has returned."""

    def __init__(
        self,
        database: Database,
        deliver: Callable[[list[StoreReply]], None],
        deliver_failure: Callable[[Exception], None],
    ) -> None:
        self._database = database
        self._deliver = deliver
        self._deliver_failure = deliver_failure
        self._changed = threading.Condition()  # guards the three below
        self._queue: list[StoreRequest] = []
        self._in_hand = 0
        self._closing = False
        self._give_up = threading.Event()
        self._scrub_in_s: float | None = None  # None: all that was deleted is gone
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    @property
    def behind(self) -> int:
        """How many requests have not been answered yet."""
        with self._changed:
            return len(self._queue) + self._in_hand

    def submit(self, requests: Iterable[StoreRequest]) -> None:
        """Does not wait.  After a failure, or `close`, nothing is answered any more."""
        with self._changed:
            if not self._closing:
                self._queue += requests
                self._changed.notify()

    def close(self, patience_s: float = PATIENCE_S) -> int:
        """Finishes what is queued, as far as that takes no longer than `patience_s`;
        -> how many requests were left undone."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._give_up.set()
            self._thread.join(patience_s)
        return self.behind

    # -- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                if batch := self._take():
                    self._serve(batch)
                elif self._scrub_in_s is not None:
                    self._scrub()
                else:
                    return
        except _GivenUpError:
            log.warning("the store did not come back; %d requests are not done", self.behind)
        except Exception as error:
            with self._changed:
                self._closing = True
            self._deliver_failure(error)

    def _take(self) -> list[StoreRequest]:
        """Waits for requests.  None: it is time to scrub, or else to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing, self._scrub_in_s)
            batch, self._queue = self._queue, []
            self._in_hand = len(batch)
            return batch

    def _serve(self, batch: list[StoreRequest]) -> None:
        commits = [request for request in batch if isinstance(request, Commit)]
        fetches = [request for request in batch if isinstance(request, Fetch)]
        if commits:
            self._persist(partial(self._database.commit, commits))
            if any(isinstance(change, Drop) for commit in commits for change in commit.changes):
                self._scrub_in_s = 0.0
            self._answer([StoreReply(commit.ticket) for commit in commits])
        if fetches:
            rows = [self._persist(partial(self._database.fetch, each.query)) for each in fetches]
            self._answer([StoreReply(fetches[n].ticket, rows[n]) for n in range(len(rows))])

    def _answer(self, replies: list[StoreReply]) -> None:
        with self._changed:
            self._in_hand -= len(replies)
        self._deliver(replies)

    def _persist(self, step: Callable[[], T]) -> T:
        """Does it, if need be again and again."""
        wait_s = FIRST_WAIT_S
        away = False
        while True:
            try:
                done = step()
            except StoreAwayError as error:
                if not away:
                    log.warning("the store is away, and is tried again: %s", error)
                away = True
                if self._give_up.wait(wait_s):
                    raise _GivenUpError from None
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                if away:
                    log.warning("the store is back")
                return done

    def _scrub(self) -> None:
        """Only while there is nothing else to do; put off while somebody else reads the files."""
        try:
            self._database.scrub()
            self._scrub_in_s = None
        except StoreAwayError:
            self._scrub_in_s = None if self._closing else LONGEST_WAIT_S
