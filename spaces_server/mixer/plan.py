"""The mix plan: which members share a mix.

A *recipe* is what a member hears now: the sounding sources with their gains.  Members with the
same recipe share a *mix class*, and a class is encoded once.  Most members have nothing of their
own (the audience: every source at 1); a speaker has 0 at themselves; a block or a volume is
another number.  So a plan is rebuilt from the few members who have numbers of their own for a
source that sounds, and only when something changes.

Two rules keep the switch between classes inaudible.  A class that splits off *forks* the encoder
of the class it leaves, so its members' decoders notice nothing.  Members whose recipe becomes
that of another class again cannot be forked back: their class goes on beside it and joins at the
first quiet tick, at the latest after HOLD_NS.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocol.connection import MS
from protocol.opus import Encoder

HOLD_NS = 2_000 * MS
QUIET_PEAK = 10 ** (-50 / 20)  # -50 dBFS: what changes below it is not heard

Recipe = tuple[tuple[int, float], ...]  # (member id of a source, gain > 0), in the plan's order
Rows = NDArray[np.intp]
_NO_ROWS: Rows = np.zeros(0, np.intp)


@dataclass(slots=True, eq=False)
class MixClass:
    """Members who hear the same, and the encoder that they share.

    live: a talkspurt is under way, so the members' decoders follow this encoder.  limiter_gain:
    what the limiter ended the last frame with.  held_since_ns: since when another class has had
    the same recipe.
    """

    encoder: Encoder
    recipe: Recipe = ()
    rows: Rows = field(default_factory=lambda: _NO_ROWS)
    live: bool = False
    limiter_gain: float = 1.0
    peak: float = 0.0
    held_since_ns: int | None = None

    def fork(self) -> "MixClass":
        return MixClass(
            self.encoder.fork(),
            live=self.live,
            limiter_gain=self.limiter_gain,
        )


class Plan:
    """Classes and members of one space.  `changed` asks for `rebuild` before the next mix."""

    def __init__(self, new_encoder: Callable[[], Encoder]) -> None:
        self.classes: list[MixClass] = []  # those with a recipe and members; the audience's first
        self.changed = False
        self._new_encoder = new_encoder
        self._audience = MixClass(new_encoder())
        self._row_of: dict[int, int] = {}
        self._all_rows: Rows | None = _NO_ROWS
        self._gains: dict[int, dict[int, float]] = {}  # hearer -> source -> gain, where not 1
        self._class_of: dict[int, MixClass | None] = {}  # all who are not in the audience's

    def add_member(self, member: int, row: int) -> None:
        self._row_of[member] = row
        self._all_rows = None
        self.changed = True

    def remove_member(self, member: int) -> None:
        del self._row_of[member]
        self._gains.pop(member, None)
        self._class_of.pop(member, None)
        self._all_rows = None
        self.changed = True

    def set_gain(self, hearer: int, source: int, gain: float) -> None:
        """How loud `hearer` hears `source`: 1 as it is, 0 not at all."""
        gains = self._gains.setdefault(hearer, {})
        if gain == 1.0:
            gains.pop(source, None)
            if not gains:
                del self._gains[hearer]
        else:
            gains[source] = gain
        self.changed = True

    def forget_source(self, source: int) -> None:
        """It sounds no more; if it was of a member who has left, nobody needs a gain for it."""
        if source in self._row_of:
            self.set_gain(source, source, 1.0)
            return
        for hearer in [h for h, gains in self._gains.items() if source in gains]:
            self.set_gain(hearer, source, 1.0)

    # -- rebuilding -----------------------------------------------------------------------------

    def rebuild(self, active: Sequence[int], now_ns: int) -> None:
        """Plans for the sources that sound now, in the order of `active`."""
        self.changed = False
        everything: Recipe = tuple((source, 1.0) for source in active)
        moved = self._buckets(everything)
        self._audience.recipe = everything
        taken = [self._audience]
        members_of: dict[MixClass, list[int]] = {}
        class_of: dict[int, MixClass | None] = {}
        for (recipe, before), members in moved:
            if not recipe:
                class_of.update(dict.fromkeys(members))
                continue
            mix_class = self._choose(recipe, before, taken)
            if mix_class is self._audience:
                continue
            taken.append(mix_class)
            mix_class.recipe = recipe
            members_of.setdefault(mix_class, []).extend(members)
            class_of.update(dict.fromkeys(members, mix_class))
        self._class_of = class_of
        self._lay_out(members_of)
        self._hold(now_ns)

    def _buckets(
        self, everything: Recipe
    ) -> list[tuple[tuple[Recipe, MixClass | None], list[int]]]:
        """All members who are to be, or were, outside the audience's class, by what they hear
        now and the live class they come from; the largest group of each class comes first."""
        buckets: dict[tuple[Recipe, MixClass | None], list[int]] = {}
        for member in sorted(self._gains.keys() | self._class_of.keys()):
            if member not in self._row_of:
                continue
            gains = self._gains.get(member, {})
            recipe = tuple((s, g) for s, _ in everything if (g := gains.get(s, 1.0)) > 0.0)
            before = self._class_of.get(member, self._audience)
            if before is self._audience and recipe == everything:
                continue
            live = before if before is not None and before.live else None
            buckets.setdefault((recipe, live), []).append(member)
        return sorted(buckets.items(), key=lambda item: -len(item[1]))

    def _choose(self, recipe: Recipe, before: MixClass | None, taken: list[MixClass]) -> MixClass:
        """The class for a group: its own if no larger group has it, a fork of it otherwise; a
        group that heard nothing joins whoever hears the same (the audience first), or starts
        afresh."""
        if before is not None:
            return before.fork() if before in taken else before
        same = [c for c in taken if c.recipe == recipe and c.held_since_ns is None]
        return same[0] if same else MixClass(self._new_encoder())

    def _lay_out(self, members_of: dict[MixClass, list[int]]) -> None:
        for mix_class, members in members_of.items():
            mix_class.rows = np.array([self._row_of[m] for m in members], np.intp)
        if self._all_rows is None:
            self._all_rows = np.fromiter(self._row_of.values(), np.intp, len(self._row_of))
        others = [self._row_of[m] for m in self._class_of]
        self._audience.rows = (
            self._all_rows[~np.isin(self._all_rows, others)] if others else self._all_rows
        )
        self.classes = [c for c in (self._audience, *members_of) if c.recipe and len(c.rows)]
        if not len(self._audience.rows):
            self._audience.live = False

    # -- joining again ----------------------------------------------------------------------------

    def _hold(self, now_ns: int) -> None:
        """Marks every class whose recipe an earlier one in the list has already."""
        seen: set[Recipe] = set()
        for mix_class in self.classes:
            if mix_class.recipe not in seen:
                seen.add(mix_class.recipe)
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
            into = next(c for c in self.classes if c.recipe == held.recipe)
            into.rows = np.concatenate((into.rows, held.rows))
            self.classes.remove(held)
            for member, mix_class in list(self._class_of.items()):
                if mix_class is held:
                    if into is self._audience:
                        del self._class_of[member]
                    else:
                        self._class_of[member] = into
