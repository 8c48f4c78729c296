"""When a space has ended, nothing of it is left: no object, no text, neither in memory nor in the
store."""

import gc
import weakref
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from protocol import frames
from protocol.frames import Category, ErrorCode
from spaces_client.client import Client
from spaces_server.policy.house import HouseRules
from spaces_server.policy.space import SpaceRules
from tests.unit.hall import SECOND, Guest, Hall

LINES = ("what was said in the chat", "and what was taken back", "and told to some only")
EMOJI = ("🔥", "💯")
OWN = ("🦩", "🦔", "🦦", "🦥", "🦡", "🦫")
GUEST = "somebody who passed by"
RULES = HouseRules(limited_rates=False, space=SpaceRules(evidence=True))


def evening(hall: Hall) -> list[Guest]:
    """People talk, write, react, raise hands, set volumes, block, and one misses a part of it."""
    host, speaker, listener, blocker, away = people = hall.space(2, 3)
    hall.does(blocker, frames.Block, person=speaker.handle)
    hall.does(listener, frames.SetVolume, member=speaker.id, percent=50)
    hall.does(listener, frames.RaiseHand)
    away.deaf = True
    lines = [
        hall.ask(guest, frames.Chat, text=text).line
        for guest, text in zip((host, listener, speaker), LINES, strict=True)
    ]
    hall.does(host, frames.DeleteLine, line=lines[1])
    for guest, emoji in zip((host, listener), EMOJI, strict=True):
        hall.does(guest, frames.React, emoji=emoji)
    hall.tick(SECOND, host, speaker)
    away.deaf = False
    hall.tick(16 * SECOND, host)  # as long as it may take to hear that something was missed
    assert LINES[0] in [line.text for line in away.client.view.lines.values()]
    return people


def closed(hall: Hall, host: Guest) -> None:
    hall.does(host, frames.Close)


def left(hall: Hall, host: Guest) -> None:
    hall.does(host, frames.Leave)


def closed_by_a_moderator(hall: Hall, host: Guest) -> None:
    name = host.client.view.id
    hall.does(hall.operator(), frames.CloseSpace, space=name)


def closed_at_once(hall: Hall, host: Guest) -> None:
    """With a line, a reaction and a hand that nobody has been told of, while people talk."""
    hall.ask(host, frames.Chat, text=LINES[0])
    hall.does(host, frames.React, emoji=EMOJI[0])
    hall.does(host, frames.Close)


ENDS = [closed, left, closed_by_a_moderator, closed_at_once]
End = Callable[[Hall, Guest], None]


def everything(root: object) -> Iterator[Any]:
    """All objects that can be reached from one, which are not of the clients or of modules."""
    seen = {id(root): root}
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        yield thing
        keys = list(thing) if isinstance(thing, dict) else []  # the collector passes texts over
        if isinstance(thing, FunctionType):
            seen[id(thing.__globals__)] = (
                thing.__globals__
            )  # its module's, and so the whole program
        for other in [*gc.get_referents(thing), *keys]:
            if id(other) not in seen and not isinstance(other, type(gc) | type | Client):
                seen[id(other)] = other
                waiting.append(other)


def texts(root: object) -> Iterator[bytes]:
    for thing in everything(root):
        if isinstance(thing, str):
            yield thing.encode("utf-8", "surrogatepass")
        elif isinstance(thing, bytes | bytearray):
            yield bytes(thing)
        elif isinstance(thing, np.ndarray) and thing.dtype == np.uint8:
            yield thing.tobytes()


def found(root: object, text: str) -> bool:
    return any(text.encode() in data for data in texts(root))


@pytest.mark.parametrize("end", ENDS)
def test_nothing_of_an_ended_space_can_be_reached(end: End) -> None:
    hall = Hall(RULES)
    host = evening(hall)[0]
    (room,) = hall.node._rooms.values()
    space = hall.the_space()
    parts = [space, space.feed, room, room.mix, room.mix.plan, room.recorder]
    left_over = [weakref.ref(part) for part in parts if hasattr(type(part), "__weakref__")]
    assert len(left_over) >= 4
    kinds = {type(part) for part in parts}
    assert {type(thing) for thing in everything(hall.node)} >= kinds
    del room, space, parts
    end(hall, host)
    hall.tick(SECOND)
    gc.collect()
    assert [ref() for ref in left_over] == [None] * len(left_over)
    assert not {type(thing) for thing in everything(hall.node)} & kinds


@pytest.mark.parametrize("end", ENDS)
def test_no_text_of_an_ended_space_is_left(end: End) -> None:
    hall = Hall(RULES)
    people = evening(hall)
    name = people[0].client.view.id
    assert found(hall.node, LINES[0]), "the search finds what is there"
    assert not found(hall.node, LINES[1]), "what was taken back is gone already"
    end(hall, people[0])
    hall.tick(6 * SECOND)  # the last datagrams are acknowledged
    dump = hall.shelf.dump()
    for text in LINES:
        assert not found(hall.node, text)
        assert text not in dump
        assert not any(text in line for line in hall.log)
    for guest in people:
        hall.refuses(ErrorCode.SPACE_ENDED, guest, frames.Join, space=name)
        hall.refuses(ErrorCode.NOT_JOINED, guest, frames.CatchUp, after=0)


@pytest.mark.parametrize("end", ENDS)
def test_no_reaction_and_nobody_who_listened_is_left(end: End) -> None:
    hall = Hall(HouseRules(limited_rates=False, space=SpaceRules(reactions=OWN)))
    host, listener = hall.space(1, 1)
    name = host.client.view.id
    passer_by = hall.guest()
    hall.join(passer_by, name, name=GUEST)
    hall.does(listener, frames.React, emoji=OWN[0])
    hall.tick(SECOND)
    hall.does(listener, frames.React, emoji=OWN[1])
    hall.node.house._rules = HouseRules()  # in which the reactions stand that there are
    hall.the_space()._rules = SpaceRules()
    shown = (OWN[0], OWN[1], GUEST)
    assert all(found(hall.node, text) for text in shown)
    if end is closed_at_once:
        hall.does(host, frames.Close)
    else:
        end(hall, host)
    hall.tick(6 * SECOND)
    dump = hall.shelf.dump()
    for text in shown:
        assert not found(hall.node, text)
        assert text not in dump
    lines = [line for line in dump.splitlines() if f"'{name}'" in line]
    assert len(lines) == 1, "what remains is that it took place"


def test_what_remains_is_what_the_policy_lists() -> None:
    """That it took place, removals and reports; not who was there, or what was said."""
    hall = Hall(RULES)
    host, removed, reported, listener = hall.space(3, 1)
    name = host.client.view.id
    hall.does(host, frames.Remove, member=removed.id)
    hall.ask(listener, frames.Report, category=Category.HATE, member=reported.id)
    hall.ask(host, frames.Chat, text=LINES[0])
    hall.tick(SECOND)
    hall.does(host, frames.Close)
    hall.start()
    kept = sorted(
        line.split('"')[1] for line in hall.shelf.dump().splitlines() if f"'{name}'" in line
    )
    assert kept == ["removals", "reports", "spaces"]
    hall.tick(18 * SECOND)
    hall.refuses(ErrorCode.SPACE_ENDED, removed, frames.Join, space=name)
