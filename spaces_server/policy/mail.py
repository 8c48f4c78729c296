"""Direct messages, and the invitations that travel as such.

The messages themselves are in the store only; here is who may write to whom.
"""

from collections.abc import Callable
from typing import Protocol, cast

from protocol import frames
from protocol.frames import ErrorCode, MessageInfo
from spaces_server.policy.asking import clean_text, require_account
from spaces_server.policy.effects import (
    Answer,
    Ask,
    Asker,
    Effect,
    Invited,
    Keep,
    Moment,
    RefusedError,
    Save,
    TellAccount,
)
from spaces_server.records import AccountRecord, Loaded, MessageRecord, MessagesPage, Put, Rows

PAGE = frames.MAX_TEXTS_PAGE


class Relations(Protocol):
    """What mail must know of people."""

    def account(self, account: int, /) -> AccountRecord: ...
    def find(self, handle: str, /) -> AccountRecord: ...
    def has_blocked(self, blocker: int, blocked: int, /) -> bool: ...


class Mail:
    """present: whether somebody of an account is connected."""

    def __init__(self, loaded: Loaded, people: Relations, present: Callable[[int], bool]) -> None:
        self._people = people
        self._present = present
        self._last_id = loaded.last_message

    def handle(self, asker: Asker, request: frames.Request, now: Moment) -> list[Effect]:
        """-> effects, with exactly one Answer or Ask.  Raises RefusedError, and then nothing has
        changed."""
        account = require_account(asker)
        match request:
            case frames.SendMessage(person=handle, text=text):
                recipient = self._people.find(handle)
                if recipient.id == account.id:
                    raise RefusedError(ErrorCode.ONESELF)
                if self._people.has_blocked(account.id, recipient.id):
                    raise RefusedError(ErrorCode.BLOCKED, "you have blocked this person")
                text = clean_text(text, frames.MAX_MESSAGE_CHARS, lines=True)
                told = self._send(account, recipient, text, "", "", now)
                return [Answer(frames.Sent(re=request.id, message=self._last_id)), *told]
            case frames.ListMessages(person=handle, before=before):
                other = self._people.find(handle).id if handle else 0
                query = MessagesPage(account.id, other, before, PAGE + 1)
                return [Ask(query, lambda rows: _page(request.id, rows))]
        raise RefusedError(ErrorCode.UNKNOWN_TYPE)

    def invitation(self, invited: Invited, issuer: AccountRecord, now: Moment) -> list[Effect]:
        """The message that brings an invitation; its text is clean, and may be empty."""
        if self._people.has_blocked(issuer.id, invited.account):
            return []
        recipient = self._people.account(invited.account)
        invite = invited.invite
        return self._send(issuer, recipient, invited.text, invite.space, invite.token, now)

    def _send(
        self,
        sender: AccountRecord,
        recipient: AccountRecord,
        text: str,
        space: str,
        invite: str,
        now: Moment,
    ) -> list[Effect]:
        # A number is used up either way: whom the recipient has blocked must not notice.
        self._last_id += 1
        if self._people.has_blocked(recipient.id, sender.id):
            return []
        record = MessageRecord(
            id=self._last_id,
            sender=sender.id,
            recipient=recipient.id,
            at_s=now.utc_s,
            text=text,
            space=space,
            invite=invite,
        )
        message = MessageInfo(
            id=record.id,
            sender=sender.handle,
            recipient=recipient.handle,
            at=record.at_s,
            text=text,
            space=space,
            invite=invite,
        )
        effects: list[Effect] = [
            Save((Put(record),)),
            TellAccount(recipient.id, frames.MessageNotice(message=message)),
        ]
        if not self._present(recipient.id):
            effects.append(Keep(recipient.id, lambda notice: frames.Unread(notice=notice)))
        return effects


def _page(request_id: int, rows: Rows) -> frames.Messages:
    messages = cast(list[MessageInfo], rows)
    page = messages[:PAGE]
    more = len(messages) > len(page)
    return frames.Messages(re=request_id, messages=page, next=page[-1].id if more else 0)
