"""The programme: every space that the server knows, and who may find it.

A space is scheduled, live or ended.  Of the live ones, what goes on inside is in space.py; here is
only what lists show.  Ended ones are remembered by id, those that were called off too: whoever
comes late hears that it is over and not that it never was, and a report still finds the host.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import msgspec
from msgspec import UNSET

from protocol import frames
from protocol.frames import ErrorCode, Settings, SpaceInfo, SpaceState, Visibility
from spaces_server.policy.asking import clean_text, require_account
from spaces_server.policy.effects import Answer, Asker, Effect, Keep, Moment, RefusedError, Save
from spaces_server.policy.tokens import new_token
from spaces_server.records import (
    AccountRecord,
    Drop,
    Loaded,
    Put,
    ReminderRecord,
    RemovalRecord,
    SpaceRecord,
)

PAGE = frames.MAX_TEXTS_PAGE
AHEAD_S = 14 * 86_400
OVERDUE_S = 86_400  # then a scheduled space that nobody has opened is over
MAX_SCHEDULED = 10  # an account
MAX_ALL_SCHEDULED = 10_000
MAX_REMINDERS = 100  # an account
MAX_ENDED = 100_000  # remembered; the oldest are forgotten
RANKED_NS = 1_000_000_000  # for so long, an order of the live spaces is good


class Relations(Protocol):
    """What the programme must know of people."""

    def account(self, account: int, /) -> AccountRecord: ...
    def blocks(self, account: int, /) -> Set[int]: ...
    def follows(self, follower: int, followed: int, /) -> bool: ...
    def following(self, account: int, /) -> Set[int]: ...
    def banned(self, account: int, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class LiveInfo:
    """What lists show of a live space.  stage: the accounts on it.  hosts: those of them who may
    invite (host and co-hosts)."""

    listeners: int
    stage: Set[int]
    hosts: Set[int] = frozenset()


def settings_of(record: SpaceRecord) -> Settings:
    return msgspec.msgpack.decode(record.settings, type=Settings)


class Programme:
    """live: what goes on in a live space; None while nobody knows."""

    def __init__(
        self,
        loaded: Loaded,
        people: Relations,
        live: Callable[[str], LiveInfo | None],
        entropy: Callable[[int], bytes],
    ) -> None:
        self._people = people
        self._live_info = live
        self._entropy = entropy
        self._scheduled: dict[str, SpaceRecord] = {}
        self._live: dict[str, SpaceRecord] = {}
        self._ended: dict[str, SpaceRecord] = {}  # in the order in which they ended
        self._by_state = {
            SpaceState.LIVE: self._live,
            SpaceState.SCHEDULED: self._scheduled,
            SpaceState.ENDED: self._ended,
        }
        self._ranked: list[tuple[SpaceRecord, Set[int]]] = []  # live ones and who is on stage
        self._ranked_until_ns = 0
        self._upcoming: list[SpaceRecord] | None = None  # the next first; None: to be sorted anew
        self._reminders: dict[str, set[int]] = {}  # of scheduled spaces
        self._reminded: Counter[int] = Counter()  # how many an account has set
        for record in sorted(loaded.of(SpaceRecord), key=lambda r: (r.ended_s, r.id)):
            self.changed(record)
        for reminder in loaded.of(ReminderRecord):
            self._reminders.setdefault(reminder.space, set()).add(reminder.account)
            self._reminded[reminder.account] += 1

    # -- looking up --------------------------------------------------------------------------------

    def record(self, space_id: str) -> SpaceRecord:
        """Any space, ended ones too.  Raises NO_SUCH_SPACE."""
        for spaces in self._by_state.values():
            if space_id in spaces:
                return spaces[space_id]
        raise RefusedError(ErrorCode.NO_SUCH_SPACE)

    def announced(self, space_id: str) -> SpaceRecord:
        """A scheduled or live one.  Raises NO_SUCH_SPACE, SPACE_ENDED."""
        record = self.record(space_id)
        if record.state == SpaceState.ENDED:
            raise RefusedError(ErrorCode.SPACE_ENDED)
        return record

    def get(self, space_id: str) -> SpaceRecord:
        """A live one, to join.  Raises NO_SUCH_SPACE, SPACE_ENDED, NOT_STARTED."""
        record = self.announced(space_id)
        if record.state == SpaceState.SCHEDULED:
            raise RefusedError(ErrorCode.NOT_STARTED)
        return record

    def live_records(self) -> list[SpaceRecord]:
        return list(self._live.values())

    def may_show(self, account: int, record: SpaceRecord) -> bool:
        """Whether somebody may show a space to everyone: a public one anybody, others only who
        invites into them."""
        return (
            settings_of(record).visibility is Visibility.PUBLIC
            or account == record.host
            or account in self._info(record).hosts
        )

    # -- requests ----------------------------------------------------------------------------------

    def handle(self, asker: Asker, request: frames.Request, now: Moment) -> list[Effect]:
        """-> effects, with exactly one Answer.  Raises RefusedError, and then nothing has
        changed."""
        match request:
            case frames.ListSpaces(after=after):
                return [Answer(self._page(asker, request.id, self._list_live(asker, now), after))]
            case frames.ListUpcoming(after=after):
                return [Answer(self._page(asker, request.id, self._list_upcoming(asker), after))]
            case frames.GetSpace(space=space_id):
                shown = self._shown(asker, self.announced(space_id))
                return [Answer(frames.SpaceReply(re=request.id, space=shown))]
            case frames.Schedule():
                return self._schedule(asker, request, now)
            case frames.CancelSpace(space=space_id):
                self._own_scheduled(require_account(asker), space_id)
                return [Answer(frames.Ok(re=request.id)), *self.ended(space_id, now)]
            case frames.Remind():
                return self._remind(require_account(asker), request)
        raise RefusedError(ErrorCode.UNKNOWN_TYPE)

    def _schedule(self, asker: Asker, request: frames.Schedule, now: Moment) -> list[Effect]:
        host = require_account(asker)
        title = clean_text(request.title, frames.MAX_TITLE_CHARS)
        if not now.utc_s <= request.starts <= now.utc_s + AHEAD_S:
            raise RefusedError(ErrorCode.BAD_TIME)
        if sum(r.host == host.id for r in self._scheduled.values()) >= MAX_SCHEDULED:
            raise RefusedError(
                ErrorCode.TOO_MANY, f"you have {MAX_SCHEDULED} scheduled spaces; cancel one first"
            )
        if len(self._scheduled) >= MAX_ALL_SCHEDULED:
            raise RefusedError(ErrorCode.TOO_MANY)
        record = self._new(host, title, request.settings, SpaceState.SCHEDULED, request.starts)
        self.changed(record)
        reply = frames.SpaceReply(re=request.id, space=self._shown(asker, record))
        return [Answer(reply), Save((Put(record),))]

    def _remind(self, account: AccountRecord, request: frames.Remind) -> list[Effect]:
        record = self.announced(request.space)
        waiting = self._reminders.get(record.id, set())
        done: list[Effect] = [Answer(frames.Ok(re=request.id))]
        # Who is late has missed nothing: the space is live.
        if record.state == SpaceState.LIVE or (account.id in waiting) == request.on:
            return done
        reminder = ReminderRecord(space=record.id, account=account.id)
        if not request.on:
            self._reminders[record.id].discard(account.id)
            self._reminded[account.id] -= 1
            return [*done, Save((Drop(ReminderRecord, msgspec.structs.asdict(reminder)),))]
        visibility = settings_of(record).visibility
        if visibility is Visibility.FOLLOWERS and not self._is_follower(account, record):
            raise RefusedError(ErrorCode.FOLLOWERS_ONLY)
        if self._reminded[account.id] >= MAX_REMINDERS:
            raise RefusedError(
                ErrorCode.TOO_MANY, f"you have {MAX_REMINDERS} reminders; take one back first"
            )
        self._reminders.setdefault(record.id, set()).add(account.id)
        self._reminded[account.id] += 1
        return [*done, Save((Put(reminder),))]

    # -- from scheduled to live to ended -----------------------------------------------------------

    def open(
        self, asker: Asker, request: frames.Open, now: Moment
    ) -> tuple[SpaceRecord, list[Effect]]:
        """-> the space, live from now on, and effects without an Answer.  Raises RefusedError."""
        host = require_account(asker)
        if request.space is UNSET:
            title = clean_text(request.title, frames.MAX_TITLE_CHARS)
            self._require_no_live(host)
            record = self._new(host, title, request.settings, SpaceState.LIVE, now.utc_s)
            self.changed(record)
            return record, [Save((Put(record),))]
        scheduled = self._own_scheduled(host, request.space)
        self._require_no_live(host)
        record = msgspec.structs.replace(scheduled, state=SpaceState.LIVE, starts_s=now.utc_s)
        self.changed(record)
        saved = Save((Put(record), Drop(ReminderRecord, {"space": record.id})))
        blocks = self._people.blocks(host.id)

        def started(notice: int) -> frames.Started:
            return frames.Started(
                notice=notice, space=record.id, title=record.title, host=host.handle
            )

        waiting = sorted(self._forget_reminders(record.id) - blocks)
        return record, [saved, *(Keep(account, started) for account in waiting)]

    def changed(self, record: SpaceRecord) -> None:
        """The record is as it is now: another title, settings, host or state.  Who changed it
        saves it."""
        for spaces in self._by_state.values():
            spaces.pop(record.id, None)
        self._by_state[SpaceState(record.state)][record.id] = record
        self._ranked_until_ns = 0
        self._upcoming = None

    def ended(self, space_id: str, now: Moment) -> list[Effect]:
        """A space is over that nobody is in: a scheduled one that was called off, or a live one
        that was not taken up again.  Nothing if it is over already."""
        record = self.record(space_id)
        if record.state == SpaceState.ENDED:
            return []
        record = msgspec.structs.replace(record, state=SpaceState.ENDED, ended_s=now.utc_s)
        self.changed(record)
        self._forget_reminders(space_id)
        return [Save((Put(record), Drop(ReminderRecord, {"space": space_id})))]

    def due(self, now: Moment) -> list[Effect]:
        """Ends scheduled spaces that nobody opened, and forgets those that ended long ago.  It
        looks at all that are scheduled: not for every tick."""
        overdue = [r.id for r in self._scheduled.values() if r.starts_s + OVERDUE_S < now.utc_s]
        effects = [effect for space_id in overdue for effect in self.ended(space_id, now)]
        for oldest in list(islice(self._ended, max(0, len(self._ended) - MAX_ENDED))):
            del self._ended[oldest]
            changes = Drop(SpaceRecord, {"id": oldest}), Drop(RemovalRecord, {"space": oldest})
            effects.append(Save(changes))
        return effects

    def _new(
        self,
        host: AccountRecord,
        title: str,
        settings: Settings,
        state: SpaceState,
        starts_s: int,
    ) -> SpaceRecord:
        return SpaceRecord(
            id=new_token(self._entropy),
            host=host.id,
            title=title,
            settings=msgspec.msgpack.encode(settings),
            state=state,
            starts_s=starts_s,
            ended_s=0,
        )

    def _own_scheduled(self, account: AccountRecord, space_id: str) -> SpaceRecord:
        record = self.announced(space_id)
        if record.host != account.id:
            raise RefusedError(ErrorCode.NOT_ALLOWED, "only its host may do this")
        if record.state == SpaceState.LIVE:
            raise RefusedError(
                ErrorCode.NOT_ALLOWED, "this space is live already: join it, or close it there"
            )
        return record

    def _require_no_live(self, host: AccountRecord) -> None:
        hosted = next((r.id for r in self._live.values() if r.host == host.id), None)
        if hosted is not None:
            text = (
                f"you host a live space already ({hosted}): join it, then close it or hand it over"
            )
            raise RefusedError(ErrorCode.TOO_MANY, text)

    def _forget_reminders(self, space_id: str) -> set[int]:
        waiting = self._reminders.pop(space_id, set())
        self._reminded.subtract(waiting)
        return waiting

    # -- lists -------------------------------------------------------------------------------------

    def _list_live(self, asker: Asker, now: Moment) -> Iterator[SpaceRecord]:
        following = self._following(asker)
        ranked = sorted(self._ranking(now), key=lambda of: following.isdisjoint(of[1]))
        return self._visible(asker, (record for record, _ in ranked))

    def _list_upcoming(self, asker: Asker) -> Iterator[SpaceRecord]:
        if self._upcoming is None:
            self._upcoming = sorted(self._scheduled.values(), key=lambda r: (r.starts_s, r.id))
        return self._visible(asker, self._upcoming)

    def _ranking(self, now: Moment) -> list[tuple[SpaceRecord, Set[int]]]:
        """The live spaces, the fullest first.  They are not asked again for everyone who looks,
        and whoever turns pages quickly sees no space twice."""
        if now.ns >= self._ranked_until_ns:
            infos = [(record, self._info(record)) for record in self._live.values()]
            infos.sort(key=lambda of: (-of[1].listeners - len(of[1].stage), of[0].id))
            self._ranked = [(record, info.stage) for record, info in infos]
            self._ranked_until_ns = now.ns + RANKED_NS
        return self._ranked

    def _visible(self, asker: Asker, records: Iterable[SpaceRecord]) -> Iterator[SpaceRecord]:
        """Those that lists show to somebody; the operator sees all.  A page looks at no more of
        them than it needs."""
        if asker.operator:
            yield from records
            return
        account = asker.account
        hidden = frozenset() if account is None else self._people.blocks(account.id)
        for record in records:
            if record.host in hidden or self._people.banned(record.host):
                continue
            visibility = settings_of(record).visibility
            if visibility is Visibility.PUBLIC or (
                visibility is Visibility.FOLLOWERS
                and account is not None
                and self._is_follower(account, record)
            ):
                yield record

    def _page(
        self, asker: Asker, request_id: int, records: Iterator[SpaceRecord], after: int
    ) -> frames.Spaces:
        end = after + PAGE
        found = list(islice(records, after, end + 1))
        return frames.Spaces(
            re=request_id,
            spaces=[self._shown(asker, r) for r in found[:PAGE]],
            next=end if len(found) > PAGE else 0,
        )

    def _shown(self, asker: Asker, record: SpaceRecord) -> SpaceInfo:
        host = self._people.account(record.host)
        info = self._info(record)
        waiting = self._reminders.get(record.id, ())
        return SpaceInfo(
            id=record.id,
            title=record.title,
            host=host.handle,
            host_name=host.name,
            state=SpaceState(record.state),
            visibility=settings_of(record).visibility,
            starts=record.starts_s,
            listeners=info.listeners,
            stage=len(info.stage),
            followed=not self._following(asker).isdisjoint(info.stage),
            reminder=asker.account is not None and asker.account.id in waiting,
        )

    def _info(self, record: SpaceRecord) -> LiveInfo:
        return self._live_info(record.id) or LiveInfo(0, frozenset())

    def _following(self, asker: Asker) -> Set[int]:
        return frozenset() if asker.account is None else self._people.following(asker.account.id)

    def _is_follower(self, account: AccountRecord, record: SpaceRecord) -> bool:
        return account.id == record.host or self._people.follows(account.id, record.host)
