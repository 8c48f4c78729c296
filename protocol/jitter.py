"""Decide: when does which packet play, and what takes the place of one that is not there.

Positions are RTP timestamps (48 kHz samples), never packet counts, so packets of any length, pauses
and losses all fit one time line. The buffer holds packets and knows times; it never touches audio:
`next` says what to do and `playout` does it.

One quantity steers everything: the *margin*, how long after the path's quickest packets the sample
at the cursor plays. A packet is in time if its relative delay is at most the margin; so a talkspurt
starts as soon as the margin reaches the target, a high quantile of the relative delays seen.
(After WebRTC's NetEQ: relative delay, forgetting histogram, decisions apart from decoding.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from enum import Enum
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
TARGET_FLOOR_NS: Final = 5 * MS
TARGET_CEILING_NS: Final = 500 * MS
STEP_SAMPLES: Final = 960  # 20 ms, the usual frame and pull: concealed and taken back at a time
MAX_CONCEALED_SAMPLES: Final = 4_800  # 100 ms in a row: libopus has faded by then
SURPLUS_SLACK_NS: Final = 10 * MS  # or a late packet and a skip would take turns for ever
CALM_SLACK_NS: Final = 5 * MS  # while no packet was late for CALM_NS
CALM_NS: Final = 10_000 * MS
SURPLUS_PATIENCE_NS: Final = 1_000 * MS
SKIP_INTERVAL_NS: Final = 200 * MS
MAX_SURPLUS_NS: Final = 500 * MS


class Action(Enum):
    DECODE = "decode"  # decode the payload
    FEC = "fec"  # recover the span before the payload from the payload's in-band FEC
    CONCEAL = "conceal"  # extrapolate
    SILENCE = "silence"  # nothing sounds


class Operation(NamedTuple):
    """What the decoder is to do for `samples` samples, starting at `timestamp` (unwrapped).

    first: a talkspurt begins, whose encoder was reset, so the decoder is to be reset before.
    """

    action: Action
    samples: int
    payload: bytes | None
    timestamp: int
    first: bool = False


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
    concealed_samples: int = 0
    dropped: int = 0  # packets in time that were given up: overlapped, or to take back delay
    talkspurts: int = 0
    target_ns: int = TARGET_FLOOR_NS
    delay_ns: int = 0  # how long after the path's minimum the last packet played


class _Packet(NamedTuple):
    timestamp: int
    payload: bytes
    samples: int
    first: bool
    last: bool


_timestamp = attrgetter("timestamp")


def _duration_ns(samples: int) -> int:
    return samples * 62_500 // 3  # at 48 kHz


class PathDelay:
    """The path's quickest transit, and how much later the bulk of the packets comes.

    Transit is arrival minus timestamp: the sender's clock starts anywhere, so only differences of
    it mean something. The minimum slides over the last ten seconds and so follows clock drift and
    changes of route; after a longer pause it starts anew, for the clocks have drifted meanwhile.
    How far the packets spread above it stays known.
    """

    BIN_NS: Final = 2_500_000
    BINS: Final = TARGET_CEILING_NS // BIN_NS
    QUANTILE: Final = 0.97
    MEMORY_PACKETS: Final = 100
    WINDOW_NS: Final = 10_000 * MS
    SLICE_NS: Final = 1_000 * MS  # the window moves in steps of this

    def __init__(self) -> None:
        self._minima: deque[tuple[int, int]] = deque()  # (start of a slice, its least transit)
        self._histogram = np.zeros(self.BINS)
        self._packets = 0
        self.base_ns: int | None = None
        self.latest_ns = 0  # relative delay of the last packet, whatever it is
        self.target_ns = TARGET_FLOOR_NS

    def record(self, arrival_ns: int, transit_ns: int) -> None:
        minima = self._minima
        while minima and arrival_ns - minima[0][0] >= self.WINDOW_NS:
            minima.popleft()
        if not minima or arrival_ns - minima[-1][0] >= self.SLICE_NS:
            minima.append((arrival_ns, transit_ns))
        elif transit_ns < minima[-1][1]:
            minima[-1] = (minima[-1][0], transit_ns)
        self.base_ns = min(least_ns for _, least_ns in minima)
        self.latest_ns = transit_ns - self.base_ns

        # Until the memory is full all packets weigh the same: the first few already count.
        self._packets = min(self._packets + 1, self.MEMORY_PACKETS)
        weight = 1 / self._packets
        self._histogram *= 1 - weight
        self._histogram[min(self.latest_ns // self.BIN_NS, self.BINS - 1)] += weight
        reached = int(self._histogram.cumsum().searchsorted(self.QUANTILE))
        self.target_ns = min(max((reached + 1) * self.BIN_NS, TARGET_FLOOR_NS), TARGET_CEILING_NS)


class JitterBuffer:
    """Packets in by `insert`, decisions out by `next`. Bounded in packets, span and delay."""

    def __init__(self) -> None:
        self.stats = JitterStats()
        self._newest = 0  # unwrapped timestamp of the last packet: the next one is near it
        self._clear()

    def _clear(self) -> None:
        self._packets: list[_Packet] = []  # by timestamp, none twice
        self._path = PathDelay()
        self._cursor: int | None = None  # the next sample to play; what lies before it is late
        self._playing = False
        self._waited_samples = 0  # concealed at the cursor, in the hope that its packet comes
        self._concealed_run_samples = 0
        self._surplus_since_ns: int | None = None
        self._last_skip_ns = 0
        self._trouble_ns: int | None = None  # when a packet was last late, or missing when needed

    @property
    def sounding(self) -> bool:
        """Whether a talkspurt is being played (its concealed parts included)."""
        return self._playing

    @property
    def waiting(self) -> bool:
        """Whether packets are held that are still to be played."""
        return bool(self._packets)

    # -- packets in

    def insert(
        self,
        timestamp: int,
        payload: bytes,
        now_ns: int,
        *,
        first: bool = False,
        last: bool = False,
    ) -> Verdict:
        """Take one packet: `timestamp` of its first sample (u32), `first`/`last` of a talkspurt."""
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
            self._clear()
            stats.reset += 1
            verdict = Verdict.RESET

        packets = self._packets
        place = bisect_left(packets, unwrapped, key=_timestamp)
        if place < len(packets) and packets[place].timestamp == unwrapped:
            stats.duplicate += 1
            return Verdict.DUPLICATE
        self._newest = unwrapped
        self._path.record(now_ns, transit_ns)
        stats.target_ns = self._path.target_ns
        if self._cursor is not None and unwrapped < self._cursor:
            stats.late += 1
            self._trouble_ns = now_ns
            return Verdict.LATE

        stats.accepted += 1
        packets.insert(place, _Packet(unwrapped, payload, samples, first, last))
        while (
            len(packets) > MAX_PACKETS
            or packets[-1].timestamp - packets[0].timestamp > MAX_SPAN_SAMPLES
        ):
            del packets[0]
            stats.overflow += 1
            verdict = Verdict.OVERFLOW
        return verdict

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

    def next(self, now_ns: int, needed_samples: int = STEP_SAMPLES) -> Operation:
        """What the decoder is to do next, called whenever the output needs more samples.

        `needed_samples` is how many the caller still needs at this moment. What is taken in one
        block has to be there in one go, so short packets are held until they fill it. The operation
        may yield more or fewer samples than needed; SILENCE yields as many as needed.
        """
        self._discard_overtaken(now_ns, needed_samples)
        if self._packets and self._hopeless(now_ns, self._packets[0], needed_samples):
            self._stop()
        if not self._playing:
            return self._start(now_ns, needed_samples)
        if not self._packets:
            self._trouble_ns = now_ns
            return self._wait(needed_samples)
        head = self._packets[0]
        assert self._cursor is not None
        missing_samples = head.timestamp - self._cursor - self._waited_samples
        if missing_samples <= 0:
            return self._play(now_ns, needed_samples)
        if head.first or self._concealed_run_samples >= MAX_CONCEALED_SAMPLES:
            # The gap is a pause (or too long to pretend otherwise): what comes in it is too late.
            self._cursor = head.timestamp
            self._stop()
            return self._start(now_ns, needed_samples)
        return self._bridge(head, missing_samples, needed_samples)

    def _discard_overtaken(self, now_ns: int, needed_samples: int) -> None:
        """Drop what the cursor has passed, and late packets that would only have to be taken back.

        When packets come after concealment has stood in for them, playing them makes the delay
        grow. That is right as far as the target asks for it; beyond that they are as good as lost,
        because a frame would have to go for each of them soon after.
        """
        if self._cursor is None:
            return
        packets = self._packets
        while packets and packets[0].timestamp < self._cursor:
            self._drop_head()
        due = self._cursor + self._waited_samples
        while (
            packets
            and packets[0].timestamp < due
            and self._spare_ns(now_ns, packets[0], needed_samples) > 0
        ):
            self._drop_head()

    def _start(self, now_ns: int, needed_samples: int) -> Operation:
        """Between talkspurts: hold the next one until its margin reaches the target."""
        packets = self._packets
        path = self._path
        # After a long stall, or when nobody has pulled for a while, what is hopelessly old goes:
        # down to what the path gives now, which may be worse than any target.
        if packets and self._hopeless(now_ns, packets[0], needed_samples):
            while packets and self._margin_ns(now_ns, packets[0], needed_samples) > _duration_ns(
                packets[0].samples
            ) + max(path.target_ns, path.latest_ns):
                self._drop_head()
        if not packets or self._margin_ns(now_ns, packets[0], needed_samples) < path.target_ns:
            return self._silence(needed_samples)
        self._playing = True
        self.stats.talkspurts += 1
        # Even if its first packet was lost: what the decoder remembers is of no use to it.
        return self._play(now_ns, needed_samples)._replace(first=True)

    def _stop(self) -> None:
        self._playing = False
        self._waited_samples = 0
        self._concealed_run_samples = 0
        self._surplus_since_ns = None

    def _silence(self, needed_samples: int) -> Operation:
        return Operation(Action.SILENCE, needed_samples, None, self._cursor or 0)

    def _play(self, now_ns: int, needed_samples: int) -> Operation:
        """Decode the head of the buffer, or the one after it where there is delay to take back."""
        packet = self._packets[0]
        if self._takes_back(now_ns, packet, needed_samples):
            # One frame less. Time-scale modification would go here instead: an operation that
            # decodes both packets and joins them on a pitch period.
            self._drop_head()
            packet = self._packets[0]
            self._last_skip_ns = now_ns
        del self._packets[0]
        assert self._path.base_ns is not None
        self.stats.delay_ns = now_ns - _duration_ns(packet.timestamp) - self._path.base_ns
        self.stats.decoded += 1
        self._cursor = packet.timestamp + packet.samples
        self._waited_samples = 0
        self._concealed_run_samples = 0
        if packet.last:
            self._stop()
        return Operation(
            Action.DECODE, packet.samples, packet.payload, packet.timestamp, packet.first
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
        step = min(missing_samples, _whole_grains(needed_samples), STEP_SAMPLES)
        self._cursor = position + step
        return self._conceal(_whole_grains(step), position)

    def _conceal(self, samples: int, timestamp: int) -> Operation:
        self._concealed_run_samples += samples
        self.stats.concealed_samples += samples
        return Operation(Action.CONCEAL, samples, None, timestamp)

    # -- delay

    def _margin_ns(self, now_ns: int, packet: _Packet, needed_samples: int) -> int:
        """How long after the path's quickest packets this one plays, if it does now.

        Of packets shorter than what is needed at once, it is the last one needed that counts.
        """
        assert self._path.base_ns is not None
        ahead_samples = max(0, needed_samples - packet.samples)
        return now_ns - _duration_ns(packet.timestamp + ahead_samples) - self._path.base_ns

    def _spare_ns(self, now_ns: int, packet: _Packet, needed_samples: int) -> int:
        """What the margin has to spare if `packet` is skipped.

        At least a step, because pulls alone, being steps, leave up to one above the target.
        """
        surplus_ns = self._margin_ns(now_ns, packet, needed_samples) - self._path.target_ns
        calm = self._trouble_ns is None or now_ns - self._trouble_ns >= CALM_NS
        slack_ns = CALM_SLACK_NS if calm else SURPLUS_SLACK_NS
        return surplus_ns - _duration_ns(max(packet.samples, STEP_SAMPLES)) - slack_ns

    def _hopeless(self, now_ns: int, packet: _Packet, needed_samples: int) -> bool:
        wanted_ns = max(self._path.target_ns, self._path.latest_ns)
        return self._margin_ns(now_ns, packet, needed_samples) > wanted_ns + MAX_SURPLUS_NS

    def _takes_back(self, now_ns: int, packet: _Packet, needed_samples: int) -> bool:
        """Whether to skip `packet`: for a while there was delay for one of its length to spare."""
        if self._spare_ns(now_ns, packet, needed_samples) <= 0:
            self._surplus_since_ns = None
            return False
        if self._surplus_since_ns is None:
            self._surplus_since_ns = now_ns
        follows = (
            len(self._packets) > 1
            and self._packets[1].timestamp == packet.timestamp + packet.samples
        )
        return (
            follows
            and now_ns - self._surplus_since_ns >= SURPLUS_PATIENCE_NS
            and now_ns - self._last_skip_ns >= SKIP_INTERVAL_NS
        )

    def _drop_head(self) -> None:
        del self._packets[0]
        self.stats.dropped += 1


def _whole_grains(samples: int) -> int:
    return -(-samples // GRAIN_SAMPLES) * GRAIN_SAMPLES
