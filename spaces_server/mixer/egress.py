"""Egress: one row a member, one table a tick.

A row holds what differs between members: session index, packet counter, key, address.  A *job*
is one plaintext and the rows it goes to (a mix class's packet, a feed's batch).  All jobs of a
tick are sealed into one arena:

    arena (n, stride) uint8     | kind, counter | index | ciphertext .......... | tag |  unused |
    lengths (n,) int32            12 bytes: written by numpy for all rows at once
    addresses (n, 28) uint8       packed sockaddr

It is cut into batches of about BATCH_ROWS, each of which can go to the kernel as soon as it is
sealed, while the next one is.  What each datagram costs here is its seal (`seals.py`): no line of
Python runs for it.

What is not sent this tick is never sent: late audio is worth nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.connection import Connection
from protocol.packets import HEADER_BYTES, TAG_BYTES
from protocol.sealing import EPOCH_PACKETS
from spaces_server.mixer.seals import Seals, best_seals

ADDRESS_BYTES = 28  # sockaddr_in6
BATCH_ROWS = 512  # half as many as one sendmmsg takes: two cores then end together
_STRIDE_STEP_BYTES = 64  # a cache line


@dataclass(frozen=True, slots=True)
class Batch:
    """Datagrams to send; the arrays are valid until the next tick's are sealed."""

    arena: NDArray[np.uint8]
    lengths: NDArray[np.int32]
    addresses: NDArray[np.uint8]


class Egress:
    """The table of rows; grows by doubling, reuses the rows of those who left."""

    def __init__(self, seals: Seals | None = None) -> None:
        """seals: the quickest that there are, unless they are given."""
        self.seals = best_seals() if seals is None else seals
        self._connections: list[Connection | None] = []
        self._free: list[int] = []
        self._index = np.zeros(0, np.uint32)
        self._counter = np.zeros(0, np.int64)
        self._address = np.zeros((0, ADDRESS_BYTES), np.uint8)
        self._on_credit: set[int] = set()
        self._jobs: list[tuple[int, bytes, NDArray[np.intp]]] = []
        self._arena = np.zeros(0, np.uint8)
        self.sealed = 0

    def __len__(self) -> int:
        return len(self._connections) - len(self._free)

    def add(self, connection: Connection) -> int:
        """-> the row.  From here on the row counts the connection's media packets."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._connections[row] = connection
        self.seals.set(row, connection.media_sealer.key)
        self._index[row] = connection.media_sealer.index
        self._counter[row] = connection.media_sealer.counter
        self.moved(row)
        return row

    def _grow(self) -> None:
        old = len(self._connections)
        new = max(64, old)
        self._connections += [None] * new
        self.seals.grow(old + new)
        self._free += range(old + new - 1, old - 1, -1)
        self._index = np.concatenate((self._index, np.zeros(new, np.uint32)))
        self._counter = np.concatenate((self._counter, np.zeros(new, np.int64)))
        self._address = np.concatenate((self._address, np.zeros((new, ADDRESS_BYTES), np.uint8)))

    def remove(self, row: int) -> None:
        connection = self._connections[row]
        if connection is not None:
            connection.media_sealer.counter = int(self._counter[row])
        self._connections[row] = None
        self.seals.clear(row)
        self._on_credit.discard(row)
        self._free.append(row)

    def moved(self, row: int) -> None:
        """The connection's address has changed (or was just proven)."""
        connection = self._row(row)
        address = connection.address
        self._address[row] = 0
        self._address[row, : len(address)] = np.frombuffer(address, np.uint8)
        if connection.credit_bytes is not None:
            self._on_credit.add(row)

    def _row(self, row: int) -> Connection:
        connection = self._connections[row]
        assert connection is not None, f"row {row} is free"
        return connection

    def begin(self) -> None:
        """A tick begins.  What was put in one that failed is not sent: its rows may be others'."""
        self._jobs.clear()

    def put(self, kind: int, plaintext: bytes, rows: NDArray[np.intp] | Sequence[int]) -> None:
        """A job of this tick: `plaintext` to each of `rows`."""
        chosen = np.asarray(rows, np.intp)
        if self._on_credit:
            chosen = self._without_spent(chosen, len(plaintext) + HEADER_BYTES + TAG_BYTES)
        if len(chosen):
            self._jobs.append((kind, plaintext, chosen))

    def _without_spent(self, rows: NDArray[np.intp], size_bytes: int) -> NDArray[np.intp]:
        """Leaves out the rows whose address is not proven and has had its bytes."""
        spent = []
        for row in self._on_credit.intersection(rows.tolist()):
            connection = self._row(row)
            if connection.credit_bytes is None:
                self._on_credit.discard(row)
            elif not connection.spend(size_bytes):
                spent.append(row)
        return rows[~np.isin(rows, spent)] if spent else rows

    def seal(self) -> Iterator[Batch]:
        """The tick's datagrams, sealed as they are taken: take all of them."""
        jobs, self._jobs = self._jobs, []
        if not jobs:
            return
        total = sum(len(rows) for _, _, rows in jobs)
        longest = max(len(plaintext) for _, plaintext, _ in jobs) + HEADER_BYTES + TAG_BYTES
        stride = -(-longest // _STRIDE_STEP_BYTES) * _STRIDE_STEP_BYTES
        if len(self._arena) < total * stride:
            self._arena = np.empty(2 * total * stride, np.uint8)
        arena = self._arena[: total * stride].reshape(total, stride)
        lengths = np.empty(total, np.int32)
        addresses = np.empty((total, ADDRESS_BYTES), np.uint8)
        begin = at = 0
        for kind, plaintext, all_rows in jobs:
            for first in range(0, len(all_rows), BATCH_ROWS):
                rows = all_rows[first : first + BATCH_ROWS]
                end = at + len(rows)
                self._seal_rows(kind, plaintext, rows, arena[at:end])
                lengths[at:end] = len(plaintext) + HEADER_BYTES + TAG_BYTES
                addresses[at:end] = self._address[rows]
                at = end
                if at - begin >= BATCH_ROWS:
                    yield Batch(arena[begin:at], lengths[begin:at], addresses[begin:at])
                    begin = at
        self.sealed += total
        if begin < at:
            yield Batch(arena[begin:at], lengths[begin:at], addresses[begin:at])

    def _seal_rows(
        self, kind: int, plaintext: bytes, rows: NDArray[np.intp], out: NDArray[np.uint8]
    ) -> None:
        counters = self._counter[rows]
        self._counter[rows] = counters + 1
        if not (counters & EPOCH_PACKETS - 1).all():
            self._renew(rows[(counters & EPOCH_PACKETS - 1 == 0) & (counters > 0)])
        out[:, :8] = (counters | kind << 56).astype(">i8").view(np.uint8).reshape(-1, 8)
        out[:, 8:HEADER_BYTES] = self._index[rows].astype(">u4").view(np.uint8).reshape(-1, 4)
        self.seals.seal(rows, plaintext, out)

    def _renew(self, rows: NDArray[np.intp]) -> None:
        """An epoch begins for these rows."""
        for row in rows.tolist():
            self.seals.set(row, self._row(row).media_sealer.renew())
