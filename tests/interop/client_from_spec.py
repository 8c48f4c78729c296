"""A second client, written from protocol/SPEC.md and nothing else.

It shares no code with the product: what it cannot do from the document alone, the document lacks.
Section numbers in comments are those of SPEC.md. No I/O: datagrams and the time go in
(`receive`, `request`, `speak`), datagrams come out of `poll`; `deadline_ns` says when to poll next.
A `Client` is one session, a `Visitor` as many as it takes. What needs several requests in a row is
a `Conversation`. Opus packets are opaque bytes but for their duration (RFC 6716, section 3.1).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from base64 import urlsafe_b64decode
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

Entropy = Callable[[int], bytes]
Frame = dict[str, Any]
T = TypeVar("T")

MS = 1_000_000
NEVER_NS = 1 << 62

HELLO, WELCOME, COOKIE, REFUSED, CONTROL, AUDIO, FEED = 1, 2, 3, 4, 0x10, 0x11, 0x12
CROWD = 0x13
PAD, DATA, ACK, PING, PONG, CLOSE, REPORT = range(7)
FIRST, LAST = 1, 2  # the same bits for segments (8.1) and audio packets (12.3)
COPIES = 4
LEAVING, SHUTDOWN, PROTOCOL, TOO_SLOW, TIMEOUT, REPLACED, UNREACHABLE, EXPELLED = range(8)
FULL = 3  # of REFUSED (4.4)
ON_STAGE = ("host", "co_host", "speaker")
ROLES = (*ON_STAGE, "listener", "guest")

VERSION = 1
MAX_DATAGRAM_BYTES = 1_200
MAX_PLAINTEXT_BYTES = 1_172
SEALED_OVERHEAD_BYTES = 28
REPLAY_COUNTERS = 8_128
COUNTER_LIMIT = (1 << 56) - (1 << 13)
SAMPLES_PER_MS = 48


class ViolationError(Exception):
    """The peer sent what the specification does not allow."""


def _u(number: int, size_bytes: int) -> bytes:
    return number.to_bytes(size_bytes, "big")


def _n(data: bytes) -> int:
    return int.from_bytes(data, "big")


def ahead(a: int, b: int) -> int:
    """How far u32 `b` is ahead of `a` (serial arithmetic, section 2); negative: behind."""
    distance = (b - a) % 2**32
    return distance if distance < 2**31 else distance - 2**32


# --- The link (3) ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    host: str
    port: int
    space: str
    key: bytes
    invite: str | None


_LINK = re.compile(
    r"spaces://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@]+)(?::(?P<port>[0-9]*))?"
    r"(?:/(?P<space>[A-Za-z0-9_-]{1,32})?)?\?(?P<params>[^#]*)"
)
_PARAM = re.compile(r"([A-Za-z0-9]+)=((?:[A-Za-z0-9_-]|%[0-9A-Fa-f]{2})*)")


def read_link(text: str) -> Link:
    """Take a link apart; ValueError if it is none."""
    match = _LINK.fullmatch(text)
    if match is None:
        raise ValueError("not a link to a space")
    params: dict[str, str] = {}
    for param in match["params"].split("&"):
        pair = _PARAM.fullmatch(param)
        if pair is None or (pair[1] in ("key", "invite") and pair[1] in params):
            raise ValueError("a parameter that the link may not have")
        params[pair[1]] = pair[2]
    if not re.fullmatch(r"[A-Za-z0-9_-]{43}", params.get("key", "")):
        raise ValueError("the server's key is missing or has not 32 bytes")
    invite = params.get("invite")
    if invite is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", invite):
        raise ValueError("not an invite")
    port = int(match["port"] or 5004)
    if not 0 < port < 65_536:
        raise ValueError("no such port")
    return Link(
        host=unquote(match["host"].strip("[]")),
        port=port,
        space=match["space"] or "",
        key=urlsafe_b64decode(params["key"] + "="),
        invite=invite,
    )


# --- Handshake (4, 5) -----------------------------------------------------------------------------


def key_id(server_public: bytes) -> bytes:
    return hashlib.sha256(b"spaces key id" + server_public).digest()[:8]


def prologue(client_index: int, server_public: bytes, cookie: bytes) -> bytes:
    """The clear part of a HELLO."""
    clear = _u(HELLO, 1) + _u(VERSION, 1) + bytes(2) + _u(client_index, 4)
    return clear + key_id(server_public) + cookie


def public_key(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def dh(private: bytes, public: bytes) -> bytes:
    """X25519; ValueError for a public key of low order."""
    key = X25519PrivateKey.from_private_bytes(private)
    return key.exchange(X25519PublicKey.from_public_bytes(public))


def greeting(agent: str) -> bytes:
    data: bytes = msgpack.packb({"agent": agent})
    return data


def read_greeting(data: bytes) -> str:
    """The peer's `agent`; empty if it cannot be read (5.1)."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    try:
        agent = unpacker.unpack().get("agent", "")
    except Exception:  # whatever it is: a greeting never makes a handshake fail
        return ""
    return agent if isinstance(agent, str) and len(agent) <= 40 else ""


class Noise:
    """Noise_IK_25519_AESGCM_SHA256 as 5.1 spells it out: `h`, `ck`, `k` and `n`."""

    def __init__(self, prologue: bytes, server_public: bytes) -> None:
        self.h = self._ck = b"Noise_IK_25519_AESGCM_SHA256" + bytes(4)
        self._k = b""
        self._n = 0
        self.hash(prologue)
        self.hash(server_public)

    def hash(self, data: bytes) -> None:
        self.h = hashlib.sha256(self.h + data).digest()

    def _derive(self, secret: bytes) -> tuple[bytes, bytes]:
        okm = HKDF(algorithm=SHA256(), length=64, salt=self._ck, info=b"").derive(secret)
        return okm[:32], okm[32:]

    def mix(self, secret: bytes) -> None:
        self._ck, self._k = self._derive(secret)
        self._n = 0

    def seal(self, text: bytes) -> bytes:
        sealed = AESGCM(self._k).encrypt(bytes(4) + _u(self._n, 8), text, self.h)
        self.hash(sealed)
        self._n += 1
        return sealed

    def open(self, sealed: bytes) -> bytes:
        text = AESGCM(self._k).decrypt(bytes(4) + _u(self._n, 8), sealed, self.h)
        self.hash(sealed)
        self._n += 1
        return text

    def split(self) -> tuple[bytes, bytes]:
        return self._derive(b"")


class Initiator:
    """One attempt at a handshake: the HELLO with one client index and one ephemeral key."""

    def __init__(
        self,
        server_public: bytes,
        static: bytes,
        ephemeral: bytes,
        index: int,
        agent: str,
        cookie: bytes,
    ) -> None:
        self.index = index
        self._static, self._ephemeral = static, ephemeral
        clear = prologue(index, server_public, cookie)
        self.noise = Noise(clear, server_public)
        public = public_key(ephemeral)
        self.noise.hash(public)
        self.noise.mix(dh(ephemeral, server_public))
        sealed_static = self.noise.seal(public_key(static))
        self.noise.mix(dh(static, server_public))
        sealed_greeting = self.noise.seal(greeting(agent).ljust(128, b"\0"))
        self.hello = clear + public + sealed_static + sealed_greeting

    def read(self, welcome: bytes) -> tuple[int, str, bytes, bytes]:
        """Server index, agent and both split keys; InvalidTag or ValueError: not authentic."""
        public = welcome[8:40]
        self.noise.hash(public)
        self.noise.mix(dh(self._ephemeral, public))
        self.noise.mix(dh(self._static, public))
        payload = self.noise.open(welcome[40:])
        return _n(payload[:4]), read_greeting(payload[4:]), *self.noise.split()


# --- Keys and sealing (6) -------------------------------------------------------------------------


def expand(secret: bytes, label: str, length_bytes: int) -> bytes:
    info = b"spaces 1 " + label.encode("ascii")
    return HKDFExpand(algorithm=SHA256(), length=length_bytes, info=info).derive(secret)


def epoch_key(secret: bytes) -> bytes:
    return expand(secret, "key", 16)


def next_secret(secret: bytes) -> bytes:
    return expand(secret, "next", 32)


class Sealer:
    """One sending chain."""

    def __init__(self, secret: bytes, counter: int = 0) -> None:
        self.counter = counter
        self._epoch = 0
        self._secret = secret
        self._key = AESGCM(epoch_key(secret))

    def seal(self, kind: int, receiver_index: int, text: bytes) -> bytes:
        if self.counter >= COUNTER_LIMIT:
            raise OverflowError("a new handshake is needed")
        while self._epoch < self.counter >> 20:
            self._epoch += 1
            self._secret = next_secret(self._secret)
            self._key = AESGCM(epoch_key(self._secret))
        header = _u(kind, 1) + _u(self.counter, 7) + _u(receiver_index, 4)
        self.counter += 1
        return header + self._key.encrypt(header, text, None)


class Opener:
    """One receiving chain: three epochs' keys, the replay window, and the count of losses."""

    def __init__(self, secret: bytes) -> None:
        following = next_secret(secret)
        self._epoch = 0
        self._next_secret = following
        self._keys = {0: AESGCM(epoch_key(secret)), 1: AESGCM(epoch_key(following))}
        self._highest = -1
        self._seen = 0  # bit d: counter `highest - d` was accepted
        self._lowest = 0
        self._received = 0

    def open(self, datagram: bytes) -> bytes | None:
        """The plaintext, or None for what is to be dropped (6.3, steps 2 to 4)."""
        counter = _n(datagram[1:8])
        epoch = counter >> 20
        key = self._keys.get(epoch)
        if key is None:
            return None
        try:
            text = key.decrypt(datagram[:12], datagram[12:], None)
        except InvalidTag:
            return None
        if epoch > self._epoch:
            self._keys.pop(self._epoch - 1, None)
            self._epoch = epoch
            self._next_secret = next_secret(self._next_secret)
            self._keys[epoch + 1] = AESGCM(epoch_key(self._next_secret))
        below = self._highest - counter
        if counter >= COUNTER_LIMIT or below > REPLAY_COUNTERS:
            return None
        if below >= 0 and self._seen >> below & 1:
            return None
        self._lowest = counter if self._highest < 0 else min(self._lowest, counter)
        if below < 0:
            self._seen = (self._seen << -below) & ((1 << (REPLAY_COUNTERS + 1)) - 1)
            self._highest, below = counter, 0
        self._seen |= 1 << below
        self._received += 1
        return text

    def lost(self) -> int:
        """Datagrams lost since the lowest one received (12.7)."""
        return self._highest - self._lowest + 1 - self._received if self._highest >= 0 else 0


class Reception:
    """What to report of the media that came: losses, and a queue (12.7)."""

    WINDOW = 2
    MAX_GAP = 500
    REPORT_NS = 1_000 * MS
    REPORTS_AFTER = 60
    QUEUE_MS = 50
    MINIMA = 10  # seconds

    def __init__(self) -> None:
        self._judged = -1  # up to here it is known what was lost
        self._newest = -1
        self._came: set[int] = set()  # of those above
        self._gone = False  # the last that was judged
        self._expected = self._lost = self._bursts = 0
        self._minima: deque[tuple[int, int]] = deque(maxlen=self.MINIMA)  # second, least transit
        self._queue_ns: int | None = None
        self.due_ns = NEVER_NS
        self._left = 0

    def count(self, counter: int, now_ns: int) -> None:
        if self._newest < 0 or counter - self._newest > self.MAX_GAP:
            self._judged = counter
            self._came.clear()
        if self._newest < 0:
            self.due_ns = now_ns + self.REPORT_NS
        self._newest = max(self._newest, counter)
        if counter > self._judged:
            self._came.add(counter)
        while self._judged < self._newest - self.WINDOW:
            self._judged += 1
            gone = self._judged not in self._came
            self._came.discard(self._judged)
            self._expected += 1
            self._lost += gone
            self._bursts += gone and not self._gone
            self._gone = gone

    def heard(self, timestamp: int, now_ns: int) -> None:
        """The transit of an audio packet; only differences mean anything."""
        transit_ns = now_ns - timestamp * MS // SAMPLES_PER_MS
        second = now_ns // (1_000 * MS)
        if self._minima and self._minima[-1][0] == second:
            least_ns = min(self._minima.pop()[1], transit_ns)
        else:
            least_ns = transit_ns
        self._minima.append((second, least_ns))
        late_ns = transit_ns - min(ns for s, ns in self._minima if second - s < self.MINIMA)
        self._queue_ns = late_ns if self._queue_ns is None else min(self._queue_ns, late_ns)

    def take(self, now_ns: int) -> bytes | None:
        """The body of a REPORT, when one is due."""
        first_loss = self._lost and not self._left and not self._gone
        if now_ns < self.due_ns and not first_loss:
            return None
        self.due_ns = now_ns + self.REPORT_NS
        queue_ms = (self._queue_ns or 0) // MS
        if self._lost or queue_ms >= self.QUEUE_MS:
            self._left = self.REPORTS_AFTER
        counts = (self._expected, self._lost, self._bursts, queue_ms)
        self._expected = self._lost = self._bursts = 0
        self._queue_ns = None
        if not self._left:
            return None
        self._left -= 1
        return b"".join(_u(min(count, 0xFFFF), 2) for count in counts)


# --- Chunks (7.1) and the reliable channel (8) ----------------------------------------------------


def chunk(kind: int, body: bytes) -> bytes:
    return _u(kind, 1) + _u(len(body), 2) + body


def read_chunks(text: bytes) -> list[tuple[int, bytes]]:
    chunks = []
    at = 0
    while at < len(text):
        end = at + 3 + _n(text[at + 1 : at + 3])
        if at + 3 > len(text) or end > len(text):
            raise ViolationError("the datagram ends within a chunk")
        chunks.append((text[at], text[at + 3 : end]))
        at = end
    return chunks


@dataclass
class Segment:
    seq: int
    flags: int
    data: bytes
    sends: int = 0
    sent_ns: int = 0
    lost: bool = False
    acknowledged: bool = False


class ReliableSender:
    """Segments, congestion and flow control, retransmission (8.1, 8.4, 8.5)."""

    MAX_OUT_SEGMENTS = 64
    MIN_RTO_NS, MAX_RTO_NS = 200 * MS, 3_000 * MS

    def __init__(self) -> None:
        self._queue: deque[Segment] = deque()  # from the first one not acknowledged by `next`
        self._next_new = 0  # number of the next segment to be made
        self._window = 64
        self._congestion_segments = 10
        self._recovery_end = 0  # until `next` is there, losses do not halve again
        self._srtt_ns = 0.0
        self._rttvar_ns = 0.0
        self._rto_ns = 1_000 * MS
        self.timer_ns: int | None = None
        self.attempts = 0

    def send(self, message: bytes) -> None:
        if len(message) > 65_536:
            raise ValueError("a message has 65,536 bytes at most")
        messages = sum(1 for segment in self._queue if segment.flags & LAST)
        held_bytes = sum(len(segment.data) for segment in self._queue)
        if messages >= 1_024 or held_bytes + len(message) > 262_144:
            raise OverflowError("too much is not yet acknowledged")
        last = max(len(message) - 1, 0) // 1_000
        for i in range(last + 1):
            flags = (FIRST if i == 0 else 0) | (LAST if i == last else 0)
            data = message[1_000 * i : 1_000 * (i + 1)]
            self._queue.append(Segment(self._next_new, flags, data))
            self._next_new = (self._next_new + 1) % 2**32

    def _due(self) -> Segment | None:
        if not self._queue:
            return None
        out = [segment for segment in self._queue if segment.sends]
        in_transit = sum(1 for s in out if not s.acknowledged and not s.lost)
        if in_transit >= self._congestion_segments:
            return None
        for segment in out:
            if segment.lost and not segment.acknowledged:
                return segment
        most_out = max(1, min(self._window, self.MAX_OUT_SEGMENTS))
        return self._queue[len(out)] if len(out) < min(most_out, len(self._queue)) else None

    def poll(self, now_ns: int, room_bytes: int) -> bytes | None:
        """A DATA chunk that is to go out now and fits, if there is one."""
        segment = self._due()
        if segment is None or 8 + len(segment.data) > room_bytes:
            return None
        if segment.sends or self.timer_ns is None:
            self.timer_ns = now_ns + self._rto_ns
        segment.sends += 1
        segment.sent_ns = now_ns
        segment.lost = False
        return chunk(DATA, _u(segment.seq, 4) + _u(segment.flags, 1) + segment.data)

    def waiting(self) -> bool:
        return self._due() is not None

    def on_ack(self, body: bytes, now_ns: int) -> None:
        if len(body) < 6 or (len(body) - 6) % 4 or len(body) > 70:
            raise ViolationError("ACK of a wrong length")
        acked, window = _n(body[:4]), _n(body[4:6])
        base = self._queue[0].seq if self._queue else self._next_new
        out = sum(1 for segment in self._queue if segment.sends)
        until = ahead(base, acked)  # segments in the queue that `next` acknowledges
        if until < 0:
            return
        spans = []
        for at in range(6, len(body), 4):
            offset, length = _n(body[at : at + 2]), _n(body[at + 2 : at + 4])
            if not offset or not length:
                raise ViolationError("an empty range in an ACK")
            spans.append((until + offset, until + offset + length))
        if until > out or any(end > out for _, end in spans):
            raise ViolationError("acknowledgement of what was never sent")
        if until < out and self._queue[until].acknowledged:
            raise ViolationError("an acknowledgement is taken back")
        self._window = window

        news = [s for i, s in enumerate(self._queue) if i < until and not s.acknowledged]
        for start, end in spans:
            news += [self._queue[i] for i in range(start, end) if not self._queue[i].acknowledged]
        samples = [now_ns - s.sent_ns for s in news if s.sends == 1 and not s.lost]
        for segment in news:
            segment.acknowledged = True
        if news:
            self.attempts = 0
            self._congestion_segments = min(64, self._congestion_segments + len(news))
        if samples:
            self.sample(min(samples))
        for _ in range(until):
            self._queue.popleft()
        if until:
            still_out = out > until
            self.timer_ns = now_ns + self._rto_ns if still_out else None

        later = 0
        for segment in reversed(self._queue):
            if segment.acknowledged:
                later += 1
            elif segment.sends == 1 and not segment.lost and later >= 3:
                segment.lost = True
                if ahead(self._queue[0].seq, self._recovery_end) <= 0:
                    self._halve()

    def _halve(self) -> None:
        self._congestion_segments = max(2, self._congestion_segments // 2)
        out = sum(1 for segment in self._queue if segment.sends)
        self._recovery_end = (self._queue[0].seq + out) % 2**32

    def on_time(self, now_ns: int) -> None:
        if self.timer_ns is None or now_ns < self.timer_ns:
            return
        self.timer_ns = None
        self.attempts += 1
        self._rto_ns = min(2 * self._rto_ns, self.MAX_RTO_NS)
        for segment in self._queue:
            if segment.sends and not segment.acknowledged:
                segment.lost = True
        self._halve()

    def sample(self, rtt_ns: int) -> None:
        """RFC 6298, section 2, without the clock's granularity."""
        if not self._srtt_ns:
            self._srtt_ns, self._rttvar_ns = rtt_ns, rtt_ns / 2
        else:
            self._rttvar_ns += (abs(self._srtt_ns - rtt_ns) - self._rttvar_ns) / 4
            self._srtt_ns += (rtt_ns - self._srtt_ns) / 8
        rto_ns = int(self._srtt_ns + 4 * self._rttvar_ns)
        self._rto_ns = min(max(rto_ns, self.MIN_RTO_NS), self.MAX_RTO_NS)


class ReliableReceiver:
    """Segments into messages, and what to acknowledge when (8.1 to 8.3)."""

    WINDOW_SEGMENTS = 64

    def __init__(self) -> None:
        self._next = 0
        self._held: dict[int, tuple[int, bytes]] = {}
        self._message: bytearray | None = None
        self._since_ack = 0
        self.ack_due_ns = NEVER_NS

    def on_data(self, body: bytes, now_ns: int) -> list[bytes]:
        """The messages that this segment completes."""
        if not 5 <= len(body) <= 1_005:
            raise ViolationError("DATA of a wrong length")
        seq, flags, data = _n(body[:4]), body[4], body[5:]
        if flags & ~(FIRST | LAST) or (not data and flags != FIRST | LAST):
            raise ViolationError("flags or an empty segment")
        distance = ahead(self._next, seq)
        if distance >= self.WINDOW_SEGMENTS:
            raise ViolationError("a segment beyond the window")
        self._since_ack += 1
        at_once = self._since_ack >= 2 or distance != 0 or bool(self._held)
        self.ack_due_ns = now_ns if at_once else min(self.ack_due_ns, now_ns + 20 * MS)
        if distance < 0:
            return []
        self._held.setdefault(seq, (flags, data))
        messages = []
        while (segment := self._held.pop(self._next, None)) is not None:
            self._next = (self._next + 1) % 2**32
            messages += self._take(*segment)
        return messages

    def _take(self, flags: int, data: bytes) -> list[bytes]:
        if bool(flags & FIRST) == (self._message is not None):
            raise ViolationError("a message begins within another, or none has begun")
        message = self._message if self._message is not None else bytearray()
        message += data
        if len(message) > 65_536:
            raise ViolationError("a message that is too long")
        self._message = None if flags & LAST else message
        return [bytes(message)] if flags & LAST else []

    def ack(self) -> bytes | None:
        """An ACK chunk, if one is owed."""
        if self.ack_due_ns == NEVER_NS:
            return None
        self.ack_due_ns = NEVER_NS
        self._since_ack = 0
        ranges: list[list[int]] = []
        for offset in sorted(ahead(self._next, seq) for seq in self._held):
            if ranges and sum(ranges[-1]) == offset:
                ranges[-1][1] += 1
            else:
                ranges.append([offset, 1])
        body = _u(self._next, 4) + _u(self.WINDOW_SEGMENTS, 2)
        return chunk(ACK, body + b"".join(_u(o, 2) + _u(n, 2) for o, n in ranges[:16]))


# --- Texts (9.12) ---------------------------------------------------------------------------------

_UNSEEN = frozenset(
    map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x180E), 0x180F, 0x3164))
) | {"\uffa0"}
_JOINED = ("So", "Sm", "Sk", "Mn", "Mc", "Lo")


def _amiss(text: str, lines: bool) -> list[bool]:
    """Of each character, whether it may not be shown."""
    kinds = [unicodedata.category(character) for character in text]
    found = []
    marks = 0
    for i, (character, kind) in enumerate(zip(text, kinds, strict=True)):
        marks = marks + 1 if kind in ("Mn", "Mc", "Me") else 0
        if character in "\u200c\u200d":
            around = (kinds[i - 1 : i] or [""]) + (kinds[i + 1 : i + 2] or [""])
            found.append(not all(kind in _JOINED for kind in around))
        elif character == "\n" and lines:
            found.append(False)
        else:
            bad = kind in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp") or character in _UNSEEN
            found.append(bad or marks > 4)
    return found


def shown(text: str, *, lines: bool = False) -> str:
    """A text from elsewhere, as it may be shown."""
    amiss = _amiss(text, lines)
    return "".join("\ufffd" if bad else c for c, bad in zip(text, amiss, strict=True))


def as_kept(text: str, most_chars: int, *, lines: bool = False) -> str | None:
    """What a server makes of a text; None if it refuses it with `bad_text`.  Python's own white
    space is that of the document."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n") if lines else text).strip()
    visible = any(
        not character.isspace()
        and character != "\u2800"
        and unicodedata.category(character) not in ("Mn", "Mc", "Me")
        for character in text
    )
    return text if visible and len(text) <= most_chars and not any(_amiss(text, lines)) else None


# --- Frames (9) -----------------------------------------------------------------------------------

MAX_FRAME_BYTES = 65_536
MAX_PART_BYTES = 16_384

Check = Callable[[Any], bool]


def _is_u32(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _is_str(value: Any) -> bool:
    return type(value) is str


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _text(least_chars: int, most_chars: int) -> Check:
    return lambda value: type(value) is str and least_chars <= len(value) <= most_chars


def _binary(least_bytes: int, most_bytes: int) -> Check:
    return lambda value: type(value) is bytes and least_bytes <= len(value) <= most_bytes


def _token(least_chars: int, most_chars: int) -> Check:
    form = re.compile(f"[A-Za-z0-9_-]{{{least_chars},{most_chars}}}")
    return lambda value: type(value) is str and form.fullmatch(value) is not None


def _one_of(*values: str) -> Check:
    return lambda value: type(value) is str and value in values


def _emoji(value: Any) -> bool:
    return type(value) is str and 1 <= len(value) <= 16 and len(value.encode()) <= 24


def _array(entry: Check) -> Check:
    return lambda value: type(value) is list and all(map(entry, value))


def _map(**fields: Check) -> Check:
    """A map with these keys; one whose name ends in `_` is optional. Other keys are ignored."""

    def check(value: Any) -> bool:
        if type(value) is not dict:
            return False
        for name, fits in fields.items():
            key = name.removesuffix("_")
            if key in value:
                if not fits(value[key]):
                    return False
            elif key == name:
                return False
        return True

    return check


def _counts(value: Any) -> bool:
    return type(value) is dict and all(map(_is_u32, value.values()))


_IS_MAP = _map()
_HANDLE, _HANDLE_OR_NONE = _text(1, 30), _text(0, 30)
_SPACE, _SPACE_OR_NONE = _token(1, 32), _token(0, 32)
_TOKEN, _TOKEN_OR_NONE = _token(1, 64), _token(0, 64)
_NAME, _TITLE = _text(1, 40), _text(1, 100)
_ROLE, _VISIBILITY = _one_of(*ROLES), _one_of("public", "followers", "link")
_OUTCOME = _one_of("dismiss", "warn", "remove", "ban")
_CATEGORY = _one_of(
    *("harassment", "hate", "violence", "sexual", "self_harm", "spam", "impersonation", "illegal"),
    "other",
)

_MEMBER = _map(
    id=_is_u32,
    name=_NAME,
    handle_=_HANDLE_OR_NONE,
    role_=_ROLE,
    seat_=lambda seat: _is_u32(seat) and seat < 256,
    muted_=_is_bool,
    held_=_is_bool,
    hand_=_is_u32,
)
_SETTINGS = _map(
    visibility_=_VISIBILITY,
    who_speaks_=_one_of("everyone", "followed", "invited"),
    free_unmute_=_is_bool,
    chat_=_is_bool,
    slow_s_=_is_u32,
)
_SNAPSHOT = _map(
    number=_is_u32,
    title=_TITLE,
    settings=_SETTINGS,
    members=_array(_MEMBER),
    listeners=_is_u32,
)
_ACCOUNT = _map(
    handle=_HANDLE,
    name=_NAME,
    role_=_one_of("owner", "moderator", "person"),
    access_=_is_bool,
    banned_=_is_bool,
    invited_by_=_HANDLE_OR_NONE,
    since_=_is_u32,
)
_PERSON = _map(
    handle=_HANDLE, name=_NAME, following_=_is_bool, follows_you_=_is_bool, blocked_=_is_bool
)
_DEVICE = _map(id=_is_u32, label=_NAME, added=_is_u32, this_=_is_bool)
_WAITING = _map(handle=_HANDLE, name=_NAME, asked=_is_u32, note=_text(0, 500))
_SPACE_INFO = _map(
    id=_SPACE,
    title=_TITLE,
    host=_HANDLE,
    host_name=_NAME,
    state=_one_of("scheduled", "live", "ended"),
    visibility_=_VISIBILITY,
    starts_=_is_u32,
    listeners_=_is_u32,
    stage_=_is_u32,
    followed_=_is_bool,
    reminder_=_is_bool,
)
_INVITE_INFO = _map(
    invite=_TOKEN,
    issuer=_HANDLE,
    role=_ROLE,
    person_=_HANDLE_OR_NONE,
    until_=_is_u32,
    uses_=_is_u32,
    max_uses_=_is_u32,
)
_MESSAGE_INFO = _map(
    id=_is_u32,
    sender=_HANDLE,
    recipient=_HANDLE,
    at=_is_u32,
    text_=_text(0, 1_000),
    space_=_SPACE_OR_NONE,
    invite_=_TOKEN_OR_NONE,
)
_POST_INFO = _map(
    id=_is_u32,
    author=_HANDLE,
    name=_NAME,
    at=_is_u32,
    text_=_text(0, 280),
    space_=_SPACE_OR_NONE,
    note_ms_=_is_u32,
)
_REPORT_INFO = _map(
    id=_is_u32,
    reporter=_HANDLE,
    at=_is_u32,
    category=_CATEGORY,
    note_=_text(0, 500),
    person_=_HANDLE_OR_NONE,
    guest_=_is_bool,
    space_=_SPACE_OR_NONE,
    evidence_s_=_is_u32,
    evidence_until_=_is_u32,
    outcome_=_OUTCOME,
    moderator_=_HANDLE_OR_NONE,
)
_BATCH = _map(space=_SPACE, first=_is_u32, updates=_array(_IS_MAP), hash=_is_u32)

UPDATES = {
    "member": _map(member=_MEMBER),
    "gone": _map(id=_is_u32),
    "listeners": _map(count=_is_u32),
    "settings": _map(title=_TITLE, settings=_SETTINGS),
    "chat": _map(line=_is_u32, member=_is_u32, name=_NAME, handle=_HANDLE, text=_text(1, 280)),
    "line_gone": _map(line=_is_u32),
    "reactions": _map(counts=_counts, stage=_array(_map(member=_is_u32, emoji=_emoji))),
}
REPLIES = {
    "ok": _map(),
    "error": _map(code=_is_str, text=_is_str, retry_ms_=_is_u32),
    "joined": _map(
        space=_SPACE, you=_MEMBER, snapshot=_SNAPSHOT, reactions=_array(_emoji), evidence_=_is_bool
    ),
    "roster_page": _map(members=_array(_MEMBER), more=_is_bool),
    "updates": _BATCH,
    "state": _map(space=_SPACE, you=_MEMBER, snapshot=_SNAPSHOT),
    "clocks": _map(now=_is_u32, voices=_array(_map(seat=_is_u32, offset=_is_u32)), spare_=_is_u32),
    "said": _map(line=_is_u32),
    "account": _map(account=_ACCOUNT, server=_one_of("open", "limited")),
    "device_code": _map(code=_TOKEN, until=_is_u32),
    "devices": _map(devices=_array(_DEVICE)),
    "person": _map(person=_PERSON),
    "people": _map(people=_array(_PERSON), next_=_is_u32),
    "waiting": _map(waiting=_array(_WAITING), next_=_is_u32),
    "accounts": _map(accounts=_array(_ACCOUNT), next_=_is_u32),
    "spaces": _map(spaces=_array(_SPACE_INFO), next_=_is_u32),
    "space": _map(space=_SPACE_INFO),
    "invited": _map(invite=_TOKEN),
    "invites": _map(invites=_array(_INVITE_INFO)),
    "sent": _map(message=_is_u32),
    "messages": _map(messages=_array(_MESSAGE_INFO), next_=_is_u32),
    "posted": _map(post=_is_u32),
    "posts": _map(posts=_array(_POST_INFO), next_=_is_u32),
    "note": _map(data=_binary(0, MAX_PART_BYTES), more=_is_bool),
    "reported": _map(report=_is_u32, evidence_=_is_bool),
    "reports": _map(reports=_array(_REPORT_INFO), next_=_is_u32),
    "evidence": _map(
        sender_key=_binary(32, 32),
        sealed_key=_binary(0, MAX_PART_BYTES),
        data=_binary(0, MAX_PART_BYTES),
        more=_is_bool,
    ),
}
NOTICES = {
    "you": _map(space=_SPACE, you=_MEMBER),
    "offered": _map(space=_SPACE, by=_is_u32),
    "declined": _map(space=_SPACE, member=_is_u32),
    "blocked_on_stage": _map(space=_SPACE, member=_is_u32),
    "removed": _map(space=_SPACE, text=_is_str),
    "ended": _map(space=_SPACE, text=_is_str),
    "access_granted": _map(notice=_is_u32, by_=_HANDLE_OR_NONE),
    "message": _map(message=_MESSAGE_INFO),
    "unread": _map(notice=_is_u32),
    "started": _map(notice=_is_u32, space=_SPACE, title=_TITLE, host=_HANDLE),
    "outcome": _map(notice=_is_u32, report=_is_u32, outcome=_OUTCOME, text=_is_str),
    "warned": _map(notice=_is_u32, text=_is_str),
}


def write_frame(frame: Frame) -> bytes:
    data: bytes = msgpack.packb(frame)
    if len(data) > MAX_FRAME_BYTES:
        raise ValueError("a frame has 65,536 bytes at most")
    return data


def _unpack(data: bytes) -> Frame | None:
    """The msgpack map that `data` is, or None."""

    def unique(pairs: list[tuple[Any, Any]]) -> Frame:
        found = dict(pairs)
        if len(found) < len(pairs) or not all(type(key) is str for key in found):
            raise ValueError("keys are strings, and none comes twice")
        return found

    def no_extension(code: int, data: bytes) -> Any:
        raise ValueError("extension types are not used")

    try:
        value = msgpack.unpackb(data, object_pairs_hook=unique, ext_hook=no_extension)
    except Exception:  # msgpack raises a variety; each of them means that it is no such map
        return None
    return value if type(value) is dict else None


def read_frame(data: bytes) -> Frame | None:
    """A frame from the server, or None for what a client ignores."""
    frame = _unpack(data) if len(data) <= MAX_FRAME_BYTES else None
    if frame is None:
        return None
    kind = str(frame.get("type"))
    if kind in REPLIES:
        return frame if _is_u32(frame.get("re")) and REPLIES[kind](frame) else None
    return frame if kind in NOTICES and NOTICES[kind](frame) else None


def read_batch(data: bytes) -> Frame | None:
    batch = _unpack(data)
    return batch if batch and _BATCH(batch) else None


@dataclass(frozen=True)
class Member:
    id: int
    name: str
    handle: str = ""
    role: str = "listener"
    seat: int | None = None
    muted: bool = False
    held: bool = False
    hand: int = 0

    @classmethod
    def read(cls, value: Frame) -> Member:
        known = ("id", "name", "handle", "role", "seat", "muted", "held", "hand")
        return cls(**{key: value[key] for key in known if key in value})

    @property
    def listed(self) -> bool:
        return self.role in ON_STAGE or self.hand != 0


@dataclass(frozen=True)
class Settings:
    visibility: str = "public"
    who_speaks: str = "invited"
    free_unmute: bool = False
    chat: bool = True
    slow_s: int = 0

    @classmethod
    def read(cls, value: Frame) -> Settings:
        known = ("visibility", "who_speaks", "free_unmute", "chat", "slow_s")
        return cls(**{key: value[key] for key in known if key in value})


@dataclass(frozen=True)
class Line:
    member: int
    name: str
    handle: str
    text: str


# --- The view of a space (11) ---------------------------------------------------------------------


@dataclass
class View:
    """`joined_by`, `joined_with`: id and fields of the request that brought us here."""

    space: str
    you: Member
    number: int = 0
    title: str = ""
    settings: Settings = field(default_factory=Settings)
    listed: dict[int, Member] = field(default_factory=dict)
    listeners: int = 0
    lines: dict[int, Line] = field(default_factory=dict)
    shown_reactions: deque[Frame] = field(default_factory=lambda: deque(maxlen=64))
    newest: int = 0  # the highest number of an update that is known to exist
    wrong: bool = False  # the state hash was another one
    joined_by: int = 0
    joined_with: Frame = field(default_factory=dict)
    reactions: list[str] = field(default_factory=list)  # that may be shown
    evidence: bool = False

    MAX_LINES = 1_000

    def take_snapshot(self, you: Frame, snapshot: Frame) -> None:
        self.you = Member.read(you)
        if snapshot["number"] != self.number:
            self.lines.clear()
        self.number = snapshot["number"]
        self.newest = max(self.newest, self.number)
        self.title = snapshot["title"]
        self.settings = Settings.read(snapshot["settings"])
        self.listed = {m["id"]: Member.read(m) for m in snapshot["members"]}
        self.listeners = snapshot["listeners"]
        self.wrong = False

    def take_batch(self, first: int, updates: list[Frame], state_hash: int) -> bool:
        """Whether anything of it was applied (11.2, steps 2, 3 and 5)."""
        self.newest = max(self.newest, first + len(updates) - 1)
        fresh = updates[self.number + 1 - first :] if first <= self.number + 1 else []
        for update in fresh:
            self._apply(update)
            self.number += 1
        if fresh:
            self.wrong = state_hash != self.state_hash()
        return bool(fresh)

    def _apply(self, update: Frame) -> None:
        kind = str(update.get("type"))
        if kind not in UPDATES or not UPDATES[kind](update):
            return
        if kind == "listeners":
            self.listeners = update["count"]
        elif kind == "gone":
            self.listed.pop(update["id"], None)
        elif kind == "settings":
            self.title, self.settings = update["title"], Settings.read(update["settings"])
        elif kind == "chat":
            self.lines[update["line"]] = Line(
                update["member"], update["name"], update["handle"], update["text"]
            )
            while len(self.lines) > self.MAX_LINES:
                del self.lines[min(self.lines)]
        elif kind == "line_gone":
            self.lines.pop(update["line"], None)
        elif kind == "reactions":
            self.shown_reactions.append(update)
        else:
            member = Member.read(update["member"])
            if member.listed:
                self.listed[member.id] = member
            else:
                self.listed.pop(member.id, None)
            if member.id == self.you.id:
                self.you = member

    @property
    def behind(self) -> bool:
        return self.number < self.newest

    @property
    def hands(self) -> list[Member]:
        """The queue (9.9): `listed` has them in the order of the snapshot and of the updates."""
        return sorted((m for m in self.listed.values() if m.hand), key=lambda m: m.hand)

    def entries(self) -> list[bytes]:
        """What the state hash is made of (11.3)."""
        how = self.settings
        run = (how.visibility, how.who_speaks, how.free_unmute, how.chat, how.slow_s)
        rows: list[tuple[Any, ...]] = [
            ("space", self.title, *run),
            ("listeners", self.listeners),
            *(
                ("member", m.id, m.name, m.handle, m.role, m.seat, m.muted, m.held, m.hand)
                for m in self.listed.values()
            ),
        ]
        return [msgpack.packb(row) for row in rows]

    def state_hash(self) -> int:
        found = 0
        for entry in self.entries():
            found ^= _n(hashlib.sha256(entry).digest()[:4])
        return found


# --- Audio (12) -----------------------------------------------------------------------------------


def write_voice(timestamp: int, flags: int, opus: bytes) -> bytes:
    if not 1 <= len(opus) <= 1_167:
        raise ValueError("an Opus packet has 1 to 1,167 bytes here")
    return _u(timestamp % 2**32, 4) + _u(flags, 1) + opus


@dataclass(frozen=True)
class Audible:
    seat: int
    level: int
    capture: int


@dataclass(frozen=True)
class Mix:
    timestamp: int
    flags: int
    audible: tuple[Audible, ...]
    opus: bytes
    copies: tuple[Mix, ...] = ()  # of earlier packets; who is audible in them is not said


def read_mix(text: bytes) -> Mix | None:
    """A packet of the mix, or None for one to be ignored (12.3, 12.10)."""
    if len(text) < 6:
        return None
    timestamp, flags, n = _n(text[:4]), text[4], text[5]
    if flags & ~(FIRST | LAST | COPIES) or n > 32 or len(text) < 6 + 4 * n + 1:
        return None
    rows = [text[6 + 4 * i : 10 + 4 * i] for i in range(n)]
    audible = tuple(Audible(row[0], row[1], _n(row[2:4])) for row in rows)
    rest = text[6 + 4 * n :]
    copies: list[Mix] = []
    if flags & COPIES:
        count, rest = rest[0], rest[1:]
        if not 1 <= count <= 3:
            return None
        for _ in range(count):
            back, end = rest[:1], 4 + _n(rest[2:4])
            if len(rest) <= end or end == 4 or not _n(back) or rest[1] & ~FIRST:
                return None
            copied = (timestamp - 120 * _n(back)) % 2**32
            copies.append(Mix(copied, rest[1], (), rest[4:end]))
            rest = rest[end:]
    return Mix(timestamp, flags & ~COPIES, audible, rest, tuple(copies))


def read_crowd(text: bytes) -> list[Mix]:
    """The packets of the mix in a CROWD datagram, up to the first that is not one (12.9)."""
    packets: list[Mix] = []
    while text and len(packets) < 3:
        end = 2 + _n(text[:2])
        packet = read_mix(text[2:end])
        if len(text) < max(2, end) or packet is None:
            break
        packets.append(packet)
        text = text[end:]
    return packets


def opus_samples(packet: bytes) -> int:
    """Duration of an Opus packet at 48 kHz (RFC 6716, section 3.1 and table 2)."""
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame = (480, 960, 1_920, 2_880)[config & 3]
    elif config < 16:
        frame = (480, 960)[config & 1]
    else:
        frame = (120, 240, 480, 960)[config & 3]
    frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[code]
    return frame * frames


@dataclass(frozen=True)
class Play:
    """What to play for the next 20 ms: a packet, else concealment, else silence."""

    mix: Mix | None = None
    conceal: bool = False
    reset: bool = False


class Playout:
    """The jitter buffer of 12.6, at its simplest: a fixed delay at the start of a talkspurt."""

    DELAY_NS = 80 * MS
    MAX_PACKETS = 128
    MAX_SPAN_SAMPLES = 96_000
    MAX_JUMP_NS = 2_000 * MS
    STEP_SAMPLES = 960
    MAX_CONCEALED_SAMPLES = 4_800

    def __init__(self) -> None:
        self.recovered = 0  # packets that came as a copy alone
        self.clear()

    def clear(self) -> None:
        self._held: dict[int, tuple[Mix, int]] = {}  # by unwrapped timestamp: packet, arrival
        self._newest: int | None = None
        self._least_transit_ns: int | None = None
        self._cursor: int | None = None  # unwrapped timestamp of what is played next
        self._playing = False
        self._concealed_samples = 0

    def put(self, mix: Mix, now_ns: int) -> None:
        newest = mix.timestamp if self._newest is None else self._newest
        at = newest + ahead(newest % 2**32, mix.timestamp)
        transit_ns = now_ns - at * MS // SAMPLES_PER_MS
        if self._least_transit_ns is None:
            self._least_transit_ns = transit_ns
        elif abs(transit_ns - self._least_transit_ns) > self.MAX_JUMP_NS:
            self.clear()
            self.put(mix, now_ns)
            return
        self._least_transit_ns = min(self._least_transit_ns, transit_ns)
        self._newest = max(newest, at)
        for copy in mix.copies:
            before = at - (mix.timestamp - copy.timestamp) % 2**32
            if before not in self._held and (self._cursor is None or before >= self._cursor):
                self.recovered += 1
                self._held[before] = (copy, now_ns)
        if self._cursor is None or at >= self._cursor:
            self._held.setdefault(at, (mix, now_ns))
        oldest = self._newest - self.MAX_SPAN_SAMPLES
        for late in [key for key in self._held if key < oldest]:
            del self._held[late]
        if len(self._held) > self.MAX_PACKETS:
            del self._held[min(self._held)]

    def take(self, now_ns: int) -> Play:
        """Called once for every 20 ms that the device plays."""
        reset = False
        if not self._playing:
            if not self._held:
                return Play()
            start = min(self._held)
            if now_ns < self._held[start][1] + self.DELAY_NS:
                return Play()
            self._playing = reset = True
            self._cursor = start
            self._concealed_samples = 0
        assert self._cursor is not None
        found = self._held.pop(self._cursor, None)
        if found is not None:
            mix = found[0]
            self._cursor += opus_samples(mix.opus) or self.STEP_SAMPLES
            self._concealed_samples = 0
            if mix.flags & LAST:
                self._playing = False
            return Play(mix, reset=reset or bool(mix.flags & FIRST))
        for passed in [key for key in self._held if key < self._cursor]:
            del self._held[passed]
        following = min(self._held, default=None)
        fresh = following is not None and self._held[following][0].flags & FIRST
        if fresh or self._concealed_samples >= self.MAX_CONCEALED_SAMPLES:
            self._playing = False
            return Play()
        self._concealed_samples += self.STEP_SAMPLES
        self._cursor += self.STEP_SAMPLES
        return Play(conceal=True)


# --- Rows of packets: voice notes (14.5), recordings (12.8) ---------------------------------------


def write_note(packets: Iterable[bytes]) -> bytes:
    return b"".join(_u(len(opus), 2) + opus for opus in packets)


def _take(data: bytes, at: int, size_bytes: int) -> bytes:
    if at + size_bytes > len(data):
        raise ViolationError("the row ends within a packet")
    return data[at : at + size_bytes]


def read_note(data: bytes) -> list[bytes]:
    packets = []
    at = 0
    while at < len(data):
        size_bytes = _n(_take(data, at, 2))
        packets.append(_take(data, at + 2, size_bytes))
        at += 2 + size_bytes
    return packets


def note_ms(packets: Iterable[bytes]) -> int:
    return sum(map(opus_samples, packets)) // SAMPLES_PER_MS


def write_recording(packets: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(_u(at, 4) + _u(len(opus), 2) + opus for at, opus in packets)


def read_recording(data: bytes) -> list[tuple[int, bytes]]:
    packets = []
    at = 0
    while at < len(data):
        timestamp, size_bytes = _n(_take(data, at, 4)), _n(_take(data, at + 4, 2))
        packets.append((timestamp, _take(data, at + 6, size_bytes)))
        at += 6 + size_bytes
    return packets


# --- Evidence (12.8): HPKE of RFC 9180, from its primitives ---------------------------------------


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


_KEM = b"KEM" + _u(0x0020, 2)
_SUITE = b"HPKE" + _u(0x0020, 2) + _u(0x0001, 2) + _u(0x0002, 2)


def _extract(suite: bytes, salt: bytes, label: str, secret: bytes) -> bytes:
    """LabeledExtract (RFC 9180, section 4)."""
    return _hmac(salt or bytes(32), b"HPKE-v1" + suite + label.encode() + secret)


def _expand(suite: bytes, prk: bytes, label: str, info: bytes, length_bytes: int) -> bytes:
    """LabeledExpand (RFC 9180, section 4); 32 bytes at most, so that one round of HMAC will do."""
    labeled = _u(length_bytes, 2) + b"HPKE-v1" + suite + label.encode() + info
    return _hmac(prk, labeled + b"\1")[:length_bytes]


def _hpke(secret: bytes, enc: bytes, receiver: bytes, info: bytes) -> tuple[AESGCM, bytes]:
    """Cipher and first nonce (sections 4.1 and 5.1, mode base)."""
    shared = _expand(
        _KEM, _extract(_KEM, b"", "eae_prk", secret), "shared_secret", enc + receiver, 32
    )
    psk_id_hash = _extract(_SUITE, b"", "psk_id_hash", b"")
    context = b"\0" + psk_id_hash + _extract(_SUITE, b"", "info_hash", info)
    prk = _extract(_SUITE, shared, "secret", b"")
    key = _expand(_SUITE, prk, "key", context, 32)
    return AESGCM(key), _expand(_SUITE, prk, "base_nonce", context, 12)


_EVIDENCE = b"spaces 1 evidence"


def open_evidence(data: bytes, sender_key: bytes, sealed_key: bytes, device: bytes) -> bytes:
    """The recording; InvalidTag or ValueError if it is not sealed for this private key."""
    cipher, nonce = _hpke(dh(device, sender_key), sender_key, public_key(device), _EVIDENCE)
    content_key = cipher.decrypt(nonce, sealed_key, b"")
    return AESGCM(content_key).decrypt(bytes(12), data, None)


def seal_evidence(
    recording: bytes, content_key: bytes, sender: bytes, device_public: bytes
) -> tuple[bytes, bytes, bytes]:
    """The server's part: `sender_key`, `sealed_key` and `data`."""
    enc = public_key(sender)
    cipher, nonce = _hpke(dh(sender, device_public), enc, device_public, _EVIDENCE)
    sealed_key = cipher.encrypt(nonce, content_key, b"")
    return enc, sealed_key, AESGCM(content_key).encrypt(bytes(12), recording, None)


# --- What takes several requests in a row ---------------------------------------------------------

Conversation = Generator[tuple[str, Frame], Frame, T]  # asks requests, is sent their replies


class RefusedError(Exception):
    """The reply was this error."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame["text"])
        self.code: str = frame["code"]


def _granted(reply: Frame) -> Frame:
    if reply["type"] == "error":
        raise RefusedError(reply)
    return reply


def all_pages(kind: str, of: str, cursor: str = "after", **fields: Any) -> Conversation[list[Any]]:
    """Everything that comes in pages (9.2), of which the replies have the array `of`."""
    found: list[Any] = []
    at = 0
    while True:
        page = _granted((yield kind, fields | ({cursor: at} if at else {})))
        found += page[of]
        at = page.get("next", 0)
        if not at:
            return found


def whole_roster() -> Conversation[list[Member]]:
    """All members (11.2)."""
    members: list[Member] = []
    more = True
    while more:
        page = _granted((yield "roster", {"after": members[-1].id if members else 0}))
        members += map(Member.read, page["members"])
        more = page["more"]
    return members


def post_note(packets: list[bytes], **fields: Any) -> Conversation[int]:
    """Posts a voice note (14.5); -> the post's number."""
    note = write_note(packets)
    for at in range(0, len(note), MAX_PART_BYTES):
        part = {"first": at == 0, "data": note[at : at + MAX_PART_BYTES]}
        _granted((yield "note_part", part))
    number: int = _granted((yield "post", {"note": True, **fields}))["post"]
    return number


def get_note(post: int) -> Conversation[list[bytes]]:
    data, part, more = b"", 0, True
    while more:
        reply = _granted((yield "get_note", {"post": post, "part": part}))
        data, part, more = data + reply["data"], part + 1, reply["more"]
    return read_note(data)


def get_evidence(report: int, device: bytes) -> Conversation[list[tuple[int, bytes]]]:
    """The packets of the reported speaker, opened with this device's private key."""
    data, part, more = b"", 0, True
    while more:
        reply = _granted((yield "get_evidence", {"report": report, "part": part}))
        data, part, more = data + reply["data"], part + 1, reply["more"]
    return read_recording(open_evidence(data, reply["sender_key"], reply["sealed_key"], device))


# --- The client -----------------------------------------------------------------------------------


@dataclass
class Chains:
    """What a completed handshake leaves: the peer's index and the four chains."""

    server_index: int
    seal_control: Sealer
    seal_media: Sealer
    open_control: Opener
    open_media: Opener

    @classmethod
    def make(cls, server_index: int, to_server: bytes, to_client: bytes) -> Chains:
        return cls(
            server_index,
            Sealer(expand(to_server, "control", 32)),
            Sealer(expand(to_server, "media", 32)),
            Opener(expand(to_client, "control", 32)),
            Opener(expand(to_client, "media", 32)),
        )


@dataclass
class Ping:
    """The PING under way (7.2)."""

    token: bytes
    since_ns: int  # first sent
    sends: int = 0
    old: bool = False  # first sent before `joined`: its PONG may speak of another space


class Client:
    """One session with one server, from HELLO to CLOSE, and the space that it is in.

    `state` is "greeting", "session", "closing" or "over"; then `refused` has the code of a REFUSED,
    or `closed` the code and text of the end. `frames` are the replies and notices as they came,
    `kept` the kept notices that wait for `seen`, `view` is the space, `playout` what to play.
    `ignored` counts the frames that were not of their form.
    """

    HANDSHAKE_NS = 5_000 * MS
    KEEPALIVE_NS = 15_000 * MS
    QUIET_NS = 5_000 * MS
    KEEPALIVE_REPEAT_NS = 1_000 * MS
    IDLE_NS = 30_000 * MS
    CLOSE_REPEAT_NS = 200 * MS
    DRAIN_NS = 3_000 * MS
    ASK_NS = 1_000 * MS
    MAX_LOOK_NS = 64_000 * MS
    MAX_ATTEMPTS = 15
    PROBES_NS = (90 * MS, 100 * MS, 200 * MS, *(400 * MS,) * 5)

    def __init__(
        self, server_public: bytes, identity: bytes, entropy: Entropy, now_ns: int, agent: str = ""
    ) -> None:
        self._server_public, self._identity, self._entropy = server_public, identity, entropy
        self._agent = agent
        self.state = "greeting"
        self.refused: int | None = None
        self.closed: tuple[int, str] | None = None
        self.server_agent = ""
        self.cookies = 0
        self.frames: deque[Frame] = deque(maxlen=4_096)
        self.ignored = 0
        self.kept: dict[int, Frame] = {}
        self.view: View | None = None
        self.playout = Playout()
        self._outbox: list[bytes] = []
        self._chains: Chains | None = None

        self._cookie = bytes(16)
        self._give_up_ns = now_ns + self.HANDSHAKE_NS
        self._begin(now_ns)

        self._sender = ReliableSender()
        self._receiver = ReliableReceiver()
        self._reception = Reception()
        self.next_id = 1
        self.asked: dict[int, tuple[str, Frame]] = {}  # requests without a reply yet
        self._pongs_owed: deque[bytes] = deque(maxlen=4)
        self._ping: Ping | None = None
        self._ping_bytes: int | None = None  # one is due, in a datagram padded to so many
        self._last_ping_ns = self.heard_ns = self.since_ns = now_ns
        self._repair: int | None = None  # the `catch_up` or `look` under way
        self._asked_ns = now_ns - self.ASK_NS  # when the last of them went out
        self._look_wait_ns = self.ASK_NS
        self._probes = 0
        self._probe_ns = NEVER_NS
        self._voice_start = _n(entropy(4))
        self._close_body = b""
        self._close_due: deque[int] = deque()
        self._answer_until_ns = now_ns

    # What the program asks for

    def request(self, kind: str, **fields: Any) -> int:
        """Queue a request; returns its `id`, the `re` of the reply to come."""
        if kind == "join":
            fields = {"packet_ms": 60, **fields}
        number = self.next_id
        self.next_id += 1
        self.asked[number] = (kind, fields)
        self._sender.send(write_frame({"type": kind, "id": number, **fields}))
        return number

    def say(self, message: bytes) -> None:
        """Queue any bytes as a message."""
        self._sender.send(message)

    def speak(self, at_samples: int, opus: bytes, *, first: bool, last: bool) -> None:
        """Send a packet whose first sample was captured at `at_samples` of a steady clock."""
        if self.state == "session" and self._chains is not None:
            flags = FIRST * first | LAST * last
            text = write_voice(self._voice_start + at_samples, flags, opus)
            chains = self._chains
            self._outbox.append(chains.seal_media.seal(AUDIO, chains.server_index, text))

    def voice_timestamp(self, at_samples: int) -> int:
        return (self._voice_start + at_samples) % 2**32

    def address_changed(self) -> None:
        self._ping_bytes = MAX_DATAGRAM_BYTES

    def close(self, now_ns: int, code: int = LEAVING, text: str = "") -> None:
        if self.state == "greeting":
            self.state = "over"
        elif self.state == "session":
            self._close(now_ns, code, text)

    def lost(self) -> int:
        """Media datagrams lost on the way here (12.7)."""
        return self._chains.open_media.lost() if self._chains is not None else 0

    # The handshake (5.2)

    def _begin(self, now_ns: int) -> None:
        index, ephemeral = _n(self._entropy(4)), self._entropy(32)
        self._hello = Initiator(
            self._server_public, self._identity, ephemeral, index, self._agent, self._cookie
        )
        self._outbox.append(self._hello.hello)
        self._begun_ns = now_ns
        self._repeat_ns = now_ns + 250 * MS
        self._repeat_pauses_ns = [500 * MS]  # before those that are all alike

    def _greet(self, datagram: bytes, now_ns: int) -> None:
        kind, size = datagram[0], len(datagram)
        if size < 8 or _n(datagram[4:8]) != self._hello.index:
            return
        if kind == REFUSED and size == 8:
            self.refused = _n(datagram[2:4])
            self.state = "over"
        elif kind == COOKIE and size == 24 and datagram[8:] != self._cookie:
            self._cookie = datagram[8:]
            self.cookies += 1
            self._begin(now_ns)
        elif kind == WELCOME and 60 <= size <= 256 and datagram[1:4] == _u(VERSION, 1) + bytes(2):
            try:
                server_index, agent, to_server, to_client = self._hello.read(datagram)
            except (InvalidTag, ValueError):
                self._begin(now_ns)
                return
            self.server_agent = agent
            self._chains = Chains.make(server_index, to_server, to_client)
            self.state = "session"
            self.heard_ns = self.since_ns = now_ns
            self._sender.sample(now_ns - self._begun_ns)
            self._ping_bytes = 0

    # What comes in

    def receive(self, datagram: bytes, now_ns: int) -> None:
        if not datagram:
            return
        if self.state == "greeting":
            self._greet(datagram, now_ns)
            return
        if (
            self._chains is None
            or datagram[0] not in (CONTROL, AUDIO, FEED, CROWD)
            or not SEALED_OVERHEAD_BYTES <= len(datagram) <= MAX_DATAGRAM_BYTES
            or _n(datagram[8:12]) != self._hello.index
        ):
            return
        control = datagram[0] == CONTROL
        chain = self._chains.open_control if control else self._chains.open_media
        text = chain.open(datagram)
        if text is None:
            return
        self.heard_ns = now_ns
        if not control:
            self._reception.count(_n(datagram[1:8]), now_ns)
        if self.state == "over":
            if now_ns < self._answer_until_ns:
                self._send_close()
            return
        if control:
            try:
                self._control(text, now_ns)
            except ViolationError as violation:
                if self.state == "session":
                    self._close(now_ns, PROTOCOL, str(violation))
        elif self.state == "session":
            self._media(datagram[0], text, now_ns)

    def _control(self, text: bytes, now_ns: int) -> None:
        for kind, body in read_chunks(text):
            if kind == CLOSE:
                if not 2 <= len(body) <= 202:
                    raise ViolationError("CLOSE of a wrong length")
                self._on_close(body, now_ns)
            if self.state != "session":
                continue
            if kind == DATA:
                for message in self._receiver.on_data(body, now_ns):
                    frame = read_frame(message)
                    if frame is None:
                        self.ignored += 1
                    else:
                        self._on_frame(frame, now_ns)
            elif kind == ACK:
                self._sender.on_ack(body, now_ns)
            elif kind == PING:
                if len(body) != 8:
                    raise ViolationError("PING of a wrong length")
                self._pongs_owed.append(body)
            elif kind == REPORT:
                expected, lost, bursts = (_n(body[at : at + 2]) for at in (0, 2, 4))
                if len(body) != 8 or not bursts <= lost <= expected:
                    raise ViolationError("REPORT of what cannot be")
            elif kind == PONG:
                if len(body) != 12:
                    raise ViolationError("PONG of a wrong length")
                self._on_pong(body[:8], _n(body[8:]), now_ns)

    def _on_pong(self, token: bytes, status: int, now_ns: int) -> None:
        ping = self._ping
        if ping is None or ping.token != token:
            return
        self._ping = None
        if ping.sends == 1:
            self._sender.sample(now_ns - self._last_ping_ns)
        if self.view is not None and not ping.old:
            self.view.newest = max(self.view.newest, status)

    def _media(self, kind: int, text: bytes, now_ns: int) -> None:
        if self.view is None:
            return
        if kind == FEED:
            batch = read_batch(text)
            if batch and batch["space"] == self.view.space:
                self._take_batch(self.view, batch)
            return
        mix = read_mix(text) if kind == AUDIO else None
        for packet in read_crowd(text) if kind == CROWD else [mix] if mix is not None else []:
            self.playout.put(packet, now_ns)
            self._reception.heard(packet.timestamp, now_ns)
            self._probes = 0
            self._probe_ns = NEVER_NS if packet.flags & LAST else now_ns + self.PROBES_NS[0]

    def _take_batch(self, view: View, batch: Frame) -> bool:
        applied = view.take_batch(batch["first"], batch["updates"], batch["hash"])
        if applied and not view.wrong:
            self._look_wait_ns = self.ASK_NS
        return applied

    def _on_frame(self, frame: Frame, now_ns: int) -> None:
        self.frames.append(frame)
        kind = frame["type"]
        asked, fields = self.asked.pop(frame["re"], ("", {})) if "re" in frame else ("", {})
        if "notice" in frame:
            self.kept[frame["notice"]] = frame
        if kind == "ok" and asked == "seen":
            self.kept.pop(fields["notice"], None)
        if kind == "joined":
            you = Member.read(frame["you"])
            self.view = View(
                frame["space"],
                you,
                joined_by=frame["re"],
                joined_with=fields,
                reactions=frame["reactions"],
                evidence=frame.get("evidence", False),
            )
            self._repair = None
            self._look_wait_ns = self.ASK_NS
            if self._ping is not None:
                self._ping.old = True
            self.playout.clear()
        view = self.view
        if view is None:
            return
        here = frame.get("space") == view.space
        # Replies overtake each other: this may be the `ok` for the space before.
        left = kind == "ok" and asked == "leave" and frame["re"] > view.joined_by
        if left or (here and kind in ("ended", "removed")):
            self.view = None
            self._probe_ns = NEVER_NS
            self.playout.clear()
            return
        if here and kind == "you":
            view.you = Member.read(frame["you"])
        elif here and kind in ("joined", "state"):
            view.take_snapshot(frame["you"], frame["snapshot"])
        elif here and kind == "updates" and self._take_batch(view, frame):
            self._asked_ns = now_ns - self.ASK_NS  # if there is more, it may be asked for at once
        if "re" in frame and frame["re"] == self._repair:
            self._repair = None
            if kind == "error" and frame["code"] == "too_old":
                self._repair = self.request("look")
            elif kind == "error":
                view.newest, view.wrong = view.number, False

    # Closing (7.5)

    def _close(self, now_ns: int, code: int, text: str) -> None:
        self.state = "closing"
        self._close_body = _u(code, 2) + text.encode()[:200]
        self._close_due = deque(now_ns + i * self.CLOSE_REPEAT_NS for i in range(3))
        self.closed = (code, text)

    def _on_close(self, body: bytes, now_ns: int) -> None:
        if self.state == "session":
            self.closed = (_n(body[:2]), body[2:].decode("utf-8", "replace"))
            self._close_body = body[:2]
            self._answer_until_ns = now_ns + self.DRAIN_NS
            self._send_close()
        self._close_due.clear()
        self.state = "over"

    def _send_close(self) -> None:
        self._outbox.append(self._seal_control(chunk(CLOSE, self._close_body)))

    def _seal_control(self, text: bytes) -> bytes:
        assert self._chains is not None  # there is a session
        return self._chains.seal_control.seal(CONTROL, self._chains.server_index, text)

    # What goes out, and when

    def _ping_ns(self) -> int:
        if self._ping is not None:
            return self._last_ping_ns + self.KEEPALIVE_REPEAT_NS
        quiet_ns = max(self._last_ping_ns, self.heard_ns) + self.QUIET_NS
        return min(self._last_ping_ns + self.KEEPALIVE_NS, quiet_ns)

    def unanswered_ns(self) -> int:
        """When the PING under way first went out."""
        return NEVER_NS if self._ping is None else self._ping.since_ns

    def _repair_ns(self) -> int:
        """When to ask for what is missing, or for all that should be right."""
        if self.view is None or self._repair is not None:
            return NEVER_NS
        if self.view.wrong:
            return self._asked_ns + self._look_wait_ns
        return self._asked_ns + self.ASK_NS if self.view.behind else NEVER_NS

    def deadline_ns(self) -> int:
        """When `poll` has something to do next; it may be past."""
        if self._outbox:
            return 0
        if self.state == "greeting":
            return min(self._repeat_ns, self._give_up_ns)
        if self.state == "closing":
            return self._close_due[0]
        if self.state == "over":
            return NEVER_NS
        if self._ping_bytes is not None or self._pongs_owed or self._sender.waiting():
            return 0
        return min(
            self.heard_ns + self.IDLE_NS,
            self._ping_ns(),
            self._sender.timer_ns or NEVER_NS,
            self._receiver.ack_due_ns,
            self._probe_ns,
            self._repair_ns(),
            self._reception.due_ns,
        )

    def poll(self, now_ns: int) -> list[bytes]:
        """All datagrams to be sent now."""
        if self.state == "greeting":
            if now_ns >= self._give_up_ns:
                self.state = "over"
            elif now_ns >= self._repeat_ns:
                self._outbox.append(self._hello.hello)
                pauses_ns = self._repeat_pauses_ns
                self._repeat_ns = now_ns + (pauses_ns.pop() if pauses_ns else 1_000 * MS)
        elif self.state == "session":
            self._work(now_ns)
        elif self.state == "closing":
            while self._close_due and now_ns >= self._close_due[0]:
                self._close_due.popleft()
                self._send_close()
            if not self._close_due:
                self.state = "over"
        outbox, self._outbox = self._outbox, []
        return outbox

    def _work(self, now_ns: int) -> None:
        self._sender.on_time(now_ns)
        if now_ns >= self.heard_ns + self.IDLE_NS:
            self.state, self.closed = "over", (TIMEOUT, "")
            return
        if self._sender.attempts >= self.MAX_ATTEMPTS:
            self.state, self.closed = "over", (UNREACHABLE, "")
            return
        view = self.view
        if view is not None and now_ns >= self._repair_ns():
            self._asked_ns = now_ns
            if view.wrong:
                self._repair = self.request("look")
                self._look_wait_ns = min(2 * self._look_wait_ns, self.MAX_LOOK_NS)
            else:
                self._repair = self.request("catch_up", after=view.number)
        if now_ns >= self._probe_ns:
            self._ping_bytes = MAX_DATAGRAM_BYTES
            self._probes += 1
            more = self._probes < len(self.PROBES_NS)
            self._probe_ns = now_ns + self.PROBES_NS[self._probes] if more else NEVER_NS
        if now_ns >= self._ping_ns() and self._ping_bytes is None:
            self._ping_bytes = 256
        while (datagram := self._control_datagram(now_ns)) is not None:
            self._outbox.append(datagram)

    def _control_datagram(self, now_ns: int) -> bytes | None:
        text = b""
        if (report := self._reception.take(now_ns)) is not None:
            text += chunk(REPORT, report)
        while self._pongs_owed:
            text += chunk(PONG, self._pongs_owed.popleft() + bytes(4))
        padded_bytes = self._ping_bytes or 0
        if self._ping_bytes is not None:
            self._ping_bytes = None
            self._ping = self._ping or Ping(self._entropy(8), now_ns)
            self._ping.sends += 1
            self._last_ping_ns = now_ns
            text += chunk(PING, self._ping.token)
        # 73 bytes are kept free for an ACK, which goes along with whatever is sent.
        while data := self._sender.poll(now_ns, MAX_PLAINTEXT_BYTES - 73 - len(text)):
            text += data
        if text or now_ns >= self._receiver.ack_due_ns:
            text += self._receiver.ack() or b""
        if not text:
            return None
        missing = padded_bytes - SEALED_OVERHEAD_BYTES - len(text)
        if missing >= 3:
            text += chunk(PAD, bytes(missing - 3))
        return self._seal_control(text)


# --- Coming back (7.6) ----------------------------------------------------------------------------


class Visitor:
    """A person's whole stay: one session after another, in the space they were in.

    `client` is the session that there is, or was; `over`: it is not to be had again. `out` is the
    text with which a space did not take us back. `unanswered`: requests of lost sessions of which
    it is not known whether they were carried out. `kept`: what waits for `seen`.
    """

    MUTE_NS = 10_000 * MS  # a server that has not answered a PING for so long
    STOOD_NS = 5_000 * MS
    FIRST_DELAY_NS, MAX_DELAY_NS = 250 * MS, 5_000 * MS
    AGAIN_NS = 1_000 * MS
    BY_INVITE = ("bad_invite", "invite_expired", "invite_used_up", "stage_full", "co_hosts_full")

    def __init__(
        self, server_public: bytes, identity: bytes, entropy: Entropy, now_ns: int, agent: str = ""
    ) -> None:
        self._make = partial(Client, server_public, identity, entropy, agent=agent)
        self._entropy = entropy
        self.client = self._make(now_ns=now_ns)
        self.frames: deque[Frame] = deque(maxlen=4_096)
        self.kept = self.client.kept
        self.unanswered: list[tuple[str, Frame]] = []
        self.sessions = 0
        self.over = False
        self.out: str | None = None
        self._met = False  # whether this client has had its session
        self._attempt_ns = NEVER_NS
        self._delay_ns = self.FIRST_DELAY_NS
        self._place: Frame | None = None  # to be in again
        self._rejoin = 0  # the request under way
        self._rejoin_ns = NEVER_NS
        self._unheard_ns = -1  # when something was heard last, when nothing listened last

    def request(self, kind: str, **fields: Any) -> int:
        return self.client.request(kind, **fields)

    def receive(self, datagram: bytes, now_ns: int) -> None:
        self.client.receive(datagram, now_ns)
        self._watch(now_ns)

    def nothing_listens(self, now_ns: int) -> None:
        """The operating system says so of the server's port."""
        client = self.client
        again, self._unheard_ns = self._unheard_ns == client.heard_ns, client.heard_ns
        if again and client.state in ("greeting", "session"):
            client.state = "over"
            self._watch(now_ns)

    def close(self, now_ns: int) -> None:
        self.over = True
        self._attempt_ns = NEVER_NS
        self.client.close(now_ns)

    def deadline_ns(self) -> int:
        client = self.client
        return min(client.deadline_ns(), self._attempt_ns, self._rejoin_ns, self._mute_ns())

    def _mute_ns(self) -> int:
        client = self.client
        return client.unanswered_ns() + self.MUTE_NS if client.state == "session" else NEVER_NS

    def poll(self, now_ns: int) -> list[bytes]:
        if now_ns >= self._mute_ns():
            self._lose(now_ns)
        if now_ns >= self._attempt_ns:
            self._attempt_ns = NEVER_NS
            self._met = False
            before, self.client = self.client, self._make(now_ns=now_ns)
            self.client.kept, self.client.next_id = self.kept, before.next_id
            self._unheard_ns = -1
        if now_ns >= self._rejoin_ns and self._place is not None:
            self._rejoin_ns = NEVER_NS
            self._rejoin = self.client.request("join", **self._place)
        sent = self.client.poll(now_ns)
        self._watch(now_ns)
        return sent

    def _watch(self, now_ns: int) -> None:
        """What has become of the client."""
        client = self.client
        if client.state == "session" and not self._met:
            self._met = True
            self.sessions += 1
            if self._place is not None:
                self._rejoin_ns = now_ns
        while client.frames:
            frame = client.frames.popleft()
            self.frames.append(frame)
            if self._place is not None and frame.get("re") == self._rejoin:
                self._on_rejoin(self._place, frame, now_ns)
        if client.state != "over" or self.over or self._attempt_ns < NEVER_NS:
            return
        if client.closed is not None:
            final = client.closed[0] not in (SHUTDOWN, TOO_SLOW, TIMEOUT, UNREACHABLE)
        else:
            final = self.sessions == 0 or client.refused not in (None, FULL)
        if final:
            self.over = True
        else:
            self._lose(now_ns)

    def _lose(self, now_ns: int) -> None:
        client = self.client
        self.unanswered += client.asked.values()
        view = client.view
        if view is not None:
            self._place = {"space": view.space, "despite_blocked": True} | {
                key: view.joined_with[key] for key in ("invite", "name") if key in view.joined_with
            }
        self._rejoin, self._rejoin_ns = 0, NEVER_NS
        if self._met and now_ns >= client.since_ns + self.STOOD_NS:
            self._delay_ns = self.FIRST_DELAY_NS
        shortened = self._delay_ns * _n(self._entropy(2)) // 2**17
        self._attempt_ns = now_ns + self._delay_ns - shortened
        self._delay_ns = min(2 * self._delay_ns, self.MAX_DELAY_NS)
        client.state = "over"

    def _on_rejoin(self, place: Frame, frame: Frame, now_ns: int) -> None:
        self._rejoin = 0
        if frame["type"] == "joined":
            self._place = None
        elif frame["code"] in ("rate_limited", "unavailable"):
            self._rejoin_ns = now_ns + max(frame.get("retry_ms", 0) * MS, self.AGAIN_NS)
        elif frame["code"] in self.BY_INVITE and "invite" in place:
            del place["invite"]
            self._rejoin_ns = now_ns
        else:
            self._place, self.out = None, frame["text"]
