"""Many clients of a server that knows its clients by their addresses, on a few sockets.

A socket for each of thousands would be read slowly and unfairly.  But all of 127.0.0.0/8 is this
machine: client n has the address 127.1.0.0 + n, and the sockets are bound to every address there
is.  IP_PKTINFO (ip(7)) tells the kernel which address a datagram goes out from, and us which one
it came in for.
"""

import contextlib
import socket
import struct
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from bench.polled import Poller, dropped_by_kernel, udp_socket

PORTS = 4
MOST = 1 << 16
ROOM_BYTES = 1500

IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
IN_PKTINFO = struct.Struct("@I4s4s")  # interface, our address, the address a datagram came in for
CONTROL_BYTES = socket.CMSG_SPACE(IN_PKTINFO.size)
LAST_TWO_AT = socket.CMSG_LEN(IN_PKTINFO.size) - 2  # of the address it came in for

Batch = tuple[NDArray[np.uint8], NDArray[np.intp], NDArray[np.intp]]


def free_address(kind: socket.SocketKind) -> tuple[str, int]:
    """Where a server may listen: nobody does at the moment."""
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind(("127.0.0.1", 0))
        address: tuple[str, int] = one.getsockname()
        return address


class Addresses(Poller):
    """`count` addresses, numbered from 0.  Client n always uses the same of the PORTS."""

    def __init__(self, stack: ExitStack, count: int, rows: int = 1024) -> None:
        """The sockets close with the stack.  Raises OSError."""
        if not 0 < count <= MOST:
            raise ValueError(f"there are addresses for 1 to {MOST} clients, not for {count}")
        self._sockets = [
            stack.enter_context(contextlib.closing(udp_socket(bind=("0.0.0.0", 0))))
            for _ in range(PORTS)
        ]
        for one in self._sockets:
            one.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        super().__init__(self._sockets, rows, ROOM_BYTES)
        self._sources = [
            [(socket.IPPROTO_IP, IP_PKTINFO, IN_PKTINFO.pack(0, self._packed(n), bytes(4)))]
            for n in range(count)
        ]
        self._control = np.zeros((rows, CONTROL_BYTES), np.uint8)
        self._last_two = self._control[:, LAST_TWO_AT : LAST_TWO_AT + 2]
        headers = self._messages["hdr"]
        headers["control"] = self._control.ctypes.data + np.arange(rows) * CONTROL_BYTES
        self._control_lengths = headers["controllen"]
        self._control_lengths[:] = CONTROL_BYTES

    @staticmethod
    def _packed(number: int) -> bytes:
        return bytes((127, 1, number >> 8, number & 0xFF))

    def address(self, number: int) -> str:
        return socket.inet_ntoa(self._packed(number))

    def send(self, number: int, datagram: bytes, server: tuple[str, int]) -> None:
        """Raises OSError."""
        one = self._sockets[number % PORTS]
        one.sendmsg([datagram], self._sources[number], 0, server)

    def receive(self) -> Batch | None:
        """Asks every socket; -> data (n, ROOM_BYTES), lengths (n,), whose they are (n,), valid
        until the next call, or None if nothing was there.  Raises OSError."""
        batch = self.poll_all()
        if batch is None:
            return None
        data, lengths = batch
        self._control_lengths[: len(lengths)] = CONTROL_BYTES  # the call overwrote them
        last_two = self._last_two[: len(lengths)].astype(np.intp)
        return data, lengths, last_two[:, 0] << 8 | last_two[:, 1]

    def dropped(self) -> int:
        """How many datagrams found our sockets full, since they were made."""
        return dropped_by_kernel(self._sockets)


def rows(batch: Batch | None) -> list[tuple[int, bytes]]:
    """A batch's datagrams, each with the number of the client it is for."""
    if batch is None:
        return []
    data, lengths, numbers = batch
    return [
        (number, data[row, :length].tobytes())
        for row, (number, length) in enumerate(zip(numbers.tolist(), lengths.tolist(), strict=True))
    ]
