"""What a server keeps for good, as records, and the narrow way to and from the store.

The small records (people, spaces, invites, reports) are loaded once and live in memory from then
on; the memory is what the server decides by, the store its durable image.  The large ones
(messages, posts, voice notes, evidence) live in the store only and are fetched a page at a time.

A request that changes anything durable gives back `Put`s and `Drop`s.  The node hands them to the
store as one `Commit`, which is stored whole or not at all, in the order of commits; the request is
answered when the store has confirmed it.
"""

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from protocol.frames import MessageInfo, PostInfo


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records.  KEY of each: the fields that name one."""


R = TypeVar("R", bound=Record)


# -- in memory: people ------------------------------------------------------------------------


class AccountRecord(Record, frozen=True, kw_only=True):
    """skeleton: of the handle, unique (protocol/text.py).  role: ServerRole.  invited_by: the id
    of the account that gave access, 0 if nobody did."""

    id: int
    handle: str
    skeleton: str
    name: str
    role: str
    access: bool
    invited_by: int
    since_s: int


class DeviceRecord(Record, frozen=True, kw_only=True):
    key: bytes
    account: int
    number: int
    label: str
    added_s: int


class FollowRecord(Record, frozen=True, kw_only=True):
    follower: int
    followed: int
    since_s: int


class BlockRecord(Record, frozen=True, kw_only=True):
    blocker: int
    blocked: int


class BanRecord(Record, frozen=True, kw_only=True):
    account: int
    moderator: int
    reason: str
    at_s: int


class WaitingRecord(Record, frozen=True, kw_only=True):
    account: int
    asked_s: int
    note: str


class SettingRecord(Record, frozen=True, kw_only=True):
    """A setting of the server that outlives it: "access", "owner_code" (a hash)."""

    name: str
    value: str


class NoticeRecord(Record, frozen=True, kw_only=True):
    """A kept notice: `frame` is the encoded frame."""

    id: int
    account: int
    frame: bytes


# -- in memory: spaces ------------------------------------------------------------------------


class SpaceRecord(Record, frozen=True, kw_only=True):
    """state: SpaceState.  settings: msgpack of frames.Settings.  host: account; it changes when
    the space is handed over."""

    id: str
    host: int
    title: str
    settings: bytes
    state: str
    starts_s: int
    ended_s: int


class StageRecord(Record, frozen=True, kw_only=True):
    """A place on the stage of a live space; gone when the space ends."""

    space: str
    account: int
    role: str
    muted: bool
    held: bool
    order: int


class RemovalRecord(Record, frozen=True, kw_only=True):
    """Somebody who may not come back into a space: an account, or a guest's key (account 0)."""

    space: str
    account: int
    key: bytes
    moderator: int
    at_s: int


class InviteRecord(Record, frozen=True, kw_only=True):
    """person: the only account that may use it, 0 for anybody.  until_s, max_uses: 0 for no
    limit."""

    token: str
    space: str
    issuer: int
    role: str
    person: int
    until_s: int
    uses: int
    max_uses: int


class ReminderRecord(Record, frozen=True, kw_only=True):
    space: str
    account: int


class ReportRecord(Record, frozen=True, kw_only=True):
    """person: account, 0 if about a space or a guest (whose key is then in `key`).  outcome:
    frames.Outcome, empty while open."""

    id: int
    reporter: int
    person: int
    key: bytes
    space: str
    category: str
    note: str
    at_s: int
    evidence_s: int
    evidence_until_s: int
    outcome: str
    moderator: int


# -- in the store only --------------------------------------------------------------------------


class MessageRecord(Record, frozen=True, kw_only=True):
    id: int
    sender: int
    recipient: int
    at_s: int
    text: str
    space: str
    invite: str


class PostRecord(Record, frozen=True, kw_only=True):
    id: int
    author: int
    at_s: int
    text: str
    space: str
    note_ms: int


class NotePartRecord(Record, frozen=True, kw_only=True):
    """A part of a post's voice note."""

    post: int
    part: int
    data: bytes


class EvidencePartRecord(Record, frozen=True, kw_only=True):
    """A part of what is sealed with a report."""

    report: int
    part: int
    data: bytes


class EvidenceKeyRecord(Record, frozen=True, kw_only=True):
    """What opens the evidence of a report, sealed for one moderator's device."""

    report: int
    device: bytes
    sender_key: bytes
    sealed_key: bytes


KEYS: dict[type[Record], tuple[str, ...]] = {
    AccountRecord: ("id",),
    DeviceRecord: ("key",),
    FollowRecord: ("follower", "followed"),
    BlockRecord: ("blocker", "blocked"),
    BanRecord: ("account",),
    WaitingRecord: ("account",),
    SettingRecord: ("name",),
    NoticeRecord: ("id",),
    SpaceRecord: ("id",),
    StageRecord: ("space", "account"),
    RemovalRecord: ("space", "account", "key"),
    InviteRecord: ("token",),
    ReminderRecord: ("space", "account"),
    ReportRecord: ("id",),
    MessageRecord: ("id",),
    PostRecord: ("id",),
    NotePartRecord: ("post", "part"),
    EvidencePartRecord: ("report", "part"),
    EvidenceKeyRecord: ("report", "device"),
}
STORED_ONLY = (
    MessageRecord,
    PostRecord,
    NotePartRecord,
    EvidencePartRecord,
    EvidenceKeyRecord,
)


# -- changes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Put:
    """Insert the record, or replace the one with its key."""

    record: Record


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete all records of a kind whose fields equal `where` (at least one; not only the key's:
    Drop(StageRecord, {"space": id}) clears a stage).  None there is no error."""

    kind: type[Record]
    where: dict[str, object]


Change = Put | Drop


# -- reads of what is in the store only ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PostsPage:
    """-> list[PostInfo], newest first, at most `limit`; older than `before` unless that is 0.
    home: those of `reader` and whom they follow; else those of everyone.  Never those of somebody
    with a block between them and the reader (0: nobody's), or of somebody banned."""

    reader: int
    home: bool
    before: int
    limit: int


@dataclass(frozen=True, slots=True)
class GetPost:
    """-> PostRecord or None."""

    post: int


@dataclass(frozen=True, slots=True)
class MessagesPage:
    """-> list[MessageInfo], newest first, at most `limit`, older than `before` unless that is 0;
    those between `reader` and `other`, or all of the reader's if that is 0.  Never those with
    somebody with a block between."""

    reader: int
    other: int
    before: int
    limit: int


@dataclass(frozen=True, slots=True)
class GetNotePart:
    """-> (data, whether another part follows) or None."""

    post: int
    part: int


@dataclass(frozen=True, slots=True)
class GetEvidencePart:
    """-> (EvidenceKeyRecord, data, whether another part follows) or None."""

    report: int
    part: int
    device: bytes


Query = PostsPage | GetPost | MessagesPage | GetNotePart | GetEvidencePart
Rows = (
    list[PostInfo]
    | PostRecord
    | list[MessageInfo]
    | tuple[bytes, bool]
    | tuple[EvidenceKeyRecord, bytes, bool]
    | None
)


# -- the store as a peer ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Commit:
    """All or nothing, after all commits before it.  Its StoreReply says that it is durable."""

    ticket: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Sees every commit before it."""

    ticket: int
    query: Query


@dataclass(frozen=True, slots=True)
class StoreReply:
    """rows: of a Fetch, as its query says."""

    ticket: int
    rows: Rows = None


StoreRequest = Commit | Fetch


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the store holds at the start: the records that live in memory, and the highest id ever
    given to the kinds whose rows are deleted or not loaded, so that none is given again."""

    records: tuple[Record, ...] = ()
    last_message: int = 0
    last_post: int = 0
    last_notice: int = 0

    def of(self, kind: type[R]) -> list[R]:
        return [record for record in self.records if isinstance(record, kind)]
