"""The table of permissions, cell by cell, against a reading of it that was written by hand."""

import itertools

import pytest

from protocol.roles import PERMISSIONS, SELF, Action, Role, allowed

# On whom each role may act: itself (*), host, co-host, speaker, listener (h c s l).
READING = """
              host    co_host  speaker  listener
speak         *       *        *        -
raise_hand    -       -        -        *
lower_hand    l       l        -        *
bring_up      l       l        -        -
take_down     cs      *s       *        -
appoint       s       -        -        -
dismiss       c       *        -        -
mute          *cs     *s       *        -
unmute        *       *        *        -
invite        *       *        -        -
close         *       -        -        -
leave         *       *        *        *
"""
LETTERS = {Role.HOST: "h", Role.CO_HOST: "c", Role.SPEAKER: "s", Role.LISTENER: "l"}


def _cells() -> dict[tuple[Action, Role], str]:
    head, *lines = READING.strip().splitlines()
    roles = [Role(name) for name in head.split()]
    rows = [line.split() for line in lines]
    return {(Action(name), r): c for name, *row in rows for r, c in zip(roles, row, strict=True)}


CELLS = _cells()


def may(action: Action, actor: Role, target: Role, *, same: bool) -> bool:
    """What the reading says."""
    return ("*" if same else LETTERS[target]) in CELLS[action, actor]


def test_the_reading_is_complete() -> None:
    assert set(CELLS) == set(itertools.product(Action, Role))
    assert {action: set(row) for action, row in PERMISSIONS.items()} == {
        action: set(Role) for action in Action
    }


@pytest.mark.parametrize("action", Action)
def test_every_cell(action: Action) -> None:
    for actor, target in itertools.product(Role, Role):
        expected = may(action, actor, target, same=False)
        assert allowed(action, actor, target, same=False) == expected, (actor, target)
    for actor in Role:
        assert allowed(action, actor, actor, same=True) == may(action, actor, actor, same=True)


def test_cells_hold_roles_or_self_only() -> None:
    for row in PERMISSIONS.values():
        for cell in row.values():
            assert cell <= {SELF, *Role}


def test_nobody_acts_on_the_host_but_the_host() -> None:
    for action, actor in itertools.product(Action, Role):
        assert not allowed(action, actor, Role.HOST, same=False)


def test_the_host_has_every_power_over_others_that_a_co_host_has() -> None:
    for action, target in itertools.product(Action, Role):
        if allowed(action, Role.CO_HOST, target, same=False):
            assert allowed(action, Role.HOST, target, same=False), (action, target)


def test_only_listeners_are_off_the_stage() -> None:
    assert [role for role in Role if not role.on_stage] == [Role.LISTENER]
