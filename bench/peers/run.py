"""Other servers beside ours, in one run on one machine: how many listeners does a core carry?

Every server gets the same core and the same speech, and its listeners are counted in the same way.
For each the largest audience is searched of which less than 0.5 % of the packets are lost, each of
them measured for as long as is asked (bench/search.py).  `floor` is
what the kernel asks for our server's datagrams, sent from a prebuilt table without sealing or
anything else (bench/floor.py).

Keys of a row, all of them in every row (null where there is no such figure):

    peer, version           which server; of `floor`, the system
    encrypted, mixes        whether each listener's packets are sealed, and carry all the talkers
    talkers
    listeners               the largest audience that loses less than 0.5 %
    stopped_by              what went wrong with the next larger one
    seconds, expected, delivered, loss
    cpu_us_per_packet       the server's CPU, as the system says, by packets delivered
    cpu_us_per_listener_tick    the same for 20 ms of all that one listener gets: a relay sends
                            a packet for each talker then, Jamulus sends frames of 2.67 ms
    server_cpu              share of its core
    delay_ms                from a talker's packet to the first that carries it, of those that came
                            to a few listeners (median)
    times_fewer             our listeners by this server's, both in packets of 20 ms
    times_fewer_in_crowd    the same with ours as a crowd, whose listeners get 60 ms in one datagram
                            (row `spaces-crowd`); by default so in spaces of more than 1,000
    generator_busy, generator_lateness_ms   share of the time in which it did not rest; its own
                            packets' p99
    valid, reason           false where nobody was carried, and why
"""

import functools
import gc
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench import capacity
from bench.audience import AudienceError
from bench.floor import machine
from bench.peers import janus
from bench.peers.jamulus import MOST_CLIENTS, Jamulus
from bench.peers.mumble import Mumble
from bench.process import ProcessError, without_collector
from bench.search import attempts
from bench.search import find as search_most
from bench.show import json_option
from bench.speech import encode_speech
from spaces_client.audio import AudioError
from spaces_server import AGENT

TICKS_A_SECOND = 50
# With what a try may fail.
ERRORS = (ProcessError, janus.JanusError, AudienceError, OSError)

OURS, OURS_IN_CROWD, FLOOR = "spaces", "spaces-crowd", "floor"
KEYS = (
    *("peer", "version", "encrypted", "mixes", "talkers", "listeners", "stopped_by"),
    *("seconds", "expected", "delivered", "loss", "cpu_us_per_packet"),
    *("cpu_us_per_listener_tick", "server_cpu", "delay_ms"),
    *("times_fewer", "times_fewer_in_crowd"),
    *("generator_busy", "generator_lateness_ms", "valid", "reason"),
)

Figures = dict[str, Any]
Speech = Sequence[Sequence[bytes]]


class Peer(Protocol):
    """A server that can be measured."""

    @property
    def name(self) -> str: ...

    def missing(self) -> str | None:
        """Why it cannot be measured here; None if it can."""

    def measure(self, listeners: int, talkers: int, seconds: float, speech: Speech) -> Figures:
        """speech: each talker's Opus packets of 20 ms, said again and again."""


@dataclass(frozen=True)
class Ours:
    """This project's server; its talkers read the speech from the folder."""

    folder: Path | None
    packet_ms: int = 20

    @property
    def name(self) -> str:
        return OURS if self.packet_ms == 20 else OURS_IN_CROWD

    def missing(self) -> str | None:
        return None

    def measure(self, listeners: int, talkers: int, seconds: float, speech: Speech) -> Figures:
        figures = capacity.measure(
            listeners, talkers, seconds, packet_ms=self.packet_ms, speech=self.folder
        )
        listener_ticks = listeners * figures["seconds"] * TICKS_A_SECOND
        cpu_us = 1e6 * figures["server_cpu"] * figures["seconds"]
        return {
            **figures,
            "peer": self.name,
            "version": AGENT,
            "encrypted": True,
            "mixes": True,
            "cpu_us_per_listener_tick": cpu_us / listener_ticks,
            "generator_busy": figures["generator_cpu"],
            "generator_lateness_ms": figures["generator_lateness_ms"]["p99"],
        }


@dataclass(frozen=True)
class Candidate:
    """A server, and where the search begins: about what a core carried elsewhere, with one talker
    and with several.  most: people it has room for.

    Mumble begins with somewhat more: it tells everybody of everybody who comes, so that a try of
    twice the size takes four times as long, and the search goes down cheaper than up.
    """

    peer: Peer
    one: int
    several: int
    most: int = 50_000


def candidates(folder: Path | None = None) -> list[Candidate]:
    """folder: of WAV files, for our server's talkers."""
    audiobridge, forward, srtp = janus.PEERS
    return [
        Candidate(Ours(folder), 3_000, 2_500),
        Candidate(Ours(folder, 60), 8_000, 7_000),
        Candidate(forward, 3_600, 3_000),
        Candidate(Mumble(), 1_800, 540),
        Candidate(srtp, 1_000, 900),
        Candidate(audiobridge, 90, 85),
        Candidate(Jamulus(), 66, 50, MOST_CLIENTS),
    ]


def measure(
    talkers: Sequence[int] = (1, 4),
    seconds: float = 10.0,
    *,
    find: bool = True,
    names: Iterable[str] = (),
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Figures:
    """-> {"machine": ..., "rows": [...]}, see above.

    find: search the largest audience; without it, that which the search would begin with is
    measured.  names: of the servers; all of them if there are none.  folder: of WAV files to talk
    with.  say: told what is going on.  Raises AudioError.
    """
    names = set(names)
    chosen = [one for one in candidates(folder) if not names or one.peer.name in names]
    rows: list[Figures] = []
    for count in talkers:
        speech = functools.cache(functools.partial(encode_speech, count, folder))
        first = len(rows)
        for candidate in chosen:
            rows.append(figures := _measure(candidate, count, seconds, speech, find, say))
            if "floor_us_per_packet" in figures:
                rows.append(_floor(figures))
        if find:
            _compare(rows[first:])
    return {"machine": machine(), "rows": [{key: row.get(key) for key in KEYS} for row in rows]}


def _compare(rows: list[Figures]) -> None:
    """Writes into the rows of one number of talkers how many times fewer listeners each has."""
    carried = [row for row in rows if row["valid"] and row["peer"] != FLOOR]
    for key, name in (("times_fewer", OURS), ("times_fewer_in_crowd", OURS_IN_CROWD)):
        ours = next((row["listeners"] for row in carried if row["peer"] == name), None)
        for row in carried if ours else ():
            row[key] = ours / row["listeners"]


def _measure(
    candidate: Candidate,
    talkers: int,
    seconds: float,
    speech: Callable[[], Speech],
    find: bool,
    say: Callable[[str], None],
) -> Figures:
    peer = candidate.peer
    most = candidate.most - talkers
    listeners = min(most, candidate.one if talkers == 1 else candidate.several)
    nothing = {"peer": peer.name, "talkers": talkers, "valid": False}
    if (why := peer.missing()) is not None:
        say(f"{peer.name}: {why}")
        return {**nothing, "reason": why}

    def measured(listeners: int) -> Figures:
        gc.collect()
        with without_collector():
            return peer.measure(listeners, talkers, seconds, speech())

    def told(listeners: int, line: str) -> None:
        say(f"{peer.name}, {talkers} talking, {listeners} listeners: {line}")

    if not find:
        figures, trouble = attempts(
            lambda: measured(listeners), ERRORS, lambda line: told(listeners, line)
        )
        return figures or {**nothing, "reason": trouble}
    try:
        figures = search_most(measured, listeners, most, ERRORS, told)
    except AudienceError as error:
        return {**nothing, "reason": str(error)}
    return {**figures, "stopped_by": figures["limit"]}


def _floor(ours: Figures) -> Figures:
    """What the kernel alone takes for what our server sent, measured right after it."""
    cost_us = ours["floor_us_per_packet"]
    return {
        "peer": FLOOR,
        "version": f"{platform.system()} {platform.release()}",
        "encrypted": False,
        "talkers": ours["talkers"],
        "listeners": ours["listeners"],
        "cpu_us_per_packet": cost_us,
        "cpu_us_per_listener_tick": cost_us,
        "valid": ours["valid"],
        "reason": ours["reason"],
    }


def show(figures: Figures) -> None:
    table = Table(title="Listeners that a core carries", title_justify="left", box=SIMPLE_HEAD)
    for name in ("server", "does"):
        table.add_column(name, no_wrap=True)
    for name in ("talk", "listen", "CPU us", "delay ms", "loss", "fewer", "than a crowd"):
        table.add_column(name, justify="right", no_wrap=True)
    remarks = ["CPU: of the server, for 20 ms of all that one listener gets"]
    for row in figures["rows"]:
        table.add_row(
            row["peer"],
            _does(row),
            str(row["talkers"]),
            _number(row["listeners"], ",d"),
            _number(row["cpu_us_per_listener_tick"], ".2f"),
            _number(row["delay_ms"], ".2f"),
            _number(row["loss"], ".2%"),
            _number(row["times_fewer"], ".1f"),
            _number(row["times_fewer_in_crowd"], ".1f"),
        )
        if row["reason"]:
            remarks.append(f"{row['peer']}, {row['talkers']} talking: {row['reason']}")
    console = Console()
    console.print(table)
    for remark in remarks:
        console.print(remark, markup=False, highlight=False)


def _does(row: Figures) -> str:
    if row["mixes"] is None:
        return ""
    return ("mixes" if row["mixes"] else "relays") + (", seals" if row["encrypted"] else "")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


@click.command("peers")
@click.option(
    "--talkers",
    multiple=True,
    type=click.IntRange(1, 13),
    help="How many talk; may be given several times.  [default: 1 and 4]",
)
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(1, 600))
@click.option(
    "--find/--no-find",
    default=True,
    show_default=True,
    help="Search the largest audience of each, or measure one of the usual size.",
)
@click.option(
    "--peer",
    "names",
    multiple=True,
    type=click.Choice([one.peer.name for one in candidates()]),
    help="Only this server; may be given several times.",
)
@click.option(
    "--speech",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of WAV files to talk with.  [default: synthesised voices]",
)
@json_option
def command(
    talkers: tuple[int, ...],
    seconds: float,
    find: bool,
    names: tuple[str, ...],
    folder: Path | None,
    as_json: bool,
) -> None:
    """Other servers beside ours: Janus, Mumble, Jamulus, where they are installed.

    Nothing is installed by this; on Debian: apt install janus mumble-server jamulus

    \b
    spaces-bench peers --json
    spaces-bench peers --talkers 1 --peer spaces --peer mumble
    """
    try:
        figures = measure(
            talkers or (1, 4),
            seconds,
            find=find,
            names=names,
            folder=folder,
            say=lambda line: click.echo(line, err=True),
        )
    except AudioError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(figures))
    else:
        show(figures)
