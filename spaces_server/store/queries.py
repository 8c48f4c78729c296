"""The SQL of what is fetched a page at a time."""

from typing import assert_never

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Select,
    and_,
    exists,
    literal,
    select,
    union,
)

from protocol.frames import MessageInfo, PostInfo
from spaces_server.records import (
    AccountRecord,
    BanRecord,
    BlockRecord,
    EvidenceKeyRecord,
    EvidencePartRecord,
    FollowRecord,
    GetEvidencePart,
    GetNotePart,
    GetPost,
    MessageRecord,
    MessagesPage,
    NotePartRecord,
    PostRecord,
    PostsPage,
    Query,
    Rows,
)
from spaces_server.store.schema import TABLES

_accounts = TABLES[AccountRecord].c
_bans = TABLES[BanRecord].c
_blocks = TABLES[BlockRecord].c
_follows = TABLES[FollowRecord].c
_messages = TABLES[MessageRecord].c
_posts = TABLES[PostRecord].c
_note_parts = TABLES[NotePartRecord].c
_evidence_parts = TABLES[EvidencePartRecord].c
_evidence_keys = TABLES[EvidenceKeyRecord].c


def run(connection: Connection, query: Query) -> Rows:
    """What the query says that it gives."""
    match query:
        case PostsPage():
            return _posts_page(connection, query)
        case GetPost():
            post = connection.execute(select(*_posts).where(_posts.id == query.post)).first()
            return None if post is None else PostRecord(**post._mapping)
        case MessagesPage():
            return _messages_page(connection, query)
        case GetNotePart():
            return _note_part(connection, query)
        case GetEvidencePart():
            return _evidence_part(connection, query)
        case _:
            assert_never(query)


def _no_block(reader: int, person: ColumnElement[int]) -> ColumnElement[bool]:
    return and_(
        ~exists().where(_blocks.blocker == reader, _blocks.blocked == person),
        ~exists().where(_blocks.blocker == person, _blocks.blocked == reader),
    )


def _posts_page(connection: Connection, query: PostsPage) -> list[PostInfo]:
    wanted = (
        select(
            _posts.id,
            _accounts.handle.label("author"),
            _accounts.name,
            _posts.at_s.label("at"),
            _posts.text,
            _posts.space,
            _posts.note_ms,
        )
        .join_from(TABLES[PostRecord], TABLES[AccountRecord], _accounts.id == _posts.author)
        .where(
            _no_block(query.reader, _posts.author), ~exists().where(_bans.account == _posts.author)
        )
        .order_by(_posts.id.desc())
        .limit(query.limit)
    )
    if query.home:
        followed = select(_follows.followed).where(_follows.follower == query.reader)
        wanted = wanted.where(_posts.author.in_(followed.union_all(select(literal(query.reader)))))
    if query.before:
        wanted = wanted.where(_posts.id < query.before)
    return [PostInfo(**row._mapping) for row in connection.execute(wanted)]


def _messages_page(connection: Connection, query: MessagesPage) -> list[MessageInfo]:
    sender = TABLES[AccountRecord].alias("sender_account").c
    recipient = TABLES[AccountRecord].alias("recipient_account").c
    wanted = (
        select(
            _messages.id,
            sender.handle.label("sender"),
            recipient.handle.label("recipient"),
            _messages.at_s.label("at"),
            _messages.text,
            _messages.space,
            _messages.invite,
        )
        .where(
            _messages.id.in_(_message_ids(query)),
            sender.id == _messages.sender,
            recipient.id == _messages.recipient,
        )
        .order_by(_messages.id.desc())
        .limit(query.limit)
    )
    return [MessageInfo(**row._mapping) for row in connection.execute(wanted)]


def _message_ids(query: MessagesPage) -> CompoundSelect[tuple[int]]:
    """Those of a page, and as many more at most: what the reader sent and what came are searched
    apart, since an index is in order for each of the two only."""

    def newest(own: ColumnElement[int], others: ColumnElement[int]) -> Select[tuple[int]]:
        ids = (
            select(_messages.id)
            .where(own == query.reader, _no_block(query.reader, others))
            .order_by(_messages.id.desc())
            .limit(query.limit)
        )
        if query.other:
            ids = ids.where(others == query.other)
        if query.before:
            ids = ids.where(_messages.id < query.before)
        return select(ids.subquery().c.id)

    return union(
        newest(_messages.sender, _messages.recipient),
        newest(_messages.recipient, _messages.sender),
    )


def _note_part(connection: Connection, query: GetNotePart) -> tuple[bytes, bool] | None:
    parts = connection.execute(
        select(_note_parts.part, _note_parts.data)
        .where(_note_parts.post == query.post, _note_parts.part >= query.part)
        .order_by(_note_parts.part)
        .limit(2)
    ).all()
    if not parts or parts[0].part != query.part:
        return None
    return parts[0].data, len(parts) > 1


def _evidence_part(
    connection: Connection, query: GetEvidencePart
) -> tuple[EvidenceKeyRecord, bytes, bool] | None:
    key = connection.execute(
        select(*_evidence_keys).where(
            _evidence_keys.report == query.report, _evidence_keys.device == query.device
        )
    ).first()
    parts = connection.execute(
        select(_evidence_parts.part, _evidence_parts.data)
        .where(_evidence_parts.report == query.report, _evidence_parts.part >= query.part)
        .order_by(_evidence_parts.part)
        .limit(2)
    ).all()
    if key is None or not parts or parts[0].part != query.part:
        return None
    return EvidenceKeyRecord(**key._mapping), parts[0].data, len(parts) > 1
