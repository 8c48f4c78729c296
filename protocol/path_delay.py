"""How long a path takes, and what it costs to wait for its frames.

One quantity steers everything: the *margin*, how long after the path's quickest packets a sample
is needed. A frame is in time if its relative delay is at most the margin. So a margin has a cost:
itself, and the share of frames that come later than it, each per cent of which is worth some
milliseconds; of a frame that is late by a part of itself, only that part is missing.  Where a queue
grows on the path, more is expected than was seen.

A frame may come by several ways: its own packet, a copy in a later one, the in-band FEC of the
next. The first of them is when it came. So copies are waited for exactly as far as that is
worth it, and not at all where nothing is lost.  A copy that was not needed says when the frame
would have come, had its own packet been lost, and counts as a small part of a frame: long bursts
are rare, and what reaches behind them would be forgotten from one to the next.
(After WebRTC's NetEQ: relative delay, forgetting histogram, its optimizer's cost of a loss.)
"""

from __future__ import annotations

from collections import deque
from itertools import islice, pairwise
from typing import Final, NamedTuple

import numpy as np

MS: Final = 1_000_000  # ns

MAX_MARGIN_MS: Final = 512
FIRST_MARGIN_MS: Final = 10  # while next to nothing is known of a path
FIRST_FRAMES: Final = 10
# What is thought of a path before it is known, as if so many frames had been seen: this share
# of them comes late, by so much on average.
PRIOR_FRAMES: Final = 30
PRIOR_SHARE: Final = 0.2
PRIOR_MS: Final = 2
# Next to no frame should be late where that is cheap: one in four thousand costs this much, and
# each doubling of their share as much again, until they are not rare any more.  Those that never
# come are among them.  In a space of low delay it costs nothing besides: there a frame now and then
# is given for what all others wait less.
RARE_MS: Final = 5
RARE_SHARE: Final = 2.5e-4
RARE_DOUBLINGS: Final = 3
GUARD_MS: Final = 2  # beyond the latest that was seen
# What a move must save, or sound would be stretched for nothing; and, if it is to a smaller margin,
# this share of it as well: frames that come late again cost more than those that wait.
WORTH_MS: Final = 4
WORTH_SHARE: Final = 0.1
# A move back, soon after the last one, must save this share of a pull besides; half of it after
# each TURN_NS.  Where two margins cost about the same, the sound is not to go to and fro.
TURN_SHARE: Final = 0.4
TURN_NS: Final = 10_000 * MS
# What was seen is forgotten at three speeds.  Frames that come late count as far as the first two
# agree: the slow one is steady, the quick one says when something is over.  The third one is for
# what is rare.
QUICK_FRAMES: Final = 50
RARE_FRAMES: Final = 6_000
RECKONED_FRAMES: Final = 4  # of those in time: what margins cost is not reckoned anew at each
MOST_DRIFT_NS: Final = 2 * MS  # of the minimum at a time; a change of route is more
# A queue grows where the least delay rises from each block of packets to the next, twice in a row
# (a step is one rise).  It is expected to grow on like that for some blocks more.
BLOCK_PACKETS: Final = 16
BLOCKS_AHEAD: Final = 5
LEAST_RISE_NS: Final = 5 * MS  # in a block
MAX_RISE_NS: Final = 100 * MS  # that is expected
# So many packets in a row that are late by the same, give or take so much, are no spike that
# drains: the path has become that slow, whatever was seen of it before.
SETTLED_PACKETS: Final = 2
SETTLED_NS: Final = 15 * MS
CALM_PACKETS: Final = 50  # see Losing


class Losing(NamedTuple):
    """How a path is looked at.

    loss_ms_per_percent: how much delay a per cent of late frames is worth.  slow_frames: see
    QUICK_FRAMES.  quick_times: by how much the quick memory may say less than the slow one.
    calm_ms: no margin is worth waiting that is above the latest of the last packets (CALM_PACKETS)
    by more than this, which leaves room for spikes, or for copies: an outage or a queue that is
    over is not waited for, however many frames it made late.
    """

    loss_ms_per_percent: int
    slow_frames: int
    quick_times: int
    calm_ms: int


PLAIN: Final = Losing(20, 400, 10, 100)
# Copies are sent because frames are missing, in bursts: not to wait for them would waste them.
COPIED: Final = Losing(200, 800, 100, 250)
SPARE_COPY_SHARE: Final = 0.0015  # of a frame that comes as late


_MARGINS_MS = np.arange(MAX_MARGIN_MS + 1, dtype=np.float32)


class _Queue:
    """Whether one grows on the path: it is met in the pauses before it makes frames late."""

    def __init__(self) -> None:
        self._leasts_ns: deque[int] = deque(maxlen=3)  # of the last whole blocks
        self._least_ns = 0  # of this one
        self._packets = 0
        self.rise_ns = 0  # that is expected

    def record(self, transit_ns: int) -> None:
        if self._packets == 0 or transit_ns < self._least_ns:
            self._least_ns = transit_ns
        self._packets += 1
        if self._packets < BLOCK_PACKETS:
            return
        self._packets = 0
        leasts_ns = self._leasts_ns
        leasts_ns.append(self._least_ns)
        rises_ns = [after - before for before, after in pairwise(leasts_ns)]
        if len(rises_ns) == 2 and min(rises_ns) >= LEAST_RISE_NS:
            self.rise_ns = min(BLOCKS_AHEAD * min(rises_ns), MAX_RISE_NS)
        else:
            self.rise_ns = 0


class PathDelay:
    """The path's quickest transit, and what each margin above it costs.

    Transit is arrival minus timestamp: the sender's clock starts anywhere, so only differences of
    it mean something. The minimum slides over the last ten seconds and so follows clock drift and
    changes of route; how far the frames spread above it stays known. A clock that drifts takes all
    of it along; at a change of route what was seen lies elsewhere above the new minimum.
    """

    WINDOW_NS: Final = 10_000 * MS
    SLICE_NS: Final = 1_000 * MS  # the window moves in steps of this

    def __init__(self, *, low_delay: bool = False) -> None:
        self._rare_ms = 0 if low_delay else RARE_MS
        self._minima: deque[tuple[int, int]] = deque()  # (start of a slice, its least transit)
        # Of relative delays, a bin each ms, backwards: at each of the speeds.  What was forgotten
        # since margins were reckoned is still in it, so that a frame touches one bin of each.
        self._seen = np.zeros((3, MAX_MARGIN_MS), np.float32)
        self._kept = [1.0, 1.0, 1.0]  # the share of it that is not forgotten
        late = PRIOR_SHARE * np.exp(-_MARGINS_MS[::-1] / PRIOR_MS)
        self._seen[:2] = np.diff(late)  # of what is rare nothing is thought before it was seen
        self._weights = (0.0, 0.0, 0.0)  # of the last frame
        # Backwards: shares in the last i bins.
        self._late = np.zeros((3, MAX_MARGIN_MS + 1), np.float32)
        self._missing = 0.0  # share of the frames that have not come, remembered like what is rare
        self._queue = _Queue()
        self._lately_ns: deque[int] = deque(maxlen=CALM_PACKETS)  # transits
        self.base_ns: int | None = None
        self.latest_ns = 0  # relative delay of the last packet, whatever it is
        self.frames = 0
        self.copied: int | None = None  # how many frames had come when one came as a copy
        self.target_ms = FIRST_MARGIN_MS  # the cheapest margin
        # What each margin in ms costs, itself included, shape (MAX_MARGIN_MS + 1,): if nothing were
        # late by more than it, but for what is rare; and what is late.
        self._wait_ms = self._late_ms = _MARGINS_MS

    def record_packet(self, arrival_ns: int, transit_ns: int) -> None:
        """A packet has come by the path."""
        minima = self._minima
        known = len(minima)
        while minima and arrival_ns - minima[0][0] >= self.WINDOW_NS:
            minima.popleft()
        changed = len(minima) < known
        if not minima or arrival_ns - minima[-1][0] >= self.SLICE_NS:
            minima.append((arrival_ns, transit_ns))
            changed = True
        elif transit_ns < minima[-1][1]:
            minima[-1] = (minima[-1][0], transit_ns)
            changed = True
        if changed:
            self._settle(min(least_ns for _, least_ns in minima))
        assert self.base_ns is not None
        self.latest_ns = transit_ns - self.base_ns
        self._queue.record(transit_ns)
        self._lately_ns.append(transit_ns)

    def _settle(self, base_ns: int) -> None:
        """The minimum is this."""
        before_ns, self.base_ns = self.base_ns, base_ns
        if before_ns is not None and abs(base_ns - before_ns) >= MOST_DRIFT_NS:
            self._move(round((base_ns - before_ns) / MS))

    def _move(self, bins: int) -> None:
        """The minimum is another one: what was seen lies elsewhere above it."""
        self._forget()
        moved = np.clip(np.arange(MAX_MARGIN_MS) + bins, 0, MAX_MARGIN_MS - 1)
        for seen in self._seen:
            seen[:] = np.bincount(moved, seen, MAX_MARGIN_MS)
        self._reckon()

    def record_missing(self) -> None:
        """A later frame has come, and one before it has not."""
        self._missing += self._weights[2]

    def record_frame(self, transit_ns: int, *, missed: bool = False) -> None:
        """A frame has come for the first time, in whatever packet.  missed: a later one was here
        before."""
        if missed:
            self._missing = max(0.0, self._missing - self._weights[2])
        # Until the memory is full all frames weigh the same: the first few already count.
        self.frames = frames = self.frames + 1
        known = frames + PRIOR_FRAMES
        weights = self._weights = (
            1 / min(known, QUICK_FRAMES),
            1 / min(known, self._losing.slow_frames),
            1 / min(frames, RARE_FRAMES),
        )
        place = self._bin(transit_ns)
        seen, kept = self._seen, self._kept
        for speed, weight in enumerate(weights):
            # Before the first frame nothing is known of what is rare: then all of it is kept.
            kept[speed] = kept[speed] * (1 - weight) or 1.0
            seen[speed, place] += weight / kept[speed]
        self._missing *= 1 - weights[2]
        late = MAX_MARGIN_MS - 1 - place > self.target_ms
        if late or frames <= PLAIN.slow_frames or frames % RECKONED_FRAMES == 0:
            self._reckon()

    @property
    def _losing(self) -> Losing:
        copied = self.copied is not None and self.frames - self.copied <= COPIED.slow_frames
        return COPIED if copied else PLAIN

    def _forget(self) -> None:
        self._seen *= np.array(self._kept, np.float32)[:, None]
        self._kept = [1.0, 1.0, 1.0]

    def _reckon(self) -> None:
        """What each margin costs, by what was seen."""
        self._forget()
        np.add.accumulate(self._seen, axis=1, out=self._late[:, 1:])
        quick, slow, rarely = self._late[:, ::-1]
        kind = self._losing
        late = np.minimum(quick * kind.quick_times, slow)
        self._late_ms = 100 * kind.loss_ms_per_percent * late
        # Later than the latest that was seen by a guard: nothing is rare there.
        doublings = np.log2(1 + (rarely + self._missing) * np.float32(1 / RARE_SHARE))
        rare_ms = self._rare_ms * np.minimum(doublings, RARE_DOUBLINGS)
        self._wait_ms = _MARGINS_MS.copy()
        self._wait_ms[GUARD_MS:] += rare_ms[:-GUARD_MS]
        self._wait_ms[:GUARD_MS] += rare_ms[0]
        if self.frames >= FIRST_FRAMES:
            self.target_ms = int((self._wait_ms + self._late_ms).argmin())

    def record_spare_copy(self, transit_ns: int) -> None:
        """A copy has come of a frame that was there: had that been lost, it would come now."""
        place = self._bin(transit_ns)
        for speed in (0, 1):
            self._seen[speed, place] += SPARE_COPY_SHARE * self._weights[speed] / self._kept[speed]

    def _bin(self, transit_ns: int) -> int:
        """Of what is seen, which is kept backwards."""
        assert self.base_ns is not None
        return MAX_MARGIN_MS - 1 - min(max((transit_ns - self.base_ns) // MS, 0), MAX_MARGIN_MS - 1)

    @property
    def rise_ns(self) -> int:
        """By how much more than now the path will soon delay; 0 unless a queue grows on it."""
        return self._queue.rise_ns

    def _settled_ns(self, here_ns: int) -> int:
        """The least margin that suits the last packets, if they came alike: of those that are all
        late by the margin there is now, the latest decides, else none is to become late."""
        last_ns = list(islice(reversed(self._lately_ns), SETTLED_PACKETS))
        least_ns, most_ns = min(last_ns), max(last_ns)
        if len(last_ns) < SETTLED_PACKETS or most_ns - least_ns > SETTLED_NS:
            return 0
        assert self.base_ns is not None
        latest_ns = most_ns - self.base_ns
        return latest_ns if least_ns - self.base_ns > here_ns else min(latest_ns, here_ns)

    def pulls_to_move(
        self,
        margin_ns: int,
        pull_ns: int,
        frame_ns: int,
        *,
        turn: float = 0.0,
        ahead_ns: int = 0,
    ) -> int:
        """By how many pulls later (positive) or sooner playing would be cheapest, for a frame that
        is needed with this margin now; 0 if next to nothing can be saved.  turn: the share of a
        pull that must be saved besides if it is to be later, or, negative, sooner.  ahead_ns: so
        long before it plays it is needed, so it would be later by so much less than whole pulls.
        Pulls are reckoned in whole ms."""
        if self.frames < FIRST_FRAMES:
            return int(margin_ns < FIRST_MARGIN_MS * MS)
        pull_ms = max(1, round(pull_ns / MS))
        pull_ns = pull_ms * MS
        here_ns = min(max(margin_ns, 0), MAX_MARGIN_MS * MS)
        sooner = here_ns // pull_ns
        first_ns = here_ns - sooner * pull_ns
        margins_ms = slice(first_ns // MS, None, pull_ms)  # what pulls can give
        late_ms = self._late_ms[margins_ms]
        # A frame of several pulls is concealed only in those by which it is late.
        pulls = max(1, frame_ns // pull_ns)
        costs = self._wait_ms[margins_ms] + late_ms / pulls
        for later in range(1, pulls):
            costs[:-later] += late_ms[later:] / pulls
        if ahead_ns:
            costs[sooner + 1 :] -= ahead_ns / MS
        assert self.base_ns is not None
        calm_ns = max(self._lately_ns) - self.base_ns + self._losing.calm_ms * MS
        least = min(_pulls_to(self._settled_ns(here_ns) - first_ns, pull_ns), len(costs) - 1)
        most = max(_pulls_to(calm_ns - first_ns, pull_ns), least)
        best = least + int(costs[least : most + 1].argmin())
        if not least <= sooner <= most:
            return best - sooner
        worth_ms = WORTH_MS + WORTH_SHARE * max(0, sooner - best) * pull_ns / MS
        if (best - sooner) * turn > 0:
            worth_ms += abs(turn) * pull_ns / MS
        return 0 if costs[best] + worth_ms >= costs[sooner] else best - sooner


def _pulls_to(margin_ns: int, pull_ns: int) -> int:
    """How many pulls reach so far, at least."""
    return max(0, -(-margin_ns // pull_ns))
