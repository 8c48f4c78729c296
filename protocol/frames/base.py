"""What all frames have in common: their base classes, the types of their fields, the errors.

Text fields are checked here for length only; what else makes a text fit to be shown is in
protocol/text.py.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_FRAME_BYTES = 65_536
MAX_NAME_CHARS = 40
MAX_HANDLE_CHARS = 30
MAX_TITLE_CHARS = 100
MAX_POST_CHARS = 280
MAX_MESSAGE_CHARS = 1_000
MAX_CHAT_CHARS = 280
MAX_CHAT_BYTES = 700  # in UTF-8: with the longest name, it fits into one datagram of the feed
MAX_REPORT_CHARS = 500
MAX_LABEL_CHARS = 40
MAX_PAGE = 100
MAX_TEXTS_PAGE = 12  # of the longest messages, that many still fit into one frame
MAX_CHUNK_BYTES = 16_384
MAX_FEED_CATCH_UP = 256

U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
RequestId = Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)]
Seat = Annotated[int, Meta(ge=0, le=255)]
Percent = Annotated[int, Meta(ge=0, le=200)]
PacketMs = Annotated[int, Meta(ge=20, le=60)]
Time = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]  # seconds since 1970, UTC
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Handle = Annotated[str, Meta(min_length=1, max_length=MAX_HANDLE_CHARS)]
NoHandle = Annotated[str, Meta(max_length=MAX_HANDLE_CHARS)]  # empty: nobody's
Title = Annotated[str, Meta(min_length=1, max_length=MAX_TITLE_CHARS)]
PostText = Annotated[str, Meta(max_length=MAX_POST_CHARS)]
MessageText = Annotated[str, Meta(max_length=MAX_MESSAGE_CHARS)]
SomeMessageText = Annotated[str, Meta(min_length=1, max_length=MAX_MESSAGE_CHARS)]
ChatText = Annotated[str, Meta(min_length=1, max_length=MAX_CHAT_CHARS)]
ReportText = Annotated[str, Meta(max_length=MAX_REPORT_CHARS)]
Label = Annotated[str, Meta(min_length=1, max_length=MAX_LABEL_CHARS)]
Emoji = Annotated[str, Meta(min_length=1, max_length=16)]
Blob = Annotated[bytes, Meta(max_length=MAX_CHUNK_BYTES)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
# \Z: a $ would let a newline through behind them.
SpaceId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,32}\Z")]
NoSpaceId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,32}\Z")]  # empty: none
Token = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
NoToken = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}\Z")]  # empty: none


class ErrorCode(StrEnum):
    """Codes of `error`; a client decides by the code, a person reads the text."""

    MALFORMED = "malformed"
    UNKNOWN_TYPE = "unknown_type"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    BAD_TEXT = "bad_text"
    NOT_ALLOWED = "not_allowed"
    BANNED = "banned"
    NO_ACCOUNT = "no_account"
    HAS_ACCOUNT = "has_account"
    BAD_HANDLE = "bad_handle"
    HANDLE_TAKEN = "handle_taken"
    NO_SUCH_PERSON = "no_such_person"
    ONESELF = "oneself"
    BLOCKED = "blocked"
    BAD_CODE = "bad_code"
    NO_SUCH_DEVICE = "no_such_device"
    LAST_DEVICE = "last_device"
    TOO_MANY = "too_many"
    NO_ACCESS = "no_access"
    NO_GUESTS = "no_guests"
    NO_SUCH_SPACE = "no_such_space"
    SPACE_ENDED = "space_ended"
    NOT_STARTED = "not_started"
    BAD_TIME = "bad_time"
    FOLLOWERS_ONLY = "followers_only"
    REMOVED = "removed"
    SOMEONE_BLOCKED = "someone_blocked"
    NO_SUCH_MEMBER = "no_such_member"
    NOT_JOINED = "not_joined"
    ALREADY_JOINED = "already_joined"
    STAGE_FULL = "stage_full"
    CO_HOSTS_FULL = "co_hosts_full"
    SPACE_FULL = "space_full"
    SERVER_FULL = "server_full"
    HANDS_FULL = "hands_full"
    NO_HAND = "no_hand"
    NOT_OFFERED = "not_offered"
    MUTED_BY_MODERATOR = "muted_by_moderator"
    CHAT_OFF = "chat_off"
    NO_SUCH_LINE = "no_such_line"
    BAD_REACTION = "bad_reaction"
    BAD_INVITE = "bad_invite"
    INVITE_EXPIRED = "invite_expired"
    INVITE_USED_UP = "invite_used_up"
    NO_SUCH_POST = "no_such_post"
    BAD_NOTE = "bad_note"
    NO_SUCH_REPORT = "no_such_report"
    NO_EVIDENCE = "no_evidence"
    TOO_OLD = "too_old"


ERROR_TEXTS: dict[ErrorCode, str] = {
    ErrorCode.MALFORMED: "the frame is not of the form that the specification gives",
    ErrorCode.UNKNOWN_TYPE: "this server does not know that type of frame",
    ErrorCode.RATE_LIMITED: "too many of these; try again in a while",
    ErrorCode.UNAVAILABLE: "the server cannot do this now; try again later",
    ErrorCode.BAD_TEXT: "texts must not be too long, blank, or contain control characters",
    ErrorCode.NOT_ALLOWED: "your role does not allow this",
    ErrorCode.BANNED: "you are banned from this server",
    ErrorCode.NO_ACCOUNT: "this needs an account; register first",
    ErrorCode.HAS_ACCOUNT: "this device belongs to an account already",
    ErrorCode.BAD_HANDLE: "a handle has 1 to 30 letters, digits or underscores of one script",
    ErrorCode.HANDLE_TAKEN: "somebody has this handle, or one that looks like it",
    ErrorCode.NO_SUCH_PERSON: "nobody has this handle here",
    ErrorCode.ONESELF: "this cannot be done to oneself",
    ErrorCode.BLOCKED: "one of the two has blocked the other",
    ErrorCode.BAD_CODE: "this code is not valid, or no longer",
    ErrorCode.NO_SUCH_DEVICE: "the account has no such device",
    ErrorCode.LAST_DEVICE: "the last device of an account cannot be removed",
    ErrorCode.TOO_MANY: "there are as many of these as the server keeps",
    ErrorCode.NO_ACCESS: "this server is limited: ask for access, or to be invited",
    ErrorCode.NO_GUESTS: "this server takes no guests; register first",
    ErrorCode.NO_SUCH_SPACE: "there is no such space",
    ErrorCode.SPACE_ENDED: "this space has ended",
    ErrorCode.NOT_STARTED: "this space has not started yet",
    ErrorCode.BAD_TIME: "a space can be scheduled up to 14 days ahead",
    ErrorCode.FOLLOWERS_ONLY: "this space is for followers of its host",
    ErrorCode.REMOVED: "you were removed from this space",
    ErrorCode.SOMEONE_BLOCKED: "somebody whom you blocked is on stage; join again to go on",
    ErrorCode.NO_SUCH_MEMBER: "nobody with this number is in the space",
    ErrorCode.NOT_JOINED: "join a space first",
    ErrorCode.ALREADY_JOINED: "you are in a space already; leave it first",
    ErrorCode.STAGE_FULL: "the stage is full; somebody must be taken down first",
    ErrorCode.CO_HOSTS_FULL: "there are as many co-hosts as a space has",
    ErrorCode.SPACE_FULL: "the space is full",
    ErrorCode.SERVER_FULL: "the server has as many spaces as it takes",
    ErrorCode.HANDS_FULL: "as many hands are raised as the space takes; try again later",
    ErrorCode.NO_HAND: "this listener has not raised a hand",
    ErrorCode.NOT_OFFERED: "nobody has offered you to speak",
    ErrorCode.MUTED_BY_MODERATOR: "you were muted by a moderator, who must let you speak again",
    ErrorCode.CHAT_OFF: "the chat of this space is switched off",
    ErrorCode.NO_SUCH_LINE: "the chat has no such line (any more)",
    ErrorCode.BAD_REACTION: "this is none of the space's reactions",
    ErrorCode.BAD_INVITE: "the invite is not valid in this space",
    ErrorCode.INVITE_EXPIRED: "the invite has expired",
    ErrorCode.INVITE_USED_UP: "the invite was used as often as it may be",
    ErrorCode.NO_SUCH_POST: "there is no such post (any more)",
    ErrorCode.BAD_NOTE: "a voice note is at most 140 s of Opus, sent in order and whole",
    ErrorCode.NO_SUCH_REPORT: "there is no such report",
    ErrorCode.NO_EVIDENCE: "there is no evidence with this report (any more)",
    ErrorCode.TOO_OLD: "these updates are gone; take a new snapshot",
}


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of every frame."""


class Request(Frame, frozen=True, kw_only=True):
    """Base of what a client asks; `id` comes back as `re`."""

    id: RequestId


class Reply(Frame, frozen=True, kw_only=True):
    """Base of what the server answers: `re` is the request's `id`."""

    re: U32


class Ok(Reply, frozen=True, kw_only=True, tag="ok"):
    """Done."""


class Error(Reply, frozen=True, kw_only=True, tag="error", omit_defaults=True):
    """Not done, and nothing was changed.  `re` is 0 if the request had no readable `id`.
    `retry_ms`: when trying again may help, from now on."""

    code: str
    text: str
    retry_ms: U32 = 0


class Notice(Frame, frozen=True, kw_only=True):
    """Base of what the server tells unasked."""


class SpaceNotice(Notice, frozen=True, kw_only=True):
    """Base of what one member of a space is told; it may come when they are in another already."""

    space: SpaceId


class KeptNotice(Notice, frozen=True, kw_only=True):
    """Base of notices that are kept until they are `seen`: they come again with every new session
    of the account until then."""

    notice: U32
