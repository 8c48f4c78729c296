"""Who may do what to whom, as one table.  The server decides by it, a client shows by it which
buttons there are, and the tables in SPEC.md are written from it.

A row is an action; a cell is the set of roles on whom the role of the column may act.  SELF means
oneself, whatever the role; of an action that is on nobody (closing a space) a cell says SELF if the
role may do it.

There are two sorts of roles: in a space, and on the server.
"""

from enum import StrEnum
from typing import Final, TypeVar


class Role(StrEnum):
    """In a space.  A guest is a listener without an account."""

    HOST = "host"
    CO_HOST = "co_host"
    SPEAKER = "speaker"
    LISTENER = "listener"
    GUEST = "guest"

    @property
    def on_stage(self) -> bool:
        return self in (Role.HOST, Role.CO_HOST, Role.SPEAKER)


class ServerRole(StrEnum):
    """On the server."""

    OWNER = "owner"
    MODERATOR = "moderator"
    PERSON = "person"


class Action(StrEnum):
    """In a space; named like the requests that do them."""

    SPEAK = "speak"
    RAISE_HAND = "raise_hand"
    LOWER_HAND = "lower_hand"
    STEP_UP = "step_up"
    BRING_UP = "bring_up"
    OFFER = "offer"
    ACCEPT = "accept"
    DECLINE = "decline"
    TAKE_DOWN = "take_down"
    APPOINT = "appoint"
    DISMISS = "dismiss"
    HAND_OVER = "hand_over"
    MUTE = "mute"
    MUTE_ALL = "mute_all"
    UNMUTE = "unmute"
    LET_UNMUTE = "let_unmute"
    REMOVE = "remove"
    SET_VOLUME = "set_volume"
    CONFIGURE = "configure"
    CHAT = "chat"
    DELETE_LINE = "delete_line"
    REACT = "react"
    REPORT = "report"
    MAKE_INVITE = "make_invite"
    LIST_INVITES = "list_invites"
    REVOKE_INVITE = "revoke_invite"
    INVITE_PERSON = "invite_person"
    CLOSE = "close"
    LEAVE = "leave"


class ServerAction(StrEnum):
    """On the server; named like the requests that do them."""

    SET_ACCESS = "set_access"
    APPOINT_MODERATOR = "appoint_moderator"
    DISMISS_MODERATOR = "dismiss_moderator"
    WAITING_LIST = "waiting_list"
    GRANT = "grant"
    REVOKE = "revoke"
    BAN = "ban"
    UNBAN = "unban"
    LIST_ACCOUNTS = "list_accounts"
    LIST_REPORTS = "list_reports"
    ACT = "act"
    GET_EVIDENCE = "get_evidence"
    CLOSE_SPACE = "close_space"
    DELETE_POST = "delete_post"


SELF: Final = "self"
R = TypeVar("R", bound=StrEnum)
Table = dict[R, frozenset[str]]

_HOST, _CO_HOST, _SPEAKER = Role.HOST, Role.CO_HOST, Role.SPEAKER
_AUDIENCE = (Role.LISTENER, Role.GUEST)
_ANYBODY = tuple(Role)


def _row(**cells: tuple[str, ...]) -> Table[Role]:
    return {role: frozenset(cells.get(role.value, ())) for role in Role}


def _members(*targets: str) -> Table[Role]:
    """The same for everyone with an account."""
    return _row(host=targets, co_host=targets, speaker=targets, listener=targets)


PERMISSIONS: Final[dict[Action, Table[Role]]] = {
    Action.SPEAK: _row(host=(SELF,), co_host=(SELF,), speaker=(SELF,)),
    Action.RAISE_HAND: _row(listener=(SELF,)),
    Action.LOWER_HAND: _row(host=(Role.LISTENER,), co_host=(Role.LISTENER,), listener=(SELF,)),
    Action.STEP_UP: _row(listener=(SELF,)),
    Action.BRING_UP: _row(host=(Role.LISTENER,), co_host=(Role.LISTENER,)),
    Action.OFFER: _row(host=(Role.LISTENER,), co_host=(Role.LISTENER,)),
    Action.ACCEPT: _row(listener=(SELF,)),
    Action.DECLINE: _row(listener=(SELF,)),
    Action.TAKE_DOWN: _row(host=(_CO_HOST, _SPEAKER), co_host=(SELF, _SPEAKER), speaker=(SELF,)),
    Action.APPOINT: _row(host=(_SPEAKER,)),
    Action.DISMISS: _row(host=(_CO_HOST,), co_host=(SELF,)),
    Action.HAND_OVER: _row(host=(_CO_HOST, _SPEAKER)),
    Action.MUTE: _row(host=(SELF, _CO_HOST, _SPEAKER), co_host=(SELF, _SPEAKER), speaker=(SELF,)),
    Action.MUTE_ALL: _row(host=(SELF,), co_host=(SELF,)),
    Action.UNMUTE: _row(host=(SELF,), co_host=(SELF,), speaker=(SELF,)),
    Action.LET_UNMUTE: _row(host=(_CO_HOST, _SPEAKER), co_host=(_SPEAKER,)),
    Action.REMOVE: _row(host=(_CO_HOST, _SPEAKER, *_AUDIENCE), co_host=(_SPEAKER, *_AUDIENCE)),
    Action.SET_VOLUME: _row(**{role.value: _ANYBODY for role in Role}),
    Action.CONFIGURE: _row(host=(SELF,)),
    Action.CHAT: _members(SELF),
    Action.DELETE_LINE: _row(
        host=(SELF, _CO_HOST, _SPEAKER, Role.LISTENER),
        co_host=(SELF, _SPEAKER, Role.LISTENER),
        speaker=(SELF,),
        listener=(SELF,),
    ),
    Action.REACT: _members(SELF),
    Action.REPORT: _members(*_ANYBODY),
    Action.MAKE_INVITE: _row(host=(SELF,), co_host=(SELF,)),
    Action.LIST_INVITES: _row(host=(SELF,), co_host=(SELF,)),
    Action.REVOKE_INVITE: _row(host=(SELF,), co_host=(SELF,)),
    Action.INVITE_PERSON: _row(host=(SELF,), co_host=(SELF,)),
    Action.CLOSE: _row(host=(SELF,)),
    Action.LEAVE: _row(**{role.value: (SELF,) for role in Role}),
}


def _server_row(owner: tuple[str, ...], moderator: tuple[str, ...] = ()) -> Table[ServerRole]:
    return {
        ServerRole.OWNER: frozenset(owner),
        ServerRole.MODERATOR: frozenset(moderator),
        ServerRole.PERSON: frozenset(),
    }


_PERSON, _MODERATOR = ServerRole.PERSON, ServerRole.MODERATOR

SERVER_PERMISSIONS: Final[dict[ServerAction, Table[ServerRole]]] = {
    ServerAction.SET_ACCESS: _server_row((SELF,)),
    ServerAction.APPOINT_MODERATOR: _server_row((_PERSON,)),
    ServerAction.DISMISS_MODERATOR: _server_row((_MODERATOR,), (SELF,)),
    ServerAction.WAITING_LIST: _server_row((SELF,), (SELF,)),
    ServerAction.GRANT: _server_row((_MODERATOR, _PERSON), (_PERSON,)),
    ServerAction.REVOKE: _server_row((_PERSON,), (_PERSON,)),
    ServerAction.BAN: _server_row((_MODERATOR, _PERSON), (_PERSON,)),
    ServerAction.UNBAN: _server_row((_MODERATOR, _PERSON), (_PERSON,)),
    ServerAction.LIST_ACCOUNTS: _server_row((SELF,), (SELF,)),
    ServerAction.LIST_REPORTS: _server_row((SELF,), (SELF,)),
    ServerAction.ACT: _server_row((_MODERATOR, _PERSON), (_PERSON,)),
    ServerAction.GET_EVIDENCE: _server_row((SELF,), (SELF,)),
    ServerAction.CLOSE_SPACE: _server_row((SELF,), (SELF,)),
    ServerAction.DELETE_POST: _server_row((_MODERATOR, _PERSON), (_PERSON,)),
}


def allowed(action: Action, actor: Role, target: Role, *, same: bool) -> bool:
    """same: the actor is the target."""
    cell = PERMISSIONS[action][actor]
    return SELF in cell if same else target in cell


def server_allowed(
    action: ServerAction, actor: ServerRole, target: ServerRole, *, same: bool
) -> bool:
    """same: the actor is the target, or the action is on nobody."""
    cell = SERVER_PERMISSIONS[action][actor]
    return SELF in cell if same else target in cell
