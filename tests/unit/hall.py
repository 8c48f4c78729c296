"""A hall: the whole server in one piece, with its store, real clients, and no network between."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol import frames
from protocol.connection import MS, Connection
from protocol.frames import ErrorCode
from protocol.link import Link
from protocol.noise import public_key
from protocol.opus import Decoder, Encoder
from protocol.packets import AudioFlag, DownlinkAudio, Kind, UplinkAudio, unpack_header
from spaces_client.client import Client, Phase
from spaces_client.events import ClientEvent, Disconnected, Heard, Replied
from spaces_server.node import Limits, Node
from spaces_server.policy.house import HouseRules
from spaces_server.policy.space import Space
from tests.shelf import Shelf

SERVER = b"server".ljust(28, b".")
EVENING_NS = 1_800_000_000 * 1_000 * MS  # the wall's time when the hall's is 0
RULES = HouseRules(limited_rates=False)
OPERATOR = bytes(range(32))
TICK_NS = 20 * MS
SECOND = 50  # in ticks
FRAME = 960
TONE_HZ = 440.0
TONE_LEVEL = 0.06  # steady and not loud: the mixer leaves it as it is
NOT_TAKEN = "audio of one who may not speak"
OUTSIDE = "audio outside a space"


@dataclass(eq=False)
class Guest:
    """A client, and what it was told and heard."""

    client: Client
    address: bytes
    key: bytes
    handle: str = ""
    tone_hz: float = TONE_HZ
    deaf: bool = False  # nothing that is sent to it arrives
    gone: bool = False  # nothing that it sends arrives either
    events: list[ClientEvent] = field(default_factory=list)
    heard: list[DownlinkAudio] = field(default_factory=list)
    told: list[tuple[int, bytes]] = field(default_factory=list)  # plaintexts but audio, by kind
    spoken: int = 0  # frames

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(complexity=0)

    @property
    def id(self) -> int:
        assert self.client.view.me is not None
        return self.client.view.me.id

    @property
    def connection(self) -> Connection:
        assert self.client._connection is not None
        return self.client._connection

    def replies(self) -> list[frames.Frame]:
        return [e.frame for e in self.events if isinstance(e, Replied)]

    def reply(self, request_id: int) -> frames.Frame | None:
        """The one reply, if it is there."""
        found = [e.frame for e in self.events if isinstance(e, Replied) and e.id == request_id]
        assert len(found) <= 1
        return found[0] if found else None

    def disconnected(self) -> list[int]:
        return [e.code for e in self.events if isinstance(e, Disconnected)]

    def audio(self) -> bytes:
        """The plaintext of the next packet of a voice, whether or not one may speak."""
        at = (self.spoken * FRAME + np.arange(FRAME)) / 48_000
        sound = (TONE_LEVEL * np.sin(2 * np.pi * self.tone_hz * at)).astype(np.float32)
        flags = 0 if self.spoken else AudioFlag.FIRST
        self.spoken += 1
        opus = self.encoder.encode(sound)
        return UplinkAudio(self.spoken * FRAME, flags, opus).pack()

    def overhear(self, datagram: bytes) -> None:
        """Opens it, as the client will."""
        kind = datagram[0]
        connection = self.client._connection
        if connection is None or kind not in (Kind.CONTROL, Kind.FEED):
            return
        control = kind == Kind.CONTROL
        opener = connection._control_opener if control else connection.media_opener
        plaintext = opener.open(datagram, unpack_header(datagram)[1])
        if plaintext is not None:
            self.told.append((kind, plaintext))

    def was_told(self, text: str) -> bool:
        """Whether this text was in anything that came, shown or not."""
        return any(text.encode() in plaintext for _, plaintext in self.told)

    def batches(self) -> list[frames.FeedBatch]:
        """All of the feed that came."""
        return [frames.decode_feed(data) for kind, data in self.told if kind == Kind.FEED]

    def sound(self) -> NDArray[np.float32]:
        """What was heard since `heard` was cleared, decoded."""
        return decoded([audio.opus for audio in self.heard])


def decoded(packets: list[bytes]) -> NDArray[np.float32]:
    decoder = Decoder()
    out = np.zeros((len(packets), FRAME), np.float32)
    for frame, packet in zip(out, packets, strict=True):
        decoder.decode(packet, frame)
    return out.reshape(-1)


def level(samples: NDArray[np.float32], tone_hz: float) -> float:
    """The amplitude of a tone, without the first 100 ms, in which codecs settle."""
    samples = samples[4_800:]
    assert len(samples) >= 4_800, "too little was heard to say"
    window = np.hanning(len(samples))
    at = np.arange(len(samples)) / 48_000
    return float(abs(2 * np.sum(samples * window * np.exp(-2j * np.pi * tone_hz * at)))) / float(
        window.sum()
    )


class Hall:
    """A server and its guests.  `settle` carries datagrams until there are no more."""

    def __init__(self, rules: HouseRules = RULES, **limits: Any) -> None:
        self.now_ns = 1_000 * MS
        self.log: list[str] = []
        self.shelf = Shelf()
        self.key = os.urandom(32)
        self.rules = rules
        self.limits = Limits(**{"complexity": 0, "cookies_above": 10_000} | limits)
        self.guests: list[Guest] = []
        self.ticks = 0
        self.link = Link("server", 5004, public_key(self.key))
        self.start()

    def start(self) -> None:
        """A server on what the store holds; the one before is gone without a word."""
        self.node = Node(
            self.key,
            entropy=os.urandom,
            limits=self.limits,
            rules=self.rules,
            loaded=self.shelf.load(),
            operator_key=public_key(OPERATOR),
            now_ns=self.now_ns,
            utc_offset_ns=EVENING_NS,
            log=self.log.append,
        )

    # -- people

    def person(self, key: bytes | None = None) -> Guest:
        """One with an account."""
        guest = self.guest(key)
        guest.handle = f"guest_{len(self.guests)}"
        name = f"Guest {len(self.guests)}"
        reply = self.ask(guest, frames.Register, handle=guest.handle, name=name)
        assert isinstance(reply, frames.AccountReply)
        return guest

    def guest(self, key: bytes | None = None) -> Guest:
        """One who is connected, and in no space."""
        (guest,) = self.guests_of(1, key)
        return guest

    def guests_of(self, count: int, key: bytes | None = None) -> list[Guest]:
        guests = []
        for _ in range(count):
            own_key = key or os.urandom(32)
            client = Client(
                self.link,
                own_key,
                entropy=os.urandom,
                now_ns=self.now_ns,
                address=SERVER,
                complexity=0,
            )
            address = (b"guest %d" % len(self.guests)).ljust(28, b".")
            guests.append(Guest(client, address, own_key))
            self.guests.append(guests[-1])
        self.settle()
        assert all(guest.client.phase is Phase.CONNECTED for guest in guests)
        return guests

    def operator(self) -> Guest:
        """The server's own key, with an owner's rights."""
        return self.guest(OPERATOR)

    # -- datagrams

    def send(self, guest: Guest, datagram: bytes) -> None:
        if not guest.gone:
            self.node.receive_datagram(datagram, guest.address, self.now_ns)
            while self.node.waiting:
                self.node.work(self.now_ns)

    def settle(self) -> None:
        for _ in range(100):
            for guest in self.guests:
                for datagram in guest.client.transmit(self.now_ns):
                    self.send(guest, datagram)
            busy = self.shelf.serve(self.node, self.now_ns)
            sent = self.node.drain(self.now_ns)
            self.deliver(sent)
            if not sent and not busy:
                return
        raise AssertionError("they talk to each other for ever")

    def deliver(self, datagrams: list[tuple[bytes, bytes]]) -> None:
        at = {guest.address: guest for guest in self.guests}
        for datagram, address in datagrams:
            guest = at.get(address)
            if guest is None or guest.deaf:
                continue
            guest.overhear(datagram)
            for event in guest.client.receive(datagram, self.now_ns):
                if isinstance(event, Heard):
                    guest.heard.append(event.audio)
                else:
                    guest.events.append(event)

    def tick(self, count: int = 1, *speakers: Guest) -> None:
        """Lets 20 ms pass, count times, in which these send audio."""
        for _ in range(count):
            for speaker in speakers:
                packet = speaker.connection.send_media(Kind.AUDIO, speaker.audio())
                self.send(speaker, packet)
            self.now_ns += TICK_NS
            self.ticks += 1
            for batch in self.node.tick(self.ticks * FRAME, self.now_ns, self.now_ns):
                rows = zip(batch.arena, batch.lengths, batch.addresses, strict=True)
                self.deliver([(row[:n].tobytes(), to.tobytes()) for row, n, to in rows])
            for guest in self.guests:
                if not guest.gone and self.now_ns >= guest.client.deadline_ns:
                    guest.events += guest.client.tick(self.now_ns)
            self.settle()

    # -- requests

    def ask(self, guest: Guest, kind: type[frames.Request], **fields: Any) -> Any:
        """-> the one reply."""
        request_id = guest.client.request(kind, **fields)
        self.settle()
        reply = guest.reply(request_id)
        assert reply is not None
        return reply

    def does(self, guest: Guest, kind: type[frames.Request], **fields: Any) -> None:
        reply = self.ask(guest, kind, **fields)
        assert isinstance(reply, frames.Ok), reply

    def refuses(self, code: ErrorCode, guest: Guest, kind: type[frames.Request], **f: Any) -> None:
        reply = self.ask(guest, kind, **f)
        assert isinstance(reply, frames.Error), reply
        assert reply.code == code, reply
        assert reply.text

    def says(self, guest: Guest, message: bytes) -> frames.Frame:
        """-> the one reply to a message of any bytes."""
        before = len(guest.events)
        guest.connection.send(message)
        self.settle()
        (reply,) = [e.frame for e in guest.events[before:] if isinstance(e, Replied)]
        return reply

    # -- a space, quickly

    def open(self, host: Guest, **fields: Any) -> str:
        """-> its name."""
        reply = self.ask(host, frames.Open, **{"title": "title"} | fields)
        assert isinstance(reply, frames.Joined), reply
        return reply.space

    def space(self, speakers: int = 1, listeners: int = 0) -> list[Guest]:
        """The first is the host."""
        host = self.person()
        space = self.open(host)
        invited = self.ask(host, frames.MakeInvite)
        assert isinstance(invited, frames.Invited)
        others = [self.person() for _ in range(speakers - 1 + listeners)]
        for number, guest in enumerate(others, 1):
            token = {"invite": invited.invite} if number < speakers else {}
            self.join(guest, space, **token)
        return [host, *others]

    def join(self, guest: Guest, space: str, **fields: Any) -> None:
        reply = self.ask(guest, frames.Join, space=space, **fields)
        assert isinstance(reply, frames.Joined), reply
        assert reply.you.id == guest.id

    def the_space(self) -> Space:
        (space,) = self.node.spaces.values()
        return space

    def agree(self, *guests: Guest) -> None:
        snapshot = self.the_space().snapshot()
        for guest in guests:
            view = guest.client.view
            assert view.number == snapshot.number
            assert view.members == {m.id: m for m in snapshot.members}
            assert view.listeners == snapshot.listeners
            assert view.title == snapshot.title
            assert view.settings == snapshot.settings
            assert view.me == self.the_space().view(guest.id)

    def silent(self, speaker: Guest, why: str = NOT_TAKEN) -> None:
        """What they send is not mixed, and is counted under `why`."""
        for guest in self.guests:
            guest.heard.clear()
        stats = self.node.mixer.stats
        encodes = stats.encodes
        dropped = self.node.dropped[why]
        self.tick(10, speaker)
        assert stats.encodes == encodes
        assert all(guest.heard == [] for guest in self.guests)
        assert self.node.dropped[why] == dropped + 10
