"""The one UDP socket of a server: batches of datagrams in, batches of datagrams out.

To the core an address is 28 opaque bytes, the packed socket address as the kernel writes it, so
that an address goes from a received datagram into a send table without ever becoming an object.
The socket is dual-stack: an IPv4 peer is ::ffff:a.b.c.d on it. Where a machine has no IPv6, it is
an AF_INET socket, and the address a sockaddr_in padded with zeros.

What the kernel does not take at once is counted and dropped: late audio is worth nothing, and
control frames are repeated by the reliable channel.

What comes in is read at once where little comes, and every PAUSE_S where much does: a datagram that
has to wake the server for itself costs ten times as much as one among others (nothing that it needs
is in the caches). When it came is known all the same, from the kernel, and `receive_now` takes what
has come before a tick: audio is neither late by it nor does it seem to be.

Where there is a second core, large batches go to the kernel from a thread of their own: a send is
the kernel's work, so meanwhile the next batch can be sealed. When the last one is, `share` takes
back what that thread has not begun: from then on both send.
"""

import asyncio
import errno
import logging
import socket
import struct
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spaces_server.net.mmsg import (
    ADDRESS_BYTES,
    AVAILABLE,
    DATAGRAM_BYTES,
    FULL,
    RECEIVE_ROWS,
    Receiver,
    Sender,
)

SOCKET_BUFFER_BYTES = 4 * 1024 * 1024
PAUSE_S = 0.010
OVERLAP_ROWS = 256  # a batch that takes the kernel much longer than a thread takes to wake

_SOCKADDR_IN = struct.Struct("=H2s4s20x")  # family, port, address; 16 bytes and our padding
_SOCKADDR_IN6 = struct.Struct("=H2sI16sI")  # family, port, flow label, address, scope
_FAMILY = struct.Struct("=H")
_V4_MAPPED = bytes(10) + b"\xff\xff"
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # Linux, with CAP_NET_ADMIN: above the system's limit

logger = logging.getLogger(__name__)

Batch = list[tuple[bytes, bytes, int]]  # (data, address, how long ago it came: ns)
Receive = Callable[[Batch], None]
Rows = tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8]]  # arena, lengths, addresses


class TransportError(Exception):
    """The socket could not be opened; the message is for the person who started the server."""


@dataclass(slots=True)
class TransportStats:
    """Counts of datagrams since the transport was opened."""

    received: int = 0
    receive_oversized: int = 0  # longer than DATAGRAM_BYTES: dropped
    receive_errors: int = 0  # failed reads, and batches the receiver raised on
    sent: int = 0
    send_short: int = 0  # the kernel's buffer was full: dropped
    send_refused: int = 0  # the kernel would not send to this address: dropped


class Transport(Protocol):
    """What a server needs of its socket. All methods are for the event loop's thread."""

    local_port: int
    stats: TransportStats

    def send(self, data: bytes, address: bytes) -> None:
        """Send one datagram to a packed address, or count it as dropped."""

    def send_batch(
        self, arena: NDArray[np.uint8], lengths: NDArray[np.int32], addresses: NDArray[np.uint8]
    ) -> None:
        """Send `arena[i, :lengths[i]]` to `addresses[i]` for every row, now or soon: the arrays
        must stay as they are until `flush`.

        arena: (n, stride), lengths: int32 (n,), addresses: uint8 (n, 28), all C-contiguous. What
        the kernel does not take is counted and dropped. Raises ValueError for other arrays.
        """

    def share(self) -> None:
        """No more batches come for now: send here what is not under way."""

    def flush(self) -> None:
        """Wait until all batches are sent."""

    def receive_now(self) -> None:
        """Deliver what waits to be read, within bounds: a tick comes next."""

    def close(self) -> None:
        """Close the socket. What is sent afterwards goes nowhere."""


def pack_address(host: str, port: int, family: int = socket.AF_INET6) -> bytes:
    """The 28 opaque bytes for a numeric host ("192.0.2.1", "2001:db8::1", "fe80::1%eth0").

    `family` is that of the socket it is for. Raises ValueError when `host` is no numeric address
    or an IPv6 address is asked of an IPv4 socket, or `port` is not within 0..65535.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} is not between 0 and 65535")
    port_bytes = port.to_bytes(2, "big")
    bare, _, scope = host.partition("%")
    try:
        packed = _V4_MAPPED + socket.inet_pton(socket.AF_INET, host)
    except OSError:
        try:
            packed = socket.inet_pton(socket.AF_INET6, bare)
            scope_id = _scope_id(scope)
        except OSError as error:
            raise ValueError(f"{host!r} is not an IP address") from error
    else:
        scope_id = 0
    if family == socket.AF_INET6:
        return _SOCKADDR_IN6.pack(family, port_bytes, 0, packed, scope_id)
    if not packed.startswith(_V4_MAPPED):
        raise ValueError(f"{host!r} is an IPv6 address and the socket is IPv4")
    return _SOCKADDR_IN.pack(family, port_bytes, packed[12:])


def host_of(address: bytes) -> bytes:
    """What of a packed address limits go by: an IPv4 address, or the /64 of an IPv6 one, which is
    what one household has."""
    if _FAMILY.unpack_from(address)[0] == socket.AF_INET:
        return address[4:8]
    packed = address[8:24]
    return packed[12:] if packed.startswith(_V4_MAPPED) else packed[:8]


def unpack_address(address: bytes) -> tuple[str, int]:
    """The (host, port) of 28 opaque bytes, IPv4-mapped printed as plain IPv4. Raises ValueError."""
    if len(address) != ADDRESS_BYTES:
        raise ValueError(f"an address has {ADDRESS_BYTES} bytes, not {len(address)}")
    family = _FAMILY.unpack_from(address)[0]
    if family == socket.AF_INET:
        _, port_bytes, packed = _SOCKADDR_IN.unpack(address)
        return socket.inet_ntop(socket.AF_INET, packed), int.from_bytes(port_bytes, "big")
    if family != socket.AF_INET6:
        raise ValueError(f"address family {family} is neither IPv4 nor IPv6")
    _, port_bytes, _, packed, scope_id = _SOCKADDR_IN6.unpack(address)
    port = int.from_bytes(port_bytes, "big")
    if packed.startswith(_V4_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:]), port
    scope = f"%{scope_id}" if scope_id else ""
    return socket.inet_ntop(socket.AF_INET6, packed) + scope, port


def _scope_id(scope: str) -> int:
    return int(scope) if scope.isdecimal() else socket.if_nametoindex(scope) if scope else 0


async def open_transport(
    host: str,
    port: int,
    receive: Receive,
    *,
    mmsg: bool = AVAILABLE,
    ipv6: bool = socket.has_ipv6,
    cores: int = 1,
) -> Transport:
    """Bind UDP `host`:`port` (port 0: any free one) and start to receive.

    `host` is a name or an address; "" and "::" mean every address of the machine. `receive` is
    called in the event loop with one or more (data, address, waited_ns). `mmsg`, `ipv6` and
    `cores` say what of the machine to use. Raises TransportError.
    """
    sock, family = await _bind(host, port, ipv6)
    if mmsg:
        return MmsgTransport(sock, family, receive, overlap=cores > 1)
    transport = PortableTransport(sock, family, receive)
    await transport.start()
    return transport


async def _bind(host: str, port: int, ipv6: bool) -> tuple[socket.socket, int]:
    sock, family = _open_socket(ipv6)
    try:
        name = pack_address(await _resolve(host, family), port, family)
        sock.bind(_to_python(name))
    except (OSError, ValueError) as error:
        sock.close()
        raise TransportError(_explain(error, host, port)) from error
    sock.setblocking(False)
    _enlarge_buffers(sock)
    return sock, family


def _open_socket(ipv6: bool) -> tuple[socket.socket, int]:
    if ipv6:
        try:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        except OSError:  # built with IPv6, but the kernel has it switched off
            pass
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            return sock, socket.AF_INET6
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.AF_INET


async def _resolve(host: str, family: int) -> str:
    """A numeric address to bind for a name or an address that a person wrote."""
    if host in ("", "::"):
        return "::" if family == socket.AF_INET6 else "0.0.0.0"
    asked = socket.AF_UNSPEC if family == socket.AF_INET6 else socket.AF_INET
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, family=asked, type=socket.SOCK_DGRAM)
    name = found[0][4]
    scope = f"%{name[3]}" if len(name) == 4 and name[3] else ""
    return f"{str(name[0]).partition('%')[0]}{scope}"


def _explain(error: OSError | ValueError, host: str, port: int) -> str:
    if isinstance(error, ValueError):
        return f"cannot listen on UDP port {port} of {host!r}: {error}"
    if isinstance(error, socket.gaierror):
        return f"the host {host!r} is not known here; choose another with --host"
    if error.errno == errno.EADDRINUSE:
        return f"UDP port {port} is already in use; choose another with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host!r} is not an address of this machine; choose another with --host"
    if error.errno == errno.EACCES:
        return f"UDP port {port} is not allowed for this user; choose one above 1023 with --port"
    return f"cannot listen on UDP port {port} of {host!r}: {error.strerror or error}"


def _enlarge_buffers(sock: socket.socket) -> None:
    for forced, plain in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        # On other systems than Linux the forced option's number may mean something else.
        for option in (forced, plain) if sys.platform == "linux" else (plain,):
            try:
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
                break
            except OSError:  # not permitted, or above the system's limit: what there is must do
                continue


class _SocketTransport(ABC):
    """What both transports share: the counts, the checks, the guard around the receiver."""

    def __init__(self, sock: socket.socket, family: int, receive: Receive) -> None:
        self.local_port: int = sock.getsockname()[1]
        self.stats = TransportStats()
        self._sock = sock
        self._family = family
        self._receive = receive
        self._closed = False

    def send(self, data: bytes, address: bytes) -> None:
        if len(address) != ADDRESS_BYTES:  # the kernel would read beyond it
            raise ValueError(f"an address has {ADDRESS_BYTES} bytes, not {len(address)}")
        if self._closed:
            return
        try:
            self._send_one(data, address)
        except OSError as error:
            if error.errno in FULL:
                self.stats.send_short += 1
            else:
                self.stats.send_refused += 1
        else:
            self.stats.sent += 1

    def send_batch(
        self, arena: NDArray[np.uint8], lengths: NDArray[np.int32], addresses: NDArray[np.uint8]
    ) -> None:
        _check_batch(arena, lengths, addresses)
        if len(lengths) and not self._closed:
            self._count(len(lengths), *self._send_rows(arena, lengths, addresses))

    @abstractmethod
    def share(self) -> None: ...

    @abstractmethod
    def flush(self) -> None: ...

    @abstractmethod
    def receive_now(self) -> None: ...

    def _count(self, rows: int, sent: int, refused: int) -> None:
        self.stats.sent += sent
        self.stats.send_refused += refused
        self.stats.send_short += rows - sent - refused

    @abstractmethod
    def _send_one(self, data: bytes, address: bytes) -> None:
        """Raises OSError if the kernel does not take it."""

    @abstractmethod
    def _send_rows(
        self, arena: NDArray[np.uint8], lengths: NDArray[np.int32], addresses: NDArray[np.uint8]
    ) -> tuple[int, int]:
        """-> (sent, refused); the rest did not fit."""

    def _deliver(self, batch: Batch) -> None:
        self.stats.received += len(batch)
        try:
            self._receive(batch)
        except Exception:
            # One bad datagram must not end the server, nor unregister the reader.
            self.stats.receive_errors += 1
            logger.exception("a batch of %d datagrams was not handled", len(batch))


def _check_batch(
    arena: NDArray[np.uint8], lengths: NDArray[np.int32], addresses: NDArray[np.uint8]
) -> None:
    """The kernel follows these as pointers: a wrong shape would send memory that is not ours."""
    rows = len(lengths)
    shapes = arena.ndim == 2 and len(arena) == rows and addresses.shape == (rows, ADDRESS_BYTES)
    types = arena.dtype == addresses.dtype == np.uint8 and lengths.dtype == np.int32
    if not (shapes and types and arena.flags.c_contiguous and addresses.flags.c_contiguous):
        raise ValueError("not a batch: arena (n, stride), lengths (n,), addresses (n, 28)")
    if rows and not 0 <= int(lengths.min()) <= int(lengths.max()) <= arena.shape[1]:
        raise ValueError("a length is negative or longer than its row")


class MmsgTransport(_SocketTransport):
    """Linux: recvmmsg when the socket is readable, sendmmsg over a prebuilt table."""

    def __init__(
        self, sock: socket.socket, family: int, receive: Receive, *, overlap: bool
    ) -> None:
        """overlap: whether there is a second core to send from."""
        super().__init__(sock, family, receive)
        name_bytes = 28 if family == socket.AF_INET6 else 16
        self._sender = Sender(sock.fileno(), name_bytes)
        self._other_sender = Sender(sock.fileno(), name_bytes)  # the thread's
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="send") if overlap else None
        self._sending: deque[tuple[Rows, Future[tuple[int, int]]]] = deque()
        self._receiver = Receiver(sock)
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None  # between two reads; else the loop watches
        self._watch()

    def close(self) -> None:
        if not self._closed:
            self.flush()
            self._closed = True
            if self._thread is not None:
                self._thread.shutdown()
            if self._pause is None:
                self._loop.remove_reader(self._sock.fileno())
            else:
                self._pause.cancel()
            self._sock.close()

    def send_batch(
        self, arena: NDArray[np.uint8], lengths: NDArray[np.int32], addresses: NDArray[np.uint8]
    ) -> None:
        if self._thread is None or len(lengths) < OVERLAP_ROWS:
            super().send_batch(arena, lengths, addresses)
            return
        _check_batch(arena, lengths, addresses)
        if not self._closed:
            rows = (arena, lengths, addresses)
            self._sending.append((rows, self._thread.submit(self._other_sender.send_batch, *rows)))

    def share(self) -> None:
        while self._sending and self._sending[-1][1].cancel():
            rows, _ = self._sending.pop()
            self._count(len(rows[1]), *self._send_rows(*rows))

    def flush(self) -> None:
        while self._sending:
            rows, sending = self._sending.popleft()
            self._count(len(rows[1]), *sending.result())

    def _send_one(self, data: bytes, address: bytes) -> None:
        self._sender.send(data, address)

    def _send_rows(
        self, arena: NDArray[np.uint8], lengths: NDArray[np.int32], addresses: NDArray[np.uint8]
    ) -> tuple[int, int]:
        return self._sender.send_batch(arena, lengths, addresses)

    def receive_now(self) -> None:
        self._read()

    def _watch(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        """One call; if there is more, the loop comes back, and the ticks have had their turn."""
        if self._read() < RECEIVE_ROWS and not self._closed:
            self._loop.remove_reader(self._sock.fileno())
            self._pause = self._loop.call_later(PAUSE_S, self._after_pause)

    def _after_pause(self) -> None:
        count = self._read()
        if self._closed:
            return
        if 0 < count < RECEIVE_ROWS:
            self._pause = self._loop.call_later(PAUSE_S, self._after_pause)
        else:
            self._watch()

    def _read(self) -> int:
        """-> how many datagrams there were; RECEIVE_ROWS: there may be more."""
        if self._closed:
            return 0
        try:
            batch, oversized = self._receiver.receive()
        except BlockingIOError:
            return 0
        except OSError:  # an ICMP error handed to the next call: the socket lives on
            self.stats.receive_errors += 1
            return 1
        self.stats.receive_oversized += oversized
        if batch:
            self._deliver(batch)
        return len(batch) + oversized


class PortableTransport(_SocketTransport, asyncio.DatagramProtocol):
    """Everywhere else: asyncio's endpoint to receive, sendto on its socket to send.

    Sending goes past asyncio on purpose: its transport would queue what the kernel refuses.
    """

    _endpoint: asyncio.DatagramTransport

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._endpoint, _ = await loop.create_datagram_endpoint(lambda: self, sock=self._sock)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._endpoint.close()

    def share(self) -> None:
        """Every batch was sent at once."""

    def flush(self) -> None:
        """Likewise."""

    def receive_now(self) -> None:
        """What has come was delivered at once."""

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if len(data) > DATAGRAM_BYTES:
            self.stats.receive_oversized += 1
        else:
            self._deliver([(bytes(data), _from_python(addr, self._family), 0)])

    def error_received(self, exc: Exception) -> None:
        self.stats.receive_errors += 1

    def _send_one(self, data: bytes, address: bytes) -> None:
        self._sock.sendto(data, _to_python(address))

    def _send_rows(
        self, arena: NDArray[np.uint8], lengths: NDArray[np.int32], addresses: NDArray[np.uint8]
    ) -> tuple[int, int]:
        sent = refused = 0
        for row, length, address in zip(arena, lengths.tolist(), addresses, strict=True):
            try:
                self._sock.sendto(row[:length].data, _to_python(address.tobytes()))
                sent += 1
            except OSError as error:
                if error.errno in FULL:
                    break
                refused += 1
        return sent, refused


def _to_python(address: bytes) -> tuple[Any, ...]:
    """The tuple that Python's socket functions take for a packed address."""
    if _FAMILY.unpack_from(address)[0] == socket.AF_INET:
        return unpack_address(address)
    _, port_bytes, _, packed, scope_id = _SOCKADDR_IN6.unpack(address)
    host = socket.inet_ntop(socket.AF_INET6, packed)
    return host, int.from_bytes(port_bytes, "big"), 0, scope_id


def _from_python(name: tuple[Any, ...], family: int) -> bytes:
    host = str(name[0]).partition("%")[0]
    return pack_address(
        f"{host}%{name[3]}" if len(name) == 4 and name[3] else host, name[1], family
    )
