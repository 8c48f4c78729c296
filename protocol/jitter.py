"""Decide: when does which packet play, and what takes the place of one that is not there.

Positions are RTP timestamps (48 kHz samples), never packet counts, so packets of any length, pauses
and losses all fit one time line. The buffer holds packets and knows times; it never touches audio:
`next` says what to do and `playout` does it.

One quantity steers everything: the *margin*, how long after the path's quickest packets a sample
is needed. A frame is in time if its relative delay is at most the margin. So a margin has a cost:
itself, and the share of frames that come later than it, each per cent of which is worth
some milliseconds. The buffer starts a talkspurt as soon as no later pull would be cheaper, and
while it plays it stretches or shortens the sound towards the cheapest margin.  Where a queue grows
on the path, it uses the pauses to be there before the frames come late.

A frame may come by several ways: its own packet, a copy in a later one, the in-band FEC of the
next. The first of them is when it came. So the buffer waits for copies exactly as far as that is
worth it, and not at all where nothing is lost.  A copy that was not needed says when the frame
would have come, had its own packet been lost, and counts as a small part of a frame: long bursts
are rare, and what reaches behind them would be forgotten from one to the next.
(After WebRTC's NetEQ: relative delay, forgetting histogram, its optimizer's cost of a loss,
decisions apart from decoding.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np

from protocol.opus import (
    GRAIN_SAMPLES,
    OpusError,
    packet_frame_samples,
    packet_has_fec,
    packet_samples,
)

MS: Final = 1_000_000  # ns

MAX_PACKETS: Final = 128
MAX_SPAN_SAMPLES: Final = 96_000  # 2 s; a timestamp further off than this is a jump
MAX_JUMP_NS: Final = 2_000 * MS
STEP_SAMPLES: Final = 960  # 20 ms, the usual frame and pull: concealed at a time
MAX_CONCEALED_SAMPLES: Final = 4_800  # 100 ms in a row: libopus has faded by then
REMEMBERED: Final = 256  # timestamps of frames that have come

MAX_MARGIN_MS: Final = 512
FIRST_MARGIN_MS: Final = 10  # while next to nothing is known of a path
FIRST_FRAMES: Final = 10
# What is thought of a path before it is known, as if so many frames had been seen: this share
# of them comes late, by so much on average.
PRIOR_FRAMES: Final = 30
PRIOR_SHARE: Final = 0.2
PRIOR_MS: Final = 2
# Next to no frame should be late where that is cheap: one in four thousand costs this much, and
# each doubling of their share as much again, until they are not rare any more.  In a space of low
# delay it costs nothing besides: there a frame now and then is given for what all others wait less.
RARE_MS: Final = 5
RARE_SHARE: Final = 2.5e-4
RARE_DOUBLINGS: Final = 3
GUARD_MS: Final = 2  # beyond the latest that was seen
# What a move must save, or sound would be stretched for nothing; and, if it is to a smaller margin,
# this share of it as well: frames that come late again cost more than those that wait.
WORTH_MS: Final = 2
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
STRETCH_INTERVAL_NS: Final = 40 * MS
URGENT_NS: Final = 60 * MS  # with so much to take back, each frame is shortened
PATIENCE_NS: Final = 1_000 * MS  # for how long a soft part of the sound is waited for
MAX_SURPLUS_NS: Final = 500 * MS


class Losing(NamedTuple):
    """How a path is looked at.

    loss_ms_per_percent: how much delay a per cent of late frames is worth.  slow_frames: see
    QUICK_FRAMES.  quick_times: by how much the quick memory may say less than the slow one.
    """

    loss_ms_per_percent: int
    slow_frames: int
    quick_times: int


PLAIN: Final = Losing(20, 300, 10)
# Copies are sent because frames are missing, in bursts: not to wait for them would waste them.
COPIED: Final = Losing(200, 800, 100)
SPARE_COPY_SHARE: Final = 0.0015  # of a frame that comes as late


class Action(Enum):
    DECODE = "decode"  # decode the payload
    FEC = "fec"  # recover the span before the payload from the payload's in-band FEC
    CONCEAL = "conceal"  # extrapolate
    SILENCE = "silence"  # nothing sounds


class Operation(NamedTuple):
    """What the decoder is to do for `samples` samples, starting at `timestamp` (unwrapped).

    first: a talkspurt begins, whose encoder was reset, so the decoder is to be reset before.
    stretch: what is decoded is to be shorter by up to so many samples (negative), or longer
    (positive), if that can be done unheard.  urgent: now; otherwise where the sound is soft.
    """

    action: Action
    samples: int
    payload: bytes | None
    timestamp: int
    first: bool = False
    stretch: int = 0
    urgent: bool = False


class Verdict(Enum):
    """What became of an inserted packet. At OVERFLOW and RESET it is in, and others went for it."""

    ACCEPTED = "accepted"
    LATE = "late"  # its time has passed
    DUPLICATE = "duplicate"
    OVERFLOW = "overflow"  # the buffer was full: the oldest had to go
    MALFORMED = "malformed"  # not the head of an Opus packet
    RESET = "reset"  # the timestamp jumped: everything starts anew from this packet


@dataclass(slots=True)
class JitterStats:
    """Counters since the start, but for the two gauges at the end."""

    accepted: int = 0
    late: int = 0
    duplicate: int = 0
    overflow: int = 0  # packets that went because the buffer was full
    malformed: int = 0
    reset: int = 0
    corrupt: int = 0  # packets that the decoder refused
    decoded: int = 0
    recovered_fec: int = 0
    recovered_copy: int = 0  # of `decoded`, those that came as a copy
    concealed_samples: int = 0
    dropped: int = 0  # packets in time that were given up: overlapped, or to take back delay
    talkspurts: int = 0
    shortened_samples: int = 0
    lengthened_samples: int = 0
    target_ns: int = FIRST_MARGIN_MS * MS  # the cheapest margin
    delay_ns: int = 0  # how long after the path's minimum the last packet played


class _Packet(NamedTuple):
    timestamp: int
    payload: bytes
    samples: int
    first: bool
    last: bool
    copy: bool


_timestamp = attrgetter("timestamp")
_MARGINS_MS = np.arange(MAX_MARGIN_MS + 1, dtype=np.float32)


def _duration_ns(samples: int) -> int:
    return samples * 62_500 // 3  # at 48 kHz


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
        # Of relative delays, a bin each ms, backwards: at each of the speeds.
        self._seen = np.zeros((3, MAX_MARGIN_MS), np.float32)
        late = PRIOR_SHARE * np.exp(-_MARGINS_MS[::-1] / PRIOR_MS)
        self._seen[:2] = np.diff(late)  # of what is rare nothing is thought before it was seen
        self._weights = np.zeros((3, 1), np.float32)
        # Backwards: shares in the last i bins.
        self._late = np.zeros((3, MAX_MARGIN_MS + 1), np.float32)
        self._queue = _Queue()
        self.base_ns: int | None = None
        self.latest_ns = 0  # relative delay of the last packet, whatever it is
        self.frames = 0
        self.copied: int | None = None  # how many frames had come when one came as a copy
        self.target_ms = FIRST_MARGIN_MS  # the cheapest margin
        self.cost_ms = _MARGINS_MS  # shape (MAX_MARGIN_MS + 1,): of each margin in ms

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

    def _settle(self, base_ns: int) -> None:
        """The minimum is this."""
        before_ns, self.base_ns = self.base_ns, base_ns
        if before_ns is not None and abs(base_ns - before_ns) >= MOST_DRIFT_NS:
            self._move(round((base_ns - before_ns) / MS))

    def _move(self, bins: int) -> None:
        """The minimum is another one: what was seen lies elsewhere above it."""
        moved = np.clip(np.arange(MAX_MARGIN_MS) + bins, 0, MAX_MARGIN_MS - 1)
        for seen in self._seen:
            seen[:] = np.bincount(moved, seen, MAX_MARGIN_MS)
        self._reckon()

    def record_frame(self, transit_ns: int) -> None:
        """A frame has come for the first time, in whatever packet."""
        # Until the memory is full all frames weigh the same: the first few already count.
        self.frames = frames = self.frames + 1
        weights = self._weights
        known = frames + PRIOR_FRAMES
        weights[0] = 1 / min(known, QUICK_FRAMES)
        weights[1] = 1 / min(known, self._losing.slow_frames)
        weights[2] = 1 / min(frames, RARE_FRAMES)
        place = self._bin(transit_ns)
        self._seen *= 1 - weights
        self._seen[:, place] += weights[:, 0]
        late = MAX_MARGIN_MS - 1 - place > self.target_ms
        if late or frames <= PLAIN.slow_frames or frames % RECKONED_FRAMES == 0:
            self._reckon()

    @property
    def _losing(self) -> Losing:
        copied = self.copied is not None and self.frames - self.copied <= COPIED.slow_frames
        return COPIED if copied else PLAIN

    def _reckon(self) -> None:
        """What each margin costs, by what was seen."""
        np.add.accumulate(self._seen, axis=1, out=self._late[:, 1:])
        quick, slow, rarely = self._late[:, ::-1]
        kind = self._losing
        late = np.minimum(quick * kind.quick_times, slow)
        self.cost_ms = _MARGINS_MS + 100 * kind.loss_ms_per_percent * late
        # Later than the latest that was seen by a guard: nothing is rare there.
        doublings = np.log2(1 + rarely * np.float32(1 / RARE_SHARE))
        rare_ms = self._rare_ms * np.minimum(doublings, RARE_DOUBLINGS)
        self.cost_ms[GUARD_MS:] += rare_ms[:-GUARD_MS]
        self.cost_ms[:GUARD_MS] += rare_ms[0]
        if self.frames >= FIRST_FRAMES:
            self.target_ms = int(self.cost_ms.argmin())

    def record_spare_copy(self, transit_ns: int) -> None:
        """A copy has come of a frame that was there: had that been lost, it would come now."""
        self._seen[:2, self._bin(transit_ns)] += SPARE_COPY_SHARE * self._weights[:2, 0]

    def _bin(self, transit_ns: int) -> int:
        """Of what is seen, which is kept backwards."""
        assert self.base_ns is not None
        return MAX_MARGIN_MS - 1 - min(max((transit_ns - self.base_ns) // MS, 0), MAX_MARGIN_MS - 1)

    @property
    def rise_ns(self) -> int:
        """By how much more than now the path will soon delay; 0 unless a queue grows on it."""
        return self._queue.rise_ns

    def pulls_to_move(self, margin_ns: int, pull_ns: int, turn: float = 0.0) -> int:
        """By how many pulls later (positive) or sooner playing would be cheapest, for a sample that
        is needed with this margin now; 0 if next to nothing can be saved.  turn: the share of a
        pull that must be saved besides if it is to be later, or, negative, sooner."""
        if self.frames < FIRST_FRAMES:
            return int(margin_ns < FIRST_MARGIN_MS * MS)
        here = min(max(margin_ns, 0), MAX_MARGIN_MS * MS)
        sooner = here // pull_ns
        margins_ns = np.arange(here - sooner * pull_ns, MAX_MARGIN_MS * MS + 1, pull_ns)
        costs = self.cost_ms[margins_ns // MS]
        best = int(costs.argmin())
        worth_ms = WORTH_MS + WORTH_SHARE * max(0, sooner - best) * pull_ns / MS
        if (best - sooner) * turn > 0:
            worth_ms += abs(turn) * pull_ns / MS
        return 0 if costs[best] + worth_ms >= costs[sooner] else best - sooner


class JitterBuffer:
    """Packets in by `insert`, decisions out by `next`. Bounded in packets, span and delay.

    low_delay: what is late now and then is not waited for."""

    def __init__(self, *, low_delay: bool = False) -> None:
        self.stats = JitterStats()
        self._low_delay = low_delay
        self._newest = 0  # unwrapped timestamp of the last packet: the next one is near it
        self._clear()

    def _clear(self) -> None:
        self._packets: list[_Packet] = []  # by timestamp, none twice
        self._path = PathDelay(low_delay=self._low_delay)
        self._came: dict[int, bool] = {}  # timestamps of the last frames; False: as FEC alone
        self._cursor: int | None = None  # the next sample to play; what lies before it is late
        self._playing = False
        self._waited_samples = 0  # concealed at the cursor, in the hope that its packet comes
        self._concealed_run_samples = 0
        self._stretched_ns = -STRETCH_INTERVAL_NS
        self._turn = 0.0  # see pulls_to_move, as it was then
        self._content_ns = 0  # when nothing was to be taken back, or some of it was

    @property
    def sounding(self) -> bool:
        """Whether a talkspurt is being played (its concealed parts included)."""
        return self._playing

    @property
    def waiting(self) -> bool:
        """Whether packets are held that are still to be played."""
        return bool(self._packets)

    @property
    def late_ns(self) -> int:
        """The relative delay of the last packet."""
        return self._path.latest_ns

    @property
    def spare_ns(self) -> int:
        """How much later the last packet was played than its path needs: its sender could send so
        much later.  0 while little is known."""
        if self._path.frames < FIRST_FRAMES:
            return 0
        return max(0, self.stats.delay_ns - self.stats.target_ns)

    # -- packets in

    def insert(
        self,
        timestamp: int,
        payload: bytes,
        now_ns: int,
        *,
        first: bool = False,
        last: bool = False,
        copy: bool = False,
    ) -> Verdict:
        """Take one packet: `timestamp` of its first sample (u32), `first`/`last` of a talkspurt.

        copy: it was in an earlier packet already, and comes once more with a later one, which is to
        be inserted before it.
        """
        stats = self.stats
        try:
            samples = packet_samples(payload)
        except OpusError:
            stats.malformed += 1
            return Verdict.MALFORMED

        # Unwrapped next to the newest one: at most half the range off, in either direction.
        unwrapped = self._newest + ((timestamp - self._newest + 2**31) % 2**32 - 2**31)
        transit_ns = now_ns - _duration_ns(unwrapped)
        verdict = Verdict.ACCEPTED
        if self._jumps(unwrapped, transit_ns):
            if copy:
                return Verdict.LATE
            self._clear()
            stats.reset += 1
            verdict = Verdict.RESET
        path = self._path
        if copy and path.base_ns is None:
            return Verdict.LATE
        if self._came.get(unwrapped):
            stats.duplicate += not copy
            if copy:
                path.record_spare_copy(transit_ns)
            return Verdict.DUPLICATE
        if not copy:
            self._newest = unwrapped
            path.record_packet(now_ns, transit_ns)
        if copy:
            path.copied = path.frames
        if unwrapped not in self._came:
            path.record_frame(transit_ns)
        self._remember(unwrapped, whole=True)
        if not copy and not first and packet_has_fec(payload):
            before = unwrapped - packet_frame_samples(payload)
            if before not in self._came:
                self._remember(before, whole=False)
                path.record_frame(now_ns - _duration_ns(before))
        stats.target_ns = path.target_ms * MS
        if self._cursor is not None and unwrapped < self._cursor:
            stats.late += not copy
            return Verdict.LATE

        stats.accepted += 1
        packets = self._packets
        place = bisect_left(packets, unwrapped, key=_timestamp)
        packets.insert(place, _Packet(unwrapped, payload, samples, first, last, copy))
        while (
            len(packets) > MAX_PACKETS
            or packets[-1].timestamp - packets[0].timestamp > MAX_SPAN_SAMPLES
        ):
            del packets[0]
            stats.overflow += 1
            verdict = Verdict.OVERFLOW
        return verdict

    def _remember(self, timestamp: int, *, whole: bool) -> None:
        self._came[timestamp] = whole
        if len(self._came) > REMEMBERED:
            del self._came[next(iter(self._came))]

    def _jumps(self, timestamp: int, transit_ns: int) -> bool:
        base_ns = self._path.base_ns
        if base_ns is None or abs(transit_ns - base_ns) <= MAX_JUMP_NS:
            return False
        # A little behind the cursor it is just very late; ahead of it, the sender's clock jumped.
        return (
            self._cursor is None
            or abs(timestamp - self._cursor) > MAX_SPAN_SAMPLES
            or timestamp >= self._cursor
        )

    # -- decisions out

    def next(
        self, now_ns: int, needed_samples: int = STEP_SAMPLES, filled_samples: int = 0
    ) -> Operation:
        """What the decoder is to do next, called whenever the output needs more samples.

        `needed_samples` is how many the caller still needs at this moment, after those that it has
        already for this pull. What is taken in one block has to be there in one go, so short
        packets are held until they fill it. The operation may yield more or fewer samples than
        needed; SILENCE yields as many as needed.
        """
        pull_ns = _duration_ns(needed_samples + filled_samples)
        self._discard_overtaken(now_ns, needed_samples, pull_ns)
        if self._packets and self._hopeless(now_ns, self._packets[0], needed_samples):
            self._stop()
        if not self._playing:
            return self._start(now_ns, needed_samples, filled_samples)
        if not self._packets:
            return self._wait(needed_samples)
        head = self._packets[0]
        assert self._cursor is not None
        missing_samples = head.timestamp - self._cursor - self._waited_samples
        if missing_samples <= 0:
            return self._play(now_ns, needed_samples, filled_samples)
        if head.first or self._concealed_run_samples >= MAX_CONCEALED_SAMPLES:
            # The gap is a pause (or too long to pretend otherwise): what comes in it is too late.
            self._cursor = head.timestamp
            self._stop()
            return self._start(now_ns, needed_samples, filled_samples)
        return self._bridge(head, missing_samples, needed_samples)

    def _discard_overtaken(self, now_ns: int, needed_samples: int, pull_ns: int) -> None:
        """Drop what the cursor has passed, and late packets that would only have to be taken back.

        When packets come after concealment has stood in for them, playing them makes the delay
        grow. That is right as far as it is worth it; beyond that they are as good as lost.
        """
        if self._cursor is None:
            return
        packets = self._packets
        while packets and packets[0].timestamp < self._cursor:
            self._drop_head()
        due = self._cursor + self._waited_samples
        while packets and packets[0].timestamp < due:
            margin_ns = self._margin_ns(now_ns, packets[0], needed_samples)
            surplus_ns = -self._path.pulls_to_move(margin_ns, pull_ns) * pull_ns
            if surplus_ns < _duration_ns(packets[0].samples):
                break
            self._drop_head()

    def _start(self, now_ns: int, needed_samples: int, filled_samples: int) -> Operation:
        """Between talkspurts: hold the next one until no later pull would be cheaper."""
        packets = self._packets
        path = self._path
        # After a long stall, or when nobody has pulled for a while, what is hopelessly old goes:
        # down to what the path gives now, which may be worse than any target.
        if packets and self._hopeless(now_ns, packets[0], needed_samples):
            wanted_ns = max(path.target_ms * MS, path.latest_ns)
            while packets and self._margin_ns(now_ns, packets[0], needed_samples) > wanted_ns + (
                _duration_ns(packets[0].samples)
            ):
                self._drop_head()
        if not packets:
            return self._silence(needed_samples)
        margin_ns = self._margin_ns(now_ns, packets[0], needed_samples)
        pull_ns = _duration_ns(needed_samples + filled_samples)
        if margin_ns < 0 or path.pulls_to_move(margin_ns - path.rise_ns, pull_ns) > 0:
            return self._silence(needed_samples)
        self._playing = True
        self.stats.talkspurts += 1
        # Even if its first packet was lost: what the decoder remembers is of no use to it.
        return self._play(now_ns, needed_samples, filled_samples)._replace(first=True)

    def _stop(self) -> None:
        self._playing = False
        self._waited_samples = 0
        self._concealed_run_samples = 0

    def _silence(self, needed_samples: int) -> Operation:
        return Operation(Action.SILENCE, needed_samples, None, self._cursor or 0)

    def _play(self, now_ns: int, needed_samples: int, filled_samples: int) -> Operation:
        """Decode the head of the buffer."""
        packet = self._packets[0]
        stretch, urgent = self._stretch(now_ns, packet, needed_samples, filled_samples)
        del self._packets[0]
        stats = self.stats
        assert self._path.base_ns is not None
        stats.delay_ns = now_ns - _duration_ns(packet.timestamp - filled_samples)
        stats.delay_ns -= self._path.base_ns
        stats.decoded += 1
        stats.recovered_copy += packet.copy
        self._cursor = packet.timestamp + packet.samples
        self._waited_samples = 0
        self._concealed_run_samples = 0
        if packet.last:
            self._stop()
        return Operation(
            Action.DECODE,
            packet.samples,
            packet.payload,
            packet.timestamp,
            packet.first,
            stretch,
            urgent,
        )

    def _wait(self, needed_samples: int) -> Operation:
        """Nothing is there: conceal, but leave the cursor, so that what comes late still plays."""
        samples = min(_whole_grains(needed_samples), STEP_SAMPLES)
        if self._concealed_run_samples + samples > MAX_CONCEALED_SAMPLES:
            self._stop()
            return self._silence(needed_samples)
        assert self._cursor is not None
        timestamp = self._cursor + self._waited_samples
        self._waited_samples += samples
        return self._conceal(samples, timestamp)

    def _bridge(self, head: _Packet, missing_samples: int, needed_samples: int) -> Operation:
        """Later packets are there: what is missing before them is lost. Fill it and move on."""
        position = head.timestamp - missing_samples
        self._waited_samples = 0
        reach_samples = packet_frame_samples(head.payload) if packet_has_fec(head.payload) else 0
        if missing_samples == reach_samples:
            self._cursor = head.timestamp
            self._concealed_run_samples = 0
            self.stats.recovered_fec += 1
            return Operation(Action.FEC, reach_samples, head.payload, position)
        if missing_samples > reach_samples:
            missing_samples -= reach_samples
        step = min(missing_samples, STEP_SAMPLES)
        self._cursor = position + step
        return self._conceal(_whole_grains(step), position)

    def _conceal(self, samples: int, timestamp: int) -> Operation:
        self._concealed_run_samples += samples
        self.stats.concealed_samples += samples
        return Operation(Action.CONCEAL, samples, None, timestamp)

    # -- delay

    def _stretch(
        self, now_ns: int, packet: _Packet, needed_samples: int, filled_samples: int
    ) -> tuple[int, bool]:
        """-> (by how much the frame may be shortened, negative, or lengthened; whether it must not
        wait).

        A frame that begins within a pull plays later than it is needed; shortening as far as the
        pull's beginning costs no margin, and lasts if all frames begin there. Beyond that the
        margin is another one, by a pull.
        """
        pull_samples = needed_samples + filled_samples
        pull_ns = _duration_ns(pull_samples)
        margin_ns = self._margin_ns(now_ns, packet, needed_samples)
        whole = packet.samples % pull_samples == 0 or pull_samples % packet.samples == 0
        if not whole:  # other frames will begin at the end of a pull, and be needed soonest
            margin_ns -= _duration_ns(needed_samples)
        turn = self._turn * 0.5 ** ((now_ns - self._stretched_ns) / TURN_NS)
        path = self._path
        soon_ns = margin_ns - path.rise_ns
        surplus_ns = -path.pulls_to_move(soon_ns, pull_ns, turn) * pull_ns
        if not surplus_ns:
            self._content_ns = now_ns
        urgent = surplus_ns >= URGENT_NS
        if not urgent and now_ns - self._stretched_ns < STRETCH_INTERVAL_NS:
            return 0, False
        if surplus_ns < 0:
            # Before more frames come too late; what is only expected waits for a pause.
            return packet.samples, path.pulls_to_move(margin_ns, pull_ns, turn) > 0
        most_samples = surplus_ns * 3 // 62_500 + (filled_samples if whole else 0)
        return -most_samples, urgent or now_ns - self._content_ns >= PATIENCE_NS

    def stretched(self, samples: int, now_ns: int) -> None:
        """The last frame has become longer by so many samples, or shorter (negative)."""
        self._stretched_ns = self._content_ns = now_ns
        self._turn = -TURN_SHARE if samples > 0 else TURN_SHARE
        if samples > 0:
            self.stats.lengthened_samples += samples
        else:
            self.stats.shortened_samples -= samples

    def _margin_ns(self, now_ns: int, packet: _Packet, needed_samples: int) -> int:
        """How long after the path's quickest packets this one is needed, if it plays now.

        Of packets shorter than what is needed at once, it is the last one needed that counts.
        """
        assert self._path.base_ns is not None
        ahead_samples = max(0, needed_samples - packet.samples)
        return now_ns - _duration_ns(packet.timestamp + ahead_samples) - self._path.base_ns

    def _hopeless(self, now_ns: int, packet: _Packet, needed_samples: int) -> bool:
        wanted_ns = max(self._path.target_ms * MS, self._path.latest_ns)
        return self._margin_ns(now_ns, packet, needed_samples) > wanted_ns + MAX_SURPLUS_NS

    def _drop_head(self) -> None:
        del self._packets[0]
        self.stats.dropped += 1


def _whole_grains(samples: int) -> int:
    return -(-samples // GRAIN_SAMPLES) * GRAIN_SAMPLES
