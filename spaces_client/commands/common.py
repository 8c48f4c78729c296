"""What the commands have in common: links and handles as arguments, the choice of the server, a
session for the time of a command, lists, and errors in one line."""

import asyncio
import contextlib
import functools
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.cells import cell_len

from protocol import frames
from protocol.evidence import EvidenceError
from protocol.frames import ErrorCode
from protocol.keyfile import KeyFileError
from protocol.link import Link, LinkError
from protocol.notes import NoteError
from protocol.opus import OpusError
from protocol.text import shown
from spaces_client import words
from spaces_client.audio import AudioError
from spaces_client.events import Notified
from spaces_client.home import IDENTITY_FILE, Home, HomeError
from spaces_client.live import LiveSpace, SpacesError, session
from spaces_client.session import Session

T = TypeVar("T")
Work = Callable[..., Coroutine[Any, Any, None]]  # what a command does
Command = Callable[..., None]
Decorator = Callable[[Work], Command]

ERRORS = (AudioError, EvidenceError, HomeError, KeyFileError, LinkError, NoteError, OpusError)

# What helps after a refusal, where a command does.
HINTS = {
    ErrorCode.NO_ACCOUNT: "spaces register LINK --handle NAME",
    ErrorCode.NO_GUESTS: "spaces register LINK --handle NAME",
    ErrorCode.NO_ACCESS: "spaces ask-access --note 'who you are'",
    ErrorCode.HANDLE_TAKEN: "choose another with --handle",
    ErrorCode.BAD_HANDLE: "choose one with --handle",
}


# -- arguments ----------------------------------------------------------------------------------


class LinkType(click.ParamType[Link]):
    name = "link"

    def convert(self, value: Any, param: Any, ctx: Any) -> Link:
        if isinstance(value, Link):
            return value
        try:
            return Link.parse(sys.stdin.readline() if value == "-" else value)
        except LinkError as error:
            self.fail(str(error), param, ctx)


class PlaceType(click.ParamType[Link | str]):
    """A space: its link, or its id at one's server."""

    name = "place"

    def convert(self, value: Any, param: Any, ctx: Any) -> Link | str:
        if isinstance(value, Link):
            return value
        if value == "-" or ":" in value or "/" in value:
            return LinkType().convert(value, param, ctx)
        return SpaceIdType().convert(value, param, ctx)


class SpaceIdType(click.ParamType[str]):
    name = "id"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        try:
            return msgspec.convert(value, frames.SpaceId)
        except msgspec.ValidationError:
            self.fail(f"{value!r} is neither a link nor the id of a space", param, ctx)


class TokenType(click.ParamType[str]):
    name = "code"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        try:
            return msgspec.convert(value, frames.Token)
        except msgspec.ValidationError:
            self.fail(f"{value!r} is not a code of this server's; copy it whole", param, ctx)


class HandleType(click.ParamType[str]):
    """With or without the @ before it."""

    name = "handle"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        handle: str = value.strip().removeprefix("@")
        if not 0 < len(handle) <= frames.MAX_HANDLE_CHARS:
            self.fail(f"a handle has 1 to {frames.MAX_HANDLE_CHARS} characters", param, ctx)
        return handle


class WordType(click.Choice[str]):
    """One of an enumeration's words, as people write them: with - for _."""

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__([word.value.replace("_", "-") for word in kind])
        self._kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> StrEnum:
        return self._kind(super().convert(value, param, ctx).replace("-", "_"))


class TextType(click.ParamType[str]):
    """A text to be sent: not blank, not too long; lines: it may have several."""

    name = "text"

    def __init__(self, max_chars: int, *, lines: bool = False) -> None:
        self.max_chars = max_chars
        self.lines = lines

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        text: str = value
        if not 0 < len(text.strip()) <= self.max_chars:
            self.fail(f"1 to {self.max_chars} characters, please, not {len(text)}", param, ctx)
        if shown(text, lines=self.lines) != text:
            self.fail("no control characters or hidden ones, please", param, ctx)
        return text


U32 = click.IntRange(0, 0xFFFF_FFFF)

link_argument = click.argument("link", type=LinkType())
person_argument = click.argument("person", type=HandleType(), metavar="HANDLE")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


def list_options(command: Any) -> Any:
    """Of a command that shows a list (`show_list`)."""
    limit = click.option(
        "--limit",
        default=50,
        show_default=True,
        type=click.IntRange(1, 1_000_000),
        help="How many to show at most.",
    )
    return limit(json_option(command))


# -- a command from its beginning to its end ------------------------------------------------------


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a command to its end; what goes wrong becomes one line.  SIGTERM, Ctrl-C and a closed
    terminal cancel it, so that it leaves the space in good order."""

    async def interruptible() -> None:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            # Windows has no SIGHUP, and no handlers for the others.
            with contextlib.suppress(NotImplementedError, AttributeError):
                loop.add_signal_handler(getattr(signal, name), task.cancel)
        await task

    try:
        _loop_runner()(interruptible())
    except asyncio.CancelledError:
        raise click.ClickException("interrupted") from None
    except SpacesError as error:
        raise click.ClickException(explained(error)) from error
    except ERRORS as error:
        raise click.ClickException(str(error)) from error


def explained(error: SpacesError) -> str:
    """What the server said, and the command that helps."""
    hint = next((hint for code, hint in HINTS.items() if code == error.code), None)
    return shown(str(error)) + (f" ({hint})" if hint else "")


def _loop_runner() -> Any:
    try:
        import uvloop
    except ImportError:  # not to be had on Windows
        return asyncio.run
    return uvloop.run


def at_home(work: Work) -> Command:
    """Makes a coroutine function what a command does; its first argument is the user's `Home`."""

    @click.option(
        "--server",
        type=LinkType(),
        envvar="SPACES_SERVER",
        show_envvar=True,
        metavar="LINK",
        help="Instead of the server where you have registered last.",
    )
    @click.option(
        "--identity",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="SPACES_IDENTITY",
        show_envvar=True,
        default=IDENTITY_FILE,
        show_default="in your user's folder for application data",
        help="The file with your private key, which is who you are; made when missing.",
    )
    @functools.wraps(work)
    def command(*, server: Link | None, identity: Path, **arguments: Any) -> None:
        run(work(Home(identity, server), **arguments))

    return command


def with_session(work: Work) -> Command:
    """Makes a coroutine function what a command does; its first argument is a session."""

    @at_home
    @functools.wraps(work)
    async def command(home: Home, **arguments: Any) -> None:
        async with connected(home.server(), home) as here:
            await work(here, **arguments)

    return command


@contextlib.asynccontextmanager
async def connected(server: Link, home: Home) -> AsyncIterator[LiveSpace]:
    """A session; what the server has to tell meanwhile goes to standard error."""
    async with session(server, key=home.key()) as here:
        telling = asyncio.ensure_future(_tell_notices(here, server))
        try:
            yield here
            await asyncio.sleep(0)  # what came together with the last reply
        finally:
            telling.cancel()


async def _tell_notices(here: Session, server: Link) -> None:
    async for event in here.events():
        if isinstance(event, Notified):
            text = words.notice(event.frame, server)
            if text:
                click.echo(text, err=True)


# -- what is printed ------------------------------------------------------------------------------


def echo_json(value: msgspec.Struct) -> None:
    """All fields; characters that are not ASCII, and control characters among them, escaped."""
    fields = msgspec.structs.asdict(value)
    given = {name: field for name, field in fields.items() if field is not msgspec.UNSET}
    click.echo(json.dumps(given, default=msgspec.to_builtins))


async def show_list(
    items: AsyncIterator[T],
    row: Callable[[T], Sequence[str]],
    *,
    limit: int,
    as_json: bool,
    nothing: str,
    newest_last: bool = False,
) -> None:
    """row: the cells of a line, as they can be shown; in an empty list, `nothing` is said."""
    found: list[T] = []
    more = False
    async for item in items:
        if len(found) == limit:
            more = True
            break
        found.append(item)
    if newest_last:
        found.reverse()
    if as_json:
        for item in found:
            assert isinstance(item, msgspec.Struct)
            echo_json(item)
        return
    left_off = "there are more: --limit shows them"
    if more and newest_last:
        click.echo(left_off, err=True)
    for line in columns([row(item) for item in found]):
        click.echo(line)
    if not found:
        click.echo(nothing)
    if more and not newest_last:
        click.echo(left_off, err=True)


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines in which the cells stand below each other."""
    rows = list(rows)
    widths: dict[int, int] = {}
    for row in rows:
        for at, cell in enumerate(row[:-1]):
            widths[at] = max(widths.get(at, 0), cell_len(cell))
    lines = []
    for row in rows:
        padded = [cell + " " * (widths.get(at, 0) - cell_len(cell)) for at, cell in enumerate(row)]
        lines.append("  ".join(padded).rstrip())
    return lines
