"""What a client tells whoever runs it: of its session, of the space, of what it asked."""

from dataclasses import dataclass

from protocol import frames
from protocol.connection import CloseCode
from protocol.packets import DownlinkAudio


@dataclass(frozen=True, slots=True)
class Connected:
    """The session stands; requests may be made."""


@dataclass(frozen=True, slots=True)
class Replied:
    """The one reply to request `id`."""

    id: int
    frame: frames.Frame


@dataclass(frozen=True, slots=True)
class Changed:
    """The view of the space (title, settings, people, roles, hands) has changed."""


@dataclass(frozen=True, slots=True)
class Chat:
    """Somebody said a line in the chat (it is in the view already)."""

    line: frames.ChatUpdate


@dataclass(frozen=True, slots=True)
class LineGone:
    """A line of the chat was taken back, and is to be shown no more."""

    line: int


@dataclass(frozen=True, slots=True)
class Reacted:
    """What was shown since the last of these: how often each reaction, and by whom on stage."""

    counts: dict[str, int]
    stage: list[frames.Reaction]


@dataclass(frozen=True, slots=True)
class Notified:
    """The server tells this person something, unasked."""

    frame: frames.Notice


@dataclass(frozen=True, slots=True)
class Removed:
    """This person was removed from the space; the session goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The space is over, or cannot be come back into; the session goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class Heard:
    """An audio packet has come (it is in the playout already)."""

    audio: DownlinkAudio


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The session is lost, and attempts are made to have one again.  Requests without a reply get
    none any more."""

    text: str


@dataclass(frozen=True, slots=True)
class Reconnected:
    """There is a session again, and one is in the space again, unless `Ended` follows."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """There is no session (any more), and no attempt will be made to have one."""

    text: str
    code: int = CloseCode.LEAVING


ClientEvent = (
    Connected
    | Replied
    | Changed
    | Chat
    | LineGone
    | Reacted
    | Notified
    | Removed
    | Ended
    | Heard
    | Reconnecting
    | Reconnected
    | Disconnected
)
