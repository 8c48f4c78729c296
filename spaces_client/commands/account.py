"""One's own account and devices."""

import platform

import click

from protocol import frames
from protocol.frames import ErrorCode
from protocol.link import Link
from protocol.text import TextError, shown
from protocol.text import handle as normal_handle
from spaces_client import words
from spaces_client.commands.common import (
    U32,
    HandleType,
    LinkType,
    TextType,
    TokenType,
    at_home,
    columns,
    connected,
    echo_json,
    json_option,
    link_argument,
    with_session,
)
from spaces_client.home import Home
from spaces_client.live import SpacesError
from spaces_client.session import Session

name_type = TextType(frames.MAX_NAME_CHARS)


async def sign_up(here: Session, home: Home, handle: str, name: str | None) -> None:
    """Registers, and remembers the server."""
    try:
        handle = normal_handle(handle)  # here, because a server takes few attempts an hour
    except TextError as error:
        raise SpacesError(str(error), ErrorCode.BAD_HANDLE) from error
    reply = await here.register(handle, name or handle)
    home.remember(here.client.link)
    click.echo(f"you are @{shown(reply.account.handle)} here now")
    if not reply.account.access:
        click.echo("this server is limited: ask for access with  spaces ask-access")


def _show_account(reply: frames.AccountReply) -> None:
    account = reply.account
    role = "" if account.role == "person" else f", {account.role.value} of this server"
    click.echo(f"{words.person(account.name, account.handle)}{role}")
    click.echo(f"here since {words.local_time(account.since)}; the server is {reply.server.value}")
    if account.banned:
        click.echo("you are banned from this server")
    elif not account.access:
        click.echo("you have no access yet: spaces ask-access")
    elif account.invited_by:
        click.echo(f"invited by @{shown(account.invited_by)}")


@click.command()
@link_argument
@click.option("--handle", required=True, type=HandleType(), help="What others find you by.")
@click.option("--name", type=name_type, help="What you are shown as.  [default: the handle]")
@at_home
async def register(home: Home, link: Link, handle: str, name: str | None) -> None:
    """Make an account on the server that LINK names.

    The key on this machine is the account: there is no password. Later commands go to this server.

    \b
    spaces register 'spaces://…' --handle ada --name "Ada Lovelace"
    """
    async with connected(link, home) as here:
        await sign_up(here, home, handle, name)


@click.command()
@json_option
@with_session
async def whoami(session: Session, as_json: bool) -> None:
    """Show your account.

    \b
    spaces whoami
    """
    reply = await session.who_am_i()
    if as_json:
        echo_json(reply.account)
    else:
        _show_account(reply)


@click.command()
@click.argument("name", type=name_type)
@with_session
async def rename(session: Session, name: str) -> None:
    """Change what you are shown as; the handle stays.

    \b
    spaces rename "Countess of Lovelace"
    """
    _show_account(await session.rename(name))


@click.command()
@click.argument("given", nargs=-1, required=True, metavar="[LINK] CODE")
@at_home
async def claim(home: Home, given: tuple[str, ...]) -> None:
    """Become the owner of a server, with the CODE that it prints while nobody owns it.

    You need an account there first (spaces register).

    \b
    spaces claim 4fPq…
    """
    if len(given) > 2:
        raise click.UsageError("too many words: [LINK] CODE")
    code = TokenType().convert(given[-1], None, None)
    link = LinkType().convert(given[0], None, None) if len(given) == 2 else home.server()
    async with connected(link, home) as here:
        _show_account(await here.claim_server(code))


@click.group()
def device() -> None:
    """Use one account on several machines."""


@device.command("code")
@with_session
async def device_code(session: Session) -> None:
    """Make a code with which one more device joins your account, once.

    \b
    spaces device code
    """
    reply = await session.device_code()
    click.echo(f"on the other machine, until {words.local_time(reply.until)}:")
    click.echo(f"  spaces device add '{session.client.link}' {shown(reply.code)}")


@device.command("add")
@link_argument
@click.argument("code", type=TokenType())
@click.option(
    "--label",
    type=TextType(frames.MAX_LABEL_CHARS),
    help="What it is called in your list of devices.  [default: this machine's name]",
)
@at_home
async def device_add(home: Home, link: Link, code: str, label: str | None) -> None:
    """Make this machine a device of the account that made the CODE.

    \b
    spaces device add 'spaces://…' CODE --label phone
    """
    async with connected(link, home) as here:
        reply = await here.add_device(code, label or _machine_name())
        home.remember(link)
        _show_account(reply)


def _machine_name() -> str:
    return shown(platform.node())[: frames.MAX_LABEL_CHARS].strip() or "another device"


@device.command("list")
@json_option
@with_session
async def device_list(session: Session, as_json: bool) -> None:
    """Show the devices of your account.

    \b
    spaces device list
    """
    devices = await session.devices()
    if as_json:
        for one in devices:
            echo_json(one)
        return
    rows = [
        (str(one.id), shown(one.label), words.local_time(one.added), "this one" * one.this)
        for one in devices
    ]
    for line in columns(rows):
        click.echo(line)


@device.command("remove")
@click.argument("number", type=U32)
@with_session
async def device_remove(session: Session, number: int) -> None:
    """Take a device from your account; what it does at the moment ends.

    \b
    spaces device remove 2
    """
    await session.remove_device(number)
    click.echo(f"device {number} is no longer yours")


COMMANDS = (register, whoami, rename, claim, device)
