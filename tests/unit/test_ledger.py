"""What waits for the store."""

from collections.abc import Callable

from spaces_server.ledger import MAX_WAITING, PATIENCE_NS, Ledger
from spaces_server.records import (
    Commit,
    Fetch,
    GetPost,
    PostRecord,
    Put,
    Rows,
    SettingRecord,
    StoreReply,
)

CHANGES = (Put(SettingRecord(name="access", value="open")),)
POST = PostRecord(id=3, author=1, at_s=2, text="text", space="", note_ms=0)


def noted(log: list[object], what: object) -> Callable[[], None]:
    return lambda: log.append(what)


def test_requests_are_taken_once_and_in_order() -> None:
    ledger, found = Ledger(), list[Rows]()
    ledger.commit(CHANGES, 0, None)
    ledger.fetch(GetPost(3), 0, found.append)
    ledger.commit([], 0, None)
    first, second, third = ledger.take()
    assert isinstance(first, Commit)
    assert isinstance(second, Fetch)
    assert first.changes == CHANGES
    assert second.query == GetPost(3)
    assert third == Commit(third.ticket, ())
    assert first.ticket < second.ticket < third.ticket
    assert ledger.take() == []
    assert ledger.waiting == 3


def test_what_waits_is_done_when_its_reply_comes_and_not_before() -> None:
    ledger, log = Ledger(), list[object]()
    ledger.commit(CHANGES, 0, noted(log, "stored"))
    ledger.fetch(GetPost(3), 0, log.append)
    commit, fetch = ledger.take()
    assert log == []
    ledger.receive(StoreReply(commit.ticket))
    assert log == ["stored"]
    ledger.receive(StoreReply(fetch.ticket, POST))
    assert log == ["stored", POST]
    assert ledger.waiting == 0


def test_a_store_that_confirms_nothing_for_long_is_stuck() -> None:
    ledger = Ledger()
    assert not ledger.stuck(10 * PATIENCE_NS)
    ledger.commit(CHANGES, 100, None)
    ledger.commit(CHANGES, PATIENCE_NS, None)
    first, second = ledger.take()
    assert not ledger.stuck(PATIENCE_NS + 99)
    assert ledger.stuck(PATIENCE_NS + 100)
    ledger.receive(StoreReply(first.ticket))
    assert not ledger.stuck(PATIENCE_NS + 100)
    assert ledger.stuck(2 * PATIENCE_NS)
    ledger.receive(StoreReply(second.ticket))
    assert not ledger.stuck(2 * PATIENCE_NS)


def test_no_more_waits_than_the_limit_says() -> None:
    ledger = Ledger()
    for _ in range(MAX_WAITING - 1):
        ledger.commit(CHANGES, 0, None)
    assert not ledger.full
    ledger.commit(CHANGES, 0, None)
    assert ledger.full
    ledger.receive(StoreReply(ledger.take()[0].ticket))
    assert not ledger.full


def test_what_is_done_may_ask_for_more() -> None:
    ledger = Ledger()
    ledger.fetch(GetPost(3), 0, lambda _: ledger.commit(CHANGES, 0, None))
    (fetch,) = ledger.take()
    ledger.receive(StoreReply(fetch.ticket, POST))
    (commit,) = ledger.take()
    assert isinstance(commit, Commit)
    assert commit.ticket > fetch.ticket
