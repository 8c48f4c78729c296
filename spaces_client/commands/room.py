"""Taking part in a space: `host` and `join`; measuring one: `stats`."""

import asyncio
import contextlib
import gc
import getpass
import json
import math
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from protocol import frames
from protocol.frames import ErrorCode
from protocol.link import Link
from protocol.text import TextError, shown
from protocol.text import handle as normal_handle
from spaces_client import devices
from spaces_client.audio import AudioError, AudioInput, AudioOutput
from spaces_client.comfort import ComfortNoise
from spaces_client.commands.account import name_type, sign_up
from spaces_client.commands.common import (
    HandleType,
    LinkType,
    PlaceType,
    SpaceIdType,
    TextType,
    at_home,
    explained,
)
from spaces_client.commands.finding import settings_of, settings_options, title_type
from spaces_client.face import Face
from spaces_client.home import Home
from spaces_client.live import LiveSpace, SpacesError, session
from spaces_client.paced import Listen
from spaces_client.stats import described
from spaces_client.voice import VoiceProcessor
from spaces_client.wav import WavInput, WavOutput

LAST_WORDS_S = 0.5  # what was said last is on its way to the others for this long


def _user_name() -> str:
    try:
        return getpass.getuser()[: frames.MAX_NAME_CHARS]
    except (KeyError, OSError):  # a container's user needs no name
        return "guest"


def _person_options(command: Any) -> Any:
    """What `host` and `join` have in common."""
    options = [
        click.option(
            "--handle",
            type=HandleType(),
            help="Register with it first, where you have no account yet.",
        ),
        click.option(
            "--name", type=name_type, help="What you are shown as, where you have no account yet."
        ),
        click.option(
            "--input",
            "input_file",
            type=click.Path(path_type=Path),
            metavar="FILE.wav",
            help="Speak from this file instead of the microphone, and leave at its end.",
        ),
        click.option("--loop", is_flag=True, help="Play the --input file over and over."),
        click.option(
            "--output",
            "output_file",
            type=click.Path(path_type=Path),
            metavar="FILE.wav",
            help="Write what you hear to this file instead of playing it.",
        ),
        click.option("--microphone", metavar="NAME", help="See `spaces devices`."),
        click.option("--speakers", metavar="NAME", help="See `spaces devices`."),
        click.option(
            "--voice/--no-voice",
            default=None,
            help="Take echo and noise out of the microphone and level it. "
            "[default: where pywebrtc-audio is installed]",
        ),
        click.option("--listen-only", is_flag=True, help="Use no microphone at all."),
        click.option("--seconds", type=click.FloatRange(min=0.1), help="Leave after this long."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command("host")
@click.argument("link", type=LinkType(), required=False)
@click.option("--title", type=title_type, help="[default: A space]")
@click.option("--scheduled", type=SpaceIdType(), metavar="ID", help="Open what you scheduled.")
@click.option(
    "--post",
    type=TextType(frames.MAX_POST_CHARS, lines=True),
    metavar="TEXT",
    help="Tell your followers and the public feed, with this text.",
)
@settings_options
@_person_options
@at_home
async def host_command(
    home: Home,
    link: Link | None,
    title: str | None,
    scheduled: str | None,
    post: str | None,
    visibility: frames.Visibility | None,
    who_speaks: frames.WhoSpeaks | None,
    free_unmute: bool,
    no_chat: bool,
    slow: int | None,
    low_delay: bool,
    sound: frames.Sound | None,
    **person: Any,
) -> None:
    """Open a space on your server, or on the one that LINK names.

    The space ends when you leave, unless a co-host is there. Who has no account there yet gets
    one.

    \b
    spaces host --title "Tea at five" --who-speaks everyone --post "come in"
    spaces host 'spaces://…' --handle ada
    """
    settings = settings_of(visibility, who_speaks, free_unmute, no_chat, slow, low_delay, sound)
    if scheduled and (title or settings):
        raise click.UsageError("what is --scheduled has its title and settings already")
    options = _sound_options(person)
    async with session(link or home.server(), key=home.key()) as space:
        await _with_account(space, home, person["handle"] or _own_handle(), person["name"])
        await space.open(title or "A space", settings, space=scheduled)
        async with _sound(space, **options) as (voice_end, note):
            click.echo(f"listeners join with:  spaces join '{space.link}'")
            click.echo(f"speakers join with:   spaces join '{await space.make_invite()}'")
            if post:
                await space.post(post, space=space.client.view.id)
            await _take_part(space, voice_end, person["seconds"], note)


@click.command("join")
@click.argument("place", type=PlaceType(), metavar="LINK|ID")
@click.option(
    "--despite-blocked", is_flag=True, help="Also if somebody whom you blocked is on stage."
)
@_person_options
@at_home
async def join_command(home: Home, place: Link | str, despite_blocked: bool, **person: Any) -> None:
    """Join a space by its LINK, or by its ID at your server.

    With an account there you come as yourself, else as a guest, who only listens. The microphone
    is opened only while you are on stage.

    \b
    spaces join 'spaces://…' --name Ada
    spaces join kX3vQm2pT9aB
    """
    link = home.place(place)
    if link.space is None:
        raise SpacesError("this link names no space; `spaces host` opens one with it")
    sound = _sound_options(person)
    async with session(link, key=home.key()) as space:
        if person["handle"]:
            await _with_account(space, home, person["handle"], person["name"])
        await _enter(space, link, person["name"] or _user_name(), despite_blocked)
        async with _sound(space, **sound) as (voice_end, note):
            await _take_part(space, voice_end, person["seconds"], note)


@click.command("stats")
@click.argument("place", type=PlaceType(), metavar="LINK|ID")
@click.option("--name", type=name_type, help="What you are shown as, where you have no account.")
@click.option(
    "--seconds", default=10.0, show_default=True, type=click.FloatRange(min=1), help="For how long."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, one object a second instead of text."
)
@at_home
async def stats_command(
    home: Home, place: Link | str, name: str | None, seconds: float, as_json: bool
) -> None:
    """Measure the sound of a space: how late each speaker is, from mouth to ear, and what the
    network does to the mix.

    Joins as a listener who plays into nothing, and says each second what is known. Within a space,
    /stats says it once.

    \b
    spaces stats 'spaces://…' --seconds 5
    spaces stats kX3vQm2pT9aB --json
    """
    link = home.place(place)
    if link.space is None:
        raise SpacesError("this link names no space; `spaces list` shows those that are live")
    async with session(link, key=home.key()) as space:
        await space.join(link.space, name=name or _user_name())
        _keep_what_is_loaded()
        space.start_audio(None, Listen(as_device=True))
        space.stats()  # begins to measure
        for second in range(1, math.ceil(seconds) + 1):
            await asyncio.sleep(min(1, seconds - second + 1))
            if space.over is not None:
                raise space.over
            stats = space.stats()
            if as_json:
                click.echo(json.dumps(asdict(stats)))
            else:
                click.echo("\n".join(described(stats)))
        space.stop_audio()


def _own_handle() -> str | None:
    """The user's name, if it can be a handle."""
    try:
        return normal_handle(_user_name())
    except TextError:
        return None


async def _with_account(space: LiveSpace, home: Home, handle: str | None, name: str | None) -> None:
    """Registers whoever has no account here."""
    try:
        await space.who_am_i()
    except SpacesError as error:
        if error.code != ErrorCode.NO_ACCOUNT:
            raise
        if handle is None:
            raise SpacesError("you need an account here; choose its name with --handle") from error
        await sign_up(space, home, handle, name)


async def _enter(space: LiveSpace, link: Link, name: str, despite_blocked: bool) -> None:
    """Joins; where somebody whom one blocked is on stage, only if one wants to."""
    assert link.space is not None
    try:
        await space.join(link.space, invite=link.invite, name=name, despite_blocked=despite_blocked)
    except SpacesError as error:
        if error.code != ErrorCode.SOMEONE_BLOCKED:
            raise
        if not sys.stdin.isatty():
            raise SpacesError(f"{error} (with --despite-blocked)", error.code) from error
        click.echo(f"{explained(error)}\nJoin? [y/N] ", nl=False)
        if (await _typed_line()).strip().lower() not in ("y", "yes"):
            raise SpacesError("you have not joined") from error
        await space.join(link.space, invite=link.invite, name=name, despite_blocked=True)


async def _typed_line() -> str:
    """While the session goes on, and Ctrl-C works."""
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    typed: asyncio.Future[bytes] = loop.create_future()
    loop.add_reader(descriptor, lambda: typed.set_result(os.read(descriptor, 1_024)))
    typed.add_done_callback(lambda _: loop.remove_reader(descriptor))
    return (await typed).decode("utf-8", "ignore")


async def _take_part(
    space: LiveSpace, voice_end: asyncio.Future[None] | None, seconds: float | None, note: str
) -> None:
    """Shows the face until the space is over, the input file has ended, the time is up or the
    person leaves, which Ctrl-C is."""
    limits = [voice_end] if voice_end is not None else []
    if seconds is not None:
        limits.append(asyncio.ensure_future(asyncio.sleep(seconds)))
    until = asyncio.wait(limits, return_when=asyncio.FIRST_COMPLETED) if limits else None
    with contextlib.suppress(asyncio.CancelledError):
        why = await Face(space, Console(), say=note).run(until)
        if why:
            click.echo(shown(why))


def _sound_options(person: dict[str, Any]) -> dict[str, Any]:
    names = ("input_file", "loop", "output_file", "microphone", "speakers", "voice", "listen_only")
    if person["loop"] and not person["input_file"]:
        raise click.UsageError("--loop needs an --input file")
    if person["listen_only"] and (person["input_file"] or person["microphone"]):
        raise click.UsageError("--listen-only leaves no use for --input or --microphone")
    return {name: person[name] for name in names}


@contextlib.asynccontextmanager
async def _sound(
    space: LiveSpace,
    *,
    input_file: Path | None,
    loop: bool,
    output_file: Path | None,
    microphone: str | None,
    speakers: str | None,
    voice: bool | None,
    listen_only: bool,
) -> AsyncIterator[tuple[asyncio.Future[None] | None, str]]:
    """Opens what is needed; -> (what is done when the input file has ended, a note to show)."""
    source: AudioInput | None = None
    ended: asyncio.Future[None] | None = None
    if input_file:
        source = file = WavInput(input_file, loop=loop)
    elif not listen_only:
        source = devices.DeviceInput(microphone)
    output: AudioOutput = (
        WavOutput(output_file) if output_file else ComfortNoise(devices.DeviceOutput(speakers))
    )
    processor, note = None, ""
    if source is not None and input_file is None:
        processor, note = _processor(voice, music=space.client.profile.music)
    _keep_what_is_loaded()
    space.start_audio(source, output, processor)
    if input_file:
        ended = asyncio.ensure_future(_said(file))
    try:
        yield ended, note
    finally:
        if ended is not None:
            ended.cancel()
        space.stop_audio()


def _keep_what_is_loaded() -> None:
    """A garbage collector that looks through it holds the sound up for as long as a frame lasts."""
    gc.freeze()


async def _said(file: WavInput) -> None:
    await file.played_out()
    await asyncio.sleep(LAST_WORDS_S)


def _processor(voice: bool | None, *, music: bool) -> tuple[VoiceProcessor | None, str]:
    if music:
        return None, "this space is for music: your sound goes out as it is; use headphones"
    if voice is False:
        return None, ""
    if VoiceProcessor.available():
        return VoiceProcessor(), ""
    if voice:
        raise AudioError(
            "--voice needs pywebrtc-audio; install it with: pip install 'spaces[voice]'"
        )
    return None, "echo is not taken out (pywebrtc-audio is missing): use headphones"


COMMANDS = (host_command, join_command, stats_command)
