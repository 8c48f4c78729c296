"""Many datagrams in one system call: Linux's sendmmsg(2) and recvmmsg(2) over numpy tables.

The kernel reads an array of structures that point at names, at vectors, at data:

    struct mmsghdr[]                            struct iovec[]
    +-----------------------------------+       +----------------+
    | msg_hdr     msg_name    ----------|--> address row i       |
    |             msg_namelen           |       |                |
    |             msg_iov     ----------|------>| iov_base  -----|--> datagram row i
    |             msg_iovlen  = 1       |       | iov_len        |
    |             msg_control           |       +----------------+
    |             msg_controllen        |       (when it came: read only)
    |             msg_flags             |
    +-----------------------------------+
    | msg_len     bytes moved           |
    +-----------------------------------+
      64 bytes on a 64-bit machine                16 bytes

Both arrays are numpy structured arrays, so a batch's pointers are filled by column: the cost in
Python is per batch, not per datagram.
"""

import ctypes
import errno
import os
import socket
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

ADDRESS_BYTES = 28  # a sockaddr_in6; a sockaddr_in fills its first 16 bytes
DATAGRAM_BYTES = 2048  # room for one received datagram; the protocol never exceeds 1,200
SEND_ROWS = 1024  # UIO_MAXIOV: the kernel looks at no more messages a call
RECEIVE_ROWS = 64

IOVEC = np.dtype([("base", np.uintp), ("len", np.uintp)], align=True)
MSGHDR = np.dtype(
    [
        ("name", np.uintp),
        ("namelen", np.uint32),
        ("iov", np.uintp),
        ("iovlen", np.uintp),
        ("control", np.uintp),
        ("controllen", np.uintp),
        ("flags", np.int32),
    ],
    align=True,
)
MMSGHDR = np.dtype([("hdr", MSGHDR), ("len", np.uint32)], align=True)

_MESSAGE_WORDS = MMSGHDR.itemsize // 4  # of 32 bits
_FLAGS_WORD = MSGHDR.fields["flags"][1] // 4  # type: ignore[index]  # numpy: fields of a structure
_LENGTH_WORD = MMSGHDR.fields["len"][1] // 4  # type: ignore[index]

CONTROL = np.dtype(  # a cmsghdr with the timespec of SCM_TIMESTAMPNS
    [("len", np.uintp), ("level", np.int32), ("type", np.int32), ("s", np.int64), ("ns", np.int64)],
    align=True,
)
SO_TIMESTAMPNS = 35
MAX_WAITED_NS = 1_000_000_000  # a clock that was put right meanwhile says more
MSG_TRUNC = 0x20
FULL = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM})

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
AVAILABLE = hasattr(_libc, "sendmmsg") and hasattr(_libc, "recvmmsg")


def _function(name: str, *argtypes: Any) -> Any:
    function = getattr(_libc, name)
    function.argtypes = argtypes
    function.restype = ctypes.c_ssize_t if name == "sendto" else ctypes.c_int
    return function


if AVAILABLE:
    _mmsg = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    sendmmsg = _function("sendmmsg", *_mmsg)
    recvmmsg = _function("recvmmsg", *_mmsg, ctypes.c_void_p)
    _sendto = _function(
        "sendto",
        *(ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int),
        *(ctypes.c_char_p, ctypes.c_uint),
    )


def table(rows: int) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """A table of `rows` messages of one vector each, names and data still to be filled in."""
    messages = np.zeros(rows, MMSGHDR)
    vectors = np.zeros(rows, IOVEC)
    messages["hdr"]["iov"] = pointers(vectors.ctypes.data, rows, IOVEC.itemsize)
    messages["hdr"]["iovlen"] = 1
    return messages, vectors


def pointers(base: int, rows: int, stride_bytes: int) -> NDArray[np.uintp]:
    return np.arange(rows, dtype=np.uintp) * np.uintp(stride_bytes) + np.uintp(base)


class Sender:
    """Sends rows of an arena on a non-blocking UDP socket; `name_bytes` is 28 or 16 by family."""

    def __init__(self, fd: int, name_bytes: int) -> None:
        self._fd = fd
        self._name_bytes = name_bytes
        self._messages, self._vectors = table(SEND_ROWS)
        self._messages["hdr"]["namelen"] = name_bytes

    def send(self, data: bytes, address: bytes) -> None:
        """Send one datagram. Raises OSError."""
        if _sendto(self._fd, data, len(data), 0, address, self._name_bytes) < 0:
            raise _last_error()

    def send_batch(
        self, arena: NDArray[np.uint8], lengths: NDArray[np.int32], addresses: NDArray[np.uint8]
    ) -> tuple[int, int]:
        """Send `arena[i, :lengths[i]]` to `addresses[i]` for each i; returns (sent, refused).

        Refused are the datagrams the kernel would not send to their address (no route, a
        firewall's no); they are stepped over. The rest, len(lengths) - sent - refused, found the
        socket's buffer full and was not tried again. The arrays' shapes are the caller's to check.
        """
        total, stride_bytes = arena.shape
        messages, vectors = self._messages, self._vectors
        sent = refused = 0
        for first in range(0, total, SEND_ROWS):
            rows = min(SEND_ROWS, total - first)
            messages["hdr"]["name"][:rows] = pointers(
                addresses.ctypes.data + first * ADDRESS_BYTES, rows, ADDRESS_BYTES
            )
            vectors["base"][:rows] = pointers(
                arena.ctypes.data + first * stride_bytes, rows, stride_bytes
            )
            vectors["len"][:rows] = lengths[first : first + rows]
            done = 0
            while done < rows:
                at = messages.ctypes.data + done * MMSGHDR.itemsize
                count = sendmmsg(self._fd, at, rows - done, 0)
                if count >= 0:
                    done += count
                    sent += count
                    continue
                # An error speaks of the first message of the call only.
                error = ctypes.get_errno()
                if error in FULL:
                    return sent, refused
                if error != errno.EINTR:
                    done += 1
                    refused += 1
        return sent, refused


class Receiver:
    """Receives up to 64 datagrams a call from a non-blocking UDP socket, and knows when they came.

    Most calls bring few.  So what the kernel wrote is read through memoryviews that are made once,
    and as good as nothing is written again: `namelen` stays what it is for all of a socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._fd = sock.fileno()
        messages, vectors = table(RECEIVE_ROWS)
        controls = np.zeros(RECEIVE_ROWS, CONTROL)
        names = np.zeros((RECEIVE_ROWS, ADDRESS_BYTES), np.uint8)
        data = np.zeros((RECEIVE_ROWS, DATAGRAM_BYTES), np.uint8)
        messages["hdr"]["name"] = pointers(names.ctypes.data, RECEIVE_ROWS, ADDRESS_BYTES)
        messages["hdr"]["namelen"] = ADDRESS_BYTES
        vectors["base"] = pointers(data.ctypes.data, RECEIVE_ROWS, DATAGRAM_BYTES)
        vectors["len"] = DATAGRAM_BYTES
        messages["hdr"]["control"] = pointers(controls.ctypes.data, RECEIVE_ROWS, CONTROL.itemsize)
        self._control_lengths = messages["hdr"]["controllen"]  # the kernel writes what it used
        self._seconds = controls["s"].data
        self._nanoseconds = controls["ns"].data
        self._table_at = messages.ctypes.data
        self._vectors = vectors  # the kernel reads it: it must live as long as the table
        words = messages.view(np.uint32).data
        self._lengths = words[_LENGTH_WORD::_MESSAGE_WORDS]
        self._flags = words[_FLAGS_WORD::_MESSAGE_WORDS]
        self._rows = [row.data for row in data]
        self._names = [row.data for row in names]

    def receive(self) -> tuple[list[tuple[bytes, bytes, int]], int]:
        """Read one batch: (datagrams, how many were too long and dropped).

        A datagram is (data, address, waited_ns): how long ago it came. Fewer than RECEIVE_ROWS of
        both together means that the socket is empty. Raises OSError
        (BlockingIOError when nothing was there).
        """
        self._control_lengths[:] = CONTROL.itemsize
        count = recvmmsg(self._fd, self._table_at, RECEIVE_ROWS, 0, None)
        if count < 0:
            raise _last_error()
        now_ns = time.time_ns()
        batch = []
        for i in range(count):
            if not self._flags[i] & MSG_TRUNC:
                data = bytes(self._rows[i][: self._lengths[i]])
                waited_ns = now_ns - self._seconds[i] * 1_000_000_000 - self._nanoseconds[i]
                waited_ns = min(max(waited_ns, 0), MAX_WAITED_NS)
                batch.append((data, bytes(self._names[i]), waited_ns))
        return batch, count - len(batch)


def _last_error() -> OSError:
    error = ctypes.get_errno()
    return OSError(error, os.strerror(error))
