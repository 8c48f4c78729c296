"""Messages, posts with voice notes, and reports."""

import asyncio
from pathlib import Path
from typing import Any

import click

from protocol import frames, notes
from protocol.frames import Category, MessageInfo, PostInfo
from protocol.text import shown
from spaces_client import devices, note, words
from spaces_client.audio import AudioError
from spaces_client.commands.common import (
    U32,
    HandleType,
    SpaceIdType,
    TextType,
    WordType,
    at_home,
    connected,
    list_options,
    person_argument,
    show_list,
    with_session,
)
from spaces_client.commands.recording import in_a_row, note_of, write_recording
from spaces_client.home import Home
from spaces_client.session import Session

MAX_NOTE_S = notes.MAX_NOTE_MS / 1_000


# -- messages -----------------------------------------------------------------------------------


@click.command()
@person_argument
@click.argument("text", type=TextType(frames.MAX_MESSAGE_CHARS, lines=True))
@with_session
async def message(session: Session, person: str, text: str) -> None:
    """Write somebody a direct message.

    \b
    spaces message bob "are you coming tonight?"
    """
    await session.send_message(person, text)
    click.echo("sent")


@click.command()
@click.argument("person", type=HandleType(), metavar="[HANDLE]", required=False)
@list_options
@with_session
async def messages(session: Session, person: str | None, limit: int, as_json: bool) -> None:
    """Show your direct messages, the newest last; all, or those with somebody.

    \b
    spaces messages
    spaces messages bob --limit 10
    """

    def row(one: MessageInfo) -> tuple[str, ...]:
        invitation = words.invitation(one, session.client.link)
        text = words.one_line(one.text) + f"  [{invitation}]" * bool(invitation)
        whom = f"@{shown(one.sender)} to @{shown(one.recipient)}:"
        return words.local_time(one.at), whom, text.strip()

    await show_list(
        session.messages(person or ""), row, limit=limit, as_json=as_json,
        nothing="no messages", newest_last=True,
    )  # fmt: skip


# -- posts --------------------------------------------------------------------------------------


@click.command()
@click.argument("text", type=TextType(frames.MAX_POST_CHARS, lines=True), required=False)
@click.option("--space", type=SpaceIdType(), metavar="ID", help="Invite to this space.")
@click.option(
    "--note",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.wav",
    help="With a voice note from this file, of 140 s at most.",
)
@click.option(
    "--record",
    type=click.FloatRange(min=0.5, max=MAX_NOTE_S),
    metavar="SECONDS",
    help="With a voice note from the microphone, that long.",
)
@click.option("--microphone", metavar="NAME", help="See `spaces devices`.")
@at_home
async def post(
    home: Home,
    text: str | None,
    space: str | None,
    file: Path | None,
    record: float | None,
    microphone: str | None,
) -> None:
    """Post a text, an invitation to a space, a voice note, or any of them together.

    Your followers see it in their home feed, everyone in the public one.

    \b
    spaces post "tonight: tea" --space kX3vQm2pT9aB
    spaces post --record 10
    """
    if file and record:
        raise click.UsageError("a post has one voice note: --note or --record")
    if not (text or space or file or record):
        raise click.UsageError("there is nothing to post: give a text, --space, --note or --record")
    spoken = b"" if file is None else note_of(file)
    async with connected(home.server(), home) as here:
        if record:
            spoken = await _record(record, microphone)
        number = await here.post(text or "", space=space, note=spoken)
    click.echo(f"posted as number {number}")


async def _record(seconds: float, microphone: str | None) -> bytes:
    click.echo(f"say it, for {seconds:g} s …", err=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    try:
        return await note.record(devices.DeviceInput(microphone), stop)
    except AudioError as error:  # advises what the commands of a space take
        raise AudioError(str(error).replace("--input", "--note")) from error


async def _show_posts(posts: Any, limit: int, as_json: bool) -> None:
    def row(one: PostInfo) -> tuple[str]:
        lines = [
            f"{one.id}  {words.person(one.name, one.author)}, {words.local_time(one.at)}",
            words.indented(one.text) * bool(one.text),
            f"    spaces join {words.argument(one.space)}" * bool(one.space),
            f"    a voice note of {one.note_ms / 1_000:.0f} s: spaces play {one.id}"
            * bool(one.note_ms),
        ]
        return ("\n".join(filter(None, lines)),)

    await show_list(posts, row, limit=limit, as_json=as_json, nothing="no posts", newest_last=True)


@click.command("home")
@list_options
@with_session
async def home_feed(session: Session, limit: int, as_json: bool) -> None:
    """Show your home feed: your posts and those of people you follow, the newest last.

    \b
    spaces home
    """
    await _show_posts(session.home(), limit, as_json)


@click.command("posts")
@list_options
@with_session
async def public_posts(session: Session, limit: int, as_json: bool) -> None:
    """Show the public feed: everyone's posts, the newest last.

    \b
    spaces posts --limit 20
    """
    await _show_posts(session.public_posts(), limit, as_json)


@click.command()
@click.argument("post_number", type=U32, metavar="POST")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE.wav",
              help="Write it to this file instead of playing it.")  # fmt: skip
@click.option("--speakers", metavar="NAME", help="See `spaces devices`.")
@with_session
async def play(
    session: Session, post_number: int, output: Path | None, speakers: str | None
) -> None:
    """Play the voice note of a post.

    \b
    spaces play 12
    """
    packets = notes.unpack(await session.note(post_number))
    if output is None:
        await note.play(packets, devices.DeviceOutput(speakers))
    else:
        seconds = write_recording(output, in_a_row(packets))
        click.echo(f"wrote {seconds:.1f} s to {output}")


@click.command()
@click.argument("post_number", type=U32, metavar="POST")
@with_session
async def delete_post(session: Session, post_number: int) -> None:
    """Take a post of yours back.

    \b
    spaces delete-post 12
    """
    await session.delete_post(post_number)
    click.echo("deleted")


# -- reports ------------------------------------------------------------------------------------


@click.command()
@click.argument("person", type=HandleType(), metavar="[HANDLE]", required=False)
@click.option("--space", type=SpaceIdType(), metavar="ID", help="A space, instead of a person.")
@click.option("--category", type=WordType(Category), required=True)
@click.option("--note", "text", type=TextType(frames.MAX_REPORT_CHARS, lines=True),
              help="What happened.")  # fmt: skip
@at_home
async def report(
    home: Home, person: str | None, space: str | None, category: Category, text: str | None
) -> None:
    """Report a person or a space to the moderators of the server; you are told what they decide.

    Of somebody who is in a space with you, use /report there.

    \b
    spaces report eve --category spam --note "the same link, everywhere"
    """
    if (person is None) == (space is None):
        raise click.UsageError("whom do you report: a HANDLE, or --space ID?")
    async with connected(home.server(), home) as here:
        reply = await here.report(category, text or "", person=person, space=space)
    click.echo(f"reported, as number {reply.report}; you will be told what becomes of it")


COMMANDS = (message, messages, post, home_feed, public_posts, play, delete_post, report)
