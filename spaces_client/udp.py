"""A client's UDP socket, connected to its server.

A loop that was busy must not look like a path that delays.  So where the kernel says when a
datagram came (Linux: SO_TIMESTAMPNS) that is passed on, and what has come is read before sound is
taken (`receive_now`), not when the loop gets to it.

Not every event loop can watch a socket (on Windows, asyncio's own cannot): there asyncio's
transport stands in, and a datagram comes when it is read.
"""

import asyncio
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

DATAGRAM_BYTES = 2048  # the protocol never exceeds 1,200
MOST_AT_ONCE = 64  # datagrams, before others have their turn
MAX_WAITED_NS = 1_000_000_000  # a clock that was put right meanwhile says more

_SO_TIMESTAMPNS = 35  # Linux's; Python has no name for it
_TIMESPEC = struct.Struct("@qq")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size) if hasattr(socket, "CMSG_SPACE") else 0

Received = Callable[[bytes, int], None]  # data, how long ago it came: ns
Refused = Callable[[], None]  # nobody has the port


class Udp(Protocol):
    """All methods are for the event loop's thread."""

    def send(self, data: bytes) -> None:
        """Sends one datagram, or loses it."""

    def receive_now(self) -> None:
        """Delivers what has come."""

    def close(self) -> None:
        """Nothing is sent or delivered any more."""


async def open_udp(host: str, port: int, received: Received, refused: Refused) -> Udp:
    """Raises OSError if the host cannot be found or reached."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    last_error = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.connect(address)
        except OSError as error:
            sock.close()
            last_error = error
            continue
        try:
            return _WatchedUdp(loop, sock, received, refused)
        except NotImplementedError:  # Windows' own loop
            _, endpoint = await loop.create_datagram_endpoint(
                lambda: _UdpEndpoint(received, refused), sock=sock
            )
            return endpoint
    raise last_error


class _WatchedUdp:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        received: Received,
        refused: Refused,
    ) -> None:
        """Raises NotImplementedError if the loop cannot watch sockets."""
        self._loop = loop
        self._sock = sock
        self._received = received
        self._refused = refused
        if sys.platform == "linux":
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        loop.add_reader(sock, self.receive_now)

    def send(self, data: bytes) -> None:
        try:
            self._sock.send(data)
        except ConnectionRefusedError:  # of an earlier one
            self._loop.call_soon(self._tell_refused)
        except OSError:
            pass  # no way there just now, or the socket is full: as if it was lost on the way

    def receive_now(self) -> None:
        for _ in range(MOST_AT_ONCE):
            try:
                data, ancillary, _, _ = self._sock.recvmsg(DATAGRAM_BYTES, _ANCILLARY_BYTES)
            except ConnectionRefusedError:
                self._tell_refused()
            except OSError:
                return  # there is nothing, or it was closed by what was delivered last
            else:
                self._received(data, _waited_ns(ancillary))

    def _tell_refused(self) -> None:
        if self._sock.fileno() >= 0:
            self._refused()

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()


def _waited_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    """How long ago the kernel has seen it; 0 if it does not say."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            came_ns: int = seconds * 1_000_000_000 + nanoseconds
            return min(max(0, time.time_ns() - came_ns), MAX_WAITED_NS)
    return 0


class _UdpEndpoint(asyncio.DatagramProtocol):
    def __init__(self, received: Received, refused: Refused) -> None:
        self._received = received
        self._refused = refused
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, _address: Any) -> None:
        self._received(data, 0)

    def error_received(self, error: Exception) -> None:
        if isinstance(error, ConnectionRefusedError):
            self._refused()

    def send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.sendto(data)

    def receive_now(self) -> None:
        """It has been delivered when it was read."""

    def close(self) -> None:
        self._transport.abort()
