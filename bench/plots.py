"""The plots of a report: each is drawn from its figures alone.

cpu.png         CPU against listeners, with the floor and the peers
delay.png       how delays are distributed
lateness.png    how late ticks began, run by run
tick.png        where a tick's time goes

and of `spaces-bench jitter`, one for each trace, its delay over time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.run import FLOOR, OURS, OURS_IN_CROWD
from bench.search import MAX_LOSS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Figures = dict[str, Any]
Delays = list[tuple[float, float]]  # (when, delay), ms

WIDTH_IN = 8.0  # with DPI twice the width of a README's text: sharp on any screen
DPI = 200
TICK_MS = 20
TICKS_A_SECOND = 50
LATE_MS = 5.0  # what is asked of 99 of 100 ticks
ROOM = 1.18  # beyond the longest bar, for a text

# Okabe and Ito's colours, which people tell apart whatever colours they see.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)
GREY = "#767676"
STYLE: dict[Any, Any] = {  # matplotlib lists the names that there are; they are checked there
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
}


def draw(report: Figures, folder: Path) -> list[str]:
    """-> the names of the PNG files written there, of those plots for which there are figures.
    Raises ImportError without matplotlib, OSError."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = []
    for name, plot in PLOTS.items():
        with rc_context(STYLE):
            figure = Figure(figsize=(WIDTH_IN, 3.6), dpi=DPI, layout="constrained")
            FigureCanvasAgg(figure)
            if plot(report, figure.subplots()):
                figure.savefig(folder / name)
                drawn.append(name)
    return drawn


def _cpu(report: Figures, axes: "Axes") -> bool:
    """The server's line over the floor's; each peer at its largest audience."""
    rows = [
        row
        for row in report["capacity"]
        if row["talkers"] == 1 and row["packet_ms"] == TICK_MS and "server_cpu" in row
    ]
    if not rows:
        return False
    listeners = [row["listeners"] for row in rows]
    floor = [
        100e-6 * row["floor_us_per_packet"] * row["listeners"] * TICKS_A_SECOND for row in rows
    ]
    for valid, form, colour, label in (
        (True, "o-", BLUE, "this server (mixes, seals)"),
        (False, "x", BLACK, "the same, invalid"),
    ):
        some = [
            (row["listeners"], 100 * row["server_cpu"]) for row in rows if row["valid"] is valid
        ]
        if some:
            axes.plot(*zip(*some, strict=True), form, color=colour, label=label)
    axes.plot(listeners, floor, "--", color=GREY, label="floor: sendmmsg alone")
    marks = zip("sD^vPX", (VERMILION, ORANGE, GREEN, PURPLE, SKY, BLACK), strict=True)
    for row in _largest(report):
        mark, colour = next(marks)
        label = f"{row['peer']} ({'mixes' if row['mixes'] else 'relays'}"
        label += ", seals)" if row["encrypted"] else ")"
        axes.plot(row["listeners"], 100 * row["server_cpu"], mark, color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="listeners", ylabel="server's CPU, % of a core")
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    axes.set_title("CPU against listeners: 1 talker, 20 ms packets", loc="left")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True


def _plain_numbers(axis: "Axis") -> None:
    """1, 2, 5, 10, ... along a logarithmic axis, instead of powers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _largest(report: Figures) -> list[Figures]:
    """Of each peer the row with one talker, if those listeners were carried: its place in the
    plot says so."""
    return [
        row
        for row in report["peers"].get("rows", ())
        if row["peer"] not in (OURS, OURS_IN_CROWD, FLOOR)
        and row["talkers"] == 1
        and row["valid"]
        and row["loss"] < MAX_LOSS
    ]


def _delay(report: Figures, axes: "Axes") -> bool:
    colours = iter((BLUE, VERMILION, SKY, ORANGE))
    drawn = False
    for run in report["latency"]:
        for key, name in (("server_added_ms", "by the server"), ("mouth_to_ear_ms", "to the ear")):
            delay = run.get(key, {})
            if not delay.get("packets"):
                continue
            colour = next(colours)
            counts = delay["counts"]
            share = [100 * count / delay["packets"] for count in counts]
            label = f"{name}, {run['frame_ms']} ms frames: {delay['p50']:.1f}, {delay['p99']:.1f}"
            bins = range(len(share) + 1)
            axes.stairs(share, bins, fill=True, color=colour, alpha=0.6, label=label)
            axes.vlines(delay["p50"], 0, max(share), color=colour)
            axes.vlines(delay["p99"], 0, max(share), color=colour, linestyles="dotted")
            drawn = True
    if drawn:
        axes.set(xlabel="delay, ms", ylabel="share of packets, % for each ms", xlim=0)
        axes.set_ylim(0, axes.get_ylim()[1] * ROOM)  # for the legend, above all of it
        axes.set_title("Delay, packet by packet (lines: p50, dotted p99)", loc="left")
        axes.legend(fontsize=8, loc="upper right", ncols=2)
    return drawn


def _lateness(report: Figures, axes: "Axes") -> bool:
    named = [(_audience(row), row) for row in report["capacity"]]
    named += [
        (f"{report['spaces'].get('spaces')} small spaces", report["spaces"]),
    ]
    for row in report["joins"]:
        named.append((f"{row['rate']:g} joins a second, {row['listeners']:,} listen", row))
    for row in report["latency"]:
        named.append((f"delay, a small space, {row['frame_ms']} ms frames", row))
    runs = [
        (name if row.get("valid", True) else f"{name} (invalid)", row["tick_lateness_ms"])
        for name, row in named
        if "tick_lateness_ms" in row
    ]
    if not runs:
        return False
    _set_height(axes, 1.4 + 0.28 * len(runs))
    at = range(len(runs))
    for key, mark, colour in (("p50", "o", BLUE), ("p99", "D", ORANGE), ("max", "|", BLACK)):
        values = [late[key] for _, late in runs]
        axes.plot(values, at, mark, color=colour, label=key, markersize=7)
    axes.axvline(LATE_MS, color=VERMILION, linewidth=1, linestyle="--", label="asked of p99")
    axes.set_yticks(at, [name for name, _ in runs])
    axes.set_ylim(len(runs) - 0.5, -0.5)  # the first on top
    axes.set(xscale="log", xlabel="a tick's lateness, ms")
    _plain_numbers(axes.xaxis)
    axes.set_title("How late ticks began", loc="left")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True


def _set_height(axes: "Axes", inches: float) -> None:
    from matplotlib.figure import Figure

    assert isinstance(axes.figure, Figure)  # and not a part of one
    axes.figure.set_figheight(inches)


def _audience(row: Figures) -> str:
    return f"{row['listeners']:,} listen, {row['talkers']} talk, {row['packet_ms']} ms"


def _tick(report: Figures, axes: "Axes") -> bool:
    """Each phase as often as a tick has it, beside ticks measured as a whole."""
    phases = report["tick"].get("phases", {})
    us = {name: phase["median_us"] for name, phase in phases.items()}
    if not us:
        return False
    talk, listen = report["tick"]["talkers"], report["tick"]["listeners"]
    everyone = talk + listen
    bars = [
        (
            "its phases,\neach alone",
            [
                (f"{talk} decodes", talk * us["decode"], SKY),
                (f"{talk} levels", talk * us["levels"], PURPLE),
                ("mix", us["mix"], YELLOW),
                (f"{talk + 1} encodes", (talk + 1) * us["encode"], ORANGE),
                (f"{everyone:,} seals", us["seal"] * everyone / listen, GREEN),
                (f"{everyone:,} sends", us["send"] * everyone / listen, BLUE),
            ],
        ),
        (
            "as a whole",
            [
                ("all but the sends", us["node_tick"], GREY),
                ("", us["send"] * everyone / listen, BLUE),
            ],
        ),
        (
            "as a whole,\n60 ms packets",
            [
                ("", us["crowd_tick"], GREY),
                ("", us["send"] * (talk + listen / 3) / listen, BLUE),
            ],
        ),
    ]
    _set_height(axes, 2.8)
    longest = 0.0
    for at, (_, parts) in enumerate(bars):
        left = 0.0
        for label, width, colour in parts:
            axes.barh(at, width, 0.6, left, color=colour, label=label or "_", edgecolor="white")
            left += width
        axes.text(left, at, f" {left / 1e3:.1f} ms", va="center", fontsize=9)
        longest = max(longest, left)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="µs on one core (a tick: 20,000 µs)", xlim=(0, longest * ROOM))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"A tick: {talk} talk, {listen:,} listen", loc="left")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True


PLOTS: dict[str, Callable[[Figures, "Axes"], bool]] = {
    "cpu.png": _cpu,
    "delay.png": _delay,
    "lateness.png": _lateness,
    "tick.png": _tick,
}


JITTER_LINES = {
    "ours": (BLUE, "-"),
    "ours+redundancy": (GREEN, "-"),
    "server": (BLUE, ":"),
    "server+redundancy": (GREEN, ":"),
    "speexdsp": (VERMILION, "-"),
    "fixed60": (YELLOW, "-"),
}


def draw_jitter(
    trace: str,
    network: Delays,
    played: dict[str, Delays],
    folder: Path,
) -> None:
    """Writes <trace>.png: when packets came, and when each receiver played them, both as ms after
    the path's quickest.  Raises ImportError without matplotlib, OSError."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.6), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot(*_seconds(network), ".", color=GREY, markersize=1.5, label="packets come")
        for receiver, delays in played.items():
            colour, line = JITTER_LINES[receiver]
            axes.plot(*_seconds(delays), line, color=colour, linewidth=1, label=receiver)
        axes.set_xlabel("s")
        axes.set_ylabel("ms after the quickest packet")
        axes.set_title(trace, loc="left")
        figure.legend(loc="outside lower center", ncols=4)
        figure.savefig(folder / f"{trace}.png")


def _seconds(delays: Delays) -> tuple[list[float], list[float]]:
    return [when / 1_000 for when, _ in delays], [ms for _, ms in delays]
