"""What one tick of the whole server costs, at 100 and at 1,000 who listen: encodes, seals, calls of
the kernel, memory.  Counted, so that it is the same on every machine."""

import gc
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from protocol import frames
from protocol.packets import Kind
from spaces_server.mixer import egress
from spaces_server.net import mmsg
from tests.unit.hall import FRAME, SECOND, TICK_NS, Hall
from tests.unit.seals_of import INTEL, KINDS, OPENSSL, library, new_seals

LISTENERS = 100, 1_000
WARM_UP = 2 * SECOND  # news of who has come goes out meanwhile
TICKS = 20
BLOCKS_LEFT = 32  # of Python's memory, after a tick: numbers that have grown
BYTES_LEFT = 2_048
# The most that is taken during a tick and given back.  Intel's library writes into the arena: but
# for 32 bytes a listener, its length and address, there is what 512 of them take at a time in
# columns.  OpenSSL makes three objects a seal, nonce, ciphertext and a number in between; they are
# gone before the next 512.
PEAK_BYTES = {
    (OPENSSL, 100): 50_000,
    (OPENSSL, 1_000): 255_000,
    (INTEL, 100): 24_000,
    (INTEL, 1_000): 57_000,
}


@dataclass
class Cost:
    encodes: int
    seals: int
    batches: list[int]  # rows of each
    calls: list[int]  # datagrams of each sendmmsg
    peak_bytes: int
    left_bytes: int
    left_blocks: int


Costs = tuple[str, dict[int, list[Cost]]]


class Tick:
    """A space with one who talks, whose server sends through a kernel that only counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[int] = []
        monkeypatch.setattr(mmsg, "sendmmsg", self._sendmmsg)
        self.sender = mmsg.Sender(-1, mmsg.ADDRESS_BYTES)
        self.hall = Hall()
        self.host = self.hall.person()
        self.space = self.hall.open(self.host)

    def _sendmmsg(self, _fd: int, _at: int, count: int, _flags: int) -> int:
        self.calls.append(count)
        return count

    def come(self, count: int) -> None:
        for guest in self.hall.guests_of(count):
            guest.client.request(frames.Join, space=self.space)
        self.hall.settle()
        for _ in range(WARM_UP):
            self.tick()

    def tick(self) -> Cost:
        hall = self.hall
        hall.send(self.host, self.host.connection.send_media(Kind.AUDIO, self.host.audio()))
        hall.now_ns += TICK_NS
        hall.ticks += 1
        stats, table = hall.node.mixer.stats, hall.node.egress
        encodes, seals = stats.encodes, table.sealed
        batches: list[int] = []
        self.calls.clear()
        if tracemalloc.is_tracing():
            tracemalloc.reset_peak()
        bytes_before, _ = tracemalloc.get_traced_memory()
        blocks_before = sys.getallocatedblocks()
        for batch in hall.node.tick(hall.ticks * FRAME, hall.now_ns, hall.now_ns):
            batches.append(len(batch.lengths))
            self.sender.send_batch(batch.arena, batch.lengths, batch.addresses)
        del batch
        blocks_after = sys.getallocatedblocks()
        bytes_after, peak = tracemalloc.get_traced_memory()
        return Cost(
            encodes=stats.encodes - encodes,
            seals=table.sealed - seals,
            batches=batches,
            calls=list(self.calls),
            peak_bytes=peak - bytes_before,
            left_bytes=bytes_after - bytes_before,
            left_blocks=blocks_after - blocks_before,
        )


@pytest.fixture(scope="module", params=KINDS)
def costs(request: pytest.FixtureRequest) -> Iterator[Costs]:
    """-> what seals, and by listeners what each tick cost."""
    if request.param == INTEL:
        library()
    if not mmsg.AVAILABLE:
        pytest.skip("no sendmmsg here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(egress, "best_seals", lambda: new_seals(request.param))
        tick = Tick(patch)
        costs: dict[int, list[Cost]] = {}
        for listeners in LISTENERS:
            tick.come(listeners + 1 - len(tick.hall.guests))  # beside the host
            gc.collect()
            gc.disable()
            tracemalloc.start()
            try:
                tick.tick()
                costs[listeners] = [tick.tick() for _ in range(TICKS)]
            finally:
                tracemalloc.stop()
                gc.enable()
        yield request.param, costs


def test_one_encode_however_many_listen(costs: Costs) -> None:
    for of_ticks in costs[1].values():
        assert {cost.encodes for cost in of_ticks} == {1}


def test_one_seal_and_one_datagram_a_listener(costs: Costs) -> None:
    for listeners, of_ticks in costs[1].items():
        assert {cost.seals for cost in of_ticks} == {listeners}
        assert {sum(cost.calls) for cost in of_ticks} == {listeners}


def test_one_call_of_the_kernel_for_512_datagrams(costs: Costs) -> None:
    for listeners, of_ticks in costs[1].items():
        for cost in of_ticks:
            assert cost.calls == cost.batches
            assert len(cost.calls) == -(-listeners // egress.BATCH_ROWS)


def test_a_tick_leaves_nothing_behind(costs: Costs) -> None:
    """No object a listener, in any case."""
    for of_ticks in costs[1].values():
        assert max(cost.left_blocks for cost in of_ticks) <= BLOCKS_LEFT
        assert max(cost.left_bytes for cost in of_ticks) <= BYTES_LEFT


def test_the_most_memory_that_a_tick_takes(costs: Costs) -> None:
    kind, by_listeners = costs
    for listeners, of_ticks in by_listeners.items():
        assert max(cost.peak_bytes for cost in of_ticks) <= PEAK_BYTES[kind, listeners]
