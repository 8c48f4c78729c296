"""What a listener hears over traces of networks: delay, what is missing, how it sounds.

A trace says of each packet of a 20 ms stream when it was sent and when it came (empty: never).
Speech is encoded as a client does it, sent along the trace, and played by our own receive path
(protocol/playout.py: the server has one for each speaker, the client one for its mix); beside it,
by two others, with the same decoder:

    ours                in-band FEC while losses are reported; pulled as a client's device does
    ours+redundancy     earlier frames once more, and FEC, while losses are reported: the client
    server, server+redundancy   the same, pulled as the server's ticks do
    speexdsp            libspeexdsp's jitter buffer, in-band FEC
    fixed60             every frame 60 ms after the path's minimum, in-band FEC

Reports go back as they do in a session, once a second, and take the path's minimum to arrive.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.jitter.play import SETUPS, play
from bench.jitter.quality import quality
from bench.jitter.sender import said, speech_blocks
from bench.jitter.speex import speexdsp
from bench.jitter.traces import Trace, TraceError, read_traces
from bench.plots import Delays, draw_jitter
from bench.show import json_option
from protocol.profile import VOICE
from spaces_client.audio import BLOCK_MS, AudioError

LOOKAHEAD_MS = (
    VOICE.lookahead_samples / 48
)  # of an Opus encoder: how much later a sound lies in what it makes


@dataclass(frozen=True, slots=True)
class Run:
    """One receiver and one trace; speech: a folder of WAV files; sound: whether to measure PESQ and
    STOI."""

    trace: Trace
    receiver: str
    speech: Path | None
    sound: bool

    def measure(self) -> tuple[dict[str, Any], Delays]:
        """-> (a row, the delays over time).  Keys of a row are stable:

        trace, receiver
        added_ms, added_p95_ms      what plays is later than the path's quickest packet by so much
        concealed_pct               frames of 20 ms made up or left out, of those sent
        recovered_pct               of those sent, played from FEC or from a copy
        late_pct                    came too late to be played
        pesq, stoi                  PESQ-WB and STOI, null without the extra `pesq`
        J                           added_ms + 20 x concealed_pct

        Raises AudioError."""
        trace = self.trace
        spoken = said(trace, speech_blocks(self.speech))
        figures, heard = play(trace, spoken, self.receiver)
        added_ms = np.array([added for _, added in figures.delays])
        mean_ms = float(added_ms.mean())
        scores = quality(spoken, heard, _moments(trace, figures.delays)) if self.sound else None
        percent = 100 / len(trace.packets)
        concealed_pct = figures.concealed * percent
        row = {
            "trace": trace.name,
            "receiver": self.receiver,
            "added_ms": round(mean_ms, 1),
            "added_p95_ms": round(float(np.percentile(added_ms, 95)), 1),
            "concealed_pct": round(concealed_pct, 2),
            "recovered_pct": round(figures.recovered * percent, 2),
            "late_pct": round(figures.late * percent, 2),
            "pesq": round(scores[0], 2) if scores else None,
            "stoi": round(scores[1], 3) if scores else None,
            "J": round(mean_ms + 20 * concealed_pct, 1),
        }
        return row, figures.delays


def measure(
    traces: Sequence[Trace], speech: Path | None, *, sound: bool = True
) -> list[tuple[dict[str, Any], Delays]]:
    """For each trace and receiver, in this order: see Run.  Nothing in it depends on the clock, so
    all cores work at it.  Raises AudioError."""
    speech_blocks(speech)  # what is wrong with the folder is said here
    runs = [
        Run(trace, name, speech, sound)
        for trace in traces
        for name in SETUPS
        if name != "speexdsp" or speexdsp() is not None
    ]
    with ProcessPoolExecutor() as pool:
        begun = [
            (n, pool.submit(run.measure))
            for n, run in sorted(enumerate(runs), key=lambda r: -len(r[1].trace.packets))
        ]  # the longest first: so no core waits long for another at the end
        return [future.result() for _, future in sorted(begun, key=itemgetter(0))]


def _moments(trace: Trace, delays: Delays) -> NDArray[np.float64]:
    """-> shape (n, 2): when, in what was heard, plays what place of what was said, in ms.  A sender
    whose clock drifts says more or less in a second than is heard in one."""
    first = trace.packets[0]
    when_ms, added_ms = np.array(delays).T
    sent_ms = [packet.send_ms for packet in trace.packets]
    said_ms = [BLOCK_MS * (packet.number - first.number) for packet in trace.packets]
    place_ms = np.interp(when_ms - added_ms - trace.least_ms, sent_ms, said_ms)
    return np.column_stack((when_ms - first.send_ms, place_ms - LOOKAHEAD_MS))


def _show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="Jitter, loss and delay", title_justify="left")
    for key in rows[0]:
        table.add_column(key.replace("_", " "), justify="right" if key != "trace" else "left")
    for row in rows:
        table.add_row(*map(_text, row.values()))
    Console().print(table)


def _write(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """jitter.json, and jitter.md, a table of the same."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Jitter, loss and delay",
        "",
        "Made by `spaces-bench jitter`; what it means is in bench/README.md.",
        "",
        f"| {' | '.join(rows[0])} |",
        f"|{'---|' * len(rows[0])}",
        *(f"| {' | '.join(map(_text, row.values()))} |" for row in rows),
    ]
    (folder / "jitter.json").write_text(json.dumps({"traces": rows}) + "\n")
    (folder / "jitter.md").write_text("\n".join(lines) + "\n")


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


@click.command("jitter")
@click.option(
    "--traces",
    "folder",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of traces: CSV files with seq, ts, send_ms, arrive_ms, mark.",
)
@click.option(
    "--speech",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of WAV files to talk with.  [default: synthesised voices]",
)
@click.option("--sound/--no-sound", default=True, help="Whether to measure PESQ and STOI.")
@click.option(
    "--plot",
    type=click.Path(file_okay=False, path_type=Path),
    help="Draw delay over time into this folder, one PNG for each trace.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write jitter.json and jitter.md into this folder.",
)
@json_option
def command(
    folder: Path,
    speech: Path | None,
    sound: bool,
    plot: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Our receive path over traces of networks, beside others.

    \b
    spaces-bench jitter --traces traces --speech speech --json
    """
    try:
        traces = read_traces(folder)
        measured = measure(traces, speech, sound=sound)
        if plot is not None:
            plot.mkdir(parents=True, exist_ok=True)
            for trace in traces:
                played = {r["receiver"]: d for r, d in measured if r["trace"] == trace.name}
                draw_jitter(trace.name, _network(trace), played, plot)
    except (TraceError, AudioError) as error:
        raise click.ClickException(str(error)) from error
    except ImportError as error:
        raise click.ClickException(f"plots need matplotlib: {error}") from error
    rows = [row for row, _ in measured]
    if speexdsp() is None:
        click.echo("no rows of speexdsp: libspeexdsp is not installed", err=True)
    if output is not None:
        _write(rows, output)
    if as_json:
        click.echo(json.dumps({"traces": rows}))
    else:
        _show(rows)


def _network(trace: Trace) -> Delays:
    """(when, ms after the quickest) of each packet that came."""
    return [
        (p.arrive_ms, p.arrive_ms - p.send_ms - trace.least_ms)
        for p in trace.packets
        if p.arrive_ms is not None
    ]
