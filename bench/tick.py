"""Where a tick's time goes: the phases of bench/test_tick.py, timed by pytest-benchmark.

Each phase is timed alone, in a process on the core that a server would have, over and over; of all
rounds the median counts, which a disturbance now and then does not move.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench.process import ProcessError, cores, pinned
from bench.show import json_option

TESTS = Path(__file__).with_name("test_tick.py")
TIMEOUT_S = 300.0
LAST_WORDS = 3  # lines of what pytest said that go into an error


def measure(seconds: float = 1.0) -> dict[str, Any]:
    """-> {"talkers", "listeners", "phases": {name: {"median_us", "iqr_us", "rounds"}}}; keys are
    stable:

    talkers, listeners    of the space whose ticks are `node_tick` and `crowd_tick`; listeners also:
                          datagrams of `seal` and `send`
    median_us             of all rounds
    iqr_us                the range of the middle half of them
    rounds                how many there were

    seconds: for each phase, about.  Raises ProcessError."""
    for module in ("pytest", "pytest_benchmark"):
        if importlib.util.find_spec(module) is None:
            raise ProcessError(f"{module} is not installed: pip install pytest pytest-benchmark")
    from bench.test_tick import LISTENERS, SPEAKERS  # which imports them as well

    server_core, _ = cores()
    with tempfile.TemporaryDirectory(prefix="spaces-bench-") as folder, pinned(server_core):
        output = Path(folder, "phases.json")
        try:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "pytest", str(TESTS), "-q", "-p", "no:cacheprovider"),
                    *("--benchmark-enable", "--benchmark-disable-gc"),
                    *("--benchmark-max-time", str(seconds), "--benchmark-json", str(output)),
                ],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ProcessError(f"the phases took longer than {TIMEOUT_S:g} s") from None
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip().splitlines()
            raise ProcessError(f"the phases fail: {' / '.join(said[-LAST_WORDS:])}")
        found = json.loads(output.read_text())["benchmarks"]
    return {
        "talkers": SPEAKERS,
        "listeners": LISTENERS,
        "phases": {_name(one): _figures(one) for one in found},
    }


def _name(found: dict[str, Any]) -> str:
    name: str = found["name"]
    return name.removeprefix("test_")


def _figures(found: dict[str, Any]) -> dict[str, Any]:
    stats = found["stats"]
    return {
        "median_us": round(stats["median"] * 1e6, 1),
        "iqr_us": round(stats["iqr"] * 1e6, 1),
        "rounds": stats["rounds"],
    }


@click.command("tick")
@json_option
def command(as_json: bool) -> None:
    """Where a tick's time goes: each phase alone.

    \b
    spaces-bench tick
    """
    try:
        figures = measure()
    except ProcessError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(figures))
        return
    table = Table(title="The phases of a tick", title_justify="left")
    table.add_column("phase")
    for name in ("median us", "iqr us", "rounds"):
        table.add_column(name, justify="right")
    for name, phase in figures["phases"].items():
        table.add_row(
            name.replace("_", " "),
            f"{phase['median_us']:,.1f}",
            f"{phase['iqr_us']:,.1f}",
            f"{phase['rounds']:,}",
        )
    Console().print(table)
