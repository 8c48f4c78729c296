"""A client without its shell: handshake, requests, the space's state, audio both ways.

No sockets and no clock: datagrams and `now_ns` go in; datagrams, events and samples come out.

    HELLO (repeated, with a cookie if asked) -> WELCOME -> a session (protocol/connection.py)
    request() -> Replied                       one reply to every request
    talk(block)                                a frame of one's own voice, 20 ms or 10
    play(out)                                  some samples of what is heard

A session that is lost is made anew, with the same key, and so is the place in the space:

    CONNECTING -> CONNECTED -> (lost: `trouble` says why) WAITING -> CONNECTING -> CONNECTED -> ...

until it stands again, or there is no use in it: then, and after `close`, the phase is CLOSED.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol import connection as session
from protocol import frames
from protocol.connection import MS, CloseCode, Connection, Media, Message, Pong, Reported
from protocol.frames import ErrorCode, FrameError
from protocol.link import Link
from protocol.noise import NoiseError
from protocol.opening import Opening
from protocol.packets import (
    MAX_DATAGRAM_BYTES,
    NO_COOKIE,
    AudioFlag,
    DownlinkAudio,
    Kind,
    MalformedPacketError,
    Refusal,
    UplinkAudio,
    Welcome,
    crowd_packets,
    unpack_cookie,
    unpack_header,
    unpack_refused,
)
from protocol.playout import Playout
from protocol.profile import VOICE, Profile, profile_of
from protocol.redundancy import NO_REMEDY, Repeater
from protocol.reliable import ChannelFull
from spaces_client import AGENT
from spaces_client.audio import with_channels
from spaces_client.clocks import Clocks
from spaces_client.events import (
    Changed,
    Chat,
    ClientEvent,
    Connected,
    Disconnected,
    Ended,
    Heard,
    LineGone,
    Notified,
    Reacted,
    Reconnected,
    Reconnecting,
    Removed,
    Replied,
)
from spaces_client.talker import Talker
from spaces_client.view import SpaceView

CONNECT_TIMEOUT_NS = 5_000 * MS
HELLO_REPEAT_NS = 250 * MS  # doubled twice: a lossy path needs several, a busy server fewer
MAX_HELLO_REPEAT_NS = 1_000 * MS
PACKET_MS = 60  # of audio that we take in one datagram
GAP_NS = (PACKET_MS + 30) * MS  # a talkspurt without a packet: has our address changed?
PROBES = 8
PROBE_REPEAT_NS = 100 * MS  # doubled with each
MAX_PROBE_REPEAT_NS = 400 * MS
ASK_AGAIN_NS = 1_000 * MS  # between two requests for missing updates, or for a fresh snapshot
MAX_LOOK_DOUBLINGS = 6  # fresh snapshots that do not help are asked for more and more seldom
SILENT_NS = 10_000 * MS  # for so long a PING may be without its PONG
RETRY_NS = 250 * MS  # before the first new attempt; doubled with every one that fails
MAX_RETRY_NS = 5_000 * MS
REFUSED_GIVE_UP = 2  # "port unreachable" answers before they are believed

# Reasons for a session to end after which a new one may stand; all others are final.
LOST_BY_PEER = (CloseCode.SHUTDOWN, CloseCode.TOO_SLOW)
LOST_HERE = (CloseCode.TIMEOUT, CloseCode.UNREACHABLE)
# Refusals to come back into the space that pass, and those that are about the invite.
FOR_A_WHILE = (ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE)
OF_THE_INVITE = (
    ErrorCode.BAD_INVITE,
    ErrorCode.INVITE_EXPIRED,
    ErrorCode.INVITE_USED_UP,
    ErrorCode.STAGE_FULL,
    ErrorCode.CO_HOSTS_FULL,
)

REFUSALS = {
    Refusal.VERSION: "the server speaks another version of the protocol; update one of the two",
    Refusal.WRONG_KEY: "the server has another key than the link says; ask for a new link",
    Refusal.FULL: "the server is full; try again later",
}


class Phase(Enum):
    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"  # before the next attempt
    CLOSED = "closed"


@dataclass(slots=True)
class Received:
    """Counts of media packets.  Their counters have no gaps, so what is missing was lost."""

    packets: int = 0
    first: int = -1
    highest: int = -1
    malformed: int = 0  # of those that came

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
    """One person at one server, and the space they are in."""

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
        self.view = SpaceView()
        self.profile = VOICE  # of the space that one entered last
        self.muted = False
        self.received = Received()  # in this session
        self.playout = self._new_playout()
        self._repeater = Repeater()  # of what we say, in this session
        self.clocks = Clocks(self.profile)
        self.rtt_ns: int | None = None
        self.levels: dict[int, int] = {}  # seat -> -dBov, of those who sound now
        self.trouble: str | None = None  # why the session was lost, until there is one again
        self.attempt = 0  # number of the attempt to have a session; each is best on its own socket
        self.repairs = 0  # fresh snapshots asked for because the state here was another
        self._private_key = private_key
        self._entropy = entropy
        self._address = address
        self._bitrate = bitrate
        self._complexity = complexity
        self._talker = self._new_talker(int.from_bytes(entropy(4)))
        self._connection: Connection | None = None
        self._last_id = 0
        self._leave_id = 0  # of the request to leave; the others begin with 1
        self._entered_id = 0  # of the request that led into the space one is in
        self._entry: frames.Open | frames.Join | None = None  # the newest that was asked for
        self._way_back: dict[str, Any] | None = None  # the fields of `join` that lead back
        self._rejoin_id = 0
        self._rejoin_ns: int | None = None  # when to ask again to be let in
        self._own_requests: set[int] = set()  # ids of those that the application did not make
        self._asked_ns = -ASK_AGAIN_NS
        self._looks_in_vain = 0
        self._joined_ns = now_ns
        self._gap_ns: int | None = None  # when a gap in a talkspurt would be one
        self._probes = 0
        self._failures = 0  # to have a session, one after another
        self._retry_ns = 0
        self._begin(now_ns)

    def _new_talker(self, timestamp: int) -> Talker:
        return Talker(
            bitrate=self._bitrate,
            complexity=self._complexity,
            timestamp=timestamp,
            profile=self.profile,
        )

    def _new_playout(self) -> Playout:
        return Playout(self.profile.channels, low_delay=self.profile.low_delay)

    # -- handshake --------------------------------------------------------------------------

    def _begin(self, now_ns: int) -> None:
        """An attempt to have a session."""
        self.phase = Phase.CONNECTING
        self.attempt += 1
        self._refusals = 0
        self._outbox: list[bytes] = []
        self._give_up_ns = now_ns + CONNECT_TIMEOUT_NS
        self._greet(NO_COOKIE, now_ns)

    def _greet(self, cookie: bytes, now_ns: int) -> None:
        """Begins a handshake."""
        self._index = int.from_bytes(self._entropy(4))
        self._opening = Opening(
            self._index,
            self.link.key,
            self._private_key,
            agent=AGENT,
            entropy=self._entropy,
            cookie=cookie,
        )
        self._outbox.append(self._opening.hello.pack())
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
                if index == self._index and cookie != self._opening.hello.cookie:
                    self._greet(cookie, now_ns)
            elif data[0] == Kind.REFUSED:
                index, code = unpack_refused(data)
                if index == self._index:
                    known = code in Refusal.__members__.values()
                    text = REFUSALS[Refusal(code)] if known else f"refused, code {code}"
                    if code == Refusal.FULL:  # of which a place may come free
                        return self._lost(text, now_ns)
                    return self._closed(text, CloseCode.LEAVING)
        except MalformedPacketError:
            pass
        except NoiseError:
            # Somebody answered in the server's place, and the handshake is spent: a new one.
            self._greet(self._opening.hello.cookie, now_ns)
        return []

    def _welcomed(self, welcome: Welcome, now_ns: int) -> list[ClientEvent]:
        keys, server_index = self._opening.answered(welcome)
        self._connection = Connection(
            keys,
            remote_index=server_index,
            address=self._address,
            now_ns=now_ns,
            entropy=self._entropy,
            keep_alive=True,
        )
        self._connection.observe_rtt(now_ns - self._greeted_ns)
        self._connection.ping(now_ns)  # what proves our address to the server
        self.phase = Phase.CONNECTED
        self.received = Received()
        self.playout = self._new_playout()
        self._repeater = Repeater(self.profile.frame_samples)
        self._talker.follow(NO_REMEDY)
        self.clocks.session_begins()
        self._connected_ns = now_ns
        if self.trouble is None:
            return [Connected()]
        if self._way_back is not None:
            self._rejoin()
            return []
        self.trouble = None
        return [Reconnected()]

    # -- a session that is lost -----------------------------------------------------------------

    def _lost(self, text: str, now_ns: int) -> list[ClientEvent]:
        """The session, or an attempt to have one, came to nothing: a new attempt in a while.  The
        first attempt of all is the only one: the link may be wrong."""
        if self._connection is None and self.trouble is None:
            return self._closed(text, CloseCode.LEAVING)
        if self._connection is not None:
            if now_ns - self._connected_ns >= MAX_RETRY_NS:
                self._failures = 0
            if self._connection.state is session.State.CLOSED:
                self._outbox += self._connection.transmit(now_ns)  # the answer to CLOSE
            self._connection = None
        wait_ns = min(RETRY_NS << min(self._failures, 10), MAX_RETRY_NS)
        self._failures += 1
        # Between half and the whole of it: those who were lost together do not come together.
        wait_ns -= wait_ns * int.from_bytes(self._entropy(2)) >> 17
        self._retry_ns = now_ns + wait_ns
        self.phase = Phase.WAITING
        self._own_requests.clear()
        self._rejoin_ns = self._gap_ns = None
        known, self.trouble = self.trouble, text
        return [Reconnecting(text)] if known is None else []

    def refused(self, now_ns: int) -> list[ClientEvent]:
        """The network says that nothing listens at the server's port."""
        self._refusals += 1
        if self._refusals < REFUSED_GIVE_UP:
            return []
        link = self.link
        text = f"nothing listens at {link.host}:{link.port}; is the server running?"
        return self.unreachable(text, now_ns)

    def unreachable(self, text: str, now_ns: int) -> list[ClientEvent]:
        """There is no way to the server now, says this machine."""
        under_way = self.phase in (Phase.CONNECTING, Phase.CONNECTED)
        return self._lost(text, now_ns) if under_way else []

    def _over(self, closed: session.Closed, now_ns: int) -> list[ClientEvent]:
        text = closed.text or "the server closed the session"
        if closed.code in (LOST_BY_PEER if closed.by_peer else LOST_HERE):
            return self._lost(text, now_ns)
        return self._closed(text, closed.code)

    def _closed(self, text: str, code: int) -> list[ClientEvent]:
        self.phase = Phase.CLOSED
        return [Disconnected(text, code)]

    def _rejoin(self) -> None:
        assert self._way_back is not None
        self._rejoin_ns = None
        self._rejoin_id = self._request_own(frames.Join, **self._way_back)

    def _not_let_in(self, error: frames.Error, now_ns: int) -> list[ClientEvent]:
        assert self._way_back is not None
        if error.code in FOR_A_WHILE:
            self._rejoin_ns = now_ns + max(error.retry_ms * MS, ASK_AGAIN_NS)
            return []
        if error.code in OF_THE_INVITE and "invite" in self._way_back:
            del self._way_back["invite"]  # it has done its work: as a listener, perhaps
            self._rejoin()
            return []
        self.trouble = None
        self._out_of_space()
        return [Reconnected(), Ended(error.text)]

    # -- what comes in ----------------------------------------------------------------------

    def receive(self, data: bytes, now_ns: int, waited_ns: int = 0) -> list[ClientEvent]:
        """Takes one datagram from the server.  Never raises, whatever the bytes are.

        waited_ns: for how long it had been there before it was read; the jitter buffer, which
        learns how the path delays, is to see when it came."""
        if not data:
            return []
        if self._connection is None:
            connecting = self.phase is Phase.CONNECTING
            return self._receive_handshake(data, now_ns) if connecting else []
        try:
            if data[0] < Kind.CONTROL or unpack_header(data)[2] != self._index:
                return []
        except MalformedPacketError:
            return []
        received = self._connection.receive(data, self._address, now_ns)
        if received is None:
            return []
        self._refusals = 0
        events: list[ClientEvent] = []
        for event in received:
            match event:
                case Media():
                    events += self._receive_media(event, now_ns - waited_ns)
                case Message(message):
                    events += self._receive_frame(message, now_ns)
                case Pong(asked_ns, rtt_ns, status):
                    self.rtt_ns = self.rtt_ns if rtt_ns is None else rtt_ns
                    if asked_ns >= self._joined_ns:  # else it may be of another space
                        self.view.newest = max(self.view.newest, status)
                case Reported(reception):
                    self._repeater.redundancy.report(reception)
                    self._talker.follow(self._repeater.redundancy.remedy)
                case session.Closed():
                    events += self._over(event, now_ns)
        self._catch_up(now_ns)
        return events

    def _receive_media(self, media: Media, now_ns: int) -> list[ClientEvent]:
        self.received.count(media.counter)
        events: list[ClientEvent] = []
        try:
            if media.kind == Kind.FEED:
                batch = frames.decode_feed(media.plaintext)
                if batch.space != self.view.id or self.trouble is not None:
                    return []  # of a space that was left, or is to be joined again
                return self._told(batch)
            packets = (
                [media.plaintext] if media.kind == Kind.AUDIO else crowd_packets(media.plaintext)
            )
            for packet in packets:
                events += self._hear(DownlinkAudio.unpack(packet), now_ns)
        except (MalformedPacketError, FrameError):
            self.received.malformed += 1
        return events

    def _hear(self, audio: DownlinkAudio, now_ns: int) -> list[ClientEvent]:
        if self.view.me is None:
            return []  # of a space that was left
        last = bool(audio.flags & AudioFlag.LAST)
        self.playout.take(audio, now_ns)
        if self._connection is not None:
            self._connection.media_was_late(self.playout.late_ns)
        self.clocks.came(audio)
        self.levels = {a.seat: a.level for a in audio.audible}
        self._gap_ns = None if last else now_ns + GAP_NS
        self._probes = 0
        return [Heard(audio)]

    def _told(self, batch: frames.FeedBatch | frames.Updates) -> list[ClientEvent]:
        """What the feed says, as events; the state is there before what was said in it."""
        changed = False
        said: list[ClientEvent] = []
        for update in self.view.apply(batch.first, batch.updates, batch.hash):
            match update:
                case frames.ChatUpdate():
                    said.append(Chat(update))
                case frames.LineGoneUpdate(line=line):
                    said.append(LineGone(line))
                case frames.ReactionsUpdate(counts=counts, stage=stage):
                    said.append(Reacted(counts, stage))
                case _:
                    changed = True
        if self.view.agreed:
            self._looks_in_vain = 0
        return [Changed(), *said] if changed else said

    def _receive_frame(self, message: bytes, now_ns: int) -> list[ClientEvent]:
        try:
            frame = frames.decode(message)
        except FrameError:
            return []  # a newer server's; nothing here depends on it
        match frame:
            case frames.Reply(re=own) if own in self._own_requests:
                self._own_requests.discard(own)
                return self._receive_own(frame, now_ns)
            case frames.Joined():
                self._enter(frame, now_ns)
            case frames.SpaceNotice(space=space) if space != self.view.id:
                return []  # of a space that was left
            case frames.State(space=space, you=you, snapshot=snapshot):
                if space == self.view.id:
                    self.view.take(you, snapshot)
            case frames.You(you=you):
                self.view.me = you
                return [Changed()]
            case frames.Ended(text=text):
                self._out_of_space()
                return [Ended(text)]
            case frames.Removed(text=text):
                self._out_of_space()
                return [Removed(text)]
            case frames.Notice():
                return [Notified(frame)]
            case frames.Ok(re=self._leave_id) if self._leave_id > self._entered_id:
                self._out_of_space()
        return [Replied(frame.re, frame)] if isinstance(frame, frames.Reply) else []

    def _receive_own(self, reply: frames.Reply, now_ns: int) -> list[ClientEvent]:
        match reply:
            case frames.Joined():
                self._enter(reply, now_ns)
                self.trouble = None
                return [Reconnected(), Changed()]
            case frames.Error(re=self._rejoin_id):
                return self._not_let_in(reply, now_ns)
            case frames.Clocks():
                self.clocks.answered(reply, now_ns)
            case frames.Error(re=self.clocks.request_id, code=code):
                self.clocks.refused(code)
            case frames.Error(code=frames.ErrorCode.TOO_OLD):
                self._request_own(frames.Look)
            case frames.Updates(space=self.view.id):
                if told := self._told(reply):
                    self._asked_ns -= ASK_AGAIN_NS  # if there is more, it may be asked for at once
                return told
            case frames.State(space=self.view.id, you=you, snapshot=snapshot):
                self.view.take(you, snapshot)
                return [Changed()]
            case frames.Error():
                # Not to be had now, or the space is gone: asked again when the server next tells
                # that there is something, or the question would go on for ever.
                self.view.newest, self.view.agreed = self.view.number, None
        return []

    def _enter(self, joined: frames.Joined, now_ns: int) -> None:
        self._entered_id = joined.re
        self.view = SpaceView(
            id=joined.space, reactions=tuple(joined.reactions), evidence=joined.evidence
        )
        self.view.take(joined.you, joined.snapshot)
        self._joined_ns = now_ns
        self._looks_in_vain = 0
        self._sound_as(profile_of(self.view.settings))
        if self._entry is not None:
            # Whoever is on stage by now: the blocks were told of when they came.
            way = {"space": joined.space, "despite_blocked": True}
            if isinstance(self._entry, frames.Join):
                way["name"] = self._entry.name
                if isinstance(self._entry.invite, str):
                    way["invite"] = self._entry.invite
            self._way_back, self._entry = way, None

    def _sound_as(self, profile: Profile) -> None:
        self.clocks.sound_as(profile)
        if profile == self.profile:
            return
        self.profile = profile
        self.playout = self._new_playout()
        self._talker = self._new_talker(self._talker.timestamp)
        self._repeater.redundancy.frame_samples = profile.frame_samples
        self._talker.follow(self._repeater.redundancy.remedy)

    def _out_of_space(self) -> None:
        self.view = SpaceView()
        self._gap_ns = None
        self._way_back = None

    def _catch_up(self, now_ns: int) -> None:
        """Asks for the updates that are missing, or for a fresh snapshot where the state is not
        the server's; not more often than once a second."""
        if self._ask_ns is None or now_ns < self._ask_ns:
            return
        self._asked_ns = now_ns
        if self.view.agreed is False:
            self.repairs += 1
            self._looks_in_vain += 1
            self._request_own(frames.Look)
        else:
            self._request_own(frames.CatchUp, after=self.view.number)

    @property
    def _ask_ns(self) -> int | None:
        """When `_catch_up` has something to ask."""
        if self._connection is None or self.view.me is None or self.trouble is not None:
            return None
        if self.view.agreed is False:
            return self._asked_ns + (ASK_AGAIN_NS << min(self._looks_in_vain, MAX_LOOK_DOUBLINGS))
        return self._asked_ns + ASK_AGAIN_NS if self.view.behind else None

    # -- what goes out ----------------------------------------------------------------------

    def request(self, kind: type[frames.Request], **fields: Any) -> int:
        """Queues a request; -> its id.  Raises ChannelFull, and RuntimeError unless connected."""
        if self._connection is None:
            raise RuntimeError("not connected")
        if kind is frames.Join:
            fields["packet_ms"] = PACKET_MS
        request = kind(id=self._last_id + 1, **fields)
        self._connection.send(frames.encode(request))
        self._last_id = request.id
        if isinstance(request, frames.Leave):
            self._leave_id = request.id
        if isinstance(request, frames.Open | frames.Join):
            self._entry = request
        return request.id

    def _request_own(self, kind: type[frames.Request], **fields: Any) -> int:
        """A request whose reply is not the application's; -> its id, 0 if there is no room."""
        try:
            request_id = self.request(kind, **fields)
        except ChannelFull:
            return 0
        self._own_requests.add(request_id)
        return request_id

    def seen(self, notice: int) -> None:
        """Tells the server that a kept notice need not come again."""
        if self.phase is Phase.CONNECTED:
            self._request_own(frames.Seen, notice=notice)

    @property
    def may_speak(self) -> bool:
        me = self.view.me
        if me is None or self.trouble is not None:
            return False
        return me.role.on_stage and not me.muted and not self.muted

    def talk(
        self, block: NDArray[np.float32], captured_ns: int | None = None
    ) -> UplinkAudio | None:
        """block (n,) or (n, 2): the microphone's next frame, best as `profile` says, kept back
        unless one may speak; captured_ns: when the last of it was captured, if that is known.
        -> the packet that goes out for it, if any."""
        if captured_ns is not None:
            end = self._talker.timestamp + len(block) & 0xFFFF_FFFF
            self.clocks.captured(end, captured_ns)
        block = with_channels(block, self.profile.channels)
        packet = self._talker.talk(block) if self.may_speak else self._talker.pause(len(block))
        if packet is not None and self._connection is not None:
            packet = self._repeater.repeat(packet)
            self._outbox.append(self._connection.send_media(Kind.AUDIO, packet.pack()))
            self.clocks.sent(len(block), timed=captured_ns is not None)
        return packet

    @property
    def later_samples(self) -> int:
        """By how much later the microphone's frames are best to come from now on; 0 while a
        talkspurt goes on."""
        return 0 if self._talker.talking else self.clocks.later_samples

    def moved(self, samples: int) -> None:
        """They do: so many samples of the microphone were left out before the next frame."""
        self._talker.leave_out(samples)
        self.clocks.moved()

    def play(self, out: NDArray[np.float32], now_ns: int) -> bool:
        """Fills `out`, (n,) or (n, 2), with what is to be heard next; -> whether it is anything but
        silence."""
        shape = self.profile.shape(len(out))
        heard = out if out.shape == shape else np.empty(shape, np.float32)
        sounds = self.playout.pull(heard, now_ns)
        if heard is not out:
            out[...] = with_channels(heard, out.ndim)
        if not sounds:
            self.levels = {}
        else:
            self.clocks.played(self.playout.timestamp, now_ns)
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
            return self._tick_unconnected(now_ns)
        for event in self._connection.tick(now_ns):
            if isinstance(event, session.Closed):
                return self._over(event, now_ns)
        if self.phase is Phase.CLOSED:
            return []
        if now_ns >= self._silent_ns:
            # A server that was killed and started again knows nothing of the session, and is
            # silent: nothing that it sends for it could be believed.
            return self._lost("the server does not answer any more", now_ns)
        if self._rejoin_ns is not None and now_ns >= self._rejoin_ns:
            self._rejoin()
        if self._gap_ns is not None and now_ns >= self._gap_ns:
            self._probe(now_ns)
        self._catch_up(now_ns)
        return []

    def _tick_unconnected(self, now_ns: int) -> list[ClientEvent]:
        if self.phase is Phase.WAITING and now_ns >= self._retry_ns:
            self._begin(now_ns)
        elif self.phase is Phase.CONNECTING and now_ns >= self._give_up_ns:
            host = f"{self.link.host}:{self.link.port}"
            return self._lost(f"no answer from {host}; is it running and reachable?", now_ns)
        elif self.phase is Phase.CONNECTING and now_ns >= self._hello_due_ns:
            self._outbox.append(self._opening.hello.pack())
            self._repeat_ns = min(2 * self._repeat_ns, MAX_HELLO_REPEAT_NS)
            self._hello_due_ns = now_ns + self._repeat_ns
        return []

    def _probe(self, now_ns: int) -> None:
        """A talkspurt has stopped without LAST.  If the reason is that a router gave us another
        address, the server learns it from any packet of ours; padded, it may answer at once."""
        assert self._connection is not None
        self._connection.ping(now_ns, pad_bytes=MAX_DATAGRAM_BYTES)
        repeat_ns = min(PROBE_REPEAT_NS << self._probes, MAX_PROBE_REPEAT_NS)
        self._probes += 1
        self._gap_ns = now_ns + repeat_ns if self._probes < PROBES else None

    def transmit(self, now_ns: int) -> list[bytes]:
        """-> the datagrams that are to be sent to the server."""
        datagrams, self._outbox = self._outbox, []
        if self._connection is not None and self.view.me is not None:
            self._ask_clock(now_ns)
        if self._connection is not None:
            datagrams += self._connection.transmit(now_ns)
        return datagrams

    def _ask_clock(self, now_ns: int) -> None:
        question = self.clocks.question(now_ns)
        if question is not None:
            self.clocks.asked(self._request_own(frames.AskClock, **question), now_ns)

    @property
    def deadline_ns(self) -> int:
        """When `tick` and `transmit` are due if nothing happens before."""
        if self._connection is None:
            waiting = self.phase is Phase.WAITING
            return self._retry_ns if waiting else min(self._hello_due_ns, self._give_up_ns)
        if self.phase is Phase.CLOSED:
            return self._connection.deadline_ns
        due = (self._rejoin_ns, self._gap_ns, self._ask_ns)
        own = [self._connection.deadline_ns, self._silent_ns]
        if self.clocks.measuring and self.view.me is not None:
            own.append(self.clocks.due_ns)
        return int(min(own + [when_ns for when_ns in due if when_ns is not None]))

    @property
    def _silent_ns(self) -> int | float:
        """When to give the server up, unless it answers."""
        assert self._connection is not None
        since_ns = self._connection.unanswered_since_ns
        return math.inf if since_ns is None else since_ns + SILENT_NS

    def finished(self, now_ns: int) -> bool:
        """Nothing more is to be sent or awaited."""
        if self._connection is None:
            return self.phase is Phase.CLOSED
        return self._connection.state is session.State.CLOSED
