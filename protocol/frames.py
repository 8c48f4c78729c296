"""Control frames: every message of the reliable channel, declared once as data.

A frame is a msgpack map with the key `type`; the other keys are the fields of the class below
whose tag it is.  Requests carry an `id` of the client's choice and get exactly one reply, which
repeats it as `re`.  Unknown fields are ignored; an unknown type, a missing or a wrong field is
answered with an `error`.  The frame tables of SPEC.md are written from this file.
"""

from enum import StrEnum
from typing import Annotated, Any, TypeVar, cast

import msgpack
import msgspec
from msgspec import UNSET, Meta, UnsetType

from protocol.roles import Role

MAX_FRAME_BYTES = 32_768
MAX_NAME_CHARS = 40
MAX_TITLE_CHARS = 100
MAX_PAGE = 100
MAX_FEED_CATCH_UP = 128  # of the longest updates, that many still fit into one frame

U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
Seat = Annotated[int, Meta(ge=0, le=255)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Title = Annotated[str, Meta(min_length=1, max_length=MAX_TITLE_CHARS)]
# \Z: a $ would let a newline through behind them.
SpaceId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,32}\Z")]
Token = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]


class ErrorCode(StrEnum):
    """Codes of `error`; a client decides by the code, a person reads the text."""

    MALFORMED = "malformed"
    UNKNOWN_TYPE = "unknown_type"
    NO_SUCH_SPACE = "no_such_space"
    NO_SUCH_MEMBER = "no_such_member"
    NOT_JOINED = "not_joined"
    ALREADY_JOINED = "already_joined"
    NOT_ALLOWED = "not_allowed"
    STAGE_FULL = "stage_full"
    SPACE_FULL = "space_full"
    SERVER_FULL = "server_full"
    HANDS_FULL = "hands_full"
    NO_HAND = "no_hand"
    BAD_INVITE = "bad_invite"
    BAD_TEXT = "bad_text"
    TOO_OLD = "too_old"


ERROR_TEXTS: dict[ErrorCode, str] = {
    ErrorCode.MALFORMED: "the frame is not of the form that the specification gives",
    ErrorCode.UNKNOWN_TYPE: "this server does not know that type of frame",
    ErrorCode.NO_SUCH_SPACE: "there is no such space; it may have ended",
    ErrorCode.NO_SUCH_MEMBER: "nobody with this number is in the space",
    ErrorCode.NOT_JOINED: "join a space first",
    ErrorCode.ALREADY_JOINED: "you are in a space already; leave it first",
    ErrorCode.NOT_ALLOWED: "your role does not allow this",
    ErrorCode.STAGE_FULL: "the stage is full; somebody must be taken down first",
    ErrorCode.SPACE_FULL: "the space is full",
    ErrorCode.SERVER_FULL: "the server has as many spaces as it takes",
    ErrorCode.HANDS_FULL: "as many hands are raised as the space takes; try again later",
    ErrorCode.NO_HAND: "this listener has not raised a hand",
    ErrorCode.BAD_INVITE: "the invite is not valid in this space",
    ErrorCode.BAD_TEXT: "names and titles must be short and free of control characters",
    ErrorCode.TOO_OLD: "these updates are gone; take a new snapshot",
}


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of every frame."""


class Request(Frame, frozen=True, kw_only=True):
    """Base of what a client asks; `id` comes back as `re`."""

    id: U32


# -- what people and spaces look like in frames ---------------------------------------------


class Member(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One person in a space.  seat: on stage only, as in audio packets."""

    id: U32
    name: Name
    role: Role = Role.LISTENER
    seat: Seat | UnsetType = UNSET
    muted: bool = False
    hand: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state that the feed changes, as of update `number`: the stage, the raised hands and
    how many listen (the rest of the audience is paged with `roster`)."""

    number: U32
    title: Title
    members: list[Member]
    listeners: U32


# -- requests ---------------------------------------------------------------------------------


class Open(Request, frozen=True, kw_only=True, tag="open"):
    """Opens a space; the asker is its host.  Reply: `joined`."""

    title: Title
    name: Name


class Join(Request, frozen=True, kw_only=True, tag="join"):
    """Comes into a space, as a listener or in the role that the invite grants.
    Reply: `joined`."""

    space: SpaceId
    name: Name
    invite: Token | UnsetType = UNSET


class Leave(Request, frozen=True, kw_only=True, tag="leave"):
    """Leaves the space.  If the host leaves, the longest-serving co-host becomes host; without
    one the space ends.  Reply: `ok`."""


class RaiseHand(Request, frozen=True, kw_only=True, tag="raise_hand"):
    """Asks to speak.  Raising a raised hand changes nothing.  Reply: `ok`."""


class LowerHand(Request, frozen=True, kw_only=True, tag="lower_hand"):
    """Takes a hand down: one's own, or `member`'s.  Reply: `ok`."""

    member: U32 | UnsetType = UNSET


class BringUp(Request, frozen=True, kw_only=True, tag="bring_up"):
    """Makes a listener with a raised hand a speaker.  Reply: `ok`."""

    member: U32


class TakeDown(Request, frozen=True, kw_only=True, tag="take_down"):
    """Makes a speaker or co-host a listener: oneself, or `member`.  Reply: `ok`."""

    member: U32 | UnsetType = UNSET


class Appoint(Request, frozen=True, kw_only=True, tag="appoint"):
    """Makes a speaker a co-host.  Reply: `ok`."""

    member: U32


class Dismiss(Request, frozen=True, kw_only=True, tag="dismiss"):
    """Makes a co-host a speaker: oneself, or `member`.  Reply: `ok`."""

    member: U32 | UnsetType = UNSET


class Mute(Request, frozen=True, kw_only=True, tag="mute"):
    """Mutes somebody on stage: oneself, or `member`.  From then on the server takes no audio
    of theirs.  Reply: `ok`."""

    member: U32 | UnsetType = UNSET


class Unmute(Request, frozen=True, kw_only=True, tag="unmute"):
    """Unmutes oneself.  Reply: `ok`."""


class Invite(Request, frozen=True, kw_only=True, tag="invite"):
    """Makes a token for links that lets whoever joins with it speak at once.
    Reply: `invited`."""


class Close(Request, frozen=True, kw_only=True, tag="close"):
    """Ends the space for all.  Reply: `ok`."""


class Roster(Request, frozen=True, kw_only=True, tag="roster"):
    """Asks for the members after number `after`, in the order of their numbers.
    Reply: `roster_page`."""

    after: U32 = 0


class CatchUp(Request, frozen=True, kw_only=True, tag="catch_up"):
    """Asks for the feed's updates after number `after`; if they are gone, the reply is `error`
    `too_old`, and the client asks for a `look`.  Reply: `updates`."""

    after: U32


class Look(Request, frozen=True, kw_only=True, tag="look"):
    """Asks for a fresh snapshot.  Reply: `state`."""


# -- replies ------------------------------------------------------------------------------------


class Reply(Frame, frozen=True, kw_only=True):
    """Base of what the server answers: `re` is the request's `id`."""

    re: U32


class Ok(Reply, frozen=True, kw_only=True, tag="ok"):
    """Done."""


class Error(Reply, frozen=True, kw_only=True, tag="error"):
    """Not done, and nothing was changed.  `re` is 0 if the request had no readable `id`."""

    code: str
    text: str


class Joined(Reply, frozen=True, kw_only=True, tag="joined"):
    """Answers `open` and `join`: who one is, and what the space looks like."""

    space: SpaceId
    you: Member
    snapshot: Snapshot


class Invited(Reply, frozen=True, kw_only=True, tag="invited"):
    """The token, for `&invite=` in the link."""

    invite: Token


class RosterPage(Reply, frozen=True, kw_only=True, tag="roster_page"):
    """At most 100 members; `more` if there are others after the last of them."""

    members: list[Member]
    more: bool


class Updates(Reply, frozen=True, kw_only=True, tag="updates"):
    """The feed's updates from number `first` on."""

    first: U32
    updates: list[dict[str, Any]]


class State(Reply, frozen=True, kw_only=True, tag="state"):
    """A fresh snapshot, and oneself as the server sees one."""

    you: Member
    snapshot: Snapshot


# -- what one member is told, unasked ------------------------------------------------------------


class You(Frame, frozen=True, kw_only=True, tag="you"):
    """Your own state changed: brought up, taken down, muted, made co-host or host."""

    you: Member


class Ended(Frame, frozen=True, kw_only=True, tag="ended"):
    """The space is over."""

    text: str


# -- updates of the feed --------------------------------------------------------------------------


class Update(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of what a feed tells to all."""


class MemberUpdate(Update, frozen=True, kw_only=True, tag="member"):
    """Somebody on stage or with a raised hand, as they are now; one who is neither any more is
    an ordinary listener again and leaves the snapshot's list."""

    member: Member


class GoneUpdate(Update, frozen=True, kw_only=True, tag="gone"):
    """Somebody who was on stage or had a raised hand has left the space."""

    id: U32


class ListenersUpdate(Update, frozen=True, kw_only=True, tag="listeners"):
    """How many listen now."""

    count: U32


class FeedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The plaintext of a FEED datagram: updates of a space numbered `first`, `first` + 1, …"""

    space: SpaceId
    first: U32
    updates: list[dict[str, Any]]


# -- encoding -----------------------------------------------------------------------------------

AnyRequest = (
    Open | Join | Leave | RaiseHand | LowerHand | BringUp | TakeDown | Appoint | Dismiss
    | Mute | Unmute | Invite | Close | Roster | CatchUp | Look
)  # fmt: skip
REQUESTS: tuple[type[Request], ...] = AnyRequest.__args__
REPLIES: tuple[type[Frame], ...] = (Ok, Error, Joined, Invited, RosterPage, Updates, State)
NOTICES: tuple[type[Frame], ...] = (You, Ended)
UPDATES: tuple[type[Update], ...] = (MemberUpdate, GoneUpdate, ListenersUpdate)


def tag(kind: type[msgspec.Struct]) -> str:
    return cast(str, kind.__struct_config__.tag)


_BY_TAG = {tag(kind): kind for kind in (*REQUESTS, *REPLIES, *NOTICES)}
_UPDATE_BY_TAG = {tag(kind): kind for kind in UPDATES}


class FrameError(ValueError):
    """A frame that cannot be taken: `code` and text go back to its sender under `request_id`."""

    def __init__(self, code: ErrorCode, text: str, request_id: int = 0) -> None:
        super().__init__(text)
        self.code = code
        self.request_id = request_id


def _unpack(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(ErrorCode.MALFORMED, f"a frame of {len(data)} bytes")
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise FrameError(ErrorCode.MALFORMED, f"not msgpack: {error}") from error
    if not isinstance(value, dict):
        raise FrameError(ErrorCode.MALFORMED, "a frame is a map")
    return value


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of both Noise messages: which program speaks, for logs and error reports."""

    agent: Annotated[str, Meta(max_length=40)] = ""


T = TypeVar("T", bound=msgspec.Struct)


def _convert(value: dict[str, Any], kind: type[T], request_id: int) -> T:
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise FrameError(ErrorCode.MALFORMED, str(error), request_id) from error


def encode(value: Frame | FeedBatch | Greeting) -> bytes:
    return cast(bytes, msgpack.packb(msgspec.to_builtins(value)))


def decode(data: bytes) -> Frame:
    """Raises FrameError; never anything else, whatever the bytes are."""
    value = _unpack(data)
    given_id = value.get("id")
    request_id = given_id if type(given_id) is int and 0 <= given_id <= 0xFFFF_FFFF else 0
    kind = value.get("type")
    known = _BY_TAG.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise FrameError(ErrorCode.UNKNOWN_TYPE, f"unknown type {kind!r:.40}", request_id)
    return _convert(value, known, request_id)


def encode_update(update: Update) -> dict[str, Any]:
    return cast(dict[str, Any], msgspec.to_builtins(update))


def decode_update(value: dict[str, Any]) -> Update | None:
    """None if this client does not know the update: it is skipped, its number counts.
    Raises FrameError if it knows the type but cannot read the fields."""
    kind = value.get("type")
    known = _UPDATE_BY_TAG.get(kind) if isinstance(kind, str) else None
    return None if known is None else _convert(value, known, 0)


def decode_feed(plaintext: bytes) -> FeedBatch:
    """Raises FrameError."""
    return _convert(_unpack(plaintext), FeedBatch, 0)


def encode_greeting(agent: str, length_bytes: int = 0) -> bytes:
    """msgpack, padded with zeros to `length_bytes`."""
    return encode(Greeting(agent=agent)).ljust(length_bytes, b"\0")


def decode_greeting(payload: bytes) -> Greeting:
    """Never fails: a greeting that cannot be read is an empty one."""
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=1_024)
    unpacker.feed(payload[:1_024])
    try:
        return msgspec.convert(unpacker.unpack(), Greeting)
    except (ValueError, msgpack.exceptions.UnpackException, msgspec.ValidationError):
        return Greeting()
