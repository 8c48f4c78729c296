"""The shell around the sans-I/O `Client`: socket, timer, a future for every request, events.

Every attempt to have a session gets a socket of its own, because this machine's own address may be
another one by then.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeVar

from protocol import frames
from protocol.connection import MS
from protocol.reliable import ChannelFull
from spaces_client.client import Client, Phase
from spaces_client.events import (
    ClientEvent,
    Connected,
    Disconnected,
    Notified,
    Reconnecting,
    Replied,
)
from spaces_client.udp import Udp, open_udp

REPLY_TIMEOUT_S = 15.0
CLOSE_TIMEOUT_S = 1.0
MAX_EVENTS = 1_000
LOST = "the connection was lost; try again"

R = TypeVar("R", bound=frames.Frame)


class SpacesError(Exception):
    """The server cannot be reached, said no, or went away; one line for a person.
    code: of the specification, where the server gave one.  retry_ms: when trying again may help,
    from now on; 0 if waiting does not help."""

    def __init__(self, text: str, code: str | None = None, retry_ms: int = 0) -> None:
        super().__init__(text)
        self.code = code
        self.retry_ms = retry_ms


@dataclass(frozen=True, slots=True)
class AudioTrouble:
    """The microphone could not be opened when one was brought up."""

    text: str


LiveEvent = ClientEvent | AudioTrouble


class Shell:
    """A client that runs; all methods are for the event loop's thread."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._loop = asyncio.get_running_loop()
        self._udp: Udp | None = None
        self._plugged = 0  # the attempt that the socket is for
        self._plugging: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_s = 0.0
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._over = asyncio.Event()
        self._why: SpacesError | None = None
        self._replies: dict[int, asyncio.Future[frames.Frame]] = {}
        self._events: asyncio.Queue[LiveEvent] = asyncio.Queue(MAX_EVENTS)

    @property
    def over(self) -> SpacesError | None:
        """Why the session is over, if it is."""
        return self._why

    @property
    def trouble(self) -> str | None:
        """Why there is no session at the moment, while attempts are made to have one again."""
        return self.client.trouble

    async def events(self) -> AsyncIterator[LiveEvent]:
        """What happens, until the session is over.  The oldest events are lost if nobody reads.

        A notice that is kept until it was seen counts as seen when the next event is asked for."""
        while self._why is None or not self._events.empty():
            event = await self._events.get()
            yield event
            if isinstance(event, Notified) and isinstance(event.frame, frames.KeptNotice):
                self.client.seen(event.frame.notice)
                self._flush()

    async def ask(self, kind: type[frames.Request], reply: type[R], **fields: Any) -> R:
        """One request and its reply.  Raises SpacesError with the server's code and text."""
        if self._why is not None:
            raise self._why
        if self.client.phase is not Phase.CONNECTED or self.client.trouble is not None:
            raise SpacesError(LOST)
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
            raise SpacesError(frame.text, frame.code, frame.retry_ms)
        if not isinstance(frame, reply):
            raise SpacesError(f"the server answered {frames.tag(type(frame))!r}")
        return frame

    # -- what happens -------------------------------------------------------------------------

    def _take(self, events: list[ClientEvent], now_ns: int) -> None:
        for event in events:
            self._happen(event, now_ns)

    def _happen(self, event: ClientEvent, now_ns: int) -> None:
        match event:
            case Connected():
                if not self._connected.done():
                    self._connected.set_result(None)
            case Replied(request_id, frame):
                future = self._replies.get(request_id)
                if future is not None and not future.done():
                    future.set_result(frame)
            case Reconnecting():
                self._fail_requests(SpacesError(LOST))
            case Disconnected(text):
                self._why = SpacesError(text)
                if not self._connected.done():
                    self._connected.set_exception(self._why)
                if not self._connected.cancelled():
                    self._connected.exception()  # looked at: nobody need await it
                self._fail_requests(self._why)
        self._post(event)

    def _fail_requests(self, why: SpacesError) -> None:
        for future in self._replies.values():
            if not future.done():
                future.set_exception(why)

    def _post(self, event: LiveEvent) -> None:
        if self._events.full():
            self._events.get_nowait()
        self._events.put_nowait(event)

    # -- socket and timer -----------------------------------------------------------------------

    def _received(self, data: bytes, waited_ns: int) -> None:
        now_ns = time.monotonic_ns()
        self._take(self.client.receive(data, now_ns, waited_ns), now_ns - waited_ns)
        self._flush()

    def _receive_now(self) -> None:
        """Takes what has come: sound is to be played."""
        if self._udp is not None:
            self._udp.receive_now()

    def _refused(self) -> None:
        now_ns = time.monotonic_ns()
        self._take(self.client.refused(now_ns), now_ns)
        self._flush()

    def _wake(self) -> None:
        self._timer = None
        now_ns = time.monotonic_ns()
        self._take(self.client.tick(now_ns), now_ns)
        self._flush()

    def _flush(self) -> None:
        """Sends what is to be sent, sees to it that there is a socket, and sets the timer anew."""
        now_ns = time.monotonic_ns()
        client = self.client
        if self._plugged == client.attempt or client.phase is not Phase.CONNECTING:
            if self._udp is not None:
                for datagram in client.transmit(now_ns):
                    self._udp.send(datagram)
        elif self._plugging is None:
            self._plugging = self._loop.create_task(self._plug(client.attempt))
        if client.finished(now_ns):
            self._over.set()
            return
        when = self._loop.time() + max(0, client.deadline_ns - now_ns) / (1_000 * MS)
        if self._timer is None or when < self._wakes_s - 0.001:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(when, self._wake)
            self._wakes_s = when  # kept here: not every one of uvloop's timers knows it

    async def _plug(self, attempt: int) -> None:
        """A fresh socket, for this attempt."""
        link = self.client.link
        self._unplug()
        try:
            self._udp = await open_udp(link.host, link.port, self._received, self._refused)
        except OSError as error:
            text = f"{link.host} cannot be reached: {error.strerror or error}"
            now_ns = time.monotonic_ns()
            self._take(self.client.unreachable(text, now_ns), now_ns)
        self._plugged = attempt
        self._plugging = None
        self._flush()

    def _unplug(self) -> None:
        if self._udp is not None:
            self._udp.close()
            self._udp = None

    # -- from beginning to end --------------------------------------------------------------------

    async def _open(self) -> None:
        """Raises SpacesError."""
        self._flush()
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
            if self._plugging is not None:
                self._plugging.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._plugging
            self._unplug()
