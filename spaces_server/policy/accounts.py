"""Who there is: accounts and their devices, who follows and blocks whom, who has access, who is
banned, and the notices that wait for them.

What is saved is what changes the memory: every change goes through `_save`, which alters both, and
a server that starts reads its records in the same way.  So the store cannot say anything else than
the memory does.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from protocol import frames
from protocol.frames import ERROR_TEXTS, Access, ErrorCode, KeptNotice
from protocol.roles import ServerAction, ServerRole, server_allowed
from protocol.text import TextError
from protocol.text import handle as as_handle
from spaces_server.policy.effects import (
    Asker,
    RefusedError,
    Save,
)
from spaces_server.records import (
    KEYS,
    AccountRecord,
    BanRecord,
    BlockRecord,
    Change,
    DeviceRecord,
    Drop,
    FollowRecord,
    Loaded,
    NoticeRecord,
    Put,
    Record,
    SettingRecord,
    WaitingRecord,
)

MAX_NOTICES = 100  # an account
OPERATOR = 0  # stands for the server's own key where an account's id is asked for


@dataclass(slots=True)
class _Relation:
    """Who stands in a relation to whom, seen from both ends."""

    _to: dict[int, set[int]] = field(default_factory=dict)
    _from: dict[int, set[int]] = field(default_factory=dict)

    def add(self, one: int, other: int) -> None:
        self._to.setdefault(one, set()).add(other)
        self._from.setdefault(other, set()).add(one)

    def remove(self, one: int, other: int) -> None:
        self._to[one].remove(other)
        self._from[other].remove(one)

    def has(self, one: int, other: int) -> bool:
        return other in self._to.get(one, ())

    def of(self, one: int) -> AbstractSet[int]:
        return self._to.get(one, frozenset())

    def to(self, other: int) -> AbstractSet[int]:
        return self._from.get(other, frozenset())


class Accounts:
    """guests: whether people without an account may listen.  access: of a server on which nobody
    has set it yet."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        guests: bool = True,
        access: Access = Access.OPEN,
    ) -> None:
        self._guests = guests
        self._access = access
        self._owner_code = ""  # SHA-256 in hexadecimal; empty: there is none
        self._accounts: dict[int, AccountRecord] = {}
        self._ids: list[int] = []  # ascending
        self._by_handle: dict[str, int] = {}
        self._skeletons: set[str] = set()
        self._staff: set[int] = set()  # the owner and the moderators
        self._gave_access = _Relation()
        self._devices: dict[bytes, DeviceRecord] = {}
        self._devices_of: dict[int, dict[int, DeviceRecord]] = {}
        self._last_device: dict[int, int] = {}  # the highest number that the account gave one
        self._follows = _Relation()
        self._blocks = _Relation()
        self._bans: dict[int, BanRecord] = {}
        self._waiting: dict[int, WaitingRecord] = {}
        self._notices: dict[int, dict[int, KeptNotice]] = {}
        self._last_notice = loaded.last_notice
        for record in loaded.records:
            self._remember(record)

    # -- memory and its image ------------------------------------------------------------------

    def _save(self, *records: Record, without: Iterable[Record] = ()) -> Save:
        """Takes the records `without` out of the memory, puts the others in, and says so."""
        changes: list[Change] = []
        for record in without:
            self._forget(record)
            kind = type(record)
            changes.append(Drop(kind, {name: getattr(record, name) for name in KEYS[kind]}))
        for record in records:
            self._remember(record)
            changes.append(Put(record))
        return Save(tuple(changes))

    def _remember(self, record: Record) -> None:
        match record:
            case AccountRecord():
                self._remember_account(record)
            case DeviceRecord(key=key, account=account, number=number):
                self._devices[key] = record
                self._devices_of.setdefault(account, {})[number] = record
                self._last_device[account] = max(self._last_device.get(account, 0), number)
            case FollowRecord(follower=follower, followed=followed):
                self._follows.add(follower, followed)
            case BlockRecord(blocker=blocker, blocked=blocked):
                self._blocks.add(blocker, blocked)
            case BanRecord(account=account):
                self._bans[account] = record
            case WaitingRecord(account=account):
                self._waiting[account] = record
            case SettingRecord(name="access", value=value):
                self._access = Access(value)
            case SettingRecord(name="owner_code", value=value):
                self._owner_code = value
            case NoticeRecord(id=number, account=account, frame=frame):
                notice = frames.decode(frame)
                assert isinstance(notice, KeptNotice)
                self._notices.setdefault(account, {})[number] = notice
                self._last_notice = max(self._last_notice, number)

    def _remember_account(self, record: AccountRecord) -> None:
        before = self._accounts.get(record.id)
        if before is None:
            self._ids.insert(bisect_right(self._ids, record.id), record.id)
            self._by_handle[record.handle.casefold()] = record.id
            self._skeletons.add(record.skeleton)
        elif before.invited_by:
            self._gave_access.remove(before.invited_by, record.id)
        if record.invited_by:
            self._gave_access.add(record.invited_by, record.id)
        self._accounts[record.id] = record
        if record.role == ServerRole.PERSON:
            self._staff.discard(record.id)
        else:
            self._staff.add(record.id)

    def _forget(self, record: Record) -> None:
        match record:
            case DeviceRecord(key=key, account=account, number=number):
                del self._devices[key]
                del self._devices_of[account][number]
            case FollowRecord(follower=follower, followed=followed):
                self._follows.remove(follower, followed)
            case BlockRecord(blocker=blocker, blocked=blocked):
                self._blocks.remove(blocker, blocked)
            case BanRecord(account=account):
                del self._bans[account]
            case WaitingRecord(account=account):
                del self._waiting[account]
            case SettingRecord(name="owner_code"):
                self._owner_code = ""
            case NoticeRecord(id=number, account=account):
                del self._notices[account][number]

    # -- what others ask -----------------------------------------------------------------------

    def asker(self, key: bytes, host: bytes = b"", operator: bool = False) -> Asker:
        device = self._devices.get(key)
        account = None if device is None else self._accounts[device.account]
        return Asker(key, account, host, operator)

    def account(self, account: int) -> AccountRecord:
        """Raises RefusedError if there is none."""
        record = self._accounts.get(account)
        if record is None:
            raise RefusedError(ErrorCode.NO_SUCH_PERSON)
        return record

    def find(self, handle: str) -> AccountRecord:
        """By the handle itself, in any case; never by one that only looks like it.  Raises
        RefusedError if nobody has it."""
        try:
            return self.account(self._by_handle.get(as_handle(handle).casefold(), 0))
        except TextError as error:
            raise RefusedError(ErrorCode.NO_SUCH_PERSON) from error

    def devices_of(self, account: int) -> list[DeviceRecord]:
        return list(self._devices_of.get(account, {}).values())

    def moderators(self) -> list[AccountRecord]:
        """With the owner."""
        return [self._accounts[account] for account in sorted(self._staff)]

    def blocks(self, account: int) -> frozenset[int]:
        """Those who are blocked by the account, or have blocked it."""
        return frozenset(self._blocks.of(account) | self._blocks.to(account))

    def has_blocked(self, blocker: int, blocked: int) -> bool:
        return self._blocks.has(blocker, blocked)

    def follows(self, follower: int, followed: int) -> bool:
        return self._follows.has(follower, followed)

    def following(self, account: int) -> AbstractSet[int]:
        """Whom the account follows."""
        return self._follows.of(account)

    def followers(self, account: int) -> AbstractSet[int]:
        """Who follows the account."""
        return self._follows.to(account)

    def banned(self, account: int) -> bool:
        return account in self._bans

    def require(self, asker: Asker) -> None:
        """Raises RefusedError for whoever may not use spaces, messages and posts."""
        account = self._require_account(asker)
        if self._access is Access.LIMITED and not account.access:
            raise RefusedError(ErrorCode.NO_ACCESS)

    def require_listener(self, asker: Asker) -> None:
        """Raises RefusedError for whoever may not even listen: guests may where the server takes
        them and is not limited."""
        if asker.account is not None:
            self.require(asker)
        elif not self._guests or self._access is Access.LIMITED:
            raise RefusedError(ErrorCode.NO_GUESTS)

    def _require_account(self, asker: Asker) -> AccountRecord:
        """The asker's account as it is now."""
        if asker.account is None:
            raise RefusedError(ErrorCode.NO_ACCOUNT)
        account = self._accounts[asker.account.id]
        ban = self._bans.get(account.id)
        if ban is not None:
            raise RefusedError(ErrorCode.BANNED, banned_text(ban.reason))
        return account

    def _permit(self, action: ServerAction, asker: Asker, whom: AccountRecord | None) -> int:
        """-> the asker's id, OPERATOR for the server's own key.  Raises RefusedError if the asker
        may not do this to `whom`, or at all if that is None."""
        if asker.operator:
            moderator, role = OPERATOR, ServerRole.OWNER
        else:
            account = self._require_account(asker)
            moderator, role = account.id, ServerRole(account.role)
        same = whom is None or whom.id == moderator
        target = role if whom is None else ServerRole(whom.role)
        if not server_allowed(action, role, target, same=same):
            raise RefusedError(ErrorCode.NOT_ALLOWED)
        return moderator

    # -- kept notices --------------------------------------------------------------------------

    def keep(
        self, account: int, make: Callable[[int], KeptNotice]
    ) -> tuple[KeptNotice, tuple[Change, ...]]:
        """-> the notice, and what is to be saved for it.  An account keeps MAX_NOTICES, the oldest
        gives way; and one Unread, which is then given back instead of a new one."""
        kept = self._notices.get(account, {})
        notice = make(self._last_notice + 1)
        if isinstance(notice, frames.Unread):
            for before in kept.values():
                if isinstance(before, frames.Unread):
                    return before, ()
        gone = sorted(kept)[: max(0, len(kept) - MAX_NOTICES + 1)]
        oldest = [NoticeRecord(id=number, account=account, frame=b"") for number in gone]
        record = NoticeRecord(id=notice.notice, account=account, frame=frames.encode(notice))
        return notice, self._save(record, without=oldest).changes

    def kept(self, account: int) -> list[KeptNotice]:
        """The oldest first."""
        return [notice for _, notice in sorted(self._notices.get(account, {}).items())]


def banned_text(reason: str) -> str:
    text = ERROR_TEXTS[ErrorCode.BANNED]
    return f"{text}: {reason}" if reason else text
