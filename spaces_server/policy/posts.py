"""Posts and their voice notes.

Posts are in the store only.  A voice note comes in parts before its post, and is held in memory
until then.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol, cast

from msgspec import UNSET, UnsetType

from protocol import frames
from protocol.frames import MAX_CHUNK_BYTES, ErrorCode, PostInfo
from protocol.notes import MAX_NOTE_BYTES, NoteError, duration_ms
from protocol.roles import ServerAction, ServerRole, server_allowed
from spaces_server.policy.asking import clean_text, require_account, server_role
from spaces_server.policy.effects import Answer, Ask, Asker, Effect, Moment, RefusedError, Save
from spaces_server.records import (
    AccountRecord,
    Drop,
    GetNotePart,
    GetPost,
    Loaded,
    NotePartRecord,
    PostRecord,
    PostsPage,
    Put,
    Rows,
    SpaceRecord,
)

PAGE = frames.MAX_TEXTS_PAGE
MAX_UPLOADS_BYTES = 64_000_000  # of all notes whose posts have not come yet
UPLOAD_NS = 600 * 1_000_000_000  # then a note is forgotten


class Relations(Protocol):
    """What posts must know of people."""

    def account(self, account: int, /) -> AccountRecord: ...
    def blocks(self, account: int, /) -> Set[int]: ...
    def banned(self, account: int, /) -> bool: ...


class Showing(Protocol):
    """What posts must know of spaces; the programme does."""

    def announced(self, space_id: str, /) -> SpaceRecord: ...
    def may_show(self, account: int, record: SpaceRecord, /) -> bool: ...


@dataclass(slots=True)
class _Upload:
    begun_ns: int
    data: bytearray


class Posts:
    def __init__(self, loaded: Loaded, people: Relations, programme: Showing) -> None:
        self._people = people
        self._programme = programme
        self._last_id = loaded.last_post
        self._uploads: dict[bytes, _Upload] = {}  # by session key, in the order of beginning
        self._uploads_bytes = 0

    def handle(self, asker: Asker, request: frames.Request, now: Moment) -> list[Effect]:
        """-> effects, with exactly one Answer or Ask.  Raises RefusedError, and then nothing has
        changed."""
        self._forget(now)
        match request:
            case frames.PublicPosts(before=before):
                reader = 0 if asker.account is None else asker.account.id
                query = PostsPage(reader, False, before, PAGE + 1)
                return [Ask(query, lambda rows: _page(request.id, rows))]
            case frames.Home(before=before):
                query = PostsPage(require_account(asker).id, True, before, PAGE + 1)
                return [Ask(query, lambda rows: _page(request.id, rows))]
            case frames.Post():
                return self._post(asker, require_account(asker), request, now)
            case frames.NotePart(first=first, data=data):
                require_account(asker)
                self._take_part(asker.key, first, data, now)
                return [Answer(frames.Ok(re=request.id))]
            case frames.DeletePost(post=post):
                return [Ask(GetPost(post), lambda rows: self._delete(asker, request.id, rows))]
            case frames.GetNote(post=post, part=part):
                return [Ask(GetPost(post), lambda rows: self._note(asker, request.id, part, rows))]
        raise RefusedError(ErrorCode.UNKNOWN_TYPE)

    # -- posting -----------------------------------------------------------------------------------

    def _post(
        self, asker: Asker, author: AccountRecord, request: frames.Post, now: Moment
    ) -> list[Effect]:
        text = request.text
        if text:
            text = clean_text(text, frames.MAX_POST_CHARS, lines=True)
        space = self._shown_space(author, request.space)
        note, note_ms = self._checked_note(asker.key) if request.note else (b"", 0)
        if not text and not space and not note:
            raise RefusedError(ErrorCode.BAD_TEXT, "a post needs a text, a space or a voice note")
        self._last_id += 1
        record = PostRecord(
            id=self._last_id,
            author=author.id,
            at_s=now.utc_s,
            text=text,
            space=space,
            note_ms=note_ms,
        )
        if note:
            self._drop_upload(asker.key)
        parts = [note[at : at + MAX_CHUNK_BYTES] for at in range(0, len(note), MAX_CHUNK_BYTES)]
        return [
            Answer(frames.Posted(re=request.id, post=record.id)),
            Save((
                Put(record),
                *(
                    Put(NotePartRecord(post=record.id, part=number, data=part))
                    for number, part in enumerate(parts)
                ),
            )),
        ]  # fmt: skip

    def _shown_space(self, author: AccountRecord, space: str | UnsetType) -> str:
        if space is UNSET:
            return ""
        record = self._programme.announced(space)
        if not self._programme.may_show(author.id, record):
            raise RefusedError(
                ErrorCode.NOT_ALLOWED, "only its hosts may post a space that is not public"
            )
        return record.id

    # -- voice notes -------------------------------------------------------------------------------

    def _take_part(self, key: bytes, first: bool, data: bytes, now: Moment) -> None:
        begun = self._uploads.get(key)
        if not data or (begun is None and not first):
            raise RefusedError(ErrorCode.BAD_NOTE)
        held = 0 if begun is None else len(begun.data)
        whole = len(data) if first else held + len(data)
        if whole > MAX_NOTE_BYTES:
            raise RefusedError(ErrorCode.BAD_NOTE)
        if self._uploads_bytes - held + whole > MAX_UPLOADS_BYTES:
            raise RefusedError(ErrorCode.TOO_MANY, "the server is full of voice notes; try later")
        self._uploads_bytes += whole - held
        if first or begun is None:
            self._uploads.pop(key, None)  # so that the new one comes last
            self._uploads[key] = _Upload(now.ns, bytearray(data))
        else:
            begun.data += data

    def _checked_note(self, key: bytes) -> tuple[bytes, int]:
        """-> (the note that has come whole, how long it is in ms)."""
        upload = self._uploads.get(key)
        if upload is None:
            raise RefusedError(ErrorCode.BAD_NOTE)
        note = bytes(upload.data)
        try:
            return note, duration_ms(note)
        except NoteError as error:
            raise RefusedError(ErrorCode.BAD_NOTE, f"this is no voice note: {error}") from error

    def _drop_upload(self, key: bytes) -> None:
        self._uploads_bytes -= len(self._uploads.pop(key).data)

    def _forget(self, now: Moment) -> None:
        while self._uploads:
            key, upload = next(iter(self._uploads.items()))
            if now.ns - upload.begun_ns < UPLOAD_NS:
                break
            self._drop_upload(key)

    def _note(self, asker: Asker, request_id: int, part: int, rows: Rows) -> list[Effect]:
        post = cast(PostRecord | None, rows)
        account = asker.account
        if (
            post is None
            or self._people.banned(post.author)
            or (account is not None and post.author in self._people.blocks(account.id))
        ):
            raise RefusedError(ErrorCode.NO_SUCH_POST)

        def found(rows: Rows) -> frames.Note:
            if rows is None:
                raise RefusedError(ErrorCode.NO_SUCH_POST, "this post has no such voice note")
            data, more = cast(tuple[bytes, bool], rows)
            return frames.Note(re=request_id, data=data, more=more)

        return [Ask(GetNotePart(post.id, part), found)]

    # -- taking back -------------------------------------------------------------------------------

    def _delete(self, asker: Asker, request_id: int, rows: Rows) -> list[Effect]:
        post = cast(PostRecord | None, rows)
        if post is None:
            raise RefusedError(ErrorCode.NO_SUCH_POST)
        if asker.who != post.author:
            author = ServerRole(self._people.account(post.author).role)
            if not server_allowed(ServerAction.DELETE_POST, server_role(asker), author, same=False):
                raise RefusedError(ErrorCode.NOT_ALLOWED)
        return [
            Answer(frames.Ok(re=request_id)),
            Save((Drop(PostRecord, {"id": post.id}), Drop(NotePartRecord, {"post": post.id}))),
        ]


def _page(request_id: int, rows: Rows) -> frames.Posts:
    posts = cast(list[PostInfo], rows)
    page = posts[:PAGE]
    more = len(posts) > len(page)
    return frames.Posts(re=request_id, posts=page, next=page[-1].id if more else 0)
