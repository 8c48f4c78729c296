"""The client that was written from SPEC.md alone, against the product: its server, its client.

Everything runs on the simulation's virtual clock and seeded network; the only parts that are not
the product's are `client_from_spec` and the network between.
"""

import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, cast

import msgpack
import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
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
from spaces_server.node import Limits, Node
from spaces_server.policy.gathering import SpaceRules
from spaces_server.policy.house import HouseRules
from tests.interop import client_from_spec as spec
from tests.sim.checkers import (
    NoncesNeverRepeat,
    every_request_has_one_answer,
    tones_heard,
)
from tests.sim.network import CLEAN, ROUGH, Path
from tests.sim.world import (
    BLOCK,
    EVENING_NS,
    RULES,
    SERVER,
    SILENCE,
    TICK_NS,
    Person,
    World,
    second_of,
)

TONES = (431.0, 617.0, 853.0)
CLEAN_LEVEL, CLEAN_SILENCE = (0.7, 1.4), 0.02
ROUGH_LEVEL, ROUGH_SILENCE = (0.25, 1.5), 0.12  # a fifth of it may be concealed
AN_HOUR_ON = EVENING_NS // 1_000_000_000 + 3_600


# -- what the document says of requests -----------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the tables of requests: its fields, the reply that it names."""

    section: str
    fields: dict[str, str]  # name -> form
    reply: str


def _table(name: str) -> list[list[str]]:
    text = SPEC.read_text(encoding="utf-8")
    table = text.split(f"<!-- table: {name} -->")[1].split("<!-- end -->")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return rows[2:]


@cache
def requests() -> dict[str, Row]:
    found = {}
    for section in ("in a space", "of people", "of finding", "of safety"):
        for kind, fields, reply, _ in _table(f"requests {section}"):
            forms = dict(re.findall(r"`(\w+)`: ([^`]*?)(?=<br>|$)", fields))
            del forms["id"]
            found[kind.strip("`")] = Row(section, forms, reply.strip("`"))
    return found


@cache
def errors() -> dict[str, frozenset[str]]:
    """The codes that each request may be answered with (9.11)."""
    codes = {row[0].strip("`") for row in _table("errors")}
    text = (
        SPEC.read_text(encoding="utf-8").split("The errors of each request")[1].split("### 9.12")[0]
    )
    always = set(re.findall(r"`(\w+)`", text.split("\n\n")[0])) & codes
    found: dict[str, set[str]] = {kind: set(always) for kind in requests()}
    invites = {"make_invite", "list_invites", "revoke_invite", "invite_person"}
    own: set[str] = set()
    before: set[str] = set()
    for line in text.split("\n\n")[1].splitlines()[2:]:
        who, what = line.strip("| ").split(" | ")
        named = [kind for kind in re.findall(r"`(\w+)`", who) if kind in found]
        given = set(re.findall(r"`(\w+)`", what)) & codes
        if not who.startswith("every other"):
            if what.startswith("the same"):
                given |= before
            before = given
            for kind in named:
                found[kind] |= given
            own |= set(named)
            continue
        sections = {
            "9.3": {k for k, row in requests().items() if row.section == "in a space"} | invites,
            "9.4": {k for k, row in requests().items() if row.section == "of people"},
            "9.5": {
                k for k, row in requests().items() if row.section in ("of finding", "of safety")
            }
            - invites,
        }
        others = next(kinds for number, kinds in sections.items() if number in who) - own
        for kind in others:
            found[kind] |= given
    return {kind: frozenset(given) for kind, given in found.items()}


# -- people with the client from the specification ------------------------------------------------


@dataclass(eq=False)
class Guest:
    """As the simulation's Person, but with the other client; Opus is done here, not in it."""

    name: str
    visitor: spec.Visitor
    key: bytes
    address: bytes
    tone_hz: float
    talking: bool = False
    said: int = 0  # samples
    heard: list[NDArray[np.float32]] = field(default_factory=list)
    heard_since_ns: int = 0
    frames: list[spec.Frame] = field(default_factory=list)
    asked: dict[int, str] = field(default_factory=dict)
    levels: dict[int, set[int]] = field(default_factory=dict)  # seat -> -dBov
    captures: list[tuple[int, int]] = field(default_factory=list)  # (seat, capture)
    encoder: Encoder = field(default_factory=lambda: Encoder(complexity=0))
    decoder: Decoder = field(default_factory=Decoder)
    in_talkspurt: bool = False

    @property
    def client(self) -> spec.Client:
        return self.visitor.client

    @property
    def view(self) -> spec.View:
        assert self.client.view is not None, f"{self.name} is in no space"
        return self.client.view

    @property
    def id(self) -> int:
        return self.view.you.id

    def reply(self, request_id: int) -> spec.Frame | None:
        return next((f for f in self.frames if f.get("re") == request_id), None)

    def told(self, kind: str) -> list[spec.Frame]:
        return [frame for frame in self.frames if frame["type"] == kind]

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

    def follows_the_document(self) -> None:
        """Every frame had its form, every request one reply, and that of its row."""
        assert self.client.ignored == 0
        replies = [frame for frame in self.frames if frame.get("re")]
        numbers = [frame["re"] for frame in replies]
        assert len(numbers) == len(set(numbers)), "a request was answered twice"
        for frame in replies:
            kind = self.asked[frame["re"]]
            if kind not in requests():
                assert frame["code"] == "unknown_type"
            elif frame["type"] == "error":
                assert frame["code"] in errors()[kind], f"{kind}: {frame}"
                assert frame["text"]
            else:
                assert frame["type"] == requests()[kind].reply, f"{kind}: {frame}"


class MixedWorld(World):
    """The simulation's world, where some people are guests.  `lose(to, data)`: whether a datagram
    to the client with that address (or, for SERVER, to the server) is lost."""

    made: list["MixedWorld"]  # by the test that runs

    def __init__(
        self,
        seed: int,
        path: Path = CLEAN,
        limits: Limits | None = None,
        rules: HouseRules = RULES,
    ) -> None:
        super().__init__(seed, path, limits, rules=rules)
        self.rules = rules
        self.guests: dict[bytes, Guest] = {}
        self.lose: Callable[[bytes, bytes], bool] = lambda to, data: False
        self.made.append(self)

    def restart(self) -> None:
        """The server is killed, and another begins with what is stored."""
        self.node = Node(
            self.node.endpoint.private_key,
            entropy=self.rng.randbytes,
            limits=Limits(complexity=0),
            rules=self.rules,
            loaded=self.shelf.load(),
            now_ns=self.now_ns,
            utc_offset_ns=EVENING_NS,
        )

    def guest(
        self, tone_hz: float = 0.0, *, key: bytes | None = None, server: bytes | None = None
    ) -> Guest:
        number = len(self.guests)
        key = key or self.rng.randbytes(32)
        guest = Guest(
            f"guest {number}",
            spec.Visitor(
                server or self.link.key,
                key,
                self.rng.randbytes,
                self.now_ns,
                agent="from the specification",
            ),
            key,
            f"guest {number}".encode().ljust(28, b"."),
            tone_hz,
        )
        self.guests[guest.address] = guest
        self.beat(guest)
        return guest

    def accounts(self, *handles: str, tones: Iterable[float] = ()) -> list[Guest]:
        """Some with accounts."""
        tones = iter(tones)
        guests = [self.guest(next(tones, 0.0)) for _ in handles]
        self.connect(*guests)
        for guest, handle in zip(guests, handles, strict=True):
            self.account(guest, handle)
        return guests

    def account(self, guest: Guest, handle: str) -> None:
        name = handle.capitalize()
        assert self.result(guest, "register", handle=handle, name=name)["type"] == "account"

    def owner(self) -> Guest:
        (owner,) = self.accounts("owner")
        code = self.node.owner_code(self.now_ns)
        self._drain()
        assert self.result(owner, "claim_server", code=code)["account"]["role"] == "owner"
        return owner

    def space(self, host: Guest, *others: Guest, **fields: Any) -> str:
        """A space with these as listeners; -> its id."""
        space: str = self.result(host, "open", **fields)["space"]
        for guest in others:
            self.joins(guest, space)
        return space

    def joins(self, guest: Guest, space: str, **fields: Any) -> spec.Frame:
        joined = self.result(guest, "join", space=space, **fields)
        assert joined["type"] == "joined", joined
        return joined

    def brings_up(self, host: Guest, *guests: Guest) -> None:
        for guest in guests:
            self.does(host, "offer", member=guest.id)
            self.does(guest, "accept")
        self.settle(host, *guests)

    def settle(self, *guests: Guest) -> None:
        """Until all the news is there."""
        self.run(400)
        self.run_until(
            lambda: all(g.view.number == self.node.spaces[g.view.space].feed.number for g in guests)
        )

    def _deliver(self, source: bytes, destination: bytes, data: bytes) -> None:
        if self.lose(destination, data):
            return
        guest = self.guests.get(destination)
        if guest is None:
            super()._deliver(source, destination, data)
        else:
            guest.visitor.receive(data, self.now_ns)
            self.pump(guest)

    def beat(self, guest: Guest) -> None:
        if guest.client.state == "session":
            guest.speak()
        if guest.tone_hz:
            guest.listen(self.now_ns)
        deadline_ns = guest.visitor.deadline_ns()
        if deadline_ns <= self.now_ns:
            self.pump(guest)
        if deadline_ns < spec.NEVER_NS:
            self.at(self.now_ns + TICK_NS, lambda: self.beat(guest))

    def pump(self, guest: Guest) -> None:
        guest.frames += guest.visitor.frames
        guest.visitor.frames.clear()
        for data in guest.visitor.poll(self.now_ns):
            self.send(guest.address, SERVER, data)
        guest.asked |= {number: kind for number, (kind, _) in guest.client.asked.items()}

    def request(self, guest: Guest, kind: str, **fields: Any) -> int:
        request_id = guest.visitor.request(kind, **fields)
        self.pump(guest)
        return request_id

    def replies(self, guest: Guest, *request_ids: int) -> list[spec.Frame]:
        self.run_until(lambda: all(guest.reply(i) is not None for i in request_ids))
        return [cast(spec.Frame, guest.reply(i)) for i in request_ids]

    def result(self, guest: Guest, kind: str, **fields: Any) -> spec.Frame:
        return self.replies(guest, self.request(guest, kind, **fields))[0]

    def does(self, guest: Guest, kind: str, **fields: Any) -> None:
        reply = self.result(guest, kind, **fields)
        assert reply["type"] == "ok", reply

    def refuses(self, expected: str, guest: Guest, kind: str, /, **fields: Any) -> spec.Frame:
        reply = self.result(guest, kind, **fields)
        assert reply.get("code") == expected, reply
        return reply

    def holds(self, guest: Guest, conversation: spec.Conversation[spec.T]) -> spec.T:
        """A conversation, to its end."""
        try:
            kind, fields = next(conversation)
            while True:
                kind, fields = conversation.send(self.result(guest, kind, **fields))
        except StopIteration as end:
            return cast(spec.T, end.value)

    def connect(self, *guests: Guest) -> None:
        self.run_until(lambda: all(g.client.state == "session" for g in guests))

    def quit(self, *guests: Guest) -> None:
        for guest in guests:
            guest.visitor.close(self.now_ns)
            self.pump(guest)
        self.run(200)
        assert all(guest.client.state == "over" for guest in guests)

    def closed(self, guest: Guest) -> int:
        self.run_until(lambda: guest.client.closed is not None)
        assert guest.client.closed is not None
        return guest.client.closed[0]


@pytest.fixture(autouse=True)
def everybody_follows_the_document() -> Iterator[None]:
    MixedWorld.made = []
    yield
    for world in MixedWorld.made:
        for guest in world.guests.values():
            guest.follows_the_document()
        world.shelf.close()


def hears(
    listener: Guest | Person,
    talking: Iterable[Guest | Person],
    from_ns: int,
    to_ns: int,
    level: tuple[float, float] = CLEAN_LEVEL,
    silence: float = CLEAN_SILENCE,
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
        server.id,
        server.name,
        server.handle,
        server.role.value,
        seat,
        server.muted,
        server.held,
        server.hand,
    )


def guest_agrees(world: MixedWorld, guest: Guest) -> None:
    view = guest.view
    space = world.node.spaces[view.space]
    snapshot = space.snapshot()
    assert view.number == snapshot.number, f"{guest.name} is behind"
    assert view.title == snapshot.title
    assert view.settings.slow_s == snapshot.settings.slow_s
    assert view.listeners == snapshot.listeners
    assert len(view.listed) == len(snapshot.members)
    for member in snapshot.members:
        assert same_member(view.listed[member.id], member), f"{guest.name}: {member}"
    assert same_member(view.you, space.view(view.you.id)), f"{guest.name} about itself"
    assert not view.wrong


def person_agrees(world: MixedWorld, person: Person) -> None:
    """The product's client, among ours."""
    view = person.client.view
    snapshot = world.node.spaces[view.id].snapshot()
    assert view.number == snapshot.number
    assert view.members == {m.id: m for m in snapshot.members}
    assert view.listeners == snapshot.listeners


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
        {
            "type": "join", "id": 1, "space": link.space, "name": "Ada", "despite_blocked": False,
            "packet_ms": 60,
        }
    )  # fmt: skip
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
        ("CROWD, server to client, counter 2", spec.CROWD),
    ):
        text = ours.open_media.open(example[name])
        assert text is not None
        made[re.sub(r"(, server.*)?, counter.*", "", name) + " plaintext"] = text
        made[name] = theirs.seal(kind, index, text)
    made["AUDIO plaintext, server to client"] = made.pop("AUDIO plaintext")
    assert spec.read_crowd(made["CROWD plaintext"]) == [
        mixed, spec.Mix(1_000_960, spec.LAST, (), silence)
    ]  # fmt: skip
    batch = spec.read_batch(made["FEED plaintext"])
    assert batch is not None
    view = spec.View(batch["space"], spec.Member(7, "Ada"), number=batch["first"] - 1)
    view.title = "Example"
    assert view.take_batch(batch["first"], batch["updates"], batch["hash"])
    assert view.listed == {7: spec.Member(7, "Ada", "ada", "speaker", 3)}
    assert view.listeners == 12
    assert view.you.role == "speaker"
    assert not view.wrong
    entries = zip(("space", "listeners", "member"), view.entries(), strict=True)
    made |= {f"state hash, entry {name}": entry for name, entry in entries}
    made["state hash"] = view.state_hash().to_bytes(4)

    # Evidence: opened by the device, and sealed the same.
    names = ("sender_key", "sealed_key", "data")
    sender_key, sealed_key, data_ = (example[f"evidence, {name}"] for name in names)
    recording = spec.open_evidence(data_, sender_key, sealed_key, client)
    packets = spec.read_recording(recording)
    assert packets == [(0xFFFFFE20, silence), (0x1E0, silence)]
    made["evidence, recording"] = spec.write_recording(packets)
    made["evidence, content key"] = content = bytes(range(0xA0, 0xC0))
    made["evidence, sender private"] = sender_private = bytes(range(0xC0, 0xE0))
    sealed = spec.seal_evidence(recording, content, sender_private, spec.public_key(client))
    made |= {f"evidence, {name}": part for name, part in zip(names, sealed, strict=True)}

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
        assert sender.attempts < 15
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


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "wave"},
        {"type": "ok"},
        {"type": "ok", "re": -1},
        {"type": "ok", "re": 2**32},
        {"type": "error", "re": 1, "code": "x", "text": None},
        {"type": "error", "re": True, "code": "x", "text": ""},
        {"type": "said", "re": 1, "line": 1.0},
        {"type": "joined", "re": 1, "space": "a b"},
        {"type": "note", "re": 1, "data": "text", "more": False},
        {"type": "note", "re": 1, "data": bytes(16_385), "more": False},
        {"type": "you", "you": {"id": 1, "name": "A", "role": "king"}},
        {"type": "you", "you": {"id": 1, "name": "A" * 41}},
        {"type": "you", "you": {"id": 1, "name": "A", "seat": 256}},
        {"type": "invited", "re": 1, "invite": "a" * 65},
        {"type": "ended", "text": "", 7: 7},
    ],
)
def test_frames_that_are_none_are_ignored(frame: dict[Any, Any]) -> None:
    assert spec.read_frame(msgpack.packb(frame)) is None


def test_frames_with_more_than_is_known_are_taken() -> None:
    you = {"id": 1, "name": "A", "colour": "red"}
    frame = {"type": "you", "space": "s", "you": you, "why": None}
    assert spec.read_frame(msgpack.packb(frame)) is not None
    ended = b"\x83\xa4type\xa5ended\xa5space\xa1s\xa4text\xa0"
    assert spec.read_frame(ended) is not None
    assert spec.read_frame(ended + b"\0") is None, "something follows"
    assert spec.read_frame(b"\x84" + ended[1:] + b"\xa4text\xa0") is None, "twice"
    assert spec.read_frame(b"") is None


# -- handshakes -----------------------------------------------------------------------------------


def test_a_hello_is_repeated_until_it_is_answered_or_given_up() -> None:
    entropy = random.Random(1).randbytes
    client = spec.Client(public_key(bytes(32)), bytes(32), entropy, 0)
    sent: list[tuple[int, bytes]] = []
    now_ns = 0
    while client.state == "greeting":
        sent += [(now_ns // MS, data) for data in client.poll(now_ns)]
        now_ns = client.deadline_ns()
    assert [at_ms for at_ms, _ in sent] == [0, 250, *range(750, 5_000, 1_000)]
    assert len({data for _, data in sent}) == 1
    assert now_ns == spec.NEVER_NS


@pytest.mark.parametrize("path", [CLEAN, ROUGH], ids=["clean", "rough"])
def test_a_cookie_is_brought_back(path: Path) -> None:
    world = MixedWorld(11, path, Limits(complexity=0, cookies_above=0))
    guest = world.guest()
    world.connect(guest)
    assert guest.client.cookies == 1
    assert guest.client.server_agent.startswith("spaces")
    world.account(guest, "somebody")


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
    world.account(guest, "somebody")


# -- requests -------------------------------------------------------------------------------------


def test_every_request_is_granted_once() -> None:
    """A tour through the tables of requests; the fixture looks at the replies' forms."""
    world = MixedWorld(40, rules=HouseRules(limited_rates=False, space=SpaceRules(evidence=True)))
    granted: set[str] = set()

    def does(guest: Guest, kind: str, **fields: Any) -> spec.Frame:
        reply = world.result(guest, kind, **fields)
        assert reply["type"] != "error", f"{kind}: {reply}"
        granted.add(kind)
        return reply

    owner = world.owner()
    granted |= {"claim_server", "register"}
    ada, bob, cyn = world.accounts("ada", "bob", "cyn", tones=TONES)
    for kind in ("who_am_i", "list_devices", "followers", "following", "blocked"):
        does(ada, kind)
    does(ada, "rename", name="Ada L.")
    phone = world.guest()
    world.connect(phone)
    does(phone, "add_device", code=does(ada, "make_device_code")["code"], label="phone")
    does(ada, "remove_device", device=does(ada, "list_devices")["devices"][1]["id"])
    assert does(bob, "find", person=" @ADA ")["person"]["name"] == "Ada L."
    does(bob, "follow", person="ada")
    does(bob, "unfollow", person="ada")
    does(bob, "block", person="ada")
    does(bob, "unblock", person="ada")

    does(owner, "set_access", access="limited")
    (dan,) = world.accounts("dan")
    does(dan, "ask_access", note="please")
    assert does(owner, "waiting_list")["waiting"][0]["handle"] == "dan"
    does(owner, "grant", person="dan")
    does(owner, "revoke", person="dan")
    does(owner, "set_access", access="open")
    assert world.closed(dan) == spec.EXPELLED
    does(owner, "appoint_moderator", person="cyn")
    does(owner, "ban", person="dan", reason="because")
    assert [a["handle"] for a in does(owner, "list_accounts", banned=True)["accounts"]] == ["dan"]
    does(owner, "unban", person="dan")

    planned = does(ada, "schedule", title="soon", starts=AN_HOUR_ON)["space"]["id"]
    assert does(bob, "list_upcoming")["spaces"][0]["id"] == planned
    does(bob, "remind", space=planned)
    spare = does(ada, "schedule", title="never", starts=AN_HOUR_ON)["space"]["id"]
    does(ada, "cancel_space", space=spare)
    joined = does(ada, "open", space=planned)
    emoji = joined["reactions"][0]
    assert joined["evidence"]
    assert does(bob, "list_spaces")["spaces"][0]["id"] == planned
    assert does(bob, "get_space", space=planned)["space"]["stage"] == 1
    token = does(ada, "make_invite")["invite"]
    does(ada, "list_invites")
    does(bob, "join", space=planned, invite=token)
    does(ada, "revoke_invite", invite=token)
    does(ada, "invite_person", person="cyn")
    does(cyn, "join", space=planned)
    number = does(cyn, "chat", text="hello")["line"]
    does(cyn, "delete_line", line=number)
    does(cyn, "react", emoji=emoji)
    does(cyn, "raise_hand")
    does(cyn, "lower_hand")
    does(cyn, "raise_hand")
    does(ada, "bring_up", member=cyn.id)
    does(ada, "take_down", member=cyn.id)
    for answer in ("decline", "accept"):
        does(ada, "offer", member=cyn.id)
        does(cyn, answer)
    does(ada, "appoint", member=cyn.id)
    does(ada, "dismiss", member=cyn.id)
    does(ada, "mute", member=cyn.id)
    does(ada, "let_unmute", member=cyn.id)
    does(cyn, "unmute")
    does(ada, "mute_all")
    does(ada, "set_volume", member=cyn.id, percent=50)
    does(ada, "configure", who_speaks="everyone", slow_s=0)
    does(bob, "take_down")
    does(bob, "step_up")
    does(ada, "let_unmute", member=bob.id)
    does(bob, "unmute")
    for kind in ("roster", "look"):
        does(bob, kind)
    seat = bob.view.you.seat
    assert {"seat": seat, "offset": 5} in does(bob, "clock", offset=5)["voices"]
    does(bob, "catch_up", after=0)
    bob.talking = True
    world.run(2_000)
    bob.talking = False
    report = does(cyn, "report", category="spam", note="noise", member=bob.id)
    assert report["evidence"]
    does(ada, "hand_over", member=bob.id)
    does(ada, "leave")
    does(bob, "remove", member=cyn.id)
    does(bob, "close")

    reports = does(owner, "list_reports")["reports"]
    assert reports[0]["person"] == "bob"
    does(owner, "get_evidence", report=report["report"])
    does(owner, "act", report=report["report"], outcome="warn", note="quiet, please")
    live = world.space(ada)
    does(cyn, "close_space", space=live, reason="late")
    does(bob, "seen", notice=bob.told("warned")[0]["notice"])
    does(cyn, "dismiss_moderator", person="cyn")

    does(ada, "send_message", person="bob", text="one\r\ntwo")
    assert does(bob, "list_messages")["messages"][0]["text"] == "one\ntwo"
    does(ada, "note_part", first=True, data=spec.write_note([b"\xf8\xff\xfe"] * 3))
    post = does(ada, "post", text="listen", note=True)["post"]
    assert does(ada, "home")["posts"][0]["note_ms"] == 60
    does(bob, "public_posts")
    does(bob, "get_note", post=post)
    does(ada, "delete_post", post=post)
    assert granted == set(requests())


@dataclass
class Guesses:
    """Values for the fields of requests, right ones among them."""

    rng: random.Random
    spaces: list[str]
    tokens: list[str]
    emojis: list[str]
    handles: list[str]

    def value(self, name: str, form: str) -> Any:
        if (choice := re.match(r"one of ([^,]*(?:, \"[^,]*)*)", form)) is not None:
            return self.rng.choice(re.findall(r'"(\w+)"', choice[1]))
        if form.startswith("boolean"):
            return self.rng.random() < 0.5
        if form.startswith("binary"):
            return spec.write_note([b"\xf8\xff\xfe"])
        if form.startswith("Settings"):
            return {"slow_s": self.rng.randrange(3)}
        if form.startswith("space id"):
            return self.rng.choice(self.spaces)
        if form.startswith("token"):
            return self.rng.choice(self.tokens)
        if form.startswith("handle"):
            return self.rng.choice(self.handles)
        if form.startswith("time"):
            return AN_HOUR_ON + self.rng.randrange(-7_200, 20 * 86_400)
        if name == "emoji":
            return self.rng.choice(self.emojis)
        if form.startswith("string"):
            return self.rng.choice(["text", " ", "a\tb", "text two"])
        if name == "percent":
            return self.rng.randrange(201)
        if name == "packet_ms":
            return self.rng.randrange(20, 61)
        assert form.startswith("u32"), (name, form)
        return self.rng.randrange(8) if name != "after" else self.rng.choice([0, 1, 2**31])


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_asked_is_answered_as_the_tables_say(seed: int) -> None:
    """Everybody asks everything, much of it nonsense; all get replies that 9.11 allows for."""
    world = MixedWorld(50 + seed, rules=HouseRules(limited_rates=False))
    owner = world.owner()
    cast_ = [owner, *world.accounts(*(f"person_{i}" for i in range(7)))]
    host, co_host, speaker = cast_[1:4]
    outsider = world.guest()
    listening = world.guest()
    world.connect(outsider, listening)
    space = world.space(host, co_host, speaker, *cast_[4:6], title="title")
    world.joins(listening, space, name="guest")
    world.brings_up(host, co_host, speaker)
    world.does(host, "appoint", member=co_host.id)
    planned = world.result(owner, "schedule", title="soon", starts=AN_HOUR_ON)["space"]["id"]
    token = world.result(host, "make_invite")["invite"]
    rng = random.Random(seed)
    guesses = Guesses(
        rng,
        [space, planned, "nowhere"],
        [token, "worthless"],
        [*host.view.reactions, "😀"],
        ["nobody", "owner", *(f"person_{i}" for i in range(7))],
    )
    everyone = [*cast_, outsider, listening]
    wanted = [(guest, kind) for guest in everyone for kind in requests()]
    rng.shuffle(wanted)
    # What would end the evening for many comes when there has been one.
    wanted.sort(key=lambda want: want[1] in ("ban", "close_space", "close", "act", "remove"))
    asked = []
    for n, (guest, kind) in enumerate(wanted):
        if guest.visitor.over:
            continue
        fields = {
            name: guesses.value(name, form)
            for name, form in requests()[kind].fields.items()
            if "optional" not in form or rng.random() < 0.5
        }
        asked.append((guest, world.request(guest, kind, **fields)))
        if n % 20 == 0:
            world.run(60)
    world.run_until(
        lambda: all(guest.visitor.over or guest.reply(number) for guest, number in asked), 20_000
    )
    codes = {frame["code"] for guest in everyone for frame in guest.told("error")}
    assert len(codes) > 20


def test_what_is_no_request_is_answered_with_an_error() -> None:
    world = MixedWorld(55)
    (guest,) = world.accounts("ada")

    def answer(message: bytes) -> tuple[int, str]:
        before = len(guest.frames)
        guest.client.say(message)
        world.pump(guest)
        world.run_until(lambda: len(guest.frames) > before)
        (frame,) = guest.frames[before:]
        guest.asked[frame["re"]] = "no request"
        return frame["re"], frame["code"]

    pack = msgpack.packb
    look: dict[str, Any] = {"type": "look", "id": 900}
    assert answer(pack({"type": "wave", "id": 901})) == (901, "unknown_type")
    assert answer(pack({"id": 907})) == (907, "unknown_type")
    assert answer(pack({"type": ["look"], "id": 908})) == (908, "unknown_type")
    assert answer(pack({"type": "ok", "re": 1})) == (0, "malformed")
    assert answer(b"") == (0, "malformed")
    assert answer(pack([1, 2])) == (0, "malformed")
    assert answer(pack({"type": "look"})) == (0, "malformed")
    assert answer(pack({"type": "look", "id": 0})) == (0, "malformed")
    assert answer(pack({"type": "look", "id": 2**32})) == (0, "malformed")
    assert answer(pack({"type": "look", "id": 1.0})) == (0, "malformed")
    assert answer(pack({"type": "look", "id": True})) == (0, "malformed")
    assert answer(pack(look) + b"\0") == (0, "malformed")
    assert answer(pack({"type": "find", "id": 902})) == (902, "malformed")
    assert answer(pack({"type": "find", "id": 903, "person": b"ada"})) == (903, "malformed")
    assert answer(pack({"type": "find", "id": 904, "person": "a" * 31})) == (904, "malformed")
    assert answer(pack({"type": "followers", "id": 905, "person": None})) == (905, "malformed")
    assert answer(pack({"type": "join", "id": 906, "space": "a b"})) == (906, "malformed")
    mute: dict[str, Any] = {"type": "send_message", "id": 909, "person": "ada", "text": ""}
    assert answer(pack(mute)) == (909, "malformed")
    # Unknown keys are ignored, everywhere.
    reply = world.result(guest, "schedule", title="t", starts=AN_HOUR_ON, settings={"colour": 1})
    assert reply["type"] == "space"
    assert world.result(guest, "who_am_i", why="to know")["type"] == "account"
    guest.frames = [frame for frame in guest.frames if guest.asked.get(frame["re"]) != "no request"]


def test_errors_are_looked_for_in_the_order_of_the_table() -> None:
    world = MixedWorld(57)
    host, ada, bob = world.accounts("host", "ada", "bob")
    guest = world.guest()
    world.connect(guest)
    for kind, fields in (("chat", {"text": "\x07"}), ("bring_up", {"member": 9}), ("accept", {})):
        world.refuses("not_joined", ada, kind, **fields)
    world.refuses("not_joined", guest, "make_invite")
    world.refuses("no_account", guest, "follow", person="nobody")
    world.refuses("no_account", guest, "open", title="\x07")
    world.refuses("no_account", guest, "report", category="spam", person="nobody")
    space = world.space(host, ada, settings={"chat": False})
    world.joins(guest, space)
    for kind, fields in (("open", {}), ("join", {"space": "nowhere"})):
        world.refuses("already_joined", ada, kind, **fields)
    world.refuses("no_such_member", ada, "offer", member=99)
    world.refuses("not_allowed", ada, "offer", member=guest.id)
    world.refuses("not_allowed", guest, "chat", text="x")
    world.refuses("chat_off", ada, "chat", text="\x07")
    world.refuses("no_such_line", guest, "delete_line", line=9)
    world.refuses("not_allowed", ada, "configure", title="\x07")
    world.refuses("bad_text", host, "configure", title="\x07")
    world.refuses("not_allowed", ada, "invite_person", person="nobody", text="\x07")
    world.refuses("bad_text", host, "invite_person", person="nobody", text="\x07")
    world.refuses("no_such_person", host, "invite_person", person="nobody")
    world.refuses("oneself", host, "invite_person", person="host")
    world.refuses("malformed", ada, "report", category="spam", note="\x07")
    world.refuses("no_such_member", ada, "report", category="spam", member=99)
    world.refuses("not_allowed", ada, "report", category="spam", member=ada.id)
    world.refuses("oneself", host, "report", category="spam", space=space)
    world.refuses("oneself", ada, "report", category="spam", person="ada")
    world.refuses("bad_text", ada, "schedule", title="\x07", starts=1)
    world.refuses("bad_time", ada, "schedule", title="t", starts=1)
    world.refuses("bad_text", ada, "post")
    world.refuses("no_such_person", ada, "send_message", person="nobody", text="\x07")
    world.refuses("bad_text", ada, "send_message", person="bob", text="\x07")
    world.refuses("bad_handle", guest, "register", handle="a b", name="\x07")
    world.refuses("handle_taken", guest, "register", handle="ada", name="\x07")
    world.refuses("bad_text", guest, "register", handle="eve", name="\x07")
    world.refuses("bad_code", guest, "add_device", code="x", label="\x07")
    world.refuses("not_allowed", ada, "act", report=99, outcome="ban")
    world.refuses("not_allowed", ada, "close_space", space="nowhere", reason="\x07")
    world.refuses("no_such_person", ada, "ban", person="nobody", reason="\x07")
    world.refuses("not_allowed", ada, "ban", person="bob", reason="\x07")
    assert bob.client.state == "session"


def test_handles_are_found_however_they_are_written() -> None:
    world = MixedWorld(58)
    ada, straße = world.accounts("ada_9", "straße")
    for written in ("@Ada_9", " ADA_9\t", "\uff20\uff21da_9", "\u1d2cda_\uff19"):
        assert world.result(straße, "find", person=written)["person"]["handle"] == "ada_9"
    assert world.result(ada, "find", person="STRA\u1e9eE")["person"]["handle"] == "straße"
    for none in ("@@ada_9", "ada__9", "ada-9", "a", "\u0430da_9"):
        world.refuses("no_such_person", ada, "find", person=none)
    newcomer = world.guest()
    world.connect(newcomer)
    bad = [
        "",
        "_",
        "9",
        "_9",
        "a\u0430",
        "a b",
        "@@a",
        "a9\u0669",
        "q\u0301\u0302\u0303",
        "a\u200d",
    ]
    for handle in bad:
        code = "bad_handle" if handle else "malformed"
        world.refuses(code, newcomer, "register", handle=handle, name="N")
    taken = ["ADA_9", "\u0251da_9", "ada__9"]
    for handle in taken:
        world.refuses("handle_taken", newcomer, "register", handle=handle, name="N")
    account = world.result(newcomer, "register", handle="\u7d75\u306e\u30ab\u30fcx", name="N")
    assert account["account"]["handle"] == "\u7d75\u306e\u30ab\u30fcx"


def test_buckets_are_as_large_as_the_table_says() -> None:
    text = SPEC.read_text(encoding="utf-8").split("### 9.13")[1].split("## 10.")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    world = MixedWorld(59, rules=HouseRules())
    host, ada, _ = world.accounts("host", "ada", "bob")
    newcomer = world.guest()
    world.connect(newcomer)
    world.space(host, ada)
    guesses = Guesses(random.Random(1), ["s"], ["x"], [ada.view.reactions[0]], ["bob"])
    for row in rows:
        kinds, at_once = re.findall(r"`(\w+)`", row[0]), int(row[2])
        asker = {"register": newcomer, "invite_person": host}.get(kinds[0], ada)
        asked = []
        fast = at_once > 100  # and so quick to fill again that some more are taken meanwhile
        for i in range(at_once + (at_once // 2 if fast else 2)):
            kind = kinds[i % len(kinds)]
            forms = requests()[kind].fields.items()
            fields = {name: guesses.value(name, form) for name, form in forms if name != "note"}
            fields |= {"text": "text"} if "text" in fields else {}
            asked.append(world.request(asker, kind, **fields))
        codes = [reply.get("code") for reply in world.replies(asker, *asked)]
        assert codes[-2:] == ["rate_limited"] * 2, row
        assert fast or codes[at_once:] == codes[-2:], row
        assert "rate_limited" not in codes[:at_once], row
        world.run(500)
    assert len(rows) == 14


def test_a_server_that_cannot_store_anything_says_so() -> None:
    world = MixedWorld(97)
    host, ada = world.accounts("host", "ada")
    world.space(host, ada)
    world.shelf.held = True
    posted = world.request(ada, "post", text="news")
    world.run(60_000)
    world.refuses("unavailable", ada, "post", text="more news")
    muted = world.request(host, "mute")
    world.run(500)
    assert host.reply(muted) is None
    assert host.view.you.muted, "those within a space are carried out"
    # Whoever comes back now has to be patient.
    for _ in range(2):
        ada.visitor.nothing_listens(world.now_ns)
    world.run(5_000)
    refused = [frame for frame in ada.told("error") if ada.asked[frame["re"]] == "join"]
    assert 3 <= len(refused) <= 5
    assert {frame["code"] for frame in refused} == {"unavailable"}
    assert ada.client.view is None
    world.shelf.held = False
    world.replies(host, muted)
    world.run_until(lambda: ada.client.view is not None)
    assert ada.visitor.unanswered == [("post", {"text": "news"})]
    assert ada.reply(posted) is None


def test_too_many_requests_are_told_when_to_come_again() -> None:
    world = MixedWorld(56, rules=HouseRules())
    (ada,) = world.accounts("ada")
    world.space(ada)
    asked = [world.request(ada, "chat", text=str(i)) for i in range(7)]
    replies = world.replies(ada, *asked)
    assert [reply["type"] for reply in replies] == ["said"] * 5 + ["error"] * 2
    assert {reply["code"] for reply in replies[5:]} == {"rate_limited"}
    world.run(replies[-1]["retry_ms"])
    assert world.result(ada, "chat", text="patience")["type"] == "said"


@pytest.mark.parametrize("seed", range(2))
def test_texts_are_taken_and_refused_as_foreseen(seed: int) -> None:
    """Names of characters that are apt to be refused: what the server makes of them is what the
    document says."""
    world = MixedWorld(60 + seed)
    (ada,) = world.accounts("ada")
    rng = random.Random(seed)
    odd = (
        "\u200c\u200d\u200b\u034f\u2800 \u00a0\u2028\x07\x1c\x85\n\r\ue000\ufeff\u0301\u0308\u20dd"
    )
    plain = "aÄe\u0308漢अ❤️👩✋\u0915\u094d क"
    texts = ["".join(rng.choices(odd + plain * 3, k=rng.randrange(1, 9))) for _ in range(150)]
    texts += ["a" + "\u0302" * n for n in (3, 4, 5, 6)] + [
        "\u0302",
        "\u2800",
        "👩\u200d💻",
        "a\u200db",
    ]
    texts += ["e\u0301" * 40, "x" * 40, "\ufb01", " Ada ", "\x1cAda", "Ada\x85"]
    replies = world.replies(ada, *(world.request(ada, "rename", name=text) for text in texts))
    for text, reply in zip(texts, replies, strict=True):
        kept = spec.as_kept(text, 40)
        found = reply["account"]["name"] if reply["type"] == "account" else reply["code"]
        expected = "malformed" if len(text) > 40 else "bad_text" if kept is None else kept
        assert found == expected, ascii(text)
        if kept is not None:
            assert spec.shown(kept) == kept
    assert spec.shown("a\x1b[2J\u202eb") == "a\ufffd[2J\ufffdb"
    assert spec.shown("one\ntwo", lines=True) == "one\ntwo"
    assert spec.shown("one\ntwo") == "one\ufffdtwo"
    assert unicodedata.is_normalized("NFC", cast(str, spec.as_kept("e\u0301", 40)))


# -- people ---------------------------------------------------------------------------------------


def test_an_account_and_its_devices() -> None:
    world = MixedWorld(70)
    desk, phone = world.guest(), world.guest()
    world.connect(desk, phone)
    world.refuses("no_account", desk, "who_am_i")
    account = world.result(desk, "register", handle="@Ada_1", name=" Ada ")["account"]
    assert (account["handle"], account["name"]) == ("ada_1", "Ada")
    world.refuses("has_account", desk, "register", handle="ada_2", name="Ada")
    world.refuses("handle_taken", phone, "register", handle="ada_l", name="Eve")
    world.refuses("bad_handle", phone, "register", handle="12", name="Eve")
    first = world.result(desk, "make_device_code")["code"]
    code = world.result(desk, "make_device_code")["code"]
    world.refuses("bad_code", phone, "add_device", code=first, label="phone")
    (eve,) = world.accounts("eve")
    world.quit(desk)
    world.result(eve, "send_message", person="ada_1", text="hello")
    assert world.result(phone, "add_device", code=code, label="phone")["account"] == account
    desk = world.guest(key=desk.key)
    world.run(300)
    for device in (desk, phone):
        assert [frame["type"] for frame in device.visitor.kept.values()] == ["unread"]
    devices = world.result(desk, "list_devices")["devices"]
    assert [(d["label"], d.get("this", False)) for d in devices][1] == ("phone", False)
    world.refuses("has_account", phone, "add_device", code=code, label="phone")
    world.does(desk, "remove_device", device=devices[1]["id"])
    assert world.closed(phone) == spec.EXPELLED
    assert phone.visitor.over
    world.refuses("last_device", desk, "remove_device", device=devices[0]["id"])
    again = world.guest(key=phone.key)
    world.connect(again)
    world.refuses("no_account", again, "who_am_i")


def test_a_block_is_heard_and_read_by_nobody_else() -> None:
    world = MixedWorld(71)
    host, ada, bob = world.accounts("host", "ada", "bob", tones=TONES)
    world.does(ada, "block", person="bob")
    assert world.result(ada, "find", person="bob")["person"]["blocked"]
    assert world.result(bob, "find", person="ada")["person"].get("blocked", False) is False
    world.refuses("blocked", ada, "follow", person="bob")
    world.does(bob, "follow", person="ada")  # and nothing comes of it
    assert world.result(ada, "followers")["people"] == []
    world.refuses("blocked", ada, "send_message", person="bob", text="hello")
    assert world.result(bob, "send_message", person="ada", text="hello")["type"] == "sent"
    assert world.result(ada, "list_messages")["messages"] == []

    space = world.space(host, bob)
    world.brings_up(host, bob)
    world.refuses("someone_blocked", ada, "join", space=space)
    world.joins(ada, space, despite_blocked=True)
    host.talking = bob.talking = True
    world.run(1_000)
    from_ns = world.now_ns
    world.run(2_000)
    hears(ada, [host], from_ns, world.now_ns)
    hears(host, [bob], from_ns, world.now_ns)
    assert bob.view.you.seat not in ada.levels
    host.talking = bob.talking = False
    emoji = host.view.reactions[1]
    for guest, text in ((bob, "from bob"), (host, "from host"), (ada, "from ada")):
        assert world.result(guest, "chat", text=text)["type"] == "said"
        world.does(guest, "react", emoji=emoji)
    world.settle(host, ada, bob)
    lines = {g.name: [line.text for line in g.view.lines.values()] for g in (host, ada, bob)}
    assert lines[host.name] == ["from bob", "from host", "from ada"]
    assert lines[ada.name] == ["from host", "from ada"]
    assert lines[bob.name] == ["from bob", "from host"]
    for guest in (host, ada, bob):
        guest_agrees(world, guest)
        assert sum(u["counts"][emoji] for u in guest.view.shown_reactions) == 3
        by_name = {r["member"] for u in guest.view.shown_reactions for r in u["stage"]}
        assert by_name == {host.id} | (set() if guest is ada else {bob.id})

    # On stage later: a warning; into the space of a host who blocked one: no way.
    world.does(bob, "take_down")
    world.does(host, "offer", member=bob.id)
    world.does(bob, "accept")
    world.run(200)
    assert ada.told("blocked_on_stage")[-1]["member"] == bob.id
    world.does(host, "block", person="bob")
    world.run_until(lambda: bob.client.view is None)
    assert bob.told("removed")
    world.refuses("removed", bob, "join", space=space)
    world.does(ada, "unblock", person="bob")
    assert world.result(ada, "blocked")["people"] == []


def test_kept_notices_come_until_they_are_seen() -> None:
    world = MixedWorld(72)
    owner = world.owner()
    ada, bob = world.accounts("ada", "bob")
    space = world.result(ada, "schedule", title="soon", starts=AN_HOUR_ON)["space"]["id"]
    world.does(bob, "remind", space=space)
    world.does(bob, "follow", person="ada")
    world.quit(bob)
    assert world.result(ada, "send_message", person="bob", text="one")["type"] == "sent"
    assert world.result(ada, "send_message", person="bob", text="two")["type"] == "sent"
    assert world.result(ada, "open", space=space)["snapshot"]["title"] == "soon"

    bob = world.guest(key=bob.key)
    world.run_until(lambda: len(bob.visitor.kept) == 2)
    kinds = {frame["type"]: number for number, frame in bob.visitor.kept.items()}
    assert set(kinds) == {"unread", "started"}
    assert bob.visitor.kept[kinds["started"]]["host"] == "ada"
    texts = [m["text"] for m in world.holds(bob, spec.all_pages("list_messages", "messages"))]
    assert texts == ["two", "one"]
    world.does(bob, "seen", notice=kinds["unread"])
    world.quit(bob)
    bob = world.guest(key=bob.key)
    world.run(500)
    assert [frame["type"] for frame in bob.visitor.kept.values()] == ["started"]
    world.does(bob, "seen", notice=kinds["started"])
    assert bob.visitor.kept == {}
    world.result(ada, "send_message", person="bob", text="three")
    world.run_until(lambda: bool(bob.told("message")))
    assert bob.told("message")[0]["message"]["text"] == "three"

    report = world.result(bob, "report", category="other", person="ada", note="hm")["report"]
    number = world.result(bob, "report", category="other", person="ada")["report"]
    assert number == report, "the same again, while it is open"
    world.does(owner, "act", report=report, outcome="warn", note="mind your words")
    world.run(200)
    assert bob.told("outcome")[0]["report"] == report
    assert "mind your words" in ada.told("warned")[0]["text"]


def test_messages_come_in_pages() -> None:
    world = MixedWorld(73)
    ada, bob = world.accounts("ada", "bob")
    asked = [world.request(ada, "send_message", person="bob", text=f"{i}") for i in range(30)]
    world.replies(ada, *asked)
    found = world.holds(bob, spec.all_pages("list_messages", "messages", "before", person="ada"))
    assert [m["text"] for m in found] == [f"{i}" for i in reversed(range(30))]
    assert len(bob.told("messages")) == 3
    assert [m["message"]["text"] for m in bob.told("message")] == [f"{i}" for i in range(30)]


def test_a_limited_server_is_come_into_by_invitation() -> None:
    world = MixedWorld(74)
    owner = world.owner()
    (ada,) = world.accounts("ada")
    world.does(owner, "set_access", access="limited")
    bob, cyn = world.accounts("bob", "cyn")
    stranger = world.guest()
    world.connect(stranger)
    space = world.space(ada)
    world.refuses("no_access", bob, "list_spaces")
    world.refuses("no_guests", stranger, "list_spaces")
    world.refuses("no_guests", stranger, "join", space=space, name="me")
    world.refuses("no_access", bob, "join", space=space)
    world.does(cyn, "ask_access", note="let me in")
    assert world.result(ada, "invite_person", person="bob", text="come")["type"] == "invited"
    world.run(200)
    assert bob.told("access_granted")[0]["by"] == "ada"
    (message,) = world.result(bob, "list_messages")["messages"]
    world.joins(bob, message["space"], invite=message["invite"])
    assert world.result(bob, "who_am_i")["account"]["invited_by"] == "ada"
    world.does(owner, "set_access", access="open")
    world.run(200)
    assert cyn.told("access_granted")


# -- posts, reports -------------------------------------------------------------------------------


def test_a_voice_note_goes_out_in_parts_and_comes_back() -> None:
    world = MixedWorld(75)
    ada, bob = world.accounts("ada", "bob")
    encoder = Encoder(complexity=0)
    block = second_of(TONES[0])
    packets = [encoder.encode(block[i : i + BLOCK]) for i in range(0, 48_000, BLOCK)] * 10
    assert len(spec.write_note(packets)) > 2 * spec.MAX_PART_BYTES
    post = world.holds(ada, spec.post_note(packets, text="listen"))
    world.does(bob, "follow", person="ada")
    (info,) = world.result(bob, "home")["posts"]
    assert (info["id"], info["text"]) == (post, "listen")
    assert info["note_ms"] == spec.note_ms(packets) == 10_000
    assert world.holds(bob, spec.get_note(post)) == packets
    # In parts that the server cannot take: not begun, not whole, not Opus, too long.
    world.refuses("bad_note", ada, "post", note=True)
    for bad in ([*packets, b"\x03"], [b"\xf8\xff\xfe"] * 7_001):
        with pytest.raises(spec.RefusedError) as refused:
            world.holds(ada, spec.post_note(bad))
        assert refused.value.code == "bad_note"
    world.does(ada, "delete_post", post=post)
    with pytest.raises(spec.RefusedError) as refused:
        world.holds(bob, spec.get_note(post))
    assert refused.value.code == "no_such_post"


def test_a_moderator_opens_the_evidence() -> None:
    world = MixedWorld(76, rules=HouseRules(limited_rates=False, space=SpaceRules(evidence=True)))
    owner = world.owner()
    host, bob, late = world.accounts("host", "bob", "late", tones=TONES)
    space = world.space(host, bob)
    assert bob.view.evidence
    world.brings_up(host, bob)
    bob.talking = True
    world.run(3_000)
    bob.talking = False
    reported = world.result(host, "report", category="hate", note="listen", member=bob.id)
    assert reported["evidence"]
    world.does(owner, "appoint_moderator", person="late")
    (report,) = world.result(owner, "list_reports")["reports"]
    assert (report["person"], report["space"], report["evidence_s"]) == ("bob", space, 3)

    packets = world.holds(owner, spec.get_evidence(report["id"], owner.key))
    times = [at for at, _ in packets]
    assert times == [(times[0] + i * BLOCK) % 2**32 for i in range(len(times))]
    assert 140 <= len(packets) <= 152
    sound = np.zeros((len(packets), BLOCK), np.float32)
    decoder = Decoder()
    for row, (_, opus) in zip(sound, packets, strict=True):
        decoder.decode(opus, row)
    bob.heard, bob.heard_since_ns = list(sound), 0
    found = tones_heard(cast(Person, bob), 0, 2_500 * MS, TONES)
    assert found[TONES[1]] > 0.7
    assert found[TONES[0]] < 0.02

    with pytest.raises(InvalidTag):
        world.holds(owner, spec.get_evidence(report["id"], late.key))
    with pytest.raises(spec.RefusedError) as refused:
        world.holds(late, spec.get_evidence(report["id"], late.key))
    assert refused.value.code == "no_evidence", "sealed before this one was a moderator"
    world.refuses("not_allowed", host, "get_evidence", report=report["id"])
    world.does(owner, "act", report=report["id"], outcome="ban")
    assert world.closed(bob) == spec.EXPELLED
    again = world.guest(key=bob.key)
    world.connect(again)
    world.refuses("banned", again, "join", space=space)
    assert world.result(again, "who_am_i")["account"]["banned"]
    world.run(200)
    assert host.told("outcome")[0]["outcome"] == "ban"
    assert world.result(owner, "list_reports", closed=True)["reports"][0]["moderator"] == "owner"


# -- the stage ------------------------------------------------------------------------------------


def test_ways_onto_the_stage_and_off_it() -> None:
    world = MixedWorld(80)
    host, ada, bob = world.accounts("host", "ada", "bob")
    space = world.space(host, ada, bob, title="Stage")
    world.refuses("not_allowed", ada, "step_up")
    world.does(host, "follow", person="ada")
    world.does(host, "configure", who_speaks="followed")
    world.refuses("not_allowed", bob, "step_up")
    world.does(ada, "step_up")
    world.does(host, "configure", who_speaks="everyone", title=" Open stage ")
    world.does(bob, "step_up")
    world.settle(host, ada, bob)
    assert bob.view.title == "Open stage"
    assert bob.view.settings.who_speaks == "everyone"
    assert [m.role for m in host.view.listed.values()] == ["host", "speaker", "speaker"]
    assert {ada.view.you.seat, bob.view.you.seat, host.view.you.seat} == {
        m.seat for m in host.view.listed.values()
    }

    world.does(bob, "take_down")
    world.refuses("not_offered", bob, "accept")
    world.does(ada, "take_down")
    world.refuses("not_allowed", ada, "offer", member=bob.id)
    world.does(host, "offer", member=bob.id)
    world.run(100)
    assert bob.told("offered")[-1]["by"] == host.id
    world.does(bob, "decline")
    world.run(100)
    assert host.told("declined")[-1]["member"] == bob.id
    world.brings_up(host, bob)
    world.refuses("no_hand", host, "bring_up", member=ada.id)
    world.does(ada, "raise_hand")
    world.settle(host)
    assert (
        host.view.listed[ada.id].hand * 1_000 * MS // 10**10
        == (world.now_ns + EVENING_NS) // 10**10
    )
    world.does(host, "bring_up", member=ada.id)
    world.does(host, "appoint", member=ada.id)

    # Handed over; the blocks and followers that count are those of the new host.
    world.does(host, "hand_over", member=bob.id)
    world.settle(host, ada, bob)
    assert [g.view.you.role for g in (host, ada, bob)] == ["co_host", "co_host", "host"]
    world.does(bob, "dismiss", member=host.id)
    world.refuses("not_allowed", host, "close")
    world.does(ada, "remove", member=host.id)
    world.run(100)
    assert host.client.view is None
    assert host.told("removed")
    world.refuses("removed", host, "join", space=space)
    world.refuses("not_joined", host, "look")
    world.settle(ada, bob)
    for guest in (ada, bob):
        guest_agrees(world, guest)


def test_mutes_holds_and_volumes_are_heard() -> None:
    world = MixedWorld(81)
    host, ada, bob = everyone = world.accounts("host", "ada", "bob", tones=TONES)
    world.space(host, ada, bob)
    world.brings_up(host, ada, bob)

    def heard_by(listener: Guest, *talking: Guest) -> None:
        for guest in everyone:
            guest.talking = guest in (ada, host)
        world.run(1_200)
        from_ns = world.now_ns
        world.run(1_000)
        hears(listener, talking, from_ns, world.now_ns)

    heard_by(bob, host, ada)
    world.does(host, "mute", member=ada.id)
    world.run(100)
    assert (ada.view.you.muted, ada.view.you.held) == (True, True)
    world.refuses("muted_by_moderator", ada, "unmute")
    heard_by(bob, host)
    world.does(host, "let_unmute", member=ada.id)
    world.does(ada, "unmute")
    world.does(bob, "set_volume", member=host.id, percent=3)
    world.refuses("not_allowed", bob, "set_volume", member=bob.id, percent=50)
    heard_by(bob, ada)
    world.does(bob, "set_volume", member=host.id, percent=100)
    world.does(host, "mute_all")
    world.run(100)
    assert ada.view.you.muted
    assert not host.view.you.muted
    world.refuses("muted_by_moderator", bob, "unmute")
    world.does(host, "configure", free_unmute=True)
    world.does(bob, "unmute")
    heard_by(bob, host)
    for guest in everyone:
        guest_agrees(world, guest)


def test_a_crowd_hears_what_one_hears_alone() -> None:
    world = MixedWorld(83, limits=Limits(complexity=0, crowd_above=1))
    host, ada, bob = everyone = world.accounts("host", "ada", "bob", tones=TONES)
    kinds: dict[bytes, set[int]] = {}
    world.on_send.append(
        lambda _, to, data: kinds.setdefault(world.network._private.get(to, to), set()).add(data[0])
    )
    world.space(host, ada, bob)
    host.talking = True
    for crowded in (True, False):
        world.run(800)
        kinds.clear()
        from_ns = world.now_ns
        world.run(1_000)
        assert (spec.CROWD in kinds[bob.address]) is crowded
        assert (spec.AUDIO in kinds[bob.address]) is not crowded
        for listener in (ada, bob):
            hears(listener, [guest for guest in everyone if guest.talking], from_ns, world.now_ns)
        if crowded:
            world.brings_up(host, ada, bob)
            host.talking, ada.talking = True, False
    assert bob.client.lost() == 0
    for guest in everyone:
        guest_agrees(world, guest)


@pytest.mark.parametrize(
    ("text", "packets"),
    [
        (b"", 0),
        (b"\0", 0),
        (b"\0\0", 0),
        (b"\0\6" + bytes(6), 0),
        (b"\0\7" + bytes(7), 1),
        (b"\0\7" + bytes(6), 0),
        ((b"\0\7" + bytes(7)) * 2 + b"\0\7\0\0\0\0\4\0\0", 2),
        ((b"\0\7" + bytes(7)) * 4, 3),
    ],
)
def test_crowds_are_read_up_to_what_is_wrong(text: bytes, packets: int) -> None:
    assert len(spec.read_crowd(text)) == packets


def test_chat_and_who_may_take_it_back() -> None:
    world = MixedWorld(82)
    host, ada = world.accounts("host", "ada")
    guest, late = world.guest(), world.guest()
    world.connect(guest, late)
    space = world.space(host, ada)
    world.joins(guest, space, name=" Somebody ")
    assert (guest.view.you.role, guest.view.you.name) == ("guest", "Somebody")
    first = world.result(ada, "chat", text=" caf\u0065\u0301 ")["line"]
    second = world.result(host, "chat", text="welcome")["line"]
    world.joins(late, space)
    world.settle(host, ada, guest)
    assert guest.view.lines[first] == spec.Line(ada.id, "Ada", "ada", "caf\u00e9")
    assert late.view.lines == {}
    world.refuses("not_allowed", guest, "chat", text="me too")
    world.refuses("bad_text", ada, "chat", text="😀" * 200)
    world.refuses("not_allowed", ada, "delete_line", line=second)
    world.does(host, "delete_line", line=first)
    world.refuses("no_such_line", ada, "delete_line", line=first)
    world.settle(guest)
    assert set(guest.view.lines) == {second}
    world.refuses("bad_reaction", ada, "react", emoji="🦀")
    world.refuses("bad_reaction", ada, "react", emoji="🦀" * 16)
    world.refuses("malformed", ada, "react", emoji="🦀" * 17)
    world.does(host, "configure", chat=False)
    world.refuses("chat_off", ada, "chat", text="still there?")
    world.does(host, "configure", chat=True, slow_s=30)
    retry_ms = world.refuses("rate_limited", ada, "chat", text="too soon")["retry_ms"]
    assert 25_000 < retry_ms <= 30_000
    assert world.result(host, "chat", text="as fast as ever")["type"] == "said"
    world.settle(host, guest)
    # A snapshot of the same number keeps the lines; one of another brings doubt about them.
    world.result(guest, "look")
    assert set(guest.view.lines) == {second, second + 1}
    world.lose = lambda to, data: to == guest.address and data[0] == spec.FEED
    world.does(host, "delete_line", line=second)
    world.run(400)
    world.result(guest, "look")
    assert guest.view.lines == {}


def test_invites_and_the_doors_they_open() -> None:
    world = MixedWorld(83)
    host, ada, bob, cyn = world.accounts("host", "ada", "bob", "cyn")
    guest = world.guest()
    world.connect(guest)
    space = world.space(host, settings={"visibility": "followers"})
    world.refuses("followers_only", ada, "join", space=space)
    world.refuses("bad_invite", ada, "join", space=space, invite="x")
    world.does(ada, "follow", person="host")
    world.joins(ada, space)
    once = world.result(host, "make_invite", role="co_host", max_uses=1)["invite"]
    link = f"spaces://h/{space}?key={'A' * 43}&invite={once}"
    assert spec.read_link(link).invite == once
    assert world.joins(bob, space, invite=once)["you"]["role"] == "co_host"
    world.refuses("invite_used_up", cyn, "join", space=space, invite=once)
    world.refuses("not_allowed", bob, "make_invite", role="co_host")
    short = world.result(bob, "make_invite", lifetime_s=5)["invite"]
    world.refuses("no_account", guest, "join", space=space, invite=short, name="g")
    world.run(6_000)
    world.refuses("invite_expired", cyn, "join", space=space, invite=short)
    listening = world.result(bob, "make_invite", role="listener")["invite"]
    assert world.joins(guest, space, invite=listening)["you"]["role"] == "guest"
    infos = world.result(host, "list_invites")["invites"]
    assert {info["invite"] for info in infos} == {listening}
    assert world.result(host, "invite_person", person="cyn", role="speaker")["type"] == "invited"
    world.run(100)
    invitation = cyn.told("message")[0]["message"]
    world.refuses("not_allowed", ada, "revoke_invite", invite=listening)
    world.refuses("bad_invite", bob, "revoke_invite", invite="x")
    assert world.joins(cyn, space, invite=invitation["invite"])["you"]["role"] == "speaker"
    world.does(host, "close")
    world.run(100)
    assert all(g.client.view is None for g in (host, ada, bob, cyn, guest))
    world.refuses("space_ended", ada, "join", space=space)
    planned = world.result(host, "schedule", title="t", starts=AN_HOUR_ON)["space"]["id"]
    world.refuses("not_started", ada, "join", space=planned)


# -- evenings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "seed"),
    [(CLEAN, 1), (ROUGH, 2)],
    ids=["clean", "rough"],
)
def test_an_evening_of_both_clients(path: Path, seed: int) -> None:
    level, silence = (CLEAN_LEVEL, CLEAN_SILENCE) if path is CLEAN else (ROUGH_LEVEL, ROUGH_SILENCE)
    world = MixedWorld(seed, path)
    NoncesNeverRepeat(world)
    host, listener = world.accounts("host", "listener", tones=TONES)
    person = world.person(TONES[2])
    world.run_until(lambda: person.client.phase is product.Phase.CONNECTED)
    world.registered([person])

    joined = world.result(host, "open", title=" An evening ")
    assert joined["snapshot"]["title"] == "An evening"
    space = joined["space"]
    token = world.result(host, "make_invite")["invite"]
    answer = world.answer(person, frames.Join, space=space, invite=token)
    assert isinstance(answer, frames.Joined)
    world.joins(listener, space)
    world.refuses("not_allowed", listener, "bring_up", member=1)
    world.refuses("unknown_type", listener, "wave")
    world.refuses("malformed", listener, "mute", member="me")

    def everyone_hears(*talking: Guest | Person) -> None:
        everyone = (host, listener, person)
        for one in everyone:
            one.talking = one in talking
        world.run(1_200)
        from_ns = world.now_ns
        world.run(1_000)
        for one in everyone:
            hears(one, talking, from_ns, world.now_ns, level, silence)

    everyone_hears(host, person)

    # A hand goes up, is seen by all, and its owner comes on stage.
    world.does(listener, "raise_hand")
    number = listener.id
    world.run_until(lambda: number in host.view.listed and host.view.listed[number].hand > 0)
    world.run_until(lambda: number in person.client.view.members)
    world.does(host, "bring_up", member=number)
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
    world.does(host, "appoint", member=number)
    world.run_until(lambda: listener.view.you.role == "co_host")
    world.does(listener, "mute", member=person.me.id)
    world.run_until(lambda: person.me.muted)
    everyone_hears(listener)
    world.does(listener, "let_unmute", member=person.me.id)
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
    world.does(host, "leave")
    assert host.client.view is None
    world.run_until(lambda: listener.view.you.role == "host")
    newest = world.node.spaces[space].feed
    world.run_until(
        lambda: listener.view.number == person.client.view.number == newest.number, 30_000
    )
    guest_agrees(world, listener)
    person_agrees(world, person)
    every_request_has_one_answer(world)

    world.does(listener, "close")
    world.run_until(lambda: listener.client.view is None)
    assert listener.told("ended")
    host.visitor.close(world.now_ns)
    world.pump(host)
    world.run(1_000)
    assert host.client.state == "over"
    assert host.client.lost() > 0 if path is ROUGH else host.client.lost() == 0


def test_who_reports_losses_gets_earlier_frames_again() -> None:
    world = MixedWorld(31, Path(jitter_ms=2, loss=0.08, burst_packets=2))
    host, listener = world.accounts("host", "listener", tones=TONES)
    world.space(host, listener)
    host.talking = True
    world.run(3_000)
    recovered, lost = listener.client.playout.recovered, listener.client.lost()
    world.run(20_000)
    lost = listener.client.lost() - lost
    assert lost > 40
    assert listener.client.playout.recovered - recovered > lost / 2


def test_who_reports_a_queue_gets_less() -> None:
    world = MixedWorld(32)
    host, listener, other = world.accounts("host", "listener", "other", tones=TONES)
    world.space(host, listener, other)
    host.talking = True

    def half_rate() -> list[bool]:
        classes = [c for mix in world.node.mixer._awake for c in mix.plan.classes]
        return sorted(c.remedy.half_rate for c in classes)

    world.run(3_000)
    assert half_rate() == [False]
    world.network.narrow(listener.address, 40_000)
    world.run(3_000)
    assert half_rate() == [False, True]
    world.network.narrow(listener.address, None)
    world.run(20_000)
    assert half_rate() == [False]


def test_a_crowd_and_its_roster() -> None:
    """110 members with the longest names: replies of twenty datagrams on a lossy network; and a
    crowd that comes at once is asked for cookies."""
    world = MixedWorld(21, ROUGH, Limits(complexity=0, cookies_above=50))
    (host,) = world.accounts("host")
    space = world.space(host)
    crowd = [world.guest() for _ in range(109)]
    world.connect(*crowd)
    assert any(guest.client.cookies for guest in crowd)
    names = [chr(0x1F600 + i % 64) * 37 + f"{i:03}" for i in range(len(crowd))]
    asked = [
        world.request(guest, "join", space=space, name=name)
        for guest, name in zip(crowd, names, strict=True)
    ]
    world.run_until(lambda: all(g.reply(i) for g, i in zip(crowd, asked, strict=True)))

    members = world.holds(crowd[7], spec.whole_roster())
    assert len(crowd[7].told("roster_page")) > 1
    assert [member.id for member in members] == list(range(1, 111))
    assert sorted(member.name for member in members) == sorted([*names, "Host"])

    everyone = [host, *crowd]
    world.run(200)  # the last news is out; who lost it learns of it from the PONGs, every 5 s
    number = world.node.spaces[space].feed.number
    world.run_until(lambda: all(g.view.number == number for g in everyone), ms=30_000)
    for guest in everyone:
        guest_agrees(world, guest)


# -- the feed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "asked"), [(20, "updates"), (300, "state")])
def test_what_the_feed_lost_is_asked_for(changes: int, asked: str) -> None:
    """All FEED datagrams to one member are lost.  It learns of it from a PONG or the next batch,
    and what is gone on the server is made good by a fresh snapshot."""
    world = MixedWorld(22)
    (host,) = world.accounts("host")
    guest = world.guest()
    world.connect(guest)
    world.joins(guest, world.space(host))
    world.run(500)
    world.lose = lambda to, data: to == guest.address and data[0] in (spec.FEED, spec.CONTROL)
    for i in range(changes):
        world.request(host, "unmute" if i % 2 else "mute")
        world.run(20)
    world.lose = lambda to, data: to == guest.address and data[0] == spec.FEED
    world.run(7_000)
    assert guest.told(asked)
    guest_agrees(world, guest)
    quiet = len(guest.frames)
    world.run(7_000)
    assert len(guest.frames) == quiet, "what is not missing is not asked for"


def test_what_does_not_fit_into_one_frame_is_caught_up_with_in_parts() -> None:
    world = MixedWorld(25)
    (host,) = world.accounts("host")
    guest = world.guest()
    world.connect(guest)
    world.joins(guest, world.space(host))
    world.lose = lambda to, data: to == guest.address and data[0] in (spec.FEED, spec.CONTROL)
    texts = [chr(0x4E00 + i) * 233 for i in range(250)]
    for text in texts:
        world.request(host, "chat", text=text)
        world.run(20)
    world.lose = lambda to, data: to == guest.address and data[0] == spec.FEED
    world.run_until(lambda: bool(guest.told("updates")))
    began_ns = world.now_ns
    world.run_until(lambda: len(guest.view.lines) == 250)
    assert len(guest.told("updates")) >= 3
    assert world.now_ns - began_ns < 1_000 * MS, "one part after the other"
    assert [line.text for line in guest.view.lines.values()] == texts
    assert not guest.told("state")
    guest_agrees(world, guest)


def test_a_view_that_is_wrong_is_found_out_and_put_right() -> None:
    world = MixedWorld(26)
    host, guest = world.accounts("host", "ada")
    world.space(host, guest)
    world.settle(host, guest)
    guest.view.listed[host.id] = spec.Member(host.id, "Mallory", "host", "host", 0)
    assert not guest.view.wrong, "nothing says so yet"
    world.does(host, "mute")
    world.run(1_000)
    assert not guest.told("state"), "the update put that right itself"
    guest.view.listeners += 1
    world.does(host, "unmute")
    world.run(1_000)
    assert len(guest.told("state")) == 1
    guest_agrees(world, guest)
    world.does(host, "mute")
    world.settle(guest)

    # It does not help: asked for less and less often.
    def spoil(_: World) -> None:
        guest.view.title = "spoilt"

    world.after_tick.append(spoil)
    started_ns = world.now_ns
    looks: list[int] = []
    while world.now_ns < started_ns + 16_000 * MS:
        world.does(host, "unmute" if host.view.you.muted else "mute")
        world.run(260)
        if len(guest.told("state")) > 1 + len(looks):
            looks.append((world.now_ns - started_ns) // (1_000 * MS))
    assert [b - a for a, b in pairwise(looks)] == [2, 4, 8]
    world.after_tick.remove(spoil)
    world.run_until(lambda: guest.view.title == "A space", 40_000)


def test_a_snapshot_that_comes_late_takes_the_view_back_and_nothing_is_lost_by_it() -> None:
    world = MixedWorld(27)
    host, guest = world.accounts("host", "ada")
    world.space(host, guest)
    world.settle(host, guest)
    world.lose = lambda to, data: to == guest.address and data[0] == spec.CONTROL
    asked = world.request(guest, "look")
    world.run(100)
    world.does(host, "mute")
    world.run(500)
    ahead = guest.view.number
    assert guest.view.listed[host.id].muted
    world.lose = lambda to, data: False
    (state,) = world.replies(guest, asked)
    assert state["snapshot"]["number"] < ahead
    world.run_until(lambda: guest.view.number == ahead)
    guest_agrees(world, guest)


def test_updates_still_to_come_are_as_those_that_are_gone() -> None:
    world = MixedWorld(28)
    (host,) = world.accounts("host")
    world.space(host)
    world.settle(host)
    assert world.result(host, "catch_up", after=host.view.number)["updates"] == []
    world.refuses("too_old", host, "catch_up", after=host.view.number + 1)


def test_an_error_in_the_place_of_what_was_missed_ends_the_asking() -> None:
    """Until there is reason to ask again."""
    world = MixedWorld(29, rules=HouseRules())
    host, guest = world.accounts("host", "ada")
    world.space(host, guest)
    world.settle(host, guest)
    for _ in range(300):  # more than may be asked for at once
        world.request(guest, "who_am_i")
    guest.view.newest += 1
    world.run(6_000)
    answers = [f for f in guest.frames if guest.asked.get(f.get("re", 0)) == "catch_up"]
    assert [answer.get("code") for answer in answers] == ["rate_limited"]
    world.does(host, "mute")
    world.settle(guest)
    guest_agrees(world, guest)


def test_hands_of_the_same_second_stand_in_the_same_order_for_all() -> None:
    world = MixedWorld(30)
    host, ada, bob, cyn = world.accounts("host", "ada", "bob", "cyn")
    space = world.space(host, ada, bob, cyn)
    world.run(1_000 - world.now_ns // MS % 1_000)
    for guest in (cyn, ada):
        world.does(guest, "raise_hand")
    (late,) = world.accounts("late")
    world.joins(late, space)
    world.does(bob, "raise_hand")
    world.settle(host, late)
    assert len({member.hand for member in host.view.hands}) == 1
    for guest in (host, late):
        assert [member.handle for member in guest.view.hands] == ["cyn", "ada", "bob"]


def test_a_pong_from_before_a_change_of_spaces_is_not_believed() -> None:
    """It comes late and tells of the other space's feed, which is far ahead of this one's."""
    world = MixedWorld(24)
    host, other = world.accounts("host", "other")
    guest = world.guest()
    person = world.person()
    world.connect(guest)
    world.run_until(lambda: person.client.phase is product.Phase.CONNECTED)
    old, new = world.space(host), world.space(other)
    for i in range(40):
        world.result(host, "unmute" if i % 2 else "mute")
    world.joins(guest, old)
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
    world.does(guest, "leave")
    world.joins(guest, new)
    world.answer(person, frames.Leave)
    world.answer(person, frames.Join, space=new, name="person")
    world.run(500)
    for address, pong in pongs.items():
        world._deliver(SERVER, address, pong)
    assert not guest.view.behind
    assert not person.client.view.behind
    guest_agrees(world, guest)
    person_agrees(world, person)


def test_a_listener_with_a_new_address_hears_on_at_once() -> None:
    world = MixedWorld(23)
    host, guest = world.accounts("host", "ada", tones=TONES)
    world.space(host, guest)
    host.talking = True
    world.run(2_000)
    world.network.rebind(guest.address)
    lost_ns = world.now_ns
    world.run(1_000)  # the next keep-alive is further away
    hears(guest, [host], lost_ns + 400 * MS, world.now_ns)


# -- replies out of order -------------------------------------------------------------------------


def test_replies_overtake_each_other() -> None:
    """What is to be kept is answered when it is kept; what follows does not wait for it."""
    world = MixedWorld(90)
    host, ada = world.accounts("host", "ada")
    world.space(host, ada)
    world.brings_up(host, ada)
    world.shelf.held = True
    muted = world.request(host, "mute", member=ada.id)
    posted = world.request(host, "post", text="news")
    silent = world.request(ada, "mute")
    (roster,) = world.replies(host, world.request(host, "roster"))
    assert host.reply(muted) is None
    assert host.reply(posted) is None
    world.run(500)
    assert host.view.listed[ada.id].muted, "what a request does is done at once"
    assert ada.reply(silent) is None
    assert ada.view.you.muted, "and whom it concerns is told at once, the asker too"
    world.shelf.held = False
    replies = world.replies(host, muted, posted)
    assert [reply["type"] for reply in replies] == ["ok", "posted"]
    assert world.replies(ada, silent)[0]["type"] == "ok"
    assert host.frames.index(roster) < host.frames.index(replies[0])


@pytest.mark.parametrize("farewell", ["leave", "close"])
def test_a_space_left_late_is_not_taken_for_the_one_come_into(farewell: str) -> None:
    """Out of one and into another without waiting: whatever order the news comes in."""
    world = MixedWorld(91)
    host, ada, bob = world.accounts("host", "ada", "bob")
    other = world.space(bob)
    world.space(host, ada)
    world.shelf.held = True
    left = world.request(host, farewell)
    came = world.request(host, "join", space=other)
    world.run(500)
    world.shelf.held = False
    replies = world.replies(host, left, came)
    assert [reply["type"] for reply in replies] == ["ok", "joined"]
    world.settle(host)
    assert host.view.space == other
    guest_agrees(world, host)


def test_what_is_said_of_the_next_space_is_not_taken_for_this_one() -> None:
    """`state` and the notices say of which space they are; they overtake `joined`."""
    world = MixedWorld(96)
    host, ada = world.accounts("host", "ada")
    world.space(host, ada, title="old")
    before = host.view
    world.shelf.held = True
    world.request(host, "leave")
    opened = world.request(host, "open", title="new")
    (state,) = world.replies(host, world.request(host, "look"))
    assert state["snapshot"]["title"] == "new"
    mute = world.request(host, "mute")
    world.run(2_000)
    assert host.told("you")[-1]["space"] == state["space"] != before.space
    assert host.view is before
    assert before.title == "old"
    assert not before.you.muted
    world.shelf.held = False
    world.replies(host, mute)
    world.replies(host, opened)
    world.settle(host)
    assert host.view.title == "new"
    guest_agrees(world, host)


# -- coming back ----------------------------------------------------------------------------------


def test_a_server_that_starts_again_has_everybody_back_in_their_places() -> None:
    world = MixedWorld(92)
    host, ada, bob = world.accounts("host", "ada", "bob")
    guest = world.guest()
    world.connect(guest)
    space = world.space(host, ada, bob, title="Through thick and thin")
    world.joins(guest, space, name="Somebody")
    world.brings_up(host, ada)
    world.does(host, "appoint", member=ada.id)
    world.does(host, "mute", member=ada.id)
    numbers = {g.name: g.id for g in (host, ada, bob, guest)}
    world.run(6_000)
    world.restart()
    everyone = (host, ada, bob, guest)
    world.run_until(lambda: all(g.visitor.sessions == 2 for g in everyone), 25_000)
    world.run_until(lambda: all(g.client.view is not None for g in everyone))
    world.settle(*everyone)
    roles = [g.view.you.role for g in everyone]
    assert roles == ["host", "co_host", "listener", "guest"]
    assert ada.view.you.muted
    assert guest.view.you.name == "Somebody"
    assert ada.view.title == "Through thick and thin"
    assert numbers != {g.name: g.id for g in everyone}
    for one in everyone:
        guest_agrees(world, one)

    # Somebody who is blocked on stage is no news to whoever comes back.
    world.does(bob, "block", person="ada")
    for _ in range(2):
        bob.visitor.nothing_listens(world.now_ns)
    world.run_until(lambda: bob.visitor.sessions == 3 and bob.client.view is not None)
    assert not bob.told("error")


def test_a_lost_session_is_made_up_for_and_a_final_one_is_not() -> None:
    world = MixedWorld(93)
    host, ada = world.accounts("host", "ada")
    space = world.space(host, ada)
    world.brings_up(host, ada)
    seat = ada.view.you.seat

    # Cut off for a while; and a request of which nobody knows what became.
    world.lose = lambda to, data: True
    world.request(ada, "mute")
    world.run(17_000)
    assert ada.client.state == "greeting"
    assert ada.visitor.unanswered == [("mute", {})]
    world.lose = lambda to, data: False
    world.run_until(lambda: ada.client.view is not None and host.client.view is not None)
    assert ada.view.you.role == "speaker"
    assert ada.view.you.seat != seat
    assert host.view.you.role == "host"

    # The server says good-bye, and is there again.
    world.node.shut_down(world.now_ns)
    world._drain()
    world.run(100)
    world.restart()
    world.run_until(lambda: ada.visitor.sessions == 3 and ada.client.view is not None)
    assert ada.view.you.role == "speaker"

    # Nothing listens at the port: at the second word of it, if nothing was heard since the first.
    for _ in range(3):
        ada.visitor.nothing_listens(world.now_ns)
        world.result(ada, "roster")
    ada.visitor.nothing_listens(world.now_ns)
    assert ada.client.state == "session"
    ada.visitor.nothing_listens(world.now_ns)
    assert ada.client.state == "over"
    world.run_until(lambda: ada.visitor.sessions == 4 and ada.client.view is not None)

    # The same person elsewhere: to stay away is what they want.
    world.run(6_000)
    again = world.guest(key=ada.key)
    world.connect(again)
    assert world.joins(again, space)["you"]["role"] == "speaker"
    assert world.closed(ada) == spec.REPLACED
    world.run(3_000)
    assert ada.visitor.over
    assert ada.visitor.sessions == 4


def test_attempts_are_spread_out_and_become_rare() -> None:
    world = MixedWorld(94)
    (ada,) = world.accounts("ada")
    world.run(6_000)
    begun_ns: dict[bytes, int] = {}  # of an attempt, by its HELLO, which is repeated as it is

    def watch(source: bytes, destination: bytes, data: bytes) -> None:
        if data[0] == spec.HELLO:
            begun_ns.setdefault(data, world.now_ns)

    world.on_send.append(watch)
    world.lose = lambda to, data: True
    lost_ns = world.now_ns
    world.run(75_000)
    first_of = list(begun_ns.values())
    assert 5_000 * MS < first_of[0] - lost_ns < 15_500 * MS
    # An attempt lasts 5 s; then come 0.25 to 0.5 s, 0.5 to 1 s, ... and at last 2.5 to 5 s.
    assert 6 <= len(first_of) <= 12
    world.lose = lambda to, data: False
    world.run_until(lambda: ada.client.state == "session", 11_000)

    never = world.guest(server=public_key(bytes(32)))
    world.run(6_000)
    assert never.visitor.over, "the link may be wrong"


def test_whoever_may_not_come_back_is_told_why() -> None:
    world = MixedWorld(95)
    host, ada, bob = world.accounts("host", "ada", "bob")
    space = world.space(host, settings={"visibility": "followers"})
    token = world.result(host, "make_invite", role="listener")["invite"]
    world.does(bob, "follow", person="host")
    for guest in (ada, bob):
        world.joins(guest, space, invite=token)
    world.does(host, "revoke_invite", invite=token)
    world.restart()  # which keeps the places of those on stage only
    world.run(16_000)
    world.run_until(lambda: ada.visitor.out is not None)
    assert ada.visitor.out == "this space is for followers of its host"
    world.run_until(lambda: bob.client.view is not None)  # without the invite
    assert [frame["code"] for frame in bob.told("error")] == ["bad_invite"]
    assert ada.client.state == bob.client.state == "session"


def test_whoever_comes_back_before_the_server_noticed_is_the_same_person() -> None:
    world = MixedWorld(97)
    host, ada, bob = world.accounts("host", "ada", "bob")
    space = world.space(host, settings={"visibility": "followers"})
    token = world.result(host, "make_invite", role="listener")["invite"]
    for guest in (ada, bob):
        world.joins(guest, space, invite=token)
    world.brings_up(host, ada)
    world.does(host, "revoke_invite", invite=token)
    for guest in (ada, bob):
        for _ in range(2):
            guest.visitor.nothing_listens(world.now_ns)
    world.run_until(lambda: all(g.visitor.sessions == 2 for g in (ada, bob)))
    world.run_until(lambda: all(g.client.view is not None for g in (ada, bob)))
    assert not ada.told("error"), "whoever is on stage needs no invite"
    assert ada.view.you.role == "speaker"
    assert [frame["code"] for frame in bob.told("error")] == ["bad_invite"]
    assert bob.view.you.role == "listener"
    world.settle(host)
    assert host.view.listeners == 1


# -- the end of sessions --------------------------------------------------------------------------


def test_the_same_person_from_elsewhere_and_the_servers_end() -> None:
    world = MixedWorld(31)
    (host,) = world.accounts("host")
    space = world.space(host)
    again = world.guest(key=host.key)
    world.connect(again)
    assert world.joins(again, space)["you"]["role"] == "host"
    assert world.closed(host) == spec.REPLACED
    world.node.shut_down(world.now_ns)
    world._drain()
    world.run(40)
    assert world.closed(again) == spec.SHUTDOWN
    again.visitor.close(world.now_ns)
    world.run(5_000)
    assert not world.node.endpoint.sessions


def test_silence_ends_a_session_at_both_ends() -> None:
    world = MixedWorld(32)
    (host,) = world.accounts("host")
    space = world.space(host)
    world.run(40_000)
    assert host.client.state == "session", "keep-alives hold a session"
    world.network.lose_all(host.address)
    world.run(36_000)
    assert space in world.node.spaces, "a place is kept for a minute"
    world.run(65_000)
    assert not world.node.spaces
    assert not world.node.endpoint.sessions


def test_a_client_that_hears_nothing_asks_more_often_and_gives_up() -> None:
    world = MixedWorld(35)
    guest = world.guest()
    world.connect(guest)
    world.run(500)
    client, now_ns = guest.client, world.now_ns
    sent: list[int] = []  # seconds, keep-alives
    while client.state == "session":
        now_ns = max(now_ns, client.deadline_ns())
        sent += [(now_ns - client.since_ns) // (1_000 * MS) for data in client.poll(now_ns)]
    assert sent == list(range(5, 30))
    assert client.closed == (spec.TIMEOUT, "")


def test_a_violation_closes_the_session() -> None:
    world = MixedWorld(33)
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
    bad = spec.chunk(spec.DATA, bytes(4) + b"\x07x")
    other.client.receive(session.connection._control_sealer.seal(Kind.CONTROL, bad), world.now_ns)
    world.pump(other)
    world.run(500)
    assert other.client.closed is not None
    assert other.client.closed[0] == spec.PROTOCOL
    assert session.connection.state.value == "closed"


@pytest.mark.parametrize("text", [b"", bytes(4), bytes(5), bytes(4) + b"\x04xx"])
def test_audio_that_is_none_is_dropped(text: bytes) -> None:
    """Nothing, no flags, no Opus, a flag that does not exist: the session goes on."""
    world = MixedWorld(34)
    (host,) = world.accounts("host", tones=TONES)
    world.space(host)
    chains = host.client._chains
    assert chains is not None
    for _ in range(3):
        world.send(
            host.address, SERVER, chains.seal_media.seal(spec.AUDIO, chains.server_index, text)
        )
    world.run(500)
    assert world.result(host, "look")["type"] == "state"
