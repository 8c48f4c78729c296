"""Direct messages: who gets them, who is told, and who notices nothing."""

import pytest

from protocol import frames
from protocol.frames import MAX_MESSAGE_CHARS, ErrorCode, MessageInfo
from protocol.roles import Role
from spaces_server.policy.effects import Asker, Invited
from spaces_server.policy.mail import PAGE
from spaces_server.records import InviteRecord
from tests.unit.policies import ID, Policies, server

__all__ = ["server"]  # the fixture


def send(server: Policies, asker: Asker, person: str, text: str = "hello") -> int:
    reply = server.asks(asker, frames.SendMessage(id=ID, person=person, text=text))
    assert isinstance(reply, frames.Sent)
    return reply.message


def inbox(server: Policies, asker: Asker, person: str = "") -> list[MessageInfo]:
    reply = server.asks(asker, frames.ListMessages(id=ID, person=person))
    assert isinstance(reply, frames.Messages)
    return reply.messages


def account(asker: Asker) -> int:
    assert asker.account is not None
    return asker.account.id


def test_a_message_reaches_the_one_it_is_for_and_both_find_it(server: Policies) -> None:
    ada, bob, cem = server.people_of("ada", "bob", "cem")
    server.present.add(account(bob))
    number = send(server, ada, "bob", " two\nlines ")
    message = MessageInfo(
        id=number, sender="ada", recipient="bob", at=server.now.utc_s, text="two\nlines"
    )
    assert server.take_told() == [(account(bob), frames.MessageNotice(message=message))]
    for _ in range(2):
        assert inbox(server, ada) == inbox(server, bob) == [message]
        assert inbox(server, cem) == []
        server.restart()


def test_numbers_go_on_after_a_restart(server: Policies) -> None:
    ada, _ = server.people_of("ada", "bob")
    first = send(server, ada, "bob")
    server.restart()
    assert send(server, ada, "bob") == first + 1


def test_whoever_is_away_hears_of_it_later(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    send(server, ada, "bob")
    kinds = {type(frame) for told, frame in server.take_told() if told == account(bob)}
    assert kinds == {frames.MessageNotice, frames.Unread}
    server.present.add(account(bob))
    send(server, ada, "bob")
    assert [type(frame) for _, frame in server.take_told()] == [frames.MessageNotice]


def test_messages_with_one_person_are_apart_from_others(server: Policies) -> None:
    ada, bob, cem = server.people_of("ada", "bob", "cem")
    send(server, ada, "bob", "1")
    send(server, cem, "ada", "2")
    send(server, bob, "ada", "3")
    assert [m.text for m in inbox(server, ada)] == ["3", "2", "1"]
    assert [m.text for m in inbox(server, ada, "bob")] == ["3", "1"]
    assert [m.text for m in inbox(server, cem, "bob")] == []
    request = frames.ListMessages(id=ID, person="nobody")
    server.refused(ada, request, ErrorCode.NO_SUCH_PERSON)


def test_long_lists_come_in_pages_that_fit_into_a_frame(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    longest = "\U0001f600" * MAX_MESSAGE_CHARS
    numbers = [send(server, ada, "bob", longest) for _ in range(2 * PAGE)]
    found: list[int] = []
    before = 0
    for _ in range(2):
        page = server.asks(bob, frames.ListMessages(id=ID, before=before))
        assert len(page.messages) == PAGE
        found += [message.id for message in page.messages]
        before = page.next
    assert before == 0
    assert found == numbers[::-1]


def test_nobody_notices_that_they_are_blocked(server: Policies) -> None:
    ada, bob, cem = server.people_of("ada", "bob", "cem")
    server.asks(bob, frames.Block(id=ID, person="ada"))
    first = send(server, ada, "bob")
    assert server.take_told() == []
    assert send(server, ada, "cem") == first + 1  # as if it had been sent
    server.asks(bob, frames.Unblock(id=ID, person="ada"))
    assert inbox(server, bob) == []
    assert len(inbox(server, cem)) == 1


def test_one_does_not_write_to_somebody_one_blocked(server: Policies) -> None:
    ada, _ = server.people_of("ada", "bob")
    server.asks(ada, frames.Block(id=ID, person="bob"))
    request = frames.SendMessage(id=ID, person="bob", text="x")
    server.refused(ada, request, ErrorCode.BLOCKED)


def test_messages_from_before_a_block_are_not_shown(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    send(server, ada, "bob")
    server.asks(bob, frames.Block(id=ID, person="ada"))
    assert inbox(server, ada) == inbox(server, bob) == []


@pytest.mark.parametrize(
    ("person", "text", "code"),
    [
        ("ada", "x", ErrorCode.ONESELF),
        ("nobody", "x", ErrorCode.NO_SUCH_PERSON),
        ("bob", "", ErrorCode.BAD_TEXT),
        ("bob", " \n ", ErrorCode.BAD_TEXT),
        ("bob", "a\x1b[31m", ErrorCode.BAD_TEXT),
        ("bob", "a\x00b", ErrorCode.BAD_TEXT),
        ("bob", "\u202etxet", ErrorCode.BAD_TEXT),
        ("bob", "x" * (MAX_MESSAGE_CHARS + 1), ErrorCode.BAD_TEXT),
    ],
)
def test_what_cannot_be_sent_is_refused(
    server: Policies, person: str, text: str, code: ErrorCode
) -> None:
    ada, _ = server.people_of("ada", "bob")
    server.refused(ada, frames.SendMessage(id=ID, person=person, text=text), code)
    assert server.take_told() == []


@pytest.mark.parametrize(
    "request_", [frames.SendMessage(id=ID, person="ada", text="x"), frames.ListMessages(id=ID)]
)
def test_guests_have_no_mail(server: Policies, request_: frames.Request) -> None:
    server.person("ada")
    server.refused(Asker(b"g" * 32, None), request_, ErrorCode.NO_ACCOUNT)


# -- invitations -----------------------------------------------------------------------------------


def invite(server: Policies, issuer: Asker, person: Asker, text: str = "") -> None:
    record = InviteRecord(
        token="t0ken",
        space="space",
        issuer=account(issuer),
        role=Role.SPEAKER,
        person=account(person),
        until_s=0,
        uses=0,
        max_uses=1,
    )
    assert issuer.account is not None
    effects = server.mail.invitation(
        Invited(account(person), record, text), issuer.account, server.now
    )
    assert server.carry_out(effects) == []


def test_an_invitation_is_a_message_with_the_way_in(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    invite(server, ada, bob)
    server.restart()
    invite(server, ada, bob, "come!")
    second, first = inbox(server, bob)
    assert (first.space, first.invite, first.text) == ("space", "t0ken", "")
    assert (second.space, second.invite, second.text) == ("space", "t0ken", "come!")
    assert second.id == first.id + 1
    notices = [frame for _, frame in server.take_told() if isinstance(frame, frames.MessageNotice)]
    assert [notice.message for notice in notices] == [first, second]


@pytest.mark.parametrize("blocker", ["ada", "bob"])
def test_no_invitation_goes_through_a_block(server: Policies, blocker: str) -> None:
    ada, bob = server.people_of("ada", "bob")
    asker, other = (ada, "bob") if blocker == "ada" else (bob, "ada")
    server.asks(asker, frames.Block(id=ID, person=other))
    invite(server, ada, bob)
    assert server.take_told() == []
    server.asks(asker, frames.Unblock(id=ID, person=other))
    assert inbox(server, bob) == []


def test_a_request_of_others_is_not_answered_here(server: Policies) -> None:
    ada = server.person("ada")
    with server.refusing(ErrorCode.UNKNOWN_TYPE):
        server.mail.handle(ada, frames.WhoAmI(id=ID), server.now)
