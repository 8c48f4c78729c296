"""Which libopus is used: one with deep PLC if there is one, and of those the newest.

`opuslib` takes whatever `ctypes.util.find_library` names when it is imported, so the library is
chosen first, and opuslib imported against it (by protocol/opus.py).

The libopus that comes along is built without deep PLC, and so is that of Debian 12; Debian's has it
from release 13 on. `python -m protocol.get_libopus` puts that one into a virtual environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.util
import os
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# With deep PLC a decoder's state holds what its networks remember: 140 KB or more, else 18.
DEEP_PLC_STATE_BYTES: Final = 1 << 16


class OpusError(Exception):
    """libopus is missing, or refused a packet or a setting."""


@dataclass(frozen=True, slots=True)
class Library:
    """A libopus.

    `path` is what was handed to the dynamic loader. `version` is the library's own word ("1.5.2")
    or, for a build that does not know its own, the first release with the functions found ("1.6+").
    `origin` is "override", "environment", "system" or "bundled". `deep_plc`: whether its decoders
    can conceal what is lost by deep PLC.
    """

    path: str
    version: str
    origin: str
    deep_plc: bool

    def __str__(self) -> str:
        return f"{self.version} ({self.origin}{', deep PLC' if self.deep_plc else ''})"


# A build outside of the release tree calls itself "libopus unknown". What it can do still tells.
_FIRST_RELEASE_WITH: Final = (("opus_encode24", (1, 6)), ("opus_dred_alloc", (1, 5)))


def _version(library: ctypes.CDLL) -> tuple[tuple[int, ...], str]:
    """The version of a loaded libopus, to compare and to show. AttributeError if it is none."""
    version_string = library.opus_get_version_string
    version_string.restype = ctypes.c_char_p
    stated = re.search(r"\d+(\.\d+)+", version_string().decode("ascii", "replace"))
    if stated:
        return tuple(map(int, stated[0].split("."))), stated[0]
    for name, release in _FIRST_RELEASE_WITH:
        if hasattr(library, name):
            return release, ".".join(map(str, release)) + "+"
    return (0,), "unknown"


def load_library(path: str, origin: str) -> tuple[tuple[int, ...], Library]:
    """-> (its version, to compare; itself). OSError or AttributeError if it cannot be used."""
    library = ctypes.CDLL(path)
    order, shown = _version(library)
    deep_plc = library.opus_decoder_get_size(1) > DEEP_PLC_STATE_BYTES
    return order, Library(path, shown, origin, deep_plc)


def _environment_path() -> str | None:
    """Where protocol/get_libopus.py puts one, as conda does."""
    path = Path(sys.prefix, "lib", "libopus.so.0")
    return str(path) if path.is_file() else None


def _bundled_path() -> str | None:
    # find_spec does not run the package: its loader would load and bind a library of its own.
    package = importlib.util.find_spec("opuslib_next")
    for folder in (package and package.submodule_search_locations) or ():
        for suffix in ("so", "dylib", "dll"):
            path = Path(folder, "_native", f"libopus.{suffix}")
            if path.is_file():
                return str(path)
    return None


def find_library() -> Library:
    """SPACES_LIBOPUS outright, otherwise the newest of those with deep PLC, or of all if none has
    it. OpusError if there is none."""
    # The system's is loaded first: it is known by its name, by which the loader would hand out
    # another one with the same SONAME that is there already.
    system = ctypes.util.find_library("opus")
    if system:
        with contextlib.suppress(OSError):
            ctypes.CDLL(system)
    override = os.environ.get("SPACES_LIBOPUS")
    if override:
        try:
            return load_library(override, "override")[1]
        except (OSError, AttributeError) as error:
            raise OpusError(f"SPACES_LIBOPUS={override} is not a usable libopus: {error}") from None
    found: list[tuple[tuple[int, ...], Library]] = []
    for origin, path in (
        ("environment", _environment_path()),
        ("system", system),
        ("bundled", _bundled_path()),
    ):
        if path is None:
            continue
        try:
            found.append(load_library(path, origin))
        except (OSError, AttributeError):
            continue  # built for another machine, or no libopus: another one may do
    if not found:
        raise OpusError(
            "no usable libopus: install it (Debian: libopus0, macOS: brew install opus), or"
            " pip install opuslib-next-bundled, or set SPACES_LIBOPUS to the library's path"
        )
    return max(found, key=lambda candidate: (candidate[1].deep_plc, candidate[0]))[1]


def import_opuslib(library: Library) -> Any:
    """-> the package, bound to this library. OpusError if it was bound to another one before."""
    original = ctypes.util.find_library
    ctypes.util.find_library = lambda name: library.path
    try:
        with warnings.catch_warnings():
            # opuslib 3.0.1 compares with `is not 0`; Python warns when it first compiles that.
            warnings.simplefilter("ignore", SyntaxWarning)
            import opuslib
            import opuslib.api.decoder
            import opuslib.api.encoder
    finally:
        ctypes.util.find_library = original
    if opuslib.api.lib_location != library.path:
        raise OpusError(
            f"opuslib was imported before, against {opuslib.api.lib_location}:"
            f" import protocol.opus first, to have it use {library.path}"
        )
    return opuslib
