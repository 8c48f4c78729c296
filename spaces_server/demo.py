"""The demo: a real server, real speakers and real listeners, each in a process of its own.

    spaces-server run ──link──> spaces crowd --speakers 3       opens the space, measures delay
                                    └─link──> spaces crowd --listeners 50    counts, records

What the server did is its own word (`--stats`) except for its CPU time, which the operating system
counts; loss and delay are what the clients saw.
"""

import contextlib
import json
import os
import queue
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

STARTUP_S = 20.0
ENDING_S = 20.0
STAGE_S = 3_600  # at most; the speakers are stopped when the listeners have done


class DemoError(Exception):
    """The demo cannot go on; one line that says why."""


class _Process:
    """A child whose lines of standard output can be waited for."""

    def __init__(self, stack: ExitStack, name: str, *arguments: str, **options: Any) -> None:
        """Starts `python -m ARGUMENTS --OPTIONS`; it ends, at the latest, with the stack."""
        self.name = name
        self._errors = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 (the stack is its context)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments, *_flags(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        self._cpu_s: float | None = None
        stack.callback(self.stop)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                self._lines.put(line.strip())
        self._lines.put(None)

    def tell(self, line: str) -> None:
        """Writes a line to its standard input."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed, and says so itself
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.close()

    def line(self, timeout_s: float) -> str | None:
        """The next line; None at the end.  Raises DemoError if none comes in time."""
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise DemoError(f"{self.name} says nothing for {timeout_s:.0f} s") from None

    def event(self, wanted: str, timeout_s: float) -> dict[str, Any]:
        """The next JSON line that is this event."""
        while (line := self.line(timeout_s)) is not None:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == wanted:
                return event
        raise DemoError(f"{self.name} failed: {self.last_error()}")

    def last_error(self) -> str:
        self._errors.seek(0)
        # The server's log is there as well.
        errors = [line.strip() for line in self._errors if re.match(r"[\w.]*Error: ", line)]
        return errors[-1].removeprefix("Error: ") if errors else "it ended without a word"

    def check(self) -> None:
        """Raises DemoError if it has ended."""
        if self._process.poll() is not None:
            raise DemoError(f"{self.name} failed: {self.last_error()}")

    def stop(self) -> float:
        """Ends it; -> the CPU time it took, s, as the operating system counts it."""
        if self._cpu_s is None:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._reader.join()  # its lines are all there now
            if self._process.stdin is not None:
                self._process.stdin.close()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            self._cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return self._cpu_s


def _flags(options: dict[str, Any]) -> Iterator[str]:
    """stage_size=5 -> --stage-size 5; qr=False -> --no-qr; None is left out."""
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is False:
            yield f"--no-{flag}"
        elif value is not None:
            yield from (f"--{flag}", str(value))


def run_demo(
    seconds: int, speakers: int, listeners: int, voices: Path | None, output: Path, *, quiet: bool
) -> dict[str, Any]:
    """-> the summary, keys as the README lists them.  quiet: show no progress.
    Raises DemoError."""
    console = Console(stderr=True, quiet=quiet)
    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the children are to end too
            before = signal.signal(number, signal.default_int_handler)
            stack.callback(signal.signal, number, before)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stats_file = folder / "stats.json"
        server = _Process(
            stack, "the server", "spaces_server", "run",
            port=0, public_host="127.0.0.1", data=folder / "data", stats=stats_file, qr=False,
        )  # fmt: skip
        # The clients' programs start along with the server, and wait for a link: what it takes to
        # start them is not to weigh on the ticks that are measured.
        stage = _Process(
            stack, "the speakers", "spaces_client", "crowd", "-",
            speakers=speakers, listeners=0, seconds=STAGE_S, voices=voices, wait_for=listeners,
        )  # fmt: skip
        audience = _Process(
            stack, "the listeners", "spaces_client", "crowd", "-",
            speakers=0, listeners=listeners, seconds=seconds, record=output,
        )  # fmt: skip
        server_started = time.monotonic()
        link = server.line(STARTUP_S)
        if link is None:
            raise DemoError(f"the server did not start: {server.last_error()}")
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
    audience: _Process, others: list[_Process], seconds: int, listeners: int, console: Console
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
    raise DemoError(f"the listeners failed: {audience.last_error()}")


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
