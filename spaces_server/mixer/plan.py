"""The mix plan: which members share a mix, and when each gets its packets.

A *recipe* is what a member hears now: the sounding sources with their gains.  Members with the
same recipe share a *mix class*, and a class is encoded once.  Most members have nothing of their
own (the audience: every source at 1); a speaker has 0 at themselves; a block or a volume is
another number.  So a plan is rebuilt from the few members who have numbers of their own for a
source that sounds, and only when something changes.  Somebody more or less in the audience changes
nothing but its rows.  Those who differ from the audience in their rate alone stay together as well,
one step a class: a thousand narrow paths cost a rebuild no more than one.

Two rules keep the switch between classes inaudible.  A class that splits off *forks* the encoder
and the limiter of the class it leaves, so its members' decoders notice nothing.  Members whose
recipe becomes that of another class again cannot be forked back: their class goes on beside it and
joins at the first quiet tick, at the latest after HOLD_NS.

Two more see to it that whoever is in a crowd (crowd.py) gets every packet of their mix, once, and
none from before.  A member takes a turn when nothing is gathered for it, and gets a packet at every
tick until then; and what is gathered for those who leave a turn, or a class, is *owed* to them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from protocol.connection import MS
from protocol.opus import Encoder
from protocol.packets import DownlinkAudio, Kind, gather
from protocol.redundancy import NO_REMEDY, History, Remedy
from spaces_server.mixer.crowd import (
    EVERY_TICK,
    FRAME_MS,
    MAX_FRAMES,
    NO_CROWDS,
    Crowd,
    Rows,
    RowSet,
    Turn,
    turn_of,
)
from spaces_server.mixer.limiter import Limiter

HOLD_NS = 2_000 * MS
QUIET_PEAK = 10 ** (-50 / 20)  # -50 dBFS: what changes below it is not heard

Recipe = tuple[tuple[int, float], ...]  # (member id of a source, gain > 0), in the plan's order
Hearing = tuple[Recipe, bool]  # and whether at half the rate
_Group = tuple[dict["MixClass", set[int]], list[int]]  # who stay together, by class; the others
Job = tuple[Kind, bytes, Rows]  # a datagram's kind and plaintext, and who gets it


@dataclass(slots=True, eq=False)
class MixClass:
    """Members who hear the same, and the encoder and limiter that they share.

    rows: by the turns at which they get it.  packets: the newest MAX_FRAMES plaintexts, each with
    the number of its tick.  newest: the last of them, unpacked.  history: its frame, and those
    before it.  live: a talkspurt is under way, so the members' decoders follow this encoder.
    bitrate: of the encoder, where no path is congested.  remedy: what it does about the members'
    paths, but for the copies, which are a matter of turns.  losses: how many of the members have
    which loss in percent, where it is not 0.
    peak: of the last mix, as Limiter.limit gives it.  held_since_ns: since when another class has
    had the same recipe.
    """

    encoder: Encoder
    bitrate: int
    recipe: Recipe = ()
    remedy: Remedy = NO_REMEDY
    losses: Counter[int] = field(default_factory=Counter)
    rows: defaultdict[Turn, RowSet] = field(default_factory=lambda: defaultdict(RowSet))
    packets: tuple[tuple[int, bytes], ...] = ()
    newest: DownlinkAudio | None = None
    history: History = field(default_factory=History)
    live: bool = False
    limiter: Limiter = field(default_factory=Limiter)
    peak: float = 0.0
    held_since_ns: int | None = None

    def fork(self) -> "MixClass":
        return MixClass(
            self.encoder.fork(),
            self.bitrate,
            remedy=self.remedy,
            packets=self.packets,
            newest=self.newest,
            history=self.history.fork(),
            live=self.live,
            limiter=self.limiter.fork(),
        )

    def __len__(self) -> int:
        """How many members it has."""
        return sum(map(len, self.rows.values()))

    @property
    def hears(self) -> Hearing:
        return self.recipe, self.remedy.half_rate

    def add(self, hearer: "_Hearer") -> None:
        self.rows[hearer.turn].add(hearer.row)
        if hearer.remedy.expected_loss_percent:
            self.losses[hearer.remedy.expected_loss_percent] += 1

    def remove(self, hearer: "_Hearer") -> None:
        self.rows[hearer.turn].remove(hearer.row)
        if hearer.remedy.expected_loss_percent:
            self.losses[hearer.remedy.expected_loss_percent] -= 1

    def expect_losses(self) -> None:
        """In-band FEC takes from all who share an encoder, so none of them must do without loss."""
        percent = 0
        if self.losses.total() == len(self):
            percent = min((each for each, count in self.losses.items() if count), default=0)
        self.follow(self.remedy._replace(expected_loss_percent=percent))

    def follow(self, remedy: Remedy) -> None:
        if remedy != self.remedy:
            self.remedy = remedy
            remedy.apply(self.encoder, self.bitrate)

    def give(self, tick: int, audio: DownlinkAudio) -> None:
        self.history.add(audio)
        self.newest = audio
        self.packets = (*self.packets[1 - MAX_FRAMES :], (tick, audio.pack()))

    def after(self, tick: int) -> tuple[bytes, ...]:
        """What it was given after that tick."""
        return tuple(plaintext for given, plaintext in self.packets if given > tick)

    def for_turn(self, turn: Turn, tick: int) -> tuple[bytes, ...]:
        """What those get at this tick who have this turn."""
        packets = self.after(tick - turn.frames)
        if not turn.copies or not packets or self.newest is None:
            return packets
        copies = self.history.copies(turn.copies)
        return (*packets[:-1], replace(self.newest, copies=copies).pack())


@dataclass(slots=True)
class _Hearer:
    """A member.  row: in the egress.  packet_ms: the most that it takes in one datagram.  remedy:
    for its path; who needs copies gets every packet at once.  turn: the one it has in its class
    now."""

    row: int
    packet_ms: int
    on_stage: bool = False
    remedy: Remedy = NO_REMEDY
    turn: Turn = EVERY_TICK


class Plan:
    """Classes and members of one space.  `changed` asks for `rebuild` before the next mix."""

    def __init__(
        self, new_encoder: Callable[[], Encoder], crowd: Crowd = NO_CROWDS, channels: int = 1
    ) -> None:
        self.classes: list[MixClass] = []  # those with a recipe and members; the audience's first
        self.changed = False
        self._new_encoder = new_encoder
        self._channels = channels
        self._crowd = crowd
        self._crowded = False
        self._audience = self._new_class()
        self._hearers: dict[int, _Hearer] = {}
        self._on_stage = 0  # how many of them
        self._gains: dict[int, dict[int, float]] = {}  # hearer -> source -> gain, where not 1
        self._class_of: dict[int, MixClass | None] = {}  # all who are not in the audience's
        # Of those, by their class, whoever has no gain of their own: they stay together.
        self._together: dict[MixClass, set[int]] = {}
        self._unsettled: set[int] = set()  # members to be looked at one by one, beside _gains
        self._tick = -1  # the last that was given out
        self._waiting: dict[Turn, list[int]] = {}  # for their turn, members
        self._owed: dict[tuple[Turn, tuple[bytes, ...]], list[int]] = {}  # from before: to members

    def add_member(self, member: int, row: int, packet_ms: int = FRAME_MS) -> None:
        self._hearers[member] = hearer = _Hearer(row, packet_ms)
        self.changed |= not len(self._audience) or self._audience.remedy != NO_REMEDY
        self._enter(member, hearer, self._audience)
        self._follow_crowd()

    def remove_member(self, member: int) -> None:
        self._unsettle(member)
        self._unsettled.discard(member)
        hearer = self._hearers.pop(member)
        apart = member in self._class_of
        mix_class = self._class_of.pop(member, self._audience)
        if mix_class is not None:
            mix_class.remove(hearer)
        self._gains.pop(member, None)
        self._on_stage -= hearer.on_stage
        self.changed |= apart or not len(self._audience)
        self._follow_crowd()

    def set_on_stage(self, member: int, on_stage: bool) -> None:
        """Whoever is on stage gets every packet at once."""
        hearer = self._hearers[member]
        self._on_stage += on_stage - hearer.on_stage
        hearer.on_stage = on_stage
        self._take_turn(member, hearer)
        self._follow_crowd()

    def set_remedy(self, member: int, remedy: Remedy) -> None:
        """What is done about the path to `member`: copies for them alone, half the rate in a class
        of those who need it, in-band FEC where all of a class lose much."""
        hearer = self._hearers[member]
        mix_class = self._class_of.get(member, self._audience)
        if mix_class is not None:
            mix_class.remove(hearer)
        before, hearer.remedy = hearer.remedy, remedy
        if mix_class is not None:
            mix_class.add(hearer)
        if before.half_rate != remedy.half_rate:
            self._unsettle(member)
            self.changed = True
        self.changed |= before.expected_loss_percent != remedy.expected_loss_percent
        self._take_turn(member, hearer)

    def set_gain(self, hearer: int, source: int, gain: float) -> None:
        """How loud `hearer` hears `source`: 1 as it is, 0 not at all."""
        gains = self._gains.setdefault(hearer, {})
        if gain == 1.0:
            gains.pop(source, None)
            if not gains:
                del self._gains[hearer]
        else:
            gains[source] = gain
        self._unsettle(hearer)
        self.changed = True

    def forget_source(self, source: int) -> None:
        """It sounds no more; if it was of a member who has left, nobody needs a gain for it."""
        if source in self._hearers:
            self.set_gain(source, source, 1.0)
            return
        for hearer in [h for h, gains in self._gains.items() if source in gains]:
            self.set_gain(hearer, source, 1.0)

    def _unsettle(self, member: int) -> None:
        """What this member hears has changed: the next rebuild looks at them."""
        self._part(member, self._class_of.get(member))
        self._unsettled.add(member)

    def _part(self, member: int, mix_class: MixClass | None) -> None:
        """No more together with the others of that class."""
        if mix_class is not None and mix_class in self._together:
            self._together[mix_class].discard(member)
            if not self._together[mix_class]:
                del self._together[mix_class]

    # -- rebuilding -----------------------------------------------------------------------------

    def rebuild(self, active: Sequence[int], now_ns: int) -> None:
        """Plans for the sources that sound now, in the order of `active`."""
        self.changed = False
        everything: Recipe = tuple((source, 1.0) for source in active)
        buckets = self._buckets(everything)
        self._audience.recipe = everything
        taken = [self._audience]
        for (hearing, before), (together, members) in buckets:
            if not hearing[0]:
                for mix_class in together:  # as the audience, they stay where they are
                    mix_class.recipe = ()
                    mix_class.held_since_ns = None
                self._together.update(together)
                for member in members:
                    self._move(member, None, forked=False)
                continue
            mix_class = self._choose(hearing, before, taken, next(iter(together), None))
            forked = before is not None and mix_class not in taken
            if mix_class not in taken:
                mix_class.recipe = hearing[0]
                mix_class.follow(mix_class.remedy._replace(half_rate=hearing[1]))
                taken.append(mix_class)
            if mix_class in together:
                stay = together.pop(mix_class)
                stay |= self._together.get(mix_class, set())  # who moved in already
                self._together[mix_class] = stay
            for member in (*members, *sorted(m for others in together.values() for m in others)):
                self._move(member, mix_class, forked=forked)
        self.classes = [c for c in dict.fromkeys(taken) if c.recipe and len(c)]
        if not len(self._audience):
            self._audience.live = False
        for mix_class in self.classes:
            mix_class.expect_losses()
        self._hold(now_ns)

    def _buckets(self, everything: Recipe) -> list[tuple[tuple[Hearing, MixClass | None], _Group]]:
        """All members who are to be, or were, outside the audience's class, by what they hear
        now and the live class they come from; the largest group of each class comes first."""
        buckets: defaultdict[tuple[Hearing, MixClass | None], _Group]
        buckets = defaultdict(lambda: ({}, []))
        for mix_class, together in self._together.items():
            hearing = everything, mix_class.remedy.half_rate
            buckets[hearing, mix_class if mix_class.live else None][0][mix_class] = together
        self._together = {}
        alone, self._unsettled = self._gains.keys() | self._unsettled, set()
        for member in sorted(alone & self._hearers.keys()):
            gains = self._gains.get(member, {})
            recipe = tuple((s, g) for s, _ in everything if (g := gains.get(s, 1.0)) > 0.0)
            before = self._class_of.get(member, self._audience)
            half_rate = self._hearers[member].remedy.half_rate
            if before is self._audience and recipe == everything and not half_rate:
                continue
            live = before if before is not None and before.live else None
            buckets[(recipe, half_rate), live][1].append(member)

        def size(group: _Group) -> int:
            return sum(map(len, group[0].values())) + len(group[1])

        return sorted(buckets.items(), key=lambda item: -size(item[1]))

    def _choose(
        self,
        hearing: Hearing,
        before: MixClass | None,
        taken: list[MixClass],
        silent: MixClass | None,
    ) -> MixClass:
        """The class for a group: its own if no larger group has it, a fork of it otherwise; a
        group that heard nothing joins whoever hears the same (the audience first), or starts
        afresh, in a class of those who were silent together if there is one.

        Paths become narrow one after the other, and wide again, in numbers.  So that this does not
        make as many classes, forks for the rate alone wait until none is held."""
        if before is not None and before not in taken:
            return before
        same = next((c for c in taken if c.hears == hearing and c.held_since_ns is None), None)
        if before is None:
            return same or silent or self._new_class()
        other_rate = before.remedy.half_rate != hearing[1]
        if (
            same is not None
            and other_rate
            and any(c.held_since_ns is not None for c in self.classes)
        ):
            return same
        return before.fork()

    def _new_class(self) -> MixClass:
        encoder = self._new_encoder()
        return MixClass(encoder, encoder.bitrate, limiter=Limiter(self._channels))

    def _move(self, member: int, to: MixClass | None, *, forked: bool) -> None:
        """forked: `to` goes on from the class that the member is in, with what was gathered."""
        before = self._class_of.get(member, self._audience)
        self._part(member, before)
        if to is not self._audience and not (member in self._gains or member in self._unsettled):
            if to is None:
                self._unsettled.add(member)
            else:
                self._together.setdefault(to, set()).add(member)
        if to is before:
            return
        hearer = self._hearers[member]
        if before is not None:
            self._leave(member, hearer, before, owed_at=None if forked else hearer.turn)
        if to is self._audience:
            del self._class_of[member]
        else:
            self._class_of[member] = to
        if forked:
            assert to is not None
            to.add(hearer)
        else:
            self._enter(member, hearer, to)

    # -- turns ----------------------------------------------------------------------------------

    def give_out(self, tick: int) -> list[Job]:
        """What goes out at this tick, after every class has been given its packet.  To be called
        at every tick while `gathered`."""
        jobs: list[Job] = []
        for due in [due for due in self._owed if due[0].at(tick)]:
            hearers = [self._hearers[m] for m in self._owed.pop(due) if m in self._hearers]
            rows = np.array([hearer.row for hearer in hearers], np.intp)
            jobs += [(*datagram, rows) for datagram in gather(due[1])]
        for mix_class in self._all_classes:
            for turn, members in mix_class.rows.items():
                if turn.at(tick) and len(members):
                    packets = mix_class.for_turn(turn, tick)
                    jobs += [(*datagram, members.array) for datagram in gather(packets)]
        self._tick = tick
        for turn in [turn for turn in self._waiting if turn.at(tick)]:
            for member in self._waiting.pop(turn):
                if member in self._hearers:
                    self._take_turn(member, self._hearers[member])
        return jobs

    @property
    def _all_classes(self) -> Iterable[MixClass]:
        """Those too that have members, and hear nothing now."""
        return dict.fromkeys((self._audience, *self.classes, *self._together))

    @property
    def gathered(self) -> bool:
        """Whether there may be something that has not been given out to everyone."""
        since = self._tick - MAX_FRAMES + 1
        return bool(self._owed) or any(c.after(since) for c in (self._audience, *self._together))

    @property
    def datagrams_a_tick(self) -> int:
        """How many go out at a tick while somebody is heard; on average, of a crowd in turns."""
        turns = [(turn, len(rows)) for c in self._all_classes for turn, rows in c.rows.items()]
        return sum(-(-count // turn.frames) for turn, count in turns)

    def _follow_crowd(self) -> None:
        listeners = len(self._hearers) - self._on_stage
        ends_or_begins = self._crowd.ends if self._crowded else self._crowd.begins
        if ends_or_begins(listeners):
            self._crowded = not self._crowded
            for member, hearer in self._hearers.items():
                self._take_turn(member, hearer)

    def _turn_for(self, hearer: _Hearer) -> Turn:
        """Fewer, longer datagrams are less to send: they are for crowds, and for narrow paths."""
        if hearer.remedy.copies:
            return Turn(1, 0, hearer.remedy.copies)
        if hearer.on_stage or not (self._crowded or hearer.remedy.half_rate):
            return EVERY_TICK
        return turn_of(hearer.row, min(hearer.packet_ms, self._crowd.packet_ms))

    def _take_turn(self, member: int, hearer: _Hearer) -> None:
        """Sees to it that a member has the turn that it should."""
        if hearer.turn != self._turn_for(hearer):
            mix_class = self._class_of.get(member, self._audience)
            if mix_class is not None:
                self._leave(member, hearer, mix_class, owed_at=EVERY_TICK)
            self._enter(member, hearer, mix_class)

    def _enter(self, member: int, hearer: _Hearer, mix_class: MixClass | None) -> None:
        hearer.turn = turn = self._turn_for(hearer)
        if mix_class is None:
            return
        if mix_class.after(turn.latest(self._tick)):
            hearer.turn = EVERY_TICK
            self._waiting.setdefault(turn, []).append(member)
        mix_class.add(hearer)

    def _leave(
        self, member: int, hearer: _Hearer, mix_class: MixClass, *, owed_at: Turn | None
    ) -> None:
        """owed_at: when what is gathered for the member goes out; None if it comes along."""
        mix_class.remove(hearer)
        gathered = mix_class.after(hearer.turn.latest(self._tick))
        if gathered and owed_at is not None:
            self._owed.setdefault((owed_at, gathered), []).append(member)

    # -- joining again ----------------------------------------------------------------------------

    def _hold(self, now_ns: int) -> None:
        """Marks every class whose recipe an earlier one in the list has already."""
        seen: set[Hearing] = set()
        for mix_class in self.classes:
            if mix_class.hears not in seen:
                seen.add(mix_class.hears)
                mix_class.held_since_ns = None
            elif mix_class.held_since_ns is None:
                mix_class.held_since_ns = now_ns

    def join_held(self, now_ns: int) -> None:
        """Lets classes with the same recipe become one, where it is quiet or has lasted too
        long.  To be called after each mix; costs nothing while nothing is held."""
        for held in [c for c in self.classes if c.held_since_ns is not None]:
            since_ns = held.held_since_ns
            assert since_ns is not None
            if held.peak > QUIET_PEAK and held.live and now_ns - since_ns < HOLD_NS:
                continue
            into = next(c for c in self.classes if c.hears == held.hears)
            self.classes.remove(held)
            alone = self._gains.keys() | self._unsettled
            members = {m for m in alone if self._class_of.get(m) is held}
            for member in sorted(members | self._together.get(held, set())):
                self._move(member, into, forked=False)
            into.expect_losses()
