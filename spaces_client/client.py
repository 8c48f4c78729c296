"""A client without its shell: handshake, requests, the space's state, audio both ways.

No sockets and no clock: datagrams and `now_ns` go in; datagrams, events and samples come out.

    HELLO (repeated, with a cookie if asked) -> WELCOME -> a session (protocol/connection.py)
    request() -> Replied                       one reply to every request
    talk(block)                                20 ms of one's own voice
    play(out)                                  20 ms of what is heard
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol import connection as session
from protocol import frames
from protocol.connection import MS, CloseCode, Connection, Media, Message, Pong
from protocol.frames import FrameError
from protocol.link import Link
from protocol.noise import Handshake, NoiseError
from protocol.packets import (
    HELLO_PAYLOAD_BYTES,
    INDEX_BYTES,
    MAX_DATAGRAM_BYTES,
    NO_COOKIE,
    VERSION,
    AudioFlag,
    DownlinkAudio,
    Hello,
    Kind,
    MalformedPacketError,
    Refusal,
    UplinkAudio,
    Welcome,
    key_id,
    unpack_cookie,
    unpack_header,
    unpack_refused,
)
from protocol.playout import Playout
from protocol.sealing import SessionKeys
from spaces_client import AGENT
from spaces_client.talker import Talker
from spaces_client.view import SpaceView

CONNECT_TIMEOUT_NS = 5_000 * MS
HELLO_REPEAT_NS = 250 * MS  # doubled once: a lossy path needs several
MAX_HELLO_REPEAT_NS = 500 * MS
GAP_NS = 50 * MS  # a talkspurt without a packet for this long: has our address changed?
PROBES = 8
MAX_PROBE_REPEAT_NS = 400 * MS
ASK_AGAIN_NS = 1_000 * MS  # between two requests for missing updates

REFUSALS = {
    Refusal.VERSION: "the server speaks another version of the protocol; update one of the two",
    Refusal.WRONG_KEY: "the server has another key than the link says; ask for a new link",
    Refusal.FULL: "the server is full; try again later",
}


@dataclass(frozen=True, slots=True)
class Connected:
    """The session stands; requests may be made."""


@dataclass(frozen=True, slots=True)
class Replied:
    """The one reply to request `id`."""

    id: int
    frame: frames.Frame


@dataclass(frozen=True, slots=True)
class Changed:
    """The view of the space (people, roles, hands) has changed."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The space is over; the session goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class Heard:
    """An audio packet has come (it is in the playout already)."""

    audio: DownlinkAudio


@dataclass(frozen=True, slots=True)
class Disconnected:
    """There is no session (any more)."""

    text: str
    code: int = CloseCode.LEAVING


ClientEvent = Connected | Replied | Changed | Ended | Heard | Disconnected


class Phase(Enum):
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSED = "closed"


@dataclass(slots=True)
class Received:
    """Counts of media packets.  Their counters have no gaps, so what is missing was lost."""

    packets: int = 0
    first: int = -1
    highest: int = -1

    def count(self, counter: int) -> None:
        self.first = counter if self.first < 0 else min(self.first, counter)
        self.packets += 1
        self.highest = max(self.highest, counter)

    @property
    def expected(self) -> int:
        return 0 if self.first < 0 else self.highest - self.first + 1

    @property
    def lost(self) -> int:
        return self.expected - self.packets


class Client:
    """One person's session with one server, and the space they are in."""

    def __init__(
        self,
        link: Link,
        private_key: bytes,
        *,
        entropy: Callable[[int], bytes],
        now_ns: int,
        address: bytes = b"",
        bitrate: int = 32_000,
        complexity: int = 10,
    ) -> None:
        """private_key: 32 bytes, who one is.  address: the server's, as the network names it."""
        self.link = link
        self.phase = Phase.CONNECTING
        self.view = SpaceView()
        self.muted = False
        self.received = Received()
        self.playout = Playout()
        self.rtt_ns: int | None = None
        self.levels: dict[int, int] = {}  # seat -> -dBov, of those who sound now
        self._private_key = private_key
        self._entropy = entropy
        self._address = address
        self._talker = Talker(
            bitrate=bitrate, complexity=complexity, timestamp=int.from_bytes(entropy(4))
        )
        self._connection: Connection | None = None
        self._outbox: list[bytes] = []
        self._last_id = 0
        self._leave_id = 0  # of the request to leave; the others begin with 1
        self._own_requests: set[int] = set()  # ids of requests for missing updates
        self._asked_ns = -ASK_AGAIN_NS
        self._joined_ns = now_ns
        self._gap_ns: int | None = None  # when a gap in a talkspurt would be one
        self._probes = 0
        self._give_up_ns = now_ns + CONNECT_TIMEOUT_NS
        self._greet(NO_COOKIE, now_ns)

    # -- handshake --------------------------------------------------------------------------

    def _greet(self, cookie: bytes, now_ns: int) -> None:
        """Begins a handshake: everything in a HELLO is authenticated, the cookie too."""
        self._index = int.from_bytes(self._entropy(4))
        empty = Hello(VERSION, self._index, key_id(self.link.key), cookie, b"")
        self._handshake = Handshake(
            initiator=True,
            prologue=empty.prologue,
            entropy=self._entropy,
            static=self._private_key,
            remote_static=self.link.key,
        )
        greeting = frames.encode_greeting(AGENT, HELLO_PAYLOAD_BYTES)
        noise = self._handshake.write(greeting)
        self._hello = Hello(VERSION, self._index, empty.key_id, cookie, noise)
        self._outbox.append(self._hello.pack())
        self._greeted_ns = now_ns
        self._repeat_ns = HELLO_REPEAT_NS
        self._hello_due_ns = now_ns + self._repeat_ns

    def _receive_handshake(self, data: bytes, now_ns: int) -> list[ClientEvent]:
        try:
            if data[0] == Kind.WELCOME:
                welcome = Welcome.unpack(data)
                if welcome.client_index == self._index:
                    return self._welcomed(welcome, now_ns)
            elif data[0] == Kind.COOKIE:
                index, cookie = unpack_cookie(data)
                if index == self._index and cookie != self._hello.cookie:
                    self._greet(cookie, now_ns)
            elif data[0] == Kind.REFUSED:
                index, code = unpack_refused(data)
                if index == self._index:
                    known = code in Refusal.__members__.values()
                    text = REFUSALS[Refusal(code)] if known else f"refused, code {code}"
                    return self._closed(text, CloseCode.LEAVING)
        except MalformedPacketError:
            pass
        except NoiseError:
            # Somebody answered in the server's place, and the handshake is spent: a new one.
            self._greet(self._hello.cookie, now_ns)
        return []

    def _welcomed(self, welcome: Welcome, now_ns: int) -> list[ClientEvent]:
        server_index = self._handshake.read(welcome.noise)[:INDEX_BYTES]
        send, receive = self._handshake.split()
        self._connection = Connection(
            SessionKeys.derive(send=send.key, receive=receive.key),
            remote_index=int.from_bytes(server_index),
            address=self._address,
            now_ns=now_ns,
            entropy=self._entropy,
            keep_alive=True,
        )
        self._connection.observe_rtt(now_ns - self._greeted_ns)
        self._connection.ping(now_ns)  # what proves our address to the server
        self.phase = Phase.CONNECTED
        return [Connected()]

    # -- what comes in ----------------------------------------------------------------------

    def receive(self, data: bytes, now_ns: int) -> list[ClientEvent]:
        """Takes one datagram from the server.  Never raises, whatever the bytes are."""
        if not data:
            return []
        if self._connection is None:
            closed = self.phase is Phase.CLOSED
            return [] if closed else self._receive_handshake(data, now_ns)
        try:
            if data[0] < Kind.CONTROL or unpack_header(data)[2] != self._index:
                return []
        except MalformedPacketError:
            return []
        events: list[ClientEvent] = []
        for event in self._connection.receive(data, self._address, now_ns) or ():
            match event:
                case Media():
                    events += self._receive_media(event, now_ns)
                case Message(message):
                    events += self._receive_frame(message, now_ns)
                case Pong(asked_ns, rtt_ns, status):
                    self.rtt_ns = self.rtt_ns if rtt_ns is None else rtt_ns
                    if asked_ns >= self._joined_ns:  # else it may be of another space
                        self.view.newest = max(self.view.newest, status)
                case session.Closed(code, text):
                    events += self._closed(text or "the server closed the session", code)
        self._catch_up(now_ns)
        return events

    def _closed(self, text: str, code: int) -> list[ClientEvent]:
        self.phase = Phase.CLOSED
        return [Disconnected(text, code)]

    def _receive_media(self, media: Media, now_ns: int) -> list[ClientEvent]:
        self.received.count(media.counter)
        try:
            if media.kind == Kind.FEED:
                batch = frames.decode_feed(media.plaintext)
                if batch.space != self.view.id:
                    return []  # of a space that was left
                changed = self.view.apply(batch.first, batch.updates)
                return [Changed()] if changed else []
            audio = DownlinkAudio.unpack(media.plaintext)
        except (MalformedPacketError, FrameError):
            return []
        if self.view.me is None:
            return []  # of a space that was left
        first, last = bool(audio.flags & AudioFlag.FIRST), bool(audio.flags & AudioFlag.LAST)
        self.playout.insert(audio.timestamp, audio.opus, now_ns, first=first, last=last)
        self.levels = {a.seat: a.level for a in audio.audible}
        self._gap_ns = None if last else now_ns + GAP_NS
        self._probes = 0
        return [Heard(audio)]

    def _receive_frame(self, message: bytes, now_ns: int) -> list[ClientEvent]:
        try:
            frame = frames.decode(message)
        except FrameError:
            return []  # a newer server's; nothing here depends on it
        match frame:
            case frames.Joined(space=space, you=you, snapshot=snapshot):
                self.view = SpaceView(id=space)
                self.view.take(you, snapshot)
                self._joined_ns = now_ns
            case frames.State(you=you, snapshot=snapshot):
                self.view.take(you, snapshot)
            case frames.Updates(first=first, updates=updates):
                if self.view.apply(first, updates):
                    self._asked_ns -= ASK_AGAIN_NS  # if there is more, it may be asked for at once
            case frames.You(you=you):
                self.view.me = you
                return [Changed()]
            case frames.Ended(text=text):
                self._out_of_space()
                return [Ended(text)]
            case frames.Ok(re=self._leave_id):
                self._out_of_space()
        if not isinstance(frame, frames.Reply):
            return []
        if frame.re not in self._own_requests:
            return [Replied(frame.re, frame)]
        self._own_requests.discard(frame.re)
        if isinstance(frame, frames.Error):
            if frame.code != frames.ErrorCode.TOO_OLD:
                return []  # the space is gone: asking again would go on for ever
            self._own_requests.add(self.request(frames.Look))
            return []
        return [Changed()]

    def _out_of_space(self) -> None:
        self.view = SpaceView()
        self._gap_ns = None

    def _catch_up(self, now_ns: int) -> None:
        """Asks for the updates that are missing, not more often than once a second."""
        if self.view.me and self.view.behind and now_ns - self._asked_ns >= ASK_AGAIN_NS:
            self._asked_ns = now_ns
            self._own_requests.add(self.request(frames.CatchUp, after=self.view.number))

    # -- what goes out ----------------------------------------------------------------------

    def request(self, kind: type[frames.Request], **fields: Any) -> int:
        """Queues a request; -> its id.  Raises ChannelFull, and RuntimeError unless connected."""
        if self._connection is None:
            raise RuntimeError("not connected")
        self._last_id += 1
        self._connection.send(frames.encode(kind(id=self._last_id, **fields)))
        if kind is frames.Leave:
            self._leave_id = self._last_id
        return self._last_id

    @property
    def may_speak(self) -> bool:
        me = self.view.me
        return me is not None and me.role.on_stage and not me.muted and not self.muted

    def talk(self, block: NDArray[np.float32]) -> UplinkAudio | None:
        """block (960,): the microphone's next 20 ms, kept back unless one may speak.
        -> the packet that goes out for it, if any."""
        packet = self._talker.talk(block) if self.may_speak else self._talker.pause(len(block))
        if packet is not None and self._connection is not None:
            self._outbox.append(self._connection.send_media(Kind.AUDIO, packet.pack()))
        return packet

    def play(self, out: NDArray[np.float32], now_ns: int) -> bool:
        """Fills `out` with what is to be heard next; -> whether it is anything but silence."""
        sounds = self.playout.pull(out, now_ns)
        if not sounds:
            self.levels = {}
        return sounds

    def close(self, now_ns: int) -> None:
        """Ends the session; goes on sending for a moment so that the server hears of it."""
        self.phase = Phase.CLOSED
        if self._connection is not None:
            self._connection.close(CloseCode.LEAVING, "", now_ns)

    def address_changed(self, now_ns: int) -> None:
        """Our own address is another one now: tells the server at once."""
        if self._connection is not None:
            self._connection.ping(now_ns, pad_bytes=MAX_DATAGRAM_BYTES)

    # -- time -------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> list[ClientEvent]:
        """To be called when `deadline_ns` has passed."""
        if self._connection is None:
            if self.phase is Phase.CLOSED:
                return []
            if now_ns >= self._give_up_ns:
                host = f"{self.link.host}:{self.link.port}"
                return self._closed(f"no answer from {host}; is it running and reachable?", 0)
            if now_ns >= self._hello_due_ns:
                self._outbox.append(self._hello.pack())
                self._repeat_ns = min(2 * self._repeat_ns, MAX_HELLO_REPEAT_NS)
                self._hello_due_ns = now_ns + self._repeat_ns
            return []
        events: list[ClientEvent] = []
        for event in self._connection.tick(now_ns):
            if isinstance(event, session.Closed):
                events += self._closed(event.text, event.code)
        if self._gap_ns is not None and now_ns >= self._gap_ns:
            self._probe(now_ns)
        self._catch_up(now_ns)
        return events

    def _probe(self, now_ns: int) -> None:
        """A talkspurt has stopped without LAST.  If the reason is that a router gave us another
        address, the server learns it from any packet of ours; padded, it may answer at once."""
        assert self._connection is not None
        self._probes += 1
        self._connection.ping(now_ns, pad_bytes=MAX_DATAGRAM_BYTES)
        repeat_ns = min(GAP_NS << self._probes, MAX_PROBE_REPEAT_NS)
        self._gap_ns = now_ns + repeat_ns if self._probes < PROBES else None

    def transmit(self, now_ns: int) -> list[bytes]:
        """-> the datagrams that are to be sent to the server."""
        datagrams, self._outbox = self._outbox, []
        if self._connection is not None:
            datagrams += self._connection.transmit(now_ns)
        return datagrams

    @property
    def deadline_ns(self) -> int:
        """When `tick` and `transmit` are due if nothing happens before."""
        if self._connection is None:
            return min(self._hello_due_ns, self._give_up_ns)
        deadlines = [self._connection.deadline_ns]
        if self.view.me is not None and self.view.behind:
            deadlines.append(self._asked_ns + ASK_AGAIN_NS)
        if self._gap_ns is not None:
            deadlines.append(self._gap_ns)
        return min(deadlines)

    def finished(self, now_ns: int) -> bool:
        """Nothing more is to be sent or awaited."""
        if self._connection is None:
            return self.phase is Phase.CLOSED
        return self._connection.state is session.State.CLOSED
