"""Other people: whom one follows and blocks; and access to the server."""

import click

from protocol import frames
from spaces_client import words
from spaces_client.commands.common import (
    HandleType,
    TextType,
    echo_json,
    json_option,
    list_options,
    person_argument,
    show_list,
    with_session,
)
from spaces_client.session import Session

someone_argument = click.argument("person", type=HandleType(), metavar="[HANDLE]", required=False)


def _row(person: frames.Person) -> tuple[str, str]:
    marks = (
        ("you follow them", person.following),
        ("follows you", person.follows_you),
        ("blocked", person.blocked),
    )
    known = ", ".join(text for text, holds in marks if holds)
    return words.person(person.name, person.handle), known


@click.command()
@person_argument
@json_option
@with_session
async def find(session: Session, person: str, as_json: bool) -> None:
    """Look somebody up.

    \b
    spaces find ada
    """
    found = await session.find(person)
    if as_json:
        echo_json(found)
    else:
        click.echo("  ".join(filter(None, _row(found))))


@click.command()
@person_argument
@with_session
async def follow(session: Session, person: str) -> None:
    """Follow somebody: their spaces come first, their posts are in your home feed.

    \b
    spaces follow ada
    """
    await session.follow(person)
    click.echo(f"you follow @{person}")


@click.command()
@person_argument
@with_session
async def unfollow(session: Session, person: str) -> None:
    """Follow somebody no more.

    \b
    spaces unfollow ada
    """
    await session.unfollow(person)
    click.echo(f"you do not follow @{person}")


@click.command()
@someone_argument
@list_options
@with_session
async def followers(session: Session, person: str | None, limit: int, as_json: bool) -> None:
    """Show who follows you, or somebody.

    \b
    spaces followers ada
    """
    people = session.followers(person or "")
    await show_list(people, _row, limit=limit, as_json=as_json, nothing="nobody")


@click.command()
@someone_argument
@list_options
@with_session
async def following(session: Session, person: str | None, limit: int, as_json: bool) -> None:
    """Show whom you follow, or somebody does.

    \b
    spaces following
    """
    people = session.following(person or "")
    await show_list(people, _row, limit=limit, as_json=as_json, nothing="nobody")


@click.command()
@person_argument
@with_session
async def block(session: Session, person: str) -> None:
    """Block somebody: neither of you hears or reads the other; they cannot be in your spaces.

    \b
    spaces block eve
    """
    await session.block(person)
    click.echo(f"you have blocked @{person}")


@click.command()
@person_argument
@with_session
async def unblock(session: Session, person: str) -> None:
    """Take a block back.

    \b
    spaces unblock eve
    """
    await session.unblock(person)
    click.echo(f"you have not blocked @{person} any more")


@click.command()
@list_options
@with_session
async def blocked(session: Session, limit: int, as_json: bool) -> None:
    """Show whom you have blocked.

    \b
    spaces blocked
    """
    await show_list(session.blocked(), _row, limit=limit, as_json=as_json, nothing="nobody")


@click.command()
@click.option("--note", type=TextType(frames.MAX_REPORT_CHARS, lines=True), help="Who you are.")
@with_session
async def ask_access(session: Session, note: str | None) -> None:
    """Ask for access to a server that is limited; its moderators see a waiting list.

    Whoever has access can also give it to you, by inviting you into a space.

    \b
    spaces ask-access --note "Ada, from the maths club"
    """
    if (await session.who_am_i()).account.access:
        click.echo("you have access already")
        return
    await session.ask_access(note or "")
    click.echo("you are on the waiting list; you will be told here when you have access")


COMMANDS = (
    find, follow, unfollow, followers, following, block, unblock, blocked, ask_access,
)  # fmt: skip
