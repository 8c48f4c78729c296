"""The people of a server: what each request about accounts, devices, following, blocking, access,
moderators and bans does.
"""

import base64
import hashlib
import hmac
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable
from collections.abc import Set as AbstractSet
from heapq import nsmallest

from msgspec.structs import replace

from protocol import frames
from protocol.frames import ERROR_TEXTS, MAX_NAME_CHARS, Access, ErrorCode, KeptNotice
from protocol.roles import ServerAction, ServerRole
from protocol.text import TextError, skeleton
from protocol.text import handle as as_handle
from spaces_server.policy.accounts import OPERATOR, Accounts, banned_text
from spaces_server.policy.asking import clean_text
from spaces_server.policy.effects import (
    Answer,
    Asker,
    BlocksChanged,
    DeviceRemoved,
    Effect,
    Expelled,
    GuestsOut,
    Keep,
    Moment,
    RefusedError,
    Registered,
    Renamed,
)
from spaces_server.records import (
    AccountRecord,
    BanRecord,
    BlockRecord,
    DeviceRecord,
    FollowRecord,
    Loaded,
    NoticeRecord,
    Record,
    SettingRecord,
    WaitingRecord,
)

MAX_ACCOUNTS = 1_000_000
MAX_DEVICES = 10  # these, and what follows, an account
MAX_FOLLOWS = 5_000
MAX_BLOCKS = 1_000
MAX_WAITING = 10_000
PEOPLE_PAGE = 80  # with the longest names, so many fit into one frame
ACCOUNTS_PAGE = 50
MAX_MODERATORS = 100
DEVICE_CODE_S = 600
CODE_BYTES = 10
FIRST_DEVICE = "first device"
GUESTS_OUT = "this server is limited from now on, and takes no guests"


class People(Accounts):
    """`Accounts`, and what is asked of them.  entropy: for codes."""

    def __init__(
        self,
        loaded: Loaded,
        entropy: Callable[[int], bytes],
        *,
        guests: bool = True,
        access: Access = Access.OPEN,
    ) -> None:
        super().__init__(loaded, guests=guests, access=access)
        self._entropy = entropy
        self._device_codes: dict[str, tuple[int, int]] = {}  # -> account, until (s); oldest first

    # -- requests ------------------------------------------------------------------------------

    def handle(self, asker: Asker, request: frames.Request, now: Moment) -> list[Effect]:
        """-> effects, with exactly one Answer.  Raises RefusedError, and then nothing changed.

        Everything here needs an account at most; access is needed for what `require` guards."""
        match request:
            case frames.WhoAmI():
                if asker.account is None:
                    raise RefusedError(ErrorCode.NO_ACCOUNT)
                return [self._account_reply(request, asker.account.id)]
            case frames.Register():
                return self._register(asker, request, now)
            case frames.AddDevice():
                return self._add_device(asker, request, now)
        if not asker.operator:
            self._require_account(asker)
        match request:
            case frames.Find(person=person):
                view = self._person(asker, self.find(person).id)
                return [Answer(frames.PersonReply(re=request.id, person=view))]
            case frames.Followers(person=person, after=after):
                of_whom = self._one_of(asker, person)
                return [self._people(asker, request, self.followers(of_whom), after)]
            case frames.Following(person=person, after=after):
                of_whom = self._one_of(asker, person)
                return [self._people(asker, request, self.following(of_whom), after)]
            case frames.WaitingList(after=after):
                return [self._waiting_list(asker, request, after)]
            case frames.ListAccounts():
                return [self._list_accounts(asker, request)]
        effects = self._govern(asker, request, now)
        if effects is None:
            account = self._require_account(asker)
            answer = self._of_oneself(account, asker, request, now)
            if answer is not None:
                return answer
            effects = self._relate(account, request, now)
        if effects is None:
            raise RefusedError(ErrorCode.UNKNOWN_TYPE)
        return [Answer(frames.Ok(re=request.id)), *effects]

    def _of_oneself(
        self, account: AccountRecord, asker: Asker, request: frames.Request, now: Moment
    ) -> list[Effect] | None:
        """What concerns one's own account and has an answer of its own."""
        match request:
            case frames.Rename(name=name):
                renamed = replace(account, name=clean_text(name, MAX_NAME_CHARS))
                effects: list[Effect] = []
                if renamed != account:
                    effects = [self._save(renamed), Renamed(account.id)]
                return [self._account_reply(request, account.id), *effects]
            case frames.MakeDeviceCode():
                return [self._make_device_code(account, request, now)]
            case frames.ListDevices():
                devices = [
                    frames.Device(
                        id=number,
                        label=device.label,
                        added=device.added_s,
                        this=device.key == asker.key,
                    )
                    for number, device in sorted(self._devices_of[account.id].items())
                ]
                return [Answer(frames.Devices(re=request.id, devices=devices))]
            case frames.Blocked(after=after):
                return [self._people(asker, request, self._blocks.of(account.id), after)]
            case frames.ClaimServer(code=code):
                return self._claim_server(account, request, code)
        return None

    def _relate(
        self, account: AccountRecord, request: frames.Request, now: Moment
    ) -> list[Effect] | None:
        """What is answered with `ok` and needs no more than an account."""
        match request:
            case frames.RemoveDevice(device=number):
                return self._remove_device(account, number)
            case frames.Follow(person=person):
                return self._follow(account, self.find(person), now)
            case frames.Unfollow(person=person):
                return self._unfollow(account.id, self.find(person).id)
            case frames.Block(person=person):
                return self._block(account, self.find(person))
            case frames.Unblock(person=person):
                whom = self.find(person)
                if not self.has_blocked(account.id, whom.id):
                    return []
                gone = BlockRecord(blocker=account.id, blocked=whom.id)
                return [self._save(without=[gone]), BlocksChanged(account.id, whom.id)]
            case frames.AskAccess(note=note):
                return self._ask_access(account, note, now)
            case frames.Seen(notice=number):
                if number not in self._notices.get(account.id, {}):
                    return []
                seen = NoticeRecord(id=number, account=account.id, frame=b"")
                return [self._save(without=[seen])]
        return None

    def _govern(self, asker: Asker, request: frames.Request, now: Moment) -> list[Effect] | None:
        """What needs a role on the server."""
        match request:
            case frames.SetAccess(access=access):
                self._permit(ServerAction.SET_ACCESS, asker, None)
                return self._set_access(access)
            case frames.Grant(person=person):
                whom = self.find(person)
                moderator = self._permit(ServerAction.GRANT, asker, whom)
                return [] if whom.access else self._give_access(whom, moderator)
            case frames.Revoke(person=person):
                whom = self.find(person)
                self._permit(ServerAction.REVOKE, asker, whom)
                return self._revoke(whom)
            case frames.AppointModerator(person=person):
                whom = self.find(person)
                self._permit(ServerAction.APPOINT_MODERATOR, asker, whom)
                return self._appoint(whom)
            case frames.DismissModerator(person=person):
                whom = self.find(person)
                self._permit(ServerAction.DISMISS_MODERATOR, asker, whom)
                return [self._save(replace(whom, role=ServerRole.PERSON.value))]
            case frames.Ban(person=person, reason=reason, with_invited=with_invited):
                whom = self.find(person)
                moderator = self._permit(ServerAction.BAN, asker, whom)
                return self.ban(moderator, whom.id, reason, with_invited, now)
            case frames.Unban(person=person):
                whom = self.find(person)
                self._permit(ServerAction.UNBAN, asker, whom)
                ban = self._bans.get(whom.id)
                return [] if ban is None else [self._save(without=[ban])]
        return None

    # -- accounts and devices ------------------------------------------------------------------

    def _register(self, asker: Asker, request: frames.Register, now: Moment) -> list[Effect]:
        self._require_no_account(asker)
        try:
            name = as_handle(request.handle)
        except TextError as error:
            raise RefusedError(ErrorCode.BAD_HANDLE, str(error)) from error
        looks = skeleton(name)
        # The handle itself counts even if its skeleton is another since the tables are newer.
        if looks in self._skeletons or name.casefold() in self._by_handle:
            raise RefusedError(ErrorCode.HANDLE_TAKEN)
        if len(self._accounts) >= MAX_ACCOUNTS:
            raise RefusedError(ErrorCode.TOO_MANY)
        account = AccountRecord(
            id=self._ids[-1] + 1 if self._ids else 1,
            handle=name,
            skeleton=looks,
            name=clean_text(request.name, MAX_NAME_CHARS),
            role=ServerRole.PERSON.value,
            access=self._access is Access.OPEN,
            invited_by=0,
            since_s=now.utc_s,
        )
        device = DeviceRecord(
            key=asker.key, account=account.id, number=1, label=FIRST_DEVICE, added_s=now.utc_s
        )
        saved = self._save(account, device)
        return [self._account_reply(request, account.id), saved, Registered(account.id)]

    @staticmethod
    def _require_no_account(asker: Asker) -> None:
        if asker.account is not None:
            raise RefusedError(ErrorCode.HAS_ACCOUNT)
        if asker.operator:
            raise RefusedError(ErrorCode.NOT_ALLOWED, "the server's own key has no account")

    def _make_device_code(
        self, account: AccountRecord, request: frames.Request, now: Moment
    ) -> Answer:
        """An account has one code at a time: a new one makes the old one worthless."""
        if len(self._devices_of[account.id]) >= MAX_DEVICES:
            raise RefusedError(ErrorCode.TOO_MANY)
        self._void_codes(now, {account.id})
        code, until_s = self._new_code(), now.utc_s + DEVICE_CODE_S
        self._device_codes[code] = (account.id, until_s)
        return Answer(frames.DeviceCode(re=request.id, code=code, until=until_s))

    def _new_code(self) -> str:
        """16 letters and digits, easily typed on another device, that cannot be guessed."""
        return base64.b32encode(self._entropy(CODE_BYTES)).decode().lower()

    def _void_codes(self, now: Moment, accounts: Container[int]) -> None:
        """Those of the accounts, and those whose time is over."""
        self._device_codes = {
            code: (whose, until_s)
            for code, (whose, until_s) in self._device_codes.items()
            if whose not in accounts and until_s > now.utc_s
        }

    def _add_device(self, asker: Asker, request: frames.AddDevice, now: Moment) -> list[Effect]:
        self._require_no_account(asker)
        account, until_s = self._device_codes.get(request.code, (0, 0))
        if until_s <= now.utc_s:
            raise RefusedError(ErrorCode.BAD_CODE)
        if len(self._devices_of[account]) >= MAX_DEVICES:
            raise RefusedError(ErrorCode.TOO_MANY)
        device = DeviceRecord(
            key=asker.key,
            account=account,
            number=self._last_device[account] + 1,
            label=clean_text(request.label, frames.MAX_LABEL_CHARS),
            added_s=now.utc_s,
        )
        del self._device_codes[request.code]
        saved = self._save(device)
        return [self._account_reply(request, account), saved, Registered(account)]

    def _remove_device(self, account: AccountRecord, number: int) -> list[Effect]:
        devices = self._devices_of[account.id]
        device = devices.get(number)
        if device is None:
            raise RefusedError(ErrorCode.NO_SUCH_DEVICE)
        if len(devices) == 1:
            raise RefusedError(ErrorCode.LAST_DEVICE)
        return [self._save(without=[device]), DeviceRemoved(device.key)]

    def owner_code(self, now: Moment) -> tuple[str, list[Effect]] | None:
        """A code for whoever is to own the server, which makes those before it worthless; None if
        somebody owns it.  Only its hash is kept."""
        if any(self._accounts[a].role == ServerRole.OWNER for a in self._staff):
            return None
        code = self._new_code()
        return code, [self._save(SettingRecord(name="owner_code", value=_hash(code)))]

    def _claim_server(
        self, account: AccountRecord, request: frames.Request, code: str
    ) -> list[Effect]:
        if not self._owner_code or not hmac.compare_digest(_hash(code), self._owner_code):
            raise RefusedError(ErrorCode.BAD_CODE)
        used = SettingRecord(name="owner_code", value=self._owner_code)
        owner = replace(account, role=ServerRole.OWNER.value, access=True)
        saved = self._save(owner, without=[used, *self._waiting_of(account.id)])
        return [self._account_reply(request, account.id), saved]

    # -- following and blocking ----------------------------------------------------------------

    def _follow(self, account: AccountRecord, whom: AccountRecord, now: Moment) -> list[Effect]:
        if whom.id == account.id:
            raise RefusedError(ErrorCode.ONESELF)
        if self.has_blocked(account.id, whom.id):
            raise RefusedError(ErrorCode.BLOCKED)
        if self.follows(account.id, whom.id):
            return []
        if len(self.following(account.id)) >= MAX_FOLLOWS:
            raise RefusedError(ErrorCode.TOO_MANY)
        if self.has_blocked(whom.id, account.id):
            return []  # answered as if it were done: a refusal would tell of the block
        return [self._save(FollowRecord(follower=account.id, followed=whom.id, since_s=now.utc_s))]

    def _unfollow(self, follower: int, followed: int) -> list[Effect]:
        gone = self._follow_records((follower, followed))
        return [self._save(without=gone)] if gone else []

    def _follow_records(self, *pairs: tuple[int, int]) -> list[Record]:
        return [
            FollowRecord(follower=one, followed=other, since_s=0)
            for one, other in pairs
            if self.follows(one, other)
        ]

    def _block(self, account: AccountRecord, whom: AccountRecord) -> list[Effect]:
        if whom.id == account.id:
            raise RefusedError(ErrorCode.ONESELF)
        if self.has_blocked(account.id, whom.id):
            return []
        if len(self._blocks.of(account.id)) >= MAX_BLOCKS:
            raise RefusedError(ErrorCode.TOO_MANY)
        ended = self._follow_records((account.id, whom.id), (whom.id, account.id))
        return [
            self._save(BlockRecord(blocker=account.id, blocked=whom.id), without=ended),
            BlocksChanged(account.id, whom.id),
        ]

    # -- access --------------------------------------------------------------------------------

    def _set_access(self, access: Access) -> list[Effect]:
        """Opening lets everyone in for good: all get access, so that limiting the server again
        shuts out nobody who came in meanwhile, but those from whom access was taken back then,
        and guests; those who waited are told."""
        if access is self._access:
            return []
        setting = SettingRecord(name="access", value=access.value)
        shut_out = [account for account in self._accounts.values() if not account.access]
        if access is Access.LIMITED:
            accounts = tuple(account.id for account in shut_out)
            expelled = [Expelled(accounts, ERROR_TEXTS[ErrorCode.NO_ACCESS])] if accounts else []
            return [self._save(setting), *expelled, GuestsOut(GUESTS_OUT)]
        waited = list(self._waiting.values())
        let_in = [replace(account, access=True) for account in shut_out]
        told = [Keep(record.account, _access_granted("")) for record in waited]
        return [self._save(setting, *let_in, without=waited), *told]

    def _ask_access(self, account: AccountRecord, note: str, now: Moment) -> list[Effect]:
        """Asking again changes the note, not the place in the queue."""
        if account.access or self._access is Access.OPEN:
            return []
        before = self._waiting.get(account.id)
        if before is None and len(self._waiting) >= MAX_WAITING:
            raise RefusedError(ErrorCode.TOO_MANY)
        asked_s = now.utc_s if before is None else before.asked_s
        note = _clean_note(note)
        return [self._save(WaitingRecord(account=account.id, asked_s=asked_s, note=note))]

    def _waiting_of(self, account: int) -> list[Record]:
        return [self._waiting[account]] if account in self._waiting else []

    def _give_access(self, whom: AccountRecord, giver: int) -> list[Effect]:
        let_in = replace(whom, access=True, invited_by=giver)
        by = "" if giver == OPERATOR else self._accounts[giver].handle
        return [
            self._save(let_in, without=self._waiting_of(whom.id)),
            Keep(whom.id, _access_granted(by)),
        ]

    def grant_by_invitation(self, account: int, issuer: int, now: Moment) -> list[Effect]:
        """Whoever has access gives it to those whom they invite.  -> effects, none of them an
        Answer; nothing if the account has access already, or the issuer has none to give."""
        whom, giver = self._accounts.get(account), self._accounts.get(issuer)
        if whom is None or giver is None or whom.access or not giver.access:
            return []
        if self.banned(account) or self.banned(issuer):
            return []
        return self._give_access(whom, issuer)

    def _revoke(self, whom: AccountRecord) -> list[Effect]:
        if not whom.access:
            return []
        saved = self._save(replace(whom, access=False))
        if self._access is Access.OPEN:
            return [saved]  # it matters when the server is limited
        return [saved, Expelled((whom.id,), "your access to this server was taken back")]

    # -- moderators and bans -------------------------------------------------------------------

    def _appoint(self, whom: AccountRecord) -> list[Effect]:
        if self.banned(whom.id):
            raise RefusedError(ErrorCode.NOT_ALLOWED, "this person is banned")
        if len(self._staff) > MAX_MODERATORS:
            raise RefusedError(ErrorCode.TOO_MANY)
        moderator = replace(whom, role=ServerRole.MODERATOR.value, access=True)
        return [self._save(moderator, without=self._waiting_of(whom.id))]

    def ban(
        self, moderator_id: int, account_id: int, reason: str, with_invited: bool, now: Moment
    ) -> list[Effect]:
        """Bans the account, with_invited: also everyone to whom it gave access, and so on.  Spared
        are the owner, and unless the owner bans (or the server's own key, with id 0) moderators,
        with those whom these invited.  A banned moderator is none any more.

        -> effects, none of them an Answer.  Raises RefusedError; whether `moderator_id` may do it
        at all is for the caller to say."""
        whom = self.account(account_id)
        reason = _clean_note(reason)
        by_owner = moderator_id == OPERATOR or (self.account(moderator_id).role == ServerRole.OWNER)
        spared = {ServerRole.OWNER.value} | (set() if by_owner else {ServerRole.MODERATOR.value})
        if whom.role in spared or whom.id == moderator_id:
            raise RefusedError(ErrorCode.NOT_ALLOWED)
        found = {account_id: whom}
        reached = [account_id] if with_invited else []
        for giver in reached:  # grows on the way
            for invited in sorted(self._gave_access.of(giver)):
                account = self._accounts[invited]
                if invited not in found and account.role not in spared:
                    found[invited] = account
                    reached.append(invited)
        found = {
            a: account for a, account in found.items() if a == account_id or a not in self._bans
        }
        records: list[Record] = []
        waited: list[Record] = []
        for account in found.values():
            records.append(
                BanRecord(account=account.id, moderator=moderator_id, reason=reason, at_s=now.utc_s)
            )
            if account.role != ServerRole.PERSON:
                records.append(replace(account, role=ServerRole.PERSON.value))
            waited += self._waiting_of(account.id)
        self._void_codes(now, found)
        return [
            self._save(*records, without=waited),
            Expelled(tuple(found), banned_text(reason)),
        ]

    # -- what is seen --------------------------------------------------------------------------

    def _account_reply(self, request: frames.Request, account: int) -> Answer:
        """Answers as things are when it is sent, so it is made after they have changed."""
        view = self._account_view(self._accounts[account])
        return Answer(frames.AccountReply(re=request.id, account=view, server=self._access))

    def _account_view(self, account: AccountRecord) -> frames.Account:
        inviter = self._accounts.get(account.invited_by)
        return frames.Account(
            handle=account.handle,
            name=account.name,
            role=ServerRole(account.role),
            access=account.access,
            banned=self.banned(account.id),
            invited_by="" if inviter is None else inviter.handle,
            since=account.since_s,
        )

    def _person(self, asker: Asker, account: int) -> frames.Person:
        record = self._accounts[account]
        me = OPERATOR if asker.account is None else asker.account.id
        return frames.Person(
            handle=record.handle,
            name=record.name,
            following=self.follows(me, account),
            follows_you=self.follows(account, me),
            blocked=self.has_blocked(me, account),
        )

    def _one_of(self, asker: Asker, person: str) -> int:
        return self.find(person).id if person else self._require_account(asker).id

    def _people(
        self, asker: Asker, request: frames.Request, accounts: AbstractSet[int], after: int
    ) -> Answer:
        page, next_ = _page(accounts, after, PEOPLE_PAGE)
        people = [self._person(asker, account) for account in page]
        return Answer(frames.People(re=request.id, people=people, next=next_))

    def _waiting_list(self, asker: Asker, request: frames.Request, after: int) -> Answer:
        """If the one of `after` does not wait any more, the list begins again: so nobody is left
        out."""
        self._permit(ServerAction.WAITING_LIST, asker, None)
        queue = sorted(self._waiting.values(), key=lambda record: (record.asked_s, record.account))
        start = next((i for i, record in enumerate(queue, 1) if record.account == after), 0)
        page = queue[start : start + frames.MAX_TEXTS_PAGE]
        waiting = [
            frames.Waiting(
                handle=self._accounts[record.account].handle,
                name=self._accounts[record.account].name,
                asked=record.asked_s,
                note=record.note,
            )
            for record in page
        ]
        more = start + len(page) < len(queue)
        next_ = page[-1].account if more else 0
        return Answer(frames.WaitingReply(re=request.id, waiting=waiting, next=next_))

    def _list_accounts(self, asker: Asker, request: frames.ListAccounts) -> Answer:
        self._permit(ServerAction.LIST_ACCOUNTS, asker, None)
        among: Iterable[int]
        if request.banned or request.moderators:
            among = (self._bans.keys() if request.banned else set()) | (
                self._staff if request.moderators else set()
            )
        else:
            among = self._ids[bisect_right(self._ids, request.after) :][: ACCOUNTS_PAGE + 1]
        page, next_ = _page(among, request.after, ACCOUNTS_PAGE)
        accounts = [self._account_view(self._accounts[account]) for account in page]
        return Answer(frames.Accounts(re=request.id, accounts=accounts, next=next_))


def _page(ids: Iterable[int], after: int, size: int) -> tuple[list[int], int]:
    """-> the first ids above `after`, and the one to go on after, 0 if these were all."""
    page = nsmallest(size + 1, (i for i in ids if i > after))
    return (page[:size], page[size - 1]) if len(page) > size else (page, 0)


def _clean_note(text: str) -> str:
    """Of several lines, or none."""
    return clean_text(text, frames.MAX_REPORT_CHARS, lines=True) if text.strip() else ""


def _access_granted(by: str) -> Callable[[int], KeptNotice]:
    return lambda number: frames.AccessGranted(notice=number, by=by)


def _hash(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
