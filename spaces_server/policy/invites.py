"""A space's invites: tokens for links, each with who made it, which role it grants, and to whom.

An invite grants its role to each person once.  After that it only lets them in again: whoever was
taken down or muted does not get back on stage, unmuted, by the same link, nor by another that they
had kept for it.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from protocol.frames import ErrorCode
from protocol.roles import Role
from spaces_server.policy.effects import Moment, RefusedError, Who
from spaces_server.policy.tokens import new_token
from spaces_server.records import Change, Drop, InviteRecord, Put

MAX_INVITES = 90  # with the longest handles, a list of them fits into one frame
MAX_USERS = 20_000
MAX_TIME_S = 0xFFFF_FFFF


def usable(invite: InviteRecord, now: Moment) -> bool:
    expired = 0 < invite.until_s <= now.utc_s
    used_up = 0 < invite.max_uses <= invite.uses
    return not expired and not used_up


class Invites:
    """Each change is given back as what is to be stored."""

    def __init__(
        self, space: str, entropy: Callable[[int], bytes], records: Sequence[InviteRecord]
    ) -> None:
        self._space = space
        self._entropy = entropy
        self._invites = {record.token: record for record in records}
        self._users: dict[tuple[str, Who], None] = {}  # in memory only, the oldest first

    def live(self, now: Moment) -> list[InviteRecord]:
        """Those that can still be used, the newest first."""
        return [i for i in reversed(self._invites.values()) if usable(i, now)]

    def get(self, token: str) -> InviteRecord:
        """Raises RefusedError."""
        invite = self._invites.get(token)
        if invite is None:
            raise RefusedError(ErrorCode.BAD_INVITE)
        return invite

    def check(self, token: str, who: Who, now: Moment) -> InviteRecord | None:
        """What the token grants; None if it lets them in again only.  Raises RefusedError if it
        is not for them, or no longer valid."""
        invite = self.get(token)
        if invite.person not in (0, who):
            raise RefusedError(ErrorCode.BAD_INVITE)
        if (token, who) in self._users:
            return None
        if 0 < invite.until_s <= now.utc_s:
            raise RefusedError(ErrorCode.INVITE_EXPIRED)
        if 0 < invite.max_uses <= invite.uses:
            raise RefusedError(ErrorCode.INVITE_USED_UP)
        return invite

    def use(self, invite: InviteRecord, who: Who) -> list[Change]:
        self._granted(invite.token, who)
        used = msgspec.structs.replace(invite, uses=invite.uses + 1)
        self._invites[invite.token] = used
        return [Put(used)]

    def spend(self, who: Who) -> None:
        """Somebody was taken down: of the invites that there are, none grants them anything."""
        for token in self._invites:
            self._granted(token, who)

    def _granted(self, token: str, who: Who) -> None:
        self._users.pop((token, who), None)
        self._users[token, who] = None
        if len(self._users) > MAX_USERS:
            del self._users[next(iter(self._users))]

    def make(
        self,
        issuer: int,
        role: Role,
        now: Moment,
        *,
        person: int = 0,
        lifetime_s: int = 0,
        max_uses: int = 0,
    ) -> tuple[InviteRecord, list[Change]]:
        """Those that cannot be used any more make room, and so does an earlier one for the same
        person.  Raises RefusedError if there are too many."""
        stale = [i for i in self._invites.values() if person and i.person == person]
        if len(self._invites) - len(stale) >= MAX_INVITES:
            stale += [i for i in self._invites.values() if not usable(i, now) and i not in stale]
        if len(self._invites) - len(stale) >= MAX_INVITES:
            raise RefusedError(
                ErrorCode.TOO_MANY, f"the space has {MAX_INVITES} invites; revoke one first"
            )
        invite = InviteRecord(
            token=new_token(self._entropy),
            space=self._space,
            issuer=issuer,
            role=role.value,
            person=person,
            until_s=min(now.utc_s + lifetime_s, MAX_TIME_S) if lifetime_s else 0,
            uses=0,
            max_uses=max_uses,
        )
        changes = [change for old in stale for change in self.revoke(old.token)]
        self._invites[invite.token] = invite
        return invite, [*changes, Put(invite)]

    def revoke_of(self, issuers: AbstractSet[int]) -> list[Change]:
        """All that these have made."""
        theirs = [i.token for i in self._invites.values() if i.issuer in issuers]
        return [change for token in theirs for change in self.revoke(token)]

    def revoke(self, token: str) -> list[Change]:
        del self._invites[token]
        return [Drop(InviteRecord, {"token": token})]
