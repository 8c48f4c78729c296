"""One end of a session: what comes in is opened, checked and turned into events; what is to go
out is sealed.  No sockets, no clock: `now_ns` goes in, datagrams and events come out.

A control datagram's plaintext is a row of chunks, each `kind u8 | length u16 | body`:

    DATA   a segment of a message        (protocol/reliable.py)
    ACK    what has arrived              (protocol/reliable.py)
    PING   token, 8 bytes: answer this
    PONG   token, 8 bytes | status u32: the number of the newest update of the peer's feed
    CLOSE  code u16 | text, UTF-8: the session is over
    REPORT expected u16 | lost u16 | bursts u16 | queue u16: how many media datagrams came lately,
           or did not, and how many ms all of them had to wait
    PAD    zeros

Unknown chunks are skipped.  The order of checks is always the same: open, *then* the replay
window, *then* the address.  A newer packet from another address moves the session there at once
(the audio must not stop), but until a PING sent there has come back, no more bytes go to it than
came from it: whoever repeats a stolen packet under somebody else's address floods nobody.
"""

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum

from protocol.packets import (
    HEADER_BYTES,
    MAX_PLAINTEXT_BYTES,
    TAG_BYTES,
    Kind,
    MalformedPacketError,
    unpack_header,
)
from protocol.reception import Reception, Reporter
from protocol.reliable import ChannelError, ReliableChannel
from protocol.sealing import Opener, Sealer, SessionKeys

MS = 1_000_000  # nanoseconds
KEEPALIVE_NS = 15_000 * MS  # NAT bindings for UDP live 30 s or longer (RFC 4787, REQ-5)
QUIET_NS = 5_000 * MS  # who hears nothing wants to know sooner whether anybody is there
IDLE_TIMEOUT_NS = 30_000 * MS
KEEPALIVE_REPEAT_NS = 1_000 * MS  # while the PONG is missing
KEEPALIVE_BYTES = 256  # a ping from an address not yet proven pays for the way back
CHALLENGE_REPEAT_NS = 200 * MS
CHALLENGE_BYTES = 64  # at least the size of a datagram with a PING and a PONG
CLOSE_REPEAT_NS = 200 * MS
CLOSE_REPEATS = 3
DRAIN_NS = 3_000 * MS  # a closed session still answers the peer's CLOSE for this long
TOKEN_BYTES = 8
MAX_CLOSE_TEXT_BYTES = 200
MAX_QUEUED_PONGS = 4

_CHUNK = struct.Struct(">BH")
_PONG = struct.Struct(f">{TOKEN_BYTES}sI")
_PONG_CHUNK = struct.Struct(f">BH{TOKEN_BYTES}sI")
_CODE = struct.Struct(">H")
_REPORT = struct.Struct(">HHHH")


class Chunk(IntEnum):
    PAD = 0x00
    DATA = 0x01
    ACK = 0x02
    PING = 0x03
    PONG = 0x04
    CLOSE = 0x05
    REPORT = 0x06


class CloseCode(IntEnum):
    """Why a session ended (the code of CLOSE)."""

    LEAVING = 0  # the peer wants no more
    SHUTDOWN = 1  # the server stops
    PROTOCOL = 2  # the peer sent what the specification does not allow
    TOO_SLOW = 3  # the peer does not take what it is sent
    TIMEOUT = 4  # nothing was heard for 30 s (never on the wire)
    REPLACED = 5  # the same person joined again from elsewhere
    UNREACHABLE = 6  # fifteen timeouts in a row without an acknowledgement (never on the wire)
    EXPELLED = 7  # a ban, or the device was removed from its account: to come back is of no use


@dataclass(frozen=True, slots=True)
class Message:
    """A whole control message, in order."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Media:
    """The plaintext of an AUDIO, CROWD or FEED datagram.  counter: the stream's sequence number."""

    kind: int
    counter: int
    plaintext: bytes


@dataclass(frozen=True, slots=True)
class Roamed:
    """The peer is at another address now."""


@dataclass(frozen=True, slots=True)
class Pong:
    """asked_ns: when its PING first went out; rtt_ns: None if it went out more than once."""

    asked_ns: int
    rtt_ns: int | None
    status: int


@dataclass(frozen=True, slots=True)
class Closed:
    """code: of CloseCode, or what a newer peer sends; by_peer: False if this end found it out."""

    code: int
    text: str
    by_peer: bool


@dataclass(frozen=True, slots=True)
class Reported:
    """What the peer says about the media that it was sent lately."""

    reception: Reception


Event = Message | Media | Roamed | Pong | Closed | Reported


class State(Enum):
    OPEN = "open"
    CLOSING = "closing"  # CLOSE sent, waiting for the peer's
    CLOSED = "closed"


def no_news() -> int:
    """The status of an end that has no feed."""
    return 0


class Connection:
    """An established session.

    Mutate (`receive`, `send`, `ping`, `close`), then drain (`transmit`), then look at
    `deadline_ns` for when to drain again if nothing happens.
    """

    # As in the reliable channel: ten thousand of these wait in a server.
    __slots__ = (
        "_asked_ns",
        "_channel",
        "_close_body",
        "_close_next_ns",
        "_closed_by_peer",
        "_closes_left",
        "_control_opener",
        "_control_sealer",
        "_drained_ns",
        "_entropy",
        "_keep_alive",
        "_ping_due",
        "_ping_pad_bytes",
        "_ping_repeated",
        "_ping_token",
        "_pinged_ns",
        "_pongs",
        "_report",
        "_reporter",
        "address",
        "credit_bytes",
        "dropped",
        "heard_ns",
        "media_opener",
        "media_sealer",
        "state",
        "status",
    )

    def __init__(
        self,
        keys: SessionKeys,
        *,
        remote_index: int,
        address: bytes,
        now_ns: int,
        entropy: Callable[[int], bytes],
        keep_alive: bool,
        status: Callable[[], int] = no_news,
    ) -> None:
        """keep_alive: whether this end pings (the client does); status: goes into every PONG."""
        self.address = address
        self.state = State.OPEN
        self.credit_bytes: int | None = None  # what may still be sent to an address not proven
        self.media_sealer = Sealer(keys.send_media, remote_index)
        self.media_opener = Opener(keys.receive_media)
        self.status = status
        self.dropped: Counter[str] = Counter()
        self._control_sealer = Sealer(keys.send_control, remote_index)
        self._control_opener = Opener(keys.receive_control)
        self._channel = ReliableChannel()
        self._entropy = entropy
        self._keep_alive = keep_alive
        self.heard_ns = now_ns  # the peer; who opens its media elsewhere sets it
        self._pinged_ns = now_ns
        self._ping_token = b""  # of the ping that is out; empty: none
        self._asked_ns = now_ns
        self._ping_repeated = False
        self._ping_due = False
        self._ping_pad_bytes = 0
        self._pongs: tuple[bytes, ...] = ()  # the tokens of pings not answered yet
        self._reporter: Reporter | None = None  # of what comes by the media chain
        self._report = b""  # to be sent
        self._close_body = b""
        self._closed_by_peer = False
        self._closes_left = 0
        self._close_next_ns = 0
        self._drained_ns = 0

    # -- what comes in ---------------------------------------------------------------------

    def receive(self, datagram: bytes, address: bytes, now_ns: int) -> list[Event] | None:
        """Takes one sealed datagram; -> its events, or None if anything is wrong with it: that
        is counted in `dropped` and changes nothing."""
        try:
            kind, counter, _ = unpack_header(datagram)
        except MalformedPacketError:
            self.dropped["malformed"] += 1
            return None
        if kind == Kind.CONTROL:
            opener = self._control_opener
        elif kind in (Kind.AUDIO, Kind.CROWD, Kind.FEED):
            opener = self.media_opener
        else:
            self.dropped["unknown kind"] += 1
            return None
        newest = opener.replay.highest
        plaintext = opener.open(datagram, counter)
        if plaintext is None:
            self.dropped["forged"] += 1
            return None
        if not opener.fresh(counter):
            self.dropped["replayed"] += 1
            return None
        if self.state is State.CLOSED:
            self._answer_close(now_ns)
            return []
        self.heard_ns = now_ns
        events: list[Event] = []
        if address != self.address:
            if counter > newest:
                self.address = address
                self.credit_bytes = len(datagram)
                self._ping_token = b""  # an answer to it would prove the old address
                self.ping(now_ns)
                events.append(Roamed())
        elif self.credit_bytes is not None:
            self.credit_bytes += len(datagram)
        if kind != Kind.CONTROL:
            if self.state is State.OPEN:
                events.append(Media(kind, counter, plaintext))
                self._measure(counter, now_ns)
            return events
        try:
            self._receive_chunks(plaintext, address, now_ns, events)
        except (ChannelError, struct.error) as error:
            if self.state is State.OPEN:
                self.close(CloseCode.PROTOCOL, str(error), now_ns)
                events.append(Closed(CloseCode.PROTOCOL, str(error), by_peer=False))
        return events

    def _measure(self, counter: int, now_ns: int) -> None:
        """Counts a media datagram."""
        if self._reporter is None:
            self._reporter = Reporter(counter, now_ns)
            return
        reception = self._reporter.count(counter, now_ns)
        if reception is not None:
            self._report = _REPORT.pack(*(min(count, 0xFFFF) for count in reception))

    def media_was_late(self, late_ns: int) -> None:
        """Tells how late the last media datagram was, against the quickest of the last seconds:
        whoever opens it knows its timestamp."""
        if self._reporter is not None:
            self._reporter.was_late(late_ns)

    @property
    def reporting(self) -> bool:
        """Whether a report waits to be sent."""
        return bool(self._report)

    def _receive_chunks(
        self, plaintext: bytes, address: bytes, now_ns: int, events: list[Event]
    ) -> None:
        at, end = 0, len(plaintext)
        while at < end:
            kind, length = _CHUNK.unpack_from(plaintext, at)
            at += _CHUNK.size
            if at + length > end:
                raise ChannelError("a chunk is cut short")
            body = plaintext[at : at + length]
            at += length
            if self.state is not State.OPEN and kind != Chunk.CLOSE:
                continue
            if kind == Chunk.DATA:
                events += [Message(m) for m in self._channel.receive_data(body, now_ns)]
            elif kind == Chunk.ACK:
                self._channel.receive_ack(body, now_ns)
            elif kind == Chunk.PING:
                if length != TOKEN_BYTES:
                    raise ChannelError("a PING without its token")
                self._pongs = (*self._pongs, body)[-MAX_QUEUED_PONGS:]
            elif kind == Chunk.PONG:
                token, status = _PONG.unpack(body)
                if token == self._ping_token:
                    self._ping_token = b""
                    self._ping_due = False  # the same question was about to be asked again
                    if address == self.address:
                        self.credit_bytes = None
                    rtt_ns = None if self._ping_repeated else now_ns - self._asked_ns
                    if rtt_ns is not None:
                        self._channel.observe_rtt(rtt_ns)
                    events.append(Pong(self._asked_ns, rtt_ns, status))
            elif kind == Chunk.REPORT:
                reception = Reception(*_REPORT.unpack(body))
                if not reception.bursts <= reception.lost <= reception.expected:
                    raise ChannelError("a REPORT of more losses than datagrams")
                events.append(Reported(reception))
            elif kind == Chunk.CLOSE:
                (code,) = _CODE.unpack_from(body)
                if self.state is State.OPEN:
                    text = body[_CODE.size :].decode("utf-8", "replace")
                    events.append(Closed(code, text, by_peer=True))
                    self._close_body = _CODE.pack(code)
                    self._closed_by_peer = True
                self._finish(now_ns)
                self._answer_close(now_ns)

    # -- what goes out ---------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Queues a message.  Raises ChannelFull (back-pressure) or MessageTooLong."""
        if self.state is State.OPEN:
            self._channel.send(message)

    def observe_rtt(self, rtt_ns: int) -> None:
        """A round trip seen before there was a session: the handshake's."""
        self._channel.observe_rtt(rtt_ns)

    def send_media(self, kind: int, plaintext: bytes) -> bytes:
        """-> a sealed datagram of AUDIO, CROWD or FEED, for `address`."""
        return self.media_sealer.seal(kind, plaintext)

    def can_send(self, size_bytes: int) -> bool:
        return self.state is State.OPEN and self._channel.can_send(size_bytes)

    def ping(self, now_ns: int, *, pad_bytes: int = 0) -> None:
        """Asks for a PONG.  pad_bytes: fill the datagram up to this size; what comes from a new
        address is what the server may send there until it is proven."""
        # Until it is answered the same token goes out again: a new one would turn the PONG that is
        # on its way into an answer to nothing, for ever if the path is slow.
        self._ping_repeated = bool(self._ping_token)
        if not self._ping_token:
            self._ping_token = self._entropy(TOKEN_BYTES)
            self._asked_ns = now_ns
        self._pinged_ns = now_ns
        self._ping_due = True
        self._ping_pad_bytes = pad_bytes

    def close(self, code: int, text: str, now_ns: int) -> None:
        """Tells the peer, a few times, and takes nothing more from it."""
        if self.state is not State.OPEN:
            return
        self.state = State.CLOSING
        self._close_body = _CODE.pack(code) + text.encode()[:MAX_CLOSE_TEXT_BYTES]
        self._closes_left = CLOSE_REPEATS
        self._close_next_ns = now_ns

    def _finish(self, now_ns: int) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._closes_left = 0
            self._drained_ns = now_ns + DRAIN_NS

    def _answer_close(self, now_ns: int) -> None:
        """Only the end that did not begin the closing answers: two that answer never stop."""
        if self._closed_by_peer:
            self._closes_left = 1
            self._close_next_ns = now_ns

    def spend(self, size_bytes: int) -> bool:
        """Whether a datagram of this size may go to `address` now (see the module's text)."""
        if self.credit_bytes is None:
            return True
        if size_bytes > self.credit_bytes:
            return False
        self.credit_bytes -= size_bytes
        return True

    def tick(self, now_ns: int) -> list[Event]:
        """To be called when `deadline_ns` has passed."""
        if self.state is not State.OPEN:
            return []
        if now_ns - self.heard_ns >= IDLE_TIMEOUT_NS:
            return self._lost(CloseCode.TIMEOUT, "nothing was heard for 30 s", now_ns)
        if self._channel.failed:
            return self._lost(CloseCode.UNREACHABLE, "messages are not acknowledged", now_ns)
        ping_ns = self._ping_again_ns
        if ping_ns is not None and now_ns >= ping_ns:
            self.ping(now_ns, pad_bytes=KEEPALIVE_BYTES if self._keep_alive else 0)
        return []

    @property
    def unanswered_since_ns(self) -> int | None:
        """When the PING that has no PONG yet first went out; None: there is none."""
        return self._asked_ns if self._ping_token else None

    @property
    def _ping_again_ns(self) -> int | None:
        """When the next ping is due: soon if an address is to be proven, else to keep alive."""
        if self.credit_bytes is not None and self.credit_bytes >= CHALLENGE_BYTES:
            return self._pinged_ns + CHALLENGE_REPEAT_NS
        if not self._keep_alive:
            return None
        if self._ping_token:
            return self._pinged_ns + KEEPALIVE_REPEAT_NS
        quiet_since_ns = max(self.heard_ns, self._pinged_ns)
        return min(self._pinged_ns + KEEPALIVE_NS, quiet_since_ns + QUIET_NS)

    def _lost(self, code: CloseCode, text: str, now_ns: int) -> list[Event]:
        self._finish(now_ns)
        return [Closed(code, text, by_peer=False)]

    def transmit(self, now_ns: int) -> list[bytes]:
        """Drains the control datagrams to be sent to `address` now."""
        datagrams: list[bytes] = []
        if self.state is not State.OPEN:
            if self._closes_left and now_ns >= self._close_next_ns:
                self._closes_left -= 1
                self._close_next_ns = now_ns + CLOSE_REPEAT_NS
                plaintext = _chunk(Chunk.CLOSE, self._close_body)
                close = self._control_sealer.seal(Kind.CONTROL, plaintext)
                if self.spend(len(close)):
                    datagrams.append(close)
            if self.state is State.CLOSING and not self._closes_left:
                self._finish(now_ns)
            return datagrams
        while self._has_output(now_ns):
            room = MAX_PLAINTEXT_BYTES
            if self.credit_bytes is not None:
                room = min(room, self.credit_bytes - HEADER_BYTES - TAG_BYTES)
            plaintext = self._gather(now_ns, room)
            if not plaintext:
                break
            datagram = self._control_sealer.seal(Kind.CONTROL, plaintext)
            self.spend(len(datagram))
            datagrams.append(datagram)
        return datagrams

    def _has_output(self, now_ns: int) -> bool:
        waiting = self._ping_due or self._pongs or self._report
        return bool(waiting) or self._channel.has_output(now_ns)

    def _gather(self, now_ns: int, room: int) -> bytes:
        """Fills one datagram: pings and pongs, the acknowledgement, then as much data as fits."""
        plaintext = b""
        pings = self._ping_due and room >= _CHUNK.size + TOKEN_BYTES
        if pings:
            self._ping_due = False
            plaintext = _chunk(Chunk.PING, self._ping_token)
        while self._pongs and len(plaintext) + _PONG_CHUNK.size <= room:
            token, *others = self._pongs
            self._pongs = tuple(others)
            status = self.status() & 0xFFFFFFFF
            plaintext += _PONG_CHUNK.pack(Chunk.PONG, _PONG.size, token, status)
        if self._report and len(plaintext) + _CHUNK.size + _REPORT.size <= room:
            plaintext += _chunk(Chunk.REPORT, self._report)
            self._report = b""
        # Not while an address that is to be proven holds it up.
        channel = self._channel
        if room == MAX_PLAINTEXT_BYTES and not channel.idle:
            if ack := channel.poll_ack(now_ns):
                plaintext += _chunk(Chunk.ACK, ack)
            while body := channel.poll_data(now_ns, room - len(plaintext) - _CHUNK.size):
                plaintext += _chunk(Chunk.DATA, body)
        if pings:
            whole = min(room, self._ping_pad_bytes - HEADER_BYTES - TAG_BYTES)
            padding = whole - len(plaintext) - _CHUNK.size
            if padding > 0:
                plaintext += _chunk(Chunk.PAD, bytes(padding))
        return plaintext

    # -- when -------------------------------------------------------------------------------

    @property
    def deadline_ns(self) -> int:
        """When `tick` and `transmit` are due if nothing happens before."""
        if self.state is State.CLOSED:
            return self._close_next_ns if self._closes_left else self._drained_ns
        if self.state is State.CLOSING:
            return self._close_next_ns
        if self._channel.failed:
            return self.heard_ns  # at once
        deadline_ns = self.heard_ns + IDLE_TIMEOUT_NS
        for due_ns in (self._ping_again_ns, self._channel.deadline_ns()):
            if due_ns is not None and due_ns < deadline_ns:
                deadline_ns = due_ns
        return deadline_ns

    def over(self, now_ns: int) -> bool:
        """The session may be forgotten."""
        return self.state is State.CLOSED and now_ns >= self._drained_ns


def _chunk(kind: int, body: bytes) -> bytes:
    return _CHUNK.pack(kind, len(body)) + body
