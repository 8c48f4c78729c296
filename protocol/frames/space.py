"""Frames of one space: its members, its stage, its chat and reactions, and its feed."""

from enum import StrEnum
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from protocol.frames.base import (
    U32,
    ChatText,
    Emoji,
    Handle,
    Name,
    NoHandle,
    PacketMs,
    Percent,
    Reply,
    Request,
    Seat,
    SpaceId,
    SpaceNotice,
    Time,
    Title,
    Token,
)
from protocol.roles import Role


class Visibility(StrEnum):
    """Who finds a space and may come in: everyone, followers of its host, or whoever has the
    link."""

    PUBLIC = "public"
    FOLLOWERS = "followers"
    LINK = "link"


class WhoSpeaks(StrEnum):
    """Who may step up without being asked: everyone, people whom the host follows, or nobody
    (only those invited)."""

    EVERYONE = "everyone"
    FOLLOWED = "followed"
    INVITED = "invited"


class Sound(StrEnum):
    """What a space is made for: voices, in mono, or music, in stereo and left as it is."""

    VOICE = "voice"
    MUSIC = "music"


class Member(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One person in a space.  handle: empty for a guest.  seat: on stage only, as in audio
    packets.  held: muted by a moderator, and not free to unmute.  hand: since when it is raised;
    0 if it is not."""

    id: U32
    name: Name
    handle: NoHandle = ""
    role: Role = Role.LISTENER
    seat: Seat | UnsetType = UNSET
    muted: bool = False
    held: bool = False
    hand: Time = 0


class Settings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a space is run.  free_unmute: whoever was muted by a moderator may unmute themselves.
    slow_s: seconds that a member waits between two lines of chat.  Said when the space is opened,
    and for good: low_delay, that packets of the mix have 10 ms instead of 20, and the speakers'
    should; sound, what it is made for.
    """

    visibility: Visibility = Visibility.PUBLIC
    who_speaks: WhoSpeaks = WhoSpeaks.INVITED
    free_unmute: bool = False
    chat: bool = True
    slow_s: U32 = 0
    low_delay: bool = False
    sound: Sound = Sound.VOICE


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state that the feed changes, as of update `number`: the title, the settings, the stage,
    the raised hands in the order of raising, and how many listen (the rest of the audience is
    paged with `roster`)."""

    number: U32
    title: Title
    settings: Settings
    members: list[Member]
    listeners: U32


# -- requests ---------------------------------------------------------------------------------


class Open(Request, frozen=True, kw_only=True, tag="open"):
    """Opens a space, or with `space` the one that the asker has scheduled (then title and
    settings are those of the schedule); the asker is its host.  Reply: `joined`."""

    title: Title = "A space"
    settings: Settings = Settings()
    space: SpaceId | UnsetType = UNSET


class Join(Request, frozen=True, kw_only=True, tag="join"):
    """Comes into a space, as a listener, in the role that the invite grants, or in the one that
    is kept.  name: of a guest; whoever has an account is called as it says.  despite_blocked: the
    asker was warned that somebody whom they blocked is on stage.  packet_ms: the most audio that
    the asker takes in one datagram, in milliseconds.  Reply: `joined`."""

    space: SpaceId
    invite: Token | UnsetType = UNSET
    name: Name = "guest"
    despite_blocked: bool = False
    packet_ms: PacketMs = 20


class Leave(Request, frozen=True, kw_only=True, tag="leave"):
    """Leaves the space.  If the host leaves, the longest-serving co-host becomes host; without
    one the space ends.  Reply: `ok`."""


class RaiseHand(Request, frozen=True, kw_only=True, tag="raise_hand"):
    """Asks to speak.  Raising a raised hand changes nothing.  Reply: `ok`."""


class LowerHand(Request, frozen=True, kw_only=True, tag="lower_hand"):
    """Takes a hand down: one's own, or `member`'s.  Reply: `ok`."""

    member: U32 | UnsetType = UNSET


class StepUp(Request, frozen=True, kw_only=True, tag="step_up"):
    """Goes on stage unasked, where `who_speaks` lets one.  Reply: `ok`."""


class BringUp(Request, frozen=True, kw_only=True, tag="bring_up"):
    """Makes a listener with a raised hand a speaker.  Reply: `ok`."""

    member: U32


class Offer(Request, frozen=True, kw_only=True, tag="offer"):
    """Invites a listener to speak, who gets `offered`.  Reply: `ok`."""

    member: U32


class Accept(Request, frozen=True, kw_only=True, tag="accept"):
    """Takes an offer to speak: goes on stage.  Reply: `ok`."""


class Decline(Request, frozen=True, kw_only=True, tag="decline"):
    """Declines an offer; whoever made it gets `declined`.  Reply: `ok`."""


class TakeDown(Request, frozen=True, kw_only=True, tag="take_down"):
    """Makes a speaker or co-host a listener: oneself, or `member`.  Reply: `ok`."""

    member: U32 | UnsetType = UNSET


class Appoint(Request, frozen=True, kw_only=True, tag="appoint"):
    """Makes a speaker a co-host.  Reply: `ok`."""

    member: U32


class Dismiss(Request, frozen=True, kw_only=True, tag="dismiss"):
    """Makes a co-host a speaker: oneself, or `member`.  Reply: `ok`."""

    member: U32 | UnsetType = UNSET


class HandOver(Request, frozen=True, kw_only=True, tag="hand_over"):
    """Makes somebody on stage the host; the asker becomes a co-host, or a speaker where there are
    as many co-hosts as a space has.  Reply: `ok`."""

    member: U32


class Mute(Request, frozen=True, kw_only=True, tag="mute"):
    """Mutes somebody on stage: oneself, or `member`.  From then on the server takes no audio
    of theirs.  Reply: `ok`."""

    member: U32 | UnsetType = UNSET


class MuteAll(Request, frozen=True, kw_only=True, tag="mute_all"):
    """Mutes everyone on stage on whom the asker may use `mute`, but not oneself.  Reply: `ok`."""


class Unmute(Request, frozen=True, kw_only=True, tag="unmute"):
    """Unmutes oneself.  Reply: `ok`."""


class LetUnmute(Request, frozen=True, kw_only=True, tag="let_unmute"):
    """Lets somebody who was muted by a moderator unmute themselves.  Reply: `ok`."""

    member: U32


class Remove(Request, frozen=True, kw_only=True, tag="remove"):
    """Removes a member, for good: they cannot come back into this space.  Reply: `ok`."""

    member: U32


class SetVolume(Request, frozen=True, kw_only=True, tag="set_volume"):
    """How loud the asker hears a member: 100 % as they are, 0 not at all, in steps of 10.  Nobody
    else hears or learns of it; it holds until the space ends, also for who comes back.
    Reply: `ok`."""

    member: U32
    percent: Percent


class Configure(Request, frozen=True, kw_only=True, tag="configure"):
    """Changes what is given of the title and the settings.  Reply: `ok`."""

    title: Title | UnsetType = UNSET
    visibility: Visibility | UnsetType = UNSET
    who_speaks: WhoSpeaks | UnsetType = UNSET
    free_unmute: bool | UnsetType = UNSET
    chat: bool | UnsetType = UNSET
    slow_s: U32 | UnsetType = UNSET


class Chat(Request, frozen=True, kw_only=True, tag="chat"):
    """Says a line in the chat.  Reply: `said`."""

    text: ChatText


class DeleteLine(Request, frozen=True, kw_only=True, tag="delete_line"):
    """Takes a line back: one's own, or one of somebody on whom the asker may.  Reply: `ok`."""

    line: U32


class React(Request, frozen=True, kw_only=True, tag="react"):
    """Shows one of the space's six reactions.  Reply: `ok`."""

    emoji: Emoji


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


class AskClock(Request, frozen=True, kw_only=True, tag="clock"):
    """Asks what the server's clock says, and how the audio of those on stage lies on it.  offset:
    how the asker's own does, if they know.  Reply: `clocks`."""

    offset: U32 | UnsetType = UNSET


# -- replies ------------------------------------------------------------------------------------


class Joined(Reply, frozen=True, kw_only=True, tag="joined"):
    """Answers `open` and `join`: who one is, and what the space looks like.  reactions: the six
    that may be shown here.  evidence: if a report is made, what the reported speaker said in the
    last 30 s goes with it, sealed for the server's moderators; a client says so to its user."""

    space: SpaceId
    you: Member
    snapshot: Snapshot
    reactions: list[Emoji]
    evidence: bool = False


class RosterPage(Reply, frozen=True, kw_only=True, tag="roster_page"):
    """At most 100 members; `more` if there are others after the last of them."""

    members: list[Member]
    more: bool


class Updates(Reply, frozen=True, kw_only=True, tag="updates"):
    """The feed's updates from number `first` on, and the state hash after the last of them."""

    space: SpaceId
    first: U32
    updates: list[dict[str, Any]]
    hash: U32


class State(Reply, frozen=True, kw_only=True, tag="state"):
    """A fresh snapshot, and oneself as the server sees one."""

    space: SpaceId
    you: Member
    snapshot: Snapshot


class VoiceClock(msgspec.Struct, frozen=True, kw_only=True):
    """How the audio of somebody on stage lies on the server's clock.  offset: what it said when a
    sample was captured, minus that sample's timestamp, modulo 2^32."""

    seat: Seat
    offset: U32


class Clocks(Reply, frozen=True, kw_only=True, tag="clocks"):
    """now: the server's clock, in samples of 48 kHz, modulo 2^32.  voices: those that are known.
    spare: by how many samples later the asker's last packets of audio could have come."""

    now: U32
    voices: list[VoiceClock]
    spare: U32 = 0


class Said(Reply, frozen=True, kw_only=True, tag="said"):
    """The line's number, by which it can be deleted."""

    line: U32


# -- what one member is told, unasked ------------------------------------------------------------


class You(SpaceNotice, frozen=True, kw_only=True, tag="you"):
    """Your own state changed: brought up, taken down, muted, made co-host or host."""

    you: Member


class Offered(SpaceNotice, frozen=True, kw_only=True, tag="offered"):
    """You are invited to speak; by: the member who invites."""

    by: U32


class Declined(SpaceNotice, frozen=True, kw_only=True, tag="declined"):
    """A member has declined the asker's offer to speak."""

    member: U32


class BlockedOnStage(SpaceNotice, frozen=True, kw_only=True, tag="blocked_on_stage"):
    """Somebody whom you blocked came on stage; you do not hear them."""

    member: U32


class Removed(SpaceNotice, frozen=True, kw_only=True, tag="removed"):
    """You are out of the space, as a rule for good; the text says why."""

    text: str


class Ended(SpaceNotice, frozen=True, kw_only=True, tag="ended"):
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


class SettingsUpdate(Update, frozen=True, kw_only=True, tag="settings"):
    """How the space is run from now on."""

    title: Title
    settings: Settings


class ChatUpdate(Update, frozen=True, kw_only=True, tag="chat"):
    """A line of chat."""

    line: U32
    member: U32
    name: Name
    handle: Handle
    text: ChatText


class LineGoneUpdate(Update, frozen=True, kw_only=True, tag="line_gone"):
    """A line of chat was taken back: a client shows it no more."""

    line: U32


class Reaction(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody on stage showed."""

    member: U32
    emoji: Emoji


class ReactionsUpdate(Update, frozen=True, kw_only=True, tag="reactions"):
    """What was shown since the last of these: how often each reaction, and what those on stage
    showed by name (they are in the counts as well)."""

    counts: dict[str, U32]
    stage: list[Reaction]


class FeedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The plaintext of a FEED datagram: updates of a space numbered `first`, `first` + 1, …, and
    the state hash after the last of them."""

    space: SpaceId
    first: U32
    updates: list[dict[str, Any]]
    hash: U32
