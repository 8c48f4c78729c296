"""The network shell: real sockets over loopback on both event loops; a ticker on a fake clock."""

import asyncio
import contextlib
import errno
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from spaces_server.net import mmsg
from spaces_server.net.ticker import LATENESS_SAMPLES, MAX_BURST, MAX_REST_NS, Ticker
from spaces_server.net.timer import LoopTimer, timer_of
from spaces_server.net.transport import (
    OVERLAP_ROWS,
    Batch,
    MmsgTransport,
    Transport,
    TransportError,
    open_transport,
    pack_address,
    unpack_address,
)

needs_mmsg = pytest.mark.skipif(not mmsg.AVAILABLE, reason="sendmmsg and recvmmsg are Linux's")
MMSG = [pytest.param(True, id="mmsg", marks=needs_mmsg), pytest.param(False, id="portable")]
IPV6 = [pytest.param(True, id="ipv6"), pytest.param(False, id="ipv4")]


def event_loops() -> list[Any]:
    factories = [pytest.param(asyncio.new_event_loop, id="asyncio")]
    with contextlib.suppress(ImportError):  # not on Windows
        import uvloop

        factories.append(pytest.param(uvloop.new_event_loop, id="uvloop"))
    return factories


LOOPS = event_loops()


def run(new_loop: Callable[[], asyncio.AbstractEventLoop], main: Any) -> Any:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(asyncio.wait_for(main, 20))


class Inbox:
    """Gathers what a transport receives; `expect(n)` waits until n datagrams are there."""

    def __init__(self) -> None:
        self.datagrams: Batch = []
        self.batches: list[int] = []
        self._more = asyncio.Event()

    def __call__(self, batch: Batch) -> None:
        self.datagrams += batch
        self.batches.append(len(batch))
        self._more.set()

    async def expect(self, count: int) -> Batch:
        while len(self.datagrams) < count:
            self._more.clear()
            await self._more.wait()
        return self.datagrams


@contextlib.asynccontextmanager
async def pair(
    mmsg: bool, ipv6: bool = True, host: str = "127.0.0.1", cores: int = 1
) -> AsyncIterator[tuple[Transport, Transport, Inbox, bytes]]:
    """A sender, a receiver, the receiver's inbox and its address as the sender must write it."""
    inbox = Inbox()
    sender = await open_transport(host, 0, lambda batch: None, mmsg=mmsg, ipv6=ipv6, cores=cores)
    receiver = await open_transport(host, 0, inbox, mmsg=mmsg, ipv6=ipv6)
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    try:
        yield sender, receiver, inbox, pack_address(host, receiver.local_port, family)
    finally:
        sender.close()
        receiver.close()
        await asyncio.sleep(0)  # asyncio's endpoint closes its socket one turn later


def batch_to(
    address: bytes, lengths: NDArray[np.int32], stride_bytes: int, seed: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8]]:
    rows = len(lengths)
    random = np.random.default_rng(seed)
    arena = random.integers(0, 256, (rows, stride_bytes), dtype=np.uint8)
    # The first bytes number the row, so that a lost datagram is told from a wrong one.
    arena[:, :4] = np.arange(rows, dtype="<u4")[:, None].view(np.uint8)
    return arena, lengths, np.tile(np.frombuffer(address, np.uint8), (rows, 1))


def loopback_has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        return True
    return False


# --- addresses --------------------------------------------------------------------------------


@given(st.ip_addresses(v=4), st.integers(0, 65535), st.sampled_from([socket.AF_INET6, 2]))
def test_ipv4_addresses_go_round_in_both_families(host: Any, port: int, family: int) -> None:
    packed = pack_address(str(host), port, family)
    assert len(packed) == 28
    assert unpack_address(packed) == (str(host), port)


@given(st.ip_addresses(v=6), st.integers(0, 65535))
def test_ipv6_addresses_go_round(host: Any, port: int) -> None:
    packed = pack_address(str(host), port)
    printed, printed_port = unpack_address(packed)
    assert pack_address(printed, printed_port) == packed
    if not host.ipv4_mapped:
        assert printed == socket.inet_ntop(socket.AF_INET6, host.packed)


def test_a_packed_address_is_a_sockaddr_in6() -> None:
    packed = pack_address("192.0.2.1", 5004)
    assert packed[:2] == socket.AF_INET6.to_bytes(2, "little" if packed[0] else "big")
    assert packed[2:4] == bytes([5004 >> 8, 5004 & 255])
    assert packed[8:24] == bytes(10) + b"\xff\xff\xc0\x00\x02\x01"


def test_scopes_are_part_of_an_address() -> None:
    packed = pack_address("fe80::1%7", 9)
    assert packed != pack_address("fe80::1%8", 9)
    assert unpack_address(packed) == ("fe80::1%7", 9)


@pytest.mark.parametrize(
    ("host", "port", "family"),
    [
        ("example.org", 1, socket.AF_INET6),
        ("", 1, socket.AF_INET6),
        ("fe80::1%no-such-interface", 1, socket.AF_INET6),
        ("192.0.2.1", 65536, socket.AF_INET6),
        ("192.0.2.1", -1, socket.AF_INET6),
        ("2001:db8::1", 1, socket.AF_INET),
    ],
)
def test_what_is_no_address_is_refused(host: str, port: int, family: int) -> None:
    with pytest.raises(ValueError, match=r"not|IPv4"):
        pack_address(host, port, family)


@pytest.mark.parametrize("address", [b"", bytes(16), bytes(28), b"\xee" * 28, bytes(29)])
def test_other_bytes_are_no_address(address: bytes) -> None:
    with pytest.raises(ValueError, match="address"):
        unpack_address(address)


# --- transport --------------------------------------------------------------------------------


@needs_mmsg
def test_structures_have_the_kernels_layout() -> None:
    import ctypes

    class MsgHdr(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_void_p),
            ("namelen", ctypes.c_uint32),
            ("iov", ctypes.c_void_p),
            ("iovlen", ctypes.c_size_t),
            ("control", ctypes.c_void_p),
            ("controllen", ctypes.c_size_t),
            ("flags", ctypes.c_int),
        )

    class MMsgHdr(ctypes.Structure):
        _fields_ = (("hdr", MsgHdr), ("len", ctypes.c_uint))

    for dtype, struct in ((mmsg.MSGHDR, MsgHdr), (mmsg.MMSGHDR, MMsgHdr)):
        assert dtype.itemsize == ctypes.sizeof(struct)
        assert dtype.names is not None
        offsets = {name: dtype.fields[name][1] for name in dtype.names}  # type: ignore[index]
        assert offsets == {name: getattr(struct, name).offset for name, *_ in struct._fields_}


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("mmsg", MMSG)
@pytest.mark.parametrize("ipv6", IPV6)
@pytest.mark.parametrize("cores", [1, 2])
def test_three_thousand_datagrams_arrive_whole(
    new_loop: Any, mmsg: bool, ipv6: bool, cores: int
) -> None:
    async def main() -> None:
        async with pair(mmsg, ipv6, cores=cores) as (sender, receiver, inbox, address):
            lengths = np.random.default_rng(2).integers(4, 1201, 3000).astype(np.int32)
            lengths[:2] = 4, 1200
            arena, lengths, addresses = batch_to(address, lengths, 1200)
            # In parts no larger than the smallest receive buffer a system grants; the last
            # part and the first are partial tables, the middle one is longer than one call.
            for first, last in ((0, 100), (100, 101), (101, 1400), (1400, 3000)):
                part = slice(first, last)
                sender.send_batch(arena[part], lengths[part], addresses[part])
                await inbox.expect(last)
            sender.flush()
            expected = {arena[i, : lengths[i]].tobytes() for i in range(3000)}
            assert {data for data, _, _ in inbox.datagrams} == expected
            assert len(inbox.datagrams) == 3000
            assert {unpack_address(a) for _, a, _ in inbox.datagrams} == {
                ("127.0.0.1", sender.local_port)
            }
            assert sender.stats.sent == receiver.stats.received == 3000
            assert sender.stats.send_short == sender.stats.send_refused == 0
            if mmsg:
                assert max(inbox.batches) > 1

    run(new_loop, main())


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("mmsg", MMSG)
@pytest.mark.parametrize("ipv6", IPV6)
def test_an_address_received_from_is_an_address_to_send_to(
    new_loop: Any, mmsg: bool, ipv6: bool
) -> None:
    async def main() -> None:
        echo: list[Transport] = []

        def answer(batch: Batch) -> None:
            for data, address, _ in batch:
                echo[0].send(data[::-1], address)

        inbox = Inbox()
        echo.append(await open_transport("127.0.0.1", 0, answer, mmsg=mmsg, ipv6=ipv6))
        client = await open_transport("127.0.0.1", 0, inbox, mmsg=mmsg, ipv6=ipv6)
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        to_echo = pack_address("127.0.0.1", echo[0].local_port, family)
        client.send(b"abc", to_echo)
        ((data, address, waited_ns),) = await inbox.expect(1)
        assert (data, address) == (b"cba", to_echo)
        assert 0 <= waited_ns <= 1_000 * MS
        echo[0].close()
        client.close()
        await asyncio.sleep(0)

    run(new_loop, main())


@pytest.mark.skipif(not loopback_has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("mmsg", MMSG)
def test_one_socket_serves_both_families(new_loop: Any, mmsg: bool) -> None:
    async def main() -> None:
        inbox = Inbox()
        server = await open_transport("::", 0, inbox, mmsg=mmsg)
        for host in ("127.0.0.1", "::1"):
            client = await open_transport(host, 0, lambda batch: None, mmsg=mmsg)
            client.send(host.encode(), pack_address(host, server.local_port))
            await inbox.expect(len(inbox.datagrams) + 1)
            data, address, _ = inbox.datagrams[-1]
            assert data == host.encode()
            assert unpack_address(address) == (host, client.local_port)
            client.close()
        server.close()
        await asyncio.sleep(0)

    run(new_loop, main())


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("mmsg", MMSG)
def test_refused_datagrams_are_stepped_over(new_loop: Any, mmsg: bool) -> None:
    """Port 0 is an address the kernel refuses; in front, in the middle, twice, and at the end."""

    async def main() -> None:
        async with pair(mmsg) as (sender, _, inbox, address):
            arena, lengths, addresses = batch_to(address, np.full(1200, 40, np.int32), 64)
            refused = [0, 500, 501, 1023, 1024, 1199]
            addresses[refused, 2:4] = 0
            sender.send_batch(arena, lengths, addresses)
            assert sender.stats.sent == 1200 - len(refused)
            assert sender.stats.send_refused == len(refused)
            assert sender.stats.send_short == 0
            numbers = {
                int.from_bytes(data[:4], "little")
                for data, _, _ in await inbox.expect(1200 - len(refused))
            }
            assert numbers == set(range(1200)) - set(refused)
            sender.send(b"x", addresses[0].tobytes())
            assert sender.stats.send_refused == len(refused) + 1

    run(new_loop, main())


@needs_mmsg
def test_what_a_full_socket_does_not_take_is_dropped_and_counted() -> None:
    """A connected UNIX datagram socket takes no name and is full after some ten datagrams."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        sender = mmsg.Sender(ours.fileno(), 0)
        arena, lengths, addresses = batch_to(bytes(28), np.full(5000, 100, np.int32), 100)
        sent, refused = sender.send_batch(arena, lengths, addresses)
        assert 0 < sent < 5000
        assert refused == 0
        for i in range(sent):
            assert theirs.recv(200) == arena[i].tobytes()
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(200)


@pytest.mark.parametrize("mmsg", MMSG)
@pytest.mark.parametrize(
    ("code", "field"),
    [(errno.EAGAIN, "send_short"), (errno.ENOBUFS, "send_short"), (errno.EPERM, "send_refused")],
)
async def test_a_control_datagram_not_sent_is_counted_by_reason(
    mmsg: bool, code: int, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(mmsg) as (sender, _, _, address):

        def fail(data: bytes, to: bytes) -> None:
            raise OSError(code, "")

        monkeypatch.setattr(sender, "_send_one", fail)
        sender.send(b"x", address)
        assert getattr(sender.stats, field) == 1
        assert sender.stats.sent == 0


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("mmsg", MMSG)
def test_sizes_at_the_edge(new_loop: Any, mmsg: bool) -> None:
    """Empty and 2,048 bytes pass, 2,049 are dropped and counted."""

    async def main() -> None:
        async with pair(mmsg) as (sender, receiver, inbox, address):
            for size in (0, 2048, 2049, 3000, 1):
                sender.send(b"z" * size, address)
            assert [len(data) for data, _, _ in await inbox.expect(3)] == [0, 2048, 1]
            assert receiver.stats.receive_oversized == 2
            assert receiver.stats.received == 3

    run(new_loop, main())


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("mmsg", MMSG)
def test_a_receiver_that_raises_does_not_end_reception(
    new_loop: Any, mmsg: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        inbox = Inbox()

        def receive(batch: Batch) -> None:
            if batch[0][0] == b"bad":
                raise RuntimeError("boom")
            inbox(batch)

        receiver = await open_transport("127.0.0.1", 0, receive, mmsg=mmsg)
        sender = await open_transport("127.0.0.1", 0, receive, mmsg=mmsg)
        address = pack_address("127.0.0.1", receiver.local_port)
        sender.send(b"bad", address)
        while not receiver.stats.receive_errors:
            await asyncio.sleep(0)
        sender.send(b"good", address)
        assert [data for data, _, _ in await inbox.expect(1)] == [b"good"]
        assert "boom" in caplog.text
        sender.close()
        receiver.close()
        await asyncio.sleep(0)

    run(new_loop, main())


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("mmsg", MMSG)
def test_a_peer_that_went_away_does_not_end_reception(new_loop: Any, mmsg: bool) -> None:
    """Its port answers with ICMP port unreachable."""

    async def main() -> None:
        async with pair(mmsg) as (sender, receiver, inbox, address):
            gone = await open_transport("127.0.0.1", 0, inbox, mmsg=mmsg)
            dead = pack_address("127.0.0.1", gone.local_port)
            gone.close()
            await asyncio.sleep(0)
            for _ in range(20):
                receiver.send(b"anyone?", dead)
                sender.send(b"still here", address)
            assert len(await inbox.expect(20)) == 20

    run(new_loop, main())


@needs_mmsg
@pytest.mark.parametrize("cores", [1, 2])
async def test_batches_are_sent_beside_each_other_where_there_is_a_core_for_it(cores: int) -> None:
    """With two cores a large batch is handed over, and `flush` has waited for it."""
    async with pair(True, cores=cores) as (sender, _, inbox, address):
        small, large = OVERLAP_ROWS - 1, OVERLAP_ROWS
        sender.send_batch(*batch_to(address, np.full(small, 20, np.int32), 20))
        assert sender.stats.sent == small
        sender.send_batch(*batch_to(address, np.full(large, 20, np.int32), 20))
        assert sender.stats.sent == (small + large if cores == 1 else small)
        sender.flush()
        assert sender.stats.sent == small + large
        await inbox.expect(small + large)


@needs_mmsg
async def test_what_the_other_thread_has_not_begun_is_sent_here() -> None:
    async with pair(True, cores=2) as (sender, _, inbox, address):
        assert isinstance(sender, MmsgTransport)
        assert sender._thread is not None
        begun, go = threading.Event(), threading.Event()
        sender._thread.submit(lambda: (begun.set(), go.wait()))  # it is busy with something
        begun.wait()
        for _ in range(3):
            sender.send_batch(*batch_to(address, np.full(OVERLAP_ROWS, 20, np.int32), 20))
        assert sender.stats.sent == 0
        sender.share()
        assert sender.stats.sent == 3 * OVERLAP_ROWS
        go.set()
        sender.send_batch(*batch_to(address, np.full(OVERLAP_ROWS, 20, np.int32), 20))
        sender.flush()
        sender.share()
        assert sender.stats.sent == 4 * OVERLAP_ROWS
        await inbox.expect(4 * OVERLAP_ROWS)


@needs_mmsg
async def test_a_transport_that_is_closed_has_sent_what_it_was_given() -> None:
    async with pair(True, cores=2) as (sender, _, inbox, address):
        sender.send_batch(*batch_to(address, np.full(2000, 20, np.int32), 20))
        sender.close()
        assert sender.stats.sent == 2000
        sender.send_batch(*batch_to(address, np.full(2000, 20, np.int32), 20))
        await inbox.expect(2000)
        assert sender.stats.sent == 2000


@needs_mmsg
async def test_one_wake_up_reads_one_batch() -> None:
    async with pair(True) as (sender, receiver, inbox, address):
        assert isinstance(receiver, MmsgTransport)
        batch = batch_to(address, np.full(2000, 20, np.int32), 20)
        sender.send_batch(*batch)
        assert sender.stats.sent == 2000
        receiver._on_readable()
        assert len(inbox.datagrams) == 64
        await inbox.expect(2000)


@pytest.mark.parametrize("mmsg", MMSG)
async def test_a_closed_transport_sends_nothing(mmsg: bool) -> None:
    async with pair(mmsg) as (sender, _, _, address):
        sender.close()
        sender.close()
        sender.send(b"x", address)
        sender.send_batch(*batch_to(address, np.full(3, 8, np.int32), 8))
        assert sender.stats.sent == 0


@needs_mmsg
async def test_the_receiver_may_close_the_transport() -> None:
    opened: list[Transport] = []
    done = asyncio.Event()

    def receive(batch: Batch) -> None:
        opened[0].close()
        done.set()

    opened.append(await open_transport("127.0.0.1", 0, receive))
    address = pack_address("127.0.0.1", opened[0].local_port)
    opened[0].send_batch(*batch_to(address, np.full(500, 8, np.int32), 8))
    assert opened[0].stats.sent == 500
    await done.wait()
    assert opened[0].stats.received <= 64
    assert opened[0].stats.receive_errors == 0


@pytest.mark.parametrize("mmsg", MMSG)
async def test_arrays_that_are_no_batch_are_refused(mmsg: bool) -> None:
    async with pair(mmsg) as (sender, _, _, address):
        arena, lengths, addresses = batch_to(address, np.full(4, 8, np.int32), 16)
        sender.send_batch(arena[:0], lengths[:0], addresses[:0])
        for wrong in (
            (arena[:, :8], lengths, addresses),
            (arena[::2], lengths[:2], addresses[:2]),
            (arena[:3], lengths, addresses),
            (arena, lengths, addresses[:3]),
            (arena, lengths, addresses[:, :16]),
            (arena.view(np.int8), lengths, addresses),
            (arena, lengths.astype(np.int64), addresses),
            (arena, lengths + np.int32(9), addresses),
            (arena, lengths - np.int32(9), addresses),
        ):
            with pytest.raises(ValueError, match=r"batch|length"):
                sender.send_batch(*wrong)
        with pytest.raises(ValueError, match="28 bytes"):
            sender.send(b"x", address[:16])
        assert sender.stats.sent == 0


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("mmsg", MMSG)
def test_what_cannot_be_opened_is_said_in_plain_words(new_loop: Any, mmsg: bool) -> None:
    async def message(host: str, port: int, ipv6: bool = True) -> str:
        with pytest.raises(TransportError) as caught:
            await open_transport(host, port, lambda batch: None, mmsg=mmsg, ipv6=ipv6)
        return str(caught.value)

    async def main() -> None:
        async with pair(mmsg) as (_, receiver, _, _):
            port = receiver.local_port
            assert await message("127.0.0.1", port) == (
                f"UDP port {port} is already in use; choose another with --port"
            )
            assert await message("", port) == (
                f"UDP port {port} is already in use; choose another with --port"
            )
        assert "not an address of this machine" in await message("192.0.2.1", 0)
        assert "is not known here" in await message("no-such-host.invalid", 0)
        assert "between 0 and 65535" in await message("127.0.0.1", 65536)
        assert "is not known here" in await message("::1", 0, ipv6=False)

    run(new_loop, main())


# --- ticker -----------------------------------------------------------------------------------

MS = 1_000_000


class FakeAlarm:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeTimer:
    """A clock and one alarm."""

    def __init__(self) -> None:
        self.now_ns = 7_000_000_123
        self.armed: FakeAlarm | None = None
        self.arms = 0

    def time(self) -> float:
        return self.now_ns / 1e9

    def clock_ns(self) -> int:
        return self.now_ns

    def close(self) -> None: ...

    def call_at(self, when: float, callback: Callable[[], None], /) -> FakeAlarm:
        assert self.armed is None or self.armed.cancelled, "one alarm at a time"
        self.arms += 1
        self.armed = FakeAlarm(when, callback)
        return self.armed

    def fire(self, delay_ns: int = 0) -> None:
        """Let the alarm go off, `delay_ns` late."""
        alarm, self.armed = self.armed, None
        assert alarm is not None
        assert not alarm.cancelled
        self.now_ns = max(self.now_ns, round(alarm.when * 1e9)) + delay_ns
        alarm.callback()


class Ticks:
    """A ticker with a fake timer; the times its ticks were given, and their deadlines."""

    def __init__(
        self,
        period_ns: int = 20 * MS,
        work_ns: int = 0,
        due: Callable[[int], int] = lambda now_ns: now_ns,
        stride: Callable[[], int] = lambda: 1,
    ) -> None:
        self.timer = FakeTimer()
        self.times: list[int] = []
        self.numbers: list[int] = []
        self.deadlines: list[int] = []
        self.work_ns = work_ns
        self.ticker = Ticker(period_ns, self._tick, self.timer, self.timer.clock_ns, due, stride)
        self.start_ns = self.timer.now_ns
        self.ticker.start()

    def _tick(self, now_ns: int) -> None:
        self.times.append(now_ns)
        self.numbers.append(self.ticker.number)
        self.deadlines.append(self.ticker.deadline_ns)
        self.timer.now_ns += self.work_ns

    def due_ns(self, k: int) -> int:
        return self.start_ns + k * 20 * MS


def test_ticks_keep_to_their_deadlines_for_an_hour() -> None:
    ticks = Ticks(work_ns=7 * MS + 300_001)
    for _ in range(180_000):
        ticks.timer.fire()
    late_ns = np.array(ticks.times) - np.array([ticks.due_ns(k) for k in range(1, 180_001)])
    assert not late_ns.any()  # no drift
    assert ticks.ticker.skipped == ticks.ticker.errors == 0
    assert ticks.ticker.ticks == 180_000


@given(st.lists(st.integers(0, 15 * MS), min_size=1, max_size=50))
def test_each_deadline_has_its_tick_however_late(delays_ns: list[int]) -> None:
    ticks = Ticks()
    for delay_ns in delays_ns:
        ticks.timer.fire(delay_ns)
    late_ns = [time_ns - ticks.due_ns(k) for k, time_ns in enumerate(ticks.times, 1)]
    assert late_ns == delays_ns
    assert ticks.ticker.skipped == 0


@pytest.mark.parametrize("stall_periods", [*range(MAX_BURST + 4), 50])
def test_a_short_stall_is_made_up_for_and_a_long_one_skipped(stall_periods: int) -> None:
    ticks = Ticks()
    ticks.timer.fire()
    ticks.timer.fire(stall_periods * 20 * MS)  # tick 2 is this late: so many more are due as well
    stalled_ns = ticks.timer.now_ns
    for _ in range(20):
        ticks.timer.fire()
    at_once = ticks.times.count(stalled_ns)
    if stall_periods < MAX_BURST:
        assert (at_once, ticks.ticker.skipped) == (stall_periods + 1, 0)
    else:
        assert (at_once, ticks.ticker.skipped) == (1, stall_periods)
    # Back on the old grid, every deadline accounted for.
    accounted = ticks.ticker.ticks + ticks.ticker.skipped
    assert 0 <= ticks.times[-1] - ticks.due_ns(accounted) < MS
    assert ticks.deadlines == [ticks.due_ns(number + 1) for number in ticks.numbers]
    assert ticks.ticker.lateness()["max"] == pytest.approx(stall_periods * 20, abs=1)


def test_ticks_longer_than_a_period_never_fall_behind_for_ever() -> None:
    ticks = Ticks(work_ns=30 * MS)
    for _ in range(1000):
        ticks.timer.fire()
        behind_ns = (
            ticks.timer.now_ns - 30 * MS - ticks.due_ns(ticks.ticker.ticks + ticks.ticker.skipped)
        )
        assert behind_ns <= MAX_BURST * 20 * MS
    behind = behind_ns // (20 * MS)  # not made up for yet, and not skipped
    assert ticks.ticker.skipped + behind == pytest.approx(500, abs=1)


def test_a_failing_tick_is_logged_and_counted_and_the_next_one_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    timer = FakeTimer()
    times: list[int] = []

    def tick(now_ns: int) -> None:
        times.append(now_ns)
        if len(times) == 2:
            raise RuntimeError("boom")

    ticker = Ticker(20 * MS, tick, timer, timer.clock_ns)
    ticker.start()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            timer.fire()
    assert (ticker.ticks, ticker.errors, len(times)) == (3, 1, 3)
    assert caplog.text.count("RuntimeError: boom") == 1


def test_lateness_is_of_the_recent_ticks_and_bounded() -> None:
    ticks = Ticks()
    assert ticks.ticker.lateness() == {"p50": 0, "p99": 0, "max": 0}
    ticks.timer.fire(19 * MS)
    assert ticks.ticker.lateness() == pytest.approx({"p50": 19, "p99": 19, "max": 19}, abs=1)
    for i in range(LATENESS_SAMPLES):
        ticks.timer.fire(5 * MS if i % 20 == 0 else 2 * MS)
    assert ticks.ticker.lateness() == pytest.approx({"p50": 2, "p99": 5, "max": 5}, abs=1)


def test_lateness_can_be_of_the_ticks_since_a_moment() -> None:
    ticks = Ticks()
    ticks.timer.fire(19 * MS)
    ticks.ticker.forget_lateness()
    assert ticks.ticker.lateness() == {"p50": 0, "p99": 0, "max": 0}
    ticks.timer.fire(5 * MS)
    assert ticks.ticker.lateness()["max"] == pytest.approx(5, abs=1)


def test_a_ticker_with_nothing_due_rests() -> None:
    """Nothing for hours is a wake-up every few seconds; the numbers go on all the same."""
    ticks = Ticks(due=lambda now_ns: now_ns + 3_600_000 * MS)
    for _ in range(3_600):
        ticks.timer.fire()
        assert 0 <= ticks.times[-1] - ticks.due_ns(ticks.numbers[-1] + 1) < MS
    most = MAX_REST_NS // (20 * MS) + 1
    assert ticks.numbers[-1] == pytest.approx(3_600 * most, abs=most)
    assert ticks.ticker.skipped == 0


@given(st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 40)), max_size=40))
def test_what_is_due_gets_its_tick_in_time(rests_ms: list[tuple[int, int]]) -> None:
    """Whatever a tick says about the next one, and however long it takes."""
    due = [0]
    ticks = Ticks(due=lambda now_ns: due[0])
    for rest_ms, work_ms in rests_ms:
        ticks.work_ns = work_ms * MS
        due[0] = ticks.timer.now_ns + rest_ms * MS
        ticks.timer.fire()
        ended_ns = ticks.timer.now_ns
        ticks.work_ns = 0
        wanted_ns = max(due[0], ended_ns)
        while ticks.times[-1] < wanted_ns:
            ticks.timer.fire()
        assert ticks.times[-1] - wanted_ns <= 21 * MS
        assert ticks.times[-1] - ticks.due_ns(ticks.numbers[-1] + 1) >= 0
    assert ticks.ticker.skipped == 0


@pytest.mark.parametrize("after_ms", [0, 1, 19, 20, 21, 500, 979])
def test_what_comes_in_wakes_a_resting_ticker(after_ms: int) -> None:
    due = [1 << 62]
    ticks = Ticks(due=lambda now_ns: due[0])
    ticks.timer.fire()
    ticks.timer.now_ns += after_ms * MS
    woken_ns = ticks.timer.now_ns
    ticks.ticker.wake()
    assert ticks.timer.armed is not None
    assert ticks.timer.armed.when * 1e9 - woken_ns > 20 * MS or after_ms > 950  # nothing is due
    due[0] = woken_ns
    ticks.ticker.wake()
    ticks.ticker.wake()
    ticks.timer.fire()
    assert 0 <= ticks.times[-1] - woken_ns <= 21 * MS
    assert 0 <= ticks.times[-1] - ticks.due_ns(ticks.numbers[-1] + 1) < MS


@given(
    st.lists(st.tuples(st.integers(0, 150), st.integers(0, 50), st.integers(0, 90)), max_size=40)
)
def test_every_second_tick_is_as_a_ticker_of_twice_the_period(
    days_ms: list[tuple[int, int, int]],
) -> None:
    """The same ticks, and as many wake-ups of the loop: late, resting, woken or not."""
    due = [0]
    seen = []
    for period_ms, stride in ((20, 1), (10, 2)):
        ticks = Ticks(
            period_ns=period_ms * MS, due=lambda _: due[0], stride=lambda stride=stride: stride
        )
        ticks.timer.now_ns = ticks.start_ns = 20 * MS - period_ms * MS  # the first: at 20 ms
        ticks.ticker.start()
        for late_ms, work_ms, rest_ms in days_ms:
            ticks.work_ns = work_ms * MS
            due[0] = max(ticks.timer.now_ns, 20 * MS) + rest_ms * MS
            ticks.timer.fire(late_ms * MS)
            due[0] = 0
            ticks.ticker.wake()
        numbers = [number // stride for number in ticks.numbers]
        assert not any(number % stride for number in ticks.numbers)
        seen.append((ticks.times, numbers, ticks.timer.arms, ticks.ticker.skipped // stride))
    assert seen[0] == seen[1]


def test_half_ticks_begin_and_end_when_they_are_wanted() -> None:
    stride = [2]
    ticks = Ticks(period_ns=10 * MS, stride=lambda: stride[0])
    ticks.timer.fire()
    ticks.timer.fire()
    assert ticks.numbers == [0, 2]
    ticks.timer.now_ns += 3 * MS
    stride[0] = 1
    ticks.ticker.wake()  # a packet came
    for _ in range(4):
        ticks.timer.fire()
    assert ticks.numbers == [0, 2, 3, 4, 5, 6]
    stride[0] = 2
    for _ in range(3):
        ticks.timer.fire()
    assert ticks.numbers[6:] in ([7, 8, 10], [8, 10, 12])
    assert ticks.ticker.skipped == 0


def test_a_ticker_that_does_not_rest_is_not_woken() -> None:
    ticks = Ticks()
    ticks.timer.fire()
    arms = ticks.timer.arms
    ticks.ticker.wake()
    ticks.ticker.stop()
    ticks.ticker.wake()
    assert ticks.timer.arms == arms


def test_a_tick_may_stop_the_ticker() -> None:
    timer = FakeTimer()
    ticker = Ticker(20 * MS, lambda now_ns: ticker.stop(), timer, timer.clock_ns)
    ticker.start()
    timer.fire()
    assert timer.armed is None
    assert ticker.ticks == 1


def test_a_stopped_ticker_starts_afresh() -> None:
    ticks = Ticks()
    ticks.ticker.stop()
    assert ticks.timer.armed is not None
    assert ticks.timer.armed.cancelled
    ticks.timer.now_ns += 1000 * MS
    restart_ns = ticks.timer.now_ns
    ticks.ticker.start()
    ticks.timer.fire()
    assert 0 <= ticks.times[0] - restart_ns - 20 * MS < MS
    assert ticks.ticker.skipped == 0


def test_a_period_must_be_positive() -> None:
    with pytest.raises(ValueError, match="period"):
        Ticker(0, lambda now_ns: None, FakeTimer())


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("new_timer", [timer_of, LoopTimer])
def test_real_timers_never_tick_early(new_loop: Any, new_timer: Any) -> None:
    """A hundred ticks of 2 ms on the machine's clock: early is a bug, late is the machine."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        early: list[int] = []
        start_ns = 0

        def tick(now_ns: int) -> None:
            due_ns = start_ns + (ticker.ticks + ticker.skipped) * 2 * MS
            early.append(now_ns < due_ns)
            if ticker.ticks == 100:
                ticker.stop()
                done.set_result(None)

        timer = new_timer(loop)
        ticker = Ticker(2 * MS, tick, timer)
        ticker.start()
        start_ns = ticker._deadline_ns - 2 * MS
        await done
        timer.close()
        assert not any(early)
        assert len(early) == 100

    run(new_loop, main())
