"""Posts and voice notes: what may be posted, who sees it, who takes it back."""

from typing import Any

import pytest

from protocol import frames
from protocol.frames import (
    MAX_CHUNK_BYTES,
    MAX_POST_CHARS,
    ErrorCode,
    PostInfo,
    Settings,
    Visibility,
)
from protocol.notes import MAX_NOTE_BYTES, pack
from spaces_server.policy import posts as module
from spaces_server.policy.effects import Asker
from spaces_server.policy.posts import PAGE
from spaces_server.records import GetNotePart
from tests.unit.policies import ID, Policies, server

__all__ = ["server"]  # the fixture

GUEST = Asker(b"g" * 32, None)
OPERATOR = Asker(b"o" * 32, None, operator=True)
MS_20 = bytes([31 << 3])  # the head of an Opus packet of 20 ms
NOTE = pack([MS_20 + bytes([n % 256]) * 99 for n in range(500)])  # 10 s, several parts


def post(server: Policies, asker: Asker, text: str = "", **fields: Any) -> int:
    reply = server.asks(asker, frames.Post(id=ID, text=text, **fields))
    assert isinstance(reply, frames.Posted)
    return reply.post


def upload(server: Policies, asker: Asker, note: bytes) -> None:
    for at in range(0, len(note), MAX_CHUNK_BYTES):
        part = note[at : at + MAX_CHUNK_BYTES]
        server.asks(asker, frames.NotePart(id=ID, first=at == 0, data=part))


def download(server: Policies, asker: Asker, number: int) -> bytes:
    note = b""
    for part in range(100):
        reply = server.asks(asker, frames.GetNote(id=ID, post=number, part=part))
        assert isinstance(reply, frames.Note)
        note += reply.data
        if not reply.more:
            break
    return note


def home(server: Policies, asker: Asker) -> list[PostInfo]:
    return list(server.asks(asker, frames.Home(id=ID)).posts)


def public(server: Policies, asker: Asker) -> list[PostInfo]:
    return list(server.asks(asker, frames.PublicPosts(id=ID)).posts)


def schedule(server: Policies, host: Asker, visibility: Visibility = Visibility.PUBLIC) -> str:
    request = frames.Schedule(
        id=ID, title="x", starts=server.now.utc_s, settings=Settings(visibility=visibility)
    )
    return str(server.asks(host, request).space.id)


# -- posts -----------------------------------------------------------------------------------------


def test_a_post_is_in_the_public_feed_and_in_that_of_followers(server: Policies) -> None:
    ada, bob, cem = server.people_of("ada", "bob", "cem")
    server.asks(bob, frames.Follow(id=ID, person="ada"))
    number = post(server, ada, " hello\nall ")
    info = PostInfo(id=number, author="ada", name="Ada", at=server.now.utc_s, text="hello\nall")
    for _ in range(2):
        assert public(server, GUEST) == public(server, cem) == [info]
        assert home(server, ada) == home(server, bob) == [info]
        assert home(server, cem) == []
        server.restart()
    assert post(server, cem, "and I") == number + 1
    assert [p.author for p in public(server, ada)] == ["cem", "ada"]


@pytest.mark.parametrize("blocker", ["ada", "bob"])
def test_nobody_sees_posts_through_a_block(server: Policies, blocker: str) -> None:
    ada, bob = server.people_of("ada", "bob")
    upload(server, ada, NOTE)
    number = post(server, ada, "x", note=True)
    asker, other = (ada, "bob") if blocker == "ada" else (bob, "ada")
    server.asks(asker, frames.Block(id=ID, person=other))
    assert public(server, bob) == home(server, bob) == []
    server.refused(bob, frames.GetNote(id=ID, post=number), ErrorCode.NO_SUCH_POST)
    assert len(public(server, GUEST)) == 1
    assert download(server, GUEST, number) == NOTE


def test_posts_of_banned_people_are_gone(server: Policies) -> None:
    owner, ada = server.owner(), server.person("ada")
    upload(server, ada, NOTE)
    number = post(server, ada, "x", note=True)
    server.asks(owner, frames.Ban(id=ID, person="ada"))
    assert public(server, owner) == []
    server.refused(owner, frames.GetNote(id=ID, post=number), ErrorCode.NO_SUCH_POST)


def test_long_feeds_come_in_pages_that_fit_into_a_frame(server: Policies) -> None:
    ada = server.person("ada")
    numbers = [post(server, ada, "\U0001f600" * MAX_POST_CHARS) for _ in range(2 * PAGE)]
    for request in (frames.Home, frames.PublicPosts):
        found: list[int] = []
        before = 0
        for _ in range(2):
            page = server.asks(ada, request(id=ID, before=before))
            assert len(page.posts) == PAGE
            found += [p.id for p in page.posts]
            before = page.next
        assert before == 0
        assert found == numbers[::-1]


@pytest.mark.parametrize("text", ["", " ", "a\x1b]0;x\x07", "\u202ex", "x" * (MAX_POST_CHARS + 1)])
def test_what_is_no_post_is_refused(server: Policies, text: str) -> None:
    ada = server.person("ada")
    server.refused(ada, frames.Post(id=ID, text=text), ErrorCode.BAD_TEXT)


def test_guests_read_and_do_no_more(server: Policies) -> None:
    for request in (
        frames.Post(id=ID, text="x"),
        frames.NotePart(id=ID, first=True, data=b"x"),
        frames.Home(id=ID),
    ):
        server.refused(GUEST, request, ErrorCode.NO_ACCOUNT)
    assert public(server, GUEST) == []


# -- posts of spaces -------------------------------------------------------------------------------


def test_a_post_may_show_a_public_space_of_anybody(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    space = schedule(server, ada)
    post(server, bob, space=space)
    [shown] = public(server, GUEST)
    assert (shown.space, shown.text) == (space, "")


@pytest.mark.parametrize("visibility", [Visibility.LINK, Visibility.FOLLOWERS])
def test_other_spaces_are_shown_by_their_host_only(
    server: Policies, visibility: Visibility
) -> None:
    ada, bob = server.people_of("ada", "bob")
    space = schedule(server, ada, visibility)
    server.refused(bob, frames.Post(id=ID, text="x", space=space), ErrorCode.NOT_ALLOWED)
    post(server, ada, "x", space=space)
    assert public(server, bob)[0].space == space


def test_a_post_shows_no_space_that_is_over_or_never_was(server: Policies) -> None:
    ada = server.person("ada")
    space = schedule(server, ada)
    server.carry_out(server.programme.ended(space, server.now))
    server.refused(ada, frames.Post(id=ID, space=space), ErrorCode.SPACE_ENDED)
    server.refused(ada, frames.Post(id=ID, space="nowhere"), ErrorCode.NO_SUCH_SPACE)


# -- voice notes -----------------------------------------------------------------------------------


def test_a_voice_note_goes_with_the_next_post_and_with_no_other(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    upload(server, ada, NOTE)
    post(server, ada, "without")
    number = post(server, ada, note=True)
    server.refused(ada, frames.Post(id=ID, note=True), ErrorCode.BAD_NOTE)
    server.restart()
    with_note, without = public(server, bob)
    assert (with_note.id, with_note.note_ms, without.note_ms) == (number, 10_000, 0)
    assert len(NOTE) > 3 * MAX_CHUNK_BYTES
    assert download(server, GUEST, number) == NOTE
    for post_, part in [(without.id, 0), (number, 4), (number, 2**32 - 1), (99, 0)]:
        request = frames.GetNote(id=ID, post=post_, part=part)
        server.refused(bob, request, ErrorCode.NO_SUCH_POST)


def test_parts_of_any_size_make_one_note(server: Policies) -> None:
    ada = server.person("ada")
    for at in range(0, len(NOTE), 777):
        part = NOTE[at : at + 777]
        server.asks(ada, frames.NotePart(id=ID, first=at == 0, data=part))
    assert download(server, ada, post(server, ada, note=True)) == NOTE


def test_the_first_part_begins_a_new_note(server: Policies) -> None:
    ada = server.person("ada")
    upload(server, ada, NOTE)
    upload(server, ada, NOTE[:204])
    assert download(server, ada, post(server, ada, note=True)) == NOTE[:204]


def test_notes_of_two_devices_are_apart(server: Policies) -> None:
    ada = server.person("ada")
    phone = Asker(b"p" * 32, ada.account)
    upload(server, ada, NOTE)
    upload(server, phone, NOTE[:102])
    assert download(server, ada, post(server, ada, note=True)) == NOTE
    assert download(server, ada, post(server, phone, note=True)) == NOTE[:102]


@pytest.mark.parametrize(
    "note",
    [b"\0\1", NOTE[:-1], b"\0\0", pack([MS_20] * 7_000) + b"\0\1" + MS_20],
    ids=["no packet", "cut off", "empty packet", "too long"],
)
def test_what_is_no_voice_note_is_not_posted(server: Policies, note: bytes) -> None:
    ada = server.person("ada")
    upload(server, ada, note)
    server.refused(ada, frames.Post(id=ID, text="x", note=True), ErrorCode.BAD_NOTE)


def test_a_note_that_does_not_begin_or_grows_too_large_is_refused(server: Policies) -> None:
    ada = server.person("ada")
    part = bytes(MAX_CHUNK_BYTES)
    more = frames.NotePart(id=ID, first=False, data=part)
    server.refused(ada, more, ErrorCode.BAD_NOTE)
    server.refused(ada, frames.NotePart(id=ID, first=True, data=b""), ErrorCode.BAD_NOTE)
    upload(server, ada, bytes(MAX_NOTE_BYTES))
    server.refused(ada, more, ErrorCode.BAD_NOTE)
    upload(server, ada, NOTE)  # it can be begun again
    post(server, ada, note=True)


def test_a_note_whose_post_does_not_come_is_forgotten_after_ten_minutes(server: Policies) -> None:
    ada = server.person("ada")
    upload(server, ada, NOTE)
    server.later(599)
    upload(server, ada, NOTE[:102])  # a new one: its time begins now
    server.later(599)
    post(server, ada, note=True)
    upload(server, ada, NOTE)
    server.later(600)
    server.asks(ada, frames.PublicPosts(id=ID))
    server.refused(ada, frames.Post(id=ID, note=True), ErrorCode.BAD_NOTE)
    server.refused(ada, frames.NotePart(id=ID, first=False, data=b"x"), ErrorCode.BAD_NOTE)


def test_all_notes_that_wait_have_a_limit_together(
    server: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_UPLOADS_BYTES", 10_000)
    ada, bob = server.people_of("ada", "bob")
    upload(server, ada, bytes(6_000))
    upload(server, bob, bytes(4_000))
    more = frames.NotePart(id=ID, first=False, data=b"x")
    server.refused(bob, more, ErrorCode.TOO_MANY)
    upload(server, ada, NOTE[:102])  # one's own are replaced, not added
    upload(server, bob, bytes(9_898))
    server.refused(bob, more, ErrorCode.TOO_MANY)
    post(server, ada, note=True)
    upload(server, bob, bytes(10_000))
    server.later(600)
    upload(server, ada, bytes(10_000))


# -- taking back -----------------------------------------------------------------------------------


def test_a_post_that_is_taken_back_leaves_nothing(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    upload(server, ada, NOTE)
    number, kept = post(server, ada, "x", note=True), post(server, bob, "y")
    server.refused(bob, frames.DeletePost(id=ID, post=number), ErrorCode.NOT_ALLOWED)
    server.refused(GUEST, frames.DeletePost(id=ID, post=number), ErrorCode.NO_ACCOUNT)
    assert download(server, bob, number) == NOTE
    server.asks(ada, frames.DeletePost(id=ID, post=number))
    assert [p.id for p in public(server, ada)] == [kept]
    assert server.database.fetch(GetNotePart(number, 0)) is None
    for asker in (ada, bob):
        server.refused(asker, frames.DeletePost(id=ID, post=number), ErrorCode.NO_SUCH_POST)
        server.refused(asker, frames.GetNote(id=ID, post=number), ErrorCode.NO_SUCH_POST)


def test_moderators_take_back_posts_of_those_they_moderate(server: Policies) -> None:
    owner = server.owner()
    mod, second = (server.moderator(owner, handle) for handle in ("mod", "second"))
    ada = server.person("ada")

    def attempt(asker: Asker, author: Asker, allowed: bool) -> None:
        number = post(server, author, "x")
        request = frames.DeletePost(id=ID, post=number)
        if allowed:
            server.asks(asker, request)
        else:
            server.refused(asker, request, ErrorCode.NOT_ALLOWED)
        assert (number in [p.id for p in public(server, GUEST)]) != allowed

    attempt(mod, ada, True)
    attempt(mod, mod, True)
    attempt(mod, second, False)
    attempt(mod, owner, False)
    attempt(owner, second, True)
    attempt(owner, owner, True)
    attempt(OPERATOR, mod, True)
    attempt(OPERATOR, ada, True)


def test_a_request_of_others_is_not_answered_here(server: Policies) -> None:
    ada = server.person("ada")
    with server.refusing(ErrorCode.UNKNOWN_TYPE):
        server.posts.handle(ada, frames.WhoAmI(id=ID), server.now)
