"""`spaces-bench report` writes down what was measured, and nothing else."""

import contextlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import plots, report
from bench.asked import Asked, asked
from bench.markdown import markdown
from bench.peers.run import KEYS, OURS
from bench.process import pinned

PNG = b"\x89PNG"
PHASES = {
    *("decode", "buffer", "levels", "plan", "mix", "encode"),
    *("seal", "send", "node_tick", "crowd_tick"),
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def written(text: str) -> float:
    return float(text.replace(",", ""))


def test_report(tmp_path: Path) -> None:
    """A process of its own: it takes a core for itself, and comes before others."""
    parts = [f"--part={part}" for part in ("capacity", "tick", "peers")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.cli", "report", "--output", str(tmp_path)),
            *("--quick", "--no-peers", "--seconds", "0.5", *parts),
        ],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "report.json").read_text())
    text = (tmp_path / "report.md").read_text()

    assert markdown(figures) == text
    assert str(tmp_path) not in text
    first, second = figures["capacity"]
    assert (first["listeners"], second["listeners"]) == (50, 100)
    rows = [cells(line) for line in text.splitlines()]
    for run in (first, second):
        (row,) = [row for row in rows if row[:3] == [str(run["listeners"]), "1", "20"]]
        assert written(row[5]) == pytest.approx(run["cpu_us_per_packet"], rel=1e-3)
        assert run["delivered"] > 0

    assert figures["tick"]["phases"].keys() == PHASES
    for name, phase in figures["tick"]["phases"].items():
        (row,) = [row for row in rows if row[0] == name.replace("_", " ") and len(row) == 4]
        assert written(row[1]) == pytest.approx(phase["median_us"], rel=1e-3)

    assert figures["peers"] == {"valid": False, "reason": "not part of this run"}
    assert all(row["met"] is None for row in figures["asked"]), "too small to say so"
    assert figures["plots"] == ["cpu.png", "lateness.png", "tick.png"]
    for name in figures["plots"]:
        assert (tmp_path / name).read_bytes().startswith(PNG)
        assert f"({name})" in text


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    figures = report.measure((), 1.0, quick=False, say=print) | {"plots": []}
    late = {"p50": 0.1, "p99": 1.0, "max": 2.0}
    invalid = {"valid": False, "reason": "the generator was busy"}
    figures |= {
        "capacity": [{"listeners": 100, "tick_lateness_ms": late}, {"listeners": 200} | invalid],
        "joins": [{"listeners": 100, "latency_ms": late}, {"listeners": 200} | invalid],
        "latency": [{"frame_ms": 20, "server_added_ms": late}, {"frame_ms": 10} | invalid],
        "spaces": {"spaces": 20, "tick_lateness_ms": late},
        "tick": {
            **{"talkers": 3, "listeners": 1_000},
            "phases": {"mix": {"median_us": 300.0, "iqr_us": 9.0, "rounds": 50}},
        },
        "peers": {
            "rows": [
                dict.fromkeys(KEYS) | {"peer": "mumble", "valid": True, "stopped_by": "1 % lost"},
                dict.fromkeys(KEYS) | {"peer": "jamulus"} | invalid,
            ]
        },
    }
    lines = markdown(figures).splitlines()
    assert sum("invalid: the generator was busy" in line for line in lines) == 4
    tables = 0
    for before, line in pairwise(lines):
        if line.startswith("|"):
            head = cells(before) if before.startswith("|") else cells(line)
            tables += not before.startswith("|")
            assert len(cells(line)) == len(head), line
    assert tables == 10


def test_parts_of_an_earlier_run_are_kept_if_it_is_of_this_machine() -> None:
    def measured(before: dict[str, Any] | None) -> dict[str, Any]:
        return report.measure((), 1.0, quick=False, say=print, before=before)

    earlier = measured(None)
    assert earlier["parts"] == {}
    earlier["date"] = "2001-01-01 00:00 UTC"
    earlier["parts"] = {"silent": {key: earlier[key] for key in ("date", "commit", "seconds")}}
    earlier["silent"] = {"encodes": 0, "audio_packets": 3, "cpu_share": 0.0002}

    later = measured(earlier)
    assert later["silent"] == earlier["silent"]
    assert later["parts"] == earlier["parts"]
    assert [row["met"] for row in later["asked"] if row["measured"] is not None] == [
        *(True, False, True)
    ]
    text = markdown(later | {"plots": []})
    assert "Measured before, on the same machine, and kept: `silent`: 2001-01-01 00:00 UTC" in text

    earlier["machine"]["cpu"] = "another one"
    elsewhere = measured(earlier)
    assert elsewhere["parts"] == {}
    assert elsewhere["silent"] == {"valid": False, "reason": "not part of this run"}


@pytest.mark.parametrize("options", [["--json"], []])
def test_without_a_folder_it_is_written_into_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    figures = report.measure((), 1.0, quick=False, say=print)
    monkeypatch.setattr(report, "measure", lambda *_, **__: figures)
    done = CliRunner().invoke(report.command, options)
    assert done.exit_code == 0, done.output
    report_there = json.loads((tmp_path / "results" / "report.json").read_text())
    assert report_there["asked"] == figures["asked"]
    assert (tmp_path / "results" / "report.md").exists()
    if options:
        assert json.loads(done.stdout) == report_there
    else:
        assert done.stdout == "results/report.md\n"


def test_the_plot_of_cpu_has_only_peers_whose_listeners_were_carried() -> None:
    carried = dict.fromkeys(KEYS) | {"talkers": 1, "valid": True, "loss": 0.004}
    rows = [
        carried | {"peer": "mumble"},
        carried | {"peer": "mumble", "talkers": 4},
        carried | {"peer": "jamulus", "valid": False, "reason": "the generator was busy"},
        carried | {"peer": "janus-srtp", "loss": 0.02},  # with --quick nothing is searched
        dict.fromkeys(KEYS) | {"peer": "janus-forward", "talkers": 1, "valid": False},
        carried | {"peer": OURS},
    ]
    assert plots._largest({"peers": {"rows": rows}}) == rows[:1]
    assert plots._largest({"peers": {"valid": False, "reason": "not part of this run"}}) == []


def test_what_is_no_report_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{")
    done = CliRunner().invoke(report.command, ["--output", str(tmp_path), "--part", "tick"])
    assert done.exit_code == 1
    assert "is no report" in done.output
    assert (tmp_path / "report.json").read_text() == "{"


def run_spaces(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli", "spaces", *arguments, "--json"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_spaces() -> None:
    figures = run_spaces("--spaces", "5", "--seconds", "1")
    assert (figures["spaces"], figures["people"]) == (5, 25)
    # Where other programs take the machine, ticks are skipped; but all that is sent arrives.
    assert figures["delivered"] + figures["skipped"] == figures["expected"] > 0
    assert figures["duplicates"] == figures["reordered"] == 0
    assert figures["sampled_frames"] > 0
    assert 0 < figures["encodes_per_tick"] <= 5, "one class in each"


def test_silent_spaces() -> None:
    figures = run_spaces("--silent", "--spaces", "5", "--seconds", "1")
    assert figures["people"] == 25
    assert figures["encodes"] == figures["audio_packets"] == 0
    assert figures["cpu_share"] >= 0, "a server in which nothing is due sleeps for seconds"
    assert figures["cpu_share_with_keepalives"] > 0
    assert figures["valid"], figures["reason"]


def test_what_fails_is_told_and_the_rest_goes_on() -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("the machine is on fire")

    said: list[str] = []
    figures = report.attempt("joins", fail, said.append)
    assert figures == {"valid": False, "reason": "the machine is on fire"}
    assert said == ["joins", "    the machine is on fire"]


def test_no_folders_of_this_machine() -> None:
    said = "python has ended: File '/home/ada/spaces/cli.py', line 3: 10 / 20 and 1/2 of /tmp"
    (row,) = report.without_folders({"rows": [{"reason": said, "loss": 0.5}]})["rows"]
    assert row["reason"] == said.replace("/home/ada/spaces/", "…/")
    assert row["loss"] == 0.5


@pytest.mark.parametrize(
    ("figures", "met", "measured"),
    [
        ({"loss": 0.0004}, True, 0.04),
        ({"loss": 0.001}, False, 0.1),
        ({"loss": 0.0004, "valid": False, "reason": "too slow"}, None, 0.04),
        ({"valid": False, "reason": "too slow"}, None, None),
    ],
)
def test_asked(figures: dict[str, Any], met: bool | None, measured: float | None) -> None:
    row = Asked("loss", figures, "loss", "<", 0.1, "%", 100).row()
    assert (row["met"], row["measured"]) == (met, measured)
    assert row["reason"] == figures.get("reason", "")


def test_what_is_asked_beside_other_servers_and_of_a_phase() -> None:
    figures = report.measure((), 1.0, quick=False, say=print)
    others = {"mumble": (3, 9), "janus-srtp": (4, 4), "janus-audiobridge": (40, 40)}
    others["janus-forward"] = (1.01, 1.01)
    rows = [
        {"peer": peer, "talkers": talkers, "valid": True, "reason": ""}
        | {"times_fewer": enough, "times_fewer_in_crowd": enough / 2}
        for peer, limits in others.items()
        for talkers, enough in zip((1, 4), limits, strict=True)
    ]
    figures |= {"peers": {"rows": rows}, "tick": {"phases": {"buffer": {"median_us": 61.0}}}}
    measured = [row for row in map(Asked.row, asked(figures)) if row["measured"] is not None]
    beside = [row for row in measured if row["what"].startswith("listeners a core")]
    assert [row["met"] for row in beside] == [True, False] * 8
    (buffer,) = [row for row in measured if row not in beside]
    assert (buffer["what"].split(",")[0], buffer["limit"], buffer["met"]) == (
        *("the playout buffer's work for one source", 60, False),
    )


def test_a_measurement_leaves_the_process_as_it_was() -> None:
    before = os.sched_getaffinity(0), os.sched_getscheduler(0)
    core = min(before[0])
    with contextlib.suppress(RuntimeError), pinned(core):
        assert os.sched_getaffinity(0) == {core}
        raise RuntimeError
    assert (os.sched_getaffinity(0), os.sched_getscheduler(0)) == before
