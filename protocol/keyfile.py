"""A private key in a file, as server and client both keep theirs: one line of base64url, readable
by nobody else.  (The one module here that touches a disk.)"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from protocol.link import LinkError, decode_key, encode_key


class KeyFileError(Exception):
    """The key cannot be read or made; one line that says what to do."""


def load_key(path: Path, entropy: Callable[[int], bytes] = os.urandom) -> tuple[bytes, bool]:
    """-> (private key, 32 bytes; whether it was made just now, with its folder).
    Raises KeyFileError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = not path.exists() and _make(path, entropy(32))
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeyFileError(f"{path} can be read by others; run: chmod 600 {path}")
        return decode_key(path.read_text().strip()), made
    except OSError as error:
        raise KeyFileError(f"{path} cannot be used: {error.strerror}") from error
    except (LinkError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path} is damaged; restore it from a copy, or delete it") from error


def _make(path: Path, key: bytes) -> bool:
    """Puts a whole key file into its place at once; False if somebody else was quicker."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(encode_key(key) + "\n")
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True
