"""A client's socket, over loopback: what comes, since when it was there, and what nobody takes."""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from protocol.connection import MS
from protocol.link import Link
from protocol.noise import public_key
from spaces_client.live import LiveSpace
from spaces_client.udp import MOST_AT_ONCE, Udp, _UdpEndpoint, _WatchedUdp, open_udp

PATIENCE_S = 20.0
KINDS = [_WatchedUdp, _UdpEndpoint]


class Inbox:
    """What was delivered."""

    def __init__(self) -> None:
        self.datagrams: list[tuple[bytes, int]] = []
        self.refusals = 0
        self.something = asyncio.Event()
        self.then: Callable[[], None] = lambda: None

    def received(self, data: bytes, waited_ns: int) -> None:
        self.datagrams.append((data, waited_ns))
        self.something.set()
        self.then()

    def refused(self) -> None:
        self.refusals += 1
        self.something.set()

    async def until(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not enough():
                self.something.clear()
                await self.something.wait()


@asynccontextmanager
async def opened(port: int, kind: type) -> AsyncIterator[tuple[Udp, Inbox]]:
    inbox = Inbox()
    udp = await open_udp("127.0.0.1", port, inbox.received, inbox.refused)
    assert isinstance(udp, kind)
    try:
        yield udp, inbox
    finally:
        udp.close()
        await asyncio.sleep(0)


@pytest.fixture
def server() -> Any:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE_S)
        yield sock


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    if request.param is _UdpEndpoint:

        def cannot(*_: Any) -> None:
            raise NotImplementedError

        # asyncio's own transports use another name for it
        monkeypatch.setattr(asyncio.SelectorEventLoop, "add_reader", cannot)
    chosen: type = request.param
    return chosen


def busy(spent_ns: int) -> None:
    """What a loop does that has other work, by the clock that the kernel tells by."""
    until_ns = time.time_ns() + spent_ns
    while time.time_ns() < until_ns:
        pass


def run(main: Any) -> None:
    asyncio.run(main)


def test_there_and_back(server: socket.socket, kind: type) -> None:
    async def main() -> None:
        async with opened(server.getsockname()[1], kind) as (udp, inbox):
            udp.send(b"hello")
            data, address = server.recvfrom(100)
            assert data == b"hello"
            server.sendto(b"you too", address)
            await inbox.until(lambda: len(inbox.datagrams) == 1)
            ((data, waited_ns),) = inbox.datagrams
            assert data == b"you too"
            assert 0 <= waited_ns <= 1_000 * MS

    run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when a datagram came")
def test_how_long_it_was_there_is_told(server: socket.socket) -> None:
    async def main() -> None:
        async with opened(server.getsockname()[1], _WatchedUdp) as (udp, inbox):
            udp.send(b"here")
            _, address = server.recvfrom(100)
            async with asyncio.timeout(PATIENCE_S):
                while not any(waited_ns >= MS for _, waited_ns in inbox.datagrams):
                    await asyncio.sleep(0)  # the kernel begins to tell a little after it is asked
                    server.sendto(b"when?", address)
                    busy(MS)
                    udp.receive_now()
            inbox.datagrams.clear()
            for text in (b"first", b"second"):
                server.sendto(text, address)
                busy(3 * MS)
            udp.receive_now()
            (first, first_ns), (second, second_ns) = inbox.datagrams
            assert (first, second) == (b"first", b"second")
            # each is read after the time spent since it was sent; the second a little after the
            # first, so the difference of the two says nothing exact
            assert first_ns >= 6 * MS
            assert second_ns >= 3 * MS

    run(main())


def test_others_have_their_turn(server: socket.socket) -> None:
    async def main() -> None:
        async with opened(server.getsockname()[1], _WatchedUdp) as (udp, inbox):
            udp.send(b"here")
            _, address = server.recvfrom(100)
            for number in range(MOST_AT_ONCE + 3):
                server.sendto(b"%d" % number, address)
            udp.receive_now()
            assert len(inbox.datagrams) == MOST_AT_ONCE
            await inbox.until(lambda: len(inbox.datagrams) == MOST_AT_ONCE + 3)
            expected = [b"%d" % number for number in range(MOST_AT_ONCE + 3)]
            assert [data for data, _ in inbox.datagrams] == expected

    run(main())


def test_nobody_there_is_told(server: socket.socket, kind: type) -> None:
    port = server.getsockname()[1]
    server.close()

    async def main() -> None:
        async with opened(port, kind) as (udp, inbox):
            udp.send(b"anybody?")
            await inbox.until(lambda: inbox.refusals >= 1)
            udp.send(b"really?")
            await inbox.until(lambda: inbox.refusals >= 2)
            assert inbox.datagrams == []

    run(main())


def test_nothing_comes_after_it_was_closed(server: socket.socket, kind: type) -> None:
    async def main() -> None:
        async with opened(server.getsockname()[1], kind) as (udp, inbox):
            inbox.then = udp.close
            udp.send(b"here")
            _, address = server.recvfrom(100)
            for _ in range(3):
                server.sendto(b"x", address)
            await inbox.until(lambda: len(inbox.datagrams) == 1)
            udp.receive_now()
            udp.send(b"to nobody")
            udp.close()
            assert len(inbox.datagrams) == 1

    run(main())


def test_a_host_that_there_is_not() -> None:
    async def main() -> None:
        with pytest.raises(OSError, match=r".+"):
            await open_udp("nowhere.invalid", 5004, lambda *_: None, lambda: None)

    run(main())


def test_what_has_come_is_read_before_sound_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        order: list[str] = []

        class Line(_UdpEndpoint):
            def receive_now(self) -> None:
                order.append("read")

        space = LiveSpace(
            Link("127.0.0.1", 5004, public_key(bytes(32)), "s"), None, bitrate=32_000, complexity=0
        )
        space._udp = Line(lambda *_: None, lambda: None)
        monkeypatch.setattr(space.client, "play", lambda *_: order.append("play"))
        space._pull(np.zeros(480, np.float32), 0)
        assert order == ["read", "play"]

    run(main())
