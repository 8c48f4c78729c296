"""Traces: what a network did with each packet of a stream of 20 ms frames."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

TAIL_MS = 1_000.0  # after the last packet


class TraceError(Exception):
    """A file that is no trace, or a folder without any."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One packet of a trace; arrive_ms: None if it was lost.  first, last: of a talkspurt.  quiet:
    between two of them, what Opus sends of silence now and then."""

    number: int
    send_ms: float
    arrive_ms: float | None
    first: bool
    last: bool
    quiet: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """least_ms: the quickest packet's transit."""

    name: str
    packets: list[Sent]
    least_ms: float

    @property
    def end_ms(self) -> float:
        return max(p.arrive_ms or p.send_ms for p in self.packets) + TAIL_MS


def read_trace(path: Path) -> Trace:
    """A file with the columns seq, ts (in frames of 20 ms), send_ms, arrive_ms, mark.  Where the
    timestamps leave a gap, the sender was silent, and a talkspurt begins at a mark.  Raises
    TraceError."""
    try:
        with path.open(newline="") as file:
            rows = [
                (int(r["ts"]), float(r["send_ms"]), float(r["arrive_ms"] or "nan"), int(r["mark"]))
                for r in csv.DictReader(file)
            ]
    except (KeyError, ValueError, OSError) as error:
        raise TraceError(f"{path} is no trace: {error!r}") from error
    transits = [arrive - send for _, send, arrive, _ in rows if not math.isnan(arrive)]
    if not transits:
        raise TraceError(f"{path} is no trace: nothing arrives in it")
    numbers = [number for number, *_ in rows]
    gaps = [n == 0 or numbers[n - 1] != number - 1 for n, number in enumerate(numbers)]
    marks = [mark == 1 for *_, mark in rows]
    ends = [gap or mark for gap, mark in zip(gaps, marks, strict=True)][1:]
    packets = [
        Sent(number, send, None if math.isnan(arrive) else arrive, mark, last, gap and not mark)
        for (number, send, arrive, _), gap, mark, last in zip(
            rows, gaps, marks, [*ends, True], strict=True
        )
    ]
    return Trace(path.stem, packets, min(transits))


def read_traces(folder: Path) -> list[Trace]:
    """All traces of a folder.  Raises TraceError."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise TraceError(f"there is no trace (*.csv) in {folder}")
    return [read_trace(file) for file in files]
