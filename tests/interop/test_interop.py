"""The client that was written from SPEC.md alone, against the product: its server, its client.

Everything runs on the simulation's virtual clock and seeded network; the only parts that are not
the product's are `client_from_spec` and the network between.
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol import frames
from protocol.connection import MS
from protocol.link import Link
from protocol.noise import public_key
from protocol.opus import Decoder, Encoder
from protocol.packets import Kind
from protocol.reliable import ReliableChannel
from protocol.replay import ReplayWindow
from protocol.sealing import Opener, Sealer
from protocol.tables import SPEC, parse_example
from spaces_client import client as product
from spaces_server.node import Limits
from tests.interop import client_from_spec as spec
from tests.sim.checkers import (
    NoncesNeverRepeat,
    every_request_has_one_answer,
    tones_heard,
    views_agree,
)
from tests.sim.network import CLEAN, ROUGH, Path
from tests.sim.world import BLOCK, SERVER, SILENCE, TICK_NS, Person, World, second_of

TONES = (431.0, 617.0, 853.0)
CLEAN_LEVEL, CLEAN_SILENCE = (0.7, 1.4), 0.02
ROUGH_LEVEL, ROUGH_SILENCE = (0.25, 1.5), 0.12  # a fifth of it may be concealed


# -- people with the client from the specification ------------------------------------------------


@dataclass(eq=False)
class Guest:
    """As the simulation's Person, but with the other client; Opus is done here, not in it."""

    name: str
    client: spec.Client
    address: bytes
    tone_hz: float
    talking: bool = False
    said: int = 0  # samples
    heard: list[NDArray[np.float32]] = field(default_factory=list)
    heard_since_ns: int = 0
    frames: list[spec.Frame] = field(default_factory=list)
    levels: dict[int, set[int]] = field(default_factory=dict)  # seat -> -dBov
    captures: list[tuple[int, int]] = field(default_factory=list)  # (seat, capture)
    encoder: Encoder = field(default_factory=lambda: Encoder(complexity=0))
    decoder: Decoder = field(default_factory=Decoder)
    in_talkspurt: bool = False
    ended: bool = False

    @property
    def view(self) -> spec.View:
        assert self.client.view is not None, f"{self.name} is in no space"
        return self.client.view

    def reply(self, request_id: int) -> spec.Frame | None:
        return next((f for f in self.frames if f.get("re") == request_id), None)

    def speak(self) -> None:
        at = self.said
        self.said += BLOCK
        if self.talking:
            block = second_of(self.tone_hz)[at % 48_000 : at % 48_000 + BLOCK]
            first = not self.in_talkspurt
            if first:
                self.encoder.reset()
            self.in_talkspurt = True
            self.client.speak(at, self.encoder.encode(block), first=first, last=False)
        elif self.in_talkspurt:
            self.in_talkspurt = False
            self.client.speak(at, self.encoder.encode(SILENCE), first=False, last=True)

    def listen(self, now_ns: int) -> None:
        if not self.heard:
            self.heard_since_ns = now_ns
        play = self.client.playout.take(now_ns)
        out = np.zeros(BLOCK, np.float32)
        if play.reset:
            self.decoder.reset()
        if play.mix is not None:
            self.decoder.decode(play.mix.opus, out)
            for audible in play.mix.audible:
                self.levels.setdefault(audible.seat, set()).add(audible.level)
                self.captures.append((audible.seat, audible.capture))
        elif play.conceal:
            self.decoder.conceal(out)
        self.heard.append(out)


class MixedWorld(World):
    """The simulation's world, where some people are guests.  `lose(to, data)`: whether a datagram
    to the client with that address (or, for SERVER, to the server) is lost."""

    def __init__(self, seed: int, path: Path, limits: Limits | None = None) -> None:
        super().__init__(seed, path, limits)
        self.guests: dict[bytes, Guest] = {}
        self.lose: Callable[[bytes, bytes], bool] = lambda to, data: False

    def guest(
        self, tone_hz: float = 0.0, *, key: bytes | None = None, server: bytes | None = None
    ) -> Guest:
        number = len(self.guests)
        guest = Guest(
            f"guest {number}",
            spec.Client(
                server or self.link.key,
                key or self.rng.randbytes(32),
                self.rng.randbytes,
                self.now_ns,
                agent="from the specification",
            ),
            f"guest {number}".encode().ljust(28, b"."),
            tone_hz,
        )
        self.guests[guest.address] = guest
        self.beat(guest)
        return guest

    def _deliver(self, source: bytes, destination: bytes, data: bytes) -> None:
        if self.lose(destination, data):
            return
        guest = self.guests.get(destination)
        if guest is None:
            super()._deliver(source, destination, data)
        else:
            guest.client.receive(data, self.now_ns)
            self.pump(guest)

    def beat(self, guest: Guest) -> None:
        if guest.client.state == "session":
            guest.speak()
        if guest.tone_hz:
            guest.listen(self.now_ns)
        self.pump(guest)
        if guest.client.deadline_ns() < spec.NEVER_NS:
            self.at(self.now_ns + TICK_NS, lambda: self.beat(guest))

    def pump(self, guest: Guest) -> None:
        guest.frames += guest.client.frames
        guest.client.frames.clear()
        for data in guest.client.poll(self.now_ns):
            self.send(guest.address, SERVER, data)

    def request(self, guest: Guest, kind: str, **fields: Any) -> int:
        request_id = guest.client.request(kind, **fields)
        self.pump(guest)
        return request_id

    def result(self, guest: Guest, kind: str, **fields: Any) -> spec.Frame:
        request_id = self.request(guest, kind, **fields)
        self.run_until(lambda: guest.reply(request_id) is not None)
        reply = guest.reply(request_id)
        assert reply is not None
        return reply

    def connect(self, *guests: Guest) -> None:
        self.run_until(lambda: all(g.client.state == "session" for g in guests))


def hears(
    listener: Guest | Person,
    talking: Iterable[Guest | Person],
    from_ns: int,
    to_ns: int,
    level: tuple[float, float],
    silence: float,
) -> None:
    """Everybody who talks but oneself, and nobody else."""
    expected = {p.tone_hz for p in talking if p is not listener}
    # A guest has what `tones_heard` looks at: `heard`, `heard_since_ns`.
    found = tones_heard(cast(Person, listener), from_ns, to_ns, TONES)
    for tone, loudness in found.items():
        lowest, highest = level if tone in expected else (-1.0, silence)
        assert lowest < loudness < highest, f"{listener.name} hears {tone} Hz at {loudness:.2f}"


def same_member(mine: spec.Member, server: frames.Member) -> bool:
    seat = server.seat if isinstance(server.seat, int) else None
    return mine == spec.Member(
        server.id, server.name, server.role.value, seat, server.muted, server.hand
    )


def guest_agrees(world: MixedWorld, guest: Guest) -> None:
    view = guest.view
    space = world.node.spaces[view.space]
    snapshot = space.snapshot()
    assert view.number == snapshot.number, f"{guest.name} is behind"
    assert view.title == snapshot.title
    assert view.listeners == snapshot.listeners
    assert len(view.listed) == len(snapshot.members)
    for member in snapshot.members:
        assert same_member(view.listed[member.id], member), f"{guest.name}: {member}"
    assert same_member(view.you, space.view(view.you.id)), f"{guest.name} about itself"


# -- the worked example ---------------------------------------------------------------------------


def test_the_worked_example_is_reproduced() -> None:
    example = dict(parse_example(SPEC.read_text(encoding="utf-8")))
    made: dict[str, bytes] = {}

    link_text = re.search(r"`(spaces://example\.org/lobby\?key=[\w-]+)`", SPEC.read_text("utf-8"))
    assert link_text is not None
    link = spec.read_link(link_text[1])
    assert (link.host, link.port, link.space, link.invite) == ("example.org", 5004, "lobby", None)

    client, server = bytes(range(32)), bytes(range(32, 64))
    x, y = bytes(range(64, 96)), bytes(range(96, 128))
    made["client static private"], made["server static private"] = client, server
    made["client ephemeral private"], made["server ephemeral private"] = x, y
    made["client static public"] = spec.public_key(client)
    made["server static public"] = spec.public_key(server)
    assert link.key == made["server static public"]
    made["client index"], made["server index"] = bytes.fromhex("0a0b0c0d"), example["server index"]
    index = int.from_bytes(made["client index"])
    made["key id"] = spec.key_id(link.key)
    made["prologue"] = spec.prologue(index, link.key, bytes(16))

    agent = spec.read_greeting(example["client greeting"])
    assert agent == "example client"
    made["client greeting"] = spec.greeting(agent).ljust(128, b"\0")
    initiator = spec.Initiator(link.key, client, x, index, agent, bytes(16))
    made["HELLO"] = hello = initiator.hello

    # The server's side of the same handshake, with the client's own Noise.
    noise = spec.Noise(made["prologue"], link.key)
    noise.hash(hello[32:64])
    noise.mix(spec.dh(server, hello[32:64]))
    assert noise.open(hello[64:112]) == made["client static public"]
    noise.mix(spec.dh(server, made["client static public"]))
    assert noise.open(hello[112:]) == made["client greeting"]
    made["server payload"] = made["server index"] + spec.greeting("example server")
    noise.hash(spec.public_key(y))
    noise.mix(spec.dh(y, hello[32:64]))
    noise.mix(spec.dh(y, made["client static public"]))
    message = spec.public_key(y) + noise.seal(made["server payload"])
    clear = b"\x02\x01\0\0" + made["client index"]
    made["WELCOME"] = clear + message

    server_index, agent, to_server, to_client = initiator.read(made["WELCOME"])
    assert (server_index, agent) == (0x1A1B1C1D, "example server")
    assert noise.split() == (to_server, to_client)
    assert initiator.noise.h == noise.h
    made["handshake hash"] = noise.h
    made["split: client to server"], made["split: server to client"] = to_server, to_client
    for way, split in (("client to server", to_server), ("server to client", to_client)):
        for chain in ("control", "media"):
            secret = made[f"{way}, {chain} secret"] = spec.expand(split, chain, 32)
            for epoch in range(2):
                name = f"{way}, {chain} key, epoch {epoch}"
                if name in example:
                    made[name] = spec.epoch_key(secret)
                secret = spec.next_secret(secret)

    made["join frame"] = spec.write_frame(
        {"type": "join", "id": 1, "space": link.space, "name": "Ada"}
    )
    sender = spec.ReliableSender()
    sender.send(made["join frame"])
    data = sender.poll(0, 1_000)
    assert data is not None
    made["CONTROL plaintext"] = spec.chunk(spec.PING, bytes(range(128, 136))) + data
    ours = spec.Chains.make(server_index, to_server, to_client)
    theirs = spec.Sealer(spec.expand(to_client, "media", 32))
    made["CONTROL, client to server, counter 0"] = ours.seal_control.seal(
        spec.CONTROL, server_index, made["CONTROL plaintext"]
    )
    silence = bytes.fromhex("f8fffe")
    assert spec.opus_samples(silence) == 960
    made["AUDIO plaintext, client to server"] = spec.write_voice(0xFFFFFE20, spec.FIRST, silence)
    made["AUDIO, client to server, counter 0"] = ours.seal_media.seal(
        spec.AUDIO, server_index, made["AUDIO plaintext, client to server"]
    )
    mixed = spec.read_mix(example["AUDIO plaintext, server to client"])
    audible = (spec.Audible(3, 42, 0x1234),)
    assert mixed == spec.Mix(1_000_000, spec.FIRST, audible, silence)
    for name, kind in (
        ("AUDIO, server to client, counter 0", spec.AUDIO),
        ("FEED, server to client, counter 1", spec.FEED),
    ):
        text = ours.open_media.open(example[name])
        assert text is not None
        made[re.sub(r"(, server.*)?, counter.*", "", name) + " plaintext"] = text
        made[name] = theirs.seal(kind, index, text)
    made["AUDIO plaintext, server to client"] = made.pop("AUDIO plaintext")
    batch = spec.read_batch(made["FEED plaintext"])
    assert batch is not None
    view = spec.View(batch["space"], spec.Member(7, "Ada"), number=batch["first"] - 1)
    view.take_batch(batch["first"], batch["updates"])
    assert view.listed == {7: spec.Member(7, "Ada", "speaker", 3)}
    assert view.listeners == 12
    assert view.you.role == "speaker"

    assert made == example


@pytest.mark.parametrize(
    "text",
    [
        str(Link("host.example", 5004, public_key(bytes(32)), "lobby")),
        str(Link("2001:db8::1", 6000, public_key(bytes(32)), "a-b_c", "token")),
        str(Link("192.0.2.1", 1, public_key(bytes(32)))),
    ],
)
def test_the_products_links_are_understood(text: str) -> None:
    ours, theirs = spec.read_link(text), Link.parse(text)
    assert (ours.host, ours.port, ours.key) == (theirs.host, theirs.port, theirs.key)
    assert (ours.space or None, ours.invite) == (theirs.space or None, theirs.invite)


# -- the parts, each against the product's --------------------------------------------------------


def test_sealing_agrees_across_epochs() -> None:
    secret = bytes(range(32))
    counters = [0, 5, (1 << 20) - 1, 1 << 20, (1 << 20) - 9, 2 << 20, (2 << 20) - 9, 3 << 20]
    mine, theirs = spec.Opener(secret), Opener(secret)
    for counter in counters:
        datagram = spec.Sealer(secret, counter).seal(spec.AUDIO, 7, b"voice")
        assert theirs.open(datagram, counter) == b"voice"
        assert mine.open(datagram) == b"voice"
    for counter in (6, (1 << 20) + 9, 5 << 20):  # epochs out of reach
        datagram = spec.Sealer(secret, counter).seal(spec.AUDIO, 7, b"voice")
        assert theirs.open(datagram, counter) is None
        assert mine.open(datagram) is None
    product_sealer, own_sealer = Sealer(secret, 7), spec.Sealer(secret)
    product_sealer.counter = own_sealer.counter = (1 << 20) - 1
    for _ in range(2):  # the last of an epoch, the first of the next
        assert product_sealer.seal(Kind.FEED, b"news") == own_sealer.seal(spec.FEED, 7, b"news")


def test_the_replay_window_agrees() -> None:
    rng = random.Random(1)
    secret = bytes(32)
    mine, theirs = spec.Opener(secret), ReplayWindow()
    at, taken = 0, 0
    for _ in range(6_000):
        at += rng.choice([0, 1, 1, 2, 50])
        counter = max(0, at - rng.choice([0, 0, 1, 3, 8_127, 8_128, 8_129, rng.randrange(9_000)]))
        datagram = spec.Sealer(secret, counter).seal(spec.AUDIO, 7, b"")
        accepted = theirs.accept(counter)
        assert (mine.open(datagram) == b"") == accepted, counter
        taken += accepted
    assert 1_000 < taken < 5_000


@pytest.mark.parametrize("seed", range(4))
def test_long_messages_pass_between_the_two_reliable_channels(seed: int) -> None:
    """Both ways at once, over a path that loses a fifth and reorders; the longest are 64 KiB."""
    rng = random.Random(seed)
    sender, receiver, theirs = spec.ReliableSender(), spec.ReliableReceiver(), ReliableChannel()
    lengths = (0, 1, 1_000, 1_001, 65_536)
    to_server, to_client = ([rng.randbytes(n) for n in rng.sample(lengths, 5)] for _ in range(2))
    for message in to_server:
        sender.send(message)
    for message in to_client:
        theirs.send(message)
    wire: list[tuple[int, bool, int, bytes]] = []  # when, to the server, kind, body
    got_by_server: list[bytes] = []
    got_by_client: list[bytes] = []

    def put(now_ns: int, up: bool, kind: int, body: bytes) -> None:
        if rng.random() > 0.2:
            wire.append((now_ns + rng.randrange(20, 60) * MS, up, kind, body))

    for now_ns in range(0, 60_000 * MS, 5 * MS):
        arrived = sorted(entry for entry in wire if entry[0] <= now_ns)
        wire = [entry for entry in wire if entry[0] > now_ns]
        for _, up, kind, body in arrived:
            if kind == spec.DATA and up:
                got_by_server += theirs.receive_data(body, now_ns)
            elif kind == spec.DATA:
                got_by_client += receiver.on_data(body, now_ns)
            elif up:
                theirs.receive_ack(body, now_ns)
            else:
                sender.on_ack(body, now_ns)
        sender.on_time(now_ns)
        while chunk := sender.poll(now_ns, 1_100):
            put(now_ns, True, spec.DATA, chunk[3:])
        if now_ns >= receiver.ack_due_ns and (chunk := receiver.ack()):
            put(now_ns, True, spec.ACK, chunk[3:])
        while theirs.has_output(now_ns):
            if (ack := theirs.poll_ack(now_ns)) is not None:
                put(now_ns, False, spec.ACK, ack)
            while (data := theirs.poll_data(now_ns, 1_100)) is not None:
                put(now_ns, False, spec.DATA, data)
        assert sender.attempts < 10
        assert not theirs.failed
        if theirs.idle and not sender.waiting() and sender.timer_ns is None:
            break
    assert got_by_server == to_server
    assert got_by_client == to_client


@pytest.mark.parametrize("seed", range(4))
def test_both_senders_send_the_same_at_the_same_time(seed: int) -> None:
    """Windows, timer, fast retransmission: given the same acknowledgements, segment by segment."""
    rng = random.Random(seed)
    mine, theirs, receiver = spec.ReliableSender(), ReliableChannel(), spec.ReliableReceiver()
    wire: list[tuple[int, bool, bytes]] = []  # when, whether an ACK, body
    delivered: list[bytes] = []
    messages = [rng.randbytes(rng.randrange(6_000)) for _ in range(30)]
    for now_ns in range(0, 60_000 * MS, 5 * MS):
        if now_ns % (100 * MS) == 0 and now_ns < 3_000 * MS:
            mine.send(messages[now_ns // (100 * MS)])
            theirs.send(messages[now_ns // (100 * MS)])
        arrived = sorted(entry for entry in wire if entry[0] <= now_ns)
        wire = [entry for entry in wire if entry[0] > now_ns]
        for _, is_ack, body in arrived:
            if is_ack:
                mine.on_ack(body, now_ns)
                theirs.receive_ack(body, now_ns)
            else:
                delivered += receiver.on_data(body, now_ns)
        mine.on_time(now_ns)
        while (data := theirs.poll_data(now_ns, 1_005)) is not None:
            assert mine.poll(now_ns, 1_008) == spec.chunk(spec.DATA, data), now_ns // MS
            if rng.random() > 0.15:
                wire.append((now_ns + rng.randrange(20, 40) * MS, False, data))
        assert not mine.waiting()
        # Not the same nanosecond: they round differently.
        assert (mine.timer_ns or 0) == pytest.approx(theirs.deadline_ns() or 0, abs=1_000)
        if now_ns >= receiver.ack_due_ns and (ack := receiver.ack()) and rng.random() > 0.15:
            wire.append((now_ns + rng.randrange(20, 40) * MS, True, ack[3:]))
        if theirs.idle and now_ns > 3_000 * MS:
            break
    assert delivered == messages
    assert theirs.stats.fast > 0
    assert theirs.stats.timeouts > 0


# -- handshakes -----------------------------------------------------------------------------------


def test_a_hello_is_repeated_until_it_is_answered_or_given_up() -> None:
    entropy = random.Random(1).randbytes
    client = spec.Client(public_key(bytes(32)), bytes(32), entropy, 0)
    sent: list[tuple[int, bytes]] = []
    now_ns = 0
    while client.state == "greeting":
        sent += [(now_ns // MS, data) for data in client.poll(now_ns)]
        now_ns = client.deadline_ns()
    assert [at_ms for at_ms, _ in sent] == [0, *range(250, 5_000, 500)]
    assert len({data for _, data in sent}) == 1
    assert now_ns == spec.NEVER_NS


@pytest.mark.parametrize("path", [CLEAN, ROUGH], ids=["clean", "rough"])
def test_a_cookie_is_brought_back(path: Path) -> None:
    world = MixedWorld(11, path, Limits(complexity=0, cookies_above=0))
    guest = world.guest()
    world.connect(guest)
    assert guest.client.cookies == 1
    assert guest.client.server_agent.startswith("spaces")
    assert world.result(guest, "open", title="t", name="n")["type"] == "joined"


def test_refusals() -> None:
    world = MixedWorld(12, CLEAN, Limits(max_sessions=1, complexity=0))
    first = world.guest()
    world.connect(first)
    full, astray = world.guest(), world.guest(server=public_key(bytes(32)))
    world.run(200)
    assert (full.client.state, full.client.refused) == ("over", 3)
    assert (astray.client.state, astray.client.refused) == ("over", 2)

    client = spec.Client(world.link.key, bytes(32), world.rng.randbytes, world.now_ns)
    (hello,) = client.poll(world.now_ns)
    newer = hello[:1] + b"\x02" + hello[2:]
    world.node.receive_datagram(newer, b"newer".ljust(28, b"."), world.now_ns)
    ((answer, _),) = world.node.drain(world.now_ns)
    client.receive(answer, world.now_ns)
    assert (client.state, client.refused, answer[1]) == ("over", 1, 1)


def test_a_forged_welcome_costs_one_more_handshake() -> None:
    world = MixedWorld(13, CLEAN)
    forged: list[bytes] = []

    def forge(to: bytes, data: bytes) -> bool:
        if data[0] == spec.WELCOME and not forged:
            forged.append(data)
            world.guests[to].client.receive(data[:-1] + bytes([data[-1] ^ 1]), world.now_ns)
            world.pump(world.guests[to])
            return True
        return False

    world.lose = forge
    guest = world.guest()
    world.connect(guest)
    assert forged
    assert world.now_ns < 2_000 * MS
    assert world.result(guest, "open", title="t", name="n")["type"] == "joined"


# -- spaces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "seed"),
    [(CLEAN, 1), (ROUGH, 2), (ROUGH, 3)],
    ids=["clean", "rough-2", "rough-3"],
)
def test_an_evening_of_both_clients(path: Path, seed: int) -> None:
    level, silence = (CLEAN_LEVEL, CLEAN_SILENCE) if path is CLEAN else (ROUGH_LEVEL, ROUGH_SILENCE)
    world = MixedWorld(seed, path)
    NoncesNeverRepeat(world)
    host, listener = world.guest(TONES[0]), world.guest(TONES[1])
    person = world.person(TONES[2])
    world.connect(host, listener)
    world.run_until(lambda: person.client.phase is product.Phase.CONNECTED)

    joined = world.result(host, "open", title=" An evening ", name="host")
    assert joined["snapshot"]["title"] == "An evening"
    space = joined["space"]
    token = world.result(host, "invite")["invite"]
    answer = world.answer(person, frames.Join, space=space, name="person", invite=token)
    assert isinstance(answer, frames.Joined)
    assert world.result(listener, "join", space=space, name="listener")["type"] == "joined"
    assert world.result(listener, "bring_up", member=1)["code"] == "not_allowed"
    assert world.result(listener, "wave")["code"] == "unknown_type"
    assert world.result(listener, "mute", member="me")["code"] == "malformed"

    def everyone_hears(*talking: Guest | Person) -> None:
        everyone = (host, listener, person)
        for one in everyone:
            one.talking = one in talking
        world.run(2_500)
        from_ns = world.now_ns
        world.run(2_000)
        for one in everyone:
            hears(one, talking, from_ns, world.now_ns, level, silence)

    everyone_hears(host, person)

    # A hand goes up, is seen by all, and its owner comes on stage.
    assert world.result(listener, "raise_hand")["type"] == "ok"
    number = listener.view.you.id
    world.run_until(lambda: number in host.view.listed and host.view.listed[number].hand)
    world.run_until(lambda: any(m.id == number for m in person.client.view.hands))
    assert world.result(host, "bring_up", member=number)["type"] == "ok"
    world.run_until(lambda: listener.view.you.role == "speaker")
    everyone_hears(host, listener, person)
    seats = {host.view.you.seat, person.me.seat}
    assert seats <= {seat for seat in listener.levels if min(listener.levels[seat]) < 40}
    assert listener.view.you.seat not in listener.levels, "one is never in one's own mix"
    at_host = {c for seat, c in host.captures if seat == listener.view.you.seat}
    sent = {
        listener.client.voice_timestamp(at) // 120 % 2**16 for at in range(0, listener.said, 120)
    }
    assert at_host
    assert at_host <= sent

    # Appointed by one client, muted by another, and back.
    assert world.result(host, "appoint", member=number)["type"] == "ok"
    world.run_until(lambda: listener.view.you.role == "co_host")
    assert world.result(listener, "mute", member=person.me.id)["type"] == "ok"
    world.run_until(lambda: person.me.muted)
    everyone_hears(listener)
    assert isinstance(world.answer(person, frames.Unmute), frames.Ok)
    everyone_hears(person)
    assert isinstance(world.answer(person, frames.TakeDown), frames.Ok)
    everyone_hears()

    # The network gives one of them another address in the middle of what it hears.
    everyone_hears(host)
    world.network.rebind(listener.address)
    everyone_hears(host, listener)

    # The host leaves; the co-host goes on.
    host.talking = False
    assert world.result(host, "leave")["type"] == "ok"
    assert host.client.view is None
    world.run_until(lambda: listener.view.you.role == "host")
    newest = world.node.spaces[space].feed
    world.run_until(lambda: listener.view.number == person.client.view.number == newest.number)
    guest_agrees(world, listener)
    views_agree(world)
    every_request_has_one_answer(world)
    for guest in (host, listener):
        replies = [frame["re"] for frame in guest.frames if "re" in frame]
        assert sorted(replies) == sorted(set(replies)), "a request was answered twice"

    assert world.result(listener, "close")["type"] == "ok"
    world.run_until(lambda: listener.client.view is None)
    assert listener.frames[-1]["type"] == "ended"
    host.client.close(world.now_ns)
    world.pump(host)
    world.run(1_000)
    assert host.client.state == "over"
    assert host.client.lost() > 0 if path is ROUGH else host.client.lost() == 0


def test_a_crowd_and_its_roster() -> None:
    """300 members with the longest names: replies of twenty datagrams on a lossy network; and a
    crowd that comes at once is asked for cookies."""
    world = MixedWorld(21, ROUGH)
    host = world.guest()
    world.connect(host)
    space = world.result(host, "open", title="t", name="host")["space"]
    crowd = [world.guest() for _ in range(299)]
    world.connect(*crowd)
    assert any(guest.client.cookies for guest in crowd)
    names = [chr(0x1F600 + i % 64) * 37 + f"{i:03}" for i in range(len(crowd))]
    asked = [
        world.request(guest, "join", space=space, name=name)
        for guest, name in zip(crowd, names, strict=True)
    ]
    world.run_until(lambda: all(g.reply(i) for g, i in zip(crowd, asked, strict=True)))

    asker = crowd[7]
    pages, found, after, more = 0, [], 0, True
    while more:
        page = world.result(asker, "roster", after=after)
        found += page["members"]
        after, more, pages = page["members"][-1]["id"], page["more"], pages + 1
    assert pages == 3
    assert [member["id"] for member in found] == list(range(1, 301))
    assert sorted(member["name"] for member in found) == sorted([*names, "host"])

    everyone = [host, *crowd]
    world.run(200)  # the last news is out; who lost it learns of it from the PONGs, every 5 s
    number = world.node.spaces[space].feed.number
    world.run_until(lambda: all(g.view.number == number for g in everyone), ms=30_000)
    for guest in everyone:
        guest_agrees(world, guest)


@pytest.mark.parametrize(("changes", "asked"), [(20, "updates"), (150, "state")])
def test_what_the_feed_lost_is_asked_for(changes: int, asked: str) -> None:
    """All FEED datagrams to one member are lost.  It learns of it from a PONG or the next batch,
    and what is gone on the server is made good by a fresh snapshot."""
    world = MixedWorld(22, CLEAN)
    host, guest = world.guest(), world.guest()
    world.connect(host, guest)
    space = world.result(host, "open", title="t", name="host")["space"]
    world.result(guest, "join", space=space, name="guest")
    world.run(500)
    world.lose = lambda to, data: to == guest.address and data[0] in (spec.FEED, spec.CONTROL)
    for i in range(changes):
        world.request(host, "unmute" if i % 2 else "mute")
        world.run(20)
    world.lose = lambda to, data: to == guest.address and data[0] == spec.FEED
    world.run(7_000)
    assert asked in [frame["type"] for frame in guest.frames]
    guest_agrees(world, guest)
    quiet = len(guest.frames)
    world.run(7_000)
    assert len(guest.frames) == quiet, "what is not missing is not asked for"


def test_a_pong_from_before_a_change_of_spaces_is_not_believed() -> None:
    """It comes late and tells of the other space's feed, which is far ahead of this one's."""
    world = MixedWorld(24, CLEAN)
    host, other, guest = world.guest(), world.guest(), world.guest()
    person = world.person()
    world.connect(host, other, guest)
    world.run_until(lambda: person.client.phase is product.Phase.CONNECTED)
    old = world.result(host, "open", title="old", name="host")["space"]
    new = world.result(other, "open", title="new", name="host")["space"]
    for i in range(40):
        world.result(host, "unmute" if i % 2 else "mute")
    world.result(guest, "join", space=old, name="guest")
    world.answer(person, frames.Join, space=old, name="person")
    world.run(500)

    pongs: dict[bytes, bytes] = {}

    def catch(to: bytes, data: bytes) -> bool:
        if data[0] == spec.CONTROL and to in (guest.address, person.address) and to not in pongs:
            pongs[to] = data
            return True
        return False

    world.lose = catch
    guest.client.address_changed()
    world.pump(guest)
    person.client.address_changed(world.now_ns)
    world._transmit(person)
    world.run(200)
    assert len(pongs) == 2
    world.result(guest, "leave")
    world.result(guest, "join", space=new, name="guest")
    world.answer(person, frames.Leave)
    world.answer(person, frames.Join, space=new, name="person")
    world.run(500)
    for address, pong in pongs.items():
        world._deliver(SERVER, address, pong)
    assert not guest.view.behind
    assert not person.client.view.behind
    guest_agrees(world, guest)
    views_agree(world)


def test_a_listener_with_a_new_address_hears_on_at_once() -> None:
    world = MixedWorld(23, CLEAN)
    host, guest = world.guest(TONES[0]), world.guest(TONES[1])
    world.connect(host, guest)
    space = world.result(host, "open", title="t", name="host")["space"]
    world.result(guest, "join", space=space, name="guest")
    host.talking = True
    world.run(2_000)
    world.network.rebind(guest.address)
    lost_ns = world.now_ns
    world.run(1_000)  # the next keep-alive is further away
    hears(guest, [host], lost_ns + 400 * MS, world.now_ns, CLEAN_LEVEL, CLEAN_SILENCE)


# -- the end of sessions --------------------------------------------------------------------------


def test_the_same_person_from_elsewhere_and_the_servers_end() -> None:
    world = MixedWorld(31, CLEAN)
    key = world.rng.randbytes(32)
    host = world.guest(key=key)
    world.connect(host)
    space = world.result(host, "open", title="t", name="host")["space"]
    again = world.guest(key=key)
    world.connect(again)
    joined = world.result(again, "join", space=space, name="host")
    assert joined["you"]["role"] == "host"
    world.run(500)
    assert host.client.state == "over"
    assert host.client.closed is not None
    assert host.client.closed[0] == spec.REPLACED
    world.node.shut_down(world.now_ns)
    world._drain()
    world.run(500)
    assert again.client.closed is not None
    assert again.client.closed[0] == spec.SHUTDOWN
    world.run(5_000)
    assert not world.node.endpoint.sessions


def test_silence_ends_a_session_at_both_ends() -> None:
    world = MixedWorld(32, CLEAN)
    guest = world.guest()
    world.connect(guest)
    world.result(guest, "open", title="t", name="n")
    world.run(40_000)
    assert guest.client.state == "session", "keep-alives hold a session"
    world.network.lose_all(guest.address)
    world.run(36_000)
    assert guest.client.closed == (spec.TIMEOUT, "")
    assert not world.node.spaces
    world.run(5_000)
    assert not world.node.endpoint.sessions


def test_a_violation_closes_the_session() -> None:
    world = MixedWorld(33, CLEAN)
    guest = world.guest()
    world.connect(guest)
    world.run(200)
    bad = guest.client._seal_control(spec.chunk(spec.DATA, bytes(4) + b"\x07x"))
    world.send(guest.address, SERVER, bad)
    world.run(500)
    assert guest.client.closed is not None
    assert guest.client.closed[0] == spec.PROTOCOL

    other = world.guest()
    world.connect(other)
    world.run(200)
    (session,) = [
        s
        for s in world.node.endpoint.sessions.values()
        if s.connection.address == world.network._public[other.address]
    ]
    other.client.receive(
        session.connection._control([(spec.DATA, bytes(4) + b"\x07x")]), world.now_ns
    )
    world.pump(other)
    world.run(500)
    assert other.client.closed is not None
    assert other.client.closed[0] == spec.PROTOCOL
    assert session.connection.state.value == "closed"


@pytest.mark.parametrize("text", [b"", bytes(4), bytes(5), bytes(4) + b"\x04xx"])
def test_audio_that_is_none_is_dropped(text: bytes) -> None:
    """Nothing, no flags, no Opus, a flag that does not exist: the session goes on."""
    world = MixedWorld(34, CLEAN)
    host = world.guest(TONES[0])
    world.connect(host)
    world.result(host, "open", title="t", name="n")
    chains = host.client._chains
    assert chains is not None
    for _ in range(3):
        world.send(
            host.address, SERVER, chains.seal_media.seal(spec.AUDIO, chains.server_index, text)
        )
    world.run(500)
    assert world.result(host, "look")["type"] == "state"
