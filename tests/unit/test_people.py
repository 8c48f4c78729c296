"""The people of a server: what each request does, what is refused, and that a server which starts
from what was saved knows the same as the one that saved it."""

import itertools
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocol import frames
from protocol.frames import Access, ErrorCode
from protocol.roles import ServerAction, ServerRole, server_allowed
from spaces_server.policy import people as module
from spaces_server.policy.accounts import MAX_NOTICES, OPERATOR
from spaces_server.policy.effects import (
    Answer,
    Asker,
    BlocksChanged,
    DeviceRemoved,
    Effect,
    Expelled,
    Keep,
    Moment,
    RefusedError,
    Registered,
    Renamed,
    Save,
)
from spaces_server.policy.people import (
    ACCOUNTS_PAGE,
    MAX_BLOCKS,
    MAX_DEVICES,
    MAX_FOLLOWS,
    PEOPLE_PAGE,
    People,
)
from spaces_server.records import (
    KEYS,
    AccountRecord,
    BanRecord,
    Drop,
    FollowRecord,
    Loaded,
    Put,
    Record,
    SettingRecord,
    WaitingRecord,
)

ID = 77
NOW_S = 1_700_000_000


def key(name: str) -> bytes:
    return name.encode().ljust(32, b".")


class World:
    """People, and the store that they are saved in."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.store: dict[tuple[Any, ...], Record] = {}
        self.people = People(Loaded(), os.urandom, **options)
        self.now = Moment(0, NOW_S)

    # -- the store --

    def image(self) -> Loaded:
        ordered = sorted(self.store.items(), key=lambda item: (item[0][0].__name__, item[0][1:]))
        return Loaded(tuple(record for _, record in ordered))

    def restarted(self) -> People:
        return People(self.image(), os.urandom, **self.options)

    def restart(self) -> None:
        self.people = self.restarted()

    def save(self, changes: tuple[Put | Drop, ...]) -> None:
        for change in changes:
            match change:
                case Put(record):
                    kind = type(record)
                    self.store[kind, *(getattr(record, name) for name in KEYS[kind])] = record
                case Drop(kind, where):
                    assert where
                    for known, record in list(self.store.items()):
                        if known[0] is kind and all(
                            getattr(record, name) == value for name, value in where.items()
                        ):
                            del self.store[known]

    def carry_out(self, effects: list[Effect]) -> list[Effect]:
        """As the server does, as far as people are concerned."""
        for effect in effects:
            if isinstance(effect, Save):
                self.save(effect.changes)
            elif isinstance(effect, Keep):
                _, changes = self.people.keep(effect.account, effect.make)
                self.save(changes)
        return effects

    # -- requests --

    def asker(self, name: str) -> Asker:
        return self.people.asker(key(name), operator=name == "operator")

    def ask(self, who: str, kind: type[frames.Request], /, **fields: Any) -> list[Effect]:
        """Carries a request out and checks that it is answered exactly once, first and to the
        id."""
        effects = self.people.handle(self.asker(who), kind(id=ID, **fields), self.now)
        answers = [e.frame for e in effects if isinstance(e, Answer)]
        assert len(answers) == 1
        assert isinstance(effects[0], Answer)
        assert isinstance(answers[0], frames.Reply)
        assert answers[0].re == ID
        return self.carry_out(effects)[1:]

    def get(self, who: str, kind: type[frames.Request], /, **fields: Any) -> Any:
        (answer,) = self.people.handle(self.asker(who), kind(id=ID, **fields), self.now)
        assert isinstance(answer, Answer)
        return answer.frame

    def refused(
        self, who: str, why: ErrorCode, kind: type[frames.Request], /, **fields: Any
    ) -> str:
        """The request is refused, and nothing is changed by it.  -> the text"""
        before = knowledge(self.people)
        with pytest.raises(RefusedError) as error:
            self.people.handle(self.asker(who), kind(id=ID, **fields), self.now)
        assert error.value.code == why
        assert str(error.value)
        assert knowledge(self.people) == before
        return str(error.value)

    def register(self, *names: str) -> None:
        for name in names:
            self.ask(name, frames.Register, handle=name, name=name.title())

    def id(self, name: str) -> int:
        return self.people.find(name).id

    def account(self, name: str) -> frames.Account:
        reply = self.get(name, frames.WhoAmI)
        assert isinstance(reply, frames.AccountReply)
        return reply.account

    def device_code(self, name: str) -> str:
        code = self.get(name, frames.MakeDeviceCode).code
        assert isinstance(code, str)
        return code

    def add_device(self, name: str, device: str) -> list[Effect]:
        code = self.device_code(name)
        return self.ask(device, frames.AddDevice, code=code, label=device)


def knowledge(people: People) -> dict[str, Any]:
    """All that there is to be learned from people.  (That what one is refused leaves codes as they
    were, their own tests say.)"""
    accounts = []
    after = 0
    operator = Asker(b"", None, operator=True)

    def answer(asker: Asker, request: frames.Request) -> Any:
        (effect,) = people.handle(asker, request, Moment(0, NOW_S))
        assert isinstance(effect, Answer)
        return effect.frame

    while True:
        page = answer(operator, frames.ListAccounts(id=ID, after=after))
        accounts += page.accounts
        after = page.next
        if not after:
            break
    known: dict[str, Any] = {"accounts": accounts}
    for account in accounts:
        record = people.find(account.handle)
        known[account.handle] = (
            record,
            people.devices_of(record.id),
            set(people.following(record.id)),
            set(people.followers(record.id)),
            people.blocks(record.id),
            people.banned(record.id),
            people.kept(record.id),
        )
    known["staff"] = people.moderators()
    known["waiting"] = answer(operator, frames.WaitingList(id=ID))
    known["access"] = allowed(lambda: people.require_listener(Asker(b"", None)))
    return known


def allowed(require: Callable[[], None]) -> bool:
    try:
        require()
    except RefusedError:
        return False
    return True


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects]


def world(*names: str, **options: Any) -> World:
    """With these people; the first of them owns it."""
    made = World(**options)
    made.register(*names)
    code = claimable(made)
    made.ask(names[0], frames.ClaimServer, code=code)
    return made


def claimable(made: World) -> str:
    result = made.people.owner_code(made.now)
    assert result is not None
    code, effects = result
    made.carry_out(effects)
    return code


# -- accounts -------------------------------------------------------------------------------------


def test_registering() -> None:
    w = World()
    effects = w.ask("ada", frames.Register, handle="@Ada", name=" Ada L. ")
    assert kinds(effects) == [Save, Registered]
    assert w.account("ada") == frames.Account(handle="ada", name="Ada L.", since=NOW_S)
    assert w.people.asker(key("ada")).account == w.people.find("ADA")
    assert [d.number for d in w.people.devices_of(w.id("ada"))] == [1]


@pytest.mark.parametrize(
    ("handle", "name", "code"),
    [
        ("no spaces", "A", ErrorCode.BAD_HANDLE),
        ("аda", "A", ErrorCode.BAD_HANDLE),
        ("ada", "A", ErrorCode.HANDLE_TAKEN),
        ("ADA", "A", ErrorCode.HANDLE_TAKEN),
        ("алех1", "A", None),
        ("coco", "A", ErrorCode.HANDLE_TAKEN),
        ("new", "\x1b[1m", ErrorCode.BAD_TEXT),
        ("new", "  ", ErrorCode.BAD_TEXT),
    ],
)
def test_who_cannot_register(handle: str, name: str, code: ErrorCode | None) -> None:
    w = World()
    w.register("ada", "сосо")
    if code is None:
        w.ask("new", frames.Register, handle=handle, name=name)
    else:
        w.refused("new", code, frames.Register, handle=handle, name=name)
        assert w.asker("new").account is None


def test_a_device_has_one_account() -> None:
    w = World()
    w.register("ada", "bob")
    w.refused("ada", ErrorCode.HAS_ACCOUNT, frames.Register, handle="ada2", name="A")
    code = w.device_code("bob")
    w.refused("ada", ErrorCode.HAS_ACCOUNT, frames.AddDevice, code=code, label="x")
    w.refused("operator", ErrorCode.NOT_ALLOWED, frames.Register, handle="op", name="A")
    w.refused("operator", ErrorCode.NOT_ALLOWED, frames.AddDevice, code=code, label="x")


def test_people_are_found_by_their_handle_only() -> None:
    w = World()
    w.register("ada", "paul")
    assert w.people.find("@ADA").handle == "ada"
    for other in ("pau1", "раи1", "nobody", "", "a b", "\x1b"):
        with pytest.raises(RefusedError) as error:
            w.people.find(other)
        assert error.value.code == ErrorCode.NO_SUCH_PERSON
    with pytest.raises(RefusedError):
        w.people.account(99)


def test_guests_can_register_and_nothing_else() -> None:
    w = World()
    for kind in frames.PEOPLE_REQUESTS:
        if kind in (frames.Register, frames.AddDevice):
            continue
        fields = {
            "person": "ada", "name": "A", "code": "x", "device": 1, "access": Access.OPEN,
            "notice": 1,
        }  # fmt: skip
        given = {k: v for k, v in fields.items() if k in kind.__struct_fields__}
        w.refused("guest", ErrorCode.NO_ACCOUNT, kind, **given)


def test_renaming() -> None:
    w = World()
    w.register("ada")
    assert kinds(w.ask("ada", frames.Rename, name=" Countess ")) == [Save, Renamed]
    assert w.account("ada").name == "Countess"
    assert w.ask("ada", frames.Rename, name="Countess") == []
    w.refused("ada", ErrorCode.BAD_TEXT, frames.Rename, name="a\u202eb")


# -- devices --------------------------------------------------------------------------------------


def test_a_second_device() -> None:
    w = World()
    w.register("ada")
    effects = w.add_device("ada", "phone")
    assert effects[1:] == [Registered(w.id("ada"))]
    assert w.asker("phone").account == w.people.find("ada")
    assert w.get("phone", frames.ListDevices).devices == [
        frames.Device(id=1, label="first device", added=NOW_S),
        frames.Device(id=2, label="phone", added=NOW_S, this=True),
    ]


def test_a_code_is_good_once_and_for_ten_minutes() -> None:
    w = World()
    w.register("ada")
    w.refused("x", ErrorCode.BAD_CODE, frames.AddDevice, code="nonsense", label="x")
    code = w.device_code("ada")
    assert len(code) >= 12
    w.refused("x", ErrorCode.BAD_TEXT, frames.AddDevice, code=code, label="\a")
    w.ask("x", frames.AddDevice, code=code, label="x")  # what was refused did not use it up
    w.refused("y", ErrorCode.BAD_CODE, frames.AddDevice, code=code, label="y")
    first, second = w.device_code("ada"), w.device_code("ada")
    w.refused("y", ErrorCode.BAD_CODE, frames.AddDevice, code=first, label="y")
    w.now = Moment(0, NOW_S + 600)
    w.refused("y", ErrorCode.BAD_CODE, frames.AddDevice, code=second, label="y")


def test_an_account_has_so_many_devices() -> None:
    w = World()
    w.register("ada")
    code = w.device_code("ada")
    for i in range(MAX_DEVICES - 1):
        w.add_device("ada", f"device {i}")
        code = w.device_code("ada") if i < MAX_DEVICES - 2 else code
    w.refused("ada", ErrorCode.TOO_MANY, frames.MakeDeviceCode)


def test_removing_devices() -> None:
    w = World()
    w.register("ada")
    w.refused("ada", ErrorCode.LAST_DEVICE, frames.RemoveDevice, device=1)
    w.refused("ada", ErrorCode.NO_SUCH_DEVICE, frames.RemoveDevice, device=2)
    w.add_device("ada", "phone")
    effects = w.ask("ada", frames.RemoveDevice, device=2)
    assert effects[1:] == [DeviceRemoved(key("phone"))]
    assert w.asker("phone").account is None
    w.refused("ada", ErrorCode.NO_SUCH_DEVICE, frames.RemoveDevice, device=2)
    w.add_device("ada", "tablet")
    assert [d.number for d in w.people.devices_of(w.id("ada"))] == [1, 3]
    w.register("phone")  # the key is free again


# -- the owner ------------------------------------------------------------------------------------


def test_the_first_who_shows_the_code_owns_the_server() -> None:
    w = World()
    w.register("ada", "bob")
    void, code = claimable(w), claimable(w)
    assert not any(code in str(record) for record in w.store.values())
    for wrong in (void, "x", code[:-1]):
        w.refused("bob", ErrorCode.BAD_CODE, frames.ClaimServer, code=wrong)
    w.refused("guest", ErrorCode.NO_ACCOUNT, frames.ClaimServer, code=code)
    w.restart()
    w.ask("ada", frames.ClaimServer, code=code)
    assert w.account("ada").role is ServerRole.OWNER
    assert w.people.owner_code(w.now) is None
    w.refused("bob", ErrorCode.BAD_CODE, frames.ClaimServer, code=code)
    w.restart()
    assert w.people.owner_code(w.now) is None
    w.refused("bob", ErrorCode.BAD_CODE, frames.ClaimServer, code=code)


def test_an_owner_has_access_and_does_not_wait() -> None:
    w = World(access=Access.LIMITED)
    w.register("ada")
    w.ask("ada", frames.AskAccess)
    w.ask("ada", frames.ClaimServer, code=claimable(w))
    w.people.require(w.asker("ada"))
    assert w.get("ada", frames.WaitingList).waiting == []


GOVERNED: dict[ServerAction, tuple[type[frames.Request], dict[str, Any]]] = {
    ServerAction.SET_ACCESS: (frames.SetAccess, {"access": Access.LIMITED}),
    ServerAction.WAITING_LIST: (frames.WaitingList, {}),
    ServerAction.LIST_ACCOUNTS: (frames.ListAccounts, {}),
    ServerAction.APPOINT_MODERATOR: (frames.AppointModerator, {"person": ""}),
    ServerAction.DISMISS_MODERATOR: (frames.DismissModerator, {"person": ""}),
    ServerAction.GRANT: (frames.Grant, {"person": ""}),
    ServerAction.REVOKE: (frames.Revoke, {"person": ""}),
    ServerAction.BAN: (frames.Ban, {"person": ""}),
    ServerAction.UNBAN: (frames.Unban, {"person": ""}),
}
CAST = {
    ServerRole.OWNER: ("owner", "owner"),
    ServerRole.MODERATOR: ("mod", "moder"),
    ServerRole.PERSON: ("pia", "quinn"),
}


def governed() -> World:
    w = world("owner", "mod", "moder", "pia", "quinn")
    for name in ("mod", "moder"):
        w.ask("owner", frames.AppointModerator, person=name)
    return w


@pytest.mark.parametrize("action", GOVERNED)
def test_who_may_govern_whom(action: ServerAction) -> None:
    kind, fields = GOVERNED[action]
    for actor, target, same in itertools.product(ServerRole, ServerRole, (True, False)):
        if same and actor != target:
            continue
        if not same and actor == target == ServerRole.OWNER:
            continue
        whom = CAST[target][0 if same else 1]
        given = {"person": whom} if "person" in fields else fields
        if "person" not in fields and not same:
            continue
        may = server_allowed(action, actor, target, same=same)
        for name in (CAST[actor][0], *(["operator"] if actor == "owner" and not same else [])):
            w = governed()
            if may:
                w.ask(name, kind, **given)
            else:
                w.refused(name, ErrorCode.NOT_ALLOWED, kind, **given)


def test_moderators() -> None:
    w = governed()
    assert [m.handle for m in w.people.moderators()] == ["owner", "mod", "moder"]
    w.ask("owner", frames.DismissModerator, person="mod")
    w.ask("moder", frames.DismissModerator, person="moder")
    assert [m.handle for m in w.people.moderators()] == ["owner"]
    w.ask("owner", frames.Ban, person="pia")
    w.refused("owner", ErrorCode.NOT_ALLOWED, frames.AppointModerator, person="pia")


# -- following and blocking -----------------------------------------------------------------------


def test_following() -> None:
    w = World()
    w.register("ada", "bob", "cyd")
    w.ask("ada", frames.Follow, person="bob")
    assert w.ask("ada", frames.Follow, person="bob") == []
    w.ask("cyd", frames.Follow, person="bob")
    ada, bob, cyd = map(w.id, ("ada", "bob", "cyd"))
    assert w.people.follows(ada, bob)
    assert not w.people.follows(bob, ada)
    assert w.people.following(ada) == {bob}
    assert w.people.followers(bob) == {ada, cyd}
    seen = w.get("bob", frames.Find, person="ada").person
    assert seen == frames.Person(handle="ada", name="Ada", follows_you=True)
    followers = w.get("ada", frames.Followers, person="bob").people
    assert [p.handle for p in followers] == ["ada", "cyd"]
    assert [p.handle for p in w.get("ada", frames.Following).people] == ["bob"]
    w.ask("ada", frames.Unfollow, person="bob")
    assert w.ask("ada", frames.Unfollow, person="bob") == []
    assert w.people.followers(bob) == {cyd}
    w.refused("ada", ErrorCode.ONESELF, frames.Follow, person="ada")
    w.refused("ada", ErrorCode.NO_SUCH_PERSON, frames.Follow, person="nobody")


def test_a_block_ends_following_and_is_known_to_the_blocker_only() -> None:
    w = World()
    w.register("ada", "bob")
    ada, bob = w.id("ada"), w.id("bob")
    w.ask("ada", frames.Follow, person="bob")
    w.ask("bob", frames.Follow, person="ada")
    before = w.get("bob", frames.Find, person="ada").person
    effects = w.ask("ada", frames.Block, person="bob")
    assert kinds(effects) == [Save, BlocksChanged]
    assert w.ask("ada", frames.Block, person="bob") == []
    assert w.people.blocks(ada) == {bob}
    assert w.people.blocks(bob) == {ada}
    assert w.people.has_blocked(ada, bob)
    assert not w.people.has_blocked(bob, ada)
    assert not w.people.follows(ada, bob)
    assert not w.people.follows(bob, ada)
    assert [p.handle for p in w.get("ada", frames.Blocked).people] == ["bob"]
    assert w.get("ada", frames.Find, person="bob").person.blocked
    # Bob is told nothing: he finds Ada as before, and following seems to work.
    assert w.get("bob", frames.Blocked).people == []
    after = w.get("bob", frames.Find, person="ada").person
    assert (after.handle, after.name, after.blocked) == (before.handle, before.name, False)
    assert w.ask("bob", frames.Follow, person="ada") == []
    assert not w.people.follows(bob, ada)
    w.refused("ada", ErrorCode.BLOCKED, frames.Follow, person="bob")
    assert kinds(w.ask("ada", frames.Unblock, person="bob")) == [Save, BlocksChanged]
    assert w.ask("ada", frames.Unblock, person="bob") == []
    assert w.people.blocks(bob) == frozenset()
    w.refused("ada", ErrorCode.ONESELF, frames.Block, person="ada")


def test_there_are_limits_to_following_and_blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (MAX_FOLLOWS, MAX_BLOCKS) == (5_000, 1_000)
    monkeypatch.setattr(module, "MAX_FOLLOWS", 2)
    monkeypatch.setattr(module, "MAX_BLOCKS", 1)
    w = World()
    w.register("ada", "bob", "cyd", "dee")
    w.ask("dee", frames.Block, person="ada")
    w.ask("ada", frames.Follow, person="bob")
    w.ask("ada", frames.Follow, person="cyd")
    w.refused("ada", ErrorCode.TOO_MANY, frames.Follow, person="dee")
    w.refused("dee", ErrorCode.TOO_MANY, frames.Block, person="bob")


def test_lists_are_paged() -> None:
    w = World()
    w.register("star")
    star = w.people.find("star")
    records: list[Record] = [star]
    for i in range(2, 252):
        records.append(
            AccountRecord(id=i, handle=f"fan{i}", skeleton=f"fan{i}", name=f"Fan {i}",
                          role="person", access=True, invited_by=0, since_s=0)
        )  # fmt: skip
        records.append(FollowRecord(follower=i, followed=star.id, since_s=0))
    people = People(Loaded((*records, *w.image().records)), os.urandom)
    w.people = people
    pages, after = [], 0
    while True:
        page = w.get("star", frames.Followers, after=after)
        pages.append([p.handle for p in page.people])
        after = page.next
        if not after:
            break
    assert [len(page) for page in pages] == [PEOPLE_PAGE, PEOPLE_PAGE, PEOPLE_PAGE, 10]
    assert [handle for page in pages for handle in page] == [f"fan{i}" for i in range(2, 252)]
    listed = w.get("operator", frames.ListAccounts, after=210)
    assert [a.handle for a in listed.accounts] == [f"fan{i}" for i in range(211, 252)]
    assert listed.next == 0
    assert len(w.get("operator", frames.ListAccounts).accounts) == ACCOUNTS_PAGE


def test_a_page_of_the_longest_names_fits_into_a_frame() -> None:
    w = World(access=Access.LIMITED)
    w.register("star")
    star = w.people.find("star")
    long = "\U00010428" * 26  # Deseret, four bytes each
    records: list[Record] = [star]
    for i in range(2, 202):
        handle = long + "".join(chr(0x10428 + int(digit)) for digit in f"{i:04}")
        records += [
            AccountRecord(id=i, handle=handle, skeleton=str(i), name="😀" * 40, role="moderator",
                          access=False, invited_by=max(i - 1, 2), since_s=NOW_S),
            FollowRecord(follower=i, followed=star.id, since_s=0),
            FollowRecord(follower=star.id, followed=i, since_s=0),
            BanRecord(account=i, moderator=0, reason="", at_s=0),
            WaitingRecord(account=i, asked_s=NOW_S, note="😀" * 500),
        ]  # fmt: skip
    w.people = People(Loaded((*records, *w.image().records)), os.urandom)
    pages = (
        w.get("star", frames.Followers),
        w.get("operator", frames.ListAccounts, after=1),
        w.get("operator", frames.WaitingList),
    )
    for page in pages:
        assert page.next
        assert 20_000 < len(frames.encode(page)) <= frames.MAX_FRAME_BYTES


# -- access ---------------------------------------------------------------------------------------


def limited(*names: str) -> World:
    """A limited server: the first of them owns it, the others have no access."""
    w = World(access=Access.LIMITED)
    w.register(*names)
    w.ask(names[0], frames.ClaimServer, code=claimable(w))
    return w


def may_use(w: World, name: str) -> bool:
    return allowed(lambda: w.people.require(w.asker(name)))


def test_guests_listen_where_the_server_takes_them() -> None:
    for guests, access in itertools.product((True, False), Access):
        w = World(guests=guests, access=access)
        guest = w.asker("guest")
        listens = allowed(partial(w.people.require_listener, guest))
        assert listens == (guests and access is Access.OPEN)
        with pytest.raises(RefusedError) as error:
            w.people.require(guest)
        assert error.value.code == ErrorCode.NO_ACCOUNT


def test_access_by_asking() -> None:
    w = limited("owner", "ada")
    assert w.account("ada").access is False
    with pytest.raises(RefusedError) as error:
        w.people.require(w.asker("ada"))
    assert error.value.code == ErrorCode.NO_ACCESS
    w.ask("ada", frames.AskAccess, note="let me in\nplease")
    w.now = Moment(0, NOW_S + 5)
    w.ask("ada", frames.AskAccess, note="please, please")
    w.refused("ada", ErrorCode.BAD_TEXT, frames.AskAccess, note="\a")
    (waiting,) = w.get("owner", frames.WaitingList).waiting
    assert waiting == frames.Waiting(handle="ada", name="Ada", asked=NOW_S, note="please, please")
    asker = w.asker("ada")
    effects = w.ask("owner", frames.Grant, person="ada")
    assert kinds(effects) == [Save, Keep]
    w.people.require(asker)  # also who asked before
    assert w.people.kept(w.id("ada")) == [frames.AccessGranted(notice=1, by="owner")]
    assert w.account("ada").invited_by == "owner"
    assert w.get("owner", frames.WaitingList).waiting == []
    assert w.ask("owner", frames.Grant, person="ada") == []
    assert w.ask("ada", frames.AskAccess) == []
    effects = w.ask("owner", frames.Revoke, person="ada")
    assert kinds(effects) == [Save, Expelled]
    assert not may_use(w, "ada")
    assert w.ask("owner", frames.Revoke, person="ada") == []


def test_the_waiting_list_is_paged_in_the_order_of_asking() -> None:
    size = frames.MAX_TEXTS_PAGE
    names = [f"p{i}" for i in range(size + 5)]
    w = limited("owner", *names)
    for i, name in enumerate(reversed(names)):
        w.now = Moment(0, NOW_S + i)
        w.ask(name, frames.AskAccess)
    first = w.get("owner", frames.WaitingList)
    assert [p.handle for p in first.waiting] == names[:4:-1]
    second = w.get("owner", frames.WaitingList, after=first.next)
    assert [p.handle for p in second.waiting] == names[4::-1]
    assert second.next == 0
    w.ask("owner", frames.Grant, person=names[5])  # the last of the first page: it begins again
    again = w.get("owner", frames.WaitingList, after=first.next)
    assert [p.handle for p in again.waiting] == [*names[:5:-1], names[4]]


def test_access_by_invitation() -> None:
    w = limited("owner", "ada", "bob", "cyd")
    owner, ada, bob, cyd = map(w.id, ("owner", "ada", "bob", "cyd"))
    assert w.people.grant_by_invitation(bob, ada, w.now) == []  # who has none gives none
    w.ask("bob", frames.AskAccess)
    for whom, issuer in ((ada, owner), (bob, ada)):
        w.carry_out(w.people.grant_by_invitation(whom, issuer, w.now))
    assert may_use(w, "bob")
    assert w.account("bob").invited_by == "ada"
    assert w.people.kept(bob) == [frames.AccessGranted(notice=2, by="ada")]
    assert w.get("owner", frames.WaitingList).waiting == []
    assert w.people.grant_by_invitation(bob, owner, w.now) == []
    assert w.people.grant_by_invitation(99, owner, w.now) == []
    assert w.people.grant_by_invitation(cyd, 0, w.now) == []
    w.ask("owner", frames.Ban, person="ada")
    assert w.people.grant_by_invitation(cyd, ada, w.now) == []


def test_opening_lets_everyone_in_for_good() -> None:
    w = limited("owner", "ada", "bob")
    w.ask("ada", frames.AskAccess)
    w.ask("owner", frames.SetAccess, access=Access.OPEN)
    assert w.ask("owner", frames.SetAccess, access=Access.OPEN) == []
    assert w.get("owner", frames.WaitingList).waiting == []
    assert w.people.kept(w.id("ada")) == [frames.AccessGranted(notice=1)]
    assert w.people.kept(w.id("bob")) == []
    w.ask("owner", frames.Revoke, person="bob")
    assert may_use(w, "bob")
    w.restart()  # the setting is stronger than what the server was started with
    w.register("cyd")
    effects = w.ask("owner", frames.SetAccess, access=Access.LIMITED)
    assert [e.accounts for e in effects if isinstance(e, Expelled)] == [(w.id("bob"),)]
    w.register("dee")
    usable = [name for name in ("owner", "ada", "bob", "cyd", "dee") if may_use(w, name)]
    assert usable == ["owner", "ada", "cyd"]


# -- bans -----------------------------------------------------------------------------------------


def test_a_ban_keeps_all_devices_off() -> None:
    w = world("owner", "ada")
    w.add_device("ada", "phone")
    code = w.device_code("ada")
    effects = w.ask("owner", frames.Ban, person="ada", reason="spam\nand more")
    assert kinds(effects) == [Save, Expelled]
    assert isinstance(effects[1], Expelled)
    assert effects[1].accounts == (w.id("ada"),)
    assert "spam" in effects[1].text
    assert w.people.banned(w.id("ada"))
    for device in ("ada", "phone"):
        for kind in (frames.ListDevices, frames.AskAccess, frames.MakeDeviceCode):
            assert "spam" in w.refused(device, ErrorCode.BANNED, kind)
        w.refused(device, ErrorCode.HAS_ACCOUNT, frames.Register, handle="new", name="New")
        with pytest.raises(RefusedError) as error:
            w.people.require_listener(w.asker(device))
        assert error.value.code == ErrorCode.BANNED
    w.refused("tablet", ErrorCode.BAD_CODE, frames.AddDevice, code=code, label="tablet")
    assert w.account("ada").banned
    banned = w.get("owner", frames.ListAccounts, banned=True).accounts
    assert [a.handle for a in banned] == ["ada"]
    staff = w.get("owner", frames.ListAccounts, moderators=True).accounts
    assert [a.handle for a in staff] == ["owner"]
    w.ask("owner", frames.Unban, person="ada")
    assert w.ask("owner", frames.Unban, person="ada") == []
    w.people.require(w.asker("phone"))


def invited_tree() -> World:
    """owner -> mod -> m1; owner -> ada -> bob -> cyd, and ada -> mod2 -> m2."""
    w = limited("owner", "mod", "m1", "ada", "bob", "cyd", "mod2", "m2")
    for giver, whom in (
        ("owner", "mod"), ("mod", "m1"), ("owner", "ada"), ("ada", "bob"), ("bob", "cyd"),
        ("ada", "mod2"), ("mod2", "m2"),
    ):  # fmt: skip
        w.carry_out(w.people.grant_by_invitation(w.id(whom), w.id(giver), w.now))
    for name in ("mod", "mod2"):
        w.ask("owner", frames.AppointModerator, person=name)
    return w


@pytest.mark.parametrize(
    ("moderator", "expected"),
    [
        ("mod", {"ada", "bob", "cyd"}),
        ("owner", {"ada", "bob", "cyd", "mod2", "m2"}),
        ("operator", {"ada", "bob", "cyd", "mod2", "m2"}),
    ],
)
def test_a_ban_with_everyone_invited(moderator: str, expected: set[str]) -> None:
    w = invited_tree()
    effects = w.ask(moderator, frames.Ban, person="ada", with_invited=True, reason="ring")
    everyone = [a.handle for a in w.get("operator", frames.ListAccounts).accounts]
    assert {name for name in everyone if w.people.banned(w.id(name))} == expected
    (expelled,) = [e for e in effects if isinstance(e, Expelled)]
    assert set(expelled.accounts) == {w.id(name) for name in expected}
    assert len(w.image().of(BanRecord)) == len(expected)
    assert {m.handle for m in w.people.moderators()} == {"owner", "mod", "mod2"} - expected
    w.ask("owner", frames.Unban, person="bob")
    assert not w.people.banned(w.id("bob"))
    assert w.people.banned(w.id("ada"))


def test_a_circle_of_invitations_ends() -> None:
    w = limited("owner", "ada", "bob")
    w.ask("owner", frames.Grant, person="ada")
    w.carry_out(w.people.grant_by_invitation(w.id("bob"), w.id("ada"), w.now))
    w.ask("owner", frames.Revoke, person="ada")
    w.carry_out(w.people.grant_by_invitation(w.id("ada"), w.id("bob"), w.now))
    w.ask("owner", frames.Ban, person="ada", with_invited=True)
    assert w.people.banned(w.id("bob"))


def test_a_ban_follows_who_gave_access_last() -> None:
    w = limited("owner", "ada", "bob", "cyd")
    w.ask("owner", frames.Grant, person="ada")
    w.ask("owner", frames.Grant, person="bob")
    for giver in ("ada", "bob"):
        w.carry_out(w.people.grant_by_invitation(w.id("cyd"), w.id(giver), w.now))
        if giver == "ada":
            w.ask("owner", frames.Revoke, person="cyd")
    w.ask("owner", frames.Ban, person="ada", with_invited=True)
    assert not w.people.banned(w.id("cyd"))
    w.ask("owner", frames.Ban, person="bob", with_invited=True)
    assert w.people.banned(w.id("cyd"))


def test_an_earlier_ban_keeps_its_reason() -> None:
    w = invited_tree()
    w.ask("mod", frames.Ban, person="bob", reason="first")
    w.ask("mod", frames.Ban, person="ada", reason="second", with_invited=True)
    reasons = {w.people.account(b.account).handle: b.reason for b in w.image().of(BanRecord)}
    assert reasons == {"ada": "second", "bob": "first", "cyd": "second"}


def test_whom_a_ban_by_others_spares() -> None:
    w = governed()
    for moderator, whom in (("mod", "owner"), ("mod", "moder"), ("owner", "owner")):
        with pytest.raises(RefusedError):
            w.people.ban(w.id(moderator), w.id(whom), "", False, w.now)
    with pytest.raises(RefusedError):
        w.people.ban(OPERATOR, w.id("owner"), "", True, w.now)
    with pytest.raises(RefusedError):
        w.people.ban(OPERATOR, 99, "", True, w.now)
    with pytest.raises(RefusedError) as error:
        w.people.ban(OPERATOR, w.id("pia"), "\x1b[2J", True, w.now)
    assert error.value.code == ErrorCode.BAD_TEXT
    assert not any(w.people.banned(w.id(n)) for n in ("owner", "mod", "moder", "pia"))


# -- kept notices ---------------------------------------------------------------------------------


def keep(w: World, name: str, kind: type[frames.KeptNotice], /, **fields: Any) -> frames.KeptNotice:
    notice, changes = w.people.keep(w.id(name), lambda n: kind(notice=n, **fields))
    w.save(changes)
    return notice


def test_notices_are_kept_until_they_are_seen() -> None:
    w = World()
    w.register("ada", "bob")
    warned = keep(w, "ada", frames.Warned, text="mind your words")
    unread = keep(w, "ada", frames.Unread)
    assert keep(w, "ada", frames.Unread) == unread
    assert keep(w, "bob", frames.Unread) != unread
    w.restart()
    assert w.people.kept(w.id("ada")) == [warned, unread]
    assert w.ask("bob", frames.Seen, notice=warned.notice) == []  # not bob's
    w.ask("ada", frames.Seen, notice=warned.notice)
    assert w.ask("ada", frames.Seen, notice=warned.notice) == []
    assert w.people.kept(w.id("ada")) == [unread]
    w.ask("ada", frames.Seen, notice=unread.notice)
    assert keep(w, "ada", frames.Unread).notice > unread.notice
    w.restart()
    assert len(w.people.kept(w.id("ada"))) == 1


def test_so_many_notices_are_kept() -> None:
    w = World()
    w.register("ada")
    for i in range(MAX_NOTICES + 5):
        keep(w, "ada", frames.Warned, text=str(i))
    texts = [n.text for n in w.people.kept(w.id("ada")) if isinstance(n, frames.Warned)]
    assert texts == [str(i) for i in range(5, MAX_NOTICES + 5)]
    assert w.restarted().kept(w.id("ada")) == w.people.kept(w.id("ada"))


# -- a server that starts -------------------------------------------------------------------------


def test_a_stored_setting_is_stronger_than_the_argument() -> None:
    stored = Loaded((SettingRecord(name="access", value="limited"),))
    people = People(stored, os.urandom, access=Access.OPEN)
    with pytest.raises(RefusedError):
        people.require_listener(Asker(b"", None))


def test_a_setting_of_others_is_left_alone() -> None:
    People(Loaded((SettingRecord(name="colour", value="blue"),)), os.urandom)


NAMES = ("owner", "ada", "bob", "cyd", "dee")
PERSON = st.sampled_from(NAMES)


class PeopleMachine(RuleBasedStateMachine):
    """People against a model of them: sets of pairs and names."""

    @initialize(access=st.sampled_from(Access))
    def start(self, access: Access) -> None:
        self.world = World(access=access)
        self.world.register(*NAMES)
        self.world.ask("owner", frames.ClaimServer, code=claimable(self.world))
        self.open = access is Access.OPEN
        self.follows: set[tuple[str, str]] = set()
        self.blocks: set[tuple[str, str]] = set()
        self.banned: set[str] = set()
        self.access = set(NAMES) if self.open else {"owner"}
        self.waiting: set[str] = set()
        self.invited: dict[str, str] = {}
        self.moderators: set[str] = set()

    def tries(self, name: str, kind: type[frames.Request], /, **fields: Any) -> ErrorCode | None:
        """-> the code if it is refused."""
        if name in self.banned:
            self.world.refused(name, ErrorCode.BANNED, kind, **fields)
            return ErrorCode.BANNED
        before = knowledge(self.world.people)
        try:
            self.world.ask(name, kind, **fields)
        except RefusedError as error:
            assert knowledge(self.world.people) == before
            return error.code
        return None

    def governs(self, name: str, whom: str, *, also_moderators: bool = True) -> bool:
        """Whether the table has it so; the operator is like the owner."""
        if whom == "owner" or name == whom:
            return False
        if name in ("owner", "operator"):
            return also_moderators or whom not in self.moderators
        return name in self.moderators and whom not in self.moderators

    @rule(one=PERSON, other=PERSON)
    def follow(self, one: str, other: str) -> None:
        code = self.tries(one, frames.Follow, person=other)
        if one in self.banned:
            return
        if one == other:
            assert code == ErrorCode.ONESELF
        elif (one, other) in self.blocks:
            assert code == ErrorCode.BLOCKED
        else:
            assert code is None
            if (other, one) not in self.blocks:
                self.follows.add((one, other))

    @rule(one=PERSON, other=PERSON)
    def unfollow(self, one: str, other: str) -> None:
        if self.tries(one, frames.Unfollow, person=other) is None:
            self.follows.discard((one, other))

    @rule(one=PERSON, other=PERSON)
    def block(self, one: str, other: str) -> None:
        code = self.tries(one, frames.Block, person=other)
        if code is None:
            assert one != other
            self.blocks.add((one, other))
            self.follows -= {(one, other), (other, one)}

    @rule(one=PERSON, other=PERSON)
    def unblock(self, one: str, other: str) -> None:
        if self.tries(one, frames.Unblock, person=other) is None:
            self.blocks.discard((one, other))

    @rule(name=PERSON)
    def ask_access(self, name: str) -> None:
        if self.tries(name, frames.AskAccess) is None and not self.open:
            self.waiting |= {name} - self.access

    def let_in(self, name: str, by: str) -> None:
        if name not in self.access:
            self.access.add(name)
            self.waiting.discard(name)
            self.invited[name] = by

    @rule(name=st.sampled_from([*NAMES, "operator"]), whom=PERSON)
    def grant(self, name: str, whom: str) -> None:
        code = self.tries(name, frames.Grant, person=whom)
        if name not in self.banned:
            assert (code is None) == self.governs(name, whom)
            if code is None:
                self.let_in(whom, by="" if name == "operator" else name)

    @rule(whom=PERSON, issuer=PERSON)
    def invite(self, whom: str, issuer: str) -> None:
        w = self.world
        w.carry_out(w.people.grant_by_invitation(w.id(whom), w.id(issuer), w.now))
        if issuer in self.access and not {whom, issuer} & self.banned:
            self.let_in(whom, by=issuer)

    @rule(name=PERSON, whom=PERSON)
    def revoke(self, name: str, whom: str) -> None:
        code = self.tries(name, frames.Revoke, person=whom)
        if name not in self.banned:
            assert (code is None) == self.governs(name, whom, also_moderators=False)
            if code is None:
                self.access.discard(whom)

    @rule(access=st.sampled_from(Access))
    def set_access(self, access: Access) -> None:
        self.world.ask("owner", frames.SetAccess, access=access)
        if access is Access.OPEN and not self.open:
            self.access = set(NAMES)
            self.waiting.clear()
        self.open = access is Access.OPEN

    @rule(whom=PERSON)
    def appoint(self, whom: str) -> None:
        code = self.tries("owner", frames.AppointModerator, person=whom)
        fits = whom != "owner" and whom not in self.moderators | self.banned
        assert (code is None) == fits
        if fits:
            self.moderators.add(whom)
            self.access.add(whom)
            self.waiting.discard(whom)

    @rule(name=PERSON, whom=PERSON)
    def dismiss(self, name: str, whom: str) -> None:
        code = self.tries(name, frames.DismissModerator, person=whom)
        assert (code is None) == (whom in self.moderators and name in ("owner", whom))
        self.moderators -= {whom} if code is None else set()

    @rule(name=st.sampled_from([*NAMES, "operator"]), whom=PERSON, with_invited=st.booleans())
    def ban(self, name: str, whom: str, with_invited: bool) -> None:
        code = self.tries(name, frames.Ban, person=whom, with_invited=with_invited)
        if name in self.banned:
            return
        assert (code is None) == self.governs(name, whom)
        if code is not None:
            return
        spared = {"owner"} | (set() if name in ("owner", "operator") else self.moderators)
        out, more = {whom}, with_invited
        while more:
            new = {a for a, by in self.invited.items() if by in out} - out - spared
            out |= new
            more = bool(new)
        self.banned |= out
        self.moderators -= out
        self.waiting -= out

    @rule(name=PERSON, whom=PERSON)
    def unban(self, name: str, whom: str) -> None:
        code = self.tries(name, frames.Unban, person=whom)
        if name not in self.banned:
            assert (code is None) == self.governs(name, whom)
            if code is None:
                self.banned.discard(whom)

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @invariant()
    def people_are_as_the_model_has_them(self) -> None:
        w = self.world
        ids = {name: w.id(name) for name in NAMES}
        for one, other in itertools.product(NAMES, NAMES):
            a, b = ids[one], ids[other]
            assert w.people.follows(a, b) == ((one, other) in self.follows)
            assert w.people.has_blocked(a, b) == ((one, other) in self.blocks)
            between = (one, other) in self.blocks or (other, one) in self.blocks
            assert (b in w.people.blocks(a)) == between
            assert not (between and w.people.follows(a, b))
        for name in NAMES:
            assert w.people.banned(ids[name]) == (name in self.banned)
            assert w.account(name).access == (name in self.access)
            fits = name not in self.banned and (self.open or name in self.access)
            assert may_use(w, name) == fits
        assert {m.handle for m in w.people.moderators()} == self.moderators | {"owner"}
        waiting = {w.people.account(r.account).handle for r in w.image().of(WaitingRecord)}
        assert waiting == self.waiting

    @invariant()
    def the_store_is_the_image_of_the_memory(self) -> None:
        assert knowledge(self.world.restarted()) == knowledge(self.world.people)


TestPeopleMachine = PeopleMachine.TestCase
TestPeopleMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
