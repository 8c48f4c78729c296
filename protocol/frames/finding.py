"""Frames by which people find each other: lists and schedules of spaces, invitations, direct
messages, posts and voice notes."""

from enum import StrEnum

import msgspec
from msgspec import UNSET, UnsetType

from protocol.frames.base import (
    U32,
    Blob,
    Handle,
    KeptNotice,
    MessageText,
    Name,
    NoHandle,
    NoSpaceId,
    Notice,
    NoToken,
    PostText,
    Reply,
    Request,
    SomeMessageText,
    SpaceId,
    Time,
    Title,
    Token,
)
from protocol.frames.space import Settings, Visibility
from protocol.roles import Role


class SpaceState(StrEnum):
    """What has become of a space."""

    SCHEDULED = "scheduled"
    LIVE = "live"
    ENDED = "ended"


class SpaceInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A space as lists show it.  starts: when it is to start, or did.  listeners, stage: how many
    they are now.  followed: the asker follows somebody on its stage.  reminder: the asker has set
    one."""

    id: SpaceId
    title: Title
    host: Handle
    host_name: Name
    state: SpaceState
    visibility: Visibility = Visibility.PUBLIC
    starts: Time = 0
    listeners: U32 = 0
    stage: U32 = 0
    followed: bool = False
    reminder: bool = False


class InviteInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An invite token: who made it, what it grants.  person: the only one who may use it, if it
    was made for one.  until: 0 if it does not expire.  uses: how often it was used; max_uses: how
    often it may be, 0 for any number."""

    invite: Token
    issuer: Handle
    role: Role
    person: NoHandle = ""
    until: Time = 0
    uses: U32 = 0
    max_uses: U32 = 0


class MessageInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A direct message.  space, invite: of an invitation into a space."""

    id: U32
    sender: Handle
    recipient: Handle
    at: Time
    text: MessageText = ""
    space: NoSpaceId = ""
    invite: NoToken = ""


class PostInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A post.  space: which it invites to.  note_ms: how long its voice note is."""

    id: U32
    author: Handle
    name: Name
    at: Time
    text: PostText = ""
    space: NoSpaceId = ""
    note_ms: U32 = 0


# -- requests: spaces ----------------------------------------------------------------------------


class ListSpaces(Request, frozen=True, kw_only=True, tag="list_spaces"):
    """Asks for the live spaces that the asker may see: those with people on stage whom they
    follow first, then the others, the fullest first.  Reply: `spaces`."""

    after: U32 = 0


class ListUpcoming(Request, frozen=True, kw_only=True, tag="list_upcoming"):
    """Asks for the scheduled spaces that the asker may see, the next first.  Reply: `spaces`."""

    after: U32 = 0


class GetSpace(Request, frozen=True, kw_only=True, tag="get_space"):
    """Looks one space up, by what its link names.  Reply: `space`."""

    space: SpaceId


class Schedule(Request, frozen=True, kw_only=True, tag="schedule"):
    """Announces a space, up to 14 days ahead.  Reply: `space`."""

    title: Title
    starts: Time
    settings: Settings = Settings()


class CancelSpace(Request, frozen=True, kw_only=True, tag="cancel_space"):
    """Calls a scheduled space of one's own off.  Reply: `ok`."""

    space: SpaceId


class Remind(Request, frozen=True, kw_only=True, tag="remind"):
    """Sets a reminder for a scheduled space, or with `on` false takes it back: the asker gets
    `started` when it starts.  Reply: `ok`."""

    space: SpaceId
    on: bool = True


# -- requests: invitations -------------------------------------------------------------------------


class MakeInvite(Request, frozen=True, kw_only=True, tag="make_invite"):
    """Makes a token for links into the space one is in, which grants whoever joins with it a role
    (listener, speaker; of the host also co_host).  lifetime_s: 0 does not expire.  max_uses: 0 for
    any number.  Reply: `invited`."""

    role: Role = Role.SPEAKER
    lifetime_s: U32 = 0
    max_uses: U32 = 0


class ListInvites(Request, frozen=True, kw_only=True, tag="list_invites"):
    """Asks for the invites of the space one is in that can still be used.  Reply: `invites`."""


class RevokeInvite(Request, frozen=True, kw_only=True, tag="revoke_invite"):
    """Makes an invite of the space one is in worthless.  Reply: `ok`."""

    invite: Token


class InvitePerson(Request, frozen=True, kw_only=True, tag="invite_person"):
    """Invites somebody into the space one is in by a direct message with a token that only they
    can use, once.  Where the server is limited, they have access from then on.
    Reply: `invited`."""

    person: Handle
    role: Role = Role.LISTENER
    text: MessageText = ""


# -- requests: messages and posts ----------------------------------------------------------------


class SendMessage(Request, frozen=True, kw_only=True, tag="send_message"):
    """Sends a direct message.  Reply: `sent`."""

    person: Handle
    text: SomeMessageText


class ListMessages(Request, frozen=True, kw_only=True, tag="list_messages"):
    """Asks for one's messages, the newest first: all, or those with `person`; with `before`, those
    older than that number.  Reply: `messages`."""

    person: NoHandle = ""
    before: U32 = 0


class NotePart(Request, frozen=True, kw_only=True, tag="note_part"):
    """The next part of a voice note that the asker's next `post` takes along; the first part
    begins a new one.  A note is a row of Opus packets, each behind its length (u16).
    Reply: `ok`."""

    first: bool
    data: Blob


class Post(Request, frozen=True, kw_only=True, tag="post"):
    """Posts a text, a link to a space, a voice note, or any of them together.  Reply: `posted`."""

    text: PostText = ""
    space: SpaceId | UnsetType = UNSET
    note: bool = False


class DeletePost(Request, frozen=True, kw_only=True, tag="delete_post"):
    """Takes a post back: one's own; a moderator of the server may take any.  Reply: `ok`."""

    post: U32


class Home(Request, frozen=True, kw_only=True, tag="home"):
    """Asks for the posts of oneself and of the people one follows, the newest first.
    Reply: `posts`."""

    before: U32 = 0


class PublicPosts(Request, frozen=True, kw_only=True, tag="public_posts"):
    """Asks for the posts of everyone, the newest first.  Reply: `posts`."""

    before: U32 = 0


class GetNote(Request, frozen=True, kw_only=True, tag="get_note"):
    """Asks for part number `part` (from 0 on) of a post's voice note.  Reply: `note`."""

    post: U32
    part: U32 = 0


# -- replies ------------------------------------------------------------------------------------


class Spaces(Reply, frozen=True, kw_only=True, tag="spaces"):
    """At most 12 spaces.  next: for `after`, where there are more; else 0."""

    spaces: list[SpaceInfo]
    next: U32 = 0


class SpaceReply(Reply, frozen=True, kw_only=True, tag="space"):
    """One space."""

    space: SpaceInfo


class Invited(Reply, frozen=True, kw_only=True, tag="invited"):
    """The token, for `&invite=` in the link."""

    invite: Token


class Invites(Reply, frozen=True, kw_only=True, tag="invites"):
    """The invites of the space, the newest first, 100 at most."""

    invites: list[InviteInfo]


class Sent(Reply, frozen=True, kw_only=True, tag="sent"):
    """The message's number."""

    message: U32


class Messages(Reply, frozen=True, kw_only=True, tag="messages"):
    """At most 12 messages.  next: for `before`, where there are older ones; else 0."""

    messages: list[MessageInfo]
    next: U32 = 0


class Posted(Reply, frozen=True, kw_only=True, tag="posted"):
    """The post's number."""

    post: U32


class Posts(Reply, frozen=True, kw_only=True, tag="posts"):
    """At most 12 posts.  next: for `before`, where there are older ones; else 0."""

    posts: list[PostInfo]
    next: U32 = 0


class Note(Reply, frozen=True, kw_only=True, tag="note"):
    """A part of a voice note; `more` if another follows."""

    data: Blob
    more: bool


# -- notices ------------------------------------------------------------------------------------


class MessageNotice(Notice, frozen=True, kw_only=True, tag="message"):
    """A direct message to you has come."""

    message: MessageInfo


class Unread(KeptNotice, frozen=True, kw_only=True, tag="unread"):
    """Messages came while you were away; there is one such notice at most."""


class Started(KeptNotice, frozen=True, kw_only=True, tag="started"):
    """A space that you set a reminder for has started."""

    space: SpaceId
    title: Title
    host: Handle
