"""What a listener who only listens takes of a server: bytes, OpenSSL contexts, work for a ping.

Counted, not timed, and only on the server's side: all objects that can be reached from the node.
What C libraries hold is not seen that way; so their objects are counted.
"""

import gc
import sys
from collections import Counter
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol import frames
from protocol.connection import IDLE_TIMEOUT_NS, KEEPALIVE_NS, MS
from spaces_server.mixer import egress, ipsec_mb
from spaces_server.mixer.seals import OpenSslSeals
from spaces_server.node import Node
from tests.unit.hall import SECOND, Guest, Hall
from tests.unit.seals_of import INTEL, KINDS, library, new_seals

FIRST, MORE = 40, 60
GROWN_ROWS = 64  # by which the egress's table grows from the one to the other
LISTENER_BYTES = 4_500  # of Python's objects; beside them there is what seals, for each
PING_CALLS = 62  # it waits for its turn, and is taken


def reachable(node: Node) -> list[Any]:
    """All objects that the node holds, without code."""
    seen: dict[int, Any] = {}
    todo: list[Any] = [node]
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, type | ModuleType | FunctionType):
            continue
        seen[id(value)] = value
        if isinstance(value, np.ndarray) and value.dtype == object:
            todo += value.tolist()
        elif isinstance(value, MethodType):
            todo.append(value.__self__)
        else:
            todo += gc.get_referents(value)
    return list(seen.values())


def held(node: Node) -> tuple[int, int]:
    """-> (bytes, AEADs)"""
    found = reachable(node)
    return sum(map(sys.getsizeof, found)), sum(type(value) is AESGCM for value in found)


def come(hall: Hall, space: str, count: int) -> list[Guest]:
    """Guests come in, and what that takes is over when they are back."""
    guests = hall.guests_of(count)
    for number, guest in enumerate(guests):
        hall.join(guest, space, name=f"Listener {number}")
    hall.tick(2 * SECOND)
    return guests


@pytest.fixture(scope="module", params=KINDS)
def hall(request: pytest.FixtureRequest) -> Iterator[Hall]:
    """With a space in which FIRST guests listen already, so that tables have begun to grow."""
    if request.param == INTEL:
        library()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(egress, "best_seals", lambda: new_seals(request.param))
        hall = Hall()
        come(hall, hall.open(hall.person()), FIRST)
        yield hall


def aeads_each(hall: Hall) -> int:
    """An AEAD is about 2.5 KB, which are not seen here; a key of the other kind is."""
    return int(isinstance(hall.node.egress.seals, OpenSslSeals))


def keep_alive(hall: Hall, guest: Guest) -> None:
    """Its ping arrives."""
    guest.connection.ping(hall.now_ns)
    for datagram in guest.client.transmit(hall.now_ns):
        hall.send(guest, datagram)


def test_what_a_listener_takes(hall: Hall) -> None:
    before_bytes, before_aeads = held(hall.node)
    come(hall, hall.the_space().record.id, MORE)
    after_bytes, after_aeads = held(hall.node)
    keys_bytes = 0 if aeads_each(hall) else GROWN_ROWS * ipsec_mb.KEY_BYTES
    assert after_bytes - before_bytes <= MORE * LISTENER_BYTES + keys_bytes
    assert after_aeads - before_aeads == MORE * aeads_each(hall), "other keys are bytes"


def test_what_a_listener_does_leaves_nothing_behind(hall: Hall) -> None:
    before_bytes, before_aeads = held(hall.node)
    for guest in hall.guests[1:]:
        for number in range(10):
            assert isinstance(hall.ask(guest, frames.Roster, after=number), frames.RosterPage)
        keep_alive(hall, guest)
    hall.tick(2 * SECOND)
    after_bytes, after_aeads = held(hall.node)
    assert after_bytes - before_bytes <= 64 * len(hall.guests), "numbers that are no small ones now"
    assert after_aeads == before_aeads


def test_who_is_in_no_space_has_no_aead(hall: Hall) -> None:
    before = held(hall.node)[1]
    hall.guests_of(3)
    assert held(hall.node)[1] == before


def test_a_ping_costs_few_calls_and_one_datagram(hall: Hall) -> None:
    guest = hall.guests[-1]
    guest.connection.ping(hall.now_ns)
    (datagram,) = guest.client.transmit(hall.now_ns)
    calls: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: calls.update((event,)))
    try:
        hall.node.receive_datagram(datagram, guest.address, hall.now_ns)
        hall.node.work(hall.now_ns)
        sent = hall.node.drain(hall.now_ns)
    finally:
        sys.setprofile(None)
    assert calls["call"] + calls["c_call"] <= PING_CALLS
    ((pong, address),) = sent
    assert address == guest.address
    assert len(pong) == 28 + 3 + 12


def test_a_session_that_is_heard_stands_once_among_the_deadlines() -> None:
    hall = Hall()
    guests = come(hall, hall.open(hall.person()), 5)
    endpoint = hall.node.endpoint
    assert sum(map(len, endpoint._by_deadline.values())) == len(endpoint.sessions), (
        "coming in leaves one"
    )
    end_ns = hall.now_ns + 2 * IDLE_TIMEOUT_NS
    while hall.now_ns < end_ns:
        hall.now_ns += KEEPALIVE_NS
        for guest in hall.guests:
            keep_alive(hall, guest)
        assert len(hall.node.drain(hall.now_ns)) == len(hall.guests)
        hall.now_ns += 1 * MS
        assert endpoint.tick(hall.now_ns) == []
        assert endpoint.outbox == [], "to look at the time is nothing to be told"
    assert (
        sum(map(len, endpoint._by_deadline.values())) == len(endpoint.sessions) == len(guests) + 1
    )
    hall.now_ns += IDLE_TIMEOUT_NS
    lost = endpoint.tick(hall.now_ns)
    assert len(lost) == len(guests) + 1, "the time of those who are not heard is kept"
