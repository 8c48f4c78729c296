"""Decide: when does which packet play, and what takes the place of one that is not there.

Positions are RTP timestamps (48 kHz samples), never packet counts, so packets of any length, pauses
and losses all fit one time line. The buffer holds packets and knows times; it never touches audio:
`next` says what to do and `playout` does it.

`path_delay` says what each margin costs. The buffer starts a talkspurt as soon as no later pull
would be cheaper, and while it plays it stretches or shortens the sound towards the cheapest margin.
Where a queue grows on the path, it uses the pauses to be there before the frames come late.
(After WebRTC's NetEQ: decisions apart from decoding.)
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Final, NamedTuple

from protocol.opus import (
    GRAIN_SAMPLES,
    OpusError,
    packet_frame_samples,
    packet_has_fec,
    packet_samples,
)
from protocol.path_delay import (
    FIRST_FRAMES,
    FIRST_MARGIN_MS,
    MAX_MARGIN_MS,
    MS,
    TURN_NS,
    TURN_SHARE,
    PathDelay,
)

MAX_PACKETS: Final = 128
MAX_SPAN_SAMPLES: Final = 96_000  # 2 s; a timestamp further off than this is a jump
MAX_JUMP_NS: Final = 2_000 * MS
STEP_SAMPLES: Final = 960  # 20 ms, the usual frame and pull: concealed at a time
MAX_CONCEALED_SAMPLES: Final = 9_600  # 200 ms in a row: libopus has faded by then
REMEMBERED: Final = 256  # timestamps of frames that have come
STRETCH_INTERVAL_NS: Final = 40 * MS
URGENT_NS: Final = 60 * MS  # with so much to take back, each frame is shortened
PATIENCE_NS: Final = 1_000 * MS  # for how long a soft part of the sound is waited for
MAX_SURPLUS_NS: Final = 500 * MS


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
    skip: so many samples of what is decoded were concealed already, and do not play.
    """

    action: Action
    samples: int
    payload: bytes | None
    timestamp: int
    first: bool = False
    stretch: int = 0
    urgent: bool = False
    skip: int = 0


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
    skipped_samples: int = 0  # of a talkspurt: the gap was too long to be concealed
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


def _duration_ns(samples: int) -> int:
    return samples * 62_500 // 3  # at 48 kHz


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
        self._ahead_samples = 0  # by so much before it would play was that packet needed
        self._concealed_run_samples = 0
        self._broken_off: int | None = None  # where a talkspurt was given up that had not ended
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
        newest = self._newest if path.frames else unwrapped
        if copy:
            path.copied = path.frames
        else:
            self._newest = unwrapped
            path.record_packet(now_ns, transit_ns)
        if unwrapped not in self._came:
            path.record_frame(transit_ns, missed=unwrapped < newest)
        self._remember(unwrapped, whole=True)
        if not copy and not first:
            self._record_before(now_ns, newest, unwrapped, payload, samples)
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

    def _record_before(
        self, now_ns: int, newest: int, timestamp: int, payload: bytes, samples: int
    ) -> None:
        """What a packet says of the frames between the newest so far and its own: one may be in its
        FEC, the others are missing.  A gap too long to be concealed is no loss: an interruption."""
        path = self._path
        before = timestamp - packet_frame_samples(payload)
        if before not in self._came and packet_has_fec(payload):
            self._remember(before, whole=False)
            path.record_frame(now_ns - _duration_ns(before), missed=before < newest)
        if timestamp - newest <= MAX_CONCEALED_SAMPLES:
            for missing in range(newest + samples, timestamp, samples):
                if missing not in self._came:
                    path.record_missing()

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
        skip_samples = self._discard_overtaken(now_ns, needed_samples, pull_ns)
        if (
            self._playing
            and self._packets
            and self._hopeless(now_ns, self._packets[0], needed_samples)
        ):
            self._stop()
        if not self._playing:
            return self._start(now_ns, needed_samples, filled_samples)
        if not self._packets:
            return self._wait(needed_samples, filled_samples)
        head = self._packets[0]
        assert self._cursor is not None
        missing_samples = head.timestamp - self._cursor - self._waited_samples
        if missing_samples <= 0:
            return self._play(now_ns, needed_samples, filled_samples, skip_samples)
        if head.first or self._concealed_run_samples >= MAX_CONCEALED_SAMPLES:
            # The gap is a pause (or too long to pretend otherwise): what comes in it is too late.
            self._stop()
            self._cursor = head.timestamp
            return self._start(now_ns, needed_samples, filled_samples)
        return self._bridge(head, missing_samples, needed_samples)

    def _discard_overtaken(self, now_ns: int, needed_samples: int, pull_ns: int) -> int:
        """Drop what the cursor has passed, and what concealment has stood in for.

        When packets come after that, playing them from their beginning makes the delay grow. That
        is right as far as it is worth it. Beyond that they are as good as lost; -> how many samples
        of the head are.
        """
        if self._cursor is None:
            return 0
        packets = self._packets
        while packets and packets[0].timestamp < self._cursor:
            self._drop_head()
        due = self._cursor + self._waited_samples
        if not packets or packets[0].timestamp >= due:
            return 0
        path, frame_samples = self._path, packets[0].samples
        margin_ns = self._margin_ns(now_ns, due, frame_samples, needed_samples)
        if margin_ns > MAX_MARGIN_MS * MS:
            return 0  # nobody knows what that costs
        frame_ns, ahead_ns = _duration_ns(frame_samples), _duration_ns(self._ahead_samples)
        later = path.pulls_to_move(margin_ns - path.rise_ns, pull_ns, frame_ns, ahead_ns=ahead_ns)
        later_samples = max(0, (later * pull_ns - ahead_ns) * 3 // 62_500)
        begins = due - min(later_samples, self._waited_samples)
        while packets and packets[0].timestamp + packets[0].samples <= begins:
            self._drop_head()
        return max(0, begins - packets[0].timestamp) if packets else 0

    def _start(self, now_ns: int, needed_samples: int, filled_samples: int) -> Operation:
        """Between talkspurts: hold the next one until no later pull would be cheaper."""
        packets = self._packets
        path = self._path
        # After a long stall, or when nobody has pulled for a while, what is hopelessly old goes:
        # down to what the path gives now, which may be worse than any target.
        if packets and self._hopeless(now_ns, packets[0], needed_samples):
            wanted_ns = max(path.target_ms * MS, path.latest_ns)
            while packets and self._margin_of(now_ns, packets[0], needed_samples) > wanted_ns + (
                _duration_ns(packets[0].samples)
            ):
                self._drop_head()
        if not packets:
            return self._silence(needed_samples)
        head = packets[0]
        before_samples = self._recoverable_before(head)
        margin_ns = self._margin_of(now_ns, head, needed_samples) + _duration_ns(before_samples)
        pull_ns = _duration_ns(needed_samples + filled_samples)
        frame_ns = _duration_ns(head.samples)
        if margin_ns < 0 or path.pulls_to_move(margin_ns - path.rise_ns, pull_ns, frame_ns) > 0:
            return self._silence(needed_samples)
        self._playing = True
        self.stats.talkspurts += 1
        if self._broken_off is not None and not head.first:
            begins = head.timestamp - before_samples
            self.stats.skipped_samples += max(0, begins - self._broken_off)
        self._broken_off = None
        if before_samples:
            operation = self._bridge(head, before_samples, needed_samples)
        else:
            operation = self._play(now_ns, needed_samples, filled_samples)
        # Even if its first packet was lost: what the decoder remembers is of no use to it.
        return operation._replace(first=True)

    def _recoverable_before(self, head: _Packet) -> int:
        """Of a talkspurt that was broken off and goes on with this packet: how many samples before
        it are in its FEC."""
        if self._broken_off is None or head.first or not packet_has_fec(head.payload):
            return 0
        samples = packet_frame_samples(head.payload)
        before = head.timestamp - samples
        return samples if before >= self._broken_off and not self._came.get(before) else 0

    def _stop(self, *, ended: bool = False) -> None:
        """The talkspurt that plays is over.  ended: its sender said so; else some of it may follow,
        and what lies between was left out."""
        assert self._cursor is not None
        self._broken_off = None if ended else self._cursor + self._waited_samples
        self._playing = False
        self._waited_samples = 0
        self._concealed_run_samples = 0

    def _silence(self, needed_samples: int) -> Operation:
        return Operation(Action.SILENCE, needed_samples, None, self._cursor or 0)

    def _play(
        self, now_ns: int, needed_samples: int, filled_samples: int, skip_samples: int = 0
    ) -> Operation:
        """Decode the head of the buffer."""
        packet = self._packets[0]
        stretch, urgent = 0, False
        if not skip_samples:
            stretch, urgent = self._stretch(now_ns, packet, needed_samples, filled_samples)
        del self._packets[0]
        stats = self.stats
        assert self._path.base_ns is not None
        stats.delay_ns = now_ns - _duration_ns(packet.timestamp + skip_samples - filled_samples)
        stats.delay_ns -= self._path.base_ns
        stats.decoded += 1
        stats.recovered_copy += packet.copy
        self._cursor = packet.timestamp + packet.samples
        self._waited_samples = 0
        self._concealed_run_samples = 0
        if packet.last:
            self._stop(ended=True)
        return Operation(
            Action.DECODE,
            packet.samples,
            packet.payload,
            packet.timestamp,
            packet.first,
            stretch,
            urgent,
            skip_samples,
        )

    def _wait(self, needed_samples: int, filled_samples: int) -> Operation:
        """Nothing is there: conceal, but leave the cursor, so that what comes late still plays."""
        if not self._waited_samples:
            self._ahead_samples = filled_samples
        # Not beyond the end of a frame: the next one may be here by then.
        left_samples = STEP_SAMPLES - self._waited_samples % STEP_SAMPLES
        samples = min(_whole_grains(needed_samples), left_samples)
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
        if missing_samples <= reach_samples:
            self._cursor = head.timestamp
            self._concealed_run_samples = 0
            self.stats.recovered_fec += 1
            return Operation(
                Action.FEC,
                reach_samples,
                head.payload,
                head.timestamp - reach_samples,
                skip=reach_samples - missing_samples,
            )
        step = min(missing_samples - reach_samples, STEP_SAMPLES)
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
        margin_ns = self._margin_of(now_ns, packet, needed_samples)
        whole = packet.samples % pull_samples == 0 or pull_samples % packet.samples == 0
        if not whole:  # other frames will begin at the end of a pull, and be needed soonest
            margin_ns -= _duration_ns(needed_samples)
        turn = self._turn * 0.5 ** ((now_ns - self._stretched_ns) / TURN_NS)
        path = self._path
        soon_ns = margin_ns - path.rise_ns
        frame_ns = _duration_ns(packet.samples)
        surplus_ns = -path.pulls_to_move(soon_ns, pull_ns, frame_ns, turn=turn) * pull_ns
        if not surplus_ns:
            self._content_ns = now_ns
        urgent = surplus_ns >= URGENT_NS
        if not urgent and now_ns - self._stretched_ns < STRETCH_INTERVAL_NS:
            return 0, False
        if surplus_ns < 0:
            # Before more frames come too late; what is only expected waits for a pause.
            urgent = not path.rise_ns or (
                path.pulls_to_move(margin_ns, pull_ns, frame_ns, turn=turn) > 0
            )
            return packet.samples, urgent
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

    def _margin_ns(
        self, now_ns: int, timestamp: int, frame_samples: int, needed_samples: int
    ) -> int:
        """How long after the path's quickest packets a frame is needed, if this of it plays now.

        Of frames shorter than what is needed at once, it is the last one needed that counts.
        """
        assert self._path.base_ns is not None
        ahead_samples = max(0, needed_samples - frame_samples)
        return now_ns - _duration_ns(timestamp + ahead_samples) - self._path.base_ns

    def _margin_of(self, now_ns: int, packet: _Packet, needed_samples: int) -> int:
        return self._margin_ns(now_ns, packet.timestamp, packet.samples, needed_samples)

    def _hopeless(self, now_ns: int, packet: _Packet, needed_samples: int) -> bool:
        wanted_ns = max(self._path.target_ms * MS, self._path.latest_ns)
        return self._margin_of(now_ns, packet, needed_samples) > wanted_ns + MAX_SURPLUS_NS

    def _drop_head(self) -> None:
        del self._packets[0]
        self.stats.dropped += 1


def _whole_grains(samples: int) -> int:
    return -(-samples // GRAIN_SAMPLES) * GRAIN_SAMPLES
