"""A report for people: report.md, made from what report.json holds and from nothing else."""

from collections.abc import Sequence
from typing import Any

from bench.asked import Figures

Rows = list[list[Any]]
CAPTIONS = {
    "cpu.png": "CPU against listeners",
    "delay.png": "Delay distribution",
    "lateness.png": "Tick lateness",
    "tick.png": "Where a tick's time goes",
}
UNLIKE = {"<=": "≤", ">=": "≥"}


def markdown(report: Figures) -> str:
    """report: what report.json holds, with `plots`, the names of the PNG files."""
    machine = report["machine"]
    lines = [
        "# What it costs: a report",
        "",
        f"{report['version']}, commit {report['commit'] or 'unknown'}, {report['date']}."
        f" Windows of {_text(report['seconds'])} s."
        + (" A quick run: small numbers, which say little." if report["quick"] else ""),
        "",
        *_kept(report),
        "Made by `spaces-bench report`; `bench/README.md` says how each figure is measured. CPU is"
        " what the operating system counts, as a share of one core. A figure marked *invalid* says"
        " nothing about the server; the reason stands with it.",
        "",
        *_table(["machine", ""], [[key.replace("_", " "), machine[key]] for key in machine]),
        "## Asked and measured",
        "",
        *_table(
            ["figure", "asked", "measured", "met"], [_asked_row(row) for row in report["asked"]]
        ),
        "## One space, by its listeners",
        "",
        *_plot(report, "cpu.png"),
        *_capacity(report["capacity"]),
        *_plot(report, "lateness.png"),
        "## The floor",
        "",
        *_pairs(report["floor"], leave_out=("machine",)),
        "## Where a tick's time goes",
        "",
        *_plot(report, "tick.png"),
        *_phases(report["tick"]),
        "## Delay",
        "",
        *_plot(report, "delay.png"),
        *_delays(report["latency"]),
        "## Many small spaces",
        "",
        *_pairs(report["spaces"]),
        "## Many silent spaces",
        "",
        *_pairs(report["silent"]),
        "## A storm of newcomers",
        "",
        *_storms(report["joins"]),
        "## Other servers",
        "",
        *_peers(report["peers"]),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _kept(report: Figures) -> list[str]:
    """Which parts are of another run."""
    parts = report["parts"]
    others = {
        name: part
        for name, part in parts.items()
        if part["date"] != report["date"] or part["commit"] != report["commit"]
    }
    if not others:
        return []
    said = "; ".join(
        f"`{name}`: {part['date']}, commit {part['commit'] or 'unknown'}, windows of"
        f" {_text(part['seconds'])} s"
        for name, part in others.items()
    )
    return [f"Measured before, on the same machine, and kept: {said}.", ""]


def _text(value: Any) -> str:
    match value:
        case None | "":
            return "–"
        case bool():
            return "yes" if value else "no"
        case float() if value != int(value) or abs(value) < 10:
            return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
        case int() | float():
            return f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Rows) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(_text, row))} |" for row in rows), ""]


def _plot(report: Figures, name: str) -> list[str]:
    return [f"![{CAPTIONS[name]}]({name})", ""] if name in report["plots"] else []


def _invalid(figures: Figures) -> str:
    return "" if figures.get("valid", True) else f"invalid: {figures['reason']}"


def _asked_row(row: Figures) -> list[Any]:
    measured = f"{_text(row['measured'])} {row['unit']}" if row["measured"] is not None else ""
    limit = f"{UNLIKE.get(row['sign'], row['sign'])} {_text(row['limit'])} {row['unit']}"
    met = row["met"] if row["valid"] else _invalid(row)
    if row["measured"] is None:
        met = f"not measured: {row['reason']}"
    return [row["what"], limit.strip(), measured.strip(), met]


def _pairs(figures: Figures, leave_out: Sequence[str] = ()) -> list[str]:
    rows: Rows = []
    for key, value in figures.items():
        if isinstance(value, dict) and key not in leave_out:
            rows += [[f"{key} {inner}".replace("_", " "), value[inner]] for inner in value]
        elif key not in leave_out:
            rows.append([key.replace("_", " "), value])
    return _table(["figure", "value"], rows)


def _capacity(rows: list[Figures]) -> list[str]:
    if not rows:
        return ["Not part of this run.", ""]
    keys = (
        *("listeners", "talkers", "packet_ms", "server_cores", "server_cpu", "cpu_us_per_packet"),
        *("floor_us_per_packet", "ratio_to_floor", "loss", "encodes_per_tick"),
        *("rss_bytes_per_listener", "generator_cpu"),
    )
    head = (
        *(
            "listen",
            "talk",
            "packet ms",
            "server's cores",
            "CPU, cores",
            "CPU µs a packet",
            "floor µs",
            "times floor",
        ),
        *(
            "loss",
            "encodes a tick",
            "RSS bytes each",
            "generator",
            "late p50, p99, max ms",
            "remark",
        ),
    )
    found = []
    for row in rows:
        late = row.get("tick_lateness_ms", {})
        cells = [row.get(key) for key in keys]
        found.append([*cells, ", ".join(map(_text, late.values())), _invalid(row)])
    return _table(head, found)


def _phases(figures: Figures) -> list[str]:
    if "phases" not in figures:
        return [f"{_invalid(figures)}.", ""]
    rows: Rows = [
        [name.replace("_", " "), phase["median_us"], phase["iqr_us"], phase["rounds"]]
        for name, phase in figures["phases"].items()
    ]
    return [
        f"`seal` and `send` are {_text(figures['listeners'])} datagrams; `node tick` is all of a"
        f" tick but the sends, for {_text(figures['talkers'])} who talk and"
        f" {_text(figures['listeners'])} who listen, `crowd tick` the same in packets of 60 ms."
        " `plan` is made anew only when something changes; `decode` and `encode` are one each.",
        "",
        *_table(["phase", "median µs", "IQR µs", "rounds"], rows),
    ]


def _storms(rows: list[Figures]) -> list[str]:
    """A column for each."""
    if not rows:
        return ["Not part of this run.", ""]
    keys = (
        *("listeners", "rate", "seconds", "joins", "joins_per_second", "unanswered", "cookies"),
        *("hellos_repeated", "cpu_us_per_join", "server_cpu", "server_cpu_before"),
        *("loss", "loss_before", "extra_loss", "generator_cpu"),
    )
    found: Rows = [[key.replace("_", " "), *(row.get(key) for row in rows)] for key in keys]
    for key in ("latency_ms", "tick_lateness_ms", "tick_lateness_before_ms"):
        name = f"{key.replace('_', ' ')}: p50, p99, max"
        found.append([name, *(", ".join(map(_text, row.get(key, {}).values())) for row in rows)])
    found.append(["remark", *(_invalid(row) for row in rows)])
    return _table(["figure", *("value" for _ in rows)], found)


def _delays(rows: list[Figures]) -> list[str]:
    if not rows:
        return ["Not part of this run.", ""]
    names = {
        "server_added_ms": "added by the server",
        "mouth_to_ear_ms": "from mouth to ear",
        "tick_lateness_ms": "ticks were late by",
        "generator_lateness_ms": "the clients' timers were late by",
    }
    keys = ("packets", "mean", "p50", "p90", "p99", "max")
    found: Rows = []
    for row in rows:
        if _invalid(row):
            found.append([row.get("frame_ms"), _invalid(row), *("" for _ in keys)])
        for key, name in names.items():
            if key in row:
                found.append([row["frame_ms"], name, *(row[key].get(one) for one in keys)])
    return [
        "The look-ahead of both codecs on the way (13 ms in all) is part of what is between mouth"
        " and ear.",
        "",
        *_table(["frames, ms", "delay, ms", *keys], found),
    ]


def _peers(figures: Figures) -> list[str]:
    if "rows" not in figures:
        return [f"{_invalid(figures)}.", ""]
    keys = (
        *("peer", "version", "mixes", "encrypted", "talkers", "listeners", "server_cpu"),
        *("cpu_us_per_listener_tick", "delay_ms", "loss"),
        *("times_fewer", "times_fewer_in_crowd"),
    )
    head = (
        *("server", "version", "mixes", "seals", "talk", "listen", "CPU, cores"),
        *("CPU µs for 20 ms of one listener", "delay ms", "loss", "times fewer"),
        *("times fewer than a crowd", "remark"),
    )
    rows: Rows = [
        [*(row[key] for key in keys), _invalid(row) or row["stopped_by"]] for row in figures["rows"]
    ]
    return _table(head, rows)
