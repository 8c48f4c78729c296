"""The demo: a real server, real speakers and real listeners, each in a process of its own.

    spaces-server run ──link──> spaces crowd --speakers 3       opens the space, measures delay
                                    └─link──> spaces crowd --listeners 50    counts, records

What the server did is its own word (`--stats`) except for its CPU time, which the operating system
counts; loss and delay are what the clients saw.
"""

import json
import os
import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from spaces_server.child import ENDING_S, Child, ChildError

STARTUP_S = 20.0
STAGE_S = 3_600  # at most; the speakers are stopped when the listeners have done


def run_demo(
    seconds: int, speakers: int, listeners: int, voices: Path | None, output: Path, *, quiet: bool
) -> dict[str, Any]:
    """-> the summary, keys as the README lists them.  quiet: show no progress.
    Raises ChildError."""
    console = Console(stderr=True, quiet=quiet)
    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the children are to end too
            before = signal.signal(number, signal.default_int_handler)
            stack.callback(signal.signal, number, before)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stats_file = folder / "stats.json"
        server = Child(
            stack, "the server", "spaces_server", "run",
            port=0, public_host="127.0.0.1", data=folder / "data", stats=stats_file, qr=False,
            rate_limits=False,  # everyone comes from one address
        )  # fmt: skip
        # The clients' programs start along with the server, and wait for a link: what it takes to
        # start them is not to weigh on the ticks that are measured.
        stage = Child(
            stack, "the speakers", "spaces_client", "crowd", "-",
            speakers=speakers, listeners=0, seconds=STAGE_S, voices=voices, wait_for=listeners,
        )  # fmt: skip
        audience = Child(
            stack, "the listeners", "spaces_client", "crowd", "-",
            speakers=0, listeners=listeners, seconds=seconds, record=output,
        )  # fmt: skip
        server_started = time.monotonic()
        link = server.line(STARTUP_S)
        if link is None:
            raise ChildError(f"the server did not start: {server.last_error()}")
        stage.tell(link)
        joined = stage.event("joined", STARTUP_S)
        invitation = f"{speakers} speak; join with:  spaces join '{joined['link']}'"
        console.print(invitation, soft_wrap=True, highlight=False)
        audience.tell(joined["link"])
        heard = _watch(audience, [server, stage], seconds, listeners, console)
        crowd_cpu_s = audience.stop() + stage.stop()
        said = stage.event("summary", ENDING_S)
        server.check()
        server_cpu_s = server.stop()
        server_s = time.monotonic() - server_started
        stats = json.loads(stats_file.read_text())
    cpu = {"server_cpu": server_cpu_s / server_s, "clients_cpu": crowd_cpu_s / server_s}
    return _summary(seconds, joined["link"], output, stats, said, heard) | cpu


def _watch(
    audience: Child, others: list[Child], seconds: int, listeners: int, console: Console
) -> dict[str, Any]:
    """Shows progress until the audience's summary is there."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[packets]:,} packets"),
    )
    audience.event("joined", STARTUP_S)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{listeners} listen", total=seconds, packets=0)
        while (line := audience.line(ENDING_S)) is not None:
            for other in others:
                other.check()
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "summary":
                progress.update(task, completed=seconds)
                return event
            progress.update(task, completed=event["seconds"], packets=event["packets"])
    raise ChildError(f"the listeners failed: {audience.last_error()}")


def _summary(
    seconds: int,
    link: str,
    output: Path,
    stats: dict[str, Any],
    said: dict[str, Any],
    heard: dict[str, Any],
) -> dict[str, Any]:
    seen = heard["listeners"]
    received = [one["received"] for one in seen]
    return {
        "seconds": seconds,
        "speakers": len(said["speakers"]),
        "listeners": len(seen),
        "packets_per_listener": {
            "min": min(received),
            "mean": sum(received) / len(received),
            "max": max(received),
        },
        "packets_lost": sum(one["lost"] for one in seen),
        "concealed_ms_per_listener": sum(one["concealed_ms"] for one in seen) / len(seen),
        "server_added_delay_ms": said["server_added_delay_ms"],
        "tick_lateness_ms": stats["tick_lateness_ms"],
        "ticks_skipped": stats["ticks_skipped"],
        "encodes_per_busy_tick": stats["encodes_per_busy_tick"],
        "cores": os.cpu_count(),
        "not_taken_by_kernel": stats["datagrams_not_taken_by_kernel"],
        "per_listener": seen,
        "recording": str(output),
        "link": link,
    }


def show_summary(summary: dict[str, Any]) -> None:
    """Prints the summary for a person."""
    packets = summary["packets_per_listener"]
    delay = summary["server_added_delay_ms"]
    late = summary["tick_lateness_ms"]
    table = Table(show_header=False, box=None, padding=(0, 2))
    rows = [
        ("people", f"{summary['speakers']} speakers, {summary['listeners']} listeners"),
        (
            "packets a listener",
            f"{packets['mean']:.0f} ({packets['min']} to {packets['max']}), "
            f"{summary['packets_lost']} lost in all",
        ),
        ("concealed a listener", f"{summary['concealed_ms_per_listener']:.0f} ms"),
        (
            "server-added delay",
            "nobody spoke"
            if delay is None
            else f"mean {delay['mean']:.1f} ms, p50 {delay['p50']:.1f}, p99 {delay['p99']:.1f}",
        ),
        (
            "tick lateness",
            f"p50 {late['p50']:.2f} ms, p99 {late['p99']:.2f}, max {late['max']:.2f}",
        ),
        ("encodes a tick", f"{summary['encodes_per_busy_tick']:.2f} while anybody speaks"),
        (
            "CPU",
            f"server {summary['server_cpu']:.1%} of a core, "
            f"clients {summary['clients_cpu']:.1%} ({summary['cores']} cores here)",
        ),
        ("one listener heard", summary["recording"]),
    ]
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)
