"""Who may do what to whom, as one table.  The server decides by it, a client shows by it which
buttons there are, and the table in SPEC.md is written from it.

A row is an action; a cell is the set of roles on whom the role of the column may act.  SELF means
oneself, whatever the role.
"""

from enum import StrEnum
from typing import Final


class Role(StrEnum):
    HOST = "host"
    CO_HOST = "co_host"
    SPEAKER = "speaker"
    LISTENER = "listener"

    @property
    def on_stage(self) -> bool:
        return self is not Role.LISTENER


class Action(StrEnum):
    SPEAK = "speak"
    RAISE_HAND = "raise_hand"
    LOWER_HAND = "lower_hand"
    BRING_UP = "bring_up"
    TAKE_DOWN = "take_down"
    APPOINT = "appoint"
    DISMISS = "dismiss"
    MUTE = "mute"
    UNMUTE = "unmute"
    INVITE = "invite"
    CLOSE = "close"
    LEAVE = "leave"


SELF: Final = "self"
Target = Role | str

_NOBODY: frozenset[Target] = frozenset()


def _row(**cells: tuple[Target, ...]) -> dict[Role, frozenset[Target]]:
    return {role: frozenset(cells.get(role.value, ())) for role in Role}


PERMISSIONS: Final[dict[Action, dict[Role, frozenset[Target]]]] = {
    Action.SPEAK: _row(host=(SELF,), co_host=(SELF,), speaker=(SELF,)),
    Action.RAISE_HAND: _row(listener=(SELF,)),
    Action.LOWER_HAND: _row(host=(Role.LISTENER,), co_host=(Role.LISTENER,), listener=(SELF,)),
    Action.BRING_UP: _row(host=(Role.LISTENER,), co_host=(Role.LISTENER,)),
    Action.TAKE_DOWN: _row(
        host=(Role.CO_HOST, Role.SPEAKER), co_host=(SELF, Role.SPEAKER), speaker=(SELF,)
    ),
    Action.APPOINT: _row(host=(Role.SPEAKER,)),
    Action.DISMISS: _row(host=(Role.CO_HOST,), co_host=(SELF,)),
    Action.MUTE: _row(
        host=(SELF, Role.CO_HOST, Role.SPEAKER),
        co_host=(SELF, Role.SPEAKER),
        speaker=(SELF,),
    ),
    Action.UNMUTE: _row(host=(SELF,), co_host=(SELF,), speaker=(SELF,)),
    Action.INVITE: _row(host=(SELF,), co_host=(SELF,)),
    Action.CLOSE: _row(host=(SELF,)),
    Action.LEAVE: _row(host=(SELF,), co_host=(SELF,), speaker=(SELF,), listener=(SELF,)),
}


def allowed(action: Action, actor: Role, target: Role, *, same: bool) -> bool:
    """same: the actor is the target."""
    cell = PERMISSIONS[action][actor]
    return SELF in cell if same else target in cell
