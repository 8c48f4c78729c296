"""Spaces: those that are live, and those to come."""

import re
from datetime import datetime, timedelta
from typing import Any

import click

from protocol import frames
from protocol.frames import Settings, Sound, SpaceInfo, SpaceState, Visibility, WhoSpeaks
from protocol.link import Link
from protocol.text import shown
from spaces_client import words
from spaces_client.commands.common import (
    PlaceType,
    SpaceIdType,
    TextType,
    WordType,
    at_home,
    connected,
    echo_json,
    json_option,
    list_options,
    show_list,
    with_session,
)
from spaces_client.home import Home
from spaces_client.live import SpacesError
from spaces_client.session import Session

title_type = TextType(frames.MAX_TITLE_CHARS)
_UNITS_S = {"m": 60, "h": 3_600, "d": 86_400}


class DurationType(click.ParamType[timedelta]):
    """`90m`, `2h`, `1d12h`."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> timedelta:
        if isinstance(value, timedelta):
            return value
        if not re.fullmatch(r"([0-9]{1,5}[mhd])+", value):
            self.fail("a duration looks like 90m, 2h or 1d12h", param, ctx)
        parts = re.findall(r"([0-9]+)([mhd])", value)
        return timedelta(seconds=sum(int(number) * _UNITS_S[unit] for number, unit in parts))


class TimeType(click.ParamType[datetime]):
    """`2026-12-01 19:00`, by this machine's clock; not in the past."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        if isinstance(value, datetime):
            return value
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}", value):
            self.fail('a time looks like "2026-12-01 19:00"', param, ctx)
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail("no calendar has that time", param, ctx)
        if at < datetime.now():
            self.fail("that time has passed", param, ctx)
        return at


def settings_options(command: Any) -> Any:
    """How a space is to be run; `settings_of` makes it of them."""
    options = [
        click.option(
            "--visibility",
            type=WordType(Visibility),
            help="Who finds it and may come in.  [default: public]",
        ),
        click.option(
            "--who-speaks",
            type=WordType(WhoSpeaks),
            help="Who may come on stage without being asked: everyone, people whom you follow, or "
            "nobody.  [default: invited]",
        ),
        click.option(
            "--free-unmute",
            is_flag=True,
            help="Who was muted by somebody else may unmute themselves.",
        ),
        click.option("--no-chat", is_flag=True, help="Without a chat."),
        click.option(
            "--slow",
            type=click.IntRange(0, 86_400),
            metavar="SECONDS",
            help="How long everyone waits between two lines of chat.",
        ),
        click.option(
            "--low-delay",
            is_flag=True,
            help="Sound in packets of 10 ms instead of 20: each is heard about 20 ms sooner, and "
            "costs everyone, and the server, twice as many packets.  For good.",
        ),
        click.option(
            "--profile",
            "sound",
            type=WordType(Sound),
            help="What it is made for: voice, or music, which is in stereo and is sent as it is, "
            "without noise suppression and levelling.  For good.  [default: voice]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def settings_of(
    visibility: Visibility | None,
    who_speaks: WhoSpeaks | None,
    free_unmute: bool,
    no_chat: bool,
    slow: int | None,
    low_delay: bool,
    sound: Sound | None,
) -> Settings | None:
    """None if nothing was given."""
    settings = Settings(
        visibility=visibility or Visibility.PUBLIC,
        who_speaks=who_speaks or WhoSpeaks.INVITED,
        free_unmute=free_unmute,
        chat=not no_chat,
        slow_s=slow or 0,
        low_delay=low_delay,
        sound=sound or Sound.VOICE,
    )
    return None if settings == Settings() else settings


def live_row(space: SpaceInfo) -> tuple[str, ...]:
    return (
        space.id,
        shown(space.title),
        words.person(space.host_name, space.host),
        f"{space.stage} on stage",
        words.count(space.listeners, "listener", "listeners"),
        "you follow somebody there" * space.followed,
    )


def _upcoming_row(space: SpaceInfo) -> tuple[str, ...]:
    return (
        space.id,
        words.local_time(space.starts),
        shown(space.title),
        words.person(space.host_name, space.host),
        "you will be told" * space.reminder,
    )


@click.command("list")
@click.option("--upcoming", is_flag=True, help="Those that are scheduled, the next first.")
@list_options
@with_session
async def list_spaces(session: Session, upcoming: bool, limit: int, as_json: bool) -> None:
    """Show the live spaces: first those with people on stage whom you follow.

    \b
    spaces list
    spaces list --upcoming --json
    """
    if upcoming:
        await show_list(
            session.upcoming(), _upcoming_row, limit=limit, as_json=as_json,
            nothing="nothing is scheduled; spaces schedule announces a space",
        )  # fmt: skip
    else:
        await show_list(
            session.spaces(), live_row, limit=limit, as_json=as_json,
            nothing="no space is live; spaces host opens one",
        )  # fmt: skip


@click.command()
@click.argument("place", type=PlaceType(), metavar="LINK|ID")
@json_option
@at_home
async def show(home: Home, place: Link | str, as_json: bool) -> None:
    """Show one space: who hosts it, whether it is live, its link.

    \b
    spaces show kX3vQm2pT9aB
    """
    link = home.place(place)
    if link.space is None:
        raise SpacesError("this link names no space")
    async with connected(link, home) as here:
        space = await here.get_space(link.space)
        if as_json:
            echo_json(space)
        else:
            _describe(space, link)


def _describe(space: SpaceInfo, link: Link) -> None:
    click.echo(f"{shown(space.title)}, of {words.person(space.host_name, space.host)}")
    when = words.local_time(space.starts)
    match space.state:
        case SpaceState.LIVE:
            click.echo(f"live since {when}; {'; '.join(live_row(space)[3:5])}")
            click.echo(f"spaces join '{link}'")
        case SpaceState.SCHEDULED:
            click.echo(f"starts {when}{'; you will be told' * space.reminder}")
            click.echo(f"link: {link}")
        case SpaceState.ENDED:
            click.echo("it has ended")
    click.echo(f"for: {_FOR_WHOM[space.visibility]}")


_FOR_WHOM = {
    Visibility.PUBLIC: "everyone",
    Visibility.FOLLOWERS: "followers of its host",
    Visibility.LINK: "whoever has the link",
}


@click.command()
@click.argument("title", type=title_type)
@click.option(
    "--at",
    type=TimeType(),
    metavar='"2026-12-01 19:00"',
    help="When it is to start, in local time; up to 14 days ahead.",
)
@click.option("--in", "after", type=DurationType(), metavar="2h", help="The same, from now on.")
@settings_options
@json_option
@at_home
async def schedule(
    home: Home,
    title: str,
    at: datetime | None,
    after: timedelta | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Announce a space.

    \b
    spaces schedule "Tea at five" --at "2026-12-01 17:00" --who-speaks everyone
    spaces schedule "Tea" --in 2h
    """
    if (at is None) == (after is None):
        raise click.UsageError("say when: --at a time, or --in how long")
    starts = at if at is not None else datetime.now() + (after or timedelta())
    starts_s, server = _utc_s(starts), home.server()
    async with connected(server, home) as here:
        space = await here.schedule(title, starts_s, settings_of(**settings))
    if as_json:
        echo_json(space)
        return
    link = Link(server.host, server.port, server.key, space.id)
    click.echo(f"{shown(space.title)} starts {words.local_time(space.starts)}")
    click.echo(f"link: {link}")
    click.echo(f"open it with:  spaces host --scheduled {space.id}")
    click.echo(f"others are told when it starts with:  spaces remind {words.argument(space.id)}")


def _utc_s(local: datetime) -> int:
    try:
        return max(0, int(local.timestamp()))
    except (OverflowError, OSError, ValueError) as error:
        raise click.UsageError("no calendar here has that time") from error


@click.command()
@click.argument("space", type=SpaceIdType(), metavar="ID")
@with_session
async def cancel(session: Session, space: str) -> None:
    """Call off a space that you have scheduled.

    \b
    spaces cancel kX3vQm2pT9aB
    """
    await session.cancel(space)
    click.echo("called off")


@click.command()
@click.argument("place", type=PlaceType(), metavar="LINK|ID")
@click.option("--off", is_flag=True, help="Take the reminder back.")
@at_home
async def remind(home: Home, place: Link | str, off: bool) -> None:
    """Be told when a scheduled space starts, by whatever command you use then.

    \b
    spaces remind kX3vQm2pT9aB
    """
    link = home.place(place)
    if link.space is None:
        raise SpacesError("this link names no space")
    async with connected(link, home) as here:
        await here.remind(link.space, on=not off)
        click.echo("you will not be told" if off else "you will be told when it starts")


COMMANDS = (list_spaces, show, schedule, cancel, remind)
