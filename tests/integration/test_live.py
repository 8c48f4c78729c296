"""The library over real sockets, against the real server and its store."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
import wave
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from protocol import frames, notes
from protocol.connection import MS, CloseCode
from protocol.frames import ErrorCode, Settings, WhoSpeaks
from protocol.link import Link, LinkError
from protocol.noise import public_key
from protocol.opus import Encoder
from protocol.roles import Role
from spaces_client import client as c
from spaces_client.audio import BLOCK_SAMPLES, Samples
from spaces_client.client import Client
from spaces_client.live import LiveSpace, SpacesError, connect, host, session
from spaces_client.wav import WavOutput
from spaces_server.mixer.mixer import Mixer
from spaces_server.node import Limits
from spaces_server.policy.house import HouseRules
from spaces_server.server import Server
from spaces_server.store.database import Database
from tests.integration.processes import PATIENCE_S, ServerCommand

KEY = bytes(range(32))
OPERATOR = bytes(range(1, 33))
ADA, BOB, CYD = (bytes([n]) * 32 for n in (3, 4, 5))  # their private keys
CYCLES = 20


@contextlib.asynccontextmanager
async def running_server(folder: Path, port: int = 0) -> AsyncIterator[tuple[Server, Link]]:
    with contextlib.closing(Database(f"sqlite:///{folder / 'spaces.db'}")) as database:
        database.upgrade()
        server = Server(
            KEY,
            Limits(),
            HouseRules(limited_rates=False),
            database,
            operator_key=public_key(OPERATOR),
        )
        await server.start("127.0.0.1", port)
        waiting = asyncio.ensure_future(server.wait())
        try:
            yield server, Link("127.0.0.1", server.port, public_key(KEY))
        finally:
            server.stop()
            await waiting


async def registered(link: Link, **people: bytes) -> None:
    """Accounts, by their handles: whose private key."""
    for handle, key in people.items():
        async with session(link, key=key) as me:
            await me.register(handle, handle.capitalize())


async def until(space: LiveSpace, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        if not holds():
            async for _ in space.events():
                if holds():
                    return


async def happens(space: LiveSpace, kind: type[Any]) -> Any:
    """The next event of a kind."""
    async with asyncio.timeout(PATIENCE_S):
        async for event in space.events():
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no {kind}")


async def test_a_mix_is_of_the_time_when_its_tick_was_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late it runs."""
    ticks: list[tuple[int, int]] = []

    def tick(mixer: Mixer, timestamp: int, due_ns: int, *, half: bool = False) -> None:
        ticks.append((timestamp, due_ns))
        assert due_ns <= time.monotonic_ns()
        run(mixer, timestamp, due_ns, half=half)

    run = Mixer.tick
    monkeypatch.setattr(Mixer, "tick", tick)
    async with running_server(tmp_path) as (server, link):
        await registered(link, ada=ADA)
        async with host(link, title="Talk", key=ADA) as ada, asyncio.timeout(PATIENCE_S):
            while len(ticks) < 4:
                await ada.react(ada.reactions[0])
                await happens(ada, c.Reacted)
        assert server.stats()["tick_errors"] == 0
    timestamp, due_ns = ticks[0]
    assert all((ns - due_ns) * 48 == (at - timestamp) * MS for at, ns in ticks)


async def test_two_people_in_a_space(tmp_path: Path) -> None:
    async with running_server(tmp_path) as (_, link):
        await registered(link, ada=ADA, bob=BOB, cyd=CYD)
        async with host(link, title="Talk", key=ADA) as ada:
            assert (ada.title, ada.me.name, ada.me.role) == ("Talk", "Ada", Role.HOST)
            async with connect(str(ada.link), key=BOB) as bob:
                assert [m.name for m in bob.stage] == ["Ada"]
                assert [m.name async for m in ada.roster()] == ["Ada", "Bob"]
                await bob.raise_hand()
                await until(ada, lambda: bool(ada.hands))
                await ada.bring_up(ada.hands[0].id)
                await until(bob, lambda: bob.me.role is Role.SPEAKER)
                with pytest.raises(SpacesError) as refusal:
                    await bob.close()  # not a speaker's to do
                assert refusal.value.code == ErrorCode.NOT_ALLOWED
                assert "\n" not in str(refusal.value)
                async with connect(await ada.make_invite(), key=CYD) as cyd:
                    assert cyd.me.role is Role.SPEAKER
                await ada.close()
                assert await happens(bob, c.Ended)


async def test_a_guest_listens(tmp_path: Path) -> None:
    async with running_server(tmp_path) as (_, link):
        await registered(link, ada=ADA)
        async with host(link, title="Talk", key=ADA) as ada, connect(ada.link, name="Gus") as gus:
            assert (gus.me.name, gus.me.handle, gus.me.role) == ("Gus", "", Role.GUEST)
            with pytest.raises(SpacesError):
                await gus.chat("hi")


async def test_what_is_said_and_shown_in_a_space(tmp_path: Path) -> None:
    async with running_server(tmp_path) as (_, link):
        await registered(link, ada=ADA, bob=BOB)
        async with host(link, title="Talk", key=ADA) as ada, connect(ada.link, key=BOB) as bob:
            line = await bob.chat("good evening")
            said = await happens(ada, c.Chat)
            assert (said.line.line, said.line.name, said.line.text) == (line, "Bob", "good evening")
            await ada.delete_line(line)
            assert (await happens(bob, c.LineGone)).line == line
            assert bob.lines == []
            assert len(bob.reactions) == 6
            await ada.react(bob.reactions[2])
            shown = await happens(bob, c.Reacted)
            assert shown.counts == {bob.reactions[2]: 1}
            assert [reaction.member for reaction in shown.stage] == [ada.me.id]
            await ada.configure(title="Talk on", who_speaks=WhoSpeaks.EVERYONE)
            await until(bob, lambda: bob.title == "Talk on")
            await bob.step_up()
            await until(bob, lambda: bob.me.role is Role.SPEAKER)
            await ada.mute(bob.me.id)
            await until(bob, lambda: bob.me.muted and bob.me.held)
            with pytest.raises(SpacesError) as refusal:
                await bob.unmute()
            assert refusal.value.code == ErrorCode.MUTED_BY_MODERATOR
            await ada.let_unmute(bob.me.id)
            await until(bob, lambda: not bob.me.held)
            await bob.unmute()
            await until(bob, lambda: bob.client.may_speak)
            await bob.set_volume(ada.me.id, 50)
            await ada.remove(bob.me.id)
            await happens(bob, c.Removed)
            with pytest.raises(SpacesError) as refusal:
                await bob.join(ada.link.space or "")
            assert refusal.value.code == ErrorCode.REMOVED
            assert not any(s.client.repairs for s in (ada, bob)), "nobody's view diverged"


async def test_messages_posts_and_reports(tmp_path: Path) -> None:
    encoder = Encoder(bitrate=24_000)
    noise = np.random.default_rng(1).standard_normal((100, BLOCK_SAMPLES)).astype(np.float32) / 10
    note = notes.pack(encoder.encode(block) for block in noise)
    async with running_server(tmp_path) as (_, link):
        await registered(link, ada=ADA, bob=BOB)
        async with session(link, key=ADA) as ada, session(link, key=BOB) as bob:
            await bob.follow("ada")
            assert [person.handle async for person in ada.followers()] == ["bob"]
            number = await ada.send_message("bob", "hello")
            notice = (await happens(bob, c.Notified)).frame
            assert (notice.message.id, notice.message.text) == (number, "hello")
            assert [message.text async for message in bob.messages("ada")] == ["hello"]
            post = await ada.post("listen to this", note=note)
            (shown,) = [post async for post in bob.home()]
            assert (shown.id, shown.text, shown.note_ms) == (post, "listen to this", 2_000)
            assert await bob.note(post) == note
            reported = await bob.report(frames.Category.SPAM, "noise", person="ada")
            async with session(link, key=OPERATOR) as operator:
                (report,) = [report async for report in operator.reports()]
                assert (report.id, report.person) == (reported.report, "ada")
                await operator.act(report.id, frames.Outcome.WARN, "be kind")
            assert isinstance((await happens(ada, c.Notified)).frame, frames.Warned)
            assert isinstance((await happens(bob, c.Notified)).frame, frames.OutcomeNotice)


async def test_what_was_seen_does_not_come_again_and_what_was_not_does(tmp_path: Path) -> None:
    async with running_server(tmp_path) as (_, link):
        await registered(link, ada=ADA, bob=BOB)
        async with session(link, key=ADA) as ada:
            await ada.send_message("bob", "hello")
        async with session(link, key=BOB) as bob:
            assert isinstance((await happens(bob, c.Notified)).frame, frames.Unread)
        async with session(link, key=BOB) as bob:  # who was gone before anything was made of it
            events = bob.events()
            async with asyncio.timeout(PATIENCE_S):
                async for event in events:
                    if isinstance(event, c.Notified):
                        break
            asking = asyncio.ensure_future(anext(events))
            await bob.who_am_i()
            asking.cancel()
        async with session(link, key=BOB) as bob:
            await bob.who_am_i()  # what is kept comes before the answer to this
            assert not [e async for e in left(bob) if isinstance(e, c.Notified)]


async def left(space: LiveSpace) -> AsyncIterator[object]:
    """The events that have come already."""
    while not space._events.empty():
        yield await anext(space.events())


async def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="starts with spaces://"):
        async with connect("nonsense"):
            pass
    async with running_server(tmp_path) as (_, link):
        with pytest.raises(SpacesError, match="names no space"):
            async with connect(link):
                pass
        with pytest.raises(SpacesError, match="there is no such space"):
            async with connect(Link(link.host, link.port, link.key, "nowhere")):
                pass
        with pytest.raises(SpacesError, match="needs an account"):
            async with host(link, title="Talk"):
                pass
        with pytest.raises(SpacesError, match="another key"):
            async with host(Link(link.host, link.port, bytes(31) + b"\1"), title="Talk"):
                pass
    with pytest.raises(SpacesError, match="nothing listens"):
        async with host(link, title="Talk"):
            pass


async def test_a_server_that_starts_anew_finds_everyone_in_their_places(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with running_server(tmp_path) as (server, link):
            await registered(link, ada=ADA, bob=BOB)
            settings = Settings(who_speaks=WhoSpeaks.EVERYONE)
            ada = await stack.enter_async_context(
                host(link, title="Talk", settings=settings, key=ADA)
            )
            bob = await stack.enter_async_context(connect(ada.link, key=BOB))
            gus = await stack.enter_async_context(connect(ada.link, name="Gus"))
            await bob.step_up()
            server.stop()
            for space in (ada, bob, gus):
                assert "shutting down" in (await happens(space, c.Reconnecting)).text
                with pytest.raises(SpacesError, match="try again"):
                    await space.raise_hand()
        await stack.enter_async_context(running_server(tmp_path, link.port))
        for space in (ada, bob, gus):
            await happens(space, c.Reconnected)
        assert [ada.me.role, bob.me.role, gus.me.role] == [Role.HOST, Role.SPEAKER, Role.GUEST]
        assert (gus.title, gus.settings) == ("Talk", settings)
        await until(gus, lambda: {m.name for m in gus.stage} == {"Ada", "Bob"})
        await bob.chat("still here")


async def test_a_server_that_is_killed_and_started_again(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        with ServerCommand(tmp_path) as first:
            link = Link.parse(first.link)
            await registered(link, ada=ADA)
            ada = await stack.enter_async_context(host(link, title="Talk", key=ADA))
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
            asked = asyncio.ensure_future(ada.chat("hello?"))
            await happens(ada, c.Reconnecting)
            with pytest.raises(SpacesError, match="try again"):
                await asked
        stack.enter_context(ServerCommand(tmp_path, "--port", link.port))
        await happens(ada, c.Reconnected)
        assert ada.me.role is Role.HOST
        await ada.chat("hello again")


async def test_who_leaves_leaves_nobody_waiting(tmp_path: Path) -> None:
    async with running_server(tmp_path) as (_, link):
        await registered(link, ada=ADA)
        async with host(link, title="Talk", key=ADA) as space:

            async def follow() -> list[object]:
                return [event async for event in space.events()]

            following = asyncio.ensure_future(follow())
        async with asyncio.timeout(PATIENCE_S):
            assert isinstance((await following)[-1], c.Disconnected)
        with pytest.raises(SpacesError, match="you have left"):
            await space.raise_hand()


async def test_the_same_person_from_elsewhere_takes_the_place(tmp_path: Path) -> None:
    async with running_server(tmp_path) as (_, link):
        await registered(link, ada=ADA)
        async with (
            host(link, title="Talk", key=ADA) as first,
            connect(first.link, key=ADA) as second,
        ):
            event = await happens(first, c.Disconnected)
            assert event.code == CloseCode.REPLACED
            assert second.me.role is Role.HOST


async def test_a_task_that_is_cancelled_while_it_connects_leaves_nothing(tmp_path: Path) -> None:
    async with running_server(tmp_path) as (_, link):
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
async def test_coming_and_going_leaves_nothing_behind(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    async with contextlib.AsyncExitStack() as stack:
        _, link = await stack.enter_async_context(running_server(tmp_path))
        await registered(link, ada=ADA, bob=BOB)
        ada = await stack.enter_async_context(host(link, title="Talk", key=ADA))
        tasks = set(asyncio.all_tasks())
        descriptors = set(os.listdir("/proc/self/fd"))
        for _ in range(CYCLES):
            async with connect(ada.link, key=BOB) as bob:
                await bob.raise_hand()
        await until(ada, lambda: ada.listeners == 0 and not ada.hands)
        gc.collect()  # what warns when it is collected, warns now
        assert asyncio.all_tasks() == tasks
        assert set(os.listdir("/proc/self/fd")) == descriptors


def test_deadlines_that_have_passed_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk() -> None:
        async with contextlib.AsyncExitStack() as stack:
            _, link = await stack.enter_async_context(running_server(tmp_path))
            await registered(link, ada=ADA)
            space = await stack.enter_async_context(host(link, title="Talk", key=ADA))
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
