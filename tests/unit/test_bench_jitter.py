"""`spaces-bench jitter`: traces are read as they are drawn, and its figures follow from them."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bench.cli import main
from bench.jitter.play import SETUPS, play
from bench.jitter.sender import said, speech_blocks
from bench.jitter.speex import speexdsp
from bench.jitter.traces import Sent, TraceError, read_trace, read_traces

KEYS = {
    *("trace", "receiver", "added_ms", "added_p95_ms", "concealed_pct"),
    *("recovered_pct", "late_pct", "pesq", "stoi", "J"),
}


def write_trace(
    path: Path, *, frames: int = 500, lost: float = 0.0, jitter_ms: float = 0.5
) -> Path:
    draw = random.Random(1)
    lines = ["seq,ts,send_ms,arrive_ms,mark"]
    for n in range(frames):
        arrive = f"{n * 20 + 40 + draw.uniform(0, jitter_ms):.3f}"
        kept = draw.random() >= lost or n == 0
        lines.append(f"{n},{n},{n * 20}.000,{arrive if kept else ''},{int(n == 0)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_trace_is_read_as_it_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "path.csv"
    path.write_text(
        "seq,ts,send_ms,arrive_ms,mark\n0,0,0.0,41.5,1\n1,1,20.0,,0\n2,9,180.0,220.25,1\n"
        "3,29,580.0,620.0,0\n4,30,600.0,640.0,1\n"
    )
    trace = read_trace(path)
    assert trace.name == "path"
    assert trace.least_ms == 40
    assert trace.packets == [
        Sent(0, 0.0, 41.5, first=True, last=False, quiet=False),
        Sent(1, 20.0, None, first=False, last=True, quiet=False),
        Sent(9, 180.0, 220.25, first=True, last=True, quiet=False),
        Sent(29, 580.0, 620.0, first=False, last=True, quiet=True),
        Sent(30, 600.0, 640.0, first=True, last=True, quiet=False),
    ]
    spoken = said(trace, np.ones((40, 960), np.float32))
    assert spoken.shape == (31, 960)
    assert np.flatnonzero(spoken.any(axis=1)).tolist() == [0, 1, 9, 30]
    assert spoken[0, 0] == spoken[1, -1] == 0, "no word is cut"
    assert spoken[0, -1] == spoken[1, 0] == 1


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "seq,ts,send_ms,arrive_ms,mark\n0,0,x,,1\n"])
def test_what_is_no_trace_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "path.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match="is no trace"):
        read_trace(path)
    with pytest.raises(TraceError, match="there is no trace"):
        read_traces(tmp_path / "nowhere")


@pytest.mark.parametrize("receiver", SETUPS)
def test_on_a_clean_path_nothing_is_missing(tmp_path: Path, receiver: str) -> None:
    if receiver == "speexdsp" and speexdsp() is None:
        # No wheel of it exists, and the project works without it.  .ci/run installs it.
        pytest.skip("libspeexdsp, which this compares with, is not installed")
    trace = read_trace(write_trace(tmp_path / "clean.csv", frames=300))
    heard, sound = play(trace, said(trace, speech_blocks(None)), receiver)
    assert heard.concealed <= 1  # speexdsp makes up one as it starts
    assert heard.recovered == 0
    assert heard.late <= 1
    added = [ms for _, ms in heard.delays[20:]]
    assert min(added) >= 0
    # The server pulls 20 ms at a time: here 10 ms after the quickest, or 20 ms later.
    most_ms = 60 if receiver == "fixed60" else 30 if receiver.startswith("server") else 21
    assert max(added) <= most_ms
    assert abs(sound).max() > 0.1


def test_copies_stand_in_for_what_is_lost(tmp_path: Path) -> None:
    trace = read_trace(write_trace(tmp_path / "lossy.csv", frames=1_000, lost=0.1))
    spoken = said(trace, speech_blocks(None))
    plain, _ = play(trace, spoken, "ours")
    copied, _ = play(trace, spoken, "ours+redundancy")
    lost = sum(packet.arrive_ms is None for packet in trace.packets)
    assert plain.concealed < lost  # some come from FEC
    assert copied.concealed < plain.concealed / 2
    assert copied.recovered > 0.6 * lost


def test_the_command_gives_one_object(tmp_path: Path) -> None:
    write_trace(tmp_path / "one.csv", frames=150)
    written = tmp_path / "written"
    folders = ["--plot", str(tmp_path), "--output", str(written)]
    result = CliRunner().invoke(
        main, ["jitter", "--traces", str(tmp_path), "--no-sound", "--json", *folders]
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["traces"]
    assert json.loads((written / "jitter.json").read_text())["traces"] == rows
    table = (written / "jitter.md").read_text()
    assert f"| one | ours | {rows[0]['added_ms']} |" in table
    assert table.count("\n| one |") == len(rows)
    assert all(set(row) == KEYS for row in rows)
    assert {row["receiver"] for row in rows} >= {
        *("ours", "ours+redundancy", "server", "server+redundancy", "fixed60")
    }
    assert (tmp_path / "one.png").stat().st_size > 10_000
    assert rows[0]["J"] == pytest.approx(
        rows[0]["added_ms"] + 20 * rows[0]["concealed_pct"], abs=0.3
    )


def test_a_folder_without_traces_is_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["jitter", "--traces", str(tmp_path)])
    assert result.exit_code == 1
    assert "there is no trace (*.csv)" in result.output
