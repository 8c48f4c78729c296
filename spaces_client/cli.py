"""The command `spaces`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from protocol.link import Link
from protocol.opus import LIBRARY
from spaces_client import AGENT, devices
from spaces_client.audio import AudioError
from spaces_client.commands import account, finding, mail, people, room
from spaces_client.commands.common import LinkType, run, with_session
from spaces_client.crowd import run_crowd
from spaces_client.moderation import moderation


class _Topics(click.Group):
    """Shows the commands by topic."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in TOPICS.items():
            with formatter.section(title):
                room = formatter.width - 6 - max(len(name) for name in self.commands)
                names = [(c.name or "", c.get_short_help_str(room)) for c in commands]
                formatter.write_dl(names, col_max=20)


@click.group(
    cls=_Topics, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(AGENT, message=f"%(version)s, libopus {LIBRARY}")
def main() -> None:
    """Live audio rooms: host one, or join one by its link.

    Quote links in the shell: they contain & and ?. Where a link is asked for, - reads it from
    standard input. Register once at a server, and the other commands go there.
    """


@click.command("devices")
@click.option("--test", is_flag=True, help="Play a tone and show the microphone's level for 3 s.")
@click.option("--microphone", metavar="NAME", help="A number or part of a name from the list.")
@click.option("--speakers", metavar="NAME", help="A number or part of a name from the list.")
def devices_command(test: bool, microphone: str | None, speakers: str | None) -> None:
    """List the microphones and speakers, and try them.

    \b
    spaces devices --test
    """

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

    run(work())


@click.command("crowd")
@click.argument("link", type=LinkType())
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

    \b
    spaces crowd 'spaces://…' --speakers 2 --listeners 50
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

    run(work())


MODERATION = moderation(
    "spaces moderate",
    with_session,
    about="What the owner and the moderators of a server do.",
    evidence_too=True,
)
TOPICS: dict[str, tuple[click.Command, ...]] = {
    "Your account": account.COMMANDS,
    "Spaces": (*room.COMMANDS, *finding.COMMANDS),
    "People": people.COMMANDS,
    "Messages and posts": mail.COMMANDS,
    "The server and this machine": (MODERATION, devices_command, crowd_command),
}
for _commands in TOPICS.values():
    for _command in _commands:
        main.add_command(_command)


if __name__ == "__main__":
    main()
