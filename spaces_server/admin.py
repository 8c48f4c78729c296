"""`spaces-server admin`: what the owner and the moderators of a server may do, for whoever can read
its data folder.

There is no second way into the server: the commands are a client's, over the same protocol, which
shows the operator's key.  The server left it, and where it listens, in the folder.
"""

import functools
from pathlib import Path
from typing import Any

import click

from protocol.keyfile import KeyFileError, load_key
from protocol.link import Link, LinkError
from spaces_client.commands.common import Command, Work
from spaces_client.commands.common import run as run_command
from spaces_client.live import session
from spaces_client.moderation import moderation
from spaces_server.config import data_option

LINK_FILE = "link"
OPERATOR_FILE = "operator.key"  # who has it administers the server


def operator_key(data: Path) -> bytes:
    """The private key; made when missing.  Raises KeyFileError."""
    return load_key(data / OPERATOR_FILE)[0]


def leave_link(data: Path, link: Link) -> None:
    """For the commands, which find the running server by it."""
    (data / LINK_FILE).write_text(f"{link}\n")


def _find(data: Path) -> tuple[Link, bytes]:
    try:
        link = Link.parse((data / LINK_FILE).read_text().strip())
        return link, operator_key(data)
    except FileNotFoundError as error:
        raise click.ClickException(
            f"no server has run with the data folder {data}; name its folder with --data"
        ) from error
    except OSError as error:
        raise click.ClickException(f"{data} cannot be read: {error.strerror}") from error
    except (KeyFileError, LinkError) as error:
        raise click.ClickException(str(error)) from error


def _as_operator(work: Work) -> Command:
    @data_option
    @functools.wraps(work)
    def command(*, data: Path, **arguments: Any) -> None:
        link, key = _find(data)

        async def connected() -> None:
            async with session(link, key=key) as here:
                await work(here, **arguments)

        run_command(connected())

    return command


admin = moderation(
    "spaces-server admin",
    _as_operator,
    about="Administer the running server: accounts, access, moderators, bans, reports, spaces.",
    evidence_too=False,
)
