"""The feed: numbers, gathering, batches that fit a datagram, what can be caught up on."""

from hypothesis import given
from hypothesis import strategies as st

from protocol import frames
from protocol.connection import MS
from protocol.frames import MAX_FEED_CATCH_UP, MAX_FRAME_BYTES, decode_feed
from protocol.packets import MAX_PLAINTEXT_BYTES
from protocol.roles import Role
from spaces_server.feed import GATHER_NS, Feed

LONGEST = frames.Member(
    id=0xFFFF_FFFF,
    name="𝄞" * frames.MAX_NAME_CHARS,  # four bytes each
    role=Role.CO_HOST,
    seat=255,
    muted=True,
    hand=True,
)


def count(listeners: int) -> frames.ListenersUpdate:
    return frames.ListenersUpdate(count=listeners)


def filled(updates: int, now_ns: int = 0) -> Feed:
    """A feed whose update number i says i."""
    feed = Feed("room")
    for number in range(1, updates + 1):
        feed.add(count(number), now_ns)
    return feed


def said(updates: list[dict[str, object]] | None) -> list[object]:
    assert updates is not None
    return [update["count"] for update in updates]


def test_an_empty_feed() -> None:
    feed = Feed("room")
    assert (feed.number, feed.pending, feed.take()) == (0, False, [])
    assert not feed.due(1_000_000 * MS)
    assert feed.after(0) == []
    assert feed.after(1) is None


def test_updates_are_numbered_from_one() -> None:
    feed = filled(3)
    assert feed.number == 3
    (batch,) = [decode_feed(data) for data in feed.take()]
    assert batch.first == 1
    assert said(batch.updates) == [1, 2, 3]
    feed.add(count(4), 0)
    (batch,) = [decode_feed(data) for data in feed.take()]
    assert (batch.first, said(batch.updates)) == (4, [4])


def test_updates_are_gathered_from_the_first_one_on() -> None:
    feed = Feed("room")
    assert GATHER_NS == 100 * MS
    feed.add(count(1), 50 * MS)
    assert feed.pending
    feed.add(count(2), 140 * MS)  # a later one does not put it off
    assert not feed.due(150 * MS - 1)
    assert feed.due(150 * MS)
    feed.take()
    assert not feed.pending
    assert not feed.due(10_000 * MS)
    feed.add(count(3), 160 * MS)
    assert not feed.due(259 * MS)
    assert feed.due(260 * MS)


@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=80))
def test_batches_fit_a_datagram_and_follow_on(kinds: list[int]) -> None:
    feed = Feed("room")
    choices = (
        count(7),
        frames.GoneUpdate(id=9),
        frames.MemberUpdate(member=LONGEST),
        count(2**32 - 1),
    )
    for kind in kinds:
        feed.add(choices[kind], 0)
    number = 0
    updates = []
    for data in feed.take():
        assert len(data) <= MAX_PLAINTEXT_BYTES
        batch = decode_feed(data)
        assert batch.space == "room"
        assert batch.first == number + 1
        assert batch.updates
        updates += batch.updates
        number += len(batch.updates)
    assert updates == [frames.encode_update(choices[kind]) for kind in kinds]


def test_small_updates_share_a_datagram() -> None:
    feed = filled(30)
    assert len(feed.take()) == 1


def test_the_plaintext_of_a_batch_leaves_room_for_header_and_tag() -> None:
    assert MAX_PLAINTEXT_BYTES == 1_172


def test_the_longest_update_fits_a_datagram() -> None:
    feed = Feed("s" * 32)
    feed.add(frames.MemberUpdate(member=LONGEST), 0)
    (data,) = feed.take()
    assert len(data) <= MAX_PLAINTEXT_BYTES


def test_catching_up() -> None:
    feed = filled(10)
    assert said(feed.after(0)) == list(range(1, 11))
    assert said(feed.after(7)) == [8, 9, 10]
    assert feed.after(10) == []
    assert feed.after(11) is None  # still to come


def test_what_is_too_old_is_gone() -> None:
    feed = filled(MAX_FEED_CATCH_UP + 5)
    assert feed.after(4) is None
    assert said(feed.after(5)) == list(range(6, MAX_FEED_CATCH_UP + 6))


def test_taking_does_not_forget() -> None:
    feed = filled(10)
    feed.take()
    assert said(feed.after(8)) == [9, 10]


def test_a_flood_within_one_gathering_keeps_its_newest_updates() -> None:
    feed = filled(MAX_FEED_CATCH_UP + 40)
    batches = [decode_feed(data) for data in feed.take()]
    assert batches[0].first == 41  # members see the gap and take a snapshot
    numbers = [n for b in batches for n in range(b.first, b.first + len(b.updates))]
    assert numbers == list(range(41, feed.number + 1))
    assert [n for b in batches for n in said(b.updates)] == numbers


def test_the_longest_answer_fits_a_frame() -> None:
    feed = Feed("room")
    for _ in range(MAX_FEED_CATCH_UP):
        feed.add(frames.MemberUpdate(member=LONGEST), 0)
    updates = feed.after(0)
    assert updates is not None
    answer = frames.Updates(re=2**32 - 1, first=2**32 - 1, updates=updates)
    assert len(frames.encode(answer)) <= MAX_FRAME_BYTES
