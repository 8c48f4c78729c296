"""The feed: numbers, gathering, batches that fit a datagram, what can be caught up on, and what is
withheld from whom."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import frames
from protocol.connection import MS
from protocol.frames import (
    MAX_FEED_CATCH_UP,
    MAX_FRAME_BYTES,
    FeedBatch,
    Settings,
    Snapshot,
    decode_feed,
    encode_update,
)
from protocol.packets import MAX_PLAINTEXT_BYTES
from protocol.roles import Role
from protocol.state_hash import StateHash
from spaces_server.policy.feed import GATHER_NS, Feed
from spaces_server.policy.gathering import MAX_EMOJI_BYTES
from spaces_server.policy.talk import MAX_SHOWN

LONGEST = frames.Member(
    id=0xFFFF_FFFF,
    name="𝄞" * frames.MAX_NAME_CHARS,  # four bytes each
    handle="𐐨" * frames.MAX_HANDLE_CHARS,
    role=Role.CO_HOST,
    seat=255,
    muted=True,
    held=True,
    hand=0xFFFF_FFFF,
)
LONGEST_LINE = frames.ChatUpdate(
    line=0xFFFF_FFFF,
    member=0xFFFF_FFFF,
    name=LONGEST.name,
    handle=LONGEST.handle,
    text="𝄞" * (frames.MAX_CHAT_BYTES // 4),
)
LONGEST_EMOJI = "𝄞" * (MAX_EMOJI_BYTES // 4)
LONGEST_REACTIONS = frames.ReactionsUpdate(
    counts={LONGEST_EMOJI[:-1] + str(i): 0xFFFF_FFFF for i in range(6)},
    stage=[frames.Reaction(member=0xFFFF_FFFF, emoji=LONGEST_EMOJI)] * MAX_SHOWN,
)
LONGEST_SETTINGS = frames.SettingsUpdate(
    title="𝄞" * frames.MAX_TITLE_CHARS,
    settings=Settings(
        visibility=frames.Visibility.FOLLOWERS,
        who_speaks=frames.WhoSpeaks.EVERYONE,
        free_unmute=True,
        chat=False,
        slow_s=0xFFFF_FFFF,
    ),
)
Batches = list[tuple[bytes, list[int] | None]]


def new_feed(space: str = "room") -> Feed:
    return Feed(space, "a title", Settings())


def count(listeners: int) -> frames.ListenersUpdate:
    return frames.ListenersUpdate(count=listeners)


def line(number: int, text: str = "hello") -> frames.ChatUpdate:
    return frames.ChatUpdate(line=number, member=1, name="Ada", handle="ada", text=text)


def filled(updates: int) -> Feed:
    """A feed whose update number i says i."""
    feed = new_feed()
    for number in range(1, updates + 1):
        feed.add(count(number))
    return feed


def after(feed: Feed, number: int, hidden: Iterable[int] = ()) -> list[dict[str, Any]]:
    found = feed.after(number, frozenset(hidden))
    assert found is not None
    return found[0]


def said(updates: list[dict[str, Any]]) -> list[int]:
    return [update["count"] for update in updates]


def taken(feed: Feed) -> list[FeedBatch]:
    """What goes out to a space where nobody has blocked anybody."""
    batches = feed.take(lambda author: [], [1, 2, 3])
    assert all(members is None for _, members in batches)
    return [decode_feed(data) for data, _ in batches]


def test_an_empty_feed() -> None:
    feed = new_feed()
    assert (feed.number, feed.sent, feed.due_ns, taken(feed)) == (0, 0, None, [])
    assert after(feed, 0) == []
    assert feed.after(1, frozenset()) is None


def test_updates_are_numbered_from_one() -> None:
    feed = filled(3)
    assert (feed.number, feed.sent) == (3, 0)
    (batch,) = taken(feed)
    assert (batch.space, batch.first, said(batch.updates)) == ("room", 1, [1, 2, 3])
    assert feed.sent == 3
    feed.add(count(4))
    (batch,) = taken(feed)
    assert (batch.first, said(batch.updates)) == (4, [4])
    assert taken(feed) == []


def test_updates_are_gathered_from_the_first_one_on() -> None:
    feed = new_feed()
    assert GATHER_NS == 250 * MS
    feed.wake(50 * MS)
    feed.wake(140 * MS)  # a later one does not put it off
    assert feed.due_ns == 300 * MS
    taken(feed)
    assert feed.due_ns is None
    feed.wake(310 * MS)
    assert feed.due_ns == 560 * MS


@pytest.mark.parametrize(
    ("members", "gathered_ms"), [(2_500, 250), (5_000, 500), (10_000, 1_000), (20_000, 1_000)]
)
def test_what_thousands_are_told_is_gathered_longer(members: int, gathered_ms: int) -> None:
    feed = new_feed()
    feed.wake(0, members)
    assert feed.due_ns == gathered_ms * MS


def test_nobody_is_left_behind_by_much_that_is_to_be_told() -> None:
    feed = new_feed()
    feed.wake(0, 10_000)
    for n in range(MAX_FEED_CATCH_UP // 2):
        feed.add(count(n))
        feed.wake((n + 1) * MS, 10_000)
    assert feed.due_ns == MAX_FEED_CATCH_UP // 2 * MS


KINDS = (count(7), frames.GoneUpdate(id=9), frames.MemberUpdate(member=LONGEST), LONGEST_LINE)


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=80))
def test_batches_fit_a_datagram_and_follow_on(kinds: list[frames.Update]) -> None:
    feed = new_feed()
    state = StateHash.of(
        Snapshot(number=0, title="a title", settings=Settings(), members=[], listeners=0)
    )
    for kind in kinds:
        feed.add(kind)
    number = 0
    for data, _ in feed.take(lambda author: [], []):
        assert len(data) <= MAX_PLAINTEXT_BYTES
        batch = decode_feed(data)
        assert batch.first == number + 1
        assert batch.updates
        for update in batch.updates:
            assert update == encode_update(kinds[number])
            state.apply(kinds[number])
            number += 1
        assert batch.hash == state.value
    assert number == len(kinds)


def test_small_updates_share_a_datagram() -> None:
    assert len(taken(filled(30))) == 1


def test_the_longest_updates_fit_a_datagram() -> None:
    assert MAX_PLAINTEXT_BYTES == 1_172  # leaves room for header and tag
    for update in (
        frames.MemberUpdate(member=LONGEST),
        LONGEST_LINE,
        LONGEST_REACTIONS,
        LONGEST_SETTINGS,
    ):
        feed = new_feed("s" * 32)
        feed.number = feed.sent = 2**32 - 2
        feed.add(update)
        ((data, _),) = feed.take(lambda author: [], [])
        assert len(data) <= MAX_PLAINTEXT_BYTES, type(update)


def test_catching_up() -> None:
    feed = filled(10)
    assert said(after(feed, 0)) == list(range(1, 11))
    assert said(after(feed, 7)) == [8, 9, 10]
    assert after(feed, 10) == []
    assert feed.after(11, frozenset()) is None  # still to come


def test_what_is_too_old_is_gone() -> None:
    feed = filled(MAX_FEED_CATCH_UP + 5)
    assert feed.after(4, frozenset()) is None
    assert said(after(feed, 5)) == list(range(6, MAX_FEED_CATCH_UP + 6))


def test_taking_does_not_forget() -> None:
    feed = filled(10)
    taken(feed)
    assert said(after(feed, 8)) == [9, 10]


def test_a_flood_within_one_gathering_keeps_its_newest_updates() -> None:
    feed = filled(MAX_FEED_CATCH_UP + 40)
    batches = taken(feed)
    assert batches[0].first == 41  # members see the gap and take a snapshot
    numbers = [n for b in batches for n in range(b.first, b.first + len(b.updates))]
    assert numbers == list(range(41, feed.number + 1))
    assert [n for b in batches for n in said(b.updates)] == numbers


def test_an_answer_is_cut_to_a_frame_and_goes_on_from_there() -> None:
    feed = new_feed()
    for number in range(MAX_FEED_CATCH_UP):
        feed.add(frames.MemberUpdate(member=LONGEST) if number % 2 else LONGEST_LINE)
    state = StateHash.of(
        Snapshot(number=0, title="a title", settings=Settings(), members=[], listeners=0)
    )
    number = answers = 0
    while number < feed.number:
        found = feed.after(number, frozenset())
        assert found is not None
        updates, state_hash = found
        answer = frames.Updates(
            re=2**32 - 1, space="a" * 32, first=2**32 - 1, updates=updates, hash=state_hash
        )
        assert len(frames.encode(answer)) <= MAX_FRAME_BYTES
        for update in updates:
            decoded = frames.decode_update(update)
            assert decoded is not None
            state.apply(decoded)
        assert state_hash == state.value
        number += len(updates)
        answers += 1
    assert answers > 1


# -- what is withheld -----------------------------------------------------------------------------


def hidden_from(blocks: dict[int, list[int]]) -> Any:
    return lambda author: blocks.get(author, [])


def test_a_line_is_withheld_where_there_is_a_block() -> None:
    feed = new_feed()
    feed.add(count(5))
    feed.add(line(1, "secret"), authors=(100,))
    feed.add(line(2, "open"), authors=(200,))
    batches: Batches = feed.take(hidden_from({100: [3]}), [1, 2, 3])
    assert [members for _, members in batches] == [[1, 2], [3]]
    open_batch, closed_batch = (decode_feed(data) for data, _ in batches)
    assert open_batch.updates[1] == encode_update(line(1, "secret"))
    assert closed_batch.updates == [
        encode_update(count(5)),
        encode_update(count(5)),
        encode_update(line(2, "open")),
    ]
    assert b"secret" not in batches[1][0]
    assert (open_batch.first, open_batch.hash) == (closed_batch.first, closed_batch.hash)
    assert after(feed, 0, [100]) == closed_batch.updates
    assert after(feed, 0, [300]) == open_batch.updates


def test_members_are_grouped_by_whom_they_do_not_see() -> None:
    feed = new_feed()
    feed.add(line(1), authors=(100,))
    feed.add(line(2), authors=(200,))
    batches: Batches = feed.take(hidden_from({100: [3, 4], 200: [4, 5]}), [1, 2, 3, 4, 5])
    lines = {
        tuple(members or ()): [u.get("line") for u in decode_feed(data).updates]
        for data, members in batches
    }
    assert lines == {(1, 2): [1, 2], (3,): [None, 2], (4,): [None, None], (5,): [1, None]}


def test_a_block_costs_nothing_while_its_author_is_silent() -> None:
    feed = new_feed()
    feed.add(line(1), authors=(100,))
    ((_, members),) = feed.take(hidden_from({200: [3]}), [1, 2, 3])
    assert members is None


def test_what_took_a_line_back_is_withheld_with_it() -> None:
    feed = new_feed()
    feed.add(frames.LineGoneUpdate(line=1), authors=(100,))
    assert after(feed, 0, [100]) == [encode_update(count(0))]


def test_of_reactions_only_the_name_is_withheld() -> None:
    feed = new_feed()
    shown = [frames.Reaction(member=m, emoji="🔥") for m in (1, 2)]
    feed.add(frames.ReactionsUpdate(counts={"🔥": 3}, stage=shown), authors=(100, 200))
    (seen,) = after(feed, 0, [100])
    assert seen == encode_update(frames.ReactionsUpdate(counts={"🔥": 3}, stage=shown[1:]))


def test_a_line_taken_back_is_nowhere_any_more() -> None:
    for sent in (False, True):
        feed = new_feed()
        feed.add(line(1, "secret"), authors=(100,))
        feed.add(line(2, "open"), authors=(100,))
        if sent:
            taken(feed)
        feed.purge(1)
        assert after(feed, 0) == [encode_update(count(0)), encode_update(line(2, "open"))]
        assert [u for b in taken(feed) for u in b.updates] == ([] if sent else after(feed, 0))
        assert "secret" not in repr([vars(feed), list(feed._recent)])
