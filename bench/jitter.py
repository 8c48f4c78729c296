"""What a listener hears over recorded networks: delay, what is missing, how it sounds.

A trace says of each packet of a 20 ms stream when it was sent and when it came (empty: never).
Speech is encoded as a client does it, sent along the trace, and played by our own receive path
(protocol/playout.py: the server has one for each speaker, the client one for its mix); beside it,
by two others, with the same pulls and the same decoder:

    ours              in-band FEC while losses are reported
    ours+redundancy   earlier frames once more, while losses are reported
    speexdsp          libspeexdsp's jitter buffer, in-band FEC
    fixed60           every frame 60 ms after the path's minimum, in-band FEC

Reports go back as they do in a session, once a second, and take the path's minimum to arrive.
"""

import csv
import ctypes
import ctypes.util
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.plots import RECEIVERS, draw_jitter
from bench.show import json_option
from protocol.jitter import MS
from protocol.opus import Decoder, Encoder, packet_has_fec
from protocol.packets import AudioFlag, Copies, UplinkAudio
from protocol.playout import Playout
from protocol.redundancy import History, LossMeter, Redundancy
from spaces_client.audio import BLOCK_SAMPLES, PULL_SAMPLES, AudioError
from spaces_client.crowd import voice_files
from spaces_client.synth import synthesise_voice
from spaces_client.wav import read_blocks

Samples = NDArray[np.float32]

FRAME_MS = 20
BITRATE, COMPLEXITY = 32_000, 10
FEC_LOSS_PERCENT = 10  # what the encoder is told to expect while FEC is on
REPORT_MS = 1_000.0
FIXED_MS = 60.0
LOOKAHEAD_MS = 6.5  # of an Opus encoder: how much later a sound lies in what it makes
SEGMENT_S = 8.0  # PESQ is meant for sentences of this length
MAX_SEGMENTS = 8
TAIL_MS = 1_000.0  # after the last packet


class TraceError(Exception):
    """A file that is no trace, or a folder without any."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One packet of a trace; arrive_ms: None if it was lost.  first, last: of a talkspurt."""

    number: int
    send_ms: float
    arrive_ms: float | None
    first: bool
    last: bool


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
    timestamps leave a gap, the sender was silent.  Raises TraceError."""
    try:
        with path.open(newline="") as file:
            rows = [
                (int(r["ts"]), float(r["send_ms"]), float(r["arrive_ms"] or "nan"))
                for r in csv.DictReader(file)
            ]
    except (KeyError, ValueError, OSError) as error:
        raise TraceError(f"{path} is no trace: {error!r}") from error
    transits = [arrive - send for _, send, arrive in rows if not math.isnan(arrive)]
    if not transits:
        raise TraceError(f"{path} is no trace: nothing arrives in it")
    numbers = [number for number, _, _ in rows]
    packets = [
        Sent(
            number,
            send,
            None if math.isnan(arrive) else arrive,
            first=n == 0 or numbers[n - 1] != number - 1,
            last=n + 1 == len(rows) or numbers[n + 1] != number + 1,
        )
        for n, (number, send, arrive) in enumerate(rows)
    ]
    return Trace(path.stem, packets, min(transits))


# -- what is said --------------------------------------------------------------------------------


@cache
def speech_blocks(folder: Path | None) -> Samples:
    """-> (n, 960): all recordings of a folder one after the other, or synthesised voices.  Raises
    AudioError."""
    if folder is None:
        blocks = [synthesise_voice(number, 8.0).reshape(-1, BLOCK_SAMPLES) for number in range(4)]
    else:
        blocks = [np.array(list(read_blocks(file))) for file in voice_files(folder)]
    return np.concatenate(blocks)


def said(trace: Trace, blocks: Samples) -> Samples:
    """The trace's whole time, (m, 960): speech where it sends, silence elsewhere."""
    first = trace.packets[0].number
    spoken = np.zeros((trace.packets[-1].number - first + 1, BLOCK_SAMPLES), np.float32)
    for packet in trace.packets:
        spoken[packet.number - first] = blocks[packet.number % len(blocks)]
    return spoken


class Sender:
    """A speaker's client: encodes, and does about losses what it does."""

    def __init__(self, spoken: Samples, first: int, *, fec: bool | None, copies: bool) -> None:
        """fec: in-band FEC always, never, or (None) while losses are reported.  copies: whether
        earlier frames are sent again then."""
        self._spoken, self._first = spoken, first
        self._encoder = Encoder(bitrate=BITRATE, complexity=COMPLEXITY, fec=bool(fec))
        self._encoder.expected_loss_percent = FEC_LOSS_PERCENT if fec else 0
        self._by_report, self._copies = fec is None, copies
        self._history = History()
        self.redundancy = Redundancy()

    def send(self, packet: Sent) -> UplinkAudio:
        if packet.first:
            self._encoder.reset()
        if self._by_report:
            lossy = bool(self.redundancy.offsets)
            self._encoder.fec = lossy
            self._encoder.expected_loss_percent = FEC_LOSS_PERCENT if lossy else 0
        timestamp = packet.number * BLOCK_SAMPLES & 0xFFFF_FFFF
        flags = AudioFlag.FIRST * packet.first | AudioFlag.LAST * packet.last
        opus = self._encoder.encode(self._spoken[packet.number - self._first])
        made: Copies = ()
        if self._copies and not packet.first:
            made = self._history.copies(timestamp, self.redundancy.offsets)
        self._history.add(timestamp, flags, opus)
        return UplinkAudio(timestamp, flags, opus, made)


# -- receivers -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Heard:
    """What a receiver made of a stream.

    delays: (when, ms after the path's minimum) of each pull or frame that plays.  concealed,
    recovered, late: in frames of 20 ms; recovered: by FEC or a copy.
    """

    delays: list[tuple[float, float]] = field(default_factory=list)
    concealed: float = 0.0
    recovered: int = 0
    late: int = 0


class Receiver(Protocol):
    """wait_ms: from when the path's quickest packet comes to the next pull.  Sound cards and
    networks have nothing to do with each other: on average it is half a pull."""

    pull_samples: int
    wait_ms: float
    heard: Heard

    def receive(self, packet: Sent, audio: UplinkAudio, now_ms: float) -> None: ...

    def pull(self, out: Samples, now_ms: float) -> None: ...


class Ours:
    """protocol/playout.py, pulled as a client's device does."""

    pull_samples = PULL_SAMPLES
    wait_ms = FRAME_MS / 4

    def __init__(self, trace: Trace) -> None:
        self.heard = Heard()
        self._playout = Playout()
        self._due_ms = {p.number: p.send_ms + trace.least_ms for p in trace.packets}
        self._concealed = 0

    def receive(self, packet: Sent, audio: UplinkAudio, now_ms: float) -> None:
        self._playout.take(audio, round(now_ms * MS))

    def pull(self, out: Samples, now_ms: float) -> None:
        sounds = self._playout.pull(out, round(now_ms * MS))
        stats, heard = self._playout.stats, self.heard
        concealed = stats.concealed_samples
        if sounds and concealed == self._concealed:
            number, within = divmod(self._playout.timestamp, BLOCK_SAMPLES)
            if number in self._due_ms:
                heard.delays.append((now_ms, now_ms - within / 48 - self._due_ms[number]))
        self._concealed = concealed
        heard.concealed = concealed / BLOCK_SAMPLES
        heard.recovered = stats.recovered_copy + stats.recovered_fec
        heard.late = stats.late + stats.dropped


class _Framewise:
    """A buffer that gives a frame, or none, for each pull of 20 ms."""

    pull_samples = BLOCK_SAMPLES
    wait_ms = FRAME_MS / 2

    def __init__(self, trace: Trace) -> None:
        self.heard = Heard()
        self._decoder = Decoder()
        self._payloads: dict[int, tuple[Sent, bytes]] = {}
        self._least_ms = trace.least_ms
        self._spurt = False

    def _play(self, number: int | None, missing: int | None, out: Samples, now_ms: float) -> None:
        """number: of the frame that plays.  missing: of one that should, and is not there."""
        heard = self.heard
        if number is not None:
            packet, opus = self._payloads[number]
            if packet.first or not self._spurt:
                self._decoder.reset()
            self._spurt = not packet.last
            self._decoder.decode(opus, out)
            heard.delays.append((now_ms, now_ms - packet.send_ms - self._least_ms))
        elif self._spurt and missing is not None:
            following = self._payloads.get(missing + 1)
            if following is not None and packet_has_fec(following[1]):
                self._decoder.decode_fec(following[1], out)
                heard.recovered += 1
            else:
                self._decoder.conceal(out)
                heard.concealed += 1
        else:
            out[:] = 0


class Fixed(_Framewise):
    """Each frame 60 ms after the path's minimum, or never."""

    wait_ms = 0.0  # it began to play when the first one was due

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self._sent = {p.number: p for p in trace.packets}
        self._start_ms = trace.packets[0].send_ms + trace.least_ms + FIXED_MS
        self._first = trace.packets[0].number
        self._played = self._first - 1

    def receive(self, packet: Sent, audio: UplinkAudio, now_ms: float) -> None:
        self._payloads[packet.number] = packet, audio.opus
        self.heard.late += packet.number <= self._played

    def pull(self, out: Samples, now_ms: float) -> None:
        number = self._first + math.floor((now_ms - self._start_ms) / FRAME_MS)
        if number in self._payloads and number > self._played:
            self._play(number, None, out, now_ms)
        else:
            self._play(None, number if number in self._sent else None, out, now_ms)
        self._played = max(self._played, number)


class _SpeexPacket(ctypes.Structure):
    """JitterBufferPacket of speex/speex_jitter.h."""

    _fields_ = (
        ("data", ctypes.c_char_p),
        ("len", ctypes.c_uint32),
        ("timestamp", ctypes.c_uint32),
        ("span", ctypes.c_uint32),
        ("sequence", ctypes.c_uint16),
        ("user_data", ctypes.c_uint32),
    )


@cache
def _speexdsp() -> Any:
    """The library, or None where it is not installed."""
    name = ctypes.util.find_library("speexdsp")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    library.jitter_buffer_init.restype = ctypes.c_void_p
    library.jitter_buffer_init.argtypes = [ctypes.c_int]
    for function in (library.jitter_buffer_tick, library.jitter_buffer_destroy):
        function.argtypes = [ctypes.c_void_p]
    packet = ctypes.POINTER(_SpeexPacket)
    library.jitter_buffer_put.argtypes = [ctypes.c_void_p, packet]
    library.jitter_buffer_get.argtypes = [
        *(ctypes.c_void_p, packet, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32)),
    ]
    return library


class Speex(_Framewise):
    """libspeexdsp's jitter buffer."""

    _OK = 0

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self._library = _speexdsp()
        self._buffer = self._library.jitter_buffer_init(BLOCK_SAMPLES)
        self._room = ctypes.create_string_buffer(2_000)
        self._next = trace.packets[0].number  # that should play
        self._sent = {p.number for p in trace.packets}

    def __del__(self) -> None:
        self._library.jitter_buffer_destroy(self._buffer)

    def receive(self, packet: Sent, audio: UplinkAudio, now_ms: float) -> None:
        self._payloads[packet.number] = packet, audio.opus
        self.heard.late += packet.number < self._next
        one = _SpeexPacket(b"x", 1, packet.number * BLOCK_SAMPLES, BLOCK_SAMPLES, 0, 0)
        self._library.jitter_buffer_put(self._buffer, ctypes.byref(one))

    def pull(self, out: Samples, now_ms: float) -> None:
        one = _SpeexPacket(ctypes.cast(self._room, ctypes.c_char_p), len(self._room))
        offset = ctypes.c_int32()
        code = self._library.jitter_buffer_get(
            self._buffer, ctypes.byref(one), BLOCK_SAMPLES, ctypes.byref(offset)
        )
        number = one.timestamp // BLOCK_SAMPLES
        self._library.jitter_buffer_tick(self._buffer)
        if code == self._OK and number in self._payloads:
            self._play(number, None, out, now_ms)
            self._next = number + 1
        else:
            # Where it inserts a frame to grow its delay, it says so, and nothing is missing.
            self._play(None, self._next if self._next in self._sent else None, out, now_ms)
            if number == self._next:
                self._next += 1


NEW_RECEIVER: dict[str, Callable[[Trace], Receiver]] = {
    "ours": Ours,
    "ours+redundancy": Ours,
    "speexdsp": Speex,
    "fixed60": Fixed,
}


def play(trace: Trace, spoken: Samples, receiver_name: str) -> tuple[Heard, Samples]:
    """Sends the speech along the trace and plays it; -> (figures, all that was heard, (n,), from
    the moment on at which the first packet was sent)."""
    ours = receiver_name.startswith("ours")
    first = trace.packets[0].number
    sender = Sender(
        spoken,
        first,
        fec=True if not ours else None if receiver_name == "ours" else False,
        copies=receiver_name == "ours+redundancy",
    )
    receiver = NEW_RECEIVER[receiver_name](trace)
    pull_ms = receiver.pull_samples / 48
    arrivals: list[tuple[float, int, UplinkAudio]] = []
    meter = LossMeter(-1)
    reports: list[tuple[float, Any]] = []
    report_ms = REPORT_MS
    heard: list[Samples] = []
    now_ms = trace.packets[0].send_ms + trace.least_ms % pull_ms + receiver.wait_ms
    silence_before = round((now_ms - trace.packets[0].send_ms) * 48)
    sending = iter(enumerate(trace.packets))
    upcoming = next(sending, None)
    while now_ms < trace.end_ms:
        while upcoming is not None and upcoming[1].send_ms <= now_ms:
            number, packet = upcoming
            while reports and reports[0][0] <= packet.send_ms:
                sender.redundancy.report(reports.pop(0)[1])
            audio = sender.send(packet)
            if packet.arrive_ms is not None:
                arrivals.append((packet.arrive_ms, number, audio))
            upcoming = next(sending, None)
        arrivals.sort(key=lambda arrival: arrival[:2])
        while arrivals and arrivals[0][0] <= now_ms:
            arrive_ms, number, audio = arrivals.pop(0)
            meter.count(number)
            receiver.receive(trace.packets[number], audio, arrive_ms)
            if arrive_ms >= report_ms:
                report_ms = arrive_ms + REPORT_MS
                reports.append((arrive_ms + trace.least_ms, meter.take()))
        out = np.zeros(receiver.pull_samples, np.float32)
        receiver.pull(out, now_ms)
        heard.append(out)
        now_ms += pull_ms
    return receiver.heard, np.concatenate([np.zeros(silence_before, np.float32), *heard])


# -- how it sounds ---------------------------------------------------------------------------------


def quality(spoken: Samples, heard: Samples, delay_ms: float) -> tuple[float, float] | None:
    """-> (PESQ-WB, STOI), the means over segments of 8 s spread over all of it; None without the
    libraries.  delay_ms: by how much `heard` is later, on the whole."""
    try:
        from pesq import NoUtterancesError, pesq
        from pystoi import stoi
        from scipy.signal import resample_poly
    except ImportError:
        return None
    reference = resample_poly(spoken.ravel().astype(np.float64), 1, 3)
    degraded = resample_poly(heard.astype(np.float64), 1, 3)[round(delay_ms * 16) :]
    length = round(SEGMENT_S * 16_000)
    count = min(len(reference), len(degraded)) // length
    chosen = np.unique(np.linspace(0, count - 1, min(count, MAX_SEGMENTS)).astype(int))
    scores = []
    for number in chosen:
        part = slice(number * length, (number + 1) * length)
        if not reference[part].any():
            continue
        try:
            score = pesq(16_000, reference[part], degraded[part], "wb")
        except NoUtterancesError:  # it is silent where something was said: as bad as can be
            score = 1.0
        scores.append((score, stoi(reference[part], degraded[part], 16_000)))
    pesqs, stois = zip(*scores, strict=True)
    return float(np.mean(pesqs)), float(np.mean(stois))


# -- the command -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One receiver and one trace; speech: a folder of WAV files; sound: whether to measure PESQ and
    STOI."""

    trace: Trace
    receiver: str
    speech: Path | None
    sound: bool

    def measure(self) -> tuple[dict[str, Any], list[tuple[float, float]]]:
        """-> (a row, the delays over time).  Keys of a row are stable:

        trace, receiver
        added_ms, added_p95_ms      what plays is later than the path's quickest packet by so much
        concealed_pct               frames of 20 ms made up, of those sent
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
        later_ms = mean_ms + trace.least_ms + LOOKAHEAD_MS
        scores = quality(spoken, heard, later_ms) if self.sound else None
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
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], list[tuple[float, float]]]]:
    """-> (rows, the delays over time of each trace and receiver): see Run.  Nothing in it depends
    on the clock, so all cores work at it.  Raises AudioError."""
    speech_blocks(speech)  # what is wrong with the folder is said here
    runs = [
        Run(trace, name, speech, sound)
        for trace in sorted(traces, key=lambda trace: -len(trace.packets))  # the longest first
        for name in RECEIVERS
        if name != "speexdsp" or _speexdsp() is not None
    ]
    with ProcessPoolExecutor() as pool:
        measured = dict(
            zip(
                ((r.trace.name, r.receiver) for r in runs), pool.map(Run.measure, runs), strict=True
            )
        )
    names = [(t.name, name) for t in traces for name in RECEIVERS if (t.name, name) in measured]
    return [measured[name][0] for name in names], {name: measured[name][1] for name in names}


def read_traces(folder: Path) -> list[Trace]:
    """All traces of a folder.  Raises TraceError."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise TraceError(f"there is no trace (*.csv) in {folder}")
    return [read_trace(file) for file in files]


def _show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="Jitter, loss and delay", title_justify="left")
    for key in rows[0]:
        table.add_column(key.replace("_", " "), justify="right" if key != "trace" else "left")
    for row in rows:
        table.add_row(*("–" if value is None else str(value) for value in row.values()))
    Console().print(table)


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
@json_option
def command(
    folder: Path, speech: Path | None, sound: bool, plot: Path | None, as_json: bool
) -> None:
    """Our receive path over recorded networks, beside others.

    \b
    spaces-bench jitter --traces traces --speech speech --json
    """
    try:
        traces = read_traces(folder)
        rows, delays = measure(traces, speech, sound=sound)
        if plot is not None:
            plot.mkdir(parents=True, exist_ok=True)
            for trace in traces:
                draw_jitter(trace.name, _network(trace), delays, plot)
    except (TraceError, AudioError) as error:
        raise click.ClickException(str(error)) from error
    except ImportError as error:
        raise click.ClickException(f"plots need matplotlib: {error}") from error
    if as_json:
        click.echo(json.dumps({"traces": rows}))
    else:
        _show(rows)


def _network(trace: Trace) -> list[tuple[float, float]]:
    """(when, ms after the quickest) of each packet that came."""
    return [
        (p.arrive_ms, p.arrive_ms - p.send_ms - trace.least_ms)
        for p in trace.packets
        if p.arrive_ms is not None
    ]
