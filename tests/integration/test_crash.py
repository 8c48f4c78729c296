"""The server is killed, again and again, while people moderate.

A troupe is five people and what they do to one another: open spaces, bring up, mute, remove, ban,
write, ...  Several troupes act at the same time, each in one row of actions, of which several are
under way at once; the model says what the store is to hold after each.  After a kill it must hold,
for every troupe, what the model had after some action that is not before the last acknowledged one:
nothing that was confirmed is lost, and nothing is there by half or out of order.  Then the server
is started again, and everyone comes back and finds what the model says.

Run as a program this forks the servers, so that none of them has to import everything again.
"""

import asyncio
import contextlib
import copy
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from protocol import frames
from protocol.frames import Category, Outcome
from protocol.keyfile import load_key
from protocol.link import Link
from protocol.roles import Action, Role, allowed

KILLS = int(os.environ.get("SPACES_CRASHES", "6"))  # for each kind of store
TROUPES = 4
PEOPLE = 5
MOST_AT_ONCE = 6  # requests of a troupe
MOST_CONFIRMED = 50  # acknowledgements before a kill is decided on,
LONGEST_S = 0.02  # and then the time until it happens
MOST_CO_HOSTS = 2  # of a space, as servers have it
MOST_INVITES = 40
OPERATOR = -1  # instead of one of the people
ANYBODY = -1  # of an invite


# -- what the store is to hold of a troupe ---------------------------------------------------------


class Place(NamedTuple):
    who: int
    role: Role
    muted: bool = False
    held: bool = False


class Invite(NamedTuple):
    """number: which of the troupe's it is; 1 of one that is for one person."""

    number: int
    issuer: int
    role: Role
    person: int
    uses: int = 0


@dataclass
class Room:
    """A space.  stage: in the order of appointment."""

    host: int
    title: str
    slow_s: int = 0
    ended: bool = False
    stage: list[Place] = field(default_factory=list)
    removed: set[int] = field(default_factory=set)
    invites: set[Invite] = field(default_factory=set)

    def place(self, who: int) -> Place | None:
        return next((place for place in self.stage if place.who == who), None)

    def role(self, who: int) -> Role:
        place = self.place(who)
        return Role.LISTENER if place is None else place.role

    def change(self, who: int, **fields: Any) -> None:
        self.stage = [p._replace(**fields) if p.who == who else p for p in self.stage]

    def drop(self, who: int) -> None:
        self.stage = [p for p in self.stage if p.who != who]

    def appoint(self, who: int, role: Role) -> None:
        place = self.place(who)
        assert place is not None
        self.drop(who)
        self.stage.append(place._replace(role=role, held=place.held and role is not Role.HOST))

    def withdraw(self, who: int) -> None:
        """Whoever is out for good has invited nobody any more."""
        self.invites = {invite for invite in self.invites if invite.issuer != who}

    @property
    def co_hosts(self) -> int:
        return sum(place.role is Role.CO_HOST for place in self.stage)


@dataclass
class State:
    """reports: number -> (reporter, about whom, outcome).  told: whom a kept notice waits for, and
    how often."""

    rooms: dict[int, Room] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    follows: set[tuple[int, int]] = field(default_factory=set)
    blocks: set[tuple[int, int]] = field(default_factory=set)
    banned: set[int] = field(default_factory=set)
    messages: list[tuple[int, int, str, bool]] = field(default_factory=list)
    posts: list[tuple[int, str]] = field(default_factory=list)
    reports: dict[int, tuple[int, int, str]] = field(default_factory=dict)
    told: list[tuple[int, str]] = field(default_factory=list)


def handle(troupe: int, who: int) -> str:
    return f"t{troupe}p{who}"


class Store:
    """What is really there, and where the people and the numbers of the model are in it."""

    def __init__(self, rows: "Model") -> None:
        self.rows = rows
        self._who = {
            a.id: (int(a.handle[1]), int(a.handle[3])) for a in self.of(records.AccountRecord)
        }

    def of(self, kind: type[Any]) -> Iterator[Any]:
        return iter(self.rows[kind].values())

    def _mine(self, kind: type[Any], troupe: int, name: str) -> Iterator[Any]:
        return (r for r in self.of(kind) if self._who[getattr(r, name)][0] == troupe)

    def person(self, account: int) -> int:
        return self._who[account][1] if account else ANYBODY

    def spaces(self, troupe: int) -> dict[int, Any]:
        found = self._mine(records.SpaceRecord, troupe, "host")
        return {int(r.title.split()[1]): r for r in found}

    def tokens(self, troupe: int) -> dict[int, str]:
        found = self._mine(records.InviteRecord, troupe, "issuer")
        return {r.max_uses: r.token for r in found if not r.person}

    def report_ids(self, troupe: int) -> dict[int, int]:
        found = self._mine(records.ReportRecord, troupe, "reporter")
        return {int(r.note.split()[1]): r.id for r in found}

    def state(self, troupe: int) -> State:
        state = State()
        who = self.person
        for number, space in self.spaces(troupe).items():
            state.rooms[number] = self._room(space)
        for one in self._mine(records.AccountRecord, troupe, "id"):
            state.names[who(one.id)] = one.name
        for one in self._mine(records.FollowRecord, troupe, "follower"):
            state.follows.add((who(one.follower), who(one.followed)))
        for one in self._mine(records.BlockRecord, troupe, "blocker"):
            state.blocks.add((who(one.blocker), who(one.blocked)))
        for one in self._mine(records.BanRecord, troupe, "account"):
            state.banned.add(who(one.account))
        for one in sorted(self._mine(records.MessageRecord, troupe, "sender"), key=lambda m: m.id):
            entry = who(one.sender), who(one.recipient), one.text, bool(one.space and one.invite)
            state.messages.append(entry)
        for one in sorted(self._mine(records.PostRecord, troupe, "author"), key=lambda p: p.id):
            state.posts.append((who(one.author), one.text))
        for one in self._mine(records.ReportRecord, troupe, "reporter"):
            number = int(one.note.split()[1])
            state.reports[number] = who(one.reporter), who(one.person), one.outcome
        for one in sorted(self._mine(records.NoticeRecord, troupe, "account"), key=lambda n: n.id):
            state.told.append((who(one.account), frames.tag(type(frames.decode(one.frame)))))
        return state

    def _room(self, space: Any) -> Room:
        def here(kind: type[Any]) -> list[Any]:
            return [record for record in self.of(kind) if record.space == space.id]

        who = self.person
        settings = msgspec.msgpack.decode(space.settings, type=frames.Settings)
        places = sorted(here(records.StageRecord), key=lambda place: place.order)
        return Room(
            host=who(space.host),
            title=space.title,
            slow_s=settings.slow_s,
            ended=space.state == "ended",
            stage=[Place(who(p.account), Role(p.role), p.muted, p.held) for p in places],
            removed={who(removal.account) for removal in here(records.RemovalRecord)},
            invites={
                Invite(i.max_uses, who(i.issuer), Role(i.role), who(i.person), i.uses)
                for i in here(records.InviteRecord)
            },
        )


async def refused(work: Awaitable[Any], code: str) -> None:
    with pytest.raises(SpacesError) as refusal:
        await work
    if str(refusal.value) == LOST:
        raise refusal.value
    assert refusal.value.code == code


# -- a troupe --------------------------------------------------------------------------------------

Request = Callable[["LiveSpace"], Awaitable[Any]]


class Troupe:
    """now: what the store is to hold when everything that was asked for is done; history: after
    each action of this life of the server, and before the first."""

    def __init__(self, number: int, chance: random.Random, confirm: Callable[[], None]) -> None:
        self.number = number
        self.chance = chance
        self.keys = [chance.randbytes(32) for _ in range(PEOPLE)]
        self.now = State(names={who: f"person {who}" for who in range(PEOPLE)})
        self.confirmed = 0
        self._confirm = confirm
        self._numbers = 1  # which is not one
        self._ids: dict[int, Any] = {}  # of what has a number: token, report
        self._used: set[tuple[int, int]] = set()  # invites, and by whom
        self._known()

    def _known(self) -> None:
        self.history = [copy.deepcopy(self.now)]
        self.confirmed = 0

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    # -- lives -------------------------------------------------------------------------------------

    async def register(self, link: Link) -> None:
        for who in range(PEOPLE):
            async with session(link, key=self.keys[who]) as live:
                await live.register(handle(self.number, who), self.now.names[who])

    def check(self, store: Store) -> int:
        """After a kill; -> how many actions were under way of which nobody had heard."""
        found = store.state(self.number)
        possible = self.history[self.confirmed :]
        expected = possible[0] if found not in possible else found
        assert found == expected, f"of {len(possible)} states it can be in, it is in none"
        self.now = found
        self._known()
        self._ids = {**store.tokens(self.number), **store.report_ids(self.number)}
        return len(possible) - 1

    async def come_back(self, world: "World") -> None:
        """Everyone, as far as they may, and finds what the model says."""
        self.world = world
        self.operator = world.operator
        self.lives: dict[int, LiveSpace] = {}
        self.here: set[int] = set()  # in the space
        self.hands: set[int] = set()
        self.held_off: set[int] = set()  # left the stage while they were held
        self._used.clear()
        for who in range(PEOPLE):
            await self._connect(who)
        if self.room is not None:
            self.space = world.store.spaces(self.number)[self.live_number].id
            for who in self.chance.sample(range(PEOPLE), PEOPLE):
                await self._come_in(who)

    async def _connect(self, who: int) -> None:
        live = self.lives[who] = await self.world.enter(self.keys[who])
        mine = (await live.who_am_i()).account
        assert (mine.name, mine.banned) == (self.now.names[who], who in self.now.banned)
        if who in self.now.banned:
            await refused(live.post("let me in"), "banned")
            await self.world.leave(self.lives.pop(who))
            return
        for found, known in (
            (live.blocked(), self.now.blocks),
            (live.following(), self.now.follows),
        ):
            handles = {person.handle async for person in found}
            assert handles == {handle(self.number, b) for a, b in known if a == who}

    async def _come_in(self, who: int) -> None:
        """Into the space, if one is live and nothing is against it."""
        room = self.room
        if room is None or who not in self.lives or who in self.here:
            return
        code = ""
        if who in room.removed:
            code = "removed"
        elif (room.host, who) in self.now.blocks:
            code = "blocked"
        live = self.lives[who]
        if code:
            await refused(live.join(self.space, despite_blocked=True), code)
            return
        await live.join(self.space, despite_blocked=True)
        me, place = live.me, room.place(who) or Place(who, Role.LISTENER)
        assert (me.role, me.muted, me.held) == place[1:]
        assert (live.title, live.settings.slow_s) == (room.title, room.slow_s)
        self.here.add(who)
        if room.host == who:
            tokens = {invite.invite for invite in await live.invites()}
            assert {self._ids[i.number] for i in room.invites if i.number > 1} <= tokens
            assert len(tokens) == len(room.invites)

    async def play(self) -> None:
        """Acts, until it is cancelled or the server is gone."""
        try:
            while True:
                await self._act()
        except SpacesError as error:
            if str(error) != LOST:
                raise

    async def _act(self) -> None:
        actor = self._actor()
        if self.room is not None and self.room.role(actor) in (Role.HOST, Role.CO_HOST):
            await self._raise_hands()
        requests: list[Awaitable[None]] = []
        for _ in range(self.chance.randint(1, MOST_AT_ONCE)):
            action = self.chance.choice(ACTIONS)
            request = action(self, actor)
            if request is not None:
                self.history.append(copy.deepcopy(self.now))
                live = self.operator if actor == OPERATOR else self.lives[actor]
                done = self._done(request, live, len(self.history) - 1)
                requests.append(asyncio.ensure_future(done))
            if request is not None and action in ALONE:
                break
        await asyncio.gather(*requests)
        await self._follow_up()

    async def _done(self, request: Request, live: "LiveSpace", number: int) -> None:
        await request(live)
        self.confirmed = max(self.confirmed, number)
        self._confirm()

    async def _follow_up(self) -> None:
        """Whoever can be in the space, and is not, comes in; who is not banned any more, connects;
        who is, is disconnected."""
        for who in range(PEOPLE):
            if who in self.now.banned and who in self.lives:
                await self.world.leave(self.lives.pop(who))
            elif who not in self.now.banned and who not in self.lives:
                await self._connect(who)
        for who in range(PEOPLE):
            if self.chance.random() < 0.7:
                await self._come_in(who)

    async def _raise_hands(self) -> None:
        assert self.room is not None
        for who in self.here - self.hands:
            if self.room.role(who) is Role.LISTENER:
                await self.lives[who].raise_hand()
                self.hands.add(who)

    def _actor(self) -> int:
        if self.chance.random() < 0.15:
            return OPERATOR
        people = sorted(self.lives)
        if self.room is not None and self.chance.random() < 0.7:
            hosts = [p.who for p in self.room.stage if p.role is not Role.SPEAKER]
            people = sorted(self.here & set(hosts)) or people
        return self.chance.choice(people) if people else OPERATOR

    # -- what the model knows ----------------------------------------------------------------------

    @property
    def live_number(self) -> int:
        return next((n for n, room in self.now.rooms.items() if not room.ended), 0)

    @property
    def room(self) -> Room | None:
        return self.now.rooms.get(self.live_number)

    def may(self, action: Action, actor: int) -> Room | None:
        """The space, if somebody who is in it may do this there at all."""
        room = self.room
        if room is None or actor not in self.here:
            return None
        roles = (Role.HOST, Role.CO_HOST, Role.SPEAKER, Role.LISTENER)
        mine = room.role(actor)
        able = allowed(action, mine, mine, same=True) or any(
            allowed(action, mine, role, same=False) for role in roles
        )
        return room if able else None

    def targets(self, action: Action, actor: int) -> list[int]:
        """On whom, beside oneself, somebody may do this."""
        room = self.may(action, actor)
        if room is None:
            return []
        mine = room.role(actor)
        others = sorted(self.here - {actor})
        return [who for who in others if allowed(action, mine, room.role(who), same=False)]

    def one(self, people: list[int]) -> int | None:
        return self.chance.choice(people) if people else None

    def member(self, who: int) -> int:
        return self.lives[who].me.id

    def apart(self, one: int, other: int) -> bool:
        return not self.now.blocks.isdisjoint({(one, other), (other, one)})

    def another(self, actor: int) -> int:
        return self.chance.choice([who for who in range(PEOPLE) if who != actor])

    # -- what the model does -----------------------------------------------------------------------

    def come_up(self, room: Room, who: int, *, forgiven: bool) -> None:
        held = who in self.held_off and not forgiven
        self.held_off.discard(who)
        self.hands.discard(who)
        room.stage.append(Place(who, Role.SPEAKER, held, held))

    def step_down(self, room: Room, who: int) -> None:
        place = room.place(who)
        assert place is not None
        if place.held:
            self.held_off.add(who)
        room.drop(who)

    def vacate(self, who: int) -> None:
        room = self.room
        if room is None or room.place(who) is None:
            return
        was_host = room.role(who) is Role.HOST
        self.step_down(room, who)
        if was_host:
            heirs = [p.who for p in room.stage if p.role is Role.CO_HOST and p.who in self.here]
            if heirs:
                room.host = heirs[0]
                room.appoint(heirs[0], Role.HOST)
            else:
                self.end(room)

    def end(self, room: Room) -> None:
        room.ended = True
        room.stage.clear()
        room.invites.clear()
        self.here.clear()
        self.hands.clear()
        self.held_off.clear()

    def go(self, who: int) -> None:
        self.here.discard(who)
        self.hands.discard(who)

    def spend(self, who: int, by: int) -> None:
        """No invite that there is grants anything to whom somebody else has taken down."""
        if self.room is not None and who != by:
            self._used |= {(invite.number, who) for invite in self.room.invites}

    def throw_out(self, room: Room, who: int) -> None:
        room.removed.add(who)
        room.withdraw(who)
        self.go(who)
        self.vacate(who)

    def blocks_changed(self, one: int, other: int) -> None:
        for blocker, blocked in ((one, other), (other, one)):
            room = self.room
            if room is None or room.host != blocker or (blocker, blocked) not in self.now.blocks:
                continue
            if blocked in self.here or room.place(blocked) is not None:
                self.throw_out(room, blocked)

    def shut_out(self, who: int) -> None:
        self.now.banned.add(who)
        if self.room is not None:
            self.room.withdraw(who)
        self.go(who)
        self.vacate(who)


# -- the actions: each changes the model, and gives the request; None if it cannot be now ----------


def open_space(t: Troupe, actor: int) -> Request | None:
    if actor == OPERATOR or t.room is not None:
        return None
    number = t._number()
    title = f"room {number}"
    t.now.rooms[number] = Room(host=actor, title=title, stage=[Place(actor, Role.HOST)])
    t.here.add(actor)

    async def request(live: "LiveSpace") -> None:
        await live.open(title)
        t.space = live.client.view.id

    return request


def close_space(t: Troupe, actor: int) -> Request | None:
    room = t.may(Action.CLOSE, actor)
    if room is None or t.chance.random() < 0.7:
        return None
    t.end(room)
    return lambda live: live.close()


def configure(t: Troupe, actor: int) -> Request | None:
    room = t.may(Action.CONFIGURE, actor)
    if room is None:
        return None
    title = f"room {t.live_number} take {t._number()}"
    room.title, room.slow_s = title, t._numbers
    slow_s = room.slow_s
    return lambda live: live.configure(title=title, slow_s=slow_s)


def bring_up(t: Troupe, actor: int) -> Request | None:
    who = t.one([who for who in t.targets(Action.BRING_UP, actor) if who in t.hands])
    if who is None:
        return None
    assert t.room is not None
    t.come_up(t.room, who, forgiven=True)
    member = t.member(who)
    return lambda live: live.bring_up(member)


def take_down(t: Troupe, actor: int) -> Request | None:
    who = t.one(t.targets(Action.TAKE_DOWN, actor))
    if who is None:
        return None
    assert t.room is not None
    t.step_down(t.room, who)
    t.spend(who, actor)
    member = t.member(who)
    return lambda live: live.take_down(member)


def appoint(t: Troupe, actor: int) -> Request | None:
    who = t.one(t.targets(Action.APPOINT, actor))
    if who is None or t.room is None or t.room.co_hosts >= MOST_CO_HOSTS:
        return None
    t.room.appoint(who, Role.CO_HOST)
    member = t.member(who)
    return lambda live: live.appoint(member)


def dismiss(t: Troupe, actor: int) -> Request | None:
    who = t.one(t.targets(Action.DISMISS, actor))
    if who is None:
        return None
    assert t.room is not None
    t.room.appoint(who, Role.SPEAKER)
    t.spend(who, actor)
    member = t.member(who)
    return lambda live: live.dismiss(member)


def hand_over(t: Troupe, actor: int) -> Request | None:
    who = t.one(t.targets(Action.HAND_OVER, actor))
    if who is None:
        return None
    assert t.room is not None
    t.room.host = who
    t.room.appoint(who, Role.HOST)
    full = t.room.co_hosts >= MOST_CO_HOSTS
    t.room.appoint(actor, Role.SPEAKER if full else Role.CO_HOST)
    member = t.member(who)
    return lambda live: live.hand_over(member)


def mute(t: Troupe, actor: int) -> Request | None:
    who = t.one(t.targets(Action.MUTE, actor))
    if who is None:
        return None
    assert t.room is not None
    t.room.change(who, muted=True, held=True)
    member = t.member(who)
    return lambda live: live.mute(member)


def mute_all(t: Troupe, actor: int) -> Request | None:
    room = t.may(Action.MUTE_ALL, actor)
    if room is None:
        return None
    for place in room.stage:
        if place.who != actor and allowed(Action.MUTE, room.role(actor), place.role, same=False):
            room.change(place.who, muted=True, held=True)
    return lambda live: live.mute_all()


def let_unmute(t: Troupe, actor: int) -> Request | None:
    who = t.one(t.targets(Action.LET_UNMUTE, actor))
    if who is None:
        return None
    assert t.room is not None
    t.room.change(who, held=False)
    member = t.member(who)
    return lambda live: live.let_unmute(member)


def mute_oneself(t: Troupe, actor: int) -> Request | None:
    room = t.may(Action.UNMUTE, actor)
    place = None if room is None else room.place(actor)
    if room is None or place is None or place.held:
        return None
    room.change(actor, muted=not place.muted)
    return (lambda live: live.unmute()) if place.muted else (lambda live: live.mute())


def remove(t: Troupe, actor: int) -> Request | None:
    who = t.one(t.targets(Action.REMOVE, actor))
    if who is None or t.chance.random() < 0.5:
        return None
    assert t.room is not None
    member = t.member(who)
    t.throw_out(t.room, who)
    return lambda live: live.remove(member)


def leave(t: Troupe, actor: int) -> Request | None:
    if t.may(Action.LEAVE, actor) is None or t.chance.random() < 0.5:
        return None
    t.go(actor)
    t.vacate(actor)
    return lambda live: live.leave()


def come_by_invite(t: Troupe, actor: int) -> Request | None:
    room = t.room
    if room is None or actor in {OPERATOR, *t.here, *room.removed}:
        return None
    if (room.host, actor) in t.now.blocks or room.place(actor) is not None:
        return None
    usable = sorted(i for i in room.invites if i.number > 1 and (i.number, actor) not in t._used)
    usable = [invite for invite in usable if invite.number in t._ids]
    if not usable:
        return None
    invite = t.chance.choice(usable)
    t._used.add((invite.number, actor))
    room.invites.remove(invite)
    room.invites.add(invite._replace(uses=invite.uses + 1))
    t.here.add(actor)
    if invite.role is Role.SPEAKER:
        t.come_up(room, actor, forgiven=False)
    space, token = t.space, t._ids[invite.number]
    return lambda live: live.join(space, invite=token, despite_blocked=True)


def make_invite(t: Troupe, actor: int) -> Request | None:
    room = t.may(Action.MAKE_INVITE, actor)
    if room is None or len(room.invites) >= MOST_INVITES:
        return None
    number = t._number()
    role = t.chance.choice([Role.SPEAKER, Role.LISTENER])
    room.invites.add(Invite(number, actor, role, ANYBODY))

    async def request(live: "LiveSpace") -> None:
        t._ids[number] = (await live.make_invite(role, max_uses=number)).invite

    return request


def revoke_invite(t: Troupe, actor: int) -> Request | None:
    room = t.may(Action.REVOKE_INVITE, actor)
    known = [] if room is None else sorted(i for i in room.invites if i.number in t._ids)
    if room is None or not known:
        return None
    invite = t.chance.choice(known)
    room.invites.remove(invite)
    token = t._ids[invite.number]
    return lambda live: live.revoke_invite(token)


def invite_person(t: Troupe, actor: int) -> Request | None:
    room = t.may(Action.INVITE_PERSON, actor)
    who = t.another(actor)
    if room is None or who in room.removed | t.now.banned or t.apart(actor, who):
        return None
    if len(room.invites) >= MOST_INVITES:
        return None
    room.invites = {invite for invite in room.invites if invite.person != who}
    room.invites.add(Invite(1, actor, Role.SPEAKER, who))
    text = f"message {t._number()}"
    t.now.messages.append((actor, who, text, True))
    person = handle(t.number, who)
    return lambda live: live.invite_person(person, Role.SPEAKER, text)


def follow(t: Troupe, actor: int) -> Request | None:
    who = t.another(actor)
    if actor == OPERATOR or t.apart(actor, who):
        return None
    person = handle(t.number, who)
    if (actor, who) in t.now.follows:
        t.now.follows.remove((actor, who))
        return lambda live: live.unfollow(person)
    t.now.follows.add((actor, who))
    return lambda live: live.follow(person)


def block(t: Troupe, actor: int) -> Request | None:
    who = t.another(actor)
    if actor == OPERATOR:
        return None
    person = handle(t.number, who)
    if (actor, who) in t.now.blocks:
        t.now.blocks.remove((actor, who))
        t.blocks_changed(actor, who)
        return lambda live: live.unblock(person)
    if t.chance.random() < 0.6:
        return None
    t.now.blocks.add((actor, who))
    t.now.follows -= {(actor, who), (who, actor)}
    t.blocks_changed(actor, who)
    return lambda live: live.block(person)


def write(t: Troupe, actor: int) -> Request | None:
    who = t.another(actor)
    if actor == OPERATOR or who in t.now.banned or t.apart(actor, who):
        return None
    text = f"message {t._number()}"
    t.now.messages.append((actor, who, text, False))
    person = handle(t.number, who)
    return lambda live: live.send_message(person, text)


def post(t: Troupe, actor: int) -> Request | None:
    if actor == OPERATOR:
        return None
    text = f"post {t._number()}"
    t.now.posts.append((actor, text))
    return lambda live: live.post(text)


def rename(t: Troupe, actor: int) -> Request | None:
    if actor == OPERATOR:
        return None
    name = f"person {actor} {t._number()}"
    t.now.names[actor] = name
    return lambda live: live.rename(name)


def report(t: Troupe, actor: int) -> Request | None:
    who = t.another(actor)
    if actor == OPERATOR or (actor, who, "") in t.now.reports.values():
        return None
    number = t._number()
    t.now.reports[number] = actor, who, ""
    person, note = handle(t.number, who), f"report {number}"

    async def request(live: "LiveSpace") -> None:
        t._ids[number] = (await live.report(Category.SPAM, note, person=person)).report

    return request


def act(t: Troupe, actor: int) -> Request | None:
    open_ = [n for n, (_, _, outcome) in t.now.reports.items() if not outcome and n in t._ids]
    if actor != OPERATOR or not open_:
        return None
    number = t.chance.choice(open_)
    reporter, who, _ = t.now.reports[number]
    outcome = t.chance.choice([Outcome.DISMISS, Outcome.WARN, Outcome.BAN])
    t.now.reports[number] = reporter, who, outcome.value
    if outcome is Outcome.WARN:
        t.now.told.append((who, "warned"))
    if outcome is Outcome.BAN:
        t.shut_out(who)
    t.now.told.append((reporter, "outcome"))
    found = t._ids[number]
    return lambda live: live.act(found, outcome, "so it is")


def ban(t: Troupe, actor: int) -> Request | None:
    if actor != OPERATOR:
        return None
    who = t.chance.randrange(PEOPLE)
    person = handle(t.number, who)
    if who in t.now.banned:
        t.now.banned.remove(who)
        return lambda live: live.unban(person)
    if len(t.now.banned) >= 2:
        return None
    t.shut_out(who)
    return lambda live: live.ban(person, "enough")


# After these, others have something to do before the troupe goes on.
ALONE = (open_space, close_space, leave, come_by_invite, ban, act, remove, block)
ACTIONS = (
    *ALONE, configure, bring_up, bring_up, take_down, appoint, appoint, dismiss, hand_over, mute,
    mute, mute_all, let_unmute, mute_oneself, make_invite, revoke_invite, invite_person, follow,
    write, post, rename, report,
)  # fmt: skip


# -- the server, and who kills it ------------------------------------------------------------------


class World:
    """One life of the server, with everyone's sessions."""

    def __init__(self, link: Link, operator_key: bytes, store: Store) -> None:
        self.link = link
        self.store = store
        self.operator: LiveSpace
        self._operator_key = operator_key
        self._sessions: dict[LiveSpace, Any] = {}

    async def begin(self) -> None:
        self.operator = await self.enter(self._operator_key)

    async def enter(self, key: bytes) -> "LiveSpace":
        """A session, until `leave` or `end`."""
        opened = session(self.link, key=key)
        live = await opened.__aenter__()
        self._sessions[live] = opened
        return live

    async def leave(self, live: "LiveSpace") -> None:
        await self._sessions.pop(live).__aexit__(None, None, None)

    async def end(self) -> None:
        await asyncio.gather(*(self.leave(live) for live in list(self._sessions)))


class Servers:
    """Forks servers; see `fork_servers`."""

    def __init__(self, folder: Path, url: str) -> None:
        self.data = folder / "data"
        self._log = folder / "log"
        self._arguments = [
            "run", "--host", "127.0.0.1", "--port", "0", "--data", str(self.data),
            "--database", url, "--no-rate-limits", "--no-qr",
        ]  # fmt: skip
        self._pid = 0
        with self._log.open("w") as log:
            self._forks = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    async def _line(self) -> str:
        assert self._forks.stdout is not None
        return (await asyncio.to_thread(self._forks.stdout.readline)).strip()

    async def start(self) -> Link:
        assert self._forks.stdin is not None
        self._forks.stdin.write(json.dumps(self._arguments) + "\n")
        self._forks.stdin.flush()
        self._pid = int(await self._line())
        line = await self._line()
        assert line.startswith("spaces://"), f"{line!r}: {self._log.read_text()[-2_000:]}"
        return Link.parse(line)

    async def end(self, number: int) -> None:
        if self._pid:
            os.kill(self._pid, number)
            self._pid = 0
            assert await self._line() == "dead"
            assert "Traceback" not in self._log.read_text()

    def close(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        with self._forks:
            assert self._forks.stdin is not None
            self._forks.stdin.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_what_was_acknowledged_outlives_a_kill_and_nothing_is_done_by_half(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    if kind == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.emptied()
    reader = engine_for(url)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # shown if it fails; the moments of the kills are never the same again
    chance = random.Random(seed)
    left, enough = 0, asyncio.Event()

    def confirm() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            enough.set()

    troupes = [Troupe(n, random.Random(seed + n), confirm) for n in range(TROUPES)]
    confirmed = under_way = 0
    endings: list[asyncio.Task[None]] = []
    with contextlib.closing(Servers(tmp_path, url)) as servers:
        link = await servers.start()
        for troupe in troupes:
            await troupe.register(link)
        store = Store(everything(reader))
        for life in range(KILLS + 1):
            if life:
                link = await servers.start()
            world = World(link, load_key(servers.data / "operator.key")[0], store)
            await world.begin()
            await asyncio.gather(*(troupe.come_back(world) for troupe in troupes))
            if life == KILLS:
                await world.end()
                await servers.end(signal.SIGTERM)
                break
            left = chance.randrange(1, MOST_CONFIRMED)
            enough.clear()
            await killed_while(
                [troupe.play() for troupe in troupes], enough, servers, chance.uniform(0, LONGEST_S)
            )
            endings.append(asyncio.ensure_future(world.end()))
            with contextlib.closing(Database(url)):  # waits, if PostgreSQL works for the dead
                store = Store(everything(reader))
            confirmed += sum(troupe.confirmed for troupe in troupes)
            under_way += sum(troupe.check(store) for troupe in troupes)
        await asyncio.gather(*endings)
    print(f"{confirmed} actions confirmed, {under_way} under way when the server was killed")
    assert confirmed > KILLS
    reader.dispose()


async def killed_while(
    plays: list[Coroutine[Any, Any, None]], enough: asyncio.Event, servers: Servers, wait_s: float
) -> None:
    """The plays go on until the server has been killed, which is some time after `enough`."""
    playing = [asyncio.ensure_future(play) for play in plays]

    async def kill() -> None:
        await enough.wait()
        await asyncio.sleep(wait_s)  # to be anywhere in its work
        await servers.end(signal.SIGKILL)
        for play in playing:
            play.cancel()

    killing = asyncio.ensure_future(kill())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([killing, *playing], return_when=asyncio.FIRST_EXCEPTION)
        for task in (killing, *playing):
            if task.done() and not task.cancelled():
                task.result()
    finally:
        for task in (killing, *playing):
            task.cancel()


def fork_servers() -> None:
    """One for each line of input, which has its arguments; says which process it is, and when it
    is dead."""
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            os.write(1, b"%d\n" % os.getpid())
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            main(json.loads(line))
        os.waitpid(pid, 0)
        os.write(1, b"dead\n")


if __name__ == "__main__":
    # With what is imported only when it is needed.
    import psycopg  # noqa: F401 - for the servers that are forked from here

    import spaces_server.server  # noqa: F401 - the same
    from spaces_server.cli import main

    fork_servers()
else:
    # What only the tests need: a server has no use for it.
    import msgspec

    from spaces_client.live import LiveSpace, SpacesError, session
    from spaces_client.shell import LOST
    from spaces_server import records
    from spaces_server.store.database import Database
    from tests.integration.postgres import Postgres
    from tests.integration.postgres import postgres as postgres  # a fixture
    from tests.integration.processes import PATIENCE_S
    from tests.unit.test_store import Model, engine_for, everything
