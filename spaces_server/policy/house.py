"""The house: all policy of a server, joined.

People, the programme of spaces, the live spaces, mail, posts and reports each decide about their
own; what one of them wants from another (an invitation is a message, a ban empties seats) comes
out of it as an effect and is expanded here.  What is left, each with the space that it concerns,
is for the node: answers, notices, what is to be stored, who is mixed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec import UNSET

from protocol import frames
from protocol.frames import Access, ErrorCode
from spaces_server.policy.desk import Desk
from spaces_server.policy.effects import (
    Answer,
    Asker,
    BlocksChanged,
    CloseSessions,
    DeviceRemoved,
    Effect,
    EndSpace,
    Entered,
    Expelled,
    GuestsOut,
    Invited,
    Keep,
    Moment,
    RefusedError,
    RemoveFromSpace,
    Renamed,
    Save,
    SpaceEnded,
    TellAccount,
)
from spaces_server.policy.limits import RateLimits
from spaces_server.policy.mail import Mail
from spaces_server.policy.people import People
from spaces_server.policy.posts import Posts
from spaces_server.policy.programme import LiveInfo, Programme
from spaces_server.policy.space import Space, SpaceRules
from spaces_server.policy.volumes import AS_IT_IS
from spaces_server.records import InviteRecord, Loaded, RemovalRecord, StageRecord

IN_A_SPACE = frozenset({
    *frames.SPACE_REQUESTS, frames.MakeInvite, frames.ListInvites, frames.RevokeInvite,
    frames.InvitePerson,
}) - {frames.Open, frames.Join}  # fmt: skip
OF_PEOPLE = frozenset(frames.PEOPLE_REQUESTS)
OF_PROGRAMME = frozenset({
    frames.ListSpaces, frames.ListUpcoming, frames.GetSpace, frames.Schedule,
    frames.CancelSpace, frames.Remind,
})  # fmt: skip
OF_MAIL = frozenset({frames.SendMessage, frames.ListMessages})
OF_POSTS = frozenset({
    frames.NotePart, frames.Post, frames.DeletePost, frames.Home, frames.PublicPosts,
    frames.GetNote,
})  # fmt: skip
OF_DESK = frozenset(frames.SAFETY_REQUESTS)
OPEN_TO_GUESTS = frozenset({
    frames.ListSpaces, frames.ListUpcoming, frames.GetSpace, frames.PublicPosts, frames.GetNote,
})  # fmt: skip
OPEN_TO_THE_WAITING = frozenset({frames.ListMessages, frames.Report})  # an account will do
CHORES_NS = 10 * 1_000_000_000  # what is looked after by date
FULL = "the server is full for now: with one more the sound would break up for all; try again later"
TOO_BUSY = "the server is too busy for another mix of one's own now; try again later"
RETRY_MS = 10_000  # what the server carries does not change sooner


@dataclass(frozen=True, slots=True)
class HouseRules:
    """How a server is run.  guests: may people without an account listen.  access: who may use
    the spaces of a new server.  evidence_days: how long what is sealed with a report is kept.
    limited_rates: off for demonstrations and benchmarks, whose people all come from one address."""

    guests: bool = True
    access: Access = Access.OPEN
    max_spaces: int = 1_000
    evidence_days: int = 14
    limited_rates: bool = True
    space: SpaceRules = field(default_factory=SpaceRules)


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody is."""

    space: str
    member: int


OfSpace = TypeVar("OfSpace", StageRecord, RemovalRecord, InviteRecord)
Placed = tuple[str, Effect]  # the space that the effect concerns; "" for none
Recording = Callable[[Place], list[tuple[int, bytes]]]


class House:
    """present: whether somebody of an account is connected.  recording: what a member said last,
    as (timestamp, Opus) packets.  crowded: whether one more in this space (empty: in a new one), or
    one more mix for it, is more than the server can carry now."""

    def __init__(
        self,
        loaded: Loaded,
        now: Moment,
        *,
        entropy: Callable[[int], bytes],
        rules: HouseRules,
        present: Callable[[int], bool],
        recording: Recording,
        crowded: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.people = People(loaded, entropy, guests=rules.guests, access=rules.access)
        self.programme = Programme(loaded, self.people, self._live, entropy)
        self.mail = Mail(loaded, self.people, present)
        self.posts = Posts(loaded, self.people, self.programme)
        self.desk = Desk(
            loaded, self.people, self.programme, entropy, evidence_days=rules.evidence_days
        )
        self.rates = RateLimits() if rules.limited_rates else None
        self.spaces: dict[str, Space] = {}
        self._entropy = entropy
        self._rules = rules
        self._recording = recording
        self._crowded = crowded
        self.refused_joins = 0  # because it was
        self._chores_ns = now.ns
        stages = _by_space(loaded.of(StageRecord))
        removals = _by_space(loaded.of(RemovalRecord))
        invites = _by_space(loaded.of(InviteRecord))
        for record in self.programme.live_records():
            self.spaces[record.id] = Space.restore(
                record,
                stages.get(record.id, []),
                removals.get(record.id, []),
                invites.get(record.id, []),
                self.people,
                entropy,
                rules.space,
                now,
            )

    def _live(self, space_id: str) -> LiveInfo | None:
        space = self.spaces.get(space_id)
        if space is None:
            return None
        return LiveInfo(space.listeners, space.stage_accounts(), space.hosts())

    # -- requests ------------------------------------------------------------------------------

    def handle(
        self, asker: Asker, place: Place | None, request: frames.Request, now: Moment
    ) -> list[Placed]:
        """-> what is to happen, with exactly one Answer or Ask.  Raises RefusedError, and then
        nothing has changed."""
        if self.rates is not None and not asker.operator:
            self.rates.check(asker, request, now.ns)
        kind = type(request)
        account = asker.account
        if account is not None and kind is not frames.WhoAmI and self.people.banned(account.id):
            self.people.require(asker)
        if kind in IN_A_SPACE:
            if place is None:
                raise RefusedError(ErrorCode.NOT_JOINED)
            space = self.spaces[place.space]
            if isinstance(request, frames.SetVolume) and request.percent != AS_IT_IS:
                self._check_mix(place.space)
            return self._expand(place.space, space.handle(place.member, asker, request, now), now)
        if kind in OF_PEOPLE:
            return self._expand("", self.people.handle(asker, request, now), now)
        if isinstance(request, frames.Report) and request.member is not UNSET:
            return self._report_member(asker, place, request, now)
        if isinstance(request, frames.Open | frames.Join):
            if place is not None:
                raise RefusedError(ErrorCode.ALREADY_JOINED)
            if isinstance(request, frames.Open):
                return self._open(asker, request, now)
            return self._join(asker, request, now)
        if not asker.operator:
            self._require(asker, kind)
        policy = (
            self.programme
            if kind in OF_PROGRAMME
            else self.mail
            if kind in OF_MAIL
            else self.posts
            if kind in OF_POSTS
            else self.desk
        )
        return self._expand("", policy.handle(asker, request, now), now)

    def _require(self, asker: Asker, kind: type[frames.Request]) -> None:
        if asker.account is not None and kind in OPEN_TO_THE_WAITING:
            return
        if asker.account is None and kind in OPEN_TO_GUESTS:
            self.people.require_listener(asker)
        else:
            self.people.require(asker)

    def _open(self, asker: Asker, request: frames.Open, now: Moment) -> list[Placed]:
        self.people.require(asker)
        if len(self.spaces) >= self._rules.max_spaces:
            raise RefusedError(ErrorCode.SERVER_FULL)
        self._check_room("")
        record, effects = self.programme.open(asker, request, now)
        space = Space(record, self.people, self._entropy, self._rules.space)
        self.spaces[record.id] = space
        member, entering = space.enter(asker, None, now)
        answer = Answer(space.joined(request.id, member))
        return self._expand(record.id, [Entered(member), answer, *effects, *entering], now)

    def _join(self, asker: Asker, request: frames.Join, now: Moment) -> list[Placed]:
        space = self.spaces.get(self.programme.get(request.space).id)
        if space is None:
            raise RefusedError(ErrorCode.SPACE_ENDED)
        account = asker.account
        granted: list[Effect] = []
        if account is None:
            self.people.require_listener(asker)
        invite = space.check_entry(asker, request, now)
        if not space.expects(asker, now):
            self._check_room(space.record.id)
        if account is not None:
            if invite is not None:
                granted = self.people.grant_by_invitation(account.id, invite.issuer, now)
            self.people.require(asker)
        member, entering = space.enter(asker, request, now)
        answer = Answer(space.joined(request.id, member))
        entered = Entered(member, request.packet_ms)
        return self._expand(request.space, [entered, answer, *granted, *entering], now)

    def _check_room(self, space_id: str) -> None:
        """Newcomers are refused before those who are in have to hear that there are too many."""
        if self._crowded(space_id):
            self.refused_joins += 1
            raise RefusedError(ErrorCode.UNAVAILABLE, FULL, RETRY_MS)

    def _check_mix(self, space_id: str) -> None:
        """A volume that somebody sets for themselves alone may be one more encode.  (A block may be
        too, but it is not for the server to keep people from that.)"""
        if self._crowded(space_id):
            raise RefusedError(ErrorCode.UNAVAILABLE, TOO_BUSY, RETRY_MS)

    def _report_member(
        self, asker: Asker, place: Place | None, request: frames.Report, now: Moment
    ) -> list[Placed]:
        if place is None:
            raise RefusedError(ErrorCode.NOT_JOINED)
        assert isinstance(request.member, int)
        who = self.spaces[place.space].reported(place.member, request.member)
        recording = self._recording(Place(place.space, request.member))
        effects = self.desk.report_member(asker, request, who, place.space, recording, now)
        return self._expand(place.space, effects, now)

    # -- what happens without a request --------------------------------------------------------

    def lost(self, place: Place, now: Moment) -> list[Placed]:
        """The member's session is gone."""
        return self._expand(place.space, self.spaces[place.space].lost(place.member, now), now)

    def leave(self, place: Place, now: Moment) -> list[Placed]:
        """The member has said goodbye to the server."""
        return self._expand(place.space, self.spaces[place.space].leave(place.member, now), now)

    def tick(self, space_id: str, now: Moment) -> list[Placed]:
        """What is due in a space."""
        return self._expand(space_id, self.spaces[space_id].tick(now), now)

    def chores(self, now: Moment) -> list[Placed]:
        """What is due by date; costs nothing most of the time."""
        if now.ns < self._chores_ns:
            return []
        self._chores_ns = now.ns + CHORES_NS
        return self._expand("", [*self.programme.due(now), *self.desk.due(now)], now)

    # -- effects of one on another -------------------------------------------------------------

    def _expand(self, space_id: str, effects: Iterable[Effect], now: Moment) -> list[Placed]:
        placed: list[Placed] = []
        for effect in effects:
            placed += self._expand_one(space_id, effect, now)
        space = self.spaces.get(space_id)
        if space is not None and space.record is not self.programme.record(space_id):
            self.programme.changed(space.record)
        return placed

    def _expand_one(self, space_id: str, effect: Effect, now: Moment) -> list[Placed]:
        match effect:
            case Keep(account, make):
                notice, changes = self.people.keep(account, make)
                return [("", Save(changes)), ("", TellAccount(account, notice))]
            case Invited(account, invite, _):
                issuer = self.people.account(invite.issuer)
                if account in self.people.blocks(issuer.id):
                    return []  # nothing of the one reaches the other, and the one does not notice
                effects = [
                    *self.people.grant_by_invitation(account, invite.issuer, now),
                    *self.mail.invitation(effect, issuer, now),
                ]
                return self._expand(space_id, effects, now)
            case BlocksChanged(one, other):
                return self._in_spaces(lambda space: space.blocks_changed(one, other, now), now)
            case Renamed(account):
                return self._in_spaces(lambda space: space.renamed(account, now), now)
            case Expelled(accounts, text):
                who = frozenset(accounts)
                placed = self._in_spaces(lambda space: space.expel(who, now), now)
                for account in accounts:
                    for device in self.people.devices_of(account):
                        placed.append(("", CloseSessions(device.key, text)))
                return placed
            case GuestsOut(text):
                return self._in_spaces(lambda space: space.guests_out(text, now), now)
            case DeviceRemoved(key):
                return [("", CloseSessions(key, "this device was removed from its account"))]
            case RemoveFromSpace(name, who, moderator):
                space = self.spaces.get(name)
                if space is None:
                    return []
                text = "a moderator of the server has removed you"
                return self._expand(name, space.remove(who, moderator, now, text), now)
            case EndSpace(name, text):
                space = self.spaces.get(name)
                if space is None:
                    return self._expand("", self.programme.ended(name, now), now)
                return self._expand(name, space.end(text, now), now)
            case SpaceEnded():
                space = self.spaces.pop(space_id)
                self.programme.changed(space.record)
                return [(space_id, effect)]
            case _:
                return [(space_id, effect)]

    def _in_spaces(self, work: Callable[[Space], list[Effect]], now: Moment) -> list[Placed]:
        placed: list[Placed] = []
        for name, space in list(self.spaces.items()):
            placed += self._expand(name, work(space), now)
        return placed


def _by_space(records: Iterable[OfSpace]) -> dict[str, list[OfSpace]]:
    found: dict[str, list[OfSpace]] = {}
    for record in records:
        found.setdefault(record.space, []).append(record)
    return found
