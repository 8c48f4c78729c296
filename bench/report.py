"""Everything measured in one run, written down: report.json, report.md and its plots.

The parts are those of the other commands, one after the other in this process, each with a server
of its own.  A part that fails says why in its place, and the rest goes on.  report.json has all the
figures; report.md (bench/markdown.py) and the plots (bench/plots.py) are made from it and from
nothing else, what is aimed at (bench/asked.py) included.
"""

import importlib.util
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from cryptography.hazmat.backends.openssl import backend

from bench import capacity, floor, joins, latency, plots, spaces, tick
from bench.asked import FEW, MANY, NO_PART, Figures, asked, nothing
from bench.markdown import markdown
from bench.peers import run as peers
from bench.process import pinned
from bench.search import TRY_S
from bench.show import json_option
from spaces_server import AGENT

Say = Callable[[str], None]

PARTS = ("floor", "capacity", "spaces", "silent", "joins", "latency", "tick", "peers")
LISTS = ("capacity", "joins", "latency")  # of several runs each
SECONDS, QUICK_SECONDS = 10.0, 2.0
FLOOR_LISTENERS, FLOOR_BYTES = 3_000, 128
JOINS_A_SECOND = 1_100  # some more than asked: the last may be answered when the window is over
FOLDERS = re.compile(r"(?<![\w.…])/[^\s:]+/")


@dataclass(frozen=True, slots=True)
class Audience:
    """One run of `capacity`."""

    listeners: int
    talkers: int = 1
    packet_ms: int = 20
    server_cores: int = 1


AUDIENCES = (
    *(Audience(listeners) for listeners in (FEW, 500, 1_000, 2_000, 3_000)),
    Audience(3_000, talkers=4),
    Audience(MANY, packet_ms=60),
    Audience(MANY, packet_ms=60, server_cores=2),
    Audience(500, talkers=13),
)
QUICK_AUDIENCES = (Audience(50), Audience(FEW))


# -- measuring ------------------------------------------------------------------------------------


def measure(
    parts: Sequence[str], seconds: float, *, quick: bool, say: Say, before: Figures | None = None
) -> Figures:
    """-> everything that report.json holds; keys are stable, see bench/README.md.

    parts: of PARTS; the others' places say that they were left out.  seconds: of each window.
    quick: small numbers, and no searches.  say: told what is going on.  before: an earlier report,
    of which the other parts are kept if it is of the same machine."""
    report: Figures = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "version": AGENT,
        "commit": _commit(),
        "quick": quick,
        "seconds": seconds,
        "machine": _machine(),
        "parts": {},
    }
    same = before is not None and all(before[key] == report[key] for key in ("machine", "quick"))
    kept = before if before is not None and same else {}
    known = kept.get("parts", {})
    this_run = {key: report[key] for key in ("date", "commit", "seconds")}
    measures = {**_lists(quick, seconds, say), **_singles(quick, seconds, say)}
    for part in PARTS:
        if part in parts:
            report["parts"][part] = this_run
            report[part] = measures[part]()
        elif part in known:
            report["parts"][part] = known[part]
            report[part] = kept[part]
        else:
            report[part] = [] if part in LISTS else nothing(NO_PART)
    report["asked"] = [figure.row() for figure in asked(report)]
    whole: Figures = without_folders(report)
    return whole


def _singles(quick: bool, seconds: float, say: Say) -> dict[str, Callable[[], Figures]]:
    measures: dict[str, Callable[[], Figures]] = {
        "floor": lambda: floor.measure(FLOOR_LISTENERS, FLOOR_BYTES, seconds),
        "spaces": lambda: (
            spaces.measure(5, seconds)
            if quick
            else spaces.find(spaces.TALKING_SPACES, min(seconds, TRY_S))
        ),
        "silent": lambda: spaces.measure_silent(10 if quick else spaces.SILENT_SPACES, seconds),
        "tick": lambda: tick.measure(0.1 if quick else 1.0),
        "peers": lambda: peers.measure(seconds=seconds, find=not quick, say=say),
    }
    return {part: partial(attempt, part, measure, say) for part, measure in measures.items()}


def _lists(quick: bool, seconds: float, say: Say) -> dict[str, Callable[[], list[Figures]]]:
    """Parts of several runs."""
    audiences = QUICK_AUDIENCES if quick else AUDIENCES
    storms = ((50, 100),) if quick else ((FEW, JOINS_A_SECOND), (1_000, JOINS_A_SECOND))
    return {
        "capacity": lambda: [_audience(audience, seconds, say) for audience in audiences],
        "joins": lambda: [_storm(*storm, seconds, say) for storm in storms],
        "latency": lambda: [_delay(seconds, low, say) for low in (False, True)],
    }


def attempt(name: str, part: Callable[[], Figures], say: Say) -> Figures:
    """-> its figures, or {"valid": False, "reason": ...}."""
    say(name)
    try:
        return part()
    except Exception as error:  # whatever it was: what else was measured must not be lost with it
        say(f"    {error}")
        return nothing(f"{error or type(error).__name__}")


def without_folders(value: Any) -> Any:
    """The same figures; of a path in what some program said, only the last name is left: where
    things are on this machine is nobody's business."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    return FOLDERS.sub("…/", value) if isinstance(value, str) else value


def _audience(audience: Audience, seconds: float, say: Say) -> Figures:
    listeners, talkers, packet_ms = audience.listeners, audience.talkers, audience.packet_ms
    cores = audience.server_cores
    name = f"capacity: {listeners} listeners, {talkers} talking, {packet_ms} ms, {cores} core(s)"
    who = {"listeners": listeners, "talkers": talkers}
    how = {"packet_ms": packet_ms, "server_cores": cores}

    def measured() -> Figures:
        return capacity.measure(
            listeners, talkers, seconds, packet_ms=packet_ms, server_cores=cores
        )

    return who | how | attempt(name, measured, say)


def _storm(listeners: int, rate: float, seconds: float, say: Say) -> Figures:
    def measured() -> Figures:
        return joins.measure(listeners, rate, seconds)

    name = f"joins: {rate:g} a second, while {listeners} listen"
    return {"listeners": listeners, "rate": rate} | attempt(name, measured, say)


def _delay(seconds: float, low_delay: bool, say: Say) -> Figures:
    def measured() -> Figures:
        return latency.measure(seconds=seconds, low_delay=low_delay)

    frame_ms = 10 if low_delay else 20
    return {"frame_ms": frame_ms} | attempt(f"latency: frames of {frame_ms} ms", measured, say)


def _commit() -> str | None:
    """Of the working copy that this runs from, with -dirty if that has been changed; None if it
    is none."""
    folder = Path(__file__).parent
    answers = []
    for command in (("ls-files", "--error-unmatch", "cli.py"), ("describe", "--always", "--dirty")):
        try:
            done = subprocess.run(
                ["git", *command], cwd=folder, capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        answers.append(done.stdout.strip() if done.returncode == 0 else "")
    return answers[-1] if all(answers) else None


def _machine() -> Figures:
    with pinned(None):
        first = os.sched_getscheduler(0) == os.SCHED_RR
    return {
        **floor.machine(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "openssl": backend.openssl_version_text(),
        "numpy": np.__version__,
        "real_time_priority": first,
    }


# -- the command ----------------------------------------------------------------------------------


def write(report: Figures, folder: Path) -> None:
    """Writes report.json, report.md and the plots.  Raises OSError."""
    report["plots"] = plots.draw(report, folder)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(report))


def _before(folder: Path) -> Figures | None:
    """The report that stands there."""
    file = folder / "report.json"
    try:
        report: Figures | None = json.loads(file.read_text()) if file.exists() else None
    except ValueError as error:
        raise click.ClickException(f"{file} is there and is no report: {error}") from error
    return report


@click.command("report")
@click.option(
    "--output",
    "folder",
    default="results",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for report.json, report.md and the plots.",
)
@click.option("--quick", is_flag=True, help="Small numbers and no searches; that says little.")
@click.option(
    "--peers/--no-peers", "with_peers", default=True, show_default=True, help="Other servers too."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.5, 600),
    help=f"Of each window.  [default: {SECONDS:g}; with --quick {QUICK_SECONDS:g}]",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(PARTS),
    help="Only this; may be given several times. What else the folder has of this machine is kept.",
)
@json_option
def command(
    folder: Path,
    quick: bool,
    with_peers: bool,
    seconds: float | None,
    parts: tuple[str, ...],
    as_json: bool,
) -> None:
    """All of it in one run, as JSON, as Markdown, and as plots.

    \b
    spaces-bench report
    spaces-bench report --output bench/results --part joins
    spaces-bench report --output /tmp/results --quick --no-peers
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("the plots need matplotlib: pip install 'spaces[report]'")
    chosen = [part for part in parts or PARTS if with_peers or part != "peers"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report = measure(
            chosen,
            seconds or (QUICK_SECONDS if quick else SECONDS),
            quick=quick,
            say=lambda line: click.echo(line, err=True),
            before=_before(folder) if parts or not with_peers else None,
        )
        write(report, folder)
    except OSError as error:
        raise click.ClickException(f"the report cannot be written: {error}") from error
    click.echo(json.dumps(report) if as_json else folder / "report.md")
