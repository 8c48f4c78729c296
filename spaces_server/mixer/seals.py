"""Seals: the keys of the egress's rows, and AES-128-GCM over many rows at once.

A row's key is set when somebody takes the row, renewed with each epoch, and cleared when they
leave.  What is sealed is one plaintext for many rows, each under its own key, with the 12 bytes in
front of it as nonce and without AAD (NIST SP 800-38D; `protocol/sealing.py` says why).

There are two of them.  `OpenSslSeals` calls the cryptography library once a row: most of what that
takes goes into a context of 1.2 KB that OpenSSL copies for each datagram.  `IpsecMbSeals`
(`ipsec_mb.py`) hands the rows to Intel's multi-buffer library 128 at a time, where it is installed.
"""

import operator
from itertools import repeat
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from protocol.packets import HEADER_BYTES, TAG_BYTES
from spaces_server.mixer import ipsec_mb

_NONCE = np.dtype((np.void, HEADER_BYTES))


class Seals(Protocol):
    """Keys by row; rows begin at 0 and are as many as `grow` was asked for."""

    name: str  # and version of the library that seals

    def grow(self, rows: int) -> None:
        """There are so many rows from now on, at least as many as before."""

    def set(self, row: int, key: bytes) -> None:
        """key: 16 bytes, this row's from now on."""

    def clear(self, row: int) -> None:
        """Nobody has this row; its key is not kept."""

    def seal(self, rows: NDArray[np.intp], plaintext: bytes, out: NDArray[np.uint8]) -> None:
        """out: (len(rows), stride), C-contiguous; the first 12 bytes of each are its nonce, and
        ciphertext and tag are written behind them.  Raises what it likes for a row without a key:
        that is the caller's mistake."""


class OpenSslSeals:
    """One AEAD a row, about 2.5 KB, and one call a datagram."""

    name = "OpenSSL"

    def __init__(self) -> None:
        self._encrypt = np.zeros(0, object)  # the bound method of the row's AEAD

    def grow(self, rows: int) -> None:
        more = np.zeros(rows - len(self._encrypt), object)
        self._encrypt = np.concatenate((self._encrypt, more))

    def set(self, row: int, key: bytes) -> None:
        self._encrypt[row] = AESGCM(key).encrypt

    def clear(self, row: int) -> None:
        self._encrypt[row] = None

    def seal(self, rows: NDArray[np.intp], plaintext: bytes, out: NDArray[np.uint8]) -> None:
        nonces = np.ascontiguousarray(out[:, :HEADER_BYTES]).view(_NONCE).ravel()
        sealed = b"".join(
            map(
                operator.call,
                self._encrypt[rows].tolist(),
                nonces.tolist(),
                repeat(plaintext),
                repeat(None),  # no AAD
            )
        )
        size = len(plaintext) + TAG_BYTES
        out[:, HEADER_BYTES : HEADER_BYTES + size] = np.frombuffer(sealed, np.uint8).reshape(
            len(rows), size
        )


def best_seals() -> Seals:
    """The quickest that this machine has."""
    library = ipsec_mb.find()
    return OpenSslSeals() if library is None else ipsec_mb.IpsecMbSeals(library)
