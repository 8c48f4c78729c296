"""A second client, written from protocol/SPEC.md and nothing else.

It shares no code with the product: what it cannot do from the document alone, the document lacks.
Section numbers in comments are those of SPEC.md. No I/O: datagrams and the time go in
(`receive`, `request`, `speak`), datagrams come out of `poll`; `deadline_ns` says when to poll next.
Opus packets are opaque bytes but for their duration (RFC 6716, section 3.1).
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

Entropy = Callable[[int], bytes]
Frame = dict[str, Any]

MS = 1_000_000
NEVER_NS = 1 << 62

HELLO, WELCOME, COOKIE, REFUSED, CONTROL, AUDIO, FEED = 1, 2, 3, 4, 0x10, 0x11, 0x12
PAD, DATA, ACK, PING, PONG, CLOSE = range(6)
FIRST, LAST = 1, 2  # the same bits for segments (8.1) and audio packets (12.3)
LEAVING, SHUTDOWN, PROTOCOL, TOO_SLOW, TIMEOUT, REPLACED, UNREACHABLE = range(7)
ON_STAGE = ("host", "co_host", "speaker")

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


# --- Frames (9) -----------------------------------------------------------------------------------

Check = Callable[[Any], bool]


def _is_u32(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _is_str(value: Any) -> bool:
    return type(value) is str


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _text(most_chars: int) -> Check:
    return lambda value: type(value) is str and 1 <= len(value) <= most_chars


def _token(most_chars: int) -> Check:
    form = re.compile(f"[A-Za-z0-9_-]{{1,{most_chars}}}")
    return lambda value: type(value) is str and form.fullmatch(value) is not None


def _array(entry: Check) -> Check:
    return lambda value: type(value) is list and all(map(entry, value))


def _map(fields: Mapping[str, Check]) -> Check:
    """A map with these keys; one whose name ends in `?` is optional. Other keys are ignored."""

    def check(value: Any) -> bool:
        if type(value) is not dict:
            return False
        for name, fits in fields.items():
            key = name.removesuffix("?")
            if key in value:
                if not fits(value[key]):
                    return False
            elif key == name:
                return False
        return True

    return check


_IS_MAP = _map({})
_MEMBER = _map(
    {
        "id": _is_u32,
        "name": _text(40),
        "role?": lambda role: role in (*ON_STAGE, "listener"),
        "seat?": lambda seat: _is_u32(seat) and seat < 256,
        "muted?": _is_bool,
        "hand?": _is_bool,
    }
)
_SNAPSHOT = _map(
    {"number": _is_u32, "title": _text(100), "members": _array(_MEMBER), "listeners": _is_u32}
)
_BATCH = _map({"space": _token(32), "first": _is_u32, "updates": _array(_IS_MAP)})
_UPDATES = {
    "member": _map({"member": _MEMBER}),
    "gone": _map({"id": _is_u32}),
    "listeners": _map({"count": _is_u32}),
}
_FRAMES = {
    "ok": _map({"re": _is_u32}),
    "error": _map({"re": _is_u32, "code": _is_str, "text": _is_str}),
    "joined": _map({"re": _is_u32, "space": _token(32), "you": _MEMBER, "snapshot": _SNAPSHOT}),
    "invited": _map({"re": _is_u32, "invite": _token(64)}),
    "roster_page": _map({"re": _is_u32, "members": _array(_MEMBER), "more": _is_bool}),
    "updates": _map({"re": _is_u32, "first": _is_u32, "updates": _array(_IS_MAP)}),
    "state": _map({"re": _is_u32, "you": _MEMBER, "snapshot": _SNAPSHOT}),
    "you": _map({"you": _MEMBER}),
    "ended": _map({"text": _is_str}),
}


def write_frame(frame: Frame) -> bytes:
    data: bytes = msgpack.packb(frame)
    if len(data) > 32_768:
        raise ValueError("a frame has 32,768 bytes at most")
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
    frame = _unpack(data) if len(data) <= 32_768 else None
    fits = _FRAMES.get(str(frame.get("type"))) if frame else None
    return frame if fits and fits(frame) else None


def read_batch(data: bytes) -> Frame | None:
    batch = _unpack(data)
    return batch if batch and _BATCH(batch) else None


@dataclass(frozen=True)
class Member:
    id: int
    name: str
    role: str = "listener"
    seat: int | None = None
    muted: bool = False
    hand: bool = False

    @classmethod
    def read(cls, value: Frame) -> Member:
        known = ("id", "name", "role", "seat", "muted", "hand")
        return cls(**{key: value[key] for key in known if key in value})

    @property
    def listed(self) -> bool:
        return self.role in ON_STAGE or self.hand


# --- The view of a space (11) ---------------------------------------------------------------------


@dataclass
class View:
    space: str
    you: Member
    number: int = 0
    title: str = ""
    listed: dict[int, Member] = field(default_factory=dict)
    listeners: int = 0
    newest: int = 0  # the highest number of an update that is known to exist
    since_ns: int = 0  # when the snapshot came

    def take_snapshot(self, you: Frame, snapshot: Frame, now_ns: int) -> None:
        self.you = Member.read(you)
        self.number = self.newest = snapshot["number"]
        self.title = snapshot["title"]
        self.listed = {m["id"]: Member.read(m) for m in snapshot["members"]}
        self.listeners = snapshot["listeners"]
        self.since_ns = now_ns

    def take_batch(self, first: int, updates: list[Frame]) -> None:
        self.newest = max(self.newest, first + len(updates) - 1)
        if first > self.number + 1:
            return
        for update in updates[self.number + 1 - first :]:
            self._apply(update)
            self.number += 1

    def _apply(self, update: Frame) -> None:
        kind = str(update.get("type"))
        if kind not in _UPDATES or not _UPDATES[kind](update):
            return
        if kind == "listeners":
            self.listeners = update["count"]
        elif kind == "gone":
            self.listed.pop(update["id"], None)
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


def read_mix(text: bytes) -> Mix | None:
    """A packet of the mix, or None for one to be ignored (12.3)."""
    if len(text) < 6:
        return None
    flags, n = text[4], text[5]
    if flags & ~(FIRST | LAST) or n > 32 or len(text) < 6 + 4 * n + 1:
        return None
    rows = [text[6 + 4 * i : 10 + 4 * i] for i in range(n)]
    audible = tuple(Audible(row[0], row[1], _n(row[2:4])) for row in rows)
    return Mix(_n(text[:4]), flags, audible, text[6 + 4 * n :])


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


class Client:
    """One session with one server, from HELLO to CLOSE, and the space that it is in.

    `state` is "greeting", "session", "closing" or "over"; then `refused` has the code of a REFUSED,
    or `closed` the code and text of the end. `frames` are the replies and notices as they came,
    `view` is the space, `playout` what to play.
    """

    HANDSHAKE_NS = 5_000 * MS
    KEEPALIVE_NS = 5_000 * MS
    IDLE_NS = 30_000 * MS
    CLOSE_REPEAT_NS = 200 * MS
    DRAIN_NS = 3_000 * MS
    CATCH_UP_NS = 1_000 * MS
    PROBES_NS = (50 * MS, 100 * MS, 200 * MS, *(400 * MS,) * 5)

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
        self.frames: deque[Frame] = deque(maxlen=1_024)
        self.view: View | None = None
        self.playout = Playout()
        self._outbox: list[bytes] = []
        self._chains: Chains | None = None

        self._cookie = bytes(16)
        self._give_up_ns = now_ns + self.HANDSHAKE_NS
        self._begin(now_ns)

        self._sender = ReliableSender()
        self._receiver = ReliableReceiver()
        self._next_id = 1
        self._asked: dict[int, str] = {}
        self._pongs_owed: deque[bytes] = deque(maxlen=4)
        self._pings: dict[bytes, int] = {}
        self._pings_due: list[int] = []  # sizes to which their datagrams are padded
        self._last_ping_ns = self._heard_ns = now_ns
        self._catch_up: int | None = None  # the request under way
        self._catch_up_ns = now_ns - self.CATCH_UP_NS
        self._probes = 0
        self._probe_ns = NEVER_NS
        self._voice_start = _n(entropy(4))
        self._close_body = b""
        self._close_due: deque[int] = deque()
        self._answer_until_ns = now_ns

    # What the program asks for

    def request(self, kind: str, **fields: Any) -> int:
        """Queue a request; returns its `id`, the `re` of the reply to come."""
        number = self._next_id
        self._next_id += 1
        self._asked[number] = kind
        self._sender.send(write_frame({"type": kind, "id": number, **fields}))
        return number

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
        self._pings_due.append(MAX_DATAGRAM_BYTES)

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
            self._heard_ns = now_ns
            self._sender.sample(now_ns - self._begun_ns)
            self._pings_due.append(0)

    # What comes in

    def receive(self, datagram: bytes, now_ns: int) -> None:
        if not datagram:
            return
        if self.state == "greeting":
            self._greet(datagram, now_ns)
            return
        if (
            self._chains is None
            or datagram[0] not in (CONTROL, AUDIO, FEED)
            or not SEALED_OVERHEAD_BYTES <= len(datagram) <= MAX_DATAGRAM_BYTES
            or _n(datagram[8:12]) != self._hello.index
        ):
            return
        control = datagram[0] == CONTROL
        chain = self._chains.open_control if control else self._chains.open_media
        text = chain.open(datagram)
        if text is None:
            return
        self._heard_ns = now_ns
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
                    if frame is not None:
                        self._on_frame(frame, now_ns)
            elif kind == ACK:
                self._sender.on_ack(body, now_ns)
            elif kind == PING:
                if len(body) != 8:
                    raise ViolationError("PING of a wrong length")
                self._pongs_owed.append(body)
            elif kind == PONG:
                if len(body) != 12:
                    raise ViolationError("PONG of a wrong length")
                self._on_pong(body[:8], _n(body[8:]), now_ns)

    def _on_pong(self, token: bytes, status: int, now_ns: int) -> None:
        sent_ns = self._pings.pop(token, None)
        if sent_ns is None:
            return
        self._sender.sample(now_ns - sent_ns)
        # An answer to a PING from before the snapshot may speak of another space.
        if self.view is not None and sent_ns >= self.view.since_ns:
            self.view.newest = max(self.view.newest, status)

    def _media(self, kind: int, text: bytes, now_ns: int) -> None:
        if self.view is None:
            return
        if kind == FEED:
            batch = read_batch(text)
            if batch and batch["space"] == self.view.space:
                self.view.take_batch(batch["first"], batch["updates"])
        elif (mix := read_mix(text)) is not None:
            self.playout.put(mix, now_ns)
            self._probes = 0
            self._probe_ns = NEVER_NS if mix.flags & LAST else now_ns + self.PROBES_NS[0]

    def _on_frame(self, frame: Frame, now_ns: int) -> None:
        self.frames.append(frame)
        kind = frame["type"]
        asked = self._asked.pop(frame["re"], "") if "re" in frame else ""
        if kind == "joined":
            self.view = View(frame["space"], Member.read(frame["you"]))
            self._catch_up = None
            self.playout.clear()
        if kind == "you" and self.view is not None:
            self.view.you = Member.read(frame["you"])
        if kind == "ended" or (kind == "ok" and asked == "leave"):
            self.view = None
            self._probe_ns = NEVER_NS
            self.playout.clear()
        if self.view is None:
            return
        if kind in ("joined", "state"):
            self.view.take_snapshot(frame["you"], frame["snapshot"], now_ns)
        if "re" in frame and frame["re"] == self._catch_up:
            self._catch_up = None
            if kind == "updates":
                self.view.take_batch(frame["first"], frame["updates"])
            elif kind == "error" and frame["code"] == "too_old":
                self._catch_up = self.request("look")
            elif kind == "error":
                self.view.newest = self.view.number

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
        if self._pings_due or self._pongs_owed or self._sender.waiting():
            return 0
        asks = self.view is not None and self.view.behind and self._catch_up is None
        return min(
            self._heard_ns + self.IDLE_NS,
            self._last_ping_ns + self.KEEPALIVE_NS,
            self._sender.timer_ns or NEVER_NS,
            self._receiver.ack_due_ns,
            self._probe_ns,
            self._catch_up_ns + self.CATCH_UP_NS if asks else NEVER_NS,
        )

    def poll(self, now_ns: int) -> list[bytes]:
        """All datagrams to be sent now."""
        if self.state == "greeting":
            if now_ns >= self._give_up_ns:
                self.state = "over"
            elif now_ns >= self._repeat_ns:
                self._outbox.append(self._hello.hello)
                self._repeat_ns = now_ns + 500 * MS
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
        if now_ns >= self._heard_ns + self.IDLE_NS:
            self.state, self.closed = "over", (TIMEOUT, "")
            return
        if self._sender.attempts >= 10:
            self.state, self.closed = "over", (UNREACHABLE, "")
            return
        view = self.view
        if (
            view is not None
            and view.behind
            and self._catch_up is None
            and now_ns >= self._catch_up_ns + self.CATCH_UP_NS
        ):
            self._catch_up = self.request("catch_up", after=view.number)
            self._catch_up_ns = now_ns
        if now_ns >= self._probe_ns:
            self._pings_due.append(MAX_DATAGRAM_BYTES)
            self._probes += 1
            more = self._probes < len(self.PROBES_NS)
            self._probe_ns = now_ns + self.PROBES_NS[self._probes] if more else NEVER_NS
        if now_ns >= self._last_ping_ns + self.KEEPALIVE_NS and not self._pings_due:
            self._pings_due.append(256)
        while (datagram := self._control_datagram(now_ns)) is not None:
            self._outbox.append(datagram)

    def _control_datagram(self, now_ns: int) -> bytes | None:
        text = b""
        while self._pongs_owed:
            text += chunk(PONG, self._pongs_owed.popleft() + bytes(4))
        padded_bytes = 0
        if self._pings_due:
            padded_bytes = self._pings_due.pop(0)
            token = self._entropy(8)
            self._pings[token] = self._last_ping_ns = now_ns
            while len(self._pings) > 8:
                del self._pings[next(iter(self._pings))]
            text += chunk(PING, token)
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
