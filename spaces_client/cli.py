"""The command `spaces`."""

import asyncio
import contextlib
import getpass
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from protocol.frames import MAX_NAME_CHARS, MAX_TITLE_CHARS
from protocol.keyfile import KeyFileError, load_key
from protocol.link import Link, LinkError
from protocol.opus import LIBRARY, OpusError
from spaces_client import AGENT, devices
from spaces_client.audio import AudioError, AudioInput, AudioOutput
from spaces_client.crowd import run_crowd
from spaces_client.face import Face
from spaces_client.live import LiveSpace, SpacesError, connect, host
from spaces_client.voice import VoiceProcessor
from spaces_client.wav import WavInput, WavOutput

IDENTITY_FILE = Path(click.get_app_dir("spaces")) / "identity.key"
LAST_WORDS_S = 0.5  # what was said last is on its way to the others for this long


class _LinkType(click.ParamType[Link]):
    name = "link"

    def convert(self, value: Any, param: Any, ctx: Any) -> Link:
        if isinstance(value, Link):
            return value
        try:
            return Link.parse(sys.stdin.readline() if value == "-" else value)
        except LinkError as error:
            self.fail(str(error), param, ctx)


def _at_most(max_chars: int) -> Callable[[Any, Any, str], str]:
    """A check of an option's text."""

    def check(_context: Any, _parameter: Any, text: str) -> str:
        if not 0 < len(text.strip()) <= max_chars or not text.isprintable():
            raise click.BadParameter(f"1 to {max_chars} characters, all of them printable, please")
        return text

    return check


def _user_name() -> str:
    try:
        return getpass.getuser()[:MAX_NAME_CHARS]
    except (KeyError, OSError):  # a container's user needs no name
        return "guest"


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a command to its end; what goes wrong becomes one line.  SIGTERM and Ctrl-C cancel it,
    so that it leaves the space in good order."""

    async def interruptible() -> None:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, task.cancel)
        await task

    try:
        _loop_runner()(interruptible())
    except asyncio.CancelledError:
        raise click.ClickException("interrupted") from None
    except (SpacesError, AudioError, KeyFileError, OpusError, LinkError) as error:
        raise click.ClickException(str(error)) from error


def _loop_runner() -> Any:
    try:
        import uvloop
    except ImportError:  # not to be had on Windows
        return asyncio.run
    return uvloop.run


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(AGENT, message=f"%(version)s, libopus {LIBRARY.version} ({LIBRARY.origin})")
def main() -> None:
    """Live audio rooms: host one, or join one by its link.

    Quote links in the shell: they contain & and ?. Where a link is asked for, - reads it from
    standard input.
    """


def _person_options(command: Any) -> Any:
    """What `host` and `join` have in common."""
    options = [
        click.option(
            "--name",
            default=_user_name,
            show_default="your user name",
            callback=_at_most(MAX_NAME_CHARS),
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
        click.option(
            "--identity",
            type=click.Path(dir_okay=False, path_type=Path),
            default=IDENTITY_FILE,
            show_default="in your user's folder for application data",
            help="The file with your private key, which is who you are; made when missing.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command("host")
@click.argument("link", type=_LinkType())
@click.option("--title", default="A space", show_default=True, callback=_at_most(MAX_TITLE_CHARS))
@_person_options
def host_command(link: Link, title: str, **person: Any) -> None:
    """Open a space on the server that LINK names (the server prints it when it starts).

    The space ends when you leave, unless a co-host is there.
    """

    async def work() -> None:
        key, _ = load_key(person["identity"])
        async with (
            host(link, title=title, name=person["name"], key=key) as space,
            _sound(space, **_sound_options(person)) as (voice_end, note),
        ):
            invite = await space.invite()
            click.echo(f"listeners join with:  spaces join '{space.link}'")
            click.echo(f"speakers join with:   spaces join '{invite}'")
            await _take_part(space, voice_end, person["seconds"], note)

    _run(work())


@main.command("join")
@click.argument("link", type=_LinkType())
@_person_options
def join_command(link: Link, **person: Any) -> None:
    """Join the space that LINK names.

    The microphone is opened only if you may speak: with an invite in the link, or once the host
    has brought you up.
    """

    async def work() -> None:
        key, _ = load_key(person["identity"])
        async with (
            connect(link, name=person["name"], key=key) as space,
            _sound(space, **_sound_options(person)) as (voice_end, note),
        ):
            await _take_part(space, voice_end, person["seconds"], note)

    _run(work())


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
            click.echo(why)


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
    if input_file:
        source = WavInput(input_file, loop=loop)
    elif not listen_only:
        source = devices.DeviceInput(microphone)
    output: AudioOutput
    output = WavOutput(output_file) if output_file else devices.DeviceOutput(speakers)
    processor, note = None, ""
    if source is not None and input_file is None:
        processor, note = _processor(voice)
    space.start_audio(source, output, processor)
    ended = asyncio.ensure_future(_said(source)) if source and input_file else None
    try:
        yield ended, note
    finally:
        if ended is not None:
            ended.cancel()
        space.stop_audio()


async def _said(source: AudioInput) -> None:
    await source.finished()
    await asyncio.sleep(LAST_WORDS_S)


def _processor(voice: bool | None) -> tuple[VoiceProcessor | None, str]:
    if voice is False:
        return None, ""
    if VoiceProcessor.available():
        return VoiceProcessor(), ""
    if voice:
        raise AudioError(
            "--voice needs pywebrtc-audio; install it with: pip install 'spaces[voice]'"
        )
    return None, "echo is not taken out (pywebrtc-audio is missing): use headphones"


@main.command("devices")
@click.option("--test", is_flag=True, help="Play a tone and show the microphone's level for 3 s.")
@click.option("--microphone", metavar="NAME", help="A number or part of a name from the list.")
@click.option("--speakers", metavar="NAME", help="A number or part of a name from the list.")
def devices_command(test: bool, microphone: str | None, speakers: str | None) -> None:
    """List the microphones and speakers, and try them."""

    async def work() -> None:
        found = devices.list_devices()
        for kind in ("microphone", "speakers"):
            of_kind = [d for d in found if d.kind == kind]
            click.echo(f"{kind}:" if of_kind else f"{kind}: none found")
            for device in of_kind:
                click.echo(f"  {device.index}  {device.name}  ({device.backend})")
        if not test:
            return
        played = await devices.play_tone(speakers)
        click.echo(f"played a tone for {played.played_ms:.0f} ms; did you hear it?")
        click.echo("say something, for 3 s …")
        level = await devices.measure_microphone(microphone)
        if not level.captured_ms:
            raise AudioError("the microphone opened but sends nothing; is it switched off?")
        click.echo(f"microphone: {level.rms_dbfs:.0f} dBFS, peaks of {level.peak_dbfs:.0f} dBFS")

    _run(work())


@main.command("crowd")
@click.argument("link", type=_LinkType())
@click.option("--speakers", default=0, show_default=True, type=click.IntRange(0, 13))
@click.option("--listeners", default=10, show_default=True, type=click.IntRange(0, 500))
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(min=0.5))
@click.option(
    "--voices",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of WAV files to speak with.  [default: voices synthesised on the spot]",
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what the first listener hears to this WAV file.",
)
@click.option(
    "--wait-for",
    default=0,
    type=click.IntRange(0),
    help="Begin to speak when this many people listen.",
)
def crowd_command(
    link: Link,
    wait_for: int,
    speakers: int,
    listeners: int,
    seconds: float,
    voices: Path | None,
    record: Path | None,
) -> None:
    """Fill a space with speaking and listening clients, to try a server.

    With the link of a server, the first speaker opens a space there. With the link of a space, its
    invite is needed for speakers. Prints one JSON object a line: `joined`, then `progress` twice a
    second, and a `summary` with what every client saw.
    """
    if link.space is None and not speakers:
        raise click.UsageError("with the link of a server, at least one speaker is needed")

    def report(event: dict[str, Any]) -> None:
        click.echo(json.dumps(event))
        sys.stdout.flush()

    async def work() -> None:
        report(
            await run_crowd(
                link,
                speakers=speakers,
                listeners=listeners,
                seconds=seconds,
                voices=voices,
                record=record,
                wait_for=wait_for,
                report=report,
            )
        )

    _run(work())


if __name__ == "__main__":
    main()
