"""Intel's Multi-Buffer Crypto for IPsec (github.com/intel/intel-ipsec-mb), where it is installed.

It seals a *burst* of up to 128 datagrams in one call, each with a key of its own, and takes a
quarter to a fifth of what 128 calls of OpenSSL's take.  There is no binding of it: like the kernel
in `net/mmsg.py` it reads tables of structures, which numpy fills by column.

    manager  `IMB_MGR`: begins with pointers to the functions for this processor's instructions
    job      one of its ring: pointers and lengths of a datagram.  A burst is done when its call
             returns, and so the next one begins with the same job
    key      `struct gcm_key_data`: the key expanded, and powers of the hash key; one a row

    row of out    | nonce (12) | ciphertext | tag (16) | unused |
                  ^ iv         ^ dst        ^ auth_tag_output            src: the one plaintext

The layouts are those of versions 1.3 (Debian 12) to 2.0 (Debian 13 and later) on x86-64, which
differ only in the sizes of a job and of a key.  Before a library is used, what it seals is compared
with what OpenSSL seals; one that is unknown, too old, or wrong is left alone.
"""

import ctypes
import logging
import os
import platform
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from protocol.packets import HEADER_BYTES, MAX_PLAINTEXT_BYTES, TAG_BYTES

OVERRIDE = "SPACES_IPSEC_MB"  # a path outright; empty: none is used
SONAMES = ("libIPSec_MB.so.2", "libIPSec_MB.so.1")
VERSIONS = range(0x10300, 0x20100)  # 1.3.0 to 2.0.x; as imb_get_version says them

BURST_JOBS = 128  # IMB_MAX_BURST_SIZE
KEY_BYTES = 1280  # room for a struct gcm_key_data: 1,008 bytes in 1.3, 1,264 in 2.0
CACHE_LINE_BYTES = 64  # what keys are aligned to
AES_128_BYTES = 16

_JOB = {  # the beginning of IMB_JOB: name -> (offset, format)
    "enc_keys": (0, "u8"),
    "key_len": (16, "u8"),
    "src": (24, "u8"),
    "dst": (32, "u8"),
    "cipher_offset": (40, "u8"),
    "cipher_len": (48, "u8"),
    "iv": (72, "u8"),
    "iv_len": (80, "u8"),
    "tag": (88, "u8"),
    "tag_len": (96, "u8"),
    "aad": (104, "u8"),
    "aad_len": (112, "u8"),
    "cipher_mode": (132, "u4"),
    "direction": (136, "u4"),
    "hash_alg": (140, "u4"),
    "chain_order": (144, "u4"),
}
_JOB_BEGINNING_BYTES = 148
_CIPHER_GCM, _HASH_GMAC, _ENCRYPT, _CIPHER_THEN_HASH = 5, 9, 1, 1

_ERRNO_AT = 60  # in IMB_MGR
_GCM128_PRE_AT, _GET_NEXT_BURST_AT, _SUBMIT_BURST_AT = 448, 952, 960
_Burst = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
_Expand = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p)

log = logging.getLogger("spaces")


def _layout(job_bytes: int) -> np.dtype[np.void]:
    offsets, formats = zip(*_JOB.values(), strict=True)
    return np.dtype(
        {"names": list(_JOB), "formats": formats, "offsets": offsets, "itemsize": job_bytes}
    )


class IpsecMbError(Exception):
    """The library cannot do this here."""


@dataclass(frozen=True, slots=True)
class Library:
    """A library of a version whose layouts are known; `version` as it says it."""

    functions: ctypes.CDLL
    version: str


def _load(path: str) -> Library:
    """Raises OSError if there is none, IpsecMbError if it is not one that we know."""
    functions = ctypes.CDLL(path)
    try:
        number = int(functions.imb_get_version())
        functions.imb_get_version_str.restype = ctypes.c_char_p
        version = functions.imb_get_version_str().decode("ascii", "replace")
        functions.alloc_mb_mgr.argtypes = (ctypes.c_uint64,)
        functions.alloc_mb_mgr.restype = ctypes.c_void_p
        functions.free_mb_mgr.argtypes = (ctypes.c_void_p,)
        functions.free_mb_mgr.restype = None
        functions.init_mb_mgr_auto.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        functions.init_mb_mgr_auto.restype = None
    except AttributeError as error:
        raise IpsecMbError(f"{path} is not Intel's multi-buffer library: {error}") from None
    if number not in VERSIONS:
        raise IpsecMbError(f"{path} is of version {version}, which is not known here")
    return Library(functions, version)


def _candidates() -> tuple[str, ...]:
    override = os.environ.get(OVERRIDE)
    if override is not None:
        return (override,) if override else ()
    return SONAMES if platform.machine() == "x86_64" else ()


@cache
def find() -> Library | None:
    """The one to use, or None: it is not installed, or not what it should be (the log says so)."""
    for path in _candidates():
        try:
            library = _load(path)
            _check(library)
        except OSError as error:
            if OVERRIDE in os.environ:
                log.warning("%s=%s cannot be loaded: %s", OVERRIDE, path, error)
        except IpsecMbError as error:
            log.warning("%s is not used: %s", path, error)
        else:
            return library
    return None


def _check(library: Library) -> None:
    """Whether it seals as OpenSSL does, and writes nothing else.  Raises IpsecMbError."""
    seals, count, spare = IpsecMbSeals(library), 2 * BURST_JOBS + 1, os.urandom(3)
    seals.grow(count)
    keys = [os.urandom(AES_128_BYTES) for _ in range(count)]
    for row, key in enumerate(keys):
        seals.set(row, key)
    for size in (0, 1, 16, 90, MAX_PLAINTEXT_BYTES):
        plaintext, room = os.urandom(size), bytes(size + TAG_BYTES)
        nonces = [os.urandom(HEADER_BYTES) for _ in range(count)]
        table = b"".join(nonce + room + spare for nonce in nonces)
        out = np.frombuffer(bytearray(table), np.uint8).reshape(count, -1)
        seals.seal(np.arange(count), plaintext, out)
        for key, nonce, sealed in zip(keys, nonces, out, strict=True):
            if sealed.tobytes() != nonce + AESGCM(key).encrypt(nonce, plaintext, None) + spare:
                raise IpsecMbError(f"version {library.version} seals otherwise than OpenSSL")


class IpsecMbSeals:
    """Keys in blocks that stay where they are, and bursts of jobs.  See `seals.Seals`."""

    def __init__(self, library: Library) -> None:
        """Raises IpsecMbError."""
        self.name = f"intel-ipsec-mb {library.version}"
        functions = library.functions
        self._manager = functions.alloc_mb_mgr(0)
        if not self._manager:
            raise IpsecMbError("there is no memory for its manager")
        weakref.finalize(self, functions.free_mb_mgr, self._manager).atexit = False
        functions.init_mb_mgr_auto(self._manager, None)
        if self._error():
            raise IpsecMbError(f"it does not run here: error {self._error()}")
        self._expand = _Expand(self._function(_GCM128_PRE_AT))
        self._get_next_burst = _Burst(self._function(_GET_NEXT_BURST_AT))
        self._submit_burst = _Burst(self._function(_SUBMIT_BURST_AT))
        self._pointers = np.zeros(BURST_JOBS, np.uintp)
        self._pointers_at = self._pointers.ctypes.data
        self._blocks: list[NDArray[np.uint8]] = []  # that keys are in
        self._places_at = np.zeros(0, np.uintp)  # by row: where its key is, or would be
        self._keys_at = np.zeros(0, np.uintp)  # the same, or null, with which nothing is sealed
        self._jobs = self._prepared(getattr(functions, "imb_set_session", None))
        self._first_job = self._jobs.ctypes.data

    def _error(self) -> int:
        return ctypes.c_int.from_address(self._manager + _ERRNO_AT).value

    def _function(self, at: int) -> int:
        address = ctypes.c_void_p.from_address(self._manager + at).value
        if not address:
            raise IpsecMbError("it has not what is needed for this processor")
        return address

    def _prepared(self, set_session: Callable[..., Any] | None) -> NDArray[np.void]:
        """-> a view of the jobs of a burst, in which is written what never changes.  set_session:
        what has to see it as well, from version 1.4 on."""
        job = np.zeros(1, _layout(_JOB_BEGINNING_BYTES))
        job["key_len"], job["iv_len"], job["tag_len"] = AES_128_BYTES, HEADER_BYTES, TAG_BYTES
        job["cipher_mode"], job["hash_alg"] = _CIPHER_GCM, _HASH_GMAC
        job["direction"], job["chain_order"] = _ENCRYPT, _CIPHER_THEN_HASH

        def prepare(at: int) -> None:
            ctypes.memmove(at, job.ctypes.data, _JOB_BEGINNING_BYTES)
            if set_session is not None:
                set_session(ctypes.c_void_p(self._manager), ctypes.c_void_p(at))

        # Its own tests have left it somewhere in the ring: a first burst takes it to the beginning.
        self.grow(1)
        self.set(0, bytes(AES_128_BYTES))
        scratch = np.zeros(HEADER_BYTES + TAG_BYTES, np.uint8)
        job["enc_keys"] = self._keys_at[0]
        job["src"] = job["dst"] = job["iv"] = job["tag"] = scratch.ctypes.data
        job["cipher_len"] = 1
        self._next(1)
        prepare(int(self._pointers[0]))
        self._submit(1)
        self.clear(0)
        self._next(BURST_JOBS)
        for at in self._pointers.tolist():
            prepare(at)
        job_bytes = int(self._pointers[1] - self._pointers[0])
        if (np.diff(self._pointers) != job_bytes).any():
            raise IpsecMbError("its jobs do not lie in a row")
        memory = (ctypes.c_uint8 * (BURST_JOBS * job_bytes)).from_address(int(self._pointers[0]))
        return np.asarray(memory).view(_layout(job_bytes))

    def _next(self, burst: int) -> None:
        if self._get_next_burst(self._manager, burst, self._pointers_at) != burst:
            raise IpsecMbError(f"it has no {burst} jobs: error {self._error()}")

    def _submit(self, burst: int) -> None:
        if self._submit_burst(self._manager, burst, self._pointers_at) != burst:
            raise IpsecMbError(f"it did not seal: error {self._error()}")

    def grow(self, rows: int) -> None:
        more = rows - len(self._places_at)
        block = np.zeros(more * KEY_BYTES + CACHE_LINE_BYTES, np.uint8)
        self._blocks.append(block)
        at = -(-block.ctypes.data // CACHE_LINE_BYTES) * CACHE_LINE_BYTES
        places_at = np.arange(more, dtype=np.uintp) * np.uintp(KEY_BYTES) + np.uintp(at)
        self._places_at = np.concatenate((self._places_at, places_at))
        self._keys_at = np.concatenate((self._keys_at, np.zeros(more, np.uintp)))

    def set(self, row: int, key: bytes) -> None:
        if len(key) != AES_128_BYTES:  # that many are read
            raise ValueError(f"a key of {len(key)} bytes")
        self._expand(key, int(self._places_at[row]))
        self._keys_at[row] = self._places_at[row]

    def clear(self, row: int) -> None:
        ctypes.memset(int(self._places_at[row]), 0, KEY_BYTES)
        self._keys_at[row] = 0

    def seal(self, rows: NDArray[np.intp], plaintext: bytes, out: NDArray[np.uint8]) -> None:
        count, stride_bytes = out.shape
        size = len(plaintext)
        # They are written to by address: what is wrong here would be found nowhere else.
        if len(rows) != count or stride_bytes < HEADER_BYTES + size + TAG_BYTES:
            raise ValueError(f"{len(rows)} rows of {size} bytes into {out.shape}")
        if not out.flags.c_contiguous:
            raise ValueError("an arena that is not contiguous")
        keys_at = self._keys_at[rows]
        outs_at = np.arange(count, dtype=np.uintp) * np.uintp(stride_bytes) + np.uintp(
            out.ctypes.data
        )
        source = np.frombuffer(plaintext or b"\0", np.uint8)  # must live until the end
        self._jobs["src"] = source.ctypes.data
        self._jobs["cipher_len"] = size
        for first in range(0, count, BURST_JOBS):
            at = outs_at[first : first + BURST_JOBS]
            jobs = self._jobs[: len(at)]
            jobs["enc_keys"] = keys_at[first : first + BURST_JOBS]
            jobs["iv"] = at
            jobs["dst"] = at + np.uintp(HEADER_BYTES)
            jobs["tag"] = at + np.uintp(HEADER_BYTES + size)
            self._next(len(at))
            if self._pointers[0] != self._first_job:
                raise IpsecMbError("its jobs are not where they were")
            self._submit(len(at))
