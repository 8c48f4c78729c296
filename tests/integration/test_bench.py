"""The benchmarks work: what they count, not what they measure."""

import json
import subprocess
import sys
from typing import Any

import pytest

from bench import latency

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
    assert figures["delay_ms"] > 0
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


@pytest.mark.parametrize("frame_ms", [20, 10])
def test_latency(frame_ms: int) -> None:
    options = ("--low-delay",) if frame_ms == 10 else ()
    figures = run("latency", "--speakers", 1, "--listeners", 2, "--seconds", 2, *options)
    assert figures["frame_ms"] == frame_ms
    assert (figures["speakers"], figures["listeners"]) == (1, 2)
    ways = figures["server_added_ms"], figures["mouth_to_ear_ms"]
    for way in ways:
        assert way["packets"] > 0
        assert sum(way["counts"]) == way["packets"]
        assert 0 < way["p50"] <= way["p99"] <= way["max"]
    # Nothing is heard before its frame is full, and two codecs have looked ahead.
    assert ways[1]["p50"] > frame_ms + figures["codec_lookahead_ms"]
    assert figures["generator_cpu"] > 0
    assert figures["valid"] == (figures["reason"] == "")


@pytest.mark.parametrize(
    ("busy", "late_ms", "reason"),
    [
        (0.5, 2.0, ""),
        (0.95, 2.0, "the clients were busy for 95% of the time"),
        (0.5, 84.08, "1 in 100 of the clients' timers was late by 84.1 ms or more"),
    ],
)
def test_clients_that_do_not_keep_up_make_a_delay_invalid(
    busy: float, late_ms: float, reason: str
) -> None:
    assert latency._why_invalid(busy, late_ms) == reason
