"""The benchmarks work: what they count, not what they measure."""

import json
import subprocess
import sys
from typing import Any

import pytest

CAPACITY_KEYS = {
    "listeners", "talkers", "seconds", "expected", "delivered", "loss", "cpu_us_per_packet",
    "floor_us_per_packet", "ratio_to_floor", "server_cpu", "tick_lateness_ms", "encodes_per_tick",
    "rss_bytes_per_listener", "generator_cpu", "generator_lateness_ms", "valid", "reason",
}  # fmt: skip


def run(*arguments: object) -> dict[str, Any]:
    """A process of its own: it takes a core for itself, and comes before others."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli", *map(str, arguments), "--json"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@pytest.mark.parametrize(("talkers", "packet_ms", "seconds"), [(1, 20, 2), (2, 60, 1)])
def test_capacity(talkers: int, packet_ms: int, seconds: int) -> None:
    figures = run(
        *("capacity", "--listeners", 50, "--talkers", talkers),
        *("--seconds", seconds, "--packet-ms", packet_ms),
    )
    assert figures.keys() >= CAPACITY_KEYS
    assert figures["tick_lateness_ms"].keys() == {"p50", "p99", "max"}
    assert (figures["listeners"], figures["talkers"]) == (50, talkers)
    # Where other programs take the machine, ticks are skipped; but all that is sent arrives.
    assert figures["delivered"] > 0
    assert figures["delivered"] + figures["skipped"] == figures["expected"]
    assert figures["duplicates"] == figures["reordered"] == 0
    assert figures["sampled_frames"] > 0
    # One class for the audience, and with two talkers each of them hears the other.
    assert figures["encodes_per_tick"] <= (1 if talkers == 1 else 3)
    assert figures["cpu_us_per_packet"] > 0
    assert figures["ratio_to_floor"] > 0
    assert figures["rss_bytes_per_listener"] > 0
    assert figures["valid"] == (figures["reason"] == "")


def test_floor() -> None:
    figures = run("floor", "--listeners", 100, "--seconds", 0.5)
    assert figures["sendmmsg_us"] > 0
    assert figures["seal_us"] > 0
    assert figures["decode_us"] > 0
    assert set(figures["encode_us"]) == {f"complexity_{c}" for c in (0, 5, 8, 10)}
    assert figures["machine"]["libopus"]
