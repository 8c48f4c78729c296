"""Who may do what, over whole evenings: a space against a reference model.

The model is written from the table of permissions and the rules that frames state, not from the
space's code, and knows nothing of frames, effects or records.  Random people make random requests,
come back on other devices, lose their sessions, are removed, let time pass; after each step the
space and the model agree on whether it was refused and why, on every role, mute and hand, and on
who is mixed; and what was saved makes the same stage again.

SPACES_AUTHORITY_COMMANDS says how many commands the long run takes.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from protocol import frames
from protocol.frames import ErrorCode, Settings, WhoSpeaks
from protocol.roles import PERMISSIONS, SELF, Action, Role
from spaces_server.policy.effects import (
    Answer,
    Effect,
    Left,
    Moment,
    RefusedError,
    SourceAdded,
    SourceRemoved,
    SpaceEnded,
    Tell,
)
from spaces_server.policy.invites import MAX_INVITES
from spaces_server.policy.space import ACTIONS, Space, SpaceRules
from spaces_server.policy.stage import Stage
from spaces_server.records import RemovalRecord, SpaceRecord, StageRecord
from tests.unit.town import ID, START, Image, S, Town, entropy, new_record, restore

Who = int | str  # an account's number, a guest's name

COMMANDS = int(os.environ.get("SPACES_AUTHORITY_COMMANDS", "10000"))
PEOPLE: list[Who] = [1, 2, 3, 4, 5, 6, 7, "guest a", "guest b"]
STAGE, CO_HOSTS, GRACE_S, MAX_MEMBERS = 4, 2, 60, 7
SETTINGS = Settings(who_speaks=WhoSpeaks.FOLLOWED)
FOLLOWED = {(1, 3), (2, 4), (3, 5)}  # by whoever is host


class No(Exception):  # noqa: N818 - an answer of the model, no error
    """The model refuses."""


# -- the model ------------------------------------------------------------------------------------


@dataclass
class Place:
    role: Role
    order: int
    muted: bool = False
    held: bool = False


@dataclass
class Ticket:
    """An invite."""

    role: Role
    max_uses: int
    issuer: Who
    used_by: set[Who] = field(default_factory=set)
    uses: int = 0


@dataclass
class Model:
    """The rules, in their own words."""

    host: Who = 1
    here: set[Who] = field(default_factory=set)
    stage: dict[Who, Place] = field(default_factory=dict)
    away: dict[Who, float] = field(default_factory=dict)  # on stage, session lost -> until when
    hands: set[Who] = field(default_factory=set)
    offers: dict[Who, Who] = field(default_factory=dict)  # to whom -> by whom
    removed: set[Who] = field(default_factory=set)
    held: set[Who] = field(default_factory=set)  # who left the stage held
    tickets: dict[str, Ticket] = field(default_factory=dict)
    lines: dict[int, Who] = field(default_factory=dict)
    said: int = 0
    who_speaks: WhoSpeaks = WhoSpeaks.FOLLOWED
    free_unmute: bool = False
    ended: bool = False
    orders: int = 0

    def role(self, who: Who) -> Role:
        if who in self.stage:
            return self.stage[who].role
        return Role.GUEST if isinstance(who, str) else Role.LISTENER

    def permit(self, action: Action, actor: Who, target: Who) -> None:
        cell = PERMISSIONS[action][self.role(actor)]
        if (SELF if actor == target else self.role(target)) not in cell:
            raise No(ErrorCode.NOT_ALLOWED)

    # coming and going

    def check(self, ok: bool, code: ErrorCode) -> None:
        if not ok:
            raise No(code)

    def enter(self, who: Who, token: str | None) -> None:
        self.check(who not in self.removed, ErrorCode.REMOVED)
        grants = None
        if token is not None and who not in self.stage:
            ticket = self.tickets.get(token)
            if ticket is None:
                raise No(ErrorCode.BAD_INVITE)
            if who not in ticket.used_by:
                unused = not ticket.max_uses or ticket.uses < ticket.max_uses
                self.check(unused, ErrorCode.INVITE_USED_UP)
                grants = ticket
        full = len(self.here) + len(self.away) >= MAX_MEMBERS
        self.check(who in self.here or who in self.stage or not full, ErrorCode.SPACE_FULL)
        if grants is not None:
            if grants.role.on_stage:
                self.check(not isinstance(who, str), ErrorCode.NO_ACCOUNT)
                self.room(grants.role)
            grants.used_by.add(who)
            grants.uses += 1
        self.here.add(who)
        self.away.pop(who, None)
        self.hands.discard(who)
        self.offers.pop(who, None)
        if grants is not None and grants.role.on_stage:
            self.up(who, grants.role, held=who in self.held)

    def out(self, who: Who) -> None:
        """Gone for good, with what they gave away."""
        self.offers = {whom: by for whom, by in self.offers.items() if by != who}
        self.tickets = {token: t for token, t in self.tickets.items() if t.issuer != who}
        self.go(who)

    def spend(self, actor: Who, target: Who) -> None:
        if actor != target:
            for ticket in self.tickets.values():
                ticket.used_by.add(target)

    def go(self, who: Who) -> None:
        self.here.discard(who)
        self.hands.discard(who)
        self.offers.pop(who, None)
        if who in self.stage:
            self.down(who)
        self.away.pop(who, None)
        if who == self.host:
            heirs = [w for w in self.here if self.role(w) is Role.CO_HOST]
            if not heirs:
                self.ended = True
                return
            self.host = min(heirs, key=lambda w: self.stage[w].order)
            self.become(self.host, Role.HOST)

    def lost(self, who: Who, now_s: float) -> None:
        if who in self.stage:
            self.here.discard(who)
            self.away[who] = now_s + GRACE_S
        else:
            self.go(who)

    def passed(self, now_s: float) -> None:
        for who, until in list(self.away.items()):
            if until <= now_s and not self.ended:
                self.go(who)

    # the stage

    def order(self) -> int:
        self.orders += 1
        return self.orders

    def room(self, role: Role) -> None:
        self.check(len(self.stage) < STAGE, ErrorCode.STAGE_FULL)
        if role is Role.CO_HOST:
            self.room_for_co_host()

    def co_hosts(self) -> int:
        return [place.role for place in self.stage.values()].count(Role.CO_HOST)

    def room_for_co_host(self) -> None:
        self.check(self.co_hosts() < CO_HOSTS, ErrorCode.CO_HOSTS_FULL)

    def up(self, who: Who, role: Role, *, held: bool) -> None:
        self.stage[who] = Place(role, self.order(), held, held)
        self.held.discard(who)
        self.hands.discard(who)
        self.offers.pop(who, None)

    def down(self, who: Who) -> None:
        if self.stage.pop(who).held:
            self.held.add(who)

    def become(self, who: Who, role: Role) -> None:
        place = self.stage[who]
        place.role, place.order = role, self.order()
        if role is Role.HOST:
            place.held = False

    def mute(self, who: Who) -> None:
        place = self.stage[who]
        place.muted, place.held = True, place.held or not self.free_unmute

    # requests; `target` is the actor where nobody is named

    def do(self, action: Action, actor: Who, target: Who, line: int) -> None:
        if action is Action.DELETE_LINE:
            if line not in self.lines:
                raise No(ErrorCode.NO_SUCH_LINE)
            target = self.lines[line]
        self.permit(action, actor, target)
        match action:
            case Action.LEAVE:
                self.go(actor)
            case Action.CLOSE:
                self.ended = True
            case Action.RAISE_HAND:
                self.hands.add(actor)
            case Action.LOWER_HAND:
                self.hands.discard(target)
            case Action.STEP_UP:
                follows = (self.host, actor) in FOLLOWED
                free = self.who_speaks is WhoSpeaks.EVERYONE
                ok = free or (follows and self.who_speaks is WhoSpeaks.FOLLOWED)
                self.check(ok, ErrorCode.NOT_ALLOWED)
                self.room(Role.SPEAKER)
                self.up(actor, Role.SPEAKER, held=actor in self.held)
            case Action.BRING_UP:
                self.check(target in self.hands, ErrorCode.NO_HAND)
                self.room(Role.SPEAKER)
                self.up(target, Role.SPEAKER, held=False)
            case Action.OFFER:
                self.offers[target] = actor
            case Action.ACCEPT:
                self.check(actor in self.offers, ErrorCode.NOT_OFFERED)
                self.room(Role.SPEAKER)
                self.up(actor, Role.SPEAKER, held=False)
            case Action.DECLINE:
                self.check(actor in self.offers, ErrorCode.NOT_OFFERED)
                del self.offers[actor]
            case Action.TAKE_DOWN:
                self.down(target)
                self.spend(actor, target)
            case Action.APPOINT:
                self.room_for_co_host()
                self.become(target, Role.CO_HOST)
            case Action.DISMISS:
                self.become(target, Role.SPEAKER)
                self.spend(actor, target)
            case Action.HAND_OVER:
                self.host = target
                self.become(target, Role.HOST)
                full = self.co_hosts() >= CO_HOSTS
                self.become(actor, Role.SPEAKER if full else Role.CO_HOST)
            case Action.MUTE if actor == target:
                self.stage[actor].muted = True
            case Action.MUTE:
                self.mute(target)
            case Action.MUTE_ALL:
                cell = PERMISSIONS[Action.MUTE][self.role(actor)]
                for who, place in self.stage.items():
                    if who != actor and place.role in cell:
                        self.mute(who)
            case Action.UNMUTE:
                place = self.stage[actor]
                ok = not place.held or self.free_unmute
                self.check(ok, ErrorCode.MUTED_BY_MODERATOR)
                place.muted = place.held = False
            case Action.LET_UNMUTE:
                self.stage[target].held = False
            case Action.REMOVE:
                self.removed.add(target)
                self.out(target)
            case Action.CHAT:
                self.said += 1
                self.lines[self.said] = actor
            case Action.DELETE_LINE:
                del self.lines[line]


T = TypeVar("T")


def refusal(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """What came out of it, and with which code it was refused."""
    try:
        return work(), None
    except RefusedError as error:
        return None, error.code


# -- an evening ---------------------------------------------------------------------------------

ASKED = [action for action in ACTIONS.values() if action is not Action.INVITE_PERSON]
ENDS = (Action.CLOSE, Action.LEAVE, Action.REMOVE, Action.HAND_OVER)  # of power, or a person
UPS = (Action.RAISE_HAND, Action.BRING_UP, Action.OFFER, Action.ACCEPT, Action.APPOINT)
STEPS = [*["ask"] * 16, *["enter"] * 5, *["lost"] * 2, "time", "removed", "banned"]


class Evening:
    """A space and the model of it, and what follows from the effects."""

    def __init__(self, choices: random.Random) -> None:
        self.choices = choices
        self.commands = 0
        self.refusals: dict[str, int] = {}
        self.open()

    def open(self) -> None:
        self.town = Town(followed=set(FOLLOWED))
        self.rules = SpaceRules(
            stage_size=STAGE, co_hosts=CO_HOSTS, max_members=MAX_MEMBERS, grace_s=GRACE_S
        )
        self.space = Space(new_record(SETTINGS), self.town, entropy(), self.rules)
        self.model = Model()
        self.image = Image()
        self.now_s = 0
        self.members: dict[int, Who] = {}
        self.mixed: dict[int, int] = {}  # member -> seat
        self.tokens = ["made-up"]
        member, effects = self.space.enter(self.town.asker(1), None, self.now)
        self.model.here.add(1)
        self.model.up(1, Role.HOST, held=False)
        self.follow(effects, 1, member)

    @property
    def now(self) -> Moment:
        return Moment(START.ns + self.now_s * S, START.utc_s + self.now_s)

    def follow(self, effects: list[Effect], who: Who = 0, entered: int | None = None) -> None:
        """What a node does with effects."""
        self.commands += 1
        self.image.take(effects)
        if entered is not None:
            self.members[entered] = who
        for effect in effects:
            match effect:
                case SourceAdded(member, seat):
                    assert member in self.members
                    assert member not in self.mixed
                    self.mixed[member] = seat
                case SourceRemoved(member):
                    del self.mixed[member]
                case Left(member):
                    del self.members[member]
                    assert member not in self.mixed
                case Tell(member, _):
                    assert member in self.members
                case SpaceEnded():
                    self.members.clear()
                    self.mixed.clear()

    def run(self, commands: int) -> None:
        """commands: that the space gets; what is tried in vain (losing who is not here) is none."""
        end = self.commands + commands
        while self.commands < end:
            self.step()
            if self.choices.random() < 0.01:
                self.comes_back_after_a_restart()
        self.comes_back_after_a_restart()

    def step(self) -> None:
        what = self.choices.choice(STEPS)
        who = self.choices.choice(PEOPLE)
        model = self.model
        match what:
            case "enter":
                self.enter(who)
            case "ask":
                self.ask()
            case "lost" if who in model.here:
                model.lost(who, self.now_s)
                self.follow(self.space.lost(self.member(who), self.now))
            case "time":
                self.now_s += self.choices.choice([1, 20, 61])
                model.passed(self.now_s)
                self.follow(self.space.tick(self.now))
            case "removed" if self.choices.random() < 0.1 and who not in model.removed:
                model.removed.add(who)
                model.out(who)
                key = self.town.asker(who).who
                self.follow(self.space.remove(key, 99, self.now, "by the server"))
            case "banned" if self.choices.random() < 0.1 and isinstance(who, int):
                model.out(who)
                self.follow(self.space.expel({who}, self.now))
        self.agrees()
        if model.ended:
            self.open()

    def member(self, who: Who) -> int:
        return next(m for m, w in self.members.items() if w == who)

    def enter(self, who: Who) -> None:
        token = self.choices.choice(self.tokens[-4:]) if self.choices.random() < 0.4 else None
        request = frames.Join(id=ID, space="room", despite_blocked=True)
        if token is not None:
            request = frames.Join(id=ID, space="room", invite=token)
        asker = self.town.asker(who, self.choices.randrange(2))
        expected = self.expected(lambda: self.model.enter(who, token))
        entered, code = refusal(lambda: self.space.enter(asker, request, self.now))
        assert code == expected, (who, token)
        if entered is not None:
            member, effects = entered
            self.follow(effects, who, member)

    def ask(self) -> None:
        if not self.members:
            return
        model, choose = self.model, self.choices
        members = sorted(self.members)
        host = next((m for m in members if self.members[m] == model.host), members[0])
        actor = host if choose.random() < 0.4 else choose.choice(members)  # hosts have more to do
        action = choose.choice(UPS if choose.random() < 0.4 else ASKED)
        cell = PERMISSIONS[action][model.role(self.members[actor])]
        fitting = [m for m in members if model.role(self.members[m]) in cell]
        aimed = choose.random() < 0.7  # the rest is refused most of the time
        if (aimed and not cell) or (action in ENDS and choose.random() < 0.8):
            return
        kind = next(kind for kind, of in ACTIONS.items() if of is action)
        fields: dict[str, Any] = {}
        target, line = self.members[actor], 0
        if "member" in kind.__struct_fields__ and (
            action not in (Action.LOWER_HAND, Action.TAKE_DOWN, Action.DISMISS, Action.MUTE)
            or choose.random() < 0.8
        ):
            fields["member"] = choose.choice(fitting if aimed and fitting else members)
            target = self.members[fields["member"]]
        match action:
            case Action.SET_VOLUME:
                fields["percent"] = choose.randrange(201)
            case Action.CHAT:
                fields["text"] = "hello"
            case Action.DELETE_LINE:
                fields["line"] = line = max(1, model.said - choose.randrange(3))
            case Action.REACT:
                fields["emoji"] = choose.choice(self.rules.reactions)
            case Action.CONFIGURE:
                fields["free_unmute"] = choose.random() < 0.3
                fields["who_speaks"] = choose.choice(list(WhoSpeaks))
            case Action.MAKE_INVITE:
                fields["role"] = choose.choice([Role.LISTENER, Role.SPEAKER, Role.CO_HOST])
                fields["max_uses"] = choose.randrange(3)
            case Action.REVOKE_INVITE:
                fields["invite"] = choose.choice(self.tokens[-4:])
        who = self.members[actor]
        expected = self.expected(lambda: self.tell_model(action, who, target, line, fields))
        asker = self.town.asker(who)
        request = kind(id=ID, **fields)
        effects, code = refusal(lambda: self.space.handle(actor, asker, request, self.now))
        assert code == expected, (action, who, target)
        if effects is None:
            return
        answer = effects[0]
        assert isinstance(answer, Answer)
        if isinstance(answer.frame, frames.Invited):
            self.tokens.append(answer.frame.invite)
            model.tickets[answer.frame.invite] = Ticket(fields["role"], fields["max_uses"], who)
        self.follow(effects)

    def tell_model(
        self, action: Action, who: Who, target: Who, line: int, fields: dict[str, Any]
    ) -> None:
        """What concerns invites and settings is checked here: the model has them as they are."""
        model = self.model
        co_hosts_only_by_host = (
            fields.get("role") is Role.CO_HOST and model.role(who) is not Role.HOST
        )
        model.do(action, who, target, line)
        match action:
            case Action.MAKE_INVITE:
                model.check(not co_hosts_only_by_host, ErrorCode.NOT_ALLOWED)
                live = {
                    token: t for token, t in model.tickets.items() if not 0 < t.max_uses <= t.uses
                }
                model.check(len(live) < MAX_INVITES, ErrorCode.TOO_MANY)
                if len(model.tickets) >= MAX_INVITES:  # those used up make room
                    model.tickets = live
            case Action.REVOKE_INVITE:
                ticket = model.tickets.get(fields["invite"])
                if ticket is None:
                    raise No(ErrorCode.BAD_INVITE)
                mine = ticket.role is not Role.CO_HOST or model.role(who) is Role.HOST
                model.check(mine, ErrorCode.NOT_ALLOWED)
                del model.tickets[fields["invite"]]
            case Action.CONFIGURE:
                model.free_unmute = fields["free_unmute"]
                model.who_speaks = fields["who_speaks"]

    def expected(self, work: Callable[[], None]) -> ErrorCode | None:
        try:
            work()
        except No as no:
            code: ErrorCode = no.args[0]
            self.commands += 1
            self.refusals[code] = self.refusals.get(code, 0) + 1
            return code
        return None

    # -- what must be the same -----------------------------------------------------------------

    def agrees(self) -> None:
        model, space = self.model, self.space
        assert space.ended == model.ended
        (record,) = self.image.of(SpaceRecord)
        saved = {place.account: place for place in self.image.of(StageRecord)}
        assert record == space.record
        if model.ended:
            assert not saved
            assert not space.batches(self.now.ns + 10 * S)
            return
        assert record.host == model.host
        assert sorted(map(str, self.members.values())) == sorted(map(str, model.here))
        mixed = {}
        for member, who in self.members.items():
            view = space.view(member)
            place = model.stage.get(who)
            assert view.role is model.role(who)
            assert bool(view.hand) == (who in model.hands)
            assert view.muted == (place is not None and place.muted)
            assert view.held == (place is not None and place.held)
            if place is not None and not place.muted:
                mixed[member] = view.seat
        assert self.mixed == mixed
        assert len(set(mixed.values())) == len(mixed)
        assert space.listeners == len(model.here) - len(model.here & model.stage.keys())
        stage = {who: (p.role, p.muted, p.held) for who, p in model.stage.items()}
        assert {a: (Role(p.role), p.muted, p.held) for a, p in saved.items()} == stage
        by_order = sorted(saved, key=lambda account: saved[account].order)
        assert by_order == sorted(stage, key=lambda who: model.stage[who].order)
        gone = {r.account or r.key for r in self.image.of(RemovalRecord)}
        assert gone == {self.town.asker(who).who for who in model.removed}
        assert len(stage) <= STAGE
        assert model.co_hosts() <= CO_HOSTS

    def comes_back_after_a_restart(self) -> None:
        """Everybody joins the space that is made of what was saved."""
        record = self.image.of(SpaceRecord)[0]
        again = restore(record, self.image, self.town, self.rules, self.now)
        for who in self.model.stage.keys() | self.model.removed:
            asker, request = self.town.asker(who), frames.Join(id=ID, space="room")
            _, code = refusal(lambda: again.enter(asker, request, self.now))  # noqa: B023 - called at once, not later
            assert code == (ErrorCode.REMOVED if who in self.model.removed else None)
            if code is not None:
                continue
            member = again.member_of(asker.who)
            assert member is not None
            view, place = again.view(member), self.model.stage[who]
            assert (view.role, view.muted, view.held) == (place.role, place.muted, place.held)
        assert again.stage_accounts() == self.model.stage.keys()


class AnyEvening(RuleBasedStateMachine):
    """Short evenings that hypothesis can make shorter, to show what went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.evening: Evening | None = None

    @rule(choices=st.randoms(use_true_random=False), tries=st.integers(1, 10))
    def goes_on(self, choices: random.Random, tries: int) -> None:
        if self.evening is None:
            self.evening = Evening(choices)
        self.evening.choices = choices
        for _ in range(tries):
            self.evening.step()
        self.evening.comes_back_after_a_restart()


AnyEvening.TestCase.settings = settings(max_examples=15, stateful_step_count=10, deadline=None)
TestAnyEvening = AnyEvening.TestCase


def test_long_evenings() -> None:
    evening = Evening(random.Random(4))
    evening.run(COMMANDS)
    # A run that reaches these has been everywhere.
    reached = {
        ErrorCode.NOT_ALLOWED,
        ErrorCode.STAGE_FULL,
        ErrorCode.CO_HOSTS_FULL,
        ErrorCode.SPACE_FULL,
        ErrorCode.NO_HAND,
        ErrorCode.NOT_OFFERED,
        ErrorCode.MUTED_BY_MODERATOR,
        ErrorCode.REMOVED,
        ErrorCode.INVITE_USED_UP,
        ErrorCode.BAD_INVITE,
        ErrorCode.NO_ACCOUNT,
        ErrorCode.NO_SUCH_LINE,
    }
    if COMMANDS >= 10_000:
        assert reached <= set(evening.refusals)


def test_the_model_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A space that lets too many on its stage is found out."""
    monkeypatch.setattr(Stage, "check_room", lambda stage, role: None)
    with pytest.raises(AssertionError):
        Evening(random.Random(4)).run(10_000)
