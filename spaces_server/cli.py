"""The command `spaces-server`."""

import contextlib
import gc
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import click
import segno
import uvloop

from protocol.keyfile import KeyFileError, load_key
from protocol.link import DEFAULT_PORT, Link
from protocol.noise import public_key
from protocol.opus import LIBRARY
from spaces_server import AGENT
from spaces_server.config import ConfigError, check_public_host, guess_public_host, read_toml
from spaces_server.demo import DemoError, run_demo, show_summary
from spaces_server.net.transport import TransportError
from spaces_server.node import Limits
from spaces_server.server import Server

log = logging.getLogger("spaces")
KEY_FILE = "server.key"


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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(AGENT, message=f"%(version)s, libopus {LIBRARY.version} ({LIBRARY.origin})")
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
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: Path(click.get_app_dir("spaces-server")),
    show_default="your user's folder for application data",
    help="Folder of the server's key; made on the first start.",
)
@click.option(
    "--bitrate", default=32_000, type=click.IntRange(6_000, 128_000), help="Of a mix, bit/s."
)
@click.option(
    "--complexity",
    default=8,
    type=click.IntRange(0, 10),
    help="Of the mix's Opus encoders; lower costs less CPU and sounds a little worse.",
)
@click.option(
    "--stage-size", default=13, type=click.IntRange(1, 32), help="How many may speak in a space."
)
@click.option(
    "--max-people", default=20_000, type=click.IntRange(1), help="On the whole server, at once."
)
@click.option("--max-spaces", default=1_000, type=click.IntRange(1), help="At once.")
@click.option(
    "--stats",
    type=click.File("w", lazy=False),  # opened now: the end would be late to hear of a bad name
    help="Write figures of the whole run to this file, as JSON, when the server stops.",
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
    bitrate: int,
    complexity: int,
    stage_size: int,
    max_people: int,
    max_spaces: int,
    stats: TextIO | None,
    qr: bool | None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C.

    Every option can be given as a flag (--port 5005), as an environment variable (SPACES_PORT=5005)
    or in a TOML file (port = 5005), in this order of precedence. The link goes to standard output,
    the log to standard error.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    limits = Limits(
        max_sessions=max_people,
        max_members=max_people,
        max_spaces=max_spaces,
        stage_size=stage_size,
        bitrate=bitrate,
        complexity=complexity,
    )
    try:
        key, new = load_key(data / KEY_FILE)
        if new:
            log.info("made a new server key in %s; keep a copy of it", data)
        uvloop.run(_serve(key, limits, host, port, public_host, stats, qr))
    except (KeyFileError, TransportError) as error:
        raise click.ClickException(str(error)) from error


def _run_before_others() -> None:
    """A tick that waits for other programs is late for all listeners: real-time scheduling, where
    the system has it and lets us (root, CAP_SYS_NICE, systemd's CPUSchedulingPolicy=rr)."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        log.info("ticks run with real-time priority")


async def _serve(
    key: bytes,
    limits: Limits,
    host: str,
    port: int,
    public_host: str | None,
    stats: TextIO | None,
    qr: bool | None,
) -> None:
    _run_before_others()
    server = Server(key, limits, stats)
    await server.start(host, port)
    gc.freeze()  # what is there by now stays: no collection need look at it during a tick
    link = str(Link(public_host or guess_public_host(host), server.port, public_key(key)))
    log.info("%s listens on UDP port %d", AGENT, server.port)
    click.echo(link)
    if qr if qr is not None else sys.stdout.isatty():
        click.echo("")
        segno.make(link, error="l").terminal(compact=True)
        click.echo(f"\nOpen a space with:  spaces host '{link}'")
    sys.stdout.flush()
    await server.wait()


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
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def demo(
    seconds: int, speakers: int, listeners: int, voices: Path | None, output: Path, as_json: bool
) -> None:
    """Run a real server and real clients on this machine, and measure what they see.

    The server, the speakers and the listeners are processes of their own and talk over UDP on
    loopback. While it runs, anybody on this machine can join with the link that it prints.
    """
    try:
        summary = run_demo(seconds, speakers, listeners, voices, output, quiet=as_json)
    except DemoError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(summary))
    else:
        show_summary(summary)


if __name__ == "__main__":
    main()
