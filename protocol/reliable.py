"""Reliable channel: messages become numbered segments, each sent until it is acknowledged.

The machinery is TCP's in small: cumulative and selective acknowledgements (RFC 2018), the
retransmission timer of RFC 6298, fast retransmit and a congestion window (RFC 5681), serial
arithmetic on sequence numbers (RFC 1982). Both ends have one channel for each connection; sealing,
packet counters and addresses are the connection's business, and so is the framing of chunks. Here
are the bodies of two kinds of chunk, all integers big-endian:

    DATA   seq u32 | flags u8 (bit 0: first segment of its message, bit 1: last) | 0-1,000 bytes
    ACK    next u32 | window u16 | 0-16 times (offset u16 | length u16)

`next` is the first segment not received, `window` how many from there the receiver can take, and
the ranges name what it holds beyond, `offset` being relative to `next`. An acknowledged segment,
selectively or not, is never needed again.

The connection calls `receive_*` for each chunk that came, then, while `has_output`, builds a
datagram from `poll_ack` and `poll_data`, and comes back at `deadline_ns`.
"""

import struct
from dataclasses import dataclass

MAX_SEGMENT_BYTES = 1_000
MAX_MESSAGE_BYTES = 65_536
MAX_QUEUED_BYTES = 262_144  # of messages sent by us and not acknowledged yet
MAX_QUEUED_MESSAGES = 1_024  # or else empty messages would be a queue without limit
RECEIVE_WINDOW_SEGMENTS = 64
MAX_ACK_RANGES = 16
MAX_ATTEMPTS = 15  # longer than the idle timeout, which should speak first

INITIAL_CONGESTION_SEGMENTS = 10
MIN_CONGESTION_SEGMENTS = 2
MAX_CONGESTION_SEGMENTS = 64
FAST_RETRANSMIT_SEGMENTS = 3

INITIAL_RTO_NS = 1_000_000_000
MIN_RTO_NS = 200_000_000
MAX_RTO_NS = 3_000_000_000  # people wait for these messages
ACK_DELAY_NS = 20_000_000
ACK_EVERY_SEGMENTS = 2

FIRST = 1
LAST = 2

_DATA = struct.Struct(">IB")
_ACK = struct.Struct(">IH")
_RANGE = struct.Struct(">HH")
_SEQ_MASK = 2**32 - 1
_SEQ_HALF = 2**31

MAX_DATA_BODY_BYTES = _DATA.size + MAX_SEGMENT_BYTES
MAX_ACK_BODY_BYTES = _ACK.size + MAX_ACK_RANGES * _RANGE.size


class ChannelError(Exception):
    """The peer, though authenticated, sent what no correct peer sends: close the connection."""


class ChannelFull(Exception):  # noqa: N818 (a state, not a mistake: as queue.Full)
    """No room for this message now (back-pressure), or ever: the channel may have failed."""


class MessageTooLong(ValueError):  # noqa: N818 (the name says what is wrong)
    """The message exceeds MAX_MESSAGE_BYTES."""


class RttEstimator:
    """Smoothed round-trip time and the retransmission timeout that follows from it (RFC 6298)."""

    __slots__ = ("_rttvar_ns", "rto_ns", "srtt_ns")

    def __init__(self) -> None:
        self.srtt_ns: int | None = None
        self._rttvar_ns = 0
        self.rto_ns = INITIAL_RTO_NS

    def sample(self, rtt_ns: int) -> None:
        """Take a measurement; this also ends the backing off."""
        if self.srtt_ns is None:
            self.srtt_ns = rtt_ns
            self._rttvar_ns = rtt_ns // 2
        else:
            self._rttvar_ns = (3 * self._rttvar_ns + abs(self.srtt_ns - rtt_ns)) // 4
            self.srtt_ns = (7 * self.srtt_ns + rtt_ns) // 8
        self.rto_ns = min(max(self.srtt_ns + 4 * self._rttvar_ns, MIN_RTO_NS), MAX_RTO_NS)

    def back_off(self) -> None:
        """After a timeout. It lasts until there is a sample (Karn): a path that has become slower
        than the timeout would otherwise be retransmitted to for ever and never measured."""
        self.rto_ns = min(2 * self.rto_ns, MAX_RTO_NS)


@dataclass(slots=True)
class Stats:
    """Counters since the channel began."""

    sent: int = 0  # segments, first transmissions
    retransmitted: int = 0  # segments, further transmissions
    fast: int = 0  # losses told by later acknowledgements
    timeouts: int = 0  # losses told by the timer
    received: int = 0  # segments, without duplicates
    duplicates: int = 0  # segments received again
    acks_sent: int = 0
    acks_received: int = 0


class _Segment:
    """A segment transmitted and not yet acknowledged by `next`."""

    __slots__ = ("attempts", "body", "lost", "sacked", "sent_ns")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.sent_ns = 0
        self.attempts = 0
        self.lost = False  # to be transmitted again
        self.sacked = False


class ReliableChannel:
    """Ordered, exactly-once messages in both directions over datagrams that get lost.

    `first_seq` is the first sequence number in both directions: both ends have to use the same.
    Once `failed` (MAX_ATTEMPTS transmissions timed out in a row, and nothing new was acknowledged
    meanwhile) the channel sends nothing more.
    """

    # Ten thousand of these wait in a server, nearly all of them idle. That is why the queues are
    # lists (an empty deque takes 600 bytes), and why a dict that has grown is replaced.
    __slots__ = (
        "_ack_at_ns",
        "_ahead",
        "_congestion_segments",
        "_flight",
        "_message_parts",
        "_peer_window_segments",
        "_queue",
        "_queue_offset_bytes",
        "_queued_bytes",
        "_queued_messages",
        "_receive_next",
        "_recovery_segments",
        "_retransmit_at_ns",
        "_rtt",
        "_send_first",
        "_timeouts_in_a_row",
        "_unacknowledged_segments",
        "failed",
        "stats",
    )

    def __init__(self, first_seq: int = 0) -> None:
        self.failed = False
        self.stats = Stats()
        # Sending: `_flight[i]` has the sequence number `_send_first + i`, then comes `_queue`.
        self._send_first = first_seq
        self._flight: list[_Segment] = []
        self._queue: list[bytes] = []  # messages; of the first, some bytes may be in flight
        self._queue_offset_bytes = 0
        self._queued_bytes = 0
        self._queued_messages = 0
        self._peer_window_segments = RECEIVE_WINDOW_SEGMENTS
        self._congestion_segments = INITIAL_CONGESTION_SEGMENTS
        self._recovery_segments = 0  # how many of the flight were out at the last slow-down
        self._retransmit_at_ns: int | None = None
        self._timeouts_in_a_row = 0  # since anything new was acknowledged
        self._rtt = RttEstimator()
        # Receiving
        self._receive_next = first_seq
        self._ahead: dict[int, bytes] = {}  # bodies by sequence number, beyond a gap
        self._message_parts: bytearray | None = None
        self._unacknowledged_segments = 0
        self._ack_at_ns: int | None = None

    @property
    def idle(self) -> bool:
        """Nothing to send, nothing in flight, no acknowledgement owed."""
        return not self._flight and not self._queue and self._ack_at_ns is None

    @property
    def srtt_ns(self) -> int | None:
        """The smoothed round-trip time, None before the first measurement."""
        return self._rtt.srtt_ns

    @property
    def rto_ns(self) -> int:
        return self._rtt.rto_ns

    # --- what to do, and when ---

    def observe_rtt(self, rtt_ns: int) -> None:
        """A round trip measured by other means (a ping), which saves a young channel from waiting
        out the initial RTO."""
        self._rtt.sample(rtt_ns)

    def has_output(self, now_ns: int) -> bool:
        """Whether a datagram should be built now."""
        if self.idle or self.failed:
            return False
        return (
            _is_due(self._ack_at_ns, now_ns)
            or _is_due(self._retransmit_at_ns, now_ns)
            or self._may_transmit()
        )

    def deadline_ns(self) -> int | None:
        """When to ask `has_output` again if nothing is sent or received before; None if never."""
        if self.failed:
            return None
        if self._ack_at_ns is None or self._retransmit_at_ns is None:
            return self._retransmit_at_ns if self._ack_at_ns is None else self._ack_at_ns
        return min(self._ack_at_ns, self._retransmit_at_ns)

    # --- sending ---

    def can_send(self, size: int) -> bool:
        """Whether `send` would take a message of `size` bytes now."""
        return (
            not self.failed
            and size <= MAX_MESSAGE_BYTES
            and self._queued_bytes + size <= MAX_QUEUED_BYTES
            and self._queued_messages < MAX_QUEUED_MESSAGES
        )

    def send(self, message: bytes) -> None:
        """Queue a message. MessageTooLong, or ChannelFull: ask `can_send` first."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise MessageTooLong(f"{len(message)} bytes, at most {MAX_MESSAGE_BYTES}")
        if not self.can_send(len(message)):
            raise ChannelFull
        self._queue.append(message)
        self._queued_bytes += len(message)
        self._queued_messages += 1

    def poll_data(self, now_ns: int, room: int) -> bytes | None:
        """The next DATA body to transmit, if there is one and it fits into `room` bytes.

        A body that does not fit waits for the next datagram: MAX_DATA_BODY_BYTES fit any.
        """
        if _is_due(self._retransmit_at_ns, now_ns):
            self._on_timeout()
        if self.failed or not self._may_transmit():
            return None
        segment = next((segment for segment in self._flight if segment.lost), None)
        if segment is None:
            if self._next_body_bytes() > room:
                return None
            segment = self._cut_segment()
            self._flight.append(segment)
            self.stats.sent += 1
        else:
            if len(segment.body) > room:
                return None
            self.stats.retransmitted += 1
        if segment.attempts > 0 or self._retransmit_at_ns is None:
            self._retransmit_at_ns = now_ns + self._rtt.rto_ns
        segment.attempts += 1
        segment.sent_ns = now_ns
        segment.lost = False
        return segment.body

    def receive_ack(self, body: bytes | memoryview, now_ns: int) -> None:
        """Take an ACK body. ChannelError if it is malformed or acknowledges what was never sent."""
        if len(body) < _ACK.size or (len(body) - _ACK.size) % _RANGE.size:
            raise ChannelError("ACK of an impossible length")
        if len(body) > MAX_ACK_BODY_BYTES:
            raise ChannelError("ACK with too many ranges")
        next_seq, window_segments = _ACK.unpack_from(body)
        ranges = list(_RANGE.iter_unpack(body[_ACK.size :]))
        if any(offset == 0 or length == 0 for offset, length in ranges):
            raise ChannelError("ACK with a range that says nothing")
        self.stats.acks_received += 1

        advance = (next_seq - self._send_first) & _SEQ_MASK
        if advance >= _SEQ_HALF:
            return  # overtaken by a newer one
        if any(
            advance + offset + length > len(self._flight) for offset, length in [(0, 0), *ranges]
        ):
            raise ChannelError("ACK for what was never sent")

        acknowledged = self._flight[:advance]
        del self._flight[:advance]
        self._send_first = next_seq
        self._peer_window_segments = window_segments
        self._recovery_segments = max(0, self._recovery_segments - advance)
        for segment in acknowledged:
            self._queued_bytes -= len(segment.body) - _DATA.size
            self._queued_messages -= segment.body[_DATA.size - 1] & LAST != 0
        for offset, length in ranges:
            acknowledged += self._flight[offset : offset + length]

        if self._flight and self._flight[0].sacked:
            raise ChannelError("ACK takes back what another acknowledged")

        fresh = 0
        measured_ns: list[int] = []
        for segment in acknowledged:
            if segment.sacked:
                continue
            fresh += 1
            # Of a segment sent again it is not known which transmission arrived (Karn), and of
            # one given up for lost, that its acknowledgement went astray rather than took long.
            if segment.attempts == 1 and not segment.lost:
                measured_ns.append(now_ns - segment.sent_ns)
            segment.sacked = True
            segment.lost = False
        self._congestion_segments = min(self._congestion_segments + fresh, MAX_CONGESTION_SEGMENTS)
        if measured_ns:
            self._rtt.sample(min(measured_ns))  # the one that waited least to be acknowledged
        if not self._flight:
            self._retransmit_at_ns = None
        elif advance:
            self._retransmit_at_ns = now_ns + self._rtt.rto_ns
        if fresh:
            self._timeouts_in_a_row = 0
            self._detect_losses()

    def _may_transmit(self) -> bool:
        in_transit = 0
        lost = False
        for segment in self._flight:
            lost = lost or segment.lost
            in_transit += not (segment.lost or segment.sacked)
        if in_transit >= self._congestion_segments:
            return False
        # One segment may always be out: it is the probe that finds a closed window open again.
        window_segments = max(1, self._peer_window_segments)
        return lost or (bool(self._queue) and len(self._flight) < window_segments)

    def _next_body_bytes(self) -> int:
        remaining_bytes = len(self._queue[0]) - self._queue_offset_bytes
        return _DATA.size + min(remaining_bytes, MAX_SEGMENT_BYTES)

    def _cut_segment(self) -> _Segment:
        message, start = self._queue[0], self._queue_offset_bytes
        data = message[start : start + MAX_SEGMENT_BYTES]
        flags = FIRST if start == 0 else 0
        self._queue_offset_bytes += len(data)
        if self._queue_offset_bytes == len(message):
            flags |= LAST
            del self._queue[0]
            self._queue_offset_bytes = 0
        seq = (self._send_first + len(self._flight)) & _SEQ_MASK
        return _Segment(_DATA.pack(seq, flags) + data)

    def _detect_losses(self) -> None:
        later = 0
        found = 0
        for segment in reversed(self._flight):
            if segment.sacked:
                later += 1
            # A retransmission is newer than the later segments: they say nothing about it.
            elif later >= FAST_RETRANSMIT_SEGMENTS and segment.attempts == 1 and not segment.lost:
                segment.lost = True
                found += 1
        self.stats.fast += found
        if found and not self._recovery_segments:  # losses of one flight count as one
            self._slow_down()

    def _on_timeout(self) -> None:
        # What went out after the oldest has most likely shared its fate, so all of it is sent
        # again, as far as the congestion window lets it; a receiver ignores what it has.
        self._retransmit_at_ns = None
        self._rtt.back_off()
        self._slow_down()
        self.stats.timeouts += 1
        # Not counted by the segment: of hundreds sent on a bad path one is unlucky ten times,
        # while the path works.
        self._timeouts_in_a_row += 1
        self.failed = self._timeouts_in_a_row >= MAX_ATTEMPTS
        for segment in self._flight:
            if not segment.sacked:
                segment.lost = True

    def _slow_down(self) -> None:
        self._congestion_segments = max(self._congestion_segments // 2, MIN_CONGESTION_SEGMENTS)
        self._recovery_segments = len(self._flight)

    # --- receiving ---

    def receive_data(self, body: bytes | memoryview, now_ns: int) -> list[bytes]:
        """Take a DATA body; the messages that are complete now, in order.

        ChannelError if it is malformed, beyond the window, or no part of a message.
        """
        if not _DATA.size <= len(body) <= MAX_DATA_BODY_BYTES:
            raise ChannelError("DATA of an impossible length")
        seq, flags = _DATA.unpack_from(body)
        if flags & ~(FIRST | LAST):
            raise ChannelError("DATA with unknown flags")
        if len(body) == _DATA.size and flags != FIRST | LAST:
            raise ChannelError("DATA without any")
        offset = (seq - self._receive_next) & _SEQ_MASK
        if RECEIVE_WINDOW_SEGMENTS <= offset < _SEQ_HALF:
            raise ChannelError("DATA beyond the window")

        messages: list[bytes] = []
        self._unacknowledged_segments += 1
        urgent = self._unacknowledged_segments >= ACK_EVERY_SEGMENTS
        if offset >= _SEQ_HALF or seq in self._ahead:
            self.stats.duplicates += 1
            urgent = True  # the acknowledgement was lost
        elif offset > 0:
            self.stats.received += 1
            self._ahead[seq] = bytes(body)
            urgent = True  # the sender learns of the gap
        else:
            self.stats.received += 1
            urgent = urgent or bool(self._ahead)  # the sender learns that a gap is filled
            self._assemble(body, messages)
            while (waiting := self._ahead.pop(self._receive_next, None)) is not None:
                self._assemble(waiting, messages)
            if not self._ahead:
                self._ahead = {}
        due_ns = now_ns if urgent else now_ns + ACK_DELAY_NS
        self._ack_at_ns = due_ns if self._ack_at_ns is None else min(self._ack_at_ns, due_ns)
        return messages

    def poll_ack(self, now_ns: int) -> bytes | None:
        """An ACK body, if one is owed: due or not, it may as well go with a datagram that goes."""
        if self._ack_at_ns is None or self.failed:
            return None
        self._ack_at_ns = None
        self._unacknowledged_segments = 0
        self.stats.acks_sent += 1
        body = _ACK.pack(self._receive_next, RECEIVE_WINDOW_SEGMENTS)
        return body + b"".join(_RANGE.pack(*held) for held in self._held_ranges())

    def _assemble(self, body: bytes | memoryview, messages: list[bytes]) -> None:
        """Add the segment `_receive_next` to its message, and that to `messages` if complete."""
        self._receive_next = (self._receive_next + 1) & _SEQ_MASK
        flags = body[_DATA.size - 1]
        if bool(flags & FIRST) != (self._message_parts is None):
            raise ChannelError("DATA that belongs to no message")
        if flags == FIRST | LAST:
            messages.append(bytes(body[_DATA.size :]))
            return
        if self._message_parts is None:
            self._message_parts = bytearray()
        self._message_parts += body[_DATA.size :]
        if len(self._message_parts) > MAX_MESSAGE_BYTES:
            raise ChannelError("message too long")
        if flags & LAST:
            messages.append(bytes(self._message_parts))
            self._message_parts = None

    def _held_ranges(self) -> list[tuple[int, int]]:
        """(offset, length) of the lowest runs of segments held beyond `_receive_next`."""
        runs: list[tuple[int, int]] = []
        for offset in sorted((seq - self._receive_next) & _SEQ_MASK for seq in self._ahead):
            if runs and sum(runs[-1]) == offset:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((offset, 1))
        return runs[:MAX_ACK_RANGES]


def _is_due(deadline_ns: int | None, now_ns: int) -> bool:
    return deadline_ns is not None and deadline_ns <= now_ns
