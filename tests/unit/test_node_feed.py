"""The feed, through the whole server: who is told what, when, and how often."""

import msgspec
import pytest

from protocol import frames
from protocol.roles import Role
from spaces_client.events import Chat
from spaces_server.node import FEED_A_TICK, FEED_TICKS
from tests.unit.hall import SECOND, Guest, Hall

GATHERED = 14  # ticks after which the feed has told of everything
SECRET = "not for everybody's eyes"
EMOJI = "🔥"


def said(guest: Guest) -> list[str]:
    return [e.line.text for e in guest.events if isinstance(e, Chat)]


def say(hall: Hall, guest: Guest, text: str) -> int:
    reply = hall.ask(guest, frames.Chat, text=text)
    assert isinstance(reply, frames.Said), reply
    line: int = reply.line
    return line


# -- with blocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("by_author", [False, True])
def test_what_a_blocked_author_writes_does_not_reach_the_other(by_author: bool) -> None:
    """In neither direction of the block; whoever blocked, nobody's numbers tell of it."""
    hall = Hall()
    host, author, other, listener = hall.space(2, 2)
    one, two = (author, other) if by_author else (other, author)
    hall.does(one, frames.Block, person=two.handle)
    line = say(hall, author, SECRET)
    hall.does(author, frames.React, emoji=EMOJI)
    say(hall, host, "for all")
    hall.tick(GATHERED)
    assert said(host) == said(listener) == said(author) == [SECRET, "for all"]
    assert said(other) == ["for all"]
    assert not other.was_told(SECRET)
    assert other.was_told("for all")
    hall.agree(host, author, other, listener)
    named = {
        guest: [r for b in guest.batches() for u in b.updates for r in u.get("stage", ())]
        for guest in (other, listener)
    }
    assert named[listener] == [{"member": author.id, "emoji": EMOJI}]
    assert named[other] == []
    hall.does(host, frames.DeleteLine, line=line)
    hall.tick(GATHERED)
    assert not any(u.get("line") == line for b in other.batches() for u in b.updates)
    hall.agree(host, author, other, listener)


def test_nor_does_it_when_what_was_missed_is_caught_up_on() -> None:
    hall = Hall()
    host, author, other, listener = hall.space(2, 2)
    hall.does(other, frames.Block, person=author.handle)
    other.deaf = listener.deaf = True
    say(hall, author, SECRET)
    hall.tick(GATHERED)
    other.deaf = listener.deaf = False
    say(hall, host, "for all")
    hall.tick(GATHERED + SECOND)
    assert said(listener) == [SECRET, "for all"]
    assert said(other) == ["for all"]
    assert not other.was_told(SECRET)
    hall.agree(host, author, other, listener)


def test_a_block_in_mid_conversation_is_in_time() -> None:
    """A line that has been said but not told when the block comes is not told any more."""
    hall = Hall()
    _, author, other = hall.space(2, 1)
    say(hall, author, SECRET)
    hall.does(other, frames.Block, person=author.handle)
    hall.tick(GATHERED)
    assert not other.was_told(SECRET)


# -- a state that went wrong ----------------------------------------------------------------------


def test_a_client_whose_state_went_wrong_notices_and_repairs_it() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    hall.tick(GATHERED)
    view = listener.client.view
    wrong = msgspec.structs.replace(view.members[speaker.id], role=Role.CO_HOST)
    view._hash.apply(frames.MemberUpdate(member=wrong))
    view.members[speaker.id] = wrong
    say(hall, host, "hello")
    hall.tick(GATHERED)
    hall.tick(SECOND)
    assert listener.client.repairs == 1
    hall.agree(host, speaker, listener)
    hall.tick(10 * SECOND)
    assert listener.client.repairs == 1


# -- spread over ticks ----------------------------------------------------------------------------


def crowd(hall: Hall, count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Guest, list[Guest]]:
    """A host with listeners of whom a tick serves two only."""
    monkeypatch.setattr("spaces_server.node.FEED_A_TICK", 2)
    monkeypatch.setattr("spaces_server.node.FEED_TICKS", 10_000)
    (host,) = hall.space(1)
    guests = hall.guests_of(count)
    for guest in guests:
        guest.client.request(frames.Join, space=host.client.view.id)
    hall.settle()
    hall.tick(2 * SECOND)
    hall.agree(host, *guests)
    return host, guests


def numbers(guest: Guest) -> list[int]:
    return [b.first + n for b in guest.batches() for n in range(len(b.updates))]


def test_a_feed_that_takes_more_than_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall()
    host, guests = crowd(hall, 30, monkeypatch)
    for guest in hall.guests:
        guest.told.clear()
    first = hall.the_space().feed.number + 1
    sealed = hall.node.egress.sealed
    lines = []
    for number in range(4):
        lines.append(f"line {number}")
        say(hall, host, lines[-1])
        for _ in range(GATHERED):
            before = hall.node.egress.sealed
            hall.tick()
            assert hall.node.egress.sealed - before <= 2
    assert len(hall.node._feed) > 1, "one was on its way when the next was due"
    hall.tick(2 * SECOND)
    assert hall.node.egress.sealed - sealed == 4 * 31
    for guest in (host, *guests):
        assert said(guest) == lines
        assert numbers(guest) == list(range(first, first + 4))
    hall.agree(host, *guests)


def test_who_leaves_meanwhile_gets_no_more_nor_does_who_takes_their_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hall = Hall()
    host, guests = crowd(hall, 12, monkeypatch)
    (newcomer,) = hall.guests_of(1)
    space = hall.the_space()
    say(hall, host, SECRET)
    for guest in hall.guests:
        guest.told.clear()
    while space.feed.sent != space.feed.number:
        hall.tick()  # the first two have it now
    gone = guests[-1]
    assert not gone.was_told(SECRET)
    (room,) = hall.node._rooms.values()
    row = room.members[gone.id].row
    hall.does(gone, frames.Leave)
    hall.join(newcomer, host.client.view.id)
    assert room.members[newcomer.id].row == row
    hall.tick(SECOND)
    assert not gone.was_told(SECRET)
    assert not newcomer.was_told(SECRET), "it was said before they came"
    assert sum(guest.was_told(SECRET) for guest in (host, *guests)) == 12
    hall.agree(host, newcomer, *guests[:-1])


def test_in_a_lively_space_nobody_asks_for_what_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is always something said that not everyone was told, when a keep-alive is answered."""
    hall = Hall()
    host, guests = crowd(hall, 20, monkeypatch)
    asked = [guest.client._last_id for guest in guests]
    for number in range(12 * SECOND // 5):
        say(hall, host, f"line {number}")
        hall.tick(5)
    assert [guest.client._last_id for guest in guests] == asked
    hall.tick(SECOND)
    hall.agree(host, *guests)


def test_of_the_largest_feed_everything_is_sent_before_the_next() -> None:
    """However many there are, a batch is out before the next one is due."""
    hall = Hall()
    (host,) = hall.space(1)
    hall.tick(GATHERED)
    (room,) = hall.node._rooms.values()
    (seat,) = room.members.values()
    members = (FEED_TICKS + 5) * FEED_A_TICK
    room.members.update((2 * members + n, seat) for n in range(members - 1))
    say(hall, host, "hello")
    host.deaf = True  # it is sent everything for all of them
    sent = []
    for _ in range(GATHERED + FEED_TICKS + 2):
        before = hall.node.egress.sealed
        hall.tick()
        sent.append(hall.node.egress.sealed - before)
    assert sum(sent) == members
    assert sum(count > 0 for count in sent) == FEED_TICKS
