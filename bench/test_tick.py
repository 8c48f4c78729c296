"""What each phase of a tick costs.  Nothing here is asserted of the clock, only of the results.

    pytest bench/test_tick.py --benchmark-enable --benchmark-only

Without --benchmark-enable every phase runs once, as a test.  `spaces-bench tick` runs it and gives
the figures, each by the name of its test.
"""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from bench.polled import Poller, udp_socket
from protocol import frames
from protocol.connection import MS, Connection
from protocol.jitter import JitterBuffer
from protocol.link import Link
from protocol.noise import public_key
from protocol.opus import Encoder
from protocol.packets import AudioFlag, DownlinkAudio, Kind, UplinkAudio
from protocol.sealing import SessionKeys
from spaces_client.client import Client, Phase
from spaces_client.events import ClientEvent, Replied
from spaces_server.mixer.egress import Batch, Egress
from spaces_server.mixer.limiter import LIMIT, Limiter
from spaces_server.mixer.loudness import Leveller
from spaces_server.mixer.plan import Plan
from spaces_server.mixer.source import FRAME_SAMPLES, Source
from spaces_server.net.mmsg import Sender
from spaces_server.net.transport import pack_address
from spaces_server.node import Limits, Node
from spaces_server.policy.house import HouseRules
from spaces_server.records import StoreReply

TICK_NS = 20 * MS
LISTENERS = 1_000
SPEAKERS = 3
SERVER = b"server".ljust(28, b".")

Samples = NDArray[np.float32]


def voice(seed: int, frames_: int = 50) -> list[Samples]:
    """A second of something that costs a codec as much as a voice: tones that swell, and noise."""
    rng = np.random.default_rng(seed)
    at = np.arange(frames_ * FRAME_SAMPLES) / 48_000
    tones = sum(np.sin(2 * np.pi * (120 + 20 * seed) * k * at) / k for k in range(1, 12))
    swell = 0.55 - 0.45 * np.cos(2 * np.pi * 4 * at)
    sound = 0.1 * swell * tones + 0.003 * rng.standard_normal(len(at))
    return np.split(sound.astype(np.float32), frames_)


class Speech:
    """Endless uplink packets of one speaker, encoded beforehand."""

    def __init__(self, seed: int) -> None:
        encoder = Encoder()
        self._opus = [encoder.encode(block) for block in voice(seed)]
        self._sent = 0

    def next(self) -> UplinkAudio:
        number = self._sent
        self._sent += 1
        flags = 0 if number else AudioFlag.FIRST
        return UplinkAudio(number * FRAME_SAMPLES, flags, self._opus[number % len(self._opus)])


def test_decode(benchmark: BenchmarkFixture) -> None:
    """One source: a packet into the jitter buffer, 20 ms out of the decoder."""
    source, speech = Source(0), Speech(1)
    out = np.zeros(FRAME_SAMPLES, np.float32)
    now_ns = 0

    def decode() -> None:
        nonlocal now_ns
        now_ns += TICK_NS
        source.receive(speech.next(), now_ns)
        source.fill(out, now_ns)

    for _ in range(5):
        decode()
    benchmark(decode)
    assert source.sounding
    assert out.any()


def test_buffer(benchmark: BenchmarkFixture) -> None:
    """One source's jitter buffer alone: a packet in that came more or less late, a decision out."""
    buffer, speech = JitterBuffer(), Speech(1)
    late_ns = (np.random.default_rng(1).exponential(3 * MS, 1_000)).astype(int).tolist()
    turns = 0

    def decide() -> None:
        nonlocal turns
        turns += 1
        now_ns = turns * TICK_NS
        audio = speech.next()
        buffer.insert(audio.timestamp, audio.opus, now_ns - 15 * MS + late_ns[turns % 1_000])
        buffer.next(now_ns)

    for _ in range(500):
        decide()
    benchmark(decide)
    assert buffer.stats.decoded > 400


def test_levels(benchmark: BenchmarkFixture) -> None:
    """One source: DC, loudness and gain."""
    leveller, blocks = Leveller(), [0.3 * block for block in voice(1)]
    frame = np.zeros(FRAME_SAMPLES, np.float32)
    turns = 0

    def level() -> None:
        nonlocal turns
        turns += 1
        frame[:] = blocks[turns % len(blocks)]
        leveller.level(frame)

    for _ in range(200):
        level()
    benchmark(level)
    assert leveller.gain_db > 3


def test_plan(benchmark: BenchmarkFixture) -> None:
    """A change of who sounds, with a thousand members of whom ten are on stage."""
    plan = Plan(partial(Encoder, complexity=0))
    for member in range(LISTENERS):
        plan.add_member(member, member)
    for member in range(10):
        plan.set_gain(member, member, 0.0)
    turns = 0

    def rebuild() -> None:
        nonlocal turns
        turns += 1
        plan.rebuild((1, 2, 3) if turns % 2 else (1, 2), turns * TICK_NS)

    benchmark(rebuild)
    assert len(plan.classes) in (3, 4)


def test_mix(benchmark: BenchmarkFixture) -> None:
    """Nine classes of eight sources: one product, nine limiters."""
    planes = 4 * np.stack([voice(seed)[10] for seed in range(8)])
    gains = np.ones((9, 8), np.float32)
    gains[np.arange(8), np.arange(8)] = 0
    limiters = [Limiter() for _ in gains]

    def mix() -> Samples:
        mixes: Samples = gains @ planes
        for limiter, samples in zip(limiters, mixes, strict=True):
            assert limiter.limit(samples) > LIMIT
        return mixes

    mix()
    mixes = benchmark(mix)
    assert np.abs(mixes).max() <= LIMIT * 1.0001


def test_encode(benchmark: BenchmarkFixture) -> None:
    """One class, with the settings of a server."""
    limits = Limits()
    encoder = Encoder(bitrate=limits.bitrate, complexity=limits.complexity)
    blocks = voice(1)
    turns = 0

    def encode() -> bytes:
        nonlocal turns
        turns += 1
        return encoder.encode(blocks[turns % len(blocks)])

    assert len(benchmark(encode)) > 10


def test_seal(benchmark: BenchmarkFixture) -> None:
    """One packet for a thousand rows."""
    egress = Egress()
    connections = [
        Connection(
            SessionKeys.derive(send=os.urandom(32), receive=os.urandom(32)),
            remote_index=number,
            address=SERVER,
            now_ns=0,
            entropy=os.urandom,
            keep_alive=False,
        )
        for number in range(LISTENERS)
    ]
    rows = np.array([egress.add(connection) for connection in connections])
    plaintext = os.urandom(90)

    def seal() -> list[Batch]:
        egress.put(Kind.AUDIO, plaintext, rows)
        return list(egress.seal())

    batches = benchmark(seal)
    assert sum(len(batch.lengths) for batch in batches) == LISTENERS


def test_send(benchmark: BenchmarkFixture) -> None:
    """A thousand datagrams, to sockets of this machine that are emptied in between."""
    with ExitStack() as stack:
        sender, *receivers = [stack.enter_context(udp_socket()) for _ in range(5)]
        poller = Poller(receivers)
        arena = np.zeros((LISTENERS, 128), np.uint8)
        lengths = np.full(LISTENERS, 118, np.int32)
        names = [
            pack_address("127.0.0.1", one.getsockname()[1], socket.AF_INET) for one in receivers
        ]
        addresses = np.frombuffer(b"".join(names * (LISTENERS // len(names))), np.uint8)
        addresses = addresses.reshape(LISTENERS, -1)
        table = Sender(sender.fileno(), 16)  # bytes of a sockaddr_in

        arrived = 0

        def empty() -> None:
            nonlocal arrived
            arrived = 0
            while (batch := poller.poll_all()) is not None:
                arrived += len(batch[0])

        measure: Callable[..., tuple[int, int]] = benchmark.pedantic
        sent = measure(
            lambda: table.send_batch(arena, lengths, addresses),
            setup=empty,
            rounds=100,
            warmup_rounds=10,
        )
        assert sent == (LISTENERS, 0)
        empty()
        assert arrived == LISTENERS


class Hall:
    """A server with a space of three who speak and a thousand who listen; in crowd packets of
    `packet_ms` if that is more than 20."""

    def __init__(self, packet_ms: int = 20) -> None:
        self.now_ns = 1_000 * MS
        self.ticks = 0
        limits = Limits(cookies_above=10_000, crowd_above=LISTENERS // 2, crowd_packet_ms=packet_ms)
        rules = HouseRules(limited_rates=False)
        self.node = Node(os.urandom(32), entropy=os.urandom, limits=limits, rules=rules)
        self.events: list[ClientEvent] = []
        self.link = Link("server", 5004, public_key(self.node.endpoint.private_key))
        self.clients: dict[bytes, Client] = {}
        self.speakers = [self._client() for _ in range(SPEAKERS)]
        for number, client in enumerate(self.speakers):
            self._ask(client, frames.Register, handle=f"speaker_{number}", name="speaker")
        host, *others = self.speakers
        space = self._ask(host, frames.Open, title="bench").space
        invite = self._ask(host, frames.MakeInvite).invite
        for client in others:
            self._ask(client, frames.Join, space=space, invite=invite)
        for _ in range(LISTENERS):
            self._ask(self._client(), frames.Join, space=space, packet_ms=packet_ms)
        self.speeches = [Speech(seed) for seed in range(SPEAKERS)]
        for _ in range(20):  # acknowledgements, and the news of who has come
            self.tick()
            for address in self.clients:
                self._exchange(address)

    def _client(self) -> Client:
        address = (b"client %d" % len(self.clients)).ljust(28, b".")
        client = Client(
            self.link,
            os.urandom(32),
            entropy=os.urandom,
            now_ns=self.now_ns,
            address=SERVER,
            complexity=0,
        )
        self.clients[address] = client
        self._exchange(address)
        assert client.phase is Phase.CONNECTED
        return client

    def _exchange(self, address: bytes) -> None:
        client = self.clients[address]
        while datagrams := client.transmit(self.now_ns):
            for datagram in datagrams:
                self.node.receive_datagram(datagram, address, self.now_ns)
            while self.node.waiting:
                self.node.work(self.now_ns)
            for request in self.node.to_store():  # a store that keeps nothing
                self.node.receive_stored(StoreReply(request.ticket), self.now_ns)
            for datagram, to in self.node.drain(self.now_ns):
                self.events += self.clients[to].receive(datagram, self.now_ns)

    def _ask(self, client: Client, kind: type[frames.Request], **fields: Any) -> Any:
        """-> the reply."""
        request_id = client.request(kind, **fields)
        self.events.clear()
        self._exchange(next(a for a, c in reversed(self.clients.items()) if c is client))
        (reply,) = [e.frame for e in self.events if isinstance(e, Replied) and e.id == request_id]
        return reply

    def speak(self) -> None:
        for client, speech in zip(self.speakers, self.speeches, strict=True):
            assert client._connection is not None
            datagram = client._connection.send_media(Kind.AUDIO, speech.next().pack())
            address = next(a for a, c in self.clients.items() if c is client)
            self.node.receive_datagram(datagram, address, self.now_ns)

    def tick(self) -> list[Batch]:
        self.now_ns += TICK_NS
        self.ticks += 1
        return list(self.node.tick(self.ticks * FRAME_SAMPLES, self.now_ns, self.now_ns))


def test_node_tick(benchmark: BenchmarkFixture) -> None:
    """All of a tick but the network: three speak, and a thousand listen."""
    hall = Hall()
    for _ in range(5):
        hall.speak()
        hall.tick()
    before = hall.node.mixer.stats.encodes
    ticks = hall.ticks
    measure: Callable[..., list[Batch]] = benchmark.pedantic
    batches = measure(hall.tick, setup=hall.speak, rounds=200, warmup_rounds=10)
    assert hall.node.mixer.stats.encodes - before == (SPEAKERS + 1) * (hall.ticks - ticks)
    assert sum(len(batch.lengths) for batch in batches) == SPEAKERS + LISTENERS
    listener = list(hall.clients)[-1]
    (datagram,) = [
        batch.arena[at, : batch.lengths[at]].tobytes()
        for batch in batches
        for at in np.flatnonzero((batch.addresses == np.frombuffer(listener, np.uint8)).all(axis=1))
    ]
    (event,) = hall.clients[listener].receive(datagram, hall.now_ns)
    audio = getattr(event, "audio", None)
    assert isinstance(audio, DownlinkAudio)
    assert [a.seat for a in audio.audible] == [0, 1, 2]


def test_crowd_tick(benchmark: BenchmarkFixture) -> None:
    """The same, with a datagram for each listener at every third tick: a third of them at each."""
    hall = Hall(packet_ms=60)
    for _ in range(5):
        hall.speak()
        hall.tick()
    sealed, ticks = hall.node.egress.sealed, hall.ticks
    measure: Callable[..., list[Batch]] = benchmark.pedantic
    measure(hall.tick, setup=hall.speak, rounds=100, warmup_rounds=10)
    while (hall.ticks - ticks) % 3:
        hall.speak()
        hall.tick()
    ticks = hall.ticks - ticks
    assert hall.node.egress.sealed - sealed == ticks * SPEAKERS + ticks // 3 * LISTENERS
