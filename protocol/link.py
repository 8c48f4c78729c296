"""The link by which a space is found: `spaces://host:port/SPACE?key=…&invite=…`.

The server's public key stands in the link, so whoever has the link needs no authority to know
that the server is the right one.  Without SPACE it is the link of the server itself.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlencode, urlsplit

DEFAULT_PORT = 5004
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


class LinkError(ValueError):
    """The text is no link; the message says in one line what is wrong with it."""


def encode_key(key: bytes) -> str:
    """32 bytes -> 43 characters of base64url without padding."""
    return base64.urlsafe_b64encode(key).rstrip(b"=").decode()


def decode_key(text: str) -> bytes:
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise LinkError("the key in the link is not base64url") from error
    if len(key) != 32:
        raise LinkError(f"the key in the link has {len(key)} bytes where it must have 32")
    return key


@dataclass(frozen=True, slots=True)
class Link:
    host: str
    port: int
    key: bytes
    space: str | None = None
    invite: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = {"key": encode_key(self.key)}
        if self.invite:
            query["invite"] = self.invite
        return f"spaces://{host}:{self.port}/{quote(self.space or '')}?{urlencode(query)}"

    @classmethod
    def parse(cls, text: str) -> "Link":
        """Raises LinkError with one line for the person who typed it."""
        text = text.strip()
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise LinkError(f"the link cannot be read: {error}") from error
        if parts.scheme != "spaces":
            raise LinkError("a link starts with spaces:// (copy it whole, key included)")
        if not parts.hostname:
            raise LinkError("the link names no host")
        if port == 0:
            raise LinkError("the link has port 0, which is none")
        query = parse_qs(parts.query)
        if "key" not in query:
            raise LinkError("the link has no key=…; copy it whole (quote it in the shell)")
        space = parts.path.strip("/") or None
        if space is not None and not _NAME.fullmatch(space):
            raise LinkError(f"{space!r} is not the name of a space")
        invite = query.get("invite", [None])[0]
        if invite is not None and not _TOKEN.fullmatch(invite):
            raise LinkError("the invite in the link is damaged")
        return cls(
            parts.hostname,
            DEFAULT_PORT if port is None else port,
            decode_key(query["key"][0]),
            space,
            invite,
        )
