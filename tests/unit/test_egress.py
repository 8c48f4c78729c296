"""The egress table: what is sealed in rows is what each row's own client can open."""

import os
import struct
import sys
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FrameType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.connection import MS, Connection, Media, Roamed
from protocol.packets import HEADER_BYTES, MAX_PLAINTEXT_BYTES, TAG_BYTES, Kind
from protocol.sealing import EPOCH_PACKETS, SessionKeys
from spaces_server.mixer import egress as egress_module
from spaces_server.mixer.egress import ADDRESS_BYTES, BATCH_ROWS, Batch, Egress
from spaces_server.mixer.ipsec_mb import BURST_JOBS
from tests.unit.seals_of import INTEL, KINDS, library, new_seals

SERVER = b"server".ljust(ADDRESS_BYTES, b".")
NOW = 1_000 * MS


@pytest.fixture(autouse=True, params=KINDS)
def sealed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds whatever seals the rows."""
    if request.param == INTEL:
        library()
    monkeypatch.setattr(egress_module, "best_seals", lambda: new_seals(request.param))


@dataclass
class Pair:
    """Both ends of a session."""

    server: Connection
    client: Connection
    address: bytes
    headers: list[bytes] = field(default_factory=list)  # of all that came to the client

    def receive(self, datagram: bytes) -> list[Media]:
        self.headers.append(datagram[:HEADER_BYTES])
        events = self.client.receive(datagram, SERVER, NOW)
        assert events is not None, f"{self.address!r} cannot open it: {self.client.dropped}"
        media = [e for e in events if isinstance(e, Media)]
        assert media == events
        return media


def pair(number: int) -> Pair:
    address = b"client %d" % number
    address = address.ljust(ADDRESS_BYTES, b".")
    to_client, to_server = os.urandom(32), os.urandom(32)
    server = Connection(
        SessionKeys.derive(send=to_client, receive=to_server),
        remote_index=number + 1,
        address=address,
        now_ns=NOW,
        entropy=os.urandom,
        keep_alive=False,
    )
    client = Connection(
        SessionKeys.derive(send=to_server, receive=to_client),
        remote_index=0xFFFF_0000 + number,
        address=SERVER,
        now_ns=NOW,
        entropy=os.urandom,
        keep_alive=True,
    )
    return Pair(server, client, address)


def pairs(count: int) -> list[Pair]:
    return [pair(number) for number in range(count)]


def datagrams(batches: Iterable[Batch]) -> list[tuple[bytes, bytes]]:
    """-> (address, datagram) of every row."""
    seen = []
    for batch in batches:
        assert len(batch.arena) == len(batch.lengths) == len(batch.addresses)
        assert batch.arena.dtype == batch.addresses.dtype == np.uint8
        assert batch.lengths.dtype == np.int32
        rows = zip(batch.arena, batch.lengths, batch.addresses, strict=True)
        seen += [(address.tobytes(), row[:length].tobytes()) for row, length, address in rows]
    return seen


def deliver(batches: Iterable[Batch], people: list[Pair]) -> dict[bytes, list[tuple[int, bytes]]]:
    """Brings every datagram to whom its address says; -> address -> [(kind, plaintext)]."""
    by_address = {p.address: p for p in people}
    got: dict[bytes, list[tuple[int, bytes]]] = {}
    for address, datagram in datagrams(batches):
        (media,) = by_address[address].receive(datagram)
        got.setdefault(address, []).append((media.kind, media.plaintext))
    return got


def test_nothing_to_send() -> None:
    egress = Egress()
    assert not list(egress.seal())
    egress.put(Kind.AUDIO, b"nobody", [])
    assert not list(egress.seal())


def test_every_row_opens_at_its_own_client_only() -> None:
    people = pairs(3)
    egress = Egress()
    rows = [egress.add(p.server) for p in people]
    egress.put(Kind.AUDIO, b"the mix", rows)
    batches = list(egress.seal())
    sent = datagrams(batches)
    assert [address for address, _ in sent] == [p.address for p in people]
    for address, datagram in sent:
        for person in people:
            if person.address != address:
                assert person.client.receive(datagram, SERVER, NOW) is None
    assert deliver(batches, people) == {p.address: [(Kind.AUDIO, b"the mix")] for p in people}


def test_a_row_seals_as_its_connection_would() -> None:
    one, other = pair(7), pair(7)
    other.server.media_sealer.key = one.server.media_sealer.key
    egress = Egress()
    egress.put(Kind.FEED, b"news", [egress.add(one.server)])
    ((_, datagram),) = datagrams(egress.seal())
    assert datagram == other.server.send_media(Kind.FEED, b"news")


def test_several_jobs_of_a_tick() -> None:
    people = pairs(4)
    egress = Egress()
    rows = [egress.add(p.server) for p in people]
    longest = bytes(MAX_PLAINTEXT_BYTES)
    egress.put(Kind.FEED, longest, rows)
    egress.put(Kind.AUDIO, b"one mix", rows[:3])
    egress.put(Kind.AUDIO, b"another", rows[3:])
    (batch,) = egress.seal()
    assert set(batch.lengths.tolist()) == {1_200, HEADER_BYTES + 7 + TAG_BYTES}
    got = deliver([batch], people)
    for person in people[:3]:
        assert got[person.address] == [(Kind.FEED, longest), (Kind.AUDIO, b"one mix")]
    assert got[people[3].address] == [(Kind.FEED, longest), (Kind.AUDIO, b"another")]
    assert egress.sealed == 8
    assert not list(egress.seal())  # a tick's jobs are of that tick


def counters(person: Pair) -> list[int]:
    return [struct.unpack_from(">Q", h)[0] & (1 << 56) - 1 for h in person.headers]


def test_counters_go_on_by_one() -> None:
    people = pairs(2)
    egress = Egress()
    rows = [egress.add(p.server) for p in people]
    for tick in range(10):
        egress.put(Kind.AUDIO, b"a", rows[: 1 + tick % 2])
        egress.put(Kind.FEED, b"f", rows)
        deliver(egress.seal(), people)
    assert counters(people[0]) == list(range(20))
    assert counters(people[1]) == list(range(15))


def test_the_connection_counts_on_before_and_after_its_row() -> None:
    person = pair(0)
    egress = Egress()
    for _ in range(3):
        person.receive(person.server.send_media(Kind.AUDIO, b"alone"))
        row = egress.add(person.server)
        egress.put(Kind.AUDIO, b"in a row", [row])
        deliver(egress.seal(), [person])
        egress.remove(row)
    assert counters(person) == list(range(6))


def test_rows_are_reused_and_the_table_grows() -> None:
    people = pairs(200)
    egress = Egress()
    rows = [egress.add(p.server) for p in people]
    assert len(set(rows)) == len(egress) == 200
    for row in rows[::2]:
        egress.remove(row)
    assert len(egress) == 100
    newcomers = [pair(1_000 + i) for i in range(100)]
    new_rows = [egress.add(p.server) for p in newcomers]
    assert set(new_rows) == set(rows[::2])
    egress.put(Kind.AUDIO, b"x", [*new_rows, *rows[1::2]])
    got = deliver(egress.seal(), people + newcomers)
    assert set(got) == {p.address for p in [*people[1::2], *newcomers]}


def test_keys_are_renewed_at_the_border_of_an_epoch() -> None:
    people = pairs(3)
    for behind, person in enumerate(people):
        person.server.media_sealer.counter = EPOCH_PACKETS - 3 + behind
    old_keys = [p.server.media_sealer.key for p in people]
    egress = Egress()
    rows = [egress.add(p.server) for p in people]
    for tick in range(6):
        egress.put(Kind.AUDIO, b"%d" % tick, rows)
        got = deliver(egress.seal(), people)
        assert got == {p.address: [(Kind.AUDIO, b"%d" % tick)] for p in people}
        renewed = [p.server.media_sealer.key != k for p, k in zip(people, old_keys, strict=True)]
        assert renewed == [tick >= 3, tick >= 2, tick >= 1]


def test_a_row_that_ends_at_the_border_renews_once() -> None:
    person = pair(0)
    person.server.media_sealer.counter = EPOCH_PACKETS - 1
    egress = Egress()
    for text in (b"the last of its key", b"the first of the next"):
        row = egress.add(person.server)
        egress.put(Kind.AUDIO, text, [row])
        assert deliver(egress.seal(), [person]) == {person.address: [(Kind.AUDIO, text)]}
        egress.remove(row)
    person.receive(person.server.send_media(Kind.AUDIO, b"on its own again"))


def test_an_address_that_is_not_proven_gets_no_more_than_it_sent() -> None:
    mover, other = people = pairs(2)
    egress = Egress()
    rows = [egress.add(p.server) for p in people]
    mover.address = b"elsewhere".ljust(ADDRESS_BYTES, b".")
    uplink = mover.client.send_media(Kind.AUDIO, bytes(472))
    events = mover.server.receive(uplink, mover.address, NOW)
    assert events is not None
    assert isinstance(events[0], Roamed)
    egress.moved(rows[0])
    sent = {p.address: 0 for p in people}
    for _ in range(20):
        egress.put(Kind.AUDIO, bytes(72), rows)
        for address, datagram in datagrams(egress.seal()):
            sent[address] += len(datagram)
    assert sent == {mover.address: 500, other.address: 2_000}  # in: 500 bytes
    mover.server.credit_bytes = None  # proven
    egress.put(Kind.AUDIO, bytes(72), rows)
    assert [address for address, _ in datagrams(egress.seal())] == [mover.address, other.address]


def test_the_credit_is_that_of_the_row_now_not_of_whoever_had_it() -> None:
    first, second = people = pairs(2)
    egress = Egress()
    first.server.credit_bytes = 0
    row = egress.add(first.server)
    egress.put(Kind.AUDIO, b"x", [row])
    assert not list(egress.seal())
    egress.remove(row)
    assert egress.add(second.server) == row
    egress.put(Kind.AUDIO, b"x", [row])
    assert deliver(egress.seal(), people) == {second.address: [(Kind.AUDIO, b"x")]}


def test_a_thousand_rows() -> None:
    people = pairs(1_000)
    egress = Egress()
    rows = np.array([egress.add(p.server) for p in people])
    shuffled = np.random.default_rng(1).permutation(rows)
    quarters = np.split(shuffled, 4)
    for tick in range(2):
        for number, quarter in enumerate(quarters):
            egress.put(Kind.AUDIO, b"%d: %d" % (tick, number) * (number + 1), quarter)
        batches = list(egress.seal())
        assert sum(len(batch.lengths) for batch in batches) == 1_000
        got = deliver(batches, people)
        for number, quarter in enumerate(quarters):
            text = b"%d: %d" % (tick, number) * (number + 1)
            for row in quarter:
                assert got[people[row].address] == [(Kind.AUDIO, text)]


def test_a_batch_can_go_before_the_next_one_is_sealed() -> None:
    person = pair(0)
    egress = Egress()
    rows = np.full(1, egress.add(person.server))
    for _ in range(BATCH_ROWS + 1):
        egress.put(Kind.AUDIO, b"to one", rows)
    egress.put(Kind.FEED, b"to one", rows)
    batches = egress.seal()
    counted = []
    for batch in batches:
        deliver([batch], [person])
        counted.append(len(person.headers))
    assert counted == [BATCH_ROWS, BATCH_ROWS + 2]
    assert counters(person) == list(range(BATCH_ROWS + 2))


@pytest.mark.parametrize("count", [BATCH_ROWS - 1, BATCH_ROWS, BATCH_ROWS + 1, 3 * BATCH_ROWS])
def test_a_large_job_is_cut_into_batches(count: int) -> None:
    """Costs: one seal a row, and as many sends as batches."""
    person = pair(0)
    egress = Egress()
    row = egress.add(person.server)
    others = [egress.add(pair(1).server) for _ in range(2)]
    egress.put(Kind.AUDIO, b"x", np.full(1, row))
    egress.put(Kind.AUDIO, b"x", np.resize(others, count))
    batches = [len(batch.lengths) for batch in egress.seal()]
    assert sum(batches) == egress.sealed == count + 1
    assert len(batches) <= -(-(count + 1) // BATCH_ROWS) + 1
    assert max(batches) <= 2 * BATCH_ROWS


@pytest.mark.parametrize("rows_a_job", [64, 512])
def test_no_line_of_python_runs_for_a_datagram(rows_a_job: int) -> None:
    """Costs: what runs depends on how many bursts of seals there are in a batch, not how many rows,
    but for calls into the library."""
    half, whole = (calls_to_seal(count) for count in (rows_a_job // 2, rows_a_job))
    bursts = -(-rows_a_job // BURST_JOBS) - -(-rows_a_job // 2 // BURST_JOBS)
    assert whole - half <= 2 * bursts


def calls_to_seal(count: int) -> int:
    egress = Egress()
    rows = np.array([egress.add(p.server) for p in pairs(count)])
    egress.put(Kind.AUDIO, bytes(80), rows)
    calls = 0

    def note(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(note)
    try:
        (batch,) = egress.seal()
    finally:
        sys.setprofile(None)
    assert len(batch.lengths) == egress.sealed == count
    return calls


def test_memory_does_not_grow_with_the_ticks() -> None:
    people = pairs(1_000)
    egress = Egress()
    rows = np.array([egress.add(p.server) for p in people])
    used: list[int] = []
    peaks: list[int] = []
    tracemalloc.start()
    try:
        for _ in range(40):
            tracemalloc.reset_peak()
            egress.put(Kind.AUDIO, bytes(80), rows)
            assert sum(len(batch.lengths) for batch in egress.seal()) == 1_000
            now, peak = tracemalloc.get_traced_memory()
            used.append(now)
            peaks.append(peak - now)
    finally:
        tracemalloc.stop()
    assert used[-1] - used[4] < 64_000
    assert max(peaks[5:]) < 1.5 * peaks[4] + 64_000


@pytest.mark.parametrize("row_count", [1, 64, 65])
def test_growing_keeps_what_is_there(row_count: int) -> None:
    people = pairs(row_count)
    egress = Egress()
    rows: list[int] = []
    for person in people:
        rows.append(egress.add(person.server))
        egress.put(Kind.AUDIO, b"x", rows)
        deliver(egress.seal(), people)
    for number, person in enumerate(people):
        assert counters(person) == list(range(row_count - number))


Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["come", "go", "say", "say", "tick"]), st.integers(0, 255)),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_happens_no_nonce_comes_twice(steps: list[Step]) -> None:
    """People come, go and come back; what is put for them is what they get, in order."""
    people = pairs(6)
    egress = Egress()
    row_of: dict[int, int] = {}
    expected: dict[bytes, list[tuple[int, bytes]]] = {}
    for what, number in [*steps, ("tick", 0)]:
        who = number % len(people)
        if what == "come" and who not in row_of:
            row_of[who] = egress.add(people[who].server)
        elif what == "go" and who in row_of and not expected:
            egress.remove(row_of.pop(who))
        elif what == "say":
            chosen = [i for i in row_of if number >> i & 1]
            text = os.urandom(number % 50)
            kind = (Kind.AUDIO, Kind.FEED)[number & 1]
            egress.put(kind, text, [row_of[i] for i in chosen])
            for i in chosen:
                expected.setdefault(people[i].address, []).append((kind, text))
        elif what == "tick":
            assert deliver(egress.seal(), people) == expected
            expected = {}
    for person in people:
        assert counters(person) == list(range(len(person.headers)))
    assert len(egress) == len(row_of)
