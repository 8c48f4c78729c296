"""Line noise, damaged datagrams and forgeries: nothing is raised, nothing is changed, all of it
is counted."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import frames
from protocol.connection import MS, Message, State
from protocol.packets import COOKIE_BYTES, MAX_DATAGRAM_BYTES, Kind, pack_header
from spaces_client.client import Phase
from spaces_client.events import Connected, Disconnected
from spaces_server.endpoint import Session
from tests.unit.test_connection import (
    AWAY,
    HOME,
    SERVER,
    SERVER_INDEX,
    START_NS,
    connected,
    messages,
    only,
    state_of,
)
from tests.unit.test_endpoint import NEVER, Guest, House, hello_of, sole, with_cookie
from tests.unit.test_frames import FRAMES, instances, packed, values

LATER_NS = 3_000 * MS
kinds = st.sampled_from(list(Kind)) | st.integers(0, 255)
noise = st.binary(max_size=80) | st.builds(
    lambda kind, size, rest: bytes([kind]) + rest.ljust(size, b"\0")[:size],
    kinds,
    st.sampled_from([7, 23, 27, 28, 255, 256, 1_199, 1_200, 4_000]) | st.integers(0, 1_300),
    st.binary(max_size=64),
)


@st.composite
def damages(draw: st.DrawFn, data: bytes) -> bytes:
    """`data`, changed: bits, bytes, its length, or parts of it in other places."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(out) - 1)))
        match draw(st.sampled_from(["bit", "byte", "cut", "add", "insert", "swap", "zero"])):
            case "bit" if out:
                out[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if out:
                out[at] = draw(st.integers(0, 255))
            case "cut":
                del out[at:]
            case "add":
                out += draw(st.binary(min_size=1, max_size=20))
            case "insert":
                out[at:at] = draw(st.binary(min_size=1, max_size=4))
            case "swap" if out:
                other = draw(st.integers(0, len(out) - 1))
                out[at], out[other] = out[other], out[at]
            case "zero":
                out[at : at + 16] = bytes(len(out[at : at + 16]))
    return bytes(out)


# --- a connection ---


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_connection_drops_noise_and_damage(data: st.DataObject) -> None:
    client, server = connected()
    client.ping(START_NS)
    client.send(b"hello")
    control = only(client.transmit(START_NS))
    audio = client.send_media(Kind.AUDIO, b"opus")
    earlier = client.send_media(Kind.AUDIO, b"earlier")
    assert server.receive(earlier, HOME, START_NS)
    forged = st.builds(
        lambda kind, counter, rest: pack_header(kind, counter, SERVER_INDEX) + rest,
        st.sampled_from([Kind.CONTROL, Kind.AUDIO, Kind.FEED]),
        st.integers(0, 2**56 - 1) | st.integers(0, 3) | st.integers(2**20 - 1, 2**21 + 1),
        st.binary(max_size=60),
    )
    bad = data.draw(
        noise | forged | damages(control) | damages(audio) | st.just(earlier) | damages(earlier)
    )
    if bad in (control, audio):
        return
    address = data.draw(st.sampled_from([HOME, AWAY]))
    before, dropped = state_of(server), server.dropped.total()
    assert server.receive(bad, address, START_NS + LATER_NS) is None
    assert state_of(server) == before
    assert server.dropped.total() == dropped + 1
    assert set(server.dropped) <= {"malformed", "unknown kind", "forged", "replayed"}
    assert messages(server.receive(control, HOME, START_NS) or []) == [b"hello"]
    assert server.receive(audio, HOME, START_NS)


def test_every_truncation_of_a_real_datagram_is_dropped() -> None:
    client, server = connected()
    client.ping(START_NS, pad_bytes=MAX_DATAGRAM_BYTES)
    padded = only(client.transmit(START_NS))
    audio = client.send_media(Kind.AUDIO, b"opus" * 20)
    before = state_of(server)
    for datagram in (padded, audio):
        for size in range(len(datagram)):
            assert server.receive(datagram[:size], AWAY, START_NS + LATER_NS) is None
    assert state_of(server) == before
    assert server.dropped.total() == len(padded) + len(audio)
    assert server.dropped["malformed"] == 2 * 28


chunks = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.binary(max_size=40) | st.sampled_from([b"\0\0\0\0\3hello", bytes(8), bytes(12)]),
    ),
    max_size=6,
).map(lambda row: b"".join(bytes([k]) + len(b).to_bytes(2) + b for k, b in row))


@settings(max_examples=150, deadline=None)
@given(plaintext=st.binary(max_size=60) | chunks, state=st.sampled_from(State))
def test_whatever_an_authenticated_peer_says_raises_nothing(plaintext: bytes, state: State) -> None:
    client, server = connected()
    if state is not State.OPEN:
        server.close(1, "", START_NS)
    if state is State.CLOSED:
        client.receive(only(server.transmit(START_NS)), SERVER, START_NS)
        server.receive(only(client.transmit(START_NS)), HOME, START_NS)
        assert server.state is State.CLOSED
    datagram = client._control_sealer.seal(Kind.CONTROL, plaintext)
    events = server.receive(datagram, HOME, START_NS)
    assert events is not None
    assert state is State.OPEN or events == []
    now_ns = START_NS
    for _ in range(50):  # and it comes to rest
        out = server.transmit(now_ns)
        assert len(out) <= 2
        assert all(len(d) <= MAX_DATAGRAM_BYTES for d in out)
        server.tick(now_ns)
        now_ns += 100 * MS


# --- an endpoint ---


@dataclass
class Scene:
    """An endpoint with a session (ada) and a half-open one (bob), and what they say next; carol
    has not said HELLO yet."""

    house: House
    ada: Guest
    session: Session
    control: bytes
    audio: bytes
    first: bytes
    hello: bytes

    @property
    def state(self) -> object:
        endpoint = self.house.endpoint
        return state_of(
            [endpoint.sessions, endpoint._half_open, endpoint._by_hello, endpoint._by_deadline]
        )

    @property
    def dropped(self) -> int:
        endpoint = self.house.endpoint
        half_open = [h.session for h in endpoint._half_open.values()]
        counters: list[Counter[str]] = [endpoint.dropped]
        counters += [s.connection.dropped for s in (*endpoint.sessions.values(), *half_open)]
        return sum(c.total() for c in counters)


def scene(cookies_above: int = NEVER) -> Scene:
    house = House(cookies_above=cookies_above)
    ada, bob, carol = (house.guest(name) for name in ("ada", "bob", "carol"))
    if cookies_above == 0:  # everybody has a cookie already
        for guest in (ada, bob, carol):
            house.take(guest, house.give(hello_of(guest), guest.address))
    house.pump(ada)
    (session,) = house.endpoint.sessions.values()
    house.take(bob, house.give(hello_of(bob), bob.address))
    (first,) = bob.client.transmit(house.now_ns)
    ada.client.request(frames.Look)
    (control,) = ada.client.transmit(house.now_ns)
    connection = ada.client._connection
    assert connection is not None
    audio = connection.send_media(Kind.AUDIO, b"opus")
    return Scene(house, ada, session, control, audio, first, hello_of(carol))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), cookies_above=st.sampled_from([0, NEVER]))
def test_an_endpoint_drops_noise_and_damage(data: st.DataObject, cookies_above: int) -> None:
    at = scene(cookies_above)
    house = at.house
    real = [at.control, at.audio, at.first, at.hello]
    forged = st.builds(
        lambda kind, counter, index, rest: pack_header(kind, counter, index) + rest,
        kinds,
        st.integers(0, 2**56 - 1) | st.integers(0, 3),
        st.sampled_from([*house.endpoint.sessions, *house.endpoint._half_open]),
        st.binary(max_size=60),
    )
    bad = data.draw(noise | forged | st.sampled_from(real).flatmap(damages))
    if bad in real:
        return
    address = data.draw(st.sampled_from([b"ada", b"bob", b"carol", b"mallory"]))
    before, dropped = at.state, at.dropped
    house.now_ns += data.draw(st.sampled_from([0, 999 * MS]))
    assert house.endpoint.receive(bad, address, house.now_ns) is None
    assert house.endpoint.work(house.now_ns) is None
    assert at.state == before
    assert at.dropped == dropped + 1
    answers = house.drain()
    assert sum(map(len, answers)) <= len(bad)
    assert all(a[0] in (Kind.COOKIE, Kind.REFUSED) for a in answers)
    # Everybody else goes on as if nothing had been.
    assert house.give(at.hello, b"carol")[0][0] == Kind.WELCOME
    house.give(at.first, b"bob")
    house.give(at.control, b"ada")
    house.give(at.audio, b"ada")
    assert len(house.endpoint.sessions) == 2
    assert at.session.connection.address == b"ada"
    assert [e for s, e in house.events if s is at.session and isinstance(e, Message)]


@pytest.mark.parametrize("cookies_above", [0, NEVER])
def test_every_truncation_of_what_clients_send_is_dropped(cookies_above: int) -> None:
    at = scene(cookies_above)
    before, dropped, count = at.state, at.dropped, 0
    for datagram in (at.control, at.audio, at.first, at.hello):
        for size in range(len(datagram)):
            assert at.house.give(datagram[:size], b"mallory") == []
            count += 1
    assert at.state == before
    assert at.dropped == dropped + count


def test_what_was_taken_once_is_not_taken_again() -> None:
    at = scene()
    for data, address in ((at.control, b"ada"), (at.audio, b"ada"), (at.first, b"bob")):
        at.house.give(data, address)
    before = at.state
    for data in (at.control, at.audio, at.first):
        for address in (b"ada", b"bob", b"mallory"):
            assert at.house.give(data, address) == []
    assert at.state == before
    replayed = [s.connection.dropped["replayed"] for s in at.house.endpoint.sessions.values()]
    assert sum(replayed) == 9


def test_cookies_of_noise_never_pass() -> None:
    at = scene(cookies_above=0)
    for n in range(1, 256):  # all zeros is none
        (answer,) = at.house.give(with_cookie(bytes([n]) * COOKIE_BYTES), b"carol")
        assert answer[0] == Kind.COOKIE


# --- a client ---


def downlink(at: Scene) -> list[bytes]:
    """What the server has for ada: a message, a mix and news, none of them delivered."""
    connection = at.session.connection
    connection.send(frames.encode(frames.Ok(re=1)))
    (control,) = connection.transmit(at.house.now_ns)
    return [
        control,
        connection.send_media(Kind.AUDIO, bytes(20)),
        connection.send_media(Kind.FEED, b"news"),
    ]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_client_drops_noise_and_damage(data: st.DataObject) -> None:
    at = scene()
    real = downlink(at)
    (index,) = {d[8:12] for d in real}
    forged = st.builds(
        lambda kind, counter, rest: pack_header(kind, counter, int.from_bytes(index)) + rest,
        kinds,
        st.integers(0, 2**56 - 1) | st.integers(0, 3),
        st.binary(max_size=60),
    )
    bad = data.draw(noise | forged | st.sampled_from(real).flatmap(damages))
    if bad in real:
        return
    client = at.ada.client
    before = state_of(client)
    assert client.receive(bad, at.house.now_ns + LATER_NS) == []
    assert state_of(client) == before
    assert client.phase is Phase.CONNECTED
    assert client.receive(real[0], at.house.now_ns)


def test_every_truncation_of_what_the_server_sends_is_dropped() -> None:
    at = scene()
    client = at.ada.client
    real = downlink(at)
    before = state_of(client)
    for datagram in real:
        for size in range(len(datagram)):
            assert client.receive(datagram[:size], at.house.now_ns + LATER_NS) == []
    assert state_of(client) == before
    assert client.receive(real[0], at.house.now_ns)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_client_that_connects_believes_only_its_server(data: st.DataObject) -> None:
    house, strict = House(), House(cookies_above=0)
    guest = house.guest("ada")
    hello = hello_of(guest)
    (welcome,) = house.give(hello, b"ada")
    (cookie,) = strict.give(hello, b"ada")
    refused = bytes([Kind.REFUSED, 1, 0, 3]) + hello[4:8]
    bad = data.draw(noise | st.sampled_from([welcome, cookie, refused]).flatmap(damages))
    head = slice(8, 12)  # the server's index, which nothing authenticates yet
    if bad[:8] + bad[12:] == welcome[:8] + welcome[12:] and len(bad[head]) == 4:
        return
    events = guest.client.receive(bad, house.now_ns)
    assert not [e for e in events if not isinstance(e, Disconnected)]
    if not events:
        assert guest.client.phase is Phase.CONNECTING
        house.take(guest, [welcome])
        house.pump(guest)
        assert Connected() in guest.events
        assert sole(house).connection.address == b"ada"


@settings(max_examples=100, deadline=None)
@given(plaintext=st.binary(max_size=200), kind=st.sampled_from([Kind.AUDIO, Kind.FEED, Kind.CROWD]))
def test_whatever_media_an_authenticated_server_sends_raises_nothing(
    plaintext: bytes, kind: Kind
) -> None:
    at = scene()
    datagram = at.session.connection.send_media(kind, plaintext)
    at.ada.client.receive(datagram, at.house.now_ns)
    assert at.ada.client.phase is Phase.CONNECTED


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_frames_an_authenticated_server_sends_raise_nothing(data: st.DataObject) -> None:
    at = scene()
    known = st.sampled_from(FRAMES).flatmap(instances).map(frames.encode)
    said = data.draw(st.lists(known | st.binary(max_size=30) | values.map(packed), max_size=4))
    joined = frames.Joined(
        re=1,
        space="lobby",
        you=frames.Member(id=1, name="Ada"),
        snapshot=frames.Snapshot(
            number=5, title="t", settings=frames.Settings(), members=[], listeners=1
        ),
        reactions=["👏"],
    )
    unreadable: list[dict[str, Any]] = [{"type": ["member"]}, {"type": "member", "member": 5}, {}]
    news = frames.Updates(re=2, space="lobby", first=6, updates=unreadable, hash=0)
    for message in (frames.encode(joined), frames.encode(news), *said):
        at.session.connection.send(message)
    for datagram in at.session.connection.transmit(at.house.now_ns):
        at.ada.client.receive(datagram, at.house.now_ns)
    assert at.ada.client.phase is Phase.CONNECTED
    for datagram in at.ada.client.transmit(at.house.now_ns):
        assert at.house.endpoint.receive(datagram, b"ada", at.house.now_ns) is None
        assert at.house.endpoint.work(at.house.now_ns) is not None


# --- in the midst of it all ---


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_conversation_goes_on_amid_the_noise(seed: int, data: st.DataObject) -> None:
    at = scene()
    house, client = at.house, at.ada.client
    house.give(at.control, b"ada")
    asked = [1]
    for _ in range(8):
        asked.append(client.request(frames.Look))
        for datagram in client.transmit(house.now_ns):
            for _ in range(2):
                bad = data.draw(noise | damages(datagram))
                if bad != datagram:
                    house.give(bad, data.draw(st.sampled_from([b"ada", b"mallory"])))
            answers = house.give(datagram, b"ada")
            house.take(at.ada, answers)
        house.tick(50)
    heard = [e.data for s, e in house.events if s is at.session and isinstance(e, Message)]
    assert [getattr(frames.decode(m), "id", None) for m in heard] == asked
    assert at.session.connection.address == b"ada"
    assert at.session.connection.state is State.OPEN
