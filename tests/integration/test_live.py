"""The library over real sockets: `async with connect(link) as space:`."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import wave
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import uvloop

from protocol import connection
from protocol.connection import MS, CloseCode
from protocol.link import Link, LinkError
from protocol.noise import public_key
from protocol.roles import Role
from spaces_client.audio import BLOCK_SAMPLES, Samples
from spaces_client.client import Changed, Client, Disconnected, Ended
from spaces_client.live import LiveSpace, SpacesError, connect, host
from spaces_client.wav import WavOutput
from spaces_server.node import Limits
from spaces_server.server import Server
from tests.integration.processes import PATIENCE_S, ServerCommand

KEY = bytes(range(32))
CYCLES = 20


@contextlib.asynccontextmanager
async def running_server() -> AsyncIterator[tuple[Server, Link]]:
    server = Server(KEY, Limits())
    await server.start("127.0.0.1", 0)
    waiting = asyncio.ensure_future(server.wait())
    try:
        yield server, Link("127.0.0.1", server.port, public_key(KEY))
    finally:
        server.stop()
        await waiting


async def until(space: LiveSpace, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        if not holds():
            async for _ in space.events():
                if holds():
                    return


async def test_two_people_in_a_space() -> None:
    async with running_server() as (_, link), host(link, title="Talk", name="Ada") as ada:
        assert (ada.title, ada.me.name, ada.me.role) == ("Talk", "Ada", Role.HOST)
        async with connect(str(ada.link), name="Bob") as bob:
            assert [m.name for m in bob.stage] == ["Ada"]
            assert [m.name for m in await ada.roster()] == ["Ada", "Bob"]
            await bob.raise_hand()
            await until(ada, lambda: bool(ada.hands))
            await ada.bring_up(ada.hands[0].id)
            await until(bob, lambda: bob.me.role is Role.SPEAKER)
            with pytest.raises(SpacesError) as refusal:
                await bob.close()  # not a speaker's to do
            assert refusal.value.code
            assert "\n" not in str(refusal.value)
            async with connect(await ada.invite(), name="Cyd") as cyd:
                assert cyd.me.role is Role.SPEAKER
            await ada.close()
            assert Changed in [type(event) async for event in ended(bob)]


async def ended(space: LiveSpace) -> AsyncIterator[object]:
    async with asyncio.timeout(PATIENCE_S):
        async for event in space.events():
            yield event
            if isinstance(event, Ended):
                return


async def test_links_that_lead_nowhere() -> None:
    with pytest.raises(LinkError, match="starts with spaces://"):
        async with connect("nonsense"):
            pass
    async with running_server() as (_, link):
        with pytest.raises(SpacesError, match="names no space"):
            async with connect(link):
                pass
        with pytest.raises(SpacesError, match="there is no such space"):
            async with connect(Link(link.host, link.port, link.key, "nowhere")):
                pass
        with pytest.raises(SpacesError, match="another key"):
            async with host(Link(link.host, link.port, bytes(31) + b"\1"), title="Talk"):
                pass
    with pytest.raises(SpacesError, match="nothing listens"):
        async with host(link, title="Talk"):
            pass


async def test_a_closing_server_ends_the_session_at_once() -> None:
    async with running_server() as (server, link), host(link, title="Talk") as space:
        server.stop()
        async with asyncio.timeout(PATIENCE_S):
            events = [event async for event in space.events()]
        assert isinstance(events[-1], Disconnected)
        assert events[-1].code == CloseCode.SHUTDOWN
        assert str(space.over) == events[-1].text == "the server is shutting down"
        with pytest.raises(SpacesError, match="shutting down"):
            await space.raise_hand()
        assert [event async for event in space.events()] == []  # over is over


async def test_a_server_that_dies_ends_the_session_after_the_idle_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_TIMEOUT_NS", 1_000 * MS)
    with ServerCommand(tmp_path) as server:
        async with host(server.link, title="Talk") as space:
            server.process.send_signal(signal.SIGKILL)
            asked = asyncio.ensure_future(space.raise_hand())
            async with asyncio.timeout(PATIENCE_S):
                events = [event async for event in space.events()]
            assert isinstance(events[-1], Disconnected)
            assert events[-1].code == CloseCode.TIMEOUT
            with pytest.raises(SpacesError, match="nothing was heard"):
                await asked


async def test_who_leaves_leaves_nobody_waiting() -> None:
    async with running_server() as (_, link):
        async with host(link, title="Talk") as space:

            async def follow() -> list[object]:
                return [event async for event in space.events()]

            following = asyncio.ensure_future(follow())
        async with asyncio.timeout(PATIENCE_S):
            assert isinstance((await following)[-1], Disconnected)
        with pytest.raises(SpacesError, match="you have left"):
            await space.raise_hand()


async def test_a_task_that_is_cancelled_while_it_connects_leaves_nothing() -> None:
    async with running_server() as (_, link):
        silent = Link("127.0.0.1", link.port, bytes(31) + b"\1", "space")
        before = set(asyncio.all_tasks())

        async def join() -> None:
            async with connect(silent):
                raise AssertionError("nobody can be there")

        task = asyncio.ensure_future(join())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == before


@pytest.mark.skipif(sys.platform != "linux", reason="counts the sockets in /proc")
async def test_coming_and_going_leaves_nothing_behind() -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    async with running_server() as (server, link), host(link, title="Talk") as ada:
        tasks = set(asyncio.all_tasks())
        descriptors = set(os.listdir("/proc/self/fd"))
        for _ in range(CYCLES):
            async with connect(ada.link, name="Bob") as bob:
                await bob.raise_hand()
        await until(ada, lambda: ada.listeners == 0 and not ada.hands)
        gc.collect()  # what warns when it is collected, warns now
        assert asyncio.all_tasks() == tasks
        assert set(os.listdir("/proc/self/fd")) == descriptors
        assert len(server.node.spaces) == 1


def test_deadlines_that_have_passed_already(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk() -> None:
        async with running_server() as (_, link), host(link, title="Talk") as space:
            with monkeypatch.context() as late:
                late.setattr(Client, "deadline_ns", 0)
                for _ in range(3):
                    space.push(np.zeros(BLOCK_SAMPLES, np.float32), 0)
            await space.mute()

    uvloop.run(talk())  # whose timers that are due at once are no timers


class Stalling:
    """A clock and one timer that fires late."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.when_s = 0.0
        self._callback: Callable[[], object] = lambda: None

    def time(self) -> float:
        return self.now_s

    def call_at(self, when: float, callback: Callable[[], object]) -> "Stalling":
        self.when_s, self._callback = when, callback
        return self

    def cancel(self) -> None:
        self._callback = lambda: None

    def run_at(self, now_s: float) -> None:
        self.now_s = now_s
        self._callback()


def test_a_recording_is_as_long_as_it_took(tmp_path: Path) -> None:
    clock = Stalling()
    output = WavOutput(tmp_path / "out.wav", scheduler=clock)

    def pull(out: Samples, now_ns: int) -> None:
        out[:] = 0.5

    output.start(pull)
    for stall_s in (0.0, 1.0, 0.05, 3.0):
        clock.run_at(clock.when_s + stall_s)
    clock.now_s += 2
    output.stop()
    with wave.open(str(tmp_path / "out.wav"), "rb") as file:
        assert abs(file.getnframes() - clock.now_s * 48_000) <= BLOCK_SAMPLES
        loud = [s for s in memoryview(file.readframes(file.getnframes())).cast("h") if s]
    assert len(loud) == 4 * BLOCK_SAMPLES
