"""Who is in a live space: coming and going, places on stage, who hears whom, what all are told.

What is durable is the space's record, the places on its stage, its removals and its invites.  All
else (who listens, hands, chat, reactions, volumes) is here alone, and gone with the space.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol, Self

import msgspec
from msgspec import UNSET

from protocol import frames
from protocol.frames import ErrorCode, Member, Settings, Snapshot, SpaceState, Visibility
from protocol.roles import Role
from spaces_server.policy.asking import clean_text
from spaces_server.policy.effects import (
    Answer,
    Asker,
    Effect,
    GainSet,
    Left,
    Moment,
    RefusedError,
    Save,
    SourceAdded,
    SourceRemoved,
    SpaceEnded,
    Staged,
    Tell,
    Who,
)
from spaces_server.policy.feed import Feed
from spaces_server.policy.invites import Invites
from spaces_server.policy.stage import Stage
from spaces_server.policy.talk import Chat, Reactions
from spaces_server.policy.volumes import Volumes
from spaces_server.records import (
    AccountRecord,
    Change,
    DeviceRecord,
    Drop,
    InviteRecord,
    Put,
    RemovalRecord,
    SpaceRecord,
    StageRecord,
)

SEATS = 256  # numbers that seats go through; far more than any stage, so none is reused soon
MAX_STAGE = 32
MAX_EMOJI_BYTES = 24
SECOND_NS = 1_000_000_000
NOBODY: frozenset[int] = frozenset()


class Relations(Protocol):
    """What a space must know of people."""

    def blocks(self, account: int) -> AbstractSet[int]:
        """With whom there is a block, in either direction."""
        ...

    def has_blocked(self, blocker: int, blocked: int) -> bool: ...

    def follows(self, follower: int, followed: int) -> bool: ...

    def account(self, account: int) -> AccountRecord: ...

    def find(self, handle: str) -> AccountRecord:
        """Raises RefusedError."""
        ...

    def devices_of(self, account: int) -> Sequence[DeviceRecord]: ...


@dataclass(frozen=True, slots=True)
class SpaceRules:
    """What one server takes in a space.  stage_size: host included.  grace_s: how long the place
    of somebody on stage is kept whose session was lost.  evidence: what is said on stage is kept
    for 30 s, for reports.  Raises ValueError for what cannot be."""

    stage_size: int = 13
    co_hosts: int = 2
    max_members: int = 20_000
    grace_s: int = 60
    reactions: tuple[str, ...] = ("❤️", "😂", "👏", "🔥", "💯", "😮")
    evidence: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.stage_size <= MAX_STAGE:
            raise ValueError(f"a stage has 1 to {MAX_STAGE} places, not {self.stage_size}")
        if len(self.reactions) != 6 or len(set(self.reactions)) != 6:
            raise ValueError("a space has six different reactions")
        if not all(0 < len(emoji.encode()) <= MAX_EMOJI_BYTES for emoji in self.reactions):
            raise ValueError(f"a reaction is one emoji of at most {MAX_EMOJI_BYTES} bytes")


@dataclass(slots=True, eq=False)
class Person:
    """Somebody who is in the space now.  account: 0 for a guest.  host: what of the address they
    came from stands for whoever is behind it.  clock: how their audio lies on the server's, as they
    say (protocol/clock.py)."""

    id: int
    who: Who
    account: int
    name: str
    handle: str = ""
    host: bytes = b""
    place: StageRecord | None = None
    seat: int | None = None
    hand: int = 0
    clock: int | None = None

    @property
    def role(self) -> Role:
        if self.place is not None:
            return Role(self.place.role)
        return Role.LISTENER if self.account else Role.GUEST

    @property
    def listed(self) -> bool:
        """Whether the feed tells of this person by name."""
        return self.place is not None or self.hand > 0

    @property
    def speaks(self) -> bool:
        return self.place is not None and not self.place.muted

    def view(self) -> Member:
        return Member(
            id=self.id,
            name=self.name,
            handle=self.handle,
            role=self.role,
            seat=UNSET if self.seat is None else self.seat,
            muted=self.place is not None and self.place.muted,
            held=self.place is not None and self.place.held,
            hand=self.hand,
        )


class Gathering:
    """A space without what its members may ask.  entropy: for invite tokens."""

    def __init__(
        self,
        record: SpaceRecord,
        relations: Relations,
        entropy: Callable[[int], bytes],
        rules: SpaceRules = SpaceRules(),
        *,
        stage: Sequence[StageRecord] = (),
        removals: Sequence[RemovalRecord] = (),
        invites: Sequence[InviteRecord] = (),
    ) -> None:
        self.record = record
        self.settings = msgspec.msgpack.decode(record.settings, type=Settings)
        self.feed = Feed(record.id, record.title, self.settings)
        self._relations = relations
        self._rules = rules
        self._out: list[Effect] = []  # of the request that is being carried out
        self._changes: list[Change] = []

        self._members: dict[int, Person] = {}
        self._ids: list[int] = []  # of the members, ascending
        self._by_who: dict[Who, Person] = {}
        self._listed: dict[int, Person] = {}
        self._last_id = 0
        self._last_seat = -1

        self._stage = Stage(record.id, rules.stage_size, rules.co_hosts, stage)
        self._offers: dict[int, Person] = {}  # member -> who offered
        # Removals are kept for as long as the space lives: a limit would let somebody back in.
        self._removed: set[Who] = {r.account or r.key for r in removals}
        self._removed_hosts: set[bytes] = set()  # where they came from: no guest comes from there
        self._lost: dict[Who, int] = {}  # listeners whose session was lost, until when, in order
        self._invites = Invites(record.id, entropy, invites)

        self._chat = Chat()
        self._reactions = Reactions()
        self._volumes = Volumes()

    @classmethod
    def restore(
        cls,
        record: SpaceRecord,
        stage: list[StageRecord],
        removals: list[RemovalRecord],
        invites: list[InviteRecord],
        relations: Relations,
        entropy: Callable[[int], bytes],
        rules: SpaceRules,
        now: Moment,
    ) -> Self:
        """After a restart of the server: nobody is here yet, and the places on stage are kept."""
        space = cls(
            record, relations, entropy, rules, stage=stage, removals=removals, invites=invites
        )
        for place in stage:
            space._keep_place(place.account, now)
        return space

    # -- what is seen --------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._members)

    @property
    def ended(self) -> bool:
        return self.record.state == SpaceState.ENDED

    @property
    def listeners(self) -> int:
        return len(self._members) - (len(self._stage) - len(self._stage.absent))

    def view(self, member: int) -> Member:
        return self._members[member].view()

    def speaks(self, member: int) -> bool:
        return self._members[member].speaks

    def member_of(self, who: Who) -> int | None:
        person = self._by_who.get(who)
        return None if person is None else person.id

    def stage_accounts(self) -> frozenset[int]:
        """Who is on stage, and here."""
        return self._stage.present()

    def hosts(self) -> frozenset[int]:
        """The host and the co-hosts who are here."""
        hosts = (Role.HOST, Role.CO_HOST)
        return frozenset(a for a in self._stage.present() if self._stage.role(a) in hosts)

    def snapshot(self) -> Snapshot:
        """As of the feed's newest update; so the listeners are those that were told."""
        return Snapshot(
            number=self.feed.number,
            title=self.record.title,
            settings=self.settings,
            members=[p.view() for p in self._listed.values()],
            listeners=self.feed.listeners,
        )

    def joined(self, request_id: int, member: int) -> frames.Joined:
        """The answer to whoever has just entered as this member."""
        return frames.Joined(
            re=request_id,
            space=self.record.id,
            you=self.view(member),
            snapshot=self.snapshot(),
            reactions=list(self._rules.reactions),
            evidence=self._rules.evidence,
        )

    # -- coming --------------------------------------------------------------------------------

    def check_entry(self, asker: Asker, request: frames.Join, now: Moment) -> InviteRecord | None:
        """-> the invite that is used if the asker enters now.  Raises RefusedError if they may
        not.  Changes nothing."""
        self._check_open()
        who = asker.who
        account = 0 if asker.account is None else asker.account.id
        host = self.record.host
        if not self._removed.isdisjoint((asker.key, *self._known_as(who))) or (
            not account and asker.host and asker.host in self._removed_hosts
        ):
            raise RefusedError(ErrorCode.REMOVED)
        if account and self._relations.has_blocked(host, account):
            raise RefusedError(ErrorCode.BLOCKED, "the host of this space has blocked you")
        if not account:
            clean_text(request.name, frames.MAX_NAME_CHARS)
        place = self._stage.places.get(account)
        here = who in self._by_who
        invite = None
        admitted = place is not None or here or account == host
        if place is None and isinstance(request.invite, str):
            invite = self._invites.check(request.invite, who, now)
            admitted = True
        if (
            not admitted
            and self.settings.visibility == Visibility.FOLLOWERS
            and not self._relations.follows(account, host)
        ):
            raise RefusedError(ErrorCode.FOLLOWERS_ONLY)
        taken = len(self._members) + len(self._stage.absent)
        if not here and place is None and taken >= self._rules.max_members:
            raise RefusedError(ErrorCode.SPACE_FULL)
        if invite is not None and Role(invite.role).on_stage:
            if not account:
                raise RefusedError(ErrorCode.NO_ACCOUNT, "to speak, one needs an account")
            self._stage.check_room(Role(invite.role))
        if account and not request.despite_blocked:
            self._check_stage(account)
        return invite

    def expects(self, asker: Asker, now: Moment) -> bool:
        """Whether this is no newcomer: they are here, or were until their session was lost a while
        ago, or have a place on stage, or are the host."""
        who = asker.who
        return (
            who in self._by_who
            or who in self._stage.places
            or who == self.record.host
            or self._lost.get(who, now.ns) > now.ns
        )

    def _check_stage(self, account: int) -> None:
        """Whoever is about to hear somebody whom they blocked is warned first."""
        blocked = [
            p.name
            for p in self._listed.values()
            if p.place is not None and self._relations.has_blocked(account, p.account)
        ]
        if blocked:
            raise RefusedError(
                ErrorCode.SOMEONE_BLOCKED,
                f"on stage there is somebody whom you blocked ({', '.join(blocked)}); "
                "join again to go on, you will not hear them",
            )

    def enter(
        self, asker: Asker, request: frames.Join | None, now: Moment
    ) -> tuple[int, list[Effect]]:
        """-> (member, effects without the answer).  request: None for the host who opens the
        space.  Raises RefusedError.  Whoever is here already, on another device, leaves first;
        the role and what goes with it stay, also those of a place that is kept."""
        invite = None if request is None else self.check_entry(asker, request, now)
        who, account = asker.who, asker.account
        before = self._by_who.get(who)
        if before is not None:
            self._go(before)
        self._last_id += 1
        if account is not None:
            name, handle = account.name, account.handle
            person = Person(self._last_id, who, account.id, name, handle, asker.host)
        else:
            assert request is not None, "a guest opens no space"
            name = clean_text(request.name, frames.MAX_NAME_CHARS)
            person = Person(self._last_id, who, 0, name, host=asker.host)
        self._members[person.id] = person
        self._ids.append(person.id)
        self._by_who[who] = person
        self._stage.absent.pop(person.account, None)
        self._lost.pop(who, None)
        if invite is not None:
            self._changes += self._invites.use(invite, who)
        self._hear(person)
        if request is None:
            self._changes.append(Put(self.record))
            self._come_up(person.account, Role.HOST)
        elif invite is not None and Role(invite.role).on_stage:
            self._come_up(person.account, Role(invite.role))
        elif person.account in self._stage.places:
            self._seat(person)
        return person.id, self._done(now)

    # -- going ---------------------------------------------------------------------------------

    def leave(self, member: int, now: Moment) -> list[Effect]:
        """A member goes.  The host's going ends the space if no co-host is there."""
        self._leave(self._members[member], now)
        return self._done(now)

    def lost(self, member: int, now: Moment) -> list[Effect]:
        """A member's session is gone.  A place on stage is kept for a while, and so is a
        listener's, if there are too many."""
        person = self._members[member]
        self._go(person)
        if person.account in self._stage.places:
            self._keep_place(person.account, now)
        else:
            self._expect_again(person.who, now)
        return self._done(now)

    def remove(self, who: Who, moderator: int, now: Moment, text: str) -> list[Effect]:
        """Somebody is out for good, whether they are here or not.  moderator: an account."""
        self._remove(who, moderator, now, text)
        return self._done(now)

    def expel(self, accounts: AbstractSet[int], now: Moment) -> list[Effect]:
        """These are banned from the server: out at once, no place is kept, and their invites are
        worth nothing."""
        here = [person for person in self._members.values() if person.account in accounts]
        for person in here:
            self._go(person)
        self._withdraw(accounts)
        # All have gone before anybody inherits, or one of them would.
        for account in [account for account in self._stage.places if account in accounts]:
            self._vacate(account, "the host is gone", now)
        return self._done(now)

    def guests_out(self, text: str, now: Moment) -> list[Effect]:
        """Whoever is here without an account is so no longer; they may come again when the server
        takes them again."""
        for person in [person for person in self._members.values() if not person.account]:
            self._out.append(Tell(person.id, frames.Removed(space=self.record.id, text=text)))
            self._go(person)
        return self._done(now)

    def _withdraw(self, accounts: AbstractSet[int]) -> None:
        """What somebody has given away who is out for good is worth nothing."""
        for member in [member for member, by in self._offers.items() if by.account in accounts]:
            del self._offers[member]
        self._changes += self._invites.revoke_of(accounts)

    def end(self, text: str, now: Moment) -> list[Effect]:
        if not self.ended:
            self._end(text, now)
        return self._done(now)

    def _leave(self, person: Person, now: Moment) -> None:
        self._go(person)
        self._vacate(person.account, "the host has left", now)

    def _go(self, person: Person) -> None:
        """A person is no longer here; the place, if there is one, stays."""
        del self._members[person.id]
        del self._ids[bisect_left(self._ids, person.id)]
        del self._by_who[person.who]
        self._offers.pop(person.id, None)
        if not person.account:
            self._volumes.forget(person.who)  # a guest is somebody else with every key
        if person.place is not None:
            self._stage.absent[person.account] = 0
        if person.speaks:
            self._out.append(SourceRemoved(person.id))
        if self._listed.pop(person.id, None) is not None:
            self.feed.add(frames.GoneUpdate(id=person.id))
        self._out.append(Left(person.id))

    def _keep_place(self, account: int, now: Moment) -> None:
        self._stage.absent[account] = now.ns + self._rules.grace_s * SECOND_NS

    def _expect_again(self, who: Who, now: Moment) -> None:
        lost = self._lost
        lost[who] = now.ns + self._rules.grace_s * SECOND_NS
        while len(lost) > self._rules.max_members or next(iter(lost.values())) <= now.ns:
            del lost[next(iter(lost))]

    def _vacate(self, account: int, text: str, now: Moment) -> None:
        """A place on stage is free again, if this account had one.  text: why the space ends, if
        it was the host's and nobody inherits."""
        if account not in self._stage.places:
            return
        was_host = self._stage.role(account) is Role.HOST
        self._changes += self._stage.drop(account)
        if not was_host:
            return
        heirs = [p for p in self._listed.values() if p.role is Role.CO_HOST]
        if not heirs:
            self._end(text, now)
            return
        heir = min(heirs, key=lambda p: p.place.order if p.place is not None else 0)
        self._make_host(heir)
        self._tell_you(heir)

    def _remove(self, who: Who, moderator: int, now: Moment, text: str) -> None:
        if self.ended or who in self._removed:
            return
        account, key = (who, b"") if isinstance(who, int) else (0, who)
        self._removed.add(who)
        self._changes.append(
            Put(
                RemovalRecord(
                    space=self.record.id,
                    account=account,
                    key=key,
                    moderator=moderator,
                    at_s=now.utc_s,
                )
            )
        )
        for name in self._known_as(who):
            person = self._by_who.get(name)
            if person is not None:
                self._out.append(Tell(person.id, frames.Removed(space=self.record.id, text=text)))
                if person.host:
                    self._removed_hosts.add(person.host)
                self._go(person)
        if account:
            self._withdraw({account})
        self._vacate(account, "the host is gone", now)

    def _known_as(self, who: Who) -> list[Who]:
        """Somebody, and as whom they may be here too, or have been removed: a guest who got an
        account since."""
        keys = self._relations.devices_of(who) if isinstance(who, int) else ()
        return [who, *(device.key for device in keys)]

    def _end(self, text: str, now: Moment) -> None:
        """Nothing is left but what is listed in the policy: that it took place, and removals."""
        self.record = msgspec.structs.replace(
            self.record, state=SpaceState.ENDED.value, ended_s=now.utc_s
        )
        of_space: dict[str, object] = {"space": self.record.id}
        self._changes += [
            Put(self.record),
            Drop(StageRecord, of_space),
            Drop(InviteRecord, of_space),
        ]
        self._out += [
            Tell(member, frames.Ended(space=self.record.id, text=text)) for member in self._members
        ]
        self._out.append(SpaceEnded(text))
        self.feed = Feed(self.record.id, self.record.title, self.settings)
        self._stage = Stage(self.record.id, 0, 0, ())
        self._chat, self._reactions, self._volumes = Chat(), Reactions(), Volumes()
        for memory in (
            self._members,
            self._ids,
            self._by_who,
            self._listed,
            self._offers,
            self._removed_hosts,
            self._lost,
        ):
            memory.clear()

    # -- time, and what others change ----------------------------------------------------------

    @property
    def due_ns(self) -> int | None:
        """When `tick` and `batches` have something to do."""
        times = [*self._stage.absent.values()]
        if self.feed.due_ns is not None:
            times.append(self.feed.due_ns)
        return min(times, default=None)

    def tick(self, now: Moment) -> list[Effect]:
        """Places on stage that were kept for long enough are free again."""
        for account, until_ns in list(self._stage.absent.items()):
            if until_ns <= now.ns:
                self._vacate(account, "the host is gone", now)
        return self._done(now)

    def batches(self, now_ns: int) -> list[tuple[bytes, list[int] | None]]:
        """The plaintexts of FEED datagrams that are due, and the members to whom each goes (None:
        to all).  What is merged goes with them: reactions, and how many listen."""
        if self.feed.due_ns is None or now_ns < self.feed.due_ns:
            return []
        if self._reactions.pending:
            self.feed.add(*self._reactions.take())
        if self.listeners != self.feed.listeners:
            self.feed.add(frames.ListenersUpdate(count=self.listeners))
        return self.feed.take(
            lambda author: [p.id for p in self._blocked_with(author)], self._members
        )

    def blocks_changed(self, one: int, other: int, now: Moment) -> list[Effect]:
        """There is a block between two accounts now, or none any more.  Whom the host blocks is
        out."""
        for blocker, blocked in ((one, other), (other, one)):
            present = blocked in self._stage.places or not self._by_who.keys().isdisjoint(
                self._known_as(blocked)
            )
            if (
                present
                and blocker == self.record.host
                and self._relations.has_blocked(blocker, blocked)
            ):
                self._remove(blocked, blocker, now, "the host of this space has blocked you")
        first, second = self._by_who.get(one), self._by_who.get(other)
        if first is not None and second is not None:
            for hearer, source in ((first, second), (second, first)):
                self._out.append(GainSet(hearer.id, source.id, self._gain(hearer, source)))
                if source.place is not None:
                    self._warn(hearer, source)
        return self._done(now)

    def renamed(self, account: int, now: Moment) -> list[Effect]:
        person = self._by_who.get(account)
        if person is not None:
            record = self._relations.account(account)
            person.name, person.handle = record.name, record.handle
            self._changed(person)
            self._tell_you(person)
        return self._done(now)

    def _done(self, now: Moment, *answer: Answer) -> list[Effect]:
        """What has come out of a call, in order; what it stores is one Save."""
        effects: list[Effect] = [*answer]
        if self._changes:
            effects.append(Save(tuple(self._changes)))
        effects += self._out
        self._out, self._changes = [], []
        if (
            self.feed.number != self.feed.sent
            or self._reactions.pending
            or self.listeners != self.feed.listeners
        ):
            self.feed.wake(now.ns, len(self._members))
        return effects

    # -- places on stage -----------------------------------------------------------------------

    def _staged(self, account: int, changes: list[Change]) -> None:
        """A place has changed: it is stored, and told to all if its owner is here."""
        self._changes += changes
        person = self._by_who.get(account)
        if changes and person is not None:
            self._seat(person)

    def _come_up(self, account: int, role: Role, *, forgiven: bool = False) -> None:
        self._staged(account, self._stage.add(account, role, forgiven=forgiven))

    def _set_role(self, person: Person, role: Role) -> None:
        self._staged(person.account, self._stage.set_role(person.account, role))

    def _make_host(self, person: Person) -> None:
        self.record = msgspec.structs.replace(self.record, host=person.account)
        self._changes.append(Put(self.record))
        self._set_role(person, Role.HOST)

    def _seat(self, person: Person) -> None:
        """A person who is here has another place from now on, or none."""
        place = self._stage.places.get(person.account)
        spoke, was_on_stage = person.speaks, person.place is not None
        person.place = place
        if place is None:
            person.seat = None
        elif not was_on_stage:
            person.seat = self._next_seat()
            person.hand = 0
            self._offers.pop(person.id, None)
        self._changed(person)
        on_stage = place is not None
        if on_stage is not was_on_stage:
            self._out.append(Staged(person.id, on_stage))
        if person.speaks and not spoke:
            self._sound(person)
        elif spoke and not person.speaks:
            self._out.append(SourceRemoved(person.id))
        if on_stage and not was_on_stage:
            for hearer in self._blocked_with(person.account):
                self._warn(hearer, person)

    def _next_seat(self) -> int:
        taken = {p.seat for p in self._listed.values()}
        while True:
            self._last_seat = (self._last_seat + 1) % SEATS
            if self._last_seat not in taken:
                return self._last_seat

    # -- changes, each told to all -------------------------------------------------------------

    def _changed(self, person: Person) -> None:
        was_listed = person.id in self._listed
        if person.listed:
            self._listed[person.id] = person
        else:
            self._listed.pop(person.id, None)
        if was_listed or person.listed:
            self.feed.add(frames.MemberUpdate(member=person.view()))

    def _set_hand(self, person: Person, hand: int) -> None:
        if bool(person.hand) != bool(hand):
            person.hand = hand
            self._changed(person)

    def _tell_you(self, person: Person) -> None:
        self._out.append(Tell(person.id, frames.You(space=self.record.id, you=person.view())))

    # -- who hears whom ------------------------------------------------------------------------

    def _gain(self, hearer: Person, source: Person) -> float:
        if hearer.account and source.account in self._relations.blocks(hearer.account):
            return 0.0
        return self._volumes.of(hearer.who, source.who) / 100

    def _blocked_with(self, account: int) -> list[Person]:
        """Who is here and has a block between them and this account, in the order of entering."""
        blocked = self._relations.blocks(account) & self._by_who.keys() if account else NOBODY
        return sorted((self._by_who[other] for other in blocked), key=lambda p: p.id)

    def _sound(self, source: Person) -> None:
        """From now on this person is mixed, and for some not as they are."""
        assert source.seat is not None
        self._out.append(SourceAdded(source.id, source.seat))
        others = self._volumes.hearers(source.who) & self._by_who.keys()
        hearers = {p.id for p in self._blocked_with(source.account)}
        for hearer in sorted(hearers | {self._by_who[who].id for who in others}):
            gain = self._gain(self._members[hearer], source)
            self._out.append(GainSet(hearer, source.id, gain))

    def _hear(self, hearer: Person) -> None:
        """From now on this person hears the stage."""
        own = [self._by_who.get(who) for who in self._volumes.set_by(hearer.who)]
        sources = {p.id: p for p in (*self._blocked_with(hearer.account), *own) if p is not None}
        for source in (sources[number] for number in sorted(sources)):
            if source.speaks:
                self._out.append(GainSet(hearer.id, source.id, self._gain(hearer, source)))

    def _warn(self, hearer: Person, source: Person) -> None:
        if self._relations.has_blocked(hearer.account, source.account):
            self._out.append(
                Tell(hearer.id, frames.BlockedOnStage(space=self.record.id, member=source.id))
            )

    def _check_open(self) -> None:
        if self.ended:
            raise RefusedError(ErrorCode.SPACE_ENDED)
