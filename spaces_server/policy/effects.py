"""What policy gives back: values that say what is to happen.  The node carries them out.

Policy (people, spaces, posts, reports) takes a request and returns effects, or raises RefusedError,
and then nothing has changed.  Nothing of it knows of connections, packets, samples or SQL.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from protocol import frames
from protocol.frames import ERROR_TEXTS, ErrorCode
from spaces_server.records import AccountRecord, Change, InviteRecord, Query, Rows


class Moment(NamedTuple):
    """Now: on the monotonic clock, which measures, and on the wall's, which dates.
    ns: nanoseconds; utc_s: seconds since 1970."""

    ns: int
    utc_s: int


class RefusedError(Exception):
    """A request that is not carried out; nothing was changed.  retry_ms: when it may be tried
    again, from now on; 0 if waiting does not help."""

    def __init__(self, code: ErrorCode, text: str = "", retry_ms: int = 0) -> None:
        super().__init__(text or ERROR_TEXTS[code])
        self.code = code
        self.retry_ms = retry_ms


@dataclass(frozen=True, slots=True)
class Asker:
    """Who makes a request.  key: the session's static public key.  account: None for a guest.
    host: the address without the port, for limits.  operator: this is the server's own key, with
    an owner's rights and no account."""

    key: bytes
    account: AccountRecord | None
    host: bytes = b""
    operator: bool = False

    @property
    def who(self) -> "Who":
        return self.key if self.account is None else self.account.id


Who = int | bytes  # a person: an account's id, or a guest's key


# -- effects of all policy -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """The one reply to the request.  It goes out when everything that the request saves is
    durable."""

    frame: frames.Frame


@dataclass(frozen=True, slots=True)
class Save:
    """To be stored; all of one request together, whole or not at all."""

    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """The answer comes from the store: `then` makes the reply from the rows, or goes on with an
    Answer, a Save or another Ask, or raises RefusedError."""

    query: Query
    then: Callable[[Rows], "frames.Frame | list[Effect]"]


@dataclass(frozen=True, slots=True)
class TellAccount:
    """A notice to every session of an account; nothing if there is none.  A KeptNotice goes
    through `Keep` instead."""

    account: int
    frame: frames.Frame


@dataclass(frozen=True, slots=True)
class Keep:
    """A KeptNotice for an account: stored, told now if a session is there, and with every new
    session until it is seen.  `make` gets its number."""

    account: int
    make: Callable[[int], frames.KeptNotice]


# -- effects of people -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlocksChanged:
    """There is a block between two accounts now, or none any more: mixes follow, and whom a host
    has blocked is out of the host's space."""

    one: int
    other: int


@dataclass(frozen=True, slots=True)
class Renamed:
    account: int


@dataclass(frozen=True, slots=True)
class Registered:
    """The asker's session belongs to this account now."""

    account: int


@dataclass(frozen=True, slots=True)
class Expelled:
    """The accounts' sessions are closed, with this text; they are in no space any more."""

    accounts: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class GuestsOut:
    """Whoever has no account is in no space any more; they are told with this text."""

    text: str


@dataclass(frozen=True, slots=True)
class DeviceRemoved:
    """The sessions with this key are closed."""

    key: bytes


@dataclass(frozen=True, slots=True)
class CloseSessions:
    """The sessions with this key are closed, with this text; their members leave."""

    key: bytes
    text: str


# -- effects of finding and safety -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Invited:
    """An invitation is to reach `account` as a direct message, and gives access where the server
    is limited."""

    account: int
    invite: InviteRecord
    text: str


@dataclass(frozen=True, slots=True)
class RemoveFromSpace:
    """A server moderator removes somebody from a space, for good."""

    space: str
    who: Who
    moderator: int


@dataclass(frozen=True, slots=True)
class EndSpace:
    """A server moderator ends a space."""

    space: str
    text: str


# -- effects of a space ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entered:
    """The asker's session is this member's from now on.  packet_ms: the most audio that it takes
    in one datagram."""

    member: int
    packet_ms: int = 20


@dataclass(frozen=True, slots=True)
class Staged:
    """The member is on stage from now on, or is not any more."""

    member: int
    on_stage: bool


@dataclass(frozen=True, slots=True)
class Tell:
    """A notice to one member."""

    member: int
    frame: frames.Frame


@dataclass(frozen=True, slots=True)
class SourceAdded:
    """From now on this member's audio is mixed."""

    member: int
    seat: int


@dataclass(frozen=True, slots=True)
class SourceRemoved:
    """From now on it is not; what was received is faded out within a tick."""

    member: int


@dataclass(frozen=True, slots=True)
class GainSet:
    """How loud `hearer` hears `source`: 1 as it is, 0 not at all."""

    hearer: int
    source: int
    gain: float


@dataclass(frozen=True, slots=True)
class Left:
    """The member is no longer in the space."""

    member: int


@dataclass(frozen=True, slots=True)
class SpaceEnded:
    text: str


Effect = (
    Answer
    | Save
    | Ask
    | TellAccount
    | Keep
    | BlocksChanged
    | Renamed
    | Registered
    | Expelled
    | GuestsOut
    | DeviceRemoved
    | CloseSessions
    | Invited
    | RemoveFromSpace
    | EndSpace
    | Entered
    | Staged
    | Tell
    | SourceAdded
    | SourceRemoved
    | GainSet
    | Left
    | SpaceEnded
)
