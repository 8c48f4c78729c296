"""What a client makes of snapshots and updates: in order, with gaps, twice, or unknown."""

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import frames
from protocol.frames import Member, Snapshot, encode_update
from protocol.roles import Role
from spaces_client.view import SpaceView
from spaces_server.space import RefusedError, Space

HOST = Member(id=1, name="Ada", role=Role.HOST, seat=0)
SPEAKER = Member(id=2, name="Bo", role=Role.SPEAKER, seat=1)
HAND = Member(id=3, name="Cy", hand=True)


def view(*members: Member, me: Member = HOST, number: int = 10, listeners: int = 5) -> SpaceView:
    taken = SpaceView(id="room")
    snapshot = Snapshot(number=number, title="t", members=list(members), listeners=listeners)
    taken.take(me, snapshot)
    return taken


def member(of: Member) -> dict[str, Any]:
    return encode_update(frames.MemberUpdate(member=of))


def gone(who: int) -> dict[str, Any]:
    return encode_update(frames.GoneUpdate(id=who))


def listeners(count: int) -> dict[str, Any]:
    return encode_update(frames.ListenersUpdate(count=count))


def test_a_snapshot() -> None:
    seen = view(SPEAKER, HAND, HOST)
    assert (seen.title, seen.number, seen.listeners, seen.behind) == ("t", 10, 5, False)
    assert seen.me == HOST
    assert seen.stage == [HOST, SPEAKER]  # by their seats
    assert seen.hands == [HAND]
    assert seen.at_seat(1) == SPEAKER
    assert seen.at_seat(7) is None


def test_updates_that_follow_on() -> None:
    seen = view(HOST)
    assert seen.apply(11, [member(SPEAKER), member(HAND), listeners(4)])
    assert seen.members == {1: HOST, 2: SPEAKER, 3: HAND}
    assert (seen.listeners, seen.number, seen.behind) == (4, 13, False)
    assert seen.apply(14, [gone(2), member(Member(id=3, name="Cy"))])
    assert seen.members == {1: HOST}  # one has left, one is an ordinary listener again


def test_a_gap() -> None:
    seen = view(HOST)
    assert not seen.apply(12, [member(SPEAKER)])
    assert seen.behind
    assert (seen.number, seen.newest, seen.members) == (10, 12, {1: HOST})
    assert seen.apply(11, [listeners(6), member(SPEAKER)])  # what was asked for
    assert not seen.behind
    assert (seen.listeners, seen.members) == (6, {1: HOST, 2: SPEAKER})


def test_what_came_before_changes_nothing() -> None:
    seen = view(HOST)
    assert seen.apply(11, [listeners(6), listeners(7)])
    assert not seen.apply(11, [listeners(6)])
    assert not seen.apply(11, [listeners(6), listeners(7)])
    assert not seen.apply(3, [gone(1)])
    assert (seen.listeners, seen.number, seen.members) == (7, 12, {1: HOST})


def test_an_overlap_counts_from_what_is_new() -> None:
    seen = view(HOST)
    assert seen.apply(9, [gone(1), gone(1), listeners(6), listeners(7)])
    assert (seen.listeners, seen.number, seen.members) == (7, 12, {1: HOST})


def test_an_empty_batch() -> None:
    seen = view(HOST)
    assert not seen.apply(11, [])
    assert (seen.number, seen.behind) == (10, False)


def test_updates_of_another_kind_are_counted_and_skipped() -> None:
    seen = view(HOST)
    unknown: list[dict[str, Any]] = [
        {"type": "weather", "is": "fine"},
        {},
        {"type": ["member"]},
        {"type": "listeners", "count": "many"},
        {"type": "member", "member": {"id": 4, "name": "x" * 41}},
    ]
    assert seen.apply(11, [*unknown, listeners(6)])
    assert (seen.number, seen.listeners, seen.members) == (16, 6, {1: HOST})


def test_oneself() -> None:
    seen = view(HOST, me=Member(id=2, name="Bo"))
    seen.apply(11, [member(SPEAKER)])
    assert seen.me == SPEAKER
    seen.apply(12, [member(HAND)])
    assert seen.me == SPEAKER


def test_a_fresh_snapshot_replaces_everything() -> None:
    seen = view(HOST, SPEAKER)
    seen.apply(20, [listeners(1)])
    assert seen.behind
    seen.take(HOST, Snapshot(number=20, title="new", members=[HOST, HAND], listeners=2))
    assert (seen.number, seen.title, seen.listeners, seen.behind) == (20, "new", 2, False)
    assert seen.members == {1: HOST, 3: HAND}


WHATS = ["enter", "hand", "up", "down", "leave"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(WHATS))),
    st.lists(st.integers(0, 3), min_size=1),
    st.randoms(use_true_random=False),
)
def test_whatever_is_lost_or_repeated_the_view_ends_up_right(
    evening: list[tuple[int, str]], fates: list[int], rng: Any
) -> None:
    """A real space's updates in batches: delivered, delivered twice, lost, or overtaken."""
    space = Space("room", "t", os.urandom)
    host, _ = space.enter("host", b"host", None, 0, host=True)
    seen = SpaceView()
    seen.take(space.view(host), space.snapshot())
    here: dict[int, int] = {}
    batches: list[tuple[int, list[dict[str, Any]]]] = []
    for who, what in evening:
        before = space.feed.number
        try:
            if what == "enter":
                here[who], _ = space.enter("guest", b"%d" % who, None, 0)
            elif who in here and what == "leave":
                space.leave(here.pop(who), 0)
            elif who in here and what == "hand":
                space.handle(here[who], frames.RaiseHand(id=0), 0)
            elif who in here and what == "up":
                space.handle(host, frames.BringUp(id=0, member=here[who]), 0)
            elif who in here and what == "down":
                space.handle(host, frames.TakeDown(id=0, member=here[who]), 0)
        except RefusedError:
            pass
        updates = space.feed.after(before)
        assert updates is not None
        if updates:
            batches.append((before + 1, updates))
    for number, batch in enumerate(batches):
        fate = fates[number % len(fates)]
        for _ in range((1, 2, 0, 1)[fate]):
            seen.apply(*(batches[rng.randrange(number + 1)] if fate == 3 else batch))
    seen.newest = space.feed.number  # as the answer to a ping says
    missing = space.feed.after(seen.number)
    if seen.behind and missing is not None:
        seen.apply(seen.number + 1, missing)
    elif seen.behind:
        seen.take(space.view(host), space.snapshot())
    snapshot = space.snapshot()
    assert not seen.behind
    assert seen.number == snapshot.number
    assert seen.members == {m.id: m for m in snapshot.members}
    assert seen.listeners == snapshot.listeners
