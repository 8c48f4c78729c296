"""The story: one evening of the product, against a real server, step by step as it happens.

The server is a process of its own, limited and with evidence switched on; the people are clients
of the library in this process, over UDP on loopback.  Every step says what was done and what came
of it; a step whose outcome is not what it must be ends the story.
"""

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from protocol import frames
from protocol.frames import Category, Outcome
from protocol.link import Link
from protocol.roles import Role
from spaces_client.audio import BLOCK_SAMPLES, AudioInput, Samples
from spaces_client.events import Ended, Notified, Reacted, Reconnected
from spaces_client.live import LiveSpace, SpacesError, session
from spaces_client.paced import Listen, Looped
from spaces_server.child import Child, ChildError

STARTUP_S = 20.0
PATIENCE_S = 10.0
RECONNECT_S = 40.0
LISTEN_S = 1.0  # over which a level is measured
SETTLE_S = 1.2  # until a change of the mix is all that is heard
AUDIBLE = 0.3  # of the level at which a tone was spoken
TONES_HZ = {"ben": 440.0, "dora": 750.0}
SECRETS = ("the chat of this evening is a secret", "and so is this line of it")


class StoryError(Exception):
    """A step did not come out as it must."""


def _tone(hz: float) -> AudioInput:
    """A voice that can be measured."""
    at = np.arange(48_000) / 48_000
    return Looped((0.2 * np.sin(2 * np.pi * hz * at)).astype(np.float32))


class _Ear(Listen):
    """Keeps what was heard last."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[Samples] = []

    def taken(self) -> None:
        self._blocks = [*self._blocks[-49:], self.out.copy()]

    def hears(self, hz: float) -> float:
        """How loud the tone is in the last second, 1 = as it was spoken."""
        samples = np.concatenate(self._blocks)
        window = np.hanning(len(samples))
        spectrum = np.abs(np.fft.rfft(samples * window)) ** 2
        middle, width = round(hz * len(samples) / 48_000), 12
        power = spectrum[max(0, middle - width) : middle + width + 1].sum()
        spoken = 0.2 * np.sin(2 * np.pi * hz * np.arange(len(samples)) / 48_000) * window
        return float(np.sqrt(power / (np.abs(np.fft.rfft(spoken)) ** 2).sum()))


@dataclass(eq=False)
class _Person:
    """One of the people: a session, what they were told, and what they hear."""

    name: str
    live: LiveSpace
    told: list[Any] = field(default_factory=list)
    ear: _Ear = field(default_factory=_Ear)

    @property
    def handle(self) -> str:
        return self.name.lower()

    async def follow_events(self) -> None:
        async for event in self.live.events():
            self.told.append(event)

    def notices(self, kind: type[frames.Notice]) -> list[Any]:
        return [e.frame for e in self.told if isinstance(e, Notified) and isinstance(e.frame, kind)]

    def has_come_back(self) -> bool:
        return any(isinstance(event, Reconnected) for event in self.told)


class _Narrator:
    """Tells the steps, as lines or as JSON, and keeps them."""

    def __init__(self, as_json: bool) -> None:
        self.steps: list[dict[str, Any]] = []
        self._as_json = as_json
        self._start = time.monotonic()

    def tell(self, step: str, text: str, **facts: Any) -> None:
        seconds = round(time.monotonic() - self._start, 2)
        self.steps.append({"step": step, "text": text, "seconds": seconds, **facts})
        if self._as_json:
            click.echo(json.dumps(self.steps[-1]))
        else:
            click.echo(f"{seconds:6.2f} s  {step:<10}  {text}")


def must(what: bool, otherwise: str) -> None:
    if not what:
        raise StoryError(otherwise)


async def refused(work: Awaitable[Any], code: str) -> str:
    """-> the text of the refusal, which has to come."""
    try:
        await work
    except SpacesError as error:
        must(error.code == code, f"refused as {error.code}, not {code}: {error}")
        return str(error)
    raise StoryError(f"this should have been refused with {code}")


async def until(what: Callable[[], Any], otherwise: str, patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while not what():
        must(time.monotonic() < end, otherwise)
        await asyncio.sleep(0.02)


def tell_story(as_json: bool) -> list[dict[str, Any]]:
    """-> the steps.  Raises StoryError, ChildError."""
    narrator = _Narrator(as_json)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            asyncio.run(_Story(stack, folder, narrator).tell())
        except SpacesError as error:
            raise StoryError(str(error)) from error
    return narrator.steps


class _Story:
    def __init__(self, stack: ExitStack, folder: Path, narrator: _Narrator) -> None:
        self._stack = stack
        self._data = folder / "data"
        self._say = narrator.tell
        self._keys: dict[str, bytes] = {}
        self._port = 0
        self._people: AsyncExitStack

    async def tell(self) -> None:
        async with AsyncExitStack() as people:
            self._people = people
            await self._opening()
            await self._the_space()
            await self._trouble()
            await self._afterwards()

    # -- the server, and who comes to it -----------------------------------------------------------

    def _start_server(self) -> None:
        self._server = Child(
            self._stack, "the server", "spaces_server", "run",
            port=self._port, public_host="127.0.0.1", data=self._data, access="limited",
            evidence=True, rate_limits=False, qr=False,
        )  # fmt: skip
        line = self._server.line(STARTUP_S)
        if line is None:
            raise ChildError(f"the server did not start: {self._server.last_error()}")
        self._link = Link.parse(line)
        self._port = self._link.port

    @contextlib.asynccontextmanager
    async def _person(self, name: str) -> AsyncIterator[_Person]:
        async with session(self._link) as live:
            person = _Person(name, live)
            following = asyncio.ensure_future(person.follow_events())
            try:
                await live.register(name.lower(), name)
                yield person
            finally:
                following.cancel()
                live.stop_audio()

    async def _opening(self) -> None:
        self._start_server()
        self._say("server", f"a limited server listens on UDP port {self._port}")
        enter = self._people.enter_async_context
        self.ada = await enter(self._person("Ada"))
        self.ben = await enter(self._person("Ben"))
        self.cleo = await enter(self._person("Cleo"))
        self.dora = await enter(self._person("Dora"))
        everyone = [self.ada, self.ben, self.cleo, self.dora]
        handles = ", ".join(f"@{p.handle}" for p in everyone)
        self._say("register", f"{handles} have accounts, each with a key of their own")
        code = self._server.logged(r"spaces claim '\S+' (\S+)", STARTUP_S)[1]
        await self.ada.live.claim_server(code)
        await refused(self.ben.live.claim_server(code), "bad_code")
        self._say("owner", "Ada shows the code that the server printed, and owns it; it works once")
        text = await refused(self.ben.live.open("mine"), "no_access")
        self._say("access", f"Ben may not open a space: {text}")
        await self.ben.live.ask_access("a friend of Ada's")
        waiting = [one.handle async for one in self.ada.live.waiting_list()]
        must(waiting == ["ben"], f"the waiting list has {waiting}")
        await self.ada.live.grant("ben")
        await until(lambda: self.ben.notices(frames.AccessGranted), "Ben was not told")
        self._say("access", "Ben asks for access, Ada finds him on the waiting list and grants it")
        await self.ben.live.follow("ada")
        followers = [p.handle async for p in self.ada.live.followers()]
        must(followers == ["ben"], f"Ada is followed by {followers}")
        self._say("follow", "Ben follows Ada")
        space = await self.ada.live.schedule("An evening", int(time.time()) + 3_600)
        await self.ben.live.remind(space.id)
        self._say("schedule", "Ada schedules “An evening” in an hour; Ben sets a reminder")
        await self.ada.live.post("Come and talk!", space=space.id)
        home = [post async for post in self.ben.live.home()]
        must(bool(home) and home[0].space == space.id, "the post is not in Ben's home feed")
        self._say("post", f"Ada posts the link; Ben's home feed has it: “{home[0].text}”")
        self.space = space.id

    # -- the space ---------------------------------------------------------------------------------

    async def _the_space(self) -> None:
        ada, ben, cleo, dora = self.ada, self.ben, self.cleo, self.dora
        await ada.live.open(space=self.space)
        await until(lambda: ben.notices(frames.Started), "Ben was not reminded")
        self._say("start", "Ada opens it, and Ben is told so")
        found = [s async for s in ben.live.spaces()]
        must([s.id for s in found] == [self.space] and found[0].followed, "it is not in the list")
        await ben.live.join(self.space)
        must(ben.live.evidence_kept, "Ben was not told of the evidence")
        self._say("join", "Ben finds it first in the list, joins, and is told what a report takes")
        await refused(cleo.live.join(self.space), "no_access")
        await ada.live.invite_person("cleo", text="Do come!")
        await until(lambda: cleo.notices(frames.MessageNotice), "Cleo got no message")
        message = cleo.notices(frames.MessageNotice)[-1].message
        await cleo.live.join(message.space, invite=message.invite)
        mine = (await cleo.live.who_am_i()).account
        must(mine.access and mine.invited_by == "ada", "the invitation gave no access")
        self._say("invite", "Cleo had no access; Ada's message invites her, and she is in at once")
        token = await ada.live.make_invite(Role.SPEAKER, max_uses=1)
        await dora.live.join(self.space, invite=token.invite)
        must(dora.live.me.role is Role.SPEAKER, "the token did not bring Dora onto the stage")
        self._say("token", "Dora comes by a link whose token is good once, and may speak")
        await ben.live.raise_hand()
        await until(lambda: ada.live.hands, "the hand was not seen")
        await ada.live.bring_up(ada.live.hands[0].id)
        await until(lambda: ben.live.me.role is Role.SPEAKER, "Ben is not on stage")
        self._say("hand", "Ben raises a hand, and Ada brings him up")
        for person in (ada, cleo):
            person.live.start_audio(None, person.ear)
        for person in (ben, dora):
            person.live.start_audio(_tone(TONES_HZ[person.handle]), person.ear)
        await self._heard("speak", cleo, ben=True, dora=True)
        await ben.live.react(ben.live.reactions[1])
        await until(lambda: any(isinstance(e, Reacted) for e in cleo.told), "no reaction came")
        self._say("reaction", f"Ben shows {ben.live.reactions[1]}, and everyone sees it beside him")

    async def _heard(self, step: str, who: _Person, *, ben: bool, dora: bool) -> None:
        """What somebody hears must be this."""
        await asyncio.sleep(SETTLE_S + LISTEN_S)
        levels = {name: who.ear.hears(hz) for name, hz in TONES_HZ.items()}
        for name, expected in (("ben", ben), ("dora", dora)):
            if name != who.handle:
                must((levels[name] > AUDIBLE) == expected, f"{who.name} hears {name}: {levels}")
        shown = ", ".join(
            f"{name.title()} at {level:.0%}" for name, level in levels.items() if name != who.handle
        )
        self._say(step, f"{who.name} hears {shown}", levels=levels)

    # -- trouble -----------------------------------------------------------------------------------

    async def _trouble(self) -> None:
        ada, ben, cleo, dora = self.ada, self.ben, self.cleo, self.dora
        await cleo.live.block("dora")
        await self._heard("block", cleo, ben=True, dora=False)
        await self._heard("block", ben, ben=False, dora=True)
        await dora.live.chat(SECRETS[0])
        await ben.live.chat(SECRETS[1])
        await until(lambda: len(ada.live.lines) == 2, "the chat did not reach Ada")
        await until(lambda: cleo.live.lines, "Ben's line did not reach Cleo")
        must([line.handle for line in cleo.live.lines] == ["ben"], "Cleo sees Dora's chat")
        self._say("chat", "Dora and Ben write in the chat; Cleo, who blocked Dora, has Ben's line")
        await ada.live.mute(dora.live.me.id)
        await until(lambda: dora.live.me.held, "Dora was not muted")
        text = await refused(dora.live.unmute(), "muted_by_moderator")
        await self._heard("mute", ben, ben=False, dora=False)
        self._say("mute", f"Dora cannot unmute herself: {text}")
        reported = await ben.live.report(Category.HARASSMENT, "shouting", member=dora.live.me.id)
        must(reported.evidence, "no evidence went with the report")
        self._say("report", "Ben reports Dora; what she said last is sealed for the moderators")
        self._server.kill()
        self._start_server()
        for person in (ada, ben, cleo, dora):
            text = f"{person.name} did not come back"
            await until(person.has_come_back, text, RECONNECT_S)
        must(ada.live.me.role is Role.HOST and ben.live.me.role is Role.SPEAKER, "roles are lost")
        must(dora.live.me.held, "the mute did not outlive the server")
        self._say(
            "crash", "the server is killed and started again: all find their place, muted or not"
        )
        await ada.live.remove(dora.live.me.id)
        text = await refused(dora.live.join(self.space), "removed")
        again = await ada.live.make_invite(Role.SPEAKER)
        await refused(dora.live.join(self.space, invite=again.invite), "removed")
        self._say("remove", f"Ada removes Dora, who cannot come back with any link: {text}")
        (report,) = [one async for one in ada.live.reports()]
        recording = await ada.live.evidence(report.id)
        must(len(recording) > 100, f"the evidence has {len(recording)} packets")
        seconds = len(recording) * BLOCK_SAMPLES / 48_000
        await ada.live.act(report.id, Outcome.BAN, "no shouting here")
        await until(lambda: ben.notices(frames.OutcomeNotice), "Ben was not told the outcome")
        outcome = ben.notices(frames.OutcomeNotice)[-1]
        await until(lambda: dora.live.over is not None, "Dora is still connected")
        self._say("ban", f"Ada hears {seconds:.0f} s of evidence and bans Dora: “{dora.live.over}”")
        self._say("outcome", f"Ben is told: “{outcome.text}”")

    # -- the end -----------------------------------------------------------------------------------

    async def _afterwards(self) -> None:
        ada, ben = self.ada, self.ben
        await ada.live.close()
        await until(lambda: any(isinstance(e, Ended) for e in ben.told), "Ben was not told")
        self._say("close", "Ada closes the space")
        text = await refused(ben.live.join(self.space), "space_ended")
        self._say("ask", f"Ben asks for the chat afterwards: “{text}”")
        await asyncio.sleep(SETTLE_S)
        found = [
            file.name
            for file in self._data.rglob("*")
            if file.is_file() and any(text.encode() in file.read_bytes() for text in SECRETS)
        ]
        must(not found, f"the chat is in {found}")
        self._say("nothing", "neither line of the chat is in any file of the server's")
