"""The library: a live space over a real UDP socket.

    async with connect(link, name="Ada") as space:
        ...

A thin shell: it moves datagrams, timers and samples between asyncio and the sans-I/O `Client`, and
gives every request a future.
"""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from protocol import frames
from protocol.connection import MS
from protocol.frames import Member
from protocol.link import Link
from protocol.packets import UplinkAudio
from protocol.reliable import ChannelFull
from spaces_client.audio import AudioError, AudioInput, AudioOutput
from spaces_client.client import (
    Changed,
    Client,
    ClientEvent,
    Connected,
    Disconnected,
    Ended,
    Heard,
    Replied,
)
from spaces_client.voice import VoiceProcessor

REPLY_TIMEOUT_S = 15.0
CLOSE_TIMEOUT_S = 1.0
MAX_EVENTS = 1_000
REFUSED_GIVE_UP = 2  # "port unreachable" answers before we believe them
SPEAKING_LEVEL = 60  # -dBov: what is quieter is not shown as speaking
SILENT_LEVEL = 127

R = TypeVar("R", bound=frames.Frame)


class SpacesError(Exception):
    """The server cannot be reached, said no, or went away; one line for a person.
    code: of the specification, where the server gave one."""

    def __init__(self, text: str, code: str | None = None) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class AudioTrouble:
    """The microphone could not be opened when one was brought up."""

    text: str


LiveEvent = ClientEvent | AudioTrouble


class LiveSpace(asyncio.DatagramProtocol):
    """A space one is in.  Made by `connect` and `host`; all methods are for the event loop's
    thread."""

    def __init__(self, link: Link, key: bytes | None, *, bitrate: int, complexity: int) -> None:
        self.client = Client(
            link,
            key or os.urandom(32),
            entropy=os.urandom,
            now_ns=time.monotonic_ns(),
            bitrate=bitrate,
            complexity=complexity,
        )
        self.on_sent: Callable[[UplinkAudio, int], None] | None = None
        self.on_heard: Callable[[Heard, int], None] | None = None
        self.own_level = SILENT_LEVEL  # -dBov, of one's own voice as it goes out
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.DatagramTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_s = 0.0
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._over = asyncio.Event()
        self._unplugged = asyncio.Event()  # the socket is closed
        self._why: SpacesError | None = None
        self._replies: dict[int, asyncio.Future[frames.Frame]] = {}
        self._events: asyncio.Queue[LiveEvent] = asyncio.Queue(MAX_EVENTS)
        self._refused = 0
        self._input: AudioInput | None = None
        self._input_open = False
        self._output: AudioOutput | None = None
        self._voice: VoiceProcessor | None = None

    # -- what one sees ------------------------------------------------------------------------

    @property
    def over(self) -> SpacesError | None:
        """Why the session is over, if it is."""
        return self._why

    @property
    def title(self) -> str:
        return self.client.view.title

    @property
    def me(self) -> Member:
        if self.client.view.me is None:
            raise self._why or SpacesError("you are in no space")
        return self.client.view.me

    @property
    def stage(self) -> list[Member]:
        return self.client.view.stage

    @property
    def hands(self) -> list[Member]:
        return self.client.view.hands

    @property
    def listeners(self) -> int:
        return self.client.view.listeners

    @property
    def speaking(self) -> list[Member]:
        """Who is to be heard now, the loudest first."""
        loud = sorted((lv, seat) for seat, lv in self.client.levels.items() if lv < SPEAKING_LEVEL)
        found = [self.client.view.at_seat(seat) for _, seat in loud]
        return [member for member in found if member is not None]

    @property
    def link(self) -> Link:
        """For others to join with, as listeners."""
        link = self.client.link
        return Link(link.host, link.port, link.key, self.client.view.id)

    async def events(self) -> AsyncIterator[LiveEvent]:
        """What happens, until the session ends.  The oldest events are lost if nobody reads."""
        while self._why is None or not self._events.empty():
            yield await self._events.get()

    # -- what one does ------------------------------------------------------------------------

    async def ask(self, kind: type[frames.Request], reply: type[R], **fields: Any) -> R:
        """One request and its reply.  Raises SpacesError with the server's code and text."""
        if self._why is not None:
            raise self._why
        try:
            request_id = self.client.request(kind, **fields)
        except ChannelFull as error:
            raise SpacesError("the connection is too slow for so many requests") from error
        future: asyncio.Future[frames.Frame] = self._loop.create_future()
        self._replies[request_id] = future
        self._flush()
        try:
            frame = await asyncio.wait_for(future, REPLY_TIMEOUT_S)
        except TimeoutError as error:
            raise SpacesError("the server does not answer") from error
        finally:
            self._replies.pop(request_id, None)
        if isinstance(frame, frames.Error):
            raise SpacesError(frame.text, frame.code)
        if not isinstance(frame, reply):
            raise SpacesError(f"the server answered {frames.tag(type(frame))!r}")
        return frame

    async def raise_hand(self) -> None:
        await self.ask(frames.RaiseHand, frames.Ok)

    async def lower_hand(self, member: int | None = None) -> None:
        await self.ask(frames.LowerHand, frames.Ok, **_whom(member))

    async def bring_up(self, member: int) -> None:
        await self.ask(frames.BringUp, frames.Ok, member=member)

    async def take_down(self, member: int | None = None) -> None:
        await self.ask(frames.TakeDown, frames.Ok, **_whom(member))

    async def appoint(self, member: int) -> None:
        await self.ask(frames.Appoint, frames.Ok, member=member)

    async def dismiss(self, member: int | None = None) -> None:
        await self.ask(frames.Dismiss, frames.Ok, **_whom(member))

    async def mute(self, member: int | None = None) -> None:
        """Mutes oneself at once, or somebody else as soon as the server has agreed."""
        if member is None:
            self.client.muted = True
        await self.ask(frames.Mute, frames.Ok, **_whom(member))

    async def unmute(self) -> None:
        await self.ask(frames.Unmute, frames.Ok)
        self.client.muted = False

    async def invite(self) -> Link:
        """A link with which one may speak at once."""
        token = (await self.ask(frames.Invite, frames.Invited)).invite
        link = self.link
        return Link(link.host, link.port, link.key, link.space, token)

    async def roster(self) -> list[Member]:
        """Everyone in the space."""
        members: list[Member] = []
        more = True
        while more:
            after = members[-1].id if members else 0
            page = await self.ask(frames.Roster, frames.RosterPage, after=after)
            members += page.members
            more = page.more
        return members

    async def leave(self) -> None:
        await self.ask(frames.Leave, frames.Ok)

    async def close(self) -> None:
        """Ends the space for all."""
        await self.ask(frames.Close, frames.Ok)

    # -- sound --------------------------------------------------------------------------------

    def start_audio(
        self,
        microphone: AudioInput | None = None,
        speakers: AudioOutput | None = None,
        voice: VoiceProcessor | None = None,
    ) -> None:
        """The microphone is open only while one is on stage.  voice: echo, noise and level
        handling between microphone and network.  Raises AudioError if a device that is needed now
        cannot be opened."""
        self._voice = voice
        if speakers is not None:
            speakers.start(self._pull)
            self._output = speakers
        self._input = microphone
        self._follow_stage()

    def _follow_stage(self) -> None:
        """Opens the microphone when one comes on stage, closes it when one leaves."""
        me = self.client.view.me
        on_stage = me is not None and me.role.on_stage
        if self._input is None or on_stage == self._input_open:
            return
        self._input_open = on_stage
        if on_stage:
            self._input.start(self.push)
        else:
            self._input.stop()

    def stop_audio(self) -> None:
        if self._input is not None and self._input_open:
            self._input.stop()
        if self._output is not None:
            self._output.stop()
        self._input_open = False
        self._input = self._output = None

    def push(self, block: NDArray[np.float32], captured_ns: int) -> None:
        """block (960,): the next 20 ms of one's own voice."""
        if self._why is not None:
            return
        if self._voice is not None:
            block = self._voice.process(block)
        packet = self.client.talk(block)
        self.own_level = SILENT_LEVEL if packet is None else _level(block)
        if packet is not None and self.on_sent is not None:
            self.on_sent(packet, time.monotonic_ns())
        self._flush()

    def _pull(self, out: NDArray[np.float32], now_ns: int) -> None:
        self.client.play(out, now_ns)
        if self._voice is not None:
            self._voice.played(out)

    # -- shell --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self._flush()

    def connection_lost(self, _error: Exception | None) -> None:
        self._unplugged.set()

    def datagram_received(self, data: bytes, _address: Any) -> None:
        now_ns = time.monotonic_ns()
        self._take(self.client.receive(data, now_ns), now_ns)
        self._flush()

    def error_received(self, error: Exception) -> None:
        self._refused += isinstance(error, ConnectionRefusedError)
        if self._refused >= REFUSED_GIVE_UP and not self._connected.done():
            link = self.client.link
            text = f"nothing listens at {link.host}:{link.port}; is the server running?"
            self._take([Disconnected(text)], time.monotonic_ns())

    def _wake(self) -> None:
        self._timer = None
        now_ns = time.monotonic_ns()
        self._take(self.client.tick(now_ns), now_ns)
        self._flush()

    def _flush(self) -> None:
        """Sends what is to be sent, and sets the timer anew."""
        now_ns = time.monotonic_ns()
        if self._transport is None or self._transport.is_closing():
            return
        for datagram in self.client.transmit(now_ns):
            self._transport.sendto(datagram)
        if self.client.finished(now_ns):
            self._over.set()
            return
        when = self._loop.time() + max(0, self.client.deadline_ns - now_ns) / (1_000 * MS)
        if self._timer is None or when < self._wakes_s - 0.001:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(when, self._wake)
            self._wakes_s = when  # kept here: not every one of uvloop's timers knows it

    def _take(self, events: list[ClientEvent], now_ns: int) -> None:
        for event in events:
            match event:
                case Heard():
                    if self.on_heard is not None:
                        self.on_heard(event, now_ns)
                    continue
                case Connected():
                    if not self._connected.done():
                        self._connected.set_result(None)
                case Replied(request_id, frame):
                    future = self._replies.get(request_id)
                    if future is not None and not future.done():
                        future.set_result(frame)
                case Disconnected(text):
                    self._fail(SpacesError(text))
                case Ended():
                    self.stop_audio()
                case Changed():
                    try:
                        self._follow_stage()
                    except AudioError as error:
                        self._input = None
                        self._post(AudioTrouble(str(error)))
            self._post(event)

    def _post(self, event: LiveEvent) -> None:
        if self._events.full():
            self._events.get_nowait()
        self._events.put_nowait(event)

    def _fail(self, why: SpacesError) -> None:
        self._why = why
        self.stop_audio()
        if not self._connected.done():
            self._connected.set_exception(why)
        for future in self._replies.values():
            if not future.done():
                future.set_exception(why)
        if not self._connected.cancelled():
            self._connected.exception()  # looked at: nobody need await it

    async def _open(self) -> None:
        link = self.client.link
        try:
            await self._loop.create_datagram_endpoint(
                lambda: self, remote_addr=(link.host, link.port)
            )
        except OSError as error:
            text = f"{link.host} cannot be reached: {error.strerror or error}"
            raise SpacesError(text) from error
        await self._connected

    async def _shut(self) -> None:
        now_ns = time.monotonic_ns()
        if self._why is None:  # whoever waits for a reply or an event waits no longer
            self._take([Disconnected("you have left the server")], now_ns)
        self.client.close(now_ns)
        try:
            self._flush()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), CLOSE_TIMEOUT_S)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._transport is not None:
                self._transport.abort()
                await self._unplugged.wait()


def _level(block: NDArray[np.float32]) -> int:
    """-dBov (RFC 6464) of (n,): 0 is full scale, 127 silence."""
    power = float(np.mean(np.square(block, dtype=np.float64)))
    return min(SILENT_LEVEL, max(0, round(-10 * math.log10(max(power, 1e-13)))))


def _whom(member: int | None) -> dict[str, int]:
    return {} if member is None else {"member": member}


@contextlib.asynccontextmanager
async def _session(link: Link | str, key: bytes | None, **voice: int) -> AsyncIterator[LiveSpace]:
    parsed = Link.parse(link) if isinstance(link, str) else link
    live = LiveSpace(parsed, key, **voice)
    try:
        await live._open()
        yield live
    finally:
        await live._shut()


@contextlib.asynccontextmanager
async def connect(
    link: Link | str,
    *,
    name: str = "guest",
    key: bytes | None = None,
    bitrate: int = 32_000,
    complexity: int = 10,
) -> AsyncIterator[LiveSpace]:
    """Joins the space that the link names, and leaves it in the end.

    key: one's private key, 32 bytes, by which the server knows one again; a new one by default.
    bitrate, complexity: of one's own voice (Opus: bit/s, 0 to 10).
    Raises LinkError, SpacesError.
    """
    parsed = Link.parse(link) if isinstance(link, str) else link
    if parsed.space is None:
        raise SpacesError("this link names no space; `spaces host` opens one with it")
    async with _session(parsed, key, bitrate=bitrate, complexity=complexity) as live:
        fields = {"invite": parsed.invite} if parsed.invite else {}
        await live.ask(frames.Join, frames.Joined, space=parsed.space, name=name, **fields)
        yield live


@contextlib.asynccontextmanager
async def host(
    link: Link | str,
    *,
    title: str,
    name: str = "host",
    key: bytes | None = None,
    bitrate: int = 32_000,
    complexity: int = 10,
) -> AsyncIterator[LiveSpace]:
    """Opens a space on the server that the link names; it ends when its host leaves.  As
    `connect` otherwise."""
    async with _session(link, key, bitrate=bitrate, complexity=complexity) as live:
        await live.ask(frames.Open, frames.Joined, title=title, name=name)
        yield live
