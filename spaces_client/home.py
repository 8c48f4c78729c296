"""The user's folder: who one is, and at which server.

    identity.key    the private key, which is the identity; made when missing
    server          the link of the server where one has registered last, one line

Several identities on one machine have a folder each: the server is remembered beside the key.
"""

import contextlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import click

from protocol.keyfile import load_key
from protocol.link import Link, LinkError

IDENTITY_FILE = Path(click.get_app_dir("spaces")) / "identity.key"
SERVER_FILE = "server"


class HomeError(Exception):
    """What is needed is not in the folder; one line that says what to do."""


class Home:
    """identity: the key's file.  server: the one that was asked for, instead of the remembered."""

    def __init__(self, identity: Path = IDENTITY_FILE, server: Link | None = None) -> None:
        self._identity = identity
        self._chosen = server
        self._file = identity.parent / SERVER_FILE

    def key(self) -> bytes:
        """The private key, 32 bytes.  Raises KeyFileError."""
        return load_key(self._identity)[0]

    def server(self) -> Link:
        """Raises HomeError if none is known, or what is remembered cannot be read."""
        if self._chosen is not None:
            return self._chosen
        try:
            return Link.parse(self._file.read_text())
        except FileNotFoundError:
            raise HomeError(
                "no server is known here yet; register at one (spaces register LINK --handle NAME) "
                "or name it with --server LINK"
            ) from None
        except OSError as error:
            raise HomeError(f"{self._file} cannot be read: {error.strerror}") from error
        except (LinkError, UnicodeDecodeError) as error:
            raise HomeError(f"{self._file} is damaged; delete it, or register again") from error

    def place(self, where: Link | str) -> Link:
        """The link of a space: that link, or the id of a space at one's server."""
        return where if isinstance(where, Link) else replace(self.server(), space=where)

    def remember(self, server: Link) -> None:
        """From now on this is one's server.  Raises HomeError."""
        link = replace(server, space=None, invite=None)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._file.parent, prefix=SERVER_FILE, delete=False
            ) as draft:
                draft.write(f"{link}\n")
            try:
                os.replace(draft.name, self._file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(draft.name)
                raise
        except OSError as error:
            raise HomeError(f"{self._file} cannot be written: {error.strerror}") from error
