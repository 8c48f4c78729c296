"""Frames to bytes and back: msgpack maps with the key `type`.

The other keys are the fields of the class whose tag it is.  Unknown fields are ignored; an unknown
type, a missing or a wrong field is answered with an `error`.
"""

from typing import Annotated, Any, TypeVar, cast

import msgpack
import msgspec
from msgspec import Meta

from protocol.frames import base, finding, people, safety, space
from protocol.frames.base import MAX_FRAME_BYTES, ErrorCode, Frame, KeptNotice, Notice, Request
from protocol.frames.space import FeedBatch, Update


def _frames(*modules: Any, of: type[Frame]) -> tuple[type[Any], ...]:
    """The frames of a kind that the modules declare, in the order in which they do."""
    bases = (Frame, Request, base.Reply, Notice, base.SpaceNotice, KeptNotice)
    return tuple(
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, of) and kind not in bases
        and kind.__module__ == module.__name__
    )  # fmt: skip


PEOPLE_REQUESTS: tuple[type[Request], ...] = _frames(people, of=Request)
SPACE_REQUESTS: tuple[type[Request], ...] = _frames(space, of=Request)
FINDING_REQUESTS: tuple[type[Request], ...] = _frames(finding, of=Request)
SAFETY_REQUESTS: tuple[type[Request], ...] = _frames(safety, of=Request)
REQUESTS = (*SPACE_REQUESTS, *PEOPLE_REQUESTS, *FINDING_REQUESTS, *SAFETY_REQUESTS)
REPLIES: tuple[type[Frame], ...] = _frames(base, space, people, finding, safety, of=base.Reply)
NOTICES: tuple[type[Frame], ...] = _frames(space, people, finding, safety, of=Notice)
UPDATES: tuple[type[Update], ...] = tuple(
    kind
    for kind in vars(space).values()
    if isinstance(kind, type) and issubclass(kind, Update) and kind is not Update
)


def tag(kind: type[msgspec.Struct]) -> str:
    return cast(str, kind.__struct_config__.tag)


_BY_TAG = {tag(kind): kind for kind in (*REQUESTS, *REPLIES, *NOTICES)}
_UPDATE_BY_TAG = {tag(kind): kind for kind in UPDATES}


class FrameError(ValueError):
    """A frame that cannot be taken: `code` and text go back to its sender under `request_id`."""

    def __init__(self, code: ErrorCode, text: str, request_id: int = 0) -> None:
        super().__init__(text)
        self.code = code
        self.request_id = request_id


def _unpack(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(ErrorCode.MALFORMED, f"a frame of {len(data)} bytes")
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise FrameError(ErrorCode.MALFORMED, f"not msgpack: {error}") from error
    if not isinstance(value, dict):
        raise FrameError(ErrorCode.MALFORMED, "a frame is a map")
    return value


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of both Noise messages: which program speaks, for logs and error reports."""

    agent: Annotated[str, Meta(max_length=40)] = ""


T = TypeVar("T", bound=msgspec.Struct)


def _convert(value: dict[str, Any], kind: type[T], request_id: int) -> T:
    try:
        return msgspec.convert(value, kind, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise FrameError(ErrorCode.MALFORMED, str(error), request_id) from error


def encode(value: Frame | FeedBatch | Greeting) -> bytes:
    return cast(bytes, msgpack.packb(msgspec.to_builtins(value, builtin_types=(bytes,))))


def decode(data: bytes) -> Frame:
    """Raises FrameError; never anything else, whatever the bytes are."""
    value = _unpack(data)
    given_id = value.get("id")
    request_id = given_id if type(given_id) is int and 0 <= given_id <= 0xFFFF_FFFF else 0
    kind = value.get("type")
    known = _BY_TAG.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise FrameError(ErrorCode.UNKNOWN_TYPE, f"unknown type {kind!r:.40}", request_id)
    return _convert(value, known, request_id)


def encode_update(update: Update) -> dict[str, Any]:
    return cast(dict[str, Any], msgspec.to_builtins(update))


def decode_update(value: dict[str, Any]) -> Update | None:
    """None if this client does not know the update: it is skipped, its number counts.
    Raises FrameError if it knows the type but cannot read the fields."""
    kind = value.get("type")
    known = _UPDATE_BY_TAG.get(kind) if isinstance(kind, str) else None
    return None if known is None else _convert(value, known, 0)


def decode_feed(plaintext: bytes) -> FeedBatch:
    """Raises FrameError."""
    return _convert(_unpack(plaintext), FeedBatch, 0)


def encode_greeting(agent: str, length_bytes: int = 0) -> bytes:
    """msgpack, padded with zeros to `length_bytes`."""
    return encode(Greeting(agent=agent)).ljust(length_bytes, b"\0")


def decode_greeting(payload: bytes) -> Greeting:
    """Never fails: a greeting that cannot be read is an empty one."""
    try:
        try:
            value = msgpack.unpackb(payload[:1_024], raw=False, max_ext_len=0)
        except msgpack.ExtraData as padded:  # an Unpacker would read past it, and clear 40 KB
            value = padded.unpacked
        return msgspec.convert(value, Greeting)
    except (ValueError, msgpack.exceptions.UnpackException, msgspec.ValidationError):
        return Greeting()
