"""A space as pure policy: every role, every request, and what nobody may do."""

import copy
import dataclasses
import itertools
import os
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol import frames
from protocol.connection import MS
from protocol.frames import ErrorCode, Member, decode_feed
from protocol.roles import Action, Role
from spaces_client.view import SpaceView
from spaces_server.space import (
    MAX_HANDS,
    MAX_INVITES,
    SEATS,
    Answer,
    Effect,
    Left,
    RefusedError,
    SourceAdded,
    SourceRemoved,
    Space,
    SpaceEnded,
    Tell,
)
from tests.unit.test_roles import may

NOW = 1_000 * MS
ID = 77  # of the requests here

REQUESTS: dict[Action, type[frames.Request]] = {
    Action.RAISE_HAND: frames.RaiseHand,
    Action.LOWER_HAND: frames.LowerHand,
    Action.BRING_UP: frames.BringUp,
    Action.TAKE_DOWN: frames.TakeDown,
    Action.APPOINT: frames.Appoint,
    Action.DISMISS: frames.Dismiss,
    Action.MUTE: frames.Mute,
    Action.UNMUTE: frames.Unmute,
    Action.INVITE: frames.Invite,
    Action.CLOSE: frames.Close,
    Action.LEAVE: frames.Leave,
}
AIMED = [a for a in REQUESTS if "member" in REQUESTS[a].__struct_fields__]


def state(space: Space) -> dict[str, Any]:
    """A deep copy of everything a space knows."""
    parts = {f.name: getattr(space, f.name) for f in dataclasses.fields(space)}
    return copy.deepcopy(parts | {"feed": vars(space.feed)})


def request(kind: type[frames.Request], **fields: Any) -> frames.Request:
    return kind(id=ID, **fields)


def act(space: Space, actor: int, kind: type[frames.Request], **fields: int) -> list[Effect]:
    """Carries a request out and checks that it is answered exactly once, first and to the id."""
    effects = space.handle(actor, request(kind, **fields), NOW)
    answers = [e.frame for e in effects if isinstance(e, Answer)]
    assert len(answers) == 1
    assert isinstance(effects[0], Answer)
    assert isinstance(answers[0], frames.Reply)
    assert answers[0].re == ID
    return effects


def refused(
    space: Space, actor: int, code: ErrorCode, kind: type[frames.Request], **fields: int
) -> None:
    """The request is refused, and nothing is changed by it."""
    before = state(space)
    with pytest.raises(RefusedError) as error:
        space.handle(actor, request(kind, **fields), NOW)
    assert error.value.code == code
    assert str(error.value) == frames.ERROR_TEXTS[code]
    assert state(space) == before


def enters(space: Space, name: str, **options: Any) -> int:
    invite = options.pop("invite", None)
    identity = options.pop("identity", name.encode())
    member, _ = space.enter(name, identity, invite, NOW, **options)
    return member


def invite(space: Space, host: int) -> str:
    (answer,) = act(space, host, frames.Invite)
    assert isinstance(answer, Answer)
    assert isinstance(answer.frame, frames.Invited)
    return answer.frame.invite


def people(space: Space) -> dict[int, Member]:
    """Everybody, by the pages of the roster."""
    found: dict[int, Member] = {}
    anybody = space.snapshot().members[0].id
    while True:
        (answer,) = act(space, anybody, frames.Roster, after=max(found, default=0))
        assert isinstance(answer, Answer)
        page = answer.frame
        assert isinstance(page, frames.RosterPage)
        found |= {m.id: m for m in page.members}
        if not page.more:
            return found


def opened(**options: Any) -> tuple[Space, int]:
    space = Space("room", "a title", os.urandom, **options)
    return space, enters(space, "host", host=True)


Cast = dict[Role, list[int]]


def cast(**options: Any) -> tuple[Space, Cast]:
    """A space with a host and two of every other role; the listeners have raised their hands."""
    space, host = opened(**options)
    token = invite(space, host)
    co_hosts = [enters(space, f"co-host {i}", invite=token) for i in range(2)]
    speakers = [enters(space, f"speaker {i}", invite=token) for i in range(2)]
    listeners = [enters(space, f"listener {i}") for i in range(2)]
    for member in co_hosts:
        act(space, host, frames.Appoint, member=member)
    for member in listeners:
        act(space, member, frames.RaiseHand)
    return space, {
        Role.HOST: [host],
        Role.CO_HOST: co_hosts,
        Role.SPEAKER: speakers,
        Role.LISTENER: listeners,
    }


# -- permissions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("action", AIMED)
def test_who_may_act_on_whom(action: Action) -> None:
    for actor_role, target_role in itertools.product(Role, Role):
        space, roles = cast()
        actor = roles[actor_role][0]
        target = next((m for m in roles[target_role] if m != actor), None)
        if target is None:
            continue  # there is one host
        if may(action, actor_role, target_role, same=False):
            act(space, actor, REQUESTS[action], member=target)
        else:
            refused(space, actor, ErrorCode.NOT_ALLOWED, REQUESTS[action], member=target)


@pytest.mark.parametrize("action", AIMED)
@pytest.mark.parametrize("role", Role)
def test_who_may_act_on_oneself(action: Action, role: Role) -> None:
    kind = REQUESTS[action]
    fields = [("member",), ()] if kind not in (frames.BringUp, frames.Appoint) else [("member",)]
    for given in fields:
        space, roles = cast()
        me = roles[role][0]
        named = dict.fromkeys(given, me)
        if may(action, role, role, same=True):
            act(space, me, kind, **named)
        else:
            refused(space, me, ErrorCode.NOT_ALLOWED, kind, **named)


@pytest.mark.parametrize("action", [a for a in REQUESTS if a not in AIMED])
@pytest.mark.parametrize("role", Role)
def test_what_each_role_may_do(action: Action, role: Role) -> None:
    space, roles = cast()
    me = roles[role][0]
    if may(action, role, role, same=True):
        act(space, me, REQUESTS[action])
    else:
        refused(space, me, ErrorCode.NOT_ALLOWED, REQUESTS[action])


def test_those_on_stage_speak() -> None:
    space, roles = cast()
    for role, members in roles.items():
        for member in members:
            assert space.speaks(member) == may(Action.SPEAK, role, role, same=True)


@pytest.mark.parametrize("action", AIMED)
def test_acting_on_nobody(action: Action) -> None:
    space, roles = cast()
    refused(
        space, roles[Role.HOST][0], ErrorCode.NO_SUCH_MEMBER, REQUESTS[action], member=2**32 - 1
    )


@pytest.mark.parametrize("kind", [frames.Open, frames.Join])
def test_requests_that_are_not_for_a_space(kind: type[frames.Request]) -> None:
    space, host = opened()
    fields: dict[str, Any] = {"title": "t"} if kind is frames.Open else {"space": "s"}
    before = state(space)
    with pytest.raises(RefusedError) as error:
        space.handle(host, request(kind, name="n", **fields), NOW)
    assert error.value.code == ErrorCode.UNKNOWN_TYPE
    assert state(space) == before


# -- what each request does -----------------------------------------------------------------------


def test_opening() -> None:
    space = Space("room", "a title", os.urandom)
    member, effects = space.enter("Ada", b"a", None, NOW, host=True)
    assert effects == [SourceAdded(member, 0)]
    assert space.view(member) == Member(id=member, name="Ada", role=Role.HOST, seat=0)
    assert space.snapshot().listeners == 0


def test_a_listener_changes_only_the_count() -> None:
    space, _ = opened()
    number = space.feed.number
    member, effects = space.enter("Bo", b"b", None, NOW)
    assert effects == []
    assert space.view(member) == Member(id=member, name="Bo")
    assert space.feed.after(number) == [frames.encode_update(frames.ListenersUpdate(count=1))]
    assert [m.role for m in space.snapshot().members] == [Role.HOST]


def test_the_hand() -> None:
    space, _ = opened()
    member = enters(space, "Bo")
    effects = act(space, member, frames.RaiseHand)
    raised = Member(id=member, name="Bo", hand=True)
    assert effects[1:] == [Tell(member, frames.You(you=raised))]
    assert raised in space.snapshot().members
    number = space.feed.number
    act(space, member, frames.RaiseHand)
    assert space.feed.number == number  # raising a raised hand changes nothing
    act(space, member, frames.LowerHand)
    assert member not in {m.id for m in space.snapshot().members}
    assert space.feed.after(number) == [
        frames.encode_update(frames.MemberUpdate(member=Member(id=member, name="Bo")))
    ]


def test_a_snapshot_holds_only_so_many_hands() -> None:
    space, host = opened(stage_size=32)
    token = invite(space, host)
    for i in range(31):
        enters(space, f"s{i}".ljust(frames.MAX_NAME_CHARS, "𝄞"), invite=token)
    raised = [enters(space, f"l{i}".ljust(frames.MAX_NAME_CHARS, "𝄞")) for i in range(MAX_HANDS)]
    late = enters(space, "late")
    for member in raised:
        act(space, member, frames.RaiseHand)
    joined = frames.Joined(
        re=ID, space="s" * 32, you=space.view(raised[0]), snapshot=space.snapshot()
    )
    assert len(frames.encode(joined)) <= frames.MAX_FRAME_BYTES
    refused(space, late, ErrorCode.HANDS_FULL, frames.RaiseHand)
    act(space, raised[0], frames.RaiseHand)  # it is up already
    act(space, raised[1], frames.LowerHand)
    act(space, late, frames.RaiseHand)


def test_bringing_up_needs_a_hand() -> None:
    space, host = opened()
    member = enters(space, "Bo")
    refused(space, host, ErrorCode.NO_HAND, frames.BringUp, member=member)
    act(space, member, frames.RaiseHand)
    number = space.feed.number
    effects = act(space, host, frames.BringUp, member=member)
    up = Member(id=member, name="Bo", role=Role.SPEAKER, seat=1)
    assert effects[1:] == [SourceAdded(member, 1), Tell(member, frames.You(you=up))]
    assert space.view(member) == up
    assert space.feed.after(number) == [
        frames.encode_update(frames.MemberUpdate(member=up)),
        frames.encode_update(frames.ListenersUpdate(count=0)),
    ]


def test_bringing_up_needs_a_place() -> None:
    space, host = opened(stage_size=2)
    first, second = enters(space, "Bo"), enters(space, "Cy")
    for member in (first, second):
        act(space, member, frames.RaiseHand)
    act(space, host, frames.BringUp, member=first)
    refused(space, host, ErrorCode.STAGE_FULL, frames.BringUp, member=second)
    act(space, host, frames.TakeDown, member=first)
    act(space, host, frames.BringUp, member=second)


def test_taking_down() -> None:
    space, roles = cast()
    host, speaker = roles[Role.HOST][0], roles[Role.SPEAKER][0]
    effects = act(space, host, frames.TakeDown, member=speaker)
    down = Member(id=speaker, name="speaker 0")
    assert effects[1:] == [SourceRemoved(speaker), Tell(speaker, frames.You(you=down))]
    assert space.snapshot().listeners == 3


def test_taking_down_somebody_muted_has_no_source_to_remove() -> None:
    space, roles = cast()
    host, speaker = roles[Role.HOST][0], roles[Role.SPEAKER][0]
    act(space, speaker, frames.Mute)
    effects = act(space, host, frames.TakeDown, member=speaker)
    assert not any(isinstance(e, SourceRemoved) for e in effects)
    act(space, speaker, frames.RaiseHand)
    effects = act(space, host, frames.BringUp, member=speaker)  # the mute is over with the seat
    assert any(isinstance(e, SourceAdded) for e in effects)


def test_appointing_and_dismissing_keep_seat_and_source() -> None:
    space, roles = cast()
    host, speaker = roles[Role.HOST][0], roles[Role.SPEAKER][0]
    seat = space.view(speaker).seat
    for kind, role in ((frames.Appoint, Role.CO_HOST), (frames.Dismiss, Role.SPEAKER)):
        effects = act(space, host, kind, member=speaker)
        view = space.view(speaker)
        assert effects[1:] == [Tell(speaker, frames.You(you=view))]
        assert (view.role, view.seat) == (role, seat)


def test_muting() -> None:
    space, roles = cast()
    host, speaker = roles[Role.HOST][0], roles[Role.SPEAKER][0]
    effects = act(space, host, frames.Mute, member=speaker)
    you = Tell(speaker, frames.You(you=space.view(speaker)))
    assert effects[1:] == [SourceRemoved(speaker), you]
    assert space.view(speaker).muted
    number = space.feed.number
    assert act(space, host, frames.Mute, member=speaker)[1:] == [you]
    assert space.feed.number == number  # muting the muted changes nothing
    effects = act(space, speaker, frames.Unmute)
    seat = space.view(speaker).seat
    assert isinstance(seat, int)
    assert SourceAdded(speaker, seat) in effects
    assert not space.view(speaker).muted


def test_nobody_unmutes_others() -> None:
    assert "member" not in frames.Unmute.__struct_fields__


def test_an_invite_lets_speak_at_once() -> None:
    space, host = opened()
    token = invite(space, host)
    member, effects = space.enter("Bo", b"b", token, NOW)
    assert effects == [SourceAdded(member, 1)]
    assert space.view(member).role is Role.SPEAKER


def test_a_bad_invite() -> None:
    space, _ = opened()
    before = state(space)
    with pytest.raises(RefusedError) as error:
        space.enter("Bo", b"b", "made up", NOW)
    assert error.value.code == ErrorCode.BAD_INVITE
    assert state(space) == before


def test_an_invite_to_a_full_stage() -> None:
    space, host = opened(stage_size=1)
    token = invite(space, host)
    before = state(space)
    with pytest.raises(RefusedError) as error:
        space.enter("Bo", b"b", token, NOW)
    assert error.value.code == ErrorCode.STAGE_FULL
    assert state(space) == before


def test_the_oldest_invite_gives_way() -> None:
    space, host = opened()
    first = invite(space, host)
    second = invite(space, host)
    tokens = {invite(space, host) for _ in range(MAX_INVITES - 1)}
    assert len(tokens | {first, second}) == MAX_INVITES + 1
    with pytest.raises(RefusedError):
        space.enter("Bo", b"b", first, NOW)
    enters(space, "Bo", invite=second)


def test_a_full_space() -> None:
    space, _ = opened(max_members=2)
    enters(space, "Bo")
    before = state(space)
    with pytest.raises(RefusedError) as error:
        space.enter("Cy", b"c", None, NOW)
    assert error.value.code == ErrorCode.SPACE_FULL
    assert state(space) == before
    enters(space, "Bo")  # whoever is in may come back


@pytest.mark.parametrize(
    "name",
    [" ", "\x1b[2J", "a\nb", "a\u202eb", "a\u2028b", "\u200b", "\u0958" * frames.MAX_NAME_CHARS],
    ids=["blank", "escape", "newline", "bidi", "separator", "invisible", "grows in NFC"],
)
def test_names_that_are_refused(name: str) -> None:
    space, _ = opened()
    before = state(space)
    with pytest.raises(RefusedError) as error:
        space.enter(name, b"b", None, NOW)
    assert error.value.code == ErrorCode.BAD_TEXT
    assert state(space) == before


def test_names_are_normalised() -> None:
    space, _ = opened()
    assert space.view(enters(space, "  Jose\u0301 ")).name == "José"


def test_leaving() -> None:
    space, roles = cast()
    speaker, listener = roles[Role.SPEAKER][0], roles[Role.LISTENER][0]
    assert act(space, speaker, frames.Leave)[1:] == [SourceRemoved(speaker), Left(speaker)]
    assert act(space, listener, frames.Leave)[1:] == [Left(listener)]
    assert len(space) == 5
    assert {speaker, listener}.isdisjoint(people(space))


def test_the_longest_serving_co_host_takes_over() -> None:
    space, roles = cast()
    (host,) = roles[Role.HOST]
    first, second = roles[Role.CO_HOST]
    act(space, host, frames.Dismiss, member=first)
    act(space, host, frames.Appoint, member=first)  # begins anew
    effects = space.leave(host, NOW)
    assert space.view(second).role is Role.HOST
    assert effects == [
        SourceRemoved(host),
        Left(host),
        Tell(second, frames.You(you=space.view(second))),
    ]
    assert not space.ended
    act(space, second, frames.Leave)
    assert space.view(first).role is Role.HOST


def test_without_a_co_host_the_space_ends() -> None:
    space, host = opened()
    listener = enters(space, "Bo")
    effects = act(space, host, frames.Leave)
    assert space.ended
    assert effects[1:3] == [SourceRemoved(host), Left(host)]
    assert [e.member for e in effects if isinstance(e, Tell)] == [listener]
    assert isinstance(effects[-1], SpaceEnded)


def test_closing_tells_all() -> None:
    space, roles = cast()
    effects = act(space, roles[Role.HOST][0], frames.Close)
    told = [e.member for e in effects if isinstance(e, Tell) and isinstance(e.frame, frames.Ended)]
    assert sorted(told) == sorted(itertools.chain(*roles.values()))
    assert isinstance(effects[-1], SpaceEnded)
    assert space.ended


@pytest.mark.parametrize("role", Role)
def test_the_same_person_on_another_device(role: Role) -> None:
    space, roles = cast(stage_size=5)  # full
    old = roles[role][0]
    before = space.view(old)
    new, effects = space.enter("again", before.name.encode(), None, NOW)
    view = space.view(new)
    assert view.role is before.role
    assert Left(old) in effects
    assert old not in people(space)
    if role.on_stage:
        assert isinstance(view.seat, int)
        assert effects == [SourceRemoved(old), Left(old), SourceAdded(new, view.seat)]
    else:
        assert effects == [Left(old)]
    assert not space.ended


def test_seats_are_never_taken_twice() -> None:
    space, host = opened(stage_size=4)
    member = enters(space, "Bo")
    for _ in range(2 * SEATS):
        act(space, member, frames.RaiseHand)
        act(space, host, frames.BringUp, member=member)
        assert space.view(member).seat != space.view(host).seat
        act(space, host, frames.TakeDown, member=member)


def test_a_seat_is_not_reused_soon() -> None:
    space, host = opened()
    member = enters(space, "Bo")
    seats = []
    for _ in range(SEATS - 1):
        act(space, member, frames.RaiseHand)
        act(space, host, frames.BringUp, member=member)
        seats.append(space.view(member).seat)
        act(space, host, frames.TakeDown, member=member)
    assert len(set(seats)) == SEATS - 1


def test_the_roster_has_pages() -> None:
    space, host = opened()
    for i in range(2 * frames.MAX_PAGE):
        enters(space, f"listener {i}")
    (answer,) = act(space, host, frames.Roster)
    assert isinstance(answer, Answer)
    assert isinstance(answer.frame, frames.RosterPage)
    assert len(answer.frame.members) == frames.MAX_PAGE
    assert answer.frame.more
    found = people(space)
    assert len(found) == 2 * frames.MAX_PAGE + 1
    assert list(found) == sorted(found)


def test_catching_up_and_looking() -> None:
    space, roles = cast()
    (host,) = roles[Role.HOST]
    (answer,) = act(space, host, frames.CatchUp, after=3)
    assert isinstance(answer, Answer)
    assert answer.frame == frames.Updates(re=ID, first=4, updates=space.feed.after(3) or [])
    refused(space, host, ErrorCode.TOO_OLD, frames.CatchUp, after=space.feed.number + 1)
    (answer,) = act(space, host, frames.Look)
    assert isinstance(answer, Answer)
    assert answer.frame == frames.State(re=ID, you=space.view(host), snapshot=space.snapshot())


# -- anything at all, in any order ----------------------------------------------------------------

KINDS = st.sampled_from([*REQUESTS.values(), frames.Roster, frames.CatchUp, frames.Look])
PEOPLE = 8
STAGE = 4


class AnyEvening(RuleBasedStateMachine):
    """Random people make random requests; whoever follows what is told knows what is true."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self.open()

    def open(self) -> None:
        self.space = Space("room", "a title", os.urandom, stage_size=STAGE, max_members=PEOPLE - 1)
        self.members: set[int] = set()
        self.sources: dict[int, int] = {}
        self.mine: dict[int, Member] = {}  # what each was told of themselves, unasked
        self.tokens: list[str] = ["made up"]
        host, effects = self.space.enter("host", b"0", None, self.now_ns, host=True)
        self.follow(effects, host)
        self.view = SpaceView()
        self.view.take(self.space.view(host), self.space.snapshot())
        self.space.feed.take()
        self.slow = copy.deepcopy(self.view)  # follows the batches, not each update

    def follow(self, effects: list[Effect], entered: int | None = None) -> None:
        if entered is not None:
            self.members.add(entered)
            self.mine[entered] = self.space.view(entered)
        for effect in effects:
            match effect:
                case SourceAdded(member, seat):
                    assert member not in self.sources
                    self.sources[member] = seat
                case SourceRemoved(member):
                    del self.sources[member]
                case Left(member):
                    self.members.remove(member)
                    assert member not in self.sources
                    del self.mine[member]
                case Tell(member, frames.You(you=you)):
                    assert member in self.members
                    self.mine[member] = you
                case Tell(member, frame):
                    assert isinstance(frame, frames.Ended)
                    assert member in self.members
        assert any(isinstance(e, SpaceEnded) for e in effects) == self.space.ended

    @rule(who=st.integers(0, PEOPLE - 1), token=st.none() | st.integers(0, 3))
    @precondition(lambda self: not self.space.ended)
    def enter(self, who: int, token: int | None) -> None:
        given = None if token is None else self.tokens[-1 - token % len(self.tokens)]
        before = state(self.space)
        try:
            entered, effects = self.space.enter(f"p{who}", b"%d" % who, given, self.now_ns)
        except RefusedError:
            assert state(self.space) == before
            return
        self.follow(effects, entered)

    @rule(who=st.integers(0, PEOPLE - 1), kind=KINDS, whom=st.none() | st.integers(0, PEOPLE))
    @precondition(lambda self: not self.space.ended)
    def ask(self, who: int, kind: type[frames.Request], whom: int | None) -> None:
        members = sorted(self.members)
        (host,) = (m for m in members if self.mine[m].role is Role.HOST)
        me = host if who % 2 else members[who // 2 % len(members)]  # hosts have more to do
        fields = {}
        if "member" in kind.__struct_fields__:
            if whom is not None:
                fields["member"] = members[whom % len(members)] if whom < PEOPLE else 999_999
            elif kind in (frames.BringUp, frames.Appoint):
                fields["member"] = me
        if kind is frames.CatchUp:
            fields["after"] = (whom or 0) * 5
        before = state(self.space)
        try:
            effects = self.space.handle(me, request(kind, **fields), self.now_ns)
        except RefusedError:
            assert state(self.space) == before
            return
        answers = [e for e in effects if isinstance(e, Answer)]
        assert len(answers) == 1
        if isinstance(answers[0].frame, frames.Invited):
            self.tokens.append(answers[0].frame.invite)
        self.follow(effects)

    @rule(who=st.integers(0, PEOPLE - 1))
    @precondition(lambda self: not self.space.ended)
    def is_lost(self, who: int) -> None:
        members = sorted(self.members)
        self.follow(self.space.leave(members[who % len(members)], self.now_ns))

    @rule(ms=st.sampled_from([20, 60, 150]))
    def time_passes(self, ms: int) -> None:
        self.now_ns += ms * MS
        if self.space.ended or not self.space.feed.due(self.now_ns):
            return
        for data in self.space.feed.take():
            batch = decode_feed(data)
            assert batch.first == self.slow.number + 1
            assert self.slow.apply(batch.first, batch.updates)
        self.agrees(self.slow)

    @rule()
    @precondition(lambda self: self.space.ended)
    def begins_again(self) -> None:
        self.open()

    def agrees(self, view: SpaceView) -> None:
        snapshot = self.space.snapshot()
        assert view.number == snapshot.number == self.space.feed.number
        assert view.members == {m.id: m for m in snapshot.members}
        assert view.listeners == snapshot.listeners

    @invariant()
    def what_is_told_is_true(self) -> None:
        if self.space.ended:
            return
        first = self.view.number + 1
        updates = self.space.feed.after(self.view.number)
        assert updates is not None
        self.view.apply(first, updates)
        self.agrees(self.view)
        assert not self.view.behind

    @invariant()
    def roles_and_seats_are_in_order(self) -> None:
        if self.space.ended:
            return
        everybody = people(self.space)
        assert set(everybody) == self.members
        assert len(self.space) == len(everybody) <= PEOPLE - 1
        assert self.mine == everybody
        stage = [m for m in everybody.values() if m.role.on_stage]
        assert sum(m.role is Role.HOST for m in stage) == 1
        assert len(stage) <= STAGE
        seats = [m.seat for m in stage]
        assert all(isinstance(seat, int) for seat in seats)
        assert len(set(seats)) == len(seats)
        listed = {m.id for m in self.space.snapshot().members}
        assert listed == {m.id for m in everybody.values() if m.role.on_stage or m.hand}
        assert not any(m.hand for m in stage)
        assert self.sources == {m.id: m.seat for m in stage if not m.muted}


AnyEvening.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestAnyEvening = AnyEvening.TestCase


def test_whoever_comes_twice_stays_muted() -> None:
    space = Space("id", "title", os.urandom)
    host, _ = space.enter("Ada", b"ada", None, NOW, host=True)
    space.handle(host, frames.Mute(id=1), NOW)
    again, effects = space.enter("Ada", b"ada", None, NOW)
    assert (space.view(again).role, space.view(again).muted) == (Role.HOST, True)
    assert not [e for e in effects if isinstance(e, SourceAdded)]
    assert len(space) == 1
