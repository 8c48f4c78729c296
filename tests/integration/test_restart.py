"""The server stops or is killed, and starts again: everything durable is as it was, everyone finds
their place by themselves, and is heard again."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable
from pathlib import Path

import numpy as np
import pytest

from protocol.frames import ErrorCode
from protocol.keyfile import load_key
from protocol.link import Link
from protocol.roles import Role
from spaces_client import client as c
from spaces_client.audio import AudioInput
from spaces_client.live import LiveSpace, SpacesError, connect, host, session
from spaces_client.paced import Looped
from tests.integration.processes import PATIENCE_S, ServerCommand
from tests.integration.test_live import happens, registered, until

ADA, BEN, CYD, DAN, EVE, FAY, KIT, LOU = (bytes([n]) * 32 for n in range(3, 11))  # private keys
BACK_S = 20.0  # whoever asks nothing notices after 15 s of silence at the latest


def hum() -> AudioInput:
    """A microphone that hears a tone."""
    return Looped((0.2 * np.sin(2 * np.pi * 400 * np.arange(48_000) / 48_000)).astype(np.float32))


async def heard(*spaces: LiveSpace) -> None:
    """Waits until each of them is sent audio."""

    async def one(space: LiveSpace) -> None:
        come = asyncio.Event()
        space.on_heard = lambda _audio, _now_ns: come.set()
        await come.wait()
        space.on_heard = None

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(one(space) for space in spaces))


async def back(*spaces: LiveSpace) -> None:
    async with asyncio.timeout(BACK_S):
        await asyncio.gather(*(happens(space, c.Reconnected) for space in spaces))


async def on_stage(space: LiveSpace, *handles: str) -> None:
    """Waits until somebody sees these there, and nobody else."""
    await until(space, lambda: {member.handle for member in space.stage} == set(handles))


async def notices(space: LiveSpace) -> None:
    """That the server is gone; at once, for whoever asks it something."""
    with pytest.raises(SpacesError, match="try again"):
        await space.who_am_i()
    await happens(space, c.Reconnecting)


async def refused(work: Awaitable[object], code: ErrorCode) -> None:
    with pytest.raises(SpacesError) as refusal:
        await work
    assert refusal.value.code == code


async def again(folder: Path, link: Link, *arguments: object) -> ServerCommand:
    """The server, where it was; meanwhile the clients go on trying."""
    options = ("--no-rate-limits", "--port", link.port, *arguments)
    return await asyncio.to_thread(ServerCommand, folder, *options)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_everything_is_as_it_was(tmp_path: Path, how: int) -> None:
    async with contextlib.AsyncExitStack() as servers, contextlib.AsyncExitStack() as people:
        enter = people.enter_async_context
        first = servers.enter_context(ServerCommand(tmp_path, "--no-rate-limits"))
        link = Link.parse(first.link)
        await registered(
            link, ada=ADA, ben=BEN, cyd=CYD, dan=DAN, eve=EVE, fay=FAY, kit=KIT, lou=LOU
        )
        operator = await enter(session(link, key=load_key(tmp_path / "data" / "operator.key")[0]))
        ada = await enter(host(link, title="Talk", key=ADA))
        ben = await enter(connect(await ada.make_invite(Role.CO_HOST), key=BEN))
        once = await ada.make_invite(Role.SPEAKER, max_uses=1)
        cyd = await enter(connect(once, key=CYD))
        many = await ada.make_invite(Role.SPEAKER)
        dan = await enter(connect(many, key=DAN))
        eve = await enter(connect(many, key=EVE))
        kit = await enter(connect(ada.link, key=KIT))
        gus = await enter(connect(ada.link, name="Gus"))
        await kit.follow("ada")
        await kit.send_message("ben", "hello")
        await ada.configure(title="Talk on", slow_s=30)
        await ada.mute(ben.me.id)
        await ada.remove(dan.me.id)
        await ada.block("fay")
        await operator.ban("eve", "enough")
        await asyncio.gather(happens(dan, c.Removed), happens(eve, c.Disconnected))
        cyd.start_audio(hum())
        await heard(ada, ben, kit, gus)
        first.end(how)
        servers.enter_context(await again(tmp_path, link))

        inside = {ada: Role.HOST, ben: Role.CO_HOST, cyd: Role.SPEAKER, kit: Role.LISTENER,
                  gus: Role.GUEST}  # fmt: skip
        await back(*inside)
        await heard(ada, ben, kit, gus)
        for space, role in inside.items():
            assert space.me.role is role
            assert space.me.muted is space.me.held is (space is ben)
            assert (space.title, space.settings.slow_s) == ("Talk on", 30)
        for space in (ada, ben, cyd):
            await on_stage(space, "ada", "ben", "cyd")
        where = ada.link.space or ""
        await refused(ben.unmute(), ErrorCode.MUTED_BY_MODERATOR)
        assert [person.handle async for person in ada.blocked()] == ["fay"]
        assert [person.handle async for person in ada.followers()] == ["kit"]
        assert [message.text async for message in ben.messages("kit")] == ["hello"]
        for key, code in (
            (DAN, ErrorCode.REMOVED),
            (EVE, ErrorCode.BANNED),
            (FAY, ErrorCode.BLOCKED),
        ):
            async with session(link, key=key) as unwelcome:
                await refused(unwelcome.join(where, invite=many.invite), code)
        async with session(link, key=LOU) as lou:
            await refused(lou.join(where, invite=once.invite), ErrorCode.INVITE_USED_UP)
            await lou.join(where, invite=many.invite)
            assert lou.me.role is Role.SPEAKER
        await ada.let_unmute(ben.me.id)
        await ben.unmute()


async def test_who_does_not_come_back_loses_the_place(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as servers, contextlib.AsyncExitStack() as people:
        first = servers.enter_context(ServerCommand(tmp_path))
        link = Link.parse(first.link)
        await registered(link, ada=ADA, ben=BEN, kit=KIT)
        async with contextlib.AsyncExitStack() as hosts:
            async with host(link, title="Talk", key=ADA) as ada:
                invite = await ada.make_invite(Role.CO_HOST)
                ben = await hosts.enter_async_context(connect(invite, key=BEN))
                kit = await people.enter_async_context(connect(ada.link, key=KIT))
                first.end(signal.SIGKILL)
                await asyncio.gather(*(notices(space) for space in (ada, ben, kit)))
            second = servers.enter_context(await again(tmp_path, link, "--grace", 1))
            await back(ben, kit)
            await until(ben, lambda: ben.me.role is Role.HOST)
            await on_stage(kit, "ben")
            second.end(signal.SIGKILL)
            await asyncio.gather(notices(ben), notices(kit))
        servers.enter_context(await again(tmp_path, link, "--grace", 1))
        await happens(kit, c.Ended)
        await refused(kit.join(invite.space or ""), ErrorCode.SPACE_ENDED)
