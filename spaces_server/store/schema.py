"""The tables: one for each kind of record, with a column for each field.

They are made from the records, so that the two cannot differ; how a database gets them, and gets
from an older form to this one, is in migrations/.
"""

from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.types import TypeEngine

from spaces_server.records import (
    KEYS,
    AccountRecord,
    BanRecord,
    BlockRecord,
    DeviceRecord,
    EvidenceKeyRecord,
    EvidencePartRecord,
    FollowRecord,
    InviteRecord,
    MessageRecord,
    NotePartRecord,
    NoticeRecord,
    PostRecord,
    Record,
    ReminderRecord,
    RemovalRecord,
    ReportRecord,
    SettingRecord,
    SpaceRecord,
    StageRecord,
    WaitingRecord,
)

# All numbers are up to u32, which PostgreSQL's INTEGER does not hold.  SQLite's does, and only by
# that name does a key become the number of the row itself.
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")
_TYPES: dict[object, TypeEngine[Any]] = {
    bool: Boolean(),
    bytes: LargeBinary(),
    int: _NUMBER,
    str: Text(),
}
_NAMES: dict[type[Record], str] = {
    AccountRecord: "accounts",
    DeviceRecord: "devices",
    FollowRecord: "follows",
    BlockRecord: "blocks",
    BanRecord: "bans",
    WaitingRecord: "waiting_accounts",
    SettingRecord: "settings",
    NoticeRecord: "notices",
    SpaceRecord: "spaces",
    StageRecord: "stages",
    RemovalRecord: "removals",
    InviteRecord: "invites",
    ReminderRecord: "reminders",
    ReportRecord: "reports",
    MessageRecord: "messages",
    PostRecord: "posts",
    NotePartRecord: "note_parts",
    EvidencePartRecord: "evidence_parts",
    EvidenceKeyRecord: "evidence_keys",
}
# What is looked for or dropped by something else than (the beginning of) its key.
_INDICES: dict[type[Record], tuple[tuple[str, ...], ...]] = {
    DeviceRecord: (("account",),),
    FollowRecord: (("followed",),),
    BlockRecord: (("blocked",),),
    NoticeRecord: (("account",),),
    StageRecord: (("account",),),
    RemovalRecord: (("account",),),
    InviteRecord: (("space",),),
    ReminderRecord: (("account",),),
    MessageRecord: (("sender", "id"), ("recipient", "id"), ("sender", "recipient", "id")),
    PostRecord: (("author", "id"),),
}

METADATA: Final = MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s_%(column_0_N_name)s"}
)


def _table(kind: type[Record]) -> Table:
    fields = msgspec.structs.fields(kind)
    table = Table(
        _NAMES[kind],
        METADATA,
        *(
            Column(
                field.name,
                _TYPES[field.type],
                primary_key=field.name in KEYS[kind],
                autoincrement=False,
                nullable=False,
            )
            for field in fields
        ),
    )
    for columns in _INDICES.get(kind, ()):
        Index(None, *(table.c[name] for name in columns))
    return table


TABLES: Final[dict[type[Record], Table]] = {kind: _table(kind) for kind in KEYS}

# Numbers that only grow: how often a server has started on this store, and the highest ids ever
# given, which rows that were deleted since do not tell any more.
COUNTERS: Final = Table(
    "counters",
    METADATA,
    Column("name", Text(), primary_key=True),
    Column("value", _NUMBER, nullable=False),
)
STARTS: Final = "starts"
LAST_IDS: Final[dict[type[Record], str]] = {
    MessageRecord: "last_message",
    PostRecord: "last_post",
    NoticeRecord: "last_notice",
}
