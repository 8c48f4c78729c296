"""Everything measured in one run, written down: report.json, report.md and its plots.

The parts are those of the other commands, one after the other in this process, each with a server
of its own.  A part that fails says why in its place, and the rest goes on.  report.json has all the
figures; report.md and the plots (bench/plots.py) are made from it and from nothing else.
"""

import importlib.util
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from cryptography.hazmat.backends.openssl import backend

from bench import capacity, floor, joins, latency, plots, spaces, tick
from bench.peers import run as peers
from bench.process import pinned
from bench.search import TRY_S
from spaces_server import AGENT

Figures = dict[str, Any]
Say = Callable[[str], None]

PARTS = ("floor", "capacity", "spaces", "silent", "joins", "latency", "tick", "peers")
SECONDS, QUICK_SECONDS = 10.0, 2.0
FLOOR_LISTENERS, FLOOR_BYTES = 3_000, 128
FEW, MANY = 100, 10_000  # listeners whose codec cost is to be the same
JOINS_A_SECOND = 1_050  # some more than asked: the last may be answered when the window is over
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


def measure(parts: Sequence[str], seconds: float, *, quick: bool, say: Say) -> Figures:
    """-> everything that report.json holds; keys are stable, see bench/README.md.

    parts: of PARTS; the others' places say that they were left out.  seconds: of each window.
    quick: small numbers, and no searches.  say: told what is going on."""
    report: Figures = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "version": AGENT,
        "commit": _commit(),
        "quick": quick,
        "seconds": seconds,
        "machine": _machine(),
    }
    audiences = QUICK_AUDIENCES if quick else AUDIENCES
    storm = (50, 100) if quick else (1_000, JOINS_A_SECOND)
    measures: dict[str, Callable[[], Any]] = {
        "floor": lambda: floor.measure(FLOOR_LISTENERS, FLOOR_BYTES, seconds),
        "spaces": lambda: (
            spaces.measure(5, seconds)
            if quick
            else spaces.find(spaces.TALKING_SPACES, min(seconds, TRY_S))
        ),
        "silent": lambda: spaces.measure_silent(10 if quick else spaces.SILENT_SPACES, seconds),
        "joins": lambda: joins.measure(*storm, seconds),
        "latency": lambda: latency.measure(3, 5 if quick else 10, seconds),
        "tick": lambda: tick.measure(0.1 if quick else 1.0),
        "peers": lambda: peers.measure(seconds=seconds, find=not quick, say=say),
    }
    for part in PARTS:
        if part not in parts:
            report[part] = [] if part == "capacity" else _nothing("not part of this run")
        elif part == "capacity":
            report[part] = [_audience(audience, seconds, say) for audience in audiences]
        else:
            report[part] = attempt(part, measures[part], say)
    report["asked"] = [figure.row() for figure in _asked(report)]
    whole: Figures = without_folders(report)
    return whole


def attempt(name: str, part: Callable[[], Figures], say: Say) -> Figures:
    """-> its figures, or {"valid": False, "reason": ...}."""
    say(name)
    try:
        return part()
    except Exception as error:  # whatever it was: what else was measured must not be lost with it
        say(f"    {error}")
        return _nothing(f"{error or type(error).__name__}")


def without_folders(value: Any) -> Any:
    """The same figures; of a path in what some program said, only the last name is left: where
    things are on this machine is nobody's business."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    return FOLDERS.sub("…/", value) if isinstance(value, str) else value


def _nothing(reason: str) -> Figures:
    return {"valid": False, "reason": reason}


def _audience(audience: Audience, seconds: float, say: Say) -> Figures:
    listeners, talkers, packet_ms = audience.listeners, audience.talkers, audience.packet_ms
    cores = audience.server_cores
    name = f"capacity: {listeners} listeners, {talkers} talking, {packet_ms} ms, {cores} core(s)"
    asked = {"listeners": listeners, "talkers": talkers}
    how = {"packet_ms": packet_ms, "server_cores": cores}

    def measured() -> Figures:
        return capacity.measure(
            listeners, talkers, seconds, packet_ms=packet_ms, server_cores=cores
        )

    return asked | how | attempt(name, measured, say)


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


# -- what was asked -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """One figure that is aimed at.  measured_in: the figures of one part; key: which of them, with
    the key within it after a blank.  sign, limit and unit: < 0.1 %; scale: from the key's unit."""

    what: str
    measured_in: Figures
    key: str
    sign: str
    limit: float
    unit: str = ""
    scale: float = 1.0

    def row(self) -> Figures:
        figures = self.measured_in
        value: Any = figures
        for key in self.key.split():
            value = value.get(key) if isinstance(value, dict) else None
        measured = None if value is None else round(float(value) * self.scale, 6)
        valid = measured is not None and bool(figures.get("valid", True))
        reason = figures.get("reason") or ("" if valid else "there is no such figure in this run")
        return {
            "what": self.what,
            "sign": self.sign,
            "limit": self.limit,
            "unit": self.unit,
            "measured": measured,
            "met": _met(measured, self.sign, self.limit) if valid else None,
            "valid": valid,
            "reason": reason,
        }


def _met(measured: float | None, sign: str, limit: float) -> bool | None:
    if measured is None:
        return None
    return {
        "<=": measured <= limit,
        "<": measured < limit,
        ">=": measured >= limit,
        ">": measured > limit,
    }[sign]


def _asked(report: Figures) -> Iterator[Asked]:
    def at(listeners: int, talkers: int = 1, packet_ms: int = 20, cores: int = 1) -> Figures:
        wanted = {"listeners": listeners, "talkers": talkers}
        wanted |= {"packet_ms": packet_ms, "server_cores": cores}
        found = (row for row in report["capacity"] if wanted.items() <= row.items())
        return next(found, _nothing("not part of this run"))

    def beside(peer: str, talkers: int) -> Figures:
        rows = report["peers"].get("rows", ())
        found = (row for row in rows if (row["peer"], row["talkers"]) == (peer, talkers))
        return next(found, _nothing(report["peers"].get("reason", "not part of this run")))

    late, lost, share = "tick_lateness_ms p99", "loss", 100.0
    for listeners in (2_000, 3_000):
        what = f"CPU a packet, times the floor: {listeners:,} listeners, 1 talker, 20 ms"
        yield Asked(what, at(listeners), "ratio_to_floor", "<=", 1.6)
    for peer, talkers, sign, times in (
        ("mumble", 1, ">=", 3),
        ("mumble", 4, ">=", 9),
        ("janus-srtp", 1, ">=", 4),
        ("janus-forward", 1, ">", 1),
        ("janus-audiobridge", 1, ">=", 40),
    ):
        what = f"listeners a core, times those of {peer}: {talkers} talking"
        row = beside(peer, talkers)
        yield Asked(f"{what}, 20 ms packets", row, "times_fewer", sign, times)
        yield Asked(f"{what}, as a crowd", row, "times_fewer_in_crowd", sign, times)
    few, many = at(FEW), at(MANY, packet_ms=60, cores=2)
    what = f"encodes a tick with {MANY:,} listeners, no more than with {FEW:,}"
    codec = many if "encodes_per_tick" in few else few
    limit = round(few.get("encodes_per_tick", 1.0), 2)
    yield Asked(what, codec, "encodes_per_tick", "<=", limit)
    what = f"{MANY:,} listeners, 60 ms packets, two cores shared with the generator"
    yield Asked(f"{what}: loss", many, lost, "<", 0.1, "%", share)
    yield Asked(f"{what}: tick lateness p99", many, late, "<", 5, "ms")
    yield Asked(
        f"{what}: memory for each", many, "rss_bytes_per_listener", "<=", 12 * 1024, "bytes"
    )
    stage = at(500, talkers=13)
    yield Asked("13 talk, 500 listen: encodes a tick", stage, "encodes_per_tick", "<=", 14)
    yield Asked("13 talk, 500 listen: tick lateness p99", stage, late, "<", 5, "ms")
    silent, storm = report["silent"], report["joins"]
    if report["quick"]:  # so few say nothing about as many as are asked for
        silent = storm = _nothing("not part of a quick run")
    what = f"{spaces.SILENT_SPACES:,} silent spaces of {spaces.PEOPLE}"
    yield Asked(f"{what}: encodes", silent, "encodes", "<=", 0)
    yield Asked(f"{what}: audio packets", silent, "audio_packets", "<=", 0)
    what = f"{what}: CPU of a core, beyond keep-alives"
    yield Asked(what, silent, "cpu_share", "<", 0.05, "%", share)
    yield Asked("joins a second", storm, "joins_per_second", ">=", 1_000)
    yield Asked("joins: extra loss of those who listen", storm, "extra_loss", "<", 0.1, "%", share)


# -- Markdown -------------------------------------------------------------------------------------

Rows = list[list[Any]]
CAPTIONS = {
    "cpu.png": "CPU against listeners",
    "delay.png": "Delay distribution",
    "lateness.png": "Tick lateness",
    "tick.png": "Where a tick's time goes",
}
UNLIKE = {"<=": "≤", ">=": "≥"}


def markdown(report: Figures) -> str:
    """report: what report.json holds, with `plots`, the names of the PNG files."""
    machine = report["machine"]
    lines = [
        "# What it costs: a report",
        "",
        f"{report['version']}, commit {report['commit'] or 'unknown'}, {report['date']}."
        f" Windows of {_text(report['seconds'])} s."
        + (" A quick run: small numbers, which say little." if report["quick"] else ""),
        "",
        "Made by `spaces-bench report`; `bench/README.md` says how each figure is measured. CPU is"
        " what the operating system counts, as a share of one core. A figure marked *invalid* says"
        " nothing about the server; the reason stands with it.",
        "",
        *_table(["machine", ""], [[key.replace("_", " "), machine[key]] for key in machine]),
        "## Asked and measured",
        "",
        *_table(
            ["figure", "asked", "measured", "met"], [_asked_row(row) for row in report["asked"]]
        ),
        "## One space, by its listeners",
        "",
        *_plot(report, "cpu.png"),
        *_capacity(report["capacity"]),
        *_plot(report, "lateness.png"),
        "## The floor",
        "",
        *_pairs(report["floor"], leave_out=("machine",)),
        "## Where a tick's time goes",
        "",
        *_plot(report, "tick.png"),
        *_phases(report["tick"]),
        "## Delay",
        "",
        *_plot(report, "delay.png"),
        *_delays(report["latency"]),
        "## Many small spaces",
        "",
        *_pairs(report["spaces"]),
        "## Many silent spaces",
        "",
        *_pairs(report["silent"]),
        "## A storm of newcomers",
        "",
        *_pairs(report["joins"]),
        "## Other servers",
        "",
        *_peers(report["peers"]),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _text(value: Any) -> str:
    match value:
        case None | "":
            return "–"
        case bool():
            return "yes" if value else "no"
        case float() if value != int(value) or abs(value) < 10:
            return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
        case int() | float():
            return f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Rows) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(_text, row))} |" for row in rows), ""]


def _plot(report: Figures, name: str) -> list[str]:
    return [f"![{CAPTIONS[name]}]({name})", ""] if name in report["plots"] else []


def _invalid(figures: Figures) -> str:
    return "" if figures.get("valid", True) else f"invalid: {figures['reason']}"


def _asked_row(row: Figures) -> list[Any]:
    measured = f"{_text(row['measured'])} {row['unit']}" if row["measured"] is not None else ""
    limit = f"{UNLIKE.get(row['sign'], row['sign'])} {_text(row['limit'])} {row['unit']}"
    met = row["met"] if row["valid"] else _invalid(row)
    if row["measured"] is None:
        met = f"not measured: {row['reason']}"
    return [row["what"], limit.strip(), measured.strip(), met]


def _pairs(figures: Figures, leave_out: Sequence[str] = ()) -> list[str]:
    rows: Rows = []
    for key, value in figures.items():
        if isinstance(value, dict) and key not in leave_out:
            rows += [[f"{key} {inner}".replace("_", " "), value[inner]] for inner in value]
        elif key not in leave_out:
            rows.append([key.replace("_", " "), value])
    return _table(["figure", "value"], rows)


def _capacity(rows: list[Figures]) -> list[str]:
    if not rows:
        return ["Not part of this run.", ""]
    keys = (
        *("listeners", "talkers", "packet_ms", "server_cores", "server_cpu", "cpu_us_per_packet"),
        *("floor_us_per_packet", "ratio_to_floor", "loss", "encodes_per_tick"),
        *("rss_bytes_per_listener", "generator_cpu"),
    )
    head = (
        *(
            "listen",
            "talk",
            "packet ms",
            "server's cores",
            "CPU, cores",
            "CPU µs a packet",
            "floor µs",
            "times floor",
        ),
        *(
            "loss",
            "encodes a tick",
            "RSS bytes each",
            "generator",
            "late p50, p99, max ms",
            "remark",
        ),
    )
    found = []
    for row in rows:
        late = row.get("tick_lateness_ms", {})
        cells = [row.get(key) for key in keys]
        found.append([*cells, ", ".join(map(_text, late.values())), _invalid(row)])
    return _table(head, found)


def _phases(figures: Figures) -> list[str]:
    if "phases" not in figures:
        return [f"{_invalid(figures)}.", ""]
    rows: Rows = [
        [name.replace("_", " "), phase["median_us"], phase["iqr_us"], phase["rounds"]]
        for name, phase in figures["phases"].items()
    ]
    return [
        f"`seal` and `send` are {_text(figures['listeners'])} datagrams; `node tick` is all of a"
        f" tick but the sends, for {_text(figures['talkers'])} who talk and"
        f" {_text(figures['listeners'])} who listen, `crowd tick` the same in packets of 60 ms."
        " `plan` is made anew only when something changes; `decode` and `encode` are one each.",
        "",
        *_table(["phase", "median µs", "IQR µs", "rounds"], rows),
    ]


def _delays(figures: Figures) -> list[str]:
    names = {"server_added_ms": "added by the server", "mouth_to_ear_ms": "from mouth to ear"}
    keys = ("packets", "mean", "p50", "p90", "p99", "max")
    rows: Rows = [
        [name, *(figures[key].get(one) for one in keys)]
        for key, name in names.items()
        if key in figures
    ]
    if not rows:
        return [f"{_invalid(figures)}.", ""]
    return [
        f"{figures['speakers']} speak, {figures['listeners']} listen. The codecs' look-ahead,"
        f" {_text(figures['codec_lookahead_ms'])} ms, is part of what is between mouth and ear.",
        "",
        *_table(["delay, ms", *keys], rows),
    ]


def _peers(figures: Figures) -> list[str]:
    if "rows" not in figures:
        return [f"{_invalid(figures)}.", ""]
    keys = (
        *("peer", "version", "mixes", "encrypted", "talkers", "listeners", "server_cpu"),
        *("cpu_us_per_listener_tick", "delay_ms", "loss"),
        *("times_fewer", "times_fewer_in_crowd"),
    )
    head = (
        *("server", "version", "mixes", "seals", "talk", "listen", "CPU, cores"),
        *("CPU µs for 20 ms of one listener", "delay ms", "loss", "times fewer", "remark"),
    )
    rows: Rows = [
        [*(row[key] for key in keys), _invalid(row) or row["stopped_by"]] for row in figures["rows"]
    ]
    return _table(head, rows)


# -- the command ----------------------------------------------------------------------------------


def write(report: Figures, folder: Path) -> None:
    """Writes report.json, report.md and the plots.  Raises OSError."""
    report["plots"] = plots.draw(report, folder)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(report))


@click.command("report")
@click.option(
    "--output",
    "folder",
    required=True,
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
    help="Only this; may be given several times.",
)
def command(
    folder: Path, quick: bool, with_peers: bool, seconds: float | None, parts: tuple[str, ...]
) -> None:
    """All of it in one run, as JSON, as Markdown, and as plots.

    \b
    spaces-bench report --output bench/results
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
        )
        write(report, folder)
    except OSError as error:
        raise click.ClickException(f"the report cannot be written: {error}") from error
    click.echo(folder / "report.md")
