"""The tables of permissions: cell by cell against a reading that was written by hand, and the one
of spaces against what a space really does."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest

from protocol import frames
from protocol.frames import ErrorCode, Settings, WhoSpeaks
from protocol.roles import (
    PERMISSIONS,
    SELF,
    SERVER_PERMISSIONS,
    Action,
    Role,
    ServerAction,
    ServerRole,
    allowed,
    server_allowed,
)
from spaces_server.policy.effects import RefusedError
from spaces_server.policy.space import ACTIONS
from tests.unit.town import Scene, state

# On whom each role may act: itself (*), host, co-host, speaker, listener, guest (h c s l g).
READING = """
               host    co_host  speaker  listener  guest
speak          *       *        *        -         -
raise_hand     -       -        -        *         -
lower_hand     l       l        -        *         -
step_up        -       -        -        *         -
bring_up       l       l        -        -         -
offer          l       l        -        -         -
accept         -       -        -        *         -
decline        -       -        -        *         -
take_down      cs      *s       *        -         -
appoint        s       -        -        -         -
dismiss        c       *        -        -         -
hand_over      cs      -        -        -         -
mute           *cs     *s       *        -         -
mute_all       *       *        -        -         -
unmute         *       *        *        -         -
let_unmute     cs      s        -        -         -
remove         cslg    slg      -        -         -
set_volume     hcslg   hcslg    hcslg    hcslg     hcslg
configure      *       -        -        -         -
chat           *       *        *        *         -
delete_line    *csl    *sl      *        *         -
react          *       *        *        *         -
report         hcslg   hcslg    hcslg    hcslg     -
make_invite    *       *        -        -         -
list_invites   *       *        -        -         -
revoke_invite  *       *        -        -         -
invite_person  *       *        -        -         -
close          *       -        -        -         -
leave          *       *        *        *         *
"""
LETTERS = {
    Role.HOST: "h",
    Role.CO_HOST: "c",
    Role.SPEAKER: "s",
    Role.LISTENER: "l",
    Role.GUEST: "g",
}

# The same of the server: owner, moderator, person (o m p).
SERVER_READING = """
                   owner  moderator  person
set_access         *      -          -
appoint_moderator  p      -          -
dismiss_moderator  m      *          -
waiting_list       *      *          -
grant              mp     p          -
revoke             p      p          -
ban                mp     p          -
unban              mp     p          -
list_accounts      *      *          -
list_reports       *      *          -
act                mp     p          -
get_evidence       *      *          -
close_space        *      *          -
delete_post        mp     p          -
"""
SERVER_LETTERS = {ServerRole.OWNER: "o", ServerRole.MODERATOR: "m", ServerRole.PERSON: "p"}


def _cells(reading: str) -> dict[tuple[str, str], str]:
    head, *lines = reading.strip().splitlines()
    rows = [line.split() for line in lines]
    return {
        (name, role): cell
        for name, *row in rows
        for role, cell in zip(head.split(), row, strict=True)
    }


CELLS = _cells(READING)
SERVER_CELLS = _cells(SERVER_READING)


def may(action: Action, actor: Role, target: Role, *, same: bool) -> bool:
    """What the reading says."""
    return ("*" if same else LETTERS[target]) in CELLS[action, actor]


# -- the tables -----------------------------------------------------------------------------------


def test_the_readings_are_complete() -> None:
    assert set(CELLS) == set(itertools.product(Action, Role))
    assert set(SERVER_CELLS) == set(itertools.product(ServerAction, ServerRole))


@pytest.mark.parametrize("action", Action)
def test_every_cell(action: Action) -> None:
    for actor, target in itertools.product(Role, Role):
        expected = may(action, actor, target, same=False)
        assert allowed(action, actor, target, same=False) == expected, (actor, target)
    for actor in Role:
        assert allowed(action, actor, actor, same=True) == may(action, actor, actor, same=True)


@pytest.mark.parametrize("action", ServerAction)
def test_every_cell_of_the_server(action: ServerAction) -> None:
    for actor, target in itertools.product(ServerRole, ServerRole):
        expected = SERVER_LETTERS[target] in SERVER_CELLS[action, actor]
        assert server_allowed(action, actor, target, same=False) == expected, (actor, target)
    for actor in ServerRole:
        expected = "*" in SERVER_CELLS[action, actor]
        assert server_allowed(action, actor, actor, same=True) == expected


def test_cells_hold_roles_or_self_only() -> None:
    for row in PERMISSIONS.values():
        for cell in row.values():
            assert cell <= {SELF, *Role}
    for server_row in SERVER_PERMISSIONS.values():
        for cell in server_row.values():
            assert cell <= {SELF, *ServerRole}


def test_nobody_has_power_over_the_host_but_the_host() -> None:
    for action, actor in itertools.product(Action, Role):
        if action not in (Action.SET_VOLUME, Action.REPORT):
            assert not allowed(action, actor, Role.HOST, same=False), action


def test_the_host_has_every_power_over_others_that_a_co_host_has() -> None:
    for action, target in itertools.product(Action, Role):
        if allowed(action, Role.CO_HOST, target, same=False):
            assert allowed(action, Role.HOST, target, same=False), (action, target)


def test_nobody_acts_on_the_owner() -> None:
    for action, actor in itertools.product(ServerAction, ServerRole):
        assert not server_allowed(action, actor, ServerRole.OWNER, same=False)


def test_listeners_and_guests_are_off_the_stage() -> None:
    assert [role for role in Role if not role.on_stage] == [Role.LISTENER, Role.GUEST]


# -- what a space does ----------------------------------------------------------------------------

REQUESTS = {action: kind for kind, action in ACTIONS.items()}
AIMED = [a for a, kind in REQUESTS.items() if "member" in kind.__struct_fields__]
UNAIMED = [a for a in REQUESTS if a not in AIMED and a is not Action.DELETE_LINE]
FIELDS: dict[Action, dict[str, Any]] = {
    Action.SET_VOLUME: {"percent": 50},
    Action.CONFIGURE: {"title": "another title"},
    Action.CHAT: {"text": "hello"},
    Action.REACT: {"emoji": "🔥"},
    Action.INVITE_PERSON: {"person": "p99"},
}


@dataclass
class Cast:
    """Everything that a request could need is there: listeners have raised their hands and were
    offered to speak, everyone with an account has said a line, there is room for a co-host."""

    scene: Scene
    roles: dict[Role, list[int]]
    lines: dict[int, int]
    token: str

    def fields(self, action: Action) -> dict[str, Any]:
        if action is Action.REVOKE_INVITE:
            return {"invite": self.token}
        return FIELDS.get(action, {})


def cast() -> Cast:
    scene = Scene(Settings(who_speaks=WhoSpeaks.EVERYONE), co_hosts=3)
    co_hosts = [scene.co_host(2), scene.co_host(3)]
    speakers = [scene.speaker(4), scene.speaker(5)]
    listeners = [scene.enters(6), scene.enters(7)]
    for member in listeners:
        scene.does(member, frames.RaiseHand)
        scene.does(scene.host, frames.Offer, member=member)
    guests = [scene.enters("guest 1"), scene.enters("guest 2")]
    lines = {
        member: scene.asks(member, frames.Chat, text="hi").line
        for member in (scene.host, *co_hosts, *speakers, *listeners)
    }
    roles = {
        Role.HOST: [scene.host],
        Role.CO_HOST: co_hosts,
        Role.SPEAKER: speakers,
        Role.LISTENER: listeners,
        Role.GUEST: guests,
    }
    for role, members in roles.items():
        assert {scene.space.view(member).role for member in members} == {role}
    return Cast(scene, roles, lines, scene.invite())


def tried(cast: Cast, ok: bool, me: int, action: Action, **fields: Any) -> None:
    kind = REQUESTS[action]
    if ok:
        cast.scene.does(me, kind, **cast.fields(action), **fields)
    else:
        cast.scene.refused(ErrorCode.NOT_ALLOWED, me, kind, **cast.fields(action), **fields)


def pairs(cast: Cast) -> list[tuple[Role, int, Role, int]]:
    """Of every role, somebody who acts, and of every role, somebody else."""
    return [
        (actor, cast.roles[actor][0], target, member)
        for actor, target in itertools.product(Role, Role)
        for member in cast.roles[target][-1:]
        if member != cast.roles[actor][0]
    ]


def test_every_action_is_tried() -> None:
    others = {Action.SPEAK, Action.REPORT, Action.DELETE_LINE}  # in tests of their own
    assert {*AIMED, *UNAIMED, *others} == set(Action)


@pytest.mark.parametrize("action", AIMED)
def test_who_may_act_on_whom(action: Action) -> None:
    for actor, me, target, member in pairs(cast()):
        tried(cast(), may(action, actor, target, same=False), me, action, member=member)


@pytest.mark.parametrize("action", AIMED)
@pytest.mark.parametrize("role", Role)
def test_who_may_act_on_oneself(action: Action, role: Role) -> None:
    me = cast().roles[role][0]
    ok = may(action, role, role, same=True)
    tried(cast(), ok, me, action, member=me)
    if action in (Action.LOWER_HAND, Action.TAKE_DOWN, Action.DISMISS, Action.MUTE):
        tried(cast(), ok, me, action)  # who is not named is oneself


@pytest.mark.parametrize("action", UNAIMED)
@pytest.mark.parametrize("role", Role)
def test_what_each_role_may_do(action: Action, role: Role) -> None:
    some = cast()
    tried(some, may(action, role, role, same=True), some.roles[role][0], action)


def test_whose_lines_may_be_deleted() -> None:
    for actor, me, target, member in pairs(cast()):
        if target is not Role.GUEST:  # guests say nothing
            some = cast()
            ok = may(Action.DELETE_LINE, actor, target, same=False)
            tried(some, ok, me, Action.DELETE_LINE, line=some.lines[member])
    for role in set(Role) - {Role.GUEST}:
        some = cast()
        me = some.roles[role][0]
        ok = may(Action.DELETE_LINE, role, role, same=True)
        tried(some, ok, me, Action.DELETE_LINE, line=some.lines[me])


def test_who_may_report_whom() -> None:
    some = cast()
    for actor, me, target, member in pairs(some):
        if may(Action.REPORT, actor, target, same=False):
            assert some.scene.space.reported(me, member) == some.scene.askers[member].who
        else:
            with pytest.raises(RefusedError) as error:
                some.scene.space.reported(me, member)
            assert error.value.code == ErrorCode.NOT_ALLOWED
    for role in Role:
        me = some.roles[role][0]
        before = state(some.scene.space)
        with pytest.raises(RefusedError):
            some.scene.space.reported(me, me)
        assert state(some.scene.space) == before


def test_those_on_stage_speak() -> None:
    some = cast()
    for role, members in some.roles.items():
        for member in members:
            assert some.scene.space.speaks(member) == may(Action.SPEAK, role, role, same=True)
