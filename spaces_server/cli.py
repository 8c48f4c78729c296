"""The command `spaces-server`.

What only one of its commands needs is imported there: the mixer, the database and the demonstration
take a second to import, and `spaces-server admin` has no use for them.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from protocol.frames import Access
from protocol.keyfile import KeyFileError, load_key
from protocol.link import DEFAULT_PORT, Link
from protocol.noise import public_key
from protocol.opus import LIBRARY
from protocol.text import skeleton
from spaces_server import AGENT
from spaces_server.admin import admin, leave_link, operator_key
from spaces_server.config import (
    ConfigError,
    check_public_host,
    data_option,
    guess_public_host,
    read_toml,
)
from spaces_server.policy.house import HouseRules
from spaces_server.policy.space import SpaceRules

if TYPE_CHECKING:
    from spaces_server.server import Server

log = logging.getLogger("spaces")
KEY_FILE = "server.key"
DATABASE_FILE = "spaces.db"
SWITCH_S = 0.0005


def _options_from_toml(context: click.Context, _parameter: Any, path: Path | None) -> Path | None:
    """A TOML file's values stand below flags and environment: they become the defaults."""
    if path is None:
        return None
    try:
        values = read_toml(path)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    options = {parameter.name: parameter for parameter in context.command.params}
    for name, value in values.items():
        if name not in options or name == "config":
            raise click.ClickException(f"{path}: there is no option {name!r}; see --help")
        try:
            options[name].type_cast_value(context, value)
        except click.BadParameter as error:
            raise click.ClickException(f"{path}: {name}: {error.message}") from error
    context.default_map = values
    return path


def _check_public_host(_context: Any, _parameter: Any, host: str | None) -> str | None:
    try:
        return None if host is None else check_public_host(host)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error


def _six_reactions(_context: Any, _parameter: Any, text: str) -> tuple[str, ...]:
    emoji = tuple(text.split())
    try:
        return SpaceRules(reactions=emoji).reactions
    except ValueError as error:
        raise click.BadParameter(f"{error}; write them with blanks between") from error


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(AGENT, message=f"%(version)s, libopus {LIBRARY}")
def main() -> None:
    """Host live audio rooms."""


@main.command(context_settings={"auto_envvar_prefix": "SPACES", "show_default": True})
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    is_eager=True,
    callback=_options_from_toml,
    help="TOML file with any of these options, e.g. port = 5004.",
)
@click.option("--host", default="::", help="Address to listen on; :: is every one, IPv4 too.")
@click.option(
    "--port",
    default=DEFAULT_PORT,
    type=click.IntRange(0, 65_535),
    help="UDP port; 0: any free one.",
)
@click.option(
    "--public-host",
    callback=_check_public_host,
    help="Name or address under which people reach this server; it goes into the links. "
    "[default: an address of this machine]",
)
@data_option
@click.option(
    "--database",
    metavar="URL",
    default=None,
    show_default="SQLite, in the data folder",
    help="Where accounts, bans, blocks, spaces and reports are kept, e.g. "
    "postgresql+psycopg://spaces@localhost/spaces.",
)
@click.option(
    "--access",
    type=click.Choice([access.value for access in Access]),
    default=Access.OPEN.value,
    help="Who may use the spaces of a new server: everyone, or people with access. Later: "
    "`spaces-server admin access`.",
)
@click.option(
    "--guests/--no-guests", default=True, help="Whether people without an account may listen."
)
@click.option(
    "--bitrate", default=32_000, type=click.IntRange(6_000, 128_000), help="Of a mix, bit/s."
)
@click.option(
    "--complexity",
    default=8,
    type=click.IntRange(0, 10),
    help="Of the mix's Opus encoders, at most; lower costs less CPU and sounds a little worse.",
)
@click.option(
    "--stage-size", default=13, type=click.IntRange(1, 32), help="How many may speak in a space."
)
@click.option(
    "--co-hosts", default=2, type=click.IntRange(0, 31), help="How many of them may be co-hosts."
)
@click.option(
    "--grace",
    default=60,
    type=click.IntRange(1, 3_600),
    metavar="SECONDS",
    help="How long a place on stage is kept for somebody whose connection was lost; after that a "
    "co-host takes the host's place, or the space ends.",
)
@click.option(
    "--reactions",
    default=" ".join(SpaceRules().reactions),
    callback=_six_reactions,
    help="Six emoji, with blanks between them.",
)
@click.option(
    "--evidence/--no-evidence",
    default=False,
    help="Seal the last 30 s of a reported speaker for the server's moderators. Everyone is told "
    "on joining a space.",
)
@click.option(
    "--evidence-days",
    default=14,
    type=click.IntRange(1, 365),
    help="After how many days that is deleted.",
)
@click.option(
    "--max-people", default=20_000, type=click.IntRange(1), help="On the whole server, at once."
)
@click.option("--max-spaces", default=1_000, type=click.IntRange(1), help="At once.")
@click.option(
    "--crowd-above",
    default=1_000,
    type=click.IntRange(0),
    metavar="LISTENERS",
    help="In a space with more, those who listen get several packets in one datagram, if their "
    "client takes that: less CPU and bandwidth, up to 40 ms later. Whoever is on stage does not.",
)
@click.option(
    "--crowd-packet-ms",
    default="60",
    type=click.Choice(["20", "40", "60"]),
    help="How much audio that is, in milliseconds; 20: one packet, as everywhere else.",
)
@click.option(
    "--governor/--no-governor",
    default=True,
    help="Whether complexity goes down, and then newcomers are refused, before the server has more "
    "to do than it can; off only to measure where that is.",
)
@click.option(
    "--rate-limits/--no-rate-limits",
    default=True,
    help="Limits on requests for each person and address; off only to try a server with many "
    "clients from one address.",
)
@click.option(
    "--stats",
    type=click.File("w", lazy=False),  # opened now: the end would be late to hear of a bad name
    help="Write figures of the whole run to this file, as JSON, when the server stops; what there "
    "is so far, when it gets SIGUSR1.",
)
@click.option(
    "--qr/--no-qr", default=None, help="Show the link as a QR code. [default: on a terminal]"
)
def run(
    config: Path | None,
    host: str,
    port: int,
    public_host: str | None,
    data: Path,
    database: str | None,
    access: str,
    guests: bool,
    bitrate: int,
    complexity: int,
    stage_size: int,
    co_hosts: int,
    grace: int,
    reactions: tuple[str, ...],
    evidence: bool,
    evidence_days: int,
    max_people: int,
    max_spaces: int,
    crowd_above: int,
    crowd_packet_ms: str,
    governor: bool,
    rate_limits: bool,
    stats: TextIO | None,
    qr: bool | None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C.

    Every option can be given as a flag (--port 5005), as an environment variable (SPACES_PORT=5005)
    or in a TOML file (port = 5005), in this order of precedence. The link goes to standard output,
    the log to standard error.

    \b
    spaces-server run --public-host rooms.example.org
    """
    import uvloop

    from spaces_server.net.transport import TransportError
    from spaces_server.node import Limits
    from spaces_server.server import Server
    from spaces_server.store.database import Database, StoreError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    limits = Limits(
        max_sessions=max_people,
        bitrate=bitrate,
        complexity=complexity,
        crowd_above=crowd_above,
        crowd_packet_ms=int(crowd_packet_ms),
        governed=governor,
    )
    rules = HouseRules(
        guests=guests,
        access=Access(access),
        max_spaces=max_spaces,
        evidence_days=evidence_days,
        limited_rates=rate_limits,
        space=SpaceRules(
            stage_size=stage_size,
            co_hosts=co_hosts,
            max_members=max_people,
            grace_s=grace,
            reactions=reactions,
            evidence=evidence,
        ),
    )
    try:
        key, new = load_key(data / KEY_FILE)
        if new:
            log.info("made a new server key in %s; keep a copy of it", data)
        operator = operator_key(data)
        with contextlib.closing(Database(database or f"sqlite:///{data / DATABASE_FILE}")) as store:
            store.upgrade()
            server = partial(
                Server, key, limits, rules, store,
                operator_key=public_key(operator), stats_file=stats,
            )  # fmt: skip
            uvloop.run(_serve(server, public_key(key), data, host, port, public_host, qr))
    except (KeyFileError, StoreError, TransportError) as error:
        raise click.ClickException(str(error)) from error


async def _serve(
    new_server: Callable[[], "Server"],
    key: bytes,
    data: Path,
    host: str,
    port: int,
    public_host: str | None,
    qr: bool | None,
) -> None:
    """key: the server's public key."""
    # Threads pass the interpreter on ten times as often as by default: the one that sends needs it
    # for a moment before each batch, while the tick's thread seals the next.
    sys.setswitchinterval(SWITCH_S)
    server = new_server()
    skeleton("spaces")  # reads the table of lookalikes: 60 ms that no tick should wait for
    await server.start(host, port)
    link = str(Link(public_host or guess_public_host(host), server.port, key))
    here = "127.0.0.1" if host in ("", "::", "0.0.0.0") else host
    leave_link(data, Link(here, server.port, key))
    log.info("%s listens on UDP port %d", AGENT, server.port)
    code = server.owner_code()
    if code is not None:
        log.info("nobody owns this server yet; whoever is first becomes its owner with")
        log.info("    spaces claim '%s' %s", link, code)
    click.echo(link)
    if qr if qr is not None else sys.stdout.isatty():
        import segno

        click.echo("")
        segno.make(link, error="l").terminal(compact=True)
        click.echo(f"\nOpen a space with:  spaces host '{link}'")
    sys.stdout.flush()
    await server.wait()


main.add_command(admin)


@main.command()
@click.option("--seconds", default=15, show_default=True, type=click.IntRange(2, 600))
@click.option("--speakers", default=3, show_default=True, type=click.IntRange(1, 13))
@click.option("--listeners", default=50, show_default=True, type=click.IntRange(1, 500))
@click.option(
    "--voices",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of WAV files to speak with.  [default: voices synthesised on the spot]",
)
@click.option(
    "--output",
    default=Path("demo-mix.wav"),
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write what one listener heard.",
)
@click.option("--story", is_flag=True, help="Play one evening of the product instead, in steps.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the summary, or a line a step.")
def demo(
    seconds: int,
    speakers: int,
    listeners: int,
    voices: Path | None,
    output: Path,
    story: bool,
    as_json: bool,
) -> None:
    """Run a real server and real clients on this machine, and measure what they see.

    The server, the speakers and the listeners are processes of their own and talk over UDP on
    loopback. While it runs, anybody on this machine can join with the link that it prints.

    With --story people register, follow, schedule, post, invite, speak, block, mute, report, remove
    and close, and every step is told as it happens.

    \b
    spaces-server demo --listeners 20 --seconds 5
    spaces-server demo --story
    """
    from spaces_server.child import ChildError
    from spaces_server.demo import run_demo, show_summary
    from spaces_server.story import StoryError, tell_story

    try:
        if story:
            tell_story(as_json)
            return
        summary = run_demo(seconds, speakers, listeners, voices, output, quiet=as_json)
    except (ChildError, StoryError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(summary))
    else:
        show_summary(summary)


if __name__ == "__main__":
    main()
