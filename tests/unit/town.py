"""People, and a space that they are in, for the tests of spaces."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import count
from typing import Any

import msgspec
import pytest

from protocol import frames
from protocol.connection import MS
from protocol.frames import ErrorCode, Settings, SpaceState
from protocol.roles import Role
from spaces_server.policy.effects import Answer, Asker, Effect, Moment, RefusedError, Save
from spaces_server.policy.space import Space, SpaceRules
from spaces_server.records import (
    KEYS,
    AccountRecord,
    DeviceRecord,
    InviteRecord,
    Put,
    Record,
    RemovalRecord,
    SpaceRecord,
    StageRecord,
)

ID = 77  # of the requests here
S = 1_000 * MS
START = Moment(1_000 * S, 1_700_000_000)


def at(seconds: float) -> Moment:
    """So long after the start."""
    return Moment(START.ns + int(seconds * S), START.utc_s + int(seconds))


@dataclass
class Town:
    """Accounts by number (their handles are p1, p2, …), and what a space must know of them."""

    names: dict[int, str] = field(default_factory=dict)
    blocked: set[tuple[int, int]] = field(default_factory=set)
    followed: set[tuple[int, int]] = field(default_factory=set)

    def blocks(self, account: int) -> AbstractSet[int]:
        blockers = {a for a, b in self.blocked if b == account}
        return frozenset(blockers | {b for a, b in self.blocked if a == account})

    def has_blocked(self, blocker: int, blocked: int) -> bool:
        return (blocker, blocked) in self.blocked

    def follows(self, follower: int, followed: int) -> bool:
        return (follower, followed) in self.followed

    def account(self, account: int) -> AccountRecord:
        handle = f"p{account}"
        return AccountRecord(
            id=account,
            handle=handle,
            skeleton=handle,
            name=self.names.get(account, f"Person {account}"),
            role="person",
            access=True,
            invited_by=0,
            since_s=0,
        )

    def devices_of(self, account: int) -> list[DeviceRecord]:
        return []

    def find(self, handle: str) -> AccountRecord:
        if not handle.removeprefix("p").isdigit():
            raise RefusedError(ErrorCode.NO_SUCH_PERSON)
        return self.account(int(handle.removeprefix("p")))

    def asker(self, who: int | str, device: int = 0, host: bytes = b"") -> Asker:
        """who: an account, or a guest's name."""
        if isinstance(who, str):
            return Asker(who.encode().ljust(32, b"\0"), None, host)
        return Asker(b"%d/%d" % (who, device), self.account(who), host)


class Image:
    """What the store holds, by what was saved."""

    def __init__(self) -> None:
        self.records: dict[type[Record], dict[tuple[Any, ...], Any]] = {kind: {} for kind in KEYS}

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Save):
                for change in effect.changes:
                    if isinstance(change, Put):
                        kind = type(change.record)
                        key = tuple(getattr(change.record, name) for name in KEYS[kind])
                        self.records[kind][key] = change.record
                    else:
                        rows = self.records[change.kind]
                        for key, record in list(rows.items()):
                            if all(getattr(record, k) == v for k, v in change.where.items()):
                                del rows[key]

    def of(self, kind: type[Any]) -> list[Any]:
        return list(self.records[kind].values())


def entropy() -> Any:
    """Bytes that are never the same twice, the same in every run."""
    numbers = count(1)
    return lambda n: next(numbers).to_bytes(n, "big")


def new_record(settings: Settings | None = None, host: int = 1) -> SpaceRecord:
    return SpaceRecord(
        id="room",
        host=host,
        title="a title",
        settings=msgspec.msgpack.encode(settings or Settings()),
        state=SpaceState.LIVE.value,
        starts_s=START.utc_s,
        ended_s=0,
    )


class Scene:
    """A space whose host is account 1, and those who ask something of it.  image: what was saved.
    heard: the last effects."""

    def __init__(self, settings: Settings | None = None, **rules: Any) -> None:
        self.town = Town()
        self.image = Image()
        self.rules = SpaceRules(**rules)
        self.space = Space(new_record(settings), self.town, entropy(), self.rules)
        self.now = START
        self.askers: dict[int, Asker] = {}
        self.host = self._entered(self.town.asker(1), None)

    def _entered(self, asker: Asker, request: frames.Join | None) -> int:
        member, self.heard = self.space.enter(asker, request, self.now)
        assert not any(isinstance(effect, Answer) for effect in self.heard)
        self.askers[member] = asker
        self.image.take(self.heard)
        return member

    def enters(
        self,
        who: int | str,
        invite: str | None = None,
        *,
        device: int = 0,
        host: bytes = b"",
        **fields: Any,
    ) -> int:
        if invite is not None:
            fields["invite"] = invite
        if isinstance(who, str):
            fields.setdefault("name", who)
        request = frames.Join(id=ID, space="room", **fields)
        return self._entered(self.town.asker(who, device, host), request)

    def locked_out(self, code: ErrorCode, who: int | str, *args: Any, **fields: Any) -> str:
        """Entering is refused, and nothing is changed by it.  -> the text"""
        before = state(self.space)
        with pytest.raises(RefusedError) as error:
            self.enters(who, *args, **fields)
        assert error.value.code == code
        assert state(self.space) == before
        return str(error.value)

    def does(self, actor: int, kind: type[frames.Request], /, **fields: Any) -> list[Effect]:
        """Carries a request out, checks that it is answered exactly once, first and to the id, and
        that all it saves is saved together.  -> the effects without the answer"""
        request = kind(id=ID, **fields)
        effects = self.space.handle(actor, self.askers[actor], request, self.now)
        answers = [e.frame for e in effects if isinstance(e, Answer)]
        assert len(answers) == 1
        assert isinstance(effects[0], Answer)
        self.answer = answers[0]
        assert isinstance(self.answer, frames.Reply)
        assert self.answer.re == ID
        assert sum(isinstance(e, Save) for e in effects) <= 1
        self.image.take(effects)
        return effects[1:]

    def asks(self, actor: int, kind: type[frames.Request], /, **fields: Any) -> Any:
        """-> the answer"""
        self.does(actor, kind, **fields)
        return self.answer

    def refused(
        self, code: ErrorCode, actor: int, kind: type[frames.Request], /, **fields: Any
    ) -> RefusedError:
        """The request is refused, and nothing is changed by it."""
        before = state(self.space)
        with pytest.raises(RefusedError) as error:
            self.space.handle(actor, self.askers[actor], kind(id=ID, **fields), self.now)
        assert error.value.code == code
        assert str(error.value)
        assert state(self.space) == before
        return error.value

    def after(self, seconds: float) -> list[Effect]:
        """So much later than now, with a tick.  -> its effects"""
        self.now = Moment(self.now.ns + int(seconds * S), self.now.utc_s + int(seconds))
        return self.took(self.space.tick(self.now))

    def took(self, effects: list[Effect]) -> list[Effect]:
        """Effects that are no request's."""
        assert not any(isinstance(effect, Answer) for effect in effects)
        self.image.take(effects)
        return effects

    def invite(self, role: Role = Role.SPEAKER, **fields: Any) -> str:
        token = self.asks(self.host, frames.MakeInvite, role=role, **fields).invite
        assert isinstance(token, str)
        return token

    def speaker(self, who: int) -> int:
        """Somebody new who was brought up."""
        member = self.enters(who)
        self.does(member, frames.RaiseHand)
        self.does(self.host, frames.BringUp, member=member)
        return member

    def co_host(self, who: int) -> int:
        member = self.speaker(who)
        self.does(self.host, frames.Appoint, member=member)
        return member

    def restored(self) -> Space:
        """The space that a restarted server makes of what was saved."""
        (record,) = self.image.of(SpaceRecord)
        return restore(record, self.image, self.town, self.rules, self.now)


def restore(record: SpaceRecord, image: Image, town: Town, rules: SpaceRules, now: Moment) -> Space:
    return Space.restore(
        record,
        image.of(StageRecord),
        image.of(RemovalRecord),
        image.of(InviteRecord),
        town,
        entropy(),
        rules,
        now,
    )


def state(thing: Any) -> Any:
    """Everything that an object knows, down to its last part, to be compared later."""
    if isinstance(thing, dict):
        return [(key, state(value)) for key, value in thing.items()]
    if isinstance(thing, list | tuple) or type(thing).__name__ == "deque":
        return [state(value) for value in thing]
    if isinstance(thing, set | frozenset):
        return frozenset(thing)
    if is_dataclass(thing):
        return [(f.name, state(getattr(thing, f.name))) for f in fields(thing)]
    if hasattr(thing, "__dict__") and not callable(thing) and not isinstance(thing, Town):
        return state(vars(thing))
    return thing
