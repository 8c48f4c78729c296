"""Real clients against a real endpoint: how a session comes about, and how it does not."""

import hmac
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from protocol import frames, hkdf
from protocol.connection import (
    IDLE_TIMEOUT_NS,
    MS,
    CloseCode,
    Closed,
    Event,
    Media,
    Message,
    Pong,
    Roamed,
    State,
)
from protocol.link import Link
from protocol.noise import KeyPair, public_key
from protocol.packets import (
    COOKIE_BYTES,
    HELLO_BYTES,
    NO_COOKIE,
    VERSION,
    Kind,
    Refusal,
    pack_cookie,
    pack_header,
    unpack_cookie,
    unpack_header,
    unpack_refused,
)
from spaces_client import AGENT
from spaces_client.client import REFUSALS, Client, Phase
from spaces_client.events import Connected, Disconnected, Replied
from spaces_server import endpoint as module
from spaces_server.endpoint import (
    COOKIE_LIFETIME_NS,
    HALF_OPEN_TIMEOUT_NS,
    LOAD_WINDOW_NS,
    TOGETHER_NS,
    Endpoint,
    Session,
)

START_NS = 5_000 * MS
SERVER_KEY = bytes(range(32))
LINK = Link("server", 5004, public_key(SERVER_KEY))
NEVER = 10**9  # HELLOs a second, above which cookies are asked for
KINDS = {k.value: k for k in Kind}


class CountingEntropy:
    """Seeded bytes, and how often they were asked for."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.calls = 0

    def __call__(self, size: int) -> bytes:
        self.calls += 1
        return self._rng.randbytes(size)


@dataclass
class Guest:
    client: Client
    address: bytes
    events: list[object] = field(default_factory=list)


class House:
    """An endpoint and its guests; what one sends, the other has at once.  Messages are echoed."""

    def __init__(
        self, *, cookies_above: int = NEVER, max_sessions: int = 100, seed: int = 1
    ) -> None:
        self.entropy = CountingEntropy(seed)
        self.endpoint = Endpoint(
            SERVER_KEY, self.entropy, max_sessions=max_sessions, cookies_above=cookies_above
        )
        self.now_ns = START_NS
        self.guests: dict[bytes, Guest] = {}
        self.events: list[tuple[Session, Event]] = []
        self.new: list[Session] = []
        self.bytes_in: Counter[bytes] = Counter()
        self.bytes_out: Counter[bytes] = Counter()
        self.sent: list[tuple[bytes, bytes]] = []

    def guest(self, name: str, link: Link = LINK) -> Guest:
        address = name.encode()
        rng = random.Random(name)
        client = Client(
            link, rng.randbytes(32), entropy=rng.randbytes, now_ns=self.now_ns, complexity=0
        )
        self.guests[address] = Guest(client, address)
        return self.guests[address]

    def give(self, data: bytes, address: bytes) -> list[bytes]:
        """One datagram to the endpoint; -> what it sends for it."""
        self.bytes_in[address] += len(data)
        received = self.endpoint.receive(data, address, self.now_ns)
        received = received or self.endpoint.work(self.now_ns)
        if received is not None:
            session, events, new = received
            if new:
                self.new.append(session)
            self.events += [(session, e) for e in events]
            for event in events:
                if isinstance(event, Message):
                    session.connection.send(b"\x83" + event.data[1:])
            self.endpoint.flush(session, self.now_ns)
        return self.drain()

    def drain(self) -> list[bytes]:
        sent, self.endpoint.outbox = self.endpoint.outbox, []
        for data, address in sent:
            self.bytes_out[address] += len(data)
        self.sent += sent
        return [data for data, _ in sent]

    def take(self, guest: Guest, datagrams: list[bytes]) -> None:
        for data in datagrams:
            guest.events += guest.client.receive(data, self.now_ns)

    def pump(self, *guests: Guest) -> None:
        """Back and forth until nobody has anything to say."""
        for _ in range(100):
            talked = False
            for guest in guests or tuple(self.guests.values()):
                for data in guest.client.transmit(self.now_ns):
                    talked = True
                    self.take(guest, self.give(data, guest.address))
            if not talked:
                return
        raise AssertionError("an endless exchange")

    def tick(self, ms: float) -> list[tuple[Session, Closed]]:
        """Time goes on, for the endpoint only."""
        self.now_ns += int(ms * MS)
        lost = self.endpoint.tick(self.now_ns)
        for data, address in self.endpoint.outbox:
            if address in self.guests:
                self.take(self.guests[address], [data])
        self.drain()
        return lost

    def connected(self, name: str) -> Guest:
        guest = self.guest(name)
        self.pump(guest)
        assert guest.client.phase is Phase.CONNECTED
        return guest


def hello_of(guest: Guest, now_ns: int = START_NS) -> bytes:
    (data,) = guest.client.transmit(now_ns)
    assert data[0] == Kind.HELLO
    return data


def sole(session_of: House) -> Session:
    (session,) = session_of.endpoint.sessions.values()
    return session


def with_cookie(cookie: bytes) -> bytes:
    """What a client says that was given this cookie."""
    rng = random.Random("with cookie")
    client = Client(LINK, rng.randbytes(32), entropy=rng.randbytes, now_ns=START_NS, complexity=0)
    (hello,) = client.transmit(START_NS)
    client.receive(pack_cookie(int.from_bytes(hello[4:8]), cookie), START_NS)
    return client.transmit(START_NS)[-1]


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


# --- a session ---


def test_a_client_and_an_endpoint_come_to_a_session() -> None:
    house = House()
    guest = house.guest("ada")
    hello = hello_of(guest)
    assert len(hello) == HELLO_BYTES
    (welcome,) = house.give(hello, guest.address)
    assert welcome[0] == Kind.WELCOME
    assert len(welcome) <= HELLO_BYTES
    assert house.endpoint.sessions == {}, "not before the client has shown that it has the keys"
    house.take(guest, [welcome])
    assert guest.events == [Connected()]
    house.pump(guest)
    session = sole(house)
    assert house.new == [session]
    assert session.agent == AGENT
    assert session.identity == public_key(random.Random("ada").randbytes(32))
    assert session.connection.address == guest.address
    assert session.connection.credit_bytes is None
    assert guest.client.rtt_ns == 0, "there is no network between them"
    assert house.endpoint.talking


def test_sessions_are_found_by_index_not_by_address() -> None:
    house = House()
    guests = [house.connected(f"guest {n}") for n in range(5)]
    assert len({s.index for s in house.endpoint.sessions.values()}) == 5
    for guest in guests:
        guest.client.request(frames.Look)
    # All of them from one address, in one go: as behind one router.
    for guest in guests:
        for data in guest.client.transmit(house.now_ns):
            house.give(data, b"one router")
    spoke = [session.index for session, event in house.events if isinstance(event, Message)]
    assert sorted(spoke) == sorted(house.endpoint.sessions)


def test_a_request_goes_there_and_a_reply_comes_back() -> None:
    house = House()
    guest = house.connected("ada")
    request_id = guest.client.request(frames.Look)
    (data,) = guest.client.transmit(house.now_ns)
    assert house.endpoint.receive(data, guest.address, house.now_ns) is None
    received = house.endpoint.work(house.now_ns)
    assert received is not None
    session, events, new = received
    assert not new
    (message,) = [e.data for e in events if isinstance(e, Message)]
    assert frames.decode(message) == frames.Look(id=request_id)
    session.connection.send(frames.encode(frames.Ok(re=request_id)))
    house.endpoint.flush(session, house.now_ns)
    house.take(guest, house.drain())
    assert guest.events[-1] == Replied(request_id, frames.Ok(re=request_id))


def test_a_client_that_moves_goes_on_without_a_gap() -> None:
    house = House()
    guest = house.connected("ada")
    session = sole(house)
    del house.guests[guest.address]
    guest.address = b"elsewhere"
    guest.client.address_changed(house.now_ns)
    house.pump(guest)
    assert sole(house) is session
    assert session.connection.address == b"elsewhere"
    assert session.connection.credit_bytes is None
    assert [e for _, e in house.events if isinstance(e, Roamed)] == [Roamed()]


def test_the_same_index_is_never_given_twice() -> None:
    house = House()
    house.connected("ada")
    taken = sole(house).index.to_bytes(4)
    fresh = house.endpoint.entropy
    offered = [taken, taken, bytes(3) + b"\x07"]
    house.endpoint.entropy = lambda size: offered.pop(0) if size == 4 and offered else fresh(size)
    house.connected("bob")
    assert sorted(house.endpoint.sessions) == sorted([int.from_bytes(taken), 7])


# --- HELLO again ---


def test_a_hello_that_comes_twice_is_answered_with_the_same_welcome() -> None:
    house = House()
    guest = house.guest("ada")
    hello = hello_of(guest)
    (welcome,) = house.give(hello, guest.address)
    calls = house.entropy.calls
    for _ in range(3):
        assert house.give(hello, guest.address) == [welcome]
    assert len(house.endpoint._half_open) == 1
    assert house.entropy.calls == calls, "no second handshake was made"
    house.take(guest, [welcome, welcome])
    house.pump(guest)
    assert guest.events == [Connected()]
    assert len(house.endpoint.sessions) == 1


def test_a_client_repeats_its_hello_until_it_is_answered() -> None:
    house = House()
    guest = house.guest("ada")
    hello = hello_of(guest)  # lost
    times_ns = []
    while house.now_ns < START_NS + 2_000 * MS:
        house.now_ns = guest.client.deadline_ns
        assert guest.client.tick(house.now_ns) == []
        for data in guest.client.transmit(house.now_ns):
            assert data == hello
            times_ns.append(house.now_ns - START_NS)
    assert times_ns[:3] == [250 * MS, 750 * MS, 1_750 * MS]
    house.take(guest, house.give(hello, guest.address))
    house.pump(guest)
    assert guest.client.phase is Phase.CONNECTED


def test_a_client_gives_up_in_words_if_nobody_answers() -> None:
    house = House()
    guest = house.guest("ada")
    events: list[object] = []
    while not events:
        house.now_ns = guest.client.deadline_ns
        events += guest.client.tick(house.now_ns)
        guest.client.transmit(house.now_ns)
    (event,) = events
    assert isinstance(event, Disconnected)
    assert "server:5004" in event.text
    assert guest.client.phase is Phase.CLOSED
    assert guest.client.finished(house.now_ns)


def test_a_hello_repeated_from_elsewhere_is_no_way_into_the_first_session() -> None:
    house = House()
    guest = house.guest("ada")
    hello = hello_of(guest)
    (welcome,) = house.give(hello, guest.address)
    (other,) = house.give(hello, b"elsewhere")
    assert other != welcome
    house.take(guest, [welcome])
    house.pump(guest)
    assert sole(house).connection.address == guest.address
    house.tick(HALF_OPEN_TIMEOUT_NS / MS)
    assert len(house.endpoint._half_open) == 0
    assert len(house.endpoint.sessions) == 1


def test_a_hello_repeated_later_does_not_disturb_the_session() -> None:
    house = House()
    guest = house.guest("ada")
    hello = hello_of(guest)
    house.take(guest, house.give(hello, guest.address))
    house.pump(guest)
    session = sole(house)
    answers = house.give(hello, guest.address)
    house.take(guest, answers)
    house.pump(guest)
    assert sole(house) is session
    guest.client.request(frames.Look)
    house.pump(guest)
    assert isinstance(house.events[-1][1], Message | Pong)


# --- cookies ---


def test_under_load_a_hello_without_a_cookie_gets_24_bytes_and_no_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(cookies_above=0)
    hello = hello_of(house.guest("ada"))

    def no_handshake(**_: object) -> None:
        raise AssertionError("Noise is not to be run for this")

    monkeypatch.setattr(module, "Handshake", no_handshake)
    for n in range(50):
        (answer,) = house.give(hello, b"spoofed %d" % n)
        assert answer[0] == Kind.COOKIE
        assert len(answer) <= 24
    assert len(house.endpoint._half_open) == 0
    assert house.endpoint.dropped == {"cookie asked": 50}
    assert house.entropy.calls == 2, "the two secrets, and nothing for each HELLO"


def test_a_client_passes_with_the_cookie_it_was_given() -> None:
    house = House(cookies_above=0)
    guest = house.guest("ada")
    hello = hello_of(guest)
    (cookie,) = house.give(hello, guest.address)
    house.take(guest, [cookie, cookie])
    again = hello_of(guest)
    assert again[16:32] == unpack_cookie(cookie)[1]
    assert not {again[4:8], again[32:64]} & {hello[4:8], hello[32:64]}, "a handshake of its own"
    house.take(guest, house.give(again, guest.address))
    house.pump(guest)
    assert guest.events == [Connected()]
    assert len(house.endpoint.sessions) == 1


def test_a_cookie_is_good_for_its_address_and_its_time_only() -> None:
    house = House(cookies_above=0)
    hello = hello_of(house.guest("ada"))
    cookie = unpack_cookie(house.give(hello, b"ada")[0])[1]
    passes = with_cookie(cookie)

    def answer(data: bytes, address: bytes) -> int:
        return house.give(data, address)[0][0]

    assert answer(hello, b"ada") == Kind.COOKIE
    assert answer(with_cookie(cookie[::-1]), b"ada") == Kind.COOKIE
    for bit in range(8 * COOKIE_BYTES):
        assert answer(with_cookie(flipped(cookie, bit)), b"ada") == Kind.COOKIE
    assert answer(passes, b"adb") == Kind.COOKIE
    assert answer(passes, b"ad") == Kind.COOKIE
    assert len(house.endpoint._half_open) == 0
    assert answer(passes, b"ada") == Kind.WELCOME
    house.tick(HALF_OPEN_TIMEOUT_NS / MS)
    house.now_ns = START_NS + COOKIE_LIFETIME_NS
    assert answer(passes, b"ada") == Kind.WELCOME, "the secret has changed once"
    house.tick(HALF_OPEN_TIMEOUT_NS / MS)
    house.now_ns = START_NS + 2 * COOKIE_LIFETIME_NS
    assert answer(passes, b"ada") == Kind.COOKIE
    assert len(house.endpoint._half_open) == 0


@pytest.mark.parametrize("lifetimes", [2, 3, 60, 10_000])
def test_a_cookie_is_old_after_a_quiet_time_as_well(lifetimes: int) -> None:
    # Nobody said HELLO meanwhile, so nothing made the secrets change on the way.
    house = House(cookies_above=0)
    hello = hello_of(house.guest("ada"))
    cookie = unpack_cookie(house.give(hello, b"ada")[0])[1]
    house.now_ns += lifetimes * COOKIE_LIFETIME_NS
    (answer,) = house.give(with_cookie(cookie), b"ada")
    assert answer[0] == Kind.COOKIE
    assert unpack_cookie(answer)[1] != cookie


@pytest.mark.parametrize("now_ns", [0, 1, START_NS])
def test_no_cookie_can_be_guessed_from_a_server_that_has_just_started(now_ns: int) -> None:
    house = House(cookies_above=0)
    house.now_ns = now_ns
    guessed = hmac.digest(b"", b"ada", "sha256")[:COOKIE_BYTES]
    for _ in range(2):
        assert house.give(with_cookie(guessed), b"ada")[0][0] == Kind.COOKIE


def test_cookies_are_asked_for_above_a_rate_and_not_below() -> None:
    house = House(cookies_above=3)

    def kinds(hellos: list[bytes]) -> list[Kind]:
        answers = [house.give(h, b"address %d" % n)[0][0] for n, h in enumerate(hellos)]
        return [KINDS[a] for a in answers]

    def hellos(time: str) -> list[bytes]:
        return [hello_of(house.guest(f"guest {n} {time}")) for n in range(5)]

    expected = [Kind.WELCOME] * 3 + [Kind.COOKIE] * 2
    first = hellos("at first")
    assert kinds(first) == expected
    house.tick(LOAD_WINDOW_NS / MS / 2)
    assert kinds(hellos("under load")) == [Kind.COOKIE] * 5
    assert kinds(first) == expected, "whose handshake is made already needs no cookie for it"
    house.tick(LOAD_WINDOW_NS / MS / 2)
    assert kinds(hellos("later")) == expected


# --- waiting ---


def test_a_hello_waits_until_there_is_time_for_its_handshake() -> None:
    house = House()
    guests = [house.guest(f"guest {n}") for n in range(3)]
    hellos = [hello_of(guest) for guest in guests]
    for guest, hello in zip(guests, hellos, strict=True):
        for _ in range(2):  # it is repeated while it waits
            assert house.endpoint.receive(hello, guest.address, house.now_ns) is None
    assert house.endpoint.outbox == []
    assert house.entropy.calls == 0, "nothing was begun"
    for left, guest in zip((2, 1, 0), guests, strict=True):
        assert house.endpoint.waiting == left + 1
        house.endpoint.work(house.now_ns)
        assert house.endpoint.waiting == left
        ((welcome, address),) = house.endpoint.outbox
        assert (welcome[0], address) == (Kind.WELCOME, guest.address)
        house.take(guest, house.drain())
    house.endpoint.work(house.now_ns)
    assert house.endpoint.outbox == []
    house.pump()
    assert [guest.client.phase for guest in guests] == [Phase.CONNECTED] * 3


def test_what_a_handshake_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    hello = hello_of(house.guest("ada"))
    calls: Counter[str] = Counter()

    def counted(where: object, name: str, what: str) -> None:
        real = getattr(where, name)

        def count(*args: object) -> object:
            calls[what] += 1
            return real(*args)

        monkeypatch.setattr(where, name, count)

    counted(KeyPair, "__init__", "keys loaded")
    counted(KeyPair, "exchange", "shared secrets")
    counted(hkdf, "hmac_sha256", "hmacs")
    (welcome,) = house.give(hello, b"ada")
    assert welcome[0] == Kind.WELCOME
    assert calls["keys loaded"] == 1, "the ephemeral one"
    assert calls["shared secrets"] == 4, "es, ss, ee, se"
    assert calls["hmacs"] <= 15 + 12, "of Noise; of the session's four chains"


def look_of(house: House, guest: Guest) -> bytes:
    guest.client.request(frames.Look)
    (data,) = guest.client.transmit(house.now_ns)
    return data


def audio_of(house: House, guest: Guest) -> bytes:
    connection = guest.client._connection
    assert connection is not None
    return connection.send_media(Kind.AUDIO, b"sound")


def test_control_waits_and_audio_does_not() -> None:
    house = House()
    guest = house.connected("ada")
    look, audio = look_of(house, guest), audio_of(house, guest)
    assert house.endpoint.receive(look, guest.address, house.now_ns) is None
    received = house.endpoint.receive(audio, guest.address, house.now_ns)
    assert received is not None
    assert [type(event) for event in received[1]] == [Media]
    assert house.endpoint.waiting == 1
    received = house.endpoint.work(house.now_ns)
    assert received is not None
    assert [type(event) for event in received[1]] == [Message]
    assert house.endpoint.waiting == 0


def test_whoever_is_in_comes_before_those_who_want_to_come_in() -> None:
    house = House()
    ada, bob = house.connected("ada"), house.guest("bob")
    house.endpoint.receive(hello_of(bob), bob.address, house.now_ns)
    looks = [look_of(house, ada) for _ in range(2)]
    for look in looks:
        house.endpoint.receive(look, ada.address, house.now_ns)
    assert house.endpoint.waiting == 3
    for _ in looks:
        assert house.endpoint.work(house.now_ns) is not None
        assert house.endpoint.outbox == []
    assert house.endpoint.work(house.now_ns) is None
    assert house.drain()[0][0] == Kind.WELCOME


def test_what_waits_of_one_and_of_all_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONTROL_OF_ONE", 3)
    monkeypatch.setattr(module, "MAX_CONTROL", 5)
    house = House()
    ada, bob = house.connected("ada"), house.connected("bob")
    for guest, held, dropped in ((ada, 3, 2), (bob, 5, 5)):
        for _ in range(5):
            house.endpoint.receive(look_of(house, guest), guest.address, house.now_ns)
        assert house.endpoint.waiting == held
        assert house.endpoint.dropped == {"too much control": dropped}
    for _ in range(5):
        assert house.endpoint.work(house.now_ns) is not None
    assert house.endpoint.receive(look_of(house, ada), ada.address, house.now_ns) is None
    assert house.endpoint.waiting == 1, "there is room again"


def test_what_waits_for_a_session_that_has_ended_is_dropped() -> None:
    house = House()
    guest = house.connected("ada")
    house.endpoint.receive(look_of(house, guest), guest.address, house.now_ns)
    house.endpoint.sessions.clear()
    assert house.endpoint.work(house.now_ns) is None
    assert house.endpoint.waiting == 0
    assert house.endpoint.dropped == {"no session": 1}


def test_control_of_nobody_does_not_wait() -> None:
    house = House()
    stranger = pack_header(Kind.CONTROL, 0, 12_345) + bytes(40)
    house.endpoint.receive(stranger, b"mallory", house.now_ns)
    assert house.endpoint.waiting == 0
    assert house.endpoint.dropped == {"no session": 1}


def test_the_round_trip_is_without_the_time_of_waiting() -> None:
    house = House()
    guest = house.guest("ada")
    house.endpoint.receive(hello_of(guest), guest.address, house.now_ns)
    house.now_ns += 900 * MS
    house.endpoint.work(house.now_ns)
    house.take(guest, house.drain())
    house.now_ns += 50 * MS
    house.pump(guest)
    assert sole(house).connection._channel.srtt_ns == 50 * MS


def test_no_more_hellos_wait_than_a_limit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELLOS", 3)
    house = House()
    guests = [house.guest(f"guest {n}") for n in range(5)]
    hellos = [(hello_of(guest), guest.address) for guest in guests]
    for hello, address in hellos:
        house.endpoint.receive(hello, address, house.now_ns)
    assert house.endpoint.waiting == 3
    assert house.endpoint.dropped == {"too many hellos": 2}
    house.endpoint.work(house.now_ns)
    assert house.drain()[0][0] == Kind.WELCOME
    for hello, address in hellos[3:]:  # they say it again, and for one there is room
        house.endpoint.receive(hello, address, house.now_ns)
    assert house.endpoint.waiting == 3
    assert house.endpoint.dropped == {"too many hellos": 3}


def test_who_waits_has_a_place() -> None:
    house = House(max_sessions=2)
    for n in range(3):
        address = b"guest %d" % n
        hello = hello_of(house.guest(address.decode()))
        house.endpoint.receive(hello, address, house.now_ns)
    assert house.endpoint.waiting == 2
    assert house.endpoint.dropped == {"refused: full": 1}


def test_spoofed_hellos_do_not_fill_a_small_server() -> None:
    house = House(max_sessions=10)
    for n in range(60):
        house.give(hello_of(house.guest(f"spoofed {n}")), b"spoofed %d" % n)
    assert len(house.endpoint._half_open) <= 6
    house.connected("a real one")
    assert len(house.endpoint.sessions) == 1


# --- refusals ---


def test_another_version_is_refused_with_words() -> None:
    house = House()
    guest = house.guest("ada")
    hello = bytearray(hello_of(guest))
    hello[1] = VERSION + 1
    (answer,) = house.give(bytes(hello), guest.address)
    assert unpack_refused(answer)[1] == Refusal.VERSION
    house.take(guest, [answer])
    assert guest.events == [Disconnected(REFUSALS[Refusal.VERSION])]
    assert house.endpoint.dropped == {"refused: version": 1}


def test_another_key_than_the_links_is_refused_with_words() -> None:
    house = House()
    wrong = Link("server", 5004, public_key(b"x" * 32))
    guest = house.guest("ada", wrong)
    house.pump(guest)
    assert guest.events == [Disconnected(REFUSALS[Refusal.WRONG_KEY])]
    assert guest.client.phase is Phase.CLOSED
    assert house.endpoint.dropped == {"refused: wrong_key": 1}


def test_a_full_server_refuses_with_words_and_takes_again_when_somebody_left() -> None:
    house = House(max_sessions=3)
    guests = [house.connected(f"guest {n}") for n in range(3)]
    late = house.guest("late")
    house.pump(late)
    assert late.events == [Disconnected(REFUSALS[Refusal.FULL])]
    guests[0].client.close(house.now_ns)
    house.pump(guests[0])
    house.tick(10_000)
    assert len(house.endpoint.sessions) == 2
    house.connected("later")
    assert len(house.endpoint.sessions) == 3


def test_every_refusal_has_words_and_unknown_ones_show_their_code() -> None:
    assert set(REFUSALS) == set(Refusal)
    house = House()
    guest = house.guest("ada")
    hello = hello_of(guest)
    refused = bytes([Kind.REFUSED, VERSION]) + (999).to_bytes(2) + hello[4:8]
    house.take(guest, [refused])
    (event,) = guest.events
    assert isinstance(event, Disconnected)
    assert "999" in event.text


def test_refusals_and_cookies_of_others_are_not_for_us() -> None:
    house = House(cookies_above=0)
    ada, bob = house.guest("ada"), house.guest("bob")
    house.take(ada, house.give(hello_of(bob), b"bob"))
    assert ada.client.transmit(house.now_ns)[0][16:32] == NO_COOKIE
    refused = bytes([Kind.REFUSED, VERSION]) + (1).to_bytes(2) + bytes(4)
    house.take(ada, [refused])
    assert ada.events == []
    assert ada.client.phase is Phase.CONNECTING


# --- nobody is flooded ---


@pytest.mark.parametrize("cookies_above", [0, 2, NEVER])
@pytest.mark.parametrize("max_sessions", [0, 2, 100])
def test_no_reply_is_longer_than_what_asked_for_it(cookies_above: int, max_sessions: int) -> None:
    house = House(cookies_above=cookies_above, max_sessions=max_sessions)
    rng = random.Random(3)
    hellos = [hello_of(house.guest(f"guest {n}")) for n in range(8)]
    hellos += [hello_of(house.guest("lost", Link("s", 1, public_key(b"y" * 32))))]
    answered: Counter[int] = Counter()
    for n in range(400):
        data = bytearray(rng.choice(hellos))
        if n % 3 == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if n % 5 == 0:
            data = data[: rng.randrange(len(data))]
        if n % 7 == 0:
            data[:1] = bytes([rng.choice([0x10, 0x11, 0x12, 0x02, 0x03, 0x04, 0xFF])])
        out = house.give(bytes(data), b"victim %d" % rng.randrange(9))
        assert sum(map(len, out)) <= len(data)
        answered.update(d[0] for d in out)
        house.tick(rng.randrange(300))
    for address, count in house.bytes_out.items():
        assert count <= house.bytes_in[address]
    assert answered


def test_nothing_is_sent_to_a_half_open_session_but_its_welcome() -> None:
    house = House()
    house.give(hello_of(house.guest("ada")), b"ada")
    house.sent.clear()
    for _ in range(100):
        house.tick(400)
    assert house.sent == []
    assert len(house.endpoint._half_open) == 0


def test_a_first_packet_from_elsewhere_gets_no_more_than_it_paid_for() -> None:
    # Somebody holds back the client's first packet and sends it under a victim's address.
    house = House()
    guest = house.guest("ada")
    house.take(guest, house.give(hello_of(guest), guest.address))
    (first,) = guest.client.transmit(house.now_ns)
    house.give(first, b"victim")
    connection = sole(house).connection
    assert connection.address == b"victim"
    assert connection.credit_bytes is not None
    connection.send(bytes(20_000))
    house.endpoint.flush(sole(house), house.now_ns)
    house.drain()
    for _ in range(60):
        house.tick(100)
    assert house.bytes_out[b"victim"] <= len(first)


# --- damage and forgery ---

SAMPLE_BITS = [*range(8 * 64), *range(8 * 64, 8 * HELLO_BYTES, 11)]  # head, cookie, ephemeral key


@pytest.mark.parametrize("cookies_above", [0, NEVER])
def test_no_flipped_bit_of_a_hello_gives_a_session(cookies_above: int) -> None:
    house = House(cookies_above=cookies_above)
    hello = hello_of(house.guest("ada"))
    if cookies_above == 0:
        hello = with_cookie(unpack_cookie(house.give(hello, b"ada")[0])[1])
    for bit in SAMPLE_BITS:
        answers = house.give(flipped(hello, bit), b"ada")
        assert all(a[0] in (Kind.COOKIE, Kind.REFUSED) for a in answers), f"bit {bit}"
        assert len(house.endpoint._half_open) == 0, f"bit {bit}"
    assert house.give(hello, b"ada")[0][0] == Kind.WELCOME


def test_no_flipped_bit_of_a_welcome_gives_a_session() -> None:
    """Each bit in a handshake of its own."""
    house = House(max_sessions=10_000)
    size = len(house.give(hello_of(house.guest("first")), b"first")[0])
    head = 44  # bytes up to the end of the ephemeral key, and of the sealed index
    for bit in [*range(8 * head), *range(8 * head, 8 * size, 5)]:
        guest = house.guest(f"guest {bit}")
        (welcome,) = house.give(hello_of(guest), guest.address)
        assert guest.client.receive(flipped(welcome, bit), house.now_ns) == [], f"bit {bit}"
        # The real one may still come, or a handshake was begun anew: it ends well.
        house.take(guest, [welcome])
        house.pump(guest)
        assert guest.client.phase is Phase.CONNECTED


def test_the_bytes_of_one_handshake_are_no_use_in_another() -> None:
    house = House()
    ada, bob = house.guest("ada"), house.guest("bob")
    a, b = hello_of(ada), hello_of(bob)
    # Another's Noise message under one's own head, or a welcome given to the wrong client.
    assert house.give(a[:32] + b[32:], b"ada") == []
    assert house.endpoint.dropped == {"forged hello": 1}
    (welcome,) = house.give(a, b"ada")
    renamed = welcome[:4] + b[4:8] + welcome[8:]
    assert bob.client.receive(renamed, house.now_ns) == []
    assert bob.client.phase is Phase.CONNECTING


LOW_ORDER = [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]


@pytest.mark.parametrize("point", LOW_ORDER, ids=["0", "1", "p-1"])
def test_worthless_public_keys_are_refused(point: bytes) -> None:
    house = House()
    guest = house.guest("ada")
    hello = hello_of(guest)
    assert house.give(hello[:32] + point + hello[64:], b"ada") == []
    assert house.endpoint.dropped == {"forged hello": 1}
    assert len(house.endpoint._half_open) == 0


def test_only_what_opens_completes_a_session() -> None:
    house = House()
    guest = house.guest("ada")
    house.take(guest, house.give(hello_of(guest), guest.address))
    (first,) = guest.client.transmit(house.now_ns)
    for bit in range(0, 8 * len(first), 3):
        assert house.give(flipped(first, bit), b"elsewhere") == []
        assert house.endpoint.sessions == {}
    (half,) = house.endpoint._half_open.values()
    assert half.session.connection.address == guest.address
    house.give(first, guest.address)
    assert sole(house).index == unpack_header(first)[2]


Garble = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    ("garble", "reason"),
    [
        (lambda d: b"", "empty"),
        (lambda d: b"\x00" + d[1:], "unknown kind"),
        (lambda d: b"\x02" + d[1:], "unknown kind"),
        (lambda d: b"\x0f" + d[1:], "unknown kind"),
        (lambda d: b"\x01" + d[1:], "malformed"),  # a HELLO of the wrong length
        (lambda d: d[:27], "malformed"),
        (lambda d: d.ljust(1_201, b"\0"), "malformed"),
        (lambda d: d[:8] + bytes(4) + d[12:], "no session"),
    ],
    ids=range(8),
)
def test_what_no_session_can_be_found_for_is_counted(garble: Garble, reason: str) -> None:
    house = House()
    guest = house.connected("ada")
    guest.client.request(frames.Look)
    (data,) = guest.client.transmit(house.now_ns)
    house.endpoint.dropped.clear()
    assert house.give(garble(data), guest.address) == []
    assert house.endpoint.dropped == {reason: 1}


# --- time and limits ---


def test_half_open_sessions_expire() -> None:
    house = House()
    guest = house.guest("ada")
    house.take(guest, house.give(hello_of(guest), guest.address))
    house.tick(HALF_OPEN_TIMEOUT_NS / MS - 1)
    assert len(house.endpoint._half_open) == 1
    house.tick(1)
    assert len(house.endpoint._half_open) == len(house.endpoint._by_hello) == 0
    house.pump(guest)
    assert house.endpoint.sessions == {}
    assert house.endpoint.dropped["no session"] == 1


def test_half_open_sessions_are_bounded_and_the_oldest_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_HALF_OPEN", 4)
    house = House()
    guests = [house.guest(f"guest {n}") for n in range(10)]
    for guest in guests:
        for data in guest.client.transmit(house.now_ns):
            house.take(guest, house.give(data, guest.address))
        for data in guest.client.transmit(house.now_ns):  # with a cookie, when asked
            if data[0] == Kind.HELLO:
                house.take(guest, house.give(data, guest.address))
        assert len(house.endpoint._half_open) <= 4
        assert len(house.endpoint._by_hello) == len(house.endpoint._half_open)
    assert house.endpoint.dropped["cookie asked"] > 0
    addresses = [h.session.connection.address for h in house.endpoint._half_open.values()]
    assert addresses == [g.address for g in guests[-4:]]


def test_a_session_of_which_nothing_is_heard_is_told_once_and_forgotten() -> None:
    house = House()
    house.connected("ada")
    session = sole(house)
    assert house.tick(IDLE_TIMEOUT_NS / MS - 1) == []
    ((lost, closed),) = house.tick(TOGETHER_NS / MS)
    assert lost is session
    assert not closed.by_peer
    assert not house.endpoint.talking
    assert house.tick(1_000) == []
    assert house.tick(60_000) == []
    assert house.endpoint.sessions == {}
    assert house.endpoint._deadlines == []
    assert house.endpoint._by_deadline == {}


def test_timers_of_many_are_spread_over_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who came in together is silent together: all at once would take longer than a tick."""
    monkeypatch.setattr(module, "TIMERS_A_TICK", 4)
    house = House()
    for number in range(10):
        house.connected(f"guest {number}")
    lost = [house.tick((IDLE_TIMEOUT_NS + TOGETHER_NS) / MS)]
    while house.endpoint.due_ns <= house.now_ns:
        lost.append(house.tick(20))
    assert [len(sessions) for sessions in lost] == [4, 4, 2]
    assert {session.index for now in lost for session, _ in now} == set(house.endpoint.sessions)
    house.tick(IDLE_TIMEOUT_NS / MS)
    while house.endpoint.due_ns <= house.now_ns:
        house.tick(20)
    assert house.endpoint.sessions == {}
    assert house.endpoint._by_deadline == {}


def test_a_session_that_talks_is_kept() -> None:
    house = House()
    guest = house.connected("ada")
    for _ in range(100):
        assert house.tick(1_000) == []
        if guest.client.deadline_ns <= house.now_ns:
            assert guest.client.tick(house.now_ns) == []
        house.pump(guest)
    assert len(house.endpoint.sessions) == 1
    assert sum(map(len, house.endpoint._by_deadline.values())) <= 10, "deadlines do not pile up"


def test_a_client_that_leaves_is_heard_and_forgotten_after_a_moment() -> None:
    house = House()
    guest = house.connected("ada")
    guest.client.close(house.now_ns)
    house.pump(guest)
    (closed,) = [e for _, e in house.events if isinstance(e, Closed)]
    assert closed.by_peer
    assert guest.client.finished(house.now_ns)
    assert not house.endpoint.talking
    assert len(house.endpoint.sessions) == 1
    house.tick(10_000)
    assert house.endpoint.sessions == {}


def test_a_server_that_closes_tells_its_clients() -> None:
    house = House()
    guests = [house.connected(f"guest {n}") for n in range(3)]
    for session in house.endpoint.sessions.values():
        session.connection.close(CloseCode.EXPELLED, "go away", house.now_ns)
        house.endpoint.flush(session, house.now_ns)
    house.tick(0)
    for data, address in house.sent[-3:]:
        house.take(house.guests[address], [data])
    for guest in guests:
        assert Disconnected("go away", CloseCode.EXPELLED) in guest.events
        house.pump(guest)
    house.tick(10_000)
    assert house.endpoint.sessions == {}


def test_data_that_waits_for_a_proof_of_the_address_does_not_stop_the_clock() -> None:
    house = House()
    guest = house.connected("ada")
    session = sole(house)
    session.connection.send(bytes(900))
    house.endpoint.flush(session, house.now_ns)
    house.drain()  # lost
    # A small packet moves the session; the retransmission is due, and there is no credit for it.
    audio = guest.client._connection
    assert audio is not None
    house.give(audio.send_media(Kind.AUDIO, b"opus"), b"elsewhere")
    assert session.connection.credit_bytes is not None
    for _ in range(100):
        house.tick(20)  # returns
    assert session.connection.state is State.OPEN
    assert house.bytes_out[b"elsewhere"] <= house.bytes_in[b"elsewhere"]
    guest.address = b"elsewhere"
    guest.client.address_changed(house.now_ns)
    house.guests[b"elsewhere"] = guest
    house.pump(guest)
    assert session.connection.credit_bytes is None
