"""A space: who is in it, in which role, and what each request of theirs does.

Pure policy.  `handle` takes a request and gives back effects, values that say what is to happen;
the node carries them out.  Nothing here knows of connections, packets or samples, and the audio
path never reads a space.
"""

import base64
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from protocol import frames
from protocol.frames import ERROR_TEXTS, ErrorCode, Member, Snapshot
from protocol.roles import Action, Role, allowed
from spaces_server.feed import Feed

SEATS = 256  # numbers that seats go through; far more than any stage, so none is reused soon
MAX_HANDS = 100  # with the stage they make up a snapshot, which must fit into one frame
TOKEN_BYTES = 9
MAX_INVITES = 100


class RefusedError(Exception):
    """A request that is not carried out; nothing was changed."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(ERROR_TEXTS[code])
        self.code = code


# -- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """The one reply to the request."""

    frame: frames.Frame


@dataclass(frozen=True, slots=True)
class Tell:
    """A notice to one member."""

    member: int
    frame: frames.Frame


@dataclass(frozen=True, slots=True)
class SourceAdded:
    """From now on this member's audio is mixed."""

    member: int
    seat: int


@dataclass(frozen=True, slots=True)
class SourceRemoved:
    """From now on it is not."""

    member: int


@dataclass(frozen=True, slots=True)
class Left:
    """The member is no longer in the space."""

    member: int


@dataclass(frozen=True, slots=True)
class SpaceEnded:
    text: str


Effect = Answer | Tell | SourceAdded | SourceRemoved | Left | SpaceEnded


# -- people ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Person:
    id: int
    name: str
    identity: bytes
    role: Role
    seat: int | None = None
    muted: bool = False
    hand: bool = False
    order: int = 0  # of appointment, for who becomes host

    @property
    def listed(self) -> bool:
        """Whether the feed tells of this person by name."""
        return self.role.on_stage or self.hand

    @property
    def speaks(self) -> bool:
        return self.role.on_stage and not self.muted

    def view(self) -> Member:
        return Member(
            id=self.id,
            name=self.name,
            role=self.role,
            seat=UNSET if self.seat is None else self.seat,
            muted=self.muted,
            hand=self.hand,
        )


def clean(text: str, max_chars: int) -> str:
    """Text that may be shown in a terminal.  Raises RefusedError for control characters, which
    include escape sequences, for nothing but blanks, and for what normalising makes too long."""
    text = unicodedata.normalize("NFC", text).strip()
    if not 0 < len(text) <= max_chars or any(
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text
    ):
        raise RefusedError(ErrorCode.BAD_TEXT)
    return text


def new_token(entropy: Callable[[int], bytes]) -> str:
    """12 characters that fit into a link and cannot be guessed."""
    return base64.urlsafe_b64encode(entropy(TOKEN_BYTES)).decode()


@dataclass(slots=True)
class Space:
    """One space.  entropy: for invite tokens.  stage_size: how many may speak, host included."""

    id: str
    title: str
    entropy: Callable[[int], bytes]
    stage_size: int = 13
    max_members: int = 20_000
    feed: Feed = field(init=False)
    ended: bool = False
    _people: dict[int, _Person] = field(default_factory=dict)
    _by_identity: dict[bytes, int] = field(default_factory=dict)
    _listed: dict[int, _Person] = field(default_factory=dict)
    _invites: dict[str, Role] = field(default_factory=dict)
    _last_id: int = 0
    _last_seat: int = -1
    _appointments: int = 0
    _told_listeners: int = 0

    def __post_init__(self) -> None:
        self.feed = Feed(self.id)

    # -- coming and going ----------------------------------------------------------------------

    def enter(
        self, name: str, identity: bytes, invite: str | None, now_ns: int, *, host: bool = False
    ) -> tuple[int, list[Effect]]:
        """-> (member id, effects).  Raises RefusedError.  Whoever is here already with the same
        identity leaves first."""
        name = clean(name, frames.MAX_NAME_CHARS)
        if invite is not None and invite not in self._invites:
            raise RefusedError(ErrorCode.BAD_INVITE)
        before = self._by_identity.get(identity)
        if before is None and len(self._people) >= self.max_members:
            raise RefusedError(ErrorCode.SPACE_FULL)
        role = Role.HOST if host else self._invites.get(invite or "", Role.LISTENER)
        if before is not None and self._people[before].role.on_stage:
            role = self._people[before].role  # the same person on another device keeps the role
        elif role.on_stage and self._stage_full():
            raise RefusedError(ErrorCode.STAGE_FULL)
        effects: list[Effect] = []
        muted = before is not None and self._people[before].muted
        if before is not None:
            effects += self._remove(before, now_ns)
        self._last_id += 1
        person = _Person(self._last_id, name, identity, Role.LISTENER, muted=muted)
        self._people[person.id] = person
        self._by_identity[identity] = person.id
        effects += self._set_role(person, role, now_ns)
        self._tell_listeners(now_ns)
        return person.id, effects

    def leave(self, member: int, now_ns: int) -> list[Effect]:
        """A member goes, or was lost.  The host's going ends the space if no co-host is there."""
        was_host = self._people[member].role is Role.HOST
        effects = self._remove(member, now_ns)
        if was_host:
            heir = min(
                (p for p in self._people.values() if p.role is Role.CO_HOST),
                key=lambda p: p.order,
                default=None,
            )
            if heir is None:
                return [*effects, *self._end("the host has left")]
            effects += self._set_role(heir, Role.HOST, now_ns)
            effects.append(Tell(heir.id, frames.You(you=heir.view())))
        self._tell_listeners(now_ns)
        return effects

    def _remove(self, member: int, now_ns: int) -> list[Effect]:
        person = self._people.pop(member)
        del self._by_identity[person.identity]
        effects: list[Effect] = [SourceRemoved(member)] if person.speaks else []
        if self._listed.pop(member, None) is not None:
            self.feed.add(frames.GoneUpdate(id=member), now_ns)
        effects.append(Left(member))
        return effects

    def _end(self, text: str) -> list[Effect]:
        self.ended = True
        told: list[Effect] = [Tell(m, frames.Ended(text=text)) for m in self._people]
        return [*told, SpaceEnded(text)]

    # -- what is seen --------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._people)

    def view(self, member: int) -> Member:
        return self._people[member].view()

    def speaks(self, member: int) -> bool:
        return self._people[member].speaks

    def snapshot(self) -> Snapshot:
        return Snapshot(
            number=self.feed.number,
            title=self.title,
            members=[p.view() for p in self._listed.values()],
            listeners=self._listeners(),
        )

    def _listeners(self) -> int:
        return len(self._people) - sum(p.role.on_stage for p in self._listed.values())

    def _stage_full(self) -> bool:
        return sum(p.role.on_stage for p in self._listed.values()) >= self.stage_size

    # -- changes, each told to all -------------------------------------------------------------

    def _changed(self, person: _Person, now_ns: int) -> None:
        was_listed = person.id in self._listed
        if person.listed:
            self._listed[person.id] = person
        else:
            self._listed.pop(person.id, None)
        if was_listed or person.listed:
            self.feed.add(frames.MemberUpdate(member=person.view()), now_ns)

    def _tell_listeners(self, now_ns: int) -> None:
        count = self._listeners()
        if count != self._told_listeners:
            self._told_listeners = count
            self.feed.add(frames.ListenersUpdate(count=count), now_ns)

    def _set_role(self, person: _Person, role: Role, now_ns: int) -> list[Effect]:
        spoke = person.speaks
        if role.on_stage and not person.role.on_stage:
            person.seat = self._next_seat()
        if not role.on_stage:
            person.seat = None
            person.muted = False
        if role is Role.CO_HOST:
            self._appointments += 1
            person.order = self._appointments
        person.role = role
        person.hand = False
        self._changed(person, now_ns)
        return self._source_effects(person, spoke)

    def _next_seat(self) -> int:
        taken = {p.seat for p in self._listed.values()}
        while True:
            self._last_seat = (self._last_seat + 1) % SEATS
            if self._last_seat not in taken:
                return self._last_seat

    def _set_muted(self, person: _Person, muted: bool, now_ns: int) -> list[Effect]:
        if person.muted == muted:
            return []
        spoke = person.speaks
        person.muted = muted
        self._changed(person, now_ns)
        return self._source_effects(person, spoke)

    def _set_hand(self, person: _Person, hand: bool, now_ns: int) -> None:
        if person.hand != hand:
            person.hand = hand
            self._changed(person, now_ns)

    @staticmethod
    def _source_effects(person: _Person, spoke: bool) -> list[Effect]:
        if person.speaks and not spoke and person.seat is not None:
            return [SourceAdded(person.id, person.seat)]
        if spoke and not person.speaks:
            return [SourceRemoved(person.id)]
        return []

    # -- requests ------------------------------------------------------------------------------

    def handle(self, member: int, request: frames.Request, now_ns: int) -> list[Effect]:
        """-> effects, with exactly one Answer.  Raises RefusedError, and then nothing changed."""
        me = self._people[member]
        match request:
            case frames.Roster(after=after):
                return [Answer(self._roster_page(request.id, after))]
            case frames.CatchUp(after=after):
                updates = self.feed.after(after)
                if updates is None:
                    raise RefusedError(ErrorCode.TOO_OLD)
                return [Answer(frames.Updates(re=request.id, first=after + 1, updates=updates))]
            case frames.Look():
                state = frames.State(re=request.id, you=me.view(), snapshot=self.snapshot())
                return [Answer(state)]
            case frames.Invite():
                self._permit(Action.INVITE, me, me)
                return [Answer(frames.Invited(re=request.id, invite=self._new_invite()))]
            case frames.Leave():
                self._permit(Action.LEAVE, me, me)
                return [Answer(frames.Ok(re=request.id)), *self.leave(member, now_ns)]
            case frames.Close():
                self._permit(Action.CLOSE, me, me)
                return [Answer(frames.Ok(re=request.id)), *self._end("the host closed it")]
        effects = self._moderate(me, request, now_ns)
        self._tell_listeners(now_ns)
        return [Answer(frames.Ok(re=request.id)), *effects]

    def _moderate(self, me: _Person, request: frames.Request, now_ns: int) -> list[Effect]:
        """The actions of one member on one member."""
        effects: list[Effect] = []
        match request:
            case frames.RaiseHand():
                whom = self._target(Action.RAISE_HAND, me, UNSET)
                if not whom.hand and sum(p.hand for p in self._listed.values()) >= MAX_HANDS:
                    raise RefusedError(ErrorCode.HANDS_FULL)
                self._set_hand(whom, True, now_ns)
            case frames.LowerHand(member=target):
                whom = self._target(Action.LOWER_HAND, me, target)
                self._set_hand(whom, False, now_ns)
            case frames.BringUp(member=target):
                whom = self._target(Action.BRING_UP, me, target)
                if not whom.hand:
                    raise RefusedError(ErrorCode.NO_HAND)
                if self._stage_full():
                    raise RefusedError(ErrorCode.STAGE_FULL)
                effects = self._set_role(whom, Role.SPEAKER, now_ns)
            case frames.TakeDown(member=target):
                whom = self._target(Action.TAKE_DOWN, me, target)
                effects = self._set_role(whom, Role.LISTENER, now_ns)
            case frames.Appoint(member=target):
                whom = self._target(Action.APPOINT, me, target)
                effects = self._set_role(whom, Role.CO_HOST, now_ns)
            case frames.Dismiss(member=target):
                whom = self._target(Action.DISMISS, me, target)
                effects = self._set_role(whom, Role.SPEAKER, now_ns)
            case frames.Mute(member=target):
                whom = self._target(Action.MUTE, me, target)
                effects = self._set_muted(whom, True, now_ns)
            case frames.Unmute():
                whom = self._target(Action.UNMUTE, me, UNSET)
                effects = self._set_muted(whom, False, now_ns)
            case _:
                raise RefusedError(ErrorCode.UNKNOWN_TYPE)
        effects.append(Tell(whom.id, frames.You(you=whom.view())))
        return effects

    def _target(self, action: Action, me: _Person, target: int | UnsetType) -> _Person:
        whom = me if target is UNSET else self._people.get(int(target))
        if whom is None:
            raise RefusedError(ErrorCode.NO_SUCH_MEMBER)
        self._permit(action, me, whom)
        return whom

    @staticmethod
    def _permit(action: Action, me: _Person, whom: _Person) -> None:
        if not allowed(action, me.role, whom.role, same=me is whom):
            raise RefusedError(ErrorCode.NOT_ALLOWED)

    def _new_invite(self) -> str:
        while len(self._invites) >= MAX_INVITES:
            del self._invites[next(iter(self._invites))]  # the oldest gives way
        token = new_token(self.entropy)
        self._invites[token] = Role.SPEAKER
        return token

    def _roster_page(self, request_id: int, after: int) -> frames.RosterPage:
        ids = sorted(i for i in self._people if i > after)
        page = [self._people[i].view() for i in ids[: frames.MAX_PAGE]]
        return frames.RosterPage(re=request_id, members=page, more=len(ids) > len(page))
