"""The world: one server, its people, a network and a clock that only moves when told to."""

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from protocol import frames
from protocol.connection import MS
from protocol.link import Link
from protocol.noise import public_key
from protocol.packets import Kind
from spaces_client import client as c
from spaces_client.client import Client
from spaces_server.mixer.egress import Batch
from spaces_server.node import Limits, Node
from spaces_server.policy.house import HouseRules
from spaces_server.records import StoreReply
from tests.shelf import CONFIRM_NS, Shelf
from tests.sim.network import Network, Path

TICK_NS = 20 * MS
BLOCK = 960
SERVER = b"server".ljust(28, b".")
EVENING_NS = 1_800_000_000 * 1_000 * MS  # on the wall's clock, when the world's is 0
RULES = HouseRules(limited_rates=False)  # a script asks faster than people do
OPERATOR = bytes(range(32))
TONE_LEVEL = 0.125  # about -26 LUFS as it swells: where the mixer leaves a voice as it is
SYLLABLE_HZ = 4.0  # tones swell like syllables: a steady one is noise to a voice codec


SECOND = 48_000
SILENCE = np.zeros(BLOCK, np.float32)


@cache
def second_of(tone_hz: float) -> NDArray[np.float32]:
    """One second of a swelling tone (of a whole number of Hz, so that it can be repeated)."""
    at = np.arange(SECOND) / SECOND
    swell = 0.55 - 0.45 * np.cos(2 * np.pi * SYLLABLE_HZ * at)
    return (TONE_LEVEL * swell * np.sin(2 * np.pi * tone_hz * at)).astype(np.float32)


@dataclass(slots=True, eq=False, repr=False)
class Person:
    """A client, what it says (a tone while `talking`) and what it has heard."""

    name: str
    client: Client
    address: bytes
    tone_hz: float
    phase_ns: int
    talking: bool = False
    rogue: bool = False  # talks whether or not it may
    script: Iterator[NDArray[np.float32]] | None = None  # blocks to say instead of the tone
    said: int = 0  # samples
    heard: list[NDArray[np.float32]] = field(default_factory=list)
    heard_since_ns: int = 0
    packets_ns: list[int] = field(default_factory=list)  # when audio packets came
    events: list[c.ClientEvent] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    replies: Counter[int] = field(default_factory=Counter)

    def block(self, samples: int) -> NDArray[np.float32]:
        if self.script is not None:
            return next(self.script, SILENCE[:samples])
        at = self.said % SECOND
        self.said += samples
        return second_of(self.tone_hz)[at : at + samples] if self.talking else SILENCE[:samples]

    def reply(self, request_id: int) -> frames.Frame | None:
        for event in self.events:
            if isinstance(event, c.Replied) and event.id == request_id:
                return event.frame
        return None

    @property
    def me(self) -> frames.Member:
        assert self.client.view.me is not None, f"{self.name} is in no space"
        return self.client.view.me

    @property
    def inside(self) -> bool:
        return self.client.view.me is not None and self.client.phase is not c.Phase.CLOSED

    @property
    def was_lost(self) -> bool:
        """Its session ended at least once, with requests under way, perhaps."""
        return any(isinstance(e, c.Reconnecting | c.Disconnected) for e in self.events)

    @property
    def handle(self) -> str:
        return self.name.replace(" ", "_")

    @property
    def heard_by_all(self) -> bool:
        """What it says is to be mixed."""
        return self.talking and self.client.may_speak


Watch = Callable[["World"], None]


class World:
    """Everything happens in the order of a heap of (time, number); nothing waits or sleeps."""

    def __init__(
        self,
        seed: int,
        path: Path,
        limits: Limits | None = None,
        *,
        complexity: int = 0,
        rules: HouseRules = RULES,
    ) -> None:
        """complexity: of the people's encoders, and of the server's unless limits say it."""
        self.rng = random.Random(seed)
        self.now_ns = 1_000 * MS
        self.clocked = False  # whether speakers know when they were recorded, and tell
        self.aligned = False  # whether their frames begin when it is best
        self.people: list[Person] = []
        self.complexity = complexity
        self.after_tick: list[Watch] = []
        self.on_send: list[Callable[[bytes, bytes, bytes], None]] = []
        self.network = Network(self.rng, path, self._deliver_at, SERVER)
        self.shelf = Shelf()
        self.key = self.rng.randbytes(32)
        self.limits = limits or Limits(complexity=complexity)
        self.rules = rules
        self.start()
        self.link = Link("server", 5004, public_key(self.node.endpoint.private_key))
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._events = 0
        self._digest = hashlib.sha256()
        self.ticks = 0
        self.at(self.now_ns, self._tick)

    def start(self) -> None:
        """A server on what the store holds; the one before is gone without a word."""
        self.node = Node(
            self.key,
            entropy=self.rng.randbytes,
            limits=self.limits,
            rules=self.rules,
            loaded=self.shelf.load(),
            operator_key=public_key(OPERATOR),
            now_ns=self.now_ns,
            utc_offset_ns=EVENING_NS,
        )

    @property
    def digest(self) -> str:
        """Of every datagram delivered so far, with its time and place."""
        return self._digest.hexdigest()

    # -- time -------------------------------------------------------------------------------

    def at(self, when_ns: int, what: Callable[[], None]) -> None:
        self._events += 1
        heapq.heappush(self._queue, (when_ns, self._events, what))

    def run(self, ms: float) -> None:
        end_ns = self.now_ns + int(ms * MS)
        while self._queue[0][0] <= end_ns:
            self.now_ns, _, what = heapq.heappop(self._queue)
            what()
        self.now_ns = end_ns

    def run_until(self, what: Callable[[], bool], ms: float = 10_000) -> None:
        end_ns = self.now_ns + int(ms * MS)
        while not what():
            assert self.now_ns < end_ns, "this did not happen in time"
            self.run(20)

    # -- network ----------------------------------------------------------------------------

    def send(self, source: bytes, destination: bytes, data: bytes) -> None:
        for watch in self.on_send:
            watch(source, destination, data)
        self.network.send(self.now_ns, source, destination, data)

    def _deliver_at(self, at_ns: int, source: bytes, destination: bytes, data: bytes) -> None:
        self.at(at_ns, lambda: self._deliver(source, destination, data))

    def _deliver(self, source: bytes, destination: bytes, data: bytes) -> None:
        self._digest.update(b"%d" % self.now_ns + source + destination + data)
        if destination == SERVER:
            self.node.receive_datagram(data, source, self.now_ns)
            while self.node.waiting:
                self.node.work(self.now_ns)
            self._drain()
            return
        person = next(p for p in self.people if p.address == destination)
        self._take(person, person.client.receive(data, self.now_ns))
        self._transmit(person)

    # -- server -----------------------------------------------------------------------------

    def _tick(self) -> None:
        self.ticks += 1
        self._send(self.node.tick(self.ticks * BLOCK, self.now_ns, self.now_ns))
        self._drain()
        for watch in self.after_tick:
            watch(self)
        self.at(self.now_ns + TICK_NS // 2, self._half_tick)
        self.at(self.now_ns + TICK_NS, self._tick)

    def _half_tick(self) -> None:
        if self.node.stride() == 1:
            self._send(self.node.half_tick(self.ticks * BLOCK + BLOCK // 2, self.now_ns))

    def _send(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            for row, length, address in zip(
                batch.arena, batch.lengths, batch.addresses, strict=True
            ):
                self.send(SERVER, address.tobytes(), row[:length].tobytes())

    def _store(self) -> None:
        node, replies = self.node, self.shelf.answer(self.node.to_store())
        if replies:
            self.at(self.now_ns + CONFIRM_NS, lambda: self._stored(node, replies))

    def _stored(self, node: Node, replies: list[StoreReply]) -> None:
        if node is self.node:
            for reply in replies:
                node.receive_stored(reply, self.now_ns)
            self._drain()

    def _drain(self) -> None:
        self._store()
        for data, address in self.node.drain(self.now_ns):
            self.send(SERVER, address, data)

    # -- people -----------------------------------------------------------------------------

    def person(self, tone_hz: float = 0.0, key: bytes | None = None) -> Person:
        number = len(self.people)
        person = Person(
            f"person {number}",
            Client(
                self.link,
                key or self.rng.randbytes(32),
                entropy=self.rng.randbytes,
                now_ns=self.now_ns,
                address=SERVER,
                complexity=self.complexity,
            ),
            f"client {number}".encode().ljust(28, b"."),
            tone_hz,
            phase_ns=self.rng.randrange(TICK_NS),
        )
        self.people.append(person)
        self._transmit(person)
        self.at(self.now_ns + person.phase_ns, lambda: self._beat(person))
        return person

    def ask(self, person: Person, kind: type[frames.Request], /, **fields: object) -> int:
        request_id = person.client.request(kind, **fields)
        person.asked.append(request_id)
        self._transmit(person)
        return request_id

    def answer(
        self, person: Person, kind: type[frames.Request], /, **fields: object
    ) -> frames.Frame:
        """Asks, and lets the world go on until the reply is there."""
        request_id = self.ask(person, kind, **fields)
        self.run_until(lambda: person.reply(request_id) is not None)
        reply = person.reply(request_id)
        assert reply is not None
        return reply

    def _beat(self, person: Person) -> None:
        """A frame of one person's time: speak, listen, timers."""
        client = person.client
        samples = client.profile.frame_samples
        later = 0
        if client.phase is c.Phase.CONNECTED:
            block = person.block(samples)
            if person.rogue and not client.may_speak:
                self._talk_all_the_same(person, block)
            else:
                client.talk(block, self.now_ns if self.clocked else None)
            later = client.later_samples if self.aligned else 0
            if later:
                client.moved(later)
        out = np.empty(samples, np.float32)
        if not person.heard:
            person.heard_since_ns = self.now_ns
        client.play(out, self.now_ns)
        person.heard.append(out)
        if self.now_ns >= client.deadline_ns:
            self._take(person, client.tick(self.now_ns))
        self._transmit(person)
        if not client.finished(self.now_ns):
            beat_ns = self.now_ns + (samples + later) * 62_500 // 3
            self.at(beat_ns, lambda: self._beat(person))

    def _talk_all_the_same(self, person: Person, block: NDArray[np.float32]) -> None:
        """As a client does that does not care what it may do."""
        packet = person.client._talker.talk(block)
        if packet is not None and person.client._connection is not None:
            data = person.client._connection.send_media(Kind.AUDIO, packet.pack())
            self.send(person.address, SERVER, data)

    def _take(self, person: Person, events: list[c.ClientEvent]) -> None:
        for event in events:
            if isinstance(event, c.Heard):
                person.packets_ns.append(self.now_ns)
                continue
            person.events.append(event)
            if isinstance(event, c.Replied):
                person.replies[event.id] += 1

    def _transmit(self, person: Person) -> None:
        for data in person.client.transmit(self.now_ns):
            self.send(person.address, SERVER, data)

    # -- a space, quickly ---------------------------------------------------------------------

    def connected(self, count: int, tones: list[float]) -> list[Person]:
        """That many people with a session; the first have tones to speak with."""
        people = [self.person(tones[i] if i < len(tones) else 0.0) for i in range(count)]
        self.run_until(lambda: all(p.client.phase is c.Phase.CONNECTED for p in people))
        return people

    def registered(self, people: list[Person]) -> None:
        """Gives everyone an account."""
        asked = [self.ask(p, frames.Register, handle=p.handle, name=p.name) for p in people]
        self.run_until(lambda: all(p.reply(i) for p, i in zip(people, asked, strict=True)))
        for person, request_id in zip(people, asked, strict=True):
            reply = person.reply(request_id)
            assert isinstance(reply, frames.AccountReply), reply

    def gathered(
        self, tones: list[float], listeners: int, settings: frames.Settings | None = None
    ) -> list[Person]:
        """A space with a speaker for every tone (the first is the host), and listeners."""
        people = self.connected(len(tones) + listeners, tones)
        host = people[0]
        self.registered(people)
        opened = self.answer(host, frames.Open, title="sim", settings=settings or frames.Settings())
        assert isinstance(opened, frames.Joined), opened
        invited = self.answer(host, frames.MakeInvite)
        assert isinstance(invited, frames.Invited), invited
        asked = [
            self.ask(p, frames.Join, space=opened.space, invite=invited.invite)
            for p in people[1 : len(tones)]
        ]
        asked += [self.ask(p, frames.Join, space=opened.space) for p in people[len(tones) :]]
        self.run_until(lambda: all(p.reply(i) for p, i in zip(people[1:], asked, strict=True)))
        return people
